//! How many different ones there were, without keeping them: exact up to 64, then an estimate that is off by 5 % or so.
//!
//! HyperLogLog (Flajolet and others, 2007) with 512 registers; small numbers are a list. Sketches of two hours merge
//! into the sketch of both.

/// Different values that are listed one by one.
const LISTED_MAX: usize = 64;
/// Bits of a hash that choose the register.
const BITS: u32 = 9;
const REGISTERS: usize = 1 << BITS;

/// A set that can only be counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sketch {
    /// Hashes of all of them, in order.
    Listed(Vec<u64>),
    /// The greatest rank that each register saw.
    Registers(Box<[u8; REGISTERS]>),
}

impl Default for Sketch {
    fn default() -> Self {
        Self::Listed(Vec::new())
    }
}

/// A hash that stays the same from one version to the next: FNV-1a, then mixed so that all bits depend on all.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    let mut h = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
        (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    h ^= h >> 30;
    h = h.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    h ^= h >> 27;
    h = h.wrapping_mul(0x94d0_49bb_1331_11eb);
    h ^ (h >> 31)
}

fn raise(registers: &mut [u8; REGISTERS], hash: u64) {
    let at = usize::try_from(hash >> (64 - BITS)).unwrap_or(0);
    let rank = ((hash << BITS).leading_zeros().min(64 - BITS) + 1) as u8;
    if let Some(register) = registers.get_mut(at) {
        *register = (*register).max(rank);
    }
}

impl Sketch {
    /// Adds one.
    pub(crate) fn add(&mut self, hash: u64) {
        match self {
            Self::Registers(registers) => raise(registers, hash),
            Self::Listed(list) => {
                let Err(at) = list.binary_search(&hash) else {
                    return;
                };
                if list.len() < LISTED_MAX {
                    return list.insert(at, hash);
                }
                let mut registers = Box::new([0; REGISTERS]);
                for h in list.iter().chain([&hash]) {
                    raise(&mut registers, *h);
                }
                *self = Self::Registers(registers);
            }
        }
    }

    /// Adds all of another.
    pub(crate) fn merge(&mut self, other: &Self) {
        match other {
            Self::Listed(list) => list.iter().for_each(|h| self.add(*h)),
            Self::Registers(more) => {
                let mut registers = more.clone();
                match self {
                    Self::Listed(list) => list.iter().for_each(|h| raise(&mut registers, *h)),
                    Self::Registers(ours) => {
                        for (register, ours) in registers.iter_mut().zip(ours.iter()) {
                            *register = (*register).max(*ours);
                        }
                    }
                }
                *self = Self::Registers(registers);
            }
        }
    }

    /// How many different ones were added.
    pub(crate) fn count(&self) -> u64 {
        let registers = match self {
            Self::Listed(list) => return list.len() as u64,
            Self::Registers(registers) => registers,
        };
        let m = REGISTERS as f64;
        let sum: f64 = registers.iter().map(|r| (-f64::from(*r)).exp2()).sum();
        let estimate = 0.7213 / (1.0 + 1.079 / m) * m * m / sum;
        let empty = registers.iter().filter(|r| **r == 0).count();
        let best = if estimate <= 2.5 * m && empty > 0 {
            m * (m / empty as f64).ln()
        } else {
            estimate
        };
        best.round() as u64
    }

    /// Whether it is exact.
    pub(crate) fn is_exact(&self) -> bool {
        matches!(self, Self::Listed(_))
    }

    /// As it is kept.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Listed(list) => std::iter::once(0)
                .chain(list.iter().flat_map(|h| h.to_be_bytes()))
                .collect(),
            Self::Registers(registers) => std::iter::once(1).chain(registers.iter().copied()).collect(),
        }
    }

    /// As it was kept; what cannot be read is empty.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        match bytes.split_first() {
            Some((0, rest)) => Self::Listed(
                rest.as_chunks::<8>()
                    .0
                    .iter()
                    .map(|c| u64::from_be_bytes(*c))
                    .collect(),
            ),
            Some((1, rest)) => rest.try_into().map_or_else(
                |_| Self::default(),
                |r: [u8; REGISTERS]| Self::Registers(Box::new(r)),
            ),
            _ => Self::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Sketch, hash};

    fn of(range: std::ops::Range<u32>) -> Sketch {
        let mut sketch = Sketch::default();
        for n in range {
            sketch.add(hash(&n.to_be_bytes()));
            sketch.add(hash(&n.to_be_bytes()));
        }
        sketch
    }

    #[test]
    fn small_numbers_are_exact_and_great_ones_are_near() {
        assert_eq!(of(0..0).count(), 0);
        assert_eq!(of(0..64).count(), 64);
        for n in [65, 200, 1_000, 5_000, 100_000] {
            let counted = of(0..n).count() as f64;
            let off = (counted / f64::from(n) - 1.0).abs();
            assert!(off < 0.12, "{counted} of {n}");
        }
    }

    #[test]
    fn merged_they_count_as_if_they_had_been_one() {
        for (a, b) in [
            (0..10, 5..20),
            (0..60, 0..90),
            (0..900, 500..1500),
            (0..900, 890..905),
        ] {
            let whole = of(a.start.min(b.start)..a.end.max(b.end));
            let mut merged = of(a);
            merged.merge(&of(b));
            assert_eq!(merged, whole);
            assert_eq!(Sketch::from_bytes(&merged.to_bytes()), whole);
        }
    }
}
