//! What a TPM writes differently from X.509.

use const_oid::ObjectIdentifier;
use der::asn1::{BitString, UintRef};
use der::{Any, AnyRef, Decode, Encode, Sequence, Tag, Tagged};
use spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

/// id-ecPublicKey (RFC 5480 section 2.1.1).
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
/// secp256r1 (RFC 5480 section 2.1.1.1).
const SECP256R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
/// ecdsa-with-SHA256 (RFC 5758 section 3.2).
pub(crate) const ECDSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");

/// Of a coordinate, and of r and s, in bytes.
const P256_BYTES: usize = 32;

/// A TPMS_ECC_POINT on P-256 as X.509 has it, uncompressed. A TPM may leave out zeros in front (TPM 2.0 part 2, section
/// "TPM2B_ECC_PARAMETER"). `None` if a coordinate has a wrong length.
pub(crate) fn public_key(x: &[u8], y: &[u8]) -> Option<SubjectPublicKeyInfoOwned> {
    let point = point(x, y, P256_BYTES)?;
    Some(SubjectPublicKeyInfoOwned {
        algorithm: AlgorithmIdentifierOwned {
            oid: EC_PUBLIC_KEY,
            parameters: Some(Any::from(&SECP256R1)),
        },
        subject_public_key: BitString::from_bytes(&point).ok()?,
    })
}

/// A TPMS_ECC_POINT as X.509 has it, uncompressed, on a curve with coordinates of so many bytes. `None` if a coordinate has
/// a wrong length.
pub(crate) fn point(x: &[u8], y: &[u8], coordinate_bytes: usize) -> Option<Vec<u8>> {
    let mut point = vec![4];
    for coordinate in [x, y] {
        let lacking = coordinate_bytes.checked_sub(coordinate.len())?;
        if coordinate.is_empty() {
            return None;
        }
        point.extend(std::iter::repeat_n(0, lacking));
        point.extend(coordinate);
    }
    Some(point)
}

/// A TPM2B_PUBLIC_KEY_RSA and its exponent as X.509 has them: RSAPublicKey (RFC 8017 section A.1.1). The exponent 0 stands
/// for 65537 (TPM 2.0 part 2, section "TPMS_RSA_PARMS"). `None` if there is no modulus.
pub(crate) fn rsa_key(modulus: &[u8], exponent: u32) -> Option<Vec<u8>> {
    #[derive(Sequence)]
    struct Key<'a> {
        modulus: UintRef<'a>,
        exponent: u32,
    }
    let key = Key {
        modulus: UintRef::new(modulus).ok().filter(|_| !modulus.is_empty())?,
        exponent: match exponent {
            0 => 65537,
            other => other,
        },
    };
    key.to_der().ok()
}

/// The SEQUENCE at the beginning, with its tag and its length, and what comes after it. `None` if there is none, or not all
/// of it.
pub(crate) fn first(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (any, rest) = AnyRef::from_der_partial(bytes).ok()?;
    (any.tag() == Tag::Sequence).then_some(bytes.split_at(bytes.len() - rest.len()))
}

/// All SEQUENCEs one after the other, with padding (00 or FF) between and after them.
pub(crate) fn all(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let padding = bytes.iter().take_while(|b| [0, 0xff].contains(*b)).count();
        let Some((one, rest)) = first(&bytes[padding..]) else {
            return all;
        };
        all.push(one.to_vec());
        bytes = rest;
    }
}

/// The content of subjectPublicKey in a certificate (RFC 5280 section 4.1). `None` if it is not where it belongs.
///
/// Only what must be read is: certificates of TPMs have names and extensions, and names for RSA keys (id-RSAES-OAEP), which
/// a parser of certificates may refuse. Whether to trust it is not judged here.
pub(crate) fn certificate_key(certificate: &[u8]) -> Option<Vec<u8>> {
    fn enter(bytes: &[u8], tag: Tag) -> Option<&[u8]> {
        let (any, _) = AnyRef::from_der_partial(bytes).ok()?;
        (any.tag() == tag).then_some(any.value())
    }
    let mut fields = enter(enter(certificate, Tag::Sequence)?, Tag::Sequence)?;
    // version, which is left out without extensions; serialNumber, signature, issuer, validity, subject.
    let (first, after_first) = AnyRef::from_der_partial(fields).ok()?;
    if first.tag().is_context_specific() {
        fields = after_first;
    }
    for _ in 0..5 {
        fields = AnyRef::from_der_partial(fields).ok()?.1;
    }
    let info = enter(fields, Tag::Sequence)?;
    let (_algorithm, key) = AnyRef::from_der_partial(info).ok()?;
    // The first byte of a BIT STRING: how many bits of the last one are no part of it.
    match enter(key, Tag::BitString)? {
        [0, key @ ..] => Some(key.to_vec()),
        _ => None,
    }
}

/// A TPMS_SIGNATURE_ECDSA on P-256 as an ECDSA-Sig-Value (RFC 3279 section 2.2.3). `None` if r or s has a wrong length.
pub(crate) fn signature(r: &[u8], s: &[u8]) -> Option<Vec<u8>> {
    #[derive(Sequence)]
    struct Value<'a> {
        r: UintRef<'a>,
        s: UintRef<'a>,
    }
    let fits = |n: &[u8]| (1..=P256_BYTES).contains(&n.len());
    if !fits(r) || !fits(s) {
        return None;
    }
    let value = Value {
        r: UintRef::new(r).ok()?,
        s: UintRef::new(s).ok()?,
    };
    value.to_der().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_become_minimal_integers() {
        // r has its top bit set: a zero goes before it. s is short: its zeros go away.
        let mut r = [0; 32];
        r[0] = 0x80;
        let mut s = [0; 32];
        s[31] = 5;
        let mut expected = vec![0x30, 38, 2, 33, 0, 0x80];
        expected.extend([0; 31]);
        expected.extend([2, 1, 5]);
        assert_eq!(signature(&r, &s).as_ref(), Some(&expected));
        assert_eq!(signature(&r, &[5]), Some(expected));
        assert_eq!(signature(&[1; 33], &s), None);
        assert_eq!(signature(&r, &[]), None);
    }

    #[test]
    fn certificates_are_cut_out_of_padding() {
        let (a, b) = ([0x30, 1, 7].as_slice(), [0x30, 2, 0, 0xff].as_slice());
        assert_eq!(first(&[a, &[0xff, 0]].concat()), Some((a, [0xff, 0].as_slice())));
        assert_eq!(first(&a[..2]), None);
        assert_eq!(first(&[4, 1, 7]), None);
        assert_eq!(first(&[]), None);
        let padded = [&[0][..], a, b, &[0xff, 0xff], a, &[0; 9]].concat();
        assert_eq!(all(&padded), [a, b, a]);
        assert_eq!(all(&[a, &b[..3]].concat()), [a]);
        assert!(all(&[0xff; 64]).is_empty() && all(&[]).is_empty());
    }

    #[test]
    fn an_rsa_key_is_written_as_in_a_certificate() {
        assert_eq!(
            rsa_key(&[0x80, 5], 0),
            Some(vec![0x30, 10, 2, 3, 0, 0x80, 5, 2, 3, 1, 0, 1])
        );
        assert_eq!(rsa_key(&[5], 3), Some(vec![0x30, 6, 2, 1, 5, 2, 1, 3]));
        assert_eq!(rsa_key(&[], 0), None);
        assert_eq!(certificate_key(&[0x30, 0]), None);
        assert_eq!(certificate_key(&[0x30, 2, 0x30, 0]), None);
    }

    #[test]
    fn short_coordinates_are_filled_up() {
        let key = public_key(&[7; 31], &[9; 32]).unwrap();
        let point = key.subject_public_key.as_bytes().unwrap();
        assert_eq!(point.len(), 65);
        assert_eq!(&point[..3], [4, 0, 7]);
        assert_eq!(point[33], 9);
        assert_eq!(public_key(&[7; 33], &[9; 32]), None);
        assert_eq!(public_key(&[7; 32], &[]), None);
    }
}
