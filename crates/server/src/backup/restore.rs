//! From a backup to a data directory. All of it is made beside the data directory and put in its place by one rename:
//! whoever is killed in between leaves nothing that could be taken for it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use countersign_authority::status::ShownList;
use countersign_authority::{KeyStore, folder};
use countersign_registry::{
    Actor, BackwardClock, LedgerLimits, Newer, NewerEnd, NewerPolicies, NewerRevocation, NewerState,
    Registry, RegistryFacts,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use super::{
    CONFIGURATION, Entry, FORMAT, MANIFEST, Manifest, archive, inside, io, parent, sync_folders, write_hashed,
};
use crate::failure::Failure;

/// What is restored, and what is known of the time after it.
#[derive(Debug, Clone)]
pub struct Restore {
    /// The backup: a folder, or a `.tar` file.
    pub backup: PathBuf,
    /// The data directory to be: empty, or not there.
    pub data: PathBuf,
    /// Revocation lists of ours, DER or PEM.
    pub lists: Vec<PathBuf>,
    /// The data directory that was lost, if it can be read still, or a later backup.
    pub compare: Option<PathBuf>,
    /// Whether what had ended since is ended here too.
    pub apply: bool,
    /// Whether a clock that is behind the backup is taken for right.
    pub clock: BackwardClock,
}

/// What a restore did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// The data directory.
    pub data: PathBuf,
    /// The new epoch.
    pub epoch: i64,
    /// Its first revision.
    pub first_revision: u64,
    /// One-time secrets that are good no longer: they may have been used since the backup.
    pub secrets_void: u64,
    /// Claims that were open and are revoked: whom they enrolled since the backup is not known. Each as `tenant/claim`.
    pub claims_revoked: Vec<String>,
    /// When the backup was made.
    pub made: countersign_identity::Timestamp,
    /// Where the registry stood in the backup.
    pub backup: RegistryFacts,
    /// Certificates that had ended since.
    pub revoked: Vec<NewerRevocation>,
    /// Devices that were kept out since.
    pub devices: Vec<NewerState>,
    /// Authorities that were retired or revoked since.
    pub authorities: Vec<NewerState>,
    /// Stations, claims and services that were revoked since, batches that were closed, permissions that were taken back.
    pub ends: Vec<NewerEnd>,
    /// Certificates that were issued since: they are not known here.
    pub issued: Vec<String>,
    /// Policies and topic spaces that were in force and are not now: told, never put into force by a restore. Their texts are
    /// in the data directory, in `newer-policies`.
    pub policies: Vec<NewerPolicies>,
    /// Whether these have ended, and are kept out, here too; but for policies.
    pub applied: bool,
    /// Whether anything was shown that tells of the time after the backup.
    pub compared: bool,
    /// Private keys that the backup does not have, relative to the data directory.
    pub missing_keys: Vec<String>,
}

/// What is being made; dropped, it is taken away.
struct Staging {
    path: PathBuf,
    _lock: File,
}

/// Folder of policies that were in force after the backup.
const NEWER_POLICIES: &str = "newer-policies";

/// Held while a restore runs, so that what is left of one that was killed can be told from one that runs.
const LOCK: &str = ".restoring";

impl Staging {
    fn new(data: &Path) -> Result<Self, Failure> {
        let mut name = data.as_os_str().to_owned();
        name.push(".restoring");
        let path = PathBuf::from(name);
        let lock = path.join(LOCK);
        if let Ok(file) = File::open(&lock)
            && matches!(file.try_lock(), Err(TryLockError::WouldBlock))
        {
            return Err(Failure::unavailable(
                format!("another restore to {} is running", data.display()),
                "wait for it",
            ));
        }
        if path.exists() {
            fs::remove_dir_all(&path).map_err(io("remove", &path))?;
        }
        folder::create_private(&path)?;
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&lock)
            .and_then(|f| f.lock().map(|()| f))
            .map_err(io("lock", &lock))?;
        Ok(Self { path, _lock: file })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl Restore {
    /// Restores.
    ///
    /// # Errors
    /// [`Failure`]; then there is no data directory.
    pub fn run(&self) -> Result<Restored, Failure> {
        need_empty(&self.data)?;
        folder::create_private(parent(&self.data))?;
        let staging = Staging::new(&self.data)?;
        let manifest = self.fetch(&staging.path)?;
        let actor = Actor("countersign restore".into());
        let registry = Registry::open(&staging.path, LedgerLimits::default())?;
        check_registry(&registry, &manifest)?;
        let newer = self.newer(&registry, &staging.path)?;
        let new = registry
            .begin_epoch(
                actor.clone(),
                manifest.registry.clone(),
                manifest.made,
                self.clock,
            )?
            .value;
        let applied = if self.apply {
            newer.clone()
        } else {
            // A list's number never goes back, whatever is on the list.
            Newer {
                list_numbers: newer.list_numbers.clone(),
                ..Newer::default()
            }
        };
        registry.apply_newer(actor, applied)?;
        let epoch = registry.epoch()?.epoch;
        drop(registry);
        countersign_registry::backup::settle(&staging.path)?;
        for name in ["lock", LOCK] {
            let _ = fs::remove_file(staging.path.join(name));
        }
        keep_policies(&newer.policies, &staging.path)?;
        sync_folders(&staging.path).map_err(io("sync", &staging.path))?;
        let missing_keys = missing_keys(&staging.path).map_err(io("read", &staging.path))?;
        fs::rename(&staging.path, &self.data).map_err(|e| {
            Failure::unavailable(
                format!("cannot put {} in its place: {e}", self.data.display()),
                "if something was put there meanwhile, choose another",
            )
        })?;
        let place = parent(&self.data);
        File::open(place)
            .and_then(|f| f.sync_all())
            .map_err(io("sync", place))?;
        Ok(Restored {
            data: self.data.clone(),
            epoch,
            first_revision: new.first_revision,
            secrets_void: new.secrets_void,
            claims_revoked: new.claims_revoked,
            made: manifest.made,
            backup: manifest.registry,
            revoked: newer.revoked,
            devices: newer.devices,
            authorities: newer.authorities,
            ends: newer.ends,
            issued: newer.issued,
            policies: newer.policies,
            applied: self.apply,
            compared: self.compare.is_some() || !self.lists.is_empty(),
            missing_keys,
        })
    }

    /// Brings the backup's files to `to`, each as the manifest says.
    fn fetch(&self, to: &Path) -> Result<Manifest, Failure> {
        let read = |path: &Path| -> Result<Manifest, Failure> {
            let no_backup = |e: &dyn std::fmt::Display| {
                Failure::invalid(format!(
                    "{} is no backup: {e}; hint: give the folder or the .tar file that countersign backup made",
                    self.backup.display()
                ))
            };
            let text = fs::read(path).map_err(|e| no_backup(&format!("{MANIFEST}: {e}")))?;
            let manifest: Manifest =
                serde_json::from_slice(&text).map_err(|e| no_backup(&format!("{MANIFEST}: {e}")))?;
            if manifest.format != FORMAT {
                return Err(Failure::invalid(format!(
                    "the backup has layout {}, this version reads {FORMAT}; hint: use the version that made it ({})",
                    manifest.format, manifest.program
                )));
            }
            Ok(manifest)
        };
        let (manifest, found) = if self.backup.is_dir() {
            let manifest = read(&self.backup.join(MANIFEST))?;
            let mut found = BTreeMap::new();
            for path in manifest.files.keys() {
                let (from, to) = (inside(&self.backup, path)?, inside(to, path)?);
                folder::create_private(parent(&to))?;
                let Ok(file) = File::open(&from) else { continue };
                found.insert(path.clone(), write_hashed(file, &to).map_err(io("copy", &from))?);
            }
            (manifest, found)
        } else {
            let mut found = archive::unpack(&self.backup, to)?;
            found.remove(MANIFEST);
            let own = to.join(MANIFEST);
            let manifest = read(&own)?;
            fs::remove_file(&own).map_err(io("remove", &own))?;
            (manifest, found)
        };
        compare_files(&manifest.files, &found)?;
        Ok(manifest)
    }

    /// What the lists and the lost data directory tell.
    fn newer(&self, registry: &Registry, staging: &Path) -> Result<Newer, Failure> {
        let mut newer = Newer::default();
        if let Some(old) = &self.compare {
            newer.merge(newer_in_folder(registry, old, &staging.join(".compare"))?);
        }
        for path in &self.lists {
            newer.merge(newer_in_list(registry, path)?);
        }
        Ok(newer)
    }
}

/// Writes the texts of policies that were in force, so that they can be set again.
fn keep_policies(newer: &[NewerPolicies], data: &Path) -> Result<(), Failure> {
    if newer.is_empty() {
        return Ok(());
    }
    folder::create_private(&data.join(NEWER_POLICIES))?;
    for version in newer {
        let [text, spaces] = version_files(data, version);
        for (path, content) in [(text, &version.policies), (spaces, &version.spaces)] {
            fs::write(&path, content).map_err(io("write", &path))?;
        }
    }
    Ok(())
}

/// Text and topic spaces of a version that was in force. Ids of tenants are names of files too.
fn version_files(data: &Path, version: &NewerPolicies) -> [PathBuf; 2] {
    let folder = data.join(NEWER_POLICIES);
    let name = format!("{}-{}", version.tenant, version.is);
    ["cedar", "spaces.json"].map(|kind| folder.join(format!("{name}.{kind}")))
}

fn need_empty(data: &Path) -> Result<(), Failure> {
    let is_empty = match fs::read_dir(data) {
        Ok(mut entries) => entries.next().is_none(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => true,
        Err(e) => return Err(io("read", data)(e)),
    };
    let device = |path: &Path| {
        fs::metadata(path)
            .ok()
            .map(|m| std::os::unix::fs::MetadataExt::dev(&m))
    };
    if device(data).is_some_and(|d| Some(d) != device(parent(data))) {
        return Err(Failure::invalid(format!(
            "{} is a mount point, and the data directory is put in its place by a rename; hint: restore to a folder below it (--data {})",
            data.display(),
            data.join("data").display()
        )));
    }
    if is_empty {
        return Ok(());
    }
    Err(Failure::invalid(format!(
        "{} is not empty, and nothing is overwritten; hint: restore to a new folder (--data), with --compare {} if that is what was lost",
        data.display(),
        data.display()
    )))
}

fn compare_files(expected: &BTreeMap<String, Entry>, found: &BTreeMap<String, Entry>) -> Result<(), Failure> {
    for (path, entry) in expected {
        let what = match found.get(path) {
            None => "is missing".to_owned(),
            Some(f) if f.bytes != entry.bytes => format!("has {} bytes, not {}", f.bytes, entry.bytes),
            Some(f) if f.sha256 != entry.sha256 => "was changed: its hash is not the manifest's".to_owned(),
            Some(_) => continue,
        };
        return Err(Failure::invalid(format!(
            "the backup is damaged: {path} {what}; hint: use another backup"
        )));
    }
    match found.keys().find(|path| !expected.contains_key(*path)) {
        Some(path) => Err(Failure::invalid(format!(
            "the backup holds {path:?}, of which its manifest knows nothing; hint: use another backup"
        ))),
        None => Ok(()),
    }
}

/// The hashes hold; here it is whether they are of the registry that the manifest tells of.
fn check_registry(registry: &Registry, manifest: &Manifest) -> Result<(), Failure> {
    let damaged =
        |what: &str| Failure::invalid(format!("the backup is damaged: {what}; hint: use another backup"));
    if let Err(fault) = registry.verify_audit()? {
        return Err(damaged(&fault.to_string()));
    }
    // The schema may have been brought up to date.
    let found = RegistryFacts {
        schema: manifest.registry.schema,
        ..registry.registry_facts()?
    };
    if found != manifest.registry {
        return Err(damaged("registry.db is not the one that the manifest tells of"));
    }
    Ok(())
}

/// Never writes to the folder it reads.
fn newer_in_folder(registry: &Registry, old: &Path, copy: &Path) -> Result<Newer, Failure> {
    let file = old.join("registry.db");
    if !file.exists() {
        return Err(Failure::not_found(
            format!("{} holds no registry to compare with", old.display()),
            "give the data directory that was lost, or a later backup (a folder)",
        ));
    }
    // Held, so that no server starts on it meanwhile.
    let lock = File::open(old.join("lock")).ok();
    if let Some(lock) = &lock
        && matches!(lock.try_lock(), Err(TryLockError::WouldBlock))
    {
        return Err(Failure::unavailable(
            format!("a server is running on {}", old.display()),
            "stop it, or make a backup of it and compare with that",
        ));
    }
    folder::create_private(copy)?;
    let copied = copy.join("registry.db");
    for suffix in ["", "-wal"] {
        let mut from = file.clone().into_os_string();
        from.push(suffix);
        let mut to = copied.clone().into_os_string();
        to.push(suffix);
        let from = PathBuf::from(from);
        if from.exists() {
            fs::copy(&from, &to).map_err(io("read", &from))?;
        }
    }
    let newer = registry.newer_in_registry(&copied)?;
    fs::remove_dir_all(copy).map_err(io("remove", copy))?;
    Ok(newer)
}

fn newer_in_list(registry: &Registry, path: &Path) -> Result<Newer, Failure> {
    let wrong = |what: &str| {
        Failure::invalid(format!(
            "{}: {what}; hint: give a revocation list that this platform issued",
            path.display()
        ))
    };
    let bytes = fs::read(path).map_err(io("read", path))?;
    let der = if bytes.starts_with(b"-----") {
        rustls::pki_types::CertificateRevocationListDer::from_pem_slice(&bytes)
            .map_err(|e| wrong(&e.to_string()))?
            .to_vec()
    } else {
        bytes
    };
    let list = ShownList::parse(&der).map_err(|e| wrong(&format!("it is no revocation list: {e}")))?;
    for view in registry.authorities()? {
        let certificate = CertificateDer::from(registry.authority_certificate(&view.id)?);
        if list.is_signed_by(&certificate) {
            return Ok(registry.newer_in_list(&view.id, list.number, &list.entries)?);
        }
    }
    Err(wrong("no authority of this backup issued it"))
}

/// Issuing CAs whose key belongs beside their certificate, and is not there.
fn missing_keys(data: &Path) -> std::io::Result<Vec<String>> {
    let mut files = Vec::new();
    super::files_below(data, "authorities", &mut files)?;
    Ok(files
        .iter()
        .filter_map(|path| path.strip_suffix("issuing.crt"))
        // In a token, or with another process, it stayed where it was.
        .filter(|folder| match KeyStore::of(&data.join(folder)) {
            Ok(store) => matches!(store, KeyStore::File | KeyStore::Encrypted { .. }),
            Err(_) => true,
        })
        .map(|folder| format!("{folder}issuing.key"))
        .filter(|key| !files.contains(key))
        .collect())
}

impl Restored {
    /// In words, for people.
    pub fn words(&self) -> String {
        let mut text = format!(
            "{} is restored from the backup of {}: {} devices, {} certificates, revision {}\nepoch {}, its revisions begin at {}",
            self.data.display(),
            self.made,
            self.backup.devices,
            self.backup.credentials,
            self.backup.revision,
            self.epoch,
            self.first_revision
        );
        let done = if self.applied {
            "so they are here too"
        } else {
            "they are NOT so here, as asked"
        };
        if !self.compared {
            text.push_str("\nwhat was revoked or suspended after the backup is not known: revocation lists (--crl) or the lost data directory (--compare) would tell");
        }
        if !self.revoked.is_empty() {
            text.push_str(&format!(
                "\n{} certificate(s) had ended since; {done}:",
                self.revoked.len()
            ));
        }
        for r in &self.revoked {
            text.push_str(&format!(
                "\n  {}  {}  {}  {}",
                r.serial,
                r.state,
                r.at,
                r.device.as_deref().unwrap_or("(issued after the backup)")
            ));
        }
        for (what, list) in [
            ("device(s) were kept out", &self.devices),
            ("authority(ies) were retired or revoked", &self.authorities),
        ] {
            if !list.is_empty() {
                text.push_str(&format!("\n{} {what} since; {done}:", list.len()));
            }
            for s in list {
                let was = match s.was.as_deref() {
                    None => "not in the backup",
                    Some(was) if was == s.is => "the same, with another end",
                    Some(was) => was,
                };
                text.push_str(&format!("\n  {}/{}  {}", s.tenant, s.id, s.is));
                if let Some(end) = s.quarantined_until.or(s.suspended_until) {
                    text.push_str(&format!(" until {end}"));
                }
                text.push_str(&format!(" (was: {was})"));
            }
        }
        if !self.ends.is_empty() {
            text.push_str(&format!(
                "\n{} station(s), claim(s), batch(es), service(s) or permission(s) had ended since; {done}:",
                self.ends.len()
            ));
        }
        for e in &self.ends {
            let slash = if e.tenant.is_empty() { "" } else { "/" };
            text.push_str(&format!("\n  {} {}{slash}{}", e.kind, e.tenant, e.id));
        }
        for p in &self.policies {
            let [file, spaces] = version_files(&self.data, p);
            text.push_str(&format!(
                "\nATTENTION: policy version {} of tenant {} decides now, as in the backup; version {} was in force since {}, by {}: {} (sha256 {}). If it is to decide again:\n  countersign policy set {} --spaces {} --tenant {} --reason \"as before the restore\"",
                p.was, p.tenant, p.is, p.at, p.actor, p.reason, p.sha256, file.display(), spaces.display(), p.tenant
            ));
        }
        if !self.issued.is_empty() {
            text.push_str(&format!(
                "\n{} certificate(s) were issued since and are not known here, their devices must enrol anew:",
                self.issued.len()
            ));
        }
        for issued in &self.issued {
            text.push_str(&format!("\n  {issued}"));
        }
        if self.secrets_void > 0 {
            text.push_str(&format!(
                "\n{} one-time secret(s) that nobody had used yet are void, they may have been used since: countersign device secret makes new ones",
                self.secrets_void
            ));
        }
        if !self.claims_revoked.is_empty() {
            text.push_str(&format!(
                "\n{} claim(s) that were open are revoked, they may have enrolled devices since: countersign factory claim add makes new ones, for those that are to come:",
                self.claims_revoked.len()
            ));
        }
        for claim in &self.claims_revoked {
            text.push_str(&format!("\n  {claim}"));
        }
        if !self.missing_keys.is_empty() {
            text.push_str("\nthe backup has no keys; put these back before the server is started:");
        }
        for key in &self.missing_keys {
            text.push_str(&format!("\n  {}", self.data.join(key).display()));
        }
        if !self.data.join(CONFIGURATION).exists() {
            text.push_str("\nthe backup has no configuration: it is made of the defaults");
        }
        text.push_str(&format!(
            "\nnext: countersign serve --data {}",
            self.data.display()
        ));
        text
    }
}
