//! Listeners of purpose `services`: HTTPS with a compulsory client certificate. Any certificate passes TLS if its key is
//! proven to be held; what it is worth is looked up for each request, so that a revoked service is refused at its next.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use countersign_gateway::ServerIdentity;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, server};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::server::NoServerSessionStorage;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::{Answer, discovery, introspect};
use crate::enrol::AnyCertificate;
use crate::failure::Failure;
use crate::listeners::{ClientCertificate, Listener};
use crate::service::Service;

/// From accept to the end of the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// From one request to the head of the next.
const IDLE: Duration = Duration::from_secs(300);

/// There are no tickets, so nothing is ever resumed.
fn tls(listener: &Listener, identity: Arc<ServerIdentity>) -> Result<Arc<ServerConfig>, Failure> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = AnyCertificate::new(
        provider.signature_verification_algorithms,
        ClientCertificate::Required,
    );
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(listener.tls_minimum().versions())
        .map_err(|e| Failure::internal(e.to_string()))?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(identity);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
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
                    tracing::error!(error = %e, "cannot accept services");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            // Full: closed at once, before any cryptography.
            let Ok(slot) = slots.clone().try_acquire_owned() else {
                tracing::warn!(source = %source, "a service was refused: tokens.service_connections_max is reached");
                continue;
            };
            let (acceptor, service) = (acceptor.clone(), service.clone());
            tokio::spawn(async move {
                let _slot = slot;
                serve(socket, source, acceptor, service).await;
            });
        }
    });
    Ok((address, accepting))
}

async fn serve(socket: TcpStream, source: SocketAddr, acceptor: TlsAcceptor, service: Arc<Service>) {
    let _ = socket.set_nodelay(true);
    let stream = match timeout(HANDSHAKE, acceptor.accept(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) => {
            tracing::warn!(source = %source, error = %e, "a service was refused: the TLS handshake failed");
            return;
        }
        Err(_) => return,
    };
    let chain = stream.get_ref().1.peer_certificates();
    let leaf: Option<Arc<CertificateDer<'static>>> = chain
        .and_then(|c| c.first())
        .map(|c| Arc::new(c.clone().into_owned()));
    let answered = service_fn(|request: Request<Incoming>| {
        let (service, leaf) = (service.clone(), leaf.clone());
        async move { Ok::<_, Infallible>(answer(&service, leaf.as_deref(), request).await) }
    });
    let _ = server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), answered)
        .await;
}

async fn answer(
    service: &Arc<Service>,
    leaf: Option<&CertificateDer<'static>>,
    request: Request<Incoming>,
) -> Answer {
    if request.uri().path() == "/oauth2/introspect" {
        return introspect::introspect(service, leaf, request).await;
    }
    discovery::answer(service, request.method(), request.uri().path()).unwrap_or_else(|| {
        let mut answer = Response::new(Full::default());
        *answer.status_mut() = StatusCode::NOT_FOUND;
        answer
    })
}
