//! Rules that every certificate is held against before it is signed, on the very bytes that will be signed.

use countersign_factory::ProfileKind;
use countersign_identity::certificate::{
    ATTRIBUTE_COMMON_NAME, CertificateView, EKU_CLIENT_AUTH, EKU_SERVER_AUTH,
};
use der::Decode;
use der::referenced::OwnedToRef;
use spki::AlgorithmIdentifierOwned;
use x509_cert::certificate::Version;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, NameConstraints,
    SubjectAltName, SubjectKeyIdentifier,
};

use crate::hierarchy::{Hierarchy, IssuingAuthority};
use crate::profile;

fn rule(holds: bool, text: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(text.to_owned()) }
}

fn extension<'a, E>(tbs: &CertificateView<'a>) -> Result<Option<(bool, E)>, String>
where
    E: Decode<'a, Error = der::Error> + const_oid::AssociatedOid,
{
    tbs.extension::<E>().map_err(|e| e.to_string())
}

/// What holds for every certificate (RFC 5280 section 4.1).
pub(super) fn lint_all(
    tbs: &CertificateView<'_>,
    algorithm: &AlgorithmIdentifierOwned,
) -> Result<(), String> {
    rule(tbs.version == Version::V3, "the version is v3")?;
    let serial = tbs.serial_number.as_bytes();
    rule(
        serial.len() == 16 && serial[0] != 0 && serial[0] < 0x80,
        "the serial number has 16 octets and is positive",
    )?;
    rule(
        tbs.signature == algorithm.owned_to_ref(),
        "the signature algorithm is the signing key's",
    )?;
    let (from, to) = (
        tbs.validity.not_before.to_unix_duration(),
        tbs.validity.not_after.to_unix_duration(),
    );
    rule(from < to, "notBefore is before notAfter")?;
    let subject = &tbs.subject.attributes;
    rule(
        !subject.is_empty() && !tbs.issuer.attributes.is_empty(),
        "subject and issuer are not empty",
    )?;
    let names = subject.iter().filter(|a| a.id == ATTRIBUTE_COMMON_NAME);
    rule(names.count() == 1, "the subject has one common name")
}

fn no_server_names(tbs: &CertificateView<'_>) -> Result<bool, String> {
    let names = extension::<SubjectAltName>(tbs)?
        .map(|(_, n)| n.0)
        .unwrap_or_default();
    Ok(names
        .iter()
        .all(|n| !matches!(n, GeneralName::DnsName(_) | GeneralName::IpAddress(_))))
}

pub(super) fn lint_ca(tbs: &CertificateView<'_>) -> Result<(), String> {
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

/// What a station's CA is: of the shortest reach that still works.
pub(super) fn lint_station(tbs: &CertificateView<'_>, issuer: &IssuingAuthority) -> Result<(), String> {
    let constraints = extension::<BasicConstraints>(tbs)?;
    rule(
        constraints.is_some_and(|(critical, c)| critical && c.ca && c.path_len_constraint == Some(0)),
        "a station's CA has critical basicConstraints with cA and path length 0",
    )?;
    let usage = extension::<KeyUsage>(tbs)?;
    rule(
        usage.is_some_and(|(critical, u)| {
            critical && u.0 == KeyUsages::DigitalSignature | KeyUsages::KeyCertSign | KeyUsages::CRLSign
        }),
        "a station's CA has critical keyUsage digitalSignature, keyCertSign and cRLSign",
    )?;
    let purposes = extension::<ExtendedKeyUsage>(tbs)?.map(|(_, e)| e.0);
    rule(
        purposes.as_deref() == Some(&[EKU_CLIENT_AUTH]),
        "a station's CA has the extKeyUsage clientAuth, alone",
    )?;
    let names = extension::<NameConstraints>(tbs)?;
    rule(
        names.is_some_and(|(critical, n)| critical && profile::no_host_names().is_ok_and(|all| all == n)),
        "a station's CA has critical nameConstraints that exclude all dNSNames and iPAddresses, and nothing else",
    )?;
    rule(
        extension::<SubjectKeyIdentifier>(tbs)?.is_some(),
        "a CA has a subjectKeyIdentifier",
    )?;
    let end = tbs.validity.not_after.to_unix_duration().as_secs();
    rule(
        i64::try_from(end).is_ok_and(|end| end <= issuer.facts.not_after.unix_s()),
        "a station's CA does not outlive the factory CA",
    )?;
    let key_id = extension::<AuthorityKeyIdentifier>(tbs)?.and_then(|(_, a)| a.key_identifier);
    rule(
        key_id.as_ref().map(|k| k.as_bytes()) == issuer.facts.subject_key_id.as_deref(),
        "the authorityKeyIdentifier is the issuer's subjectKeyIdentifier",
    )
}

pub(super) fn lint_leaf(
    tbs: &CertificateView<'_>,
    issuer: &IssuingAuthority,
    kind: ProfileKind,
) -> Result<(), String> {
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
