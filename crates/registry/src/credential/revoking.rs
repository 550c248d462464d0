//! Revoking: one certificate, or all of a device, a batch, a claim.

use countersign_factory::RevocationReason;
use countersign_policy::CredentialState;
use serde_json::json;

use super::{Revocation, read_credential};
use crate::change::Actor;
use crate::error::RegistryError;
use crate::store::Registry;
use crate::writer::Committed;

impl Registry {
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
}
