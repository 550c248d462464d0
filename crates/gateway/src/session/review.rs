//! Whether a session that may stay connected may keep what it has: a token its scope, a connection its subscriptions, which
//! are delivered without being asked about again.
//!
//! It may cost a hundred decisions, and so is never asked on the registry's writer thread: whoever waits for a commit
//! waits for no other tenant's subscriptions.

use std::sync::Arc;

use super::entry::SessionEntry;
use crate::node::Node;

/// Decisions that are made before others get a turn of the thread: a millisecond or two.
const TURN: usize = 64;

/// Counts decisions, and gives others their turn.
#[derive(Debug, Default)]
pub(super) struct Turn(usize);

impl Turn {
    /// So many decisions were made; what took none counts as one.
    pub(super) async fn spend(&mut self, decisions: usize) {
        self.0 += decisions.max(1);
        if self.0 >= TURN {
            self.0 = 0;
            tokio::task::yield_now().await;
        }
    }
}

/// What a look at one session came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reviewed {
    pub(super) may_keep: bool,
    /// How many decisions it took.
    pub(super) decisions: usize,
}

/// Looks at what a session has, by what it is admitted under now.
pub(super) fn review(node: &Node, entry: &SessionEntry) -> Reviewed {
    let (admission, now) = (entry.admission(), node.now());
    if let Some(token) = entry.token_facts() {
        return Reviewed {
            may_keep: !token.is_void(&admission, now),
            decisions: token.decisions(),
        };
    }
    // What policies see of a filter is the spaces that hold it: filters that look alike to them are one decision.
    let asked = entry.subscriptions_seen(&admission);
    let lost = asked
        .iter()
        .position(|(spaces, qos)| !admission.may_subscribe(*spaces, *qos, now));
    Reviewed {
        may_keep: lost.is_none(),
        decisions: lost.map_or(asked.len(), |n| n + 1),
    }
}

/// Marks a session that a change was made for and whose review is still to come: it is that change's to end and to count.
#[derive(Debug)]
pub(super) struct Awaited(Arc<SessionEntry>);

impl Awaited {
    pub(super) fn new(entry: Arc<SessionEntry>) -> Self {
        entry.await_review();
        Self(entry)
    }

    pub(super) fn entry(&self) -> &Arc<SessionEntry> {
        &self.0
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        self.0.reviewed();
    }
}
