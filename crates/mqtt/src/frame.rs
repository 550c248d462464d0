//! Finds where a packet ends (section 2.1), from its first bytes alone.

use crate::error::DecodeError;
use crate::wire;

/// One whole packet in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The first byte: type and flags.
    pub first: u8,
    /// Everything after the Remaining Length.
    pub body: &'a [u8],
    /// The whole packet, as it came.
    pub raw: &'a [u8],
}

impl Frame<'_> {
    /// The packet type, 0 to 15 (section 2.1.2).
    pub const fn packet_type(&self) -> u8 {
        self.first >> 4
    }
}

/// The packet at the front of `buffer`; `None` if it is not all there. A packet of more than `limit` bytes is refused as
/// soon as its length is known, before its body has come.
///
/// # Errors
/// [`DecodeError::TooLarge`], or [`DecodeError::Malformed`] for an impossible length or packet type 0.
pub fn next(buffer: &[u8], limit: usize) -> Result<Option<Frame<'_>>, DecodeError> {
    let Some((&first, rest)) = buffer.split_first() else {
        return Ok(None);
    };
    if first >> 4 == 0 {
        return Err(DecodeError::Malformed(
            "packet type 0 is reserved (section 2.1.2)",
        ));
    }
    let Some((length, used)) = wire::variable(rest)? else {
        return Ok(None);
    };
    let size = 1 + used + length as usize;
    if size > limit {
        return Err(DecodeError::TooLarge { size, limit });
    }
    Ok(buffer.get(..size).map(|raw| Frame {
        first,
        body: &raw[1 + used..],
        raw,
    }))
}
