//! What the ledger says that a device did is what it did; and a flood of strangers does not change it.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use countersign_registry::LedgerLimits;
use countersign_testkit::client::{Attempt, connect, publish, subscribe};
use countersign_testkit::ledger::flood;
use countersign_testkit::pki::Identity;
use countersign_testkit::server::Server;
use serde_json::{Value, json};

const DEVICE: &str = "pump-1";
const DISCONNECT: [u8; 2] = [0xe0, 0];
/// What `publish` sends.
const PAYLOAD: u64 = 5;

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

/// Messages by topic.
type Log = BTreeMap<String, u64>;

struct World {
    folder: tempfile::TempDir,
    server: Server,
    device: Identity,
    published: Log,
    received: Log,
}

impl World {
    fn new(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = start(folder.path(), config);
        let out = folder.path().join("device");
        server
            .cli_ok(&["device", "provision", DEVICE, "--out", &out.display().to_string()])
            .unwrap();
        Self {
            device: Identity::load(&out).unwrap(),
            folder,
            server,
            published: Log::new(),
            received: Log::new(),
        }
    }

    fn attempt(&self, patience: u64) -> Attempt {
        Attempt {
            patience: Duration::from_millis(patience),
            ..Attempt::new(self.server.devices)
        }
        .identity(&self.device)
    }

    /// A session that publishes; what is below `firmware` it gets back if it `listens`.
    fn session(&mut self, level: u8, messages: &[(&str, u64)], listens: bool) {
        let mut then = Vec::new();
        if listens {
            then.extend(subscribe(level, &format!("devices/{DEVICE}/firmware/#")));
        }
        for (name, count) in messages {
            let topic = format!("devices/{DEVICE}/{name}");
            for n in 0..*count {
                then.extend(publish(level, &topic, u8::from(n % 2 == 0), 0));
            }
            *self.published.entry(topic.clone()).or_default() += count;
            if listens && name.starts_with("firmware") {
                *self.received.entry(topic).or_default() += count;
            }
        }
        // Who says goodbye at once is not sent what waits for it.
        if !listens {
            then.extend(DISCONNECT);
        }
        let attempt = Attempt {
            then,
            ..self.attempt(1_500)
        };
        let seen = attempt.send(connect(level, DEVICE)).run();
        assert_eq!(seen.connack(), Some(0), "{seen:?}\n{}", self.server.log());
    }

    /// A request of the device on a connection of its own.
    fn post(&self, path: &str, body: &str, answer: &[u8]) {
        let https = Attempt {
            alpn: vec![b"http/1.1".to_vec()],
            ..self.attempt(5_000)
        };
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\
             Content-Type: application/x-www-form-urlencoded\r\n\r\n{body}",
            body.len()
        );
        let seen = https.send(request).run();
        assert!(seen.data.starts_with(answer), "{seen:?}");
    }

    /// The tokens among the sessions of the last minute, by what `exposure` says of them.
    fn tokens(&self, from: i64) -> Vec<Value> {
        let told = self.exposure(from, now());
        let mut all = told["sessions"].as_array().unwrap().clone();
        all.retain(|s| s["kind"] == "token");
        all
    }

    fn exposure(&self, from: i64, to: i64) -> Value {
        let path = format!("/tenants/default/devices/{DEVICE}/exposure?from={from}&to={to}");
        self.server.ask("GET", &path, None).unwrap()
    }
}

fn start(folder: &Path, config: &str) -> Server {
    Server::start(
        Path::new(env!("CARGO_BIN_EXE_countersign")),
        &folder.join("data"),
        config,
    )
    .unwrap()
}

fn log(topics: &Value) -> Log {
    let all = topics.as_array().unwrap().iter();
    all.map(|t| {
        let messages = t["messages"].as_u64().unwrap();
        assert_eq!(t["bytes"].as_u64().unwrap(), messages * PAYLOAD, "{t}");
        (t["topic"].as_str().unwrap().to_owned(), messages)
    })
    .collect()
}

fn of<'a>(list: &'a Value, field: &str) -> Vec<&'a str> {
    let all = list.as_array().unwrap().iter();
    all.map(|v| v.pointer(field).and_then(Value::as_str).unwrap_or("-"))
        .collect()
}

#[test]
fn the_window_is_what_the_device_did() {
    let mut world = World::new("");
    let before = now();
    world.session(4, &[("telemetry/a", 3), ("status", 2)], false);
    world.session(5, &[("telemetry/a", 4), ("firmware/x", 5)], true);
    world.session(4, &[("firmware/x", 1), ("firmware/y", 2)], true);
    // One message over HTTPS: "hello" has as many bytes as those over MQTT.
    let topic = format!("devices/{DEVICE}/status");
    world.post(&format!("/v1/publish/{topic}"), "hello", b"HTTP/1.1 204");
    *world.published.entry(topic).or_default() += 1;
    world.server.cli_ok(&["device", "suspend", DEVICE]).unwrap();
    let refused = world.attempt(5_000).send(connect(5, DEVICE)).run();
    assert_eq!(refused.connack(), Some(0x87));
    world.server.cli_ok(&["device", "resume", DEVICE]).unwrap();
    let after = now();

    let told = world.exposure(before, after);
    assert_eq!(log(&told["published"]), world.published);
    assert_eq!(log(&told["received"]), world.received);
    assert_eq!(
        of(&told["sessions"], "/protocol"),
        ["mqtt-3.1.1", "mqtt-5", "mqtt-3.1.1", "http/1.1"]
    );
    let ends = of(&told["sessions"], "/end");
    assert_eq!(ends[0], "client-disconnect");
    assert!(!ends.contains(&"-"), "{ends:?}");
    for session in told["sessions"].as_array().unwrap() {
        let (started, ended) = (
            session["started"].as_i64().unwrap(),
            session["ended"].as_i64().unwrap(),
        );
        assert!(
            before <= started && started <= ended && ended <= now(),
            "{session}"
        );
        assert_eq!(session["live"], false);
    }
    for topic in told["published"].as_array().unwrap() {
        let (first, last) = (topic["first"].as_i64().unwrap(), topic["last"].as_i64().unwrap());
        assert!(before <= first && first <= last && last <= after, "{topic}");
        assert_eq!(topic["within"], true);
    }
    assert_eq!(
        of(&told["exchanges"], "/outcome"),
        ["admitted", "admitted", "admitted", "admitted", "refused"]
    );
    assert_eq!(of(&told["exchanges"], "/denial/code")[4], "device.suspended");
    assert_eq!(told["gaps"], json!([]));
    // Before and after it there is nothing.
    for (from, to) in [(before - 60_000, before - 1), (after + 60_000, after + 120_000)] {
        let empty = world.exposure(from, to);
        for list in ["sessions", "published", "received", "exchanges"] {
            assert_eq!(empty[list], json!([]), "{list}");
        }
    }
    // In words, and by cause.
    let words = world
        .server
        .cli_ok(&["exposure", DEVICE, "--from", "1h"])
        .unwrap();
    for part in [
        "sessions: 4",
        "devices/pump-1/telemetry/a: 7 message(s), 35 byte(s)",
        "device.suspended",
    ] {
        assert!(words.contains(part), "{part}: {words}");
    }
    let causes = world.server.cli_ok(&["rejections"]).unwrap();
    for part in ["device.suspended", "1 of them of known devices", "cure: "] {
        assert!(causes.contains(part), "{part}: {causes}");
    }
    let found = world
        .server
        .cli_ok(&[
            "rejections",
            "search",
            "--device",
            DEVICE,
            "--source",
            "127.0.0.0/8",
        ])
        .unwrap();
    assert!(found.contains("device.suspended"), "{found}");
}

#[test]
fn a_token_is_a_session_of_its_own() {
    let mut world = World::new("");
    let before = now();
    let form = format!("grant_type=client_credentials&client_id={DEVICE}");
    world.post("/oauth2/token", &form, b"HTTP/1.1 200");
    let live = world.tokens(before);
    assert_eq!(live.len(), 1, "{live:?}");
    assert_eq!(live[0]["live"], true);
    assert_eq!(live[0]["protocol"], "oauth2");
    assert_eq!(live[0]["name"].as_str().unwrap().len(), 32);
    world.server.cli_ok(&["device", "suspend", DEVICE]).unwrap();
    let began = std::time::Instant::now();
    let ended = loop {
        let found = world.tokens(before);
        if found.iter().all(|t| t["ended"].is_i64()) {
            break found;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{found:?}");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(ended.len(), 1, "{ended:?}");
    assert_eq!(ended[0]["name"], live[0]["name"]);
    assert_eq!(ended[0]["end"], "device-changed");
    assert_eq!(ended[0]["live"], false);
    // One that a killed server took with it is known all the same.
    world.server.cli_ok(&["device", "resume", DEVICE]).unwrap();
    world.post("/oauth2/token", &form, b"HTTP/1.1 200");
    assert_eq!(world.tokens(before).len(), 2);
    world.server.kill();
    world.server = start(world.folder.path(), "");
    let found = world.tokens(before);
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(
        found.iter().filter(|t| t["ended"].is_null()).count(),
        1,
        "{found:?}"
    );
}

#[test]
fn a_killed_server_costs_no_more_than_an_interval() {
    let mut world = World::new("[limits]\nsession_report_interval_s = 1\nsession_topics_max = 2\n");
    let before = now();
    let mut then = Vec::new();
    for topic in [
        "telemetry/a",
        "telemetry/b",
        "telemetry/c",
        "telemetry/d",
        "telemetry/a",
    ] {
        then.extend(publish(5, &format!("devices/{DEVICE}/{topic}"), 1, 0));
    }
    let attempt = Attempt {
        then,
        ..world.attempt(30_000)
    }
    .send(connect(5, DEVICE));
    let client = std::thread::spawn(move || attempt.run());
    let expected = Log::from([
        (String::new(), 2),
        (format!("devices/{DEVICE}/telemetry/a"), 2),
        (format!("devices/{DEVICE}/telemetry/b"), 1),
    ]);
    // While it is live nothing has to be waited for.
    let began = std::time::Instant::now();
    loop {
        let told = world.exposure(before, now());
        if log(&told["published"]) == expected {
            assert_eq!(told["sessions"][0]["live"], true);
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{told}");
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_secs(3));
    world.server.kill();
    client.join().unwrap();
    world.server = start(world.folder.path(), "");
    let told = world.exposure(before, now());
    assert_eq!(log(&told["published"]), expected);
    assert_eq!(told["sessions"][0]["ended"], Value::Null);
    assert_eq!(told["sessions"][0]["live"], false);
    assert!(
        told["gaps"][0].as_str().unwrap().contains("without a word"),
        "{told}"
    );
}

/// What is refused beyond what is kept of a session is a gap of known size, over both protocols.
#[test]
fn refusals_beyond_those_that_are_kept_are_a_gap() {
    let world = World::new("");
    let before = now();
    let mut then = Vec::new();
    for _ in 0..20 {
        then.extend(publish(5, "devices/other/telemetry", 1, 0));
    }
    then.extend(DISCONNECT);
    let attempt = Attempt {
        then,
        ..world.attempt(1_500)
    };
    let seen = attempt.send(connect(5, DEVICE)).run();
    assert_eq!(seen.packets().len(), 21, "{seen:?}");
    let https = Attempt {
        alpn: vec![b"http/1.1".to_vec()],
        ..world.attempt(5_000)
    };
    let one =
        "POST /v1/publish/devices/other/telemetry HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";
    https.send(one.repeat(10)).run();
    let began = std::time::Instant::now();
    loop {
        let told = world.exposure(before, now());
        let exchanges = told["exchanges"].as_array().unwrap().iter();
        let listed = exchanges
            .filter(|e| e["denial"]["code"] == "topic.forbidden")
            .count();
        let gap = told["gaps"][0].as_str().unwrap_or_default();
        if listed == 16 && gap.starts_with("14 refusals within sessions") {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{told}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// That something is not there is known after a restart too.
#[test]
fn refusals_that_were_only_counted_are_a_gap_after_a_restart_too() {
    const CONFIG: &str =
        "[ledger]\nrefused_per_source_minute_max = 5\n[limits]\ndevice_connects_per_minute = 1000\n";
    let mut world = World::new(CONFIG);
    let before = now();
    let suspend = ["device", "suspend", DEVICE, "--reason", "test"];
    world.server.cli_ok(&suspend).unwrap();
    for _ in 0..20 {
        let seen = world.attempt(1_500).send(connect(5, DEVICE)).run();
        assert_eq!(seen.connack(), Some(0x87), "{seen:?}");
    }
    let after = now();
    let gaps = |world: &World| world.exposure(before, after)["gaps"].clone();
    let told = gaps(&world);
    let first = told[0].as_str().unwrap_or_default();
    assert!(
        first.contains("refusals between") && first.contains("only counted"),
        "{told}"
    );
    // What was counted last is on its way for a tenth of a second.
    std::thread::sleep(Duration::from_millis(500));
    world.server.kill();
    world.server = start(world.folder.path(), CONFIG);
    assert_eq!(gaps(&world), told);
    assert_eq!(world.exposure(0, before - 60_000)["gaps"], json!([]));
}

/// A hundredth of `cargo xtask ledger`, in the same proportions.
#[test]
fn a_flood_of_strangers_stays_within_the_disk_limit_and_a_known_device_keeps_its_history() {
    let folder = tempfile::tempdir().unwrap();
    let limits = LedgerLimits {
        unproven_rows_max: 1_000,
        unproven_bytes_max: (128 << 20) / 100,
        subjects_per_code_max: 20,
        ..LedgerLimits::default()
    };
    let flood = flood(folder.path(), 10_000, 1_000, limits).unwrap();
    assert!(flood.history_kept, "{flood:?}");
    assert_eq!((flood.written, flood.left_out), (10_002, 0), "{flood:?}");
    assert_eq!(
        flood.in_causes, 10_001,
        "what is evicted stays counted: {flood:?}"
    );
    assert!(flood.causes <= 22 && flood.strangers <= 1_000, "{flood:?}");
    // The rows' own limit; one batch, which is written before the oldest go; a little for tables that are nearly empty.
    // All 10,000 would take 19 MB.
    let batch = 2_000 * 1_900;
    assert!(
        flood.bytes <= limits.unproven_bytes_max + batch + (512 << 10),
        "{flood:?}"
    );
}
