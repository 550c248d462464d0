//! Measures what bulk issuing costs beside the cryptography that it cannot do without.

use anyhow::{Result, ensure};
use clap::Args;

/// What one certificate may cost beside one P-256 signature and one verification of the same run.
const BUDGET: f64 = 1.25;

#[derive(Args)]
pub(crate) struct Options {
    /// Certificates that the registry has before
    #[arg(long, default_value_t = 20_000)]
    before: usize,
    /// Certificates that are issued and measured
    #[arg(long, default_value_t = 20_000)]
    count: usize,
    /// How many times, each on a registry of its own
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Fail beyond the budget
    #[arg(long)]
    check: bool,
}

/// Runs it on throw-away data directories. Pin it to one core: `taskset -c 1 cargo xtask issuance`.
///
/// # Errors
/// If anything is refused, or with `--check` the budget is not held.
pub(crate) fn run(options: &Options) -> Result<()> {
    if cfg!(debug_assertions) {
        println!("note: this is a debug build; cargo run --release --package xtask -- issuance");
    }
    let mut worst: f64 = 0.0;
    for round in 1..=options.rounds {
        let place = tempfile::tempdir()?;
        let cost = countersign_testkit::issuance::measure(place.path(), options.before, options.count)?;
        let ratio = cost.issue_us / cost.floor_us;
        worst = worst.max(ratio);
        println!(
            "round {round}: issuing {:.1} us of CPU a certificate, floor (sign + verify) {:.1} us, ratio {ratio:.2}; reading a request {:.1} us more; {} registered",
            cost.issue_us, cost.floor_us, cost.request_us, cost.registered
        );
    }
    ensure!(
        !options.check || worst <= BUDGET,
        "the ratio is {worst:.2}, the budget {BUDGET}"
    );
    Ok(())
}
