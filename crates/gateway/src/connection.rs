//! The life of one connection, as one hand-made future: read, decrypt, act, seal, write.
//!
//! Hand-made, because an idle session is this struct and nothing else: an `async fn` would keep its argument twice, and
//! a deadline would be a timer of its own. What a turn works in belongs to the thread ([`crate::buffers`]).
//!
//! Nothing is read while anything waits to be written, so a peer that does not read slows only itself.

mod leaving;
mod opening;
mod speech;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use countersign_policy::{Denial, DenialCode};
use rustls::server::UnbufferedServerConnection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::buffers::{self, Buffers, Spill};
use crate::exchange::{Accepted, Authorised, Handshaken, Handshaking, Refused};
use crate::handshake::driver::{self, PassEnd};
use crate::http::connection::HttpConnection;
use crate::metrics::count;
use crate::node::ConnectionSlot;
use crate::session::mqtt::{End, Session};
use crate::shaping::gate::{Standing, Turn};
use crate::timer::Timer;

/// Turns of one poll before other connections get theirs.
const TURNS_MAX: usize = 8;
/// The most bytes of unfinished TLS records and handshake messages that are kept for a peer.
const UNREAD_MAX: usize = 48 * 1024;
/// What a peer may send beyond its ClientHello while it waits for its handshake: a change_cipher_spec, say.
const WAITING_MORE_MAX: usize = 1024;
/// A fatal alert as a plain record: what a peer is told before there is any TLS state (RFC 9846 section 6).
const fn plain_alert(description: u8) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, description]
}

/// Where a connection stands.
enum Phase {
    /// A balancer's connection: its header says whose it is.
    Proxied(Box<Accepted>),
    Hello(Box<Accepted>),
    /// The ClientHello is read; the gate lets it in when it is its turn. No key was exchanged, nothing was signed.
    Waiting(Box<Waiting>),
    Handshaking(Box<Handshaking>),
    /// TLS is open, and the certificate is not known: the registry decides whether it is learned. Nothing is read
    /// until it has answered.
    Learning(Box<Learning>),
    /// TLS is open; CONNECT is awaited, to learn in which version to answer what is already decided.
    Greeting(Box<Result<Authorised, Box<Refused>>>),
    /// TLS is open, and ALPN chose HTTP: socket and TLS are in there.
    Http(Box<HttpConnection>),
    Session(Box<Session>),
    /// The last word is in the output.
    Leaving {
        drain: bool,
    },
    /// Half closed: the peer may still be sending, and a reset would take our last word from it.
    Draining {
        left: usize,
        /// The session of this connection that another took over: whether its peer answers tells who holds its key.
        replaced: Option<Arc<crate::session::SessionEntry>>,
    },
    Over,
}

struct Waiting {
    handshaking: Handshaking,
    turn: Turn,
    /// The bytes that it was counted with.
    counted: usize,
}

struct Learning {
    handshaken: Handshaken,
    answer: oneshot::Receiver<Result<(), Denial>>,
}

/// One connection, from accept to close.
pub(crate) struct Connection {
    phase: Phase,
    tls: Option<UnbufferedServerConnection>,
    /// `None` once it speaks HTTP.
    socket: Option<TcpStream>,
    slot: ConnectionSlot,
    timer: Arc<Timer>,
    spill: Option<Box<Spill>>,
    /// The session whose last word is being written.
    leaving: Option<Arc<crate::session::SessionEntry>>,
}

impl Connection {
    pub(crate) fn new(slot: ConnectionSlot, socket: TcpStream, source: SocketAddr) -> Self {
        let node = slot.node.clone();
        let started = node.now();
        let accepted = Accepted::new(
            node.next_exchange(started),
            started,
            source,
            slot.port.name.clone(),
        );
        let timer = node.wheel.timer();
        let (phase, patience) = match slot.port.is_behind_proxies() {
            true => (
                Phase::Proxied(Box::new(accepted)),
                node.options.limits.proxy_header_timeout,
            ),
            false => (
                Phase::Hello(Box::new(accepted)),
                node.options.limits.handshake_timeout,
            ),
        };
        node.wheel.set(&timer, patience);
        Self {
            phase,
            tls: None,
            socket: Some(socket),
            slot,
            timer,
            spill: None,
            leaving: None,
        }
    }

    fn set_deadline(&self, after: Duration) {
        self.slot.node.wheel.set(&self.timer, after);
    }

    /// Turns until the socket has nothing more to give or to take. Records stay in the thread's buffer from the turn
    /// that makes them to the one that writes them.
    fn advance(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let turned = buffers::lend(|b| {
            for _ in 0..TURNS_MAX {
                match self.phase {
                    Phase::Over => return Some(Poll::Ready(())),
                    Phase::Http(_) => return None,
                    _ => {}
                }
                if self.turn(b, cx).is_pending() {
                    return Some(Poll::Pending);
                }
                if matches!(&self.phase, Phase::Session(session) if session.has_had_its_turn()) {
                    break;
                }
            }
            if !b.records.is_empty() && !matches!(self.phase, Phase::Over) {
                self.spill.get_or_insert_default().output.append(&mut b.records);
            }
            // Not woken by itself: a thread with tasks to run looks only after sixty of them whether other sockets have something.
            let _ = std::pin::pin!(tokio::task::yield_now()).poll(cx);
            Some(Poll::Pending)
        });
        // HTTP lends the thread's buffers itself, for as long as it reads.
        match (turned, &mut self.phase) {
            (None, Phase::Http(http)) => {
                let over = http.poll(cx);
                if over.is_ready() {
                    self.gone();
                }
                over
            }
            (turned, _) => turned.unwrap_or(Poll::Ready(())),
        }
    }

    /// One turn. `Pending`: nothing can be done before a waker calls.
    fn turn(&mut self, b: &mut Buffers, cx: &mut Context<'_>) -> Poll<()> {
        self.watch(b);
        match self.flush(b, cx) {
            Ok(true) => {}
            Ok(false) => return Poll::Pending,
            Err(_) => {
                self.lost();
                return Poll::Ready(());
            }
        }
        match self.phase {
            Phase::Over => return Poll::Ready(()),
            Phase::Leaving { drain } => return self.half_close(drain, cx),
            Phase::Draining { .. } => return self.drain(b, cx),
            Phase::Learning(ref mut learning) => {
                let Poll::Ready(answer) = Pin::new(&mut learning.answer).poll(cx) else {
                    return Poll::Pending;
                };
                self.first_contact_answered(answer.unwrap_or_else(|_| Err(registry_silent())), b);
                return Poll::Ready(());
            }
            Phase::Waiting(ref waiting) if waiting.turn.standing() != Standing::Waiting => {
                self.turn_came(b);
                return Poll::Ready(());
            }
            Phase::Session(ref mut session) if session.has_deliveries() => {
                session.deliver(&self.slot.node, &mut b.replies);
                self.seal(b);
                return Poll::Ready(());
            }
            // Whole packets may be left of what was read.
            Phase::Session(ref mut session) if session.has_had_its_turn() => {
                session.begin_turn();
                self.act(b);
                self.seal(b);
                return Poll::Ready(());
            }
            _ => {}
        }
        let kept = self.take_input(b);
        let mut read = ReadBuf::new(&mut b.input[kept..]);
        let Some(socket) = &mut self.socket else {
            return Poll::Ready(());
        };
        match Pin::new(socket).poll_read(cx, &mut read) {
            Poll::Pending => {
                self.keep_input(b, 0, kept);
                Poll::Pending
            }
            Poll::Ready(Ok(())) if read.filled().is_empty() => {
                self.lost();
                Poll::Ready(())
            }
            Poll::Ready(Ok(())) => {
                let end = kept + read.filled().len();
                self.process(b, end);
                Poll::Ready(())
            }
            Poll::Ready(Err(_)) => {
                self.lost();
                Poll::Ready(())
            }
        }
    }

    /// Deadlines, and ends that others asked for.
    fn watch(&mut self, b: &mut Buffers) {
        let node = self.slot.node.clone();
        if let Phase::Session(session) = &self.phase
            && let Some(reason) = session.entry().ending()
        {
            return self.end_session(&End::from(reason), b);
        }
        if !node.wheel.expired(&self.timer) {
            return;
        }
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Proxied(accepted) => {
                let denial = Denial::from(DenialCode::ProxyTimeout);
                self.refuse_silently(accepted.refuse(denial));
            }
            Phase::Hello(accepted) => {
                let denial = Denial::from(DenialCode::HelloTimeout);
                self.refuse_silently(accepted.refuse(denial));
            }
            Phase::Waiting(waiting) => {
                let denial = Denial::from(DenialCode::QueueTimeout);
                self.refuse_silently(waiting.handshaking.give_up(denial));
            }
            Phase::Handshaking(handshaking) => {
                let denial = Denial::from(DenialCode::HandshakeTimeout);
                self.refuse_silently(handshaking.give_up(denial));
            }
            Phase::Learning(learning) => self.refuse_silently(learning.handshaken.refuse(registry_silent())),
            Phase::Greeting(greeting) => {
                self.refuse_silently(match *greeting {
                    Ok(authorised) => authorised.refuse(DenialCode::ConnectTimeout.into()),
                    Err(refused) => *refused,
                });
            }
            Phase::Session(session) => {
                let end = session.overdue(node.now());
                self.phase = Phase::Session(session);
                self.end_session(&end, b);
            }
            // It watches its own deadlines.
            http @ Phase::Http(_) => self.phase = http,
            Phase::Leaving { .. } | Phase::Draining { .. } | Phase::Over => self.gone(),
        }
    }

    /// Writes what waits. `Ok(false)`: the socket takes no more now.
    fn flush(&mut self, b: &mut Buffers, cx: &mut Context<'_>) -> io::Result<bool> {
        let waiting = match &mut self.spill {
            Some(spill) if !spill.output.is_empty() => {
                let mut output = std::mem::take(&mut spill.output);
                output.append(&mut b.records);
                output
            }
            _ if b.records.is_empty() => return Ok(true),
            _ => std::mem::take(&mut b.records),
        };
        let mut written = 0;
        while written < waiting.len() {
            let Some(socket) = &mut self.socket else {
                return Err(io::ErrorKind::NotConnected.into());
            };
            match Pin::new(socket).poll_write(cx, &waiting[written..]) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(n)) => written += n,
                Poll::Ready(Err(e)) => return Err(e),
                Poll::Pending => {
                    self.spill.get_or_insert_default().output = waiting[written..].to_vec();
                    return Ok(false);
                }
            }
        }
        b.records = waiting;
        b.records.clear();
        self.drop_empty_spill();
        Ok(true)
    }

    fn drop_empty_spill(&mut self) {
        if self.spill.as_ref().is_some_and(|s| s.is_empty()) {
            self.spill = None;
        }
    }

    /// Puts what was left of the input to the front of the buffer.
    fn take_input(&mut self, b: &mut Buffers) -> usize {
        let Some(spill) = &mut self.spill else { return 0 };
        let kept = spill.input.len();
        b.input[..kept].copy_from_slice(&spill.input);
        spill.input = Vec::new();
        kept
    }

    fn keep_input(&mut self, b: &Buffers, from: usize, to: usize) {
        if from < to {
            self.spill.get_or_insert_default().input = b.input[from..to].to_vec();
        } else {
            self.drop_empty_spill();
        }
    }

    /// Acts on `b.input[..end]`; leaves what is to be written in `b.records`.
    fn process(&mut self, b: &mut Buffers, mut end: usize) {
        if let Phase::Proxied(_) = self.phase {
            match self.proxied(b, end) {
                Some(left) => end = left,
                None => return,
            }
        }
        if let Phase::Hello(_) = self.phase
            && !self.hello(b, end)
        {
            return;
        }
        if let Phase::Waiting(_) = self.phase {
            return self.waiting(b, end);
        }
        let Some(mut tls) = self.tls.take() else { return };
        let pass = match &mut self.phase {
            Phase::Handshaking(handshaking) => {
                handshaking.pass(&mut tls, &mut b.input[..end], &mut b.plaintext, &mut b.records)
            }
            _ => driver::pass(&mut tls, &mut b.input[..end], &mut b.plaintext, &mut b.records),
        };
        if let (Phase::Handshaking(_), PassEnd::Open | PassEnd::PeerClosed) = (&self.phase, &pass.end)
            && let Phase::Handshaking(handshaking) = std::mem::replace(&mut self.phase, Phase::Over)
        {
            self.slot.handshake_over();
            self.set_deadline(self.slot.node.options.limits.connect_timeout);
            self.phase = if tls.is_handshaking() {
                // close_notify in the middle of a handshake.
                Phase::Handshaking(handshaking)
            } else {
                match handshaking.complete(&tls) {
                    Ok(handshaken) => {
                        if handshaken.is_resumed() {
                            count(&self.slot.node.metrics.tickets.resumed);
                        }
                        self.authorise(handshaken)
                    }
                    Err(refused) => Phase::Greeting(Box::new(Err(refused))),
                }
            };
        }
        self.tls = Some(tls);
        self.keep_input(b, pass.used, end);
        if let (Phase::Greeting(_), PassEnd::Open) = (&self.phase, &pass.end)
            && self.speaks_http()
        {
            return self.hand_over(b);
        }
        match pass.end {
            PassEnd::Handshaking if end - pass.used > UNREAD_MAX => {
                let error = rustls::Error::General("a handshake message is larger than any".into());
                self.tls_failed(&error);
            }
            PassEnd::Handshaking => {}
            PassEnd::Open => self.packets(b),
            PassEnd::PeerClosed => {
                self.last_packets(b);
                self.lost();
            }
            PassEnd::Failed(error) => {
                self.last_packets(b);
                self.tls_failed(&error);
                // Nothing more is said over a connection that failed: the alert was the last word.
                b.replies.clear();
                self.tls = None;
            }
        }
        self.seal(b);
    }
}

impl Future for Connection {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.timer.register(cx.waker());
        // A panic is a bug, and it costs one connection: the node lives on, and counts it.
        catch_unwind(AssertUnwindSafe(|| this.advance(cx))).unwrap_or_else(|_| {
            count(&this.slot.node.metrics.panics);
            this.lost();
            Poll::Ready(())
        })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !matches!(self.phase, Phase::Over) {
            self.lost();
        }
    }
}

/// What was decided before CONNECT goes before what is wrong with CONNECT.
fn or_refuse(greeting: Result<Authorised, Box<Refused>>, denial: Denial) -> Refused {
    match greeting {
        Ok(authorised) => authorised.refuse(denial),
        Err(refused) => *refused,
    }
}

/// A first contact that was not answered, or not in time.
fn registry_silent() -> Denial {
    Denial::new(
        DenialCode::RegistryUnavailable,
        "the registry did not answer whether the certificate may be learned",
    )
}
