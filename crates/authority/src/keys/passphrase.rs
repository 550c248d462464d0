//! Where a passphrase comes from: never from the command line, never from the value of an environment variable, both of
//! which others on the machine can see.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::KeyStoreError;
use crate::folder;

/// The shortest passphrase that a key is made with, in bytes.
pub const PASSPHRASE_BYTES_MIN: usize = 12;
/// The folder that systemd puts a service's credentials in (systemd.exec(5), LoadCredential=).
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";
const PREFIX: &str = "credential:";

/// A file that holds a passphrase, or `credential:NAME`: a credential that systemd gives to the service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PassphraseSource(String);

impl TryFrom<String> for PassphraseSource {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::new(&text)
    }
}

impl From<PassphraseSource> for String {
    fn from(source: PassphraseSource) -> Self {
        source.0
    }
}

impl PassphraseSource {
    /// A path, or `credential:NAME`.
    ///
    /// # Errors
    /// What is wrong with it: a path must be absolute, for the server runs elsewhere than the command that names it.
    pub fn new(text: &str) -> Result<Self, String> {
        let fits = match text.strip_prefix(PREFIX) {
            Some(name) => !name.is_empty() && !name.contains('/') && name != "..",
            None => Path::new(text).is_absolute(),
        };
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!(
                "{text:?} is neither an absolute path nor credential:NAME"
            ))
        }
    }

    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The passphrase. One line end at its end is not part of it.
    ///
    /// # Errors
    /// [`KeyStoreError::Passphrase`] with its cure.
    pub fn read(&self) -> Result<Zeroizing<Vec<u8>>, KeyStoreError> {
        let missing = |what: String| KeyStoreError::Passphrase(what);
        let mut bytes = Zeroizing::new(match self.0.strip_prefix(PREFIX) {
            // Its access rights are the service manager's: with access lists the mode tells nothing.
            Some(name) => {
                let folder = std::env::var_os(CREDENTIALS).ok_or_else(|| {
                    missing(format!(
                        "the service has no credentials; hint: LoadCredential={name}:FILE in its unit, and start it by systemd"
                    ))
                })?;
                folder::read(&PathBuf::from(folder).join(name)).map_err(|e| {
                    missing(format!(
                        "{e}; hint: LoadCredential={name}:FILE in the service's unit"
                    ))
                })?
            }
            None => folder::read_private(Path::new(&self.0)).map_err(|e| {
                let text = e.to_string();
                let hint = if text.contains("hint: ") {
                    ""
                } else {
                    "; hint: put the passphrase back into this file, readable by its owner only"
                };
                missing(format!("{text}{hint}"))
            })?,
        });
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
            if bytes.last() == Some(&b'\r') {
                bytes.pop();
            }
        }
        if bytes.is_empty() {
            return Err(missing(format!(
                "{} is empty; hint: put the passphrase into it",
                self.0
            )));
        }
        Ok(bytes)
    }

    /// The same, and long enough for a new key.
    ///
    /// # Errors
    /// [`KeyStoreError::Passphrase`].
    pub fn read_for_new_key(&self) -> Result<Zeroizing<Vec<u8>>, KeyStoreError> {
        let bytes = self.read()?;
        if bytes.len() < PASSPHRASE_BYTES_MIN {
            return Err(KeyStoreError::Passphrase(format!(
                "the one in {} is shorter than {PASSPHRASE_BYTES_MIN} bytes; hint: openssl rand -base64 30 makes a good one",
                self.0
            )));
        }
        Ok(bytes)
    }
}

impl std::str::FromStr for PassphraseSource {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        Self::new(s)
    }
}
