//! Where an authority's key is held: an encrypted file, a token (SoftHSM), made and used through the command line.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use countersign_testkit::server::{Server, listener};

const PIN: &str = "246810";
const PASSPHRASE: &str = "kept where nobody looks";

struct Place {
    folder: tempfile::TempDir,
    server: Option<Server>,
}

impl Place {
    /// A server that sees a token named `ca`.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        std::fs::create_dir(path.join("tokens")).unwrap();
        let conf = format!("directories.tokendir = {}\n", path.join("tokens").display());
        std::fs::write(path.join("softhsm2.conf"), conf).unwrap();
        let mut place = Self { folder, server: None };
        place.ok(Command::new("softhsm2-util").args([
            "--init-token",
            "--free",
            "--label",
            "ca",
            "--so-pin",
            "0000",
            "--pin",
            PIN,
        ]));
        place.private("pin", PIN);
        place.private("passphrase", PASSPHRASE);
        place.start();
        place
    }

    fn start(&mut self) {
        self.server = None;
        let program = Path::new(env!("CARGO_BIN_EXE_countersign"));
        let mut command = Command::new(program);
        command.env("SOFTHSM2_CONF", self.path("softhsm2.conf"));
        let server = Server::start_with(command, program, &self.path("data"), &listener("pki"));
        self.server = Some(server.unwrap());
    }

    fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn private(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path.display().to_string()
    }

    fn ok(&self, command: &mut Command) -> String {
        let output = command
            .env("SOFTHSM2_CONF", self.path("softhsm2.conf"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{command:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn uri(&self, object: &str) -> String {
        format!(
            "pkcs11:token=ca;object={object}?module-path={}&pin-source={}",
            module(),
            self.path("pin").display()
        )
    }

    /// A certificate for a device; it must verify by OpenSSL under the authority that is named.
    fn provision(&self, device: &str, authority: &str) {
        let out = self.path(device).display().to_string();
        self.server()
            .cli_ok(&[
                "device",
                "provision",
                device,
                "--authority",
                authority,
                "--out",
                &out,
            ])
            .unwrap();
        let folder = self.path("data").join("authorities/devices").join(authority);
        self.ok(Command::new("openssl")
            .args(["verify", "-purpose", "sslclient", "-CAfile"])
            .arg(folder.join("root.crt"))
            .arg("-untrusted")
            .arg(folder.join("issuing.crt"))
            .arg(Path::new(&out).join("device.crt")));
    }

    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.server().cli(arguments).unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && text.contains("hint: "),
            "{arguments:?}: {text}"
        );
        assert!(!text.contains(PIN) && !text.contains(PASSPHRASE), "{text}");
        text
    }

    fn key_check(&self, authority: &str) -> serde_json::Value {
        let checks = self.server().ask("GET", "/doctor", None).unwrap();
        let name = format!("key of {authority}");
        checks
            .as_array()
            .unwrap()
            .iter()
            .find(|c| c["name"] == *name)
            .unwrap()
            .clone()
    }
}

fn module() -> &'static str {
    let places = [
        "/usr/lib/softhsm/libsofthsm2.so",
        "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
        "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    ];
    places
        .into_iter()
        .find(|p| Path::new(p).exists())
        .expect("apt-get install softhsm2")
}

#[test]
fn an_authority_in_a_token_issues_signs_lists_and_is_looked_after() {
    let mut place = Place::new();
    let uri = place.uri("issuing");
    let create = |id: &'static str| ["authority", "create", id, "--key-store", "pkcs11", "--pkcs11-uri"];
    let mut arguments = create("hsm").to_vec();
    arguments.push(&uri);
    place.server().cli_ok(&arguments).unwrap();
    place.provision("d1", "hsm");
    // Nothing of the key is on disk, and both keys are in the token, never to leave it.
    let folder = place.path("data/authorities/devices/hsm");
    for file in ["issuing.key", "root.key"] {
        assert!(!folder.join(file).exists(), "{file}");
    }
    let listed = place.ok(Command::new("pkcs11-tool").args([
        "--module",
        module(),
        "--token-label",
        "ca",
        "--login",
        "--pin",
        PIN,
        "--list-objects",
        "--type",
        "privkey",
    ]));
    assert_eq!(listed.matches("never extractable").count(), 2, "{listed}");
    // A revocation list and an OCSP responder need the key too.
    let pki = place.server().listener("pki").unwrap();
    let list = place.path("list").display().to_string();
    place.ok(Command::new("curl").args(["-sSf", "-o", &list, &format!("http://{pki}/crl/hsm.crl")]));
    place.ok(Command::new("openssl")
        .args(["crl", "-inform", "DER", "-noout", "-CAfile"])
        .arg(folder.join("issuing.crt"))
        .args(["-in", &list]));
    assert_eq!(place.key_check("hsm")["ok"], true);

    // One name, one authority: a key is not taken over by another.
    let mut again = create("other").to_vec();
    again.push(&uri);
    assert!(place.refused(&again).contains("key of that name already"));
    let text = place.refused(&["authority", "take-root-offline", "hsm", "--out", "/nonexistent/x"]);
    assert!(text.contains("cannot leave it"), "{text}");

    // After a restart the key is found again; with a wrong PIN everything is told, and with the right one it works.
    place.private("pin", "999999");
    place.start();
    let check = place.key_check("hsm");
    assert!(
        check["ok"] == false && check["detail"].as_str().unwrap().contains("is wrong"),
        "{check}"
    );
    let out = place.path("d2").display().to_string();
    assert!(
        place
            .refused(&["device", "provision", "d2", "--authority", "hsm", "--out", &out])
            .contains("is wrong")
    );
    let d2 = place.server().cli(&["device", "show", "d2"]).unwrap();
    assert_eq!(
        d2.status.code(),
        Some(3),
        "nothing was minted, and no device is left behind"
    );
    place.private("pin", PIN);
    place.provision("d2", "hsm");
    assert_eq!(place.key_check("hsm")["ok"], true);
    // The token is taken out: told, with the cure.
    std::fs::rename(place.path("tokens"), place.path("away")).unwrap();
    std::fs::create_dir(place.path("tokens")).unwrap();
    place.start();
    let check = place.key_check("hsm");
    assert!(check["detail"].as_str().unwrap().contains("no token"), "{check}");
    assert!(check["hint"].as_str().unwrap().contains("plug it in"), "{check}");
}

#[test]
fn an_authority_in_encrypted_files_issues_while_the_passphrase_is_there() {
    let mut place = Place::new();
    let passphrase = place.path("passphrase").display().to_string();
    let arguments = [
        "authority",
        "create",
        "sealed",
        "--key-store",
        "encrypted",
        "--passphrase",
        &passphrase,
    ];
    place.server().cli_ok(&arguments).unwrap();
    place.provision("d1", "sealed");
    let key = place.path("data/authorities/devices/sealed/issuing.key");
    assert!(
        std::fs::read_to_string(&key)
            .unwrap()
            .contains("BEGIN ENCRYPTED PRIVATE KEY")
    );
    let file = format!("file:{passphrase}");
    place.ok(Command::new("openssl")
        .args(["pkey", "-noout", "-passin", &file, "-in"])
        .arg(&key));
    assert_eq!(place.key_check("sealed")["ok"], true);
    place.private("passphrase", "another one altogether");
    place.start();
    let check = place.key_check("sealed");
    assert!(
        check["ok"] == false && check["detail"].as_str().unwrap().contains("does not open"),
        "{check}"
    );
    let out = place.path("d2").display().to_string();
    place.refused(&[
        "device",
        "provision",
        "d2",
        "--authority",
        "sealed",
        "--out",
        &out,
    ]);
    // The first authority, whose key is a plain file, is untouched by that.
    place.provision("d3", "default-devices");
}

#[test]
fn a_key_in_a_token_gets_its_certificate_from_an_external_root() {
    let place = Place::new();
    // Made in a key ceremony, with another tool.
    place.ok(Command::new("pkcs11-tool").args([
        "--module",
        module(),
        "--token-label",
        "ca",
        "--login",
        "--pin",
        PIN,
        "--keypairgen",
        "--key-type",
        "EC:secp384r1",
        "--label",
        "ceremony",
        "--id",
        "01",
        "--usage-sign",
    ]));
    let text = |name: &str| place.path(name).display().to_string();
    let uri = place.uri("ceremony");
    place
        .server()
        .cli_ok(&[
            "authority",
            "create",
            "ext",
            "--csr",
            &text("ext.csr"),
            "--key-store",
            "pkcs11",
            "--pkcs11-uri",
            &uri,
        ])
        .unwrap();
    place.private("ext", "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n");
    place.ok(Command::new("openssl").args([
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
    place.ok(Command::new("openssl").args([
        "x509",
        "-req",
        "-in",
        &text("ext.csr"),
        "-CA",
        &text("r.crt"),
        "-CAkey",
        &text("r.key"),
        "-days",
        "900",
        "-extfile",
        &text("ext"),
        "-out",
        &text("i.crt"),
    ]));
    let chain =
        std::fs::read_to_string(text("i.crt")).unwrap() + &std::fs::read_to_string(text("r.crt")).unwrap();
    std::fs::write(text("chain.pem"), chain).unwrap();
    place
        .server()
        .cli_ok(&["authority", "install", "ext", &text("chain.pem")])
        .unwrap();
    place.provision("d1", "ext");
    assert_eq!(place.key_check("ext")["ok"], true);
}

#[test]
fn what_does_not_go_together_is_refused_before_anything_is_made() {
    let place = Place::new();
    let uri = place.uri("x");
    let leaky = format!("{uri}&pin-value=1234");
    let create = |more: &[&str], word: &str| {
        let mut arguments = vec!["authority", "create", "x"];
        arguments.extend(more);
        let output = place.server().cli(&arguments).unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && text.contains(word),
            "{more:?}: {text}"
        );
        assert!(!text.contains("1234"), "{text}");
    };
    create(&["--key-store", "encrypted"], "do not go together");
    create(&["--key-store", "pkcs11"], "do not go together");
    create(&["--pkcs11-uri", &uri], "do not go together");
    create(
        &["--key-store", "encrypted", "--passphrase", "relative"],
        "absolute path",
    );
    create(
        &["--key-store", "pkcs11", "--pkcs11-uri", &leaky],
        "does not belong into it",
    );
    create(
        &[
            "--key-store",
            "pkcs11",
            "--pkcs11-uri",
            &uri.replace("token=ca", "token=cb"),
        ],
        "no token",
    );
    let list = place.server().cli_ok(&["authority", "list"]).unwrap();
    assert!(!list.contains(" x "), "{list}");
}
