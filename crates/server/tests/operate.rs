//! The platform as its operators meet it: commands, files, signals, and what is printed when something is wrong.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use countersign_testkit::client::{Attempt, connect, publish};
use countersign_testkit::pki::Identity;
use countersign_testkit::server::{Server, http};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_countersign"))
}

fn run(arguments: &[&str]) -> Output {
    Command::new(program()).args(arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The identity that `device provision` wrote.
fn identity(folder: &Path) -> Identity {
    let pem = std::fs::read_to_string(folder.join("device.crt")).unwrap();
    let key_pem = std::fs::read_to_string(folder.join("device.key")).unwrap();
    let chain = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .unwrap();
    Identity {
        chain,
        key: PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).unwrap(),
        pem,
        key_pem,
    }
}

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn server(&self) -> Server {
        Server::start(program(), &self.path("data"), "").unwrap()
    }
}

/// Provisions a device and opens a session that stays until the server ends it.
fn live(
    server: &Server,
    place: &Place,
    id: &str,
    level: u8,
) -> std::thread::JoinHandle<countersign_testkit::client::Seen> {
    let folder = place.text(id);
    server
        .cli_ok(&["device", "provision", id, "--out", &folder])
        .unwrap();
    let attempt = Attempt {
        patience: Duration::from_secs(20),
        ..Attempt::new(server.devices)
    }
    .identity(&identity(Path::new(&folder)))
    .send(connect(level, id));
    let before = server
        .ask("GET", "/sessions", None)
        .unwrap()
        .as_array()
        .unwrap()
        .len();
    let thread = std::thread::spawn(move || attempt.run());
    let started = Instant::now();
    while server
        .ask("GET", "/sessions", None)
        .unwrap()
        .as_array()
        .unwrap()
        .len()
        == before
    {
        assert!(started.elapsed() < Duration::from_secs(10), "{}", server.log());
    }
    thread
}

#[test]
fn quickstart_lets_one_in_and_turns_three_away_each_with_its_reason() {
    let output = run(&["quickstart", "--once"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    for part in [
        "admitted",
        "first-data",
        "refused: device.suspended",
        "refused: chain.unknown-ca",
        "alert 48 unknown_ca",
        "refused: chain.expired",
        "alert 45 certificate_expired",
        "cure:",
        "Without --once",
    ] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    let place = text
        .lines()
        .find_map(|l| l.strip_prefix("data directory (thrown away at the end): "))
        .unwrap();
    assert!(!Path::new(place).exists(), "{place} is still there");
    // What is gone is nobody's turn.
    for part in ["Your turn", "mosquitto_pub", "device suspend"] {
        assert!(!text.contains(part), "{part:?} is in:\n{text}");
    }
    // It goes on when nobody reads any more. (Here, since two at once would want the same ports.)
    let mut child = Command::new(program())
        .args(["quickstart", "--once"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut first)
        .unwrap();
    assert!(first.contains("open for devices"), "{first}");
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn an_empty_data_directory_serves_within_two_seconds_and_stops_cleanly() {
    let place = Place::new();
    let started = Instant::now();
    let server = place.server();
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "{:?} in a debug build",
        started.elapsed()
    );
    let session = live(&server, &place, "d1", 5);
    let (status, ready) = http(server.admin, "GET", "/health/ready", None, None).unwrap();
    assert_eq!((status, ready.as_str()), (200, r#"{"status":"ready"}"#));
    let (exit, took) = server.stop().unwrap();
    assert!(
        exit.success() && took < Duration::from_secs(6),
        "{exit} after {took:?}"
    );
    let seen = session.join().unwrap();
    // DISCONNECT with "server shutting down".
    let packets = seen.packets();
    assert_eq!(packets[1][..3], [0xe0, packets[1][1], 0x8b], "{seen:?}");
    assert!(!place.path("data/admin.addr").exists());
}

#[test]
fn suspending_ends_live_sessions_and_says_how_many_and_how_fast() {
    let place = Place::new();
    let server = place.server();
    for (level, id) in [(4, "d4"), (5, "d5")] {
        let session = live(&server, &place, id, level);
        let answer: Value = serde_json::from_str(
            &server
                .cli_ok(&["--json", "device", "suspend", id, "--reason", "lost"])
                .unwrap(),
        )
        .unwrap();
        assert_eq!(answer["state"], "suspended");
        assert_eq!(
            (&answer["sessions"]["ended"], &answer["sessions"]["open"]),
            (&json!(1), &json!(0)),
            "{answer}"
        );
        let took = answer["sessions"]["took_ms"].as_f64().unwrap();
        assert!(took > 0.0 && took < 1000.0, "{took} ms");
        let seen = session.join().unwrap();
        match level {
            // 3.1.1 has no word for it: the connection is closed after CONNACK.
            4 => assert_eq!(seen.packets().len(), 1, "{seen:?}"),
            _ => assert_eq!(seen.packets()[1][2], 0x98, "{seen:?}"),
        }
        let again = server.cli(&["device", "suspend", id]).unwrap();
        assert_eq!(again.status.code(), Some(4), "{}", stderr(&again));
        let text = server.cli_ok(&["device", "resume", id]).unwrap();
        assert!(text.contains("is active"), "{text}");
    }
    let session = live(&server, &place, "d6", 5);
    let text = server.cli_ok(&["session", "disconnect", "d6"]).unwrap();
    assert!(text.contains("1 session(s) ended"), "{text}");
    assert_eq!(session.join().unwrap().packets()[1][2], 0x98);
    let session = live(&server, &place, "d7", 5);
    let shown = server.ask("GET", "/tenants/default/devices/d7", None).unwrap();
    let fingerprint = shown["credentials"][0]["fingerprint"].as_str().unwrap();
    let text = server.cli_ok(&["credential", "revoke", fingerprint]).unwrap();
    assert!(text.contains("1 session(s) ended"), "{text}");
    assert_eq!(session.join().unwrap().packets()[1][2], 0x98);
}

#[test]
fn a_policy_change_decides_live_sessions_anew() {
    let place = Place::new();
    let server = place.server();
    let session = live(&server, &place, "d1", 5);
    std::fs::write(place.path("none.cedar"), "").unwrap();
    let text = server
        .cli_ok(&["tenant", "set", "default", "--client-id-mode", "prefix"])
        .unwrap();
    assert!(text.contains("1 session(s) decided anew and kept"), "{text}");
    let text = server
        .cli_ok(&[
            "policy",
            "set",
            &place.text("none.cedar"),
            "--reason",
            "closed for the night",
            "--accept-lock-out",
        ])
        .unwrap();
    assert!(text.contains("1 session(s) ended"), "{text}");
    assert_eq!(session.join().unwrap().packets()[1][2], 0x87);
}

#[test]
fn explain_draws_the_sequence_in_three_forms() {
    let place = Place::new();
    let server = place.server();
    let folder = place.text("d1");
    server
        .cli_ok(&["device", "provision", "d1", "--out", &folder])
        .unwrap();
    let refused = || {
        let output = server.cli(&["explain", "--recent", "--refused"]).unwrap();
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert_eq!(refused(), "no exchanges yet\n");
    let attempt = Attempt {
        patience: Duration::from_millis(300),
        ..Attempt::new(server.devices)
    };
    let attempt = attempt
        .identity(&identity(Path::new(&folder)))
        .send(connect(5, "d1"));
    let seen = Attempt {
        then: publish(5, "devices/d1/telemetry", 1, 0),
        ..attempt
    }
    .run();
    assert_eq!(seen.packets().len(), 2, "{seen:?}");
    assert!(
        refused().starts_with("none of the exchanges was refused; hint: "),
        "{}",
        refused()
    );
    let text = server.cli_ok(&["explain", "d1"]).unwrap();
    for stage in countersign_policy::Stage::ALL {
        assert!(text.contains(stage.name()), "{stage} is not in:\n{text}");
    }
    let mermaid = server.cli_ok(&["explain", "d1", "--format", "mermaid"]).unwrap();
    assert!(
        mermaid.starts_with("sequenceDiagram") && mermaid.contains("D->>C: first PUBLISH"),
        "{mermaid}"
    );
    let record: Value =
        serde_json::from_str(&server.cli_ok(&["explain", "d1", "--format", "json"]).unwrap()).unwrap();
    assert_eq!(record[0]["stages"].as_array().unwrap().len(), 10);
    let by_exchange = server
        .cli_ok(&["explain", record[0]["id"].as_str().unwrap()])
        .unwrap();
    let serial = record[0]["certificate"]["serial"].as_str().unwrap();
    let fingerprint = record[0]["certificate"]["fingerprint"].as_str().unwrap();
    for name in [serial, fingerprint] {
        assert_eq!(server.cli_ok(&["explain", name]).unwrap(), by_exchange, "{name}");
    }
    let nobody = server.cli(&["explain", "nobody"]).unwrap();
    assert_eq!(nobody.status.code(), Some(3));
    assert!(stderr(&nobody).contains("hint: "), "{}", stderr(&nobody));
}

#[test]
fn commands_work_with_and_without_a_server_and_never_beside_it() {
    let place = Place::new();
    let data = place.text("data");
    let cli = |arguments: &[&str]| run(&[&["--data", &data], arguments].concat());
    let missing = cli(&["device", "list"]);
    assert_eq!(missing.status.code(), Some(5));
    assert!(
        stderr(&missing).contains("hint: countersign init"),
        "{}",
        stderr(&missing)
    );
    assert!(cli(&["init"]).status.success());
    assert!(cli(&["init"]).status.success(), "init is safe to repeat");
    assert!(
        cli(&["device", "add", "d1", "--model", "m", "--group", "g"])
            .status
            .success()
    );
    let twice = cli(&["device", "add", "d1"]);
    assert_eq!(twice.status.code(), Some(4), "{}", stderr(&twice));
    let server = place.server();
    // Now through the server, which holds the directory.
    assert!(cli(&["device", "add", "d2"]).status.success());
    let listed: Value = serde_json::from_str(&stdout(&cli(&["--json", "device", "list"]))).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 2);
    assert_eq!(cli(&["device", "show", "d9"]).status.code(), Some(3));
    assert_eq!(
        cli(&["device", "suspend", "d1", "--bogus"]).status.code(),
        Some(2)
    );
    let doctor = cli(&["doctor"]);
    assert!(doctor.status.success(), "{}", stdout(&doctor));
    drop(server);
    // Killed: its address file is stale, and the directory is free again.
    assert!(cli(&["device", "add", "d3"]).status.success());
}

#[test]
fn what_is_wrong_at_start_is_said_with_a_cure_and_an_exit_code() {
    let place = Place::new();
    let data = place.path("data");
    let serve = |arguments: &[&str]| {
        run(&[
            &[
                "--data",
                data.to_str().unwrap(),
                "serve",
                "--admin",
                "127.0.0.1:0",
            ],
            arguments,
        ]
        .concat())
    };
    let expect = |output: &Output, code: i32, parts: &[&str]| {
        let text = stderr(output);
        assert_eq!(output.status.code(), Some(code), "{text}");
        for part in parts {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
    };
    // A misspelt name must not become a platform of its own, with other roots and no devices. (The port is taken, so that
    // one that starts all the same ends.)
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let cure = format!("hint: countersign init --data {}", data.display());
    let refused = ["there is no countersign data directory", &cure];
    expect(&serve(&["--listen", &address]), 5, &refused);
    assert!(!data.exists());
    std::fs::create_dir(&data).unwrap();
    expect(&serve(&["--listen", &address]), 5, &refused);
    assert_eq!(std::fs::read_dir(&data).unwrap().count(), 0);
    std::fs::remove_dir(&data).unwrap();
    assert!(
        run(&[
            "--data",
            data.to_str().unwrap(),
            "init",
            "--listen",
            "127.0.0.1:0"
        ])
        .status
        .success()
    );
    let config = data.join("countersign.toml");
    let good = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, "[admin]\nlisten = \"nowhere\"\n").unwrap();
    expect(&serve(&[]), 4, &["countersign.toml", "line 2", "hint: "]);
    std::fs::write(&config, "listeners = []\n").unwrap();
    expect(&serve(&[]), 4, &["listeners", "purpose devices", "hint: "]);
    std::fs::write(&config, "[limitz]\n").unwrap();
    expect(&serve(&[]), 4, &["unknown field `limitz`"]);
    std::fs::write(&config, "[admin]\nlisten = \"0.0.0.0:1\"\n").unwrap();
    expect(
        &run(&["--data", data.to_str().unwrap(), "config", "check"]),
        4,
        &["admin.listen", "loopback", "hint: "],
    );
    std::fs::write(&config, &good).unwrap();

    expect(
        &serve(&["--listen", &address]),
        5,
        &["cannot listen on", &address, "hint: another process has the port"],
    );

    use std::os::unix::fs::PermissionsExt;
    let key = data.join("authorities/platform/issuing.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    expect(&serve(&[]), 5, &["others may read it", "hint: chmod 600"]);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let bytes = std::fs::read(&key).unwrap();
    std::fs::write(&key, b"not a key").unwrap();
    expect(&serve(&[]), 5, &["issuing.key", "damaged"]);
    std::fs::write(&key, bytes).unwrap();

    let server = place.server();
    expect(
        &serve(&[]),
        5,
        &[
            "in use by another countersign process",
            &format!("pid {}", server.pid()),
            "hint: ",
        ],
    );
    server.stop().unwrap();

    let db = rusqlite::Connection::open(data.join("registry.db")).unwrap();
    let version: i64 = db.query_row("PRAGMA user_version", [], |r| r.get(0)).unwrap();
    db.pragma_update(None, "user_version", 99).unwrap();
    drop(db);
    expect(
        &serve(&[]),
        5,
        &["written by a newer countersign", "schema 99", "hint: "],
    );
    let db = rusqlite::Connection::open(data.join("registry.db")).unwrap();
    db.pragma_update(None, "user_version", version).unwrap();
    drop(db);
    // Nothing was lost on the way.
    place.server().stop().unwrap();
}

#[test]
fn the_server_certificate_is_replaced_while_running() {
    let place = Place::new();
    let server = place.server();
    let session = live(&server, &place, "d1", 5);
    let path = place.path("data/server/server.crt");
    let before = std::fs::read_to_string(&path).unwrap();
    // As if it had been deleted: it is issued anew.
    std::fs::remove_file(&path).unwrap();
    let answer = server
        .ask("POST", "/server-certificate/reload", Some(&json!({})))
        .unwrap();
    assert_eq!(answer["replaced"], true);
    assert_ne!(std::fs::read_to_string(&path).unwrap(), before);
    // A broken one is refused, and what is served stays.
    std::fs::write(&path, "broken").unwrap();
    std::fs::write(place.path("data/server/server.key"), "broken").unwrap();
    server
        .ask("POST", "/server-certificate/reload", Some(&json!({})))
        .unwrap();
    assert_eq!(
        server
            .ask("GET", "/sessions", None)
            .unwrap()
            .as_array()
            .unwrap()
            .len(),
        1,
        "sessions live on"
    );
    server.signal(rustix::process::Signal::HUP).unwrap();
    let folder = place.text("d1");
    let seen = Attempt {
        patience: Duration::from_millis(300),
        ..Attempt::new(server.devices)
    }
    .identity(&identity(Path::new(&folder)))
    .send(connect(5, "d1"))
    .run();
    assert_eq!(seen.connack(), Some(0));
    server.stop().unwrap();
    // The second connection of the same client id took the first one over.
    assert_eq!(session.join().unwrap().packets()[1][2], 0x8e);
}

#[test]
fn an_import_reads_csv_folders_and_bundles_and_says_what_is_wrong_with_a_line() {
    let place = Place::new();
    let server = place.server();
    let ca = countersign_testkit::pki::Ca::root("import root", None);
    std::fs::write(place.path("ca.crt"), &ca.pem).unwrap();
    std::fs::write(place.path("ca.key"), ca.key_pem()).unwrap();
    let (certificate, key) = (place.text("ca.crt"), place.text("ca.key"));
    server
        .cli_ok(&["authority", "register", "factory", &certificate, "--key", &key])
        .unwrap();
    std::fs::create_dir(place.path("certs")).unwrap();
    let mut bundle = String::new();
    for n in 0..5 {
        let device = ca.issue(&countersign_testkit::pki::Leaf::named(&format!("imp-{n}")), &[]);
        std::fs::write(place.path(&format!("certs/{n}.pem")), &device.pem).unwrap();
        bundle.push_str(&device.pem);
        if n == 0 {
            std::fs::write(place.path("imp-0.crt"), &device.pem).unwrap();
        }
    }
    std::fs::write(place.path("all.pem"), bundle).unwrap();
    std::fs::write(
        place.path("list.csv"),
        "id,model,groups,state,certificate\nimp-0,m1,a;b,active,imp-0.crt\nimp-9,m1,,pending,\n",
    )
    .unwrap();
    let import = |path: &str| server.cli_ok(&["device", "import", &place.text(path)]).unwrap();
    assert!(
        import("list.csv").contains("2 added, 0 unchanged, 1 certificates registered"),
        "csv"
    );
    assert!(
        import("certs").contains("4 added, 1 unchanged, 4 certificates registered"),
        "folder"
    );
    assert!(
        import("all.pem").contains("0 added, 5 unchanged, 0 certificates registered"),
        "bundle"
    );
    // What is taken and opens nothing is remarked, until it does: an expired one, and one of a CA that nobody registered.
    let (old, stray) = (
        countersign_testkit::pki::Leaf {
            days: (-30, -1),
            ..countersign_testkit::pki::Leaf::named("imp-old")
        },
        countersign_testkit::pki::Leaf::named("imp-stray"),
    );
    let other = countersign_testkit::pki::Ca::root("stray root", None);
    std::fs::create_dir(place.path("odd")).unwrap();
    std::fs::write(place.path("odd/1.pem"), ca.issue(&old, &[]).pem).unwrap();
    std::fs::write(place.path("odd/2.pem"), other.issue(&stray, &[]).pem).unwrap();
    let odd = || {
        let output = server.cli(&["device", "import", &place.text("odd")]).unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr(&output),
        )
    };
    let (told, remarks) = odd();
    assert_eq!(
        told.trim(),
        "2 added, 0 unchanged, 2 certificates registered, 0 refused, 1 expired, 1 of an unknown issuer"
    );
    let lines: Vec<_> = remarks.lines().filter(|l| l.starts_with("remark: ")).collect();
    assert_eq!(lines.len(), 2, "{remarks}");
    assert!(
        lines[0].starts_with("remark: imp-old: its certificate expired at ") && lines[0].contains("hint: ")
    );
    assert!(
        lines[1].starts_with(
            "remark: imp-stray: the issuer of its certificate, CN=stray root, leads to no authority"
        ),
        "{remarks}"
    );
    std::fs::write(place.path("stray.crt"), &other.pem).unwrap();
    server
        .cli_ok(&["authority", "register", "stray", &place.text("stray.crt")])
        .unwrap();
    let (told, _) = odd();
    assert_eq!(
        told.trim(),
        "0 added, 2 unchanged, 0 certificates registered, 0 refused, 1 expired"
    );
    // A row of an authority that is not there is refused as it is; the others are taken.
    std::fs::write(
        place.path("bound.csv"),
        "id,authority\nbound-1,default-devices\nbound-2,nobody\nimp-9,nobody\n",
    )
    .unwrap();
    let bound = server
        .cli(&["device", "import", &place.text("bound.csv")])
        .unwrap();
    assert_eq!(bound.status.code(), Some(4), "{}", stderr(&bound));
    for refused in ["bound-2", "imp-9"] {
        let line = format!("refused: {refused}: tenant default has no authority nobody, it has ");
        assert!(stderr(&bound).contains(&line), "{}", stderr(&bound));
    }
    assert!(
        stderr(&bound).contains("default-devices") && stderr(&bound).contains("hint: correct it"),
        "{}",
        stderr(&bound)
    );
    assert!(
        String::from_utf8_lossy(&bound.stdout).contains("1 added, 0 unchanged"),
        "{bound:?}"
    );
    assert_eq!(
        server.cli(&["device", "show", "bound-2"]).unwrap().status.code(),
        Some(3)
    );
    std::fs::write(place.path("bad.csv"), "id,model\ngood,m\nbad id,m\n").unwrap();
    let bad = server.cli(&["device", "import", &place.text("bad.csv")]).unwrap();
    assert!(
        stderr(&bad).contains("bad.csv, line 3") && !bad.status.success(),
        "{}",
        stderr(&bad)
    );
    assert_eq!(
        server.cli(&["device", "show", "good"]).unwrap().status.code(),
        Some(3),
        "nothing of it was imported"
    );
}

#[test]
fn a_list_that_is_cut_says_so_and_one_of_an_unknown_tenant_is_none() {
    let place = Place::new();
    let server = place.server();
    let devices: Vec<Value> = (0..3).map(|n| json!({ "id": format!("d{n}") })).collect();
    let body = json!({ "devices": devices });
    server
        .ask("POST", "/tenants/default/devices/import", Some(&body))
        .unwrap();
    let list = |more: &[&str]| {
        let output = server
            .cli(&[&["--json", "device", "list"], more].concat())
            .unwrap();
        let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
        (listed.as_array().unwrap().len(), stderr(&output))
    };
    let (shown, said) = list(&["--limit", "2"]);
    assert_eq!(shown, 2);
    assert!(said.contains("2 shown, there are more; hint: --limit"), "{said}");
    for whole in [&["--limit", "3"][..], &[], &["--state", "active", "--limit", "3"]] {
        assert_eq!(list(whole), (3, String::new()), "{whole:?}");
    }
    for command in [
        &["device", "list"][..],
        &["session", "list"],
        &["factory", "batch", "list"],
        &["factory", "claim", "list"],
        &["factory", "station", "list"],
        &["receipt", "list"],
        &["clones", "list"],
        &["forecast"],
        &["rejections"],
        &["rejections", "search", "--code", "chain.expired"],
    ] {
        let output = server.cli(&[command, &["--tenant", "nope"]].concat()).unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(3), "{command:?}: {said}");
        assert!(said.contains("there is no tenant nope"), "{command:?}: {said}");
    }
}

#[test]
fn the_api_asks_for_its_token_and_tells_problems_as_problems() {
    let place = Place::new();
    let server = place.server();
    for token in [None, Some("0000")] {
        let (status, body) = http(server.admin, "GET", "/api/v1/tenants", token, None).unwrap();
        assert_eq!(status, 401, "{body}");
        assert!(body.contains("admin.token"), "{body}");
    }
    for (method, path, body, status) in [
        ("GET", "/nothing", None, 404),
        ("POST", "/tenants", Some(json!({ "id": "Not Good" })), 422),
        ("POST", "/tenants", Some(json!({ "id": "t", "surprise": 1 })), 422),
        ("GET", "/tenants/default/devices/..%2f", None, 422),
        (
            "POST",
            "/tenants/default/devices/nobody/moves",
            Some(json!({ "move": "suspend" })),
            404,
        ),
        (
            "POST",
            "/tenants/default/devices",
            Some(json!({ "id": "d", "state": "suspended" })),
            422,
        ),
        (
            "POST",
            "/authorities",
            Some(json!({ "id": "a", "tenant": "default", "certificate": "x" })),
            422,
        ),
    ] {
        let (found, problem) = server.call(method, path, body.as_ref()).unwrap();
        assert_eq!(found, status, "{method} {path}: {problem}");
        assert!(problem["detail"].is_string(), "{problem}");
    }
}
