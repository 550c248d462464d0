//! The end of a device in its folder: the statement that its key is destroyed, and the destruction.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use countersign_factory::destruction::Statement;
use zeroize::Zeroizing;

use super::{
    CERTIFICATE, CURRENT, IdentityFolder, KEY, Outcome, SLOTS, STATEMENT, damaged, read, unusable, unwritable,
};
use crate::identity::IdentityFault;
use crate::keys::{self, DeviceKey};

impl IdentityFolder {
    /// The statement that the key is destroyed, if it was made.
    ///
    /// # Errors
    /// [`IdentityFault`] if it cannot be read.
    pub(crate) fn statement(&self) -> Outcome<Option<Statement>> {
        let path = self.path.join(STATEMENT);
        if !path.exists() {
            return Ok(None);
        }
        serde_json::from_slice(&read(&path)?)
            .map(Some)
            .map_err(|e| damaged(&path, e.to_string()))
    }

    /// Keeps it.
    ///
    /// # Errors
    /// [`IdentityFault`].
    pub(crate) fn keep_statement(&self, statement: &Statement) -> Outcome<()> {
        let path = self.path.join(STATEMENT);
        let text = serde_json::to_string_pretty(statement).map_err(|e| damaged(&path, e.to_string()))?;
        self.replace(&path, format!("{text}\n").as_bytes())
    }

    /// Destroys every key of the folder, and removes the certificates after that: what is left identifies nobody.
    ///
    /// # Errors
    /// [`IdentityFault`] if a key cannot be destroyed; those that are left can be tried again.
    pub(crate) fn destroy_keys(&self) -> Outcome<()> {
        let _alone = self.alone()?;
        let mut folders = vec![self.path.clone()];
        folders.extend(self.entries(&self.path.join(SLOTS))?);
        let store = self.profile()?.key_store;
        for folder in &folders {
            let path = folder.join(KEY);
            // Whoever may read it, it goes.
            let text = match fs::read(&path) {
                Ok(text) => Zeroizing::new(text),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    self.remove(&path)?;
                    continue;
                }
                Err(source) => return Err(IdentityFault::Unreadable { path, source }),
            };
            // Under a passphrase it need not be opened to be gone.
            if !keys::is_encrypted(&text) {
                let key = DeviceKey::read(&text, &store).map_err(unusable(&path))?;
                if !key.end().map_err(unusable(&path))? {
                    return Err(self.of_others(&path, &key));
                }
            }
            // Of a link, what it leads to is one of the other folders.
            self.remove(&path)?;
            self.sync(folder)?;
        }
        // What a power cut left half written may be a key too.
        for name in [KEY, CERTIFICATE] {
            self.remove(&self.path.join(name).with_added_extension("new"))?;
            self.remove(&self.path.join(name))?;
        }
        for slot in &folders[1..] {
            for file in self.entries(slot)? {
                self.remove(&file)?;
            }
            self.sync(slot)?;
            self.disk.remove_folder(slot).map_err(unwritable(slot))?;
            self.sync(&self.path.join(SLOTS))?;
        }
        self.remove(&self.path.join(CURRENT))?;
        self.sync(&self.path)
    }

    /// A key that is not this agent's to destroy.
    pub(crate) fn of_others(&self, path: &Path, key: &DeviceKey) -> IdentityFault {
        damaged(
            path,
            format!(
                "its key, {}, was not made by this agent; hint: destroy it by the token's own tools, remove this file, and countersign device decommission there",
                key.place()
            ),
        )
    }

    /// Where the key file in use is.
    pub(crate) fn key_path(&self) -> PathBuf {
        self.in_use(KEY)
    }

    /// What is in a folder; nothing, if there is none.
    fn entries(&self, folder: &Path) -> Outcome<Vec<PathBuf>> {
        let unreadable = |source| IdentityFault::Unreadable {
            path: folder.to_owned(),
            source,
        };
        match fs::read_dir(folder) {
            Ok(entries) => entries
                .map(|entry| entry.map(|e| e.path()).map_err(unreadable))
                .collect(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(unreadable(e)),
        }
    }

    /// Removes a file, durably once its folder is synced; one that is not there is no matter.
    fn remove(&self, path: &Path) -> Outcome<()> {
        match self.disk.remove(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(unwritable(path)(e)),
            _ => Ok(()),
        }
    }
}
