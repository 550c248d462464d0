//! Revocation lists of others (RFC 5280 sections 5 and 6.3): read, checked against their issuer, asked for a certificate.
//!
//! What is not processed makes a list unusable, and a certificate without a usable list has no known status: refused.
//! Not processed are lists that another name than the certificate's issuer signed (cRLIssuer), and keys of the issuer
//! that are not part of the certificate's own path. A delta only ever adds: `removeFromCRL` is not believed.

use std::collections::{HashMap, HashSet};

use const_oid::ObjectIdentifier;
use der::asn1::Int;
use der::{Decode, Encode};
use spki::AlgorithmIdentifierOwned;
use x509_cert::ext::Extensions;
use x509_cert::ext::pkix::crl::CrlDistributionPoints;
use x509_cert::ext::pkix::crl::dp::{IssuingDistributionPoint, ReasonFlags, Reasons};
use x509_cert::ext::pkix::name::{DistributionPointName, GeneralName, GeneralNames};
use x509_cert::name::{Name, RelativeDistinguishedName};
use x509_cert::time::Time;
use x509_cert::{Certificate, Version};

use crate::certificate::CertificateFacts;
use crate::id::Fingerprint;
use crate::raw::{RawCertificate, RawFault, RawKey, RawSigned};
use crate::timestamp::Timestamp;

const CRL_NUMBER: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.20");
const REASON_CODE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.21");
const DELTA_INDICATOR: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.27");
const ISSUING_DISTRIBUTION_POINT: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.28");
const CERTIFICATE_ISSUER: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.29");
/// CRLReason removeFromCRL (section 5.3.1).
const REMOVE_FROM_CRL: u8 = 8;

/// Why a list is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListFault {
    /// Not a revocation list, or one that breaks the standard.
    #[error("not a revocation list (X.509 CRL, version 2): {0}")]
    Malformed(String),
    /// It has a critical extension that is not known.
    #[error("the list has a critical extension that is not known ({0})")]
    Unknown(String),
    /// Another issuer's.
    #[error("the list was issued by {issuer:?}, not by {wanted:?}")]
    Issuer {
        /// Who issued it.
        issuer: String,
        /// Whose was wanted.
        wanted: String,
    },
    /// Not signed by the issuer's key.
    #[error("the list was not signed by the authority's key")]
    Signature,
    /// The issuer may not sign lists.
    #[error("the authority's keyUsage lacks cRLSign")]
    NotSigner,
    /// It holds only part of what is revoked.
    #[error("the list covers only a part of the authority's certificates or reasons: {0}")]
    Partial(&'static str),
    /// It says of itself that it is from the future.
    #[error("the list is valid from {this_update} on, which has not come yet")]
    NotYetValid {
        /// When it was made, by its own word.
        this_update: Timestamp,
    },
    /// It does not say when the next one comes, or has no number.
    #[error("the list has no {0}")]
    Lacks(&'static str),
}

/// One list, read. Nothing says yet that its issuer signed it.
#[derive(Debug, Clone)]
pub struct RevocationList {
    /// The issuer's name, DER.
    pub issuer_der: Vec<u8>,
    /// The issuer for people.
    pub issuer_text: String,
    /// When it was made, by its own word.
    pub this_update: Timestamp,
    /// When the next one is due.
    pub next_update: Option<Timestamp>,
    /// cRLNumber, big endian, without leading zeros.
    pub number: Option<Vec<u8>>,
    der: Vec<u8>,
    delta: bool,
    scope: Option<IssuingDistributionPoint>,
    /// Content octets of the serial numbers of the issuer's own certificates, with the reason.
    entries: HashMap<Box<[u8]>, u8>,
}

#[derive(der::Sequence)]
struct CertificateList {
    content: Content,
    #[allow(dead_code, reason = "checked over the bytes as they came")]
    algorithm: AlgorithmIdentifierOwned,
    #[allow(dead_code, reason = "checked over the bytes as they came")]
    signature: der::asn1::BitString,
}

/// TBSCertList, with serial numbers of any length and sign.
#[derive(der::Sequence)]
struct Content {
    version: Version,
    algorithm: AlgorithmIdentifierOwned,
    issuer: Name,
    this_update: Time,
    #[asn1(optional = "true")]
    next_update: Option<Time>,
    #[asn1(optional = "true")]
    revoked: Option<Vec<Entry>>,
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT", optional = "true")]
    extensions: Option<Extensions>,
}

#[derive(der::Sequence)]
struct Entry {
    serial: Int,
    #[allow(dead_code, reason = "that it is revoked counts, not since when")]
    date: Time,
    #[asn1(optional = "true")]
    extensions: Option<Extensions>,
}

fn time(t: Time) -> Timestamp {
    Timestamp::from_unix_s(i64::try_from(t.to_unix_duration().as_secs()).unwrap_or(i64::MAX / 1000))
}

fn without_zeros(bytes: &[u8]) -> Vec<u8> {
    let start = bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len());
    bytes[start..].to_vec()
}

impl RevocationList {
    /// Reads a list in DER.
    ///
    /// # Errors
    /// [`ListFault::Malformed`] or [`ListFault::Unknown`].
    pub fn parse(der: &[u8]) -> Result<Self, ListFault> {
        let malformed = |e: der::Error| ListFault::Malformed(e.to_string());
        let list = CertificateList::from_der(der).map_err(malformed)?;
        let content = list.content;
        if content.version != Version::V2 {
            return Err(ListFault::Malformed("it is of another version".into()));
        }
        if content.algorithm != list.algorithm {
            return Err(ListFault::Malformed("it names two signature algorithms".into()));
        }
        let (mut number, mut delta, mut scope) = (None, false, None);
        for extension in content.extensions.iter().flatten() {
            let value = extension.extn_value.as_bytes();
            match extension.extn_id {
                CRL_NUMBER => {
                    let n = der::asn1::Uint::from_der(value).map_err(malformed)?;
                    if n.as_bytes().len() > 20 {
                        return Err(ListFault::Malformed("its number is longer than 20 octets".into()));
                    }
                    number = Some(without_zeros(n.as_bytes()));
                }
                DELTA_INDICATOR => delta = true,
                ISSUING_DISTRIBUTION_POINT => {
                    scope = Some(IssuingDistributionPoint::from_der(value).map_err(malformed)?);
                }
                other if extension.critical => return Err(ListFault::Unknown(other.to_string())),
                _ => {}
            }
        }
        let issuer_der = content.issuer.to_der().map_err(malformed)?;
        let mut entries = HashMap::new();
        let mut own = true;
        for entry in content.revoked.into_iter().flatten() {
            let mut reason = 0;
            for extension in entry.extensions.iter().flatten() {
                let value = extension.extn_value.as_bytes();
                match extension.extn_id {
                    REASON_CODE => reason = value.last().copied().unwrap_or(0),
                    // It holds for this entry and those that follow (section 5.3.3).
                    CERTIFICATE_ISSUER => {
                        let names = GeneralNames::from_der(value).map_err(malformed)?;
                        own = names.iter().any(|n| match n {
                            GeneralName::DirectoryName(n) => n.to_der().is_ok_and(|d| d == issuer_der),
                            _ => false,
                        });
                    }
                    other if extension.critical => return Err(ListFault::Unknown(other.to_string())),
                    _ => {}
                }
            }
            if own {
                entries.insert(entry.serial.as_bytes().into(), reason);
            }
        }
        Ok(Self {
            issuer_der,
            issuer_text: content.issuer.to_string(),
            this_update: time(content.this_update),
            next_update: content.next_update.map(time),
            number,
            der: der.to_vec(),
            delta,
            scope,
            entries,
        })
    }

    /// Its bytes.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// How many certificates it revokes.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it revokes none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The serial numbers it revokes, as content octets.
    pub fn serials(&self) -> impl Iterator<Item = &[u8]> {
        self.entries.keys().map(AsRef::as_ref)
    }

    /// The distribution point that it is the list of, as its names in DER; empty if it is the only one of its issuer. An issuer may
    /// divide what it revokes among several lists (section 5.2.5), of which each certificate names its own.
    ///
    /// # Errors
    /// [`ListFault::Malformed`].
    pub fn point(&self) -> Result<Vec<u8>, ListFault> {
        let names = self
            .point_names()
            .map_err(|e| ListFault::Malformed(e.to_string()))?;
        let der = names.map(|names| names.to_der()).transpose();
        Ok(der
            .map_err(|e| ListFault::Malformed(e.to_string()))?
            .unwrap_or_default())
    }

    fn point_names(&self) -> Result<Option<Vec<GeneralName>>, der::Error> {
        let Some(scope) = &self.scope else {
            return Ok(None);
        };
        full_names(
            scope.distribution_point.as_ref(),
            &Name::from_der(&self.issuer_der)?,
        )
    }

    /// Whether the next one was due before `now`. One that does not say when counts as stale.
    pub fn is_stale_at(&self, now: Timestamp) -> bool {
        self.next_update.is_none_or(|next| next < now)
    }

    /// Whether it can stand for all certificates of `issuer` (its certificate, DER): signed by its key, complete, with
    /// a number and a next date. For the lists that an authority keeps.
    ///
    /// # Errors
    /// [`ListFault`].
    pub fn check(
        &self,
        issuer: &CertificateFacts,
        issuer_der: &[u8],
        now: Timestamp,
    ) -> Result<(), ListFault> {
        if self.issuer_der != issuer.subject_der {
            return Err(ListFault::Issuer {
                issuer: self.issuer_text.clone(),
                wanted: issuer.subject_text.clone(),
            });
        }
        let raw = RawCertificate::parse(issuer_der).map_err(|e| ListFault::Malformed(e.to_string()))?;
        self.verify(&raw.key, issuer)?;
        if self.delta {
            return Err(ListFault::Partial("it is a delta"));
        }
        if let Some(scope) = &self.scope {
            if scope.only_contains_ca_certs || scope.only_contains_attribute_certs {
                return Err(ListFault::Partial("it holds no end entities"));
            }
            if scope.only_some_reasons.is_some() {
                return Err(ListFault::Partial("it holds only some reasons"));
            }
        }
        if self.number.is_none() {
            return Err(ListFault::Lacks("cRLNumber"));
        }
        if self.next_update.is_none() {
            return Err(ListFault::Lacks("nextUpdate"));
        }
        if self.this_update > now {
            return Err(ListFault::NotYetValid {
                this_update: self.this_update,
            });
        }
        Ok(())
    }

    /// Checks the signature, and that its maker may make it.
    fn verify(&self, key: &RawKey<'_>, issuer: &CertificateFacts) -> Result<(), ListFault> {
        if issuer.key_usage.is_some_and(|u| !u.crl_sign) {
            return Err(ListFault::NotSigner);
        }
        let raw = RawSigned::parse(&self.der).map_err(|e| ListFault::Malformed(e.to_string()))?;
        raw.verify(key).map_err(|f| match f {
            RawFault::Algorithm | RawFault::Invalid => ListFault::Signature,
        })
    }
}

/// What happens to the certificates of an authority whose list is past its nextUpdate, or has not come yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenStale {
    /// Nobody new is admitted until a current list is there. Live sessions stay.
    #[default]
    Refuse,
    /// What the last list said goes on.
    LastKnown,
}

impl WhenStale {
    /// The name in store, API and output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::LastKnown => "last-known",
        }
    }
}

impl std::str::FromStr for WhenStale {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Refuse, Self::LastKnown]
            .into_iter()
            .find(|w| w.name() == text)
            .ok_or_else(|| format!("{text:?} is neither refuse nor last-known"))
    }
}

/// The lists that are kept for an authority: its own, and those of CAs below it. They were checked when they were taken.
#[derive(Debug, Default)]
pub struct KeptLists {
    /// What happens while one of them is stale.
    pub when_stale: WhenStale,
    lists: Vec<KeptList>,
}

#[derive(Debug)]
struct KeptList {
    issuer_der: Vec<u8>,
    /// The names of the distribution point that it is the list of; `None`: it is of all certificates.
    point: Option<Vec<GeneralName>>,
    next_update: Timestamp,
    serials: HashSet<Box<[u8]>>,
}

impl KeptLists {
    /// Keeps what `lists` say.
    pub fn new<'a>(when_stale: WhenStale, lists: impl IntoIterator<Item = &'a RevocationList>) -> Self {
        let lists = lists
            .into_iter()
            .map(|list| KeptList {
                issuer_der: list.issuer_der.clone(),
                // Names that cannot be read are no certificate's: nothing is covered by them. They were read when it was taken.
                point: list.point_names().unwrap_or_else(|_| Some(Vec::new())),
                next_update: list.next_update.unwrap_or(list.this_update),
                serials: list.serials().map(Into::into).collect(),
            })
            .collect();
        Self { when_stale, lists }
    }

    /// Whether an authority's own certificates are admitted by them at all: one of its lists is current, or none need be.
    pub fn is_current_for(&self, authority: &CertificateFacts, now: Timestamp) -> bool {
        let own = |l: &&KeptList| l.issuer_der == authority.subject_der;
        self.when_stale == WhenStale::LastKnown || self.lists.iter().filter(own).any(|l| l.next_update >= now)
    }

    /// Whether one of them names a certificate of `issuer`, whichever it should be on.
    pub(crate) fn revoke(&self, issuer: &[u8], serial: &[u8]) -> bool {
        let mut of_issuer = self.lists.iter().filter(|l| l.issuer_der == issuer);
        of_issuer.any(|l| l.serials.contains(serial))
    }

    /// What they say of `certificate` (DER), which is of `issuer`. `required`: the issuer is the authority itself, whose list for
    /// it must be here. So must be one for it where there is any other of its issuer: one part of what is revoked says nothing
    /// of the rest.
    pub(crate) fn status(
        &self,
        issuer: &[u8],
        serial: &[u8],
        certificate: &[u8],
        required: bool,
        now: Timestamp,
    ) -> Status {
        if self.revoke(issuer, serial) {
            return Status::Revoked;
        }
        if self.when_stale == WhenStale::LastKnown {
            return Status::Good;
        }
        let (mut any, mut current) = (required, false);
        let mut points = None;
        for list in self.lists.iter().filter(|l| l.issuer_der == issuer) {
            any = true;
            let covers = match &list.point {
                None => true,
                Some(names) => points
                    .get_or_insert_with(|| points_of(certificate).ok().flatten().unwrap_or_default())
                    .iter()
                    .filter(|p| p.of_issuer)
                    .any(|p| p.names.iter().flatten().any(|n| names.contains(n))),
            };
            current |= covers && list.next_update >= now;
        }
        match any && !current {
            true => Status::Unknown,
            false => Status::Good,
        }
    }
}

/// What lists say of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    /// All reasons are covered by lists, and none revokes it.
    Good,
    /// One revokes it.
    Revoked,
    /// The lists at hand do not say.
    Unknown,
}

/// Lists with the outcome of their signature checks, so that each is checked once per issuer's certificate.
#[derive(Debug)]
pub(crate) struct CheckedLists<'a> {
    lists: &'a [RevocationList],
    checked: HashMap<(usize, Fingerprint), bool>,
}

/// An issuer, as far as its lists are concerned.
pub(crate) struct ListIssuer<'a> {
    pub(crate) facts: &'a CertificateFacts,
    pub(crate) key: RawKey<'a>,
}

impl<'a> CheckedLists<'a> {
    pub(crate) fn new(lists: &'a [RevocationList]) -> Self {
        Self {
            lists,
            checked: HashMap::new(),
        }
    }

    /// Section 6.3.3, without what the module names as not processed. `issuers`: the certificates of the path that
    /// bear the issuer's name; more than one after a change of its key.
    pub(crate) fn status(
        &mut self,
        facts: &CertificateFacts,
        der: &[u8],
        serial: &[u8],
        issuers: &[ListIssuer<'_>],
        now: Timestamp,
    ) -> Result<Status, der::Error> {
        let points = points_of(der)?;
        let mut covered = ReasonFlags::default();
        for (n, list) in self.lists.iter().enumerate() {
            if list.issuer_der != facts.issuer_der || list.this_update > now || list.is_stale_at(now) {
                continue;
            }
            let Some(reasons) = reasons_covered(list, facts, &points)? else {
                continue;
            };
            let checked = &mut self.checked;
            let holds = issuers.iter().any(|issuer| {
                *checked
                    .entry((n, issuer.facts.fingerprint))
                    .or_insert_with(|| list.verify(&issuer.key, issuer.facts).is_ok())
            });
            if !holds {
                continue;
            }
            match list.entries.get(serial) {
                Some(&REMOVE_FROM_CRL) if list.delta => {}
                Some(_) => return Ok(Status::Revoked),
                None => {}
            }
            if !list.delta {
                covered |= reasons;
            }
        }
        Ok(if covered.contains(all_reasons()) {
            Status::Good
        } else {
            Status::Unknown
        })
    }
}

/// All but `unused`.
fn all_reasons() -> ReasonFlags {
    Reasons::KeyCompromise
        | Reasons::CaCompromise
        | Reasons::AffiliationChanged
        | Reasons::Superseded
        | Reasons::CessationOfOperation
        | Reasons::CertificateHold
        | Reasons::PrivilegeWithdrawn
        | Reasons::AaCompromise
}

/// A distribution point of a certificate: its names, full, and the reasons that its lists cover.
struct Point {
    /// `None`: the point has no name.
    names: Option<Vec<GeneralName>>,
    reasons: ReasonFlags,
    of_issuer: bool,
}

fn points_of(der: &[u8]) -> Result<Option<Vec<Point>>, der::Error> {
    let certificate = Certificate::from_der(der)?;
    let tbs = certificate.tbs_certificate();
    let Some((_, CrlDistributionPoints(list))) = tbs.get_extension()? else {
        return Ok(None);
    };
    list.into_iter()
        .map(|p| {
            Ok(Point {
                names: full_names(p.distribution_point.as_ref(), tbs.issuer())?,
                reasons: p.reasons.unwrap_or_else(all_reasons),
                of_issuer: p.crl_issuer.is_none(),
            })
        })
        .collect::<Result<_, _>>()
        .map(Some)
}

/// A name relative to the issuer is the issuer's name with one more component (section 4.2.1.13).
fn full_names(
    point: Option<&DistributionPointName>,
    issuer: &Name,
) -> Result<Option<Vec<GeneralName>>, der::Error> {
    Ok(match point {
        None => None,
        Some(DistributionPointName::FullName(names)) => Some(names.clone()),
        Some(DistributionPointName::NameRelativeToCRLIssuer(last)) => {
            let mut rdns: Vec<RelativeDistinguishedName> = issuer.iter_rdn().cloned().collect();
            rdns.push(last.clone());
            let name = Name::from_der(&rdns.to_der()?)?;
            Some(vec![GeneralName::DirectoryName(name)])
        }
    })
}

/// The reasons that a list covers for a certificate; `None` if the certificate is not in its scope.
fn reasons_covered(
    list: &RevocationList,
    facts: &CertificateFacts,
    points: &Option<Vec<Point>>,
) -> Result<Option<ReasonFlags>, der::Error> {
    let own: Vec<&Point> = points.iter().flatten().filter(|p| p.of_issuer).collect();
    // All its points are lists of somebody else.
    if points.is_some() && own.is_empty() {
        return Ok(None);
    }
    let Some(scope) = &list.scope else {
        return Ok(Some(all_reasons()));
    };
    let is_ca = facts.ca.is_some();
    if scope.only_contains_attribute_certs
        || (scope.only_contains_user_certs && is_ca)
        || (scope.only_contains_ca_certs && !is_ca)
    {
        return Ok(None);
    }
    let listed = scope.only_some_reasons.unwrap_or_else(all_reasons);
    let issuer = Name::from_der(&list.issuer_der)?;
    let Some(names) = full_names(scope.distribution_point.as_ref(), &issuer)? else {
        let asked = own.iter().fold(ReasonFlags::default(), |a, p| a | p.reasons);
        return Ok(Some(if points.is_none() { listed } else { listed & asked }));
    };
    let matching = own
        .iter()
        .filter(|p| p.names.iter().flatten().any(|n| names.contains(n)))
        .fold(ReasonFlags::default(), |a, p| a | p.reasons);
    Ok((!matching.is_empty()).then_some(listed & matching))
}
