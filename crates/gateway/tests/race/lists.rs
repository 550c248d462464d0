//! A revocation list that is taken while the first contact of a certificate that it names is under way: at the chain check
//! it was on no list, and when the list came there was no credential to revoke.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use countersign_identity::{AuthorityId, IdentityRule};
use countersign_policy::first_contact::Template;
use countersign_policy::{Admission, LifecycleState};
use countersign_registry::{NewAuthority, Origin, Registry};
use countersign_testkit::client::connect;
use countersign_testkit::pki::{Ca, Identity, Leaf};
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;

use crate::world::{Deed, InContact, World, actor, tenant, world};

fn authority() -> AuthorityId {
    "brought".parse().unwrap()
}

/// An authority whose devices are learned when they come.
fn brought(registry: &Registry) -> Ca {
    let ca = Ca::root("brought root", None);
    let template = Template {
        model: None,
        groups: vec![],
        state: LifecycleState::Active,
        id_pattern: "j*".parse().unwrap(),
        quota: 10_000,
    };
    let new = NewAuthority {
        id: authority(),
        tenant: tenant(),
        origin: Origin::Registered {
            code: "prove-me".into(),
        },
        rule: IdentityRule::default(),
        admission: Admission::JustInTime(Arc::new(template)),
        certificate: ca.certificate().to_vec(),
    };
    registry.register_authority(actor(), new).unwrap();
    let proof = ca.issue(&Leaf::named("prove-me"), &[]).chain[0].to_vec();
    registry.prove_authority(actor(), authority(), proof).unwrap();
    ca
}

/// Takes a list that names this certificate. When it returns the list is answered.
fn revoking(ca: &Ca, identity: &Identity, number: u64) -> Deed {
    let list = ca.revocation_list(&[identity], number, (-1, 60));
    let der = CertificateRevocationListDer::from_pem_slice(list.as_bytes())
        .unwrap()
        .to_vec();
    Arc::new(move |registry| {
        let taken = registry.take_lists(actor(), authority(), vec![der.clone()]);
        assert_eq!(taken.unwrap().value.taken, 1);
    })
}

impl World {
    /// A device that nobody knows, and a list that names it to be taken.
    fn stranger(&self, ca: &Ca, n: u64) -> (String, Identity) {
        let id = format!("j{n}");
        let identity = ca.issue(&Leaf::named(&id), &[]);
        *self.facts.deed.lock().unwrap() = revoking(ca, &identity, n + 1);
        (id, identity)
    }
}

#[test]
fn a_list_that_is_answered_before_or_after_the_certificate_is_learned_keeps_it_out() {
    let world = world();
    let ca = brought(&world.registry);
    for n in 0..100 {
        let order = [InContact::Before, InContact::After][n as usize % 2];
        let (id, identity) = world.stranger(&ca, n);
        *world.contact.lock().unwrap() = Some(order);
        let attempt = world.attempt_of(&identity).send(connect(5, &id));
        let seen = attempt.run();
        assert_eq!(*world.contact.lock().unwrap(), None, "{n}: no first contact");
        assert!(seen.handshake, "{n}: the path held when it was checked: {seen:?}");
        assert!(
            seen.connack().is_some_and(|code| code >= 0x80),
            "{n} {order:?}: {seen:?}"
        );
        world.nothing_lives(&format!("{n} {order:?}"));
        // And it stays out, though it was learned.
        let again = attempt.run();
        assert!(
            again.alert.is_some() && again.connack().is_none(),
            "{n}: {again:?}"
        );
    }
    assert_eq!(world.gateway.metrics().panics.load(Ordering::Relaxed), 0);
}

#[test]
fn a_list_at_every_lookup_of_a_first_contact() {
    let world = world();
    let ca = brought(&world.registry);
    let (mut refused, mut ended) = (0, 0);
    for n in 0..140 {
        let (id, identity) = world.stranger(&ca, n);
        // An attempt makes thirteen lookups, those of the first contact among them; with the fourteenth it is whole.
        world.facts.countdown.store(n as usize % 14, Ordering::Release);
        world.facts.armed.store(true, Ordering::Release);
        let seen = world.attempt_of(&identity).send(connect(5, &id)).run();
        if world.facts.armed.swap(false, Ordering::AcqRel) {
            // Fewer lookups than that: it was admitted, and nothing was taken.
            assert_eq!(seen.connack(), Some(0), "{n}: {seen:?}");
            let deed = world.facts.deed.lock().unwrap().clone();
            deed(&world.registry);
        } else if seen.connack() == Some(0) {
            // Granted before the list: then it was ended, and told so.
            let last = seen.packets().get(1).map(|p| p[2]);
            assert_eq!(last, Some(0x98), "{n}: {seen:?}");
            ended += 1;
        } else {
            assert!(seen.alert.is_some() || seen.connack().is_some(), "{n}: {seen:?}");
            refused += 1;
        }
        world.nothing_lives(&format!("attempt {n}"));
    }
    assert!(refused > 100, "{refused} refused, {ended} granted and ended");
    assert_eq!(world.gateway.metrics().panics.load(Ordering::Relaxed), 0);
}
