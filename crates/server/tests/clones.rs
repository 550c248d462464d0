//! Two holders of one key are noticed in seconds; a device that roams is not.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::io::{Read, Write};
use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use countersign_policy::decide::DEFAULT_POLICY;
use countersign_testkit::client::{Attempt, Link, connect, publish};
use countersign_testkit::pki::{Ca, Identity, Leaf};
use countersign_testkit::server::Server;
use serde_json::{Value, json};

struct World {
    _folder: tempfile::TempDir,
    server: Server,
    /// Of the group `critical`.
    device: Identity,
    /// `d2`, of the group `lab`.
    other: Identity,
}

fn world(config: &str) -> World {
    let folder = tempfile::tempdir().unwrap();
    let config = format!("{config}\n[limits]\ndevice_connects_per_minute = 100000\n");
    let server = Server::start(
        Path::new(env!("CARGO_BIN_EXE_countersign")),
        &folder.path().join("data"),
        &config,
    )
    .unwrap();
    let ca = Ca::root("clones root", None);
    server
        .register("clones", "default", &ca, &json!({ "mode": "registered-only" }))
        .unwrap();
    let [device, other] = ["d1", "d2"].map(|id| ca.issue(&Leaf::named(id), &[]));
    let body = json!({ "devices": [
        { "id": "d1", "certificate": device.pem, "groups": ["critical"] },
        { "id": "d2", "certificate": other.pem, "groups": ["lab"] },
    ] });
    server
        .ask("POST", "/tenants/default/devices/import", Some(&body))
        .unwrap();
    World {
        _folder: folder,
        server,
        device,
        other,
    }
}

impl World {
    fn attempt(&self, last: u8, client_id: &str) -> Attempt {
        let device = if client_id == "d2" {
            &self.other
        } else {
            &self.device
        };
        Attempt {
            from: Some(IpAddr::from([127, 0, 3, last])),
            patience: Duration::from_secs(5),
            ..Attempt::new(self.server.devices)
        }
        .identity(device)
        .send(connect(5, client_id))
    }

    fn suspects(&self) -> Vec<Value> {
        let answer = self.server.ask("GET", "/clones", None).unwrap();
        answer.as_array().unwrap().clone()
    }

    fn suspect(&self, id: &str) -> Option<Value> {
        self.suspects().into_iter().find(|s| s["device"] == id)
    }

    fn state(&self, id: &str) -> String {
        let path = format!("/tenants/default/devices/{id}");
        let device = self.server.ask("GET", &path, None).unwrap();
        device["device"]["state"].as_str().unwrap().to_owned()
    }

    fn audited(&self, action: &str, id: &str) -> Option<Value> {
        let audit = self.server.ask("GET", "/audit", None).unwrap();
        let entries = audit.as_array().unwrap();
        let found = entries
            .iter()
            .find(|e| e["action"] == action && e["subject"] == id);
        found.cloned()
    }

    /// Puts policies into force, beside those that every tenant starts with. They need not fit the schema.
    fn policies(&self, more: &str) {
        let file = self._folder.path().join("clones.cedar");
        std::fs::write(&file, format!("{DEFAULT_POLICY}{more}")).unwrap();
        let file = file.to_str().unwrap();
        let set = ["policy", "set", file, "--reason", "clones", "--accept-lock-out"];
        self.server.cli_ok(&set).unwrap();
    }
}

/// A holder that wants to stay in: whenever its session is taken it closes, waits, and comes again.
fn hold(world: &World, id: &str, last: u8, pause: Duration, over: &AtomicBool) {
    while !over.load(Ordering::Acquire) {
        if let Ok(mut link) = world.attempt(last, id).open() {
            // Until DISCONNECT, or the end of the test's patience.
            let _ = link.packet();
        }
        std::thread::sleep(pause);
    }
}

/// Two holders of the key of each of `ids`, until `is_over`, or for `patience`.
fn two_holders(world: &World, ids: &[&str], patience: Duration, is_over: impl Fn() -> bool) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for id in ids {
            for last in [1, 2] {
                let over = &over;
                scope.spawn(move || hold(world, id, last, Duration::from_millis(700), over));
            }
        }
        let started = Instant::now();
        while !is_over() && started.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(50));
        }
        over.store(true, Ordering::Release);
        // Whoever is in is waiting for a word.
        for id in ids {
            let path = format!("/tenants/default/devices/{id}/sessions");
            let _ = world.server.ask("DELETE", &path, None);
        }
    });
}

#[test]
fn two_that_take_a_session_from_each_other_are_suspected_within_ten_seconds() {
    let world = world("");
    let found = Mutex::new(None);
    two_holders(&world, &["d1"], Duration::from_secs(10), || {
        *found.lock().unwrap() = world.suspect("d1");
        found.lock().unwrap().is_some()
    });
    let found = found.into_inner().unwrap().unwrap();
    assert!(found["answered"].as_u64() >= Some(1), "{found}");
    assert_eq!(found["sources"].as_array().map(Vec::len), Some(2), "{found}");
    let started = Instant::now();
    let entry = loop {
        if let Some(entry) = world.audited("device.clone-suspected", "d1") {
            break entry;
        }
        assert!(started.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(entry["actor"], "countersign");
    assert!(entry["detail"].to_string().contains("alert"), "{entry}");
    let listed = world.server.cli_ok(&["clones", "list"]).unwrap();
    assert!(listed.contains("d1") && listed.contains("127.0.3.1"), "{listed}");
    // To look at it is all that happens where no policy says otherwise.
    assert_eq!(world.state("d1"), "active");
}

const QUARANTINE: &str = r#"
@id("quarantine-clones")
permit (principal in Group::"critical", action == Action::"quarantine-clone", resource);
"#;

/// Each device has two live holders of its key; policies tell one group from the other.
#[test]
fn a_policy_has_one_group_quarantined_and_leaves_the_other_at_an_alert() {
    let world = world("");
    world.policies(QUARANTINE);
    let is_told = |id: &str| world.audited("device.clone-suspected", id).is_some();
    two_holders(&world, &["d1", "d2"], Duration::from_secs(20), || {
        is_told("d1") && is_told("d2") && world.state("d1") == "quarantined"
    });
    assert_eq!(world.state("d1"), "quarantined");
    let told = |id: &str| world.audited("device.clone-suspected", id).unwrap()["detail"].to_string();
    assert!(
        told("d1").contains("quarantine-clones"),
        "what chose it is in the audit: {}",
        told("d1")
    );
    assert!(!told("d2").contains("quarantine"), "{}", told("d2"));
    let moved = world.audited("device.quarantine", "d1").unwrap();
    assert_eq!(moved["actor"], "countersign");
    let detail = moved["detail"].to_string();
    assert!(
        detail.contains("two seem to hold the key") && detail.contains("by policy quarantine-clones"),
        "{moved}"
    );
    assert_eq!(
        world.state("d2"),
        "active",
        "an alert is all there is for its group"
    );
    // What another policy would make of the suspicion that is left; who is out already is none.
    let file = world._folder.path().join("lab.cedar");
    let lab = QUARANTINE.replace("critical", "lab");
    std::fs::write(&file, format!("{DEFAULT_POLICY}{lab}")).unwrap();
    let said = world
        .server
        .cli_ok(&["policy", "simulate", file.to_str().unwrap()])
        .unwrap();
    assert!(
        said.contains("suspected clones: 1; quarantined by the policies in force: -; by these: d2"),
        "{said}"
    );
    assert_eq!(world.audited("device.quarantine", "d2"), None);
}

/// The score at which a policy acts may be higher than the one at which it is told.
#[test]
fn a_policy_may_wait_for_more_evidence_than_a_suspicion_needs() {
    let world = world("");
    world.policies(
        r#"
@id("when-it-is-clear")
permit (principal, action == Action::"quarantine-clone", resource) when { context.score >= 5000 && context.sources > 1 };
"#,
    );
    two_holders(&world, &["d1"], Duration::from_secs(20), || {
        world.state("d1") == "quarantined"
    });
    assert_eq!(world.state("d1"), "quarantined");
    // It was told before, at a score at which the policy did not act yet.
    let told = world.audited("device.clone-suspected", "d1").unwrap()["detail"].to_string();
    assert!(told.contains("alert"), "{told}");
    let moved = world.audited("device.quarantine", "d1").unwrap()["detail"].to_string();
    assert!(moved.contains("by policy when-it-is-clear"), "{moved}");
}

/// Nobody is quarantined by a policy that cannot be evaluated, nor by the others beside it, and it is not passed over in
/// silence.
#[test]
fn a_policy_that_fails_leaves_it_at_an_alert_that_says_so() {
    let world = world("");
    let wrong = r#"
@id("wrong")
forbid (principal, action == Action::"quarantine-clone", resource) when { context.nothing };
"#;
    world.policies(&format!("{QUARANTINE}{wrong}"));
    let started = Instant::now();
    // Well beyond the moment at which it is told.
    two_holders(&world, &["d1"], Duration::from_secs(20), || {
        world
            .suspect("d1")
            .is_some_and(|s| s["score"].as_u64() > Some(5_000))
    });
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "{:?}",
        world.suspects()
    );
    let told = world.audited("device.clone-suspected", "d1").unwrap()["detail"].to_string();
    assert!(
        told.contains("alert") && told.contains("failure") && told.contains("wrong"),
        "{told}"
    );
    assert_eq!(world.state("d1"), "active");
}

#[test]
fn two_sessions_of_one_key_at_two_addresses_are_suspected_while_both_are_active() {
    let world = world("");
    world
        .server
        .ask(
            "PATCH",
            "/tenants/default",
            Some(&json!({ "client_id_mode": "prefix" })),
        )
        .unwrap();
    let mut links: Vec<_> = [(1, "d1:a"), (2, "d1:b")]
        .map(|(last, id)| world.attempt(last, id).open().unwrap())
        .into();
    let started = Instant::now();
    while world.suspects().is_empty() {
        assert!(started.elapsed() < Duration::from_secs(10));
        for link in &mut links {
            link.send(&publish(5, "devices/d1/telemetry", 1, 0)).unwrap();
            link.packet().unwrap();
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// One connection over HTTPS, kept open.
fn over_https(world: &World, last: u8) -> Link {
    Attempt {
        alpn: vec![b"http/1.1".to_vec()],
        ..world.attempt(last, "d1")
    }
    .send("")
    .ask()
    .unwrap()
}

fn post(link: &mut Link) {
    let request =
        "POST /v1/publish/devices/d1/telemetry HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n0";
    link.send(request.as_bytes()).unwrap();
    let mut answer = [0; 4096];
    let n = link.read(&mut answer).unwrap();
    assert!(
        answer[..n].starts_with(b"HTTP/1.1 2"),
        "{:?}",
        answer[..n].escape_ascii()
    );
}

#[test]
fn two_that_publish_over_https_by_turns_are_suspected_too() {
    let world = world("");
    let mut links = [1, 2].map(|last| over_https(&world, last));
    let started = Instant::now();
    while world.suspects().is_empty() {
        assert!(started.elapsed() < Duration::from_secs(10));
        for link in &mut links {
            post(link);
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    assert_eq!(world.suspect("d1").unwrap()["takeovers"], 0);
}

/// MQTT by one network and HTTPS by another is what one device may do; and whoever changes the network leaves a connection
/// behind that nothing comes from any more.
#[test]
fn a_device_that_speaks_both_at_two_addresses_or_roams_over_https_is_no_suspicion() {
    let world = world("");
    let mut mqtt = world.attempt(1, "d1").open().unwrap();
    let mut left = Vec::new();
    for n in 0..6 {
        let mut https = over_https(&world, n + 2);
        for _ in 0..8 {
            post(&mut https);
            mqtt.send(&publish(5, "devices/d1/telemetry", 1, 0)).unwrap();
            mqtt.packet().unwrap();
            std::thread::sleep(Duration::from_millis(300));
        }
        left.push(https);
    }
    assert_eq!(world.suspects(), Vec::<Value>::new());
}

/// It opens its new connection before it closes the old one.
#[test]
fn a_device_that_reconnects_from_its_own_address_is_no_suspicion() {
    let world = world("");
    let mut link = world.attempt(1, "d1").open().unwrap();
    for _ in 0..10 {
        let next = world.attempt(1, "d1").open().unwrap();
        // Told that it was taken over, it closes in order.
        assert_eq!(link.packet().unwrap()[0], 0xe0);
        link = next;
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(world.suspects(), Vec::<Value>::new());
}

#[test]
fn a_thousand_roamings_are_no_suspicion() {
    let world = world("");
    let mut lost = Vec::new();
    for n in 0..1_000u32 {
        let link = world
            .attempt(u8::try_from(n % 3 + 1).unwrap(), "d1")
            .open()
            .unwrap();
        // Its network is gone: nobody answers there any more, and the server has not noticed yet.
        lost.push(link);
    }
    assert_eq!(world.suspects(), Vec::<Value>::new());
}

/// OpenSSL, resuming the session in `ticket` if there is one, else keeping it there; it stays for as long as its standard input
/// does. Whether it was resumed.
fn openssl(world: &World, folder: &Path, last: u8, ticket: &Path) -> (Child, bool) {
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let kept = ticket.exists();
    let mut client = Command::new("openssl")
        .args(["s_client", "-tls1_3", "-ign_eof", "-servername", "localhost"])
        .args([
            "-connect",
            &world.server.devices.to_string(),
            "-bind",
            &format!("127.0.3.{last}"),
        ])
        .args(["-cert", &file("device.crt"), "-key", &file("device.key")])
        .args([
            if kept { "-sess_in" } else { "-sess_out" },
            ticket.to_str().unwrap(),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    client
        .stdin
        .as_mut()
        .unwrap()
        .write_all(&connect(4, "d1"))
        .unwrap();
    let (mut said, mut some) = (Vec::new(), [0; 4096]);
    // CONNACK of MQTT 3.1.1, among what OpenSSL says of the session.
    while !said.windows(4).any(|w| w == [0x20, 2, 0, 0]) {
        let n = client.stdout.as_mut().unwrap().read(&mut some).unwrap();
        assert!(n > 0, "not admitted: {}", String::from_utf8_lossy(&said));
        said.extend_from_slice(&some[..n]);
    }
    (client, String::from_utf8_lossy(&said).contains("Reused, TLSv1.3"))
}

/// A device whose ticket lies where each crash undoes what was written since: it resumes the same old session again and again,
/// from wherever it is, while the server still holds what it had before.
#[test]
fn an_old_ticket_that_is_used_again_after_every_crash_is_no_suspicion() {
    let world = world("");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("device.crt"), &world.device.pem).unwrap();
    std::fs::write(folder.path().join("device.key"), &world.device.key_pem).unwrap();
    let ticket = folder.path().join("ticket");
    let (mut first, resumed) = openssl(&world, folder.path(), 1, &ticket);
    assert!(!resumed);
    drop(first.stdin.take());
    first.kill().unwrap();
    first.wait().unwrap();
    // Crashed machines say nothing any more: they are stopped, and ended when all is over.
    let mut crashed = Vec::new();
    for n in 0..60u8 {
        let (client, resumed) = openssl(&world, folder.path(), n / 20 + 1, &ticket);
        assert!(resumed, "the old ticket is taken the {n}th time");
        crashed.push(client);
        let process = rustix::process::Pid::from_child(crashed.last().unwrap());
        rustix::process::kill_process(process, rustix::process::Signal::STOP).unwrap();
    }
    let suspects = world.suspects();
    for client in &mut crashed {
        client.kill().unwrap();
        client.wait().unwrap();
    }
    assert_eq!(suspects, Vec::<Value>::new());
}

/// The answer to CONNECT is lost, or the device gave up before it came: it tries again at once, again and again.
#[test]
fn lost_answers_are_no_suspicion() {
    let world = world("");
    let mut lost = Vec::new();
    for n in 0..400u32 {
        let link = world.attempt(1, "d1").ask().unwrap();
        match n % 2 {
            // The way back is gone.
            0 => lost.push(link),
            // It has no patience: its side is closed before the answer is read.
            _ => drop(link),
        }
    }
    assert_eq!(world.suspects(), Vec::<Value>::new());
}
