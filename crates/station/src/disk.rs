//! What a station needs of a file system. Every promise is in the words "durable": what is not said to be, a power cut
//! may take, in part or whole.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use countersign_authority::folder;

/// Files by name, in one folder.
pub trait Disk {
    /// The bytes of a file; `None` if there is none.
    ///
    /// # Errors
    /// Of the operating system; so for all.
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>>;

    /// Makes or replaces a file, readable by its owner only. Durable, and never in part: old or new.
    ///
    /// # Errors
    /// As for [`Disk::read`]; then it may be either.
    fn replace(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;

    /// Writes at an offset, beyond which nothing remains. Not durable until [`Disk::sync`].
    ///
    /// # Errors
    /// As for [`Disk::read`].
    fn write_end(&mut self, name: &str, offset: usize, bytes: &[u8]) -> io::Result<()>;

    /// Makes what was written durable.
    ///
    /// # Errors
    /// As for [`Disk::read`]; then nobody knows what is durable, and nothing may be built on it until it is read again.
    fn sync(&mut self, name: &str) -> io::Result<()>;

    /// Overwrites a file and deletes it. Durable.
    ///
    /// # Errors
    /// As for [`Disk::read`].
    fn destroy(&mut self, name: &str) -> io::Result<()>;
}

/// A real folder, which one process has at a time.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    open: BTreeMap<String, File>,
    _lock: File,
}

impl Folder {
    /// Takes a folder, made if it is not there.
    ///
    /// # Errors
    /// [`ErrorKind::WouldBlock`] if another process has it.
    pub fn open(path: &Path) -> io::Result<Self> {
        folder::create_private(path).map_err(io::Error::other)?;
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(e)) => return Err(e),
        }
        Ok(Self {
            path: path.to_owned(),
            open: BTreeMap::new(),
            _lock: lock,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn file(&mut self, name: &str) -> io::Result<&mut File> {
        if !self.open.contains_key(name) {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .open(self.path.join(name))?;
            self.open.insert(name.to_owned(), file);
        }
        self.open.get_mut(name).ok_or_else(|| ErrorKind::NotFound.into())
    }
}

impl Disk for Folder {
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let path = self.path.join(name);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let mode = file.metadata()?.mode() & 0o777;
        if name.ends_with(".key") && mode & 0o077 != 0 {
            return Err(io::Error::new(
                ErrorKind::PermissionDenied,
                format!(
                    "{} holds a private key but others may read it (mode {mode:03o}); hint: chmod 600 {0}",
                    path.display()
                ),
            ));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    fn replace(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.open.remove(name);
        folder::write_private(&self.path.join(name), bytes).map_err(|e| match e {
            folder::FolderError::Io { source, .. } => source,
            other => io::Error::other(other),
        })
    }

    fn write_end(&mut self, name: &str, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let file = self.file(name)?;
        file.write_all_at(bytes, offset as u64)?;
        // Last, and never below what was written: a cut between the two must not take what was durable before.
        let end = (offset + bytes.len()) as u64;
        if file.metadata()?.len() > end {
            file.set_len(end)?;
        }
        Ok(())
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.file(name)?.sync_all()
    }

    fn destroy(&mut self, name: &str) -> io::Result<()> {
        self.open.remove(name);
        let path = self.path.join(name);
        let mut file = match OpenOptions::new().write(true).open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        let length = usize::try_from(file.metadata()?.len()).unwrap_or(0);
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&vec![0; length])?;
        file.sync_all()?;
        drop(file);
        fs::remove_file(&path)?;
        self.sync_folder()
    }
}
