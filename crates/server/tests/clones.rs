//! Two holders of one key are noticed in seconds; a device that roams is not.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::io::{Read, Write};
use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use countersign_testkit::client::{Attempt, connect, publish};
use countersign_testkit::pki::{Ca, Identity, Leaf};
use countersign_testkit::server::Server;
use serde_json::{Value, json};

struct World {
    _folder: tempfile::TempDir,
    server: Server,
    device: Identity,
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
    let device = ca.issue(&Leaf::named("d1"), &[]);
    let body = json!({ "devices": [{ "id": "d1", "certificate": device.pem }] });
    server
        .ask("POST", "/tenants/default/devices/import", Some(&body))
        .unwrap();
    World {
        _folder: folder,
        server,
        device,
    }
}

impl World {
    fn attempt(&self, last: u8, client_id: &str) -> Attempt {
        Attempt {
            from: Some(IpAddr::from([127, 0, 3, last])),
            patience: Duration::from_secs(5),
            ..Attempt::new(self.server.devices)
        }
        .identity(&self.device)
        .send(connect(5, client_id))
    }

    fn suspects(&self) -> Vec<Value> {
        let answer = self.server.ask("GET", "/clones", None).unwrap();
        answer.as_array().unwrap().clone()
    }

    fn state(&self) -> String {
        let device = self
            .server
            .ask("GET", "/tenants/default/devices/d1", None)
            .unwrap();
        device["device"]["state"].as_str().unwrap().to_owned()
    }
}

/// A holder that wants to stay in: whenever its session is taken it closes, waits, and comes again.
fn hold(world: &World, last: u8, pause: Duration, over: &AtomicBool) {
    while !over.load(Ordering::Acquire) {
        if let Ok(mut link) = world.attempt(last, "d1").open() {
            // Until DISCONNECT, or the end of the test's patience.
            let _ = link.packet();
        }
        std::thread::sleep(pause);
    }
}

fn two_holders(world: &World) -> Value {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for last in [1, 2] {
            let over = &over;
            scope.spawn(move || hold(world, last, Duration::from_millis(700), over));
        }
        let started = Instant::now();
        let found = loop {
            if let Some(found) = world.suspects().pop() {
                break found;
            }
            if started.elapsed() > Duration::from_secs(10) {
                break Value::Null;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        over.store(true, Ordering::Release);
        // Whoever is in is waiting for a word.
        let _ = world
            .server
            .ask("DELETE", "/tenants/default/devices/d1/sessions", None);
        found
    })
}

#[test]
fn two_that_take_a_session_from_each_other_are_suspected_within_ten_seconds() {
    let world = world("");
    let found = two_holders(&world);
    assert_eq!(found["device"], "d1", "{found}");
    assert!(found["answered"].as_u64() >= Some(1), "{found}");
    assert_eq!(found["sources"].as_array().map(Vec::len), Some(2), "{found}");
    let started = Instant::now();
    loop {
        let audit = world.server.ask("GET", "/audit", None).unwrap();
        let entries = audit.as_array().unwrap();
        if let Some(entry) = entries.iter().find(|e| e["action"] == "device.clone-suspected") {
            assert_eq!(
                (entry["actor"].as_str(), entry["subject"].as_str()),
                (Some("countersign"), Some("d1"))
            );
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(20));
    }
    let listed = world.server.cli_ok(&["clones", "list"]).unwrap();
    assert!(listed.contains("d1") && listed.contains("127.0.3.1"), "{listed}");
    // To look at it is all that happens by default.
    assert_eq!(world.state(), "active");
}

#[test]
fn by_its_tenants_setting_the_device_is_quarantined() {
    let world = world("[clones.tenants]\ndefault = \"quarantine\"\n");
    two_holders(&world);
    let started = Instant::now();
    while world.state() != "quarantined" {
        assert!(started.elapsed() < Duration::from_secs(8), "{}", world.state());
        std::thread::sleep(Duration::from_millis(50));
    }
    let audit = world.server.ask("GET", "/audit", None).unwrap();
    let entries = audit.as_array().unwrap();
    let moved = entries
        .iter()
        .find(|e| e["action"] == "device.quarantine")
        .unwrap();
    assert_eq!(moved["actor"], "countersign");
    assert!(
        moved["detail"].to_string().contains("two seem to hold the key"),
        "{moved}"
    );
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
        assert!(started.elapsed() < Duration::from_secs(16));
        for link in &mut links {
            link.send(&publish(5, "devices/d1/telemetry", 1, 0)).unwrap();
            link.packet().unwrap();
        }
        std::thread::sleep(Duration::from_millis(300));
    }
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
