//! Policies as versions: each change that took effect is kept, with who, when and why; what is refused changes nothing.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use countersign_identity::{DeviceId, Fingerprint, TenantId};
use countersign_policy::decide::DEFAULT_POLICY;
use countersign_policy::spaces::default_spaces;
use countersign_policy::{ClientIdMode, FactSource, LifecycleMove, LifecycleState, TopicSpace};
use countersign_registry::{Actor, LedgerLimits, NewDevice, PolicyChange, Registry, RegistryError};

const OPEN: &str = "@id(\"all\") permit (principal, action, resource);";

fn actor() -> Actor {
    Actor("test".into())
}

fn tenant() -> TenantId {
    TenantId::default_tenant()
}

fn set(policies: &str, reason: &str) -> Option<PolicyChange> {
    Some(PolicyChange {
        policies: Some(policies.into()),
        reason: reason.into(),
        ..PolicyChange::default()
    })
}

#[test]
fn every_change_is_a_version_and_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::create(folder.path(), LedgerLimits::default()).unwrap();
    let first = registry.policy_version(&tenant(), None).unwrap();
    assert_eq!(
        (first.number, first.policies.as_str(), first.in_force),
        (1, DEFAULT_POLICY, true)
    );
    let two = registry
        .configure_tenant(actor(), tenant(), None, set(OPEN, "open house"))
        .unwrap();
    assert_eq!(two.value, 2);
    let generation = registry.facts().policy(&tenant()).unwrap().generation();
    // The same again, and a change of the client-id mode, make no version.
    assert_eq!(
        registry
            .configure_tenant(actor(), tenant(), None, set(OPEN, "again"))
            .unwrap()
            .value,
        2
    );
    let mode = Some(ClientIdMode::Free);
    assert_eq!(
        registry
            .configure_tenant(actor(), tenant(), mode, None)
            .unwrap()
            .value,
        2
    );
    assert_ne!(
        registry.facts().policy(&tenant()).unwrap().generation(),
        generation
    );
    let spaces = vec![TopicSpace {
        name: "own".into(),
        filter: "d/{id}/#".into(),
    }];
    let change = PolicyChange {
        spaces: Some(spaces.clone()),
        reason: "fewer spaces".into(),
        base: Some(2),
        ..PolicyChange::default()
    };
    assert_eq!(
        registry
            .configure_tenant(actor(), tenant(), None, Some(change.clone()))
            .unwrap()
            .value,
        3
    );
    // Made of a version that is not in force any more.
    let fault = registry
        .configure_tenant(actor(), tenant(), None, Some(change))
        .unwrap_err();
    assert!(
        matches!(fault, RegistryError::PolicyMoved { base: 2, current: 3 }),
        "{fault}"
    );
    let fault = registry
        .configure_tenant(actor(), tenant(), None, set("permit (everything);", "no"))
        .unwrap_err();
    assert!(fault.to_string().contains("line 1, column"), "{fault}");
    drop(registry);
    let registry = Registry::open(folder.path(), LedgerLimits::default()).unwrap();
    let all = registry.policy_versions(&tenant()).unwrap();
    let told: Vec<_> = all
        .iter()
        .map(|v| (v.number, v.reason.as_str(), v.in_force))
        .collect();
    assert_eq!(
        told,
        [
            (3, "fewer spaces", true),
            (2, "open house", false),
            (1, "built-in", false)
        ]
    );
    assert_eq!((all[0].actor.as_str(), &all[0].spaces), ("test", &spaces));
    assert_eq!(all[1].sha256, Fingerprint::of(OPEN.as_bytes()));
    assert_eq!(all[1].spaces, default_spaces());
    assert_eq!(registry.facts().policy(&tenant()).unwrap().spaces(), spaces);
    let audit = registry.audit(10).unwrap();
    let entry = audit.iter().find(|a| a.action == "policy.set").unwrap();
    assert!(
        entry.detail.contains("\"version\":3") && entry.detail.contains("fewer spaces"),
        "{entry:?}"
    );
    assert!(matches!(
        registry.policy_version(&tenant(), Some(9)),
        Err(RegistryError::NoPolicyVersion { number: 9, .. })
    ));
    assert!(registry.verify_audit().unwrap().is_ok());
}

/// What was in force before versions were kept is version 1, and it stays in force.
#[test]
fn the_migration_keeps_what_is_in_force() {
    let folder = tempfile::tempdir().unwrap();
    let before = [
        include_str!("../src/migrations/registry_001.sql"),
        include_str!("../src/migrations/registry_002.sql"),
        include_str!("../src/migrations/registry_003.sql"),
        include_str!("../src/migrations/registry_004.sql"),
        include_str!("../src/migrations/registry_005.sql"),
        include_str!("../src/migrations/registry_007.sql"),
        include_str!("../src/migrations/registry_008.sql"),
    ];
    {
        let db = rusqlite::Connection::open(folder.path().join("registry.db")).unwrap();
        for sql in before {
            db.execute_batch(sql).unwrap();
        }
        db.pragma_update(None, "application_id", 0x4353_474e_i64).unwrap();
        db.pragma_update(None, "user_version", before.len() as i64)
            .unwrap();
        db.execute_batch(
            "INSERT INTO revisions (at, kind, tenant, subject) VALUES (77, 'tenant', 'default', 'default')",
        )
        .unwrap();
        db.execute(
            "INSERT INTO tenants (id, client_id_mode, policies, spaces, revision, created) VALUES ('default', 'strict', ?, '[]', 1, 5)",
            [OPEN],
        )
        .unwrap();
    }
    let registry = Registry::open(folder.path(), LedgerLimits::default()).unwrap();
    let version = registry.policy_version(&tenant(), None).unwrap();
    assert_eq!(
        (version.number, version.at.unix_ms(), version.policies.as_str()),
        (1, 77, OPEN)
    );
    assert_eq!(version.sha256, Fingerprint::of(OPEN.as_bytes()));
    assert!(registry.facts().policy(&tenant()).is_some());
    assert_eq!(
        registry
            .configure_tenant(actor(), tenant(), None, set("", "closed"))
            .unwrap()
            .value,
        2
    );
}

/// A batch stays with its device through every later change, and after a restart.
#[test]
fn a_device_without_a_batch_has_none_in_its_facts() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::create(folder.path(), LedgerLimits::default()).unwrap();
    let id = DeviceId::new("d1").unwrap();
    let new = NewDevice {
        id: id.clone(),
        model: None,
        groups: vec![],
        state: LifecycleState::Active,
        authority: None,
    };
    registry.add_device(actor(), tenant(), new).unwrap();
    registry
        .move_device(
            actor(),
            tenant(),
            id.clone(),
            LifecycleMove::Suspend,
            "test".into(),
        )
        .unwrap();
    assert_eq!(registry.facts().device(&tenant(), &id).unwrap().batch, None);
}
