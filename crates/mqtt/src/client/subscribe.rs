//! SUBSCRIBE and UNSUBSCRIBE (sections 3.8 and 3.10).

use super::{Result, flags, packet_id, properties};
use crate::error::DecodeError;
use crate::frame::Frame;
use crate::properties::{Properties, place};
use crate::topic::{TopicFilter, shared};
use crate::wire::{Reader, put_binary, put_packet};
use crate::{PacketId, QoS, Version};

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

impl<'a> Subscribe<'a> {
    pub(super) fn decode(frame: &Frame<'a>, version: Version) -> Result<Self> {
        let mut r = Reader(frame.body);
        flags(frame, 2)?;
        let packet_id = packet_id(&mut r)?;
        let properties = properties(&mut r, version, place::SUBSCRIBE)?;
        let subscribe = Self {
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
        Ok(subscribe)
    }

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
    pub(super) fn decode(frame: &Frame<'a>, version: Version) -> Result<Self> {
        let mut r = Reader(frame.body);
        flags(frame, 2)?;
        let packet_id = packet_id(&mut r)?;
        properties(&mut r, version, place::UNSUBSCRIBE)?;
        let unsubscribe = Self {
            packet_id,
            filters: r.0,
        };
        if r.0.is_empty() {
            return Err(DecodeError::Protocol(
                "UNSUBSCRIBE without a filter (MQTT-3.10.3-2)",
            ));
        }
        unsubscribe.walk().try_for_each(|f| f.map(drop))?;
        Ok(unsubscribe)
    }

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
