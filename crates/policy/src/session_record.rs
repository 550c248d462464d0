//! What a session did: when it was, and a bounded summary of the topics it published to and received from.

use std::net::SocketAddr;

use countersign_identity::{AuthorityId, DeviceId, Fingerprint, TenantId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::exchange::ExchangeId;

/// Messages of one topic in one direction.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TopicUse {
    /// The topic; empty for all those together that the summary has no room for.
    pub topic: String,
    /// How many messages: accepted from the device, or sent to it.
    pub messages: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
    /// When the first was.
    pub first: Timestamp,
    /// When the last was.
    pub last: Timestamp,
}

/// Topics of one direction: named up to the gateway's limit, the rest counted together.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TopicSummary {
    /// The named topics, in the order in which they were first used.
    pub topics: Vec<TopicUse>,
    /// All other topics together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<TopicUse>,
}

impl TopicSummary {
    /// Nothing was sent this way.
    pub fn is_empty(&self) -> bool {
        self.topics.is_empty() && self.other.is_none()
    }

    /// The named topics and, last, all others together.
    pub fn all(&self) -> impl Iterator<Item = &TopicUse> {
        self.topics.iter().chain(&self.other)
    }
}

/// A session as the ledger keeps it: while it is live at intervals, if it sent or received anything since; and once
/// more, for good, when it ends.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SessionRecord {
    /// The exchange that admitted it.
    pub exchange: ExchangeId,
    /// What it is: `connection`, or `token`, which came of the same exchange as its connection.
    pub kind: String,
    /// Tells sessions of one exchange and kind apart: the id of a token; empty for a connection.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Whose.
    pub tenant: TenantId,
    /// Whose.
    pub device: DeviceId,
    /// The certificate that it was opened with.
    pub credential: Fingerprint,
    /// The authority that the chain ended in.
    pub authority: AuthorityId,
    /// `mqtt-3.1.1`, `mqtt-5`, `http/1.1` or, of a token, `oauth2`.
    pub protocol: String,
    /// Where it came from.
    pub source: SocketAddr,
    /// The listener's name.
    pub listener: String,
    /// When it began.
    pub started: Timestamp,
    /// As of when this is said.
    pub seen: Timestamp,
    /// When it ended; `None` while it is live.
    pub ended: Option<Timestamp>,
    /// Why it ended.
    pub end: Option<String>,
    /// What it published.
    pub published: TopicSummary,
    /// What was sent to it.
    pub received: TopicSummary,
    /// What it was refused beyond what is kept of one session: only counted.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub refusals_unlisted: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}
