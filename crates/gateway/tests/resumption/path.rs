//! What lies between a device's certificate and its authority, after the handshake is over.

use std::time::Duration;

use countersign_gateway::Touched;
use countersign_identity::IdentityRule;
use countersign_policy::Admission;
use countersign_registry::{Change, NewAuthority, Origin};
use countersign_testkit::client::Attempt;
use countersign_testkit::pki::{Ca, Identity, Leaf};
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;

use super::world::*;

#[test]
fn a_session_ends_with_the_intermediate_above_its_certificate() {
    let world = World::new();
    let root = Ca::root("brought root", None);
    world.brought(&root);
    let middle = root.below_for_seconds("short", 3);
    let identity = middle.issue(&Leaf::named("d1"), &[&middle]);
    world.import("default", "d1", &identity);
    let seen = Attempt {
        patience: Duration::from_secs(10),
        ..world.device(&identity, "d1")
    }
    .run();
    // CONNACK, then DISCONNECT: not authorised any more (MQTT 5 section 3.14.2.1).
    assert_eq!(seen.connack(), Some(0), "{seen:?}");
    let last = seen.packets().last().unwrap().to_vec();
    assert_eq!((last[0], last[2]), (0xe0, 0x87), "{seen:?}");
    assert!(!seen.silent);
}

#[test]
fn an_intermediate_that_its_authority_revokes_ends_the_sessions_below_it_alone() {
    let world = World::new();
    let root = Ca::root("brought root", None);
    let authority = world.brought(&root);
    let middles = ["m1", "m2"].map(|name| root.below(name, None));
    let identities = [0, 1].map(|n| {
        let name = ["d1", "d2"][n];
        let identity = middles[n].issue(&Leaf::named(name), &[&middles[n]]);
        world.import("default", name, &identity);
        identity
    });
    let mut links = [0, 1].map(|n| {
        let device = world.device(&identities[n], ["d1", "d2"][n]);
        Attempt {
            patience: Duration::from_secs(3),
            ..device
        }
        .open()
        .unwrap()
    });
    let revoked = Identity {
        chain: vec![middles[0].certificate().clone()],
        ..middles[0].issue(&Leaf::named("of no use"), &[])
    };
    let pem = root.revocation_list(&[&revoked], 1, (-1, 60));
    let der = CertificateRevocationListDer::from_pem_slice(pem.as_bytes()).unwrap();
    let committed = world
        .registry
        .take_lists(actor(), authority.clone(), vec![der.to_vec()])
        .unwrap();
    assert!(committed.changes.contains(&Change::Authority(authority.clone())));
    let cutoffs = world.gateway().reconsider(&[Touched::Authority(authority)]);
    assert_eq!((cutoffs.len(), cutoffs[0].is_idle()), (1, false));
    let disconnect = links[0].packet().unwrap();
    assert_eq!((disconnect[0], disconnect[2]), (0xe0, 0x98), "{disconnect:x?}");
    assert!(links[0].packet().is_err());
    links[1].send(&[0xc0, 0]).unwrap();
    assert_eq!(links[1].packet().unwrap(), [0xd0, 0]);
    let seen = world.device(&identities[0], "d1").run();
    assert_eq!(seen.alert, Some(44), "{seen:?}");
}

#[test]
fn a_ticket_chooses_no_tenant_that_the_certificate_would_not() {
    let world = World::new();
    let identity = world.add("default", "d1", &Leaf::named("d1"));
    let device = Attempt {
        name: "localhost".into(),
        ..world.device(&identity, "d1")
    };
    admitted(&device.run(), false);
    admitted(&device.run(), true);
    // Another tenant has the same authority now: without a server name nobody knows whose device it is.
    let new = NewAuthority {
        id: "the-same".parse().unwrap(),
        tenant: tenant("other"),
        origin: Origin::Managed,
        rule: IdentityRule::default(),
        admission: Admission::RegisteredOnly,
        certificate: world.ca.certificate().to_vec(),
    };
    world.registry.register_authority(actor(), new).unwrap();
    let seen = device.run();
    assert_eq!((seen.resumed, seen.connack()), (false, None), "{seen:?}");
    let record = world.last();
    assert_eq!(fact(&record, "ticket_declined"), Some("chain"));
    assert_eq!(record.denial.unwrap().code.as_str(), "chain.ambiguous-tenant");
}
