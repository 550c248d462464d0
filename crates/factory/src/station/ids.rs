//! Which ids a station may give.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use countersign_identity::{DeviceId, IdPattern};
use serde::{Deserialize, Serialize};

/// Which device ids a station may give: a pattern, or a run of numbers.
///
/// `SN-*` is a pattern (`*` any characters, `?` one); `SN-0100..SN-0199` is a run: ids that differ in their last
/// digits only, all of one length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum IdRange {
    /// All that fit.
    Pattern(IdPattern),
    /// From the first to the last, both included.
    Run {
        /// The first.
        first: DeviceId,
        /// The last.
        last: DeviceId,
    },
}

impl IdRange {
    /// Whether an id is in it.
    pub fn fits(&self, id: &DeviceId) -> bool {
        match self {
            Self::Pattern(pattern) => pattern.fits(id),
            Self::Run { first, .. } => {
                let fixed = first.as_str().len() - self.digits();
                id.as_str().len() == first.as_str().len()
                    && id.as_str().get(..fixed) == first.as_str().get(..fixed)
                    && self
                        .number(id)
                        .is_some_and(|n| self.bounds().is_some_and(|(from, to)| (from..=to).contains(&n)))
            }
        }
    }

    /// Whether some id is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Pattern(a), Self::Pattern(b)) => a.overlaps(b),
            (Self::Pattern(pattern), Self::Run { first, last })
            | (Self::Run { first, last }, Self::Pattern(pattern)) => run_meets(first, last, pattern),
            // Ids of one length and form are ordered as their numbers are.
            (
                Self::Run { first, last },
                Self::Run {
                    first: from,
                    last: to,
                },
            ) => {
                let fixed =
                    |run: &Self, id: &DeviceId| id.as_str()[..id.as_str().len() - run.digits()].to_owned();
                first.as_str().len() == from.as_str().len()
                    && fixed(self, first) == fixed(other, from)
                    && first.as_str() <= to.as_str()
                    && from.as_str() <= last.as_str()
            }
        }
    }

    /// Two texts between which all its ids lie, both included, byte by byte.
    pub fn span(&self) -> (String, String) {
        match self {
            // No id has a byte above 0x7e.
            Self::Pattern(pattern) => (pattern.prefix().into(), format!("{}\u{7f}", pattern.prefix())),
            Self::Run { first, last } => (first.to_string(), last.to_string()),
        }
    }

    /// The ids of the run between the lowest and the highest of `used` that are not among them: how many, and the first
    /// `examples`. Of a pattern nobody can tell.
    pub fn gaps<'a>(
        &self,
        used: impl IntoIterator<Item = &'a DeviceId>,
        examples: usize,
    ) -> (u64, Vec<String>) {
        let Self::Run { first, .. } = self else {
            return (0, Vec::new());
        };
        let mut numbers: Vec<u64> = used.into_iter().filter_map(|id| self.number(id)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let fixed = &first.as_str()[..first.as_str().len() - self.digits()];
        let (mut count, mut named) = (0, Vec::new());
        for pair in numbers.windows(2) {
            count += pair[1] - pair[0] - 1;
            for n in pair[0] + 1..pair[1] {
                if named.len() >= examples {
                    break;
                }
                named.push(format!("{fixed}{n:0width$}", width = self.digits()));
            }
        }
        (count, named)
    }

    /// How many last characters are digits that count.
    fn digits(&self) -> usize {
        match self {
            Self::Pattern(_) => 0,
            Self::Run { first, last } => trailing_digits(first).min(trailing_digits(last)).min(18),
        }
    }

    fn number(&self, id: &DeviceId) -> Option<u64> {
        let text = id.as_str();
        let digits = text.get(text.len().checked_sub(self.digits())?..)?;
        if digits.bytes().all(|b| b.is_ascii_digit()) {
            digits.parse().ok()
        } else {
            None
        }
    }

    fn bounds(&self) -> Option<(u64, u64)> {
        match self {
            Self::Pattern(_) => None,
            Self::Run { first, last } => Some((self.number(first)?, self.number(last)?)),
        }
    }
}

/// Whether some id of a run fits a pattern: where in the pattern one may stand after each character, and whether what was
/// read so far is still the first id's, and the last one's.
fn run_meets(first: &DeviceId, last: &DeviceId, pattern: &IdPattern) -> bool {
    let pattern = pattern.to_string().into_bytes();
    // A `*` may stand for nothing.
    let skip = |standing: &mut BTreeSet<(usize, bool, bool)>| {
        for (at, byte) in pattern.iter().enumerate() {
            for (low, high) in [(true, true), (true, false), (false, true), (false, false)] {
                if *byte == b'*' && standing.contains(&(at, low, high)) {
                    standing.insert((at + 1, low, high));
                }
            }
        }
    };
    let mut standing = BTreeSet::from([(0, true, true)]);
    skip(&mut standing);
    for (least, most) in first.as_str().bytes().zip(last.as_str().bytes()) {
        let mut next = BTreeSet::new();
        for (at, low, high) in standing {
            let Some(wanted) = pattern.get(at) else { continue };
            for byte in if low { least } else { b'0' }..=if high { most } else { b'9' } {
                let (low, high) = (low && byte == least, high && byte == most);
                match *wanted {
                    b'*' => next.insert((at, low, high)),
                    wanted if wanted == b'?' || wanted == byte => next.insert((at + 1, low, high)),
                    _ => false,
                };
            }
        }
        skip(&mut next);
        standing = next;
    }
    standing.iter().any(|(at, ..)| *at == pattern.len())
}

fn trailing_digits(id: &DeviceId) -> usize {
    id.as_str().bytes().rev().take_while(u8::is_ascii_digit).count()
}

impl FromStr for IdRange {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let Some((first, last)) = s.split_once("..") else {
            return s.parse().map(Self::Pattern);
        };
        let wrong = |what: &str| {
            format!("{s:?} is no run of ids: {what}; hint: write FIRST..LAST, such as SN-0100..SN-0199")
        };
        let first = DeviceId::new(first).map_err(|e| wrong(&e.to_string()))?;
        let last = DeviceId::new(last).map_err(|e| wrong(&e.to_string()))?;
        let run = Self::Run { first, last };
        let Self::Run { first, last } = &run else {
            return Err(wrong("it is a pattern"));
        };
        if first.as_str().len() != last.as_str().len() {
            return Err(wrong("both must have the same length"));
        }
        let fixed = first.as_str().len() - run.digits();
        if run.digits() == 0 || first.as_str()[..fixed] != last.as_str()[..fixed] {
            return Err(wrong("both must end in digits, and agree before them"));
        }
        if run.bounds().is_none_or(|(from, to)| from > to) {
            return Err(wrong("the last comes before the first"));
        }
        Ok(run)
    }
}

impl TryFrom<String> for IdRange {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

impl From<IdRange> for String {
    fn from(r: IdRange) -> Self {
        r.to_string()
    }
}

impl fmt::Display for IdRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pattern(pattern) => pattern.fmt(f),
            Self::Run { first, last } => write!(f, "{first}..{last}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> DeviceId {
        DeviceId::new(text).unwrap()
    }

    #[test]
    fn a_run_has_ids_of_one_form_only() {
        let run: IdRange = "SN-0100..SN-0199".parse().unwrap();
        for (text, fits) in [
            ("SN-0100", true),
            ("SN-0150", true),
            ("SN-0199", true),
            ("SN-0200", false),
            ("SN-0099", false),
            ("SN-150", false),
            ("SN-00150", false),
            ("SM-0150", false),
            ("SN-01A0", false),
            ("SN0-150", false),
        ] {
            assert_eq!(run.fits(&id(text)), fits, "{text}");
        }
        assert_eq!(run.to_string(), "SN-0100..SN-0199");
        for bad in [
            "a..b",
            "SN-1..SN-10",
            "SN-9..SM-9",
            "SN-9..SN-1",
            "SN-1..",
            "a1b..a2c",
        ] {
            assert!(bad.parse::<IdRange>().is_err(), "{bad}");
        }
        let pattern: IdRange = "SN-*".parse().unwrap();
        assert!(pattern.fits(&id("SN-x")) && !pattern.fits(&id("X")));
    }

    #[test]
    fn ranges_overlap_if_some_id_is_in_both() {
        for (a, b, overlap) in [
            ("SN-0100..SN-0199", "SN-0199..SN-0250", true),
            ("SN-0100..SN-0199", "SN-0200..SN-0250", false),
            ("SN-0100..SN-0199", "SN-0000..SN-9999", true),
            ("SN-0100..SN-0199", "SN-00100..SN-00199", false),
            ("SN-0100..SN-0199", "SM-0100..SM-0199", false),
            ("SN-0100..SN-0199", "SN-*", true),
            ("SN-0100..SN-0199", "SN-02*", false),
            ("SN-0100..SN-0199", "SN-??50", true),
            ("SN-0110..SN-0130", "SN-??50", false),
            ("SN-0110..SN-0130", "SN-??3?", true),
            ("SN-0110..SN-0129", "SN-??3?", false),
            ("SN-0100..SN-0199", "SN-*A", false),
            ("SN-0100..SN-0199", "*9", true),
            ("SN-0100..SN-0199", "SN-???", false),
            ("SN-0100..SN-0199", "*-*-*", false),
            ("SN-*", "S?-4*", true),
        ] {
            let (x, y): (IdRange, IdRange) = (a.parse().unwrap(), b.parse().unwrap());
            assert_eq!(x.overlaps(&y), overlap, "{a} {b}");
            assert_eq!(y.overlaps(&x), overlap, "{b} {a}");
        }
        for (range, inside) in [("SN-0100..SN-0199", "SN-0150"), ("SN-*", "SN-z"), ("*", "x")] {
            let (from, to) = range.parse::<IdRange>().unwrap().span();
            assert!(from.as_str() <= inside && inside <= to.as_str(), "{range}");
        }
    }

    #[test]
    fn gaps_are_told_between_the_lowest_and_the_highest_that_were_used() {
        let run: IdRange = "SN-000..SN-999".parse().unwrap();
        let used = ["SN-007", "SN-003", "SN-004", "SN-010"].map(id);
        assert_eq!(
            run.gaps(&used, 3),
            (4, vec!["SN-005".into(), "SN-006".into(), "SN-008".into()])
        );
        assert_eq!("*".parse::<IdRange>().unwrap().gaps(&used, 3).0, 0);
    }
}
