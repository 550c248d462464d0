//! `identities.tar`: grows in `.work` with every chunk, and is moved to its place when all is there.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use countersign_identity::DeviceId;
use tar::{Builder, EntryType, Header};

use super::index::Index;
use super::layout::OutputFile;
use crate::failure::Failure;

const NAME: &str = "identities.tar";
/// What an entry's content is filled up to.
const BLOCK: u64 = 512;

/// The archive that is being written.
pub struct Archive {
    path: PathBuf,
    builder: Builder<BufWriter<File>>,
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> Failure + '_ {
    move |e| {
        Failure::unavailable(
            format!("cannot write {}: {e}", path.display()),
            "see to the disk, then repeat the command: what is there is not made again",
        )
    }
}

/// Whether an output folder has its archive already; it is not changed any more.
pub fn is_complete(out: &Path) -> bool {
    out.join(NAME).exists()
}

/// Where the last entry of a device that is done ends. What follows was written by a run that was cut off before it could say
/// so, and is done again.
fn end_of_done(file: &File, length: u64, done: &Index) -> std::io::Result<u64> {
    let mut archive = tar::Archive::new(BufReader::new(file));
    let mut end = 0;
    for entry in archive.entries_with_seek()? {
        let Ok(entry) = entry else { break };
        let is_done = entry.path().is_ok_and(|path| {
            let first = path.components().next();
            let id = first.and_then(|c| c.as_os_str().to_str().map(DeviceId::new));
            id.is_some_and(|id| id.is_ok_and(|id| done.has(&id)))
        });
        let after = entry.raw_file_position() + entry.size().next_multiple_of(BLOCK);
        if !is_done || after > length {
            break;
        }
        end = after;
    }
    Ok(end)
}

/// As its owner's only: it holds private keys.
fn header(kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(if kind == EntryType::Directory {
        0o700
    } else {
        0o600
    });
    header.set_size(size);
    header
}

impl Archive {
    /// Opens or makes it.
    ///
    /// # Errors
    /// [`Failure`] if it cannot be written.
    pub fn open(work: &Path, done: &Index) -> Result<Self, Failure> {
        let path = work.join(NAME);
        let open = || {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)?;
            let length = file.metadata()?.len();
            let end = end_of_done(&file, length, done)?;
            file.set_len(end)?;
            file.seek(SeekFrom::Start(end))?;
            Ok(file)
        };
        let file = open().map_err(failed(&path))?;
        Ok(Self {
            path,
            builder: Builder::new(BufWriter::with_capacity(1 << 20, file)),
        })
    }

    /// Adds a device's files.
    ///
    /// # Errors
    /// [`Failure`] if it cannot be written.
    pub fn add(&mut self, id: &DeviceId, files: &[OutputFile]) -> Result<(), Failure> {
        let mut add = || {
            let mut folder = header(EntryType::Directory, 0);
            self.builder
                .append_data(&mut folder, format!("{id}/"), std::io::empty())?;
            for (path, bytes) in files {
                let mut file = header(EntryType::Regular, bytes.len() as u64);
                self.builder.append_data(&mut file, path, bytes.as_slice())?;
            }
            Ok(())
        };
        add().map_err(failed(&self.path))
    }

    /// All that was added is on disk.
    ///
    /// # Errors
    /// [`Failure`] if it cannot be written.
    pub fn sync(&mut self) -> Result<(), Failure> {
        let writer = self.builder.get_mut();
        writer
            .flush()
            .and_then(|()| writer.get_ref().sync_data())
            .map_err(failed(&self.path))
    }

    /// All is there: adds the index, and moves it to its place.
    ///
    /// # Errors
    /// [`Failure`] if it cannot be written.
    pub fn complete(mut self, out: &Path) -> Result<(), Failure> {
        let to = out.join(NAME);
        let path = self.path.clone();
        let complete = || {
            let index = std::fs::read(out.join("index.csv"))?;
            let mut file = header(EntryType::Regular, index.len() as u64);
            self.builder
                .append_data(&mut file, "index.csv", index.as_slice())?;
            let mut writer = self.builder.into_inner()?;
            writer.flush()?;
            writer.get_ref().sync_all()?;
            std::fs::rename(&path, &to)?;
            File::open(out)?.sync_all()
        };
        complete().map_err(failed(&to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use zeroize::Zeroizing;

    fn files(id: &str) -> Vec<OutputFile> {
        [("device.key", 227), ("device.crt", 1024), ("empty", 0)]
            .map(|(name, length)| {
                let content = Zeroizing::new(id.as_bytes().iter().copied().cycle().take(length).collect());
                (Path::new(id).join(name), content)
            })
            .to_vec()
    }

    fn read(path: &Path) -> Vec<(String, u32, Vec<u8>)> {
        let mut archive = tar::Archive::new(File::open(path).unwrap());
        archive
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                let path = entry.path().unwrap().display().to_string();
                (path, entry.header().mode().unwrap(), content)
            })
            .collect()
    }

    /// Wherever a run was cut off, and whatever of the next device was written, the archive of the next run is the same.
    #[test]
    fn an_archive_that_was_cut_off_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let work = folder.path().join("work");
        std::fs::create_dir(&work).unwrap();
        let mut index = Index::open(folder.path()).unwrap();
        let id = |t: &str| DeviceId::new(t).unwrap();
        let row = |t: &str| [t, "01", "ff", "t", "ca", "f"].map(str::to_owned);
        let mut archive = Archive::open(&work, &index).unwrap();
        archive.add(&id("a"), &files("a")).unwrap();
        archive.sync().unwrap();
        index.append(folder.path(), &[row("a")]).unwrap();
        let done = std::fs::metadata(work.join(NAME)).unwrap().len();
        archive.add(&id("b"), &files("b")).unwrap();
        archive.sync().unwrap();
        let whole = std::fs::read(work.join(NAME)).unwrap();
        // It ends its file, which a run that is killed does not.
        drop(archive);
        let ended = std::fs::read(work.join(NAME)).unwrap();
        assert!(ended.len() > whole.len() && ended.starts_with(&whole));
        for cut in (done as usize..=ended.len())
            .step_by(97)
            .chain([whole.len(), ended.len()])
        {
            std::fs::write(work.join(NAME), &ended[..cut]).unwrap();
            let mut archive = Archive::open(&work, &index).unwrap();
            archive.add(&id("b"), &files("b")).unwrap();
            archive.sync().unwrap();
            assert!(std::fs::read(work.join(NAME)).unwrap() == whole, "{cut}");
        }
        index.append(folder.path(), &[row("b")]).unwrap();
        Archive::open(&work, &index)
            .unwrap()
            .complete(folder.path())
            .unwrap();
        assert!(is_complete(folder.path()) && !work.join(NAME).exists());
        let entries = read(&folder.path().join(NAME));
        let names: Vec<_> = entries
            .iter()
            .map(|(path, mode, _)| (path.as_str(), *mode))
            .collect();
        let of = |id: &'static str| {
            [
                (id, 0o700),
                (
                    if id == "a/" {
                        "a/device.key"
                    } else {
                        "b/device.key"
                    },
                    0o600,
                ),
                (
                    if id == "a/" {
                        "a/device.crt"
                    } else {
                        "b/device.crt"
                    },
                    0o600,
                ),
                (if id == "a/" { "a/empty" } else { "b/empty" }, 0o600),
            ]
        };
        assert_eq!(
            names,
            [&of("a/")[..], &of("b/"), &[("index.csv", 0o600)]].concat()
        );
        assert_eq!(entries[5].2, *files("b")[0].1);
    }
}
