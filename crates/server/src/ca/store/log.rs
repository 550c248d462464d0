//! The CA's log: who did what, when; each entry's hash covers the one before.

use aws_lc_rs::digest::{Context, SHA256};
use countersign_identity::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::super::error::CaError;

/// What is hashed: each field with its length in front, so that no two entries have the same bytes.
fn hash(before: &[u8], seq: i64, at: i64, fields: [&str; 4]) -> Vec<u8> {
    let mut context = Context::new(&SHA256);
    context.update(before);
    context.update(&seq.to_be_bytes());
    context.update(&at.to_be_bytes());
    for field in fields {
        context.update(&(field.len() as u64).to_be_bytes());
        context.update(field.as_bytes());
    }
    context.finish().as_ref().to_vec()
}

/// Appends an entry, in the transaction of what it tells of.
pub(super) fn append(
    db: &Connection,
    at: Timestamp,
    actor: &str,
    action: &str,
    subject: &str,
    detail: &serde_json::Value,
) -> Result<(), CaError> {
    let last: Option<(i64, Vec<u8>)> = db
        .prepare_cached("SELECT seq, hash FROM log ORDER BY seq DESC LIMIT 1")?
        .query_row([], |r| Ok((r.get(0)?, r.get(1)?)))
        .optional()?;
    let (seq, before) = last.map_or((1, vec![0; 32]), |(seq, hash)| (seq + 1, hash));
    let detail = detail.to_string();
    let hash = hash(&before, seq, at.unix_ms(), [actor, action, subject, &detail]);
    db.prepare_cached(
        "INSERT INTO log (seq, at, actor, action, subject, detail, hash) VALUES (?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![seq, at.unix_ms(), actor, action, subject, detail, hash])?;
    Ok(())
}

/// Walks the whole chain: how many entries there are, or the first that does not fit.
///
/// # Errors
/// [`CaError`] if it cannot be read.
pub fn verify(db: &Connection) -> Result<Result<u64, i64>, CaError> {
    let mut statement =
        db.prepare("SELECT seq, at, actor, action, subject, detail, hash FROM log ORDER BY seq")?;
    let mut rows = statement.query([])?;
    let (mut before, mut count) = (vec![0; 32], 0u64);
    while let Some(r) = rows.next()? {
        let (seq, at): (i64, i64) = (r.get(0)?, r.get(1)?);
        let fields: [String; 4] = [r.get(2)?, r.get(3)?, r.get(4)?, r.get(5)?];
        let kept: Vec<u8> = r.get(6)?;
        count += 1;
        let expected = hash(&before, seq, at, fields.each_ref().map(String::as_str));
        if i64::try_from(count) != Ok(seq) || kept != expected {
            return Ok(Err(seq));
        }
        before = expected;
    }
    Ok(Ok(count))
}
