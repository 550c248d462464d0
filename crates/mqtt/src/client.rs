//! What clients send (sections 3.1, 3.3 to 3.15): decoded strictly and without copying; encoded for the device's side.

mod connect;
mod publish;
mod subscribe;

pub use self::connect::{Connect, Will};
pub use self::publish::{Ack, Publish};
pub use self::subscribe::{Subscribe, SubscribeFilter, Unsubscribe};
use crate::error::DecodeError;
use crate::frame::Frame;
use crate::properties::{Properties, PropertyWriter, place};
use crate::reason::ReasonCode;
use crate::wire::{Reader, put_packet};
use crate::{PacketId, Version};

type Result<T> = std::result::Result<T, DecodeError>;

/// A packet from a client, after CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientPacket<'a> {
    /// A second CONNECT: a protocol error, but its caller says so (MQTT-3.1.0-2).
    Connect,
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
    /// Asks for topics.
    Subscribe(Subscribe<'a>),
    /// No longer asks for topics.
    Unsubscribe(Unsubscribe<'a>),
    /// Asks for a sign of life.
    Pingreq,
    /// Ends the connection in order.
    Disconnect(Disconnect),
    /// Enhanced authentication (MQTT 5 only).
    Auth,
}

/// DISCONNECT (section 3.14).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disconnect {
    /// Normal disconnection in 3.1.1.
    pub reason: ReasonCode,
    /// A new Session Expiry Interval, in seconds.
    pub session_expiry_s: Option<u32>,
}

fn flags(frame: &Frame<'_>, expected: u8) -> Result<()> {
    if frame.first & 0x0f == expected {
        Ok(())
    } else {
        Err(DecodeError::Malformed(
            "reserved flags of the fixed header are wrong (MQTT-2.1.3-1)",
        ))
    }
}

fn packet_id(r: &mut Reader<'_>) -> Result<PacketId> {
    PacketId::new(r.u16()?).ok_or(DecodeError::Protocol("a packet identifier is 0 (MQTT-2.2.1-3)"))
}

fn properties<'a>(r: &mut Reader<'a>, version: Version, here: u16) -> Result<Properties<'a>> {
    match version {
        Version::V311 => Ok(Properties::default()),
        Version::V5 => Properties::read(r, here),
    }
}

impl<'a> ClientPacket<'a> {
    /// Reads a packet that follows CONNECT.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(frame: &Frame<'a>, version: Version) -> Result<Self> {
        let mut r = Reader(frame.body);
        Ok(match frame.packet_type() {
            1 => {
                flags(frame, 0)?;
                Self::Connect
            }
            3 => Self::Publish(Publish::decode(frame, version, Sender::Client)?),
            4 => Self::Puback(Ack::decode(
                frame,
                version,
                0,
                &[0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99],
            )?),
            5 => Self::Pubrec(Ack::decode(
                frame,
                version,
                0,
                &[0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99],
            )?),
            6 => Self::Pubrel(Ack::decode(frame, version, 2, &[0x00, 0x92])?),
            7 => Self::Pubcomp(Ack::decode(frame, version, 0, &[0x00, 0x92])?),
            8 => Self::Subscribe(Subscribe::decode(frame, version)?),
            10 => Self::Unsubscribe(Unsubscribe::decode(frame, version)?),
            12 => {
                flags(frame, 0)?;
                r.end()?;
                Self::Pingreq
            }
            14 => Self::Disconnect(Disconnect::decode(frame, version, Sender::Client)?),
            15 if version == Version::V5 => {
                flags(frame, 0)?;
                if !r.0.is_empty() {
                    let reason = r.u8()?;
                    if ![0x00, 0x18, 0x19].contains(&reason) {
                        return Err(DecodeError::Protocol(
                            "AUTH with another reason code (section 3.15.2.1)",
                        ));
                    }
                    if !r.0.is_empty() {
                        Properties::read(&mut r, place::AUTH)?;
                    }
                    r.end()?;
                }
                Self::Auth
            }
            15 => {
                return Err(DecodeError::Malformed(
                    "packet type 15 is reserved in MQTT 3.1.1 (section 2.2.1)",
                ));
            }
            _ => return Err(DecodeError::Protocol("a packet that only servers send")),
        })
    }
}

/// Who sent a packet, where the rules differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sender {
    Client,
    Server,
}

impl Disconnect {
    pub(crate) fn decode(frame: &Frame<'_>, version: Version, sender: Sender) -> Result<Self> {
        flags(frame, 0)?;
        let mut r = Reader(frame.body);
        let mut packet = Self {
            reason: ReasonCode::SUCCESS,
            session_expiry_s: None,
        };
        if version == Version::V5 && !r.0.is_empty() {
            packet.reason = ReasonCode(r.u8()?);
            if !r.0.is_empty() {
                let p = Properties::read(&mut r, place::DISCONNECT)?;
                if sender == Sender::Server && p.session_expiry_s.is_some() {
                    return Err(DecodeError::Protocol(
                        "a server sent a Session Expiry Interval (MQTT-3.14.2-2)",
                    ));
                }
                packet.session_expiry_s = p.session_expiry_s;
            }
        }
        r.end()?;
        Ok(packet)
    }

    /// Appends a DISCONNECT; with a reason in MQTT 5 only.
    pub fn encode(reason: ReasonCode, reason_string: Option<&str>, version: Version, out: &mut Vec<u8>) {
        put_packet(out, 0xe0, |b| {
            if version == Version::V5 && (reason != ReasonCode::SUCCESS || reason_string.is_some()) {
                b.push(reason.0);
                if let Some(text) = reason_string {
                    let mut p = PropertyWriter::default();
                    p.text(0x1f, text);
                    p.write(b);
                }
            }
        });
    }
}

/// Appends a PINGREQ.
pub fn encode_pingreq(out: &mut Vec<u8>) {
    out.extend([0xc0, 0]);
}
