//! From the account of a journal to registered identities: each entry once, in order, by chunks; a journal that
//! contradicts one that was accepted before is refused as a whole.

use countersign_factory::station::{Account, Entry, JournalFault, Refused, StationFault, Terms};
use countersign_factory::{Batch, DeviceStart, ProfileKind};
use countersign_identity::{AuthorityId, DeviceId, Fingerprint, StationId, Timestamp};
use countersign_policy::facts::CredentialKind;
use countersign_policy::lifecycle::Lifecycle;
use countersign_policy::{CredentialFacts, CredentialState, Custody, LifecycleState};
use rusqlite::params;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Row, StationState, read_station};
use crate::change::{Actor, NewDevice};
use crate::credential::{IssuanceRules, IssuedHere, NewCredential};
use crate::error::RegistryError;
use crate::store::Registry;
use crate::writer::Scope;

/// So many entries share one transaction: devices that connect meanwhile do not wait for thousands.
const CHUNK: usize = 200;
/// The most names in a report; the counts are whole.
const NAMES_MAX: usize = 100;

/// What became of a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// All that it tells of is registered.
    #[default]
    Accepted,
    /// Some of it was refused; the rest is registered.
    Partial,
    /// Nothing of it counts.
    Refused,
}

/// An entry that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedEntry {
    /// The number of its record.
    pub number: u64,
    /// The device.
    pub device: DeviceId,
    /// SHA-256 of its certificate.
    pub fingerprint: Fingerprint,
    /// Why: a stable code.
    pub code: String,
    /// Why, with the cure.
    pub message: String,
}

/// What a reconciliation did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reconciled {
    /// The station.
    pub station: Option<StationId>,
    /// What became of it.
    pub verdict: Verdict,
    /// Why nothing of it counts: a stable code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Why, with the cure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// How many records it has.
    pub records: u64,
    /// Whether the grant was closed.
    pub closed: bool,
    /// Whether it is older than one that was accepted: it had nothing to add.
    pub older: bool,
    /// Identities that were registered now.
    pub registered: u64,
    /// Identities that were registered before.
    pub known: u64,
    /// Certificates that became active, since their devices had proven their keys.
    pub confirmed: u64,
    /// How many devices have not proven their key.
    pub unconfirmed_count: u64,
    /// The first of them.
    pub unconfirmed: Vec<DeviceId>,
    /// How many ids were left out between the lowest and the highest.
    pub gaps_count: u64,
    /// The first of them.
    pub gaps: Vec<String>,
    /// What was refused.
    pub refused: Vec<RefusedEntry>,
    /// Numbers of records whose proof does not hold, or that tell of a certificate which is not there.
    pub doubtful: Vec<u64>,
}

impl Reconciled {
    /// Of a journal of which nothing counts.
    pub fn refused(station: Option<StationId>, code: &str, message: String) -> Self {
        Self {
            station,
            verdict: Verdict::Refused,
            code: Some(code.to_owned()),
            message: Some(message),
            ..Self::default()
        }
    }
}

impl Registry {
    /// Keeps in the audit that a journal was refused as a whole.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn refuse_journal(&self, actor: Actor, report: Reconciled) -> Result<Reconciled, RegistryError> {
        self.write(move |scope| {
            let id = report.station.as_ref().map_or("", StationId::as_str).to_owned();
            let detail = json!({ "code": report.code, "message": report.message });
            scope.audit(&actor, "station.journal-refused", "", &id, &detail)?;
            Ok(report)
        })
        .map(|committed| committed.value)
    }

    /// Registers what a station's account tells of. Safe to repeat, and to go on with after a cut.
    ///
    /// # Errors
    /// [`RegistryError`] if it cannot be written; a refusal is in the report.
    pub fn reconcile_station(
        &self,
        actor: Actor,
        id: StationId,
        account: Account,
        batch_start: DeviceStart,
    ) -> Result<Reconciled, RegistryError> {
        let rules = self.issuance_rules();
        let terms = self.station_terms(&id)?.0;
        let mut report = Reconciled {
            station: Some(id.clone()),
            records: account.head.records,
            closed: account.closed,
            doubtful: account.doubtful.iter().copied().take(NAMES_MAX).collect(),
            ..Reconciled::default()
        };
        let account = std::sync::Arc::new(account);
        // First what it is, and that it has begun; then each chunk looks again, so that a revocation in between counts.
        let (of, checked) = (account.clone(), id.clone());
        match self.write(move |scope| begin(scope, &checked, &of))?.value {
            Ok(older) => report.older = older,
            Err((code, message)) => {
                return self.refuse_journal(actor, Reconciled::refused(Some(id), code, message));
            }
        }
        let chunks = account.entries.len().div_ceil(CHUNK).max(1);
        for n in 0..chunks {
            let (of, station, terms, by) = (account.clone(), id.clone(), terms.clone(), actor.clone());
            let is_last = n + 1 == chunks;
            let committed = self.write(move |scope| {
                let row = match examine(scope, &station, &of)? {
                    Ok(examined) => examined.station,
                    Err((code, message)) => {
                        return Err(RegistryError::Refused(format!("{message} [{code}]")));
                    }
                };
                let entries = of.entries.iter().skip(n * CHUNK).take(CHUNK);
                let mut merge = Merge {
                    actor: &by,
                    station: &station,
                    authority: row.authority,
                    accepted: row.accepted,
                    terms: &terms,
                    rules,
                    start: batch_start,
                    registered: 0,
                    known: 0,
                    confirmed: 0,
                    into_batch: 0,
                    refused: Vec::new(),
                };
                for entry in entries {
                    merge.one(scope, entry)?;
                }
                merge.finish(scope)?;
                let part = (merge.registered, merge.known, merge.confirmed, merge.refused);
                if is_last {
                    finish(scope, &by, &station, &terms, &of, &part.3)?;
                }
                Ok(part)
            })?;
            let (registered, known, confirmed, refused) = committed.value;
            report.registered += registered;
            report.known += known;
            report.confirmed += confirmed;
            report.refused.extend(refused);
        }
        report.refused.extend(account.refused.iter().map(refused_entry));
        report.refused.sort_by_key(|r| r.number);
        let unconfirmed: Vec<_> = account
            .entries
            .iter()
            .filter(|e| e.confirmed.is_none())
            .map(|e| e.device.clone())
            .collect();
        report.unconfirmed_count = unconfirmed.len() as u64;
        report.unconfirmed = unconfirmed.into_iter().take(NAMES_MAX).collect();
        let ids = account.entries.iter().map(|e| &e.device);
        (report.gaps_count, report.gaps) = terms.ids.gaps(ids, NAMES_MAX);
        if !report.refused.is_empty() || !report.doubtful.is_empty() {
            report.verdict = Verdict::Partial;
        }
        Ok(report)
    }
}

fn refused_entry(r: &Refused) -> RefusedEntry {
    RefusedEntry {
        number: r.number,
        device: r.device.clone(),
        fingerprint: r.fingerprint,
        code: r.fault.code().into(),
        message: r.fault.to_string(),
    }
}

/// A refusal of the whole journal: a stable code and a text with the cure.
type Whole = (&'static str, String);

fn twin(what: String) -> Whole {
    let fault = JournalFault::Twin { what };
    (fault.code(), fault.to_string())
}

/// What a journal is, beside those that were taken before.
struct Examined {
    station: Row,
    /// Whether a longer one was accepted.
    is_shorter: bool,
}

/// Whether the journal goes together with what was taken before: it must agree with each within the length that both
/// have. Of those that have only begun that is all that is asked: what they tell of may not be registered yet.
fn examine(
    scope: &Scope<'_>,
    id: &StationId,
    account: &Account,
) -> Result<Result<Examined, Whole>, RegistryError> {
    let station = read_station(scope.tx, id)?;
    if station.state == StationState::Revoked {
        return Ok(Err((
            "station.revoked",
            format!(
                "station {id} was revoked: what it had not accounted for by then is refused for good; hint: give the devices new identities"
            ),
        )));
    }
    let mut statement = scope.tx.prepare_cached(
        "SELECT records, head, begun FROM station_journals WHERE station = ? ORDER BY records",
    )?;
    let mut rows = statement.query([id.as_str()])?;
    let mut newest = 0;
    while let Some(r) = rows.next()? {
        let records = r.get::<_, i64>(0)?.cast_unsigned();
        let head = Fingerprint::from_bytes(r.get(1)?);
        let has_only_begun: bool = r.get(2)?;
        if !has_only_begun {
            newest = newest.max(records);
        }
        let there = usize::try_from(records)
            .ok()
            .and_then(|n| account.hashes.get(n.checked_sub(1)?));
        if there.is_some_and(|hash| *hash != head) {
            let taken = if has_only_begun { "begun" } else { "accepted" };
            return Ok(Err(twin(format!(
                "one was {taken} that differs from it within the first {records} records"
            ))));
        }
    }
    Ok(Ok(Examined {
        station,
        is_shorter: account.head.records < newest,
    }))
}

/// The first transaction of a reconciliation: whether the journal is older than one that was accepted, and so has nothing
/// to add. Any other is kept as begun: were it cut off before its last chunk, another journal of the same station would
/// else not be told from it, and both would be registered.
fn begin(scope: &Scope<'_>, id: &StationId, account: &Account) -> Result<Result<bool, Whole>, RegistryError> {
    let examined = match examine(scope, id, account)? {
        Ok(examined) => examined,
        Err(whole) => return Ok(Err(whole)),
    };
    if !examined.is_shorter {
        scope.tx.execute(
            "INSERT OR IGNORE INTO station_journals (station, records, head, accepted, begun) VALUES (?, ?, ?, ?, 1)",
            params![
                id.as_str(),
                account.head.records.cast_signed(),
                account.head.hash.as_bytes(),
                scope.now.unix_ms()
            ],
        )?;
        return Ok(Ok(false));
    }
    // An old copy has nothing that is not known. Once is enough: nothing that is known here is ever forgotten.
    for entry in &account.entries {
        if scope.read_credential(&entry.facts.fingerprint)?.is_none() {
            let is_refused: bool = scope
                .tx
                .prepare_cached(
                    "SELECT EXISTS (SELECT 1 FROM station_refusals WHERE station = ? AND fingerprint = ?)",
                )?
                .query_row(params![id.as_str(), entry.facts.fingerprint.as_bytes()], |r| {
                    r.get(0)
                })?;
            if !is_refused {
                return Ok(Err(twin(format!(
                    "a longer one was accepted, and record {} of this one is not in it",
                    entry.number
                ))));
            }
        }
    }
    Ok(Ok(true))
}

struct Merge<'a> {
    actor: &'a Actor,
    station: &'a StationId,
    /// The factory CA above it.
    authority: AuthorityId,
    /// How many of its certificates had been accepted before this chunk.
    accepted: u64,
    terms: &'a Terms,
    rules: IssuanceRules,
    start: DeviceStart,
    registered: u64,
    known: u64,
    confirmed: u64,
    into_batch: u64,
    refused: Vec<RefusedEntry>,
}

impl Merge<'_> {
    fn one(&mut self, scope: &mut Scope<'_>, entry: &Entry) -> Result<(), RegistryError> {
        if let Some(facts) = scope.read_credential(&entry.facts.fingerprint)? {
            self.known += 1;
            match (entry.confirmed, facts.state) {
                (Some(_), CredentialState::Issued) => {
                    scope.activate_credential(facts, None, self.rules.overlap)?;
                    self.confirmed += 1;
                }
                (Some(confirmed), CredentialState::Lapsed) => {
                    self.confirm_lapsed(scope, entry, facts, confirmed)?;
                }
                _ => {}
            }
            return Ok(());
        }
        match self.fault_of(scope, entry)? {
            Some(fault) => self.refuse(entry, fault),
            None => self.register(scope, entry)?,
        }
        Ok(())
    }

    fn refuse(&mut self, entry: &Entry, fault: StationFault) {
        self.refused.push(refused_entry(&Refused {
            number: entry.number,
            device: entry.device.clone(),
            fingerprint: entry.facts.fingerprint,
            fault,
        }));
    }

    /// A confirmation for a certificate that lapsed here meanwhile.
    ///
    /// Only what was not confirmed lapses, and that is final. But a station is offline: its confirmation may have been
    /// there before, and the registry could not know. So the journal's own time of it decides, which the station signed and
    /// which its journal's order holds in place. Confirmed before the certificate lapsed: the lapse was an error, and is
    /// undone, unless the device was given another certificate since. Confirmed later: refused, and told.
    fn confirm_lapsed(
        &mut self,
        scope: &mut Scope<'_>,
        entry: &Entry,
        facts: CredentialFacts,
        confirmed: Timestamp,
    ) -> Result<(), RegistryError> {
        let lapsed = scope.ended_at(&facts.fingerprint)?;
        if confirmed >= lapsed {
            let device = entry.device.clone();
            self.refuse(
                entry,
                StationFault::Lapsed {
                    device,
                    confirmed,
                    lapsed,
                },
            );
            return Ok(());
        }
        let others = scope.credentials_where(
            "tenant = ? AND device = ? AND state IN ('issued', 'active') AND not_after >= ?",
            params![facts.tenant.as_str(), facts.device.as_str(), scope.now.unix_ms()],
        )?;
        if !others.is_empty() {
            let device = entry.device.clone();
            self.refuse(entry, StationFault::DuplicateId { device });
            return Ok(());
        }
        let detail = json!({
            "fingerprint": facts.fingerprint, "station": self.station, "confirmed": confirmed.to_string(),
            "lapsed": lapsed.to_string(),
        });
        let (tenant, device) = (facts.tenant.clone(), facts.device.clone());
        let issued = scope.undo_lapse(facts)?;
        scope.activate_credential(issued, None, self.rules.overlap)?;
        self.confirmed += 1;
        scope.audit(
            self.actor,
            "credential.confirm",
            tenant.as_str(),
            device.as_str(),
            &detail,
        )
    }

    /// What only the registry knows.
    fn fault_of(&self, scope: &Scope<'_>, entry: &Entry) -> Result<Option<StationFault>, RegistryError> {
        let (tenant, device) = (&self.terms.tenant, &entry.device);
        // The account counts within one journal; what was accepted of another one counts too.
        if self.accepted + self.registered >= self.terms.quota {
            return Ok(Some(StationFault::Overrun {
                quota: self.terms.quota,
            }));
        }
        if let Some((t, d)) = scope.key_of_other(tenant, device, &entry.facts.public_key_sha256)? {
            return Ok(Some(StationFault::KeyOfOther {
                other: format!("device {d} of tenant {t}"),
            }));
        }
        // A fault of this entry alone: as an error it would hold up the whole journal, each time it is brought.
        if let Some(service) = scope.service_of_key(&entry.facts.public_key_sha256)? {
            return Ok(Some(StationFault::KeyOfOther {
                other: format!("service {service}"),
            }));
        }
        // The factory CA's id stands for its stations too: their certificates' serial numbers are kept under it.
        if scope.is_lost(&self.authority, &entry.facts.serial)? {
            return Ok(Some(StationFault::RevokedBefore {
                device: device.clone(),
                serial: entry.facts.serial.clone(),
            }));
        }
        let Some((_, lifecycle, _)) = scope.device(tenant, device)? else {
            return Ok(None);
        };
        if lifecycle.state == LifecycleState::Decommissioned {
            return Ok(Some(StationFault::Decommissioned {
                device: device.clone(),
            }));
        }
        let others: bool = scope
            .tx
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM credentials WHERE tenant = ? AND device = ?)")?
            .query_row([tenant.as_str(), device.as_str()], |r| r.get(0))?;
        let foreign = scope
            .batch_of(tenant, device)?
            .flatten()
            .is_some_and(|batch| batch != self.terms.batch);
        Ok((others || foreign).then(|| StationFault::DuplicateId {
            device: device.clone(),
        }))
    }

    fn register(&mut self, scope: &mut Scope<'_>, entry: &Entry) -> Result<(), RegistryError> {
        let (tenant, device) = (&self.terms.tenant, &entry.device);
        let (batch, _) = scope.batch(tenant, &self.terms.batch)?;
        if scope.device(tenant, device)?.is_none() {
            scope.put_device(
                tenant,
                &new_device(&batch, self.start, device),
                Lifecycle::new(start_of(self.start)),
                scope.now,
            )?;
        }
        if scope.batch_of(tenant, device)?.flatten().is_none() {
            scope.put_in_batch(tenant, device, &self.terms.batch)?;
            self.into_batch += 1;
        }
        let generation = scope.revise(
            "credential",
            tenant.as_str(),
            &entry.facts.fingerprint.to_string(),
        )?;
        let credential = NewCredential {
            certificate: entry.facts.clone(),
            kind: match self.terms.profile.kind {
                ProfileKind::Factory => CredentialKind::Factory,
                ProfileKind::Operational => CredentialKind::Operational,
            },
            state: if entry.confirmed.is_some() {
                CredentialState::Active
            } else {
                CredentialState::Issued
            },
            custody: Custody::Unknown,
            authority: Some(self.authority.clone()),
            issued: Some(IssuedHere {
                certificate: entry.certificate.clone(),
                profile: self.terms.profile.name.clone(),
                batch: Some(self.terms.batch.clone()),
            }),
        };
        scope.insert_credential(tenant, device, &credential, Some(&self.authority), generation)?;
        scope
            .tx
            .prepare_cached("UPDATE credentials SET station = ?2 WHERE fingerprint = ?1")?
            .execute(params![entry.facts.fingerprint.as_bytes(), self.station.as_str()])?;
        scope
            .tx
            .prepare_cached("DELETE FROM station_refusals WHERE station = ? AND number = ?")?
            .execute(params![self.station.as_str(), entry.number.cast_signed()])?;
        self.registered += 1;
        self.confirmed += u64::from(entry.confirmed.is_some());
        Ok(())
    }

    fn finish(&self, scope: &mut Scope<'_>) -> Result<(), RegistryError> {
        let tenant = &self.terms.tenant;
        if self.registered > 0 {
            scope
                .tx
                .prepare_cached("UPDATE stations SET accepted = accepted + ?2 WHERE id = ?1")?
                .execute(params![self.station.as_str(), self.registered.cast_signed()])?;
        }
        if self.into_batch > 0 {
            let generation = scope.revise("batch", tenant.as_str(), self.terms.batch.as_str())?;
            scope.count_into_batch(tenant, &self.terms.batch, self.into_batch, generation)?;
        }
        keep_refusals(scope, self.station, &self.refused)
    }
}

fn start_of(start: DeviceStart) -> LifecycleState {
    match start {
        DeviceStart::Active => LifecycleState::Active,
        DeviceStart::Pending => LifecycleState::Pending,
    }
}

fn new_device(batch: &Batch, start: DeviceStart, id: &DeviceId) -> NewDevice {
    NewDevice {
        id: id.clone(),
        model: Some(batch.model.clone()),
        groups: batch.groups.clone(),
        state: start_of(start),
        authority: None,
    }
}

fn keep_refusals(
    scope: &Scope<'_>,
    station: &StationId,
    refused: &[RefusedEntry],
) -> Result<(), RegistryError> {
    for r in refused {
        scope
            .tx
            .prepare_cached(
                "INSERT OR REPLACE INTO station_refusals (station, number, device, fingerprint, code, message, at)
                 VALUES (?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                station.as_str(),
                r.number.cast_signed(),
                r.device.as_str(),
                r.fingerprint.as_bytes(),
                r.code,
                r.message,
                scope.now.unix_ms()
            ])?;
    }
    Ok(())
}

/// With the last chunk: where the journal stands, whether the grant is over, and the audit.
fn finish(
    scope: &mut Scope<'_>,
    actor: &Actor,
    id: &StationId,
    terms: &Terms,
    account: &Account,
    refused_here: &[RefusedEntry],
) -> Result<(), RegistryError> {
    let refused: Vec<_> = account.refused.iter().map(refused_entry).collect();
    keep_refusals(scope, id, &refused)?;
    let inserted = scope.tx.execute(
        "INSERT INTO station_journals (station, records, head, accepted, begun) VALUES (?, ?, ?, ?, 0)
         ON CONFLICT (station, records) DO UPDATE SET begun = 0, accepted = excluded.accepted WHERE begun = 1",
        params![
            id.as_str(),
            account.head.records.cast_signed(),
            account.head.hash.as_bytes(),
            scope.now.unix_ms()
        ],
    )?;
    if account.closed {
        scope.tx.execute(
            "UPDATE stations SET state = 'closed' WHERE id = ? AND state = 'granted'",
            [id.as_str()],
        )?;
    }
    if inserted == 0 {
        return Ok(());
    }
    let confirmed = account.entries.iter().filter(|e| e.confirmed.is_some()).count();
    let detail = json!({
        "records": account.head.records, "head": account.head.hash, "newest": newest(account.head.at),
        "entries": account.entries.len(), "confirmed": confirmed,
        "refused": refused.len() + refused_here.len(), "closed": account.closed,
    });
    scope.audit(
        actor,
        "station.reconcile",
        terms.tenant.as_str(),
        id.as_str(),
        &detail,
    )
}

fn newest(at: Timestamp) -> String {
    at.to_string()
}
