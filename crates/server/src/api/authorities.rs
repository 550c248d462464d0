//! The endpoints of authorities.

use axum::extract::State;
use axum::http::HeaderMap;
use countersign_identity::{AnchorState, AuthorityId, TenantId};
use countersign_registry::{ListSettings, ListView};
use serde_json::{Value, json};

use super::body::{
    AuthorityBody, AuthorityMoveBody, AuthorityOrigin, AuthoritySettings, CertificateBody, LimitQuery,
    ListBody,
};
use super::handlers::{Answer, App, Asked, Body, In, actor, encode};
use crate::failure::Failure;
use crate::service::{AuthorityDraft, Service};

pub(super) async fn authorities(State(service): App) -> Answer {
    let lists = service.registry().revocation_lists()?;
    let mut answer = Vec::new();
    for authority in service.registry().authorities()? {
        let mut row = serde_json::to_value(&authority).map_err(|e| Failure::internal(e.to_string()))?;
        if let Some((_, view)) = lists.iter().find(|(id, _)| *id == authority.id) {
            row["revocation_list"] = list_row(&service, view)?;
        }
        answer.push(row);
    }
    encode(answer)
}

/// With a word on whether it is current, and what happens if not.
fn list_row(service: &Service, view: &ListView) -> Result<Value, Failure> {
    let mut row = serde_json::to_value(view).map_err(|e| Failure::internal(e.to_string()))?;
    let stale = view.is_stale_at(service.now());
    row["stale"] = json!(stale);
    let word = if stale { "stale" } else { "current" };
    row["state"] = json!(format!("{word} ({})", view.settings.when_stale.name()));
    Ok(row)
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
        key_store: body.key_store,
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
    let told = service
        .configure_authority(
            actor(&headers),
            id.clone(),
            body.identity_rule,
            body.admission,
            body.leave_out,
        )
        .await?;
    encode(told.into(json!({ "id": id })))
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
    let (state, told) = service
        .move_authority(actor(&headers), id.clone(), body.attempted, body.reason)
        .await?;
    encode(told.into(json!({ "id": id, "state": state })))
}

pub(super) async fn dependents(
    State(service): App,
    In(id): In<AuthorityId>,
    Asked(q): Asked<LimitQuery>,
) -> Answer {
    let limit = q.limit.unwrap_or(100).clamp(1, 100_000);
    encode(tokio::task::block_in_place(|| {
        service.rotation_report(&id, limit as usize)
    })?)
}

pub(super) async fn root_key(State(service): App, In(id): In<AuthorityId>) -> Answer {
    encode(json!({ "id": id, "key": service.root_key(&id)? }))
}

pub(super) async fn forget_root_key(State(service): App, In(id): In<AuthorityId>) -> Answer {
    service.forget_root_key(&id)?;
    encode(json!({ "id": id }))
}

pub(super) async fn list_view(State(service): App, In(id): In<AuthorityId>) -> Answer {
    service.registry().authority_certificate(&id)?;
    match service.list_view(&id)? {
        Some(view) => encode(list_row(&service, &view)?),
        None => Err(Failure::not_found(
            format!("authority {id} is asked for no revocation list"),
            "countersign authority crl ID FILE gives it one",
        )),
    }
}

pub(super) async fn set_list_settings(
    State(service): App,
    headers: HeaderMap,
    In(id): In<AuthorityId>,
    Body(body): Body<ListSettings>,
) -> Answer {
    let sessions = service
        .set_list_settings(actor(&headers), id.clone(), Some(body))
        .await?;
    encode(json!({ "id": id, "sessions": sessions }))
}

pub(super) async fn drop_lists(State(service): App, headers: HeaderMap, In(id): In<AuthorityId>) -> Answer {
    let sessions = service
        .set_list_settings(actor(&headers), id.clone(), None)
        .await?;
    encode(json!({ "id": id, "sessions": sessions }))
}

pub(super) async fn take_lists(
    State(service): App,
    headers: HeaderMap,
    In(id): In<AuthorityId>,
    Body(body): Body<ListBody>,
) -> Answer {
    encode(
        service
            .take_lists(actor(&headers), id, body.lists.as_bytes())
            .await?,
    )
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
