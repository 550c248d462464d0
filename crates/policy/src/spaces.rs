//! Topic spaces: names for parts of a tenant's topic tree, which policies speak of instead of topics.
//!
//! A space is a name and a filter with `{id}` as a whole level, which stands for the device's own id. Whether a space
//! contains a topic or a filter is computed by the gateway (with the `mqtt` crate); a decision gets the [`SpaceSet`]
//! of those that do.

use serde::{Deserialize, Serialize};

/// A part of the topic tree under a name, such as `telemetry` for `devices/{id}/telemetry/#`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopicSpace {
    /// The name that policies use: `a-z 0-9 . _ -`, at most [`TopicSpace::NAME_BYTES_MAX`] bytes.
    pub name: String,
    /// An MQTT topic filter; the level `{id}` stands for the device's id.
    pub filter: String,
}

impl TopicSpace {
    /// The longest name, in bytes.
    pub const NAME_BYTES_MAX: usize = 64;
    /// The longest filter, in bytes: what an MQTT string may have.
    pub const FILTER_BYTES_MAX: usize = 65_535;

    /// A space. It is checked when the policies are compiled.
    pub fn new(name: impl Into<String>, filter: impl Into<String>) -> Self {
        Self { name: name.into(), filter: filter.into() }
    }

    /// The spaces of a tenant that declares none.
    pub fn defaults() -> Vec<Self> {
        vec![
            Self::new("telemetry", "devices/{id}/telemetry/#"),
            Self::new("commands", "devices/{id}/commands/#"),
            Self::new("command-results", "devices/{id}/command-results/#"),
            Self::new("firmware", "devices/{id}/firmware/#"),
            Self::new("status", "devices/{id}/status"),
        ]
    }
}

/// Why declarations of topic spaces cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpaceFault {
    /// More spaces than a decision can tell apart.
    #[error("{count} topic spaces are declared, at most {} are possible; merge spaces that the policies treat alike", SpaceSet::SPACES_MAX)]
    TooMany {
        /// How many were declared.
        count: usize,
    },
    /// A name that policies could not be read with.
    #[error("topic space {name:?}: a name has 1 to {} characters of a-z 0-9 . _ -; rename it", TopicSpace::NAME_BYTES_MAX)]
    Name {
        /// The name.
        name: String,
    },
    /// Two spaces of one name.
    #[error("topic space {name:?} is declared twice; rename one of them")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// A filter that is no filter, whatever the device's id.
    #[error("topic space {name:?}: filter {filter:?} {problem}; write it like devices/{{id}}/telemetry/#")]
    Filter {
        /// The space.
        name: String,
        /// Its filter.
        filter: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// Checks the declarations of a tenant. The filter's characters are checked by the `mqtt` crate where it is used.
///
/// # Errors
/// The first [`SpaceFault`].
pub(crate) fn check(spaces: &[TopicSpace]) -> Result<(), SpaceFault> {
    if spaces.len() > SpaceSet::SPACES_MAX {
        return Err(SpaceFault::TooMany { count: spaces.len() });
    }
    for (n, space) in spaces.iter().enumerate() {
        let name = space.name.clone();
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
        if name.is_empty() || name.len() > TopicSpace::NAME_BYTES_MAX || !name.bytes().all(allowed) {
            return Err(SpaceFault::Name { name });
        }
        if spaces[..n].iter().any(|other| other.name == name) {
            return Err(SpaceFault::Duplicate { name });
        }
        if let Some(problem) = filter_problem(&space.filter) {
            return Err(SpaceFault::Filter { name, filter: space.filter.clone(), problem });
        }
    }
    Ok(())
}

fn filter_problem(filter: &str) -> Option<&'static str> {
    if filter.is_empty() {
        return Some("is empty");
    }
    if filter.len() > TopicSpace::FILTER_BYTES_MAX {
        return Some("is longer than an MQTT string may be");
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        if level.contains("{id}") && level != "{id}" {
            return Some("has {id} as a part of a level, and it must be a whole one");
        }
        if level != "{id}" && level.contains(['{', '}']) {
            return Some("has braces, and only {id} is known");
        }
        if level.contains('+') && level != "+" {
            return Some("has + as a part of a level, and it must be a whole one");
        }
        if level.contains('#') && (level != "#" || levels.peek().is_some()) {
            return Some("has # elsewhere than as the last level");
        }
    }
    None
}

/// Which spaces of one policy contain a topic, by their place in [`TenantPolicy::spaces`].
///
/// [`TenantPolicy::spaces`]: crate::decide::TenantPolicy::spaces
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct SpaceSet(u64);

impl SpaceSet {
    /// The most spaces a tenant may declare.
    pub const SPACES_MAX: usize = 64;

    /// The empty set: the topic is in no space.
    pub const fn new() -> Self {
        Self(0)
    }

    /// Adds the `n`-th space. A place that no policy can have is left out.
    pub const fn insert(&mut self, n: usize) {
        if n < Self::SPACES_MAX {
            self.0 |= 1 << n;
        }
    }

    /// Whether the `n`-th space is in it.
    pub const fn contains(self, n: usize) -> bool {
        n < Self::SPACES_MAX && self.0 >> n & 1 == 1
    }

    /// Whether the topic is in no space.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The names of the spaces in the set, given the spaces of the policy.
    pub fn names(self, spaces: &[TopicSpace]) -> impl Iterator<Item = &str> {
        spaces.iter().enumerate().filter(move |(n, _)| self.contains(*n)).map(|(_, s)| s.name.as_str())
    }
}

impl FromIterator<usize> for SpaceSet {
    fn from_iter<I: IntoIterator<Item = usize>>(places: I) -> Self {
        let mut set = Self::new();
        for n in places {
            set.insert(n);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_good_and_bad_ones_say_why() {
        assert_eq!(check(&TopicSpace::defaults()), Ok(()));
        for (name, filter, say) in [
            ("", "a", "a-z 0-9"),
            ("Tele metry", "a", "rename"),
            ("t", "", "is empty"),
            ("t", "devices/dev-{id}/x", "must be a whole one"),
            ("t", "devices/{name}/x", "only {id}"),
            ("t", "devices/{id}/#/x", "last level"),
            ("t", "devices/{id}/x#", "last level"),
            ("t", "devices/a+/x", "whole one"),
        ] {
            let fault = check(&[TopicSpace::new(name, filter)]).unwrap_err().to_string();
            assert!(fault.contains(say), "{fault}");
        }
        let twice = [TopicSpace::new("t", "a"), TopicSpace::new("t", "b")];
        assert!(check(&twice).unwrap_err().to_string().contains("declared twice"));
        let many: Vec<_> = (0..65).map(|n| TopicSpace::new(format!("s{n}"), "a")).collect();
        assert!(check(&many[..64]).is_ok());
        assert!(check(&many).unwrap_err().to_string().contains("65 topic spaces are declared, at most 64"));
    }

    #[test]
    fn a_set_names_its_spaces() {
        let spaces = TopicSpace::defaults();
        let mut set: SpaceSet = [0, 4].into_iter().collect();
        assert_eq!(set.names(&spaces).collect::<Vec<_>>(), ["telemetry", "status"]);
        set.insert(64);
        assert!(!set.contains(64) && !set.contains(0x100) && !set.is_empty());
    }
}
