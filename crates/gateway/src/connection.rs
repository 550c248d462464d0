//! The life of one connection, as one hand-made future: read, decrypt, act, seal, write.
//!
//! Hand-made, because an idle session is this struct and nothing else: an `async fn` would keep its argument twice, and
//! a deadline would be a timer of its own. What a turn works in belongs to the thread ([`crate::buffers`]).
//!
//! Nothing is read while anything waits to be written, so a peer that does not read slows only itself.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use countersign_mqtt::client::Connect;
use countersign_mqtt::properties::PropertyWriter;
use countersign_mqtt::{DecodeError, ReasonCode, Version, frame, server};
use countersign_policy::clones::Answer;
use countersign_policy::denial::Wire;
use countersign_policy::{Denial, DenialCode};
use rustls::server::UnbufferedServerConnection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::buffers::{self, Buffers, INPUT_BYTES, Spill};
use crate::exchange::{Accepted, Authorised, Greeting, Handshaken, Handshaking, Identification, Refused};
use crate::handshake::config::Protocol;
use crate::handshake::driver::{self, PassEnd};
use crate::handshake::hello::{self, Hello};
use crate::http::connection::HttpConnection;
use crate::metrics::count;
use crate::node::ConnectionSlot;
use crate::proxy::{self, Header};
use crate::session::entry::EndReason;
use crate::session::grant;
use crate::session::mqtt::{End, Session};
use crate::session::will::Will;
use crate::shaping::gate::{Entry, Standing, Turn};
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
            }
            if !b.records.is_empty() && !matches!(self.phase, Phase::Over) {
                self.spill.get_or_insert_default().output.append(&mut b.records);
            }
            cx.waker().wake_by_ref();
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
        if let Phase::Session(session) = &mut self.phase {
            let end = match session.entry().ending() {
                Some(reason) => Some(End::from(reason)),
                None => session.recheck(&node).err(),
            };
            if let Some(end) = end {
                return self.end_session(&end, b);
            }
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
                self.packets(b);
                self.lost();
            }
            PassEnd::Failed(error) => {
                self.packets(b);
                self.tls_failed(&error);
                // Nothing more is said over a connection that failed: the alert was the last word.
                b.replies.clear();
                self.tls = None;
            }
        }
        self.seal(b);
    }

    /// Before stage 2, behind a balancer: its header. What is left of the input is moved to the front, and its length
    /// returned; `None` if there is nothing to go on with.
    fn proxied(&mut self, b: &mut Buffers, end: usize) -> Option<usize> {
        let limits = &self.slot.node.options.limits;
        let header = proxy::read(&b.input[..end], limits.proxy_header_bytes_max);
        if header == Header::Incomplete {
            self.keep_input(b, 0, end);
            return None;
        }
        let Phase::Proxied(mut accepted) = std::mem::replace(&mut self.phase, Phase::Over) else {
            return None;
        };
        let charged = match header {
            Header::Complete { used, source } => {
                if let Some(source) = source {
                    accepted.come_from(source);
                }
                let charged = self.slot.charge(accepted.source().ip());
                charged.map(|()| used).map_err(Denial::from)
            }
            Header::Refused(what) => Err(Denial::new(DenialCode::ProxyHeader, what)),
            Header::Incomplete => Err(DenialCode::ProxyHeader.into()),
        };
        match charged {
            Ok(used) => {
                self.set_deadline(self.slot.node.options.limits.handshake_timeout);
                self.phase = Phase::Hello(accepted);
                b.input.copy_within(used..end, 0);
                // The ClientHello may be a while behind its header.
                (used < end).then_some(end - used)
            }
            Err(denial) => {
                self.refuse_wordless(accepted.refuse(denial));
                None
            }
        }
    }

    /// Stage 2. `false`: no TLS state was made, there is nothing to pass on.
    fn hello(&mut self, b: &mut Buffers, end: usize) -> bool {
        let read = hello::read(&b.input[..end]);
        if let Hello::Incomplete = read
            && end < INPUT_BYTES - 1
        {
            self.keep_input(b, 0, end);
            return false;
        }
        let Phase::Hello(accepted) = std::mem::replace(&mut self.phase, Phase::Over) else {
            return false;
        };
        let node = self.slot.node.clone();
        let hello = match read {
            Hello::Complete(hello) => hello,
            Hello::PlaintextMqtt => {
                self.refuse_wordless(accepted.refuse(DenialCode::Plaintext.into()));
                return false;
            }
            Hello::NotTls(what) => {
                self.refuse_wordless(accepted.refuse(Denial::new(DenialCode::NotTls, what)));
                return false;
            }
            Hello::Incomplete => {
                let denial = Denial::new(DenialCode::NotTls, "the ClientHello is larger than any");
                self.refuse_wordless(accepted.refuse(denial));
                return false;
            }
        };
        let handshaking = match accepted.hello(hello, self.slot.port.tickets.as_deref(), &node) {
            Ok(handshaking) => handshaking,
            Err(refused) => {
                if let Wire::Alert(description) = refused.denial().code.wire() {
                    b.records.extend(plain_alert(description));
                }
                self.refuse_wordless(*refused);
                return false;
            }
        };
        match node.gate.enter(handshaking.place(end), &self.timer) {
            Entry::Now => self.begin(handshaking),
            Entry::Later(turn) => {
                self.set_deadline(node.options.limits.handshake_queue_timeout);
                self.keep_input(b, 0, end);
                self.phase = Phase::Waiting(Box::new(Waiting {
                    handshaking,
                    turn,
                    counted: end,
                }));
                false
            }
            Entry::Full => {
                self.refuse_wordless(handshaking.give_up(DenialCode::QueueFull.into()));
                false
            }
        }
    }

    /// Goes on to cryptography. `false`: there is no TLS state.
    fn begin(&mut self, handshaking: Handshaking) -> bool {
        match UnbufferedServerConnection::new(self.slot.port.tls.clone()) {
            Ok(tls) => {
                self.tls = Some(tls);
                self.phase = Phase::Handshaking(Box::new(handshaking));
                true
            }
            Err(e) => {
                let denial = Denial::new(DenialCode::HandshakeProtocol, e.to_string());
                self.refuse_wordless(handshaking.give_up(denial));
                false
            }
        }
    }

    /// Nothing is to come before our answer but what the ClientHello began: 0-RTT is never offered. So what a peer holds
    /// while it waits stays what it was counted with.
    fn waiting(&mut self, b: &mut Buffers, end: usize) {
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Waiting(waiting) if end > waiting.counted + WAITING_MORE_MAX => {
                let denial = Denial::new(
                    DenialCode::HandshakeProtocol,
                    "the peer went on sending before it was answered",
                );
                let Waiting {
                    handshaking, turn, ..
                } = *waiting;
                drop(turn);
                self.refuse_wordless(handshaking.give_up(denial));
            }
            phase => {
                self.phase = phase;
                self.keep_input(b, 0, end);
            }
        }
    }

    /// A connection that waited is let in, or had to go.
    fn turn_came(&mut self, b: &mut Buffers) {
        let Phase::Waiting(waiting) = std::mem::replace(&mut self.phase, Phase::Over) else {
            return;
        };
        let Waiting {
            mut handshaking,
            turn,
            ..
        } = *waiting;
        if turn.standing() == Standing::Displaced {
            self.refuse_wordless(handshaking.give_up(DenialCode::QueueFull.into()));
            return;
        }
        handshaking.admitted(turn.waited(), self.slot.node.now());
        drop(turn);
        self.set_deadline(self.slot.node.options.limits.handshake_timeout);
        if self.begin(handshaking) {
            let end = self.take_input(b);
            self.process(b, end);
        }
    }

    /// Stages 6 and 7: everything about the device is decided before it says what it wants.
    fn authorise(&self, handshaken: Handshaken) -> Phase {
        let node = &self.slot.node;
        let facts = node.facts.as_ref();
        let decided = match handshaken.identify(facts) {
            Ok(Identification::Known(identified)) => identified.decide(facts, node.now()),
            Ok(Identification::FirstContact(handshaken, contact)) => {
                let (sender, answer) = oneshot::channel();
                node.sink.first_contact(
                    *contact,
                    Box::new(move |learned| {
                        // Nobody waits any more if the device went away.
                        let _ = sender.send(learned);
                    }),
                );
                return Phase::Learning(Box::new(Learning {
                    handshaken: *handshaken,
                    answer,
                }));
            }
            Err(refused) => Err(refused),
        };
        Phase::Greeting(Box::new(decided))
    }

    /// Goes on where a first contact stopped: with what the device may have sent meanwhile.
    fn first_contact_answered(&mut self, answer: Result<(), Denial>, b: &mut Buffers) {
        let Phase::Learning(learning) = std::mem::replace(&mut self.phase, Phase::Over) else {
            return;
        };
        self.phase = match answer {
            Ok(()) => self.authorise(learning.handshaken.learned()),
            Err(denial) => Phase::Greeting(Box::new(Err(Box::new(learning.handshaken.refuse(denial))))),
        };
        if let Some(spill) = &mut self.spill {
            b.plaintext.append(&mut spill.plaintext);
        }
        if let Phase::Greeting(_) = self.phase
            && self.speaks_http()
        {
            return self.hand_over(b);
        }
        self.packets(b);
        self.seal(b);
    }

    fn speaks_http(&self) -> bool {
        self.tls
            .as_ref()
            .is_some_and(|tls| Protocol::of(tls.alpn_protocol()) == Protocol::Http)
    }

    /// From here on it is HTTP: what was read and what is to be written goes along.
    fn hand_over(&mut self, b: &mut Buffers) {
        let Phase::Greeting(decided) = std::mem::replace(&mut self.phase, Phase::Over) else {
            return;
        };
        let (Some(socket), Some(tls)) = (self.socket.take(), self.tls.take()) else {
            return;
        };
        let mut spill = self.spill.take().map(|s| *s).unwrap_or_default();
        spill.plaintext.append(&mut b.plaintext);
        spill.output.append(&mut b.records);
        let (timer, node) = (self.timer.clone(), self.slot.node.clone());
        let http = HttpConnection::new(socket, tls, spill, decided, timer, node);
        self.phase = Phase::Http(Box::new(http));
    }

    /// Acts on the whole packets of the plaintext.
    fn packets(&mut self, b: &mut Buffers) {
        if b.plaintext.is_empty() {
            return;
        }
        let plaintext = match &mut self.spill {
            Some(spill) if !spill.plaintext.is_empty() => {
                let mut all = std::mem::take(&mut spill.plaintext);
                all.append(&mut b.plaintext);
                all
            }
            _ => std::mem::take(&mut b.plaintext),
        };
        self.drop_empty_spill();
        let mut used = 0;
        if let Phase::Greeting(_) = self.phase {
            used = self.greet(&plaintext, b);
        }
        while let Phase::Session(session) = &mut self.phase {
            let node = &self.slot.node;
            let limit = node.options.limits.packet_bytes_max;
            let acted = match frame::next(&plaintext[used..], limit) {
                Ok(Some(frame)) => {
                    used += frame.raw.len();
                    session.packet(&frame, node, &mut b.replies)
                }
                Ok(None) => break,
                Err(e) => Err(session.broken(&e, node)),
            };
            if let Err(end) = acted {
                return self.end_session(&end, b);
            }
        }
        if let Phase::Session(session) = &self.phase {
            let patience = session.patience(self.slot.node.now());
            self.set_deadline(patience);
        }
        if matches!(
            self.phase,
            Phase::Session(_) | Phase::Greeting(_) | Phase::Learning(_)
        ) && used < plaintext.len()
        {
            self.spill.get_or_insert_default().plaintext = plaintext[used..].to_vec();
        }
        b.plaintext = plaintext;
        b.plaintext.clear();
    }

    /// Stages 8 and 9: CONNECT, and its answer. Returns how many bytes it took.
    fn greet(&mut self, plaintext: &[u8], b: &mut Buffers) -> usize {
        let node = self.slot.node.clone();
        let read = match frame::next(plaintext, node.options.limits.connect_bytes_max) {
            Ok(None) => return 0,
            Ok(Some(frame)) => Connect::decode(&frame).map(|connect| (connect, frame.raw.len())),
            Err(e) => Err(e),
        };
        let Phase::Greeting(greeting) = std::mem::replace(&mut self.phase, Phase::Over) else {
            return 0;
        };
        let (connect, length) = match read {
            Ok((Some(connect), length)) => (connect, length),
            Ok((None, _)) => {
                self.refuse_in_tls(or_refuse(*greeting, DenialCode::NotConnect.into()), None, b);
                return 0;
            }
            Err(e) => {
                let (denial, version) = connect_fault(&e, plaintext);
                self.refuse_in_tls(or_refuse(*greeting, denial), version, b);
                return 0;
            }
        };
        let version = connect.version;
        let granted = (*greeting).and_then(|authorised| {
            let mode = node.facts.client_id_mode(authorised.tenant());
            let greeting = Greeting {
                protocol: version.name(),
                client_id: connect.client_id,
                // In MQTT 5 a longer session is answered with Session Expiry 0; 3.1.1 has no such word.
                persistent: version == Version::V311 && !connect.clean,
                will: connect.will.as_ref().map(|will| Will::take(will, version)),
                auth_method: connect.properties.auth_method,
            };
            authorised
                .greet(greeting, mode)
                .and_then(|greeted| grant::grant(greeted, version.name(), self.timer.clone(), &node))
        });
        match granted {
            Ok(granted) => {
                self.phase = Phase::Session(Box::new(Session::open(granted, &connect, &node, &mut b.replies)))
            }
            Err(refused) => self.refuse_in_tls(*refused, Some(version), b),
        }
        length
    }

    /// Encrypts the replies. What was encrypted already goes first.
    fn seal(&mut self, b: &mut Buffers) {
        if !b.replies.is_empty()
            && let Some(tls) = &mut self.tls
        {
            let replies = std::mem::take(&mut b.replies);
            let rest = match &mut self.spill {
                Some(spill) => spill.input.as_mut_slice(),
                None => &mut [],
            };
            if driver::seal(tls, rest, &replies, &mut b.records).is_err() {
                b.records.clear();
                self.lost();
            }
            b.replies = replies;
            b.replies.clear();
        }
        if matches!(self.phase, Phase::Leaving { .. })
            && let Some(mut tls) = self.tls.take()
        {
            let rest = match &mut self.spill {
                Some(spill) => spill.input.as_mut_slice(),
                None => &mut [],
            };
            let _ = driver::close(&mut tls, rest, &mut b.records);
        }
    }

    /// CONNACK, or nothing, by what the denial's code says.
    fn refuse_in_tls(&mut self, refused: Refused, version: Option<Version>, b: &mut Buffers) {
        if let Wire::Close = refused.denial().code.wire() {
            return self.refuse_wordless(refused);
        }
        match version {
            Some(Version::V311) => server::encode_connack_v311(refused.connack_v311(), &mut b.replies),
            Some(Version::V5) => {
                let mut properties = PropertyWriter::default();
                let code = refused.denial().code;
                // MQTT 5 has no field for a back-off in CONNACK; its Reason String is for people and diagnostics.
                match refused.retry_after_s() {
                    Some(seconds) => properties.text(0x1f, &format!("{code}; retry after {seconds} s")),
                    None => properties.text(0x1f, code.as_str()),
                };
                server::encode_connack_v5(ReasonCode(refused.connack_v5()), &properties, &mut b.replies);
            }
            None => {}
        }
        self.refuse_wordless(match version {
            Some(version) => refused.in_protocol(version.name()),
            None => refused,
        });
    }

    /// Whatever is to be said is in the output: half-close after it, and drain.
    fn refuse_wordless(&mut self, refused: Refused) {
        refused.conclude(&self.slot.node);
        self.leave(true);
    }

    /// There is nobody to tell.
    fn refuse_silently(&mut self, refused: Refused) {
        refused.conclude(&self.slot.node);
        self.gone();
    }

    fn leave(&mut self, drain: bool) {
        self.slot.handshake_over();
        self.set_deadline(self.slot.node.options.limits.drain_timeout);
        self.phase = Phase::Leaving { drain };
    }

    fn end_session(&mut self, end: &End, b: &mut Buffers) {
        let Phase::Session(mut session) = std::mem::replace(&mut self.phase, Phase::Over) else {
            return;
        };
        let reason = session.end(end, &self.slot.node, &mut b.replies);
        self.leaving = Some(session.entry().clone());
        // Who said goodbye is not sending any more.
        self.leave(reason != EndReason::ClientDisconnect);
        self.seal(b);
    }

    /// TLS itself failed; the alert, if any, is in the output.
    fn tls_failed(&mut self, error: &rustls::Error) {
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
    fn lost(&mut self) {
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

    fn gone(&mut self) {
        self.phase = Phase::Over;
        self.tls = None;
        self.spill = None;
        if let Some(entry) = self.leaving.take() {
            self.slot.node.sessions.remove(&entry);
        }
    }

    /// The output is written: nothing more comes from us.
    fn half_close(&mut self, drain: bool, cx: &mut Context<'_>) -> Poll<()> {
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
    fn drain(&mut self, b: &mut Buffers, cx: &mut Context<'_>) -> Poll<()> {
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

/// A first contact that was not answered, or not in time.
fn registry_silent() -> Denial {
    Denial::new(
        DenialCode::RegistryUnavailable,
        "the registry did not answer whether the certificate may be learned",
    )
}

/// What was decided before CONNECT goes before what is wrong with CONNECT.
fn or_refuse(greeting: Result<Authorised, Box<Refused>>, denial: Denial) -> Refused {
    match greeting {
        Ok(authorised) => authorised.refuse(denial),
        Err(refused) => *refused,
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

/// What is wrong with a CONNECT, and the version to say it in; `None` if there is none to say it in.
fn connect_fault(e: &DecodeError, plaintext: &[u8]) -> (Denial, Option<Version>) {
    match e {
        // A level above 5 is told in the words of 5, one below in the words of 3.1.1 (MQTT-3.1.2-2).
        DecodeError::ProtocolLevel(level) => {
            let version = if (6..0x80).contains(level) {
                Version::V5
            } else {
                Version::V311
            };
            (Denial::new(DenialCode::MqttVersion, e.to_string()), Some(version))
        }
        DecodeError::ProtocolName => (Denial::new(DenialCode::MqttProtocolName, e.to_string()), None),
        DecodeError::TooLarge { .. } => (
            Denial::new(DenialCode::PacketTooLarge, e.to_string()),
            version_of_start(plaintext),
        ),
        _ => (Denial::new(DenialCode::MqttMalformed, e.to_string()), None),
    }
}

/// The version in the first bytes of a CONNECT whose rest is not read.
fn version_of_start(plaintext: &[u8]) -> Option<Version> {
    let (&first, rest) = plaintext.split_first()?;
    let length_bytes = rest.iter().take(4).position(|b| b & 0x80 == 0)? + 1;
    match (first, rest.get(length_bytes..length_bytes + 7)?) {
        (0x10, [0, 4, b'M', b'Q', b'T', b'T', 4]) => Some(Version::V311),
        (0x10, [0, 4, b'M', b'Q', b'T', b'T', 5]) => Some(Version::V5),
        _ => None,
    }
}
