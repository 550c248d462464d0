//! A token is a session without a connection: indexed and ended like any other, by the same events, for as long as it
//! says. What it looks like on the wire is not the gateway's business; it knows its id, its scope and its end.
//!
//! Tokens are kept in memory. After a restart none is known, and what is not known is not active.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use countersign_identity::{DeviceId, Fingerprint, TenantId, Timestamp};
use countersign_policy::{Denial, DenialCode, SpaceSet};
use parking_lot::Mutex;

use super::cutoff::reason_of;
use super::entry::{Admission, EndReason, SessionEntry};
use super::grant::{check, decide_anew};
use super::index::TooMany;
use crate::metrics::count;
use crate::node::Node;

/// The protocol's name in log and output.
const PROTOCOL: &str = "oauth2";

/// Names a token: 128 random bits, written as 32 hexadecimal digits. It is no secret: nobody is admitted by it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TokenId([u8; 16]);

impl TokenId {
    fn random() -> Result<Self, Denial> {
        let mut bytes = [0; 16];
        SystemRandom::new()
            .fill(&mut bytes)
            .map_err(|_| Denial::new(DenialCode::RegistryUnavailable, "there are no random numbers"))?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl FromStr for TokenId {
    type Err = &'static str;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let fits = s.len() == 32 && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        fits.then(|| u128::from_str_radix(s, 16).ok())
            .flatten()
            .map(|n| Self(n.to_be_bytes()))
            .ok_or("a token id has 32 hexadecimal digits in lower case")
    }
}

/// What makes a session a token.
#[derive(Debug)]
pub(crate) struct TokenFacts {
    pub(crate) id: TokenId,
    pub(crate) expires: Timestamp,
    /// The topic spaces that it may be used to publish to, by name: policies number them anew with each generation.
    scope: Box<[Box<str>]>,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct TokenWish<'a> {
    /// Names of topic spaces; `None` asks for all that policy permits.
    pub scope: Option<&'a [&'a str]>,
    /// How long it is to last; it never outlasts the certificate.
    pub lifetime: Duration,
    /// The time to mint by.
    pub now: Timestamp,
}

/// A token, granted or looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenView {
    /// Its id.
    pub id: TokenId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Whose it is.
    pub device: DeviceId,
    /// The certificate that it is bound to.
    pub fingerprint: Fingerprint,
    /// The topic spaces it may publish to now, by name.
    pub scope: Vec<String>,
    /// Since when, in whole seconds.
    pub issued: Timestamp,
    /// Until when, in whole seconds.
    pub expires: Timestamp,
}

/// Why no token is granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenRefusal {
    /// This topic space does not exist, or policy does not let the device publish to it.
    Scope(String),
    /// Anything else.
    Denied(Denial),
}

impl TokenRefusal {
    /// The same as a denial, for counter and ledger.
    pub(crate) fn denial(&self) -> Denial {
        match self {
            Self::Scope(names) => Denial::new(
                DenialCode::TokenScopeForbidden,
                // What the device named is as long as it likes.
                format!("the device may not publish to {:?}", shown(names)),
            ),
            Self::Denied(denial) => denial.clone(),
        }
    }
}

/// The beginning of what somebody sent: enough to know it again.
fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

impl From<Denial> for TokenRefusal {
    fn from(denial: Denial) -> Self {
        Self::Denied(denial)
    }
}

impl TokenFacts {
    /// The spaces of its scope, as the policy of an admission numbers them.
    pub(crate) fn spaces(&self, admission: &Admission) -> SpaceSet {
        let mut found = SpaceSet::default();
        for (n, space) in admission.policy.spaces().iter().enumerate() {
            if self.scope.iter().any(|name| **name == *space.name) {
                found.insert(n);
            }
        }
        found
    }

    /// The most decisions that asking for it takes: each space of its scope by either quality of service.
    pub(super) fn decisions(&self) -> usize {
        self.scope.len() * 2
    }

    /// Whether it had a scope, and nothing of it is permitted any more.
    pub(crate) fn is_void(&self, admission: &Admission, now: Timestamp) -> bool {
        let wanted = self.spaces(admission);
        !self.scope.is_empty()
            && !admission
                .policy
                .is_publishable(wanted, &admission.permit, &admission.device, now)
    }

    fn view(&self, entry: &SessionEntry, admission: &Admission, now: Timestamp) -> TokenView {
        let spaces = self.spaces(admission).and(publishable(admission, now));
        TokenView {
            id: self.id,
            tenant: admission.device.tenant.clone(),
            device: admission.device.id.clone(),
            fingerprint: *admission.permit.fingerprint(),
            scope: names(admission, spaces),
            issued: entry.started,
            expires: self.expires,
        }
    }
}

/// The spaces that a token may be used to publish in now, whatever was asked for.
pub(crate) fn publishable(admission: &Admission, now: Timestamp) -> SpaceSet {
    admission
        .policy
        .publishable(&admission.permit, &admission.device, now)
        .unwrap_or_default()
}

pub(crate) fn names(admission: &Admission, spaces: SpaceSet) -> Vec<String> {
    let all = admission.policy.spaces().iter().enumerate();
    all.filter(|(n, _)| spaces.contains(*n))
        .map(|(_, s)| s.name.clone())
        .collect()
}

/// How many tokens each tenant's devices hold.
#[derive(Debug, Default)]
pub(crate) struct TokenCounts(Mutex<HashMap<TenantId, usize>>);

/// One counted token; dropping it counts it out.
struct Slot {
    node: Arc<Node>,
    tenant: TenantId,
}

impl Slot {
    fn take(node: &Arc<Node>, tenant: &TenantId) -> Result<Self, Denial> {
        let limits = &node.options.limits;
        let full = |who: &str, max: usize| {
            let what = format!("{who} holds {max} tokens already");
            Denial::new(DenialCode::TokenLimit, what)
        };
        let mut counts = node.token_counts.0.lock();
        // All that grant and end hold this lock: the sum does not move meanwhile.
        let tokens: &AtomicU64 = &node.metrics.tokens;
        if tokens.load(Ordering::Acquire) >= limits.tokens_max as u64 {
            return Err(full("this node", limits.tokens_max));
        }
        let own = counts.entry(tenant.clone()).or_default();
        if *own >= limits.tokens_per_tenant_max {
            return Err(full("the tenant", limits.tokens_per_tenant_max));
        }
        *own += 1;
        tokens.fetch_add(1, Ordering::AcqRel);
        Ok(Self {
            node: node.clone(),
            tenant: tenant.clone(),
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.node.token_counts.0.lock();
        if let Some(own) = counts.get_mut(&self.tenant) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                counts.remove(&self.tenant);
            }
        }
        self.node.metrics.tokens.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Grants a token to the device of a live session: decided as if it connected now, indexed, then checked again.
pub(crate) fn grant(
    node: &Arc<Node>,
    of: &SessionEntry,
    expires: Timestamp,
    wish: TokenWish<'_>,
) -> Result<TokenView, TokenRefusal> {
    let granted = try_grant(node, of, expires, wish);
    match &granted {
        Ok(_) => count(&node.metrics.tokens_granted),
        Err(_) => count(&node.metrics.tokens_refused),
    }
    granted
}

fn try_grant(
    node: &Arc<Node>,
    of: &SessionEntry,
    expires: Timestamp,
    wish: TokenWish<'_>,
) -> Result<TokenView, TokenRefusal> {
    let admission = decide_anew(node, of)?;
    let issued = Timestamp::from_unix_s(wish.now.unix_s());
    let end = wish.now.plus(wish.lifetime).min(expires);
    let expires = Timestamp::from_unix_s(end.unix_s());
    if expires <= wish.now {
        return Err(Denial::from(DenialCode::CertificateExpired).into());
    }
    let permitted = names(&admission, publishable(&admission, wish.now));
    let scope = match wish.scope {
        None => permitted,
        Some(asked) => {
            if let Some(beyond) = asked.iter().find(|name| !permitted.iter().any(|p| p == *name)) {
                return Err(TokenRefusal::Scope((*beyond).to_owned()));
            }
            // Each once, however often it was asked for.
            permitted
                .into_iter()
                .filter(|p| asked.contains(&p.as_str()))
                .collect()
        }
    };
    let slot = Slot::take(node, &admission.device.tenant)?;
    let id = TokenId::random()?;
    let entry = Arc::new(SessionEntry::token(
        node.next_session(),
        of,
        PROTOCOL,
        issued,
        admission,
        TokenFacts {
            id,
            expires,
            scope: scope.into_iter().map(String::into_boxed_str).collect(),
        },
        node.wheel.timer(),
    ));
    let max = node.options.limits.tokens_per_device_max;
    if let Err(TooMany) = node.sessions.insert(&entry, max) {
        let what = format!("the device already holds {max} tokens");
        return Err(Denial::new(DenialCode::TokenLimit, what).into());
    }
    let checked = check(node, &entry).and_then(|()| match of.ending() {
        // Whoever ended the device's sessions may have looked before this one was indexed.
        None => Ok(()),
        Some(_) => Err(DenialCode::GrantStale.into()),
    });
    // The check may have readmitted it under other policies, which permit nothing of its scope.
    let admission = entry.admission();
    let view = checked
        .map_err(TokenRefusal::from)
        .and_then(|()| match entry.token_facts() {
            Some(token) if token.is_void(&admission, wish.now) => {
                Err(TokenRefusal::Scope(token.scope.join(" ")))
            }
            Some(token) => Ok(token.view(&entry, &admission, wish.now)),
            None => Err(Denial::from(DenialCode::GrantStale).into()),
        });
    let view = match view {
        Ok(view) => view,
        Err(refusal) => {
            node.sessions.remove(&entry);
            return Err(refusal);
        }
    };
    node.wheel.set(&entry.timer, expires.since(node.now()));
    tracing::info!(
        token.id = %id,
        session.exchange = %entry.exchange,
        tenant.id = %view.tenant,
        device.id = %view.device,
        certificate.fingerprint = %view.fingerprint,
        token.lifetime_s = view.expires.since(view.issued).as_secs(),
        "token granted"
    );
    entry.report_start(node);
    tokio::spawn(keep(slot, entry));
    Ok(view)
}

/// A token's connection is this: waits for its end, and takes it out of the index.
async fn keep(slot: Slot, entry: Arc<SessionEntry>) {
    let node = &slot.node;
    let reason = std::future::poll_fn(|cx| {
        entry.timer.register(cx.waker());
        match entry.ending() {
            Some(reason) => Poll::Ready(reason),
            None if node.wheel.expired(&entry.timer) => Poll::Ready(EndReason::TokenExpired),
            None => Poll::Pending,
        }
    })
    .await;
    entry.end(reason);
    let reason = entry.ending().unwrap_or(reason);
    node.metrics.ended(reason);
    entry.report_end(reason, node);
    let admission = entry.admission();
    tracing::info!(
        token.id = entry.token_facts().map(|t| t.id.to_string()).unwrap_or_default(),
        session.exchange = %entry.exchange,
        tenant.id = %admission.device.tenant,
        device.id = %admission.device.id,
        session.end = reason.name(),
        "token ended"
    );
    node.sessions.remove(&entry);
}

/// A device's token that is live by its own word: neither ended nor expired.
pub(crate) fn find(
    node: &Node,
    tenant: &TenantId,
    device: &DeviceId,
    id: &TokenId,
) -> Option<Arc<SessionEntry>> {
    let entry = node
        .sessions
        .of_device(tenant, device)
        .into_iter()
        .find(|e| e.token_facts().is_some_and(|t| t.id == *id))?;
    let expired = entry.token_facts().is_none_or(|t| node.now() >= t.expires);
    if expired {
        entry.end(EndReason::TokenExpired);
    }
    entry.ending().is_none().then_some(entry)
}

/// Looks at a token as if it were granted now: decided anew over the facts as they are. One that is no longer permitted
/// is ended.
pub(crate) fn look(node: &Node, tenant: &TenantId, device: &DeviceId, id: &TokenId) -> Option<TokenView> {
    let entry = find(node, tenant, device, id)?;
    // What is decided here is for this answer alone: a change that comes meanwhile readmits the session, and must not be
    // overwritten by what was before it.
    let admission = match decide_anew(node, &entry) {
        Ok(admission) => admission,
        Err(denial) => {
            // A registry that does not answer ends nothing; it is no answer either.
            if let Some(reason) = reason_of(denial.code) {
                entry.end(reason);
            }
            return None;
        }
    };
    let token = entry.token_facts()?;
    if token.is_void(&admission, node.now()) {
        entry.end(EndReason::PolicyChanged);
        return None;
    }
    let view = token.view(&entry, &admission, node.now());
    // Ended while it was decided.
    entry.ending().is_none().then_some(view)
}

#[cfg(test)]
mod tests {
    use super::TokenId;

    #[test]
    fn an_id_is_read_as_it_is_written_and_in_no_other_way() {
        let id = TokenId::random().unwrap();
        assert_eq!(id.to_string().parse(), Ok(id));
        let zero = TokenId([0; 16]);
        assert_eq!(zero.to_string(), "0".repeat(32));
        for text in ["", "0", &"A".repeat(32), &"+".repeat(32), &"0".repeat(33)] {
            assert!(text.parse::<TokenId>().is_err(), "{text}");
        }
    }
}
