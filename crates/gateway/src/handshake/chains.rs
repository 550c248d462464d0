//! Remembers whose chain's signatures hold, so that a device that comes back does not have them verified again.
//!
//! What is remembered is one number for the whole path, the authority and its generation ([`PathDigest`]): a change of the
//! authority makes it another number, and the entry is thrown away when it is next looked at. Dates, states, lists and
//! everything else are checked on each connection. Only chains of peers that proved to hold the key are remembered.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;

use aws_lc_rs::digest;
use countersign_identity::{CertificateFacts, Fingerprint, PathDigest, TenantId};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;

use crate::metrics::count;

/// What was shown, and for which tenant.
pub type ShownChain = [u8; 32];

/// Paths whose signatures hold, by what was shown: no more than a given number.
///
/// Two tables: what is new or used goes to the young one; when that is half the limit, it becomes the old one, and the old
/// one goes. So what is used stays, and nothing is ever searched for a victim.
#[derive(Debug)]
pub struct VerifiedChains {
    max: usize,
    tables: Mutex<Tables>,
    /// Paths that were found.
    pub hits: AtomicU64,
    /// Paths that were not, and whose signatures were verified.
    pub misses: AtomicU64,
    /// Paths that no longer held: the authority changed, or something else did.
    pub stale: AtomicU64,
    /// Times that the old half went for lack of room.
    pub turnovers: AtomicU64,
}

#[derive(Debug, Default)]
struct Tables {
    young: HashMap<ShownChain, PathDigest>,
    old: HashMap<ShownChain, PathDigest>,
}

impl VerifiedChains {
    /// For at most `max` paths, each about 100 bytes; 0: none is remembered.
    pub fn new(max: usize) -> Self {
        Self {
            max,
            tables: Mutex::default(),
            hits: AtomicU64::default(),
            misses: AtomicU64::default(),
            stale: AtomicU64::default(),
            turnovers: AtomicU64::default(),
        }
    }

    /// What was shown, as one number; `None` if nothing is remembered anyway.
    pub(crate) fn shown(
        &self,
        asked: Option<&TenantId>,
        leaf: &CertificateFacts,
        intermediates: &[CertificateDer<'_>],
    ) -> Option<ShownChain> {
        if self.max == 0 {
            return None;
        }
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(leaf.fingerprint.as_bytes());
        for der in intermediates {
            context.update(Fingerprint::of(der).as_bytes());
        }
        context.update(asked.map_or("", TenantId::as_str).as_bytes());
        let mut out = [0; 32];
        out.copy_from_slice(context.finish().as_ref());
        Some(out)
    }

    pub(crate) fn get(&self, shown: &ShownChain) -> Option<PathDigest> {
        let mut tables = self.tables.lock();
        if let Some(path) = tables.young.get(shown) {
            return Some(*path);
        }
        let path = tables.old.remove(shown)?;
        self.put(&mut tables, *shown, path);
        Some(path)
    }

    pub(crate) fn insert(&self, shown: ShownChain, path: PathDigest) {
        self.put(&mut self.tables.lock(), shown, path);
    }

    fn put(&self, tables: &mut Tables, shown: ShownChain, path: PathDigest) {
        tables.old.remove(&shown);
        if tables.young.len() >= (self.max / 2).max(1) {
            if !tables.old.is_empty() {
                count(&self.turnovers);
            }
            tables.old = std::mem::take(&mut tables.young);
        }
        tables.young.insert(shown, path);
    }

    pub(crate) fn forget(&self, shown: &ShownChain) {
        count(&self.stale);
        let mut tables = self.tables.lock();
        tables.young.remove(shown);
        tables.old.remove(shown);
    }

    /// How many paths are remembered.
    pub fn len(&self) -> usize {
        let tables = self.tables.lock();
        tables.young.len() + tables.old.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn it_never_holds_more_than_it_may_and_keeps_what_is_used() {
        let chains = VerifiedChains::new(8);
        let path = PathDigest::assertion([7; 32]);
        let shown = |n: u8| [n; 32];
        chains.insert(shown(0), path);
        for n in 1..100 {
            chains.insert(shown(n), path);
            assert_eq!(chains.get(&shown(0)), Some(path), "{n}");
            assert!(chains.len() <= 8, "{n}: {}", chains.len());
        }
        assert_eq!(chains.get(&shown(50)), None);
        assert!(chains.turnovers.load(Ordering::Relaxed) > 10);
        chains.forget(&shown(0));
        assert_eq!(chains.get(&shown(0)), None);
        assert_eq!(chains.stale.load(Ordering::Relaxed), 1);
    }
}
