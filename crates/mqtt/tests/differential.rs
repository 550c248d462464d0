//! Against another implementation: what we accept, it must read the same way; and nothing makes us panic.
#![allow(missing_docs, clippy::unwrap_used)]

use bytes::BytesMut;
use countersign_mqtt::client::{ClientPacket, Connect, Publish, Subscribe};
use countersign_mqtt::properties::Properties;
use countersign_mqtt::topic::TopicName;
use countersign_mqtt::{PacketId, QoS, Version, frame};
use proptest::prelude::*;
use rmqtt_codec::{v3, v5};
use tokio_util::codec::Decoder;

fn v3_decode(bytes: &[u8]) -> Option<v3::Packet> {
    v3::Codec::new(1 << 20)
        .decode(&mut BytesMut::from(bytes))
        .ok()
        .flatten()
        .map(|(p, _)| p)
}

fn v5_decode(bytes: &[u8]) -> Option<v5::Packet> {
    v5::Codec::new(1 << 20, 0)
        .decode(&mut BytesMut::from(bytes))
        .ok()
        .flatten()
        .map(|(p, _)| p)
}

fn topic() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9 _$.é-]{1,8}(/[a-z0-9]{0,4}){0,4}"
}

/// Encodes a publish or subscribe as a client would.
fn valid(version: Version) -> impl Strategy<Value = Vec<u8>> {
    (topic(), any::<Vec<u8>>(), 0u8..2, 1u16.., any::<bool>()).prop_map(
        move |(topic, payload, qos, id, publish)| {
            let mut out = Vec::new();
            let id = PacketId::new(id).unwrap();
            if publish {
                Publish {
                    dup: false,
                    qos: QoS::from_bits(qos).unwrap(),
                    retain: false,
                    topic: Some(TopicName::new(&topic).unwrap()),
                    packet_id: (qos > 0).then_some(id),
                    properties: Properties::default(),
                    payload: &payload,
                }
                .encode(version, &mut out);
            } else {
                Subscribe::encode(id, &topic, QoS::from_bits(qos).unwrap(), version, &mut out);
            }
            out
        },
    )
}

/// A valid packet, then a few bytes changed: the interesting neighbourhood.
fn mutated(version: Version) -> impl Strategy<Value = Vec<u8>> {
    (
        valid(version),
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    )
        .prop_map(|(mut bytes, changes)| {
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            bytes
        })
}

/// What both say of a packet that we accepted. `Ok` also where the other is looser or knows less than we do.
fn agree(bytes: &[u8], version: Version) -> Result<(), TestCaseError> {
    let Ok(Some(frame)) = frame::next(bytes, 1 << 20) else {
        return Ok(());
    };
    let Ok(ours) = ClientPacket::decode(&frame, version) else {
        return Ok(());
    };
    match (ours, version) {
        (ClientPacket::Publish(ours), Version::V311) => {
            let Some(v3::Packet::Publish(theirs)) = v3_decode(frame.raw) else {
                return Err(TestCaseError::fail(format!("only we accept {bytes:02x?}")));
            };
            prop_assert_eq!(ours.topic.unwrap().as_str(), &*theirs.topic);
            prop_assert_eq!(ours.payload, &*theirs.payload);
            prop_assert_eq!(ours.qos as u8, theirs.qos as u8);
            prop_assert_eq!((ours.retain, ours.dup), (theirs.retain, theirs.dup));
            prop_assert_eq!(ours.packet_id, theirs.packet_id);
        }
        (ClientPacket::Publish(ours), Version::V5) => {
            // rmqtt-codec refuses a Message Expiry Interval of 0, which section 3.3.2.3.3 does not.
            if ours.properties.message_expiry_s == Some(0) {
                return Ok(());
            }
            let Some(v5::Packet::Publish(theirs)) = v5_decode(frame.raw) else {
                return Err(TestCaseError::fail(format!("only we accept {bytes:02x?}")));
            };
            prop_assert_eq!(ours.topic.map_or("", |t| t.as_str()), &*theirs.topic);
            prop_assert_eq!(ours.payload, &*theirs.payload);
            prop_assert_eq!(ours.packet_id, theirs.packet_id);
            let properties = theirs.properties.as_ref();
            prop_assert_eq!(
                ours.properties.topic_alias,
                properties
                    .and_then(|p| p.topic_alias)
                    .map(std::num::NonZeroU16::get)
            );
        }
        (ClientPacket::Subscribe(ours), Version::V311) => {
            let Some(v3::Packet::Subscribe {
                packet_id,
                topic_filters,
            }) = v3_decode(frame.raw)
            else {
                return Err(TestCaseError::fail(format!("only we accept {bytes:02x?}")));
            };
            prop_assert_eq!(ours.packet_id, packet_id);
            let ours: Vec<_> = ours.filters().map(|f| (f.text.to_owned(), f.qos as u8)).collect();
            let theirs: Vec<_> = topic_filters
                .iter()
                .map(|(t, q)| (t.to_string(), *q as u8))
                .collect();
            prop_assert_eq!(ours, theirs);
        }
        (ClientPacket::Subscribe(ours), Version::V5) => {
            let Some(v5::Packet::Subscribe(theirs)) = v5_decode(frame.raw) else {
                return Err(TestCaseError::fail(format!("only we accept {bytes:02x?}")));
            };
            let ours: Vec<_> = ours
                .filters()
                .map(|f| (f.text.to_owned(), f.qos as u8, f.no_local))
                .collect();
            let theirs: Vec<_> = theirs
                .topic_filters
                .iter()
                .map(|(t, o)| (t.to_string(), o.qos as u8, o.no_local))
                .collect();
            prop_assert_eq!(ours, theirs);
        }
        _ => {}
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn what_we_accept_in_311_the_other_reads_the_same(bytes in mutated(Version::V311)) {
        agree(&bytes, Version::V311)?;
    }

    #[test]
    fn what_we_accept_in_5_the_other_reads_the_same(bytes in mutated(Version::V5)) {
        agree(&bytes, Version::V5)?;
    }

    #[test]
    fn what_we_encode_we_read_back(bytes in valid(Version::V5)) {
        let frame = frame::next(&bytes, 1 << 20).unwrap().unwrap();
        prop_assert!(ClientPacket::decode(&frame, Version::V5).is_ok());
        prop_assert_eq!(frame.raw.len(), bytes.len());
    }

    #[test]
    fn nothing_panics(bytes in any::<Vec<u8>>()) {
        if let Ok(Some(frame)) = frame::next(&bytes, 1 << 20) {
            let _ = Connect::decode(&frame);
            let _ = ClientPacket::decode(&frame, Version::V311);
            let _ = ClientPacket::decode(&frame, Version::V5);
            let _ = countersign_mqtt::server::ServerPacket::decode(&frame, Version::V5);
        }
    }
}
