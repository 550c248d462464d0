//! The endpoints of offline factory stations.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::HeaderMap;
use axum::routing::{get, post};
use countersign_factory::station::IdRange;
use countersign_factory::station::journal::Ending;
use countersign_factory::{CertificateRequest, RevocationReason};
use countersign_identity::{AuthorityId, BatchId, Fingerprint, StationId, TenantId, Timestamp};
use countersign_registry::Overlap;
use serde::Deserialize;
use serde_json::json;

use super::handlers::{Answer, App, Body, In, actor, encode, need_tenant};
use crate::failure::Failure;
use crate::service::{Service, StationDraft};

/// The largest journal, in bytes: of some 100,000 devices.
const JOURNAL_BYTES_MAX: usize = 256 << 20;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StationBody {
    id: StationId,
    batch: BatchId,
    request: String,
    quota: u64,
    from: Timestamp,
    to: Timestamp,
    #[serde(default)]
    ids: Option<IdRange>,
    #[serde(default)]
    authority: Option<AuthorityId>,
    #[serde(default)]
    overlap: Overlap,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RevokeStationBody {
    #[serde(default)]
    with_devices: bool,
    #[serde(default)]
    code: RevocationReason,
    #[serde(default)]
    reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct JournalBody {
    journal: String,
    #[serde(default)]
    salvaged: bool,
}

pub(super) fn routes() -> Router<Arc<Service>> {
    Router::new()
        .route("/tenants/{tenant}/stations", get(stations).post(add_station))
        .route("/tenants/{tenant}/stations/{station}", get(station))
        .route("/tenants/{tenant}/stations/{station}/grant", get(grant))
        .route("/tenants/{tenant}/stations/{station}/revoke", post(revoke))
        .route(
            "/journals",
            post(reconcile).layer(DefaultBodyLimit::max(JOURNAL_BYTES_MAX)),
        )
}

async fn stations(State(service): App, In(tenant): In<TenantId>) -> Answer {
    need_tenant(&service, &tenant)?;
    encode(service.registry().stations(&tenant)?)
}

async fn station(State(service): App, In((tenant, id)): In<(TenantId, StationId)>) -> Answer {
    service.need_station(&tenant, &id)?;
    encode(service.registry().station(&id)?)
}

async fn add_station(
    State(service): App,
    headers: HeaderMap,
    In(tenant): In<TenantId>,
    Body(body): Body<StationBody>,
) -> Answer {
    let request = CertificateRequest::parse(body.request.as_bytes()).map_err(|e| {
        Failure::invalid(format!(
            "the station's request: {e}; hint: give station.csr of countersign-station init"
        ))
    })?;
    let draft = StationDraft {
        id: body.id.clone(),
        tenant,
        batch: body.batch,
        request,
        ids: body.ids,
        quota: body.quota,
        from: body.from,
        to: body.to,
        authority: body.authority,
        overlap: body.overlap,
    };
    let file = service.add_station(actor(&headers), draft).await?;
    answer_grant(&body.id, &file)
}

fn answer_grant(id: &StationId, file: &[u8]) -> Answer {
    let text = std::str::from_utf8(file).map_err(|e| Failure::internal(e.to_string()))?;
    encode(json!({ "id": id, "grant": text, "sha256": Fingerprint::of(file) }))
}

async fn grant(State(service): App, In((tenant, id)): In<(TenantId, StationId)>) -> Answer {
    service.need_station(&tenant, &id)?;
    answer_grant(&id, &service.registry().station_grant(&id)?)
}

async fn revoke(
    State(service): App,
    headers: HeaderMap,
    In((tenant, id)): In<(TenantId, StationId)>,
    Body(body): Body<RevokeStationBody>,
) -> Answer {
    service.need_station(&tenant, &id)?;
    let (revoked, told) = service
        .revoke_station(
            actor(&headers),
            id.clone(),
            body.code,
            body.reason,
            body.with_devices,
        )
        .await?;
    encode(told.into(json!({ "id": id, "state": "revoked", "revoked": revoked })))
}

async fn reconcile(State(service): App, headers: HeaderMap, Body(body): Body<JournalBody>) -> Answer {
    let ending = if body.salvaged {
        Ending::Salvaged
    } else {
        Ending::Sealed
    };
    let by = actor(&headers);
    let report = tokio::task::block_in_place(|| service.reconcile(by, body.journal.as_bytes(), ending))?;
    encode(report)
}
