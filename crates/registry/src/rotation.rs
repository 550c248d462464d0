//! The rotation guard: who depends on an authority, and who is left behind when it closes.

use countersign_identity::{AuthorityId, CertificateFacts, DeviceId, Fingerprint, Timestamp};
use countersign_policy::LifecycleState;
use rusqlite::{Connection, OptionalExtension, params};

use crate::authority::anchor_state;
use crate::change::damaged;
use crate::error::RegistryError;
use crate::store::Registry;
use crate::table::FactTable;

/// A device without a certificate in use from another authority that admits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftBehind {
    /// The device.
    pub device: DeviceId,
    /// Its state.
    pub state: LifecycleState,
    /// Its certificate of the authority that ends last.
    pub fingerprint: Fingerprint,
    /// When that one ends, or ended.
    pub not_after: Timestamp,
}

/// All of them, in order of their ids. Unlike those that the rotation guard counts, they include devices whose
/// certificate has expired: closing the authority takes nothing from them, they are out already.
const LEFT_BEHIND: &str = "SELECT d.id, d.state, c.fingerprint, max(c.not_after)
    FROM devices d JOIN credentials c ON c.tenant = d.tenant AND c.device = d.id
    WHERE d.state <> 'decommissioned' AND c.authority = ?1 AND c.state IN ('issued', 'active')
    AND NOT EXISTS (
        SELECT 1 FROM credentials o WHERE o.tenant = d.tenant AND o.device = d.id AND o.authority <> ?1
        AND o.state = 'active' AND o.not_after >= ?2 AND o.authority IN (SELECT value FROM json_each(?3))
        AND NOT (o.kind = 'factory' AND coalesce(o.profile, '') IN (SELECT value FROM json_each(?4)))
        AND NOT EXISTS (SELECT 1 FROM listed WHERE listed.fingerprint = o.fingerprint))
    GROUP BY d.tenant, d.id ORDER BY d.id";

/// Devices that only a certificate of this authority would let in: not decommissioned, and no certificate in use of another
/// authority that would let them in now: none that only enrols. One that was issued and never used does not count: the device may not have it. A
/// certificate whose authority is not known, for it has not been shown since, may be of this one.
const DEPENDENTS: &str = "FROM devices d WHERE d.state <> 'decommissioned' AND EXISTS (
        SELECT 1 FROM credentials c WHERE c.tenant = d.tenant AND c.device = d.id
        AND (c.authority = ?1 OR c.authority IS NULL AND c.kind <> 'pinned')
        AND c.state IN ('issued', 'active') AND c.not_after >= ?2)
    AND NOT EXISTS (
        SELECT 1 FROM credentials c WHERE c.tenant = d.tenant AND c.device = d.id AND c.authority <> ?1
        AND c.state = 'active' AND c.not_after >= ?2 AND c.authority IN (SELECT value FROM json_each(?3))
        AND NOT (c.kind = 'factory' AND coalesce(c.profile, '') IN (SELECT value FROM json_each(?4)))
        AND NOT EXISTS (SELECT 1 FROM listed WHERE listed.fingerprint = c.fingerprint))
    AND d.tenant = (SELECT tenant FROM authorities WHERE id = ?1)";

pub(crate) fn dependents(
    db: &Connection,
    table: &FactTable,
    id: &AuthorityId,
    now: Timestamp,
    limit: u32,
) -> Result<(u64, Vec<String>), RegistryError> {
    let others = other_ways_in(db, id, now)?;
    let enrol_only = table.enrol_only_profiles();
    let count: i64 = db
        .prepare_cached(&format!("SELECT count(*) {DEPENDENTS}"))?
        .query_row(params![id.as_str(), now.unix_ms(), others, enrol_only], |r| {
            r.get(0)
        })?;
    let ids = db
        .prepare_cached(&format!("SELECT d.id {DEPENDENTS} ORDER BY d.id LIMIT ?5"))?
        .query_map(
            params![id.as_str(), now.unix_ms(), others, enrol_only, limit],
            |r| r.get(0),
        )?
        .collect::<Result<Vec<String>, _>>()?;
    Ok((count.cast_unsigned(), ids))
}

/// The other authorities of its tenant's devices that let devices in now, as a JSON array: in force, within their own dates, and with a
/// current revocation list where there must be one.
fn other_ways_in(db: &Connection, id: &AuthorityId, now: Timestamp) -> Result<String, RegistryError> {
    let found = db
        .prepare_cached(
            "SELECT DISTINCT authority FROM credentials
             WHERE tenant = (SELECT tenant FROM authorities WHERE id = ?1)
             AND authority <> ?1 AND state = 'active' AND not_after >= ?2",
        )?
        .query_map(params![id.as_str(), now.unix_ms()], |r| r.get(0))?
        .collect::<Result<Vec<String>, _>>()?;
    let mut statement = db.prepare_cached("SELECT state, certificate FROM authorities WHERE id = ?")?;
    let mut open = Vec::new();
    for other in found {
        let row = statement
            .query_row([&other], |r| {
                Ok((r.get::<_, String>(0)?, r.get::<_, Vec<u8>>(1)?))
            })
            .optional()?;
        let Some((state, certificate)) = row else { continue };
        let own = damaged(CertificateFacts::parse(&certificate))?;
        let lists = crate::revocation_list::kept(db, &damaged(other.parse())?)?;
        if anchor_state(&state)?.admits()
            && own.is_valid_at(now)
            && lists.is_none_or(|lists| lists.is_current_for(&own, now))
        {
            open.push(other);
        }
    }
    Ok(serde_json::Value::from(open).to_string())
}

impl Registry {
    /// The devices that only a certificate of this authority would let in: how many, and the first of them.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn dependents(
        &self,
        id: &AuthorityId,
        now: Timestamp,
        limit: u32,
    ) -> Result<(u64, Vec<String>), RegistryError> {
        self.read(|db| dependents(db, self.facts(), id, now, limit))
    }

    /// The devices that have no way in but an authority's certificates, in force or expired.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn left_behind(
        &self,
        authority: &AuthorityId,
        now: Timestamp,
    ) -> Result<Vec<LeftBehind>, RegistryError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(LEFT_BEHIND)?;
            let others = other_ways_in(db, authority, now)?;
            let mut rows = statement.query(params![
                authority.as_str(),
                now.unix_ms(),
                others,
                self.facts().enrol_only_profiles()
            ])?;
            let mut found = Vec::new();
            while let Some(r) = rows.next()? {
                found.push(LeftBehind {
                    device: damaged(r.get::<_, String>(0)?.parse())?,
                    state: damaged(r.get::<_, String>(1)?.parse())?,
                    fingerprint: Fingerprint::from_bytes(r.get(2)?),
                    not_after: Timestamp::from_unix_ms(r.get(3)?),
                });
            }
            Ok(found)
        })
    }
}
