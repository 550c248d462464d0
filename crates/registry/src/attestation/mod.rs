//! What TPMs said of keys: kept, cited once by the request for a certificate, and then the evidence of its custody.
//!
//! 1. [`endorsement`]: whose TPMs are trusted, and which device each is in
//! 2. this module: an attestation from its end to the certificate that is issued on it

mod endorsement;

pub use endorsement::{EndorsementAuthorityView, EndorsementKeyView, EndorsementSource};

use std::time::Duration;

use countersign_factory::attest::Refusal;
use countersign_identity::{AuthorityId, DeviceId, Fingerprint, TenantId, Timestamp};
use countersign_policy::{CredentialFacts, Custody};
use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::change::{Actor, Change, damaged};
use crate::credential::IssueRequest;
use crate::error::RegistryError;
use crate::store::Registry;
use crate::table::Fact;
use crate::writer::{Committed, Scope};

/// For so long a finished attestation can be cited.
const LIFETIME: Duration = Duration::from_secs(3600);
/// For so long one that is over, or was given up, is remembered: longer than any challenge is open, so that none is finished
/// twice.
const REMEMBERED: Duration = Duration::from_secs(600);
/// The most attestations of a device that are read.
const READ_MAX: u32 = 1000;

/// An attestation that was found good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewAttestation {
    /// The tenant.
    pub tenant: TenantId,
    /// The device.
    pub device: DeviceId,
    /// The nonce of its challenge.
    pub nonce: [u8; 32],
    /// SHA-256 of what cites it.
    pub token: Fingerprint,
    /// The key that is held.
    pub public_key: Fingerprint,
    /// The endorsement key of the TPM that holds it.
    pub endorsement_key: Fingerprint,
    /// The endorsement authority that vouches for that; `None`: it is registered itself.
    pub endorsed_by: Option<AuthorityId>,
    /// What the TPM wrote.
    pub evidence: serde_json::Value,
}

/// An attestation that a certificate was issued on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttestationView {
    /// When it was made.
    pub at: Timestamp,
    /// When a certificate was issued on it.
    pub consumed: Timestamp,
    /// The first certificate.
    pub credential: Fingerprint,
    /// The key.
    pub public_key: Fingerprint,
    /// The endorsement key.
    pub endorsement_key: Fingerprint,
    /// The endorsement authority; `None`: the key itself was registered.
    pub endorsed_by: Option<AuthorityId>,
    /// What the TPM wrote.
    pub evidence: serde_json::Value,
}

/// An attestation that a request cites rightly.
#[derive(Debug)]
pub(crate) struct Cited {
    token: Fingerprint,
    endorsement_key: Fingerprint,
    pub(crate) is_consumed: bool,
    /// Whether an operator said that this TPM is in this device: then the device needs no other proof.
    pub(crate) is_registered: bool,
}

impl Scope<'_> {
    /// The attestation that a request cites; `None` if it cites none.
    ///
    /// # Errors
    /// [`RegistryError::Attestation`] if there is none such, or not for this device and key, or it was used for another
    /// request.
    pub(crate) fn cited_attestation(&self, request: &IssueRequest) -> Result<Option<Cited>, RegistryError> {
        let Some(token) = request.attestation else {
            return Ok(None);
        };
        type Row = ([u8; 32], [u8; 32], i64, Option<i64>, Option<String>);
        let found: Option<Row> = self
            .tx
            .prepare_cached(
                "SELECT public_key, endorsement_key, expires, consumed, endorsed_by FROM attestations
                 WHERE token = ? AND tenant = ? AND device = ?",
            )?
            .query_row(
                params![token.as_bytes(), request.tenant.as_str(), request.device.as_str()],
                |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?)),
            )
            .optional()?;
        let (key, endorsement_key, expires, consumed, endorsed_by) = found.ok_or(Refusal::Unknown)?;
        if key != *request.key.as_bytes() {
            // Used up, it is no question any more for which key it was.
            return Err(match consumed {
                Some(_) => Refusal::Replayed,
                None => Refusal::KeyDiffers,
            }
            .into());
        }
        // The very same request again, after its answer was lost, is answered as before; but not for ever.
        if self.now.unix_ms() > expires {
            return Err(match consumed {
                Some(_) => Refusal::Replayed,
                None => Refusal::Expired,
            }
            .into());
        }
        let endorsement_key = Fingerprint::from_bytes(endorsement_key);
        let bound = self.endorsement_key(&request.tenant, &endorsement_key)?;
        if bound
            .as_ref()
            .is_some_and(|(device, _)| *device != request.device)
        {
            return Err(Refusal::EkOfOtherDevice.into());
        }
        let is_registered = bound.is_some_and(|(_, source)| source == EndorsementSource::Registered);
        // Whoever vouched for the TPM when it began may have been told otherwise since.
        let still = match endorsed_by {
            None => is_registered,
            Some(id) => is_registered || self.trusts_endorsements_by(&request.tenant, &id)?,
        };
        if consumed.is_none() && !still {
            return Err(Refusal::EkUnknown.into());
        }
        Ok(Some(Cited {
            token,
            endorsement_key,
            is_consumed: consumed.is_some(),
            is_registered,
        }))
    }

    /// Uses an attestation up for a certificate, whose key's custody is `attested` from now on.
    pub(crate) fn consume_attestation(
        &mut self,
        actor: &Actor,
        request: &IssueRequest,
        cited: &Cited,
        credential: &Fingerprint,
    ) -> Result<(), RegistryError> {
        if cited.is_consumed {
            return Ok(());
        }
        self.tx
            .prepare_cached("UPDATE attestations SET consumed = ?2, credential = ?3 WHERE token = ?1")?
            .execute(params![
                cited.token.as_bytes(),
                self.now.unix_ms(),
                credential.as_bytes()
            ])?;
        // Of a key the newest evidence will do.
        self.tx
            .prepare_cached(
                "DELETE FROM attestations WHERE tenant = ?1 AND device = ?2 AND consumed < ?3 AND public_key = ?4",
            )?
            .execute(params![
                request.tenant.as_str(),
                request.device.as_str(),
                self.now.minus(LIFETIME).minus(REMEMBERED).unix_ms(),
                request.key.as_bytes()
            ])?;
        self.learn_endorsement_key(&request.tenant, &request.device, &cited.endorsement_key)?;
        self.set_custody(credential, Custody::Attested)?;
        let detail = json!({
            "fingerprint": credential, "public_key": request.key, "endorsement_key": cited.endorsement_key,
        });
        self.audit(
            actor,
            "credential.attest",
            request.tenant.as_str(),
            request.device.as_str(),
            &detail,
        )
    }

    /// How a device's key is held, as far as any earlier certificate for it says: attested once, it is so.
    pub(crate) fn custody_of_key(
        &self,
        tenant: &TenantId,
        device: &DeviceId,
        key: &Fingerprint,
    ) -> Result<Option<Custody>, RegistryError> {
        let found: Option<String> = self
            .tx
            .prepare_cached(
                "SELECT custody FROM credentials
                 WHERE substr(public_key, 1, 8) = substr(?1, 1, 8) AND public_key = ?1 AND tenant = ?2 AND device = ?3
                 ORDER BY custody = 'attested' DESC, rowid DESC LIMIT 1",
            )?
            .query_row(params![key.as_bytes(), tenant.as_str(), device.as_str()], |r| {
                r.get(0)
            })
            .optional()?;
        found.map(|custody| damaged(custody.parse())).transpose()
    }

    fn set_custody(&mut self, fingerprint: &Fingerprint, custody: Custody) -> Result<(), RegistryError> {
        let Some(facts) = self.read_credential(fingerprint)? else {
            return Err(RegistryError::NoCredential(*fingerprint));
        };
        if facts.custody == custody {
            return Ok(());
        }
        // It may alter an admission: a generation of its own.
        let generation = self.revise("credential", facts.tenant.as_str(), &fingerprint.to_string())?;
        self.tx
            .prepare_cached("UPDATE credentials SET custody = ?2, revision = ?3 WHERE fingerprint = ?1")?
            .execute(params![
                fingerprint.as_bytes(),
                custody.name(),
                generation.0.cast_signed()
            ])?;
        self.changes.push(Change::Credential(
            facts.tenant.clone(),
            facts.device.clone(),
            *fingerprint,
        ));
        self.facts.push(Fact::Credential(CredentialFacts {
            custody,
            generation,
            ..facts
        }));
        Ok(())
    }
}

impl Registry {
    /// Keeps an attestation that was found good, until a request cites it: until when it can.
    ///
    /// # Errors
    /// [`RegistryError::Attestation`] if its challenge was finished before, or the TPM is in another device.
    pub fn keep_attestation(&self, new: NewAttestation) -> Result<Committed<Timestamp>, RegistryError> {
        self.write(move |scope| {
            let forgotten = scope.now.minus(REMEMBERED);
            scope
                .tx
                .prepare_cached("DELETE FROM attestations WHERE consumed IS NULL AND expires < ?")?
                .execute([forgotten.unix_ms()])?;
            let bound = scope.endorsement_key(&new.tenant, &new.endorsement_key)?;
            if bound.is_some_and(|(device, _)| device != new.device) {
                return Err(Refusal::EkOfOtherDevice.into());
            }
            let expires = scope.now.plus(LIFETIME);
            // A TPM has one that is open: whoever begins again gives up the one before, of which nothing is kept but that it was.
            scope
                .tx
                .prepare_cached(
                    "UPDATE attestations SET expires = ?3, evidence = 'null'
                     WHERE tenant = ?1 AND endorsement_key = ?2 AND consumed IS NULL AND expires > ?3",
                )?
                .execute(params![
                    new.tenant.as_str(),
                    new.endorsement_key.as_bytes(),
                    scope.now.minus(Duration::from_millis(1)).unix_ms()
                ])?;
            let kept = scope
                .tx
                .prepare_cached(
                    "INSERT OR IGNORE INTO attestations (nonce, token, tenant, device, public_key, endorsement_key,
                     endorsed_by, evidence, created, expires) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                )?
                .execute(params![
                    new.nonce,
                    new.token.as_bytes(),
                    new.tenant.as_str(),
                    new.device.as_str(),
                    new.public_key.as_bytes(),
                    new.endorsement_key.as_bytes(),
                    new.endorsed_by.as_ref().map(AuthorityId::as_str),
                    new.evidence.to_string(),
                    scope.now.unix_ms(),
                    expires.unix_ms(),
                ])?;
            if kept == 0 {
                return Err(Refusal::Replayed.into());
            }
            Ok(expires)
        })
    }

    /// The attestations of a device that certificates were issued on, newest first.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn attestations(
        &self,
        tenant: &TenantId,
        device: &DeviceId,
    ) -> Result<Vec<AttestationView>, RegistryError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT created, consumed, credential, public_key, endorsement_key, endorsed_by, evidence
                 FROM attestations WHERE tenant = ? AND device = ? AND consumed IS NOT NULL ORDER BY consumed DESC
                 LIMIT ?",
            )?;
            let mut rows = statement.query(params![tenant.as_str(), device.as_str(), READ_MAX])?;
            let mut found = Vec::new();
            while let Some(r) = rows.next()? {
                let endorsed_by: Option<String> = r.get(5)?;
                found.push(AttestationView {
                    at: Timestamp::from_unix_ms(r.get(0)?),
                    consumed: Timestamp::from_unix_ms(r.get(1)?),
                    credential: Fingerprint::from_bytes(r.get(2)?),
                    public_key: Fingerprint::from_bytes(r.get(3)?),
                    endorsement_key: Fingerprint::from_bytes(r.get(4)?),
                    endorsed_by: endorsed_by.map(|id| damaged(id.parse())).transpose()?,
                    evidence: damaged(serde_json::from_str(&r.get::<_, String>(6)?))?,
                });
            }
            Ok(found)
        })
    }
}
