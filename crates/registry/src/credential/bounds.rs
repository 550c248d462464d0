//! What bounds a requester whatever it has proven, an operator too: authorities that are over, and revoked keys. Then what
//! bounds all others.

use countersign_factory::{ProfileKind, ProfileStep, RevocationReason};
use countersign_identity::{AnchorState, AuthorityId, DeviceId, Fingerprint};
use countersign_policy::facts::CredentialKind;
use rusqlite::{OptionalExtension, params};

use super::{IssuanceRules, IssueRequest, ProfileChoice, Requester};
use crate::error::RegistryError;
use crate::writer::Scope;

impl Scope<'_> {
    /// Whether an authority issues, as this very transaction finds it: it was looked up before, and may have been closed or
    /// revoked since. Then nobody would end what is kept now.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] if it does not; what was minted is thrown away.
    pub(crate) fn need_issuing(&self, authority: &AuthorityId) -> Result<(), RegistryError> {
        let state: Option<String> = self
            .tx
            .prepare_cached("SELECT state FROM authorities WHERE id = ?")?
            .query_row([authority.as_str()], |r| r.get(0))
            .optional()?;
        match state.as_deref() {
            // One that is not registered was never closed: rows of authorities are for ever.
            None => Ok(()),
            Some(state) if state == AnchorState::Active.name() => Ok(()),
            Some(state) => Err(RegistryError::Refused(format!(
                "authority {authority} has become {state}, and nothing that it minted meanwhile is kept; hint: ask again, and name no authority or an active one (countersign authority list)"
            ))),
        }
    }

    /// Nothing is certified for a key of which any certificate was revoked, whatever its profile and whoever issued it:
    /// whoever has that key would be admitted again. One that was merely replaced by another says nothing against its key.
    pub(crate) fn refuse_revoked_key(
        &self,
        device: &DeviceId,
        key: &Fingerprint,
    ) -> Result<(), RegistryError> {
        if self.is_revoked_key(key)? {
            return Err(RegistryError::Refused(format!(
                "a certificate of device {device} for this key was revoked; hint: make a new key"
            )));
        }
        Ok(())
    }

    pub(crate) fn is_revoked_key(&self, key: &Fingerprint) -> Result<bool, RegistryError> {
        Ok(self
            .tx
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM credentials
                 WHERE substr(public_key, 1, 8) = substr(?1, 1, 8) AND public_key = ?1
                 AND state = 'revoked' AND reason IS NOT ?2)",
            )?
            .query_row(
                params![key.as_bytes(), RevocationReason::Superseded.code()],
                |r| r.get(0),
            )?)
    }

    /// Whether what was shown leads to a certificate by this profile. A requester names its profile itself (EST has it in
    /// the path), so that must not make of a certificate for ninety days, or of a secret, one that never ends.
    ///
    /// A claim has a profile of its own: [`Scope::enter_claim`].
    pub(super) fn check_profile(&self, request: &IssueRequest) -> Result<(), RegistryError> {
        let is_first = request.choice == ProfileChoice::First;
        let certificate = match &request.requester {
            Requester::Operator | Requester::JudgedByCa | Requester::Claim(_) => return Ok(()),
            Requester::Secret(_) | Requester::Attested => {
                if request.kind == ProfileKind::Factory && !is_first {
                    return Err(RegistryError::Profile(format!(
                        "profile {} is the factory's, and neither a one-time secret nor an attestation is for that; hint: ask by an operational profile, or let an operator issue it (countersign device provision {} --profile {0})",
                        request.profile, request.device
                    )));
                }
                return Ok(());
            }
            Requester::Certificate(fingerprint) => fingerprint,
            Requester::Expired(expired) => &expired.certificate,
        };
        let (profile, kind) = self.profile_of(certificate)?;
        let step = ProfileStep::between((&profile, kind), (&request.profile, request.kind));
        match step {
            ProfileStep::Same | ProfileStep::Down => Ok(()),
            // Whoever has the first one of the configuration changed moves the fleet to it with each renewal.
            ProfileStep::Sideways if is_first => Ok(()),
            ProfileStep::Sideways | ProfileStep::Up => Err(RegistryError::Profile(format!(
                "a certificate of profile {profile} is no evidence for one of profile {}; hint: renew by its own profile, or let an operator issue it (countersign device provision {} --profile {1})",
                request.device, request.profile
            ))),
        }
    }

    /// Whether a device may have one more certificate. An operator is its own bound.
    pub(super) fn need_room(
        &self,
        request: &IssueRequest,
        rules: IssuanceRules,
    ) -> Result<(), RegistryError> {
        let Some(most) = rules.certificates_per_device_max else {
            return Ok(());
        };
        if request.requester == Requester::Operator {
            return Ok(());
        }
        let in_force: u32 = self
            .tx
            .prepare_cached(
                "SELECT count(*) FROM credentials
                 WHERE tenant = ? AND device = ? AND state IN ('issued', 'active') AND not_after >= ?",
            )?
            .query_row(
                params![
                    request.tenant.as_str(),
                    request.device.as_str(),
                    self.now.unix_ms()
                ],
                |r| r.get(0),
            )?;
        if in_force >= most {
            return Err(RegistryError::Refused(format!(
                "device {} has {in_force} certificates in force, and {most} are the most that anybody but an operator may bring it to; hint: revoke those that are not used (countersign device show {0}, countersign credential revoke FINGERPRINT), raise issuance.certificates_per_device_max, or let an operator issue it (countersign device provision {0})",
                request.device
            )));
        }
        Ok(())
    }

    /// By which profile a certificate was issued. One that was issued elsewhere is a manufacturer's, as far as this goes.
    fn profile_of(&self, certificate: &Fingerprint) -> Result<(String, ProfileKind), RegistryError> {
        let found: Option<(Option<String>, String)> = self
            .tx
            .prepare_cached("SELECT profile, kind FROM credentials WHERE fingerprint = ?")?
            .query_row(params![certificate.as_bytes()], |r| Ok((r.get(0)?, r.get(1)?)))
            .optional()?;
        Ok(match found {
            Some((Some(profile), kind)) if kind != CredentialKind::Factory.name() => {
                (profile, ProfileKind::Operational)
            }
            Some((Some(profile), _)) => (profile, ProfileKind::Factory),
            _ => (String::new(), ProfileKind::Factory),
        })
    }
}
