//! Enrolment: on listeners of their own, HTTPS with an optional client certificate and nothing on it but EST, trust bundle
//! and time; and for admitted devices on the device listeners.
//!
//! 1. this module: HTTP, on what [`crate::https`] accepted
//! 2. [`client`]: who asks, judged after the handshake, when possession is proven
//! 3. [`requester`]: on whose word a certificate is issued: certificate, one-time secret, claim, or the lane
//! 4. [`lane`]: the renewal lane, for certificates that have expired
//! 5. [`est`]: what each operation answers
//! 6. [`attestation`]: what a TPM says of a key
//! 7. [`mod@line`]: its certificate is on the device; its key is destroyed
//! 8. [`answer`]: how answers and refusals look
//! 9. [`device_port`]: the same for devices that have a session

mod answer;
mod attestation;
mod client;
mod device_port;
mod est;
mod lane;
mod line;
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
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

use crate::failure::Failure;
use crate::https;
use crate::listeners::Listener;
use crate::places::PlacesMax;
use crate::service::Service;
pub(crate) use client::AnyCertificate;
use client::Peer;

/// One connection, whatever it asks.
const CONNECTION: Duration = Duration::from_secs(60);
/// The head of a request.
const HEAD: Duration = Duration::from_secs(10);

/// Opens the listener. Unlike on the device port a TLS 1.2 client needs no extended master secret: Debian's strongSwan has
/// none.
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
        who: "enrolment",
        certificate: listener.client_certificate(),
        require_ems: false,
    };
    https::start(listener, kind, places, identity, move |stream, source| {
        let service = service.clone();
        async move {
            let _ = timeout(CONNECTION, serve(stream, source, service)).await;
        }
    })
    .await
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

async fn serve(stream: TlsStream<TcpStream>, source: SocketAddr, service: Arc<Service>) {
    let (_, connection) = stream.get_ref();
    let peer = Peer {
        source,
        binding: binding(connection),
        chain: connection.peer_certificates().map(<[_]>::to_vec),
    };
    let answer = service_fn(|request: Request<Incoming>| {
        let (service, peer) = (service.clone(), peer.clone());
        async move {
            let request = match attestation::answer(&service, &peer, request).await {
                Ok(answer) => return Ok(answer),
                Err(request) => request,
            };
            Ok::<_, Infallible>(match line::answer(&service, &peer, request).await {
                Ok(answer) => answer,
                Err(request) => est::answer(&service, &peer, request).await,
            })
        }
    });
    let _ = server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), answer)
        .await;
}
