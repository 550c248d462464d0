//! Credentials: registered, issued so that asking twice is safe, used, superseded, lapsed, revoked.
//!
//! ```text
//! issued ──first use, or confirmed──▶ active ──a newer one is in use, then the overlap──▶ superseded
//!    └──never used in time──▶ lapsed          any of them ──▶ revoked
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use countersign_factory::{RevocationReason, Revoked};
use countersign_identity::{
    AuthorityId, BatchId, CertificateFacts, DeviceId, Fingerprint, Generation, TenantId, Timestamp,
};
use countersign_policy::facts::CredentialKind;
use countersign_policy::renewal_lane::LanePass;
use countersign_policy::{ClaimId, CredentialFacts, CredentialState, Custody, LaneRefusal, LifecycleState};
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::change::{Actor, Change, damaged};
use crate::claim::ClaimRequester;
use crate::error::RegistryError;
use crate::lane::ExpiredRequester;
use crate::store::Registry;
use crate::table::Fact;
use crate::writer::{Committed, Scope};

/// A certificate to be registered for a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCredential {
    /// What the certificate says.
    pub certificate: CertificateFacts,
    /// What it is for.
    pub kind: CredentialKind,
    /// `issued` or `active`.
    pub state: CredentialState,
    /// How its key is held.
    pub custody: Custody,
    /// The authority that its chain ends in, if that is known.
    pub authority: Option<AuthorityId>,
    /// What is kept of one that was issued here.
    pub issued: Option<IssuedHere>,
}

/// What is kept of a certificate that was issued here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedHere {
    /// The certificate, DER: a repeated request is answered with it.
    pub certificate: Vec<u8>,
    /// The profile it was issued by.
    pub profile: String,
    /// The batch it was issued in.
    pub batch: Option<BatchId>,
}

impl NewCredential {
    /// A certificate that was issued elsewhere, in use already.
    pub fn brought(certificate: CertificateFacts) -> Self {
        Self {
            certificate,
            kind: CredentialKind::Operational,
            state: CredentialState::Active,
            custody: Custody::Unknown,
            authority: None,
            issued: None,
        }
    }
}

/// How long things last in issuance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IssuanceRules {
    /// For so long a repeated request is answered with the same certificate, whatever its renewal point.
    pub replay_window: Duration,
    /// A certificate that nobody used or confirmed for so long lapses.
    pub lapse_after: Duration,
    /// After a newer certificate was first used, for so long the old one is still admitted.
    pub overlap: Duration,
}

impl Default for IssuanceRules {
    fn default() -> Self {
        Self {
            replay_window: Duration::from_secs(24 * 3600),
            lapse_after: Duration::from_secs(7 * 24 * 3600),
            overlap: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

/// A certificate is asked for.
#[derive(Debug, Clone)]
pub struct IssueRequest {
    /// The tenant of the device.
    pub tenant: TenantId,
    /// The device.
    pub device: DeviceId,
    /// SHA-256 of the key's SubjectPublicKeyInfo.
    pub key: Fingerprint,
    /// The profile.
    pub profile: String,
    /// Whether the profile demands a new key with every certificate.
    pub demands_new_key: bool,
    /// The requester's own key for this request: with other content it is refused.
    pub idempotency_key: Option<String>,
    /// Who asks.
    pub requester: Requester,
}

/// On whose word a certificate is issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requester {
    /// An operator's, whatever the device's state, short of decommissioned.
    Operator,
    /// The active device's own, by a one-time secret (its SHA-256).
    Secret(Fingerprint),
    /// The active device's own, by a certificate it proved to hold, which must be in force.
    Certificate(Fingerprint),
    /// The active device's own, by an expired certificate it proved to hold: the renewal lane.
    Expired(ExpiredRequester),
    /// Whoever holds a claim, for the ids on its list.
    Claim(ClaimRequester),
    /// The active device's own, by evidence that the CA judges: a secret that only the CA knows.
    JudgedByCa,
}

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

/// The answer to an [`IssueRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssueOutcome {
    /// The certificate, DER.
    pub certificate: Vec<u8>,
    /// The authority that issued it.
    pub authority: AuthorityId,
    /// Whether it had been issued before: nothing new was minted.
    pub repeated: bool,
}

/// A certificate that ended before its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedCredential {
    /// Its serial number, hex.
    pub serial: String,
    /// Its state; still `active` or `issued` if it ended with its authority.
    pub state: CredentialState,
    /// Why, if a reason was given.
    pub reason: Option<RevocationReason>,
    /// Since when.
    pub at: Timestamp,
}

/// What a sweep found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Issued, and never used in time.
    pub lapsed: u64,
    /// Their overlap is over.
    pub superseded: u64,
}

/// Whose credentials are revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Revocation {
    /// One certificate.
    Credential(Fingerprint),
    /// All of a device.
    Device(TenantId, DeviceId),
    /// All that were issued in a batch.
    Batch(TenantId, BatchId),
    /// All that were issued on a claim.
    Claim(TenantId, ClaimId),
}

impl Scope<'_> {
    /// Registers a certificate for a device. A key belongs to one device only, or a clone could not be told.
    pub(crate) fn put_credential(
        &mut self,
        tenant: &TenantId,
        device: &DeviceId,
        new: &NewCredential,
    ) -> Result<(), RegistryError> {
        let c = &new.certificate;
        if let Some(station) = self.station_by_subject(&c.issuer_der)? {
            return Err(RegistryError::Refused(format!(
                "the certificate was issued by factory station {station}, whose journal alone vouches for it; hint: countersign factory reconcile JOURNAL"
            )));
        }
        if let Some((other_tenant, other)) = self.key_of_other(tenant, device, &c.public_key_sha256)? {
            return Err(RegistryError::SharedKey(format!(
                "{other} of tenant {other_tenant}"
            )));
        }
        let authority = match &new.authority {
            Some(authority) => Some(authority.clone()),
            None if new.kind == CredentialKind::Pinned => None,
            None => self.table.issuer_of(tenant, c),
        };
        let generation = self.revise("credential", tenant.as_str(), &c.fingerprint.to_string())?;
        self.insert_credential(tenant, device, new, authority.as_ref(), generation)?;
        self.changes
            .push(Change::Credential(tenant.clone(), device.clone(), c.fingerprint));
        Ok(())
    }

    /// The row and the fact of a credential; no live session can be touched by one that is new.
    pub(crate) fn insert_credential(
        &mut self,
        tenant: &TenantId,
        device: &DeviceId,
        new: &NewCredential,
        authority: Option<&AuthorityId>,
        generation: Generation,
    ) -> Result<(), RegistryError> {
        let c = &new.certificate;
        self.refuse_key_of_service(&c.public_key_sha256)?;
        self.tx
            .prepare_cached(
                "INSERT INTO credentials (fingerprint, tenant, device, kind, state, custody, serial, issuer,
                 public_key, not_before, not_after, revision, created, authority, certificate, profile, batch)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                c.fingerprint.as_bytes(),
                tenant.as_str(),
                device.as_str(),
                new.kind.name(),
                new.state.name(),
                new.custody.name(),
                c.serial,
                c.issuer_text,
                c.public_key_sha256.as_bytes(),
                c.not_before.unix_ms(),
                c.not_after.unix_ms(),
                generation.0.cast_signed(),
                self.now.unix_ms(),
                authority.map(AuthorityId::as_str),
                new.issued.as_ref().map(|i| i.certificate.as_slice()),
                new.issued.as_ref().map(|i| i.profile.as_str()),
                new.issued
                    .as_ref()
                    .and_then(|i| i.batch.as_ref())
                    .map(BatchId::as_str),
            ])
            .map_err(|e| match e.sqlite_error_code() {
                // Of the index over authority and serial of what was issued here: one in 2^126, or a broken random source.
                Some(rusqlite::ErrorCode::ConstraintViolation) if new.issued.is_some() => {
                    RegistryError::Refused(format!(
                        "the serial number {} was given out before by this authority: nothing was minted; hint: ask again, and if this comes again do not trust the machine's random source",
                        c.serial
                    ))
                }
                _ => e.into(),
            })?;
        self.facts.push(Fact::Credential(CredentialFacts {
            fingerprint: c.fingerprint,
            tenant: tenant.clone(),
            device: device.clone(),
            kind: new.kind,
            state: new.state,
            custody: new.custody,
            generation,
        }));
        Ok(())
    }

    /// The device that has a credential; `None` if nobody has it.
    pub(crate) fn credential_owner(
        &self,
        fingerprint: &Fingerprint,
    ) -> Result<Option<(String, String)>, RegistryError> {
        if self.facts.is_empty() && !self.table_is_behind && !self.table.knows(fingerprint) {
            return Ok(None);
        }
        Ok(self
            .tx
            .prepare_cached("SELECT tenant, device FROM credentials WHERE fingerprint = ?")?
            .query_row([fingerprint.as_bytes()], |r| Ok((r.get(0)?, r.get(1)?)))
            .optional()?)
    }

    /// Whether a key has a certificate, whoever's.
    pub(crate) fn knows_key(&self, key: &Fingerprint) -> Result<bool, RegistryError> {
        Ok(self
            .tx
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM credentials WHERE public_key = ?)")?
            .query_row([key.as_bytes()], |r| r.get(0))?)
    }

    /// Who else has a key.
    pub(crate) fn key_of_other(
        &self,
        tenant: &TenantId,
        device: &DeviceId,
        key: &Fingerprint,
    ) -> Result<Option<(String, String)>, RegistryError> {
        Ok(self
            .tx
            .prepare_cached(
                "SELECT tenant, device FROM credentials WHERE public_key = ?1 AND NOT (tenant = ?2 AND device = ?3)
                 LIMIT 1",
            )?
            .query_row(
                params![
                    key.as_bytes(),
                    tenant.as_str(),
                    device.as_str()
                ],
                |r| Ok((r.get(0)?, r.get(1)?)),
            )
            .optional()?)
    }

    /// Moves a credential to another state, with all that follows from it.
    pub(crate) fn move_credential(
        &mut self,
        facts: CredentialFacts,
        state: CredentialState,
        reason: Option<RevocationReason>,
    ) -> Result<(), RegistryError> {
        let fingerprint = facts.fingerprint;
        let generation = self.revise("credential", facts.tenant.as_str(), &fingerprint.to_string())?;
        self.tx
            .prepare_cached(
                "UPDATE credentials SET state = ?2, revision = ?3, ended = ?4, reason = ?5, supersede_at = NULL
                 WHERE fingerprint = ?1",
            )?
            .execute(params![
                fingerprint.as_bytes(),
                state.name(),
                generation.0.cast_signed(),
                self.now.unix_ms(),
                reason.map(RevocationReason::code),
            ])?;
        let (tenant, device) = (facts.tenant.clone(), facts.device.clone());
        self.facts.push(Fact::Credential(CredentialFacts {
            state,
            generation,
            ..facts
        }));
        self.changes.push(Change::Credential(tenant, device, fingerprint));
        Ok(())
    }

    pub(crate) fn credentials_where(
        &self,
        clause: &str,
        values: impl rusqlite::Params,
    ) -> Result<Vec<CredentialFacts>, RegistryError> {
        let mut statement = self.tx.prepare_cached(&format!(
            "SELECT fingerprint, tenant, device, kind, state, custody, revision FROM credentials WHERE {clause}"
        ))?;
        let mut rows = statement.query(values)?;
        let mut found = Vec::new();
        while let Some(r) = rows.next()? {
            found.push(credential_facts(r)?);
        }
        Ok(found)
    }

    /// `issued` becomes `active`; the device's older certificates from here begin their overlap.
    pub(crate) fn activate_credential(
        &mut self,
        facts: CredentialFacts,
        authority: Option<&AuthorityId>,
        overlap: Duration,
    ) -> Result<(), RegistryError> {
        self.tx
            .prepare_cached(
                "UPDATE credentials SET state = 'active', authority = coalesce(authority, ?2) WHERE fingerprint = ?1",
            )?
            .execute(params![
                facts.fingerprint.as_bytes(),
                authority.map(AuthorityId::as_str)
            ])?;
        self.tx
            .prepare_cached(
                "UPDATE credentials SET supersede_at = ?5
                 WHERE tenant = ?1 AND device = ?2 AND kind = ?3 AND fingerprint <> ?4 AND state = 'active'
                 AND certificate IS NOT NULL AND supersede_at IS NULL
                 AND created <= (SELECT created FROM credentials WHERE fingerprint = ?4)",
            )?
            .execute(params![
                facts.tenant.as_str(),
                facts.device.as_str(),
                facts.kind.name(),
                facts.fingerprint.as_bytes(),
                self.now.plus(overlap).unix_ms(),
            ])?;
        self.facts.push(Fact::Credential(CredentialFacts {
            state: CredentialState::Active,
            ..facts
        }));
        Ok(())
    }

    /// What was issued for this key before, if the request is to be answered with it.
    pub(crate) fn issued_before(
        &self,
        request: &IssueRequest,
        rules: IssuanceRules,
    ) -> Result<Option<IssueOutcome>, RegistryError> {
        type Row = (String, Vec<u8>, Option<String>, i64, i64, i64);
        let last: Option<Row> = self
            .tx
            .prepare_cached(
                "SELECT state, certificate, authority, created, not_before, not_after FROM credentials
                 WHERE public_key = ?1 AND tenant = ?2 AND device = ?3 AND profile = ?4 AND certificate IS NOT NULL
                 ORDER BY revision DESC LIMIT 1",
            )?
            .query_row(
                params![
                    request.key.as_bytes(),
                    request.tenant.as_str(),
                    request.device.as_str(),
                    request.profile
                ],
                |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?, r.get(5)?)),
            )
            .optional()?;
        let Some((state, certificate, Some(authority), created, not_before, not_after)) = last else {
            return Ok(None);
        };
        let is_young = self.now.since(Timestamp::from_unix_ms(created)) < rules.replay_window;
        let is_over = self.now.unix_ms() > not_after;
        let is_due = self.now >= renewal_point(not_before, not_after);
        let same = IssueOutcome {
            certificate,
            authority: damaged(authority.parse())?,
            repeated: true,
        };
        match damaged(state.parse())? {
            CredentialState::Revoked => Err(RegistryError::Refused(format!(
                "the last certificate of device {} for this key was revoked; hint: make a new key",
                request.device
            ))),
            CredentialState::Issued if self.now.unix_ms() <= not_after => Ok(Some(same)),
            // An expired one is of no use to anybody, however young its issuance.
            CredentialState::Active if !is_over && (is_young || !is_due) => Ok(Some(same)),
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
    /// Registers a self-signed certificate for a device by its fingerprint; whether it was not registered before. A device
    /// may have several: the next one is pinned before the last one is revoked.
    ///
    /// # Errors
    /// [`RegistryError::NoDevice`]; [`RegistryError::Refused`] if the certificate is registered otherwise;
    /// [`RegistryError::SharedKey`] if another device has its key.
    pub fn pin_credential(
        &self,
        actor: Actor,
        tenant: TenantId,
        device: DeviceId,
        certificate: CertificateFacts,
    ) -> Result<Committed<bool>, RegistryError> {
        self.write(move |scope| {
            let Some((_, lifecycle, _)) = scope.device(&tenant, &device)? else {
                return Err(RegistryError::NoDevice { tenant, device });
            };
            if lifecycle.state == LifecycleState::Decommissioned {
                return Err(RegistryError::Refused(
                    "the device is decommissioned, and that is final".into(),
                ));
            }
            let fingerprint = certificate.fingerprint;
            if let Some(known) = read_credential(scope.tx, &fingerprint)? {
                if known.kind == CredentialKind::Pinned && known.tenant == tenant && known.device == device {
                    return Ok(false);
                }
                return Err(RegistryError::Refused(format!(
                    "the certificate is registered already, as {} of device {} of tenant {}",
                    known.kind, known.device, known.tenant
                )));
            }
            let new = NewCredential {
                kind: CredentialKind::Pinned,
                ..NewCredential::brought(certificate)
            };
            scope.put_credential(&tenant, &device, &new)?;
            let detail = json!({ "fingerprint": fingerprint });
            scope.audit(
                &actor,
                "credential.pin",
                tenant.as_str(),
                device.as_str(),
                &detail,
            )?;
            Ok(true)
        })
    }

    /// Sets how long things last in issuance, from now on.
    pub fn set_issuance_rules(&self, rules: IssuanceRules) {
        *self.rules.write() = rules;
    }

    pub(crate) fn issuance_rules(&self) -> IssuanceRules {
        *self.rules.read()
    }

    /// Issues and registers a certificate, or answers with the one that was issued before: `mint` runs inside the
    /// transaction, and what it made is on disk before it is handed out.
    ///
    /// # Errors
    /// [`RegistryError::NoDevice`]; [`RegistryError::SharedKey`]; [`RegistryError::Exists`] if the idempotency key was
    /// used for something else; [`RegistryError::Refused`] if the device is decommissioned, the key is not to be used
    /// again, or nothing was minted.
    pub fn issue(
        &self,
        actor: Actor,
        request: IssueRequest,
        mint: impl FnOnce(Timestamp) -> Result<NewCredential, String> + Send + 'static,
    ) -> Result<Committed<IssueOutcome>, RegistryError> {
        let rules = self.issuance_rules();
        self.write(move |scope| issue(scope, &actor, &request, rules, mint))
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
        let rules = self.issuance_rules();
        let reached = Arc::new(AtomicBool::new(false));
        let would_mint = reached.clone();
        // Failing is what undoes the job.
        let checked = self.write(move |scope| {
            issue(scope, &actor, &request, rules, |_| {
                would_mint.store(true, Ordering::Relaxed);
                Err(String::new())
            })
        });
        match checked {
            Ok(committed) => Ok(Some(committed.value)),
            Err(RegistryError::Refused(_)) if reached.load(Ordering::Relaxed) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The certificates of an authority that have ended since a moment, oldest first, for telling others.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn ended_since(
        &self,
        authority: &AuthorityId,
        since: Timestamp,
    ) -> Result<Vec<EndedCredential>, RegistryError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT serial, state, reason, ended FROM credentials
                 WHERE authority = ? AND ended >= ? ORDER BY ended",
            )?;
            let mut rows = statement.query(params![authority.as_str(), since.unix_ms()])?;
            let mut found = Vec::new();
            while let Some(r) = rows.next()? {
                let state: String = r.get(1)?;
                let reason: Option<u8> = r.get(2)?;
                found.push(EndedCredential {
                    serial: r.get(0)?,
                    state: damaged(state.parse())?,
                    reason: reason
                        .map(|code| damaged(RevocationReason::try_from(code)))
                        .transpose()?,
                    at: Timestamp::from_unix_ms(r.get(3)?),
                });
            }
            Ok(found)
        })
    }

    /// Confirms that a certificate is on its device: `issued` becomes `active`, and it will not lapse.
    ///
    /// # Errors
    /// [`RegistryError::NoCredential`]; [`RegistryError::Refused`] if it was revoked, superseded or has lapsed.
    pub fn confirm_credential(
        &self,
        actor: Actor,
        fingerprint: Fingerprint,
    ) -> Result<Committed<()>, RegistryError> {
        let rules = self.issuance_rules();
        self.write(move |scope| {
            let Some(facts) = read_credential(scope.tx, &fingerprint)? else {
                return Err(RegistryError::NoCredential(fingerprint));
            };
            match facts.state {
                CredentialState::Active => return Ok(()),
                CredentialState::Issued => {}
                other => {
                    return Err(RegistryError::Refused(format!(
                        "the certificate is {other}; hint: issue a new one"
                    )));
                }
            }
            let (tenant, device) = (facts.tenant.clone(), facts.device.clone());
            scope.activate_credential(facts, None, rules.overlap)?;
            scope.audit(
                &actor,
                "credential.confirm",
                tenant.as_str(),
                device.as_str(),
                &json!({ "fingerprint": fingerprint }),
            )
        })
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

    /// Revokes credentials. Those that are revoked already stay as they are. How many were revoked.
    ///
    /// # Errors
    /// [`RegistryError::NoCredential`] if a single one is named that is not known.
    pub fn revoke(
        &self,
        actor: Actor,
        whose: Revocation,
        code: RevocationReason,
        reason: String,
    ) -> Result<Committed<u64>, RegistryError> {
        self.write(move |scope| {
            let alive = "state <> 'revoked'";
            let found = match &whose {
                Revocation::Credential(fingerprint) => match read_credential(scope.tx, fingerprint)? {
                    None => return Err(RegistryError::NoCredential(*fingerprint)),
                    Some(facts) if facts.state == CredentialState::Revoked => vec![],
                    Some(facts) => vec![facts],
                },
                Revocation::Device(tenant, device) => scope.credentials_where(
                    &format!("tenant = ? AND device = ? AND {alive}"),
                    [tenant.as_str(), device.as_str()],
                )?,
                Revocation::Batch(tenant, batch) => scope.credentials_where(
                    &format!(
                        "tenant = ?1 AND device IN (SELECT id FROM devices WHERE tenant = ?1 AND batch = ?2)
                         AND batch = ?2 AND {alive}"
                    ),
                    [tenant.as_str(), batch.as_str()],
                )?,
                Revocation::Claim(tenant, claim) => scope.credentials_where(
                    &format!("tenant = ? AND claim = ? AND {alive}"),
                    [tenant.as_str(), claim.as_str()],
                )?,
            };
            let count = found.len() as u64;
            for facts in found {
                let (tenant, device) = (facts.tenant.clone(), facts.device.clone());
                let detail = json!({
                    "fingerprint": facts.fingerprint, "code": code.name(), "reason": reason, "scope": whose,
                });
                scope.move_credential(facts, CredentialState::Revoked, Some(code))?;
                scope.audit(
                    &actor,
                    "credential.revoke",
                    tenant.as_str(),
                    device.as_str(),
                    &detail,
                )?;
            }
            Ok(count)
        })
    }

    /// Lets lapse what was issued and not used in time, and ends what was superseded and whose overlap is over.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn sweep_credentials(&self) -> Result<Committed<Swept>, RegistryError> {
        let rules = self.issuance_rules();
        self.write(move |scope| {
            let by = Actor("countersign".into());
            let unused = scope.credentials_where(
                "state = 'issued' AND certificate IS NOT NULL AND created < ?",
                [scope.now.minus(rules.lapse_after).unix_ms()],
            )?;
            let over = scope.credentials_where(
                "supersede_at IS NOT NULL AND supersede_at <= ? AND state = 'active'",
                [scope.now.unix_ms()],
            )?;
            let swept = Swept {
                lapsed: unused.len() as u64,
                superseded: over.len() as u64,
            };
            for (facts, state, reason) in unused
                .into_iter()
                .map(|f| (f, CredentialState::Lapsed, None))
                .chain(
                    over.into_iter()
                        .map(|f| (f, CredentialState::Superseded, Some(RevocationReason::Superseded))),
                )
            {
                let detail = json!({ "fingerprint": facts.fingerprint });
                let (tenant, device) = (facts.tenant.clone(), facts.device.clone());
                scope.move_credential(facts, state, reason)?;
                let action = format!("credential.{}", state.name());
                scope.audit(&by, &action, tenant.as_str(), device.as_str(), &detail)?;
            }
            scope
                .tx
                .prepare_cached("DELETE FROM idempotency WHERE created < ?")?
                .execute([scope.now.minus(rules.replay_window).unix_ms()])?;
            scope
                .tx
                .prepare_cached("DELETE FROM enrolment_secrets WHERE expires < ?")?
                .execute([scope.now.unix_ms()])?;
            Ok(swept)
        })
    }

    /// Whether a certificate was superseded whose overlap is over at `now`: then a sweep is due.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn is_sweep_due(&self, now: Timestamp) -> Result<bool, RegistryError> {
        self.read(|db| {
            Ok(db
                .prepare_cached(
                    "SELECT EXISTS (SELECT 1 FROM credentials WHERE supersede_at IS NOT NULL AND supersede_at <= ?
                     AND state = 'active')",
                )?
                .query_row([now.unix_ms()], |r| r.get(0))?)
        })
    }

    /// First use: `issued` becomes `active`. Not waited for: it alters no admission.
    pub(crate) fn credential_used(&self, fingerprint: Fingerprint, authority: AuthorityId) {
        let rules = self.issuance_rules();
        self.write_behind(
            "keep a credential's first use",
            move |scope| match read_credential(scope.tx, &fingerprint)? {
                Some(facts) if facts.state == CredentialState::Issued => {
                    scope.activate_credential(facts, Some(&authority), rules.overlap)
                }
                _ => Ok(()),
            },
        );
    }

    /// What became of a certificate of an authority, by its serial number in hex; `None` if it issued none such, and
    /// inside that `None` if it is in force.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn certificate_status(
        &self,
        authority: &AuthorityId,
        serial: &str,
    ) -> Result<Option<Option<Revoked>>, RegistryError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT serial, ended, reason, state FROM credentials
                 WHERE serial = ?1 AND authority = ?2 AND station IS NULL
                 UNION ALL SELECT serial, ended, reason, state FROM stations WHERE serial = ?1 AND authority = ?2",
            )?;
            let mut rows = statement.query([serial, authority.as_str()])?;
            if let Some(r) = rows.next()? {
                return match r.get::<_, Option<i64>>(1)? {
                    None => Ok(Some(None)),
                    Some(_) => Ok(Some(Some(revoked_entry(r)?))),
                };
            }
            // Issued after the backup that was restored.
            let mut statement = db.prepare_cached(
                "SELECT serial, ended, reason, 'revoked' FROM lost_revocations WHERE serial = ? AND authority = ?",
            )?;
            let mut rows = statement.query([serial, authority.as_str()])?;
            match rows.next()? {
                None => Ok(None),
                Some(r) => Ok(Some(Some(revoked_entry(r)?))),
            }
        })
    }

    /// What an authority's revocation list holds: everything revoked or superseded, for ever (RFC 5280 section 3.3 asks
    /// for one list after the expiry; ours stay, and lapsed ones are on it too: they were handed out).
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn revoked_by(
        &self,
        authority: &AuthorityId,
        not_expired_before: Timestamp,
    ) -> Result<Vec<Revoked>, RegistryError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(
                // A station's certificates are another issuer's: the station itself is on the list.
                "SELECT serial, ended, reason, state FROM credentials
                 WHERE authority = ?1 AND ended IS NOT NULL AND not_after >= ?2 AND station IS NULL
                 UNION ALL SELECT serial, ended, reason, state FROM stations
                 WHERE authority = ?1 AND ended IS NOT NULL AND not_after >= ?2
                 UNION ALL SELECT serial, ended, reason, 'revoked' FROM lost_revocations WHERE authority = ?1
                 ORDER BY serial",
            )?;
            let mut rows = statement.query(params![authority.as_str(), not_expired_before.unix_ms()])?;
            let mut found = Vec::new();
            while let Some(r) = rows.next()? {
                found.push(revoked_entry(r)?);
            }
            Ok(found)
        })
    }
}

/// Of a row `serial, ended, reason, state` that has ended.
fn revoked_entry(r: &rusqlite::Row<'_>) -> Result<Revoked, RegistryError> {
    let lapsed = r.get::<_, String>(3)? == CredentialState::Lapsed.name();
    Ok(Revoked {
        serial: r.get(0)?,
        at: Timestamp::from_unix_ms(r.get(1)?),
        reason: match r.get::<_, Option<u8>>(2)? {
            Some(code) => damaged(RevocationReason::try_from(code))?,
            None if lapsed => RevocationReason::CessationOfOperation,
            None => RevocationReason::Unspecified,
        },
    })
}

fn check_requester(
    scope: &mut Scope<'_>,
    actor: &Actor,
    request: &IssueRequest,
    rules: IssuanceRules,
) -> Result<Standing, RegistryError> {
    match &request.requester {
        Requester::Operator | Requester::JudgedByCa => Ok(Standing::Whole),
        Requester::Expired(expired) => Ok(match scope.enter_lane(actor, request, expired)? {
            LanePass::Issue => Standing::Whole,
            LanePass::Repeat => Standing::RepeatOnly,
        }),
        Requester::Claim(claim) => {
            scope.enter_claim(actor, request, claim)?;
            Ok(Standing::OnClaim(claim.claim.clone()))
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
            let facts = read_credential(scope.tx, fingerprint)?
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

pub(crate) fn issue(
    scope: &mut Scope<'_>,
    actor: &Actor,
    request: &IssueRequest,
    rules: IssuanceRules,
    mint: impl FnOnce(Timestamp) -> Result<NewCredential, String>,
) -> Result<IssueOutcome, RegistryError> {
    let (tenant, device) = (&request.tenant, &request.device);
    // Who may not ask is not told which devices there are, nor how they stand.
    let standing = check_requester(scope, actor, request, rules)?;
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
        let content = format!("{device}\n{}\n{}", request.key, request.profile);
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
    if let Some(same) = scope.issued_before(request, rules)? {
        return Ok(same);
    }
    if standing == Standing::RepeatOnly {
        return Err(LaneRefusal::Used.into());
    }
    let new = mint(scope.minting_time()?).map_err(RegistryError::Refused)?;
    let (Some(issued), Some(authority)) = (&new.issued, &new.authority) else {
        return Err(RegistryError::Refused("what was minted is not kept".into()));
    };
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
    };
    scope.put_credential(tenant, device, &new)?;
    scope.keep_time()?;
    if let Standing::OnClaim(claim) = &standing {
        scope.mark_minted(&new.certificate.fingerprint, claim)?;
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

pub(crate) fn read_credential(
    db: &Connection,
    fingerprint: &Fingerprint,
) -> Result<Option<CredentialFacts>, RegistryError> {
    db.prepare_cached(
        "SELECT fingerprint, tenant, device, kind, state, custody, revision FROM credentials WHERE fingerprint = ?",
    )?
    .query_row([fingerprint.as_bytes()], |r| Ok(credential_facts(r)))
    .optional()?
    .transpose()
}

/// Of a row `fingerprint, tenant, device, kind, state, custody, revision`.
pub(crate) fn credential_facts(r: &rusqlite::Row<'_>) -> Result<CredentialFacts, RegistryError> {
    let text = |n: usize| -> Result<String, RegistryError> { Ok(r.get(n)?) };
    Ok(CredentialFacts {
        fingerprint: Fingerprint::from_bytes(r.get(0)?),
        tenant: damaged(text(1)?.parse())?,
        device: damaged(text(2)?.parse())?,
        kind: damaged(text(3)?.parse())?,
        state: damaged(text(4)?.parse())?,
        custody: damaged(text(5)?.parse())?,
        generation: Generation(r.get::<_, i64>(6)?.cast_unsigned()),
    })
}
