//! From one state to another: what follows from each move; confirmed, first used.

use std::time::Duration;

use countersign_factory::RevocationReason;
use countersign_identity::{AuthorityId, Fingerprint, Timestamp};
use countersign_policy::facts::CredentialKind;
use countersign_policy::{CredentialFacts, CredentialState};
use rusqlite::params;
use serde_json::json;

use crate::change::{Actor, Change};
use crate::error::RegistryError;
use crate::store::Registry;
use crate::table::Fact;
use crate::writer::{Committed, Scope};

impl Scope<'_> {
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
                "UPDATE credentials SET state = ?2, revision = ?3, ended_revision = ?3, reason = ?5, supersede_at = NULL,
                    ended = CASE WHEN state = 'revoked' THEN ended ELSE ?4 END
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

    /// The authority of an active credential, if it was not known.
    fn place_credential(
        &mut self,
        facts: &CredentialFacts,
        authority: &AuthorityId,
    ) -> Result<(), RegistryError> {
        if facts.kind == CredentialKind::Pinned {
            return Ok(());
        }
        self.tx
            .prepare_cached(
                "UPDATE credentials SET authority = ?2 WHERE fingerprint = ?1 AND authority IS NULL",
            )?
            .execute(params![facts.fingerprint.as_bytes(), authority.as_str()])?;
        self.facts.push(Fact::Placed(facts.fingerprint, true));
        Ok(())
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
        if authority.is_some() {
            self.facts.push(Fact::Placed(facts.fingerprint, true));
        }
        self.tx
            .prepare_cached(
                "UPDATE credentials SET supersede_at = ?5
                 WHERE tenant = ?1 AND device = ?2 AND kind = ?3 AND fingerprint <> ?4 AND state = 'active'
                 AND certificate IS NOT NULL AND supersede_at IS NULL
                 AND rowid < (SELECT rowid FROM credentials WHERE fingerprint = ?4)",
            )?
            .execute(params![
                facts.tenant.as_str(),
                facts.device.as_str(),
                facts.kind.name(),
                facts.fingerprint.as_bytes(),
                self.now.plus(overlap).unix_ms(),
            ])?;
        // One that is used after a newer one is in use: an answer that was lost, perhaps in somebody else's hands. It has the
        // overlap and no more, like all that are older than the newest.
        self.tx
            .prepare_cached(
                "UPDATE credentials SET supersede_at = ?5
                 WHERE fingerprint = ?4 AND certificate IS NOT NULL AND supersede_at IS NULL AND EXISTS (
                    SELECT 1 FROM credentials newer
                    WHERE newer.tenant = ?1 AND newer.device = ?2 AND newer.kind = ?3 AND newer.state = 'active'
                    AND newer.certificate IS NOT NULL AND newer.rowid > credentials.rowid)",
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

    /// When a credential ended; now, if it has not.
    pub(crate) fn ended_at(&self, fingerprint: &Fingerprint) -> Result<Timestamp, RegistryError> {
        let ended: Option<i64> = self
            .tx
            .prepare_cached("SELECT ended FROM credentials WHERE fingerprint = ?")?
            .query_row([fingerprint.as_bytes()], |r| r.get(0))?;
        Ok(ended.map_or(self.now, Timestamp::from_unix_ms))
    }

    /// A lapsed credential is `issued` again: it turned out that it had been confirmed in time. For the caller to make
    /// active.
    pub(crate) fn undo_lapse(&mut self, facts: CredentialFacts) -> Result<CredentialFacts, RegistryError> {
        let fingerprint = facts.fingerprint;
        let generation = self.revise("credential", facts.tenant.as_str(), &fingerprint.to_string())?;
        self.tx
            .prepare_cached(
                "UPDATE credentials SET state = 'issued', ended = NULL, ended_revision = NULL, reason = NULL, revision = ?2
                 WHERE fingerprint = ?1 AND state = 'lapsed'",
            )?
            .execute(params![fingerprint.as_bytes(), generation.0.cast_signed()])?;
        self.changes.push(Change::Credential(
            facts.tenant.clone(),
            facts.device.clone(),
            fingerprint,
        ));
        Ok(CredentialFacts {
            state: CredentialState::Issued,
            generation,
            ..facts
        })
    }
}

impl Registry {
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
            let Some(facts) = scope.read_credential(&fingerprint)? else {
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

    /// First use: `issued` becomes `active`. Of an active one whose authority was not known, that is kept now. Not waited for:
    /// it alters no admission.
    pub(crate) fn credential_used(&self, fingerprint: Fingerprint, authority: AuthorityId) {
        let rules = self.issuance_rules();
        self.write_behind("keep a credential's first use", move |scope| {
            match scope.read_credential(&fingerprint)? {
                Some(facts) if facts.state == CredentialState::Issued => {
                    scope.activate_credential(facts, Some(&authority), rules.overlap)
                }
                Some(facts) if facts.state == CredentialState::Active => {
                    scope.place_credential(&facts, &authority)
                }
                _ => Ok(()),
            }
        });
    }
}
