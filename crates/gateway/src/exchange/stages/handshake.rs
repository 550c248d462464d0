//! The TLS handshake, pass by pass, to a proven key.

use std::time::Duration;

use countersign_identity::{Fingerprint, Timestamp, VerifiedChain};
use countersign_policy::exchange::source_of;
use countersign_policy::facts::TlsFacts;
use countersign_policy::{Denial, DenialCode, Possession, Stage};
use rustls::server::UnbufferedServerConnection;
use rustls::{AlertDescription, Error as TlsError, HandshakeKind, PeerIncompatible};

use super::Handshaken;
use crate::exchange::refused::{Abandoned, Refused};
use crate::exchange::trace::Trace;
use crate::handshake::context::{self, HandshakeContext};
use crate::handshake::driver::{self, Pass};
use crate::handshake::ticket::Resumed;
use crate::handshake::ticket::facts::TicketVersion;
use crate::shaping::attempts::Standing;
use crate::shaping::queue::{Class, Place};

/// A TLS handshake under way. It has no data to read and nothing to answer.
pub struct Handshaking {
    pub(super) trace: Trace,
    pub(super) context: Option<Box<HandshakeContext>>,
    pub(super) class: Class,
    pub(super) flight_sent: bool,
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
