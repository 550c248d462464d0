//! What servers send: encoded for the gateway, decoded for the device's side.

use crate::client::{Ack, Disconnect, Publish, Sender};
use crate::error::DecodeError;
use crate::frame::Frame;
use crate::properties::{Properties, PropertyWriter, place};
use crate::reason::ReasonCode;
use crate::wire::{Reader, put_binary, put_packet, put_variable};
use crate::{PacketId, QoS, Version};

/// A packet from a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerPacket<'a> {
    /// Answers CONNECT.
    Connack(Connack<'a>),
    /// A message.
    Publish(Publish<'a>),
    /// Acknowledges a QoS 1 message.
    Puback(Ack),
    /// First answer to a QoS 2 message.
    Pubrec(Ack),
    /// Releases a QoS 2 message.
    Pubrel(Ack),
    /// Completes a QoS 2 message.
    Pubcomp(Ack),
    /// Answers SUBSCRIBE: one code per filter.
    Suback(PacketId, &'a [u8]),
    /// Answers UNSUBSCRIBE: one code per filter, none in 3.1.1.
    Unsuback(PacketId, &'a [u8]),
    /// Answers PINGREQ.
    Pingresp,
    /// The server ends the connection (MQTT 5 only).
    Disconnect(Disconnect),
    /// Enhanced authentication (MQTT 5 only).
    Auth,
}

/// CONNACK (section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connack<'a> {
    /// The server has a session for this client id.
    pub session_present: bool,
    /// The reason code, in 3.1.1 the return code.
    pub code: u8,
    /// Properties; empty in 3.1.1.
    pub properties: Properties<'a>,
}

impl<'a> ServerPacket<'a> {
    /// Reads a packet of a server.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(frame: &Frame<'a>, version: Version) -> Result<Self, DecodeError> {
        const ACKS: &[u8] = &[0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99];
        let mut r = Reader(frame.body);
        let id = |r: &mut Reader<'a>| {
            PacketId::new(r.u16()?).ok_or(DecodeError::Protocol("a packet identifier is 0 (MQTT-2.2.1-3)"))
        };
        let flags = frame.first & 0x0f;
        let plain = |packet| {
            if flags == 0 {
                Ok(packet)
            } else {
                Err(DecodeError::Malformed("reserved flags are wrong (MQTT-2.1.3-1)"))
            }
        };
        match frame.packet_type() {
            2 => {
                let ack = r.u8()?;
                if ack > 1 {
                    return Err(DecodeError::Malformed(
                        "reserved connect acknowledge flags are set (MQTT-3.2.2-1)",
                    ));
                }
                let code = r.u8()?;
                let properties = match version {
                    Version::V5 if !r.0.is_empty() => Properties::read(&mut r, place::CONNACK)?,
                    _ => Properties::default(),
                };
                r.end()?;
                plain(Self::Connack(Connack {
                    session_present: ack == 1,
                    code,
                    properties,
                }))
            }
            3 => Ok(Self::Publish(Publish::decode(frame, version, Sender::Server)?)),
            4 => Ok(Self::Puback(Ack::decode(frame, version, 0, ACKS)?)),
            5 => Ok(Self::Pubrec(Ack::decode(frame, version, 0, ACKS)?)),
            6 => Ok(Self::Pubrel(Ack::decode(frame, version, 2, &[0x00, 0x92])?)),
            7 => Ok(Self::Pubcomp(Ack::decode(frame, version, 0, &[0x00, 0x92])?)),
            9 | 11 => {
                let packet_id = id(&mut r)?;
                if version == Version::V5 {
                    Properties::read(&mut r, place::SUBACK)?;
                }
                plain(if frame.packet_type() == 9 {
                    Self::Suback(packet_id, r.0)
                } else {
                    Self::Unsuback(packet_id, r.0)
                })
            }
            13 => {
                r.end()?;
                plain(Self::Pingresp)
            }
            14 if version == Version::V5 => Ok(Self::Disconnect(Disconnect::decode(
                frame,
                version,
                Sender::Server,
            )?)),
            15 if version == Version::V5 => plain(Self::Auth),
            _ => Err(DecodeError::Protocol("a packet that servers do not send")),
        }
    }
}

/// Appends a CONNACK of MQTT 3.1.1 (section 3.2). There are no sessions here, so Session Present is 0.
pub fn encode_connack_v311(code: u8, out: &mut Vec<u8>) {
    out.extend([0x20, 2, 0, code]);
}

/// Appends a CONNACK of MQTT 5 with the given properties.
pub fn encode_connack_v5(reason: ReasonCode, properties: &PropertyWriter, out: &mut Vec<u8>) {
    put_packet(out, 0x20, |b| {
        b.extend([0, reason.0]);
        properties.write(b);
    });
}

/// A PUBLISH to a subscriber. `properties` are as they came from the publisher, for MQTT 5.
#[derive(Clone, Copy, Debug)]
pub struct OutgoingPublish<'a> {
    /// The topic.
    pub topic: &'a str,
    /// The payload.
    pub payload: &'a [u8],
    /// Encoded properties of the message.
    pub properties: &'a [u8],
    /// Subscription identifiers to add (MQTT 5).
    pub subscription_ids: &'a [u32],
    /// The QoS it is sent with.
    pub qos: QoS,
    /// The packet identifier; `None` for QoS 0.
    pub packet_id: Option<PacketId>,
}

impl OutgoingPublish<'_> {
    /// Appends it as a packet.
    pub fn encode(&self, version: Version, out: &mut Vec<u8>) {
        put_packet(out, 0x30 | (self.qos as u8) << 1, |b| {
            put_binary(b, self.topic.as_bytes());
            if let Some(id) = self.packet_id {
                b.extend(id.get().to_be_bytes());
            }
            if version == Version::V5 {
                let mut ids = PropertyWriter::default();
                for id in self.subscription_ids {
                    ids.variable(0x0b, *id);
                }
                put_variable(b, self.properties.len() + ids.bytes().len());
                b.extend_from_slice(self.properties);
                b.extend_from_slice(ids.bytes());
            }
            b.extend_from_slice(self.payload);
        });
    }
}

/// Appends a SUBACK (0x90) or UNSUBACK (0xb0) with one code per filter; 3.1.1 has no codes in UNSUBACK.
pub fn encode_suback(first: u8, packet_id: PacketId, codes: &[u8], version: Version, out: &mut Vec<u8>) {
    put_packet(out, first, |b| {
        b.extend(packet_id.get().to_be_bytes());
        if version == Version::V5 {
            b.push(0);
        }
        if version == Version::V5 || first == 0x90 {
            b.extend_from_slice(codes);
        }
    });
}

/// Appends a PINGRESP.
pub fn encode_pingresp(out: &mut Vec<u8>) {
    out.extend([0xd0, 0]);
}
