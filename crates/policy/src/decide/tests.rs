use std::net::{IpAddr, Ipv4Addr};

use countersign_identity::{DeviceId, Fingerprint, TenantId};

use super::*;
use crate::facts::{CredentialFacts, TlsFacts};
use crate::spaces::default_spaces;

pub(super) fn device(groups: &[&str]) -> DeviceFacts {
    DeviceFacts {
        tenant: TenantId::default_tenant(),
        id: DeviceId::new("d1").unwrap(),
        model: Some("m1".into()),
        groups: groups.iter().map(|g| Arc::from(*g)).collect(),
        batch: None,
        state: LifecycleState::Active,
        generation: Generation(1),
    }
}

pub(super) fn credential(device: &DeviceFacts) -> CredentialFacts {
    CredentialFacts {
        fingerprint: Fingerprint::of(b"cert"),
        tenant: device.tenant.clone(),
        device: device.id.clone(),
        kind: CredentialKind::Operational,
        state: CredentialState::Active,
        custody: Custody::Unknown,
        opens_data_sessions: true,
        generation: Generation(1),
    }
}

pub(super) fn connect(
    policy: &TenantPolicy,
    device: &DeviceFacts,
    credential: &CredentialFacts,
) -> Result<AdmissionPermit, Denial> {
    policy.connect(&ConnectFacts {
        device,
        credential,
        authority: &AuthorityId::new("ca").unwrap(),
        authority_generation: Generation(1),
        source: IpAddr::V4(Ipv4Addr::LOCALHOST),
        tls: TlsFacts {
            version: "TLSv1.3",
            group: Some("X25519"),
            cipher_suite: "s",
            resumed: false,
        },
        now: Timestamp::from_unix_s(1_795_000_000),
    })
}

fn policy(text: &str) -> TenantPolicy {
    TenantPolicy::compile(Generation(1), text, default_spaces()).unwrap()
}

pub(super) fn asked(policy: &TenantPolicy, names: &[&str]) -> DataFacts {
    let mut spaces = SpaceSet::default();
    for (n, s) in policy.spaces().iter().enumerate() {
        if names.contains(&s.name.as_str()) {
            spaces.insert(n);
        }
    }
    DataFacts {
        spaces,
        qos: 1,
        retain: false,
        now: Timestamp::from_unix_s(1_795_000_000),
    }
}

#[test]
fn by_default_a_device_has_its_own_topics_and_no_others() {
    let (policy, device) = (policy(DEFAULT_POLICY), device(&[]));
    let permit = connect(&policy, &device, &credential(&device)).unwrap();
    assert_eq!(&*permit.policies()[0], "active-devices-connect");
    let publish = |names: &[&str]| {
        policy
            .publish(&permit, &device, "t", asked(&policy, names))
            .map(drop)
    };
    let subscribe = |names: &[&str]| {
        policy
            .subscribe(&permit, &device, "t", asked(&policy, names))
            .map(drop)
    };
    assert!(publish(&["telemetry"]).is_ok() && publish(&["status"]).is_ok());
    assert_eq!(publish(&[]).unwrap_err().code, DenialCode::TopicForbidden);
    assert_eq!(
        publish(&["commands"]).unwrap_err().code,
        DenialCode::TopicForbidden
    );
    assert!(subscribe(&["commands"]).is_ok());
    assert_eq!(
        subscribe(&["telemetry"]).unwrap_err().code,
        DenialCode::TopicForbidden
    );
}

#[test]
fn nothing_configured_means_nobody_admitted() {
    let (policy, device) = (policy(""), device(&[]));
    assert_eq!(
        connect(&policy, &device, &credential(&device)).unwrap_err().code,
        DenialCode::PolicyNoPermit
    );
}

#[test]
fn every_state_but_active_is_its_own_denial_whatever_policies_say() {
    let policy = policy("permit (principal, action, resource);");
    for (state, code) in [
        (LifecycleState::Pending, DenialCode::DevicePending),
        (LifecycleState::Suspended, DenialCode::DeviceSuspended),
        (LifecycleState::Quarantined, DenialCode::DeviceQuarantined),
        (LifecycleState::Decommissioned, DenialCode::DeviceDecommissioned),
    ] {
        let device = DeviceFacts { state, ..device(&[]) };
        assert_eq!(
            connect(&policy, &device, &credential(&device)).unwrap_err().code,
            code
        );
    }
    let device = device(&[]);
    for (state, code) in [
        (CredentialState::Revoked, DenialCode::CredentialRevoked),
        (CredentialState::Lapsed, DenialCode::CredentialLapsed),
        (CredentialState::Expired, DenialCode::CertificateExpired),
    ] {
        let credential = CredentialFacts {
            state,
            ..credential(&device)
        };
        assert_eq!(connect(&policy, &device, &credential).unwrap_err().code, code);
    }
}

#[test]
fn forbid_wins_and_is_named() {
    let text =
        format!("{DEFAULT_POLICY} @id(\"no-lab\") forbid (principal in Group::\"lab\", action, resource);");
    let policy = policy(&text);
    let (lab, other) = (device(&["lab"]), device(&["field"]));
    let denial = connect(&policy, &lab, &credential(&lab)).unwrap_err();
    assert_eq!(
        (denial.code, denial.policies),
        (DenialCode::PolicyForbids, vec!["no-lab".to_owned()])
    );
    assert!(connect(&policy, &other, &credential(&other)).is_ok());
}

#[test]
fn custody_can_be_demanded() {
    let policy = policy(
        "permit (principal, action == Action::\"connect\", resource) when { context.credential.custody == \"attested\" };",
    );
    let device = device(&[]);
    let unknown = credential(&device);
    assert_eq!(
        connect(&policy, &device, &unknown).unwrap_err().code,
        DenialCode::PolicyNoPermit
    );
    assert!(
        connect(
            &policy,
            &device,
            &CredentialFacts {
                custody: Custody::Attested,
                ..unknown
            }
        )
        .is_ok()
    );
}

#[test]
fn an_evaluation_error_denies_even_beside_a_permit() {
    let text = "permit (principal, action, resource); \
                @id(\"broken\") permit (principal, action, resource) when { context.now + 9223372036854775807 > 0 };";
    let denial = connect(&policy(text), &device(&[]), &credential(&device(&[]))).unwrap_err();
    assert_eq!(denial.code, DenialCode::PolicyError);
    assert!(denial.policies[0].contains("broken"), "{denial:?}");
}

#[test]
fn a_policy_outside_the_schema_never_takes_effect() {
    let compile = |text: &str| TenantPolicy::compile(Generation(1), text, default_spaces()).unwrap_err();
    let fault =
        compile("@id(\"typo\") permit (principal, action, resource) when { principal.modle == \"x\" };");
    assert!(
        matches!(&fault, PolicyFault::Schema(all) if all[0].message.contains("modle")),
        "{fault}"
    );
    assert!(matches!(compile("permit (principal"), PolicyFault::Syntax(_)));
    let twice =
        "@id(\"a\") permit (principal, action, resource); @id(\"a\") permit (principal, action, resource);";
    let fault = compile(twice);
    assert!(
        matches!(&fault, PolicyFault::Names(all) if all[0].column == Some(48)),
        "{fault:?}"
    );
}

#[test]
fn a_permit_is_good_only_for_its_device_and_policies() {
    let policy = policy(DEFAULT_POLICY);
    let device = device(&[]);
    let permit = connect(&policy, &device, &credential(&device)).unwrap();
    let other = DeviceFacts {
        id: DeviceId::new("d2").unwrap(),
        ..device.clone()
    };
    let code = |p: &TenantPolicy, d: &DeviceFacts| {
        p.publish(&permit, d, "t", asked(p, &["telemetry"]))
            .unwrap_err()
            .code
    };
    assert_eq!(code(&policy, &other), DenialCode::GrantStale);
    let changed = DeviceFacts {
        generation: Generation(2),
        ..device.clone()
    };
    assert_eq!(code(&policy, &changed), DenialCode::GrantStale);
    let newer = TenantPolicy::compile(Generation(2), DEFAULT_POLICY, default_spaces()).unwrap();
    assert_eq!(code(&newer, &device), DenialCode::GrantStale);
}

#[test]
fn decisions_are_kept_by_class_but_not_where_a_policy_is_particular() {
    let kept = policy(DEFAULT_POLICY);
    let device = device(&[]);
    for _ in 0..5 {
        connect(&kept, &device, &credential(&device)).unwrap();
    }
    assert_eq!(
        kept.counts(),
        DecisionCounts {
            hits: 4,
            misses: 1,
            forgotten: 0
        }
    );
    for particular in [
        "permit (principal == Device::\"default/d1\", action, resource);",
        "permit (principal, action, resource) when { context.now > 0 };",
        "permit (principal, action, resource) when { context.source.isLoopback() };",
        "permit (principal, action, resource) when { principal.id == \"d1\" };",
        "permit (principal, action, resource) when { principal in [Device::\"default/d1\"] };",
        "permit (principal, action, resource) when { context == context };",
        "permit (principal, action, resource) when { context has now };",
        "permit (principal, action, resource) when { [principal].contains(principal) };",
    ] {
        let policy = policy(particular);
        for _ in 0..3 {
            connect(&policy, &device, &credential(&device)).unwrap();
        }
        assert_eq!(policy.counts().hits, 0, "{particular}");
        let other = DeviceFacts {
            id: DeviceId::new("d2").unwrap(),
            ..device.clone()
        };
        if particular.contains("d1") {
            assert!(
                connect(&policy, &other, &credential(&other)).is_err(),
                "{particular}"
            );
        }
    }
    let only_publish = policy(
        "permit (principal, action == Action::\"connect\", resource); \
                               permit (principal, action == Action::\"publish\", resource) when { context.now > 0 };",
    );
    for _ in 0..3 {
        connect(&only_publish, &device, &credential(&device)).unwrap();
    }
    assert_eq!(only_publish.counts().hits, 2);
}

#[test]
fn a_fault_is_told_with_its_place_and_a_cure() {
    let problems = |text: &str| validate(text, &default_spaces()).unwrap_err().problems();
    let text = "// fleet\n@id(\"ok\")\npermit (principal, action, resource);\n@id(\"typo\")\npermit (principal, action, resource)\n  when { principal.modle == \"x\" };\n";
    let found = problems(text);
    assert_eq!(
        (found[0].line, found[0].column, found[0].policy.as_deref()),
        (Some(6), Some(10), Some("typo")),
        "{found:?}"
    );
    assert!(found[0].cure.contains("policy schema"), "{found:?}");
    let found = problems("permit (principal, action, resource);\npermit (principal;\n");
    assert_eq!((found[0].line, found[0].column), (Some(2), Some(18)), "{found:?}");
    assert!(!found[0].cure.is_empty());
}

#[test]
fn a_template_is_refused_and_what_looks_wrong_is_told() {
    let fault = validate(
        "@id(\"t\") permit (principal in ?principal, action, resource);",
        &[],
    )
    .unwrap_err();
    assert!(fault.to_string().contains("nothing fills it in"), "{fault}");
    let text = "@id(\"p\") permit (principal, action == Action::\"publish\", resource) when { context.spaces.contains(\"telemetri\") };";
    let warnings = validate(text, &default_spaces()).unwrap();
    assert!(
        warnings[0].message.contains("telemetri") && warnings[0].line == Some(1),
        "{warnings:?}"
    );
    assert_eq!(validate(DEFAULT_POLICY, &default_spaces()).unwrap(), []);
}

/// Each fact that policies may read is in the class by which decisions are kept: devices that differ in one alone are
/// decided apart.
#[test]
fn what_a_policy_may_read_tells_decisions_apart() {
    let base = device(&["g"]);
    let kept = credential(&base);
    let tls = TlsFacts {
        version: "TLSv1.3",
        group: Some("X25519"),
        cipher_suite: "s",
        resumed: false,
    };
    let with = |text: &str,
                other: &DeviceFacts,
                credential: &CredentialFacts,
                authority: &str,
                other_tls: TlsFacts| {
        let policy = policy(&format!(
            "permit (principal, action, resource) when {{ {text} }};"
        ));
        let ask = |device: &DeviceFacts, credential: &CredentialFacts, authority: &str, tls| {
            policy
                .connect(&ConnectFacts {
                    device,
                    credential,
                    authority: &AuthorityId::new(authority).unwrap(),
                    authority_generation: Generation(1),
                    source: IpAddr::V4(Ipv4Addr::LOCALHOST),
                    tls,
                    now: Timestamp::from_unix_s(1_795_000_000),
                })
                .is_ok()
        };
        assert!(ask(&base, &kept, "ca", tls), "{text}");
        assert!(ask(&base, &kept, "ca", tls), "{text}");
        assert_eq!(policy.counts().hits, 1, "{text}: not kept");
        assert!(
            !ask(other, credential, authority, other_tls),
            "{text}: taken for the other's"
        );
    };
    let other = |change: fn(&mut DeviceFacts)| {
        let mut d = base.clone();
        change(&mut d);
        d
    };
    with(
        "principal has model && principal.model == \"m1\"",
        &other(|d| d.model = None),
        &kept,
        "ca",
        tls,
    );
    with(
        "!(principal has batch)",
        &other(|d| d.batch = Some("b".into())),
        &kept,
        "ca",
        tls,
    );
    with(
        "principal in Group::\"g\"",
        &other(|d| d.groups = Arc::default()),
        &kept,
        "ca",
        tls,
    );
    let factory = CredentialFacts {
        kind: CredentialKind::Factory,
        ..kept.clone()
    };
    with(
        "context.credential.kind == \"operational\"",
        &base,
        &factory,
        "ca",
        tls,
    );
    let attested = CredentialFacts {
        custody: Custody::Attested,
        ..kept.clone()
    };
    with(
        "context.credential.custody == \"unknown\"",
        &base,
        &attested,
        "ca",
        tls,
    );
    with("context.authority == \"ca\"", &base, &kept, "other", tls);
    let change = |version, group, cipher_suite, resumed| TlsFacts {
        version,
        group,
        cipher_suite,
        resumed,
    };
    with(
        "context.tls.version == \"TLSv1.3\"",
        &base,
        &kept,
        "ca",
        change("TLSv1.2", Some("X25519"), "s", false),
    );
    with(
        "context.tls has group",
        &base,
        &kept,
        "ca",
        change("TLSv1.3", None, "s", false),
    );
    with(
        "context.tls.cipher_suite == \"s\"",
        &base,
        &kept,
        "ca",
        change("TLSv1.3", Some("X25519"), "t", false),
    );
    with(
        "!context.tls.resumed",
        &base,
        &kept,
        "ca",
        change("TLSv1.3", Some("X25519"), "s", true),
    );
}

#[test]
fn the_spaces_a_device_may_publish_to_are_told_without_a_topic() {
    let policy = policy(
        r#"permit (principal, action == Action::"connect", resource);
           permit (principal, action == Action::"publish", resource)
             when { context.spaces.containsAny(["telemetry", "status"]) && context.qos == 1 };
           forbid (principal, action == Action::"publish", resource) when { context.spaces.contains("status") };"#,
    );
    let device = device(&[]);
    let permit = connect(&policy, &device, &credential(&device)).unwrap();
    let now = Timestamp::from_unix_s(1_795_000_000);
    let found = policy.publishable(&permit, &device, now).unwrap();
    assert_eq!(found, asked(&policy, &["telemetry"]).spaces);
    assert!(found.and(asked(&policy, &["status"]).spaces).is_empty());
    // Of another generation of the device nothing is told.
    let later = DeviceFacts {
        generation: Generation(2),
        ..device
    };
    let denial = policy.publishable(&permit, &later, now).unwrap_err();
    assert_eq!(denial.code, DenialCode::GrantStale);
}

#[test]
fn what_is_for_enrolment_alone_opens_no_session_whatever_policies_permit() {
    let policy = policy("permit (principal, action, resource);");
    let mut device = device(&[]);
    let closed = CredentialFacts {
        kind: CredentialKind::Factory,
        opens_data_sessions: false,
        ..credential(&device)
    };
    let denied = |device: &DeviceFacts, credential: &CredentialFacts| {
        connect(&policy, device, credential)
            .map(|_| ())
            .map_err(|d| d.code)
    };
    assert_eq!(denied(&device, &closed), Err(DenialCode::EnrolOnly));
    let open = CredentialFacts {
        opens_data_sessions: true,
        ..closed.clone()
    };
    assert_eq!(denied(&device, &open), Ok(()));
    // What is said first is what would be in the way of enrolling too.
    let revoked = CredentialFacts {
        state: CredentialState::Revoked,
        ..closed.clone()
    };
    assert_eq!(denied(&device, &revoked), Err(DenialCode::CredentialRevoked));
    for (state, code) in [
        (LifecycleState::Pending, DenialCode::DevicePending),
        (LifecycleState::Suspended, DenialCode::DeviceSuspended),
        (LifecycleState::Quarantined, DenialCode::DeviceQuarantined),
        (LifecycleState::Decommissioned, DenialCode::DeviceDecommissioned),
    ] {
        device.state = state;
        assert_eq!(denied(&device, &closed), Err(code));
    }
}
