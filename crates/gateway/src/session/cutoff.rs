//! A change was committed: the sessions it touches are decided anew, and those no longer permitted are ended.
//!
//! ```text
//! commit ─▶ may it be connected? (at once, all changes, the narrowest first) ─▶ may it keep what it has? (in turns) ─▶ closed
//! ```
//!
//! The first question is asked where the registry tells of the commit, so that whoever is suspended does nothing more; the
//! second may cost a hundred decisions a session, and nobody's commit waits for another's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use countersign_identity::{AuthorityId, DeviceId, Fingerprint, TenantId};
use countersign_policy::DenialCode;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::entry::{EndReason, SessionEntry};
use super::grant::decide_anew;
use super::review::{Awaited, Turn, review};
use crate::node::Node;

/// What changed, and so whose sessions are looked at. In order of how many that may be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Touched {
    /// One credential of one device.
    Credential(TenantId, DeviceId, Fingerprint),
    /// One device.
    Device(TenantId, DeviceId),
    /// An authority: all sessions whose chain ends in it, or leads through it.
    Authority(AuthorityId),
    /// A tenant's policies, or the tenant itself.
    Tenant(TenantId),
}

/// Sessions that are being ended. They are whether anybody waits for it or not, and are let go of when they are closed.
#[must_use]
#[derive(Debug)]
pub struct Cutoff {
    work: Arc<Work>,
}

/// How a cut-off went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutoffReport {
    /// Sessions whose last word is written and whose socket is closed for writing.
    pub ended: usize,
    /// Sessions that were not closed when the wait was over: they cannot act any more all the same, or what they have was not
    /// decided anew yet.
    pub open: usize,
    /// Sessions that were decided anew and may stay.
    pub kept: usize,
    /// From the commit of the change to the last close.
    pub took: Duration,
}

#[derive(Debug)]
struct Work {
    started: Instant,
    progress: Mutex<Progress>,
    /// Told how long it took when all is decided and all that were ended are closed.
    over: watch::Sender<Option<Duration>>,
}

#[derive(Debug, Default)]
struct Progress {
    /// Ended by this change, and not known to be closed.
    ending: Vec<Arc<SessionEntry>>,
    /// What another is ending and has not closed yet: not this one's to count, but to wait for.
    ending_elsewhere: Vec<Arc<SessionEntry>>,
    /// They may stay connected; whether they may keep what they have is still to be asked.
    awaited: usize,
    ended: usize,
    kept: usize,
}

impl Progress {
    fn is_idle(&self) -> bool {
        self.ending.is_empty()
            && self.ending_elsewhere.is_empty()
            && self.awaited + self.ended + self.kept == 0
    }

    fn end(&mut self, entry: Arc<SessionEntry>, reason: EndReason) {
        match entry.end(reason) {
            true => self.ending.push(entry),
            false => self.ending_elsewhere.push(entry),
        }
    }
}

impl Cutoff {
    /// Follows it to its end, from now on.
    fn begin(
        node: &Arc<Node>,
        runtime: &Handle,
        started: Instant,
        progress: Progress,
        awaited: Vec<Awaited>,
    ) -> Self {
        let is_idle = progress.is_idle();
        let work = Arc::new(Work {
            started,
            progress: Mutex::new(progress),
            over: watch::Sender::new(is_idle.then(|| started.elapsed())),
        });
        if !is_idle {
            runtime.spawn(work.clone().follow(node.clone(), awaited));
        }
        Self { work }
    }

    /// Whether it touched no session at all.
    pub fn is_idle(&self) -> bool {
        self.work.progress.lock().is_idle()
    }

    /// How many sessions it still holds in memory: none once it is over.
    pub fn held(&self) -> usize {
        let progress = self.work.progress.lock();
        progress.ending.len() + progress.ending_elsewhere.len()
    }

    /// Waits until all is decided and all are closed, at most `patience`.
    pub async fn wait(&self, patience: Duration) -> CutoffReport {
        let mut over = self.work.over.subscribe();
        let _ = tokio::time::timeout(patience, over.wait_for(Option::is_some)).await;
        let took = *over.borrow();
        let progress = self.work.progress.lock();
        let count_open = |entries: &[Arc<SessionEntry>]| entries.iter().filter(|e| !e.is_closed()).count();
        let open = count_open(&progress.ending);
        CutoffReport {
            ended: progress.ended + progress.ending.len() - open,
            open: open + count_open(&progress.ending_elsewhere) + progress.awaited,
            kept: progress.kept,
            took: took.unwrap_or_else(|| self.work.started.elapsed()),
        }
    }
}

impl Work {
    async fn follow(self: Arc<Self>, node: Arc<Node>, awaited: Vec<Awaited>) {
        let mut turn = Turn::default();
        for one in awaited {
            let decisions = self.settle(&node, &one);
            drop(one);
            turn.spend(decisions).await;
        }
        let (ending, elsewhere) = {
            let progress = self.progress.lock();
            (progress.ending.clone(), progress.ending_elsewhere.clone())
        };
        node.sessions.all_closed(&ending).await;
        node.sessions.all_closed(&elsewhere).await;
        {
            let mut progress = self.progress.lock();
            progress.ended += progress.ending.len();
            progress.ending = Vec::new();
            progress.ending_elsewhere = Vec::new();
        }
        self.over.send_replace(Some(self.started.elapsed()));
    }

    /// Asks whether one session may keep what it has; how many decisions that took.
    fn settle(&self, node: &Node, awaited: &Awaited) -> usize {
        let entry = awaited.entry();
        let reviewed = entry.ending().is_none().then(|| review(node, entry));
        let mut progress = self.progress.lock();
        progress.awaited -= 1;
        match reviewed {
            Some(reviewed) if reviewed.may_keep => progress.kept += 1,
            Some(_) => progress.end(entry.clone(), EndReason::PolicyChanged),
            // Its client ended it, or another change.
            None => progress.ending_elsewhere.push(entry.clone()),
        }
        reviewed.map_or(1, |r| r.decisions)
    }
}

/// Decides anew for the sessions that the changes of one commit touch; what came of each change, in their order. The facts
/// must already show all of them.
pub(crate) fn reconsider(node: &Arc<Node>, runtime: &Handle, touched: &[Touched]) -> Vec<Cutoff> {
    let started = Instant::now();
    let _at_work = node.reconsiderations.begin();
    let mut order: Vec<usize> = (0..touched.len()).collect();
    // Who changed one device waits for no fleet.
    order.sort_by_key(|n| &touched[*n]);
    let mut cutoffs: Vec<(usize, Cutoff)> = order
        .into_iter()
        .map(|n| {
            let (progress, awaited) = decide(node, &touched[n]);
            (n, Cutoff::begin(node, runtime, started, progress, awaited))
        })
        .collect();
    cutoffs.sort_by_key(|(n, _)| *n);
    cutoffs.into_iter().map(|(_, cutoff)| cutoff).collect()
}

/// Whether they may be connected.
fn decide(node: &Node, touched: &Touched) -> (Progress, Vec<Awaited>) {
    let sessions = match touched {
        Touched::Device(tenant, device) => node.sessions.of_device(tenant, device),
        Touched::Credential(tenant, device, fingerprint) => {
            let mut sessions = node.sessions.of_device(tenant, device);
            sessions.retain(|e| e.fingerprint() == *fingerprint);
            sessions
        }
        Touched::Authority(authority) => {
            let anchors = node.facts.anchors();
            let anchor = anchors.of_authority(authority);
            let leads_through = |e: &SessionEntry| {
                let path = e.path.as_ref().filter(|path| path.has_intermediates());
                path.zip(anchor)
                    .is_some_and(|(path, anchor)| path.leads_through(anchor))
            };
            node.sessions
                .filter(|e| e.authority == *authority || leads_through(e))
        }
        Touched::Tenant(tenant) => node.sessions.filter(|e| e.admission().device.tenant == *tenant),
    };
    let (mut progress, mut awaited) = (Progress::default(), Vec::new());
    for entry in sessions {
        match decide_anew(node, &entry) {
            Ok(admission) => {
                let other = entry.admission().permit.generations() != admission.permit.generations();
                entry.readmit(admission);
                // What another change found to be asked about is asked for this one, too: it counts those that stay.
                if other || entry.is_awaited() {
                    progress.awaited += 1;
                    awaited.push(Awaited::new(entry));
                } else if entry.ending().is_some() {
                    progress.ending_elsewhere.push(entry);
                } else {
                    progress.kept += 1;
                }
            }
            Err(denial) => match reason_of(denial.code) {
                Some(reason) => progress.end(entry, reason),
                None => progress.kept += 1,
            },
        }
    }
    (progress, awaited)
}

/// Ends sessions without asking policy.
pub(crate) fn end(
    node: &Arc<Node>,
    runtime: &Handle,
    entries: Vec<Arc<SessionEntry>>,
    reason: EndReason,
) -> Cutoff {
    let started = Instant::now();
    let mut progress = Progress::default();
    for entry in entries {
        progress.end(entry, reason);
    }
    Cutoff::begin(node, runtime, started, progress, Vec::new())
}

/// How many times sessions were decided anew for a commit: begun, and done with. Until it is done, the facts show what the
/// sessions do not.
#[derive(Debug, Default)]
pub(crate) struct Reconsiderations {
    begun: AtomicU64,
    done: AtomicU64,
}

impl Reconsiderations {
    fn begin(&self) -> impl Drop + use<'_> {
        struct AtWork<'a>(&'a AtomicU64);
        impl Drop for AtWork<'_> {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::AcqRel);
            }
        }
        self.begun.fetch_add(1, Ordering::AcqRel);
        AtWork(&self.done)
    }

    pub(super) fn begun(&self) -> u64 {
        self.begun.load(Ordering::Acquire)
    }

    pub(super) fn done(&self) -> u64 {
        self.done.load(Ordering::Acquire)
    }
}

/// Why a live session ends that would be denied now. `None`: it stays. A registry that does not answer says nothing against
/// who is in; the sweep looks again.
pub(super) fn reason_of(code: DenialCode) -> Option<EndReason> {
    Some(match code {
        DenialCode::RegistryUnavailable => return None,
        DenialCode::CredentialRevoked
        | DenialCode::CredentialSuperseded
        | DenialCode::CredentialLapsed
        | DenialCode::CredentialOfOther
        | DenialCode::UnknownCredential
        | DenialCode::EnrolOnly => EndReason::CredentialChanged,
        DenialCode::CertificateExpired => EndReason::CertificateExpired,
        DenialCode::AuthorityRevoked
        | DenialCode::AuthorityRetired
        | DenialCode::ChainRevoked
        | DenialCode::IdentityMissing
        | DenialCode::IdentityMalformed
        | DenialCode::UnknownCa => EndReason::AuthorityChanged,
        DenialCode::PolicyForbids
        | DenialCode::PolicyNoPermit
        | DenialCode::PolicyError
        | DenialCode::ClientIdMismatch => EndReason::PolicyChanged,
        _ => EndReason::DeviceChanged,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_that_does_not_answer_ends_nothing_and_every_other_denial_does() {
        for code in DenialCode::ALL {
            let stays = *code == DenialCode::RegistryUnavailable;
            assert_eq!(reason_of(*code).is_none(), stays, "{code}");
        }
    }
}
