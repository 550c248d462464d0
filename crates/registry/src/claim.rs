//! Claims: kept, used, counted, revoked.

use std::time::Duration;

use countersign_factory::RevocationReason;
use countersign_identity::{DeviceId, Fingerprint, TenantId, Timestamp};
use countersign_policy::claim::{self, AllowList, ClaimFacts, ClaimId};
use countersign_policy::first_contact::IdPattern;
use countersign_policy::lifecycle::Lifecycle;
use countersign_policy::{ClaimRefusal, CredentialState, LifecycleState};
use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::change::{Actor, NewDevice, damaged};
use crate::credential::{IssueRequest, ProfileChoice};
use crate::error::RegistryError;
use crate::store::Registry;
use crate::writer::{Committed, Scope};

/// What a claim's holder shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimProof {
    /// A secret, by its SHA-256.
    Secret(Fingerprint),
    /// A certificate whose key it has proven to hold.
    Certificate(Fingerprint),
}

/// Whoever holds a claim asks for a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimRequester {
    /// Which claim.
    pub claim: ClaimId,
    /// What it shows.
    pub proof: ClaimProof,
}

/// A claim that is about to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewClaim {
    /// Its name.
    pub id: ClaimId,
    /// What its holder will show.
    pub proof: ClaimProof,
    /// Which ids it enrols.
    pub allow: AllowList,
    /// The only profile that it enrols by; the tenant's first if none is named.
    pub profile: Option<String>,
    /// The model of the devices that it brings.
    pub model: Option<String>,
    /// Their groups.
    pub groups: Vec<String>,
    /// How long it is good.
    pub lifetime: Duration,
}

/// A claim in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimView {
    /// Its tenant.
    pub tenant: TenantId,
    /// Its name.
    pub id: ClaimId,
    /// `secret` or `certificate`.
    pub by: String,
    /// `active`, `expired` or `revoked`.
    pub state: String,
    /// The pattern of the ids that it enrols; `None` if it has a list.
    pub id_pattern: Option<String>,
    /// How many devices it may enrol: the quota, or the list's length.
    pub quota: u64,
    /// How many it has.
    pub enrolled: u64,
    /// The profile that it enrols by.
    pub profile: Option<String>,
    /// The model of the devices that it brings.
    pub model: Option<String>,
    /// The last moment at which it is good.
    pub expires: Timestamp,
    /// Since when it is revoked.
    pub revoked: Option<Timestamp>,
    /// Why.
    pub reason: Option<String>,
    /// Since when.
    pub created: Timestamp,
}

/// A certificate that was issued on a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Minted {
    /// The device.
    pub device: DeviceId,
    /// The certificate.
    pub fingerprint: Fingerprint,
    /// Its serial number, hex.
    pub serial: String,
    /// Where it stands.
    pub state: CredentialState,
    /// When it was issued.
    pub created: Timestamp,
}

type ClaimRow = (
    Option<[u8; 32]>,
    Option<[u8; 32]>,
    Option<String>,
    Option<i64>,
    Option<String>,
    String,
    i64,
    Option<i64>,
    Option<String>,
    i64,
);

impl Scope<'_> {
    /// Decides whether the claim enrols the device, which is added if it never existed. Whether it has enrolled for this
    /// very key already: then the same again is all that it gets.
    pub(crate) fn enter_claim(
        &mut self,
        actor: &Actor,
        request: &IssueRequest,
        requester: &ClaimRequester,
    ) -> Result<bool, RegistryError> {
        let (tenant, device) = (&request.tenant, &request.device);
        let names = [tenant.as_str(), requester.claim.as_str()];
        let row: Option<ClaimRow> = self
            .tx
            .prepare_cached(
                "SELECT secret, certificate, id_pattern, quota, model, groups, expires, revoked, profile, enrolled
                 FROM claims WHERE tenant = ? AND id = ?",
            )?
            .query_row(names, |r| {
                Ok((
                    r.get(0)?,
                    r.get(1)?,
                    r.get(2)?,
                    r.get(3)?,
                    r.get(4)?,
                    r.get(5)?,
                    r.get(6)?,
                    r.get(7)?,
                    r.get(8)?,
                    r.get(9)?,
                ))
            })
            .optional()?;
        let Some((secret, certificate, pattern, quota, model, groups, expires, revoked, profile, enrolled)) =
            row
        else {
            return Err(ClaimRefusal::Unknown.into());
        };
        let is_proven = match requester.proof {
            ClaimProof::Secret(hash) => secret == Some(*hash.as_bytes()),
            ClaimProof::Certificate(fingerprint) => certificate == Some(*fingerprint.as_bytes()),
        };
        if !is_proven {
            return Err(ClaimRefusal::Unknown.into());
        }
        let is_listed = match &pattern {
            Some(pattern) => damaged(pattern.parse::<IdPattern>())?.fits(device),
            None => self
                .tx
                .prepare_cached(
                    "SELECT EXISTS (SELECT 1 FROM claim_ids WHERE tenant = ? AND claim = ? AND device = ?)",
                )?
                .query_row([names[0], names[1], device.as_str()], |r| r.get(0))?,
        };
        // A list is its own limit; only a pattern has a quota, and a device that is counted asks again for free.
        let quota = match quota {
            Some(quota) => {
                let counted = self.is_on_claim(tenant, device, &requester.claim)?;
                let others = enrolled.cast_unsigned().saturating_sub(u64::from(counted));
                Some((quota.cast_unsigned(), others))
            }
            None => None,
        };
        // For another key, and for this one.
        let (is_enrolled, has_same_key): (bool, bool) = self
            .tx
            .prepare_cached(
                "SELECT coalesce(max(public_key <> ?4), 0), coalesce(max(public_key = ?4), 0) FROM credentials
                 WHERE tenant = ?1 AND device = ?2
                 AND (state IN ('active', 'superseded') OR state = 'issued' AND not_after >= ?3)",
            )?
            .query_row(
                params![
                    tenant.as_str(),
                    device.as_str(),
                    self.now.unix_ms(),
                    request.key.as_bytes()
                ],
                |r| Ok((r.get(0)?, r.get(1)?)),
            )?;
        let compromised: bool = self
            .tx
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM credentials
                 WHERE tenant = ?1 AND device = ?2 AND state = 'revoked' AND reason IN (?3, ?4))",
            )?
            .query_row(
                params![
                    tenant.as_str(),
                    device.as_str(),
                    RevocationReason::KeyCompromise.code(),
                    RevocationReason::CaCompromise.code()
                ],
                |r| r.get(0),
            )?;
        let facts = ClaimFacts {
            is_revoked: revoked.is_some(),
            expires: Timestamp::from_unix_ms(expires),
            is_listed,
            quota,
            is_enrolled: is_enrolled || self.was_enrolled(tenant, device, &request.key)?,
            // Who was enrolled by the claim since asks again for the same key.
            is_compromised: compromised && !has_same_key,
        };
        claim::decide(&facts, self.now)?;
        // None named when the claim was made: whatever the platform's first is.
        let is_its_own = match &profile {
            Some(profile) => *profile == request.profile,
            None => request.choice == ProfileChoice::First,
        };
        if !is_its_own {
            return Err(RegistryError::Refused(format!(
                "claim {} does not enrol by profile {}; hint: leave the profile to the claim",
                requester.claim, request.profile
            )));
        }
        if self.device(tenant, device)?.is_none() {
            let new = NewDevice {
                id: device.clone(),
                model,
                groups: damaged(serde_json::from_str(&groups))?,
                state: LifecycleState::Active,
                authority: None,
            };
            self.put_device(tenant, &new, Lifecycle::new(new.state), self.now)?;
            let detail = json!({ "claim": requester.claim, "model": new.model, "groups": new.groups });
            self.audit(actor, "device.add", tenant.as_str(), device.as_str(), &detail)?;
        }
        Ok(has_same_key)
    }

    /// Whether a device has a certificate that was issued on a claim. Asked by the device, who has few: the `+` keeps the
    /// index over claims out of it, which would go through everything that was issued on this one.
    fn is_on_claim(
        &self,
        tenant: &TenantId,
        device: &DeviceId,
        claim: &ClaimId,
    ) -> Result<bool, RegistryError> {
        Ok(self
            .tx
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM credentials WHERE tenant = ? AND device = ? AND +claim = ?)",
            )?
            .query_row([tenant.as_str(), device.as_str(), claim.as_str()], |r| r.get(0))?)
    }

    /// Notes on what claim a certificate was issued, and counts the device if it is its first one on it.
    pub(crate) fn mark_minted(
        &mut self,
        tenant: &TenantId,
        device: &DeviceId,
        fingerprint: &Fingerprint,
        claim: &ClaimId,
    ) -> Result<(), RegistryError> {
        if !self.is_on_claim(tenant, device, claim)? {
            self.tx
                .prepare_cached("UPDATE claims SET enrolled = enrolled + 1 WHERE tenant = ? AND id = ?")?
                .execute([tenant.as_str(), claim.as_str()])?;
        }
        self.tx
            .prepare_cached("UPDATE credentials SET claim = ?2 WHERE fingerprint = ?1")?
            .execute(params![fingerprint.as_bytes(), claim.as_str()])?;
        Ok(())
    }
}

impl Registry {
    /// Adds a claim. Its end.
    ///
    /// # Errors
    /// [`RegistryError::NoTenant`]; [`RegistryError::Exists`]; [`RegistryError::Refused`] if it would enrol nobody.
    pub fn add_claim(
        &self,
        actor: Actor,
        tenant: TenantId,
        new: NewClaim,
    ) -> Result<Committed<Timestamp>, RegistryError> {
        let enrols_nobody = match &new.allow {
            AllowList::Ids(ids) => ids.is_empty(),
            AllowList::Pattern { quota, .. } => *quota == 0,
        };
        if enrols_nobody {
            return Err(RegistryError::Refused(
                "the claim's list is empty, so it would enrol nobody; hint: give the ids, or a pattern and a quota".into(),
            ));
        }
        self.write(move |scope| {
            scope.need_tenant(&tenant)?;
            let expires = scope.now.plus(new.lifetime);
            let (secret, certificate) = match new.proof {
                ClaimProof::Secret(hash) => (Some(hash), None),
                ClaimProof::Certificate(fingerprint) => (None, Some(fingerprint)),
            };
            let (pattern, quota) = match &new.allow {
                AllowList::Ids(_) => (None, None),
                AllowList::Pattern { pattern, quota } => {
                    (Some(pattern.to_string()), Some(quota.min(&(1 << 62)).cast_signed()))
                }
            };
            let mut groups = new.groups.clone();
            groups.sort();
            groups.dedup();
            let groups =
                serde_json::to_string(&groups).map_err(|e| RegistryError::Database(e.to_string()))?;
            let added = scope
                .tx
                .prepare_cached(
                    "INSERT INTO claims (tenant, id, secret, certificate, id_pattern, quota, profile, model, groups,
                     expires, created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                )?
                .execute(params![
                    tenant.as_str(),
                    new.id.as_str(),
                    secret.as_ref().map(Fingerprint::as_bytes),
                    certificate.as_ref().map(Fingerprint::as_bytes),
                    pattern,
                    quota,
                    new.profile,
                    new.model,
                    groups,
                    expires.unix_ms(),
                    scope.now.unix_ms(),
                ])?;
            if added == 0 {
                return Err(RegistryError::Exists(format!(
                    "claim {} of tenant {tenant}, or one by this certificate,",
                    new.id
                )));
            }
            let count = match &new.allow {
                AllowList::Pattern { quota, .. } => *quota,
                AllowList::Ids(ids) => {
                    let mut statement = scope.tx.prepare_cached(
                        "INSERT OR IGNORE INTO claim_ids (tenant, claim, device) VALUES (?, ?, ?)",
                    )?;
                    for id in ids {
                        statement.execute([tenant.as_str(), new.id.as_str(), id.as_str()])?;
                    }
                    ids.len() as u64
                }
            };
            let detail = json!({
                "id_pattern": pattern, "devices": count, "expires": expires.to_string(),
                "certificate": certificate, "profile": new.profile,
            });
            scope.audit(&actor, "claim.add", tenant.as_str(), new.id.as_str(), &detail)?;
            Ok(expires)
        })
    }

    /// Revokes a claim: from now on it enrols nobody. What it minted stays in force; see [`crate::Revocation::Claim`].
    ///
    /// # Errors
    /// [`RegistryError::NoClaim`].
    pub fn revoke_claim(
        &self,
        actor: Actor,
        tenant: TenantId,
        id: ClaimId,
        reason: String,
    ) -> Result<Committed<()>, RegistryError> {
        self.write(move |scope| {
            let known: bool = scope
                .tx
                .prepare_cached("SELECT EXISTS (SELECT 1 FROM claims WHERE tenant = ? AND id = ?)")?
                .query_row([tenant.as_str(), id.as_str()], |r| r.get(0))?;
            if !known {
                return Err(RegistryError::NoClaim(id));
            }
            let moved = scope
                .tx
                .prepare_cached(
                    "UPDATE claims SET revoked = ?3, reason = ?4 WHERE tenant = ?1 AND id = ?2 AND revoked IS NULL",
                )?
                .execute(params![tenant.as_str(), id.as_str(), scope.now.unix_ms(), reason])?;
            if moved > 0 {
                let detail = json!({ "reason": reason });
                scope.audit(&actor, "claim.revoke", tenant.as_str(), id.as_str(), &detail)?;
            }
            Ok(())
        })
    }

    /// The claims of a tenant, in order of name.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn claims(&self, tenant: &TenantId, now: Timestamp) -> Result<Vec<ClaimView>, RegistryError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT id, secret IS NOT NULL, id_pattern, coalesce(quota, (SELECT count(*) FROM claim_ids i
                     WHERE i.tenant = c.tenant AND i.claim = c.id)),
                 enrolled, profile, model, expires, revoked, reason, created
                 FROM claims c WHERE tenant = ? ORDER BY id",
            )?;
            let mut rows = statement.query([tenant.as_str()])?;
            let mut found = Vec::new();
            while let Some(r) = rows.next()? {
                let expires = Timestamp::from_unix_ms(r.get(7)?);
                let revoked: Option<i64> = r.get(8)?;
                let state = match revoked {
                    Some(_) => "revoked",
                    None if now > expires => "expired",
                    None => "active",
                };
                found.push(ClaimView {
                    tenant: tenant.clone(),
                    id: damaged(r.get::<_, String>(0)?.parse())?,
                    by: if r.get(1)? { "secret" } else { "certificate" }.into(),
                    state: state.into(),
                    id_pattern: r.get(2)?,
                    quota: r.get::<_, i64>(3)?.cast_unsigned(),
                    enrolled: r.get::<_, i64>(4)?.cast_unsigned(),
                    profile: r.get(5)?,
                    model: r.get(6)?,
                    expires,
                    revoked: revoked.map(Timestamp::from_unix_ms),
                    reason: r.get(9)?,
                    created: Timestamp::from_unix_ms(r.get(10)?),
                });
            }
            Ok(found)
        })
    }

    /// Everything that was minted on a claim, oldest first.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn minted_on(&self, tenant: &TenantId, claim: &ClaimId) -> Result<Vec<Minted>, RegistryError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT device, fingerprint, serial, state, created FROM credentials
                 WHERE tenant = ? AND claim = ? ORDER BY created, fingerprint",
            )?;
            let mut rows = statement.query([tenant.as_str(), claim.as_str()])?;
            let mut found = Vec::new();
            while let Some(r) = rows.next()? {
                found.push(Minted {
                    device: damaged(r.get::<_, String>(0)?.parse())?,
                    fingerprint: Fingerprint::from_bytes(r.get(1)?),
                    serial: r.get(2)?,
                    state: damaged(r.get::<_, String>(3)?.parse())?,
                    created: Timestamp::from_unix_ms(r.get(4)?),
                });
            }
            Ok(found)
        })
    }

    /// The claim that goes by a certificate, with the profile it enrols by; `None` if none does.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn claim_of_certificate(
        &self,
        tenant: &TenantId,
        certificate: &Fingerprint,
    ) -> Result<Option<ClaimId>, RegistryError> {
        let found: Option<String> = self.read(|db| {
            Ok(db
                .prepare_cached("SELECT id FROM claims WHERE tenant = ? AND certificate = ?")?
                .query_row(params![tenant.as_str(), certificate.as_bytes()], |r| r.get(0))
                .optional()?)
        })?;
        found.map(|id| damaged(id.parse())).transpose()
    }

    /// The profile that a claim enrols by; `None` if it leaves that to the platform, or does not exist.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn profile_of_claim(
        &self,
        tenant: &TenantId,
        claim: &ClaimId,
    ) -> Result<Option<String>, RegistryError> {
        self.read(|db| {
            let found: Option<Option<String>> = db
                .prepare_cached("SELECT profile FROM claims WHERE tenant = ? AND id = ?")?
                .query_row([tenant.as_str(), claim.as_str()], |r| r.get(0))
                .optional()?;
            Ok(found.flatten())
        })
    }
}
