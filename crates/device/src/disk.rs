//! What is done to the disk, one step at a time, so that a test can cut the power between any two.

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
    disk.write(&new, bytes)?;
    disk.sync(&new)?;
    disk.rename(&new, path)?;
    disk.sync(folder_of(path))
}

/// Puts a symbolic link in place of whatever is there, at once.
pub(crate) fn point(disk: &dyn Disk, path: &Path, target: &Path) -> io::Result<()> {
    let new = beside(path);
    if new.symlink_metadata().is_ok() {
        disk.remove(&new)?;
    }
    disk.link(target, &new)?;
    disk.rename(&new, path)?;
    disk.sync(folder_of(path))
}

/// A disk whose power is cut after a number of steps: that step is half done, and nothing goes on after it.
#[cfg(test)]
pub(crate) struct CutDisk {
    left: std::sync::atomic::AtomicUsize,
    /// Written, and not synced: a cut loses their content.
    unsynced: std::sync::Mutex<Vec<PathBuf>>,
}

#[cfg(test)]
impl CutDisk {
    pub(crate) fn after(steps: usize) -> Self {
        Self {
            left: steps.into(),
            unsynced: Default::default(),
        }
    }

    pub(crate) fn left(&self) -> usize {
        self.left.load(std::sync::atomic::Ordering::SeqCst)
    }

    fn step(&self, run: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        use std::sync::atomic::Ordering::SeqCst;
        let spend = self.left.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1));
        if spend.is_err() {
            for path in self.unsynced.lock().unwrap().drain(..) {
                // Created, but its bytes never reached the disk.
                if path.exists() {
                    File::create(path)?;
                }
            }
            return Err(io::Error::other("the power was cut"));
        }
        run()
    }
}

#[cfg(test)]
impl Disk for std::sync::Arc<CutDisk> {
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.step(|| {
            self.unsynced.lock().unwrap().push(path.to_owned());
            RealDisk.write(path, bytes)
        })
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        self.step(|| {
            self.unsynced.lock().unwrap().retain(|p| p != path);
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
        self.step(|| RealDisk.remove(path))
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        self.step(|| RealDisk.remove_folder(path))
    }

    fn make_folder(&self, path: &Path) -> io::Result<()> {
        self.step(|| RealDisk.make_folder(path))
    }
}
