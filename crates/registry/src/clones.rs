//! A suspicion that two hold one key goes into the audit: it may be asked long after the score has decayed.

use countersign_policy::clones::{CloneVerdict, Suspect};
use serde_json::json;

use crate::change::Actor;
use crate::error::RegistryError;
use crate::store::Registry;
use crate::writer::Committed;

impl Registry {
    /// Audits a suspicion, with its evidence, what is done about it, and the policies that chose that.
    ///
    /// # Errors
    /// [`RegistryError`] if it cannot be written.
    pub fn suspect_clone(
        &self,
        actor: Actor,
        suspect: Suspect,
        verdict: CloneVerdict,
    ) -> Result<Committed<()>, RegistryError> {
        self.write(move |scope| {
            let suspicion = &suspect.suspicion;
            let mut detail = json!({
                "fingerprint": suspect.fingerprint,
                "score": suspicion.score,
                "evidence": suspicion.evidence(),
                "sources": suspicion.sources,
                "action": verdict.action,
                "policies": verdict.policies,
            });
            if let Some(failure) = &verdict.failure {
                detail["failure"] = json!(failure);
            }
            scope.audit(
                &actor,
                "device.clone-suspected",
                suspect.tenant.as_str(),
                suspect.device.as_str(),
                &detail,
            )
        })
    }
}
