//! A server as its users run it: the binary, a data directory, the CLI and the admin API.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::pki::Ca;

/// Ends a process group when this process ends, however it does: what a test keeps in a `static` is never dropped.
#[derive(Debug)]
struct Guard(Child);

impl Guard {
    fn of(child: &Child) -> Result<Self> {
        // Its input ends with us. In a group of its own: a key that interrupts us must not end it before it has done its work.
        let watch = Command::new("sh")
            .args([
                "-c",
                "read -r _; kill -s KILL -- \"-$0\"",
                &child.id().to_string(),
            ])
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start sh")?;
        Ok(Self(watch))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    child: Child,
    guard: Option<Guard>,
    program: PathBuf,
    /// The data directory.
    pub data: PathBuf,
    /// The device port.
    pub devices: SocketAddr,
    /// The admin listener.
    pub admin: SocketAddr,
    token: String,
}

impl Server {
    /// Starts `program serve` on a data directory, on free ports, with more of the configuration if given.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start(program: &Path, data: &Path, config: &str) -> Result<Self> {
        Self::start_with(Command::new(program), program, data, config)
    }

    /// The same by another command, such as a tracer that starts the program; the program's path is its last argument.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start_with(mut command: Command, program: &Path, data: &Path, config: &str) -> Result<Self> {
        std::fs::create_dir_all(data)?;
        let address = data.join("admin.addr");
        let _ = std::fs::remove_file(&address);
        let file = data.join("countersign.toml");
        let text = format!(
            "{config}\n[admin]\nlisten = \"127.0.0.1:0\"\n{}",
            listener("devices")
        );
        std::fs::write(&file, text)?;
        let log = std::fs::File::create(data.join("server.log"))?;
        let child = command
            .arg("--data")
            .arg(data)
            .arg("serve")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // A tracer that is killed leaves what it traced behind: they end together, as a group.
            .process_group(0)
            .spawn()
            .context("start the server")?;
        let guard = Some(Guard::of(&child)?);
        let mut server = Self {
            child,
            guard,
            program: program.to_owned(),
            data: data.to_owned(),
            devices: SocketAddr::from(([127, 0, 0, 1], 0)),
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
            token: String::new(),
        };
        let started = Instant::now();
        while !address.exists() {
            if let Some(status) = server.child.try_wait()? {
                bail!("the server ended with {status}: {}", server.log());
            }
            ensure!(
                started.elapsed() < Duration::from_secs(30),
                "the server does not come up: {}",
                server.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        server.admin = std::fs::read_to_string(&address)?.trim().parse()?;
        server.token = std::fs::read_to_string(data.join("admin.token"))?
            .trim()
            .to_owned();
        let status = server.call("GET", "/status", None)?.1;
        server.devices = status["serving"].as_str().context("it does not serve")?.parse()?;
        Ok(server)
    }

    /// Where its listener of a purpose is.
    ///
    /// # Errors
    /// If there is none.
    pub fn listener(&self, purpose: &str) -> Result<SocketAddr> {
        let status = self.ask("GET", "/status", None)?;
        let listeners = status["listeners"].as_array().context("no listeners")?;
        let found = listeners.iter().find(|l| l["purpose"] == purpose);
        let address = found.and_then(|l| l["address"].as_str());
        Ok(address
            .with_context(|| format!("no listener {purpose}"))?
            .parse()?)
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.data.join("server.log")).unwrap_or_default()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Calls an endpoint below `/api/v1`: status and answer.
    ///
    /// # Errors
    /// If there is no whole answer.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Value)> {
        let (status, text) = http(
            self.admin,
            method,
            &format!("/api/v1{path}"),
            Some(&self.token),
            body,
        )?;
        Ok((status, serde_json::from_str(&text).with_context(|| text.clone())?))
    }

    /// Calls an endpoint that must succeed.
    ///
    /// # Errors
    /// If it does not.
    pub fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let (status, value) = self.call(method, path, body)?;
        ensure!(status < 300, "{method} {path}: {status} {value}");
        Ok(value)
    }

    /// Registers an authority and proves possession of its key.
    ///
    /// # Errors
    /// If it is refused.
    pub fn register(&self, id: &str, tenant: &str, ca: &Ca, admission: &Value) -> Result<()> {
        let body = json!({ "id": id, "tenant": tenant, "certificate": ca.pem, "admission": admission });
        let registered = self.ask("POST", "/authorities", Some(&body))?;
        let code = registered["code"].as_str().context("no code")?;
        let proof = json!({ "certificate": ca.prove(code) });
        self.ask("POST", &format!("/authorities/{id}/proof"), Some(&proof))?;
        Ok(())
    }

    /// Runs the CLI on its data directory.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn cli(&self, arguments: &[&str]) -> Result<Output> {
        Ok(Command::new(&self.program)
            .arg("--data")
            .arg(&self.data)
            .args(arguments)
            .output()?)
    }

    /// Runs a CLI command that must succeed; what it printed.
    ///
    /// # Errors
    /// If it does not.
    pub fn cli_ok(&self, arguments: &[&str]) -> Result<String> {
        let output = self.cli(arguments)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "{arguments:?}: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(text)
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        // First, so that it ends nothing that has the same number by then.
        self.guard = None;
        if matches!(self.child.try_wait(), Ok(None)) {
            let group = rustix::process::Pid::from_child(&self.child);
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait();
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// If it is gone.
    pub fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        Ok(rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.child),
            signal,
        )?)
    }

    /// SIGTERM, and waits. The exit status and how long it took.
    ///
    /// # Errors
    /// If it does not stop.
    pub fn stop(mut self) -> Result<(std::process::ExitStatus, Duration)> {
        let started = Instant::now();
        self.guard = None;
        self.signal(rustix::process::Signal::TERM)?;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok((status, started.elapsed()));
            }
            ensure!(
                started.elapsed() < Duration::from_secs(30),
                "it does not stop: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A table of the configuration: a listener on a free port.
pub fn listener(purpose: &str) -> String {
    format!("[[listeners]]\nname = \"{purpose}\"\npurpose = \"{purpose}\"\nlisten = \"127.0.0.1:0\"\n")
}

/// One HTTP/1.1 request on a connection of its own: status and body.
///
/// # Errors
/// If there is no whole answer.
pub fn http(
    address: SocketAddr,
    method: &str,
    path: &str,
    token: Option<&str>,
    body: Option<&Value>,
) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let body = body.map(ToString::to_string).unwrap_or_default();
    let authorization = token
        .map(|t| format!("Authorization: Bearer {t}\r\n"))
        .unwrap_or_default();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n{authorization}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, rest) = answer.split_once("\r\n\r\n").context("no whole answer")?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|s| s.parse().ok())
        .context("no status")?;
    if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        let mut text = String::new();
        let mut rest = rest;
        while let Some((size, tail)) = rest.split_once("\r\n") {
            let size = usize::from_str_radix(size.trim(), 16)?;
            if size == 0 {
                return Ok((status, text));
            }
            text.push_str(tail.get(..size).context("a chunk is cut")?);
            rest = tail.get(size + 2..).unwrap_or_default();
        }
        bail!("the answer is cut");
    }
    let length = head.lines().find_map(|l| {
        l.to_ascii_lowercase()
            .strip_prefix("content-length: ")?
            .parse::<usize>()
            .ok()
    });
    ensure!(length.is_none_or(|n| n == rest.len()), "the answer is cut");
    Ok((status, rest.to_owned()))
}
