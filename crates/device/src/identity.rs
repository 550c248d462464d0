//! What a device is: its certificate and key, the platform roots it pins, and where it connects.

use std::path::{Path, PathBuf};

use countersign_identity::{CertificateFacts, DeviceId, TenantId};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::clock::DeviceClock;
use crate::disk;
use crate::folder::IdentityFolder;
use crate::keys::{DeviceKey, KeyStore, KeyStoreFault};

/// Where to connect, as `device.json` has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceProfile {
    /// The device id: MQTT client id, and a level of its topics.
    pub id: DeviceId,
    /// The platform's host name, as in its certificate.
    pub host: String,
    /// The platform's port.
    pub port: u16,
    /// The tenant; `default` if none is named.
    #[serde(default = "TenantId::default_tenant")]
    pub tenant: TenantId,
    /// The port for enrolment at the same host; without it the certificate cannot be renewed over the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enrol_port: Option<u16>,
    /// The profile to renew by; the platform's first if none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_profile: Option<String>,
    /// Where the keys of its next certificates are made; in the folder if nothing is said.
    #[serde(default, skip_serializing_if = "KeyStore::is_file")]
    pub key_store: KeyStore,
    /// Whether its TPM says of each new key how it is held; not if nothing is said.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub attest: bool,
}

/// Why an identity folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityFault {
    /// A file cannot be read.
    #[error("cannot read {}: {source}; hint: an identity folder holds device.crt, device.key, platform-root.crt and device.json", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// A file's content is not what belongs there.
    #[error("{} is not what belongs there: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {}; hint: {}; what was there before is still in use", path.display(), disk::what(source), disk::cure(source))]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// There is an identity already.
    #[error("{} holds an identity already; hint: countersign-agent renew gives it a new certificate, enrol --again replaces it once the new one has connected", .0.display())]
    Exists(PathBuf),
    /// A certificate came for another key or another device than was asked for.
    #[error("the certificate that came is not ours: {0}; hint: ask the platform's operator")]
    NotOurs(String),
    /// The key cannot be made or used.
    #[error("the key of {} cannot be used: {source}", path.display())]
    Key {
        /// The key file.
        path: PathBuf,
        /// Why.
        source: KeyStoreFault,
    },
    /// Others may read the key.
    #[error("others may read {} (mode {mode:03o}); hint: chmod 600 {}", path.display(), path.display())]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
}

/// A device's identity, loaded.
pub struct DeviceIdentity {
    /// Who it is and where it connects.
    pub profile: DeviceProfile,
    /// Its certificate first, then intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    /// What its certificate says.
    pub facts: CertificateFacts,
    /// The platform roots it trusts, and nothing else: one, or two while the platform's root is being replaced.
    pub platform_roots: Vec<CertificateDer<'static>>,
    /// The time, as far as it is known.
    pub clock: DeviceClock,
    pub(crate) key: DeviceKey,
}

impl std::fmt::Debug for DeviceIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceIdentity")
            .field("profile", &self.profile)
            .finish_non_exhaustive()
    }
}

impl DeviceIdentity {
    /// Loads an identity folder: the certificate and key that are in use.
    ///
    /// # Errors
    /// [`IdentityFault`] with the file that is wrong.
    pub fn load(folder: &Path) -> Result<Self, IdentityFault> {
        IdentityFolder::new(folder).load()
    }

    /// What is odd about it that can be told without connecting, for people.
    pub fn oddities(&self) -> Vec<String> {
        let mut found = Vec::new();
        let now = self.clock.now();
        if self.clock.is_behind() {
            found.push(format!(
                "this device's clock is behind what was known before; {now} is taken in its place"
            ));
        }
        if !self.facts.is_valid_at(now) {
            found.push(format!(
                "this device's clock says {now}, and its certificate is valid from {} to {}",
                self.facts.not_before, self.facts.not_after
            ));
        }
        // Where a platform reads the id from is the authority's rule.
        let facts = &self.facts;
        let id = self.profile.id.as_str();
        let names = [
            &facts.subject_common_names,
            &facts.subject_serial_numbers,
            &facts.san_dns_names,
            &facts.hardware_serials,
        ];
        let is_named =
            names.into_iter().flatten().any(|n| n == id) || facts.san_uris.iter().any(|uri| uri.contains(id));
        if !is_named {
            found.push(format!(
                "device.json says {id}, and the certificate does not name it: its subject is {:?}",
                facts.subject_text
            ));
        }
        found
    }
}
