//! Where the key of a CA is held, and how it is reached.
//!
//! Which store holds it is a fact beside the CA's certificate, in `key-store.toml`, and is chosen when the authority is
//! made. Without that file the key is in `issuing.key`, as it is.
//!
//! 1. this module: the choice, and what each store needs
//! 2. [`passphrase`]: reading it, from a file or a credential of the service manager; what it opens is an
//!    [`encrypted_key`] (PKCS#8, PBES2)

pub mod passphrase;

use std::path::Path;

use countersign_factory::SoftwareKey;
use countersign_factory::encrypted_key::{self, Cost, EncryptedKeyFault};
use countersign_identity::signed::Signer;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::folder;
use crate::hierarchy::HierarchyError;
pub use passphrase::PassphraseSource;
use passphrase::{read_for_new_key, read_passphrase};

/// The file that says where the key is.
pub const KEY_STORE_FILE: &str = "key-store.toml";
/// The issuing CA's key, if a file holds it.
pub const ISSUING_KEY: &str = "issuing.key";
/// The root's key, if a file holds it.
pub const ROOT_KEY: &str = "root.key";
/// What is appended to a token object's label for the root's key.
const ROOT_SUFFIX: &str = "-root";

/// Where the key of a CA is held.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "store", rename_all = "kebab-case", deny_unknown_fields)]
pub enum KeyStore {
    /// A file that only its owner can read.
    #[default]
    File,
    /// A file that a passphrase opens.
    Encrypted {
        /// Where the passphrase is.
        passphrase: PassphraseSource,
    },
    /// A token: an HSM, a smart card.
    Pkcs11 {
        /// Module, token, object and PIN file (RFC 7512).
        uri: String,
    },
    /// Another process: the `ca` role. Nothing here can sign.
    Ca,
}

impl KeyStore {
    /// The name in output and on the command line.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Encrypted { .. } => "encrypted",
            Self::Pkcs11 { .. } => "pkcs11",
            Self::Ca => "ca",
        }
    }

    /// What is written beside a certificate; a plain file where nothing is.
    ///
    /// # Errors
    /// [`HierarchyError`] if it cannot be read.
    pub fn of(folder: &Path) -> Result<Self, HierarchyError> {
        let path = folder.join(KEY_STORE_FILE);
        if !path.exists() {
            return Ok(Self::File);
        }
        let text = String::from_utf8_lossy(&folder::read(&path)?).into_owned();
        toml::from_str(&text).map_err(|e| {
            KeyStoreError::Reference {
                path: path.display().to_string(),
                what: e.message().to_owned(),
            }
            .into()
        })
    }

    /// Writes it down, before the first key is made: what a cut leaves behind can be told from somebody else's key.
    pub(crate) fn keep(&self, folder: &Path) -> Result<(), HierarchyError> {
        let text = toml::to_string(self).map_err(|e| KeyStoreError::Reference {
            path: folder.join(KEY_STORE_FILE).display().to_string(),
            what: e.to_string(),
        })?;
        folder::write_private(&folder.join(KEY_STORE_FILE), text.as_bytes())?;
        Ok(())
    }
}

/// Why a key cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum KeyStoreError {
    /// `key-store.toml` is not what it should be.
    #[error("{path} does not say where the key is: {what}; hint: restore it from your backup")]
    Reference {
        /// The file.
        path: String,
        /// What is wrong.
        what: String,
    },
    /// A key file is there, and holds no key.
    #[error("the private key {path} is damaged: {what}; hint: restore it from your backup")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong.
        what: String,
    },
    /// There is no passphrase.
    #[error("no passphrase for the CA's key: {0}")]
    Passphrase(String),
    /// The passphrase is another one.
    #[error(
        "the passphrase does not open {0}; hint: it must be the very bytes that the key was made with, line end aside"
    )]
    WrongPassphrase(String),
    /// Not an encrypted key, or encrypted in a way that is not accepted.
    #[error(
        "{path} is no encrypted private key that can be read: {what}; hint: openssl pkcs8 -topk8 -scrypt makes one"
    )]
    Unreadable {
        /// The file.
        path: String,
        /// What is wrong.
        what: String,
    },
    /// The token, the module or the PIN.
    #[error("{0}")]
    Token(String),
    /// The key is held by another process.
    #[error("the key of this authority is held by the CA process, not here; hint: set ca.socket")]
    Apart,
    /// Encryption failed.
    #[error("the key could not be encrypted: {0}")]
    Encryption(String),
}

/// Reaches keys in tokens. Whoever has a PKCS#11 module fills it; this crate has none.
pub trait TokenKeys: Send + Sync {
    /// The key that a URI names.
    ///
    /// # Errors
    /// [`KeyStoreError::Token`] with its cure.
    fn open(&self, uri: &str, label_suffix: &str) -> Result<Box<dyn Signer>, KeyStoreError>;

    /// Makes the key that a URI names, on the token, never to leave it. `None` if there is one of that name.
    ///
    /// # Errors
    /// [`KeyStoreError::Token`] with its cure.
    fn generate(&self, uri: &str, label_suffix: &str) -> Result<Option<Box<dyn Signer>>, KeyStoreError>;
}

/// No token can be reached from here.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTokens;

impl TokenKeys for NoTokens {
    fn open(&self, _uri: &str, _label_suffix: &str) -> Result<Box<dyn Signer>, KeyStoreError> {
        Err(KeyStoreError::Token(
            "keys in tokens cannot be used here; hint: use countersign itself".into(),
        ))
    }

    fn generate(&self, uri: &str, label_suffix: &str) -> Result<Option<Box<dyn Signer>>, KeyStoreError> {
        self.open(uri, label_suffix).map(Some)
    }
}

/// Which of an authority's two keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    Issuing,
    Root,
}

impl Which {
    const fn file(self) -> &'static str {
        match self {
            Self::Issuing => ISSUING_KEY,
            Self::Root => ROOT_KEY,
        }
    }

    const fn suffix(self) -> &'static str {
        match self {
            Self::Issuing => "",
            Self::Root => ROOT_SUFFIX,
        }
    }
}

/// A store together with what reaches it, for one authority's folder.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a> {
    pub(crate) folder: &'a Path,
    pub(crate) store: &'a KeyStore,
    pub(crate) tokens: &'a dyn TokenKeys,
}

impl Keys<'_> {
    /// The key, as it was made before.
    pub(crate) fn open(self, which: Which) -> Result<Box<dyn Signer>, HierarchyError> {
        let path = self.folder.join(which.file());
        Ok(match self.store {
            KeyStore::File => Box::new(read_plain(&path)?),
            KeyStore::Encrypted { passphrase } => {
                let pem = folder::read_private(&path)?;
                let der = encrypted_key::decrypt(&pem, &read_passphrase(passphrase)?)
                    .map_err(|fault| of_encrypted(&path, fault))?;
                Box::new(SoftwareKey::from_pkcs8(&der)?)
            }
            KeyStore::Pkcs11 { uri } => self.tokens.open(uri, which.suffix())?,
            KeyStore::Ca => return Err(KeyStoreError::Apart.into()),
        })
    }

    /// Makes the key. One that is in a file of that name is made anew; one in a token is used if `may_be_there`.
    pub(crate) fn make(self, which: Which, may_be_there: bool) -> Result<Box<dyn Signer>, HierarchyError> {
        let path = self.folder.join(which.file());
        Ok(match self.store {
            KeyStore::File => {
                let key = SoftwareKey::generate()?;
                folder::write_private(&path, key.to_pem().as_bytes())?;
                Box::new(key)
            }
            KeyStore::Encrypted { passphrase } => {
                let key = SoftwareKey::generate()?;
                let pem = encrypted_key::encrypt(key.to_pkcs8(), &read_for_new_key(passphrase)?, Cost::Ca)
                    .map_err(|fault| of_encrypted(&path, fault))?;
                folder::write_private(&path, pem.as_bytes())?;
                Box::new(key)
            }
            KeyStore::Pkcs11 { uri } => match self.tokens.generate(uri, which.suffix())? {
                Some(key) => key,
                None if may_be_there => self.tokens.open(uri, which.suffix())?,
                None => {
                    return Err(KeyStoreError::Token(format!(
                        "the token has a key of that name already{}; hint: give each authority a name of its own (object=...)",
                        if which == Which::Root { " for the root" } else { "" }
                    ))
                    .into());
                }
            },
            KeyStore::Ca => return Err(KeyStoreError::Apart.into()),
        })
    }

    /// Whether the key is where the store keeps it, as far as that can be told without opening it.
    pub(crate) fn is_there(self, which: Which) -> bool {
        match self.store {
            KeyStore::File | KeyStore::Encrypted { .. } => self.folder.join(which.file()).exists(),
            KeyStore::Pkcs11 { .. } | KeyStore::Ca => false,
        }
    }
}

fn read_plain(path: &Path) -> Result<SoftwareKey, HierarchyError> {
    let pem = Zeroizing::new(folder::read_private(path)?);
    let damaged = |what: String| KeyStoreError::Damaged {
        path: path.display().to_string(),
        what,
    };
    let key = PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|e| damaged(e.to_string()))?;
    Ok(SoftwareKey::from_pkcs8(key.secret_pkcs8_der()).map_err(|e| damaged(e.to_string()))?)
}

fn of_encrypted(path: &Path, fault: EncryptedKeyFault) -> KeyStoreError {
    let path = path.display().to_string();
    match fault {
        EncryptedKeyFault::Unreadable(what) => KeyStoreError::Unreadable { path, what },
        EncryptedKeyFault::WrongPassphrase => KeyStoreError::WrongPassphrase(path),
        EncryptedKeyFault::Failed(what) => KeyStoreError::Encryption(what),
    }
}
