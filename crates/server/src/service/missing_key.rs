//! A CA whose certificates are there and whose key is not: what a restore of a backup without keys leaves.

use std::path::Path;

use countersign_authority::{Hierarchy, HierarchyError, IssuingAuthority, KeyStore, TokenKeys};

use crate::failure::Failure;

/// Opens the issuing CA of a folder.
///
/// # Errors
/// [`Failure`]; if the file with its key is not there it says so, with the cure.
pub(super) fn open_issuing(
    folder: &Path,
    hierarchy: Hierarchy,
    tokens: &dyn TokenKeys,
) -> Result<IssuingAuthority, Failure> {
    IssuingAuthority::open_in(folder, hierarchy, tokens)
        .map_err(|e: HierarchyError| of_missing(folder, hierarchy).unwrap_or_else(|| e.into()))
}

/// `None` if the file is there, or the key is in no file.
fn of_missing(folder: &Path, hierarchy: Hierarchy) -> Option<Failure> {
    let key = folder.join("issuing.key");
    let is_in_file = matches!(
        KeyStore::of(folder),
        Ok(KeyStore::File | KeyStore::Encrypted { .. })
    );
    if !is_in_file || key.exists() {
        return None;
    }
    let otherwise = match hierarchy {
        Hierarchy::Platform => "",
        Hierarchy::Devices => ", or revoke the authority if its key is lost: countersign authority revoke",
    };
    Some(Failure::unavailable(
        format!(
            "the private key of a {hierarchy} CA is missing: {} is not there",
            key.display()
        ),
        &format!(
            "put the file back from where you keep authorities/**/*.key: a backup has it only if it was made with --with-keys, and restore names what it lacks (missing_keys); restore such a backup{otherwise}"
        ),
    ))
}
