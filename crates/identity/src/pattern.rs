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
}
