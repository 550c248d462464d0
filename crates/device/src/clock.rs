//! The time on a device that may have none: after a cold start the clock may say 1970, and a strict check would then
//! refuse the platform's certificate before any time source is reached.
//!
//! What was once known is a floor: the time saved after the last connection, and the start of our own certificate. A
//! clock that lies behind the floor is wrong, and the floor plus the time since our start is taken in its place.

use std::time::{Duration, Instant, SystemTime};

use countersign_identity::Timestamp;

/// The clock, with its floor.
#[derive(Debug, Clone, Copy)]
pub struct DeviceClock {
    floor: Timestamp,
    started: Instant,
}

impl DeviceClock {
    /// With what is known of the past.
    pub fn new(floor: Timestamp) -> Self {
        Self {
            floor,
            started: Instant::now(),
        }
    }

    /// The system's clock and nothing else.
    pub fn system() -> Self {
        Self::new(Timestamp::from_unix_ms(0))
    }

    /// It cannot be earlier than this.
    fn least(&self) -> Timestamp {
        self.floor.plus(self.started.elapsed())
    }

    /// The time: the system's, unless that lies behind what is known.
    pub fn now(&self) -> Timestamp {
        system_time().max(self.least())
    }

    /// Whether the system's clock is at odds with what is known: then a certificate that is "not yet valid" may well be
    /// valid, while one that is expired at the floor is expired.
    pub fn is_behind(&self) -> bool {
        // A second's grace: the floor is saved in whole seconds, and clocks are slewed.
        system_time().plus(Duration::from_secs(1)) < self.least()
    }
}

fn system_time() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::from_unix_ms(i64::try_from(since.as_millis()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_behind_its_floor_is_replaced_by_it() {
        let sound = DeviceClock::system();
        assert!(!sound.is_behind());
        let ahead = system_time().plus(Duration::from_secs(1_000_000));
        let behind = DeviceClock::new(ahead);
        assert!(behind.is_behind());
        assert!(behind.now() >= ahead && behind.now() < ahead.plus(Duration::from_secs(60)));
    }
}
