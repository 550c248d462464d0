//! The identity folder: `device.crt` (certificate and intermediates), `device.key`, `platform-root.crt` (what is pinned)
//! and `device.json` (id, host, port).

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use countersign_identity::{CertificateFacts, DeviceId, Timestamp};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

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
    /// The platform root it trusts, and nothing else.
    pub platform_root: CertificateDer<'static>,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl std::fmt::Debug for DeviceIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceIdentity")
            .field("profile", &self.profile)
            .finish_non_exhaustive()
    }
}

impl DeviceIdentity {
    /// Loads an identity folder.
    ///
    /// # Errors
    /// [`IdentityFault`] with the file that is wrong.
    pub fn load(folder: &Path) -> Result<Self, IdentityFault> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).map_err(|source| IdentityFault::Unreadable { path, source })
        };
        let damaged = |name: &str, what: String| IdentityFault::Damaged {
            path: folder.join(name),
            what,
        };
        let profile: DeviceProfile = serde_json::from_slice(&read("device.json")?)
            .map_err(|e| damaged("device.json", e.to_string()))?;
        let chain = CertificateDer::pem_slice_iter(&read("device.crt")?)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| damaged("device.crt", e.to_string()))?;
        let Some(leaf) = chain.first() else {
            return Err(damaged("device.crt", "it holds no certificate in PEM".into()));
        };
        let facts = CertificateFacts::parse(leaf).map_err(|e| damaged("device.crt", e.to_string()))?;
        let key_path = folder.join("device.key");
        let key = read("device.key")?;
        let mode = std::fs::metadata(&key_path)
            .map(|m| m.mode() & 0o777)
            .unwrap_or(0);
        if mode & 0o077 != 0 {
            return Err(IdentityFault::Exposed { path: key_path, mode });
        }
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|e| damaged("device.key", e.to_string()))?;
        let platform_root = CertificateDer::from_pem_slice(&read("platform-root.crt")?)
            .map_err(|e| damaged("platform-root.crt", e.to_string()))?;
        Ok(Self {
            profile,
            chain,
            facts,
            platform_root,
            key,
        })
    }

    /// What is odd about it that can be told without connecting, for people.
    pub fn oddities(&self, now: Timestamp) -> Vec<String> {
        let mut found = Vec::new();
        if !self.facts.is_valid_at(now) {
            found.push(format!(
                "this device's clock says {now}, and its certificate is valid from {} to {}",
                self.facts.not_before, self.facts.not_after
            ));
        }
        if !self
            .facts
            .subject_common_names
            .iter()
            .any(|n| n == self.profile.id.as_str())
        {
            found.push(format!(
                "device.json says {}, the certificate's common name is {}",
                self.profile.id,
                self.facts.subject_common_names.join(", ")
            ));
        }
        found
    }
}
