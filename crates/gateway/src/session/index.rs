//! The live sessions, found by device. Everything that ends or re-decides sessions starts here.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use countersign_identity::{DeviceId, TenantId};
use parking_lot::Mutex;

use super::clones::Language;
use super::entry::{EndReason, SessionEntry};

const SHARDS: usize = 16;

type Shard = HashMap<(TenantId, DeviceId), Vec<Arc<SessionEntry>>>;

/// Sessions by (tenant, device), in shards so that connects on several threads do not wait for each other.
#[derive(Debug)]
pub(crate) struct SessionIndex {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
    closed: tokio::sync::Notify,
}

impl Default for SessionIndex {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            closed: tokio::sync::Notify::new(),
        }
    }
}

/// What an indexed session found of its device.
pub(crate) struct Indexed {
    /// The session whose client id it took over.
    pub(crate) replaced: Option<Arc<SessionEntry>>,
    /// Whether others of the device go on that speak the same, from other addresses.
    pub(crate) beside: bool,
}

/// The device holds as many sessions as it may.
pub(crate) struct TooMany;

impl SessionIndex {
    fn shard(&self, key: &(TenantId, DeviceId)) -> &Mutex<Shard> {
        &self.shards[(self.hasher.hash_one(key) as usize) % SHARDS]
    }

    /// Indexes a session. One of the same device with the same client id is taken over (MQTT 3.1.4-2, 3.1.4-3); the
    /// key always holds tenant and device, so no device ever reaches another's session.
    pub(crate) fn insert(&self, entry: &Arc<SessionEntry>, sessions_max: usize) -> Result<Indexed, TooMany> {
        let admission = entry.admission();
        let key = (admission.device.tenant.clone(), admission.device.id.clone());
        let mut shard = self.shard(&key).lock();
        let sessions = shard.entry(key).or_default();
        // MQTT, HTTP and tokens are counted apart, and none takes over another: HTTP connections that were lost in silence keep
        // no MQTT session out.
        let language = Language::of(entry);
        let live = |e: &&Arc<SessionEntry>| e.ending().is_none() && Language::of(e) == language;
        let replaced = sessions
            .iter()
            .filter(live)
            .find(|e| e.name == entry.name)
            .filter(|old| old.end(EndReason::TakenOver))
            .cloned();
        if sessions.iter().filter(live).count() >= sessions_max {
            return Err(TooMany);
        }
        let beside = sessions
            .iter()
            .filter(live)
            .any(|e| e.source.ip() != entry.source.ip());
        sessions.reserve_exact(1);
        sessions.push(entry.clone());
        Ok(Indexed { replaced, beside })
    }

    /// Takes a session out.
    pub(crate) fn remove(&self, entry: &Arc<SessionEntry>) {
        let admission = entry.admission();
        let key = (admission.device.tenant.clone(), admission.device.id.clone());
        {
            let mut shard = self.shard(&key).lock();
            if let Some(sessions) = shard.get_mut(&key) {
                sessions.retain(|e| !Arc::ptr_eq(e, entry));
                if sessions.is_empty() {
                    shard.remove(&key);
                    if shard.capacity() > 1024 && shard.len() * 8 < shard.capacity() {
                        shard.shrink_to_fit();
                    }
                }
            }
        }
        entry.close();
        self.closed.notify_waiters();
    }

    /// The sessions of one device.
    pub(crate) fn of_device(&self, tenant: &TenantId, device: &DeviceId) -> Vec<Arc<SessionEntry>> {
        let key = (tenant.clone(), device.clone());
        self.shard(&key).lock().get(&key).cloned().unwrap_or_default()
    }

    /// All sessions for which `wanted` holds. Each is looked at, and that is cheap beside what follows: 18,000 take some
    /// milliseconds, and a second index, by authority, would have to be kept in step with the first.
    pub(crate) fn filter(&self, mut wanted: impl FnMut(&SessionEntry) -> bool) -> Vec<Arc<SessionEntry>> {
        let mut found = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            found.extend(shard.values().flatten().filter(|e| wanted(e)).cloned());
        }
        found
    }

    /// How many sessions there are.
    pub(crate) fn len(&self) -> usize {
        self.shards
            .iter()
            .map(|s| s.lock().values().map(Vec::len).sum::<usize>())
            .sum()
    }

    /// Waits until all of `entries` are closed.
    pub(crate) async fn all_closed(&self, entries: &[Arc<SessionEntry>]) {
        let mut rest = entries;
        loop {
            let mut notified = std::pin::pin!(self.closed.notified());
            // Registered before the check, so that a close in between is not missed.
            notified.as_mut().enable();
            while let Some((first, others)) = rest.split_first()
                && first.is_closed()
            {
                rest = others;
            }
            if rest.is_empty() {
                return;
            }
            notified.await;
        }
    }
}
