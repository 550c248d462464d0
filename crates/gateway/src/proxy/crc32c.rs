//! CRC-32C (Castagnoli; RFC 9260 appendix A), bit-reflected polynomial 0x82F63B78.

const TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let mut c = n as u32;
        let mut bit = 0;
        while bit < 8 {
            c = if c & 1 == 1 {
                (c >> 1) ^ 0x82f6_3b78
            } else {
                c >> 1
            };
            bit += 1;
        }
        table[n] = c;
        n += 1;
    }
    table
}

/// The checksum over the parts, one after the other.
pub(super) fn of(parts: &[&[u8]]) -> u32 {
    let sum = parts
        .iter()
        .copied()
        .flatten()
        .fold(u32::MAX, |c, b| TABLE[usize::from((c as u8) ^ b)] ^ (c >> 8));
    !sum
}

#[cfg(test)]
mod tests {
    #[test]
    fn known_values() {
        // RFC 3720 appendix B.4, and the check value of the catalogue of CRCs.
        assert_eq!(super::of(&[b"1234", b"56789"]), 0xe306_9283);
        assert_eq!(super::of(&[&[0; 32]]), 0x8a91_36aa);
        assert_eq!(super::of(&[&[0xff; 32]]), 0x62a8_ab43);
    }
}
