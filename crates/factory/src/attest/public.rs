//! Public areas: what a TPM says of a key (TPM 2.0 part 2, section "TPMT_PUBLIC"), and what each kind of key must be.

use aws_lc_rs::digest;
use const_oid::ObjectIdentifier;
use countersign_identity::Fingerprint;
use countersign_identity::certificate::KeyAlgorithm;
use der::asn1::{BitString, Null, UintRef};
use der::{Any, Decode, Encode, Sequence};
use spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

use super::refusal::{Refusal, Refused};
use super::wire::Reader;

/// TPM_ALG_ID (TCG Algorithm Registry).
const ALG_RSA: u16 = 0x0001;
const ALG_AES: u16 = 0x0006;
const ALG_NULL: u16 = 0x0010;
const ALG_SHA256: u16 = 0x000b;
const ALG_SHA384: u16 = 0x000c;
pub(super) const ALG_RSASSA: u16 = 0x0014;
const ALG_RSAES: u16 = 0x0015;
pub(super) const ALG_ECDSA: u16 = 0x0018;
const ALG_ECDAA: u16 = 0x001a;
const ALG_ECC: u16 = 0x0023;
const ALG_CFB: u16 = 0x0043;
/// TPM_ECC_CURVE.
const CURVE_P256: u16 = 0x0003;
const CURVE_P384: u16 = 0x0004;

/// id-ecPublicKey, secp256r1, secp384r1 (RFC 5480 section 2.1.1) and rsaEncryption (RFC 8017 appendix C).
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const SECP256R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const SECP384R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
/// id-RSAES-OAEP (RFC 8017 appendix C).
const RSAES_OAEP: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.7");

/// The exponent that a TPM writes as 0 (TPM 2.0 part 2, section "TPMS_RSA_PARMS").
const RSA_EXPONENT: u32 = 65_537;

/// TPMA_OBJECT (TPM 2.0 part 2, section 8.3): how a key is held, and what for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes(u32);

impl Attributes {
    /// It cannot be moved to another TPM.
    pub const FIXED_TPM: u32 = 1 << 1;
    /// It cannot be moved under another parent.
    pub const FIXED_PARENT: u32 = 1 << 4;
    /// The TPM made its private part.
    pub const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;
    /// It works on what the TPM itself made only.
    pub const RESTRICTED: u32 = 1 << 16;
    /// It decrypts.
    pub const DECRYPT: u32 = 1 << 17;
    /// It signs.
    pub const SIGN: u32 = 1 << 18;
    /// What binds a key to the TPM that made it.
    pub const BOUND: u32 = Self::FIXED_TPM | Self::FIXED_PARENT | Self::SENSITIVE_DATA_ORIGIN;

    const NAMES: [(u32, &'static str); 6] = [
        (Self::FIXED_TPM, "fixedTPM"),
        (Self::FIXED_PARENT, "fixedParent"),
        (Self::SENSITIVE_DATA_ORIGIN, "sensitiveDataOrigin"),
        (Self::RESTRICTED, "restricted"),
        (Self::DECRYPT, "decrypt"),
        (Self::SIGN, "sign"),
    ];

    /// Whether all of these are set.
    pub fn has(self, bits: u32) -> bool {
        self.0 & bits == bits
    }

    /// What is wrong with it, for people: which are missing, and which must not be.
    fn fault(self, wanted: u32, unwanted: u32) -> Option<String> {
        let names = |bits: u32| {
            let named = Self::NAMES.iter().filter(|(bit, _)| bits & bit != 0);
            named.map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
        };
        let (lacks, has) = (wanted & !self.0, unwanted & self.0);
        match (lacks, has) {
            (0, 0) => None,
            (_, 0) => Some(format!("it lacks {}", names(lacks))),
            (0, _) => Some(format!("it has {}", names(has))),
            _ => Some(format!("it lacks {}, and has {}", names(lacks), names(has))),
        }
    }
}

/// The hash of a key's name and of what it derives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hash {
    Sha256,
    Sha384,
}

impl Hash {
    fn of(algorithm: u16) -> Result<Self, Refused> {
        match algorithm {
            ALG_SHA256 => Ok(Self::Sha256),
            ALG_SHA384 => Ok(Self::Sha384),
            other => Err(Refusal::Malformed.because(format!(
                "its hash is {other:#06x}; SHA-256 (0x000b) and SHA-384 (0x000c) are accepted"
            ))),
        }
    }

    fn number(self) -> u16 {
        match self {
            Self::Sha256 => ALG_SHA256,
            Self::Sha384 => ALG_SHA384,
        }
    }

    pub(super) fn digest(self) -> &'static digest::Algorithm {
        match self {
            Self::Sha256 => &digest::SHA256,
            Self::Sha384 => &digest::SHA384,
        }
    }
}

/// A curve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Curve {
    P256,
    P384,
}

impl Curve {
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
        }
    }
}

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Key {
    Rsa {
        modulus: Vec<u8>,
        exponent: u32,
    },
    /// Coordinates with all their zeros.
    Ecc {
        curve: Curve,
        x: Vec<u8>,
        y: Vec<u8>,
    },
}

/// A signature or encryption scheme that a key is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scheme {
    pub(super) algorithm: u16,
    pub(super) hash: Option<Hash>,
}

/// A TPMT_PUBLIC, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PublicArea {
    pub(super) hash: Hash,
    pub(super) attributes: Attributes,
    /// Of AES, in CFB mode: of keys that protect others only.
    pub(super) symmetric_bits: Option<u16>,
    pub(super) scheme: Option<Scheme>,
    pub(super) key: Key,
    name: Vec<u8>,
}

impl PublicArea {
    pub(super) fn parse(what: &'static str, bytes: &[u8]) -> Result<Self, Refused> {
        let mut r = Reader::new(what, bytes)?;
        let kind = r.u16()?;
        let hash = Hash::of(r.u16()?)?;
        let attributes = Attributes(r.u32()?);
        let _policy = r.sized()?;
        let symmetric_bits = match r.u16()? {
            ALG_NULL => None,
            ALG_AES => {
                let (bits, mode) = (r.u16()?, r.u16()?);
                if mode != ALG_CFB || ![128, 256].contains(&bits) {
                    return Err(Refusal::Malformed.because(format!(
                        "{what} names AES with {bits} bits in mode {mode:#06x}; 128 or 256 bits in CFB are read"
                    )));
                }
                Some(bits)
            }
            other => {
                return Err(Refusal::Malformed.because(format!("{what} names the cipher {other:#06x}")));
            }
        };
        let scheme = match r.u16()? {
            ALG_NULL => None,
            ALG_RSAES => Some(Scheme {
                algorithm: ALG_RSAES,
                hash: None,
            }),
            ALG_ECDAA => return Err(Refusal::Malformed.because(format!("{what} is for ECDAA"))),
            algorithm => Some(Scheme {
                algorithm,
                hash: Some(Hash::of(r.u16()?)?),
            }),
        };
        let key = match kind {
            ALG_RSA => Self::rsa(what, &mut r)?,
            ALG_ECC => Self::ecc(what, &mut r)?,
            other => {
                return Err(Refusal::Malformed
                    .because(format!("{what} is of type {other:#06x}: neither RSA nor ECC")));
            }
        };
        r.end()?;
        // TPM 2.0 part 1, section "Names": the hash's number, then the hash over all of the public area.
        let mut name = hash.number().to_be_bytes().to_vec();
        name.extend(digest::digest(hash.digest(), bytes).as_ref());
        Ok(Self {
            hash,
            attributes,
            symmetric_bits,
            scheme,
            key,
            name,
        })
    }

    fn rsa(what: &str, r: &mut Reader<'_>) -> Result<Key, Refused> {
        let bits = r.u16()?;
        let exponent = match r.u32()? {
            0 => RSA_EXPONENT,
            other => other,
        };
        let modulus = r.sized()?;
        let is_of_size =
            modulus.len() * 8 == usize::from(bits) && modulus.first().is_some_and(|b| b & 0x80 != 0);
        if ![2048, 3072, 4096].contains(&bits) || !is_of_size || exponent < RSA_EXPONENT || exponent % 2 == 0
        {
            return Err(Refusal::Malformed.because(format!(
                "{what} says that it has {bits} bits, its modulus has {} bytes and its exponent is {exponent}",
                modulus.len()
            )));
        }
        Ok(Key::Rsa {
            modulus: modulus.to_vec(),
            exponent,
        })
    }

    fn ecc(what: &str, r: &mut Reader<'_>) -> Result<Key, Refused> {
        let curve = match r.u16()? {
            CURVE_P256 => Curve::P256,
            CURVE_P384 => Curve::P384,
            other => {
                return Err(Refusal::Malformed.because(format!(
                    "{what} is on curve {other:#06x}: neither P-256 nor P-384"
                )));
            }
        };
        if r.u16()? != ALG_NULL {
            let _hash_of_kdf = r.u16()?;
        }
        let mut coordinate = || {
            let written = r.sized()?;
            let lacking = curve.bytes().checked_sub(written.len());
            let lacking = lacking.filter(|_| !written.is_empty()).ok_or_else(|| {
                Refusal::Malformed.because(format!("{what} has a coordinate of {} bytes", written.len()))
            })?;
            // Zeros in front may be left out (TPM 2.0 part 2, section "TPM2B_ECC_PARAMETER").
            let mut whole = vec![0; lacking];
            whole.extend(written);
            Ok::<_, Refused>(whole)
        };
        let (x, y) = (coordinate()?, coordinate()?);
        Ok(Key::Ecc { curve, x, y })
    }

    /// Its name: the TPM's own, made here anew. What a device says that it is does not count.
    pub(super) fn name(&self) -> &[u8] {
        &self.name
    }

    /// As X.509 writes it.
    pub(super) fn info(&self) -> Result<Vec<u8>, Refused> {
        let failed = |e: der::Error| Refusal::Malformed.because(e.to_string());
        let info = match &self.key {
            Key::Rsa { modulus, exponent } => {
                #[derive(Sequence)]
                struct RsaPublicKey<'a> {
                    modulus: UintRef<'a>,
                    exponent: u32,
                }
                let key = RsaPublicKey {
                    modulus: UintRef::new(modulus).map_err(failed)?,
                    exponent: *exponent,
                };
                SubjectPublicKeyInfoOwned {
                    algorithm: AlgorithmIdentifierOwned {
                        oid: RSA_ENCRYPTION,
                        parameters: Some(Null.into()),
                    },
                    subject_public_key: BitString::from_bytes(&key.to_der().map_err(failed)?)
                        .map_err(failed)?,
                }
            }
            Key::Ecc { curve, x, y } => {
                let oid = match curve {
                    Curve::P256 => SECP256R1,
                    Curve::P384 => SECP384R1,
                };
                SubjectPublicKeyInfoOwned {
                    algorithm: AlgorithmIdentifierOwned {
                        oid: EC_PUBLIC_KEY,
                        parameters: Some(Any::from(&oid)),
                    },
                    subject_public_key: BitString::from_bytes(&point(x, y)).map_err(failed)?,
                }
            }
        };
        info.to_der().map_err(failed)
    }
}

/// Uncompressed (RFC 5480 section 2.2).
pub(super) fn point(x: &[u8], y: &[u8]) -> Vec<u8> {
    [&[4], x, y].concat()
}

/// An endorsement key: it decrypts what is meant for its TPM alone, and signs nothing (TCG EK Credential Profile for TPM
/// Family 2.0, section 2.1.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndorsementKey {
    pub(super) area: PublicArea,
    pub(super) symmetric_bits: u16,
    info: Vec<u8>,
}

impl EndorsementKey {
    /// Of a TPMT_PUBLIC.
    ///
    /// # Errors
    /// [`Refusal::Malformed`]; [`Refusal::EkUnfit`] if it is no endorsement key.
    pub fn parse(public: &[u8]) -> Result<Self, Refused> {
        let area = PublicArea::parse("the endorsement key", public)?;
        let wanted = Attributes::BOUND | Attributes::RESTRICTED | Attributes::DECRYPT;
        if let Some(fault) = area.attributes.fault(wanted, Attributes::SIGN) {
            return Err(Refusal::EkUnfit.because(fault));
        }
        let Some(symmetric_bits) = area.symmetric_bits else {
            return Err(Refusal::EkUnfit.because("it names no cipher"));
        };
        let info = area.info()?;
        Ok(Self {
            area,
            symmetric_bits,
            info,
        })
    }

    /// SHA-256 of its SubjectPublicKeyInfo: by this it is registered.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.info)
    }

    /// Its SubjectPublicKeyInfo, DER.
    pub fn info(&self) -> &[u8] {
        &self.info
    }
}

/// An attestation key: it signs what the TPM itself says, and nothing that merely looks so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttestationKey {
    pub(super) area: PublicArea,
}

impl AttestationKey {
    /// Of a TPMT_PUBLIC.
    ///
    /// # Errors
    /// [`Refusal::Malformed`]; [`Refusal::AkUnrestricted`] or [`Refusal::AkAttributes`] if it could sign what is not the
    /// TPM's word, or could be elsewhere.
    pub fn parse(public: &[u8]) -> Result<Self, Refused> {
        let area = PublicArea::parse("the attestation key", public)?;
        if !area.attributes.has(Attributes::RESTRICTED) {
            return Err(Refusal::AkUnrestricted.into());
        }
        let wanted = Attributes::BOUND | Attributes::SIGN;
        if let Some(fault) = area.attributes.fault(wanted, Attributes::DECRYPT) {
            return Err(Refusal::AkAttributes.because(fault));
        }
        let fits = match (&area.key, area.scheme) {
            (Key::Ecc { .. }, Some(s)) => s.algorithm == ALG_ECDSA,
            (Key::Rsa { .. }, Some(s)) => s.algorithm == ALG_RSASSA,
            (_, None) => false,
        };
        if !fits {
            return Err(Refusal::AkAttributes.because("it signs neither by ECDSA nor by RSASSA"));
        }
        Ok(Self { area })
    }
}

/// The key of a device, as its TPM holds it: it signs TLS handshakes, so it may not be restricted, and it may do nothing
/// else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldKey {
    pub(super) area: PublicArea,
    info: Vec<u8>,
}

impl HeldKey {
    /// Of a TPMT_PUBLIC.
    ///
    /// # Errors
    /// [`Refusal::Malformed`]; [`Refusal::KeyAttributes`] if it could be elsewhere, or is for other uses.
    pub fn parse(public: &[u8]) -> Result<Self, Refused> {
        let area = PublicArea::parse("the key", public)?;
        let wanted = Attributes::BOUND | Attributes::SIGN;
        let unwanted = Attributes::RESTRICTED | Attributes::DECRYPT;
        if let Some(fault) = area.attributes.fault(wanted, unwanted) {
            return Err(Refusal::KeyAttributes.because(fault));
        }
        let info = area.info()?;
        Ok(Self { area, info })
    }

    /// SHA-256 of its SubjectPublicKeyInfo.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.info)
    }
}

/// The SubjectPublicKeyInfo of a certificate, as a TPM's keys are written here.
pub(super) fn key_in(certificate: &[u8]) -> Result<Vec<u8>, Refused> {
    let malformed = |e: der::Error| Refusal::Malformed.because(format!("the endorsement certificate: {e}"));
    let certificate = x509_cert::Certificate::from_der(certificate).map_err(malformed)?;
    plain(certificate.tbs_certificate().subject_public_key_info().clone())
}

/// A SubjectPublicKeyInfo, as a TPM's keys are written here.
pub(super) fn plain_info(info: &[u8]) -> Result<Vec<u8>, Refused> {
    plain(SubjectPublicKeyInfoOwned::from_der(info).map_err(|e| Refusal::Malformed.because(e.to_string()))?)
}

/// Certificates of old TPMs name id-RSAES-OAEP where others name rsaEncryption (TCG EK Credential Profile, section 3.2.7),
/// and some leave its NULL out: the key is the same. Points are uncompressed.
fn plain(mut info: SubjectPublicKeyInfoOwned) -> Result<Vec<u8>, Refused> {
    let key = info.subject_public_key.raw_bytes();
    match (KeyAlgorithm::of(&info), info.algorithm.oid) {
        (KeyAlgorithm::EcP256, _) if key.len() == 65 && key[0] == 4 => {}
        (KeyAlgorithm::EcP384, _) if key.len() == 97 && key[0] == 4 => {}
        (KeyAlgorithm::Rsa(_), _) | (_, RSAES_OAEP) => {
            info.algorithm = AlgorithmIdentifierOwned {
                oid: RSA_ENCRYPTION,
                parameters: Some(Null.into()),
            };
        }
        _ => {
            return Err(
                Refusal::EkUnfit.because("it is neither RSA nor an uncompressed point on P-256 or P-384")
            );
        }
    }
    info.to_der()
        .map_err(|e| Refusal::Malformed.because(e.to_string()))
}
