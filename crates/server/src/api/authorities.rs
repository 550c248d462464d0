//! The endpoints of authorities.

use axum::extract::State;
use axum::http::HeaderMap;
use countersign_identity::{AnchorState, AuthorityId, TenantId};
use serde_json::json;

use super::body::{
    AuthorityBody, AuthorityMoveBody, AuthorityOrigin, AuthoritySettings, CertificateBody, LimitQuery,
};
use super::handlers::{Answer, App, Asked, Body, In, actor, encode};
use crate::failure::Failure;
use crate::service::{AuthorityDraft, now};

pub(super) async fn authorities(State(service): App) -> Answer {
    encode(service.registry().authorities()?)
}

pub(super) async fn add_authority(
    State(service): App,
    headers: HeaderMap,
    Body(body): Body<AuthorityBody>,
) -> Answer {
    let draft = AuthorityDraft {
        id: body.id.clone(),
        tenant: body.tenant,
        rule: body.identity_rule,
        admission: body.admission,
    };
    let by = actor(&headers);
    let active = json!({ "id": body.id, "state": AnchorState::Active });
    match (body.origin, body.certificate) {
        (AuthorityOrigin::Registered, Some(certificate)) => {
            encode(service.register_authority(by, draft, &certificate).await?)
        }
        (AuthorityOrigin::Installed, Some(chain)) => {
            tokio::task::block_in_place(|| service.install_authority(&by, draft, &chain))?;
            encode(active)
        }
        (AuthorityOrigin::Managed, None) => {
            tokio::task::block_in_place(|| service.create_authority(&by, draft))?;
            encode(active)
        }
        (AuthorityOrigin::Factory, None) => {
            tokio::task::block_in_place(|| service.create_factory(&by, draft))?;
            encode(active)
        }
        (AuthorityOrigin::Requested, None) => {
            let request = tokio::task::block_in_place(|| service.request_authority(&draft))?;
            encode(json!({ "id": body.id, "request": request }))
        }
        (origin, _) => Err(Failure::invalid(format!(
            "origin {origin:?} and certificate do not go together; hint: registered and installed need one, managed, factory and requested make one"
        ))),
    }
}

pub(super) async fn configure_authority(
    State(service): App,
    headers: HeaderMap,
    In(id): In<AuthorityId>,
    Body(body): Body<AuthoritySettings>,
) -> Answer {
    let sessions = service
        .configure_authority(actor(&headers), id.clone(), body.identity_rule, body.admission)
        .await?;
    encode(json!({ "id": id, "sessions": sessions }))
}

pub(super) async fn prove_authority(
    State(service): App,
    headers: HeaderMap,
    In(id): In<AuthorityId>,
    Body(body): Body<CertificateBody>,
) -> Answer {
    service
        .prove_authority(actor(&headers), id.clone(), &body.certificate)
        .await?;
    encode(json!({ "id": id, "state": AnchorState::Active }))
}

pub(super) async fn renew_code(State(service): App, headers: HeaderMap, In(id): In<AuthorityId>) -> Answer {
    encode(service.renew_code(actor(&headers), id).await?)
}

pub(super) async fn move_authority(
    State(service): App,
    headers: HeaderMap,
    In(id): In<AuthorityId>,
    Body(body): Body<AuthorityMoveBody>,
) -> Answer {
    let (state, sessions) = service
        .move_authority(actor(&headers), id.clone(), body.attempted, body.reason)
        .await?;
    encode(json!({ "id": id, "state": state, "sessions": sessions }))
}

pub(super) async fn dependents(
    State(service): App,
    In(id): In<AuthorityId>,
    Asked(q): Asked<LimitQuery>,
) -> Answer {
    service.registry().authority_certificate(&id)?;
    let limit = q.limit.unwrap_or(100).clamp(1, 10_000);
    let (count, devices) = service.registry().dependents(&id, now(), limit)?;
    encode(json!({ "count": count, "devices": devices }))
}

pub(super) async fn root_key(State(service): App, In(id): In<AuthorityId>) -> Answer {
    encode(json!({ "id": id, "key": service.root_key(&id)? }))
}

pub(super) async fn forget_root_key(State(service): App, In(id): In<AuthorityId>) -> Answer {
    service.forget_root_key(&id)?;
    encode(json!({ "id": id }))
}

pub(super) async fn store_intermediate(
    State(service): App,
    headers: HeaderMap,
    In(tenant): In<TenantId>,
    Body(body): Body<CertificateBody>,
) -> Answer {
    service
        .store_intermediate(actor(&headers), tenant.clone(), &body.certificate)
        .await?;
    encode(json!({ "tenant": tenant }))
}
