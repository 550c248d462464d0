//! Register, then check: the session is indexed, generations are read again, and only then CONNACK is answered.
//!
//! A writer makes a change visible before it looks for sessions; we index before we look for changes. So a suspension
//! that falls anywhere between decision and CONNACK is seen by one of the two, and never leaves a live session.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use countersign_identity::Timestamp;
use countersign_policy::{
    CredentialState, Denial, DenialCode, DeviceFacts, ExchangeId, Generations, LifecycleState,
};

use super::entry::{Admission, EndReason, SessionEntry, SessionName};
use super::spaces;
use super::will;
use crate::exchange::{Greeted, Refused};
use crate::judge::{self, Circumstances};
use crate::metrics::count;
use crate::node::Node;
use crate::timer::Timer;

/// How often a decision is made anew while facts keep changing under it.
const ATTEMPTS_MAX: usize = 4;

/// A session that is indexed and was checked after it was.
#[derive(Debug)]
pub(crate) struct Granted {
    pub(crate) entry: Arc<SessionEntry>,
    pub(crate) accepted: Instant,
    /// The first moment at which the certificate, or what is above it, does not hold: the session never outlives it.
    pub(crate) expires: Timestamp,
    /// When the session ends at the latest.
    pub(crate) hard_end: Timestamp,
    /// Why it does then.
    pub(crate) hard_end_reason: EndReason,
    /// The client sent no client id and must be told the one it has.
    pub(crate) assigned: bool,
}

/// Grants a session, or refuses at the last moment.
pub(crate) fn grant(
    mut greeted: Greeted,
    protocol: &'static str,
    timer: Arc<Timer>,
    node: &Node,
) -> Result<Granted, Box<Refused>> {
    let Some(policy) = node.facts.policy(&greeted.connected.device.tenant) else {
        return Err(Box::new(greeted.refuse(DenialCode::PolicyNoPermit.into())));
    };
    let spaces = match spaces::compiled(&policy) {
        Ok(spaces) => spaces,
        Err(denial) => return Err(Box::new(greeted.refuse(denial))),
    };
    let name = greeted.name.clone();
    let (assigned, will) = (greeted.assigned, greeted.will.take());
    let (source, listener) = (greeted.trace().source(), greeted.trace().listener().clone());
    let (trace, connected, permit) = greeted.into_parts();
    // All of the second that notAfter names is still valid (RFC 5280 section 4.1.2.5): ended before, the device would be
    // let in again at once.
    let expires = connected.not_after.plus(Duration::from_secs(1));
    let first_use = connected.credential.state == CredentialState::Issued;
    let entry = Arc::new(SessionEntry::new(
        node.next_session(),
        trace.id(),
        name,
        source,
        listener,
        node.now(),
        protocol,
        connected.anchor.authority.clone(),
        connected.path,
        connected.named,
        connected.tls,
        Admission {
            permit,
            device: connected.device,
            policy,
            spaces,
        },
        timer,
    ));
    let may = |entry: &SessionEntry| match &will {
        Some(will) => will.check(&entry.admission(), node),
        None => Ok(()),
    };
    // Before it takes anybody over. That the policies are other ones by now is seen below, after they were asked again.
    if let Err(denial) = may(&entry)
        && denial.code != DenialCode::GrantStale
    {
        return Err(Box::new(trace.refuse(denial)));
    }
    let Ok(indexed) = node
        .sessions
        .insert(&entry, node.options.limits.sessions_per_device_max)
    else {
        let max = node.options.limits.sessions_per_device_max;
        let denial = Denial::new(
            DenialCode::SessionLimit,
            format!("the device already holds {max} sessions"),
        );
        return Err(Box::new(trace.refuse(denial)));
    };
    match check(node, &entry).and_then(|()| may(&entry)) {
        Ok(()) => {
            let accepted = trace.granted(&entry.admission().permit, node);
            count(&node.metrics.admitted);
            node.clones
                .granted(node, &entry, indexed.replaced.as_deref(), indexed.beside);
            if first_use || node.facts.is_unplaced(&entry.fingerprint()) {
                node.sink.credential_used(entry.fingerprint(), &entry.authority);
            }
            // What it replaced has its last word before the first of this one (MQTT-3.1.4-3).
            if let Some(replaced) = &indexed.replaced {
                will::due(replaced, node);
            }
            *entry.will.lock() = will.map(Box::new);
            let age_end = node
                .now()
                .plus(age_of(node.options.limits.session_age_max, entry.exchange));
            let (hard_end, hard_end_reason) = match expires < age_end {
                true => (expires, EndReason::CertificateExpired),
                false => (age_end, EndReason::SessionAge),
            };
            Ok(Granted {
                entry,
                accepted,
                expires,
                hard_end,
                hard_end_reason,
                assigned,
            })
        }
        Err(denial) => {
            node.sessions.remove(&entry);
            Err(Box::new(trace.refuse(denial)))
        }
    }
}

/// How old a session may become: 80 to 100 per cent of the maximum, by its exchange. A fleet that came all at once after a
/// power cut comes back over hours, not all at once a day later.
fn age_of(max: Duration, exchange: ExchangeId) -> Duration {
    let mut hasher = DefaultHasher::new();
    exchange.hash(&mut hasher);
    let share = u32::try_from(hasher.finish() >> 32).unwrap_or(u32::MAX);
    max - (max / 5).mul_f64(f64::from(share) / f64::from(u32::MAX))
}

/// Reads the generations again; decides anew until they hold still.
pub(super) fn check(node: &Node, entry: &SessionEntry) -> Result<(), Denial> {
    for _ in 0..ATTEMPTS_MAX {
        node.facts
            .health()
            .map_err(|e| Denial::new(DenialCode::RegistryUnavailable, e.to_string()))?;
        let admission = entry.admission();
        if current_generations(node, entry, &admission) == Some(admission.permit.generations()) {
            // The generations are those of the authority that it ends in; a CA below may be another one.
            if entry.path.as_ref().is_some_and(|path| path.has_intermediates())
                && let Some(denial) = path_fault(node, entry)
            {
                return Err(denial);
            }
            // The tenant's mode has no generation.
            may_go_by(node, entry, &admission.device)?;
            return match entry.ending() {
                None => Ok(()),
                Some(reason) => Err(Denial::new(
                    DenialCode::GrantStale,
                    format!("the session was ended while it was granted: {}", reason.name()),
                )),
            };
        }
        entry.readmit(decide_anew(node, entry)?);
    }
    Err(DenialCode::GrantStale.into())
}

/// Whether the tenant's mode allows the client id that the device chose.
pub(super) fn may_go_by(node: &Node, entry: &SessionEntry, device: &DeviceFacts) -> Result<(), Denial> {
    let SessionName::Chosen(name) = &entry.name else {
        return Ok(());
    };
    judge::client_id(node.facts.client_id_mode(&device.tenant), &device.id, name)
}

pub(crate) fn current_generations(
    node: &Node,
    entry: &SessionEntry,
    admission: &Admission,
) -> Option<Generations> {
    let tenant = &admission.device.tenant;
    let (state, authority) = node.facts.authority(&entry.authority)?;
    if !state.admits() {
        return None;
    }
    Some(Generations {
        policy: node.facts.policy(tenant)?.generation(),
        authority,
        device: node.facts.device(tenant, &admission.device.id)?.generation,
        credential: node.facts.credential(admission.permit.fingerprint())?.generation,
    })
}

/// Decides for a session as if it connected now, over the facts as they are now.
pub(crate) fn decide_anew(node: &Node, entry: &SessionEntry) -> Result<Admission, Denial> {
    let old = entry.admission();
    let facts = node.facts.as_ref();
    let (tenant, id) = (&old.device.tenant, &old.device.id);
    // What it subscribed to and what waits for it was decided outside the lane: it comes in again, into the lane.
    if old.device.state != LifecycleState::Quarantined
        && facts.health().is_ok()
        && facts
            .device(tenant, id)
            .is_some_and(|d| d.state == LifecycleState::Quarantined)
    {
        return Err(Denial::new(
            DenialCode::DeviceQuarantined,
            format!("device {id} was quarantined; its session was opened before"),
        ));
    }
    let admission = judge::anew(
        facts,
        tenant,
        id,
        old.permit.fingerprint(),
        &entry.authority,
        Circumstances {
            source: entry.source.ip(),
            tls: entry.tls,
            now: node.now(),
        },
    )?;
    may_go_by(node, entry, &admission.device)?;
    judge::names_still(facts, &entry.authority, entry.named.as_deref(), id)?;
    match path_fault(node, entry) {
        Some(denial) => Err(denial),
        None => Ok(admission),
    }
}

/// Why the path that vouches for a session's certificate does not hold any more.
fn path_fault(node: &Node, entry: &SessionEntry) -> Option<Denial> {
    let fault = entry.path.as_ref()?.fault(&node.facts.anchors())?;
    Some(Denial::from(&fault))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_came_together_comes_back_apart_and_none_too_late() {
        let max = Duration::from_secs(24 * 3600);
        let came = Timestamp::from_unix_s(1_795_000_000);
        let ages: Vec<_> = (0..10_000)
            .map(|n| age_of(max, ExchangeId::new(came, n)))
            .collect();
        assert!(ages.iter().all(|age| *age <= max && *age >= max / 5 * 4));
        // In each of ten parts of the last fifth about a tenth.
        let mut parts = [0; 10];
        for age in &ages {
            let part = (max - *age).as_secs() * 10 / (max / 5).as_secs();
            if let Some(count) = usize::try_from(part).ok().and_then(|part| parts.get_mut(part)) {
                *count += 1;
            }
        }
        assert!(parts.iter().all(|count| (800..1200).contains(count)), "{parts:?}");
        assert_eq!(age_of(Duration::ZERO, ExchangeId::new(came, 1)), Duration::ZERO);
    }
}
