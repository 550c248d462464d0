//! Kills the server again and again while devices are provisioned and suspended, and bulk issue at random.

use anyhow::Result;
use clap::Args;

#[derive(Args)]
pub(crate) struct Options {
    /// How many times
    #[arg(long, default_value_t = 200)]
    rounds: u64,
    /// The seed of the moments
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs it on a throw-away data directory.
///
/// # Errors
/// If anything that was acknowledged is lost.
pub(crate) fn run(options: &Options) -> Result<()> {
    let program = crate::lab::release_binary()?;
    let place = tempfile::tempdir()?;
    let report =
        countersign_testkit::crash::run(&program, &place.path().join("data"), options.rounds, options.seed)?;
    let bulk =
        countersign_testkit::crash::bulk(&program, &place.path().join("bulk"), options.rounds, options.seed)?;
    println!(
        "bulk issue: {} kills, {} of them amid a run, {} identities complete at a kill and kept, {} in the end, none twice (seed {})",
        bulk.kills, bulk.amid, bulk.kept, bulk.issued, options.seed
    );
    println!(
        "{} kills, {} certificates and {} suspensions acknowledged, none lost (seed {})",
        report.kills, report.provisioned, report.suspended, options.seed
    );
    Ok(())
}
