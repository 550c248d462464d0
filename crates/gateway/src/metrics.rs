//! What the gateway counts. The process exports it under the names in the book's metrics table.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use countersign_policy::DenialCode;

use crate::handshake::ticket::TicketCounts;
use crate::session::entry::EndReason;

/// Counters and gauges of one gateway; all since start, none ever reset.
#[derive(Debug)]
pub struct Metrics {
    /// TCP connections accepted.
    pub accepted: AtomicU64,
    /// Exchanges that ended in a session.
    pub admitted: AtomicU64,
    /// Peers that went away before an answer.
    pub abandoned: AtomicU64,
    /// Exchanges by a certificate that is for enrolment alone, whose device enrolled.
    pub enrolment_only: AtomicU64,
    /// Connections held now, in any stage.
    pub connections: AtomicU64,
    /// Handshakes under way now.
    pub handshakes: AtomicU64,
    /// Refusals at the door that got no line in the log, because there were too many.
    pub refusals_unlogged: AtomicU64,
    /// Credentials that came to be suspected to have two holders.
    pub clones_suspected: AtomicU64,
    /// Devices with sessions at two addresses that were not watched: too many others were.
    pub clones_unwatched: AtomicU64,
    /// PUBLISH packets accepted from devices.
    pub publishes_in: AtomicU64,
    /// PUBLISH packets sent to subscribers.
    pub publishes_out: AtomicU64,
    /// PUBLISH packets refused by policy.
    pub publishes_denied: AtomicU64,
    /// Wills that were published.
    pub wills_published: AtomicU64,
    /// Wills that were due and not published, for the device may not publish them any more.
    pub wills_withheld: AtomicU64,
    /// Subscriptions refused by policy.
    pub subscriptions_denied: AtomicU64,
    /// Messages not delivered because the subscriber's own limit on packet size excludes them.
    pub messages_too_large: AtomicU64,
    /// Messages whose topic was not named in the session's summary, which had as many as it may.
    pub topics_unnamed: AtomicU64,
    /// Times that every live session was compared with the facts.
    pub sweeps: AtomicU64,
    /// Sessions that a change had missed: each is a bug.
    pub sweep_found: AtomicU64,
    /// Tokens that are live now.
    pub tokens: AtomicU64,
    /// Tokens granted.
    pub tokens_granted: AtomicU64,
    /// Requests for a token that were refused.
    pub tokens_refused: AtomicU64,
    /// Connection tasks that ended in a panic: each is a bug.
    pub panics: AtomicU64,
    /// Tickets made, opened and declined.
    pub tickets: std::sync::Arc<TicketCounts>,
    refused: Vec<AtomicU64>,
    ended: [AtomicU64; EndReason::COUNT],
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            accepted: AtomicU64::default(),
            admitted: AtomicU64::default(),
            abandoned: AtomicU64::default(),
            enrolment_only: AtomicU64::default(),
            connections: AtomicU64::default(),
            handshakes: AtomicU64::default(),
            refusals_unlogged: AtomicU64::default(),
            clones_suspected: AtomicU64::default(),
            clones_unwatched: AtomicU64::default(),
            publishes_in: AtomicU64::default(),
            publishes_out: AtomicU64::default(),
            publishes_denied: AtomicU64::default(),
            wills_published: AtomicU64::default(),
            wills_withheld: AtomicU64::default(),
            subscriptions_denied: AtomicU64::default(),
            messages_too_large: AtomicU64::default(),
            topics_unnamed: AtomicU64::default(),
            sweeps: AtomicU64::default(),
            sweep_found: AtomicU64::default(),
            tokens: AtomicU64::default(),
            tokens_granted: AtomicU64::default(),
            tokens_refused: AtomicU64::default(),
            panics: AtomicU64::default(),
            tickets: std::sync::Arc::default(),
            refused: DenialCode::ALL.iter().map(|_| AtomicU64::default()).collect(),
            ended: std::array::from_fn(|_| AtomicU64::default()),
        }
    }
}

impl Metrics {
    /// One more exchange was refused with this code.
    pub(crate) fn refused(&self, code: DenialCode) {
        if let Some(counter) = self.refused.get(code as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// One more session ended.
    pub(crate) fn ended(&self, reason: EndReason) {
        self.ended[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Refusals by code, only those that happened.
    pub fn refusals(&self) -> BTreeMap<&'static str, u64> {
        DenialCode::ALL
            .iter()
            .zip(&self.refused)
            .map(|(code, n)| (code.as_str(), n.load(Ordering::Relaxed)))
            .filter(|(_, n)| *n > 0)
            .collect()
    }

    /// Ended sessions by reason, only those that happened.
    pub fn ends(&self) -> BTreeMap<&'static str, u64> {
        EndReason::ALL
            .iter()
            .map(|r| (r.name(), self.ended[*r as usize].load(Ordering::Relaxed)))
            .filter(|(_, n)| *n > 0)
            .collect()
    }
}

/// Adds one.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
