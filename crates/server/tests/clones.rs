//! Two holders of one key are noticed in seconds; a device that roams is not.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::net::IpAddr;
use std::path::Path;
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
        if lost.len() > 400 {
            // Kept open long past the second in which an answer would count.
            lost.remove(0);
        }
    }
    assert_eq!(world.suspects(), Vec::<Value>::new());
}
