//! What tells the time. Here is only what it looks like: a shell has one, a test moves one of its own.

use crate::Timestamp;

/// Tells the time. The process has one; a test may hold it still or move it.
pub trait Clock: Send + Sync {
    /// The time now.
    fn now(&self) -> Timestamp;

    /// Whether something keeps this clock right.
    fn synchronisation(&self) -> Synchronisation {
        Synchronisation::Unknown("this clock cannot tell".into())
    }
}

/// Whether something keeps a clock right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Synchronisation {
    /// A time service says so.
    Synchronised,
    /// Nothing does, or it gave up.
    Unsynchronised,
    /// It cannot be told, and why.
    Unknown(String),
}

impl Synchronisation {
    /// The name in API and output.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Synchronised => "synchronised",
            Self::Unsynchronised => "unsynchronised",
            Self::Unknown(_) => "unknown",
        }
    }
}
