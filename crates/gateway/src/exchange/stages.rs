//! The stages as types. Fields are private to this folder: a stage is made only by the one before it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use countersign_identity::{Anchor, Fingerprint, HeldPath, TenantId, Timestamp, VerifiedChain};
use countersign_policy::decide::AdmissionPermit;
use countersign_policy::exchange::source_of;
use countersign_policy::facts::TlsFacts;
use countersign_policy::first_contact::Contact;
use countersign_policy::{
    ClientIdMode, CredentialFacts, Denial, DenialCode, DeviceFacts, ExchangeId, FactSource, LifecycleState,
    Outcome, Possession, Stage,
};
use rustls::server::UnbufferedServerConnection;
use rustls::{AlertDescription, Error as TlsError, HandshakeKind, PeerIncompatible};

use super::refused::{Abandoned, Refused};
use super::trace::Trace;
use crate::handshake::context::{self, HandshakeContext};
use crate::handshake::driver::{self, Pass};
use crate::handshake::hello::ClientHello;
use crate::handshake::ticket::facts::TicketVersion;
use crate::handshake::ticket::{DeviceTickets, Resumed};
use crate::judge::{self, Circumstances};
use crate::node::Node;
use crate::session::will::Will;
use crate::shaping::attempts::Standing;
use crate::shaping::queue::{Class, Place};

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

/// A TLS handshake under way. It has no data to read and nothing to answer.
pub struct Handshaking {
    trace: Trace,
    context: Option<Box<HandshakeContext>>,
    class: Class,
    flight_sent: bool,
}

impl Handshaking {
    /// Where it stands in the queue for a handshake, with a ClientHello of so many bytes.
    pub(crate) fn place(&self, bytes: usize) -> Place {
        Place {
            tenant: self.trace.tenant.clone(),
            class: self.class,
            source: source_of(self.trace.source.ip()),
            bytes,
        }
    }

    /// It waited for its turn, which is now: dates are held against this moment.
    pub(crate) fn admitted(&mut self, waited: Duration, now: Timestamp) {
        self.trace.fact("queued_ms", waited.as_millis().to_string());
        if let Some(context) = &mut self.context {
            context.now = now;
        }
    }

    /// Moves the handshake on by what is in `input`.
    pub(crate) fn pass(
        &mut self,
        tls: &mut UnbufferedServerConnection,
        input: &mut [u8],
        plaintext: &mut Vec<u8>,
        records: &mut Vec<u8>,
    ) -> Pass {
        let pass = context::lend(&mut self.context, || driver::pass(tls, input, plaintext, records));
        if !self.flight_sent && !records.is_empty() && !matches!(pass.end, driver::PassEnd::Failed(_)) {
            self.flight_sent = true;
            self.trace.passed(Stage::ServerFlight);
        }
        pass
    }

    /// The handshake is complete: rustls says so, and so must the context, or nobody comes in.
    ///
    /// # Errors
    /// [`Refused`] if there is no verdict or possession was not proven, in this handshake or in the one that a resumed
    /// session goes back to.
    pub(crate) fn complete(mut self, tls: &UnbufferedServerConnection) -> Result<Handshaken, Box<Refused>> {
        self.take_findings();
        let (mut standing, attempts) = match &self.context {
            Some(context) => (context.standing, context.attempts.clone()),
            None => (Standing::Within, None),
        };
        let resumed = !matches!(
            tls.handshake_kind(),
            Some(HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest)
        );
        let chain = match resumed {
            true => self.resumed_chain(tls),
            false => self.full_chain(),
        };
        let chain = match chain {
            Ok(chain) => chain,
            Err(denial) => {
                return Err(Box::new(Refused {
                    trace: self.trace,
                    denial,
                }));
            }
        };
        if let (true, Some(attempts)) = (resumed, attempts) {
            // No certificate was shown; the ticket stands for the proof of its key, and so the attempt counts.
            let fingerprint = chain.leaf().fingerprint;
            standing = attempts.standing(&fingerprint);
            attempts.count(fingerprint);
        }
        let facts = TlsFacts {
            version: match tls.protocol_version() {
                Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
                Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
                _ => "unknown",
            },
            group: tls
                .negotiated_key_exchange_group()
                .and_then(|g| g.name().as_str()),
            cipher_suite: tls
                .negotiated_cipher_suite()
                .and_then(|s| s.suite().as_str())
                .unwrap_or("unknown"),
            resumed,
        };
        self.trace.fact("tls_version", facts.version);
        if let Some(group) = facts.group {
            self.trace.fact("group", group);
        }
        self.trace.fact("cipher_suite", facts.cipher_suite);
        self.trace.tenant = Some(chain.anchor().tenant.clone());
        self.trace.authority = Some(chain.anchor().authority.clone());
        Ok(Handshaken {
            trace: self.trace,
            chain,
            tls: facts,
            first_contact_over: false,
            standing,
        })
    }

    fn full_chain(&mut self) -> Result<VerifiedChain, Denial> {
        let verdict = self.context.take().and_then(|c| c.verdict);
        match (verdict, self.trace.possession) {
            (Some(Ok(chain)), Possession::Proven) => Ok(chain),
            _ => Err(Denial::new(
                DenialCode::NoCertificate,
                "the handshake ended without a verified certificate",
            )),
        }
    }

    /// Stages 4 and 5 of a resumed session: the ticket that was opened brought them, and the library must have taken the
    /// same certificate from it.
    fn resumed_chain(&mut self, tls: &UnbufferedServerConnection) -> Result<VerifiedChain, Denial> {
        let context = self.context.take();
        let brought = context.and_then(|c| match c.verdict {
            None => c.resumed.map(|resumed| (resumed, c.version)),
            Some(_) => None,
        });
        let restored = tls.peer_certificates().and_then(|chain| chain.first());
        let agreed = match tls.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => Some(TicketVersion::Tls13),
            Some(rustls::ProtocolVersion::TLSv1_2) => Some(TicketVersion::Tls12),
            _ => None,
        };
        let (Some((resumed, version)), Some(restored)) = (brought, restored) else {
            return Err(DenialCode::ResumedWithoutCertificate.into());
        };
        let leaf = resumed.chain.leaf();
        if Fingerprint::of(restored) != leaf.fingerprint || agreed != Some(version) {
            return Err(Denial::new(
                DenialCode::ResumedWithoutCertificate,
                "the session that was resumed is not the one that the ticket is of",
            ));
        }
        let Resumed {
            chain,
            proven_at,
            chain_length,
        } = resumed;
        self.trace.taken_over(&chain, chain_length, proven_at);
        Ok(chain)
    }

    /// TLS failed, by either side.
    pub(crate) fn fail(mut self, error: &TlsError) -> Refused {
        self.take_findings();
        let verdict = self.context.take().and_then(|c| c.verdict);
        let denial = match verdict {
            Some(Err(denial)) if matches!(error, TlsError::InvalidCertificate(_)) => denial,
            _ => denial_of(error, self.flight_sent),
        };
        Refused {
            trace: self.trace,
            denial,
        }
    }

    /// The peer was silent for too long, or went away.
    pub(crate) fn give_up(mut self, denial: Denial) -> Refused {
        self.take_findings();
        Refused {
            trace: self.trace,
            denial,
        }
    }

    /// The peer went away.
    pub(crate) fn abandon(mut self) -> Abandoned {
        self.take_findings();
        Abandoned { trace: self.trace }
    }

    fn take_findings(&mut self) {
        let Some(context) = &mut self.context else { return };
        let trace = &mut self.trace;
        trace.certificate = context.shown.take();
        trace.possession = context.possession;
        if let Some(why) = context.declined {
            trace.fact("ticket_declined", why.name());
        }
        if let Some(at) = context.certificate_at {
            match context.verdict {
                Some(Ok(_)) => trace.passed_at(Stage::ClientCertificate, at),
                Some(Err(ref d)) if d.code == DenialCode::PossessionFailed => {
                    trace.passed_at(Stage::ClientCertificate, at);
                }
                _ => trace.failed_at(Stage::ClientCertificate, at),
            }
        }
        if let Some(at) = context.possession_at {
            match context.possession {
                Possession::Proven => trace.passed_at(Stage::CertificateVerify, at),
                Possession::Unproven => trace.failed_at(Stage::CertificateVerify, at),
            }
        }
    }
}

/// Sorts an error of the TLS library by what the operator can do about it.
fn denial_of(error: &TlsError, flight_sent: bool) -> Denial {
    let code = match error {
        TlsError::AlertReceived(alert) if flight_sent => match alert {
            AlertDescription::UnknownCA => DenialCode::DeviceUnknownCa,
            AlertDescription::CertificateExpired => DenialCode::DeviceCertificateExpired,
            AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate => DenialCode::DeviceBadCertificate,
            _ => DenialCode::DeviceAlert,
        },
        TlsError::AlertReceived(_) => DenialCode::DeviceAlert,
        TlsError::NoCertificatesPresented => DenialCode::NoCertificate,
        TlsError::NoApplicationProtocol => DenialCode::NoApplicationProtocol,
        TlsError::PeerIncompatible(
            PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::Tls13RequiredForQuic
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::ServerDoesNotSupportTls12Or13,
        ) => DenialCode::TlsVersion,
        TlsError::PeerIncompatible(_) => DenialCode::HandshakeParameters,
        TlsError::InvalidCertificate(_) => DenialCode::PossessionFailed,
        _ => DenialCode::HandshakeProtocol,
    };
    Denial::new(code, error.to_string())
}

/// A peer that proved to hold the key of a certificate with a path to a registered anchor. Not admitted to anything.
#[derive(Debug)]
pub struct Handshaken {
    trace: Trace,
    chain: VerifiedChain,
    tls: TlsFacts,
    first_contact_over: bool,
    standing: Standing,
}

/// What identification came to.
pub(crate) enum Identification {
    /// Device and credential are known.
    Known(Box<Identified>),
    /// The credential is not known, and the authority's admission may let it be learned: ask, then identify again.
    FirstContact(Box<Handshaken>, Box<Contact>),
}

impl Handshaken {
    /// Reads the device id, and looks up device and credential.
    ///
    /// # Errors
    /// [`Refused`] if the certificate names no device, or one that is not known by this certificate.
    pub(crate) fn identify(mut self, facts: &dyn FactSource) -> Result<Identification, Box<Refused>> {
        if let Standing::Over(wait) | Standing::FarOver(wait) = self.standing {
            let denial = Denial::from(DenialCode::DeviceRate).retry_after(wait);
            return Err(Box::new(self.refuse(denial)));
        }
        match self.look_up(facts) {
            Ok(Some((device, credential))) => {
                self.trace.passed(Stage::Identify);
                // A leaf that its authority issued itself is known by its credential.
                let path = self.chain.held().filter(|_| self.chain.intermediates() > 0);
                let (not_after, path) = (self.chain.not_after(), path.cloned());
                let (_, anchor) = self.chain.into_parts();
                Ok(Identification::Known(Box::new(Identified {
                    trace: self.trace,
                    anchor,
                    not_after,
                    path,
                    device,
                    credential,
                    tls: self.tls,
                })))
            }
            Ok(None) => match judge::contact(&self.chain) {
                Ok(contact) => Ok(Identification::FirstContact(Box::new(self), Box::new(contact))),
                Err(denial) => Err(Box::new(self.refuse(denial))),
            },
            Err(denial) => Err(Box::new(self.refuse(denial))),
        }
    }

    /// `None`: the credential is not known, and may be learned.
    fn look_up(
        &mut self,
        facts: &dyn FactSource,
    ) -> Result<Option<(Arc<DeviceFacts>, CredentialFacts)>, Denial> {
        let id = judge::device_id(&self.chain)?;
        self.trace.device = Some(id.clone());
        judge::identify(facts, &self.chain, &id, !self.first_contact_over)
    }

    /// Whether certificate and proof are those of an earlier handshake.
    pub(crate) fn is_resumed(&self) -> bool {
        self.tls.resumed
    }

    /// The registry has learned what it was asked to.
    pub(crate) fn learned(mut self) -> Self {
        self.first_contact_over = true;
        self.trace.fact("first_contact", "learned");
        self
    }

    /// Whether a revocation list names a certificate of its path. A list that came after the path was checked finds no
    /// credential to revoke of whoever was not known yet.
    pub(crate) fn is_listed(&self, node: &Node) -> bool {
        let held = self.chain.held();
        held.is_some_and(|held| held.is_revoked(&node.facts.anchors(), node.now()))
    }

    /// The device went away.
    pub(crate) fn abandon(self) -> Abandoned {
        Abandoned { trace: self.trace }
    }

    /// Refuses it.
    pub(crate) fn refuse(self, denial: Denial) -> Refused {
        Refused {
            trace: self.trace,
            denial,
        }
    }
}

/// A known device with a known credential. Whether it may come in now is another question.
#[derive(Debug)]
pub struct Identified {
    trace: Trace,
    anchor: Arc<Anchor>,
    not_after: Timestamp,
    path: Option<Arc<HeldPath>>,
    device: Arc<DeviceFacts>,
    credential: CredentialFacts,
    tls: TlsFacts,
}

impl Identified {
    /// Lifecycle, then policies.
    ///
    /// # Errors
    /// [`Refused`] with the denial of the decision.
    pub(crate) fn decide(
        mut self,
        facts: &dyn FactSource,
        now: Timestamp,
    ) -> Result<Authorised, Box<Refused>> {
        let decided = judge::connect(
            facts,
            &self.device,
            &self.credential,
            (&self.anchor.authority, self.anchor.generation),
            Circumstances {
                source: self.trace.source.ip(),
                tls: self.tls,
                now,
            },
        );
        match decided {
            Ok((permit, _)) => {
                self.trace.passed(Stage::Policy);
                self.trace.policies = permit.policies().iter().map(|p| p.to_string()).collect();
                let connected = Connected {
                    device: self.device,
                    credential: self.credential,
                    anchor: self.anchor,
                    not_after: self.not_after,
                    path: self.path,
                    tls: self.tls,
                };
                Ok(Authorised {
                    trace: self.trace,
                    connected,
                    permit,
                })
            }
            Err(denial) => {
                self.trace.policies = denial.policies.clone();
                Err(Box::new(Refused {
                    trace: self.trace,
                    denial,
                }))
            }
        }
    }
}

/// What outlives the handshake.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) device: Arc<DeviceFacts>,
    pub(crate) credential: CredentialFacts,
    pub(crate) anchor: Arc<Anchor>,
    /// The last second at which all of the path is within its dates.
    pub(crate) not_after: Timestamp,
    pub(crate) path: Option<Arc<HeldPath>>,
    pub(crate) tls: TlsFacts,
}

/// A device with a permit, which has not said yet what it wants.
#[derive(Debug)]
pub struct Authorised {
    trace: Trace,
    connected: Connected,
    permit: AdmissionPermit,
}

/// What a CONNECT asks for, as far as admission looks at it.
#[derive(Debug)]
pub(crate) struct Greeting<'a> {
    pub(crate) protocol: &'static str,
    pub(crate) client_id: &'a str,
    pub(crate) persistent: bool,
    pub(crate) will: Option<Result<Will, Denial>>,
    pub(crate) auth_method: Option<&'a str>,
}

impl Authorised {
    /// Checks what a CONNECT asks for against who the device is.
    ///
    /// # Errors
    /// [`Refused`] if the client id is not the device's, or something is asked for that is not offered.
    pub(crate) fn greet(
        mut self,
        greeting: Greeting<'_>,
        mode: ClientIdMode,
    ) -> Result<Greeted, Box<Refused>> {
        let device = self.connected.device.id.as_str();
        let asked = greeting.client_id;
        self.trace.fact("protocol", greeting.protocol);
        self.trace.fact("client_id", asked);
        let own = judge::client_id(mode, &self.connected.device.id, asked);
        let fault = if let Err(denial) = own {
            Some(denial)
        } else if greeting.auth_method.is_some() {
            Some(DenialCode::AuthMethod.into())
        } else if greeting.persistent {
            Some(DenialCode::PersistentSession.into())
        } else {
            None
        };
        let (will, fault) = match (greeting.will, fault) {
            (Some(Ok(will)), None) => (Some(will), None),
            (Some(Err(denial)), None) => (None, Some(denial)),
            (_, fault) => (None, fault),
        };
        if let Some(denial) = fault {
            return Err(Box::new(Refused {
                trace: self.trace,
                denial,
            }));
        }
        // Empty in mode `free`: the server assigns, and the device id is what it assigns (MQTT 5 section 3.1.3.1).
        let assigned = asked.is_empty();
        let client_id = if assigned { device } else { asked };
        let client_id = (client_id != device).then(|| client_id.into());
        self.trace.passed(Stage::Greet);
        Ok(Greeted {
            trace: self.trace,
            connected: self.connected,
            permit: self.permit,
            client_id,
            assigned,
            will,
        })
    }

    /// The first request of an HTTP connection: it has no client id, and asks for nothing that outlives it. Its session
    /// goes by a name of its own, so that it takes over no other.
    pub(crate) fn greet_http(mut self, protocol: &'static str, request: &str) -> Greeted {
        self.trace.fact("protocol", protocol);
        self.trace.fact("request", request);
        self.trace.passed(Stage::Greet);
        let client_id = format!("{protocol}:{}", self.trace.id);
        Greeted {
            trace: self.trace,
            connected: self.connected,
            permit: self.permit,
            client_id: Some(client_id.into()),
            assigned: false,
            will: None,
        }
    }

    /// Whether it was let into the quarantine lane alone.
    pub(crate) fn is_quarantined(&self) -> bool {
        self.connected.device.state == LifecycleState::Quarantined
    }

    /// The tenant whose rules apply to it.
    pub(crate) fn tenant(&self) -> &TenantId {
        &self.connected.device.tenant
    }

    /// The device went away.
    pub(crate) fn abandon(self) -> Abandoned {
        Abandoned { trace: self.trace }
    }

    /// Refuses it in place of a greeting.
    pub(crate) fn refuse(self, denial: Denial) -> Refused {
        Refused {
            trace: self.trace,
            denial,
        }
    }
}

/// A device whose CONNECT is sound. One step from a session: see `session::grant`.
#[derive(Debug)]
pub struct Greeted {
    trace: Trace,
    pub(crate) connected: Connected,
    pub(crate) permit: AdmissionPermit,
    /// `None`: the device id.
    pub(crate) client_id: Option<Box<str>>,
    /// The client sent none, so it must be told.
    pub(crate) assigned: bool,
    pub(crate) will: Option<Will>,
}

impl Greeted {
    pub(crate) fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Gives up its parts to the session that is about to be indexed.
    pub(crate) fn into_parts(self) -> (Trace, Connected, AdmissionPermit) {
        (self.trace, self.connected, self.permit)
    }

    /// Refuses it at the last moment.
    pub(crate) fn refuse(self, denial: Denial) -> Refused {
        Refused {
            trace: self.trace,
            denial,
        }
    }
}

impl Trace {
    /// Refuses an exchange whose session was indexed but found stale.
    pub(crate) fn refuse(self, denial: Denial) -> Refused {
        Refused { trace: self, denial }
    }

    /// The session is granted: the exchange becomes a record.
    pub(crate) fn granted(mut self, permit: &AdmissionPermit, node: &Node) -> Instant {
        self.passed(Stage::Grant);
        self.generations = Some(permit.generations());
        let accepted = self.accepted();
        node.sink.record(self.into_record(Outcome::Admitted, None));
        accepted
    }
}

#[cfg(test)]
mod tests;
