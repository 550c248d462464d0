//! What becomes of a registry that was restored: a new epoch, and what had ended since the backup was made.

mod compare;
mod enrolled;

pub use self::enrolled::{NewerClaimCount, NewerEnrolment, NewerLaneUse};

use std::path::Path;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use countersign_factory::{RevocationReason, Revoked};
use countersign_identity::{AnchorState, AuthorityId, Fingerprint, Timestamp};
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use serde_json::json;

use self::compare::{compare, ended_endorsements, ended_services};
use crate::backup::RegistryFacts;
use crate::change::{Actor, newest_revision};
use crate::error::RegistryError;
use crate::migrate::{self, REGISTRY};
use crate::store::Registry;
use crate::writer::{Committed, Scope};

/// A revision of a new epoch has the time of its restore in front of this many bits: 4,096 revisions in a millisecond
/// are more than any registry makes, so no other restore of the same backup, then or later, gets to the same ones.
const EPOCH_BITS: u32 = 12;

/// Whether a clock that is behind the backup is taken for right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackwardClock {
    /// No: it is refused.
    Refuse,
    /// Yes: the earlier time was the wrong one.
    Accept,
}

/// A certificate that had ended, and the backup does not know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewerRevocation {
    /// The authority that issued it.
    pub authority: Option<String>,
    /// Its serial number, hex.
    pub serial: String,
    /// Since when.
    pub at: Timestamp,
    /// CRLReason, RFC 5280 section 5.3.1.
    pub reason: Option<u8>,
    /// `revoked`, `superseded` or `lapsed`.
    pub state: String,
    /// Its fingerprint, if the backup has the certificate, or another source told it.
    pub fingerprint: Option<Fingerprint>,
    /// Its device, as `tenant/device`.
    pub device: Option<String>,
    /// Whether the backup has the certificate at all; otherwise it was issued later.
    pub known: bool,
}

/// A device or an authority that stands otherwise than the backup says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewerState {
    /// The tenant.
    pub tenant: String,
    /// Its id.
    pub id: String,
    /// Its state in the backup; `None` if it is not in it.
    pub was: Option<String>,
    /// Its state now.
    pub is: String,
    /// What it was before a quarantine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before_quarantine: Option<String>,
    /// Of a device: when its suspension ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended_until: Option<Timestamp>,
    /// Of a device: when its quarantine ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantined_until: Option<Timestamp>,
    /// Of a revoked authority: since when the certificates it issued are on the lists, if it issued any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
}

/// What may let devices in, and had ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewerEnd {
    /// `station`, `claim`, `batch`, `service`, `service-permission` (a service may ask about one tenant less),
    /// `endorsement-authority` or `endorsement-key`.
    pub kind: String,
    /// The tenant; empty for a service.
    pub tenant: String,
    /// Its id; of a permission, that of the service; of an endorsement key, its fingerprint.
    pub id: String,
    /// Since when, if that is kept.
    pub at: Option<Timestamp>,
    /// Of a station: CRLReason, RFC 5280 section 5.3.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<u8>,
}

/// Policies or topic spaces that were in force, and are not those of the backup. They are told and not put into force:
/// who may do what is decided by whoever restores.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewerPolicies {
    /// The tenant.
    pub tenant: String,
    /// The version that the backup puts into force.
    pub was: u64,
    /// The version that was in force.
    pub is: u64,
    /// SHA-256 of its text.
    pub sha256: Fingerprint,
    /// Since when.
    pub at: Timestamp,
    /// By whom.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// Its text, Cedar.
    pub policies: String,
    /// Its topic spaces, a JSON list of name and filter.
    pub spaces: String,
}

/// A new epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEpoch {
    /// Its first revision.
    pub first_revision: u64,
    /// One-time secrets that are good no longer: they may have been used since.
    pub secrets_void: u64,
    /// Claims that were open and are revoked: whom they enrolled since is not known. Each as `tenant/claim`.
    pub claims_revoked: Vec<String>,
}

/// What happened after the backup was made, as far as it can be known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Newer {
    /// Certificates that had ended.
    pub revoked: Vec<NewerRevocation>,
    /// Devices that were suspended, quarantined or decommissioned.
    pub devices: Vec<NewerState>,
    /// Authorities that were retired or revoked.
    pub authorities: Vec<NewerState>,
    /// Stations, claims and services that were revoked, batches that were closed.
    pub ends: Vec<NewerEnd>,
    /// Certificates that were issued and are in force: the restored registry does not know them, so their devices are
    /// not admitted with them. Each as `tenant/device serial`.
    pub issued: Vec<String>,
    /// The newest list number of each issuer.
    pub list_numbers: Vec<(String, u64)>,
    /// Devices that were enrolled: no claim enrols them for another key.
    #[serde(default)]
    pub enrolled: Vec<NewerEnrolment>,
    /// Renewal lanes that were used: they are not to be had again.
    #[serde(default)]
    pub lane: Vec<NewerLaneUse>,
    /// Claims that have enrolled more.
    #[serde(default)]
    pub claim_counts: Vec<NewerClaimCount>,
    /// Policies and topic spaces that were in force.
    #[serde(default)]
    pub policies: Vec<NewerPolicies>,
}

impl Newer {
    /// Adds what another source knows; what is known already stays as it is.
    pub fn merge(&mut self, other: Self) {
        for revoked in other.revoked {
            let same = |r: &NewerRevocation| r.serial == revoked.serial && r.authority == revoked.authority;
            if !self.revoked.iter().any(same) {
                self.revoked.push(revoked);
            }
        }
        for end in other.ends {
            if !self
                .ends
                .iter()
                .any(|e| e.kind == end.kind && e.tenant == end.tenant && e.id == end.id)
            {
                self.ends.push(end);
            }
        }
        self.devices.extend(other.devices);
        self.authorities.extend(other.authorities);
        self.issued.extend(other.issued);
        self.enrolled.extend(other.enrolled);
        self.lane.extend(other.lane);
        self.claim_counts.extend(other.claim_counts);
        self.list_numbers.extend(other.list_numbers);
        self.policies.extend(other.policies);
    }
}

impl Registry {
    /// Begins a new epoch on a registry that was restored: its revisions start where none of any earlier epoch can have
    /// been, so that no generation of a time that the backup does not know equals one of now. One-time secrets and attestations
    /// that were not used yet are void, and open claims are revoked: they may have been used since, and whoever has one must not
    /// become a device that it enrolled.
    ///
    /// # Errors
    /// [`RegistryError::ClockBehind`] if the clock is behind the backup: the new revisions could not be told from older
    /// ones.
    pub fn begin_epoch(
        &self,
        actor: Actor,
        backup: RegistryFacts,
        made: Timestamp,
        clock: BackwardClock,
    ) -> Result<Committed<NewEpoch>, RegistryError> {
        let committed = self.write(move |scope| {
            let mark = made.max(backup.high_water);
            match clock {
                BackwardClock::Refuse if scope.now < mark => {
                    return Err(RegistryError::ClockBehind { now: scope.now, mark });
                }
                BackwardClock::Refuse => scope.keep_time()?,
                BackwardClock::Accept => {
                    let now = scope.now.unix_ms();
                    scope.tx.execute("UPDATE clock SET high_water = ?", [now])?;
                }
            }
            let newest = newest_revision(scope.tx)?;
            let by_time = scope.now.unix_ms().cast_unsigned() << EPOCH_BITS;
            let first = if scope.now >= mark && by_time > newest {
                by_time
            } else {
                // A clock that is behind may say the same again: not where another such restore goes.
                let mut random = [0; 5];
                SystemRandom::new()
                    .fill(&mut random)
                    .map_err(|_| RegistryError::Refused("the system's random source failed".into()))?;
                let random = random.iter().fold(0, |n, b| n << 8 | u64::from(*b));
                newest.max(by_time) + 1 + random
            };
            scope.tx.execute(
                "INSERT INTO revisions (revision, at, kind, tenant, subject) VALUES (?, ?, 'epoch', '', ?)",
                params![
                    first.cast_signed(),
                    scope.now.unix_ms(),
                    (backup.epoch + 1).to_string()
                ],
            )?;
            scope.tx.execute(
                "INSERT INTO epochs (epoch, started, first_revision, restored_from) VALUES (?, ?, ?, ?)",
                params![
                    backup.epoch + 1,
                    scope.now.unix_ms(),
                    first.cast_signed(),
                    json!({ "made": made, "registry": backup }).to_string()
                ],
            )?;
            let secrets_void = scope
                .tx
                .execute("DELETE FROM enrolment_secrets WHERE used_key IS NULL", [])?;
            // So are attestations that nobody cited yet.
            scope.tx.execute("DELETE FROM attestations WHERE consumed IS NULL", [])?;
            let claims_revoked = scope.revoke_open_claims(&actor)?;
            let detail = json!({
                "secrets_void": secrets_void, "claims_revoked": claims_revoked.len(), "epoch": backup.epoch + 1, "first_revision": first, "backup_made": made.to_string(),
                "backup_revision": backup.revision, "backup_audit_head": backup.audit_head,
            });
            scope.audit(&actor, "registry.restore", "", "", &detail)?;
            let new = NewEpoch {
                first_revision: first,
                secrets_void: secrets_void as u64,
                claims_revoked,
            };
            Ok((new, scope.now))
        })?;
        let (new, now) = committed.value;
        if clock == BackwardClock::Accept {
            self.time.lower_mark(now);
        }
        Ok(Committed {
            value: new,
            revision: committed.revision,
            changes: committed.changes,
        })
    }

    /// What a revocation list of an authority of this registry says that this registry does not know.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn newer_in_list(
        &self,
        authority: &AuthorityId,
        number: u64,
        entries: &[Revoked],
    ) -> Result<Newer, RegistryError> {
        self.read(|db| {
            let mut newer = Newer {
                list_numbers: vec![(authority.to_string(), number)],
                ..Newer::default()
            };
            let mut known = db.prepare(
                "SELECT fingerprint, tenant || '/' || device, ended FROM credentials WHERE serial = ? AND authority = ?",
            )?;
            let mut stations = db.prepare(
                "SELECT tenant, id, ended IS NOT NULL FROM stations WHERE serial = ? AND authority = ?",
            )?;
            let mut lost = db
                .prepare("SELECT EXISTS (SELECT 1 FROM lost_revocations WHERE serial = ? AND authority = ?)")?;
            for entry in entries {
                let station: Option<(String, String, bool)> = stations
                    .query_row([&entry.serial, authority.as_str()], |r| {
                        Ok((r.get(0)?, r.get(1)?, r.get(2)?))
                    })
                    .optional()?;
                if let Some((tenant, id, ended)) = station {
                    if !ended {
                        newer.ends.push(NewerEnd {
                            kind: "station".into(),
                            tenant,
                            id,
                            at: Some(entry.at),
                            reason: Some(entry.reason.code()),
                        });
                    }
                    continue;
                }
                type Found = ([u8; 32], String, Option<i64>);
                let found: Option<Found> = known
                    .query_row([&entry.serial, authority.as_str()], |r| {
                        Ok((r.get(0)?, r.get(1)?, r.get(2)?))
                    })
                    .optional()?;
                let ended = match &found {
                    Some((_, _, ended)) => ended.is_some(),
                    None => lost.query_row([&entry.serial, authority.as_str()], |r| r.get(0))?,
                };
                if ended {
                    continue;
                }
                newer.revoked.push(NewerRevocation {
                    authority: Some(authority.to_string()),
                    serial: entry.serial.clone(),
                    at: entry.at,
                    reason: Some(entry.reason.code()),
                    state: "revoked".into(),
                    fingerprint: found.as_ref().map(|(f, _, _)| Fingerprint::from_bytes(*f)),
                    known: found.is_some(),
                    device: found.map(|(_, device, _)| device),
                });
            }
            Ok(newer)
        })
    }

    /// What another registry, a later one of the same platform, says that this one does not know. `other` is a copy: it
    /// is brought to the newest schema.
    ///
    /// # Errors
    /// [`RegistryError`] if it is none of ours.
    pub fn newer_in_registry(&self, other: &Path) -> Result<Newer, RegistryError> {
        // Asked before it is brought to the newest schema: a registry of before there were services, or TPMs, has none of
        // ours.
        let (knows_services, knows_endorsements) = (
            has_table(other, "services")?,
            has_table(other, "endorsement_keys")?,
        );
        drop(migrate::open_writer(other, REGISTRY)?);
        // A connection of its own: it needs the other database beside this one.
        let db = Connection::open(self.path().join("registry.db"))?;
        let other = other.to_string_lossy();
        db.execute("ATTACH ? AS later", [&*other])?;
        let mut newer = compare(&db)?;
        if knows_services {
            newer.ends.extend(ended_services(&db)?);
        }
        if knows_endorsements {
            newer.ends.extend(ended_endorsements(&db)?);
        }
        Ok(newer)
    }

    /// Makes it so here too: what had ended has ended, whoever was kept out is kept out.
    ///
    /// # Errors
    /// [`RegistryError`]; then nothing is applied.
    pub fn apply_newer(&self, actor: Actor, newer: Newer) -> Result<Committed<()>, RegistryError> {
        self.write(move |scope| {
            for revoked in &newer.revoked {
                scope.apply_revocation(&actor, revoked)?;
            }
            for device in &newer.devices {
                scope.apply_device(&actor, device)?;
            }
            for authority in &newer.authorities {
                scope.apply_authority(&actor, authority)?;
            }
            for end in &newer.ends {
                scope.apply_end(&actor, end)?;
            }
            scope.apply_enrolled(&newer)?;
            for (issuer, number) in &newer.list_numbers {
                scope.raise_list_number(issuer, *number)?;
            }
            Ok(())
        })
    }
}

impl Scope<'_> {
    fn apply_revocation(&mut self, actor: &Actor, revoked: &NewerRevocation) -> Result<(), RegistryError> {
        let tenant = revoked
            .device
            .as_deref()
            .and_then(|d| d.split_once('/'))
            .unwrap_or_default();
        match (&revoked.fingerprint, &revoked.authority) {
            (Some(fingerprint), _) if revoked.known => {
                let generation = self.revise("credential", tenant.0, &fingerprint.to_string())?;
                self.tx.execute(
                    "UPDATE credentials SET state = ?2, revision = ?3, ended = ?4, ended_revision = ?3, reason = ?5, supersede_at = NULL
                     WHERE fingerprint = ?1",
                    params![
                        fingerprint.as_bytes(),
                        revoked.state,
                        generation.0.cast_signed(),
                        revoked.at.unix_ms(),
                        revoked.reason
                    ],
                )?;
            }
            (_, Some(authority)) => {
                self.tx.execute(
                    "INSERT OR IGNORE INTO lost_revocations (authority, serial, ended, reason) VALUES (?, ?, ?, ?)",
                    params![authority, revoked.serial, revoked.at.unix_ms(), revoked.reason],
                )?;
            }
            // Of an authority that nobody knows: there is no list that it could be on.
            _ => return Ok(()),
        }
        let detail = json!({
            "serial": revoked.serial, "authority": revoked.authority, "fingerprint": revoked.fingerprint,
            "code": revoked.reason, "at": revoked.at.to_string(), "source": "restore",
        });
        let action = match revoked.state.as_str() {
            "revoked" => "credential.revoke".to_owned(),
            state => format!("credential.{state}"),
        };
        self.audit(actor, &action, tenant.0, tenant.1, &detail)
    }

    fn apply_authority(&mut self, actor: &Actor, authority: &NewerState) -> Result<(), RegistryError> {
        let generation = self.revise("authority", &authority.tenant, &authority.id)?;
        self.tx.execute(
            "UPDATE authorities SET state = ?2, revision = ?3 WHERE id = ?1",
            params![authority.id, authority.is, generation.0.cast_signed()],
        )?;
        if authority.is == AnchorState::Revoked.name() {
            // As when it was revoked: what it issued is on the lists, and a CA that runs apart is told.
            self.tx.execute(
                "UPDATE credentials SET ended = ?2, reason = ?3, ended_revision = ?4
                 WHERE authority = ?1 AND ended IS NULL",
                params![
                    authority.id,
                    authority.ended.unwrap_or(self.now).unix_ms(),
                    RevocationReason::CaCompromise.code(),
                    generation.0.cast_signed()
                ],
            )?;
        }
        let detail = json!({ "from": authority.was, "to": authority.is, "source": "restore" });
        let action = format!("authority.{}", authority.is);
        self.audit(actor, &action, &authority.tenant, &authority.id, &detail)
    }

    fn apply_end(&mut self, actor: &Actor, end: &NewerEnd) -> Result<(), RegistryError> {
        let at = end.at.unwrap_or(self.now).unix_ms();
        let (action, key) = match end.kind.as_str() {
            "station" => {
                let generation = self.revise("station", &end.tenant, &end.id)?;
                self.tx.execute(
                    "UPDATE stations SET state = 'revoked', ended = ?2, reason = ?3, revision = ?4 WHERE id = ?1",
                    params![end.id, at, end.reason, generation.0.cast_signed()],
                )?;
                ("station.revoke", &end.id)
            }
            "claim" => {
                self.tx.execute(
                    "UPDATE claims SET revoked = ?3, reason = 'restore' WHERE tenant = ?1 AND id = ?2",
                    params![end.tenant, end.id, at],
                )?;
                ("claim.revoke", &end.id)
            }
            "service" => {
                self.tx.execute(
                    "UPDATE services SET revoked = ?2, reason = 'restore' WHERE id = ?1",
                    params![end.id, at],
                )?;
                ("service.revoke", &end.id)
            }
            "service-permission" => {
                self.tx.execute(
                    "DELETE FROM service_permissions WHERE service = ?1 AND tenant = ?2",
                    params![end.id, end.tenant],
                )?;
                ("service.narrow", &end.id)
            }
            "endorsement-authority" => {
                self.tx.execute(
                    "DELETE FROM endorsement_authorities WHERE tenant = ?1 AND id = ?2",
                    params![end.tenant, end.id],
                )?;
                ("endorsement-authority.remove", &end.id)
            }
            "endorsement-key" => {
                self.tx.execute(
                    "DELETE FROM endorsement_keys WHERE tenant = ?1 AND lower(hex(fingerprint)) = ?2",
                    params![end.tenant, end.id],
                )?;
                ("endorsement-key.remove", &end.id)
            }
            _ => {
                let generation = self.revise("batch", &end.tenant, &end.id)?;
                self.tx.execute(
                    "UPDATE batches SET state = 'closed', revision = ?3 WHERE tenant = ?1 AND id = ?2",
                    params![end.tenant, end.id, generation.0.cast_signed()],
                )?;
                ("batch.close", &end.id)
            }
        };
        let detail = json!({ "at": end.at.map(|t| t.to_string()), "code": end.reason, "source": "restore" });
        self.audit(actor, action, &end.tenant, key, &detail)
    }

    fn apply_device(&mut self, actor: &Actor, device: &NewerState) -> Result<(), RegistryError> {
        let generation = self.revise("device", &device.tenant, &device.id)?;
        self.tx.execute(
            "INSERT INTO devices (tenant, id, groups, state, before_quarantine, revision, created,
             suspended_until, quarantined_until)
             VALUES (?1, ?2, '[]', ?3, ?4, ?5, ?6, ?7, ?8)
             ON CONFLICT (tenant, id) DO UPDATE SET state = ?3, before_quarantine = ?4, revision = ?5,
             suspended_until = ?7, quarantined_until = ?8",
            params![
                device.tenant,
                device.id,
                device.is,
                device.before_quarantine,
                generation.0.cast_signed(),
                self.now.unix_ms(),
                device.suspended_until.map(Timestamp::unix_ms),
                device.quarantined_until.map(Timestamp::unix_ms)
            ],
        )?;
        let text = |end: Option<Timestamp>| end.map(|t| t.to_string());
        let detail = json!({
            "from": device.was, "to": device.is, "returns_to": device.before_quarantine,
            "suspended_until": text(device.suspended_until), "quarantined_until": text(device.quarantined_until),
            "source": "restore",
        });
        self.audit(actor, "device.restore", &device.tenant, &device.id, &detail)
    }
}

/// Whether a database has a table.
fn has_table(database: &Path, name: &str) -> Result<bool, RegistryError> {
    Connection::open(database)?
        .query_row(
            "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = ?)",
            [name],
            |r| r.get(0),
        )
        .map_err(|e| match e.sqlite_error_code() {
            Some(rusqlite::ErrorCode::NotADatabase) => RegistryError::Foreign(database.to_owned()),
            _ => e.into(),
        })
}
