//! The will: published when a session ends without its client's word, under the state that ended it.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::Path;
use std::time::Duration;

use countersign_testkit::client::{Attempt, Link, connect, connect_with_will, publish, subscribe};
use countersign_testkit::pki::{Ca, Identity, Leaf};
use countersign_testkit::server::{Server, http};
use serde_json::json;

const TOPIC: &str = "devices/d1/status";
/// Everybody sees everybody's status.
const POLICIES: &str = "permit (principal, action == Action::\"connect\", resource) when { principal.state == \"active\" };
@quarantine(\"open\")
permit (principal, action == Action::\"connect\", resource) when { principal.state == \"quarantined\" };
permit (principal, action == Action::\"publish\", resource) when { context.spaces.containsAny([\"status\", \"diagnostics\"]) };
permit (principal, action == Action::\"subscribe\", resource) when { context.spaces.contains(\"all\") };";

struct World {
    _folder: tempfile::TempDir,
    server: Server,
    ca: Ca,
    d1: Identity,
    watcher: Link,
}

fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(
        Path::new(env!("CARGO_BIN_EXE_countersign")),
        &folder.path().join("data"),
        "",
    )
    .unwrap();
    let ca = Ca::root("wills root", None);
    let admission = json!({ "mode": "registered-only" });
    server.register("wills", "default", &ca, &admission).unwrap();
    let identities = ["d1", "watcher"].map(|id| {
        let identity = ca.issue(&Leaf::named(id), &[]);
        let body = json!({ "devices": [{ "id": id, "certificate": identity.pem }] });
        server
            .ask("POST", "/tenants/default/devices/import", Some(&body))
            .unwrap();
        identity
    });
    let spaces = json!([
        { "name": "status", "filter": "devices/{id}/status" },
        { "name": "diagnostics", "filter": "devices/{id}/diagnostics/#" },
        { "name": "firmware", "filter": "devices/{id}/firmware" },
        { "name": "all", "filter": "devices/#" },
    ]);
    let body = json!({ "policies": POLICIES, "spaces": spaces });
    server.ask("PATCH", "/tenants/default", Some(&body)).unwrap();
    let [d1, watching] = identities;
    let mut watcher = Attempt {
        patience: Duration::from_secs(5),
        ..Attempt::new(server.devices)
    }
    .identity(&watching)
    .send(connect(5, "watcher"))
    .open()
    .unwrap();
    watcher.send(&subscribe(5, "devices/#")).unwrap();
    assert_eq!(watcher.packet().unwrap()[0], 0x90);
    World {
        _folder: folder,
        server,
        ca,
        d1,
        watcher,
    }
}

impl World {
    fn open(&self, level: u8, flags: u8, topic: &str) -> Link {
        Attempt {
            patience: Duration::from_secs(5),
            ..Attempt::new(self.server.devices)
        }
        .identity(&self.d1)
        .send(connect_with_will(level, "d1", flags, topic))
        .open()
        .unwrap()
    }

    /// The will came to who watches.
    fn comes(&mut self, level: u8, topic: &str) {
        let packet = self.watcher.packet().unwrap();
        let length = topic.len();
        assert_eq!(packet[0] & 0xf0, 0x30, "{packet:x?}");
        assert_eq!(&packet[4..4 + length], topic.as_bytes());
        // The user property goes along, the Will Delay Interval does not.
        let rest: &[u8] = match level {
            5 => b"\x07\x26\x00\x01k\x00\x01vgone",
            _ => b"\x00gone",
        };
        assert_eq!(&packet[4 + length..], rest, "{packet:x?}");
    }

    /// Nothing came: the answer to a ping is the next packet.
    fn is_quiet(&mut self) {
        std::thread::sleep(Duration::from_millis(200));
        self.watcher.send(&[0xc0, 0]).unwrap();
        assert_eq!(self.watcher.packet().unwrap(), [0xd0, 0]);
    }

    fn metric(&self, name: &str) -> u64 {
        let (_, text) = http(self.server.admin, "GET", "/metrics", None, None).unwrap();
        let line = text.lines().find(|l| l.starts_with(&format!("{name} ")));
        line.and_then(|l| l.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
    }

    fn move_to(&self, how: &str) {
        self.server
            .cli_ok(&["device", how, "d1", "--reason", "will test"])
            .unwrap();
    }
}

#[test]
fn a_will_comes_when_the_client_goes_without_a_word_and_not_when_it_says_goodbye() {
    let mut world = world();
    for level in [4, 5] {
        // The connection is lost.
        drop(world.open(level, 0x06, TOPIC));
        world.comes(level, TOPIC);
        // It breaks the protocol: a second CONNECT.
        let mut link = world.open(level, 0x06, TOPIC);
        link.send(&connect(level, "d1")).unwrap();
        world.comes(level, TOPIC);
        // Another connection takes over; the will of the first comes.
        let first = world.open(level, 0x06, TOPIC);
        let second = world.open(level, 0x06, TOPIC);
        world.comes(level, TOPIC);
        drop(first);
        // It comes before what the new connection says, however early it says it.
        let both = [
            connect_with_will(level, "d1", 0x06, TOPIC),
            publish(level, TOPIC, 0, 0),
        ]
        .concat();
        let third = Attempt::new(world.server.devices)
            .identity(&world.d1)
            .send(both)
            .open();
        world.comes(level, TOPIC);
        let packet = world.watcher.packet().unwrap();
        assert!(packet.ends_with(b"hello"), "{packet:x?}");
        drop(second);
        let mut second = third.unwrap();
        // DISCONNECT takes it back.
        second.send(&[0xe0, 0]).unwrap();
        assert!(second.packet().is_err());
        world.is_quiet();
    }
    // MQTT 5 may leave and have it published all the same (section 3.14.2.1).
    let mut link = world.open(5, 0x06, TOPIC);
    link.send(&[0xe0, 1, 4]).unwrap();
    world.comes(5, TOPIC);
    assert_eq!(world.metric("countersign_wills_published_total"), 9);
    assert_eq!(world.metric("countersign_wills_withheld_total"), 0);
    // What a device did names it.
    let told = world
        .server
        .cli_ok(&["--json", "exposure", "d1", "--from", "1h"])
        .unwrap();
    assert!(told.contains(TOPIC), "{told}");
}

#[test]
fn the_will_of_a_device_that_may_not_publish_any_more_is_withheld_and_kept_in_the_ledger() {
    let mut world = world();
    for (end, back) in [("suspend", "resume"), ("quarantine", "release")] {
        let link = world.open(5, 0x06, TOPIC);
        world.move_to(end);
        world.is_quiet();
        drop(link);
        world.move_to(back);
    }
    // Its policy is taken away while it is connected: the last word is no exception.
    let link = world.open(5, 0x06, TOPIC);
    let narrow = POLICIES.replace("[\"status\", \"diagnostics\"]", "[\"diagnostics\"]");
    let body = json!({ "policies": narrow });
    world
        .server
        .ask("PATCH", "/tenants/default", Some(&body))
        .unwrap();
    drop(link);
    world.is_quiet();
    let body = json!({ "policies": POLICIES });
    world
        .server
        .ask("PATCH", "/tenants/default", Some(&body))
        .unwrap();
    // Revoked for good.
    let link = world.open(4, 0x06, TOPIC);
    let fingerprint = countersign_identity::Fingerprint::of(&world.d1.chain[0]).to_string();
    world
        .server
        .cli_ok(&["credential", "revoke", &fingerprint, "--code", "key-compromise"])
        .unwrap();
    drop(link);
    world.is_quiet();
    assert_eq!(world.metric("countersign_wills_published_total"), 0);
    assert_eq!(world.metric("countersign_wills_withheld_total"), 4);
    let told = world.server.cli_ok(&["explain", "d1"]).unwrap();
    assert!(told.contains("will.withheld"), "{told}");
    assert!(told.contains("credential.revoked"), "{told}");
}

#[test]
fn a_certificate_that_expires_takes_the_will_with_it() {
    let mut world = world();
    let brief = world.ca.issue_for_seconds("d1", 3);
    let body = json!({ "devices": [{ "id": "d1", "certificate": brief.pem }] });
    world
        .server
        .ask("POST", "/tenants/default/devices/import", Some(&body))
        .unwrap();
    let mut link = Attempt {
        patience: Duration::from_secs(10),
        ..Attempt::new(world.server.devices)
    }
    .identity(&brief)
    .send(connect_with_will(5, "d1", 0x06, TOPIC))
    .open()
    .unwrap();
    let packet = link.packet().unwrap();
    assert_eq!((packet[0], packet[2]), (0xe0, 0x87), "{packet:x?}");
    world.is_quiet();
    let told = world.server.cli_ok(&["explain", "d1"]).unwrap();
    assert!(
        told.contains("will.withheld") && told.contains("chain.expired"),
        "{told}"
    );
}

#[test]
fn in_the_quarantine_lane_a_will_is_for_diagnostics_or_withheld() {
    let mut world = world();
    world.move_to("quarantine");
    // Most clients have a will: it keeps none of them out of the lane.
    drop(world.open(5, 0x06, TOPIC));
    world.is_quiet();
    assert_eq!(world.metric("countersign_wills_withheld_total"), 1);
    drop(world.open(5, 0x06, "devices/d1/diagnostics/end"));
    world.comes(5, "devices/d1/diagnostics/end");
}
