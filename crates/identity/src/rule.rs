//! Where an authority's certificates carry the device id.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::certificate::CertificateFacts;
use crate::id::{DeviceId, IdError};

/// Which field of a certificate names the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum IdentityField {
    /// The subject's common name (2.5.4.3); exactly one. What most brokers and clouds read.
    #[default]
    CommonName,
    /// The subject's serialNumber attribute (2.5.4.5), as IEEE 802.1AR section 8.6 has it; exactly one.
    SubjectSerialNumber,
    /// The only SAN of type URI; without a pattern its last segment after `:` or `/`.
    SanUri,
    /// The only SAN of type dNSName; without a pattern its first label.
    SanDns,
    /// hwSerialNum of the only SAN hardwareModuleName (RFC 4108 section 5): as it is if it is text, else in hex.
    HardwareModuleName,
}

impl IdentityField {
    /// All fields, for help texts.
    pub const ALL: [Self; 5] = [
        Self::CommonName,
        Self::SubjectSerialNumber,
        Self::SanUri,
        Self::SanDns,
        Self::HardwareModuleName,
    ];

    /// The field's name in configuration, store and output.
    pub fn name(self) -> &'static str {
        match self {
            Self::CommonName => "common-name",
            Self::SubjectSerialNumber => "subject-serial-number",
            Self::SanUri => "san-uri",
            Self::SanDns => "san-dns",
            Self::HardwareModuleName => "hardware-module-name",
        }
    }
}

impl IdentityField {
    fn values(self, certificate: &CertificateFacts) -> &[String] {
        match self {
            Self::CommonName => &certificate.subject_common_names,
            Self::SubjectSerialNumber => &certificate.subject_serial_numbers,
            Self::SanUri => &certificate.san_uris,
            Self::SanDns => &certificate.san_dns_names,
            Self::HardwareModuleName => &certificate.hardware_serials,
        }
    }
}

/// All that any rule may read of a certificate: what is kept of it for as long as a session lives, whose authority may be given
/// another rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IdentityFields(Box<[(IdentityField, Box<str>)]>);

impl IdentityFields {
    /// Those of a certificate. Two of a kind say that it is ambiguous; more say no more.
    pub fn of(certificate: &CertificateFacts) -> Self {
        let values = |field: IdentityField| {
            let kept = field.values(certificate).iter().take(2);
            kept.map(move |text| (field, text.as_str().into()))
        };
        Self(IdentityField::ALL.into_iter().flat_map(values).collect())
    }
}

impl fmt::Display for IdentityField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How the device id is read: a field, and what surrounds the id in it. Each authority has exactly one.
///
/// Written `FIELD` or `FIELD=PATTERN`, where the pattern holds `{id}` once, such as `san-uri=urn:dev:ops:{id}`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IdentityRule {
    field: IdentityField,
    pattern: Option<Pattern>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Pattern {
    before: Box<str>,
    after: Box<str>,
}

/// Why no device id could be read from a certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityFault {
    /// The field is not there.
    #[error("the certificate has no {0}")]
    Missing(IdentityField),
    /// The field is there more than once, so the identity would depend on who reads it.
    #[error("the certificate has more than one {0}")]
    Ambiguous(IdentityField),
    /// The field is not of the form that the authority's rule asks for.
    #[error("the certificate's identity is not of the form {0}")]
    OtherForm(IdentityRule),
    /// The field holds characters that no device id may have.
    #[error("the {field} is no device id: {source}")]
    Malformed {
        /// The field that was read.
        field: IdentityField,
        /// What is wrong with it.
        source: IdError,
    },
}

impl From<IdentityField> for IdentityRule {
    fn from(field: IdentityField) -> Self {
        Self { field, pattern: None }
    }
}

impl IdentityRule {
    /// Reads the device id.
    ///
    /// # Errors
    /// [`IdentityFault`] if the field is absent, repeated, of another form, or no device id.
    pub fn read(&self, certificate: &CertificateFacts) -> Result<DeviceId, IdentityFault> {
        self.read_from(self.field.values(certificate).iter().map(String::as_str))
    }

    /// The same from what is kept of a certificate.
    ///
    /// # Errors
    /// As for [`IdentityRule::read`].
    pub fn read_kept(&self, kept: &IdentityFields) -> Result<DeviceId, IdentityFault> {
        let of_field = kept.0.iter().filter(|(field, _)| *field == self.field);
        self.read_from(of_field.map(|(_, text)| &**text))
    }

    fn read_from<'a>(&self, mut values: impl Iterator<Item = &'a str>) -> Result<DeviceId, IdentityFault> {
        let text = match (values.next(), values.next()) {
            (None, _) => return Err(IdentityFault::Missing(self.field)),
            (Some(one), None) => one,
            (Some(_), Some(_)) => return Err(IdentityFault::Ambiguous(self.field)),
        };
        let id = match (&self.pattern, self.field) {
            (Some(p), _) => text
                .strip_prefix(&*p.before)
                .and_then(|t| t.strip_suffix(&*p.after))
                .ok_or_else(|| IdentityFault::OtherForm(self.clone()))?,
            (None, IdentityField::SanUri) => text.rsplit([':', '/']).next().unwrap_or(text),
            (None, IdentityField::SanDns) => text.split('.').next().unwrap_or(text),
            (None, _) => text,
        };
        DeviceId::new(id).map_err(|source| IdentityFault::Malformed {
            field: self.field,
            source,
        })
    }
}

impl fmt::Display for IdentityRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.field.name())?;
        match &self.pattern {
            Some(p) => write!(f, "={}{{id}}{}", p.before, p.after),
            None => Ok(()),
        }
    }
}

impl FromStr for IdentityRule {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let (name, pattern) = match s.split_once('=') {
            Some((name, pattern)) => (name, Some(pattern)),
            None => (s, None),
        };
        let field = IdentityField::ALL
            .into_iter()
            .find(|f| f.name() == name)
            .ok_or_else(|| {
                format!(
                    "{name:?} is no field of a certificate that names devices; there are {}",
                    IdentityField::ALL.map(IdentityField::name).join(", ")
                )
            })?;
        let pattern = match pattern {
            None => None,
            Some(text) => match text.split_once("{id}") {
                Some((before, after)) if !after.contains("{id}") => Some(Pattern {
                    before: before.into(),
                    after: after.into(),
                }),
                _ => return Err(format!("the pattern {text:?} must hold {{id}} exactly once")),
            },
        };
        Ok(Self { field, pattern })
    }
}

impl TryFrom<String> for IdentityRule {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

impl From<IdentityRule> for String {
    fn from(rule: IdentityRule) -> Self {
        rule.to_string()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, CustomExtension, DnType, KeyPair, SanType};

    use super::*;

    fn facts(params: &CertificateParams) -> CertificateFacts {
        let key = KeyPair::generate().unwrap();
        CertificateFacts::parse(params.self_signed(&key).unwrap().der()).unwrap()
    }

    fn read(rule: &str, facts: &CertificateFacts) -> Result<String, String> {
        let rule: IdentityRule = rule.parse()?;
        assert_eq!(rule.to_string().parse(), Ok(rule.clone()));
        let read = rule.read(facts);
        assert_eq!(rule.read_kept(&IdentityFields::of(facts)), read);
        read.map(|id| id.to_string()).map_err(|e| e.to_string())
    }

    #[test]
    fn each_field_is_read_and_patterns_must_fit_as_a_whole() {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "acme-SN-1-eu");
        params.subject_alt_names = vec![
            SanType::URI("urn:dev:ops:32473-SN-1".try_into().unwrap()),
            SanType::DnsName("sn-1.devices.example".try_into().unwrap()),
        ];
        let c = facts(&params);
        for (rule, expected) in [
            ("common-name", "acme-SN-1-eu"),
            ("common-name=acme-{id}-eu", "SN-1"),
            ("san-uri", "32473-SN-1"),
            ("san-uri=urn:dev:ops:32473-{id}", "SN-1"),
            ("san-dns", "sn-1"),
            ("san-dns={id}.devices.example", "sn-1"),
        ] {
            assert_eq!(read(rule, &c).as_deref(), Ok(expected), "{rule}");
        }
        assert!(
            read("common-name=other-{id}", &c)
                .unwrap_err()
                .contains("not of the form")
        );
        assert!(
            read("common-name=acme-SN-1-eu{id}", &c)
                .unwrap_err()
                .contains("no device id")
        );
        assert!(read("hardware-module-name", &c).unwrap_err().contains("has no"));
        for bad in ["email", "common-name=x", "common-name={id}{id}", ""] {
            assert!(bad.parse::<IdentityRule>().is_err(), "{bad}");
        }
    }

    /// SubjectAltName with one hardwareModuleName: hwType 1.3.6.1.4.1.1, hwSerialNum as given.
    fn hardware(serial: &[u8]) -> CertificateParams {
        let tlv = |tag: u8, value: &[u8]| {
            let mut out = vec![tag, u8::try_from(value.len()).unwrap()];
            out.extend_from_slice(value);
            out
        };
        let module = tlv(0x30, &[tlv(6, &[0x2b, 6, 1, 4, 1, 1]), tlv(4, serial)].concat());
        let oid = tlv(6, &[0x2b, 6, 1, 5, 5, 7, 8, 4]);
        let other_name = tlv(0xa0, &[oid, tlv(0xa0, &module)].concat());
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.custom_extensions = vec![CustomExtension::from_oid_content(
            &[2, 5, 29, 17],
            tlv(0x30, &other_name),
        )];
        params
    }

    #[test]
    fn the_hardware_serial_is_text_or_hex() {
        assert_eq!(
            read("hardware-module-name", &facts(&hardware(b"TPM-7"))).as_deref(),
            Ok("TPM-7")
        );
        assert_eq!(
            read("hardware-module-name", &facts(&hardware(&[0, 0xff, 7]))).as_deref(),
            Ok("00ff07")
        );
    }
}
