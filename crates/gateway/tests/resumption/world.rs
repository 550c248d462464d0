//! A registry and a gateway with three listeners, by a clock that can be moved.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use countersign_gateway::{
    Clock, DeviceListener, Foundation, Gateway, GatewayOptions, Limits, NoHttp, Protocol, Resumption,
    ServerIdentity, TicketKeys, TicketSettings, TlsMinimum,
};
use countersign_identity::{
    AuthorityId, CertificateFacts, DeviceId, Fingerprint, IdentityRule, TenantId, Timestamp,
};
use countersign_policy::exchange::ExchangeSink;
use countersign_policy::first_contact::{Answer, Contact};
use countersign_policy::{
    Admission, ClientIdMode, ExchangeId, ExchangeRecord, LifecycleState, SessionRecord, StageRecord,
};
use countersign_registry::{Actor, LedgerLimits, NewAuthority, NewCredential, NewDevice, Origin, Registry};
use countersign_testkit::client::{Attempt, Seen, connect};
use countersign_testkit::pki::{Ca, Identity, Leaf};
use parking_lot::Mutex;

/// The machine's clock, moved.
pub(crate) struct Moved(pub(crate) AtomicI64);

impl Clock for Moved {
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let now = i64::try_from(since.as_millis()).unwrap();
        Timestamp::from_unix_ms(now + self.0.load(Ordering::Acquire))
    }
}

#[derive(Default)]
pub(crate) struct Records(pub(crate) Mutex<Vec<ExchangeRecord>>);

impl ExchangeSink for Records {
    fn record(&self, exchange: ExchangeRecord) {
        self.0.lock().push(exchange);
    }
    fn first_data(&self, _: &TenantId, _: &DeviceId, _: ExchangeId, _: StageRecord) {}
    fn session(&self, _: SessionRecord) {}
    fn credential_used(&self, _: Fingerprint, _: &AuthorityId) {}
    fn first_contact(&self, _: Contact, answer: Answer) {
        answer(Ok(()));
    }
}

pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) runtime: tokio::runtime::Runtime,
    pub(crate) clock: Arc<Moved>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) records: Arc<Records>,
    pub(crate) ca: Ca,
    pub(crate) other_ca: Ca,
    pub(crate) server: Identity,
    pub(crate) limits: Limits,
    pub(crate) gateway: Option<Gateway>,
}

pub(crate) fn actor() -> Actor {
    Actor("test".into())
}

pub(crate) fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

pub(crate) fn id(name: &str) -> DeviceId {
    DeviceId::new(name).unwrap()
}

impl World {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(Moved(AtomicI64::new(0)));
        let registry =
            Registry::create_with_clock(folder.path(), LedgerLimits::default(), clock.clone()).unwrap();
        let registry = Arc::new(registry);
        registry
            .add_tenant(actor(), tenant("other"), ClientIdMode::Strict)
            .unwrap();
        for (host, owner) in [("default.test", "default"), ("other.test", "other")] {
            registry.add_host(actor(), tenant(owner), host.into()).unwrap();
        }
        let ca = Ca::root("resumption root", None);
        let other_ca = Ca::root("resumption other", None);
        for (name, owner, ca) in [("ca", "default", &ca), ("other-ca", "other", &other_ca)] {
            let new = NewAuthority {
                id: name.parse().unwrap(),
                tenant: tenant(owner),
                origin: Origin::Managed,
                rule: IdentityRule::default(),
                admission: Admission::RegisteredOnly,
                certificate: ca.certificate().to_vec(),
            };
            registry.register_authority(actor(), new).unwrap();
        }
        let mut world = Self {
            folder,
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap(),
            clock,
            registry,
            records: Arc::default(),
            ca,
            other_ca,
            server: Ca::root("server", None).issue(&Leaf::named("localhost"), &[]),
            limits: Limits {
                connections_per_source_max: 10_000,
                ..Limits::default()
            },
            gateway: None,
        };
        world.start(TicketSettings::default());
        world
    }

    pub(crate) fn keys(&self) -> PathBuf {
        self.folder.path().join("ticket.keys")
    }

    /// Starts the gateway, again if there is one: what it remembers is what is on disk.
    pub(crate) fn start(&mut self, settings: TicketSettings) {
        self.gateway = None;
        let listener = |name: &str, resumption| DeviceListener {
            name: name.into(),
            address: "127.0.0.1:0".parse().unwrap(),
            tls_minimum: TlsMinimum::Tls12,
            protocols: Protocol::ALL.to_vec(),
            resumption,
            proxy_from: vec![],
        };
        let _inside = self.runtime.enter();
        let (keys, _) = TicketKeys::open(self.keys(), TicketKeys::ROTATION, 3, self.clock.now());
        let gateway = Gateway::start(
            &[
                listener("one", Resumption::Offered),
                listener("two", Resumption::Offered),
                listener("never", Resumption::Off),
            ],
            GatewayOptions {
                host_names: vec!["localhost".into()],
                limits: self.limits.clone(),
                tickets: settings,
                clones: countersign_policy::clones::CloneRules::default(),
            },
            Foundation {
                identity: Arc::new(
                    ServerIdentity::new(self.server.chain.clone(), self.server.key.clone_key()).unwrap(),
                ),
                tickets: Arc::new(keys),
                facts: self.registry.facts().clone(),
                sink: self.records.clone(),
                http: Arc::new(NoHttp),
                clock: self.clock.clone(),
            },
        )
        .unwrap();
        self.gateway = Some(gateway);
    }

    pub(crate) fn gateway(&self) -> &Gateway {
        self.gateway.as_ref().unwrap()
    }

    pub(crate) fn attempt(&self, listener: usize) -> Attempt {
        Attempt {
            patience: Duration::from_millis(300),
            ..Attempt::new(self.gateway().local_addrs()[listener].1)
        }
    }

    /// A device that remembers its session.
    pub(crate) fn device(&self, identity: &Identity, name: &str) -> Attempt {
        self.attempt(0)
            .identity(identity)
            .send(connect(5, name))
            .resuming()
    }

    pub(crate) fn add(&self, owner: &str, name: &str, leaf: &Leaf) -> Identity {
        let ca = if owner == "other" {
            &self.other_ca
        } else {
            &self.ca
        };
        let identity = ca.issue(leaf, &[]);
        self.import(owner, name, &identity);
        identity
    }

    pub(crate) fn import(&self, owner: &str, name: &str, identity: &Identity) {
        let new = NewDevice {
            id: id(name),
            model: None,
            groups: vec![],
            state: LifecycleState::Active,
            authority: None,
        };
        let credential = NewCredential::brought(CertificateFacts::parse(&identity.chain[0]).unwrap());
        self.registry
            .import_devices(actor(), tenant(owner), vec![(new, Some(credential))])
            .unwrap();
    }

    /// A registered authority, proven.
    pub(crate) fn brought(&self, ca: &Ca) -> AuthorityId {
        let authority: AuthorityId = "brought".parse().unwrap();
        let new = NewAuthority {
            id: authority.clone(),
            tenant: tenant("default"),
            origin: Origin::Registered {
                code: "prove-me".into(),
            },
            rule: IdentityRule::default(),
            admission: Admission::RegisteredOnly,
            certificate: ca.certificate().to_vec(),
        };
        self.registry.register_authority(actor(), new).unwrap();
        let proof = ca.issue(&Leaf::named("prove-me"), &[]).chain[0].to_vec();
        self.registry
            .prove_authority(actor(), authority.clone(), proof)
            .unwrap();
        authority
    }

    pub(crate) fn pass(&self, time: Duration) {
        let ms = i64::try_from(time.as_millis()).unwrap();
        self.clock.0.fetch_add(ms, Ordering::AcqRel);
    }

    pub(crate) fn last(&self) -> ExchangeRecord {
        self.records.0.lock().last().cloned().unwrap()
    }

    pub(crate) fn declines(&self) -> BTreeMap<&'static str, u64> {
        self.gateway().metrics().tickets.declines()
    }
}

pub(crate) fn fact<'a>(record: &'a ExchangeRecord, name: &str) -> Option<&'a str> {
    record
        .facts
        .iter()
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.as_str())
}

pub(crate) fn hours(n: u64) -> Duration {
    Duration::from_secs(n * 3600)
}

pub(crate) fn admitted(seen: &Seen, resumed: bool) {
    assert_eq!((seen.connack(), seen.resumed), (Some(0), resumed), "{seen:?}");
}
