//! CONNECT, and the will in it (section 3.1).

use super::{Result, flags, properties};
use crate::error::DecodeError;
use crate::frame::Frame;
use crate::properties::{Properties, PropertyWriter, place};
use crate::topic::TopicName;
use crate::wire::{Reader, put_binary, put_packet};
use crate::{QoS, Version};

/// CONNECT (section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connect<'a> {
    /// The version it speaks.
    pub version: Version,
    /// Clean Start, in 3.1.1 Clean Session.
    pub clean: bool,
    /// Keep Alive in seconds; 0 is none.
    pub keep_alive_s: u16,
    /// Client Identifier, may be empty.
    pub client_id: &'a str,
    /// The will, if there is one.
    pub will: Option<Will<'a>>,
    /// User Name.
    pub user_name: Option<&'a str>,
    /// Password. Never logged.
    pub password: Option<&'a [u8]>,
    /// Properties; empty in 3.1.1.
    pub properties: Properties<'a>,
}

/// A will message (section 3.1.2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Will<'a> {
    /// Where it is published.
    pub topic: TopicName<'a>,
    /// Its payload.
    pub payload: &'a [u8],
    /// Its QoS.
    pub qos: QoS,
    /// Whether it is retained.
    pub retain: bool,
    /// Its properties.
    pub properties: Properties<'a>,
}

impl<'a> Connect<'a> {
    /// Reads the first packet of a connection; `None` if it is no CONNECT (MQTT-3.1.0-1).
    ///
    /// # Errors
    /// What is wrong with it; [`DecodeError::ProtocolLevel`] and [`DecodeError::ProtocolName`] before anything else.
    pub fn decode(frame: &Frame<'a>) -> Result<Option<Self>> {
        if frame.packet_type() != 1 {
            return Ok(None);
        }
        flags(frame, 0)?;
        let mut r = Reader(frame.body);
        let name = r.binary()?;
        let level = r.u8()?;
        let version = match (name, level) {
            (b"MQTT", 4) => Version::V311,
            (b"MQTT", 5) => Version::V5,
            // Bit 7 marks a bridge in some brokers; it is no level of the standard.
            (b"MQTT", other) | (b"MQIsdp", other) => return Err(DecodeError::ProtocolLevel(other)),
            _ => return Err(DecodeError::ProtocolName),
        };
        let bits = r.u8()?;
        if bits & 1 != 0 {
            return Err(DecodeError::Malformed(
                "the reserved connect flag is set (MQTT-3.1.2-3)",
            ));
        }
        let (has_will, has_password, has_user) = (bits & 0x04 != 0, bits & 0x40 != 0, bits & 0x80 != 0);
        let will_qos =
            QoS::from_bits(bits >> 3 & 3).ok_or(DecodeError::Malformed("will QoS is 3 (MQTT-3.1.2-12)"))?;
        let will_retain = bits & 0x20 != 0;
        if !has_will && (will_qos != QoS::AtMostOnce || will_retain) {
            return Err(DecodeError::Malformed(
                "will QoS or retain without a will (MQTT-3.1.2-11)",
            ));
        }
        if version == Version::V311 && has_password && !has_user {
            return Err(DecodeError::Malformed(
                "a password without a user name (MQTT-3.1.2-22)",
            ));
        }
        let keep_alive_s = r.u16()?;
        let properties_ = properties(&mut r, version, place::CONNECT)?;
        let client_id = r.text()?;
        let will = if has_will {
            let properties = properties(&mut r, version, place::WILL)?;
            let topic = TopicName::new(r.text()?)?;
            let payload = r.binary()?;
            Some(Will {
                topic,
                payload,
                qos: will_qos,
                retain: will_retain,
                properties,
            })
        } else {
            None
        };
        let user_name = if has_user { Some(r.text()?) } else { None };
        let password = if has_password { Some(r.binary()?) } else { None };
        r.end()?;
        Ok(Some(Self {
            version,
            clean: bits & 2 != 0,
            keep_alive_s,
            client_id,
            will,
            user_name,
            password,
            properties: properties_,
        }))
    }

    /// Appends it as a packet.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_packet(out, 0x10, |b| {
            put_binary(b, b"MQTT");
            b.push(self.version.level());
            let mut bits = u8::from(self.clean) << 1;
            if let Some(will) = &self.will {
                bits |= 0x04 | (will.qos as u8) << 3 | u8::from(will.retain) << 5;
            }
            bits |= u8::from(self.password.is_some()) << 6 | u8::from(self.user_name.is_some()) << 7;
            b.push(bits);
            b.extend(self.keep_alive_s.to_be_bytes());
            if self.version == Version::V5 {
                let mut p = PropertyWriter::default();
                if let Some(s) = self.properties.session_expiry_s {
                    p.u32(0x11, s);
                }
                if let Some(n) = self.properties.receive_maximum {
                    p.u16(0x21, n);
                }
                if let Some(n) = self.properties.maximum_packet_size {
                    p.u32(0x27, n);
                }
                if let Some(m) = self.properties.auth_method {
                    p.text(0x15, m);
                }
                p.write(b);
            }
            put_binary(b, self.client_id.as_bytes());
            if let Some(will) = &self.will {
                if self.version == Version::V5 {
                    PropertyWriter::default().write(b);
                }
                put_binary(b, will.topic.as_str().as_bytes());
                put_binary(b, will.payload);
            }
            if let Some(user) = self.user_name {
                put_binary(b, user.as_bytes());
            }
            if let Some(password) = self.password {
                put_binary(b, password);
            }
        });
    }
}
