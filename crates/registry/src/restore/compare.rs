//! What another registry says that this one does not know: `later` is attached beside `main`.

use countersign_identity::{Fingerprint, Timestamp};
use rusqlite::Connection;

use super::enrolled;
use super::{Newer, NewerEnd, NewerPolicies, NewerRevocation, NewerState};
use crate::error::RegistryError;

/// Of a row `authority, serial, ended, reason`: a certificate of which nothing else is known.
fn lost_entry(r: &rusqlite::Row<'_>) -> rusqlite::Result<NewerRevocation> {
    Ok(NewerRevocation {
        authority: r.get(0)?,
        serial: r.get(1)?,
        at: Timestamp::from_unix_ms(r.get(2)?),
        reason: r.get(3)?,
        state: "revoked".into(),
        fingerprint: None,
        device: None,
        known: false,
    })
}

/// `main` is what was restored, `later` the registry that went on.
pub(super) fn compare(db: &Connection) -> Result<Newer, RegistryError> {
    let mut newer = Newer::default();
    let mut statement = db.prepare(
        "SELECT l.authority, l.serial, l.ended, l.reason, l.state, l.fingerprint, l.tenant || '/' || l.device,
                m.fingerprint IS NOT NULL
         FROM later.credentials l LEFT JOIN main.credentials m ON m.fingerprint = l.fingerprint
         WHERE l.ended IS NOT NULL AND m.ended IS NULL AND l.state IN ('revoked', 'superseded', 'lapsed')
         ORDER BY l.ended",
    )?;
    let found = statement.query_map([], |r| {
        Ok(NewerRevocation {
            authority: r.get(0)?,
            serial: r.get(1)?,
            at: Timestamp::from_unix_ms(r.get(2)?),
            reason: r.get(3)?,
            state: r.get(4)?,
            fingerprint: Some(Fingerprint::from_bytes(r.get(5)?)),
            device: r.get(6)?,
            known: r.get(7)?,
        })
    })?;
    newer.revoked = found.collect::<Result<_, _>>()?;
    let mut statement = db.prepare(
        "SELECT l.authority, l.serial, l.ended, l.reason FROM later.lost_revocations l
         WHERE NOT EXISTS (SELECT 1 FROM main.lost_revocations m WHERE m.authority = l.authority AND m.serial = l.serial)",
    )?;
    let lost = statement.query_map([], lost_entry)?;
    for revoked in lost {
        newer.revoked.push(revoked?);
    }
    // What ended with its authority, and was issued after the backup.
    let mut statement = db.prepare(
        "SELECT l.authority, l.serial, l.ended, l.reason FROM later.credentials l
         WHERE l.ended IS NOT NULL AND l.state NOT IN ('revoked', 'superseded', 'lapsed')
         AND NOT EXISTS (SELECT 1 FROM main.credentials m WHERE m.fingerprint = l.fingerprint)",
    )?;
    let with_authority = statement.query_map([], lost_entry)?;
    for revoked in with_authority {
        newer.revoked.push(revoked?);
    }
    // A station that was granted after the backup is known by its certificate alone.
    let mut statement = db.prepare(
        "SELECT l.authority, l.serial, l.ended, l.reason FROM later.stations l
         WHERE l.state = 'revoked' AND NOT EXISTS (SELECT 1 FROM main.stations m WHERE m.id = l.id)",
    )?;
    let stations = statement.query_map([], lost_entry)?;
    for revoked in stations {
        newer.revoked.push(revoked?);
    }
    newer.ends = db
        .prepare(
            "SELECT 'station', l.tenant, l.id, l.ended, l.reason
             FROM later.stations l JOIN main.stations m ON m.id = l.id
             WHERE l.state = 'revoked' AND m.state <> 'revoked'
             UNION ALL SELECT 'claim', l.tenant, l.id, l.revoked, NULL
             FROM later.claims l JOIN main.claims m ON m.tenant = l.tenant AND m.id = l.id
             WHERE l.revoked IS NOT NULL AND m.revoked IS NULL
             UNION ALL SELECT 'batch', l.tenant, l.id, NULL, NULL
             FROM later.batches l JOIN main.batches m ON m.tenant = l.tenant AND m.id = l.id
             WHERE l.state = 'closed' AND m.state <> 'closed'
             ORDER BY 1, 2, 3",
        )?
        .query_map([], |r| {
            Ok(NewerEnd {
                kind: r.get(0)?,
                tenant: r.get(1)?,
                id: r.get(2)?,
                at: r.get::<_, Option<i64>>(3)?.map(Timestamp::from_unix_ms),
                reason: r.get(4)?,
            })
        })?
        .collect::<Result<_, _>>()?;
    let state = |r: &rusqlite::Row<'_>| {
        let time = |n| Ok::<_, rusqlite::Error>(r.get::<_, Option<i64>>(n)?.map(Timestamp::from_unix_ms));
        Ok(NewerState {
            tenant: r.get(0)?,
            id: r.get(1)?,
            was: r.get(2)?,
            is: r.get(3)?,
            before_quarantine: r.get(4)?,
            suspended_until: time(5)?,
            quarantined_until: time(6)?,
            ended: time(7)?,
        })
    };
    // An id that is decommissioned stays so, also if the backup never heard of it: it must not be born again. In the same
    // state the ends count too: by the backup's, a device would be let in again before its time.
    newer.devices = db
        .prepare(
            "SELECT l.tenant, l.id, m.state, l.state, l.before_quarantine, l.suspended_until, l.quarantined_until, NULL
             FROM later.devices l LEFT JOIN main.devices m ON m.tenant = l.tenant AND m.id = l.id
             WHERE l.state IN ('suspended', 'quarantined', 'decommissioned')
             AND m.state IS NOT 'decommissioned'
             AND (l.state IS NOT m.state OR l.before_quarantine IS NOT m.before_quarantine
                  OR l.suspended_until IS NOT m.suspended_until OR l.quarantined_until IS NOT m.quarantined_until)
             AND l.tenant IN (SELECT id FROM main.tenants) ORDER BY l.tenant, l.id",
        )?
        .query_map([], state)?
        .collect::<Result<_, _>>()?;
    newer.authorities = db
        .prepare(
            "SELECT l.tenant, l.id, m.state, l.state, NULL, NULL, NULL,
             (SELECT max(c.ended) FROM later.credentials c WHERE c.authority = l.id AND c.state NOT IN ('revoked', 'superseded', 'lapsed'))
             FROM later.authorities l JOIN main.authorities m ON m.id = l.id
             WHERE l.state IN ('retired', 'revoked') AND l.state <> m.state ORDER BY l.id",
        )?
        .query_map([], state)?
        .collect::<Result<_, _>>()?;
    newer.issued = db
        .prepare(
            "SELECT l.tenant || '/' || l.device || ' ' || l.serial FROM later.credentials l
             WHERE l.ended IS NULL
             AND NOT EXISTS (SELECT 1 FROM main.credentials m WHERE m.fingerprint = l.fingerprint) ORDER BY 1",
        )?
        .query_map([], |r| r.get(0))?
        .collect::<Result<_, _>>()?;
    newer.list_numbers = db
        .prepare("SELECT issuer, number FROM later.list_numbers")?
        .query_map([], |r| Ok((r.get(0)?, r.get::<_, i64>(1)?.cast_unsigned())))?
        .collect::<Result<_, _>>()?;
    newer.enrolled = enrolled::devices(db)?;
    newer.lane = enrolled::lane_uses(db)?;
    newer.claim_counts = enrolled::claim_counts(db)?;
    newer.policies = newer_policies(db)?;
    Ok(newer)
}

/// What decides in `later`, where it is not what decides in `main`.
fn newer_policies(db: &Connection) -> Result<Vec<NewerPolicies>, RegistryError> {
    let mut statement = db.prepare(
        "SELECT l.tenant, m.number, l.number, l.policies, l.spaces, l.at, l.actor, l.reason
         FROM later.policy_versions l
         JOIN later.tenants lt ON lt.id = l.tenant AND lt.policy_version = l.number
         JOIN main.tenants mt ON mt.id = l.tenant
         JOIN main.policy_versions m ON m.tenant = mt.id AND m.number = mt.policy_version
         WHERE l.policies <> m.policies OR l.spaces <> m.spaces ORDER BY l.tenant",
    )?;
    let found = statement.query_map([], |r| {
        let policies: String = r.get(3)?;
        Ok(NewerPolicies {
            tenant: r.get(0)?,
            was: r.get::<_, i64>(1)?.cast_unsigned(),
            is: r.get::<_, i64>(2)?.cast_unsigned(),
            sha256: Fingerprint::of(policies.as_bytes()),
            policies,
            spaces: r.get(4)?,
            at: Timestamp::from_unix_ms(r.get(5)?),
            actor: r.get(6)?,
            reason: r.get(7)?,
        })
    })?;
    Ok(found.collect::<Result<_, _>>()?)
}

/// TPMs that this platform no longer takes somebody's word for: whose maker is trusted no more, and those that no longer let
/// their device enrol, or not this one.
pub(super) fn ended_endorsements(db: &Connection) -> Result<Vec<NewerEnd>, RegistryError> {
    let mut statement = db.prepare(
        "SELECT 'endorsement-authority', m.tenant, m.id FROM main.endorsement_authorities m
         WHERE NOT EXISTS (SELECT 1 FROM later.endorsement_authorities l
                           WHERE l.tenant = m.tenant AND l.id = m.id AND l.certificate = m.certificate)
         UNION ALL SELECT 'endorsement-key', m.tenant, lower(hex(m.fingerprint)) FROM main.endorsement_keys m
         WHERE NOT EXISTS (SELECT 1 FROM later.endorsement_keys l WHERE l.tenant = m.tenant
                           AND l.fingerprint = m.fingerprint AND l.device = m.device
                           AND (l.source = m.source OR m.source = 'attested'))
         ORDER BY 1, 2, 3",
    )?;
    let ended = statement.query_map([], |r| {
        Ok(NewerEnd {
            kind: r.get(0)?,
            tenant: r.get(1)?,
            id: r.get(2)?,
            at: None,
            reason: None,
        })
    })?;
    Ok(ended.collect::<Result<_, _>>()?)
}

/// Services that may ask less than `main` says, or nothing.
pub(super) fn ended_services(db: &Connection) -> Result<Vec<NewerEnd>, RegistryError> {
    let mut statement = db.prepare(
        "SELECT 'service', '', m.id, l.revoked FROM main.services m LEFT JOIN later.services l ON l.id = m.id
         WHERE m.revoked IS NULL AND (l.id IS NULL OR l.revoked IS NOT NULL OR l.certificate <> m.certificate)
         UNION ALL SELECT DISTINCT 'service-permission', p.tenant, p.service, NULL
         FROM main.service_permissions p JOIN main.services m ON m.id = p.service
         JOIN later.services l ON l.id = m.id
         WHERE m.revoked IS NULL AND l.revoked IS NULL AND l.certificate = m.certificate
         AND NOT EXISTS (SELECT 1 FROM later.service_permissions q
                         WHERE q.service = p.service AND q.tenant = p.tenant AND q.permission = p.permission)
         ORDER BY 1, 3, 2",
    )?;
    let ended = statement.query_map([], |r| {
        Ok(NewerEnd {
            kind: r.get(0)?,
            tenant: r.get(1)?,
            id: r.get(2)?,
            at: r.get::<_, Option<i64>>(3)?.map(Timestamp::from_unix_ms),
            reason: None,
        })
    })?;
    Ok(ended.collect::<Result<_, _>>()?)
}
