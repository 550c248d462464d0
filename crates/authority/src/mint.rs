//! From a grant to a certificate: prepare → lint → sign → parse and verify again.
//!
//! The steps are types that consume each other, so that nothing unlinted is ever signed and nothing unverified is ever
//! handed out.

use std::sync::PoisonError;
use std::time::Duration;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use countersign_factory::key::KeyFault;
use countersign_factory::request::pem;
use countersign_factory::station::StationCaGrant;
use countersign_factory::tlv::{sequence, tlv};
use countersign_factory::{EnrolmentGrant, Profile, ProfileKind, ServerGrant};
use countersign_identity::certificate::CertificateView;
use countersign_identity::signed::{Signer, SigningFailed, VerifyingKey};
use countersign_identity::{CertificateFacts, Fingerprint, Timestamp, signed};
use der::Encode;
use der::asn1::{BitString, GeneralizedTime, UtcTime};
use rustls_pki_types::CertificateDer;
use spki::SubjectPublicKeyInfoOwned;
use x509_cert::ext::pkix::{KeyUsage, KeyUsages};
use x509_cert::serial_number::SerialNumber;
use x509_cert::time::{Time, Validity};

mod lint;

use self::lint::{lint_all, lint_ca, lint_leaf, lint_station};
use crate::hierarchy::{Hierarchy, IssuingAuthority};
use crate::profile::{self, BACKDATING, Extensions, FACTORY_LIFETIME, ISSUING_LIFETIME, ROOT_LIFETIME};

/// 99991231235959Z: no well-defined end (RFC 5280 section 4.1.2.5).
const NO_END: Timestamp = Timestamp::from_unix_s(253_402_300_799);

/// Profiles with extensions of their own whose extensions are kept, for each authority. A configuration has a few.
const OWN_EXTENSIONS_MAX: usize = 64;

/// Whose a certificate is that is no CA's.
#[derive(Debug, Clone, Copy)]
enum Leaf<'a> {
    /// A device's, by this grant.
    Device(&'a EnrolmentGrant),
    /// The platform's own.
    Server,
}

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
    /// A station was asked of a CA that issues none.
    #[error("only a factory CA issues stations; hint: countersign authority create ID --factory makes one")]
    NoFactory,
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
        let profile = grant.profile();
        let mut extensions = self.device_extensions(profile)?;
        if let Some(names) = grant.names().alternative() {
            extensions.add_names(names)?;
        }
        let issued = self.issue(
            &grant.names().subject(),
            grant.key().info(),
            &extensions,
            now,
            profile.lifetime(),
            Leaf::Device(grant),
        )?;
        // What was linted is what was signed; whoever reads it must read the same.
        if !grant.names().are_in(&issued.facts) {
            return Err(MintError::Unverified(
                "its names are read otherwise than they were written".into(),
            ));
        }
        Ok(issued)
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
        let subject = profile::server_name(hosts.first().map_or("", String::as_str));
        let extensions = profile::server(self.key_id()?, hosts)?;
        self.issue(
            &subject,
            grant.key().info(),
            &extensions,
            now,
            Some(countersign_factory::grant::SERVER_LIFETIME),
            Leaf::Server,
        )
    }

    /// Issues a station's CA certificate, valid until the grant says. Only a factory CA does: one of ours with path
    /// length 1.
    ///
    /// # Errors
    /// [`MintError`].
    pub fn issue_station(&self, grant: &StationCaGrant, now: Timestamp) -> Result<Issued, MintError> {
        let is_factory = self.facts.ca.is_some_and(|c| c.path_length == Some(1));
        if self.hierarchy != Hierarchy::Devices || !is_factory {
            return Err(MintError::NoFactory);
        }
        if grant.not_after() > self.facts.not_after {
            return Err(MintError::IssuerTooShort {
                issuer: self.facts.not_after,
                wanted: grant.not_after(),
            });
        }
        let key = grant.key().info();
        let extensions = profile::station(&key_id_of(key), self.key_id()?)?;
        let subject = profile::station_name(grant.station(), &crate::hierarchy::random_suffix()?);
        let issuer = &self.facts.subject_der;
        let validity = (validity(now, Duration::ZERO).0, grant.not_after());
        let (certificate, facts) = Prepared::new(&*self.key, issuer, &subject, key, &extensions, validity)?
            .lint(|tbs| lint_station(tbs, self))?
            .sign(&*self.key)?
            .verify(&self.verifying, issuer)?;
        Ok(Issued {
            certificate,
            issuer: self.certificate.clone(),
            facts,
        })
    }

    /// The last second in which a certificate of such a lifetime can be issued: from then on the CA would end before it
    /// does. `None` is a certificate without an end, which can be issued as long as the CA is in force.
    pub fn last_issue(&self, lifetime: Option<Duration>) -> Timestamp {
        let end = self.facts.not_after;
        match lifetime {
            // As `validity` reckons: backdated, and both ends inclusive.
            Some(lifetime) => end
                .minus(lifetime)
                .plus(BACKDATING)
                .plus(Duration::from_secs(1))
                .min(end),
            None => end,
        }
    }

    /// What all its device certificates of a profile have, put together once.
    fn device_extensions(&self, profile: &Profile) -> Result<Extensions, MintError> {
        if profile.has_own_extensions() {
            return self.own_extensions(profile);
        }
        let kept = match profile.kind {
            ProfileKind::Operational => &self.operational,
            ProfileKind::Factory => &self.factory,
        };
        match kept.get() {
            Some(extensions) => Ok(extensions.clone()),
            None => {
                let extensions = profile::device(self.key_id()?, profile.kind)?;
                Ok(kept.get_or_init(|| extensions).clone())
            }
        }
    }

    fn own_extensions(&self, profile: &Profile) -> Result<Extensions, MintError> {
        let find = |kept: &[(Profile, Extensions)]| {
            let mut same = kept.iter().filter(|(of, _)| of.has_extensions_of(profile));
            same.next().map(|(_, extensions)| extensions.clone())
        };
        let kept = self.own.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(extensions) = find(&kept) {
            return Ok(extensions);
        }
        drop(kept);
        let authority = self.authority_of_urls(profile)?;
        let extensions = profile::device_of(self.key_id()?, profile, authority)?;
        let mut kept = self.own.write().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= OWN_EXTENSIONS_MAX {
            kept.clear();
        }
        kept.push((profile.clone(), extensions.clone()));
        Ok(extensions)
    }

    /// What `{authority}` stands for in the URLs of a profile.
    fn authority_of_urls(&self, profile: &Profile) -> Result<&str, MintError> {
        let mut urls = [&profile.crl_urls, &profile.ocsp_urls, &profile.ca_issuer_urls]
            .into_iter()
            .flatten();
        match &self.id {
            Some(id) => Ok(id.as_str()),
            None if urls.any(|url| url.contains("{authority}")) => Err(MintError::Lint(
                "a URL of the profile names the authority, and this one has no name".into(),
            )),
            None => Ok(""),
        }
    }

    fn key_id(&self) -> Result<&[u8], MintError> {
        self.facts
            .subject_key_id
            .as_deref()
            .ok_or_else(|| MintError::Lint("the issuing CA has no subjectKeyIdentifier".into()))
    }

    fn issue(
        &self,
        subject: &[u8],
        key: &SubjectPublicKeyInfoOwned,
        extensions: &Extensions,
        now: Timestamp,
        lifetime: Option<Duration>,
        leaf: Leaf<'_>,
    ) -> Result<Issued, MintError> {
        // A factory certificate without an end outlives its CA: then the CA is what must stay registered.
        let validity = match lifetime {
            Some(lifetime) => validity(now, lifetime),
            None => (validity(now, Duration::ZERO).0, NO_END),
        };
        let outlives = validity.1 > self.facts.not_after && validity.1 != NO_END;
        if outlives || now > self.facts.not_after {
            return Err(MintError::IssuerTooShort {
                issuer: self.facts.not_after,
                wanted: validity.1,
            });
        }
        let issuer = &self.facts.subject_der;
        let (certificate, facts) = Prepared::new(&*self.key, issuer, subject, key, extensions, validity)?
            .lint(|tbs| lint_leaf(tbs, self, leaf))?
            .sign(&*self.key)?
            .verify(&self.verifying, issuer)?;
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
    name: &[u8],
    now: Timestamp,
) -> Result<CertificateDer<'static>, MintError> {
    let key_id = key_id(key);
    let extensions = profile::ca(&key_id, &key_id, None)?;
    Prepared::new(
        key,
        name,
        name,
        key.public_key(),
        &extensions,
        validity(now, ROOT_LIFETIME),
    )?
    .lint(lint_ca)?
    .sign(key)?
    .verify(&verifying(key.public_key(), key)?, name)
    .map(|(certificate, _)| certificate)
}

/// How far below a CA its chains may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// It issues leaves only.
    Leaves,
    /// It issues stations, which issue leaves.
    Stations,
}

/// An issuing CA under a root.
pub(crate) fn issuing(
    (root_key, root, root_facts): (&dyn Signer, &CertificateDer<'static>, &CertificateFacts),
    key: &dyn Signer,
    subject: &[u8],
    reach: Reach,
    now: Timestamp,
) -> Result<CertificateDer<'static>, MintError> {
    let (path_length, lifetime) = match reach {
        Reach::Leaves => (0, ISSUING_LIFETIME),
        Reach::Stations => (1, FACTORY_LIFETIME),
    };
    let root_key_id = root_facts.subject_key_id.as_deref().unwrap_or_default();
    let extensions = profile::ca(&key_id(key), root_key_id, Some(path_length))?;
    Prepared::new(
        root_key,
        &root_facts.subject_der,
        subject,
        key.public_key(),
        &extensions,
        validity(now, lifetime),
    )?
    .lint(lint_ca)?
    .sign(root_key)?
    .verify(&verifying(&key_of(root)?, root_key)?, &root_facts.subject_der)
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
        &profile::responder_name(),
        key.public_key(),
        &profile::responder(authority.key_id()?)?,
        validity(now, crate::status::RESPONDER_LIFETIME),
    )?
    .lint(|_| Ok(()))?
    .sign(&*authority.key)?
    .verify(&authority.verifying, &facts.subject_der)
    .map(|(certificate, _)| certificate)
}

/// The certificate of a key that signs time.
pub(crate) fn time(
    authority: &IssuingAuthority,
    key: &dyn Signer,
    now: Timestamp,
) -> Result<Issued, MintError> {
    let (certificate, facts) = Prepared::new(
        &*authority.key,
        &authority.facts.subject_der,
        &profile::time_name(),
        key.public_key(),
        &profile::time(authority.key_id()?)?,
        validity(now, crate::time::TIME_LIFETIME),
    )?
    .lint(|_| Ok(()))?
    .sign(&*authority.key)?
    .verify(&authority.verifying, &authority.facts.subject_der)?;
    Ok(Issued {
        certificate,
        issuer: authority.certificate.clone(),
        facts,
    })
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
    if let Some(ca_key) = &ca_facts.subject_key_id {
        extensions.add(false, &profile::authority_key(ca_key)?)?;
    }
    Prepared::new(
        key,
        &ca_facts.subject_der,
        &profile::code_name(code),
        key.public_key(),
        &extensions,
        validity(now, Duration::from_secs(3600)),
    )?
    .lint(|_| Ok(()))?
    .sign(key)?
    .verify(&verifying(&key_of(ca)?, key)?, &ca_facts.subject_der)
    .map(|(proof, _)| proof)
}

/// Signs something worthless and checks the signature: not DER, so no certificate and no list whatever it says.
pub(crate) fn check_key(ca: &CertificateDer<'_>, key: &dyn Signer) -> Result<(), MintError> {
    const PROBE: &[u8] = b"countersign: can this key sign?";
    let unverified = |e: &dyn std::fmt::Display| MintError::Unverified(e.to_string());
    let signature = key.sign(PROBE)?;
    let public = signed::key_of(ca).map_err(|e| unverified(&e))?;
    signed::Signed {
        content: PROBE,
        algorithm: key.algorithm().oid,
        signature: &signature,
    }
    .verify(&public)
    .map_err(|e| unverified(&e))
}

/// What the signatures of `signer`, whose public key this is, are verified with.
pub(crate) fn verifying(
    key: &SubjectPublicKeyInfoOwned,
    signer: &dyn Signer,
) -> Result<VerifyingKey, MintError> {
    VerifyingKey::new(key, signer.algorithm().oid).map_err(|e| MintError::Unverified(e.to_string()))
}

/// The public key of an issuer.
fn key_of(issuer: &CertificateDer<'static>) -> Result<SubjectPublicKeyInfoOwned, MintError> {
    signed::key_of(issuer).map_err(|e| MintError::Unverified(e.to_string()))
}

/// RFC 7093 section 2 method 1: the leftmost 160 bits of the SHA-256 of the public key's bits.
fn key_id(key: &dyn Signer) -> Vec<u8> {
    key_id_of(key.public_key())
}

fn key_id_of(info: &SubjectPublicKeyInfoOwned) -> Vec<u8> {
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
fn encoded_time(t: Timestamp) -> Result<Time, MintError> {
    let since = Duration::from_secs(u64::try_from(t.unix_s()).unwrap_or(0));
    Ok(match UtcTime::from_unix_duration(since) {
        Ok(time) => Time::UtcTime(time),
        Err(_) => Time::GeneralTime(GeneralizedTime::from_unix_duration(since)?),
    })
}

/// 16 octets, positive, and never with a leading zero: six of the time, ten of chance (RFC 5280 section 4.1.2.2 wants it
/// unique; eight of chance are what the IoT profile asks for). Serial numbers that come in order lie side by side in the
/// registry's indexes, so that issuing in bulk does not write a page of its own for each. They tell nothing that notBefore
/// does not.
fn serial_number(now: Timestamp) -> Result<SerialNumber, MintError> {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&(now.unix_ms() << 16).to_be_bytes());
    SystemRandom::new()
        .fill(&mut bytes[6..])
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
        subject: &[u8],
        key: &SubjectPublicKeyInfoOwned,
        extensions: &Extensions,
        (not_before, not_after): (Timestamp, Timestamp),
    ) -> Result<Self, MintError> {
        const V3: &[u8] = &[0xa0, 3, 2, 1, 2];
        let algorithm = signer.algorithm();
        let validity = Validity::<x509_cert::certificate::Rfc5280>::new(
            encoded_time(not_before)?,
            encoded_time(not_after)?,
        );
        let tbs = sequence(&[
            V3,
            &serial_number(not_before)?.to_der()?,
            &algorithm.to_der()?,
            issuer_der,
            &validity.to_der()?,
            subject,
            &key.to_der()?,
            &tlv(0xa3, &[&extensions.to_der()]),
        ]);
        Ok(Self { algorithm, tbs })
    }

    /// Looks at the very bytes that will be signed.
    fn lint(
        self,
        rules: impl FnOnce(&CertificateView<'_>) -> Result<(), String>,
    ) -> Result<Linted, MintError> {
        let tbs = CertificateView::of_tbs(&self.tbs)?;
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
        let certificate = sequence(&[&tbs, &algorithm.to_der()?, &signature.to_der()?]);
        Ok(Signed { certificate, tbs })
    }
}

struct Signed {
    certificate: Vec<u8>,
    /// What was linted.
    tbs: Vec<u8>,
}

impl Signed {
    /// Parses it with our own eyes and verifies it with the library that will verify it in the field.
    fn verify(
        self,
        issuer_key: &VerifyingKey,
        issuer_subject: &[u8],
    ) -> Result<(CertificateDer<'static>, CertificateFacts), MintError> {
        let unverified = |what: String| MintError::Unverified(what);
        let der = CertificateDer::from(self.certificate);
        let facts = CertificateFacts::parse(&der).map_err(|e| unverified(e.to_string()))?;
        if facts.issuer_der != issuer_subject {
            return Err(unverified(
                "the issuer's name is not its subject, byte for byte".into(),
            ));
        }
        let signed = signed::Signed::parse(&der).map_err(|e| unverified(e.to_string()))?;
        if signed.content != self.tbs {
            return Err(unverified("what was signed is not what was linted".into()));
        }
        issuer_key
            .verify(&signed)
            .map_err(|e| unverified(e.to_string()))?;
        if facts.ca.is_none() {
            webpki::EndEntityCert::try_from(&der).map_err(|e| unverified(e.to_string()))?;
        }
        Ok((der, facts))
    }
}

#[cfg(test)]
mod tests;
