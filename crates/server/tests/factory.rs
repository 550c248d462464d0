//! Batches and bulk issue as a factory meets them: the real commands, and the tools that read what they write.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stderr
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use countersign_testkit::client::{Attempt, connect};
use countersign_testkit::server::{Server, listener};
use serde_json::{Value, json};

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

    fn batch(&self, id: &str, quota: &str, more: &[&str]) {
        let mut arguments = vec![
            "factory",
            "batch",
            "add",
            id,
            "--model",
            "pump",
            "--profile",
            "operational",
            "--id-pattern",
            "SN-*",
            "--quota",
            quota,
        ];
        arguments.extend(more);
        self.server.cli_ok(&arguments).unwrap();
    }

    fn show(&self, id: &str) -> Value {
        let path = format!("/tenants/default/batches/{id}");
        self.server.ask("GET", &path, None).unwrap()
    }

    /// `factory issue --json`: whether it succeeded, its answer, its words.
    fn issue(&self, batch: &str, out: &str, more: &[&str]) -> (bool, Value, String) {
        let out = self.text(out);
        let mut arguments = vec!["--json", "factory", "issue", "--batch", batch, "--out", &out];
        arguments.extend(more);
        let output = self.server.cli(&arguments).unwrap();
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        let answer = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        (output.status.success(), answer, words)
    }

    fn credentials(&self) -> u64 {
        self.server.ask("GET", "/status", None).unwrap()["credentials"]
            .as_u64()
            .unwrap()
    }

    fn index(&self, out: &str) -> Vec<Vec<String>> {
        let text = std::fs::read_to_string(self.path(out).join("index.csv")).unwrap();
        text.lines()
            .skip(1)
            .map(|l| l.split(',').map(str::to_owned).collect())
            .collect()
    }
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap()
}

fn ok(command: &mut Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn openssl(arguments: &[&str]) -> String {
    ok(Command::new("openssl").args(arguments))
}

/// A request by OpenSSL; `key` are its arguments for the key.
fn request(path: &Path, key: &[&str], subject: &str) {
    let key_path = path.with_extension("key").display().to_string();
    let path = path.display().to_string();
    let mut arguments = vec!["req", "-new", "-nodes", "-keyout", &key_path, "-subj", subject];
    arguments.extend(key);
    arguments.extend(["-out", &path]);
    openssl(&arguments);
}

const P256: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];

#[test]
fn a_range_is_issued_once_goes_on_after_a_stop_and_its_devices_connect() {
    let place = Place::new("");
    place.batch("B-1", "400", &["--group", "eu"]);
    let range = |count: &'static str| ["--format", "SN-{:06}", "--from", "1", "--count", count];
    let (done, answer, words) = place.issue("B-1", "out", &range("300"));
    assert!(done, "{words}");
    assert_eq!((&answer["issued"], &answer["there"]), (&json!(300), &json!(0)));
    assert_eq!(place.index("out").len(), 300);
    assert_eq!(place.credentials(), 300);
    // Again, and further: only what is missing.
    let (done, answer, _) = place.issue("B-1", "out", &range("310"));
    assert!(done);
    assert_eq!((&answer["issued"], &answer["there"]), (&json!(10), &json!(300)));
    let view = place.show("B-1");
    assert_eq!(
        (&view["devices"], &view["credentials"]["issued"]),
        (&json!(310), &json!(310))
    );
    // No key is left where it was made, and what was written is its owner's alone.
    assert_eq!(std::fs::read(place.path("out/.work/keys")).unwrap(), b"");
    use std::os::unix::fs::MetadataExt;
    let mode = |name: &str| std::fs::metadata(place.path(name)).unwrap().mode() & 0o777;
    assert_eq!(
        (mode("out/SN-000007"), mode("out/SN-000007/device.key")),
        (0o700, 0o600)
    );
    // One of them comes in.
    let folder = place.path("out/SN-000007");
    let identity = countersign_testkit::pki::Identity::load(&folder).unwrap();
    let attempt = Attempt::new(place.server.devices)
        .identity(&identity)
        .send(connect(4, "SN-000007"));
    assert_eq!(attempt.run().connack(), Some(0));
    // Beyond the quota nothing is made, and the rest is not even tried.
    let (done, answer, words) = place.issue("B-1", "out", &range("2000"));
    assert!(!done);
    assert!(words.contains("quota of batch B-1 is used up"), "{words}");
    assert!(words.contains("hint: "), "{words}");
    assert_eq!(answer["issued"], json!(90));
    assert_eq!(place.credentials(), 400);
    place
        .server
        .cli_ok(&["factory", "batch", "close", "B-1"])
        .unwrap();
    let (done, _, words) = place.issue("B-1", "other", &["--format", "SN-9{}", "--count", "1"]);
    assert!(!done && words.contains("batch B-1 is closed"), "{words}");
    assert_eq!(place.credentials(), 400);
}

#[test]
fn an_answer_that_was_lost_is_asked_for_again_with_the_same_key() {
    let place = Place::new("");
    place.batch("B-1", "9", &[]);
    let range = ["--format", "SN-{}", "--count", "5"];
    assert!(place.issue("B-1", "out", &range).0);
    let before = place.index("out");
    // As if the run had been killed after the answer: keys are there, files and index are not.
    let out = place.path("out");
    let mut keys = String::new();
    for id in ["SN-1", "SN-4"] {
        let key = std::fs::read(out.join(id).join("device.key")).unwrap();
        let text: String = std::str::from_utf8(&key)
            .unwrap()
            .lines()
            .filter(|l| !l.starts_with("-----"))
            .collect();
        keys.push_str(&format!("{id} {text}\n"));
        std::fs::remove_dir_all(out.join(id)).unwrap();
    }
    std::fs::write(out.join(".work/keys"), keys).unwrap();
    let kept: String = std::fs::read_to_string(out.join("index.csv"))
        .unwrap()
        .lines()
        .filter(|l| !l.starts_with("SN-1,") && !l.starts_with("SN-4,"))
        .map(|l| format!("{l}\n"))
        .collect();
    std::fs::write(out.join("index.csv"), kept).unwrap();
    let (done, answer, words) = place.issue("B-1", "out", &range);
    assert!(done, "{words}");
    assert_eq!(
        (&answer["issued"], &answer["repeated"], &answer["there"]),
        (&json!(0), &json!(2), &json!(3))
    );
    let mut after = place.index("out");
    after.sort();
    let mut expected = before.clone();
    expected.sort();
    assert_eq!(after, expected);
    assert_eq!(place.credentials(), 5);
    // Another folder has other keys: two pieces of hardware with one id, and that is refused.
    let (done, answer, words) = place.issue("B-1", "second", &["--format", "SN-{}", "--count", "6"]);
    assert!(!done);
    assert_eq!(answer["refused"].as_array().unwrap().len(), 5);
    assert_eq!(answer["refused"][0]["code"], "batch.other-key", "{words}");
    assert_eq!(place.credentials(), 6);
    // The keys of the first folder are lost, and nobody used the certificates: replaced on request, the old revoked.
    let (done, answer, words) = place.issue(
        "B-1",
        "second",
        &["--format", "SN-{}", "--count", "6", "--replace"],
    );
    assert!(done, "{words}");
    assert_eq!(answer["issued"], json!(5));
    let view = place.show("B-1");
    assert_eq!(
        (
            &view["devices"],
            &view["credentials"]["issued"],
            &view["credentials"]["revoked"]
        ),
        (&json!(6), &json!(6), &json!(5))
    );
}

#[test]
fn devices_bring_their_own_requests_by_folder_and_by_list() {
    let place = Place::new("");
    place.batch("B-1", "9", &[]);
    let folder = place.path("requests");
    std::fs::create_dir(&folder).unwrap();
    request(&folder.join("SN-1.csr"), P256, "/CN=whatever");
    request(&folder.join("SN-2.pem"), P256, "/CN=SN-7");
    let folder = folder.display().to_string();
    let (done, answer, words) = place.issue("B-1", "out", &["--csr", &folder]);
    assert!(done, "{words}");
    assert_eq!(answer["issued"], json!(2));
    assert!(!place.path("out/SN-1/device.key").exists());
    // The certificate is for the device's own key, and for the id that the factory gave it, not for what it wished.
    let certificate = place.text("out/SN-1/device.crt");
    let subject = openssl(&["x509", "-in", &certificate, "-noout", "-subject", "-pubkey"]);
    assert!(
        subject.contains("SN-1") && !subject.contains("whatever"),
        "{subject}"
    );
    let key = place.text("requests/SN-1.key");
    assert!(subject.contains(&openssl(&["pkey", "-in", &key, "-pubout"])));
    let by_name = place.path("by-name");
    std::fs::create_dir(&by_name).unwrap();
    request(&by_name.join("line-4.csr"), P256, "/CN=SN-8");
    let by_name = by_name.display().to_string();
    let (done, _, words) = place.issue("B-1", "out", &["--csr", &by_name, "--id-from", "common-name"]);
    assert!(done, "{words}");
    assert!(place.path("out/SN-8/device.crt").exists());
    // A list with and without requests.
    request(&place.path("SN-5.csr"), P256, "/CN=x");
    std::fs::write(place.path("list.csv"), "id,csr\nSN-5,SN-5.csr\nSN-6,\n").unwrap();
    let list = place.text("list.csv");
    let (done, _, words) = place.issue("B-1", "out", &["--list", &list]);
    assert!(done, "{words}");
    assert!(!place.path("out/SN-5/device.key").exists() && place.path("out/SN-6/device.key").exists());
    assert_eq!(place.show("B-1")["devices"], json!(5));
}

/// What is wrong with the input → its code, a word of its cause. Each has a cure, and nothing is minted.
#[test]
fn bad_input_is_told_with_cause_and_cure_and_mints_nothing() {
    let config = "[[profiles]]\nname = \"operational\"\n[[profiles]]\nname = \"p256\"\nkeys = [\"p256\"]\n";
    let place = Place::new(config);
    place.batch("B-1", "1", &[]);
    place.batch("B-p256", "9", &[]);
    let late = ["--not-after", "2020-01-01T00:00:00Z"];
    place.batch("B-late", "9", &late);
    place.batch("B-early", "9", &["--not-before", "2999-01-01T00:00:00Z"]);
    place.batch("B-closed", "9", &[]);
    place
        .server
        .cli_ok(&["factory", "batch", "close", "B-closed"])
        .unwrap();
    let only_p256 = json!({
        "id": "B-kind", "model": "pump", "profile": "p256", "id_pattern": "SN-*", "quota": 9,
    });
    place
        .server
        .ask("POST", "/tenants/default/batches", Some(&only_p256))
        .unwrap();
    let file = |name: &str| place.path(name);
    request(&file("good.csr"), P256, "/CN=SN-1");
    request(&file("used.csr"), P256, "/CN=SN-1");
    request(
        &file("p384.csr"),
        &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"],
        "/CN=SN-2",
    );
    request(&file("weak.csr"), &["-newkey", "rsa:1024"], "/CN=SN-2");
    request(
        &file("curve.csr"),
        &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp256k1"],
        "/CN=SN-2",
    );
    std::fs::write(file("text.csr"), "hello").unwrap();
    // One bit of the public key or of the signature: the request proves nothing.
    let good = std::fs::read_to_string(file("good.csr")).unwrap();
    let der = file("good.der").display().to_string();
    openssl(&[
        "req",
        "-in",
        &place.text("good.csr"),
        "-outform",
        "DER",
        "-out",
        &der,
    ]);
    let mut bytes = std::fs::read(&der).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(file("forged.csr"), &bytes).unwrap();
    // SN-1 of another batch holds this key.
    let issue = |batch: &str, id: &str, csr: &str| -> Value {
        std::fs::write(file("one.csv"), format!("id,csr\n{id},{csr}\n")).unwrap();
        let list = place.text("one.csv");
        let out = tempfile::tempdir_in(place.folder.path()).unwrap();
        let name = out.path().file_name().unwrap().to_str().unwrap().to_owned();
        let (done, answer, words) = place.issue(batch, &name, &["--list", &list]);
        assert_eq!(done, answer["issued"] == json!(1), "{words}");
        if !done {
            assert!(words.contains("hint: "), "{words}");
        }
        answer
    };
    assert_eq!(issue("B-p256", "SN-1", "used.csr")["issued"], json!(1));
    let minted = place.credentials();
    let devices = place.server.ask("GET", "/status", None).unwrap()["devices"].clone();
    for (batch, id, csr, code, word) in [
        (
            "B-p256",
            "SN-2",
            "text.csr",
            "request.malformed",
            "not a certificate request",
        ),
        (
            "B-p256",
            "SN-2",
            "forged.csr",
            "request.not-proven",
            "does not fit its public key",
        ),
        (
            "B-p256",
            "SN-2",
            "weak.csr",
            "key.weak",
            "kind that is not accepted",
        ),
        (
            "B-p256",
            "SN-2",
            "curve.csr",
            "key.weak",
            "kind that is not accepted",
        ),
        (
            "B-kind",
            "SN-2",
            "p384.csr",
            "key.kind",
            "the key is p384, profile p256 accepts p256",
        ),
        ("B-p256", "SN-2", "used.csr", "key.of-another-device", "SN-1"),
        (
            "B-1",
            "SN-1",
            "good.csr",
            "batch.other-batch",
            "belongs to batch B-p256",
        ),
        ("B-p256", "SN-1", "good.csr", "batch.other-key", "another key"),
        (
            "B-1",
            "XX-1",
            "good.csr",
            "batch.outside-pattern",
            "does not fit the pattern SN-*",
        ),
        (
            "B-late",
            "SN-2",
            "good.csr",
            "batch.window-closed",
            "closed at 2020",
        ),
        (
            "B-early",
            "SN-2",
            "good.csr",
            "batch.window-not-open",
            "opens at 2999",
        ),
        ("B-closed", "SN-2", "good.csr", "batch.closed", "closed"),
    ] {
        let answer = issue(batch, id, csr);
        let refusal = &answer["refused"][0];
        assert_eq!(refusal["code"], code, "{csr}: {answer}");
        assert!(refusal["reason"].as_str().unwrap().contains(word), "{answer}");
        assert!(!refusal["hint"].as_str().unwrap().is_empty(), "{answer}");
        assert_eq!(place.credentials(), minted, "{csr} in {batch} minted something");
    }
    assert_eq!(
        place.server.ask("GET", "/status", None).unwrap()["devices"],
        devices
    );
    assert_eq!(issue("B-1", "SN-3", "good.csr")["issued"], json!(1));
    request(&file("more.csr"), P256, "/CN=SN-4");
    let over = issue("B-1", "SN-4", "more.csr");
    assert_eq!(over["refused"][0]["code"], "batch.quota-used-up", "{over}");
    assert_eq!(place.credentials(), minted + 1);
    assert!(!good.is_empty());
    // What the command line itself refuses, before anything is asked.
    for (arguments, word) in [
        (&["--format", "SN", "--count", "1"][..], "id format"),
        (&["--format", "SN/{}", "--count", "1"], "device id"),
        (&[], "for which devices"),
        (
            &["--format", "SN-{}", "--count", "1", "--layout", "pkcs12"],
            "--password-file",
        ),
    ] {
        let (done, _, words) = place.issue("B-p256", "never", arguments);
        assert!(
            !done && words.contains(word) && words.contains("hint: "),
            "{words}"
        );
    }
    let (done, _, words) = place.issue("B-none", "never", &["--format", "SN-{}", "--count", "1"]);
    assert!(!done && words.contains("no batch B-none"), "{words}");
    assert!(!place.path("never").exists());
    assert_eq!(place.credentials(), minted + 1);
}

#[test]
fn openssl_reads_the_pkcs12_files() {
    let place = Place::new("");
    place.batch("B-1", "9", &[]);
    let password = place.path("password");
    std::fs::write(&password, "correct horse battery\n").unwrap();
    let arguments = |path: &str| {
        [
            "--format",
            "SN-{}",
            "--count",
            "2",
            "--layout",
            "pkcs12",
            "--password-file",
            path,
        ]
        .map(str::to_owned)
    };
    let issue = |path: &str| {
        let arguments = arguments(path);
        place.issue("B-1", "out", &arguments.each_ref().map(String::as_str))
    };
    let path = place.text("password");
    ok(Command::new("chmod").args(["644", &path]));
    let (done, _, words) = issue(&path);
    assert!(!done && words.contains("chmod 600"), "{words}");
    ok(Command::new("chmod").args(["600", &path]));
    let (done, _, words) = issue(&path);
    assert!(done, "{words}");
    let file = place.text("out/SN-2.p12");
    let pass = format!("file:{path}");
    let text = openssl(&["pkcs12", "-in", &file, "-passin", &pass, "-nodes"]);
    assert!(text.contains("friendlyName: SN-2"), "{text}");
    assert_eq!(text.matches("BEGIN CERTIFICATE").count(), 2, "{text}");
    let pem = place.path("all.pem");
    std::fs::write(&pem, &text).unwrap();
    let pem = pem.display().to_string();
    assert_eq!(
        openssl(&["pkey", "-in", &pem, "-pubout"]),
        openssl(&["x509", "-in", &pem, "-noout", "-pubkey"])
    );
    let wrong =
        run(Command::new("openssl").args(["pkcs12", "-in", &file, "-passin", "pass:wrong", "-nodes"]));
    assert!(!wrong.status.success());
    let info =
        run(Command::new("openssl").args(["pkcs12", "-in", &file, "-passin", &pass, "-info", "-noout"]));
    let info = String::from_utf8_lossy(&info.stderr).into_owned();
    assert!(
        info.contains("PBES2, PBKDF2, AES-256-CBC, Iteration 10000, PRF hmacWithSHA256"),
        "{info}"
    );
    assert!(info.contains("MAC: sha256, Iteration 10000"), "{info}");
}

#[test]
fn an_archive_holds_every_identity_with_an_index() {
    let place = Place::new("");
    place.batch("B-1", "9", &[]);
    let range = ["--format", "SN-{}", "--count", "3", "--layout", "archive"];
    let (done, _, words) = place.issue("B-1", "out", &range);
    assert!(done, "{words}");
    let file = place.text("out/identities.tar");
    let names = ok(Command::new("tar").args(["-tf", &file]));
    for id in ["SN-1", "SN-2", "SN-3"] {
        for part in ["device.key", "device.crt", "platform-root.crt", "device.json"] {
            assert!(names.contains(&format!("{id}/{part}\n")), "{names}");
        }
    }
    let index = ok(Command::new("tar").args(["-xOf", &file, "index.csv"]));
    assert_eq!(index.lines().count(), 4, "{index}");
    let certificate = ok(Command::new("tar").args(["-xOf", &file, "SN-3/device.crt"]));
    assert!(certificate.contains("BEGIN CERTIFICATE"));
    // Extracted it is its owner's alone, keys above all; nothing of it is left beside it, and again is nothing new.
    let long = ok(Command::new("tar").args(["-tvf", &file]));
    assert!(
        long.lines()
            .all(|l| l.starts_with("-rw-------") || l.starts_with("drwx------")),
        "{long}"
    );
    assert!(!place.path("out/.work/identities.tar").exists());
    let (done, answer, _) = place.issue("B-1", "out", &range);
    assert!(done && answer["there"] == json!(3));
    // A complete archive is not changed, and one folder has one layout.
    let (done, _, words) = place.issue(
        "B-1",
        "out",
        &["--format", "SN-{}", "--count", "4", "--layout", "archive"],
    );
    assert!(!done && words.contains("is complete"), "{words}");
    let (done, _, words) = place.issue("B-1", "out", &["--format", "SN-{}", "--count", "3"]);
    assert!(!done && words.contains("other arguments"), "{words}");
    assert_eq!(place.credentials(), 3);
}

/// Espressif's own tool, from PyPI, in an environment of its own below the build folder. Without a network there is
/// none, and the test says so; CI has one.
fn nvs_tool() -> Option<PathBuf> {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("esp-idf-nvs-partition-gen-0.3.0");
    let python = place.join("bin/python");
    let works = || {
        Command::new(&python)
            .args(["-m", "esp_idf_nvs_partition_gen", "--help"])
            .output()
            .is_ok_and(|o| o.status.success())
    };
    if !works() {
        let made = Command::new("python3").args(["-m", "venv"]).arg(&place).status();
        let installed = made.is_ok_and(|s| s.success())
            && Command::new(&python)
                .args([
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    "esp-idf-nvs-partition-gen==0.3.0",
                ])
                .status()
                .is_ok_and(|s| s.success());
        if !installed || !works() {
            assert!(
                std::env::var_os("CI").is_none(),
                "CI must be able to install esp-idf-nvs-partition-gen"
            );
            eprintln!("not run: esp-idf-nvs-partition-gen cannot be installed here");
            return None;
        }
    }
    Some(python)
}

#[test]
fn espressifs_tool_makes_a_partition_of_each_identity() {
    let place = Place::new("");
    place.batch("B-1", "9", &[]);
    let range = ["--format", "SN-{}", "--count", "1", "--layout", "esp32"];
    let (done, _, words) = place.issue("B-1", "out", &range);
    assert!(done, "{words}");
    let folder = place.path("out/SN-1");
    let csv = std::fs::read_to_string(folder.join("nvs.csv")).unwrap();
    assert!(
        csv.starts_with("key,type,encoding,value\ncountersign,namespace,,\n"),
        "{csv}"
    );
    let Some(python) = nvs_tool() else { return };
    let made = run(Command::new(python)
        .args([
            "-m",
            "esp_idf_nvs_partition_gen",
            "generate",
            "nvs.csv",
            "nvs.bin",
            "0x4000",
        ])
        .current_dir(&folder));
    assert!(made.status.success(), "{made:?}");
    let partition = std::fs::read(folder.join("nvs.bin")).unwrap();
    assert_eq!(partition.len(), 0x4000);
    let key = std::fs::read(folder.join("device.key")).unwrap();
    for part in [&b"SN-1"[..], b"device_crt", b"platform_root", &key[..27]] {
        assert!(partition.windows(part.len()).any(|w| w == part), "{part:?}");
    }
}

#[test]
fn what_is_confirmed_is_active_and_a_batch_is_revoked_as_a_whole() {
    let place = Place::new(&listener("pki"));
    place.batch("B-1", "9", &[]);
    let range = ["--format", "SN-{}", "--count", "4"];
    assert!(place.issue("B-1", "out", &range).0);
    let index = place.index("out");
    let some: String = index[..2].iter().map(|r| format!("{}\n", r[2])).collect();
    std::fs::write(place.path("some"), some).unwrap();
    let list = place.text("some");
    let confirm = |more: &[&str]| {
        let mut arguments = vec!["factory", "confirm", "--batch", "B-1"];
        arguments.extend(more);
        let output = place.server.cli(&arguments).unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
        )
    };
    let (done, text) = confirm(&["--list", &list, "SN-3"]);
    assert!(done && text.contains("3 confirmed, 0 confirmed before"), "{text}");
    let whole = place.text("out/index.csv");
    let (done, text) = confirm(&["--list", &whole, "SN-9"]);
    assert!(
        !done && text.contains("1 confirmed, 3 confirmed before, 1 not confirmed"),
        "{text}"
    );
    assert!(
        text.contains("not confirmed: SN-9") && text.contains("hint: "),
        "{text}"
    );
    assert_eq!(place.show("B-1")["credentials"], json!({ "active": 4 }));

    let text = place
        .server
        .cli_ok(&[
            "credential",
            "revoke",
            "--batch",
            "B-1",
            "--code",
            "key-compromise",
            "--reason",
            "leak",
        ])
        .unwrap();
    assert!(text.contains("batch B-1: 4 certificate(s) revoked"), "{text}");
    // Others see it on the list.
    let pki = place.server.listener("pki").unwrap();
    let crl = place.text("list.crl");
    let authority = &index[0][4];
    ok(Command::new("curl").args(["-sSf", "-o", &crl, &format!("http://{pki}/crl/{authority}.crl")]));
    let listed = openssl(&["crl", "-inform", "DER", "-in", &crl, "-noout", "-text"]);
    for row in &index {
        assert!(
            listed.contains(&row[1].to_uppercase()),
            "{} is not on the list: {listed}",
            row[0]
        );
    }
    assert_eq!(listed.matches("Key Compromise").count(), 4, "{listed}");
}
