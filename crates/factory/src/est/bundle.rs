//! What a device is to trust, and where it connects.
//!
//! EST's `cacerts` (RFC 7030 section 4.1) is one set of certificates. A device must not pin all of them: whoever holds a
//! CA of the devices' hierarchy would be the platform to it. So the two hierarchies are told apart here.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign_identity::CertificateFacts;
use serde::{Deserialize, Serialize};

/// The largest bundle that a device reads, in bytes.
pub const BUNDLE_BYTES_MAX: usize = 256 * 1024;
/// The most platform roots that a device pins.
pub const ROOTS_MAX: usize = 8;

/// What a device is to trust, and where it connects; JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// The platform's roots, DER in base64: what devices pin.
    platform: Vec<String>,
    /// The tenant's own CAs that are admitted, issuing CAs and roots, DER in base64. Never to be pinned.
    devices: Vec<String>,
    /// The platform's host name, as in its certificate.
    pub host: String,
    /// The device port.
    pub port: u16,
}

/// Why a bundle is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleFault {
    /// Not a bundle.
    #[error("not a trust bundle: {0}")]
    Malformed(String),
    /// It has no platform root, or more than a device pins.
    #[error("the trust bundle has {0} platform roots; 1 to {ROOTS_MAX} are taken")]
    Count(usize),
    /// A platform root that may issue nothing.
    #[error("the trust bundle's platform root {0:?} is no CA certificate")]
    NoCa(String),
}

impl Bundle {
    /// Of certificates in DER.
    pub fn new(platform: &[Vec<u8>], devices: &[Vec<u8>], host: String, port: u16) -> Self {
        let text = |list: &[Vec<u8>]| list.iter().map(|der| STANDARD.encode(der)).collect();
        Self {
            platform: text(platform),
            devices: text(devices),
            host,
            port,
        }
    }

    /// The platform's roots, DER, each a CA certificate.
    ///
    /// # Errors
    /// [`BundleFault`].
    pub fn platform_roots(&self) -> Result<Vec<Vec<u8>>, BundleFault> {
        if self.platform.is_empty() || self.platform.len() > ROOTS_MAX {
            return Err(BundleFault::Count(self.platform.len()));
        }
        let roots = decode(&self.platform)?;
        for root in &roots {
            let facts = CertificateFacts::parse(root).map_err(|e| BundleFault::Malformed(e.to_string()))?;
            if facts.ca.is_none() || facts.key_usage.is_some_and(|u| !u.key_cert_sign) {
                return Err(BundleFault::NoCa(facts.subject_text));
            }
        }
        Ok(roots)
    }

    /// The tenant's own CAs, DER.
    ///
    /// # Errors
    /// [`BundleFault::Malformed`].
    pub fn device_authorities(&self) -> Result<Vec<Vec<u8>>, BundleFault> {
        decode(&self.devices)
    }
}

fn decode(list: &[String]) -> Result<Vec<Vec<u8>>, BundleFault> {
    list.iter()
        .map(|text| {
            STANDARD
                .decode(text)
                .map_err(|e| BundleFault::Malformed(e.to_string()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ca_certificates_are_roots() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        let leaf = params.self_signed(&key).unwrap().der().to_vec();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&key).unwrap().der().to_vec();
        let of = |platform: &[Vec<u8>]| Bundle::new(platform, &[], "h".into(), 1).platform_roots();
        assert_eq!(of(std::slice::from_ref(&root)), Ok(vec![root.clone()]));
        assert!(matches!(of(&[root.clone(), leaf]), Err(BundleFault::NoCa(_))));
        assert!(matches!(of(&[b"x".to_vec()]), Err(BundleFault::Malformed(_))));
        assert_eq!(of(&[]), Err(BundleFault::Count(0)));
        assert_eq!(of(&vec![root; 9]), Err(BundleFault::Count(9)));
    }
}
