//! What device and platform say to each other, in JSON over the enrolment listener. Bytes are base64.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign_identity::{DeviceId, Fingerprint, TenantId, Timestamp};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Where a device begins: `POST`, [`Begin`] in, [`Begun`] out.
pub const BEGIN: &str = "/v1/attestation/begin";
/// Where it finishes: `POST`, [`Finish`] in, [`Finished`] out.
pub const FINISH: &str = "/v1/attestation/finish";
/// The header of an EST request that cites what was finished: [`Finished::attestation`].
pub const HEADER: &str = "countersign-attestation";
/// The longest message, in bytes: an endorsement certificate with what is above it.
pub const BYTES_MAX: usize = 32 * 1024;
/// The most certificates of an endorsement key's chain.
pub const CERTIFICATES_MAX: usize = 8;

/// Bytes that are base64 in JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        STANDARD
            .decode(text)
            .map(Self)
            .map_err(|e| serde::de::Error::custom(format!("no base64: {e}")))
    }
}

/// A device begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Begin {
    /// The tenant.
    pub tenant: TenantId,
    /// The device that the key will be of.
    pub device: DeviceId,
    /// The endorsement key, a TPMT_PUBLIC.
    pub endorsement_key: Bytes,
    /// Its certificate, then those above it, DER; empty if the TPM has none.
    #[serde(default)]
    pub endorsement_certificates: Vec<Bytes>,
    /// The attestation key, a TPMT_PUBLIC.
    pub attestation_key: Bytes,
}

/// The challenge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// To be sent back as it is.
    pub challenge: String,
    /// Contents of a TPM2B_ID_OBJECT, for TPM2_ActivateCredential.
    pub credential: Bytes,
    /// Contents of a TPM2B_ENCRYPTED_SECRET, for the same.
    pub secret: Bytes,
    /// Of which [`super::qualifying_data`] is made, for TPM2_Certify.
    pub nonce: Bytes,
    /// Until when.
    pub expires: Timestamp,
}

/// A device finishes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finish {
    /// [`Begun::challenge`].
    pub challenge: String,
    /// What TPM2_ActivateCredential gave.
    pub secret: Bytes,
    /// The device's key, a TPMT_PUBLIC.
    pub key: Bytes,
    /// A TPMS_ATTEST of TPM2_Certify.
    pub statement: Bytes,
    /// Its signature by the attestation key, a TPMT_SIGNATURE.
    pub signature: Bytes,
}

/// What was found good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// To be cited once, in the header [`HEADER`] of the request for a certificate. A secret.
    pub attestation: String,
    /// SHA-256 of the key's SubjectPublicKeyInfo: for no other will it do.
    pub public_key: Fingerprint,
    /// Until when it can be cited.
    pub expires: Timestamp,
}
