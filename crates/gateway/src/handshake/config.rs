//! The TLS configuration: one for all connections of a listener, shared.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};

use super::chains::VerifiedChains;
use super::ticket::DeviceTickets;
use super::verifier::DeviceVerifier;

/// What is spoken on a device listener. Without ALPN a client speaks MQTT.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Protocol {
    /// MQTT.
    #[serde(rename = "mqtt")]
    Mqtt,
    /// HTTP/1.1.
    #[serde(rename = "http/1.1")]
    Http,
}

impl Protocol {
    /// Every protocol, in the order in which the server prefers them.
    pub const ALL: [Self; 2] = [Self::Mqtt, Self::Http];

    /// Its names in ALPN (RFC 7301): the registered one, then what AWS device SDKs send for the same with a certificate.
    pub const fn alpn(self) -> [&'static [u8]; 2] {
        match self {
            Self::Mqtt => [b"mqtt", b"x-amzn-mqtt-ca"],
            Self::Http => [b"http/1.1", b"x-amzn-http-ca"],
        }
    }

    /// What a connection speaks.
    pub(crate) fn of(negotiated: Option<&[u8]>) -> Self {
        match negotiated {
            Some(name) if Self::Http.alpn().contains(&name) => Self::Http,
            _ => Self::Mqtt,
        }
    }
}

/// The lowest TLS version that devices may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum TlsMinimum {
    /// TLS 1.2 (with extended master secret) and TLS 1.3.
    #[default]
    #[serde(rename = "1.2")]
    Tls12,
    /// TLS 1.3 only.
    #[serde(rename = "1.3")]
    Tls13,
}

impl TlsMinimum {
    /// The versions from this one on, the newest first.
    pub fn versions(self) -> &'static [&'static rustls::SupportedProtocolVersion] {
        static FROM_12: [&rustls::SupportedProtocolVersion; 2] =
            [&rustls::version::TLS13, &rustls::version::TLS12];
        match self {
            Self::Tls12 => &FROM_12,
            Self::Tls13 => &FROM_12[..1],
        }
    }
}

/// Why a server certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ServerIdentityError {
    /// The key cannot be used, or does not belong to the certificate.
    #[error("the server's key does not fit its certificate, or is of a kind that is not supported: {0}")]
    Key(rustls::Error),
    /// The configuration was refused by the TLS library.
    #[error("the TLS configuration is not possible: {0}")]
    Configuration(rustls::Error),
}

/// The server's certificate and key, replaceable while connections come in.
///
/// The key is this module's: nothing else in the process holds it, and it is never shown.
pub struct ServerIdentity {
    current: ArcSwap<CertifiedKey>,
}

impl std::fmt::Debug for ServerIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerIdentity")
    }
}

impl ServerIdentity {
    /// Takes a chain (leaf first, without the root) and its key.
    ///
    /// # Errors
    /// [`ServerIdentityError::Key`] if they do not belong together.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, ServerIdentityError> {
        Ok(Self {
            current: ArcSwap::from_pointee(Self::load(chain, key)?),
        })
    }

    /// Replaces certificate and key for all connections from now on.
    ///
    /// # Errors
    /// [`ServerIdentityError::Key`] if they do not belong together; then nothing changes.
    pub fn replace(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<(), ServerIdentityError> {
        self.current.store(Arc::new(Self::load(chain, key)?));
        Ok(())
    }

    /// The leaf that is served now, in DER.
    pub fn leaf(&self) -> Option<CertificateDer<'static>> {
        self.current.load().cert.first().cloned()
    }

    fn load(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<CertifiedKey, ServerIdentityError> {
        CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).map_err(ServerIdentityError::Key)
    }
}

impl ResolvesServerCert for ServerIdentity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

/// Builds the configuration: device certificate required, resumption by our tickets or not at all, no 0-RTT.
///
/// # Errors
/// [`ServerIdentityError::Configuration`] if the library refuses it.
pub fn server_config(
    identity: Arc<ServerIdentity>,
    minimum: TlsMinimum,
    protocols: &[Protocol],
    chains: Arc<VerifiedChains>,
    tickets: Option<Arc<DeviceTickets>>,
) -> Result<Arc<ServerConfig>, ServerIdentityError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(DeviceVerifier::new(
        provider.signature_verification_algorithms,
        chains,
    ));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(minimum.versions())
        .map_err(ServerIdentityError::Configuration)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(identity);
    config.alpn_protocols = Protocol::ALL
        .into_iter()
        .filter(|p| protocols.contains(p))
        .flat_map(Protocol::alpn)
        .map(<[u8]>::to_vec)
        .collect();
    // Nothing is kept here: what resumes a session is a ticket, and a ticket is ours to decline. Never shared with a
    // configuration that has another verifier, or a session without a certificate could be resumed as one with.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = usize::from(tickets.is_some());
    config.max_tls13_tickets = 0;
    if let Some(tickets) = tickets {
        config.ticketer = tickets;
    }
    // 0-RTT can be replayed before possession is proven: off for ever.
    config.max_early_data_size = 0;
    // RFC 7627: without it a TLS 1.2 session can be bound to another peer's handshake.
    config.require_ems = true;
    Ok(Arc::new(config))
}
