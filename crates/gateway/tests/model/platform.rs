//! The platform of the walk: a registry on disk and a gateway, which can be taken away and come back.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use countersign_factory::RevocationReason;
use countersign_gateway::{
    Clock, DeviceListener, Foundation, Gateway, GatewayOptions, Limits, Protocol, Resumption, ServerIdentity,
    TicketKeys, TicketSettings, TlsMinimum, Touched,
};
use countersign_identity::{AuthorityId, CertificateFacts, DeviceId, IdentityRule, TenantId};
use countersign_policy::clones::CloneRules;
use countersign_policy::decide::DEFAULT_POLICY;
use countersign_policy::{Admission, LifecycleMove, LifecycleState};
use countersign_registry::{
    Actor, AuthorityMove, Change, LedgerLimits, NewAuthority, NewCredential, NewDevice, Origin, PolicyChange,
    Registry, RegistryError, Revocation, SystemClock,
};
use countersign_testkit::pki::{Ca, Identity, Leaf};

use super::grants::Grants;

/// The policies that the walk changes between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    Everybody,
    /// Devices of group `odd` stay out.
    NotOdd,
    /// No resumed sessions.
    NotResumed,
}

impl Policy {
    fn text(self) -> String {
        let more = match self {
            Self::Everybody => "",
            Self::NotOdd => "forbid (principal in Group::\"odd\", action == Action::\"connect\", resource);",
            Self::NotResumed => {
                "forbid (principal, action == Action::\"connect\", resource) when { context.tls.resumed };"
            }
        };
        format!("{DEFAULT_POLICY}\n{more}\n")
    }
}

pub(crate) struct Platform {
    folder: tempfile::TempDir,
    running: Option<(tokio::runtime::Runtime, Arc<Registry>, Arc<Gateway>)>,
    server: Identity,
    authorities: Vec<(Ca, bool)>,
}

fn actor() -> Actor {
    Actor("model".into())
}

fn tenant() -> TenantId {
    TenantId::default_tenant()
}

fn device(id: &str) -> DeviceId {
    DeviceId::new(id).unwrap()
}

impl Platform {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        drop(Registry::create(folder.path(), LedgerLimits::default()).unwrap());
        let mut platform = Self {
            folder,
            running: None,
            server: Ca::root("server", None).issue(&Leaf::named("localhost"), &[]),
            authorities: vec![],
        };
        platform.restart();
        platform.add_authority();
        platform
    }

    fn registry(&self) -> &Arc<Registry> {
        &self.running.as_ref().unwrap().1
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.running.as_ref().unwrap().2.local_addr()
    }

    /// The tokens that are in the index, as `DEVICE ID`.
    pub(crate) fn tokens(&self) -> HashSet<(String, String)> {
        let gateway = &self.running.as_ref().unwrap().2;
        gateway
            .sessions(None)
            .into_iter()
            .filter(|s| s.kind == "token")
            .filter_map(|s| {
                let id = s.client_id.strip_prefix("token:")?.to_owned();
                Some((s.device.to_string(), id))
            })
            .collect()
    }

    /// Whether a service is told that the token is good.
    pub(crate) fn is_good(&self, id: &str, token: &str) -> bool {
        let gateway = &self.running.as_ref().unwrap().2;
        gateway
            .token(&tenant(), &device(id), &token.parse().unwrap())
            .is_some()
    }

    pub(crate) fn panics(&self) -> u64 {
        self.running
            .as_ref()
            .unwrap()
            .2
            .metrics()
            .panics
            .load(Ordering::Relaxed)
    }

    pub(crate) fn restart(&mut self) {
        if let Some((runtime, registry, gateway)) = self.running.take() {
            // Every task is dropped where it stands, and its socket with it.
            runtime.shutdown_timeout(Duration::from_secs(5));
            drop((registry, gateway));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let registry = Arc::new(Registry::open(self.folder.path(), LedgerLimits::default()).unwrap());
        let keys = self.folder.path().join("ticket.keys");
        let (tickets, _) = TicketKeys::open(keys, TicketKeys::ROTATION, 3, Clock::now(&SystemClock));
        let gateway = {
            let _inside = runtime.enter();
            Gateway::start(
                &[DeviceListener {
                    name: "devices".into(),
                    address: "127.0.0.1:0".parse().unwrap(),
                    tls_minimum: TlsMinimum::Tls12,
                    protocols: Protocol::ALL.to_vec(),
                    resumption: Resumption::Offered,
                    proxy_from: vec![],
                }],
                GatewayOptions {
                    host_names: vec!["localhost".into()],
                    limits: Limits {
                        // All of the fleet comes from one address here, and far too often.
                        connections_per_source_max: 10_000,
                        source_connects_per_s: 100_000,
                        handshakes_per_s: 100_000,
                        device_connects_per_minute: 1_000_000,
                        ..Limits::default()
                    },
                    tickets: TicketSettings::default(),
                    clones: CloneRules::default(),
                },
                Foundation {
                    identity: Arc::new(
                        ServerIdentity::new(self.server.chain.clone(), self.server.key.clone_key()).unwrap(),
                    ),
                    tickets: Arc::new(tickets),
                    facts: registry.facts().clone(),
                    sink: registry.clone(),
                    http: Arc::new(Grants),
                    clock: Arc::new(SystemClock),
                },
            )
            .unwrap()
        };
        let gateway = Arc::new(gateway);
        let cut: Arc<OnceLock<std::sync::Weak<Gateway>>> = Arc::default();
        let _ = cut.set(Arc::downgrade(&gateway));
        registry.on_change(move |_, changes| {
            let Some(gateway) = cut.get().and_then(std::sync::Weak::upgrade) else {
                return;
            };
            for change in changes {
                let touched = match change.clone() {
                    Change::Device(tenant, device) => Touched::Device(tenant, device),
                    Change::Credential(tenant, device, fingerprint) => {
                        Touched::Credential(tenant, device, fingerprint)
                    }
                    Change::Authority(authority) => Touched::Authority(authority),
                    Change::Tenant(tenant) => Touched::Tenant(tenant),
                };
                let _ = gateway.reconsider(&[touched]);
            }
        });
        self.running = Some((runtime, registry, gateway));
    }

    fn add_authority(&mut self) {
        let n = self.authorities.len();
        let ca = Ca::root(&format!("model root {n}"), None);
        self.registry()
            .register_authority(
                actor(),
                NewAuthority {
                    id: authority(n),
                    tenant: tenant(),
                    origin: Origin::Managed,
                    rule: IdentityRule::default(),
                    admission: Admission::RegisteredOnly,
                    certificate: ca.certificate().to_vec(),
                },
            )
            .unwrap();
        self.authorities.push((ca, true));
    }

    pub(crate) fn authority_admits(&self, n: usize) -> bool {
        self.authorities[n].1
    }

    /// Another one takes its place.
    pub(crate) fn revoke_newest_authority(&mut self) {
        let n = self.authorities.len() - 1;
        self.registry()
            .move_authority(actor(), authority(n), AuthorityMove::Revoke, String::new())
            .unwrap();
        self.authorities[n].1 = false;
        self.add_authority();
    }

    fn import(&self, id: &str, identity: &Identity) {
        let group = if super::is_odd(id) { "odd" } else { "even" };
        let new = NewDevice {
            id: device(id),
            model: None,
            groups: vec![group.into()],
            state: LifecycleState::Active,
            authority: None,
        };
        let credential = NewCredential::brought(CertificateFacts::parse(&identity.chain[0]).unwrap());
        let report = self
            .registry()
            .import_devices(actor(), tenant(), vec![(new, Some(credential))])
            .unwrap();
        assert_eq!(
            (report.value.credentials_added, report.value.refused.len()),
            (1, 0)
        );
    }

    pub(crate) fn add_device(&self, id: &str) -> (Identity, usize) {
        let (identity, authority, _) = self.renew(id, None);
        (identity, authority)
    }

    /// Another certificate for a device, which may end soon.
    pub(crate) fn renew(&self, id: &str, lifetime: Option<Duration>) -> (Identity, usize, Option<Instant>) {
        let n = self.authorities.len() - 1;
        let ca = &self.authorities[n].0;
        let ends = lifetime.map(|l| Instant::now() + l);
        let identity = match lifetime {
            Some(l) => ca.issue_for_seconds(id, i64::try_from(l.as_secs()).unwrap()),
            None => ca.issue(&Leaf::named(id), &[]),
        };
        self.import(id, &identity);
        (identity, n, ends)
    }

    pub(crate) fn move_device(&self, id: &str, attempted: LifecycleMove) -> Result<(), RegistryError> {
        self.registry()
            .move_device(actor(), tenant(), device(id), attempted, String::new())
            .map(|_| ())
    }

    pub(crate) fn revoke(&self, identity: &Identity) {
        let fingerprint = CertificateFacts::parse(&identity.chain[0]).unwrap().fingerprint;
        self.registry()
            .revoke(
                actor(),
                Revocation::Credential(fingerprint),
                RevocationReason::KeyCompromise,
                String::new(),
            )
            .unwrap();
    }

    pub(crate) fn set_policy(&self, policy: Policy) {
        let change = PolicyChange {
            policies: Some(policy.text()),
            ..PolicyChange::default()
        };
        self.registry()
            .configure_tenant(actor(), tenant(), None, Some(change))
            .unwrap();
    }
}

fn authority(n: usize) -> AuthorityId {
    format!("model-{n}").parse().unwrap()
}
