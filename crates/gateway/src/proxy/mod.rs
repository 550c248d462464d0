//! Reads a PROXY protocol header, version 2 (the binary form; haproxy's `doc/proxy-protocol.txt`, section 2.2).
//!
//! No I/O. Only the address is taken from it: what a balancer says about TLS or certificates (PP2_TYPE_SSL) is skipped,
//! for identity is what a device proves to us. What is not understood is refused, never guessed: a header read wrongly
//! would charge one device's deeds to another's address.

mod crc32c;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The twelve bytes that every header of version 2 begins with. No TLS record and no MQTT packet does.
pub const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The header before its variable part: signature, version and command, family and protocol, length.
const FIXED_BYTES: usize = 16;
/// The shortest header that can be.
pub const PROXY_BYTES_MIN: usize = FIXED_BYTES;

const TLV_CRC32C: u8 = 0x03;

/// What the first bytes of a connection from a balancer are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// More bytes are needed.
    Incomplete,
    /// A whole header of `used` bytes.
    Complete {
        /// How many bytes it takes.
        used: usize,
        /// Where the connection really comes from. `None`: from the balancer itself (LOCAL, a health check).
        source: Option<SocketAddr>,
    },
    /// Nothing that may be believed, and why.
    Refused(&'static str),
}

/// Reads what there is of a header in `bytes`, which start with the connection's first byte. `bytes_max` bounds the
/// whole header.
pub fn read(bytes: &[u8], bytes_max: usize) -> Header {
    let known = bytes.len().min(SIGNATURE.len());
    if bytes[..known] != SIGNATURE[..known] {
        return Header::Refused(if bytes.starts_with(b"PROXY") || b"PROXY".starts_with(bytes) {
            "the header is of version 1, the text form; let the balancer send version 2 (send-proxy-v2)"
        } else {
            "the connection does not begin with a PROXY protocol header"
        });
    }
    let Some(fixed) = bytes.first_chunk::<FIXED_BYTES>() else {
        return Header::Incomplete;
    };
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    let used = FIXED_BYTES + length;
    if used > bytes_max {
        return Header::Refused("the header is larger than limits.proxy_header_bytes_max");
    }
    // Judged before the rest is waited for: what is refused anyway need not be sent.
    let command = match fixed[12] {
        0x20 => Command::Local,
        0x21 => Command::Proxy,
        b if b >> 4 != 2 => return Header::Refused("the header's version is not 2"),
        _ => return Header::Refused("the header's command is neither LOCAL nor PROXY"),
    };
    let addresses = match (command, fixed[13]) {
        // Section 2.2: with LOCAL the family and all addresses are to be ignored.
        (Command::Local, _) => 0,
        (Command::Proxy, 0x11) => 12,
        (Command::Proxy, 0x21) => 36,
        (Command::Proxy, 0x00) => {
            return Header::Refused("the header names no address (family UNSPEC with command PROXY)");
        }
        (Command::Proxy, _) => {
            return Header::Refused("the header's family is neither TCP over IPv4 nor IPv6");
        }
    };
    if length < addresses {
        return Header::Refused("the header is too short for its addresses");
    }
    let Some(whole) = bytes.get(..used) else {
        return Header::Incomplete;
    };
    let body = &whole[FIXED_BYTES..];
    let source = match command {
        // Its rest may be anything, also addresses of whatever family.
        Command::Local => return Header::Complete { used, source: None },
        Command::Proxy if addresses == 12 => source_v4(body),
        Command::Proxy => source_v6(body),
    };
    let Some(source) = source else {
        return Header::Refused("the header is too short for its addresses");
    };
    if source.ip().is_unspecified() || source.ip().is_multicast() {
        return Header::Refused("the address that the header names cannot be a device's");
    }
    match extensions(whole, FIXED_BYTES + addresses) {
        Ok(()) => Header::Complete {
            used,
            source: Some(source),
        },
        Err(what) => Header::Refused(what),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Command {
    Local,
    Proxy,
}

/// Source address, destination address, source port, destination port.
fn source_v4(body: &[u8]) -> Option<SocketAddr> {
    let address = Ipv4Addr::from(*body.first_chunk::<4>()?);
    let port = u16::from_be_bytes(*body.get(8..)?.first_chunk()?);
    Some(SocketAddr::new(IpAddr::V4(address), port))
}

fn source_v6(body: &[u8]) -> Option<SocketAddr> {
    let address = Ipv6Addr::from(*body.first_chunk::<16>()?);
    let port = u16::from_be_bytes(*body.get(32..)?.first_chunk()?);
    // An IPv4 device behind an IPv6 balancer has one address, not two.
    Some(SocketAddr::new(IpAddr::V6(address).to_canonical(), port))
}

/// Walks the extensions (TLV). All are skipped, but a checksum must hold if there is one.
fn extensions(whole: &[u8], mut at: usize) -> Result<(), &'static str> {
    let cut = "an extension of the header is cut off";
    let mut summed = false;
    while at < whole.len() {
        let head = whole.get(at..).and_then(<[u8]>::first_chunk::<3>).ok_or(cut)?;
        let length = usize::from(u16::from_be_bytes([head[1], head[2]]));
        let value_at = at + 3;
        let value = whole.get(value_at..value_at + length).ok_or(cut)?;
        if head[0] == TLV_CRC32C {
            let told: [u8; 4] = value
                .try_into()
                .map_err(|_| "the header's checksum has not four bytes")?;
            if std::mem::replace(&mut summed, true) {
                return Err("the header has two checksums");
            }
            // Section 2.2.4: over the whole header, the checksum itself taken for zero.
            let sum = crc32c::of(&[&whole[..value_at], &[0; 4], &whole[value_at + 4..]]);
            if sum != u32::from_be_bytes(told) {
                return Err("the header's checksum does not hold");
            }
        }
        at = value_at + length;
    }
    Ok(())
}
