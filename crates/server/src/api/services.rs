//! The endpoints of service identities.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::{delete, get, post};
use countersign_identity::{ServiceId, TenantId};
use serde::Deserialize;
use serde_json::json;

use super::handlers::{Answer, App, Body, In, actor, encode};
use crate::service::Service;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceBody {
    id: ServiceId,
    certificate: String,
    introspects: Vec<TenantId>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RevokeBody {
    #[serde(default)]
    reason: String,
}

pub(super) fn routes() -> Router<Arc<Service>> {
    Router::new()
        .route("/services", get(services).post(add_service))
        .route("/services/{service}", delete(remove_service))
        .route("/services/{service}/revoke", post(revoke_service))
}

async fn services(State(service): App) -> Answer {
    encode(service.registry().services()?)
}

async fn add_service(State(service): App, headers: HeaderMap, Body(body): Body<ServiceBody>) -> Answer {
    let (id, by) = (body.id.clone(), actor(&headers));
    let fingerprint = service
        .add_service(by, body.id, &body.certificate, body.introspects)
        .await?;
    encode(json!({ "id": id, "fingerprint": fingerprint }))
}

async fn remove_service(State(service): App, headers: HeaderMap, In(id): In<ServiceId>) -> Answer {
    let (by, removed) = (actor(&headers), id.clone());
    service.change(move |r| r.remove_service(by, removed)).await?;
    encode(json!({ "removed": id }))
}

async fn revoke_service(
    State(service): App,
    headers: HeaderMap,
    In(id): In<ServiceId>,
    Body(body): Body<RevokeBody>,
) -> Answer {
    let (by, revoked) = (actor(&headers), id.clone());
    service
        .change(move |r| r.revoke_service(by, revoked, body.reason))
        .await?;
    encode(json!({ "id": id, "state": "revoked" }))
}
