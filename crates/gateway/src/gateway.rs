//! What the process sees of the gateway.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use countersign_identity::{AuthorityId, Clock, DeviceId, IdentityRule, TenantId, Timestamp};
use countersign_policy::clones::Suspect;
use countersign_policy::exchange::ExchangeSink;
use countersign_policy::{ExchangeId, FactSource, SessionRecord};
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::handshake::chains::VerifiedChains;
use crate::handshake::config::{ServerIdentity, ServerIdentityError, server_config};
use crate::handshake::ticket::{DeviceTickets, Resumption, TicketKeys};
use crate::http::DeviceHttp;
use crate::listen;
use crate::metrics::Metrics;
use crate::node::{DeviceListener, GatewayOptions, Node, Port};
use crate::session::SessionEntry;
use crate::session::clones::Clones;
use crate::session::cutoff::{self, Cutoff, CutoffReport, Touched};
use crate::session::entry::EndReason;
use crate::session::sweep;
use crate::session::token::{self, TokenId, TokenView};
use crate::session::traffic::{self, Traffic};
use crate::shaping::gate::Gate;
use crate::timer::Wheel;

/// Why the device port cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The operating system refused the address.
    #[error("cannot listen on {address}: {source}")]
    Address {
        /// The address that was asked for.
        address: SocketAddr,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The TLS configuration is not possible.
    #[error(transparent)]
    Tls(#[from] ServerIdentityError),
    /// There is nothing to open.
    #[error("no listener for devices is configured")]
    None,
}

/// A session, as shown to operators.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SessionView {
    /// The tenant.
    pub tenant: TenantId,
    /// The device.
    pub device: DeviceId,
    /// `connection`, or `token`: without one.
    pub kind: &'static str,
    /// The client id it goes by; a token goes by `token:` and its id.
    pub client_id: String,
    /// The exchange that admitted it.
    pub exchange: ExchangeId,
    /// Where it comes from.
    pub source: SocketAddr,
    /// `mqtt-3.1.1`, `mqtt-5`, `http/1.1`, or `oauth2` for a token.
    pub protocol: &'static str,
    /// `TLSv1.3` or `TLSv1.2`.
    pub tls_version: &'static str,
    /// Since when.
    pub started: Timestamp,
    /// Until when at the latest, if that was said when it began: a token's end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
}

/// What a gateway stands on.
pub struct Foundation {
    /// The server certificate and its key.
    pub identity: Arc<ServerIdentity>,
    /// The keys of tickets. Whoever keeps them calls [`TicketKeys::rotate`].
    pub tickets: Arc<TicketKeys>,
    /// What decisions are made on.
    pub facts: Arc<dyn FactSource>,
    /// Where exchanges are recorded and first contacts decided.
    pub sink: Arc<dyn ExchangeSink>,
    /// What answers HTTP requests of admitted devices.
    pub http: Arc<dyn DeviceHttp>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// The open device listeners and all that is connected to them.
pub struct Gateway {
    node: Arc<Node>,
    /// Where a commit is followed that the registry's thread told of.
    runtime: Handle,
    identity: Arc<ServerIdentity>,
    addresses: Vec<(String, SocketAddr)>,
    accepting: Vec<JoinHandle<()>>,
}

impl Gateway {
    /// Opens all listeners, then serves them.
    ///
    /// # Errors
    /// [`BindError`] if there is none, or an address or the TLS configuration cannot be used; then none is open.
    pub fn start(
        listeners: &[DeviceListener],
        options: GatewayOptions,
        foundation: Foundation,
    ) -> Result<Self, BindError> {
        let Foundation {
            identity,
            tickets,
            facts,
            sink,
            http,
            clock,
        } = foundation;
        let node = Arc::new(Node::new(options, facts, sink, clock, http));
        let mut open = Vec::with_capacity(listeners.len());
        let mut addresses = Vec::with_capacity(listeners.len());
        for listener in listeners {
            let name: Arc<str> = listener.name.as_str().into();
            let producer = Arc::new(DeviceTickets::new(
                name.clone(),
                tickets.clone(),
                node.options.tickets.clone(),
                node.metrics.tickets.clone(),
            ));
            let tickets = (listener.resumption == Resumption::Offered).then_some(producer);
            let tls = server_config(
                identity.clone(),
                listener.tls_minimum,
                &listener.protocols,
                node.chains.clone(),
                tickets.clone(),
            )?;
            let failed = |source| BindError::Address {
                address: listener.address,
                source,
            };
            let socket = listen::bind(listener.address).map_err(failed)?;
            addresses.push((listener.name.clone(), socket.local_addr().map_err(failed)?));
            let proxy_from = listener.proxy_from.clone();
            let port = Port {
                name,
                tls,
                tickets,
                proxy_from,
            };
            open.push((socket, Arc::new(port)));
        }
        if open.is_empty() {
            return Err(BindError::None);
        }
        tokio::spawn(Wheel::run(Arc::downgrade(&node.wheel)));
        let interval = node.options.limits.session_report_interval;
        tokio::spawn(traffic::report(Arc::downgrade(&node), interval));
        tokio::spawn(Node::tidy(Arc::downgrade(&node)));
        tokio::spawn(Clones::run(Arc::downgrade(&node)));
        let pacing = tokio::spawn(Gate::run(Arc::downgrade(&node.gate)));
        tokio::spawn(sweep::run(Arc::downgrade(&node)));
        let accepting = open
            .into_iter()
            .map(|(socket, port)| tokio::spawn(listen::accept(socket, port, node.clone())))
            .chain([pacing])
            .collect();
        Ok(Self {
            node,
            runtime: Handle::current(),
            identity,
            addresses,
            accepting,
        })
    }

    /// Where the first listener listens.
    pub fn local_addr(&self) -> SocketAddr {
        // There is always one: `start` refuses to make a gateway without.
        self.addresses
            .first()
            .map_or(SocketAddr::from(([0, 0, 0, 0], 0)), |(_, address)| *address)
    }

    /// Where each listener listens, by its name.
    pub fn local_addrs(&self) -> &[(String, SocketAddr)] {
        &self.addresses
    }

    /// What it counts.
    pub fn metrics(&self) -> &Metrics {
        &self.node.metrics
    }

    /// How many devices wait for their handshake now, and how many had to since start.
    pub fn handshakes_waiting(&self) -> (u64, u64) {
        (self.node.gate.waiting(), self.node.gate.queued())
    }

    /// How many sources have an account for their rate, and how many were forgotten before it was level.
    pub fn source_accounts(&self) -> (u64, u64) {
        self.node.source_accounts()
    }

    /// How many devices have an account for their rate, and how many were forgotten before it was level.
    pub fn device_accounts(&self) -> (u64, u64) {
        self.node.attempts.accounts()
    }

    /// The credentials that two seem to hold, the clearest first.
    pub fn suspected_clones(&self) -> Vec<Suspect> {
        self.node.clones.suspected(&self.node)
    }

    /// The chains whose signatures are known to hold, and how often that was of use.
    pub fn verified_chains(&self) -> &VerifiedChains {
        &self.node.chains
    }

    /// How many sessions are live.
    pub fn session_count(&self) -> usize {
        self.node.sessions.len()
    }

    /// What the live sessions of a device did until now.
    pub fn doings(&self, tenant: &TenantId, device: &DeviceId) -> Vec<SessionRecord> {
        let mut entries = self.node.sessions.of_device(tenant, device);
        entries.retain(|e| e.ending().is_none());
        entries.iter().map(|e| Traffic::now(e, &self.node)).collect()
    }

    /// The live sessions, of one tenant if one is named, in order of tenant, device and client id.
    pub fn sessions(&self, tenant: Option<&TenantId>) -> Vec<SessionView> {
        let found = self
            .node
            .sessions
            .filter(|e| e.ending().is_none() && tenant.is_none_or(|t| e.admission().device.tenant == *t));
        let mut views: Vec<_> = found
            .iter()
            .map(|e| {
                let admission = e.admission();
                SessionView {
                    tenant: admission.device.tenant.clone(),
                    device: admission.device.id.clone(),
                    kind: e.token_facts().map_or("connection", |_| "token"),
                    client_id: e.client_id(&admission).to_owned(),
                    exchange: e.exchange,
                    source: e.source,
                    protocol: e.protocol,
                    tls_version: e.tls.version,
                    started: e.started,
                    expires: e.token_facts().map(|t| t.expires),
                }
            })
            .collect();
        views.sort_by(|a, b| (&a.tenant, &a.device, &a.client_id).cmp(&(&b.tenant, &b.device, &b.client_id)));
        views
    }

    /// The devices with live sessions that came by an authority and whose certificates would not name them by this rule.
    pub fn unnamed_by(&self, authority: &AuthorityId, rule: &IdentityRule) -> BTreeSet<DeviceId> {
        let unnamed = |e: &SessionEntry| {
            let named = e.named.as_ref().map(|fields| rule.read_kept(fields));
            named.is_some_and(|named| named != Ok(e.admission().device.id.clone()))
        };
        let found = self
            .node
            .sessions
            .filter(|e| e.authority == *authority && unnamed(e));
        found.iter().map(|e| e.admission().device.id.clone()).collect()
    }

    /// Changes were committed, and the facts show all of them: the sessions they touch are decided anew. What came of each
    /// change, in their order. It waits for nothing: what sessions may keep is asked, and closed, afterwards.
    pub fn reconsider(&self, touched: &[Touched]) -> Vec<Cutoff> {
        cutoff::reconsider(&self.node, &self.runtime, touched)
    }

    /// Looks at a token: decided anew over the facts as they are now. `None` if it is not known here, has ended, or is no
    /// longer permitted, and then it is ended.
    pub fn token(&self, tenant: &TenantId, device: &DeviceId, id: &TokenId) -> Option<TokenView> {
        token::look(&self.node, tenant, device, id)
    }

    /// Ends the sessions of one device. The device may connect again at once.
    pub fn disconnect(&self, tenant: &TenantId, device: &DeviceId) -> Cutoff {
        cutoff::end(
            &self.node,
            &self.runtime,
            self.node.sessions.of_device(tenant, device),
            EndReason::Operator,
        )
    }

    /// The server certificate and its key, to be replaced while running.
    pub fn identity(&self) -> &Arc<ServerIdentity> {
        &self.identity
    }

    /// Closes the port, then ends all sessions with "server shutting down", and waits for them at most `patience`.
    pub async fn shut_down(&self, patience: Duration) -> CutoffReport {
        self.node.draining.store(true, Ordering::Release);
        self.stop_accepting();
        let all = self.node.sessions.filter(|_| true);
        cutoff::end(&self.node, &self.runtime, all, EndReason::ServerShutdown)
            .wait(patience)
            .await
    }

    fn stop_accepting(&self) {
        for task in &self.accepting {
            task.abort();
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop_accepting();
    }
}
