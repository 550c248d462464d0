use countersign_factory::{CertificateRequest, ExtraExtension, KeyKind, Profile, ProvenKey};
use countersign_identity::{
    Anchor, AnchorIndex, AnchorState, AuthorityId, DeviceId, Generation, IdentityRule, TenantId,
    VerifiedChain,
};

use countersign_factory::SoftwareKey;
use der::Decode;
use x509_cert::ext::pkix::name::{DistributionPointName, GeneralName};
use x509_cert::ext::pkix::{AuthorityInfoAccessSyntax, CrlDistributionPoints};

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
    let refused = devices.issue(
        &subject,
        server.key().info(),
        &extensions,
        NOW,
        lifetime,
        Leaf::Server,
    );
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
        san: vec!["uri:urn:dev:{tenant}:{id}".parse().unwrap()],
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

/// Everything that a profile may say.
fn full() -> Profile {
    Profile {
        name: "full".into(),
        organization: "Acme {tenant}".into(),
        organizational_unit: "unit {id}".into(),
        serial_number: false,
        san: [
            "uri:urn:dev:{tenant}:{id}",
            "dns:{id}.{tenant}.devices.example.com",
            "hardware-module-name:1.3.6.1.4.1.99999.1",
        ]
        .map(|san| san.parse().unwrap())
        .into(),
        crl_urls: vec![
            "http://pki.example.com/crl/{authority}.crl".into(),
            "http://mirror.example.com/{authority}.crl".into(),
        ],
        ocsp_urls: vec!["http://pki.example.com/ocsp".into()],
        ca_issuer_urls: vec!["http://pki.example.com/ca/{authority}.crt".into()],
        extensions: vec![ExtraExtension {
            oid: "1.3.6.1.4.1.99999.2".parse().unwrap(),
            value: vec![0x0c, 4, b'a', b'c', b'm', b'e'],
            critical: false,
        }],
        ..Profile::default()
    }
}

fn grant_of(profile: Profile) -> EnrolmentGrant {
    let key = ProvenKey::of(&SoftwareKey::generate().unwrap());
    let device = DeviceId::new("SN-1").unwrap();
    EnrolmentGrant::new(TenantId::default_tenant(), device, key, profile).unwrap()
}

fn url(name: &GeneralName) -> &str {
    match name {
        GeneralName::UniformResourceIdentifier(url) => url.as_str(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_profile_says_names_alternative_names_and_extensions_and_the_door_takes_them() {
    full().check().unwrap();
    let devices = hierarchy(Hierarchy::Devices).named(AuthorityId::new("fleet").unwrap());
    // The second by what was kept of the first.
    for _ in 0..2 {
        let issued = devices.issue_device(&grant_of(full()), NOW).unwrap();
        let facts = issued.facts();
        assert_eq!(facts.subject_text, "CN=SN-1,OU=unit SN-1,O=Acme default");
        assert_eq!(facts.san_uris, ["urn:dev:default:SN-1"]);
        assert_eq!(facts.san_dns_names, ["SN-1.default.devices.example.com"]);
        assert_eq!(facts.hardware_serials, ["SN-1"]);
        let view = CertificateView::of_certificate(issued.certificate()).unwrap();
        let (_, points) = view.extension::<CrlDistributionPoints>().unwrap().unwrap();
        let lists: Vec<_> = points
            .0
            .iter()
            .map(|p| match &p.distribution_point {
                Some(DistributionPointName::FullName(names)) => url(&names[0]).to_owned(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            lists,
            [
                "http://pki.example.com/crl/fleet.crl",
                "http://mirror.example.com/fleet.crl"
            ]
        );
        let (_, access) = view.extension::<AuthorityInfoAccessSyntax>().unwrap().unwrap();
        let access: Vec<_> = access
            .0
            .iter()
            .map(|a| (a.access_method.to_string(), url(&a.access_location)))
            .collect();
        let method = |n: u8| format!("1.3.6.1.5.5.7.48.{n}");
        assert_eq!(
            access,
            [
                (method(1), "http://pki.example.com/ocsp"),
                (method(2), "http://pki.example.com/ca/fleet.crt")
            ]
        );
        let own = view
            .extensions
            .iter()
            .find(|e| e.id == full().extensions[0].oid)
            .unwrap();
        assert_eq!((own.value, own.critical), (&b"\x0c\x04acme"[..], false));
        for rule in ["common-name", "san-uri", "san-dns", "hardware-module-name"] {
            let anchor = Anchor::new(
                TenantId::default_tenant(),
                AuthorityId::new("fleet").unwrap(),
                AnchorState::Active,
                Generation(1),
                rule.parse().unwrap(),
                devices.certificate(),
            )
            .unwrap();
            let index = AnchorIndex::new([std::sync::Arc::new(anchor)]);
            let chain = issued.chain();
            let verified =
                VerifiedChain::verify(&index, None, facts.clone(), &chain[0], &chain[1..], NOW).unwrap();
            let id = verified.anchor().identity_rule.read(verified.leaf()).unwrap();
            assert_eq!(id.as_str(), "SN-1", "{rule}");
        }
    }
    // What is kept for one profile is not another's.
    let other = Profile {
        crl_urls: vec![],
        ..full()
    };
    let issued = devices.issue_device(&grant_of(other), NOW).unwrap();
    let view = CertificateView::of_certificate(issued.certificate()).unwrap();
    assert!(view.extension::<CrlDistributionPoints>().unwrap().is_none());
    assert!(view.extension::<AuthorityInfoAccessSyntax>().unwrap().is_some());
}

#[test]
fn a_profile_may_name_neither_organization_nor_serial_number() {
    let bare = Profile {
        organization: String::new(),
        serial_number: false,
        ..Profile::default()
    };
    let facts = issue(bare);
    assert_eq!(facts.subject_text, "CN=SN-1");
    assert!(facts.subject_serial_numbers.is_empty());
}

#[test]
fn a_url_that_names_the_authority_needs_one_with_a_name() {
    let refused = hierarchy(Hierarchy::Devices).issue_device(&grant_of(full()), NOW);
    assert!(
        matches!(refused, Err(MintError::Lint(ref what)) if what.contains("has no name")),
        "{refused:?}"
    );
}

/// What would be minted if the code that puts a certificate together had a fault: the lint stands before the key.
#[test]
fn the_lint_refuses_what_the_profile_does_not_say() {
    let devices = hierarchy(Hierarchy::Devices).named(AuthorityId::new("fleet").unwrap());
    let key = devices.key_id().unwrap();
    let grant = grant_of(full());
    let put_together = |profile: &Profile, names: &EnrolmentGrant| {
        let mut extensions = profile::device_of(key, profile, "fleet").unwrap();
        if let Some(names) = names.names().alternative() {
            extensions.add_names(names).unwrap();
        }
        extensions
    };
    let issue = |subject: &[u8], extensions: &Extensions| {
        devices.issue(
            subject,
            grant.key().info(),
            extensions,
            NOW,
            Some(Duration::from_secs(3600)),
            Leaf::Device(&grant),
        )
    };
    let subject = grant.names().subject();
    issue(&subject, &put_together(&full(), &grant)).unwrap();

    let refused = |rule: &str, subject: &[u8], extensions: &Extensions| {
        let refused = issue(subject, extensions);
        assert!(
            matches!(refused, Err(MintError::Lint(ref what)) if what.contains(rule)),
            "{rule}: {refused:?}"
        );
    };
    let default = grant_of(Profile::default());
    refused(
        "the subject",
        &default.names().subject(),
        &put_together(&full(), &grant),
    );
    refused("alternative names", &subject, &put_together(&full(), &default));
    let other_host = grant_of(Profile {
        san: [
            full().san[0].clone(),
            "dns:{id}.other.example.com".parse().unwrap(),
            full().san[2].clone(),
        ]
        .into(),
        ..full()
    });
    refused("alternative names", &subject, &put_together(&full(), &other_host));
    let with = |change: &dyn Fn(&mut Profile)| {
        let mut profile = full();
        change(&mut profile);
        put_together(&profile, &grant)
    };
    refused("crl_urls", &subject, &with(&|p| p.crl_urls.clear()));
    refused("crl_urls", &subject, &with(&|p| p.crl_urls.reverse()));
    refused("ocsp_urls", &subject, &with(&|p| p.ocsp_urls.clear()));
    refused(
        "ocsp_urls",
        &subject,
        &with(&|p| {
            std::mem::swap(&mut p.ocsp_urls, &mut p.ca_issuer_urls);
        }),
    );
    refused("each extension", &subject, &with(&|p| p.extensions.clear()));
    refused(
        "each extension",
        &subject,
        &with(&|p| p.extensions[0].value = vec![5, 0]),
    );
    refused(
        "each extension",
        &subject,
        &with(&|p| p.extensions[0].critical = true),
    );
    let mut more = put_together(&full(), &grant);
    let unknown = ExtraExtension {
        oid: "1.3.6.1.4.1.99999.3".parse().unwrap(),
        value: vec![5, 0],
        critical: false,
    };
    more.add_own(&unknown).unwrap();
    refused("no others", &subject, &more);
}

#[test]
fn a_certificate_that_is_not_what_was_linted_is_thrown_away() {
    let devices = hierarchy(Hierarchy::Devices);
    let issued = devices.issue_device(&grant("d"), NOW).unwrap();
    let certificate = issued.certificate().to_vec();
    let whole = x509_cert::Certificate::from_der(&certificate).unwrap();
    let tbs = whole.tbs_certificate().to_der().unwrap();
    let subject = &devices.facts.subject_der;
    let verify = |tbs: Vec<u8>| {
        let certificate = certificate.clone();
        Signed { certificate, tbs }.verify(&devices.verifying, subject)
    };
    verify(tbs.clone()).unwrap();
    let refused = verify([&tbs[..], &[0]].concat());
    assert!(
        matches!(refused, Err(MintError::Unverified(ref what)) if what.contains("linted")),
        "{refused:?}"
    );
}
