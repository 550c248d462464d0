//! How often a device comes, by the fingerprint of its certificate.
//!
//! Two answers, by how far it went over its rate. A device that comes too often is first *told*: its handshake is
//! completed and CONNACK says when to come again. One that goes on regardless is refused before its chain is checked,
//! which costs us no signature of a CA, and costs it an alert.
//!
//! Only attempts in which possession of a registered certificate's key was proven are counted. Certificates are
//! public: were an attempt counted when the certificate is shown, anybody could replay it until its owner is locked
//! out. And were unknown certificates counted, anybody could fill the table with some of their own making.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use countersign_identity::Fingerprint;
use parking_lot::Mutex;

use super::rate::Rate;

/// Whether a device comes too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It does not.
    Within,
    /// It does, and is to be told when to come again.
    Over(Duration),
    /// It was told often enough.
    FarOver(Duration),
}

/// All accounts, bounded.
#[derive(Debug)]
pub struct Attempts {
    rate: Rate,
    accounts_max: usize,
    start: Instant,
    due_ns: Mutex<HashMap<Fingerprint, u64>>,
    forgotten: AtomicU64,
}

impl Attempts {
    /// `per_minute` attempts of each device a minute, and as many at once; at most `accounts_max` are remembered.
    pub fn new(per_minute: u32, accounts_max: usize) -> Self {
        Self {
            rate: Rate::every(Duration::from_secs(60) / per_minute.max(1), per_minute),
            accounts_max: accounts_max.max(1),
            start: Instant::now(),
            due_ns: Mutex::default(),
            forgotten: AtomicU64::new(0),
        }
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Where a device stands. Counts nothing.
    pub fn standing(&self, fingerprint: &Fingerprint) -> Standing {
        self.standing_at(fingerprint, self.now_ns())
    }

    fn standing_at(&self, fingerprint: &Fingerprint, now_ns: u64) -> Standing {
        let Some(due_ns) = self.due_ns.lock().get(fingerprint).copied() else {
            return Standing::Within;
        };
        match self.rate.wait(due_ns, now_ns) {
            None => Standing::Within,
            Some(wait) if self.rate.is_exhausted(due_ns, now_ns) => Standing::FarOver(wait),
            Some(wait) => Standing::Over(wait),
        }
    }

    /// Counts an attempt in which the key of this registered certificate was proven.
    pub(crate) fn count(&self, fingerprint: Fingerprint) {
        self.count_at(fingerprint, self.now_ns());
    }

    fn count_at(&self, fingerprint: Fingerprint, now_ns: u64) {
        let mut accounts = self.due_ns.lock();
        if accounts.len() >= self.accounts_max && !accounts.contains_key(&fingerprint) {
            accounts.retain(|_, due| *due > now_ns);
            if accounts.len() >= self.accounts_max {
                // So many real devices at once: their accounts start anew.
                self.forgotten.fetch_add(accounts.len() as u64, Ordering::Relaxed);
                accounts.clear();
            }
            accounts.shrink_to(1024);
        }
        self.rate.charge(accounts.entry(fingerprint).or_insert(0), now_ns);
    }

    /// How many devices have an account, and how many lost one that still owed, since start.
    pub(crate) fn accounts(&self) -> (u64, u64) {
        let accounts = self.due_ns.lock().len();
        (accounts as u64, self.forgotten.load(Ordering::Relaxed))
    }

    /// Drops accounts that owe nothing, for the timer.
    pub(crate) fn tidy(&self) {
        let now_ns = self.now_ns();
        let mut accounts = self.due_ns.lock();
        accounts.retain(|_, due| *due > now_ns);
        if accounts.capacity() > 1024 && accounts.len() * 8 < accounts.capacity() {
            let keep = accounts.len() * 2;
            accounts.shrink_to(keep);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn fingerprint(n: u32) -> Fingerprint {
        Fingerprint::of(&n.to_be_bytes())
    }

    #[test]
    fn told_first_then_refused_cheaply_and_in_again_after_a_minute_at_most() {
        let attempts = Attempts::new(60, 100);
        let device = fingerprint(1);
        let mut told = 0;
        let mut cheap = 0;
        for _ in 0..500 {
            match attempts.standing_at(&device, S) {
                Standing::Within => {}
                Standing::Over(wait) => {
                    told += 1;
                    assert!(wait <= Duration::from_secs(60));
                }
                Standing::FarOver(_) => cheap += 1,
            }
            attempts.count_at(device, S);
        }
        assert_eq!((told, cheap), (60, 380));
        assert_eq!(attempts.standing_at(&fingerprint(2), S), Standing::Within);
        assert!(matches!(attempts.standing_at(&device, 60 * S), Standing::Over(_)));
        assert_eq!(attempts.standing_at(&device, 62 * S), Standing::Within);
    }

    #[test]
    fn the_table_is_bounded() {
        let attempts = Attempts::new(60, 1_000);
        for n in 0..10_000 {
            attempts.count_at(fingerprint(n), S);
            assert!(attempts.due_ns.lock().len() <= 1_000);
        }
        // Nine times it was full of devices that owed.
        assert_eq!(attempts.accounts(), (1_000, 9_000));
        attempts.count_at(fingerprint(0), 1_000 * S);
        for n in 0..1_000 {
            attempts.count_at(fingerprint(n), 2_000 * S);
        }
        assert!(attempts.due_ns.lock().len() <= 1_000);
    }
}
