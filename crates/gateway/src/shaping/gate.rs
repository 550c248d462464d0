//! The gate between ClientHello and handshake: so many a second pass, the others wait for their turn.
//!
//! Pacing, not counting: a peer that replays a ClientHello and goes away, or stays and is silent, has cost what it
//! costs the moment we answer. A slot that it held until it is over would only help it keep others out. How many may be
//! under way at once is bounded before, at accept.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::queue::{FairQueue, Place, Put};
use super::rate::Rate;
use crate::limits::Limits;
use crate::timer::Timer;

/// How often waiting handshakes are let in. At 2,000 a second ten at a time.
const PACE: Duration = Duration::from_millis(5);

const WAITING: u8 = 0;
const ADMITTED: u8 = 1;
const DISPLACED: u8 = 2;

/// Where a connection that waits stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It waits on.
    Waiting,
    /// It is its turn.
    Admitted,
    /// It had to go for one whose tenant or source had less.
    Displaced,
}

#[derive(Debug)]
struct Ticket {
    standing: AtomicU8,
    timer: Arc<Timer>,
}

impl Ticket {
    fn becomes(&self, standing: u8) {
        self.standing.store(standing, Ordering::Release);
        self.timer.wake();
    }
}

/// A place in the queue, given up when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    gate: Arc<Gate>,
    ticket: Arc<Ticket>,
    place: Place,
    number: u64,
    since: Instant,
}

impl Turn {
    pub(crate) fn standing(&self) -> Standing {
        match self.ticket.standing.load(Ordering::Acquire) {
            ADMITTED => Standing::Admitted,
            DISPLACED => Standing::Displaced,
            _ => Standing::Waiting,
        }
    }

    /// For how long it has waited.
    pub(crate) fn waited(&self) -> Duration {
        self.since.elapsed()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.standing() == Standing::Waiting {
            let mut inner = self.gate.inner.lock();
            inner.queue.remove(&self.place, self.number);
            self.gate.note(&inner);
        }
    }
}

/// What the gate says to a connection.
#[derive(Debug)]
pub(crate) enum Entry {
    /// Go on.
    Now,
    /// Wait: the timer's connection is woken when its standing changes.
    Later(Turn),
    /// The queue is full, and nobody in it has more of it than this one's tenant and source.
    Full,
}

#[derive(Debug)]
struct Inner {
    due_ns: u64,
    queue: FairQueue<Arc<Ticket>>,
}

/// The gate.
#[derive(Debug)]
pub(crate) struct Gate {
    rate: Rate,
    start: Instant,
    inner: Mutex<Inner>,
    someone_waits: Notify,
    waiting: AtomicU64,
    queued: AtomicU64,
}

impl Gate {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            rate: Rate::per_second(limits.handshakes_per_s, limits.handshake_burst),
            start: Instant::now(),
            inner: Mutex::new(Inner {
                due_ns: 0,
                queue: FairQueue::new(limits.handshake_queue_bytes_max),
            }),
            someone_waits: Notify::new(),
            waiting: AtomicU64::new(0),
            queued: AtomicU64::new(0),
        }
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn note(&self, inner: &Inner) {
        self.waiting.store(inner.queue.len() as u64, Ordering::Relaxed);
    }

    /// A ClientHello was read. Nobody overtakes those who wait.
    pub(crate) fn enter(self: &Arc<Self>, place: Place, timer: &Arc<Timer>) -> Entry {
        let now_ns = self.now_ns();
        let mut inner = self.inner.lock();
        if inner.queue.len() == 0 && self.rate.take(&mut inner.due_ns, now_ns) {
            return Entry::Now;
        }
        let ticket = Arc::new(Ticket {
            standing: AtomicU8::new(WAITING),
            timer: timer.clone(),
        });
        let put = inner
            .queue
            .put(&place, ticket.clone(), |displaced| displaced.becomes(DISPLACED));
        self.note(&inner);
        drop(inner);
        match put {
            Put::Waits(number) => {
                self.queued.fetch_add(1, Ordering::Relaxed);
                self.someone_waits.notify_one();
                Entry::Later(Turn {
                    gate: self.clone(),
                    ticket,
                    place,
                    number,
                    since: Instant::now(),
                })
            }
            Put::Full => Entry::Full,
        }
    }

    /// Lets in whose turn it is. `false`: nobody waits any more.
    fn admit(&self) -> bool {
        let now_ns = self.now_ns();
        let mut inner = self.inner.lock();
        let Inner { due_ns, queue } = &mut *inner;
        while queue.len() > 0 && self.rate.take(due_ns, now_ns) {
            if let Some(ticket) = queue.take() {
                ticket.becomes(ADMITTED);
            }
        }
        self.note(&inner);
        inner.queue.len() > 0
    }

    /// Lets in, at the gate's pace, until the gateway is gone. While nobody waits it sleeps.
    pub(crate) async fn run(gate: Weak<Self>) {
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let Some(gate) = gate.upgrade() else { return };
            if !gate.admit() {
                gate.someone_waits.notified().await;
            }
            drop(gate);
            pace.tick().await;
        }
    }

    /// How many wait now.
    pub(crate) fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// How many had to wait, since start.
    pub(crate) fn queued(&self) -> u64 {
        self.queued.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::super::queue::Class;
    use super::*;
    use crate::timer::Wheel;

    fn place(source: u8) -> Place {
        Place {
            tenant: None,
            class: Class::Full,
            source: IpAddr::V4(Ipv4Addr::new(192, 0, 2, source)),
            bytes: 500,
        }
    }

    #[tokio::test]
    async fn the_rate_holds_and_honest_sources_get_their_turn_in_a_storm() {
        let gate = Arc::new(Gate::new(&Limits {
            handshakes_per_s: 200,
            handshake_burst: 20,
            handshake_queue_bytes_max: 1 << 20,
            ..Limits::default()
        }));
        let wheel = Wheel::new();
        let pacing = tokio::spawn(Gate::run(Arc::downgrade(&gate)));
        let started = Instant::now();
        let mut now = 0;
        let mut storm = Vec::new();
        let mut refused = 0;
        for _ in 0..2_000 {
            match gate.enter(place(1), &wheel.timer()) {
                Entry::Now => now += 1,
                Entry::Later(turn) => storm.push(turn),
                Entry::Full => refused += 1,
            }
        }
        assert!((20..40).contains(&now) && refused > 1_000, "{now} {refused}");
        // One that comes last, from elsewhere, displaces one of the storm and is in by the second turn.
        let Entry::Later(honest) = gate.enter(place(2), &wheel.timer()) else {
            panic!()
        };
        while honest.standing() == Standing::Waiting {
            assert!(started.elapsed() < Duration::from_secs(2));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(honest.standing(), Standing::Admitted);
        assert_eq!(
            storm
                .iter()
                .filter(|t| t.standing() == Standing::Displaced)
                .count(),
            1
        );
        // Dropped turns leave at once, and the rest come in at the rate.
        storm.truncate(60);
        while storm.iter().any(|t| t.standing() == Standing::Waiting) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let took = started.elapsed();
        assert!(
            took > Duration::from_millis(250) && took < Duration::from_secs(3),
            "{took:?}"
        );
        assert_eq!(gate.waiting(), 0);
        pacing.abort();
    }
}
