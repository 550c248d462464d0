//! The offline factory station: a machine on the line that issues identities without any network, and accounts for them
//! later.
//!
//! 1. [`disk`]: what it needs of a file system, so that tests can cut the power at every point
//! 2. [`book`]: the journal in storage: a record is durable before anything it tells of is handed out
//! 3. [`station`]: what an operator does: init, install, issue, written, confirm, export, close
//! 4. [`fault`]: what can go wrong, each with a code, a cure and an exit code
//! 5. `countersign-station`: the command line
#![allow(
    clippy::disallowed_methods,
    reason = "a shell: its command line reads the clock and passes `now` to what is here"
)]

pub mod book;
pub mod disk;
pub mod fault;
pub mod station;

pub use disk::{Disk, Folder};
pub use fault::Fault;
pub use station::{Handed, Standing, Station};
