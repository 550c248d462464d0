//! The listeners that have no admission by rate: nobody takes all places of one.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use countersign_testkit::server::{Server, listener};

/// Connections from one source that say nothing.
fn silent(to: SocketAddr, source: IpAddr, count: usize) -> Vec<TcpStream> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut held = Vec::new();
        for _ in 0..count {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind((source, 0).into()).unwrap();
            let stream = socket.connect(to).await.unwrap().into_std().unwrap();
            stream.set_nonblocking(false).unwrap();
            held.push(stream);
        }
        held
    })
}

/// How many of them are still open.
fn open(held: &mut [TcpStream]) -> usize {
    let mut open = 0;
    for stream in held {
        stream.set_nonblocking(true).unwrap();
        let read = stream.read(&mut [0]);
        open += usize::from(read.is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock));
    }
    open
}

fn curl(arguments: &[&str]) -> String {
    let output = Command::new("curl")
        .args(["-sk", "--max-time", "5", "-o", "/dev/null", "-w", "%{http_code}"])
        .args(arguments)
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn one_source_that_says_nothing_closes_neither_enrolment_nor_lists() {
    let folder = tempfile::tempdir().unwrap();
    let config = listener("enrol") + &listener("pki");
    let program = Path::new(env!("CARGO_BIN_EXE_countersign"));
    let server = Server::start(program, &folder.path().join("data"), &config).unwrap();
    server.cli_ok(&["device", "add", "SN-1"]).unwrap();
    let secret = server.cli_ok(&["device", "secret", "SN-1"]).unwrap();
    let user = format!("SN-1:{}", secret.lines().next().unwrap());
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (key, der, request) = (path("key.pem"), path("request.der"), path("request.b64"));
    for command in [
        format!(
            "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=SN-1 -outform DER -keyout {key} -out {der}"
        ),
        format!("base64 -in {der} -out {request}"),
    ] {
        let made = Command::new("openssl").args(command.split(' ')).output().unwrap();
        assert!(made.status.success(), "{made:?}");
    }
    let (enrol, pki) = (server.listener("enrol").unwrap(), server.listener("pki").unwrap());
    let started = Instant::now();
    let other: IpAddr = "127.0.0.2".parse().unwrap();
    let (mut at_enrol, mut at_pki) = (silent(enrol, other, 256), silent(pki, other, 256));
    let list = format!("http://{pki}/crl/default-devices.crl");
    assert_eq!(curl(&[&list]), "200");
    let url = format!("https://{enrol}/.well-known/est/simpleenroll");
    let data = format!("@{request}");
    let enrolled = curl(&[
        "-u",
        &user,
        "-H",
        "Content-Type: application/pkcs10",
        "--data-binary",
        &data,
        &url,
    ]);
    assert_eq!(enrolled, "200");
    // They were there all the time, as many as one source may have.
    assert!(
        started.elapsed() < Duration::from_secs(8),
        "{:?}",
        started.elapsed()
    );
    assert_eq!((open(&mut at_enrol), open(&mut at_pki)), (64, 64));
    assert!(
        server
            .log()
            .contains("enrol.connections_per_source_max is reached")
    );
}
