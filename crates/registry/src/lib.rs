//! Remembers: tenants, authorities, devices, credentials, revisions, audit, and the ledger of exchanges.
//!
//! Two SQLite databases in one data directory, each with exactly one writer:
//!
//! * `registry.db`, `synchronous=FULL`: what decisions are made on. A change is on disk before it is answered.
//! * `ledger.db`, `synchronous=NORMAL`: exchanges, written behind. A power cut may cost the last moments of it, never
//!   a fact.
//!
//! Reading order:
//!
//! 1. [`store`]: opens the data directory, locks it, brings the schema up to date
//! 2. `writer`: the one writer: group commit, then facts, then observers, then answers
//! 3. [`change`]: the changes there are, each with its revision and its audit entry
//! 4. [`import`]: thousands of devices in one change
//! 5. `table`: the facts in memory that the gateway decides on
//! 6. [`ledger`]: exchanges: bounded queue, limits, queries
//! 7. [`query`]: reading for people
#![allow(
    clippy::disallowed_methods,
    reason = "a shell: it reads the clock for revisions and audit"
)]

mod audit;
pub mod change;
mod error;
pub mod import;
pub mod ledger;
mod migrate;
pub mod query;
pub mod store;
mod table;
mod writer;

pub use audit::{AuditEntry, AuditFault};
pub use change::{Actor, Change, NewAuthority, NewCredential, NewDevice};
pub use error::RegistryError;
pub use import::ImportReport;
pub use ledger::{Ledger, LedgerLimits};
pub use store::Registry;
pub use table::FactTable;
pub use writer::Committed;
