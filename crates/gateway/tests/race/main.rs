//! A suspension that falls anywhere between the TLS handshake and CONNACK never leaves a live session, nor one that falls
//! while a token is granted a live token; nor do other policies, or a revocation list.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

#[path = "../grants/mod.rs"]
mod grants;
mod lists;
mod policies;
mod world;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use countersign_factory::RevocationReason;
use countersign_gateway::{Limits, TokenId, Touched};
use countersign_identity::{Clock, Fingerprint};
use countersign_policy::ClientIdMode;
use countersign_registry::{Registry, Revocation, SystemClock};
use countersign_testkit::client::{Attempt, anyone, connect};
use countersign_testkit::hold::Held;

use world::{World, actor, device, suspend, tenant, world, world_with};

#[test]
fn a_thousand_suspensions_between_decision_and_connack() {
    let world = world();
    let (mut refused, mut ended) = (0, 0);
    for n in 0..1000 {
        // An attempt makes thirteen lookups, from the certificate to the check after it was indexed.
        world.facts.countdown.store(n % 13, Ordering::Release);
        world.facts.armed.store(true, Ordering::Release);
        let seen = world.attempt().run();
        if world.facts.armed.swap(false, Ordering::AcqRel) {
            // Fewer lookups than that: it was admitted, and nothing was suspended.
            assert_eq!(seen.connack(), Some(0), "{n}: {seen:?}");
            continue;
        }
        match seen.connack() {
            Some(0) => {
                // Granted before the suspension: then it was ended, and told so.
                assert_eq!(seen.packets()[1][2], 0x98, "{n}: {seen:?}");
                ended += 1;
            }
            Some(code) => {
                assert!([0x87, 0x88].contains(&code), "{n}: {seen:?}");
                refused += 1;
            }
            None => panic!("{n}: no CONNACK: {seen:?}"),
        }
        world.nothing_lives(&format!("attempt {n}"));
        world.resume();
    }
    assert!(refused > 700, "{refused} refused, {ended} granted and ended");
    assert_eq!(world.gateway.metrics().panics.load(Ordering::Relaxed), 0);
}

#[test]
fn a_thousand_suspensions_between_tls_end_and_connect() {
    use std::io::{Read, Write};
    let world = world();
    for n in 0..1000 {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_client_auth_cert(world.identity.chain.clone(), world.identity.key.clone_key())
            .unwrap();
        let mut config = config;
        config.dangerous().set_certificate_verifier(anyone());
        let mut tls =
            rustls::ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
        let mut socket = std::net::TcpStream::connect(world.gateway.local_addr()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut stream = rustls::Stream::new(&mut tls, &mut socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(stream.sock).unwrap();
        }
        // The server has decided as soon as our last flight is in; every other time it is given the time for it.
        if n % 2 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        suspend(&world.registry);
        stream.write_all(&connect(5, "d1")).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert_eq!(answer.first(), Some(&0x20), "{n}: {answer:?}");
        assert!([0x87, 0x88].contains(&answer[3]), "{n}: CONNACK {:#x}", answer[3]);
        world.nothing_lives(&format!("attempt {n}"));
        world.resume();
    }
}

/// Changes of credentials reach nobody in this world: only the sweep is left to see them.
#[test]
fn what_a_change_misses_the_sweep_finds() {
    let world = world_with(Limits {
        session_sweep: Duration::from_secs(1),
        ..Limits::default()
    });
    let mut session = Held::open(world.gateway.local_addr(), &world.identity, "d1").unwrap();
    let found = || world.gateway.metrics().sweep_found.load(Ordering::Relaxed);
    // One that is as it should be is left alone.
    let sweeps = || world.gateway.metrics().sweeps.load(Ordering::Relaxed);
    let started = Instant::now();
    while sweeps() < 1 {
        assert!(started.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!((found(), world.gateway.session_count()), (0, 1));
    let fingerprint = Fingerprint::of(&world.identity.chain[0]);
    world
        .registry
        .revoke(
            actor(),
            Revocation::Credential(fingerprint),
            RevocationReason::KeyCompromise,
            String::new(),
        )
        .unwrap();
    session.closed().unwrap();
    assert_eq!(found(), 1);
    world.nothing_lives("after the sweep");
}

impl World {
    /// Asks for a token: what came, and the token's id if there is one.
    fn token(&self, seconds: u32) -> (String, Option<TokenId>) {
        let attempt = Attempt {
            alpn: vec![b"http/1.1".to_vec()],
            ..self.attempt()
        };
        let head = format!("GET /{seconds} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let seen = attempt.send(head).run();
        let text = String::from_utf8_lossy(&seen.data).into_owned();
        let id = text
            .starts_with("HTTP/1.1 200")
            .then(|| text[text.len() - 32..].parse().unwrap());
        (text, id)
    }

    fn tokens(&self) -> usize {
        self.gateway
            .sessions(None)
            .iter()
            .filter(|s| s.kind == "token")
            .count()
    }
}

#[test]
fn five_hundred_suspensions_while_a_token_is_granted() {
    let world = world();
    let (mut refused, mut ended) = (0, 0);
    for n in 0..500 {
        // From the certificate to the check after the token was indexed.
        world.facts.countdown.store(n % 25, Ordering::Release);
        world.facts.armed.store(true, Ordering::Release);
        let (text, id) = world.token(600);
        if world.facts.armed.swap(false, Ordering::AcqRel) {
            // Fewer lookups than that: it was granted, and nothing was suspended.
            assert!(id.is_some(), "{n}: {text}");
            let _ = world.gateway.disconnect(&tenant(), &device());
            world.nothing_lives(&format!("attempt {n}, whole"));
            continue;
        }
        match id {
            Some(id) => {
                assert_eq!(world.gateway.token(&tenant(), &device(), &id), None, "{n}");
                ended += 1;
            }
            None => refused += 1,
        }
        world.nothing_lives(&format!("attempt {n}"));
        world.resume();
    }
    assert!(refused > 300, "{refused} refused, {ended} granted and ended");
    let metrics = world.gateway.metrics();
    let started = Instant::now();
    while metrics.tokens.load(Ordering::Relaxed) > 0 {
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "a token is counted that is gone"
        );
    }
    assert_eq!(metrics.panics.load(Ordering::Relaxed), 0);
}

#[test]
fn a_token_outlives_its_connection_and_ends_when_it_said() {
    let world = world();
    let (text, id) = world.token(2);
    let id = id.unwrap_or_else(|| panic!("{text}"));
    let view = world.gateway.token(&tenant(), &device(), &id).unwrap();
    assert_eq!(view.expires.since(view.issued), Duration::from_secs(2));
    // Its connection is gone.
    let started = Instant::now();
    while world.gateway.sessions(None).len() > 1 {
        assert!(started.elapsed() < Duration::from_secs(1));
    }
    assert_eq!(world.tokens(), 1);
    // To the moment by its own word, and taken out by the wheel soon after.
    while Clock::now(&SystemClock) < view.expires {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(world.gateway.token(&tenant(), &device(), &id), None);
    while world.gateway.session_count() > 0 {
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "the token is still in the index"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(world.gateway.metrics().ends().get("token-expired"), Some(&1));
}

/// Who revoked one credential waits for no fleet, and has it on the receipt whatever else fell in the same commit.
#[test]
fn of_the_changes_of_one_commit_the_narrowest_is_looked_at_first_and_lets_go_of_what_it_ended() {
    let world = world();
    let mut session = Held::open(world.gateway.local_addr(), &world.identity, "d1").unwrap();
    let fingerprint = Fingerprint::of(&world.identity.chain[0]);
    let revoked = Revocation::Credential(fingerprint);
    // Nobody is told of it in this world.
    world
        .registry
        .revoke(actor(), revoked, RevocationReason::KeyCompromise, String::new())
        .unwrap();
    let cutoffs = world.gateway.reconsider(&[
        Touched::Tenant(tenant()),
        Touched::Device(tenant(), device()),
        Touched::Credential(tenant(), device(), fingerprint),
    ]);
    session.closed().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    for (cutoff, ended) in cutoffs.iter().zip([0, 0, 1]) {
        let report = runtime.block_on(cutoff.wait(Duration::from_secs(5)));
        assert_eq!((report.ended, report.open, report.kept), (ended, 0, 0));
        assert_eq!(cutoff.held(), 0, "it is over, and still in memory");
    }
}

/// What is done at one lookup after another while a device connects with this client id, and leaves it no session.
fn at_every_lookup(client_id: &str, deed: fn(&Registry), undo: fn(&Registry)) {
    let world = world();
    undo(&world.registry);
    *world.facts.deed.lock().unwrap() = Arc::new(deed);
    let (mut refused, mut ended) = (0, 0);
    for n in 0..100 {
        world.facts.countdown.store(n % 20, Ordering::Release);
        world.facts.armed.store(true, Ordering::Release);
        let seen = world
            .attempt_of(&world.identity)
            .send(connect(5, client_id))
            .run();
        if world.facts.armed.swap(false, Ordering::AcqRel) {
            assert_eq!(seen.connack(), Some(0), "{n}: {seen:?}");
            continue;
        }
        match seen.connack() {
            Some(0) => ended += 1,
            Some(code) => {
                assert!([0x85, 0x87, 0x88].contains(&code), "{n}: {seen:?}");
                refused += 1;
            }
            None => panic!("{n}: no CONNACK: {seen:?}"),
        }
        world.nothing_lives(&format!("attempt {n}"));
        undo(&world.registry);
    }
    assert!(refused > 50, "{refused} refused, {ended} granted and ended");
    assert_eq!(world.gateway.metrics().panics.load(Ordering::Relaxed), 0);
}

fn set_rule(registry: &Registry, rule: &str) {
    let rule = Some(rule.parse().unwrap());
    registry
        .configure_authority(actor(), "race".parse().unwrap(), rule, None)
        .unwrap();
}

#[test]
fn another_identity_rule_at_every_lookup_of_a_connect() {
    at_every_lookup("d1", |r| set_rule(r, "san-uri"), |r| set_rule(r, "common-name"));
}

fn set_mode(registry: &Registry, mode: ClientIdMode) {
    registry
        .configure_tenant(actor(), tenant(), Some(mode), None)
        .unwrap();
}

#[test]
fn a_stricter_client_id_mode_at_every_lookup_of_a_connect() {
    at_every_lookup(
        "somebody-else",
        |r| set_mode(r, ClientIdMode::Strict),
        |r| set_mode(r, ClientIdMode::Free),
    );
}
