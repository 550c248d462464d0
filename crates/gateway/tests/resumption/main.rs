//! Resumption under policy, over real TLS: what TLS skips is checked all the same, and what changed declines the ticket.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

mod path;
mod queue;
mod world;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use countersign_factory::RevocationReason;
use countersign_gateway::TicketSettings;
use countersign_identity::{CertificateFacts, Fingerprint};
use countersign_policy::{LifecycleMove, LifecycleState, Outcome, Possession, Stage, StageOutcome};
use countersign_registry::{AuthorityMove, NewDevice, PolicyChange, Revocation};
use countersign_testkit::client::{Attempt, TLS12, TLS13, connect};
use countersign_testkit::pki::{Ca, Identity, Leaf, self_signed};

use world::*;

#[test]
fn each_protocol_and_version_resumes_and_says_so() {
    let world = World::new();
    let get = b"GET / HTTP/1.1\r\nHost: gate\r\nConnection: close\r\n\r\n".to_vec();
    for (n, (versions, protocol, send)) in [
        (TLS13, "mqtt-5", connect(5, "d0")),
        (TLS13, "mqtt-3.1.1", connect(4, "d1")),
        (TLS13, "http/1.1", get.clone()),
        (TLS12, "mqtt-5", connect(5, "d3")),
        (TLS12, "mqtt-3.1.1", connect(4, "d4")),
        (TLS12, "http/1.1", get),
    ]
    .into_iter()
    .enumerate()
    {
        let identity = world.add("default", &format!("d{n}"), &Leaf::named(&format!("d{n}")));
        let alpn: &[u8] = if protocol == "http/1.1" {
            b"http/1.1"
        } else {
            b"mqtt"
        };
        let device = Attempt {
            versions,
            alpn: vec![alpn.to_vec()],
            ..world.attempt(0).identity(&identity).send(send)
        }
        .resuming();
        let mut proven_at = None;
        for round in 0..4 {
            let seen = device.run();
            assert_eq!(seen.resumed, round > 0, "{protocol} {round}: {seen:?}");
            let record = world.last();
            assert_eq!(record.outcome, Outcome::Admitted, "{record:?}");
            assert_eq!(record.possession, Possession::Proven);
            assert_eq!(fact(&record, "protocol"), Some(protocol));
            let shown = record.certificate.as_ref().unwrap();
            assert_eq!(shown.fingerprint, Fingerprint::of(&identity.chain[0]));
            let outcome = |stage| record.stages.iter().find(|s| s.stage == stage).map(|s| s.outcome);
            let expected = if round > 0 {
                StageOutcome::TakenOver
            } else {
                StageOutcome::Passed
            };
            assert_eq!(outcome(Stage::ClientCertificate), Some(expected));
            assert_eq!(outcome(Stage::CertificateVerify), Some(expected));
            assert_eq!(outcome(Stage::Policy), Some(StageOutcome::Passed));
            // A chain of resumptions goes back to one full handshake.
            let from = fact(&record, "resumed_from").map(str::to_owned);
            assert_eq!(from.is_some(), round > 0);
            if round > 0 {
                assert_eq!(*proven_at.get_or_insert(from.clone()), from);
            }
            assert!(record.stages.windows(2).all(|w| w[0].at_us <= w[1].at_us));
        }
    }
    let tickets = &world.gateway().metrics().tickets;
    assert_eq!(tickets.resumed.load(Ordering::Relaxed), 18);
    assert!(world.declines().is_empty(), "{:?}", world.declines());
}

#[test]
fn five_hundred_of_five_hundred_resume() {
    let world = World::new();
    let devices: Vec<_> = (0..500)
        .map(|n| {
            let name = format!("d{n}");
            let device = world.device(&world.add("default", &name, &Leaf::named(&name)), &name);
            // And goodbye at once, so that nobody waits for more.
            device.send([connect(5, &name), vec![0xe0, 0]].concat())
        })
        .collect();
    for resumed in [false, true] {
        for device in &devices {
            admitted(&device.run(), resumed);
        }
    }
    let tickets = &world.gateway().metrics().tickets;
    assert_eq!(tickets.resumed.load(Ordering::Relaxed), 500);
}

#[test]
fn a_suspended_device_is_told_so_by_the_ticket_s_connection() {
    let world = World::new();
    let identity = world.add("default", "d1", &Leaf::named("d1"));
    for (level, versions, code) in [(4, TLS13, 5), (5, TLS13, 0x87), (4, TLS12, 5), (5, TLS12, 0x87)] {
        let device = Attempt {
            versions,
            ..world.attempt(0).identity(&identity).send(connect(level, "d1"))
        }
        .resuming();
        admitted(&device.run(), false);
        let go = |attempted| {
            world
                .registry
                .move_device(actor(), tenant("default"), id("d1"), attempted, String::new())
                .unwrap();
        };
        go(LifecycleMove::Suspend);
        let seen = device.run();
        assert_eq!((seen.connack(), seen.resumed), (Some(code), true), "{seen:?}");
        let record = world.last();
        assert_eq!(record.denial.unwrap().code.as_str(), "device.suspended");
        go(LifecycleMove::Resume);
        // In TLS 1.3 the refused connection brought the next ticket; in 1.2 the old one is still good.
        admitted(&device.run(), true);
    }
}

#[test]
fn who_policies_refuse_for_resuming_makes_a_full_handshake() {
    for (versions, forbidden) in [
        (TLS13, "context.tls.resumed"),
        (TLS12, "context.tls.resumed"),
        // The key exchange is not agreed on yet when a ticket is opened.
        (
            TLS13,
            "context.tls.resumed && context.tls has group && context.tls.group != \"X\"",
        ),
    ] {
        let world = World::new();
        let set = |policies: String| {
            let change = PolicyChange {
                policies: Some(policies),
                ..PolicyChange::default()
            };
            world
                .registry
                .configure_tenant(actor(), tenant("default"), None, Some(change))
                .unwrap();
        };
        let device = Attempt {
            versions,
            ..world.device(&world.add("default", "d1", &Leaf::named("d1")), "d1")
        }
        .resuming();
        admitted(&device.run(), false);
        admitted(&device.run(), true);
        let forbid = |action: &str| {
            format!(
                "@id(\"all\") permit (principal, action, resource);
                 @id(\"prove-it\") forbid (principal, action == Action::\"{action}\", resource) when {{ {forbidden} }};"
            )
        };
        set(forbid("connect"));
        for _ in 0..3 {
            admitted(&device.run(), false);
            assert_eq!(fact(&world.last(), "ticket_declined"), Some("policy"));
        }
        // What policies hold against what is done they would hold against it time and again.
        for action in ["publish", "subscribe"] {
            set(forbid(action));
            admitted(&device.run(), false);
            assert_eq!(fact(&world.last(), "ticket_declined"), Some("policy"));
        }
        // Refused however it comes: the ticket is taken, and the refusal is in the words of the policies.
        set(
            "@id(\"nobody\") forbid (principal, action == Action::\"connect\", resource) when { context.tls.resumed || true };"
                .into(),
        );
        let seen = device.run();
        assert_eq!((seen.connack(), seen.resumed), (Some(0x87), true), "{seen:?}");
        assert_eq!(world.last().denial.unwrap().policies, ["nobody"]);
    }
}

#[test]
fn what_is_revoked_declines_the_ticket_and_refuses_the_full_handshake() {
    for versions in [TLS13, TLS12] {
        let world = World::new();
        let device = |name: &str| {
            let identity = world.add("default", name, &Leaf::named(name));
            let device = Attempt {
                versions,
                ..world.attempt(0).identity(&identity).send(connect(5, name))
            };
            (device.resuming(), identity)
        };
        let (one, identity) = device("d1");
        let (two, _) = device("d2");
        admitted(&one.run(), false);
        admitted(&two.run(), false);
        let fingerprint = Fingerprint::of(&identity.chain[0]);
        world
            .registry
            .revoke(
                actor(),
                Revocation::Credential(fingerprint),
                RevocationReason::KeyCompromise,
                String::new(),
            )
            .unwrap();
        let seen = one.run();
        assert_eq!((seen.alert, seen.resumed), (Some(44), false), "{seen:?}");
        let record = world.last();
        assert_eq!(fact(&record, "ticket_declined"), Some("credential-changed"));
        assert_eq!(record.denial.unwrap().code.as_str(), "credential.revoked");
        admitted(&two.run(), true);

        world
            .registry
            .move_authority(
                actor(),
                "ca".parse().unwrap(),
                AuthorityMove::Revoke,
                String::new(),
            )
            .unwrap();
        let seen = two.run();
        assert_eq!((seen.alert, seen.resumed), (Some(44), false), "{seen:?}");
        let record = world.last();
        assert_eq!(fact(&record, "ticket_declined"), Some("authority-changed"));
        assert_eq!(record.denial.unwrap().code.as_str(), "authority.revoked");
    }
}

#[test]
fn a_ticket_is_good_for_one_listener_and_one_tenant() {
    for versions in [TLS13, TLS12] {
        let world = World::new();
        let (ours, theirs) = (
            world.add("default", "d1", &Leaf::named("d1")),
            world.add("other", "d1", &Leaf::named("d1")),
        );
        let at = |listener: usize, name: &str, identity: &Identity| Attempt {
            versions,
            name: name.into(),
            ..world.attempt(listener).identity(identity).send(connect(5, "d1"))
        };
        let go_on = |device: &Attempt, listener: usize, name: &str| Attempt {
            server: world.gateway().local_addrs()[listener].1,
            name: name.into(),
            ..device.clone()
        };
        // Another listener: a full handshake, which is as good there.
        let device = at(0, "default.test", &ours).resuming();
        admitted(&device.run(), false);
        admitted(&go_on(&device, 1, "default.test").run(), false);
        assert_eq!(fact(&world.last(), "ticket_declined"), Some("unopened"));
        // The ticket of the other one is good there, and not here.
        admitted(&go_on(&device, 1, "default.test").run(), true);
        admitted(&go_on(&device, 0, "default.test").run(), false);
        // No tickets at all: nothing is opened, nothing is given.
        admitted(&go_on(&device, 2, "default.test").run(), false);
        assert_eq!(fact(&world.last(), "ticket_declined"), None);
        let never = at(2, "default.test", &ours).resuming();
        admitted(&never.run(), false);
        admitted(&never.run(), false);

        // Another tenant's name: the full handshake is refused, as it should be.
        for (identity, own, foreign) in [
            (&ours, "default.test", "other.test"),
            (&theirs, "other.test", "default.test"),
        ] {
            let device = at(0, own, identity).resuming();
            admitted(&device.run(), false);
            let seen = go_on(&device, 0, foreign).run();
            assert_eq!((seen.alert, seen.resumed), (Some(48), false), "{seen:?}");
            let record = world.last();
            assert_eq!(fact(&record, "ticket_declined"), Some("other-tenant"));
            assert_eq!(record.denial.unwrap().code.as_str(), "chain.foreign-tenant");
        }
        // A name of the platform chooses no tenant, so the certificate does; the library wants the same name again.
        let device = at(0, "localhost", &theirs).resuming();
        admitted(&device.run(), false);
        admitted(&device.run(), true);
        assert_eq!(world.last().tenant, Some(tenant("other")));
        admitted(&go_on(&device, 0, "other.test").run(), false);
        assert_eq!(fact(&world.last(), "resumed_from"), None);
    }
}

#[test]
fn a_restart_keeps_the_keys_and_lost_keys_cost_a_full_handshake() {
    let mut world = World::new();
    let device = world.device(&world.add("default", "d1", &Leaf::named("d1")), "d1");
    let again = |world: &World| Attempt {
        server: world.gateway().local_addr(),
        ..device.clone()
    };
    admitted(&again(&world).run(), false);
    world.start(TicketSettings::default());
    admitted(&again(&world).run(), true);

    std::fs::write(world.keys(), b"not what it was").unwrap();
    world.start(TicketSettings::default());
    admitted(&again(&world).run(), false);
    assert_eq!(world.declines(), BTreeMap::from([("unknown-key", 1)]));
    admitted(&again(&world).run(), true);

    std::fs::remove_file(world.keys()).unwrap();
    world.start(TicketSettings::default());
    admitted(&again(&world).run(), false);

    // A tenant may be without.
    world.start(TicketSettings {
        tenants_off: vec![tenant("default")],
        ..TicketSettings::default()
    });
    admitted(&again(&world).run(), false);
    assert_eq!(world.declines(), BTreeMap::from([("off", 1)]));
    admitted(&again(&world).run(), false);
}

#[test]
fn age_counts_from_the_full_handshake_and_an_expired_certificate_from_now() {
    for versions in [TLS13, TLS12] {
        let world = World::new();
        let device = |name: &str, leaf: &Leaf| {
            let identity = world.add("default", name, leaf);
            Attempt {
                versions,
                ..world.attempt(0).identity(&identity).send(connect(5, name))
            }
            .resuming()
        };
        let long = device("long", &Leaf::named("long"));
        admitted(&long.run(), false);
        for _ in 0..2 {
            world.pass(hours(11));
            admitted(&long.run(), true);
        }
        world.pass(hours(3));
        admitted(&long.run(), false);
        assert_eq!(fact(&world.last(), "ticket_declined"), Some("age"));
        admitted(&long.run(), true);

        // 25 hours have passed: two more until this one expires.
        let short = device(
            "short",
            &Leaf {
                days: (-1, 2),
                ..Leaf::named("short")
            },
        );
        world.pass(hours(21));
        admitted(&short.run(), false);
        world.pass(hours(1));
        admitted(&short.run(), true);
        world.pass(hours(2));
        let seen = short.run();
        assert_eq!((seen.alert, seen.resumed), (Some(45), false), "{seen:?}");
        let record = world.last();
        assert_eq!(fact(&record, "ticket_declined"), Some("chain"));
        assert_eq!(record.denial.unwrap().code.as_str(), "chain.expired");

        // A clock that went back.
        world.clock.0.fetch_sub(3 * 3600 * 1000, Ordering::AcqRel);
        let back = device("back", &Leaf::named("back"));
        admitted(&back.run(), false);
        world.clock.0.fetch_sub(3600 * 1000, Ordering::AcqRel);
        admitted(&back.run(), false);
        assert_eq!(fact(&world.last(), "ticket_declined"), Some("clock-behind"));
    }
}

#[test]
fn revocation_lists_are_asked_on_each_resumption() {
    use rustls::pki_types::CertificateRevocationListDer;
    use rustls::pki_types::pem::PemObject;
    let world = World::new();
    let ca = Ca::root("of somebody else", None);
    let authority = world.brought(&ca);
    let identities = ["l1", "l2"].map(|name| {
        let identity = ca.issue(&Leaf::named(name), &[]);
        world.import("default", name, &identity);
        identity
    });
    let take = |revoked: &[&Identity], number| {
        let pem = ca.revocation_list(revoked, number, (-1, 60));
        let der = CertificateRevocationListDer::from_pem_slice(pem.as_bytes()).unwrap();
        world
            .registry
            .take_lists(actor(), authority.clone(), vec![der.to_vec()])
            .unwrap();
    };
    take(&[], 1);
    let [one, two] = [0, 1].map(|n| world.device(&identities[n], ["l1", "l2"][n]));
    for device in [&one, &two] {
        admitted(&device.run(), false);
        admitted(&device.run(), true);
    }
    // A new list: each ticket is declined once, and who is on it is refused.
    take(&[&identities[0]], 2);
    let seen = one.run();
    assert_eq!((seen.alert, seen.resumed), (Some(44), false), "{seen:?}");
    admitted(&two.run(), false);
    assert_eq!(fact(&world.last(), "ticket_declined"), Some("authority-changed"));
    admitted(&two.run(), true);
    // The list grows old, and nothing else happens: the ticket is young, and declined.
    world.pass(hours(2));
    let seen = two.run();
    assert_eq!((seen.alert, seen.resumed), (Some(48), false), "{seen:?}");
    let record = world.last();
    assert_eq!(fact(&record, "ticket_declined"), Some("chain"));
    assert_eq!(record.denial.unwrap().code.as_str(), "chain.revocation-unknown");
}

#[test]
fn a_pinned_certificate_resumes_until_it_is_revoked() {
    let world = World::new();
    let identity = self_signed("whatever it calls itself");
    let new = NewDevice {
        id: id("pinned"),
        model: None,
        groups: vec![],
        state: LifecycleState::Active,
        authority: None,
    };
    world
        .registry
        .import_devices(actor(), tenant("default"), vec![(new, None)])
        .unwrap();
    let facts = CertificateFacts::parse(&identity.chain[0]).unwrap();
    world
        .registry
        .pin_credential(actor(), tenant("default"), id("pinned"), facts)
        .unwrap();
    let device = world.device(&identity, "pinned");
    admitted(&device.run(), false);
    admitted(&device.run(), true);
    world
        .registry
        .revoke(
            actor(),
            Revocation::Device(tenant("default"), id("pinned")),
            RevocationReason::KeyCompromise,
            String::new(),
        )
        .unwrap();
    let seen = device.run();
    assert_eq!((seen.alert, seen.resumed), (Some(44), false), "{seen:?}");
}

#[test]
fn a_chain_is_verified_once_and_an_authority_that_changes_empties_what_is_remembered() {
    let world = World::new();
    let identity = world.add("default", "d1", &Leaf::named("d1"));
    let full = world.attempt(0).identity(&identity).send(connect(5, "d1"));
    let counts = || {
        let chains = world.gateway().verified_chains();
        [&chains.hits, &chains.misses, &chains.stale].map(|n| n.load(Ordering::Relaxed))
    };
    admitted(&full.run(), false);
    assert_eq!(counts(), [0, 1, 0]);
    admitted(&full.run(), false);
    assert_eq!(counts(), [1, 1, 0]);
    // Any change of the authority, here one that still admits.
    let go = |attempted| {
        world
            .registry
            .move_authority(actor(), "ca".parse().unwrap(), attempted, String::new())
            .unwrap();
    };
    go(AuthorityMove::Retire);
    admitted(&full.run(), false);
    assert_eq!(counts(), [1, 2, 1]);
    admitted(&full.run(), false);
    assert_eq!(counts(), [2, 2, 1]);
    go(AuthorityMove::Revoke);
    assert_eq!(full.run().alert, Some(44));
    assert_eq!(counts(), [2, 3, 2]);
    assert!(world.gateway().verified_chains().is_empty());

    // Dates are those of now.
    let world = World::new();
    let short = Leaf {
        days: (-1, 1),
        ..Leaf::named("d1")
    };
    let identity = world.add("default", "d1", &short);
    let full = world.attempt(0).identity(&identity).send(connect(5, "d1"));
    admitted(&full.run(), false);
    admitted(&full.run(), false);
    world.pass(hours(25));
    assert_eq!(full.run().alert, Some(45));

    // Who cannot prove possession makes nothing be remembered.
    let world = World::new();
    let (victim, thief) = (
        world.add("default", "d1", &Leaf::named("d1")),
        world.add("default", "d2", &Leaf::named("d2")),
    );
    let replayed = Identity {
        key: thief.key.clone_key(),
        ..victim.clone()
    };
    assert_eq!(world.attempt(0).identity(&replayed).run().alert, Some(51));
    assert!(world.gateway().verified_chains().is_empty());
}

/// Ticket and CONNACK need no packet each: they leave in one write.
#[test]
fn ticket_and_connack_leave_together() {
    use std::io::{Read, Write};
    let world = World::new();
    let identity = world.add("default", "d1", &Leaf::named("d1"));
    let attempt = world.device(&identity, "d1");
    for resumed in [false, true] {
        let config = attempt.client.clone().unwrap();
        let mut tls = rustls::ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
        let mut socket = std::net::TcpStream::connect(attempt.server).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        while tls.is_handshaking() {
            if tls.wants_write() {
                tls.write_tls(&mut socket).unwrap();
            }
            tls.read_tls(&mut socket).unwrap();
            tls.process_new_packets().unwrap();
        }
        // Finished and CONNECT in one write, so that the server reads them at once.
        tls.writer().write_all(&connect(5, "d1")).unwrap();
        let mut flight = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut flight).unwrap();
        }
        socket.write_all(&flight).unwrap();
        let mut answer = [0; 16 * 1024];
        let length = socket.read(&mut answer).unwrap();
        let (mut rest, mut records) = (&answer[..length], 0);
        while !rest.is_empty() {
            let record = 5 + usize::from(u16::from_be_bytes([rest[3], rest[4]]));
            rest = &rest[record..];
            records += 1;
        }
        assert_eq!(records, 2, "the ticket and CONNACK");
        tls.read_tls(&mut &answer[..length]).unwrap();
        tls.process_new_packets().unwrap();
        let mut connack = [0; 64];
        assert!(tls.reader().read(&mut connack).unwrap() > 3);
        assert_eq!((connack[0], connack[3]), (0x20, 0));
        assert_eq!(
            tls.handshake_kind() == Some(rustls::HandshakeKind::Resumed),
            resumed
        );
    }
}
