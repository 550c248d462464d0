//! What is promised is on disk, and a disk that fails is a denial.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stderr
)]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use countersign_policy::decide::DEFAULT_POLICY;
use countersign_testkit::client::{Attempt, connect};
use countersign_testkit::hold::Held;
use countersign_testkit::pki::{Ca, Leaf};
use countersign_testkit::server::Server;
use countersign_testkit::{crash, server};
use serde_json::json;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_countersign"))
}

#[test]
fn twenty_kills_lose_nothing_that_was_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let report = crash::run(program(), &folder.path().join("data"), 20, 20_261_124).unwrap();
    assert!(
        report.kills == 20 && report.provisioned > 20 && report.suspended > 20,
        "{report:?}"
    );
}

/// The page cache survives a kill, so the kill alone proves little: the trace must show the sync before the answer.
#[test]
fn the_log_is_synced_before_each_promising_answer() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    let mut command = Command::new("strace");
    command.args([
        "-f",
        "-qq",
        "-yy",
        "-s",
        "64",
        "-e",
        "trace=fsync,fdatasync,write,writev,sendto,sendmsg",
        "-o",
    ]);
    command.arg(&trace).arg(program());
    let server = Server::start_with(command, program(), &folder.path().join("data"), "").unwrap();
    server
        .ask("POST", "/tenants/default/devices", Some(&json!({ "id": "d1" })))
        .unwrap();
    let mut expected = 1;
    for attempted in ["suspend", "resume", "quarantine", "release", "decommission"] {
        server
            .ask(
                "POST",
                "/tenants/default/devices/d1/moves",
                Some(&json!({ "move": attempted, "reason": "test" })),
            )
            .unwrap();
        expected += 1;
    }
    server
        .ask("POST", "/tenants/default/devices", Some(&json!({ "id": "d2" })))
        .unwrap();
    server
        .ask(
            "POST",
            "/tenants/default/devices/d2/certificates",
            Some(&json!({ "request": countersign_testkit::pki::request("d2") })),
        )
        .unwrap();
    expected += 2;
    let started = Instant::now();
    let answers = loop {
        let text = std::fs::read_to_string(&trace).unwrap();
        let answers = text.lines().filter(|l| l.contains("HTTP/1.1 200")).count();
        if answers > expected {
            break text;
        }
        assert!(started.elapsed() < Duration::from_secs(10), "{text}");
    };
    // Between one answer and the next: a sync of the registry's log that returned 0. The first answer is to /status.
    let (mut synced, mut promises) = (false, 0);
    let mut first = true;
    for line in answers.lines() {
        // A call that another thread interrupted is shown in two lines; the name is in the first, the result in the second.
        if line.contains("registry.db-wal") && (line.contains("fsync(") || line.contains("fdatasync(")) {
            synced = line.ends_with("= 0") || line.contains("unfinished");
        }
        if line.contains("HTTP/1.1 200") {
            if !first {
                assert!(synced, "an answer without a sync before it: {line}");
                promises += 1;
            }
            first = false;
            synced = false;
        }
    }
    assert_eq!(promises, expected);
    // The server ends with the tracer that started it.
    let data = server.data.clone();
    assert_eq!(serving(&data), 2, "the tracer and the server");
    drop(server);
    let started = Instant::now();
    while serving(&data) > 0 {
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "the server was left behind"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// How many processes serve a data directory, or trace one that does.
fn serving(data: &Path) -> usize {
    let data = data.to_str().unwrap();
    let processes = std::fs::read_dir("/proc").unwrap();
    let commands = processes.filter_map(|p| std::fs::read_to_string(p.ok()?.path().join("cmdline")).ok());
    commands
        .filter(|c| c.split('\0').any(|a| a == data) && c.contains("\0serve"))
        .count()
}

/// A disk that is full, made of a small file system of its own. Needs the right to mount; without it the test says so
/// and checks nothing, because there is no other way to fill a disk that harms nobody.
#[test]
fn a_full_disk_refuses_changes_and_devices_says_so_and_recovers() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=6m", "tmpfs"])
        .arg(&data)
        .status();
    if !mounted.is_ok_and(|s| s.success()) {
        assert!(
            std::env::var_os("CI").is_none(),
            "CI must be able to mount a tmpfs"
        );
        eprintln!("not run: this user may not mount a file system");
        return;
    }
    struct Unmount(std::path::PathBuf);
    impl Drop for Unmount {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
    let _unmount = Unmount(data.clone());
    let server = Server::start(program(), &data, "").unwrap();
    let ca = Ca::root("full root", None);
    server
        .register("full", "default", &ca, &json!({ "mode": "registered-only" }))
        .unwrap();
    let device = ca.issue(&Leaf::named("d1"), &[]);
    let other = ca.issue(&Leaf::named("d2"), &[]);
    let body = json!({ "devices": [
        { "id": "d1", "certificate": device.pem },
        { "id": "d2", "certificate": other.pem },
    ] });
    server
        .ask("POST", "/tenants/default/devices/import", Some(&body))
        .unwrap();
    let attempt = Attempt {
        patience: Duration::from_millis(500),
        ..Attempt::new(server.devices)
    };
    let attempt = attempt.identity(&device).send(connect(4, "d1"));
    assert_eq!(attempt.run().connack(), Some(0));
    let _live = Held::open(server.devices, &other, "d2").unwrap();
    let lives = || {
        let sessions = server.ask("GET", "/sessions", None).unwrap();
        sessions.to_string().contains("\"d2\"")
    };
    assert!(lives());

    let filler = data.join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
    drop(file);
    // The log may have room left in pages it has already; then a few changes still fit.
    let mut refused = None;
    for n in 0..2000 {
        let (status, problem) = server
            .call(
                "POST",
                "/tenants/default/devices",
                Some(&json!({ "id": format!("x{n}") })),
            )
            .unwrap();
        if status != 200 {
            refused = Some((status, problem));
            break;
        }
    }
    let (status, problem) = refused.expect("the disk never became full");
    assert_eq!(status, 507, "{problem}");
    assert!(
        problem["hint"].as_str().unwrap().contains("free space"),
        "{problem}"
    );
    let seen = attempt.run();
    assert_eq!(
        seen.connack(),
        Some(3),
        "nobody is admitted on facts that cannot be kept: {seen:?}"
    );
    let (status, _) = server::http(server.admin, "GET", "/health/ready", None, None).unwrap();
    assert_eq!(status, 503);

    std::fs::remove_file(&filler).unwrap();
    // At once, before the registry has tried by itself: the first change is one that has every session decided anew.
    let policies = format!("{DEFAULT_POLICY}\nforbid (principal in Group::\"none\", action, resource);");
    let change = json!({ "policies": policies, "reason": "the disk has room" });
    server.ask("PATCH", "/tenants/default", Some(&change)).unwrap();
    assert!(lives(), "it is permitted, and was ended: {}", server.log());
    let started = Instant::now();
    while attempt.run().connack() != Some(0) {
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "it does not recover: {}",
            server.log()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    server
        .ask(
            "POST",
            "/tenants/default/devices",
            Some(&json!({ "id": "after" })),
        )
        .unwrap();
}
