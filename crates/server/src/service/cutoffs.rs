//! What committed changes did to live sessions: decided anew at once, and kept for whoever made the change and waits to tell.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use countersign_gateway::{Cutoff, CutoffReport, Gateway, Touched};
use countersign_registry::Change;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// What a change did to live sessions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct SessionsReport {
    /// Closed.
    pub ended: usize,
    /// Not closed within the wait; they cannot act any more all the same.
    pub open: usize,
    /// Decided anew, and they may stay.
    pub kept: usize,
    /// From the change to the last close, in milliseconds.
    pub took_ms: f64,
}

impl SessionsReport {
    /// Adds what another part of the change did; the slowest counts.
    pub(crate) fn add(&mut self, part: Self) {
        self.ended += part.ended;
        self.open += part.open;
        self.kept += part.kept;
        self.took_ms = self.took_ms.max(part.took_ms);
    }
}

impl From<CutoffReport> for SessionsReport {
    fn from(r: CutoffReport) -> Self {
        Self {
            ended: r.ended,
            open: r.open,
            kept: r.kept,
            took_ms: (r.took.as_secs_f64() * 1e6).round() / 1e3,
        }
    }
}

/// What each change of a commit did to sessions, for whoever made it and waits to tell: one device may be changed by several
/// in one commit, and each of them tells.
pub(super) type Cutoffs = Kept<Cutoff>;
/// How long they are kept. Whoever waits looks at once; nobody does for what the registry changes by itself.
const CUTOFFS_KEPT: Duration = Duration::from_secs(60);

/// What came of changes, by the revision of their commit. What ended sessions lets go of them by itself.
#[derive(Debug)]
pub(super) struct Kept<T>(Mutex<HashMap<(u64, Change), Entry<T>>>);

/// Since when, and what.
type Entry<T> = (Instant, Arc<T>);

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Kept<T> {
    fn keep(&self, revision: u64, change: &Change, what: T) {
        let what = (Instant::now(), Arc::new(what));
        self.0.lock().insert((revision, change.clone()), what);
    }

    fn find(&self, revision: u64, change: &Change) -> Option<Arc<T>> {
        let kept = self.0.lock();
        kept.get(&(revision, change.clone()))
            .map(|(_, what)| what.clone())
    }

    /// Forgets what nobody asks for any more, as of `now`. Whoever waits for one by then has it.
    pub(super) fn forget(&self, now: Instant) {
        let mut kept = self.0.lock();
        kept.retain(|_, (since, _)| now.saturating_duration_since(*since) < CUTOFFS_KEPT);
        if kept.is_empty() {
            kept.shrink_to_fit();
        }
    }
}

/// Applies every committed change to the sessions of a gateway.
pub(super) fn observer(
    cutoffs: Arc<Cutoffs>,
    gateway: Arc<Gateway>,
) -> impl Fn(u64, &[Change]) + Send + Sync + 'static {
    move |revision, changes| {
        let mut seen = HashSet::new();
        let changes: Vec<&Change> = changes.iter().filter(|c| seen.insert(*c)).collect();
        let touched: Vec<Touched> = changes.iter().map(|change| touched(change)).collect();
        let done = gateway.reconsider(&touched);
        for (change, cutoff) in changes.into_iter().zip(done) {
            if !cutoff.is_idle() {
                cutoffs.keep(revision, change, cutoff);
            }
        }
    }
}

/// What a change did to live sessions: waits until they are closed, all in all at most `patience`.
pub(super) async fn sessions_of(
    cutoffs: &Cutoffs,
    revision: u64,
    changes: &[Change],
    patience: Duration,
) -> SessionsReport {
    let until = tokio::time::Instant::now() + patience;
    let mut report = SessionsReport::default();
    let mine: HashSet<&Change> = changes.iter().collect();
    let mine: Vec<Arc<Cutoff>> = mine
        .into_iter()
        .filter_map(|change| cutoffs.find(revision, change))
        .collect();
    for cutoff in mine {
        let left = until.saturating_duration_since(tokio::time::Instant::now());
        report.add(SessionsReport::from(cutoff.wait(left).await));
    }
    report
}

fn touched(change: &Change) -> Touched {
    match change.clone() {
        Change::Tenant(tenant) => Touched::Tenant(tenant),
        Change::Authority(authority) => Touched::Authority(authority),
        Change::Device(tenant, device) => Touched::Device(tenant, device),
        Change::Credential(tenant, device, fingerprint) => Touched::Credential(tenant, device, fingerprint),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_came_of_a_change_is_forgotten_with_time_and_not_with_the_next_change_alone() {
        let kept = Kept::default();
        let change = Change::Tenant("default".parse().unwrap());
        kept.keep(7, &change, "ended");
        assert_eq!(kept.find(7, &change).as_deref(), Some(&"ended"));
        assert_eq!(kept.find(8, &change), None);
        let weak = Arc::downgrade(&kept.find(7, &change).unwrap());
        let now = Instant::now();
        kept.forget(now);
        assert!(weak.upgrade().is_some(), "who made the change may still ask");
        kept.forget(now + CUTOFFS_KEPT);
        assert_eq!((weak.upgrade(), kept.0.lock().capacity()), (None, 0));
    }
}
