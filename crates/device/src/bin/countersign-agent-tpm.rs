//! countersign-agent, with keys in a TPM besides: it needs libtss2, which the other starts without.

#[path = "countersign-agent/main.rs"]
mod agent;

fn main() -> std::process::ExitCode {
    agent::main()
}
