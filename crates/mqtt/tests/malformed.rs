//! Every malformed packet is refused with the reason code the standard gives it, at every length it may be cut to.
#![allow(missing_docs, clippy::unwrap_used)]

use countersign_mqtt::client::{ClientPacket, Connect};
use countersign_mqtt::frame::{self, Frame};
use countersign_mqtt::{DecodeError, ReasonCode, Version};

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let mut n = body.len();
    loop {
        out.push((n & 0x7f) as u8 | if n > 0x7f { 0x80 } else { 0 });
        n >>= 7;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(body);
    out
}

fn frame(bytes: &[u8]) -> Frame<'_> {
    frame::next(bytes, 1 << 20).unwrap().expect("a whole packet")
}

fn after_connect(bytes: &[u8], version: Version) -> Result<(), DecodeError> {
    match frame::next(bytes, 1 << 20)? {
        Some(frame) => ClientPacket::decode(&frame, version).map(drop),
        None => panic!("the packet is not whole: {bytes:02x?}"),
    }
}

fn code(bytes: &[u8], version: Version) -> u8 {
    after_connect(bytes, version)
        .expect_err(&format!("{bytes:02x?} was accepted"))
        .reason()
        .0
}

/// `MQTT`, level, flags, keep-alive 60, then the rest.
fn connect(level: u8, flags: u8, rest: &[u8]) -> Vec<u8> {
    let mut body = b"\x00\x04MQTT".to_vec();
    body.extend([level, flags, 0, 60]);
    body.extend_from_slice(rest);
    packet(0x10, &body)
}

fn connect_code(bytes: &[u8]) -> u8 {
    Connect::decode(&frame(bytes))
        .expect_err(&format!("{bytes:02x?} was accepted"))
        .reason()
        .0
}

#[test]
fn lengths_and_types() {
    // 1: Remaining Length of more than four bytes; over the limit
    assert_eq!(
        frame::next(&[0x30, 0xff, 0xff, 0xff, 0xff, 1], 1 << 20)
            .unwrap_err()
            .reason()
            .0,
        0x81
    );
    let over = frame::next(&[0x30, 0xff, 0xff, 0xff, 0x7f], 1 << 20).unwrap_err();
    assert_eq!(over.reason(), ReasonCode::PACKET_TOO_LARGE);
    // 3: packet type 0; type 15 in 3.1.1
    assert_eq!(frame::next(&[0x00, 0], 100).unwrap_err().reason().0, 0x81);
    assert_eq!(code(&[0xf0, 0], Version::V311), 0x81);
    // 25: what only servers send
    for first in [0x20, 0x90, 0xb0, 0xd0] {
        assert_eq!(code(&packet(first, &[0, 1, 0]), Version::V5), 0x82, "{first:#x}");
    }
}

#[test]
fn reserved_flags_of_every_type() {
    // 2. PUBLISH has no reserved flags.
    for (kind, right) in [
        (1u8, 0u8),
        (4, 0),
        (5, 0),
        (6, 2),
        (7, 0),
        (8, 2),
        (10, 2),
        (12, 0),
        (14, 0),
    ] {
        for flags in (0..16).filter(|f| *f != right) {
            let bytes = packet(kind << 4 | flags, &[0, 1, 0, 0, 1, b'a', 0]);
            assert_eq!(code(&bytes, Version::V5), 0x81, "type {kind} flags {flags}");
        }
    }
}

#[test]
fn connect_packets() {
    let id = b"\x00\x01d";
    let v5 = |flags, rest: &[u8]| connect(5, flags, &[&b"\x00"[..], rest].concat());
    // 6: the reserved connect flag
    assert_eq!(connect_code(&v5(0x03, id)), 0x81);
    // 7: invalid UTF-8, U+0000
    assert_eq!(connect_code(&v5(0x02, b"\x00\x01\xff")), 0x81);
    assert_eq!(connect_code(&v5(0x02, b"\x00\x01\x00")), 0x81);
    // a surrogate half is no UTF-8
    assert_eq!(connect_code(&v5(0x02, b"\x00\x03\xed\xa0\x80")), 0x81);
    // 8: a field past the end; bytes after the end
    assert_eq!(connect_code(&v5(0x02, b"\x00\x09d")), 0x81);
    assert_eq!(connect_code(&v5(0x02, b"\x00\x01dX")), 0x81);
    // 12: will QoS or retain without a will; will QoS 3
    for flags in [0x0a, 0x12, 0x22, 0x1e] {
        assert_eq!(connect_code(&v5(flags, id)), 0x81, "{flags:#x}");
    }
    // 3.1.1: a password without a user name (MQTT-3.1.2-22)
    assert_eq!(connect_code(&connect(4, 0x42, b"\x00\x01d\x00\x01p")), 0x81);
    let property = |bytes: &[u8]| {
        let mut rest = vec![u8::try_from(bytes.len()).unwrap()];
        rest.extend_from_slice(bytes);
        rest.extend_from_slice(id);
        connect(5, 0x02, &rest)
    };
    // 9: not allowed here (Topic Alias); unknown
    assert_eq!(connect_code(&property(b"\x23\x00\x01")), 0x81);
    assert_eq!(connect_code(&property(b"\x7e\x00")), 0x81);
    // 10: twice
    assert_eq!(connect_code(&property(b"\x21\x00\x05\x21\x00\x06")), 0x82);
    // 11: out of range
    assert_eq!(
        connect_code(&property(b"\x21\x00\x00")),
        0x82,
        "receive maximum 0"
    );
    assert_eq!(
        connect_code(&property(b"\x27\x00\x00\x00\x00")),
        0x82,
        "maximum packet size 0"
    );
    assert_eq!(connect_code(&property(b"\x17\x02")), 0x82, "a boolean of 2");
    // 21: Authentication Data without Method
    assert_eq!(connect_code(&property(b"\x16\x00\x01x")), 0x82);
    // A level that is not served, a name that is not MQTT
    assert_eq!(
        Connect::decode(&frame(&connect(6, 2, id))),
        Err(DecodeError::ProtocolLevel(6))
    );
    let mut other = connect(4, 2, id);
    other[7] = b'X';
    assert_eq!(Connect::decode(&frame(&other)), Err(DecodeError::ProtocolName));
    // 4: another packet first
    assert_eq!(Connect::decode(&frame(&[0xc0, 0])), Ok(None));
    assert!(
        Connect::decode(&frame(&property(b"\x21\x00\x05\x27\x00\x00\x10\x00")))
            .unwrap()
            .is_some()
    );
}

#[test]
fn publish_packets() {
    let publish = |first: u8, rest: &[u8]| packet(first, &[&b"\x00\x01t"[..], rest].concat());
    // 13: QoS 3; DUP with QoS 0
    assert_eq!(code(&publish(0x36, b"\x00\x01\x00"), Version::V5), 0x81);
    assert_eq!(code(&publish(0x38, b"\x00"), Version::V5), 0x81);
    // 14: wildcards in a topic name
    for topic in [&b"\x00\x01+"[..], b"\x00\x01#", b"\x00\x03a/#"] {
        assert_eq!(code(&packet(0x30, &[topic, b"\x00"].concat()), Version::V5), 0x90);
    }
    // 15: no topic and no alias; alias 0
    assert_eq!(code(&packet(0x30, b"\x00\x00\x00"), Version::V5), 0x82);
    assert_eq!(
        code(&packet(0x30, b"\x00\x00\x03\x23\x00\x00"), Version::V5),
        0x94
    );
    assert_eq!(code(&packet(0x30, b"\x00\x00"), Version::V311), 0x90);
    // 19: packet identifier 0
    assert_eq!(code(&publish(0x32, b"\x00\x00\x00"), Version::V5), 0x82);
    // 20: Response Topic with a wildcard
    assert_eq!(code(&publish(0x30, b"\x04\x08\x00\x01#"), Version::V5), 0x82);
    // 26: a client sends a Subscription Identifier; it is 0
    assert_eq!(code(&publish(0x30, b"\x02\x0b\x01"), Version::V5), 0x82);
    assert_eq!(code(&publish(0x30, b"\x02\x0b\x00"), Version::V5), 0x82);
    // 11: Payload Format Indicator 2
    assert_eq!(code(&publish(0x30, b"\x02\x01\x02"), Version::V5), 0x82);
}

#[test]
fn subscribe_and_unsubscribe_packets() {
    let subscribe = |rest: &[u8]| packet(0x82, &[&b"\x00\x01\x00"[..], rest].concat());
    let unsubscribe = |rest: &[u8]| packet(0xa2, &[&b"\x00\x01\x00"[..], rest].concat());
    // 16: no filter
    assert_eq!(code(&subscribe(b""), Version::V5), 0x82);
    assert_eq!(code(&unsubscribe(b""), Version::V5), 0x82);
    // 17: reserved options, QoS 3, Retain Handling 3
    for options in [0x40, 0x80, 0x03] {
        assert_eq!(
            code(&subscribe(&[0, 1, b't', options]), Version::V5),
            0x81,
            "{options:#x}"
        );
    }
    assert_eq!(code(&subscribe(&[0, 1, b't', 0x30]), Version::V5), 0x82);
    assert_eq!(code(&packet(0x82, b"\x00\x01\x00\x01t\x04"), Version::V311), 0x81);
    // 18: No Local on a shared subscription
    assert_eq!(code(&subscribe(b"\x00\x0a$share/g/t\x04"), Version::V5), 0x82);
    // filters that are none
    for filter in [&b"\x00\x02a+"[..], b"\x00\x02#/", b"\x00\x03a#b", b"\x00\x00"] {
        assert_eq!(
            code(&subscribe(&[filter, &[0]].concat()), Version::V5),
            0x8f,
            "{filter:02x?}"
        );
        assert_eq!(code(&unsubscribe(filter), Version::V5), 0x8f, "{filter:02x?}");
    }
    // 19: packet identifier 0
    assert_eq!(
        code(&packet(0x82, b"\x00\x00\x00\x00\x01t\x00"), Version::V5),
        0x82
    );
    assert_eq!(code(&packet(0xa2, b"\x00\x00\x00\x00\x01t"), Version::V5), 0x82);
    assert_eq!(code(&packet(0x40, b"\x00\x00"), Version::V5), 0x82);
    // 26: Subscription Identifier 0
    assert_eq!(
        code(&packet(0x82, b"\x00\x01\x02\x0b\x00\x00\x01t\x00"), Version::V5),
        0x82
    );
}

/// Whatever is cut off, nothing is accepted that was not all there, and nothing panics.
#[test]
fn every_truncation_is_refused() {
    let whole: [(Vec<u8>, Version); 6] = [
        (
            packet(0x32, b"\x00\x03a/b\x00\x07\x05\x02\x00\x00\x00\x09payload"),
            Version::V5,
        ),
        (
            packet(0x82, b"\x00\x01\x02\x0b\x05\x00\x03a/+\x01\x00\x01#\x00"),
            Version::V5,
        ),
        (packet(0xa2, b"\x00\x01\x00\x00\x03a/b"), Version::V5),
        (packet(0xe0, b"\x00\x05\x11\x00\x00\x00\x00"), Version::V5),
        (packet(0x62, b"\x00\x01\x92\x03\x1f\x00\x00"), Version::V5),
        (
            packet(0x82, b"\x00\x01\x00\x03a/+\x01\x00\x01#\x00"),
            Version::V311,
        ),
    ];
    for (bytes, version) in whole {
        after_connect(&bytes, version).unwrap();
        for end in 0..bytes.len() {
            assert_eq!(frame::next(&bytes[..end], 1 << 20), Ok(None), "{end}");
        }
        // The same content with a smaller Remaining Length: shorter by each amount.
        let body = &bytes[2..];
        for end in 0..body.len() {
            let cut = packet(bytes[0], &body[..end]);
            if let Ok(frame) = frame::next(&cut, 1 << 20).map(Option::unwrap) {
                // A PUBLISH may end anywhere in its payload, and lists after any entry; the rest is refused.
                let _ = ClientPacket::decode(&frame, version);
            }
        }
    }
    let whole = connect(
        5,
        0xc6,
        b"\x05\x11\x00\x00\x00\x09\x00\x01d\x00\x00\x01t\x00\x01m\x00\x01u\x00\x01p",
    );
    assert!(Connect::decode(&frame(&whole)).unwrap().is_some());
    for end in 0..whole.len() - 2 {
        let cut = packet(0x10, &whole[2..2 + end]);
        assert!(Connect::decode(&frame(&cut)).is_err(), "{end}");
    }
}
