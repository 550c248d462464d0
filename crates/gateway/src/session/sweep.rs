//! The safety net: every live session is compared with the facts, again and again.
//!
//! Changes look for the sessions they touch, and sessions look for changes before they are granted; nothing should be
//! left for this to find. What it does find is counted, and is a bug.
//!
//! One thing changes that no change tells of: the time. Sessions under policies that read it are asked about anew at each
//! round, so that none outlives what it was permitted by longer than that.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::cutoff::{may_keep, reason_of};
use super::entry::{EndReason, SessionEntry};
use super::grant::{check, current_generations, decide_anew};
use crate::metrics::count;
use crate::node::Node;

/// A change shows in the facts before it has looked for its sessions: so long it has for that, and its receipt counts
/// them.
const SETTLE: Duration = Duration::from_secs(1);
/// The shortest interval.
const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Sessions that are decided anew before others get a turn of the thread: a millisecond or two.
const TURN: usize = 64;

/// What a round looks at more closely.
#[derive(Default)]
struct Round {
    /// Sessions that were decided under other facts than those of now.
    missed: Vec<Arc<SessionEntry>>,
    /// Sessions under policies that read the time.
    timed: Vec<Arc<SessionEntry>>,
}

/// Sweeps until the gateway is gone.
pub(crate) async fn run(node: Weak<Node>) {
    loop {
        let Some(interval) = node.upgrade().map(|n| n.options.limits.session_sweep) else {
            return;
        };
        tokio::time::sleep(interval.max(INTERVAL_MIN)).await;
        let Some(round) = node.upgrade().map(|n| look(&n)) else {
            return;
        };
        for turn in round.timed.chunks(TURN) {
            let Some(node) = node.upgrade() else { return };
            for entry in turn {
                ask_again(&node, entry);
            }
            drop(node);
            tokio::task::yield_now().await;
        }
        if !round.missed.is_empty() {
            tokio::time::sleep(SETTLE).await;
        }
        let Some(node) = node.upgrade() else { return };
        count(&node.metrics.sweeps);
        for entry in round.missed {
            settle(&node, &entry);
        }
    }
}

/// None while the facts cannot be trusted: who is in stays in.
fn look(node: &Node) -> Round {
    let mut round = Round::default();
    if node.facts.health().is_err() {
        return round;
    }
    // Facts are looked up outside of the index's locks: whoever connects or closes meanwhile waits for none of it.
    for entry in node.sessions.filter(|entry| entry.ending().is_none()) {
        if is_stale(node, &entry) {
            round.missed.push(entry);
        } else if entry.admission().policy.reads_time() {
            round.timed.push(entry);
        }
    }
    round
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
        Ok(()) => stay(node, entry),
        Err(denial) => {
            if let Some(reason) = reason_of(denial.code) {
                entry.end(reason);
            }
        }
    }
}

/// Asks for a session that nothing changed for what is permitted at this time of day.
fn ask_again(node: &Node, entry: &SessionEntry) {
    let held = entry.admission();
    match decide_anew(node, entry) {
        Ok(admission) => {
            entry.readmit_over(&held, admission);
            stay(node, entry);
        }
        Err(denial) => {
            if let Some(reason) = reason_of(denial.code) {
                entry.end(reason);
            }
        }
    }
}

/// It may stay connected; whether with what it has is the next question.
fn stay(node: &Node, entry: &SessionEntry) {
    if !may_keep(node, entry) {
        entry.end(EndReason::PolicyChanged);
    }
    // It looks for itself at what it subscribes to just now.
    entry.timer.wake();
}
