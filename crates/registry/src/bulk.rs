//! Many identities of one batch kept in one transaction: one revision, one audit entry, one sync; each of them is issued by
//! the same rules as a single one, and one that is refused leaves nothing behind and does not hold up the others.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use countersign_factory::{Batch, BatchRefusal, BatchStanding, DeviceStart, ProfileKind, RevocationReason};
use countersign_identity::{AuthorityId, BatchId, DeviceId, Fingerprint, Generation, TenantId, Timestamp};
use countersign_policy::{CredentialState, DeviceFacts, FactSource, LifecycleState};
use rusqlite::params;
use serde_json::json;

use crate::change::Actor;
use crate::credential::{IssuanceRules, IssueOutcome, IssueRequest, NewCredential, ProfileChoice, Requester};
use crate::error::RegistryError;
use crate::minting::unminted;
use crate::store::Registry;
use crate::table::Fact;
use crate::writer::{Committed, Scope};

/// Certificates are asked for, for devices of one batch.
#[derive(Debug, Clone)]
pub struct BulkIssue {
    /// The tenant.
    pub tenant: TenantId,
    /// The batch.
    pub batch: BatchId,
    /// Whether the profile demands a new key with every certificate.
    pub demands_new_key: bool,
    /// Whether a certificate for another key that nobody used or confirmed is revoked in favour of the new one.
    pub replace: bool,
    /// The devices.
    pub items: Vec<BulkItem>,
}

/// One device and its key.
#[derive(Debug, Clone)]
pub struct BulkItem {
    /// The device.
    pub device: DeviceId,
    /// SHA-256 of the key's SubjectPublicKeyInfo.
    pub key: Fingerprint,
}

/// What a confirmation found.
#[derive(Debug, Default)]
pub struct Confirmed {
    /// Certificates that are active now and were not.
    pub confirmed: u64,
    /// Those that were active already.
    pub unchanged: u64,
    /// What was not confirmed, by fingerprint or device id, each with the reason.
    pub refused: Vec<(String, RegistryError)>,
}

/// What is the same for all devices of one transaction.
struct Run<'a> {
    request: &'a BulkIssue,
    batch: Batch,
    standing: BatchStanding,
    groups: Arc<[Arc<str>]>,
    groups_text: String,
    model: Arc<str>,
    batch_text: Arc<str>,
    rules: IssuanceRules,
    /// Whether a certificate may be one that had ended before this registry was restored.
    has_lost: bool,
    /// The authority that was found to issue, in this transaction.
    issuing: Option<AuthorityId>,
    /// The revision of everything that is made here; taken when the first thing is.
    generation: Option<Generation>,
    /// Devices that the batch had before.
    before: u64,
    added: u64,
    seen: HashSet<DeviceId>,
    /// Whose the keys are that are certified here.
    keys: HashMap<Fingerprint, DeviceId>,
    audited: BTreeMap<DeviceId, Fingerprint>,
}

/// What becomes of one device.
enum Step {
    /// It has its certificate already.
    Answer(IssueOutcome),
    /// It is to have one.
    Mint {
        /// Whether the device enters the batch with it.
        is_new: bool,
        /// What is revoked in its favour.
        replaced: Vec<Fingerprint>,
    },
}

/// What was decided, and when.
struct Decided {
    steps: Vec<Result<Step, RegistryError>>,
    /// How many rows the writer had changed until then.
    changes: u64,
    at: Timestamp,
}

impl Decided {
    /// Whether it would be decided in the same way now: no row of any table has changed since, and hardly any time went by.
    fn holds(&self, scope: &Scope<'_>) -> bool {
        let is_recent = scope.now >= self.at && scope.now.since(self.at) < HOLDS_FOR;
        is_recent && scope.tx.total_changes() == self.changes
    }
}

/// How long a decision may wait for its certificates.
const HOLDS_FOR: Duration = Duration::from_secs(1);

impl<'a> Run<'a> {
    fn new(scope: &Scope<'_>, request: &'a BulkIssue, rules: IssuanceRules) -> Result<Self, RegistryError> {
        let (batch, standing) = scope.batch(&request.tenant, &request.batch)?;
        let groups: Vec<Arc<str>> = batch.groups.iter().map(|g| g.as_str().into()).collect();
        Ok(Self {
            groups_text: serde_json::to_string(&batch.groups)
                .map_err(|e| RegistryError::Database(e.to_string()))?,
            groups: groups.into(),
            model: batch.model.as_str().into(),
            batch_text: request.batch.as_str().into(),
            before: standing.devices,
            standing,
            batch,
            rules,
            has_lost: scope.has_lost()?,
            issuing: None,
            generation: None,
            added: 0,
            seen: HashSet::with_capacity(request.items.len()),
            keys: HashMap::with_capacity(request.items.len()),
            audited: BTreeMap::new(),
            request,
        })
    }

    /// Decides on all of them, in their order.
    fn decide_all(&mut self, scope: &Scope<'_>) -> Result<Vec<Result<Step, RegistryError>>, RegistryError> {
        let mut steps = Vec::with_capacity(self.request.items.len());
        for item in &self.request.items {
            match self.decide(scope, item) {
                Err(e) if e.ends_job() => return Err(e),
                step => steps.push(step),
            }
        }
        Ok(steps)
    }

    fn generation(&mut self, scope: &mut Scope<'_>) -> Result<Generation, RegistryError> {
        if let Some(generation) = self.generation {
            return Ok(generation);
        }
        let (tenant, batch) = (&self.request.tenant, &self.request.batch);
        let generation = scope.revise("batch", tenant.as_str(), batch.as_str())?;
        self.generation = Some(generation);
        Ok(generation)
    }

    /// What becomes of one device: everything that may refuse it, and nothing that writes.
    fn decide(&mut self, scope: &Scope<'_>, item: &BulkItem) -> Result<Step, RegistryError> {
        if !self.seen.insert(item.device.clone()) {
            return Err(BatchRefusal::Twice(item.device.clone()).into());
        }
        scope.refuse_key_of_service(&item.key)?;
        let tenant = &self.request.tenant;
        let key_is_known = scope.knows_key(&item.key)?;
        if key_is_known {
            if let Some((other_tenant, other)) = scope.key_of_other(tenant, &item.device, &item.key)? {
                return Err(RegistryError::SharedKey(format!(
                    "{other} of tenant {other_tenant}"
                )));
            }
            scope.refuse_revoked_key(&item.device, &item.key)?;
        }
        if let Some(other) = self.keys.get(&item.key) {
            return Err(RegistryError::SharedKey(format!("{other} of tenant {tenant}")));
        }
        let is_new = if !scope.table_is_behind && scope.table.device(tenant, &item.device).is_none() {
            true
        } else {
            scope.batch_of(tenant, &item.device)?.is_none()
        };
        let mut replaced = Vec::new();
        if is_new {
            self.batch.admits(self.standing, &item.device, scope.now)?;
        } else {
            if let Some(same) = self.known(scope, item, key_is_known)? {
                return Ok(Step::Answer(same));
            }
            self.batch.signs(self.standing.state, &item.device, scope.now)?;
            replaced = self.replaceable(scope, item)?;
        }
        scope.minting_time()?;
        self.standing.devices += u64::from(is_new);
        self.keys.insert(item.key, item.device.clone());
        Ok(Step::Mint { is_new, replaced })
    }

    /// Keeps what was minted.
    fn keep(
        &mut self,
        scope: &mut Scope<'_>,
        item: &BulkItem,
        new: &NewCredential,
        is_new: bool,
        replaced: Vec<Fingerprint>,
    ) -> Result<IssueOutcome, RegistryError> {
        let (Some(issued), Some(authority)) = (&new.issued, &new.authority) else {
            return Err(RegistryError::Refused("what was minted is not kept".into()));
        };
        let outcome = IssueOutcome {
            certificate: issued.certificate.clone(),
            authority: authority.clone(),
            repeated: false,
            added: false,
        };
        if self.issuing.as_ref() != Some(authority) {
            scope.need_issuing(authority)?;
            self.issuing = Some(authority.clone());
        }
        // A CA of its own may answer with what it issued before.
        if self.has_lost {
            scope.need_not_lost(Some(authority), &new.certificate.serial)?;
        }
        let generation = self.generation(scope)?;
        let tenant = &self.request.tenant;
        let mut new = Cow::Borrowed(new);
        if is_new {
            self.put_device(scope, &item.device, generation)?;
        } else if let Some(custody) = scope.custody_of_key(tenant, &item.device, &item.key)?
            && custody != new.custody
        {
            // The key is the same, and where it is.
            new.to_mut().custody = custody;
        }
        scope.put_row(tenant, &item.device, &new, Some(authority), generation)?;
        self.audited
            .insert(item.device.clone(), new.certificate.fingerprint);
        for fingerprint in replaced {
            self.revoke(scope, fingerprint)?;
        }
        Ok(outcome)
    }

    /// A device that is there already: what was issued for this key, if the request is to be answered with it.
    fn known(
        &self,
        scope: &Scope<'_>,
        item: &BulkItem,
        key_is_known: bool,
    ) -> Result<Option<IssueOutcome>, RegistryError> {
        let tenant = &self.request.tenant;
        let owner = scope.batch_of(tenant, &item.device)?.flatten();
        if owner.as_ref() != Some(&self.request.batch) {
            return Err(BatchRefusal::OtherBatch {
                device: item.device.clone(),
                batch: self.request.batch.clone(),
                owner,
            }
            .into());
        }
        if let Some((_, lifecycle, _)) = scope.device(tenant, &item.device)?
            && lifecycle.state == LifecycleState::Decommissioned
        {
            return Err(RegistryError::Refused(format!(
                "device {} is decommissioned, and that is final; hint: give the hardware a new id",
                item.device
            )));
        }
        if !key_is_known {
            return Ok(None);
        }
        let single = IssueRequest {
            attestation: None,
            tenant: tenant.clone(),
            device: item.device.clone(),
            key: item.key,
            profile: self.batch.profile.clone(),
            // An operator's: neither is looked at.
            kind: ProfileKind::Operational,
            choice: ProfileChoice::Named,
            authority: self.batch.authority.clone(),
            demands_new_key: self.request.demands_new_key,
            idempotency_key: None,
            requester: Requester::Operator,
        };
        scope.issued_before(&single, self.rules)
    }

    /// Certificates of the device for other keys that are in force: refused, or to be revoked in favour of the new one.
    fn replaceable(&self, scope: &Scope<'_>, item: &BulkItem) -> Result<Vec<Fingerprint>, RegistryError> {
        let others = scope.credentials_where(
            "tenant = ? AND device = ? AND public_key <> ? AND state IN ('issued', 'active') AND not_after >= ?",
            params![
                self.request.tenant.as_str(),
                item.device.as_str(),
                item.key.as_bytes(),
                scope.now.unix_ms()
            ],
        )?;
        let unused = |state| self.request.replace && state == CredentialState::Issued;
        if let Some(used) = others.iter().find(|c| !unused(c.state)) {
            return Err(BatchRefusal::OtherKey {
                device: item.device.clone(),
                state: used.state.name(),
            }
            .into());
        }
        Ok(others.into_iter().map(|c| c.fingerprint).collect())
    }

    fn revoke(&self, scope: &mut Scope<'_>, fingerprint: Fingerprint) -> Result<(), RegistryError> {
        if let Some(facts) = scope.read_credential(&fingerprint)? {
            scope.move_credential(
                facts,
                CredentialState::Revoked,
                Some(RevocationReason::Superseded),
            )?;
        }
        Ok(())
    }

    /// The row of a device that did not exist.
    fn put_device(
        &mut self,
        scope: &mut Scope<'_>,
        device: &DeviceId,
        generation: Generation,
    ) -> Result<(), RegistryError> {
        let state = match self.batch.devices_start {
            DeviceStart::Active => LifecycleState::Active,
            DeviceStart::Pending => LifecycleState::Pending,
        };
        scope
            .tx
            .prepare_cached(
                "INSERT INTO devices (tenant, id, model, groups, state, revision, created, batch)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                self.request.tenant.as_str(),
                device.as_str(),
                &*self.model,
                self.groups_text,
                state.name(),
                generation.0.cast_signed(),
                scope.now.unix_ms(),
                self.request.batch.as_str(),
            ])?;
        scope.facts.push(Fact::Device(Arc::new(DeviceFacts {
            tenant: self.request.tenant.clone(),
            id: device.clone(),
            model: Some(self.model.clone()),
            groups: self.groups.clone(),
            batch: Some(self.batch_text.clone()),
            state,
            generation,
        })));
        self.added += 1;
        Ok(())
    }

    /// What all of them together leave behind.
    fn finish(self, scope: &mut Scope<'_>, actor: &Actor) -> Result<(), RegistryError> {
        let Some(generation) = self.generation else {
            return Ok(());
        };
        scope.keep_time()?;
        let (tenant, batch) = (&self.request.tenant, &self.request.batch);
        scope.count_into_batch(tenant, batch, self.added, generation)?;
        let detail = json!({
            "profile": self.batch.profile,
            "count": self.audited.len(),
            "devices": self.before + self.added,
            "quota": self.batch.quota,
            "fingerprints": self.audited,
        });
        scope.audit(actor, "batch.issue", tenant.as_str(), batch.as_str(), &detail)
    }
}

impl Registry {
    /// Issues and registers a certificate for each device of a batch, or answers with the one that was issued before:
    /// `mint` is called with the place of the device in the request, and all that is answered is on disk. The answers are
    /// in the order of the request; a device that is refused leaves nothing behind.
    ///
    /// What is to be minted is decided first, then minted while others may write (a token signs a thousand certificates
    /// in many seconds), then kept. If anything has changed meanwhile it is decided anew, and what is not wanted any more
    /// is thrown away: nobody has seen it.
    ///
    /// # Errors
    /// [`RegistryError`] if nothing was issued at all, such as [`RegistryError::NoBatch`].
    #[allow(clippy::type_complexity, reason = "an answer for each device")]
    pub fn issue_in_batch(
        &self,
        actor: Actor,
        request: BulkIssue,
        mint: impl FnMut(usize, Timestamp) -> Result<NewCredential, String>,
    ) -> Result<Committed<Vec<Result<IssueOutcome, RegistryError>>>, RegistryError> {
        let rules = self.issuance_rules();
        let mut decided: Option<Decided> = None;
        self.write_minting(mint, move |scope, minting| {
            let mut run = Run::new(scope, &request, rules)?;
            let steps = match decided.take() {
                Some(decided) if decided.holds(scope) => decided.steps,
                _ => run.decide_all(scope)?,
            };
            for (n, step) in steps.iter().enumerate() {
                if matches!(step, Ok(Step::Mint { .. })) {
                    minting.has(n, scope.now);
                }
            }
            if minting.lacks() {
                decided = Some(Decided {
                    steps,
                    changes: scope.tx.total_changes(),
                    at: scope.now,
                });
                return Err(unminted());
            }
            let mut answers = Vec::with_capacity(steps.len());
            for (n, (step, item)) in steps.into_iter().zip(&request.items).enumerate() {
                let answer = match step {
                    Ok(Step::Answer(same)) => Ok(same),
                    Ok(Step::Mint { is_new, replaced }) => minting
                        .take(n)
                        .and_then(|new| run.keep(scope, item, &new, is_new, replaced)),
                    Err(e) => Err(e),
                };
                match answer {
                    Err(e) if e.ends_job() => return Err(e),
                    answer => answers.push(answer),
                }
            }
            run.finish(scope, &actor)?;
            Ok(answers)
        })
    }

    /// The line's confirm step for many: each certificate is on its device, and will not lapse. Devices stand for the
    /// newest certificate of the batch that was issued to them.
    ///
    /// # Errors
    /// [`RegistryError::NoBatch`]; what was refused one by one is in the answer.
    pub fn confirm_in_batch(
        &self,
        actor: Actor,
        tenant: TenantId,
        batch: BatchId,
        fingerprints: Vec<Fingerprint>,
        devices: Vec<DeviceId>,
    ) -> Result<Committed<Confirmed>, RegistryError> {
        let rules = self.issuance_rules();
        self.write(move |scope| {
            scope.batch(&tenant, &batch)?;
            let mut done = Confirmed::default();
            let mut audited = BTreeMap::new();
            let by_device = devices.iter().map(|d| (d.to_string(), None, Some(d)));
            let named = fingerprints
                .iter()
                .map(|f| (f.to_string(), Some(*f), None))
                .chain(by_device);
            for (name, fingerprint, device) in named {
                let found = match (fingerprint, device) {
                    (Some(fingerprint), _) => scope.credentials_where(
                        "fingerprint = ? AND tenant = ? AND batch = ?",
                        params![fingerprint.as_bytes(), tenant.as_str(), batch.as_str()],
                    )?,
                    (None, device) => scope.credentials_where(
                        "tenant = ? AND device = ? AND batch = ? ORDER BY rowid DESC LIMIT 1",
                        [
                            tenant.as_str(),
                            device.map_or("", DeviceId::as_str),
                            batch.as_str(),
                        ],
                    )?,
                };
                match found.into_iter().next() {
                    None => done.refused.push((
                        name,
                        RegistryError::Refused(format!(
                            "batch {batch} issued no such certificate; hint: countersign factory batch list, or look for a mistyped name"
                        )),
                    )),
                    Some(facts) if facts.state == CredentialState::Active => done.unchanged += 1,
                    Some(facts) if facts.state == CredentialState::Issued => {
                        audited.insert(facts.device.clone(), facts.fingerprint);
                        scope.activate_credential(facts, None, rules.overlap)?;
                        done.confirmed += 1;
                    }
                    Some(facts) => done.refused.push((
                        name,
                        RegistryError::Refused(format!(
                            "the certificate is {}; hint: issue a new one",
                            facts.state
                        )),
                    )),
                }
            }
            if !audited.is_empty() {
                let detail = json!({ "count": audited.len(), "fingerprints": audited });
                scope.audit(&actor, "batch.confirm", tenant.as_str(), batch.as_str(), &detail)?;
            }
            Ok(done)
        })
    }
}
