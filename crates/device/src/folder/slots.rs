//! What becomes of slots, and of the keys in them: made, filled, and removed with what they hold.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use countersign_identity::signed::Signer;
use zeroize::Zeroizing;

use super::{
    CERTIFICATE, CURRENT, IdentityFolder, KEY, Outcome, SLOTS, read, read_private, signer, unusable,
    unwritable,
};
use crate::keys::{self, DeviceKey, KeyStore};

impl IdentityFolder {
    /// Turns plain files into a slot with links to it. The content never changes, so any cut leaves the same identity.
    pub(super) fn use_slots(&self) -> Outcome<()> {
        if self.current().is_some() {
            return Ok(());
        }
        let (key, certificate) = (self.path.join(KEY), self.path.join(CERTIFICATE));
        let (key_text, certificate_text) = (read_private(&key)?, read(&certificate)?);
        let holds_them = |number: u64| {
            let slot = self.slot(number);
            read(&slot.join(CERTIFICATE)).is_ok_and(|t| t == certificate_text)
                && read_private(&slot.join(KEY)).is_ok_and(|t| *t == *key_text)
        };
        let pointed = self.pointed();
        if !pointed.is_some_and(holds_them) {
            // Somebody put other files there since: beyond the slot in use, and the one that may be pending.
            let number = pointed.map_or(0, |n| n + 2);
            let slot = self.slot(number);
            self.make_folder(&slot)?;
            self.replace(&slot.join(KEY), &key_text)?;
            self.replace(&slot.join(CERTIFICATE), &certificate_text)?;
            self.sync(&self.path.join(SLOTS))?;
            self.sync(&self.path)?;
            self.point(
                &self.path.join(CURRENT),
                &Path::new(SLOTS).join(number.to_string()),
            )?;
        }
        self.point(&key, &Path::new(CURRENT).join(KEY))?;
        self.point(&certificate, &Path::new(CURRENT).join(CERTIFICATE))
    }

    /// Removes the slots before the one in use.
    pub(super) fn clear_old(&self) -> Outcome<()> {
        let current = self.pointed().unwrap_or(0);
        let Ok(entries) = fs::read_dir(self.path.join(SLOTS)) else {
            return Ok(());
        };
        let numbers = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u64>().ok());
        for number in numbers.filter(|n| *n < current) {
            self.remove_slot(number)?;
        }
        Ok(())
    }

    pub(super) fn remove_slot(&self, number: u64) -> Outcome<()> {
        let slot = self.slot(number);
        let Ok(entries) = fs::read_dir(&slot) else {
            return Ok(());
        };
        // The certificate goes first: a slot with a key alone is one that was begun.
        let mut files: Vec<_> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
        files.sort();
        for file in files {
            if file.file_name().is_some_and(|n| n == KEY) {
                self.destroy_key(&slot);
            }
            match self.disk.remove(&file) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(unwritable(&file)(e)),
                _ => {}
            }
        }
        self.disk.remove_folder(&slot).map_err(unwritable(&slot))?;
        self.sync(&self.path.join(SLOTS))
    }

    /// The key of a key file; if there is none, `old` or a new one is put there first.
    pub(super) fn key_at(
        &self,
        path: &Path,
        old: Option<Zeroizing<Vec<u8>>>,
        (store, slot): (&KeyStore, Option<u64>),
    ) -> Outcome<Arc<dyn Signer>> {
        if !path.exists() {
            let text = match old {
                Some(text) => text,
                None => store.make(slot).map_err(unusable(path))?,
            };
            self.replace(path, &text)?;
        }
        signer(path, store)
    }

    /// Destroys the key that a slot's key file speaks of, if it is elsewhere and the one in use is another. Where it
    /// cannot be, it stays: its certificate is superseded, and no file names it any more.
    fn destroy_key(&self, slot: &Path) {
        // One under a passphrase is in software, and no other's: that is all that counts here.
        let key_of = |path: &Path| {
            let text = read_private(path).ok()?;
            match DeviceKey::read(&text, &KeyStore::File) {
                Ok(key) => Some(Some(key)),
                Err(_) if keys::is_encrypted(&text) => Some(None),
                Err(_) => None,
            }
        };
        // If it cannot be told which one is in use, none is destroyed.
        let (Some(Some(key)), Some(used)) = (key_of(&slot.join(KEY)), key_of(&self.in_use(KEY))) else {
            return;
        };
        let is_it = |other: Option<Option<DeviceKey>>| other.flatten().is_some_and(|o| o.is_same(&key));
        let next = self.slot(self.next());
        let is_pending = slot != next && is_it(key_of(&next.join(KEY)));
        if !is_it(Some(used)) && !is_pending {
            let _ = key.destroy();
        }
    }
}
