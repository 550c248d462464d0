//! Who had enrolled since the backup: what lets a device in once must not do so again for somebody else. Open claims are
//! revoked by every restore; the registry that went on tells which devices, lanes and claims were used.

use countersign_identity::{Fingerprint, Timestamp};
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Newer;
use crate::change::Actor;
use crate::error::RegistryError;
use crate::writer::Scope;

/// A device that was enrolled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewerEnrolment {
    /// The tenant.
    pub tenant: String,
    /// Its id.
    pub device: String,
    /// SHA-256 of the SubjectPublicKeyInfo that its certificate is for.
    pub public_key: Fingerprint,
}

/// A renewal lane that was used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewerLaneUse {
    /// The expired certificate that was shown.
    pub certificate: Fingerprint,
    /// SHA-256 of the SubjectPublicKeyInfo that the next one is for.
    pub public_key: Fingerprint,
    /// When.
    pub at: Timestamp,
}

/// How many devices a claim has enrolled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewerClaimCount {
    /// The tenant.
    pub tenant: String,
    /// The claim.
    pub id: String,
    /// That many.
    pub enrolled: u64,
}

/// Devices with a certificate that `main` does not know and that a claim would ask about (`Scope::enter_claim`); and what
/// `later` knows so of an earlier restore.
pub(super) fn devices(db: &Connection) -> Result<Vec<NewerEnrolment>, RegistryError> {
    let mut statement = db.prepare(
        "SELECT l.tenant, l.device, l.public_key FROM later.credentials l
         WHERE l.state IN ('issued', 'active', 'superseded')
         AND NOT EXISTS (SELECT 1 FROM main.credentials m WHERE m.fingerprint = l.fingerprint)
         UNION SELECT l.tenant, l.device, l.public_key FROM later.lost_enrolments l
         WHERE NOT EXISTS (SELECT 1 FROM later.credentials c
                           WHERE c.tenant = l.tenant AND c.device = l.device AND c.created >= l.recorded)
         ORDER BY 1, 2, 3",
    )?;
    let found = statement.query_map([], |r| {
        Ok(NewerEnrolment {
            tenant: r.get(0)?,
            device: r.get(1)?,
            public_key: Fingerprint::from_bytes(r.get(2)?),
        })
    })?;
    Ok(found.collect::<Result<_, _>>()?)
}

pub(super) fn lane_uses(db: &Connection) -> Result<Vec<NewerLaneUse>, RegistryError> {
    let mut statement = db.prepare(
        "SELECT l.credential, l.key, l.at FROM later.renewal_lane l
         JOIN main.credentials c ON c.fingerprint = l.credential
         WHERE NOT EXISTS (SELECT 1 FROM main.renewal_lane m WHERE m.credential = l.credential) ORDER BY l.at",
    )?;
    let found = statement.query_map([], |r| {
        Ok(NewerLaneUse {
            certificate: Fingerprint::from_bytes(r.get(0)?),
            public_key: Fingerprint::from_bytes(r.get(1)?),
            at: Timestamp::from_unix_ms(r.get(2)?),
        })
    })?;
    Ok(found.collect::<Result<_, _>>()?)
}

pub(super) fn claim_counts(db: &Connection) -> Result<Vec<NewerClaimCount>, RegistryError> {
    let mut statement = db.prepare(
        "SELECT l.tenant, l.id, l.enrolled FROM later.claims l
         JOIN main.claims m ON m.tenant = l.tenant AND m.id = l.id
         WHERE l.enrolled > m.enrolled ORDER BY 1, 2",
    )?;
    let found = statement.query_map([], |r| {
        Ok(NewerClaimCount {
            tenant: r.get(0)?,
            id: r.get(1)?,
            enrolled: r.get::<_, i64>(2)?.cast_unsigned(),
        })
    })?;
    Ok(found.collect::<Result<_, _>>()?)
}

impl Scope<'_> {
    /// Revokes every claim that would still enrol somebody. Which.
    pub(super) fn revoke_open_claims(&mut self, actor: &Actor) -> Result<Vec<String>, RegistryError> {
        let open: Vec<(String, String)> = self
            .tx
            .prepare(
                "SELECT tenant, id FROM claims WHERE revoked IS NULL AND expires >= ? ORDER BY tenant, id",
            )?
            .query_map([self.now.unix_ms()], |r| Ok((r.get(0)?, r.get(1)?)))?
            .collect::<Result<_, _>>()?;
        let mut names = Vec::with_capacity(open.len());
        for (tenant, id) in open {
            self.tx.execute(
                "UPDATE claims SET revoked = ?3, reason = 'restore' WHERE tenant = ?1 AND id = ?2",
                params![tenant, id, self.now.unix_ms()],
            )?;
            let detail = json!({ "source": "restore" });
            self.audit(actor, "claim.revoke", &tenant, &id, &detail)?;
            names.push(format!("{tenant}/{id}"));
        }
        Ok(names)
    }

    /// Makes it so here too.
    pub(super) fn apply_enrolled(&mut self, newer: &Newer) -> Result<(), RegistryError> {
        for enrolled in &newer.enrolled {
            self.tx
                .prepare_cached(
                    "INSERT OR IGNORE INTO lost_enrolments (tenant, device, public_key, recorded) VALUES (?, ?, ?, ?)",
                )?
                .execute(params![
                    enrolled.tenant,
                    enrolled.device,
                    enrolled.public_key.as_bytes(),
                    self.now.unix_ms()
                ])?;
        }
        for used in &newer.lane {
            self.tx
                .prepare_cached("INSERT OR IGNORE INTO renewal_lane (credential, key, at) VALUES (?, ?, ?)")?
                .execute(params![
                    used.certificate.as_bytes(),
                    used.public_key.as_bytes(),
                    used.at.unix_ms()
                ])?;
        }
        for claim in &newer.claim_counts {
            self.tx
                .prepare_cached(
                    "UPDATE claims SET enrolled = max(enrolled, ?3) WHERE tenant = ?1 AND id = ?2",
                )?
                .execute(params![claim.tenant, claim.id, claim.enrolled.cast_signed()])?;
        }
        Ok(())
    }
}
