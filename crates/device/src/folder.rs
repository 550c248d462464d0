//! The identity folder, and how a certificate in it is replaced without ever leaving the device without one.
//!
//! ```text
//! device.json         id, host, port, port for enrolment
//! platform-root.crt   what is pinned
//! clock               the time of the last connection
//! device.crt          the certificate in use, and the intermediates above it
//! device.key          its key, or where it is: in a token, which it never leaves
//! ```
//!
//! From the first renewal on, certificate and key lie in slots, and the two files are links:
//!
//! ```text
//! device.crt -> current/device.crt     current -> slots/3     slots/3/{device.crt,device.key}    in use
//! device.key -> current/device.key                            slots/4/{device.key,device.crt}    the next one
//! ```
//!
//! The next one's key is on disk before it is asked for, so that a request whose answer is lost is repeated for the same
//! key. `current` moves, at once, when the next one has connected; only then is the old key removed. Every step is
//! durable before the next, so that a power cut anywhere leaves a folder that loads.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use countersign_factory::ProvenKey;
use countersign_factory::request::pem;
use countersign_identity::signed::Signer;
use countersign_identity::{CertificateFacts, DeviceId, Fingerprint, Timestamp};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use zeroize::Zeroizing;

use crate::clock::DeviceClock;
use crate::disk::{Disk, RealDisk, point, replace};
use crate::fault::EnrolFault;
use crate::identity::{DeviceIdentity, DeviceProfile, IdentityFault};
use crate::keys::{DeviceKey, KeyStore, KeyStoreFault};

mod end;
mod slots;

const CERTIFICATE: &str = "device.crt";
const KEY: &str = "device.key";
const ROOTS: &str = "platform-root.crt";
const PROFILE: &str = "device.json";
const CLOCK: &str = "clock";
const CURRENT: &str = "current";
const RUNNING: &str = ".running";
const SLOTS: &str = "slots";
const STATEMENT: &str = "destruction.json";

/// An identity folder.
pub struct IdentityFolder {
    path: PathBuf,
    disk: Box<dyn Disk>,
}

impl std::fmt::Debug for IdentityFolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("IdentityFolder").field(&self.path).finish()
    }
}

type Outcome<T> = Result<T, IdentityFault>;

impl IdentityFolder {
    /// The folder of this path, which need not exist yet.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            disk: Box::new(RealDisk),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it holds a certificate.
    pub fn has_identity(&self) -> bool {
        self.path.join(CERTIFICATE).exists()
    }

    // --- reading

    /// The certificate and key that are in use.
    ///
    /// # Errors
    /// [`IdentityFault`] with the file that is wrong.
    pub fn load(&self) -> Outcome<DeviceIdentity> {
        let at = match self.current() {
            // Read in the slot itself: a switch between the two reads cannot mix them.
            Some(slot) => self.slot(slot),
            None => self.path.clone(),
        };
        self.identity_in(&at)
    }

    /// The next certificate, if it came and has not connected yet.
    ///
    /// # Errors
    /// [`IdentityFault`].
    pub fn pending(&self) -> Outcome<Option<DeviceIdentity>> {
        let at = self.slot(self.next());
        if !at.join(CERTIFICATE).exists() {
            return Ok(None);
        }
        self.identity_in(&at).map(Some)
    }

    /// The platform roots that are pinned.
    ///
    /// # Errors
    /// [`IdentityFault`] if there is none.
    pub fn roots(&self) -> Outcome<Vec<CertificateDer<'static>>> {
        let path = self.path.join(ROOTS);
        let roots = certificates(&path)?;
        if roots.is_empty() {
            return Err(damaged(&path, "it holds no certificate in PEM"));
        }
        Ok(roots)
    }

    /// The time that was saved last; 1970 if none was.
    pub fn saved_time(&self) -> Timestamp {
        let saved = fs::read_to_string(self.path.join(CLOCK)).ok();
        let seconds = saved.and_then(|text| text.trim().parse().ok());
        Timestamp::from_unix_s(seconds.unwrap_or(0))
    }

    /// The clock, with the floor that the folder knows of.
    pub fn clock(&self) -> DeviceClock {
        // Issued to us, so the past has at least come so far.
        let issued = certificates(&self.in_use(CERTIFICATE))
            .ok()
            .and_then(|chain| CertificateFacts::parse(chain.first()?).ok())
            .map(|facts| facts.not_before);
        let saved = self.saved_time();
        DeviceClock::new(issued.map_or(saved, |t| t.max(saved)))
    }

    /// Who the device is, also after its keys are gone.
    ///
    /// # Errors
    /// [`IdentityFault`].
    pub fn device_id(&self) -> Outcome<DeviceId> {
        Ok(self.profile()?.id)
    }

    /// Who the device is and where it connects.
    pub(crate) fn profile(&self) -> Outcome<DeviceProfile> {
        let path = self.path.join(PROFILE);
        serde_json::from_slice(&read(&path)?).map_err(|e| damaged(&path, e.to_string()))
    }

    fn identity_in(&self, at: &Path) -> Outcome<DeviceIdentity> {
        let profile = self.profile()?;
        let path = at.join(CERTIFICATE);
        let chain = certificates(&path)?;
        let Some(leaf) = chain.first() else {
            return Err(damaged(&path, "it holds no certificate in PEM"));
        };
        let facts = CertificateFacts::parse(leaf).map_err(|e| damaged(&path, e.to_string()))?;
        let path = at.join(KEY);
        let key = DeviceKey::read(&read_private(&path)?, &profile.key_store).map_err(unusable(&path))?;
        Ok(DeviceIdentity {
            profile,
            chain,
            facts,
            platform_roots: self.roots()?,
            clock: self.clock(),
            key,
        })
    }

    /// The number of the slot in use; `None` while the certificate is a plain file: then that is in use, whatever
    /// `current` says, for somebody put it there.
    fn current(&self) -> Option<u64> {
        let link = fs::read_link(self.path.join(CERTIFICATE)).ok()?;
        (link == Path::new(CURRENT).join(CERTIFICATE))
            .then(|| self.pointed())
            .flatten()
    }

    /// The number of the slot that `current` points at.
    fn pointed(&self) -> Option<u64> {
        let target = fs::read_link(self.path.join(CURRENT)).ok()?;
        target.file_name()?.to_str()?.parse().ok()
    }

    fn next(&self) -> u64 {
        self.pointed().unwrap_or(0) + 1
    }

    fn slot(&self, number: u64) -> PathBuf {
        self.path.join(SLOTS).join(number.to_string())
    }

    /// A file of the certificate in use.
    fn in_use(&self, name: &str) -> PathBuf {
        match self.current() {
            Some(slot) => self.slot(slot).join(name),
            None => self.path.join(name),
        }
    }

    // --- the first certificate

    /// The key for the first certificate: the one that is there, or a new one.
    ///
    /// # Errors
    /// [`IdentityFault::Exists`] if there is a certificate already.
    pub fn first_key(&self, store: &KeyStore) -> Outcome<Arc<dyn Signer>> {
        if self.has_identity() {
            return Err(IdentityFault::Exists(self.path.clone()));
        }
        self.make_folder(&self.path)?;
        let path = self.path.join(KEY);
        if path.exists() {
            // What an earlier try left is taken up, but not for something else than is asked for now.
            let left = DeviceKey::read(&read_private(&path)?, store).map_err(unusable(&path))?;
            if !store.is_of(&left) {
                return Err(damaged(
                    &path,
                    format!(
                        "it is a key {}; hint: name the same key store as before, or move the file away",
                        left.place()
                    ),
                ));
            }
            // It would never sign its request.
            if left.is_of_another_state() {
                self.disk.remove(&path).map_err(unwritable(&path))?;
            }
        }
        self.key_at(&path, None, (store, None))
    }

    /// Whom to believe to be the platform: the roots that are pinned, or, where none are, those that whoever sets the device up
    /// gives. What is pinned already is not replaced: whoever can give another root would be the platform.
    ///
    /// # Errors
    /// [`EnrolFault::Usage`] if another root is pinned, [`EnrolFault::Identity`] if none is, and none is given.
    pub fn roots_or(
        &self,
        given: &[CertificateDer<'static>],
    ) -> Result<Vec<CertificateDer<'static>>, EnrolFault> {
        match self.roots() {
            Ok(pinned) if given.iter().all(|root| pinned.contains(root)) => Ok(pinned),
            Ok(_) => Err(EnrolFault::Usage(format!(
                "{} has another platform root than what was given; hint: remove platform-root.crt by hand if the platform is a new one",
                self.path.display(),
            ))),
            Err(fault) if given.is_empty() => Err(fault.into()),
            Err(_) => Ok(given.to_vec()),
        }
    }

    /// Pins the first roots, by the hand of whoever sets the device up, unless they are pinned already. The folder is made if
    /// there is none.
    ///
    /// # Errors
    /// As for [`IdentityFolder::roots_or`]; [`EnrolFault::Identity`] if the folder cannot be written.
    pub fn pin_first(&self, roots: &[CertificateDer<'static>]) -> Result<(), EnrolFault> {
        if roots.is_empty() {
            return Err(damaged(&self.path.join(ROOTS), "no platform root was given").into());
        }
        let believed = self.roots_or(roots)?;
        if self.roots().is_err() {
            self.make()?;
            self.pin(&believed)?;
        }
        Ok(())
    }

    /// The roots in a PEM file, to be given.
    ///
    /// # Errors
    /// [`IdentityFault`] if it cannot be read, or holds none.
    pub fn roots_in(file: &Path) -> Outcome<Vec<CertificateDer<'static>>> {
        let given = certificates(file)?;
        if given.is_empty() {
            return Err(damaged(file, "it holds no certificate in PEM"));
        }
        Ok(given)
    }

    /// Makes the folder, if there is none.
    pub(crate) fn make(&self) -> Outcome<()> {
        self.make_folder(&self.path)
    }

    /// Keeps what the first enrolment brought.
    ///
    /// # Errors
    /// [`IdentityFault`]; the enrolment can be repeated, for the same key.
    pub fn enrolled(&self, profile: &DeviceProfile, chain: &[Vec<u8>]) -> Outcome<()> {
        let text = serde_json::to_string_pretty(profile)
            .map_err(|e| damaged(&self.path.join(PROFILE), e.to_string()))?;
        self.replace(&self.path.join(PROFILE), format!("{text}\n").as_bytes())?;
        // Last: its presence says that all is there.
        self.replace(&self.path.join(CERTIFICATE), chain_pem(chain).as_bytes())
    }

    /// Changes where the device connects.
    ///
    /// # Errors
    /// [`IdentityFault`].
    pub fn save_profile(&self, profile: &DeviceProfile) -> Outcome<()> {
        let path = self.path.join(PROFILE);
        let text = serde_json::to_string_pretty(profile).map_err(|e| damaged(&path, e.to_string()))?;
        self.replace(&path, format!("{text}\n").as_bytes())
    }

    /// The key that waits for its certificate: the first one, or the next one.
    ///
    /// # Errors
    /// [`IdentityFault`].
    pub(crate) fn waiting_key(&self, store: &KeyStore) -> Outcome<DeviceKey> {
        let path = if self.has_identity() {
            self.slot(self.next()).join(KEY)
        } else {
            self.path.join(KEY)
        };
        DeviceKey::read(&read_private(&path)?, store).map_err(unusable(&path))
    }

    /// Where the key that waits was made, as far as its file says.
    ///
    /// # Errors
    /// [`IdentityFault`].
    pub(crate) fn waiting_store(&self, key: &DeviceKey) -> Outcome<KeyStore> {
        let text = read_private(&self.path.join(KEY))?;
        Ok(KeyStore::named_by(&text).unwrap_or_else(|| key.store()))
    }

    // --- the next certificate

    /// The key for the next certificate. If one was asked for before and did not come, it is the same again.
    ///
    /// # Errors
    /// [`IdentityFault`].
    pub fn begin(&self, reuse: KeyReuse) -> Outcome<Arc<dyn Signer>> {
        self.begin_in(&self.profile()?.key_store, reuse)
    }

    /// The same, with the key made in another store than the last ones.
    ///
    /// # Errors
    /// [`IdentityFault`].
    pub fn begin_in(&self, store: &KeyStore, reuse: KeyReuse) -> Outcome<Arc<dyn Signer>> {
        let _alone = self.alone()?;
        self.use_slots()?;
        self.clear_old()?;
        let number = self.next();
        let slot = self.slot(number);
        self.make_folder(&slot)?;
        self.sync(&self.path.join(SLOTS))?;
        // Begun before: taken up again, unless that key is gone, is not where it is to be now, or would not sign.
        if let Ok(text) = read_private(&slot.join(KEY)) {
            let left = DeviceKey::read(&text, store).ok();
            if !left.is_some_and(|key| store.is_of(&key) && key.is_there() && !key.is_of_another_state()) {
                self.remove_slot(number)?;
                self.make_folder(&slot)?;
                self.sync(&self.path.join(SLOTS))?;
            }
        }
        let old = match reuse {
            KeyReuse::New => None,
            KeyReuse::Same => Some(read_private(&self.in_use(KEY))?),
        };
        self.key_at(&slot.join(KEY), old, (store, Some(number)))
    }

    /// Keeps the next certificate, with what is above it, DER, beside its key.
    ///
    /// # Errors
    /// [`IdentityFault::NotOurs`] if it is not for that key; then the one in use stays.
    pub fn complete(&self, chain: &[Vec<u8>]) -> Outcome<()> {
        self.complete_in(&self.profile()?.key_store, chain)
    }

    /// The same for a key that is in another store than the last ones.
    ///
    /// # Errors
    /// As for [`IdentityFolder::complete`].
    pub fn complete_in(&self, store: &KeyStore, chain: &[Vec<u8>]) -> Outcome<()> {
        let slot = self.slot(self.next());
        let key = signer(&slot.join(KEY), store)?;
        is_for(chain.first(), &*key)?;
        self.replace(&slot.join(CERTIFICATE), chain_pem(chain).as_bytes())
    }

    /// The next certificate has connected: from now on it is the one in use, and the old key is removed. If it is not the
    /// next one any more, another process was faster, and nothing is to be done.
    ///
    /// # Errors
    /// [`IdentityFault`]; whichever is in use then works.
    pub fn promote(&self, connected: &Fingerprint) -> Outcome<()> {
        // Most connections are by the one in use, and whoever makes a key in a slow token holds the lock meanwhile.
        if !self.is_pending(connected) {
            return Ok(());
        }
        let _alone = self.alone()?;
        let next = self.next();
        if !self.is_pending(connected) {
            return Ok(());
        }
        let target = Path::new(SLOTS).join(next.to_string());
        self.point(&self.path.join(CURRENT), &target)?;
        self.clear_old()
    }

    /// The next certificate is of no use, and is thrown away, unless another process had it replaced.
    ///
    /// # Errors
    /// [`IdentityFault`].
    pub fn discard(&self, refused: &Fingerprint) -> Outcome<()> {
        let _alone = self.alone()?;
        if self.is_pending(refused) {
            self.remove_slot(self.next())?;
        }
        Ok(())
    }

    /// What was begun comes to nothing: the next try has another key.
    ///
    /// # Errors
    /// [`IdentityFault`].
    pub fn abandon(&self) -> Outcome<()> {
        let _alone = self.alone()?;
        self.remove_slot(self.next())
    }

    /// Takes the right to renew, which one process has at a time, for as long as the answer lives; `None` while another
    /// has it.
    ///
    /// # Errors
    /// [`IdentityFault`].
    pub fn try_renewing(&self) -> Outcome<Option<Renewing>> {
        let (file, path) = self.lock_file(".renewing")?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Renewing(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(unwritable(&path)(e)),
        }
    }

    /// Takes the right to run a service on the folder, which one process has at a time, for as long as the answer lives;
    /// `None` while another has it. Two would write over each other's messages.
    ///
    /// # Errors
    /// [`IdentityFault`].
    pub fn try_running(&self) -> Outcome<Option<Running>> {
        let (file, path) = self.lock_file(RUNNING)?;
        // Somebody who only looks has it for a moment.
        for _ in 0..10 {
            match file.try_lock() {
                Ok(()) => return Ok(Some(Running(file))),
                Err(TryLockError::WouldBlock) => std::thread::sleep(std::time::Duration::from_millis(20)),
                Err(TryLockError::Error(e)) => return Err(unwritable(&path)(e)),
            }
        }
        Ok(None)
    }

    /// Whether a service runs on the folder. Nothing is made to find out: whoever looks may be another user.
    pub fn is_running(&self) -> bool {
        let held = |file: File| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
        File::open(self.path.join(RUNNING)).is_ok_and(held)
    }

    /// Whether this is the certificate that waits for its first connection.
    fn is_pending(&self, fingerprint: &Fingerprint) -> bool {
        certificates(&self.slot(self.next()).join(CERTIFICATE))
            .ok()
            .and_then(|chain| Some(Fingerprint::of(chain.first()?)))
            == Some(*fingerprint)
    }

    /// Held, and only for a moment, by whoever moves between slots.
    fn alone(&self) -> Outcome<File> {
        let (file, path) = self.lock_file(".lock")?;
        file.lock().map_err(unwritable(&path))?;
        Ok(file)
    }

    fn lock_file(&self, name: &str) -> Outcome<(File, PathBuf)> {
        let path = self.path.join(name);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(unwritable(&path))?;
        Ok((file, path))
    }

    // --- what else is kept

    /// Pins these roots from now on, in place of those that were pinned before.
    ///
    /// # Errors
    /// [`IdentityFault`]; then the old ones stay.
    pub fn pin(&self, roots: &[CertificateDer<'static>]) -> Outcome<()> {
        let text: String = roots.iter().map(|der| pem("CERTIFICATE", der)).collect();
        self.replace(&self.path.join(ROOTS), text.as_bytes())
    }

    /// Keeps the time, which the clock is never to fall behind again.
    ///
    /// # Errors
    /// [`IdentityFault`].
    pub fn save_time(&self, now: Timestamp) -> Outcome<()> {
        self.replace(&self.path.join(CLOCK), format!("{}\n", now.unix_s()).as_bytes())
    }

    // --- steps

    fn replace(&self, path: &Path, bytes: &[u8]) -> Outcome<()> {
        replace(&*self.disk, path, bytes).map_err(unwritable(path))
    }

    fn point(&self, path: &Path, target: &Path) -> Outcome<()> {
        point(&*self.disk, path, target).map_err(unwritable(path))
    }

    fn make_folder(&self, path: &Path) -> Outcome<()> {
        self.disk.make_folder(path).map_err(unwritable(path))
    }

    fn sync(&self, path: &Path) -> Outcome<()> {
        self.disk.sync(path).map_err(unwritable(path))
    }
}

/// The right to renew; see [`IdentityFolder::try_renewing`].
#[derive(Debug)]
pub struct Renewing(#[allow(dead_code, reason = "the lock ends with the file")] File);

/// The right to run a service; see [`IdentityFolder::try_running`].
#[derive(Debug)]
pub struct Running(#[allow(dead_code, reason = "the lock ends with the file")] File);

/// Whether the next certificate has a key of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyReuse {
    /// A new key.
    #[default]
    New,
    /// The key in use, once more.
    Same,
}

/// The key that a key file holds or speaks of.
fn signer(path: &Path, store: &KeyStore) -> Outcome<Arc<dyn Signer>> {
    DeviceKey::read(&read_private(path)?, store)
        .and_then(|key| key.signer())
        .map_err(unusable(path))?
        .ok_or_else(|| damaged(path, "a P-256 key in PKCS#8 is needed"))
}

/// Checks that a certificate is for a key.
pub(crate) fn is_for(certificate: Option<&Vec<u8>>, key: &dyn Signer) -> Outcome<CertificateFacts> {
    let der = certificate.ok_or_else(|| IdentityFault::NotOurs("there is none in the answer".into()))?;
    let facts = CertificateFacts::parse(der).map_err(|e| IdentityFault::NotOurs(e.to_string()))?;
    if ProvenKey::of(key).fingerprint().ok() != Some(facts.public_key_sha256) {
        return Err(IdentityFault::NotOurs("it is for another key".into()));
    }
    Ok(facts)
}

fn chain_pem(chain: &[Vec<u8>]) -> String {
    chain.iter().map(|der| pem("CERTIFICATE", der)).collect()
}

fn read(path: &Path) -> Outcome<Vec<u8>> {
    fs::read(path).map_err(|source| IdentityFault::Unreadable {
        path: path.to_owned(),
        source,
    })
}

fn read_private(path: &Path) -> Outcome<Zeroizing<Vec<u8>>> {
    let bytes = Zeroizing::new(read(path)?);
    let mode = fs::metadata(path).map(|m| m.mode() & 0o777).unwrap_or(0);
    if path.file_name().is_some_and(|n| n == KEY) && mode & 0o077 != 0 {
        return Err(IdentityFault::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    Ok(bytes)
}

fn certificates(path: &Path) -> Outcome<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| damaged(path, e.to_string()))
}

fn damaged(path: &Path, what: impl Into<String>) -> IdentityFault {
    IdentityFault::Damaged {
        path: path.to_owned(),
        what: what.into(),
    }
}

fn unusable(path: &Path) -> impl FnOnce(KeyStoreFault) -> IdentityFault {
    let path = path.to_owned();
    move |source| IdentityFault::Key { path, source }
}

fn unwritable(path: &Path) -> impl FnOnce(io::Error) -> IdentityFault {
    let path = path.to_owned();
    move |source| IdentityFault::Unwritable { path, source }
}

#[cfg(test)]
mod tests;
