//! The registry as its users see it: what is answered is on disk, what is refused changes nothing.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::Path;
use std::sync::{Arc, Mutex};

use countersign_factory::{ProfileKind, RevocationReason};
use countersign_identity::{AuthorityId, CertificateFacts, DeviceId, IdentityRule, TenantId, Timestamp};
use countersign_policy::facts::CredentialKind;
use countersign_policy::{
    Admission, ClientIdMode, CredentialState, Custody, FactSource, LifecycleMove, LifecycleState,
};
use countersign_registry::{
    Actor, Change, EndedCursor, IssuanceRules, IssueOutcome, IssueRequest, IssuedHere, LedgerLimits,
    NewAuthority, NewCredential, NewDevice, Origin, ProfileChoice, Registry, RegistryError, Requester,
    Revocation,
};

fn actor() -> Actor {
    Actor("test".into())
}

fn open(path: &Path) -> Registry {
    Registry::create(path, LedgerLimits::default()).unwrap()
}

fn tenant() -> TenantId {
    TenantId::default_tenant()
}

fn id(text: &str) -> DeviceId {
    DeviceId::new(text).unwrap()
}

fn device(text: &str) -> NewDevice {
    NewDevice {
        id: id(text),
        model: Some("m1".into()),
        groups: vec!["b".into(), "a".into()],
        state: LifecycleState::Active,
        authority: None,
    }
}

fn request(device: &str, certificate: &CertificateFacts) -> IssueRequest {
    IssueRequest {
        attestation: None,
        tenant: tenant(),
        device: id(device),
        key: certificate.public_key_sha256,
        profile: "operational".into(),
        kind: ProfileKind::Operational,
        choice: ProfileChoice::First,
        authority: None,
        demands_new_key: false,
        idempotency_key: None,
        requester: Requester::Operator,
    }
}

fn issue(
    registry: &Registry,
    device: &str,
    certificate: CertificateFacts,
) -> Result<IssueOutcome, RegistryError> {
    let asked = request(device, &certificate);
    registry
        .issue(actor(), asked, move |_| Ok(credential(certificate)))
        .map(|c| c.value)
}

fn certificate(name: &str) -> (CertificateFacts, rcgen::KeyPair) {
    let key = rcgen::KeyPair::generate().unwrap();
    (certificate_of(name, &key), key)
}

fn certificate_of(name: &str, key: &rcgen::KeyPair) -> CertificateFacts {
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    // Without it the number follows from the key, and an authority gives none out twice.
    static SERIAL: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1 << 40);
    let serial = SERIAL.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    params.serial_number = Some(rcgen::SerialNumber::from(serial));
    CertificateFacts::parse(params.self_signed(key).unwrap().der()).unwrap()
}

fn credential(certificate: CertificateFacts) -> NewCredential {
    let certificate_der = certificate.fingerprint.as_bytes().to_vec();
    NewCredential {
        certificate,
        kind: CredentialKind::Operational,
        state: CredentialState::Issued,
        custody: Custody::Unknown,
        authority: Some(AuthorityId::new("ca").unwrap()),
        issued: Some(IssuedHere {
            certificate: certificate_der,
            profile: "operational".into(),
            batch: None,
        }),
    }
}

#[test]
fn what_was_answered_is_there_after_opening_again() {
    let folder = tempfile::tempdir().unwrap();
    let (facts, _) = certificate("d1");
    let fingerprint = facts.fingerprint;
    {
        let registry = open(folder.path());
        registry.add_device(actor(), tenant(), device("d1")).unwrap();
        issue(&registry, "d1", facts).unwrap();
        registry
            .move_device(actor(), tenant(), id("d1"), LifecycleMove::Suspend, "lost".into())
            .unwrap();
        registry
            .add_host(actor(), tenant(), "Gate.Example".into())
            .unwrap();
    }
    let registry = open(folder.path());
    let facts = registry.facts();
    let d1 = facts.device(&tenant(), &id("d1")).unwrap();
    assert_eq!(d1.state, LifecycleState::Suspended);
    assert_eq!(d1.groups.iter().map(|g| &**g).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(facts.credential(&fingerprint).unwrap().device, id("d1"));
    assert_eq!(facts.tenant_by_host("GATE.example"), Some(tenant()));
    assert!(facts.policy(&tenant()).is_some());
    // tenant.add, device.add, credential.issue, device.suspend, tenant.host-add
    assert_eq!(registry.verify_audit().unwrap(), Ok(5));
}

#[test]
fn facts_and_observers_see_a_change_before_it_is_answered_and_generations_grow() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Arc::new(open(folder.path()));
    let seen: Arc<Mutex<Vec<(u64, LifecycleState)>>> = Arc::default();
    registry.add_device(actor(), tenant(), device("d1")).unwrap();
    let (facts, log) = (registry.facts().clone(), seen.clone());
    registry.on_change(move |revision, changes| {
        for change in changes {
            if let Change::Device(tenant, device) = change {
                log.lock()
                    .unwrap()
                    .push((revision, facts.device(tenant, device).unwrap().state));
            }
        }
    });
    let before = registry.facts().device(&tenant(), &id("d1")).unwrap().generation;
    let committed = registry
        .move_device(actor(), tenant(), id("d1"), LifecycleMove::Suspend, String::new())
        .unwrap();
    assert_eq!(
        *seen.lock().unwrap(),
        [(committed.revision, LifecycleState::Suspended)]
    );
    assert_ne!(
        registry.facts().device(&tenant(), &id("d1")).unwrap().generation,
        before
    );
}

#[test]
fn a_refused_change_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(folder.path());
    registry.add_device(actor(), tenant(), device("d1")).unwrap();
    let audited = registry.verify_audit().unwrap().unwrap();
    let refused = registry.move_device(actor(), tenant(), id("d1"), LifecycleMove::Release, String::new());
    assert!(matches!(refused, Err(RegistryError::Move { .. })), "{refused:?}");
    assert!(matches!(
        registry.add_device(actor(), tenant(), device("d1")),
        Err(RegistryError::Exists(_))
    ));
    let nobody = TenantId::new("nobody").unwrap();
    assert!(matches!(
        registry.add_device(actor(), nobody, device("x")),
        Err(RegistryError::NoTenant(_))
    ));
    let broken = registry.configure_tenant(
        actor(),
        tenant(),
        None,
        Some(countersign_registry::PolicyChange {
            policies: Some("permit (everything);".into()),
            ..Default::default()
        }),
    );
    assert!(matches!(broken, Err(RegistryError::Refused(_))), "{broken:?}");
    let asked = request("d1", &certificate("d1").0);
    let failed = registry.issue(actor(), asked, |_| Err("no key".into()));
    assert!(matches!(failed, Err(RegistryError::Refused(_))));
    assert_eq!(registry.verify_audit().unwrap(), Ok(audited));
    assert!(registry.credentials(&tenant(), &id("d1")).unwrap().is_empty());
}

#[test]
fn one_key_belongs_to_one_device() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(folder.path());
    for name in ["d1", "d2"] {
        registry.add_device(actor(), tenant(), device(name)).unwrap();
    }
    let (first, key) = certificate("d1");
    issue(&registry, "d1", first).unwrap();
    let refused = issue(&registry, "d2", certificate_of("d2", &key)).unwrap_err();
    assert!(
        refused.to_string().contains("registered for device d1"),
        "{refused}"
    );
}

#[test]
fn asking_twice_mints_once() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(folder.path());
    registry.add_device(actor(), tenant(), device("d1")).unwrap();
    let (first, key) = certificate("d1");
    let fingerprint = first.fingerprint;
    let minted = issue(&registry, "d1", first).unwrap();
    assert!(!minted.repeated);
    // The answer was lost, the device asks again, and again after its first use.
    let again = issue(&registry, "d1", certificate_of("d1", &key)).unwrap();
    assert!(again.repeated && again.certificate == minted.certificate);
    registry.confirm_credential(actor(), fingerprint).unwrap();
    let again = issue(&registry, "d1", certificate_of("d1", &key)).unwrap();
    assert!(again.repeated && again.certificate == minted.certificate);
    assert_eq!(registry.credentials(&tenant(), &id("d1")).unwrap().len(), 1);
    // A revoked key gets nothing more.
    let revoked = registry
        .revoke(
            actor(),
            Revocation::Credential(fingerprint),
            RevocationReason::KeyCompromise,
            String::new(),
        )
        .unwrap();
    assert_eq!(revoked.value, 1);
    let refused = issue(&registry, "d1", certificate_of("d1", &key)).unwrap_err();
    assert!(refused.to_string().contains("make a new key"), "{refused}");
}

#[test]
fn after_the_renewal_point_a_new_certificate_is_minted_unless_the_key_must_be_new() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(folder.path());
    registry.set_issuance_rules(IssuanceRules {
        replay_window: std::time::Duration::ZERO,
        ..IssuanceRules::default()
    });
    registry.add_device(actor(), tenant(), device("d1")).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let aged = |name: &str| {
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        // Without it the number follows from the key.
        params.serial_number = Some(rcgen::SerialNumber::from(name.as_bytes().to_vec()));
        let now = time::OffsetDateTime::now_utc();
        params.not_before = now - time::Duration::days(80);
        params.not_after = now + time::Duration::days(10);
        // rcgen makes it of the key; an authority of ours never gives out one twice.
        params.serial_number = Some((name.len() as u64).into());
        CertificateFacts::parse(params.self_signed(&key).unwrap().der()).unwrap()
    };
    let first = aged("d1");
    let fingerprint = first.fingerprint;
    issue(&registry, "d1", first).unwrap();
    registry.confirm_credential(actor(), fingerprint).unwrap();
    let second = aged("d1 again");
    let asked = IssueRequest {
        attestation: None,
        demands_new_key: true,
        ..request("d1", &second)
    };
    let refused = registry
        .issue(actor(), asked, |_| unreachable!("it must not be minted"))
        .unwrap_err();
    assert!(refused.to_string().contains("demands a new key"), "{refused}");
    assert!(!issue(&registry, "d1", second).unwrap().repeated);
}

#[test]
fn an_idempotency_key_is_for_one_content() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(folder.path());
    registry.add_device(actor(), tenant(), device("d1")).unwrap();
    let (first, other) = (certificate("d1").0, certificate("d1").0);
    let ask = |c: &CertificateFacts| {
        let asked = IssueRequest {
            attestation: None,
            idempotency_key: Some("k".into()),
            ..request("d1", c)
        };
        let new = credential(c.clone());
        registry.issue(actor(), asked, move |_| Ok(new)).map(|c| c.value)
    };
    assert!(!ask(&first).unwrap().repeated);
    assert!(ask(&first).unwrap().repeated);
    assert!(matches!(ask(&other), Err(RegistryError::Exists(_))));
}

/// An answer that was lost, perhaps in somebody else's hands, and is used after the one that came in its place.
#[test]
fn a_certificate_that_is_used_after_a_newer_one_has_the_overlap_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(folder.path());
    registry.set_issuance_rules(IssuanceRules {
        overlap: std::time::Duration::ZERO,
        ..IssuanceRules::default()
    });
    registry.add_device(actor(), tenant(), device("d1")).unwrap();
    let [older, newer] = [(); 2].map(|()| {
        let (facts, _) = certificate("d1");
        let fingerprint = facts.fingerprint;
        issue(&registry, "d1", facts).unwrap();
        fingerprint
    });
    registry.confirm_credential(actor(), newer).unwrap();
    registry.confirm_credential(actor(), older).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(2));
    assert_eq!(registry.sweep_credentials().unwrap().value.superseded, 1);
    let state = |f| registry.facts().credential(f).unwrap().state;
    assert_eq!(
        (state(&older), state(&newer)),
        (CredentialState::Superseded, CredentialState::Active)
    );
}

#[test]
fn a_newer_certificate_supersedes_after_the_overlap_and_an_unused_one_lapses() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(folder.path());
    registry.set_issuance_rules(IssuanceRules {
        overlap: std::time::Duration::ZERO,
        lapse_after: std::time::Duration::from_secs(3600),
        ..IssuanceRules::default()
    });
    registry.add_device(actor(), tenant(), device("d1")).unwrap();
    let mut fingerprints = Vec::new();
    for _ in 0..3 {
        let (facts, _) = certificate("d1");
        fingerprints.push(facts.fingerprint);
        issue(&registry, "d1", facts).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let state = |n: usize| registry.facts().credential(&fingerprints[n]).unwrap().state;
    registry.confirm_credential(actor(), fingerprints[0]).unwrap();
    registry.confirm_credential(actor(), fingerprints[1]).unwrap();
    let swept = registry.sweep_credentials().unwrap();
    assert_eq!((swept.value.superseded, swept.value.lapsed), (1, 0));
    assert!(swept.changes.iter().any(|c| matches!(c, Change::Credential(..))));
    assert_eq!(
        (state(0), state(1), state(2)),
        (
            CredentialState::Superseded,
            CredentialState::Active,
            CredentialState::Issued
        )
    );
    registry.set_issuance_rules(IssuanceRules {
        lapse_after: std::time::Duration::ZERO,
        ..IssuanceRules::default()
    });
    std::thread::sleep(std::time::Duration::from_millis(2));
    assert_eq!(registry.sweep_credentials().unwrap().value.lapsed, 1);
    assert_eq!(state(2), CredentialState::Lapsed);
    assert!(registry.confirm_credential(actor(), fingerprints[2]).is_err());
    // Both are on the authority's list.
    let listed = registry
        .revoked_by(&AuthorityId::new("ca").unwrap(), Timestamp::from_unix_ms(0))
        .unwrap();
    assert_eq!(listed.len(), 2);
}

#[test]
fn an_import_is_repeated_without_harm_and_names_what_it_leaves_out() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(folder.path());
    let (facts, key) = certificate("d1");
    let stolen = certificate_of("d2", &key);
    let batch = vec![
        (device("d1"), Some(credential(facts))),
        (device("d2"), Some(credential(stolen))),
        (device("d3"), None),
    ];
    let first = registry
        .import_devices(actor(), tenant(), batch.clone())
        .unwrap()
        .value;
    assert_eq!(
        (first.added, first.credentials_added, first.refused.len()),
        // The device that came with another's key is not left behind without one.
        (2, 1, 1),
        "{first:?}"
    );
    let second = registry.import_devices(actor(), tenant(), batch).unwrap().value;
    assert_eq!(
        (second.added, second.credentials_added, second.unchanged),
        (0, 0, 2),
        "{second:?}"
    );
}

#[test]
fn twenty_thousand_devices_are_imported_in_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(folder.path());
    let batch = (0..20_000)
        .map(|n| (device(&format!("dev-{n:06}")), None))
        .collect();
    let started = std::time::Instant::now();
    assert_eq!(
        registry
            .import_devices(actor(), tenant(), batch)
            .unwrap()
            .value
            .added,
        20_000
    );
    assert!(
        started.elapsed().as_secs() < 20,
        "{:?} in a debug build",
        started.elapsed()
    );
    assert_eq!(registry.facts().device_count(), 20_000);
    assert_eq!(
        registry
            .devices(&tenant(), None, Some("dev-019997"), 10)
            .unwrap()
            .len(),
        2
    );
}

#[test]
fn many_threads_share_syncs_and_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Arc::new(open(folder.path()));
    let threads: Vec<_> = (0..8)
        .map(|t| {
            let registry = registry.clone();
            std::thread::spawn(move || {
                for n in 0..25 {
                    registry
                        .add_device(actor(), tenant(), device(&format!("d-{t}-{n}")))
                        .unwrap();
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    drop(registry);
    assert_eq!(open(folder.path()).facts().device_count(), 200);
}

#[test]
fn the_data_directory_belongs_to_one_process_and_one_program() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(folder.path());
    let second = Registry::open(folder.path(), LedgerLimits::default()).unwrap_err();
    assert!(
        matches!(&second, RegistryError::InUse { pid: Some(pid), .. } if *pid == std::process::id()),
        "{second}"
    );
    drop(registry);

    let db = rusqlite::Connection::open(folder.path().join("registry.db")).unwrap();
    db.pragma_update(None, "user_version", 999).unwrap();
    drop(db);
    let newer = Registry::open(folder.path(), LedgerLimits::default()).unwrap_err();
    assert!(
        matches!(newer, RegistryError::Newer { found: 999, .. }),
        "{newer}"
    );

    for content in [
        &b"this is no database, but long enough to be taken for one at first sight"[..],
        b"",
    ] {
        let other = tempfile::tempdir().unwrap();
        std::fs::write(other.path().join("registry.db"), content).unwrap();
        if content.is_empty() {
            rusqlite::Connection::open(other.path().join("registry.db"))
                .unwrap()
                .execute_batch("CREATE TABLE t (x)")
                .unwrap();
        }
        let foreign = Registry::open(other.path(), LedgerLimits::default()).unwrap_err();
        assert!(matches!(foreign, RegistryError::Foreign(_)), "{foreign}");
    }
    let missing = Registry::open(&folder.path().join("nowhere"), LedgerLimits::default()).unwrap_err();
    assert!(
        missing.to_string().contains("hint: countersign init"),
        "{missing}"
    );
}

#[test]
fn a_changed_audit_entry_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(folder.path());
    for n in 0..5 {
        registry
            .add_device(actor(), tenant(), device(&format!("d{n}")))
            .unwrap();
    }
    drop(registry);
    let db = rusqlite::Connection::open(folder.path().join("registry.db")).unwrap();
    assert!(
        db.execute("UPDATE audit SET actor = 'nobody' WHERE seq = 3", [])
            .is_err(),
        "the table is append-only"
    );
    db.execute_batch("DROP TRIGGER audit_is_append_only_update")
        .unwrap();
    db.execute("UPDATE audit SET actor = 'nobody' WHERE seq = 3", [])
        .unwrap();
    drop(db);
    assert_eq!(open(folder.path()).verify_audit().unwrap().unwrap_err().seq, 3);
}

#[test]
fn only_a_ca_is_registered_as_an_authority() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(folder.path());
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    let new = |certificate: Vec<u8>| NewAuthority {
        id: "factory".parse().unwrap(),
        tenant: tenant(),
        origin: Origin::Managed,
        rule: IdentityRule::default(),
        admission: Admission::RegisteredOnly,
        certificate,
    };
    let leaf = params.clone().self_signed(&key).unwrap();
    let refused = registry
        .register_authority(actor(), new(leaf.der().to_vec()))
        .unwrap_err();
    assert!(refused.to_string().contains("no CA certificate"), "{refused}");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).unwrap();
    registry
        .register_authority(actor(), new(ca.der().to_vec()))
        .unwrap();
    assert_eq!(registry.facts().anchors().len(), 1);
    let twice = registry
        .register_authority(actor(), new(ca.der().to_vec()))
        .unwrap_err();
    assert!(matches!(twice, RegistryError::Exists(_)), "{twice}");
    drop(registry);
    assert_eq!(open(folder.path()).facts().anchors().len(), 1);
}

#[test]
fn a_tenant_keeps_what_a_configuration_does_not_name() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(folder.path());
    registry
        .configure_tenant(actor(), tenant(), Some(ClientIdMode::Free), None)
        .unwrap();
    let facts = registry.facts();
    assert_eq!(facts.client_id_mode(&tenant()), ClientIdMode::Free);
    assert_eq!(facts.policy(&tenant()).unwrap().spaces().len(), 6);
}

#[test]
fn a_database_of_the_first_schema_is_brought_up_to_date() {
    let folder = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).unwrap();
    {
        let db = rusqlite::Connection::open(folder.path().join("registry.db")).unwrap();
        db.execute_batch(include_str!("../src/migrations/registry_001.sql"))
            .unwrap();
        db.pragma_update(None, "application_id", 0x4353_474e).unwrap();
        db.pragma_update(None, "user_version", 1).unwrap();
        db.execute_batch(
            "INSERT INTO tenants VALUES ('default', 'strict', '', '[]', 1, 0);
             INSERT INTO devices VALUES ('default', 'd1', NULL, '[]', 'active', NULL, 2, 0);",
        )
        .unwrap();
        db.execute(
            "INSERT INTO authorities VALUES ('a', 'default', 'registered', 'active', 'common-name', ?1, x'00', 3, 0)",
            [ca.der().to_vec()],
        )
        .unwrap();
    }
    let registry = open(folder.path());
    let facts = registry.facts();
    assert!(facts.device(&tenant(), &id("d1")).is_some());
    assert_eq!(
        facts.admission(&AuthorityId::new("a").unwrap()),
        Admission::RegisteredOnly
    );
    assert_eq!(facts.anchors().len(), 1);
}

#[test]
fn a_look_before_issuing_follows_the_same_rules_and_keeps_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(folder.path());
    registry.add_device(actor(), tenant(), device("d1")).unwrap();
    let (facts, key) = certificate("d1");
    let entries = || registry.audit(1000).unwrap().len();
    let before = entries();
    let mut asked = request("d1", &facts);
    asked.idempotency_key = Some("mine".into());
    assert_eq!(
        registry.issue_check(actor(), asked.clone()).unwrap(),
        None,
        "it would mint"
    );
    assert_eq!(entries(), before);
    // The idempotency key was not taken: with other content it is still free.
    let (other, _) = certificate("d1");
    let mut other_asked = request("d1", &other);
    other_asked.idempotency_key = Some("mine".into());
    assert_eq!(registry.issue_check(actor(), other_asked).unwrap(), None);
    let unknown = registry.issue_check(actor(), request("d2", &facts));
    assert!(
        matches!(unknown, Err(RegistryError::NoDevice { .. })),
        "{unknown:?}"
    );

    let issued = issue(&registry, "d1", facts.clone()).unwrap();
    let same = registry.issue_check(actor(), request("d1", &facts)).unwrap();
    assert_eq!(
        same,
        Some(IssueOutcome {
            repeated: true,
            ..issued
        })
    );
    // The very certificate is not registered twice, whoever hands it in: refused, and the writer goes on.
    registry.set_issuance_rules(IssuanceRules {
        lapse_after: std::time::Duration::ZERO,
        ..IssuanceRules::default()
    });
    // It lapses as soon as the clock has moved on.
    while registry.sweep_credentials().unwrap().value.lapsed == 0 {}
    let again = issue(&registry, "d1", facts.clone());
    assert!(matches!(again, Err(RegistryError::Exists(_))), "{again:?}");
    let ended = registry
        .ended_after(&AuthorityId::new("ca").unwrap(), &EndedCursor::default(), 10)
        .unwrap();
    assert_eq!((ended.len(), ended[0].state), (1, CredentialState::Lapsed));
    assert!(issue(&registry, "d1", certificate_of("d1", &key)).is_ok());
}

#[test]
fn a_rule_of_the_database_refuses_one_change_and_not_the_registry() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(folder.path());
    let db = rusqlite::Connection::open(folder.path().join("registry.db")).unwrap();
    db.execute_batch(
        "CREATE TRIGGER rule BEFORE INSERT ON devices WHEN NEW.id = 'd1'
         BEGIN SELECT RAISE (ABORT, 'not this one'); END;
         CREATE TRIGGER serial BEFORE INSERT ON credentials WHEN NEW.device = 'd4'
         BEGIN SELECT RAISE (ABORT, 'nor that'); END",
    )
    .unwrap();
    let refused = registry.add_device(actor(), tenant(), device("d1")).unwrap_err();
    assert!(matches!(&refused, RegistryError::Constraint(rule) if rule.contains("not this one")));
    assert!(
        !refused.is_storage() && refused.to_string().contains("; hint: "),
        "{refused}"
    );
    registry.facts().health().unwrap();
    registry.add_device(actor(), tenant(), device("d2")).unwrap();
    // Of many items in one change nothing is kept: the one that it came upon was half written.
    let import = ["d3", "d4"].map(|name| (device(name), Some(NewCredential::brought(certificate(name).0))));
    let refused = registry
        .import_devices(actor(), tenant(), import.to_vec())
        .unwrap_err();
    assert!(matches!(refused, RegistryError::Constraint(_)), "{refused}");
    assert!(registry.device(&tenant(), &id("d3")).unwrap().is_none());
    assert!(registry.device(&tenant(), &id("d4")).unwrap().is_none());
    assert_eq!(registry.facts().credential_count(), 0);
}

#[test]
fn a_request_is_answered_with_the_newest_certificate_though_an_older_one_was_changed_last() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(folder.path());
    let none = std::time::Duration::ZERO;
    registry.set_issuance_rules(IssuanceRules {
        replay_window: none,
        overlap: none,
        ..IssuanceRules::default()
    });
    registry.add_device(actor(), tenant(), device("d1")).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let aged = |serial: u64, days: i64| {
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.serial_number = Some(serial.into());
        let now = time::OffsetDateTime::now_utc();
        params.not_before = now - time::Duration::days(days);
        params.not_after = now + time::Duration::days(90 - days);
        CertificateFacts::parse(params.self_signed(&key).unwrap().der()).unwrap()
    };
    let (first, second) = (aged(1, 80), aged(2, 0));
    for certificate in [&first, &second] {
        let issued = issue(&registry, "d1", certificate.clone()).unwrap();
        assert!(!issued.repeated);
        registry
            .confirm_credential(actor(), certificate.fingerprint)
            .unwrap();
    }
    std::thread::sleep(std::time::Duration::from_millis(2));
    assert_eq!(registry.sweep_credentials().unwrap().value.superseded, 1);
    let again = issue(&registry, "d1", aged(3, 0)).unwrap();
    assert!(again.repeated, "what is in force is answered, nothing is minted");
    assert_eq!(registry.facts().credential_count(), 2);
}
