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
        Self::with("")
    }

    fn with(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_countersign"));
        let config = listener("pki") + more;
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

/// Whoever says nothing is sent away, and nobody takes more connections than there are.
#[test]
fn connections_are_bounded_in_number_and_time() {
    use std::io::{Read, Write};
    let place = Place::with("[pki]\nconnections_max = 2\nconnections_per_source_max = 2\n");
    let address: std::net::SocketAddr = place.url["http://".len()..].parse().unwrap();
    let connect = || {
        let stream = std::net::TcpStream::connect(address).unwrap();
        stream
            .set_read_timeout(Some(std::time::Duration::from_secs(30)))
            .unwrap();
        stream
    };
    let read = |stream: &mut std::net::TcpStream| {
        let mut text = Vec::new();
        let _ = stream.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    };
    let ask = |stream: &mut std::net::TcpStream| {
        let _ = stream
            .write_all(b"GET /crl/default-devices.crl HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    };
    let (mut silent, mut slow) = (connect(), connect());
    slow.write_all(b"GET /crl").unwrap();
    // Both are taken: one too many is closed at once.
    let started = std::time::Instant::now();
    let mut third = connect();
    ask(&mut third);
    assert_eq!(read(&mut third), "");
    assert!(started.elapsed() < std::time::Duration::from_secs(5));
    for idle in [&mut silent, &mut slow] {
        assert!(!read(idle).contains("200 OK"));
    }
    let waited = started.elapsed().as_secs();
    assert!((5..25).contains(&waited), "{waited} s");
    let mut next = connect();
    ask(&mut next);
    assert!(read(&mut next).starts_with("HTTP/1.1 200 OK"));
}

/// An authority whose key cannot be reached answers nothing, and all others go on.
#[test]
fn a_key_that_is_gone_silences_no_other_authority() {
    let place = Place::new();
    let good = place.provision("good");
    place.server.cli_ok(&["authority", "create", "a-second"]).unwrap();
    let keys = place.server.data.join("authorities/devices/a-second");
    let Place { folder, server, .. } = place;
    drop(server);
    std::fs::rename(keys.join("issuing.key"), keys.join("gone")).unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_countersign"));
    let server = Server::start(program, &folder.path().join("data"), &listener("pki")).unwrap();
    let url = format!("http://{}", server.listener("pki").unwrap());
    let place = Place { folder, server, url };
    let text = place.ocsp(&good, &[]);
    assert!(
        text.contains("Response verify OK") && text.contains(": good"),
        "{text}"
    );
    let second = keys.join("issuing.crt").display().to_string();
    let url = format!("{}/ocsp", place.url);
    let arguments = [
        "ocsp",
        "-issuer",
        &second,
        "-url",
        &url,
        "-serial",
        "0x1234",
        "-noverify",
    ];
    let text = said(&run("openssl", &arguments));
    assert!(text.contains("internalerror"), "{text}");
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

/// The device's serial number, as OpenSSL takes it.
fn serial(place: &Place, id: &str) -> String {
    let device = place
        .server
        .ask("GET", &format!("/tenants/default/devices/{id}"), None)
        .unwrap();
    format!("0x{}", device["credentials"][0]["serial"].as_str().unwrap())
}

#[test]
fn openssl_reads_every_reason_by_post_and_get_with_and_without_a_nonce() {
    let place = Place::new();
    let reasons = [
        ("unspecified", ""),
        ("key-compromise", "keyCompromise"),
        ("ca-compromise", "CACompromise"),
        ("affiliation-changed", "affiliationChanged"),
        ("superseded", "superseded"),
        ("cessation-of-operation", "cessationOfOperation"),
        ("privilege-withdrawn", "privilegeWithdrawn"),
    ];
    let good = place.provision("good");
    let certificates: Vec<String> = reasons.iter().map(|(code, _)| place.provision(code)).collect();
    for (code, _) in reasons {
        place
            .server
            .cli_ok(&["device", "revoke", code, "--code", code])
            .unwrap();
    }
    let list = place.list();
    for ((code, name), certificate) in reasons.iter().zip(&certificates) {
        let number = serial(&place, code);
        // Each entry from its own serial number to the next, with its reason or none.
        let (_, entry) = list
            .split_once(&format!("Serial Number: {}", number[2..].to_uppercase()))
            .unwrap_or_else(|| panic!("{code} is not on {list}"));
        let entry = entry
            .split("Serial Number:")
            .next()
            .unwrap()
            .split("Signature Algorithm")
            .next()
            .unwrap();
        assert_eq!(
            entry.contains("CRL Reason Code"),
            !name.is_empty(),
            "{code}: {entry}"
        );
        let compact = entry.replace(' ', "").to_lowercase();
        assert!(compact.contains(&name.to_lowercase()), "{code}: {entry}");
        assert!(
            place.verify(certificate).contains("certificate revoked"),
            "{code}"
        );
        let answer = place.ocsp(certificate, &[]);
        assert!(
            answer.contains("Response verify OK") && answer.contains(": revoked"),
            "{code}: {answer}"
        );
        assert_eq!(answer.contains("Reason:"), !name.is_empty(), "{code}: {answer}");
        // OpenSSL's table of names for answers ends before 9, privilegeWithdrawn.
        let told = answer.to_lowercase().contains(&name.to_lowercase());
        assert!(
            told || *code == "privilege-withdrawn" && answer.contains("(UNKNOWN)"),
            "{code}: {answer}"
        );
    }

    // OpenSSL sends a nonce unless told not to, says if it does not come back, and refuses one that is another.
    let answer = place.ocsp(&good, &[]);
    assert!(
        answer.contains("Response verify OK") && !answer.contains("nonce"),
        "{answer}"
    );
    let answer = place.ocsp(&good, &["-no_nonce", "-resp_text"]);
    assert!(
        answer.contains("Response verify OK") && !answer.contains("OCSP Nonce"),
        "{answer}"
    );
    let answer = place.ocsp(&good, &["-resp_text"]);
    assert!(answer.contains("OCSP Nonce"), "{answer}");

    // By GET, good, revoked, unknown, and several in one request: the answer is looked at apart from the request.
    let (issuing, root) = (place.text("issuing.pem"), place.text("root.pem"));
    let (request, response) = (place.text("get.req"), place.text("get.resp"));
    let numbers = [
        serial(&place, "good"),
        serial(&place, "superseded"),
        "0x7777".to_owned(),
    ];
    let mut asked = vec!["ocsp", "-no_nonce", "-issuer", &issuing, "-reqout", &request];
    for number in &numbers {
        asked.extend(["-serial", number]);
    }
    let output = run("openssl", &asked);
    assert!(output.status.success(), "{output:?}");
    let b64 = run("openssl", &["base64", "-A", "-in", &request]).stdout;
    let b64 = String::from_utf8(b64).unwrap();
    let b64 = b64.replace('/', "%2F").replace('+', "%2B").replace('=', "%3D");
    place.fetch(&format!("ocsp/{b64}"), "get.resp");
    let mut read = vec![
        "ocsp",
        "-respin",
        &response,
        "-CAfile",
        &root,
        "-verify_other",
        &issuing,
        "-issuer",
        &issuing,
    ];
    for number in &numbers {
        read.extend(["-serial", number]);
    }
    let text = said(&run("openssl", &read));
    assert!(text.contains("Response verify OK"), "{text}");
    for (number, status) in numbers.iter().zip(["good", "revoked", "unknown"]) {
        assert!(text.contains(&format!("{number}: {status}")), "{number}: {text}");
    }
}

#[test]
fn openssl_accepts_lists_and_answers_of_an_authority_under_an_external_root() {
    let place = Place::new();
    let text = |name: &str| place.text(name);
    let (root_key, root, request, issuing) = (
        text("ext.key"),
        text("ext-root.pem"),
        text("ext.csr"),
        text("ext.pem"),
    );
    let new_root = run(
        "openssl",
        &[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            &root_key,
            "-days",
            "3650",
            "-subj",
            "/O=Acme/CN=Acme Root",
            "-out",
            &root,
        ],
    );
    assert!(new_root.status.success(), "{new_root:?}");
    place
        .server
        .cli_ok(&["authority", "create", "ext", "--csr", &request])
        .unwrap();
    // A subordinate CA in between, as corporate PKIs have it.
    let (sub_key, sub, sub_request) = (text("sub.key"), text("sub.pem"), text("sub.csr"));
    let new_sub = run(
        "openssl",
        &[
            "req",
            "-new",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            &sub_key,
            "-subj",
            "/O=Acme/CN=Acme Sub",
            "-out",
            &sub_request,
        ],
    );
    assert!(new_sub.status.success(), "{new_sub:?}");
    let sign = |request: &str, ca: &str, key: &str, path_length: u8, out: &str| {
        let extensions = text("ext.cnf");
        std::fs::write(
            &extensions,
            format!("basicConstraints=critical,CA:TRUE,pathlen:{path_length}\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"),
        )
        .unwrap();
        let signed = run(
            "openssl",
            &[
                "x509",
                "-req",
                "-in",
                request,
                "-CA",
                ca,
                "-CAkey",
                key,
                "-CAcreateserial",
                "-days",
                "1825",
                "-extfile",
                &extensions,
                "-out",
                out,
            ],
        );
        assert!(signed.status.success(), "{signed:?}");
    };
    sign(&sub_request, &root, &root_key, 1, &sub);
    sign(&request, &sub, &sub_key, 0, &issuing);
    let chain = text("ext-chain.pem");
    let all = [&issuing, &sub, &root].map(|file| std::fs::read_to_string(file).unwrap());
    std::fs::write(&chain, all.concat()).unwrap();
    // What a verifier has beside the root.
    let below = text("ext-below.pem");
    std::fs::write(&below, all[..2].concat()).unwrap();
    place
        .server
        .cli_ok(&["authority", "install", "ext", &chain])
        .unwrap();
    let mut certificates = Vec::new();
    for id in ["e-good", "e-bad"] {
        let out = text(id);
        place
            .server
            .cli_ok(&["device", "provision", id, "--authority", "ext", "--out", &out])
            .unwrap();
        certificates.push(format!("{out}/device.crt"));
    }
    place
        .server
        .cli_ok(&["device", "revoke", "e-bad", "--code", "cessation-of-operation"])
        .unwrap();

    // Whoever has what is handed out can verify a device: over HTTP, as devices are told, and by the command line.
    place.fetch("bundle/default", "bundle.pem");
    let exported = place.server.cli_ok(&["authority", "export", "devices"]).unwrap();
    std::fs::write(place.path("exported.pem"), exported).unwrap();
    for trusted in ["bundle.pem", "exported.pem"] {
        let output = run(
            "openssl",
            &["verify", "-CAfile", &text(trusted), &certificates[0]],
        );
        assert!(said(&output).contains(": OK"), "{trusted}: {output:?}");
    }
    place.fetch("crl/ext.crl", "ext.crl");
    let list = text("ext-crl.pem");
    let output = run(
        "openssl",
        &[
            "crl",
            "-inform",
            "DER",
            "-in",
            &text("ext.crl"),
            "-CAfile",
            &issuing,
            "-out",
            &list,
        ],
    );
    assert!(said(&output).contains("verify OK"), "{output:?}");
    let verify = |certificate: &str| {
        said(&run(
            "openssl",
            &[
                "verify",
                "-crl_check",
                "-CRLfile",
                &list,
                "-CAfile",
                &root,
                "-untrusted",
                &below,
                certificate,
            ],
        ))
    };
    assert!(
        verify(&certificates[0]).contains(": OK"),
        "{}",
        verify(&certificates[0])
    );
    assert!(
        verify(&certificates[1]).contains("certificate revoked"),
        "{}",
        verify(&certificates[1])
    );
    let url = format!("{}/ocsp", place.url);
    for (certificate, status) in certificates.iter().zip([": good", ": revoked"]) {
        let answer = said(&run(
            "openssl",
            &[
                "ocsp",
                "-issuer",
                &issuing,
                "-CAfile",
                &root,
                "-verify_other",
                &below,
                "-url",
                &url,
                "-cert",
                certificate,
            ],
        ));
        assert!(
            answer.contains("Response verify OK") && answer.contains(status),
            "{answer}"
        );
    }
    // The other authority does not know this one's certificates, and does not say that they are good.
    let number = serial(&place, "e-good");
    let (other, other_root) = (place.text("issuing.pem"), place.text("root.pem"));
    let answer = said(&run(
        "openssl",
        &[
            "ocsp",
            "-issuer",
            &other,
            "-CAfile",
            &other_root,
            "-verify_other",
            &other,
            "-url",
            &url,
            "-serial",
            &number,
        ],
    ));
    assert!(
        answer.contains("Response verify OK") && answer.contains(&format!("{number}: unknown")),
        "{answer}"
    );
}
