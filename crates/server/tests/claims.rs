//! Claims, keys made by the server, signed time, challengePassword: with curl, OpenSSL and the agent.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use countersign_testkit::agent::Agent;
use countersign_testkit::client::{Attempt, connect};
use countersign_testkit::pki::{self, Ca, Identity, Leaf};
use countersign_testkit::server::{Server, listener};
use serde_json::{Value, json};

struct Place {
    folder: tempfile::TempDir,
    server: Server,
    port: String,
}

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_countersign"))
}

impl Place {
    fn new(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = format!("[enrol]\n{more}{}", listener("enrol"));
        let server = Server::start(program(), &folder.path().join("data"), &config).unwrap();
        let port = server.listener("enrol").unwrap().port().to_string();
        let place = Self { folder, server, port };
        let root = place.server.cli_ok(&["authority", "export", "platform"]).unwrap();
        place.write("root.pem", &root);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).unwrap();
        self.text(name)
    }

    fn show(&self, name: &str, identity: &Identity) -> [String; 4] {
        let certificate = self.write(&format!("{name}.pem"), &identity.pem);
        let key = self.write(&format!("{name}.key"), &identity.key_pem);
        ["--cert".into(), certificate, "--key".into(), key]
    }

    fn curl(&self, path: &str, more: &[&str]) -> (String, Vec<u8>) {
        let root = self.text("root.pem");
        let output = run(Command::new("curl")
            .args([
                "-sS",
                "--cacert",
                &root,
                "-w",
                "\n%{http_code}",
                "--max-time",
                "20",
            ])
            .args(more)
            .arg(format!("https://localhost:{}/.well-known/{path}", self.port)));
        let at = output
            .stdout
            .iter()
            .rposition(|b| *b == b'\n')
            .unwrap_or_else(|| panic!("{output:?}"));
        let status = String::from_utf8(output.stdout[at + 1..].to_vec()).unwrap();
        (status, output.stdout[..at].to_vec())
    }

    /// Posts a request of OpenSSL's with this common name and a new key.
    fn post(&self, operation: &str, name: &str, more: &[&str]) -> (String, String) {
        let (key, csr) = (
            self.text(&format!("{name}.own.key")),
            self.text(&format!("{name}.csr")),
        );
        if !Path::new(&csr).exists() {
            openssl(&[
                "ecparam",
                "-name",
                "prime256v1",
                "-genkey",
                "-noout",
                "-out",
                &key,
            ]);
            let subject = format!("/CN={}", name.split('+').next().unwrap());
            openssl(&[
                "req", "-new", "-key", &key, "-subj", &subject, "-outform", "DER", "-out", &csr,
            ]);
        }
        let body = format!("@{csr}");
        let mut arguments = vec!["-H", "Content-Type: application/pkcs10", "--data-binary", &body];
        arguments.extend(more);
        let (status, body) = self.curl(&format!("est/{operation}"), &arguments);
        (status, String::from_utf8(body).unwrap())
    }

    fn claim(&self, arguments: &[&str]) -> String {
        let all = [&["factory", "claim", "add"], arguments].concat();
        let out = self.server.cli_ok(&all).unwrap();
        out.lines().next().unwrap().to_owned()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let all = [&["--json"], arguments].concat();
        serde_json::from_str(&self.server.cli_ok(&all).unwrap()).unwrap()
    }

    fn devices(&self) -> Vec<String> {
        let answer = self.server.ask("GET", "/tenants/default/devices", None).unwrap();
        let list = answer["devices"].as_array().unwrap();
        list.iter()
            .map(|d| d["id"].as_str().unwrap().to_owned())
            .collect()
    }
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap()
}

fn openssl(arguments: &[&str]) -> Vec<u8> {
    let output = run(Command::new("openssl").args(arguments));
    assert!(output.status.success(), "openssl {arguments:?}: {output:?}");
    output.stdout
}

#[test]
fn a_claims_secret_enrols_the_ids_on_its_list_once_each_and_nobody_else() {
    let place = Place::new("");
    let ids = place.write("ids", "line-1\nline-2\n\nline-3\n");
    let secret = place.claim(&["line", "--ids", &ids, "--model", "thermometer", "--group", "demo"]);
    let user = format!("claim/line:{secret}");
    let refused = |name: &str, user: &str, status: &str, code: &str| {
        let (got, text) = place.post("simpleenroll", name, &["-u", user]);
        assert!(got == status && text.contains(code), "{name}: {got} {text}");
    };
    refused("line-1", "claim/line:wrong", "401", "claim.unknown");
    refused("line-1", &format!("claim/other:{secret}"), "401", "claim.unknown");
    refused("line-9", &user, "403", "claim.not-listed");
    assert_eq!(place.devices(), Vec::<String>::new(), "nothing came of it");

    let (status, first) = place.post("simpleenroll", "line-1", &["-u", &user]);
    assert_eq!(status, "200", "{first}");
    let device = place
        .server
        .ask("GET", "/tenants/default/devices/line-1", None)
        .unwrap();
    assert_eq!(device["device"]["model"], "thermometer");
    assert_eq!(device["device"]["groups"], json!(["demo"]));
    // The same request again: the same certificate. Another key: one enrolment per id.
    assert_eq!(place.post("simpleenroll", "line-1", &["-u", &user]).1, first);
    refused("line-1+again", &user, "403", "claim.enrolled");
    // Until an operator says that the key is lost.
    place.server.cli_ok(&["device", "revoke", "line-1"]).unwrap();
    let (status, text) = place.post("simpleenroll", "line-1+again", &["-u", &user]);
    assert_eq!(status, "200", "{text}");
    // It renews nothing, and opens no session.
    let (status, text) = place.post("simplereenroll", "line-1", &["-u", &user]);
    assert_eq!(status, "403", "{text}");

    // The agent, by the same claim.
    let agent = Agent::new(program(), place.path("line-2"));
    let file = place.write("secret", &secret);
    let (server, root) = (format!("localhost:{}", place.port), place.text("root.pem"));
    agent.ok(&[
        "enrol",
        "--server",
        &server,
        "--platform-root",
        &root,
        "--id",
        "line-2",
        "--claim",
        "line",
        "--secret-file",
        &file,
    ]);
    agent.ok(&["check"]);
    // A listed device that waits for approval waits; one that ended stays ended.
    place
        .server
        .cli_ok(&["device", "add", "line-3", "--state", "pending"])
        .unwrap();
    refused("line-3", &user, "202", "approval");
    place
        .server
        .cli_ok(&["device", "decommission", "line-3", "--reason", "test"])
        .unwrap();
    let (status, text) = place.post("simpleenroll", "line-3", &["-u", &user]);
    assert!(
        status == "400" && text.contains("decommissioned"),
        "{status} {text}"
    );

    // It leaked: one command, and everything that it minted is known and gone.
    let shown = place.json(&["factory", "claim", "show", "line"]);
    assert_eq!(
        (&shown["claim"]["enrolled"], &shown["claim"]["quota"]),
        (&json!(2), &json!(3))
    );
    let minted: Vec<_> = shown["minted"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["device"].clone())
        .collect();
    assert_eq!(minted, [json!("line-1"), json!("line-1"), json!("line-2")]);
    let revoked = place.json(&[
        "factory",
        "claim",
        "revoke",
        "line",
        "--minted",
        "--code",
        "key-compromise",
    ]);
    // Also the one that was revoked already, for no reason that was told.
    assert_eq!(revoked["revoked"], 3, "{revoked}");
    refused("line-1+again", &user, "403", "claim.revoked");
    let (code, _, err) = agent.run(&["check"]);
    assert_eq!(code, 6, "{err}");
    let list = place.json(&["factory", "claim", "list"]);
    assert_eq!(list[0]["state"], "revoked");
}

/// Whoever took the key out of a device may have taken the claim out of its firmware.
#[test]
fn a_claim_does_not_open_an_id_whose_key_is_compromised() {
    let place = Place::new("");
    let ids = place.write("ids", "line-1\nline-2\n");
    let user = format!("claim/line:{}", place.claim(&["line", "--ids", &ids]));
    for id in ["line-1", "line-2"] {
        let (status, text) = place.post("simpleenroll", id, &["-u", &user]);
        assert_eq!(status, "200", "{text}");
    }
    // Lost is not stolen.
    let said = place
        .server
        .cli_ok(&["device", "revoke", "line-2", "--code", "superseded"])
        .unwrap();
    assert!(!said.contains("claim"), "{said}");
    let (status, text) = place.post("simpleenroll", "line-2+again", &["-u", &user]);
    assert_eq!(status, "200", "{text}");
    for (code, device) in [("key-compromise", "line-1"), ("ca-compromise", "line-2")] {
        let said = place
            .server
            .cli_ok(&["device", "revoke", device, "--code", code])
            .unwrap();
        assert!(
            said.contains(&format!("countersign device secret {device}")),
            "{said}"
        );
        let thief = format!("{device}+thief");
        let (status, text) = place.post("simpleenroll", &thief, &["-u", &user]);
        assert!(
            status == "403"
                && text.contains("claim.compromised")
                && text.contains("countersign device secret ID"),
            "{status} {text}"
        );
    }
    let other = format!("claim/other:{}", place.claim(&["other", "--ids", &ids]));
    let (status, text) = place.post("simpleenroll", "line-1+thief", &["-u", &other]);
    assert!(
        status == "403" && text.contains("claim.compromised"),
        "{status} {text}"
    );
    // The operator says which device it is.
    let secret = place.server.cli_ok(&["device", "secret", "line-1"]).unwrap();
    let own = format!("line-1:{}", secret.lines().next().unwrap());
    let (status, text) = place.post("simpleenroll", "line-1+own", &["-u", &own]);
    assert_eq!(status, "200", "{text}");
    let (status, text) = place.post("simpleenroll", "line-1+thief", &["-u", &user]);
    assert!(status == "403" && text.contains("claim."), "{status} {text}");
}

#[test]
fn a_claims_certificate_enrols_by_pattern_up_to_its_quota_and_opens_no_session() {
    let place = Place::new("");
    let bootstrap = pki::self_signed("bootstrap");
    let shown = place.show("bootstrap", &bootstrap);
    let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
    place.claim(&[
        "boot",
        "--id-pattern",
        "SN-2??",
        "--quota",
        "2",
        "--certificate",
        &place.text("bootstrap.pem"),
        "--days",
        "3",
    ]);
    let asks = |name: &str, status: &str, code: &str| {
        let (got, text) = place.post("simpleenroll", name, &shown);
        assert!(got == status && text.contains(code), "{name}: {got} {text}");
    };
    asks("SN-300", "403", "claim.not-listed");
    asks("SN-201", "200", "");
    asks("SN-202", "200", "");
    asks("SN-203", "403", "claim.quota");
    // Not used up by asking again.
    asks("SN-202", "200", "");
    assert_eq!(place.devices(), ["SN-201", "SN-202"]);
    // At the device port it is nobody.
    let seen = Attempt::new(place.server.devices)
        .identity(&bootstrap)
        .send(connect(5, "SN-201"))
        .run();
    assert!(seen.connack() != Some(0) && seen.alert.is_some(), "{seen:?}");
    // Another self-signed certificate is none of the claim's.
    let other = place.show("other", &pki::self_signed("bootstrap"));
    let other: Vec<&str> = other.iter().map(String::as_str).collect();
    let (status, text) = place.post("simpleenroll", "SN-204", &other);
    assert!(status == "403" && text.contains("chain."), "{status} {text}");
    // Whoever has the certificate and not the key does not finish the handshake.
    let stolen = Identity {
        key: pki::self_signed("x").key,
        ..bootstrap.clone()
    };
    let address = format!("127.0.0.1:{}", place.port).parse().unwrap();
    assert_eq!(
        Attempt::new(address).identity(&stolen).send("x").run().alert,
        Some(51)
    );
    place
        .server
        .cli_ok(&["factory", "claim", "revoke", "boot"])
        .unwrap();
    asks("SN-201", "403", "claim.revoked");
}

#[test]
fn a_claim_without_a_list_or_an_end_is_not_made() {
    let place = Place::new("");
    let fails = |arguments: &[&str], word: &str| {
        let all = [&["factory", "claim", "add", "bad"], arguments].concat();
        let output = place.server.cli(&all).unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && text.contains(word),
            "{arguments:?}: {text}"
        );
    };
    fails(&[], "--id");
    let empty = place.write("empty", "\n");
    fails(&["--ids", &empty], "enrol nobody");
    fails(&["--id-pattern", "SN-*"], "--quota");
    fails(&["--id-pattern", "SN-*", "--quota", "0"], "enrol nobody");
    fails(&["--id", "a", "--days", "0"], "1 to 366 days");
    fails(&["--id", "a", "--days", "400"], "1 to 366 days");
    fails(&["--id", "a", "--profile", "nothing"], "no profile");
    let ca = Ca::root("a CA", None);
    fails(
        &["--id", "a", "--certificate", &place.write("ca.pem", &ca.pem)],
        "CA",
    );
    let old = ca.issue(
        &Leaf {
            days: (-9, -1),
            ..Leaf::named("x")
        },
        &[],
    );
    fails(
        &["--id", "a", "--certificate", &place.write("old.pem", &old.pem)],
        "expired",
    );
    place
        .server
        .cli_ok(&["device", "provision", "own", "--out", &place.text("own")])
        .unwrap();
    fails(
        &["--id", "a", "--certificate", &place.text("own/device.crt")],
        "that of device own",
    );
    assert_eq!(place.json(&["factory", "claim", "list"]), json!([]));
    place.claim(&["good", "--id", "a"]);
    let output = place
        .server
        .cli(&["factory", "claim", "add", "good", "--id", "b"])
        .unwrap();
    assert_eq!(output.status.code(), Some(4), "{output:?}");
}

#[test]
fn the_server_makes_a_key_only_where_a_profile_lets_it_and_keeps_it_nowhere() {
    let place = Place::new(
        "[[profiles]]\nname = \"operational\"\n[[profiles]]\nname = \"made\"\nserver_keys = true\n",
    );
    place.server.cli_ok(&["device", "add", "weak-1"]).unwrap();
    let secret = place.server.cli_ok(&["device", "secret", "weak-1"]).unwrap();
    let user = format!("weak-1:{}", secret.lines().next().unwrap());
    let (status, text) = place.post("serverkeygen", "weak-1", &["-u", &user]);
    assert!(
        status == "501" && text.contains("simpleenroll"),
        "{status} {text}"
    );
    let (status, text) = place.post("default.made/serverkeygen", "weak-1", &[]);
    assert_eq!(status, "401", "{text}");

    let (status, text) = place.post(
        "default.made/serverkeygen",
        "weak-1",
        &["-u", &user, "-D", &place.text("head")],
    );
    assert_eq!(status, "200", "{text}");
    let head = std::fs::read_to_string(place.path("head"))
        .unwrap()
        .to_lowercase();
    assert!(
        head.contains("content-type: multipart/mixed; boundary="),
        "{head}"
    );
    let parts: Vec<&str> = text.split("--_countersign_").collect();
    assert_eq!(parts.len(), 4, "{text}");
    let content = |part: &str, kind: &str| {
        let (head, body) = part.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(kind) && head.contains("Content-Transfer-Encoding: base64"),
            "{head}"
        );
        place.write("part.b64", body.trim());
        openssl(&["base64", "-d", "-A", "-in", &place.text("part.b64")])
    };
    // The certificate is for the key; both are what OpenSSL says they are, and let the device in.
    std::fs::write(place.path("made.der"), content(parts[1], "application/pkcs8")).unwrap();
    std::fs::write(place.path("made.p7"), content(parts[2], "smime-type=certs-only")).unwrap();
    assert_eq!(parts[3], "--\r\n");
    let key = openssl(&["pkey", "-inform", "DER", "-in", &place.text("made.der")]);
    std::fs::write(place.path("made.key"), key).unwrap();
    openssl(&[
        "pkcs7",
        "-inform",
        "DER",
        "-in",
        &place.text("made.p7"),
        "-print_certs",
        "-out",
        &place.text("made.pem"),
    ]);
    let of_key = openssl(&["pkey", "-in", &place.text("made.key"), "-pubout"]);
    assert_eq!(
        openssl(&["x509", "-in", &place.text("made.pem"), "-noout", "-pubkey"]),
        of_key
    );
    let mosquitto = run(Command::new("mosquitto_pub")
        .args([
            "-h",
            "localhost",
            "-p",
            &place.server.devices.port().to_string(),
            "-i",
            "weak-1",
            "-q",
            "1",
        ])
        .args([
            "--cafile",
            &place.text("root.pem"),
            "--cert",
            &place.text("made.pem"),
            "--key",
            &place.text("made.key"),
        ])
        .args(["-t", "devices/weak-1/telemetry", "-m", "x"]));
    assert!(mosquitto.status.success(), "{mosquitto:?}");
    // A second time there is another key, so the secret is spent.
    let (status, text) = place.post("default.made/serverkeygen", "weak-1", &["-u", &user]);
    assert_eq!(status, "401", "{text}");

    // The private key is in no file of the platform: neither as DER, nor in base64, nor in its log.
    let der = std::fs::read(place.path("made.der")).unwrap();
    let scalar = der[36..68].to_vec();
    let base64 = parts[1].split("\r\n\r\n").nth(1).unwrap().trim()[60..].to_owned();
    let mut files = vec![place.path("data")];
    let mut seen = 0;
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(std::fs::read_dir(path).unwrap().map(|e| e.unwrap().path()));
            continue;
        }
        seen += 1;
        let bytes = std::fs::read(&path).unwrap();
        let has = |needle: &[u8]| bytes.windows(needle.len()).any(|w| w == needle);
        assert!(!has(&scalar) && !has(base64.as_bytes()), "{}", path.display());
    }
    assert!(seen > 8, "{seen}");
    // A client that wants it encrypted is not answered in clear.
    let config = "[req]\ndistinguished_name=dn\nattributes=attrs\nprompt=no\n[dn]\nCN=weak-1\n[attrs]\n1.2.840.113549.1.9.16.2.37=x\n";
    let config = place.write("req.cnf", config);
    let key = place.text("weak-1.own.key");
    openssl(&[
        "req",
        "-new",
        "-key",
        &key,
        "-config",
        &config,
        "-outform",
        "DER",
        "-out",
        &place.text("weak-1+enc.csr"),
    ]);
    let secret = place.server.cli_ok(&["device", "secret", "weak-1"]).unwrap();
    let user = format!("weak-1:{}", secret.lines().next().unwrap());
    let (status, text) = place.post("default.made/serverkeygen", "weak-1+enc", &["-u", &user]);
    assert!(
        status == "400" && text.contains("DecryptKeyIdentifier"),
        "{status} {text}"
    );
}

#[test]
fn the_time_is_signed_by_a_key_that_the_pinned_root_vouches_for() {
    let place = Place::new("");
    let before = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_millis();
    let (status, jws) = place.curl("countersign/time?nonce=a-1_B", &[]);
    assert_eq!(status, "200");
    let jws = String::from_utf8(jws).unwrap();
    let parts: Vec<&str> = jws.split('.').collect();
    let decode = |text: &str| {
        let mut text = text.replace('-', "+").replace('_', "/");
        while !text.len().is_multiple_of(4) {
            text.push('=');
        }
        place.write("part.b64", &text);
        openssl(&["base64", "-d", "-A", "-in", &place.text("part.b64")])
    };
    let payload: Value = serde_json::from_slice(&decode(parts[1])).unwrap();
    assert_eq!(payload["nonce"], "a-1_B");
    let told = u128::from(payload["unix_ms"].as_u64().unwrap());
    assert!(told >= before && told < before + 30_000, "{payload}");
    let header: Value = serde_json::from_slice(&decode(parts[0])).unwrap();
    assert_eq!(header["alg"], "ES256");
    let certificates: Vec<String> = header["x5c"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
        .map(|(n, c)| {
            let path = place.write(&format!("x5c-{n}.b64"), c.as_str().unwrap());
            let der = openssl(&["base64", "-d", "-A", "-in", &path]);
            std::fs::write(place.path(&format!("x5c-{n}.der")), der).unwrap();
            let out = place.text(&format!("x5c-{n}.pem"));
            openssl(&[
                "x509",
                "-inform",
                "DER",
                "-in",
                &place.text(&format!("x5c-{n}.der")),
                "-out",
                &out,
            ]);
            out
        })
        .collect();
    // OpenSSL: the chain for this purpose up to the pinned root, then the signature by the key in the certificate.
    openssl(&[
        "verify",
        "-CAfile",
        &place.text("root.pem"),
        "-untrusted",
        &certificates[1],
        "-purpose",
        "timestampsign",
        &certificates[0],
    ]);
    let not_a_server = run(Command::new("openssl").args([
        "verify",
        "-CAfile",
        &place.text("root.pem"),
        "-untrusted",
        &certificates[1],
        "-purpose",
        "sslserver",
        &certificates[0],
    ]));
    assert!(!not_a_server.status.success(), "it could pose as the platform");
    let public = openssl(&["x509", "-in", &certificates[0], "-noout", "-pubkey"]);
    std::fs::write(place.path("time.pub"), public).unwrap();
    std::fs::write(place.path("signed"), format!("{}.{}", parts[0], parts[1])).unwrap();
    std::fs::write(place.path("signature"), ecdsa_der(&decode(parts[2]))).unwrap();
    let verify = |file: &str| {
        run(Command::new("openssl").args([
            "dgst",
            "-sha256",
            "-verify",
            &place.text("time.pub"),
            "-signature",
            &place.text("signature"),
            &place.text(file),
        ]))
        .status
        .success()
    };
    assert!(verify("signed"));
    std::fs::write(place.path("forged"), format!("{}.{}x", parts[0], parts[1])).unwrap();
    assert!(!verify("forged"));
    for bad in ["%22", &"n".repeat(129)] {
        assert_eq!(
            place.curl(&format!("countersign/time?nonce={bad}"), &[]).0,
            "400",
            "{bad}"
        );
    }
}

/// Two numbers of 32 octets as the DER that OpenSSL reads.
fn ecdsa_der(fixed: &[u8]) -> Vec<u8> {
    assert_eq!(fixed.len(), 64);
    let mut body = Vec::new();
    for half in fixed.chunks(32) {
        let start = half.iter().position(|b| *b != 0).unwrap();
        let mut number = half[start..].to_vec();
        if number[0] >= 0x80 {
            number.insert(0, 0);
        }
        body.extend([2, u8::try_from(number.len()).unwrap()]);
        body.extend(number);
    }
    [vec![0x30, u8::try_from(body.len()).unwrap()], body].concat()
}

#[test]
fn a_challenge_password_is_a_secret_only_where_that_is_configured() {
    for (more, expected) in [("", "401"), ("challenge_secrets = true\n", "200")] {
        let place = Place::new(more);
        place.server.cli_ok(&["device", "add", "old-1"]).unwrap();
        let secret = place.server.cli_ok(&["device", "secret", "old-1"]).unwrap();
        let secret = secret.lines().next().unwrap();
        let config = format!(
            "[req]\ndistinguished_name=dn\nattributes=attrs\nprompt=no\n[dn]\nCN=old-1\n[attrs]\nchallengePassword={secret}\n"
        );
        let config = place.write("req.cnf", &config);
        let key = place.text("old-1.own.key");
        openssl(&[
            "ecparam",
            "-name",
            "prime256v1",
            "-genkey",
            "-noout",
            "-out",
            &key,
        ]);
        openssl(&[
            "req",
            "-new",
            "-key",
            &key,
            "-config",
            &config,
            "-outform",
            "DER",
            "-out",
            &place.text("old-1.csr"),
        ]);
        let (status, text) = place.post("simpleenroll", "old-1", &[]);
        assert_eq!(status, expected, "{text}");
        // HTTP authentication goes before it, and one that means nothing to us is passed over.
        let (status, text) = place.post("simpleenroll", "old-1", &["-u", &format!("old-1:{secret}")]);
        assert_eq!(status, "200", "{text}");
        assert!(!place.server.log().contains(secret), "a secret in the log");
    }
}

#[test]
fn each_profile_asks_for_its_own_keys() {
    let place =
        Place::new("[[profiles]]\nname = \"operational\"\n[[profiles]]\nname = \"big\"\nkeys = [\"p384\"]\n");
    let ask = |path: &str| {
        let (status, body) = place.curl(path, &[]);
        assert_eq!(status, "200");
        std::fs::write(place.path("attrs.b64"), body).unwrap();
        let der = openssl(&["base64", "-d", "-A", "-in", &place.text("attrs.b64")]);
        std::fs::write(place.path("attrs.der"), der).unwrap();
        String::from_utf8(openssl(&[
            "asn1parse",
            "-inform",
            "DER",
            "-in",
            &place.text("attrs.der"),
        ]))
        .unwrap()
    };
    let first = ask("est/csrattrs");
    assert!(
        first.contains("prime256v1") && first.contains("secp384r1") && first.contains("ecdsa-with-SHA256"),
        "{first}"
    );
    let big = ask("est/default.big/csrattrs");
    assert!(
        !big.contains("prime256v1") && big.contains("secp384r1") && big.contains("ecdsa-with-SHA384"),
        "{big}"
    );
    // The template of RFC 9908.
    assert!(big.contains("1.2.840.113549.1.9.16.2.61"), "{big}");
    assert_eq!(place.curl("est/default.nothing/csrattrs", &[]).0, "404");
}
