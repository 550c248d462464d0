//! The embedded link: routes messages between the sessions of one tenant, in memory.
//!
//! Only clean sessions exist here, so nothing outlives a connection and PUBACK promises exactly what happened: every
//! session that was subscribed has the message in its outbox. What does not fit an outbox ends that session, so that
//! no subscriber ever misses a message without knowing.

use std::collections::HashMap;
use std::sync::Arc;

use countersign_identity::TenantId;
use countersign_mqtt::QoS;
use countersign_policy::decide::{PublishPermit, SubscribePermit};
use parking_lot::RwLock;

use crate::limits::Limits;
use crate::session::entry::{EndReason, SessionEntry};

/// A message as it is routed: made once, shared by all who get it.
#[derive(Debug)]
pub struct Message {
    /// The topic.
    pub topic: Box<str>,
    /// The payload, not looked at.
    pub payload: Box<[u8]>,
    /// Properties that travel with it, encoded as in a PUBLISH of MQTT 5 (section 3.3.2.3); empty from 3.1.1.
    pub properties: Box<[u8]>,
    /// As it was published.
    pub qos: QoS,
}

/// A message on its way to one session.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The message.
    pub message: Arc<Message>,
    /// The lower of published and granted.
    pub qos: QoS,
    /// The subscription identifiers of all subscriptions that matched (MQTT 5 section 3.3.4).
    pub subscription_ids: Box<[u32]>,
}

impl Delivery {
    /// What it takes in an outbox, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.message.topic.len() + self.message.payload.len() + self.message.properties.len() + 64
    }
}

/// What a subscription asks for besides its filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubscriptionOptions {
    /// The greatest QoS it is sent with.
    pub qos: QoS,
    /// Messages published by the session itself are not sent back (MQTT 5 section 3.8.3.1).
    pub no_local: bool,
    /// The subscription identifier, if one was given.
    pub id: Option<u32>,
}

#[derive(Debug)]
struct Subscriber {
    entry: Arc<SessionEntry>,
    options: SubscriptionOptions,
}

/// One level of the filter tree.
#[derive(Debug, Default)]
struct Level {
    children: HashMap<Box<str>, Level>,
    plus: Option<Box<Level>>,
    /// Filters that end here.
    here: Vec<Subscriber>,
    /// Filters that end here with `#`.
    below: Vec<Subscriber>,
}

impl Level {
    fn is_empty(&self) -> bool {
        self.children.is_empty() && self.plus.is_none() && self.here.is_empty() && self.below.is_empty()
    }

    fn list(&mut self, rest: &[&str]) -> &mut Vec<Subscriber> {
        match rest {
            [] => &mut self.here,
            ["#"] => &mut self.below,
            ["+", rest @ ..] => self.plus.get_or_insert_default().list(rest),
            [name, rest @ ..] => self.children.entry((*name).into()).or_default().list(rest),
        }
    }

    /// Removes the session's subscription at `rest`; prunes levels that are left empty.
    fn remove(&mut self, rest: &[&str], session: u64) -> bool {
        let drop_from = |list: &mut Vec<Subscriber>| {
            let before = list.len();
            list.retain(|s| s.entry.id != session);
            list.shrink_to_fit();
            list.len() < before
        };
        match rest {
            [] => drop_from(&mut self.here),
            ["#"] => drop_from(&mut self.below),
            ["+", rest @ ..] => {
                let Some(level) = &mut self.plus else { return false };
                let removed = level.remove(rest, session);
                if level.is_empty() {
                    self.plus = None;
                }
                removed
            }
            [name, rest @ ..] => {
                let Some(level) = self.children.get_mut(*name) else {
                    return false;
                };
                let removed = level.remove(rest, session);
                if level.is_empty() {
                    self.children.remove(*name);
                }
                removed
            }
        }
    }

    fn matching<'a>(&'a self, rest: &[&str], first: bool, found: &mut Vec<&'a Subscriber>) {
        // MQTT 4.7.2-1: a wildcard at the first level does not match a topic that starts with `$`.
        let wildcards = !(first && rest.first().is_some_and(|l| l.starts_with('$')));
        if wildcards {
            found.extend(&self.below);
        }
        match rest {
            [] => found.extend(&self.here),
            [name, rest @ ..] => {
                if let Some(level) = self.children.get(*name) {
                    level.matching(rest, false, found);
                }
                if let Some(level) = &self.plus
                    && wildcards
                {
                    level.matching(rest, false, found);
                }
            }
        }
    }
}

/// The subscriptions of all tenants. Tenants share nothing.
#[derive(Debug, Default)]
pub struct Router {
    tenants: RwLock<HashMap<TenantId, Arc<RwLock<Level>>>>,
}

/// How many levels a topic or filter may have. Recursion is as deep as that.
pub(crate) const LEVELS_MAX: usize = 64;

impl Router {
    /// Adds or replaces a subscription (MQTT 3.8.4-3). The permit says that it was decided, and for which filter.
    pub(crate) fn subscribe(
        &self,
        permit: &SubscribePermit<'_>,
        entry: &Arc<SessionEntry>,
        options: SubscriptionOptions,
    ) {
        let tenant = self
            .tenants
            .write()
            .entry(permit.tenant().clone())
            .or_default()
            .clone();
        let levels: Vec<&str> = permit.filter().split('/').collect();
        let mut tree = tenant.write();
        let list = tree.list(&levels);
        match list.iter_mut().find(|s| s.entry.id == entry.id) {
            Some(subscriber) => subscriber.options = options,
            None => {
                list.reserve_exact(1);
                list.push(Subscriber {
                    entry: entry.clone(),
                    options,
                });
            }
        }
    }

    /// Removes a subscription; `false` if there was none.
    pub(crate) fn unsubscribe(&self, tenant: &TenantId, filter: &str, session: u64) -> bool {
        let Some(tree) = self.tenants.read().get(tenant).cloned() else {
            return false;
        };
        let levels: Vec<&str> = filter.split('/').collect();
        tree.write().remove(&levels, session)
    }

    /// Hands a permitted message to every session that subscribed to its topic. The message is made only if anybody
    /// wants it. Returns how many got it.
    pub(crate) fn publish(
        &self,
        permit: &PublishPermit<'_>,
        from: u64,
        limits: &Limits,
        message: impl FnOnce() -> Message,
    ) -> usize {
        let Some(tree) = self.tenants.read().get(permit.tenant()).cloned() else {
            return 0;
        };
        let tree = tree.read();
        let mut levels = [""; LEVELS_MAX];
        let mut depth = 0;
        for level in permit.topic().split('/') {
            let Some(slot) = levels.get_mut(depth) else {
                return 0;
            };
            *slot = level;
            depth += 1;
        }
        let mut found = Vec::new();
        tree.matching(&levels[..depth], true, &mut found);
        found.retain(|s| !(s.options.no_local && s.entry.id == from));
        if found.is_empty() {
            return 0;
        }
        // Overlapping subscriptions of one session: sent once, with the greatest QoS and all identifiers (MQTT 3.3.4).
        found.sort_by_key(|s| s.entry.id);
        let message = Arc::new(message());
        let mut count = 0;
        for same in found.chunk_by(|a, b| a.entry.id == b.entry.id) {
            let granted = same
                .iter()
                .map(|s| s.options.qos)
                .max()
                .unwrap_or(QoS::AtMostOnce);
            deliver(
                &same[0].entry,
                Delivery {
                    message: message.clone(),
                    qos: granted.min(message.qos),
                    subscription_ids: same.iter().filter_map(|s| s.options.id).collect(),
                },
                limits,
            );
            count += 1;
        }
        count
    }
}

fn deliver(entry: &SessionEntry, delivery: Delivery, limits: &Limits) {
    if entry.ending().is_some() {
        return;
    }
    let wake = {
        let mut outbox = entry.outbox.lock();
        let bytes = delivery.bytes();
        if outbox.queue.len() >= limits.outbox_messages_max || outbox.bytes + bytes > limits.outbox_bytes_max
        {
            drop(outbox);
            entry.end(EndReason::SlowConsumer);
            return;
        }
        outbox.bytes += bytes;
        outbox.queue.push_back(delivery);
        outbox.queue.len() == 1
    };
    // Whoever finds the outbox empty wakes the session; it drains all that is there.
    if wake {
        entry.timer.wake();
    }
}
