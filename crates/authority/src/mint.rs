//! From a grant to a certificate: prepare → lint → sign → parse and verify again.
//!
//! The steps are types that consume each other, so that nothing unlinted is ever signed and nothing unverified is ever
//! handed out.

use std::time::Duration;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use countersign_factory::key::KeyFault;
use countersign_factory::request::pem;
use countersign_factory::tlv::{sequence, tlv};
use countersign_factory::{EnrolmentGrant, ProfileKind, ServerGrant};
use countersign_identity::certificate::{EKU_CLIENT_AUTH, EKU_SERVER_AUTH};
use countersign_identity::signed::{Signer, SigningFailed};
use countersign_identity::{CertificateFacts, Fingerprint, Timestamp, signed};
use der::asn1::{BitString, GeneralizedTime, UtcTime};
use der::{Decode, Encode};
use rustls_pki_types::CertificateDer;
use spki::SubjectPublicKeyInfoOwned;
use x509_cert::certificate::{TbsCertificate, Version};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectAltName,
    SubjectKeyIdentifier,
};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::time::{Time, Validity};

use crate::hierarchy::{Hierarchy, IssuingAuthority};
use crate::profile::{self, BACKDATING, Extensions, ISSUING_LIFETIME, ROOT_LIFETIME};

/// 99991231235959Z: no well-defined end (RFC 5280 section 4.1.2.5).
const NO_END: Timestamp = Timestamp::from_unix_s(253_402_300_799);

/// Why nothing was minted.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// A device certificate was asked of the platform's CA, or a server certificate of the devices'.
    #[error("the {hierarchy} hierarchy issues no {kind} certificates")]
    WrongHierarchy {
        /// The hierarchy that was asked.
        hierarchy: Hierarchy,
        /// `device` or `server`.
        kind: &'static str,
    },
    /// What was prepared breaks a rule.
    #[error("the certificate was not signed, because it breaks a rule: {0}")]
    Lint(String),
    /// What was signed does not verify. It was thrown away.
    #[error("the signed certificate does not verify: {0}")]
    Unverified(String),
    /// The issuing CA expires before the certificate would.
    #[error(
        "the issuing CA is valid until {issuer}, too short for a certificate until {wanted}; make a new issuing CA"
    )]
    IssuerTooShort {
        /// The issuing CA's notAfter.
        issuer: Timestamp,
        /// What the certificate's would be.
        wanted: Timestamp,
    },
    /// A key operation failed.
    #[error(transparent)]
    Key(#[from] KeyFault),
    /// The CA's key could not sign.
    #[error(transparent)]
    Signing(#[from] SigningFailed),
    /// Encoding failed.
    #[error("encoding failed: {0}")]
    Encoding(String),
}

impl From<der::Error> for MintError {
    fn from(e: der::Error) -> Self {
        Self::Encoding(e.to_string())
    }
}

/// A certificate that was linted, signed and verified again.
#[derive(Debug, Clone)]
pub struct Issued {
    certificate: CertificateDer<'static>,
    issuer: CertificateDer<'static>,
    facts: CertificateFacts,
}

impl Issued {
    /// The certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// What it says.
    pub fn facts(&self) -> &CertificateFacts {
        &self.facts
    }

    /// What it says, and its DER, for whoever keeps them.
    pub fn into_parts(self) -> (CertificateFacts, Vec<u8>) {
        (self.facts, self.certificate.to_vec())
    }

    /// Certificate and issuing CA: what a peer sends. The root is never sent.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone(), self.issuer.clone()]
    }

    /// The same as PEM.
    pub fn chain_pem(&self) -> String {
        self.chain().iter().map(|c| pem("CERTIFICATE", c)).collect()
    }
}

impl IssuingAuthority {
    /// Issues an operational certificate to a device, valid from a little before `now`.
    ///
    /// # Errors
    /// [`MintError`].
    pub fn issue_device(&self, grant: &EnrolmentGrant, now: Timestamp) -> Result<Issued, MintError> {
        if self.hierarchy != Hierarchy::Devices {
            return Err(MintError::WrongHierarchy {
                hierarchy: self.hierarchy,
                kind: "device",
            });
        }
        let subject = profile::device_name(grant.tenant(), grant.device())?;
        let profile = grant.profile();
        let uri = profile.uri(grant.tenant(), grant.device());
        let extensions = profile::device(self.key_id()?, profile.kind, uri.as_deref())?;
        self.issue(
            subject,
            grant.key().info(),
            extensions,
            now,
            profile.lifetime(),
            profile.kind,
        )
    }

    /// Issues a certificate to the platform's own server, valid from a little before `now`.
    ///
    /// # Errors
    /// [`MintError`].
    pub fn issue_server(&self, grant: &ServerGrant, now: Timestamp) -> Result<Issued, MintError> {
        if self.hierarchy != Hierarchy::Platform {
            return Err(MintError::WrongHierarchy {
                hierarchy: self.hierarchy,
                kind: "server",
            });
        }
        let hosts = grant.host_names();
        let subject = profile::server_name(hosts.first().map_or("", String::as_str))?;
        let extensions = profile::server(self.key_id()?, hosts)?;
        self.issue(
            subject,
            grant.key().info(),
            extensions,
            now,
            Some(countersign_factory::grant::SERVER_LIFETIME),
            ProfileKind::Operational,
        )
    }

    fn key_id(&self) -> Result<&[u8], MintError> {
        self.facts
            .subject_key_id
            .as_deref()
            .ok_or_else(|| MintError::Lint("the issuing CA has no subjectKeyIdentifier".into()))
    }

    fn issue(
        &self,
        subject: Name,
        key: &SubjectPublicKeyInfoOwned,
        extensions: Extensions,
        now: Timestamp,
        lifetime: Option<Duration>,
        kind: ProfileKind,
    ) -> Result<Issued, MintError> {
        // A factory certificate without an end outlives its CA: then the CA is what must stay registered.
        let validity = match lifetime {
            Some(lifetime) => validity(now, lifetime),
            None => (validity(now, Duration::ZERO).0, NO_END),
        };
        if validity.1 > self.facts.not_after && validity.1 != NO_END {
            return Err(MintError::IssuerTooShort {
                issuer: self.facts.not_after,
                wanted: validity.1,
            });
        }
        let issuer = &self.facts.subject_der;
        let (certificate, facts) = Prepared::new(&*self.key, issuer, &subject, key, &extensions, validity)?
            .lint(|tbs| lint_leaf(tbs, self, kind))?
            .sign(&*self.key)?
            .verify(&self.public_key, issuer)?;
        Ok(Issued {
            certificate,
            issuer: self.certificate.clone(),
            facts,
        })
    }
}

/// A self-signed root.
pub(crate) fn root(
    key: &dyn Signer,
    subject: der::Result<Name>,
    now: Timestamp,
) -> Result<CertificateDer<'static>, MintError> {
    let subject = subject?;
    let key_id = key_id(key);
    let extensions = profile::ca(&key_id, &key_id, None)?;
    let name = subject.to_der()?;
    Prepared::new(
        key,
        &name,
        &subject,
        key.public_key(),
        &extensions,
        validity(now, ROOT_LIFETIME),
    )?
    .lint(lint_ca)?
    .sign(key)?
    .verify(key.public_key(), &name)
    .map(|(certificate, _)| certificate)
}

/// An issuing CA under a root: it issues leaves only.
pub(crate) fn issuing(
    (root_key, root, root_facts): (&dyn Signer, &CertificateDer<'static>, &CertificateFacts),
    key: &dyn Signer,
    subject: der::Result<Name>,
    now: Timestamp,
) -> Result<CertificateDer<'static>, MintError> {
    let subject = subject?;
    let root_key_id = root_facts.subject_key_id.as_deref().unwrap_or_default();
    let extensions = profile::ca(&key_id(key), root_key_id, Some(0))?;
    Prepared::new(
        root_key,
        &root_facts.subject_der,
        &subject,
        key.public_key(),
        &extensions,
        validity(now, ISSUING_LIFETIME),
    )?
    .lint(lint_ca)?
    .sign(root_key)?
    .verify(&key_of(root)?, &root_facts.subject_der)
    .map(|(certificate, _)| certificate)
}

/// A delegated OCSP responder's certificate (RFC 6960 section 4.2.2.2): OCSPSigning, never to be checked itself.
pub(crate) fn responder(
    authority: &IssuingAuthority,
    key: &dyn Signer,
    now: Timestamp,
) -> Result<CertificateDer<'static>, MintError> {
    let facts = &authority.facts;
    Prepared::new(
        &*authority.key,
        &facts.subject_der,
        &profile::responder_name()?,
        key.public_key(),
        &profile::responder(authority.key_id()?)?,
        validity(now, crate::status::RESPONDER_LIFETIME),
    )?
    .lint(|_| Ok(()))?
    .sign(&*authority.key)?
    .verify(&authority.public_key, &facts.subject_der)
    .map(|(certificate, _)| certificate)
}

/// A certificate that proves possession of a CA's key: it names the code, is good for an hour and for nothing else.
///
/// # Errors
/// [`MintError`], for one if the key is not the CA's.
pub fn possession_proof(
    ca: &CertificateDer<'static>,
    key: &dyn Signer,
    code: &str,
    now: Timestamp,
) -> Result<CertificateDer<'static>, MintError> {
    let ca_facts = CertificateFacts::parse(ca).map_err(|e| MintError::Unverified(e.to_string()))?;
    let mut extensions = Extensions::default();
    extensions.add(true, &KeyUsage(KeyUsages::DigitalSignature.into()))?;
    Prepared::new(
        key,
        &ca_facts.subject_der,
        &profile::code_name(code)?,
        key.public_key(),
        &extensions,
        validity(now, Duration::from_secs(3600)),
    )?
    .lint(|_| Ok(()))?
    .sign(key)?
    .verify(&key_of(ca)?, &ca_facts.subject_der)
    .map(|(proof, _)| proof)
}

/// The public key of an issuer.
fn key_of(issuer: &CertificateDer<'static>) -> Result<SubjectPublicKeyInfoOwned, MintError> {
    signed::key_of(issuer).map_err(|e| MintError::Unverified(e.to_string()))
}

/// RFC 7093 section 2 method 1: the leftmost 160 bits of the SHA-256 of the public key's bits.
fn key_id(key: &dyn Signer) -> Vec<u8> {
    let info = key.public_key();
    let bits = info.subject_public_key.as_bytes().unwrap_or_default();
    Fingerprint::of(bits).as_bytes()[..20].to_vec()
}

/// Both ends are inclusive (RFC 5280 section 4.1.2.5), so the last second is one less.
fn validity(now: Timestamp, lifetime: Duration) -> (Timestamp, Timestamp) {
    let not_before = Timestamp::from_unix_s(now.minus(BACKDATING).unix_s());
    (
        not_before,
        not_before.plus(lifetime).minus(Duration::from_secs(1)),
    )
}

/// UTCTime through 2049, GeneralizedTime from 2050 (RFC 5280 section 4.1.2.5).
fn time(t: Timestamp) -> Result<Time, MintError> {
    let since = Duration::from_secs(u64::try_from(t.unix_s()).unwrap_or(0));
    Ok(match UtcTime::from_unix_duration(since) {
        Ok(time) => Time::UtcTime(time),
        Err(_) => Time::GeneralTime(GeneralizedTime::from_unix_duration(since)?),
    })
}

/// 16 random octets, positive, and never with a leading zero.
fn serial_number() -> Result<SerialNumber, MintError> {
    let mut bytes = [0; 16];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| KeyFault::Failed)?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::new(&bytes)?)
}

/// The bytes that will be signed.
struct Prepared {
    algorithm: spki::AlgorithmIdentifierOwned,
    tbs: Vec<u8>,
}

impl Prepared {
    /// TBSCertificate (RFC 5280 section 4.1.2), put together from parts that are DER already.
    fn new(
        signer: &dyn Signer,
        issuer_der: &[u8],
        subject: &Name,
        key: &SubjectPublicKeyInfoOwned,
        extensions: &Extensions,
        (not_before, not_after): (Timestamp, Timestamp),
    ) -> Result<Self, MintError> {
        const V3: &[u8] = &[0xa0, 3, 2, 1, 2];
        let algorithm = signer.algorithm();
        let validity = Validity::<x509_cert::certificate::Rfc5280>::new(time(not_before)?, time(not_after)?);
        let tbs = sequence(&[
            V3,
            &serial_number()?.to_der()?,
            &algorithm.to_der()?,
            issuer_der,
            &validity.to_der()?,
            &subject.to_der()?,
            &key.to_der()?,
            &tlv(0xa3, &[&extensions.to_der()?]),
        ]);
        Ok(Self { algorithm, tbs })
    }

    /// Looks at the very bytes that will be signed.
    fn lint(self, rules: impl FnOnce(&TbsCertificate) -> Result<(), String>) -> Result<Linted, MintError> {
        let tbs = TbsCertificate::from_der(&self.tbs)?;
        lint_all(&tbs, &self.algorithm)
            .and_then(|()| rules(&tbs))
            .map_err(MintError::Lint)?;
        Ok(Linted(self))
    }
}

struct Linted(Prepared);

impl Linted {
    fn sign(self, key: &dyn Signer) -> Result<Signed, MintError> {
        let Self(Prepared { algorithm, tbs }) = self;
        let signature = BitString::from_bytes(&key.sign(&tbs)?)?;
        Ok(Signed(sequence(&[
            &tbs,
            &algorithm.to_der()?,
            &signature.to_der()?,
        ])))
    }
}

struct Signed(Vec<u8>);

impl Signed {
    /// Parses it with our own eyes and verifies it with the library that will verify it in the field.
    fn verify(
        self,
        issuer_key: &SubjectPublicKeyInfoOwned,
        issuer_subject: &[u8],
    ) -> Result<(CertificateDer<'static>, CertificateFacts), MintError> {
        let unverified = |what: String| MintError::Unverified(what);
        let der = CertificateDer::from(self.0);
        let facts = CertificateFacts::parse(&der).map_err(|e| unverified(e.to_string()))?;
        if facts.issuer_der != issuer_subject {
            return Err(unverified(
                "the issuer's name is not its subject, byte for byte".into(),
            ));
        }
        signed::Signed::parse(&der)
            .and_then(|signed| signed.verify(issuer_key))
            .map_err(|e| unverified(e.to_string()))?;
        if facts.ca.is_none() {
            webpki::EndEntityCert::try_from(&der).map_err(|e| unverified(e.to_string()))?;
        }
        Ok((der, facts))
    }
}

fn rule(holds: bool, text: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(text.to_owned()) }
}

fn extension<'a, E>(tbs: &'a TbsCertificate) -> Result<Option<(bool, E)>, String>
where
    E: Decode<'a, Error = der::Error> + const_oid::AssociatedOid,
{
    tbs.get_extension::<E>().map_err(|e| e.to_string())
}

/// What holds for every certificate (RFC 5280 section 4.1).
fn lint_all(tbs: &TbsCertificate, algorithm: &spki::AlgorithmIdentifierOwned) -> Result<(), String> {
    rule(tbs.version() == Version::V3, "the version is v3")?;
    let serial = tbs.serial_number().as_bytes();
    rule(
        serial.len() == 16 && serial[0] != 0 && serial[0] < 0x80,
        "the serial number has 16 octets and is positive",
    )?;
    rule(
        tbs.signature() == algorithm,
        "the signature algorithm is the signing key's",
    )?;
    let (from, to) = (
        tbs.validity().not_before.to_unix_duration(),
        tbs.validity().not_after.to_unix_duration(),
    );
    rule(from < to, "notBefore is before notAfter")?;
    rule(
        !tbs.subject().is_empty() && !tbs.issuer().is_empty(),
        "subject and issuer are not empty",
    )?;
    let names = tbs
        .subject()
        .iter()
        .filter(|a| a.oid == countersign_identity::certificate::ATTRIBUTE_COMMON_NAME);
    rule(names.count() == 1, "the subject has one common name")
}

fn no_server_names(tbs: &TbsCertificate) -> Result<bool, String> {
    let names = extension::<SubjectAltName>(tbs)?
        .map(|(_, n)| n.0)
        .unwrap_or_default();
    Ok(names
        .iter()
        .all(|n| !matches!(n, GeneralName::DnsName(_) | GeneralName::IpAddress(_))))
}

fn lint_ca(tbs: &TbsCertificate) -> Result<(), String> {
    let constraints = extension::<BasicConstraints>(tbs)?;
    rule(
        constraints.is_some_and(|(critical, c)| critical && c.ca),
        "a CA has critical basicConstraints with cA",
    )?;
    let usage = extension::<KeyUsage>(tbs)?;
    rule(
        usage.is_some_and(|(critical, u)| critical && u.0 == KeyUsages::KeyCertSign | KeyUsages::CRLSign),
        "a CA has critical keyUsage keyCertSign and cRLSign",
    )?;
    rule(
        extension::<ExtendedKeyUsage>(tbs)?.is_none(),
        "a CA has no extKeyUsage",
    )?;
    rule(
        extension::<SubjectKeyIdentifier>(tbs)?.is_some(),
        "a CA has a subjectKeyIdentifier",
    )
}

fn lint_leaf(tbs: &TbsCertificate, issuer: &IssuingAuthority, kind: ProfileKind) -> Result<(), String> {
    rule(
        extension::<BasicConstraints>(tbs)?.is_none_or(|(_, c)| !c.ca),
        "a leaf is no CA",
    )?;
    let usage = extension::<KeyUsage>(tbs)?;
    rule(
        usage.is_some_and(|(critical, u)| critical && u.0 == KeyUsages::DigitalSignature),
        "a leaf has critical keyUsage digitalSignature, alone",
    )?;
    let expected: Option<&[_]> = match (issuer.hierarchy, kind) {
        (Hierarchy::Devices, ProfileKind::Operational) => Some(&[EKU_CLIENT_AUTH]),
        (Hierarchy::Devices, ProfileKind::Factory) => None,
        (Hierarchy::Platform, _) => Some(&[EKU_SERVER_AUTH]),
    };
    let purposes = extension::<ExtendedKeyUsage>(tbs)?.map(|(_, e)| e.0);
    rule(
        purposes.as_deref() == expected,
        "below devices the only purpose is clientAuth (none is named in a factory certificate), below platform serverAuth",
    )?;
    rule(
        issuer.hierarchy != Hierarchy::Devices || no_server_names(tbs)?,
        "below devices no certificate names a host",
    )?;
    let key_id = extension::<AuthorityKeyIdentifier>(tbs)?.and_then(|(_, a)| a.key_identifier);
    rule(
        key_id.as_ref().map(|k| k.as_bytes()) == issuer.facts.subject_key_id.as_deref(),
        "the authorityKeyIdentifier is the issuer's subjectKeyIdentifier",
    )
}

#[cfg(test)]
mod tests;
