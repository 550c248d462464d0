//! Kills the server again and again while devices are provisioned and suspended, bulk issue, and a factory station while it
//! issues.

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
    let station = crate::lab::release_binary_of("countersign-station")?;
    let line = tempfile::tempdir()?;
    let report =
        countersign_testkit::station_crash::run(&station, line.path(), options.rounds, options.seed)?;
    println!(
        "station: {} kills while it issued, {} certificates told before one, {} issued, none lost, none twice (seed {})",
        report.kills, report.told, report.issued, options.seed
    );
    Ok(())
}
