//! `device provision`: all of it or nothing, and what is said of what it leaves out.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::Path;
use std::process::Command;

use countersign_testkit::server::{Server, listener};

struct Place {
    folder: tempfile::TempDir,
    server: Server,
}

impl Place {
    fn with(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_countersign"));
        let server = Server::start(program, &folder.path().join("data"), config).unwrap();
        Self { folder, server }
    }

    fn text(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Standard error, and the exit code.
    fn provision(&self, id: &str, out: &str, more: &[&str]) -> (Option<i32>, String) {
        let mut arguments = vec!["device", "provision", id, "--out", out];
        arguments.extend(more);
        let output = self.server.cli(&arguments).unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }

    fn is_there(&self, id: &str) -> bool {
        self.server.cli(&["device", "show", id]).unwrap().status.success()
    }
}

fn openssl(arguments: &[&str]) {
    let output = Command::new("openssl").args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_provision_that_fails_leaves_no_device_behind_and_is_simply_repeated() {
    let place = Place::with("");
    let out = place.text("d1");
    for (more, code) in [(["--profile", "nonsense"], 3), (["--authority", "nobody"], 3)] {
        let (exit, text) = place.provision("d1", &out, &more);
        assert_eq!(exit, Some(code), "{text}");
        assert!(!place.is_there("d1"), "{more:?} left a device: {text}");
    }
    // What only the registry can say: the key is another device's.
    assert_eq!(place.provision("other", &place.text("other"), &[]).0, Some(0));
    std::fs::copy(place.text("other/device.key"), place.text("d1/device.key")).unwrap();
    let (exit, text) = place.provision("d1", &out, &[]);
    assert_eq!(exit, Some(4), "{text}");
    assert!(!place.is_there("d1"), "{text}");
    std::fs::remove_file(place.text("d1/device.key")).unwrap();
    let (exit, text) = place.provision("d1", &out, &[]);
    assert!(exit == Some(0) && text.contains("device d1 added"), "{text}");
    let (exit, text) = place.provision("d1", &out, &[]);
    assert!(exit == Some(0) && !text.contains("added"), "{text}");
    let audit = place.server.ask("GET", "/audit", None).unwrap();
    let of_d1 = audit.as_array().unwrap().iter().filter(|e| e["subject"] == "d1");
    let actions: Vec<_> = of_d1.map(|e| e["action"].as_str().unwrap().to_owned()).collect();
    assert_eq!(actions, ["credential.issue", "device.add"], "newest first");
}

#[test]
fn a_folder_that_cannot_be_written_or_is_anothers_is_seen_before_anything_is_issued() {
    let place = Place::with("");
    let (key, csr) = (place.text("key"), place.text("csr"));
    openssl(&[
        "req",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-keyout",
        &key,
        "-out",
        &csr,
        "-subj",
        "/CN=d2",
    ]);
    std::fs::write(place.text("file"), "").unwrap();
    for out in ["file", "file/below"] {
        let (exit, text) = place.provision("d2", &place.text(out), &["--csr", &csr]);
        assert_eq!(exit, Some(5), "{text}");
        assert!(text.contains("hint: ") && text.contains("--out"), "{text}");
        assert!(!place.is_there("d2"), "{text}");
    }
    assert_eq!(place.provision("d1", &place.text("d1"), &[]).0, Some(0));
    let before = std::fs::read(place.text("d1/device.crt")).unwrap();
    let (exit, text) = place.provision("d2", &place.text("d1"), &["--csr", &csr]);
    assert_eq!(exit, Some(4), "{text}");
    assert!(text.contains("identity folder of device d1"), "{text}");
    assert_eq!(std::fs::read(place.text("d1/device.crt")).unwrap(), before);
    assert!(!place.is_there("d2"), "{text}");
    let (exit, text) = place.provision("d2", &place.text("d2"), &["--csr", &csr]);
    assert_eq!(exit, Some(0), "{text}");
}

#[test]
fn a_folder_whose_certificate_cannot_be_renewed_is_warned_of_and_is_mended_by_a_repeat() {
    let mut place = Place::with("");
    let port = |place: &Place, folder: &str| {
        let file = std::fs::read(place.text(&format!("{folder}/device.json"))).unwrap();
        serde_json::from_slice::<serde_json::Value>(&file).unwrap()["enrol_port"].as_u64()
    };
    place
        .server
        .cli_ok(&[
            "factory",
            "batch",
            "add",
            "b1",
            "--model",
            "pump",
            "--profile",
            "operational",
            "--id-pattern",
            "SN-*",
            "--quota",
            "9",
        ])
        .unwrap();
    let lot = place.text("lot");
    let issue = |place: &Place, count: &str| {
        let output = place.server.cli(&[
            "factory", "issue", "--batch", "b1", "--format", "SN-{}", "--count", count, "--out", &lot,
        ]);
        String::from_utf8_lossy(&output.unwrap().stderr).into_owned()
    };
    let is_warning = |text: &str| {
        text.contains("warning: ") && text.contains("purpose enrol") && text.contains("enrol_port")
    };
    let (_, text) = place.provision("d1", &place.text("d1"), &[]);
    assert!(is_warning(&text), "{text}");
    assert_eq!(port(&place, "d1"), None);
    let text = issue(&place, "2");
    assert!(is_warning(&text), "{text}");
    assert_eq!(text.matches("warning: ").count(), 1, "once for all: {text}");

    let data = place.folder.path().join("data");
    drop(place.server);
    let program = Path::new(env!("CARGO_BIN_EXE_countersign"));
    place.server = Server::start(program, &data, &listener("enrol")).unwrap();
    let (exit, text) = place.provision("d1", &place.text("d1"), &[]);
    assert!(exit == Some(0) && !text.contains("warning"), "{text}");
    assert_eq!(
        port(&place, "d1"),
        place.server.listener("enrol").ok().map(|a| u64::from(a.port()))
    );
    let text = issue(&place, "3");
    assert!(!text.contains("warning"), "{text}");
}
