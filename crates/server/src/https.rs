//! Listeners of our own HTTPS, where any certificate passes TLS if its key is proven to be held, and what it is worth is
//! judged for each request: enrolment, and services.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use countersign_gateway::ServerIdentity;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::NoServerSessionStorage;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::enrol::AnyCertificate;
use crate::failure::Failure;
use crate::listeners::{self, ClientCertificate, Listener};
use crate::places::{Places, PlacesMax};

/// From accept to the end of the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What tells one kind of listener from the other.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    /// Who connects, for the log.
    pub(crate) who: &'static str,
    /// Whether a client certificate must be shown.
    pub(crate) certificate: ClientCertificate,
    /// Whether TLS 1.2 needs the extended master secret (RFC 7627).
    pub(crate) require_ems: bool,
}

/// There are no tickets, so nothing is ever resumed.
fn tls(listener: &Listener, kind: Kind, identity: Arc<ServerIdentity>) -> Result<Arc<ServerConfig>, Failure> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = AnyCertificate::new(provider.signature_verification_algorithms, kind.certificate);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(listener.tls_minimum().versions())
        .map_err(|e| Failure::internal(e.to_string()))?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(identity);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.require_ems = kind.require_ems;
    Ok(Arc::new(config))
}

/// Opens the listener; `serve` has each connection whose handshake is complete.
///
/// # Errors
/// [`Failure`] if the address cannot be used.
pub(crate) async fn start<F>(
    listener: &Listener,
    kind: Kind,
    places: PlacesMax,
    identity: Arc<ServerIdentity>,
    serve: impl Fn(TlsStream<TcpStream>, SocketAddr) -> F + Clone + Send + Sync + 'static,
) -> Result<(SocketAddr, JoinHandle<()>), Failure>
where
    F: Future<Output = ()> + Send,
{
    let acceptor = TlsAcceptor::from(tls(listener, kind, identity)?);
    let (listener, address) = listeners::bind(listener.listen).await?;
    let places = Places::new(places);
    let accepting = tokio::spawn(async move {
        loop {
            let (socket, source) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(e) => {
                    tracing::error!(error = %e, "cannot accept {}", kind.who);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            // Full: closed at once, before any cryptography.
            let place = match places.take(source.ip()) {
                Ok(place) => place,
                Err(limit) => {
                    tracing::warn!(source = %source, "{} refused: {limit} is reached", kind.who);
                    continue;
                }
            };
            let (acceptor, serve) = (acceptor.clone(), serve.clone());
            tokio::spawn(async move {
                let _place = place;
                let _ = socket.set_nodelay(true);
                match timeout(HANDSHAKE, acceptor.accept(socket)).await {
                    Ok(Ok(stream)) => serve(stream, source).await,
                    Ok(Err(e)) => {
                        tracing::warn!(source = %source, error = %e, "{} refused: the TLS handshake failed", kind.who);
                    }
                    Err(_) => {}
                }
            });
        }
    });
    Ok((address, accepting))
}
