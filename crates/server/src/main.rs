//! The process: CLI, configuration, admin API, wiring.
fn main() {}
