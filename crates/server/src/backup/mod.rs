//! Backups: a consistent copy of a data directory, made while it is in use, and what makes a data directory of it again.
//!
//! 1. this module: what is in a backup, and making one
//! 2. [`archive`]: the same in one file
//! 3. [`restore`]: from a backup to a data directory, whole or not at all

mod archive;
mod restore;

pub use restore::Restore;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use countersign_authority::folder;
use countersign_authority::keys::KEY_STORE_FILE;
use countersign_identity::Timestamp;
use countersign_registry::{Actor, DATABASES, RegistryFacts};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::failure::Failure;
use crate::service::Service;

/// The file that says what a backup is. It is written last: a folder without it is no backup.
pub(crate) const MANIFEST: &str = "manifest.json";
/// The layout that this version writes and reads.
const FORMAT: u32 = 1;
/// Of the data directory: certificates, and keys if they are wanted.
const FOLDERS: [&str; 2] = ["authorities", "server"];
const CONFIGURATION: &str = "countersign.toml";

/// What a backup is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The layout.
    pub format: u32,
    /// What wrote it.
    pub program: String,
    /// When.
    pub made: Timestamp,
    /// Whether private keys are in it.
    pub keys: bool,
    /// Where the registry stood.
    pub registry: RegistryFacts,
    /// Path, relative to the backup, to length and hash.
    pub files: BTreeMap<String, Entry>,
}

/// One file of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256, hex.
    pub sha256: String,
}

/// Whether private keys go into a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// No: they are kept elsewhere.
    LeaveOut,
    /// Yes: whoever reads the backup can issue in the platform's name.
    Include,
}

fn io<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Failure + 'a {
    move |e| {
        Failure::unavailable(
            format!("cannot {what} {}: {e}", path.display()),
            "look at its permissions and at the space on the disk",
        )
    }
}

/// Copies what a reader gives into a file that only its owner can read, and syncs it.
fn write_hashed(mut from: impl Read, to: &Path) -> std::io::Result<Entry> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)?;
    let mut hash = Context::new(&SHA256);
    let (mut bytes, mut buffer) = (0, vec![0; 64 * 1024]);
    loop {
        let n = from.read(&mut buffer)?;
        let Some(part) = buffer.get(..n).filter(|p| !p.is_empty()) else {
            break;
        };
        hash.update(part);
        file.write_all(part)?;
        bytes += n as u64;
    }
    file.sync_all()?;
    Ok(Entry {
        bytes,
        sha256: hex::encode(hash.finish()),
    })
}

/// Length and hash of a file.
fn hash_of(path: &Path) -> std::io::Result<Entry> {
    let mut file = File::open(path)?;
    let mut hash = Context::new(&SHA256);
    let (mut bytes, mut buffer) = (0, vec![0; 64 * 1024]);
    loop {
        let n = file.read(&mut buffer)?;
        let Some(part) = buffer.get(..n).filter(|p| !p.is_empty()) else {
            break;
        };
        hash.update(part);
        bytes += n as u64;
    }
    Ok(Entry {
        bytes,
        sha256: hex::encode(hash.finish()),
    })
}

/// A path out of a manifest or an archive: it may lead nowhere else.
fn inside(folder: &Path, path: &str) -> Result<PathBuf, Failure> {
    let relative = Path::new(path);
    let plain = relative.components().all(|c| matches!(c, Component::Normal(_)));
    if !plain || path.is_empty() || path.contains('\\') {
        return Err(Failure::invalid(format!(
            "the backup names the file {path:?}, which leads out of it; hint: it is not one of ours, do not use it"
        )));
    }
    Ok(folder.join(relative))
}

/// All files below a folder, relative to `base`, in order; nothing but files and folders.
fn files_below(base: &Path, folder: &str, found: &mut Vec<String>) -> std::io::Result<()> {
    let mut names: Vec<_> = match fs::read_dir(base.join(folder)) {
        Ok(entries) => entries.collect::<Result<_, _>>()?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    names.sort_by_key(fs::DirEntry::file_name);
    for entry in names {
        let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            files_below(base, &path, found)?;
        } else if kind.is_file() && !path.ends_with(".new") {
            // What ends in `.new` is being written just now.
            found.push(path);
        }
    }
    Ok(())
}

/// Syncs a folder and all folders below it: so that the names are on disk too.
fn sync_folders(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_folders(&entry.path())?;
        }
    }
    File::open(path)?.sync_all()
}

fn parent(path: &Path) -> &Path {
    path.parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Takes away what a backup that was cut off had made.
struct Staging(PathBuf);

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Service {
    /// Makes a backup while all goes on: a folder, or one file if the target ends in `.tar`. It is there whole, or not
    /// at all.
    ///
    /// # Errors
    /// [`Failure`], for one if the target exists: it is never overwritten.
    pub fn backup(&self, actor: Actor, target: &Path, keys: Keys) -> Result<Manifest, Failure> {
        let Some(_one_at_a_time) = self.backup_running.try_lock() else {
            return Err(Failure {
                status: 409,
                ..Failure::invalid("another backup is being made; hint: wait for it")
            });
        };
        if !target.is_absolute() {
            return Err(Failure::invalid("the path of a backup is absolute"));
        }
        if target.exists() {
            return Err(Failure::invalid(format!(
                "{} exists and is not overwritten; hint: choose another name",
                target.display()
            )));
        }
        let data = self.data().canonicalize().map_err(io("read", self.data()))?;
        let place = parent(target);
        let place = place.canonicalize().map_err(io("use the folder", place))?;
        if place.starts_with(&data) {
            return Err(Failure::invalid(format!(
                "{} is in the data directory itself; hint: keep backups on another disk",
                target.display()
            )));
        }
        let name = target
            .file_name()
            .ok_or_else(|| Failure::invalid("the backup needs a name"))?;
        let staging = place.join(format!(".{}.making", name.to_string_lossy()));
        if staging.exists() {
            fs::remove_dir_all(&staging).map_err(io("remove", &staging))?;
        }
        folder::create_private(&staging)?;
        let staging = Staging(staging);
        let detail = json!({ "target": target, "keys": keys == Keys::Include });
        let registry = self.registry().copy_to(&staging.0, actor, detail)?;
        let mut manifest = Manifest {
            format: FORMAT,
            program: format!("countersign {}", env!("CARGO_PKG_VERSION")),
            made: self.now(),
            keys: keys == Keys::Include,
            registry,
            files: BTreeMap::new(),
        };
        for name in DATABASES {
            let path = staging.0.join(name);
            let entry = hash_of(&path).map_err(io("read", &path))?;
            manifest.files.insert(name.to_owned(), entry);
        }
        // After the registry: an authority's files are there before it is registered.
        let mut files = vec![CONFIGURATION.to_owned()];
        for name in FOLDERS {
            files_below(&data, name, &mut files).map_err(io("read", &data.join(name)))?;
        }
        for path in files {
            let from = data.join(&path);
            // What is neither a certificate nor says where the key is, is taken for a key.
            let public = path == CONFIGURATION || path.ends_with(".crt") || path.ends_with(KEY_STORE_FILE);
            if !from.exists() || !(public || keys == Keys::Include) {
                continue;
            }
            let to = staging.0.join(&path);
            folder::create_private(parent(&to))?;
            let opened = File::open(&from).map_err(io("read", &from))?;
            let entry = write_hashed(opened, &to).map_err(io("write", &to))?;
            manifest.files.insert(path, entry);
        }
        let text = serde_json::to_string_pretty(&manifest).map_err(|e| Failure::internal(e.to_string()))?;
        folder::write_private(&staging.0.join(MANIFEST), text.as_bytes())?;
        sync_folders(&staging.0).map_err(io("sync", &staging.0))?;
        if target.extension().is_some_and(|e| e == "tar") {
            let file = staging.0.join(".tar");
            archive::pack(&staging.0, &manifest, &file).map_err(io("write", &file))?;
            // A link, unlike a rename, fails if somebody made the target meanwhile; not every file system has them.
            fs::hard_link(&file, target)
                .or_else(|e| match e.kind() {
                    std::io::ErrorKind::AlreadyExists => Err(e),
                    _ => fs::rename(&file, target),
                })
                .map_err(io("write", target))?;
        } else {
            fs::rename(&staging.0, target).map_err(io("write", target))?;
        }
        File::open(&place)
            .and_then(|f| f.sync_all())
            .map_err(io("sync", &place))?;
        tracing::info!(
            target = %target.display(),
            registry.revision = manifest.registry.revision,
            keys = manifest.keys,
            "backup made"
        );
        Ok(manifest)
    }
}
