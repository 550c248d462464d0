//! DER values one after the other, in place. The rules are those of the X.509 library (`der`): definite lengths in their
//! shortest form (X.690 section 10.1), and its own types for what is inside. Its reader takes some 40 ns for each of the sixty
//! headers of a device's certificate, which is read at every handshake and twice when it is issued.

use const_oid::ObjectIdentifier;
use der::asn1::{AnyRef, BitStringRef};
use der::{Decode, Error, ErrorKind, Reader, Result, SliceReader, Tag};
use spki::AlgorithmIdentifierRef;

pub(crate) const BOOLEAN: u8 = 0x01;
pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;
pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const SET: u8 = 0x31;

/// What is left of a value's content.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Elements<'a>(&'a [u8]);

/// The length that begins here, and what follows it.
fn length(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (first, rest) = bytes.split_first()?;
    if *first < 0x80 {
        return Some((usize::from(*first), rest));
    }
    let octets = usize::from(first & 0x7f);
    if !(1..=4).contains(&octets) {
        return None;
    }
    let (coded, rest) = rest.split_at_checked(octets)?;
    let length = coded.iter().fold(0usize, |n, b| n << 8 | usize::from(*b));
    let is_shortest = length >= 0x80 && coded[0] != 0;
    is_shortest.then_some((length, rest))
}

/// The content of a BIT STRING.
pub(crate) fn bits(content: &[u8]) -> Result<BitStringRef<'_>> {
    match content {
        [unused, bits @ ..] => BitStringRef::new(*unused, bits),
        [] => Err(ErrorKind::Length { tag: Tag::BitString }.into()),
    }
}

impl<'a> Elements<'a> {
    /// Of a value's content.
    pub(crate) fn of(content: &'a [u8]) -> Self {
        Self(content)
    }

    /// Of the one value that these bytes are.
    pub(crate) fn of_whole(der: &'a [u8], tag: u8) -> Result<Self> {
        let mut whole = Self(der);
        let content = whole.take(tag)?;
        whole.finish()?;
        Ok(Self(content))
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.0.is_empty()
    }

    /// Nothing may follow.
    pub(crate) fn finish(&self) -> Result<()> {
        if self.is_finished() {
            return Ok(());
        }
        // The library's own words.
        SliceReader::new(self.0)?.finish()
    }

    /// Whether a value of this tag is next.
    pub(crate) fn is_next(&self, tag: u8) -> bool {
        self.0.first() == Some(&tag)
    }

    /// The content of the next value, which must have this tag, one of one octet.
    pub(crate) fn take(&mut self, tag: u8) -> Result<&'a [u8]> {
        let taken = self
            .0
            .split_first()
            .filter(|(first, _)| **first == tag)
            .and_then(|(_, rest)| length(rest))
            .and_then(|(length, rest)| rest.split_at_checked(length));
        match taken {
            Some((content, rest)) => {
                self.0 = rest;
                Ok(content)
            }
            None => Err(self.fault(tag)),
        }
    }

    /// What is wrong with the next value, in the library's words.
    #[cold]
    fn fault(&self, tag: u8) -> Error {
        let read = || {
            let mut reader = SliceReader::new(self.0)?;
            Tag::peek(&reader)?.assert_eq(Tag::from_der(&[tag])?)?;
            reader.tlv_bytes()
        };
        read().err().unwrap_or_else(|| ErrorKind::Failed.into())
    }

    /// The next value, whatever it is, with its header.
    pub(crate) fn whole(&mut self) -> Result<&'a [u8]> {
        let all = self.0;
        let is_plain = |first: &u8| first & 0x1f != 0x1f;
        let taken = all
            .split_first()
            .filter(|(first, _)| is_plain(first))
            .and_then(|(_, rest)| length(rest))
            .and_then(|(length, rest)| rest.get(length..))
            .filter(|_| all.first().is_some_and(|first| Tag::from_der(&[*first]).is_ok()));
        match taken {
            Some(rest) => {
                self.0 = rest;
                Ok(&all[..all.len() - rest.len()])
            }
            None => {
                let mut reader = SliceReader::new(all)?;
                let whole = reader.tlv_bytes()?;
                self.0 = &all[whole.len()..];
                Ok(whole)
            }
        }
    }

    pub(crate) fn oid(&mut self) -> Result<ObjectIdentifier> {
        Ok(ObjectIdentifier::from_bytes(self.take(OBJECT_IDENTIFIER)?)?)
    }

    /// BOOLEAN DEFAULT FALSE.
    pub(crate) fn flag(&mut self) -> Result<bool> {
        if !self.is_next(BOOLEAN) {
            return Ok(false);
        }
        match self.take(BOOLEAN)? {
            [0] => Ok(false),
            [0xff] => Ok(true),
            _ => Err(ErrorKind::Noncanonical { tag: Tag::Boolean }.into()),
        }
    }

    /// BIT STRING.
    pub(crate) fn bits(&mut self) -> Result<BitStringRef<'a>> {
        bits(self.take(BIT_STRING)?)
    }

    /// The one value that is left, of any type.
    pub(crate) fn last(self) -> Result<AnyRef<'a>> {
        let tag = match self.0.first() {
            Some(0x0c) => Tag::Utf8String,
            Some(0x13) => Tag::PrintableString,
            Some(0x06) => Tag::ObjectIdentifier,
            _ => return AnyRef::from_der(self.0),
        };
        let mut rest = self;
        let content = rest.take(self.0[0])?;
        rest.finish()?;
        AnyRef::new(tag, content)
    }

    /// An AlgorithmIdentifier (RFC 5280 section 4.1.1.2).
    pub(crate) fn algorithm(&mut self) -> Result<AlgorithmIdentifierRef<'a>> {
        let mut parts = Self(self.take(SEQUENCE)?);
        Ok(AlgorithmIdentifierRef {
            oid: parts.oid()?,
            parameters: match parts.is_finished() {
                true => None,
                false => Some(parts.last()?),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lengths are read as the library reads them: all of one and two octets, and the edges of longer ones.
    #[test]
    fn lengths_are_the_librarys() {
        let mut taken = 0;
        let longer = [0u8; 0x1_0002];
        let mut prefixes: Vec<Vec<u8>> = (0..=255).map(|n| vec![n]).collect();
        for first in 0..=255 {
            prefixes.extend((0..=255).map(|n| vec![first, n]));
        }
        prefixes.extend([
            vec![0x82, 0, 0x80],
            vec![0x82, 0, 0xff],
            vec![0x82, 1, 0],
            vec![0x83, 0, 0xff, 0xff],
            vec![0x83, 1, 0, 0],
            vec![0x84, 0, 1, 0, 0],
            vec![0x84, 0xff, 0xff, 0xff, 0xff],
            vec![0x85, 0, 0, 0, 1, 0],
        ]);
        for prefix in prefixes {
            let der = [&[OCTET_STRING], prefix.as_slice(), &longer].concat();
            let ours = Elements::of(&der).take(OCTET_STRING).ok();
            let theirs = || {
                let mut reader = SliceReader::new(&der).ok()?;
                let header = der::Header::decode(&mut reader).ok()?;
                reader.read_slice(header.length()).ok()
            };
            assert_eq!(ours, theirs(), "{prefix:02x?}");
            let whole = Elements::of(&der).whole().ok();
            assert_eq!(
                whole,
                SliceReader::new(&der).unwrap().tlv_bytes().ok(),
                "{prefix:02x?}"
            );
            taken += usize::from(ours.is_some());
        }
        assert!(taken > 300, "{taken}");
    }

    /// Every first octet, alone and with a second one, is a tag or is none, as the library has it.
    #[test]
    fn tags_are_the_librarys() {
        for first in 0..=255u8 {
            for second in 0..=255u8 {
                let der = [first, second, 1, 0x55, 0x66];
                let ours = Elements::of(&der).whole().ok();
                assert_eq!(
                    ours,
                    SliceReader::new(&der).unwrap().tlv_bytes().ok(),
                    "{der:02x?}"
                );
                let last = Elements::of(&der[..4]).last().ok();
                assert_eq!(last, AnyRef::from_der(&der[..4]).ok(), "{der:02x?}");
            }
        }
    }

    /// What is wrong is said, and nothing is taken.
    #[test]
    fn a_fault_is_named() {
        for der in [&[][..], &[0x04], &[0x04, 5, 1], &[0x30, 0x80, 0, 0], &[0x04, 0]] {
            let mut elements = Elements::of(der);
            let e = elements.take(SEQUENCE).unwrap_err();
            assert_ne!(e.kind(), ErrorKind::Failed, "{der:02x?}");
            assert_eq!(elements.0, der);
        }
    }
}
