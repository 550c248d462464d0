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
//!    [`moves`]: devices through their lifecycle; [`receipt`]: what a change did to live sessions
//! 4. [`authority`]: authorities: registered, proven, rotated
//! 5. [`credential`]: credentials: issued, used, superseded, revoked; `minting`: certificates are signed while others may write
//! 6. [`batch`]: a factory's batches; [`bulk`]: issuing for many devices of one at once
//! 7. `first_contact`: what a device that shows up may bring about
//! 8. [`import`]: thousands of devices in one change; `manifest`: elements that a manufacturer told of
//! 9. `table`: the facts in memory that the gateway decides on
//! 10. [`ledger`]: exchanges: bounded queue, limits, queries
//! 11. [`query`]: reading for people
//! 12. [`backup`] and [`restore`]: copies while in use; a new epoch, and what had ended since; `lost`: what of that is known by its serial
//!     number alone
//! 13. [`forecast`]: what expires when
//! 14. [`clock`]: the newest time that is known to have been, and when nothing is minted
//! 15. [`revocation_list`]: what registered authorities revoked by their own word
//! 16. [`policies`]: a tenant's policies and topic spaces as versions
//! 17. [`station`]: offline factory stations: granted, reconciled, revoked
//! 18. `attestation`: what TPMs said of keys; `destruction`: the end of a device, by its own word
//! 19. `service`: backends of the fleet, which are no devices
#![allow(
    clippy::disallowed_methods,
    reason = "a shell: it reads the clock for revisions and audit"
)]

mod attestation;
mod audit;
pub mod authority;
pub mod backup;
pub mod batch;
pub mod bulk;
pub mod change;
mod claim;
pub mod clock;
mod clones;
pub mod credential;
mod destruction;
mod error;
mod first_contact;
pub mod forecast;
pub mod import;
mod lane;
pub mod ledger;
mod list_number;
mod lost;
mod manifest;
mod migrate;
mod minting;
pub mod moves;
pub mod policies;
pub mod query;
pub mod receipt;
pub mod restore;
pub mod revocation_list;
mod rotation;
mod service;
pub mod station;
pub mod store;
mod table;
mod writer;

pub use attestation::{
    AttestationView, EndorsementAuthorityView, EndorsementKeyView, EndorsementSource, NewAttestation,
};
pub use audit::{AuditEntry, AuditFault};
pub use authority::{AuthorityMove, NewAuthority, Origin, check_authority};
pub use backup::{DATABASES, EpochView, RegistryFacts};
pub use batch::BatchView;
pub use bulk::{BulkIssue, BulkItem, Confirmed};
pub use change::{Actor, Change, NewDevice};
pub use claim::{ClaimProof, ClaimRequester, ClaimView, Minted, NewClaim};
pub use clock::{ClockRules, ClockView, MintedAt, SystemClock};
pub use credential::{
    EndedCredential, EndedCursor, IssuanceRules, IssueOutcome, IssueRequest, IssuedHere, MissingDevice,
    NewCredential, ProfileChoice, Requester, Revocation, Swept,
};
pub use destruction::DestructionView;
pub use error::RegistryError;
pub use forecast::{ForecastGroup, Windows};
pub use import::{ImportReport, Remark, RemarkAbout};
pub use lane::ExpiredRequester;
pub use ledger::{
    CauseGroup, CausePage, CauseQuery, Doings, Ledger, LedgerLimits, Missing, Network, RefusalPage,
    RefusalQuery,
};
pub use moves::{Move, MovedMany, Selected, Selector};
pub use policies::{PolicyChange, PolicyVersion, check_policies};
pub use receipt::{BulkCount, NodeReceipt, Receipt, ReceiptId, ReceiptKey, ReceiptState};
pub use restore::{
    BackwardClock, NewEpoch, Newer, NewerClaimCount, NewerEnd, NewerEnrolment, NewerLaneUse, NewerPolicies,
    NewerRevocation, NewerState,
};
pub use revocation_list::{ListSettings, ListView, ListsTaken};
pub use rotation::LeftBehind;
pub use service::ServiceView;
pub use station::{MintedStation, Overlap, Reconciled, RefusedEntry, StationState, StationView, Verdict};
pub use store::Registry;
pub use table::FactTable;
pub use writer::Committed;
