//! A platform whose CA is a process of its own: everything that a platform with its own keys does, by real clients.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign_authority::{Hierarchy, IssuingAuthority};
use countersign_factory::request::pem;
use countersign_factory::{CertificateRequest, EnrolmentGrant, Profile, renewal_proof};
use countersign_identity::{DeviceId, TenantId, Timestamp};
use countersign_testkit::agent::Agent;
use countersign_testkit::ca::CaProcess;
use countersign_testkit::server::{Server, http, listener};
use serde_json::json;

struct Place {
    folder: tempfile::TempDir,
    ca: CaProcess,
    server: Option<Server>,
    more: String,
}

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_countersign"))
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap()
}

fn ok(command: &mut Command) -> String {
    let output = run(command);
    let text = said(&output);
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

impl Place {
    fn new(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut ca = CaProcess::new(program(), &folder.path().join("ca"));
        ca.ok(&["authority", "add", "fleet"]);
        ca.start();
        let mut place = Self {
            folder,
            ca,
            server: None,
            more: more.to_owned(),
        };
        place.serve();
        place
    }

    fn serve(&mut self) {
        self.server = None;
        let config = format!(
            "[ca]\nsocket = {:?}\n{}{}{}",
            self.ca.socket(),
            self.more,
            listener("pki"),
            listener("enrol"),
        );
        self.server = Some(Server::start(program(), &self.path("data"), &config).unwrap());
    }

    fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn provision(&self, device: &str, more: &[&str]) -> Output {
        let out = self.text(device);
        let mut arguments = vec!["device", "provision", device, "--out", &out];
        arguments.extend(more);
        self.server().cli(&arguments).unwrap()
    }

    fn refused(&self, output: &Output, words: &[&str]) {
        let text = said(output);
        assert!(!output.status.success() && text.contains("hint: "), "{text}");
        for word in words {
            assert!(text.contains(word), "{word}: {text}");
        }
    }

    /// Connects and publishes with an identity folder.
    fn publish(&self, device: &str) -> Output {
        let file = |name: &str| self.text(&format!("{device}/{name}"));
        run(Command::new("mosquitto_pub").args([
            "-h",
            "localhost",
            "-p",
            &self.server().devices.port().to_string(),
            "--cafile",
            &file("platform-root.crt"),
            "--cert",
            &file("device.crt"),
            "--key",
            &file("device.key"),
            "-i",
            device,
            "-q",
            "1",
            "-t",
            &format!("devices/{device}/telemetry"),
            "-m",
            "1",
        ]))
    }

    fn check(&self, name: &str) -> serde_json::Value {
        let checks = self.server().ask("GET", "/doctor", None).unwrap();
        let found = checks.as_array().unwrap().iter().find(|c| c["name"] == *name);
        found.unwrap_or_else(|| panic!("{name}: {checks}")).clone()
    }

    fn est(&self, operation: &str, csr: &str, more: &[&str]) -> (String, String) {
        let port = self.server().listener("enrol").unwrap().port();
        let root = self
            .server()
            .cli_ok(&["authority", "export", "platform"])
            .unwrap();
        std::fs::write(self.path("root.pem"), root).unwrap();
        let der = self.text("est.csr");
        ok(Command::new("openssl").args(["req", "-in", csr, "-outform", "DER", "-out", &der]));
        let body = STANDARD.encode(std::fs::read(&der).unwrap());
        let url = format!("https://localhost:{port}/.well-known/est/{operation}");
        let output = run(Command::new("curl")
            .args([
                "-sS",
                "--max-time",
                "20",
                "-w",
                "\n%{http_code}",
                "--cacert",
                &self.text("root.pem"),
            ])
            .args(["-H", "Content-Type: application/pkcs10", "--data-binary", &body])
            .args(more)
            .arg(url));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').unwrap_or_else(|| panic!("{output:?}"));
        (status.to_owned(), body.to_owned())
    }

    /// The header by which the key of a certificate speaks for a request.
    fn proof(&self, certificate: &str, key: &str, csr: &str) -> String {
        let content = renewal_proof::content(&der_of(certificate, "x509"), &der_of(csr, "req"));
        std::fs::write(self.path("content"), content).unwrap();
        ok(Command::new("openssl").args([
            "dgst",
            "-sha256",
            "-sign",
            key,
            "-out",
            &self.text("proof"),
            &self.text("content"),
        ]));
        let proof = STANDARD.encode(std::fs::read(self.path("proof")).unwrap());
        format!("{}: {proof}", renewal_proof::HEADER)
    }

    /// The certificate of an EST answer, PEM, in a file.
    fn keep(&self, body: &str, name: &str) -> String {
        std::fs::write(self.path("p7"), STANDARD.decode(body.trim()).unwrap()).unwrap();
        let path = self.text(name);
        ok(Command::new("openssl").args([
            "pkcs7",
            "-inform",
            "DER",
            "-in",
            &self.text("p7"),
            "-print_certs",
            "-out",
            &path,
        ]));
        path
    }

    /// A certificate of the CA that it issued so many days ago, PEM, in a file.
    fn dated_back(&self, device: &str, csr: &str, days: i64) -> String {
        let authority =
            IssuingAuthority::open(&self.ca.path("authorities/fleet"), Hierarchy::Devices).unwrap();
        let request = CertificateRequest::parse(&der_of(csr, "req")).unwrap();
        let grant = EnrolmentGrant::new(
            TenantId::default_tenant(),
            DeviceId::new(device).unwrap(),
            request.key().clone(),
            Profile::default(),
        )
        .unwrap();
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let now = i64::try_from(now.as_millis()).unwrap();
        let then = Timestamp::from_unix_ms(now - days * 86_400_000);
        let issued = authority.issue_device(&grant, then).unwrap();
        let der: &[u8] = issued.certificate().as_ref();
        let facts = issued.facts();
        let db = rusqlite::Connection::open(self.ca.path("ca.db")).unwrap();
        db.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
        db.execute(
            "INSERT INTO certificates VALUES ('fleet', ?1, ?2, 'default', ?3, 'operational', 'operational', ?4, ?5, ?6,
             ?7, 'test', ?6, 'issued', NULL, NULL)",
            rusqlite::params![
                facts.serial,
                facts.fingerprint.as_bytes(),
                device,
                facts.public_key_sha256.as_bytes(),
                der,
                facts.not_before.unix_ms(),
                facts.not_after.unix_ms()
            ],
        )
        .unwrap();
        let path = self.text(&format!("{device}-old.pem"));
        std::fs::write(&path, pem("CERTIFICATE", der)).unwrap();
        path
    }

    /// A key and a request for it.
    fn request(&self, name: &str, subject: &str) -> (String, String) {
        let (key, csr) = (
            self.text(&format!("{name}.key")),
            self.text(&format!("{name}.csr")),
        );
        ok(Command::new("openssl").args([
            "ecparam",
            "-name",
            "prime256v1",
            "-genkey",
            "-noout",
            "-out",
            &key,
        ]));
        ok(Command::new("openssl").args(["req", "-new", "-key", &key, "-subj", subject, "-out", &csr]));
        (key, csr)
    }
}

fn der_of(path: &str, what: &str) -> Vec<u8> {
    let output = run(Command::new("openssl").args([what, "-in", path, "-outform", "DER"]));
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

#[test]
fn devices_live_a_whole_life_and_no_key_is_in_the_control_process() {
    let place = Place::new("");
    place.ca.batch("b", "SN-*", 2, &[]);
    assert!(place.provision("SN-1", &[]).status.success());
    let output = place.publish("SN-1");
    assert!(output.status.success(), "{output:?}");
    // No key that signs device certificates is anywhere below the data directory.
    let found = ok(Command::new("find")
        .arg(place.path("data/authorities/devices"))
        .args(["-name", "*.key"]));
    assert_eq!(found, "");
    let listed = place.server().cli_ok(&["authority", "list"]).unwrap();
    assert!(
        listed.contains("fleet") && !listed.contains("default-devices"),
        "{listed}"
    );
    for name in ["ca", "key of fleet"] {
        assert_eq!(place.check(name)["ok"], true, "{}", place.check(name));
    }
    // What the CA's operator did not allow is not to be had, and is told with the cure.
    place.refused(&place.provision("XX-1", &[]), &["no open batch", "ca batch add"]);
    assert!(place.provision("SN-2", &[]).status.success());
    place.refused(&place.provision("SN-3", &[]), &["quota of batch b is used up"]);
    place.refused(
        &place.server().cli(&["device", "secret", "SN-3"]).unwrap(),
        &["ca secret"],
    );
    let create = ["authority", "create", "more", "--csr", "/nonexistent/x"];
    place.refused(&place.server().cli(&create).unwrap(), &["ca authority add"]);
    place.refused(
        &place.server().cli(&["authority", "create", "more"]).unwrap(),
        &["no authority more"],
    );
    assert_eq!(place.ca.count(), 2);

    // Revoked here, revoked there: on the list, in OCSP, and the key gets nothing any more.
    place
        .server()
        .cli_ok(&["device", "revoke", "SN-1", "--code", "key-compromise"])
        .unwrap();
    assert!(!place.publish("SN-1").status.success());
    let pki = place.server().listener("pki").unwrap();
    ok(Command::new("curl").args([
        "-sSf",
        "-o",
        &place.text("list"),
        &format!("http://{pki}/crl/fleet.crl"),
    ]));
    let issuing = place.ca.path("authorities/fleet/issuing.crt");
    let text = ok(Command::new("openssl")
        .args([
            "crl",
            "-inform",
            "DER",
            "-text",
            "-in",
            &place.text("list"),
            "-CAfile",
        ])
        .arg(&issuing));
    assert!(
        text.contains("verify OK") && text.contains("Key Compromise"),
        "{text}"
    );
    let ocsp = |device: &str| {
        said(&run(Command::new("openssl")
            .args(["ocsp", "-url", &format!("http://{pki}/ocsp"), "-CAfile"])
            .arg(place.ca.path("authorities/fleet/root.crt"))
            .arg("-verify_other")
            .arg(&issuing)
            .arg("-issuer")
            .arg(&issuing)
            .args(["-cert", &place.text(&format!("{device}/device.crt"))])))
    };
    assert!(
        ocsp("SN-1").contains("Response verify OK") && ocsp("SN-1").contains(": revoked"),
        "{}",
        ocsp("SN-1")
    );
    assert!(ocsp("SN-2").contains(": good"), "{}", ocsp("SN-2"));
    place.refused(&place.provision("SN-1", &[]), &["was revoked"]);
    assert_eq!(place.ca.count(), 2);
    assert_eq!(
        place.ca.ok(&["certificates", "--device", "SN-1"])[0]["state"],
        "revoked"
    );

    // The two do not mix their folders.
    let output = run(Command::new(program())
        .arg("--data")
        .arg(place.ca.path(""))
        .args(["serve"]));
    place.refused(&output, &["is the folder of a CA"]);
    let output = run(Command::new(program())
        .arg("--data")
        .arg(place.path("data"))
        .args(["ca", "init"]));
    place.refused(&output, &["is the data directory of a platform"]);
}

#[test]
fn est_by_a_secret_of_the_ca_and_by_a_certificate_whose_key_speaks() {
    let place = Place::new("");
    place.server().cli_ok(&["device", "add", "SN-1"]).unwrap();
    place
        .server()
        .cli_ok(&["device", "add", "waits", "--state", "pending"])
        .unwrap();
    let (key, csr) = place.request("first", "/CN=x");
    let secret = |device: &str| {
        let made = place.ca.ok(&["secret", device, "--authority", "fleet"]);
        format!("{device}:{}", made["secret"].as_str().unwrap())
    };
    let (status, text) = place.est("simpleenroll", &csr, &["-u", "SN-1:wrong"]);
    assert_eq!(status, "401", "{text}");
    // The secret holds, and the registry says not yet, or no: then nothing is minted.
    let waits = secret("waits");
    assert_eq!(place.est("simpleenroll", &csr, &["-u", "waits:wrong"]).0, "401");
    assert_eq!(place.est("simpleenroll", &csr, &["-u", &waits]).0, "202");
    let user = secret("SN-1");
    place.server().cli_ok(&["device", "suspend", "SN-1"]).unwrap();
    assert_eq!(place.est("simpleenroll", &csr, &["-u", &user]).0, "403");
    place.server().cli_ok(&["device", "resume", "SN-1"]).unwrap();
    assert_eq!(place.ca.count(), 0);
    let (status, body) = place.est("simpleenroll", &csr, &["-u", &user]);
    assert_eq!(status, "200", "{body}");
    let first = place.keep(&body, "first.pem");
    assert!(
        ok(Command::new("openssl").args(["x509", "-noout", "-subject", "-in", &first])).contains("CN = SN-1")
    );
    let (status, again) = place.est("simpleenroll", &csr, &["-u", &user]);
    assert_eq!(
        (status.as_str(), again == body),
        ("200", true),
        "a lost answer is answered again"
    );
    assert_eq!(place.ca.count(), 1);

    // Re-enrolment: with the same key as ever; with another one only if the old key says so, and not only to us.
    let subject = "/O=default/CN=SN-1/serialNumber=SN-1";
    let same = place.text("same.csr");
    ok(Command::new("openssl").args(["req", "-new", "-key", &key, "-subj", subject, "-out", &same]));
    let shown = ["--cert", first.as_str(), "--key", key.as_str()];
    assert_eq!(place.est("simplereenroll", &same, &shown).0, "200");
    let (_, new) = place.request("second", subject);
    let (status, text) = place.est("simplereenroll", &new, &shown);
    assert!(status == "403" && text.contains("another key"), "{status} {text}");
    let header = place.proof(&first, &key, &new);
    let mut proven = shown.to_vec();
    proven.extend(["-H", &header]);
    let (status, body) = place.est("simplereenroll", &new, &proven);
    assert_eq!(status, "200", "{body}");
    assert_ne!(
        std::fs::read(place.keep(&body, "second.pem")).unwrap(),
        std::fs::read(&first).unwrap()
    );
    let mut garbage = shown.to_vec();
    garbage.extend(["-H", "countersign-renewal-proof: !!"]);
    assert_eq!(place.est("simplereenroll", &new, &garbage).0, "400");
    assert_eq!(place.ca.count(), 2);
}

#[test]
fn devices_renew_at_the_next_authority_once_the_ca_says_that_it_succeeds_theirs() {
    let place = Place::new("");
    place.ca.batch("born", "F-*", 1, &["--profile", "factory"]);
    place.server().cli_ok(&["device", "add", "SN-1"]).unwrap();
    let secret = place.ca.ok(&["secret", "SN-1", "--authority", "fleet"]);
    let user = format!("SN-1:{}", secret["secret"].as_str().unwrap());
    let subject = "/O=default/CN=SN-1/serialNumber=SN-1";
    let (key, csr) = place.request("first", subject);
    let (status, body) = place.est("simpleenroll", &csr, &["-u", &user]);
    assert_eq!(status, "200", "{body}");
    let first = place.keep(&body, "first.pem");
    let (_, new) = place.request("second", subject);
    let proof = place.proof(&first, &key, &new);
    let shown = ["--cert", first.as_str(), "--key", key.as_str(), "-H", &proof];
    let provisioned = place.provision("F-1", &["--profile", "factory"]);
    assert!(provisioned.status.success(), "{}", said(&provisioned));

    place.ca.ok(&["authority", "add", "next"]);
    place.server().cli_ok(&["authority", "create", "next"]).unwrap();
    place.server().cli_ok(&["authority", "retire", "fleet"]).unwrap();
    let (status, text) = place.est("simplereenroll", &new, &shown);
    assert!(
        status == "403" && text.contains("countersign ca authority succeeds next fleet"),
        "{status} {text}"
    );
    let count = place.ca.count();
    place.ca.ok(&["authority", "succeeds", "next", "fleet"]);
    let (status, body) = place.est("simplereenroll", &new, &shown);
    assert_eq!(status, "200", "{body}");
    let moved = place.keep(&body, "moved.pem");
    let issuer = |path: &str| ok(Command::new("openssl").args(["x509", "-noout", "-issuer", "-in", path]));
    assert_ne!(issuer(&moved), issuer(&first));
    assert_eq!(place.ca.count(), count + 1);

    // To a factory certificate no certificate leads, whatever its key says: a batch of the CA must cover it.
    let out = place.path("F-1");
    let (factory, factory_key) = (out.join("device.crt"), out.join("device.key"));
    let (factory, factory_key) = (factory.display().to_string(), factory_key.display().to_string());
    let (_, next) = place.request("next", "/O=default/CN=F-1/serialNumber=F-1");
    let proof = place.proof(&factory, &factory_key, &next);
    let shown = [
        "--cert",
        factory.as_str(),
        "--key",
        factory_key.as_str(),
        "-H",
        &proof,
    ];
    let (status, text) = place.est("default.factory/simplereenroll", &next, &shown);
    assert!(status == "403" && text.contains("batch"), "{status} {text}");
    assert_eq!(place.ca.count(), count + 1);
}

#[test]
fn without_the_ca_nothing_is_issued_and_everybody_who_may_is_admitted() {
    let mut place = Place::new("");
    place.ca.batch("b", "SN-*", 10, &[]);
    assert!(place.provision("SN-1", &[]).status.success());
    place.ca.kill();
    let output = place.provision("SN-2", &[]);
    place.refused(&output, &["the CA at", "does not answer", "ca serve"]);
    assert_eq!(output.status.code(), Some(5), "not available");
    let shown = place.server().cli(&["device", "show", "SN-2"]).unwrap();
    assert_eq!(shown.status.code(), Some(3), "no device is left behind");
    place.server().cli_ok(&["device", "add", "SN-2"]).unwrap();
    let (status, problem) = place
        .server()
        .call(
            "POST",
            "/tenants/default/devices/SN-2/certificates",
            Some(&json!({ "request": countersign_testkit::pki::request("SN-2") })),
        )
        .unwrap();
    assert_eq!(status, 503, "{problem}");
    assert_eq!(place.check("ca")["ok"], false);
    assert!(place.publish("SN-1").status.success());
    assert!(!place.publish("SN-2").status.success());
    // Also a platform that starts while the CA is away admits.
    place.serve();
    assert!(place.publish("SN-1").status.success());
    // What is revoked meanwhile is told once the CA is back, before it issues or signs anything.
    place.server().cli_ok(&["device", "revoke", "SN-1"]).unwrap();
    place.ca.start();
    assert!(place.provision("SN-2", &[]).status.success());
    assert!(place.publish("SN-2").status.success());
    assert_eq!(
        place.ca.ok(&["certificates", "--device", "SN-1"])[0]["state"],
        "revoked"
    );
    assert_eq!(place.check("ca")["ok"], true);
}

#[test]
fn whoever_asks_for_ocsp_leaves_the_ca_free_for_issuance() {
    let mut place = Place::new("timeout_s = 5\nstatus_requests_max = 2\n");
    let (question, address) = (place.text("question"), place.server().listener("pki").unwrap());
    ok(Command::new("openssl")
        .args(["ocsp", "-no_nonce", "-reqout", &question, "-issuer"])
        .arg(place.ca.path("authorities/fleet/issuing.crt"))
        .args(["-serial", "0x1234"]));
    // In place of the CA somebody who takes connections and never answers.
    place.ca.kill();
    let _ = std::fs::remove_file(place.ca.socket());
    let silent = std::os::unix::net::UnixListener::bind(place.ca.socket()).unwrap();
    let (connection, connections) = std::sync::mpsc::channel();
    std::thread::spawn(move || silent.incoming().try_for_each(|stream| connection.send(stream)));
    let ask = |body: &str| {
        let url = format!("http://{address}/ocsp");
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "20", "--data-binary", body])
            .arg(url);
        run(&mut curl).stdout
    };
    let error = |code: u8| vec![0x30, 3, 0x0a, 1, code];
    const MALFORMED: u8 = 1;
    const TRY_LATER: u8 = 3;
    // What is no question never gets there.
    assert_eq!(ask("no question"), error(MALFORMED));
    assert!(connections.try_recv().is_err());
    let asked = format!("@{question}");
    std::thread::scope(|s| {
        for _ in 0..6 {
            s.spawn(|| assert_eq!(ask(&asked), error(TRY_LATER)));
        }
    });
    assert_eq!(connections.try_iter().count(), 2);
    let (_, metrics) = http(place.server().admin, "GET", "/metrics", None, None).unwrap();
    assert!(
        metrics.contains("countersign_ca_status_refused_total 4"),
        "{metrics}"
    );
}

#[test]
fn an_answer_that_was_lost_between_the_two_is_found_again() {
    let mut place = Place::new("[issuance]\nlapse_after_days = 0\n");
    place.ca.batch("b", "SN-*", 10, &[]);
    // The CA issued, and the control process was cut before it registered anything: as this very request, sent past it.
    let (key, csr) = place.request("cut", "/CN=SN-1");
    let answer = place.ca.ask(&json!({
        "type": "issue", "authority": "fleet", "profile": "operational", "request": STANDARD.encode(der_of(&csr, "req")),
        "evidence": { "kind": "batch", "device": "SN-1" },
    }));
    assert_eq!(answer["repeated"], false, "{answer}");
    std::fs::create_dir(place.path("SN-1")).unwrap();
    std::fs::copy(key, place.path("SN-1/device.key")).unwrap();
    assert!(place.provision("SN-1", &["--csr", &csr]).status.success());
    let der = der_of(&place.text("SN-1/device.crt"), "x509");
    assert_eq!(
        STANDARD.encode(&der),
        answer["certificate"].as_str().unwrap(),
        "the same certificate, now registered"
    );
    assert_eq!(place.ca.count(), 1);
    // It was never used, and lapses at the next start: told to the CA, a new one is minted for the same key, and counted.
    place.serve();
    let output = place.provision("SN-1", &["--csr", &csr]);
    assert!(output.status.success(), "{output:?}");
    assert_ne!(der_of(&place.text("SN-1/device.crt"), "x509"), der);
    assert!(place.publish("SN-1").status.success());
    let states = place.ca.ok(&["certificates", "--device", "SN-1"]);
    let states: Vec<_> = states
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["state"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(states, ["issued", "lapsed"]);
    assert_eq!(place.ca.ok(&["batch", "list"])[0]["used"], 2);
}

#[test]
fn the_agent_enrols_by_a_secret_of_the_ca_and_renews_with_a_key_of_its_own() {
    let place = Place::new("");
    place.server().cli_ok(&["device", "add", "sensor-1"]).unwrap();
    let made = place.ca.ok(&["secret", "sensor-1", "--authority", "fleet"]);
    let (secret, root) = (place.text("secret"), place.text("root.pem"));
    std::fs::write(&secret, made["secret"].as_str().unwrap()).unwrap();
    std::fs::write(
        &root,
        place
            .server()
            .cli_ok(&["authority", "export", "platform"])
            .unwrap(),
    )
    .unwrap();
    let address = format!("localhost:{}", place.server().listener("enrol").unwrap().port());
    let agent = Agent::new(program(), place.path("sensor-1"));
    agent.ok(&[
        "enrol",
        "--server",
        &address,
        "--platform-root",
        &root,
        "--id",
        "sensor-1",
        "--secret-file",
        &secret,
    ]);
    agent.ok(&["check"]);
    let key = || std::fs::read(agent.folder.join("device.key")).unwrap();
    // The next certificate is for a new key: the old one speaks for it, to the CA itself.
    let (first, first_key) = (agent.certificate(), key());
    assert!(agent.ok(&["renew"]).contains("renewed"));
    assert_ne!((agent.certificate(), key()), (first, first_key));
    agent.ok(&["check"]);
    let issued = place.ca.ok(&["certificates", "--device", "sensor-1"]);
    let grounds: Vec<_> = issued
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["evidence"].as_str().unwrap())
        .collect();
    assert!(
        grounds.len() == 2 && grounds[0].starts_with("certificate:") && grounds[1] == "secret",
        "{grounds:?}"
    );
}

#[test]
fn an_expired_certificate_goes_through_the_renewal_lane_and_is_evidence_at_the_ca() {
    let mut place = Place::new("[enrol]\nexpired_days_max = 30\n");
    let subject = "/O=default/CN=SN-1/serialNumber=SN-1";
    let (old_key, old_csr) = place.request("old", subject);
    // As the CA issued it 100 days ago for 90, and as the registry has it.
    let old = place.dated_back("SN-1", &old_csr, 100);
    place.server().cli_ok(&["device", "import", &old]).unwrap();
    let (_, new) = place.request("new", subject);
    let content = renewal_proof::content(&der_of(&old, "x509"), &der_of(&new, "req"));
    std::fs::write(place.path("content"), content).unwrap();
    let mut sign = Command::new("openssl");
    sign.args(["dgst", "-sha256", "-sign", &old_key, "-out", &place.text("proof")]);
    ok(sign.arg(place.path("content")));
    let proof = STANDARD.encode(std::fs::read(place.path("proof")).unwrap());
    let header = format!("{}: {proof}", renewal_proof::HEADER);
    let shown = ["--cert", old.as_str(), "--key", old_key.as_str()];
    let proven = [&shown[..], &["-H", &header]].concat();
    // The CA's lane is closed as long as its own operator has not opened it.
    let (status, text) = place.est("simplereenroll", &new, &proven);
    assert!(status == "403" && text.contains("expired at"), "{status} {text}");
    place.ca.kill();
    let settings = std::fs::read_to_string(place.ca.path("ca.toml")).unwrap();
    let open = settings.replace("renewal_lane_days = 0", "renewal_lane_days = 30");
    assert_ne!(open, settings);
    std::fs::write(place.ca.path("ca.toml"), open).unwrap();
    place.ca.start();
    // It judges the proof itself.
    let (status, text) = place.est("simplereenroll", &new, &shown);
    assert!(status == "403" && text.contains("another key"), "{status} {text}");
    let (status, body) = place.est("simplereenroll", &new, &proven);
    assert_eq!(status, "200", "{body}");
    let issued = place.ca.ok(&["certificates", "--device", "SN-1"]);
    let grounds: Vec<_> = issued
        .as_array()
        .unwrap()
        .iter()
        .map(|c| &c["evidence"])
        .collect();
    assert!(
        grounds.len() == 2 && grounds[0].as_str().unwrap().starts_with("certificate:"),
        "{grounds:?}"
    );
}

#[test]
fn a_manufacturers_certificate_enrols_within_a_batch_of_the_ca() {
    let place = Place::new("");
    let maker = countersign_testkit::pki::Ca::root("manufacturer", None);
    let admission = json!({ "mode": "known-device" });
    place
        .server()
        .register("maker", "default", &maker, &admission)
        .unwrap();
    let enrol = |device: &str| {
        place
            .server()
            .cli_ok(&["device", "add", device, "--authority", "maker"])
            .unwrap();
        let mut leaf = countersign_testkit::pki::Leaf::named(device);
        leaf.usage = None;
        let idevid = maker.issue(&leaf, &[]);
        let (cert, key) = (place.text("idevid.pem"), place.text("idevid.key"));
        std::fs::write(&cert, idevid.pem).unwrap();
        std::fs::write(&key, idevid.key_pem).unwrap();
        let (_, csr) = place.request(&format!("{device}-ldevid"), "/CN=x");
        place.est("simpleenroll", &csr, &["--cert", &cert, "--key", &key])
    };
    let (status, text) = enrol("SN-1");
    assert!(
        status == "403" && text.contains("no open batch"),
        "{status} {text}"
    );
    place.ca.batch("b", "SN-*", 1, &[]);
    assert_eq!(enrol("SN-2").0, "200");
    let (status, text) = enrol("SN-3");
    assert!(status == "403" && text.contains("quota"), "{status} {text}");
    assert_eq!(place.ca.count(), 1);
}

#[test]
fn a_ca_with_its_key_in_a_token_serves_a_platform_that_was_made_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let text = |name: &str| folder.path().join(name).display().to_string();
    std::fs::create_dir(text("tokens")).unwrap();
    std::fs::write(
        text("hsm.conf"),
        format!("directories.tokendir = {}\n", text("tokens")),
    )
    .unwrap();
    std::fs::write(text("pin"), "1357").unwrap();
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(text("pin"), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    ok(Command::new("softhsm2-util")
        .env("SOFTHSM2_CONF", text("hsm.conf"))
        .args([
            "--init-token",
            "--free",
            "--label",
            "ca",
            "--so-pin",
            "0000",
            "--pin",
            "1357",
        ]));
    let module = [
        "/usr/lib/softhsm/libsofthsm2.so",
        "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    ]
    .into_iter()
    .find(|p| Path::new(p).exists())
    .expect("apt-get install softhsm2");
    let uri = format!(
        "pkcs11:token=ca;object=fleet?module-path={module}&pin-source={}",
        text("pin")
    );
    let environment = vec![("SOFTHSM2_CONF".to_owned(), folder.path().join("hsm.conf"))];
    let mut ca = CaProcess::with_environment(program(), &folder.path().join("ca"), environment);
    ca.ok(&[
        "authority",
        "add",
        "fleet",
        "--key-store",
        "pkcs11",
        "--pkcs11-uri",
        &uri,
    ]);
    ca.batch("b", "SN-*", 5, &[]);
    ca.start();
    // The platform never had a key that signs device certificates, and sees neither token nor PIN.
    let socket = ca.socket().display().to_string();
    let data = text("data");
    ok(Command::new(program()).args(["--data", &data, "init", "--ca-socket", &socket]));
    let written = std::fs::read_to_string(text("data/countersign.toml")).unwrap();
    assert!(written.contains("[ca]") && written.contains(&socket), "{written}");
    let found = ok(Command::new("find")
        .arg(text("data/authorities/devices"))
        .args(["-name", "*.key"]));
    assert_eq!(found, "");
    let out = text("SN-1");
    ok(Command::new(program()).args(["--data", &data, "device", "provision", "SN-1", "--out", &out]));
    let authority = ca.path("authorities/fleet");
    ok(Command::new("openssl")
        .args(["verify", "-purpose", "sslclient", "-CAfile"])
        .arg(authority.join("root.crt"))
        .arg("-untrusted")
        .arg(authority.join("issuing.crt"))
        .arg(text("SN-1/device.crt")));
    assert!(!authority.join("issuing.key").exists() && !authority.join("root.key").exists());
    // The PIN goes wrong while it runs, and it is started again: told, nothing minted; put right, it goes on.
    std::fs::write(text("pin"), "9999").unwrap();
    ca.kill();
    ca.start();
    let refused = run(Command::new(program()).args([
        "--data",
        &data,
        "device",
        "provision",
        "SN-2",
        "--out",
        &text("SN-2"),
    ]));
    let said = said(&refused);
    assert!(
        !refused.status.success() && said.contains("is wrong") && !said.contains("9999"),
        "{said}"
    );
    std::fs::write(text("pin"), "1357").unwrap();
    ok(Command::new(program()).args([
        "--data",
        &data,
        "device",
        "provision",
        "SN-2",
        "--out",
        &text("SN-2"),
    ]));
    assert_eq!(ca.count(), 2);
    let findings = serde_json::from_slice::<serde_json::Value>(&ca.operator(&["status"]).stdout).unwrap();
    let key = findings
        .as_array()
        .unwrap()
        .iter()
        .find(|f| f["name"] == "key of fleet")
        .unwrap()
        .clone();
    assert!(
        key["ok"] == true && key["detail"].as_str().unwrap().contains("pkcs11"),
        "{findings}"
    );
    // The log is a chain: a changed entry is found.
    let db = rusqlite::Connection::open(ca.path("ca.db")).unwrap();
    assert!(
        db.execute("UPDATE log SET actor = 'nobody' WHERE seq = 2", [])
            .is_err(),
        "append-only"
    );
    assert!(
        db.execute("UPDATE certificates SET state = 'issued', ended = NULL", [])
            .is_ok()
    );
    db.execute_batch("DROP TRIGGER log_is_append_only_update; UPDATE log SET actor = 'nobody' WHERE seq = 2")
        .unwrap();
    let findings = String::from_utf8(ca.operator(&["status"]).stdout).unwrap();
    assert!(findings.contains("entry 2 does not follow"), "{findings}");
}

#[test]
fn the_root_key_of_the_ca_goes_offline_and_an_external_root_may_be_above() {
    let place = Place::new("");
    let out = place.text("root.key");
    place
        .ca
        .ok(&["authority", "take-root-offline", "fleet", "--out", &out]);
    assert!(std::fs::read_to_string(&out).unwrap().contains("PRIVATE KEY"));
    assert!(!place.ca.path("authorities/fleet/root.key").exists());
    let again = place.ca.operator(&[
        "authority",
        "take-root-offline",
        "fleet",
        "--out",
        &place.text("x"),
    ]);
    place.refused(&again, &["is not in a file here"]);
    place.ca.batch("b", "SN-*", 5, &[]);
    assert!(place.provision("SN-1", &[]).status.success());

    let text = |name: &str| place.text(name);
    place
        .ca
        .ok(&["authority", "add", "ext", "--csr", &text("ext.csr")]);
    ok(Command::new("openssl").args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-keyout",
        &text("r.key"),
        "-out",
        &text("r.crt"),
        "-subj",
        "/CN=external root",
        "-days",
        "3650",
    ]));
    ok(Command::new("openssl").args([
        "req",
        "-new",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        &text("s.key"),
        "-out",
        &text("s.csr"),
        "-subj",
        "/CN=sub CA",
    ]));
    let sign = |request: &str, ca: &str, length: u8, more: &str, out: &str| {
        let extensions = format!(
            "basicConstraints=critical,CA:TRUE,pathlen:{length}\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n{more}"
        );
        std::fs::write(text("ext"), extensions).unwrap();
        ok(Command::new("openssl").args([
            "x509",
            "-req",
            "-in",
            &text(request),
            "-CA",
            &text(&format!("{ca}.crt")),
            "-CAkey",
            &text(&format!("{ca}.key")),
            "-days",
            "900",
            "-extfile",
            &text("ext"),
            "-out",
            &text(out),
        ]));
        let chain = [out, "s.crt", "r.crt"].map(|file| std::fs::read_to_string(text(file)).unwrap());
        std::fs::write(text("chain.pem"), chain.concat()).unwrap();
    };
    sign("s.csr", "r", 1, "", "s.crt");
    // What the platform would refuse the CA does not take: the id is still to be had for the right one.
    sign("ext.csr", "s", 0, "extendedKeyUsage=serverAuth\n", "i.crt");
    let wrong = place
        .ca
        .operator(&["authority", "install", "ext", &text("chain.pem")]);
    place.refused(&wrong, &["lacks clientAuth"]);
    sign("ext.csr", "s", 0, "", "i.crt");
    place.ca.ok(&["authority", "install", "ext", &text("chain.pem")]);
    // While both processes run: made there, taken in here.
    place.server().cli_ok(&["authority", "create", "ext"]).unwrap();
    place.ca.ok(&[
        "batch",
        "add",
        "e",
        "--authority",
        "ext",
        "--pattern",
        "SN-2",
        "--quota",
        "1",
    ]);
    assert!(place.provision("SN-2", &["--authority", "ext"]).status.success());
    assert!(place.publish("SN-2").status.success());
    assert!(place.publish("SN-1").status.success());
    // What stands between the two is handed out here too.
    let bundle = format!(
        "http://{}/bundle/default",
        place.server().listener("pki").unwrap()
    );
    ok(Command::new("curl").args(["-sSf", "-o", &text("bundle.pem"), &bundle]));
    ok(Command::new("openssl").args(["verify", "-CAfile", &text("bundle.pem"), &text("SN-2/device.crt")]));
}
