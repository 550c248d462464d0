//! The admin API: REST and JSON under `/api/v1`, problem+json errors (RFC 9457), a bearer token from the data directory.
//!
//! The CLI has no other way to change anything: against a running server it comes over loopback, otherwise it calls
//! the very same router in its own process.

mod attestations;
mod authorities;
mod batches;
mod body;
mod claims;
mod handlers;
mod keeping;
mod ledger;
#[cfg(test)]
mod openapi;
mod policies;
mod receipts;
mod services;
mod stations;
mod token;

pub(crate) use batches::{BatchBody, BulkBody, ConfirmBody};
pub(crate) use body::{ImportBody, ImportDevice};
pub(crate) use token::Token;

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;

use crate::failure::Failure;
use crate::metrics;
use crate::service::Service;
use crate::tokens::discovery;

/// The largest request, in bytes: an import of some thousand devices with their certificates.
const BODY_MAX: usize = 64 << 20;

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let problem = json!({
            "type": "about:blank",
            "title": status.canonical_reason().unwrap_or("error"),
            "status": self.status,
            "detail": self.message,
            "hint": self.hint,
        });
        (
            status,
            [(header::CONTENT_TYPE, "application/problem+json")],
            problem.to_string(),
        )
            .into_response()
    }
}

/// The router. `token` guards everything under `/api`.
pub fn router(service: Arc<Service>, token: Token) -> Router {
    let api = handlers::routes()
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(middleware::from_fn_with_state(token, authenticate));
    Router::new()
        .nest("/api/v1", api)
        .route("/metrics", get(metrics::handler))
        .route(
            "/health/live",
            get(|| async { Json(json!({ "status": "live" })) }),
        )
        .route("/health/ready", get(ready))
        .route(discovery::JWKS, get(public_document))
        .route(discovery::METADATA, get(public_document))
        .route("/api/v1/{*rest}", post(unknown).get(unknown))
        .fallback(unknown)
        .with_state(service)
}

async fn unknown() -> Failure {
    Failure::not_found(
        "there is no such endpoint",
        "the endpoints are in openapi/countersign.json",
    )
}

/// What anybody may know: the keys that sign tokens, and where what is asked.
async fn public_document(State(service): State<Arc<Service>>, uri: Uri) -> Response {
    match discovery::document(&service, uri.path()) {
        Some((kind, body)) => (
            [
                (header::CONTENT_TYPE, kind.to_owned()),
                (header::CACHE_CONTROL, discovery::cache_control()),
            ],
            body.to_string(),
        )
            .into_response(),
        None => Failure::unavailable("the device port is not open", "wait").into_response(),
    }
}

async fn ready(State(service): State<Arc<Service>>) -> Response {
    use countersign_policy::FactSource;
    match service.registry().facts().health() {
        Ok(()) if service.gateway().is_some() => Json(json!({ "status": "ready" })).into_response(),
        Ok(()) => Failure::unavailable("the device port is not open", "wait").into_response(),
        Err(e) => Failure::unavailable(e.to_string(), "look at countersign doctor").into_response(),
    }
}

async fn authenticate(State(token): State<Token>, request: Request, next: Next) -> Response {
    let shown = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.strip_prefix("Bearer "));
    if shown.is_some_and(|shown| token.is(shown)) {
        return next.run(request).await;
    }
    let failure = Failure {
        status: 401,
        message: "the bearer token is missing or wrong".into(),
        hint: Some("it is in the file admin.token of the data directory, readable by its owner".into()),
        state: None,
    };
    failure.into_response()
}
