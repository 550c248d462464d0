//! Receipts: what a change did to live sessions, kept before it is answered and found again by id.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::rand;
use countersign_identity::{Fingerprint, TenantId, Timestamp};
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use crate::change::damaged;
use crate::error::RegistryError;
use crate::store::Registry;

/// The name of a receipt: `rc-` and 16 hexadecimal digits, random.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ReceiptId(String);

impl ReceiptId {
    /// A new one.
    ///
    /// # Errors
    /// [`RegistryError::Closed`] if the system's random source fails.
    pub fn random() -> Result<Self, RegistryError> {
        let mut bytes = [0; 8];
        rand::fill(&mut bytes)
            .map_err(|_| RegistryError::Closed("the system's random source failed".into()))?;
        let digits: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        Ok(Self(format!("rc-{digits}")))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ReceiptId {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let digits = s.strip_prefix("rc-").unwrap_or_default();
        let ok = digits.len() == 16 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        ok.then(|| Self(s.to_owned()))
            .ok_or_else(|| format!("{s:?} is no receipt: rc- and 16 hexadecimal digits"))
    }
}

impl TryFrom<String> for ReceiptId {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

impl From<ReceiptId> for String {
    fn from(id: ReceiptId) -> Self {
        id.0
    }
}

impl fmt::Display for ReceiptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// How far a change has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReceiptState {
    /// A bulk move is under way.
    Running,
    /// All of it is done, and every live node has confirmed.
    Complete,
    /// Something is missing: a node did not confirm in time, or a bulk move did not come to its end.
    Partial,
}

impl ReceiptState {
    /// The name in store, API and CLI.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Partial => "partial",
        }
    }
}

/// What a change did on one node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeReceipt {
    /// The node's name.
    pub node: String,
    /// Whether all sessions that had to end were closed when the receipt was written.
    pub confirmed: bool,
    /// Sessions closed.
    pub ended: u64,
    /// Sessions that can do nothing any more, and whose sockets were not closed yet.
    pub open: u64,
    /// Sessions decided anew that may stay.
    pub kept: u64,
    /// From the change to the last close, in milliseconds.
    pub worst_ms: f64,
    /// Not confirmed: by then the node has closed them, whatever their peers do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over_by: Option<Timestamp>,
}

/// How many devices a bulk move was for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BulkCount {
    /// Found by the selector when it began.
    pub selected: u64,
    /// Moved.
    pub moved: u64,
    /// Left as they are: the table does not have the move from their state.
    pub refused: u64,
}

/// What a change did to live sessions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// Its name.
    pub id: ReceiptId,
    /// The revision that the change was committed with: a node that shows it has seen the change.
    pub revision: u64,
    /// When it was committed.
    pub at: Timestamp,
    /// The tenant, if it is of one.
    pub tenant: Option<TenantId>,
    /// Who asked for it.
    pub actor: String,
    /// What, as in the audit: `device.suspend`.
    pub action: String,
    /// On what.
    pub subject: String,
    /// Why.
    pub reason: String,
    /// How far it has come.
    pub state: ReceiptState,
    /// What each live node did; none: no node was live.
    pub nodes: Vec<NodeReceipt>,
    /// Of a bulk move: how many devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<BulkCount>,
    /// What is missing, and what to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Receipt {
    /// Makes it that of a bulk move that did not come to its end: whoever asks for the same again has it go on.
    pub fn cut_short(&mut self, why: &str) {
        self.state = ReceiptState::Partial;
        self.note = Some(format!(
            "{why}; what was moved stays moved; hint: ask for the same again, with the same idempotency key if it had one"
        ));
    }

    /// Whether it is of a bulk move that did not come to its end.
    pub fn is_cut_short(&self) -> bool {
        self.state == ReceiptState::Partial && self.note.is_some()
    }
}

/// A requester's own key for a request: the same key with other content is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiptKey {
    /// The key.
    pub key: String,
    /// What was asked, hashed.
    pub content: Fingerprint,
}

/// How many receipts are kept.
#[derive(Debug)]
pub(crate) struct Retention {
    max: AtomicU64,
    forgotten: AtomicU64,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            max: AtomicU64::new(DEFAULT_MAX),
            forgotten: AtomicU64::new(0),
        }
    }
}

/// The default of how many receipts are kept.
pub const DEFAULT_MAX: u64 = 100_000;

impl Registry {
    /// How many receipts are kept from now on; the oldest go first.
    pub fn set_receipts_max(&self, max: u64) {
        self.receipts.max.store(max, Ordering::Relaxed);
    }

    /// How many receipts were forgotten for lack of room, since start.
    pub fn receipts_forgotten(&self) -> u64 {
        self.receipts.forgotten.load(Ordering::Relaxed)
    }

    /// Keeps a receipt, or what it has become; on disk when this returns.
    ///
    /// # Errors
    /// [`RegistryError`] if it cannot be written.
    pub fn keep_receipt(&self, receipt: Receipt, key: Option<ReceiptKey>) -> Result<(), RegistryError> {
        let retention: Arc<Retention> = self.receipts.clone();
        self.write(move |scope| {
            let body = serde_json::to_string(&receipt).map_err(|e| RegistryError::Database(e.to_string()))?;
            scope
                .tx
                .prepare_cached(
                    "INSERT INTO receipts (id, at, tenant, state, idempotency_key, content, body)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                     ON CONFLICT (id) DO UPDATE SET state = ?4, body = ?7",
                )?
                .execute(params![
                    receipt.id.as_str(),
                    receipt.at.unix_ms(),
                    receipt.tenant.as_ref().map_or("", TenantId::as_str),
                    receipt.state.name(),
                    key.as_ref().map(|k| k.key.as_str()),
                    key.as_ref().map(|k| k.content.as_bytes().as_slice()),
                    body
                ])?;
            let max = i64::try_from(retention.max.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
            let forgotten = scope
                .tx
                .prepare_cached(
                    "DELETE FROM receipts WHERE seq <= (SELECT max(seq) FROM receipts) - ? AND state <> 'running'",
                )?
                .execute([max])?;
            retention.forgotten.fetch_add(forgotten as u64, Ordering::Relaxed);
            Ok(())
        })?;
        Ok(())
    }

    /// A receipt by its id.
    ///
    /// # Errors
    /// [`RegistryError::NoReceipt`] if there is none, or none any more.
    pub fn receipt(&self, id: &ReceiptId) -> Result<Receipt, RegistryError> {
        let body: Option<String> = self.read(|db| {
            Ok(db
                .prepare_cached("SELECT body FROM receipts WHERE id = ?")?
                .query_row([id.as_str()], |r| r.get(0))
                .optional()?)
        })?;
        let body = body.ok_or_else(|| RegistryError::NoReceipt(id.to_string()))?;
        damaged(serde_json::from_str(&body))
    }

    /// The newest receipts, newest first, of one tenant if one is named.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn receipts(&self, tenant: Option<&TenantId>, limit: u32) -> Result<Vec<Receipt>, RegistryError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT body FROM receipts WHERE ?1 IS NULL OR tenant = ?1 ORDER BY seq DESC LIMIT ?2",
            )?;
            let mut rows = statement.query(params![tenant.map(TenantId::as_str), limit])?;
            let mut found = Vec::new();
            while let Some(r) = rows.next()? {
                found.push(damaged(serde_json::from_str(&r.get::<_, String>(0)?))?);
            }
            Ok(found)
        })
    }

    /// The receipt that was given for a requester's key; `None` if the key is new.
    ///
    /// # Errors
    /// [`RegistryError::Exists`] if the key was used for something else.
    pub fn receipt_of_key(
        &self,
        tenant: &TenantId,
        key: &ReceiptKey,
    ) -> Result<Option<Receipt>, RegistryError> {
        let row: Option<(Vec<u8>, String)> = self.read(|db| {
            Ok(db
                .prepare_cached(
                    "SELECT content, body FROM receipts WHERE tenant = ? AND idempotency_key = ?",
                )?
                .query_row([tenant.as_str(), &key.key], |r| Ok((r.get(0)?, r.get(1)?)))
                .optional()?)
        })?;
        match row {
            None => Ok(None),
            Some((content, body)) if content == key.content.as_bytes() => {
                Ok(Some(damaged(serde_json::from_str(&body))?))
            }
            Some(_) => Err(RegistryError::Exists(format!(
                "another request with the idempotency key {:?}",
                key.key
            ))),
        }
    }

    /// Bulk moves that a stop cut short are partial from now on. Called at the start, when none can be under way.
    ///
    /// # Errors
    /// [`RegistryError`] if it cannot be read or written.
    pub fn conclude_receipts(&self) -> Result<(), RegistryError> {
        let running: Vec<Receipt> = self.read(running)?;
        for mut receipt in running {
            receipt.cut_short("the server stopped before it was done");
            self.keep_receipt(receipt, None)?;
        }
        Ok(())
    }
}

fn running(db: &Connection) -> Result<Vec<Receipt>, RegistryError> {
    let mut statement = db.prepare_cached("SELECT body FROM receipts WHERE state = 'running'")?;
    let mut rows = statement.query([])?;
    let mut found = Vec::new();
    while let Some(r) = rows.next()? {
        found.push(damaged(serde_json::from_str(&r.get::<_, String>(0)?))?);
    }
    Ok(found)
}
