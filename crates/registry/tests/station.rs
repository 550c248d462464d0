//! A station's journal, reconciled: what is registered, and what is refused by its own code.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use countersign_factory::station::{Account, Entry, Head, Terms};
use countersign_factory::{Batch, DeviceStart, Profile, RevocationReason, Revoked};
use countersign_identity::{
    AuthorityId, BatchId, CertificateFacts, Clock, DeviceId, Fingerprint, ServiceId, StationId, TenantId,
    Timestamp,
};
use countersign_policy::exchange::ExchangeSink;
use countersign_policy::first_contact::Contact;
use countersign_policy::{CredentialState, DenialCode, FactSource, LifecycleState};
use countersign_registry::{
    Actor, LedgerLimits, MintedStation, NewAuthority, NewCredential, NewDevice, Origin, Overlap, Reconciled,
    Registry, RegistryError, Verdict,
};

const START: i64 = 1_800_000_000_000;

struct Moved(AtomicI64);

impl Clock for Moved {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(self.0.load(Ordering::Relaxed))
    }
}

fn actor() -> Actor {
    Actor("test".into())
}

fn tenant() -> TenantId {
    TenantId::default_tenant()
}

fn id(text: &str) -> DeviceId {
    DeviceId::new(text).unwrap()
}

fn factory() -> AuthorityId {
    AuthorityId::new("factory").unwrap()
}

fn line() -> StationId {
    StationId::new("line-1").unwrap()
}

/// A certificate as a station makes one, as far as the registry looks at it.
fn certificate(name: &str) -> Vec<u8> {
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let key = rcgen::KeyPair::generate().unwrap();
    params.self_signed(&key).unwrap().der().to_vec()
}

fn entry(number: u64, name: &str, der: &[u8]) -> Entry {
    Entry {
        number,
        device: id(name),
        certificate: der.to_vec(),
        facts: CertificateFacts::parse(der).unwrap(),
        issued: Timestamp::from_unix_ms(START),
        written: None,
        confirmed: None,
    }
}

/// Of a journal whose records say what is told, each hashed with those before.
fn account(entries: Vec<Entry>, told: &[&str]) -> Account {
    let mut hashes: Vec<Fingerprint> = vec![];
    for text in told {
        let before = hashes.last().map_or(&[][..], |hash| hash.as_bytes().as_slice());
        hashes.push(Fingerprint::of(&[before, text.as_bytes()].concat()));
    }
    Account {
        entries,
        refused: vec![],
        doubtful: vec![],
        head: Head {
            records: hashes.len() as u64,
            hash: *hashes.last().unwrap(),
            at: Timestamp::from_unix_ms(START),
        },
        hashes,
        closed: false,
    }
}

/// Another certificate for the key of one.
fn same_key(der: &[u8]) -> NewCredential {
    let mut facts = CertificateFacts::parse(der).unwrap();
    facts.fingerprint = Fingerprint::of(b"another");
    facts.serial = "0a".into();
    NewCredential::brought(facts)
}

/// A registry with a factory CA, a batch and one station.
struct Place {
    registry: Registry,
    clock: Arc<Moved>,
    station: rcgen::CertificateParams,
    station_key: rcgen::KeyPair,
}

impl Place {
    fn new(path: &Path, quota: u64) -> Self {
        let clock = Arc::new(Moved(AtomicI64::new(START)));
        let registry = Registry::create_with_clock(path, LedgerLimits::default(), clock.clone()).unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(1));
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        let key = rcgen::KeyPair::generate().unwrap();
        let new = NewAuthority {
            id: factory(),
            tenant: tenant(),
            origin: Origin::Factory,
            rule: Default::default(),
            admission: Default::default(),
            certificate: params.self_signed(&key).unwrap().der().to_vec(),
        };
        registry.register_authority(actor(), new).unwrap();
        let batch = Batch {
            id: BatchId::new("B-1").unwrap(),
            tenant: tenant(),
            model: "pump".into(),
            profile: Profile::default().name,
            groups: vec![],
            devices_start: Default::default(),
            authority: None,
            id_pattern: "SN-*".parse().unwrap(),
            quota: 10_000,
            window: Default::default(),
        };
        registry.add_batch(actor(), batch).unwrap();
        let now = Timestamp::from_unix_ms(START);
        let terms = Terms {
            station: line(),
            tenant: tenant(),
            batch: BatchId::new("B-1").unwrap(),
            batch_ids: "SN-*".parse().unwrap(),
            ids: "SN-0000..SN-9999".parse().unwrap(),
            quota,
            from: now,
            to: now.plus(Duration::from_secs(86_400)),
            profile: Profile::default(),
        };
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "line-1");
        let station_key = rcgen::KeyPair::generate().unwrap();
        let station = params.self_signed(&station_key).unwrap().der().to_vec();
        let key = CertificateFacts::parse(&station).unwrap().public_key_sha256;
        let mint = move |_| {
            Ok(MintedStation {
                certificate: station,
                grant_file: b"grant".to_vec(),
            })
        };
        registry
            .add_station(actor(), factory(), terms, key, Overlap::Refused, mint)
            .unwrap();
        Self {
            registry,
            clock,
            station: params,
            station_key,
        }
    }

    /// A certificate that the station signed.
    fn by_station(&self, name: &str) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let issuer = rcgen::Issuer::from_params(&self.station, &self.station_key);
        let key = rcgen::KeyPair::generate().unwrap();
        params.signed_by(&key, &issuer).unwrap().der().to_vec()
    }

    fn reconcile(&self, account: Account) -> Result<Reconciled, RegistryError> {
        self.registry
            .reconcile_station(actor(), line(), account, DeviceStart::Active)
    }

    fn lose(&self, authority: &AuthorityId, serial: &str) {
        let list = [Revoked {
            serial: serial.into(),
            at: Timestamp::from_unix_ms(START),
            reason: RevocationReason::KeyCompromise,
        }];
        let newer = self.registry.newer_in_list(authority, 1, &list).unwrap();
        self.registry.apply_newer(actor(), newer).unwrap();
    }

    fn is_there(&self, name: &str) -> bool {
        self.registry.device(&tenant(), &id(name)).unwrap().is_some()
    }
}

fn codes(report: &Reconciled) -> Vec<(u64, &str)> {
    assert!(
        report.refused.iter().all(|r| r.message.contains("; hint: ")),
        "{report:?}"
    );
    report
        .refused
        .iter()
        .map(|r| (r.number, r.code.as_str()))
        .collect()
}

#[test]
fn what_was_revoked_before_a_restore_is_not_revived_by_a_journal_a_contact_or_an_import() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(folder.path(), 10);
    let (lost, good) = (certificate("SN-0001"), certificate("SN-0002"));
    let facts = CertificateFacts::parse(&lost).unwrap();
    place.lose(&factory(), &facts.serial);
    let entries = vec![entry(1, "SN-0001", &lost), entry(2, "SN-0002", &good)];
    let report = place
        .reconcile(account(entries, &["open", "one", "two"]))
        .unwrap();
    assert_eq!(codes(&report), [(1, "station.revoked-before")]);
    assert_eq!((report.verdict, report.registered), (Verdict::Partial, 1));
    assert!(!place.is_there("SN-0001"));

    let (sender, answer) = channel();
    let contact = Contact {
        tenant: tenant(),
        device: id("SN-0001"),
        authority: factory(),
        certificate: facts.clone(),
    };
    place
        .registry
        .first_contact(contact, Box::new(move |r| sender.send(r).unwrap()));
    let denial = answer.recv().unwrap().unwrap_err();
    assert_eq!(denial.code, DenialCode::FirstContactRevokedBefore);

    let credential = NewCredential {
        authority: Some(factory()),
        ..NewCredential::brought(facts)
    };
    let batch = BatchId::new("B-1").unwrap();
    let devices = vec![(id("SN-0001"), credential)];
    let report = place
        .registry
        .import_in_batch(actor(), tenant(), batch, devices)
        .unwrap()
        .value;
    assert_eq!((report.credentials_added, report.refused.len()), (0, 1));
    assert!(report.refused[0].1.contains("; hint: "), "{report:?}");
    assert_eq!(place.registry.facts().credential_count(), 1);
    assert!(!place.is_there("SN-0001"));
}

#[test]
fn a_journal_that_was_cut_off_between_two_transactions_is_told_from_its_twin() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(folder.path(), 205);
    let name = |n: u64| format!("SN-{n:04}");
    let mut told = vec!["open".to_owned()];
    let entries: Vec<_> = (1..=201)
        .map(|n| {
            told.push(name(n));
            entry(n, &name(n), &certificate(&name(n)))
        })
        .collect();
    let told: Vec<_> = told.iter().map(String::as_str).collect();
    let db = rusqlite::Connection::open(folder.path().join("registry.db")).unwrap();
    db.execute_batch(
        "CREATE TRIGGER cut BEFORE INSERT ON credentials WHEN NEW.device = 'SN-0201'
         BEGIN SELECT RAISE (ABORT, 'cut off'); END",
    )
    .unwrap();
    place.reconcile(account(entries.clone(), &told)).unwrap_err();
    db.execute_batch("DROP TRIGGER cut").unwrap();
    let view = place.registry.station(&line()).unwrap();
    assert_eq!(
        (view.accepted, view.records),
        (200, 0),
        "what has only begun is not accepted"
    );

    // Another machine of the same id: as long, and longer.
    for more in 0..2 {
        let mut other = told.clone();
        other[100] = "another record";
        other.extend(std::iter::repeat_n("more", more));
        let twin = vec![entry(1, "SN-0300", &certificate("SN-0300"))];
        let report = place.reconcile(account(twin, &other)).unwrap();
        assert_eq!(report.verdict, Verdict::Refused, "{report:?}");
        assert_eq!(report.code.as_deref(), Some("journal.twin"));
        assert!(!place.is_there("SN-0300"));
    }

    let report = place.reconcile(account(entries.clone(), &told)).unwrap();
    assert_eq!(
        (report.verdict, report.known, report.registered),
        (Verdict::Accepted, 200, 1)
    );
    assert_eq!(place.registry.station(&line()).unwrap().records, 202);
    // An older copy of it has nothing to add, and may be shown.
    let older = place
        .reconcile(account(entries[..100].to_vec(), &told[..101]))
        .unwrap();
    assert_eq!(
        (older.verdict, older.older, older.known),
        (Verdict::Accepted, true, 100)
    );
}

#[test]
fn no_more_is_accepted_of_a_station_than_was_granted_whatever_its_journals_say() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(folder.path(), 2);
    let of = |n: u64, name: &str| entry(n, name, &certificate(name));
    let first = vec![of(1, "SN-0001"), of(2, "SN-0002")];
    place
        .reconcile(account(first.clone(), &["open", "one", "two"]))
        .unwrap();
    let longer = [first, vec![of(3, "SN-0003")]].concat();
    let report = place
        .reconcile(account(longer, &["open", "one", "two", "three"]))
        .unwrap();
    assert_eq!(codes(&report), [(3, "station.overrun")]);
    assert_eq!(place.registry.station(&line()).unwrap().accepted, 2);
}

#[test]
fn a_confirmation_counts_if_it_was_there_before_the_lapse_and_is_refused_by_a_code_if_not() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(folder.path(), 10);
    let day = 86_400_000;
    let entries = ["SN-0001", "SN-0002", "SN-0003", "SN-0004"].map(certificate);
    let of = |n: usize| entry(n as u64 + 1, &format!("SN-{:04}", n + 1), &entries[n]);
    let told = ["open", "one", "two", "three", "four"];
    let all: Vec<_> = (0..4).map(of).collect();
    place.reconcile(account(all.clone(), &told)).unwrap();
    // Nobody uses them for eight days: they lapse. One device is given another certificate.
    place.clock.0.store(START + 8 * day, Ordering::Relaxed);
    assert_eq!(place.registry.sweep_credentials().unwrap().value.lapsed, 4);
    let state = |n: usize| {
        let fingerprint = Fingerprint::of(&entries[n]);
        place.registry.facts().credential(&fingerprint).unwrap().state
    };
    assert_eq!(state(0), CredentialState::Lapsed);
    let other = NewCredential::brought(CertificateFacts::parse(&certificate("SN-0003")).unwrap());
    let batch = BatchId::new("B-1").unwrap();
    let imported = place
        .registry
        .import_in_batch(actor(), tenant(), batch, vec![(id("SN-0003"), other)])
        .unwrap();
    assert_eq!(imported.value.credentials_added, 1);

    // The journal comes later, and says when each device proved its key.
    place.clock.0.store(START + 9 * day, Ordering::Relaxed);
    let mut later = all;
    for (n, at) in [(0, 7 * day), (1, 8 * day), (2, 7 * day)] {
        later[n].confirmed = Some(Timestamp::from_unix_ms(START + at));
    }
    let journal = account(later, &[&told[..], &["confirmed"; 3][..]].concat());
    let report = place.reconcile(journal.clone()).unwrap();
    assert_eq!(
        codes(&report),
        [(2, "station.lapsed"), (3, "station.duplicate-id")]
    );
    assert_eq!((report.verdict, report.confirmed), (Verdict::Partial, 1));
    let states = [0, 1, 2, 3].map(state);
    let lapsed = CredentialState::Lapsed;
    assert_eq!(states, [CredentialState::Active, lapsed, lapsed, lapsed]);
    let audited = place.registry.audit(100).unwrap();
    let confirmed = audited
        .iter()
        .filter(|e| e.action == "credential.confirm")
        .count();
    assert_eq!(confirmed, 1);
    // It is as if it had never lapsed: on no list, and in force after opening again.
    let db = rusqlite::Connection::open(folder.path().join("registry.db")).unwrap();
    let row: (String, Option<i64>) = db
        .query_row(
            "SELECT state, ended FROM credentials WHERE device = 'SN-0001'",
            [],
            |r| Ok((r.get(0)?, r.get(1)?)),
        )
        .unwrap();
    assert_eq!(row, ("active".into(), None));
    // The same journal again says the same.
    let again = place.reconcile(journal).unwrap();
    assert_eq!((codes(&again).len(), again.confirmed), (2, 0));
}

#[test]
fn an_import_that_is_refused_leaves_no_device_behind_and_takes_nothing_of_the_quota() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(folder.path(), 10);
    let batch = BatchId::new("B-1").unwrap();
    let registry = &place.registry;
    let brought = |der: &[u8]| NewCredential::brought(CertificateFacts::parse(der).unwrap());
    // Of a station, whose journal alone vouches for it.
    let stations = brought(&place.by_station("SN-0001"));
    let import = vec![(id("SN-0001"), stations.clone())];
    let report = registry
        .import_in_batch(actor(), tenant(), batch.clone(), import)
        .unwrap()
        .value;
    assert_eq!((report.added, report.refused.len()), (0, 1), "{report:?}");
    assert!(report.refused[0].1.contains("factory reconcile"), "{report:?}");
    assert_eq!(registry.batch(&tenant(), &batch).unwrap().devices, 0);
    let new = |name: &str| NewDevice {
        id: id(name),
        model: None,
        groups: vec![],
        state: LifecycleState::Active,
        authority: None,
    };
    // Of a station, and with the key of another device.
    let first = certificate("SN-0002");
    let import = vec![
        (new("SN-0001"), Some(stations)),
        (new("SN-0002"), Some(brought(&first))),
        (new("SN-0003"), Some(same_key(&first))),
    ];
    let report = registry.import_devices(actor(), tenant(), import).unwrap().value;
    assert_eq!((report.added, report.credentials_added), (1, 1), "{report:?}");
    let refused: Vec<_> = report.refused.iter().map(|(device, _)| device.as_str()).collect();
    assert_eq!(refused, ["SN-0001", "SN-0003"]);
    for name in ["SN-0001", "SN-0003"] {
        assert!(!place.is_there(name), "{name}");
    }
}

#[test]
fn one_entry_with_a_key_of_a_service_does_not_hold_up_a_journal() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(folder.path(), 10);
    let (taken, good) = (certificate("SN-0001"), certificate("SN-0002"));
    place
        .registry
        .add_service(
            actor(),
            ServiceId::new("backend").unwrap(),
            CertificateFacts::parse(&taken).unwrap(),
            vec![tenant()],
        )
        .unwrap();
    let entries = vec![entry(1, "SN-0001", &taken), entry(2, "SN-0002", &good)];
    let report = place
        .reconcile(account(entries, &["open", "one", "two"]))
        .unwrap();
    assert_eq!(codes(&report), [(1, "station.key-of-other")]);
    assert!(
        report.refused[0].message.contains("service backend"),
        "{report:?}"
    );
    assert_eq!((report.verdict, report.registered), (Verdict::Partial, 1));
    assert!(!place.is_there("SN-0001") && place.is_there("SN-0002"));
}

#[test]
fn a_factory_ca_whose_key_does_not_answer_holds_up_nothing_and_its_station_is_kept_only_if_it_still_may_be() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(folder.path(), 10);
    let registry = Arc::new(place.registry);
    let terms = Terms {
        station: StationId::new("line-2").unwrap(),
        ..registry.station(&line()).unwrap().terms
    };
    let (asked, is_asked) = channel();
    let (answer, answers) = channel();
    let minting = registry.clone();
    let added = std::thread::spawn(move || {
        let certificate = certificate("line-2");
        let key = CertificateFacts::parse(&certificate).unwrap().public_key_sha256;
        let mint = move |_| {
            asked.send(()).unwrap();
            answers.recv().unwrap();
            Ok(MintedStation {
                certificate,
                grant_file: b"grant".to_vec(),
            })
        };
        minting.add_station(actor(), factory(), terms, key, Overlap::Allowed, mint)
    });
    is_asked.recv_timeout(Duration::from_secs(10)).unwrap();
    let (closing, (closed, is_closed)) = (registry.clone(), channel());
    std::thread::spawn(move || {
        let batch = BatchId::new("B-1").unwrap();
        closed.send(closing.close_batch(actor(), tenant(), batch, "over".into()))
    });
    let closed = is_closed.recv_timeout(Duration::from_secs(1));
    closed.expect("it waits for the key").unwrap();
    answer.send(()).unwrap();
    let refused = added.join().unwrap().unwrap_err().to_string();
    assert!(refused.contains("batch B-1 is closed"), "{refused}");
    assert!(registry.station(&StationId::new("line-2").unwrap()).is_err());
}

#[test]
fn what_is_known_of_a_station_where_its_devices_come_is_of_its_tenant_and_outlives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(folder.path(), 2);
    let device = CertificateFacts::parse(&place.by_station("SN-0001")).unwrap();
    let denied = |registry: &Registry| {
        let station = registry.facts().station(&tenant(), &device.issuer_der)?;
        let other = TenantId::new("other").unwrap();
        assert_eq!(registry.facts().station(&other, &device.issuer_der), None);
        assert_eq!(station.id, line());
        Some(station.denial(&id("SN-0001")).code)
    };
    assert_eq!(denied(&place.registry), Some(DenialCode::NotReconciled));
    drop(place);
    let registry = Registry::open(folder.path(), LedgerLimits::default()).unwrap();
    assert_eq!(denied(&registry), Some(DenialCode::NotReconciled));
    registry
        .revoke_station(
            actor(),
            line(),
            RevocationReason::KeyCompromise,
            "gone".into(),
            false,
        )
        .unwrap();
    assert_eq!(denied(&registry), Some(DenialCode::StationRevoked));
    drop(registry);
    let registry = Registry::open(folder.path(), LedgerLimits::default()).unwrap();
    assert_eq!(denied(&registry), Some(DenialCode::StationRevoked));
    assert!(registry.facts().station(&tenant(), b"nobody").is_none());
}
