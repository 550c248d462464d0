//! What others may know of revocation: lists (RFC 5280 section 5) and OCSP answers (RFC 6960). For our own admission the
//! registry is the authority; these are exports.

use std::time::Duration;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use const_oid::ObjectIdentifier;
use countersign_factory::tlv::{oid, sequence, tlv};
use countersign_factory::{RevocationReason, Revoked, SoftwareKey};
use countersign_identity::certificate::serial_hex;
use countersign_identity::signed::{Signed, Signer, key_of};
use countersign_identity::{CertificateFacts, Timestamp};
use der::asn1::{GeneralizedTime, OctetStringRef, UintRef, UtcTime};
use der::{Decode, Encode, Reader, SliceReader};
use rustls_pki_types::CertificateDer;

use crate::hierarchy::IssuingAuthority;
use crate::mint::{self, MintError};

const CRL_NUMBER: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.20");
const REASON_CODE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.21");
const AUTHORITY_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.35");
const OCSP_BASIC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1.1");
const OCSP_NONCE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1.2");
const SHA1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.14.3.2.26");
const SHA256_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");

/// How long an OCSP responder's own certificate lasts. It cannot be revoked (id-pkix-ocsp-nocheck), so: not long.
pub const RESPONDER_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);
/// The most certificates that one OCSP request may ask about.
const QUESTIONS_MAX: usize = 16;

fn seconds(t: Timestamp) -> Duration {
    Duration::from_secs(u64::try_from(t.unix_s()).unwrap_or(0))
}

/// UTCTime through 2049, GeneralizedTime from 2050 (RFC 5280 section 5.1.2.4).
fn time(t: Timestamp) -> der::Result<Vec<u8>> {
    match UtcTime::from_unix_duration(seconds(t)) {
        Ok(time) => time.to_der(),
        Err(_) => generalized(t),
    }
}

fn generalized(t: Timestamp) -> der::Result<Vec<u8>> {
    GeneralizedTime::from_unix_duration(seconds(t))?.to_der()
}

/// An INTEGER from unsigned big-endian bytes.
fn integer(bytes: &[u8]) -> der::Result<Vec<u8>> {
    UintRef::new(bytes)?.to_der()
}

fn extension(id: ObjectIdentifier, value: &[u8]) -> Vec<u8> {
    sequence(&[&oid(id), &tlv(0x04, &[value])])
}

fn sign(content: &[u8], key: &dyn Signer, more: &[u8]) -> Result<Vec<u8>, MintError> {
    let algorithm = key.algorithm().to_der()?;
    let signature = key.sign(content)?;
    Ok(sequence(&[
        content,
        &algorithm,
        &tlv(0x03, &[&[0], &signature]),
        more,
    ]))
}

impl IssuingAuthority {
    /// A full revocation list, good from `now` to `next_update`. `number` must grow from one list to the next.
    ///
    /// # Errors
    /// [`MintError`]; a list that does not verify is never handed out.
    pub fn revocation_list(
        &self,
        revoked: &[Revoked],
        number: u64,
        now: Timestamp,
        next_update: Timestamp,
    ) -> Result<Vec<u8>, MintError> {
        let mut entries = Vec::new();
        for entry in revoked {
            let serial = hex::decode(&entry.serial).map_err(|e| MintError::Encoding(e.to_string()))?;
            // "Unspecified" is told by leaving it out (section 5.3.1).
            let reason = match entry.reason {
                RevocationReason::Unspecified => Vec::new(),
                reason => sequence(&[&extension(REASON_CODE, &tlv(0x0a, &[&[reason.code()]]))]),
            };
            entries.extend(sequence(&[&integer(&serial)?, &time(entry.at)?, &reason]));
        }
        // Absent, not empty, when there is none (section 5.1.2.6).
        let entries = if revoked.is_empty() {
            Vec::new()
        } else {
            sequence(&[&entries])
        };
        let key_id = self
            .facts
            .subject_key_id
            .as_deref()
            .ok_or_else(|| MintError::Lint("the issuing CA has no subjectKeyIdentifier".into()))?;
        let extensions = sequence(&[
            &extension(AUTHORITY_KEY, &sequence(&[&tlv(0x80, &[key_id])])),
            &extension(CRL_NUMBER, &integer(&number.to_be_bytes())?),
        ]);
        let content = sequence(&[
            &[0x02, 0x01, 0x01],
            &self.key.algorithm().to_der()?,
            &self.facts.subject_der,
            &time(now)?,
            &time(next_update)?,
            &entries,
            &tlv(0xa0, &[&extensions]),
        ]);
        let list = sign(&content, &*self.key, &[])?;
        let unverified = |e: String| MintError::Unverified(e);
        x509_cert::crl::CertificateList::<x509_cert::certificate::Rfc5280>::from_der(&list)
            .map_err(|e| unverified(e.to_string()))?;
        key_of(&self.certificate)
            .and_then(|key| Signed::parse(&list)?.verify(&key))
            .map_err(|e| unverified(e.to_string()))?;
        Ok(list)
    }

    /// A responder of this authority, with a key and a certificate of its own.
    ///
    /// # Errors
    /// [`MintError`].
    pub fn responder(&self, now: Timestamp) -> Result<Responder, MintError> {
        let key = SoftwareKey::generate()?;
        let certificate = mint::responder(self, &key, now)?;
        let own = key.public_key().subject_public_key.as_bytes().unwrap_or_default();
        Ok(Responder {
            issuer: IssuerHashes::of(&self.certificate)?,
            id: digest(&SHA1_FOR_LEGACY_USE_ONLY, own).as_ref().to_vec(),
            not_after: CertificateFacts::parse(&certificate)
                .map_err(|e| MintError::Unverified(e.to_string()))?
                .not_after,
            key,
            certificate,
        })
    }
}

/// Signs OCSP answers for one authority.
pub struct Responder {
    key: SoftwareKey,
    certificate: CertificateDer<'static>,
    not_after: Timestamp,
    id: Vec<u8>,
    issuer: IssuerHashes,
}

impl std::fmt::Debug for Responder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Responder")
    }
}

/// An authority as questions name it (CertID, RFC 6960 section 4.1.1), by every hash that is understood. Its certificate
/// is enough: whose key is needed for an answer is known before any key is touched.
pub struct IssuerHashes([(ObjectIdentifier, Vec<u8>, Vec<u8>); 2]);

impl IssuerHashes {
    /// Of the authority with this certificate, DER.
    ///
    /// # Errors
    /// [`MintError::Unverified`] if it cannot be read.
    pub fn of(certificate: &[u8]) -> Result<Self, MintError> {
        let unread = |e: &dyn std::fmt::Display| MintError::Unverified(e.to_string());
        let name = CertificateFacts::parse(certificate)
            .map_err(|e| unread(&e))?
            .subject_der;
        let key = key_of(certificate).map_err(|e| unread(&e))?;
        let bits = key.subject_public_key.as_bytes().unwrap_or_default();
        Ok(Self(
            [(SHA1, &SHA1_FOR_LEGACY_USE_ONLY), (SHA256_OID, &SHA256)].map(|(id, hash)| {
                let of = |bytes| digest(hash, bytes).as_ref().to_vec();
                (id, of(&name), of(bits))
            }),
        ))
    }

    /// Whether a question is about a certificate of the authority.
    pub fn is_asked(&self, question: &Question) -> bool {
        self.0.iter().any(|(algorithm, name, key)| {
            *algorithm == question.algorithm && *name == question.name_hash && *key == question.key_hash
        })
    }
}

/// What is asked about one certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The CertID, byte for byte: the answer repeats it.
    id: Vec<u8>,
    algorithm: ObjectIdentifier,
    name_hash: Vec<u8>,
    key_hash: Vec<u8>,
    /// The serial number, hex.
    pub serial: String,
}

/// A whole request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Questions {
    /// At least one.
    pub list: Vec<Question>,
    nonce: Option<Vec<u8>>,
}

/// What became of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// It is in force.
    Good,
    /// It was revoked.
    Revoked(Revoked),
    /// This authority issued none such.
    Unknown,
}

/// An answer without any status (RFC 6960 section 4.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OcspError {
    /// The request cannot be read.
    Malformed,
    /// We cannot answer.
    Internal,
    /// We cannot answer now.
    TryLater,
    /// Not of an authority that answers here.
    Unauthorized,
}

impl OcspError {
    /// The answer, DER.
    pub fn to_der(self) -> Vec<u8> {
        let code = match self {
            Self::Malformed => 1,
            Self::Internal => 2,
            Self::TryLater => 3,
            Self::Unauthorized => 6,
        };
        sequence(&[&tlv(0x0a, &[&[code]])])
    }
}

impl Questions {
    /// Reads an OCSPRequest. A signature on it is not looked at: anybody may ask.
    ///
    /// # Errors
    /// [`OcspError::Malformed`], also for a nonce of more than 128 octets or none (RFC 9654 section 2.1).
    pub fn parse(der: &[u8]) -> Result<Self, OcspError> {
        let malformed = |_| OcspError::Malformed;
        let read = |der: &[u8]| -> der::Result<Self> {
            let mut outer = SliceReader::new(der)?;
            let mut found = Self {
                list: Vec::new(),
                nonce: None,
            };
            outer.sequence(|request| {
                request.sequence(|tbs| {
                    while !tbs.is_finished() {
                        let part = tbs.tlv_bytes()?;
                        match part.first() {
                            Some(0x30) => SliceReader::new(part)?.sequence(|list| {
                                while !list.is_finished() {
                                    found.list.push(question(list)?);
                                }
                                Ok::<_, der::Error>(())
                            })?,
                            Some(0xa2) => found.nonce = nonce(part)?,
                            // Version and requestor name.
                            _ => {}
                        }
                    }
                    Ok::<_, der::Error>(())
                })?;
                while !request.is_finished() {
                    request.tlv_bytes()?;
                }
                Ok::<_, der::Error>(())
            })?;
            outer.finish()?;
            Ok(found)
        };
        let found = read(der).map_err(malformed)?;
        let nonce_fits = found.nonce.as_ref().is_none_or(|n| (1..=128).contains(&n.len()));
        if found.list.is_empty() || found.list.len() > QUESTIONS_MAX || !nonce_fits {
            return Err(OcspError::Malformed);
        }
        Ok(found)
    }
}

fn question(list: &mut SliceReader<'_>) -> der::Result<Question> {
    let raw = list.tlv_bytes()?;
    let mut reader = SliceReader::new(raw)?;
    reader.sequence(|single| {
        let id = single.tlv_bytes()?;
        while !single.is_finished() {
            single.tlv_bytes()?;
        }
        let mut reader = SliceReader::new(id)?;
        reader.sequence(|parts| {
            let algorithm = spki::AlgorithmIdentifierOwned::decode(parts)?;
            let name_hash = <&OctetStringRef>::decode(parts)?;
            let key_hash = <&OctetStringRef>::decode(parts)?;
            let serial =
                x509_cert::serial_number::SerialNumber::<x509_cert::certificate::Rfc5280>::decode(parts)?;
            Ok::<_, der::Error>(Question {
                id: id.to_vec(),
                algorithm: algorithm.oid,
                name_hash: name_hash.as_bytes().to_vec(),
                key_hash: key_hash.as_bytes().to_vec(),
                serial: serial_hex(serial.as_bytes()),
            })
        })
    })
}

/// Out of `[2] EXPLICIT Extensions`: the octets inside the extension's OCTET STRING.
fn nonce(tagged: &[u8]) -> der::Result<Option<Vec<u8>>> {
    let extensions = x509_cert::ext::Extensions::from_der(der::asn1::AnyRef::from_der(tagged)?.value())?;
    let Some(found) = extensions.iter().find(|e| e.extn_id == OCSP_NONCE) else {
        return Ok(None);
    };
    let inner = <&OctetStringRef>::from_der(found.extn_value.as_bytes())?;
    Ok(Some(inner.as_bytes().to_vec()))
}

impl Responder {
    /// The end of its certificate's validity.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Whether a question is about a certificate of its authority.
    pub fn is_asked(&self, question: &Question) -> bool {
        self.issuer.is_asked(question)
    }

    /// Answers, good from `now` to `next_update`.
    ///
    /// # Errors
    /// [`MintError`] if it cannot be encoded or signed.
    pub fn answer(
        &self,
        questions: &Questions,
        statuses: &[Status],
        now: Timestamp,
        next_update: Timestamp,
    ) -> Result<Vec<u8>, MintError> {
        let mut singles = Vec::new();
        for (question, status) in questions.list.iter().zip(statuses) {
            let status = match status {
                Status::Good => tlv(0x80, &[]),
                Status::Unknown => tlv(0x82, &[]),
                Status::Revoked(revoked) => {
                    let reason = match revoked.reason {
                        RevocationReason::Unspecified => Vec::new(),
                        reason => tlv(0xa0, &[&tlv(0x0a, &[&[reason.code()]])]),
                    };
                    tlv(0xa1, &[&generalized(revoked.at)?, &reason])
                }
            };
            singles.extend(sequence(&[
                &question.id,
                &status,
                &generalized(now)?,
                &tlv(0xa0, &[&generalized(next_update)?]),
            ]));
        }
        let extensions = match &questions.nonce {
            None => Vec::new(),
            Some(nonce) => {
                let nonce = extension(OCSP_NONCE, &tlv(0x04, &[nonce]));
                tlv(0xa1, &[&sequence(&[&nonce])])
            }
        };
        let data = sequence(&[
            &tlv(0xa2, &[&tlv(0x04, &[&self.id])]),
            &generalized(now)?,
            &sequence(&[&singles]),
            &extensions,
        ]);
        let certificates = tlv(0xa0, &[&sequence(&[&self.certificate])]);
        let basic = sign(&data, &self.key, &certificates)?;
        let bytes = sequence(&[&oid(OCSP_BASIC), &tlv(0x04, &[&basic])]);
        Ok(sequence(&[&tlv(0x0a, &[&[0]]), &tlv(0xa0, &[&bytes])]))
    }
}

/// A revocation list that somebody shows.
#[derive(Debug, Clone)]
pub struct ShownList {
    der: Vec<u8>,
    /// The issuer's name, DER.
    pub issuer_der: Vec<u8>,
    /// Its number (RFC 5280 section 5.2.3); 0 if it has none.
    pub number: u64,
    /// Its entries.
    pub entries: Vec<Revoked>,
}

impl ShownList {
    /// Reads a list, DER. Whose it is, is not known before [`ShownList::is_signed_by`].
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(der: &[u8]) -> Result<Self, String> {
        let list = x509_cert::crl::CertificateList::<x509_cert::certificate::Rfc5280>::from_der(der)
            .map_err(|e| e.to_string())?;
        let tbs = list.tbs_cert_list;
        let number = tbs
            .crl_extensions
            .iter()
            .flatten()
            .find(|e| e.extn_id == CRL_NUMBER)
            .map(|e| UintRef::from_der(e.extn_value.as_bytes()))
            .transpose()
            .map_err(|e| e.to_string())?
            .map_or(Some(0), |n| {
                let bytes = n.as_bytes();
                (bytes.len() <= 8).then(|| bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b)))
            })
            .ok_or("its number is larger than any of ours")?;
        let entries = tbs.revoked_certificates.unwrap_or_default().into_iter().map(|e| {
            let reason = e
                .crl_entry_extensions
                .iter()
                .flatten()
                .find(|e| e.extn_id == REASON_CODE)
                .and_then(|e| e.extn_value.as_bytes().get(2))
                .and_then(|code| RevocationReason::try_from(*code).ok())
                .unwrap_or_default();
            let at = e.revocation_date.to_unix_duration().as_secs();
            Revoked {
                serial: serial_hex(e.serial_number.as_bytes()),
                at: Timestamp::from_unix_s(i64::try_from(at).unwrap_or(i64::MAX)),
                reason,
            }
        });
        Ok(Self {
            der: der.to_vec(),
            issuer_der: tbs.issuer.to_der().map_err(|e| e.to_string())?,
            number,
            entries: entries.collect(),
        })
    }

    /// Whether the holder of this CA certificate (DER) issued it.
    pub fn is_signed_by(&self, ca: &[u8]) -> bool {
        CertificateFacts::parse(ca).is_ok_and(|facts| facts.subject_der == self.issuer_der)
            && key_of(ca)
                .and_then(|key| Signed::parse(&self.der)?.verify(&key))
                .is_ok()
    }
}
