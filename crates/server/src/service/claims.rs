//! Claims: one secret or certificate for many devices.

use std::time::Duration;

use countersign_factory::RevocationReason;
use countersign_identity::{CertificateFacts, Fingerprint, TenantId, Timestamp};
use countersign_policy::ClaimId;
use countersign_policy::claim::AllowList;
use countersign_registry::{Actor, ClaimProof, NewClaim, Revocation};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::{Deed, Service, Told, now};
use crate::failure::Failure;

/// The longest that a claim may be good, in days.
const DAYS_MAX: u32 = 366;

/// A claim that is about to be.
#[derive(Debug, Clone)]
pub struct ClaimDraft {
    /// Its name.
    pub id: ClaimId,
    /// Which ids it enrols.
    pub allow: AllowList,
    /// How long it is good, in days.
    pub days: u32,
    /// The certificate it goes by, PEM; a secret is made if there is none.
    pub certificate: Option<String>,
    /// The only profile that it enrols by.
    pub profile: Option<String>,
    /// The model of the devices that it brings.
    pub model: Option<String>,
    /// Their groups.
    pub groups: Vec<String>,
}

impl Service {
    /// Adds a claim. Its secret, shown once and kept only as its hash, if it goes by one; and its end.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn add_claim(
        &self,
        actor: Actor,
        tenant: TenantId,
        draft: ClaimDraft,
    ) -> Result<(Option<String>, Timestamp), Failure> {
        if draft.days == 0 || draft.days > DAYS_MAX {
            return Err(Failure::invalid(format!(
                "a claim is good for 1 to {DAYS_MAX} days, not {}; hint: it leaks sooner or later, so give it the days that the line needs",
                draft.days
            )));
        }
        // A profile that does not exist is told now, not to the first device.
        self.profile(draft.profile.as_deref())?;
        let (secret, proof) = match &draft.certificate {
            Some(pem) => (
                None,
                ClaimProof::Certificate(self.claim_certificate(&tenant, pem)?),
            ),
            None => {
                let secret = countersign_identity::proof::new_code()
                    .ok_or_else(|| Failure::internal("the system's random source failed"))?;
                let hash = Fingerprint::of(secret.as_bytes());
                (Some(secret), ClaimProof::Secret(hash))
            }
        };
        let new = NewClaim {
            id: draft.id,
            proof,
            allow: draft.allow,
            profile: draft.profile,
            model: draft.model,
            groups: draft.groups,
            lifetime: Duration::from_secs(u64::from(draft.days) * 86_400),
        };
        let (expires, _) = self.change(move |r| r.add_claim(actor, tenant, new)).await?;
        Ok((secret, expires))
    }

    /// The certificate of a claim must be nobody's: a device's own is not shared.
    fn claim_certificate(&self, tenant: &TenantId, pem: &str) -> Result<Fingerprint, Failure> {
        use countersign_policy::FactSource;
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|e| Failure::invalid(format!("the claim's file is no certificate in PEM: {e}")))?;
        let facts = CertificateFacts::parse(&der).map_err(|e| Failure::invalid(e.to_string()))?;
        if facts.ca.is_some() {
            return Err(Failure::invalid(
                "the claim's certificate is a CA's; hint: give the one that the devices show",
            ));
        }
        if !facts.key_algorithm.is_strong_enough() {
            return Err(Failure::invalid(
                "the key of the claim's certificate is too weak; hint: use P-256, P-384, Ed25519 or RSA of 2048 bits or more",
            ));
        }
        if facts.not_after < now() {
            return Err(Failure::invalid(format!(
                "the claim's certificate expired on {}; hint: give one that is valid",
                facts.not_after
            )));
        }
        if let Some(credential) = self.registry().facts().credential(&facts.fingerprint) {
            return Err(Failure::invalid(format!(
                "the certificate is that of device {} of tenant {}; hint: a claim needs one of its own ({tenant})",
                credential.device, credential.tenant
            )));
        }
        Ok(facts.fingerprint)
    }

    /// Revokes a claim, and with a `code` everything that it minted too, and waits for the sessions that this ends. How
    /// many certificates were revoked.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn revoke_claim(
        &self,
        actor: Actor,
        tenant: TenantId,
        id: ClaimId,
        code: Option<RevocationReason>,
        reason: String,
    ) -> Result<(u64, Told), Failure> {
        let (by, of, claim, why) = (actor.clone(), tenant.clone(), id.clone(), reason.clone());
        let deed = Deed {
            actor: actor.clone(),
            action: "claim.revoke".into(),
            tenant: Some(tenant.clone()),
            subject: id.to_string(),
            reason: reason.clone(),
        };
        let (_, told) = self
            .deed(deed, move |r| r.revoke_claim(by, of, claim, why))
            .await?;
        match code {
            Some(code) => {
                self.revoke(actor, Revocation::Claim(tenant, id), code, reason)
                    .await
            }
            None => Ok((0, told)),
        }
    }
}
