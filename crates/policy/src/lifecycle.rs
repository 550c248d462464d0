//! The states of a device and the only moves between them.
//!
//! ```text
//! pending ──activate──▶ active ◀──resume── suspended
//!                        │  └──suspend──▶     │
//!                        └──quarantine──┬─────┘
//!                                       ▼
//!                                  quarantined ──release──▶ the state before
//! any ──decommission──▶ decommissioned (final)
//! ```
//!
//! A suspension and a quarantine may carry an end ([`Lifecycle::until`]); what time ends is a step of its own
//! ([`Lifecycle::step_at`]). A suspension that ends during quarantine changes what release returns to.

use std::fmt;
use std::str::FromStr;

use countersign_identity::Timestamp;
use serde::{Deserialize, Serialize};

/// Where a device stands. Only `active` is admitted by the built-in rules.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LifecycleState {
    /// Known, not yet let in.
    Pending,
    /// Let in, if policy permits.
    Active,
    /// Kept out until resumed.
    Suspended,
    /// Kept apart: nothing but what policy opens for quarantine.
    Quarantined,
    /// Ended for good.
    Decommissioned,
}

/// A move of the lifecycle table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LifecycleMove {
    /// `pending → active`
    Activate,
    /// `active → suspended`
    Suspend,
    /// `suspended → active`
    Resume,
    /// `active | suspended → quarantined`
    Quarantine,
    /// `quarantined →` the state before
    Release,
    /// any `→ decommissioned`
    Decommission,
}

/// A move that the table does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a device that is {from} cannot be {}; {}", attempted.done(), allowed_text(*from))]
pub struct IllegalMove {
    /// The state the device is in.
    pub from: LifecycleState,
    /// The move that was asked for.
    pub attempted: LifecycleMove,
}

/// What a state without an end was asked to end by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a device that is {0} has no end; hint: only a suspension and a quarantine take a time")]
pub struct NoEnd(pub LifecycleState);

/// What ended because its time was over.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TimeEnd {
    /// A suspension: the device is active again, or will be when it is released from quarantine.
    Suspension,
    /// A quarantine: the device is where it was before.
    Quarantine,
}

impl TimeEnd {
    /// The audit's name for it.
    pub const fn action(self) -> &'static str {
        match self {
            Self::Suspension => "device.suspension-ended",
            Self::Quarantine => "device.quarantine-ended",
        }
    }
}

/// State of a device together with what quarantine remembers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Lifecycle {
    /// The state now.
    pub state: LifecycleState,
    /// While quarantined: what release returns to. `None` in every other state.
    pub before_quarantine: Option<LifecycleState>,
    /// When the suspension ends by itself; also while quarantined, for the suspension that release returns to.
    pub suspended_until: Option<Timestamp>,
    /// When the quarantine ends by itself.
    pub quarantined_until: Option<Timestamp>,
}

impl Lifecycle {
    /// A device in `state`, not quarantined.
    pub const fn new(state: LifecycleState) -> Self {
        Self {
            state,
            before_quarantine: None,
            suspended_until: None,
            quarantined_until: None,
        }
    }

    /// Gives the state that was just moved into an end.
    ///
    /// # Errors
    /// [`NoEnd`] if it is neither suspended nor quarantined.
    pub fn until(self, end: Timestamp) -> Result<Self, NoEnd> {
        match self.state {
            LifecycleState::Suspended => Ok(Self {
                suspended_until: Some(end),
                ..self
            }),
            LifecycleState::Quarantined => Ok(Self {
                quarantined_until: Some(end),
                ..self
            }),
            other => Err(NoEnd(other)),
        }
    }

    /// The next thing that time has ended by `now`, and what follows; `None` if nothing has. Called until it is `None`.
    pub fn step_at(self, now: Timestamp) -> Option<(TimeEnd, Self)> {
        let due = |end: Option<Timestamp>| end.is_some_and(|end| end <= now);
        match (self.state, self.before_quarantine) {
            (LifecycleState::Suspended, _) if due(self.suspended_until) => {
                Some((TimeEnd::Suspension, Self::new(LifecycleState::Active)))
            }
            (LifecycleState::Quarantined, Some(LifecycleState::Suspended)) if due(self.suspended_until) => {
                let after = Self {
                    before_quarantine: Some(LifecycleState::Active),
                    suspended_until: None,
                    ..self
                };
                Some((TimeEnd::Suspension, after))
            }
            (LifecycleState::Quarantined, Some(before)) if due(self.quarantined_until) => Some((
                TimeEnd::Quarantine,
                Self {
                    suspended_until: self.suspended_until,
                    ..Self::new(before)
                },
            )),
            _ => None,
        }
    }

    /// Applies a move.
    ///
    /// # Errors
    /// [`IllegalMove`] if the table does not have it; then nothing changes.
    pub fn apply(self, attempted: LifecycleMove) -> Result<Self, IllegalMove> {
        use LifecycleMove as M;
        use LifecycleState as S;
        let illegal = IllegalMove {
            from: self.state,
            attempted,
        };
        match (self.state, attempted) {
            (S::Pending, M::Activate) | (S::Suspended, M::Resume) => Ok(Self::new(S::Active)),
            (S::Active, M::Suspend) => Ok(Self::new(S::Suspended)),
            (S::Active | S::Suspended, M::Quarantine) => Ok(Self {
                state: S::Quarantined,
                before_quarantine: Some(self.state),
                quarantined_until: None,
                suspended_until: self.suspended_until,
            }),
            (S::Quarantined, M::Release) => {
                let before = self.before_quarantine.ok_or(illegal)?;
                Ok(Self {
                    suspended_until: self.suspended_until,
                    ..Self::new(before)
                })
            }
            (S::Pending | S::Active | S::Suspended | S::Quarantined, M::Decommission) => {
                Ok(Self::new(S::Decommissioned))
            }
            _ => Err(illegal),
        }
    }
}

impl LifecycleState {
    /// All states, in the order of a device's life.
    pub const ALL: [Self; 5] = [
        Self::Pending,
        Self::Active,
        Self::Suspended,
        Self::Quarantined,
        Self::Decommissioned,
    ];

    /// The state's name everywhere: store, API, log, CLI.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Quarantined => "quarantined",
            Self::Decommissioned => "decommissioned",
        }
    }
}

impl LifecycleMove {
    /// All moves.
    pub const ALL: [Self; 6] = [
        Self::Activate,
        Self::Suspend,
        Self::Resume,
        Self::Quarantine,
        Self::Release,
        Self::Decommission,
    ];

    /// The move's name, as in the CLI.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Activate => "activate",
            Self::Suspend => "suspend",
            Self::Resume => "resume",
            Self::Quarantine => "quarantine",
            Self::Release => "release",
            Self::Decommission => "decommission",
        }
    }

    /// As in "cannot be suspended".
    const fn done(self) -> &'static str {
        match self {
            Self::Activate => "activated",
            Self::Suspend => "suspended",
            Self::Resume => "resumed",
            Self::Quarantine => "quarantined",
            Self::Release => "released",
            Self::Decommission => "decommissioned",
        }
    }
}

fn allowed_text(from: LifecycleState) -> String {
    let before = (from == LifecycleState::Quarantined).then_some(LifecycleState::Active);
    let lifecycle = Lifecycle {
        before_quarantine: before,
        ..Lifecycle::new(from)
    };
    let moves: Vec<_> = LifecycleMove::ALL
        .into_iter()
        .filter(|m| lifecycle.apply(*m).is_ok())
        .map(LifecycleMove::name)
        .collect();
    if moves.is_empty() {
        "that state is final".into()
    } else {
        format!("possible: {}", moves.join(", "))
    }
}

impl fmt::Display for LifecycleState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for LifecycleMove {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for LifecycleState {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|x| x.name() == s)
            .ok_or_else(|| format!("{s:?} is no lifecycle state"))
    }
}

impl FromStr for LifecycleMove {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|x| x.name() == s)
            .ok_or_else(|| format!("{s:?} is no lifecycle move"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole table, so that a change of it is a change of this test.
    #[test]
    fn the_table_is_this_and_nothing_else() {
        let mut table = Vec::new();
        for state in LifecycleState::ALL {
            for attempted in LifecycleMove::ALL {
                for before in [LifecycleState::Active, LifecycleState::Suspended] {
                    let before_quarantine = (state == LifecycleState::Quarantined).then_some(before);
                    if let Ok(next) = (Lifecycle {
                        before_quarantine,
                        ..Lifecycle::new(state)
                    })
                    .apply(attempted)
                    {
                        let row = format!("{state} {attempted} -> {}", next.state);
                        if !table.contains(&row) {
                            table.push(row);
                        }
                    }
                }
            }
        }
        assert_eq!(
            table,
            [
                "pending activate -> active",
                "pending decommission -> decommissioned",
                "active suspend -> suspended",
                "active quarantine -> quarantined",
                "active decommission -> decommissioned",
                "suspended resume -> active",
                "suspended quarantine -> quarantined",
                "suspended decommission -> decommissioned",
                "quarantined release -> active",
                "quarantined release -> suspended",
                "quarantined decommission -> decommissioned",
            ]
        );
    }

    #[test]
    fn an_illegal_move_says_what_is_possible() {
        let e = Lifecycle::new(LifecycleState::Active)
            .apply(LifecycleMove::Resume)
            .unwrap_err();
        assert_eq!(
            e.to_string(),
            "a device that is active cannot be resumed; possible: suspend, quarantine, decommission"
        );
        let e = Lifecycle::new(LifecycleState::Decommissioned)
            .apply(LifecycleMove::Resume)
            .unwrap_err();
        assert_eq!(
            e.to_string(),
            "a device that is decommissioned cannot be resumed; that state is final"
        );
    }

    fn at(s: i64) -> Timestamp {
        Timestamp::from_unix_s(s)
    }

    #[test]
    fn only_a_suspension_and_a_quarantine_take_an_end() {
        for state in LifecycleState::ALL {
            let ends = matches!(state, LifecycleState::Suspended | LifecycleState::Quarantined);
            assert_eq!(Lifecycle::new(state).until(at(1)).is_ok(), ends, "{state}");
        }
    }

    #[test]
    fn a_suspension_ends_at_its_time_and_not_before() {
        let suspended = Lifecycle::new(LifecycleState::Active)
            .apply(LifecycleMove::Suspend)
            .unwrap()
            .until(at(100))
            .unwrap();
        assert_eq!(suspended.step_at(at(99)), None);
        let (ended, after) = suspended.step_at(at(100)).unwrap();
        assert_eq!(ended, TimeEnd::Suspension);
        assert_eq!(after, Lifecycle::new(LifecycleState::Active));
        assert_eq!(after.step_at(at(1_000)), None);
    }

    #[test]
    fn a_suspension_that_ends_in_quarantine_changes_what_release_returns_to() {
        let quarantined = Lifecycle::new(LifecycleState::Active)
            .apply(LifecycleMove::Suspend)
            .unwrap()
            .until(at(100))
            .unwrap()
            .apply(LifecycleMove::Quarantine)
            .unwrap();
        // Released before: suspended again, until the same time.
        let released = quarantined.apply(LifecycleMove::Release).unwrap();
        assert_eq!(released.state, LifecycleState::Suspended);
        assert_eq!(released.suspended_until, Some(at(100)));
        // Not released: it stays apart, and comes back active.
        let (ended, after) = quarantined.step_at(at(100)).unwrap();
        assert_eq!(ended, TimeEnd::Suspension);
        assert_eq!(after.state, LifecycleState::Quarantined);
        assert_eq!(after.step_at(at(1_000)), None);
        assert_eq!(
            after.apply(LifecycleMove::Release),
            Ok(Lifecycle::new(LifecycleState::Active))
        );
    }

    #[test]
    fn a_quarantine_with_an_end_returns_to_a_suspension_that_goes_on() {
        let quarantined = Lifecycle::new(LifecycleState::Suspended)
            .until(at(300))
            .unwrap()
            .apply(LifecycleMove::Quarantine)
            .unwrap()
            .until(at(200))
            .unwrap();
        let (ended, after) = quarantined.step_at(at(250)).unwrap();
        assert_eq!(
            (ended, after.state),
            (TimeEnd::Quarantine, LifecycleState::Suspended)
        );
        assert_eq!(after.suspended_until, Some(at(300)));
        // Both are over: whatever comes first, it is active in the end.
        let mut lifecycle = quarantined;
        while let Some((_, next)) = lifecycle.step_at(at(300)) {
            lifecycle = next;
        }
        assert_eq!(lifecycle, Lifecycle::new(LifecycleState::Active));
        // What is final has no end to wait for.
        let gone = quarantined.apply(LifecycleMove::Decommission).unwrap();
        assert_eq!(gone, Lifecycle::new(LifecycleState::Decommissioned));
    }
}
