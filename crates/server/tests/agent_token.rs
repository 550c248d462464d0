//! A device whose key is in a token: made there, used there, replaced there; the real agent with SoftHSM against a server.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use countersign_testkit::agent::Agent;
use countersign_testkit::pki::{Ca, Leaf};
use countersign_testkit::server::{Server, listener};
use countersign_testkit::softhsm::{PIN, Softhsm, module};
use serde_json::json;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_countersign"))
}

/// A server that enrols, and a machine with a token named `board`.
struct Place {
    folder: tempfile::TempDir,
    server: Server,
    enrol: String,
    hsm: Softhsm,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(program(), &folder.path().join("data"), &listener("enrol")).unwrap();
        let enrol = format!("localhost:{}", server.listener("enrol").unwrap().port());
        let hsm = Softhsm::new(folder.path());
        let place = Self {
            folder,
            server,
            enrol,
            hsm,
        };
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

    fn run(&self, program: &str, arguments: &[&str]) -> (bool, String) {
        told(&self.hsm.command(program).args(arguments).output().unwrap())
    }

    fn tool(&self, arguments: &[&str]) -> (bool, String) {
        told(&self.hsm.tool(arguments))
    }

    fn agent(&self, name: &str) -> Agent {
        Agent::new(program(), self.path(name)).with("SOFTHSM2_CONF", self.hsm.config())
    }

    fn secret(&self, device: &str) -> String {
        let text = self.server.cli_ok(&["device", "secret", device]).unwrap();
        self.write(&format!("{device}.secret"), &text)
    }

    /// What enrolls a device by a one-time secret, with its keys in the token.
    fn arguments(&self, device: &str, key: &str) -> Vec<String> {
        self.server.cli_ok(&["device", "add", device]).unwrap();
        let secret = self.secret(device);
        let (root, store) = (self.text("root.pem"), self.hsm.uri(key));
        [
            "enrol",
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
        .to_vec()
    }
}

/// Whether it went well, and what was said.
fn told(output: &Output) -> (bool, String) {
    let text = [output.stdout.as_slice(), &output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

fn borrowed(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

/// All bytes below a folder.
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

#[test]
fn the_key_is_made_in_the_token_used_there_and_replaced_there() {
    let place = Place::new();
    let agent = place.agent("sensor-1");
    agent.ok(&borrowed(&place.arguments("sensor-1", "sensor-1")));
    assert_eq!(place.hsm.keys(), ["sensor-1"]);
    agent.ok(&["publish", "21.5"]);
    // The same by others, which read device.json.
    assert!(
        std::fs::read_to_string(agent.folder.join("device.json"))
            .unwrap()
            .contains("pkcs11:token=board")
    );

    // It cannot be had: not from the disk, not from the token.
    let holds_key = |bytes: &[u8]| bytes.windows(11).any(|w| w == b"PRIVATE KEY");
    assert!(!holds_key(&bytes_below(&agent.folder)));
    let out = place.text("stolen");
    let (read, said) = place.tool(&[
        "--read-object",
        "--type",
        "privkey",
        "--label",
        "sensor-1",
        "--output-file",
        &out,
    ]);
    assert!(
        !read || std::fs::read(&out).unwrap_or_default().is_empty(),
        "{said}"
    );
    let (_, listed) = place.tool(&["--list-objects", "--type", "privkey"]);
    assert!(
        listed.contains("never extractable") && listed.contains("always sensitive"),
        "{listed}"
    );

    // Certificate and chain lie beside it, where others look for them.
    let certificates = |label: &str| {
        let out = place.text("kept");
        let _ = std::fs::remove_file(&out);
        place.tool(&[
            "--read-object",
            "--type",
            "cert",
            "--label",
            label,
            "--output-file",
            &out,
        ]);
        let pem = place.run("openssl", &["x509", "-inform", "DER", "-in", &out]).1;
        (
            pem,
            place
                .tool(&["--list-objects", "--type", "cert"])
                .1
                .matches("Certificate Object")
                .count(),
        )
    };
    let (kept, count) = certificates("sensor-1");
    assert!(agent.certificate().starts_with(kept.trim_end()), "{kept}");
    assert_eq!(count, agent.certificate().matches("BEGIN").count());

    // The next certificate has a key of its own, and the old one is destroyed once it has connected.
    let first = agent.certificate();
    agent.ok(&["renew", "--no-connect"]);
    assert_eq!(place.hsm.keys(), ["sensor-1", "sensor-1-1"]);
    assert_eq!(agent.certificate(), first);
    agent.ok(&["check"]);
    assert_eq!(place.hsm.keys(), ["sensor-1-1"]);
    assert_ne!(agent.certificate(), first);
    let (kept, still) = certificates("sensor-1-1");
    assert!(agent.certificate().starts_with(kept.trim_end()), "{kept}");
    assert_eq!(still, count, "the old ones went with their key");
    // Asked for and never answered, as after a power cut: it is taken up again, and leaves no key behind.
    agent.ok(&["renew"]);
    agent.ok(&["renew"]);
    assert_eq!(place.hsm.keys(), ["sensor-1-3"]);
    // The same key once more: it stays, though its old slot goes.
    assert!(agent.ok(&["renew", "--same-key"]).contains("for the same key"));
    assert_eq!(place.hsm.keys(), ["sensor-1-3"]);
    agent.ok(&["publish", "22.0"]);
    assert!(!holds_key(&bytes_below(&agent.folder)));

    place
        .server
        .cli_ok(&["device", "decommission", "sensor-1", "--reason", "scrapped"])
        .unwrap();
    let (code, _, err) = agent.run(&["check"]);
    assert!([6, 7].contains(&code), "{code}: {err}");
}

/// From the token to a file under a passphrase, and back: each key has one place, and the other is empty.
#[test]
fn a_device_that_moves_to_another_store_leaves_no_key_behind() {
    let place = Place::new();
    let agent = place.agent("sensor-9");
    agent.ok(&borrowed(&place.arguments("sensor-9", "sensor-9")));
    assert_eq!(place.hsm.keys(), ["sensor-9"]);
    let passphrase = place.write("passphrase", "a passphrase that is long\n");
    std::fs::set_permissions(&passphrase, std::fs::Permissions::from_mode(0o600)).unwrap();
    let again = |store: &str| {
        let secret = place.secret("sensor-9");
        let server = ["enrol", "--again", "--server", &place.enrol, "--id", "sensor-9"];
        agent.ok(&[&server[..], &["--secret-file", &secret, "--key-store", store]].concat());
        agent.ok(&["check"]);
    };
    again(&format!("encrypted:{passphrase}"));
    assert_eq!(place.hsm.keys(), Vec::<String>::new());
    let key = || std::fs::read_to_string(agent.folder.join("device.key")).unwrap();
    assert!(key().contains("ENCRYPTED PRIVATE KEY"), "{}", key());
    again(&place.hsm.uri("other"));
    assert_eq!(place.hsm.keys().len(), 1);
    assert!(key().starts_with("pkcs11:"), "{}", key());
    assert!(
        !bytes_below(&agent.folder)
            .windows(11)
            .any(|w| w == b"PRIVATE KEY")
    );
}

#[test]
fn a_key_that_is_in_the_token_already_is_taken() {
    let place = Place::new();
    let made = [
        "--keypairgen",
        "--key-type",
        "EC:prime256v1",
        "--label",
        "born-here",
        "--id",
        "01",
    ];
    assert!(place.tool(&made).0);
    let agent = place.agent("sensor-2");
    agent.ok(&borrowed(&place.arguments("sensor-2", "born-here")));
    assert_eq!(place.hsm.keys(), ["born-here"]);
    let (_, point) = place.tool(&[
        "--read-object",
        "--type",
        "pubkey",
        "--label",
        "born-here",
        "--output-file",
        &place.text("point"),
    ]);
    let certificate = place.run(
        "openssl",
        &[
            "x509",
            "-in",
            &agent.folder.join("device.crt").display().to_string(),
            "-noout",
            "-pubkey",
        ],
    );
    let public = place.run(
        "openssl",
        &["pkey", "-pubin", "-inform", "DER", "-in", &place.text("point")],
    );
    assert_eq!(certificate, public, "{point}");
    agent.ok(&["check"]);
    // It is somebody else's, and so is the certificate beside it: neither goes when ours are renewed.
    let maker = Ca::root("maker", None).issue(&Leaf::named("born-here"), &[]);
    let (pem, der) = (place.write("maker.pem", &maker.pem), place.text("maker.der"));
    place.run("openssl", &["x509", "-in", &pem, "-outform", "DER", "-out", &der]);
    let written = place.tool(&[
        "--write-object",
        &der,
        "--type",
        "cert",
        "--label",
        "born-here",
        "--id",
        "01",
    ]);
    assert!(written.0, "{}", written.1);
    agent.ok(&["renew"]);
    agent.ok(&["renew"]);
    assert_eq!(place.hsm.keys(), ["born-here", "born-here-2"]);
    let kept = place.text("kept");
    place.tool(&[
        "--read-object",
        "--type",
        "cert",
        "--label",
        "born-here",
        "--output-file",
        &kept,
    ]);
    assert_eq!(std::fs::read(kept).unwrap(), std::fs::read(&der).unwrap());
}

/// The power was cut, the token was cleaned by other hands, a key store was changed: what is half done is taken up or begun
/// anew, and the certificate in use is never given up for it.
#[test]
fn what_is_left_half_done_stands_in_nobodys_way() {
    let place = Place::new();
    let agent = place.agent("sensor-6");
    agent.ok(&borrowed(&place.arguments("sensor-6", "sensor-6")));
    let first = agent.certificate();
    // The next certificate came, and its key is gone: the one in use is used on.
    agent.ok(&["renew", "--no-connect"]);
    place.tool(&["--delete-object", "--type", "privkey", "--label", "sensor-6-1"]);
    let (code, _, err) = agent.run(&["check"]);
    assert_eq!(code, 0, "{err}");
    assert!(
        err.contains("trying the old one") && err.contains("no private key"),
        "{err}"
    );
    assert_eq!(agent.certificate(), first);
    // Asked for, not answered, and the key is gone: another one.
    std::fs::remove_file(agent.folder.join("slots/1/device.crt")).unwrap();
    agent.ok(&["renew"]);
    assert_ne!(agent.certificate(), first);
    // The same URI in other words is the same key, and is not destroyed with a slot.
    agent.ok(&["renew", "--same-key", "--no-connect"]);
    let in_use = agent.folder.join("device.key");
    let words = std::fs::read_to_string(&in_use).unwrap();
    place.write("other-pin", &format!("{PIN}\n"));
    std::fs::set_permissions(place.path("other-pin"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let other = words.replace(&place.text("pin"), &place.text("other-pin"));
    assert_ne!(other, words);
    std::fs::write(std::fs::canonicalize(&in_use).unwrap(), other).unwrap();
    agent.ok(&["check"]);
    agent.ok(&["renew"]);
    agent.ok(&["check"]);
    assert_eq!(place.hsm.keys().len(), 1, "{:?}", place.hsm.keys());

    // From a file into the token: the key of a certificate that waits is in a file, and is not taken for one in the token.
    let moves = place.agent("sensor-7");
    let mut arguments = place.arguments("sensor-7", "sensor-7");
    let store = arguments.split_off(arguments.len() - 2);
    moves.ok(&borrowed(&arguments));
    moves.ok(&["renew", "--no-connect"]);
    arguments.extend(store);
    arguments.push("--again".into());
    place.secret("sensor-7");
    moves.ok(&borrowed(&arguments));
    assert!(
        std::fs::read_to_string(moves.folder.join("device.key"))
            .unwrap()
            .starts_with("pkcs11:")
    );
    assert!(
        place.hsm.keys().contains(&"sensor-7-1".to_owned()),
        "{:?}",
        place.hsm.keys()
    );
    moves.ok(&["renew"]);
    moves.ok(&["publish", "x"]);
}

#[test]
fn a_factory_certificate_whose_key_is_in_the_token_enrols() {
    let place = Place::new();
    let ca = Ca::root("manufacturer", None);
    place
        .server
        .register("manufacturer", "default", &ca, &json!({ "mode": "known-device" }))
        .unwrap();
    let add = ["device", "add", "SN-7", "--authority", "manufacturer"];
    place.server.cli_ok(&add).unwrap();
    let factory = ca.issue(&Leaf::named("SN-7"), &[]);
    let (certificate, key) = (
        place.write("idevid.pem", &factory.pem),
        place.write("idevid.key", &factory.key_pem),
    );
    let imported = place.run(
        "softhsm2-util",
        &[
            "--import", &key, "--token", "board", "--label", "idevid", "--id", "02", "--pin", PIN,
        ],
    );
    assert!(imported.0, "{}", imported.1);
    std::fs::remove_file(&key).unwrap();
    let uri = place.write("idevid.uri", &place.hsm.uri("idevid"));
    std::fs::set_permissions(&uri, std::fs::Permissions::from_mode(0o600)).unwrap();
    let agent = place.agent("SN-7");
    let (root, store) = (place.text("root.pem"), place.hsm.uri("ldevid"));
    agent.ok(&[
        "enrol",
        "--server",
        &place.enrol,
        "--platform-root",
        &root,
        "--certificate",
        &certificate,
        "--key",
        &uri,
        "--key-store",
        &store,
    ]);
    agent.ok(&["renew"]);
    // The factory's key is not ours to destroy.
    assert_eq!(place.hsm.keys(), ["idevid", "ldevid-1"]);
}

#[test]
fn what_is_wrong_with_the_token_is_told_with_its_cure_and_nothing_is_lost() {
    let place = Place::new();
    let agent = place.agent("sensor-3");
    let arguments = place.arguments("sensor-3", "sensor-3");
    // No such token, and no such module.
    for (from, to, word) in [
        ("token=board", "token=other", "there is no token"),
        (module(), "/nowhere/m.so", "cannot be loaded"),
    ] {
        let wrong: Vec<String> = arguments.iter().map(|a| a.replace(from, to)).collect();
        let (code, _, err) = agent.run(&borrowed(&wrong));
        assert_eq!(code, 3, "{err}");
        assert!(err.contains(word) && err.contains("hint: "), "{err}");
    }
    agent.ok(&borrowed(&arguments));
    let before = bytes_below(&agent.folder);
    // The token is unplugged.
    let unplugged = agent.clone().with("SOFTHSM2_CONF", place.path("nothing"));
    place.write(
        "nothing",
        &format!("directories.tokendir = {}\n", place.text("empty")),
    );
    std::fs::create_dir(place.path("empty")).unwrap();
    for command in ["check", "renew"] {
        let (code, _, err) = unplugged.run(&[command]);
        assert_eq!(code, 3, "{err}");
        assert!(
            err.contains("there is no token") && err.contains("hint: plug it in"),
            "{err}"
        );
    }
    // The PIN was changed: it is tried once, and the token does not lock.
    place.write("pin", "000000\n");
    let (code, _, err) = agent.run(&["check"]);
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("is wrong") && err.contains("hint: "), "{err}");
    place.write("pin", &format!("{PIN}\n"));
    assert_eq!(bytes_below(&agent.folder), before);
    agent.ok(&["check"]);
    // A key of another certificate is not shown to anybody.
    let other = place.agent("sensor-8");
    other.ok(&borrowed(&place.arguments("sensor-8", "sensor-8")));
    let (mine, others) = (agent.folder.join("device.key"), other.folder.join("device.key"));
    let kept = std::fs::read(&mine).unwrap();
    std::fs::copy(&others, &mine).unwrap();
    let (code, _, err) = agent.run(&["check"]);
    assert_eq!(code, 3, "{err}");
    assert!(
        err.contains("not the key of the certificate") && err.contains("hint: "),
        "{err}"
    );
    std::fs::write(&mine, kept).unwrap();
    // The key was deleted by other hands.
    place.tool(&["--delete-object", "--type", "privkey", "--label", "sensor-3"]);
    let (code, _, err) = agent.run(&["check"]);
    assert_eq!(code, 3, "{err}");
    assert!(
        err.contains("has no private key") && err.contains("hint: "),
        "{err}"
    );
    // What an interrupted enrolment left is not taken for something else.
    let begun = place.agent("sensor-4");
    let secret = place.arguments("sensor-4", "sensor-4");
    std::fs::create_dir(&begun.folder).unwrap();
    let software = Command::new("openssl")
        .args([
            "genpkey",
            "-algorithm",
            "EC",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
        ])
        .output()
        .unwrap();
    std::fs::write(begun.folder.join("device.key"), software.stdout).unwrap();
    std::fs::set_permissions(
        begun.folder.join("device.key"),
        std::fs::Permissions::from_mode(0o600),
    )
    .unwrap();
    let (code, _, err) = begun.run(&borrowed(&secret));
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("the same key store"), "{err}");
}

#[test]
fn curl_uses_the_same_key_in_the_token() {
    let place = Place::new();
    let agent = place.agent("sensor-5");
    agent.ok(&borrowed(&place.arguments("sensor-5", "sensor-5")));
    let file = |name: &str| agent.folder.join(name).display().to_string();
    // OpenSSL's engine takes a line end for a part of the PIN.
    let pin = place.write("bare-pin", PIN);
    let output = Command::new("curl")
        .args(["-sS", "--engine", "pkcs11", "--key-type", "ENG", "--key"])
        .arg(format!(
            "pkcs11:token=board;object=sensor-5;type=private;pin-source={pin}"
        ))
        .args([
            "--cacert",
            &file("platform-root.crt"),
            "--cert",
            &file("device.crt"),
        ])
        .args(["-d", "grant_type=client_credentials", "-d", "client_id=sensor-5"])
        .arg(format!(
            "https://localhost:{}/oauth2/token",
            place.server.devices.port()
        ))
        .env("SOFTHSM2_CONF", place.path("softhsm.conf"))
        .env("PKCS11_MODULE_PATH", module())
        .output()
        .unwrap();
    let answer = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(answer.contains("access_token"), "{output:?}");
}
