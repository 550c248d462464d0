//! The stages as types. Fields are private to this folder: a stage is made only by the one before it.
//!
//! 1. here: a connection, to its ClientHello
//! 2. `handshake`: TLS, to a proven key
//! 3. `identity`: whose it is, and whether that device may come in now
//! 4. `greeting`: what the device wants

mod greeting;
mod handshake;
mod identity;

use std::net::SocketAddr;
use std::sync::Arc;

use countersign_identity::Timestamp;
use countersign_policy::{Denial, DenialCode, ExchangeId, Stage};

pub use self::greeting::{Authorised, Greeted};
pub(crate) use self::greeting::{Connected, Greeting};
pub use self::handshake::Handshaking;
pub(crate) use self::identity::Identification;
pub use self::identity::{Handshaken, Identified};
use super::refused::{Abandoned, Refused};
use super::trace::Trace;
use crate::handshake::context::HandshakeContext;
use crate::handshake::hello::ClientHello;
use crate::handshake::ticket::DeviceTickets;
use crate::handshake::ticket::facts::TicketVersion;
use crate::node::Node;
use crate::shaping::attempts::Standing;
use crate::shaping::queue::Class;

/// A TCP connection that admission control by source let pass. Nothing is known of it but its address.
#[derive(Debug)]
pub struct Accepted {
    trace: Trace,
}

impl Accepted {
    pub(crate) fn new(id: ExchangeId, started: Timestamp, source: SocketAddr, listener: Arc<str>) -> Self {
        Self {
            trace: Trace::new(id, started, source, listener),
        }
    }

    /// A balancer's header says where it really comes from. From here on nothing sees the balancer's address but the record.
    pub(crate) fn come_from(&mut self, source: SocketAddr) {
        let proxy = std::mem::replace(&mut self.trace.source, source);
        self.trace.fact("proxy", proxy.to_string());
    }

    /// Where it comes from.
    pub(crate) fn source(&self) -> SocketAddr {
        self.trace.source()
    }

    /// Refuses it before or at the ClientHello.
    pub(crate) fn refuse(self, denial: Denial) -> Refused {
        Refused {
            trace: self.trace,
            denial,
        }
    }

    /// The peer went away.
    pub(crate) fn abandon(self) -> Abandoned {
        Abandoned { trace: self.trace }
    }

    /// Takes the ClientHello: the server name chooses the tenant.
    ///
    /// # Errors
    /// [`Refused`] if the server name belongs to nobody, or the ticket to a device that comes far too often.
    pub(crate) fn hello(
        mut self,
        hello: ClientHello,
        tickets: Option<&DeviceTickets>,
        node: &Node,
    ) -> Result<Handshaking, Box<Refused>> {
        // rustls would look for what TLS 1.2 needs first, and answer an older client that it lacks that.
        if !hello.offers.tls12 && !hello.offers.tls13 {
            return Err(Box::new(self.refuse(DenialCode::TlsVersion.into())));
        }
        let facts = &node.facts;
        let asked = match &hello.server_name {
            None => None,
            Some(name) => {
                let tenant = facts.tenant_by_host(name);
                if tenant.is_none() && !node.options.host_names.iter().any(|h| h == name) {
                    let denial = Denial::new(
                        DenialCode::UnknownServerName,
                        format!("no tenant has the host {name:?}"),
                    );
                    self.trace.fact("server_name", name.as_str());
                    return Err(Box::new(self.refuse(denial)));
                }
                tenant
            }
        };
        if let Some(name) = hello.server_name {
            self.trace.fact("server_name", name);
        }
        if !hello.alpn.is_empty() {
            self.trace.fact("alpn_offered", hello.alpn.join(" "));
        }
        self.trace.tenant = asked.clone();
        self.trace.passed(Stage::ClientHello);
        // TLS 1.3 is never turned off, so it is taken where it is offered.
        let version = match hello.offers.tls13 {
            true => TicketVersion::Tls13,
            false => TicketVersion::Tls12,
        };
        let opened = tickets
            .zip(hello.ticket.as_deref())
            .and_then(|(tickets, ticket)| tickets.opens(ticket, asked.as_ref(), node));
        // As the certificate is answered in a full handshake: read here, counted only once the key is proven.
        let class = match opened.map(|fingerprint| (fingerprint, node.attempts.standing(&fingerprint))) {
            Some((_, Standing::Within)) => Class::Resumption,
            Some((fingerprint, Standing::FarOver(wait))) => {
                let detail = format!("by a ticket of the certificate {fingerprint}");
                let denial = Denial::new(DenialCode::DeviceRateIgnored, detail).retry_after(wait);
                return Err(Box::new(self.refuse(denial)));
            }
            // Who is over its rate is told so, and does not go before those that are not.
            Some((_, Standing::Over(_))) | None => Class::Full,
        };
        let mut context = HandshakeContext::new(facts.clone(), asked, version, node.now());
        context.attempts = Some(node.attempts.clone());
        context.source = self.trace.source.ip();
        Ok(Handshaking {
            trace: self.trace,
            context: Some(Box::new(context)),
            class,
            flight_sent: false,
        })
    }
}

#[cfg(test)]
mod tests;
