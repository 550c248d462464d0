//! A CA in a process of its own, as its operator runs it, and a bare connection to its socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A CA's folder, and its process.
#[derive(Debug)]
pub struct CaProcess {
    program: PathBuf,
    folder: PathBuf,
    environment: Vec<(String, PathBuf)>,
    child: Option<Child>,
}

impl CaProcess {
    /// Makes a CA in a folder; it does not answer yet.
    pub fn new(program: &Path, folder: &Path) -> Self {
        Self::with_environment(program, folder, Vec::new())
    }

    /// The same with environment variables for all of its processes.
    pub fn with_environment(program: &Path, folder: &Path, environment: Vec<(String, PathBuf)>) -> Self {
        let ca = Self {
            program: program.to_owned(),
            folder: folder.to_owned(),
            environment,
            child: None,
        };
        ca.ok(&["init"]);
        ca
    }

    /// A file in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Where it answers.
    pub fn socket(&self) -> PathBuf {
        self.path("ca.sock")
    }

    /// Starts it, and waits until it answers.
    pub fn start(&mut self) {
        let log = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.path("ca.log"))
            .expect("a log");
        let mut child = Command::new(&self.program)
            .arg("--data")
            .arg(&self.folder)
            .args(["ca", "serve"])
            .envs(self.environment.clone())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the CA starts");
        let started = Instant::now();
        while UnixStream::connect(self.socket()).is_err() {
            assert!(child.try_wait().is_ok_and(|s| s.is_none()), "{}", self.log());
            assert!(started.elapsed() < Duration::from_secs(30), "{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        self.child = Some(child);
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("ca.log")).unwrap_or_default()
    }

    /// A command of its operator.
    pub fn operator(&self, arguments: &[&str]) -> Output {
        Command::new(&self.program)
            .arg("--data")
            .arg(&self.folder)
            .args(["--json", "ca"])
            .envs(self.environment.clone())
            .args(arguments)
            .output()
            .expect("the command starts")
    }

    /// One that must succeed: its answer.
    pub fn ok(&self, arguments: &[&str]) -> Value {
        let output = self.operator(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// A batch of the authority `fleet`.
    pub fn batch(&self, id: &str, pattern: &str, quota: u32, more: &[&str]) {
        let quota = quota.to_string();
        let mut arguments = vec![
            "batch",
            "add",
            id,
            "--authority",
            "fleet",
            "--pattern",
            pattern,
            "--quota",
            &quota,
        ];
        arguments.extend(more);
        self.ok(&arguments);
    }

    /// How many certificates it issued.
    pub fn count(&self) -> usize {
        let all = self.ok(&["certificates", "--limit", "1000000"]);
        all.as_array().map_or(0, Vec::len)
    }

    /// A connection to its socket.
    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).expect("the CA answers");
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .expect("a timeout");
        stream
    }

    /// Sends a frame as it is; the answer, or `None` if the connection was closed.
    pub fn raw(&self, body: &[u8]) -> Option<Value> {
        exchange(&mut self.connect(), body)
    }

    /// Asks in the protocol's version 1.
    pub fn ask(&self, request: &Value) -> Value {
        let call = json!({ "version": 1, "request": request });
        self.raw(call.to_string().as_bytes()).expect("an answer")
    }

    /// Takes the process over, for a test that ends it in its own way.
    pub fn take(&mut self) -> Child {
        self.child.take().expect("it runs")
    }
}

impl Drop for CaProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One frame there, one back.
pub fn exchange(stream: &mut UnixStream, body: &[u8]) -> Option<Value> {
    let head = u32::try_from(body.len()).ok()?.to_be_bytes();
    // A CA that refuses may close before it has read all.
    let _ = stream.write_all(&[&head, body].concat());
    let mut head = [0; 4];
    stream.read_exact(&mut head).ok()?;
    let mut answer = vec![0; u32::from_be_bytes(head) as usize];
    stream.read_exact(&mut answer).ok()?;
    serde_json::from_slice(&answer).ok()
}
