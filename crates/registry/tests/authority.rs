//! Authorities: proof, rotation, first contact.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::Path;
use std::sync::mpsc::channel;

use countersign_factory::RevocationReason;
use countersign_factory::destruction::Statement;
use countersign_identity::{
    AnchorState, AuthorityId, CertificateFacts, DeviceId, IdentityRule, TenantId, Timestamp, WhenStale,
};
use countersign_policy::exchange::ExchangeSink;
use countersign_policy::first_contact::{Contact, Template};
use countersign_policy::{
    Admission, CredentialState, Denial, DenialCode, FactSource, LifecycleMove, LifecycleState,
};
use countersign_registry::{
    Actor, AuthorityMove, EndedCursor, LedgerLimits, ListSettings, NewAuthority, NewCredential, NewDevice,
    Origin, Registry, RegistryError, Revocation,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SerialNumber,
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

fn authority(text: &str) -> AuthorityId {
    AuthorityId::new(text).unwrap()
}

struct Ca {
    params: CertificateParams,
    key: KeyPair,
}

impl Ca {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        Self { params, key }
    }

    fn certificate(&self) -> Vec<u8> {
        self.params.self_signed(&self.key).unwrap().der().to_vec()
    }

    fn issue(&self, name: &str, key: &KeyPair) -> Vec<u8> {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.use_authority_key_identifier_extension = true;
        params
            .signed_by(key, &Issuer::from_params(&self.params, &self.key))
            .unwrap()
            .der()
            .to_vec()
    }

    fn device(&self, name: &str) -> CertificateFacts {
        CertificateFacts::parse(&self.issue(name, &KeyPair::generate().unwrap())).unwrap()
    }

    fn register(&self, registry: &Registry, name: &str, origin: Origin, admission: Admission) -> AnchorState {
        let new = NewAuthority {
            id: authority(name),
            tenant: tenant(),
            origin,
            rule: IdentityRule::default(),
            admission,
            certificate: self.certificate(),
        };
        registry.register_authority(actor(), new).unwrap().value
    }
}

fn add(registry: &Registry, name: &str, bound: Option<&str>) {
    let new = NewDevice {
        id: id(name),
        model: None,
        groups: vec![],
        state: LifecycleState::Active,
        authority: bound.map(authority),
    };
    registry.add_device(actor(), tenant(), new).unwrap();
}

fn contact(registry: &Registry, by: &str, certificate: &CertificateFacts) -> Result<(), Denial> {
    let (sender, answer) = channel();
    registry.first_contact(
        Contact {
            tenant: tenant(),
            device: id(&certificate.subject_common_names[0]),
            authority: authority(by),
            certificate: certificate.clone(),
        },
        Box::new(move |r| sender.send(r).unwrap()),
    );
    answer.recv().unwrap()
}

fn code_of(result: Result<(), Denial>) -> Option<DenialCode> {
    result.err().map(|d| d.code)
}

#[test]
fn a_brought_authority_is_active_only_after_the_proof_of_its_own_code() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(folder.path());
    let ca = Ca::new("brought");
    let state = |r: &Registry| r.facts().authority(&authority("a")).unwrap().0;
    let origin = Origin::Registered { code: "first".into() };
    assert_eq!(
        ca.register(&registry, "a", origin, Admission::RegisteredOnly),
        AnchorState::Unproven
    );
    registry
        .renew_code(actor(), authority("a"), "second".into())
        .unwrap();
    drop(registry);
    let registry = open(folder.path());
    assert_eq!(state(&registry), AnchorState::Unproven);
    let key = KeyPair::generate().unwrap();
    for (who, code) in [(&ca, "first"), (&Ca::new("brought"), "second")] {
        let refused = registry.prove_authority(actor(), authority("a"), who.issue(code, &key));
        assert!(matches!(refused, Err(RegistryError::Refused(_))), "{refused:?}");
        assert_eq!(state(&registry), AnchorState::Unproven);
    }
    registry
        .prove_authority(actor(), authority("a"), ca.issue("second", &key))
        .unwrap();
    assert_eq!(state(&registry), AnchorState::Active);
    let again = registry.prove_authority(actor(), authority("a"), ca.issue("second", &key));
    assert!(again.unwrap_err().to_string().contains("nothing to prove"));
    assert_eq!(registry.authorities().unwrap()[0].code, None);
}

#[test]
fn an_authority_is_not_closed_while_devices_depend_on_it() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(folder.path());
    let (old, new) = (Ca::new("old"), Ca::new("new"));
    old.register(&registry, "old", Origin::Managed, Admission::RegisteredOnly);
    new.register(&registry, "new", Origin::Managed, Admission::RegisteredOnly);
    let import = |name: &str, certificates: Vec<NewCredential>| {
        for certificate in certificates {
            let device = NewDevice {
                id: id(name),
                model: None,
                groups: vec![],
                state: LifecycleState::Active,
                authority: None,
            };
            registry
                .import_devices(actor(), tenant(), vec![(device, Some(certificate))])
                .unwrap();
        }
    };
    let of = |ca: &Ca, name: &str| NewCredential::brought(ca.device(name));
    import("only-old", vec![of(&old, "only-old")]);
    import("both", vec![of(&old, "both"), of(&new, "both")]);
    // Issued from the new one, and never used: it may not be on the device.
    let unused = NewCredential {
        state: CredentialState::Issued,
        ..of(&new, "unused")
    };
    import("unused", vec![of(&old, "unused"), unused]);
    import("gone", vec![of(&old, "gone")]);
    registry
        .move_device(
            actor(),
            tenant(),
            id("gone"),
            LifecycleMove::Decommission,
            String::new(),
        )
        .unwrap();

    let go = |attempted| registry.move_authority(actor(), authority("old"), attempted, String::new());
    let not_yet = go(AuthorityMove::Close { leave_out: 0 });
    assert!(matches!(not_yet, Err(RegistryError::Refused(_))), "{not_yet:?}");
    assert_eq!(go(AuthorityMove::Retire).unwrap().value, AnchorState::Retiring);
    match go(AuthorityMove::Close { leave_out: 1 }) {
        Err(RegistryError::Dependents { count, examples, .. }) => {
            assert_eq!(count, 2);
            assert_eq!(examples, ["only-old", "unused"]);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        go(AuthorityMove::Close { leave_out: 2 }).unwrap().value,
        AnchorState::Retired
    );
    assert_eq!(go(AuthorityMove::Revoke).unwrap().value, AnchorState::Revoked);
    assert!(go(AuthorityMove::Reopen).is_err());
    // All it ever signed is on its list.
    let listed = registry
        .revoked_by(&authority("old"), Timestamp::from_unix_ms(0))
        .unwrap();
    assert_eq!(listed.len(), 4);
}

/// A certificate that the gateway would refuse lets nobody in, and its key has no say in the end of its device.
#[test]
fn a_certificate_that_is_refused_is_no_other_way_in_and_ends_no_device() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(folder.path());
    let old = Ca::new("old");
    old.register(&registry, "old", Origin::Managed, Admission::RegisteredOnly);
    let mut vendor = Ca::new("vendor");
    let now = time::OffsetDateTime::now_utc();
    vendor.params.not_after = now + time::Duration::days(30);
    let origin = Origin::Registered { code: "code".into() };
    vendor.register(&registry, "vendor", origin, Admission::RegisteredOnly);
    let proof = vendor.issue("code", &KeyPair::generate().unwrap());
    registry
        .prove_authority(actor(), authority("vendor"), proof)
        .unwrap();
    let brought = vendor.device("d1");
    let fingerprint = brought.fingerprint;
    let serial = brought.serial.clone();
    for certificate in [old.device("d1"), brought] {
        let device = NewDevice {
            id: id("d1"),
            model: None,
            groups: vec![],
            state: LifecycleState::Active,
            authority: None,
        };
        let credential = Some(NewCredential::brought(certificate));
        registry
            .import_devices(actor(), tenant(), vec![(device, credential)])
            .unwrap();
    }
    let dependents = |days: i64| {
        let at = Timestamp::from_unix_s((now + time::Duration::days(days)).unix_timestamp());
        let left = registry.left_behind(&authority("old"), at).unwrap().len();
        let (count, _) = registry.dependents(&authority("old"), at, 9).unwrap();
        assert_eq!(count, left as u64);
        count
    };
    let take = |number: u64, revoked: bool| {
        let serial =
            (0..serial.len() / 2).map(|n| u8::from_str_radix(&serial[2 * n..2 * n + 2], 16).unwrap());
        let revoked = revoked.then(|| RevokedCertParams {
            serial_number: SerialNumber::from(serial.collect::<Vec<u8>>()),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: now - time::Duration::hours(1),
            next_update: now + time::Duration::days(7),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: revoked.into_iter().collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        let list = list
            .signed_by(&Issuer::from_params(&vendor.params, &vendor.key))
            .unwrap();
        registry
            .take_lists(actor(), authority("vendor"), vec![list.der().to_vec()])
            .unwrap();
    };
    let destroy = || {
        let statement = Statement {
            tenant: tenant(),
            device: id("d1"),
            certificate: String::new(),
            at: Timestamp::from_unix_s(now.unix_timestamp()),
            signature: String::new(),
        };
        let declared = registry.declare_destruction(actor(), statement, fingerprint);
        let state = registry.facts().device(&tenant(), &id("d1")).unwrap().state;
        (declared.err().map(|e| e.to_string()), state)
    };
    assert_eq!(dependents(0), 0);
    take(1, true);
    assert_eq!(dependents(0), 1, "it is on the vendor's list");
    let (refused, state) = destroy();
    assert!(
        refused
            .unwrap()
            .contains("is revoked, so its key cannot end device d1")
    );
    assert_eq!(state, LifecycleState::Active);
    take(2, false);
    assert_eq!(dependents(0), 0);
    assert_eq!(
        dependents(10),
        1,
        "the list is stale then, and nobody is admitted"
    );
    let lists = ListSettings {
        when_stale: WhenStale::LastKnown,
        ..ListSettings::default()
    };
    registry
        .set_list_settings(actor(), authority("vendor"), Some(lists))
        .unwrap();
    assert_eq!(dependents(10), 0);
    assert_eq!(dependents(40), 1, "the vendor's CA has expired then");
    let revoke = AuthorityMove::Revoke;
    registry
        .move_authority(actor(), authority("vendor"), revoke, String::new())
        .unwrap();
    assert_eq!(dependents(0), 1);
    let (refused, state) = destroy();
    let refused = refused.unwrap();
    assert!(refused.contains("of an authority that is revoked"), "{refused}");
    assert_eq!(state, LifecycleState::Active);
}

/// Whose chain leads to an authority over an intermediate depends on it; so may who came before it was registered, until it is
/// seen whose it is.
#[test]
fn the_guard_counts_who_depends_on_an_authority_that_certificates_do_not_name() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(folder.path());
    let (root, other) = (Ca::new("root"), Ca::new("other"));
    let import = |registry: &Registry, name: &str, certificate: CertificateFacts| {
        let device = NewDevice {
            id: id(name),
            model: None,
            groups: vec![],
            state: LifecycleState::Active,
            authority: None,
        };
        let fingerprint = certificate.fingerprint;
        let certificate = Some(NewCredential::brought(certificate));
        registry
            .import_devices(actor(), tenant(), vec![(device, certificate)])
            .unwrap();
        fingerprint
    };
    let early = import(&registry, "early", other.device("early"));
    for (ca, name) in [(&root, "root"), (&other, "other")] {
        ca.register(&registry, name, Origin::Managed, Admission::RegisteredOnly);
    }
    let mut below = Ca::new("below");
    below.params.use_authority_key_identifier_extension = true;
    let intermediate = below
        .params
        .signed_by(&below.key, &Issuer::from_params(&root.params, &root.key))
        .unwrap();
    registry
        .store_intermediate(actor(), tenant(), intermediate.der().to_vec())
        .unwrap();
    let late = import(&registry, "late", below.device("late"));
    let dependents = |registry: &Registry, of: &str| {
        let now = Timestamp::from_unix_ms(0);
        registry.dependents(&authority(of), now, 9).unwrap().1
    };
    assert!(registry.facts().is_unplaced(&early) && !registry.facts().is_unplaced(&late));
    assert_eq!(dependents(&registry, "root"), ["early", "late"]);
    assert_eq!(dependents(&registry, "other"), ["early"]);
    drop(registry);
    let registry = open(folder.path());
    assert!(registry.facts().is_unplaced(&early) && !registry.facts().is_unplaced(&late));
    // It was admitted: now it is known.
    ExchangeSink::credential_used(&registry, early, &authority("other"));
    add(&registry, "after", None);
    assert!(!registry.facts().is_unplaced(&early));
    assert_eq!(dependents(&registry, "root"), ["late"]);
    assert_eq!(dependents(&registry, "other"), ["early"]);
    drop(registry);
    let registry = open(folder.path());
    assert!(!registry.facts().is_unplaced(&early));
    assert_eq!(dependents(&registry, "root"), ["late"]);
}

#[test]
fn a_known_device_has_its_certificate_learned_once_and_from_its_own_authority() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(folder.path());
    let (ca, other) = (Ca::new("ca"), Ca::new("other"));
    ca.register(&registry, "ca", Origin::Managed, Admission::KnownDevice);
    other.register(&registry, "other", Origin::Managed, Admission::KnownDevice);
    add(&registry, "d1", Some("ca"));
    add(&registry, "d2", None);
    assert_eq!(
        code_of(contact(&registry, "other", &other.device("d1"))),
        Some(DenialCode::FirstContactUnbound)
    );
    assert_eq!(
        code_of(contact(&registry, "ca", &ca.device("d2"))),
        Some(DenialCode::FirstContactUnbound)
    );
    assert_eq!(
        code_of(contact(&registry, "ca", &ca.device("d3"))),
        Some(DenialCode::UnknownDevice)
    );
    let first = ca.device("d1");
    assert_eq!(code_of(contact(&registry, "ca", &first)), None);
    assert_eq!(
        registry.facts().credential(&first.fingerprint).unwrap().device,
        id("d1")
    );
    // The same again is no second credential; another key is refused.
    assert_eq!(code_of(contact(&registry, "ca", &first)), None);
    assert_eq!(
        code_of(contact(&registry, "ca", &ca.device("d1"))),
        Some(DenialCode::FirstContactOtherKey)
    );
    assert_eq!(registry.credentials(&tenant(), &id("d1")).unwrap().len(), 1);
    // A copied key: bound, without a certificate, but the key is d1's.
    let key = KeyPair::generate().unwrap();
    let of = |name: &str| CertificateFacts::parse(&ca.issue(name, &key)).unwrap();
    for name in ["d4", "d5"] {
        add(&registry, name, Some("ca"));
    }
    assert_eq!(code_of(contact(&registry, "ca", &of("d4"))), None);
    assert_eq!(
        code_of(contact(&registry, "ca", &of("d5"))),
        Some(DenialCode::FirstContactSharedKey)
    );
    // A stolen key: another certificate for it is as good as the one that was revoked.
    let of_d4 = registry.credentials(&tenant(), &id("d4")).unwrap().remove(0);
    let whose = Revocation::Credential(of_d4.fingerprint);
    let reason = RevocationReason::KeyCompromise;
    registry.revoke(actor(), whose, reason, String::new()).unwrap();
    assert_eq!(
        code_of(contact(&registry, "ca", &of("d4"))),
        Some(DenialCode::FirstContactRevokedKey)
    );
    let import = registry.pin_credential(actor(), tenant(), id("d4"), of("d4"));
    assert!(
        import
            .unwrap_err()
            .to_string()
            .contains("was revoked; hint: make a new key")
    );
}

#[test]
fn just_in_time_makes_what_never_existed_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(folder.path());
    let ca = Ca::new("ca");
    let template = Template {
        model: Some("m".into()),
        groups: vec!["new".into()],
        state: LifecycleState::Active,
        id_pattern: "SN-*".parse().unwrap(),
        quota: 2,
    };
    ca.register(
        &registry,
        "ca",
        Origin::Managed,
        Admission::JustInTime(template.into()),
    );
    add(&registry, "SN-old", Some("ca"));
    add(&registry, "SN-dead", Some("ca"));
    registry
        .move_device(
            actor(),
            tenant(),
            id("SN-dead"),
            LifecycleMove::Decommission,
            String::new(),
        )
        .unwrap();
    for (name, expected) in [
        ("SN-old", Some(DenialCode::UnknownCredential)),
        ("SN-dead", Some(DenialCode::DeviceDecommissioned)),
        ("other", Some(DenialCode::FirstContactPattern)),
        ("SN-1", None),
        ("SN-2", None),
        ("SN-3", Some(DenialCode::FirstContactQuota)),
    ] {
        assert_eq!(
            code_of(contact(&registry, "ca", &ca.device(name))),
            expected,
            "{name}"
        );
    }
    let device = registry.facts().device(&tenant(), &id("SN-1")).unwrap();
    assert_eq!(device.model.as_deref(), Some("m"));
    // Its second certificate is not learned: just-in-time never adds one to a device that exists.
    assert_eq!(
        code_of(contact(&registry, "ca", &ca.device("SN-1"))),
        Some(DenialCode::UnknownCredential)
    );
    drop(registry);
    let registry = open(folder.path());
    assert_eq!(
        code_of(contact(&registry, "ca", &ca.device("SN-4"))),
        Some(DenialCode::FirstContactQuota)
    );
}

#[test]
fn an_authority_that_was_revoked_since_the_backup_takes_along_what_it_issued() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["old", "backup", "new"] {
        std::fs::create_dir(path(name)).unwrap();
    }
    let old = open(&path("old"));
    let ca = Ca::new("ca");
    ca.register(&old, "ca", Origin::Managed, Admission::RegisteredOnly);
    let import = |name: &str| {
        let certificate = ca.device(name);
        let serial = certificate.serial.clone();
        let device = NewDevice {
            id: id(name),
            model: None,
            groups: vec![],
            state: LifecycleState::Active,
            authority: None,
        };
        let credential = NewCredential {
            authority: Some(authority("ca")),
            ..NewCredential::brought(certificate)
        };
        old.import_devices(actor(), tenant(), vec![(device, Some(credential))])
            .unwrap();
        serial
    };
    let known = import("known");
    old.copy_to(&path("backup"), actor(), serde_json::json!({}))
        .unwrap();
    let later = import("later");
    old.move_authority(actor(), authority("ca"), AuthorityMove::Revoke, String::new())
        .unwrap();
    let start = Timestamp::from_unix_ms(0);
    let listed = |registry: &Registry| {
        let mut all = registry.revoked_by(&authority("ca"), start).unwrap();
        all.sort_by(|a, b| a.serial.cmp(&b.serial));
        all
    };
    let there = listed(&old);
    assert_eq!(there.len(), 2);
    drop(old);
    for name in countersign_registry::DATABASES {
        std::fs::copy(path("backup").join(name), path("new").join(name)).unwrap();
    }
    let new = Registry::open(&path("new"), LedgerLimits::default()).unwrap();
    let newer = new.newer_in_registry(&path("old").join("registry.db")).unwrap();
    assert_eq!(newer.issued, Vec::<String>::new());
    new.apply_newer(actor(), newer).unwrap();
    // The same serial numbers, since when and why.
    assert_eq!(listed(&new), there);
    // And a CA that runs apart hears of both: also of the one that this registry never saw.
    let mut told = Vec::new();
    let mut cursor = EndedCursor::default();
    loop {
        let page = new.ended_after(&authority("ca"), &cursor, 1).unwrap();
        let Some(last) = page.last() else { break };
        cursor = EndedCursor {
            revision: last.revision,
            serial: last.serial.clone(),
        };
        told.extend(page.into_iter().map(|e| (e.serial, e.reason)));
    }
    let why = Some(RevocationReason::CaCompromise);
    assert_eq!(told, [(later, why), (known, why)]);
}

#[test]
fn a_template_makes_pending_or_active_devices_from_the_start_and_later() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(folder.path());
    let ca = Ca::new("ca");
    let template = |state| {
        let template = Template {
            model: None,
            groups: vec![],
            state,
            id_pattern: "SN-*".parse().unwrap(),
            quota: 2,
        };
        Admission::JustInTime(template.into())
    };
    let new = |state| NewAuthority {
        id: authority("ca"),
        tenant: tenant(),
        origin: Origin::Managed,
        rule: IdentityRule::default(),
        admission: template(state),
        certificate: ca.certificate(),
    };
    let is_refused = |e: RegistryError| {
        let text = e.to_string();
        assert!(
            text.contains("starts as pending or active") && text.contains("hint: "),
            "{text}"
        );
    };
    for state in [LifecycleState::Suspended, LifecycleState::Decommissioned] {
        is_refused(registry.register_authority(actor(), new(state)).unwrap_err());
    }
    registry
        .register_authority(actor(), new(LifecycleState::Pending))
        .unwrap();
    let later = Some(template(LifecycleState::Suspended));
    is_refused(
        registry
            .configure_authority(actor(), authority("ca"), None, later)
            .unwrap_err(),
    );
}
