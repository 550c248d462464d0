use countersign_factory::{CertificateRequest, KeyKind, Profile, ProvenKey};
use countersign_identity::{
    Anchor, AnchorIndex, AnchorState, AuthorityId, DeviceId, Generation, IdentityRule, TenantId,
    VerifiedChain,
};

use countersign_factory::SoftwareKey;

use super::*;

const NOW: Timestamp = Timestamp::from_unix_s(1_795_000_000);

fn hierarchy(kind: Hierarchy) -> IssuingAuthority {
    let folder = tempfile::tempdir().unwrap();
    IssuingAuthority::create(folder.path(), kind, "test", NOW).unwrap()
}

fn grant(id: &str) -> EnrolmentGrant {
    let key = SoftwareKey::generate().unwrap();
    EnrolmentGrant::new(
        TenantId::default_tenant(),
        DeviceId::new(id).unwrap(),
        ProvenKey::of(&key),
        Profile::default(),
    )
    .unwrap()
}

#[test]
fn a_device_certificate_verifies_at_the_gateway_and_names_the_device_twice() {
    let devices = hierarchy(Hierarchy::Devices);
    let issued = devices.issue_device(&grant("SN-000017"), NOW).unwrap();
    let facts = issued.facts();
    assert_eq!(facts.subject_common_names, ["SN-000017"]);
    assert_eq!(facts.subject_serial_numbers, ["SN-000017"]);
    assert_eq!(
        facts.extended_key_usage.as_deref(),
        Some(&["1.3.6.1.5.5.7.3.2".to_owned()][..])
    );
    assert!(facts.subject_key_id.is_none() && facts.ca.is_none());
    assert_eq!(
        facts.not_after.since(facts.not_before),
        Duration::from_secs(90 * 24 * 3600 - 1)
    );
    assert!(facts.is_valid_at(NOW));

    for anchor in [devices.root(), devices.certificate()] {
        let anchor = Anchor::new(
            TenantId::default_tenant(),
            AuthorityId::new("a").unwrap(),
            AnchorState::Active,
            Generation(1),
            IdentityRule::default(),
            anchor,
        )
        .unwrap();
        let index = AnchorIndex::new([std::sync::Arc::new(anchor)]);
        let chain = issued.chain();
        VerifiedChain::verify(&index, None, facts.clone(), &chain[0], &chain[1..], NOW).unwrap();
    }
}

#[test]
fn an_id_with_an_underscore_stands_in_the_common_name_alone() {
    let issued = hierarchy(Hierarchy::Devices)
        .issue_device(&grant("sn_1"), NOW)
        .unwrap();
    assert_eq!(issued.facts().subject_common_names, ["sn_1"]);
    assert!(issued.facts().subject_serial_numbers.is_empty());
}

#[test]
fn the_hierarchies_do_not_issue_each_others_certificates() {
    let key = ProvenKey::of(&SoftwareKey::generate().unwrap());
    let server = ServerGrant::new(&["gate.example".into(), "127.0.0.1".into()], key).unwrap();
    let (devices, platform) = (hierarchy(Hierarchy::Devices), hierarchy(Hierarchy::Platform));
    assert!(matches!(
        devices.issue_server(&server, NOW),
        Err(MintError::WrongHierarchy { kind: "server", .. })
    ));
    assert!(matches!(
        platform.issue_device(&grant("d"), NOW),
        Err(MintError::WrongHierarchy { kind: "device", .. })
    ));
    let facts = platform.issue_server(&server, NOW).unwrap().facts().clone();
    assert_eq!(facts.san_dns_names, ["gate.example"]);

    // Even where the check above were passed by, the lint refuses a serverAuth certificate below `devices`.
    let subject = profile::server_name("gate.example");
    let extensions = profile::server(devices.key_id().unwrap(), server.host_names()).unwrap();
    let lifetime = Some(Duration::from_secs(3600));
    let kind = ProfileKind::Operational;
    let refused = devices.issue(&subject, server.key().info(), &extensions, NOW, lifetime, kind);
    assert!(
        matches!(refused, Err(MintError::Lint(ref rule)) if rule.contains("clientAuth")),
        "{refused:?}"
    );
}

#[test]
fn nothing_of_a_request_enters_the_certificate_but_its_key() {
    let key = SoftwareKey::generate().unwrap();
    let request = CertificateRequest::create(&key, &DeviceId::new("somebody-else").unwrap()).unwrap();
    let request = CertificateRequest::parse(request.as_bytes()).unwrap();
    let grant = EnrolmentGrant::new(
        TenantId::default_tenant(),
        DeviceId::new("me").unwrap(),
        request.key().clone(),
        Profile::default(),
    )
    .unwrap();
    let issued = hierarchy(Hierarchy::Devices).issue_device(&grant, NOW).unwrap();
    assert_eq!(issued.facts().subject_common_names, ["me"]);
    assert_eq!(
        issued.facts().public_key_sha256,
        ProvenKey::of(&key).fingerprint().unwrap()
    );
}

fn issue(profile: Profile) -> CertificateFacts {
    let key = ProvenKey::of(&SoftwareKey::generate().unwrap());
    let device = DeviceId::new("SN-1").unwrap();
    let grant = EnrolmentGrant::new(TenantId::default_tenant(), device, key, profile).unwrap();
    let issued = hierarchy(Hierarchy::Devices).issue_device(&grant, NOW).unwrap();
    issued.facts().clone()
}

#[test]
fn a_factory_certificate_has_no_end_and_no_purpose_and_a_profile_may_add_a_uri() {
    let [operational, factory] = Profile::built_in().try_into().unwrap();
    let facts = issue(factory);
    assert_eq!(facts.not_after.unix_s(), 253_402_300_799);
    assert_eq!(facts.extended_key_usage, None);
    let facts = issue(Profile {
        san_uri: "urn:dev:{tenant}:{id}".into(),
        lifetime_days: 7,
        ..operational
    });
    assert_eq!(facts.san_uris, ["urn:dev:default:SN-1"]);
    assert_eq!(
        facts.not_after.since(facts.not_before),
        Duration::from_secs(7 * 24 * 3600 - 1)
    );
}

#[test]
fn a_key_that_the_profile_does_not_accept_gets_no_grant() {
    let key = ProvenKey::of(&SoftwareKey::generate().unwrap());
    let profile = Profile {
        keys: vec![KeyKind::Ed25519],
        ..Profile::default()
    };
    let device = DeviceId::new("SN-1").unwrap();
    let refused = EnrolmentGrant::new(TenantId::default_tenant(), device, key, profile).unwrap_err();
    assert!(refused.to_string().contains("the key is p256"), "{refused}");
}

#[test]
fn no_certificate_outlives_its_issuer() {
    let devices = hierarchy(Hierarchy::Devices);
    let late = NOW.plus(ISSUING_LIFETIME).minus(Duration::from_secs(24 * 3600));
    assert!(matches!(
        devices.issue_device(&grant("d"), late),
        Err(MintError::IssuerTooShort { .. })
    ));
}

#[test]
fn the_last_time_at_which_a_profile_can_be_issued_is_the_last() {
    let devices = hierarchy(Hierarchy::Devices);
    let [operational, factory] = Profile::built_in().try_into().unwrap();
    let long = Profile {
        lifetime_days: 3 * 365,
        ..Profile::default()
    };
    for profile in [operational, factory, long] {
        let last = devices.last_issue(profile.lifetime());
        let issue = |now| {
            let key = ProvenKey::of(&SoftwareKey::generate().unwrap());
            let device = DeviceId::new("SN-1").unwrap();
            let grant =
                EnrolmentGrant::new(TenantId::default_tenant(), device, key, profile.clone()).unwrap();
            devices.issue_device(&grant, now)
        };
        issue(last).unwrap();
        assert!(
            matches!(
                issue(last.plus(Duration::from_secs(1))),
                Err(MintError::IssuerTooShort { .. })
            ),
            "{}",
            profile.name
        );
    }
}

#[test]
fn a_hierarchy_is_never_overwritten_and_an_exposed_key_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    IssuingAuthority::create(path, Hierarchy::Devices, "test", NOW).unwrap();
    for file in ["root.key", "issuing.key"] {
        assert_eq!(
            std::fs::metadata(path.join(file)).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
    let again = IssuingAuthority::create(path, Hierarchy::Devices, "test", NOW);
    assert!(matches!(again, Err(crate::HierarchyError::Exists(_))));
    std::fs::set_permissions(path.join("issuing.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let opened = IssuingAuthority::open(path, Hierarchy::Devices);
    assert!(opened.unwrap_err().to_string().contains("hint: chmod 600"));
}
