//! `index.csv`: what of a run is done, with its files on disk. A run that was cut off goes on after it.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use countersign_identity::DeviceId;

use crate::failure::Failure;

const HEADER: &str = "device,serial,fingerprint,not_after,authority,file\n";

/// The index of an output folder, open for appending.
pub struct Index {
    file: File,
    done: HashSet<String>,
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> Failure + '_ {
    move |e| {
        Failure::unavailable(
            format!("cannot write {}: {e}", path.display()),
            "look at the disk",
        )
    }
}

impl Index {
    /// Opens or makes it. A last line that was cut off is removed: its device is done again, with the same result.
    ///
    /// # Errors
    /// [`Failure`] if it cannot be written, or is not ours.
    pub fn open(folder: &Path) -> Result<Self, Failure> {
        let path = folder.join("index.csv");
        let io = failed(&path);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(&io)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(&io)?;
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1);
        let text = String::from_utf8_lossy(&bytes[..whole]).into_owned();
        if whole == 0 {
            file.set_len(0).map_err(&io)?;
            file.seek(SeekFrom::Start(0)).map_err(&io)?;
            file.write_all(HEADER.as_bytes()).map_err(&io)?;
            file.sync_all().map_err(&io)?;
            File::open(folder).and_then(|f| f.sync_all()).map_err(&io)?;
        } else if !text.starts_with(HEADER) {
            return Err(Failure::invalid(format!(
                "{} is not an index of this program; hint: choose another folder with --out",
                path.display()
            )));
        } else {
            file.set_len(whole as u64).map_err(&io)?;
            file.seek(SeekFrom::End(0)).map_err(&io)?;
        }
        let done = text
            .lines()
            .skip(1)
            .filter_map(|l| l.split(',').next())
            .map(str::to_owned)
            .collect();
        Ok(Self { file, done })
    }

    /// Whether a device's files are there.
    pub fn has(&self, id: &DeviceId) -> bool {
        self.done.contains(id.as_str())
    }

    /// Appends rows of devices whose files are on disk, and syncs. No field of ours holds a comma or a quote.
    ///
    /// # Errors
    /// [`Failure`] if it cannot be written.
    pub fn append(&mut self, folder: &Path, rows: &[[String; 6]]) -> Result<(), Failure> {
        let path = folder.join("index.csv");
        let text: String = rows.iter().map(|r| r.join(",") + "\n").collect();
        self.file
            .write_all(text.as_bytes())
            .and_then(|()| self.file.sync_data())
            .map_err(failed(&path))?;
        self.done.extend(rows.iter().map(|r| r[0].clone()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str) -> [String; 6] {
        [id, "01", "ff", "t", "ca", "f"].map(str::to_owned)
    }

    #[test]
    fn a_line_that_was_cut_off_is_done_again() {
        let folder = tempfile::tempdir().unwrap();
        let id = |t: &str| DeviceId::new(t).unwrap();
        {
            let mut index = Index::open(folder.path()).unwrap();
            index.append(folder.path(), &[row("a"), row("b")]).unwrap();
        }
        let path = folder.path().join("index.csv");
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let mut index = Index::open(folder.path()).unwrap();
            let lines = whole[..cut].iter().filter(|b| **b == b'\n').count();
            assert_eq!(index.done.len(), lines.saturating_sub(1), "{cut}");
            let missing: Vec<_> = ["a", "b"]
                .into_iter()
                .filter(|t| !index.has(&id(t)))
                .map(row)
                .collect();
            index.append(folder.path(), &missing).unwrap();
            drop(index);
            assert_eq!(std::fs::read(&path).unwrap(), whole, "{cut}");
        }
        std::fs::write(&path, "something else\n").unwrap();
        assert!(Index::open(folder.path()).is_err());
    }
}
