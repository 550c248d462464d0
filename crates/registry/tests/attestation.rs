//! Attestations as the registry keeps them: cited once, for one key of one device, and for a while.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use countersign_factory::ProfileKind;
use countersign_factory::attest::Refusal;
use countersign_factory::destruction::Statement;
use countersign_identity::{
    AuthorityId, CertificateFacts, Clock, DeviceId, Fingerprint, Synchronisation, TenantId, Timestamp,
};
use countersign_policy::facts::CredentialKind;
use countersign_policy::{CredentialState, Custody, FactSource, LifecycleState};
use countersign_registry::{
    Actor, BackwardClock, Change, Committed, EndorsementSource, IssuanceRules, IssueOutcome, IssueRequest,
    IssuedHere, LedgerLimits, NewAttestation, NewCredential, NewDevice, ProfileChoice, Registry,
    RegistryError, Requester,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, PublicKeyData, SerialNumber};

/// A clock that the test moves.
struct Moved(AtomicI64);

const START: i64 = 1_800_000_000_000;
const MINUTE: i64 = 60_000;

impl Clock for Moved {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(self.0.load(Ordering::Relaxed))
    }

    fn synchronisation(&self) -> Synchronisation {
        Synchronisation::Synchronised
    }
}

struct World {
    registry: Registry,
    clock: Arc<Moved>,
    folder: tempfile::TempDir,
}

fn actor() -> Actor {
    Actor("test".into())
}

fn tenant() -> TenantId {
    TenantId::default_tenant()
}

fn id(text: &str) -> DeviceId {
    DeviceId::new(text).unwrap()
}

fn hash(text: &str) -> Fingerprint {
    Fingerprint::of(text.as_bytes())
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(Moved(AtomicI64::new(START)));
        let limits = LedgerLimits::default();
        let registry = Registry::create_with_clock(folder.path(), limits, clock.clone()).unwrap();
        let world = Self {
            registry,
            clock,
            folder,
        };
        world.device("d1");
        world.device("d2");
        world.trust("maker");
        world
    }

    fn device(&self, name: &str) {
        let new = NewDevice {
            id: id(name),
            model: None,
            groups: vec![],
            state: LifecycleState::Active,
            authority: None,
        };
        self.registry.add_device(actor(), tenant(), new).unwrap();
    }

    fn trust(&self, name: &str) {
        let id = AuthorityId::new(name).unwrap();
        self.registry
            .add_endorsement_authority(actor(), tenant(), id, ca(name))
            .unwrap();
    }

    fn later(&self, ms: i64) {
        self.clock.0.fetch_add(ms, Ordering::Relaxed);
    }

    fn keep(&self, device: &str, ek: &str, key: &KeyPair, nonce: u8) -> Result<(), RegistryError> {
        let new = NewAttestation {
            tenant: tenant(),
            device: id(device),
            nonce: [nonce; 32],
            token: Fingerprint::of(&[nonce]),
            public_key: fingerprint(key),
            endorsement_key: hash(ek),
            endorsed_by: Some(AuthorityId::new("maker").unwrap()),
            evidence: serde_json::json!({ "statement": "…" }),
        };
        self.registry.keep_attestation(new).map(|_| ())
    }

    fn request(
        &self,
        device: &str,
        key: &KeyPair,
        attestation: Option<u8>,
        requester: Requester,
    ) -> IssueRequest {
        IssueRequest {
            tenant: tenant(),
            device: id(device),
            key: fingerprint(key),
            profile: "operational".into(),
            kind: ProfileKind::Operational,
            choice: ProfileChoice::First,
            authority: None,
            demands_new_key: false,
            idempotency_key: None,
            requester,
            attestation: attestation.map(|nonce| Fingerprint::of(&[nonce])),
        }
    }

    fn issue(
        &self,
        device: &str,
        key: &KeyPair,
        attestation: Option<u8>,
        requester: Requester,
    ) -> Result<Committed<IssueOutcome>, RegistryError> {
        let request = self.request(device, key, attestation, requester);
        let (der, name) = (certificate(device, key), device.to_owned());
        self.registry.issue(actor(), request, move |_| {
            Ok(NewCredential {
                certificate: CertificateFacts::parse(&der).map_err(|e| format!("{name}: {e}"))?,
                kind: CredentialKind::Operational,
                state: CredentialState::Issued,
                custody: Custody::Unknown,
                authority: Some(AuthorityId::new("ca").unwrap()),
                issued: Some(IssuedHere {
                    certificate: der,
                    profile: "operational".into(),
                    batch: None,
                }),
            })
        })
    }

    fn custody(&self, outcome: &Committed<IssueOutcome>) -> Custody {
        let fingerprint = Fingerprint::of(&outcome.value.certificate);
        self.registry.facts().credential(&fingerprint).unwrap().custody
    }
}

fn fingerprint(key: &KeyPair) -> Fingerprint {
    Fingerprint::of(&key.subject_public_key_info())
}

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

fn serial() -> SerialNumber {
    static SERIAL: AtomicI64 = AtomicI64::new(1 << 40);
    SerialNumber::from(SERIAL.fetch_add(1, Ordering::Relaxed).cast_unsigned())
}

/// Valid for a day around the test's time.
fn certificate(name: &str, key: &KeyPair) -> Vec<u8> {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(serial());
    let start = time::OffsetDateTime::from_unix_timestamp(START / 1000).unwrap();
    (params.not_before, params.not_after) = (start - time::Duration::HOUR, start + time::Duration::DAY);
    params.self_signed(key).unwrap().der().to_vec()
}

fn ca(name: &str) -> Vec<u8> {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.self_signed(&key()).unwrap().der().to_vec()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, RegistryError>, expected: Refusal) {
    match result {
        Err(RegistryError::Attestation(refused)) => assert_eq!(refused.refusal, expected),
        other => panic!("{other:?}"),
    }
}

const OPERATOR: Requester = Requester::Operator;

#[test]
fn custody_is_the_keys_and_follows_it_to_the_next_certificate() {
    let world = World::new();
    let (first, second) = (key(), key());
    world.keep("d1", "tpm", &first, 1).unwrap();
    let issued = world.issue("d1", &first, Some(1), OPERATOR).unwrap();
    assert_eq!(world.custody(&issued), Custody::Attested);
    // In use, and after its renewal point, the same key gets another certificate: it is where it was.
    let in_use = Fingerprint::of(&issued.value.certificate);
    world.registry.confirm_credential(actor(), in_use).unwrap();
    world.registry.set_issuance_rules(IssuanceRules {
        replay_window: Duration::from_secs(3600),
        ..IssuanceRules::default()
    });
    world.later(20 * 60 * MINUTE);
    let renewed = world.issue("d1", &first, None, OPERATOR).unwrap();
    assert!(!renewed.value.repeated);
    assert_eq!(world.custody(&renewed), Custody::Attested);
    // Another key is unknown until it is attested itself. Then whoever is connected by it is judged anew.
    let other = world.issue("d1", &second, None, OPERATOR).unwrap();
    assert_eq!(world.custody(&other), Custody::Unknown);
    let before = world
        .registry
        .facts()
        .credential(&Fingerprint::of(&other.value.certificate))
        .unwrap();
    world.keep("d1", "tpm", &second, 2).unwrap();
    let again = world.issue("d1", &second, Some(2), OPERATOR).unwrap();
    assert!(again.value.repeated);
    assert_eq!(world.custody(&again), Custody::Attested);
    assert_eq!(
        again.changes,
        [Change::Credential(tenant(), id("d1"), before.fingerprint)]
    );
    let after = world.registry.facts().credential(&before.fingerprint).unwrap();
    assert_ne!(after.generation, before.generation);
    // All of it is there after opening again.
    let World { registry, folder, .. } = world;
    drop(registry);
    let registry = Registry::open(folder.path(), LedgerLimits::default()).unwrap();
    assert_eq!(registry.facts().credential(&before.fingerprint).unwrap(), after);
    let evidence = registry.attestations(&tenant(), &id("d1")).unwrap();
    assert_eq!(evidence.len(), 2);
    assert_eq!(evidence[0].credential, before.fingerprint);
}

#[test]
fn it_is_cited_once_and_in_time() {
    let world = World::new();
    let (first, second) = (key(), key());
    world.keep("d1", "tpm", &first, 1).unwrap();
    // The challenge was finished.
    refused(world.keep("d1", "tpm", &first, 1), Refusal::Replayed);
    refused(world.issue("d1", &second, Some(1), OPERATOR), Refusal::KeyDiffers);
    refused(world.issue("d2", &first, Some(1), OPERATOR), Refusal::Unknown);
    refused(world.issue("d1", &first, Some(9), OPERATOR), Refusal::Unknown);
    world.issue("d1", &first, Some(1), OPERATOR).unwrap();
    refused(world.issue("d1", &second, Some(1), OPERATOR), Refusal::Replayed);
    refused(world.keep("d1", "tpm", &first, 1), Refusal::Replayed);
    // A lost answer is answered again, for as long as it could have been asked at all.
    assert!(
        world
            .issue("d1", &first, Some(1), OPERATOR)
            .unwrap()
            .value
            .repeated
    );
    world.later(61 * MINUTE);
    refused(world.issue("d1", &first, Some(1), OPERATOR), Refusal::Replayed);

    world.keep("d1", "tpm", &second, 2).unwrap();
    world.later(61 * MINUTE);
    refused(world.issue("d1", &second, Some(2), OPERATOR), Refusal::Expired);
    // Whoever begins again gives up the one before.
    world.keep("d1", "tpm", &second, 3).unwrap();
    world.keep("d1", "tpm", &second, 4).unwrap();
    refused(world.issue("d1", &second, Some(3), OPERATOR), Refusal::Expired);
    // It is not forgotten with it that its challenge was finished.
    refused(world.keep("d1", "tpm", &second, 3), Refusal::Replayed);
    world.issue("d1", &second, Some(4), OPERATOR).unwrap();
    // What nobody cited is forgotten in the end; the evidence stays.
    world.later(130 * MINUTE);
    world.keep("d1", "tpm", &second, 2).unwrap();
    assert_eq!(
        world.registry.attestations(&tenant(), &id("d1")).unwrap().len(),
        2
    );
}

#[test]
fn what_fails_uses_nothing_up() {
    let world = World::new();
    let first = key();
    world.keep("d1", "tpm", &first, 1).unwrap();
    let request = world.request("d1", &first, Some(1), OPERATOR);
    let failed = world
        .registry
        .issue(actor(), request, |_| Err("the CA is away".into()));
    assert!(matches!(failed, Err(RegistryError::Refused(_))), "{failed:?}");
    assert_eq!(world.registry.attestations(&tenant(), &id("d1")).unwrap(), []);
    assert_eq!(world.registry.endorsement_keys(&tenant(), &id("d1")).unwrap(), []);
    let issued = world.issue("d1", &first, Some(1), OPERATOR).unwrap();
    assert_eq!(world.custody(&issued), Custody::Attested);
}

#[test]
fn a_tpm_is_in_one_device() {
    let world = World::new();
    let (first, second) = (key(), key());
    // Not yet known: two devices may both begin, and the first certificate decides.
    world.keep("d1", "tpm", &first, 1).unwrap();
    world.issue("d1", &first, Some(1), OPERATOR).unwrap();
    refused(world.keep("d2", "tpm", &second, 2), Refusal::EkOfOtherDevice);
    let keys = world.registry.endorsement_keys(&tenant(), &id("d1")).unwrap();
    assert_eq!(keys[0].source, EndorsementSource::Attested);
    // Having learned it says not that the device may enrol by it alone.
    world.keep("d1", "tpm", &second, 3).unwrap();
    refused(
        world.issue("d1", &second, Some(3), Requester::Attested),
        Refusal::NotEnough,
    );
    world
        .registry
        .add_endorsement_key(actor(), tenant(), id("d1"), hash("tpm"))
        .unwrap();
    let issued = world.issue("d1", &second, Some(3), Requester::Attested).unwrap();
    // The answer again, and nothing new by it: not even of another profile.
    let again = world.issue("d1", &second, Some(3), Requester::Attested).unwrap();
    assert_eq!(again.value.certificate, issued.value.certificate);
    let other = world.request("d1", &second, Some(3), Requester::Attested);
    let other = IssueRequest {
        profile: "other".into(),
        ..other
    };
    let minted = world
        .registry
        .issue(actor(), other, |_| Err("it was minted".into()));
    refused(minted, Refusal::Replayed);
    refused(
        world.issue("d1", &second, None, Requester::Attested),
        Refusal::Unknown,
    );
    refused(
        world
            .registry
            .add_endorsement_key(actor(), tenant(), id("d2"), hash("tpm")),
        Refusal::EkOfOtherDevice,
    );
    // Registered for another device in between: what was begun for this one does not count.
    let third = key();
    world.keep("d1", "other", &third, 5).unwrap();
    world
        .registry
        .add_endorsement_key(actor(), tenant(), id("d2"), hash("other"))
        .unwrap();
    refused(
        world.issue("d1", &third, Some(5), OPERATOR),
        Refusal::EkOfOtherDevice,
    );
}

#[test]
fn whoever_vouched_for_a_tpm_must_do_so_still_when_it_is_cited() {
    let world = World::new();
    let maker = || AuthorityId::new("maker").unwrap();
    let (first, second) = (key(), key());
    world.keep("d1", "tpm", &first, 1).unwrap();
    world
        .registry
        .remove_endorsement_authority(actor(), tenant(), maker())
        .unwrap();
    refused(world.issue("d1", &first, Some(1), OPERATOR), Refusal::EkUnknown);
    assert_eq!(world.registry.endorsement_keys(&tenant(), &id("d1")).unwrap(), []);
    // Registered itself, it needs no maker.
    world
        .registry
        .add_endorsement_key(actor(), tenant(), id("d1"), hash("tpm"))
        .unwrap();
    let issued = world.issue("d1", &first, Some(1), OPERATOR).unwrap();
    assert_eq!(world.custody(&issued), Custody::Attested);
    // What was issued on it stays, and is answered again.
    world
        .registry
        .remove_endorsement_key(actor(), tenant(), hash("tpm"))
        .unwrap();
    assert!(
        world
            .issue("d1", &first, Some(1), OPERATOR)
            .unwrap()
            .value
            .repeated
    );
    world.trust("maker");
    world.keep("d1", "tpm", &second, 2).unwrap();
    world.issue("d1", &second, Some(2), OPERATOR).unwrap();
}

/// A device ends by its own word, if the key that says so could still let it in.
#[test]
fn a_key_that_is_out_of_force_ends_no_device() {
    let world = World::new();
    let declare = |device: &str, certificate: &[u8]| {
        let fingerprint = Fingerprint::of(certificate);
        let statement = Statement {
            tenant: tenant(),
            device: id(device),
            certificate: String::new(),
            at: world.clock.now(),
            signature: String::new(),
        };
        world
            .registry
            .declare_destruction(actor(), statement, fingerprint)
    };
    let state = |device: &str| {
        world
            .registry
            .facts()
            .device(&tenant(), &id(device))
            .unwrap()
            .state
    };
    let (old, new) = (key(), key());
    let of = |device: &str, key: &KeyPair| {
        let issued = world.issue(device, key, None, OPERATOR).unwrap();
        let fingerprint = Fingerprint::of(&issued.value.certificate);
        world.registry.confirm_credential(actor(), fingerprint).unwrap();
        issued.value.certificate
    };
    let (superseded, in_use) = (of("d1", &old), of("d1", &new));
    let other = of("d2", &key());
    // The overlap is over.
    world.registry.set_issuance_rules(IssuanceRules {
        overlap: Duration::ZERO,
        ..IssuanceRules::default()
    });
    world.later(8 * 24 * 60 * MINUTE);
    world.registry.sweep_credentials().unwrap();
    for (device, certificate) in [("d1", &superseded), ("d2", &other)] {
        let told = declare(device, certificate).unwrap_err().to_string();
        assert!(told.contains("hint: countersign device decommission"), "{told}");
        assert_eq!(state(device), LifecycleState::Active);
    }
    assert!(declare("d2", &superseded).is_err(), "of another device");
    world.later(-8 * 24 * 60 * MINUTE);
    let first = declare("d1", &in_use).unwrap();
    assert_eq!(state("d1"), LifecycleState::Decommissioned);
    // Again: the same record. Of a device that is ended, an old key's word is recorded too.
    world.later(MINUTE);
    assert_eq!(declare("d1", &in_use).unwrap().value, first.value);
    declare("d1", &superseded).unwrap();
    assert_eq!(
        world.registry.destructions(&tenant(), &id("d1")).unwrap().len(),
        2
    );
}

#[test]
fn a_restored_registry_trusts_no_tpm_that_is_trusted_no_more() {
    let world = World::new();
    let path = |name: &str| world.folder.path().join(name);
    let authority = |name: &str| AuthorityId::new(name).unwrap();
    let registry = &world.registry;
    registry
        .remove_endorsement_authority(actor(), tenant(), authority("maker"))
        .unwrap();
    for name in ["stays", "goes"] {
        registry
            .add_endorsement_authority(actor(), tenant(), authority(name), ca(name))
            .unwrap();
        registry
            .add_endorsement_key(actor(), tenant(), id("d1"), hash(name))
            .unwrap();
    }
    for name in ["backup", "new"] {
        std::fs::create_dir(path(name)).unwrap();
    }
    // Not cited yet when the backup is made: perhaps it was since.
    let first = key();
    world.keep("d1", "stays", &first, 1).unwrap();
    registry
        .copy_to(&path("backup"), actor(), serde_json::json!({}))
        .unwrap();
    registry
        .remove_endorsement_authority(actor(), tenant(), authority("goes"))
        .unwrap();
    registry
        .remove_endorsement_key(actor(), tenant(), hash("goes"))
        .unwrap();
    for name in countersign_registry::DATABASES {
        std::fs::copy(path("backup").join(name), path("new").join(name)).unwrap();
    }
    let copy: &Path = &path("later.db");
    std::fs::copy(world.folder.path().join("registry.db"), copy).unwrap();
    std::fs::copy(world.folder.path().join("registry.db-wal"), path("later.db-wal")).unwrap();
    let new = Registry::open(&path("new"), LedgerLimits::default()).unwrap();
    let newer = new.newer_in_registry(copy).unwrap();
    let told: Vec<_> = newer
        .ends
        .iter()
        .map(|e| (e.kind.as_str(), e.id.clone()))
        .collect();
    assert_eq!(
        told,
        [
            ("endorsement-authority", "goes".to_owned()),
            ("endorsement-key", hash("goes").to_string())
        ]
    );
    new.apply_newer(actor(), newer).unwrap();
    let facts = new.registry_facts().unwrap();
    let now = Timestamp::from_unix_ms(START + MINUTE);
    new.begin_epoch(actor(), facts, now, BackwardClock::Accept)
        .unwrap();
    refused(
        new.issue(actor(), world.request("d1", &first, Some(1), OPERATOR), |_| {
            Err("it was minted".into())
        }),
        Refusal::Unknown,
    );
    let authorities = new.endorsement_authorities(&tenant()).unwrap();
    assert_eq!(
        authorities.iter().map(|a| a.id.as_str()).collect::<Vec<_>>(),
        ["stays"]
    );
    let keys = new.endorsement_keys(&tenant(), &id("d1")).unwrap();
    assert_eq!(
        keys.iter().map(|k| k.fingerprint).collect::<Vec<_>>(),
        [hash("stays")]
    );
}
