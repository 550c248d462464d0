//! What each kind of certificate holds (`protocols` of the field: RFC 5280, IEEE 802.1AR, RFC 9525).

use std::net::IpAddr;
use std::time::Duration;

use const_oid::{AssociatedOid, ObjectIdentifier};
use countersign_factory::tlv::{oid, sequence, tlv};
use countersign_factory::{ExtraExtension, Profile, ProfileKind};
use countersign_identity::StationId;
use countersign_identity::certificate::{ATTRIBUTE_COMMON_NAME, EKU_CLIENT_AUTH, EKU_SERVER_AUTH};
use der::Encode;
use der::asn1::{Ia5String, OctetString};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::constraints::name::GeneralSubtree;
use x509_cert::ext::pkix::crl::dp::DistributionPoint;
use x509_cert::ext::pkix::name::{DistributionPointName, GeneralName};
use x509_cert::ext::pkix::{
    AccessDescription, AuthorityInfoAccessSyntax, AuthorityKeyIdentifier, BasicConstraints,
    CrlDistributionPoints, ExtendedKeyUsage, KeyUsage, KeyUsages, NameConstraints, SubjectAltName,
    SubjectKeyIdentifier,
};

use crate::hierarchy::Hierarchy;

/// A root lasts as long as a fleet may.
pub(crate) const ROOT_LIFETIME: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// An issuing CA is replaced a few times within that.
pub(crate) const ISSUING_LIFETIME: Duration = Duration::from_secs(5 * 365 * 24 * 3600);
/// A factory CA lasts as long as what its stations make.
pub(crate) const FACTORY_LIFETIME: Duration = Duration::from_secs(15 * 365 * 24 * 3600);
/// Certificates begin a little in the past: clocks differ, and a device that is provisioned connects at once.
pub(crate) const BACKDATING: Duration = Duration::from_secs(5 * 60);

/// id-kp-OCSPSigning (RFC 5280 section 4.2.1.12).
const EKU_OCSP_SIGNING: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.9");
/// id-kp-timeStamping (RFC 5280 section 4.2.1.12).
const EKU_TIME_STAMPING: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.8");
/// id-pkix-ocsp-nocheck (RFC 6960 section 4.2.2.2.1).
const OCSP_NO_CHECK: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1.5");
/// id-ad-ocsp (RFC 5280 section 4.2.2.1).
pub(crate) const ACCESS_OCSP: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1");
/// id-ad-caIssuers (RFC 5280 section 4.2.2.1).
pub(crate) const ACCESS_CA_ISSUERS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.2");
const ATTRIBUTE_ORGANIZATION: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.10");

/// A name in DER: RDNs of one attribute each (RFC 5280 section 4.1.2.4).
fn name(rdns: &[Vec<u8>]) -> Vec<u8> {
    let parts: Vec<&[u8]> = rdns.iter().map(Vec::as_slice).collect();
    sequence(&parts)
}

/// X.690 section 8.
const SET: u8 = 0x31;
const UTF8_STRING: u8 = 0x0c;

fn utf8(id: ObjectIdentifier, text: &str) -> Vec<u8> {
    let value = tlv(UTF8_STRING, &[text.as_bytes()]);
    tlv(SET, &[&sequence(&[&oid(id), &value])])
}

/// The name of a CA: distinct in the world by its suffix.
pub(crate) fn ca_name(hierarchy: Hierarchy, kind: &str, label: &str, suffix: &str) -> Vec<u8> {
    // A common name has at most 64 characters (ub-common-name).
    let label: String = label.chars().take(20).collect();
    name(&[
        utf8(ATTRIBUTE_ORGANIZATION, "Countersign"),
        utf8(
            ATTRIBUTE_COMMON_NAME,
            &format!("{label} {hierarchy} {kind} CA {suffix}"),
        ),
    ])
}

/// Of an OCSP responder.
pub(crate) fn responder_name() -> Vec<u8> {
    name(&[
        utf8(ATTRIBUTE_ORGANIZATION, "Countersign"),
        utf8(ATTRIBUTE_COMMON_NAME, "OCSP responder"),
    ])
}

/// Of the key that signs time.
pub(crate) fn time_name() -> Vec<u8> {
    name(&[
        utf8(ATTRIBUTE_ORGANIZATION, "Countersign"),
        utf8(ATTRIBUTE_COMMON_NAME, "time"),
    ])
}

/// Of a proof of possession.
pub(crate) fn code_name(code: &str) -> Vec<u8> {
    name(&[utf8(ATTRIBUTE_COMMON_NAME, code)])
}

/// Only for people: clients look at the alternative names alone (RFC 9525 section 2).
pub(crate) fn server_name(host: &str) -> Vec<u8> {
    let host: String = host.chars().take(64).collect();
    name(&[utf8(ATTRIBUTE_COMMON_NAME, &host)])
}

/// Collects extensions in the order they are added, in DER.
#[derive(Debug, Default, Clone)]
pub(crate) struct Extensions(Vec<u8>);

impl Extensions {
    pub(crate) fn add<E: AssociatedOid + Encode>(
        &mut self,
        critical: bool,
        extension: &E,
    ) -> der::Result<()> {
        self.add_value(E::OID, critical, extension.to_der()?)
    }

    fn add_value(&mut self, extn_id: ObjectIdentifier, critical: bool, value: Vec<u8>) -> der::Result<()> {
        let extension = Extension {
            extn_id,
            critical,
            extn_value: OctetString::new(value)?,
        };
        extension.encode_to_vec(&mut self.0)?;
        Ok(())
    }

    /// One of a profile's own.
    pub(crate) fn add_own(&mut self, own: &ExtraExtension) -> der::Result<()> {
        self.add_value(own.oid, own.critical, own.value.clone())
    }

    /// A subjectAltName, of its value.
    pub(crate) fn add_names(&mut self, value: Vec<u8>) -> der::Result<()> {
        self.add_value(SubjectAltName::OID, false, value)
    }

    /// SEQUENCE OF Extension.
    pub(crate) fn to_der(&self) -> Vec<u8> {
        sequence(&[&self.0])
    }
}

pub(crate) fn authority_key(id: &[u8]) -> der::Result<AuthorityKeyIdentifier> {
    // Copied from the issuer's own extension, never computed: imported CAs compute theirs in other ways.
    Ok(AuthorityKeyIdentifier {
        key_identifier: Some(OctetString::new(id)?),
        ..Default::default()
    })
}

/// Of a CA (RFC 5280 section 4.2.1.9, 4.2.1.3).
pub(crate) fn ca(subject_key: &[u8], issuer_key: &[u8], path_length: Option<u8>) -> der::Result<Extensions> {
    let mut e = Extensions::default();
    e.add(
        true,
        &BasicConstraints {
            ca: true,
            path_len_constraint: path_length,
        },
    )?;
    e.add(true, &KeyUsage(KeyUsages::KeyCertSign | KeyUsages::CRLSign))?;
    e.add(false, &SubjectKeyIdentifier(OctetString::new(subject_key)?))?;
    e.add(false, &authority_key(issuer_key)?)?;
    Ok(e)
}

/// The name of a station's CA: distinct in the world by its suffix.
pub(crate) fn station_name(station: &StationId, suffix: &str) -> Vec<u8> {
    name(&[
        utf8(ATTRIBUTE_ORGANIZATION, "Countersign"),
        utf8(ATTRIBUTE_COMMON_NAME, &format!("{station} Station CA {suffix}")),
    ])
}

/// Of a station's CA: it issues client certificates only, none that names a host, and no CA. It also signs its journal,
/// hence digitalSignature (RFC 5280 section 4.2.1.3). No directoryName constraint: the path library refuses everything
/// below one.
pub(crate) fn station(subject_key: &[u8], issuer_key: &[u8]) -> der::Result<Extensions> {
    let mut e = Extensions::default();
    e.add(
        true,
        &BasicConstraints {
            ca: true,
            path_len_constraint: Some(0),
        },
    )?;
    e.add(
        true,
        &KeyUsage(KeyUsages::DigitalSignature | KeyUsages::KeyCertSign | KeyUsages::CRLSign),
    )?;
    e.add(false, &ExtendedKeyUsage(vec![EKU_CLIENT_AUTH]))?;
    e.add(true, &no_host_names()?)?;
    e.add(false, &SubjectKeyIdentifier(OctetString::new(subject_key)?))?;
    e.add(false, &authority_key(issuer_key)?)?;
    Ok(e)
}

/// All names of hosts, and all addresses of both families, excluded (RFC 5280 section 4.2.1.10).
pub(crate) fn no_host_names() -> der::Result<NameConstraints> {
    let all = |base| GeneralSubtree {
        base,
        minimum: 0,
        maximum: None,
    };
    Ok(NameConstraints {
        permitted_subtrees: None,
        excluded_subtrees: Some(vec![
            all(GeneralName::DnsName(Ia5String::new("")?)),
            all(GeneralName::IpAddress(OctetString::new([0; 8])?)),
            all(GeneralName::IpAddress(OctetString::new([0; 32])?)),
        ]),
    })
}

/// Of a device: no subjectKeyIdentifier, as the IoT profile asks. An operational one is for client authentication and
/// nothing else; a factory one names no purpose (IEEE 802.1AR-2018 section 8.10).
/// What a certificate says of its own device, [`Extensions::add_names`], comes after what all of them have.
pub(crate) fn device(issuer_key: &[u8], kind: ProfileKind) -> der::Result<Extensions> {
    let mut e = Extensions::default();
    e.add(true, &KeyUsage(KeyUsages::DigitalSignature.into()))?;
    if kind == ProfileKind::Operational {
        e.add(false, &ExtendedKeyUsage(vec![EKU_CLIENT_AUTH]))?;
    }
    e.add(false, &authority_key(issuer_key)?)?;
    Ok(e)
}

/// The same for a profile that has extensions of its own; `authority` is what `{authority}` stands for.
pub(crate) fn device_of(issuer_key: &[u8], profile: &Profile, authority: &str) -> der::Result<Extensions> {
    let mut e = device(issuer_key, profile.kind)?;
    let location = |url: &String| -> der::Result<GeneralName> {
        let url = url.replace("{authority}", authority);
        Ok(GeneralName::UniformResourceIdentifier(Ia5String::new(&url)?))
    };
    if !profile.crl_urls.is_empty() {
        // One point for each: URLs of one point would have to lead to the same list (RFC 5280 section 4.2.1.13).
        let points = profile.crl_urls.iter().map(|url| {
            Ok(DistributionPoint {
                distribution_point: Some(DistributionPointName::FullName(vec![location(url)?])),
                reasons: None,
                crl_issuer: None,
            })
        });
        e.add(false, &CrlDistributionPoints(points.collect::<der::Result<_>>()?))?;
    }
    let described = |method, url| -> der::Result<AccessDescription> {
        Ok(AccessDescription {
            access_method: method,
            access_location: location(url)?,
        })
    };
    let ocsp = profile.ocsp_urls.iter().map(|url| described(ACCESS_OCSP, url));
    let issuers = profile
        .ca_issuer_urls
        .iter()
        .map(|url| described(ACCESS_CA_ISSUERS, url));
    let access: Vec<_> = ocsp.chain(issuers).collect::<der::Result<_>>()?;
    if !access.is_empty() {
        e.add(false, &AuthorityInfoAccessSyntax(access))?;
    }
    for own in &profile.extensions {
        e.add_own(own)?;
    }
    Ok(e)
}

/// Of an OCSP responder (RFC 6960 section 4.2.2.2).
pub(crate) fn responder(issuer_key: &[u8]) -> der::Result<Extensions> {
    let mut e = Extensions::default();
    e.add(true, &KeyUsage(KeyUsages::DigitalSignature.into()))?;
    e.add(false, &ExtendedKeyUsage(vec![EKU_OCSP_SIGNING]))?;
    e.add(false, &authority_key(issuer_key)?)?;
    e.add_value(OCSP_NO_CHECK, false, der::asn1::Null.to_der()?)?;
    Ok(e)
}

/// Of the key that signs time: timeStamping, critical and alone (RFC 3161 section 2.3 has it so), so that it is no
/// server's.
pub(crate) fn time(issuer_key: &[u8]) -> der::Result<Extensions> {
    let mut e = Extensions::default();
    e.add(true, &KeyUsage(KeyUsages::DigitalSignature.into()))?;
    e.add(true, &ExtendedKeyUsage(vec![EKU_TIME_STAMPING]))?;
    e.add(false, &authority_key(issuer_key)?)?;
    Ok(e)
}

/// Of a server: its names are alternative names.
pub(crate) fn server(issuer_key: &[u8], hosts: &[String]) -> der::Result<Extensions> {
    let mut e = Extensions::default();
    e.add(true, &KeyUsage(KeyUsages::DigitalSignature.into()))?;
    e.add(false, &ExtendedKeyUsage(vec![EKU_SERVER_AUTH]))?;
    e.add(false, &authority_key(issuer_key)?)?;
    let names = hosts
        .iter()
        .map(|host| match host.parse::<IpAddr>() {
            Ok(IpAddr::V4(a)) => Ok(GeneralName::IpAddress(OctetString::new(a.octets())?)),
            Ok(IpAddr::V6(a)) => Ok(GeneralName::IpAddress(OctetString::new(a.octets())?)),
            Err(_) => Ok(GeneralName::DnsName(Ia5String::new(host)?)),
        })
        .collect::<der::Result<Vec<_>>>()?;
    e.add(false, &SubjectAltName(names))?;
    Ok(e)
}
