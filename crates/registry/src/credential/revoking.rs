//! Revoking: one certificate, or all of a device, a batch, a claim.

use countersign_factory::RevocationReason;
use countersign_policy::CredentialState;
use serde_json::json;

use super::Revocation;
use crate::change::Actor;
use crate::error::RegistryError;
use crate::store::Registry;
use crate::writer::Committed;

impl Registry {
    /// Revokes credentials. Those that are revoked already stay as they are, unless it is known only now that somebody else has
    /// the key: that is told in lists from now on (RFC 5280 section 5.3.1), with the date of before, and nothing is certified
    /// for that key again. How many were changed.
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
            let open = match code.is_compromise() {
                false => "state <> 'revoked'".to_owned(),
                true => format!(
                    "(state <> 'revoked' OR coalesce(reason, 0) NOT IN ({}, {}))",
                    RevocationReason::KeyCompromise.code(),
                    RevocationReason::CaCompromise.code()
                ),
            };
            let found = match &whose {
                Revocation::Credential(fingerprint) => {
                    if scope.read_credential(fingerprint)?.is_none() {
                        return Err(RegistryError::NoCredential(*fingerprint));
                    }
                    scope
                        .credentials_where(&format!("fingerprint = ? AND {open}"), [fingerprint.as_bytes()])?
                }
                Revocation::Device(tenant, device) => scope.credentials_where(
                    &format!("tenant = ? AND device = ? AND {open}"),
                    [tenant.as_str(), device.as_str()],
                )?,
                Revocation::Batch(tenant, batch) => scope.credentials_where(
                    &format!(
                        "tenant = ?1 AND device IN (SELECT id FROM devices WHERE tenant = ?1 AND batch = ?2)
                         AND batch = ?2 AND {open}"
                    ),
                    [tenant.as_str(), batch.as_str()],
                )?,
                Revocation::Claim(tenant, claim) => scope.credentials_where(
                    &format!("tenant = ? AND claim = ? AND {open}"),
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
}
