//! The CA as a process of its own, asked by a hostile control process: this test speaks the socket's protocol itself, and
//! tries everything that it could be asked.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign_factory::{CertificateRequest, SoftwareKey, renewal_proof};
use countersign_identity::{CertificateFacts, DeviceId};
use countersign_testkit::ca::{CaProcess, exchange};
use countersign_testkit::softhsm::{self, Softhsm};
use serde_json::{Value, json};

/// A CA that answers, with what a hostile control process would ask.
struct Ca {
    folder: tempfile::TempDir,
    process: CaProcess,
}

impl std::ops::Deref for Ca {
    type Target = CaProcess;
    fn deref(&self) -> &CaProcess {
        &self.process
    }
}

impl std::ops::DerefMut for Ca {
    fn deref_mut(&mut self) -> &mut CaProcess {
        &mut self.process
    }
}

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_countersign"))
}

impl Ca {
    /// A CA with the authorities `fleet`, `lab` of the same tenant, and `other` of another one, running.
    fn new(settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut process = CaProcess::new(program(), &folder.path().join("ca"));
        if !settings.is_empty() {
            std::fs::write(process.path("ca.toml"), settings).unwrap();
        }
        process.ok(&["authority", "add", "fleet"]);
        process.ok(&["authority", "add", "lab"]);
        process.ok(&["authority", "add", "other", "--tenant", "acme"]);
        process.start();
        Self { folder, process }
    }

    /// Asks for a certificate on some evidence: DER, or the code of the refusal.
    fn issue(&self, key: &SoftwareKey, profile: &str, evidence: Value) -> Result<Vec<u8>, String> {
        self.issue_request(&request(key), profile, evidence)
    }

    fn issue_request(&self, csr: &[u8], profile: &str, evidence: Value) -> Result<Vec<u8>, String> {
        outcome(&self.ask(&issue("fleet", csr, profile, evidence)))
    }

    fn end(&self, certificate: &[u8], how: &str) -> Value {
        self.end_for(certificate, how, "key-compromise")
    }

    fn end_for(&self, certificate: &[u8], how: &str, reason: &str) -> Value {
        let serial = serial(certificate);
        self.ask(&json!({
            "type": "end", "authority": "fleet",
            "certificates": [{ "serial": serial, "how": how, "reason": reason }],
        }))
    }
}

fn serial(certificate: &[u8]) -> String {
    CertificateFacts::parse(certificate).unwrap().serial
}

fn key() -> SoftwareKey {
    SoftwareKey::generate().unwrap()
}

/// A request for a key, DER. What it names is wishes.
fn request(key: &SoftwareKey) -> Vec<u8> {
    let pem = CertificateRequest::create(key, &DeviceId::new("wishes").unwrap()).unwrap();
    CertificateRequest::parse(pem.as_bytes()).unwrap().der().to_vec()
}

fn b64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

fn issue(authority: &str, csr: &[u8], profile: &str, evidence: Value) -> Value {
    json!({
        "type": "issue", "authority": authority, "request": b64(csr), "profile": profile, "evidence": evidence,
    })
}

fn outcome(answer: &Value) -> Result<Vec<u8>, String> {
    match answer["type"].as_str().unwrap() {
        "issued" => Ok(STANDARD.decode(answer["certificate"].as_str().unwrap()).unwrap()),
        "refused" => {
            assert!(answer["status"].as_u64().unwrap() >= 400, "{answer}");
            Err(answer["code"].as_str().unwrap().to_owned())
        }
        other => panic!("{other}: {answer}"),
    }
}

fn by_batch(device: &str) -> Value {
    json!({ "kind": "batch", "device": device })
}

fn by_certificate(certificate: &[u8], proof: Option<&[u8]>) -> Value {
    match proof {
        None => json!({ "kind": "certificate", "certificate": b64(certificate) }),
        Some(proof) => json!({ "kind": "certificate", "certificate": b64(certificate), "proof": b64(proof) }),
    }
}

fn refused(result: Result<Vec<u8>, String>, code: &str) {
    assert_eq!(result.map(|der| der.len()), Err(code.to_owned()));
}

fn text_of(folder: &Path, der: &[u8]) -> String {
    let path = folder.join("x.der");
    std::fs::write(&path, der).unwrap();
    let output = Command::new("openssl")
        .args(["x509", "-inform", "DER", "-noout", "-text", "-in"])
        .arg(path)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn what_is_no_request_gets_no_certificate_and_does_no_harm() {
    let ca = Ca::new("");
    ca.batch("b", "SN-*", 10, &[]);
    let good = issue("fleet", &request(&key()), "operational", by_batch("SN-1"));
    let with = |change: &dyn Fn(&mut Value)| {
        let mut call = json!({ "version": 1, "request": good });
        change(&mut call);
        call.to_string().into_bytes()
    };
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"".to_vec(), "malformed"),
        (b"hello".to_vec(), "malformed"),
        (b"{}".to_vec(), "malformed"),
        (b"[1]".to_vec(), "malformed"),
        (with(&|c| c["version"] = json!(2)), "version"),
        (with(&|c| c["version"] = json!(-1)), "malformed"),
        (with(&|c| c["more"] = json!(1)), "malformed"),
        (with(&|c| c["request"]["type"] = json!("mint")), "malformed"),
        // A grant, as it would be if there were such a thing: it is no part of the protocol.
        (
            with(&|c| c["request"]["grant"] = json!({ "tenant": "default", "device": "SN-1" })),
            "malformed",
        ),
        (
            with(&|c| c["request"]["evidence"]["kind"] = json!("operator")),
            "malformed",
        ),
        (
            with(&|c| c["request"]["evidence"]["quota"] = json!(100)),
            "malformed",
        ),
        (
            with(&|c| c["request"]["evidence"]["device"] = json!("../SN-1")),
            "malformed",
        ),
        (with(&|c| c["request"]["request"] = json!("!!")), "malformed"),
        (with(&|c| c["request"]["request"] = json!("")), "request"),
        (
            with(&|c| c["request"]["request"] = json!(b64(b"not a request"))),
            "request",
        ),
        (
            with(&|c| c["request"]["authority"] = json!("nobody")),
            "no-authority",
        ),
        (
            with(&|c| c["request"]["authority"] = json!("../fleet")),
            "malformed",
        ),
        (
            with(&|c| c["request"]["profile"] = json!("nothing")),
            "no-profile",
        ),
    ];
    for (body, code) in cases {
        let answer = ca.raw(&body).unwrap();
        let text = String::from_utf8_lossy(&body).into_owned();
        assert_eq!(
            (&answer["type"], &answer["code"]),
            (&json!("refused"), &json!(code)),
            "{text}: {answer}"
        );
    }
    // A frame that says it is huge takes no memory and no time; a cut one, nothing.
    let mut stream = ca.connect();
    stream.write_all(&[0xff; 4]).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(
        String::from_utf8_lossy(&answer).contains("too large"),
        "{answer:?}"
    );
    let mut stream = ca.connect();
    stream.write_all(&[0, 0, 1, 0, b'x']).unwrap();
    drop(stream);
    // Silent connections up to the limit do not keep the CA's operator out, and go away again.
    let silent: Vec<_> = (0..40).map(|_| ca.connect()).collect();
    ca.batch("c", "X-*", 1, &[]);
    drop(silent);
    assert_eq!(ca.count(), 0);
    let started = Instant::now();
    loop {
        // The threads of the silent ones end on their own time.
        if let Some(answer) = ca.raw(&with(&|_| {})) {
            break assert_eq!(answer["type"], "issued", "{answer}");
        }
        assert!(started.elapsed() < Duration::from_secs(10));
    }
    assert_eq!(ca.count(), 1);
}

#[test]
fn a_batch_gives_what_its_operator_made_it_for_and_nothing_else() {
    let ca = Ca::new("");
    ca.batch("b", "SN-????", 3, &[]);
    ca.batch("f", "SN-*", 1, &["--profile", "factory"]);
    // Outside the pattern, another profile, another authority, a batch that is not there.
    refused(ca.issue(&key(), "operational", by_batch("XX-0001")), "no-batch");
    refused(ca.issue(&key(), "operational", by_batch("SN-00011")), "no-batch");
    let named = |device: &str, batch: &str| json!({ "kind": "batch", "device": device, "batch": batch });
    refused(ca.issue(&key(), "operational", named("XX-0001", "b")), "pattern");
    refused(ca.issue(&key(), "operational", named("SN-0001", "f")), "no-batch");
    refused(
        ca.issue(&key(), "operational", named("SN-0001", "none")),
        "no-batch",
    );
    refused(
        outcome(&ca.ask(&issue(
            "other",
            &request(&key()),
            "operational",
            by_batch("SN-0001"),
        ))),
        "no-batch",
    );
    assert_eq!(ca.count(), 0);

    // One id, one key; the same key again is the same certificate and costs nothing.
    let mine = key();
    let first = ca.issue(&mine, "operational", by_batch("SN-0001")).unwrap();
    for _ in 0..5 {
        assert_eq!(
            ca.issue(&mine, "operational", by_batch("SN-0001")).unwrap(),
            first
        );
    }
    refused(
        ca.issue(&key(), "operational", by_batch("SN-0001")),
        "has-another-key",
    );
    refused(
        ca.issue(&mine, "operational", by_batch("SN-0002")),
        "key-of-other",
    );
    // "It lapsed, another one": counted like any other.
    for left in [2, 1] {
        let last = ca.issue(&mine, "operational", by_batch("SN-0001")).unwrap();
        assert_eq!(ca.end(&last, "lapsed")["ended"], 1);
        assert!(
            ca.issue(&mine, "operational", by_batch("SN-0001")).is_ok(),
            "{left}"
        );
    }
    let last = ca.issue(&mine, "operational", by_batch("SN-0001")).unwrap();
    ca.end(&last, "lapsed");
    refused(ca.issue(&mine, "operational", by_batch("SN-0001")), "quota");
    refused(ca.issue(&key(), "operational", by_batch("SN-0003")), "quota");
    assert_eq!(ca.count(), 3);
    ca.ok(&["batch", "close", "f"]);
    refused(ca.issue(&key(), "factory", by_batch("SN-0009")), "no-batch");
    let list = ca.ok(&["batch", "list"]);
    assert_eq!(
        (&list[0]["used"], &list[0]["quota"]),
        (&json!(3), &json!(3)),
        "{list}"
    );
    // A closed authority issues nothing, whatever speaks for it.
    ca.batch("g", "G-*", 5, &[]);
    ca.ok(&["authority", "close", "fleet"]);
    refused(
        ca.issue(&key(), "operational", by_batch("G-1")),
        "authority-closed",
    );
}

#[test]
fn a_quota_holds_against_racing_connections() {
    let ca = Ca::new("connections_max = 64\n");
    ca.batch("b", "SN-*", 7, &[]);
    let won: usize = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..48)
            .map(|n| {
                let ca = &ca;
                scope.spawn(move || {
                    let result = ca.issue(&key(), "operational", by_batch(&format!("SN-{n}")));
                    if let Err(code) = &result {
                        assert_eq!(code, "quota");
                    }
                    usize::from(result.is_ok())
                })
            })
            .collect();
        racers.into_iter().map(|r| r.join().unwrap()).sum()
    });
    assert_eq!((won, ca.count()), (7, 7));
    // And one id raced for by many keys is one key's.
    ca.batch("c", "ONE", 100, &[]);
    let won: usize = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..24)
            .map(|_| scope.spawn(|| usize::from(ca.issue(&key(), "operational", by_batch("ONE")).is_ok())))
            .collect();
        racers.into_iter().map(|r| r.join().unwrap()).sum()
    });
    assert_eq!((won, ca.count()), (1, 8));
}

#[test]
fn no_request_brings_about_a_ca_or_a_server_certificate() {
    let ca = Ca::new("");
    ca.batch("b", "*", 10, &[]);
    // A request that wishes for everything: a CA, a server, every name.
    let folder = ca.folder.path();
    let config = "[req]\ndistinguished_name=dn\nreq_extensions=x\n[dn]\n[x]\nbasicConstraints=critical,CA:TRUE\n\
                  keyUsage=critical,keyCertSign,cRLSign\nextendedKeyUsage=serverAuth,OCSPSigning\n\
                  subjectAltName=DNS:gate.example.com,IP:127.0.0.1,URI:urn:dev:SN-9\n";
    std::fs::write(folder.join("req.conf"), config).unwrap();
    let out = Command::new("openssl")
        .args([
            "req",
            "-new",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            "/dev/null",
        ])
        .args([
            "-subj",
            "/CN=platform Root CA/O=everything",
            "-outform",
            "DER",
            "-config",
        ])
        .arg(folder.join("req.conf"))
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    for (device, profile) in [("localhost", "operational"), ("127.0.0.1", "operational")] {
        let text = match ca.issue_request(&out.stdout, profile, by_batch(device)) {
            Ok(der) => text_of(folder, &der),
            // The same key is one device's.
            Err(code) => {
                assert_eq!(code, "key-of-other");
                continue;
            }
        };
        for wish in [
            "CA:TRUE",
            "Certificate Sign",
            "CRL Sign",
            "Web Server",
            "OCSP Signing",
            "DNS:",
            "URI:",
            "everything",
        ] {
            assert!(!text.contains(wish), "{wish}: {text}");
        }
        assert!(
            text.contains("TLS Web Client Authentication") && text.contains("CN = localhost"),
            "{text}"
        );
    }
    // Weak keys and requests that their key did not sign.
    let weak = Command::new("openssl")
        .args([
            "req",
            "-new",
            "-newkey",
            "rsa:1024",
            "-nodes",
            "-keyout",
            "/dev/null",
            "-subj",
            "/CN=x",
            "-outform",
            "DER",
        ])
        .output()
        .unwrap();
    refused(
        ca.issue_request(&weak.stdout, "operational", by_batch("weak")),
        "request",
    );
    let mut forged = request(&key());
    let at = forged.len() - 1;
    forged[at] ^= 1;
    refused(
        ca.issue_request(&forged, "operational", by_batch("forged")),
        "request",
    );
    assert_eq!(ca.count(), 1);
}

#[test]
fn a_certificate_is_evidence_only_for_whoever_holds_its_key() {
    let ca = Ca::new("");
    ca.batch("b", "SN-*", 10, &[]);
    ca.batch("f", "F-*", 10, &["--profile", "factory"]);
    let (victim, attacker) = (key(), key());
    let certificate = ca.issue(&victim, "operational", by_batch("SN-1")).unwrap();
    let csr = request(&attacker);
    let try_with =
        |proof: Option<&[u8]>| ca.issue_request(&csr, "operational", by_certificate(&certificate, proof));
    // Public: everybody has it. Without its key it is worth nothing.
    refused(try_with(None), "not-proven");
    refused(try_with(Some(b"")), "not-proven");
    let by_attacker = renewal_proof::create(&attacker, &certificate, &csr).unwrap();
    refused(try_with(Some(&by_attacker)), "not-proven");
    // A proof that the victim made for a request of its own does not speak for another one, nor for another certificate.
    let next = key();
    let victims_csr = request(&next);
    let proof = renewal_proof::create(&victim, &certificate, &victims_csr).unwrap();
    refused(try_with(Some(&proof)), "not-proven");
    let other = ca.issue(&attacker, "operational", by_batch("SN-2")).unwrap();
    refused(
        ca.issue_request(&victims_csr, "operational", by_certificate(&other, Some(&proof))),
        "not-proven",
    );
    // One of another CA, and bytes that are none.
    let foreign = countersign_testkit::pki::self_signed("SN-1");
    refused(
        ca.issue(&attacker, "operational", by_certificate(&foreign.chain[0], None)),
        "not-issued-here",
    );
    refused(
        ca.issue(&attacker, "operational", by_certificate(b"x", None)),
        "not-issued-here",
    );
    let mut touched = certificate.clone();
    *touched.last_mut().unwrap() ^= 1;
    refused(
        ca.issue(&victim, "operational", by_certificate(&touched, None)),
        "not-issued-here",
    );
    // For another authority it is another tenant's.
    let elsewhere = issue(
        "other",
        &request(&victim),
        "operational",
        by_certificate(&certificate, None),
    );
    refused(outcome(&ca.ask(&elsewhere)), "not-issued-here");
    // From an operational certificate never to a factory one, which has no end; the other way is what it is for.
    refused(
        ca.issue(&victim, "factory", by_certificate(&certificate, None)),
        "profile-step",
    );
    let born = key();
    let factory = ca.issue(&born, "factory", by_batch("F-1")).unwrap();
    assert!(
        ca.issue(&born, "operational", by_certificate(&factory, None))
            .is_ok()
    );
    let before = ca.count();

    // The victim itself: the same key is answered with the same certificate, a proven new key with a new one, once.
    assert_eq!(
        ca.issue(&victim, "operational", by_certificate(&certificate, None))
            .unwrap(),
        certificate
    );
    let renew = || {
        ca.issue_request(
            &victims_csr,
            "operational",
            by_certificate(&certificate, Some(&proof)),
        )
    };
    let renewed = renew().unwrap();
    assert_ne!(renewed, certificate);
    assert!(text_of(ca.folder.path(), &renewed).contains("CN = SN-1"));
    for _ in 0..3 {
        assert_eq!(
            renew().unwrap(),
            renewed,
            "a recorded request is answered with what it was answered with"
        );
    }
    assert_eq!(ca.count(), before + 1);
    // A rotation: another authority takes the old one's certificates as evidence, for the operator says that it succeeds it.
    ca.ok(&["authority", "add", "next", "--succeeds", "fleet"]);
    let moved = request(&key());
    let word = renewal_proof::create(&next, &renewed, &moved).unwrap();
    let rotate = issue(
        "next",
        &moved,
        "operational",
        by_certificate(&renewed, Some(&word)),
    );
    assert_eq!(ca.ask(&rotate)["authority"], "next");
    assert_eq!(ca.count(), before + 2);
    // Once that one has ended, the record mints no further one.
    ca.end(&renewed, "superseded");
    refused(renew(), "not-the-newest");
    assert_eq!(ca.count(), before + 2);
}

/// What a certificate of the tenant is worth elsewhere than where it was issued, and by other profiles: what the operator said.
#[test]
fn a_certificate_is_evidence_at_its_own_authority_and_for_what_follows_its_profile() {
    let profiles = "[[profiles]]\nname = \"operational\"\n\
                    [[profiles]]\nname = \"factory\"\nkind = \"factory\"\nlifetime_days = 0\n\
                    [[profiles]]\nname = \"second\"\nkind = \"factory\"\nlifetime_days = 0\n\
                    [[profiles]]\nname = \"long\"\nlifetime_days = 3650\nfollows = []\n\
                    [[profiles]]\nname = \"field\"\nlifetime_days = 365\nfollows = [\"second\"]\n";
    let ca = Ca::new(profiles);
    ca.batch("b", "SN-*", 1, &[]);
    ca.batch("f", "F-*", 1, &["--profile", "factory"]);
    ca.batch("s", "S-*", 1, &["--profile", "second"]);
    let (used, born, second) = (key(), key(), key());
    let certificate = ca.issue(&used, "operational", by_batch("SN-1")).unwrap();
    let factory = ca.issue(&born, "factory", by_batch("F-1")).unwrap();
    let of_second = ca.issue(&second, "second", by_batch("S-1")).unwrap();
    let ask = |authority: &str, key: &SoftwareKey, profile: &str, shown: &[u8]| {
        let evidence = by_certificate(shown, None);
        outcome(&ca.ask(&issue(authority, &request(key), profile, evidence)))
    };
    let every = ["operational", "factory", "second", "long", "field"];
    // Another authority of the same tenant, for nobody said that it succeeds this one.
    for profile in every {
        refused(ask("lab", &used, profile, &certificate), "not-succeeded");
        refused(ask("lab", &born, profile, &factory), "not-succeeded");
    }
    let csr = request(&key());
    let proof = renewal_proof::create(&born, &factory, &csr).unwrap();
    let proven = issue("lab", &csr, "operational", by_certificate(&factory, Some(&proof)));
    refused(outcome(&ca.ask(&proven)), "not-succeeded");
    // At its own: the longer profile follows nothing, another one the other factory's alone, and no certificate leads to a
    // factory's, not even to its own for ever.
    let steps = |authority: &str| {
        for profile in ["factory", "second", "long", "field"] {
            refused(ask(authority, &used, profile, &certificate), "profile-step");
            refused(ask(authority, &born, profile, &factory), "profile-step");
        }
        refused(ask(authority, &second, "second", &of_second), "profile-step");
        refused(ask(authority, &second, "long", &of_second), "profile-step");
    };
    steps("fleet");
    assert_eq!(ca.count(), 3, "nothing was minted");
    assert!(ask("fleet", &born, "operational", &factory).is_ok());
    assert!(ask("fleet", &second, "field", &of_second).is_ok());

    // The operator's word: what was evidence there is evidence here, and nothing else is; not the other way round, nor further.
    ca.ok(&["authority", "succeeds", "lab", "fleet"]);
    ca.ok(&["authority", "succeeds", "lab", "fleet"]);
    ca.ok(&["authority", "add", "third", "--succeeds", "lab"]);
    steps("lab");
    assert_eq!(ca.count(), 5);
    let moved = ask("lab", &used, "operational", &certificate).unwrap();
    assert!(ask("lab", &born, "operational", &factory).is_ok());
    refused(ask("fleet", &used, "operational", &moved), "not-succeeded");
    refused(ask("third", &used, "operational", &certificate), "not-succeeded");
    assert!(ask("third", &used, "operational", &moved).is_ok());
    assert_eq!(ca.count(), 8);
    for (wrong, code) in [
        (["lab", "other"], "tenant acme"),
        (["lab", "lab"], "cannot succeed"),
        (["lab", "none"], "no authority none"),
    ] {
        let output = ca.operator(&[&["authority", "succeeds"], &wrong[..]].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(code), "{said}");
    }
    let db = rusqlite::Connection::open(ca.path("ca.db")).unwrap();
    let logged: i64 = db
        .query_row(
            "SELECT count(*) FROM log WHERE action = 'authority.succeeds'",
            [],
            |r| r.get(0),
        )
        .unwrap();
    assert_eq!(logged, 2);
}

#[test]
fn what_was_revoked_stays_revoked_whatever_the_control_process_says() {
    let mut ca = Ca::new("");
    ca.batch("b", "SN-*", 50, &[]);
    let mine = key();
    let certificate = ca.issue(&mine, "operational", by_batch("SN-1")).unwrap();
    assert_eq!(ca.end_for(&certificate, "revoked", "superseded")["ended"], 1);
    assert_eq!(
        ca.end_for(&certificate, "revoked", "affiliation-changed")["ended"],
        0
    );
    // That somebody else has the key may become known later, and is told once.
    assert_eq!(ca.end(&certificate, "revoked")["ended"], 1);
    assert_eq!(ca.end(&certificate, "revoked")["ended"], 0);
    let try_all = |ca: &Ca| {
        refused(
            ca.issue(&mine, "operational", by_certificate(&certificate, None)),
            "evidence-ended",
        );
        refused(ca.issue(&mine, "operational", by_batch("SN-1")), "revoked");
        refused(ca.issue(&key(), "operational", by_batch("SN-1")), "revoked");
        let csr = request(&key());
        let proof = renewal_proof::create(&mine, &certificate, &csr).unwrap();
        refused(
            ca.issue_request(&csr, "operational", by_certificate(&certificate, Some(&proof))),
            "evidence-ended",
        );
        // There is no way back: softer words change nothing, and others are no words.
        for how in ["lapsed", "superseded"] {
            assert_eq!(ca.end(&certificate, how)["ended"], 0);
        }
        for how in ["issued", "active", "good"] {
            assert_eq!(ca.end(&certificate, how)["code"], "malformed");
        }
        let list = ca.ok(&["certificates", "--device", "SN-1"]);
        assert_eq!(
            (list.as_array().unwrap().len(), &list[0]["state"]),
            (1, &json!("revoked"))
        );
    };
    try_all(&ca);
    ca.kill();
    ca.start();
    try_all(&ca);
    // Nor are lists or answers anybody else's to make: OpenSSL sees it on both.
    let answer = ca.ask(&json!({ "type": "revocation-list", "authority": "fleet", "next_update_hours": 24 }));
    let folder = ca.folder.path();
    std::fs::write(
        folder.join("list"),
        STANDARD.decode(answer["der"].as_str().unwrap()).unwrap(),
    )
    .unwrap();
    let issuing = ca.path("authorities/fleet/issuing.crt");
    let out = Command::new("openssl")
        .args(["crl", "-inform", "DER", "-text", "-in"])
        .arg(folder.join("list"))
        .arg("-CAfile")
        .arg(&issuing)
        .output()
        .unwrap();
    let (text, said) = (
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr),
    );
    let serial = serial(&certificate).to_uppercase();
    assert!(
        said.contains("verify OK") && text.contains(&serial) && text.contains("Key Compromise"),
        "{said}{text}"
    );
    std::fs::write(
        folder.join("c.pem"),
        countersign_factory::request::pem("CERTIFICATE", &certificate),
    )
    .unwrap();
    let out = Command::new("openssl")
        .args(["ocsp", "-no_nonce", "-reqout"])
        .arg(folder.join("q"))
        .arg("-issuer")
        .arg(&issuing)
        .arg("-cert")
        .arg(folder.join("c.pem"))
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    let question = std::fs::read(folder.join("q")).unwrap();
    let answer = ca.ask(&json!({ "type": "ocsp", "request": b64(&question), "next_update_hours": 24 }));
    std::fs::write(
        folder.join("a"),
        STANDARD.decode(answer["der"].as_str().unwrap()).unwrap(),
    )
    .unwrap();
    let out = Command::new("openssl")
        .args(["ocsp", "-respin"])
        .arg(folder.join("a"))
        .arg("-issuer")
        .arg(&issuing)
        .arg("-cert")
        .arg(folder.join("c.pem"))
        .arg("-CAfile")
        .arg(ca.path("authorities/fleet/root.crt"))
        .arg("-verify_other")
        .arg(&issuing)
        .output()
        .unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    assert!(
        text.contains("Response verify OK") && text.contains(": revoked"),
        "{text}"
    );

    // The CA's own operator brings the device back: by a secret, for a new key.
    let secret = |hours: &str| {
        let made = ca.ok(&["secret", "SN-1", "--authority", "fleet", "--hours", hours]);
        made["secret"].as_str().unwrap().to_owned()
    };
    let text = secret("1");
    let by_secret =
        |device: &str, secret: &str| json!({ "kind": "secret", "device": device, "secret": secret });
    refused(
        ca.issue(&mine, "operational", by_secret("SN-1", &text)),
        "revoked",
    );
    let new = key();
    refused(
        ca.issue(&new, "operational", by_secret("SN-1", "wrong")),
        "secret",
    );
    refused(ca.issue(&new, "operational", by_secret("SN-2", &text)), "secret");
    refused(ca.issue(&new, "factory", by_secret("SN-1", &text)), "secret");
    refused(
        outcome(&ca.ask(&issue(
            "other",
            &request(&new),
            "operational",
            by_secret("SN-1", &text),
        ))),
        "secret",
    );
    let issued = ca.issue(&new, "operational", by_secret("SN-1", &text)).unwrap();
    assert_eq!(
        ca.issue(&new, "operational", by_secret("SN-1", &text)).unwrap(),
        issued,
        "a lost answer"
    );
    refused(
        ca.issue(&key(), "operational", by_secret("SN-1", &text)),
        "secret",
    );
    // One certificate per secret, also when the control process says that it lapsed.
    ca.end(&issued, "lapsed");
    refused(ca.issue(&new, "operational", by_secret("SN-1", &text)), "secret");
    let log = ca.log();
    assert!(!log.contains(&text) && log.contains("refused"), "{log}");
}

#[test]
fn a_limit_on_certificates_in_force_and_a_profile_that_demands_new_keys_hold() {
    let profile = "certificates_per_device_max = 2\n[[profiles]]\nname = \"operational\"\n\
                   [[profiles]]\nname = \"fresh\"\nnew_key = true\n";
    let ca = Ca::new(profile);
    ca.batch("b", "SN-*", 50, &[]);
    let first = key();
    let mut last = (ca.issue(&first, "operational", by_batch("SN-1")).unwrap(), first);
    for n in 0..3 {
        let next = key();
        let csr = request(&next);
        let proof = renewal_proof::create(&last.1, &last.0, &csr).unwrap();
        let result = ca.issue_request(&csr, "operational", by_certificate(&last.0, Some(&proof)));
        if n == 0 {
            last = (result.unwrap(), next);
        } else {
            refused(result, "too-many");
        }
    }
    ca.batch("n", "N-*", 50, &["--profile", "fresh"]);
    let mine = key();
    let made = ca.issue(&mine, "fresh", by_batch("N-1")).unwrap();
    ca.end(&made, "lapsed");
    refused(ca.issue(&mine, "fresh", by_batch("N-1")), "new-key-demanded");
}

#[test]
fn what_another_authority_issued_is_not_the_answer_to_who_asks_this_one() {
    let ca = Ca::new("");
    ca.ok(&["authority", "add", "next"]);
    ca.batch("b", "SN-*", 50, &[]);
    ca.ok(&[
        "batch",
        "add",
        "n",
        "--authority",
        "next",
        "--pattern",
        "SN-*",
        "--quota",
        "9",
    ]);
    let mine = key();
    let by_next = || outcome(&ca.ask(&issue("next", &request(&mine), "operational", by_batch("SN-1"))));
    let old = ca.issue(&mine, "operational", by_batch("SN-1")).unwrap();
    ca.ok(&["authority", "close", "fleet"]);
    let new = by_next().unwrap();
    assert_ne!(new, old);
    assert_eq!(by_next().unwrap(), new, "a lost answer");
}

#[test]
fn a_file_in_the_place_of_the_socket_is_not_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let mut ca = CaProcess::new(program(), &folder.path().join("ca"));
    let (mine, link) = (folder.path().join("mine"), folder.path().join("link"));
    std::fs::write(&mine, "mine").unwrap();
    std::os::unix::fs::symlink(&mine, &link).unwrap();
    for place in [&mine, &link] {
        std::fs::write(ca.path("ca.toml"), format!("socket = {place:?}\n")).unwrap();
        let output = Command::new("timeout")
            .arg("20")
            .arg(program())
            .arg("--data")
            .arg(ca.path(""))
            .args(["ca", "serve"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("no socket"), "{said}");
        assert_eq!(std::fs::read_to_string(place).unwrap(), "mine");
    }
    // What a killed CA left behind goes away.
    let socket = folder.path().join("socket");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(UnixStream::connect(&socket).is_err() && socket.exists());
    std::fs::rename(&socket, ca.socket()).unwrap();
    std::fs::write(ca.path("ca.toml"), "").unwrap();
    ca.start();
}

#[test]
fn a_key_that_does_not_answer_holds_up_its_own_authority_only() {
    let mut ca = Ca::new("");
    let batch = "batch add o --authority other --pattern SN-* --quota 5";
    ca.ok(&batch.split(' ').collect::<Vec<_>>());
    ca.kill();
    // As a token that hangs: the key is a pipe that nobody writes to.
    let pipe = ca.path("authorities/fleet/issuing.key");
    std::fs::remove_file(&pipe).unwrap();
    let made = Command::new("mkfifo").args(["-m", "600"]).arg(&pipe).status();
    assert!(made.unwrap().success());
    ca.start();
    let hung: Vec<_> = (0..3)
        .map(|n| {
            let mut stream = ca.connect();
            let call = json!({
                "version": 1,
                "request": issue("fleet", &request(&key()), "operational", by_batch(&format!("SN-{n}"))),
            });
            std::thread::spawn(move || exchange(&mut stream, call.to_string().as_bytes()))
        })
        .collect();
    std::thread::sleep(Duration::from_millis(300));
    let began = Instant::now();
    let asked = issue("other", &request(&key()), "operational", by_batch("SN-1"));
    let certificate = outcome(&ca.ask(&asked)).unwrap();
    // Whose answer an OCSP question wants is known without any key.
    let (issuing, question) = (ca.path("authorities/other/issuing.crt"), ca.path("question"));
    let output = Command::new("openssl")
        .args(["ocsp", "-no_nonce", "-issuer"])
        .arg(issuing)
        .args(["-serial", &format!("0x{}", serial(&certificate)), "-reqout"])
        .arg(&question)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let question = std::fs::read(question).unwrap();
    let answer = ca.ask(&json!({ "type": "ocsp", "request": b64(&question), "next_update_hours": 24 }));
    let der = STANDARD.decode(answer["der"].as_str().unwrap()).unwrap();
    assert!(der.len() > 100, "an answer with a status: {answer}");
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    assert!(hung.iter().any(|h| !h.is_finished()));
    ca.kill();
    for hung in hung {
        let _ = hung.join();
    }
}

#[test]
fn while_a_token_does_not_answer_certificates_are_ended_and_the_operator_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let hsm = Softhsm::new(folder.path());
    let uri = hsm.uri_by(&softhsm::module_that_can_be_held(folder.path()), "fleet");
    let environment = vec![("SOFTHSM2_CONF".into(), hsm.config())];
    let mut process = CaProcess::with_environment(program(), &folder.path().join("ca"), environment);
    let store = [
        "authority",
        "add",
        "fleet",
        "--key-store",
        "pkcs11",
        "--pkcs11-uri",
        &uri,
    ];
    process.ok(&store);
    process.start();
    let ca = Ca { folder, process };
    ca.batch("b", "SN-*", 5, &[]);
    let first = ca.issue(&key(), "operational", by_batch("SN-1")).unwrap();
    let hold = ca.folder.path().join("hold-sign");
    std::fs::write(&hold, "").unwrap();
    let mut stream = ca.connect();
    let wanted = issue("fleet", &request(&key()), "operational", by_batch("SN-2"));
    let call = json!({ "version": 1, "request": wanted }).to_string();
    let hung = std::thread::spawn(move || exchange(&mut stream, call.as_bytes()));
    std::thread::sleep(Duration::from_millis(300));
    let began = Instant::now();
    assert_eq!(ca.end(&first, "revoked")["ended"], 1);
    ca.ok(&["secret", "SN-9", "--authority", "fleet"]);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(!hung.is_finished());
    std::fs::remove_file(&hold).unwrap();
    outcome(&hung.join().unwrap().unwrap()).unwrap();
    assert_eq!(ca.count(), 2);
}

#[test]
fn a_renewal_mints_no_more_for_being_told_that_the_last_one_lapsed() {
    let ca = Ca::new("replay_window_hours = 0\ncertificates_per_device_max = 3\n");
    ca.batch("b", "SN-1", 1, &[]);
    let mine = key();
    let first = ca.issue(&mine, "operational", by_batch("SN-1")).unwrap();
    // It began so long ago that it is due.
    let db = rusqlite::Connection::open(ca.path("ca.db")).unwrap();
    db.busy_timeout(Duration::from_secs(10)).unwrap();
    db.execute("UPDATE certificates SET not_before = 0", []).unwrap();
    let renew = || ca.issue(&mine, "operational", by_certificate(&first, None));
    for how in ["lapsed", "superseded"] {
        let next = renew().unwrap();
        assert_eq!(ca.end(&next, how)["ended"], 1);
    }
    refused(renew(), "too-often");
    assert_eq!(ca.count(), 3);
    // Nor by the next request of the device, for another key.
    let csr = request(&key());
    let proof = renewal_proof::create(&mine, &first, &csr).unwrap();
    refused(
        ca.issue_request(&csr, "operational", by_certificate(&first, Some(&proof))),
        "too-often",
    );
    // What has expired does not count.
    db.execute("UPDATE certificates SET not_after = 1 WHERE state = 'lapsed'", [])
        .unwrap();
    assert!(renew().is_ok());
}

#[test]
fn asking_for_lists_of_another_validity_makes_the_ca_sign_no_more_of_them() {
    let ca = Ca::new("");
    ca.batch("b", "SN-1", 1, &[]);
    let list = |hours: u32| {
        let answer =
            ca.ask(&json!({ "type": "revocation-list", "authority": "fleet", "next_update_hours": hours }));
        answer["der"].as_str().unwrap().to_owned()
    };
    let first = list(24);
    for hours in 1..20 {
        assert!(list(hours) == first, "{hours}");
    }
    // What has ended is on it at once.
    let certificate = ca.issue(&key(), "operational", by_batch("SN-1")).unwrap();
    assert_eq!(ca.end(&certificate, "revoked")["ended"], 1);
    assert!(list(24) != first);
    let db = rusqlite::Connection::open(ca.path("ca.db")).unwrap();
    let signed: i64 = db
        .query_row("SELECT count(*) FROM log WHERE action = 'list.sign'", [], |r| {
            r.get(0)
        })
        .unwrap();
    assert_eq!(signed, 2);
}

#[test]
fn a_kill_loses_no_certificate_and_uses_no_serial_twice() {
    let mut ca = Ca::new("");
    ca.batch("b", "K-*", 100_000, &[]);
    // Key fingerprint → certificate, of everything that was answered; and requests that were not answered.
    let mut answered: HashMap<String, (Vec<u8>, String, Vec<u8>)> = HashMap::new();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..10 {
        let over = AtomicBool::new(false);
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let wait = Duration::from_millis(5 + (seed >> 33) % 120);
        let mut child = ca.take();
        let socket = ca.socket();
        let results: Vec<_> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|worker| {
                    let (over, socket) = (&over, &socket);
                    scope.spawn(move || {
                        let mut done = Vec::new();
                        for n in 0.. {
                            if over.load(Ordering::Relaxed) {
                                break;
                            }
                            let (csr, device) = (request(&key()), format!("K-{round}-{worker}-{n}"));
                            let call = json!({ "version": 1, "request": issue("fleet", &csr, "operational", by_batch(&device)) });
                            let Ok(mut stream) = UnixStream::connect(socket) else {
                                done.push((csr, device, None));
                                break;
                            };
                            let answer = exchange(&mut stream, call.to_string().as_bytes());
                            let is_over = answer.is_none();
                            done.push((csr, device, answer));
                            if is_over {
                                break;
                            }
                        }
                        done
                    })
                })
                .collect();
            std::thread::sleep(wait);
            child.kill().unwrap();
            child.wait().unwrap();
            over.store(true, Ordering::Relaxed);
            workers.into_iter().flat_map(|w| w.join().unwrap()).collect()
        });
        ca.start();
        for (csr, device, answer) in results {
            let again = ca.issue_request(&csr, "operational", by_batch(&device)).unwrap();
            if let Some(answer) = answer {
                assert_eq!(
                    outcome(&answer).unwrap(),
                    again,
                    "round {round}: what was answered is there"
                );
            }
            answered.insert(b64(&csr), (csr, device, again));
        }
    }
    assert!(answered.len() > 20, "{} certificates", answered.len());
    // One certificate per request, however often it was asked; every serial once; the batch counted each.
    let list = ca.ok(&["certificates", "--limit", "1000000"]);
    let list = list.as_array().unwrap();
    assert_eq!(list.len(), answered.len());
    let serials: HashSet<_> = list
        .iter()
        .map(|c| c["serial"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(serials.len(), list.len());
    for (_, _, certificate) in answered.values() {
        assert!(serials.contains(&serial(certificate)));
    }
    assert_eq!(ca.ok(&["batch", "list"])[0]["used"], json!(list.len()));
    let findings = serde_json::from_slice::<Value>(&ca.operator(&["status"]).stdout).unwrap();
    let log = findings
        .as_array()
        .unwrap()
        .iter()
        .find(|f| f["name"] == "log")
        .unwrap();
    assert_eq!(log["ok"], true, "{findings}");
}

/// The page cache survives a kill, so the kill alone proves little: the trace must show the sync before the answer.
#[test]
fn a_certificate_is_synced_before_it_is_answered() {
    let mut ca = Ca::new("");
    ca.batch("b", "SN-*", 10, &[]);
    ca.kill();
    let trace = ca.folder.path().join("trace");
    let mut command = Command::new("strace");
    command.args([
        "-f",
        "-qq",
        "-yy",
        "-s",
        "64",
        "-e",
        "trace=fsync,fdatasync,write,sendto,sendmsg",
        "-o",
    ]);
    command.arg(&trace).arg(program());
    ca.start_with(command);
    for n in 0..5 {
        ca.issue(&key(), "operational", by_batch(&format!("SN-{n}")))
            .unwrap();
    }
    let is_answer = |line: &str| line.contains("UNIX-STREAM") && line.contains("issued");
    let started = Instant::now();
    let text = loop {
        let text = std::fs::read_to_string(&trace).unwrap();
        if text.lines().filter(|l| is_answer(l)).count() >= 5 {
            break text;
        }
        assert!(started.elapsed() < Duration::from_secs(10), "{text}");
    };
    let (mut is_synced, mut answers) = (false, 0);
    for line in text.lines() {
        if line.contains("ca.db-wal") && (line.contains("fsync(") || line.contains("fdatasync(")) {
            is_synced = line.ends_with("= 0") || line.contains("unfinished");
        }
        if is_answer(line) {
            assert!(is_synced, "an answer without a sync before it: {line}");
            (is_synced, answers) = (false, answers + 1);
        }
    }
    assert_eq!(answers, 5);
}

#[test]
fn with_a_clock_that_went_back_nothing_is_signed() {
    let ca = Ca::new("");
    ca.batch("b", "SN-*", 10, &[]);
    let mine = key();
    let certificate = ca.issue(&mine, "operational", by_batch("SN-1")).unwrap();
    let db = rusqlite::Connection::open(ca.path("ca.db")).unwrap();
    db.busy_timeout(Duration::from_secs(10)).unwrap();
    let list = json!({ "type": "revocation-list", "authority": "fleet", "next_update_hours": 1 });
    // As if something had been signed an hour from now.
    db.execute("UPDATE clock SET seen = seen + 3600000", []).unwrap();
    refused(ca.issue(&key(), "operational", by_batch("SN-2")), "clock-behind");
    assert_eq!(ca.ask(&list)["code"], "clock-behind");
    // What was signed is answered, and what must end ends.
    assert_eq!(
        ca.issue(&mine, "operational", by_batch("SN-1")).unwrap(),
        certificate
    );
    assert_eq!(ca.end(&certificate, "revoked")["ended"], 1);
    assert_eq!(ca.count(), 1);
    assert!(String::from_utf8_lossy(&ca.operator(&["status"]).stdout).contains("countersign ca clock reset"));
    // Only the operator at the CA says that the later time was the wrong one, and says why; nobody restarts anything.
    let reset = |reason: &str| ca.operator(&["clock", "reset", "--reason", reason]);
    assert!(!reset(" ").status.success());
    refused(ca.issue(&key(), "operational", by_batch("SN-2")), "clock-behind");
    assert!(reset("the battery was empty").status.success());
    assert!(ca.issue(&key(), "operational", by_batch("SN-2")).is_ok());
    let (action, detail): (String, String) = db
        .query_row(
            "SELECT action, detail FROM log WHERE action LIKE 'clock.%'",
            [],
            |r| Ok((r.get(0)?, r.get(1)?)),
        )
        .unwrap();
    assert!(
        action == "clock.reset" && detail.contains("the battery was empty"),
        "{action} {detail}"
    );
    let findings = ca.operator(&["status"]).stdout;
    assert!(!String::from_utf8_lossy(&findings).contains("clock reset"));
    assert_eq!(ca.ask(&list)["type"], "signed");
    // The store itself refuses what no code of ours would ask for.
    for forbidden in [
        "UPDATE certificates SET state = 'issued', ended = NULL WHERE state = 'revoked'",
        "UPDATE certificates SET state = 'lapsed' WHERE state = 'revoked'",
        "DELETE FROM certificates",
        "UPDATE batches SET used = 0",
        "UPDATE batches SET quota = 1000",
        "UPDATE log SET actor = 'nobody'",
        "DELETE FROM log",
    ] {
        assert!(db.execute(forbidden, []).is_err(), "{forbidden}");
    }
}

#[test]
fn only_users_that_were_named_may_ask() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    const NOBODY: u32 = 65_534;
    let mut ca = Ca::new("");
    let mode = std::fs::metadata(ca.path("ca.sock"))
        .unwrap()
        .permissions()
        .mode()
        & 0o777;
    assert_eq!(
        mode, 0o600,
        "with nobody else named, the kernel lets nobody else near"
    );
    if rustix_uid() != 0 {
        // Only root can become somebody else.
        return;
    }
    ca.kill();
    // As an operator would: a folder for the socket that the other user can enter.
    let place = tempfile::tempdir().unwrap();
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let socket = place.path().join("ca.sock");
    let ask_as = |uid: u32| {
        let script = "import socket,sys,struct\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n\
                      b=b'{\"version\":1,\"request\":{\"type\":\"describe\"}}'\n\
                      try: s.sendall(struct.pack('>I',len(b))+b)\nexcept OSError: pass\nprint(s.recv(65536)[4:].decode())";
        let out = Command::new("python3")
            .args(["-c", script])
            .arg(&socket)
            .uid(uid)
            .gid(uid)
            .output()
            .unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
    };
    let serve = |uids: &str| {
        let text = format!("socket = {socket:?}\ncontrol_uids = {uids}\n");
        std::fs::write(ca.path("ca.toml"), text).unwrap();
        let child = Command::new(program())
            .arg("--data")
            .arg(ca.path(""))
            .args(["ca", "serve"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let started = Instant::now();
        while UnixStream::connect(&socket).is_err() {
            assert!(started.elapsed() < Duration::from_secs(30));
            std::thread::sleep(Duration::from_millis(5));
        }
        child
    };
    for (uids, word) in [
        (format!("[{NOBODY}]"), "described"),
        ("[12345]".to_owned(), "control_uids"),
    ] {
        let mut child = serve(&uids);
        let text = ask_as(NOBODY);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(text.contains(word), "{uids}: {text}");
    }
}

fn rustix_uid() -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").unwrap().uid()
}
