//! What a profile's certificates hold besides names and purpose: where to ask whether they are revoked, and extensions of
//! the operator's own.

use const_oid::ObjectIdentifier;
use serde::{Deserialize, Serialize};

use super::names::check_placeholders;
use crate::grant::check_host_name;

/// The most URLs of one kind, and the most extensions of the operator's own: a device sends them with every handshake.
const MOST: usize = 8;
/// The longest value of such an extension, in bytes.
const VALUE_MAX: usize = 1024;
/// How deep values lie in one another, at most.
const DEPTH_MAX: usize = 16;

/// What the CA decides, and so no profile: by the last number of id-ce (2.5.29): subjectKeyIdentifier, keyUsage,
/// subjectAltName, issuerAltName, basicConstraints, what belongs into revocation lists, nameConstraints,
/// cRLDistributionPoints, policyMappings, authorityKeyIdentifier, policyConstraints, extKeyUsage, freshestCRL,
/// inhibitAnyPolicy.
const DECIDED: [u8; 19] = [
    14, 15, 17, 18, 19, 20, 21, 24, 27, 28, 29, 30, 31, 33, 35, 36, 37, 46, 54,
];
/// authorityInfoAccess and subjectInfoAccess (RFC 5280 section 4.2.2), id-pkix-ocsp-nocheck (RFC 6960), and the poison of a
/// precertificate (RFC 6962).
const DECIDED_ELSEWHERE: [&str; 4] = [
    "1.3.6.1.5.5.7.1.1",
    "1.3.6.1.5.5.7.1.11",
    "1.3.6.1.5.5.7.48.1.5",
    "1.3.6.1.4.1.11129.2.4.3",
];

/// An extension of the operator's own, the same in every certificate of a profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct ExtraExtension {
    /// Which.
    pub oid: ObjectIdentifier,
    /// The DER of its value.
    pub value: Vec<u8>,
    /// Whether who does not know it must refuse the certificate. Our own door is one who would, so `true` is refused.
    pub critical: bool,
}

/// The same as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    oid: String,
    der: String,
    #[serde(default)]
    critical: bool,
}

impl TryFrom<Written> for ExtraExtension {
    type Error = String;
    fn try_from(written: Written) -> Result<Self, String> {
        let oid = ObjectIdentifier::new(&written.oid).map_err(|_| {
            format!(
                "extension {:?} is no object identifier, such as 1.3.6.1.4.1.99999.2",
                written.oid
            )
        })?;
        let value =
            hex::decode(&written.der).map_err(|e| format!("extension {oid}: der is not hexadecimal: {e}"))?;
        Ok(Self {
            oid,
            value,
            critical: written.critical,
        })
    }
}

impl From<ExtraExtension> for Written {
    fn from(extension: ExtraExtension) -> Self {
        Self {
            oid: extension.oid.to_string(),
            der: hex::encode(&extension.value),
            critical: extension.critical,
        }
    }
}

impl ExtraExtension {
    fn check(&self) -> Result<(), String> {
        let oid = self.oid;
        let is_decided = match oid.as_bytes() {
            [0x55, 0x1d, last] => DECIDED.contains(last),
            _ => DECIDED_ELSEWHERE.contains(&oid.to_string().as_str()),
        };
        if is_decided {
            return Err(format!(
                "extension {oid} is decided by the CA; names, crl_urls, ocsp_urls, ca_issuer_urls and kind say what it may hold"
            ));
        }
        if self.critical {
            return Err(format!(
                "extension {oid} is critical: who does not know a critical extension refuses the certificate, and this platform's own TLS does not know it; leave critical out"
            ));
        }
        if self.value.len() > VALUE_MAX || !is_der(&self.value) {
            return Err(format!(
                "extension {oid}: der must be one value in DER of at most {VALUE_MAX} bytes, such as 0c0461636d65 (UTF8String \"acme\")"
            ));
        }
        Ok(())
    }
}

/// Whether this is one value in DER, and so is all that is inside of it.
fn is_der(bytes: &[u8]) -> bool {
    rest_of(bytes, DEPTH_MAX) == Some(&[])
}

/// What follows the first value; `None` if there is none.
fn rest_of(bytes: &[u8], depth: usize) -> Option<&[u8]> {
    use der::{Decode, Reader, SliceReader, Tag};
    let mut reader = SliceReader::new(bytes).ok()?;
    let header = der::Header::decode(&mut reader).ok()?;
    let content = reader.read_slice(header.length()).ok()?;
    let rest = &bytes[usize::try_from(reader.position()).ok()?..];
    let is_sound = match header.tag() {
        tag if tag.is_constructed() => {
            let mut inside = content;
            while !inside.is_empty() {
                inside = rest_of(inside, depth.checked_sub(1)?)?;
            }
            true
        }
        Tag::Boolean => matches!(content, [0 | 0xff]),
        Tag::Null => content.is_empty(),
        Tag::Integer => match content {
            [] => false,
            [_] => true,
            [0, second, ..] => *second >= 0x80,
            [0xff, second, ..] => *second < 0x80,
            _ => true,
        },
        Tag::ObjectIdentifier => ObjectIdentifier::from_bytes(content).is_ok(),
        Tag::Utf8String => std::str::from_utf8(content).is_ok(),
        Tag::PrintableString => der::asn1::PrintableStringRef::new(content).is_ok(),
        Tag::Ia5String => content.is_ascii(),
        Tag::BitString => content.first().is_some_and(|unused| *unused < 8),
        _ => true,
    };
    is_sound.then_some(rest)
}

/// The URLs of one kind (RFC 5280 sections 4.2.1.13 and 4.2.2.1).
fn check_urls(key: &str, urls: &[String]) -> Result<(), String> {
    if urls.len() > MOST {
        return Err(format!("{key} has {} URLs, and there may be {MOST}", urls.len()));
    }
    for url in urls {
        check_placeholders(key, url, &["{authority}"])?;
        let rest = url
            .strip_prefix("http://")
            .or_else(|| url.strip_prefix("https://"))
            .unwrap_or_default();
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (authority, None),
        };
        let is_host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => check_host_name(host).is_ok(),
        };
        let is_port = port.is_none_or(|p| p.parse::<u16>().is_ok());
        let is_plain = url
            .bytes()
            .all(|b| b.is_ascii_graphic() && !b"\"<>\\^`|".contains(&b));
        if !is_host || !is_port || !is_plain || url.len() > 256 {
            return Err(format!(
                "{key} {url:?} is no URL of http or https with a host, of at most 256 characters"
            ));
        }
    }
    Ok(())
}

impl super::Profile {
    /// Whether its certificates have extensions that those of the built-in profiles do not have.
    pub fn has_own_extensions(&self) -> bool {
        self.has_urls() || !self.extensions.is_empty()
    }

    /// Whether its certificates say where to ask about them, or their issuer.
    pub fn has_urls(&self) -> bool {
        !(self.crl_urls.is_empty() && self.ocsp_urls.is_empty() && self.ca_issuer_urls.is_empty())
    }

    /// Whether the extensions that are alike in all certificates of a profile are those of another.
    pub fn has_extensions_of(&self, other: &Self) -> bool {
        self.kind == other.kind
            && self.crl_urls == other.crl_urls
            && self.ocsp_urls == other.ocsp_urls
            && self.ca_issuer_urls == other.ca_issuer_urls
            && self.extensions == other.extensions
    }

    pub(super) fn check_extensions(&self) -> Result<(), String> {
        check_urls("crl_urls", &self.crl_urls)?;
        check_urls("ocsp_urls", &self.ocsp_urls)?;
        check_urls("ca_issuer_urls", &self.ca_issuer_urls)?;
        if self.extensions.len() > MOST {
            return Err(format!(
                "extensions has {} entries, and there may be {MOST}",
                self.extensions.len()
            ));
        }
        for (n, extension) in self.extensions.iter().enumerate() {
            extension.check()?;
            if self.extensions[..n].iter().any(|e| e.oid == extension.oid) {
                return Err(format!("extension {} is there twice", extension.oid));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::is_der;

    #[test]
    fn one_value_in_der_is_told_from_anything_else() {
        for sound in [
            "0500",
            "0101ff",
            "0c0461636d65",
            "300a0c0461636d6502020080",
            "040100",
            "300b06092b060104018686bd1f",
        ] {
            assert!(is_der(&hex::decode(sound).unwrap()), "{sound}");
        }
        for broken in [
            "",         // nothing
            "05",       // no length
            "050000",   // something behind it
            "05000500", // two values
            "010101",   // a BOOLEAN that is neither 00 nor ff
            "02020001", // an INTEGER with a leading zero
            "0c02",     // cut short
            "3080",     // of indefinite length
            "3003050000",
            "0c02c328", // no UTF-8
            "04810100", // a length that could be shorter
        ] {
            assert!(!is_der(&hex::decode(broken).unwrap()), "{broken}");
        }
        let deep = (0..40).fold(vec![5, 0], |inner, _| crate::tlv::sequence(&[&inner]));
        assert!(!is_der(&deep), "nested without end");
    }
}
