//! A storm of replayed ClientHellos against the release server, and what live and honest devices notice of it.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use countersign_testkit::storm::{self, Plan};

/// How long the acknowledgement of a live QoS 1 publish may take, in 99 of 100.
const P99_MAX: Duration = Duration::from_millis(250);

#[derive(Args)]
pub(crate) struct Options {
    /// How long it lasts, in seconds
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// limits.handshakes_per_s of the server
    #[arg(long, default_value_t = 200)]
    handshakes_per_s: u32,
    /// How many times as many ClientHellos come
    #[arg(long, default_value_t = 12)]
    times: u32,
    /// Honest devices; 20 of them are in before and publish all the time
    #[arg(long, default_value_t = 200)]
    honest: usize,
    /// Fail if what is promised is not kept
    #[arg(long)]
    check: bool,
}

/// Runs it on a throw-away data directory.
///
/// # Errors
/// If the server does not come up, or with `--check` a promise is not kept.
pub(crate) fn run(options: &Options) -> Result<()> {
    let program = crate::lab::release_binary()?;
    let place = tempfile::tempdir()?;
    let plan = Plan {
        length: Duration::from_secs(options.seconds),
        handshakes_per_s: options.handshakes_per_s,
        times: options.times,
        honest: options.honest,
    };
    let figures = storm::run(&program, &place.path().join("data"), &plan)?;
    println!("{}\n{}", figures.lines(&plan), figures.counted);
    if options.check {
        figures.check(&plan, P99_MAX)?;
    }
    Ok(())
}
