//! What a report of an incident says is missing.

use std::time::Duration;

use countersign_identity::{AuthorityId, DeviceId, Fingerprint, TenantId, Timestamp};
use countersign_policy::exchange::ShownCertificate;
use countersign_policy::{
    DenialCode, ExchangeId, ExchangeRecord, LifecycleState, Outcome, Possession, SessionRecord, TopicSummary,
};
use countersign_registry::{Actor, NewDevice};

use super::Service;
use crate::config::Config;

const START: Timestamp = Timestamp::from_unix_s(1_795_000_000);

fn at(n: u64) -> Timestamp {
    START.plus(Duration::from_secs(n))
}

fn tenant() -> TenantId {
    TenantId::default_tenant()
}

fn device() -> DeviceId {
    DeviceId::new("d1").unwrap()
}

fn place(config: Config) -> (tempfile::TempDir, Service) {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::create(folder.path(), config).unwrap();
    let new = NewDevice {
        id: device(),
        model: None,
        groups: vec![],
        state: LifecycleState::Active,
        authority: None,
    };
    let by = Actor("test".into());
    service.registry().add_device(by, tenant(), new).unwrap();
    (folder, service)
}

fn exchange(n: u64, outcome: Outcome) -> ExchangeRecord {
    ExchangeRecord {
        id: ExchangeId::new(at(n), 0),
        started: at(n),
        source: "192.0.2.7:40000".parse().unwrap(),
        listener: "devices".into(),
        outcome,
        stages: vec![],
        tenant: Some(tenant()),
        device: Some(device()),
        authority: Some(AuthorityId::new("ca").unwrap()),
        certificate: Some(ShownCertificate {
            fingerprint: Fingerprint::of(b"shown"),
            serial: "4a01".into(),
            subject: "CN=d1".into(),
            issuer: "CN=ca".into(),
            chain_length: 1,
        }),
        possession: Possession::Proven,
        facts: vec![],
        denial: (outcome == Outcome::Refused).then(|| DenialCode::UnknownDevice.into()),
        policies: vec![],
        generations: None,
    }
}

fn session(n: u64, kind: &str) -> SessionRecord {
    SessionRecord {
        exchange: ExchangeId::new(at(n), 0),
        kind: kind.into(),
        name: String::new(),
        tenant: tenant(),
        device: device(),
        credential: Fingerprint::of(b"shown"),
        authority: AuthorityId::new("ca").unwrap(),
        protocol: "mqtt-5".into(),
        source: "192.0.2.7:40000".parse().unwrap(),
        listener: "devices".into(),
        started: at(n),
        seen: at(n),
        ended: Some(at(n)),
        end: Some("client-disconnect".into()),
        published: TopicSummary::default(),
        received: TopicSummary::default(),
        refusals_unlisted: 0,
    }
}

#[test]
fn a_session_beyond_what_is_listed_is_not_taken_for_one_that_was_never_written() {
    let (_folder, service) = place(Config::default());
    let ledger = service.registry().ledger();
    for n in 1..=4 {
        let owner = Some((tenant(), device()));
        ledger.record(exchange(n, Outcome::Admitted), owner);
        ledger.session(session(n, "connection"));
        ledger.session(session(n, "token"));
    }
    let of = |from: u64, most: u32| {
        service
            .exposure_of(&tenant(), &device(), (at(from), at(100)), most)
            .unwrap()
    };
    let whole = of(0, 8);
    assert_eq!((whole.sessions.len(), whole.gaps.len()), (8, 0), "{whole:?}");
    // Four of the eight sessions are read: the other two exchanges have theirs, too.
    let part = of(0, 4);
    assert_eq!((part.sessions.len(), part.exchanges.len()), (4, 4), "{part:?}");
    assert!(
        part.gaps.len() == 1 && part.gaps[0].contains("more than 4"),
        "{:?}",
        part.gaps
    );
    // Nothing was in the window; whether something reaches into it was not looked at to the end.
    let late = of(50, 4);
    assert_eq!((late.sessions.len(), late.exchanges.len()), (0, 0), "{late:?}");
    assert!(
        late.gaps.len() == 1 && late.gaps[0].contains("may reach into it"),
        "{:?}",
        late.gaps
    );
    assert_eq!(of(50, 8).gaps, Vec::<String>::new());
}

#[test]
fn refusals_that_were_only_counted_are_told_within_their_window() {
    let mut config = Config::default();
    config.ledger.refused_per_source_minute_max = 2;
    let (_folder, service) = place(config);
    let ledger = service.registry().ledger();
    for n in 0..5 {
        let owner = Some((tenant(), device()));
        ledger.record(exchange(n, Outcome::Refused), owner);
        let other = Some((tenant(), DeviceId::new("d2").unwrap()));
        ledger.record(exchange(n, Outcome::Refused), other);
    }
    let gaps = |from: u64, to: u64| {
        let told = service.exposure(&tenant(), &device(), at(from), at(to));
        told.unwrap().gaps
    };
    let told = gaps(0, 100);
    assert!(
        told.len() == 1 && told[0].starts_with("3 refusals between"),
        "{told:?}"
    );
    assert_eq!(gaps(50, 100), Vec::<String>::new());
}

#[test]
fn refusals_of_a_session_that_were_only_counted_are_told() {
    let (_folder, service) = place(Config::default());
    let ledger = service.registry().ledger();
    ledger.record(exchange(1, Outcome::Admitted), Some((tenant(), device())));
    ledger.session(SessionRecord {
        refusals_unlisted: 12,
        ..session(1, "connection")
    });
    let gaps = |from: u64, to: u64| {
        let told = service.exposure(&tenant(), &device(), at(from), at(to));
        told.unwrap().gaps
    };
    let told = gaps(0, 100);
    assert!(
        told.len() == 1 && told[0].starts_with("12 refusals within sessions"),
        "{told:?}"
    );
    assert_eq!(gaps(50, 100), Vec::<String>::new());
}
