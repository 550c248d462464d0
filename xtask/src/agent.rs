//! Measures what the agent costs a device: the size of what is shipped, and the memory of one that is connected and idle.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use countersign_testkit::server::Server;

/// What is shipped: its name, what chooses it, and whether the limits are its too.
const ARTEFACTS: [(&str, &[&str], bool); 2] = [
    (
        "countersign-agent",
        &["--package", "countersign-device", "--bin", "countersign-agent"],
        true,
    ),
    // It needs libtss2, which is not counted.
    (
        "countersign-agent-tpm",
        &[
            "--package",
            "countersign-device",
            "--bin",
            "countersign-agent-tpm",
            "--features",
            "tpm",
        ],
        false,
    ),
];
/// The largest program that is shipped, in bytes.
const SIZE_MAX: u64 = 6 << 20;
/// The most resident memory while it is connected and idle, in KiB.
const RESIDENT_MAX_KIB: u64 = 12 << 10;
/// How long it is idle before it is looked at.
const IDLE: Duration = Duration::from_secs(3);

#[derive(Args)]
pub(crate) struct Options {
    /// Fail beyond the limits
    #[arg(long)]
    check: bool,
}

/// Builds the agents as they are shipped, and runs each as a service against a release server.
///
/// # Errors
/// If it does not connect, or with `--check` a limit is not held.
pub(crate) fn run(options: &Options) -> Result<()> {
    let place = tempfile::tempdir()?;
    let server = Server::start(&crate::lab::release_binary()?, &place.path().join("data"), "")?;
    for (name, chosen, is_limited) in ARTEFACTS {
        measure(name, chosen, options.check && is_limited, &server, place.path())?;
    }
    Ok(())
}

fn measure(name: &str, chosen: &[&str], check: bool, server: &Server, place: &Path) -> Result<()> {
    let agent = crate::lab::program_of(chosen, "agent")?;
    let size = std::fs::metadata(&agent)?.len();
    let folder = place.join(name);
    let out = folder.display().to_string();
    server.cli_ok(&["device", "provision", name, "--out", &out])?;
    let mut service = Command::new(&agent)
        .arg("--identity")
        .arg(&folder)
        .arg("run")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let resident = connected_and_idle(&agent, &folder, service.id());
    service.kill()?;
    service.wait()?;
    let resident = resident?;
    println!(
        "{name}: {:.2} MiB (limit {}), {:.1} MiB resident while connected and idle (limit {})",
        size as f64 / 1_048_576.0,
        SIZE_MAX >> 20,
        resident as f64 / 1024.0,
        RESIDENT_MAX_KIB >> 10
    );
    ensure!(
        !check || (size <= SIZE_MAX && resident <= RESIDENT_MAX_KIB),
        "{name} is over the limit"
    );
    Ok(())
}

/// Its resident memory in KiB, once it is connected and has had nothing to do for a while.
fn connected_and_idle(agent: &Path, folder: &Path, pid: u32) -> Result<u64> {
    let started = Instant::now();
    let is_connected = || -> Result<bool> {
        let asked = Command::new(agent)
            .arg("--identity")
            .arg(folder)
            .arg("status")
            .output()?;
        Ok(asked.status.success())
    };
    while !is_connected()? {
        ensure!(started.elapsed() < Duration::from_secs(20), "it does not connect");
        std::thread::sleep(Duration::from_millis(100));
    }
    std::thread::sleep(IDLE);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:"))
        .context("VmRSS")?;
    let number = line.trim().split(' ').next().context("VmRSS")?;
    Ok(number.parse()?)
}
