//! Project automation: `cargo xtask arrows | issuance | lab | ledger | soak`. Never part of the product's binary.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line")]
#![allow(clippy::disallowed_methods, reason = "a shell: it waits for processes")]

mod arrows;
mod issuance;
mod lab;
mod ledger;
mod soak;

use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check which crate uses which
    Arrows,
    /// Measure what bulk issuing costs, beside the cryptography that it cannot do without
    Issuance(issuance::Options),
    /// Start the release server with a load tool's PKI, for outside suites and benchmarks
    Lab(lab::Options),
    /// Flood the ledger with refusals of strangers; it must stay small, and a known device's history must stay
    Ledger(ledger::Options),
    /// Kill the server again and again while devices are provisioned and suspended; nothing acknowledged may be lost
    Soak(soak::Options),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Arrows => arrows::check(),
        Command::Issuance(options) => issuance::run(&options),
        Command::Lab(options) => lab::run(&options),
        Command::Ledger(options) => ledger::run(&options),
        Command::Soak(options) => soak::run(&options),
    }
}
