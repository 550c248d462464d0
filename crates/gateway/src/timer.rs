//! Deadlines of many connections on one wheel: a connection pays 64 bytes, and a packet that moves its deadline pays
//! one atomic store.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

const TICK_MS: u64 = 250;
const SLOTS: usize = 128;
/// No deadline.
const NEVER: u64 = u64::MAX;

/// One connection's deadline, and how to wake it.
#[derive(Debug)]
pub(crate) struct Timer {
    waker: AtomicWaker,
    deadline_ms: AtomicU64,
    /// When the wheel looks next. An entry of the wheel that disagrees is stale and dropped.
    look_ms: AtomicU64,
}

impl Timer {
    /// Remembers who to wake; called at the start of each poll.
    pub(crate) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// The deadline, on the wheel's clock.
    pub(crate) fn deadline_ms(&self) -> u64 {
        self.deadline_ms.load(Ordering::Acquire)
    }

    /// Wakes the connection.
    pub(crate) fn wake(&self) {
        self.waker.wake();
    }
}

/// Timers with the tick they were placed for.
type Slot = Vec<(u64, Weak<Timer>)>;

/// All deadlines of a gateway, in slots of 250 ms.
#[derive(Debug)]
pub(crate) struct Wheel {
    start: Instant,
    slots: Vec<Mutex<Slot>>,
    /// The last tick that was worked off.
    done: AtomicU64,
}

impl Wheel {
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            slots: (0..SLOTS).map(|_| Mutex::default()).collect(),
            done: AtomicU64::new(0),
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(NEVER)
    }

    /// A timer that is not set.
    pub(crate) fn timer(&self) -> Arc<Timer> {
        Arc::new(Timer {
            waker: AtomicWaker::new(),
            deadline_ms: AtomicU64::new(NEVER),
            look_ms: AtomicU64::new(NEVER),
        })
    }

    /// Sets the deadline to `after` from now. It fires at most two ticks late, never early.
    pub(crate) fn set(&self, timer: &Arc<Timer>, after: Duration) {
        let deadline = self
            .now_ms()
            .saturating_add(u64::try_from(after.as_millis()).unwrap_or(NEVER - 1));
        timer.deadline_ms.store(deadline, Ordering::Release);
        // Later than the wheel's next look: that look will see it. Earlier: look earlier.
        if deadline < timer.look_ms.load(Ordering::Acquire) {
            self.place(timer, deadline);
        }
    }

    /// Whether the deadline has passed.
    pub(crate) fn expired(&self, timer: &Timer) -> bool {
        timer.deadline_ms.load(Ordering::Acquire) <= self.now_ms()
    }

    fn place(&self, timer: &Arc<Timer>, deadline_ms: u64) {
        let done = self.done.load(Ordering::Acquire);
        let tick = (deadline_ms / TICK_MS + 1).clamp(done + 2, done + SLOTS as u64 - 2);
        timer.look_ms.store(tick * TICK_MS, Ordering::Release);
        self.slots[(tick % SLOTS as u64) as usize]
            .lock()
            .push((tick, Arc::downgrade(timer)));
    }

    /// Wakes everyone whose deadline has passed.
    pub(crate) fn turn(&self) {
        let now = self.now_ms();
        let upto = now / TICK_MS;
        for tick in self.done.load(Ordering::Acquire) + 1..=upto {
            self.done.store(tick, Ordering::Release);
            let due = std::mem::take(&mut *self.slots[(tick % SLOTS as u64) as usize].lock());
            for (placed, timer) in due {
                let Some(timer) = timer.upgrade() else { continue };
                if timer.look_ms.load(Ordering::Acquire) != placed * TICK_MS {
                    continue;
                }
                let deadline = timer.deadline_ms.load(Ordering::Acquire);
                if deadline <= now {
                    // It stays on the wheel: the connection may set a new deadline and live on.
                    timer.wake();
                    self.place(&timer, now + 1000);
                } else {
                    self.place(&timer, deadline);
                }
            }
        }
    }

    /// Turns the wheel until the gateway is gone.
    pub(crate) async fn run(wheel: Weak<Self>) {
        let mut interval = tokio::time::interval(Duration::from_millis(TICK_MS));
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            match wheel.upgrade() {
                Some(wheel) => wheel.turn(),
                None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn wakes_late_but_never_early_and_follows_a_moved_deadline() {
        let wheel = Arc::new(Wheel::new());
        tokio::spawn(Wheel::run(Arc::downgrade(&wheel)));
        let timer = wheel.timer();
        let started = Instant::now();
        wheel.set(&timer, Duration::from_secs(60));
        wheel.set(&timer, Duration::from_millis(300));
        std::future::poll_fn(|cx| {
            timer.register(cx.waker());
            if wheel.expired(&timer) {
                std::task::Poll::Ready(())
            } else {
                std::task::Poll::Pending
            }
        })
        .await;
        let took = started.elapsed();
        assert!(
            took >= Duration::from_millis(300) && took < Duration::from_secs(5),
            "{took:?}"
        );
        wheel.set(&timer, Duration::from_secs(3600));
        assert!(!wheel.expired(&timer));
    }
}
