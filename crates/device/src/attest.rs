//! TPM attestation, the device's half: its TPM says how it holds a key, and the platform believes it or says why not.
//!
//! `begin` (who the TPM is) → the TPM opens the challenge → the TPM certifies the key → `finish`. What comes of it is cited
//! once, by the request for a certificate.

use countersign_factory::attest::messages::{BEGIN, Begin, Begun, Bytes, FINISH, Finish, Finished};
use countersign_factory::attest::{NONCE_BYTES, qualifying_data};
use countersign_identity::{DeviceId, TenantId};
use countersign_keystore_tpm::{Attestation, TpmKey};

use crate::est::EstClient;
use crate::fault::EnrolFault;
use crate::keys::{DeviceKey, KeyStoreFault};

/// Has the TPM of a key attest it: what the request for its certificate cites.
///
/// # Errors
/// [`EnrolFault::Usage`] if it is in no TPM; [`EnrolFault::Key`] with what the TPM says; [`EnrolFault::Refused`] with the
/// platform's reason.
pub(crate) async fn attest(
    client: &mut EstClient,
    key: &DeviceKey,
    tenant: &TenantId,
    device: &DeviceId,
) -> Result<String, EnrolFault> {
    let DeviceKey::Tpm { file, address } = key else {
        return Err(EnrolFault::Usage(
            "only a key in a TPM can be attested; hint: --key-store tpm, or enrol without --attest".into(),
        ));
    };
    let (at, file) = (address.clone(), file.clone());
    let (tpm, key) = off_thread(move || Ok((Attestation::begin(&at)?, TpmKey::open(&at, &file)?))).await?;
    let certificates = tpm.endorsement_certificates().iter();
    let begin = Begin {
        tenant: tenant.clone(),
        device: device.clone(),
        endorsement_key: Bytes(tpm.endorsement_public().to_vec()),
        endorsement_certificates: certificates.map(|der| Bytes(der.clone())).collect(),
        attestation_key: Bytes(tpm.attestation_public().to_vec()),
    };
    let begun: Begun = client.tell(BEGIN, &begin).await?;
    let nonce: [u8; NONCE_BYTES] = begun
        .nonce
        .0
        .try_into()
        .map_err(|_| EnrolFault::Answer("the nonce of the attestation has a wrong length".into()))?;
    let data = qualifying_data(&nonce, tenant, device);
    let (secret, certified) = off_thread(move || {
        let secret = tpm.activate(&begun.credential.0, &begun.secret.0)?;
        Ok((secret, tpm.certify(&key, &data)?))
    })
    .await?;
    let finish = Finish {
        challenge: begun.challenge,
        secret: Bytes(secret),
        key: Bytes(certified.public),
        statement: Bytes(certified.info),
        signature: Bytes(certified.signature),
    };
    let finished: Finished = client.tell(FINISH, &finish).await?;
    Ok(finished.attestation)
}

/// A TPM takes its time.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, KeyStoreFault> + Send + 'static,
) -> Result<T, EnrolFault> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| EnrolFault::Usage(format!("the TPM's work was cut off: {e}")))?
        .map_err(EnrolFault::Key)
}
