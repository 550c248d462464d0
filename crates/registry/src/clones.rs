//! A suspicion that two hold one key goes into the audit: it may be asked long after the score has decayed.

use countersign_policy::clones::Suspect;
use serde_json::json;

use crate::change::Actor;
use crate::error::RegistryError;
use crate::store::Registry;
use crate::writer::Committed;

impl Registry {
    /// Audits a suspicion, with its evidence.
    ///
    /// # Errors
    /// [`RegistryError`] if it cannot be written.
    pub fn suspect_clone(&self, actor: Actor, suspect: Suspect) -> Result<Committed<()>, RegistryError> {
        self.write(move |scope| {
            let suspicion = &suspect.suspicion;
            let detail = json!({
                "fingerprint": suspect.fingerprint,
                "score": suspicion.score,
                "evidence": suspicion.evidence(),
                "sources": suspicion.sources,
            });
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
