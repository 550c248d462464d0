//! Where an authority's certificates carry the device id.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::certificate::CertificateFacts;
use crate::id::{DeviceId, IdError};

/// Which field of a certificate names the device. Each authority has exactly one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IdentityRule {
    /// The subject's common name (2.5.4.3); exactly one. What most brokers and clouds read.
    #[default]
    CommonName,
    /// The subject's serialNumber attribute (2.5.4.5), as IEEE 802.1AR section 8.6 has it; exactly one.
    SubjectSerialNumber,
    /// The last segment after `:` or `/` of the only SAN of type URI.
    SanUri,
    /// The first label of the only SAN of type dNSName.
    SanDns,
}

/// Why no device id could be read from a certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityFault {
    /// The field is not there.
    #[error("the certificate has no {0}")]
    Missing(IdentityRule),
    /// The field is there more than once, so the identity would depend on who reads it.
    #[error("the certificate has more than one {0}")]
    Ambiguous(IdentityRule),
    /// The field holds characters that no device id may have.
    #[error("the {rule} is no device id: {source}")]
    Malformed {
        /// The field that was read.
        rule: IdentityRule,
        /// What is wrong with it.
        source: IdError,
    },
}

impl IdentityRule {
    /// All rules, for help texts.
    pub const ALL: [Self; 4] = [
        Self::CommonName,
        Self::SubjectSerialNumber,
        Self::SanUri,
        Self::SanDns,
    ];

    /// The rule's name in configuration, store and output.
    pub fn name(self) -> &'static str {
        match self {
            Self::CommonName => "common-name",
            Self::SubjectSerialNumber => "subject-serial-number",
            Self::SanUri => "san-uri",
            Self::SanDns => "san-dns",
        }
    }

    /// Reads the device id.
    ///
    /// # Errors
    /// [`IdentityFault`] if the field is absent, repeated, or no device id.
    pub fn read(self, certificate: &CertificateFacts) -> Result<DeviceId, IdentityFault> {
        let field = match self {
            Self::CommonName => &certificate.subject_common_names,
            Self::SubjectSerialNumber => &certificate.subject_serial_numbers,
            Self::SanUri => &certificate.san_uris,
            Self::SanDns => &certificate.san_dns_names,
        };
        let text = match field.as_slice() {
            [] => return Err(IdentityFault::Missing(self)),
            [one] => one.as_str(),
            _ => return Err(IdentityFault::Ambiguous(self)),
        };
        let text = match self {
            Self::CommonName | Self::SubjectSerialNumber => text,
            Self::SanUri => text.rsplit([':', '/']).next().unwrap_or(text),
            Self::SanDns => text.split('.').next().unwrap_or(text),
        };
        DeviceId::new(text).map_err(|source| IdentityFault::Malformed { rule: self, source })
    }
}

impl fmt::Display for IdentityRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for IdentityRule {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|r| r.name() == s).ok_or_else(|| {
            format!(
                "{s:?} is no identity rule; there are {}",
                Self::ALL.map(Self::name).join(", ")
            )
        })
    }
}
