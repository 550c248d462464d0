//! The endpoints of policies, and of the question why somebody is let in or not.

use axum::extract::State;
use axum::http::HeaderMap;
use countersign_identity::{TenantId, Timestamp};
use countersign_policy::TopicSpace;
use serde::Deserialize;
use serde_json::{Value, json};

use super::handlers::{Answer, App, Body, In, actor, encode};
use crate::failure::Failure;
use crate::service::{Configured, PolicyDraft, WhyAsked, blocking};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RevertBody {
    reason: String,
    #[serde(default)]
    accept_lock_out: bool,
    #[serde(default)]
    base: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SimulateBody {
    #[serde(default)]
    policies: Option<String>,
    #[serde(default)]
    spaces: Option<Vec<TopicSpace>>,
    #[serde(default)]
    since: Option<Timestamp>,
    #[serde(default)]
    limit: Option<u32>,
}

/// Exchanges that are replayed unless a number is given.
const EXCHANGES: u32 = 10_000;
/// The most that are replayed, whatever number is given.
const EXCHANGES_MAX: u32 = 100_000;

/// What became of a change of a tenant's settings; `changed` is false if all of it was in force already.
pub(super) fn configured(mut answer: Value, configured: Configured) -> Value {
    answer["version"] = json!(configured.version);
    answer["changed"] = json!(configured.told.is_some());
    if !configured.warnings.is_empty() {
        answer["warnings"] = json!(configured.warnings);
    }
    match configured.told {
        Some(told) => told.into(answer),
        None => answer,
    }
}

pub(super) async fn versions(State(service): App, In(tenant): In<TenantId>) -> Answer {
    encode(blocking(move || service.registry().policy_headings(&tenant)).await?)
}

pub(super) async fn version(State(service): App, In((tenant, number)): In<(TenantId, String)>) -> Answer {
    let number = match number.as_str() {
        "current" => None,
        text => Some(text.parse().map_err(|_| {
            Failure::invalid(format!(
                "{text:?} is no version; hint: write its number, or current"
            ))
        })?),
    };
    encode(blocking(move || service.registry().policy_version(&tenant, number)).await?)
}

pub(super) async fn revert(
    State(service): App,
    headers: HeaderMap,
    In((tenant, number)): In<(TenantId, u64)>,
    Body(body): Body<RevertBody>,
) -> Answer {
    let by = actor(&headers);
    let draft = PolicyDraft {
        reason: body.reason,
        accept_lock_out: body.accept_lock_out,
        base: body.base,
        ..PolicyDraft::default()
    };
    let done = service.revert_policies(by, tenant.clone(), number, draft).await?;
    encode(configured(json!({ "id": tenant, "reverts": number }), done))
}

pub(super) async fn simulate(
    State(service): App,
    In(tenant): In<TenantId>,
    Body(body): Body<SimulateBody>,
) -> Answer {
    let limit = body.limit.unwrap_or(EXCHANGES).min(EXCHANGES_MAX);
    let simulated = tokio::task::spawn_blocking(move || {
        service.simulate(
            &tenant,
            body.policies.as_deref(),
            body.spaces.as_deref(),
            body.since,
            limit,
        )
    });
    encode(
        simulated
            .await
            .map_err(|e| Failure::internal(format!("the simulation failed: {e}")))??,
    )
}

pub(super) async fn why(State(service): App, Body(asked): Body<WhyAsked>) -> Answer {
    let answered = tokio::task::spawn_blocking(move || service.why(&asked));
    let all = answered
        .await
        .map_err(|e| Failure::internal(format!("the question failed: {e}")))??;
    let admitted = all.iter().any(|a| a.why.admitted);
    // Cause and cure beside each refusal.
    let mut answers = serde_json::to_value(&all).map_err(|e| Failure::internal(e.to_string()))?;
    for (answer, shown) in all.iter().zip(answers.as_array_mut().into_iter().flatten()) {
        for (layer, told) in answer
            .why
            .layers
            .iter()
            .zip(shown["layers"].as_array_mut().into_iter().flatten())
        {
            if let Some(denial) = &layer.denial {
                told["cause"] = json!(denial.code.cause());
                told["cure"] = json!(denial.code.cure());
            }
        }
    }
    encode(json!({ "admitted": admitted, "answers": answers }))
}
