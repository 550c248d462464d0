//! Issuing, so that asking twice is safe: who asks is checked, what was issued before is answered, else what was minted for
//! it is registered in the same transaction ([`crate::minting`]).

use std::sync::Arc;
use std::time::Duration;

use countersign_factory::attest::Refusal;
use countersign_identity::{AuthorityId, DeviceId, Fingerprint, TenantId, Timestamp};
use countersign_policy::renewal_lane::LanePass;
use countersign_policy::{ClaimId, ClaimRefusal, CredentialState, LaneRefusal, LifecycleState};
use parking_lot::Mutex;
use rusqlite::{OptionalExtension, params};
use serde_json::json;

use super::{IssuanceRules, IssueOutcome, IssueRequest, MissingDevice, NewCredential, Requester};
use crate::attestation::Cited;
use crate::change::{Actor, NewDevice, damaged};
use crate::error::RegistryError;
use crate::minting::Minting;
use crate::store::Registry;
use crate::writer::{Committed, Scope};

/// What a requester may have.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    /// What was issued before, or a new one.
    Whole,
    /// What was issued before, and nothing new.
    RepeatOnly,
    /// A new one that is kept as minted on a claim.
    OnClaim(ClaimId),
}

impl Scope<'_> {
    /// What was issued for this key before, if the request is to be answered with it.
    ///
    /// The newest is the row that came last. A revision is that of a row's last change: an older certificate that was
    /// superseded since has a higher one, and what one transaction issues in bulk has all the same. Nothing deletes rows of
    /// this table, and a copy (backup, VACUUM) keeps their order.
    ///
    /// One whose authority admits nobody any more is of no use, and one of another authority is not what was asked for.
    pub(crate) fn issued_before(
        &self,
        request: &IssueRequest,
        rules: IssuanceRules,
    ) -> Result<Option<IssueOutcome>, RegistryError> {
        type Row = (String, Vec<u8>, Option<String>, i64, i64, i64, bool);
        let last: Option<Row> = self
            .tx
            .prepare_cached(
                "SELECT state, certificate, authority, created, not_before, not_after,
                 (?5 IS NULL OR authority = ?5) AND NOT EXISTS (SELECT 1 FROM authorities a
                     WHERE a.id = c.authority AND a.state NOT IN ('active', 'retiring')) AS answers
                 FROM credentials c
                 WHERE substr(public_key, 1, 8) = substr(?1, 1, 8) AND public_key = ?1 AND tenant = ?2 AND device = ?3
                 AND profile = ?4 AND certificate IS NOT NULL
                 ORDER BY answers DESC, rowid DESC LIMIT 1",
            )?
            .query_row(
                params![
                    request.key.as_bytes(),
                    request.tenant.as_str(),
                    request.device.as_str(),
                    request.profile,
                    request.authority.as_ref().map(AuthorityId::as_str)
                ],
                |r| {
                    Ok((
                        r.get(0)?,
                        r.get(1)?,
                        r.get(2)?,
                        r.get(3)?,
                        r.get(4)?,
                        r.get(5)?,
                        r.get(6)?,
                    ))
                },
            )
            .optional()?;
        let Some((state, certificate, Some(authority), created, not_before, not_after, answers)) = last
        else {
            return Ok(None);
        };
        let is_young = self.now.since(Timestamp::from_unix_ms(created)) < rules.replay_window;
        let is_over = self.now.unix_ms() > not_after;
        let is_due = self.now >= renewal_point(not_before, not_after);
        let same = IssueOutcome {
            certificate,
            authority: damaged(authority.parse())?,
            repeated: true,
            added: false,
        };
        match damaged(state.parse())? {
            CredentialState::Revoked => Err(RegistryError::Refused(format!(
                "the last certificate of device {} for this key was revoked; hint: make a new key",
                request.device
            ))),
            CredentialState::Issued if answers && !is_over => Ok(Some(same)),
            // An expired one is of no use to anybody, however young its issuance.
            CredentialState::Active if answers && !is_over && (is_young || !is_due) => Ok(Some(same)),
            _ if request.demands_new_key && !answers => Err(RegistryError::Refused(format!(
                "profile {} demands a new key with every certificate, and this one has a certificate of authority {authority}, which admits nobody any more or is not the one that was named; hint: make a new key",
                request.profile
            ))),
            _ if request.demands_new_key => Err(RegistryError::Refused(format!(
                "profile {} demands a new key with every certificate; hint: make a new key",
                request.profile
            ))),
            _ => Ok(None),
        }
    }
}

/// Two thirds of the life of a certificate: from here on a new one may be had for the same key.
fn renewal_point(not_before: i64, not_after: i64) -> Timestamp {
    Timestamp::from_unix_ms(not_before + (not_after - not_before) / 3 * 2)
}

impl Registry {
    /// Issues and registers a certificate, or answers with the one that was issued before. `mint` is called on this thread
    /// while others may write; what it made is kept only if all is still as it must be, and is on disk before it is handed
    /// out.
    ///
    /// # Errors
    /// [`RegistryError::NoDevice`]; [`RegistryError::SharedKey`]; [`RegistryError::Exists`] if the idempotency key was
    /// used for something else; [`RegistryError::Refused`] if the device is decommissioned, the key is not to be used
    /// again, or nothing was minted.
    pub fn issue(
        &self,
        actor: Actor,
        request: IssueRequest,
        mint: impl FnOnce(Timestamp) -> Result<NewCredential, String>,
    ) -> Result<Committed<IssueOutcome>, RegistryError> {
        self.issue_for(actor, request, MissingDevice::Refused, mint)
    }

    /// The same, for a device that need not be there yet.
    ///
    /// # Errors
    /// As [`Registry::issue`]; then no device was added.
    pub fn issue_for(
        &self,
        actor: Actor,
        request: IssueRequest,
        missing: MissingDevice,
        mint: impl FnOnce(Timestamp) -> Result<NewCredential, String>,
    ) -> Result<Committed<IssueOutcome>, RegistryError> {
        let rules = self.issuance_rules();
        self.write_minting_one(mint, move |scope, minting| {
            issue(scope, &actor, &request, missing, rules, minting)
        })
    }

    /// Whether [`Registry::issue`] would mint: `None` if it would, else the certificate that it would answer with. The very
    /// same rules, and nothing is kept of what would lead to minting.
    ///
    /// # Errors
    /// As [`Registry::issue`].
    pub fn issue_check(
        &self,
        actor: Actor,
        request: IssueRequest,
    ) -> Result<Option<IssueOutcome>, RegistryError> {
        self.issue_check_for(actor, request, MissingDevice::Refused)
    }

    /// Whether [`Registry::issue_for`] would mint.
    ///
    /// # Errors
    /// As [`Registry::issue`].
    pub fn issue_check_for(
        &self,
        actor: Actor,
        request: IssueRequest,
        missing: MissingDevice,
    ) -> Result<Option<IssueOutcome>, RegistryError> {
        let rules = self.issuance_rules();
        let shared = Arc::new(Mutex::new(Minting::new()));
        let minting = shared.clone();
        // Failing is what undoes the job.
        let checked =
            self.write(move |scope| issue(scope, &actor, &request, missing, rules, &mut minting.lock()));
        match checked {
            Ok(committed) => Ok(Some(committed.value)),
            Err(_) if shared.lock().lacks() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Keeps a one-time secret, by its SHA-256, with which a device may enrol.
    ///
    /// # Errors
    /// [`RegistryError::NoDevice`].
    pub fn add_enrolment_secret(
        &self,
        actor: Actor,
        tenant: TenantId,
        device: DeviceId,
        hash: Fingerprint,
        lifetime: Duration,
    ) -> Result<Committed<Timestamp>, RegistryError> {
        self.write(move |scope| {
            if scope.device(&tenant, &device)?.is_none() {
                return Err(RegistryError::NoDevice { tenant, device });
            }
            let expires = scope.now.plus(lifetime);
            scope
                .tx
                .prepare_cached(
                    "INSERT INTO enrolment_secrets (hash, tenant, device, expires, created) VALUES (?, ?, ?, ?, ?)",
                )?
                .execute(params![
                    hash.as_bytes(),
                    tenant.as_str(),
                    device.as_str(),
                    expires.unix_ms(),
                    scope.now.unix_ms()
                ])?;
            scope.audit(
                &actor,
                "device.secret",
                tenant.as_str(),
                device.as_str(),
                &json!({ "expires": expires.to_string() }),
            )?;
            Ok(expires)
        })
    }
}

fn check_requester(
    scope: &mut Scope<'_>,
    actor: &Actor,
    request: &IssueRequest,
    cited: Option<&Cited>,
    rules: IssuanceRules,
) -> Result<Standing, RegistryError> {
    match &request.requester {
        Requester::Operator | Requester::JudgedByCa => Ok(Standing::Whole),
        Requester::Attested => match cited {
            Some(cited) if cited.is_registered && cited.is_consumed => Ok(Standing::RepeatOnly),
            Some(cited) if cited.is_registered => Ok(Standing::Whole),
            Some(_) => Err(Refusal::NotEnough.into()),
            None => Err(Refusal::Unknown.into()),
        },
        Requester::Expired(expired) => Ok(match scope.enter_lane(actor, request, expired)? {
            LanePass::Issue => Standing::Whole,
            LanePass::Repeat => Standing::RepeatOnly,
        }),
        Requester::Claim(claim) => {
            let has_same_key = scope.enter_claim(actor, request, claim)?;
            Ok(if has_same_key {
                Standing::RepeatOnly
            } else {
                Standing::OnClaim(claim.claim.clone())
            })
        }
        Requester::Secret(hash) => {
            let spent = scope
                .tx
                .prepare_cached(
                    "UPDATE enrolment_secrets SET used_key = ?4 WHERE hash = ?1 AND tenant = ?2 AND device = ?3
                     AND expires >= ?5 AND (used_key IS NULL OR used_key = ?4)",
                )?
                .execute(params![
                    hash.as_bytes(),
                    request.tenant.as_str(),
                    request.device.as_str(),
                    request.key.as_bytes(),
                    scope.now.unix_ms()
                ])?;
            if spent == 0 {
                return Err(RegistryError::Unauthorised(format!(
                    "the one-time secret of device {} is wrong, used or expired; hint: countersign device secret {0}",
                    request.device
                )));
            }
            Ok(Standing::Whole)
        }
        Requester::Certificate(fingerprint) => {
            let facts = scope
                .read_credential(fingerprint)?
                .filter(|c| c.tenant == request.tenant && c.device == request.device);
            match facts {
                Some(facts) if facts.state == CredentialState::Active => Ok(Standing::Whole),
                // Proven to be held: that is its first use.
                Some(facts) if facts.state == CredentialState::Issued => {
                    scope.activate_credential(facts, None, rules.overlap)?;
                    Ok(Standing::Whole)
                }
                Some(facts) => Err(RegistryError::Unauthorised(format!(
                    "the certificate shown is {}; hint: enrol anew with a one-time secret (countersign device secret {})",
                    facts.state, request.device
                ))),
                None => Err(RegistryError::Unauthorised(
                    "the certificate shown is not registered for this device".into(),
                )),
            }
        }
    }
}

fn issue(
    scope: &mut Scope<'_>,
    actor: &Actor,
    request: &IssueRequest,
    missing: MissingDevice,
    rules: IssuanceRules,
    minting: &mut Minting<NewCredential>,
) -> Result<IssueOutcome, RegistryError> {
    let (tenant, device) = (&request.tenant, &request.device);
    // Who may not ask is not told which devices there are, nor how they stand.
    let cited = scope.cited_attestation(request)?;
    let standing = check_requester(scope, actor, request, cited.as_ref(), rules)?;
    scope.check_profile(request)?;
    let added = missing == MissingDevice::Added && scope.device(tenant, device)?.is_none();
    if added {
        scope.need_tenant(tenant)?;
        let new = NewDevice {
            id: device.clone(),
            model: None,
            groups: Vec::new(),
            state: LifecycleState::Active,
            authority: None,
        };
        scope.add_device(actor, tenant, &new)?;
    }
    let Some((_, lifecycle, _)) = scope.device(tenant, device)? else {
        return Err(RegistryError::NoDevice {
            tenant: tenant.clone(),
            device: device.clone(),
        });
    };
    if lifecycle.state == LifecycleState::Decommissioned {
        return Err(RegistryError::Refused(format!(
            "device {device} is decommissioned, and that is final; hint: give the hardware a new id"
        )));
    }
    if request.requester != Requester::Operator && lifecycle.state != LifecycleState::Active {
        return Err(RegistryError::NotActive {
            device: device.clone(),
            state: lifecycle.state,
        });
    }
    if let Some(key) = &request.idempotency_key {
        let mut content = format!("{device}\n{}\n{}", request.key, request.profile);
        if let Some(authority) = &request.authority {
            content = format!("{content}\n{authority}");
        }
        let content = Fingerprint::of(content.as_bytes());
        scope
            .tx
            .prepare_cached(
                "INSERT OR IGNORE INTO idempotency (tenant, key, content, created) VALUES (?, ?, ?, ?)",
            )?
            .execute(params![
                tenant.as_str(),
                key,
                content.as_bytes(),
                scope.now.unix_ms()
            ])?;
        let first: [u8; 32] = scope
            .tx
            .prepare_cached("SELECT content FROM idempotency WHERE tenant = ? AND key = ?")?
            .query_row([tenant.as_str(), key], |r| r.get(0))?;
        if first != *content.as_bytes() {
            return Err(RegistryError::Exists(format!(
                "a request with the idempotency key {key:?} and other content"
            )));
        }
    }
    if let Some((other_tenant, other)) = scope.key_of_other(tenant, device, &request.key)? {
        return Err(RegistryError::SharedKey(format!(
            "{other} of tenant {other_tenant}"
        )));
    }
    scope.refuse_revoked_key(device, &request.key)?;
    // Before anything is minted for it: a CA apart would have it in its log.
    scope.refuse_key_of_service(&request.key)?;
    if let Some(same) = scope.issued_before(request, rules)? {
        if let Some(cited) = &cited {
            scope.consume_attestation(actor, request, cited, &Fingerprint::of(&same.certificate))?;
        }
        return Ok(same);
    }
    if standing == Standing::RepeatOnly {
        return Err(match request.requester {
            Requester::Attested => Refusal::Replayed.into(),
            Requester::Claim(_) => ClaimRefusal::Renewal.into(),
            _ => LaneRefusal::Used.into(),
        });
    }
    scope.need_room(request, rules)?;
    let mut new = minting.one(scope.minting_time()?)?;
    // The key is the same, and where it is.
    if let Some(custody) = scope.custody_of_key(tenant, device, &request.key)? {
        new.custody = custody;
    }
    let (Some(issued), Some(authority)) = (&new.issued, &new.authority) else {
        return Err(RegistryError::Refused("what was minted is not kept".into()));
    };
    scope.need_issuing(authority)?;
    // A CA of its own answers with what it issued before; what has ended here is not taken a second time.
    if scope.credential_owner(&new.certificate.fingerprint)?.is_some() {
        return Err(RegistryError::Exists(format!(
            "certificate {}",
            new.certificate.fingerprint
        )));
    }
    let outcome = IssueOutcome {
        certificate: issued.certificate.clone(),
        authority: authority.clone(),
        repeated: false,
        added,
    };
    scope.put_credential(tenant, device, &new)?;
    scope.keep_time()?;
    if let Some(cited) = &cited {
        scope.consume_attestation(actor, request, cited, &new.certificate.fingerprint)?;
    }
    if let Standing::OnClaim(claim) = &standing {
        scope.mark_minted(tenant, device, &new.certificate.fingerprint, claim)?;
    }
    let detail = json!({
        "serial": new.certificate.serial,
        "fingerprint": new.certificate.fingerprint,
        "not_after": new.certificate.not_after.to_string(),
        "authority": outcome.authority,
        "profile": request.profile,
        "batch": issued.batch,
    });
    scope.audit(
        actor,
        "credential.issue",
        tenant.as_str(),
        device.as_str(),
        &detail,
    )?;
    Ok(outcome)
}
