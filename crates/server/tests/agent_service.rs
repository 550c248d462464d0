//! The agent as a service: what is handed in is delivered, whatever happens to the network, the service, the device.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use countersign_testkit::agent::Agent;
use countersign_testkit::network::Network;
use countersign_testkit::server::{Server, listener};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_countersign"))
}

struct Place {
    folder: tempfile::TempDir,
    server: Server,
    network: Network,
    agent: Agent,
    running: Vec<Child>,
}

impl Place {
    fn new(device: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(program(), &folder.path().join("data"), &listener("enrol")).unwrap();
        let path = folder.path().join(device);
        let out = path.display().to_string();
        server
            .cli_ok(&["device", "provision", device, "--out", &out])
            .unwrap();
        let network = Network::to(server.devices);
        let json = path.join("device.json");
        let mut profile: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
        profile["port"] = json!(network.port);
        std::fs::write(&json, profile.to_string()).unwrap();
        Self {
            agent: Agent::new(program(), path),
            folder,
            server,
            network,
            running: Vec::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts the service; its words go to a file.
    fn run(&mut self, more: &[&str]) {
        let words = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("words"))
            .unwrap();
        let child = self
            .agent
            .command(&[&["run"], more].concat())
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(self.path("said")).unwrap())
            .stderr(words)
            .spawn()
            .unwrap();
        self.running.push(child);
        let socket = self.agent.folder.join("agent.sock");
        // One that was killed leaves its socket behind, with nobody there.
        until("it takes messages", || UnixStream::connect(&socket).is_ok());
    }

    fn signal(&mut self, signal: Signal) -> std::process::ExitStatus {
        let mut child = self.running.pop().unwrap();
        kill_process(Pid::from_child(&child), signal).unwrap();
        child.wait().unwrap()
    }

    /// The status, and the exit code that comes with it.
    fn status(&self) -> (i32, Value) {
        let (code, out, err) = self.agent.run(&["status", "--json"]);
        let status = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
        (code, status)
    }

    fn until_status(&self, what: &str, holds: impl Fn(i32, &Value) -> bool) {
        let started = Instant::now();
        loop {
            let (code, status) = self.status();
            if holds(code, &status["status"]) {
                return;
            }
            let words = std::fs::read_to_string(self.path("words")).unwrap_or_default();
            assert!(
                started.elapsed() < Duration::from_secs(100),
                "{what}: {code} {status}\n{words}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn hand_in(&self, payload: &str) {
        self.agent.ok(&["publish", "--queued", payload]);
    }

    /// How many messages the platform had of the device.
    fn published(&self, device: &str) -> u64 {
        let path = format!("/tenants/default/devices/{device}/exposure?from=0&to=4102444800000");
        let answer = self.server.ask("GET", &path, None).unwrap();
        let topics = answer["published"]
            .as_array()
            .unwrap_or_else(|| panic!("{answer}"));
        topics
            .iter()
            .map(|t| t["messages"].as_u64().unwrap_or_else(|| panic!("{t}")))
            .sum()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for child in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_is_handed_in_is_delivered_through_a_cut_network_and_a_killed_service() {
    let mut place = Place::new("pump-1");
    let (code, _, err) = place.agent.run(&["status"]);
    assert_eq!(code, 12, "{err}");
    assert!(err.contains("hint: "), "{err}");
    place.run(&[]);
    place.until_status("connected", |code, s| code == 0 && s["state"] == "connected");
    for n in 0..5 {
        place.hand_in(&format!("{n}"));
    }
    place.until_status("delivered", |_, s| s["delivered"] == 5 && s["waiting"] == 0);

    // The network is gone: messages are taken all the same, and the status says what is wrong and what to do.
    place.network.cut();
    place.until_status("noticed", |code, s| {
        code != 0 && s["fault"]["cure"].is_string() && s["retry_at"].is_i64()
    });
    for n in 5..15 {
        place.hand_in(&format!("{n}"));
    }
    assert_eq!(
        std::fs::read_dir(place.agent.folder.join("queue"))
            .unwrap()
            .count(),
        10
    );
    // A second service does not come in between.
    let (code, _, err) = place.agent.run(&["run"]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("already") && err.contains("hint: "), "{err}");

    // Killed with all of it waiting.
    place.signal(Signal::KILL);
    assert_eq!(place.status().0, 12);
    let (code, _, err) = place.agent.run(&["publish", "--queued", "lost"]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("countersign-agent run"), "{err}");
    place.run(&[]);
    place.hand_in("15");
    place.network.mend(place.server.devices);
    place.until_status("all is delivered", |code, s| {
        code == 0 && s["delivered"] == 11 && s["waiting"] == 0
    });
    let status = place.signal(Signal::TERM);
    assert!(status.success(), "{status}");
    // The platform's own account; written behind, so after a moment. One may have come twice, none is missing.
    let started = Instant::now();
    while !(16..=17).contains(&place.published("pump-1")) {
        let had = place.published("pump-1");
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "the platform had {had}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    let (code, status) = place.status();
    assert_eq!(
        (code, &status["status"]["state"], &status["running"]),
        (12, &json!("stopped"), &json!(false))
    );
    assert!(!place.agent.folder.join("agent.sock").exists());
}

#[test]
fn a_full_queue_says_so_and_keeps_what_waits() {
    let mut place = Place::new("pump-2");
    place.network.cut();
    place.run(&["--queue-messages", "3"]);
    for n in 0..3 {
        place.hand_in(&format!("{n}"));
    }
    let (code, _, err) = place.agent.run(&["publish", "--queued", "too many"]);
    assert_eq!(code, 13, "{err}");
    assert!(err.contains("3 messages") && err.contains("hint: "), "{err}");
    let (code, _, wrong) = place
        .agent
        .run(&["publish", "--queued", "--topic", "devices/+/x", "1"]);
    assert!(code == 2 && wrong.contains("no topic"), "{code}: {wrong}");
    place.network.mend(place.server.devices);
    place.until_status("delivered", |code, s| code == 0 && s["delivered"] == 3);
    // What the policies refuse stands in nobody's way.
    place
        .agent
        .ok(&["publish", "--queued", "--topic", "somebody/elses", "1"]);
    place.hand_in("after it");
    place.until_status("the next one", |_, s| s["refused"] == 1 && s["delivered"] == 4);
    let aside = place.agent.folder.join("queue/refused");
    assert_eq!(std::fs::read_dir(aside).unwrap().count(), 1);
    // MQTT 3.1.1 has no word for no: the session is closed, again and again, until it is clear what on.
    place.signal(Signal::TERM);
    place.run(&["--mqtt", "3.1.1"]);
    place
        .agent
        .ok(&["publish", "--queued", "--topic", "somebody/elses", "1"]);
    place.hand_in("after that too");
    place.until_status("the next one", |_, s| s["refused"] == 1 && s["delivered"] == 1);
}

/// The socket has bounds: programs that stay take no place from the service, and none stays silent within a line.
#[test]
fn programs_that_are_too_many_or_too_slow_or_too_loud_are_told_and_taken_leave_of() {
    let mut place = Place::new("pump-5");
    place.run(&[]);
    place.until_status("connected", |code, _| code == 0);
    let socket = place.agent.folder.join("agent.sock");
    let answer = |program: &UnixStream| {
        program.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut line = String::new();
        BufReader::new(program).read_line(&mut line).unwrap();
        line
    };
    // One that is served has a place, and keeps it while it is connected.
    let served = || {
        let program = UnixStream::connect(&socket).unwrap();
        (&program).write_all(b"{\"status\": true}\n").unwrap();
        answer(&program).contains("\"state\"").then_some(program)
    };
    let stays = |_| {
        let mut program = None;
        // Those that asked before may still have theirs for a moment.
        until("there is a place", || {
            program = served();
            program.is_some()
        });
        program.unwrap()
    };
    let mut programs: Vec<UnixStream> = (0..32).map(stays).collect();
    let (code, _, err) = place.agent.run(&["publish", "--queued", "1"]);
    assert_eq!(code, 13, "{err}");
    assert!(err.contains("32 programs") && err.contains("hint: "), "{err}");
    // Half a line, and no more: ten seconds later its place is free.
    let slow = programs.pop().unwrap();
    (&slow).write_all(b"{\"payload\":").unwrap();
    let started = Instant::now();
    assert_eq!(answer(&slow), "");
    assert!(
        (9..20).contains(&started.elapsed().as_secs()),
        "{:?}",
        started.elapsed()
    );
    until("a place is free", || served().is_some());
    drop(programs);
    // One line without an end.
    let loud = UnixStream::connect(&socket).unwrap();
    let mut writing = loud.try_clone().unwrap();
    std::thread::spawn(move || while writing.write_all(&[b'a'; 65536]).is_ok() {});
    let told = answer(&loud);
    assert!(
        told.contains("longer than 2 MiB") && told.contains("hint"),
        "{told}"
    );
    // Lines of standard input, too.
    let mut long = vec![b'a'; 300_000];
    long.extend(b"\n");
    std::fs::write(place.path("long"), long).unwrap();
    for (arguments, expected) in [(&["publish"][..], 13), (&["publish", "--queued"], 13)] {
        let output = place
            .agent
            .command(arguments)
            .stdin(std::fs::File::open(place.path("long")).unwrap())
            .output()
            .unwrap();
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(expected), "{err}");
        assert!(
            err.contains("longer than 262080 bytes") && err.contains("hint: "),
            "{err}"
        );
    }
}

#[test]
fn a_suspended_device_tells_its_operator_what_to_do() {
    let mut place = Place::new("pump-3");
    place.run(&[]);
    place.until_status("connected", |code, _| code == 0);
    place
        .server
        .cli_ok(&["device", "suspend", "pump-3", "--reason", "lost"])
        .unwrap();
    place.until_status("refused", |code, s| {
        let cure = s["fault"]["cure"].as_str().unwrap_or_default();
        code == 7 && s["state"] == "waiting" && cure.contains("countersign explain")
    });
    let (_, out, _) = place.agent.run(&["status"]);
    assert!(
        out.contains("fault: ") && out.contains("hint: ") && out.contains("tries again in"),
        "{out}"
    );
    // Nobody has to touch the device once it is trusted again.
    place.server.cli_ok(&["device", "resume", "pump-3"]).unwrap();
    place.until_status("in again", |code, s| code == 0 && s["fault"].is_null());
}

/// What systemd is told: that messages are taken, where it stands, that it lives, and that it stops.
#[test]
fn systemd_is_told_when_it_is_ready_and_how_it_stands() {
    let mut place = Place::new("pump-4");
    let path = place.path("notify");
    let systemd = UnixDatagram::bind(&path).unwrap();
    systemd.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    place.agent = place
        .agent
        .clone()
        .with("NOTIFY_SOCKET", path)
        .with("WATCHDOG_USEC", "3000000".into());
    // Nobody is there: it is ready all the same.
    place.network.cut();
    place.run(&[]);
    let mut told = String::new();
    let mut until_told = |words: &[&str]| {
        while !words.iter().all(|word| told.contains(word)) {
            let mut word = [0; 512];
            let n = systemd.recv(&mut word).unwrap_or_else(|e| panic!("{e}: {told}"));
            told += &String::from_utf8_lossy(&word[..n]);
            told.push('\n');
        }
    };
    until_told(&["READY=1", "WATCHDOG=1", "not connected to"]);
    place.network.mend(place.server.devices);
    until_told(&[": connected to"]);
    place.signal(Signal::TERM);
    until_told(&["STOPPING=1"]);
}
