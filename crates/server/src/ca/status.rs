//! Revocation lists and OCSP answers, of the CA's own store alone: what has ended there is on them, whoever asks.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use countersign_authority::status::{IssuerHashes, OcspError, Questions, Responder, Status};
use countersign_factory::{RevocationReason, Revoked};
use countersign_identity::{AuthorityId, Timestamp};
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::json;

use super::Ca;
use super::error::CaError;
use super::store::{CLOCK_SLACK, now};

/// A list is made anew at least so often.
const LIST_AGE: Duration = Duration::from_secs(3600);
/// One that is younger also answers whoever asks for another validity: asking alone must not make the CA sign and log.
const LIST_AGE_MIN: Duration = Duration::from_secs(60);

/// What is kept between requests.
#[derive(Default)]
pub struct Lists {
    lists: Mutex<HashMap<AuthorityId, List>>,
    responders: Mutex<HashMap<AuthorityId, (Timestamp, Arc<Responder>)>>,
}

struct List {
    hours: u32,
    der: Vec<u8>,
    made: Timestamp,
    /// The newest entry of the log that makes older lists wrong.
    seq: i64,
}

fn revoked(r: &rusqlite::Row<'_>) -> Result<Revoked, CaError> {
    let code: u8 = r.get::<_, Option<u8>>(2)?.unwrap_or_default();
    Ok(Revoked {
        serial: r.get(0)?,
        at: Timestamp::from_unix_ms(r.get(1)?),
        reason: RevocationReason::try_from(code).unwrap_or_default(),
    })
}

/// A certificate ended, or the dates of what was signed were of a wrong clock.
fn newest_change(db: &Connection) -> Result<i64, CaError> {
    let newest: Option<i64> = db.query_row(
        "SELECT max(seq) FROM log WHERE action IN ('certificate.end', 'clock.reset')",
        [],
        |r| r.get(0),
    )?;
    Ok(newest.unwrap_or(0))
}

impl Ca {
    fn good_for(&self, asked_hours: u32) -> (u32, Duration) {
        let hours = asked_hours.clamp(1, self.settings.next_update_hours_max);
        (hours, Duration::from_secs(u64::from(hours) * 3600))
    }

    /// A revocation list of an authority, open or closed.
    ///
    /// # Errors
    /// [`CaError`].
    pub fn revocation_list(&self, actor: &str, id: &AuthorityId, hours: u32) -> Result<Vec<u8>, CaError> {
        let (hours, good_for) = self.good_for(hours);
        let seq = self.store.read(newest_change)?;
        if let Some(list) = self.lists.lists.lock().get(id)
            && list.seq == seq
            && list.made <= now().plus(CLOCK_SLACK)
            && now().since(list.made)
                < if list.hours == hours {
                    LIST_AGE
                } else {
                    LIST_AGE_MIN
                }
        {
            return Ok(list.der.clone());
        }
        let authority_id = id.clone();
        let (number, made, entries) = self.store.write(actor, move |scope| {
            scope.need_clock()?;
            // The number grows from list to list, over restarts too (RFC 5280 section 5.2.3).
            let number: Option<i64> = scope
                .db
                .query_row(
                    "UPDATE authorities SET list_number = max(list_number + 1, ?2) WHERE id = ?1 RETURNING list_number",
                    params![authority_id.as_str(), scope.now.unix_ms()],
                    |r| r.get(0),
                )
                .optional()?;
            let number = number.ok_or_else(|| CaError::NoAuthority(authority_id.clone()))?;
            let mut statement = scope.db.prepare_cached(
                "SELECT serial, ended, reason FROM certificates
                 WHERE authority = ? AND ended IS NOT NULL AND not_after >= ? ORDER BY serial",
            )?;
            // Also on one list after its expiry (section 3.3).
            let since = scope.now.minus(good_for);
            let mut rows = statement.query(params![authority_id.as_str(), since.unix_ms()])?;
            let mut entries = Vec::new();
            while let Some(r) = rows.next()? {
                entries.push(revoked(r)?);
            }
            let detail = json!({ "number": number, "entries": entries.len() });
            scope.log("list.sign", authority_id.as_str(), &detail)?;
            Ok((number.cast_unsigned(), scope.now, entries))
        })?;
        let der = self
            .keys
            .authority(id)?
            .revocation_list(&entries, number, made, made.plus(good_for))
            .map_err(|e| CaError::Mint(e.to_string()))?;
        let list = List {
            hours,
            der: der.clone(),
            made,
            seq,
        };
        self.lists.lists.lock().insert(id.clone(), list);
        Ok(der)
    }

    /// The responder of an authority; a new one, with a key of its own, while the last does not outlast an answer.
    fn responder(
        &self,
        actor: &str,
        id: &AuthorityId,
        good_for: Duration,
    ) -> Result<Arc<Responder>, CaError> {
        let at = now();
        // One of a time to come was made by a wrong clock: nobody would believe it.
        if let Some((made, good)) = self.lists.responders.lock().get(id)
            && *made <= at.plus(CLOCK_SLACK)
            && at.plus(good_for) < good.not_after()
        {
            return Ok(good.clone());
        }
        let made = self
            .keys
            .authority(id)?
            .responder(at)
            .map_err(|e| CaError::Mint(e.to_string()))?;
        let (made, of) = (Arc::new(made), id.clone());
        let until = made.not_after();
        self.store.write(actor, move |scope| {
            scope.need_clock()?;
            scope.log(
                "responder.issue",
                of.as_str(),
                &json!({ "not_after": until.to_string() }),
            )
        })?;
        self.lists
            .responders
            .lock()
            .insert(id.clone(), (at, made.clone()));
        Ok(made)
    }

    /// An OCSP answer. What cannot be answered is an answer too (RFC 6960 section 2.3).
    ///
    /// # Errors
    /// [`CaError`] if the store or a key fails.
    pub fn ocsp(&self, actor: &str, request: &[u8], hours: u32) -> Result<Vec<u8>, CaError> {
        let questions = match Questions::parse(request) {
            Ok(questions) => questions,
            Err(e) => return Ok(e.to_der()),
        };
        // A responder's certificate lasts a week: an answer must not outlive it.
        let (_, good_for) = self.good_for(hours.min(96));
        let authorities: Vec<(String, Vec<u8>)> = self.store.read(|db| {
            let mut statement = db.prepare_cached("SELECT id, certificate FROM authorities")?;
            let found = statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?;
            Ok(found.collect::<Result<_, _>>()?)
        })?;
        let damaged = |e: &dyn std::fmt::Display| CaError::Storage(format!("an entry cannot be read: {e}"));
        for (id, certificate) in authorities {
            // Whose answer it is, its certificate tells: no key of another authority is waited for.
            let issuer = IssuerHashes::of(&certificate).map_err(|e| damaged(&e))?;
            if !questions.list.iter().all(|q| issuer.is_asked(q)) {
                continue;
            }
            let id: AuthorityId = id.parse().map_err(|e| damaged(&e))?;
            let responder = self.responder(actor, &id, good_for)?;
            let statuses = self.store.read(|db| {
                questions
                    .list
                    .iter()
                    .map(|question| status(db, &id, &question.serial))
                    .collect::<Result<Vec<_>, _>>()
            })?;
            let at = now();
            return responder
                .answer(&questions, &statuses, at, at.plus(good_for))
                .map_err(|e| CaError::Mint(e.to_string()));
        }
        Ok(OcspError::Unauthorized.to_der())
    }
}

fn status(db: &Connection, authority: &AuthorityId, serial: &str) -> Result<Status, CaError> {
    let mut statement = db.prepare_cached(
        "SELECT serial, ended, reason FROM certificates WHERE authority = ? AND serial = ?",
    )?;
    let mut rows = statement.query([authority.as_str(), serial])?;
    let Some(r) = rows.next()? else {
        return Ok(Status::Unknown);
    };
    match r.get::<_, Option<i64>>(1)? {
        None => Ok(Status::Good),
        Some(_) => Ok(Status::Revoked(revoked(r)?)),
    }
}
