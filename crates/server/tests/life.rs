//! Devices through their lifecycle as operators drive it: receipts, time boxes, many at once, the quarantine lane.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::Path;
use std::time::{Duration, Instant};

use countersign_testkit::client::{Attempt, Seen, connect, publish, subscribe};
use countersign_testkit::hold::Held;
use countersign_testkit::pki::{Ca, Identity, Leaf};
use countersign_testkit::server::Server;
use serde_json::{Value, json};

struct Place {
    folder: tempfile::TempDir,
    ca: Ca,
}

impl Place {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            ca: Ca::root("fleet", None),
        }
    }

    fn server(&self, config: &str) -> Server {
        let program = Path::new(env!("CARGO_BIN_EXE_countersign"));
        let server = Server::start(program, &self.folder.path().join("data"), config).unwrap();
        if server.ask("GET", "/authorities/fleet/dependents", None).is_err() {
            server
                .register(
                    "fleet",
                    "default",
                    &self.ca,
                    &json!({ "mode": "registered-only" }),
                )
                .unwrap();
        }
        server
    }

    fn add(&self, server: &Server, id: &str, model: &str, groups: &[&str]) -> Identity {
        let identity = self.ca.issue(&Leaf::named(id), &[]);
        let device = json!({ "id": id, "model": model, "groups": groups, "certificate": identity.pem });
        let report = server
            .ask(
                "POST",
                "/tenants/default/devices/import",
                Some(&json!({ "devices": [device] })),
            )
            .unwrap();
        assert_eq!(report["added"], 1, "{report}");
        identity
    }
}

fn state(server: &Server, id: &str) -> String {
    let shown = server
        .ask("GET", &format!("/tenants/default/devices/{id}"), None)
        .unwrap();
    shown["device"]["state"].as_str().unwrap().to_owned()
}

fn cli_json(server: &Server, arguments: &[&str]) -> (Option<i32>, Value) {
    let output = server.cli(&[&["--json"], arguments].concat()).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    (
        output.status.code(),
        serde_json::from_str(&text).unwrap_or_else(|_| json!({ "stderr": error })),
    )
}

#[test]
fn a_receipt_is_given_kept_and_found_again_after_a_restart() {
    let place = Place::new();
    let server = place.server("");
    let identity = place.add(&server, "d1", "pump", &[]);
    let mut session = Held::open(server.devices, &identity, "d1").unwrap();
    let (code, answer) = cli_json(
        &server,
        &["device", "suspend", "d1", "--reason", "lost in transit"],
    );
    assert_eq!(code, Some(0), "{answer}");
    session.closed().unwrap();
    let receipt = &answer["receipt"];
    assert_eq!(
        (
            &receipt["state"],
            &receipt["action"],
            &receipt["subject"],
            &receipt["reason"]
        ),
        (
            &json!("complete"),
            &json!("device.suspend"),
            &json!("d1"),
            &json!("lost in transit")
        ),
        "{receipt}"
    );
    assert!(
        receipt["actor"].as_str().unwrap().starts_with("cli:"),
        "{receipt}"
    );
    assert!(receipt["revision"].as_u64().unwrap() > 0, "{receipt}");
    let node = &receipt["nodes"][0];
    assert_eq!(
        (&node["node"], &node["confirmed"], &node["ended"], &node["kept"]),
        (&json!("node-1"), &json!(true), &json!(1), &json!(0)),
        "{receipt}"
    );
    assert!(node["worst_ms"].as_f64().unwrap() > 0.0, "{receipt}");
    let id = receipt["id"].as_str().unwrap();
    assert_eq!(
        server.ask("GET", &format!("/receipts/{id}"), None).unwrap(),
        *receipt
    );
    // Killed, not stopped: it was on disk before it was answered.
    let mut server = server;
    server.kill();
    let server = place.server("");
    assert_eq!(
        server.ask("GET", &format!("/receipts/{id}"), None).unwrap(),
        *receipt
    );
    let shown = server.cli_ok(&["receipt", "show", id]).unwrap();
    for word in [
        "complete",
        "device.suspend of d1",
        "lost in transit",
        "node-1: confirmed",
        "1 session(s) ended",
    ] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    assert!(server.cli_ok(&["receipt", "list"]).unwrap().contains(id));
    assert_eq!(
        server
            .cli(&["receipt", "show", "rc-0000000000000000"])
            .unwrap()
            .status
            .code(),
        Some(3)
    );
    let shown = server.cli_ok(&["device", "show", "d1"]).unwrap();
    assert!(
        shown.contains("suspended since") && shown.contains("lost in transit"),
        "{shown}"
    );
}

#[test]
fn without_a_server_the_receipt_says_that_no_node_was_live() {
    let place = Place::new();
    let server = place.server("");
    place.add(&server, "d1", "pump", &[]);
    let program = Path::new(env!("CARGO_BIN_EXE_countersign"));
    server.stop().unwrap();
    let run = |arguments: &[&str]| {
        std::process::Command::new(program)
            .arg("--data")
            .arg(place.folder.path().join("data"))
            .arg("--json")
            .args(arguments)
            .output()
            .unwrap()
    };
    let output = run(&["device", "suspend", "d1"]);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let receipt = &answer["receipt"];
    assert_eq!(
        (&receipt["state"], &receipt["nodes"]),
        (&json!("complete"), &json!([])),
        "{receipt}"
    );
    assert!(
        receipt["note"].as_str().unwrap().contains("no node was live"),
        "{receipt}"
    );
    // A bulk move in the command's own process is followed to its end, too.
    let output = run(&["device", "resume", "--model", "pump", "--reason", "found"]);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["receipt"]["state"], "complete", "{answer}");
    assert_eq!(
        answer["receipt"]["devices"],
        json!({ "selected": 1, "moved": 1, "refused": 0 })
    );
}

/// A client that takes nothing: its socket is full, and cannot be closed in order before the wait is over.
#[test]
fn a_node_that_is_not_done_is_named_with_the_time_when_it_will_be() {
    let place = Place::new();
    let server = place.server("[receipts]\nwait_s = 0\n[server]\nnode = \"edge-7\"\n");
    let identity = place.add(&server, "d1", "pump", &[]);
    let mut session = Held::open(server.devices, &identity, "d1").unwrap();
    let (code, answer) = cli_json(&server, &["device", "suspend", "d1"]);
    let receipt = &answer["receipt"];
    let node = &receipt["nodes"][0];
    // Without any wait it may be done or not; what it says must fit together, and the exit code with it.
    if node["confirmed"] == true {
        assert_eq!(
            (code, &receipt["state"]),
            (Some(0), &json!("complete")),
            "{receipt}"
        );
    } else {
        assert_eq!(
            (code, &receipt["state"]),
            (Some(6), &json!("partial")),
            "{receipt}"
        );
        assert_eq!(
            (&node["node"], &node["open"]),
            (&json!("edge-7"), &json!(1)),
            "{receipt}"
        );
        let late = node["over_by"].as_i64().unwrap() - receipt["at"].as_i64().unwrap();
        assert!((0..=3000).contains(&late), "{receipt}");
    }
    session.closed().unwrap();
}

#[test]
fn a_suspension_for_a_time_ends_by_itself_and_says_who_ended_it() {
    let place = Place::new();
    let server = place.server("");
    let identity = place.add(&server, "d1", "pump", &[]);
    let text = server
        .cli_ok(&[
            "device",
            "suspend",
            "d1",
            "--for",
            "2s",
            "--reason",
            "maintenance",
        ])
        .unwrap();
    assert!(text.contains("suspended until"), "{text}");
    let shown = server.cli_ok(&["device", "show", "d1"]).unwrap();
    assert!(shown.contains("the suspension ends by itself at"), "{shown}");
    assert!(Held::open(server.devices, &identity, "d1").is_err());
    // It goes on while nothing runs, and is over at the start.
    server.stop().unwrap();
    std::thread::sleep(Duration::from_millis(2100));
    let server = place.server("");
    Held::open(server.devices, &identity, "d1").unwrap();
    let shown = server.cli_ok(&["device", "show", "d1"]).unwrap();
    assert!(
        shown.contains("active since") && shown.contains("by countersign"),
        "{shown}"
    );
    // And while it runs.
    server
        .cli_ok(&["device", "suspend", "d1", "--for", "1s"])
        .unwrap();
    let started = Instant::now();
    while state(&server, "d1") != "active" {
        assert!(started.elapsed() < Duration::from_secs(10), "{}", server.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(started.elapsed() > Duration::from_millis(500));
    let entries = server.ask("GET", "/audit", None).unwrap();
    let ended = entries
        .as_array()
        .unwrap()
        .iter()
        .filter(|e| e["action"] == "device.suspension-ended");
    assert!(
        ended.clone().count() == 2 && ended.clone().all(|e| e["actor"] == "countersign"),
        "{entries}"
    );
    for wrong in [["--for", "2"], ["--until", "yesterday"]] {
        let output = server
            .cli(&[&["device", "suspend", "d1"], wrong.as_slice()].concat())
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
    }
    let output = server
        .cli(&["device", "suspend", "d1", "--until", "2020-01-01T00:00:00Z"])
        .unwrap();
    assert_eq!(output.status.code(), Some(4));
}

#[test]
fn many_are_moved_by_what_they_have_in_common_after_a_dry_run_under_one_receipt() {
    let place = Place::new();
    let server = place.server("");
    let devices: Vec<Value> = (0..450)
        .map(|n| {
            let model = if n % 3 == 0 { "valve" } else { "pump" };
            json!({ "id": format!("d{n:03}"), "model": model, "groups": ["eu"] })
        })
        .collect();
    server
        .ask(
            "POST",
            "/tenants/default/devices/import",
            Some(&json!({ "devices": devices })),
        )
        .unwrap();
    let identity = place.add(&server, "live", "pump", &["eu"]);
    let other = place.add(&server, "other", "pump", &["us"]);
    let mut session = Held::open(server.devices, &identity, "live").unwrap();
    let _stays = Held::open(server.devices, &other, "other").unwrap();
    server
        .cli_ok(&["device", "decommission", "d001", "--reason", "broken"])
        .unwrap();
    let eu_pumps = ["--group", "eu", "--model", "pump"];
    let with = |what: &[&str], more: &[&str]| cli_json(&server, &[what, &eu_pumps, more].concat());

    let (code, plan) = with(&["device", "suspend"], &["--dry-run"]);
    assert_eq!(code, Some(0), "{plan}");
    assert_eq!(
        (&plan["selected"], &plan["moves"], &plan["refused"]),
        (&json!(301), &json!(300), &json!(1)),
        "{plan}"
    );
    assert_eq!(plan["devices"].as_array().unwrap().len(), 301);
    assert_eq!(state(&server, "d002"), "active");
    // Who, why: both must be said.
    let output = server.cli(&["device", "suspend", "--model", "pump"]).unwrap();
    assert_eq!(
        output.status.code(),
        Some(4),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(
        server
            .cli(&["device", "suspend", "--reason", "x"])
            .unwrap()
            .status
            .code(),
        Some(2)
    );

    let key = ["--reason", "recall 7", "--idempotency-key", "recall-7"];
    let (code, answer) = with(&["device", "suspend"], &key);
    assert_eq!(code, Some(0), "{answer}");
    let receipt = &answer["receipt"];
    assert_eq!(
        receipt["devices"],
        json!({ "selected": 301, "moved": 300, "refused": 1 }),
        "{receipt}"
    );
    assert_eq!(receipt["nodes"][0]["ended"], 1, "{receipt}");
    assert_eq!(receipt["subject"], "group eu, model pump");
    session.closed().unwrap();
    assert_eq!(state(&server, "d002"), "suspended");
    assert_eq!(state(&server, "d003"), "active");
    assert_eq!(state(&server, "other"), "active");
    let sessions = server.ask("GET", "/sessions", None).unwrap();
    assert_eq!(sessions.as_array().unwrap().len(), 1, "{sessions}");
    // Asked again it is the same; for something else the key is taken.
    let (code, again) = with(&["device", "suspend"], &key);
    assert_eq!(
        (code, &again["receipt"]["id"]),
        (Some(0), &receipt["id"]),
        "{again}"
    );
    let (code, other) = with(&["device", "resume"], &key);
    assert_eq!(code, Some(4), "{other}");
    let (code, answer) = with(
        &["device", "resume"],
        &["--state", "suspended", "--reason", "fixed"],
    );
    assert_eq!(code, Some(0), "{answer}");
    assert_eq!(answer["receipt"]["devices"]["moved"], 300, "{answer}");
    assert_eq!(state(&server, "d002"), "active");
}

/// What the database says no to, as a full disk does, while this is there.
fn fault(place: &Place, sql: &str) {
    let db = rusqlite::Connection::open(place.folder.path().join("data/registry.db")).unwrap();
    db.busy_timeout(Duration::from_secs(10)).unwrap();
    db.execute_batch(sql).unwrap();
}

#[test]
fn a_bulk_move_that_is_cut_in_mid_way_is_partial_and_goes_on_when_it_is_asked_for_again() {
    let place = Place::new();
    let server = place.server("");
    let devices: Vec<Value> = (0..450)
        .map(|n| json!({ "id": format!("d{n:03}"), "model": "pump" }))
        .collect();
    let import = json!({ "devices": devices });
    server
        .ask("POST", "/tenants/default/devices/import", Some(&import))
        .unwrap();
    let identity = place.add(&server, "a-live", "pump", &[]);
    let mut session = Held::open(server.devices, &identity, "a-live").unwrap();
    for gone in ["d001", "d449"] {
        server
            .cli_ok(&["device", "decommission", gone, "--reason", "broken"])
            .unwrap();
    }
    fault(
        &place,
        "CREATE TRIGGER fault BEFORE UPDATE ON devices WHEN NEW.id = 'd300' BEGIN SELECT RAISE(ABORT, 'fault'); END",
    );
    let suspend = [
        "device",
        "suspend",
        "--model",
        "pump",
        "--reason",
        "recall",
        "--idempotency-key",
        "recall-8",
    ];
    let (code, answer) = cli_json(&server, &suspend);
    let receipt = &answer["receipt"];
    assert_eq!(
        (code, &receipt["state"]),
        (Some(6), &json!("partial")),
        "{answer}"
    );
    // The first chunk stands; what was not come to was neither moved nor refused.
    assert_eq!(
        receipt["devices"],
        json!({ "selected": 451, "moved": 199, "refused": 1 }),
        "{receipt}"
    );
    assert_eq!(receipt["nodes"][0]["ended"], 1, "{receipt}");
    let note = receipt["note"].as_str().unwrap();
    assert!(
        note.contains("cut short") && note.contains("ask for the same again"),
        "{note}"
    );
    session.closed().unwrap();
    let id = receipt["id"].as_str().unwrap();
    let shown = server.cli(&["receipt", "show", id]).unwrap();
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(
        shown.status.code() == Some(6) && text.contains("cut short"),
        "{text}"
    );
    assert_eq!(state(&server, "d300"), "active");

    fault(&place, "DROP TRIGGER fault");
    let (code, answer) = cli_json(&server, &suspend);
    let receipt = &answer["receipt"];
    assert_eq!(
        (code, &receipt["state"], &receipt["id"]),
        (Some(0), &json!("complete"), &json!(id)),
        "{answer}"
    );
    assert_eq!(
        receipt["devices"],
        json!({ "selected": 451, "moved": 449, "refused": 2 }),
        "{receipt}"
    );
    // The session of the first part is still told.
    assert_eq!(receipt["nodes"][0]["ended"], 1, "{receipt}");
    assert_eq!(state(&server, "d300"), "suspended");
}

#[test]
fn the_last_word_of_a_receipt_is_tried_again_and_the_command_that_follows_it_ends() {
    let place = Place::new();
    let server = place.server("");
    place.add(&server, "d1", "pump", &[]);
    fault(
        &place,
        "CREATE TRIGGER fault BEFORE UPDATE ON receipts WHEN NEW.state <> 'running' BEGIN SELECT RAISE(ABORT, 'fault'); END",
    );
    std::thread::scope(|scope| {
        let following = scope.spawn(|| {
            cli_json(
                &server,
                &["device", "suspend", "--model", "pump", "--reason", "recall"],
            )
        });
        std::thread::sleep(Duration::from_millis(1500));
        assert!(!following.is_finished());
        fault(&place, "DROP TRIGGER fault");
        let (code, answer) = following.join().unwrap();
        assert_eq!(
            (code, &answer["receipt"]["state"]),
            (Some(0), &json!("complete")),
            "{answer}"
        );
    });
}

#[test]
fn a_bulk_move_says_what_it_cannot_find_and_that_it_found_nothing() {
    let place = Place::new();
    let server = place.server("");
    place.add(&server, "d1", "pump", &[]);
    let suspend = |more: &[&str]| {
        let output = server
            .cli(&[&["device", "suspend", "--reason", "x"], more].concat())
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    };
    for (more, word) in [
        (["--batch", "B-9", "--model", "pump"], "B-9"),
        (["--authority", "nobody", "--model", "pump"], "nobody"),
        (["--tenant", "nowhere", "--model", "pump"], "nowhere"),
    ] {
        for dry_run in [&[][..], &["--dry-run"]] {
            let (code, text) = suspend(&[&more, dry_run].concat());
            assert!(
                code == Some(3) && text.contains(word),
                "{more:?}: {code:?} {text}"
            );
        }
    }
    // A recall by a misspelt name is not done.
    for (more, subject) in [
        (&["--model", "valve"][..], "model valve"),
        (&["--group", "pumpz", "--dry-run"], "group pumpz"),
        (
            &["--model", "pump", "--state", "pending"],
            "model pump, state pending",
        ),
    ] {
        let (code, text) = suspend(more);
        assert_eq!(code, Some(3), "{text}");
        for part in [subject, "nothing was moved", "hint: countersign device list"] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
    }
    let said = server.cli_ok(&["session", "disconnect", "d1"]).unwrap();
    assert!(said.contains("device d1 had no session"), "{said}");
    let (code, answer) = cli_json(&server, &["session", "disconnect", "d1"]);
    assert_eq!(
        (code, &answer["sessions"]["ended"]),
        (Some(0), &json!(0)),
        "{answer}"
    );
    let key = "k".repeat(129);
    for key in ["", "clé", &key] {
        let (code, text) = suspend(&["--model", "pump", "--idempotency-key", key]);
        assert!(
            code == Some(4) && text.contains("idempotency key"),
            "{key:?}: {text}"
        );
    }
    assert_eq!(state(&server, "d1"), "active");
}

const LANE: &str = r#"
permit (principal, action, resource);
@id("fix-them") @quarantine("open") permit (principal, action == Action::"connect", resource);
"#;

/// What came after CONNACK, as first byte and reason code.
fn answers(seen: &Seen) -> Vec<(u8, u8)> {
    seen.packets()
        .iter()
        .skip(1)
        .map(|p| match p[0] {
            // PUBACK without a reason code: success. SUBACK: its first code is its last byte.
            0x40 => (p[0], if p.len() > 4 { p[4] } else { 0 }),
            _ => (p[0], *p.last().unwrap()),
        })
        .collect()
}

#[test]
fn a_quarantined_device_has_the_lane_if_a_policy_opens_it_and_nothing_else() {
    let place = Place::new();
    let server = place.server("");
    let identity = place.add(&server, "q", "pump", &[]);
    let try_all = || {
        let mut send = connect(5, "q");
        for topic in [
            "devices/q/diagnostics/log",
            "devices/q/telemetry/t",
            "devices/q/firmware/ack",
        ] {
            send.extend(publish(5, topic, 1, 0));
        }
        for filter in [
            "devices/q/firmware/#",
            "devices/q/commands/#",
            "devices/q/diagnostics/#",
            "#",
        ] {
            send.extend(subscribe(5, filter));
        }
        send.extend([0xe0, 0]);
        Attempt::new(server.devices).identity(&identity).send(send).run()
    };
    let quarantine = ["device", "quarantine", "q"];
    let output = server.cli(&quarantine).unwrap();
    assert_eq!(output.status.code(), Some(4), "without a reason");
    let mut session = Held::open(server.devices, &identity, "q").unwrap();
    let (_, answer) = cli_json(&server, &[&quarantine[..], &["--reason", "odd traffic"]].concat());
    // Also where the lane is open later: what was opened outside it ends.
    assert_eq!(answer["receipt"]["nodes"][0]["ended"], 1, "{answer}");
    session.closed().unwrap();
    assert_eq!(try_all().connack(), Some(0x87), "no policy opens the lane");
    let open = json!({ "policies": LANE });
    server.ask("PATCH", "/tenants/default", Some(&open)).unwrap();
    let seen = try_all();
    assert_eq!(seen.connack(), Some(0), "{seen:?}");
    assert_eq!(
        answers(&seen),
        [
            (0x40, 0),
            (0x40, 0x87),
            (0x40, 0x87),
            (0x90, 0),
            (0x90, 0x87),
            (0x90, 0x87),
            (0x90, 0x87)
        ],
        "{seen:?}"
    );
    // Over HTTPS there is no lane.
    let over_http = Attempt {
        alpn: vec![b"http/1.1".to_vec()],
        ..Attempt::new(server.devices)
    }
    .identity(&identity)
    .send("GET /.well-known/est/csrattrs HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let text = String::from_utf8_lossy(&over_http.run().data).into_owned();
    assert!(
        text.starts_with("HTTP/1.1 403") && text.contains("device.quarantined"),
        "{text}"
    );
    // Released, its session goes on, with all that an active device has.
    let mut lane = Held::open(server.devices, &identity, "q").unwrap();
    let release = [
        "device",
        "release",
        "q",
        "--reason",
        "clean",
        "--after-evidence",
        "scan 4711",
    ];
    let (code, answer) = cli_json(&server, &release);
    assert_eq!(code, Some(0), "{answer}");
    assert_eq!(
        (&answer["state"], &answer["receipt"]["nodes"][0]["kept"]),
        (&json!("active"), &json!(1)),
        "{answer}"
    );
    let entries = server.ask("GET", "/audit", None).unwrap();
    let released = entries
        .as_array()
        .unwrap()
        .iter()
        .find(|e| e["action"] == "device.release")
        .unwrap();
    assert!(
        released["detail"].as_str().unwrap().contains("scan 4711"),
        "{released}"
    );
    server.cli_ok(&["session", "disconnect", "q"]).unwrap();
    lane.closed().unwrap();
    // A lane that closes takes its session along.
    server
        .cli_ok(&["device", "quarantine", "q", "--reason", "again", "--for", "1h"])
        .unwrap();
    let mut lane = Held::open(server.devices, &identity, "q").unwrap();
    let closed = json!({ "policies": "permit (principal, action, resource);", "reason": "test", "accept_lock_out": true });
    let answer = server.ask("PATCH", "/tenants/default", Some(&closed)).unwrap();
    assert_eq!(answer["receipt"]["nodes"][0]["ended"], 1, "{answer}");
    lane.closed().unwrap();
}

#[test]
fn a_subscription_lives_as_long_as_its_own_quality_of_service_is_permitted() {
    let place = Place::new();
    let server = place.server("");
    let rules = |condition: &str| {
        let policies = format!(
            "permit (principal, action, resource) when {{ principal.state == \"active\" }};\n\
             forbid (principal, action == Action::\"subscribe\", resource) when {{ {condition} }};"
        );
        let body = json!({ "policies": policies });
        server.ask("PATCH", "/tenants/default", Some(&body)).unwrap()["receipt"]["nodes"][0].clone()
    };
    let mut links = Vec::new();
    for (id, qos) in [("d1", 1), ("d2", 0)] {
        let identity = place.add(&server, id, "m", &[]);
        let mut link = Attempt::new(server.devices)
            .identity(&identity)
            .send(connect(5, id))
            .open()
            .unwrap();
        let mut packet = subscribe(5, &format!("devices/{id}/commands/#"));
        *packet.last_mut().unwrap() = qos;
        link.send(&packet).unwrap();
        assert_eq!(link.packet().unwrap()[0], 0x90);
        links.push(link);
    }
    // Nothing of QoS 1 any more: who asked for it goes, who did not stays.
    let told = rules("context.qos >= 1");
    assert_eq!((&told["ended"], &told["kept"]), (&json!(1), &json!(1)), "{told}");
    let packet = links[0].packet().unwrap();
    assert_eq!((packet[0], packet[2]), (0xe0, 0x87), "{packet:x?}");
    links[1].send(&[0xc0, 0]).unwrap();
    assert_eq!(links[1].packet().unwrap(), [0xd0, 0]);
}

/// Another changes the device in the same commit, and takes nothing from the receipt of who suspended it.
#[test]
fn another_change_of_the_device_in_the_same_commit_takes_nothing_from_a_receipt() {
    use std::sync::atomic::{AtomicBool, Ordering};
    const TRIES: usize = 25;
    let place = Place::new();
    let server = place.server("");
    let stop = AtomicBool::new(false);
    let told: Vec<Option<Value>> = std::thread::scope(|scope| {
        // Others write all the time, so that changes wait for each other and are committed together.
        for n in 0..3 {
            let (server, stop) = (&server, &stop);
            scope.spawn(move || {
                for k in 0..100_000 {
                    let body = json!({ "id": format!("other-{n}-{k}") });
                    let added = server.ask("POST", "/tenants/default/devices", Some(&body));
                    if added.is_err() || stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        let told = (0..TRIES).map(|n| {
            let id = format!("d{n}");
            let identity = place.add(&server, &id, "pump", &[]);
            let mut session = Held::open(server.devices, &identity, &id).ok()?;
            let path = |what: &str| format!("/tenants/default/devices/{id}/{what}");
            let suspend = json!({ "move": "suspend", "reason": "lost" });
            let suspended = std::thread::scope(|scope| {
                let first = scope.spawn(|| server.ask("POST", &path("moves"), Some(&suspend)));
                let _ = server.ask("PUT", &path("authority"), Some(&json!({ "authority": "fleet" })));
                first.join()
            });
            let suspended = suspended.ok()?.ok()?;
            session.closed().ok()?;
            Some(suspended["receipt"]["nodes"][0]["ended"].clone())
        });
        let told = told.collect();
        stop.store(true, Ordering::Relaxed);
        told
    });
    assert_eq!(told, vec![Some(json!(1)); TRIES]);
}
