//! Who is left behind by a rotation: devices that have certificates of one authority only.

use countersign_identity::{AuthorityId, DeviceId, Fingerprint, Timestamp};
use countersign_policy::LifecycleState;
use rusqlite::params;

use crate::authority::other_ways_in;
use crate::change::damaged;
use crate::error::RegistryError;
use crate::store::Registry;

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

impl Registry {
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
