//! Packets from an admitted device; what we accept, another codec reads the same way.
#![no_main]
use bytes::BytesMut;
use countersign_mqtt::client::{ClientPacket, Connect};
use countersign_mqtt::server::ServerPacket;
use countersign_mqtt::{Version, frame};
use libfuzzer_sys::fuzz_target;
use rmqtt_codec::v3;
use tokio_util::codec::Decoder;

fuzz_target!(|data: &[u8]| {
    let Ok(Some(frame)) = frame::next(data, 1 << 20) else { return };
    let _ = Connect::decode(&frame);
    let _ = ServerPacket::decode(&frame, Version::V5);
    let _ = ClientPacket::decode(&frame, Version::V5);
    let Ok(ours) = ClientPacket::decode(&frame, Version::V311) else { return };
    let theirs = v3::Codec::new(1 << 20).decode(&mut BytesMut::from(frame.raw));
    match (ours, theirs) {
        (ClientPacket::Publish(ours), Ok(Some((v3::Packet::Publish(theirs), _)))) => {
            assert_eq!(ours.topic.map(|t| t.as_str()), Some(&*theirs.topic));
            assert_eq!(ours.payload, &*theirs.payload);
            assert_eq!(ours.packet_id, theirs.packet_id);
        }
        (ClientPacket::Subscribe(ours), Ok(Some((v3::Packet::Subscribe { topic_filters, .. }, _)))) => {
            assert!(ours.filters().map(|f| f.text).eq(topic_filters.iter().map(|(t, _)| &**t)));
        }
        (ClientPacket::Publish(_) | ClientPacket::Subscribe(_), other) => panic!("only we accept {data:02x?}: {other:?}"),
        _ => {}
    }
});
