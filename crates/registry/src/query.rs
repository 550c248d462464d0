//! Reading for people: lists and single things, with what decisions do not need.

use countersign_identity::{
    AnchorState, AuthorityId, CertificateFacts, DeviceId, Fingerprint, TenantId, Timestamp,
};
use countersign_policy::facts::CredentialKind;
use countersign_policy::{Admission, ClientIdMode, CredentialState, Custody, LifecycleState, TopicSpace};
use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};

use crate::audit::{self, AuditEntry, AuditFault};
use crate::authority::anchor_state;
use crate::change::{damaged, read_device};
use crate::error::RegistryError;
use crate::store::Registry;

/// A credential's certificate, DER, if it was issued here; and the authority that its chain is known to end in.
pub type KeptCertificate = (Option<Vec<u8>>, Option<AuthorityId>);

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantView {
    /// Its id.
    pub id: TenantId,
    /// Which client ids its devices may use.
    pub client_id_mode: ClientIdMode,
    /// Its host names.
    pub hosts: Vec<String>,
    /// Its topic spaces.
    pub spaces: Vec<TopicSpace>,
    /// The version of its policies that is in force.
    pub policy_version: u64,
    /// How many devices it has.
    pub devices: u64,
    /// Since when.
    pub created: Timestamp,
}

/// An authority of the `devices` hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityView {
    /// Its id.
    pub id: AuthorityId,
    /// Its tenant.
    pub tenant: TenantId,
    /// `managed` or `registered`.
    pub origin: String,
    /// Its state.
    pub state: AnchorState,
    /// Where its certificates carry the device id.
    pub identity_rule: String,
    /// Its certificate's subject.
    pub subject: String,
    /// Its certificate's fingerprint.
    pub fingerprint: Fingerprint,
    /// The end of its certificate's validity.
    pub not_after: Timestamp,
    /// What first contacts of its devices may bring about.
    pub admission: Admission,
    /// While unproven: the code that the proof must name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Until when the code may be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code_expires: Option<Timestamp>,
}

/// An authority of ours, as whoever issues or tells of certificates needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnAuthority {
    /// Its id.
    pub id: AuthorityId,
    /// Its state.
    pub state: AnchorState,
    /// It issues stations, and nothing else.
    pub is_factory: bool,
    /// Its certificate, DER.
    pub certificate: Vec<u8>,
}

/// A device in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceView {
    /// Its tenant.
    pub tenant: TenantId,
    /// Its id.
    pub id: DeviceId,
    /// Its model.
    pub model: Option<String>,
    /// Its groups.
    pub groups: Vec<String>,
    /// Where it stands.
    pub state: LifecycleState,
    /// While quarantined: what release returns to.
    pub before_quarantine: Option<LifecycleState>,
    /// When its suspension ends by itself.
    pub suspended_until: Option<Timestamp>,
    /// When its quarantine ends by itself.
    pub quarantined_until: Option<Timestamp>,
    /// The last move of its lifecycle; `None`: it is as it was made.
    pub moved: Option<MoveView>,
    /// The authority whose certificates may be learned for it at first contact.
    pub authority: Option<AuthorityId>,
    /// Since when.
    pub created: Timestamp,
}

/// Since when a device is in its state, and by whose doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveView {
    /// Since when.
    pub since: Timestamp,
    /// Who did it; `countersign`: a time box was over.
    pub by: String,
    /// Why.
    pub reason: String,
}

/// A credential of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialView {
    /// Its certificate's fingerprint.
    pub fingerprint: Fingerprint,
    /// Its certificate's serial number, hex.
    pub serial: String,
    /// Its certificate's issuer.
    pub issuer: String,
    /// What it is for.
    pub kind: CredentialKind,
    /// Where it stands.
    pub state: CredentialState,
    /// How its key is held.
    pub custody: Custody,
    /// The authority that its chain ends in, if that is known.
    pub authority: Option<AuthorityId>,
    /// A newer one is in use: until then this one is admitted too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub supersede_at: Option<Timestamp>,
    /// First moment of validity.
    pub not_before: Timestamp,
    /// Last moment of validity.
    pub not_after: Timestamp,
}

/// A device that is not decommissioned, and what it would come with now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveDevice {
    /// Its id.
    pub id: DeviceId,
    /// Where it stands.
    pub state: LifecycleState,
    /// Its certificate's fingerprint; `None` if it has none that is in force.
    pub credential: Option<Fingerprint>,
    /// The authority that its chain ends in, if that is known.
    pub authority: Option<AuthorityId>,
}

impl Registry {
    /// All tenants.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read; so for all queries.
    pub fn tenants(&self) -> Result<Vec<TenantView>, RegistryError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT id, client_id_mode,
                 (SELECT spaces FROM policy_versions WHERE tenant = tenants.id AND number = policy_version), created,
                 (SELECT json_group_array(host) FROM hosts WHERE tenant = tenants.id),
                 (SELECT count(*) FROM devices WHERE tenant = tenants.id), policy_version FROM tenants ORDER BY id",
            )?;
            let mut rows = statement.query([])?;
            let mut found = Vec::new();
            while let Some(r) = rows.next()? {
                found.push(TenantView {
                    id: damaged(r.get::<_, String>(0)?.parse())?,
                    client_id_mode: damaged(r.get::<_, String>(1)?.parse())?,
                    spaces: damaged(serde_json::from_str(&r.get::<_, String>(2)?))?,
                    created: Timestamp::from_unix_ms(r.get(3)?),
                    hosts: damaged(serde_json::from_str(&r.get::<_, String>(4)?))?,
                    devices: r.get::<_, i64>(5)?.cast_unsigned(),
                    policy_version: r.get::<_, i64>(6)?.cast_unsigned(),
                });
            }
            Ok(found)
        })
    }

    /// All authorities.
    ///
    /// # Errors
    /// As for [`Registry::tenants`].
    pub fn authorities(&self) -> Result<Vec<AuthorityView>, RegistryError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT id, tenant, origin, state, identity_rule, certificate, admission, code, code_expires
                 FROM authorities ORDER BY tenant, id",
            )?;
            let mut rows = statement.query([])?;
            let mut found = Vec::new();
            while let Some(r) = rows.next()? {
                let facts = damaged(CertificateFacts::parse(&r.get::<_, Vec<u8>>(5)?))?;
                found.push(AuthorityView {
                    id: damaged(r.get::<_, String>(0)?.parse())?,
                    tenant: damaged(r.get::<_, String>(1)?.parse())?,
                    origin: r.get(2)?,
                    state: anchor_state(&r.get::<_, String>(3)?)?,
                    identity_rule: r.get(4)?,
                    subject: facts.subject_text,
                    fingerprint: facts.fingerprint,
                    not_after: facts.not_after,
                    admission: damaged(serde_json::from_str(&r.get::<_, String>(6)?))?,
                    code: r.get(7)?,
                    code_expires: r.get::<_, Option<i64>>(8)?.map(Timestamp::from_unix_ms),
                });
            }
            Ok(found)
        })
    }

    /// Our authorities, those of one tenant if one is named, in order of tenant and id. Of those that were brought none is read: there may be
    /// very many, and anybody may ask for what follows from this.
    ///
    /// # Errors
    /// As for [`Registry::tenants`].
    pub fn own_authorities(&self, tenant: Option<&TenantId>) -> Result<Vec<OwnAuthority>, RegistryError> {
        self.read(|db| {
            // As the index says it, or it is not used.
            const OURS: &str =
                "SELECT id, state, origin, certificate FROM authorities WHERE origin <> 'registered'";
            let mut statement = match tenant {
                Some(_) => db.prepare_cached(&format!("{OURS} AND tenant = ?1 ORDER BY tenant, id"))?,
                None => db.prepare_cached(&format!("{OURS} ORDER BY tenant, id"))?,
            };
            let mut rows = match tenant {
                Some(tenant) => statement.query([tenant.as_str()])?,
                None => statement.query([])?,
            };
            let mut found = Vec::new();
            while let Some(r) = rows.next()? {
                found.push(OwnAuthority {
                    id: damaged(r.get::<_, String>(0)?.parse())?,
                    state: anchor_state(&r.get::<_, String>(1)?)?,
                    is_factory: r.get::<_, String>(2)? == "factory",
                    certificate: r.get(3)?,
                });
            }
            Ok(found)
        })
    }

    /// The authority that issues for a tenant: its newest active one of ours.
    ///
    /// # Errors
    /// As for [`Registry::tenants`].
    pub fn issuing_authority(&self, tenant: &TenantId) -> Result<Option<AuthorityId>, RegistryError> {
        let id: Option<String> = self.read(|db| {
            Ok(db
                .prepare_cached(
                    "SELECT id FROM authorities WHERE tenant = ? AND origin = 'managed' AND state = 'active'
                     ORDER BY created DESC, id LIMIT 1",
                )?
                .query_row([tenant.as_str()], |r| r.get(0))
                .optional()?)
        })?;
        id.map(|id| damaged(id.parse())).transpose()
    }

    /// An authority's certificate, DER.
    ///
    /// # Errors
    /// [`RegistryError::NoAuthority`].
    pub fn authority_certificate(&self, id: &AuthorityId) -> Result<Vec<u8>, RegistryError> {
        self.read(|db| {
            db.prepare_cached("SELECT certificate FROM authorities WHERE id = ?")?
                .query_row([id.as_str()], |r| r.get(0))
                .optional()?
                .ok_or_else(|| RegistryError::NoAuthority(id.to_string()))
        })
    }

    /// Devices of a tenant after `after` in order of id, at most `limit`, in one state if one is named.
    ///
    /// # Errors
    /// As for [`Registry::tenants`].
    pub fn devices(
        &self,
        tenant: &TenantId,
        state: Option<LifecycleState>,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<DeviceView>, RegistryError> {
        let ids: Vec<String> = self.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT id FROM devices WHERE tenant = ?1 AND id > ?2 AND (?3 IS NULL OR state = ?3)
                 ORDER BY id LIMIT ?4",
            )?;
            let rows = statement.query_map(
                params![
                    tenant.as_str(),
                    after.unwrap_or(""),
                    state.map(LifecycleState::name),
                    limit
                ],
                |r| r.get(0),
            )?;
            Ok(rows.collect::<Result<_, _>>()?)
        })?;
        ids.iter()
            .filter_map(|id| self.device(tenant, &DeviceId::new(id).ok()?).transpose())
            .collect()
    }

    /// One device.
    ///
    /// # Errors
    /// As for [`Registry::tenants`].
    pub fn device(&self, tenant: &TenantId, id: &DeviceId) -> Result<Option<DeviceView>, RegistryError> {
        let found = self.read(|db| {
            let Some(found) = read_device(db, tenant, id)? else {
                return Ok(None);
            };
            let moved = db
                .prepare_cached("SELECT moved, moved_by, moved_why FROM devices WHERE tenant = ? AND id = ?")?
                .query_row([tenant.as_str(), id.as_str()], |r| {
                    let since: Option<i64> = r.get(0)?;
                    let (by, reason): (Option<String>, Option<String>) = (r.get(1)?, r.get(2)?);
                    Ok(since.map(|since| MoveView {
                        since: Timestamp::from_unix_ms(since),
                        by: by.unwrap_or_default(),
                        reason: reason.unwrap_or_default(),
                    }))
                })?;
            Ok(Some((found, moved)))
        })?;
        Ok(found.map(|((device, lifecycle, created), moved)| DeviceView {
            suspended_until: lifecycle.suspended_until,
            quarantined_until: lifecycle.quarantined_until,
            moved,
            tenant: tenant.clone(),
            id: device.id,
            model: device.model,
            groups: device.groups,
            state: lifecycle.state,
            before_quarantine: lifecycle.before_quarantine,
            authority: device.authority,
            created,
        }))
    }

    /// The credentials of a device, newest first.
    ///
    /// # Errors
    /// As for [`Registry::tenants`].
    pub fn credentials(
        &self,
        tenant: &TenantId,
        id: &DeviceId,
    ) -> Result<Vec<CredentialView>, RegistryError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT fingerprint, serial, issuer, kind, state, custody, not_before, not_after, authority,
                 supersede_at FROM credentials
                 WHERE tenant = ? AND device = ? ORDER BY rowid DESC",
            )?;
            let mut rows = statement.query([tenant.as_str(), id.as_str()])?;
            let mut found = Vec::new();
            while let Some(r) = rows.next()? {
                found.push(CredentialView {
                    fingerprint: Fingerprint::from_bytes(r.get(0)?),
                    serial: r.get(1)?,
                    issuer: r.get(2)?,
                    kind: damaged(r.get::<_, String>(3)?.parse())?,
                    state: damaged(r.get::<_, String>(4)?.parse())?,
                    custody: damaged(r.get::<_, String>(5)?.parse())?,
                    not_before: Timestamp::from_unix_ms(r.get(6)?),
                    not_after: Timestamp::from_unix_ms(r.get(7)?),
                    authority: r
                        .get::<_, Option<String>>(8)?
                        .map(|a| damaged(a.parse()))
                        .transpose()?,
                    supersede_at: r.get::<_, Option<i64>>(9)?.map(Timestamp::from_unix_ms),
                });
            }
            Ok(found)
        })
    }

    /// Every device of a tenant that is not decommissioned, in order of id, with the credential by which it would come now: its newest in
    /// use, or one that was issued and not used yet. Reads all of them: on a connection of its own.
    ///
    /// # Errors
    /// As for [`Registry::tenants`].
    pub fn live_devices(
        &self,
        tenant: &TenantId,
        now: Timestamp,
        mut take: impl FnMut(LiveDevice),
    ) -> Result<(), RegistryError> {
        let db = crate::migrate::open_reader(&self.path().join("registry.db"))?;
        // With one max() the other columns are of the row that has it (SQLite, "bare columns"). What is in use counts for
        // more than any revision (2^62): those of a new epoch begin with its time in milliseconds times 4,096.
        let mut statement = db.prepare(
            "WITH live AS (
                SELECT device, fingerprint, authority, kind, max((state = 'active') * 4611686018427387904 + revision)
                FROM credentials
                WHERE tenant = ?1 AND state IN ('issued', 'active') AND not_before <= ?2 AND not_after >= ?2
                GROUP BY device)
             SELECT d.id, l.fingerprint, l.authority, l.kind, d.state
             FROM devices d LEFT JOIN live l ON l.device = d.id
             WHERE d.tenant = ?1 AND d.state <> ?3 ORDER BY d.id",
        )?;
        let gone = LifecycleState::Decommissioned.name();
        let mut rows = statement.query(params![tenant.as_str(), now.unix_ms(), gone])?;
        while let Some(r) = rows.next()? {
            let pinned = r.get::<_, Option<String>>(3)?.as_deref() == Some(CredentialKind::Pinned.name());
            let authority = match r.get::<_, Option<String>>(2)? {
                _ if pinned => Some(AuthorityId::pinned()),
                authority => authority.map(|a| damaged(a.parse())).transpose()?,
            };
            take(LiveDevice {
                id: damaged(r.get::<_, String>(0)?.parse())?,
                state: damaged(r.get::<_, String>(4)?.parse())?,
                credential: r.get::<_, Option<[u8; 32]>>(1)?.map(Fingerprint::from_bytes),
                authority,
            });
        }
        Ok(())
    }

    /// The certificate of a credential, DER, if it was issued here; and the authority its chain is known to end in.
    ///
    /// # Errors
    /// As for [`Registry::tenants`].
    pub fn credential_certificate(
        &self,
        fingerprint: &Fingerprint,
    ) -> Result<Option<KeptCertificate>, RegistryError> {
        self.read(|db| {
            let row: Option<(Option<Vec<u8>>, Option<String>)> = db
                .prepare_cached("SELECT certificate, authority FROM credentials WHERE fingerprint = ?")?
                .query_row([fingerprint.as_bytes()], |r| Ok((r.get(0)?, r.get(1)?)))
                .optional()?;
            row.map(|(der, authority)| Ok((der, authority.map(|a| damaged(a.parse())).transpose()?)))
                .transpose()
        })
    }

    /// The device of a credential, by its certificate's serial number in hex.
    ///
    /// # Errors
    /// As for [`Registry::tenants`].
    pub fn device_by_serial(&self, serial: &str) -> Result<Option<(TenantId, DeviceId)>, RegistryError> {
        let serial = serial.replace(':', "").to_ascii_lowercase();
        let row: Option<(String, String)> = self.read(|db| {
            Ok(db
                .prepare_cached("SELECT tenant, device FROM credentials WHERE serial = ?")?
                .query_row([serial.trim_start_matches('0')], |r| Ok((r.get(0)?, r.get(1)?)))
                .optional()?)
        })?;
        row.map(|(t, d)| Ok((damaged(t.parse())?, damaged(d.parse())?)))
            .transpose()
    }

    /// The newest audit entries, newest first.
    ///
    /// # Errors
    /// As for [`Registry::tenants`].
    pub fn audit(&self, limit: u32) -> Result<Vec<AuditEntry>, RegistryError> {
        self.read(|db| audit::newest(db, limit))
    }

    /// Checks the audit's chain of hashes. Returns how many entries there are.
    ///
    /// # Errors
    /// As for [`Registry::tenants`]; the inner error names the first entry that does not fit.
    pub fn verify_audit(&self) -> Result<Result<u64, AuditFault>, RegistryError> {
        self.read(audit::verify)
    }
}
