//! What PKCS#11 writes differently from X.509.

use const_oid::ObjectIdentifier;
use der::asn1::{OctetStringRef, UintRef};
use der::{Decode, Encode, Sequence};

/// A curve that a key in a token may be on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Curve {
    P256,
    P384,
}

/// secp256r1 (RFC 5480 section 2.1.1.1).
const SECP256R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
/// secp384r1 (RFC 5480 section 2.1.1.1).
const SECP384R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");

impl Curve {
    /// Of CKA_EC_PARAMS: a DER OID; `None` for any other curve or form.
    pub(crate) fn of_parameters(der: &[u8]) -> Option<Self> {
        match ObjectIdentifier::from_der(der).ok()? {
            SECP256R1 => Some(Self::P256),
            SECP384R1 => Some(Self::P384),
            _ => None,
        }
    }

    pub(crate) const fn oid(self) -> ObjectIdentifier {
        match self {
            Self::P256 => SECP256R1,
            Self::P384 => SECP384R1,
        }
    }

    /// Of one coordinate, in bytes.
    const fn field_bytes(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
        }
    }

    /// ecdsa-with-SHA256 or ecdsa-with-SHA384 (RFC 5758 section 3.2).
    pub(crate) const fn signature_oid(self) -> ObjectIdentifier {
        match self {
            Self::P256 => ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2"),
            Self::P384 => ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3"),
        }
    }

    /// CKA_EC_POINT as X.509 has it, uncompressed: normally it is wrapped in an OCTET STRING, and some tokens return it
    /// bare (PKCS#11 version 2.40 section 2.3.3). The length tells them apart: a bare point that could be read as an
    /// OCTET STRING is two bytes too long for one.
    pub(crate) fn point(self, value: &[u8]) -> Option<Vec<u8>> {
        let bytes = 1 + 2 * self.field_bytes();
        let fits = |p: &[u8]| p.len() == bytes && p.first() == Some(&4);
        if fits(value) {
            return Some(value.to_vec());
        }
        let inner = <&OctetStringRef>::from_der(value).ok()?.as_bytes();
        fits(inner).then(|| inner.to_vec())
    }

    /// r‖s, as CKM_ECDSA returns it, as an ECDSA-Sig-Value (RFC 3279 section 2.2.3).
    pub(crate) fn signature(self, raw: &[u8]) -> Option<Vec<u8>> {
        #[derive(Sequence)]
        struct Value<'a> {
            r: UintRef<'a>,
            s: UintRef<'a>,
        }
        if raw.len() != 2 * self.field_bytes() {
            return None;
        }
        let (r, s) = raw.split_at(self.field_bytes());
        let value = Value {
            r: UintRef::new(r).ok()?,
            s: UintRef::new(s).ok()?,
        };
        value.to_der().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_come_wrapped_or_bare() {
        // The worst bare one: 04 3f looks like the head of an OCTET STRING of 63 bytes.
        let mut bare = vec![4, 63];
        bare.extend([7; 63]);
        let mut wrapped = vec![4, 65];
        wrapped.extend(&bare);
        for value in [&bare, &wrapped] {
            assert_eq!(Curve::P256.point(value).as_ref(), Some(&bare));
            assert_eq!(Curve::P384.point(value), None);
        }
        let mut compressed = bare.clone();
        compressed[0] = 3;
        assert_eq!(Curve::P256.point(&compressed), None);
        assert_eq!(Curve::P256.point(&wrapped[..60]), None);
        assert_eq!(Curve::P256.point(&[]), None);
    }

    #[test]
    fn signatures_become_minimal_integers() {
        let mut raw = vec![0; 64];
        // r has its top bit set: a zero goes before it. s is short: its zeros go away.
        raw[0] = 0x80;
        raw[63] = 5;
        let der = Curve::P256.signature(&raw).unwrap();
        let mut expected = vec![0x30, 38, 2, 33, 0, 0x80];
        expected.extend([0; 31]);
        expected.extend([2, 1, 5]);
        assert_eq!(der, expected);
        assert_eq!(Curve::P256.signature(&raw[..63]), None);
        assert_eq!(Curve::P384.signature(&raw), None);
    }
}
