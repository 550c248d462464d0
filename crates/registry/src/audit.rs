//! The audit: who did what to whom, when; each entry's hash covers the one before.

use aws_lc_rs::digest::{Context, SHA256};
use countersign_identity::Timestamp;
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use serde::Serialize;

use crate::error::RegistryError;

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditEntry {
    /// Counts from 1.
    pub seq: i64,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub actor: String,
    /// What, such as `device.suspend`.
    pub action: String,
    /// In which tenant; empty for none.
    pub tenant: String,
    /// On what.
    pub subject: String,
    /// The particulars, as JSON.
    pub detail: String,
    /// SHA-256 over the hash before and all of the above, hex.
    pub hash: String,
}

/// The chain of hashes does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the audit was tampered with: entry {seq} does not follow from the one before it")]
pub struct AuditFault {
    /// The first entry that does not fit.
    pub seq: i64,
}

/// What is hashed: each field with its length in front, so that no two entries have the same bytes.
fn hash(before: &[u8], seq: i64, at: Timestamp, fields: [&str; 5]) -> Vec<u8> {
    let mut context = Context::new(&SHA256);
    context.update(before);
    context.update(&seq.to_be_bytes());
    context.update(&at.unix_ms().to_be_bytes());
    for field in fields {
        context.update(&(field.len() as u64).to_be_bytes());
        context.update(field.as_bytes());
    }
    context.finish().as_ref().to_vec()
}

/// Appends an entry, in the transaction of what it tells of.
pub(crate) fn append(
    tx: &Transaction<'_>,
    at: Timestamp,
    actor: &str,
    action: &str,
    tenant: &str,
    subject: &str,
    detail: &serde_json::Value,
) -> Result<(), RegistryError> {
    let last: Option<(i64, Vec<u8>)> = tx
        .prepare_cached("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")?
        .query_row([], |r| Ok((r.get(0)?, r.get(1)?)))
        .optional()?;
    let (seq, before) = last.map_or((1, vec![0; 32]), |(seq, hash)| (seq + 1, hash));
    let detail = detail.to_string();
    let hash = hash(&before, seq, at, [actor, action, tenant, subject, &detail]);
    tx.prepare_cached(
        "INSERT INTO audit (seq, at, actor, action, tenant, subject, detail, hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![seq, at.unix_ms(), actor, action, tenant, subject, detail, hash])?;
    Ok(())
}

/// The newest entries, newest first.
pub(crate) fn newest(db: &Connection, limit: u32) -> Result<Vec<AuditEntry>, RegistryError> {
    let mut statement = db.prepare_cached(
        "SELECT seq, at, actor, action, tenant, subject, detail, hash FROM audit ORDER BY seq DESC LIMIT ?",
    )?;
    let rows = statement.query_map([limit], entry)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn entry(r: &rusqlite::Row<'_>) -> rusqlite::Result<AuditEntry> {
    Ok(AuditEntry {
        seq: r.get(0)?,
        at: Timestamp::from_unix_ms(r.get(1)?),
        actor: r.get(2)?,
        action: r.get(3)?,
        tenant: r.get(4)?,
        subject: r.get(5)?,
        detail: r.get(6)?,
        hash: hex::encode(r.get::<_, Vec<u8>>(7)?),
    })
}

/// Walks the whole chain. Returns how many entries there are.
pub(crate) fn verify(db: &Connection) -> Result<Result<u64, AuditFault>, RegistryError> {
    let mut statement =
        db.prepare("SELECT seq, at, actor, action, tenant, subject, detail, hash FROM audit ORDER BY seq")?;
    let (mut before, mut count) = (vec![0; 32], 0u64);
    for row in statement.query_map([], entry)? {
        let e = row?;
        count += 1;
        let fields = [e.actor.as_str(), &e.action, &e.tenant, &e.subject, &e.detail];
        let expected = hash(&before, e.seq, e.at, fields);
        if i64::try_from(count) != Ok(e.seq) || hex::encode(&expected) != e.hash {
            return Ok(Err(AuditFault { seq: e.seq }));
        }
        before = expected;
    }
    Ok(Ok(count))
}
