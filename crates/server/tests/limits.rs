//! What grows has a limit, and reaching it harms nobody else.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::io::Read;
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use countersign_testkit::client::{Attempt, Link, connect, connect_with, plain, publish, subscribe};
use countersign_testkit::pki::{Ca, Identity, Leaf};
use countersign_testkit::server::Server;
use serde_json::json;

struct World {
    _folder: tempfile::TempDir,
    server: Server,
    device: Identity,
}

fn world(config: &str) -> World {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(
        Path::new(env!("CARGO_BIN_EXE_countersign")),
        &folder.path().join("data"),
        config,
    )
    .unwrap();
    let ca = Ca::root("limits root", None);
    server
        .register("limits", "default", &ca, &json!({ "mode": "registered-only" }))
        .unwrap();
    let device = ca.issue(&Leaf::named("d1"), &[]);
    let body = json!({ "devices": [{ "id": "d1", "certificate": device.pem }] });
    server
        .ask("POST", "/tenants/default/devices/import", Some(&body))
        .unwrap();
    World {
        _folder: folder,
        server,
        device,
    }
}

impl World {
    fn attempt(&self) -> Attempt {
        Attempt {
            patience: Duration::from_millis(500),
            ..Attempt::new(self.server.devices)
        }
        .identity(&self.device)
    }

    fn metric(&self, name: &str) -> u64 {
        let (_, text) =
            countersign_testkit::server::http(self.server.admin, "GET", "/metrics", None, None).unwrap();
        let line = text
            .lines()
            .find(|l| l.starts_with(name) && l.as_bytes().get(name.len()) == Some(&b' '));
        line.and_then(|l| l.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
    }

    fn refused(&self, code: &str) -> u64 {
        self.metric(&format!("countersign_exchanges_refused_total{{code=\"{code}\"}}"))
    }
}

#[test]
fn silent_clients_cost_a_bounded_time_and_number_and_hold_up_nobody() {
    let world =
        world("[limits]\nhandshakes_max = 20\nconnections_per_source_max = 1000\nhandshake_timeout_s = 2\n");
    // 18 of 20: the last eighth is for addresses that hold few.
    let silent: Vec<TcpStream> = (0..18)
        .map(|_| TcpStream::connect(world.server.devices).unwrap())
        .collect();
    while world.metric("countersign_handshakes") < 18 {}
    // The next is turned away at once, before any cryptography.
    let started = Instant::now();
    assert_eq!(
        plain(world.server.devices, &[], Duration::from_secs(5)),
        Some(vec![])
    );
    assert!(started.elapsed() < Duration::from_secs(1));
    assert!(world.refused("accept.handshake-limit") >= 1);
    // Two seconds later they are gone, and others come in.
    while world.metric("countersign_handshakes") > 0 {
        assert!(started.elapsed() < Duration::from_secs(6));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(world.attempt().send(connect(4, "d1")).run().connack(), Some(0));
    drop(silent);
}

#[test]
fn one_address_holds_only_its_share() {
    let world = world("[limits]\nconnections_per_source_max = 5\nconnections_max = 8\n");
    let held: Vec<TcpStream> = (0..5)
        .map(|_| TcpStream::connect(world.server.devices).unwrap())
        .collect();
    while world.metric("countersign_connections") < 5 {}
    assert_eq!(
        plain(world.server.devices, &[], Duration::from_secs(5)),
        Some(vec![])
    );
    assert_eq!(world.refused("accept.source-limit"), 1);
    // Another address of this machine still comes in, until the node is full.
    let from = |last: u8| {
        let socket = rustix::net::socket(
            rustix::net::AddressFamily::INET,
            rustix::net::SocketType::STREAM,
            None,
        )
        .unwrap();
        rustix::net::bind(&socket, &std::net::SocketAddr::from(([127, 0, 0, last], 0))).unwrap();
        rustix::net::connect(&socket, &world.server.devices).unwrap();
        TcpStream::from(socket)
    };
    let others: Vec<TcpStream> = (2..5).map(from).collect();
    while world.metric("countersign_connections") < 8 {}
    drop(from(9));
    let started = Instant::now();
    while world.refused("accept.connection-limit") < 1 {
        assert!(started.elapsed() < Duration::from_secs(5));
    }
    drop((held, others));
}

#[test]
fn sessions_of_one_device_are_limited_and_a_client_id_is_taken_over() {
    let world = world("[limits]\nsessions_per_device_max = 2\n");
    world
        .server
        .ask(
            "PATCH",
            "/tenants/default",
            Some(&json!({ "client_id_mode": "prefix" })),
        )
        .unwrap();
    let hold = |client_id: &str| {
        let attempt = Attempt {
            patience: Duration::from_secs(5),
            ..world.attempt()
        }
        .send(connect(5, client_id));
        std::thread::spawn(move || attempt.run())
    };
    let sessions = |n: usize| {
        let started = Instant::now();
        while world
            .server
            .ask("GET", "/sessions", None)
            .unwrap()
            .as_array()
            .unwrap()
            .len()
            != n
        {
            assert!(started.elapsed() < Duration::from_secs(4));
        }
    };
    let first = hold("d1");
    sessions(1);
    let second = hold("d1:two");
    sessions(2);
    let third = world.attempt().send(connect(5, "d1:three")).run();
    assert_eq!(third.connack(), Some(0x97), "{third:?}");
    assert_eq!(world.refused("grant.session-limit"), 1);
    // The same client id again: the old session is told, the new one is in.
    let again = hold("d1");
    let seen = first.join().unwrap();
    assert_eq!(seen.packets()[1][2], 0x8e, "{seen:?}");
    sessions(2);
    drop((second, again));
}

/// Connections that were lost in silence, as behind a network address translation that forgot them, have a short time and places of
/// their own.
#[test]
fn https_connections_that_say_nothing_keep_no_session_out_for_long() {
    let world = world("[limits]\nhttp_idle_s = 3\nsessions_per_device_max = 2\n");
    let request = "GET /.well-known/est/csrattrs HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let https = || Attempt {
        alpn: vec![b"http/1.1".to_vec()],
        ..world.attempt().send(request)
    };
    let answer = |link: &mut Link| {
        let mut head = [0; 4096];
        let n = link.read(&mut head).unwrap();
        String::from_utf8_lossy(&head[..n.min(12)]).into_owned()
    };
    let mut silent = [(); 2].map(|()| https().ask().unwrap());
    for link in &mut silent {
        assert!(!answer(link).ends_with("429"));
    }
    assert_eq!(answer(&mut https().ask().unwrap()), "HTTP/1.1 429");
    let seen = world.attempt().send(connect(5, "d1")).run();
    assert_eq!(seen.connack(), Some(0), "{seen:?}");
    std::thread::sleep(Duration::from_millis(4_500));
    assert_ne!(answer(&mut https().ask().unwrap()), "HTTP/1.1 429");
}

#[test]
fn what_is_asked_for_and_not_offered_is_refused_as_the_standard_says() {
    let world = world("");
    // Authentication Method in the properties of a v5 CONNECT.
    let mut packet = connect_with(5, "", 0x02, &[]);
    let properties = b"\x06\x15\x00\x03abc";
    packet.splice(12..13, properties.iter().copied());
    packet[1] += 6;
    let seen = world.attempt().send(packet).run();
    assert_eq!(
        seen.connack(),
        Some(0x85),
        "an empty client id is not the device's in mode strict: {seen:?}"
    );
    let mut packet = connect(5, "d1");
    packet.splice(12..13, properties.iter().copied());
    packet[1] += 6;
    let seen = world.attempt().send(packet).run();
    assert_eq!(seen.connack(), Some(0x8c), "{seen:?}");
    assert_eq!(world.refused("greet.auth-method"), 1);
    // TLS without anything in common: only a group that nobody serves here.
    let hello = {
        let mut ext = vec![];
        ext.extend([0, 43, 0, 3, 2, 3, 4]);
        ext.extend([0, 10, 0, 4, 0, 2, 0x00, 0x1e]);
        ext.extend([0, 13, 0, 4, 0, 2, 4, 3]);
        let mut key_share = vec![0, 51, 0, 2, 0, 0];
        ext.append(&mut key_share);
        let mut body = vec![3, 3];
        body.extend([9; 32]);
        body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
        body.extend(u16::try_from(ext.len()).unwrap().to_be_bytes());
        body.extend(ext);
        let mut message = vec![1, 0, 0, u8::try_from(body.len()).unwrap()];
        message.extend(body);
        let mut record = vec![22, 3, 1, 0, u8::try_from(message.len()).unwrap()];
        record.extend(message);
        record
    };
    let answer = plain(world.server.devices, &hello, Duration::from_secs(5)).unwrap();
    assert_eq!((answer[0], answer[6]), (21, 40), "{answer:?}");
    assert_eq!(world.refused("hello.parameters"), 1);
}

#[test]
fn a_burst_of_publishes_is_acknowledged_one_by_one() {
    let world = world("");
    let mut many = Vec::new();
    for _ in 0..200 {
        many.extend(publish(4, "devices/d1/telemetry", 1, 0));
    }
    many.extend([0xe0, 0]);
    let seen = Attempt {
        then: many,
        patience: Duration::from_secs(5),
        ..world.attempt()
    }
    .send(connect(4, "d1"))
    .run();
    assert_eq!(seen.packets().len(), 201, "one CONNACK and 200 PUBACK");
}

#[test]
fn a_subscription_beyond_the_limit_is_refused_by_name() {
    let world = world("[limits]\nsubscriptions_max = 2\n");
    for (level, told) in [(4, 0x80), (5, 0x97)] {
        let mut packets = Vec::new();
        for kind in ["a", "b", "c"] {
            packets.extend(subscribe(level, &format!("devices/d1/commands/{kind}")));
        }
        packets.extend([0xe0, 0]);
        let seen = Attempt {
            then: packets,
            ..world.attempt()
        }
        .send(connect(level, "d1"))
        .run();
        let answers: Vec<_> = seen.packets().iter().skip(1).map(|p| p.last().copied()).collect();
        assert_eq!(answers, [Some(0), Some(0), Some(told)], "{seen:?}");
    }
    assert_eq!(world.refused("topic.subscription-limit"), 2);
    let path = "/exchanges?subject=d1&limit=20";
    let exchanges = world.server.ask("GET", path, None).unwrap();
    let refused = exchanges.as_array().unwrap().iter();
    let mut refused = refused.filter(|e| e["denial"]["code"] == "topic.subscription-limit");
    assert!(refused.next().is_some(), "{exchanges}");
}
