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

use std::fmt;
use std::str::FromStr;

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
#[error("a device that is {from} cannot {attempted}; {}", allowed_text(*from))]
pub struct IllegalMove {
    /// The state the device is in.
    pub from: LifecycleState,
    /// The move that was asked for.
    pub attempted: LifecycleMove,
}

/// State of a device together with what quarantine remembers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Lifecycle {
    /// The state now.
    pub state: LifecycleState,
    /// While quarantined: what release returns to. `None` in every other state.
    pub before_quarantine: Option<LifecycleState>,
}

impl Lifecycle {
    /// A device in `state`, not quarantined.
    pub const fn new(state: LifecycleState) -> Self {
        Self {
            state,
            before_quarantine: None,
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
            }),
            (S::Quarantined, M::Release) => self.before_quarantine.map(Self::new).ok_or(illegal),
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
}

fn allowed_text(from: LifecycleState) -> String {
    let before = (from == LifecycleState::Quarantined).then_some(LifecycleState::Active);
    let lifecycle = Lifecycle {
        state: from,
        before_quarantine: before,
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
                        state,
                        before_quarantine,
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
            "a device that is active cannot resume; possible: suspend, quarantine, decommission"
        );
        let e = Lifecycle::new(LifecycleState::Decommissioned)
            .apply(LifecycleMove::Resume)
            .unwrap_err();
        assert_eq!(
            e.to_string(),
            "a device that is decommissioned cannot resume; that state is final"
        );
    }
}
