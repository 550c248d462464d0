//! PUBLISH and what acknowledges it (sections 3.3 to 3.7).

use super::{Result, Sender, flags, packet_id, properties};
use crate::error::DecodeError;
use crate::frame::Frame;
use crate::properties::{Properties, PropertyWriter, place};
use crate::reason::ReasonCode;
use crate::topic::TopicName;
use crate::wire::{Reader, put_binary, put_packet};
use crate::{PacketId, QoS, Version};

/// PUBLISH (section 3.3), in either direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish<'a> {
    /// Sent before.
    pub dup: bool,
    /// Quality of service.
    pub qos: QoS,
    /// Asks to be retained.
    pub retain: bool,
    /// The topic; `None` if a topic alias stands for it.
    pub topic: Option<TopicName<'a>>,
    /// The packet identifier; `None` for QoS 0.
    pub packet_id: Option<PacketId>,
    /// Properties; empty in 3.1.1.
    pub properties: Properties<'a>,
    /// The payload.
    pub payload: &'a [u8],
}

/// PUBACK, PUBREC, PUBREL, PUBCOMP (sections 3.4 to 3.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The message it is about.
    pub packet_id: PacketId,
    /// The reason code; success in 3.1.1.
    pub reason: ReasonCode,
}

impl<'a> Publish<'a> {
    pub(crate) fn decode(frame: &Frame<'a>, version: Version, sender: Sender) -> Result<Self> {
        let mut r = Reader(frame.body);
        let qos =
            QoS::from_bits(frame.first >> 1 & 3).ok_or(DecodeError::Malformed("QoS is 3 (MQTT-3.3.1-4)"))?;
        let dup = frame.first & 8 != 0;
        if dup && qos == QoS::AtMostOnce {
            return Err(DecodeError::Malformed("DUP is set on QoS 0 (MQTT-3.3.1-2)"));
        }
        let topic = r.text()?;
        let id = if qos == QoS::AtMostOnce {
            None
        } else {
            Some(packet_id(&mut r)?)
        };
        let properties = properties(&mut r, version, place::PUBLISH)?;
        if sender == Sender::Client && properties.subscription_id.is_some() {
            return Err(DecodeError::Protocol(
                "a client sent a Subscription Identifier (MQTT-3.3.4-6)",
            ));
        }
        if properties.topic_alias == Some(0) {
            return Err(DecodeError::TopicAlias("it is 0 (MQTT-3.3.2-8)"));
        }
        let topic = if topic.is_empty() {
            if version == Version::V311 {
                return Err(DecodeError::TopicName("it is empty (MQTT-4.7.3-1)"));
            }
            if properties.topic_alias.is_none() {
                return Err(DecodeError::Protocol(
                    "an empty topic without a topic alias (section 3.3.2.1)",
                ));
            }
            None
        } else {
            Some(TopicName::new(topic)?)
        };
        Ok(Self {
            dup,
            qos,
            retain: frame.first & 1 != 0,
            topic,
            packet_id: id,
            properties,
            payload: r.0,
        })
    }

    /// Appends it as a packet of `version`; `raw` of the properties goes along in MQTT 5.
    pub fn encode(&self, version: Version, out: &mut Vec<u8>) {
        let first = 0x30 | u8::from(self.dup) << 3 | (self.qos as u8) << 1 | u8::from(self.retain);
        put_packet(out, first, |b| {
            put_binary(b, self.topic.map_or("", TopicName::as_str).as_bytes());
            if let Some(id) = self.packet_id {
                b.extend(id.get().to_be_bytes());
            }
            if version == Version::V5 {
                crate::wire::put_variable(b, self.properties.raw.len());
                b.extend_from_slice(self.properties.raw);
            }
            b.extend_from_slice(self.payload);
        });
    }
}

impl Ack {
    pub(crate) fn decode(
        frame: &Frame<'_>,
        version: Version,
        expected_flags: u8,
        reasons: &[u8],
    ) -> Result<Self> {
        flags(frame, expected_flags)?;
        let mut r = Reader(frame.body);
        let packet_id = packet_id(&mut r)?;
        let mut reason = ReasonCode::SUCCESS;
        if version == Version::V5 && !r.0.is_empty() {
            reason = ReasonCode(r.u8()?);
            if !reasons.contains(&reason.0) {
                return Err(DecodeError::Protocol(
                    "an acknowledgement has a reason code that it may not have",
                ));
            }
            if !r.0.is_empty() {
                Properties::read(&mut r, place::ACK)?;
            }
        }
        r.end()?;
        Ok(Self { packet_id, reason })
    }

    /// Appends it as a packet of the type whose first byte is `first`: 0x40 PUBACK, 0x50 PUBREC, 0x62 PUBREL,
    /// 0x70 PUBCOMP. Success is left out, as section 3.4.2.1 allows.
    pub fn encode(&self, first: u8, version: Version, reason_string: Option<&str>, out: &mut Vec<u8>) {
        put_packet(out, first, |b| {
            b.extend(self.packet_id.get().to_be_bytes());
            if version == Version::V5 && self.reason != ReasonCode::SUCCESS {
                b.push(self.reason.0);
                if let Some(text) = reason_string {
                    let mut p = PropertyWriter::default();
                    p.text(0x1f, text);
                    p.write(b);
                }
            }
        });
    }
}
