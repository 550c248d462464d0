//! What expires when: devices by the authority, batch and kind of the certificate that they live on.

use countersign_identity::{TenantId, Timestamp};
use rusqlite::params;
use serde::{Deserialize, Serialize};

use crate::error::RegistryError;
use crate::migrate;
use crate::store::Registry;

const DAY_MS: i64 = 86_400_000;
/// 99991231235959Z: no well-defined end (RFC 5280 section 4.1.2.5).
const NO_END_MS: i64 = 253_402_300_799_000;

/// How many expire when. Each is in one of the six; the bounds are 7, 30 and 90 days from now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Windows {
    /// Have expired.
    pub overdue: u64,
    /// Within 7 days.
    pub days_7: u64,
    /// Within 30 days, and not within 7.
    pub days_30: u64,
    /// Within 90 days, and not within 30.
    pub days_90: u64,
    /// Later.
    pub later: u64,
    /// Have no end.
    pub never: u64,
}

impl Windows {
    /// The names in metrics, with their numbers.
    pub fn named(&self) -> [(&'static str, u64); 6] {
        [
            ("overdue", self.overdue),
            ("7d", self.days_7),
            ("30d", self.days_30),
            ("90d", self.days_90),
            ("later", self.later),
            ("never", self.never),
        ]
    }

    /// Counts one more.
    pub fn count(&mut self, now: Timestamp, not_after: Timestamp) {
        let left = not_after.unix_ms().saturating_sub(now.unix_ms());
        let window = if not_after.unix_ms() >= NO_END_MS {
            &mut self.never
        } else if left < 0 {
            &mut self.overdue
        } else if left < 7 * DAY_MS {
            &mut self.days_7
        } else if left < 30 * DAY_MS {
            &mut self.days_30
        } else if left < 90 * DAY_MS {
            &mut self.days_90
        } else {
            &mut self.later
        };
        *window += 1;
    }

    /// Adds up.
    pub fn add(&mut self, other: &Self) {
        self.overdue += other.overdue;
        self.days_7 += other.days_7;
        self.days_30 += other.days_30;
        self.days_90 += other.days_90;
        self.later += other.later;
        self.never += other.never;
    }
}

/// The devices of one authority, batch and kind of certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForecastGroup {
    /// The tenant.
    pub tenant: String,
    /// The authority that the certificates chain to; `None` if it is not known yet.
    pub authority: Option<String>,
    /// The batch they were issued in.
    pub batch: Option<String>,
    /// `operational`, `factory` or `pinned`.
    pub kind: String,
    /// How many devices: those that are not decommissioned, each by one certificate: the one in use that lasts longest,
    /// or one that was issued and not used yet.
    pub devices: u64,
    /// When they expire.
    pub windows: Windows,
    /// Of those that have not expired: past two thirds of their life, so that they should have been renewed.
    pub unrenewed: u64,
}

impl Registry {
    /// How many devices' certificates expire when, of one tenant if one is named. Reads all of them: on a connection of
    /// its own, so that nobody waits for it.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn forecast(
        &self,
        now: Timestamp,
        tenant: Option<&TenantId>,
    ) -> Result<Vec<ForecastGroup>, RegistryError> {
        let db = migrate::open_reader(&self.path().join("registry.db"))?;
        // The table in its own order: by an index each row would be looked up apart, four times as slow.
        // With one max() the other columns are of the row that has it (SQLite, "bare columns"). One in use goes before
        // one that its device may not have.
        let mut statement = db.prepare(
            "WITH last AS (
                SELECT tenant, device, kind, authority, batch, not_before, not_after,
                       max((state = 'active') * 1000000000000000 + not_after)
                FROM credentials NOT INDEXED WHERE state IN ('issued', 'active') AND (?1 IS NULL OR tenant = ?1)
                GROUP BY tenant, device, kind)
             SELECT l.tenant, l.authority, l.batch, l.kind, count(*),
                    sum(l.not_after < ?2),
                    sum(l.not_after >= ?2 AND l.not_after < ?2 + 7 * ?3),
                    sum(l.not_after >= ?2 + 7 * ?3 AND l.not_after < ?2 + 30 * ?3),
                    sum(l.not_after >= ?2 + 30 * ?3 AND l.not_after < ?2 + 90 * ?3),
                    sum(l.not_after >= ?2 + 90 * ?3 AND l.not_after < ?4),
                    sum(l.not_after >= ?4),
                    sum(l.not_after >= ?2 AND l.not_after < ?4
                        AND l.not_before + (l.not_after - l.not_before) / 3 * 2 <= ?2)
             FROM last l JOIN devices d ON d.tenant = l.tenant AND d.id = l.device
             WHERE d.state <> 'decommissioned'
             GROUP BY l.tenant, l.authority, l.batch, l.kind ORDER BY l.tenant, l.authority, l.batch, l.kind",
        )?;
        let values = params![tenant.map(TenantId::as_str), now.unix_ms(), DAY_MS, NO_END_MS];
        let groups = statement.query_map(values, |r| {
            let n = |column: usize| -> rusqlite::Result<u64> { Ok(r.get::<_, i64>(column)?.cast_unsigned()) };
            Ok(ForecastGroup {
                tenant: r.get(0)?,
                authority: r.get(1)?,
                batch: r.get(2)?,
                kind: r.get(3)?,
                devices: n(4)?,
                windows: Windows {
                    overdue: n(5)?,
                    days_7: n(6)?,
                    days_30: n(7)?,
                    days_90: n(8)?,
                    later: n(9)?,
                    never: n(10)?,
                },
                unrenewed: n(11)?,
            })
        })?;
        Ok(groups.collect::<Result<_, _>>()?)
    }
}
