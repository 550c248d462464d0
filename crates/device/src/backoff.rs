//! Full-jitter back-off: after an outage a fleet must not come back in step.

use std::time::Duration;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};

/// Waits between tries: a random time up to a bound that doubles with each failure.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    failures: u32,
}

impl Default for Backoff {
    /// From 1 s, to at most 5 min.
    fn default() -> Self {
        Self::new(Duration::from_secs(1), Duration::from_secs(300))
    }
}

impl Backoff {
    /// From `base`, to at most `cap`.
    pub fn new(base: Duration, cap: Duration) -> Self {
        Self {
            base,
            cap,
            failures: 0,
        }
    }

    /// The bound of the next wait.
    pub fn bound(&self) -> Duration {
        self.base
            .saturating_mul(1u32 << self.failures.min(20))
            .min(self.cap)
    }

    /// The next wait: anything from nothing to [`Backoff::bound`], each as likely.
    pub fn wait(&mut self) -> Duration {
        let bound = self.bound();
        self.failures = self.failures.saturating_add(1);
        let mut bytes = [0; 8];
        if SystemRandom::new().fill(&mut bytes).is_err() {
            return bound;
        }
        let millis = u64::try_from(bound.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(u64::from_le_bytes(bytes) % millis.max(1))
    }

    /// It worked: the next failure starts from the beginning.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_double_up_to_the_cap_and_waits_differ() {
        let mut backoff = Backoff::default();
        let mut bounds = Vec::new();
        let mut waits = std::collections::HashSet::new();
        for _ in 0..12 {
            bounds.push(backoff.bound().as_secs());
            let wait = backoff.wait();
            assert!(wait.as_secs() <= *bounds.last().unwrap());
            waits.insert(wait);
        }
        assert_eq!(bounds[..10], [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
        assert!(waits.len() > 6, "{waits:?}");
        backoff.reset();
        assert_eq!(backoff.bound().as_secs(), 1);
    }
}
