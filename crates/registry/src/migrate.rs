//! Brings a database to the newest schema. Migrations are append-only: a released one is never edited.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use crate::error::RegistryError;

/// Marks our databases among all SQLite files ("CSGN").
const APPLICATION_ID: i64 = 0x4353_474e;

/// How a database is kept.
#[derive(Clone, Copy)]
pub(crate) struct Schema {
    pub(crate) migrations: &'static [&'static str],
    pub(crate) synchronous: &'static str,
}

/// The facts. A change is on disk before it is answered.
pub(crate) const REGISTRY: Schema = Schema {
    migrations: &[
        include_str!("migrations/registry_001.sql"),
        include_str!("migrations/registry_002.sql"),
        include_str!("migrations/registry_003.sql"),
        include_str!("migrations/registry_004.sql"),
        include_str!("migrations/registry_005.sql"),
        include_str!("migrations/registry_007.sql"),
        include_str!("migrations/registry_008.sql"),
        include_str!("migrations/registry_009.sql"),
        include_str!("migrations/registry_010.sql"),
        include_str!("migrations/registry_012.sql"),
        include_str!("migrations/registry_013.sql"),
        include_str!("migrations/registry_014.sql"),
        include_str!("migrations/registry_015.sql"),
        include_str!("migrations/registry_016.sql"),
        include_str!("migrations/registry_017.sql"),
        include_str!("migrations/registry_018.sql"),
        include_str!("migrations/registry_019.sql"),
        include_str!("migrations/registry_020.sql"),
        include_str!("migrations/registry_021.sql"),
    ],
    synchronous: "FULL",
};
/// The exchanges. Written behind.
pub(crate) const LEDGER: Schema = Schema {
    migrations: &[
        include_str!("migrations/ledger_001.sql"),
        include_str!("migrations/ledger_002.sql"),
        include_str!("migrations/ledger_003.sql"),
    ],
    synchronous: "NORMAL",
};

/// Opens the database for its one writer, making or migrating it as needed.
///
/// # Errors
/// [`RegistryError::Newer`], [`RegistryError::Foreign`], or what the database says.
pub(crate) fn open_writer(path: &Path, schema: Schema) -> Result<Connection, RegistryError> {
    let mut db = Connection::open(path)?;
    // The first statement that reads the file: says so if it is no database.
    let version: i64 = db
        .query_row("PRAGMA user_version", [], |r| r.get(0))
        .map_err(|e| match e.sqlite_error_code() {
            Some(rusqlite::ErrorCode::NotADatabase) => RegistryError::Foreign(path.to_owned()),
            _ => e.into(),
        })?;
    let application: i64 = db.query_row("PRAGMA application_id", [], |r| r.get(0))?;
    let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0))?;
    if application != APPLICATION_ID && tables > 0 {
        return Err(RegistryError::Foreign(path.to_owned()));
    }
    let known = i64::try_from(schema.migrations.len()).unwrap_or(i64::MAX);
    if version > known {
        return Err(RegistryError::Newer {
            path: path.to_owned(),
            found: version,
            known,
        });
    }
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", schema.synchronous)?;
    db.pragma_update(None, "foreign_keys", true)?;
    for (n, sql) in schema
        .migrations
        .iter()
        .enumerate()
        .skip(usize::try_from(version).unwrap_or(0))
    {
        let tx = db.transaction()?;
        tx.execute_batch(sql)?;
        tx.pragma_update(None, "application_id", APPLICATION_ID)?;
        tx.pragma_update(None, "user_version", i64::try_from(n + 1).unwrap_or(i64::MAX))?;
        tx.commit()?;
    }
    db.set_prepared_statement_cache_capacity(64);
    Ok(db)
}

/// Room for a writer that issues in bulk, in KiB: with the default of 2,000 the indexes of some ten thousand credentials
/// do not fit, and pages are read and written again within one transaction.
const WRITER_CACHE_KIB: i64 = 32 << 10;
/// Pages that the log may have before it is copied into the database: a page that many transactions change is then
/// copied once. The registry's log grows to 32 MiB, the ledger's to 16.
const CHECKPOINT_PAGES: i64 = 8192;
const LEDGER_CHECKPOINT_PAGES: i64 = 4096;

/// Gives the writer its cache.
///
/// # Errors
/// What the database says.
pub(crate) fn widen(db: &Connection) -> Result<(), RegistryError> {
    db.pragma_update(None, "cache_size", -WRITER_CACHE_KIB)?;
    db.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    Ok(())
}

/// Lets the ledger's log grow before it is copied: an exchange that is admitted costs less then.
///
/// # Errors
/// What the database says.
pub(crate) fn gather(ledger: &Connection) -> Result<(), RegistryError> {
    ledger.pragma_update(None, "wal_autocheckpoint", LEDGER_CHECKPOINT_PAGES)?;
    Ok(())
}

/// Opens the database for reading beside the writer.
pub(crate) fn open_reader(path: &Path) -> Result<Connection, RegistryError> {
    let db = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    db.busy_timeout(std::time::Duration::from_secs(5))?;
    Ok(db)
}
