//! From the first byte to the decision: PROXY header, ClientHello, the queue, and what is asked after the handshake.

use countersign_policy::denial::Wire;
use countersign_policy::{Denial, DenialCode};
use rustls::server::UnbufferedServerConnection;
use tokio::sync::oneshot;

use super::{Connection, Learning, Phase, WAITING_MORE_MAX, Waiting, plain_alert};
use crate::buffers::{Buffers, INPUT_BYTES};
use crate::exchange::{Handshaken, Handshaking, Identification};
use crate::handshake::hello::{self, Hello};
use crate::proxy::{self, Header};
use crate::shaping::gate::{Entry, Standing};

impl Connection {
    /// Before stage 2, behind a balancer: its header. What is left of the input is moved to the front, and its length
    /// returned; `None` if there is nothing to go on with.
    pub(super) fn proxied(&mut self, b: &mut Buffers, end: usize) -> Option<usize> {
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
    pub(super) fn hello(&mut self, b: &mut Buffers, end: usize) -> bool {
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
    pub(super) fn begin(&mut self, handshaking: Handshaking) -> bool {
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
    pub(super) fn waiting(&mut self, b: &mut Buffers, end: usize) {
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
    pub(super) fn turn_came(&mut self, b: &mut Buffers) {
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
    pub(super) fn authorise(&self, handshaken: Handshaken) -> Phase {
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
    pub(super) fn first_contact_answered(&mut self, answer: Result<(), Denial>, b: &mut Buffers) {
        let Phase::Learning(learning) = std::mem::replace(&mut self.phase, Phase::Over) else {
            return;
        };
        self.phase = match answer {
            Ok(()) => match learning.handshaken.path_fault(&self.slot.node) {
                Some(denial) => Phase::Greeting(Box::new(Err(Box::new(learning.handshaken.refuse(denial))))),
                None => self.authorise(learning.handshaken.learned()),
            },
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
}
