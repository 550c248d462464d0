//! Offline factory stations with the real programs: from the grant to the first connection, and every way to cheat.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign_authority::IssuingAuthority;
use countersign_factory::station::journal::{Record, recover};
use countersign_factory::station::{Event, GrantFile, Head};
use countersign_factory::{EnrolmentGrant, ProvenKey, SoftwareKey};
use countersign_identity::signed::Signer;
use countersign_identity::{DeviceId, Timestamp};
use countersign_testkit::agent::Agent;
use countersign_testkit::client::{Attempt, Seen, connect, publish};
use countersign_testkit::pki::Identity;
use countersign_testkit::server::{Server, listener};
use countersign_testkit::station_crash;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;

/// The station's program: beside the server's, built if it is not there.
fn station_program() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_countersign")).with_file_name("countersign-station");
    if !program.exists() {
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "-p", "countersign-station"])
            .status()
            .unwrap();
        assert!(built.success());
    }
    program
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    Timestamp::from_unix_ms(since.as_millis().try_into().unwrap())
}

struct Place {
    folder: tempfile::TempDir,
    server: Server,
}

impl Place {
    /// A server with a factory CA, and a batch of twenty.
    fn new() -> Self {
        Self::with("")
    }

    fn with(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_countersign"));
        let server = Server::start(program, &folder.path().join("data"), config).unwrap();
        let place = Self { folder, server };
        place.ok(&["authority", "create", "factory", "--factory"]);
        place.batch("b1", "SN-*", 20);
        place
    }

    fn batch(&self, id: &str, pattern: &str, quota: u32) {
        let quota = quota.to_string();
        self.ok(&[
            "factory",
            "batch",
            "add",
            id,
            "--model",
            "pump",
            "--profile",
            "operational",
            "--id-pattern",
            pattern,
            "--quota",
            &quota,
        ]);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn ok(&self, arguments: &[&str]) -> String {
        self.server.cli_ok(arguments).unwrap()
    }

    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.server.cli(arguments).unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(4), "{arguments:?}: {text}");
        assert!(text.contains("hint: "), "{arguments:?}: {text}");
        text
    }

    fn try_station(&self, name: &str, arguments: &[&str]) -> Output {
        Command::new(station_program())
            .arg("--folder")
            .arg(self.path(name))
            .args(arguments)
            .output()
            .unwrap()
    }

    fn station(&self, name: &str, arguments: &[&str]) -> String {
        let output = self.try_station(name, arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    fn add(&self, id: &str, quota: u32, ids: &str, minutes: (i64, i64), csr: &str, out: &str) -> Output {
        let at = |m: i64| Timestamp::from_unix_ms(now().unix_ms() + m * 60_000).to_string();
        self.server
            .cli(&[
                "factory",
                "station",
                "add",
                id,
                "--batch",
                "b1",
                "--csr",
                csr,
                "--quota",
                &quota.to_string(),
                "--from",
                &at(minutes.0),
                "--to",
                &at(minutes.1),
                "--ids",
                ids,
                "--out",
                out,
            ])
            .unwrap()
    }

    /// A station with a grant, in a folder of its name.
    fn granted(&self, name: &str, quota: u32, ids: &str) {
        self.station(name, &["init"]);
        let grant = self.text(&format!("{name}.grant"));
        let csr = self.text(&format!("{name}/station.csr"));
        let added = self.add(name, quota, ids, (-60, 60), &csr, &grant);
        assert!(
            added.status.success(),
            "{}",
            String::from_utf8_lossy(&added.stderr)
        );
        self.station(name, &["install", &grant]);
    }

    fn export(&self, name: &str) -> String {
        let file = self.text(&format!("{name}.journal"));
        self.station(name, &["export", "--out", &file]);
        file
    }

    fn reconcile(&self, journal: &str) -> Value {
        serde_json::from_str(&self.ok(&["factory", "reconcile", journal, "--json"])).unwrap()
    }

    /// What a journal that is refused as a whole comes to: its code.
    fn refused_whole(&self, journal: &str) -> String {
        let output = self
            .server
            .cli(&["factory", "reconcile", journal, "--json"])
            .unwrap();
        assert_eq!(output.status.code(), Some(4));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["verdict"], "refused", "{report}");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains("hint: "), "{error}");
        report["code"].as_str().unwrap().to_owned()
    }

    /// What was refused of a journal that counts in part: number and code of each.
    fn refused_in_part(&self, journal: &str) -> (Value, Vec<(u64, String)>) {
        let output = self
            .server
            .cli(&["factory", "reconcile", journal, "--json"])
            .unwrap();
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["verdict"], "partial", "{report}");
        let codes = report["refused"].as_array().unwrap().iter().map(|r| {
            assert!(r["message"].as_str().unwrap().contains("; hint: "), "{r}");
            (
                r["number"].as_u64().unwrap(),
                r["code"].as_str().unwrap().to_owned(),
            )
        });
        let codes = codes.collect();
        (report, codes)
    }

    fn identity(&self, folder: &str) -> Identity {
        let read = |file: &str| std::fs::read_to_string(self.path(folder).join(file)).unwrap();
        Identity {
            chain: CertificateDer::pem_slice_iter(read("device.crt").as_bytes())
                .collect::<Result<_, _>>()
                .unwrap(),
            key: PrivateKeyDer::from_pem_slice(read("device.key").as_bytes()).unwrap(),
            pem: read("device.crt"),
            key_pem: read("device.key"),
        }
    }

    /// Connects as MQTT 5, and publishes in the same breath.
    fn connect(&self, identity: &Identity, id: &str) -> Seen {
        let attempt = Attempt {
            patience: Duration::from_millis(1000),
            ..Attempt::new(self.server.devices)
        };
        let attempt = attempt.identity(identity).send(connect(5, id));
        Attempt {
            then: publish(5, &format!("devices/{id}/telemetry"), 1, 0),
            ..attempt
        }
        .run()
    }

    fn key(&self, name: &str) -> SoftwareKey {
        let pem = std::fs::read(self.path(name).join("station.key")).unwrap();
        SoftwareKey::from_pkcs8(
            PrivatePkcs8KeyDer::from_pem_slice(&pem)
                .unwrap()
                .secret_pkcs8_der(),
        )
        .unwrap()
    }
}

/// Whoever has the station's key, and no scruples: writes on where the journal stands.
struct Thief {
    key: SoftwareKey,
    authority: IssuingAuthority,
    file: GrantFile,
    head: Head,
    bytes: Vec<u8>,
}

impl Thief {
    fn of(place: &Place, name: &str) -> Self {
        let key = place.key(name);
        let grant = std::fs::read(place.path(name).join("grant.json")).unwrap();
        let (file, _) = GrantFile::parse(&grant).unwrap();
        let chain: Vec<_> = CertificateDer::pem_slice_iter(file.chain.as_bytes())
            .collect::<Result<_, _>>()
            .unwrap();
        let authority =
            IssuingAuthority::station(Box::new(place.key(name)), chain[0].clone(), chain[1].clone()).unwrap();
        let bytes = std::fs::read(place.path(name).join("journal")).unwrap();
        let head = recover(&bytes, key.public_key(), &key.algorithm()).unwrap().head;
        Self {
            key,
            authority,
            file,
            head,
            bytes,
        }
    }

    fn write(&mut self, at: Timestamp, event: Event) {
        let (line, _, head) = self.head.append(at, event, &self.key).unwrap();
        self.bytes.extend(line);
        self.head = head;
    }

    fn issue(&mut self, id: &str, key: &SoftwareKey, at: Timestamp) {
        let device = DeviceId::new(id).unwrap();
        let terms = &self.file.terms;
        let grant = EnrolmentGrant::new(
            terms.tenant.clone(),
            device.clone(),
            ProvenKey::of(key),
            terms.profile.clone(),
        )
        .unwrap();
        let issued = self.authority.issue_device(&grant, at).unwrap();
        let certificate = STANDARD.encode(issued.certificate());
        self.write(at, Event::Issue { device, certificate });
    }

    fn export(&self, place: &Place, name: &str) -> String {
        let (seal, ..) = self.head.append(now(), Event::Seal {}, &self.key).unwrap();
        std::fs::write(place.path(name), [self.bytes.clone(), seal].concat()).unwrap();
        place.text(name)
    }
}

fn openssl(arguments: &[&str]) {
    let output = Command::new("openssl").args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "openssl {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn identities_of_an_offline_station_are_let_in_once_its_journal_is_reconciled() {
    let place = Place::with(&listener("enrol"));
    place.granted("line-1", 3, "SN-001..SN-009");

    // One key is made by the device, one by the station.
    let (device_key, csr) = (place.text("device.key"), place.text("device.csr"));
    openssl(&[
        "req",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-keyout",
        &device_key,
        "-out",
        &csr,
        "-subj",
        "/CN=whatever",
    ]);
    place.station("line-1", &["issue", "SN-001", "--csr", &csr]);
    place.station("line-1", &["issue", "SN-003"]);
    let folder = |id: &str| format!("line-1/devices/{id}");
    std::fs::copy(&device_key, place.path(&folder("SN-001")).join("device.key")).unwrap();
    let (first, second) = (
        place.identity(&folder("SN-001")),
        place.identity(&folder("SN-003")),
    );
    assert_eq!(
        first.chain.len(),
        2,
        "the device sends its station's certificate too"
    );
    // Asking again gives the same, and nothing new is signed.
    place.station("line-1", &["issue", "SN-003"]);
    assert_eq!(place.identity(&folder("SN-003")).pem, second.pem);

    // The chain is sound, and nobody knows the credential: refused, also where the device is listed.
    assert_eq!(place.connect(&first, "SN-001").connack(), Some(0x87));
    // Whether or not the device is listed: what is missing is the journal.
    let is_told = |text: String| {
        for part in [
            "credential.not-reconciled",
            "factory station line-1",
            "countersign factory reconcile",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    };
    let certificate = place.text(&folder("SN-001")) + "/device.crt";
    let why = |arguments: &[&str]| {
        let output = place.server.cli(&[&["why"], arguments].concat()).unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let by_name = |text: String| {
        assert!(
            text.contains("if factory station line-1 issued")
                && text.contains("countersign factory reconcile"),
            "{text}"
        );
    };
    by_name(why(&["SN-001"]));
    is_told(place.ok(&["explain", "SN-001"]));
    place.ok(&["device", "add", "SN-001"]);
    assert_eq!(place.connect(&first, "SN-001").connack(), Some(0x87));
    is_told(place.ok(&["explain", "SN-001"]));
    is_told(why(&[&certificate]));
    by_name(why(&["SN-001"]));
    assert!(
        !why(&["SN-100"]).contains("reconcile"),
        "no station may have issued that"
    );
    // Where it enrols it is told the same.
    let (root, der) = (place.text("root.pem"), place.text("est.csr"));
    std::fs::write(&root, place.ok(&["authority", "export", "platform"])).unwrap();
    openssl(&["req", "-in", &csr, "-outform", "DER", "-out", &der]);
    let port = place.server.listener("enrol").unwrap().port();
    let output = Command::new("curl")
        .args([
            "-sS",
            "--max-time",
            "20",
            "--cacert",
            &root,
            "--cert",
            &certificate,
            "--key",
            &device_key,
        ])
        .args(["-H", "Content-Type: application/pkcs10", "--data-binary"])
        .arg(STANDARD.encode(std::fs::read(&der).unwrap()))
        .arg(format!("https://localhost:{port}/.well-known/est/simpleenroll"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("credential.not-reconciled"), "{text} {output:?}");

    // Confirmed: by the device's own signature, made with openssl, and by a folder.
    place.station("line-1", &["written", "SN-001"]);
    let (challenge, signature) = (place.text("challenge"), place.text("signature"));
    place.station("line-1", &["challenge", "SN-001", "--out", &challenge]);
    let other = place.path(&folder("SN-003")).join("device.key");
    openssl(&[
        "dgst",
        "-sha256",
        "-sign",
        &other.display().to_string(),
        "-out",
        &signature,
        &challenge,
    ]);
    let wrong = place.try_station(
        "line-1",
        &["--json", "confirm", "SN-001", "--signature", &signature],
    );
    assert_eq!(wrong.status.code(), Some(4));
    let error: Value = serde_json::from_slice(&wrong.stderr).unwrap();
    assert_eq!(error["error"]["code"], "station.unproven");
    openssl(&[
        "dgst",
        "-sha256",
        "-sign",
        &device_key,
        "-out",
        &signature,
        &challenge,
    ]);
    place.station("line-1", &["confirm", "SN-001", "--signature", &signature]);

    let journal = place.export("line-1");
    let report = place.reconcile(&journal);
    assert_eq!(report["verdict"], "accepted", "{report}");
    assert_eq!(
        (&report["registered"], &report["confirmed"]),
        (&2.into(), &1.into())
    );
    assert_eq!(report["unconfirmed"], serde_json::json!(["SN-003"]));
    assert_eq!(report["gaps"], serde_json::json!(["SN-002"]));
    for (identity, id) in [(&first, "SN-001"), (&second, "SN-003")] {
        let seen = place.connect(identity, id);
        assert_eq!(seen.connack(), Some(0), "{id}: {seen:?}");
        assert_eq!(seen.packets().len(), 2, "the publish is acknowledged: {seen:?}");
    }
    // A device that sends only its own certificate: its station's is kept here.
    let alone = Identity {
        chain: vec![first.chain[0].clone()],
        key: first.key.clone_key(),
        ..place.identity(&folder("SN-001"))
    };
    assert_eq!(place.connect(&alone, "SN-001").connack(), Some(0));
    let batch: Value =
        serde_json::from_str(&place.ok(&["factory", "batch", "show", "b1", "--json"])).unwrap();
    assert_eq!(batch["devices"], 2, "{batch}");
    assert_eq!(
        batch["credentials"]["active"], 2,
        "one confirmed, one by first use: {batch}"
    );

    // Again: nothing changes. Then a longer one goes on, and the grant is closed.
    let report = place.reconcile(&journal);
    assert_eq!((&report["registered"], &report["known"]), (&0.into(), &2.into()));
    place.station(
        "line-1",
        &["confirm", "SN-003", "--identity", &place.text(&folder("SN-003"))],
    );
    place.station("line-1", &["issue", "SN-004"]);
    let full = place.try_station("line-1", &["issue", "SN-005"]);
    assert_eq!(full.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&full.stderr).contains("[station.overrun]"));
    place.station("line-1", &["close", "--reason", "shift ends"]);
    assert!(!place.path("line-1/station.key").exists());
    let longer = place.export("line-1");
    let report = place.reconcile(&longer);
    assert_eq!(
        (&report["registered"], &report["closed"]),
        (&1.into(), &true.into()),
        "{report}"
    );
    // The older one, after the longer: it has nothing to add, and takes nothing back.
    std::fs::copy(&longer, place.path("kept")).unwrap();
    let list = place.ok(&["factory", "station", "list"]);
    assert!(list.contains("closed") && list.contains("line-1"), "{list}");
    let after = place.try_station("line-1", &["issue", "SN-006"]);
    assert!(String::from_utf8_lossy(&after.stderr).contains("[station.closed]"));
}

/// The device makes its key, the station certifies it, the device proves it: the key never leaves the device.
#[test]
fn a_device_that_makes_its_own_key_is_certified_and_proves_it() {
    let place = Place::new();
    place.granted("line-1", 5, "SN-001..SN-009");
    let agent = Agent::new(Path::new(env!("CARGO_BIN_EXE_countersign")), place.path("device"));
    let csr = agent.ok(&["request", "SN-001"]);
    std::fs::write(place.path("SN-001.csr"), csr).unwrap();
    place.station(
        "line-1",
        &[
            "issue",
            "SN-001",
            "--csr",
            &place.text("SN-001.csr"),
            "--out",
            &place.text("out"),
        ],
    );
    let from = place.text("out/SN-001");
    assert!(!Path::new(&from).join("device.key").exists());
    let said = agent.ok(&["install", &from]);
    assert!(said.contains("beside its key"), "{said}");
    // The line lost power there, and does it again.
    agent.ok(&["install", &from]);
    place.station("line-1", &["written", "SN-001"]);
    place.station(
        "line-1",
        &["challenge", "SN-001", "--out", &place.text("challenge")],
    );
    let signature = agent.ok(&["prove", &place.text("challenge")]);
    std::fs::write(place.path("signature"), &signature).unwrap();
    place.station(
        "line-1",
        &["confirm", "SN-001", "--signature", &place.text("signature")],
    );

    // It signs nothing else: not a challenge for another device, nor any other text.
    let challenge = std::fs::read_to_string(place.path("challenge")).unwrap();
    for text in [
        challenge.replace("SN-001", "SN-002"),
        format!("{challenge}x y"),
        "pay 100".into(),
    ] {
        std::fs::write(place.path("other"), text).unwrap();
        let (code, _, err) = agent.run(&["prove", &place.text("other")]);
        assert_eq!(code, 2, "{err}");
        assert!(err.contains("hint: "), "{err}");
    }
    // What was issued for another key is not taken.
    let other = Agent::new(
        Path::new(env!("CARGO_BIN_EXE_countersign")),
        place.path("other-device"),
    );
    other.ok(&["request", "SN-001"]);
    let (code, _, err) = other.run(&["install", &from]);
    assert_eq!(code, 3, "{err}");
    assert!(!other.folder.join("device.crt").exists());

    let journal = place.export("line-1");
    place.reconcile(&journal);
    agent.ok(&["check"]);
}

#[test]
fn a_stolen_station_is_one_revocation() {
    let place = Place::with(&listener("pki"));
    let serials = || {
        let url = format!("http://{}/crl/factory.crl", place.server.listener("pki").unwrap());
        let file = place.text("factory.crl");
        let got = Command::new("curl")
            .args(["-sSf", "-o", &file, &url])
            .status()
            .unwrap();
        assert!(got.success());
        let read = Command::new("openssl")
            .args(["crl", "-inform", "DER", "-noout", "-text", "-in", &file])
            .output()
            .unwrap();
        String::from_utf8(read.stdout).unwrap().to_lowercase()
    };
    place.granted("line-1", 3, "SN-*");
    place.station("line-1", &["issue", "SN-1"]);
    place.reconcile(&place.export("line-1"));
    place.station("line-1", &["issue", "SN-2"]);
    let later = place.export("line-1");
    let first = place.identity("line-1/devices/SN-1");
    assert_eq!(place.connect(&first, "SN-1").connack(), Some(0));

    place.ok(&[
        "factory",
        "station",
        "revoke",
        "line-1",
        "--reason",
        "gone",
        "--code",
        "key-compromise",
    ]);
    assert_eq!(place.refused_whole(&later), "station.revoked");
    // For others: the station itself is on the factory CA's list.
    let shown: Value =
        serde_json::from_str(&place.ok(&["factory", "station", "show", "line-1", "--json"])).unwrap();
    let list = serials();
    assert!(list.contains(shown["serial"].as_str().unwrap()), "{shown} {list}");
    assert_eq!(list.matches("serial number:").count(), 1, "{list}");
    let second = place.identity("line-1/devices/SN-2");
    assert_eq!(place.connect(&second, "SN-2").connack(), Some(0x87));
    let text = place.ok(&["explain", "SN-2"]);
    assert!(
        text.contains("credential.station-revoked") && text.contains("countersign device provision"),
        "{text}"
    );
    // Nor by any other way.
    place.ok(&["device", "add", "SN-2"]);
    let certificate = place.path("line-1/devices/SN-2/device.crt");
    std::fs::create_dir(place.path("import")).unwrap();
    std::fs::copy(certificate, place.path("import/SN-2.pem")).unwrap();
    let imported = place
        .server
        .cli(&["device", "import", &place.text("import")])
        .unwrap();
    let said =
        String::from_utf8_lossy(&imported.stdout).into_owned() + &String::from_utf8_lossy(&imported.stderr);
    assert!(said.contains("factory station line-1"), "{said}");
    assert_eq!(place.connect(&second, "SN-2").connack(), Some(0x87));
    // What was accepted before is let in, until it is revoked too: then a live session ends.
    let mut live = Attempt {
        patience: Duration::from_secs(20),
        ..Attempt::new(place.server.devices)
    };
    live = live.identity(&first).send(connect(5, "SN-1"));
    let live = std::thread::spawn(move || {
        let started = Instant::now();
        (live.run(), started.elapsed())
    });
    let sessions = || {
        place
            .server
            .ask("GET", "/sessions", None)
            .unwrap()
            .as_array()
            .unwrap()
            .len()
    };
    let started = Instant::now();
    while sessions() == 0 {
        assert!(started.elapsed() < Duration::from_secs(10), "no session");
        std::thread::sleep(Duration::from_millis(10));
    }
    let text = place.ok(&[
        "factory",
        "station",
        "revoke",
        "line-1",
        "--with-devices",
        "--code",
        "key-compromise",
    ]);
    assert!(
        text.contains("1 certificate(s) revoked") && text.contains("1 session"),
        "{text}"
    );
    let (seen, _) = live.join().unwrap();
    assert_eq!(seen.connack(), Some(0));
    assert_eq!(sessions(), 0);
    assert_eq!(place.connect(&first, "SN-1").alert, Some(44));
}

#[test]
fn a_journal_that_is_not_as_the_station_wrote_it_counts_for_nothing() {
    let place = Place::new();
    place.granted("line-1", 5, "SN-*");
    // Somebody copies the machine: from here on there are two of them.
    let copy = Command::new("cp")
        .args(["-a", &place.text("line-1"), &place.text("line-2")])
        .status()
        .unwrap();
    assert!(copy.success());
    place.station("line-1", &["issue", "SN-1"]);
    place.station("line-1", &["issue", "SN-2"]);
    let journal = place.export("line-1");
    let bytes = std::fs::read(&journal).unwrap();
    let lines: Vec<&[u8]> = bytes.split_inclusive(|b| *b == b'\n').collect();
    assert_eq!(lines.len(), 4, "open, two issues, seal");
    let changed = |name: &str, bytes: &[u8]| {
        std::fs::write(place.path(name), bytes).unwrap();
        place.refused_whole(&place.text(name))
    };
    assert_eq!(changed("cut", &bytes[..bytes.len() - 300]), "journal.cut-off");
    assert_eq!(changed("unsealed", &lines[..3].concat()), "journal.cut-off");
    assert_eq!(
        changed("missing", &[lines[0], lines[2], lines[3]].concat()),
        "journal.gap"
    );
    let edited = String::from_utf8(bytes.clone())
        .unwrap()
        .replacen("SN-2", "SN-9", 1);
    assert_eq!(changed("edited", edited.as_bytes()), "journal.edited");
    assert_eq!(changed("nothing", b"hello"), "journal.not-opened");
    let list = place.ok(&["device", "list", "--json"]);
    assert!(!list.contains("SN-"), "nothing was merged: {list}");

    place.reconcile(&journal);
    // The other one of the two, shorter and longer than what was accepted.
    place.station("line-2", &["issue", "SN-3"]);
    assert_eq!(place.refused_whole(&place.export("line-2")), "journal.twin");
    place.station("line-2", &["issue", "SN-4"]);
    place.station("line-2", &["issue", "SN-5"]);
    assert_eq!(place.refused_whole(&place.export("line-2")), "journal.twin");
    // One of another key that goes by its name.
    place.station("line-3", &["init"]);
    let (csr, grant) = (place.text("line-3/station.csr"), place.text("line-3.grant"));
    let added = place.add("line-1", 5, "SN-*", (-60, 60), &csr, &grant);
    assert_eq!(added.status.code(), Some(4), "an id is given once");
    // The audit tells of each.
    let audit = place.server.ask("GET", "/audit", None).unwrap().to_string();
    for code in ["journal.cut-off", "journal.edited", "journal.twin"] {
        assert!(audit.contains(code), "{code}");
    }
    // What is left of a station that cannot export any more.
    place.ok(&["factory", "station", "revoke", "line-1", "--reason", "copied"]);
    place.granted("line-4", 2, "SN-4*");
    place.station("line-4", &["issue", "SN-41"]);
    let raw = place.text("line-4/journal");
    assert_eq!(place.refused_whole(&raw), "journal.cut-off");
    let report = place.ok(&["factory", "reconcile", &raw, "--salvaged"]);
    assert!(report.contains("1 registered"), "{report}");
}

#[test]
fn whoever_has_the_stations_key_gets_no_further_than_its_terms() {
    let place = Place::new();
    // A device that is there already, with its key.
    place.ok(&["device", "provision", "old", "--out", &place.text("old")]);
    let old = std::fs::read(place.path("old/device.key")).unwrap();
    let old = SoftwareKey::from_pkcs8(
        PrivatePkcs8KeyDer::from_pem_slice(&old)
            .unwrap()
            .secret_pkcs8_der(),
    )
    .unwrap();
    place.granted("line-1", 7, "SN-00..SN-09");
    place.ok(&["device", "provision", "SN-07", "--out", &place.text("taken")]);
    let mut thief = Thief::of(&place, "line-1");
    let key = || SoftwareKey::generate().unwrap();
    let at = now();
    thief.issue("SN-01", &key(), at);
    thief.issue("SN-77", &key(), at);
    thief.issue("XX-01", &key(), at);
    thief.issue("SN-02", &old, at);
    thief.issue("SN-07", &key(), at);
    thief.issue("SN-01", &key(), at);
    thief.issue("SN-03", &key(), at);
    thief.issue("SN-04", &key(), at);
    let journal = thief.export(&place, "forged");
    let (report, codes) = place.refused_in_part(&journal);
    let expected = [
        (2, "station.foreign-id"),
        (3, "station.foreign-id"),
        (4, "station.key-of-other"),
        (5, "station.duplicate-id"),
        (6, "station.duplicate-id"),
        (8, "station.overrun"),
    ];
    assert_eq!(codes, expected.map(|(n, code)| (n, code.to_owned())), "{report}");
    assert_eq!(report["registered"], 2);
    let shown = place.ok(&["factory", "station", "show", "line-1"]);
    assert!(
        shown.contains("accepted   2 of 7") && shown.contains("refused    6"),
        "{shown}"
    );
    // Again: the same, and nothing is counted twice.
    let (report, codes) = place.refused_in_part(&journal);
    assert_eq!((report["registered"].as_u64(), codes.len()), (Some(0), 6));

    // Outside the window, and of times that are yet to come.
    place.granted("line-2", 2, "SN-1?");
    let mut thief = Thief::of(&place, "line-2");
    thief.write(
        Timestamp::from_unix_ms(now().unix_ms() + 3_600_000),
        Event::Written {
            device: DeviceId::new("SN-10").unwrap(),
            fingerprint: countersign_identity::Fingerprint::of(b"x"),
        },
    );
    assert_eq!(
        place.refused_whole(&thief.export(&place, "ahead")),
        "journal.clock"
    );
    place.station("line-5", &["init"]);
    let (csr, grant) = (place.text("line-5/station.csr"), place.text("line-5.grant"));
    let added = place.add("line-5", 1, "SN-2?", (30, 60), &csr, &grant);
    assert!(
        added.status.success(),
        "{}",
        String::from_utf8_lossy(&added.stderr)
    );
    place.station("line-5", &["install", &grant]);
    let early = place.try_station("line-5", &["issue", "SN-20"]);
    assert!(String::from_utf8_lossy(&early.stderr).contains("[station.window]"));
    let mut thief = Thief::of(&place, "line-5");
    thief.issue("SN-20", &key(), now());
    let (_, codes) = place.refused_in_part(&thief.export(&place, "early"));
    assert_eq!(codes, [(1, "station.window".to_owned())]);

    // Another grant than was given.
    place.station("line-6", &["init"]);
    let (csr, grant) = (place.text("line-6/station.csr"), place.text("line-6.grant"));
    assert!(
        place
            .add("line-6", 1, "SN-3?", (-60, 60), &csr, &grant)
            .status
            .success()
    );
    let more = std::fs::read_to_string(&grant)
        .unwrap()
        .replace("\"quota\": 1", "\"quota\": 9");
    std::fs::write(place.path("more.grant"), more).unwrap();
    place.station("line-6", &["install", &place.text("more.grant")]);
    place.station("line-6", &["issue", "SN-30", "SN-31"]);
    assert_eq!(
        place.refused_whole(&place.export("line-6")),
        "journal.other-grant"
    );
}

#[test]
fn a_stations_device_is_never_learned_at_first_contact() {
    let place = Place::new();
    place.granted("line-1", 2, "SN-*");
    place.station("line-1", &["issue", "SN-1"]);
    let device = place.identity("line-1/devices/SN-1");
    let template = place.text("template.toml");
    std::fs::write(&template, "id_pattern = \"*\"\nquota = 9\nstate = \"active\"\n").unwrap();
    for mode in [
        vec!["known-device"],
        vec!["just-in-time", "--template", &template],
    ] {
        let mut arguments = vec!["authority", "set", "factory", "--admission"];
        arguments.extend(mode);
        assert!(place.refused(&arguments).contains("factory CA"));
    }
    // The factory's root, brought as an authority that learns whatever comes, and the factory itself out of the way.
    let root = |file: &str| place.text(&format!("data/authorities/devices/factory/{file}"));
    place.ok(&[
        "authority",
        "register",
        "root",
        &root("root.crt"),
        "--key",
        &root("root.key"),
        "--admission",
        "just-in-time",
        "--template",
        &template,
    ]);
    place.ok(&["authority", "revoke", "factory", "--reason", "test"]);
    let mut chain = device.chain.clone();
    let factory = std::fs::read(root("issuing.crt")).unwrap();
    chain.push(CertificateDer::from_pem_slice(&factory).unwrap());
    let through_root = Identity {
        chain,
        key: device.key.clone_key(),
        ..place.identity("line-1/devices/SN-1")
    };
    // A CA that ended does not come back through its parent.
    let seen = place.connect(&through_root, "SN-1");
    assert_eq!((seen.connack(), seen.alert), (None, Some(44)), "{seen:?}");
    let text = place.ok(&["explain", "--recent", "--refused"]);
    assert!(text.contains("authority.revoked"), "{text}");
    let missing = place.server.cli(&["device", "show", "SN-1"]).unwrap();
    assert_eq!(missing.status.code(), Some(3), "nothing was learned");
}

#[test]
fn ids_that_are_taken_are_granted_to_nobody_unless_that_is_said() {
    let place = Place::new();
    place.ok(&["device", "provision", "SN-07", "--out", &place.text("taken")]);
    // One that waits for its certificate is not taken: a journal may bring it.
    place.ok(&["device", "add", "SN-31"]);
    let add = |id: &str, ids: &str, more: &[&str]| {
        // The second time it has a key already.
        place.try_station(id, &["init"]);
        let (csr, grant) = (
            place.text(&format!("{id}/station.csr")),
            place.text(id) + ".grant",
        );
        let at = |m: i64| Timestamp::from_unix_ms(now().unix_ms() + m * 60_000).to_string();
        let (from, to) = (at(-60), at(60));
        let mut arguments = vec![
            "factory", "station", "add", id, "--batch", "b1", "--csr", &csr, "--quota", "2",
        ];
        arguments.extend(["--from", &from, "--to", &to, "--ids", ids, "--out", &grant]);
        arguments.extend(more);
        place.server.cli(&arguments).unwrap()
    };
    let refused = |output: Output, parts: &[&str]| {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(4), "{text}");
        for part in parts
            .iter()
            .chain(&["hint: grant other ids with --ids", "--allow-overlap"])
        {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    };
    refused(
        add("line-1", "SN-0?", &[]),
        &["1 of the ids SN-0?", "(SN-07)", "station.duplicate-id"],
    );
    assert!(add("line-2", "SN-30..SN-39", &[]).status.success());
    refused(
        add("line-3", "SN-3?", &[]),
        &["SN-3?", "station line-2", "SN-30..SN-39"],
    );
    let list = place.ok(&["factory", "station", "list", "--json"]);
    assert!(
        !list.contains("line-1") && !list.contains("line-3"),
        "nothing was granted: {list}"
    );
    assert!(
        add("line-4", "SN-40..SN-49", &[]).status.success(),
        "ids of its own"
    );
    assert!(add("line-5", "SN-*", &["--allow-overlap"]).status.success());
    let audit = place.server.ask("GET", "/audit", None).unwrap().to_string();
    assert!(audit.contains(r#"overlap\":\"allowed"#), "{audit}");
    // Its ids are free once the other's grant is over.
    for station in ["line-2", "line-5"] {
        place.ok(&["factory", "station", "revoke", station, "--reason", "over"]);
    }
    assert!(add("line-3", "SN-3?", &[]).status.success());
}

#[test]
fn a_grant_goes_no_further_than_its_batch() {
    let place = Place::new();
    place.station("line-1", &["init"]);
    let (csr, grant) = (place.text("line-1/station.csr"), place.text("grant"));
    let add = |id: &str, quota, ids: &str, minutes| {
        let output = place.add(id, quota, ids, minutes, &csr, &grant);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), text)
    };
    let (code, text) = add("line-1", 21, "SN-*", (-60, 60));
    assert!(code == Some(4) && text.contains("room for 20 more"), "{text}");
    let (code, text) = add("line-1", 5, "XX-1..XX-9", (-60, 60));
    assert!(
        code == Some(4) && text.contains("does not fit the ids of the batch"),
        "{text}"
    );
    let (code, text) = add("line-1", 5, "SN-*", (-60, -30));
    assert!(code == Some(4) && text.contains("is over"), "{text}");
    assert!(!place.path("grant").exists());
    let (code, text) = add("line-1", 18, "SN-*", (-60, 60));
    assert_eq!(code, Some(0), "{text}");
    let again = place.ok(&["factory", "station", "grant", "line-1"]);
    assert_eq!(
        again.trim_end(),
        std::fs::read_to_string(&grant).unwrap().trim_end()
    );
    // What the station may still make is spoken for: the line that is online cannot use it up.
    let issued = place
        .server
        .cli(&[
            "factory",
            "issue",
            "--batch",
            "b1",
            "--format",
            "SN-{:03}",
            "--count",
            "3",
            "--out",
            &place.text("online"),
        ])
        .unwrap();
    let said =
        String::from_utf8_lossy(&issued.stdout).into_owned() + &String::from_utf8_lossy(&issued.stderr);
    assert!(said.contains("quota"), "{said}");
    let batch: Value =
        serde_json::from_str(&place.ok(&["factory", "batch", "show", "b1", "--json"])).unwrap();
    assert_eq!(batch["devices"], 2, "{batch}");
    // A factory CA issues no devices.
    let text = place.refused(&[
        "device",
        "provision",
        "d1",
        "--out",
        &place.text("d1"),
        "--authority",
        "factory",
    ]);
    assert!(text.contains("factory CA"), "{text}");
}

#[test]
fn twenty_kills_of_a_station_lose_nothing_and_issue_nothing_twice() {
    let place = tempfile::tempdir().unwrap();
    let report = station_crash::run(&station_program(), place.path(), 20, 20_261_125).unwrap();
    assert_eq!((report.kills + report.finished, report.issued), (20, 100));
    assert!(report.kills >= 10 && report.told > 20, "{report:?}");
}

#[test]
fn records_are_as_documented() {
    let text = r#"{"number":0,"at":1795000000000,"event":"open","station":"line-1","grant":"0000000000000000000000000000000000000000000000000000000000000000","certificate":"0000000000000000000000000000000000000000000000000000000000000000"}"#;
    let record: Record = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_string(&record).unwrap(), text);
}
