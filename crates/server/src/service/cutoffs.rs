//! What committed changes did to live sessions: decided anew at once, and kept for whoever made the change and waits to tell.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

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
pub(super) type Cutoffs = Mutex<HashMap<(u64, Change), Arc<Cutoff>>>;
/// How long they are kept. Whoever waits looks at once; nobody does for what the registry changes by itself.
const CUTOFFS_KEPT: Duration = Duration::from_secs(60);

/// Applies every committed change to the sessions of a gateway.
pub(super) fn observer(
    cutoffs: Arc<Cutoffs>,
    gateway: Arc<Gateway>,
) -> impl Fn(u64, &[Change]) + Send + Sync + 'static {
    move |revision, changes| {
        cutoffs
            .lock()
            .retain(|_, cutoff| cutoff.started().elapsed() < CUTOFFS_KEPT);
        let mut seen = HashSet::new();
        let changes: Vec<&Change> = changes.iter().filter(|c| seen.insert(*c)).collect();
        let touched: Vec<Touched> = changes.iter().map(|change| touched(change)).collect();
        let done = gateway.reconsider(&touched);
        let mut kept = cutoffs.lock();
        for (change, cutoff) in changes.into_iter().zip(done) {
            if !cutoff.is_idle() {
                kept.insert((revision, change.clone()), Arc::new(cutoff));
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
    let mine: Vec<Arc<Cutoff>> = {
        let kept = cutoffs.lock();
        mine.into_iter()
            .filter_map(|change| kept.get(&(revision, change.clone())).cloned())
            .collect()
    };
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
