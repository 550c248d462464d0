//! What one connection's callbacks learn inside rustls.
//!
//! The certificate verifier is shared by all connections and gets no hint which one it serves. All its callbacks are
//! synchronous, so the connection's context is lent to the thread around each call into rustls, and taken back after.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use countersign_identity::{PathDigest, TenantId, Timestamp, VerifiedChain};
use countersign_policy::exchange::ShownCertificate;
use countersign_policy::{Denial, FactSource, Possession};

use super::chains::ShownChain;
use super::ticket::facts::TicketVersion;
use super::ticket::{Decline, Resumed};
use crate::shaping::{Attempts, Standing};

/// What the verifier needs of a connection, and what it found.
pub struct HandshakeContext {
    /// Where anchors and credentials are looked up.
    pub facts: Arc<dyn FactSource>,
    /// The tenant that the server name chose; `None` if the anchor chooses.
    pub asked: Option<TenantId>,
    /// When the handshake started.
    pub now: Timestamp,
    /// Where it comes from: policies may look at it.
    pub source: IpAddr,
    /// The version that is agreed on: the newest that the client offers.
    pub version: TicketVersion,
    /// The certificate that was shown.
    pub shown: Option<ShownCertificate>,
    /// The verdict on it, formed when it was shown, answered only when possession is proven.
    pub verdict: Option<Result<VerifiedChain, Denial>>,
    /// Whether the peer proved to hold the key.
    pub possession: Possession,
    /// When the verdict was formed.
    pub certificate_at: Option<Instant>,
    /// When possession was checked.
    pub possession_at: Option<Instant>,
    /// How often devices come; `None`: nobody counts.
    pub attempts: Option<Arc<Attempts>>,
    /// How this one stood before this attempt.
    pub standing: Standing,
    /// The certificate that was shown, or that the ticket brought, in DER: a ticket is made for it.
    pub leaf_der: Option<Box<[u8]>>,
    /// The path to be remembered once possession is proven.
    pub remember: Option<(ShownChain, PathDigest)>,
    /// What a ticket brought that was opened. It counts if the session was resumed, and not before.
    pub resumed: Option<Resumed>,
    /// Why a ticket was not taken, the last one.
    pub declined: Option<Decline>,
    /// How many tickets were looked at.
    pub tickets_tried: u32,
}

impl HandshakeContext {
    /// Of a handshake that starts at `now`; nothing is known yet.
    pub fn new(
        facts: Arc<dyn FactSource>,
        asked: Option<TenantId>,
        version: TicketVersion,
        now: Timestamp,
    ) -> Self {
        Self {
            facts,
            asked,
            now,
            source: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            version,
            shown: None,
            verdict: None,
            possession: Possession::Unproven,
            certificate_at: None,
            possession_at: None,
            leaf_der: None,
            remember: None,
            resumed: None,
            declined: None,
            tickets_tried: 0,
            attempts: None,
            standing: Standing::Within,
        }
    }
}

thread_local! {
    static CURRENT: RefCell<Option<Box<HandshakeContext>>> = const { RefCell::new(None) };
}

/// Runs `call` with `context` lent to this thread. The context is back in `context` afterwards, also after a panic.
pub fn lend<R>(context: &mut Option<Box<HandshakeContext>>, call: impl FnOnce() -> R) -> R {
    struct Back<'a>(&'a mut Option<Box<HandshakeContext>>);
    impl Drop for Back<'_> {
        fn drop(&mut self) {
            *self.0 = CURRENT.with(RefCell::take);
        }
    }
    CURRENT.with(|c| c.replace(context.take()));
    let _back = Back(context);
    call()
}

/// Gives `work` the context of the connection that rustls works for now; `None` outside of [`lend`].
pub(crate) fn with<R>(work: impl FnOnce(&mut HandshakeContext) -> R) -> Option<R> {
    CURRENT.with(|c| c.borrow_mut().as_deref_mut().map(work))
}
