//! A rate with a burst, as the generic cell rate algorithm (ITU-T I.371): all that is kept of whoever is limited is one
//! number, the moment at which its account will be level.

use std::time::Duration;

/// So many at once, and so many a second after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    /// Nanoseconds between two.
    interval_ns: u64,
    /// How far ahead of now an account may be.
    tolerance_ns: u64,
}

impl Rate {
    /// `per_s` a second, and `burst` at once; both at least 1.
    pub(crate) fn per_second(per_s: u32, burst: u32) -> Self {
        Self::every(Duration::from_secs(1) / per_s.max(1), burst)
    }

    /// One each `interval`, and `burst` at once.
    pub(crate) const fn every(interval: Duration, burst: u32) -> Self {
        let nanos = interval.as_nanos();
        // Below a nanosecond and beyond five centuries there is no rate.
        let interval_ns = match nanos {
            0 => 1,
            1..=0xffff_ffff_ffff_ffff => nanos as u64,
            _ => u64::MAX,
        };
        let burst = if burst == 0 { 1 } else { burst as u64 };
        Self {
            interval_ns,
            tolerance_ns: interval_ns.saturating_mul(burst),
        }
    }

    /// Takes one from an account, if it may be taken. `due_ns` is the account, on the same clock as `now_ns`.
    pub(crate) fn take(self, due_ns: &mut u64, now_ns: u64) -> bool {
        let after = (*due_ns).max(now_ns).saturating_add(self.interval_ns);
        let fits = after - now_ns <= self.tolerance_ns;
        if fits {
            *due_ns = after;
        }
        fits
    }

    /// When one may be taken again; `None`: now.
    pub(crate) fn wait(self, due_ns: u64, now_ns: u64) -> Option<Duration> {
        let after = due_ns.max(now_ns).saturating_add(self.interval_ns);
        let wait = (after - now_ns).saturating_sub(self.tolerance_ns);
        (wait > 0).then(|| Duration::from_nanos(wait))
    }

    /// Takes one whether or not it may be taken, but lets the account run at most one burst deeper than that.
    pub(crate) fn charge(self, due_ns: &mut u64, now_ns: u64) {
        let deepest = now_ns.saturating_add(self.tolerance_ns.saturating_mul(2));
        let after = (*due_ns).max(now_ns).saturating_add(self.interval_ns);
        *due_ns = after.min(deepest).max(*due_ns);
    }

    /// Whether an account is so deep that nothing more is charged to it.
    pub(crate) fn is_exhausted(self, due_ns: u64, now_ns: u64) -> bool {
        due_ns.saturating_sub(now_ns).saturating_add(self.interval_ns) > self.tolerance_ns.saturating_mul(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn a_burst_and_then_the_rate() {
        let rate = Rate::per_second(10, 5);
        let mut due = 0;
        let taken = |due: &mut u64, now| (0..100).filter(|_| rate.take(due, now)).count();
        assert_eq!(taken(&mut due, S), 5);
        assert_eq!(rate.wait(due, S), Some(Duration::from_millis(100)));
        assert_eq!(taken(&mut due, S + S / 10), 1);
        assert_eq!(rate.wait(due, S + S / 5), None);
        // However long nothing is taken, no more than the burst is saved up.
        assert_eq!(taken(&mut due, 100 * S), 5);
        let mut all = 0;
        for ms in 0..10_000 {
            all += taken(&mut due, 200 * S + ms * S / 1000);
        }
        assert!((104..=105).contains(&all), "{all}");
    }

    #[test]
    fn what_is_charged_beyond_the_rate_is_owed_but_not_without_end() {
        let rate = Rate::every(Duration::from_secs(1), 4);
        let mut due = 0;
        for _ in 0..1000 {
            rate.charge(&mut due, S);
        }
        assert!(rate.is_exhausted(due, S));
        assert_eq!(due, S + 8 * S);
        // One may be taken again once less than a burst is owed, so after five seconds of quiet at most.
        assert_eq!(rate.wait(due, S), Some(Duration::from_secs(5)));
        assert!(!rate.is_exhausted(due, 2 * S));
        assert_eq!(rate.wait(due, 6 * S), None);
    }
}
