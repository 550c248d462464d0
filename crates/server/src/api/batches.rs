//! The endpoints of batches.

use axum::extract::State;
use axum::http::HeaderMap;
use countersign_factory::{Batch, DeviceStart, RevocationReason, SigningWindow};
use countersign_identity::{AuthorityId, BatchId, DeviceId, Fingerprint, IdPattern, TenantId};
use countersign_registry::Revocation;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::handlers::{Answer, App, Body, In, actor, encode, need_tenant};
use crate::service::{BulkWanted, ManifestImport};

/// A batch to be.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BatchBody {
    pub id: BatchId,
    pub model: String,
    pub profile: String,
    #[serde(default)]
    pub groups: Vec<String>,
    #[serde(default)]
    pub devices_start: DeviceStart,
    #[serde(default)]
    pub authority: Option<AuthorityId>,
    pub id_pattern: IdPattern,
    pub quota: u64,
    #[serde(default)]
    pub window: SigningWindow,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReasonBody {
    #[serde(default)]
    reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RevokeBatchBody {
    #[serde(default)]
    code: RevocationReason,
    #[serde(default)]
    reason: String,
}

/// Certificates that are asked for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BulkBody {
    pub devices: Vec<BulkWanted>,
    #[serde(default)]
    pub replace: bool,
}

/// What is to be confirmed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConfirmBody {
    #[serde(default)]
    pub fingerprints: Vec<Fingerprint>,
    #[serde(default)]
    pub devices: Vec<DeviceId>,
}

pub(super) async fn batches(State(service): App, In(tenant): In<TenantId>) -> Answer {
    need_tenant(&service, &tenant)?;
    encode(service.registry().batches(&tenant)?)
}

pub(super) async fn batch(State(service): App, In((tenant, batch)): In<(TenantId, BatchId)>) -> Answer {
    encode(service.registry().batch(&tenant, &batch)?)
}

pub(super) async fn add_batch(
    State(service): App,
    headers: HeaderMap,
    In(tenant): In<TenantId>,
    Body(body): Body<BatchBody>,
) -> Answer {
    let batch = Batch {
        id: body.id,
        tenant,
        model: body.model,
        profile: body.profile,
        groups: body.groups,
        devices_start: body.devices_start,
        authority: body.authority,
        id_pattern: body.id_pattern,
        quota: body.quota,
        window: body.window,
    };
    encode(service.add_batch(actor(&headers), batch).await?)
}

pub(super) async fn close_batch(
    State(service): App,
    headers: HeaderMap,
    In((tenant, batch)): In<(TenantId, BatchId)>,
    Body(body): Body<ReasonBody>,
) -> Answer {
    let (by, of, id) = (actor(&headers), tenant.clone(), batch.clone());
    service
        .change(move |r| r.close_batch(by, of, id, body.reason))
        .await?;
    encode(service.registry().batch(&tenant, &batch)?)
}

pub(super) async fn issue(
    State(service): App,
    headers: HeaderMap,
    In((tenant, batch)): In<(TenantId, BatchId)>,
    Body(body): Body<BulkBody>,
) -> Answer {
    encode(
        service
            .issue_in_batch(actor(&headers), tenant, batch, body.replace, body.devices)
            .await?,
    )
}

pub(super) async fn confirm(
    State(service): App,
    headers: HeaderMap,
    In((tenant, batch)): In<(TenantId, BatchId)>,
    Body(body): Body<ConfirmBody>,
) -> Answer {
    encode(
        service
            .confirm_in_batch(actor(&headers), tenant, batch, body.fingerprints, body.devices)
            .await?,
    )
}

pub(super) async fn import_manifest(
    State(service): App,
    headers: HeaderMap,
    In(tenant): In<TenantId>,
    Body(body): Body<ManifestImport>,
) -> Answer {
    encode(service.import_manifest(actor(&headers), tenant, body).await?)
}

pub(super) async fn revoke(
    State(service): App,
    headers: HeaderMap,
    In((tenant, batch)): In<(TenantId, BatchId)>,
    Body(body): Body<RevokeBatchBody>,
) -> Answer {
    service.registry().batch(&tenant, &batch)?;
    let whose = Revocation::Batch(tenant, batch.clone());
    let (revoked, told) = service
        .revoke(actor(&headers), whose, body.code, body.reason)
        .await?;
    encode(told.into(json!({ "batch": batch, "revoked": revoked })))
}
