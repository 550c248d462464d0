//! A change was committed: the sessions it touches are decided anew, and those no longer permitted are ended.

use std::sync::Arc;
use std::time::{Duration, Instant};

use countersign_identity::{AuthorityId, DeviceId, Fingerprint, TenantId};
use countersign_policy::DenialCode;

use super::entry::{EndReason, SessionEntry};
use super::grant::decide_anew;
use crate::node::Node;

/// What changed, and so whose sessions are looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touched {
    /// One device.
    Device(TenantId, DeviceId),
    /// One credential of one device.
    Credential(TenantId, DeviceId, Fingerprint),
    /// An authority: all sessions whose chain ends in it, or leads through it.
    Authority(AuthorityId),
    /// A tenant's policies, or the tenant itself.
    Tenant(TenantId),
}

/// Sessions that are being ended.
#[must_use]
pub struct Cutoff {
    node: Arc<Node>,
    entries: Vec<Arc<SessionEntry>>,
    /// What another change is ending and has not closed yet: not this one's to count, but to wait for.
    ending: Vec<Arc<SessionEntry>>,
    started: Instant,
    kept: usize,
}

/// How a cut-off went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutoffReport {
    /// Sessions whose last word is written and whose socket is closed for writing.
    pub ended: usize,
    /// Sessions that were not closed when the wait was over; they cannot act any more all the same.
    pub open: usize,
    /// Sessions that were decided anew and may stay.
    pub kept: usize,
    /// From the change to the last close.
    pub took: Duration,
}

impl Cutoff {
    /// How many sessions are being ended.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// Whether it touched no session at all.
    pub fn is_idle(&self) -> bool {
        self.entries.is_empty() && self.ending.is_empty() && self.kept == 0
    }

    /// When it began.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Waits until all are closed, at most `patience`.
    pub async fn wait(&self, patience: Duration) -> CutoffReport {
        let closed = async {
            self.node.sessions.all_closed(&self.entries).await;
            self.node.sessions.all_closed(&self.ending).await;
        };
        let _ = tokio::time::timeout(patience, closed).await;
        let is_open = |e: &&Arc<SessionEntry>| !e.is_closed();
        let open = self.entries.iter().filter(is_open).count();
        CutoffReport {
            ended: self.entries.len() - open,
            open: open + self.ending.iter().filter(is_open).count(),
            kept: self.kept,
            took: self.started.elapsed(),
        }
    }
}

/// Decides anew for the sessions that `touched` names. The facts must already show the change.
pub(crate) fn reconsider(node: &Arc<Node>, touched: &Touched) -> Cutoff {
    let started = Instant::now();
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
    let (mut ended, mut ending) = (Vec::new(), Vec::new());
    let mut kept = 0;
    let mut stayed = Vec::new();
    for entry in sessions {
        match decide_anew(node, &entry) {
            Ok(admission) => {
                let other = entry.admission().permit.generations() != admission.permit.generations();
                entry.readmit(admission);
                kept += 1;
                if other {
                    stayed.push(entry);
                }
            }
            Err(denial) => match reason_of(denial.code) {
                Some(reason) if entry.end(reason) => ended.push(entry),
                Some(_) => ending.push(entry),
                None => kept += 1,
            },
        }
    }
    // Whether they may stay with what they have is asked last, so that nobody who is to go waits.
    for entry in stayed {
        if may_keep(node, &entry) {
            // It looks for itself at what it subscribes to just now.
            entry.timer.wake();
            continue;
        }
        kept -= 1;
        match entry.end(EndReason::PolicyChanged) {
            true => ended.push(entry),
            false => ending.push(entry),
        }
    }
    Cutoff {
        node: node.clone(),
        entries: ended,
        ending,
        started,
        kept,
    }
}

/// Whether a session that may stay connected may do so with what it has: a token whose whole scope was withdrawn is good for
/// nothing that it was asked for, and what was subscribed to is delivered without being asked about again.
pub(super) fn may_keep(node: &Node, entry: &SessionEntry) -> bool {
    let (admission, now) = (entry.admission(), node.now());
    let is_void = entry.token_facts().is_some_and(|t| t.is_void(&admission, now));
    !is_void && !entry.has_lost_a_subscription(&admission, now)
}

/// Ends sessions without asking policy.
pub(crate) fn end(node: &Arc<Node>, entries: Vec<Arc<SessionEntry>>, reason: EndReason) -> Cutoff {
    let started = Instant::now();
    for entry in &entries {
        entry.end(reason);
    }
    Cutoff {
        node: node.clone(),
        entries,
        ending: Vec::new(),
        started,
        kept: 0,
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
        | DenialCode::UnknownCa => EndReason::AuthorityChanged,
        DenialCode::PolicyForbids | DenialCode::PolicyNoPermit | DenialCode::PolicyError => {
            EndReason::PolicyChanged
        }
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
