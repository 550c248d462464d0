//! What is said inside TLS: CONNECT and its answer, packets and replies, refusals in words.

use countersign_mqtt::client::Connect;
use countersign_mqtt::properties::PropertyWriter;
use countersign_mqtt::{DecodeError, ReasonCode, Version, frame, server};
use countersign_policy::denial::Wire;
use countersign_policy::{Denial, DenialCode};

use super::{Connection, Phase, or_refuse};
use crate::buffers::Buffers;
use crate::exchange::{Greeting, Refused};
use crate::handshake::config::Protocol;
use crate::handshake::driver;
use crate::http::connection::HttpConnection;
use crate::session::entry::EndReason;
use crate::session::grant;
use crate::session::mqtt::{End, Session};
use crate::session::will::Will;

impl Connection {
    pub(super) fn speaks_http(&self) -> bool {
        self.tls
            .as_ref()
            .is_some_and(|tls| Protocol::of(tls.alpn_protocol()) == Protocol::Http)
    }

    /// From here on it is HTTP: what was read and what is to be written goes along.
    pub(super) fn hand_over(&mut self, b: &mut Buffers) {
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
    pub(super) fn packets(&mut self, b: &mut Buffers) {
        if !b.plaintext.is_empty() {
            self.act(b);
        }
    }

    /// The same of all that will ever come, to the end.
    pub(super) fn last_packets(&mut self, b: &mut Buffers) {
        self.packets(b);
        while let Phase::Session(session) = &mut self.phase
            && session.has_had_its_turn()
        {
            session.begin_turn();
            self.act(b);
        }
    }

    /// The same of what was kept and what is new, as far as a turn goes.
    pub(super) fn act(&mut self, b: &mut Buffers) {
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
        while let Phase::Session(session) = &mut self.phase
            && !session.has_had_its_turn()
        {
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
    pub(super) fn greet(&mut self, plaintext: &[u8], b: &mut Buffers) -> usize {
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
    pub(super) fn seal(&mut self, b: &mut Buffers) {
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
    pub(super) fn refuse_in_tls(&mut self, refused: Refused, version: Option<Version>, b: &mut Buffers) {
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
    pub(super) fn refuse_wordless(&mut self, refused: Refused) {
        refused.conclude(&self.slot.node);
        self.leave(true);
    }

    /// There is nobody to tell.
    pub(super) fn refuse_silently(&mut self, refused: Refused) {
        refused.conclude(&self.slot.node);
        self.gone();
    }

    pub(super) fn leave(&mut self, drain: bool) {
        self.slot.handshake_over();
        self.set_deadline(self.slot.node.options.limits.drain_timeout);
        self.phase = Phase::Leaving { drain };
    }

    pub(super) fn end_session(&mut self, end: &End, b: &mut Buffers) {
        let Phase::Session(mut session) = std::mem::replace(&mut self.phase, Phase::Over) else {
            return;
        };
        let reason = session.end(end, &self.slot.node, &mut b.replies);
        self.leaving = Some(session.entry().clone());
        // Who said goodbye is not sending any more.
        self.leave(reason != EndReason::ClientDisconnect);
        self.seal(b);
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
