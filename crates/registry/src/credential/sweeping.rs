//! The sweep: what was never used lapses, what was superseded ends with its overlap.

use countersign_factory::RevocationReason;
use countersign_identity::Timestamp;
use countersign_policy::CredentialState;
use serde_json::json;

use super::Swept;
use crate::change::Actor;
use crate::error::RegistryError;
use crate::store::Registry;
use crate::writer::Committed;

impl Registry {
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
}
