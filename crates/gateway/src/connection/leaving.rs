//! How it ends: a failure of TLS, a peer that is gone, the last words and what still comes behind them.

use std::pin::Pin;
use std::task::{Context, Poll};

use countersign_policy::clones::Answer;
use countersign_policy::{Denial, DenialCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Connection, Phase, or_refuse};
use crate::buffers::Buffers;
use crate::session::entry::EndReason;

impl Connection {
    /// TLS itself failed; the alert, if any, is in the output.
    pub(super) fn tls_failed(&mut self, error: &rustls::Error) {
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Handshaking(handshaking) => {
                let refused = handshaking.fail(error);
                self.refuse_wordless(refused);
            }
            Phase::Learning(learning) => {
                let denial = Denial::new(alert_after_handshake(error), error.to_string());
                self.refuse_wordless(learning.handshaken.refuse(denial));
            }
            Phase::Greeting(greeting) => {
                let denial = Denial::new(alert_after_handshake(error), error.to_string());
                self.refuse_wordless(or_refuse(*greeting, denial));
            }
            Phase::Session(mut session) => {
                let mut unsaid = Vec::new();
                session.end(&EndReason::ConnectionLost.into(), &self.slot.node, &mut unsaid);
                self.leaving = Some(session.entry().clone());
                self.leave(true);
            }
            other => self.phase = other,
        }
    }

    /// The peer is gone, or will read no more.
    pub(super) fn lost(&mut self) {
        let node = self.slot.node.clone();
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Proxied(accepted) | Phase::Hello(accepted) => accepted.abandon().conclude(&node),
            Phase::Waiting(waiting) => waiting.handshaking.abandon().conclude(&node),
            Phase::Handshaking(handshaking) => handshaking.abandon().conclude(&node),
            Phase::Learning(learning) => learning.handshaken.abandon().conclude(&node),
            Phase::Greeting(greeting) => match *greeting {
                Ok(authorised) => authorised.abandon().conclude(&node),
                Err(refused) => refused.conclude(&node),
            },
            Phase::Session(mut session) => {
                let mut unsaid = Vec::new();
                session.end(&EndReason::ConnectionLost.into(), &node, &mut unsaid);
                self.leaving = Some(session.entry().clone());
            }
            // It ends by being dropped.
            Phase::Http(_) | Phase::Leaving { .. } | Phase::Draining { .. } | Phase::Over => {}
        }
        self.gone();
    }

    pub(super) fn gone(&mut self) {
        self.phase = Phase::Over;
        self.tls = None;
        self.spill = None;
        if let Some(entry) = self.leaving.take() {
            self.slot.node.sessions.remove(&entry);
        }
    }

    /// The output is written: nothing more comes from us.
    pub(super) fn half_close(&mut self, drain: bool, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(socket) = &mut self.socket
            && Pin::new(socket).poll_shutdown(cx).is_pending()
        {
            return Poll::Pending;
        }
        let left = self.leaving.take();
        if let Some(entry) = &left {
            self.slot.node.sessions.remove(entry);
        }
        self.tls = None;
        self.spill = None;
        if drain {
            self.phase = Phase::Draining {
                left: self.slot.node.options.limits.drain_bytes_max,
                // Behind a balancer it would be the balancer that answers, whether or not the device is there.
                replaced: left.filter(|entry| {
                    entry.ending() == Some(EndReason::TakenOver) && !self.slot.port.is_behind_proxies()
                }),
            };
        } else {
            self.gone();
        }
        Poll::Ready(())
    }

    /// Reads and forgets, so that no reset overtakes our last word.
    pub(super) fn drain(&mut self, b: &mut Buffers, cx: &mut Context<'_>) -> Poll<()> {
        let Phase::Draining { left, replaced } = &mut self.phase else {
            return Poll::Ready(());
        };
        let mut read = ReadBuf::new(&mut b.input);
        let Some(socket) = &mut self.socket else {
            return Poll::Ready(());
        };
        match Pin::new(socket).poll_read(cx, &mut read) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) if !read.filled().is_empty() && read.filled().len() < *left => {
                *left -= read.filled().len();
                Poll::Ready(())
            }
            Poll::Ready(end) => {
                let answer = match &end {
                    Ok(()) if read.filled().is_empty() => Some(Answer::Closed),
                    Err(_) => Some(Answer::Reset),
                    Ok(()) => None,
                };
                if let (Some(answer), Some(replaced)) = (answer, replaced.take()) {
                    self.slot.node.clones.answered(&self.slot.node, &replaced, answer);
                }
                self.gone();
                Poll::Ready(())
            }
        }
    }
}

/// In TLS 1.3 the device may reject us after it finished: an alert as the first thing it sends.
fn alert_after_handshake(error: &rustls::Error) -> DenialCode {
    match error {
        rustls::Error::AlertReceived(rustls::AlertDescription::UnknownCA) => DenialCode::DeviceUnknownCa,
        rustls::Error::AlertReceived(rustls::AlertDescription::CertificateExpired) => {
            DenialCode::DeviceCertificateExpired
        }
        rustls::Error::AlertReceived(rustls::AlertDescription::BadCertificate) => {
            DenialCode::DeviceBadCertificate
        }
        rustls::Error::AlertReceived(_) => DenialCode::DeviceAlert,
        _ => DenialCode::HandshakeProtocol,
    }
}
