//! Reads a ClientHello (RFC 9846 section 4.2.2) from a copy of the connection's first bytes.
//!
//! rustls' buffer-free server connection has no step between the ClientHello and the choice of a configuration, so
//! what admission needs beforehand is read here. The same bytes then go to rustls, which judges them on its own: this
//! reader decides nothing about the protocol but the server name, and never trusts a length.

use crate::proxy::SIGNATURE;

/// The most bytes that a ClientHello may have before it is complete. A post-quantum hello has about 1.8 KB.
pub const HELLO_BYTES_MAX: usize = 16 * 1024;

const RECORD_HANDSHAKE: u8 = 22;
const HANDSHAKE_CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;
const EXTENSION_SESSION_TICKET: u16 = 35;
const EXTENSION_PRE_SHARED_KEY: u16 = 41;
const EXTENSION_SUPPORTED_VERSIONS: u16 = 43;

/// What a ClientHello says, as far as admission and ledger use it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientHello {
    /// The host name the client asked for (SNI), lower case. `None` if it sent none, as with an IP address.
    pub server_name: Option<String>,
    /// The application protocols it offers, in order; bytes that are not text are shown escaped.
    pub alpn: Vec<String>,
    /// Whether it offers TLS 1.3 or, by its legacy version, TLS 1.2.
    pub offers: OfferedVersions,
    /// The first ticket that it offers to be resumed by, as bytes of whatever kind.
    pub ticket: Option<Box<[u8]>>,
}

/// The TLS versions a ClientHello offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OfferedVersions {
    /// TLS 1.3 is in supported_versions.
    pub tls13: bool,
    /// TLS 1.2 is in supported_versions, or there is no such list and the legacy version is 1.2 or more.
    pub tls12: bool,
}

/// What the first bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// More bytes are needed.
    Incomplete,
    /// A whole ClientHello.
    Complete(ClientHello),
    /// An MQTT CONNECT without TLS.
    PlaintextMqtt,
    /// Not TLS, or nothing that a TLS client sends first.
    NotTls(&'static str),
}

/// Reads what there is of a ClientHello in `bytes`, which start with the connection's first byte.
pub fn read(bytes: &[u8]) -> Hello {
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        let Some((&kind, after)) = rest.split_first() else {
            return Hello::Incomplete;
        };
        if kind != RECORD_HANDSHAKE {
            // 0x10 is the first byte of an MQTT CONNECT (MQTT 3.1).
            return if kind == 0x10 && message.is_empty() {
                Hello::PlaintextMqtt
            } else if message.is_empty()
                && (bytes.starts_with(&SIGNATURE[..4]) || bytes.starts_with(b"PROXY "))
            {
                Hello::NotTls(
                    "the peer sent a PROXY protocol header; hint: if it is your balancer, name it in proxy_from of [[listeners]]",
                )
            } else {
                Hello::NotTls("the first record is no TLS handshake record")
            };
        }
        let Some((header, body)) = after.split_at_checked(4) else {
            return Hello::Incomplete;
        };
        if header[0] != 3 {
            return Hello::NotTls("the record's version is no TLS version");
        }
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        // RFC 9846 section 5.1: a plaintext record has at most 2^14 bytes, and a handshake record at least one.
        if length == 0 || length > 1 << 14 {
            return Hello::NotTls("the record's length is out of range");
        }
        let part = body.get(..length).unwrap_or(body);
        message.extend_from_slice(part);
        if let Some(result) = message_read(&message) {
            return result;
        }
        if part.len() < length {
            return Hello::Incomplete;
        }
        rest = &body[length..];
    }
}

/// `None` while the handshake message is not complete.
fn message_read(message: &[u8]) -> Option<Hello> {
    let kind = *message.first()?;
    if kind != HANDSHAKE_CLIENT_HELLO {
        return Some(Hello::NotTls("the first handshake message is no ClientHello"));
    }
    let length = message.get(1..4)?;
    let length = usize::from(length[0]) << 16 | usize::from(length[1]) << 8 | usize::from(length[2]);
    if length > HELLO_BYTES_MAX {
        return Some(Hello::NotTls("the ClientHello is larger than any"));
    }
    let body = message.get(4..4 + length)?;
    Some(body_read(body).map_or(Hello::NotTls("the ClientHello cannot be read"), Hello::Complete))
}

fn body_read(body: &[u8]) -> Option<ClientHello> {
    let mut r = Reader(body);
    let legacy_version = r.u16()?;
    r.take(32)?;
    let session_id = usize::from(r.u8()?);
    r.take(session_id)?;
    let suites = usize::from(r.u16()?);
    r.take(suites)?;
    let compression = usize::from(r.u8()?);
    r.take(compression)?;
    let mut hello = ClientHello::default();
    hello.offers.tls12 = legacy_version >= 0x0303;
    if r.0.is_empty() {
        return Some(hello);
    }
    let length = usize::from(r.u16()?);
    let mut extensions = Reader(r.take(length)?);
    if !r.0.is_empty() {
        return None;
    }
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let length = usize::from(extensions.u16()?);
        let mut data = Reader(extensions.take(length)?);
        match kind {
            EXTENSION_SERVER_NAME => hello.server_name = server_name(&mut data)?,
            EXTENSION_ALPN => hello.alpn = alpn(&mut data)?,
            // RFC 5077 section 3.2: the ticket itself; empty asks for one.
            EXTENSION_SESSION_TICKET if hello.ticket.is_none() && !data.0.is_empty() => {
                hello.ticket = Some(data.0.into());
            }
            // What is wrong with it is for the library to say.
            EXTENSION_PRE_SHARED_KEY => hello.ticket = first_identity(&mut data).map(Into::into),
            EXTENSION_SUPPORTED_VERSIONS => {
                let length = usize::from(data.u8()?);
                let list = data.take(length)?;
                let has = |v: u16| list.chunks_exact(2).any(|c| c == v.to_be_bytes());
                hello.offers = OfferedVersions {
                    tls13: has(0x0304),
                    tls12: has(0x0303),
                };
            }
            _ => {}
        }
    }
    Some(hello)
}

/// RFC 6066 section 3: a list with at most one name of type host_name.
fn server_name(data: &mut Reader<'_>) -> Option<Option<String>> {
    let length = usize::from(data.u16()?);
    let mut list = Reader(data.take(length)?);
    while !list.0.is_empty() {
        let kind = list.u8()?;
        let length = usize::from(list.u16()?);
        let name = list.take(length)?;
        if kind == 0 {
            let name = std::str::from_utf8(name).ok()?;
            return Some(Some(name.trim_end_matches('.').to_ascii_lowercase()));
        }
    }
    Some(None)
}

/// RFC 7301 section 3.1.
fn alpn(data: &mut Reader<'_>) -> Option<Vec<String>> {
    let length = usize::from(data.u16()?);
    let mut list = Reader(data.take(length)?);
    let mut names = Vec::new();
    while !list.0.is_empty() {
        let length = usize::from(list.u8()?);
        names.push(list.take(length)?.escape_ascii().to_string());
    }
    Some(names)
}

/// RFC 9846 section 4.3.11: identities, each with its age; then binders, which are not read here.
fn first_identity<'a>(data: &mut Reader<'a>) -> Option<&'a [u8]> {
    let length = usize::from(data.u16()?);
    let mut identities = Reader(data.take(length)?);
    let length = usize::from(identities.u16()?);
    identities.take(length)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }
    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }
    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
        let mut v = kind.to_be_bytes().to_vec();
        v.extend_from_slice(&u16::try_from(data.len()).unwrap().to_be_bytes());
        v.extend_from_slice(data);
        v
    }

    fn hello() -> Vec<u8> {
        let mut ext = extension(0, b"\0\x0c\0\0\x09Gate.Test");
        ext.extend(extension(16, b"\0\x05\x04mqtt"));
        ext.extend(extension(43, b"\x04\x03\x04\x03\x03"));
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.push(0);
        body.extend([0, 2, 0x13, 0x01, 1, 0]);
        body.extend(u16::try_from(ext.len()).unwrap().to_be_bytes());
        body.extend(ext);
        let mut message = vec![1, 0];
        message.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        message.extend(body);
        message
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message
            .chunks(size)
            .flat_map(|c| {
                let mut r = vec![22, 3, 1];
                r.extend(u16::try_from(c.len()).unwrap().to_be_bytes());
                r.extend_from_slice(c);
                r
            })
            .collect()
    }

    #[test]
    fn reads_name_protocols_and_versions_however_it_is_cut() {
        for size in [1, 3, 50, 1000] {
            let bytes = records(&hello(), size);
            for end in 0..bytes.len() {
                assert_eq!(read(&bytes[..end]), Hello::Incomplete, "{size} {end}");
            }
            assert_eq!(
                read(&bytes),
                Hello::Complete(ClientHello {
                    server_name: Some("gate.test".into()),
                    alpn: vec!["mqtt".into()],
                    offers: OfferedVersions {
                        tls13: true,
                        tls12: true
                    },
                    ticket: None,
                })
            );
        }
    }

    #[test]
    fn tells_plaintext_and_noise_apart() {
        assert_eq!(read(&[0x10, 12, 0, 4]), Hello::PlaintextMqtt);
        assert!(matches!(read(b"GET / HTTP/1.1"), Hello::NotTls(_)));
        for header in [&SIGNATURE[..], b"PROXY TCP4 198.51.100.7"] {
            let told = read(header);
            assert!(
                matches!(told, Hello::NotTls(what) if what.contains("proxy_from")),
                "{told:?}"
            );
        }
        assert!(matches!(read(&[22, 3, 1, 0xff, 0xff]), Hello::NotTls(_)));
        assert!(matches!(read(&[22, 3, 1, 0, 4, 2, 0, 0, 0]), Hello::NotTls(_)));
    }

    #[test]
    fn a_length_that_lies_is_refused() {
        let mut message = hello();
        let at = message.len() - 6;
        message[at] = 0xff;
        assert!(matches!(read(&records(&message, 1000)), Hello::NotTls(_)));
    }
}
