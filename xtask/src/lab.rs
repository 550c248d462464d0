//! The lab: the release server from an empty data directory, with a load tool's PKI. The seam for every outside suite
//! and benchmark.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

#[derive(Args)]
pub(crate) struct Options {
    /// The folder with the PKI: ca or root certificate, devices.bin, monitor certificate
    #[arg(long)]
    pki: PathBuf,
    /// The device port
    #[arg(long)]
    port: u16,
    /// How many devices are imported
    #[arg(long)]
    devices: usize,
    /// Every registered certificate may use any client id and any topic, except the filter `test/nosubscribe`
    #[arg(long)]
    any_topic: bool,
    /// Pin the server to this processor
    #[arg(long)]
    cpu: Option<usize>,
}

/// Ends the server when the lab ends, however it ends.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn release_binary() -> Result<PathBuf> {
    release_binary_of("countersign-server")
}

/// Builds a package for release; its program.
///
/// # Errors
/// If it cannot be built.
pub(crate) fn release_binary_of(package: &str) -> Result<PathBuf> {
    program_of(&["--package", package], "release")
}

/// Builds what is chosen by a profile; its program.
///
/// # Errors
/// If it cannot be built.
pub(crate) fn program_of(chosen: &[&str], profile: &str) -> Result<PathBuf> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--profile", profile])
        .args(chosen)
        .args(["--message-format", "json"])
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(built.status.success(), "{chosen:?} cannot be built");
    String::from_utf8(built.stdout)?
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|v| v["executable"].as_str().map(PathBuf::from))
        .next_back()
        .context("cargo names no executable")
}

fn pem(der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .filter_map(|c| std::str::from_utf8(c).ok())
        .collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}

/// Reads length-prefixed parts.
struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    fn number(&mut self) -> Result<usize> {
        let (n, rest) = self
            .0
            .split_first_chunk::<4>()
            .context("devices.bin ends early")?;
        self.0 = rest;
        Ok(u32::from_le_bytes(*n) as usize)
    }

    fn part(&mut self) -> Result<&'a [u8]> {
        let n = self.number()?;
        let (part, rest) = self.0.split_at_checked(n).context("devices.bin ends early")?;
        self.0 = rest;
        Ok(part)
    }
}

/// The leaf certificates of `devices.bin`, as one PEM file. Of each device: name, certificates (leaf first), key.
fn device_bundle(path: &Path, count: usize) -> Result<String> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    let mut parts = Parts(
        bytes
            .strip_prefix(b"MMLPKI1\n")
            .context("devices.bin has another format")?,
    );
    let total = parts.number()?;
    ensure!(
        total >= count,
        "devices.bin holds {total} devices, {count} are asked for"
    );
    let mut text = String::new();
    for _ in 0..count {
        parts.part()?;
        for position in 0..parts.number()? {
            let der = parts.part()?;
            if position == 0 {
                text.push_str(&pem(der));
            }
        }
        parts.part()?;
    }
    Ok(text)
}

const LAB_POLICY: &str = r#"
@id("connect") permit (principal, action == Action::"connect", resource) when { principal.state == "active" };
@id("own-topics") permit (principal, action in [Action::"publish", Action::"subscribe"], resource)
when { context.spaces.contains("own") };
@id("monitor-reads-all") permit (principal in Group::"monitor", action == Action::"subscribe", resource);
"#;

const ANY_TOPIC_POLICY: &str = r#"
@id("connect") permit (principal, action == Action::"connect", resource) when { principal.state == "active" };
@id("any-topic") permit (principal, action in [Action::"publish", Action::"subscribe"], resource);
@id("no-subscribe") forbid (principal, action == Action::"subscribe", resource)
when { context.spaces.contains("nosubscribe") };
"#;

/// Runs the lab until SIGTERM or SIGINT.
///
/// # Errors
/// If the server does not come up.
pub(crate) fn run(options: &Options) -> Result<()> {
    let program = release_binary()?;
    let place = tempfile::tempdir()?;
    let data = place.path().join("data");
    fs::create_dir(&data)?;
    let config = format!(
        "[[listeners]]\nname = \"devices\"\npurpose = \"devices\"\nlisten = \"127.0.0.1:{}\"\n\
         [server]\nhost_names = [\"localhost\", \"127.0.0.1\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [limits]\nconnections_max = 19000\nhandshakes_max = 19000\nconnections_per_source_max = 19000\n\
         source_connects_per_s = 1000000\nsource_connect_burst = 1000000\nhandshakes_per_s = 1000000\n\
         handshake_burst = 1000000\ndevice_connects_per_minute = 1000000\n\
         [ledger]\nrefused_per_source_minute_max = 100000\n[log]\nfilter = \"error\"\n",
        options.port
    );
    fs::write(data.join("countersign.toml"), config)?;
    // The load tool's server certificate, so that its clients trust us.
    let find = |names: &[&str]| names.iter().map(|n| options.pki.join(n)).find(|p| p.exists());
    let certificate = find(&["server.crt", "server.pem", "server-chain.pem"]);
    let key = find(&["server.key", "server-key.pem"]);
    if let (Some(certificate), Some(key)) = (certificate, key) {
        let own_key = data.join("lab-server.key");
        fs::write(&own_key, fs::read(key)?)?;
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&own_key, fs::Permissions::from_mode(0o600))?;
        let text = fs::read_to_string(data.join("countersign.toml"))?.replace(
            "[admin]",
            &format!(
                "certificate = {:?}\nkey = {own_key:?}\n[admin]",
                fs::canonicalize(certificate)?
            ),
        );
        fs::write(data.join("countersign.toml"), text)?;
    }
    let mut command = match options.cpu {
        Some(cpu) => {
            let mut command = Command::new("taskset");
            command.arg("-c").arg(cpu.to_string()).arg(&program);
            command
        }
        None => Command::new(&program),
    };
    let mut server = Server(
        command
            .arg("--data")
            .arg(&data)
            .arg("serve")
            .stdin(Stdio::null())
            .spawn()
            .context("start the server")?,
    );
    let started = Instant::now();
    while !data.join("admin.addr").exists() {
        ensure!(server.0.try_wait()?.is_none(), "the server ended early");
        ensure!(
            started.elapsed() < Duration::from_secs(20),
            "the server does not come up"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    let cli = |arguments: &[&str]| -> Result<()> {
        let output = Command::new(&program)
            .arg("--data")
            .arg(&data)
            .args(arguments)
            .output()?;
        if !output.status.success() {
            bail!(
                "countersign {}: {}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    };
    let path = |p: &Path| p.display().to_string();
    let root = find(&["ca.crt", "ca.pem", "root.crt", "root.pem"])
        .context("no root certificate in the PKI folder")?;
    let root_key = find(&["ca.key", "ca-key.pem", "root.key"]).context("no root key in the PKI folder")?;
    cli(&[
        "authority",
        "register",
        "lab-root",
        &path(&root),
        "--key",
        &path(&root_key),
    ])?;
    let (policy, spaces, mode) = if options.any_topic {
        (
            ANY_TOPIC_POLICY,
            r#"[{"name": "nosubscribe", "filter": "test/nosubscribe"}]"#,
            "free",
        )
    } else {
        (
            LAB_POLICY,
            r#"[{"name": "own", "filter": "devices/{id}/#"}]"#,
            "strict",
        )
    };
    let (policy_file, space_file) = (place.path().join("lab.cedar"), place.path().join("spaces.json"));
    fs::write(&policy_file, policy)?;
    fs::write(&space_file, spaces)?;
    cli(&["tenant", "set", "default", "--client-id-mode", mode])?;
    cli(&[
        "policy",
        "set",
        &path(&policy_file),
        "--spaces",
        &path(&space_file),
        "--reason",
        "lab",
    ])?;
    let bundle = place.path().join("devices.pem");
    fs::write(
        &bundle,
        device_bundle(&options.pki.join("devices.bin"), options.devices)?,
    )?;
    cli(&["device", "import", &path(&bundle)])?;
    // What the PKI revokes, honoured as that of any registered authority: the tool replaces the file in one step.
    if let Some(list) = find(&["crl.pem"]) {
        if let Some(intermediate) = find(&["intermediate.crt", "intermediate.pem"]) {
            cli(&["authority", "intermediate", &path(&intermediate)])?;
        }
        let list = fs::canonicalize(list)?;
        cli(&[
            "authority",
            "crl",
            "lab-root",
            "--source",
            &path(&list),
            "--interval-s",
            "1",
        ])?;
    }
    if let Some(monitor) = find(&["monitor.crt", "monitor.pem"]) {
        // The device's certificate alone, should the file hold its chain too.
        let text = fs::read_to_string(monitor)?;
        let end = text
            .find("-----END CERTIFICATE-----")
            .context("the monitor's certificate is no PEM")?;
        let leaf = place.path().join("monitor.pem");
        fs::write(&leaf, format!("{}-----END CERTIFICATE-----\n", &text[..end]))?;
        cli(&["device", "import", &path(&leaf), "--group", "monitor"])?;
    }
    println!("ready pid={} port={}", server.0.id(), options.port);
    wait_for_end(&mut server)
}

/// Hands SIGTERM and SIGINT on to the server, and waits for it.
fn wait_for_end(server: &mut Server) -> Result<()> {
    let mut signals =
        signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT])?;
    loop {
        if let Some(status) = server.0.try_wait()? {
            ensure!(status.success(), "the server ended with {status}");
            return Ok(());
        }
        if signals.pending().next().is_some() {
            let pid = rustix::process::Pid::from_child(&server.0);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
