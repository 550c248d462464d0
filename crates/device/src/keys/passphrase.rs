//! Key files under a passphrase, and where that comes from.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use countersign_factory::encrypted_key::{self, PassphraseSource};
use zeroize::Zeroizing;

use super::KeyStoreFault;

/// Whether a key file is one under a passphrase.
pub(crate) fn is_encrypted(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(encrypted_key::is_encrypted)
}

/// The passphrase that a source names. One line end at its end is not part of it.
pub(super) fn passphrase(source: &PassphraseSource) -> Result<Zeroizing<Vec<u8>>, KeyStoreFault> {
    let missing = |what: String, hint: &str| KeyStoreFault::Passphrase(format!("{what}; hint: {hint}"));
    let path = match source.credential() {
        Some(name) => std::env::var_os(PassphraseSource::CREDENTIALS)
            .map(|folder| PathBuf::from(folder).join(name))
            .ok_or_else(|| {
                let hint = format!("LoadCredential={name}:FILE in its unit, and start it by systemd");
                missing("the service has no credentials".into(), &hint)
            })?,
        None => PathBuf::from(source.as_str()),
    };
    let unread = |e: std::io::Error| {
        missing(
            format!("cannot read {}: {e}", path.display()),
            "put the passphrase there, readable by its owner only",
        )
    };
    let mut bytes = Zeroizing::new(std::fs::read(&path).map_err(unread)?);
    let mode = std::fs::metadata(&path).map_err(unread)?.mode() & 0o777;
    // A credential's access rights are the service manager's: with access lists the mode tells nothing.
    if source.credential().is_none() && mode & 0o077 != 0 {
        let hint = format!("chmod 600 {}", path.display());
        return Err(missing(
            format!("others may read {} (mode {mode:03o})", path.display()),
            &hint,
        ));
    }
    PassphraseSource::trim(&mut bytes);
    if bytes.is_empty() {
        return Err(missing(
            format!("{} is empty", path.display()),
            "put the passphrase into it",
        ));
    }
    Ok(bytes)
}
