//! The power is cut at every point of a station's work, with everything that a disk may then have of what was not
//! synced. Nothing that was answered is lost, nothing is issued twice, and the journal still accounts for all of it.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use countersign_authority::IssuingAuthority;
use countersign_factory::station::account::Known;
use countersign_factory::station::journal::Ending;
use countersign_factory::station::{Account, GrantFile, StationCaGrant, Terms};
use countersign_factory::{CertificateRequest, Profile, ProvenKey, SoftwareKey};
use countersign_identity::signed::Signer;
use countersign_identity::{BatchId, DeviceId, Fingerprint, StationId, TenantId, Timestamp};
use countersign_station::{Disk, Fault, Station, station};

const NOW: Timestamp = Timestamp::from_unix_s(1_795_000_000);

/// What of the bytes that were not synced is there after the cut.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Survives {
    /// None.
    Nothing,
    /// So many thousandths of what changed, and the file's length is as the disk had it.
    Part(usize),
    /// The same, but the new length: what was not written reads as zeros.
    Holes(usize),
    /// All.
    Everything,
}

const SURVIVALS: [Survives; 6] = [
    Survives::Nothing,
    Survives::Part(300),
    Survives::Part(999),
    Survives::Holes(0),
    Survives::Holes(400),
    Survives::Everything,
];

#[derive(Default)]
struct Medium {
    durable: BTreeMap<String, Vec<u8>>,
    cached: BTreeMap<String, Vec<u8>>,
}

/// A disk that loses power at step `cut`, before that step does anything.
#[derive(Clone)]
struct Simulated {
    medium: Rc<RefCell<Medium>>,
    steps: Rc<Cell<usize>>,
    cut: usize,
}

impl Simulated {
    fn new(medium: &Rc<RefCell<Medium>>, cut: usize) -> Self {
        Self {
            medium: medium.clone(),
            steps: Rc::default(),
            cut,
        }
    }

    fn step(&self) -> io::Result<()> {
        let step = self.steps.get();
        if step >= self.cut {
            return Err(io::Error::other("the power is gone"));
        }
        self.steps.set(step + 1);
        Ok(())
    }
}

impl Medium {
    /// The power is gone: only what is durable remains, and of what was not what survives.
    fn cut(&mut self, survives: Survives) {
        let names: BTreeSet<_> = self.cached.keys().cloned().collect();
        for name in names {
            let new = self.cached.remove(&name).unwrap();
            let old = self.durable.get(&name).cloned().unwrap_or_default();
            let same = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
            let changed = new.len() - same;
            let after = |part: usize| same + changed * part / 1000;
            let left = match survives {
                Survives::Nothing => old,
                Survives::Everything => new,
                Survives::Part(part) => {
                    let mut left = new[..after(part)].to_vec();
                    left.extend(old.get(left.len()..).unwrap_or_default());
                    left
                }
                Survives::Holes(part) => {
                    let mut left = new[..after(part)].to_vec();
                    left.extend(old.get(left.len()..new.len().min(old.len())).unwrap_or_default());
                    left.resize(new.len(), 0);
                    left
                }
            };
            self.durable.insert(name, left);
        }
    }
}

impl Disk for Simulated {
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let medium = self.medium.borrow();
        Ok(medium
            .cached
            .get(name)
            .or_else(|| medium.durable.get(name))
            .cloned())
    }

    fn replace(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        // Written to another name and synced, then renamed, then the folder synced: the rename is what counts, and the
        // power may go before or after it.
        self.step()?;
        let mut medium = self.medium.borrow_mut();
        medium.cached.remove(name);
        medium.durable.insert(name.to_owned(), bytes.to_vec());
        drop(medium);
        self.step()
    }

    fn write_end(&mut self, name: &str, offset: usize, bytes: &[u8]) -> io::Result<()> {
        self.step()?;
        let mut content = self.read(name)?.ok_or(io::ErrorKind::NotFound)?;
        content.truncate(offset);
        content.extend(bytes);
        self.medium.borrow_mut().cached.insert(name.to_owned(), content);
        self.step()
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.step()?;
        let mut medium = self.medium.borrow_mut();
        if let Some(bytes) = medium.cached.remove(name) {
            medium.durable.insert(name.to_owned(), bytes);
        }
        drop(medium);
        self.step()
    }

    fn destroy(&mut self, name: &str) -> io::Result<()> {
        self.step()?;
        if let Some(bytes) = self.medium.borrow_mut().durable.get_mut(name) {
            bytes.fill(0);
        }
        self.step()?;
        self.medium.borrow_mut().durable.remove(name);
        self.step()
    }
}

struct Factory {
    authority: IssuingAuthority,
    terms: Terms,
    devices: Vec<(DeviceId, SoftwareKey)>,
}

impl Factory {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            authority: IssuingAuthority::create_factory(folder.path(), "test", NOW).unwrap(),
            terms: Terms {
                station: StationId::new("line-1").unwrap(),
                tenant: TenantId::default_tenant(),
                batch: BatchId::new("b1").unwrap(),
                batch_ids: "SN-*".parse().unwrap(),
                ids: "SN-0..SN-9".parse().unwrap(),
                quota: 3,
                from: NOW,
                to: NOW.plus(Duration::from_secs(3600)),
                profile: Profile::default(),
            },
            devices: (0..3)
                .map(|n| {
                    (
                        DeviceId::new(&format!("SN-{n}")).unwrap(),
                        SoftwareKey::generate().unwrap(),
                    )
                })
                .collect(),
        }
    }

    /// The grant for a station's request, and the station's certificate.
    fn grant(&self, request: &str) -> (Vec<u8>, Vec<u8>) {
        let request = CertificateRequest::parse(request.as_bytes()).unwrap();
        let grant = StationCaGrant::new(&self.terms, request.key().clone()).unwrap();
        let issued = self.authority.issue_station(&grant, NOW).unwrap();
        let file = GrantFile {
            format: GrantFile::FORMAT.into(),
            terms: self.terms.clone(),
            chain: issued.chain_pem(),
            platform_root: "root".into(),
            host: "localhost".into(),
            port: 8883,
        };
        (serde_json::to_vec(&file).unwrap(), issued.certificate().to_vec())
    }
}

/// What somebody was told, and so must hold for ever.
#[derive(Default, Debug)]
struct Told {
    issued: BTreeMap<DeviceId, Fingerprint>,
    written: BTreeSet<DeviceId>,
    confirmed: BTreeSet<DeviceId>,
    closed: bool,
}

/// The whole life of a station, from wherever it stands: everything is safe to repeat.
fn work(factory: &Factory, disk: &Simulated, grant: &[u8], told: &mut Told) -> Result<(), Fault> {
    let mut station = Station::open(disk.clone())?;
    if station.standing(NOW).state != "closed" {
        station.install(grant, NOW)?;
        for (n, (id, key)) in factory.devices.iter().enumerate() {
            let now = NOW.plus(Duration::from_secs(n as u64));
            let handed = station.issue(id, &ProvenKey::of(key), now)?;
            let before = told.issued.insert(id.clone(), handed.fingerprint);
            assert!(
                before.is_none_or(|b| b == handed.fingerprint),
                "{id} was issued twice"
            );
            station.written(id, now)?;
            told.written.insert(id.clone());
            // The last one never comes to its confirmation.
            if n < 2 && !told.confirmed.contains(id) {
                let text = station.challenge(id)?;
                station.confirm(id, &key.sign(text.as_bytes()).unwrap(), now)?;
                told.confirmed.insert(id.clone());
            }
        }
        let more = DeviceId::new("SN-7").unwrap();
        let key = SoftwareKey::generate().unwrap();
        let refused = station.issue(&more, &ProvenKey::of(&key), NOW.plus(Duration::from_secs(9)));
        assert_eq!(refused.unwrap_err().code(), "station.overrun");
    }
    station.close("done", NOW.plus(Duration::from_secs(10)))?;
    told.closed = true;
    Ok(())
}

/// Everything that was told is there, however the power went.
fn check(disk: &Simulated, told: &Told) {
    let opened = match Station::open(disk.clone()) {
        Ok(station) => station,
        Err(Fault::NoStation(_)) if told.issued.is_empty() => return,
        Err(e) => panic!("{e}: {told:?}"),
    };
    let standing = opened.standing(NOW);
    let issued: BTreeMap<_, _> = opened.issued().map(|(id, f)| (id.clone(), *f)).collect();
    for (id, fingerprint) in &told.issued {
        assert_eq!(issued.get(id), Some(fingerprint), "{id} is lost");
    }
    assert!(standing.written >= told.written.len() as u64, "{standing:?}");
    for id in &told.confirmed {
        assert!(!standing.unconfirmed.contains(id), "{id} was confirmed");
    }
    if told.closed {
        assert_eq!(standing.state, "closed");
        assert_eq!(disk.read(station::KEY).unwrap(), None, "the key is destroyed");
    }
}

#[test]
fn nothing_is_lost_or_issued_twice_wherever_the_power_is_cut() {
    let factory = Factory::new();
    // How many steps there are without a cut.
    let whole = {
        let medium = Rc::<RefCell<Medium>>::default();
        let mut disk = Simulated::new(&medium, usize::MAX);
        let request = station::init(&mut disk, "test").unwrap();
        let (grant, _) = factory.grant(&request);
        disk.steps.set(0);
        work(&factory, &disk, &grant, &mut Told::default()).unwrap();
        disk.steps.get()
    };
    assert!(whole > 50, "{whole}");
    let (mut cuts, mut torn) = (0, 0);
    for survives in SURVIVALS {
        for cut in 0..whole {
            let medium = Rc::<RefCell<Medium>>::default();
            let request = station::init(&mut Simulated::new(&medium, usize::MAX), "test").unwrap();
            let (grant, certificate) = factory.grant(&request);
            let mut told = Told::default();
            let disk = Simulated::new(&medium, cut);
            let failed = work(&factory, &disk, &grant, &mut told).unwrap_err();
            assert_eq!(failed.code(), "storage", "{failed}");
            medium.borrow_mut().cut(survives);
            cuts += 1;
            let journal = medium
                .borrow()
                .durable
                .get("journal")
                .cloned()
                .unwrap_or_default();
            torn += usize::from(journal.contains(&0) || journal.last().is_some_and(|b| *b != b'\n'));
            // It is cut again while it comes up, at every point of that too.
            for again in 0..4 {
                let disk = Simulated::new(&medium, again);
                if Station::open(disk).is_err() {
                    medium.borrow_mut().cut(survives);
                }
            }
            let disk = Simulated::new(&medium, usize::MAX);
            check(&disk, &told);
            // And it goes on as if nothing had happened.
            work(&factory, &disk, &grant, &mut told).unwrap();
            check(&disk, &told);
            let station = Station::open(disk).unwrap();
            let export = station.export(NOW).unwrap();
            let known = Known {
                terms: &factory.terms,
                grant: Fingerprint::of(&grant),
                certificate: &certificate,
                now: NOW.plus(Duration::from_secs(60)),
            };
            let account = Account::of(&export, &known, Ending::Sealed).unwrap();
            assert!(account.closed && account.refused.is_empty() && account.doubtful.is_empty());
            let accounted: BTreeMap<_, _> = account
                .entries
                .iter()
                .map(|e| (e.device.clone(), e.facts.fingerprint))
                .collect();
            assert_eq!(accounted, told.issued, "{cut} {survives:?}");
            let serials: BTreeSet<_> = account.entries.iter().map(|e| &e.facts.serial).collect();
            assert_eq!(serials.len(), 3);
            let confirmed = account.entries.iter().filter(|e| e.confirmed.is_some());
            assert_eq!(confirmed.count(), 2);
        }
    }
    assert!(
        cuts > 300 && torn > 30,
        "{cuts} cuts, {torn} of which tore a record"
    );
}

#[test]
fn after_a_failed_write_nothing_is_issued_until_it_is_opened_anew() {
    struct Failing(Simulated, Rc<Cell<bool>>);
    impl Disk for Failing {
        fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
            self.0.read(name)
        }
        fn replace(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
            self.0.replace(name, bytes)
        }
        fn write_end(&mut self, name: &str, offset: usize, bytes: &[u8]) -> io::Result<()> {
            self.0.write_end(name, offset, bytes)
        }
        fn sync(&mut self, name: &str) -> io::Result<()> {
            if self.1.replace(false) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.0.sync(name)
        }
        fn destroy(&mut self, name: &str) -> io::Result<()> {
            self.0.destroy(name)
        }
    }
    let factory = Factory::new();
    let medium = Rc::<RefCell<Medium>>::default();
    let mut disk = Simulated::new(&medium, usize::MAX);
    let (grant, _) = factory.grant(&station::init(&mut disk, "test").unwrap());
    let fail = Rc::new(Cell::new(false));
    let mut station = Station::open(Failing(disk.clone(), fail.clone())).unwrap();
    station.install(&grant, NOW).unwrap();
    fail.set(true);
    let (id, key) = &factory.devices[0];
    let failed = station.issue(id, &ProvenKey::of(key), NOW).unwrap_err();
    assert_eq!(failed.exit_code(), 5);
    assert!(failed.to_string().contains("hint: the disk is full"), "{failed}");
    // The next sync would succeed, and say nothing of what the failed one lost.
    let failed = station.issue(id, &ProvenKey::of(key), NOW).unwrap_err();
    assert_eq!(failed.code(), "storage.lost");
    let mut station = Station::open(disk).unwrap();
    station.issue(id, &ProvenKey::of(key), NOW).unwrap();
}

#[test]
fn a_clock_that_is_behind_issues_nothing() {
    let factory = Factory::new();
    let medium = Rc::<RefCell<Medium>>::default();
    let mut disk = Simulated::new(&medium, usize::MAX);
    let (grant, _) = factory.grant(&station::init(&mut disk, "test").unwrap());
    let mut station = Station::open(disk.clone()).unwrap();
    let ahead = factory.terms.to.plus(Duration::from_secs(1));
    assert_eq!(
        station.install(&grant, ahead).unwrap_err().code(),
        "station.window"
    );
    station
        .install(&grant, NOW.plus(Duration::from_secs(60)))
        .unwrap();
    let issue = |station: &mut Station<Simulated>, n: usize, now| {
        let (id, key) = &factory.devices[n];
        station.issue(id, &ProvenKey::of(key), now).map_err(|f| f.code())
    };
    assert_eq!(issue(&mut station, 0, NOW), Err("station.clock-behind"));
    assert_eq!(station.standing(NOW).issued, 0, "nothing was minted");
    let early = NOW.minus(Duration::from_secs(3600));
    assert_eq!(issue(&mut station, 0, early), Err("station.clock-behind"));
    assert_eq!(issue(&mut station, 0, ahead), Err("station.window"));
    issue(&mut station, 0, NOW.plus(Duration::from_secs(60))).unwrap();
    // Also after it was opened anew: the newest time is in the journal.
    let mut station = Station::open(disk).unwrap();
    assert_eq!(issue(&mut station, 1, NOW), Err("station.clock-behind"));
    // What was issued is handed out again whatever the clock says.
    assert!(issue(&mut station, 0, NOW).unwrap().repeated);
}
