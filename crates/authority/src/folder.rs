//! Files with keys and certificates: written whole or not at all, readable by their owner only.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What went wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The operating system refused.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// A private file that others may read.
    #[error("{} holds a private key but others may read it (mode {mode:03o}); hint: chmod 600 {}", path.display(), path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
}

fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FolderError + 'a {
    move |source| FolderError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

/// Makes a folder that only its owner can enter, with all above it.
///
/// # Errors
/// [`FolderError::Io`].
pub fn create_private(path: &Path) -> Result<(), FolderError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io_error("create the folder", path))
}

/// Writes a file as its owner's only: to a temporary name, synced, then renamed, then the folder synced. Whoever looks
/// sees the old file or the whole new one, also after a power cut.
///
/// # Errors
/// [`FolderError::Io`]; the old file, if any, is as it was.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), FolderError> {
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.new", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| File::open(folder)?.sync_all());
    written.map_err(|source| {
        let _ = fs::remove_file(&temporary);
        FolderError::Io {
            what: "write",
            path: path.to_owned(),
            source,
        }
    })
}

/// Reads a file that holds a private key; refuses it if others can read it too.
///
/// # Errors
/// [`FolderError`].
pub fn read_private(path: &Path) -> Result<Vec<u8>, FolderError> {
    let mode = fs::metadata(path).map_err(io_error("read", path))?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(FolderError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    read(path)
}

/// Reads a file.
///
/// # Errors
/// [`FolderError::Io`].
pub fn read(path: &Path) -> Result<Vec<u8>, FolderError> {
    fs::read(path).map_err(io_error("read", path))
}
