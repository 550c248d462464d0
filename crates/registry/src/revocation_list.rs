//! Revocation lists of registered authorities: taken from files, uploads and URLs, checked, and in force with the commit.
//!
//! For our own certificates the registry is the authority. A registered CA revokes by its list; what is on it is refused
//! inside TLS by the chain check, whether it is registered here or not, and live sessions of what is registered end.
//! Nothing is final: a certificate that a later list names no more (a hold that was lifted) is admitted again.

use std::collections::HashSet;
use std::sync::Arc;

use countersign_identity::{
    AuthorityId, CertificateFacts, DeviceId, Fingerprint, KeptLists, ListFault, RevocationList, TenantId,
    Timestamp, WhenStale,
};
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::change::{Actor, Change, damaged};
use crate::error::RegistryError;
use crate::store::Registry;
use crate::table::Fact;
use crate::writer::{Committed, Scope};

/// How an authority's lists come here, and what happens without.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListSettings {
    /// An absolute path or an `http` URL; `None`: lists are uploaded.
    #[serde(default)]
    pub source: Option<String>,
    /// How often the source is looked at, in seconds, from 1.
    pub interval_s: u32,
    /// What happens while the list is stale.
    #[serde(default)]
    pub when_stale: WhenStale,
}

impl Default for ListSettings {
    fn default() -> Self {
        Self {
            source: None,
            interval_s: 2,
            when_stale: WhenStale::default(),
        }
    }
}

/// The lists of an authority, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListView {
    /// How they come here.
    #[serde(flatten)]
    pub settings: ListSettings,
    /// When the source was last looked at, or a list uploaded.
    pub checked: Option<Timestamp>,
    /// Why that brought no list.
    pub fault: Option<String>,
    /// How many lists are kept: the authority's own, and those of CAs below it.
    pub lists: usize,
    /// How many certificates they revoke.
    pub revoked: usize,
    /// cRLNumber of the authority's own list, hex.
    pub number: Option<String>,
    /// When the first of them is to be replaced.
    pub next_update: Option<Timestamp>,
}

impl ListView {
    /// Whether the authority's list is missing or past its nextUpdate.
    pub fn is_stale_at(&self, now: Timestamp) -> bool {
        self.number.is_none() || self.next_update.is_none_or(|next| next < now)
    }
}

/// What taking lists did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListsTaken {
    /// Lists that are new here.
    pub taken: usize,
    /// Lists that were here already.
    pub unchanged: usize,
    /// Serial numbers that were on no list before.
    pub newly_revoked: usize,
    /// Registered certificates that are among them.
    pub credentials: usize,
}

/// The lists that are kept for an authority; `None` if it has none to ask.
pub(crate) fn kept(db: &Connection, id: &AuthorityId) -> Result<Option<Arc<KeptLists>>, RegistryError> {
    let Some(settings) = settings(db, id)? else {
        return Ok(None);
    };
    let lists = lists(db, id)?;
    Ok(Some(Arc::new(KeptLists::new(settings.when_stale, &lists))))
}

fn settings(db: &Connection, id: &AuthorityId) -> Result<Option<ListSettings>, RegistryError> {
    let row: Option<(Option<String>, u32, String)> = db
        .prepare_cached("SELECT source, interval_s, when_stale FROM list_settings WHERE authority = ?")?
        .query_row([id.as_str()], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
        .optional()?;
    row.map(|(source, interval_s, when_stale)| {
        Ok(ListSettings {
            source,
            interval_s,
            when_stale: damaged(when_stale.parse())?,
        })
    })
    .transpose()
}

fn lists(db: &Connection, id: &AuthorityId) -> Result<Vec<RevocationList>, RegistryError> {
    let ders = db
        .prepare_cached("SELECT list FROM revocation_lists WHERE authority = ?")?
        .query_map([id.as_str()], |r| r.get::<_, Vec<u8>>(0))?
        .collect::<Result<Vec<_>, _>>()?;
    ders.iter()
        .map(|der| damaged(RevocationList::parse(der)))
        .collect()
}

/// The registered credentials that are on a list.
pub(crate) fn load(db: &Connection) -> Result<Fact, RegistryError> {
    let added = db
        .prepare("SELECT fingerprint FROM listed")?
        .query_map([], |r| r.get(0).map(Fingerprint::from_bytes))?
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Fact::Listed {
        added,
        removed: Vec::new(),
    })
}

/// An issuer's name and a serial number of it, as hex without leading zeros.
type Listed = HashSet<(String, String)>;

fn listed(lists: &[RevocationList]) -> Listed {
    lists
        .iter()
        .flat_map(|list| {
            let serial = |s: &[u8]| {
                (
                    list.issuer_text.clone(),
                    countersign_identity::certificate::serial_hex(s),
                )
            };
            list.serials().map(serial).collect::<Vec<_>>()
        })
        .collect()
}

impl Scope<'_> {
    /// Who may issue a list that counts for an authority: itself, and the tenant's stored intermediates that it signed.
    fn list_issuers(
        &self,
        tenant: &TenantId,
        certificate: &[u8],
    ) -> Result<Vec<(CertificateFacts, Vec<u8>)>, RegistryError> {
        let own = damaged(CertificateFacts::parse(certificate))?;
        let mut found = vec![(own, certificate.to_vec())];
        let stored = self
            .tx
            .prepare_cached("SELECT certificate FROM intermediates WHERE tenant = ?")?
            .query_map([tenant.as_str()], |r| r.get::<_, Vec<u8>>(0))?
            .collect::<Result<Vec<_>, _>>()?;
        let mut open: Vec<_> = stored
            .into_iter()
            .map(|der| Ok((damaged(CertificateFacts::parse(&der))?, der)))
            .collect::<Result<_, RegistryError>>()?;
        // Each round finds those that one found before signed.
        loop {
            let (next, rest): (Vec<_>, Vec<_>) = open.into_iter().partition(|(facts, der)| {
                found.iter().any(|(above, above_der)| {
                    above.subject_der == facts.issuer_der && signed_by(der, above_der)
                })
            });
            if next.is_empty() {
                return Ok(found);
            }
            found.extend(next);
            open = rest;
        }
    }

    /// Registered certificates under an issuer's name with one serial number; if that is a CA below, all of its.
    fn credentials_of_serial(
        &self,
        tenant: &TenantId,
        issuers: &[(CertificateFacts, Vec<u8>)],
        (issuer, serial): &(String, String),
    ) -> Result<Vec<(Fingerprint, DeviceId)>, RegistryError> {
        let mut found = Vec::new();
        let mut collect = |clause: &str, values: [&str; 2]| -> Result<(), RegistryError> {
            let mut statement = self.tx.prepare_cached(&format!(
                "SELECT fingerprint, device FROM credentials WHERE {clause} AND issuer = ? AND tenant = '{tenant}'"
            ))?;
            let mut rows = statement.query(values)?;
            while let Some(r) = rows.next()? {
                let device: String = r.get(1)?;
                found.push((Fingerprint::from_bytes(r.get(0)?), damaged(device.parse())?));
            }
            Ok(())
        };
        collect("serial = ?", [serial, issuer])?;
        for (below, _) in issuers {
            if below.issuer_text == *issuer && below.serial == *serial {
                collect("? <> ''", [serial, &below.subject_text])?;
            }
        }
        Ok(found)
    }

    fn need_registered(&self, id: &AuthorityId) -> Result<crate::authority::Row, RegistryError> {
        let row = self.authority(id)?;
        if row.new.origin == crate::Origin::Managed {
            return Err(RegistryError::Refused(format!(
                "authority {id} is ours: what it issued is revoked in the registry; hint: countersign credential revoke"
            )));
        }
        Ok(row)
    }
}

fn signed_by(der: &[u8], above: &[u8]) -> bool {
    use countersign_identity::signed::{Signed, key_of};
    match (Signed::parse(der), key_of(above)) {
        (Ok(signed), Ok(key)) => signed.verify(&key).is_ok(),
        _ => false,
    }
}

impl Registry {
    /// From now on an authority is asked for its list, or with `None` no longer; sessions are decided anew.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] for an authority of ours, or a source that is none.
    pub fn set_list_settings(
        &self,
        actor: Actor,
        id: AuthorityId,
        settings: Option<ListSettings>,
    ) -> Result<Committed<()>, RegistryError> {
        self.write(move |scope| {
            let row = scope.need_registered(&id)?;
            let tenant = row.new.tenant.clone();
            match &settings {
                None => {
                    let removed = scope
                        .tx
                        .prepare_cached("SELECT fingerprint FROM listed WHERE authority = ?")?
                        .query_map([id.as_str()], |r| r.get(0).map(Fingerprint::from_bytes))?
                        .collect::<Result<Vec<_>, _>>()?;
                    scope.facts.push(Fact::Listed { added: vec![], removed });
                    for table in ["listed", "revocation_lists", "list_settings"] {
                        scope
                            .tx
                            .execute(&format!("DELETE FROM {table} WHERE authority = ?"), [id.as_str()])?;
                    }
                }
                Some(settings) => {
                    let sound = settings.source.as_deref().is_none_or(|s| s.starts_with('/') || s.starts_with("http://"));
                    if !sound || settings.interval_s == 0 {
                        return Err(RegistryError::Refused(
                            "the source is an absolute path or an http:// URL, the interval 1 s or more; hint: a list is signed, it needs no https".into(),
                        ));
                    }
                    scope.tx.execute(
                        "INSERT INTO list_settings (authority, source, interval_s, when_stale) VALUES (?1, ?2, ?3, ?4)
                         ON CONFLICT (authority) DO UPDATE SET source = ?2, interval_s = ?3, when_stale = ?4, fault = NULL",
                        params![id.as_str(), settings.source, settings.interval_s, settings.when_stale.name()],
                    )?;
                }
            }
            scope.put_authority(&row.new, row.state)?;
            let detail = json!({ "settings": settings });
            scope.audit(&actor, "authority.list-settings", tenant.as_str(), id.as_str(), &detail)
        })
    }

    /// Takes lists (DER) for an authority: its own, and those of its CAs below that are stored as intermediates. All or
    /// none. Without settings, the default ones are set.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] for a list of somebody else, with a bad signature, from the future, or older than the
    /// one that is here.
    pub fn take_lists(
        &self,
        actor: Actor,
        id: AuthorityId,
        ders: Vec<Vec<u8>>,
    ) -> Result<Committed<ListsTaken>, RegistryError> {
        self.write(move |scope| {
            let row = scope.need_registered(&id)?;
            let tenant = row.new.tenant.clone();
            let default = ListSettings::default();
            scope.tx.execute(
                "INSERT OR IGNORE INTO list_settings (authority, interval_s, when_stale) VALUES (?, ?, ?)",
                params![id.as_str(), default.interval_s, default.when_stale.name()],
            )?;
            scope.tx.execute(
                "UPDATE list_settings SET checked = ?2, fault = NULL WHERE authority = ?1",
                params![id.as_str(), scope.now.unix_ms()],
            )?;
            let before = lists(scope.tx, &id)?;
            let issuers = scope.list_issuers(&tenant, &row.new.certificate)?;
            let mut report = ListsTaken::default();
            for der in &ders {
                let list = RevocationList::parse(der).map_err(|e| RegistryError::Refused(e.to_string()))?;
                let refused = |e: ListFault| RegistryError::Refused(e.to_string());
                let point = list.point().map_err(refused)?;
                let mut of_issuer = before.iter().filter(|o| o.issuer_der == list.issuer_der);
                let old = of_issuer.find(|o| o.point().is_ok_and(|p| p == point));
                if old.is_some_and(|o| o.der() == der.as_slice()) {
                    report.unchanged += 1;
                    continue;
                }
                accept(&list, old, &issuers, scope.now)?;
                if let Some(old) = old {
                    scope.tx.execute(
                        "DELETE FROM revocation_lists WHERE authority = ? AND issuer = ? AND list = ?",
                        params![id.as_str(), old.issuer_der, old.der()],
                    )?;
                }
                scope.tx.execute(
                    "INSERT INTO revocation_lists (authority, issuer, point, list, taken) VALUES (?, ?, ?, ?, ?)",
                    params![id.as_str(), list.issuer_der, point, der, scope.now.unix_ms()],
                )?;
                report.taken += 1;
            }
            if report.taken == 0 {
                return Ok(report);
            }
            let after = listed(&lists(scope.tx, &id)?);
            let before = listed(&before);
            let (mut added, mut removed) = (Vec::new(), Vec::new());
            for (set, other, into) in [(&after, &before, &mut added), (&before, &after, &mut removed)] {
                for named in set.difference(other) {
                    for (fingerprint, device) in scope.credentials_of_serial(&tenant, &issuers, named)? {
                        into.push(fingerprint);
                        scope
                            .changes
                            .push(Change::Credential(tenant.clone(), device, fingerprint));
                    }
                }
            }
            for fingerprint in &added {
                scope
                    .tx
                    .prepare_cached("INSERT OR REPLACE INTO listed (fingerprint, authority) VALUES (?, ?)")?
                    .execute(params![fingerprint.as_bytes(), id.as_str()])?;
            }
            for fingerprint in &removed {
                scope
                    .tx
                    .prepare_cached("DELETE FROM listed WHERE fingerprint = ?")?
                    .execute([fingerprint.as_bytes()])?;
            }
            report.newly_revoked = after.difference(&before).count();
            report.credentials = added.len();
            scope.facts.push(Fact::Listed { added, removed });
            // The authority's generation grows: a session that is being granted on the list before is decided anew.
            scope.put_authority(&row.new, row.state)?;
            let detail = serde_json::to_value(report).map_err(|e| RegistryError::Database(e.to_string()))?;
            scope.audit(&actor, "authority.list", tenant.as_str(), id.as_str(), &detail)?;
            Ok(report)
        })
    }

    /// Keeps why an authority's source brought no list; `None` if it was looked at and nothing is new.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be written.
    pub fn list_checked(
        &self,
        id: AuthorityId,
        fault: Option<String>,
    ) -> Result<Committed<()>, RegistryError> {
        self.write(move |scope| {
            scope.tx.execute(
                "UPDATE list_settings SET checked = ?2, fault = ?3 WHERE authority = ?1",
                params![id.as_str(), scope.now.unix_ms(), fault],
            )?;
            Ok(())
        })
    }

    /// The authorities that are asked for a list, with how it comes here: cheap, to be called often.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn list_sources(&self) -> Result<Vec<(AuthorityId, ListSettings)>, RegistryError> {
        self.read(|db| {
            let ids = db
                .prepare_cached("SELECT authority FROM list_settings WHERE source IS NOT NULL")?
                .query_map([], |r| r.get(0))?
                .collect::<Result<Vec<String>, _>>()?;
            ids.into_iter()
                .map(|id| {
                    let id: AuthorityId = damaged(id.parse())?;
                    let settings = settings(db, &id)?.unwrap_or_default();
                    Ok((id, settings))
                })
                .collect()
        })
    }

    /// The authorities that are asked for a list, with what is known of it.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn revocation_lists(&self) -> Result<Vec<(AuthorityId, ListView)>, RegistryError> {
        self.read(|db| {
            let rows = db
                .prepare_cached("SELECT authority, checked, fault FROM list_settings ORDER BY authority")?
                .query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?
                .collect::<Result<Vec<(String, Option<i64>, Option<String>)>, _>>()?;
            rows.into_iter()
                .map(|(id, checked, fault)| {
                    let id: AuthorityId = damaged(id.parse())?;
                    let view = view(db, &id, checked, fault)?;
                    Ok((id, view))
                })
                .collect()
        })
    }
}

fn view(
    db: &Connection,
    id: &AuthorityId,
    checked: Option<i64>,
    fault: Option<String>,
) -> Result<ListView, RegistryError> {
    let certificate: Vec<u8> = db
        .prepare_cached("SELECT certificate FROM authorities WHERE id = ?")?
        .query_row([id.as_str()], |r| r.get(0))?;
    let own = damaged(CertificateFacts::parse(&certificate))?.subject_der;
    let lists = lists(db, id)?;
    Ok(ListView {
        settings: settings(db, id)?.unwrap_or_default(),
        checked: checked.map(Timestamp::from_unix_ms),
        fault,
        lists: lists.len(),
        revoked: lists.iter().map(RevocationList::len).sum(),
        number: lists
            .iter()
            .find(|l| l.issuer_der == own)
            .map(|l| countersign_identity::certificate::serial_hex(l.number.as_deref().unwrap_or_default())),
        next_update: lists.iter().filter_map(|l| l.next_update).min(),
    })
}

/// Whether a list is one to take.
fn accept(
    list: &RevocationList,
    old: Option<&RevocationList>,
    issuers: &[(CertificateFacts, Vec<u8>)],
    now: Timestamp,
) -> Result<(), RegistryError> {
    let mut fault = None;
    let holds = issuers
        .iter()
        .filter(|(facts, _)| facts.subject_der == list.issuer_der)
        .any(|(facts, der)| match list.check(facts, der, now) {
            Ok(()) => true,
            Err(e) => {
                fault = Some(e.to_string());
                false
            }
        });
    if !holds {
        return Err(RegistryError::Refused(fault.unwrap_or_else(|| {
            format!(
                "the list was issued by {:?}, which is neither the authority nor a stored intermediate below it; hint: countersign authority intermediate",
                list.issuer_text
            )
        })));
    }
    let number = |l: &RevocationList| {
        let n = l.number.clone().unwrap_or_default();
        (n.len(), n)
    };
    if let Some(old) = old
        && (number(list) < number(old) || list.this_update < old.this_update)
    {
        return Err(RegistryError::Refused(format!(
            "the list is older than the one that is here (cRLNumber {} of {}, here {} of {}); hint: a list that goes back would take back revocations",
            hex(list),
            list.this_update,
            hex(old),
            old.this_update
        )));
    }
    Ok(())
}

fn hex(list: &RevocationList) -> String {
    countersign_identity::certificate::serial_hex(list.number.as_deref().unwrap_or_default())
}
