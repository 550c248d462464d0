use std::os::unix::fs::PermissionsExt;

use countersign_identity::{
    Anchor, AnchorIndex, AnchorState, AuthorityId, CertificateFacts, DeviceId, Fingerprint, Generation,
    IdentityRule,
};
use countersign_policy::decide::TenantPolicy;
use countersign_policy::facts::{CredentialKind, Custody, RegistryUnavailable};
use countersign_policy::{
    Admission, ClientIdMode, CredentialFacts, CredentialState, DeviceFacts, FactSource, Possession,
};
use countersign_testkit::pki::{Ca, Identity, Leaf};
use parking_lot::Mutex;
use rustls::server::ProducesTickets;
use std::sync::Arc;

use super::facts::{TicketFacts, TicketVersion, certificates, find_chain};
use super::*;
use crate::handshake::context::{HandshakeContext, lend};

#[derive(Clone)]
struct State {
    anchor: AnchorState,
    authority: u64,
    credential: Option<(CredentialState, u64)>,
}

/// One tenant with one authority and one device.
struct World {
    ca: Ca,
    device: Identity,
    state: Mutex<State>,
}

const LISTENER: &str = "devices";

fn tenant() -> TenantId {
    TenantId::new("own").unwrap()
}

fn authority() -> AuthorityId {
    AuthorityId::new("ca").unwrap()
}

impl FactSource for World {
    fn health(&self) -> Result<(), RegistryUnavailable> {
        Ok(())
    }
    fn anchors(&self) -> Arc<AnchorIndex> {
        let state = self.state.lock();
        let (rule, generation) = (IdentityRule::default(), Generation(state.authority));
        let der = self.ca.certificate();
        let anchor = Anchor::new(tenant(), authority(), state.anchor, generation, rule, der).unwrap();
        Arc::new(AnchorIndex::new([Arc::new(anchor)]))
    }
    fn tenant_by_host(&self, _: &str) -> Option<TenantId> {
        None
    }
    fn credential(&self, fingerprint: &Fingerprint) -> Option<CredentialFacts> {
        let (state, generation) = self.state.lock().credential?;
        (*fingerprint == Fingerprint::of(&self.device.chain[0])).then(|| CredentialFacts {
            fingerprint: *fingerprint,
            tenant: tenant(),
            device: DeviceId::new("d1").unwrap(),
            kind: CredentialKind::Operational,
            state,
            custody: Custody::Unknown,
            opens_data_sessions: true,
            generation: Generation(generation),
        })
    }
    fn device(&self, _: &TenantId, _: &DeviceId) -> Option<Arc<DeviceFacts>> {
        None
    }
    fn authority(&self, _: &AuthorityId) -> Option<(AnchorState, Generation)> {
        let state = self.state.lock();
        Some((state.anchor, Generation(state.authority)))
    }
    fn anchor(&self, _: &AuthorityId) -> Option<Arc<Anchor>> {
        None
    }
    fn admission(&self, _: &AuthorityId) -> Admission {
        Admission::RegisteredOnly
    }
    fn client_id_mode(&self, _: &TenantId) -> ClientIdMode {
        ClientIdMode::Strict
    }
    fn policy(&self, _: &TenantId) -> Option<Arc<TenantPolicy>> {
        None
    }
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    Timestamp::from_unix_s(i64::try_from(since.as_secs()).unwrap())
}

fn hours(n: u64) -> Duration {
    Duration::from_secs(n * 3600)
}

impl World {
    fn new() -> Arc<Self> {
        let ca = Ca::root("tickets", None);
        let issuing = ca.below("tickets issuing", None);
        Arc::new(Self {
            device: issuing.issue(&Leaf::named("d1"), &[&issuing]),
            ca,
            state: Mutex::new(State {
                anchor: AnchorState::Active,
                authority: 5,
                credential: Some((CredentialState::Active, 7)),
            }),
        })
    }

    fn context(self: &Arc<Self>, at: Timestamp) -> HandshakeContext {
        HandshakeContext::new(self.clone(), None, TicketVersion::Tls13, at)
    }

    /// As after a full handshake.
    fn proven(self: &Arc<Self>, at: Timestamp) -> HandshakeContext {
        let mut context = self.context(at);
        let der = &self.device.chain[0];
        let leaf = CertificateFacts::parse(der).unwrap();
        let chain = VerifiedChain::verify(&self.anchors(), None, leaf, der, &self.device.chain[1..], at);
        context.verdict = Some(Ok(chain.unwrap()));
        context.possession = Possession::Proven;
        context.leaf_der = Some(der.as_ref().into());
        context
    }

    /// What rustls keeps: something, the certificates, something.
    fn plain(&self) -> Vec<u8> {
        let list: Vec<u8> = self
            .device
            .chain
            .iter()
            .flat_map(|der| {
                let length = u32::try_from(der.len()).unwrap().to_be_bytes();
                [&length[1..], der.as_ref()].concat()
            })
            .collect();
        let length = u32::try_from(list.len()).unwrap().to_be_bytes();
        [
            b"version, suite, secret".as_slice(),
            &length[1..],
            &list,
            b"the rest",
        ]
        .concat()
    }
}

fn producer_with(keys: &Arc<TicketKeys>, listener: &str, settings: TicketSettings) -> DeviceTickets {
    DeviceTickets::new(listener.into(), keys.clone(), settings, Arc::default())
}

fn producer() -> DeviceTickets {
    let keys = Arc::new(TicketKeys::in_memory(now()));
    producer_with(&keys, LISTENER, TicketSettings::default())
}

fn encrypt(producer: &DeviceTickets, context: HandshakeContext, plain: &[u8]) -> Option<Vec<u8>> {
    let mut lent = Some(Box::new(context));
    lend(&mut lent, || producer.encrypt(plain))
}

fn decrypt(
    producer: &DeviceTickets,
    context: HandshakeContext,
    ticket: &[u8],
) -> (Option<Vec<u8>>, HandshakeContext) {
    let mut lent = Some(Box::new(context));
    let plain = lend(&mut lent, || producer.decrypt(ticket));
    (plain, *lent.unwrap())
}

fn why(producer: &DeviceTickets, context: HandshakeContext, ticket: &[u8]) -> Decline {
    let (plain, context) = decrypt(producer, context, ticket);
    assert_eq!(plain, None);
    assert!(context.resumed.is_none());
    context.declined.unwrap()
}

#[test]
fn a_ticket_brings_back_what_was_proven_and_when() {
    let (world, producer, at) = (World::new(), producer(), now());
    let ticket = encrypt(&producer, world.proven(at), &world.plain()).unwrap();
    let later = at.plus(hours(2));
    let (plain, mut context) = decrypt(&producer, world.context(later), &ticket);
    assert_eq!(plain, Some(world.plain()));
    let resumed = context.resumed.as_ref().unwrap();
    assert_eq!((resumed.proven_at, resumed.chain_length), (at, 2));
    assert_eq!(resumed.chain.intermediates(), 1);

    // The next ticket, of the resumed session, goes back to the same handshake.
    assert_eq!(context.verdict.take().map(|_| ()), None);
    let mut lent = Some(Box::new(context));
    let next = lend(&mut lent, || {
        let next = producer.encrypt(&world.plain());
        assert_eq!(u64::from(producer.lifetime()), hours(22).as_secs());
        next
    });
    let (_, context) = decrypt(&producer, world.context(at.plus(hours(23))), &next.unwrap());
    assert_eq!(context.resumed.unwrap().proven_at, at);
}

#[test]
fn every_reason_to_decline() {
    let (world, producer, at) = (World::new(), producer(), now());
    let ticket = encrypt(&producer, world.proven(at), &world.plain()).unwrap();
    let context = || world.context(at.plus(hours(1)));
    assert!(decrypt(&producer, context(), &ticket).0.is_some());

    // Not one byte of it may be another, and none may be missing.
    for n in 0..ticket.len() {
        let mut tampered = ticket.clone();
        tampered[n] ^= 1;
        let expected = match n {
            0 => Decline::Malformed,
            1..9 => Decline::UnknownKey,
            _ => Decline::Unopened,
        };
        assert_eq!(why(&producer, context(), &tampered), expected, "{n}");
    }
    for n in 0..ticket.len() {
        assert!(decrypt(&producer, context(), &ticket[..n]).0.is_none());
    }
    assert_eq!(
        why(&producer, context(), &vec![1; TICKET_BYTES_MAX + 1]),
        Decline::Malformed
    );

    // Keys: of nobody, of another listener.
    let strangers = producer_with(
        &Arc::new(TicketKeys::in_memory(at)),
        LISTENER,
        TicketSettings::default(),
    );
    assert_eq!(why(&strangers, context(), &ticket), Decline::UnknownKey);
    let keys = Arc::new(TicketKeys::in_memory(at));
    let [here, there] =
        [LISTENER, "others"].map(|name| producer_with(&keys, name, TicketSettings::default()));
    let other = encrypt(&here, world.proven(at), &world.plain()).unwrap();
    assert!(decrypt(&here, context(), &other).0.is_some());
    assert_eq!(why(&there, context(), &other), Decline::Unopened);

    // Tenant, off switch, TLS version.
    let mut asking = context();
    asking.asked = Some(TenantId::new("another").unwrap());
    assert_eq!(why(&producer, asking, &ticket), Decline::OtherTenant);
    let mut asking = context();
    asking.asked = Some(tenant());
    assert!(decrypt(&producer, asking, &ticket).0.is_some());
    let off = TicketSettings {
        tenants_off: vec![tenant()],
        ..TicketSettings::default()
    };
    assert_eq!(
        why(&producer_with(&keys, LISTENER, off), context(), &other),
        Decline::Off
    );
    let mut older = context();
    older.version = TicketVersion::Tls12;
    assert_eq!(why(&producer, older, &ticket), Decline::TlsVersion);
    let mut older = world.proven(at);
    older.version = TicketVersion::Tls12;
    let of_tls12 = encrypt(&producer, older, &world.plain()).unwrap();
    assert_eq!(why(&producer, context(), &of_tls12), Decline::TlsVersion);

    // Time.
    assert_eq!(
        why(&producer, world.context(at.plus(hours(24))), &ticket),
        Decline::Age
    );
    assert_eq!(
        why(
            &producer,
            world.context(at.minus(Duration::from_secs(1))),
            &ticket
        ),
        Decline::ClockBehind
    );

    // Facts: any other generation, be it older or newer; a state; nothing known.
    let original = world.state.lock().clone();
    let changed = |change: &dyn Fn(&mut State)| {
        *world.state.lock() = original.clone();
        change(&mut world.state.lock());
        let declined = why(&producer, context(), &ticket);
        *world.state.lock() = original.clone();
        declined
    };
    for generation in [0, 4, 6, u64::MAX] {
        assert_eq!(changed(&|s| s.authority = generation), Decline::AuthorityChanged);
        assert_eq!(
            changed(&|s| s.credential = Some((CredentialState::Active, generation))),
            Decline::CredentialChanged
        );
    }
    for state in [AnchorState::Unproven, AnchorState::Retired, AnchorState::Revoked] {
        assert_eq!(changed(&|s| s.anchor = state), Decline::AuthorityChanged);
    }
    for state in CredentialState::ALL
        .iter()
        .filter(|s| **s != CredentialState::Active)
    {
        assert_eq!(
            changed(&|s| s.credential = Some((*state, 7))),
            Decline::CredentialChanged
        );
    }
    assert_eq!(changed(&|s| s.credential = None), Decline::CredentialChanged);

    // Many at once.
    let mut tried = context();
    tried.tickets_tried = TRIED_MAX;
    assert_eq!(why(&producer, tried, &ticket), Decline::TooMany);

    // Each was counted, and outside of a connection nothing is opened or made.
    let declines = producer.counts_for_test().declines();
    for reason in [
        "malformed",
        "unknown-key",
        "unopened",
        "other-tenant",
        "tls-version",
        "age",
        "clock-behind",
        "authority-changed",
        "credential-changed",
        "too-many",
    ] {
        assert!(declines.contains_key(reason), "{reason}: {declines:?}");
    }
    assert_eq!(producer.decrypt(&ticket), None);
    assert_eq!(producer.encrypt(&world.plain()), None);
}

#[test]
fn a_path_that_does_not_hold_now_declines() {
    let at = now();
    let ca = Ca::root("tickets", None);
    let short = Leaf {
        days: (-1, 1),
        ..Leaf::named("d1")
    };
    let world = Arc::new(World {
        device: ca.issue(&short, &[]),
        ca,
        state: World::new().state.lock().clone().into(),
    });
    let producer = producer();
    let eve = at.plus(hours(23));
    let mut lent = Some(Box::new(world.proven(eve)));
    let ticket = lend(&mut lent, || {
        let ticket = producer.encrypt(&world.plain()).unwrap();
        // A ticket is not said to outlive the certificate.
        assert!(producer.lifetime() <= 3660);
        ticket
    });
    assert!(decrypt(&producer, world.context(eve), &ticket).0.is_some());
    assert_eq!(
        why(&producer, world.context(eve.plus(hours(2))), &ticket),
        Decline::Chain
    );
}

#[test]
fn what_may_not_be_resumed_gets_no_ticket() {
    let (world, producer, at) = (World::new(), producer(), now());
    let plain = world.plain();
    assert!(
        encrypt(&producer, world.context(at), &plain).is_none(),
        "nothing proven"
    );
    let mut unproven = world.proven(at);
    unproven.possession = Possession::Unproven;
    assert!(encrypt(&producer, unproven, &plain).is_none(), "no possession");
    let mut denied = world.proven(at);
    denied.verdict = Some(Err(countersign_policy::DenialCode::UnknownCa.into()));
    assert!(encrypt(&producer, denied, &plain).is_none(), "refused");
    assert!(
        encrypt(&producer, world.proven(at), b"without the certificates").is_none(),
        "no certificates in it"
    );
    let large = [plain.clone(), vec![0; TICKET_BYTES_MAX]].concat();
    assert!(
        encrypt(&producer, world.proven(at), &large).is_none(),
        "too large"
    );
    for state in CredentialState::ALL
        .iter()
        .filter(|s| **s != CredentialState::Active)
    {
        world.state.lock().credential = Some((*state, 7));
        assert!(encrypt(&producer, world.proven(at), &plain).is_none(), "{state}");
    }
    world.state.lock().credential = None;
    assert!(encrypt(&producer, world.proven(at), &plain).is_none(), "unknown");
    let withheld = &producer.counts_for_test().withheld;
    assert_eq!(withheld.load(Ordering::Relaxed), 11);
}

#[test]
fn facts_are_read_back_and_nothing_else_is() {
    let facts = TicketFacts {
        version: TicketVersion::Tls12,
        proven_at: Timestamp::from_unix_ms(1_795_000_000_123),
        fingerprint: Fingerprint::of(b"leaf"),
        credential: Generation(u64::MAX),
        authority: AuthorityId::new(&"a".repeat(AuthorityId::MAX_BYTES)).unwrap(),
        authority_generation: Generation(3),
        path: countersign_identity::PathDigest::assertion([9; 32]),
        chain_at: 77,
    };
    let mut bytes = Vec::new();
    facts.encode(&mut bytes);
    assert_eq!(bytes.len(), TicketFacts::BYTES);
    assert_eq!(TicketFacts::decode(&bytes), Some(facts));
    for n in 0..bytes.len() {
        assert_eq!(TicketFacts::decode(&bytes[..n]), None);
    }
    for (at, byte) in [(0, 2), (1, 4), (50, 0), (50, 65), (51, 0)] {
        let mut other = bytes.clone();
        other[at] = byte;
        assert_eq!(TicketFacts::decode(&other), None, "{at}");
    }
    // Lengths that lie.
    assert!(certificates(&[0, 0, 9, 0, 0, 1, 7], 0).is_none());
    assert!(certificates(&[0, 0, 4, 0, 0, 9, 7], 0).is_none());
    assert!(certificates(&[0, 0, 0], 0).is_none());
    assert!(certificates(&[], 7).is_none());
    assert_eq!(
        certificates(&[0, 0, 4, 0, 0, 1, 7, 8], 0),
        Some((&[7][..], vec![]))
    );
    assert_eq!(find_chain(&[7, 7], &[7]), None);
}

#[test]
fn keys_survive_rotate_and_are_made_anew_when_they_are_lost() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ticket.keys");
    let (at, listener) = (now(), Arc::<str>::from(LISTENER));
    let open = |at| TicketKeys::open(path.clone(), hours(12), 3, at);
    let (keys, faults) = open(at);
    assert!(faults.is_empty(), "{faults:?}");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let sealed = keys.seal(&listener, &tenant(), b"body").unwrap();
    let good = Ok((tenant(), b"body".to_vec()));
    assert_eq!(keys.unseal(&listener, &sealed), good);

    // A restart.
    let (again, faults) = open(at.plus(hours(1)));
    assert!(faults.is_empty(), "{faults:?}");
    assert_eq!(again.unseal(&listener, &sealed), good);
    // Two rotations keep it, the third forgets it, on disk too.
    let mut rotated_at = at;
    for n in 1..=3 {
        rotated_at = at.plus(hours(12 * n));
        again.rotate(rotated_at).unwrap();
        again.rotate(rotated_at).unwrap();
        assert_eq!(again.unseal(&listener, &sealed).is_ok(), n < 3, "{n}");
        assert_ne!(
            again.seal(&listener, &tenant(), b"body").unwrap()[1..9],
            sealed[1..9]
        );
    }
    assert_eq!(
        open(rotated_at).0.unseal(&listener, &sealed),
        Err(Decline::UnknownKey)
    );

    let newest = open(rotated_at).0.seal(&listener, &tenant(), b"body").unwrap();
    let kept = std::fs::read(&path).unwrap();
    // A clock that was far ahead left a key from the future: it is replaced, and still opens.
    let (behind, faults) = open(at);
    assert!(faults.is_empty(), "{faults:?}");
    assert!(behind.unseal(&listener, &newest).is_ok());
    assert_ne!(
        behind.seal(&listener, &tenant(), b"body").unwrap()[1..9],
        newest[1..9]
    );
    // Damaged in any way, cut off, or read by others: new keys, and it is told.
    for n in 0..kept.len() {
        let mut damaged = kept.clone();
        damaged[n] ^= 0x10;
        std::fs::write(&path, &damaged).unwrap();
        let (keys, faults) = open(rotated_at);
        assert!(
            matches!(faults[..], [KeyFault::Damaged { .. }]),
            "{n}: {faults:?}"
        );
        assert_eq!(keys.unseal(&listener, &newest), Err(Decline::UnknownKey), "{n}");
    }
    std::fs::write(&path, &kept[..kept.len() / 2]).unwrap();
    assert!(matches!(open(rotated_at).1[..], [KeyFault::Damaged { .. }]));
    std::fs::write(&path, &kept).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let (keys, faults) = open(rotated_at);
    assert!(
        matches!(faults[..], [KeyFault::Exposed { mode: 0o640, .. }]),
        "{faults:?}"
    );
    assert_eq!(keys.unseal(&listener, &newest), Err(Decline::UnknownKey));
    assert!(
        open(rotated_at).1.is_empty(),
        "and what was made anew is kept for its owner"
    );

    // A folder that takes nothing: they work, for as long as the process lives.
    let nowhere = folder.path().join("missing").join("ticket.keys");
    let (keys, faults) = TicketKeys::open(nowhere, hours(12), 3, at);
    assert!(
        matches!(faults[..], [KeyFault::Io { what: "write", .. }]),
        "{faults:?}"
    );
    let sealed = keys.seal(&listener, &tenant(), b"body").unwrap();
    assert_eq!(keys.unseal(&listener, &sealed), good);
}

#[test]
fn each_listener_and_tenant_has_a_key_of_its_own() {
    let keys = TicketKeys::in_memory(now());
    let [one, two] = ["one", "two"].map(Arc::<str>::from);
    let sealed = keys.seal(&one, &tenant(), b"body").unwrap();
    assert_eq!(keys.unseal(&two, &sealed), Err(Decline::Unopened));
    // What is sealed for one tenant, under the name of another.
    let other = keys
        .seal(&one, &TenantId::new("other").unwrap(), b"body")
        .unwrap();
    let tenant_end = 21 + 32 + 16;
    let crossed = [&other[..tenant_end], &sealed[tenant_end..]].concat();
    assert_eq!(keys.unseal(&one, &crossed), Err(Decline::Unopened));
    // Neither tenant nor body can be read off it.
    assert!(!sealed.windows(3).any(|w| w == b"own"));
    assert!(!sealed.windows(4).any(|w| w == b"body"));
}

proptest::proptest! {
    #[test]
    fn no_bytes_of_a_stranger_are_a_ticket_and_none_panic(
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..600),
        at in 0_usize..700,
    ) {
        static KEYS: std::sync::OnceLock<TicketKeys> = std::sync::OnceLock::new();
        let keys = KEYS.get_or_init(|| TicketKeys::in_memory(now()));
        let listener = Arc::<str>::from(LISTENER);
        proptest::prop_assert!(keys.unseal(&listener, &bytes).is_err());
        // With the front of a real one.
        let mut forged = keys.seal(&listener, &tenant(), b"body").unwrap();
        forged.truncate(69);
        forged.extend(&bytes);
        proptest::prop_assert!(keys.unseal(&listener, &forged).is_err());
        // What only we can have written is read with the same care.
        let _ = TicketFacts::decode(&bytes);
        let _ = certificates(&bytes, at);
        let _ = find_chain(&bytes, bytes.get(at..).unwrap_or(&[7]));
    }
}
