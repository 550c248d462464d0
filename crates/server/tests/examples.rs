//! The device library's examples, built and run as their users do, against a real server; the first one with swtpm.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use countersign_testkit::agent::{Agent, example};
use countersign_testkit::server::{Server, listener};
use countersign_testkit::swtpm::Swtpm;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_countersign"))
}

struct Place {
    folder: tempfile::TempDir,
    server: Server,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(program(), &folder.path().join("data"), &listener("enrol")).unwrap();
        Self { folder, server }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn cli(&self, arguments: &[&str]) -> String {
        self.server.cli_ok(arguments).unwrap()
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        std::fs::write(self.path(name), content).unwrap();
        self.text(name)
    }

    /// How many messages the platform had of the device.
    fn published(&self, device: &str) -> u64 {
        let path = format!("/tenants/default/devices/{device}/exposure?from=0&to=4102444800000");
        let answer = self.server.ask("GET", &path, None).unwrap();
        let topics = answer["published"].as_array().unwrap();
        topics.iter().map(|t| t["messages"].as_u64().unwrap()).sum()
    }

    fn until_published(&self, running: &Running, device: &str, least: u64) {
        running.until(&format!("{least} messages of {device}"), |_| {
            self.published(device) >= least
        });
    }
}

/// A program, ended with this value.
struct Running {
    child: Child,
    words: PathBuf,
}

impl Running {
    fn start(program: &Path, arguments: &[&str], words: PathBuf) -> Self {
        let output = File::create(&words).unwrap();
        let child = Command::new(program)
            .args(arguments)
            .env("TSS2_LOG", "all+NONE")
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        Self { child, words }
    }

    /// Waits until this is so of what it said.
    fn until(&self, what: &str, holds: impl Fn(&str) -> bool) {
        let started = Instant::now();
        loop {
            let words = std::fs::read_to_string(&self.words).unwrap();
            if holds(&words) {
                return;
            }
            assert!(started.elapsed() < Duration::from_secs(60), "{what}\n{words}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ctrl-C, and how it ended; with what it said.
    fn interrupt(mut self) -> (ExitStatus, String) {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
        let started = Instant::now();
        loop {
            let ended = self.child.try_wait().unwrap();
            let words = std::fs::read_to_string(&self.words).unwrap();
            match ended {
                Some(status) => return (status, words),
                None => assert!(
                    started.elapsed() < Duration::from_secs(20),
                    "it does not end\n{words}"
                ),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Devices may send each other commands.
const ALL: &str = "permit (principal, action, resource) when { principal.state == \"active\" };";

#[test]
fn a_device_enrols_by_its_tpm_publishes_and_hears_until_it_is_stopped() {
    let place = Place::new();
    let device = example(program(), "tpm_device", &["--features", "tpm"]);
    let tpm = Swtpm::manufactured(&[]);
    place.cli(&["policy", "set", &place.write("policy", ALL), "--reason", "test"]);
    let root = place.write("root.pem", place.cli(&["authority", "export", "platform"]));
    let server = format!("localhost:{}", place.server.listener("enrol").unwrap().port());
    let (folder, at) = (place.text("sensor-1"), format!("tpm:{}", tpm.address()));
    let arguments = [&folder, &server, &root, "sensor-1", &at].map(|text| text as &str);
    let start = |arguments: &[&str]| Running::start(&device, arguments, place.path("words"));

    // The platform knows the device, and not its TPM.
    place.cli(&["device", "add", "sensor-1"]);
    let mut refused = start(&arguments);
    let code = refused.child.wait().unwrap().code();
    let words = std::fs::read_to_string(&refused.words).unwrap();
    assert_eq!(code, Some(10), "{words}");
    assert!(words.contains("hint: "), "{words}");

    let endorsement = Command::new("sh")
        .args(["-c", "tpm2_nvread 0x1c00002 | openssl x509 -inform DER"])
        .env("TPM2TOOLS_TCTI", tpm.address())
        .output()
        .unwrap();
    let endorsement = place.write("ek.pem", endorsement.stdout);
    place.cli(&["attestation", "key", "add", "sensor-1", &endorsement]);
    let running = start(&arguments);
    place.until_published(&running, "sensor-1", 3);
    let shown: Value = serde_json::from_str(&place.cli(&["device", "show", "sensor-1", "--json"])).unwrap();
    assert_eq!(shown["credentials"][0]["custody"], "attested", "{shown}");

    place.cli(&[
        "device",
        "provision",
        "operator",
        "--out",
        &place.text("operator"),
    ]);
    let topic = "devices/sensor-1/commands/restart";
    Agent::new(program(), place.path("operator")).ok(&["publish", "--topic", topic, "now"]);
    running.until("the command", |words| words.contains(&format!("{topic}\tnow\n")));
    let (status, words) = running.interrupt();
    assert!(status.success(), "{status}: {words}");
    assert!(words.contains("sensor-1: stopped"), "{words}");

    // From now on the folder is all that it needs.
    let had = place.published("sensor-1");
    let running = start(&[&folder]);
    place.until_published(&running, "sensor-1", had + 2);
    let (status, words) = running.interrupt();
    assert!(
        status.success() && !words.contains("enrolled"),
        "{status}: {words}"
    );
    let shown: Value = serde_json::from_str(&place.cli(&["device", "show", "sensor-1", "--json"])).unwrap();
    assert_eq!(shown["credentials"].as_array().unwrap().len(), 1, "{shown}");
}

#[test]
fn a_gateway_that_loses_devices_goes_on_with_the_others() {
    let place = Place::new();
    let gateway = example(program(), "gateway", &[]);
    std::fs::create_dir(place.path("gateway")).unwrap();
    for device in ["pump-1", "pump-2", "pump-3", "pump-4"] {
        let out = place.text(&format!("gateway/{device}"));
        place.cli(&["device", "provision", device, "--out", &out]);
    }
    std::fs::remove_file(place.path("gateway/pump-4/device.key")).unwrap();
    let running = Running::start(&gateway, &[&place.text("gateway")], place.path("words"));
    for device in ["pump-1", "pump-2", "pump-3"] {
        place.until_published(&running, device, 2);
    }
    running.until("the folder without a key", |words| {
        words.contains("pump-4: given up: cannot read")
    });
    // Each in a session of its own, under its own name.
    let sessions = place.cli(&["session", "list"]);
    assert!(
        ["pump-1", "pump-2", "pump-3"]
            .iter()
            .all(|d| sessions.contains(d)),
        "{sessions}"
    );

    place.cli(&["device", "suspend", "pump-2", "--reason", "test"]);
    place.cli(&["device", "revoke", "pump-3", "--code", "key-compromise"]);
    running.until("the cures", |words| {
        let told = |device: &str, what: &str, cure: &str| {
            let of = |line: &&str| line.starts_with(&format!("{device}: warning: "));
            words
                .lines()
                .filter(of)
                .any(|line| line.contains(what) && line.contains(&format!("; hint: {cure}")))
        };
        told(
            "pump-2",
            "device.suspended",
            "ask `countersign explain DEVICE` there",
        ) && told("pump-3", "this certificate was revoked", "have a new one issued")
            && ["pump-2", "pump-3"]
                .iter()
                .all(|d| words.contains(&format!("{d}: not connected")))
    });
    let the_other_goes_on = || {
        place.until_published(&running, "pump-1", place.published("pump-1") + 3);
    };
    the_other_goes_on();
    let published = || ["pump-2", "pump-3"].map(|device| place.published(device));
    let had = published();
    the_other_goes_on();
    assert_eq!(published(), had);
    // What it has to say waits for it.
    let waiting = std::fs::read_dir(place.path("gateway/pump-2/queue"))
        .unwrap()
        .count();
    assert!(waiting >= 3, "{waiting}");

    let (status, words) = running.interrupt();
    assert!(status.success(), "{status}: {words}");
    for device in ["pump-1", "pump-2", "pump-3"] {
        assert!(words.contains(&format!("{device}: ended\n")), "{words}");
    }
}
