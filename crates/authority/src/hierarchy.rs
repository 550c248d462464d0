//! A root and its issuing CA, kept in one folder: `root.crt`, `issuing.crt`, what an external root has between the two
//! (`intermediates.crt`), and the keys as [`crate::keys`] has it:
//! `root.key` and `issuing.key`, or `key-store.toml`, which tells where they are.

use std::path::Path;
use std::sync::{OnceLock, RwLock};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use countersign_factory::key::KeyFault;
use countersign_factory::request::pem;
use countersign_factory::{CertificateRequest, Profile, ProvenKey};
use countersign_identity::certificate::CertificateError;
use countersign_identity::signed::{Signer, VerifyingKey};
use countersign_identity::{AuthorityId, CertificateFacts, Timestamp};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::folder::{self, FolderError};
use crate::install;
use crate::keys::{KeyStore, KeyStoreError, Keys, NoTokens, TokenKeys, Which};
use crate::mint::{self, MintError, Reach};
use crate::profile::{self, Extensions};

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
    /// What holds the key.
    #[error(transparent)]
    Store(#[from] KeyStoreError),
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
    /// What an external root issued cannot be used.
    #[error("the certificate is not installed: {0}")]
    NotInstallable(String),
    /// There is one already.
    #[error("the {0} hierarchy exists already; it is never overwritten")]
    Exists(Hierarchy),
}

/// The issuing CA of one hierarchy, with its key. The root's key is not loaded: nothing here needs it.
pub struct IssuingAuthority {
    pub(crate) hierarchy: Hierarchy,
    pub(crate) key: Box<dyn Signer>,
    store: KeyStore,
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) facts: CertificateFacts,
    /// The key of `certificate`: what its signatures are verified with.
    pub(crate) verifying: VerifyingKey,
    /// What all device certificates of one kind have, once the first was asked for.
    pub(crate) operational: OnceLock<Extensions>,
    pub(crate) factory: OnceLock<Extensions>,
    /// The same for profiles that have extensions of their own.
    pub(crate) own: RwLock<Vec<(Profile, Extensions)>>,
    /// What it goes by in the registry, for URLs that name it.
    pub(crate) id: Option<AuthorityId>,
    intermediates: Vec<CertificateDer<'static>>,
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
    /// Makes root and issuing CA in `folder`, which must not hold any yet, with their keys in files. `label` tells people
    /// whose they are.
    ///
    /// # Errors
    /// [`HierarchyError::Exists`] if there is one; any other leaves files that the next try overwrites.
    pub fn create(
        folder: &Path,
        hierarchy: Hierarchy,
        label: &str,
        now: Timestamp,
    ) -> Result<Self, HierarchyError> {
        Self::create_in(folder, hierarchy, label, now, &KeyStore::File, &NoTokens)
    }

    /// The same with the keys in a store of choice. In a token the root's key has the issuing CA's name with `-root`
    /// after it.
    ///
    /// # Errors
    /// [`HierarchyError::Exists`] if there is one; any other leaves what the next try, with the same store, goes on from.
    pub fn create_in(
        folder: &Path,
        hierarchy: Hierarchy,
        label: &str,
        now: Timestamp,
        store: &KeyStore,
        tokens: &dyn TokenKeys,
    ) -> Result<Self, HierarchyError> {
        Self::create_reaching(folder, hierarchy, label, Reach::Leaves, now, store, tokens)
    }

    /// Makes root and factory CA of the `devices` hierarchy in files: it issues stations, and nothing else.
    ///
    /// # Errors
    /// As for [`IssuingAuthority::create_in`].
    pub fn create_factory(folder: &Path, label: &str, now: Timestamp) -> Result<Self, HierarchyError> {
        Self::create_factory_in(folder, label, now, &KeyStore::File, &NoTokens)
    }

    /// The same with the keys in a store of choice.
    ///
    /// # Errors
    /// As for [`IssuingAuthority::create_in`].
    pub fn create_factory_in(
        folder: &Path,
        label: &str,
        now: Timestamp,
        store: &KeyStore,
        tokens: &dyn TokenKeys,
    ) -> Result<Self, HierarchyError> {
        let hierarchy = Hierarchy::Devices;
        Self::create_reaching(folder, hierarchy, label, Reach::Stations, now, store, tokens)
    }

    fn create_reaching(
        folder: &Path,
        hierarchy: Hierarchy,
        label: &str,
        reach: Reach,
        now: Timestamp,
        store: &KeyStore,
        tokens: &dyn TokenKeys,
    ) -> Result<Self, HierarchyError> {
        if folder.join("issuing.crt").exists() {
            return Err(HierarchyError::Exists(hierarchy));
        }
        folder::create_private(folder)?;
        // A key of that name in the token is ours only if an earlier try said so here.
        let is_repeated = KeyStore::of(folder)? == *store;
        store.keep(folder)?;
        let keys = Keys {
            folder,
            store,
            tokens,
        };
        let root_key = keys.make(Which::Root, is_repeated)?;
        let issuing_key = keys.make(Which::Issuing, is_repeated)?;
        // Globally distinct names: two CAs of one name would be tried for each other's certificates.
        let suffix = random_suffix()?;
        let root = mint::root(
            &*root_key,
            &profile::ca_name(hierarchy, "Root", label, &suffix),
            now,
        )
        .map_err(Box::new)?;
        let root_facts = CertificateFacts::parse(&root)?;
        let kind = match reach {
            Reach::Leaves => "Issuing",
            Reach::Stations => "Factory",
        };
        let issuing = mint::issuing(
            (&*root_key, &root, &root_facts),
            &*issuing_key,
            &profile::ca_name(hierarchy, kind, label, &suffix),
            reach,
            now,
        )
        .map_err(Box::new)?;
        folder::write_private(&folder.join("root.crt"), pem("CERTIFICATE", &root).as_bytes())?;
        // Last: its presence says that all is there.
        folder::write_private(
            &folder.join("issuing.crt"),
            pem("CERTIFICATE", &issuing).as_bytes(),
        )?;
        Self::open_in(folder, hierarchy, tokens)
    }

    /// Makes the key of an issuing CA whose certificate an external root will issue. The request for it, PEM. Safe to
    /// repeat: the key stays the same.
    ///
    /// # Errors
    /// [`HierarchyError::Exists`] if there is a hierarchy with a root of its own, or whose key is held elsewhere.
    pub fn request(folder: &Path, hierarchy: Hierarchy, label: &str) -> Result<String, HierarchyError> {
        Self::request_in(folder, hierarchy, label, &KeyStore::File, &NoTokens)
    }

    /// The same with the key in a store of choice. A key of that name that a token holds already is used: a key ceremony
    /// may have made it.
    ///
    /// # Errors
    /// As [`IssuingAuthority::request`].
    pub fn request_in(
        folder: &Path,
        hierarchy: Hierarchy,
        label: &str,
        store: &KeyStore,
        tokens: &dyn TokenKeys,
    ) -> Result<String, HierarchyError> {
        folder::create_private(folder)?;
        let keys = Keys {
            folder,
            store,
            tokens,
        };
        let is_there = KeyStore::of(folder)? == *store && keys.is_there(Which::Issuing);
        // One that was installed may be asked for again: it may be the wrong one.
        if Self::has_own_root(folder) || folder.join("issuing.crt").exists() && !is_there {
            return Err(HierarchyError::Exists(hierarchy));
        }
        store.keep(folder)?;
        let key = if is_there {
            keys.open(Which::Issuing)?
        } else {
            keys.make(Which::Issuing, true)?
        };
        Ok(CertificateRequest::with_name(
            &*key,
            &format!("{label} {hierarchy} Issuing CA"),
        )?)
    }

    /// Opens what [`IssuingAuthority::create`] made.
    ///
    /// # Errors
    /// [`HierarchyError`] if a file is missing, exposed or damaged, or key and certificate do not belong together.
    pub fn open(folder: &Path, hierarchy: Hierarchy) -> Result<Self, HierarchyError> {
        Self::open_in(folder, hierarchy, &NoTokens)
    }

    /// The same with the key in any store.
    ///
    /// # Errors
    /// As [`IssuingAuthority::open`], and if the key cannot be reached.
    pub fn open_in(
        folder: &Path,
        hierarchy: Hierarchy,
        tokens: &dyn TokenKeys,
    ) -> Result<Self, HierarchyError> {
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
        let store = KeyStore::of(folder)?;
        let keys = Keys {
            folder,
            store: &store,
            tokens,
        };
        let key = keys.open(Which::Issuing)?;
        let facts = CertificateFacts::parse(&issuing)?;
        if ProvenKey::of(&*key).fingerprint()? != facts.public_key_sha256 {
            return Err(damaged("the key", "it is not the key of issuing.crt".into()));
        }
        let verifying = countersign_identity::signed::key_of(&issuing)
            .and_then(|public| VerifyingKey::new(&public, key.algorithm().oid))
            .map_err(|e| damaged("issuing.crt", e.to_string()))?;
        Ok(Self {
            hierarchy,
            key,
            store,
            verifying,
            operational: OnceLock::new(),
            factory: OnceLock::new(),
            own: RwLock::default(),
            id: None,
            certificate: issuing,
            facts,
            intermediates: install::intermediates(folder, hierarchy)?,
            root,
        })
    }

    /// A station's CA, on the station: its key, its certificate, and the factory CA that issued it.
    ///
    /// # Errors
    /// [`HierarchyError::Damaged`] if they do not belong together.
    pub fn station(
        key: Box<dyn Signer>,
        certificate: CertificateDer<'static>,
        factory: CertificateDer<'static>,
    ) -> Result<Self, HierarchyError> {
        let wrong = |what: &str| HierarchyError::Damaged {
            hierarchy: Hierarchy::Devices,
            file: "the station's certificate",
            what: what.to_owned(),
        };
        let facts = CertificateFacts::parse(&certificate)?;
        if ProvenKey::of(&*key).fingerprint()? != facts.public_key_sha256 {
            return Err(wrong("it is for another key than this station's"));
        }
        if facts.ca.is_none_or(|c| c.path_length != Some(0)) {
            return Err(wrong("it is no CA certificate with path length 0"));
        }
        countersign_identity::signed::key_of(&factory)
            .and_then(|key| countersign_identity::signed::Signed::parse(&certificate)?.verify(&key))
            .map_err(|e| wrong(&format!("the factory CA did not sign it: {e}")))?;
        let verifying = countersign_identity::signed::key_of(&certificate)
            .and_then(|public| VerifyingKey::new(&public, key.algorithm().oid))
            .map_err(|e| wrong(&e.to_string()))?;
        Ok(Self {
            hierarchy: Hierarchy::Devices,
            key,
            verifying,
            operational: OnceLock::new(),
            factory: OnceLock::new(),
            own: RwLock::default(),
            id: None,
            certificate,
            facts,
            intermediates: Vec::new(),
            root: factory,
            store: KeyStore::File,
        })
    }

    /// The same with what it goes by in the registry: what `{authority}` in the URLs of a profile stands for.
    #[must_use]
    pub fn named(mut self, id: AuthorityId) -> Self {
        self.id = Some(id);
        self
    }

    /// Signs something worthless and checks the signature: whether the key can be reached and is the certificate's.
    ///
    /// # Errors
    /// [`MintError`] with its cure.
    pub fn check_key(&self) -> Result<(), MintError> {
        mint::check_key(&self.certificate, &*self.key)
    }

    /// Where its key is held.
    pub fn key_store(&self) -> &KeyStore {
        &self.store
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

    /// What stands between the issuing CA and its root, from below.
    pub fn intermediates(&self) -> &[CertificateDer<'static>] {
        &self.intermediates
    }

    /// The root's certificate: for `platform`, what devices pin.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }
}

pub(crate) fn random_suffix() -> Result<String, KeyFault> {
    let mut bytes = [0; 5];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| KeyFault::Failed)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}
