//! A gateway over a registry whose facts change under it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use countersign_gateway::{
    DeviceListener, Foundation, Gateway, GatewayOptions, Limits, Protocol, Resumption, ServerIdentity,
    TicketKeys, TicketSettings, TlsMinimum, Touched,
};
use countersign_identity::{
    Anchor, AnchorIndex, AnchorState, AuthorityId, CertificateFacts, Clock, DeviceId, Fingerprint,
    Generation, IdentityRule, TenantId,
};
use countersign_policy::decide::TenantPolicy;
use countersign_policy::exchange::ExchangeSink;
use countersign_policy::facts::RegistryUnavailable;
use countersign_policy::first_contact::{Answer, Contact};
use countersign_policy::{
    Admission, ClientIdMode, CredentialFacts, DeviceFacts, ExchangeId, ExchangeRecord, FactSource,
    LifecycleMove, LifecycleState, SessionRecord, StageRecord,
};
use countersign_registry::{
    Actor, Change, LedgerLimits, NewAuthority, NewCredential, NewDevice, Origin, Registry, SystemClock,
};
use countersign_testkit::client::{Attempt, connect};
use countersign_testkit::pki::{Ca, Identity, Leaf};

/// Something that is done to the registry, and answered, in the middle of somebody's connection.
pub(crate) type Deed = Arc<dyn Fn(&Registry) + Send + Sync>;

/// Facts that do their deed at one chosen lookup.
pub(crate) struct Meddling {
    registry: Arc<Registry>,
    /// Suspends the device, if it is not set to something else.
    pub(crate) deed: Mutex<Deed>,
    pub(crate) armed: AtomicBool,
    /// Lookups that go by before it happens.
    pub(crate) countdown: AtomicUsize,
}

impl Meddling {
    fn lookup(&self) {
        if self.armed.load(Ordering::Acquire)
            && self.countdown.fetch_sub(1, Ordering::AcqRel) == 0
            && self.armed.swap(false, Ordering::AcqRel)
        {
            let deed = self.deed.lock().unwrap().clone();
            deed(&self.registry);
        }
    }
}

/// Where in a first contact a deed is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InContact {
    /// Between the chain check, which is over, and the transaction that learns the certificate.
    Before,
    /// Between that transaction and its answer.
    After,
}

/// The registry as the gateway's sink, with a deed in the middle of the next first contact.
struct Learning {
    facts: Arc<Meddling>,
    contact: Arc<Mutex<Option<InContact>>>,
}

impl ExchangeSink for Learning {
    fn record(&self, exchange: ExchangeRecord) {
        ExchangeSink::record(&*self.facts.registry, exchange);
    }

    fn first_data(&self, tenant: &TenantId, device: &DeviceId, exchange: ExchangeId, stage: StageRecord) {
        ExchangeSink::first_data(&*self.facts.registry, tenant, device, exchange, stage);
    }

    fn session(&self, session: SessionRecord) {
        ExchangeSink::session(&*self.facts.registry, session);
    }

    fn credential_used(&self, fingerprint: Fingerprint, authority: &AuthorityId) {
        ExchangeSink::credential_used(&*self.facts.registry, fingerprint, authority);
    }

    fn first_contact(&self, contact: Contact, answer: Answer) {
        let registry = &self.facts.registry;
        let deed = self.facts.deed.lock().unwrap().clone();
        let answer: Answer = match self.contact.lock().unwrap().take() {
            None => answer,
            Some(InContact::Before) => {
                deed(registry);
                answer
            }
            Some(InContact::After) => {
                let registry = registry.clone();
                // Answers come from the thread that writes, and a deed waits for it.
                Box::new(move |learned| {
                    std::thread::spawn(move || {
                        deed(&registry);
                        answer(learned);
                    });
                })
            }
        };
        ExchangeSink::first_contact(&**registry, contact, answer);
    }
}

pub(crate) fn actor() -> Actor {
    Actor("race".into())
}

pub(crate) fn tenant() -> TenantId {
    TenantId::default_tenant()
}

pub(crate) fn device() -> DeviceId {
    DeviceId::new("d1").unwrap()
}

pub(crate) fn suspend(registry: &Registry) {
    registry
        .move_device(actor(), tenant(), device(), LifecycleMove::Suspend, String::new())
        .unwrap();
}

impl FactSource for Meddling {
    fn health(&self) -> Result<(), RegistryUnavailable> {
        self.lookup();
        self.registry.facts().health()
    }
    fn anchors(&self) -> Arc<AnchorIndex> {
        self.registry.facts().anchors()
    }
    fn tenant_by_host(&self, host: &str) -> Option<TenantId> {
        self.registry.facts().tenant_by_host(host)
    }
    fn credential(&self, fingerprint: &Fingerprint) -> Option<CredentialFacts> {
        let found = self.registry.facts().credential(fingerprint);
        self.lookup();
        found
    }
    fn device(&self, tenant: &TenantId, device: &DeviceId) -> Option<Arc<DeviceFacts>> {
        let found = self.registry.facts().device(tenant, device);
        self.lookup();
        found
    }
    fn authority(&self, authority: &AuthorityId) -> Option<(AnchorState, Generation)> {
        let found = self.registry.facts().authority(authority);
        self.lookup();
        found
    }
    fn anchor(&self, authority: &AuthorityId) -> Option<Arc<Anchor>> {
        let found = self.registry.facts().anchor(authority);
        self.lookup();
        found
    }
    fn admission(&self, authority: &AuthorityId) -> Admission {
        self.registry.facts().admission(authority)
    }

    fn client_id_mode(&self, tenant: &TenantId) -> ClientIdMode {
        self.lookup();
        self.registry.facts().client_id_mode(tenant)
    }
    fn policy(&self, tenant: &TenantId) -> Option<Arc<TenantPolicy>> {
        let found = self.registry.facts().policy(tenant);
        self.lookup();
        found
    }
}

pub(crate) struct World {
    _folder: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
    pub(crate) registry: Arc<Registry>,
    pub(crate) facts: Arc<Meddling>,
    pub(crate) contact: Arc<Mutex<Option<InContact>>>,
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) identity: Identity,
}

pub(crate) fn world() -> World {
    world_with(Limits::default())
}

pub(crate) fn world_with(limits: Limits) -> World {
    let folder = tempfile::tempdir().unwrap();
    let registry = Arc::new(Registry::create(folder.path(), LedgerLimits::default()).unwrap());
    let ca = Ca::root("race root", None);
    let identity = ca.issue(&Leaf::named("d1"), &[]);
    registry
        .register_authority(
            actor(),
            NewAuthority {
                id: "race".parse().unwrap(),
                tenant: tenant(),
                origin: Origin::Managed,
                rule: IdentityRule::default(),
                admission: Admission::RegisteredOnly,
                certificate: ca.certificate().to_vec(),
            },
        )
        .unwrap();
    let new = NewDevice {
        id: device(),
        model: None,
        groups: vec![],
        state: LifecycleState::Active,
        authority: None,
    };
    let credential = NewCredential::brought(CertificateFacts::parse(&identity.chain[0]).unwrap());
    registry
        .import_devices(actor(), tenant(), vec![(new, Some(credential))])
        .unwrap();
    let facts = Arc::new(Meddling {
        registry: registry.clone(),
        deed: Mutex::new(Arc::new(suspend)),
        armed: AtomicBool::new(false),
        countdown: AtomicUsize::new(0),
    });
    let contact: Arc<Mutex<Option<InContact>>> = Arc::default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let server = Ca::root("server", None).issue(&Leaf::named("localhost"), &[]);
    let gateway = {
        let _inside = runtime.enter();
        Gateway::start(
            &[DeviceListener {
                name: "devices".into(),
                address: "127.0.0.1:0".parse().unwrap(),
                tls_minimum: TlsMinimum::Tls12,
                protocols: Protocol::ALL.to_vec(),
                proxy_from: vec![],
                resumption: Resumption::Offered,
            }],
            GatewayOptions {
                host_names: vec!["localhost".into()],
                clones: countersign_policy::clones::CloneRules::default(),
                // One device comes here as often as it can.
                limits: Limits {
                    device_connects_per_minute: 1_000_000,
                    source_connects_per_s: 1_000_000,
                    ..limits
                },
                tickets: TicketSettings::default(),
            },
            Foundation {
                identity: Arc::new(ServerIdentity::new(server.chain, server.key).unwrap()),
                tickets: Arc::new(TicketKeys::in_memory(SystemClock.now())),
                facts: facts.clone(),
                sink: Arc::new(Learning {
                    facts: facts.clone(),
                    contact: contact.clone(),
                }),
                http: Arc::new(crate::grants::Grants),
                clock: Arc::new(SystemClock),
            },
        )
        .unwrap()
    };
    let gateway = Arc::new(gateway);
    let cut: Arc<OnceLock<Arc<Gateway>>> = Arc::default();
    let _ = cut.set(gateway.clone());
    registry.on_change(move |_, changes| {
        for change in changes {
            let touched = match change {
                Change::Device(tenant, device) => Touched::Device(tenant.clone(), device.clone()),
                Change::Tenant(tenant) => Touched::Tenant(tenant.clone()),
                Change::Authority(authority) => Touched::Authority(authority.clone()),
                // Nobody is told: the sweep has something to find.
                Change::Credential(..) => continue,
            };
            if let Some(gateway) = cut.get() {
                let _ = gateway.reconsider(&[touched]);
            }
        }
    });
    World {
        _folder: folder,
        _runtime: runtime,
        registry,
        facts,
        contact,
        gateway,
        identity,
    }
}

impl World {
    pub(crate) fn attempt(&self) -> Attempt {
        self.attempt_of(&self.identity).send(connect(5, "d1"))
    }

    pub(crate) fn attempt_of(&self, identity: &Identity) -> Attempt {
        let attempt = Attempt {
            patience: Duration::from_millis(700),
            ..Attempt::new(self.gateway.local_addr())
        };
        attempt.identity(identity)
    }

    /// The suspension was answered and the attempt is over: nothing of it may be left.
    pub(crate) fn nothing_lives(&self, what: &str) {
        let started = Instant::now();
        while !self.gateway.sessions(None).is_empty() {
            assert!(
                started.elapsed() < Duration::from_millis(500),
                "{what}: a live session of who may not have one"
            );
        }
    }

    pub(crate) fn resume(&self) {
        self.registry
            .move_device(actor(), tenant(), device(), LifecycleMove::Resume, String::new())
            .unwrap();
    }
}
