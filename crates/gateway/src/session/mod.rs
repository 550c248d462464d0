//! Stage 9 and on: a session exists only while it is indexed, and was checked again after it was.
//!
//! * [`entry`]: a live session as others see it
//! * `index`: all of them, found by device
//! * `grant`: from a greeted device to an indexed session: register, then check
//! * `clones`: what tells two holders of one key from one that roams
//! * `mqtt`: what a session's packets do
//! * `review`: whether a session may keep what it has
//! * `sweep`: the safety net under it
//! * [`token`]: sessions without a connection
//! * `traffic`: what a session sent and received, by topic, for the ledger
//! * [`cutoff`]: changes end the sessions they touch, and say how many and how fast

pub(crate) mod clones;
pub mod cutoff;
pub mod entry;
pub(crate) mod grant;
pub(crate) mod index;
pub(crate) mod mqtt;
mod review;
pub(crate) mod spaces;
pub(crate) mod sweep;
pub mod token;
pub(crate) mod traffic;
pub(crate) mod will;

pub use entry::{EndReason, SessionEntry};
