//! `countersign verify` with files as tools make them: forms, moments, purposes, lists, and hostile heaps.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use countersign_testkit::pki::{Ca, Leaf};
use rcgen::ExtendedKeyUsagePurpose;
use serde_json::Value;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        std::fs::write(self.path(name), text).unwrap();
        name.to_owned()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_countersign"))
            .current_dir(self.0.path())
            .arg("verify")
            .args(arguments)
            .output()
            .unwrap()
    }

    /// `accepted`, or the code; exit code and verdict always agree.
    fn verdict(&self, arguments: &[&str]) -> String {
        let output = self.run(&[&["--json"], arguments].concat());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let answer: Value = serde_json::from_str(&text)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        let accepted = answer["accepted"].as_bool().unwrap();
        assert_eq!(
            output.status.code(),
            Some(if accepted { 0 } else { 4 }),
            "{answer}"
        );
        if accepted {
            "accepted".into()
        } else {
            answer["code"].as_str().unwrap().into()
        }
    }

    fn openssl(&self, arguments: &[&str]) {
        let output = Command::new("openssl")
            .current_dir(self.0.path())
            .args(arguments)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn files_of_every_form_are_read() {
    let place = Place::new();
    let (root, other) = (Ca::root("verify root", None), Ca::root("verify other", None));
    let issuing = root.below("verify issuing", Some(0));
    let device = issuing.issue(&Leaf::named("d1"), &[]);
    place.put("both.pem", format!("{}{}", other.pem, root.pem));
    place.put("root.der", root.certificate());
    place.put("issuing.pem", &issuing.pem);
    place.put("d1.pem", &device.pem);
    place.put("d1.der", &device.chain[0]);
    place.put("chain.pem", format!("{}{}", device.pem, issuing.pem));
    place.put(
        "chain.der",
        [device.chain[0].as_ref(), issuing.certificate().as_ref()].concat(),
    );
    std::fs::create_dir(place.path("folder")).unwrap();
    place.put("folder/a.pem", &other.pem);
    place.put("folder/b.der", root.certificate());
    for anchors in ["both.pem", "root.der", "folder"] {
        for chain in ["chain.pem", "chain.der"] {
            assert_eq!(place.verdict(&["--anchors", anchors, chain]), "accepted");
        }
        for alone in ["d1.pem", "d1.der"] {
            assert_eq!(place.verdict(&["--anchors", anchors, alone]), "chain.unknown-ca");
            assert_eq!(
                place.verdict(&["--anchors", anchors, "--intermediates", "issuing.pem", alone]),
                "accepted"
            );
        }
    }
    assert_eq!(place.verdict(&["--anchors", "issuing.pem", "d1.pem"]), "accepted");
    // No data directory was needed, and none was made.
    assert!(!place.path("countersign-data").exists());
    // What is not there, or no certificate, is an error with its cure, not a verdict.
    let output = place.run(&["--anchors", "nowhere", "d1.pem"]);
    assert_eq!(output.status.code(), Some(4));
    assert!(output.stdout.is_empty());
    place.put("junk.pem", "-----BEGIN CERTIFICATE-----\nAAAA");
    let output = place.run(&["--anchors", "junk.pem", "d1.pem"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("hint: give it as PEM or DER"));
    // Words for people.
    let output = place.run(&["--anchors", "root.der", "d1.pem"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.starts_with("refused: chain.unknown-ca") && text.contains("cure   register the authority"),
        "{text}"
    );
}

#[test]
fn moment_depth_and_purpose_decide() {
    let place = Place::new();
    let root = Ca::root("verify root", None);
    let (middle, server) = (
        root.below("verify middle", None),
        Leaf {
            usage: Some(vec![ExtendedKeyUsagePurpose::ServerAuth]),
            ..Leaf::named("server")
        },
    );
    let issuing = middle.below("verify issuing", None);
    place.put("root.pem", &root.pem);
    place.put("above.pem", format!("{}{}", issuing.pem, middle.pem));
    place.put("d1.pem", issuing.issue(&Leaf::named("d1"), &[]).pem);
    place.put("server.pem", issuing.issue(&server, &[]).pem);
    let with = |more: &[&str]| {
        place.verdict(&[&["--anchors", "root.pem", "--intermediates", "above.pem"], more].concat())
    };
    assert_eq!(with(&["d1.pem"]), "accepted");
    assert_eq!(with(&["--max-depth", "2", "d1.pem"]), "accepted");
    assert_eq!(with(&["--max-depth", "1", "d1.pem"]), "chain.path-length");
    assert_eq!(
        with(&["--at", "2001-01-01T00:00:00Z", "d1.pem"]),
        "chain.not-yet-valid"
    );
    assert_eq!(with(&["--at", "2090-01-01T00:00:00Z", "d1.pem"]), "chain.expired");
    assert_eq!(with(&["--purpose", "server", "server.pem"]), "accepted");
    assert_eq!(with(&["--purpose", "server", "d1.pem"]), "chain.wrong-usage");
    assert_eq!(with(&["server.pem"]), "chain.wrong-usage");
    assert_eq!(
        place
            .run(&["--anchors", "root.pem", "--at", "yesterday", "d1.pem"])
            .status
            .code(),
        Some(2)
    );
}

#[test]
fn lists_as_openssl_makes_them_are_believed() {
    let place = Place::new();
    let root = Ca::root("verify root", None);
    let (good, bad) = (
        root.issue(&Leaf::named("good"), &[]),
        root.issue(&Leaf::named("bad"), &[]),
    );
    place.put("root.pem", &root.pem);
    place.put("root.key", root.key_pem());
    place.put("good.pem", &good.pem);
    place.put("bad.pem", &bad.pem);
    place.put(
        "ca.cnf",
        "[ca]\ndefault_ca=own\n[own]\ndatabase=index\ncrlnumber=number\ndefault_md=sha256\ncrl_extensions=extensions\n\
         [extensions]\nauthorityKeyIdentifier=keyid\n",
    );
    place.put("index", "");
    place.put("number", "01\n");
    let common = [
        "ca", "-config", "ca.cnf", "-cert", "root.pem", "-keyfile", "root.key",
    ];
    place.openssl(&[&common[..], &["-revoke", "bad.pem"]].concat());
    place.openssl(&[&common[..], &["-gencrl", "-crldays", "30", "-out", "list.pem"]].concat());
    place.openssl(&["crl", "-in", "list.pem", "-outform", "DER", "-out", "list.der"]);
    let with = |more: &[&str]| place.verdict(&[&["--anchors", "root.pem"], more].concat());
    for list in ["list.pem", "list.der"] {
        assert_eq!(with(&["--crl", list, "good.pem"]), "accepted");
        assert_eq!(with(&["--crl", list, "bad.pem"]), "chain.revoked");
    }
    // Without a list nobody is asked for one; with one that does not cover the certificate it is refused.
    assert_eq!(with(&["bad.pem"]), "accepted");
    place.put(
        "foreign.pem",
        Ca::root("verify other", None).revocation_list(&[], 1, (-1, 60)),
    );
    assert_eq!(
        with(&["--crl", "foreign.pem", "good.pem"]),
        "chain.revocation-unknown"
    );
    place.put("forged.pem", root.twin().revocation_list(&[], 1, (-1, 60)));
    assert_eq!(
        with(&["--crl", "forged.pem", "good.pem"]),
        "chain.revocation-unknown"
    );
    place.put("stale.pem", root.revocation_list(&[], 1, (-60, -1)));
    assert_eq!(
        with(&["--crl", "stale.pem", "good.pem"]),
        "chain.revocation-unknown"
    );
    // Any list that counts revokes.
    place.put("empty.pem", root.revocation_list(&[], 9, (-1, 60)));
    assert_eq!(
        with(&["--crl", "empty.pem", "--crl", "list.pem", "bad.pem"]),
        "chain.revoked"
    );
}

/// CPU time of a process that has ended, from what bash says of its children.
fn cpu(place: &Path, arguments: &[&str]) -> (Duration, String) {
    let script = "TIMEFORMAT='%U %S'; time \"$@\"";
    let output = Command::new("bash")
        .current_dir(place)
        .args([
            "-c",
            script,
            "bash",
            env!("CARGO_BIN_EXE_countersign"),
            "--json",
            "verify",
        ])
        .args(arguments)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = errors.lines().last().unwrap();
    let seconds: f64 = last.split(' ').map(|n| n.parse::<f64>().unwrap()).sum();
    (
        Duration::from_secs_f64(seconds),
        String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

#[test]
fn a_hostile_heap_of_certificates_costs_little() {
    let place = Place::new();
    let root = Ca::root("verify root", None);
    let device_ca = root.below("verify issuing", None);
    let device = device_ca.issue(&Leaf::named("d1"), &[]);
    place.put("root.pem", &root.pem);
    place.put("d1.pem", &device.pem);
    // 300 that bear the issuer's name, by another key each; a ring of ten; and a thousand authorities of the root's name.
    let twins: String = (0..300).map(|_| device_ca.twin().pem).collect();
    let ring: Vec<Ca> = (0..10).map(|n| Ca::root(&format!("ring {n}"), None)).collect();
    let ring: String = ring.iter().map(|ca| ca.pem.clone()).collect();
    place.put("heap.pem", format!("{twins}{ring}"));
    place.put(
        "twins.pem",
        (0..1000).map(|_| root.twin().pem).collect::<String>(),
    );
    let (baseline, _) = cpu(place.0.path(), &["--anchors", "root.pem", "d1.pem"]);
    let arguments = [
        "--anchors",
        "root.pem",
        "--anchors",
        "twins.pem",
        "--intermediates",
        "heap.pem",
        "d1.pem",
    ];
    let (spent, answer) = cpu(place.0.path(), &arguments);
    assert!(answer.contains("\"accepted\": false"), "{answer}");
    // Reading 1,311 certificates is part of it.
    let bound = baseline + Duration::from_secs(1);
    assert!(spent < bound, "{spent:?}, and {baseline:?} without the heap");
}
