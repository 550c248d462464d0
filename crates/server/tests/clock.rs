//! The clock and the forecast as operators meet them.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::Path;
use std::process::{Command, Output};

use countersign_testkit::server::{Server, http, listener};
use serde_json::Value;

fn start(data: &Path, config: &str) -> Server {
    Server::start(Path::new(env!("CARGO_BIN_EXE_countersign")), data, config).unwrap()
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn provision(server: &Server, folder: &Path, id: &str, more: &[&str]) -> Output {
    let out = folder.join(id).display().to_string();
    let mut arguments = vec!["device", "provision", id, "--out", &out];
    arguments.extend(more);
    server.cli(&arguments).unwrap()
}

fn json(server: &Server, arguments: &[&str]) -> Value {
    let arguments = [&["--json"], arguments].concat();
    serde_json::from_str(&server.cli_ok(&arguments).unwrap()).unwrap()
}

fn check(server: &Server, name: &str) -> Value {
    let checks = json(server, &["doctor"]);
    checks
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["name"] == name)
        .unwrap()
        .clone()
}

#[test]
fn a_mark_from_a_clock_in_the_far_future_stops_minting_until_it_is_put_right() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let server = start(&data, "");
    assert!(provision(&server, folder.path(), "d1", &[]).status.success());
    server.stop().unwrap();
    // As if the machine had thought for a while that it was ten years later.
    let db = rusqlite::Connection::open(data.join("registry.db")).unwrap();
    let ten_years: i64 = 10 * 365 * 86_400_000;
    db.execute("UPDATE clock SET high_water = high_water + ?", [ten_years])
        .unwrap();
    drop(db);

    let server = start(
        &data,
        &format!("[enrol]\nretry_after_s = 77\n{}", listener("enrol")),
    );
    let refused = provision(&server, folder.path(), "d2", &[]);
    let text = said(&refused);
    assert_eq!(refused.status.code(), Some(5), "{text}");
    for part in [
        "the clock is behind",
        "3649 d 23 h later",
        "hint: set the clock",
        "countersign clock reset --reason",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let (status, _) = server.call("GET", "/tenants/default/devices/d2", None).unwrap();
    assert_eq!(status, 404, "neither a certificate nor a device");
    server.cli_ok(&["device", "add", "d2"]).unwrap();
    assert!(server.log().contains("nothing is minted"), "{}", server.log());
    let doctor = server.cli(&["doctor"]).unwrap();
    assert!(!doctor.status.success() && said(&doctor).contains("FAIL clock"));
    let shown = server.cli_ok(&["clock", "show"]).unwrap();
    assert!(
        shown.contains("minting    refused") && shown.contains("s behind it"),
        "{shown}"
    );
    assert!(json(&server, &["clock", "show"])["behind_ms"].as_i64() > Some(ten_years - 60_000));
    let (_, metrics) = http(server.admin, "GET", "/metrics", None, None).unwrap();
    assert!(
        metrics.contains("countersign_minting_refused_total{reason=\"clock-behind\"} 1"),
        "{metrics}"
    );

    // Over EST too, with a word to come again; the secret is not used up by it.
    let secret = json(&server, &["device", "secret", "d2"])["secret"]
        .as_str()
        .unwrap()
        .to_owned();
    let url = format!(
        "https://{}/.well-known/est/simpleenroll",
        server.listener("enrol").unwrap()
    );
    let request = folder.path().join("d2.csr");
    let made = Command::new("openssl")
        .args([
            "req", "-new", "-newkey", "ed25519", "-nodes", "-subj", "/CN=d2", "-outform", "DER", "-keyout",
        ])
        .arg(folder.path().join("d2.key"))
        .arg("-out")
        .arg(&request)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", said(&made));
    let enrol = || {
        let body = Command::new("openssl")
            .args(["base64", "-in"])
            .arg(&request)
            .output()
            .unwrap();
        let file = folder.path().join("d2.b64");
        std::fs::write(&file, body.stdout).unwrap();
        let answer = Command::new("curl")
            .args([
                "-sk",
                "-i",
                "-u",
                &format!("d2:{secret}"),
                "-H",
                "Content-Type: application/pkcs10",
            ])
            .arg("--data-binary")
            .arg(format!("@{}", file.display()))
            .arg(&url)
            .output()
            .unwrap();
        said(&answer).to_lowercase()
    };
    let answer = enrol();
    assert!(
        answer.starts_with("http/1.1 503")
            && answer.contains("retry-after: 77")
            && answer.contains("the clock is behind"),
        "{answer}"
    );

    let refused = server.cli(&["clock", "reset", "--reason", ""]).unwrap();
    assert_eq!(refused.status.code(), Some(4), "{}", said(&refused));
    assert_eq!(server.cli(&["clock", "reset"]).unwrap().status.code(), Some(2));
    assert!(!provision(&server, folder.path(), "d2", &[]).status.success());
    server
        .cli_ok(&["clock", "reset", "--reason", "battery was flat"])
        .unwrap();
    let output = provision(&server, folder.path(), "d2", &[]);
    assert!(output.status.success(), "{}", said(&output));
    let answer = enrol();
    assert!(answer.starts_with("http/1.1 200"), "{answer}");
    assert_ne!(check(&server, "clock")["ok"], false);
    let audit = server.ask("GET", "/audit", None).unwrap();
    assert!(audit.to_string().contains("battery was flat"));
}

#[test]
fn the_forecast_counts_devices_and_says_until_when_authorities_can_issue() {
    let folder = tempfile::tempdir().unwrap();
    let profiles = "\n[[profiles]]\nname = \"operational\"\n\n[[profiles]]\nname = \"short\"\nlifetime_days = 5\n\n[[profiles]]\nname = \"factory\"\nkind = \"factory\"\nlifetime_days = 0\n";
    let server = start(&folder.path().join("data"), profiles);
    for (id, profile) in [
        ("d1", "operational"),
        ("d2", "operational"),
        ("d3", "short"),
        ("d4", "factory"),
    ] {
        let output = provision(&server, folder.path(), id, &["--profile", profile]);
        assert!(output.status.success(), "{}", said(&output));
    }
    let forecast = json(&server, &["forecast"]);
    let groups = forecast["devices"].as_array().unwrap();
    assert_eq!(groups.len(), 2, "{forecast:#}");
    assert_eq!(groups[0]["kind"], "factory");
    assert_eq!(groups[0]["windows"]["never"], 1);
    assert_eq!(groups[1]["authority"], "default-devices");
    assert_eq!(groups[1]["devices"], 3);
    assert_eq!(
        (&groups[1]["windows"]["days_90"], &groups[1]["windows"]["days_7"]),
        (&2.into(), &1.into())
    );
    // Five years less 90 days, less nothing.
    let authority = &forecast["authorities"][1];
    assert_eq!(authority["id"], "default-devices");
    let day = 86_400_000.0;
    let left = |at: &Value| (at.as_f64().unwrap() - forecast["now"].as_f64().unwrap()) / day;
    for (last, days) in authority["last_issue"]
        .as_array()
        .unwrap()
        .iter()
        .zip([1735.0, 1820.0, 1825.0])
    {
        assert!((left(&last["at"]) - days).abs() < 0.1, "{last} {days}");
    }
    assert_eq!(forecast["authorities"][0]["id"], "platform");
    let text = server.cli_ok(&["forecast"]).unwrap();
    assert!(
        text.contains("UNRENEWED") && text.contains("operational until 20"),
        "{text}"
    );
    let nobody = server.cli(&["forecast", "--tenant", "nobody"]).unwrap();
    assert_eq!(nobody.status.code(), Some(3), "there is no such tenant");

    let (_, metrics) = http(server.admin, "GET", "/metrics", None, None).unwrap();
    for line in [
        "countersign_devices_expiring{window=\"7d\"} 1",
        "countersign_devices_expiring{window=\"90d\"} 2",
        "countersign_devices_expiring{window=\"never\"} 1",
        "countersign_devices_expiring{window=\"overdue\"} 0",
        "countersign_devices_unrenewed 0",
        "countersign_authorities_expiring{window=\"later\"} 2",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    for name in ["authorities", "device certificates"] {
        assert!(check(&server, name)["warning"].is_null());
    }
    server.stop().unwrap();

    // A profile that the authority cannot honour for long, and a device that nobody renewed: both are warned of.
    let db = rusqlite::Connection::open(folder.path().join("data/registry.db")).unwrap();
    db.execute(
        "UPDATE credentials SET not_after = not_before + 10 WHERE device = 'd3'",
        [],
    )
    .unwrap();
    drop(db);
    let long = "\n[[profiles]]\nname = \"long\"\nlifetime_days = 1800\n";
    let server = start(&folder.path().join("data"), long);
    let authorities = check(&server, "authorities");
    let (ok, detail) = (&authorities["ok"], authorities["detail"].as_str().unwrap());
    assert!(
        *ok == true
            && authorities["warning"] == true
            && detail.contains("default-devices cannot issue by profile long from 20"),
        "{authorities}"
    );
    let devices = check(&server, "device certificates");
    assert!(
        devices["warning"] == true
            && devices["detail"]
                .as_str()
                .unwrap()
                .starts_with("1 device(s) live on"),
        "{devices}"
    );
    let text = server.cli_ok(&["doctor"]).unwrap();
    assert!(
        text.contains("warn authorities") && text.contains("hint: make a new one in time"),
        "{text}"
    );
}

/// The kernel is asked for real: what it says here decides what is expected.
#[test]
fn a_clock_that_must_be_synchronised_mints_only_if_the_kernel_says_that_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let server = start(&data, "");
    let says = json(&server, &["clock", "show"])["synchronisation"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(provision(&server, folder.path(), "d1", &[]).status.success());
    // Only a warning, unless it is asked for.
    let clock = check(&server, "clock");
    assert_eq!(clock["ok"], true);
    assert_eq!(clock["warning"] == true, says != "synchronised", "{clock}");
    server.stop().unwrap();

    let server = start(&data, "[issuance]\nrequire_clock_sync = true\n");
    let output = provision(&server, folder.path(), "d2", &[]);
    let text = said(&output);
    assert_eq!(output.status.success(), says == "synchronised", "{says}: {text}");
    if says != "synchronised" {
        assert_eq!(output.status.code(), Some(5), "{text}");
        assert!(
            text.contains("not known to be synchronised") && text.contains("hint: let a time service set it"),
            "{text}"
        );
        assert!(said(&server.cli(&["doctor"]).unwrap()).contains("FAIL clock"));
        let (_, metrics) = http(server.admin, "GET", "/metrics", None, None).unwrap();
        assert!(
            metrics.contains("countersign_minting_refused_total{reason=\"clock-unsynchronised\"} 1"),
            "{metrics}"
        );
    }
}
