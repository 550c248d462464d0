//! Nothing is minted while the clock is behind the newest time that is known to have been, or not known to be right.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use countersign_factory::station::Terms;
use countersign_factory::{Batch, Profile, ProfileKind, RevocationReason};
use countersign_identity::{
    AuthorityId, BatchId, CertificateFacts, Clock, DeviceId, StationId, Synchronisation, TenantId, Timestamp,
};
use countersign_policy::facts::CredentialKind;
use countersign_policy::{CredentialState, Custody, LifecycleState};
use countersign_registry::{
    Actor, AuthorityMove, BulkIssue, BulkItem, ClockRules, EndedCursor, IssueOutcome, IssueRequest,
    IssuedHere, LedgerLimits, MintedStation, NewAuthority, NewCredential, NewDevice, Origin, Overlap,
    ProfileChoice, Registry, RegistryError, Requester, Revocation, SystemClock,
};

/// A clock that the test moves.
struct Moved {
    now: AtomicI64,
    synchronised: AtomicBool,
}

const START: i64 = 1_800_000_000_000;
const HOUR: i64 = 3_600_000;

impl Moved {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            now: AtomicI64::new(START),
            synchronised: AtomicBool::new(true),
        })
    }

    fn set(&self, ms: i64) {
        self.now.store(ms, Ordering::Relaxed);
    }
}

impl Clock for Moved {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(self.now.load(Ordering::Relaxed))
    }

    fn synchronisation(&self) -> Synchronisation {
        if self.synchronised.load(Ordering::Relaxed) {
            Synchronisation::Synchronised
        } else {
            Synchronisation::Unsynchronised
        }
    }
}

fn actor() -> Actor {
    Actor("test".into())
}

fn open(path: &Path, clock: &Arc<Moved>) -> Registry {
    Registry::create_with_clock(path, LedgerLimits::default(), clock.clone()).unwrap()
}

fn certificate(name: &str, serial: u64) -> (CertificateFacts, Vec<u8>) {
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.serial_number = Some(serial.into());
    let der = params
        .self_signed(&rcgen::KeyPair::generate().unwrap())
        .unwrap()
        .der()
        .to_vec();
    (CertificateFacts::parse(&der).unwrap(), der)
}

fn issue(registry: &Registry, name: &str, serial: u64) -> Result<IssueOutcome, RegistryError> {
    issue_of(registry, name, certificate(name, serial))
}

fn issue_of(
    registry: &Registry,
    name: &str,
    (facts, der): (CertificateFacts, Vec<u8>),
) -> Result<IssueOutcome, RegistryError> {
    let device = DeviceId::new(name).unwrap();
    let new = NewDevice {
        id: device.clone(),
        model: None,
        groups: vec![],
        state: LifecycleState::Active,
        authority: None,
    };
    let _ = registry.add_device(actor(), TenantId::default_tenant(), new);
    let request = IssueRequest {
        attestation: None,
        tenant: TenantId::default_tenant(),
        device,
        key: facts.public_key_sha256,
        profile: "operational".into(),
        kind: ProfileKind::Operational,
        choice: ProfileChoice::First,
        authority: None,
        demands_new_key: false,
        idempotency_key: None,
        requester: Requester::Operator,
    };
    let mint = move |_| {
        Ok(NewCredential {
            certificate: facts,
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
    };
    registry.issue(actor(), request, mint).map(|c| c.value)
}

fn minted(registry: &Registry) -> (usize, usize) {
    let audited = registry.audit(1000).unwrap();
    let issued = audited.iter().filter(|e| e.action == "credential.issue").count();
    (registry.facts().credential_count(), issued)
}

#[test]
fn nothing_is_minted_while_the_clock_is_behind() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Moved::new();
    let registry = open(folder.path(), &clock);
    let first = certificate("d1", 1);
    issue_of(&registry, "d1", first.clone()).unwrap();
    assert_eq!(minted(&registry), (1, 1));

    clock.set(START - 2 * HOUR - 5 * 60_000);
    let refused = issue(&registry, "d2", 2).unwrap_err();
    let RegistryError::ClockBehind { mark, .. } = &refused else {
        panic!("{refused}");
    };
    assert_eq!(*mark, Timestamp::from_unix_ms(START));
    let text = refused.to_string();
    for part in [
        "2 h 5 min later",
        "hint: set the clock",
        "countersign clock reset",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert!(registry.minting_time().is_err());
    assert_eq!(minted(&registry), (1, 1));
    assert_eq!(registry.minting_refused()[0], ("clock-behind", 2));
    // What was minted before may be asked for again: nothing new is made.
    assert!(issue_of(&registry, "d1", first).unwrap().repeated);
    // Whoever keeps the time with a clock that is behind does not lower the mark.
    registry.keep_time().unwrap();
    assert!(issue(&registry, "d2", 2).is_err());
    let view = registry.clock_view();
    assert_eq!(view.behind_ms, 7_500_000);
    assert!(view.refusal.unwrap().contains("behind"));

    // The mark outlives the process, and the clock may be a little behind it.
    drop(registry);
    let registry = open(folder.path(), &clock);
    assert!(matches!(
        issue(&registry, "d2", 2),
        Err(RegistryError::ClockBehind { .. })
    ));
    clock.set(START - 60_001);
    assert!(issue(&registry, "d2", 2).is_err());
    clock.set(START - 60_000);
    issue(&registry, "d2", 2).unwrap();
    registry.set_clock_rules(ClockRules {
        tolerance: Duration::ZERO,
        ..ClockRules::default()
    });
    assert!(issue(&registry, "d3", 3).is_err());
    clock.set(START);
    issue(&registry, "d3", 3).unwrap();
    assert_eq!(minted(&registry), (3, 3));
}

#[test]
fn nothing_is_minted_in_a_batch_while_the_clock_is_behind() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Moved::new();
    let registry = open(folder.path(), &clock);
    let batch = Batch {
        id: BatchId::new("B-1").unwrap(),
        tenant: TenantId::default_tenant(),
        model: "pump".into(),
        profile: "operational".into(),
        groups: vec![],
        devices_start: Default::default(),
        authority: None,
        id_pattern: "SN-*".parse().unwrap(),
        quota: 10,
        window: Default::default(),
    };
    registry.add_batch(actor(), batch.clone()).unwrap();
    let issue = |wanted: &[(&str, &(CertificateFacts, Vec<u8>))]| {
        let request = BulkIssue {
            tenant: batch.tenant.clone(),
            batch: batch.id.clone(),
            demands_new_key: false,
            replace: false,
            items: wanted
                .iter()
                .map(|(device, c)| BulkItem {
                    device: DeviceId::new(device).unwrap(),
                    key: c.0.public_key_sha256,
                })
                .collect(),
        };
        let certificates: Vec<_> = wanted.iter().map(|(_, c)| (*c).clone()).collect();
        let mint = move |n: usize, _| {
            let (certificate, der): (CertificateFacts, Vec<u8>) = certificates[n].clone();
            Ok(NewCredential {
                certificate,
                kind: CredentialKind::Operational,
                state: CredentialState::Issued,
                custody: Custody::Unknown,
                authority: Some(AuthorityId::new("ca").unwrap()),
                issued: Some(IssuedHere {
                    certificate: der,
                    profile: "operational".into(),
                    batch: Some(BatchId::new("B-1").unwrap()),
                }),
            })
        };
        registry.issue_in_batch(actor(), request, mint).unwrap().value
    };
    let (first, second) = (certificate("SN-1", 1), certificate("SN-2", 2));
    // The mark is moved by it.
    clock.set(START + HOUR);
    assert!(issue(&[("SN-1", &first)])[0].is_ok());
    clock.set(START);
    let answers = issue(&[("SN-1", &first), ("SN-2", &second)]);
    assert!(answers[0].as_ref().unwrap().repeated);
    assert!(
        matches!(answers[1], Err(RegistryError::ClockBehind { .. })),
        "{:?}",
        answers[1]
    );
    assert_eq!(registry.facts().credential_count(), 1);
    assert_eq!(registry.facts().device_count(), 1);
    clock.set(START + HOUR);
    assert!(issue(&[("SN-2", &second)])[0].is_ok());
}

#[test]
fn no_station_is_made_while_the_clock_is_behind() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Moved::new();
    let registry = open(folder.path(), &clock);
    let tenant = TenantId::default_tenant();
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(1));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let key = rcgen::KeyPair::generate().unwrap();
    let factory = AuthorityId::new("factory").unwrap();
    let new = NewAuthority {
        id: factory.clone(),
        tenant: tenant.clone(),
        origin: Origin::Factory,
        rule: Default::default(),
        admission: Default::default(),
        certificate: params.self_signed(&key).unwrap().der().to_vec(),
    };
    registry.register_authority(actor(), new).unwrap();
    let batch = Batch {
        id: BatchId::new("B-1").unwrap(),
        tenant: tenant.clone(),
        model: "pump".into(),
        profile: Profile::default().name,
        groups: vec![],
        devices_start: Default::default(),
        authority: None,
        id_pattern: "SN-*".parse().unwrap(),
        quota: 10,
        window: Default::default(),
    };
    registry.add_batch(actor(), batch).unwrap();
    let now = Timestamp::from_unix_ms(START);
    let terms = Terms {
        station: StationId::new("line-1").unwrap(),
        tenant,
        batch: BatchId::new("B-1").unwrap(),
        batch_ids: "SN-*".parse().unwrap(),
        ids: "SN-000..SN-009".parse().unwrap(),
        quota: 3,
        from: now,
        to: now.plus(Duration::from_secs(86_400)),
        profile: Profile::default(),
    };
    let station = rcgen::CertificateParams::new(vec![]).unwrap();
    let station_key = rcgen::KeyPair::generate().unwrap();
    let station = station.self_signed(&station_key).unwrap().der().to_vec();
    let key = CertificateFacts::parse(&station).unwrap().public_key_sha256;
    let add = || {
        let certificate = station.clone();
        let mint = move |_| {
            Ok(MintedStation {
                certificate,
                grant_file: b"grant".to_vec(),
            })
        };
        registry.add_station(
            actor(),
            factory.clone(),
            terms.clone(),
            key,
            Overlap::Refused,
            mint,
        )
    };
    clock.set(START + HOUR);
    registry.keep_time().unwrap();
    clock.set(START);
    let refused = add().unwrap_err();
    assert!(matches!(refused, RegistryError::ClockBehind { .. }), "{refused}");
    clock.set(START + HOUR);
    assert_eq!(add().unwrap().value, b"grant");
    // What was made is told again, whatever the clock says.
    clock.set(START);
    assert_eq!(add().unwrap().value, b"grant");
}

#[test]
fn the_mark_moves_with_the_timer_too() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Moved::new();
    let registry = open(folder.path(), &clock);
    clock.set(START + HOUR);
    registry.keep_time().unwrap();
    drop(registry);
    clock.set(START);
    let registry = open(folder.path(), &clock);
    assert!(matches!(
        registry.minting_time(),
        Err(RegistryError::ClockBehind { mark, .. }) if mark.unix_ms() == START + HOUR
    ));
}

#[test]
fn a_clock_that_was_ahead_by_mistake_is_put_right_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Moved::new();
    let registry = open(folder.path(), &clock);
    clock.set(START + 10 * 365 * 24 * HOUR);
    issue(&registry, "d1", 1).unwrap();
    clock.set(START + HOUR);
    assert!(issue(&registry, "d2", 2).is_err());
    let refused = registry.reset_clock(actor(), "  ".into()).unwrap_err();
    assert!(matches!(refused, RegistryError::Refused(_)), "{refused}");
    assert!(issue(&registry, "d2", 2).is_err());

    let before = registry
        .reset_clock(actor(), "the battery was flat".into())
        .unwrap()
        .value;
    assert_eq!(before.unix_ms(), START + 10 * 365 * 24 * HOUR);
    issue(&registry, "d2", 2).unwrap();
    let audited = registry.audit(10).unwrap();
    let reset = audited.iter().find(|e| e.action == "clock.reset").unwrap();
    assert!(reset.detail.contains("the battery was flat"), "{}", reset.detail);
    // It is on disk, and from here on the mark holds again.
    drop(registry);
    let registry = open(folder.path(), &clock);
    issue(&registry, "d3", 3).unwrap();
    clock.set(START - HOUR);
    assert!(issue(&registry, "d4", 4).is_err());
}

#[test]
fn an_unsynchronised_clock_mints_only_if_it_may() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Moved::new();
    let registry = open(folder.path(), &clock);
    clock.synchronised.store(false, Ordering::Relaxed);
    issue(&registry, "d1", 1).unwrap();
    registry.set_clock_rules(ClockRules {
        require_sync: true,
        ..ClockRules::default()
    });
    let refused = issue(&registry, "d2", 2).unwrap_err();
    assert!(
        matches!(refused, RegistryError::ClockUnsynchronised(_))
            && refused.to_string().contains("hint: let a time service set it"),
        "{refused}"
    );
    assert_eq!(minted(&registry), (1, 1));
    assert_eq!(registry.minting_refused()[1], ("clock-unsynchronised", 1));
    clock.synchronised.store(true, Ordering::Relaxed);
    issue(&registry, "d2", 2).unwrap();
}

#[test]
fn a_clock_that_cannot_tell_is_not_taken_for_a_right_one() {
    struct Mute;
    impl Clock for Mute {
        fn now(&self) -> Timestamp {
            SystemClock.now()
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let registry =
        Registry::create_with_clock(folder.path(), LedgerLimits::default(), Arc::new(Mute)).unwrap();
    registry.set_clock_rules(ClockRules {
        require_sync: true,
        ..ClockRules::default()
    });
    let refused = registry.minting_time().unwrap_err();
    assert!(refused.to_string().contains("cannot tell"), "{refused}");
}

/// The kernel is asked for real, whatever it says here.
#[test]
fn the_machine_s_clock_says_whether_it_is_synchronised() {
    let says = SystemClock.synchronisation();
    assert!(
        ["synchronised", "unsynchronised", "unknown"].contains(&says.name()),
        "{says:?}"
    );
    assert!(SystemClock.now().unix_s() > 1_700_000_000);
}

#[test]
fn an_authority_never_gives_out_a_serial_number_twice() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(folder.path(), &Moved::new());
    issue(&registry, "d1", 7).unwrap();
    let refused = issue(&registry, "d2", 7).unwrap_err();
    assert!(
        refused.to_string().contains("was given out before") && !refused.is_storage(),
        "{refused}"
    );
    assert_eq!(minted(&registry), (1, 1));
    issue(&registry, "d2", 8).unwrap();
}

#[test]
fn what_has_ended_is_told_in_the_order_of_the_changes_whatever_the_clock_says() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Moved::new();
    let registry = open(folder.path(), &clock);
    let ca = AuthorityId::new("ca").unwrap();
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let new = NewAuthority {
        id: ca.clone(),
        tenant: TenantId::default_tenant(),
        origin: Origin::Managed,
        rule: Default::default(),
        admission: Default::default(),
        certificate: params
            .self_signed(&rcgen::KeyPair::generate().unwrap())
            .unwrap()
            .der()
            .to_vec(),
    };
    registry.register_authority(actor(), new).unwrap();
    let certificates: Vec<_> = (1..=6)
        .map(|n| {
            let certificate = certificate(&format!("d{n}"), n);
            issue_of(&registry, &format!("d{n}"), certificate.clone()).unwrap();
            certificate.0
        })
        .collect();
    let revoke = |n: usize| {
        let what = Revocation::Credential(certificates[n].fingerprint);
        registry
            .revoke(actor(), what, RevocationReason::Unspecified, String::new())
            .unwrap();
    };
    let mut cursor = EndedCursor::default();
    let mut next = |limit| {
        let found = registry.ended_after(&ca, &cursor, limit).unwrap();
        if let Some(last) = found.last() {
            cursor = EndedCursor {
                revision: last.revision,
                serial: last.serial.clone(),
            };
        }
        found.into_iter().map(|e| e.serial).collect::<Vec<_>>()
    };
    revoke(0);
    assert_eq!(next(10), [certificates[0].serial.clone()]);
    // An hour back, as after a correction: by the clock this one ended before the one that was told last.
    clock.set(START - HOUR);
    revoke(1);
    assert_eq!(next(10), [certificates[1].serial.clone()]);
    assert_eq!(next(10), [""; 0], "nothing is told twice");
    // What ends with its authority ends in one change, and is still told page by page.
    registry
        .move_authority(actor(), ca.clone(), AuthorityMove::Revoke, String::new())
        .unwrap();
    let mut told = Vec::new();
    for pages in [2, 2, 0] {
        let page = next(2);
        assert_eq!(page.len(), pages);
        told.extend(page);
    }
    told.sort();
    let mut rest: Vec<_> = certificates[2..].iter().map(|c| c.serial.clone()).collect();
    rest.sort();
    assert_eq!(told, rest);
}
