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
//! 4. [`authority`]: authorities: registered, proven, rotated
//! 5. [`credential`]: credentials: issued, used, superseded, revoked
//! 6. [`batch`]: a factory's batches; [`bulk`]: issuing for many devices of one at once
//! 7. [`station`]: offline factory stations: granted, reconciled, revoked
//! 8. `first_contact`: what a device that shows up may bring about
//! 9. [`import`]: thousands of devices in one change
//! 10. `table`: the facts in memory that the gateway decides on
//! 11. [`ledger`]: exchanges: bounded queue, limits, queries
//! 12. [`query`]: reading for people
#![allow(
    clippy::disallowed_methods,
    reason = "a shell: it reads the clock for revisions and audit"
)]

mod audit;
pub mod authority;
pub mod batch;
pub mod bulk;
pub mod change;
pub mod credential;
mod error;
mod first_contact;
pub mod import;
pub mod ledger;
mod migrate;
pub mod query;
pub mod station;
pub mod store;
mod table;
mod writer;

pub use audit::{AuditEntry, AuditFault};
pub use authority::{AuthorityMove, NewAuthority, Origin};
pub use batch::BatchView;
pub use bulk::{BulkIssue, BulkItem, Confirmed};
pub use change::{Actor, Change, NewDevice};
pub use credential::{
    IssuanceRules, IssueOutcome, IssueRequest, IssuedHere, NewCredential, Requester, Revocation, Swept,
};
pub use error::RegistryError;
pub use import::ImportReport;
pub use ledger::{Ledger, LedgerLimits};
pub use station::{Minted, Reconciled, RefusedEntry, StationState, StationView, Verdict};
pub use store::Registry;
pub use table::FactTable;
pub use writer::Committed;
