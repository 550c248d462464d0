//! The endpoints, in the order of `ENDPOINTS` in `openapi`.

use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, State};
use axum::http::HeaderMap;
use axum::routing::{delete, get, patch, post};
use axum::{Json, Router};
use countersign_identity::{DeviceId, Fingerprint, TenantId};
use countersign_policy::ClientIdMode;
use countersign_registry::{Actor, NewDevice, RegistryError};
use serde_json::{Value, json};

use super::body::{
    AuthorityBody, DeviceBody, DeviceQuery, ExchangeQuery, HostBody, ImportBody, MoveBody, ProvisionBody,
    ReasonBody, TenantBody, TenantQuery, TenantSettings,
};
use crate::failure::Failure;
use crate::service::Service;

type App = State<Arc<Service>>;
type Answer = Result<Json<Value>, Failure>;

/// JSON whose faults are told as problems.
#[derive(FromRequest)]
#[from_request(via(Json), rejection(Failure))]
struct Body<T>(T);

impl From<JsonRejection> for Failure {
    fn from(e: JsonRejection) -> Self {
        Self {
            status: e.status().as_u16(),
            ..Self::invalid(e.body_text())
        }
    }
}

/// A path whose faults are told as problems.
#[derive(FromRequestParts)]
#[from_request(via(Path), rejection(Failure))]
struct In<T>(T);

impl From<PathRejection> for Failure {
    fn from(e: PathRejection) -> Self {
        Self::invalid(e.body_text())
    }
}

/// A query whose faults are told as problems.
#[derive(FromRequestParts)]
#[from_request(via(Query), rejection(Failure))]
struct Asked<T>(T);

impl From<QueryRejection> for Failure {
    fn from(e: QueryRejection) -> Self {
        Self::invalid(e.body_text())
    }
}

pub(super) fn routes() -> Router<Arc<Service>> {
    Router::new()
        .route("/status", get(status))
        .route("/doctor", get(doctor))
        .route("/tenants", get(tenants).post(add_tenant))
        .route("/tenants/{tenant}", patch(configure_tenant))
        .route("/tenants/{tenant}/hosts", post(add_host))
        .route("/tenants/{tenant}/hosts/{host}", delete(remove_host))
        .route("/authorities", get(authorities).post(register_authority))
        .route("/authorities/platform", get(platform_root))
        .route("/tenants/{tenant}/device-ca", get(device_ca))
        .route("/tenants/{tenant}/devices", get(devices).post(add_device))
        .route("/tenants/{tenant}/devices/import", post(import_devices))
        .route("/tenants/{tenant}/devices/{device}", get(device))
        .route("/tenants/{tenant}/devices/{device}/moves", post(move_device))
        .route("/tenants/{tenant}/devices/{device}/certificates", post(provision))
        .route("/tenants/{tenant}/devices/{device}/sessions", delete(disconnect))
        .route("/credentials/{fingerprint}/revoke", post(revoke))
        .route("/sessions", get(sessions))
        .route("/exchanges", get(exchanges))
        .route("/audit", get(audit))
        .route("/server-certificate/reload", post(reload_server_certificate))
}

/// Who asks, for the audit. The token is what authorises; this is only a name.
fn actor(headers: &HeaderMap) -> Actor {
    let name = headers
        .get("x-countersign-actor")
        .and_then(|v| v.to_str().ok())
        .unwrap_or("api");
    Actor(name.chars().take(64).collect())
}

fn encode(value: impl serde::Serialize) -> Answer {
    serde_json::to_value(value)
        .map(Json)
        .map_err(|e| Failure::internal(e.to_string()))
}

async fn status(State(service): App) -> Answer {
    let facts = service.registry().facts();
    let (host, port) = service.address();
    encode(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "serving": service.gateway().map(|g| g.local_addr().to_string()),
        "sessions": service.gateway().map_or(0, |g| g.session_count()),
        "devices": facts.device_count(),
        "credentials": facts.credential_count(),
        "host": host,
        "port": port,
    }))
}

async fn doctor(State(service): App) -> Answer {
    encode(tokio::task::block_in_place(|| service.doctor()))
}

async fn tenants(State(service): App) -> Answer {
    encode(service.registry().tenants()?)
}

async fn add_tenant(State(service): App, headers: HeaderMap, Body(body): Body<TenantBody>) -> Answer {
    let mode = body.client_id_mode.unwrap_or(ClientIdMode::Strict);
    service.add_tenant(actor(&headers), body.id.clone(), mode).await?;
    encode(json!({ "id": body.id, "client_id_mode": mode }))
}

async fn configure_tenant(
    State(service): App,
    headers: HeaderMap,
    In(tenant): In<TenantId>,
    Body(body): Body<TenantSettings>,
) -> Answer {
    let sessions = service
        .configure_tenant(
            actor(&headers),
            tenant.clone(),
            body.client_id_mode,
            body.policies,
            body.spaces,
        )
        .await?;
    encode(json!({ "id": tenant, "sessions": sessions }))
}

async fn add_host(
    State(service): App,
    headers: HeaderMap,
    In(tenant): In<TenantId>,
    Body(body): Body<HostBody>,
) -> Answer {
    service
        .set_host(actor(&headers), tenant.clone(), body.host.clone(), true)
        .await?;
    encode(json!({ "tenant": tenant, "host": body.host }))
}

async fn remove_host(
    State(service): App,
    headers: HeaderMap,
    In((tenant, host)): In<(TenantId, String)>,
) -> Answer {
    service
        .set_host(actor(&headers), tenant.clone(), host.clone(), false)
        .await?;
    encode(json!({ "tenant": tenant, "removed": host }))
}

async fn authorities(State(service): App) -> Answer {
    encode(service.registry().authorities()?)
}

async fn register_authority(
    State(service): App,
    headers: HeaderMap,
    Body(body): Body<AuthorityBody>,
) -> Answer {
    service
        .register_authority(
            actor(&headers),
            body.id.clone(),
            body.tenant.clone(),
            body.identity_rule,
            &body.certificate,
        )
        .await?;
    encode(json!({ "id": body.id, "tenant": body.tenant, "state": "active" }))
}

async fn platform_root(State(service): App) -> Answer {
    encode(json!({ "certificate": service.platform_root() }))
}

async fn device_ca(State(service): App, In(tenant): In<TenantId>) -> Answer {
    encode(json!({ "certificate": service.device_ca(&tenant)? }))
}

async fn devices(State(service): App, In(tenant): In<TenantId>, Asked(q): Asked<DeviceQuery>) -> Answer {
    let limit = q.limit.unwrap_or(100).clamp(1, 1000);
    let found = service
        .registry()
        .devices(&tenant, q.state, q.after.as_deref(), limit)?;
    let next = (found.len() == limit as usize)
        .then(|| found.last().map(|d| d.id.clone()))
        .flatten();
    encode(json!({ "devices": found, "next": next }))
}

async fn add_device(
    State(service): App,
    headers: HeaderMap,
    In(tenant): In<TenantId>,
    Body(body): Body<DeviceBody>,
) -> Answer {
    let new = NewDevice {
        id: body.id.clone(),
        model: body.model,
        groups: body.groups,
        state: body.state,
    };
    service.add_device(actor(&headers), tenant.clone(), new).await?;
    encode(json!({ "tenant": tenant, "id": body.id, "state": body.state }))
}

async fn import_devices(
    State(service): App,
    headers: HeaderMap,
    In(tenant): In<TenantId>,
    Body(body): Body<ImportBody>,
) -> Answer {
    let devices = body
        .devices
        .into_iter()
        .map(|d| {
            (
                NewDevice {
                    id: d.id,
                    model: d.model,
                    groups: d.groups,
                    state: d.state,
                },
                d.certificate,
            )
        })
        .collect();
    encode(service.import_devices(actor(&headers), tenant, devices).await?)
}

async fn device(State(service): App, In((tenant, device)): In<(TenantId, DeviceId)>) -> Answer {
    let Some(view) = service.registry().device(&tenant, &device)? else {
        return Err(RegistryError::NoDevice { tenant, device }.into());
    };
    let credentials = service.registry().credentials(&tenant, &device)?;
    let sessions: Vec<_> = service
        .gateway()
        .map(|g| g.sessions(Some(&tenant)))
        .unwrap_or_default()
        .into_iter()
        .filter(|s| s.device == device)
        .collect();
    encode(json!({ "device": view, "credentials": credentials, "sessions": sessions }))
}

async fn move_device(
    State(service): App,
    headers: HeaderMap,
    In((tenant, device)): In<(TenantId, DeviceId)>,
    Body(body): Body<MoveBody>,
) -> Answer {
    let (state, sessions) = service
        .move_device(
            actor(&headers),
            tenant,
            device.clone(),
            body.attempted,
            body.reason,
        )
        .await?;
    encode(json!({ "id": device, "state": state, "sessions": sessions }))
}

async fn provision(
    State(service): App,
    headers: HeaderMap,
    In((tenant, device)): In<(TenantId, DeviceId)>,
    Body(body): Body<ProvisionBody>,
) -> Answer {
    encode(
        service
            .provision(actor(&headers), tenant, device, body.request, None)
            .await?,
    )
}

async fn disconnect(State(service): App, In((tenant, device)): In<(TenantId, DeviceId)>) -> Answer {
    encode(json!({ "id": device, "sessions": service.disconnect(&tenant, &device).await? }))
}

async fn revoke(
    State(service): App,
    headers: HeaderMap,
    In(fingerprint): In<Fingerprint>,
    Body(body): Body<ReasonBody>,
) -> Answer {
    let sessions = service.revoke(actor(&headers), fingerprint, body.reason).await?;
    encode(json!({ "fingerprint": fingerprint, "state": "revoked", "sessions": sessions }))
}

async fn sessions(State(service): App, Asked(q): Asked<TenantQuery>) -> Answer {
    encode(
        service
            .gateway()
            .map(|g| g.sessions(q.tenant.as_ref()))
            .unwrap_or_default(),
    )
}

async fn exchanges(State(service): App, Asked(q): Asked<ExchangeQuery>) -> Answer {
    let limit = q.limit.unwrap_or(20).clamp(1, 1000);
    tokio::task::block_in_place(|| match &q.subject {
        Some(subject) => encode(service.explain(q.tenant.as_ref(), subject, limit)?),
        None => {
            service.registry().ledger().flush();
            encode(service.registry().ledger().newest(q.refused, limit)?)
        }
    })
}

async fn audit(State(service): App) -> Answer {
    encode(service.registry().audit(200)?)
}

async fn reload_server_certificate(State(service): App) -> Answer {
    let Some(gateway) = service.gateway() else {
        return Err(Failure::unavailable(
            "the device port is not open",
            "start countersign serve",
        ));
    };
    let replaced = tokio::task::block_in_place(|| service.reload_server_certificate(gateway.identity()))?;
    encode(json!({ "replaced": replaced }))
}
