//! Issuing and revoking device certificates.

use std::time::Duration;

use countersign_factory::destruction::Statement;
use countersign_factory::request::pem;
use countersign_factory::{CertificateRequest, EnrolmentGrant, Profile, ProfileKind, RevocationReason};
use countersign_identity::{AuthorityId, CertificateFacts, DeviceId, Fingerprint, TenantId, Timestamp};
use countersign_policy::facts::CredentialKind;
use countersign_policy::{CredentialState, Custody, FactSource};
use countersign_registry::{
    Actor, IssueOutcome, IssueRequest, IssuedHere, MissingDevice, NewCredential, ProfileChoice, Requester,
    Revocation,
};
use serde::{Deserialize, Serialize};

use super::{Deed, Service, Shown, Told};
use crate::failure::Failure;

/// A certificate that is asked for.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The tenant of the device.
    pub tenant: TenantId,
    /// The device.
    pub device: DeviceId,
    /// The request, whose signature holds.
    pub request: CertificateRequest,
    /// The profile; the tenant's first if none is named.
    pub profile: Option<String>,
    /// The authority; the tenant's newest active one if none is named.
    pub authority: Option<AuthorityId>,
    /// The requester's own key for this request.
    pub idempotency_key: Option<String>,
    /// Who asks.
    pub requester: Requester,
    /// The attestation of the key that is cited, by the SHA-256 of its token.
    pub attestation: Option<Fingerprint>,
    /// What the requester showed, for a CA that judges it anew.
    pub shown: Shown,
    /// Whether the device is added with it, if it is not there.
    pub missing: MissingDevice,
    /// When it is dated, if not now: for demonstrations of what has expired.
    pub dated: Option<Timestamp>,
}

impl Wanted {
    /// By the defaults.
    pub fn new(tenant: TenantId, device: DeviceId, request: CertificateRequest) -> Self {
        Self {
            tenant,
            device,
            request,
            profile: None,
            authority: None,
            idempotency_key: None,
            requester: Requester::Operator,
            attestation: None,
            shown: Shown::Nothing,
            missing: MissingDevice::Refused,
            dated: None,
        }
    }
}

/// A certificate that was issued, with all that the device needs but its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provisioned {
    /// The tenant.
    pub tenant: TenantId,
    /// The device.
    pub device: DeviceId,
    /// Certificate and issuing CA, PEM.
    pub certificate: String,
    /// What the device pins, PEM.
    pub platform_root: String,
    /// The certificate's serial number, hex.
    pub serial: String,
    /// The certificate's fingerprint.
    pub fingerprint: Fingerprint,
    /// The end of its validity.
    pub not_after: Timestamp,
    /// The authority that issued it.
    pub authority: AuthorityId,
    /// Whether it had been issued before for this key: nothing new was minted.
    pub repeated: bool,
    /// Whether the device was added with it.
    pub added: bool,
    /// Where the device connects.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The port where it has its certificate renewed, if there is one.
    pub enrol_port: Option<u16>,
}

impl Service {
    /// A profile by its name; the first one if none is named.
    ///
    /// # Errors
    /// [`Failure`] if there is no such profile.
    pub fn profile(&self, name: Option<&str>) -> Result<Profile, Failure> {
        let all = &self.config.profiles;
        let found = match name {
            None => all.first(),
            Some(name) => all.iter().find(|p| p.name == name),
        };
        found.cloned().ok_or_else(|| {
            let names: Vec<_> = all.iter().map(|p| p.name.as_str()).collect();
            Failure::not_found(
                format!("there is no profile {}", name.unwrap_or_default()),
                &format!("the configuration has {}", names.join(", ")),
            )
        })
    }

    /// Whose choice a profile is.
    pub(super) fn choice_of(&self, profile: &Profile) -> ProfileChoice {
        match self.config.profiles.first() {
            Some(first) if first.name == profile.name => ProfileChoice::First,
            _ => ProfileChoice::Named,
        }
    }

    /// Issues a certificate, or answers with the one that was issued for this key before.
    ///
    /// # Errors
    /// [`Failure`]; then nothing was minted.
    pub async fn issue(&self, actor: Actor, wanted: Wanted) -> Result<IssueOutcome, Failure> {
        let profile = self.profile(wanted.profile.as_deref())?;
        let id = self.issuing_authority(&wanted.tenant, wanted.authority.as_ref())?;
        if let Some(ca) = &self.ca {
            return self.issue_apart(ca.clone(), actor, id, wanted).await;
        }
        let authority = self.authority_with_key(&id)?;
        let key = wanted.request.key();
        let request = IssueRequest {
            tenant: wanted.tenant.clone(),
            device: wanted.device.clone(),
            key: key.fingerprint().map_err(|e| Failure::internal(e.to_string()))?,
            kind: profile.kind,
            choice: self.choice_of(&profile),
            profile: profile.name.clone(),
            authority: wanted.authority,
            demands_new_key: profile.new_key,
            idempotency_key: wanted.idempotency_key,
            requester: wanted.requester,
            attestation: wanted.attestation,
        };
        let kind = match profile.kind {
            ProfileKind::Factory => CredentialKind::Factory,
            ProfileKind::Operational => CredentialKind::Operational,
        };
        let (name, dated, missing) = (profile.name.clone(), wanted.dated, wanted.missing);
        let grant = EnrolmentGrant::new(wanted.tenant, wanted.device, key.clone(), profile)
            .map_err(|e| Failure::invalid(e.to_string()))?;
        let (outcome, _) = self
            .change(move |r| {
                r.issue_for(actor, request, missing, move |now| {
                    let issued = authority
                        .issue_device(&grant, dated.unwrap_or(now))
                        .map_err(|e| e.to_string())?;
                    Ok(NewCredential {
                        certificate: issued.facts().clone(),
                        kind,
                        state: CredentialState::Issued,
                        custody: Custody::Unknown,
                        authority: Some(id),
                        issued: Some(IssuedHere {
                            certificate: issued.certificate().to_vec(),
                            profile: name,
                            batch: None,
                        }),
                    })
                })
            })
            .await?;
        Ok(outcome)
    }

    /// The same with all that goes into a device's identity folder.
    ///
    /// # Errors
    /// [`Failure`]; then nothing was minted.
    pub async fn provision(&self, actor: Actor, wanted: Wanted) -> Result<Provisioned, Failure> {
        let (tenant, device) = (wanted.tenant.clone(), wanted.device.clone());
        let outcome = self.issue(actor, wanted).await?;
        let facts =
            CertificateFacts::parse(&outcome.certificate).map_err(|e| Failure::internal(e.to_string()))?;
        let above = self.registry.authority_certificate(&outcome.authority)?;
        let (host, port) = self.address();
        Ok(Provisioned {
            tenant,
            device,
            certificate: pem("CERTIFICATE", &outcome.certificate) + &pem("CERTIFICATE", &above),
            platform_root: self.platform_root(),
            serial: facts.serial,
            fingerprint: facts.fingerprint,
            not_after: facts.not_after,
            authority: outcome.authority,
            repeated: outcome.repeated,
            added: outcome.added,
            host,
            port,
            enrol_port: self.enrol_port(),
        })
    }

    /// Confirms that a certificate is on its device.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn confirm(&self, actor: Actor, fingerprint: Fingerprint) -> Result<(), Failure> {
        self.change(move |r| r.confirm_credential(actor, fingerprint))
            .await?;
        Ok(())
    }

    /// Records a device's own statement that its key is destroyed, and waits for the sessions that this ends: since when it is
    /// known.
    ///
    /// # Errors
    /// [`Failure`] if the statement does not hold, or is not that of a certificate of this device in force.
    pub async fn declare_destruction(
        &self,
        actor: Actor,
        statement: Statement,
    ) -> Result<Timestamp, Failure> {
        let certificate = statement.check().map_err(|e| Failure::refused(e.to_string()))?;
        // Told again: nothing is done, and no receipt is made of it.
        let told = self.registry.destructions(&statement.tenant, &statement.device)?;
        if let Some(before) = told.iter().find(|d| d.certificate == certificate) {
            return Ok(before.recorded);
        }
        let deed = Deed {
            actor: actor.clone(),
            action: "device.destroyed".into(),
            tenant: Some(statement.tenant.clone()),
            subject: statement.device.to_string(),
            reason: "its own statement".into(),
        };
        let (recorded, _) = self
            .deed(deed, move |r| {
                r.declare_destruction(actor, statement, certificate)
            })
            .await?;
        Ok(recorded)
    }

    /// Makes a one-time secret with which a device enrols over EST. It is shown once, and kept only as its hash.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn new_secret(
        &self,
        actor: Actor,
        tenant: TenantId,
        device: DeviceId,
    ) -> Result<(String, Timestamp), Failure> {
        if self.ca.is_some() {
            return Err(Failure::invalid(format!(
                "the CA is a process of its own, and takes only secrets that its operator made; hint: countersign ca secret {device}, on the CA"
            )));
        }
        let secret = countersign_identity::proof::new_code()
            .ok_or_else(|| Failure::internal("the system's random source failed"))?;
        let hash = Fingerprint::of(secret.as_bytes());
        let lifetime = Duration::from_secs(self.config.enrol.secret_hours * 3600);
        let (expires, _) = self
            .change(move |r| r.add_enrolment_secret(actor, tenant, device, hash, lifetime))
            .await?;
        Ok((secret, expires))
    }

    /// Revokes credentials, and waits for the sessions that this ends. How many were revoked.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn revoke(
        &self,
        actor: Actor,
        whose: Revocation,
        code: RevocationReason,
        reason: String,
    ) -> Result<(u64, Told), Failure> {
        let (tenant, subject) = match &whose {
            Revocation::Credential(fingerprint) => {
                let known = self.registry.facts().credential(fingerprint);
                (known.map(|c| c.tenant), fingerprint.to_string())
            }
            Revocation::Device(tenant, device) => (Some(tenant.clone()), device.to_string()),
            Revocation::Batch(tenant, batch) => (Some(tenant.clone()), format!("batch {batch}")),
            Revocation::Claim(tenant, claim) => (Some(tenant.clone()), format!("claim {claim}")),
        };
        let deed = Deed {
            actor: actor.clone(),
            action: "credential.revoke".into(),
            tenant,
            subject,
            reason: reason.clone(),
        };
        self.deed(deed, move |r| r.revoke(actor, whose, code, reason))
            .await
    }

    /// Lets lapse what was never used, and ends what was superseded.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn sweep(&self) -> Result<(), Failure> {
        let (swept, _) = self.change(|r| r.sweep_credentials()).await?;
        if swept.lapsed > 0 || swept.superseded > 0 {
            tracing::info!(
                credentials.lapsed = swept.lapsed,
                credentials.superseded = swept.superseded,
                "credentials swept"
            );
        }
        Ok(())
    }
}
