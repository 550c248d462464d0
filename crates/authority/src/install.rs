//! The certificate that an external root issued for an issuing CA: checked first, and written only once nobody else has
//! anything against it. What was installed and is not in use yet may be installed anew, whatever cut the first time short.

use std::path::{Path, PathBuf};

use countersign_factory::ProvenKey;
use countersign_factory::request::pem;
use countersign_identity::CertificateFacts;
use countersign_identity::signed::{Signed, key_of};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::folder::{self, FolderError};
use crate::hierarchy::{Hierarchy, HierarchyError, IssuingAuthority};
use crate::keys::{ISSUING_KEY, KEY_STORE_FILE, KeyStore, Keys, NoTokens, ROOT_KEY, TokenKeys, Which};

/// What stands between the issuing CA and its root, from below, PEM. Not there if nothing does.
const INTERMEDIATES: &str = "intermediates.crt";

/// A chain that fits the key of a request, and is not written yet.
#[derive(Debug)]
pub struct Installable {
    folder: PathBuf,
    hierarchy: Hierarchy,
    issuing: CertificateDer<'static>,
    intermediates: Vec<CertificateDer<'static>>,
    root: CertificateDer<'static>,
}

impl Installable {
    /// The issuing CA's certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.issuing
    }

    /// Writes it, in place of what was installed before.
    ///
    /// # Errors
    /// [`HierarchyError`]; then it can be installed again.
    pub fn write(self, tokens: &dyn TokenKeys) -> Result<IssuingAuthority, HierarchyError> {
        let of = |certificate: &CertificateDer<'_>| pem("CERTIFICATE", certificate);
        write_intermediates(&self.folder, &self.intermediates)?;
        folder::write_private(&self.folder.join("root.crt"), of(&self.root).as_bytes())?;
        // Last: its presence says that all is there.
        folder::write_private(&self.folder.join("issuing.crt"), of(&self.issuing).as_bytes())?;
        IssuingAuthority::open_in(&self.folder, self.hierarchy, tokens)
    }
}

/// Keeps what stands between an issuing CA and its root, from below.
///
/// # Errors
/// [`FolderError`].
pub fn write_intermediates<T: AsRef<[u8]>>(folder: &Path, intermediates: &[T]) -> Result<(), FolderError> {
    let path = folder.join(INTERMEDIATES);
    let text: String = intermediates
        .iter()
        .map(|c| pem("CERTIFICATE", c.as_ref()))
        .collect();
    // Of a hierarchy that has none there is no file.
    if text.is_empty() && !path.exists() {
        return Ok(());
    }
    folder::write_private(&path, text.as_bytes())
}

/// What stands between an issuing CA and its root, from below, DER.
///
/// # Errors
/// [`HierarchyError`] if it is there and cannot be read.
pub fn intermediates(
    folder: &Path,
    hierarchy: Hierarchy,
) -> Result<Vec<CertificateDer<'static>>, HierarchyError> {
    let path = folder.join(INTERMEDIATES);
    if !path.exists() {
        return Ok(Vec::new());
    }
    CertificateDer::pem_slice_iter(&folder::read(&path)?)
        .collect::<Result<_, _>>()
        .map_err(|e| HierarchyError::Damaged {
            hierarchy,
            file: INTERMEDIATES,
            what: e.to_string(),
        })
}

impl IssuingAuthority {
    /// Whether a folder holds the key of a request for an external root, whose certificate is awaited or was installed.
    pub fn is_requested(folder: &Path) -> bool {
        !Self::has_own_root(folder)
            && (folder.join(KEY_STORE_FILE).exists() || folder.join(ISSUING_KEY).exists())
    }

    /// Whether a folder holds the key of a root that was made there.
    pub fn has_own_root(folder: &Path) -> bool {
        folder.join(ROOT_KEY).exists()
    }

    /// Checks the certificate that an external root issued for [`IssuingAuthority::request`]: PEM, the issuing CA's first,
    /// the root's last.
    ///
    /// # Errors
    /// [`HierarchyError::NotInstallable`] if it does not belong to the key, is no CA's, or the chain does not hold; and if
    /// the key cannot be reached. Nothing is written.
    pub fn check_install(
        folder: &Path,
        hierarchy: Hierarchy,
        chain: &[u8],
        tokens: &dyn TokenKeys,
    ) -> Result<Installable, HierarchyError> {
        let wrong = |what: &str| HierarchyError::NotInstallable(what.to_owned());
        let mut certificates = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| {
                wrong(&format!(
                    "it is no PEM: {e}; hint: give the issuing CA's first, the root's last"
                ))
            })?;
        let (Some(issuing), Some(root)) = (certificates.first().cloned(), certificates.last().cloned())
        else {
            return Err(wrong(
                "the file holds none in PEM; hint: give the issuing CA's first, the root's last",
            ));
        };
        let facts = CertificateFacts::parse(&issuing)?;
        let store = KeyStore::of(folder)?;
        let keys = Keys {
            folder,
            store: &store,
            tokens,
        };
        let key = keys.open(Which::Issuing)?;
        if ProvenKey::of(&*key).fingerprint()? != facts.public_key_sha256 {
            return Err(wrong(
                "the first one is for another key than the request's; hint: give the issuing CA's first, and if it is that, let the root issue it for the request that create --csr writes again",
            ));
        }
        if facts.ca.is_none() || facts.key_usage.is_some_and(|u| !u.key_cert_sign) {
            return Err(wrong(
                "it is no CA certificate; hint: let the root issue it with basicConstraints CA:TRUE and keyUsage keyCertSign and cRLSign",
            ));
        }
        if facts.subject_key_id.is_none() {
            return Err(wrong(
                "it has no subjectKeyIdentifier; hint: let the root issue it with one (subjectKeyIdentifier=hash)",
            ));
        }
        for pair in certificates.windows(2) {
            key_of(&pair[1])
                .and_then(|key| Signed::parse(&pair[0])?.verify(&key))
                .map_err(|e| {
                    wrong(&format!(
                        "the chain does not hold: {e}; hint: give each certificate before the one that issued it, the root's last"
                    ))
                })?;
        }
        // One certificate alone is its own root.
        let end = certificates.len().saturating_sub(1).max(1);
        let intermediates = certificates.drain(1..end).collect();
        Ok(Installable {
            folder: folder.to_owned(),
            hierarchy,
            issuing,
            intermediates,
            root,
        })
    }

    /// Installs it, with its key in a file.
    ///
    /// # Errors
    /// As [`IssuingAuthority::install_in`].
    pub fn install(folder: &Path, hierarchy: Hierarchy, chain: &[u8]) -> Result<Self, HierarchyError> {
        Self::install_in(folder, hierarchy, chain, &NoTokens)
    }

    /// The same for a key in any store.
    ///
    /// # Errors
    /// [`HierarchyError::Exists`] if there is one; else as [`IssuingAuthority::check_install`], and then nothing is written.
    pub fn install_in(
        folder: &Path,
        hierarchy: Hierarchy,
        chain: &[u8],
        tokens: &dyn TokenKeys,
    ) -> Result<Self, HierarchyError> {
        if folder.join("issuing.crt").exists() {
            return Err(HierarchyError::Exists(hierarchy));
        }
        Self::check_install(folder, hierarchy, chain, tokens)?.write(tokens)
    }
}
