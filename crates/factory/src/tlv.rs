//! DER by hand, for the few structures that have no type in the libraries: certs-only CMS, OCSP, CSR attributes.

/// One value with its tag and its length in the shortest form (X.690 section 10.1).
pub fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|p| p.len()).sum();
    let mut out = Vec::with_capacity(length + 6);
    out.push(tag);
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let bytes = length.to_be_bytes();
        let significant = &bytes[bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len() - 1)..];
        out.push(0x80 | significant.len() as u8);
        out.extend_from_slice(significant);
    }
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}

/// SEQUENCE.
pub fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tlv(0x30, parts)
}

/// An object identifier from its encoded arcs, as `const_oid` gives them.
pub fn oid(oid: const_oid::ObjectIdentifier) -> Vec<u8> {
    tlv(0x06, &[oid.as_bytes()])
}
