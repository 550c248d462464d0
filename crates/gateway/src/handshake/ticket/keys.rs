//! The keys that seal tickets: this module is their only owner, in memory and on disk.
//!
//! A master secret of 32 random bytes is kept in a file of the data directory that its owner alone can read. From it a key
//! is derived for each listener and tenant (HKDF, RFC 5869), when one is needed. A new master is made in every rotation
//! interval; a few older ones are kept so that what they sealed can still be opened. Nothing else reads the file, and no
//! backup takes it: without it, or if it is damaged, new keys are made, and tickets of before are declined.
//!
//! A ticket is `version ‖ master ‖ nonce ‖ sealed tenant ‖ sealed body`: whose it is cannot be read off it, and is read
//! with a key of the listener before the tenant's own key is asked.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{digest, hkdf, rand};
use countersign_identity::{TenantId, Timestamp};
use parking_lot::{Mutex, RwLock};
use zeroize::Zeroizing;

use super::{Decline, TICKET_BYTES_MAX};

/// The version of a ticket's layout.
const VERSION: u8 = 1;
const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;
const TAG_BYTES: usize = 16;
const HEADER_BYTES: usize = 1 + ID_BYTES + NONCE_LEN;
const TENANT_BYTES: usize = TenantId::MAX_BYTES;
const BODY_AT: usize = HEADER_BYTES + TENANT_BYTES + TAG_BYTES;

const FILE_START: &[u8] = b"countersign ticket keys 1\n";
const ENTRY_BYTES: usize = ID_BYTES + 8 + SECRET_BYTES;
const CHECK_BYTES: usize = 32;

/// Why the keys of before are not used, or the new ones not kept.
#[derive(Debug, thiserror::Error)]
pub enum KeyFault {
    /// The file can be read by others than its owner.
    #[error("{path} can be read by others (mode {mode:o}), so the ticket keys in it are not used any more")]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The file is not as it was written.
    #[error("{path} is damaged, so the ticket keys in it are lost; new ones are used")]
    Damaged {
        /// Which file.
        path: PathBuf,
    },
    /// The file cannot be read or written.
    #[error("cannot {what} {path}: {source}; tickets of now will not be known after a restart")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The system's random numbers failed: there are no keys, so no tickets.
    #[error("no random numbers for ticket keys")]
    Random,
}

/// Listener and tenant; the empty tenant for the listener's own key.
type Scope = (Arc<str>, Option<TenantId>);

struct Master {
    id: [u8; ID_BYTES],
    made: Timestamp,
    secret: Zeroizing<[u8; SECRET_BYTES]>,
    /// As many as there are listeners and tenants with tickets.
    derived: RwLock<HashMap<Scope, Arc<LessSafeKey>>>,
}

impl Master {
    fn new(id: [u8; ID_BYTES], made: Timestamp, secret: Zeroizing<[u8; SECRET_BYTES]>) -> Arc<Self> {
        Arc::new(Self {
            id,
            made,
            secret,
            derived: RwLock::default(),
        })
    }

    fn random(made: Timestamp) -> Option<Arc<Self>> {
        let mut id = [0; ID_BYTES];
        let mut secret = Zeroizing::new([0; SECRET_BYTES]);
        rand::fill(&mut id).ok()?;
        rand::fill(secret.as_mut()).ok()?;
        Some(Self::new(id, made, secret))
    }

    fn key(&self, listener: &Arc<str>, tenant: Option<&TenantId>) -> Option<Arc<LessSafeKey>> {
        let scope = (listener.clone(), tenant.cloned());
        if let Some(key) = self.derived.read().get(&scope) {
            return Some(key.clone());
        }
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"countersign ticket keys 1");
        let (role, name): (&[u8], &str) = match tenant {
            None => (b"listener", ""),
            Some(tenant) => (b"tenant", tenant.as_str()),
        };
        // Names of listeners and tenants have no byte 0, so no two scopes have one info.
        let info: [&[u8]; 5] = [role, &[0], listener.as_bytes(), &[0], name.as_bytes()];
        let prk = salt.extract(self.secret.as_ref());
        let okm = prk.expand(&info, &AES_256_GCM).ok()?;
        let key = Arc::new(LessSafeKey::new(UnboundKey::from(okm)));
        self.derived.write().insert(scope, key.clone());
        Some(key)
    }
}

/// The keys of tickets, the newest first; they rotate.
pub struct TicketKeys {
    /// `None`: they are never kept.
    path: Option<PathBuf>,
    rotation: Duration,
    kept: usize,
    masters: RwLock<Vec<Arc<Master>>>,
    /// One rotation at a time.
    rotating: Mutex<()>,
}

impl std::fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TicketKeys")
    }
}

impl TicketKeys {
    /// How long one key seals, if nothing else is said: 12 h.
    pub const ROTATION: Duration = Duration::from_secs(12 * 3600);
    /// How many keys open, if nothing else is said: with the one above, every ticket of the last 24 h.
    pub const KEPT: usize = 3;

    /// Takes the keys that are kept in `path`, and makes the first if there are none. Whatever is wrong with the file never
    /// stands in the way: it is told, and tickets of before are declined.
    pub fn open(path: PathBuf, rotation: Duration, kept: usize, now: Timestamp) -> (Self, Vec<KeyFault>) {
        let (masters, fault) = match read(&path) {
            Ok(masters) => (masters, None),
            Err(fault) => (vec![], Some(fault)),
        };
        let keys = Self {
            path: Some(path),
            rotation,
            kept: kept.max(1),
            masters: RwLock::new(masters),
            rotating: Mutex::new(()),
        };
        keys.masters.write().truncate(keys.kept);
        let faults = fault.into_iter().chain(keys.rotate(now).err()).collect();
        (keys, faults)
    }

    /// Keys that end with the process.
    pub fn in_memory(now: Timestamp) -> Self {
        let keys = Self {
            path: None,
            rotation: Self::ROTATION,
            kept: Self::KEPT,
            masters: RwLock::default(),
            rotating: Mutex::new(()),
        };
        // Without random numbers there are none, and no tickets.
        let _ = keys.rotate(now);
        keys
    }

    /// Makes a new key if the newest has served its time, and forgets the oldest. To be called every now and then.
    ///
    /// # Errors
    /// [`KeyFault::Io`] if it cannot be kept: it is used all the same. [`KeyFault::Random`].
    pub fn rotate(&self, now: Timestamp) -> Result<(), KeyFault> {
        let _one = self.rotating.lock();
        let mut masters = self.masters.read().clone();
        // One from the future was made by a clock that was wrong.
        let due = masters
            .first()
            .is_none_or(|newest| newest.made > now || now.since(newest.made) >= self.rotation);
        if !due {
            return Ok(());
        }
        masters.insert(0, Master::random(now).ok_or(KeyFault::Random)?);
        masters.truncate(self.kept);
        let written = self.path.as_deref().map_or(Ok(()), |path| write(path, &masters));
        *self.masters.write() = masters;
        written
    }

    /// Seals `body` for a listener and a tenant; `None` if it is too large, or there is no key.
    pub(super) fn seal(&self, listener: &Arc<str>, tenant: &TenantId, body: &[u8]) -> Option<Vec<u8>> {
        if BODY_AT + body.len() + TAG_BYTES > TICKET_BYTES_MAX {
            return None;
        }
        let master = self.masters.read().first()?.clone();
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).ok()?;
        let mut ticket = Vec::with_capacity(BODY_AT + body.len() + TAG_BYTES);
        ticket.push(VERSION);
        ticket.extend(master.id);
        ticket.extend(nonce);
        let name = tenant.as_str().as_bytes();
        let mut field = [0; TENANT_BYTES];
        field[..name.len()].copy_from_slice(name);
        // One nonce under two keys.
        let tag = master
            .key(listener, None)?
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(&ticket[..]),
                &mut field,
            )
            .ok()?;
        ticket.extend(field);
        ticket.extend(tag.as_ref());
        let aad = Aad::from(<[u8; BODY_AT]>::try_from(&ticket[..]).ok()?);
        ticket.extend(body);
        let tag = master
            .key(listener, Some(tenant))?
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), aad, &mut ticket[BODY_AT..])
            .ok()?;
        ticket.extend(tag.as_ref());
        Some(ticket)
    }

    /// Opens what [`TicketKeys::seal`] sealed: the tenant and the body. Nothing of it is believed before its tag holds.
    pub(super) fn unseal(&self, listener: &Arc<str>, ticket: &[u8]) -> Result<(TenantId, Vec<u8>), Decline> {
        if ticket.len() < BODY_AT + TAG_BYTES || ticket.len() > TICKET_BYTES_MAX || ticket[0] != VERSION {
            return Err(Decline::Malformed);
        }
        let (front, body) = ticket.split_at(BODY_AT);
        let (header, sealed_tenant) = front.split_at(HEADER_BYTES);
        let id = &header[1..=ID_BYTES];
        let master = self.masters.read().iter().find(|m| m.id == id).cloned();
        let master = master.ok_or(Decline::UnknownKey)?;
        let nonce =
            || Nonce::try_assume_unique_for_key(&header[1 + ID_BYTES..]).map_err(|_| Decline::Malformed);
        let mut field =
            <[u8; TENANT_BYTES + TAG_BYTES]>::try_from(sealed_tenant).map_err(|_| Decline::Malformed)?;
        let name = master
            .key(listener, None)
            .ok_or(Decline::Unopened)?
            .open_in_place(nonce()?, Aad::from(header), &mut field)
            .map_err(|_| Decline::Unopened)?;
        let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
        let tenant = std::str::from_utf8(&name[..end])
            .ok()
            .and_then(|name| TenantId::new(name).ok())
            .ok_or(Decline::Malformed)?;
        let mut body = body.to_vec();
        let length = master
            .key(listener, Some(&tenant))
            .ok_or(Decline::Unopened)?
            .open_in_place(nonce()?, Aad::from(front), &mut body)
            .map_err(|_| Decline::Unopened)?
            .len();
        body.truncate(length);
        Ok((tenant, body))
    }
}

/// No file is no fault.
fn read(path: &Path) -> Result<Vec<Arc<Master>>, KeyFault> {
    let io = |source| KeyFault::Io {
        what: "read",
        path: path.to_owned(),
        source,
    };
    let mode = match fs::metadata(path) {
        Ok(found) => found.mode() & 0o777,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(e) => return Err(io(e)),
    };
    if mode & 0o077 != 0 {
        return Err(KeyFault::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    let bytes = Zeroizing::new(fs::read(path).map_err(io)?);
    parse(&bytes).ok_or_else(|| KeyFault::Damaged {
        path: path.to_owned(),
    })
}

fn parse(bytes: &[u8]) -> Option<Vec<Arc<Master>>> {
    let (content, check) = bytes.split_at_checked(bytes.len().checked_sub(CHECK_BYTES)?)?;
    if digest::digest(&digest::SHA256, content).as_ref() != check {
        return None;
    }
    let entries = content.strip_prefix(FILE_START)?;
    if entries.len() % ENTRY_BYTES != 0 {
        return None;
    }
    entries
        .chunks_exact(ENTRY_BYTES)
        .map(|entry| {
            let (id, rest) = entry.split_first_chunk::<ID_BYTES>()?;
            let (made, secret) = rest.split_first_chunk::<8>()?;
            let mut kept = Zeroizing::new([0; SECRET_BYTES]);
            kept.copy_from_slice(secret);
            Some(Master::new(
                *id,
                Timestamp::from_unix_ms(i64::from_be_bytes(*made)),
                kept,
            ))
        })
        .collect()
}

/// Whole or not at all, for its owner alone, and on disk when it returns.
fn write(path: &Path, masters: &[Arc<Master>]) -> Result<(), KeyFault> {
    let size = FILE_START.len() + masters.len() * ENTRY_BYTES + CHECK_BYTES;
    // Of its full size from the start: a Vec that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(size));
    bytes.extend(FILE_START);
    for master in masters {
        bytes.extend(master.id);
        bytes.extend(master.made.unix_ms().to_be_bytes());
        bytes.extend(master.secret.iter());
    }
    let check = digest::digest(&digest::SHA256, &bytes);
    bytes.extend(check.as_ref());
    let temporary = path.with_extension(format!("{}.new", std::process::id()));
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| File::open(folder.unwrap_or(Path::new(".")))?.sync_all());
    written.map_err(|source| {
        let _ = fs::remove_file(&temporary);
        KeyFault::Io {
            what: "write",
            path: path.to_owned(),
            source,
        }
    })
}
