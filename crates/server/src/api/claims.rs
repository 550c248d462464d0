//! The endpoints of claims.

use axum::extract::State;
use axum::http::HeaderMap;
use countersign_factory::RevocationReason;
use countersign_identity::TenantId;
use countersign_policy::ClaimId;
use countersign_policy::claim::AllowList;
use countersign_registry::RegistryError;
use serde::Deserialize;
use serde_json::json;

use super::handlers::{Answer, App, Body, In, actor, encode, need_tenant};
use crate::failure::Failure;
use crate::service::{ClaimDraft, now};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClaimBody {
    pub id: ClaimId,
    pub allow: AllowList,
    pub days: u32,
    #[serde(default)]
    pub certificate: Option<String>,
    #[serde(default)]
    pub profile: Option<String>,
    #[serde(default)]
    pub model: Option<String>,
    #[serde(default)]
    pub groups: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClaimRevokeBody {
    #[serde(default)]
    pub reason: String,
    /// Whether everything it minted is revoked with it.
    #[serde(default)]
    pub minted: bool,
    #[serde(default)]
    pub code: RevocationReason,
}

pub(super) async fn claims(State(service): App, In(tenant): In<TenantId>) -> Answer {
    need_tenant(&service, &tenant)?;
    encode(service.registry().claims(&tenant, now())?)
}

pub(super) async fn add_claim(
    State(service): App,
    headers: HeaderMap,
    In(tenant): In<TenantId>,
    Body(body): Body<ClaimBody>,
) -> Answer {
    let draft = ClaimDraft {
        id: body.id.clone(),
        allow: body.allow,
        days: body.days,
        certificate: body.certificate,
        profile: body.profile,
        model: body.model,
        groups: body.groups,
    };
    let (secret, expires) = service.add_claim(actor(&headers), tenant, draft).await?;
    encode(json!({ "id": body.id, "secret": secret, "expires": expires }))
}

pub(super) async fn claim(State(service): App, In((tenant, id)): In<(TenantId, ClaimId)>) -> Answer {
    let registry = service.registry();
    let all = registry.claims(&tenant, now())?;
    let Some(view) = all.into_iter().find(|c| c.id == id) else {
        return Err(Failure::from(RegistryError::NoClaim(id)));
    };
    encode(json!({ "claim": view, "minted": registry.minted_on(&tenant, &id)? }))
}

pub(super) async fn revoke_claim(
    State(service): App,
    headers: HeaderMap,
    In((tenant, id)): In<(TenantId, ClaimId)>,
    Body(body): Body<ClaimRevokeBody>,
) -> Answer {
    let by = actor(&headers);
    let code = body.minted.then_some(body.code);
    let (revoked, told) = service
        .revoke_claim(by, tenant.clone(), id.clone(), code, body.reason)
        .await?;
    let minted = service.registry().minted_on(&tenant, &id)?;
    encode(told.into(json!({ "id": id, "minted": minted, "revoked": revoked })))
}
