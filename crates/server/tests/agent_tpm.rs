//! A device whose key is in a TPM: the real agent, and stock clients, with swtpm against a server.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign_testkit::agent::{Agent, Running};
use countersign_testkit::server::{Server, listener};
use countersign_testkit::swtpm::Swtpm;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_countersign"))
}

struct Place {
    folder: tempfile::TempDir,
    server: Server,
    enrol: String,
    tpm: Swtpm,
}

impl Place {
    fn new() -> Self {
        Self::with(Swtpm::start())
    }

    fn with(tpm: Swtpm) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(program(), &folder.path().join("data"), &listener("enrol")).unwrap();
        let enrol = format!("localhost:{}", server.listener("enrol").unwrap().port());
        let place = Self {
            folder,
            server,
            enrol,
            tpm,
        };
        let root = place.server.cli_ok(&["authority", "export", "platform"]).unwrap();
        std::fs::write(place.path("root.pem"), root).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn agent(&self, device: &str) -> Agent {
        Agent::with_tpm(program(), self.path(device)).with("TSS2_LOG", "all+NONE".into())
    }

    /// What enrolls a device with its keys in this TPM.
    fn arguments(&self, device: &str, tpm: &Swtpm) -> Vec<String> {
        self.server.cli_ok(&["device", "add", device]).unwrap();
        self.arguments_in(device, &format!("tpm:{}", tpm.address()))
    }

    /// What enrolls a device that is registered, with its keys there.
    fn arguments_in(&self, device: &str, store: &str) -> Vec<String> {
        let secret = self.server.cli_ok(&["device", "secret", device]).unwrap();
        std::fs::write(self.path("secret"), secret).unwrap();
        let (root, secret) = (self.text("root.pem"), self.text("secret"));
        [
            "enrol",
            "--server",
            &self.enrol,
            "--platform-root",
            &root,
            "--id",
            device,
        ]
        .into_iter()
        .chain(["--secret-file", &secret, "--key-store", store])
        .map(str::to_owned)
        .collect()
    }

    /// What enrols a device that is there already again, by a new secret and nothing else.
    fn secret_arguments(&self, device: &str) -> Vec<String> {
        let secret = self.server.cli_ok(&["device", "secret", device]).unwrap();
        std::fs::write(self.path("secret"), secret).unwrap();
        ["enrol", "--again", "--server", &self.enrol, "--id", device]
            .into_iter()
            .chain(["--secret-file", &self.text("secret")])
            .map(str::to_owned)
            .collect()
    }

    fn enrolled(&self, device: &str) -> Agent {
        let agent = self.agent(device);
        let arguments = self.arguments(device, &self.tpm);
        agent.ok(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        agent
    }

    /// A shell's commands with OpenSSL's TPM provider, as the book has it: beside tpm2-abrmd, on a bus of its own. What they
    /// printed.
    fn stock(&self, commands: &str) -> String {
        let config = self.path("openssl.cnf");
        std::fs::write(&config, OPENSSL).unwrap();
        let script = format!(
            "tpm2-abrmd --session --allow-root --tcti={} &\n\
             broker=$!\n\
             until tpm2_getrandom -T tabrmd:bus_type=session --hex 8 >/dev/null 2>&1; do sleep 0.1; done\n\
             export OPENSSL_CONF={} TPM2OPENSSL_TCTI=tabrmd:bus_type=session\n\
             {commands}\n\
             kill $broker\n",
            self.tpm.address(),
            config.display()
        );
        let output = Command::new("timeout")
            .args(["60", "dbus-run-session", "--", "sh", "-c", &script])
            .env("TSS2_LOG", "all+NONE")
            .output()
            .unwrap();
        let text = [output.stdout.as_slice(), &output.stderr].concat();
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// Signatures by the TPM, all else as ever.
const OPENSSL: &str = "\
openssl_conf = all
[all]
providers = providers
alg_section = algorithms
[providers]
default = on
tpm2 = on
[on]
activate = 1
[algorithms]
default_properties = ?tpm2.signature=yes
";

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

fn holds(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|w| w == word)
}

#[test]
fn the_key_is_made_in_the_tpm_used_there_and_carried_away_it_is_worth_nothing() {
    let mut place = Place::new();
    let agent = place.enrolled("sensor-1");
    agent.ok(&["publish", "21.5"]);
    let first = (
        agent.certificate(),
        std::fs::read(agent.folder.join("device.key")).unwrap(),
    );
    agent.ok(&["renew"]);
    assert_ne!(agent.certificate(), first.0);
    assert_ne!(
        std::fs::read(agent.folder.join("device.key")).unwrap(),
        first.1,
        "a key of its own"
    );
    agent.ok(&["check"]);
    // After a power cycle it is the same TPM.
    place.tpm.restart();
    agent.ok(&["check"]);

    let below = bytes_below(&agent.folder);
    assert!(holds(&below, b"-----BEGIN TSS2 PRIVATE KEY-----"));
    assert!(!holds(&below, b"-----BEGIN PRIVATE KEY-----") && !holds(&below, b"EC PRIVATE KEY"));
    // The whole folder on another machine: its TPM does not know the key.
    let other = Swtpm::start();
    let key = std::fs::canonicalize(agent.folder.join("device.key")).unwrap();
    let here = std::fs::read_to_string(&key).unwrap();
    std::fs::write(&key, here.replace(&place.tpm.address(), &other.address())).unwrap();
    let (code, _, err) = agent.run(&["check"]);
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("not of the TPM") && err.contains("hint: "), "{err}");
    std::fs::write(&key, here).unwrap();
    // Without a TPM, and by the agent that has none: what is wrong, and what to do.
    place.tpm.stop();
    let (code, _, err) = agent.run(&["check"]);
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("there is no TPM") && err.contains("hint: "), "{err}");
    let without = Agent::new(program(), agent.folder.clone());
    let (code, _, err) = without.run(&["check"]);
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("countersign-agent-tpm"), "{err}");
    place.tpm.restart();
    place
        .server
        .cli_ok(&["device", "decommission", "sensor-1", "--reason", "scrapped"])
        .unwrap();
    let (code, _, err) = agent.run(&["check"]);
    assert!([6, 7].contains(&code), "{code}: {err}");
}

#[test]
fn what_the_tpm_says_of_the_key_is_believed_and_policies_demand_it() {
    // TPM_ALG_RSA; TPM_ALG_ECC, on P-384: swtpm_setup makes both, and RSA is taken where it is there.
    for algorithm in [1, 0x23] {
        let tpm = Swtpm::manufactured(&["--ecc"]);
        if algorithm == 0x23 {
            tpm.run("tpm2_nvundefine", &["-C", "p", "0x1c00002"]);
        }
        let place = Place::with(tpm);
        let cli = |arguments: &[&str]| place.server.cli_ok(arguments).unwrap();
        let custody = |device: &str| -> Vec<String> {
            let text = cli(&["device", "show", device, "--json"]);
            let shown: serde_json::Value = serde_json::from_str(&text).unwrap();
            let all = shown["credentials"].as_array().unwrap();
            all.iter()
                .map(|c| c["custody"].as_str().unwrap().to_owned())
                .collect()
        };
        let policy = place.path("policy.cedar");
        std::fs::write(&policy, ATTESTED).unwrap();
        cli(&["policy", "set", &policy.display().to_string(), "--reason", "test"]);

        let agent = place.agent("sensor-1");
        let mut enrol = place.arguments("sensor-1", &place.tpm);
        enrol.push("--attest".into());
        let enrol: Vec<_> = enrol.iter().map(String::as_str).collect();
        // Nobody vouches for this TPM yet.
        let (code, _, err) = agent.run(&enrol);
        assert_eq!(code, 10, "{err}");
        assert!(
            err.contains("attestation.ek-unknown") && err.contains("attestation authority add"),
            "{err}"
        );
        let maker = place.tpm.maker().display().to_string();
        cli(&["attestation", "authority", "add", "swtpm", &maker]);
        agent.ok(&enrol);
        agent.ok(&["publish", "21.5"]);
        assert_eq!(custody("sensor-1"), ["attested"]);
        let shown: serde_json::Value =
            serde_json::from_str(&cli(&["attestation", "show", "sensor-1", "--json"])).unwrap();
        let ek = STANDARD
            .decode(shown[0]["evidence"]["endorsement_key"].as_str().unwrap())
            .unwrap();
        assert_eq!(ek[..2], [0, algorithm], "{shown}");
        // The next key is another one, and attested too, without anybody saying so again.
        agent.ok(&["renew"]);
        agent.ok(&["publish", "21.6"]);
        assert_eq!(custody("sensor-1"), ["attested", "attested"]);
        // Enrolled again, nobody need say it again.
        let again = place.secret_arguments("sensor-1");
        agent.ok(&again.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(custody("sensor-1")[0], "attested");
        // The same TPM, and nothing said of the key: that is no device for this policy.
        let other = place.enrolled("sensor-2");
        assert_eq!(custody("sensor-2"), ["unknown"]);
        let (code, _, err) = other.run(&["check"]);
        assert_eq!(code, 7, "{err}");
        // Nor can it be said of another device's TPM.
        let mut enrol = place.arguments("sensor-3", &place.tpm);
        enrol.push("--attest".into());
        let (code, _, err) = place
            .agent("sensor-3")
            .run(&enrol.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(code, 10, "{err}");
        assert!(err.contains("attestation.ek-of-other-device"), "{err}");
    }
}

/// What the TPM keeps beside its keys, read as everybody may; empty if there is nothing.
fn kept(tpm: &Swtpm) -> Vec<u8> {
    let tool = |program: &str, arguments: &[&str]| {
        let output = Command::new(program)
            .args(arguments)
            .env("TPM2TOOLS_TCTI", tpm.address())
            .output()
            .unwrap();
        assert!(output.status.success(), "{program}: {output:?}");
        output.stdout
    };
    let indices = String::from_utf8(tool("tpm2_getcap", &["handles-nv-index"])).unwrap();
    match indices.to_uppercase().contains("0X1806373") {
        true => tool("tpm2_nvread", &["0x1806373"]),
        false => Vec::new(),
    }
}

/// The certificates of PEM, as DER one after the other, by OpenSSL.
fn der(pem: &str) -> Vec<u8> {
    let end = "-----END CERTIFICATE-----";
    let all = pem.split_inclusive(end).filter(|part| part.contains(end));
    all.flat_map(|one| openssl(&["x509", "-outform", "DER"], one.as_bytes()))
        .collect()
}

fn openssl(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

#[test]
fn the_certificate_in_use_is_in_the_tpm_too_and_goes_with_the_key() {
    let place = Place::new();
    let agent = place.enrolled("sensor-1");
    let first = kept(&place.tpm);
    assert_eq!(first, der(&agent.certificate()), "certificate and chain");
    // Anybody's tool sees whose it is.
    let shown = openssl(&["x509", "-inform", "DER", "-noout", "-subject"], &first);
    assert!(holds(&shown, b"sensor-1"), "{shown:?}");
    // The next one takes its place once it has connected, and not before.
    agent.ok(&["renew", "--no-connect"]);
    assert_eq!(kept(&place.tpm), first);
    agent.ok(&["check"]);
    let second = kept(&place.tpm);
    assert!(second != first && second == der(&agent.certificate()));

    // Another device with a key in this TPM leaves it alone, is told, and needs no more than its folder.
    let other = place.agent("sensor-2");
    let arguments = place.arguments("sensor-2", &place.tpm);
    let (code, _, err) = other.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(code, 0, "{err}");
    assert!(
        err.contains("warning: ") && err.contains("sensor-1") && err.contains("hint: "),
        "{err}"
    );
    other.ok(&["renew"]);
    other.ok(&["destroy", "--confirm", "sensor-2"]);
    assert_eq!(kept(&place.tpm), second);

    // Lost from the disk, it is given back by stock tools: the key is still there.
    let file = std::fs::canonicalize(agent.folder.join("device.crt")).unwrap();
    std::fs::remove_file(&file).unwrap();
    let (code, _, err) = agent.run(&["check"]);
    assert_eq!(code, 3, "{err}");
    std::fs::write(&file, openssl(&["x509", "-inform", "DER"], &kept(&place.tpm))).unwrap();
    agent.ok(&["check"]);

    // A device whose keys are made elsewhere from now on leaves nothing behind.
    let moved = place.arguments_in("sensor-1", "file");
    let moved = moved.iter().map(String::as_str).chain(["--again"]);
    agent.ok(&moved.collect::<Vec<_>>());
    assert!(kept(&place.tpm).is_empty());
    agent.ok(&["check"]);

    // Nor does one that has ended.
    let last = place.enrolled("sensor-3");
    assert!(!kept(&place.tpm).is_empty());
    last.ok(&["destroy", "--confirm", "sensor-3"]);
    assert!(kept(&place.tpm).is_empty());
}

#[test]
fn a_tpm_without_room_for_the_certificate_is_only_a_warning() {
    let place = Place::new();
    let defined = |n: u32, bytes: &str| {
        let index = format!("{:#x}", 0x0180_0100 + n);
        let output = Command::new("tpm2_nvdefine")
            .args(["-C", "o", "-s", bytes, &index])
            .env("TPM2TOOLS_TCTI", place.tpm.address())
            .output()
            .unwrap();
        output.status.success()
    };
    // Until not even little fits.
    let mut n = 0;
    for bytes in ["2000", "300"] {
        while defined(n, bytes) {
            n += 1;
        }
    }
    let agent = place.agent("sensor-1");
    let arguments = place.arguments("sensor-1", &place.tpm);
    let (code, _, err) = agent.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(code, 0, "{err}");
    assert!(
        err.contains("warning: the certificate is kept in the folder alone") && err.contains("no room"),
        "{err}"
    );
    let (code, _, err) = agent.run(&["renew"]);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("no room"), "{err}");
    agent.ok(&["check"]);
    assert!(kept(&place.tpm).is_empty());
}

/// A TPM that takes longer than the platform keeps an idle connection; a maker that is trusted no more.
#[test]
fn a_slow_tpm_is_waited_for_and_one_that_is_believed_no_more_keeps_its_key() {
    let place = Place::with(Swtpm::manufactured(&[]));
    let cli = |arguments: &[&str]| place.server.cli_ok(arguments).unwrap();
    let custody = || -> Vec<String> {
        let shown: serde_json::Value =
            serde_json::from_str(&cli(&["device", "show", "sensor-1", "--json"])).unwrap();
        let all = shown["credentials"].as_array().unwrap();
        all.iter()
            .map(|c| c["custody"].as_str().unwrap().to_owned())
            .collect()
    };
    let maker = place.tpm.maker().display().to_string();
    cli(&["attestation", "authority", "add", "swtpm", &maker]);
    let agent = place.agent("sensor-1");
    let mut enrol = place.arguments("sensor-1", &place.tpm);
    enrol.push("--attest".into());
    place.tpm.pause();
    std::thread::scope(|scope| {
        let enrolling = scope.spawn(|| agent.ok(&enrol.iter().map(String::as_str).collect::<Vec<_>>()));
        // The platform waits 10 s for the next request.
        std::thread::sleep(std::time::Duration::from_secs(12));
        place.tpm.resume();
        enrolling.join().unwrap();
    });
    assert_eq!(custody(), ["attested"]);
    agent.ok(&["check"]);

    // Nothing new is believed; what is known of the key stays known, and the device stays in.
    cli(&["attestation", "authority", "remove", "swtpm"]);
    let key = std::fs::read(agent.folder.join("device.key")).unwrap();
    // Else the same certificate comes again: it is young.
    let (code, said, err) = agent.run(&["renew"]);
    assert_eq!(code, 0, "{said}{err}");
    assert!(
        err.contains("no new key was attested") && err.contains("attestation.ek-unknown"),
        "{err}"
    );
    assert_eq!(std::fs::read(agent.folder.join("device.key")).unwrap(), key);
    // For that key there is no other certificate yet: nothing is left that waits.
    assert_eq!(std::fs::read_dir(agent.folder.join("slots")).unwrap().count(), 1);
    assert!(custody().iter().all(|c| c == "attested"), "{:?}", custody());
    agent.ok(&["publish", "21.5"]);
    let again = agent.run(&[
        "provision",
        "--server",
        &place.enrol,
        "--id",
        "sensor-1",
        "--key-store",
        "file",
        "--secret-file",
        "-",
    ]);
    assert_eq!(again.0, 3, "another key store than it has: {}", again.2);
}

/// A key that is made first and certified later: where the next ones are made follows from it.
#[test]
fn what_an_operator_issued_for_a_key_is_installed_beside_it() {
    let place = Place::new();
    place.server.cli_ok(&["device", "add", "sensor-1"]).unwrap();
    let agent = place.agent("sensor-1");
    let store = format!("tpm:{}+pcrs=sha256:16", place.tpm.address());
    let request = agent.ok(&["request", "sensor-1", "--key-store", &store]);
    std::fs::write(place.path("csr"), request).unwrap();
    let (csr, out) = (place.text("csr"), place.text("issued"));
    place
        .server
        .cli_ok(&["device", "provision", "sensor-1", "--csr", &csr, "--out", &out])
        .unwrap();
    agent.ok(&["install", &out]);
    let profile = std::fs::read_to_string(agent.folder.join("device.json")).unwrap();
    assert!(profile.contains(&store), "{profile}");
    agent.ok(&["check"]);
    agent.ok(&["renew"]);
    agent.ok(&["check"]);
}

/// Only keys that a TPM says it holds.
const ATTESTED: &str = r#"
@id("attested-only")
permit (principal, action, resource)
when { context.credential.custody == "attested" };
"#;

#[test]
fn mosquitto_and_curl_use_the_same_key_in_the_tpm() {
    let place = Place::new();
    let agent = place.enrolled("sensor-2");
    let file = |name: &str| agent.folder.join(name).display().to_string();
    let port = place.server.devices.port().to_string();
    let mtls = format!("--cert {} --key {}", file("device.crt"), file("device.key"));
    let root = file("platform-root.crt");
    let said = place.stock(&format!(
        "mosquitto_pub -h localhost -p {port} --cafile {root} {mtls} -i sensor-2 -q 1 \
         -t devices/sensor-2/telemetry -m 21.5 && echo mosquitto published\n\
         token=$(curl -sS --cacert {root} {mtls} -d grant_type=client_credentials -d client_id=sensor-2 \
         https://localhost:{port}/oauth2/token | sed 's/.*\"access_token\":\"\\([^\"]*\\)\".*/\\1/')\n\
         curl -sS --cacert {root} {mtls} -H \"Authorization: Bearer $token\" -w 'curl %{{http_code}}\\n' --data 22.0 \
         https://localhost:{port}/v1/publish/devices/sensor-2/telemetry"
    ));
    assert!(said.contains("mosquitto published"), "{said}");
    assert!(said.contains("curl 2"), "{said}");
}

/// What starts a device measures it into PCRs: here a program into one that programs may reset.
fn measured(tpm: &Swtpm) {
    tpm.run("tpm2_pcrextend", &[&format!("16:sha256={}", "5a".repeat(32))]);
}

fn reset(tpm: &Swtpm) {
    tpm.run("tpm2_pcrreset", &["16"]);
}

#[test]
fn a_key_that_is_bound_to_pcrs_is_the_devices_in_that_state_alone() {
    let place = Place::new();
    let free = place.enrolled("sensor-2");
    let agent = place.agent("sensor-1");
    let run = |arguments: &[String]| agent.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let enrol = |more: &[&str]| {
        let mut all = place.arguments("sensor-1", &place.tpm);
        let store = all.iter_mut().find(|a| a.starts_with("tpm:")).unwrap();
        store.push_str("+pcrs=sha256:7,16");
        all.extend(more.iter().map(|m| (*m).to_owned()));
        run(&all)
    };
    let key = || std::fs::read_to_string(agent.folder.join("device.key")).unwrap();
    let refused = |arguments: &[&str]| {
        let (code, _, err) = agent.run(arguments);
        assert_eq!(code, 3, "{err}");
        assert!(
            err.contains("the PCR sha256:16 is another one now") && err.contains("enrol --again"),
            "{err}"
        );
    };
    let (code, _, err) = enrol(&[]);
    assert_eq!(code, 0, "{err}");
    agent.ok(&["publish", "21.5"]);
    // The next key is another one, bound as the first was.
    let first = key();
    agent.ok(&["renew"]);
    agent.ok(&["check"]);
    assert!(key() != first && key().contains("\nsha256:16=00"), "{}", key());

    measured(&place.tpm);
    refused(&["check"]);
    refused(&["publish", "21.6"]);
    refused(&["renew"]);
    free.ok(&["check"]);
    // In the old state all is as it was.
    reset(&place.tpm);
    agent.ok(&["check"]);

    // An update that nobody thought of before. A key that was begun in the old state and waits is given up too.
    agent.ok(&["renew", "--no-connect"]);
    measured(&place.tpm);
    refused(&["check"]);
    let secret = place.server.cli_ok(&["device", "secret", "sensor-1"]).unwrap();
    std::fs::write(place.path("secret"), secret).unwrap();
    let again = [
        "enrol",
        "--server",
        &place.enrol,
        "--id",
        "sensor-1",
        "--again",
        "--secret-file",
        &place.text("secret"),
    ];
    agent.ok(&again);
    agent.ok(&["check"]);
    assert!(
        key().contains("\nsha256:16=") && !key().contains("\nsha256:16=00"),
        "{}",
        key()
    );
    reset(&place.tpm);
    refused(&["check"]);
    measured(&place.tpm);
    agent.ok(&["check"]);

    // One that is planned: a key that is not bound meanwhile.
    let profile = agent.folder.join("device.json");
    let bind = |from: &str, to: &str| {
        let text = std::fs::read_to_string(&profile).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(&profile, text.replace(from, to)).unwrap();
        agent.ok(&["renew"]);
        agent.ok(&["check"]);
    };
    bind("+pcrs=sha256:7,16\"", "\"");
    measured(&place.tpm);
    agent.ok(&["check"]);
    bind(
        &place.tpm.address(),
        &format!("{}+pcrs=sha256:7,16", place.tpm.address()),
    );
    measured(&place.tpm);
    refused(&["check"]);
    // Its end is told by the key.
    refused(&["destroy", "--confirm", "sensor-1"]);
    reset(&place.tpm);
    measured(&place.tpm);
    measured(&place.tpm);
    agent.ok(&["destroy", "--confirm", "sensor-1"]);
}

#[test]
fn the_service_says_that_the_state_is_another_one_and_goes_on_in_the_old_one() {
    let place = Place::new();
    let agent = place.agent("sensor-1");
    place.server.cli_ok(&["device", "add", "sensor-1"]).unwrap();
    let store = format!("tpm:{}+pcrs=sha256:16", place.tpm.address());
    let enrol = place.arguments_in("sensor-1", &store);
    agent.ok(&enrol.iter().map(String::as_str).collect::<Vec<_>>());
    measured(&place.tpm);
    let mut service = Running::of(agent, place.path("words"));
    service.start(&["run"]);
    let status = service.until("it says so", |code, _| code == 3);
    let fault = status["fault"].to_string();
    assert!(
        fault.contains("sha256:16 is another one") && fault.contains("enrol --again"),
        "{status}"
    );
    reset(&place.tpm);
    service.until("it goes on", |code, _| code == 0);
}

#[test]
fn a_first_key_of_another_state_is_made_anew() {
    let place = Place::new();
    let agent = place.agent("sensor-1");
    let store = format!("tpm:{}+pcrs=sha256:16", place.tpm.address());
    place.server.cli_ok(&["device", "add", "sensor-1"]).unwrap();
    let enrol = |store: &str| {
        let arguments = place.arguments_in("sensor-1", store);
        agent.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let key = || std::fs::read_to_string(agent.folder.join("device.key")).unwrap();
    agent.ok(&["request", "sensor-1", "--key-store", &store]);
    let first = key();
    // It is not taken for one that signs in all states.
    let (code, _, err) = enrol(store.trim_end_matches("+pcrs=sha256:16"));
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("bound to its PCRs sha256:16"), "{err}");
    assert_eq!(key(), first);
    measured(&place.tpm);
    let (code, _, err) = enrol(&store);
    assert_eq!(code, 0, "{err}");
    assert_ne!(key(), first);
    agent.ok(&["check"]);
}

#[test]
fn a_bound_key_is_attested_and_a_registered_tpm_enrols_in_every_state() {
    let place = Place::with(Swtpm::manufactured(&[]));
    let cli = |arguments: &[&str]| place.server.cli_ok(arguments).unwrap();
    let policy = place.path("policy.cedar");
    std::fs::write(&policy, ATTESTED).unwrap();
    cli(&["policy", "set", &policy.display().to_string(), "--reason", "test"]);
    place
        .tpm
        .run_line("tpm2_createek", "-G rsa -c ek.ctx -u ek.pem -f pem");
    place.tpm.run("tpm2_flushcontext", &["-t"]);
    cli(&["device", "add", "sensor-1"]);
    let ek = place.tpm.path("ek.pem").display().to_string();
    cli(&["attestation", "key", "add", "sensor-1", &ek]);
    let agent = place.agent("sensor-1");
    let store = format!("tpm:{}+pcrs=sha256:16", place.tpm.address());
    let root = place.text("root.pem");
    let mut enrol = vec![
        "enrol",
        "--server",
        &place.enrol,
        "--platform-root",
        &root,
        "--id",
        "sensor-1",
        "--key-store",
        &store,
        "--attest",
    ];
    agent.ok(&enrol);
    agent.ok(&["publish", "21.5"]);
    agent.ok(&["renew"]);
    agent.ok(&["publish", "21.6"]);
    measured(&place.tpm);
    let (code, _, err) = agent.run(&["check"]);
    assert_eq!(code, 3, "{err}");
    // No secret, and nobody at the platform.
    enrol.push("--again");
    agent.ok(&enrol);
    agent.ok(&["publish", "21.7"]);
    let text = cli(&["device", "show", "sensor-1", "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&text).unwrap();
    let custody = shown["credentials"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| &c["custody"]);
    assert_eq!(custody.collect::<Vec<_>>(), ["attested", "attested", "attested"]);
}
