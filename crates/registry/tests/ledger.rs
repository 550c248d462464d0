//! The ledger keeps what it is given, within its limits, and says what it did not keep.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Duration;

use countersign_identity::{DeviceId, Fingerprint, TenantId, Timestamp};
use countersign_policy::exchange::ShownCertificate;
use countersign_policy::{
    DenialCode, ExchangeId, ExchangeRecord, Outcome, Possession, Stage, StageOutcome, StageRecord,
};
use countersign_registry::{LedgerLimits, Registry};

const START: Timestamp = Timestamp::from_unix_s(1_795_000_000);

fn exchange(n: u32, outcome: Outcome, possession: Possession) -> ExchangeRecord {
    ExchangeRecord {
        id: ExchangeId::new(START.plus(Duration::from_millis(n.into())), n),
        started: START.plus(Duration::from_millis(n.into())),
        source: "192.0.2.7:40000".parse().unwrap(),
        listener: "devices".into(),
        outcome,
        stages: vec![],
        tenant: Some(TenantId::default_tenant()),
        device: Some(DeviceId::new("d1").unwrap()),
        authority: None,
        certificate: Some(ShownCertificate {
            fingerprint: Fingerprint::of(b"shown"),
            serial: "4a01".into(),
            subject: "CN=d1".into(),
            issuer: "CN=ca".into(),
            chain_length: 1,
        }),
        possession,
        facts: vec![],
        denial: (outcome == Outcome::Refused).then(|| DenialCode::UnknownDevice.into()),
        policies: vec![],
        generations: None,
    }
}

fn owner(device: &str) -> Option<(TenantId, DeviceId)> {
    Some((TenantId::default_tenant(), DeviceId::new(device).unwrap()))
}

#[test]
fn an_exchange_is_found_by_all_its_names_and_gets_its_first_publish() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::create(folder.path(), LedgerLimits::default()).unwrap();
    let ledger = registry.ledger();
    let admitted = exchange(1, Outcome::Admitted, Possession::Proven);
    let refused = exchange(2, Outcome::Refused, Possession::Proven);
    let replayed = exchange(3, Outcome::Refused, Possession::Unproven);
    ledger.record(admitted.clone(), owner("d1"));
    ledger.record(refused.clone(), owner("d1"));
    ledger.record(replayed.clone(), None);
    ledger.flush();
    let first = StageRecord {
        stage: Stage::FirstData,
        at_us: 9,
        took_us: 1,
        outcome: StageOutcome::Passed,
    };
    ledger.first_data(admitted.id, first.clone());
    ledger.flush();
    let found = ledger.exchange(admitted.id).unwrap().unwrap();
    assert_eq!(found.stages, [first]);
    assert_eq!(ledger.exchange(refused.id).unwrap(), Some(refused.clone()));
    let ids = |found: Vec<ExchangeRecord>| found.iter().map(|e| e.id).collect::<Vec<_>>();
    let device = DeviceId::new("d1").unwrap();
    // A replayed certificate never touches its device's history.
    assert_eq!(
        ids(ledger.of_device(None, &device, 10).unwrap()),
        [refused.id, admitted.id]
    );
    assert_eq!(
        ids(ledger.of_fingerprint(&Fingerprint::of(b"shown"), 10).unwrap()),
        [replayed.id, refused.id]
    );
    assert_eq!(
        ids(ledger.of_serial("4A:01", 10).unwrap()),
        [replayed.id, refused.id]
    );
    assert_eq!(ids(ledger.newest(true, 10).unwrap()), [replayed.id, refused.id]);
}

#[test]
fn one_source_cannot_fill_it_and_rows_are_limited() {
    let folder = tempfile::tempdir().unwrap();
    let limits = LedgerLimits {
        rows_max: 100,
        refused_per_source_minute_max: 50,
        ..LedgerLimits::default()
    };
    let registry = Registry::create(folder.path(), limits).unwrap();
    let ledger = registry.ledger();
    for n in 0..200 {
        ledger.record(exchange(n, Outcome::Refused, Possession::Proven), owner("d1"));
    }
    assert_eq!(ledger.limited(), 150);
    for n in 200..600 {
        ledger.record(exchange(n, Outcome::Admitted, Possession::Proven), owner("d1"));
        if n % 4 == 0 {
            ledger.flush();
        }
    }
    ledger.flush();
    let kept = ledger.newest(false, 1000).unwrap();
    assert!(kept.len() < 300, "{} rows", kept.len());
    assert_eq!(
        kept.iter().filter(|e| e.outcome == Outcome::Refused).count(),
        50,
        "admitted ones go first"
    );
}

/// A subscriber of IPv6 has 2^64 addresses.
#[test]
fn a_stranger_with_many_addresses_of_one_network_is_one_source() {
    let folder = tempfile::tempdir().unwrap();
    let limits = LedgerLimits {
        refused_per_source_minute_max: 50,
        ..LedgerLimits::default()
    };
    let registry = Registry::create(folder.path(), limits).unwrap();
    let ledger = registry.ledger();
    for n in 0..200 {
        let mut stranger = exchange(n, Outcome::Refused, Possession::Unproven);
        stranger.source = format!("[2001:db8::{n:x}]:4711").parse().unwrap();
        ledger.record(stranger, None);
    }
    assert_eq!(ledger.limited(), 150);
    let mut neighbour = exchange(200, Outcome::Refused, Possession::Unproven);
    neighbour.source = "[2001:db8:0:1::1]:4711".parse().unwrap();
    ledger.record(neighbour, None);
    assert_eq!(ledger.limited(), 150);
}

fn small(rows: u64) -> LedgerLimits {
    LedgerLimits {
        rows_max: rows,
        unproven_rows_max: rows,
        refused_per_source_minute_max: u32::MAX,
        ..LedgerLimits::default()
    }
}

#[test]
fn strangers_evict_only_strangers() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::create(folder.path(), small(100)).unwrap();
    let ledger = registry.ledger();
    for n in 0..50 {
        ledger.record(exchange(n, Outcome::Refused, Possession::Proven), owner("d1"));
    }
    for n in 100..3_000 {
        // Its certificate names the device, and whoever shows it did not prove its key.
        ledger.record(exchange(n, Outcome::Refused, Possession::Unproven), None);
        if n % 500 == 0 {
            ledger.flush();
        }
    }
    ledger.flush();
    let device = DeviceId::new("d1").unwrap();
    assert_eq!(ledger.of_device(None, &device, 100).unwrap().len(), 50);
    let rows = ledger.rows();
    assert_eq!(rows["known-refused"], 50);
    assert!(rows["stranger"] <= 100 && rows["stranger"] > 50, "{rows:?}");
    assert!(ledger.evicted()["stranger"] > 2_500 && ledger.evicted()["known-refused"] == 0);
}

#[test]
fn a_busy_device_does_not_evict_the_last_of_a_quiet_one() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::create(folder.path(), small(100)).unwrap();
    let ledger = registry.ledger();
    let quiet = |n, outcome| {
        let device = Some(DeviceId::new("quiet").unwrap());
        ExchangeRecord {
            device,
            ..exchange(n, outcome, Possession::Proven)
        }
    };
    let (refused, admitted) = (quiet(1, Outcome::Refused), quiet(2, Outcome::Admitted));
    ledger.record(quiet(0, Outcome::Admitted), owner("quiet"));
    ledger.record(refused.clone(), owner("quiet"));
    ledger.record(admitted.clone(), owner("quiet"));
    for n in 100..2_000 {
        let outcome = if n % 2 == 0 {
            Outcome::Admitted
        } else {
            Outcome::Refused
        };
        ledger.record(exchange(n, outcome, Possession::Proven), owner("d1"));
        if n % 200 == 0 {
            ledger.flush();
        }
    }
    ledger.flush();
    let device = DeviceId::new("quiet").unwrap();
    let found = |ledger: &countersign_registry::Ledger| -> Vec<ExchangeId> {
        let all = ledger.of_device(None, &device, 10).unwrap();
        all.iter().map(|e| e.id).collect()
    };
    assert_eq!(found(ledger), [admitted.id, refused.id]);
    // When it comes again, what was its last may go.
    let again = quiet(5_000, Outcome::Admitted);
    ledger.record(again.clone(), owner("quiet"));
    for n in 6_000..8_000 {
        ledger.record(exchange(n, Outcome::Admitted, Possession::Proven), owner("d1"));
        if n % 200 == 0 {
            ledger.flush();
        }
    }
    ledger.flush();
    assert_eq!(found(ledger), [again.id, refused.id]);
    // What is counted is what is there.
    let rows = ledger.rows();
    let all = ledger.newest(false, 10_000).unwrap().len() as u64;
    assert_eq!(rows["known"] + rows["known-refused"] + rows["held"], all);
}

#[test]
fn refusals_are_grouped_by_cause_and_found_by_what_is_known_of_them() {
    use countersign_policy::Denial;
    use countersign_registry::{CauseQuery, RefusalQuery};
    let folder = tempfile::tempdir().unwrap();
    let limits = LedgerLimits {
        subjects_per_code_max: 3,
        ..small(10_000)
    };
    let registry = Registry::create(folder.path(), limits).unwrap();
    let ledger = registry.ledger();
    let unknown = |n: u32, issuer: &str| ExchangeRecord {
        tenant: None,
        device: None,
        source: format!("192.0.2.{}:1", n % 7).parse().unwrap(),
        certificate: Some(ShownCertificate {
            fingerprint: Fingerprint::of(&n.to_be_bytes()),
            serial: format!("{n:x}"),
            subject: "CN=x".into(),
            issuer: "CN=issuing".into(),
            chain_length: 2,
        }),
        denial: Some(Denial::new(
            DenialCode::UnknownCa,
            format!("the issuer {issuer:?} is not registered"),
        )),
        ..exchange(n, Outcome::Refused, Possession::Unproven)
    };
    for n in 0..300 {
        ledger.record(unknown(n + 1, "CN=missing"), None);
    }
    ledger.flush();
    for n in 300..310 {
        ledger.record(unknown(n + 1, &format!("CN=other {n}")), None);
    }
    ledger.record(exchange(400, Outcome::Refused, Possession::Proven), owner("d1"));
    ledger.record(exchange(401, Outcome::Admitted, Possession::Proven), owner("d1"));
    ledger.flush();
    let page = |after: Option<String>, limit| {
        let asked = CauseQuery {
            after,
            limit,
            ..CauseQuery::default()
        };
        ledger.causes(&asked).unwrap()
    };
    let all = page(None, 100).groups;
    let shape: Vec<_> = all
        .iter()
        .map(|g| (g.subject.as_deref(), g.exchanges, g.of_known_devices, g.sources))
        .collect();
    assert_eq!(shape[0], (Some("issuer CN=missing"), 300, 0, 7));
    assert_eq!(shape[1].0, Some("(others)"));
    assert_eq!(shape[1].1, 8);
    assert_eq!(shape.iter().filter(|s| s.2 == 1).count(), 1);
    assert_eq!(all.iter().map(|g| g.exchanges).sum::<u64>(), 311);
    assert!(
        all[0].estimated && (270..=330).contains(&all[0].certificates),
        "{all:?}"
    );
    assert_eq!(all[0].example, unknown(300, "").id);
    assert_eq!(ledger.unnamed(), 8);
    // Page by page it is the same list.
    let (mut pages, mut after) = (Vec::new(), None);
    loop {
        let part = page(after, 2);
        pages.extend(part.groups);
        after = part.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(pages, all);
    // Singly.
    let find = |asked: RefusalQuery| {
        ledger
            .refusals(&RefusalQuery {
                limit: 1_000,
                ..asked
            })
            .unwrap()
    };
    let by_network = find(RefusalQuery {
        source: Some("192.0.2.0/30".parse().unwrap()),
        ..RefusalQuery::default()
    });
    let expected = (1..=310).filter(|n| n % 7 < 4).count();
    assert_eq!(by_network.exchanges.len(), expected);
    let by_serial = find(RefusalQuery {
        serial: Some("00:0A".into()),
        ..RefusalQuery::default()
    });
    assert_eq!(by_serial.exchanges[0].id, unknown(10, "").id);
    let by_device = find(RefusalQuery {
        device: DeviceId::new("d1").ok(),
        code: Some(DenialCode::UnknownDevice),
        ..RefusalQuery::default()
    });
    assert_eq!(by_device.exchanges.len(), 1);
    let (mut seen, mut before) = (Vec::new(), None);
    loop {
        let asked = RefusalQuery {
            code: Some(DenialCode::UnknownCa),
            before,
            limit: 100,
            ..RefusalQuery::default()
        };
        let part = ledger.refusals(&asked).unwrap();
        seen.extend(part.exchanges.iter().map(|e| e.id));
        before = part.next;
        if before.is_none() {
            break;
        }
    }
    assert_eq!(seen.len(), 310);
    assert!(seen.windows(2).all(|pair| pair[0] > pair[1]));
}
