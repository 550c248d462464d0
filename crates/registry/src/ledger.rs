//! The ledger of exchanges: a bounded queue, a writer that keeps up in batches, and limits from the first day.
//!
//! A record is never waited for. What does not fit is counted: a ledger that could stop the door would be a way to
//! close it.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use countersign_identity::{DeviceId, Fingerprint, TenantId, Timestamp};
use countersign_policy::{ExchangeId, ExchangeRecord, Outcome, Possession, StageRecord};
use parking_lot::Mutex;
use rusqlite::{Connection, params};

use crate::change::damaged;
use crate::error::RegistryError;

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerLimits {
    /// The most rows. Default 200,000; the oldest go first, admitted ones before refused ones.
    pub rows_max: u64,
    /// The greatest age. Default 30 days.
    pub age_max: Duration,
    /// Refused exchanges kept per source address and minute; more are only counted. Default 600.
    pub refused_per_source_minute_max: u32,
}

impl Default for LedgerLimits {
    fn default() -> Self {
        Self {
            rows_max: 200_000,
            age_max: Duration::from_secs(30 * 24 * 3600),
            refused_per_source_minute_max: 600,
        }
    }
}

/// Records waiting to be written. More are dropped, and counted.
const QUEUE_MAX: usize = 8_192;
/// How long the writer gathers before it writes.
const GATHER: Duration = Duration::from_millis(100);
/// Every so many batches the limits are applied.
const PRUNE_EVERY: u32 = 64;

enum Entry {
    Exchange(Box<ExchangeRecord>),
    FirstData(ExchangeId, StageRecord),
    /// Answers when all before it is written.
    Flush(SyncSender<()>),
}

#[derive(Debug, Default)]
struct Counters {
    written: AtomicU64,
    dropped: AtomicU64,
    limited: AtomicU64,
}

#[derive(Default)]
struct Sources {
    minute: i64,
    counts: HashMap<IpAddr, u32>,
}

/// The ledger.
pub struct Ledger {
    queue: Option<SyncSender<Entry>>,
    thread: Option<JoinHandle<()>>,
    reader: Mutex<Connection>,
    counters: Arc<Counters>,
    sources: Mutex<Sources>,
    limits: LedgerLimits,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger")
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

impl Ledger {
    pub(crate) fn start(db: Connection, reader: Connection, limits: LedgerLimits) -> std::io::Result<Self> {
        let (queue, entries) = sync_channel(QUEUE_MAX);
        let counters: Arc<Counters> = Arc::default();
        let counted = counters.clone();
        let thread = std::thread::Builder::new()
            .name("ledger-writer".into())
            .spawn(move || {
                Loop {
                    db,
                    limits,
                    counters: counted,
                    failing: false,
                }
                .run(&entries)
            })?;
        Ok(Self {
            queue: Some(queue),
            thread: Some(thread),
            reader: Mutex::new(reader),
            counters,
            sources: Mutex::default(),
            limits,
        })
    }

    /// Keeps a record, later.
    pub fn record(&self, exchange: ExchangeRecord) {
        if exchange.outcome != Outcome::Admitted && self.is_over_limit(&exchange) {
            self.counters.limited.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.put(Entry::Exchange(Box::new(exchange)));
    }

    /// Adds the stage `first-data` to a record.
    pub fn first_data(&self, exchange: ExchangeId, stage: StageRecord) {
        self.put(Entry::FirstData(exchange, stage));
    }

    fn put(&self, entry: Entry) {
        let Some(queue) = &self.queue else { return };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = queue.try_send(entry) {
            self.counters.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// One source must not push everyone else's history out.
    fn is_over_limit(&self, exchange: &ExchangeRecord) -> bool {
        let minute = exchange.started.unix_s() / 60;
        let mut sources = self.sources.lock();
        if sources.minute != minute {
            *sources = Sources {
                minute,
                counts: HashMap::new(),
            };
        }
        let count = sources.counts.entry(exchange.source.ip()).or_insert(0);
        *count += 1;
        *count > self.limits.refused_per_source_minute_max
    }

    /// Waits until everything recorded before is written. For shutdown, tests and `explain`.
    pub fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if let Some(queue) = &self.queue
            && queue.send(Entry::Flush(done)).is_ok()
        {
            if let Some(thread) = &self.thread {
                thread.thread().unpark();
            }
            let _ = wait.recv_timeout(Duration::from_secs(10));
        }
    }

    /// Records that are in the ledger since start.
    pub fn written(&self) -> u64 {
        self.counters.written.load(Ordering::Relaxed)
    }

    /// Records that were lost because the writer did not keep up, or could not write.
    pub fn dropped(&self) -> u64 {
        self.counters.dropped.load(Ordering::Relaxed)
    }

    /// Records that were left out because their source had too many.
    pub fn limited(&self) -> u64 {
        self.counters.limited.load(Ordering::Relaxed)
    }

    /// One exchange.
    ///
    /// # Errors
    /// [`RegistryError`] if the ledger cannot be read; so for all queries.
    pub fn exchange(&self, id: ExchangeId) -> Result<Option<ExchangeRecord>, RegistryError> {
        Ok(self
            .select("id = ?1", params![id.as_u64().cast_signed()], 1)?
            .pop())
    }

    /// The newest exchanges of a device, newest first: those in which its key was proven.
    ///
    /// # Errors
    /// As for [`Ledger::exchange`].
    pub fn of_device(
        &self,
        tenant: Option<&TenantId>,
        device: &DeviceId,
        limit: u32,
    ) -> Result<Vec<ExchangeRecord>, RegistryError> {
        self.select(
            "device = ?1 AND (?2 IS NULL OR tenant = ?2)",
            params![device.as_str(), tenant.map(TenantId::as_str)],
            limit,
        )
    }

    /// The newest refused exchanges in which a certificate was shown, newest first.
    ///
    /// # Errors
    /// As for [`Ledger::exchange`].
    pub fn of_fingerprint(
        &self,
        fingerprint: &Fingerprint,
        limit: u32,
    ) -> Result<Vec<ExchangeRecord>, RegistryError> {
        self.select(
            "outcome <> 'admitted' AND fingerprint = ?1",
            params![fingerprint.as_bytes()],
            limit,
        )
    }

    /// The newest refused exchanges in which a certificate of this serial number was shown, newest first.
    ///
    /// # Errors
    /// As for [`Ledger::exchange`].
    pub fn of_serial(&self, serial: &str, limit: u32) -> Result<Vec<ExchangeRecord>, RegistryError> {
        let serial = serial.replace(':', "").to_ascii_lowercase();
        self.select(
            "outcome <> 'admitted' AND serial = ?1",
            params![serial.trim_start_matches('0')],
            limit,
        )
    }

    /// What devices held against our certificate, by code, in all that is kept.
    ///
    /// # Errors
    /// As for [`Ledger::exchange`].
    pub fn refused_by_devices(&self) -> Result<BTreeMap<String, u64>, RegistryError> {
        let reader = self.reader.lock();
        let mut statement = reader.prepare_cached(
            "SELECT code, count(*) FROM exchanges WHERE outcome = 'refused-by-device' GROUP BY code",
        )?;
        let rows = statement.query_map([], |r| Ok((r.get(0)?, r.get::<_, i64>(1)?.cast_unsigned())))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The newest exchanges, newest first; only refused ones if asked.
    ///
    /// # Errors
    /// As for [`Ledger::exchange`].
    pub fn newest(&self, refused_only: bool, limit: u32) -> Result<Vec<ExchangeRecord>, RegistryError> {
        let condition = if refused_only {
            "outcome IN ('refused', 'refused-by-device')"
        } else {
            "TRUE"
        };
        self.select(condition, params![], limit)
    }

    /// The last exchange in which a device proved its key; what was refused within its sessions is left out.
    ///
    /// # Errors
    /// As for [`Ledger::exchange`].
    pub fn last_handshake(
        &self,
        tenant: &TenantId,
        device: &DeviceId,
    ) -> Result<Option<ExchangeRecord>, RegistryError> {
        let condition = "device = ?1 AND tenant = ?2 AND fingerprint IS NOT NULL";
        let values = params![device.as_str(), tenant.as_str()];
        Ok(self.select(condition, values, 1)?.pop())
    }

    /// Exchanges of a tenant's devices that proved their key, newest first: of `since` or later, and before `before`. What
    /// was refused within their sessions is left out.
    ///
    /// # Errors
    /// As for [`Ledger::exchange`].
    pub fn proven(
        &self,
        tenant: &TenantId,
        since: Timestamp,
        before: Option<ExchangeId>,
        limit: u32,
    ) -> Result<Vec<ExchangeRecord>, RegistryError> {
        let since = ExchangeId::new(since, 0).as_u64().cast_signed();
        let before = before.map_or(i64::MAX, |id| id.as_u64().cast_signed());
        self.select(
            "id >= ?1 AND id < ?2 AND tenant = ?3 AND device IS NOT NULL AND fingerprint IS NOT NULL",
            params![since, before, tenant.as_str()],
            limit,
        )
    }

    /// The last exchange of each of a tenant's devices in which it proved its key. On a connection of its own: it may
    /// read much.
    ///
    /// # Errors
    /// As for [`Ledger::exchange`].
    pub fn last_of_each(
        &self,
        tenant: &TenantId,
        mut take: impl FnMut(ExchangeRecord),
    ) -> Result<(), RegistryError> {
        let path = self.reader.lock().path().map(std::path::PathBuf::from);
        let path = path.ok_or_else(|| RegistryError::Database("the ledger has no file".into()))?;
        let db = crate::migrate::open_reader(&path)?;
        let mut statement = db.prepare(
            "SELECT record FROM exchanges WHERE id IN
             (SELECT max(id) FROM exchanges WHERE device IS NOT NULL AND tenant = ? AND fingerprint IS NOT NULL
              GROUP BY device)",
        )?;
        let mut rows = statement.query([tenant.as_str()])?;
        while let Some(r) = rows.next()? {
            take(damaged(serde_json::from_str(&r.get::<_, String>(0)?))?);
        }
        Ok(())
    }

    fn select(
        &self,
        condition: &str,
        values: &[&dyn rusqlite::ToSql],
        limit: u32,
    ) -> Result<Vec<ExchangeRecord>, RegistryError> {
        let db = self.reader.lock();
        let sql = format!("SELECT record FROM exchanges WHERE {condition} ORDER BY id DESC LIMIT {limit}");
        let mut statement = db.prepare_cached(&sql)?;
        let mut rows = statement.query(values)?;
        let mut found = Vec::new();
        while let Some(r) = rows.next()? {
            found.push(damaged(serde_json::from_str(&r.get::<_, String>(0)?))?);
        }
        Ok(found)
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

struct Loop {
    db: Connection,
    limits: LedgerLimits,
    counters: Arc<Counters>,
    failing: bool,
}

impl Loop {
    fn run(mut self, entries: &Receiver<Entry>) {
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
                    other => batch.push(other),
                }
            }
            let size = batch.len() as u64;
            match self.write(&mut batch) {
                Ok(exchanges) => {
                    self.counters.written.fetch_add(exchanges, Ordering::Relaxed);
                    self.failing = false;
                }
                Err(e) => {
                    self.counters.dropped.fetch_add(size, Ordering::Relaxed);
                    if !std::mem::replace(&mut self.failing, true) {
                        tracing::error!(error = %e, "the ledger cannot be written; exchanges are lost and counted");
                    }
                }
            }
            batch.clear();
            for done in flushes {
                let _ = done.send(());
            }
            batches += 1;
            if batches.is_multiple_of(PRUNE_EVERY)
                && let Err(e) = self.prune()
            {
                tracing::error!(error = %e, "the ledger's limits cannot be applied");
            }
        }
    }

    fn write(&mut self, batch: &mut Vec<Entry>) -> Result<u64, RegistryError> {
        if batch.is_empty() {
            return Ok(0);
        }
        let tx = self.db.transaction()?;
        let mut exchanges = 0;
        // A first publish usually follows its exchange within the batch: then it is one write.
        let mut late = Vec::new();
        let mut records: Vec<Box<ExchangeRecord>> = Vec::new();
        let mut positions: HashMap<ExchangeId, usize> = HashMap::new();
        for entry in batch.drain(..) {
            match entry {
                Entry::Exchange(record) => {
                    positions.insert(record.id, records.len());
                    records.push(record);
                }
                Entry::FirstData(id, stage) => match positions.get(&id).and_then(|n| records.get_mut(*n)) {
                    Some(record) => record.stages.push(stage),
                    None => late.push((id, stage)),
                },
                Entry::Flush(_) => {}
            }
        }
        {
            let mut insert = tx.prepare_cached(
                "INSERT OR REPLACE INTO exchanges (id, outcome, code, tenant, device, fingerprint, serial, record)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            )?;
            for r in &records {
                // An unproven exchange says nothing about the device whose certificate was shown.
                let device = r.device.as_ref().filter(|_| r.possession == Possession::Proven);
                let shown = r.certificate.as_ref();
                insert.execute(params![
                    r.id.as_u64().cast_signed(),
                    r.outcome.name(),
                    r.denial.as_ref().map(|d| d.code.as_str()),
                    r.tenant.as_ref().map(TenantId::as_str),
                    device.map(DeviceId::as_str),
                    shown.map(|s| *s.fingerprint.as_bytes()),
                    shown.map(|s| s.serial.as_str()),
                    damaged(serde_json::to_string(r))?,
                ])?;
                exchanges += 1;
            }
            let mut update = tx.prepare_cached(
                "UPDATE exchanges SET record = json_insert(record, '$.stages[#]', json(?)) WHERE id = ?",
            )?;
            for (id, stage) in late {
                update.execute(params![
                    damaged(serde_json::to_string(&stage))?,
                    id.as_u64().cast_signed()
                ])?;
            }
        }
        tx.commit()?;
        Ok(exchanges)
    }

    /// Applies age and number.
    fn prune(&mut self) -> Result<(), RegistryError> {
        let newest: Option<i64> = self
            .db
            .query_row("SELECT max(id) FROM exchanges", [], |r| r.get(0))?;
        let Some(newest) = newest else { return Ok(()) };
        // An id starts with its time, so an age is an id.
        let newest_ms = newest.cast_unsigned() >> 22;
        let oldest =
            Timestamp::from_unix_ms(i64::try_from(newest_ms).unwrap_or(0)).minus(self.limits.age_max);
        let floor = ExchangeId::new(oldest, 0).as_u64().cast_signed();
        self.db.execute("DELETE FROM exchanges WHERE id < ?", [floor])?;
        let rows: i64 = self
            .db
            .query_row("SELECT count(*) FROM exchanges", [], |r| r.get(0))?;
        let over = rows.cast_unsigned().saturating_sub(self.limits.rows_max);
        if over > 0 {
            // A tenth more than needed, so that it is not done for every batch.
            let goal = (over + self.limits.rows_max / 10).cast_signed();
            let admitted = self.db.execute(
                "DELETE FROM exchanges WHERE id IN
                 (SELECT id FROM exchanges WHERE outcome = 'admitted' ORDER BY id LIMIT ?)",
                [goal],
            )?;
            let rest = goal - i64::try_from(admitted).unwrap_or(0);
            if rest > 0 {
                self.db.execute(
                    "DELETE FROM exchanges WHERE id IN (SELECT id FROM exchanges ORDER BY id LIMIT ?)",
                    [rest],
                )?;
            }
        }
        Ok(())
    }
}
