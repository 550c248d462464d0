//! TPM attestation: challenges given out and judged; whose TPMs are trusted.

use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_factory::attest::messages::{Begin, Begun, Bytes, CERTIFICATES_MAX, Finish, Finished};
use countersign_factory::attest::{
    AttestationKey, Challenge, EndorsementKey, NONCE_BYTES, Refusal, SECRET_BYTES, check, endorsed,
    qualifying_data,
};
use countersign_identity::{AuthorityId, DeviceId, Fingerprint, TenantId, Timestamp};
use countersign_registry::{Actor, EndorsementSource, NewAttestation, RegistryError};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{PemObject, SectionKind};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Service;
use crate::failure::Failure;

/// A challenge is open for so long. A TPM that keeps no endorsement key derives it anew to open the challenge, which takes slow
/// ones a minute for RSA.
const CHALLENGE_LIFETIME: Duration = Duration::from_secs(180);
/// What the seal binds to its use.
const SEAL: &[u8] = b"countersign attestation challenge 1";

/// The key that seals open challenges. It lives as long as the process: a challenge that a restart cuts off is begun anew.
/// Nothing is kept of one that is open, so nobody can fill a table by beginning.
pub struct ChallengeKey(RandomizedNonceKey);

/// What is known of an open challenge. The device carries it, sealed.
#[derive(Debug, Serialize, Deserialize)]
struct Open {
    tenant: TenantId,
    device: DeviceId,
    endorsement_key: Fingerprint,
    endorsed_by: Option<AuthorityId>,
    /// As it was sent, and its certificate, if anybody looked at that.
    endorsement_public: Bytes,
    endorsement_certificate: Option<Bytes>,
    attestation_key: Bytes,
    secret: Bytes,
    nonce: Bytes,
    expires: Timestamp,
}

fn random<const N: usize>() -> Result<[u8; N], Failure> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Failure::internal("the system's random source failed"))?;
    Ok(bytes)
}

impl ChallengeKey {
    /// A new one.
    ///
    /// # Errors
    /// [`Failure`] if the system's random source fails.
    pub(super) fn new() -> Result<Self, Failure> {
        RandomizedNonceKey::new(&AES_256_GCM, &random::<32>()?)
            .map(Self)
            .map_err(|_| Failure::internal("the key of challenges cannot be made"))
    }

    fn seal(&self, open: &Open) -> Result<String, Failure> {
        let failed = || Failure::internal("the challenge cannot be sealed");
        let mut sealed = serde_json::to_vec(open).map_err(|_| failed())?;
        let nonce = self
            .0
            .seal_in_place_append_tag(Aad::from(SEAL), &mut sealed)
            .map_err(|_| failed())?;
        Ok(URL_SAFE_NO_PAD.encode([nonce.as_ref().as_slice(), &sealed].concat()))
    }

    fn open(&self, text: &str) -> Result<Open, RegistryError> {
        let mut bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| Refusal::Challenge)?;
        let (nonce, sealed) = bytes.split_at_mut_checked(NONCE_LEN).ok_or(Refusal::Challenge)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Refusal::Challenge)?;
        let plain = self
            .0
            .open_in_place(nonce, Aad::from(SEAL), sealed)
            .map_err(|_| Refusal::Challenge)?;
        Ok(serde_json::from_slice(plain).map_err(|_| Refusal::Challenge)?)
    }
}

impl std::fmt::Debug for ChallengeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ChallengeKey")
    }
}

fn refused(e: impl Into<RegistryError>) -> Failure {
    e.into().into()
}

impl Service {
    /// Gives a TPM a challenge, if anybody vouches for it. Waits for the disk.
    ///
    /// # Errors
    /// [`Failure`] with the reason of [`Refusal`].
    pub fn begin_attestation(&self, begin: Begin) -> Result<Begun, Failure> {
        let endorsement = EndorsementKey::parse(&begin.endorsement_key.0).map_err(refused)?;
        let attestation = AttestationKey::parse(&begin.attestation_key.0).map_err(refused)?;
        if begin.endorsement_certificates.len() > CERTIFICATES_MAX {
            return Err(refused(Refusal::Malformed.because(format!(
                "{} endorsement certificates; at most {CERTIFICATES_MAX} are read",
                begin.endorsement_certificates.len()
            ))));
        }
        let now = self.now();
        let key = endorsement.fingerprint();
        let known = self.registry.device_of_endorsement_key(&begin.tenant, &key)?;
        let endorsed_by = match known {
            Some((device, _)) if device != begin.device => return Err(refused(Refusal::EkOfOtherDevice)),
            Some((_, EndorsementSource::Registered)) => None,
            // Learned from an attestation, it is vouched for anew: its manufacturer may be trusted no more.
            Some((_, EndorsementSource::Attested)) | None => {
                let certificates: Vec<_> = begin
                    .endorsement_certificates
                    .iter()
                    .map(|c| c.0.clone())
                    .collect();
                let trusted = self.registry.endorsement_anchors(&begin.tenant)?;
                let by =
                    endorsed(&endorsement, &certificates, &trusted, &begin.tenant, now).map_err(refused)?;
                Some(by)
            }
        };
        let (secret, nonce) = (random::<SECRET_BYTES>()?, random::<NONCE_BYTES>()?);
        let challenge = Challenge::new(&endorsement, &attestation, &secret).map_err(refused)?;
        let expires = now.plus(CHALLENGE_LIFETIME);
        let open = Open {
            tenant: begin.tenant,
            device: begin.device,
            endorsement_key: key,
            endorsement_public: begin.endorsement_key,
            endorsement_certificate: endorsed_by
                .is_some()
                .then(|| begin.endorsement_certificates.into_iter().next())
                .flatten(),
            endorsed_by,
            attestation_key: begin.attestation_key,
            secret: Bytes(secret.to_vec()),
            nonce: Bytes(nonce.to_vec()),
            expires,
        };
        Ok(Begun {
            challenge: self.challenge_key.seal(&open)?,
            credential: Bytes(challenge.credential),
            secret: Bytes(challenge.secret),
            nonce: open.nonce,
            expires,
        })
    }

    /// Judges the answer to a challenge: what a request for a certificate can cite.
    ///
    /// # Errors
    /// [`Failure`] with the reason of [`Refusal`].
    pub async fn finish_attestation(&self, finish: Finish) -> Result<Finished, Failure> {
        let open = self.challenge_key.open(&finish.challenge)?;
        if self.now() > open.expires {
            return Err(refused(Refusal::Expired));
        }
        verify_slices_are_equal(&open.secret.0, &finish.secret.0)
            .map_err(|_| refused(Refusal::NotActivated))?;
        let nonce: [u8; NONCE_BYTES] = open
            .nonce
            .0
            .as_slice()
            .try_into()
            .map_err(|_| refused(Refusal::Challenge))?;
        let attestation = AttestationKey::parse(&open.attestation_key.0).map_err(refused)?;
        let key = check(
            &attestation,
            &finish.statement.0,
            &finish.signature.0,
            &finish.key.0,
            &qualifying_data(&nonce, &open.tenant, &open.device),
        )
        .map_err(refused)?;
        let token = URL_SAFE_NO_PAD.encode(random::<32>()?);
        let public_key = key.fingerprint();
        let new = NewAttestation {
            tenant: open.tenant,
            device: open.device.clone(),
            nonce,
            token: Fingerprint::of(token.as_bytes()),
            public_key,
            endorsement_key: open.endorsement_key,
            endorsed_by: open.endorsed_by,
            evidence: json!({
                "nonce": open.nonce,
                "endorsement_key": open.endorsement_public,
                "endorsement_certificate": open.endorsement_certificate,
                "attestation_key": open.attestation_key,
                "key": finish.key,
                "statement": finish.statement,
                "signature": finish.signature,
            }),
        };
        let (expires, _) = self.change(move |r| r.keep_attestation(new)).await?;
        tracing::info!(device.id = %open.device, endorsement_key = %open.endorsement_key, "attested");
        Ok(Finished {
            attestation: token,
            public_key,
            expires,
        })
    }

    /// Trusts a TPM manufacturer's CA (PEM).
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn add_endorsement_authority(
        &self,
        actor: Actor,
        tenant: TenantId,
        id: AuthorityId,
        certificate: &str,
    ) -> Result<(), Failure> {
        let der = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|e| Failure::invalid(format!("the certificate is no PEM: {e}")))?;
        self.change(move |r| r.add_endorsement_authority(actor, tenant, id, der.to_vec()))
            .await?;
        Ok(())
    }

    /// Registers the endorsement key of a device's TPM: PEM of its certificate, or of the public key alone.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn add_endorsement_key(
        &self,
        actor: Actor,
        tenant: TenantId,
        device: DeviceId,
        pem: &str,
    ) -> Result<Fingerprint, Failure> {
        let key = endorsement_key_of(pem)?;
        self.change(move |r| r.add_endorsement_key(actor, tenant, device, key))
            .await?;
        Ok(key)
    }
}

/// The endorsement key's fingerprint: SHA-256 of its SubjectPublicKeyInfo, as TPMs' keys are written here.
fn endorsement_key_of(pem: &str) -> Result<Fingerprint, Failure> {
    let neither = || {
        Failure::invalid(
            "this is neither a certificate nor a public key in PEM; hint: tpm2_createek -G rsa -u ek.pem -f pem, or tpm2_getekcertificate and openssl x509 -inform DER",
        )
    };
    match rustls::pki_types::pem::from_buf(&mut pem.as_bytes()) {
        Ok(Some((SectionKind::Certificate, der))) => {
            countersign_factory::attest::certified_key(&der).map_err(refused)
        }
        Ok(Some((SectionKind::PublicKey, der))) => {
            countersign_factory::attest::public_key(&der).map_err(refused)
        }
        _ => Err(neither()),
    }
}
