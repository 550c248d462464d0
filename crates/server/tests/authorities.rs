//! Authorities as operators and devices meet them: proof, first contact, rotation, an external root.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use countersign_testkit::client::{Attempt, Seen, connect, publish};
use countersign_testkit::pki::{Ca, Identity, Leaf};
use countersign_testkit::server::Server;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;

struct Place {
    folder: tempfile::TempDir,
    server: Server,
}

impl Place {
    fn new(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_countersign"));
        let server = Server::start(program, &folder.path().join("data"), config).unwrap();
        Self { folder, server }
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

    fn ok(&self, arguments: &[&str]) -> String {
        self.server.cli_ok(arguments).unwrap()
    }

    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.server.cli(arguments).unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(4), "{arguments:?}: {text}");
        text
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

    fn provision(&self, id: &str, folder: &str, more: &[&str]) -> Identity {
        let out = self.text(folder);
        let mut arguments = vec!["device", "provision", id, "--out", &out];
        arguments.extend(more);
        self.ok(&arguments);
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
fn a_brought_ca_is_proven_with_openssl_as_the_answer_says() {
    let place = Place::new("");
    let (crt, key) = (place.text("ca.crt"), place.text("ca.key"));
    openssl(&[
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        &key,
        "-out",
        &crt,
        "-days",
        "30",
        "-subj",
        "/CN=brought",
    ]);
    let text = place.ok(&["authority", "register", "brought", &crt]);
    assert!(text.contains("unproven"), "{text}");
    let code = text.lines().nth(2).unwrap().trim().to_owned();
    let (csr, proof) = (place.text("proof.csr"), place.text("proof.crt"));
    openssl(&[
        "req",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-keyout",
        "/dev/null",
        "-subj",
        &format!("/CN={code}"),
        "-out",
        &csr,
    ]);
    openssl(&[
        "x509", "-req", "-in", &csr, "-CA", &crt, "-CAkey", &key, "-days", "1", "-out", &proof,
    ]);
    // A code is for one authority: another one's proof does not count.
    let other = Ca::root("other", None);
    let other_crt = place.write("other.crt", &other.pem);
    place.ok(&["authority", "register", "other", &other_crt]);
    let text = place.refused(&["authority", "prove", "other", &proof]);
    assert!(text.contains("hint: "), "{text}");
    place.ok(&["authority", "prove", "brought", &proof]);
    let list = place.ok(&["authority", "list"]);
    let state = |id: &str| {
        list.lines()
            .find(|l| l.contains(&format!(" {id} ")))
            .unwrap()
            .to_owned()
    };
    assert!(
        state("brought").contains("active") && state("other").contains("unproven"),
        "{list}"
    );
}

#[test]
fn a_wrong_key_leaves_nothing_behind_and_the_right_one_finishes_what_was_begun() {
    let place = Place::new("");
    let ca = Ca::root("third", None);
    let crt = place.write("third.crt", &ca.pem);
    let wrong = place.write("wrong.key", &Ca::root("x", None).key_pem());
    let right = place.write("right.key", &ca.key_pem());
    let register = ["authority", "register", "third", &crt];
    let by_wrong = [&register[..], &["--key", &wrong]].concat();
    let by_right = [&register[..], &["--key", &right]].concat();
    let text = place.refused(&by_wrong);
    assert!(
        text.contains("does not prove possession") && text.contains("hint: "),
        "{text}"
    );
    assert!(!place.ok(&["authority", "list"]).contains("third"));
    // Registered without its key, and so unproven: whoever repeats that is told how it goes on.
    place.ok(&register);
    let text = place.refused(&register);
    for part in ["exists already", "hint: ", "authority prove third", "--key"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    // Another certificate, or another key, does not finish it.
    let other = Ca::root("other", None);
    let (other_crt, other_key) = (
        place.write("other.crt", &other.pem),
        place.write("other.key", &other.key_pem()),
    );
    place.refused(&["authority", "register", "third", &other_crt, "--key", &other_key]);
    place.refused(&by_wrong);
    let finish = [&by_right[..], &["--identity-rule", "san-dns"]].concat();
    place.ok(&finish);
    let list = place.ok(&["authority", "list"]);
    let line = list.lines().find(|l| l.contains(" third ")).unwrap();
    assert!(line.contains(" active ") && line.contains("san-dns"), "{list}");
    // What is active is not registered again, and keeps what it has.
    let text = place.refused(&by_right);
    assert!(text.contains("exists already"), "{text}");
    assert!(place.ok(&["authority", "list"]).contains("san-dns"));
}

#[test]
fn a_ca_of_version_1_is_told_what_it_is_and_how_to_make_another() {
    let place = Place::new("");
    let [csr, crt, key] = ["v1.csr", "v1.crt", "v1.key"].map(|name| place.text(name));
    openssl(&[
        "req",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-keyout",
        &key,
        "-subj",
        "/CN=old",
        "-out",
        &csr,
    ]);
    openssl(&[
        "x509", "-req", "-in", &csr, "-signkey", &key, "-days", "30", "-out", &crt,
    ]);
    let text = place.refused(&["authority", "register", "old", &crt, "--key", &key]);
    assert!(text.contains("its version is not 3"), "{text}");
    // As it says there.
    let lines =
        "-days 3650 -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign";
    assert!(
        text.contains(&format!("openssl req -x509 -key CA.key -subj SUBJECT {lines}")),
        "{text}"
    );
    let made = ["req", "-x509", "-key", &key, "-subj", "/CN=old", "-out", &crt];
    openssl(&[&made[..], &lines.split(' ').collect::<Vec<_>>()].concat());
    place.ok(&["authority", "register", "old", &crt, "--key", &key]);
}

/// Runs the shell lines of a page of the book that have `word` in them.
fn run_book(place: &Place, page: &str, word: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs")
        .join(page);
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text
        .split("```sh\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .find(|block| block.contains(word))
        .unwrap();
    let output = Command::new("sh")
        .args(["-e", "-c", lines])
        .current_dir(place.folder.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{page}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_openssl_lines_of_the_book_make_what_is_let_in() {
    let place = Place::new("");
    run_book(&place, "authorities.md", "device.ext");
    let [ca, key, certs] = ["ca.crt", "ca.key", "certs"].map(|name| place.text(name));
    let rule = ["--identity-rule", "subject-serial-number"];
    place.ok(&[
        &["authority", "register", "factory", &ca, "--key", &key][..],
        &rule,
    ]
    .concat());
    let comes = |certificate: &str| {
        place.ok(&[&["device", "import", &place.text(certificate)][..], &rule].concat());
        let read = |name: &str| std::fs::read_to_string(place.path(name)).unwrap();
        let (pem, key_pem) = (read(certificate), read("SN-1.key"));
        let identity = Identity {
            chain: vec![CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()],
            key: PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).unwrap(),
            pem,
            key_pem,
        };
        assert_eq!(place.connect(&identity, "SN-1").connack(), Some(0));
    };
    comes("SN-1.crt");
    place.ok(&["device", "revoke", "SN-1"]);
    run_book(&place, "getting-started.md", "device.ext");
    assert!(Path::new(&certs).is_dir());
    comes("certs/SN-1.crt");

    run_book(&place, "enrolment.md", "bootstrap.key");
    let bootstrap = place.text("bootstrap.pem");
    let claim = [
        "factory",
        "claim",
        "add",
        "line-2",
        "--id-pattern",
        "SN-2?????",
        "--quota",
        "50",
    ];
    place.ok(&[&claim[..], &["--certificate", &bootstrap]].concat());
}

#[test]
fn a_device_that_nobody_registered_is_admitted_within_its_first_connection() {
    let place = Place::new("");
    let ca = Ca::root("jit root", None);
    let (crt, key) = (
        place.write("ca.crt", &ca.pem),
        place.write("ca.key", &ca.key_pem()),
    );
    let template = place.write(
        "template.toml",
        "id_pattern = \"SN-*\"\nquota = 2\nmodel = \"m1\"\nstate = \"active\"\n",
    );
    let register = [
        "authority",
        "register",
        "jit",
        &crt,
        "--key",
        &key,
        "--admission",
        "just-in-time",
        "--template",
    ];
    let faulty = place.write("faulty.toml", "id_pattern = \"SN-*\"\nquotum = 2\n");
    let said = place.server.cli(&[&register[..], &[&faulty]].concat()).unwrap();
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("faulty.toml") && said.contains("quotum"), "{said}");
    place
        .server
        .cli_ok(&[&register[..], &[&template]].concat())
        .unwrap();
    let first = ca.issue(&Leaf::named("SN-1"), &[]);
    for attempt in 0..2 {
        let seen = place.connect(&first, "SN-1");
        assert_eq!(seen.connack(), Some(0), "{attempt}: {seen:?}");
        assert_eq!(seen.packets().len(), 2, "the publish is acknowledged: {seen:?}");
    }
    let shown = place.ok(&["device", "show", "SN-1"]);
    assert!(
        shown.contains("model    m1") && shown.contains("bound to jit"),
        "{shown}"
    );
    assert!(place.ok(&["explain", "SN-1"]).contains("first-data"));
    // A second certificate for an id that exists, and what comes after the quota, are refused.
    let again = ca.issue(&Leaf::named("SN-1"), &[]);
    assert_eq!(place.connect(&again, "SN-1").connack(), Some(0x87));
    assert_eq!(
        place
            .connect(&ca.issue(&Leaf::named("SN-2"), &[]), "SN-2")
            .connack(),
        Some(0)
    );
    assert_eq!(
        place
            .connect(&ca.issue(&Leaf::named("SN-3"), &[]), "SN-3")
            .connack(),
        Some(0x87)
    );
    assert!(place.ok(&["explain", "SN-3"]).contains("first-contact.quota"));
}

#[test]
fn a_listed_device_has_its_certificate_learned_from_its_own_authority() {
    let place = Place::new("");
    let ca = Ca::root("known root", None);
    let issuing = ca.below("known issuing", Some(0));
    place
        .server
        .register("known", "default", &ca, &json!({ "mode": "known-device" }))
        .unwrap();
    place.ok(&["device", "add", "d1"]);
    let device = issuing.issue(&Leaf::named("d1"), &[]);
    // It sends only its own certificate, and nobody stored the one between.
    assert_eq!(place.connect(&device, "d1").alert, Some(48));
    let between = place.write("issuing.crt", &issuing.pem);
    place.ok(&["authority", "intermediate", &between]);
    assert_eq!(
        place.connect(&device, "d1").connack(),
        Some(0x87),
        "not bound yet"
    );
    place.ok(&["device", "bind", "d1", "--authority", "known"]);
    assert_eq!(place.connect(&device, "d1").connack(), Some(0));
    let other = issuing.issue(&Leaf::named("d1"), &[]);
    assert_eq!(place.connect(&other, "d1").connack(), Some(0x87));
    assert!(place.ok(&["explain", "d1"]).contains("first-contact.other-key"));
}

#[test]
fn provisioning_again_gives_the_same_certificate_and_a_newer_one_supersedes() {
    let place = Place::new("[issuance]\noverlap_hours = 0\n");
    let first = place.provision("d1", "d1", &[]);
    assert_eq!(place.provision("d1", "d1", &[]).pem, first.pem);
    assert_eq!(place.connect(&first, "d1").connack(), Some(0));
    let second = place.provision("d1", "d1-new", &[]);
    assert_ne!(second.pem, first.pem);
    // Both are good until the new one is used and the overlap, here none, is over.
    assert_eq!(place.connect(&first, "d1").connack(), Some(0));
    assert_eq!(place.connect(&second, "d1").connack(), Some(0));
    let place = Place {
        server: restart(place.server, &place.folder),
        folder: place.folder,
    };
    assert_eq!(place.connect(&second, "d1").connack(), Some(0));
    assert_eq!(place.connect(&first, "d1").connack(), Some(0x87));
    assert!(place.ok(&["explain", "d1"]).contains("credential.superseded"));
    let text = place.ok(&["device", "revoke", "d1", "--code", "key-compromise"]);
    assert!(text.contains("2 certificate(s) revoked"), "{text}");
    assert_eq!(place.connect(&second, "d1").alert, Some(44));
}

fn restart(server: Server, folder: &tempfile::TempDir) -> Server {
    server.stop().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_countersign"));
    Server::start(program, &folder.path().join("data"), "").unwrap()
}

#[test]
fn a_rotation_is_held_back_until_nobody_is_locked_out() {
    let place = Place::new("");
    let old: Vec<_> = ["d1", "d2"]
        .iter()
        .map(|id| place.provision(id, &format!("{id}-old"), &[]))
        .collect();
    for (identity, id) in old.iter().zip(["d1", "d2"]) {
        assert_eq!(place.connect(identity, id).connack(), Some(0));
    }
    place.ok(&["authority", "create", "second"]);
    place.ok(&["authority", "retire", "default-devices", "--reason", "rotation"]);
    let text = place.refused(&["authority", "close", "default-devices"]);
    assert!(
        text.contains("2 devices depend") && text.contains("d1, d2"),
        "{text}"
    );
    assert!(
        place
            .refused(&[
                "device",
                "provision",
                "d3",
                "--out",
                &place.text("d3"),
                "--authority",
                "default-devices"
            ])
            .contains("it issues nothing")
    );
    // d1 renews; its new certificate counts once it was used.
    let new = place.provision("d1", "d1-new", &[]);
    assert!(
        place
            .ok(&["authority", "dependents", "default-devices"])
            .contains("2 device(s)")
    );
    assert_eq!(place.connect(&new, "d1").connack(), Some(0));
    let text = place.ok(&["authority", "dependents", "default-devices"]);
    assert!(text.contains("1 device(s)") && text.contains("d2"), "{text}");
    // Let in, and refused only a topic: that does not keep it from renewing.
    let d2 = Attempt {
        patience: Duration::from_millis(1000),
        ..Attempt::new(place.server.devices)
    };
    let seen = Attempt {
        then: publish(5, "devices/d1/telemetry", 1, 0),
        ..d2.identity(&old[1]).send(connect(5, "d2"))
    }
    .run();
    assert_eq!(seen.connack(), Some(0));
    assert!(place.ok(&["explain", "d2"]).contains("topic.forbidden"));
    let report = place
        .server
        .ask("GET", "/authorities/default-devices/dependents", None)
        .unwrap();
    assert_eq!(
        report["reasons"],
        serde_json::json!({ "not-renewed": 1 }),
        "{report}"
    );
    let detail = report["devices"][0]["detail"].as_str().unwrap();
    assert!(
        detail.contains("topic.forbidden") && detail.contains("let it renew"),
        "{detail}"
    );
    place.refused(&["authority", "close", "default-devices"]);
    place.ok(&["authority", "close", "default-devices", "--leave-out", "1"]);
    assert_eq!(place.connect(&new, "d1").connack(), Some(0));
    assert_eq!(place.connect(&old[1], "d2").alert, Some(48));
    assert!(place.ok(&["explain", "d2"]).contains("authority.retired"));
    // Revoking ends live sessions at once.
    place.ok(&["authority", "revoke", "second", "--reason", "key lost"]);
    assert_eq!(place.connect(&new, "d1").alert, Some(44));
    // Whoever asks again with the same key is not given the dead one once more.
    place.ok(&["authority", "create", "third"]);
    let alive = place.provision("d1", "d1-new", &["--authority", "third"]);
    assert_ne!(alive.pem, new.pem);
    assert_eq!(place.connect(&alive, "d1").connack(), Some(0));
}

#[test]
fn an_external_root_issues_our_issuing_ca_and_our_own_root_goes_offline() {
    let place = Place::new("");
    let (root_crt, root_key) = (place.text("root.crt"), place.text("root.key"));
    openssl(&[
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-384",
        "-nodes",
        "-keyout",
        &root_key,
        "-out",
        &root_crt,
        "-days",
        "30",
        "-subj",
        "/CN=corporate root",
        "-addext",
        "keyUsage=critical,keyCertSign,cRLSign",
    ]);
    let csr = place.text("issuing.csr");
    place.ok(&["authority", "create", "corporate", "--csr", &csr]);
    let extensions = place.write(
        "ca.ext",
        "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n",
    );
    let issuing = place.text("issuing.crt");
    openssl(&[
        "x509",
        "-req",
        "-in",
        &csr,
        "-CA",
        &root_crt,
        "-CAkey",
        &root_key,
        "-days",
        "20000",
        "-extfile",
        &extensions,
        "-out",
        &issuing,
    ]);
    let chain = place.write(
        "chain.pem",
        &(std::fs::read_to_string(&issuing).unwrap() + &std::fs::read_to_string(&root_crt).unwrap()),
    );
    let text = place.refused(&["authority", "install", "corporate", &root_crt]);
    assert!(text.contains("another key"), "{text}");
    place.ok(&["authority", "install", "corporate", &chain]);
    let device = place.provision("d1", "d1", &["--authority", "corporate"]);
    assert_eq!(place.connect(&device, "d1").connack(), Some(0));
    let leaf = place.write("leaf.pem", &device.pem);
    openssl(&[
        "verify",
        "-CAfile",
        &root_crt,
        "-untrusted",
        &issuing,
        "-purpose",
        "sslclient",
        &leaf,
    ]);

    let kept = place.text("offline-root.key");
    place.ok(&[
        "authority",
        "take-root-offline",
        "default-devices",
        "--out",
        &kept,
    ]);
    assert!(std::fs::read_to_string(&kept).unwrap().contains("PRIVATE KEY"));
    let again = place
        .server
        .cli(&[
            "authority",
            "take-root-offline",
            "default-devices",
            "--out",
            &place.text("x"),
        ])
        .unwrap();
    assert_eq!(again.status.code(), Some(3));
    place.provision("d2", "d2", &["--authority", "default-devices"]);
}

/// What would be refused at every connection is refused when it is imported, and the device can have another certificate.
#[test]
fn certificates_that_nobody_is_admitted_by_are_not_imported() {
    let folder = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_countersign"));
    let server = Server::start(program, &folder.path().join("data"), "").unwrap();
    let run = |arguments: &str| {
        let mut words: Vec<String> = Vec::new();
        for word in arguments.split(' ') {
            words.push(word.replace("DIR", &folder.path().display().to_string()));
        }
        let output = Command::new("openssl").args(&words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
    };
    let new_key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    run(&format!(
        "req -x509 {new_key} -days 9 -keyout DIR/ca.key -out DIR/ca.crt -subj /CN=line/O=x"
    ));
    let extensions =
        "basicConstraints=CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=clientAuth\n";
    std::fs::write(folder.path().join("leaf.ext"), extensions).unwrap();
    let sign = |name: &str, subject: &str, more: &str| {
        run(&format!(
            "req -new {new_key} -keyout DIR/{name}.key -out DIR/{name}.csr -subj {subject}"
        ));
        run(&format!(
            "x509 -req -in DIR/{name}.csr -CA DIR/ca.crt -CAkey DIR/ca.key -CAcreateserial -days 9 -out DIR/{name}.crt{more}"
        ));
    };
    sign("old", "/CN=pump/serialNumber=pump-1", "");
    sign("good", "/CN=pump/serialNumber=pump-2", " -extfile DIR/leaf.ext");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (ca, key, good) = (path("ca.crt"), path("ca.key"), path("good.crt"));
    let rule = ["--identity-rule", "subject-serial-number"];
    let register = ["authority", "register", "line", &ca, "--key", &key];
    server.cli_ok(&[&register[..], &rule].concat()).unwrap();
    let import = |name: &str, rule: &[&str]| {
        let file = path(name);
        let output = server
            .cli(&[&["device", "import", &file], rule].concat())
            .unwrap();
        (
            output.status.success(),
            format!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            ),
        )
    };
    let (done, words) = import("old.crt", &rule);
    assert!(
        !done && words.contains("version is not 3") && words.contains("-extfile"),
        "{words}"
    );
    // Nor is its device accused of anything where it connects.
    let root = server.cli_ok(&["authority", "export", "platform"]).unwrap();
    std::fs::write(folder.path().join("platform.pem"), root).unwrap();
    let (platform, cert, its_key) = (path("platform.pem"), path("old.crt"), path("old.key"));
    let port = server.devices.port().to_string();
    let mut mosquitto = Command::new("mosquitto_pub");
    mosquitto.args(["-h", "localhost", "-p", &port, "--cafile", &platform]);
    mosquitto.args([
        "--cert", &cert, "--key", &its_key, "-i", "pump-1", "-t", "x", "-m", "y",
    ]);
    assert!(!mosquitto.output().unwrap().status.success());
    let exchanges = server.ask("GET", "/exchanges?limit=1", None).unwrap();
    let denial = &exchanges[0]["denial"];
    assert_eq!(denial["code"], "chain.malformed", "{exchanges}");
    assert!(
        denial["detail"].as_str().unwrap().contains("version is not 3"),
        "{denial}"
    );
    let (done, words) = import("ca.crt", &[]);
    assert!(!done && words.contains("authority register"), "{words}");
    // Read as another device's than its authority reads it: had it been taken, the device could never have it.
    let (done, words) = import("good.crt", &[]);
    assert!(
        !done && words.contains("is device pump-2's") && words.contains("--identity-rule"),
        "{words}"
    );
    let devices = server.ask("GET", "/tenants/default/devices", None).unwrap();
    assert!(!devices.to_string().contains("pump"), "{devices}");
    assert!(import("good.crt", &rule).0);
    assert!(
        server
            .cli_ok(&["why", &good])
            .unwrap()
            .contains("would be let in")
    );
}

/// A certificate of an external root for a request.
fn sign_by(place: &Place, csr: &str, extensions: &str, out: &str) -> String {
    let (root_crt, root_key, out) = (place.text("root.crt"), place.text("root.key"), place.text(out));
    if !place.path("root.crt").exists() {
        openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            &root_key,
            "-out",
            &root_crt,
            "-days",
            "3650",
            "-subj",
            "/CN=corporate root",
        ]);
    }
    let base = "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n";
    let extensions = place.write("ca.ext", &format!("{base}{extensions}"));
    openssl(&[
        "x509",
        "-req",
        "-in",
        csr,
        "-CA",
        &root_crt,
        "-CAkey",
        &root_key,
        "-days",
        "900",
        "-extfile",
        &extensions,
        "-out",
        &out,
    ]);
    std::fs::read_to_string(&out).unwrap()
}

#[test]
fn a_wrong_certificate_of_an_external_root_leaves_the_id_to_the_right_one() {
    let place = Place::new("");
    let csr = place.text("request.csr");
    let ask = |id: &str| {
        let _ = std::fs::remove_file(&csr);
        place.ok(&["authority", "create", id, "--csr", &csr]);
    };
    for id in ["refused", "cut"] {
        ask(id);
        let wrong = sign_by(&place, &csr, "extendedKeyUsage=serverAuth\n", "wrong.crt");
        let right = sign_by(&place, &csr, "", "right.crt");
        let root = std::fs::read_to_string(place.path("root.crt")).unwrap();
        let folder = place.path("data/authorities/devices").join(id);
        let chain = |issuing: &str| place.write("chain.pem", &format!("{issuing}{root}"));
        // The root alone is for another key; no backup would help.
        let text = place.refused(&["authority", "install", id, &place.text("root.crt")]);
        assert!(text.contains("another key") && !text.contains("backup"), "{text}");
        let text = place.refused(&["authority", "install", id, &chain(&wrong)]);
        assert!(
            text.contains("lacks clientAuth") && text.contains("hint: "),
            "{text}"
        );
        assert!(!folder.join("issuing.crt").exists());
        if id == "cut" {
            // As a kill between the two leaves it, of a version that wrote first.
            std::fs::write(folder.join("issuing.crt"), &wrong).unwrap();
            std::fs::write(folder.join("root.crt"), &root).unwrap();
        }
        // The same request again, for the same key.
        ask(id);
        let again = sign_by(&place, &csr, "", "again.crt");
        place.ok(&["authority", "install", id, &chain(&again)]);
        let device = place.provision(id, id, &["--authority", id]);
        assert_eq!(place.connect(&device, id).connack(), Some(0));
        // Once it is in use nothing takes its place.
        let text = place.refused(&["authority", "install", id, &chain(&right)]);
        assert!(text.contains("exists already"), "{text}");
        place.refused(&["authority", "create", id, "--csr", &csr]);
    }
    // A kill after the right one was written: it is finished by the same command.
    ask("finished");
    let right = sign_by(&place, &csr, "", "right.crt");
    let folder = place.path("data/authorities/devices/finished");
    let root = std::fs::read_to_string(place.path("root.crt")).unwrap();
    std::fs::write(folder.join("root.crt"), &root).unwrap();
    std::fs::write(folder.join("issuing.crt"), &right).unwrap();
    let chain = place.write("chain.pem", &(right + &root));
    place.ok(&["authority", "install", "finished", &chain]);
    place.provision("last", "last", &["--authority", "finished"]);
}
