//! What devices say of their keys: the endpoints of TPM attestation (whose TPMs are trusted, which device each is in, what they
//! said), and of the end of a key.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::{delete, get, post};
use countersign_factory::destruction::Statement;
use countersign_identity::{AuthorityId, DeviceId, Fingerprint, TenantId};
use serde::Deserialize;
use serde_json::json;

use super::handlers::{Answer, App, Body, In, actor, encode, need_tenant};
use crate::failure::Failure;
use crate::service::Service;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AuthorityBody {
    id: AuthorityId,
    certificate: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyBody {
    key: String,
}

pub(super) fn routes() -> Router<Arc<Service>> {
    Router::new()
        .route(
            "/tenants/{tenant}/endorsement-authorities",
            get(authorities).post(add_authority),
        )
        .route(
            "/tenants/{tenant}/endorsement-authorities/{authority}",
            delete(remove_authority),
        )
        .route(
            "/tenants/{tenant}/devices/{device}/endorsement-keys",
            get(keys).post(add_key),
        )
        .route(
            "/tenants/{tenant}/endorsement-keys/{fingerprint}",
            delete(remove_key),
        )
        .route(
            "/tenants/{tenant}/devices/{device}/attestations",
            get(attestations),
        )
        .route("/tenants/{tenant}/devices/{device}/destruction", post(destroyed))
}

async fn authorities(State(service): App, In(tenant): In<TenantId>) -> Answer {
    need_tenant(&service, &tenant)?;
    encode(service.registry().endorsement_authorities(&tenant)?)
}

async fn add_authority(
    State(service): App,
    headers: HeaderMap,
    In(tenant): In<TenantId>,
    Body(body): Body<AuthorityBody>,
) -> Answer {
    let id = body.id.clone();
    service
        .add_endorsement_authority(actor(&headers), tenant, body.id, &body.certificate)
        .await?;
    encode(json!({ "id": id }))
}

async fn remove_authority(
    State(service): App,
    headers: HeaderMap,
    In((tenant, id)): In<(TenantId, AuthorityId)>,
) -> Answer {
    let (by, removed) = (actor(&headers), id.clone());
    service
        .change(move |r| r.remove_endorsement_authority(by, tenant, removed))
        .await?;
    encode(json!({ "removed": id }))
}

async fn keys(State(service): App, In((tenant, device)): In<(TenantId, DeviceId)>) -> Answer {
    encode(service.registry().endorsement_keys(&tenant, &device)?)
}

async fn add_key(
    State(service): App,
    headers: HeaderMap,
    In((tenant, device)): In<(TenantId, DeviceId)>,
    Body(body): Body<KeyBody>,
) -> Answer {
    let fingerprint = service
        .add_endorsement_key(actor(&headers), tenant, device.clone(), &body.key)
        .await?;
    encode(json!({ "device": device, "fingerprint": fingerprint }))
}

async fn remove_key(
    State(service): App,
    headers: HeaderMap,
    In((tenant, fingerprint)): In<(TenantId, Fingerprint)>,
) -> Answer {
    let by = actor(&headers);
    service
        .change(move |r| r.remove_endorsement_key(by, tenant, fingerprint))
        .await?;
    encode(json!({ "removed": fingerprint }))
}

async fn attestations(State(service): App, In((tenant, device)): In<(TenantId, DeviceId)>) -> Answer {
    encode(service.registry().attestations(&tenant, &device)?)
}

async fn destroyed(
    State(service): App,
    headers: HeaderMap,
    In((tenant, device)): In<(TenantId, DeviceId)>,
    Body(statement): Body<Statement>,
) -> Answer {
    if statement.tenant != tenant || statement.device != device {
        return Err(Failure::invalid(format!(
            "it is the statement of device {} of tenant {}; hint: name that one",
            statement.device, statement.tenant
        )));
    }
    let recorded = service.declare_destruction(actor(&headers), statement).await?;
    encode(json!({ "device": device, "recorded": recorded }))
}
