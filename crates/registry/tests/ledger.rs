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

#[test]
fn an_exchange_is_found_by_all_its_names_and_gets_its_first_publish() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::create(folder.path(), LedgerLimits::default()).unwrap();
    let ledger = registry.ledger();
    let admitted = exchange(1, Outcome::Admitted, Possession::Proven);
    let refused = exchange(2, Outcome::Refused, Possession::Proven);
    let replayed = exchange(3, Outcome::Refused, Possession::Unproven);
    for record in [&admitted, &refused, &replayed] {
        ledger.record(record.clone());
    }
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
        ledger.record(exchange(n, Outcome::Refused, Possession::Proven));
    }
    assert_eq!(ledger.limited(), 150);
    for n in 200..600 {
        ledger.record(exchange(n, Outcome::Admitted, Possession::Proven));
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
