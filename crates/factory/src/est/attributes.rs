//! CSR attributes: what a request should hold (RFC 7030 section 4.5.2, RFC 9908).

use const_oid::ObjectIdentifier;

use crate::profile::{KeyKind, Profile};
use crate::tlv::{oid, sequence, tlv};

/// id-aa-certificationRequestInfoTemplate (RFC 9908 section 3.4).
const TEMPLATE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.16.2.61");
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const SECP256R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const SECP384R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const ECDSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const ECDSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");
const SHA256_RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");

/// What requests for a profile should hold: its keys. Newer clients read the template, which has the profile's first kind
/// of key; older ones read the identifiers of curves and signatures. challengePassword is not asked for: TLS 1.3 has no
/// tls-unique to put there.
pub fn csr_attributes(profile: &Profile) -> Vec<u8> {
    let mut parts = Vec::new();
    if let Some(first) = profile.keys.first() {
        // version 0, no subject, subjectPKInfo [0] with the algorithm alone, attributes [1] empty; implicit tags.
        let template = sequence(&[
            &[0x02, 0x01, 0x00],
            &tlv(0xa0, &[&algorithm(*first)]),
            &tlv(0xa1, &[]),
        ]);
        parts.push(sequence(&[&oid(TEMPLATE), &tlv(0x31, &[&template])]));
    }
    let has = |kind| profile.keys.contains(&kind);
    // In the order that DER gives a set: the shorter identifier first.
    let curves: Vec<_> = [(KeyKind::P384, SECP384R1), (KeyKind::P256, SECP256R1)]
        .into_iter()
        .filter(|(kind, _)| has(*kind))
        .map(|(_, curve)| oid(curve))
        .collect();
    if !curves.is_empty() {
        let curves: Vec<&[u8]> = curves.iter().map(Vec::as_slice).collect();
        parts.push(sequence(&[&oid(EC_PUBLIC_KEY), &tlv(0x31, &curves)]));
    }
    for (kind, signature) in [
        (KeyKind::P256, ECDSA_SHA256),
        (KeyKind::P384, ECDSA_SHA384),
        (KeyKind::Ed25519, ED25519),
        (KeyKind::Rsa, SHA256_RSA),
    ] {
        if has(kind) {
            parts.push(oid(signature));
        }
    }
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    sequence(&parts)
}

/// AlgorithmIdentifier of a kind of key.
fn algorithm(kind: KeyKind) -> Vec<u8> {
    match kind {
        KeyKind::P256 => sequence(&[&oid(EC_PUBLIC_KEY), &oid(SECP256R1)]),
        KeyKind::P384 => sequence(&[&oid(EC_PUBLIC_KEY), &oid(SECP384R1)]),
        KeyKind::Ed25519 => sequence(&[&oid(ED25519)]),
        KeyKind::Rsa => sequence(&[&oid(RSA), &[0x05, 0x00]]),
    }
}

#[cfg(test)]
mod tests {
    use der::asn1::AnyRef;
    use der::{Decode, Reader, SliceReader};

    use super::*;

    #[test]
    fn the_profile_says_which_keys() {
        let hex = |keys: &[KeyKind]| {
            let profile = Profile {
                keys: keys.to_vec(),
                ..Profile::default()
            };
            let der = csr_attributes(&profile);
            // Well-formed to its end.
            let outer = AnyRef::from_der(&der).unwrap();
            let mut inner = SliceReader::new(outer.value()).unwrap();
            while !inner.is_finished() {
                AnyRef::decode(&mut inner).unwrap();
            }
            der.iter().map(|b| format!("{b:02x}")).collect::<String>()
        };
        let p256 = hex(&[KeyKind::P256]);
        // prime256v1 in the template and in the list; not the other curve.
        assert_eq!(p256.matches("06082a8648ce3d030107").count(), 2, "{p256}");
        assert!(p256.contains("06082a8648ce3d040302") && !p256.contains("06052b81040022"));
        let both = hex(&[KeyKind::P384, KeyKind::P256]);
        assert!(both.contains("311106052b8104002206082a8648ce3d030107"), "{both}");
        let rsa = hex(&[KeyKind::Rsa]);
        assert!(rsa.contains("06092a864886f70d01010b") && !rsa.contains("06072a8648ce3d0201"));
    }
}
