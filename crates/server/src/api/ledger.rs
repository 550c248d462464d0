//! The endpoints of the ledger: refusals by cause, refused exchanges by what is known of them, and what a device did.

use axum::extract::State;
use countersign_identity::{DeviceId, Fingerprint, TenantId, Timestamp};
use countersign_policy::{DenialCode, ExchangeId};
use countersign_registry::{CauseQuery, Network, RefusalQuery};
use serde::Deserialize;

use super::handlers::{Answer, App, Asked, In, encode, need_tenant};
use crate::failure::Failure;

/// A moment in a query: RFC 3339, or milliseconds since 1970.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Moment(Timestamp);

impl TryFrom<String> for Moment {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let ms = text.parse().ok().map(Timestamp::from_unix_ms);
        ms.or_else(|| Timestamp::parse_rfc3339(&text))
            .map(Self)
            .ok_or_else(|| format!("{text:?} is neither RFC 3339 nor milliseconds since 1970"))
    }
}

/// An address or a network in a query.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Source(Network);

impl TryFrom<String> for Source {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map(Self)
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct CausesQuery {
    since: Option<Moment>,
    tenant: Option<TenantId>,
    code: Option<DenialCode>,
    after: Option<String>,
    limit: Option<usize>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RefusalsQuery {
    serial: Option<String>,
    fingerprint: Option<Fingerprint>,
    source: Option<Source>,
    code: Option<DenialCode>,
    device: Option<DeviceId>,
    tenant: Option<TenantId>,
    since: Option<Moment>,
    before: Option<ExchangeId>,
    limit: Option<u32>,
}

#[derive(Debug, Deserialize)]
pub(super) struct WindowQuery {
    from: Option<Moment>,
    to: Option<Moment>,
}

pub(super) async fn causes(State(service): App, Asked(q): Asked<CausesQuery>) -> Answer {
    need_tenant(&service, q.tenant.as_ref())?;
    let asked = CauseQuery {
        since: q.since.map(|m| m.0),
        tenant: q.tenant,
        code: q.code,
        after: q.after,
        limit: q.limit.unwrap_or(100).clamp(1, 1000),
    };
    tokio::task::block_in_place(|| {
        let ledger = service.registry().ledger();
        ledger.flush();
        encode(ledger.causes(&asked)?)
    })
}

pub(super) async fn refusals(State(service): App, Asked(q): Asked<RefusalsQuery>) -> Answer {
    need_tenant(&service, q.tenant.as_ref())?;
    let asked = RefusalQuery {
        serial: q.serial,
        fingerprint: q.fingerprint,
        source: q.source.map(|s| s.0),
        code: q.code,
        device: q.device,
        tenant: q.tenant,
        since: q.since.map(|m| m.0),
        before: q.before,
        limit: q.limit.unwrap_or(100).clamp(1, 1000),
    };
    tokio::task::block_in_place(|| {
        let ledger = service.registry().ledger();
        ledger.flush();
        encode(ledger.refusals(&asked)?)
    })
}

pub(super) async fn exposure(
    State(service): App,
    In((tenant, device)): In<(TenantId, DeviceId)>,
    Asked(q): Asked<WindowQuery>,
) -> Answer {
    let (Some(from), Some(to)) = (q.from, q.to) else {
        return Err(Failure::invalid(
            "a window has a beginning and an end: from and to, RFC 3339 or milliseconds since 1970",
        ));
    };
    encode(tokio::task::block_in_place(|| {
        service.exposure(&tenant, &device, from.0, to.0)
    })?)
}
