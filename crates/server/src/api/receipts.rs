//! Bulk moves, and the receipts of everything that ends sessions.

use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::{get, post};
use countersign_identity::TenantId;
use countersign_registry::{Move, ReceiptId};
use serde_json::json;
use std::sync::Arc;

use super::body::{BulkMoveBody, ReceiptQuery};
use super::handlers::{Answer, App, Asked, Body, In, actor, encode, idempotency_key, need_tenant};
use crate::service::Service;

pub(super) fn routes() -> Router<Arc<Service>> {
    Router::new()
        .route("/tenants/{tenant}/bulk-moves", post(move_many))
        .route("/receipts", get(receipts))
        .route("/receipts/{receipt}", get(receipt))
}

async fn move_many(
    State(service): App,
    headers: HeaderMap,
    In(tenant): In<TenantId>,
    Body(body): Body<BulkMoveBody>,
) -> Answer {
    let wanted = Move {
        attempted: body.attempted,
        reason: body.reason,
        until: body.until,
        evidence: body.evidence,
    };
    if body.dry_run {
        let limit = body.limit.unwrap_or(100).clamp(1, 10_000);
        let plan = service.plan_moves(&tenant, &body.selector, &wanted, body.after.as_ref(), limit);
        return encode(plan.await?);
    }
    let receipt = service
        .move_many(
            actor(&headers),
            tenant,
            body.selector,
            wanted,
            idempotency_key(&headers)?,
        )
        .await?;
    encode(json!({ "receipt": receipt }))
}

async fn receipts(State(service): App, Asked(q): Asked<ReceiptQuery>) -> Answer {
    need_tenant(&service, q.tenant.as_ref())?;
    let limit = q.limit.unwrap_or(100).clamp(1, 1000);
    encode(service.receipts(q.tenant, limit).await?)
}

async fn receipt(State(service): App, In(id): In<ReceiptId>) -> Answer {
    encode(service.receipt(id).await?)
}
