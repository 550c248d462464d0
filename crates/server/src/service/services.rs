//! Service identities.

use countersign_identity::{CertificateFacts, Fingerprint, ServiceId, TenantId};
use countersign_registry::Actor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::Service;
use crate::failure::Failure;

impl Service {
    /// Registers a service by its certificate (PEM), whoever issued that.
    ///
    /// # Errors
    /// [`Failure`] if it is no certificate, expired, a CA's, or its key is a device's.
    pub async fn add_service(
        &self,
        actor: Actor,
        id: ServiceId,
        certificate: &str,
        introspects: Vec<TenantId>,
    ) -> Result<Fingerprint, Failure> {
        let der = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|e| Failure::invalid(format!("the certificate is no PEM: {e}")))?;
        let facts = CertificateFacts::parse(&der).map_err(|e| Failure::invalid(e.to_string()))?;
        if facts.ca.is_some() {
            return Err(Failure::invalid(
                "the certificate is a CA's (basicConstraints), and whoever has its key could make others; hint: let the service make one that is none: openssl req -x509 … -addext basicConstraints=critical,CA:FALSE",
            ));
        }
        if self.now() > facts.not_after {
            return Err(Failure::invalid(format!(
                "the certificate expired on {}; hint: let the service make a new one",
                facts.not_after
            )));
        }
        let fingerprint = facts.fingerprint;
        self.change(move |r| r.add_service(actor, id, facts, introspects))
            .await?;
        Ok(fingerprint)
    }
}
