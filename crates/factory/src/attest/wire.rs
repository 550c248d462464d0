//! How a TPM writes: big-endian numbers, and bytes with their length before them (TPM 2.0 part 1, section "Marshaling").

use super::refusal::{Refusal, Refused};

/// The longest structure that is read, in bytes: an RSA key of 4096 bits with all around it has less than 700.
pub(super) const STRUCTURE_BYTES_MAX: usize = 4096;

/// Reads a structure from its beginning.
pub(super) struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(what: &'static str, bytes: &'a [u8]) -> Result<Self, Refused> {
        if bytes.len() > STRUCTURE_BYTES_MAX {
            return Err(Refusal::Malformed.because(format!(
                "{what} has {} bytes, at most {STRUCTURE_BYTES_MAX} are read",
                bytes.len()
            )));
        }
        Ok(Self { what, rest: bytes })
    }

    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Refused> {
        let (taken, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or_else(|| Refusal::Malformed.because(format!("{} ends too early", self.what)))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Refused> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Refused> {
        self.array().map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Refused> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Refused> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Refused> {
        self.array().map(u64::from_be_bytes)
    }

    /// A TPM2B: a length of two bytes, and so many bytes.
    pub(super) fn sized(&mut self) -> Result<&'a [u8], Refused> {
        let length = self.u16()?;
        self.bytes(usize::from(length))
    }

    /// That nothing follows: what is not read is not vouched for.
    pub(super) fn end(self) -> Result<(), Refused> {
        match self.rest.len() {
            0 => Ok(()),
            more => {
                Err(Refusal::Malformed.because(format!("{} has {more} bytes more than it should", self.what)))
            }
        }
    }
}

/// Appends a TPM2B. What is written here is never longer than two bytes can say.
pub(super) fn put_sized(to: &mut Vec<u8>, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    to.extend(length.to_be_bytes());
    to.extend(&bytes[..usize::from(length)]);
}
