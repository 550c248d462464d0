//! The ledger's one writer: takes what waits in one transaction, and keeps the budgets.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;

use countersign_identity::{DeviceId, TenantId};
use countersign_policy::{ExchangeId, Outcome, Possession, SessionRecord, StageRecord};
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::budget::{Budgets, Class, cost};
use super::cause::Causes;
use super::gaps::{self, Gaps};
use super::{Counters, Entry, GATHER, Kept, LedgerLimits, QUEUE_MAX, address, row};
use crate::change::damaged;
use crate::error::RegistryError;

/// Every so many batches what is too old goes.
const EXPIRE_EVERY: u32 = 64;

pub(super) struct Loop {
    db: Connection,
    limits: LedgerLimits,
    counters: Arc<Counters>,
    budgets: Budgets,
    causes: Causes,
    gaps: Arc<Mutex<Gaps>>,
    failing: bool,
}

impl Loop {
    pub(super) fn new(
        db: Connection,
        limits: LedgerLimits,
        counters: Arc<Counters>,
        gaps: Arc<Mutex<Gaps>>,
    ) -> Result<Self, RegistryError> {
        let budgets = Budgets::load(&db)?;
        let causes = Causes::load(&db)?;
        counters.keep(&budgets);
        Ok(Self {
            db,
            limits,
            counters,
            budgets,
            causes,
            gaps,
            failing: false,
        })
    }

    pub(super) fn run(mut self, entries: &Receiver<Entry>) {
        let mut batches = 0u32;
        let mut batch = Vec::new();
        while let Ok(first) = entries.recv() {
            // Not woken by each record of a storm: it sleeps a moment, then takes all there is. A flush wakes it.
            if !matches!(first, Entry::Flush(_)) {
                std::thread::park_timeout(GATHER);
            }
            let mut flushes = Vec::new();
            for entry in std::iter::once(first).chain(entries.try_iter().take(QUEUE_MAX)) {
                match entry {
                    Entry::Flush(done) => flushes.push(done),
                    other => {
                        if other.is_strangers() {
                            self.counters.strangers_waiting.fetch_sub(1, Ordering::Relaxed);
                        }
                        batch.push(other);
                    }
                }
            }
            let records = batch.iter().filter_map(Entry::at);
            let (size, latest) = records.fold((0, None), |(n, latest), at| (n + 1, latest.max(Some(at))));
            batches = batches.wrapping_add(1);
            match self.write(&mut batch, batches.is_multiple_of(EXPIRE_EVERY)) {
                Ok(exchanges) => {
                    self.counters.written.fetch_add(exchanges, Ordering::Relaxed);
                    self.failing = false;
                }
                Err(e) => {
                    self.counters.dropped.fetch_add(size, Ordering::Relaxed);
                    if let Some(latest) = latest {
                        self.gaps.lock().lost(size, latest);
                    }
                    if !std::mem::replace(&mut self.failing, true) {
                        tracing::error!(error = %e, "the ledger cannot be written; exchanges are lost and counted");
                    }
                    // They were changed for what was not committed.
                    self.reload();
                }
            }
            batch.clear();
            for done in flushes {
                let _ = done.send(());
            }
        }
        // Readers may outlive this connection, and cannot write: the log would stay until the next start.
        if let Err(e) = self
            .db
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        {
            tracing::warn!(error = %e, "the ledger's log stays until the next start");
        }
    }

    fn reload(&mut self) {
        if let (Ok(budgets), Ok(mut causes)) = (Budgets::load(&self.db), Causes::load(&self.db)) {
            causes.unnamed = self.causes.unnamed;
            (self.budgets, self.causes) = (budgets, causes);
        }
    }

    fn write(&mut self, batch: &mut Vec<Entry>, expire: bool) -> Result<u64, RegistryError> {
        if batch.is_empty() {
            return Ok(0);
        }
        // A first publish usually follows its exchange within the batch: then it is one write. So does a session's end
        // follow its summary.
        let mut late = Vec::new();
        let mut exchanges: Vec<Box<Kept>> = Vec::new();
        let mut positions: HashMap<ExchangeId, usize> = HashMap::new();
        let mut sessions: HashMap<(ExchangeId, String, String), Box<SessionRecord>> = HashMap::new();
        for entry in batch.drain(..) {
            match entry {
                Entry::Exchange(kept) => {
                    positions.insert(kept.record.id, exchanges.len());
                    exchanges.push(kept);
                }
                Entry::FirstData(id, stage) => match positions.get(&id).and_then(|n| exchanges.get_mut(*n)) {
                    Some(kept) => kept.record.stages.push(stage),
                    None => late.push((id, stage)),
                },
                Entry::Session(record) => {
                    let key = (record.exchange, record.kind.clone(), record.name.clone());
                    sessions.insert(key, record);
                }
                Entry::Gap | Entry::Flush(_) => {}
            }
        }
        let tx = self.db.transaction()?;
        insert(&tx, &mut self.budgets, &exchanges)?;
        add_stages(&tx, late)?;
        keep_lasts(&tx, &mut self.budgets, &exchanges)?;
        self.causes.add(&tx, &exchanges, &self.limits)?;
        for session in sessions.into_values() {
            keep_session(&tx, &mut self.budgets, &session)?;
        }
        let gone = self.budgets.enforce(&tx, &self.limits)?;
        if expire {
            self.budgets.expire(&tx, &self.limits)?;
            self.causes.prune(&tx, &self.limits)?;
        }
        self.budgets.save(&tx)?;
        let gaps = self.gaps.lock().unwritten();
        if let Err(e) = gaps::save(&tx, &gaps).and_then(|()| Ok(tx.commit()?)) {
            self.gaps.lock().still_unwritten(gaps);
            return Err(e);
        }
        self.counters.keep(&self.budgets);
        self.counters.evict(&gone);
        self.counters
            .unnamed
            .store(self.causes.unnamed, Ordering::Relaxed);
        Ok(exchanges.len() as u64)
    }
}

/// The class of a new row.
fn class(kept: &Kept) -> Class {
    match (&kept.owner, kept.record.outcome) {
        (None, _) => Class::Stranger,
        (Some(_), Outcome::Refused | Outcome::RefusedByDevice) => Class::KnownRefused,
        (Some(_), Outcome::Admitted | Outcome::Abandoned | Outcome::EnrolmentOnly) => Class::Known,
    }
}

fn insert(tx: &Transaction<'_>, budgets: &mut Budgets, exchanges: &[Box<Kept>]) -> Result<(), RegistryError> {
    let mut insert = tx.prepare_cached(
        "INSERT OR IGNORE INTO exchanges
         (id, outcome, code, tenant, device, fingerprint, serial, record, class, bytes, owner, source)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?;
    for kept in exchanges {
        let r = &kept.record;
        // An unproven exchange says nothing about the device whose certificate was shown.
        let device = r.device.as_ref().filter(|_| r.possession == Possession::Proven);
        let (owner_tenant, owner) = kept.owner.as_ref().map(|(t, d)| (t, d)).unzip();
        let tenant = r.tenant.as_ref().or(owner_tenant);
        let shown = r.certificate.as_ref();
        let json = damaged(row::exchange(r))?;
        let bytes = cost(json.len());
        let written = insert.execute(params![
            r.id.as_u64().cast_signed(),
            r.outcome.name(),
            r.denial.as_ref().map(|d| d.code.as_str()),
            tenant.map(TenantId::as_str),
            device.map(DeviceId::as_str),
            shown.map(|s| *s.fingerprint.as_bytes()),
            shown.map(|s| s.serial.as_str()),
            json,
            class(kept) as u8,
            bytes.cast_signed(),
            owner.filter(|o| Some(*o) != device).map(DeviceId::as_str),
            address(r.source.ip()),
        ])?;
        if written > 0 {
            budgets.add(class(kept), bytes);
        }
    }
    Ok(())
}

fn add_stages(tx: &Transaction<'_>, late: Vec<(ExchangeId, StageRecord)>) -> Result<(), RegistryError> {
    let mut update = tx.prepare_cached(
        "UPDATE exchanges SET record = json_insert(record, '$.stages[#]', json(?)) WHERE id = ?",
    )?;
    for (id, stage) in late {
        update.execute(params![damaged(row::stage(&stage))?, id.as_u64().cast_signed()])?;
    }
    Ok(())
}

/// Remembers which rows are the last of their device; those that are it no longer may go like any other.
fn keep_lasts(
    tx: &Transaction<'_>,
    budgets: &mut Budgets,
    exchanges: &[Box<Kept>],
) -> Result<(), RegistryError> {
    let mut newest: HashMap<&(TenantId, DeviceId), (i64, Option<i64>)> = HashMap::new();
    for kept in exchanges {
        let Some(owner) = &kept.owner else { continue };
        let id = kept.record.id.as_u64().cast_signed();
        let (last, refused) = newest.entry(owner).or_insert((id, None));
        *last = (*last).max(id);
        if class(kept) == Class::KnownRefused {
            *refused = (*refused).max(Some(id));
        }
    }
    let mut before = tx.prepare_cached("SELECT last, refused FROM lasts WHERE tenant = ? AND device = ?")?;
    let mut upsert = tx.prepare_cached(
        "INSERT INTO lasts (tenant, device, last, refused) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT DO UPDATE SET last = max(last, ?3), refused = coalesce(?4, refused)",
    )?;
    let mut release = tx.prepare_cached(
        "UPDATE exchanges SET class = CASE WHEN outcome IN ('refused', 'refused-by-device') THEN 2 ELSE 1 END
         WHERE id = ? AND class = 3 RETURNING class, bytes",
    )?;
    for ((tenant, device), (last, refused)) in newest {
        let names = [tenant.as_str(), device.as_str()];
        if budgets.of(Class::Held).rows > 0 {
            let old: Option<(i64, Option<i64>)> = before
                .query_row(names, |r| Ok((r.get(0)?, r.get(1)?)))
                .optional()?;
            let (old_last, old_refused) = old.unzip();
            let old_refused = old_refused.flatten();
            let still = if refused.is_some() { None } else { old_refused };
            let ended = [old_last, old_refused];
            for id in ended.into_iter().flatten().filter(|id| Some(*id) != still) {
                let released: Option<(u8, i64)> = release
                    .query_row([id], |r| Ok((r.get(0)?, r.get(1)?)))
                    .optional()?;
                if let Some((class, bytes)) = released {
                    let bytes = bytes.cast_unsigned();
                    budgets.remove(Class::Held, 1, bytes);
                    let class = if class == 2 {
                        Class::KnownRefused
                    } else {
                        Class::Known
                    };
                    budgets.add(class, bytes);
                }
            }
        }
        upsert.execute(params![names[0], names[1], last, refused])?;
    }
    Ok(())
}

/// A later record of a session replaces an earlier one; after its end nothing does.
fn keep_session(
    tx: &Transaction<'_>,
    budgets: &mut Budgets,
    session: &SessionRecord,
) -> Result<(), RegistryError> {
    let exchange = session.exchange.as_u64().cast_signed();
    let json = damaged(serde_json::to_string(session))?;
    let bytes = cost(json.len());
    let until = session.ended.unwrap_or(session.seen).unix_ms();
    let ended = session.ended.map(|t| t.unix_ms());
    // Most are over before they are written for the first time.
    let is_new = tx
        .prepare_cached(
            "INSERT INTO sessions (exchange, kind, name, tenant, device, started, until, ended, bytes, record)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        )?
        .execute(params![
            exchange,
            session.kind,
            session.name,
            session.tenant.as_str(),
            session.device.as_str(),
            session.started.unix_ms(),
            until,
            ended,
            bytes.cast_signed(),
            json
        ])?
        > 0;
    if !is_new {
        let (before, is_over): (i64, bool) = tx
            .prepare_cached(
                "SELECT bytes, ended IS NOT NULL FROM sessions WHERE exchange = ? AND kind = ? AND name = ?",
            )?
            .query_row(params![exchange, session.kind, session.name], |r| {
                Ok((r.get(0)?, r.get(1)?))
            })?;
        if is_over {
            return Ok(());
        }
        budgets.remove(Class::Session, 1, before.cast_unsigned());
        tx.prepare_cached(
            "UPDATE sessions SET until = ?, ended = ?, bytes = ?, record = ?
             WHERE exchange = ? AND kind = ? AND name = ?",
        )?
        .execute(params![
            until,
            ended,
            bytes.cast_signed(),
            json,
            exchange,
            session.kind,
            session.name
        ])?;
    }
    budgets.add(Class::Session, bytes);
    Ok(())
}
