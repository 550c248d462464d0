//! Reading a passphrase, with what to do if it is not there.

use std::path::{Path, PathBuf};

use countersign_factory::encrypted_key::PASSPHRASE_BYTES_MIN;
pub use countersign_factory::encrypted_key::PassphraseSource;
use zeroize::Zeroizing;

use super::KeyStoreError;
use crate::folder;

/// The passphrase. One line end at its end is not part of it.
///
/// # Errors
/// [`KeyStoreError::Passphrase`] with its cure.
pub fn read_passphrase(source: &PassphraseSource) -> Result<Zeroizing<Vec<u8>>, KeyStoreError> {
    let missing = |what: String| KeyStoreError::Passphrase(what);
    let mut bytes = Zeroizing::new(match source.credential() {
        // Its access rights are the service manager's: with access lists the mode tells nothing.
        Some(name) => {
            let folder = std::env::var_os(PassphraseSource::CREDENTIALS).ok_or_else(|| {
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
        None => folder::read_private(Path::new(source.as_str())).map_err(|e| {
            let text = e.to_string();
            let hint = if text.contains("hint: ") {
                ""
            } else {
                "; hint: put the passphrase back into this file, readable by its owner only"
            };
            missing(format!("{text}{hint}"))
        })?,
    });
    PassphraseSource::trim(&mut bytes);
    if bytes.is_empty() {
        return Err(missing(format!(
            "{} is empty; hint: put the passphrase into it",
            source.as_str()
        )));
    }
    Ok(bytes)
}

/// The same, and long enough for a new key.
///
/// # Errors
/// [`KeyStoreError::Passphrase`].
pub fn read_for_new_key(source: &PassphraseSource) -> Result<Zeroizing<Vec<u8>>, KeyStoreError> {
    let bytes = read_passphrase(source)?;
    if bytes.len() < PASSPHRASE_BYTES_MIN {
        return Err(KeyStoreError::Passphrase(format!(
            "the one in {} is shorter than {PASSPHRASE_BYTES_MIN} bytes; hint: openssl rand -base64 30 makes a good one",
            source.as_str()
        )));
    }
    Ok(bytes)
}
