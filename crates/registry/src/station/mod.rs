//! Offline stations: granted, reconciled, revoked.
//!
//! ```text
//! granted ──its journal is closed──▶ closed
//!    └──────────┴──it was stolen──▶ revoked
//! ```
//!
//! A station's certificates are admitted by one way only: its journal was reconciled. Whoever else brings one is
//! refused, whatever an authority's admission mode says.

mod overlap;
mod reconcile;

pub use overlap::Overlap;
pub use reconcile::{Reconciled, RefusedEntry, Verdict};

use countersign_factory::RevocationReason;
use countersign_factory::station::Terms;
use countersign_identity::{
    AuthorityId, BatchId, CertificateFacts, Fingerprint, StationId, StoredIntermediate, TenantId, Timestamp,
};
use countersign_policy::station::Accounting;
use countersign_policy::{CredentialState, StationFacts};
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::change::{Actor, Change, damaged};
use crate::error::RegistryError;
use crate::store::Registry;
use crate::table::Fact;
use crate::writer::{Committed, Scope};

/// Where a station stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StationState {
    /// It may issue, within its window.
    Granted,
    /// It closed its grant, and its journal said so.
    Closed,
    /// Nothing that it has not accounted for yet is ever accepted.
    Revoked,
}

impl StationState {
    /// The name in store, API and CLI.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::Closed => "closed",
            Self::Revoked => "revoked",
        }
    }
}

impl std::str::FromStr for StationState {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        [Self::Granted, Self::Closed, Self::Revoked]
            .into_iter()
            .find(|state| state.name() == s)
            .ok_or_else(|| format!("{s:?} is no state of a station"))
    }
}

/// A station, and how far it has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StationView {
    /// What it may issue.
    #[serde(flatten)]
    pub terms: Terms,
    /// Where it stands.
    pub state: StationState,
    /// The factory CA that issued its certificate.
    pub authority: AuthorityId,
    /// Its certificate's serial number, hex.
    pub serial: String,
    /// The end of its certificate's validity.
    pub not_after: Timestamp,
    /// SHA-256 of its grant file.
    pub grant: Fingerprint,
    /// How many of its certificates were accepted.
    pub accepted: u64,
    /// How many were refused.
    pub refused: u64,
    /// How many records of its journal were reconciled.
    pub records: u64,
    /// Since when.
    pub created: Timestamp,
}

/// What is kept of a station besides its terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MintedStation {
    /// Its certificate, DER.
    pub certificate: Vec<u8>,
    /// Its grant file.
    pub grant_file: Vec<u8>,
}

struct Row {
    terms: Terms,
    state: StationState,
    authority: AuthorityId,
    grant_file: Vec<u8>,
    certificate: Vec<u8>,
    accepted: u64,
    created: Timestamp,
}

const COLUMNS: &str = "terms, state, authority, grant_file, certificate, accepted, created";

/// Of a row of [`COLUMNS`].
fn row(r: &rusqlite::Row<'_>) -> Result<Row, RegistryError> {
    Ok(Row {
        terms: damaged(serde_json::from_str(&r.get::<_, String>(0)?))?,
        state: damaged(r.get::<_, String>(1)?.parse())?,
        authority: damaged(r.get::<_, String>(2)?.parse())?,
        grant_file: r.get(3)?,
        certificate: r.get(4)?,
        accepted: r.get::<_, i64>(5)?.cast_unsigned(),
        created: Timestamp::from_unix_ms(r.get(6)?),
    })
}

fn read_station(db: &Connection, id: &StationId) -> Result<Row, RegistryError> {
    db.prepare_cached(&format!("SELECT {COLUMNS} FROM stations WHERE id = ?"))?
        .query_row([id.as_str()], |r| Ok(row(r)))
        .optional()?
        .unwrap_or_else(|| Err(RegistryError::NoStation(id.clone())))
}

fn view(db: &Connection, row: Row) -> Result<StationView, RegistryError> {
    let facts = damaged(CertificateFacts::parse(&row.certificate))?;
    let id = row.terms.station.as_str();
    let records: Option<i64> = db
        .prepare_cached("SELECT max(records) FROM station_journals WHERE station = ? AND begun = 0")?
        .query_row([id], |r| r.get(0))?;
    let refused: i64 = db
        .prepare_cached("SELECT count(*) FROM station_refusals WHERE station = ?")?
        .query_row([id], |r| r.get(0))?;
    Ok(StationView {
        state: row.state,
        authority: row.authority,
        serial: facts.serial,
        not_after: facts.not_after,
        grant: Fingerprint::of(&row.grant_file),
        accepted: row.accepted,
        refused: refused.cast_unsigned(),
        records: records.unwrap_or(0).cast_unsigned(),
        created: row.created,
        terms: row.terms,
    })
}

/// What is known of a station where its devices come.
fn facts_of(id: StationId, state: StationState) -> StationFacts {
    StationFacts {
        id,
        accounting: match state {
            StationState::Granted | StationState::Closed => Accounting::Open,
            StationState::Revoked => Accounting::Over,
        },
    }
}

/// Reads all stations.
pub(crate) fn load(db: &Connection, facts: &mut Vec<Fact>) -> Result<(), RegistryError> {
    let mut statement = db.prepare("SELECT tenant, subject, id, state FROM stations")?;
    let mut rows = statement.query([])?;
    while let Some(r) = rows.next()? {
        let id = damaged(r.get::<_, String>(2)?.parse())?;
        let state = damaged(r.get::<_, String>(3)?.parse())?;
        let tenant = damaged(r.get::<_, String>(0)?.parse())?;
        facts.push(Fact::Station(tenant, r.get(1)?, facts_of(id, state)));
    }
    Ok(())
}

impl Scope<'_> {
    /// The station whose certificates bear this issuer, DER.
    pub(crate) fn station_by_subject(&self, issuer: &[u8]) -> Result<Option<StationId>, RegistryError> {
        let id: Option<String> = self
            .tx
            .prepare_cached("SELECT id FROM stations WHERE subject = ?")?
            .query_row([issuer], |r| r.get(0))
            .optional()?;
        id.map(|id| damaged(id.parse())).transpose()
    }

    /// How many devices of a batch stations may still make.
    pub(crate) fn reserved_in_batch(&self, tenant: &TenantId, batch: &BatchId) -> Result<u64, RegistryError> {
        let reserved: i64 = self
            .tx
            .prepare_cached(
                "SELECT coalesce(sum(quota - accepted), 0) FROM stations
                 WHERE tenant = ? AND batch = ? AND state = 'granted'",
            )?
            .query_row([tenant.as_str(), batch.as_str()], |r| r.get(0))?;
        Ok(reserved.cast_unsigned())
    }
}

impl Registry {
    /// Adds a station: `mint` makes its certificate and its grant file, on this thread and while others may write; they are
    /// kept only if all is still as it must be. The same station again is answered with the same grant file. Its quota is
    /// taken from the batch at once.
    ///
    /// # Errors
    /// [`RegistryError::Exists`] if there is one of that id or key with other terms; [`RegistryError::Refused`] if the
    /// terms go beyond the batch, the authority is no factory CA, its ids are taken and `overlap` does not allow it, or
    /// nothing was minted.
    pub fn add_station(
        &self,
        actor: Actor,
        authority: AuthorityId,
        terms: Terms,
        key: Fingerprint,
        overlap: Overlap,
        mint: impl FnOnce(Timestamp) -> Result<MintedStation, String>,
    ) -> Result<Committed<Vec<u8>>, RegistryError> {
        terms.check().map_err(|e| RegistryError::Refused(e.to_string()))?;
        self.write_minting_one(mint, move |scope, minting| {
            let refused = |text: String| Err(RegistryError::Refused(text));
            scope.need_tenant(&terms.tenant)?;
            match read_station(scope.tx, &terms.station) {
                Ok(same) => {
                    let facts = damaged(CertificateFacts::parse(&same.certificate))?;
                    let is_same = same.terms == terms
                        && same.authority == authority
                        && facts.public_key_sha256 == key
                        && same.state == StationState::Granted;
                    return if is_same {
                        Ok(same.grant_file)
                    } else {
                        Err(RegistryError::Exists(format!(
                            "station {}, with another key or other terms,",
                            terms.station
                        )))
                    };
                }
                Err(RegistryError::NoStation(_)) => {}
                Err(e) => return Err(e),
            }
            let origin: Option<(String, String)> = scope
                .tx
                .prepare_cached("SELECT origin, state FROM authorities WHERE id = ? AND tenant = ?")?
                .query_row([authority.as_str(), terms.tenant.as_str()], |r| {
                    Ok((r.get(0)?, r.get(1)?))
                })
                .optional()?;
            match origin {
                None => return Err(RegistryError::NoAuthority(authority.to_string())),
                Some((origin, state)) if origin == "factory" && state == "active" => {}
                Some((_, state)) => {
                    return refused(format!(
                        "authority {authority} is no active factory CA ({state}); hint: countersign authority create ID --factory makes one"
                    ));
                }
            }
            let (batch, standing) = scope.batch(&terms.tenant, &terms.batch)?;
            if standing.state != countersign_factory::BatchState::Open {
                return refused(format!("batch {} is closed; hint: make a new batch", batch.id));
            }
            let left = batch.quota.saturating_sub(standing.devices);
            if terms.quota > left {
                return refused(format!(
                    "batch {} has room for {left} more devices, with those that other stations may still make; {} are asked for; hint: plan a larger batch, or a smaller quota",
                    batch.id, terms.quota
                ));
            }
            let window = batch.window;
            if window.not_before.is_some_and(|t| terms.from < t)
                || window.not_after.is_some_and(|t| terms.to > t)
            {
                return refused(format!(
                    "the station's signing window, {} to {}, goes beyond that of batch {}; hint: countersign factory batch show {} tells it",
                    terms.from, terms.to, batch.id, batch.id
                ));
            }
            if terms.batch_ids != batch.id_pattern || terms.profile.name != batch.profile {
                return refused("the terms are not those of the batch".into());
            }
            if overlap == Overlap::Refused {
                overlap::need_none(scope, &terms)?;
            }
            let minted = minting.one(scope.minting_time()?)?;
            put_station(scope, &authority, &terms, &minted)?;
            scope.keep_time()?;
            let detail = json!({
                "batch": terms.batch, "ids": terms.ids, "quota": terms.quota, "from": terms.from.to_string(),
                "to": terms.to.to_string(), "authority": authority, "overlap": overlap,
                "certificate": Fingerprint::of(&minted.certificate),
                "grant": Fingerprint::of(&minted.grant_file),
            });
            scope.audit(&actor, "station.add", terms.tenant.as_str(), terms.station.as_str(), &detail)?;
            Ok(minted.grant_file)
        })
    }

    /// Revokes a station: nothing it has not accounted for yet is ever accepted. With its devices, their certificates
    /// from it are revoked too. How many those were.
    ///
    /// # Errors
    /// [`RegistryError::NoStation`].
    pub fn revoke_station(
        &self,
        actor: Actor,
        id: StationId,
        code: RevocationReason,
        reason: String,
        with_devices: bool,
    ) -> Result<Committed<u64>, RegistryError> {
        self.write(move |scope| {
            let station = read_station(scope.tx, &id)?;
            let tenant = &station.terms.tenant;
            if station.state != StationState::Revoked {
                let generation = scope.revise("station", tenant.as_str(), id.as_str())?;
                scope.tx.execute(
                    "UPDATE stations SET state = 'revoked', ended = ?2, reason = ?3, revision = ?4 WHERE id = ?1",
                    params![
                        id.as_str(),
                        scope.now.unix_ms(),
                        code.code(),
                        generation.0.cast_signed()
                    ],
                )?;
                let subject = damaged(CertificateFacts::parse(&station.certificate))?.subject_der;
                let facts = facts_of(id.clone(), StationState::Revoked);
                scope.facts.push(Fact::Station(tenant.clone(), subject, facts));
                // The factory CA's revocation list has one more.
                scope.changes.push(Change::Authority(station.authority.clone()));
            }
            let mut revoked = 0;
            if with_devices {
                let found = scope.credentials_where(
                    "station = ? AND state <> ?",
                    [id.as_str(), CredentialState::Revoked.name()],
                )?;
                revoked = found.len() as u64;
                for facts in found {
                    scope.move_credential(facts, CredentialState::Revoked, Some(code))?;
                }
            }
            let detail = json!({
                "code": code.name(), "reason": reason, "from": station.state, "accepted": station.accepted,
                "with_devices": with_devices, "credentials": revoked,
            });
            scope.audit(&actor, "station.revoke", tenant.as_str(), id.as_str(), &detail)?;
            Ok(revoked)
        })
    }

    /// A station.
    ///
    /// # Errors
    /// [`RegistryError::NoStation`].
    pub fn station(&self, id: &StationId) -> Result<StationView, RegistryError> {
        self.read(|db| view(db, read_station(db, id)?))
    }

    /// All stations of a tenant, newest first.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn stations(&self, tenant: &TenantId) -> Result<Vec<StationView>, RegistryError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM stations WHERE tenant = ? ORDER BY created DESC, id"
            ))?;
            let mut rows = statement.query([tenant.as_str()])?;
            let mut found = Vec::new();
            while let Some(r) = rows.next()? {
                found.push(view(db, row(r)?)?);
            }
            Ok(found)
        })
    }

    /// A station's grant file, as it was handed out.
    ///
    /// # Errors
    /// [`RegistryError::NoStation`].
    pub fn station_grant(&self, id: &StationId) -> Result<Vec<u8>, RegistryError> {
        self.read(|db| Ok(read_station(db, id)?.grant_file))
    }

    /// A station's terms and certificate, DER, to verify its journal with.
    ///
    /// # Errors
    /// [`RegistryError::NoStation`].
    pub fn station_terms(&self, id: &StationId) -> Result<(Terms, Vec<u8>, Fingerprint), RegistryError> {
        self.read(|db| {
            let row = read_station(db, id)?;
            let grant = Fingerprint::of(&row.grant_file);
            Ok((row.terms, row.certificate, grant))
        })
    }

    /// The only active factory CA of a tenant, its newest if there are several.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn factory_authority(&self, tenant: &TenantId) -> Result<Option<AuthorityId>, RegistryError> {
        let id: Option<String> = self.read(|db| {
            Ok(db
                .prepare_cached(
                    "SELECT id FROM authorities WHERE tenant = ? AND origin = 'factory' AND state = 'active'
                     ORDER BY created DESC, id LIMIT 1",
                )?
                .query_row([tenant.as_str()], |r| r.get(0))
                .optional()?)
        })?;
        id.map(|id| damaged(id.parse())).transpose()
    }

    /// Whether an authority is a factory CA of ours: it issues stations, and nothing else.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn is_factory(&self, id: &AuthorityId) -> Result<bool, RegistryError> {
        self.read(|db| {
            Ok(db
                .prepare_cached(
                    "SELECT EXISTS (SELECT 1 FROM authorities WHERE id = ? AND origin = 'factory')",
                )?
                .query_row([id.as_str()], |r| r.get(0))?)
        })
    }
}

fn put_station(
    scope: &mut Scope<'_>,
    authority: &AuthorityId,
    terms: &Terms,
    minted: &MintedStation,
) -> Result<(), RegistryError> {
    let facts = CertificateFacts::parse(&minted.certificate)
        .map_err(|e| RegistryError::Refused(format!("what was minted is not kept: {e}")))?;
    let generation = scope.revise("station", terms.tenant.as_str(), terms.station.as_str())?;
    let text = serde_json::to_string(terms).map_err(|e| RegistryError::Database(e.to_string()))?;
    scope
        .tx
        .execute(
            "INSERT INTO stations (id, tenant, authority, batch, state, terms, grant_file, certificate, subject,
             public_key, serial, not_after, quota, revision, created)
             VALUES (?, ?, ?, ?, 'granted', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            params![
                terms.station.as_str(),
                terms.tenant.as_str(),
                authority.as_str(),
                terms.batch.as_str(),
                text,
                minted.grant_file,
                minted.certificate,
                facts.subject_der,
                facts.public_key_sha256.as_bytes(),
                facts.serial,
                facts.not_after.unix_ms(),
                terms.quota.cast_signed(),
                generation.0.cast_signed(),
                scope.now.unix_ms(),
            ],
        )
        .map_err(|e| match e.sqlite_error_code() {
            Some(rusqlite::ErrorCode::ConstraintViolation) => RegistryError::Exists(
                "a station with this key; hint: countersign-station init in another folder makes another one: it".into(),
            ),
            _ => e.into(),
        })?;
    // For devices that send only their own certificate.
    let stored = damaged(StoredIntermediate::new(terms.tenant.clone(), &minted.certificate))?;
    scope.tx.execute(
        "INSERT OR IGNORE INTO intermediates (fingerprint, tenant, certificate, created) VALUES (?, ?, ?, ?)",
        params![
            facts.fingerprint.as_bytes(),
            terms.tenant.as_str(),
            minted.certificate,
            scope.now.unix_ms()
        ],
    )?;
    scope.facts.push(Fact::Intermediate(std::sync::Arc::new(stored)));
    scope.facts.push(Fact::Station(
        terms.tenant.clone(),
        facts.subject_der,
        facts_of(terms.station.clone(), StationState::Granted),
    ));
    Ok(())
}
