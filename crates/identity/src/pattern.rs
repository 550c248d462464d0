//! Which device ids may come: by an authority's just-in-time template, or in a factory's batch.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::DeviceId;

/// Which device ids fit: `*` stands for any number of characters, `?` for one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IdPattern(String);

impl IdPattern {
    /// Whether an id fits, as a whole. Linear in the product of both lengths, which are at most 64.
    pub fn fits(&self, id: &DeviceId) -> bool {
        // reached[i]: the pattern read so far can end at i.
        let id = id.as_str().as_bytes();
        let mut reached = vec![false; id.len() + 1];
        reached[0] = true;
        for p in self.0.bytes() {
            if p == b'*' {
                let first = reached.iter().position(|r| *r).unwrap_or(reached.len());
                reached[first..].fill(true);
            } else {
                for i in (0..id.len()).rev() {
                    reached[i + 1] = reached[i] && (p == b'?' || p == id[i]);
                }
                reached[0] = false;
            }
        }
        reached[id.len()]
    }

    /// Whether some text fits both. Linear in the product of both lengths, which are at most 64.
    pub fn overlaps(&self, other: &Self) -> bool {
        let (a, b) = (self.0.as_bytes(), other.0.as_bytes());
        // reached[j]: the part of `a` and the first j bytes of `b` have a text in common.
        let mut reached = vec![false; b.len() + 1];
        reached[0] = true;
        for j in 0..b.len() {
            reached[j + 1] = reached[j] && b[j] == b'*';
        }
        for p in a {
            let before = reached.clone();
            reached[0] = before[0] && *p == b'*';
            for (j, q) in b.iter().enumerate() {
                reached[j + 1] = match (*p, *q) {
                    (b'*', _) | (_, b'*') => before[j + 1] || reached[j],
                    (p, q) => before[j] && (p == q || p == b'?' || q == b'?'),
                };
            }
        }
        reached[b.len()]
    }

    /// What every text that fits begins with.
    pub fn prefix(&self) -> &str {
        let end = self.0.find(['*', '?']).unwrap_or(self.0.len());
        &self.0[..end]
    }
}

impl FromStr for IdPattern {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"._:-*?".contains(&b);
        if s.is_empty() || s.len() > 64 || !s.bytes().all(fits) {
            return Err(format!(
                "{s:?} is no id pattern: 1 to 64 of A-Z a-z 0-9 . _ : - with * and ? as wildcards"
            ));
        }
        Ok(Self(s.to_owned()))
    }
}

impl TryFrom<String> for IdPattern {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

impl From<IdPattern> for String {
    fn from(p: IdPattern) -> Self {
        p.0
    }
}

impl fmt::Display for IdPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_as_a_whole() {
        for (pattern, id, fits) in [
            ("SN-*", "SN-1", true),
            ("SN-*", "SN-", true),
            ("SN-*", "xSN-1", false),
            ("SN-????", "SN-1234", true),
            ("SN-????", "SN-12345", false),
            ("*-eu-*", "a-eu-b-eu-c", true),
            ("*a*b", "aab", true),
            ("*a*b", "aba", false),
            ("abc", "abc", true),
            ("abc", "abcd", false),
            ("*", "x", true),
            ("**", "x", true),
        ] {
            let p: IdPattern = pattern.parse().unwrap();
            assert_eq!(p.fits(&DeviceId::new(id).unwrap()), fits, "{pattern} {id}");
        }
        for bad in ["", "a/b", "a#", "ü"] {
            assert!(bad.parse::<IdPattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn patterns_overlap_if_some_text_fits_both() {
        for (a, b, overlap) in [
            ("SN-*", "SN-4*", true),
            ("SN-*", "SM-*", false),
            ("SN-1?", "SN-2?", false),
            ("SN-?", "SN-??", false),
            ("SN-?*", "SN-??", true),
            ("*-eu", "de-*", true),
            ("*-eu", "*-us", false),
            ("*a*b", "b*a", false),
            ("*a*b", "b*a*", true),
            ("abc", "abc", true),
            ("abc", "ab", false),
            ("ab*", "ab", true),
            ("*", "x", true),
            ("**", "?*?", true),
        ] {
            let (p, q): (IdPattern, IdPattern) = (a.parse().unwrap(), b.parse().unwrap());
            assert_eq!(p.overlaps(&q), overlap, "{a} {b}");
            assert_eq!(q.overlaps(&p), overlap, "{b} {a}");
        }
        let prefix = |text: &str| text.parse::<IdPattern>().unwrap().prefix().to_owned();
        assert_eq!(["SN-*", "a?b*", "*", "abc"].map(prefix), ["SN-", "a", "", "abc"]);
    }
}
