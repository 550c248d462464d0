//! TPM attestation over the enrolment listener: `begin` and `finish`, in JSON.

use std::sync::Arc;

use countersign_factory::attest::messages::{BEGIN, BYTES_MAX, FINISH};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::answer::{Answer, Refusal, plain};
use super::client::Peer;
use crate::service::Service;

/// Answers a request for an attestation; gives any other back.
pub(super) async fn answer(
    service: &Arc<Service>,
    peer: &Peer,
    request: Request<Incoming>,
) -> Result<Answer, Request<Incoming>> {
    let path = request.uri().path().to_owned();
    let answered = match path.as_str() {
        BEGIN => begin(service, request).await,
        FINISH => finish(service, request).await,
        _ => return Err(request),
    };
    Ok(answered.unwrap_or_else(|refusal| refusal.logged(peer, &path).into_answer()))
}

async fn begin(service: &Arc<Service>, request: Request<Incoming>) -> Result<Answer, Refusal> {
    let begin = read(request).await?;
    json(&tokio::task::block_in_place(|| service.begin_attestation(begin))?)
}

async fn finish(service: &Arc<Service>, request: Request<Incoming>) -> Result<Answer, Refusal> {
    let finish = read(request).await?;
    json(&service.finish_attestation(finish).await?)
}

pub(super) async fn read<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Refusal> {
    if request.method() != Method::POST {
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "this takes POST"));
    }
    let body = Limited::new(request.into_body(), BYTES_MAX)
        .collect()
        .await
        .map_err(|e| Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, e.to_string()))?
        .to_bytes();
    serde_json::from_slice(&body).map_err(|e| {
        Refusal::new(
            StatusCode::BAD_REQUEST,
            format!("the body is not what is read here: {e}"),
        )
    })
}

pub(super) fn json(value: &impl Serialize) -> Result<Answer, Refusal> {
    let text = serde_json::to_string(value)
        .map_err(|e| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    Ok(plain(StatusCode::OK, "application/json", text))
}
