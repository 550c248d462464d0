//! Who asks. TLS takes any certificate whose key is proven to be held; what it is worth is judged afterwards, so that a
//! replayed certificate learns nothing.

use std::net::SocketAddr;

use countersign_identity::{CertificateFacts, DeviceId, Fingerprint, TenantId, Timestamp, VerifiedChain};
use countersign_policy::exchange::ExchangeSink;
use countersign_policy::first_contact::Contact;
use countersign_policy::{Admission, Denial, DenialCode, FactSource};
use countersign_registry::Registry;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use crate::listeners::ClientCertificate;

/// Lets any certificate through TLS, if its key is proven to be held; a client may also have none.
#[derive(Debug)]
pub(crate) struct AnyCertificate {
    algorithms: WebPkiSupportedAlgorithms,
    certificate: ClientCertificate,
}

impl AnyCertificate {
    pub(crate) fn new(algorithms: WebPkiSupportedAlgorithms, certificate: ClientCertificate) -> Self {
        Self {
            algorithms,
            certificate,
        }
    }
}

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        self.certificate == ClientCertificate::Required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The other side of a connection.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) source: SocketAddr,
    /// Names this TLS connection and no other (RFC 9266); `None` before TLS 1.3.
    pub(super) binding: Option<[u8; 32]>,
    /// The certificates it showed, leaf first, the leaf's key proven to be held.
    pub(super) chain: Option<Vec<CertificateDer<'static>>>,
}

/// A device that is known by the certificate it showed.
#[derive(Debug, Clone)]
pub(super) struct KnownPeer {
    pub(super) device: DeviceId,
    pub(super) certificate: CertificateFacts,
}

impl Peer {
    /// Who shows the certificate. The same checks as at the device port: chain, identity, registration; a certificate
    /// that is not registered may be learned as its authority's admission allows.
    ///
    /// # Errors
    /// The [`Denial`]; `chain.no-certificate` if none was shown.
    pub(super) async fn identify(
        &self,
        registry: &Registry,
        tenant: &TenantId,
        now: Timestamp,
    ) -> Result<KnownPeer, Denial> {
        let Some([leaf, above @ ..]) = self.chain.as_deref() else {
            return Err(DenialCode::NoCertificate.into());
        };
        let facts = CertificateFacts::parse(leaf)
            .map_err(|e| Denial::new(DenialCode::ChainMalformed, e.to_string()))?;
        let table = registry.facts();
        let chain = VerifiedChain::verify(&table.anchors(), Some(tenant), facts, leaf, above, now)
            .map_err(|fault| Denial::from(&fault))?;
        let device = chain
            .anchor()
            .identity_rule
            .read(chain.leaf())
            .map_err(|fault| Denial::from(&fault))?;
        let (certificate, anchor) = chain.into_parts();
        let fingerprint: Fingerprint = certificate.fingerprint;
        if table.credential(&fingerprint).is_none()
            && table.admission(&anchor.authority) != Admission::RegisteredOnly
        {
            let (sender, answer) = tokio::sync::oneshot::channel();
            let contact = Contact {
                tenant: anchor.tenant.clone(),
                device: device.clone(),
                authority: anchor.authority.clone(),
                certificate: certificate.clone(),
            };
            ExchangeSink::first_contact(
                registry,
                contact,
                Box::new(move |learned| {
                    let _ = sender.send(learned);
                }),
            );
            answer
                .await
                .unwrap_or_else(|_| Err(DenialCode::RegistryUnavailable.into()))?;
        }
        match table
            .credential(&fingerprint)
            .filter(|c| c.tenant == anchor.tenant)
        {
            None => Err(table
                .station(&anchor.tenant, &certificate.issuer_der)
                .map_or(DenialCode::UnknownCredential.into(), |station| {
                    station.denial(&device)
                })),
            Some(c) if c.device != device => Err(DenialCode::CredentialOfOther.into()),
            Some(_) => Ok(KnownPeer { device, certificate }),
        }
    }
}
