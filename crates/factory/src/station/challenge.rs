//! That a device holds the key of the certificate it was given: it signs a text that holds a fresh number.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use const_oid::ObjectIdentifier;
use countersign_identity::signed::Signed;
use countersign_identity::{DeviceId, Fingerprint};
use serde::{Deserialize, Serialize};
use spki::SubjectPublicKeyInfoOwned;

/// A device's signature over a challenge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// What was signed: [`text`].
    pub challenge: String,
    /// The signature, base64.
    pub signature: String,
}

/// What a device signs: one line, without a line break, so that any tool can sign the file that holds it.
pub fn text(device: &DeviceId, certificate: &Fingerprint, nonce: &str) -> String {
    format!("countersign device challenge {device} {certificate} {nonce}")
}

/// ecdsa-with-SHA256 and -SHA384 (RFC 5758), Ed25519 (RFC 8410), sha256WithRSAEncryption (RFC 8017). Which of them, the
/// key decides.
const ALGORITHMS: [&str; 4] = [
    "1.2.840.10045.4.3.2",
    "1.2.840.10045.4.3.3",
    "1.3.101.112",
    "1.2.840.113549.1.1.11",
];

/// Whether `signature` over `challenge` was made by the key.
pub fn holds(key: &SubjectPublicKeyInfoOwned, challenge: &str, signature: &[u8]) -> bool {
    ALGORITHMS.into_iter().any(|oid| {
        let signed = Signed {
            content: challenge.as_bytes(),
            algorithm: ObjectIdentifier::new_unwrap(oid),
            signature,
        };
        signed.verify(key).is_ok()
    })
}

impl Proof {
    /// Whether it is a proof of this device, for this certificate, by this key.
    pub fn holds(
        &self,
        device: &DeviceId,
        certificate: &Fingerprint,
        key: &SubjectPublicKeyInfoOwned,
    ) -> bool {
        let prefix = text(device, certificate, "");
        let nonce = self.challenge.strip_prefix(&prefix).unwrap_or_default();
        let Ok(signature) = STANDARD.decode(&self.signature) else {
            return false;
        };
        nonce.len() >= 32
            && nonce.bytes().all(|b| b.is_ascii_hexdigit())
            && holds(key, &self.challenge, &signature)
    }
}
