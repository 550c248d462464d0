//! Claims: one secret or certificate for many devices, for lines that cannot give each device its own.
//!
//! A claim leaks sooner or later: it is in every device's first firmware. So it enrols only the ids on its list (or of a
//! pattern, with a quota), none that was enrolled before, and not for long; and everything it minted is found by it.

use std::fmt;
use std::str::FromStr;

use countersign_identity::{DeviceId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::first_contact::IdPattern;

/// A claim's name within its tenant: 1 to 64 of `A-Z a-z 0-9 . _ -`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClaimId(String);

impl ClaimId {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClaimId {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if s.is_empty() || s.len() > 64 || !s.bytes().all(fits) {
            return Err(format!("{s:?} is no claim's name: 1 to 64 of A-Z a-z 0-9 . _ -"));
        }
        Ok(Self(s.to_owned()))
    }
}

impl TryFrom<String> for ClaimId {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

impl From<ClaimId> for String {
    fn from(id: ClaimId) -> Self {
        id.0
    }
}

impl fmt::Display for ClaimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which ids a claim enrols. There is no "all".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum AllowList {
    /// These.
    Ids(Vec<DeviceId>),
    /// Those that fit, and so many of them in all.
    Pattern {
        /// The pattern.
        pattern: IdPattern,
        /// How many devices.
        quota: u64,
    },
}

/// What is known at the moment of the decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimFacts {
    /// Whether it was revoked.
    pub is_revoked: bool,
    /// The last moment at which it is good.
    pub expires: Timestamp,
    /// Whether the id is on the list, or fits the pattern.
    pub is_listed: bool,
    /// The quota, if there is one, and how many other devices it was used up by.
    pub quota: Option<(u64, u64)>,
    /// Whether the device has or had a certificate in use for another key, and it was not revoked: whoever finds a claim
    /// must not become a device whose certificate merely expired.
    pub is_enrolled: bool,
    /// Whether a certificate of the device was revoked because somebody else has a key. Then somebody else may have all that the
    /// device had, the claim included.
    pub is_compromised: bool,
}

/// Why a claim does not enrol a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClaimRefusal {
    /// No such claim, or not its secret.
    Unknown,
    /// Revoked.
    Revoked,
    /// Its time is over.
    Expired,
    /// The id is not on its list.
    NotListed,
    /// The quota is used up.
    Quota,
    /// Somebody else has, or had, a key of the device.
    Compromised,
    /// The device was enrolled before.
    Enrolled,
    /// It was enrolled for this key, and the certificate is not to be had again.
    Renewal,
}

impl ClaimRefusal {
    /// All of them, in the order in which they are looked for.
    pub const ALL: [Self; 8] = [
        Self::Unknown,
        Self::Revoked,
        Self::Expired,
        Self::NotListed,
        Self::Quota,
        Self::Compromised,
        Self::Enrolled,
        Self::Renewal,
    ];

    /// The stable code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Unknown => "claim.unknown",
            Self::Revoked => "claim.revoked",
            Self::Expired => "claim.expired",
            Self::NotListed => "claim.not-listed",
            Self::Quota => "claim.quota",
            Self::Compromised => "claim.compromised",
            Self::Enrolled => "claim.enrolled",
            Self::Renewal => "claim.renewal",
        }
    }

    /// What happened.
    pub const fn cause(self) -> &'static str {
        match self {
            Self::Unknown => "there is no such claim, or the secret is not its",
            Self::Revoked => "the claim was revoked",
            Self::Expired => "the claim's time is over",
            Self::NotListed => "the id is not one that this claim enrols",
            Self::Quota => "the claim's quota is used up",
            Self::Compromised => {
                "a certificate of the device was revoked for a compromised key: whoever has that may have the claim too"
            }
            Self::Enrolled => "the device was enrolled before, for another key",
            Self::Renewal => "the device was enrolled before, for this key, and a claim renews nothing",
        }
    }

    /// What to do.
    pub const fn cure(self) -> &'static str {
        match self {
            Self::Unknown => "see which there are: countersign factory claim list",
            Self::Revoked | Self::Expired => "make a new one: countersign factory claim add",
            Self::NotListed => {
                "ask for an id on its list, or make a claim for this one: countersign factory claim add"
            }
            Self::Quota => {
                "see what it minted (countersign factory claim show); if that is as it should be, make another"
            }
            Self::Compromised => "give the device a one-time secret: countersign device secret ID",
            Self::Enrolled => {
                "renew by that certificate; if its key is lost: countersign device revoke, then enrol again"
            }
            Self::Renewal => {
                "renew by that certificate; if it has expired: a one-time secret (countersign device secret)"
            }
        }
    }
}

impl fmt::Display for ClaimRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; hint: {}", self.code(), self.cause(), self.cure())
    }
}

impl std::error::Error for ClaimRefusal {}

/// Decides whether a claim whose holder has proven it enrols a device.
///
/// # Errors
/// The first [`ClaimRefusal`] in the order of [`ClaimRefusal::ALL`].
pub fn decide(facts: &ClaimFacts, now: Timestamp) -> Result<(), ClaimRefusal> {
    if facts.is_revoked {
        return Err(ClaimRefusal::Revoked);
    }
    if now > facts.expires {
        return Err(ClaimRefusal::Expired);
    }
    if !facts.is_listed {
        return Err(ClaimRefusal::NotListed);
    }
    if facts.quota.is_some_and(|(quota, used)| used >= quota) {
        return Err(ClaimRefusal::Quota);
    }
    if facts.is_compromised {
        return Err(ClaimRefusal::Compromised);
    }
    if facts.is_enrolled {
        return Err(ClaimRefusal::Enrolled);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_condition_alone_refuses() {
        const NOW: Timestamp = Timestamp::from_unix_s(1_795_000_000);
        let good = ClaimFacts {
            is_revoked: false,
            expires: NOW,
            is_listed: true,
            quota: Some((10, 9)),
            is_enrolled: false,
            is_compromised: false,
        };
        assert_eq!(decide(&good, NOW), Ok(()));
        let check = |change: &dyn Fn(&mut ClaimFacts), refusal| {
            let mut facts = good.clone();
            change(&mut facts);
            assert_eq!(decide(&facts, NOW), Err(refusal));
        };
        check(&|f| f.is_revoked = true, ClaimRefusal::Revoked);
        check(&|f| f.expires = Timestamp::from_unix_s(1), ClaimRefusal::Expired);
        check(&|f| f.is_listed = false, ClaimRefusal::NotListed);
        check(&|f| f.quota = Some((10, 10)), ClaimRefusal::Quota);
        check(&|f| f.quota = Some((0, 0)), ClaimRefusal::Quota);
        check(&|f| f.is_enrolled = true, ClaimRefusal::Enrolled);
        check(&|f| f.is_compromised = true, ClaimRefusal::Compromised);
        assert!("line-1".parse::<ClaimId>().is_ok());
        for bad in ["", "a/b", "a b", &"x".repeat(65)] {
            assert!(bad.parse::<ClaimId>().is_err(), "{bad}");
        }
    }
}
