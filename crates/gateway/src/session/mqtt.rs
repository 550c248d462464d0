//! What a session's packets do. No I/O: packets come in, replies are appended, and a reason comes out when it is over.
//!
//! Every PUBLISH and SUBSCRIBE is decided on the admission as it is at that moment; the router takes nothing without
//! the permit of that decision.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use countersign_identity::Timestamp;
use countersign_mqtt::client::{
    Ack, ClientPacket, Connect, Disconnect, Publish, Subscribe, SubscribeFilter, Unsubscribe,
};
use countersign_mqtt::frame::Frame;
use countersign_mqtt::properties::PropertyWriter;
use countersign_mqtt::server::{self, OutgoingPublish};
use countersign_mqtt::{DecodeError, PacketId, QoS, ReasonCode, Version};
use countersign_policy::{Denial, DenialCode, Stage, StageOutcome, StageRecord, offered};

use super::entry::{EndReason, SessionEntry};
use super::grant::Granted;
use super::will;
use crate::data::embedded::{Delivery, Message, SubscriptionOptions};
use crate::metrics::count;
use crate::node::Node;

/// Replies of one turn are not grown beyond this by waiting messages; the rest follows when they are written.
const TURN_BYTES: usize = 64 * 1024;
/// Filters that are decided on before others get a turn of the thread: some milliseconds at the worst.
const TURN_FILTERS: usize = 256;
/// A client that takes less than this in one packet is sent no reason strings (MQTT-3.1.2-24).
const REASON_STRING_ROOM: usize = 256;

/// The end of a session, and what the client is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) reason: EndReason,
    /// The reason code of DISCONNECT in MQTT 5; `None` says nothing.
    code: Option<ReasonCode>,
    /// The denial's code, as Reason String.
    text: Option<&'static str>,
}

impl From<EndReason> for End {
    fn from(reason: EndReason) -> Self {
        Self {
            reason,
            code: reason.disconnect_code().map(ReasonCode),
            text: None,
        }
    }
}

impl End {
    fn protocol(code: ReasonCode) -> Self {
        Self {
            reason: EndReason::Protocol,
            code: Some(code),
            text: None,
        }
    }
}

/// One granted session, owned by its connection.
#[derive(Debug)]
pub(crate) struct Session {
    entry: Arc<SessionEntry>,
    accepted: Instant,
    version: Version,
    quiet_max: Duration,
    hard_end: Timestamp,
    hard_end_reason: EndReason,
    packet_bytes_max: usize,
    inflight_max: u16,
    next_packet_id: u16,
    inflight: Vec<PacketId>,
    reason_strings: bool,
    published: bool,
    /// Filters that were decided on in this turn.
    filters_decided: usize,
}

impl Session {
    /// Opens the session and appends its CONNACK.
    pub(crate) fn open(granted: Granted, connect: &Connect<'_>, node: &Node, replies: &mut Vec<u8>) -> Self {
        let limits = &node.options.limits;
        let asked = Duration::from_secs(connect.keep_alive_s.into());
        let keep_alive = if asked.is_zero() || asked > limits.idle_max {
            limits.idle_max
        } else {
            asked
        };
        let properties = &connect.properties;
        let packet_bytes_max = properties.maximum_packet_size.map_or(usize::MAX, |n| n as usize);
        let session = Self {
            accepted: granted.accepted,
            version: connect.version,
            // MQTT-3.1.2-22: one and a half times the keep-alive.
            quiet_max: keep_alive + keep_alive / 2,
            hard_end: granted.hard_end,
            hard_end_reason: granted.hard_end_reason,
            packet_bytes_max,
            inflight_max: properties
                .receive_maximum
                .unwrap_or(u16::MAX)
                .min(limits.inflight_max),
            next_packet_id: 0,
            inflight: Vec::new(),
            reason_strings: properties.request_problem != Some(0) && packet_bytes_max >= REASON_STRING_ROOM,
            published: false,
            filters_decided: 0,
            entry: granted.entry,
        };
        match connect.version {
            Version::V311 => server::encode_connack_v311(0, replies),
            Version::V5 => {
                let mut p = PropertyWriter::default();
                if properties.session_expiry_s.is_some_and(|s| s > 0) {
                    p.u32(0x11, 0);
                }
                p.u8(0x24, 1).u8(0x25, 0);
                p.u32(0x27, u32::try_from(limits.packet_bytes_max).unwrap_or(u32::MAX));
                if granted.assigned {
                    p.text(0x12, session.entry.client_id(&session.entry.admission()));
                }
                p.u8(0x2a, 0);
                if keep_alive != asked {
                    p.u16(0x13, u16::try_from(keep_alive.as_secs()).unwrap_or(u16::MAX));
                }
                server::encode_connack_v5(ReasonCode::SUCCESS, &p, replies);
            }
        }
        session
    }

    pub(crate) fn entry(&self) -> &Arc<SessionEntry> {
        &self.entry
    }

    /// How long it may stay silent from now on.
    pub(crate) fn patience(&self, now: Timestamp) -> Duration {
        self.quiet_max.min(self.hard_end.since(now))
    }

    /// Why a session whose patience is over ends.
    pub(crate) fn overdue(&self, now: Timestamp) -> End {
        if now >= self.hard_end {
            self.hard_end_reason.into()
        } else {
            EndReason::KeepAlive.into()
        }
    }

    /// Whether others must have a turn before its next packet is taken.
    pub(crate) fn has_had_its_turn(&self) -> bool {
        self.filters_decided >= TURN_FILTERS
    }

    /// Others had theirs.
    pub(crate) fn begin_turn(&mut self) {
        self.filters_decided = 0;
    }

    /// Takes one packet. `Err` ends the session.
    pub(crate) fn packet(
        &mut self,
        frame: &Frame<'_>,
        node: &Node,
        replies: &mut Vec<u8>,
    ) -> Result<(), End> {
        // Ended by somebody else: nothing of it is acted on any more.
        if let Some(reason) = self.entry.ending() {
            return Err(reason.into());
        }
        let packet = ClientPacket::decode(frame, self.version).map_err(|e| self.broken(&e, node))?;
        match packet {
            ClientPacket::Publish(publish) => self.publish(&publish, node, replies),
            ClientPacket::Subscribe(subscribe) => {
                self.subscribe(&subscribe, node, replies);
                Ok(())
            }
            ClientPacket::Unsubscribe(unsubscribe) => {
                self.unsubscribe(&unsubscribe, node, replies);
                Ok(())
            }
            ClientPacket::Puback(ack) => {
                // An identifier that is not in flight says nothing we could act on (MQTT 5 section 4.3.2).
                self.inflight.retain(|id| *id != ack.packet_id);
                Ok(())
            }
            ClientPacket::Pingreq => {
                server::encode_pingresp(replies);
                Ok(())
            }
            ClientPacket::Disconnect(disconnect) => Err(self.disconnect(&disconnect)),
            ClientPacket::Connect => {
                self.refuse(node, DenialCode::SecondConnect.into(), None);
                Err(End::protocol(ReasonCode::PROTOCOL_ERROR))
            }
            ClientPacket::Pubrel(ack) if self.version == Version::V5 => {
                // QoS 2 is never begun here, so no identifier is known (section 3.7.2.1).
                let ack = Ack {
                    reason: ReasonCode::PACKET_ID_NOT_FOUND,
                    ..ack
                };
                ack.encode(0x70, self.version, None, replies);
                Ok(())
            }
            ClientPacket::Pubrel(_)
            | ClientPacket::Pubrec(_)
            | ClientPacket::Pubcomp(_)
            | ClientPacket::Auth => {
                let detail = "an acknowledgement of QoS 2 or AUTH, neither of which was begun";
                self.refuse(node, Denial::new(DenialCode::MqttMalformed, detail), None);
                Err(End::protocol(ReasonCode::PROTOCOL_ERROR))
            }
        }
    }

    /// A packet that may not be acted on ends the session (MQTT-4.13.1-1).
    pub(crate) fn broken(&mut self, e: &DecodeError, node: &Node) -> End {
        let code = match e {
            DecodeError::TopicName(_) | DecodeError::TopicFilter(_) => DenialCode::TopicInvalid,
            DecodeError::TooLarge { .. } => DenialCode::PacketTooLarge,
            _ => DenialCode::MqttMalformed,
        };
        self.refuse(node, Denial::new(code, e.to_string()), None);
        End::protocol(e.reason())
    }

    fn publish(&mut self, publish: &Publish<'_>, node: &Node, replies: &mut Vec<u8>) -> Result<(), End> {
        if let Err(denial) = offered::publish(publish.qos as u8, publish.retain) {
            let code = denial.code;
            let reason = match code {
                DenialCode::RetainNotSupported => ReasonCode::RETAIN_NOT_SUPPORTED,
                _ => ReasonCode::QOS_NOT_SUPPORTED,
            };
            self.refuse(node, denial, publish.topic.map(|t| t.as_str()));
            return Err(End {
                reason: EndReason::Protocol,
                code: Some(reason),
                text: Some(code.as_str()),
            });
        }
        // No Topic Alias Maximum was announced, so it is 0 and no alias may be used (MQTT-3.2.2-18).
        let (Some(topic), None) = (publish.topic, publish.properties.topic_alias) else {
            let detail = "a topic alias, and none is allowed (MQTT-3.3.2-8)";
            self.refuse(node, Denial::new(DenialCode::MqttMalformed, detail), None);
            return Err(End::protocol(ReasonCode::TOPIC_ALIAS_INVALID));
        };
        let admission = self.entry.admission();
        let permit = match admission.publish(topic, publish.qos, publish.retain, node.now()) {
            Ok(permit) => permit,
            Err(denial) => {
                count(&node.metrics.publishes_denied);
                let code = denial.code;
                self.refuse(node, denial, Some(topic.as_str()));
                return match (self.version, publish.packet_id) {
                    (Version::V5, Some(packet_id)) => {
                        let ack = Ack {
                            packet_id,
                            reason: ReasonCode::NOT_AUTHORIZED,
                        };
                        ack.encode(
                            0x40,
                            self.version,
                            self.reason_strings.then_some(code.as_str()),
                            replies,
                        );
                        Ok(())
                    }
                    // QoS 0 has no acknowledgement, 3.1.1 none that says no: the connection is what is left.
                    _ => Err(End {
                        text: Some(code.as_str()),
                        ..EndReason::NotAuthorised.into()
                    }),
                };
            }
        };
        node.router
            .publish(&permit, self.entry.id, &node.options.limits, || Message {
                topic: topic.as_str().into(),
                payload: publish.payload.into(),
                properties: publish.properties.raw.into(),
                qos: publish.qos,
            });
        count(&node.metrics.publishes_in);
        self.entry.published(topic.as_str(), publish.payload.len(), node);
        if let Some(packet_id) = publish.packet_id {
            Ack {
                packet_id,
                reason: ReasonCode::SUCCESS,
            }
            .encode(0x40, self.version, None, replies);
        }
        if !self.published {
            self.published = true;
            let at_us = self.age_us();
            let device = &admission.device;
            node.sink.first_data(
                &device.tenant,
                &device.id,
                self.entry.exchange,
                StageRecord {
                    stage: Stage::FirstData,
                    at_us,
                    took_us: 0,
                    outcome: StageOutcome::Passed,
                },
            );
        }
        Ok(())
    }

    fn subscribe(&mut self, subscribe: &Subscribe<'_>, node: &Node, replies: &mut Vec<u8>) {
        let max = node.options.limits.subscriptions_max;
        let version = self.version;
        let code = |answer: Result<QoS, ReasonCode>| match answer {
            Ok(granted) => granted as u8,
            // MQTT 3.1.1 has one code for all failures (section 3.9.3).
            Err(reason) if version == Version::V5 => reason.0,
            Err(_) => 0x80,
        };
        let beyond = code(Err(ReasonCode::QUOTA_EXCEEDED));
        let mut codes = Vec::new();
        let mut filters = subscribe.filters();
        for asked in filters.by_ref().take(max) {
            let answer = self.subscribe_one(&asked, subscribe.properties.subscription_id, node);
            codes.push(code(answer));
        }
        self.filters_decided += codes.len();
        // No session may hold that many, and so nothing is decided on the rest: a packet has room for some 60,000.
        if let Some(asked) = filters.next() {
            let more = filters.count();
            let what = format!(
                "one packet asks for more than {max} filters; {} are not looked at",
                more + 1
            );
            node.metrics
                .subscriptions_denied
                .fetch_add(more as u64, Ordering::Relaxed);
            self.refuse_subscription(node, Denial::new(DenialCode::SubscriptionLimit, what), asked.text);
            codes.resize(codes.len() + 1 + more, beyond);
        }
        server::encode_suback(0x90, subscribe.packet_id, &codes, self.version, replies);
    }

    fn subscribe_one(
        &mut self,
        asked: &SubscribeFilter<'_>,
        id: Option<u32>,
        node: &Node,
    ) -> Result<QoS, ReasonCode> {
        // In 3.1.1 `$share` is no shared subscription, and answering it as a plain filter would surprise whoever
        // meant one.
        if asked.group.is_some() || asked.text.starts_with("$share/") {
            self.refuse_subscription(node, DenialCode::SharedSubscription.into(), asked.text);
            return Err(ReasonCode::SHARED_SUBSCRIPTIONS_NOT_SUPPORTED);
        }
        let max = node.options.limits.subscriptions_max;
        let (before, held) = self.entry.subscription(asked.text);
        if before.is_none() && held >= max {
            let what = format!("the session holds {max} subscriptions already");
            let denial = Denial::new(DenialCode::SubscriptionLimit, what);
            self.refuse_subscription(node, denial, asked.text);
            return Err(ReasonCode::QUOTA_EXCEEDED);
        }
        let qos = asked.qos.min(QoS::AtLeastOnce);
        let options = SubscriptionOptions {
            qos,
            no_local: asked.no_local,
            id,
        };
        loop {
            let admission = self.entry.admission();
            let permit = match admission.subscribe(asked.text, asked.filter, asked.qos, node.now()) {
                Ok(permit) => permit,
                Err(denial) => {
                    self.entry.list_subscription(asked.text, before);
                    self.refuse_subscription(node, denial, asked.text);
                    return Err(ReasonCode::NOT_AUTHORIZED);
                }
            };
            // Listed, then checked: a change that came meanwhile sees it in the list, or is seen here.
            self.entry.list_subscription(asked.text, Some(asked.qos));
            if Arc::ptr_eq(&self.entry.admission(), &admission) {
                node.router.subscribe(&permit, &self.entry, options);
                return Ok(qos);
            }
        }
    }

    fn refuse_subscription(&mut self, node: &Node, denial: Denial, filter: &str) {
        count(&node.metrics.subscriptions_denied);
        self.refuse(node, denial, Some(filter));
    }

    fn unsubscribe(&mut self, unsubscribe: &Unsubscribe<'_>, node: &Node, replies: &mut Vec<u8>) {
        let admission = self.entry.admission();
        let codes: Vec<u8> = unsubscribe
            .filters()
            .map(|filter| {
                // The router knows of none that is not listed, and is not asked about it.
                let removed = self.entry.list_subscription(filter, None)
                    && node
                        .router
                        .unsubscribe(&admission.device.tenant, filter, self.entry.id);
                if removed {
                    ReasonCode::SUCCESS.0
                } else {
                    ReasonCode::NO_SUBSCRIPTION_EXISTED.0
                }
            })
            .collect();
        server::encode_suback(0xb0, unsubscribe.packet_id, &codes, self.version, replies);
    }

    fn disconnect(&self, disconnect: &Disconnect) -> End {
        // MQTT-3.1.2-23: the expiry was answered 0, and cannot be raised now.
        if disconnect.session_expiry_s.is_some_and(|s| s > 0) {
            return End::protocol(ReasonCode::PROTOCOL_ERROR);
        }
        // Only a normal disconnection takes the will back (MQTT-3.14.4-3).
        if disconnect.reason == ReasonCode::SUCCESS {
            self.entry.will.lock().take();
        }
        EndReason::ClientDisconnect.into()
    }

    /// Appends what waits for it, as much as fits a turn and as its client takes.
    pub(crate) fn deliver(&mut self, node: &Node, replies: &mut Vec<u8>) {
        let entry = self.entry.clone();
        while replies.len() < TURN_BYTES {
            let delivery = {
                let mut outbox = entry.outbox.lock();
                let Some(next) = outbox.queue.front() else {
                    if outbox.queue.capacity() > 16 {
                        outbox.queue.shrink_to_fit();
                    }
                    return;
                };
                if next.qos != QoS::AtMostOnce && self.inflight.len() >= usize::from(self.inflight_max) {
                    return;
                }
                let bytes = next.bytes();
                outbox.bytes -= bytes;
                outbox.queue.pop_front()
            };
            if let Some(delivery) = delivery {
                self.send(&delivery, node, replies);
            }
        }
    }

    /// Whether a message waits that could be sent now.
    pub(crate) fn has_deliveries(&self) -> bool {
        let outbox = self.entry.outbox.lock();
        outbox.queue.front().is_some_and(|next| {
            next.qos == QoS::AtMostOnce || self.inflight.len() < usize::from(self.inflight_max)
        })
    }

    fn send(&mut self, delivery: &Delivery, node: &Node, replies: &mut Vec<u8>) {
        let packet_id = (delivery.qos != QoS::AtMostOnce).then(|| self.free_packet_id());
        let start = replies.len();
        OutgoingPublish {
            topic: &delivery.message.topic,
            payload: &delivery.message.payload,
            properties: &delivery.message.properties,
            subscription_ids: &delivery.subscription_ids,
            qos: delivery.qos,
            packet_id,
        }
        .encode(self.version, replies);
        if replies.len() - start > self.packet_bytes_max {
            // MQTT-3.1.2-25: dropped as if it had been sent.
            replies.truncate(start);
            count(&node.metrics.messages_too_large);
            return;
        }
        if let Some(id) = packet_id {
            self.inflight.push(id);
        }
        count(&node.metrics.publishes_out);
        self.entry
            .received(&delivery.message.topic, delivery.message.payload.len(), node);
    }

    /// The next identifier that is not in flight. There is one: at most 256 of 65,535 are.
    fn free_packet_id(&mut self) -> PacketId {
        loop {
            self.next_packet_id = self.next_packet_id.wrapping_add(1);
            if let Some(id) = PacketId::new(self.next_packet_id)
                && !self.inflight.contains(&id)
            {
                return id;
            }
        }
    }

    /// Takes it out of the router, and appends the last word. The index keeps it until the socket is closed.
    pub(crate) fn end(&mut self, end: &End, node: &Node, replies: &mut Vec<u8>) -> EndReason {
        self.entry.end(end.reason);
        let reason = self.entry.ending().unwrap_or(end.reason);
        let admission = self.entry.admission();
        for (filter, _) in std::mem::take(&mut *self.entry.subscriptions.lock()) {
            node.router
                .unsubscribe(&admission.device.tenant, &filter, self.entry.id);
        }
        *self.entry.outbox.lock() = super::entry::Outbox::default();
        will::due(&self.entry, node);
        if let (Version::V5, Some(code)) = (self.version, end.code) {
            let text = end.text.unwrap_or(reason.name());
            let text = (self.packet_bytes_max >= REASON_STRING_ROOM).then_some(text);
            Disconnect::encode(code, text, self.version, replies);
        }
        node.metrics.ended(reason);
        self.entry.report_end(reason, node);
        tracing::info!(
            exchange.id = %self.entry.exchange,
            tenant.id = %admission.device.tenant,
            device.id = %admission.device.id,
            session.end = reason.name(),
            session.age_ms = self.accepted.elapsed().as_millis() as u64,
            "session ended"
        );
        reason
    }

    fn age_us(&self) -> u32 {
        u32::try_from(self.accepted.elapsed().as_micros()).unwrap_or(u32::MAX)
    }

    /// Keeps a refusal within the session: an exchange of its own in the ledger, and one line that can be counted.
    fn refuse(&mut self, node: &Node, denial: Denial, topic: Option<&str>) {
        node.metrics.refused(denial.code);
        if self.entry.lists_refusal() {
            node.refused_in_session(&self.entry, self.age_us(), denial, topic);
        }
    }
}
