//! A root and its issuing CA, kept in one folder: `root.crt`, `root.key`, `issuing.crt`, `issuing.key`.

use std::path::Path;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use countersign_factory::key::KeyFault;
use countersign_factory::request::pem;
use countersign_factory::{CertificateRequest, ProvenKey, SoftwareKey};
use countersign_identity::certificate::CertificateError;
use countersign_identity::signed::Signer;
use countersign_identity::{CertificateFacts, Timestamp};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use spki::SubjectPublicKeyInfoOwned;

use crate::folder::{self, FolderError};
use crate::mint::{self, MintError};
use crate::profile;

/// Which way trust points.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hierarchy {
    /// What devices trust: server certificates.
    Platform,
    /// What the platform trusts: device certificates.
    Devices,
}

impl Hierarchy {
    /// The name in folders, store and output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Platform => "platform",
            Self::Devices => "devices",
        }
    }
}

impl std::fmt::Display for Hierarchy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// Why a hierarchy cannot be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum HierarchyError {
    /// A file.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A key.
    #[error(transparent)]
    Key(#[from] KeyFault),
    /// A certificate that is not one.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// Its own CA certificates cannot be minted.
    #[error(transparent)]
    Mint(#[from] Box<MintError>),
    /// A file is there but its content is not what belongs there.
    #[error("{file} of the {hierarchy} hierarchy is damaged: {what}; restore it from your backup")]
    Damaged {
        /// Which hierarchy.
        hierarchy: Hierarchy,
        /// Which file.
        file: &'static str,
        /// What is wrong.
        what: String,
    },
    /// There is one already.
    #[error("the {0} hierarchy exists already; it is never overwritten")]
    Exists(Hierarchy),
}

/// The issuing CA of one hierarchy, with its key. The root's key is not loaded: nothing here needs it.
pub struct IssuingAuthority {
    pub(crate) hierarchy: Hierarchy,
    pub(crate) key: Box<dyn Signer>,
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) facts: CertificateFacts,
    /// The key of `certificate`: what its signatures are verified with.
    pub(crate) public_key: SubjectPublicKeyInfoOwned,
    root: CertificateDer<'static>,
}

impl std::fmt::Debug for IssuingAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IssuingAuthority")
            .field("hierarchy", &self.hierarchy)
            .field("certificate", &self.facts.fingerprint)
            .finish_non_exhaustive()
    }
}

impl IssuingAuthority {
    /// Makes root and issuing CA in `folder`, which must not hold any yet. `label` tells people whose they are.
    ///
    /// # Errors
    /// [`HierarchyError::Exists`] if there is one; any other leaves files that the next try overwrites.
    pub fn create(
        folder: &Path,
        hierarchy: Hierarchy,
        label: &str,
        now: Timestamp,
    ) -> Result<Self, HierarchyError> {
        if folder.join("issuing.crt").exists() {
            return Err(HierarchyError::Exists(hierarchy));
        }
        folder::create_private(folder)?;
        let (root_key, issuing_key) = (SoftwareKey::generate()?, SoftwareKey::generate()?);
        // Globally distinct names: two CAs of one name would be tried for each other's certificates.
        let suffix = random_suffix()?;
        let root = mint::root(
            &root_key,
            profile::ca_name(hierarchy, "Root", label, &suffix),
            now,
        )
        .map_err(Box::new)?;
        let root_facts = CertificateFacts::parse(&root)?;
        let issuing = mint::issuing(
            (&root_key, &root, &root_facts),
            &issuing_key,
            profile::ca_name(hierarchy, "Issuing", label, &suffix),
            now,
        )
        .map_err(Box::new)?;
        folder::write_private(&folder.join("root.key"), root_key.to_pem().as_bytes())?;
        folder::write_private(&folder.join("root.crt"), pem("CERTIFICATE", &root).as_bytes())?;
        folder::write_private(&folder.join("issuing.key"), issuing_key.to_pem().as_bytes())?;
        // Last: its presence says that all is there.
        folder::write_private(
            &folder.join("issuing.crt"),
            pem("CERTIFICATE", &issuing).as_bytes(),
        )?;
        Self::open(folder, hierarchy)
    }

    /// Makes the key of an issuing CA whose certificate an external root will issue. The request for it, PEM. Safe to
    /// repeat: the key stays the same.
    ///
    /// # Errors
    /// [`HierarchyError::Exists`] if it has its certificate already.
    pub fn request(folder: &Path, hierarchy: Hierarchy, label: &str) -> Result<String, HierarchyError> {
        if folder.join("issuing.crt").exists() {
            return Err(HierarchyError::Exists(hierarchy));
        }
        folder::create_private(folder)?;
        let path = folder.join("issuing.key");
        if !path.exists() {
            folder::write_private(&path, SoftwareKey::generate()?.to_pem().as_bytes())?;
        }
        let key = read_key(&path, hierarchy)?;
        Ok(CertificateRequest::with_name(
            &key,
            &format!("{label} {hierarchy} Issuing CA"),
        )?)
    }

    /// Installs the certificate that an external root issued for [`IssuingAuthority::request`]: PEM, the issuing CA's
    /// first, the root's last.
    ///
    /// # Errors
    /// [`HierarchyError::Damaged`] if it does not belong to the key, is no CA's, or the chain does not hold; then
    /// nothing is written.
    pub fn install(folder: &Path, hierarchy: Hierarchy, chain: &[u8]) -> Result<Self, HierarchyError> {
        if folder.join("issuing.crt").exists() {
            return Err(HierarchyError::Exists(hierarchy));
        }
        let wrong = |what: &str| HierarchyError::Damaged {
            hierarchy,
            file: "the certificate to install",
            what: what.to_owned(),
        };
        let certificates = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| wrong(&e.to_string()))?;
        let (Some(issuing), Some(root)) = (certificates.first(), certificates.last()) else {
            return Err(wrong("it holds no certificate in PEM"));
        };
        let facts = CertificateFacts::parse(issuing)?;
        let key = read_key(&folder.join("issuing.key"), hierarchy)?;
        if ProvenKey::of(&key).fingerprint()? != facts.public_key_sha256 {
            return Err(wrong("it is for another key than the request's"));
        }
        if facts.ca.is_none() || facts.key_usage.is_some_and(|u| !u.key_cert_sign) {
            return Err(wrong("it is no CA certificate with keyUsage keyCertSign"));
        }
        if facts.subject_key_id.is_none() {
            return Err(wrong("it has no subjectKeyIdentifier"));
        }
        for pair in certificates.windows(2) {
            countersign_identity::signed::key_of(&pair[1])
                .and_then(|key| countersign_identity::signed::Signed::parse(&pair[0])?.verify(&key))
                .map_err(|e| wrong(&format!("the chain does not hold: {e}")))?;
        }
        folder::write_private(&folder.join("root.crt"), pem("CERTIFICATE", root).as_bytes())?;
        folder::write_private(
            &folder.join("issuing.crt"),
            pem("CERTIFICATE", issuing).as_bytes(),
        )?;
        Self::open(folder, hierarchy)
    }

    /// Opens what [`IssuingAuthority::create`] made.
    ///
    /// # Errors
    /// [`HierarchyError`] if a file is missing, exposed or damaged, or key and certificate do not belong together.
    pub fn open(folder: &Path, hierarchy: Hierarchy) -> Result<Self, HierarchyError> {
        let damaged = |file: &'static str, what: String| HierarchyError::Damaged {
            hierarchy,
            file,
            what,
        };
        let certificate = |file: &'static str| -> Result<CertificateDer<'static>, HierarchyError> {
            let bytes = folder::read(&folder.join(file))?;
            CertificateDer::from_pem_slice(&bytes).map_err(|e| damaged(file, e.to_string()))
        };
        let root = certificate("root.crt")?;
        let issuing = certificate("issuing.crt")?;
        let key = read_key(&folder.join("issuing.key"), hierarchy)?;
        let facts = CertificateFacts::parse(&issuing)?;
        if ProvenKey::of(&key).fingerprint()? != facts.public_key_sha256 {
            return Err(damaged("issuing.key", "it is not the key of issuing.crt".into()));
        }
        let public_key = countersign_identity::signed::key_of(&issuing)
            .map_err(|e| damaged("issuing.crt", e.to_string()))?;
        Ok(Self {
            hierarchy,
            key: Box::new(key),
            public_key,
            certificate: issuing,
            facts,
            root,
        })
    }

    /// Which hierarchy it belongs to.
    pub fn hierarchy(&self) -> Hierarchy {
        self.hierarchy
    }

    /// The issuing CA's certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// What it says.
    pub fn facts(&self) -> &CertificateFacts {
        &self.facts
    }

    /// The root's certificate: for `platform`, what devices pin.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }
}

fn read_key(path: &Path, hierarchy: Hierarchy) -> Result<SoftwareKey, HierarchyError> {
    let key = zeroize::Zeroizing::new(folder::read_private(path)?);
    let key = PrivatePkcs8KeyDer::from_pem_slice(&key).map_err(|e| HierarchyError::Damaged {
        hierarchy,
        file: "issuing.key",
        what: e.to_string(),
    })?;
    Ok(SoftwareKey::from_pkcs8(key.secret_pkcs8_der())?)
}

fn random_suffix() -> Result<String, KeyFault> {
    let mut bytes = [0; 5];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| KeyFault::Failed)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}
