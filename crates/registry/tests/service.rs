//! Services: never devices, asked for by certificate, and revoked in a restored registry too.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::Path;
use std::sync::mpsc::channel;

use countersign_factory::{Batch, DeviceStart, ProfileKind, SigningWindow};
use countersign_identity::{AuthorityId, BatchId, CertificateFacts, DeviceId, ServiceId, TenantId};
use countersign_policy::exchange::ExchangeSink;
use countersign_policy::first_contact::{Contact, Template};
use countersign_policy::{Admission, ClientIdMode, DenialCode, LifecycleState};
use countersign_registry::{
    Actor, BulkIssue, BulkItem, IssueRequest, LedgerLimits, NewAuthority, NewCredential, NewDevice, Origin,
    ProfileChoice, Registry, RegistryError, Requester,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};

fn actor() -> Actor {
    Actor("test".into())
}

fn open(path: &Path) -> Registry {
    Registry::create(path, LedgerLimits::default()).unwrap()
}

fn tenant() -> TenantId {
    TenantId::default_tenant()
}

fn service(text: &str) -> ServiceId {
    ServiceId::new(text).unwrap()
}

fn certificate(name: &str, key: &KeyPair) -> CertificateFacts {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    CertificateFacts::parse(params.self_signed(key).unwrap().der()).unwrap()
}

fn device(registry: &Registry, name: &str, certificate: CertificateFacts) -> Result<(), RegistryError> {
    let new = NewDevice {
        id: DeviceId::new(name).unwrap(),
        model: None,
        groups: vec![],
        state: LifecycleState::Active,
        authority: None,
    };
    let credential = NewCredential::brought(certificate);
    let report = registry.import_devices(actor(), tenant(), vec![(new, Some(credential))])?;
    match report.value.refused.first() {
        None => Ok(()),
        Some((_, why)) => Err(RegistryError::Refused(why.clone())),
    }
}

#[test]
fn no_key_is_a_service_and_a_device() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(folder.path());
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let known = certificate("backend", &key);
    let add = |id: &str, c: &CertificateFacts, tenants: Vec<TenantId>| {
        registry.add_service(actor(), service(id), c.clone(), tenants)
    };
    add("backend", &known, vec![tenant()]).unwrap();
    assert!(matches!(
        add("none", &known, vec![]),
        Err(RegistryError::Refused(_))
    ));
    let nowhere = TenantId::new("nowhere").unwrap();
    assert!(matches!(
        add("none", &known, vec![nowhere]),
        Err(RegistryError::NoTenant(_))
    ));
    // Its name and its key are taken, by whatever certificate.
    let again = certificate("again", &key);
    for (id, c) in [
        ("backend", &certificate("x", &other)),
        ("x", &known),
        ("x", &again),
    ] {
        assert!(
            matches!(add(id, c, vec![tenant()]), Err(RegistryError::Exists(_))),
            "{id}"
        );
    }
    // A device with its key, by the operator and by itself.
    let refused = device(&registry, "d1", again.clone()).unwrap_err().to_string();
    assert!(refused.contains("no service is a device"), "{refused}");
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = AuthorityId::new("ca").unwrap();
    let template = Template {
        id_pattern: "*".parse().unwrap(),
        model: None,
        groups: vec![],
        state: LifecycleState::Active,
        quota: 10,
    };
    let new = NewAuthority {
        id: ca.clone(),
        tenant: tenant(),
        origin: Origin::Managed,
        rule: countersign_identity::IdentityRule::default(),
        admission: Admission::JustInTime(template.into()),
        certificate: params.self_signed(&other).unwrap().der().to_vec(),
    };
    registry.register_authority(actor(), new).unwrap();
    let contact = Contact {
        tenant: tenant(),
        device: DeviceId::new("d2").unwrap(),
        authority: ca,
        certificate: again,
    };
    let (sender, answer) = channel();
    registry.first_contact(contact, Box::new(move |learned| sender.send(learned).unwrap()));
    let denial = answer.recv().unwrap().unwrap_err();
    assert_eq!(denial.code, DenialCode::FirstContactSharedKey, "{denial}");
    assert!(
        registry
            .device(&tenant(), &DeviceId::new("d2").unwrap())
            .unwrap()
            .is_none()
    );
    // And the other way round.
    let own = KeyPair::generate().unwrap();
    device(&registry, "d3", certificate("d3", &own)).unwrap();
    let refused = add("d3", &certificate("y", &own), vec![tenant()])
        .unwrap_err()
        .to_string();
    assert!(refused.contains("no device is a service"), "{refused}");

    let found = |c: &CertificateFacts| registry.service_of(&c.fingerprint).unwrap();
    let view = found(&known).unwrap();
    assert_eq!((view.id, view.introspects), (service("backend"), vec![tenant()]));
    registry
        .revoke_service(actor(), service("backend"), "test".into())
        .unwrap();
    assert_eq!(found(&known), None);
    assert_eq!(registry.services().unwrap()[0].state, "revoked");
    registry.remove_service(actor(), service("backend")).unwrap();
    assert!(matches!(
        registry.remove_service(actor(), service("backend")),
        Err(RegistryError::NoService(_))
    ));
    device(&registry, "d1", known).unwrap();
}

#[test]
fn nothing_is_minted_for_the_key_of_a_service_and_its_device_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(folder.path());
    let known = certificate("backend", &KeyPair::generate().unwrap());
    registry
        .add_service(actor(), service("backend"), known.clone(), vec![tenant()])
        .unwrap();
    let batch = Batch {
        id: BatchId::new("B-1").unwrap(),
        tenant: tenant(),
        model: "pump".into(),
        profile: "factory".into(),
        groups: vec![],
        devices_start: DeviceStart::Active,
        authority: None,
        id_pattern: "SN-*".parse().unwrap(),
        quota: 2,
        window: SigningWindow::default(),
    };
    registry.add_batch(actor(), batch.clone()).unwrap();
    let request = BulkIssue {
        tenant: tenant(),
        batch: batch.id,
        demands_new_key: false,
        replace: false,
        items: vec![BulkItem {
            device: DeviceId::new("SN-1").unwrap(),
            key: known.public_key_sha256,
        }],
    };
    let answers = registry
        .issue_in_batch(actor(), request, |_, _| panic!("nothing is minted"))
        .unwrap()
        .value;
    let refused = answers[0].as_ref().unwrap_err().to_string();
    assert!(refused.contains("no service is a device"), "{refused}");
    let there = |name: &str| registry.device(&tenant(), &DeviceId::new(name).unwrap()).unwrap();
    assert!(there("SN-1").is_none());

    device(&registry, "d1", certificate("d1", &KeyPair::generate().unwrap())).unwrap();
    let request = IssueRequest {
        attestation: None,
        tenant: tenant(),
        device: DeviceId::new("d1").unwrap(),
        key: known.public_key_sha256,
        profile: "factory".into(),
        kind: ProfileKind::Operational,
        choice: ProfileChoice::First,
        authority: None,
        demands_new_key: false,
        idempotency_key: None,
        requester: Requester::Operator,
    };
    // With a CA apart, this is what is asked before the CA is.
    let refused = registry.issue_check(actor(), request).unwrap_err().to_string();
    assert!(refused.contains("no service is a device"), "{refused}");
}

#[test]
fn a_service_that_was_revoked_since_the_backup_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["old", "backup", "new"] {
        std::fs::create_dir(path(name)).unwrap();
    }
    let old = open(&path("old"));
    for id in ["kept", "revoked", "removed"] {
        let facts = certificate(id, &KeyPair::generate().unwrap());
        old.add_service(actor(), service(id), facts, vec![tenant()])
            .unwrap();
    }
    old.copy_to(&path("backup"), actor(), serde_json::json!({}))
        .unwrap();
    old.revoke_service(actor(), service("revoked"), String::new())
        .unwrap();
    old.remove_service(actor(), service("removed")).unwrap();
    drop(old);
    for name in countersign_registry::DATABASES {
        std::fs::copy(path("backup").join(name), path("new").join(name)).unwrap();
    }
    let new = Registry::open(&path("new"), LedgerLimits::default()).unwrap();
    let newer = new.newer_in_registry(&path("old").join("registry.db")).unwrap();
    let told: Vec<_> = newer
        .ends
        .iter()
        .map(|e| (e.kind.as_str(), e.id.as_str()))
        .collect();
    assert_eq!(told, [("service", "removed"), ("service", "revoked")]);
    new.apply_newer(actor(), newer).unwrap();
    let states: Vec<_> = new.services().unwrap().into_iter().map(|s| s.state).collect();
    assert_eq!(states, ["active", "revoked", "revoked"]);
}

#[test]
fn what_a_service_may_not_ask_any_more_is_told_and_an_older_registry_takes_nothing_away() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["old", "backup", "new"] {
        std::fs::create_dir(path(name)).unwrap();
    }
    let old = open(&path("old"));
    let other = TenantId::new("other").unwrap();
    old.add_tenant(actor(), other.clone(), ClientIdMode::Strict)
        .unwrap();
    let facts = certificate("backend", &KeyPair::generate().unwrap());
    let add = |tenants: Vec<TenantId>| {
        old.add_service(actor(), service("backend"), facts.clone(), tenants)
            .unwrap();
    };
    add(vec![tenant(), other]);
    old.copy_to(&path("backup"), actor(), serde_json::json!({}))
        .unwrap();
    old.remove_service(actor(), service("backend")).unwrap();
    add(vec![tenant()]);
    drop(old);
    for name in countersign_registry::DATABASES {
        std::fs::copy(path("backup").join(name), path("new").join(name)).unwrap();
    }
    let new = Registry::open(&path("new"), LedgerLimits::default()).unwrap();
    let newer = new.newer_in_registry(&path("old").join("registry.db")).unwrap();
    let told: Vec<_> = newer
        .ends
        .iter()
        .map(|e| (e.kind.as_str(), e.tenant.as_str(), e.id.as_str()))
        .collect();
    assert_eq!(told, [("service-permission", "other", "backend")]);
    new.apply_newer(actor(), newer).unwrap();
    let view = new.service_of(&facts.fingerprint).unwrap().unwrap();
    assert_eq!(view.introspects, [tenant()]);

    // One of before there were services says nothing about them, also when it is brought to the newest schema for it.
    let before = path("old").join("registry.db");
    let db = rusqlite::Connection::open(&before).unwrap();
    // Policies became versions after that.
    db.execute_batch(
        "DROP TABLE lost_enrolments;
         DROP INDEX authorities_ours;
         ALTER TABLE authorities DROP COLUMN came;
         CREATE INDEX devices_by_template ON devices (came_by) WHERE came_by IS NOT NULL;
         DROP TABLE destructions;
         DROP TABLE attestations;
         DROP INDEX credentials_by_serial;
         DROP INDEX credentials_by_public_key;
         CREATE INDEX credentials_by_serial ON credentials (serial);
         CREATE INDEX credentials_by_public_key ON credentials (public_key);
         CREATE UNIQUE INDEX credentials_issued_serial ON credentials (authority, serial) WHERE certificate IS NOT NULL;
         DROP TABLE endorsement_keys;
         DROP TABLE endorsement_authorities;
         DROP TABLE service_permissions;
         DROP TABLE services;
         DROP TABLE policy_versions;
         ALTER TABLE tenants DROP COLUMN policy_version;
         ALTER TABLE tenants ADD COLUMN policies TEXT NOT NULL DEFAULT '';
         ALTER TABLE tenants ADD COLUMN spaces TEXT NOT NULL DEFAULT '[]';
         PRAGMA user_version = 10",
    )
    .unwrap();
    drop(db);
    let newer = new.newer_in_registry(&before).unwrap();
    assert_eq!(newer.ends, []);
}
