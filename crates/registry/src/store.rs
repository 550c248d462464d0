//! A data directory: locked by one process, brought up to date, its facts loaded.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use countersign_identity::{AuthorityId, Clock, DeviceId, Fingerprint, Generation, TenantId};
use countersign_policy::decide::TenantPolicy;
use countersign_policy::exchange::ExchangeSink;
use countersign_policy::first_contact::{Answer, Contact};
use countersign_policy::{
    ClientIdMode, DeviceFacts, ExchangeId, ExchangeRecord, FactSource, Possession, SessionRecord, StageRecord,
};
use parking_lot::{Mutex, RwLock};
use rusqlite::Connection;

use crate::authority;
use crate::change::{Actor, Change, damaged};
use crate::clock::{SystemClock, Timekeeper};
use crate::credential::{COLUMNS, IssuanceRules, credential_facts};
use crate::error::RegistryError;
use crate::ledger::{Ledger, LedgerLimits};
use crate::migrate::{self, LEDGER, REGISTRY};
use crate::station;
use crate::table::{Fact, FactTable};
use crate::writer::{Committed, Scope, Writer};

/// The registry of one data directory.
pub struct Registry {
    writer: Writer,
    reader: Mutex<Connection>,
    table: Arc<FactTable>,
    ledger: Ledger,
    pub(crate) rules: RwLock<IssuanceRules>,
    pub(crate) time: Arc<Timekeeper>,
    pub(crate) receipts: Arc<crate::receipt::Retention>,
    path: PathBuf,
    _lock: File,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Registry {
    /// Whether `path` holds a registry.
    pub fn exists(path: &Path) -> bool {
        path.join("registry.db").exists()
    }

    /// Makes a registry in `path`, a folder that must exist; tenant `default` is there from the start. If there is
    /// one it is opened.
    ///
    /// # Errors
    /// [`RegistryError`], each with its cure.
    pub fn create(path: &Path, limits: LedgerLimits) -> Result<Self, RegistryError> {
        Self::create_with_clock(path, limits, Arc::new(SystemClock))
    }

    /// The same by another clock than the machine's.
    ///
    /// # Errors
    /// As for [`Registry::create`].
    pub fn create_with_clock(
        path: &Path,
        limits: LedgerLimits,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, RegistryError> {
        let registry = Self::open_in(path, limits, clock)?;
        let default = TenantId::default_tenant();
        match registry.add_tenant(Actor("countersign".into()), default, ClientIdMode::Strict) {
            Ok(_) | Err(RegistryError::Exists(_)) => Ok(registry),
            Err(e) => Err(e),
        }
    }

    /// Opens the registry in `path`.
    ///
    /// # Errors
    /// [`RegistryError::Missing`] if there is none; others as they say.
    pub fn open(path: &Path, limits: LedgerLimits) -> Result<Self, RegistryError> {
        Self::open_with_clock(path, limits, Arc::new(SystemClock))
    }

    /// The same by another clock than the machine's.
    ///
    /// # Errors
    /// As for [`Registry::open`].
    pub fn open_with_clock(
        path: &Path,
        limits: LedgerLimits,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, RegistryError> {
        if !Self::exists(path) {
            return Err(RegistryError::Missing(path.to_owned()));
        }
        Self::open_in(path, limits, clock)
    }

    fn open_in(path: &Path, limits: LedgerLimits, clock: Arc<dyn Clock>) -> Result<Self, RegistryError> {
        let lock = lock(path)?;
        let file = path.join("registry.db");
        let db = migrate::open_writer(&file, REGISTRY)?;
        let ledger_file = path.join("ledger.db");
        let ledger_db = migrate::open_writer(&ledger_file, LEDGER)?;
        migrate::gather(&ledger_db)?;
        for private in [&file, &ledger_file] {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(private, std::fs::Permissions::from_mode(0o600)).map_err(|source| {
                RegistryError::File {
                    what: "protect",
                    path: private.clone(),
                    source,
                }
            })?;
        }
        let table = Arc::new(FactTable::new());
        table.apply(load(&db, &table)?);
        // After the load, which reads everything once and would fill it.
        migrate::widen(&db)?;
        let reader = migrate::open_reader(&file)?;
        let spawn = |source| RegistryError::File {
            what: "start the writer of",
            path: file.clone(),
            source,
        };
        let time = Arc::new(Timekeeper::load(clock, &db)?);
        let writer = Writer::start(db, table.clone(), time.clone()).map_err(spawn)?;
        let ledger = Ledger::start(ledger_db, migrate::open_reader(&ledger_file)?, limits)?;
        Ok(Self {
            writer,
            reader: Mutex::new(reader),
            table,
            ledger,
            rules: RwLock::default(),
            time,
            receipts: Arc::default(),
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// The facts in memory.
    pub fn facts(&self) -> &Arc<FactTable> {
        &self.table
    }

    /// The exchanges.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The data directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Calls `observer` for every committed change with its revision: after the facts show it, before it is answered.
    /// It runs on the writer's thread and must not wait.
    pub fn on_change(&self, observer: impl Fn(u64, &[Change]) + Send + Sync + 'static) {
        self.writer.observe(Arc::new(observer));
    }

    pub(crate) fn write<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Scope<'_>) -> Result<T, RegistryError> + Send + 'static,
    ) -> Result<Committed<T>, RegistryError> {
        self.writer.write(job)
    }

    /// Runs a job to see whether it would go through, and undoes it.
    pub(crate) fn try_out(
        &self,
        job: impl FnOnce(&mut Scope<'_>) -> Result<(), RegistryError> + Send + 'static,
    ) -> Result<(), RegistryError> {
        let went_through = Arc::new(AtomicBool::new(false));
        let told = went_through.clone();
        // Failing is what undoes it.
        let tried: Result<Committed<()>, _> = self.write(move |scope| {
            job(scope)?;
            told.store(true, Ordering::Relaxed);
            Err(RegistryError::Refused("it was only tried".into()))
        });
        match tried {
            Err(e) if !went_through.load(Ordering::Relaxed) => Err(e),
            _ => Ok(()),
        }
    }

    pub(crate) fn write_behind(
        &self,
        what: &'static str,
        job: impl FnOnce(&mut Scope<'_>) -> Result<(), RegistryError> + Send + 'static,
    ) {
        self.writer.write_behind(what, job);
    }

    pub(crate) fn write_then<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Scope<'_>) -> Result<T, RegistryError> + Send + 'static,
        answer: impl FnOnce(Result<Committed<T>, RegistryError>) + Send + 'static,
    ) {
        self.writer.write_then(job, answer);
    }

    pub(crate) fn read<T>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        query(&self.reader.lock())
    }
}

impl Registry {
    /// The known device that an exchange is of: its key was proven, and its certificate is registered, or names a device
    /// that is.
    fn owner(&self, exchange: &ExchangeRecord) -> Option<(TenantId, DeviceId)> {
        if exchange.possession != Possession::Proven {
            return None;
        }
        let registered = exchange.certificate.as_ref().and_then(|shown| {
            let credential = self.table.credential(&shown.fingerprint)?;
            Some((credential.tenant, credential.device))
        });
        registered.or_else(|| {
            let (tenant, device) = (exchange.tenant.clone()?, exchange.device.clone()?);
            self.table.device(&tenant, &device)?;
            Some((tenant, device))
        })
    }
}

impl ExchangeSink for Registry {
    fn record(&self, exchange: ExchangeRecord) {
        let owner = self.owner(&exchange);
        self.ledger.record(exchange, owner);
    }

    fn first_data(&self, _tenant: &TenantId, _device: &DeviceId, exchange: ExchangeId, stage: StageRecord) {
        self.ledger.first_data(exchange, stage);
    }

    fn session(&self, session: SessionRecord) {
        self.ledger.session(session);
    }

    fn credential_used(&self, fingerprint: Fingerprint, authority: &AuthorityId) {
        Self::credential_used(self, fingerprint, authority.clone());
    }

    fn first_contact(&self, contact: Contact, answer: Answer) {
        Self::first_contact(self, contact, answer);
    }
}

/// Takes the data directory for this process.
fn lock(path: &Path) -> Result<File, RegistryError> {
    let file_path = path.join("lock");
    let io = |source| RegistryError::File {
        what: "lock",
        path: file_path.clone(),
        source,
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&file_path)
        .map_err(io)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let pid = file
                .read_to_string(&mut text)
                .ok()
                .and_then(|_| text.trim().parse().ok());
            return Err(RegistryError::InUse {
                path: path.to_owned(),
                pid,
            });
        }
        Err(TryLockError::Error(e)) => return Err(io(e)),
    }
    // For people who wonder who has it; the lock itself is the kernel's and ends with the process.
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| write!(file, "{}", std::process::id()))
        .map_err(io)?;
    Ok(file)
}

/// Reads all facts.
fn load(db: &Connection, table: &FactTable) -> Result<Vec<Fact>, RegistryError> {
    let mut facts = Vec::new();
    let mut tenants = db.prepare(
        "SELECT t.id, t.client_id_mode, v.policies, v.spaces, t.revision
         FROM tenants t JOIN policy_versions v ON v.tenant = t.id AND v.number = t.policy_version",
    )?;
    let mut rows = tenants.query([])?;
    while let Some(r) = rows.next()? {
        let id: TenantId = damaged(r.get::<_, String>(0)?.parse())?;
        let spaces = damaged(serde_json::from_str(&r.get::<_, String>(3)?))?;
        let generation = Generation(r.get::<_, i64>(4)?.cast_unsigned());
        // They were held against the schema when they took effect; what does not fit it now fails as it is evaluated,
        // which is a no.
        let policy = damaged(TenantPolicy::compile_unfit(
            generation,
            &r.get::<_, String>(2)?,
            spaces,
        ))?;
        let mode = damaged(r.get::<_, String>(1)?.parse())?;
        facts.push(Fact::Tenant {
            id,
            mode,
            policy: Arc::new(policy),
        });
    }
    let mut hosts = db.prepare("SELECT host, tenant FROM hosts")?;
    let mut rows = hosts.query([])?;
    while let Some(r) = rows.next()? {
        facts.push(Fact::Host {
            host: r.get(0)?,
            tenant: Some(damaged(r.get::<_, String>(1)?.parse())?),
        });
    }
    authority::load(db, &mut facts)?;
    station::load(db, &mut facts)?;
    let mut devices = db.prepare("SELECT tenant, id, model, groups, state, revision, batch FROM devices")?;
    let mut rows = devices.query([])?;
    // A fleet has few models, batches and sets of groups: each is kept once.
    let mut texts: std::collections::HashSet<Arc<str>> = std::collections::HashSet::new();
    let mut group_sets: std::collections::HashMap<String, Arc<[Arc<str>]>> = std::collections::HashMap::new();
    while let Some(r) = rows.next()? {
        let mut once = |text: String| -> Arc<str> {
            let shared = texts
                .get(text.as_str())
                .cloned()
                .unwrap_or_else(|| text.as_str().into());
            texts.insert(shared.clone());
            shared
        };
        let model = r.get::<_, Option<String>>(2)?.map(&mut once);
        let batch = r.get::<_, Option<String>>(6)?.map(&mut once);
        let groups_text: String = r.get(3)?;
        let groups = match group_sets.get(&groups_text) {
            Some(groups) => groups.clone(),
            None => {
                let list: Vec<Arc<str>> = damaged(serde_json::from_str(&groups_text))?;
                let groups: Arc<[Arc<str>]> = list.into();
                group_sets.insert(groups_text, groups.clone());
                groups
            }
        };
        facts.push(Fact::Device(Arc::new(DeviceFacts {
            tenant: damaged(r.get::<_, String>(0)?.parse())?,
            id: damaged(r.get::<_, String>(1)?.parse())?,
            model,
            groups,
            batch,
            state: damaged(r.get::<_, String>(4)?.parse())?,
            generation: Generation(r.get::<_, i64>(5)?.cast_unsigned()),
        })));
    }
    let mut credentials = db.prepare(&format!("SELECT {COLUMNS} FROM credentials"))?;
    let mut rows = credentials.query([])?;
    while let Some(r) = rows.next()? {
        facts.push(Fact::Credential(credential_facts(r, table)?));
    }
    let mut unplaced = db.prepare(
        "SELECT fingerprint FROM credentials
         WHERE authority IS NULL AND kind <> 'pinned' AND state IN ('issued', 'active')",
    )?;
    let mut rows = unplaced.query([])?;
    while let Some(r) = rows.next()? {
        facts.push(Fact::Placed(Fingerprint::from_bytes(r.get(0)?), false));
    }
    facts.push(crate::revocation_list::load(db)?);
    Ok(facts)
}
