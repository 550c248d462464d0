//! Listeners of purpose `services`: HTTPS with a compulsory client certificate. Any certificate passes TLS if its key is
//! proven to be held; what it is worth is looked up for each request, so that a revoked service is refused at its next.
//! Places are for services: who is none has one answer, at once, and is closed.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use countersign_gateway::ServerIdentity;
use countersign_identity::Fingerprint;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, server};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

use super::{Answer, discovery, introspect};
use crate::failure::Failure;
use crate::https;
use crate::listeners::{ClientCertificate, Listener};
use crate::places::PlacesMax;
use crate::service::Service;

/// From one request to the head of the next.
const IDLE: Duration = Duration::from_secs(300);
/// How long who is no service may keep a place: enough to be told so.
const STRANGER: Duration = Duration::from_secs(2);

/// Opens the listener.
///
/// # Errors
/// [`Failure`] if the address cannot be used.
pub async fn start(
    listener: &Listener,
    places: PlacesMax,
    identity: Arc<ServerIdentity>,
    service: Arc<Service>,
) -> Result<(SocketAddr, JoinHandle<()>), Failure> {
    let kind = https::Kind {
        who: "service",
        certificate: ClientCertificate::Required,
        require_ems: true,
    };
    https::start(listener, kind, places, identity, move |stream, source| {
        serve(stream, source, service.clone())
    })
    .await
}

async fn serve(stream: TlsStream<TcpStream>, source: SocketAddr, service: Arc<Service>) {
    let chain = stream.get_ref().1.peer_certificates();
    let leaf: Option<Arc<CertificateDer<'static>>> = chain
        .and_then(|c| c.first())
        .map(|c| Arc::new(c.clone().into_owned()));
    match introspect::asker(&service, leaf.as_deref()).await {
        Ok(_) => speak(stream, leaf, service, Stay::Yes).await,
        Err(e) => {
            if let Some(tokens) = service.tokens() {
                tokens.strangers.fetch_add(1, Ordering::Relaxed);
            }
            tracing::warn!(
                source = %source,
                certificate.fingerprint = leaf.as_ref().map(|l| Fingerprint::of(l).to_string()).unwrap_or_default(),
                cause = e.description.as_str(),
                "a connection to a listener for services is closed after one answer"
            );
            let _ = timeout(STRANGER, speak(stream, leaf, service, Stay::No)).await;
        }
    }
}

/// Whether a connection may ask more than once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stay {
    Yes,
    No,
}

async fn speak(
    stream: TlsStream<TcpStream>,
    leaf: Option<Arc<CertificateDer<'static>>>,
    service: Arc<Service>,
    stay: Stay,
) {
    let answered = service_fn(|request: Request<Incoming>| {
        let (service, leaf) = (service.clone(), leaf.clone());
        async move { Ok::<_, Infallible>(answer(&service, leaf.as_deref(), request).await) }
    });
    let _ = server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(stay == Stay::Yes)
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
        let mut answer = introspect::introspect(service, leaf, request).await;
        // Revoked meanwhile: its place is for others.
        if answer.status() == StatusCode::UNAUTHORIZED {
            let close = HeaderValue::from_static("close");
            answer.headers_mut().insert(header::CONNECTION, close);
        }
        return answer;
    }
    discovery::answer(service, request.method(), request.uri().path()).unwrap_or_else(|| {
        let mut answer = Response::new(Full::default());
        *answer.status_mut() = StatusCode::NOT_FOUND;
        answer
    })
}
