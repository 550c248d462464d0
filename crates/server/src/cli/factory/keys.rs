//! Keys that were made here and whose certificates are not on disk yet: one file, `.work/keys`, a line for each. A file for
//! each key would be made and removed as often as there are devices, which file systems take their time for.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign_authority::folder;
use countersign_factory::SoftwareKey;
use countersign_identity::DeviceId;
use zeroize::Zeroizing;

use super::index::Index;
use crate::failure::Failure;

/// The file, open for appending.
pub struct WorkKeys {
    path: PathBuf,
    file: File,
    /// PKCS#8 by device.
    kept: BTreeMap<DeviceId, Zeroizing<Vec<u8>>>,
    /// Lines that are not written yet.
    unwritten: Zeroizing<String>,
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> Failure + '_ {
    move |e| {
        Failure::unavailable(
            format!("cannot write {}: {e}", path.display()),
            "see to the disk, then repeat the command: what is there is not made again",
        )
    }
}

/// One line, with its end: a device and its key.
fn read_line(line: &str) -> Option<(DeviceId, Zeroizing<Vec<u8>>)> {
    let (id, key) = line.strip_suffix('\n')?.split_once(' ')?;
    let key = Zeroizing::new(STANDARD.decode(key).ok()?);
    Some((DeviceId::new(id).ok()?, key))
}

fn line(id: &DeviceId, key: &[u8]) -> Zeroizing<String> {
    let key = Zeroizing::new(STANDARD.encode(key));
    Zeroizing::new(format!("{id} {}\n", key.as_str()))
}

impl WorkKeys {
    /// Opens or makes it. Keys of devices that are done are forgotten; so is a last line that a power cut took the end of, for
    /// nothing was asked for with its key.
    ///
    /// # Errors
    /// [`Failure`] if it is readable by others, not ours, or cannot be written.
    pub fn open(work: &Path, done: &Index) -> Result<Self, Failure> {
        let path = work.join("keys");
        let mut kept = BTreeMap::new();
        if path.exists() {
            let bytes = Zeroizing::new(folder::read_private(&path)?);
            let text = Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned());
            let lines: Vec<&str> = text.split_inclusive('\n').collect();
            for (n, text) in lines.iter().enumerate() {
                match read_line(text) {
                    Some((id, key)) => {
                        kept.insert(id, key);
                    }
                    None if n + 1 == lines.len() => {}
                    None => {
                        return Err(Failure::invalid(format!(
                            "line {} of {} is no key: it is not overwritten and cannot be used; hint: move the file away; if certificates were issued for its keys, repeat with --replace",
                            n + 1,
                            path.display()
                        )));
                    }
                }
            }
        }
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed(&path))?;
        let mut keys = Self {
            path,
            file,
            kept,
            unwritten: Zeroizing::default(),
        };
        keys.forget(done)?;
        Ok(keys)
    }

    /// The key of a device: the one that is there, or a new one, which [`WorkKeys::sync`] has to keep.
    ///
    /// # Errors
    /// [`Failure`] if the one that is there is none.
    pub fn of(&mut self, id: &DeviceId) -> Result<SoftwareKey, Failure> {
        if let Some(key) = self.kept.get(id) {
            return SoftwareKey::from_pkcs8(key).map_err(|e| {
                Failure::invalid(format!(
                    "the key of {id} in {} is not overwritten and cannot be used: {e}; hint: move the file away; if a certificate was issued for it, repeat with --replace",
                    self.path.display()
                ))
            });
        }
        let key = SoftwareKey::generate().map_err(|e| Failure::internal(e.to_string()))?;
        self.unwritten.push_str(&line(id, key.to_pkcs8()));
        self.kept
            .insert(id.clone(), Zeroizing::new(key.to_pkcs8().to_vec()));
        Ok(key)
    }

    /// All keys are on disk.
    ///
    /// # Errors
    /// [`Failure`] if they cannot be written.
    pub fn sync(&mut self) -> Result<(), Failure> {
        let unwritten = std::mem::take(&mut self.unwritten);
        if unwritten.is_empty() {
            return Ok(());
        }
        self.file
            .write_all(unwritten.as_bytes())
            .and_then(|()| self.file.sync_data())
            .map_err(failed(&self.path))
    }

    /// Forgets the keys of devices that are done; those of others, which were refused, stay.
    ///
    /// # Errors
    /// [`Failure`] if it cannot be written.
    pub fn forget(&mut self, done: &Index) -> Result<(), Failure> {
        self.kept.retain(|id, _| !done.has(id));
        if self.kept.is_empty() {
            return self.file.set_len(0).map_err(failed(&self.path));
        }
        let mut text = Zeroizing::new(String::new());
        for (id, key) in &self.kept {
            text.push_str(&line(id, key));
        }
        folder::write_private(&self.path, text.as_bytes())?;
        self.file = OpenOptions::new()
            .append(true)
            .open(&self.path)
            .map_err(failed(&self.path))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> DeviceId {
        DeviceId::new(text).unwrap()
    }

    /// Wherever it was cut off, what was whole is there again and the rest is made anew.
    #[test]
    fn a_key_that_was_written_is_the_same_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut index = Index::open(folder.path()).unwrap();
        let mut keys = WorkKeys::open(folder.path(), &index).unwrap();
        let made: Vec<Vec<u8>> = ["a", "b"]
            .map(|name| keys.of(&id(name)).unwrap().to_pkcs8().to_vec())
            .to_vec();
        keys.sync().unwrap();
        drop(keys);
        let path = folder.path().join("keys");
        let whole = std::fs::read(&path).unwrap();
        let first = whole.iter().position(|b| *b == b'\n').unwrap() + 1;
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let mut keys = WorkKeys::open(folder.path(), &index).unwrap();
            for (n, name) in ["a", "b"].into_iter().enumerate() {
                let is_whole = cut >= if n == 0 { first } else { whole.len() };
                let key = keys.of(&id(name)).unwrap();
                assert_eq!(key.to_pkcs8() == made[n], is_whole, "{cut} {name}");
            }
            keys.sync().unwrap();
            assert_eq!(
                WorkKeys::open(folder.path(), &index).unwrap().kept.len(),
                2,
                "{cut}"
            );
        }
        // Done: forgotten. The other stays.
        let row = ["a", "01", "ff", "t", "ca", "f"].map(str::to_owned);
        index.append(folder.path(), &[row]).unwrap();
        let mut keys = WorkKeys::open(folder.path(), &index).unwrap();
        assert_eq!(keys.kept.keys().collect::<Vec<_>>(), [&id("b")]);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains("a ") && text.starts_with("b "), "{}", text.len());
        // What was appended after that is there too.
        keys.of(&id("c")).unwrap();
        keys.sync().unwrap();
        assert_eq!(WorkKeys::open(folder.path(), &index).unwrap().kept.len(), 2);
        // A line amid the file that is none is not passed over: it may be a key that was asked for.
        std::fs::write(&path, "a !!!\nb YQ==\n").unwrap();
        assert!(WorkKeys::open(folder.path(), &index).is_err());
    }
}
