//! The server's own certificate: issued by the platform hierarchy and renewed by itself, or brought along.

use std::path::{Path, PathBuf};
use std::time::Duration;

use countersign_authority::folder;
use countersign_factory::{ProvenKey, ServerGrant, SoftwareKey};
use countersign_gateway::ServerIdentity;
use countersign_identity::CertificateFacts;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::Service;
use crate::failure::Failure;

/// A managed server certificate is renewed when it has less than this left.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);

impl Service {
    fn server_files(&self) -> (PathBuf, PathBuf, bool) {
        match (&self.config.server.certificate, &self.config.server.key) {
            (Some(certificate), Some(key)) => (certificate.clone(), key.clone(), false),
            _ => (
                self.data.join("server/server.crt"),
                self.data.join("server/server.key"),
                true,
            ),
        }
    }

    /// Loads the server certificate; a managed one is issued anew when it is missing, about to expire, or lacks a
    /// configured name.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn server_certificate(
        &self,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Failure> {
        let (certificate, key, managed) = self.server_files();
        if managed && !self.is_server_certificate_good(&certificate, &key) {
            match self.renew_server_certificate(&certificate, &key) {
                // The old one goes on as long as it can: a wrong clock must not close the door.
                Err(e) if e.status == 503 && certificate.exists() && key.exists() => {
                    tracing::error!(
                        cause = e.message.as_str(),
                        "the server certificate is not renewed"
                    );
                }
                renewed => renewed?,
            }
        }
        Self::load_server_certificate(&certificate, &key)
    }

    fn renew_server_certificate(&self, certificate: &Path, key: &Path) -> Result<(), Failure> {
        let now = self.minting_time()?;
        let new = SoftwareKey::generate().map_err(|e| Failure::internal(e.to_string()))?;
        let proven = ProvenKey::of(&new);
        let grant = ServerGrant::new(&self.config.server.host_names, proven)
            .map_err(|e| Failure::invalid(e.to_string()))?;
        let issued = self.platform.issue_server(&grant, now)?;
        folder::create_private(&self.data.join("server"))?;
        folder::write_private(key, new.to_pem().as_bytes())?;
        folder::write_private(certificate, issued.chain_pem().as_bytes())?;
        Ok(())
    }

    fn load_server_certificate(
        certificate: &Path,
        key: &Path,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Failure> {
        let unusable = |path: &Path, what: String| {
            Failure::invalid(format!("{} cannot be used: {what}", path.display()))
        };
        let chain = CertificateDer::pem_slice_iter(&folder::read(certificate)?)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| unusable(certificate, e.to_string()))?;
        if chain.is_empty() {
            return Err(unusable(certificate, "it holds no certificate in PEM".into()));
        }
        let bytes = zeroize::Zeroizing::new(folder::read_private(key)?);
        let private = PrivateKeyDer::from_pem_slice(&bytes).map_err(|e| unusable(key, e.to_string()))?;
        Ok((chain, private))
    }

    fn is_server_certificate_good(&self, certificate: &Path, key: &Path) -> bool {
        let facts = folder::read(certificate)
            .ok()
            .filter(|_| key.exists())
            .and_then(|bytes| CertificateDer::from_pem_slice(&bytes).ok())
            .and_then(|der| CertificateFacts::parse(&der).ok());
        facts.is_some_and(|facts| {
            let names = &self.config.server.host_names;
            let dns = names.iter().filter(|n| n.parse::<std::net::IpAddr>().is_err());
            facts.not_after > self.now().plus(RENEW_BEFORE)
                && facts.issuer_der == self.platform.facts().subject_der
                && dns.eq(facts.san_dns_names.iter())
        })
    }

    /// Loads the server certificate and serves it from now on.
    ///
    /// # Errors
    /// [`Failure`]; then the one that is served stays.
    pub fn reload_server_certificate(&self, identity: &ServerIdentity) -> Result<bool, Failure> {
        let (chain, key) = self.server_certificate()?;
        if identity.leaf().as_ref() == chain.first() {
            return Ok(false);
        }
        identity
            .replace(chain, key)
            .map_err(|e| Failure::invalid(e.to_string()))?;
        tracing::info!("the server certificate was replaced");
        Ok(true)
    }
}
