//! How much is kept of what, and what goes first. Rows of strangers have a budget of their own: whatever they do, no
//! row of a known device goes for it.

use countersign_identity::Timestamp;
use countersign_policy::ExchangeId;
use rusqlite::{Connection, Transaction, params};

use super::LedgerLimits;
use crate::error::RegistryError;

/// Rows of one budget are deleted in parts of so many.
const PART: u32 = 512;

/// What a row counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Class {
    /// No known device proved its key.
    Stranger = 0,
    /// Of a known device.
    Known = 1,
    /// Of a known device, and refused: goes after those that were not.
    KnownRefused = 2,
    /// The last exchange of a known device, or its last refusal: found when room was made, and left.
    Held = 3,
    /// Not an exchange: what a session did.
    Session = 4,
}

impl Class {
    pub(crate) const ALL: [Self; 5] = [
        Self::Stranger,
        Self::Known,
        Self::KnownRefused,
        Self::Held,
        Self::Session,
    ];

    /// The name in metrics.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Stranger => "stranger",
            Self::Known => "known",
            Self::KnownRefused => "known-refused",
            Self::Held => "held",
            Self::Session => "session",
        }
    }
}

/// What there is of one class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Budget {
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    /// The newest exchange id that had to go.
    pub(crate) evicted: i64,
}

/// What a record of this length is counted with: its pages, and its part of the indexes.
pub(crate) fn cost(record: usize) -> u64 {
    (record + record / 3 + 512) as u64
}

/// What there is of each class. In the database as of the last commit.
#[derive(Debug, Clone, Default)]
pub(crate) struct Budgets([Budget; 5]);

impl Budgets {
    pub(crate) fn load(db: &Connection) -> Result<Self, RegistryError> {
        let mut budgets = Self::default();
        let mut statement = db.prepare_cached("SELECT class, rows, bytes, evicted FROM budgets")?;
        let mut rows = statement.query([])?;
        while let Some(r) = rows.next()? {
            if let Some(budget) = budgets.0.get_mut(usize::from(r.get::<_, u8>(0)?)) {
                *budget = Budget {
                    rows: r.get::<_, i64>(1)?.cast_unsigned(),
                    bytes: r.get::<_, i64>(2)?.cast_unsigned(),
                    evicted: r.get(3)?,
                };
            }
        }
        Ok(budgets)
    }

    pub(crate) fn save(&self, tx: &Transaction<'_>) -> Result<(), RegistryError> {
        let mut statement =
            tx.prepare_cached("UPDATE budgets SET rows = ?2, bytes = ?3, evicted = ?4 WHERE class = ?1")?;
        for class in Class::ALL {
            let budget = self.of(class);
            statement.execute(params![
                class as u8,
                budget.rows.cast_signed(),
                budget.bytes.cast_signed(),
                budget.evicted
            ])?;
        }
        Ok(())
    }

    pub(crate) fn of(&self, class: Class) -> Budget {
        self.0[class as usize]
    }

    pub(crate) fn add(&mut self, class: Class, bytes: u64) {
        let budget = &mut self.0[class as usize];
        budget.rows += 1;
        budget.bytes += bytes;
    }

    pub(crate) fn remove(&mut self, class: Class, rows: u64, bytes: u64) {
        let budget = &mut self.0[class as usize];
        budget.rows = budget.rows.saturating_sub(rows);
        budget.bytes = budget.bytes.saturating_sub(bytes);
    }

    fn evicted(&mut self, class: Class, id: i64) {
        let budget = &mut self.0[class as usize];
        budget.evicted = budget.evicted.max(id);
    }

    /// Makes room where a budget is overdrawn. Returns how many rows went, by class.
    pub(crate) fn enforce(
        &mut self,
        tx: &Transaction<'_>,
        limits: &LedgerLimits,
    ) -> Result<[u64; 5], RegistryError> {
        let mut gone = [0; 5];
        let strangers = (limits.unproven_rows_max, limits.unproven_bytes_max);
        self.make_room(tx, &[Class::Stranger], strangers, &mut gone)?;
        let known = (limits.rows_max, limits.bytes_max);
        self.make_room(tx, &[Class::Known, Class::KnownRefused], known, &mut gone)?;
        self.make_room_for_sessions(tx, limits, &mut gone)?;
        Ok(gone)
    }

    fn sum(&self, classes: &[Class]) -> (u64, u64) {
        classes
            .iter()
            .map(|c| self.of(*c))
            .fold((0, 0), |(rows, bytes), b| (rows + b.rows, bytes + b.bytes))
    }

    /// Deletes the oldest, of the first class before the second. Some more than needed, so that it is not done for
    /// every row.
    fn make_room(
        &mut self,
        tx: &Transaction<'_>,
        classes: &[Class],
        (rows_max, bytes_max): (u64, u64),
        gone: &mut [u64; 5],
    ) -> Result<(), RegistryError> {
        let over = |(rows, bytes): (u64, u64), part: u64| {
            rows > rows_max - rows_max / 50 * part || bytes > bytes_max - bytes_max / 50 * part
        };
        if !over(self.sum(classes), 0) {
            return Ok(());
        }
        let mut oldest = tx.prepare_cached(
            "SELECT id, bytes, EXISTS (SELECT 1 FROM lasts WHERE tenant = exchanges.tenant
             AND device = coalesce(exchanges.owner, exchanges.device)
             AND (last = exchanges.id OR refused = exchanges.id))
             FROM exchanges WHERE class = ? ORDER BY id LIMIT ?",
        )?;
        let mut delete = tx.prepare_cached("DELETE FROM exchanges WHERE id = ?")?;
        let mut hold = tx.prepare_cached("UPDATE exchanges SET class = 3 WHERE id = ?")?;
        for class in classes {
            while over(self.sum(classes), 1) {
                let part: Vec<(i64, i64, bool)> = oldest
                    .query_map(params![*class as u8, PART], |r| {
                        Ok((r.get(0)?, r.get(1)?, r.get(2)?))
                    })?
                    .collect::<Result<_, _>>()?;
                if part.is_empty() {
                    break;
                }
                for (id, bytes, last) in part {
                    let bytes = bytes.cast_unsigned();
                    self.remove(*class, 1, bytes);
                    if last {
                        hold.execute([id])?;
                        self.add(Class::Held, bytes);
                    } else {
                        delete.execute([id])?;
                        self.evicted(*class, id);
                        gone[*class as usize] += 1;
                    }
                    if !over(self.sum(classes), 1) {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    fn make_room_for_sessions(
        &mut self,
        tx: &Transaction<'_>,
        limits: &LedgerLimits,
        gone: &mut [u64; 5],
    ) -> Result<(), RegistryError> {
        let (rows_max, bytes_max) = (limits.sessions_rows_max, limits.sessions_bytes_max);
        let over = |b: Budget, part: u64| {
            b.rows > rows_max - rows_max / 50 * part || b.bytes > bytes_max - bytes_max / 50 * part
        };
        if !over(self.of(Class::Session), 0) {
            return Ok(());
        }
        let mut oldest =
            tx.prepare_cached("SELECT id, exchange, bytes FROM sessions ORDER BY exchange LIMIT ?")?;
        let mut delete = tx.prepare_cached("DELETE FROM sessions WHERE id = ?")?;
        while over(self.of(Class::Session), 1) {
            let part: Vec<(i64, i64, i64)> = oldest
                .query_map([PART], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?
                .collect::<Result<_, _>>()?;
            if part.is_empty() {
                break;
            }
            for (id, exchange, bytes) in part {
                delete.execute([id])?;
                self.remove(Class::Session, 1, bytes.cast_unsigned());
                self.evicted(Class::Session, exchange);
                gone[Class::Session as usize] += 1;
                if !over(self.of(Class::Session), 1) {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Deletes what is older than it may be, whoever it is of. Ages are counted back from the newest exchange or
    /// session: what is not written to does not age.
    pub(crate) fn expire(
        &mut self,
        tx: &Transaction<'_>,
        limits: &LedgerLimits,
    ) -> Result<(), RegistryError> {
        let newest: Option<i64> = tx.query_row(
            "SELECT max(coalesce((SELECT max(id) FROM exchanges), 0), coalesce((SELECT max(exchange) FROM sessions), 0))",
            [],
            |r| r.get(0),
        )?;
        // An id starts with its time, so an age is an id.
        let newest = i64::try_from(newest.unwrap_or(0).cast_unsigned() >> 22).unwrap_or(0);
        let oldest = |age| Timestamp::from_unix_ms(newest).minus(age);
        let floor = |age| ExchangeId::new(oldest(age), 0).as_u64().cast_signed();
        let before = floor(limits.age_max);
        let went: Vec<(u8, i64, i64)> = tx
            .prepare_cached("SELECT class, count(*), sum(bytes) FROM exchanges WHERE id < ? GROUP BY class")?
            .query_map([before], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?
            .collect::<Result<_, _>>()?;
        if !went.is_empty() {
            tx.execute("DELETE FROM exchanges WHERE id < ?", [before])?;
            tx.execute("DELETE FROM lasts WHERE last < ?", [before])?;
            tx.execute("UPDATE lasts SET refused = NULL WHERE refused < ?", [before])?;
        }
        for (class, rows, bytes) in went {
            if let Some(class) = Class::ALL.get(usize::from(class)) {
                self.remove(*class, rows.cast_unsigned(), bytes.cast_unsigned());
                self.evicted(*class, before - 1);
            }
        }
        tx.execute(
            "DELETE FROM gaps WHERE last < ?",
            [oldest(limits.age_max.max(limits.sessions_age_max)).unix_ms()],
        )?;
        let until = oldest(limits.sessions_age_max).unix_ms();
        let started = floor(limits.sessions_age_max);
        let (rows, bytes, exchange): (i64, i64, Option<i64>) = tx.query_row(
            "SELECT count(*), coalesce(sum(bytes), 0), max(exchange) FROM sessions WHERE exchange < ? AND until < ?",
            params![started, until],
            |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)),
        )?;
        if let Some(exchange) = exchange {
            tx.execute(
                "DELETE FROM sessions WHERE exchange < ? AND until < ?",
                params![started, until],
            )?;
            self.remove(Class::Session, rows.cast_unsigned(), bytes.cast_unsigned());
            self.evicted(Class::Session, exchange);
        }
        Ok(())
    }
}
