//! The endpoints of what keeps the platform: its clock.

use axum::extract::State;
use axum::http::HeaderMap;
use serde_json::json;

use super::body::ReasonBody;
use super::handlers::{Answer, App, Body, actor, encode};

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
