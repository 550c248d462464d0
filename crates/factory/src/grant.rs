//! Grants: what an authority needs to mint. Fields are private; each constructor states what must have been checked.

use std::time::Duration;

use countersign_identity::certificate::KeyAlgorithm;
use countersign_identity::{DeviceId, TenantId};

use crate::profile::{KeyKind, NameFault, Names, Profile};
use crate::request::ProvenKey;

/// The lifetime of a server certificate.
pub const SERVER_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);

/// A device may be issued a certificate of one profile for a key it was proven to hold.
#[derive(Debug)]
pub struct EnrolmentGrant {
    tenant: TenantId,
    device: DeviceId,
    key: ProvenKey,
    profile: Profile,
    names: Names,
}

/// Why a device or its key does not fit a profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProfileMismatch {
    /// Too weak, or of a kind that is never accepted.
    #[error(
        "the key is too weak or of an unknown kind; hint: use P-256, P-384, Ed25519 or RSA of 2048 bits or more"
    )]
    Weak,
    /// A kind that this profile does not accept.
    #[error("the key is {kind}, profile {profile} accepts {accepted}; hint: make a key of such a kind")]
    Kind {
        /// The key's kind.
        kind: &'static str,
        /// The profile.
        profile: String,
        /// What it accepts.
        accepted: String,
    },
    /// The device cannot be named as this profile has it.
    #[error(transparent)]
    Name(#[from] NameFault),
}

impl EnrolmentGrant {
    /// For a device that the registry knows. The key is proven by its type; that the requester may have this device's
    /// certificate, and that the device exists in the tenant, is the caller's to check, the latter in the same
    /// transaction that will keep the certificate.
    ///
    /// # Errors
    /// [`ProfileMismatch`].
    pub fn new(
        tenant: TenantId,
        device: DeviceId,
        key: ProvenKey,
        profile: Profile,
    ) -> Result<Self, ProfileMismatch> {
        let kind = KeyKind::of(KeyAlgorithm::of(key.info())).ok_or(ProfileMismatch::Weak)?;
        if !profile.keys.contains(&kind) {
            let accepted: Vec<_> = profile.keys.iter().map(|k| k.name()).collect();
            return Err(ProfileMismatch::Kind {
                kind: kind.name(),
                profile: profile.name,
                accepted: accepted.join(", "),
            });
        }
        let names = profile.names(&tenant, &device)?;
        Ok(Self {
            tenant,
            device,
            key,
            profile,
            names,
        })
    }

    /// The tenant of the device.
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// The device.
    pub fn device(&self) -> &DeviceId {
        &self.device
    }

    /// Its key.
    pub fn key(&self) -> &ProvenKey {
        &self.key
    }

    /// What the certificate holds.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// What it calls the device.
    pub fn names(&self) -> &Names {
        &self.names
    }
}

/// This platform's own server may be issued a certificate for its host names.
#[derive(Debug)]
pub struct ServerGrant {
    host_names: Vec<String>,
    key: ProvenKey,
}

/// Why host names are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostNameFault {
    /// There is none.
    #[error("a server certificate needs at least one host name or IP address")]
    None,
    /// Not a host name.
    #[error("{0:?} is neither a host name (letters, digits, hyphens, dots) nor an IP address")]
    Invalid(String),
}

impl ServerGrant {
    /// For the host names and IP addresses that devices connect to.
    ///
    /// # Errors
    /// [`HostNameFault`] if there is none, or one is neither.
    pub fn new(host_names: &[String], key: ProvenKey) -> Result<Self, HostNameFault> {
        if host_names.is_empty() {
            return Err(HostNameFault::None);
        }
        for name in host_names {
            check_host_name(name)?;
        }
        Ok(Self {
            host_names: host_names.to_vec(),
            key,
        })
    }

    /// The host names and addresses.
    pub fn host_names(&self) -> &[String] {
        &self.host_names
    }

    /// The server's key.
    pub fn key(&self) -> &ProvenKey {
        &self.key
    }
}

/// Checks a host name (RFC 1123 section 2.1) or an IP address. A wildcard is neither.
///
/// # Errors
/// [`HostNameFault::Invalid`].
pub fn check_host_name(name: &str) -> Result<(), HostNameFault> {
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    let is_address = name.parse::<std::net::IpAddr>().is_ok();
    if is_address || (name.len() <= 253 && name.split('.').all(label)) {
        Ok(())
    } else {
        Err(HostNameFault::Invalid(name.to_owned()))
    }
}
