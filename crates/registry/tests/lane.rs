//! Lane and claims under contention: what may happen once happens once, whoever is first; and it is on disk.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use countersign_factory::{ProfileKind, RevocationReason};
use countersign_identity::{CertificateFacts, DeviceId, Fingerprint, TenantId};
use countersign_policy::claim::{AllowList, ClaimId};
use countersign_policy::facts::CredentialKind;
use countersign_policy::renewal_lane::{LaneKeys, RenewalLane};
use countersign_policy::{ClaimRefusal, CredentialState, Custody, LaneRefusal, LifecycleState};
use countersign_registry::{
    Actor, ClaimProof, ClaimRequester, ExpiredRequester, IssueOutcome, IssueRequest, IssuedHere,
    LedgerLimits, NewClaim, NewCredential, NewDevice, ProfileChoice, Registry, RegistryError, Requester,
    Revocation,
};

fn actor() -> Actor {
    Actor("test".into())
}

fn tenant() -> TenantId {
    TenantId::default_tenant()
}

fn open(path: &Path) -> Arc<Registry> {
    Arc::new(Registry::create(path, LedgerLimits::default()).unwrap())
}

/// Days from now to notAfter.
fn certificate(name: &str, days: i64) -> CertificateFacts {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let now = time::OffsetDateTime::now_utc();
    (params.not_before, params.not_after) =
        (now - time::Duration::days(90), now + time::Duration::days(days));
    CertificateFacts::parse(params.self_signed(&key).unwrap().der()).unwrap()
}

fn issue(
    registry: &Registry,
    device: &str,
    requester: Requester,
    certificate: CertificateFacts,
) -> Result<IssueOutcome, RegistryError> {
    let request = IssueRequest {
        attestation: None,
        tenant: tenant(),
        device: DeviceId::new(device).unwrap(),
        key: certificate.public_key_sha256,
        profile: "operational".into(),
        kind: ProfileKind::Operational,
        choice: ProfileChoice::First,
        authority: None,
        demands_new_key: false,
        idempotency_key: None,
        requester,
    };
    let mint = move |_| {
        Ok(NewCredential {
            kind: CredentialKind::Operational,
            state: CredentialState::Issued,
            custody: Custody::Unknown,
            authority: Some("default-devices".parse().unwrap()),
            issued: Some(IssuedHere {
                certificate: certificate.fingerprint.as_bytes().to_vec(),
                profile: "operational".into(),
                batch: None,
            }),
            certificate,
        })
    };
    registry.issue(actor(), request, mint).map(|c| c.value)
}

#[test]
fn of_many_who_come_by_one_expired_certificate_one_gets_the_next() {
    let place = tempfile::tempdir().unwrap();
    let registry = open(place.path());
    let expired = certificate("d1", -3);
    let new = NewDevice {
        id: DeviceId::new("d1").unwrap(),
        model: None,
        groups: vec![],
        state: LifecycleState::Active,
        authority: None,
    };
    let known = vec![(new, Some(NewCredential::brought(expired.clone())))];
    registry.import_devices(actor(), tenant(), known).unwrap();
    let requester = Requester::Expired(ExpiredRequester {
        certificate: expired.fingerprint,
        wanted: CredentialKind::Operational,
        lane: RenewalLane::open(30, LaneKeys::New).unwrap(),
    });
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let (registry, requester, next) = (registry.clone(), requester.clone(), certificate("d1", 90));
            std::thread::spawn(move || (issue(&registry, "d1", requester, next.clone()), next))
        })
        .collect();
    let answers: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    let (given, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|(answer, _)| answer.is_ok());
    assert_eq!(given.len(), 1, "{given:?}");
    for (answer, _) in refused {
        // What the first one was given is the newer one by now, and the lane is used: the latter is told.
        assert!(
            matches!(answer, Err(RegistryError::Lane(LaneRefusal::Used))),
            "{answer:?}"
        );
    }
    // After a restart too, and for the same key the same comes again.
    drop(registry);
    let registry = open(place.path());
    let (_, next) = given.into_iter().next().unwrap();
    let again = issue(&registry, "d1", requester.clone(), next.clone()).unwrap();
    assert!(again.repeated && again.certificate == next.fingerprint.as_bytes());
    let other = issue(&registry, "d1", requester, certificate("d1", 90));
    assert!(
        matches!(other, Err(RegistryError::Lane(LaneRefusal::Used))),
        "{other:?}"
    );
}

#[test]
fn a_quota_holds_against_any_number_at_once() {
    let place = tempfile::tempdir().unwrap();
    let registry = open(place.path());
    let claim: ClaimId = "line".parse().unwrap();
    let proof = ClaimProof::Secret(Fingerprint::of(b"secret"));
    let new = NewClaim {
        id: claim.clone(),
        proof,
        allow: AllowList::Pattern {
            pattern: "SN-*".parse().unwrap(),
            quota: 5,
        },
        profile: None,
        model: Some("m1".into()),
        groups: vec![],
        lifetime: Duration::from_secs(3600),
    };
    registry.add_claim(actor(), tenant(), new).unwrap();
    let requester = Requester::Claim(ClaimRequester {
        claim: claim.clone(),
        proof,
    });
    // Each id is asked for twice, with two keys.
    let threads: Vec<_> = (0..24)
        .map(|n| {
            let (registry, requester) = (registry.clone(), requester.clone());
            std::thread::spawn(move || {
                let name = format!("SN-{}", n / 2);
                issue(&registry, &name, requester, certificate(&name, 90)).map(|_| name)
            })
        })
        .collect();
    let mut enrolled = std::collections::BTreeSet::new();
    for answer in threads.into_iter().map(|t| t.join().unwrap()) {
        match answer {
            Ok(name) => assert!(enrolled.insert(name), "twice"),
            Err(RegistryError::Claim(ClaimRefusal::Quota | ClaimRefusal::Enrolled)) => {}
            Err(e) => panic!("{e}"),
        }
    }
    assert_eq!(enrolled.len(), 5);
    let minted = registry.minted_on(&tenant(), &claim).unwrap();
    let devices: std::collections::BTreeSet<_> = minted.iter().map(|m| m.device.to_string()).collect();
    assert_eq!(devices, enrolled);
    // Whoever was refused left no device behind.
    assert_eq!(registry.facts().device_count(), 5);
}

#[test]
fn a_claim_counts_each_device_once_and_knows_what_it_enrolled_before_it_counted() {
    let place = tempfile::tempdir().unwrap();
    let registry = open(place.path());
    let claim: ClaimId = "line".parse().unwrap();
    let proof = ClaimProof::Secret(Fingerprint::of(b"secret"));
    let new = NewClaim {
        id: claim.clone(),
        proof,
        allow: AllowList::Pattern {
            pattern: "SN-*".parse().unwrap(),
            quota: 2,
        },
        profile: None,
        model: None,
        groups: vec![],
        lifetime: Duration::from_secs(3600),
    };
    registry.add_claim(actor(), tenant(), new).unwrap();
    let requester = Requester::Claim(ClaimRequester {
        claim: claim.clone(),
        proof,
    });
    let enrol = |registry: &Registry, name: &str| {
        let certificate = certificate(name, 90);
        let fingerprint = certificate.fingerprint;
        issue(registry, name, requester.clone(), certificate).map(|_| fingerprint)
    };
    let first = enrol(&registry, "SN-0").unwrap();
    // A device whose certificate was revoked comes again: it is counted already.
    let whose = Revocation::Credential(first);
    registry
        .revoke(actor(), whose, RevocationReason::Superseded, String::new())
        .unwrap();
    enrol(&registry, "SN-0").unwrap();
    enrol(&registry, "SN-1").unwrap();
    let enrolled = |registry: &Registry| {
        let now = countersign_identity::Timestamp::from_unix_ms(0);
        registry.claims(&tenant(), now).unwrap()[0].enrolled
    };
    assert_eq!(enrolled(&registry), 2);
    let is_full = |registry: &Registry| {
        let refused = enrol(registry, "SN-2").unwrap_err();
        assert!(
            matches!(refused, RegistryError::Claim(ClaimRefusal::Quota)),
            "{refused}"
        );
    };
    is_full(&registry);
    drop(registry);
    // As a database of before the count has it, and then what brings it up to date.
    let db = rusqlite::Connection::open(place.path().join("registry.db")).unwrap();
    db.execute_batch(
        "ALTER TABLE claims DROP COLUMN enrolled; ALTER TABLE station_journals DROP COLUMN begun;",
    )
    .unwrap();
    db.execute_batch(include_str!("../src/migrations/registry_010.sql"))
        .unwrap();
    drop(db);
    let registry = open(place.path());
    assert_eq!(enrolled(&registry), 2);
    is_full(&registry);
}
