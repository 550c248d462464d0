//! Refusals that have one cause: the same code, at the same stage, of the same tenant, about the same thing. Counted by
//! the hour, so that they can be asked for since a moment, and whether or not their rows are still there.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use countersign_identity::{TenantId, Timestamp};
use countersign_policy::{DenialCode, ExchangeId, ExchangeRecord, Outcome, Possession, Stage, StageOutcome};
use rusqlite::{OptionalExtension, Transaction, params};
use serde::Serialize;

use super::sketch::{Sketch, hash};
use super::{Kept, LedgerLimits};
use crate::change::damaged;
use crate::error::RegistryError;

/// The longest subject that is kept, in bytes.
const SUBJECT_MAX: usize = 200;
/// What more subjects of one code than may be told apart go under.
const OTHERS: &str = "(others)";
const HOUR_MS: i64 = 3_600_000;

/// What refusals are grouped by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    known: bool,
    tenant: String,
    code: DenialCode,
    stage: Stage,
    subject: String,
}

/// What a batch adds to a cause in one hour.
#[derive(Debug)]
struct Delta {
    exchanges: u64,
    first: i64,
    last: i64,
    example: i64,
    certificates: Sketch,
    devices: Sketch,
    sources: Sketch,
}

/// Refusals of one cause.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CauseGroup {
    /// Where the list goes on after it.
    pub cursor: String,
    /// The tenant, if it was known by then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The code of the denial.
    pub code: DenialCode,
    /// The stage that refused.
    pub stage: Stage,
    /// What it is about: the issuer that is missing, the authority, the policies, the name … ; `(others)` for more of
    /// them than are told apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// How many exchanges, in the hours asked for.
    pub exchanges: u64,
    /// How many of these were of known devices: registered, and the key was proven.
    pub of_known_devices: u64,
    /// How many different certificates were shown; an estimate above 64.
    pub certificates: u64,
    /// How many different devices; an estimate above 64.
    pub devices: u64,
    /// How many different addresses they came from; an estimate above 64.
    pub sources: u64,
    /// Some of the three numbers are estimates, 5 % off or so.
    pub estimated: bool,
    /// When the first of all that is kept was.
    pub first: Timestamp,
    /// When the last was.
    pub last: Timestamp,
    /// The last one.
    pub example: ExchangeId,
    /// The cause, in plain words.
    pub cause: &'static str,
    /// What to do about it.
    pub cure: &'static str,
}

/// The writer's half: how many subjects each code has, so that they stay few.
#[derive(Debug, Default)]
pub(crate) struct Causes {
    subjects: HashMap<(bool, String, DenialCode), u64>,
    /// Refusals whose subject was not told apart.
    pub(crate) unnamed: u64,
}

impl Causes {
    pub(crate) fn load(db: &rusqlite::Connection) -> Result<Self, RegistryError> {
        let mut causes = Self::default();
        let mut statement =
            db.prepare("SELECT known, tenant, code, count(*) FROM causes GROUP BY known, tenant, code")?;
        let mut rows = statement.query([])?;
        while let Some(r) = rows.next()? {
            // A code of a later version is nobody's to count.
            if let Ok(code) = r.get::<_, String>(2)?.parse() {
                let key = (r.get(0)?, r.get(1)?, code);
                causes.subjects.insert(key, r.get::<_, i64>(3)?.cast_unsigned());
            }
        }
        Ok(causes)
    }

    /// Adds what a batch brought.
    pub(crate) fn add(
        &mut self,
        tx: &Transaction<'_>,
        batch: &[Box<Kept>],
        limits: &LedgerLimits,
    ) -> Result<(), RegistryError> {
        let mut deltas: HashMap<(Key, i64), Delta> = HashMap::new();
        for kept in batch {
            let refused = matches!(kept.record.outcome, Outcome::Refused | Outcome::RefusedByDevice);
            if let (true, Some(key)) = (refused, key(kept)) {
                let hour = kept.record.started.unix_ms().div_euclid(HOUR_MS);
                add(&mut deltas, key, hour, kept);
            }
        }
        // What finds no room is put together first: of a flood of subjects one row is written.
        let mut others: HashMap<(Key, i64), Delta> = HashMap::new();
        for ((key, hour), delta) in deltas {
            match self.cause(tx, &key, &delta, limits)? {
                Some(cause) => merge(tx, cause, hour, delta)?,
                None => {
                    self.unnamed += delta.exchanges;
                    let subject = OTHERS.to_owned();
                    match others.entry((Key { subject, ..key }, hour)) {
                        Entry::Vacant(entry) => {
                            entry.insert(delta);
                        }
                        Entry::Occupied(mut entry) => entry.get_mut().merge(delta),
                    }
                }
            }
        }
        for ((key, hour), delta) in others {
            let cause = match touch(tx, &key, &delta)? {
                Some(cause) => cause,
                None => insert(tx, &key, &delta)?,
            };
            merge(tx, cause, hour, delta)?;
        }
        Ok(())
    }

    /// The cause's id, made if there is room for it; `None` if there is not.
    fn cause(
        &mut self,
        tx: &Transaction<'_>,
        key: &Key,
        delta: &Delta,
        limits: &LedgerLimits,
    ) -> Result<Option<i64>, RegistryError> {
        if let Some(id) = touch(tx, key, delta)? {
            return Ok(Some(id));
        }
        let of_code = (key.known, key.tenant.clone(), key.code);
        let subjects = self.subjects.entry(of_code).or_default();
        if *subjects >= limits.subjects_per_code_max {
            return Ok(None);
        }
        *subjects += 1;
        insert(tx, key, delta).map(Some)
    }

    /// Forgets hours that are too old or too many, strangers' and known devices' each by themselves, and causes that
    /// have none left.
    pub(crate) fn prune(&mut self, tx: &Transaction<'_>, limits: &LedgerLimits) -> Result<(), RegistryError> {
        let newest: Option<i64> = tx.query_row("SELECT max(hour) FROM cause_hours", [], |r| r.get(0))?;
        let Some(newest) = newest else { return Ok(()) };
        let age = i64::try_from(limits.age_max.as_secs() / 3600).unwrap_or(i64::MAX);
        tx.execute(
            "DELETE FROM cause_hours WHERE hour < ?",
            [newest.saturating_sub(age)],
        )?;
        let max = limits.cause_hours_max.cast_signed();
        for known in [false, true] {
            let over: i64 = tx.query_row(
                "SELECT count(*) - ?2 FROM cause_hours WHERE cause IN (SELECT id FROM causes WHERE known = ?1)",
                params![known, max],
                |r| r.get(0),
            )?;
            if over > 0 {
                tx.execute(
                    "DELETE FROM cause_hours WHERE (cause, hour) IN (SELECT cause, hour FROM cause_hours
                     WHERE cause IN (SELECT id FROM causes WHERE known = ?1) ORDER BY hour LIMIT ?2)",
                    params![known, over + max / 20],
                )?;
            }
        }
        let gone = tx.execute(
            "DELETE FROM causes WHERE NOT EXISTS (SELECT 1 FROM cause_hours WHERE cause = causes.id)",
            [],
        )?;
        if gone > 0 {
            self.subjects = Self::load(tx)?.subjects;
        }
        Ok(())
    }
}

fn add(deltas: &mut HashMap<(Key, i64), Delta>, key: Key, hour: i64, kept: &Kept) {
    let record = &kept.record;
    let (at, id) = (record.started.unix_ms(), record.id.as_u64().cast_signed());
    let delta = deltas.entry((key, hour)).or_insert_with(|| Delta {
        exchanges: 0,
        first: at,
        last: at,
        example: id,
        certificates: Sketch::default(),
        devices: Sketch::default(),
        sources: Sketch::default(),
    });
    delta.exchanges += 1;
    delta.first = delta.first.min(at);
    delta.last = delta.last.max(at);
    delta.example = delta.example.max(id);
    if let Some(shown) = &record.certificate {
        delta.certificates.add(hash(shown.fingerprint.as_bytes()));
    }
    let owner = kept.owner.as_ref().map(|(_, device)| device);
    let proven = record.possession == Possession::Proven;
    if let Some(device) = owner.or(record.device.as_ref().filter(|_| proven)) {
        delta.devices.add(hash(device.as_str().as_bytes()));
    }
    delta.sources.add(hash(&super::address(record.source.ip())));
}

impl Delta {
    fn merge(&mut self, other: Self) {
        self.exchanges += other.exchanges;
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
        self.example = self.example.max(other.example);
        self.certificates.merge(&other.certificates);
        self.devices.merge(&other.devices);
        self.sources.merge(&other.sources);
    }
}

fn insert(tx: &Transaction<'_>, key: &Key, delta: &Delta) -> Result<i64, RegistryError> {
    tx.prepare_cached(
        "INSERT INTO causes (known, tenant, code, stage, subject, first, last, example)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        key.known,
        key.tenant,
        key.code.as_str(),
        key.stage.name(),
        key.subject,
        delta.first,
        delta.last,
        delta.example
    ])?;
    Ok(tx.last_insert_rowid())
}

/// Brings a cause that is there up to date; `None` if it is not.
fn touch(tx: &Transaction<'_>, key: &Key, delta: &Delta) -> Result<Option<i64>, RegistryError> {
    Ok(tx
        .prepare_cached(
            "UPDATE causes SET first = min(first, ?6), last = max(last, ?7), example = max(example, ?8)
             WHERE known = ?1 AND tenant = ?2 AND code = ?3 AND stage = ?4 AND subject = ?5 RETURNING id",
        )?
        .query_row(
            params![
                key.known,
                key.tenant,
                key.code.as_str(),
                key.stage.name(),
                key.subject,
                delta.first,
                delta.last,
                delta.example
            ],
            |r| r.get(0),
        )
        .optional()?)
}

fn merge(tx: &Transaction<'_>, cause: i64, hour: i64, mut delta: Delta) -> Result<(), RegistryError> {
    let before: Option<(i64, [Sketch; 3])> = tx
        .prepare_cached(
            "SELECT exchanges, certificates, devices, sources FROM cause_hours WHERE cause = ? AND hour = ?",
        )?
        .query_row([cause, hour], |r| Ok((r.get(0)?, sketches(r, 1)?)))
        .optional()?;
    if let Some((exchanges, [certificates, devices, sources])) = before {
        delta.exchanges += exchanges.cast_unsigned();
        delta.certificates.merge(&certificates);
        delta.devices.merge(&devices);
        delta.sources.merge(&sources);
    }
    tx.prepare_cached("INSERT OR REPLACE INTO cause_hours VALUES (?, ?, ?, ?, ?, ?)")?
        .execute(params![
            cause,
            hour,
            delta.exchanges.cast_signed(),
            delta.certificates.to_bytes(),
            delta.devices.to_bytes(),
            delta.sources.to_bytes()
        ])?;
    Ok(())
}

fn sketches(r: &rusqlite::Row<'_>, from: usize) -> rusqlite::Result<[Sketch; 3]> {
    let one = |n| Ok::<_, rusqlite::Error>(Sketch::from_bytes(r.get_ref(n)?.as_blob()?));
    Ok([one(from)?, one(from + 1)?, one(from + 2)?])
}

/// What a refusal is grouped by; `None` if nothing was refused.
fn key(kept: &Kept) -> Option<Key> {
    let record = &kept.record;
    let denial = record.denial.as_ref()?;
    let failed = record
        .stages
        .iter()
        .rev()
        .find(|s| s.outcome == StageOutcome::Failed);
    let tenant = record.tenant.as_ref().or(kept.owner.as_ref().map(|(t, _)| t));
    let mut subject = subject(record, denial.code).unwrap_or_default();
    if subject.len() > SUBJECT_MAX {
        let end = (0..=SUBJECT_MAX).rev().find(|n| subject.is_char_boundary(*n));
        subject.truncate(end.unwrap_or(0));
    }
    Some(Key {
        known: kept.owner.is_some(),
        tenant: tenant.map(|t| t.to_string()).unwrap_or_default(),
        code: denial.code,
        stage: failed.map_or(denial.code.stage(), |s| s.stage),
        subject,
    })
}

/// What a refusal is about: that which, put right once, puts all of them right.
fn subject(record: &ExchangeRecord, code: DenialCode) -> Option<String> {
    let fact = |name: &str| {
        record
            .facts
            .iter()
            .find(|(k, _)| k == name)
            .map(|(_, v)| v.as_str())
    };
    let shown = || record.certificate.as_ref().map(|c| c.issuer.as_str());
    let authority = || record.authority.as_ref().map(|a| format!("authority {a}"));
    let policies = || (!record.policies.is_empty()).then(|| format!("policy {}", record.policies.join(", ")));
    match code {
        DenialCode::UnknownServerName => fact("server_name").map(|n| format!("server name {n}")),
        DenialCode::NoApplicationProtocol => fact("alpn_offered").map(|n| format!("protocols {n}")),
        // The end of the chain that was sent: the one whose issuer is missing.
        DenialCode::UnknownCa | DenialCode::RevocationUnknown => {
            let detail = record.denial.as_ref().and_then(|d| d.detail.split('"').nth(1));
            detail.or_else(shown).map(|issuer| format!("issuer {issuer}"))
        }
        DenialCode::TopicForbidden => policies().or_else(|| {
            let topic = fact("topic")?;
            let device = record.device.as_ref()?.as_str();
            Some(format!("topic {}", topic.replace(device, "{device}")))
        }),
        _ => match code.stage() {
            Stage::ClientCertificate | Stage::CertificateVerify | Stage::Identify => {
                authority().or_else(|| shown().map(|issuer| format!("issuer {issuer}")))
            }
            Stage::Policy | Stage::FirstData => policies(),
            _ => None,
        },
    }
}

/// Which groups are asked for.
#[derive(Debug, Clone, Default)]
pub struct CauseQuery {
    /// Counted since this moment: since the beginning of its hour.
    pub since: Option<Timestamp>,
    /// Of this tenant.
    pub tenant: Option<TenantId>,
    /// With this code.
    pub code: Option<DenialCode>,
    /// After the group with this cursor.
    pub after: Option<String>,
    /// At most so many.
    pub limit: usize,
}

/// Groups, the ones with most exchanges first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CausePage {
    /// The groups.
    pub groups: Vec<CauseGroup>,
    /// Where the next page begins.
    pub next: Option<String>,
    /// The beginning of the oldest hour that is kept of any cause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept_since: Option<Timestamp>,
}

type GroupKey = (String, String, String, String);

impl super::Ledger {
    /// Refusals by cause.
    ///
    /// # Errors
    /// As for [`super::Ledger::exchange`].
    pub fn causes(&self, asked: &CauseQuery) -> Result<CausePage, RegistryError> {
        let since = asked.since.map_or(0, |t| t.unix_ms().div_euclid(HOUR_MS));
        let mut found: HashMap<GroupKey, (CauseGroup, [Sketch; 3])> = HashMap::new();
        let oldest: Option<i64>;
        {
            let db = self.reader.lock();
            oldest = db.query_row("SELECT min(hour) FROM cause_hours", [], |r| r.get(0))?;
            let mut statement = db.prepare_cached(
                "SELECT known, tenant, code, stage, subject, first, last, example, exchanges,
                 certificates, devices, sources
                 FROM causes JOIN cause_hours ON cause = id
                 WHERE hour >= ?1 AND (?2 IS NULL OR tenant = ?2) AND (?3 IS NULL OR code = ?3)",
            )?;
            let mut rows = statement.query(params![
                since,
                asked.tenant.as_ref().map(TenantId::as_str),
                asked.code.map(DenialCode::as_str)
            ])?;
            while let Some(r) = rows.next()? {
                let key: GroupKey = (r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?);
                let Ok(code) = key.1.parse::<DenialCode>() else {
                    continue;
                };
                let Some(stage) = Stage::ALL.into_iter().find(|s| s.name() == key.2) else {
                    continue;
                };
                let (first, last) = (
                    Timestamp::from_unix_ms(r.get(5)?),
                    Timestamp::from_unix_ms(r.get(6)?),
                );
                let example = ExchangeId::from_u64(r.get::<_, i64>(7)?.cast_unsigned());
                let more: [Sketch; 3] = damaged(sketches(r, 9))?;
                let (group, all) = found.entry(key.clone()).or_insert_with(|| {
                    let group = CauseGroup {
                        cursor: cursor(&key),
                        tenant: Some(key.0).filter(|t| !t.is_empty()),
                        code,
                        stage,
                        subject: Some(key.3).filter(|s| !s.is_empty()),
                        exchanges: 0,
                        of_known_devices: 0,
                        certificates: 0,
                        devices: 0,
                        sources: 0,
                        estimated: false,
                        first,
                        last,
                        example,
                        cause: code.cause(),
                        cure: code.cure(),
                    };
                    (group, Default::default())
                });
                let exchanges = r.get::<_, i64>(8)?.cast_unsigned();
                group.exchanges += exchanges;
                if r.get(0)? {
                    group.of_known_devices += exchanges;
                }
                group.first = group.first.min(first);
                group.last = group.last.max(last);
                group.example = group.example.max(example);
                for (all, more) in all.iter_mut().zip(&more) {
                    all.merge(more);
                }
            }
        }
        let mut groups: Vec<CauseGroup> = found
            .into_values()
            .map(|(group, all)| {
                let [certificates, devices, sources] = &all;
                CauseGroup {
                    certificates: certificates.count(),
                    devices: devices.count(),
                    sources: sources.count(),
                    estimated: !all.iter().all(Sketch::is_exact),
                    ..group
                }
            })
            .collect();
        groups.sort_by(|a, b| (b.exchanges, b.last, &b.cursor).cmp(&(a.exchanges, a.last, &a.cursor)));
        if let Some(after) = &asked.after {
            let at = groups.iter().position(|g| g.cursor == *after);
            groups.drain(..at.map_or(groups.len(), |n| n + 1));
        }
        let more = groups.len() > asked.limit;
        groups.truncate(asked.limit);
        let oldest = oldest.map(|hour| Timestamp::from_unix_ms(hour.saturating_mul(HOUR_MS)));
        Ok(CausePage {
            next: more.then(|| groups.last().map(|g| g.cursor.clone())).flatten(),
            groups,
            kept_since: oldest,
        })
    }
}

/// Names a group; stays the same while it grows.
fn cursor(key: &GroupKey) -> String {
    let text = [&*key.0, &*key.1, &*key.2, &*key.3].join("\0");
    format!("{:016x}", hash(text.as_bytes()))
}
