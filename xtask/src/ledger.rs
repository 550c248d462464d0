//! Floods the ledger with refusals of strangers: the disk must stay within its limit, and a known device's history must
//! stay.

use anyhow::{Result, ensure};
use clap::Args;
use countersign_testkit::ledger::flood;

/// What causes and the write-ahead log may take beside the rows, in bytes.
const BESIDE: u64 = 64 << 20;

#[derive(Args)]
pub(crate) struct Options {
    /// How many refusals
    #[arg(long, default_value_t = 1_000_000)]
    refusals: u64,
    /// How many random certificates they come from
    #[arg(long, default_value_t = 100_000)]
    certificates: u64,
}

/// Runs it on a throw-away data directory, with the limits that a configuration has by default.
///
/// # Errors
/// If the disk limit does not hold, or the device's history is lost.
pub(crate) fn run(options: &Options) -> Result<()> {
    if cfg!(debug_assertions) {
        println!("note: this is a debug build; cargo run --release --package xtask -- ledger");
    }
    let place = tempfile::tempdir()?;
    let limits = countersign_testkit::ledger::limits();
    let limit = limits.unproven_bytes_max + BESIDE;
    let flood = flood(place.path(), options.refusals, options.certificates, limits)?;
    println!(
        "{} refusals of {} certificates in {:.1} s: {} written, {} left out; {} rows of strangers kept, {} causes with {} refusals",
        options.refusals,
        options.certificates,
        flood.took.as_secs_f64(),
        flood.written,
        flood.left_out,
        flood.strangers,
        flood.causes,
        flood.in_causes
    );
    println!(
        "disk: {:.1} MiB at the end, {:.1} MiB at most; the limit {:.1} MiB",
        flood.bytes as f64 / f64::from(1 << 20),
        flood.peak_bytes as f64 / f64::from(1 << 20),
        limit as f64 / f64::from(1 << 20)
    );
    println!(
        "the known device's last refusal and last exchange: {}",
        if flood.history_kept { "found" } else { "LOST" }
    );
    ensure!(flood.history_kept, "the device's history is lost");
    ensure!(flood.peak_bytes <= limit, "the disk limit does not hold");
    Ok(())
}
