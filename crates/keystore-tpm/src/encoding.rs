//! What a TPM writes differently from X.509.

use const_oid::ObjectIdentifier;
use der::asn1::{BitString, UintRef};
use der::{Any, Encode, Sequence};
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
    let mut point = vec![4];
    for coordinate in [x, y] {
        let lacking = P256_BYTES.checked_sub(coordinate.len())?;
        if coordinate.is_empty() {
            return None;
        }
        point.extend(std::iter::repeat_n(0, lacking));
        point.extend(coordinate);
    }
    Some(SubjectPublicKeyInfoOwned {
        algorithm: AlgorithmIdentifierOwned {
            oid: EC_PUBLIC_KEY,
            parameters: Some(Any::from(&SECP256R1)),
        },
        subject_public_key: BitString::from_bytes(&point).ok()?,
    })
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
