use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;

const MAX: usize = 1024;

/// A header: version and command, family, body.
fn header(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    bytes.extend([command, family]);
    bytes.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    bytes.extend(body);
    bytes
}

fn addresses(source: SocketAddr) -> Vec<u8> {
    match source {
        SocketAddr::V4(s) => {
            let mut body = s.ip().octets().to_vec();
            body.extend([192, 0, 2, 9]);
            body.extend(s.port().to_be_bytes());
            body.extend(8883u16.to_be_bytes());
            body
        }
        SocketAddr::V6(s) => {
            let mut body = s.ip().octets().to_vec();
            body.extend([0xfd; 16]);
            body.extend(s.port().to_be_bytes());
            body.extend(8883u16.to_be_bytes());
            body
        }
    }
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
    bytes.extend(value);
    bytes
}

/// A TCP header of `source` with these extensions behind the addresses.
fn of(source: &str, extensions: &[u8]) -> Vec<u8> {
    let source: SocketAddr = source.parse().unwrap();
    let family = if source.is_ipv4() { 0x11 } else { 0x21 };
    let mut body = addresses(source);
    body.extend(extensions);
    header(0x21, family, &body)
}

/// The same with a checksum behind all else, made right.
fn summed(source: &str, extensions: &[u8]) -> Vec<u8> {
    let mut all = extensions.to_vec();
    all.extend(tlv(TLV_CRC32C, &[0; 4]));
    let mut bytes = of(source, &all);
    let sum = crc32c::of(&[&bytes]);
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&sum.to_be_bytes());
    bytes
}

#[test]
fn names_the_source_and_leaves_what_follows() {
    for (bytes, source) in [
        (of("198.51.100.7:4711", &[]), Some("198.51.100.7:4711")),
        (of("[2001:db8::7]:4711", &[]), Some("[2001:db8::7]:4711")),
        (of("[::ffff:198.51.100.7]:1", &[]), Some("198.51.100.7:1")),
        // ALPN, SSL with whatever it claims, padding: skipped.
        (
            of(
                "198.51.100.7:1",
                &[tlv(0x01, b"mqtt"), tlv(0x20, &[7; 40]), tlv(0x04, &[0; 9])].concat(),
            ),
            Some("198.51.100.7:1"),
        ),
        (
            summed("198.51.100.7:1", &tlv(0x05, b"id")),
            Some("198.51.100.7:1"),
        ),
        (summed("[2001:db8::7]:1", &[]), Some("[2001:db8::7]:1")),
        (header(0x20, 0x00, &[]), None),
        // LOCAL: whatever else it says is ignored, its length is not.
        (header(0x20, 0x11, &[1; 3]), None),
        (header(0x20, 0xff, &[1; 300]), None),
    ] {
        for cut in 0..bytes.len() {
            assert_eq!(read(&bytes[..cut], MAX), Header::Incomplete, "{cut}");
        }
        let mut with_hello = bytes.clone();
        with_hello.extend([22, 3, 1]);
        let expected = Header::Complete {
            used: bytes.len(),
            source: source.map(|s| s.parse().unwrap()),
        };
        assert_eq!(read(&with_hello, MAX), expected);
    }
}

#[test]
fn every_malformed_form_is_refused() {
    let check = |bytes: &[u8], part: &str| match read(bytes, MAX) {
        Header::Refused(what) => assert!(what.contains(part), "{what}: not {part}"),
        other => panic!("{part}: {other:?}"),
    };
    check(b"PROXY TCP4 198.51.100.7 192.0.2.9 4711 8883\r\n", "version 1");
    check(b"PRO", "version 1");
    check(&[22, 3, 1, 0, 100], "does not begin");
    check(b"\r\n\r\n\0\r\nQUIt\n", "does not begin");
    check(&header(0x11, 0x11, &[1; 12]), "version is not 2");
    check(&header(0x31, 0x11, &[1; 12]), "version is not 2");
    check(&header(0x22, 0x11, &[1; 12]), "neither LOCAL nor PROXY");
    check(&header(0x2f, 0x11, &[1; 12]), "neither LOCAL nor PROXY");
    check(&header(0x21, 0x00, &[]), "names no address");
    // UDP, UNIX, and what is no family at all.
    for family in [0x12, 0x22, 0x31, 0x32, 0x10, 0x13, 0x20, 0x41, 0xff] {
        check(&header(0x21, family, &[1; 216]), "family");
    }
    check(&header(0x21, 0x11, &[1; 11]), "too short");
    check(&header(0x21, 0x21, &[1; 35]), "too short");
    check(&of("0.0.0.0:1", &[]), "cannot be a device's");
    check(&of("224.0.0.1:1", &[]), "cannot be a device's");
    check(&of("[::]:1", &[]), "cannot be a device's");
    check(&of("[ff02::1]:1", &[]), "cannot be a device's");
    check(&of("198.51.100.7:1", &[1]), "cut off");
    check(&of("198.51.100.7:1", &[1, 0]), "cut off");
    check(&of("198.51.100.7:1", &[1, 0, 2, 9]), "cut off");
    check(&of("198.51.100.7:1", &tlv(TLV_CRC32C, &[0; 3])), "four bytes");
    check(&of("198.51.100.7:1", &tlv(TLV_CRC32C, &[0; 4])), "does not hold");
    let twice = summed("198.51.100.7:1", &tlv(TLV_CRC32C, &[0; 4]));
    assert!(matches!(read(&twice, MAX), Header::Refused(_)));
    check(&header(0x20, 0, &[0; MAX - 15]), "larger than");
}

#[test]
fn a_lie_about_the_length_is_refused_before_it_is_waited_for() {
    let mut bytes = of("198.51.100.7:1", &[]);
    bytes[14] = 0xff;
    assert!(matches!(read(&bytes, MAX), Header::Refused(_)));
    // Even before any byte of the body came.
    assert!(matches!(
        read(&header(0x21, 0x11, &[])[..16], MAX),
        Header::Refused(_)
    ));
}

proptest! {
    #[test]
    fn whatever_comes_never_panics_and_is_bounded(bytes in proptest::collection::vec(any::<u8>(), 0..200), signed: bool) {
        let bytes = if signed { [&SIGNATURE[..], &bytes].concat() } else { bytes };
        if let Header::Complete { used, .. } = read(&bytes, 128) {
            prop_assert!(used <= bytes.len() && used <= 128);
        }
    }

    #[test]
    fn one_flipped_bit_is_seen_by_the_checksum(bit in 0usize..(16 + 12 + 5 + 7) * 8) {
        let mut bytes = summed("198.51.100.7:4711", &tlv(0x05, b"id"));
        prop_assert_eq!(bytes.len(), 16 + 12 + 5 + 7);
        bytes[bit / 8] ^= 1 << (bit % 8);
        // A changed command or length makes another header of it, or one that is not whole; never another source.
        match read(&bytes, MAX) {
            Header::Complete { source: Some(source), .. } => prop_assert!(
                // Flips in the checksum's own head make it another extension: then nothing vouches, and nothing changed.
                source == "198.51.100.7:4711".parse().unwrap(),
                "{source}"
            ),
            Header::Complete { source: None, .. } | Header::Incomplete | Header::Refused(_) => {}
        }
    }

    #[test]
    fn addresses_come_through(v4: bool, octets: [u8; 16], port: u16, junk in proptest::collection::vec(any::<u8>(), 0..40)) {
        let source = if v4 {
            SocketAddr::from(([octets[0], octets[1], octets[2], octets[3]], port))
        } else {
            SocketAddr::from((octets, port))
        };
        let bytes = of(&source.to_string(), &tlv(0xe0, &junk));
        let canonical = SocketAddr::new(source.ip().to_canonical(), port);
        match read(&bytes, MAX) {
            Header::Complete { used, source: Some(read) } => {
                prop_assert_eq!((used, read), (bytes.len(), canonical));
            }
            Header::Refused(_) => prop_assert!(canonical.ip().is_unspecified() || canonical.ip().is_multicast()),
            other => prop_assert!(false, "{:?}", other),
        }
    }
}
