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
        matches!(&fault, PolicyFault::Schema(text) if text.contains("modle")),
        "{fault}"
    );
    assert!(matches!(compile("permit (principal"), PolicyFault::Syntax(_)));
    let twice =
        "@id(\"a\") permit (principal, action, resource); @id(\"a\") permit (principal, action, resource);";
    assert_eq!(compile(twice), PolicyFault::DuplicateId("a".into()));
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
