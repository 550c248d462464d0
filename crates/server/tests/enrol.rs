//! Enrolment over EST with clients that others wrote: curl with OpenSSL, strongSwan.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use countersign_testkit::pki::{Ca, Leaf};
use countersign_testkit::server::{Server, listener};
use serde_json::json;

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
        let config = format!("[enrol]\n{more}{}", listener("enrol"));
        let program = Path::new(env!("CARGO_BIN_EXE_countersign"));
        let server = Server::start(program, &folder.path().join("data"), &config).unwrap();
        let port = server.listener("enrol").unwrap().port();
        let url = format!("https://localhost:{port}/.well-known/est");
        let place = Self { folder, server, url };
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

    /// HTTP status and body of a request by curl.
    fn curl(&self, operation: &str, more: &[&str]) -> (String, String) {
        let url = format!("{}/{operation}", self.url);
        let root = self.text("root.pem");
        let mut command = Command::new("curl");
        command
            .args([
                "-sS",
                "--cacert",
                &root,
                "-w",
                "\n%{http_code}",
                "--max-time",
                "20",
            ])
            .args(more)
            .arg(&url);
        let output = run(&mut command);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').unwrap_or_else(|| panic!("{output:?}"));
        (status.to_owned(), body.to_owned())
    }

    /// A key and a request by OpenSSL: paths of the key, and of the request in base64 of DER.
    fn request(&self, name: &str, subject: &str) -> (String, String) {
        let key = self.text(&format!("{name}.key"));
        if !Path::new(&key).exists() {
            openssl(&[
                "ecparam",
                "-name",
                "prime256v1",
                "-genkey",
                "-noout",
                "-out",
                &key,
            ]);
        }
        let der = self.text(&format!("{name}.csr"));
        openssl(&[
            "req", "-new", "-key", &key, "-subj", subject, "-outform", "DER", "-out", &der,
        ]);
        let b64 = self.text(&format!("{name}.b64"));
        openssl(&["base64", "-in", &der, "-out", &b64]);
        (key, b64)
    }

    /// Posts a request; on 200 the certificate is in `NAME.pem`.
    fn enrol(&self, operation: &str, name: &str, b64: &str, more: &[&str]) -> (String, String) {
        let data = format!("@{b64}");
        let mut arguments = vec!["-H", "Content-Type: application/pkcs10", "--data-binary", &data];
        arguments.extend(more);
        let (status, body) = self.curl(operation, &arguments);
        if status == "200" {
            // OpenSSL reads base64 in lines; ours is one.
            let p7 = self.write(&format!("{name}.p7.b64"), &body);
            let der = self.text(&format!("{name}.p7"));
            openssl(&["base64", "-d", "-A", "-in", &p7, "-out", &der]);
            openssl(&[
                "pkcs7",
                "-inform",
                "DER",
                "-in",
                &der,
                "-print_certs",
                "-out",
                &self.text(&format!("{name}.pem")),
            ]);
        }
        (status, body)
    }

    fn secret(&self, device: &str) -> String {
        let text = self.server.cli_ok(&["device", "secret", device]).unwrap();
        format!("{device}:{}", text.lines().next().unwrap())
    }

    fn subject(&self, name: &str) -> String {
        let output =
            run(Command::new("openssl").args(["x509", "-noout", "-subject", "-in", &self.text(name)]));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap()
}

fn openssl(arguments: &[&str]) {
    let output = run(Command::new("openssl").args(arguments));
    assert!(output.status.success(), "openssl {arguments:?}: {output:?}");
}

#[test]
fn curl_and_openssl_enrol_by_a_one_time_secret_and_reenrol_by_certificate() {
    let place = Place::new();
    place.server.cli_ok(&["device", "add", "SN-1"]).unwrap();
    // The certificates of the CAs are for everybody, and lead from the device's certificate to its root.
    let (status, body) = place.curl("cacerts", &[]);
    assert_eq!(status, "200");
    let p7 = place.write("ca.b64", &body);
    openssl(&["base64", "-d", "-A", "-in", &p7, "-out", &place.text("ca.p7")]);
    openssl(&[
        "pkcs7",
        "-inform",
        "DER",
        "-in",
        &place.text("ca.p7"),
        "-print_certs",
        "-out",
        &place.text("ca.pem"),
    ]);

    let (key, b64) = place.request("first", "/CN=whatever the device thinks");
    // Nobody, then somebody with a wrong secret.
    let (status, text) = place.enrol("simpleenroll", "first", &b64, &[]);
    assert_eq!(status, "401", "{text}");
    let (status, text) = place.enrol("simpleenroll", "first", &b64, &["-u", "SN-1:wrong"]);
    assert_eq!(status, "401", "{text}");
    let user = place.secret("SN-1");
    let (status, text) = place.enrol("simpleenroll", "first", &b64, &["-u", &user]);
    assert_eq!(status, "200", "{text}");
    assert!(
        place.subject("first.pem").contains("CN = SN-1"),
        "{}",
        place.subject("first.pem")
    );
    openssl(&[
        "verify",
        "-CAfile",
        &place.text("ca.pem"),
        "-purpose",
        "sslclient",
        &place.text("first.pem"),
    ]);
    // The answer was lost: the same again is the same certificate. With another key the secret is spent.
    let first = std::fs::read(place.path("first.pem")).unwrap();
    let (status, _) = place.enrol("simpleenroll", "again", &b64, &["-u", &user]);
    assert_eq!(status, "200");
    assert_eq!(std::fs::read(place.path("again.pem")).unwrap(), first);
    let (_, other) = place.request("other", "/CN=SN-1");
    let (status, text) = place.enrol("simpleenroll", "other", &other, &["-u", &user]);
    assert_eq!(status, "401", "{text}");

    // Renewal: another key, the same subject.
    let subject = "/O=default/CN=SN-1/serialNumber=SN-1";
    let (_, renewal) = place.request("second", subject);
    let shown = ["--cert", &place.text("first.pem"), "--key", &key];
    let (status, text) = place.enrol("simplereenroll", "second", &renewal, &shown);
    assert_eq!(status, "200", "{text}");
    assert_ne!(std::fs::read(place.path("second.pem")).unwrap(), first);
    let (status, text) = place.enrol("simplereenroll", "x", &other, &shown);
    assert_eq!(status, "400", "another subject: {text}");
    let (status, text) = place.enrol("simplereenroll", "x", &renewal, &[]);
    assert_eq!(status, "403", "without a certificate: {text}");
}

#[test]
fn what_may_not_enrol_is_told_why_and_nothing_is_minted() {
    let place = Place::new();
    for id in ["d1", "d2"] {
        place.server.cli_ok(&["device", "add", id]).unwrap();
    }
    place
        .server
        .cli_ok(&["device", "add", "waits", "--state", "pending"])
        .unwrap();
    let (key, b64) = place.request("d1", "/CN=d1");
    let user = place.secret("d1");
    let check = |name: &str, operation: &str, body: &str, more: &[&str], expected: &str, word: &str| {
        let (status, text) = place.enrol(operation, "none", body, more);
        assert_eq!(status, expected, "{name}: {text}");
        assert!(text.contains(word), "{name}: {text}");
    };
    let garbage = place.write("garbage", "!!!!");
    check(
        "no base64",
        "simpleenroll",
        &garbage,
        &["-u", &user],
        "400",
        "base64",
    );
    let text = place.write("text", "aGVsbG8=");
    check(
        "no request",
        "simpleenroll",
        &text,
        &["-u", &user],
        "400",
        "not a certificate request",
    );
    let big = place.write("big", &"A".repeat(20_000));
    check("too big", "simpleenroll", &big, &["-u", &user], "413", "");
    check(
        "unknown device",
        "simpleenroll",
        &b64,
        &["-u", "nobody:x"],
        "401",
        "wrong, used or expired",
    );
    // Somebody else's secret.
    let stolen = format!("d2:{}", user.split(':').nth(1).unwrap());
    check(
        "another's secret",
        "simpleenroll",
        &b64,
        &["-u", &stolen],
        "401",
        "wrong, used or expired",
    );
    let (status, text) = place.curl("simpleenroll", &["-u", &user, "-d", "x"]);
    assert_eq!(status, "415", "{text}");
    assert_eq!(place.curl("simpleenroll", &[]).0, "405");
    assert_eq!(place.curl("nothing", &[]).0, "404");
    assert_eq!(place.curl("nobody/cacerts", &[]).0, "404");
    assert_eq!(place.curl("csrattrs", &[]).0, "200");
    check(
        "server keys",
        "serverkeygen",
        &b64,
        &["-u", &user],
        "501",
        "simpleenroll",
    );
    check(
        "profile",
        "default.nothing/simpleenroll",
        &b64,
        &["-u", &user],
        "404",
        "no profile",
    );
    // Waits for an operator, then the identical request is answered.
    let waiting = place.secret("waits");
    let (_, pending) = place.request("waits", "/CN=waits");
    let data = format!("@{pending}");
    let arguments = [
        "-i",
        "-u",
        &waiting,
        "-H",
        "Content-Type: application/pkcs10",
        "--data-binary",
        &data,
    ];
    let (status, text) = place.curl("simpleenroll", &arguments);
    assert!(
        status == "202" && text.to_lowercase().contains("retry-after: 60"),
        "{text}"
    );
    place.server.cli_ok(&["device", "activate", "waits"]).unwrap();
    assert_eq!(place.curl("simpleenroll", &arguments).0, "200");
    // A suspended device gets nothing, whatever it shows.
    assert_eq!(place.enrol("simpleenroll", "d1", &b64, &["-u", &user]).0, "200");
    place.server.cli_ok(&["device", "suspend", "d1"]).unwrap();
    let (_, renewal) = place.request("d1-new", "/O=default/CN=d1/serialNumber=d1");
    let shown = ["--cert", &place.text("d1.pem"), "--key", &key];
    check(
        "suspended",
        "simplereenroll",
        &renewal,
        &shown,
        "403",
        "suspended",
    );
    place.server.cli_ok(&["device", "resume", "d1"]).unwrap();
    place.server.cli_ok(&["device", "revoke", "d1"]).unwrap();
    check("revoked", "simplereenroll", &renewal, &shown, "401", "revoked");
    // A certificate of nobody that we know.
    let foreign = Ca::root("nobody", None).issue(&Leaf::named("d1"), &[]);
    let shown = [
        "--cert",
        &place.write("foreign.pem", &foreign.pem),
        "--key",
        &place.write("foreign.key", &foreign.key_pem),
    ];
    check("foreign", "simpleenroll", &b64, &shown, "403", "chain.unknown-ca");
    // Another device's key.
    let user = place.secret("d2");
    check(
        "key of d1",
        "simpleenroll",
        &b64,
        &["-u", &user],
        "409",
        "registered for device d1",
    );
    let device = place
        .server
        .ask("GET", "/tenants/default/devices/d2", None)
        .unwrap();
    assert_eq!(device["credentials"], json!([]));
}

#[test]
fn no_path_makes_a_factory_certificate_of_a_secret_or_of_an_operational_certificate() {
    let place = Place::new();
    place.server.cli_ok(&["device", "add", "d1"]).unwrap();
    let (key, b64) = place.request("d1", "/CN=d1");
    let user = place.secret("d1");
    let factory = |name: &str, operation: &str, body: &str, more: &[&str], word: &str| {
        let (status, text) = place.enrol(&format!("default.factory/{operation}"), "none", body, more);
        assert!(
            status == "403" && text.contains(word) && text.contains("hint: "),
            "{name}: {status} {text}"
        );
    };
    factory(
        "a secret",
        "simpleenroll",
        &b64,
        &["-u", &user],
        "is the factory's",
    );
    let (status, text) = place.enrol("simpleenroll", "d1", &b64, &["-u", &user]);
    assert_eq!(status, "200", "{text}");
    let (_, next) = place.request("next", "/O=default/CN=d1/serialNumber=d1");
    let shown = ["--cert", &place.text("d1.pem"), "--key", &key];
    for operation in ["simpleenroll", "simplereenroll"] {
        factory("a certificate", operation, &next, &shown, "is no evidence for");
    }

    let ids = place.write("ids", "c1\n");
    let made = place
        .server
        .cli_ok(&["factory", "claim", "add", "line", "--ids", &ids, "--days", "1"]);
    let claim = format!("claim/line:{}", made.unwrap().lines().next().unwrap());
    let (_, claimed) = place.request("c1", "/CN=c1");
    let (status, text) = place.enrol("default.factory/simpleenroll", "none", &claimed, &["-u", &claim]);
    assert!(
        text.contains("does not enrol by profile factory"),
        "{status} {text}"
    );
    assert_eq!(
        place.enrol("simpleenroll", "c1", &claimed, &["-u", &claim]).0,
        "200"
    );
}

#[test]
fn a_factory_certificate_enrols_for_an_operational_one_within_its_first_contact() {
    let place = Place::new();
    let ca = Ca::root("manufacturer", None);
    place
        .server
        .register("manufacturer", "default", &ca, &json!({ "mode": "known-device" }))
        .unwrap();
    place
        .server
        .cli_ok(&["device", "add", "SN-7", "--authority", "manufacturer"])
        .unwrap();
    let mut leaf = Leaf::named("SN-7");
    leaf.usage = None;
    let factory = ca.issue(&leaf, &[]);
    let shown = [
        "--cert",
        &place.write("idevid.pem", &factory.pem),
        "--key",
        &place.write("idevid.key", &factory.key_pem),
    ];
    let (_, b64) = place.request("ldevid", "/CN=SN-7");
    let (status, text) = place.enrol("simpleenroll", "ldevid", &b64, &shown);
    assert_eq!(status, "200", "{text}");
    assert!(place.subject("ldevid.pem").contains("CN = SN-7"));
    let device = place
        .server
        .ask("GET", "/tenants/default/devices/SN-7", None)
        .unwrap();
    assert_eq!(device["credentials"].as_array().unwrap().len(), 2, "{device}");
}

#[test]
fn strongswan_enrols_and_reenrols() {
    let place = Place::new();
    place.server.cli_ok(&["device", "add", "swan-1"]).unwrap();
    let user = place.secret("swan-1");
    let root = place.text("root.pem");
    let url = place.url.trim_end_matches("/.well-known/est").to_owned();
    let pki = |arguments: &[&str], out: &str| {
        let output = run(Command::new("pki").args(arguments));
        assert!(
            output.status.success() && !output.stdout.is_empty(),
            "pki {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        std::fs::write(place.path(out), &output.stdout).unwrap();
        place.text(out)
    };
    let dn = "O=default, CN=swan-1, serialNumber=swan-1";
    let make = |name: &str| {
        let key = pki(
            &["--gen", "--type", "ecdsa", "--size", "256", "--outform", "pem"],
            &format!("{name}.key"),
        );
        let csr = pki(
            &[
                "--req",
                "--type",
                "ecdsa",
                "--in",
                &key,
                "--dn",
                dn,
                "--outform",
                "pem",
            ],
            &format!("{name}.csr"),
        );
        (key, csr)
    };
    let estca = run(Command::new("pki").args([
        "--estca",
        "--url",
        &url,
        "--cacert",
        &root,
        "--caout",
        &place.text("est-ca.crt"),
        "--outform",
        "pem",
    ]));
    assert!(
        estca.status.success(),
        "{}",
        String::from_utf8_lossy(&estca.stderr)
    );
    // It checks what it was issued, so it needs the chain that --estca fetched.
    let mut authorities = vec!["--cacert".to_owned(), root.clone()];
    for entry in std::fs::read_dir(place.folder.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("est-ca") {
            authorities.extend(["--cacert".to_owned(), path.display().to_string()]);
        }
    }
    let authorities: Vec<&str> = authorities.iter().map(String::as_str).collect();
    let (key, csr) = make("first");
    let mut enrol = vec![
        "--est",
        "--url",
        &url,
        "--in",
        &csr,
        "-p",
        &user,
        "--outform",
        "pem",
    ];
    enrol.extend(&authorities);
    let first = pki(&enrol, "first.crt");
    assert!(place.subject("first.crt").contains("swan-1"));
    let (_, csr) = make("second");
    let mut renew = vec![
        "--est",
        "--url",
        &url,
        "--in",
        &csr,
        "--cert",
        &first,
        "--key",
        &key,
        "--outform",
        "pem",
    ];
    renew.extend(&authorities);
    let second = pki(&renew, "second.crt");
    assert_ne!(std::fs::read(first).unwrap(), std::fs::read(second).unwrap());
}

/// HTTPS on the device port: the first request is admitted as CONNECT is, and renewal runs over the session.
#[test]
fn an_admitted_device_renews_over_the_device_port_and_is_cut_off_like_any_other() {
    let place = Place::new();
    let out = place.text("web-1");
    place
        .server
        .cli_ok(&["device", "provision", "web-1", "--out", &out])
        .unwrap();
    let url = format!(
        "https://localhost:{}/.well-known/est",
        place.server.devices.port()
    );
    let root = place.text("root.pem");
    let (certificate, key) = (format!("{out}/device.crt"), format!("{out}/device.key"));
    let curl = |operation: &str, more: &[&str]| {
        let mut command = Command::new("curl");
        command
            .args([
                "-sS",
                "--http1.1",
                "--cacert",
                &root,
                "-w",
                "\n%{http_code}",
                "--max-time",
                "20",
            ])
            .args(more)
            .arg(format!("{url}/{operation}"));
        let output = run(&mut command);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').unwrap_or_else(|| panic!("{output:?}"));
        (status.to_owned(), body.to_owned())
    };
    let shown = ["--cert", &certificate, "--key", &key];
    // Two requests on one connection.
    let second = format!("{url}/csrattrs");
    let both = [&shown[..], &["-v", &second]].concat();
    let (status, _) = curl("cacerts", &both);
    assert_eq!(status, "200");
    let (_, renewal) = place.request("web-1-new", "/O=default/CN=web-1/serialNumber=web-1");
    let data = format!("@{renewal}");
    let renew = [
        &shown[..],
        &["-H", "Content-Type: application/pkcs10", "--data-binary", &data],
    ]
    .concat();
    let (status, body) = curl("simplereenroll", &renew);
    assert_eq!(status, "200", "{body}");
    assert_eq!(curl("nothing", &shown).0, "404");
    // What happened is an exchange like any other. The newest was answered nothing, so it has no first data.
    let explained = place.server.cli_ok(&["explain", "web-1", "-n", "2"]).unwrap();
    for word in ["admitted", "http/1.1", "GET /.well-known/est"] {
        assert!(explained.contains(word), "{word}: {explained}");
    }
    assert_eq!(explained.matches("first-data").count(), 1, "{explained}");
    // Without a certificate TLS ends it; a suspended device is told so, in HTTP.
    let output =
        run(Command::new("curl").args(["-sS", "--http1.1", "--cacert", &root, &format!("{url}/cacerts")]));
    assert!(!output.status.success(), "{output:?}");
    place.server.cli_ok(&["device", "suspend", "web-1"]).unwrap();
    let (status, body) = curl("cacerts", &shown);
    assert!(
        status == "403" && body.contains("\"code\":\"device.suspended\""),
        "{status} {body}"
    );
    let explained = place.server.cli_ok(&["explain", "web-1"]).unwrap();
    assert!(explained.contains("device.suspended"), "{explained}");
}

/// A device that keeps its connection open loses it with its session, in the middle of a request.
#[test]
fn a_suspension_cuts_an_open_https_connection() {
    use std::io::{Read, Write};
    let place = Place::new();
    let out = place.text("web-2");
    place
        .server
        .cli_ok(&["device", "provision", "web-2", "--out", &out])
        .unwrap();
    let mut client = Command::new("openssl")
        .args([
            "s_client",
            "-quiet",
            "-alpn",
            "http/1.1",
            "-servername",
            "localhost",
        ])
        .args([
            "-CAfile",
            &place.text("root.pem"),
            "-cert",
            &format!("{out}/device.crt"),
        ])
        .args(["-key", &format!("{out}/device.key"), "-connect"])
        .arg(format!("localhost:{}", place.server.devices.port()))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let (mut input, mut output) = (client.stdin.take().unwrap(), client.stdout.take().unwrap());
    input
        .write_all(b"GET /.well-known/est/csrattrs HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let mut text = Vec::new();
    let mut chunk = [0; 1024];
    while !String::from_utf8_lossy(&text).contains("\r\n\r\n") {
        let n = output.read(&mut chunk).unwrap();
        assert!(n > 0, "{}", String::from_utf8_lossy(&text));
        text.extend_from_slice(&chunk[..n]);
    }
    assert!(
        text.starts_with(b"HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(&text)
    );
    let sessions = place.server.cli_ok(&["session", "list"]).unwrap();
    assert!(
        sessions.contains("http/1.1") && sessions.contains("web-2"),
        "{sessions}"
    );
    // A request that is not whole: the body never comes.
    input
        .write_all(b"POST /.well-known/est/simplereenroll HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/pkcs10\r\nContent-Length: 1000\r\n\r\nAAAA")
        .unwrap();
    let told = place.server.cli_ok(&["device", "suspend", "web-2"]).unwrap();
    assert!(told.contains("1 session"), "{told}");
    // The end of the stream, with nothing more said.
    let mut rest = Vec::new();
    output.read_to_end(&mut rest).unwrap();
    assert!(
        !String::from_utf8_lossy(&rest).contains("HTTP/1.1"),
        "{}",
        String::from_utf8_lossy(&rest)
    );
    client.wait().unwrap();
}

#[test]
fn base64_comes_in_the_lines_that_each_client_reads() {
    let longest = |place: &Place, more: &[&str]| {
        let (status, body) = place.curl("cacerts", more);
        assert_eq!(status, "200");
        (body.lines().map(str::len).max().unwrap(), body.lines().count())
    };
    let place = Place::new();
    let (length, lines) = longest(&place, &[]);
    assert!(
        length > 1000 && lines == 1,
        "strongSwan reads one line: {length}, {lines}"
    );
    for agent in ["libest 1.0", "Cisco EST client"] {
        let (length, lines) = longest(&place, &["-A", agent]);
        assert!(
            length == 64 && lines > 10,
            "libest reads lines: {length}, {lines}"
        );
    }
    let place = Place::with("base64_lines = true\n");
    assert_eq!(longest(&place, &[]).0, 64);
}
