//! Rules that every certificate is held against before it is signed, on the very bytes that will be signed.

use const_oid::AssociatedOid;
use countersign_factory::{EnrolmentGrant, ExtraExtension, Profile, ProfileKind};
use countersign_identity::certificate::{
    ATTRIBUTE_COMMON_NAME, CertificateView, EKU_CLIENT_AUTH, EKU_SERVER_AUTH,
};
use der::Decode;
use der::referenced::OwnedToRef;
use spki::AlgorithmIdentifierOwned;
use x509_cert::certificate::Version;
use x509_cert::ext::pkix::crl::dp::DistributionPoint;
use x509_cert::ext::pkix::name::{DistributionPointName, GeneralName};
use x509_cert::ext::pkix::{
    AuthorityInfoAccessSyntax, AuthorityKeyIdentifier, BasicConstraints, CrlDistributionPoints,
    ExtendedKeyUsage, KeyUsage, KeyUsages, NameConstraints, SubjectKeyIdentifier,
};

use super::Leaf;
use crate::hierarchy::{Hierarchy, IssuingAuthority};
use crate::profile;

fn rule(holds: bool, text: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(text.to_owned()) }
}

fn extension<'a, E>(tbs: &CertificateView<'a>) -> Result<Option<(bool, E)>, String>
where
    E: Decode<'a, Error = der::Error> + AssociatedOid,
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
    leaf: Leaf<'_>,
) -> Result<(), String> {
    let kind = match leaf {
        Leaf::Device(grant) => grant.profile().kind,
        Leaf::Server => ProfileKind::Operational,
    };
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
    let key_id = extension::<AuthorityKeyIdentifier>(tbs)?.and_then(|(_, a)| a.key_identifier);
    rule(
        key_id.as_ref().map(|k| k.as_bytes()) == issuer.facts.subject_key_id.as_deref(),
        "the authorityKeyIdentifier is the issuer's subjectKeyIdentifier",
    )?;
    match (issuer.hierarchy, leaf) {
        (Hierarchy::Devices, Leaf::Device(grant)) => lint_device(tbs, issuer, grant),
        (Hierarchy::Platform, Leaf::Server) => Ok(()),
        _ => Err("devices' certificates are below devices, servers' below platform".into()),
    }
}

/// What a profile says of its certificates: names and extensions, these and no others. Hosts are named only as it has it.
fn lint_device(
    tbs: &CertificateView<'_>,
    issuer: &IssuingAuthority,
    grant: &EnrolmentGrant,
) -> Result<(), String> {
    grant.names().check(tbs).map_err(str::to_owned)?;
    let profile = grant.profile();
    // keyUsage and authorityKeyIdentifier are in every one, and were looked at.
    let mut expected = 2 + usize::from(profile.kind == ProfileKind::Operational);
    expected += usize::from(grant.names().has_alternative());
    if profile.has_own_extensions() {
        expected += lint_own(tbs, issuer, profile)?;
    }
    rule(
        tbs.extensions.len() == expected,
        "the extensions are the profile's, and no others",
    )?;
    let is_known = |critical: bool, id| !critical || id == KeyUsage::OID;
    rule(
        tbs.extensions.iter().all(|e| is_known(e.critical, e.id)),
        "of a device's certificate only keyUsage is critical",
    )
}

/// How many extensions a profile has of its own, all of which are there as it has them.
fn lint_own(
    tbs: &CertificateView<'_>,
    issuer: &IssuingAuthority,
    profile: &Profile,
) -> Result<usize, String> {
    let name = issuer.id.as_ref().map_or("", |id| id.as_str());
    let is_url = |name_of: &GeneralName, url: &String| {
        matches!(name_of, GeneralName::UniformResourceIdentifier(found)
            if found.as_str() == url.replace("{authority}", name))
    };
    let points = extension::<CrlDistributionPoints>(tbs)?
        .map(|(_, points)| points.0)
        .unwrap_or_default();
    let is_point = |(point, url): (&DistributionPoint, &String)| {
        point.reasons.is_none()
            && point.crl_issuer.is_none()
            && matches!(&point.distribution_point, Some(DistributionPointName::FullName(names))
                if matches!(names.as_slice(), [one] if is_url(one, url)))
    };
    rule(
        points.len() == profile.crl_urls.len() && points.iter().zip(&profile.crl_urls).all(is_point),
        "cRLDistributionPoints has the crl_urls of the profile, one for each point",
    )?;
    let access = extension::<AuthorityInfoAccessSyntax>(tbs)?
        .map(|(_, access)| access.0)
        .unwrap_or_default();
    let of_method = |method| access.iter().filter(move |a| a.access_method == method);
    let are_at = |method, urls: &[String]| {
        of_method(method).count() == urls.len()
            && of_method(method)
                .zip(urls)
                .all(|(a, url)| is_url(&a.access_location, url))
    };
    rule(
        access.len() == profile.ocsp_urls.len() + profile.ca_issuer_urls.len()
            && are_at(profile::ACCESS_OCSP, &profile.ocsp_urls)
            && are_at(profile::ACCESS_CA_ISSUERS, &profile.ca_issuer_urls),
        "authorityInfoAccess has the ocsp_urls and ca_issuer_urls of the profile",
    )?;
    let is_there = |own: &ExtraExtension| {
        let mut found = tbs.extensions.iter().filter(|e| e.id == own.oid);
        matches!((found.next(), found.next()), (Some(e), None) if e.value == own.value && e.critical == own.critical)
    };
    rule(
        profile.extensions.iter().all(is_there),
        "each extension of the profile is there once, as it is configured",
    )?;
    Ok(usize::from(!points.is_empty()) + usize::from(!access.is_empty()) + profile.extensions.len())
}
