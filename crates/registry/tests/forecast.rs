//! What expires when, by authority, batch and kind: each live device once per kind.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use countersign_identity::{AuthorityId, CertificateFacts, DeviceId, TenantId, Timestamp};
use countersign_policy::facts::CredentialKind;
use countersign_policy::{ClientIdMode, CredentialState, Custody, LifecycleMove, LifecycleState};
use countersign_registry::{
    Actor, IssuedHere, LedgerLimits, NewCredential, NewDevice, Registry, Revocation, Windows,
};

const NOW: Timestamp = Timestamp::from_unix_s(1_800_000_000);
const DAY: i64 = 86_400;

fn actor() -> Actor {
    Actor("test".into())
}

struct Row<'a> {
    tenant: &'a str,
    device: &'a str,
    authority: &'a str,
    batch: Option<&'a str>,
    kind: CredentialKind,
    state: CredentialState,
    /// Days from now.
    days: (i64, i64),
}

impl Default for Row<'_> {
    fn default() -> Self {
        Self {
            tenant: "default",
            device: "",
            authority: "ca",
            batch: None,
            kind: CredentialKind::Operational,
            state: CredentialState::Active,
            days: (-1, 89),
        }
    }
}

fn put(registry: &Registry, row: &Row<'_>) -> CertificateFacts {
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, row.device);
    let at = |days: i64| {
        time::OffsetDateTime::from_unix_timestamp(NOW.unix_s() + days * DAY)
            .unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
    };
    params.not_before = at(row.days.0);
    params.not_after = if row.days.1 == i64::MAX {
        time::OffsetDateTime::from_unix_timestamp(253_402_300_799).unwrap()
    } else {
        at(row.days.1)
    };
    let der = params
        .self_signed(&rcgen::KeyPair::generate().unwrap())
        .unwrap()
        .der()
        .to_vec();
    let facts = CertificateFacts::parse(&der).unwrap();
    let new = NewDevice {
        id: DeviceId::new(row.device).unwrap(),
        model: None,
        groups: vec![],
        state: LifecycleState::Active,
        authority: None,
    };
    let credential = NewCredential {
        certificate: facts.clone(),
        kind: row.kind,
        state: row.state,
        custody: Custody::Unknown,
        authority: Some(AuthorityId::new(row.authority).unwrap()),
        issued: Some(IssuedHere {
            certificate: der,
            profile: "operational".into(),
            batch: row.batch.map(|b| b.parse().unwrap()),
        }),
    };
    let report = registry
        .import_devices(
            actor(),
            TenantId::new(row.tenant).unwrap(),
            vec![(new, Some(credential))],
        )
        .unwrap()
        .value;
    assert_eq!(report.refused, []);
    facts
}

#[test]
fn every_live_device_is_counted_once_in_its_window() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::create(folder.path(), LedgerLimits::default()).unwrap();
    let other = TenantId::new("other").unwrap();
    registry
        .add_tenant(actor(), other.clone(), ClientIdMode::Strict)
        .unwrap();
    let row = Row::default;
    for (device, days) in [
        ("overdue", (-91, -1)),
        ("d7", (-88, 2)),
        ("d30", (-70, 20)),
        ("d90", (-10, 80)),
        ("later", (-1, 364)),
    ] {
        put(
            &registry,
            &Row {
                device,
                days,
                ..row()
            },
        );
    }
    // Renewed and in use: the new one counts, whatever else it has.
    put(
        &registry,
        &Row {
            device: "renewed",
            days: (-91, -1),
            ..row()
        },
    );
    put(
        &registry,
        &Row {
            device: "renewed",
            days: (-1, 89),
            ..row()
        },
    );
    // A new one that the device may not have does not hide that the one in use ends.
    put(
        &registry,
        &Row {
            device: "unconfirmed",
            days: (-88, 2),
            ..row()
        },
    );
    put(
        &registry,
        &Row {
            device: "unconfirmed",
            state: CredentialState::Issued,
            days: (0, 90),
            ..row()
        },
    );
    // A batch in a warehouse, factory certificates without an end beside it, another authority, another tenant.
    for device in ["b1", "b2"] {
        put(
            &registry,
            &Row {
                device,
                batch: Some("2026-11"),
                state: CredentialState::Issued,
                days: (-1, 89),
                ..row()
            },
        );
        put(
            &registry,
            &Row {
                device,
                batch: Some("2026-11"),
                kind: CredentialKind::Factory,
                days: (-1, i64::MAX),
                ..row()
            },
        );
    }
    put(
        &registry,
        &Row {
            device: "elsewhere",
            authority: "ca2",
            ..row()
        },
    );
    put(
        &registry,
        &Row {
            device: "d7",
            tenant: "other",
            authority: "ca3",
            days: (-88, 2),
            ..row()
        },
    );
    // Who has gone, and what was revoked, is nobody's renewal.
    put(
        &registry,
        &Row {
            device: "gone",
            days: (-88, 2),
            ..row()
        },
    );
    registry
        .move_device(
            actor(),
            TenantId::default_tenant(),
            DeviceId::new("gone").unwrap(),
            LifecycleMove::Decommission,
            String::new(),
        )
        .unwrap();
    let revoked = put(
        &registry,
        &Row {
            device: "revoked",
            days: (-88, 2),
            ..row()
        },
    );
    registry
        .revoke(
            actor(),
            Revocation::Credential(revoked.fingerprint),
            Default::default(),
            String::new(),
        )
        .unwrap();

    let groups = registry.forecast(NOW, None).unwrap();
    let found: Vec<_> = groups
        .iter()
        .map(|g| {
            (
                g.tenant.as_str(),
                g.authority.as_deref().unwrap(),
                g.batch.as_deref(),
                g.kind.as_str(),
                g.devices,
                g.unrenewed,
            )
        })
        .collect();
    assert_eq!(
        found,
        [
            ("default", "ca", None, "operational", 7, 3),
            ("default", "ca", Some("2026-11"), "factory", 2, 0),
            ("default", "ca", Some("2026-11"), "operational", 2, 0),
            ("default", "ca2", None, "operational", 1, 0),
            ("other", "ca3", None, "operational", 1, 1),
        ]
    );
    assert_eq!(
        groups[0].windows,
        Windows {
            overdue: 1,
            days_7: 2,
            days_30: 1,
            days_90: 2,
            later: 1,
            never: 0
        }
    );
    assert_eq!(
        groups[1].windows,
        Windows {
            never: 2,
            ..Windows::default()
        }
    );
    for group in &groups {
        let sum: u64 = group.windows.named().iter().map(|(_, n)| n).sum();
        assert_eq!(sum, group.devices, "{group:?}");
    }
    assert_eq!(registry.forecast(NOW, Some(&other)).unwrap(), groups[4..]);
    // The bounds: the very moment of notAfter is still valid; seven days from now are not within seven days.
    let mut windows = Windows::default();
    for ms in [-1, 0, 7 * DAY * 1000 - 1, 7 * DAY * 1000] {
        windows.count(NOW, Timestamp::from_unix_ms(NOW.unix_ms() + ms));
    }
    assert_eq!(
        windows,
        Windows {
            overdue: 1,
            days_7: 2,
            days_30: 1,
            ..Windows::default()
        }
    );
}
