//! Manifests of secure elements, signed by OpenSSL as a manufacturer would.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use countersign_testkit::pki::{Ca, Identity, Leaf};
use countersign_testkit::server::Server;
use serde_json::{Value, json};

struct Place {
    folder: tempfile::TempDir,
    server: Server,
}

fn openssl(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("openssl").args(arguments).output().unwrap();
    assert!(output.status.success(), "openssl {arguments:?}: {output:?}");
    output.stdout
}

/// r and s of an ECDSA-Sig-Value, each in 32 octets (RFC 7518 section 3.4).
fn fixed(der: &[u8]) -> Vec<u8> {
    let mut rest = &der[2..];
    let mut out = Vec::new();
    for _ in 0..2 {
        let length = usize::from(rest[1]);
        let number: Vec<u8> = rest[2..2 + length]
            .iter()
            .copied()
            .skip_while(|b| *b == 0)
            .collect();
        out.extend(std::iter::repeat_n(0, 32 - number.len()));
        out.extend(number);
        rest = &rest[2 + length..];
    }
    out
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_countersign"));
        let server = Server::start(program, &folder.path().join("data"), "").unwrap();
        Self { folder, server }
    }

    fn text(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        std::fs::write(self.folder.path().join(name), text).unwrap();
        self.text(name)
    }

    /// A manufacturer's certificate, self-signed by OpenSSL for some days, and its thumbprint.
    fn signer(&self, name: &str, days: &str, curve: &str) -> String {
        let (key, certificate) = (
            self.text(&format!("{name}.key")),
            self.text(&format!("{name}.crt")),
        );
        openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            &format!("ec_paramgen_curve:{curve}"),
            "-nodes",
            "-keyout",
            &key,
            "-subj",
            "/O=Maker/CN=Manifest signer",
            "-days",
            days,
            "-addext",
            "keyUsage=critical,digitalSignature",
            "-out",
            &certificate,
        ]);
        certificate
    }

    /// An entry of a manifest, signed by `signer`, with what is changed.
    fn entry(&self, signer: &str, header: &Value, payload: &Value) -> Value {
        let certificate = openssl(&[
            "x509",
            "-in",
            &self.text(&format!("{signer}.crt")),
            "-outform",
            "DER",
        ]);
        let mut protected = json!({
            "typ": "JWT", "alg": "ES256",
            "x5t#S256": URL_SAFE_NO_PAD.encode(
                hex::decode(countersign_testkit::pki::sha256_hex(&certificate)).unwrap()),
        });
        for (k, v) in header.as_object().unwrap() {
            protected[k] = v.clone();
        }
        let protected = URL_SAFE_NO_PAD.encode(protected.to_string());
        let encoded = URL_SAFE_NO_PAD.encode(payload.to_string());
        let content = self.write("content", format!("{protected}.{encoded}"));
        let signature = openssl(&[
            "dgst",
            "-sha256",
            "-sign",
            &self.text(&format!("{signer}.key")),
            &content,
        ]);
        json!({
            "payload": encoded, "protected": protected, "header": { "uniqueId": payload["uniqueId"] },
            "signature": URL_SAFE_NO_PAD.encode(fixed(&signature)),
        })
    }

    fn import(&self, entries: &[Value], signer: &str, more: &[&str]) -> (bool, Value, String) {
        let file = self.write("manifest.json", Value::from(entries).to_string());
        let signer = self.text(&format!("{signer}.crt"));
        let mut arguments = vec!["--json", "device", "import-manifest", &file, "--signer", &signer];
        arguments.extend(more);
        let output = self.server.cli(&arguments).unwrap();
        (
            output.status.success(),
            serde_json::from_slice(&output.stdout).unwrap_or(Value::Null),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }
}

/// What a manufacturer tells of one element: slot 0 has a certificate, slot 1 only a key.
fn element(id: &str, identity: &Identity, chain: &[&Ca]) -> Value {
    let key = countersign_testkit::pki::p256_point(identity);
    let (x, y) = (
        URL_SAFE_NO_PAD.encode(&key[1..33]),
        URL_SAFE_NO_PAD.encode(&key[33..]),
    );
    let mut x5c = vec![STANDARD.encode(&identity.chain[0])];
    x5c.extend(chain.iter().map(|ca| STANDARD.encode(ca.certificate())));
    json!({
        "version": 3, "model": "ATECC608C", "partNumber": "P", "groupId": "G",
        "provisioningTimestamp": "2026-11-01T12:00:00.000Z", "uniqueId": id,
        "publicKeySet": { "keys": [
            { "kid": "0", "kty": "EC", "crv": "P-256", "x": x, "y": y, "x5c": x5c },
            { "kid": "1", "kty": "EC", "crv": "P-256", "x": x, "y": y },
        ] },
    })
}

#[test]
fn elements_become_devices_of_a_batch_and_bad_entries_are_refused_by_name() {
    let place = Place::new();
    place.signer("maker", "30", "P-256");
    place.signer("other", "30", "P-256");
    place.signer("p384", "30", "P-384");
    let ca = Ca::root("maker root", None);
    let elements: Vec<(String, Identity)> = (0..12)
        .map(|n| {
            let id = format!("0123f1822c38dd7a{n:02x}");
            let identity = ca.issue(&Leaf::named(&id), &[]);
            (id, identity)
        })
        .collect();
    let payload = |n: usize| element(&elements[n].0, &elements[n].1, &[&ca]);
    place
        .server
        .cli_ok(&[
            "factory",
            "batch",
            "add",
            "B-1",
            "--model",
            "pump",
            "--profile",
            "factory",
            "--id-pattern",
            "0123*",
            "--quota",
            "3",
        ])
        .unwrap();
    let good = |n: usize| place.entry("maker", &json!({}), &payload(n));
    let (done, answer, words) = place.import(&[good(0), good(1)], "maker", &["--batch", "B-1"]);
    assert!(done, "{words}");
    assert_eq!(
        (&answer["added"], &answer["credentials_added"]),
        (&json!(2), &json!(2))
    );
    // Again changes nothing.
    let (done, answer, _) = place.import(&[good(0), good(1)], "maker", &["--batch", "B-1"]);
    assert!(done && answer["unchanged"] == json!(2), "{answer}");
    let path = format!("/tenants/default/devices/{}", elements[0].0);
    let device = place.server.ask("GET", &path, None).unwrap();
    let credential = &device["credentials"][0];
    assert_eq!(
        (&credential["custody"], &credential["kind"], &credential["state"]),
        (&json!("declared"), &json!("factory"), &json!("active"))
    );
    assert_eq!(
        (&device["batch"], &device["device"]["model"]),
        (&json!("B-1"), &json!("pump"))
    );

    // Each fault by itself, beside a good entry that is taken all the same.
    let change = |mut entry: Value, field: &str, value: Value| {
        entry[field] = value;
        entry
    };
    let mut other_id = good(3);
    other_id["header"]["uniqueId"] = json!("0123ffffffffffff03");
    let mut no_certificate = payload(4);
    no_certificate["publicKeySet"]["keys"][0]["x5c"] = json!([]);
    let mut other_key = payload(5);
    other_key["publicKeySet"]["keys"][0]["x5c"] = payload(6)["publicKeySet"]["keys"][0]["x5c"].clone();
    let stranger = Ca::root("another root", None);
    let other_issuer = element(&elements[7].0, &elements[7].1, &[&stranger]);
    let outside = {
        let identity = ca.issue(&Leaf::named("ff"), &[]);
        element("ff00", &identity, &[&ca])
    };
    let no_id = {
        let identity = ca.issue(&Leaf::named("x"), &[]);
        element("a/b", &identity, &[&ca])
    };
    let clone = element("0123f1822c38dd7aee", &elements[0].1, &[&ca]);
    let bad: Vec<(Value, &str)> = vec![
        (
            change(good(3), "payload", good(4)["payload"].clone()),
            "signature does not hold",
        ),
        (
            place.entry("other", &json!({}), &payload(3)),
            "another certificate than --signer",
        ),
        (
            place.entry("maker", &json!({ "alg": "none" }), &payload(3)),
            "only ES256",
        ),
        (
            place.entry("maker", &json!({ "crit": ["x"] }), &payload(3)),
            "critical",
        ),
        (change(good(3), "signature", json!("!")), "not of the form"),
        (other_id, "its header says"),
        (
            place.entry("maker", &json!({}), &no_certificate),
            "no certificate",
        ),
        (place.entry("maker", &json!({}), &other_key), "for another key"),
        (
            place.entry("maker", &json!({}), &other_issuer),
            "not issued by the one beside it",
        ),
        (
            place.entry("maker", &json!({}), &outside),
            "does not fit the pattern",
        ),
        (place.entry("maker", &json!({}), &no_id), "device id contains"),
        (
            place.entry("maker", &json!({}), &clone),
            "certificate is registered for device",
        ),
    ];
    let mut entries: Vec<Value> = bad.iter().map(|(e, _)| e.clone()).collect();
    entries.push(good(2));
    let (done, answer, words) = place.import(&entries, "maker", &["--batch", "B-1"]);
    assert!(!done);
    assert_eq!(
        (&answer["added"], &answer["credentials_added"]),
        (&json!(1), &json!(1))
    );
    let refused = answer["refused"].as_array().unwrap();
    assert_eq!(refused.len(), bad.len(), "{words}");
    for (_, word) in &bad {
        assert!(
            refused.iter().any(|r| r[1].as_str().unwrap().contains(word)),
            "{word}: {answer}"
        );
    }
    // Beyond the quota, and nothing of what was refused is there.
    let (done, answer, _) = place.import(&[good(8)], "maker", &["--batch", "B-1"]);
    assert!(
        !done && answer["refused"][0][1].as_str().unwrap().contains("quota"),
        "{answer}"
    );
    let status = place.server.ask("GET", "/status", None).unwrap();
    assert_eq!(
        (&status["devices"], &status["credentials"]),
        (&json!(3), &json!(3))
    );

    // A signer that is not in force, or has another kind of key, takes the whole with it.
    let (done, _, words) = place.import(&[good(8)], "p384", &[]);
    assert!(
        !done && words.contains("no P-256 key") && words.contains("hint: "),
        "{words}"
    );
    let expired = Ca::root("maker", None).issue(
        &Leaf {
            days: (-9, -1),
            ..Leaf::named("signer")
        },
        &[],
    );
    place.write("expired.crt", &expired.pem);
    let (done, _, words) = place.import(&[good(8)], "expired", &[]);
    assert!(!done && words.contains("is valid from"), "{words}");
    let garbage = place.write("manifest.json", "{}");
    let signer = place.text("maker.crt");
    let output = place
        .server
        .cli(&["device", "import-manifest", &garbage, "--signer", &signer])
        .unwrap();
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("is no manifest"),
        "{output:?}"
    );
    let status = place.server.ask("GET", "/status", None).unwrap();
    assert_eq!(status["credentials"], json!(3));

    // Without a batch, with a model, and the id from the certificate.
    let named = ca.issue(&Leaf::named("sn-7"), &[]);
    let entry = place.entry("maker", &json!({}), &element("0123ab", &named, &[&ca]));
    let (done, _, words) = place.import(
        &[entry],
        "maker",
        &["--model", "valve", "--identity-rule", "common-name", "--key", "0"],
    );
    assert!(done, "{words}");
    let device = place
        .server
        .ask("GET", "/tenants/default/devices/sn-7", None)
        .unwrap();
    assert_eq!(
        (&device["device"]["model"], &device["batch"]),
        (&json!("valve"), &Value::Null)
    );
    // What was imported into a batch is revoked with it.
    let text = place
        .server
        .cli_ok(&["credential", "revoke", "--batch", "B-1"])
        .unwrap();
    assert!(text.contains("3 certificate(s) revoked"), "{text}");
}
