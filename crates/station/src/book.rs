//! The journal in storage.
//!
//! ```text
//! append ─▶ write ─▶ sync ─▶ only now it counts
//! open   ─▶ read ─▶ drop a torn record ─▶ write the last whole one again ─▶ sync
//! ```
//!
//! The last record is written again because it may be in memory only: whoever wrote it may have been killed between
//! write and sync, and what is built on it must not outlive it.

use countersign_factory::SoftwareKey;
use countersign_factory::station::journal::{self, Event, Found, Head, Record};
use countersign_identity::Timestamp;
use spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

use crate::disk::Disk;
use crate::fault::Fault;

/// The journal's file.
pub const JOURNAL: &str = "journal";

/// The public half of the key that signs the journal.
#[derive(Debug, Clone)]
pub struct JournalKey {
    /// The key.
    pub key: SubjectPublicKeyInfoOwned,
    /// The algorithm of its signatures.
    pub algorithm: AlgorithmIdentifierOwned,
}

/// An open journal.
#[derive(Debug)]
pub struct Book {
    head: Head,
    length: usize,
    records: Vec<Record>,
    dropped: usize,
    /// After a failed write or sync nobody knows what is durable: nothing is written any more until it is opened anew.
    lost: bool,
}

impl Book {
    /// Opens the journal after whatever happened; `None` if there is none.
    ///
    /// # Errors
    /// [`Fault::Journal`] if it is damaged by more than a power cut.
    pub fn open(disk: &mut dyn Disk, key: &JournalKey) -> Result<Option<Self>, Fault> {
        let Some(bytes) = disk.read(JOURNAL).map_err(Fault::storage("read", JOURNAL))? else {
            return Ok(None);
        };
        let found = journal::recover(&bytes, &key.key, &key.algorithm)?;
        let Found {
            records,
            head,
            good,
            torn,
            last,
        } = found;
        if !bytes.is_empty() {
            disk.write_end(JOURNAL, last, &bytes[last..good])
                .and_then(|()| disk.sync(JOURNAL))
                .map_err(Fault::storage("write", JOURNAL))?;
        }
        Ok(Some(Self {
            head,
            length: good,
            records,
            dropped: torn,
            lost: false,
        }))
    }

    /// Makes an empty one.
    ///
    /// # Errors
    /// [`Fault::Storage`].
    pub fn create(disk: &mut dyn Disk) -> Result<Self, Fault> {
        disk.replace(JOURNAL, b"")
            .map_err(Fault::storage("make", JOURNAL))?;
        Ok(Self {
            head: Head::START,
            length: 0,
            records: Vec::new(),
            dropped: 0,
            lost: false,
        })
    }

    /// Appends a record. When it returns, the record is durable.
    ///
    /// # Errors
    /// [`Fault`]; then nothing that the record tells of may be handed out.
    pub fn append(
        &mut self,
        disk: &mut dyn Disk,
        key: &SoftwareKey,
        now: Timestamp,
        event: Event,
    ) -> Result<&Record, Fault> {
        if self.lost {
            return Err(Fault::Lost);
        }
        let (line, record, head) = self
            .head
            .append(now, event, key)
            .map_err(|e| Fault::Failed(e.to_string()))?;
        let written = disk
            .write_end(JOURNAL, self.length, &line)
            .and_then(|()| disk.sync(JOURNAL));
        if let Err(e) = written {
            self.lost = true;
            return Err(Fault::storage("write", JOURNAL)(e));
        }
        self.head = head;
        self.length += line.len();
        self.records.push(record);
        self.records.last().ok_or(Fault::Lost)
    }

    /// What an export ends in.
    ///
    /// # Errors
    /// [`Fault::Failed`].
    pub fn seal(&self, key: &SoftwareKey, now: Timestamp) -> Result<Vec<u8>, Fault> {
        let (line, ..) = self
            .head
            .append(now.max(self.head.at), Event::Seal {}, key)
            .map_err(|e| Fault::Failed(e.to_string()))?;
        Ok(line)
    }

    /// Its bytes, of whole records only.
    ///
    /// # Errors
    /// [`Fault::Storage`].
    pub fn bytes(&self, disk: &dyn Disk) -> Result<Vec<u8>, Fault> {
        let mut bytes = disk
            .read(JOURNAL)
            .map_err(Fault::storage("read", JOURNAL))?
            .unwrap_or_default();
        bytes.truncate(self.length);
        Ok(bytes)
    }

    /// The records.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Where it stands.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// How many bytes of a torn record were dropped when it was opened.
    pub fn dropped(&self) -> usize {
        self.dropped
    }
}
