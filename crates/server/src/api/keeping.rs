//! The endpoints of what keeps the platform: its clock, its backups, what expires.

use axum::extract::State;
use axum::http::HeaderMap;
use serde_json::json;

use super::body::{BackupBody, ReasonBody, TenantQuery};
use super::handlers::{Answer, App, Asked, Body, actor, encode, need_tenant};
use crate::backup::Keys;
use crate::failure::Failure;

pub(super) async fn clock(State(service): App) -> Answer {
    encode(service.registry().clock_view())
}

pub(super) async fn reset_clock(
    State(service): App,
    headers: HeaderMap,
    Body(body): Body<ReasonBody>,
) -> Answer {
    let before = service.reset_clock(actor(&headers), body.reason).await?;
    encode(json!({ "before": before, "clock": service.registry().clock_view() }))
}

pub(super) async fn backup(State(service): App, headers: HeaderMap, Body(body): Body<BackupBody>) -> Answer {
    let keys = if body.with_keys {
        Keys::Include
    } else {
        Keys::LeaveOut
    };
    let by = actor(&headers);
    let path = body.path.clone();
    let made = tokio::task::spawn_blocking(move || service.backup(by, &path, keys))
        .await
        .map_err(|e| Failure::internal(format!("the backup failed: {e}")))??;
    encode(json!({ "path": body.path, "manifest": made }))
}

pub(super) async fn forecast(State(service): App, Asked(q): Asked<TenantQuery>) -> Answer {
    need_tenant(&service, q.tenant.as_ref())?;
    encode(tokio::task::block_in_place(|| {
        service.forecast(q.tenant.as_ref())
    })?)
}
