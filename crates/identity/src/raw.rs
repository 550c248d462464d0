//! A certificate's or list's bytes taken apart and not looked into: what a signature is checked over and with.

use der::Tag;
use rustls_pki_types::SignatureVerificationAlgorithm;

use crate::elements::{Elements, INTEGER, SEQUENCE};

/// The parts of a certificate (RFC 5280 section 4.1) that path validation needs byte for byte.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RawCertificate<'a> {
    pub(crate) signed: RawSigned<'a>,
    /// The serial number's content octets, sign included.
    pub(crate) serial: &'a [u8],
    pub(crate) key: RawKey<'a>,
}

/// `SEQUENCE { to be signed, algorithm, signature }`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RawSigned<'a> {
    pub(crate) content: &'a [u8],
    /// The content of the outer AlgorithmIdentifier.
    algorithm: &'a [u8],
    signature: &'a [u8],
}

/// A SubjectPublicKeyInfo.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RawKey<'a> {
    /// All of it.
    pub(crate) der: &'a [u8],
    /// The content of its AlgorithmIdentifier.
    algorithm: &'a [u8],
    bits: &'a [u8],
}

/// Why a signature does not hold under a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RawFault {
    /// No accepted algorithm has this name, or it does not belong to this key.
    Algorithm,
    /// It does not hold.
    Invalid,
}

/// All the octets of the next BIT STRING.
fn bits<'a>(elements: &mut Elements<'a>) -> der::Result<&'a [u8]> {
    elements
        .bits()?
        .as_bytes()
        .ok_or_else(|| der::Error::from(der::ErrorKind::Noncanonical { tag: Tag::BitString }))
}

impl<'a> RawSigned<'a> {
    pub(crate) fn parse(der: &'a [u8]) -> der::Result<Self> {
        let mut inner = Elements::of_whole(der, SEQUENCE)?;
        let parts = Self {
            content: inner.whole()?,
            algorithm: inner.take(SEQUENCE)?,
            signature: bits(&mut inner)?,
        };
        inner.finish()?;
        Ok(parts)
    }

    /// Checks the signature by the algorithms that the TLS library accepts too.
    pub(crate) fn verify(&self, key: &RawKey<'_>) -> Result<(), RawFault> {
        let named = |a: &&&dyn SignatureVerificationAlgorithm| {
            a.signature_alg_id().as_ref() == self.algorithm && a.public_key_alg_id().as_ref() == key.algorithm
        };
        webpki::ALL_VERIFICATION_ALGS
            .iter()
            .find(named)
            .ok_or(RawFault::Algorithm)?
            .verify_signature(key.bits, self.content, self.signature)
            .map_err(|_| RawFault::Invalid)
    }
}

impl<'a> RawKey<'a> {
    pub(crate) fn parse(der: &'a [u8]) -> der::Result<Self> {
        let mut inner = Elements::of_whole(der, SEQUENCE)?;
        let key = Self {
            der,
            algorithm: inner.take(SEQUENCE)?,
            bits: bits(&mut inner)?,
        };
        inner.finish()?;
        Ok(key)
    }

    /// Whether an accepted algorithm uses keys of this kind.
    pub(crate) fn is_usable(&self) -> bool {
        webpki::ALL_VERIFICATION_ALGS
            .iter()
            .any(|a| a.public_key_alg_id().as_ref() == self.algorithm)
    }
}

impl<'a> RawCertificate<'a> {
    pub(crate) fn parse(der: &'a [u8]) -> der::Result<Self> {
        const VERSION: u8 = 0xa0;
        let signed = RawSigned::parse(der)?;
        let mut tbs = Elements::of_whole(signed.content, SEQUENCE)?;
        if tbs.is_next(VERSION) {
            tbs.take(VERSION)?;
        }
        let serial = tbs.take(INTEGER)?;
        // RFC 5280 section 4.1.1.2: both must say the same.
        if tbs.take(SEQUENCE)? != signed.algorithm {
            return Err(der::ErrorKind::Value { tag: Tag::Sequence }.into());
        }
        for _ in ["issuer", "validity", "subject"] {
            tbs.whole()?;
        }
        Ok(Self {
            signed,
            serial,
            key: RawKey::parse(tbs.whole()?)?,
        })
    }
}
