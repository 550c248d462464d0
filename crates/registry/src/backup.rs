//! Copies of the databases while they are in use.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use countersign_identity::Timestamp;
use rusqlite::backup::Backup;
use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::change::{Actor, newest_revision};
use crate::error::RegistryError;
use crate::migrate;
use crate::store::Registry;

/// The databases of a data directory, in the order in which they are copied: what the ledger tells of was known to the
/// registry by then.
pub const DATABASES: [&str; 2] = ["ledger.db", "registry.db"];

/// Where a registry stands: what a backup's manifest says of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryFacts {
    /// The schema of `registry.db`.
    pub schema: i64,
    /// The epoch: 1, and one more with each restore.
    pub epoch: i64,
    /// The newest revision.
    pub revision: u64,
    /// How many audit entries there are.
    pub audit_entries: i64,
    /// The hash of the newest one, hex; it covers all before it. Empty if there is none.
    pub audit_head: String,
    /// The newest time that is known to have been.
    pub high_water: Timestamp,
    /// How many devices there are.
    pub devices: u64,
    /// How many credentials there are.
    pub credentials: u64,
}

/// An epoch of a registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochView {
    /// Counts from 1.
    pub epoch: i64,
    /// When it began.
    pub started: Timestamp,
    /// Its first revision.
    pub first_revision: u64,
    /// What was restored, from the backup's manifest; `None` for the first epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restored_from: Option<serde_json::Value>,
}

pub(crate) fn facts(db: &Connection) -> Result<RegistryFacts, RegistryError> {
    let count = |sql: &str| -> Result<u64, RegistryError> {
        Ok(db.query_row(sql, [], |r| r.get::<_, i64>(0))?.cast_unsigned())
    };
    let head: Option<(i64, Vec<u8>)> = db
        .query_row("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1", [], |r| {
            Ok((r.get(0)?, r.get(1)?))
        })
        .optional()?;
    let (audit_entries, audit_head) = head.map_or((0, String::new()), |(n, hash)| (n, hex::encode(hash)));
    Ok(RegistryFacts {
        schema: db.query_row("PRAGMA user_version", [], |r| r.get(0))?,
        epoch: db.query_row("SELECT max(epoch) FROM epochs", [], |r| r.get(0))?,
        revision: newest_revision(db)?,
        audit_entries,
        audit_head,
        high_water: Timestamp::from_unix_ms(db.query_row("SELECT high_water FROM clock", [], |r| r.get(0))?),
        devices: count("SELECT count(*) FROM devices")?,
        credentials: count("SELECT count(*) FROM credentials")?,
    })
}

/// Copies one database as of one moment, beside its writer, which is not held up (WAL), and syncs the copy.
fn copy(from: &Path, to: &Path) -> Result<(), RegistryError> {
    let source = migrate::open_reader(from)?;
    let mut target = Connection::open(to)?;
    // All pages in one step: in several, each change in between would start it anew.
    Backup::new(&source, &mut target)?.run_to_completion(i32::MAX, Duration::from_millis(20), None)?;
    // A file by itself, without a log beside it.
    target.pragma_update(None, "journal_mode", "DELETE")?;
    target.close().map_err(|(_, e)| e)?;
    let failed = |source| RegistryError::File {
        what: "sync",
        path: to.to_owned(),
        source,
    };
    let file = File::open(to).map_err(failed)?;
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))
        .and_then(|()| file.sync_all())
        .map_err(failed)
}

/// Writes the logs of a data directory that nobody has open back into its databases, so that these stand by themselves.
///
/// # Errors
/// [`RegistryError`] if one cannot be written.
pub fn settle(folder: &Path) -> Result<(), RegistryError> {
    for name in DATABASES {
        let db = Connection::open(folder.join(name))?;
        // The last one that closes, and may write, takes the log away.
        db.pragma_update(None, "synchronous", "FULL")?;
        db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        db.close().map_err(|(_, e)| e)?;
    }
    Ok(())
}

impl Registry {
    /// Where the registry stands.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn registry_facts(&self) -> Result<RegistryFacts, RegistryError> {
        self.read(facts)
    }

    /// The newest revision.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn revision(&self) -> Result<u64, RegistryError> {
        self.read(newest_revision)
    }

    /// The epoch that is now.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn epoch(&self) -> Result<EpochView, RegistryError> {
        self.read(|db| {
            let (epoch, started, first, from): (i64, i64, i64, Option<String>) = db.query_row(
                "SELECT epoch, started, first_revision, restored_from FROM epochs ORDER BY epoch DESC LIMIT 1",
                [],
                |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?)),
            )?;
            Ok(EpochView {
                epoch,
                started: Timestamp::from_unix_ms(started),
                first_revision: first.cast_unsigned(),
                restored_from: from.and_then(|text| serde_json::from_str(&text).ok()),
            })
        })
    }

    /// Copies both databases into a folder that has neither, each as of one moment, while the registry goes on. What is
    /// audited before the copy is in it: `detail` says where the backup goes.
    ///
    /// # Errors
    /// [`RegistryError`]; then the folder may hold parts.
    pub fn copy_to(
        &self,
        folder: &Path,
        actor: Actor,
        detail: serde_json::Value,
    ) -> Result<RegistryFacts, RegistryError> {
        self.write(move |scope| {
            scope.keep_time()?;
            scope.audit(&actor, "registry.backup", "", "", &json!(detail))
        })?;
        self.ledger().flush();
        for name in DATABASES {
            copy(&self.path().join(name), &folder.join(name))?;
        }
        // Read from the copy: it may know more than there was when the copy began.
        let copied = folder.join("registry.db");
        facts(&migrate::open_reader(&copied)?)
    }
}
