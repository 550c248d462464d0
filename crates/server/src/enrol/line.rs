//! A device's own word at the two ends of its life: that its certificate is on it, and that its key is destroyed.

use std::sync::Arc;

use countersign_factory::confirmation::{self, Confirm, Confirmed};
use countersign_factory::destruction::{self, Recorded, Statement};
use countersign_registry::Actor;
use hyper::Request;
use hyper::body::Incoming;

use super::answer::{Answer, Refusal};
use super::attestation::{json, read};
use super::client::Peer;
use super::requester::denied;
use crate::service::Service;

/// Answers a request of this kind; gives any other back.
pub(super) async fn answer(
    service: &Arc<Service>,
    peer: &Peer,
    request: Request<Incoming>,
) -> Result<Answer, Request<Incoming>> {
    let path = request.uri().path().to_owned();
    let answered = match path.as_str() {
        confirmation::PATH => confirm(service, peer, request).await,
        destruction::PATH => destroyed(service, request).await,
        _ => return Err(request),
    };
    Ok(answered.unwrap_or_else(|refusal| refusal.logged(peer, &path).into_answer()))
}

/// The handshake proved that the certificate's key is held: now, for this connection.
async fn confirm(service: &Arc<Service>, peer: &Peer, request: Request<Incoming>) -> Result<Answer, Refusal> {
    let Confirm { tenant } = read(request).await?;
    let known = peer
        .identify(service.registry(), &tenant, service.now())
        .await
        .map_err(|denial| denied(&denial))?;
    let (device, certificate) = (known.device, known.certificate.fingerprint);
    service
        .confirm(Actor(format!("device:{device}")), certificate)
        .await?;
    tracing::info!(source = %peer.source, device.id = %device, credential.fingerprint = %certificate, "confirmed");
    json(&Confirmed { device, certificate })
}

async fn destroyed(service: &Arc<Service>, request: Request<Incoming>) -> Result<Answer, Refusal> {
    let statement: Statement = read(request).await?;
    let device = statement.device.clone();
    let recorded = service
        .declare_destruction(Actor(format!("device:{device}")), statement)
        .await?;
    json(&Recorded { device, recorded })
}
