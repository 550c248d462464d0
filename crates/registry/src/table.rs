//! The facts in memory: what the gateway decides on, without I/O. Only the writer changes it, after each commit and
//! before the change is answered.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use countersign_identity::{
    Anchor, AnchorIndex, AnchorState, AuthorityId, CertificateFacts, DeviceId, Fingerprint, Generation,
    StoredIntermediate, TenantId,
};
use countersign_policy::decide::TenantPolicy;
use countersign_policy::facts::{CredentialKind, RegistryUnavailable};
use countersign_policy::{
    Admission, ClientIdMode, CredentialFacts, CredentialState, DeviceFacts, FactSource, StationFacts,
};
use parking_lot::{Mutex, RwLock};

/// A map in shards, so that a write of one fact does not hold up the reads of all others.
#[derive(Debug)]
struct Sharded<K, V> {
    shards: Vec<RwLock<HashMap<K, V>>>,
    hasher: RandomState,
}

impl<K: Hash + Eq, V: Clone> Sharded<K, V> {
    fn new() -> Self {
        Self {
            shards: (0..64).map(|_| RwLock::default()).collect(),
            hasher: RandomState::new(),
        }
    }

    fn shard(&self, key: &K) -> &RwLock<HashMap<K, V>> {
        &self.shards[(self.hasher.hash_one(key) as usize) % self.shards.len()]
    }

    fn get(&self, key: &K) -> Option<V> {
        self.shard(key).read().get(key).cloned()
    }

    fn insert(&self, key: K, value: V) {
        self.shard(&key).write().insert(key, value);
    }

    fn len(&self) -> usize {
        self.shards.iter().map(|s| s.read().len()).sum()
    }
}

#[derive(Debug, Clone)]
struct TenantFacts {
    mode: ClientIdMode,
    policy: Arc<TenantPolicy>,
}

/// One change of the table.
#[derive(Debug)]
pub(crate) enum Fact {
    Tenant {
        id: TenantId,
        mode: ClientIdMode,
        policy: Arc<TenantPolicy>,
    },
    Host {
        host: String,
        tenant: Option<TenantId>,
    },
    Authority(Arc<Anchor>, Admission),
    Intermediate(Arc<StoredIntermediate>),
    /// An offline factory station, by the subject of its certificate, DER.
    Station(TenantId, Vec<u8>, StationFacts),
    Device(Arc<DeviceFacts>),
    Credential(CredentialFacts),
    /// A credential whose authority is not known, or is by now.
    Placed(Fingerprint, bool),
    /// Credentials that got on a revocation list, and those that are on none any more.
    Listed {
        added: Vec<Fingerprint>,
        removed: Vec<Fingerprint>,
    },
}

/// All facts of all tenants.
#[derive(Debug)]
pub struct FactTable {
    tenants: RwLock<HashMap<TenantId, TenantFacts>>,
    hosts: RwLock<HashMap<String, TenantId>>,
    devices: Sharded<(TenantId, DeviceId), Arc<DeviceFacts>>,
    credentials: Sharded<Fingerprint, CredentialFacts>,
    /// Factory profiles whose certificates are for enrolment alone, by name.
    enrol_only: ArcSwap<HashSet<String>>,
    /// On a revocation list of their issuer. Empty where no lists are kept, and then it costs nothing.
    listed: ArcSwap<HashSet<Fingerprint>>,
    /// Whose authority is not known: certificates that were registered before it, or of which several may be.
    unplaced: RwLock<HashSet<Fingerprint>>,
    authorities: RwLock<HashMap<AuthorityId, (Arc<Anchor>, Admission)>>,
    intermediates: RwLock<Vec<Arc<StoredIntermediate>>>,
    stations: RwLock<HashMap<Vec<u8>, (TenantId, StationFacts)>>,
    anchors: ArcSwap<AnchorIndex>,
    available: AtomicBool,
    reason: Mutex<String>,
}

impl FactTable {
    pub(crate) fn new() -> Self {
        Self {
            tenants: RwLock::default(),
            hosts: RwLock::default(),
            devices: Sharded::new(),
            credentials: Sharded::new(),
            enrol_only: ArcSwap::default(),
            listed: ArcSwap::default(),
            unplaced: RwLock::default(),
            authorities: RwLock::default(),
            intermediates: RwLock::default(),
            stations: RwLock::default(),
            anchors: ArcSwap::from_pointee(AnchorIndex::default()),
            available: AtomicBool::new(true),
            reason: Mutex::default(),
        }
    }

    pub(crate) fn apply(&self, facts: Vec<Fact>) {
        let mut authorities_changed = false;
        for fact in facts {
            match fact {
                Fact::Tenant { id, mode, policy } => {
                    self.tenants.write().insert(id, TenantFacts { mode, policy });
                }
                Fact::Host {
                    host,
                    tenant: Some(tenant),
                } => {
                    self.hosts.write().insert(host, tenant);
                }
                Fact::Host { host, tenant: None } => {
                    self.hosts.write().remove(&host);
                }
                Fact::Authority(anchor, admission) => {
                    self.authorities
                        .write()
                        .insert(anchor.authority.clone(), (anchor, admission));
                    authorities_changed = true;
                }
                Fact::Intermediate(intermediate) => {
                    self.intermediates.write().push(intermediate);
                    authorities_changed = true;
                }
                Fact::Station(tenant, subject, facts) => {
                    self.stations.write().insert(subject, (tenant, facts));
                }
                Fact::Device(device) => self
                    .devices
                    .insert((device.tenant.clone(), device.id.clone()), device),
                Fact::Credential(credential) => self.credentials.insert(credential.fingerprint, credential),
                Fact::Placed(fingerprint, true) => {
                    self.unplaced.write().remove(&fingerprint);
                }
                Fact::Placed(fingerprint, false) => {
                    self.unplaced.write().insert(fingerprint);
                }
                Fact::Listed { added, removed } => {
                    let mut listed = HashSet::clone(&self.listed.load());
                    listed.extend(added);
                    for fingerprint in removed {
                        listed.remove(&fingerprint);
                    }
                    self.listed.store(Arc::new(listed));
                }
            }
        }
        if authorities_changed {
            let all: Vec<_> = self.authorities.read().values().map(|(a, _)| a.clone()).collect();
            let mut index = AnchorIndex::new(all);
            for intermediate in self.intermediates.read().iter() {
                index.insert_intermediate(intermediate.clone());
            }
            self.anchors.store(Arc::new(index));
        }
    }

    /// From now on every decision is a denial, until [`FactTable::set_available`].
    pub(crate) fn set_unavailable(&self, reason: String) {
        *self.reason.lock() = reason;
        self.available.store(false, Ordering::Release);
    }

    pub(crate) fn set_available(&self) {
        self.available.store(true, Ordering::Release);
    }

    /// How many devices there are.
    pub fn device_count(&self) -> usize {
        self.devices.len()
    }

    /// How many credentials there are.
    pub fn credential_count(&self) -> usize {
        self.credentials.len()
    }

    /// The authority of a tenant that a certificate's own bytes, and those of stored intermediates, lead to, if that is one
    /// alone. Else it is learned when the device is admitted.
    pub(crate) fn issuer_of(&self, tenant: &TenantId, certificate: &CertificateFacts) -> Option<AuthorityId> {
        match self.anchors.load().anchors_above(tenant, certificate).as_slice() {
            [one] => Some(one.authority.clone()),
            _ => None,
        }
    }

    /// Whether some authority of a tenant may be above a certificate, by its own bytes and those of stored intermediates.
    pub(crate) fn has_issuer(&self, tenant: &TenantId, certificate: &CertificateFacts) -> bool {
        !self.anchors.load().anchors_above(tenant, certificate).is_empty()
    }

    /// An authority as it is now.
    pub(crate) fn anchor(&self, id: &AuthorityId) -> Option<Arc<Anchor>> {
        self.authorities.read().get(id).map(|(anchor, _)| anchor.clone())
    }

    /// Sets the factory profiles that are for enrolment alone, and returns those before. The facts of their credentials are
    /// for the caller to read anew.
    /// The profiles of factory certificates that enrol and open no data sessions, as a JSON array.
    pub(crate) fn enrol_only_profiles(&self) -> String {
        serde_json::json!(**self.enrol_only.load()).to_string()
    }

    pub(crate) fn set_enrol_only(&self, profiles: HashSet<String>) -> Arc<HashSet<String>> {
        self.enrol_only.swap(Arc::new(profiles))
    }

    /// Whether a credential of this kind, issued by this profile if it was issued here, opens data sessions.
    pub(crate) fn opens_data_sessions(&self, kind: CredentialKind, profile: Option<&str>) -> bool {
        kind != CredentialKind::Factory || !profile.is_some_and(|p| self.enrol_only.load().contains(p))
    }

    /// Whether a credential is registered for anybody.
    pub(crate) fn knows(&self, fingerprint: &Fingerprint) -> bool {
        self.credentials.get(fingerprint).is_some()
    }
}

impl FactSource for FactTable {
    fn health(&self) -> Result<(), RegistryUnavailable> {
        if self.available.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(RegistryUnavailable {
            reason: self.reason.lock().clone(),
        })
    }

    fn anchors(&self) -> Arc<AnchorIndex> {
        self.anchors.load_full()
    }

    fn tenant_by_host(&self, host: &str) -> Option<TenantId> {
        self.hosts.read().get(&host.to_ascii_lowercase()).cloned()
    }

    fn credential(&self, fingerprint: &Fingerprint) -> Option<CredentialFacts> {
        let credential = self.credentials.get(fingerprint)?;
        let listed = self.listed.load();
        if !listed.is_empty() && listed.contains(fingerprint) {
            return Some(CredentialFacts {
                state: CredentialState::Revoked,
                ..credential
            });
        }
        Some(credential)
    }

    fn is_unplaced(&self, fingerprint: &Fingerprint) -> bool {
        self.unplaced.read().contains(fingerprint)
    }

    fn device(&self, tenant: &TenantId, device: &DeviceId) -> Option<Arc<DeviceFacts>> {
        self.devices.get(&(tenant.clone(), device.clone()))
    }

    fn station(&self, tenant: &TenantId, issuer: &[u8]) -> Option<StationFacts> {
        let stations = self.stations.read();
        let (of, facts) = stations.get(issuer)?;
        (of == tenant).then(|| facts.clone())
    }

    fn authority(&self, authority: &AuthorityId) -> Option<(AnchorState, Generation)> {
        // Certificates that vouch for themselves have none that could change.
        if authority.is_pinned() {
            return Some((AnchorState::Active, Generation(0)));
        }
        self.authorities
            .read()
            .get(authority)
            .map(|(a, _)| (a.state, a.generation))
    }

    fn anchor(&self, authority: &AuthorityId) -> Option<Arc<Anchor>> {
        self.authorities.read().get(authority).map(|(a, _)| a.clone())
    }

    fn admission(&self, authority: &AuthorityId) -> Admission {
        self.authorities
            .read()
            .get(authority)
            .map(|(_, admission)| admission.clone())
            .unwrap_or_default()
    }

    fn client_id_mode(&self, tenant: &TenantId) -> ClientIdMode {
        self.tenants
            .read()
            .get(tenant)
            .map_or(ClientIdMode::Strict, |t| t.mode)
    }

    fn policy(&self, tenant: &TenantId) -> Option<Arc<TenantPolicy>> {
        self.tenants.read().get(tenant).map(|t| t.policy.clone())
    }
}
