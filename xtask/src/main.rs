//! Project automation: `cargo xtask agent | arrows | cutoff | decisions | issuance | lab | ledger | soak | storm`. Never part of the product's binary.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line")]
#![allow(clippy::disallowed_methods, reason = "a shell: it waits for processes")]

mod agent;
mod arrows;
mod cutoff;
mod decisions;
mod issuance;
mod lab;
mod ledger;
mod soak;
mod storm;

use clap::{Parser, Subcommand};

/// The server's, so that what is measured here costs what it costs there.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure what the agent costs a device: its size, and its memory while it is connected and idle
    Agent(agent::Options),
    /// Check which crate uses which
    Arrows,
    /// Measure what a policy decision costs, the first of its kind and one that is kept
    Decisions(decisions::Options),
    /// Measure how fast sessions are cut off: one of many by a suspension, all by the revocation of their authority
    Cutoff(cutoff::Options),
    /// Measure what bulk issuing costs, beside the cryptography that it cannot do without
    Issuance(issuance::Options),
    /// Start the release server with a load tool's PKI, for outside suites and benchmarks
    Lab(lab::Options),
    /// Flood the ledger with refusals of strangers; it must stay small, and a known device's history must stay
    Ledger(ledger::Options),
    /// Kill the server again and again while devices are provisioned and suspended; nothing acknowledged may be lost
    Soak(soak::Options),
    /// Replay ClientHellos at many times the handshake limit, and see what live and honest devices notice
    Storm(storm::Options),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Agent(options) => agent::run(&options),
        Command::Arrows => arrows::check(),
        Command::Decisions(options) => decisions::run(&options),
        Command::Cutoff(options) => cutoff::run(&options),
        Command::Issuance(options) => issuance::run(&options),
        Command::Lab(options) => lab::run(&options),
        Command::Ledger(options) => ledger::run(&options),
        Command::Soak(options) => soak::run(&options),
        Command::Storm(options) => storm::run(&options),
    }
}
