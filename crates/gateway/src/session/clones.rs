//! What the gateway sees of two holders of one key, and whom it tells. The score is `policy::clones`', and what is done
//! the tenant's policies choose.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use countersign_identity::{DeviceId, Fingerprint, TenantId};
use countersign_policy::FactSource;
use countersign_policy::clones::{
    Answer, CloneAction, CloneRules, CloneVerdict, CloneWatch, Suspect, Suspicion, Told,
};
use parking_lot::Mutex;

use super::entry::{Admission, SessionEntry};
use crate::metrics::count;
use crate::node::Node;

/// How often it is looked which of several sessions of one credential are active.
const LOOK: Duration = Duration::from_secs(1);

/// What is spoken over a connection. One device may well use both by two networks at a time, and many an operator's network
/// address translation gives each connection an address of its own: that is no sign of two holders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Language {
    Mqtt,
    Http,
}

impl Language {
    /// Of a session; `None` of a token, which is no connection.
    pub(crate) fn of(entry: &SessionEntry) -> Option<Self> {
        match entry.protocol {
            _ if entry.token_facts().is_some() => None,
            protocol if protocol.starts_with("mqtt") => Some(Self::Mqtt),
            _ => Some(Self::Http),
        }
    }
}

/// The sessions of one credential as they were at the last look.
#[derive(Debug, Default)]
struct Shared {
    /// Deadline by session: it moves with every packet or request.
    deadlines: HashMap<u64, u64>,
    /// The session that was active last, and where it came from.
    last: HashMap<Language, (u64, IpAddr)>,
}

/// All that is watched.
#[derive(Debug)]
pub(crate) struct Clones {
    watch: Mutex<CloneWatch>,
    /// Devices with sessions of one credential from several addresses at a time. Bounded by `shared_max`.
    shared: Mutex<HashMap<(TenantId, DeviceId), Shared>>,
    shared_max: usize,
}

impl Clones {
    pub(crate) fn new(rules: CloneRules) -> Self {
        Self {
            watch: Mutex::new(CloneWatch::new(rules)),
            shared: Mutex::default(),
            shared_max: rules.accounts_max,
        }
    }

    /// A session was granted. `replaced` is the one it took over, `beside` says that others of its device go on elsewhere.
    pub(crate) fn granted(
        &self,
        node: &Node,
        entry: &SessionEntry,
        replaced: Option<&SessionEntry>,
        beside: bool,
    ) {
        if let Some(old) = replaced
            && old.fingerprint() == entry.fingerprint()
        {
            let told = self.watch.lock().taken_over(
                entry.fingerprint(),
                old.source.ip(),
                entry.source.ip(),
                node.now(),
            );
            tell(node, entry, told);
        }
        if beside && Language::of(entry).is_some() {
            let device = entry.admission().device.clone();
            let mut shared = self.shared.lock();
            if shared.len() < self.shared_max {
                shared
                    .entry((device.tenant.clone(), device.id.clone()))
                    .or_default();
            } else {
                count(&node.metrics.clones_unwatched);
            }
        }
    }

    /// The peer of a session that was taken over turned out to be alive.
    pub(crate) fn answered(&self, node: &Node, old: &SessionEntry, answer: Answer) {
        let told = self
            .watch
            .lock()
            .answered(old.fingerprint(), old.source.ip(), answer, node.now());
        tell(node, old, told);
    }

    /// Looks which sessions were active, and forgets what has decayed, until the gateway is gone.
    pub(crate) async fn run(node: Weak<Node>) {
        let mut look = tokio::time::interval(LOOK);
        loop {
            look.tick().await;
            let Some(node) = node.upgrade() else { return };
            let watched: Vec<_> = node.clones.shared.lock().keys().cloned().collect();
            for device in watched {
                node.clones.look_at(&node, &device);
            }
            let now = node.now();
            node.clones.watch.lock().tidy(now);
        }
    }

    fn look_at(&self, node: &Node, device: &(TenantId, DeviceId)) {
        let mut live = node.sessions.of_device(&device.0, &device.1);
        live.retain(|e| Language::of(e).is_some() && e.ending().is_none());
        let mut shared = self.shared.lock();
        let Some(known) = shared.get_mut(device) else {
            return;
        };
        if live.len() < 2 {
            shared.remove(device);
            return;
        }
        let mut evidence: Option<(Arc<SessionEntry>, IpAddr)> = None;
        for entry in &live {
            let deadline = entry.timer.deadline_ms();
            let before = known.deadlines.insert(entry.id, deadline);
            // A new session says nothing yet; a known one whose deadline moved has sent something.
            if before.is_none_or(|before| before == deadline) {
                continue;
            }
            let source = entry.source.ip();
            let Some(language) = Language::of(entry) else {
                continue;
            };
            if let Some((last, from)) = known.last.insert(language, (entry.id, source))
                && last != entry.id
                && from != source
                && live
                    .iter()
                    .any(|e| e.id == last && e.fingerprint() == entry.fingerprint())
            {
                evidence = Some((entry.clone(), from));
            }
        }
        known.deadlines.retain(|id, _| live.iter().any(|e| e.id == *id));
        drop(shared);
        if let Some((entry, other)) = evidence {
            let told =
                self.watch
                    .lock()
                    .active_together(entry.fingerprint(), entry.source.ip(), other, node.now());
            tell(node, &entry, told);
        }
    }

    /// Who is suspected now.
    pub(crate) fn suspected(&self, node: &Node) -> Vec<Suspect> {
        let found = self.watch.lock().suspected(node.now());
        let facts: &dyn FactSource = node.facts.as_ref();
        let named = |(fingerprint, suspicion): (Fingerprint, Suspicion)| {
            let credential = facts.credential(&fingerprint)?;
            Some(Suspect {
                tenant: credential.tenant,
                device: credential.device,
                fingerprint,
                suspicion,
            })
        };
        found.into_iter().filter_map(named).collect()
    }
}

/// A suspicion that has just been reached is counted, logged, and handed on; one that grew is, if policies act upon it.
fn tell(node: &Node, entry: &SessionEntry, told: Option<Told>) {
    let Some(told) = told else { return };
    let admission = entry.admission();
    let verdict = choose(node, &admission, told.suspicion());
    let suspect = |suspicion| Suspect {
        tenant: admission.device.tenant.clone(),
        device: admission.device.id.clone(),
        fingerprint: entry.fingerprint(),
        suspicion,
    };
    match told {
        Told::Reached(suspicion) => {
            count(&node.metrics.clones_suspected);
            tracing::warn!(
                tenant.id = %admission.device.tenant,
                device.id = %admission.device.id,
                certificate.fingerprint = %entry.fingerprint(),
                clone.score = suspicion.score,
                clone.evidence = suspicion.evidence(),
                clone.action = %verdict.action,
                source = %entry.source,
                "two seem to hold the key of one certificate"
            );
            node.sink.clone_suspected(suspect(suspicion), verdict);
        }
        Told::Grew(suspicion) if verdict.action == CloneAction::Quarantine => {
            node.sink.clone_quarantined(suspect(suspicion), verdict);
        }
        Told::Grew(_) => {}
    }
}

/// What the tenant's policies of this moment choose, about the device as it is now. Who is not known any more, or of whom
/// nothing can be known, gets the alert alone.
fn choose(node: &Node, admission: &Admission, suspicion: &Suspicion) -> CloneVerdict {
    let (tenant, id) = (&admission.device.tenant, &admission.device.id);
    match (node.facts.policy(tenant), node.facts.device(tenant, id)) {
        (Some(policy), Some(device)) => policy.on_clone(&admission.permit, &device, suspicion, node.now()),
        _ => CloneVerdict::default(),
    }
}
