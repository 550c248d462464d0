//! What clients send (sections 3.1, 3.3 to 3.15): decoded strictly and without copying; encoded for the device's side.

use crate::error::DecodeError;
use crate::frame::Frame;
use crate::properties::{Properties, PropertyWriter, place};
use crate::reason::ReasonCode;
use crate::topic::{TopicFilter, TopicName, shared};
use crate::wire::{Reader, put_binary, put_packet};
use crate::{PacketId, QoS, Version};

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

/// SUBSCRIBE (section 3.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscribe<'a> {
    /// To be answered with.
    pub packet_id: PacketId,
    /// Properties; empty in 3.1.1.
    pub properties: Properties<'a>,
    version: Version,
    filters: &'a [u8],
}

/// One entry of a SUBSCRIBE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscribeFilter<'a> {
    /// As it came, with `$share/group/` if it is shared.
    pub text: &'a str,
    /// Without the share.
    pub filter: TopicFilter<'a>,
    /// The group of a shared subscription.
    pub group: Option<&'a str>,
    /// The greatest QoS asked for.
    pub qos: QoS,
    /// Own messages are not to be sent back.
    pub no_local: bool,
    /// Keep the RETAIN flag of forwarded messages.
    pub retain_as_published: bool,
    /// 0, 1 or 2: when retained messages are sent.
    pub retain_handling: u8,
}

/// UNSUBSCRIBE (section 3.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsubscribe<'a> {
    /// To be answered with.
    pub packet_id: PacketId,
    filters: &'a [u8],
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
            8 => {
                flags(frame, 2)?;
                let packet_id = packet_id(&mut r)?;
                let properties = properties(&mut r, version, place::SUBSCRIBE)?;
                let subscribe = Subscribe {
                    packet_id,
                    properties,
                    version,
                    filters: r.0,
                };
                if r.0.is_empty() {
                    return Err(DecodeError::Protocol("SUBSCRIBE without a filter (MQTT-3.8.3-2)"));
                }
                // Checked as a whole first, so that nothing is done for the first half of a bad packet.
                subscribe.walk().try_for_each(|f| f.map(drop))?;
                Self::Subscribe(subscribe)
            }
            10 => {
                flags(frame, 2)?;
                let packet_id = packet_id(&mut r)?;
                properties(&mut r, version, place::UNSUBSCRIBE)?;
                let unsubscribe = Unsubscribe {
                    packet_id,
                    filters: r.0,
                };
                if r.0.is_empty() {
                    return Err(DecodeError::Protocol(
                        "UNSUBSCRIBE without a filter (MQTT-3.10.3-2)",
                    ));
                }
                unsubscribe.walk().try_for_each(|f| f.map(drop))?;
                Self::Unsubscribe(unsubscribe)
            }
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

impl<'a> Subscribe<'a> {
    /// The entries; each was checked when the packet was decoded.
    pub fn filters(&self) -> impl Iterator<Item = SubscribeFilter<'a>> + use<'a> {
        self.walk().filter_map(std::result::Result::ok)
    }

    fn walk(&self) -> impl Iterator<Item = Result<SubscribeFilter<'a>>> + use<'a> {
        let (mut r, version) = (Reader(self.filters), self.version);
        std::iter::from_fn(move || {
            if r.0.is_empty() {
                return None;
            }
            let one = subscribe_filter(&mut r, version);
            if one.is_err() {
                r.0 = &[];
            }
            Some(one)
        })
    }

    /// Appends a SUBSCRIBE for one filter.
    pub fn encode(packet_id: PacketId, filter: &str, qos: QoS, version: Version, out: &mut Vec<u8>) {
        put_packet(out, 0x82, |b| {
            b.extend(packet_id.get().to_be_bytes());
            if version == Version::V5 {
                b.push(0);
            }
            put_binary(b, filter.as_bytes());
            b.push(qos as u8);
        });
    }
}

fn subscribe_filter<'a>(r: &mut Reader<'a>, version: Version) -> Result<SubscribeFilter<'a>> {
    let text = r.text()?;
    let options = r.u8()?;
    let reserved = if version == Version::V5 { 0xc0 } else { 0xfc };
    if options & reserved != 0 {
        return Err(DecodeError::Malformed(
            "reserved subscription options are set (MQTT-3.8.3-5)",
        ));
    }
    let qos = QoS::from_bits(options & 3).ok_or(DecodeError::Malformed("QoS is 3 (MQTT-3.8.3-5)"))?;
    let retain_handling = options >> 4 & 3;
    if retain_handling == 3 {
        return Err(DecodeError::Protocol("Retain Handling is 3 (section 3.8.3.1)"));
    }
    let (group, filter) = match (version, shared(text)?) {
        (Version::V5, Some((group, filter))) => (Some(group), filter),
        // In 3.1.1 `$share` has no meaning of its own.
        _ => (None, TopicFilter::new(text)?),
    };
    let no_local = options & 4 != 0;
    if no_local && group.is_some() {
        return Err(DecodeError::Protocol(
            "No Local on a shared subscription (MQTT-3.8.3-4)",
        ));
    }
    Ok(SubscribeFilter {
        text,
        filter,
        group,
        qos,
        no_local,
        retain_as_published: options & 8 != 0,
        retain_handling,
    })
}

impl<'a> Unsubscribe<'a> {
    /// The filters as they came; each was checked when the packet was decoded.
    pub fn filters(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.walk().filter_map(std::result::Result::ok)
    }

    fn walk(&self) -> impl Iterator<Item = Result<&'a str>> + use<'a> {
        let mut r = Reader(self.filters);
        std::iter::from_fn(move || {
            if r.0.is_empty() {
                return None;
            }
            let one = r.text().and_then(|text| {
                if shared(text)?.is_none() {
                    TopicFilter::new(text)?;
                }
                Ok(text)
            });
            if one.is_err() {
                r.0 = &[];
            }
            Some(one)
        })
    }
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
