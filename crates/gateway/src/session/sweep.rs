//! The safety net: every live session is compared with the facts, again and again.
//!
//! Changes look for the sessions they touch, and sessions look for changes before they are granted; nothing should be
//! left for this to find. What it does find is counted, and is a bug.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::cutoff::reason_of;
use super::entry::{EndReason, SessionEntry};
use super::grant::{check, current_generations};
use crate::metrics::count;
use crate::node::Node;

/// A change shows in the facts before it has looked for its sessions: so long it has for that, and its receipt counts
/// them.
const SETTLE: Duration = Duration::from_secs(1);
/// The shortest interval.
const INTERVAL_MIN: Duration = Duration::from_secs(1);

/// Sweeps until the gateway is gone.
pub(crate) async fn run(node: Weak<Node>) {
    loop {
        let Some(interval) = node.upgrade().map(|n| n.options.limits.session_sweep) else {
            return;
        };
        tokio::time::sleep(interval.max(INTERVAL_MIN)).await;
        let Some(suspects) = node.upgrade().map(|n| missed(&n)) else {
            return;
        };
        if !suspects.is_empty() {
            tokio::time::sleep(SETTLE).await;
        }
        let Some(node) = node.upgrade() else { return };
        count(&node.metrics.sweeps);
        for entry in suspects {
            settle(&node, &entry);
        }
    }
}

/// Sessions that were decided under other facts than those of now. None while the facts cannot be trusted: who is in
/// stays in.
fn missed(node: &Node) -> Vec<Arc<SessionEntry>> {
    if node.facts.health().is_err() {
        return vec![];
    }
    // Facts are looked up outside of the index's locks: whoever connects or closes meanwhile waits for none of it.
    let mut live = node.sessions.filter(|entry| entry.ending().is_none());
    live.retain(|entry| is_stale(node, entry));
    live
}

fn is_stale(node: &Node, entry: &SessionEntry) -> bool {
    if entry.ending().is_some() {
        return false;
    }
    let admission = entry.admission();
    current_generations(node, entry, &admission) != Some(admission.permit.generations())
}

fn settle(node: &Node, entry: &SessionEntry) {
    if node.facts.health().is_err() || !is_stale(node, entry) {
        return;
    }
    count(&node.metrics.sweep_found);
    let admission = entry.admission();
    // Until the facts hold still: what a change decides meanwhile is not overwritten by what was before it.
    let decided = check(node, entry);
    tracing::error!(
        tenant.id = %admission.device.tenant,
        device.id = %admission.device.id,
        exchange.id = %entry.exchange,
        permitted = decided.is_ok(),
        "a change missed this session"
    );
    match decided {
        Ok(()) => {
            let admission = entry.admission();
            if entry
                .token_facts()
                .is_some_and(|t| t.is_void(&admission, node.now()))
            {
                entry.end(EndReason::PolicyChanged);
            }
            // An idle one looks at its subscriptions now.
            entry.timer.wake();
        }
        Err(denial) => {
            if let Some(reason) = reason_of(denial.code) {
                entry.end(reason);
            }
        }
    }
}
