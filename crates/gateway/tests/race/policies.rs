//! Policies that change between TLS and CONNECT, while CONNECT brings a will.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use countersign_gateway::Limits;
use countersign_identity::Clock;
use countersign_policy::decide::DEFAULT_POLICY;
use countersign_registry::policies::PolicyChange;
use countersign_registry::{Registry, SystemClock};
use countersign_testkit::client::{connect_with_will, subscribe};
use rustls::{ClientConnection, StreamOwned};

use crate::world::{World, actor, tenant, world, world_with};

const STATUS: &str = "devices/d1/status";
/// Who comes may come, and its will may not be published.
const MUTE: &str = r#"@id("mute")
forbid (principal, action == Action::"publish", resource) when { context.spaces.contains("status") };"#;
/// Nobody may come.
const LOCKED: &str = r#"@id("locked") forbid (principal, action == Action::"connect", resource);"#;

fn set(registry: &Registry, more: &str) {
    let change = PolicyChange {
        policies: Some(format!("{DEFAULT_POLICY}{more}")),
        reason: "race".into(),
        ..PolicyChange::default()
    };
    registry
        .configure_tenant(actor(), tenant(), None, Some(change))
        .unwrap();
}

fn connect() -> Vec<u8> {
    connect_with_will(5, "d1", 0x06, STATUS)
}

impl World {
    /// TLS, and not a word of MQTT yet.
    fn tls(&self) -> StreamOwned<ClientConnection, TcpStream> {
        let config = Arc::new(self.attempt().config());
        let tls = ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
        let socket = TcpStream::connect(self.gateway.local_addr()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut stream = StreamOwned::new(tls, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).unwrap();
        }
        stream
    }

    /// Wills that were published, and that were withheld.
    fn wills(&self) -> (u64, u64) {
        let metrics = self.gateway.metrics();
        (
            metrics.wills_published.load(Ordering::Relaxed),
            metrics.wills_withheld.load(Ordering::Relaxed),
        )
    }

    /// The connection is gone without DISCONNECT: the will is due, and done with.
    fn lost(&self, link: impl Sized) {
        drop(link);
        let started = Instant::now();
        while self.gateway.session_count() > 0 {
            assert!(started.elapsed() < Duration::from_secs(5));
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn three_hundred_changes_of_policies_between_tls_and_a_connect_with_a_will() {
    let world = world();
    for n in 0..300 {
        let mut stream = world.tls();
        // The server has decided as soon as our last flight is in; every other time it is given the time for it.
        if n % 2 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        set(&world.registry, [MUTE, LOCKED][n / 2 % 2]);
        stream.write_all(&connect()).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert_eq!(answer.first(), Some(&0x20), "{n}: {answer:?}");
        assert_eq!(answer[3], 0x87, "{n}: CONNACK {:#x}", answer[3]);
        world.nothing_lives(&format!("attempt {n}"));
        set(&world.registry, "");
    }
    assert_eq!(world.wills(), (0, 0), "a will that was refused is none");
}

/// The other order: what was taken under the policies of before is published under those of now, or not at all.
#[test]
fn a_will_that_was_taken_before_the_change_is_withheld_after_it() {
    let world = world();
    for n in 0..60 {
        let mut stream = world.tls();
        stream.write_all(&connect()).unwrap();
        let mut connack = [0; 4];
        stream.read_exact(&mut connack).unwrap();
        assert_eq!((connack[0], connack[3]), (0x20, 0), "{n}");
        let (published, withheld) = world.wills();
        let more = ["", MUTE, LOCKED][n % 3];
        set(&world.registry, more);
        world.lost(stream);
        let expected = match more {
            "" => (published + 1, withheld),
            _ => (published, withheld + 1),
        };
        assert_eq!(world.wills(), expected, "{n}: {more}");
        set(&world.registry, "");
    }
}

#[test]
fn a_change_of_policies_at_every_lookup_of_a_connect_with_a_will() {
    for more in [MUTE, LOCKED] {
        let world = world();
        *world.facts.deed.lock().unwrap() = Arc::new(move |registry| set(registry, more));
        let (mut refused, mut granted) = (0, 0);
        for n in 0..280 {
            world.facts.countdown.store(n % 14, Ordering::Release);
            world.facts.armed.store(true, Ordering::Release);
            let mut link = world.attempt_of(&world.identity).send(connect()).ask().unwrap();
            let connack = link.packet().unwrap();
            // What is looked up after the answer is another race.
            if world.facts.armed.swap(false, Ordering::AcqRel) {
                assert_eq!(connack[3], 0, "{n}: nothing was changed");
                world.lost(link);
                continue;
            }
            let before = world.wills().0;
            match connack[3] {
                0 => granted += 1,
                code => {
                    assert!([0x87, 0x88].contains(&code), "{n}: {code:#x}");
                    refused += 1;
                }
            }
            world.lost(link);
            assert_eq!(
                world.wills().0,
                before,
                "{n}: the change was answered, and the will was published"
            );
            set(&world.registry, "");
        }
        assert!(refused > 200, "{more}: {refused} refused, {granted} granted");
        assert_eq!(world.gateway.metrics().panics.load(Ordering::Relaxed), 0);
    }
}

/// Policies under which an action is forbidden from `seconds` from now on.
fn until(registry: &Registry, action: &str, seconds: u64) {
    let end = Clock::now(&SystemClock).unix_s() + i64::try_from(seconds).unwrap();
    set(
        registry,
        &format!(
            r#"@id("hours") forbid (principal, action == Action::"{action}", resource) when {{ context.now >= {end} }};"#
        ),
    );
}

/// No change tells anybody that the time has gone on.
#[test]
fn no_session_outlives_what_policies_permit_at_that_time() {
    let world = world_with(Limits {
        session_sweep: Duration::from_secs(1),
        ..Limits::default()
    });
    let ends = || world.gateway.metrics().ends();
    for (n, action) in (1..).zip(["connect", "subscribe"]) {
        until(&world.registry, action, 3);
        let began = Instant::now();
        let mut stream = world.tls();
        let mut sent = countersign_testkit::client::connect(5, "d1");
        sent.extend(subscribe(5, "devices/d1/commands/#"));
        stream.write_all(&sent).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert_eq!((answer[0], answer[3]), (0x20, 0), "{action}: {answer:?}");
        let took = began.elapsed();
        assert!(took > Duration::from_secs(1), "{action}: {took:?}");
        let disconnect = answer.windows(3).find(|w| w[0] == 0xe0).map(|w| w[2]);
        assert_eq!(disconnect, Some(0x87), "{action}: {answer:?}");
        world.nothing_lives(action);
        assert_eq!(ends().get("policy-changed"), Some(&n), "{action}");
    }
    // Nothing that a change missed.
    assert_eq!(world.gateway.metrics().sweep_found.load(Ordering::Relaxed), 0);
}

#[test]
fn a_token_ends_when_its_device_may_no_longer_come() {
    let world = world_with(Limits {
        session_sweep: Duration::from_secs(1),
        ..Limits::default()
    });
    until(&world.registry, "connect", 3);
    let (text, id) = world.token(600);
    assert!(id.is_some(), "{text}");
    let started = Instant::now();
    while world.gateway.session_count() > 0 {
        assert!(started.elapsed() < Duration::from_secs(10), "the token is live");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(world.gateway.metrics().ends().get("policy-changed"), Some(&1));
}
