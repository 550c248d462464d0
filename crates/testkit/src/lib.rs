//! What tests share: a PKI with every fault, a client that says exactly what it saw, a server as its users run it.
//! Only ever a dev-dependency.
#![allow(clippy::disallowed_methods, reason = "tests run in real time")]
#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "in a test a panic is the report"
)]

pub mod agent;
pub mod ca;
pub mod client;
pub mod crash;
pub mod decisions;
pub mod forged_tpm;
pub mod hold;
pub mod issuance;
pub mod ledger;
pub mod network;
pub mod pki;
pub mod server;
pub mod softhsm;
pub mod station_crash;
pub mod storm;
pub mod swtpm;
