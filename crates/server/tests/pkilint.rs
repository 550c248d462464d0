//! pkilint on everything that is minted here: no ERROR or above, and every WARNING and NOTICE is in `pkilint.toml` with
//! its reason. A new kind of certificate, list or answer is one more line in `artifacts`.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use countersign_authority::{Hierarchy, IssuingAuthority, KeyStore, NoTokens, possession_proof};
use countersign_factory::station::{StationCaGrant, Terms};
use countersign_factory::{EnrolmentGrant, Profile, ProvenKey, SoftwareKey};
use countersign_identity::{BatchId, DeviceId, StationId, TenantId, Timestamp};
use countersign_testkit::server::{Server, listener};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::Deserialize;
use serde_json::Value;

/// What `./scripts/test` installs.
const VERSION: &str = "0.13.3";
/// Server names as they are out there; the default ones are another artifact.
const CONFIG: &str = r#"
[server]
host_names = ["gate.example.com", "mqtt.example.com", "192.0.2.1", "2001:db8::1"]

[[profiles]]
name = "operational"

[[profiles]]
name = "factory"
kind = "factory"
lifetime_days = 0

[[profiles]]
name = "operational-uri"
san = ["uri:https://devices.example.com/{tenant}/{id}"]

[[profiles]]
name = "factory-uri"
kind = "factory"
lifetime_days = 1500
san = ["uri:https://devices.example.com/{id}"]

[[profiles]]
name = "operational-urn"
san = ["uri:urn:dev:ops:{id}"]

[[profiles]]
name = "operational-full"
organization = "Acme {tenant}"
organizational_unit = "pumps"
san = [
    "uri:https://devices.example.com/{id}", "dns:{id}.devices.example.com",
    "hardware-module-name:1.3.6.1.4.1.99999.1",
]
crl_urls = ["http://pki.example.com/crl/{authority}.crl", "http://mirror.example.com/{authority}.crl"]
ocsp_urls = ["http://pki.example.com/ocsp"]
ca_issuer_urls = ["http://pki.example.com/ca/{authority}.crt"]
extensions = [
    { oid = "1.3.6.1.4.1.99999.2", der = "0c0461636d65" },
    { oid = "2.5.29.32", der = "300c300a06082b06010401868d1f" },
]

[[profiles]]
name = "operational-dns"
organization = ""
serial_number = false
san = ["dns:{id}.devices.example.com"]
crl_urls = ["http://pki.example.com/crl/{authority}.crl"]

[[profiles]]
name = "factory-full"
kind = "factory"
lifetime_days = 0
data_sessions = false
san = ["hardware-module-name:1.3.6.1.4.1.99999.1"]
ocsp_urls = ["http://pki.example.com/ocsp"]
extensions = [{ oid = "1.3.6.1.4.1.99999.2", der = "0500" }]
"#;

#[derive(Clone, Copy)]
enum Linter {
    Certificate,
    List,
    Answer,
}

struct Artifact {
    /// Such as `device operational p256`: what `pkilint.toml` names, by a prefix.
    name: String,
    linter: Linter,
    file: PathBuf,
}

#[derive(Deserialize)]
struct Accepted {
    artifacts: String,
    severity: String,
    code: String,
    reason: String,
}

#[derive(Deserialize)]
struct AcceptedFile {
    /// Up to WARNING.
    accepted: Vec<Accepted>,
    /// Of ERROR, where pkilint asks for more than the standard.
    disputed: Vec<Accepted>,
}

struct Place {
    folder: tempfile::TempDir,
    server: Server,
    pki: String,
    made: Vec<Artifact>,
}

fn now() -> Timestamp {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    Timestamp::from_unix_s(i64::try_from(now.as_secs()).unwrap())
}

fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    output
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_countersign"));
        let server = Server::start(
            program,
            &folder.path().join("data"),
            &format!("{CONFIG}{}", listener("pki")),
        )
        .unwrap();
        let pki = format!("http://{}", server.listener("pki").unwrap());
        Self {
            folder,
            server,
            pki,
            made: Vec::new(),
        }
    }

    fn text(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn add(&mut self, name: &str, linter: Linter, der: &[u8]) {
        let file = self
            .folder
            .path()
            .join(format!("{}-{}.der", self.made.len(), name.replace(' ', "-")));
        std::fs::write(&file, der).unwrap();
        self.made.push(Artifact {
            name: name.to_owned(),
            linter,
            file,
        });
    }

    /// The first certificate of a PEM file.
    fn add_pem(&mut self, name: &str, path: &Path) {
        let der = CertificateDer::from_pem_file(path).unwrap();
        self.add(name, Linter::Certificate, &der);
    }

    fn authorities(&mut self) {
        let folder = self.server.data.join("authorities");
        for (name, path) in [
            ("platform root", "platform/root.crt"),
            ("platform issuing", "platform/issuing.crt"),
            ("devices root", "devices/default-devices/root.crt"),
            ("devices issuing", "devices/default-devices/issuing.crt"),
        ] {
            self.add_pem(name, &folder.join(path));
        }
        self.add_pem("server", &self.server.data.join("server/server.crt"));
        // As `init` makes it, for a first try on one machine.
        let other = self.folder.path().join("default");
        let program = env!("CARGO_BIN_EXE_countersign");
        run(program, &["--data", &other.display().to_string(), "init"]);
        self.add_pem("default server", &other.join("server/server.crt"));
    }

    /// One device per kind of key and profile; what is minted for it.
    fn devices(&mut self) {
        let keys: [(&str, &[&str]); 5] = [
            (
                "p256",
                &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
            ),
            (
                "p384",
                &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
            ),
            ("ed25519", &["-algorithm", "ED25519"]),
            (
                "rsa2048",
                &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
            ),
            (
                "rsa3072",
                &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"],
            ),
        ];
        for (kind, arguments) in keys {
            let (key, request) = (
                self.text(&format!("{kind}.key")),
                self.text(&format!("{kind}.csr")),
            );
            run("openssl", &[&["genpkey", "-out", &key], arguments].concat());
            run(
                "openssl",
                &["req", "-new", "-key", &key, "-subj", "/CN=any", "-out", &request],
            );
            for profile in ["operational", "factory", "operational-uri", "factory-uri"] {
                self.device(&format!("SN-{kind}"), profile, &request, kind);
            }
        }
        // An id that no PrintableString holds.
        let (key, request) = (self.text("u.key"), self.text("u.csr"));
        run("openssl", &["genpkey", "-algorithm", "ED25519", "-out", &key]);
        run(
            "openssl",
            &["req", "-new", "-key", &key, "-subj", "/CN=any", "-out", &request],
        );
        self.device("SN_1", "operational", &request, "underscore");
        self.device("SN_1", "operational-urn", &request, "p256");
        // Every kind of alternative name, and every extension that a profile may ask for.
        let request = self.text("p256.csr");
        for profile in ["operational-full", "operational-dns", "factory-full"] {
            self.device("SN-p256", profile, &request, "p256");
        }
    }

    fn device(&mut self, id: &str, profile: &str, request: &str, kind: &str) {
        let out = self.text(&format!("{id}-{profile}"));
        self.server
            .cli_ok(&[
                "device",
                "provision",
                id,
                "--csr",
                request,
                "--profile",
                profile,
                "--out",
                &out,
            ])
            .unwrap();
        self.add_pem(
            &format!("device {profile} {kind}"),
            &Path::new(&out).join("device.crt"),
        );
    }

    fn list(&mut self, name: &str) {
        let file = self.text("list.crl");
        let url = format!("{}/crl/default-devices.crl", self.pki);
        run("curl", &["-sSf", "-o", &file, &url]);
        let der = std::fs::read(&file).unwrap();
        self.add(name, Linter::List, &der);
    }

    /// What the responder says of a serial number.
    fn answer(&mut self, name: &str, serial: &str, more: &[&str]) -> String {
        let (file, issuing, url) = (
            self.text("answer.der"),
            self.text("issuing.pem"),
            format!("{}/ocsp", self.pki),
        );
        let devices = self.server.data.join("authorities/devices/default-devices");
        std::fs::copy(devices.join("issuing.crt"), &issuing).unwrap();
        let mut arguments = vec![
            "ocsp",
            "-noverify",
            "-issuer",
            &issuing,
            "-url",
            &url,
            "-respout",
            &file,
            "-resp_text",
        ];
        arguments.extend(more);
        arguments.extend(["-serial", serial]);
        let text = String::from_utf8(run("openssl", &arguments).stdout).unwrap();
        let der = std::fs::read(&file).unwrap();
        self.add(name, Linter::Answer, &der);
        text
    }

    /// Revocations of every reason, then the answers about one of each kind.
    fn revocation(&mut self) {
        self.list("list empty");
        let reasons = [
            "unspecified",
            "key-compromise",
            "ca-compromise",
            "affiliation-changed",
            "superseded",
            "cessation-of-operation",
            "privilege-withdrawn",
        ];
        let mut serials = Vec::new();
        for reason in reasons {
            let (id, out) = (format!("r-{reason}"), self.text(&format!("r-{reason}")));
            self.server
                .cli_ok(&["device", "provision", &id, "--out", &out])
                .unwrap();
            let device = self
                .server
                .ask("GET", &format!("/tenants/default/devices/{id}"), None)
                .unwrap();
            serials.push(format!(
                "0x{}",
                device["credentials"][0]["serial"].as_str().unwrap()
            ));
        }
        let text = self.answer("answer good", &serials[0], &[]);
        assert!(text.contains(": good"), "{text}");
        for reason in reasons {
            self.server
                .cli_ok(&["device", "revoke", &format!("r-{reason}"), "--code", reason])
                .unwrap();
        }
        self.list("list with every reason");
        for (reason, serial) in reasons.iter().zip(&serials) {
            let text = self.answer(&format!("answer revoked {reason}"), serial, &["-no_nonce"]);
            assert!(text.contains(": revoked"), "{text}");
        }
        let text = self.answer("answer unknown", "0x1234", &["-sha256"]);
        assert!(text.contains(": unknown"), "{text}");
        // The responder's own certificate is in every answer.
        let pem = &text[text.find("-----BEGIN CERTIFICATE").unwrap()..];
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        self.add("responder", Linter::Certificate, &der);
        let (retired, _) = (
            self.server.cli_ok(&["authority", "retire", "default-devices"]),
            (),
        );
        retired.unwrap();
        self.server
            .cli_ok(&["authority", "revoke", "default-devices"])
            .unwrap();
        self.list("list of a revoked authority");
    }

    /// The factory's CA, a station below it, and a device of that: by the library, as the station itself does.
    fn stations(&mut self) {
        let now = now();
        let folder = self.folder.path().join("factory");
        let factory =
            IssuingAuthority::create_factory_in(&folder, "default", now, &KeyStore::File, &NoTokens).unwrap();
        self.add("factory root", Linter::Certificate, factory.root());
        self.add("factory issuing", Linter::Certificate, factory.certificate());
        let key = SoftwareKey::generate().unwrap();
        let terms = Terms {
            station: StationId::new("line-1").unwrap(),
            tenant: TenantId::default_tenant(),
            batch: BatchId::new("b1").unwrap(),
            batch_ids: "SN-*".parse().unwrap(),
            ids: "SN-000..SN-099".parse().unwrap(),
            quota: 3,
            from: now,
            to: now.plus(Duration::from_secs(86_400)),
            profile: Profile::default(),
        };
        let grant = StationCaGrant::new(&terms, ProvenKey::of(&key)).unwrap();
        let issued = factory.issue_station(&grant, now).unwrap();
        self.add("station", Linter::Certificate, issued.certificate());
        let certificate = issued.certificate().clone();
        let station =
            IssuingAuthority::station(Box::new(key), certificate, factory.certificate().clone()).unwrap();
        let device = SoftwareKey::generate().unwrap();
        let grant = EnrolmentGrant::new(
            TenantId::default_tenant(),
            DeviceId::new("SN-001").unwrap(),
            ProvenKey::of(&device),
            Profile::default(),
        )
        .unwrap();
        let leaf = station.issue_device(&grant, now).unwrap();
        self.add("device of a station", Linter::Certificate, leaf.certificate());
    }

    /// The key that signs time for devices: its certificate is in what it signs.
    fn time(&mut self) {
        let folder = self.folder.path().join("platform-of-time");
        let now = now();
        let platform = IssuingAuthority::create(&folder, Hierarchy::Platform, "platform", now).unwrap();
        let signer = platform.time_signer(now).unwrap();
        let jws = signer.sign(now, Duration::from_secs(1), "abc").unwrap();
        let header = URL_SAFE_NO_PAD.decode(jws.split('.').next().unwrap()).unwrap();
        let header: Value = serde_json::from_slice(&header).unwrap();
        let der = STANDARD.decode(header["x5c"][0].as_str().unwrap()).unwrap();
        self.add("time", Linter::Certificate, &der);
    }

    /// What `authority register --key` makes, by the CA of somebody else.
    fn proof(&mut self) {
        let (key, certificate) = (self.text("brought.key"), self.text("brought.crt"));
        run(
            "openssl",
            &[
                "genpkey",
                "-algorithm",
                "EC",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-out",
                &key,
            ],
        );
        run(
            "openssl",
            &[
                "req",
                "-x509",
                "-new",
                "-key",
                &key,
                "-days",
                "30",
                "-subj",
                "/O=Acme/CN=Acme devices CA",
                "-out",
                &certificate,
            ],
        );
        let ca = CertificateDer::from_pem_file(&certificate).unwrap();
        let key = PrivatePkcs8KeyDer::from_pem_file(&key).unwrap();
        let key = SoftwareKey::from_pkcs8(key.secret_pkcs8_der()).unwrap();
        let code = countersign_identity::proof::new_code().unwrap();
        let proof = possession_proof(&ca, &key, &code, now()).unwrap();
        self.add("possession proof", Linter::Certificate, &proof);
    }
}

/// Everything that is minted here, one of each kind.
fn artifacts() -> Place {
    let mut place = Place::new();
    place.authorities();
    place.devices();
    place.stations();
    place.time();
    place.proof();
    place.revocation();
    place
}

fn programs() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"),
        PathBuf::from,
    );
    let bin = cache.join(format!("countersign/pkilint-{VERSION}/bin"));
    assert!(
        bin.join("lint_pkix_cert").exists(),
        "pkilint {VERSION} is missing in {}; hint: ./scripts/test installs it there (from PyPI, needs python3-venv)",
        bin.display()
    );
    bin
}

/// Severity and code of each finding from NOTICE up.
fn lint(bin: &Path, artifact: &Artifact) -> Vec<(String, String)> {
    let (program, more): (_, &[&str]) = match artifact.linter {
        Linter::Certificate => ("lint_pkix_cert", &[]),
        Linter::List => ("lint_crl", &["-t", "CRL", "-p", "PKIX"]),
        Linter::Answer => ("lint_ocsp_response", &[]),
    };
    let output = Command::new(bin.join(program))
        .arg("lint")
        .args(more)
        .args(["-s", "NOTICE", "-f", "JSON", "--document-format", "DER"])
        .arg(&artifact.file)
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{program} on {}: {e}: {output:?}", artifact.name));
    let results = report["results"].as_array().unwrap();
    results
        .iter()
        .flat_map(|r| r["finding_descriptions"].as_array().unwrap())
        .map(|f| {
            let text = |key: &str| f[key].as_str().unwrap_or_default().to_owned();
            (text("severity"), text("code"))
        })
        .collect()
}

#[test]
fn pkilint_finds_nothing_that_is_not_known_and_reasoned() {
    let bin = programs();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pkilint.toml");
    let file: AcceptedFile = toml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let grave = |a: &Accepted| ["ERROR", "FATAL"].contains(&a.severity.as_str());
    assert!(!file.accepted.iter().any(grave));
    // Two, and no more: what is grave and not disputed is mended.
    assert_eq!(file.disputed.len(), 2);
    let known: Vec<Accepted> = file.accepted.into_iter().chain(file.disputed).collect();
    assert!(known.iter().all(|a| a.reason.len() > 40));
    let place = artifacts();
    assert!(place.made.len() > 41, "{}", place.made.len());
    let (mut unknown, mut used) = (Vec::new(), BTreeSet::new());
    // Each call starts Python anew: as many at once as there are processors.
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let per_thread = place.made.len().div_ceil(threads);
    let found: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = place
            .made
            .chunks(per_thread)
            .map(|chunk| scope.spawn(|| chunk.iter().map(|a| (a, lint(&bin, a))).collect::<Vec<_>>()))
            .collect();
        workers.into_iter().flat_map(|w| w.join().unwrap()).collect()
    });
    for (artifact, findings) in found {
        for (severity, code) in findings {
            let entry = known.iter().position(|a| {
                artifact.name.starts_with(&a.artifacts) && a.severity == severity && a.code == code
            });
            match entry {
                Some(n) => drop(used.insert(n)),
                None => unknown.push(format!("{}: {severity} {code}", artifact.name)),
            }
        }
    }
    assert!(
        unknown.is_empty(),
        "not in tests/pkilint.toml:\n{}",
        unknown.join("\n")
    );
    // What is mended is taken out of the file.
    let stale: Vec<_> = (0..known.len()).filter(|n| !used.contains(n)).collect();
    assert!(
        stale.is_empty(),
        "no longer found: entries {stale:?} of tests/pkilint.toml"
    );
}
