//! A restored registry is told from the one that went on, and learns from it what had ended.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use countersign_factory::{ProfileKind, RevocationReason, Revoked};
use countersign_identity::{
    AuthorityId, CertificateFacts, Clock, DeviceId, Fingerprint, Generation, TenantId, Timestamp,
};
use countersign_policy::claim::AllowList;
use countersign_policy::facts::CredentialKind;
use countersign_policy::renewal_lane::{LaneKeys, RenewalLane};
use countersign_policy::{CredentialState, Custody, FactSource, LifecycleMove, LifecycleState};
use countersign_registry::{
    Actor, BackwardClock, ClaimProof, ClaimRequester, ExpiredRequester, IssueRequest, IssuedHere,
    LedgerLimits, Move, NewClaim, NewCredential, NewDevice, ProfileChoice, Registry, RegistryError,
    RegistryFacts, Requester, Revocation,
};

struct Moved(AtomicI64);

impl Clock for Moved {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(self.0.load(Ordering::Relaxed))
    }
}

const START: i64 = 1_800_000_000_000;

fn clock(ms: i64) -> Arc<Moved> {
    Arc::new(Moved(AtomicI64::new(ms)))
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

fn create(path: &Path, ms: i64) -> Registry {
    Registry::create_with_clock(path, LedgerLimits::default(), clock(ms)).unwrap()
}

fn add(registry: &Registry, name: &str) {
    let new = NewDevice {
        id: id(name),
        model: None,
        groups: vec![],
        state: LifecycleState::Active,
        authority: None,
    };
    registry.add_device(actor(), tenant(), new).unwrap();
}

fn go(registry: &Registry, name: &str, attempted: LifecycleMove) {
    registry
        .move_device(actor(), tenant(), id(name), attempted, String::new())
        .unwrap();
}

fn generation(registry: &Registry, name: &str) -> Generation {
    registry.facts().device(&tenant(), &id(name)).unwrap().generation
}

/// A copy of a backup: its registry, at a time.
fn copied(backup: &Path, to: &Path, ms: i64) -> Registry {
    std::fs::create_dir(to).unwrap();
    for name in countersign_registry::DATABASES {
        std::fs::copy(backup.join(name), to.join(name)).unwrap();
    }
    Registry::open_with_clock(to, LedgerLimits::default(), clock(ms)).unwrap()
}

/// The same in its new epoch.
fn restored(backup: &Path, facts: &RegistryFacts, to: &Path, ms: i64) -> Registry {
    let registry = copied(backup, to, ms);
    let made = Timestamp::from_unix_ms(START);
    registry
        .begin_epoch(actor(), facts.clone(), made, BackwardClock::Refuse)
        .unwrap();
    registry
}

/// Issues a certificate to a device.
fn issue(registry: &Registry, name: &str, serial: u64) -> Fingerprint {
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.serial_number = Some(rcgen::SerialNumber::from(serial));
    let key = rcgen::KeyPair::generate().unwrap();
    let der = params.self_signed(&key).unwrap().der().to_vec();
    let certificate = CertificateFacts::parse(&der).unwrap();
    issue_to(registry, name, Requester::Operator, certificate, der).unwrap()
}

/// One for a key of its own, with its dates.
fn certificate(name: &str, from: i64, to: i64) -> (CertificateFacts, Vec<u8>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let date = |ms: i64| time::OffsetDateTime::from_unix_timestamp(ms / 1000).unwrap();
    (params.not_before, params.not_after) = (date(from), date(to));
    let der = params.self_signed(&key).unwrap().der().to_vec();
    (CertificateFacts::parse(&der).unwrap(), der)
}

/// The certificate that the request is answered with.
fn issue_to(
    registry: &Registry,
    name: &str,
    requester: Requester,
    certificate: CertificateFacts,
    der: Vec<u8>,
) -> Result<Fingerprint, RegistryError> {
    let asked = IssueRequest {
        attestation: None,
        tenant: tenant(),
        device: id(name),
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
            certificate,
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
    let issued = registry.issue(actor(), asked, mint)?;
    Ok(Fingerprint::of(&issued.value.certificate))
}

#[test]
fn what_is_in_use_goes_before_what_a_new_epoch_issued() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(path("old")).unwrap();
    std::fs::create_dir_all(path("backup")).unwrap();
    let old = create(&path("old"), START);
    add(&old, "d1");
    let in_use = issue(&old, "d1", 1 << 40);
    old.confirm_credential(actor(), in_use).unwrap();
    let facts = old
        .copy_to(&path("backup"), actor(), serde_json::json!({}))
        .unwrap();
    let new = restored(&path("backup"), &facts, &path("new"), START + 1);
    issue(&new, "d1", (1 << 40) + 1);
    let mut found = Vec::new();
    new.live_devices(&tenant(), Timestamp::from_unix_ms(START + 1), |d| {
        found.push(d.credential);
    })
    .unwrap();
    assert_eq!(found, [Some(in_use)]);
}

#[test]
fn no_generation_of_a_time_that_the_backup_does_not_know_equals_one_of_now() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(path("old")).unwrap();
    std::fs::create_dir_all(path("backup")).unwrap();
    let old = create(&path("old"), START);
    add(&old, "d1");
    let common = generation(&old, "d1");
    let facts = old
        .copy_to(&path("backup"), actor(), serde_json::json!({}))
        .unwrap();
    assert_eq!((facts.epoch, facts.devices), (1, 1));
    // The old one goes on.
    let mut seen = vec![];
    for _ in 0..5 {
        for attempted in [LifecycleMove::Suspend, LifecycleMove::Resume] {
            go(&old, "d1", attempted);
            seen.push(generation(&old, "d1"));
        }
    }
    // The same backup is restored twice, a millisecond apart, and both go on as the old one did.
    for (n, ms) in [(1, START + 1), (2, START + 2)] {
        let new = restored(&path("backup"), &facts, &path(&format!("new{n}")), ms);
        assert_eq!(generation(&new, "d1"), common, "what both know is the same");
        assert_eq!(new.epoch().unwrap().epoch, 2);
        for _ in 0..5 {
            for attempted in [LifecycleMove::Suspend, LifecycleMove::Resume] {
                go(&new, "d1", attempted);
                let g = generation(&new, "d1");
                assert!(!seen.contains(&g), "{g:?} was there before");
                seen.push(g);
            }
        }
        assert_eq!(
            new.verify_audit().unwrap().unwrap(),
            facts.audit_entries as u64 + 11
        );
    }
    // And a restore of a restore.
    let again = Registry::open_with_clock(&path("new2"), LedgerLimits::default(), clock(START + 3));
    assert_eq!(
        again.unwrap().epoch().unwrap().restored_from.unwrap()["made"],
        START
    );
}

#[test]
fn a_clock_that_is_behind_the_backup_is_refused_or_accepted_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(path("old")).unwrap();
    std::fs::create_dir_all(path("backup")).unwrap();
    let old = create(&path("old"), START);
    add(&old, "d1");
    let facts = old
        .copy_to(&path("backup"), actor(), serde_json::json!({}))
        .unwrap();
    let first = |name: &str| {
        let to = path(name);
        std::fs::create_dir(&to).unwrap();
        std::fs::copy(path("backup").join("registry.db"), to.join("registry.db")).unwrap();
        let registry =
            Registry::open_with_clock(&to, LedgerLimits::default(), clock(START - 86_400_000)).unwrap();
        let begin = |clock| {
            let made = Timestamp::from_unix_ms(START);
            registry.begin_epoch(actor(), facts.clone(), made, clock)
        };
        let refused = begin(BackwardClock::Refuse).unwrap_err();
        assert!(matches!(refused, RegistryError::ClockBehind { .. }), "{refused}");
        assert_eq!(registry.epoch().unwrap().epoch, 1);
        let first = begin(BackwardClock::Accept).unwrap().value.first_revision;
        registry.minting_time().unwrap();
        first
    };
    assert_ne!(first("a"), first("b"));
}

#[test]
fn what_had_ended_since_the_backup_is_told_and_ends_here_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(path("old")).unwrap();
    std::fs::create_dir_all(path("backup")).unwrap();
    let old = create(&path("old"), START);
    for name in ["suspended", "gone", "good", "resumed"] {
        add(&old, name);
    }
    go(&old, "resumed", LifecycleMove::Suspend);
    let facts = old
        .copy_to(&path("backup"), actor(), serde_json::json!({}))
        .unwrap();
    go(&old, "suspended", LifecycleMove::Suspend);
    go(&old, "gone", LifecycleMove::Decommission);
    go(&old, "resumed", LifecycleMove::Resume);
    add(&old, "later");
    go(&old, "later", LifecycleMove::Decommission);
    // Stations, claims and batches as they are kept, three known to the backup, each ended since; and a station of later.
    let rows = |path: &Path, stations: &[(&str, &str)], claim: &str, batch: &str| {
        let db = rusqlite::Connection::open(path.join("registry.db")).unwrap();
        db.pragma_update(None, "foreign_keys", false).unwrap();
        for (id, state) in stations {
            db.execute(
                &format!(
                    "INSERT OR REPLACE INTO stations VALUES ('{id}', 'default', 'ca', 'B', '{state}', '{{}}', x'00', x'00',
                     x'{0}', x'{0}', '{id}5e71a1', 0, 1, 0, iif('{state}' = 'revoked', 7, NULL), 1, 1, 1)",
                    if *id == "s1" { "01" } else { "02" }
                ),
                [],
            )
            .unwrap();
        }
        db.execute_batch(&format!(
            "INSERT OR REPLACE INTO claims (tenant, id, groups, expires, created, revoked)
             VALUES ('default', 'c1', '[]', 9, 1, {claim});
             INSERT OR REPLACE INTO batches (tenant, id, model, profile, groups, devices_start, id_pattern, quota, state,
             revision, created) VALUES ('default', 'b1', 'm', 'p', '[]', 'active', '*', 5, '{batch}', 1, 1);"
        ))
        .unwrap();
    };
    rows(&path("backup"), &[("s1", "granted")], "NULL", "open");
    rows(
        &path("old"),
        &[("s1", "revoked"), ("s2", "revoked")],
        "8",
        "closed",
    );
    let ca = AuthorityId::new("ca").unwrap();
    let number = old.next_list_number(&ca).unwrap().value + 1;
    assert_eq!(old.next_list_number(&ca).unwrap().value, number);
    drop(old);

    let new = restored(&path("backup"), &facts, &path("new"), START + 1);
    let newer = new.newer_in_registry(&path("old").join("registry.db")).unwrap();
    let told: Vec<_> = newer
        .devices
        .iter()
        .map(|d| (d.id.as_str(), d.is.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            ("gone", "decommissioned"),
            ("later", "decommissioned"),
            ("suspended", "suspended")
        ]
    );
    assert_eq!(newer.devices[1].was, None);
    let told: Vec<_> = newer
        .ends
        .iter()
        .map(|e| (e.kind.as_str(), e.id.as_str()))
        .collect();
    assert_eq!(told, [("batch", "b1"), ("claim", "c1"), ("station", "s1")]);
    let told: Vec<_> = newer
        .revoked
        .iter()
        .map(|r| (r.serial.as_str(), r.known))
        .collect();
    assert_eq!(told, [("s25e71a1", false)]);
    // A list tells of a station too; one that is told twice is told once.
    let stolen = [Revoked {
        serial: "s15e71a1".into(),
        at: Timestamp::from_unix_ms(7),
        reason: RevocationReason::KeyCompromise,
    }];
    let by_list = new.newer_in_list(&ca, 1, &stolen).unwrap();
    assert_eq!(by_list.ends, newer.ends[2..]);
    let mut newer = newer;
    newer.merge(by_list);
    assert_eq!((newer.ends.len(), newer.revoked.len()), (3, 1));
    let list = [Revoked {
        serial: "abcd".into(),
        at: Timestamp::from_unix_ms(START),
        reason: RevocationReason::KeyCompromise,
    }];
    let mut all = newer;
    all.merge(new.newer_in_list(&ca, number + 7, &list).unwrap());
    assert!(!all.revoked[1].known);
    new.apply_newer(actor(), all).unwrap();
    drop(new);

    let new = Registry::open_with_clock(&path("new"), LedgerLimits::default(), clock(START + 2)).unwrap();
    let state = |name: &str| new.facts().device(&tenant(), &id(name)).unwrap().state;
    assert_eq!(state("suspended"), LifecycleState::Suspended);
    assert_eq!(state("gone"), LifecycleState::Decommissioned);
    assert_eq!(state("later"), LifecycleState::Decommissioned);
    assert_eq!(state("good"), LifecycleState::Active);
    // Whoever was let in again since is not: nobody is admitted on a guess.
    assert_eq!(state("resumed"), LifecycleState::Suspended);
    // A certificate that this registry never saw stays revoked for whoever asks, and numbers go on growing.
    let revoked = new.revoked_by(&ca, Timestamp::from_unix_ms(0)).unwrap();
    let serials: Vec<_> = revoked.iter().map(|r| r.serial.as_str()).collect();
    assert_eq!(serials, ["abcd", "s15e71a1", "s25e71a1"]);
    let db = rusqlite::Connection::open(path("new").join("registry.db")).unwrap();
    let ended: (String, Option<i64>, String) = db
        .query_row(
            "SELECT (SELECT state FROM stations WHERE id = 's1'), (SELECT revoked FROM claims), (SELECT state FROM batches)",
            [],
            |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)),
        )
        .unwrap();
    assert_eq!(ended, ("revoked".into(), Some(8), "closed".into()));
    assert_eq!(
        new.certificate_status(&ca, "abcd").unwrap(),
        Some(Some(list[0].clone()))
    );
    assert!(new.next_list_number(&ca).unwrap().value > number + 7);
    assert!(new.newer_in_list(&ca, 0, &list).unwrap().revoked.is_empty());
    new.verify_audit().unwrap().unwrap();
}

#[test]
fn who_is_kept_out_in_the_same_state_is_not_let_in_by_an_end_that_was_lifted_since() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(path("old")).unwrap();
    std::fs::create_dir_all(path("backup")).unwrap();
    let old = create(&path("old"), START);
    let at = |seconds: i64| Some(Timestamp::from_unix_ms(START + seconds * 1000));
    let go_until = |name: &str, attempted, until| {
        let wanted = Move {
            until,
            ..Move::new(attempted, "")
        };
        old.move_device_as(actor(), tenant(), id(name), wanted).unwrap();
    };
    for name in ["lifted", "longer", "same", "apart", "active"] {
        add(&old, name);
    }
    for name in ["lifted", "longer", "same"] {
        go_until(name, LifecycleMove::Suspend, at(60));
    }
    go_until("apart", LifecycleMove::Quarantine, at(60));
    let facts = old
        .copy_to(&path("backup"), actor(), serde_json::json!({}))
        .unwrap();
    for name in ["lifted", "longer"] {
        go(&old, name, LifecycleMove::Resume);
    }
    go_until("lifted", LifecycleMove::Suspend, None);
    go_until("longer", LifecycleMove::Suspend, at(7200));
    // Now a release leads to a suspension, and by itself nowhere.
    go(&old, "apart", LifecycleMove::Release);
    go_until("apart", LifecycleMove::Suspend, at(9000));
    go_until("apart", LifecycleMove::Quarantine, None);
    go_until("active", LifecycleMove::Suspend, at(7200));
    drop(old);

    let new = restored(&path("backup"), &facts, &path("new"), START + 1);
    let newer = new.newer_in_registry(&path("old").join("registry.db")).unwrap();
    let told: Vec<_> = newer.devices.iter().map(|d| d.id.as_str()).collect();
    assert_eq!(told, ["active", "apart", "lifted", "longer"]);
    new.apply_newer(actor(), newer).unwrap();
    drop(new);

    let open = |ms| Registry::open_with_clock(&path("new"), LedgerLimits::default(), clock(ms)).unwrap();
    let new = open(START + 100_000);
    assert_eq!(new.end_time_boxes().unwrap().value, 1);
    let state = |r: &Registry, name: &str| r.facts().device(&tenant(), &id(name)).unwrap().state;
    assert_eq!(state(&new, "same"), LifecycleState::Active);
    for name in ["lifted", "longer", "active"] {
        assert_eq!(state(&new, name), LifecycleState::Suspended, "{name}");
    }
    assert_eq!(state(&new, "apart"), LifecycleState::Quarantined);
    go(&new, "apart", LifecycleMove::Release);
    assert_eq!(state(&new, "apart"), LifecycleState::Suspended);
    drop(new);
    let new = open(START + 10_000_000);
    new.end_time_boxes().unwrap();
    assert_eq!(state(&new, "lifted"), LifecycleState::Suspended);
    for name in ["longer", "active", "apart"] {
        assert_eq!(state(&new, name), LifecycleState::Active, "{name}");
    }
}

fn claim_request(secret: &str) -> Requester {
    Requester::Claim(ClaimRequester {
        claim: "line".parse().unwrap(),
        proof: ClaimProof::Secret(Fingerprint::of(secret.as_bytes())),
    })
}

fn add_claim(registry: &Registry, name: &str, secret: &str) {
    let new = NewClaim {
        id: name.parse().unwrap(),
        proof: ClaimProof::Secret(Fingerprint::of(secret.as_bytes())),
        allow: AllowList::Pattern {
            pattern: "CL-*".parse().unwrap(),
            quota: 9,
        },
        profile: None,
        model: None,
        groups: vec![],
        lifetime: Duration::from_secs(86_400),
    };
    registry.add_claim(actor(), tenant(), new).unwrap();
}

fn refusal(result: Result<Fingerprint, RegistryError>) -> String {
    match result {
        Err(RegistryError::Claim(refusal)) => refusal.code().into(),
        Err(RegistryError::Lane(refusal)) => refusal.code().into(),
        other => format!("{other:?}"),
    }
}

#[test]
fn nobody_becomes_a_device_that_enrolled_since_the_backup() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(path("old")).unwrap();
    std::fs::create_dir_all(path("backup")).unwrap();
    let old = create(&path("old"), START);
    add_claim(&old, "line", "secret");
    add_claim(&old, "over", "other");
    old.revoke_claim(actor(), tenant(), "over".parse().unwrap(), "over".into())
        .unwrap();
    // An expired one, whose device comes by the renewal lane.
    let (expired, _) = certificate("expired", START - 2 * 86_400_000, START - 86_400_000);
    let new = NewDevice {
        id: id("expired"),
        model: None,
        groups: vec![],
        state: LifecycleState::Active,
        authority: None,
    };
    let known = vec![(new, Some(NewCredential::brought(expired.clone())))];
    old.import_devices(actor(), tenant(), known).unwrap();
    let by_lane = || {
        Requester::Expired(ExpiredRequester {
            certificate: expired.fingerprint,
            wanted: CredentialKind::Operational,
            lane: RenewalLane::open(30, LaneKeys::New).unwrap(),
        })
    };
    let facts = old
        .copy_to(&path("backup"), actor(), serde_json::json!({}))
        .unwrap();
    let (k1, der) = certificate("CL-1", START, START + 86_400_000);
    issue_to(&old, "CL-1", claim_request("secret"), k1.clone(), der.clone()).unwrap();
    let new_key = |name: &str| certificate(name, START, START + 86_400_000);
    let (k2, k2_der) = new_key("CL-1");
    let refused = issue_to(&old, "CL-1", claim_request("secret"), k2, k2_der);
    assert_eq!(refusal(refused), "claim.enrolled");
    let (next, next_der) = new_key("expired");
    issue_to(&old, "expired", by_lane(), next, next_der).unwrap();
    drop(old);

    for compared in [false, true] {
        let to = path(if compared { "compared" } else { "blind" });
        let new = copied(&path("backup"), &to, START + 1);
        let newer = new.newer_in_registry(&path("old").join("registry.db")).unwrap();
        let made = Timestamp::from_unix_ms(START);
        let epoch = new
            .begin_epoch(actor(), facts.clone(), made, BackwardClock::Refuse)
            .unwrap()
            .value;
        assert_eq!(epoch.claims_revoked, ["default/line"]);
        if compared {
            new.apply_newer(actor(), newer).unwrap();
        }
        let (k3, k3_der) = new_key("CL-1");
        let refused = issue_to(&new, "CL-1", claim_request("secret"), k3.clone(), k3_der.clone());
        assert_eq!(refusal(refused), "claim.revoked", "{compared}");
        let claims = new.claims(&tenant(), Timestamp::from_unix_ms(START + 1)).unwrap();
        let line = claims.iter().find(|c| c.id.to_string() == "line").unwrap();
        assert_eq!(
            (line.state.as_str(), line.enrolled),
            ("revoked", u64::from(compared))
        );
        new.verify_audit().unwrap().unwrap();
        if !compared {
            continue;
        }
        // By a new claim neither; the device itself, by its own key, does.
        add_claim(&new, "line-2", "anew");
        let by = |secret: &str| {
            Requester::Claim(ClaimRequester {
                claim: "line-2".parse().unwrap(),
                proof: ClaimProof::Secret(Fingerprint::of(secret.as_bytes())),
            })
        };
        let refused = issue_to(&new, "CL-1", by("anew"), k3.clone(), k3_der.clone());
        assert_eq!(refusal(refused), "claim.enrolled");
        issue_to(&new, "CL-1", by("anew"), k1.clone(), der.clone()).unwrap();
        // Once it is known again, all is as ever: its key was lost, an operator revokes it.
        let all = Revocation::Device(tenant(), id("CL-1"));
        new.revoke(actor(), all, RevocationReason::Superseded, String::new())
            .unwrap();
        issue_to(&new, "CL-1", by("anew"), k3, k3_der).unwrap();
        // And the lane is used.
        let (other, other_der) = new_key("expired");
        let refused = issue_to(&new, "expired", by_lane(), other, other_der);
        assert_eq!(refusal(refused), "lane.used");
    }
}
