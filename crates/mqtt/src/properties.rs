//! Properties of MQTT 5 (section 2.2.2).

use crate::error::DecodeError;
use crate::wire::{Reader, put_binary, put_variable};

/// The packets a property may stand in, as bits.
pub(crate) mod place {
    pub(crate) const CONNECT: u16 = 1;
    pub(crate) const CONNACK: u16 = 1 << 1;
    pub(crate) const PUBLISH: u16 = 1 << 2;
    /// PUBACK, PUBREC, PUBREL, PUBCOMP.
    pub(crate) const ACK: u16 = 1 << 3;
    pub(crate) const SUBSCRIBE: u16 = 1 << 4;
    /// SUBACK, UNSUBACK.
    pub(crate) const SUBACK: u16 = 1 << 5;
    pub(crate) const UNSUBSCRIBE: u16 = 1 << 6;
    pub(crate) const DISCONNECT: u16 = 1 << 7;
    pub(crate) const AUTH: u16 = 1 << 8;
    pub(crate) const WILL: u16 = 1 << 9;
}
use place::{ACK, AUTH, CONNACK, CONNECT, DISCONNECT, PUBLISH, SUBACK, SUBSCRIBE, UNSUBSCRIBE, WILL};

#[derive(Clone, Copy)]
enum Kind {
    Byte,
    /// 0 or 1 only.
    Flag,
    Two,
    Four,
    Variable,
    Binary,
    Text,
    Pair,
}

/// Type and allowed places of a property (table 2-4).
const fn definition(id: u32) -> Option<(Kind, u16)> {
    Some(match id {
        0x01 => (Kind::Flag, PUBLISH | WILL),
        0x02 => (Kind::Four, PUBLISH | WILL),
        0x03 => (Kind::Text, PUBLISH | WILL),
        0x08 => (Kind::Text, PUBLISH | WILL),
        0x09 => (Kind::Binary, PUBLISH | WILL),
        0x0b => (Kind::Variable, PUBLISH | SUBSCRIBE),
        0x11 => (Kind::Four, CONNECT | CONNACK | DISCONNECT),
        0x12 => (Kind::Text, CONNACK),
        0x13 => (Kind::Two, CONNACK),
        0x15 => (Kind::Text, CONNECT | CONNACK | AUTH),
        0x16 => (Kind::Binary, CONNECT | CONNACK | AUTH),
        0x17 => (Kind::Flag, CONNECT),
        0x18 => (Kind::Four, WILL),
        0x19 => (Kind::Flag, CONNECT),
        0x1a => (Kind::Text, CONNACK),
        0x1c => (Kind::Text, CONNACK | DISCONNECT),
        0x1f => (Kind::Text, CONNACK | ACK | SUBACK | DISCONNECT | AUTH),
        0x21 => (Kind::Two, CONNECT | CONNACK),
        0x22 => (Kind::Two, CONNECT | CONNACK),
        0x23 => (Kind::Two, PUBLISH),
        0x24 => (Kind::Byte, CONNACK),
        0x25 => (Kind::Flag, CONNACK),
        0x26 => {
            let anywhere = CONNECT
                | CONNACK
                | PUBLISH
                | ACK
                | SUBSCRIBE
                | SUBACK
                | UNSUBSCRIBE
                | DISCONNECT
                | AUTH
                | WILL;
            (Kind::Pair, anywhere)
        }
        0x27 => (Kind::Four, CONNECT | CONNACK),
        0x28 => (Kind::Flag, CONNACK),
        0x29 => (Kind::Flag, CONNACK),
        0x2a => (Kind::Flag, CONNACK),
        _ => return None,
    })
}

/// The properties of one packet, checked: each is known, allowed here, in range, and there at most once where the
/// standard says so. Absent ones are `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Properties<'a> {
    /// The properties as they came, without their length.
    pub raw: &'a [u8],
    /// 0x01 Payload Format Indicator.
    pub payload_format: Option<u8>,
    /// 0x02 Message Expiry Interval, in seconds.
    pub message_expiry_s: Option<u32>,
    /// 0x03 Content Type.
    pub content_type: Option<&'a str>,
    /// 0x08 Response Topic.
    pub response_topic: Option<&'a str>,
    /// 0x09 Correlation Data.
    pub correlation_data: Option<&'a [u8]>,
    /// 0x0B Subscription Identifier, the last one given.
    pub subscription_id: Option<u32>,
    /// 0x11 Session Expiry Interval, in seconds.
    pub session_expiry_s: Option<u32>,
    /// 0x12 Assigned Client Identifier.
    pub assigned_client_id: Option<&'a str>,
    /// 0x13 Server Keep Alive, in seconds.
    pub server_keep_alive_s: Option<u16>,
    /// 0x15 Authentication Method.
    pub auth_method: Option<&'a str>,
    /// 0x16 Authentication Data.
    pub auth_data: Option<&'a [u8]>,
    /// 0x17 Request Problem Information.
    pub request_problem: Option<u8>,
    /// 0x18 Will Delay Interval, in seconds.
    pub will_delay_s: Option<u32>,
    /// 0x19 Request Response Information.
    pub request_response: Option<u8>,
    /// 0x1F Reason String.
    pub reason_string: Option<&'a str>,
    /// 0x21 Receive Maximum.
    pub receive_maximum: Option<u16>,
    /// 0x22 Topic Alias Maximum.
    pub topic_alias_maximum: Option<u16>,
    /// 0x23 Topic Alias.
    pub topic_alias: Option<u16>,
    /// 0x24 Maximum QoS.
    pub maximum_qos: Option<u8>,
    /// 0x25 Retain Available.
    pub retain_available: Option<u8>,
    /// 0x27 Maximum Packet Size, in bytes.
    pub maximum_packet_size: Option<u32>,
    /// 0x28 Wildcard Subscription Available.
    pub wildcard_available: Option<u8>,
    /// 0x29 Subscription Identifier Available.
    pub subscription_id_available: Option<u8>,
    /// 0x2A Shared Subscription Available.
    pub shared_available: Option<u8>,
}

impl<'a> Properties<'a> {
    /// Reads length and properties from the front of `reader`, as they may stand in `here`.
    pub(crate) fn read(reader: &mut Reader<'a>, here: u16) -> Result<Self, DecodeError> {
        let length = reader.variable()? as usize;
        let raw = reader.take(length)?;
        let mut r = Reader(raw);
        let mut seen = 0_u64;
        let mut p = Self {
            raw,
            ..Self::default()
        };
        while !r.0.is_empty() {
            let id = r.variable()?;
            let Some((kind, places)) = definition(id) else {
                return Err(DecodeError::Malformed("a property is unknown (section 2.2.2.2)"));
            };
            if places & here == 0 {
                return Err(DecodeError::Malformed(
                    "a property may not stand in this packet (section 2.2.2.2)",
                ));
            }
            // User properties may repeat, and subscription identifiers in a PUBLISH from the server.
            let repeats = id == 0x26 || (id == 0x0b && here == PUBLISH);
            if !repeats && seen & (1 << id) != 0 {
                return Err(DecodeError::Protocol(
                    "a property is there more than once (section 2.2.2.2)",
                ));
            }
            seen |= 1 << id;
            p.take(id, kind, &mut r)?;
        }
        p.check()?;
        Ok(p)
    }

    /// The will's properties as they stand in the PUBLISH that it becomes: without the Will Delay Interval, which is not for
    /// receivers (section 3.1.3.2).
    pub fn without_will_delay(&self) -> Vec<u8> {
        let mut kept = Vec::with_capacity(self.raw.len());
        let mut r = Reader(self.raw);
        // It was read before, so it reads.
        while !r.0.is_empty() {
            let property = r.0;
            let Ok(id) = r.variable() else { break };
            let Some((kind, _)) = definition(id) else { break };
            let mut ignored = Self::default();
            if ignored.take(id, kind, &mut r).is_err() {
                break;
            }
            if id != 0x18 {
                kept.extend_from_slice(&property[..property.len() - r.0.len()]);
            }
        }
        kept
    }

    fn take(&mut self, id: u32, kind: Kind, r: &mut Reader<'a>) -> Result<(), DecodeError> {
        let (mut number, mut text, mut binary) = (0, "", &[][..]);
        match kind {
            Kind::Byte => number = u32::from(r.u8()?),
            Kind::Flag => {
                number = u32::from(r.u8()?);
                if number > 1 {
                    return Err(DecodeError::Protocol(
                        "a property that is 0 or 1 has another value",
                    ));
                }
            }
            Kind::Two => number = u32::from(r.u16()?),
            Kind::Four => number = r.u32()?,
            Kind::Variable => number = r.variable()?,
            Kind::Binary => binary = r.binary()?,
            Kind::Text => text = r.text()?,
            Kind::Pair => {
                r.text()?;
                r.text()?;
            }
        }
        let (byte, two) = (number as u8, number as u16);
        match id {
            0x01 => self.payload_format = Some(byte),
            0x02 => self.message_expiry_s = Some(number),
            0x03 => self.content_type = Some(text),
            0x08 => self.response_topic = Some(text),
            0x09 => self.correlation_data = Some(binary),
            0x0b => self.subscription_id = Some(number),
            0x11 => self.session_expiry_s = Some(number),
            0x12 => self.assigned_client_id = Some(text),
            0x13 => self.server_keep_alive_s = Some(two),
            0x15 => self.auth_method = Some(text),
            0x16 => self.auth_data = Some(binary),
            0x17 => self.request_problem = Some(byte),
            0x18 => self.will_delay_s = Some(number),
            0x19 => self.request_response = Some(byte),
            0x1f => self.reason_string = Some(text),
            0x21 => self.receive_maximum = Some(two),
            0x22 => self.topic_alias_maximum = Some(two),
            0x23 => self.topic_alias = Some(two),
            0x24 => self.maximum_qos = Some(byte),
            0x25 => self.retain_available = Some(byte),
            0x27 => self.maximum_packet_size = Some(number),
            0x28 => self.wildcard_available = Some(byte),
            0x29 => self.subscription_id_available = Some(byte),
            0x2a => self.shared_available = Some(byte),
            _ => {}
        }
        Ok(())
    }

    fn check(&self) -> Result<(), DecodeError> {
        if self.receive_maximum == Some(0) {
            return Err(DecodeError::Protocol("Receive Maximum is 0 (section 3.1.2.11.3)"));
        }
        if self.maximum_packet_size == Some(0) {
            return Err(DecodeError::Protocol(
                "Maximum Packet Size is 0 (section 3.1.2.11.4)",
            ));
        }
        if self.subscription_id == Some(0) {
            return Err(DecodeError::Protocol(
                "a Subscription Identifier is 0 (section 3.8.2.1.2)",
            ));
        }
        if self.auth_data.is_some() && self.auth_method.is_none() {
            return Err(DecodeError::Protocol(
                "Authentication Data without Method (section 3.1.2.11.10)",
            ));
        }
        if self.maximum_qos.is_some_and(|q| q > 1) {
            return Err(DecodeError::Protocol(
                "Maximum QoS is neither 0 nor 1 (section 3.2.2.3.4)",
            ));
        }
        if self
            .response_topic
            .is_some_and(|t| t.is_empty() || t.contains(['+', '#']))
        {
            return Err(DecodeError::Protocol(
                "the Response Topic has wildcards (MQTT-3.3.2-14)",
            ));
        }
        Ok(())
    }
}

/// Writes properties one after the other; the length is put in front at the end.
#[derive(Debug, Default)]
pub struct PropertyWriter(Vec<u8>);

impl PropertyWriter {
    /// A byte.
    pub fn u8(&mut self, id: u8, value: u8) -> &mut Self {
        self.0.extend([id, value]);
        self
    }

    /// A two byte integer.
    pub fn u16(&mut self, id: u8, value: u16) -> &mut Self {
        self.0.push(id);
        self.0.extend(value.to_be_bytes());
        self
    }

    /// A four byte integer.
    pub fn u32(&mut self, id: u8, value: u32) -> &mut Self {
        self.0.push(id);
        self.0.extend(value.to_be_bytes());
        self
    }

    /// A variable byte integer.
    pub fn variable(&mut self, id: u8, value: u32) -> &mut Self {
        self.0.push(id);
        put_variable(&mut self.0, value as usize);
        self
    }

    /// A string.
    pub fn text(&mut self, id: u8, value: &str) -> &mut Self {
        self.0.push(id);
        put_binary(&mut self.0, value.as_bytes());
        self
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        put_variable(out, self.0.len());
        out.extend_from_slice(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_will_s_properties_are_those_of_its_publish_but_for_the_delay() {
        let all = b"\x26\x00\x01k\x00\x01v\x18\x00\x00\x00\x1e\x02\x00\x00\x00\x09\x03\x00\x01t";
        let mut raw = vec![all.len() as u8];
        raw.extend_from_slice(all);
        let properties = Properties::read(&mut Reader(&raw), WILL).unwrap();
        assert_eq!(properties.will_delay_s, Some(30));
        let kept = properties.without_will_delay();
        assert_eq!(kept, b"\x26\x00\x01k\x00\x01v\x02\x00\x00\x00\x09\x03\x00\x01t");
        assert!(Properties::default().without_will_delay().is_empty());
    }
}
