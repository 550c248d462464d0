//! Who waits for a handshake, and who goes first.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use countersign_gateway::{Limits, TicketSettings};
use countersign_policy::Stage;
use countersign_testkit::client::{Attempt, TLS12, TLS13, connect};
use countersign_testkit::pki::Leaf;

use super::world::*;

fn waiting(world: &World, count: u64) {
    let began = Instant::now();
    while world.gateway().handshakes_waiting().0 != count {
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "{:?}",
            world.gateway().handshakes_waiting()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_resumption_goes_first() {
    let mut world = World::new();
    let identity = world.add("default", "d1", &Leaf::named("d1"));
    for versions in [TLS13, TLS12] {
        world.limits = Limits {
            connections_per_source_max: 10_000,
            ..Limits::default()
        };
        world.start(TicketSettings::default());
        let device = |world: &World| Attempt {
            versions,
            name: "default.test".into(),
            patience: Duration::from_secs(20),
            ..world
                .attempt(0)
                .identity(&identity)
                .send([connect(5, "d1"), vec![0xe0, 0]].concat())
        };
        let back = device(&world).resuming();
        let seen = Attempt {
            patience: Duration::from_millis(300),
            ..back.clone()
        }
        .run();
        admitted(&seen, false);
        // The keys are on disk: the ticket is good after the start. From now on the gate lets in one a second.
        world.limits.handshakes_per_s = 1;
        world.limits.handshake_burst = 1;
        world.start(TicketSettings::default());
        let hello = device(&world).hello();
        let storm: Vec<TcpStream> = (0..20)
            .map(|_| {
                let mut socket = TcpStream::connect(world.gateway().local_addrs()[0].1).unwrap();
                socket.write_all(&hello).unwrap();
                socket
            })
            .collect();
        waiting(&world, 19);
        let back = Attempt {
            server: world.gateway().local_addrs()[0].1,
            ..back
        };
        let began = Instant::now();
        let seen = back.run();
        let took = began.elapsed();
        assert!(took < Duration::from_secs(4), "{took:?}");
        admitted(&seen, true);
        drop(storm);
    }
}

#[test]
fn who_goes_on_sending_while_it_waits_is_refused() {
    let mut world = World::new();
    world.limits.handshakes_per_s = 1;
    world.limits.handshake_burst = 1;
    world.start(TicketSettings::default());
    let attempt = world.attempt(0);
    let hello = attempt.hello();
    let open = || {
        let mut socket = TcpStream::connect(attempt.server).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.write_all(&hello).unwrap();
        socket
    };
    let _first = open();
    let sockets: Vec<TcpStream> = (0..5).map(|_| open()).collect();
    waiting(&world, 5);
    let mut patient = open();
    let mut loud = open();
    waiting(&world, 7);
    // What middlebox compatibility sends along is let pass (RFC 9846 appendix E.4).
    patient.write_all(&[20, 3, 3, 0, 1, 1]).unwrap();
    let began = Instant::now();
    let _ = loud.write_all(&[0; 4096]);
    let mut rest = Vec::new();
    let _ = loud.read_to_end(&mut rest);
    assert!(
        rest.is_empty() && began.elapsed() < Duration::from_millis(900),
        "{rest:?}"
    );
    let record = world.last();
    let denial = record.denial.unwrap();
    assert_eq!(denial.code.as_str(), "handshake.protocol", "{denial:?}");
    assert!(denial.detail.contains("before it was answered"), "{denial:?}");
    drop(sockets);
    let mut answer = [0; 5];
    patient.read_exact(&mut answer).unwrap();
    assert_eq!(answer[0], 22);
}

/// A ticket buys nobody the key exchange that the same certificate would be refused before.
#[test]
fn who_comes_far_too_often_is_refused_at_its_ticket() {
    let mut world = World::new();
    world.limits.device_connects_per_minute = 4;
    world.start(TicketSettings::default());
    let identity = world.add("default", "d1", &Leaf::named("d1"));
    let bye = [connect(5, "d1"), vec![0xe0, 0]].concat();
    for versions in [TLS13, TLS12] {
        let device = Attempt {
            versions,
            ..world.attempt(0).identity(&identity).send(bye.clone())
        }
        .resuming();
        let (mut admitted, mut told, mut ignored) = (0, 0, 0);
        for n in 0..12 {
            let seen = device.run();
            match (seen.connack(), seen.alert) {
                (Some(0), _) => admitted += 1,
                (Some(0x9f), _) => told += 1,
                (None, Some(49)) => ignored += 1,
                _ => panic!("{n}: {seen:?}"),
            }
            if ignored == 0 {
                assert_eq!(seen.resumed, n > 0, "{n}: {seen:?}");
            }
            // The ticket is used up by that; those after it show the certificate.
            if n == 8 {
                let record = world.last();
                let denial = record.denial.as_ref().unwrap();
                assert_eq!(denial.code.as_str(), "credential.rate-ignored", "{denial:?}");
                assert!(denial.detail.contains("by a ticket"), "{denial:?}");
                let reached = |stage| record.stages.iter().any(|s| s.stage == stage);
                assert!(!reached(Stage::ServerFlight), "{record:?}");
            }
        }
        assert_eq!((admitted, told, ignored), (4, 4, 4));
        // Nothing is remembered of the attempts.
        world.start(TicketSettings::default());
    }
}

#[test]
fn who_comes_too_often_does_not_go_first() {
    let mut world = World::new();
    world.limits.device_connects_per_minute = 2;
    world.limits.handshakes_per_s = 1;
    world.limits.handshake_burst = 3;
    world.start(TicketSettings::default());
    let identity = world.add("default", "d1", &Leaf::named("d1"));
    let device = Attempt {
        name: "default.test".into(),
        patience: Duration::from_secs(4),
        ..world
            .attempt(0)
            .identity(&identity)
            .send([connect(5, "d1"), vec![0xe0, 0]].concat())
    };
    let hello = device.hello();
    let device = device.resuming();
    let told: Vec<_> = (0..3).map(|_| device.run().connack()).collect();
    assert_eq!(told, [Some(0), Some(0), Some(0x9f)]);
    let _storm: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut socket = TcpStream::connect(device.server).unwrap();
            socket.write_all(&hello).unwrap();
            socket
        })
        .collect();
    waiting(&world, 19);
    // Of one tenant and one address: behind those that were there before.
    let seen = device.run();
    assert_eq!((seen.connack(), seen.alert), (None, None), "{seen:?}");
}
