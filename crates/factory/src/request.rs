//! Requests for certificates, PKCS#10 (RFC 2986). From a request only the public key is taken: names and extensions in
//! it are wishes, and certificates are built from the profile and the registry.

use const_oid::ObjectIdentifier;
use countersign_identity::certificate::{ATTRIBUTE_COMMON_NAME, KeyAlgorithm, attribute_texts};
use countersign_identity::signed::{SignatureFault, Signed, Signer};
use countersign_identity::{DeviceId, Fingerprint};
use der::asn1::{BitString, SetOfVec, Utf8StringRef};
use der::{Any, Decode, Encode};
use spki::SubjectPublicKeyInfoOwned;
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::name::{Name, RdnSequence, RelativeDistinguishedName};
use x509_cert::request::{CertReq, CertReqInfo, Version};

use crate::key::KeyFault;
use crate::profile::KeyKind;

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestFault {
    /// Not PKCS#10 in DER or PEM.
    #[error("not a certificate request (PKCS#10, DER or PEM): {0}")]
    Malformed(String),
    /// The request is not signed by the key it asks for.
    #[error(
        "the request's signature does not fit its public key: the sender does not prove to hold the private key"
    )]
    Signature,
    /// A key or signature algorithm that is not accepted.
    #[error(
        "the key is of a kind that is not accepted; use P-256, P-384, Ed25519 or RSA of 2048 bits or more"
    )]
    Key,
}

/// A public key whose private half was proven to be held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvenKey {
    info: SubjectPublicKeyInfoOwned,
}

impl ProvenKey {
    /// The key itself, for the certificate.
    pub fn info(&self) -> &SubjectPublicKeyInfoOwned {
        &self.info
    }

    /// SHA-256 of the key's SubjectPublicKeyInfo: what it is known by.
    ///
    /// # Errors
    /// [`KeyFault`] if it cannot be encoded.
    pub fn fingerprint(&self) -> Result<Fingerprint, KeyFault> {
        let der = self.info.to_der().map_err(|_| KeyFault::Failed)?;
        Ok(Fingerprint::of(&der))
    }

    /// Of a key that we hold ourselves.
    pub fn of(key: &dyn Signer) -> Self {
        Self {
            info: key.public_key().clone(),
        }
    }
}

/// challengePassword (RFC 2985 section 5.4.1).
const CHALLENGE_PASSWORD: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.7");
/// id-aa-decryptKeyID (RFC 4108 section 2.2.5).
const DECRYPT_KEY_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.16.2.37");
/// id-aa-asymmDecryptKeyID (RFC 7030 section 4.4.1.2).
const ASYMMETRIC_DECRYPT_KEY_ID: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.16.2.54");

/// Text of one of the types that names and passwords have.
fn text_of(value: &Any) -> Option<String> {
    use der::Tagged;
    match value.tag() {
        der::Tag::Utf8String | der::Tag::PrintableString | der::Tag::Ia5String => {
            String::from_utf8(value.value().to_vec()).ok()
        }
        _ => None,
    }
}

/// A request whose signature holds.
#[derive(Clone, PartialEq, Eq)]
pub struct CertificateRequest {
    key: ProvenKey,
    subject: String,
    common_names: Vec<String>,
    der: Vec<u8>,
    challenge_password: Option<String>,
    wants_encrypted_key: bool,
}

impl std::fmt::Debug for CertificateRequest {
    /// Without the challengePassword.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateRequest")
            .field("subject", &self.subject)
            .finish_non_exhaustive()
    }
}

impl CertificateRequest {
    /// Reads PEM or DER and checks the signature.
    ///
    /// # Errors
    /// [`RequestFault`] if it is no request, or does not prove possession of an acceptable key.
    pub fn parse(bytes: &[u8]) -> Result<Self, RequestFault> {
        let malformed = |e: der::Error| RequestFault::Malformed(e.to_string());
        let decoded;
        let bytes = if bytes.starts_with(b"-----") {
            let (label, der) = der::pem::decode_vec(bytes).map_err(|e| malformed(e.into()))?;
            if !label.ends_with("CERTIFICATE REQUEST") {
                return Err(RequestFault::Malformed(format!("it is a {label}")));
            }
            decoded = der;
            &decoded
        } else {
            bytes
        };
        let request = CertReq::from_der(bytes).map_err(malformed)?;
        let info = request.info.public_key;
        // Before the signature: a key that is too weak is told as that, not as one that does not fit.
        KeyKind::of(KeyAlgorithm::of(&info)).ok_or(RequestFault::Key)?;
        let signed = Signed::parse(bytes).map_err(|e| RequestFault::Malformed(e.to_string()))?;
        signed.verify(&info).map_err(|e| match e {
            SignatureFault::Malformed(what) => RequestFault::Malformed(what),
            SignatureFault::Algorithm => RequestFault::Key,
            SignatureFault::Invalid => RequestFault::Signature,
        })?;
        let attributes = &request.info.attributes;
        let challenge_password = attributes
            .iter()
            .find(|a| a.oid == CHALLENGE_PASSWORD)
            .and_then(|a| text_of(a.values.iter().next()?));
        Ok(Self {
            key: ProvenKey { info },
            common_names: attribute_texts(&request.info.subject, ATTRIBUTE_COMMON_NAME),
            subject: request.info.subject.to_string(),
            der: bytes.to_vec(),
            challenge_password,
            wants_encrypted_key: attributes
                .iter()
                .any(|a| a.oid == DECRYPT_KEY_ID || a.oid == ASYMMETRIC_DECRYPT_KEY_ID),
        })
    }

    /// The common name it wishes for, if there is one alone. It chooses among what its sender may have; it proves nothing.
    pub fn common_name(&self) -> Option<&str> {
        match self.common_names.as_slice() {
            [one] if !one.is_empty() => Some(one),
            _ => None,
        }
    }

    /// The challengePassword attribute (RFC 2985 section 5.4.1), which EST uses to link the request to the TLS connection
    /// (RFC 7030 section 3.5). It may be a secret: never log it.
    pub fn challenge_password(&self) -> Option<&str> {
        self.challenge_password.as_deref()
    }

    /// Whether it asks for a server-made key to be encrypted (RFC 7030 section 4.4.1).
    pub fn wants_encrypted_key(&self) -> bool {
        self.wants_encrypted_key
    }

    /// The request itself, DER: evidence for whoever is to judge it again.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The proven key.
    pub fn key(&self) -> &ProvenKey {
        &self.key
    }

    /// The subject it wishes for, for people. Nothing of it enters the certificate.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The common names it wishes for: what a factory may look a device up by, never what enters the certificate.
    pub fn common_names(&self) -> &[String] {
        &self.common_names
    }

    /// Makes a request, in PEM, with the device id as common name. The key's half of enrolment, run on the device.
    ///
    /// # Errors
    /// [`KeyFault`] if signing or encoding fails.
    pub fn create(key: &dyn Signer, device: &DeviceId) -> Result<String, KeyFault> {
        Self::with_name(key, device.as_str())
    }

    /// The same with any common name, of at most 64 characters.
    ///
    /// # Errors
    /// [`KeyFault`] if signing or encoding fails.
    pub fn with_name(key: &dyn Signer, name: &str) -> Result<String, KeyFault> {
        Ok(pem("CERTIFICATE REQUEST", &Self::der_with_name(key, name)?))
    }

    /// The same in DER.
    ///
    /// # Errors
    /// [`KeyFault`] if signing or encoding fails.
    pub fn der_with_name(key: &dyn Signer, name: &str) -> Result<Vec<u8>, KeyFault> {
        Self::sign(key, common_name(name).map_err(|_| KeyFault::Failed)?)
    }

    /// The same, in DER, with the subject of a certificate (DER of the name): what its renewal must ask for (RFC 7030
    /// section 4.2.2).
    ///
    /// # Errors
    /// [`KeyFault`] if the subject is none, or signing or encoding fails.
    pub fn with_subject(key: &dyn Signer, subject: &[u8]) -> Result<Vec<u8>, KeyFault> {
        Self::sign(key, Name::from_der(subject).map_err(|_| KeyFault::Failed)?)
    }

    fn sign(key: &dyn Signer, subject: Name) -> Result<Vec<u8>, KeyFault> {
        let failed = |_| KeyFault::Failed;
        let info = CertReqInfo {
            version: Version::V1,
            subject,
            public_key: key.public_key().clone(),
            attributes: SetOfVec::new(),
        };
        let content = info.to_der().map_err(failed)?;
        let signature = key.sign(&content).map_err(|_| KeyFault::Failed)?;
        let request = CertReq {
            info,
            algorithm: key.algorithm(),
            signature: BitString::from_bytes(&signature).map_err(failed)?,
        };
        request.to_der().map_err(failed)
    }
}

fn common_name(text: &str) -> der::Result<Name> {
    let value = Any::encode_from(&Utf8StringRef::new(text)?)?;
    let attribute = AttributeTypeAndValue {
        oid: ATTRIBUTE_COMMON_NAME,
        value,
    };
    let rdn = RelativeDistinguishedName::try_from(vec![attribute])?;
    Name::from_der(&RdnSequence::from(vec![rdn]).to_der()?)
}

/// DER as PEM (RFC 7468) with the given label.
pub fn pem(label: &'static str, der: &[u8]) -> String {
    // Fails only for lengths beyond any certificate's; then the empty text is refused by whoever reads it.
    der::pem::encode_string(label, der::pem::LineEnding::LF, der).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::SoftwareKey;

    #[test]
    fn a_request_proves_its_key_or_is_refused() {
        let key = SoftwareKey::generate().unwrap();
        let id = DeviceId::new("SN-1").unwrap();
        let text = CertificateRequest::create(&key, &id).unwrap();
        let read = CertificateRequest::parse(text.as_bytes()).unwrap();
        assert_eq!(read.key(), &ProvenKey::of(&key));
        assert_eq!(read.subject(), "CN=SN-1");

        // The same request with another device's public key in it: signature and key do not belong together.
        use der::DecodePem;
        let mut forged = CertReq::from_pem(text.as_bytes()).unwrap();
        forged.info.public_key = SoftwareKey::generate().unwrap().public_key().clone();
        assert_eq!(
            CertificateRequest::parse(&forged.to_der().unwrap()),
            Err(RequestFault::Signature)
        );
        assert!(matches!(
            CertificateRequest::parse(b"hello"),
            Err(RequestFault::Malformed(_))
        ));
    }

    #[test]
    fn requests_of_other_tools_and_key_kinds_are_read() {
        for algorithm in [
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_ED25519,
        ] {
            let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let request = rcgen::CertificateParams::new(vec![])
                .unwrap()
                .serialize_request(&key)
                .unwrap();
            assert!(CertificateRequest::parse(request.der()).is_ok(), "{algorithm:?}");
        }
    }
}
