//! The `ca` role: the CA in a process of its own, with its keys, its store and its rules.
//!
//! The control process asks over a unix socket, and is believed nothing: from the evidence it hands on (a certificate that
//! this CA issued, a secret or a batch that this CA's own operator made, a request signed by its key) every grant is made
//! anew here. So whoever takes over the control process cannot mint outside what the CA's operator allowed.
//!
//! 1. [`protocol`]: what is asked and answered, framed; both halves share it
//! 2. [`settings`]: the CA's own configuration, `ca.toml`
//! 3. [`error`]: every refusal, with a stable code
//! 4. [`store`]: what the CA remembers: certificates, batches, secrets, its log; one writer
//! 5. [`rules`]: from evidence to a certificate, judged in the transaction that keeps it
//! 6. [`status`]: revocation lists and OCSP, of its own store
//! 7. [`daemon`]: the socket
//! 8. [`link`]: the other half: how the control process asks
//! 9. [`operate`]: what the CA's own operator does, on its folder

pub mod daemon;
pub mod error;
pub mod link;
pub mod operate;
pub mod protocol;
pub mod rules;
pub mod settings;
pub mod status;
pub mod store;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use countersign_authority::{Hierarchy, IssuingAuthority, install};
use countersign_identity::AuthorityId;
use parking_lot::Mutex;

use crate::token_keys::Pkcs11Keys;
use error::CaError;
use protocol::IssuedAnswer;
use rules::{Asked, Minting};
use settings::Settings;
use store::Store;

/// A CA that is open: what [`daemon`] serves.
pub struct Ca {
    settings: Arc<Settings>,
    store: Store,
    keys: Arc<Keys>,
    lists: status::Lists,
}

impl Ca {
    /// Opens the CA in a folder that [`operate::init`] made. Only one process may serve it.
    ///
    /// # Errors
    /// [`CaError`] with its cure.
    pub fn open(folder: &Path) -> Result<Self, CaError> {
        let settings = Settings::load(folder)?;
        Ok(Self {
            store: Store::open(folder)?,
            keys: Arc::new(Keys::new(folder)),
            lists: status::Lists::default(),
            settings: Arc::new(settings),
        })
    }

    /// A certificate, on disk before it is answered.
    ///
    /// # Errors
    /// [`CaError`]; then nothing was minted.
    pub fn issue(&self, actor: &str, asked: Asked) -> Result<IssuedAnswer, CaError> {
        // Opened and used outside the transaction: a token may take its time, or hang, and nobody else is to wait for it.
        let authority = self.keys.authority(asked.authority()).map_err(|e| match e {
            CaError::Keys(_) if !self.keys.has(asked.authority()) => {
                CaError::NoAuthority(asked.authority().clone())
            }
            e => e,
        })?;
        let shared = Arc::new((asked, Mutex::new(Minting::default())));
        loop {
            let (settings, run) = (self.settings.clone(), shared.clone());
            let answer = self.store.write(actor, move |scope| {
                let (asked, minting) = &*run;
                asked.issue(scope, &settings, &mut minting.lock())
            });
            if answer.is_ok() || !shared.1.lock().mint(&authority) {
                return answer;
            }
        }
    }

    /// Whether the evidence for a certificate holds; nothing follows from it.
    ///
    /// # Errors
    /// [`CaError`] if it does not.
    pub fn check(&self, actor: &str, asked: Asked) -> Result<(), CaError> {
        let settings = self.settings.clone();
        self.store
            .write(actor, move |scope| asked.check(scope, &settings))
    }
}

/// How long one waits for another who opens the same key.
const OPENING: Duration = Duration::from_secs(10);

/// The key of one authority, once it is open.
type Slot = Arc<Mutex<Option<Arc<IssuingAuthority>>>>;

/// The CA's issuing keys, opened when they are first needed. A token that takes its time holds up its own authority only.
pub struct Keys {
    folder: PathBuf,
    slots: Mutex<HashMap<AuthorityId, Slot>>,
}

impl Keys {
    fn new(folder: &Path) -> Self {
        Self {
            folder: folder.join("authorities"),
            slots: Mutex::default(),
        }
    }

    /// Where an authority is.
    pub fn folder_of(folder: &Path, id: &AuthorityId) -> PathBuf {
        folder.join("authorities").join(id.as_str())
    }

    fn has(&self, id: &AuthorityId) -> bool {
        self.folder.join(id.as_str()).exists()
    }

    /// What stands between an authority and its root, from below, DER.
    fn intermediates(&self, id: &AuthorityId) -> Result<Vec<Vec<u8>>, CaError> {
        let found = install::intermediates(&self.folder.join(id.as_str()), Hierarchy::Devices)?;
        Ok(found.iter().map(|c| c.to_vec()).collect())
    }

    /// An authority with its key.
    ///
    /// # Errors
    /// [`CaError::Keys`] if it cannot be reached.
    pub fn authority(&self, id: &AuthorityId) -> Result<Arc<IssuingAuthority>, CaError> {
        // Kept only for an authority that there is: anybody may name others.
        let slot = match self.has(id) {
            true => self.slots.lock().entry(id.clone()).or_default().clone(),
            false => Slot::default(),
        };
        let mut open = slot.try_lock_for(OPENING).ok_or_else(|| {
            CaError::Keys(format!(
                "the key of authority {id} is being opened, and does not answer; hint: look at its token"
            ))
        })?;
        if let Some(authority) = &*open {
            return Ok(authority.clone());
        }
        let path = self.folder.join(id.as_str());
        let authority = IssuingAuthority::open_in(&path, Hierarchy::Devices, &Pkcs11Keys)
            .map_err(|e| CaError::Keys(e.to_string()))?
            .named(id.clone());
        Ok(open.insert(Arc::new(authority)).clone())
    }
}
