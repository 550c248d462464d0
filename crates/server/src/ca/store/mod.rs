//! What the CA remembers, in `ca.db`: one file of SQLite, `synchronous=FULL`.
//!
//! The serving process has one writer, which lets many requests share one sync: nothing is answered before it is on disk.
//! The operator's commands write beside it, each in a transaction of its own; SQLite keeps them apart.

mod log;
mod writer;

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use countersign_identity::Timestamp;
use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::error::CaError;
pub use log::verify as verify_log;
use writer::Writer;
pub use writer::{CLOCK_SLACK, Scope};

const FILE: &str = "ca.db";
/// Marks our file among all SQLite files ("CSCA").
const APPLICATION_ID: i64 = 0x4353_4341;
const MIGRATIONS: &[&str] = &[include_str!("ca_001.sql"), include_str!("ca_002.sql")];
/// How long a writer waits for another one.
const BUSY: Duration = Duration::from_secs(10);

/// The serving process' store.
pub struct Store {
    writer: Writer,
    reader: Mutex<Connection>,
    _lock: File,
}

/// The clock of this process.
pub fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::from_unix_ms(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

fn path_in(folder: &Path) -> PathBuf {
    folder.join(FILE)
}

/// Whether a folder holds a CA's store.
pub fn exists(folder: &Path) -> bool {
    path_in(folder).exists()
}

/// Makes the store, or brings it up to date.
///
/// # Errors
/// [`CaError`].
pub fn create(folder: &Path) -> Result<Connection, CaError> {
    let path = path_in(folder);
    // Owner-only from the first byte on: SQLite gives its other files the same mode.
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .and_then(|file| file.set_permissions(std::fs::Permissions::from_mode(0o600)))
        .map_err(|e| CaError::Storage(format!("{}: {e}", path.display())))?;
    open_for_writing(&path)
}

/// Opens the store for one command of the operator.
///
/// # Errors
/// [`CaError`] if there is none.
pub fn open_beside(folder: &Path) -> Result<Connection, CaError> {
    if !exists(folder) {
        return Err(CaError::NotFound(format!(
            "there is no CA at {}; hint: countersign ca init --data {}",
            folder.display(),
            folder.display()
        )));
    }
    open_for_writing(&path_in(folder))
}

fn open_for_writing(path: &Path) -> Result<Connection, CaError> {
    let mut db = Connection::open(path)?;
    db.busy_timeout(BUSY)?;
    let foreign = || {
        CaError::Storage(format!(
            "{} is no store of a CA; hint: name the CA's own folder",
            path.display()
        ))
    };
    let number =
        |db: &Connection, name: &str| db.query_row(&format!("PRAGMA {name}"), [], |r| r.get::<_, i64>(0));
    let version = number(&db, "user_version").map_err(|e| match e.sqlite_error_code() {
        Some(rusqlite::ErrorCode::NotADatabase) => foreign(),
        _ => e.into(),
    })?;
    if number(&db, "application_id")? != APPLICATION_ID && version > 0 {
        return Err(foreign());
    }
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if version > known {
        return Err(CaError::Storage(format!(
            "{} was written by a newer countersign (schema {version}, this one knows {known}); hint: use that version",
            path.display()
        )));
    }
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "foreign_keys", true)?;
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Read again: another process may have been quicker.
    let version = usize::try_from(number(&tx, "user_version")?).unwrap_or(0);
    for (n, sql) in MIGRATIONS.iter().enumerate().skip(version) {
        tx.execute_batch(sql)?;
        tx.pragma_update(None, "application_id", APPLICATION_ID)?;
        tx.pragma_update(None, "user_version", i64::try_from(n + 1).unwrap_or(i64::MAX))?;
    }
    tx.commit()?;
    db.set_prepared_statement_cache_capacity(64);
    Ok(db)
}

/// Runs one command of the operator in a transaction of its own.
///
/// # Errors
/// What it says; then nothing was changed.
pub fn write_beside<T>(
    db: &mut Connection,
    actor: &str,
    job: impl FnOnce(&Scope<'_>) -> Result<T, CaError>,
) -> Result<T, CaError> {
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let scope = Scope::begin(&tx, now(), actor.to_owned())?;
    let value = job(&scope)?;
    scope.finish()?;
    tx.commit()?;
    Ok(value)
}

impl Store {
    /// Opens the store for the one process that serves it.
    ///
    /// # Errors
    /// [`CaError`].
    pub fn open(folder: &Path) -> Result<Self, CaError> {
        let lock = lock(folder)?;
        let db = open_beside(folder)?;
        let reader = Connection::open_with_flags(
            path_in(folder),
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        reader.busy_timeout(BUSY)?;
        Ok(Self {
            writer: Writer::start(db).map_err(|e| CaError::Storage(e.to_string()))?,
            reader: Mutex::new(reader),
            _lock: lock,
        })
    }

    /// Runs a job in a transaction, and waits until it is on disk.
    ///
    /// # Errors
    /// What the job says, or that it could not be made durable; then nothing of it is kept.
    pub fn write<T: Send + 'static>(
        &self,
        actor: &str,
        job: impl FnOnce(&Scope<'_>) -> Result<T, CaError> + Send + 'static,
    ) -> Result<T, CaError> {
        self.writer.write(actor.to_owned(), job)
    }

    /// Reads.
    ///
    /// # Errors
    /// What the query says.
    pub fn read<T>(&self, query: impl FnOnce(&Connection) -> Result<T, CaError>) -> Result<T, CaError> {
        query(&self.reader.lock())
    }
}

/// Takes the folder for the one process that serves it.
fn lock(folder: &Path) -> Result<File, CaError> {
    let path = folder.join("lock");
    let failed = |e: std::io::Error| CaError::Storage(format!("cannot lock {}: {e}", path.display()));
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(CaError::InUse(folder.display().to_string())),
        Err(TryLockError::Error(e)) => Err(failed(e)),
    }
}
