//! The life of a device, once for each place where its key can be: a file, a token (SoftHSM), a TPM (swtpm). Provisioned on
//! the line, attested where that can be, connected, published, renewed, taken to the next CA, ended by its own word; the key
//! never leaves where it was made.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use countersign_testkit::agent::Agent;
use countersign_testkit::server::{Server, listener};
use countersign_testkit::softhsm::Softhsm;
use countersign_testkit::swtpm::Swtpm;
use serde_json::Value;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_countersign"))
}

/// Where keys are made.
enum Store {
    File,
    /// Where the passphrase is.
    Encrypted(PathBuf),
    Token(Softhsm),
    Tpm(Swtpm),
}

struct Place {
    folder: tempfile::TempDir,
    server: Server,
    enrol: String,
    store: Store,
}

impl Place {
    fn new(store: impl FnOnce(&Path) -> Store) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(program(), &folder.path().join("data"), &listener("enrol")).unwrap();
        let enrol = format!("localhost:{}", server.listener("enrol").unwrap().port());
        let store = store(folder.path());
        let place = Self {
            folder,
            server,
            enrol,
            store,
        };
        let root = place.cli(&["authority", "export", "platform"]);
        std::fs::write(place.path("root.pem"), root).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn cli(&self, arguments: &[&str]) -> String {
        self.server.cli_ok(arguments).unwrap()
    }

    fn agent(&self, device: &str) -> Agent {
        let folder = self.path(device);
        match &self.store {
            Store::File | Store::Encrypted(_) => Agent::new(program(), folder),
            Store::Token(hsm) => Agent::new(program(), folder).with("SOFTHSM2_CONF", hsm.config()),
            Store::Tpm(_) => Agent::with_tpm(program(), folder).with("TSS2_LOG", "all+NONE".into()),
        }
    }

    /// What `--key-store` names, for the keys of a device.
    fn key_store(&self, device: &str) -> String {
        match &self.store {
            Store::File => "file".into(),
            Store::Encrypted(passphrase) => format!("encrypted:{}", passphrase.display()),
            Store::Token(hsm) => hsm.uri(device),
            Store::Tpm(tpm) => format!("tpm:{}", tpm.address()),
        }
    }

    /// What provisions a device.
    fn provision(&self, device: &str) -> Vec<String> {
        let secret = self.text(&format!("{device}.secret"));
        std::fs::write(&secret, self.cli(&["device", "secret", device])).unwrap();
        let (root, store) = (self.text("root.pem"), self.key_store(device));
        let mut arguments: Vec<String> = [
            "provision",
            "--server",
            &self.enrol,
            "--platform-root",
            &root,
            "--id",
            device,
            "--secret-file",
            &secret,
            "--key-store",
            &store,
        ]
        .map(str::to_owned)
        .to_vec();
        if let Store::Tpm(tpm) = &self.store {
            let maker = tpm.maker().display().to_string();
            // Once for all devices.
            let _ = self
                .server
                .cli(&["attestation", "authority", "add", "swtpm", &maker]);
            arguments.push("--attest".into());
        }
        arguments
    }

    fn shown(&self, device: &str) -> Value {
        serde_json::from_str(&self.cli(&["device", "show", device, "--json"])).unwrap()
    }

    /// Of each certificate, newest first.
    fn each_certificate(&self, device: &str, field: &str) -> Vec<String> {
        let shown = self.shown(device);
        let all = shown["credentials"].as_array().unwrap().iter();
        all.map(|c| c[field].as_str().unwrap().to_owned()).collect()
    }

    /// That the key is where it was made, and nowhere else: not below the identity folder, nor to be had from its store.
    fn key_stays(&self, agent: &Agent) {
        let below = bytes_below(&agent.folder);
        let holds = |word: &[u8]| below.windows(word.len()).any(|w| w == word);
        match &self.store {
            Store::File => assert!(holds(b"-----BEGIN PRIVATE KEY-----")),
            Store::Encrypted(passphrase) => {
                assert!(holds(b"-----BEGIN ENCRYPTED PRIVATE KEY-----"));
                assert!(!holds(b"-----BEGIN PRIVATE KEY-----"));
                // Other programs open it, by the passphrase alone.
                let openssl = |pass: &str| {
                    let mut command = Command::new("openssl");
                    command.args(["pkey", "-noout", "-passin", pass, "-in"]);
                    let key = agent.folder.join("device.key");
                    command.arg(key).output().unwrap().status.success()
                };
                assert!(openssl(&format!("file:{}", passphrase.display())));
                assert!(!openssl("pass:another passphrase"));
            }
            Store::Token(hsm) => {
                assert!(!holds(b"PRIVATE KEY-----"));
                let out = self.text("stolen");
                let keys = hsm.keys();
                assert!(!keys.is_empty());
                for key in keys {
                    let read = [
                        "--read-object",
                        "--type",
                        "privkey",
                        "--label",
                        &key,
                        "--output-file",
                    ];
                    let said = hsm.tool(&[&read[..], &[&out]].concat());
                    let got = std::fs::read(&out).unwrap_or_default();
                    assert!(!said.status.success() || got.is_empty(), "{said:?}");
                }
            }
            Store::Tpm(_) => {
                assert!(holds(b"-----BEGIN TSS2 PRIVATE KEY-----"));
                assert!(!holds(b"-----BEGIN PRIVATE KEY-----") && !holds(b"EC PRIVATE KEY"));
                // That the TPM does not give it away is shown in keystore-tpm's tests.
            }
        }
    }
}

fn bytes_below(folder: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        all.extend(if path.is_dir() {
            bytes_below(&path)
        } else {
            std::fs::read(&path).unwrap()
        });
    }
    all
}

fn borrowed(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

fn life(place: &Place) {
    let device = "sensor-1";
    place.cli(&["device", "add", device]);
    let agent = place.agent(device);

    // Provisioned: the certificate is confirmed before anything was ever published.
    let provision = place.provision(device);
    let said = agent.ok(&borrowed(&provision));
    assert!(
        said.contains("provisioned") && said.contains("confirmed"),
        "{said}"
    );
    assert_eq!(place.each_certificate(device, "state"), ["active"]);
    let custody = match &place.store {
        Store::Tpm(_) => "attested",
        _ => "unknown",
    };
    assert_eq!(place.each_certificate(device, "custody"), [custody]);
    // The line lost power after that, and runs it again: the same certificate.
    let before = agent.certificate();
    agent.ok(&borrowed(&provision));
    assert_eq!(agent.certificate(), before);
    assert_eq!(place.each_certificate(device, "state").len(), 1);
    place.key_stays(&agent);

    // Connected, published, renewed.
    agent.ok(&["check"]);
    agent.ok(&["publish", "21.5"]);
    agent.ok(&["renew"]);
    agent.ok(&["publish", "21.6"]);
    assert_eq!(place.each_certificate(device, "custody"), [custody, custody]);
    place.key_stays(&agent);

    // The CA is replaced. The old one cannot be closed while the device depends on it.
    let authorities: Value = serde_json::from_str(&place.cli(&["authority", "list", "--json"])).unwrap();
    let old = authorities[0]["id"].as_str().unwrap().to_owned();
    place.cli(&["authority", "create", "next"]);
    place.cli(&["authority", "retire", &old]);
    let closed = place.server.cli(&["authority", "close", &old]).unwrap();
    assert!(!closed.status.success(), "{closed:?}");
    agent.ok(&["renew"]);
    place.cli(&["authority", "close", &old]);
    agent.ok(&["publish", "21.7"]);
    let issuers = place.each_certificate(device, "issuer");
    assert_ne!(issuers[0], issuers[1]);
    assert_eq!(place.each_certificate(device, "custody")[0], custody);
    place.key_stays(&agent);

    // The end, by the device's own word.
    let (code, _, err) = agent.run(&["destroy", "--confirm", "sensor-2"]);
    assert_eq!(code, 2, "{err}");
    let key_file = std::fs::read(agent.folder.join("device.key")).unwrap();
    let chain = agent.certificate();
    let said = agent.ok(&["destroy", "--confirm", device]);
    assert!(said.contains("destroyed") && said.contains("recorded"), "{said}");
    assert_eq!(place.shown(device)["device"]["state"], "decommissioned");
    let told = place.cli(&["device", "show", device]);
    assert!(told.contains("declared by the device"), "{told}");
    assert!(!agent.folder.join("device.key").exists() && !agent.folder.join("device.crt").exists());
    if let Store::Token(hsm) = &place.store {
        assert_eq!(hsm.keys(), Vec::<String>::new());
    }
    // Again: nothing is left to destroy, and what was recorded stays.
    assert_eq!(agent.ok(&["destroy", "--confirm", device]), said);
    // A copy of the folder that was made before is of no use either.
    std::fs::write(agent.folder.join("device.crt"), chain).unwrap();
    std::fs::write(agent.folder.join("device.key"), key_file).unwrap();
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(agent.folder.join("device.key"), mode).unwrap();
    let (code, _, err) = agent.run(&["check"]);
    assert!([3, 6, 7].contains(&code), "{code}: {err}");
    let again = place.server.cli(&["device", "activate", device]).unwrap();
    assert!(!again.status.success(), "{again:?}");
}

#[test]
fn with_its_key_in_a_file() {
    life(&Place::new(|_| Store::File));
}

#[test]
fn with_its_key_in_a_file_that_a_passphrase_opens() {
    let place = Place::new(|folder| Store::Encrypted(folder.join("passphrase")));
    let Store::Encrypted(passphrase) = &place.store else {
        unreachable!()
    };
    let write = |text: &str, mode: u32| {
        std::fs::write(passphrase, text).unwrap();
        std::fs::set_permissions(passphrase, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    place.cli(&["device", "add", "sensor-0"]);
    let agent = place.agent("sensor-0");
    let provision = place.provision("sensor-0");
    let refused = |said: &str| {
        let (code, _, err) = agent.run(&borrowed(&provision));
        assert_eq!(code, 3, "{err}");
        assert!(err.contains(said) && err.contains("hint: "), "{err}");
    };
    refused("No such file");
    write("too short", 0o600);
    refused("shorter than");
    write("a passphrase that is long\n", 0o644);
    refused("others may read");
    write("a passphrase that is long\n", 0o600);
    agent.ok(&borrowed(&provision));
    // Another one does not open it, and nothing is lost by trying.
    write("a passphrase of other words\n", 0o600);
    let (code, _, err) = agent.run(&["check"]);
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("does not open") && err.contains("hint: "), "{err}");
    write("a passphrase that is long\n", 0o600);
    agent.ok(&["check"]);
    place.cli(&["device", "decommission", "sensor-0", "--reason", "test"]);
    life(&place);
}

#[test]
fn with_its_key_in_a_token() {
    life(&Place::new(|folder| Store::Token(Softhsm::new(folder))));
}

#[test]
fn with_its_key_in_a_tpm() {
    life(&Place::new(|_| Store::Tpm(Swtpm::manufactured(&[]))));
}

/// A destruction that could not be handed in is by the operator's hand; a statement by an old key ends nothing.
#[test]
fn the_end_of_a_device_that_has_no_network_is_told_by_its_statement() {
    let place = Place::new(|_| Store::File);
    for device in ["sensor-1", "sensor-2"] {
        place.cli(&["device", "add", device]);
        let arguments = place.provision(device);
        place.agent(device).ok(&borrowed(&arguments));
    }
    let agent = place.agent("sensor-1");
    let profile = agent.folder.join("device.json");
    let text = std::fs::read_to_string(&profile).unwrap();
    let mut away: Value = serde_json::from_str(&text).unwrap();
    away["enrol_port"] = 1.into();
    std::fs::write(&profile, away.to_string()).unwrap();
    let (code, _, err) = agent.run(&["destroy", "--confirm", "sensor-1"]);
    assert_eq!(code, 4, "{err}");
    assert!(
        err.contains("device destroyed") && err.contains("destruction.json"),
        "{err}"
    );
    assert!(!agent.folder.join("device.key").exists());
    let statement = agent.folder.join("destruction.json");
    // Of another device it says nothing; changed, it does not hold.
    let mut forged: Value = serde_json::from_str(&std::fs::read_to_string(&statement).unwrap()).unwrap();
    forged["device"] = "sensor-2".into();
    std::fs::write(place.path("forged.json"), forged.to_string()).unwrap();
    let refused = place
        .server
        .cli(&["device", "destroyed", &place.text("forged.json")])
        .unwrap();
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    assert_eq!(place.shown("sensor-2")["device"]["state"], "active");
    let file = statement.display().to_string();
    place.cli(&["device", "destroyed", &file]);
    assert_eq!(place.shown("sensor-1")["device"]["state"], "decommissioned");
    // Back on the network it hands it in itself: recorded once, and no receipt is made of what is known.
    std::fs::write(&profile, text).unwrap();
    let receipts = place.cli(&["receipt", "list", "--json"]);
    agent.ok(&["destroy", "--confirm", "sensor-1"]);
    assert_eq!(place.cli(&["receipt", "list", "--json"]), receipts);
    assert_eq!(
        place.shown("sensor-1")["destructions"].as_array().unwrap().len(),
        1
    );

    // Whoever finds a key whose certificate was revoked cannot end the device with it.
    let agent = place.agent("sensor-2");
    let fingerprint = place.each_certificate("sensor-2", "fingerprint").remove(0);
    place.cli(&["credential", "revoke", &fingerprint]);
    let (code, _, err) = agent.run(&["destroy", "--confirm", "sensor-2"]);
    assert_eq!(code, 10, "{err}");
    assert!(err.contains("revoked"), "{err}");
    assert_eq!(place.shown("sensor-2")["device"]["state"], "active");
}

/// An end that was begun and came to nothing: the device goes on, and when it ends for good it is by the certificate that it
/// has then.
#[test]
fn a_statement_of_before_is_not_that_of_now() {
    let place = Place::new(|_| Store::File);
    place.cli(&["device", "add", "sensor-1"]);
    let agent = place.agent("sensor-1");
    agent.ok(&borrowed(&place.provision("sensor-1")));
    agent.ok(&["renew"]);
    // Something that is no slot stands in the way, after the statement was made.
    let obstacle = agent.folder.join("slots/not-a-slot");
    std::fs::write(&obstacle, "").unwrap();
    let (code, _, err) = agent.run(&["destroy", "--confirm", "sensor-1"]);
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("not-a-slot") && err.contains("hint: "), "{err}");
    assert!(agent.folder.join("destruction.json").exists());
    assert_eq!(place.shown("sensor-1")["device"]["state"], "active");
    std::fs::remove_file(obstacle).unwrap();
    let _ = std::fs::remove_file(agent.folder.join("destruction.json.new"));
    // The keys that were reached first are gone; the device is enrolled anew, and the old certificates are worth nothing.
    place.cli(&["device", "revoke", "sensor-1"]);
    for name in ["device.crt", "device.key", "current"] {
        let _ = std::fs::remove_file(agent.folder.join(name));
    }
    let _ = std::fs::remove_dir_all(agent.folder.join("slots"));
    agent.ok(&borrowed(&place.provision("sensor-1")));
    agent.ok(&["publish", "21.5"]);
    agent.ok(&["destroy", "--confirm", "sensor-1"]);
    assert_eq!(place.shown("sensor-1")["device"]["state"], "decommissioned");
}
