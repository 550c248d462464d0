//! The agent against a server: the first certificate, the next one, and the roots it pins.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use countersign_testkit::agent::{Agent, told};
use countersign_testkit::pki::{Ca, Leaf};
use countersign_testkit::server::{Server, listener};
use serde_json::json;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_countersign"))
}

struct Place {
    folder: tempfile::TempDir,
    server: Server,
    /// Where devices enrol.
    enrol: String,
}

impl Place {
    fn new(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = format!("{more}{}", listener("enrol"));
        let server = Server::start(program(), &folder.path().join("data"), &config).unwrap();
        let enrol = enrol_address(&server);
        let place = Self {
            folder,
            server,
            enrol,
        };
        let root = place.server.cli_ok(&["authority", "export", "platform"]).unwrap();
        std::fs::write(place.path("root.pem"), root).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn agent(&self, name: &str) -> Agent {
        Agent::new(program(), self.path(name))
    }

    /// A file with a one-time secret.
    fn secret(&self, device: &str) -> String {
        let text = self.server.cli_ok(&["device", "secret", device]).unwrap();
        let path = self.path(&format!("{device}.secret"));
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn enrol(&self, device: &str) -> Agent {
        self.server.cli_ok(&["device", "add", device]).unwrap();
        let secret = self.secret(device);
        let agent = self.agent(device);
        agent.ok(&self.arguments(device, &secret));
        agent
    }

    fn arguments<'a>(&'a self, device: &'a str, secret: &'a str) -> Vec<&'a str> {
        let root: &'static str = Box::leak(self.text("root.pem").into_boxed_str());
        vec![
            "enrol",
            "--server",
            &self.enrol,
            "--platform-root",
            root,
            "--id",
            device,
            "--secret-file",
            secret,
        ]
    }

    /// SHA-256 of a certificate, by OpenSSL.
    fn fingerprint(&self, path: &Path) -> String {
        let output = Command::new("openssl")
            .args(["x509", "-noout", "-fingerprint", "-sha256", "-in"])
            .arg(path)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (_, hex) = text.trim().split_once('=').unwrap();
        hex.replace(':', "").to_ascii_lowercase()
    }

    fn credentials(&self, device: &str) -> Vec<(String, String)> {
        let path = format!("/tenants/default/devices/{device}");
        let answer = self.server.ask("GET", &path, None).unwrap();
        let list = answer["credentials"].as_array().unwrap();
        let text = |c: &serde_json::Value, key: &str| c[key].as_str().unwrap().to_owned();
        list.iter().map(|c| (text(c, "kind"), text(c, "state"))).collect()
    }
}

fn enrol_address(server: &Server) -> String {
    format!("localhost:{}", server.listener("enrol").unwrap().port())
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_device_enrols_by_a_one_time_secret_connects_and_renews() {
    let place = Place::new("");
    let agent = place.enrol("sensor-1");
    agent.ok(&["check"]);
    agent.ok(&["publish", "hello"]);
    let first = agent.certificate();
    // Once more is not how an identity is replaced by mistake.
    let secret = place.secret("sensor-1");
    let (code, _, err) = agent.run(&place.arguments("sensor-1", &secret));
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("hint: ") && err.contains("renew"), "{err}");
    assert_eq!(agent.certificate(), first);

    let key = std::fs::read(agent.folder.join("device.key")).unwrap();
    assert!(agent.ok(&["renew"]).contains("renewed"));
    assert_ne!(agent.certificate(), first);
    assert_ne!(std::fs::read(agent.folder.join("device.key")).unwrap(), key);
    agent.ok(&["check"]);
    // The old key is gone once the new certificate has connected.
    assert_eq!(std::fs::read_dir(agent.folder.join("slots")).unwrap().count(), 1);
    let all = [
        ("operational".into(), "active".into()),
        ("operational".into(), "active".into()),
    ];
    assert_eq!(place.credentials("sensor-1"), all);
    // Other clients find the new one by the same names.
    let mosquitto = Command::new("mosquitto_pub")
        .args(["-h", "localhost", "-p", &place.server.devices.port().to_string()])
        .args(["--cafile", &place.text("root.pem")])
        .args(["--cert", &agent.folder.join("device.crt").display().to_string()])
        .args(["--key", &agent.folder.join("device.key").display().to_string()])
        .args([
            "-i",
            "sensor-1",
            "-q",
            "1",
            "-t",
            "devices/sensor-1/telemetry",
            "-m",
            "x",
        ])
        .output()
        .unwrap();
    assert!(mosquitto.status.success(), "{mosquitto:?}");
    // Renewed, but not connected yet: the old one stays until then.
    let second = agent.certificate();
    agent.ok(&["renew", "--no-connect"]);
    assert_eq!(agent.certificate(), second);
    agent.ok(&["check"]);
    assert_ne!(agent.certificate(), second);
    // With the secret anew: the old identity is replaced when the new one has connected.
    // Refused when it comes: the old one is used on, and the next renewal has another.
    agent.ok(&["renew", "--no-connect"]);
    let next = std::fs::read_dir(agent.folder.join("slots")).unwrap();
    let next = next.map(|e| e.unwrap().path()).max().unwrap().join("device.crt");
    let fingerprint = place.fingerprint(&next);
    place
        .server
        .cli_ok(&["credential", "revoke", &fingerprint])
        .unwrap();
    let before = agent.certificate();
    let (code, _, err) = agent.run(&["check"]);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("was not admitted"), "{err}");
    assert_eq!(agent.certificate(), before);
    assert!(!next.exists());
    agent.ok(&["renew"]);
    let third = agent.certificate();
    let again = [place.arguments("sensor-1", &secret), vec!["--again"]].concat();
    agent.ok(&again);
    assert_ne!(agent.certificate(), third);
    agent.ok(&["check"]);
}

#[test]
fn a_device_enrols_by_its_factory_certificate() {
    let place = Place::new("");
    let ca = Ca::root("manufacturer", None);
    let known = json!({ "mode": "known-device" });
    place
        .server
        .register("manufacturer", "default", &ca, &known)
        .unwrap();
    let add = ["device", "add", "SN-7", "--authority", "manufacturer"];
    place.server.cli_ok(&add).unwrap();
    let factory = ca.issue(&Leaf::named("SN-7"), &[]);
    std::fs::write(place.path("idevid.pem"), &factory.pem).unwrap();
    std::fs::write(place.path("idevid.key"), &factory.key_pem).unwrap();
    let agent = place.agent("SN-7");
    let (certificate, key, root) = (
        place.text("idevid.pem"),
        place.text("idevid.key"),
        place.text("root.pem"),
    );
    let out = agent.ok(&[
        "enrol",
        "--server",
        &place.enrol,
        "--platform-root",
        &root,
        "--certificate",
        &certificate,
        "--key",
        &key,
    ]);
    assert!(out.contains("SN-7: enrolled"), "{out}");
    agent.ok(&["check"]);
    agent.ok(&["renew"]);
}

#[test]
fn each_way_to_fail_has_its_exit_code_and_cure_and_leaves_the_folder_as_it_was() {
    let place = Place::new("");
    place.server.cli_ok(&["device", "add", "d1"]).unwrap();
    place
        .server
        .cli_ok(&["device", "add", "waits", "--state", "pending"])
        .unwrap();
    let secret = place.secret("d1");
    let wrong = place.path("wrong");
    std::fs::write(&wrong, "not it\n").unwrap();
    let foreign = Ca::root("somebody else", None);
    std::fs::write(place.path("foreign.pem"), &foreign.pem).unwrap();
    let agent = place.agent("d1");
    let fails = |arguments: &[&str], code: i32, word: &str| {
        let (got, out, err) = agent.run(arguments);
        assert_eq!(got, code, "{arguments:?}: {out}{err}");
        assert!(err.contains(word) && err.contains("hint: "), "{err}");
        assert!(!agent.folder.join("device.crt").exists());
        let _ = std::fs::remove_dir_all(&agent.folder);
    };
    let wrong = wrong.display().to_string();
    fails(&place.arguments("d1", &wrong), 10, "countersign device secret");
    fails(&place.arguments("nobody", &secret), 10, "401");
    let mut unprofiled = place.arguments("d1", &secret);
    unprofiled.extend(["--profile", "nothing"]);
    fails(&unprofiled, 10, "no profile");
    let mut closed = place.arguments("d1", &secret);
    closed[2] = "localhost:1";
    fails(&closed, 4, "cannot reach");
    // Somebody who is not the platform gets no secret.
    let mut untrusted = place.arguments("d1", &secret);
    let other = place.text("foreign.pem");
    untrusted[4] = &other;
    fails(&untrusted, 5, "not trusted");
    let device_port = format!("localhost:{}", place.server.devices.port());
    let mut elsewhere = place.arguments("d1", &secret);
    elsewhere[2] = &device_port;
    fails(&elsewhere, 6, "device port");
    let waiting = place.secret("waits");
    let waits = place.arguments("waits", &waiting);
    let agent = place.agent("waits");
    let (code, _, err) = agent.run(&waits);
    assert_eq!(code, 11, "{err}");
    // Approved: the same again, for the same key.
    let key = std::fs::read(agent.folder.join("device.key")).unwrap();
    place.server.cli_ok(&["device", "activate", "waits"]).unwrap();
    agent.ok(&waits);
    assert_eq!(std::fs::read(agent.folder.join("device.key")).unwrap(), key);
    // Renewal that is refused leaves what is in use.
    let before = agent.certificate();
    place.server.cli_ok(&["device", "suspend", "waits"]).unwrap();
    let (code, _, err) = agent.run(&["renew"]);
    assert_eq!(code, 10, "{err}");
    assert!(err.contains("suspended"), "{err}");
    assert_eq!(agent.certificate(), before);
    place.server.cli_ok(&["device", "resume", "waits"]).unwrap();
    agent.ok(&["check"]);
}

/// A device that came with a certificate of another CA and a subject of its own gets the platform's, which names it otherwise.
#[test]
fn a_device_that_was_brought_along_renews() {
    let place = Place::new("");
    let ca = Ca::root("brought root", None);
    let admission = json!({ "mode": "registered-only" });
    place
        .server
        .register("field", "default", &ca, &admission)
        .unwrap();
    let identity = ca.issue(&Leaf::named("brought-1"), &[]);
    let body = json!({ "devices": [{ "id": "brought-1", "certificate": identity.pem }] });
    place
        .server
        .ask("POST", "/tenants/default/devices/import", Some(&body))
        .unwrap();
    let other = place.enrol("other");
    let agent = place.agent("brought-1");
    std::fs::create_dir(&agent.folder).unwrap();
    let profile = std::fs::read_to_string(other.folder.join("device.json")).unwrap();
    let put = |name: &str, text: &str| {
        use std::os::unix::fs::PermissionsExt;
        let path = agent.folder.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    put("device.json", &profile.replace("other", "brought-1"));
    put("device.crt", &identity.pem);
    put("device.key", &identity.key_pem);
    let root = std::fs::read_to_string(place.path("root.pem")).unwrap();
    put("platform-root.crt", &root);
    agent.ok(&["check"]);
    let before = agent.certificate();
    assert!(agent.ok(&["renew"]).contains("renewed"));
    assert_ne!(agent.certificate(), before);
    agent.ok(&["publish", "hello"]);
    let (code, _, err) = agent.run(&["check"]);
    assert!(code == 0 && !err.contains("warning"), "{err}");
}

#[test]
fn a_running_agent_renews_by_itself_and_goes_on_by_the_new_certificate() {
    let place = Place::new("");
    let agent = place.enrol("runs");
    let before = agent.certificate();
    let mut child = agent
        .command(&["--renew-at", "0-0", "subscribe", "devices/runs/commands/#"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut words = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut seen = String::new();
    // Subscribed, renewed, the new one is in use, subscribed again.
    while !(seen.contains("is in use") && seen.ends_with("subscribed to devices/runs/commands/#\n")) {
        let line = words
            .next()
            .unwrap_or_else(|| panic!("it ended: {seen}"))
            .unwrap();
        seen += &format!("{line}\n");
    }
    assert!(seen.contains("renewed: certificate"), "{seen}");
    assert_ne!(agent.certificate(), before);
    let sessions = place.server.ask("GET", "/sessions", None).unwrap();
    assert_eq!(sessions.as_array().unwrap().len(), 1, "{sessions}");
    child.kill().unwrap();
    child.wait().unwrap();
    // The same for lines of standard input; a second renewal is not at once.
    let before = agent.certificate();
    let mut child = agent
        .command(&["--renew-at", "0-0", "publish"])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("the publisher renews", || agent.certificate() != before);
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    // Left to others.
    let before = agent.certificate();
    agent.ok(&["--no-renew", "--renew-at", "0-0", "publish", "x"]);
    assert_eq!(agent.certificate(), before);
}

#[test]
fn killed_anywhere_in_a_renewal_the_agent_is_admitted_afterwards() {
    let place = Place::new("");
    let agent = place.enrol("killed");
    let started = Instant::now();
    agent.ok(&["renew"]);
    let whole = started.elapsed();
    let mut certificates = std::collections::HashSet::new();
    for round in 0..20_u32 {
        let mut child = agent
            .command(&["renew"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Spread over the whole of it.
        std::thread::sleep(whole * round / 20);
        let _ = child.kill();
        child.wait().unwrap();
        let (code, out, err) = agent.run(&["check"]);
        assert_eq!(code, 0, "round {round}: {out}{err}");
        certificates.insert(agent.certificate());
    }
    // What was issued for a lost answer was fetched again, not issued again: one credential for each certificate, and
    // one at most that was asked for last.
    let issued = place.credentials("killed").len();
    assert!(
        issued <= certificates.len() + 3,
        "{issued} issued, {} seen",
        certificates.len()
    );
}

#[test]
fn a_wrong_platform_root_is_not_pinned_and_the_right_one_is_taken_after_it() {
    let place = Place::new("");
    let other = Place::new("");
    place.server.cli_ok(&["device", "add", "sensor-1"]).unwrap();
    let secret = place.secret("sensor-1");
    let agent = place.agent("sensor-1");
    let pinned = agent.folder.join("platform-root.crt");
    let with = |root: &str, enrol: &str| {
        let arguments = [
            "enrol",
            "--server",
            enrol,
            "--platform-root",
            root,
            "--id",
            "sensor-1",
            "--secret-file",
            &secret,
        ];
        agent.run(&arguments)
    };
    // One that does not vouch for the platform, and one that does for another, which knows of no such secret.
    let (code, _, err) = with(&other.text("root.pem"), &place.enrol);
    assert!(code != 0 && err.contains("hint: "), "{err}");
    assert!(!pinned.exists(), "{err}");
    let (code, _, err) = with(&other.text("root.pem"), &other.enrol);
    assert!(code != 0, "{err}");
    assert!(!pinned.exists(), "{err}");
    let (code, _, err) = with(&place.text("root.pem"), &place.enrol);
    assert_eq!(code, 0, "{err}");
    assert_eq!(
        std::fs::read(&pinned).unwrap(),
        std::fs::read(place.path("root.pem")).unwrap()
    );
    agent.ok(&["check"]);
    // From then on it is the only one.
    let (code, _, err) = agent.run(&[
        "enrol",
        "--again",
        "--server",
        &other.enrol,
        "--platform-root",
        &other.text("root.pem"),
        "--id",
        "sensor-1",
        "--secret-file",
        &secret,
    ]);
    assert!(code != 0 && err.contains("another platform root"), "{err}");
}

#[test]
fn a_new_platform_root_is_pinned_only_on_the_word_of_a_pinned_one() {
    // The root that is to come, and the server's certificate below it.
    let next = Ca::root("the next platform root", None);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("next.pem");
    std::fs::write(&file, &next.pem).unwrap();
    let mut place = Place::new(&format!("[enrol]\nplatform_roots = [{:?}]\n", file));
    let early = place.enrol("early");
    // Before the bundle had the new root, as far as this device knows.
    let late = place.agent("late");
    std::fs::create_dir_all(&late.folder).unwrap();
    let first_root = std::fs::read(place.path("root.pem")).unwrap();
    place
        .server
        .cli_ok(&["device", "provision", "late", "--out", &place.text("late")])
        .unwrap();
    assert_eq!(
        std::fs::read(late.folder.join("platform-root.crt")).unwrap(),
        first_root
    );
    let pinned = std::fs::read_to_string(early.folder.join("platform-root.crt")).unwrap();
    assert_eq!(pinned.matches("BEGIN").count(), 2);

    // The rotation: from now on the server's certificate is below the new root.
    let served = next.issue_server("localhost");
    std::fs::write(place.path("server.pem"), &served.pem).unwrap();
    std::fs::write(place.path("server.key"), &served.key_pem).unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(place.path("server.key"), private).unwrap();
    let config = format!(
        "[enrol]\nplatform_roots = [{file:?}]\n[server]\ncertificate = {:?}\nkey = {:?}\n{}",
        place.path("server.pem"),
        place.path("server.key"),
        listener("enrol").replace(
            "127.0.0.1:0",
            &format!("127.0.0.1:{}", place.enrol.rsplit(':').next().unwrap())
        ),
    );
    place.server.kill();
    place.server = Server::start(program(), &place.path("data"), &config).unwrap();
    for agent in [&early, &late] {
        let path = agent.folder.join("device.json");
        let mut profile: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        profile["port"] = json!(place.server.devices.port());
        std::fs::write(&path, profile.to_string()).unwrap();
    }
    early.ok(&["check"]);
    early.ok(&["renew"]);
    // Whoever was not told in time believes nobody, and pins nothing on a stranger's word.
    for command in ["check", "renew"] {
        let (code, _, err) = late.run(&[command]);
        assert_eq!(code, 5, "{err}");
    }
    assert_eq!(
        std::fs::read(late.folder.join("platform-root.crt")).unwrap(),
        first_root
    );
}

#[test]
fn without_a_clock_the_agent_goes_by_what_it_knew() {
    let place = Place::new("");
    let agent = place.enrol("clockless");
    let mut command = Command::new("faketime");
    let plain = agent.command(&["check"]);
    command
        .args([
            "-f",
            "@1970-01-02 00:00:00",
            &plain.get_program().to_string_lossy(),
        ])
        .args(plain.get_args())
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("behind what was known"), "{text}");
}

#[test]
fn several_agents_on_one_folder_do_not_get_into_each_others_way() {
    let place = Place::new("[issuance]\ncertificates_per_device_max = 100\n");
    let agent = place.enrol("shared");
    for _ in 0..3 {
        let children: Vec<_> = ["renew", "check", "renew", "check", "renew", "check"]
            .iter()
            .map(|command| {
                let mut command = agent.command(&[command]);
                command
                    .stdout(Stdio::null())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap()
            })
            .collect();
        for child in children {
            let (code, _, err) = told(&child.wait_with_output().unwrap());
            // One device has one session: a later one takes over from an earlier one, and that is told as its end.
            assert!(code == 0 || code == 9, "{code}: {err}");
        }
        agent.ok(&["check"]);
    }
    agent.ok(&["renew"]);
    assert_eq!(std::fs::read_dir(agent.folder.join("slots")).unwrap().count(), 1);
}
