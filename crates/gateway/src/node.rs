//! What all connections of one gateway share.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use countersign_identity::{Clock, Timestamp};
use countersign_policy::clones::CloneRules;
use countersign_policy::exchange::ExchangeSink;
use countersign_policy::{
    Denial, DenialCode, ExchangeId, ExchangeRecord, FactSource, Outcome, Possession, StageOutcome,
    StageRecord,
};
use parking_lot::Mutex;
use rustls::ServerConfig;

use crate::data::embedded::Router;
use crate::handshake::chains::VerifiedChains;
use crate::handshake::config::{Protocol, TlsMinimum};
use crate::handshake::ticket::{DeviceTickets, Resumption, TicketSettings};
use crate::http::DeviceHttp;
use crate::limits::Limits;
use crate::metrics::{Metrics, count};
use crate::network::Network;
use crate::session::clones::Clones;
use crate::session::cutoff::Reconsiderations;
use crate::session::entry::SessionEntry;
use crate::session::index::SessionIndex;
use crate::session::token::TokenCounts;
use crate::shaping::Attempts;
use crate::shaping::gate::Gate;
use crate::shaping::rate::Rate;
use crate::shaping::sources::Sources;
use crate::timer::Wheel;

/// Refusals at the door that get a line in the log: 20 a second, and 200 at once.
const LOGGED: Rate = Rate::every(Duration::from_millis(50), 200);

/// One address where devices connect.
#[derive(Clone, Debug)]
pub struct DeviceListener {
    /// Its name in ledger and log.
    pub name: String,
    /// Where it listens; port 0 takes any free one.
    pub address: SocketAddr,
    /// The lowest TLS version.
    pub tls_minimum: TlsMinimum,
    /// What may be spoken, chosen by ALPN.
    pub protocols: Vec<Protocol>,
    /// The balancers: each of their connections begins with a PROXY protocol header, and nobody else may connect here.
    /// Empty: devices connect themselves, and a header is refused.
    pub proxy_from: Vec<Network>,
    /// Whether sessions may be resumed.
    pub resumption: Resumption,
}

/// An open listener, as its connections see it.
pub(crate) struct Port {
    pub(crate) name: Arc<str>,
    pub(crate) tls: Arc<ServerConfig>,
    /// `None` where nothing is resumed.
    pub(crate) tickets: Option<Arc<DeviceTickets>>,
    pub(crate) proxy_from: Vec<Network>,
}

impl Port {
    /// Whether each connection begins with a PROXY protocol header.
    pub(crate) fn is_behind_proxies(&self) -> bool {
        !self.proxy_from.is_empty()
    }

    fn trusts(&self, peer: IpAddr) -> bool {
        self.proxy_from.iter().any(|network| network.contains(peer))
    }
}

/// What a gateway is called and what it allows.
#[derive(Clone, Debug)]
pub struct GatewayOptions {
    /// The platform's own host names, lower case: a device that asks for one of them has not chosen a tenant by it.
    pub host_names: Vec<String>,
    /// The limits.
    pub limits: Limits,
    /// When two are suspected to hold one key.
    pub clones: CloneRules,
    /// What applies to tickets.
    pub tickets: TicketSettings,
}

pub(crate) struct Node {
    pub(crate) options: GatewayOptions,
    pub(crate) facts: Arc<dyn FactSource>,
    pub(crate) sink: Arc<dyn ExchangeSink>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) http: Arc<dyn DeviceHttp>,
    pub(crate) wheel: Arc<Wheel>,
    pub(crate) metrics: Metrics,
    pub(crate) chains: Arc<VerifiedChains>,
    pub(crate) sessions: SessionIndex,
    pub(crate) reconsiderations: Reconsiderations,
    pub(crate) token_counts: TokenCounts,
    pub(crate) clones: Clones,
    pub(crate) router: Router,
    pub(crate) draining: AtomicBool,
    pub(crate) gate: Arc<Gate>,
    pub(crate) attempts: Arc<Attempts>,
    sources: Mutex<Sources>,
    refusals_logged: Mutex<u64>,
    start: Instant,
    exchange_counter: AtomicU32,
    session_counter: AtomicU64,
}

impl Node {
    pub(crate) fn new(
        options: GatewayOptions,
        facts: Arc<dyn FactSource>,
        sink: Arc<dyn ExchangeSink>,
        clock: Arc<dyn Clock>,
        http: Arc<dyn DeviceHttp>,
    ) -> Self {
        let limits = &options.limits;
        Self {
            gate: Arc::new(Gate::new(limits)),
            attempts: Arc::new(Attempts::new(
                limits.device_connects_per_minute,
                limits.devices_remembered_max,
            )),
            sources: Mutex::new(Sources::new(limits)),
            refusals_logged: Mutex::new(0),
            start: Instant::now(),
            chains: Arc::new(VerifiedChains::new(options.limits.verified_chains_max)),
            facts,
            sink,
            clock,
            http,
            wheel: Arc::new(Wheel::new()),
            metrics: Metrics::default(),
            sessions: SessionIndex::default(),
            reconsiderations: Reconsiderations::default(),
            token_counts: TokenCounts::default(),
            clones: Clones::new(options.clones),
            options,
            router: Router::default(),
            draining: AtomicBool::new(false),
            exchange_counter: AtomicU32::new(0),
            session_counter: AtomicU64::new(1),
        }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// For accounts that owe time: nanoseconds since the gateway started.
    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Whether one more refusal at the door gets a line in the log. In a storm most do not: they are in the metrics.
    pub(crate) fn may_log_refusal(&self) -> bool {
        let may = LOGGED.take(&mut self.refusals_logged.lock(), self.now_ns());
        if !may {
            count(&self.metrics.refusals_unlogged);
        }
        may
    }

    /// How many sources have an account, and how many lost one that still owed.
    pub(crate) fn source_accounts(&self) -> (u64, u64) {
        let sources = self.sources.lock();
        (sources.len() as u64, sources.forgotten())
    }

    /// Gives back what nobody needs any more, every ten seconds until the gateway is gone.
    pub(crate) async fn tidy(node: Weak<Self>) {
        let mut look = tokio::time::interval(Duration::from_secs(10));
        loop {
            look.tick().await;
            let Some(node) = node.upgrade() else { return };
            node.sources.lock().tidy(node.now_ns());
            node.attempts.tidy();
        }
    }

    pub(crate) fn next_exchange(&self, started: Timestamp) -> ExchangeId {
        ExchangeId::new(started, self.exchange_counter.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn next_session(&self) -> u64 {
        self.session_counter.fetch_add(1, Ordering::Relaxed)
    }

    /// Keeps a refusal within a session: the exchange that admitted it stays as it is, this is one of its own.
    pub(crate) fn refused_in_session(
        &self,
        entry: &SessionEntry,
        at_us: u32,
        denial: Denial,
        topic: Option<&str>,
    ) {
        let admission = entry.admission();
        let now = self.now();
        let mut facts = vec![
            ("protocol".to_owned(), entry.protocol.to_owned()),
            ("session_exchange".to_owned(), entry.exchange.to_string()),
        ];
        if let Some(topic) = topic {
            facts.push(("topic".to_owned(), topic.to_owned()));
        }
        let record = ExchangeRecord {
            id: self.next_exchange(now),
            started: now,
            source: entry.source,
            listener: entry.listener.to_string(),
            outcome: Outcome::Refused,
            stages: vec![StageRecord {
                stage: denial.code.stage(),
                at_us,
                took_us: 0,
                outcome: StageOutcome::Failed,
            }],
            tenant: Some(admission.device.tenant.clone()),
            device: Some(admission.device.id.clone()),
            authority: Some(entry.authority.clone()),
            certificate: None,
            possession: Possession::Proven,
            facts,
            policies: denial.policies.clone(),
            denial: Some(denial),
            generations: Some(admission.permit.generations()),
        };
        if let Some(denial) = &record.denial {
            tracing::warn!(
                exchange.id = %record.id,
                exchange.outcome = record.outcome.name(),
                session.exchange = %entry.exchange,
                denial.code = denial.code.as_str(),
                denial.detail = denial.detail.as_str(),
                tenant.id = %admission.device.tenant,
                device.id = %admission.device.id,
                certificate.fingerprint = %admission.permit.fingerprint(),
                topic = topic.unwrap_or_default(),
                source = %entry.source,
                "refused within a session"
            );
        }
        self.sink.record(record);
    }

    /// Admission control before any cryptography: counts the connection in, or says why not.
    pub(crate) fn admit(
        self: &Arc<Self>,
        port: &Arc<Port>,
        source: SocketAddr,
    ) -> Result<ConnectionSlot, DenialCode> {
        let limits = &self.options.limits;
        if port.is_behind_proxies() && !port.trusts(source.ip()) {
            return Err(DenialCode::ProxyUntrusted);
        }
        if self.draining.load(Ordering::Acquire) {
            return Err(DenialCode::Draining);
        }
        if self.metrics.connections.load(Ordering::Relaxed) >= limits.connections_max as u64 {
            return Err(DenialCode::ConnectionLimit);
        }
        if self.metrics.handshakes.load(Ordering::Relaxed) >= limits.handshakes_max as u64 {
            return Err(DenialCode::HandshakeLimit);
        }
        // Behind a balancer it is charged to the address that its header names, once that is read.
        let charged = match port.is_behind_proxies() {
            true => None,
            false => {
                self.charge(source.ip())?;
                Some(source.ip())
            }
        };
        self.metrics.connections.fetch_add(1, Ordering::Relaxed);
        self.metrics.handshakes.fetch_add(1, Ordering::Relaxed);
        Ok(ConnectionSlot {
            node: self.clone(),
            port: port.clone(),
            source: charged,
            handshaking: true,
        })
    }

    /// Counts a connection to its source's account.
    fn charge(&self, source: IpAddr) -> Result<(), DenialCode> {
        self.sources.lock().enter(source, self.now_ns())
    }
}

/// One counted connection; dropping it counts it out.
pub(crate) struct ConnectionSlot {
    pub(crate) node: Arc<Node>,
    pub(crate) port: Arc<Port>,
    /// Whose account it is on; `None` while the balancer's header is awaited.
    source: Option<IpAddr>,
    handshaking: bool,
}

impl ConnectionSlot {
    /// A balancer's header told where the connection comes from: it goes on that account.
    pub(crate) fn charge(&mut self, source: IpAddr) -> Result<(), DenialCode> {
        debug_assert!(self.source.is_none(), "a connection has one source");
        self.node.charge(source)?;
        self.source = Some(source);
        Ok(())
    }

    /// The handshake is over, whichever way.
    pub(crate) fn handshake_over(&mut self) {
        if std::mem::take(&mut self.handshaking) {
            self.node.metrics.handshakes.fetch_sub(1, Ordering::Relaxed);
            if let Some(source) = self.source {
                self.node.sources.lock().handshake_over(source);
            }
        }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.handshake_over();
        self.node.metrics.connections.fetch_sub(1, Ordering::Relaxed);
        if let Some(source) = self.source {
            self.node.sources.lock().leave(source, self.node.now_ns());
        }
    }
}
