//! What a certificate calls its device: the subject, and the alternative names. Declared as templates, filled in for one
//! device, written as DER, and looked for again in what was prepared.

use std::fmt;
use std::str::FromStr;

use const_oid::ObjectIdentifier;
use countersign_identity::certificate::{
    ATTRIBUTE_COMMON_NAME, ATTRIBUTE_SERIAL_NUMBER, CertificateView, HARDWARE_MODULE_NAME,
};
use countersign_identity::{CertificateFacts, DeviceId, TenantId};
use der::asn1::PrintableStringRef;
use der::{Decode, Encode};
use serde::{Deserialize, Serialize};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use crate::grant::check_host_name;
use crate::tlv::{oid, sequence, tlv};

/// Organization and organizational unit have at most 64 characters (RFC 5280 appendix A.1, ub-organization-name).
const ORGANIZATION_MAX: usize = 64;
const ATTRIBUTE_ORGANIZATION: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.10");
const ATTRIBUTE_ORGANIZATIONAL_UNIT: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.11");
const SET: u8 = 0x31;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const OCTET_STRING: u8 = 0x04;
/// GeneralName (RFC 5280 section 4.2.1.6): otherName [0], dNSName [2], uniformResourceIdentifier [6].
const OTHER_NAME: u8 = 0xa0;
const DNS_NAME: u8 = 0x82;
const URI: u8 = 0x86;

/// An alternative name as a profile declares it: `uri:…` and `dns:…` with `{tenant}` and `{id}`, or
/// `hardware-module-name:` and the object identifier of the kind of hardware.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SanTemplate {
    /// uniformResourceIdentifier.
    Uri(String),
    /// dNSName.
    Dns(String),
    /// hardwareModuleName (RFC 4108 section 5) with this hwType; hwSerialNum is the device id.
    HardwareModuleName(ObjectIdentifier),
}

impl FromStr for SanTemplate {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("uri", template)) => uri(template).map(Self::Uri),
            Some(("dns", template)) => dns(template).map(Self::Dns),
            Some(("hardware-module-name", kind)) => ObjectIdentifier::new(kind)
                .map(Self::HardwareModuleName)
                .map_err(|_| {
                    format!("san {text:?}: {kind:?} is no object identifier, such as 1.3.6.1.4.1.99999.1")
                }),
            _ => Err(format!(
                "san {text:?} is of no kind that there is; write uri:URI, dns:HOST (with {{tenant}} and {{id}}) or hardware-module-name:OID"
            )),
        }
    }
}

fn uri(template: &str) -> Result<String, String> {
    let scheme = template.split(':').next().unwrap_or_default();
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    // RFC 3986: what stands in a URI as it is; `{}` of the placeholders is checked by itself.
    let is_of_uri = |b: u8| b.is_ascii_graphic() && !b"\"<>\\^`|".contains(&b);
    if template.contains(':') && is_scheme && template.bytes().all(is_of_uri) && template.contains("{id}") {
        check_placeholders("san", template, &["{tenant}", "{id}"])?;
        return Ok(template.to_owned());
    }
    Err(format!(
        "san \"uri:{template}\" must be an absolute URI with {{id}} in it, such as uri:urn:dev:{{tenant}}:{{id}}"
    ))
}

fn dns(template: &str) -> Result<String, String> {
    check_placeholders("san", template, &["{tenant}", "{id}"])?;
    // What is filled in may be no label; what stands around it must be able to be part of one.
    let example = template.replace("{tenant}", "t").replace("{id}", "d");
    if template.contains("{id}") && is_host(&example) {
        return Ok(template.to_owned());
    }
    Err(format!(
        "san \"dns:{template}\" must be a host name with {{id}} in it, such as dns:{{id}}.devices.example.com"
    ))
}

/// Letters, digits, hyphens and dots, and no address.
fn is_host(name: &str) -> bool {
    name.parse::<std::net::IpAddr>().is_err() && check_host_name(name).is_ok()
}

/// Whether all that stands in braces is something to be filled in.
pub(super) fn check_placeholders(key: &str, template: &str, known: &[&str]) -> Result<(), String> {
    let rest = known.iter().fold(template.to_owned(), |t, k| t.replace(k, ""));
    if rest.contains(['{', '}']) {
        return Err(format!(
            "{key} {template:?} has something in braces that is not filled in; there is {}",
            known.join(" ")
        ));
    }
    Ok(())
}

impl fmt::Display for SanTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uri(template) => write!(f, "uri:{template}"),
            Self::Dns(template) => write!(f, "dns:{template}"),
            Self::HardwareModuleName(kind) => write!(f, "hardware-module-name:{kind}"),
        }
    }
}

impl TryFrom<String> for SanTemplate {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<SanTemplate> for String {
    fn from(san: SanTemplate) -> Self {
        san.to_string()
    }
}

/// Stands where a configuration still has `san_uri`: it is never there, and whoever writes it is told what to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Replaced;

impl<'de> Deserialize<'de> for Replaced {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer).unwrap_or_default();
        let instead = match text.as_str() {
            "" => "san = []".to_owned(),
            uri => format!("san = [\"uri:{uri}\"]"),
        };
        Err(serde::de::Error::custom(format!(
            "there is no key san_uri any more; write {instead}"
        )))
    }
}

/// A name that cannot stand in a certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NameFault(String);

/// An alternative name of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AlternativeName {
    /// uniformResourceIdentifier.
    Uri(String),
    /// dNSName.
    Dns(String),
    /// hardwareModuleName, with its hwType; hwSerialNum is the device id.
    HardwareModule(ObjectIdentifier),
}

/// What the certificate of one device calls it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    organization: Option<String>,
    unit: Option<String>,
    device: DeviceId,
    /// The device id as the subject's serialNumber too.
    has_serial: bool,
    alternative: Vec<AlternativeName>,
}

fn filled(template: &str, tenant: &TenantId, device: &DeviceId) -> String {
    template
        .replace("{tenant}", tenant.as_str())
        .replace("{id}", device.as_str())
}

impl super::Profile {
    /// The names of one device.
    ///
    /// # Errors
    /// [`NameFault`] if one of them, filled in, is none.
    pub fn names(&self, tenant: &TenantId, device: &DeviceId) -> Result<Names, NameFault> {
        let organization = |key: &str, template: &str| {
            if template.is_empty() {
                return Ok(None);
            }
            let text = filled(template, tenant, device);
            if text.chars().count() > ORGANIZATION_MAX {
                return Err(NameFault(format!(
                    "profile {}: {key} of device {device} would be {text:?}, and it has at most {ORGANIZATION_MAX} characters; hint: make {key} of the profile shorter",
                    self.name
                )));
            }
            Ok(Some(text))
        };
        let alternative = |san: &SanTemplate| match san {
            SanTemplate::Uri(template) => Ok(AlternativeName::Uri(filled(template, tenant, device))),
            SanTemplate::Dns(template) => {
                let host = filled(template, tenant, device);
                if !is_host(&host) {
                    return Err(NameFault(format!(
                        "profile {} would name device {device} {host:?}, which is no host name (labels of 1 to 63 letters, digits and hyphens); hint: give the device an id that can be part of one, or issue by a profile without dns: in san",
                        self.name
                    )));
                }
                Ok(AlternativeName::Dns(host))
            }
            SanTemplate::HardwareModuleName(kind) => Ok(AlternativeName::HardwareModule(*kind)),
        };
        Ok(Names {
            organization: organization("organization", &self.organization)?,
            unit: organization("organizational_unit", &self.organizational_unit)?,
            device: device.clone(),
            // A PrintableString, which has no underscore: such an id stands in CN alone.
            has_serial: self.serial_number && PrintableStringRef::new(device.as_str()).is_ok(),
            alternative: self.san.iter().map(alternative).collect::<Result<_, _>>()?,
        })
    }
}

fn rdn(id: ObjectIdentifier, kind: u8, text: &str) -> Vec<u8> {
    let value = tlv(kind, &[text.as_bytes()]);
    tlv(SET, &[&sequence(&[&oid(id), &value])])
}

impl Names {
    /// The subject's attributes in their order.
    fn attributes(&self) -> impl Iterator<Item = (ObjectIdentifier, u8, &str)> {
        let device = self.device.as_str();
        [
            self.organization
                .as_deref()
                .map(|text| (ATTRIBUTE_ORGANIZATION, UTF8_STRING, text)),
            self.unit
                .as_deref()
                .map(|text| (ATTRIBUTE_ORGANIZATIONAL_UNIT, UTF8_STRING, text)),
            Some((ATTRIBUTE_COMMON_NAME, UTF8_STRING, device)),
            // IEEE 802.1AR section 8.6.
            self.has_serial
                .then_some((ATTRIBUTE_SERIAL_NUMBER, PRINTABLE_STRING, device)),
        ]
        .into_iter()
        .flatten()
    }

    /// The subject, DER: RDNs of one attribute each (RFC 5280 section 4.1.2.4).
    pub fn subject(&self) -> Vec<u8> {
        let rdns: Vec<Vec<u8>> = self
            .attributes()
            .map(|(id, kind, text)| rdn(id, kind, text))
            .collect();
        let parts: Vec<&[u8]> = rdns.iter().map(Vec::as_slice).collect();
        sequence(&parts)
    }

    /// Whether there are alternative names.
    pub fn has_alternative(&self) -> bool {
        !self.alternative.is_empty()
    }

    /// The value of subjectAltName, DER; `None` if there are no alternative names.
    pub fn alternative(&self) -> Option<Vec<u8>> {
        let names: Vec<Vec<u8>> = self
            .alternative
            .iter()
            .map(|name| self.general_name(name))
            .collect();
        let parts: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
        self.has_alternative().then(|| sequence(&parts))
    }

    fn general_name(&self, name: &AlternativeName) -> Vec<u8> {
        match name {
            AlternativeName::Uri(uri) => tlv(URI, &[uri.as_bytes()]),
            AlternativeName::Dns(host) => tlv(DNS_NAME, &[host.as_bytes()]),
            AlternativeName::HardwareModule(kind) => {
                let serial = tlv(OCTET_STRING, &[self.device.as_str().as_bytes()]);
                let module = sequence(&[&oid(*kind), &serial]);
                tlv(OTHER_NAME, &[&oid(HARDWARE_MODULE_NAME), &tlv(0xa0, &[&module])])
            }
        }
    }

    /// Whether these are the names in a certificate, and all of them, read by the X.509 library's types.
    ///
    /// # Errors
    /// Which are not.
    pub fn check(&self, certificate: &CertificateView<'_>) -> Result<(), &'static str> {
        let mut found = certificate.subject.attributes.iter();
        let is_subject = self.attributes().all(|(id, _, text)| {
            found
                .next()
                .is_some_and(|a| a.id == id && a.text().is_some_and(|t| t == text))
        });
        if !is_subject || found.next().is_some() {
            return Err("the subject is the profile's for this device, and nothing else");
        }
        let found = certificate
            .extension::<SubjectAltName>()
            .map_err(|_| "the alternative names can be read")?;
        let is_critical = found.as_ref().is_some_and(|(critical, _)| *critical);
        let found = found.map(|(_, names)| names.0).unwrap_or_default();
        let are_alternative = found.len() == self.alternative.len()
            && self.alternative.iter().zip(&found).all(|pair| self.is_same(pair));
        if !are_alternative || is_critical {
            return Err("the alternative names are the profile's for this device, and nothing else");
        }
        Ok(())
    }

    fn is_same(&self, (name, found): (&AlternativeName, &GeneralName)) -> bool {
        match (name, found) {
            (AlternativeName::Uri(uri), GeneralName::UniformResourceIdentifier(found)) => {
                found.as_str() == uri
            }
            (AlternativeName::Dns(host), GeneralName::DnsName(found)) => found.as_str() == host,
            (AlternativeName::HardwareModule(kind), GeneralName::OtherName(found)) => {
                found.type_id == HARDWARE_MODULE_NAME
                    && found
                        .value
                        .to_der()
                        .ok()
                        .and_then(|der| HardwareModule::from_der(&der).ok())
                        .is_some_and(|module| {
                            module.hw_type == *kind
                                && module.hw_serial_num.as_bytes() == self.device.as_str().as_bytes()
                        })
            }
            _ => false,
        }
    }

    /// Whether a certificate that was signed and parsed says these names to whoever reads its facts.
    pub fn are_in(&self, facts: &CertificateFacts) -> bool {
        let device = self.device.as_str();
        let mut uris = facts.san_uris.iter();
        let mut hosts = facts.san_dns_names.iter();
        let mut serials = facts.hardware_serials.iter();
        let are_alternative = self.alternative.iter().all(|name| match name {
            AlternativeName::Uri(uri) => uris.next() == Some(uri),
            AlternativeName::Dns(host) => hosts.next() == Some(host),
            AlternativeName::HardwareModule(_) => serials.next().is_some_and(|s| s == device),
        });
        are_alternative
            && (uris.next(), hosts.next(), serials.next()) == (None, None, None)
            && facts.subject_common_names == [device]
            && facts.subject_serial_numbers.len() == usize::from(self.has_serial)
            && facts.subject_serial_numbers.iter().all(|s| s == device)
    }
}

/// HardwareModuleName ::= SEQUENCE { hwType OBJECT IDENTIFIER, hwSerialNum OCTET STRING } (RFC 4108 section 5).
#[derive(der::Sequence)]
struct HardwareModule {
    hw_type: ObjectIdentifier,
    hw_serial_num: der::asn1::OctetString,
}
