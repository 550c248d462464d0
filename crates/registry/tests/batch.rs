//! Batches: what is planned cannot be overrun, and what was issued is answered again, never issued again.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use countersign_factory::{Batch, BatchState, DeviceStart, RevocationReason, SigningWindow};
use countersign_identity::{
    AuthorityId, BatchId, CertificateFacts, DeviceId, Fingerprint, TenantId, Timestamp,
};
use countersign_policy::facts::CredentialKind;
use countersign_policy::{ClientIdMode, CredentialState, Custody, FactSource, LifecycleMove, LifecycleState};
use countersign_registry::{
    Actor, BulkIssue, BulkItem, IssuanceRules, IssueOutcome, IssuedHere, LedgerLimits, NewCredential,
    NewDevice, Registry, RegistryError, Revocation,
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

fn batch_id() -> BatchId {
    BatchId::new("B-1").unwrap()
}

fn id(text: &str) -> DeviceId {
    DeviceId::new(text).unwrap()
}

fn plan(quota: u64) -> Batch {
    Batch {
        id: batch_id(),
        tenant: tenant(),
        model: "pump".into(),
        profile: "factory".into(),
        groups: vec!["eu".into(), "a".into()],
        devices_start: DeviceStart::Active,
        authority: None,
        id_pattern: "SN-*".parse().unwrap(),
        quota,
        window: SigningWindow::default(),
    }
}

fn certificate(name: &str) -> CertificateFacts {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    CertificateFacts::parse(params.self_signed(&key).unwrap().der()).unwrap()
}

/// Asks for certificates; `mint` gives those that stand beside the devices.
fn issue(
    registry: &Registry,
    replace: bool,
    wanted: &[(&str, &CertificateFacts)],
) -> Vec<Result<IssueOutcome, RegistryError>> {
    let request = BulkIssue {
        tenant: tenant(),
        batch: batch_id(),
        demands_new_key: false,
        replace,
        items: wanted
            .iter()
            .map(|(device, c)| BulkItem {
                device: id(device),
                key: c.public_key_sha256,
            })
            .collect(),
    };
    let certificates: Vec<CertificateFacts> = wanted.iter().map(|(_, c)| (*c).clone()).collect();
    let minted = registry.issue_in_batch(actor(), request, move |n, _| {
        let certificate = certificates[n].clone();
        Ok(NewCredential {
            kind: CredentialKind::Factory,
            state: CredentialState::Issued,
            custody: Custody::Unknown,
            authority: Some(AuthorityId::new("ca").unwrap()),
            issued: Some(IssuedHere {
                certificate: certificate.fingerprint.as_bytes().to_vec(),
                profile: "factory".into(),
                batch: Some(batch_id()),
            }),
            certificate,
        })
    });
    minted.unwrap().value
}

fn refusal(answer: &Result<IssueOutcome, RegistryError>) -> String {
    match answer {
        Err(RegistryError::Batch(refusal)) => refusal.code().into(),
        Err(other) => other.to_string(),
        Ok(issued) => format!("issued, repeated: {}", issued.repeated),
    }
}

#[test]
fn a_batch_makes_devices_and_certificates_up_to_its_quota_and_survives_opening_again() {
    let folder = tempfile::tempdir().unwrap();
    let certificates: Vec<_> = (0..5).map(|n| certificate(&format!("SN-{n}"))).collect();
    {
        let registry = open(folder.path());
        registry.add_batch(actor(), plan(3)).unwrap();
        registry.add_batch(actor(), plan(3)).unwrap();
        let other = registry.add_batch(actor(), plan(4)).unwrap_err();
        assert!(matches!(other, RegistryError::Exists(_)), "{other}");
        let answers = issue(
            &registry,
            false,
            &[
                ("SN-0", &certificates[0]),
                ("XX-1", &certificates[1]),
                ("SN-1", &certificates[1]),
                ("SN-1", &certificates[2]),
                ("SN-2", &certificates[2]),
                ("SN-3", &certificates[3]),
            ],
        );
        let answers: Vec<_> = answers.iter().map(refusal).collect();
        assert_eq!(
            answers,
            [
                "issued, repeated: false",
                "batch.outside-pattern",
                "issued, repeated: false",
                "batch.twice",
                "issued, repeated: false",
                "batch.quota-used-up",
            ]
        );
    }
    let registry = open(folder.path());
    let view = registry.batch(&tenant(), &batch_id()).unwrap();
    assert_eq!((view.devices, view.credentials["issued"]), (3, 3));
    assert_eq!(registry.facts().credential_count(), 3);
    let device = registry.facts().device(&tenant(), &id("SN-2")).unwrap();
    assert_eq!(device.model.as_deref(), Some("pump"));
    // Policies may speak of it: it is in the facts, also after the device changed.
    assert_eq!(device.batch.as_deref(), Some(batch_id().as_str()));
    let suspend = LifecycleMove::Suspend;
    registry
        .move_device(actor(), tenant(), id("SN-2"), suspend, "test".into())
        .unwrap();
    let device = registry.facts().device(&tenant(), &id("SN-2")).unwrap();
    assert_eq!(device.batch.as_deref(), Some(batch_id().as_str()));
    assert_eq!(
        device.groups.iter().map(|g| &**g).collect::<Vec<_>>(),
        ["a", "eu"]
    );
    assert_eq!(
        registry.batch_of(&tenant(), &id("SN-2")).unwrap(),
        Some(batch_id())
    );
    let refused = issue(&registry, false, &[("SN-4", &certificates[4])]);
    assert_eq!(refusal(&refused[0]), "batch.quota-used-up");
    assert!(registry.facts().device(&tenant(), &id("SN-4")).is_none());
    // What was issued is answered again, whatever became of the batch.
    registry
        .close_batch(actor(), tenant(), batch_id(), "done".into())
        .unwrap();
    let again = issue(
        &registry,
        false,
        &[("SN-1", &certificates[1]), ("SN-4", &certificates[4])],
    );
    let again: Vec<_> = again.iter().map(refusal).collect();
    assert_eq!(again, ["issued, repeated: true", "batch.closed"]);
    assert_eq!(
        registry.batch(&tenant(), &batch_id()).unwrap().state,
        BatchState::Closed
    );
    // tenant.add, batch.add, batch.issue, device.suspend, batch.close
    assert_eq!(registry.verify_audit().unwrap(), Ok(5));
    let audit = registry.audit(10).unwrap();
    let issued = audit.iter().find(|e| e.action == "batch.issue").unwrap();
    assert!(
        issued.detail.contains(&certificates[1].fingerprint.to_string()),
        "{issued:?}"
    );
}

#[test]
fn many_lines_at_once_never_overrun_a_quota() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Arc::new(open(folder.path()));
    registry.add_batch(actor(), plan(50)).unwrap();
    let lines: Vec<_> = (0..8)
        .map(|line| {
            let registry = registry.clone();
            std::thread::spawn(move || {
                let mut issued = 0;
                for n in 0..5 {
                    // Half of the ids are asked for by two lines with different keys.
                    let certificates: Vec<_> = (0..4)
                        .map(|k| {
                            let name = format!("SN-{}-{n}-{k}", if k % 2 == 0 { line } else { line / 2 });
                            (name.clone(), certificate(&name))
                        })
                        .collect();
                    let wanted: Vec<_> = certificates.iter().map(|(n, c)| (n.as_str(), c)).collect();
                    issued += issue(&registry, false, &wanted)
                        .iter()
                        .filter(|a| a.is_ok())
                        .count();
                }
                issued
            })
        })
        .collect();
    let issued: usize = lines.into_iter().map(|l| l.join().unwrap()).sum();
    let view = registry.batch(&tenant(), &batch_id()).unwrap();
    assert_eq!((issued, view.devices, view.credentials["issued"]), (50, 50, 50));
}

#[test]
fn what_a_batch_does_not_take_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(folder.path());
    let now = registry.audit(1).unwrap()[0].at;
    let window = |from: i64, to: i64| SigningWindow {
        not_before: Some(Timestamp::from_unix_ms(now.unix_ms() + from)),
        not_after: Some(Timestamp::from_unix_ms(now.unix_ms() + to)),
    };
    let stranger = NewDevice {
        id: id("SN-old"),
        model: None,
        groups: vec![],
        state: LifecycleState::Active,
        authority: None,
    };
    registry.add_device(actor(), tenant(), stranger).unwrap();
    for (name, window, device, expected) in [
        (
            "early",
            window(3_600_000, 7_200_000),
            "SN-1",
            "batch.window-not-open",
        ),
        (
            "late",
            window(-7_200_000, -3_600_000),
            "SN-1",
            "batch.window-closed",
        ),
        (
            "open",
            window(-3_600_000, 3_600_000),
            "SN-old",
            "batch.other-batch",
        ),
    ] {
        let batch = BatchId::new(name).unwrap();
        let plan = Batch {
            id: batch.clone(),
            window,
            ..plan(9)
        };
        registry.add_batch(actor(), plan).unwrap();
        let request = BulkIssue {
            tenant: tenant(),
            batch,
            demands_new_key: false,
            replace: false,
            items: vec![BulkItem {
                device: id(device),
                key: Fingerprint::of(b"key"),
            }],
        };
        let answers = registry
            .issue_in_batch(actor(), request, |_, _| panic!("nothing is minted"))
            .unwrap();
        assert_eq!(refusal(&answers.value[0]), expected);
    }
    assert_eq!(registry.facts().credential_count(), 0);
    assert_eq!(registry.facts().device_count(), 1);
}

/// Minting is outside of the registry's transactions: what changes meanwhile is seen before anything is kept, and what was
/// minted for nothing is kept nowhere.
#[test]
fn what_changes_while_certificates_are_minted_is_decided_anew() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Arc::new(open(folder.path()));
    registry.add_batch(actor(), plan(10)).unwrap();
    let ask = |names: [&str; 2], meanwhile: fn(&Registry)| {
        let certificates = names.map(certificate);
        let items = names.iter().zip(&certificates).map(|(device, c)| BulkItem {
            device: id(device),
            key: c.public_key_sha256,
        });
        let request = BulkIssue {
            tenant: tenant(),
            batch: batch_id(),
            demands_new_key: false,
            replace: false,
            items: items.collect(),
        };
        let other = registry.clone();
        let answers = registry.issue_in_batch(actor(), request, move |n, _| {
            // Inside of a transaction of the one writer this would wait for itself.
            meanwhile(&other);
            let certificate = certificates[n].clone();
            Ok(NewCredential {
                kind: CredentialKind::Factory,
                state: CredentialState::Issued,
                custody: Custody::Unknown,
                authority: Some(AuthorityId::new("ca").unwrap()),
                issued: Some(IssuedHere {
                    certificate: certificate.fingerprint.as_bytes().to_vec(),
                    profile: "factory".into(),
                    batch: Some(batch_id()),
                }),
                certificate,
            })
        });
        answers.unwrap().value.iter().map(refusal).collect::<Vec<_>>()
    };
    // A change that does not matter: decided anew, and the same.
    let kept = ask(["SN-1", "SN-2"], |r| {
        let _ = r.add_tenant(actor(), TenantId::new("other").unwrap(), ClientIdMode::Strict);
    });
    assert_eq!(kept, ["issued, repeated: false", "issued, repeated: false"]);
    let before = registry.facts().credential_count();
    let closed = ask(["SN-3", "SN-4"], |r| {
        r.close_batch(actor(), tenant(), batch_id(), "meanwhile".into())
            .unwrap();
    });
    assert_eq!(closed, ["batch.closed", "batch.closed"]);
    assert_eq!(registry.facts().credential_count(), before);
    assert_eq!(registry.batch(&tenant(), &batch_id()).unwrap().devices, 2);
}

#[test]
fn one_key_for_two_devices_and_two_keys_for_one_device_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(folder.path());
    registry.add_batch(actor(), plan(9)).unwrap();
    let (first, second, third) = (certificate("SN-1"), certificate("SN-1"), certificate("SN-2"));
    let answers = issue(&registry, false, &[("SN-1", &first), ("SN-2", &first)]);
    assert!(
        matches!(answers[1], Err(RegistryError::SharedKey(_))),
        "{answers:?}"
    );
    let other = issue(&registry, false, &[("SN-1", &second)]);
    assert_eq!(refusal(&other[0]), "batch.other-key");
    // Nobody used the first: it may be replaced, and is revoked then.
    let replaced = issue(&registry, true, &[("SN-1", &second), ("SN-2", &third)]);
    assert!(replaced.iter().all(Result::is_ok), "{replaced:?}");
    let state = |c: &CertificateFacts| registry.facts().credential(&c.fingerprint).unwrap().state;
    assert_eq!(
        (state(&first), state(&second)),
        (CredentialState::Revoked, CredentialState::Issued)
    );
    registry
        .confirm_in_batch(actor(), tenant(), batch_id(), vec![second.fingerprint], vec![])
        .unwrap();
    let used = issue(&registry, true, &[("SN-1", &certificate("SN-1"))]);
    assert_eq!(refusal(&used[0]), "batch.other-key");
    assert_eq!(registry.batch(&tenant(), &batch_id()).unwrap().devices, 2);
}

#[test]
fn confirmed_stock_never_lapses_and_unconfirmed_does() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(folder.path());
    registry.add_batch(actor(), plan(9)).unwrap();
    let certificates: Vec<_> = (0..3).map(|n| certificate(&format!("SN-{n}"))).collect();
    issue(
        &registry,
        false,
        &[
            ("SN-0", &certificates[0]),
            ("SN-1", &certificates[1]),
            ("SN-2", &certificates[2]),
        ],
    );
    let confirm = |fingerprints: Vec<Fingerprint>, devices: &[&str]| {
        let devices = devices.iter().map(|d| id(d)).collect();
        registry
            .confirm_in_batch(actor(), tenant(), batch_id(), fingerprints, devices)
            .unwrap()
            .value
    };
    let done = confirm(vec![certificates[0].fingerprint], &["SN-1", "SN-9"]);
    assert_eq!((done.confirmed, done.unchanged, done.refused.len()), (2, 0, 1));
    assert_eq!(done.refused[0].0, "SN-9");
    assert_eq!(confirm(vec![], &["SN-0"]).unchanged, 1);
    // Long after: the rules say that a certificate lapses at once.
    registry.set_issuance_rules(IssuanceRules {
        lapse_after: Duration::ZERO,
        ..IssuanceRules::default()
    });
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(registry.sweep_credentials().unwrap().value.lapsed, 1);
    let state = |n: usize| {
        registry
            .facts()
            .credential(&certificates[n].fingerprint)
            .unwrap()
            .state
    };
    assert_eq!(
        (state(0), state(1), state(2)),
        (
            CredentialState::Active,
            CredentialState::Active,
            CredentialState::Lapsed
        )
    );
    let late = confirm(vec![certificates[2].fingerprint], &[]);
    assert!(late.refused[0].1.to_string().contains("lapsed"), "{late:?}");
    // Lapsed is final; the device may have a certificate anew, and counts once.
    assert!(issue(&registry, false, &[("SN-2", &certificate("SN-2"))])[0].is_ok());
    assert_eq!(registry.batch(&tenant(), &batch_id()).unwrap().devices, 3);
}

#[test]
fn a_batch_is_revoked_as_a_whole_and_a_decommissioned_device_gets_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(folder.path());
    registry.add_batch(actor(), plan(9)).unwrap();
    let certificates: Vec<_> = (0..3).map(|n| certificate(&format!("SN-{n}"))).collect();
    issue(
        &registry,
        false,
        &[("SN-0", &certificates[0]), ("SN-1", &certificates[1])],
    );
    registry
        .move_device(
            actor(),
            tenant(),
            id("SN-0"),
            LifecycleMove::Decommission,
            "broken".into(),
        )
        .unwrap();
    let refused = issue(&registry, true, &[("SN-0", &certificates[2])]);
    assert!(refusal(&refused[0]).contains("final"), "{refused:?}");
    let whose = Revocation::Batch(tenant(), batch_id());
    let revoked = registry
        .revoke(
            actor(),
            whose.clone(),
            RevocationReason::KeyCompromise,
            "leak".into(),
        )
        .unwrap();
    assert_eq!((revoked.value, revoked.changes.len()), (2, 2));
    let listed = registry
        .revoked_by(&AuthorityId::new("ca").unwrap(), Timestamp::from_unix_ms(0))
        .unwrap();
    assert_eq!(listed.len(), 2);
    let again = registry.revoke(actor(), whose, RevocationReason::KeyCompromise, "leak".into());
    assert_eq!(again.unwrap().value, 0);
}

#[test]
fn a_device_stands_for_its_newest_certificate_though_the_one_that_it_replaced_was_changed_last() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(folder.path());
    registry.add_batch(actor(), plan(9)).unwrap();
    let (first, second) = (certificate("SN-0"), certificate("SN-0"));
    issue(&registry, false, &[("SN-0", &first)])[0].as_ref().unwrap();
    issue(&registry, true, &[("SN-0", &second)])[0].as_ref().unwrap();
    let done = registry
        .confirm_in_batch(actor(), tenant(), batch_id(), vec![], vec![id("SN-0")])
        .unwrap()
        .value;
    assert_eq!((done.confirmed, done.refused.len()), (1, 0), "{done:?}");
    let state = |c: &CertificateFacts| registry.facts().credential(&c.fingerprint).unwrap().state;
    assert_eq!(
        (state(&first), state(&second)),
        (CredentialState::Revoked, CredentialState::Active)
    );
}
