//! A backup in one file: a tar archive, the manifest first.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use countersign_authority::folder;

use super::{Entry, MANIFEST, Manifest, inside, parent, write_hashed};
use crate::failure::Failure;

/// Packs a finished backup folder.
pub(super) fn pack(folder: &Path, manifest: &Manifest, file: &Path) -> io::Result<()> {
    let out = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)?;
    let mut builder = tar::Builder::new(out);
    builder.mode(tar::HeaderMode::Deterministic);
    let paths = std::iter::once(MANIFEST).chain(manifest.files.keys().map(String::as_str));
    for path in paths {
        let mut from = File::open(folder.join(path))?;
        builder.append_file(path, &mut from)?;
    }
    builder.into_inner()?.sync_all()
}

/// Unpacks an archive into a folder: files only, none outside of it. What it held.
pub(super) fn unpack(file: &Path, folder: &Path) -> Result<BTreeMap<String, Entry>, Failure> {
    let unreadable = |e: io::Error| {
        Failure::invalid(format!(
            "{} is no backup: {e}; hint: give the folder or the .tar file that countersign backup made",
            file.display()
        ))
    };
    let mut archive = tar::Archive::new(File::open(file).map_err(unreadable)?);
    let mut found = BTreeMap::new();
    for entry in archive.entries().map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let path = entry
            .path()
            .map_err(unreadable)?
            .to_str()
            .unwrap_or_default()
            .to_owned();
        if !entry.header().entry_type().is_file() {
            return Err(Failure::invalid(format!(
                "{} holds {path:?}, which is no file; hint: it is not one of ours, do not use it",
                file.display()
            )));
        }
        let to = inside(folder, &path)?;
        folder::create_private(parent(&to))?;
        let written = write_hashed(entry, &to).map_err(unreadable)?;
        found.insert(path, written);
    }
    Ok(found)
}
