//! Behind a balancer that speaks PROXY protocol version 2: whose address limits, ledger and policies see.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use countersign_testkit::client::{Attempt, connect, dial, plain};
use countersign_testkit::pki::{Ca, Identity, Leaf};
use countersign_testkit::server::Server;
use serde_json::{Value, json};

const BALANCER: [u8; 4] = [127, 0, 0, 2];

const LISTENER: &str = "[[listeners]]\nname = \"balanced\"\npurpose = \"devices\"\nlisten = \"127.0.0.1:0\"\n\
     proxy_from = [\"127.0.0.2\"]\n";

struct World {
    _folder: tempfile::TempDir,
    server: Server,
    balanced: SocketAddr,
    direct: SocketAddr,
    device: Identity,
}

fn world(limits: &str) -> World {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(
        Path::new(env!("CARGO_BIN_EXE_countersign")),
        &folder.path().join("data"),
        &format!("{limits}\n{LISTENER}"),
    )
    .unwrap();
    let ca = Ca::root("proxy root", None);
    server
        .register("proxy", "default", &ca, &json!({ "mode": "registered-only" }))
        .unwrap();
    let device = ca.issue(&Leaf::named("d1"), &[]);
    let body = json!({ "devices": [{ "id": "d1", "certificate": device.pem }] });
    server
        .ask("POST", "/tenants/default/devices/import", Some(&body))
        .unwrap();
    let status = server.ask("GET", "/status", None).unwrap();
    let named = |name: &str| -> SocketAddr {
        let listeners = status["listeners"].as_array().unwrap();
        let found = listeners.iter().find(|l| l["name"] == name).unwrap();
        found["address"].as_str().unwrap().parse().unwrap()
    };
    let (balanced, direct) = (named("balanced"), named("devices"));
    World {
        _folder: folder,
        server,
        balanced,
        direct,
        device,
    }
}

/// A header of version 2, TCP over IPv4, from this source.
fn header(source: [u8; 4], port: u16) -> Vec<u8> {
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    bytes.extend(source);
    bytes.extend([192, 0, 2, 1]);
    bytes.extend(port.to_be_bytes());
    bytes.extend(8883u16.to_be_bytes());
    bytes
}

impl World {
    fn attempt(&self, preamble: Vec<u8>) -> Attempt {
        Attempt {
            from: Some(IpAddr::from(BALANCER)),
            preamble,
            patience: Duration::from_millis(700),
            ..Attempt::new(self.balanced)
        }
        .identity(&self.device)
        .send(connect(5, "d1"))
    }

    fn newest(&self) -> Value {
        self.server.ask("GET", "/exchanges?limit=1", None).unwrap()[0].clone()
    }

    /// Waits for the newest exchange to have this code.
    fn wait_for(&self, code: &str) -> Value {
        let started = Instant::now();
        loop {
            let newest = self.newest();
            if newest["denial"]["code"] == code {
                return newest;
            }
            assert!(started.elapsed() < Duration::from_secs(8), "{code}: {newest}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn the_address_that_the_header_names_is_what_ledger_and_policies_see() {
    let world = world("");
    let seen = world.attempt(header([198, 51, 100, 7], 4711)).run();
    assert_eq!(seen.connack(), Some(0), "{seen:?}");
    let newest = world.newest();
    assert_eq!(newest["source"], "198.51.100.7:4711", "{newest}");
    let facts = newest["facts"].to_string();
    assert!(
        facts.contains("\"proxy\"") && facts.contains("127.0.0.2:"),
        "{facts}"
    );
    // A policy on the source: the balancer's own address would be loopback.
    let policies = "permit (principal, action == Action::\"connect\", resource) \
                    unless { context.source.isLoopback() };";
    world
        .server
        .ask(
            "PATCH",
            "/tenants/default",
            Some(&json!({ "policies": policies })),
        )
        .unwrap();
    let seen = world.attempt(header([198, 51, 100, 7], 4711)).run();
    assert_eq!(seen.connack(), Some(0), "{seen:?}");
    // A header that names the loopback address is a device there; and LOCAL means the balancer itself.
    let seen = world.attempt(header([127, 0, 0, 9], 1)).run();
    assert_eq!(seen.connack(), Some(0x87), "{seen:?}");
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".to_vec();
    let seen = world.attempt(local).run();
    assert_eq!(seen.connack(), Some(0x87), "{seen:?}");
    let newest = world.newest();
    assert!(
        newest["source"].as_str().unwrap().starts_with("127.0.0.2:"),
        "{newest}"
    );
}

#[test]
fn nobody_else_connects_there_and_a_header_elsewhere_is_no_tls() {
    let world = world("[limits]\nproxy_header_timeout_s = 1\n");
    // From another address, with the very same bytes.
    let stranger = Attempt {
        from: Some(IpAddr::from([127, 0, 0, 3])),
        ..world.attempt(header([198, 51, 100, 7], 4711))
    };
    assert!(!stranger.run().handshake);
    let newest = world.wait_for("accept.proxy-untrusted");
    assert!(
        newest["source"].as_str().unwrap().starts_with("127.0.0.3:"),
        "{newest}"
    );
    // From the balancer without a header, or with one of version 1.
    assert!(!world.attempt(vec![]).run().handshake);
    world.wait_for("accept.proxy-header");
    let text = b"PROXY TCP4 198.51.100.7 192.0.2.1 4711 8883\r\n".to_vec();
    assert!(!world.attempt(text).run().handshake);
    let newest = world.wait_for("accept.proxy-header");
    assert!(
        newest["denial"]["detail"].to_string().contains("version 1"),
        "{newest}"
    );
    // A part of one, and then nothing: its time is short.
    let mut silent = dial(Some(IpAddr::from(BALANCER)), world.balanced).unwrap();
    silent.write_all(&header([198, 51, 100, 7], 4711)[..20]).unwrap();
    let started = Instant::now();
    let mut rest = Vec::new();
    let _ = silent.read_to_end(&mut rest);
    assert!(
        rest.is_empty() && started.elapsed() < Duration::from_secs(4),
        "{:?}",
        started.elapsed()
    );
    world.wait_for("accept.proxy-timeout");
    // Where no balancer is named a header is no ClientHello, and the ledger says where to name one.
    assert_eq!(
        plain(
            world.direct,
            &header([198, 51, 100, 7], 1),
            Duration::from_secs(5)
        ),
        Some(vec![])
    );
    let newest = world.wait_for("hello.not-tls");
    assert!(
        newest["denial"]["detail"].to_string().contains("proxy_from"),
        "{newest}"
    );
}

#[test]
fn limits_are_those_of_the_named_address() {
    let world = world("[limits]\nconnections_per_source_max = 3\n");
    let hold = |source: [u8; 4]| {
        let mut socket = dial(Some(IpAddr::from(BALANCER)), world.balanced).unwrap();
        socket.write_all(&header(source, 1)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        socket
    };
    let is_closed = |socket: &mut std::net::TcpStream| matches!(socket.read(&mut [0; 8]), Ok(0));
    let mut held: Vec<_> = (0..3).map(|_| hold([198, 51, 100, 7])).collect();
    assert!(held.iter_mut().all(|s| !is_closed(s)));
    let mut fourth = hold([198, 51, 100, 7]);
    assert!(is_closed(&mut fourth));
    let newest = world.wait_for("accept.source-limit");
    assert_eq!(newest["source"], "198.51.100.7:1");
    // Another device behind the same balancer still comes in, and many do: the balancer has no account of its own.
    let seen = world.attempt(header([198, 51, 100, 8], 1)).run();
    assert_eq!(seen.connack(), Some(0), "{seen:?}");
    // What is given back is given back to the right account.
    drop(held);
    let started = Instant::now();
    while world.attempt(header([198, 51, 100, 7], 1)).run().connack() != Some(0) {
        assert!(started.elapsed() < Duration::from_secs(5));
    }
}
