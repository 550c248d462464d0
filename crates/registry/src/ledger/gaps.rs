//! What the ledger does not have and knows it has not: refusals of known devices that were only counted, and records that were lost.
//! Kept beside the rows, so that a restart takes none of it away.

use std::collections::{HashMap, HashSet, hash_map};

use countersign_identity::{DeviceId, TenantId, Timestamp};
use rusqlite::{Connection, Transaction, params};

use super::COUNTED_MAX;
use crate::change::damaged;
use crate::error::RegistryError;

/// Records that are not in the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// How many.
    pub count: u64,
    /// When the first of them began.
    pub first: Timestamp,
    /// When the last of them began.
    pub last: Timestamp,
}

impl Missing {
    fn add(of: Option<Self>, count: u64, at: Timestamp) -> Self {
        match of {
            None => Self {
                count,
                first: at,
                last: at,
            },
            Some(of) => Self {
                count: of.count + count,
                first: of.first.min(at),
                last: of.last.max(at),
            },
        }
    }

    /// Whether any of them may lie between two moments.
    pub fn reaches_into(&self, from: Timestamp, to: Timestamp) -> bool {
        self.first <= to && self.last >= from
    }
}

/// Whose records.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Whose {
    /// Refusals of a known device that were only counted.
    Device(TenantId, DeviceId),
    /// The same of all devices that came after as many as are told apart.
    Others,
    /// Records that were lost: of whom is not known.
    Lost,
}

/// How [`Whose`] is written: no tenant and no device is empty.
const OTHERS: (&str, &str) = ("", "");
const LOST: (&str, &str) = ("", "lost");

impl Whose {
    fn columns(&self) -> (&str, &str) {
        match self {
            Self::Device(tenant, device) => (tenant.as_str(), device.as_str()),
            Self::Others => OTHERS,
            Self::Lost => LOST,
        }
    }

    fn read((tenant, device): (&str, &str)) -> Result<Self, RegistryError> {
        Ok(match (tenant, device) {
            OTHERS => Self::Others,
            LOST => Self::Lost,
            _ => Self::Device(damaged(tenant.parse())?, damaged(device.parse())?),
        })
    }
}

/// All of them; what has changed since it was last written is remembered.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    of: HashMap<Whose, Missing>,
    changed: HashSet<Whose>,
}

impl Gaps {
    pub(super) fn load(db: &Connection) -> Result<Self, RegistryError> {
        let mut statement = db.prepare("SELECT tenant, device, count, first, last FROM gaps")?;
        let mut rows = statement.query([])?;
        let mut gaps = Self::default();
        while let Some(r) = rows.next()? {
            let (tenant, device): (String, String) = (r.get(0)?, r.get(1)?);
            let missing = Missing {
                count: r.get::<_, i64>(2)?.cast_unsigned(),
                first: Timestamp::from_unix_ms(r.get(3)?),
                last: Timestamp::from_unix_ms(r.get(4)?),
            };
            gaps.of.insert(Whose::read((&tenant, &device))?, missing);
        }
        Ok(gaps)
    }

    /// A refusal of a known device was only counted. Whether nothing else is waiting to be written.
    pub(super) fn counted(&mut self, (tenant, device): (TenantId, DeviceId), at: Timestamp) -> bool {
        let whose = Whose::Device(tenant, device);
        match self.of.len() >= COUNTED_MAX && !self.of.contains_key(&whose) {
            true => self.add(Whose::Others, 1, at),
            false => self.add(whose, 1, at),
        }
    }

    /// So many records were lost.
    pub(super) fn lost(&mut self, count: u64, at: Timestamp) -> bool {
        self.add(Whose::Lost, count, at)
    }

    fn add(&mut self, whose: Whose, count: u64, at: Timestamp) -> bool {
        match self.of.entry(whose.clone()) {
            hash_map::Entry::Occupied(mut entry) => {
                let more = Missing::add(Some(*entry.get()), count, at);
                entry.insert(more);
            }
            hash_map::Entry::Vacant(entry) => {
                entry.insert(Missing::add(None, count, at));
            }
        }
        let is_first = self.changed.is_empty();
        self.changed.insert(whose);
        is_first
    }

    /// The refusals of a device that were only counted; of one that came after as many as are told apart: of all of those.
    pub(super) fn of(&self, tenant: &TenantId, device: &DeviceId) -> Option<Missing> {
        let whose = Whose::Device(tenant.clone(), device.clone());
        self.of.get(&whose).or(self.of.get(&Whose::Others)).copied()
    }

    pub(super) fn of_nobody(&self) -> Option<Missing> {
        self.of.get(&Whose::Lost).copied()
    }

    /// What has changed since this was last asked. Nobody who adds to it waits for a disk.
    pub(super) fn unwritten(&mut self) -> Unwritten {
        let changed = std::mem::take(&mut self.changed);
        let with = |whose: Whose| self.of.get(&whose).map(|missing| (whose.clone(), *missing));
        Unwritten(changed.into_iter().filter_map(with).collect())
    }

    /// It could not be written.
    pub(super) fn still_unwritten(&mut self, unwritten: Unwritten) {
        self.changed
            .extend(unwritten.0.into_iter().map(|(whose, _)| whose));
    }
}

/// To be written.
pub(super) struct Unwritten(Vec<(Whose, Missing)>);

pub(super) fn save(tx: &Transaction<'_>, unwritten: &Unwritten) -> Result<(), RegistryError> {
    let mut upsert = tx.prepare_cached(
        "INSERT INTO gaps (tenant, device, count, first, last) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT DO UPDATE SET count = ?3, first = ?4, last = ?5",
    )?;
    for (whose, missing) in &unwritten.0 {
        let (tenant, device) = whose.columns();
        upsert.execute(params![
            tenant,
            device,
            missing.count.cast_signed(),
            missing.first.unix_ms(),
            missing.last.unix_ms()
        ])?;
    }
    Ok(())
}
