//! Profiles: names, alternative names and extensions of what is issued, by every way; and factory certificates that are
//! for enrolment alone.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use countersign_testkit::ca::CaProcess;
use countersign_testkit::server::{Server, http, listener};
use serde_json::Value;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_countersign"))
}

/// Two profiles, the second of which makes factory certificates.
fn factory_profile(more: &str) -> String {
    format!(
        "[[profiles]]\nname = \"operational\"\n[[profiles]]\nname = \"factory\"\nkind = \"factory\"\nlifetime_days = 0\n{more}\n"
    )
}

const ENROL_ONLY: &str = "data_sessions = false";

/// Everything that a profile may say.
const FULL: &str = r#"
[[profiles]]
name = "operational"
organization = "Acme {tenant}"
organizational_unit = "pumps"
serial_number = false
san = ["uri:urn:dev:{tenant}:{id}", "dns:{id}.devices.example.com", "hardware-module-name:1.3.6.1.4.1.99999.1"]
crl_urls = ["http://pki.example.com/crl/{authority}.crl"]
ocsp_urls = ["http://pki.example.com/ocsp"]
ca_issuer_urls = ["http://pki.example.com/ca/{authority}.crt"]
extensions = [{ oid = "1.3.6.1.4.1.99999.2", der = "0c0461636d65" }]
server_keys = true
"#;

/// What OpenSSL reads in a certificate of [`FULL`].
fn is_full(pem: &str, id: &str, authority: &str) {
    let text = ok(Command::new("openssl").args(["x509", "-in", pem, "-noout", "-text"]));
    let subject = ok(Command::new("openssl").args(["x509", "-in", pem, "-noout", "-subject"]));
    assert!(
        subject.contains(&format!("O = Acme default, OU = pumps, CN = {id}"))
            && !subject.contains("serialNumber"),
        "{subject}"
    );
    for words in [
        format!("URI:urn:dev:default:{id}"),
        format!("DNS:{id}.devices.example.com"),
        "othername:".to_owned(),
        format!("URI:http://pki.example.com/crl/{authority}.crl"),
        "OCSP - URI:http://pki.example.com/ocsp".to_owned(),
        format!("CA Issuers - URI:http://pki.example.com/ca/{authority}.crt"),
        "1.3.6.1.4.1.99999.2".to_owned(),
    ] {
        assert!(text.contains(&words), "{words}: {text}");
    }
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn ok(command: &mut Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

struct Place {
    folder: tempfile::TempDir,
    server: Server,
}

impl Place {
    fn new(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = Self::serve(&folder.path().join("data"), config);
        let place = Self { folder, server };
        let root = place.server.cli_ok(&["authority", "export", "platform"]).unwrap();
        std::fs::write(place.path("root.pem"), root).unwrap();
        place
    }

    fn serve(data: &Path, config: &str) -> Server {
        let config = format!("{config}{}", listener("enrol"));
        Server::start(program(), data, &config).unwrap()
    }

    fn restart(&mut self, config: &str) {
        self.server.kill();
        self.server = Self::serve(&self.path("data"), config);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn provision(&self, id: &str, more: &[&str]) -> Output {
        let out = self.text(id);
        let arguments = [&["device", "provision", id, "--out", &out], more].concat();
        self.server.cli(&arguments).unwrap()
    }

    /// Connects with an identity folder or another certificate, and publishes.
    fn mosquitto(&self, id: &str, certificate: &str, key: &str, version: &str) -> Output {
        let port = self.server.devices.port().to_string();
        run(Command::new("mosquitto_pub")
            .args(["-h", "localhost", "-p", &port, "-V", version, "-i", id, "-q", "1"])
            .args(["--cafile", &self.text("root.pem")])
            .args(["--cert", certificate, "--key", key])
            .args(["-t", &format!("devices/{id}/telemetry"), "-m", "1"]))
    }

    fn factory_identity(&self, id: &str) -> (String, String) {
        (
            self.text(&format!("{id}/device.crt")),
            self.text(&format!("{id}/device.key")),
        )
    }

    fn connects(&self, id: &str) -> bool {
        let (certificate, key) = self.factory_identity(id);
        self.mosquitto(id, &certificate, &key, "mqttv5").status.success()
    }

    /// Status and body of the last of some requests on one connection, and how many connections it took.
    fn curl(
        &self,
        port: u16,
        identity: &(String, String),
        requests: &[(&str, &[&str])],
    ) -> (u16, String, usize) {
        let mut command = Command::new("curl");
        command.args(["-sS", "--max-time", "20"]);
        for (n, (path, more)) in requests.iter().enumerate() {
            if n > 0 {
                command.arg("--next").arg("-sS");
            }
            command
                .args(["--http1.1", "--cacert", &self.text("root.pem")])
                .args(["--cert", &identity.0, "--key", &identity.1])
                .args(["-w", "\n%{http_code} %{num_connects}\n"])
                .args(*more)
                .arg(format!("https://localhost:{port}{path}"));
        }
        let text = ok(&mut command);
        let (body, last) = text.trim_end().rsplit_once('\n').unwrap();
        let (status, _) = last.split_once(' ').unwrap();
        let connections = text
            .lines()
            .filter_map(|l| l.split_once(' '))
            .filter(|(status, n)| status.len() == 3 && n.parse() == Ok(1) && status.parse::<u16>().is_ok())
            .count();
        (status.parse().unwrap(), body.to_owned(), connections)
    }

    fn request(&self, name: &str, subject: &str) -> (String, String) {
        let (key, der, b64) = (
            self.text(&format!("{name}.key")),
            self.text(&format!("{name}.csr")),
            self.text(&format!("{name}.b64")),
        );
        ok(Command::new("openssl").args([
            "req",
            "-new",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            &key,
            "-subj",
            subject,
            "-outform",
            "DER",
            "-out",
            &der,
        ]));
        ok(Command::new("openssl").args(["base64", "-in", &der, "-out", &b64]));
        (key, b64)
    }

    /// Enrols over EST with an identity that is shown: the certificate and its key, in files.
    fn enrol(
        &self,
        port: u16,
        shown: &(String, String),
        name: &str,
        path: &str,
        subject: &str,
    ) -> (String, String) {
        let (key, b64) = self.request(name, subject);
        let data = format!("@{b64}");
        let post = ["-H", "Content-Type: application/pkcs10", "--data-binary", &data];
        let (status, body, _) = self.curl(port, shown, &[(path, &post)]);
        assert_eq!(status, 200, "{body}");
        (self.certificate(name, &body), key)
    }

    /// The certificate of an EST answer, in a file.
    fn certificate(&self, name: &str, body: &str) -> String {
        let (b64, der, pem) = (
            self.text(&format!("{name}.p7.b64")),
            self.text(&format!("{name}.p7")),
            self.text(&format!("{name}.pem")),
        );
        std::fs::write(&b64, body).unwrap();
        ok(Command::new("openssl").args(["base64", "-d", "-A", "-in", &b64, "-out", &der]));
        ok(Command::new("openssl").args([
            "pkcs7",
            "-inform",
            "DER",
            "-in",
            &der,
            "-print_certs",
            "-out",
            &pem,
        ]));
        pem
    }

    fn credentials(&self, id: &str) -> Vec<Value> {
        let device = self
            .server
            .ask("GET", &format!("/tenants/default/devices/{id}"), None);
        device.unwrap()["credentials"].as_array().unwrap().clone()
    }

    fn simulate(&self) -> Value {
        let file = self.text("open.cedar");
        std::fs::write(&file, "@id(\"all\") permit (principal, action, resource);").unwrap();
        let text = self
            .server
            .cli_ok(&["--json", "policy", "simulate", &file])
            .unwrap();
        serde_json::from_str(&text).unwrap()
    }
}

#[test]
fn a_factory_certificate_that_is_for_enrolment_alone_enrols_and_opens_no_data_session() {
    let mut place = Place::new(&factory_profile(ENROL_ONLY));
    let output = place.provision("d1", &["--profile", "factory"]);
    assert!(output.status.success(), "{}", said(&output));
    let shown = place.factory_identity("d1");
    let devices = place.server.devices.port();

    // MQTT in both versions, publishing over HTTPS, tokens: past TLS, and refused by its own code.
    for version in ["mqttv311", "mqttv5"] {
        let refused = place.mosquitto("d1", &shown.0, &shown.1, version);
        assert!(
            said(&refused).to_lowercase().contains("not authori"),
            "{}",
            said(&refused)
        );
    }
    let post = ["-d", "x"];
    let token = ["-d", "grant_type=client_credentials"];
    for (path, more) in [
        ("/v1/publish/devices/d1/telemetry", &post),
        ("/oauth2/token", &token),
    ] {
        let (status, body, _) = place.curl(devices, &shown, &[(path, more)]);
        assert_eq!(status, 403, "{path}: {body}");
        assert!(
            body.contains("\"code\":\"credential.enrol-only\""),
            "{path}: {body}"
        );
    }

    // Whoever asks why is told the same, with the cure; no policy lets it in.
    let explained = place.server.cli_ok(&["explain", "d1"]).unwrap();
    let why = said(&place.server.cli(&["why", "d1"]).unwrap());
    for text in [&explained, &why] {
        assert!(text.contains("credential.enrol-only"), "{text}");
        assert!(text.contains("enrol for an operational certificate"), "{text}");
    }
    let simulated = place.simulate();
    assert_eq!(simulated["devices"]["stay_out"], 1, "{simulated}");
    assert_eq!(simulated["devices"]["let_in"], 0, "{simulated}");

    // EST on the device listener, several requests on a connection. What is no enrolment ends it.
    let est = "/.well-known/est";
    let cacerts = format!("{est}/cacerts");
    let (status, _, connections) = place.curl(
        devices,
        &shown,
        &[(&cacerts, &[]), ("/.well-known/countersign/bundle", &[])],
    );
    assert_eq!((status, connections), (200, 1));
    let (status, body, connections) = place.curl(
        devices,
        &shown,
        &[(&cacerts, &[]), ("/v1/publish/devices/d1/telemetry", &post)],
    );
    assert_eq!((status, connections), (403, 1), "{body}");
    assert!(body.contains("credential.enrol-only"), "{body}");
    let explained = place.server.cli_ok(&["explain", "d1"]).unwrap();
    assert!(
        explained.contains("enrolment-only")
            && explained.contains("no session: the certificate is for enrolment alone"),
        "{explained}"
    );
    let (_, metrics) = http(place.server.admin, "GET", "/metrics", None, None).unwrap();
    assert!(
        metrics.contains("countersign_exchanges_enrolment_only_total 2"),
        "{metrics}"
    );

    // It enrols there, and the certificate that it gets opens sessions.
    let path = format!("{est}/simpleenroll");
    let (certificate, key) = place.enrol(devices, &shown, "d1-new", &path, "/CN=d1");
    let published = place.mosquitto("d1", &certificate, &key, "mqttv5");
    assert!(published.status.success(), "{}", said(&published));
    // The factory's was in use when it enrolled; the first use of the new one is kept behind its session.
    let is_active = |kind: &str| {
        let all = place.credentials("d1");
        let mut of_kind = all.iter().filter(|c| c["kind"] == kind);
        of_kind.next().unwrap()["state"] == "active"
    };
    assert!(is_active("factory"));
    let started = Instant::now();
    while !is_active("operational") {
        assert!(started.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(20));
    }
    // The device comes by that from now on, also where it is only asked about.
    let why = place.server.cli_ok(&["why", "d1"]).unwrap();
    for verdict in ["would be let in", "would be refused"] {
        assert_eq!(why.matches(verdict).count(), 1, "{why}");
    }
    assert_eq!(place.simulate()["devices"]["stay_in"], 1);
    assert!(!place.connects("d1"));

    // The same on an enrolment listener.
    let output = place.provision("d2", &["--profile", "factory"]);
    assert!(output.status.success(), "{}", said(&output));
    let enrol = place.server.listener("enrol").unwrap().port();
    let shown = place.factory_identity("d2");
    let (certificate, key) = place.enrol(enrol, &shown, "d2-new", &path, "/CN=d2");
    assert!(
        place
            .mosquitto("d2", &certificate, &key, "mqttv311")
            .status
            .success()
    );

    // Who may not enrol is not let in to enrol.
    let change = |id: &str, attempted: &str| {
        place
            .server
            .cli_ok(&["device", attempted, id, "--reason", "test"])
            .unwrap();
    };
    change("d2", "quarantine");
    let (status, body, _) = place.curl(devices, &shown, &[(&cacerts, &[])]);
    assert!(
        status == 403 && body.contains("device.quarantined"),
        "{status} {body}"
    );
    change("d2", "release");
    change("d2", "suspend");
    let (status, body, _) = place.curl(devices, &shown, &[(&cacerts, &[])]);
    assert!(
        status == 403 && body.contains("device.suspended"),
        "{status} {body}"
    );
    change("d2", "resume");

    // A changed configuration holds for what was issued before, both ways.
    place.restart(&factory_profile(""));
    assert!(place.connects("d1") && place.connects("d2"));
    place.restart(&factory_profile(ENROL_ONLY));
    assert!(!place.connects("d1") && !place.connects("d2"));
    // Also after what was issued changes: the fact is read anew.
    place.server.cli_ok(&["device", "revoke", "d2"]).unwrap();
    let output = place.provision("d3", &["--profile", "factory"]);
    assert!(output.status.success() && !place.connects("d3"));
}

#[test]
fn what_is_issued_has_the_names_and_extensions_of_its_profile() {
    let mut place = Place::new(FULL);
    let output = place.provision("SN-1", &[]);
    assert!(output.status.success(), "{}", said(&output));
    let identity = place.factory_identity("SN-1");
    is_full(&identity.0, "SN-1", "default-devices");
    // The door takes it, over MQTT and HTTPS, and it renews by its own subject.
    assert!(place.connects("SN-1"));
    let devices = place.server.devices.port();
    let path = "/.well-known/est/simplereenroll";
    let subject = "/O=Acme default/OU=pumps/CN=SN-1";
    let (certificate, key) = place.enrol(devices, &identity, "renewed", path, subject);
    is_full(&certificate, "SN-1", "default-devices");
    assert!(
        place
            .mosquitto("SN-1", &certificate, &key, "mqttv5")
            .status
            .success()
    );
    // And a key that the server makes.
    let (_, b64) = place.request("made", "/CN=SN-1");
    let data = format!("@{b64}");
    let post = ["-H", "Content-Type: application/pkcs10", "--data-binary", &data];
    let made = "/.well-known/est/serverkeygen";
    let (status, body, _) = place.curl(devices, &(certificate, key), &[(made, &post)]);
    assert_eq!(status, 200, "{body}");
    let part = body.split("certs-only").nth(1).unwrap();
    let part = part.split_once("\r\n\r\n").unwrap().1;
    let part = part.split("\r\n--").next().unwrap().trim();
    is_full(&place.certificate("made", part), "SN-1", "default-devices");

    // What cannot be named so is refused, and nothing is minted: alone, over EST, and in a batch beside others.
    let output = place.provision("SN_2", &[]);
    let words = said(&output);
    assert!(!output.status.success(), "{words}");
    for word in ["\"SN_2.devices.example.com\"", "no host name", "hint: "] {
        assert!(words.contains(word), "{word}: {words}");
    }
    let list = place.text("ids");
    std::fs::write(&list, "SN-3\nSN_4\n").unwrap();
    let add = [
        "factory",
        "batch",
        "add",
        "b1",
        "--model",
        "pump",
        "--profile",
        "operational",
        "--id-pattern",
        "SN*",
        "--quota",
        "2",
    ];
    place.server.cli_ok(&add).unwrap();
    let out = place.text("line");
    let issue = [
        "factory", "issue", "--batch", "b1", "--list", &list, "--out", &out,
    ];
    let words = said(&place.server.cli(&issue).unwrap());
    assert!(
        words.contains("name.invalid") && words.contains("SN_4"),
        "{words}"
    );
    is_full(&place.text("line/SN-3/device.crt"), "SN-3", "default-devices");
    let batch = place
        .server
        .ask("GET", "/tenants/default/batches/b1", None)
        .unwrap();
    assert_eq!(batch["devices"], 1, "{batch}");
    assert!(
        place
            .server
            .ask("GET", "/tenants/default/devices/SN_4", None)
            .is_err()
    );
    // An authority that was opened anew has its name too.
    place.server.cli_ok(&["authority", "create", "second"]).unwrap();
    place.restart(FULL);
    let output = place.provision("SN-5", &["--authority", "second"]);
    assert!(output.status.success(), "{}", said(&output));
    is_full(&place.text("SN-5/device.crt"), "SN-5", "second");
}

#[test]
fn a_ca_apart_issues_by_its_own_profiles_and_the_platform_says_what_they_open() {
    let folder = tempfile::tempdir().unwrap();
    let mut ca = CaProcess::new(program(), &folder.path().join("ca"));
    let factory = "[[profiles]]\nname = \"factory\"\nkind = \"factory\"\nlifetime_days = 0\n";
    std::fs::write(ca.path("ca.toml"), format!("{FULL}{factory}")).unwrap();
    ca.ok(&["authority", "add", "fleet"]);
    for (batch, profile) in [("b1", "operational"), ("b2", "factory")] {
        ca.ok(&[
            "batch",
            "add",
            batch,
            "--authority",
            "fleet",
            "--profile",
            profile,
            "--pattern",
            "SN*",
            "--quota",
            "1",
            "--days",
            "1",
        ]);
    }
    ca.start();
    let config = format!(
        "[ca]\nsocket = {:?}\n{}",
        ca.socket(),
        factory_profile(ENROL_ONLY)
    );
    let server = Place::serve(&folder.path().join("data"), &config);
    let place = Place { folder, server };
    let root = place.server.cli_ok(&["authority", "export", "platform"]).unwrap();
    std::fs::write(place.path("root.pem"), root).unwrap();
    // What the CA cannot name costs its batch nothing.
    let output = place.provision("SN_1", &[]);
    assert!(
        !output.status.success() && said(&output).contains("no host name"),
        "{}",
        said(&output)
    );
    let output = place.provision("SN-1", &[]);
    assert!(output.status.success(), "{}", said(&output));
    is_full(&place.text("SN-1/device.crt"), "SN-1", "fleet");
    assert!(place.connects("SN-1"));
    let output = place.provision("SN-2", &["--profile", "factory"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(!place.connects("SN-2"));
    let explained = place.server.cli_ok(&["explain", "SN-2"]).unwrap();
    assert!(explained.contains("credential.enrol-only"), "{explained}");
}

#[test]
fn a_configuration_with_the_old_key_is_told_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let old = "[[profiles]]\nname = \"operational\"\nsan_uri = \"urn:dev:{tenant}:{id}\"\n";
    let file = folder.path().join("old.toml");
    std::fs::write(&file, old).unwrap();
    let check = |file: &Path| {
        let output = run(Command::new(program())
            .args(["config", "check", "--config"])
            .arg(file));
        (output.status.success(), said(&output))
    };
    let (accepted, words) = check(&file);
    assert!(!accepted, "{words}");
    assert!(
        words.contains(r#"san = ["uri:urn:dev:{tenant}:{id}"]"#),
        "{words}"
    );
    assert!(words.contains("line 3"), "{words}");
    std::fs::write(&file, FULL).unwrap();
    let (accepted, words) = check(&file);
    assert!(accepted, "{words}");
    let ca = CaProcess::new(program(), &folder.path().join("ca"));
    std::fs::write(ca.path("ca.toml"), old).unwrap();
    let output = run(Command::new(program())
        .args(["ca", "serve", "--data"])
        .arg(ca.path("")));
    assert!(
        !output.status.success() && said(&output).contains("san = [\"uri:"),
        "{}",
        said(&output)
    );
}
