//! What one certificate says, parsed once and kept in our own words.

use const_oid::ObjectIdentifier;
use der::Decode;
use serde::{Deserialize, Serialize};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectAltName,
    SubjectKeyIdentifier,
};

use crate::id::Fingerprint;
use crate::timestamp::Timestamp;

mod view;

pub use self::view::{AttributeView, CertificateView, ExtensionView, NameView};

/// id-kp-clientAuth (RFC 5280 section 4.2.1.12).
pub const EKU_CLIENT_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.2");
/// id-kp-serverAuth (RFC 5280 section 4.2.1.12).
pub const EKU_SERVER_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");
/// tcg-kp-EKCertificate (TCG EK Credential Profile for TPM Family 2.0, section 3.2.16).
pub const EKU_ENDORSEMENT: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.8.1");
/// The subject attribute serialNumber (X.520; IEEE 802.1AR section 8.6).
pub const ATTRIBUTE_SERIAL_NUMBER: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.5");
/// The subject attribute commonName.
pub const ATTRIBUTE_COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// id-on-hardwareModuleName (RFC 4108 section 5).
pub const HARDWARE_MODULE_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.8.4");

/// Why bytes are not a certificate that we read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a certificate in DER: {0}")]
pub struct CertificateError(String);

impl CertificateError {
    pub(crate) fn of_anchor(why: impl std::fmt::Display) -> Self {
        Self(format!("it cannot vouch for others ({why})"))
    }
}

/// The facts of a certificate that admission, ledger and people use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateFacts {
    /// SHA-256 of the whole DER.
    pub fingerprint: Fingerprint,
    /// The certificate's serial number, lower-case hex, without leading zeros that DER added for the sign.
    pub serial: String,
    /// All common names of the subject, in order.
    pub subject_common_names: Vec<String>,
    /// All serialNumber attributes of the subject, in order.
    pub subject_serial_numbers: Vec<String>,
    /// All subject alternative names of type URI.
    pub san_uris: Vec<String>,
    /// All subject alternative names of type dNSName.
    pub san_dns_names: Vec<String>,
    /// hwSerialNum of all subject alternative names of type hardwareModuleName: text if it is a device id, else hex.
    #[serde(default)]
    pub hardware_serials: Vec<String>,
    /// The subject for people, RFC 4514. Never compared: names are compared as bytes.
    pub subject_text: String,
    /// The issuer for people, RFC 4514. Never compared.
    pub issuer_text: String,
    /// The subject's DER, byte for byte.
    #[serde(skip)]
    pub subject_der: Vec<u8>,
    /// The issuer's DER, byte for byte.
    #[serde(skip)]
    pub issuer_der: Vec<u8>,
    /// First moment of validity, inclusive.
    pub not_before: Timestamp,
    /// Last moment of validity, inclusive.
    pub not_after: Timestamp,
    /// basicConstraints: `None` if absent or not a CA, else the path length if one is given.
    pub ca: Option<CaConstraint>,
    /// keyUsage, `None` if the extension is absent.
    pub key_usage: Option<KeyUsageFacts>,
    /// extKeyUsage as dotted OIDs, `None` if the extension is absent (then nothing is restricted).
    pub extended_key_usage: Option<Vec<String>>,
    /// Key identifier of the authorityKeyIdentifier extension.
    #[serde(skip)]
    pub authority_key_id: Option<Vec<u8>>,
    /// The subjectKeyIdentifier extension.
    #[serde(skip)]
    pub subject_key_id: Option<Vec<u8>>,
    /// SHA-256 of the SubjectPublicKeyInfo's DER.
    pub public_key_sha256: Fingerprint,
    /// The public key's algorithm.
    pub key_algorithm: KeyAlgorithm,
    /// What path validation looks at besides.
    #[serde(skip)]
    pub(crate) path: PathFacts,
}

/// What a certificate says to path validation alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PathFacts {
    /// Why no path may lead through it: its version, or an extension that is critical and not known, or there twice.
    pub(crate) fault: Option<Box<str>>,
    /// It has nameConstraints.
    pub(crate) constrains_names: bool,
    /// It has policyConstraints or policyMappings.
    pub(crate) constrains_policies: bool,
}

/// The extensions that path validation processes when they are critical (RFC 5280 section 4.2.1), by the last number
/// of id-ce: keyUsage, subjectAltName, basicConstraints, nameConstraints, cRLDistributionPoints, certificatePolicies,
/// policyMappings, policyConstraints, extKeyUsage, inhibitAnyPolicy.
const PROCESSED: [u8; 10] = [15, 17, 19, 30, 31, 32, 33, 36, 37, 54];

impl PathFacts {
    fn of(view: &CertificateView<'_>) -> Self {
        let mut facts = Self::default();
        if view.version != x509_cert::Version::V3 {
            facts.fault = Some("its version is not 3".into());
        }
        for (n, extension) in view.extensions.iter().enumerate() {
            let processed = match extension.id.as_bytes() {
                [0x55, 0x1d, last] => {
                    facts.constrains_names |= *last == 30;
                    facts.constrains_policies |= *last == 33 || *last == 36;
                    PROCESSED.contains(last)
                }
                _ => false,
            };
            if extension.critical && !processed {
                facts.fault = Some(format!("its critical extension {} is not known", extension.id).into());
            }
            if view.extensions[..n].iter().any(|e| e.id == extension.id) {
                facts.fault = Some(format!("it has extension {} twice", extension.id).into());
            }
        }
        facts
    }
}

/// A certificate's claim to be a CA (RFC 5280 section 4.2.1.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaConstraint {
    /// How many intermediates may follow below it; `None` means no limit.
    pub path_length: Option<u8>,
}

/// The bits of keyUsage that we act on (RFC 5280 section 4.2.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyUsageFacts {
    /// digitalSignature: needed to authenticate in TLS 1.3.
    pub digital_signature: bool,
    /// keyCertSign: needed to issue certificates.
    pub key_cert_sign: bool,
    /// cRLSign: needed to sign revocation lists.
    #[serde(default)]
    pub crl_sign: bool,
}

/// Algorithm and size of a public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyAlgorithm {
    /// ECDSA on P-256.
    EcP256,
    /// ECDSA on P-384.
    EcP384,
    /// Ed25519.
    Ed25519,
    /// RSA with the modulus length in bits.
    Rsa(u32),
    /// Anything else.
    Other,
}

impl KeyAlgorithm {
    /// The algorithm of a public key.
    pub fn of(spki: &spki::SubjectPublicKeyInfoOwned) -> Self {
        use der::referenced::OwnedToRef;
        Self::of_ref(&spki.owned_to_ref())
    }

    fn of_ref(spki: &spki::SubjectPublicKeyInfoRef<'_>) -> Self {
        const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
        const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
        const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
        const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
        const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
        match spki.algorithm.oid {
            EC => match spki
                .algorithm
                .parameters
                .as_ref()
                .and_then(|p| p.decode_as::<ObjectIdentifier>().ok())
            {
                Some(P256) => KeyAlgorithm::EcP256,
                Some(P384) => KeyAlgorithm::EcP384,
                _ => KeyAlgorithm::Other,
            },
            ED25519 => KeyAlgorithm::Ed25519,
            RSA => {
                // RSAPublicKey ::= SEQUENCE { modulus INTEGER, publicExponent INTEGER } (RFC 8017 A.1.1)
                let modulus = spki.subject_public_key.as_bytes().and_then(|b| {
                    use der::Reader;
                    let mut reader = der::SliceReader::new(b).ok()?;
                    reader
                        .sequence(|r| {
                            let modulus = der::asn1::UintRef::decode(r)?;
                            let bits = modulus.as_bytes().len() * 8
                                - modulus
                                    .as_bytes()
                                    .first()
                                    .map_or(0, |b| b.leading_zeros() as usize);
                            let _exponent = der::asn1::UintRef::decode(r)?;
                            Ok::<_, der::Error>(bits)
                        })
                        .ok()
                });
                modulus
                    .and_then(|b| u32::try_from(b).ok())
                    .map_or(KeyAlgorithm::Other, KeyAlgorithm::Rsa)
            }
            _ => KeyAlgorithm::Other,
        }
    }

    /// Whether it reaches the least strength that may identify a device: P-256, Ed25519 or RSA 2048.
    pub fn is_strong_enough(self) -> bool {
        match self {
            Self::EcP256 | Self::EcP384 | Self::Ed25519 => true,
            Self::Rsa(bits) => bits >= 2048,
            Self::Other => false,
        }
    }
}

fn fault(e: der::Error) -> CertificateError {
    CertificateError(e.to_string())
}

impl CertificateFacts {
    /// Parses a certificate in DER. About 4 µs for a device certificate.
    ///
    /// # Errors
    /// [`CertificateError`] if the bytes are not one X.509 certificate, or a field that we read is malformed.
    pub fn parse(der: &[u8]) -> Result<Self, CertificateError> {
        let view = CertificateView::of_certificate(der).map_err(fault)?;
        Self::of_view(der, &view).map_err(fault)
    }

    /// Why no path may lead through it, whoever signed it: its version, or an extension that is critical and not known, or
    /// there twice. `None`: nothing of the kind.
    pub fn path_fault(&self) -> Option<&str> {
        self.path.fault.as_deref()
    }

    fn of_view(der: &[u8], view: &CertificateView<'_>) -> der::Result<Self> {
        let (mut uris, mut dns, mut hardware) = (Vec::new(), Vec::new(), Vec::new());
        if let Some((_, names)) = view.extension::<SubjectAltName>()? {
            for name in names.0 {
                match name {
                    GeneralName::UniformResourceIdentifier(uri) => uris.push(uri.to_string()),
                    GeneralName::DnsName(name) => dns.push(name.to_string()),
                    GeneralName::OtherName(other) if other.type_id == HARDWARE_MODULE_NAME => {
                        hardware.push(hardware_serial(&other.value)?);
                    }
                    _ => {}
                }
            }
        }
        let ca = view.extension::<BasicConstraints>()?.and_then(|(_, b)| {
            b.ca.then_some(CaConstraint {
                path_length: b.path_len_constraint,
            })
        });
        let key_usage = view.extension::<KeyUsage>()?.map(|(_, u)| KeyUsageFacts {
            digital_signature: u.0.contains(KeyUsages::DigitalSignature),
            key_cert_sign: u.0.contains(KeyUsages::KeyCertSign),
            crl_sign: u.0.contains(KeyUsages::CRLSign),
        });
        let extended_key_usage = view
            .extension::<ExtendedKeyUsage>()?
            .map(|(_, e)| e.0.iter().map(ToString::to_string).collect());
        let authority_key_id = view
            .extension::<AuthorityKeyIdentifier>()?
            .and_then(|(_, a)| a.key_identifier.map(|k| k.into_bytes().into_vec()));
        let subject_key_id = view
            .extension::<SubjectKeyIdentifier>()?
            .map(|(_, s)| s.0.into_bytes().into_vec());
        Ok(Self {
            fingerprint: Fingerprint::of(der),
            serial: serial_hex(view.serial_number.as_bytes()),
            subject_common_names: texts(&view.subject.attributes, ATTRIBUTE_COMMON_NAME),
            subject_serial_numbers: texts(&view.subject.attributes, ATTRIBUTE_SERIAL_NUMBER),
            san_uris: uris,
            san_dns_names: dns,
            hardware_serials: hardware,
            subject_text: view.subject.text(),
            issuer_text: view.issuer.text(),
            subject_der: view.subject.der.to_vec(),
            issuer_der: view.issuer.der.to_vec(),
            not_before: time_of(view.validity.not_before),
            not_after: time_of(view.validity.not_after),
            ca,
            key_usage,
            extended_key_usage,
            authority_key_id,
            subject_key_id,
            public_key_sha256: Fingerprint::of(view.key_der),
            key_algorithm: KeyAlgorithm::of_ref(&view.key),
            path: PathFacts::of(view),
        })
    }

    /// Whether `now` lies within the validity, both ends included (RFC 5280 section 4.1.2.5).
    pub fn is_valid_at(&self, now: Timestamp) -> bool {
        self.not_before.unix_s() <= now.unix_s() && now.unix_s() <= self.not_after.unix_s()
    }

    /// Whether it may authenticate a TLS client: the extension is absent or names clientAuth.
    pub fn allows_client_auth(&self) -> bool {
        self.allows(&EKU_CLIENT_AUTH)
    }

    /// Whether extKeyUsage is absent or names this purpose. anyExtendedKeyUsage does not count.
    pub(crate) fn allows(&self, purpose: &ObjectIdentifier) -> bool {
        match &self.extended_key_usage {
            None => true,
            Some(list) => list.iter().any(|o| *o == purpose.to_string()),
        }
    }

    /// Whether subject and issuer are the same name.
    pub fn is_self_issued(&self) -> bool {
        self.subject_der == self.issuer_der
    }
}

/// HardwareModuleName ::= SEQUENCE { hwType OBJECT IDENTIFIER, hwSerialNum OCTET STRING }
fn hardware_serial(value: &der::Any) -> der::Result<String> {
    #[derive(der::Sequence)]
    struct HardwareModuleName {
        #[allow(dead_code, reason = "which kind of module it is does not enter the id")]
        hw_type: ObjectIdentifier,
        hw_serial_num: der::asn1::OctetString,
    }
    let module: HardwareModuleName = value.decode_as()?;
    let serial = module.hw_serial_num.as_bytes();
    Ok(match std::str::from_utf8(serial) {
        Ok(text) if crate::id::DeviceId::new(text).is_ok() => text.to_owned(),
        _ => hex::encode(serial),
    })
}

/// A serial number as it is shown and kept: lower-case hex, without the octet that DER adds for the sign.
pub fn serial_hex(bytes: &[u8]) -> String {
    let text = hex::encode(bytes);
    let trimmed = text.trim_start_matches("00");
    if trimmed.is_empty() {
        "00".into()
    } else {
        trimmed.into()
    }
}

fn time_of(t: x509_cert::time::Time) -> Timestamp {
    Timestamp::from_unix_s(i64::try_from(t.to_unix_duration().as_secs()).unwrap_or(i64::MAX / 1000))
}

/// All values of one attribute that are text; one of another type is kept empty, so that it counts as "more than one" and
/// can never be skipped over.
fn texts(name: &[AttributeView<'_>], id: ObjectIdentifier) -> Vec<String> {
    name.iter()
        .filter(|a| a.id == id)
        .map(|a| a.text().unwrap_or_default().into_owned())
        .collect()
}

/// The same of a name that the library has read.
pub fn attribute_texts(name: &x509_cert::name::Name, id: ObjectIdentifier) -> Vec<String> {
    let attributes: Vec<_> = name
        .iter()
        .map(|a| AttributeView {
            id: a.oid,
            value: (&a.value).into(),
        })
        .collect();
    texts(&attributes, id)
}

#[cfg(test)]
mod tests;
