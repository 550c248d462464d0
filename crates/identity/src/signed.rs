//! What certificates, requests and revocation lists share: `SEQUENCE { to be signed, algorithm, signature }`
//! (RFC 5280 section 4.1.1), with the signature over the very bytes that were sent.

use aws_lc_rs::signature as sig;
use const_oid::ObjectIdentifier;
use der::Decode;
use spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

use crate::elements::{Elements, SEQUENCE};

/// Why a signature does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureFault {
    /// Not of this form.
    #[error("not a signed object in DER: {0}")]
    Malformed(String),
    /// A key or an algorithm that is not accepted, or the two do not belong together.
    #[error("the key or signature algorithm is not accepted")]
    Algorithm,
    /// The signature does not hold.
    #[error("the signature does not hold")]
    Invalid,
}

/// Holds a private key and signs with it: in software, in a token, or elsewhere.
pub trait Signer: Send + Sync {
    /// The public half.
    fn public_key(&self) -> &SubjectPublicKeyInfoOwned;

    /// The algorithm of its signatures.
    fn algorithm(&self) -> AlgorithmIdentifierOwned;

    /// Signs.
    ///
    /// # Errors
    /// [`SigningFailed`].
    fn sign(&self, content: &[u8]) -> Result<Vec<u8>, SigningFailed>;
}

/// The key is there, but the operation failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the key could not sign: {0}")]
pub struct SigningFailed(pub String);

/// A signed object, taken apart but not looked into.
#[derive(Debug, Clone)]
pub struct Signed<'a> {
    /// The bytes that were signed.
    pub content: &'a [u8],
    /// The algorithm of the signature.
    pub algorithm: ObjectIdentifier,
    /// The signature.
    pub signature: &'a [u8],
}

impl<'a> Signed<'a> {
    /// Takes it apart.
    ///
    /// # Errors
    /// [`SignatureFault::Malformed`].
    pub fn parse(der: &'a [u8]) -> Result<Self, SignatureFault> {
        let read = || -> der::Result<Self> {
            let mut parts = Elements::of_whole(der, SEQUENCE)?;
            let signed = Self {
                content: parts.whole()?,
                algorithm: parts.algorithm()?.oid,
                signature: parts.bits()?.as_bytes().unwrap_or_default(),
            };
            parts.finish()?;
            Ok(signed)
        };
        read().map_err(|e| SignatureFault::Malformed(e.to_string()))
    }

    /// Checks the signature.
    ///
    /// # Errors
    /// [`SignatureFault::Algorithm`] or [`SignatureFault::Invalid`].
    pub fn verify(&self, key: &SubjectPublicKeyInfoOwned) -> Result<(), SignatureFault> {
        VerifyingKey::new(key, self.algorithm)?.verify(self)
    }
}

/// A public key made ready to check signatures of one algorithm: reading a point of a curve is a thirtieth of a verification.
#[derive(Debug)]
pub struct VerifyingKey {
    key: sig::ParsedPublicKey,
    algorithm: ObjectIdentifier,
}

impl VerifyingKey {
    /// Makes it ready.
    ///
    /// # Errors
    /// [`SignatureFault::Algorithm`]; [`SignatureFault::Invalid`] if it is not a key: nothing holds under it.
    pub fn new(key: &SubjectPublicKeyInfoOwned, signature: ObjectIdentifier) -> Result<Self, SignatureFault> {
        let algorithm = algorithm(key, signature)?;
        let bits = key
            .subject_public_key
            .as_bytes()
            .ok_or(SignatureFault::Algorithm)?;
        Ok(Self {
            key: sig::ParsedPublicKey::new(algorithm, bits).map_err(|_| SignatureFault::Invalid)?,
            algorithm: signature,
        })
    }

    /// Checks a signature.
    ///
    /// # Errors
    /// [`SignatureFault::Algorithm`] if it says another algorithm, or [`SignatureFault::Invalid`].
    pub fn verify(&self, signed: &Signed<'_>) -> Result<(), SignatureFault> {
        if signed.algorithm != self.algorithm {
            return Err(SignatureFault::Algorithm);
        }
        self.key
            .verify_sig(signed.content, signed.signature)
            .map_err(|_| SignatureFault::Invalid)
    }
}

/// By the key's kind; the signature's own word must agree (RFC 5758, RFC 8410, RFC 8017).
fn algorithm(
    key: &SubjectPublicKeyInfoOwned,
    signature: ObjectIdentifier,
) -> Result<&'static dyn sig::VerificationAlgorithm, SignatureFault> {
    const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
    const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
    const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
    const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
    const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
    const ECDSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
    const ECDSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");
    const RSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");
    const RSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.12");
    const RSA_SHA512: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.13");
    let curve = key
        .algorithm
        .parameters
        .as_ref()
        .and_then(|p| p.decode_as::<ObjectIdentifier>().ok());
    Ok(match (key.algorithm.oid, curve, signature) {
        (EC, Some(P256), ECDSA_SHA256) => &sig::ECDSA_P256_SHA256_ASN1,
        (EC, Some(P256), ECDSA_SHA384) => &sig::ECDSA_P256_SHA384_ASN1,
        (EC, Some(P384), ECDSA_SHA384) => &sig::ECDSA_P384_SHA384_ASN1,
        (EC, Some(P384), ECDSA_SHA256) => &sig::ECDSA_P384_SHA256_ASN1,
        (ED25519, _, ED25519) => &sig::ED25519,
        (RSA, _, RSA_SHA256) => &sig::RSA_PKCS1_2048_8192_SHA256,
        (RSA, _, RSA_SHA384) => &sig::RSA_PKCS1_2048_8192_SHA384,
        (RSA, _, RSA_SHA512) => &sig::RSA_PKCS1_2048_8192_SHA512,
        _ => return Err(SignatureFault::Algorithm),
    })
}

/// The public key that a certificate carries.
///
/// # Errors
/// [`SignatureFault::Malformed`] if it is no certificate.
pub fn key_of(certificate: &[u8]) -> Result<SubjectPublicKeyInfoOwned, SignatureFault> {
    x509_cert::Certificate::from_der(certificate)
        .map(|c| c.tbs_certificate().subject_public_key_info().clone())
        .map_err(|e| SignatureFault::Malformed(e.to_string()))
}
