//! What an agent must come through by itself: a full disk.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stderr
)]

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use countersign_testkit::agent::Agent;
use countersign_testkit::network::Network;
use countersign_testkit::server::{Server, listener};
use serde_json::{Value, json};

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_countersign"))
}

/// The service of a device, and what it said.
struct Service {
    agent: Agent,
    words: PathBuf,
    child: Option<Child>,
}

impl Service {
    fn of(agent: Agent, words: PathBuf) -> Self {
        Self {
            agent,
            words,
            child: None,
        }
    }

    fn start(&mut self, arguments: &[&str]) {
        let words = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.words)
            .unwrap();
        let mut command = self.agent.command(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(words);
        self.child = Some(command.spawn().unwrap());
        let socket = self.agent.folder.join("agent.sock");
        let started = Instant::now();
        while UnixStream::connect(&socket).is_err() {
            assert!(started.elapsed() < Duration::from_secs(30), "{}", self.words());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            child.wait().unwrap();
        }
    }

    fn words(&self) -> String {
        std::fs::read_to_string(&self.words).unwrap_or_default()
    }

    /// The exit code of `status`, and what it says.
    fn status(&self) -> (i32, Value) {
        let (code, out, err) = self.agent.run(&["status", "--json"]);
        let told: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
        (code, told["status"].clone())
    }

    fn until(&self, what: &str, holds: impl Fn(i32, &Value) -> bool) -> Value {
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

impl Drop for Service {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Changes what the identity folder says of where to connect.
fn point_to(agent: &Agent, changes: &[(&str, u16)]) {
    let path = agent.folder.join("device.json");
    let mut profile: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (name, port) in changes {
        profile[*name] = json!(port);
    }
    std::fs::write(&path, profile.to_string()).unwrap();
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// A small file system of its own. Needs the right to mount: there is no other way to fill a disk that harms nobody.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mounted(at: &Path) -> Option<Self> {
        std::fs::create_dir(at).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs"])
            .arg(at)
            .status();
        if mounted.is_ok_and(|s| s.success()) {
            return Some(Self(at.to_owned()));
        }
        assert!(
            std::env::var_os("CI").is_none(),
            "CI must be able to mount a tmpfs"
        );
        eprintln!("not run: this user may not mount a file system");
        None
    }

    /// Takes what room is left.
    fn fill(&self) {
        let mut filler = std::fs::OpenOptions::new();
        let mut file = filler
            .create(true)
            .append(true)
            .open(self.0.join("filler"))
            .unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    fn make_room(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn on_a_full_disk_the_agent_stays_connected_delivers_says_so_and_recovers() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mounted(&folder.path().join("pump-1")) else {
        return;
    };
    let server = Server::start(program(), &folder.path().join("data"), &listener("enrol")).unwrap();
    let agent = Agent::new(program(), disk.0.clone());
    let out = folder.path().join("provisioned");
    let out_text = out.display().to_string();
    server
        .cli_ok(&["device", "provision", "pump-1", "--out", &out_text])
        .unwrap();
    for file in ["device.crt", "device.key", "device.json", "platform-root.crt"] {
        std::fs::copy(out.join(file), disk.0.join(file)).unwrap();
    }
    let network = Network::to(server.devices);
    let enrol = server.listener("enrol").unwrap().port();
    point_to(&agent, &[("port", network.port), ("enrol_port", enrol)]);
    let mut service = Service::of(agent.clone(), folder.path().join("words"));
    service.start(&["run"]);
    service.until("connected", |code, _| code == 0);
    let hand_in = |payload: &str| agent.run(&["publish", "--queued", payload]);

    // What was taken before the disk was full is delivered, although the network was away too.
    network.cut();
    service.until("noticed", |code, _| code != 0);
    for n in 0..5 {
        assert_eq!(hand_in(&format!("{n}")).0, 0);
    }
    // One that the platform will not have stands in nobody's way.
    agent.ok(&["publish", "--queued", "--topic", "somebody/elses", "1"]);
    disk.fill();
    network.mend(server.devices);
    service.until("delivered", |code, s| {
        code == 0 && s["delivered"] == 5 && s["refused"] == 1 && s["waiting"] == 0
    });
    // What cannot be kept is refused to whoever hands it in, with the cure.
    disk.fill();
    let (code, _, err) = hand_in("lost?");
    assert_eq!(code, 13, "{err}");
    assert!(
        err.contains("disk full") && err.contains("hint: make room"),
        "{err}"
    );
    let status = service.until("it says so", |code, s| code == 0 && s["disk_fault"].is_object());
    let fault = &status["disk_fault"];
    assert!(
        text(fault, "what").contains("disk full") && text(fault, "cure").contains("make room"),
        "{status}"
    );
    let told = agent.ok(&["status"]);
    assert!(
        told.contains("connected to") && told.contains("disk full") && told.contains("hint: make room"),
        "{told}"
    );

    // Started anew on the full disk, with a certificate that is to be renewed now: it comes in, and says what it cannot do.
    service.stop();
    let before = agent.certificate();
    service.start(&["--renew-at", "0-0", "run"]);
    let status = service.until("in again", |code, s| {
        code == 0 && s["renewal_fault"].is_string() && s["disk_fault"].is_object()
    });
    let fault = text(&status, "renewal_fault");
    assert!(
        fault.contains("disk full") && fault.contains("hint: make room"),
        "{status}"
    );
    disk.fill();
    assert_eq!(hand_in("lost?").0, 13);
    assert_eq!(agent.certificate(), before);

    // There is room again: nobody has to touch it.
    disk.make_room();
    assert_eq!(hand_in("kept").0, 0);
    service.until("all is well", |code, s| {
        code == 0
            && s["delivered"] == 1
            && s["waiting"] == 0
            && s["disk_fault"].is_null()
            && s["renewal_fault"].is_null()
    });
    assert_ne!(agent.certificate(), before);
    let aside = disk.0.join("queue/refused");
    assert_eq!(std::fs::read_dir(aside).unwrap().count(), 1);
}

/// Renewed while there was room, admitted when there was none: the session stands, and the new certificate is put in use
/// as soon as that can be written down.
#[test]
fn a_new_certificate_that_cannot_be_put_in_use_is_used_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(program(), &folder.path().join("data"), &listener("enrol")).unwrap();
    let agent = Agent::new(program(), folder.path().join("pump-2"));
    let out = agent.folder.display().to_string();
    server
        .cli_ok(&["device", "provision", "pump-2", "--out", &out])
        .unwrap();
    let enrol = server.listener("enrol").unwrap().port();
    point_to(&agent, &[("enrol_port", enrol)]);
    agent.ok(&["renew", "--no-connect"]);
    let before = agent.certificate();
    // A link cannot be put where a folder is.
    let obstacle = agent.folder.join("current.new");
    std::fs::create_dir(&obstacle).unwrap();
    let mut service = Service::of(agent.clone(), folder.path().join("words"));
    service.start(&["run"]);
    let status = service.until("connected", |code, s| code == 0 && s["disk_fault"].is_object());
    assert!(
        text(&status["disk_fault"], "what").contains("current"),
        "{status}"
    );
    agent.ok(&["publish", "--queued", "1"]);
    service.until("delivered", |code, s| code == 0 && s["delivered"] == 1);
    assert_eq!(agent.certificate(), before);
    std::fs::remove_dir(&obstacle).unwrap();
    service.until("put in use", |code, s| code == 0 && s["disk_fault"].is_null());
    assert_ne!(agent.certificate(), before);
}
