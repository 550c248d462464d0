//! Measures what a policy decision costs.

use anyhow::{Result, ensure};
use clap::Args;

/// What the first decision of a fact class may cost with ten policies, in microseconds.
const FIRST_BUDGET_US: f64 = 20.0;
/// What a kept one may cost.
const KEPT_BUDGET_US: f64 = 0.5;

#[derive(Args)]
pub(crate) struct Options {
    /// Decisions of each kind and round
    #[arg(long, default_value_t = 20_000)]
    count: usize,
    /// How many times
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Fail beyond the budget, by the best round
    #[arg(long)]
    check: bool,
}

/// Prints each round. The best one counts: whatever else runs on the machine only adds.
///
/// # Errors
/// If a decision is wrong, or with `--check` the budget is not held.
pub(crate) fn run(options: &Options) -> Result<()> {
    if cfg!(debug_assertions) {
        println!("note: this is a debug build; cargo run --release --package xtask -- decisions");
    }
    let (mut first, mut kept) = (f64::INFINITY, f64::INFINITY);
    for round in 1..=options.rounds {
        let cost = countersign_testkit::decisions::measure(options.count)?;
        first = first.min(cost.first_us);
        kept = kept.min(cost.kept_us);
        println!(
            "round {round}: {} policies: first decision {:.2} us (budget {FIRST_BUDGET_US}), kept {:.3} us (budget {KEPT_BUDGET_US})",
            cost.policies, cost.first_us, cost.kept_us
        );
    }
    println!("best: first decision {first:.2} us, kept {kept:.3} us");
    ensure!(
        !options.check || (first <= FIRST_BUDGET_US && kept <= KEPT_BUDGET_US),
        "over budget"
    );
    Ok(())
}
