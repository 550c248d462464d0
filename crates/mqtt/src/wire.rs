//! The primitive fields (section 1.5): integers, strings, binary data, variable byte integers.

use crate::error::DecodeError;

type Result<T> = std::result::Result<T, DecodeError>;

const SHORT: DecodeError = DecodeError::Malformed("a field runs past the packet's end");

/// Reads fields from the front of a slice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(SHORT)?;
        self.0 = tail;
        Ok(head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8> {
        self.take(1).map(|b| b[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        self.take(4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
    }

    /// Binary data (section 1.5.6).
    pub(crate) fn binary(&mut self) -> Result<&'a [u8]> {
        let length = usize::from(self.u16()?);
        self.take(length)
    }

    /// A UTF-8 string (section 1.5.4), without U+0000 (MQTT-1.5.4-2), control characters or non-characters, which a
    /// receiver may treat as malformed, and we do.
    pub(crate) fn text(&mut self) -> Result<&'a str> {
        let bytes = self.binary()?;
        let text = std::str::from_utf8(bytes)
            .map_err(|_| DecodeError::Malformed("a string is not well-formed UTF-8 (MQTT-1.5.4-1)"))?;
        if has_forbidden(text) {
            return Err(DecodeError::Malformed(
                "a string has U+0000 or a control character (MQTT-1.5.4-2)",
            ));
        }
        Ok(text)
    }

    /// A variable byte integer (section 1.5.5), in the fewest bytes (MQTT-1.5.5-1).
    pub(crate) fn variable(&mut self) -> Result<u32> {
        match variable(self.0)? {
            Some((value, used)) => {
                self.0 = &self.0[used..];
                Ok(value)
            }
            None => Err(SHORT),
        }
    }

    pub(crate) fn end(self) -> Result<()> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::Malformed("bytes follow after the last field"))
        }
    }
}

/// Whether a string has characters that no MQTT string here may have.
pub(crate) fn has_forbidden(text: &str) -> bool {
    // Nearly all topics and ids are printable ASCII: one pass over the bytes decides.
    if text.bytes().all(|b| (0x20..0x7f).contains(&b)) {
        return false;
    }
    text.chars().any(|c| {
        let n = c as u32;
        c.is_control() || (0xfdd0..=0xfdef).contains(&n) || n & 0xfffe == 0xfffe
    })
}

/// Reads a variable byte integer; `None` if more bytes are needed. Gives value and bytes used.
pub(crate) fn variable(bytes: &[u8]) -> Result<Option<(u32, usize)>> {
    let mut value = 0;
    for (n, byte) in bytes.iter().take(4).enumerate() {
        value |= u32::from(byte & 0x7f) << (7 * n);
        if byte & 0x80 == 0 {
            if n > 0 && *byte == 0 {
                return Err(DecodeError::Malformed(
                    "a length is not in its shortest form (MQTT-1.5.5-1)",
                ));
            }
            return Ok(Some((value, n + 1)));
        }
    }
    if bytes.len() >= 4 {
        return Err(DecodeError::Malformed(
            "a length has more than four bytes (section 1.5.5)",
        ));
    }
    Ok(None)
}

pub(crate) fn put_variable(out: &mut Vec<u8>, mut value: usize) {
    debug_assert!(value <= crate::REMAINING_LENGTH_MAX);
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

/// Binary data; cut at 65,535 bytes, the most the field can hold. Callers check lengths where it matters.
pub(crate) fn put_binary(out: &mut Vec<u8>, bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(usize::from(u16::MAX))];
    out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Appends a whole packet: first byte, Remaining Length, and what `body` writes.
pub(crate) fn put_packet(out: &mut Vec<u8>, first: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(first);
    let start = out.len();
    body(out);
    let length = out.len() - start;
    // Lengths below 128 take one byte and are by far the most common: make room by shifting once.
    let mut header = Vec::with_capacity(4);
    put_variable(&mut header, length);
    let extra = header.len();
    out.resize(out.len() + extra, 0);
    out.copy_within(start..start + length, start + extra);
    out[start..start + extra].copy_from_slice(&header);
}
