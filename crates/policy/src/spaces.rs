//! Topic spaces: the names that policies know in place of topics.
//!
//! The gateway computes which spaces hold a topic, or every topic a filter can match, and policies see the names of
//! those. So no policy ever compares topic strings, and no client id can smuggle a wildcard into one.

use serde::{Deserialize, Serialize};

/// The most spaces of one tenant.
pub const SPACES_MAX: usize = 64;

/// A named set of topics. In the filter the level `{id}` stands for the device's own id.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopicSpace {
    /// What policies call it.
    pub name: String,
    /// An MQTT topic filter.
    pub filter: String,
}

/// What a quarantined device may publish: name and filter of a built-in space.
pub const DIAGNOSTICS: (&str, &str) = ("diagnostics", "devices/{id}/diagnostics/#");
/// Firmware for the device; all that it may subscribe to in quarantine: name and filter of a built-in space.
pub const FIRMWARE: (&str, &str) = ("firmware", "devices/{id}/firmware/#");

/// The spaces every tenant starts with: a device's own topics.
pub fn default_spaces() -> Vec<TopicSpace> {
    [
        ("telemetry", "devices/{id}/telemetry/#"),
        ("commands", "devices/{id}/commands/#"),
        ("command-results", "devices/{id}/command-results/#"),
        FIRMWARE,
        ("status", "devices/{id}/status"),
        DIAGNOSTICS,
    ]
    .map(|(name, filter)| TopicSpace {
        name: name.into(),
        filter: filter.into(),
    })
    .into()
}

/// Some of a policy's spaces, as bits in the policy's order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct SpaceSet(u64);

impl SpaceSet {
    /// Adds the `n`-th space; one beyond [`SPACES_MAX`] is ignored, and so gives no right.
    pub fn insert(&mut self, n: usize) {
        if n < SPACES_MAX {
            self.0 |= 1 << n;
        }
    }

    /// Whether the `n`-th space is in it.
    pub const fn contains(self, n: usize) -> bool {
        n < SPACES_MAX && self.0 & (1 << n) != 0
    }

    /// Those that are in both.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether there is none in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}
