//! What others see of revocation: OpenSSL reads every list and every answer.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use countersign_testkit::server::{Server, listener};

struct Place {
    folder: tempfile::TempDir,
    server: Server,
    url: String,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_countersign"));
        let config = listener("pki");
        let server = Server::start(program, &folder.path().join("data"), &config).unwrap();
        let url = format!("http://{}", server.listener("pki").unwrap());
        let place = Self { folder, server, url };
        let both = place.server.cli_ok(&["authority", "export", "devices"]).unwrap();
        let (issuing, root) = both.split_at(both.rfind("-----BEGIN").unwrap());
        std::fs::write(place.path("issuing.pem"), issuing).unwrap();
        std::fs::write(place.path("root.pem"), root).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn provision(&self, id: &str) -> String {
        let out = self.text(id);
        self.server
            .cli_ok(&["device", "provision", id, "--out", &out])
            .unwrap();
        format!("{out}/device.crt")
    }

    fn fetch(&self, path: &str, file: &str) {
        let url = format!("{}/{path}", self.url);
        let output = run(
            "curl",
            &["-sSf", "--max-time", "20", "-o", &self.text(file), &url],
        );
        assert!(output.status.success(), "{url}: {output:?}");
    }

    /// The list, as OpenSSL reads it.
    fn list(&self) -> String {
        self.fetch("crl/default-devices.crl", "list.crl");
        let output = run(
            "openssl",
            &[
                "crl",
                "-inform",
                "DER",
                "-in",
                &self.text("list.crl"),
                "-CAfile",
                &self.text("issuing.pem"),
                "-text",
                "-out",
                &self.text("list.pem"),
            ],
        );
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success() && said.contains("verify OK"),
            "{output:?}"
        );
        std::fs::read_to_string(self.path("list.pem")).unwrap()
    }

    /// What OpenSSL's verification with the list says of a certificate.
    fn verify(&self, certificate: &str) -> String {
        let output = run(
            "openssl",
            &[
                "verify",
                "-crl_check",
                "-CRLfile",
                &self.text("list.pem"),
                "-partial_chain",
                "-trusted",
                &self.text("issuing.pem"),
                certificate,
            ],
        );
        said(&output)
    }

    fn ocsp(&self, certificate: &str, more: &[&str]) -> String {
        let url = format!("{}/ocsp", self.url);
        let issuing = self.text("issuing.pem");
        let root = self.text("root.pem");
        let mut arguments = vec![
            "ocsp",
            "-issuer",
            &issuing,
            "-CAfile",
            &root,
            "-verify_other",
            &issuing,
            "-url",
            &url,
        ];
        arguments.extend(more);
        arguments.extend(["-cert", certificate]);
        said(&run("openssl", &arguments))
    }
}

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn openssl_accepts_every_list_and_every_ocsp_answer() {
    let place = Place::new();
    let (good, bad) = (place.provision("good"), place.provision("bad"));
    let list = place.list();
    assert!(list.contains("No Revoked Certificates"), "{list}");
    assert!(place.verify(&bad).contains("OK"));
    for digest in ["-sha1", "-sha256"] {
        let text = place.ocsp(&good, &[digest]);
        assert!(
            text.contains("Response verify OK") && text.contains(": good"),
            "{text}"
        );
    }
    let number = |list: &str| -> u64 {
        let hex = list.split("X509v3 CRL Number:").nth(1).unwrap().trim();
        let hex = hex.split_whitespace().next().unwrap();
        hex.strip_prefix("0x")
            .map_or_else(|| hex.parse().unwrap(), |h| u64::from_str_radix(h, 16).unwrap())
    };
    let before = number(&list);

    place
        .server
        .cli_ok(&["device", "revoke", "bad", "--code", "key-compromise"])
        .unwrap();
    let list = place.list();
    assert!(list.contains("Key Compromise"), "{list}");
    assert!(number(&list) > before);
    assert!(
        place.verify(&bad).contains("certificate revoked"),
        "{}",
        place.verify(&bad)
    );
    assert!(place.verify(&good).contains("OK"));
    let text = place.ocsp(&bad, &[]);
    assert!(
        text.contains("Response verify OK") && text.contains(": revoked") && text.contains("keyCompromise"),
        "{text}"
    );
    // A certificate of the same CA that we know nothing of is not "good"; one of another CA is not ours to answer.
    let text = place.ocsp(&good, &["-no_nonce", "-serial", "0x1234"]);
    assert!(text.contains("0x1234: unknown"), "{text}");
    let request = place.text("request.der");
    let output = run(
        "openssl",
        &[
            "ocsp",
            "-issuer",
            &place.text("root.pem"),
            "-serial",
            "7",
            "-reqout",
            &request,
            "-no_nonce",
        ],
    );
    assert!(output.status.success(), "{output:?}");
    let text = said(&run(
        "openssl",
        &["ocsp", "-reqin", &request, "-url", &format!("{}/ocsp", place.url)],
    ));
    assert!(text.contains("unauthorized (6)"), "{text}");
    // By GET, as caches like it, and garbage.
    let b64 = run("openssl", &["base64", "-A", "-in", &request]).stdout;
    let b64 = String::from_utf8(b64)
        .unwrap()
        .replace('/', "%2F")
        .replace('+', "%2B")
        .replace('=', "%3D");
    place.fetch(&format!("ocsp/{b64}"), "answer.der");
    assert_eq!(
        std::fs::read(place.path("answer.der")).unwrap(),
        [0x30, 3, 0x0a, 1, 6]
    );
    place.fetch("ocsp/AAAA", "answer.der");
    assert_eq!(
        std::fs::read(place.path("answer.der")).unwrap(),
        [0x30, 3, 0x0a, 1, 1]
    );

    // The authority itself: retired it still signs its list; revoked, everything it signed is on it.
    place.fetch("ca/default-devices.crt", "ca.crt");
    place.fetch("bundle/default", "bundle.pem");
    for what in ["retire", "revoke"] {
        place
            .server
            .cli_ok(&["authority", what, "default-devices"])
            .unwrap();
    }
    place.list();
    assert!(place.verify(&good).contains("certificate revoked"));
    let nothing = run(
        "curl",
        &[
            "-s",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            &format!("{}/crl/nobody.crl", place.url),
        ],
    );
    assert_eq!(nothing.stdout, b"404");
}
