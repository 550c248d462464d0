//! The ledger of exchanges: a bounded queue, a writer that keeps up in batches, and limits from the first day.
//!
//! A record is never waited for. What does not fit is counted: a ledger that could stop the door would be a way to
//! close it.
//!
//! A record is a known device's if its certificate is registered, or names a registered device, and the key was proven.
//! All others are strangers': whatever they do, they have their own part of the queue, their own limit by source and
//! their own budget, so that nothing of a known device is lost for them.
//!
//! * `budget`: how much is kept of what, and what goes first
//! * [`cause`]: refusals that have one cause, counted
//! * `gaps`: what is not here, and is known not to be
//! * `sketch`: how many different ones there were
//! * [`search`]: refusals by what is known of them; what a device did between two moments
//! * `writer`: the one thread that writes

mod budget;
pub mod cause;
mod gaps;
mod row;
pub mod search;
mod sketch;
mod writer;

pub use cause::{CauseGroup, CausePage, CauseQuery};
pub use gaps::Missing;
pub use search::{Doings, Network, RefusalPage, RefusalQuery};

use std::collections::BTreeMap;
use std::collections::hash_map::{self, HashMap};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use countersign_identity::{DeviceId, Fingerprint, TenantId, Timestamp};
use countersign_policy::exchange::source_of;
use countersign_policy::{ExchangeId, ExchangeRecord, Outcome, SessionRecord, StageRecord};
use parking_lot::Mutex;
use rusqlite::{Connection, params};

use self::budget::{Budgets, Class};
use self::gaps::Gaps;
use self::writer::Loop;
use crate::change::damaged;
use crate::error::RegistryError;

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerLimits {
    /// The most rows of known devices. Default 200,000; the oldest go first, admitted ones before refused ones. The last
    /// exchange of each device and its last refusal are kept beside that.
    pub rows_max: u64,
    /// The most bytes of these, indexes included. Default 512 MiB.
    pub bytes_max: u64,
    /// The most rows of strangers. Default 100,000; the oldest go first.
    pub unproven_rows_max: u64,
    /// The most bytes of these, indexes included. Default 128 MiB.
    pub unproven_bytes_max: u64,
    /// The greatest age. Default 30 days.
    pub age_max: Duration,
    /// Refused exchanges kept per minute, of each source address as to strangers and of each device as to known ones;
    /// more are only counted. Default 600.
    pub refused_per_source_minute_max: u32,
    /// Issuers, authorities, names and so on that causes of one code are told apart by, for each tenant. Default 200;
    /// more are counted together.
    pub subjects_per_code_max: u64,
    /// Hours of causes that are kept, of known devices and of strangers each. Default 20,000; the oldest go first.
    pub cause_hours_max: u64,
    /// The most sessions. Default 200,000; the oldest go first.
    pub sessions_rows_max: u64,
    /// The most bytes of these, indexes included. Default 256 MiB.
    pub sessions_bytes_max: u64,
    /// The greatest age of a session, since it ended. Default 30 days.
    pub sessions_age_max: Duration,
}

impl Default for LedgerLimits {
    fn default() -> Self {
        let days = Duration::from_secs(30 * 24 * 3600);
        Self {
            rows_max: 200_000,
            bytes_max: 512 << 20,
            unproven_rows_max: 100_000,
            unproven_bytes_max: 128 << 20,
            age_max: days,
            refused_per_source_minute_max: 600,
            subjects_per_code_max: 200,
            cause_hours_max: 20_000,
            sessions_rows_max: 200_000,
            sessions_bytes_max: 256 << 20,
            sessions_age_max: days,
        }
    }
}

/// Records waiting to be written. More are dropped, and counted. All sessions of a node may end at once.
const QUEUE_MAX: usize = 20_480;
/// Of these, strangers' at most.
const STRANGERS_WAITING_MAX: usize = QUEUE_MAX / 4;
/// Sources or devices of one minute that are counted one by one; all others share one count.
const COUNTED_MAX: usize = 65_536;
/// How long the writer gathers before it writes.
const GATHER: Duration = Duration::from_millis(100);

/// A record, and the known device whose key was proven, if one was.
#[derive(Debug)]
pub(crate) struct Kept {
    record: ExchangeRecord,
    owner: Option<(TenantId, DeviceId)>,
}

enum Entry {
    Exchange(Box<Kept>),
    FirstData(ExchangeId, StageRecord),
    Session(Box<SessionRecord>),
    /// Something is missing that has to be written down.
    Gap,
    /// Answers when all before it is written.
    Flush(SyncSender<()>),
}

impl Entry {
    fn is_strangers(&self) -> bool {
        matches!(self, Self::Exchange(kept) if kept.owner.is_none())
    }

    /// When it began; `None` of what is no record.
    fn at(&self) -> Option<Timestamp> {
        match self {
            Self::Exchange(kept) => Some(kept.record.started),
            Self::FirstData(id, _) => Some(id.started()),
            Self::Session(record) => Some(record.started),
            Self::Gap | Self::Flush(_) => None,
        }
    }
}

#[derive(Debug, Default)]
struct Counters {
    written: AtomicU64,
    dropped: AtomicU64,
    limited: AtomicU64,
    crowded: AtomicU64,
    unnamed: AtomicU64,
    rows: [AtomicU64; Class::ALL.len()],
    evicted: [AtomicU64; Class::ALL.len()],
    strangers_waiting: AtomicUsize,
}

impl Counters {
    fn keep(&self, budgets: &Budgets) {
        for class in Class::ALL {
            self.rows[class as usize].store(budgets.of(class).rows, Ordering::Relaxed);
        }
    }

    fn evict(&self, gone: &[u64; Class::ALL.len()]) {
        for (counter, gone) in self.evicted.iter().zip(gone) {
            counter.fetch_add(*gone, Ordering::Relaxed);
        }
    }
}

fn named(counters: &[AtomicU64; Class::ALL.len()]) -> BTreeMap<&'static str, u64> {
    let all = Class::ALL.iter().zip(counters);
    all.map(|(class, n)| (class.name(), n.load(Ordering::Relaxed)))
        .collect()
}

/// Counts of one minute.
struct Minute<K> {
    minute: i64,
    counts: HashMap<K, u32>,
    others: u32,
}

impl<K> Default for Minute<K> {
    fn default() -> Self {
        Self {
            minute: 0,
            counts: HashMap::new(),
            others: 0,
        }
    }
}

impl<K: Eq + Hash> Minute<K> {
    /// Counts one, and says how many there are now.
    fn count(&mut self, minute: i64, key: K) -> u32 {
        if self.minute != minute {
            *self = Self {
                minute,
                ..Self::default()
            };
        }
        let full = self.counts.len() >= COUNTED_MAX;
        let count = match self.counts.entry(key) {
            hash_map::Entry::Occupied(entry) => entry.into_mut(),
            hash_map::Entry::Vacant(_) if full => &mut self.others,
            hash_map::Entry::Vacant(entry) => entry.insert(0),
        };
        *count = count.saturating_add(1);
        *count
    }
}

/// An address as it is kept: IPv4 as `::ffff:a.b.c.d`.
fn address(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// A serial number as it is kept.
fn serial(text: &str) -> String {
    let text = text.replace(':', "").to_ascii_lowercase();
    text.trim_start_matches('0').to_owned()
}

/// The ledger.
pub struct Ledger {
    queue: Option<SyncSender<Entry>>,
    thread: Option<JoinHandle<()>>,
    reader: Mutex<Connection>,
    counters: Arc<Counters>,
    sources: Mutex<Minute<IpAddr>>,
    devices: Mutex<Minute<(TenantId, DeviceId)>>,
    gaps: Arc<Mutex<Gaps>>,
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
    pub(crate) fn start(
        db: Connection,
        reader: Connection,
        limits: LedgerLimits,
    ) -> Result<Self, RegistryError> {
        end_lost_sessions(&db)?;
        let (queue, entries) = sync_channel(QUEUE_MAX);
        let counters: Arc<Counters> = Arc::default();
        let gaps = Arc::new(Mutex::new(Gaps::load(&db)?));
        let writer = Loop::new(db, limits, counters.clone(), gaps.clone())?;
        let thread = std::thread::Builder::new()
            .name("ledger-writer".into())
            .spawn(move || writer.run(&entries))
            .map_err(|source| RegistryError::File {
                what: "start the writer of",
                path: reader.path().unwrap_or_default().into(),
                source,
            })?;
        Ok(Self {
            queue: Some(queue),
            thread: Some(thread),
            reader: Mutex::new(reader),
            counters,
            sources: Mutex::default(),
            devices: Mutex::default(),
            gaps,
            limits,
        })
    }

    /// Keeps a record, later. `owner`: the known device whose key was proven, if one was.
    pub fn record(&self, exchange: ExchangeRecord, owner: Option<(TenantId, DeviceId)>) {
        if exchange.outcome != Outcome::Admitted && self.is_over_limit(&exchange, owner.as_ref()) {
            self.counters.limited.fetch_add(1, Ordering::Relaxed);
            if let Some(owner) = owner
                && self.gaps.lock().counted(owner, exchange.started)
            {
                self.put(Entry::Gap);
            }
            return;
        }
        self.put(Entry::Exchange(Box::new(Kept {
            record: exchange,
            owner,
        })));
    }

    /// Keeps what a session did until now, later.
    pub fn session(&self, session: SessionRecord) {
        self.put(Entry::Session(Box::new(session)));
    }

    /// Adds the stage `first-data` to a record.
    pub fn first_data(&self, exchange: ExchangeId, stage: StageRecord) {
        self.put(Entry::FirstData(exchange, stage));
    }

    fn put(&self, entry: Entry) {
        let Some(queue) = &self.queue else { return };
        let strangers = entry.is_strangers();
        let waiting = &self.counters.strangers_waiting;
        if strangers && waiting.fetch_add(1, Ordering::Relaxed) >= STRANGERS_WAITING_MAX {
            waiting.fetch_sub(1, Ordering::Relaxed);
            self.counters.crowded.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if let Err(TrySendError::Full(entry) | TrySendError::Disconnected(entry)) = queue.try_send(entry) {
            if strangers {
                waiting.fetch_sub(1, Ordering::Relaxed);
            }
            // What is missing is written with the next batch, and there is one: the queue is full.
            if let Some(at) = entry.at() {
                self.counters.dropped.fetch_add(1, Ordering::Relaxed);
                self.gaps.lock().lost(1, at);
            }
        }
    }

    /// One source must not push everyone else's history out, nor one device that of the others.
    fn is_over_limit(&self, exchange: &ExchangeRecord, owner: Option<&(TenantId, DeviceId)>) -> bool {
        let minute = exchange.started.unix_s() / 60;
        let count = match owner {
            None => self.sources.lock().count(minute, source_of(exchange.source.ip())),
            Some(owner) => self.devices.lock().count(minute, owner.clone()),
        };
        count > self.limits.refused_per_source_minute_max
    }

    /// The refusals of a known device that were only counted; of one that came after as many as are told apart: of all of
    /// those.
    pub fn limited_of(&self, tenant: &TenantId, device: &DeviceId) -> Option<Missing> {
        self.gaps.lock().of(tenant, device)
    }

    /// Records that were lost: of whom is not known.
    pub fn lost(&self) -> Option<Missing> {
        self.gaps.lock().of_nobody()
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

    /// Strangers' records that were left out because too many of them waited.
    pub fn crowded(&self) -> u64 {
        self.counters.crowded.load(Ordering::Relaxed)
    }

    /// Refusals whose cause was not told apart from others of its code, since start.
    pub fn unnamed(&self) -> u64 {
        self.counters.unnamed.load(Ordering::Relaxed)
    }

    /// How many rows there are of each class.
    pub fn rows(&self) -> BTreeMap<&'static str, u64> {
        named(&self.counters.rows)
    }

    /// How many rows of each class had to go for newer ones, since start.
    pub fn evicted(&self) -> BTreeMap<&'static str, u64> {
        named(&self.counters.evicted)
    }

    /// Records that were left out because their source had too many, or their device.
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
            "(device = ?1 OR owner = ?1) AND (?2 IS NULL OR tenant = ?2)",
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
        self.select(
            "outcome <> 'admitted' AND serial = ?1",
            params![self::serial(serial)],
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

/// Sessions whose server went away without a word: they ended no later than the last thing that it wrote.
fn end_lost_sessions(db: &Connection) -> Result<(), RegistryError> {
    db.execute(
        "UPDATE sessions SET ended = newest.at, until = max(until, newest.at)
         FROM (SELECT max(coalesce((SELECT max(id) >> 22 FROM exchanges), 0),
                          coalesce((SELECT max(until) FROM sessions), 0)) AS at) AS newest
         WHERE ended IS NULL",
        [],
    )?;
    Ok(())
}
