//! A P-256 key in software; and what any device key signed.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use countersign_identity::certificate::KeyAlgorithm;
use countersign_identity::signed::{SignatureFault, Signed, Signer, SigningFailed};
use der::asn1::BitString;
use spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::der::Any;
use zeroize::Zeroizing;

/// Why a key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    /// Not a P-256 key in PKCS#8.
    #[error("not a P-256 private key in PKCS#8 (\"BEGIN PRIVATE KEY\"): {0}")]
    NotP256(String),
    /// The random source or the library failed.
    #[error("the key operation failed")]
    Failed,
}

/// A P-256 key pair. The private half never leaves it but as PKCS#8, and is never shown.
pub struct SoftwareKey {
    pair: EcdsaKeyPair,
    info: SubjectPublicKeyInfoOwned,
    pkcs8: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for SoftwareKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SoftwareKey")
    }
}

/// id-ecPublicKey (RFC 5480 section 2.1.1).
const EC_PUBLIC_KEY: const_oid::ObjectIdentifier =
    const_oid::ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
/// secp256r1 (RFC 5480 section 2.1.1.1).
const SECP256R1: const_oid::ObjectIdentifier = const_oid::ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
/// ecdsa-with-SHA256 (RFC 5758 section 3.2).
const ECDSA_SHA256: const_oid::ObjectIdentifier =
    const_oid::ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");

impl SoftwareKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// [`KeyFault::Failed`] if the system's random source fails.
    pub fn generate() -> Result<Self, KeyFault> {
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new())
            .map_err(|_| KeyFault::Failed)?;
        Self::from_pkcs8(document.as_ref())
    }

    /// Reads a key in PKCS#8 DER.
    ///
    /// # Errors
    /// [`KeyFault::NotP256`] if it is not a P-256 key.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyFault> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der)
            .map_err(|e| KeyFault::NotP256(e.to_string()))?;
        let info = SubjectPublicKeyInfoOwned {
            algorithm: AlgorithmIdentifierOwned {
                oid: EC_PUBLIC_KEY,
                parameters: Some(Any::from(&SECP256R1)),
            },
            // Uncompressed (RFC 5480 section 2.2).
            subject_public_key: BitString::from_bytes(pair.public_key().as_ref())
                .map_err(|_| KeyFault::Failed)?,
        };
        Ok(Self {
            pair,
            info,
            pkcs8: Zeroizing::new(der.to_vec()),
        })
    }

    /// The private key in PKCS#8 DER, for the one file that keeps it.
    pub fn to_pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The private key in PKCS#8 PEM.
    pub fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(crate::request::pem("PRIVATE KEY", &self.pkcs8))
    }
}

impl Signer for SoftwareKey {
    fn public_key(&self) -> &SubjectPublicKeyInfoOwned {
        &self.info
    }

    /// ecdsa-with-SHA256, parameters absent.
    fn algorithm(&self) -> AlgorithmIdentifierOwned {
        AlgorithmIdentifierOwned {
            oid: ECDSA_SHA256,
            parameters: None,
        }
    }

    fn sign(&self, content: &[u8]) -> Result<Vec<u8>, SigningFailed> {
        self.pair
            .sign(&SystemRandom::new(), content)
            .map(|s| s.as_ref().to_vec())
            .map_err(|_| SigningFailed("the random source failed".into()))
    }
}

/// Checks a signature by a device's key, which signs as such keys do: P-256 with SHA-256, P-384 with SHA-384, Ed25519, RSA
/// PKCS#1 with SHA-256.
///
/// # Errors
/// [`SignatureFault`].
pub(crate) fn verify_by(
    key: &SubjectPublicKeyInfoOwned,
    content: &[u8],
    signature: &[u8],
) -> Result<(), SignatureFault> {
    let algorithm = match KeyAlgorithm::of(key) {
        KeyAlgorithm::EcP256 => "1.2.840.10045.4.3.2",
        KeyAlgorithm::EcP384 => "1.2.840.10045.4.3.3",
        KeyAlgorithm::Ed25519 => "1.3.101.112",
        KeyAlgorithm::Rsa(_) => "1.2.840.113549.1.1.11",
        KeyAlgorithm::Other => return Err(SignatureFault::Algorithm),
    };
    Signed {
        content,
        algorithm: const_oid::ObjectIdentifier::new_unwrap(algorithm),
        signature,
    }
    .verify(key)
}
