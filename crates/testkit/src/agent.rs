//! The agent as its users run it: the binary on an identity folder.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

/// The agent that was built beside `program`. Testing the workspace builds it; testing one package alone may not, and
/// then it is built here.
///
/// # Panics
/// If it cannot be built.
pub fn program(program: &Path) -> &'static Path {
    static AGENT: OnceLock<PathBuf> = OnceLock::new();
    AGENT.get_or_init(|| built(program, "countersign-agent", &[]))
}

/// The agent with keys in a TPM. It is none of those that testing the workspace builds, for it needs libtss2.
///
/// # Panics
/// If it cannot be built.
pub fn program_with_tpm(program: &Path) -> &'static Path {
    static AGENT: OnceLock<PathBuf> = OnceLock::new();
    AGENT.get_or_init(|| built(program, "countersign-agent-tpm", &["--features", "tpm"]))
}

/// One of the library's examples, as its users build it. Cargo alone knows whether it is up to date.
///
/// # Panics
/// If it cannot be built.
pub fn example(program: &Path, name: &str, more: &[&str]) -> PathBuf {
    let folder = program.parent().expect("a folder");
    build(folder, "--example", name, more);
    folder.join("examples").join(name)
}

fn built(program: &Path, name: &str, more: &[&str]) -> PathBuf {
    let folder = program.parent().expect("a folder");
    let agent = folder.join(name);
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let newest = [
        "device",
        "factory",
        "identity",
        "keystore-pkcs11",
        "keystore-tpm",
        "mqtt",
    ]
    .iter()
    .map(|name| newest(&sources.join(name).join("src")))
    .max();
    let built = std::fs::metadata(&agent).and_then(|m| m.modified()).ok();
    if built < newest {
        build(folder, "--bin", name, more);
    }
    agent
}

/// Builds a program of the device's package into the folder of this profile.
fn build(folder: &Path, kind: &str, name: &str, more: &[&str]) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--quiet", "--locked", "--package", "countersign-device"])
        .args([kind, name])
        .args(more)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("CARGO_TARGET_DIR", folder.parent().expect("the target folder"));
    if folder.file_name().is_some_and(|n| n == "release") {
        command.arg("--release");
    }
    let status = command.status().expect("cargo");
    assert!(status.success(), "{name} cannot be built: {status}");
}

fn newest(folder: &Path) -> SystemTime {
    let mut found = SystemTime::UNIX_EPOCH;
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let changed = if path.is_dir() {
            newest(&path)
        } else {
            entry.metadata().and_then(|m| m.modified()).unwrap_or(found)
        };
        found = found.max(changed);
    }
    found
}

/// An agent with its identity folder.
#[derive(Debug, Clone)]
pub struct Agent {
    program: PathBuf,
    /// The identity folder.
    pub folder: PathBuf,
    environment: Vec<(&'static str, PathBuf)>,
}

impl Agent {
    /// Of the agent beside `program` (the server's binary).
    pub fn new(server: &Path, folder: PathBuf) -> Self {
        Self {
            program: program(server).to_owned(),
            folder,
            environment: Vec::new(),
        }
    }

    /// Of the agent with keys in a TPM.
    pub fn with_tpm(server: &Path, folder: PathBuf) -> Self {
        Self {
            program: program_with_tpm(server).to_owned(),
            ..Self::new(server, folder)
        }
    }

    /// The same, with this variable in its environment.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: PathBuf) -> Self {
        self.environment.retain(|(known, _)| *known != name);
        self.environment.push((name, value));
        self
    }

    /// The command, with the identity folder given.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--identity").arg(&self.folder).args(arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs it: exit code, standard output, standard error.
    ///
    /// # Panics
    /// If it cannot be started, or was killed.
    pub fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        told(&self.command(arguments).output().expect("the agent"))
    }

    /// Runs it, and it must succeed; what it printed.
    ///
    /// # Panics
    /// If it does not.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let (code, out, err) = self.run(arguments);
        assert_eq!(code, 0, "{arguments:?}: {out}{err}");
        out
    }

    /// The certificate in use, PEM.
    ///
    /// # Panics
    /// If there is none.
    pub fn certificate(&self) -> String {
        std::fs::read_to_string(self.folder.join("device.crt")).expect("a certificate")
    }
}

/// Exit code, standard output, standard error.
///
/// # Panics
/// If the process was killed.
pub fn told(output: &Output) -> (i32, String, String) {
    (
        output.status.code().expect("an exit code"),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// The service of a device, and what it said.
#[derive(Debug)]
pub struct Running {
    /// By whom its condition is asked.
    pub agent: Agent,
    words: PathBuf,
    child: Option<Child>,
}

impl Running {
    /// Of a device; what it says goes to a file.
    pub fn of(agent: Agent, words: PathBuf) -> Self {
        Self {
            agent,
            words,
            child: None,
        }
    }

    /// Starts it, and waits until it takes messages.
    pub fn start(&mut self, arguments: &[&str]) {
        let words = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.words)
            .expect("a file");
        let mut command = self.agent.command(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(words);
        self.child = Some(command.spawn().expect("the agent"));
        let socket = self.agent.folder.join("agent.sock");
        let started = Instant::now();
        while UnixStream::connect(&socket).is_err() {
            assert!(started.elapsed() < Duration::from_secs(30), "{}", self.words());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it as a power cut would.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            child.wait().expect("its end");
        }
    }

    /// SIGTERM, and waits; how it ended.
    pub fn terminate(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        let process = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(process, rustix::process::Signal::TERM).expect("it lives");
        child.wait().expect("its end")
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// What it said.
    pub fn words(&self) -> String {
        std::fs::read_to_string(&self.words).unwrap_or_default()
    }

    /// The exit code of `status`, and what it says.
    pub fn status(&self) -> (i32, Value) {
        let (code, out, err) = self.agent.run(&["status", "--json"]);
        let told: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
        (code, told["status"].clone())
    }

    /// Waits for a condition.
    pub fn until(&self, what: &str, mut holds: impl FnMut(i32, &Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            let (code, status) = self.status();
            if holds(code, &status) {
                return status;
            }
            assert!(
                started.elapsed() < Duration::from_secs(100),
                "{what}: {code} {status}\n{}",
                self.words()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Changes what the identity folder says of where to connect.
pub fn point_to(agent: &Agent, changes: &[(&str, u16)]) {
    let path = agent.folder.join("device.json");
    let mut profile: Value =
        serde_json::from_slice(&std::fs::read(&path).expect("device.json")).expect("JSON");
    for (name, port) in changes {
        profile[*name] = json!(port);
    }
    std::fs::write(&path, profile.to_string()).expect("device.json");
}
