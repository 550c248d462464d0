//! What a session sent and received, by topic: a bounded summary for the ledger.
//!
//! A session that never published nor received anything, and was refused nothing, has none, and pays a pointer for it. Summaries are handed to
//! the ledger when the session ends, and at intervals while it is live: a crash costs at most what was sent since the
//! last one (`limits.session_report_interval_s`).

use std::sync::{Arc, Weak};
use std::time::Duration;

use countersign_identity::Timestamp;
use countersign_policy::{SessionRecord, TopicSummary, TopicUse};
use parking_lot::Mutex;

use super::entry::{EndReason, SessionEntry};
use crate::metrics::count;
use crate::node::Node;

/// The name of the kind of session that is one connection.
const CONNECTION: &str = "connection";
/// The name of the kind that is a token: it has a name of its own, and no connection.
const TOKEN: &str = "token";
/// Refusals within one session that are kept and logged one by one; all are counted.
const REFUSALS_SHOWN: u64 = 8;

/// The summary of a live session; nothing is allocated before its first message.
#[derive(Debug, Default)]
pub(crate) struct Traffic(Mutex<Option<Box<Summary>>>);

#[derive(Debug, Default)]
struct Summary {
    published: Direction,
    received: Direction,
    /// What it was refused, listed or not.
    refusals: u64,
    /// Something came since it was last handed on.
    dirty: bool,
}

#[derive(Debug, Default)]
struct Direction {
    topics: Vec<Use>,
    /// Messages of all topics that found no room.
    other: Option<Box<Use>>,
}

/// What may be named: so many topics, which have so many bytes together. A topic alone may have 64 KiB.
#[derive(Debug, Clone, Copy)]
struct Room {
    topics: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Use {
    topic: Box<str>,
    messages: u64,
    bytes: u64,
    first: Timestamp,
    last: Timestamp,
}

impl Use {
    fn new(topic: &str, now: Timestamp) -> Self {
        Self {
            topic: topic.into(),
            messages: 0,
            bytes: 0,
            first: now,
            last: now,
        }
    }

    fn view(&self) -> TopicUse {
        TopicUse {
            topic: self.topic.to_string(),
            messages: self.messages,
            bytes: self.bytes,
            first: self.first,
            last: self.last,
        }
    }
}

impl Direction {
    /// Counts a message. `false` if its topic found no room and was counted among the others.
    fn add(&mut self, topic: &str, bytes: usize, now: Timestamp, room: Room) -> bool {
        let known = self.topics.iter().position(|u| *u.topic == *topic);
        let has_room = || {
            let taken: usize = self.topics.iter().map(|u| u.topic.len()).sum();
            self.topics.len() < room.topics && taken + topic.len() <= room.bytes
        };
        let named = known.is_some() || has_room();
        let at = match known {
            Some(n) => self.topics.get_mut(n),
            None if named => {
                self.topics.reserve_exact(1);
                self.topics.push(Use::new(topic, now));
                self.topics.last_mut()
            }
            None => Some(&mut **self.other.get_or_insert_with(|| Box::new(Use::new("", now)))),
        };
        if let Some(found) = at {
            found.messages += 1;
            found.bytes += bytes as u64;
            found.last = now;
        }
        named
    }

    fn view(&self) -> TopicSummary {
        TopicSummary {
            topics: self.topics.iter().map(Use::view).collect(),
            other: self.other.as_deref().map(Use::view),
        }
    }
}

impl SessionEntry {
    /// A message of this session was accepted and routed.
    pub(crate) fn published(&self, topic: &str, bytes: usize, node: &Node) {
        self.used(topic, bytes, node, |s| &mut s.published);
    }

    /// A message was sent to this session.
    pub(crate) fn received(&self, topic: &str, bytes: usize, node: &Node) {
        self.used(topic, bytes, node, |s| &mut s.received);
    }

    /// Something was refused to this session. Whether that is kept and logged by itself; if not, the session's record says
    /// how many more there were.
    pub(crate) fn lists_refusal(&self) -> bool {
        let mut traffic = self.traffic.0.lock();
        let summary = traffic.get_or_insert_default();
        summary.refusals += 1;
        let listed = summary.refusals <= REFUSALS_SHOWN;
        summary.dirty |= !listed;
        listed
    }

    fn used(
        &self,
        topic: &str,
        bytes: usize,
        node: &Node,
        direction: impl FnOnce(&mut Summary) -> &mut Direction,
    ) {
        let limits = &node.options.limits;
        let room = Room {
            topics: limits.session_topics_max,
            bytes: limits.session_topic_bytes_max,
        };
        let mut traffic = self.traffic.0.lock();
        let summary = traffic.get_or_insert_default();
        summary.dirty = true;
        if !direction(summary).add(topic, bytes, node.now(), room) {
            count(&node.metrics.topics_unnamed);
        }
    }

    /// A token has begun: it is told at once, since it may pass through its life without a message of its own.
    pub(crate) fn report_start(&self, node: &Node) {
        let traffic = self.traffic.0.lock();
        if self.ending().is_none() {
            let summary = Summary::default();
            let summary = traffic.as_deref().unwrap_or(&summary);
            node.sink.session(self.record(summary, node.now(), None));
        }
    }

    /// The session is over: hands its summary to the ledger, for good.
    pub(crate) fn report_end(&self, reason: EndReason, node: &Node) {
        let mut traffic = self.traffic.0.lock();
        let summary = traffic.take().unwrap_or_default();
        let now = node.now();
        // Under the lock, so that no report of before overtakes it.
        node.sink
            .session(self.record(&summary, now, Some((now, reason.name()))));
    }

    /// The session goes on: hands on what came since the last time, if anything did.
    fn report(&self, node: &Node) {
        let mut traffic = self.traffic.0.lock();
        if let Some(summary) = traffic.as_deref_mut()
            && self.ending().is_none()
            && std::mem::take(&mut summary.dirty)
        {
            node.sink.session(self.record(summary, node.now(), None));
        }
    }

    fn record(
        &self,
        summary: &Summary,
        seen: Timestamp,
        ended: Option<(Timestamp, &'static str)>,
    ) -> SessionRecord {
        let admission = self.admission();
        let token = self.token_facts();
        SessionRecord {
            exchange: self.exchange,
            kind: token.map_or(CONNECTION, |_| TOKEN).into(),
            name: token.map(|t| t.id.to_string()).unwrap_or_default(),
            tenant: admission.device.tenant.clone(),
            device: admission.device.id.clone(),
            credential: *admission.permit.fingerprint(),
            authority: self.authority.clone(),
            protocol: self.protocol.into(),
            source: self.source,
            listener: self.listener.to_string(),
            started: self.started,
            seen,
            ended: ended.map(|(at, _)| at),
            end: ended.map(|(_, reason)| reason.to_owned()),
            published: summary.published.view(),
            received: summary.received.view(),
            refusals_unlisted: summary.refusals.saturating_sub(REFUSALS_SHOWN),
        }
    }
}

/// Hands on the summaries of live sessions, again and again, until the node is gone.
pub(crate) async fn report(node: Weak<Node>, interval: Duration) {
    let mut interval = tokio::time::interval(interval.max(Duration::from_secs(1)));
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let Some(node) = node.upgrade() else { return };
        let busy = node.sessions.filter(|e| e.traffic.is_dirty());
        for part in busy.chunks(REPORTS_AT_ONCE) {
            for entry in part {
                entry.report(&node);
            }
            // The ledger's queue is bounded, and sessions are more urgent than summaries.
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// How many summaries are handed on before the ledger is given time to write them.
const REPORTS_AT_ONCE: usize = 1_000;
/// That time.
const PAUSE: Duration = Duration::from_millis(200);

impl Traffic {
    fn is_dirty(&self) -> bool {
        self.0.lock().as_deref().is_some_and(|s| s.dirty)
    }

    /// What there is now, published and received.
    pub(crate) fn now(entry: &Arc<SessionEntry>, node: &Node) -> SessionRecord {
        let traffic = entry.traffic.0.lock();
        match traffic.as_deref() {
            Some(summary) => entry.record(summary, node.now(), None),
            None => entry.record(&Summary::default(), node.now(), None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_beyond_the_limit_are_counted_together_and_known_ones_go_on() {
        let at = Timestamp::from_unix_s;
        let mut direction = Direction::default();
        let room = Room {
            topics: 2,
            bytes: 100,
        };
        assert!(direction.add("a", 5, at(1), room));
        assert!(direction.add("b", 5, at(2), room));
        assert!(!direction.add("c", 7, at(3), room));
        assert!(!direction.add("d", 7, at(4), room));
        assert!(direction.add("a", 1, at(5), room));
        let view = direction.view();
        let names: Vec<_> = view
            .all()
            .map(|u| (u.topic.as_str(), u.messages, u.bytes))
            .collect();
        assert_eq!(names, [("a", 2, 6), ("b", 1, 5), ("", 2, 14)]);
        assert_eq!((view.topics[0].first, view.topics[0].last), (at(1), at(5)));
        let other = view.other.unwrap();
        assert_eq!((other.first, other.last), (at(3), at(4)));
    }

    #[test]
    fn long_topics_take_no_more_room_than_short_ones() {
        let at = Timestamp::from_unix_s(1);
        let mut direction = Direction::default();
        let room = Room {
            topics: 64,
            bytes: 8192,
        };
        let long = |n: usize| format!("{n}/{}", "x".repeat(4000));
        let named = (0..64).filter(|n| direction.add(&long(*n), 5, at, room)).count();
        assert_eq!(named, 2);
        assert!(direction.add("short", 5, at, room));
        assert!(!direction.add(&"x".repeat(65_000), 5, at, room));
        assert_eq!(direction.view().other.unwrap().messages, 63);
    }

    #[test]
    fn a_session_without_messages_pays_a_pointer() {
        assert!(size_of::<Traffic>() <= 16);
    }
}
