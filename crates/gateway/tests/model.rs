//! A fleet that is changed at random, held against a model of who may be connected: no session outlives its permission
//! by more than [`BOUND`], and none that is permitted is cut.
//!
//! Real TLS against the gateway and the registry, in one process. The seeds are fixed: what fails here fails again. In CI
//! the four walks together make 10,000 steps; COUNTERSIGN_MODEL_STEPS makes each as long as one likes.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout
)]

#[path = "model/client.rs"]
mod client;
#[path = "grants/mod.rs"]
mod grants;
#[path = "model/platform.rs"]
mod platform;

use std::time::{Duration, Instant};

use countersign_policy::LifecycleMove as Move;
use countersign_policy::LifecycleState as State;

use client::{Answer, Live, Tickets};
use platform::{Platform, Policy};

/// How long a session may outlive its permission: the wire's and this machine's share, not the gateway's.
const BOUND: Duration = Duration::from_secs(2);
/// Around the end of a certificate nothing is claimed: two clocks and a second's resolution.
const DUSK: Duration = Duration::from_millis(1_500);
/// Devices that are not decommissioned; beyond it none is added.
const FLEET: usize = 12;
/// Tokens of one device.
const TOKENS: usize = 6;
const STEPS: u32 = 2_500;

/// Numbers that look random and are the same in every run (SplitMix64).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }
}

/// A device as the model knows it.
struct Device {
    id: String,
    state: State,
    before_quarantine: State,
    /// Its certificates, the newest last.
    credentials: Vec<Credential>,
    sessions: Vec<Session>,
    tokens: Vec<Token>,
    tickets: Tickets,
}

struct Credential {
    identity: countersign_testkit::pki::Identity,
    authority: usize,
    revoked: bool,
    /// When it ends, if soon.
    ends: Option<Instant>,
}

struct Session {
    live: Live,
    credential: usize,
    resumed: bool,
}

/// A token that was granted: a session without a connection.
struct Token {
    id: String,
    credential: usize,
    resumed: bool,
}

/// What the model says of a connection now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum May {
    Yes,
    No,
    /// Too close to the end of a certificate to say.
    Unsure,
}

struct Walk {
    dice: Dice,
    platform: Platform,
    devices: Vec<Device>,
    added: usize,
    policy: Policy,
    step: u32,
    counts: Counts,
}

#[derive(Default, Debug)]
struct Counts {
    admitted: u32,
    resumed: u32,
    refused: u32,
    cut: u32,
    expired: u32,
    published: u32,
    tokens: u32,
    tokens_ended: u32,
    restarts: u32,
    slowest: Duration,
}

impl Walk {
    fn new(seed: u64) -> Self {
        Self {
            dice: Dice(seed),
            platform: Platform::new(),
            devices: vec![],
            added: 0,
            policy: Policy::Everybody,
            step: 0,
            counts: Counts::default(),
        }
    }

    fn may(&self, device: &Device, credential: usize, resumed: bool) -> May {
        let c = &device.credentials[credential];
        let now = Instant::now();
        let fits = match self.policy {
            Policy::Everybody => true,
            Policy::NotOdd => !is_odd(&device.id),
            Policy::NotResumed => !resumed,
        };
        if device.state != State::Active || c.revoked || !self.platform.authority_admits(c.authority) || !fits
        {
            return May::No;
        }
        match c.ends {
            Some(end) if now >= end + DUSK => May::No,
            Some(end) if now + DUSK >= end => May::Unsure,
            _ => May::Yes,
        }
    }

    fn step(&mut self) {
        self.step += 1;
        let alive: Vec<usize> = (0..self.devices.len())
            .filter(|n| self.devices[*n].state != State::Decommissioned)
            .collect();
        if alive.is_empty() {
            return self.provision();
        }
        let n = alive[self.dice.below(alive.len())];
        match self.dice.below(100) {
            0..=2 if alive.len() < FLEET => self.provision(),
            0..=24 => self.connect(n, false),
            25..=49 => self.connect(n, true),
            50..=61 => self.publish(n),
            62..=69 => self.token(n),
            70..=72 => self.moved(n, Move::Suspend),
            73..=79 => self.moved(n, Move::Resume),
            80 => self.moved(n, Move::Quarantine),
            81..=84 => self.moved(n, Move::Release),
            85 => self.moved(n, Move::Decommission),
            86 => self.revoke(n),
            87..=92 => self.renew(n, None),
            93 => self.renew(n, Some(Duration::from_secs(4))),
            94 if self.dice.below(6) == 0 => self.revoke_authority(),
            94..=96 => self.change_policy(),
            97 if self.dice.below(3) == 0 => self.restart(),
            _ => self.disconnect(n),
        }
        self.check();
        self.check_tokens();
    }

    fn provision(&mut self) {
        let id = format!("d{}", self.added);
        self.added += 1;
        let (identity, authority) = self.platform.add_device(&id);
        self.devices.push(Device {
            id,
            state: State::Active,
            before_quarantine: State::Active,
            credentials: vec![Credential {
                identity,
                authority,
                revoked: false,
                ends: None,
            }],
            sessions: vec![],
            tokens: vec![],
            tickets: Tickets::default(),
        });
    }

    fn connect(&mut self, n: usize, resume: bool) {
        let device = &self.devices[n];
        let newest = device.credentials.len() - 1;
        // A ticket is of the certificate that it was given for: an old one is tried with its own.
        let credential = if self.dice.below(5) == 0 {
            self.dice.below(newest + 1)
        } else {
            newest
        };
        let device = &self.devices[n];
        let before = self.may(device, credential, false);
        let identity = &device.credentials[credential].identity;
        let answer = client::connect(
            self.platform.address(),
            &device.id,
            identity,
            resume.then_some((&device.tickets, credential)),
            if n.is_multiple_of(3) { 4 } else { 5 },
        );
        let (live, resumed) = match answer {
            Answer::Admitted(live) => {
                let resumed = live.is_resumed();
                (Some(live), resumed)
            }
            Answer::Refused { resumed } => (None, resumed),
        };
        let device = &self.devices[n];
        let says = (self.may(device, credential, resumed), before);
        let wanted = self.may(device, credential, resumed);
        match (wanted, live) {
            (May::Yes, None) => panic!(
                "{}: {} was refused (resumed: {resumed}, {says:?})",
                self.told(),
                device.id
            ),
            (May::No, Some(_)) => {
                panic!(
                    "{}: {} was admitted (resumed: {resumed}, {says:?})",
                    self.told(),
                    device.id
                )
            }
            (_, Some(live)) => {
                self.counts.admitted += 1;
                self.counts.resumed += u32::from(resumed);
                // The same client id: the older session is taken over.
                self.devices[n].sessions.clear();
                self.devices[n].sessions.push(Session {
                    live: *live,
                    credential,
                    resumed,
                });
            }
            (_, None) => self.counts.refused += 1,
        }
    }

    fn token(&mut self, n: usize) {
        let device = &self.devices[n];
        if device.tokens.len() >= TOKENS {
            return;
        }
        let resume = self.dice.below(2) == 0;
        let device = &self.devices[n];
        let credential = device.credentials.len() - 1;
        let identity = &device.credentials[credential].identity;
        let tickets = resume.then_some((&device.tickets, credential));
        let (granted, resumed) = client::token(self.platform.address(), identity, tickets);
        match (self.may(device, credential, resumed), granted) {
            (May::Yes, None) => panic!("{}: {} got no token (resumed: {resumed})", self.told(), device.id),
            (May::No, Some(_)) => panic!("{}: {} got a token (resumed: {resumed})", self.told(), device.id),
            (_, Some(id)) => {
                self.counts.tokens += 1;
                self.devices[n].tokens.push(Token {
                    id,
                    credential,
                    resumed,
                });
            }
            (_, None) => self.counts.refused += 1,
        }
    }

    /// As for sessions: what may not be is told as none at once, and out of the index within the bound.
    fn check_tokens(&mut self) {
        let mut listed = self.platform.tokens();
        for n in 0..self.devices.len() {
            let mut kept = Vec::new();
            for token in std::mem::take(&mut self.devices[n].tokens) {
                let device = &self.devices[n];
                let key = (device.id.clone(), token.id.clone());
                let is_good = self.platform.is_good(&device.id, &token.id);
                match self.may(device, token.credential, token.resumed) {
                    May::Yes => {
                        let there = is_good && listed.contains(&key);
                        assert!(there, "{}: a token of {} was cut", self.told(), device.id);
                        kept.push(token);
                    }
                    May::Unsure if is_good => kept.push(token),
                    May::Unsure => self.counts.expired += 1,
                    May::No => {
                        assert!(
                            !is_good,
                            "{}: a token of {} is told as good",
                            self.told(),
                            device.id
                        );
                        let started = Instant::now();
                        while listed.contains(&key) {
                            let late = started.elapsed() > BOUND;
                            assert!(
                                !late,
                                "{}: a token of {} outlived its permission",
                                self.told(),
                                device.id
                            );
                            listed = self.platform.tokens();
                        }
                        self.counts.tokens_ended += 1;
                    }
                }
            }
            self.devices[n].tokens = kept;
        }
    }

    fn publish(&mut self, n: usize) {
        let topic = format!("devices/{}/telemetry/t", self.devices[n].id);
        let may: Vec<May> = self.permissions(n);
        for (k, may) in may.into_iter().enumerate() {
            let acknowledged = self.devices[n].sessions[k].live.publish(&topic);
            match (may, acknowledged) {
                (May::Yes, false) => panic!("{}: {} could not publish", self.told(), self.devices[n].id),
                (May::No, true) => panic!("{}: {} published", self.told(), self.devices[n].id),
                (_, done) => self.counts.published += u32::from(done),
            }
        }
    }

    fn permissions(&self, n: usize) -> Vec<May> {
        let device = &self.devices[n];
        device
            .sessions
            .iter()
            .map(|s| self.may(device, s.credential, s.resumed))
            .collect()
    }

    fn moved(&mut self, n: usize, attempted: Move) {
        let device = &mut self.devices[n];
        let next = match (device.state, attempted) {
            (State::Active, Move::Suspend) => State::Suspended,
            (State::Suspended, Move::Resume) => State::Active,
            (State::Active | State::Suspended, Move::Quarantine) => {
                device.before_quarantine = device.state;
                State::Quarantined
            }
            (State::Quarantined, Move::Release) => device.before_quarantine,
            (_, Move::Decommission) => State::Decommissioned,
            _ => {
                self.platform.move_device(&device.id, attempted).unwrap_err();
                return;
            }
        };
        device.state = next;
        self.platform.move_device(&device.id, attempted).unwrap();
    }

    fn revoke(&mut self, n: usize) {
        let device = &mut self.devices[n];
        if let Some(c) = device.credentials.last_mut() {
            c.revoked = true;
            self.platform.revoke(&c.identity);
        }
    }

    fn renew(&mut self, n: usize, lifetime: Option<Duration>) {
        // Enough of this one: another will take its place.
        if self.devices[n].credentials.len() > 6 {
            return self.moved(n, Move::Decommission);
        }
        let device = &mut self.devices[n];
        let (identity, authority, ends) = self.platform.renew(&device.id, lifetime);
        device.credentials.push(Credential {
            identity,
            authority,
            revoked: false,
            ends,
        });
    }

    fn revoke_authority(&mut self) {
        self.platform.revoke_newest_authority();
        for n in 0..self.devices.len() {
            if self.devices[n].state != State::Decommissioned {
                self.renew(n, None);
            }
        }
    }

    fn change_policy(&mut self) {
        self.policy = [
            Policy::Everybody,
            Policy::NotOdd,
            Policy::NotResumed,
            Policy::Everybody,
        ][self.dice.below(4)];
        self.platform.set_policy(self.policy);
    }

    /// The process ends without a word to anybody, and comes back with what is on disk.
    fn restart(&mut self) {
        self.counts.restarts += 1;
        for device in &mut self.devices {
            device.sessions.clear();
            // Tokens are kept in memory.
            device.tokens.clear();
        }
        self.platform.restart();
    }

    fn disconnect(&mut self, n: usize) {
        self.devices[n].sessions.clear();
    }

    /// Every session that may not be is over within the bound; every one that may be is there.
    fn check(&mut self) {
        let started = Instant::now();
        for n in 0..self.devices.len() {
            let may = self.permissions(n);
            let mut kept = Vec::new();
            for (may, mut session) in may.into_iter().zip(std::mem::take(&mut self.devices[n].sessions)) {
                let id = &self.devices[n].id;
                match may {
                    May::Yes => {
                        assert!(
                            !session.live.is_over(),
                            "{}: the session of {id} was cut",
                            self.told()
                        );
                        kept.push(session);
                    }
                    May::Unsure if session.live.is_over() => self.counts.expired += 1,
                    May::Unsure => kept.push(session),
                    May::No => {
                        assert!(
                            session.live.ends_within(BOUND),
                            "{}: the session of {id} outlived its permission",
                            self.told()
                        );
                        self.counts.slowest = self.counts.slowest.max(started.elapsed());
                        self.counts.cut += 1;
                    }
                }
            }
            self.devices[n].sessions = kept;
        }
    }

    fn told(&self) -> String {
        format!("step {}, {:?}", self.step, self.policy)
    }
}

/// Whether a policy that shuts odd devices out means this one.
fn is_odd(id: &str) -> bool {
    id.bytes().last().is_some_and(|b| b % 2 == 1)
}

fn walk(seed: u64) {
    let steps = std::env::var("COUNTERSIGN_MODEL_STEPS").map_or(STEPS, |n| n.parse().unwrap());
    let mut walk = Walk::new(seed);
    for _ in 0..steps {
        walk.step();
    }
    println!("seed {seed}, {steps} steps: {:?}", walk.counts);
    let c = &walk.counts;
    // A walk that met none of this would have shown nothing.
    assert!(
        c.admitted > 300
            && c.resumed > 60
            && c.refused > 50
            && c.cut > 50
            && c.published > 50
            && c.restarts > 0
            && c.tokens > 50
            && c.tokens_ended > 30,
        "{c:?}"
    );
    assert_eq!(walk.platform.panics(), 0);
}

#[test]
fn a_walk_from_seed_1() {
    walk(1);
}

#[test]
fn a_walk_from_seed_2() {
    walk(2);
}

#[test]
fn a_walk_from_seed_3() {
    walk(3);
}

#[test]
fn a_walk_from_seed_4() {
    walk(4);
}
