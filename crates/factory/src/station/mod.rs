//! Offline factory stations: what one may issue, the journal it keeps, and the account that is taken of it later.
//!
//! The same [`Terms`] are asked three times: before the station signs, when its journal is reconciled, and, through the
//! registry, when a device shows up. So a station cannot talk itself into more than the registry knows of.
//!
//! 1. [`terms`]: batch, ids, quota, window; the grant file that carries them to the station
//! 2. [`journal`]: a chain of signed records, and what is wrong with one
//! 3. [`challenge`]: that a device holds the key of the certificate it was given
//! 4. [`account`]: from a journal to the identities that may be registered, and those that may not

pub mod account;
pub mod challenge;
pub mod journal;
pub mod terms;

pub use account::{Account, Entry, Refused};
pub use journal::{Event, Head, JournalFault, Record};
pub use terms::{GrantFile, IdRange, StationCaGrant, StationFault, Terms};
