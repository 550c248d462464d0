//! The endpoints, in the order of `ENDPOINTS` in `openapi`.

use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, State};
use axum::http::HeaderMap;
use axum::routing::{delete, get, patch, post, put};
use axum::{Json, Router};
use countersign_factory::CertificateRequest;
use countersign_identity::{DeviceId, Fingerprint, TenantId};
use countersign_policy::{ClientIdMode, FactSource, LifecycleState};
use countersign_registry::{Actor, MissingDevice, NewDevice, RegistryError, Revocation};
use serde_json::{Value, json};

use super::body::{
    BindBody, CertificateBody, DeviceBody, DeviceQuery, ExchangeQuery, HostBody, ImportBody, MoveBody,
    ProvisionBody, RevokeBody, TenantBody, TenantQuery, TenantSettings,
};
use super::{
    attestations, authorities, batches, claims, keeping, ledger, policies, receipts, services, stations,
};
use crate::failure::Failure;
use crate::service::{PolicyDraft, Service, Wanted};

pub(super) type App = State<Arc<Service>>;
pub(super) type Answer = Result<Json<Value>, Failure>;

/// JSON whose faults are told as problems.
#[derive(FromRequest)]
#[from_request(via(Json), rejection(Failure))]
pub(super) struct Body<T>(pub(super) T);

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
pub(super) struct In<T>(pub(super) T);

impl From<PathRejection> for Failure {
    fn from(e: PathRejection) -> Self {
        Self::invalid(e.body_text())
    }
}

/// A query whose faults are told as problems.
#[derive(FromRequestParts)]
#[from_request(via(Query), rejection(Failure))]
pub(super) struct Asked<T>(pub(super) T);

impl From<QueryRejection> for Failure {
    fn from(e: QueryRejection) -> Self {
        Self::invalid(e.body_text())
    }
}

pub(super) fn routes() -> Router<Arc<Service>> {
    Router::new()
        .route("/status", get(status))
        .route("/doctor", get(doctor))
        .route("/forecast", get(keeping::forecast))
        .route("/backups", post(keeping::backup))
        .route("/clock", get(keeping::clock))
        .route("/clock/reset", post(keeping::reset_clock))
        .route("/tenants", get(tenants).post(add_tenant))
        .route("/tenants/{tenant}", patch(configure_tenant))
        .route("/tenants/{tenant}/policies", get(policies::versions))
        .route("/tenants/{tenant}/policies/simulate", post(policies::simulate))
        .route("/tenants/{tenant}/policies/{number}", get(policies::version))
        .route(
            "/tenants/{tenant}/policies/{number}/revert",
            post(policies::revert),
        )
        .route("/tenants/{tenant}/hosts", post(add_host))
        .route("/tenants/{tenant}/hosts/{host}", delete(remove_host))
        .route(
            "/authorities",
            get(authorities::authorities).post(authorities::add_authority),
        )
        .route(
            "/authorities/{authority}",
            patch(authorities::configure_authority),
        )
        .route(
            "/authorities/{authority}/revocation-list",
            get(authorities::list_view)
                .put(authorities::set_list_settings)
                .post(authorities::take_lists)
                .delete(authorities::drop_lists),
        )
        .route(
            "/authorities/{authority}/proof",
            post(authorities::prove_authority),
        )
        .route("/authorities/{authority}/code", post(authorities::renew_code))
        .route(
            "/authorities/{authority}/moves",
            post(authorities::move_authority),
        )
        .route(
            "/authorities/{authority}/dependents",
            get(authorities::dependents),
        )
        .route(
            "/authorities/{authority}/root-key",
            get(authorities::root_key).delete(authorities::forget_root_key),
        )
        .route(
            "/tenants/{tenant}/intermediates",
            post(authorities::store_intermediate),
        )
        .route("/authorities/platform", get(platform_root))
        .route("/tenants/{tenant}/device-ca", get(device_ca))
        .route("/tenants/{tenant}/devices", get(devices).post(add_device))
        .route("/tenants/{tenant}/devices/import", post(import_devices))
        .route("/tenants/{tenant}/devices/{device}", get(device))
        .route("/tenants/{tenant}/devices/{device}/moves", post(move_device))
        .route("/tenants/{tenant}/devices/{device}/authority", put(bind_device))
        .route(
            "/tenants/{tenant}/devices/{device}/exposure",
            get(ledger::exposure),
        )
        .route("/rejections", get(ledger::causes))
        .route("/rejections/exchanges", get(ledger::refusals))
        .route("/tenants/{tenant}/devices/{device}/pins", post(pin))
        .route("/tenants/{tenant}/devices/{device}/secrets", post(new_secret))
        .route("/tenants/{tenant}/devices/{device}/revoke", post(revoke_device))
        .route("/tenants/{tenant}/devices/{device}/certificates", post(provision))
        .route("/tenants/{tenant}/devices/{device}/sessions", delete(disconnect))
        .route(
            "/tenants/{tenant}/claims",
            get(claims::claims).post(claims::add_claim),
        )
        .route("/tenants/{tenant}/claims/{claim}", get(claims::claim))
        .route(
            "/tenants/{tenant}/claims/{claim}/revoke",
            post(claims::revoke_claim),
        )
        .route("/credentials/{fingerprint}/revoke", post(revoke))
        .route("/credentials/{fingerprint}/confirm", post(confirm))
        .route(
            "/tenants/{tenant}/batches",
            get(batches::batches).post(batches::add_batch),
        )
        .route("/tenants/{tenant}/manifests", post(batches::import_manifest))
        .route("/tenants/{tenant}/batches/{batch}", get(batches::batch))
        .route(
            "/tenants/{tenant}/batches/{batch}/close",
            post(batches::close_batch),
        )
        .route(
            "/tenants/{tenant}/batches/{batch}/certificates",
            post(batches::issue),
        )
        .route(
            "/tenants/{tenant}/batches/{batch}/confirm",
            post(batches::confirm),
        )
        .route("/tenants/{tenant}/batches/{batch}/revoke", post(batches::revoke))
        .merge(stations::routes())
        .merge(receipts::routes())
        .merge(services::routes())
        .merge(attestations::routes())
        .route("/sessions", get(sessions))
        .route("/clones", get(clones))
        .route("/exchanges", get(exchanges))
        .route("/why", post(policies::why))
        .route("/audit", get(audit))
        .route("/server-certificate/reload", post(reload_server_certificate))
}

/// Who asks, for the audit. The token is what authorises; this is only a name.
pub(super) fn actor(headers: &HeaderMap) -> Actor {
    let name = headers
        .get("x-countersign-actor")
        .and_then(|v| v.to_str().ok())
        .unwrap_or("api");
    Actor(name.chars().take(64).collect())
}

/// The most characters of an idempotency key.
const KEY_MAX: usize = 128;

/// The requester's own key for the request, if it gives one. One that is not taken as it is would be no promise at all.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Failure> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let key = value.to_str().unwrap_or_default();
    if key.is_empty() || key.len() > KEY_MAX || values.next().is_some() {
        return Err(Failure::invalid(format!(
            "the idempotency key is not one value of 1 to {KEY_MAX} printable ASCII characters; hint: take a UUID"
        )));
    }
    Ok(Some(key.to_owned()))
}

/// Refuses a tenant that there is not, where all that is asked for is a list: it would be empty, and look like an answer.
pub(super) fn need_tenant<'a>(
    service: &Service,
    tenant: impl Into<Option<&'a TenantId>>,
) -> Result<(), Failure> {
    match tenant.into() {
        Some(tenant) if service.registry().facts().policy(tenant).is_none() => {
            Err(RegistryError::NoTenant(tenant.clone()).into())
        }
        _ => Ok(()),
    }
}

pub(super) fn encode(value: impl serde::Serialize) -> Answer {
    serde_json::to_value(value)
        .map(Json)
        .map_err(|e| Failure::internal(e.to_string()))
}

async fn status(State(service): App) -> Answer {
    let facts = service.registry().facts();
    let (host, port) = service.address();
    encode(json!({
        "epoch": service.registry().epoch()?.epoch,
        "revision": service.registry().revision()?,
        "listeners": service.listeners.get().map_or(&[][..], Vec::as_slice),
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
    let changes_policies = body.policies.is_some() || body.spaces.is_some();
    let draft = changes_policies.then_some(PolicyDraft {
        policies: body.policies,
        spaces: body.spaces,
        reason: body.reason,
        accept_lock_out: body.accept_lock_out,
        base: body.base,
        reverts: None,
    });
    let done = service
        .configure_tenant(actor(&headers), tenant.clone(), body.client_id_mode, draft)
        .await?;
    encode(policies::configured(json!({ "id": tenant }), done))
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

async fn platform_root(State(service): App) -> Answer {
    encode(json!({ "certificate": service.platform_root() }))
}

async fn device_ca(State(service): App, In(tenant): In<TenantId>) -> Answer {
    encode(json!({ "certificate": service.device_ca(&tenant)? }))
}

async fn devices(State(service): App, In(tenant): In<TenantId>, Asked(q): Asked<DeviceQuery>) -> Answer {
    need_tenant(&service, &tenant)?;
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
        authority: body.authority,
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
                    authority: d.authority,
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
    let batch = service.registry().batch_of(&tenant, &device)?;
    let destructions = service.registry().destructions(&tenant, &device)?;
    encode(json!({
        "device": view, "batch": batch, "credentials": credentials, "sessions": sessions, "destructions": destructions,
    }))
}

async fn bind_device(
    State(service): App,
    headers: HeaderMap,
    In((tenant, device)): In<(TenantId, DeviceId)>,
    Body(body): Body<BindBody>,
) -> Answer {
    let (by, id, authority) = (actor(&headers), device.clone(), body.authority.clone());
    service
        .change(move |r| r.bind_device(by, tenant, id, authority))
        .await?;
    encode(json!({ "id": device, "authority": body.authority }))
}

async fn move_device(
    State(service): App,
    headers: HeaderMap,
    In((tenant, device)): In<(TenantId, DeviceId)>,
    Body(body): Body<MoveBody>,
) -> Answer {
    let (lifecycle, told) = service
        .move_device(actor(&headers), tenant, device.clone(), body.into())
        .await?;
    let until = match lifecycle.state {
        LifecycleState::Suspended => lifecycle.suspended_until,
        LifecycleState::Quarantined => lifecycle.quarantined_until,
        _ => None,
    };
    let mut answer = json!({ "id": device, "state": lifecycle.state });
    if let Some(until) = until {
        answer["until"] = json!(until);
    }
    encode(told.into(answer))
}

async fn provision(
    State(service): App,
    headers: HeaderMap,
    In((tenant, device)): In<(TenantId, DeviceId)>,
    Body(body): Body<ProvisionBody>,
) -> Answer {
    let request =
        CertificateRequest::parse(body.request.as_bytes()).map_err(|e| Failure::invalid(e.to_string()))?;
    let wanted = Wanted {
        profile: body.profile,
        authority: body.authority,
        idempotency_key: idempotency_key(&headers)?,
        missing: if body.add_device {
            MissingDevice::Added
        } else {
            MissingDevice::Refused
        },
        ..Wanted::new(tenant, device, request)
    };
    encode(service.provision(actor(&headers), wanted).await?)
}

async fn new_secret(
    State(service): App,
    headers: HeaderMap,
    In((tenant, device)): In<(TenantId, DeviceId)>,
) -> Answer {
    let (secret, expires) = service
        .new_secret(actor(&headers), tenant, device.clone())
        .await?;
    encode(json!({ "id": device, "secret": secret, "expires": expires }))
}

async fn disconnect(
    State(service): App,
    headers: HeaderMap,
    In((tenant, device)): In<(TenantId, DeviceId)>,
) -> Answer {
    let told = service.disconnect(actor(&headers), &tenant, &device).await?;
    encode(told.into(json!({ "id": device })))
}

async fn revoke(
    State(service): App,
    headers: HeaderMap,
    In(fingerprint): In<Fingerprint>,
    Body(body): Body<RevokeBody>,
) -> Answer {
    let whose = Revocation::Credential(fingerprint);
    let (revoked, told) = service
        .revoke(actor(&headers), whose, body.code, body.reason)
        .await?;
    encode(told.into(json!({ "fingerprint": fingerprint, "state": "revoked", "revoked": revoked })))
}

async fn revoke_device(
    State(service): App,
    headers: HeaderMap,
    In((tenant, device)): In<(TenantId, DeviceId)>,
    Body(body): Body<RevokeBody>,
) -> Answer {
    if service.registry().device(&tenant, &device)?.is_none() {
        return Err(RegistryError::NoDevice { tenant, device }.into());
    }
    let whose = Revocation::Device(tenant, device.clone());
    let (revoked, told) = service
        .revoke(actor(&headers), whose, body.code, body.reason)
        .await?;
    encode(told.into(json!({ "id": device, "revoked": revoked })))
}

async fn confirm(State(service): App, headers: HeaderMap, In(fingerprint): In<Fingerprint>) -> Answer {
    service.confirm(actor(&headers), fingerprint).await?;
    encode(json!({ "fingerprint": fingerprint, "state": "active" }))
}

async fn sessions(State(service): App, Asked(q): Asked<TenantQuery>) -> Answer {
    need_tenant(&service, q.tenant.as_ref())?;
    encode(
        service
            .gateway()
            .map(|g| g.sessions(q.tenant.as_ref()))
            .unwrap_or_default(),
    )
}

async fn clones(State(service): App, Asked(q): Asked<TenantQuery>) -> Answer {
    need_tenant(&service, q.tenant.as_ref())?;
    let mut suspects = service
        .gateway()
        .map(|g| g.suspected_clones())
        .unwrap_or_default();
    suspects.retain(|s| q.tenant.as_ref().is_none_or(|t| *t == s.tenant));
    encode(suspects)
}

async fn exchanges(State(service): App, Asked(q): Asked<ExchangeQuery>) -> Answer {
    need_tenant(&service, q.tenant.as_ref())?;
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

async fn pin(
    State(service): App,
    headers: HeaderMap,
    In((tenant, device)): In<(TenantId, DeviceId)>,
    Body(body): Body<CertificateBody>,
) -> Answer {
    let (fingerprint, added) = service
        .pin_certificate(actor(&headers), tenant, device.clone(), &body.certificate)
        .await?;
    encode(json!({ "device": device, "fingerprint": fingerprint, "added": added }))
}
