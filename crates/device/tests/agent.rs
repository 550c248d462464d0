//! The agent's command line where no platform is needed.
#![allow(missing_docs, clippy::unwrap_used)]

use std::process::{Command, Output};

fn agent(folder: &std::path::Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_countersign-agent"))
        .arg("--identity")
        .arg(folder)
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn what_is_missing_is_told_with_its_cure() {
    let place = tempfile::tempdir().unwrap();
    let secret = place.path().join("secret");
    std::fs::write(&secret, "s\n").unwrap();
    let secret = secret.display().to_string();
    let enrol = ["enrol", "--server", "localhost:1", "--id", "d1"];
    for (arguments, code, word) in [
        (&["check"][..], 3, "identity folder"),
        (&["renew"], 3, "identity folder"),
        (&enrol, 2, "--secret-file"),
        (
            &[&enrol[..], &["--secret-file", "/nowhere"]].concat(),
            3,
            "/nowhere",
        ),
        // Without a pinned root nobody is asked: there is no trust at first sight.
        (
            &[&enrol[..], &["--secret-file", &secret]].concat(),
            3,
            "platform-root.crt",
        ),
        (&["--renew-at", "90-10", "check"], 2, "FROM must be at most TO"),
        (
            &[
                "enrol",
                "--server",
                "localhost:x",
                "--id",
                "d1",
                "--secret-file",
                &secret,
            ],
            2,
            "HOST:PORT",
        ),
    ] {
        let output = agent(place.path(), arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.contains(word), "{arguments:?}: {text}");
    }
    // No key was made for what could not be asked.
    assert!(!place.path().join("device.key").exists());
}

#[test]
fn a_request_makes_its_folder_and_never_a_second_key() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("identities/sensor-1");
    let made = agent(&folder, &["request", "sensor-1"]);
    let text = String::from_utf8_lossy(&made.stdout);
    assert!(
        made.status.success() && text.contains("BEGIN CERTIFICATE REQUEST"),
        "{made:?}"
    );
    let key = std::fs::read(folder.join("device.key")).unwrap();
    let again = agent(&folder, &["request", "sensor-1"]);
    let text = String::from_utf8_lossy(&again.stderr);
    assert_eq!(again.status.code(), Some(3), "{text}");
    assert!(text.contains("a key that exists is never overwritten"), "{text}");
    assert_eq!(std::fs::read(folder.join("device.key")).unwrap(), key);
}
