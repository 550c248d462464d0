//! The safety net: every live session is compared with the facts, again and again.
//!
//! Changes look for the sessions they touch, and sessions look for changes before they are granted; nothing should be
//! left for this to find. What it does find is counted, and is a bug.
//!
//! One thing changes that no change tells of: the time. Sessions under policies that read it are asked about anew at each
//! round, so that none outlives what it was permitted by longer than that.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::cutoff::reason_of;
use super::entry::{Admission, EndReason, SessionEntry};
use super::grant::{check, current_generations, decide_anew, may_go_by};
use super::review::{Turn, review};
use crate::metrics::count;
use crate::node::Node;

/// A change shows in the facts before it has looked for its sessions: so long it has to begin with that, and what has begun
/// is waited for. Its receipt counts them.
const SETTLE: Duration = Duration::from_secs(1);
/// How often is looked whether what has begun is done.
const SETTLE_LOOK: Duration = Duration::from_millis(50);
/// The shortest interval.
const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Sessions that are compared with the facts before others get a turn of the thread: some lookups each.
const COMPARED: usize = 512;

/// What a round looks at more closely.
#[derive(Default)]
struct Round {
    /// Sessions that were decided under other facts than those of now, with what they were admitted under.
    missed: Vec<(Arc<SessionEntry>, Arc<Admission>)>,
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
        if round(&node).await.is_none() {
            return;
        }
    }
}

/// `None`: the gateway is gone. It is never kept alive for longer than a turn.
async fn round(node: &Weak<Node>) -> Option<()> {
    let all = live(&*node.upgrade()?);
    let mut round = Round::default();
    for part in all.chunks(COMPARED) {
        look(&*node.upgrade()?, part, &mut round);
        tokio::task::yield_now().await;
    }
    drop(all);
    let mut turn = Turn::default();
    for entry in round.timed {
        let decisions = ask_again(&*node.upgrade()?, &entry);
        turn.spend(decisions).await;
    }
    if !round.missed.is_empty() {
        tokio::time::sleep(SETTLE).await;
        let begun = node.upgrade()?.reconsiderations.begun();
        while node.upgrade()?.reconsiderations.done() < begun {
            tokio::time::sleep(SETTLE_LOOK).await;
        }
    }
    count(&node.upgrade()?.metrics.sweeps);
    for (entry, admission) in round.missed {
        let decisions = settle(&*node.upgrade()?, &entry, &admission);
        turn.spend(decisions).await;
    }
    Some(())
}

/// None while the facts cannot be trusted: who is in stays in.
fn live(node: &Node) -> Vec<Arc<SessionEntry>> {
    match node.facts.health() {
        Ok(()) => node.sessions.filter(|entry| entry.ending().is_none()),
        Err(_) => Vec::new(),
    }
}

/// Facts are looked up outside of the index's locks: whoever connects or closes meanwhile waits for none of it.
fn look(node: &Node, sessions: &[Arc<SessionEntry>], round: &mut Round) {
    for entry in sessions {
        let admission = entry.admission();
        if is_stale(node, entry, &admission) {
            round.missed.push((entry.clone(), admission));
        } else if admission.policy.reads_time() {
            round.timed.push(entry.clone());
        }
    }
}

fn is_stale(node: &Node, entry: &SessionEntry, admission: &Admission) -> bool {
    entry.ending().is_none()
        && (current_generations(node, entry, admission) != Some(admission.permit.generations())
            || may_go_by(node, entry, &admission.device).is_err())
}

/// Decides for a session that nobody has decided for since it was `seen` to be behind; how many decisions that took.
fn settle(node: &Node, entry: &SessionEntry, seen: &Arc<Admission>) -> usize {
    // Whoever admitted it anew did so for a change that came later, and knew of all before.
    if node.facts.health().is_err() || !Arc::ptr_eq(&entry.admission(), seen) || !is_stale(node, entry, seen)
    {
        return 1;
    }
    count(&node.metrics.sweep_found);
    // Until the facts hold still: what a change decides meanwhile is not overwritten by what was before it.
    let decided = check(node, entry);
    tracing::error!(
        tenant.id = %seen.device.tenant,
        device.id = %seen.device.id,
        exchange.id = %entry.exchange,
        permitted = decided.is_ok(),
        "a change missed this session"
    );
    1 + match decided {
        Ok(()) => stay(node, entry),
        Err(denial) => {
            if let Some(reason) = reason_of(denial.code) {
                entry.end(reason);
            }
            0
        }
    }
}

/// Asks for a session that nothing changed for what is permitted at this time of day; how many decisions that took.
fn ask_again(node: &Node, entry: &SessionEntry) -> usize {
    // A change is asking, and counts what it ends.
    if entry.is_awaited() {
        return 1;
    }
    let held = entry.admission();
    1 + match decide_anew(node, entry) {
        Ok(admission) => {
            entry.readmit_over(&held, admission);
            stay(node, entry)
        }
        Err(denial) => {
            if let Some(reason) = reason_of(denial.code) {
                entry.end(reason);
            }
            0
        }
    }
}

/// It may stay connected; whether with what it has is the next question. How many decisions that took.
fn stay(node: &Node, entry: &SessionEntry) -> usize {
    let reviewed = review(node, entry);
    if !reviewed.may_keep {
        entry.end(EndReason::PolicyChanged);
    }
    reviewed.decisions
}
