//! Enrolment: on listeners of their own, HTTPS with an optional client certificate and nothing on it but EST, trust bundle
//! and time; and for admitted devices on the device listeners.
//!
//! 1. this module: accept, TLS, HTTP
//! 2. [`client`]: who asks, judged after the handshake, when possession is proven
//! 3. [`requester`]: on whose word a certificate is issued: certificate, one-time secret, claim, or the lane
//! 4. [`lane`]: the renewal lane, for certificates that have expired
//! 5. [`est`]: what each operation answers
//! 6. [`answer`]: how answers and refusals look
//! 7. [`device_port`]: the same for devices that have a session

mod answer;
mod client;
mod device_port;
mod est;
mod lane;
#[cfg(test)]
mod overlap_tests;
mod requester;

pub use device_port::DevicePort;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use countersign_gateway::ServerIdentity;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, server};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::NoServerSessionStorage;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::failure::Failure;
use crate::listeners::Listener;
use crate::service::Service;
pub(crate) use client::AnyCertificate;
use client::Peer;

/// From accept to the end of the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// One connection, whatever it asks.
const CONNECTION: Duration = Duration::from_secs(60);
/// The head of a request.
const HEAD: Duration = Duration::from_secs(10);

/// Builds the TLS configuration. Unlike on the device port a TLS 1.2 client needs no extended master secret: Debian's
/// strongSwan has none. There are no tickets, so nothing is ever resumed.
fn tls(listener: &Listener, identity: Arc<ServerIdentity>) -> Result<Arc<ServerConfig>, Failure> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = AnyCertificate::new(
        provider.signature_verification_algorithms,
        listener.client_certificate(),
    );
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(listener.tls_minimum().versions())
        .map_err(|e| Failure::internal(e.to_string()))?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(identity);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.require_ems = false;
    Ok(Arc::new(config))
}

/// Opens the listener.
///
/// # Errors
/// [`Failure`] if the address cannot be used.
pub async fn start(
    listener: &Listener,
    connections_max: usize,
    identity: Arc<ServerIdentity>,
    service: Arc<Service>,
) -> Result<(SocketAddr, JoinHandle<()>), Failure> {
    let acceptor = TlsAcceptor::from(tls(listener, identity)?);
    let address = listener.listen;
    let listener = TcpListener::bind(address).await.map_err(|e| {
        Failure::unavailable(
            format!("cannot listen on {address}: {e}"),
            "another process has the port: stop it, or change the listener",
        )
    })?;
    let address = listener
        .local_addr()
        .map_err(|e| Failure::internal(e.to_string()))?;
    let slots = Arc::new(Semaphore::new(connections_max));
    let accepting = tokio::spawn(async move {
        loop {
            let (socket, source) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(e) => {
                    tracing::error!(error = %e, "cannot accept enrolments");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            // Full: closed at once, before any cryptography.
            let Ok(slot) = slots.clone().try_acquire_owned() else {
                tracing::warn!(source = %source, "enrolment refused: enrol.connections_max is reached");
                continue;
            };
            let (acceptor, service) = (acceptor.clone(), service.clone());
            tokio::spawn(async move {
                let _slot = slot;
                let _ = timeout(CONNECTION, serve(socket, source, acceptor, service)).await;
            });
        }
    });
    Ok((address, accepting))
}

/// tls-exporter (RFC 9266 section 3). TLS 1.2 without extended master secret has none that is safe.
fn binding(connection: &rustls::ServerConnection) -> Option<[u8; 32]> {
    if connection.protocol_version() != Some(rustls::ProtocolVersion::TLSv1_3) {
        return None;
    }
    connection
        .export_keying_material([0; 32], b"EXPORTER-Channel-Binding", None)
        .ok()
}

async fn serve(socket: TcpStream, source: SocketAddr, acceptor: TlsAcceptor, service: Arc<Service>) {
    let _ = socket.set_nodelay(true);
    let stream = match timeout(HANDSHAKE, acceptor.accept(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) => {
            tracing::warn!(source = %source, error = %e, "enrolment refused: the TLS handshake failed");
            return;
        }
        Err(_) => return,
    };
    let (_, connection) = stream.get_ref();
    let peer = Peer {
        source,
        binding: binding(connection),
        chain: connection.peer_certificates().map(<[_]>::to_vec),
    };
    let answer = service_fn(|request: Request<Incoming>| {
        let (service, peer) = (service.clone(), peer.clone());
        async move { Ok::<_, Infallible>(est::answer(&service, &peer, request).await) }
    });
    let _ = server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), answer)
        .await;
}
