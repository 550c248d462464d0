//! The renewal lane: a device whose certificate expired while it was off may have the next one, and nothing else.
//!
//! The decision is a pure function; the registry takes it inside the transaction that keeps the next certificate, so that
//! two attempts at once cannot both succeed.

use std::time::Duration;

use countersign_identity::Timestamp;

use crate::facts::{CredentialKind, CredentialState};
use crate::lifecycle::LifecycleState;

/// The lane's rules. There is none unless it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RenewalLane {
    days_max: u32,
    keys: LaneKeys,
}

/// Which keys the lane issues for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LaneKeys {
    /// Only one that the device did not have before: whoever found an old certificate's key does not live on it.
    #[default]
    New,
    /// Also that of the expired certificate.
    Any,
}

/// What is known of the expired certificate at the moment of the decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneFacts {
    /// Where the device stands.
    pub device: LifecycleState,
    /// What the expired certificate was for.
    pub kind: CredentialKind,
    /// Where it stands.
    pub state: CredentialState,
    /// The last moment of its validity.
    pub not_after: Timestamp,
    /// Whether the device has a newer one of that kind, other than the one it asks for.
    pub has_newer: bool,
    /// Whether the lane issued for it already, and for which key.
    pub used: LaneUse,
    /// What is asked for is for this.
    pub wanted: CredentialKind,
    /// Whether it is asked for the expired certificate's own key.
    pub is_same_key: bool,
}

/// What the lane did for a certificate before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneUse {
    /// Nothing.
    Unused,
    /// It issued, for the very key that is asked for again.
    ForThisKey,
    /// It issued, for another key.
    ForOtherKey,
}

/// What the lane lets happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LanePass {
    /// A certificate may be issued.
    Issue,
    /// The one that was issued before may be handed out again, and nothing new.
    Repeat,
}

/// Why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LaneRefusal {
    /// There is no lane.
    Closed,
    /// The certificate is not registered for the device that it names.
    Unknown,
    /// The certificate was revoked, superseded, has lapsed or was never in use.
    State,
    /// The device is not active.
    Device,
    /// It expired too long ago.
    TooLate,
    /// The device has a newer one.
    NotLatest,
    /// It has been used up.
    Used,
    /// The key is the old one.
    SameKey,
    /// What is asked for is of another kind.
    Kind,
}

impl LaneRefusal {
    /// All of them, in the order in which they are looked for.
    pub const ALL: [Self; 9] = [
        Self::Closed,
        Self::Unknown,
        Self::State,
        Self::Device,
        Self::TooLate,
        Self::NotLatest,
        Self::Used,
        Self::SameKey,
        Self::Kind,
    ];

    /// The stable code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Closed => "lane.closed",
            Self::Unknown => "lane.unknown-credential",
            Self::State => "lane.credential-state",
            Self::Device => "lane.device-state",
            Self::TooLate => "lane.too-late",
            Self::NotLatest => "lane.not-latest",
            Self::Used => "lane.used",
            Self::SameKey => "lane.same-key",
            Self::Kind => "lane.other-kind",
        }
    }

    /// What happened.
    pub const fn cause(self) -> &'static str {
        match self {
            Self::Closed => "the certificate is expired, and expired certificates are not renewed here",
            Self::Unknown => "the expired certificate is not registered for the device that it names",
            Self::State => "the expired certificate was revoked, superseded, has lapsed or was never in use",
            Self::Device => "the device is not active",
            Self::TooLate => "the certificate expired longer ago than expired ones are renewed",
            Self::NotLatest => "the device has a newer certificate of this kind",
            Self::Used => "the renewal lane issued for this certificate already, for another key",
            Self::SameKey => "the request is for the key of the expired certificate",
            Self::Kind => "the profile that is asked for is of another kind than the expired certificate",
        }
    }

    /// What to do.
    pub const fn cure(self) -> &'static str {
        match self {
            Self::Closed => {
                "enrol by the factory's certificate or a one-time secret (countersign device secret), or set enrol.expired_days_max"
            }
            Self::Unknown | Self::State | Self::TooLate => {
                "enrol by the factory's certificate or a one-time secret (countersign device secret)"
            }
            Self::Device => "see why: countersign device show; then activate, resume or release it",
            Self::NotLatest => {
                "renew by that one; if it is lost, use a one-time secret (countersign device secret)"
            }
            Self::Used => {
                "ask for the certificate of that key again, or use a one-time secret (countersign device secret); if the device did not ask, its old key is with somebody else: countersign device revoke"
            }
            Self::SameKey => "make a new key, or set lane_same_key in the profile",
            Self::Kind => "ask for a profile of the same kind",
        }
    }
}

impl std::fmt::Display for LaneRefusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}; hint: {}", self.code(), self.cause(), self.cure())
    }
}

impl std::error::Error for LaneRefusal {}

impl RenewalLane {
    /// For certificates that expired at most so many days ago. `None` for 0: there is no lane.
    pub fn open(days_max: u32, keys: LaneKeys) -> Option<Self> {
        (days_max > 0).then_some(Self { days_max, keys })
    }

    /// Decides about one request of a device that has proven to hold the expired certificate's key.
    ///
    /// # Errors
    /// The first [`LaneRefusal`] in the order of [`LaneRefusal::ALL`].
    pub fn decide(&self, facts: &LaneFacts, now: Timestamp) -> Result<LanePass, LaneRefusal> {
        if facts.state != CredentialState::Active {
            return Err(LaneRefusal::State);
        }
        if facts.device != LifecycleState::Active {
            return Err(LaneRefusal::Device);
        }
        let days = Duration::from_secs(u64::from(self.days_max) * 86_400);
        if now.since(facts.not_after) > days {
            return Err(LaneRefusal::TooLate);
        }
        match facts.used {
            LaneUse::ForThisKey => return Ok(LanePass::Repeat),
            _ if facts.has_newer && facts.used == LaneUse::Unused => return Err(LaneRefusal::NotLatest),
            LaneUse::ForOtherKey => return Err(LaneRefusal::Used),
            LaneUse::Unused => {}
        }
        if facts.is_same_key && self.keys == LaneKeys::New {
            return Err(LaneRefusal::SameKey);
        }
        if facts.wanted != facts.kind {
            return Err(LaneRefusal::Kind);
        }
        Ok(LanePass::Issue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_unix_s(1_795_000_000);

    fn good() -> LaneFacts {
        LaneFacts {
            device: LifecycleState::Active,
            kind: CredentialKind::Operational,
            state: CredentialState::Active,
            not_after: NOW.minus(Duration::from_secs(3 * 86_400)),
            has_newer: false,
            used: LaneUse::Unused,
            wanted: CredentialKind::Operational,
            is_same_key: false,
        }
    }

    fn decide(change: impl FnOnce(&mut LaneFacts)) -> Result<LanePass, LaneRefusal> {
        let mut facts = good();
        change(&mut facts);
        RenewalLane::open(30, LaneKeys::New).unwrap().decide(&facts, NOW)
    }

    #[test]
    fn only_the_narrow_case_passes() {
        use LaneRefusal as R;
        assert_eq!(RenewalLane::open(0, LaneKeys::Any), None);
        assert_eq!(decide(|_| {}), Ok(LanePass::Issue));
        for state in CredentialState::ALL
            .iter()
            .filter(|s| **s != CredentialState::Active)
        {
            assert_eq!(decide(|f| f.state = *state), Err(R::State), "{state}");
        }
        for device in LifecycleState::ALL
            .iter()
            .filter(|s| **s != LifecycleState::Active)
        {
            assert_eq!(decide(|f| f.device = *device), Err(R::Device), "{device}");
        }
        let ago = |days: u64| NOW.minus(Duration::from_secs(days * 86_400));
        assert_eq!(decide(|f| f.not_after = ago(30)), Ok(LanePass::Issue));
        assert_eq!(
            decide(|f| f.not_after = ago(30).minus(Duration::from_secs(1))),
            Err(R::TooLate)
        );
        assert_eq!(decide(|f| f.has_newer = true), Err(R::NotLatest));
        assert_eq!(decide(|f| f.used = LaneUse::ForOtherKey), Err(R::Used));
        assert_eq!(decide(|f| f.is_same_key = true), Err(R::SameKey));
        assert_eq!(decide(|f| f.wanted = CredentialKind::Factory), Err(R::Kind));
        // A lost answer is asked for again: nothing new comes of it. By then the new one is the newer one.
        let again = |f: &mut LaneFacts| {
            f.used = LaneUse::ForThisKey;
            f.has_newer = true;
        };
        assert_eq!(decide(again), Ok(LanePass::Repeat));
        // Used and newer: what it was used up by is told.
        let used = |f: &mut LaneFacts| {
            f.used = LaneUse::ForOtherKey;
            f.has_newer = true;
        };
        assert_eq!(decide(used), Err(R::Used));
        let any = RenewalLane::open(30, LaneKeys::Any).unwrap();
        let mut facts = good();
        facts.is_same_key = true;
        assert_eq!(any.decide(&facts, NOW), Ok(LanePass::Issue));
    }
}
