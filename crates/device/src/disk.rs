//! What is done to the disk, one step at a time, so that a test can cut the power between any two, or let it be full at any.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

/// The steps.
pub(crate) trait Disk: Send + Sync {
    /// Writes a file that only its owner may read, over whatever was there. Not yet durable.
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Makes a file, or the names in a folder, durable.
    fn sync(&self, path: &Path) -> io::Result<()>;
    /// Renames, over whatever was there; atomic.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes a symbolic link.
    fn link(&self, target: &Path, path: &Path) -> io::Result<()>;
    /// Removes a file or a link.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty folder.
    fn remove_folder(&self, path: &Path) -> io::Result<()>;
    /// Makes a folder that only its owner may enter, with all above it.
    fn make_folder(&self, path: &Path) -> io::Result<()>;
}

/// The machine's own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RealDisk;

impl Disk for RealDisk {
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(bytes)
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, target: &Path, path: &Path) -> io::Result<()> {
        symlink(target, path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn make_folder(&self, path: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Puts a file in place, whole or not at all: whoever looks after a power cut sees the old one or the new one.
pub(crate) fn replace(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = beside(path);
    let placed = disk
        .write(&new, bytes)
        .and_then(|()| disk.sync(&new))
        .and_then(|()| disk.rename(&new, path));
    if placed.is_err() {
        // On a full disk half a file takes the very room that is missing, and half a key is nobody's to find.
        let _ = disk.remove(&new);
    }
    placed?;
    disk.sync(folder_of(path))
}

/// Puts a symbolic link in place of whatever is there, at once.
pub(crate) fn point(disk: &dyn Disk, path: &Path, target: &Path) -> io::Result<()> {
    let new = beside(path);
    if new.symlink_metadata().is_ok() {
        disk.remove(&new)?;
    }
    disk.link(target, &new)?;
    let placed = disk.rename(&new, path);
    if placed.is_err() {
        let _ = disk.remove(&new);
    }
    placed?;
    disk.sync(folder_of(path))
}

/// Whether there is no room for a write: the file system is full, or what this user or process may have of it.
pub(crate) fn is_full(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

/// Why a write failed, for people.
pub(crate) fn what(e: &io::Error) -> String {
    match e.kind() {
        _ if is_full(e) => format!("disk full ({e})"),
        io::ErrorKind::ReadOnlyFilesystem => format!("the disk takes no writes ({e})"),
        _ => e.to_string(),
    }
}

/// What to do about it.
pub(crate) fn cure(e: &io::Error) -> &'static str {
    match e.kind() {
        _ if is_full(e) => "make room on that file system, and it goes on by itself",
        io::ErrorKind::ReadOnlyFilesystem => {
            "mount it for writing again; a flash that went read-only by itself is worn out or damaged"
        }
        _ => "check space and permissions",
    }
}

/// How a simulated disk fails.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fails {
    /// The power is cut: that step is half done, and nothing goes on after it.
    Cut,
    /// There is no room any more: what needs some is refused, a file half written; what frees some works.
    Full,
}

/// A disk that fails after a number of steps.
#[cfg(test)]
pub(crate) struct CutDisk {
    fails: Fails,
    left: std::sync::atomic::AtomicUsize,
    /// Written, and not synced: a cut loses their content.
    unsynced: std::sync::Mutex<Vec<PathBuf>>,
    /// Removed, and the folder not synced since: a cut brings them back.
    removed: std::sync::Mutex<Vec<(PathBuf, Left)>>,
}

/// What a removed file or link was.
#[cfg(test)]
pub(crate) enum Left {
    File(Vec<u8>),
    Link(PathBuf),
}

#[cfg(test)]
impl CutDisk {
    /// One whose power is cut.
    pub(crate) fn after(steps: usize) -> Self {
        Self {
            fails: Fails::Cut,
            left: steps.into(),
            unsynced: Default::default(),
            removed: Default::default(),
        }
    }

    /// One that is full. Only steps that need room are counted.
    pub(crate) fn full_after(steps: usize) -> Self {
        Self {
            fails: Fails::Full,
            ..Self::after(steps)
        }
    }

    /// There is room for so many steps from now on.
    pub(crate) fn make_room(&self, steps: usize) {
        self.left.store(steps, std::sync::atomic::Ordering::SeqCst);
    }

    pub(crate) fn left(&self) -> usize {
        self.left.load(std::sync::atomic::Ordering::SeqCst)
    }

    fn step(&self, run: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        use std::sync::atomic::Ordering::SeqCst;
        let spend = self.left.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1));
        if spend.is_err() && self.fails == Fails::Full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if spend.is_err() {
            for path in self.unsynced.lock().unwrap().drain(..) {
                // Created, but its bytes never reached the disk.
                if path.exists() {
                    File::create(path)?;
                }
            }
            for (path, left) in self.removed.lock().unwrap().drain(..).rev() {
                if path.symlink_metadata().is_ok() {
                    continue;
                }
                RealDisk.make_folder(folder_of(&path))?;
                match left {
                    Left::File(bytes) => RealDisk.write(&path, &bytes)?,
                    Left::Link(target) => RealDisk.link(&target, &path)?,
                }
            }
            return Err(io::Error::other("the power was cut"));
        }
        run()
    }

    /// A step that frees room.
    fn freeing(&self, run: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match self.fails {
            Fails::Cut => self.step(run),
            Fails::Full => run(),
        }
    }
}

#[cfg(test)]
impl Disk for std::sync::Arc<CutDisk> {
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let written = self.step(|| {
            self.unsynced.lock().unwrap().push(path.to_owned());
            RealDisk.write(path, bytes)
        });
        if written.is_err() && self.fails == Fails::Full {
            RealDisk.write(path, &bytes[..bytes.len() / 2])?;
        }
        written
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        self.step(|| {
            self.unsynced.lock().unwrap().retain(|p| p != path);
            let mut removed = self.removed.lock().unwrap();
            removed.retain(|(p, _)| folder_of(p) != path);
            RealDisk.sync(path)
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(|| {
            for path in self.unsynced.lock().unwrap().iter_mut().filter(|p| *p == from) {
                *path = to.to_owned();
            }
            RealDisk.rename(from, to)
        })
    }

    fn link(&self, target: &Path, path: &Path) -> io::Result<()> {
        self.step(|| RealDisk.link(target, path))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.freeing(|| {
            let left = match fs::read_link(path) {
                Ok(target) => Left::Link(target),
                Err(_) => Left::File(fs::read(path)?),
            };
            self.removed.lock().unwrap().push((path.to_owned(), left));
            RealDisk.remove(path)
        })
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        self.freeing(|| RealDisk.remove_folder(path))
    }

    fn make_folder(&self, path: &Path) -> io::Result<()> {
        self.step(|| RealDisk.make_folder(path))
    }
}
