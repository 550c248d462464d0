//! A live session as others see it: who it is, under which permit, what waits for it, and how to end it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

use countersign_identity::{AuthorityId, Fingerprint, HeldPath, IdentityFields, Timestamp};
use countersign_mqtt::QoS;
use countersign_mqtt::topic::{TopicFilter, TopicName};
use countersign_policy::decide::{AdmissionPermit, DataFacts, SpaceSet};
use countersign_policy::facts::TlsFacts;
use countersign_policy::{Denial, DeviceFacts, ExchangeId, PublishPermit, SubscribePermit};
use parking_lot::Mutex;

use super::token::TokenFacts;
use super::traffic::Traffic;
use super::will::Will;
use crate::data::embedded::Delivery;
use crate::timer::Timer;

macro_rules! end_reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $v5:expr;)+) => {
        /// Why a session ended.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        pub enum EndReason { $($(#[$doc])* $variant),+ }

        impl EndReason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            pub(crate) const COUNT: usize = Self::ALL.len();

            /// The name in logs, metrics and output.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// The reason code of the DISCONNECT that an MQTT 5 client is sent; `None` where none may be sent.
            pub const fn disconnect_code(self) -> Option<u8> {
                match self { $(Self::$variant => $v5),+ }
            }
        }
    };
}

end_reasons! {
    /// The client sent DISCONNECT.
    ClientDisconnect = "client-disconnect", None;
    /// The connection was lost.
    ConnectionLost = "connection-lost", None;
    /// Nothing came for 1.5 times the keep-alive interval.
    KeepAlive = "keep-alive", Some(0x8d);
    /// Another connection of the same device took the client id over.
    TakenOver = "taken-over", Some(0x8e);
    /// The device may no longer be connected: suspended, quarantined, decommissioned.
    DeviceChanged = "device-changed", Some(0x98);
    /// The credential was revoked.
    CredentialChanged = "credential-changed", Some(0x98);
    /// The authority was retired or revoked, revoked a certificate between it and the device's, or has another identity rule, by
    /// which the certificate names no device.
    AuthorityChanged = "authority-changed", Some(0x98);
    /// The policies no longer permit it, or the tenant's client-id mode does not allow its client id.
    PolicyChanged = "policy-changed", Some(0x87);
    /// An operator ended it.
    Operator = "operator", Some(0x98);
    /// The certificate expired.
    CertificateExpired = "certificate-expired", Some(0x87);
    /// The session reached its greatest age: the device must prove itself again.
    SessionAge = "session-age", Some(0xa0);
    /// The client broke the protocol.
    Protocol = "protocol", Some(0x82);
    /// It did something it is not authorised for, and the protocol has no softer answer.
    NotAuthorised = "not-authorised", Some(0x87);
    /// It let too much pile up.
    SlowConsumer = "slow-consumer", Some(0x97);
    /// The token reached the end that it was granted with.
    TokenExpired = "token-expired", None;
    /// The device gave the token back.
    TokenRevoked = "token-revoked", None;
    /// The node is shutting down.
    ServerShutdown = "server-shutdown", Some(0x8b);
}

impl EndReason {
    fn from_u8(n: u8) -> Option<Self> {
        Self::ALL.iter().copied().find(|r| *r as u8 == n)
    }
}

const LIVE: u8 = u8::MAX;

/// What a session was admitted under. Replaced as a whole when a change is decided anew and still permitted.
#[derive(Debug)]
pub struct Admission {
    /// The permit; data permits borrow from it.
    pub permit: AdmissionPermit,
    /// The device as it was decided on.
    pub device: Arc<DeviceFacts>,
    /// The policies that it was decided by.
    pub policy: Arc<countersign_policy::decide::TenantPolicy>,
    pub(crate) spaces: Arc<super::spaces::Spaces>,
}

impl Admission {
    /// Whether the device may publish to `topic`.
    ///
    /// # Errors
    /// The [`Denial`].
    pub fn publish<'s>(
        &'s self,
        topic: TopicName<'s>,
        qos: QoS,
        retain: bool,
        now: Timestamp,
    ) -> Result<PublishPermit<'s>, Denial> {
        let facts = DataFacts {
            spaces: self.spaces.of_topic(&self.device.id, topic),
            qos: qos as u8,
            retain,
            now,
        };
        self.policy
            .publish(&self.permit, &self.device, topic.as_str(), facts)
    }

    /// Whether the device may subscribe to `filter`, which `text` says in full.
    ///
    /// # Errors
    /// The [`Denial`].
    pub fn subscribe<'s>(
        &'s self,
        text: &'s str,
        filter: TopicFilter<'_>,
        qos: QoS,
        now: Timestamp,
    ) -> Result<SubscribePermit<'s>, Denial> {
        let facts = DataFacts {
            spaces: self.spaces.of_filter(&self.device.id, filter),
            qos: qos as u8,
            retain: false,
            now,
        };
        self.policy.subscribe(&self.permit, &self.device, text, facts)
    }

    /// Whether the device may subscribe to a filter that lies in these spaces.
    pub(super) fn may_subscribe(&self, spaces: SpaceSet, qos: QoS, now: Timestamp) -> bool {
        let facts = DataFacts {
            spaces,
            qos: qos as u8,
            retain: false,
            now,
        };
        self.policy
            .subscribe(&self.permit, &self.device, "", facts)
            .is_ok()
    }

    /// The names of the topic spaces that hold `topic`.
    pub fn spaces_of_topic(&self, topic: TopicName<'_>) -> Vec<&str> {
        self.names(self.spaces.of_topic(&self.device.id, topic))
    }

    /// The names of the topic spaces that hold all of `filter`.
    pub fn spaces_of_filter(&self, filter: TopicFilter<'_>) -> Vec<&str> {
        self.names(self.spaces.of_filter(&self.device.id, filter))
    }

    fn names(&self, set: SpaceSet) -> Vec<&str> {
        let all = self.policy.spaces().iter().enumerate();
        all.filter(|(n, _)| set.contains(*n))
            .map(|(_, s)| s.name.as_str())
            .collect()
    }
}

/// What waits to be sent to a session.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pub(crate) queue: VecDeque<Delivery>,
    pub(crate) bytes: usize,
}

/// What a session goes by among those of its device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SessionName {
    /// The device's id, as client id.
    Device,
    /// Another client id that the device chose, as long as the tenant's mode allows it.
    Chosen(Box<str>),
    /// No client id: the name that an HTTP connection or a token is given, so that it takes over no other.
    Given(Box<str>),
}

/// A topic filter that a session subscribed to, with the QoS that was asked for, which policies decide on.
pub(crate) type Subscription = (Box<str>, QoS);

/// A live session. Shared by its connection, the index and the router.
#[derive(Debug)]
pub struct SessionEntry {
    pub(crate) id: u64,
    pub(crate) exchange: ExchangeId,
    pub(crate) name: SessionName,
    pub(crate) source: SocketAddr,
    pub(crate) listener: Arc<str>,
    pub(crate) started: Timestamp,
    pub(crate) protocol: &'static str,
    pub(crate) authority: AuthorityId,
    /// What lies between certificate and authority, if anything does.
    pub(crate) path: Option<Arc<HeldPath>>,
    /// What identity rules read of its certificate; `None` if that vouches for itself.
    pub(crate) named: Option<Arc<IdentityFields>>,
    pub(crate) tls: TlsFacts,
    /// A token, and so without a connection.
    token: Option<Box<TokenFacts>>,
    admission: Mutex<Arc<Admission>>,
    ending: AtomicU8,
    closed: AtomicBool,
    /// How many changes have yet to ask whether it may keep what it has.
    awaited: AtomicU32,
    /// What is published if it ends without its client's word.
    pub(crate) will: Mutex<Option<Box<Will>>>,
    pub(crate) outbox: Mutex<Outbox>,
    /// What it subscribed to. Its connection alone changes it, and looks after each change whether it was admitted anew
    /// meanwhile; whoever admits it anew looks afterwards whether all that is listed is permitted. One of the two sees the other.
    pub(crate) subscriptions: Mutex<Vec<Subscription>>,
    pub(crate) traffic: Traffic,
    pub(crate) timer: Arc<Timer>,
}

impl SessionEntry {
    #[expect(
        clippy::too_many_arguments,
        reason = "made in one place, from the stage before"
    )]
    pub(crate) fn new(
        id: u64,
        exchange: ExchangeId,
        name: SessionName,
        source: SocketAddr,
        listener: Arc<str>,
        started: Timestamp,
        protocol: &'static str,
        authority: AuthorityId,
        path: Option<Arc<HeldPath>>,
        named: Option<Arc<IdentityFields>>,
        tls: TlsFacts,
        admission: Admission,
        timer: Arc<Timer>,
    ) -> Self {
        Self {
            id,
            exchange,
            name,
            source,
            listener,
            started,
            protocol,
            authority,
            path,
            named,
            tls,
            token: None,
            admission: Mutex::new(Arc::new(admission)),
            ending: AtomicU8::new(LIVE),
            closed: AtomicBool::new(false),
            awaited: AtomicU32::new(0),
            will: Mutex::default(),
            outbox: Mutex::default(),
            subscriptions: Mutex::default(),
            traffic: Traffic::default(),
            timer,
        }
    }

    /// A token of the device that holds the session `of`.
    pub(crate) fn token(
        id: u64,
        of: &Self,
        protocol: &'static str,
        started: Timestamp,
        admission: Admission,
        facts: TokenFacts,
        timer: Arc<Timer>,
    ) -> Self {
        let name = SessionName::Given(format!("token:{}", facts.id).into());
        Self {
            token: Some(Box::new(facts)),
            ..Self::new(
                id,
                of.exchange,
                name,
                of.source,
                of.listener.clone(),
                started,
                protocol,
                of.authority.clone(),
                of.path.clone(),
                of.named.clone(),
                of.tls,
                admission,
                timer,
            )
        }
    }

    /// What makes it a token; `None` for a connection's session.
    pub(crate) fn token_facts(&self) -> Option<&TokenFacts> {
        self.token.as_deref()
    }

    /// What it is admitted under now.
    pub(crate) fn admission(&self) -> Arc<Admission> {
        self.admission.lock().clone()
    }

    /// A change was decided anew, and it may stay.
    pub(crate) fn readmit(&self, admission: Admission) {
        *self.admission.lock() = Arc::new(admission);
    }

    /// The same of what was decided over `old`; not if a change has readmitted it since, which knows better.
    pub(crate) fn readmit_over(&self, old: &Arc<Admission>, admission: Admission) {
        let mut held = self.admission.lock();
        if Arc::ptr_eq(&held, old) {
            *held = Arc::new(admission);
        }
    }

    /// The QoS that it subscribed to a filter with, if it did, and how many subscriptions it holds.
    pub(super) fn subscription(&self, filter: &str) -> (Option<QoS>, usize) {
        let subscriptions = self.subscriptions.lock();
        let found = subscriptions.iter().find(|(f, _)| **f == *filter);
        (found.map(|(_, qos)| *qos), subscriptions.len())
    }

    /// Lists a filter with the QoS that is asked for; `None` takes it out. Whether it was listed before.
    pub(super) fn list_subscription(&self, filter: &str, qos: Option<QoS>) -> bool {
        let mut subscriptions = self.subscriptions.lock();
        let known = subscriptions.iter().position(|(f, _)| **f == *filter);
        match (known, qos) {
            (Some(n), Some(qos)) => subscriptions[n].1 = qos,
            (Some(n), None) => drop(subscriptions.remove(n)),
            (None, Some(qos)) => subscriptions.push((filter.into(), qos)),
            (None, None) => {}
        }
        known.is_some()
    }

    /// What policies see of its subscriptions, each once: the spaces of the filter, and the QoS that was asked for.
    pub(super) fn subscriptions_seen(&self, admission: &Admission) -> Vec<(SpaceSet, QoS)> {
        let mut seen = Vec::new();
        for (text, qos) in self.subscriptions.lock().iter() {
            if let Ok(filter) = TopicFilter::new(text) {
                let one = (admission.spaces.of_filter(&admission.device.id, filter), *qos);
                if !seen.contains(&one) {
                    seen.push(one);
                }
            }
        }
        seen
    }

    /// A change has yet to ask whether it may keep what it has.
    pub(super) fn await_review(&self) {
        self.awaited.fetch_add(1, Ordering::AcqRel);
    }

    /// It was asked.
    pub(super) fn reviewed(&self) {
        self.awaited.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether a change has yet to ask.
    pub(super) fn is_awaited(&self) -> bool {
        self.awaited.load(Ordering::Acquire) > 0
    }

    /// The client id it goes by.
    pub(crate) fn client_id<'a>(&'a self, admission: &'a Admission) -> &'a str {
        match &self.name {
            SessionName::Device => admission.device.id.as_str(),
            SessionName::Chosen(name) | SessionName::Given(name) => name,
        }
    }

    /// The credential it was opened with.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        *self.admission.lock().permit.fingerprint()
    }

    /// Ends it. From this moment no packet of it is acted on. `false` if it was ending already.
    pub(crate) fn end(&self, reason: EndReason) -> bool {
        let first = self
            .ending
            .compare_exchange(LIVE, reason as u8, Ordering::AcqRel, Ordering::Acquire)
            .is_ok();
        if first {
            self.timer.wake();
        }
        first
    }

    /// Why it is ending; `None` while it is live.
    pub(crate) fn ending(&self) -> Option<EndReason> {
        EndReason::from_u8(self.ending.load(Ordering::Acquire))
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Whether its last word is written and its socket closed for writing.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}
