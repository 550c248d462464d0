//! Whether two hold one key: a score for each credential, of what only two live holders can cause.
//!
//! A device that roams looks much like a copy of it: a session from one address is followed by one from another. What
//! tells them apart is the session that was replaced. A device that lost its network is not there any more: whatever we say to its
//! old address is never answered. A second holder is: its side closes the connection that was taken from it, and then it
//! comes back. So a change of address is no evidence at all, however often it happens; these are:
//!
//! | evidence | weight |
//! |---|---|
//! | who was replaced answered by closing its connection in order, and not from the address of its successor | 1 |
//! | the same from its successor's address (a device that opens a new connection before it closes the old one) | ¼ |
//! | the same by a reset, from another address (a device that restarts resets too, from its own) | ½ |
//! | who was replaced, and had closed in order, came back within a minute and replaced the other | 1 |
//! | two sessions from two addresses were active by turns, within the same moments | ¾ |
//!
//! The score is halved every minute. At three the credential is suspected, until it fell below one. What is done then the
//! tenant's policies choose, when it is reached and again with each further evidence at three or more: they may wait for a
//! higher score, and never act at a lower one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use countersign_identity::{DeviceId, Fingerprint, TenantId, Timestamp};
use serde::{Deserialize, Serialize};

mod verdict;

pub(crate) use verdict::decide;
pub use verdict::{CloneAction, CloneVerdict, QUARANTINE_CLONE};

/// Scores are kept in thousandths.
const ONE: u32 = 1000;
/// Within this after it was replaced a holder "comes back".
const RETURN_WINDOW: Duration = Duration::from_secs(60);
/// Addresses that are remembered of one credential.
const SOURCES_MAX: usize = 4;

/// When a credential is suspected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloneRules {
    /// The score at which it is, in thousandths. Default 3,000.
    pub threshold: u32,
    /// The score is halved in this time. Default 60 s.
    pub half_life: Duration,
    /// Credentials with a score that are remembered. Default 10,000; the lowest scores go first.
    pub accounts_max: usize,
}

impl Default for CloneRules {
    fn default() -> Self {
        Self {
            threshold: 3 * ONE,
            half_life: Duration::from_secs(60),
            accounts_max: 10_000,
        }
    }
}

/// A device with a suspected credential.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Suspect {
    /// Its tenant.
    pub tenant: TenantId,
    /// The device.
    pub device: DeviceId,
    /// The credential.
    pub fingerprint: Fingerprint,
    /// The evidence.
    #[serde(flatten)]
    pub suspicion: Suspicion,
}

/// Evidence that counts for a credential that is suspected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// It has just become suspected.
    Reached(Suspicion),
    /// It was suspected already, and the score is at the threshold or above it.
    Grew(Suspicion),
}

impl Told {
    /// What is known by now.
    pub fn suspicion(&self) -> &Suspicion {
        match self {
            Self::Reached(suspicion) | Self::Grew(suspicion) => suspicion,
        }
    }
}

/// How a peer whose session was taken over reacted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It closed its side.
    Closed,
    /// It reset the connection.
    Reset,
}

/// What is known of a credential with a score.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspicion {
    /// The score now, in thousandths.
    pub score: u32,
    /// Whether it reached the threshold and has not fallen below one since.
    pub suspected: bool,
    /// The addresses, the latest last.
    pub sources: Vec<IpAddr>,
    /// Sessions that were taken over.
    pub takeovers: u32,
    /// Of these, how often the peer turned out to be alive.
    pub answered: u32,
    /// How often such a peer came back.
    pub returned: u32,
    /// How often two sessions were active at a time.
    pub together: u32,
    /// The first evidence.
    pub first: Timestamp,
    /// The latest evidence.
    pub last: Timestamp,
}

impl Suspicion {
    fn new(now: Timestamp) -> Self {
        Self {
            score: 0,
            suspected: false,
            sources: Vec::new(),
            takeovers: 0,
            answered: 0,
            returned: 0,
            together: 0,
            first: now,
            last: now,
        }
    }

    /// One of two holders at two addresses, for tests of what is made of it.
    #[cfg(test)]
    pub(crate) fn example_for_test(now: Timestamp) -> Self {
        Self {
            takeovers: 5,
            answered: 4,
            returned: 3,
            together: 1,
            sources: vec![IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2])],
            suspected: true,
            ..Self::new(now)
        }
    }

    fn saw(&mut self, source: IpAddr) {
        self.sources.retain(|s| *s != source);
        if self.sources.len() == SOURCES_MAX {
            self.sources.remove(0);
        }
        self.sources.push(source);
    }

    /// The evidence in one line.
    pub fn evidence(&self) -> String {
        let sources: Vec<_> = self.sources.iter().map(ToString::to_string).collect();
        format!(
            "{} sessions taken over, {} of them from a holder that was alive, {} came back, {} times two were active at once; from {}",
            self.takeovers,
            self.answered,
            self.returned,
            self.together,
            sources.join(", ")
        )
    }
}

/// What is kept of one credential.
#[derive(Debug)]
struct Account {
    suspicion: Suspicion,
    /// When the score was last brought up to date.
    counted: Timestamp,
    /// Who was replaced and closed in order, and when: the latest few.
    alive: Vec<(IpAddr, Timestamp)>,
}

impl Account {
    fn decay(&mut self, now: Timestamp, half_life: Duration) {
        let lives = now.since(self.counted).as_secs_f64() / half_life.as_secs_f64().max(0.001);
        self.suspicion.score = (f64::from(self.suspicion.score) * 0.5f64.powf(lives)) as u32;
        self.counted = now;
        if self.suspicion.score < ONE {
            self.suspicion.suspected = false;
        }
    }
}

/// All credentials with a score. It never looks at a clock.
#[derive(Debug)]
pub struct CloneWatch {
    rules: CloneRules,
    accounts: HashMap<Fingerprint, Account>,
}

impl CloneWatch {
    /// By these rules.
    pub fn new(rules: CloneRules) -> Self {
        Self {
            rules,
            accounts: HashMap::new(),
        }
    }

    /// A session of `credential` from `old` was replaced by one from `new`. By itself this is what every roaming device does.
    pub fn taken_over(
        &mut self,
        credential: Fingerprint,
        old: IpAddr,
        new: IpAddr,
        now: Timestamp,
    ) -> Option<Told> {
        let account = self.account(credential, now);
        account.suspicion.takeovers += 1;
        account.suspicion.saw(old);
        account.suspicion.saw(new);
        let came_back = old != new
            && account
                .alive
                .iter()
                .any(|(source, at)| *source == new && now.since(*at) <= RETURN_WINDOW);
        if !came_back {
            return None;
        }
        account.alive.retain(|(source, _)| *source != new);
        account.suspicion.returned += 1;
        self.weigh(credential, ONE, now)
    }

    /// The peer at `old`, whose session was taken over, turned out to be alive.
    pub fn answered(
        &mut self,
        credential: Fingerprint,
        old: IpAddr,
        answer: Answer,
        now: Timestamp,
    ) -> Option<Told> {
        let account = self.account(credential, now);
        let weight = match answer {
            // A device may open a new connection before it closes the old one.
            Answer::Closed if account.suspicion.sources.last() == Some(&old) => ONE / 4,
            Answer::Closed => ONE,
            // A device that restarted knows nothing of the connection that it had, and it comes from its own address.
            Answer::Reset if account.suspicion.sources.last() == Some(&old) => return None,
            Answer::Reset => ONE / 2,
        };
        account.suspicion.answered += 1;
        // Middleboxes reset what they no longer know, so who only did that need not have been there to come back.
        if answer == Answer::Closed {
            account.alive.retain(|(source, _)| *source != old);
            if account.alive.len() == SOURCES_MAX {
                account.alive.remove(0);
            }
            account.alive.push((old, now));
        }
        self.weigh(credential, weight, now)
    }

    /// Two sessions of `credential` were active within the same moments.
    pub fn active_together(
        &mut self,
        credential: Fingerprint,
        one: IpAddr,
        other: IpAddr,
        now: Timestamp,
    ) -> Option<Told> {
        // A device with both families may use both at a time.
        if one == other || one.is_ipv4() != other.is_ipv4() {
            return None;
        }
        let account = self.account(credential, now);
        account.suspicion.together += 1;
        account.suspicion.saw(one);
        account.suspicion.saw(other);
        self.weigh(credential, ONE / 4 * 3, now)
    }

    fn account(&mut self, credential: Fingerprint, now: Timestamp) -> &mut Account {
        if self.accounts.len() >= self.rules.accounts_max && !self.accounts.contains_key(&credential) {
            self.make_room(now);
        }
        let account = self.accounts.entry(credential).or_insert_with(|| Account {
            suspicion: Suspicion::new(now),
            counted: now,
            alive: Vec::new(),
        });
        account.decay(now, self.rules.half_life);
        account
    }

    /// Adds to a score. The suspicion, if the score is enough for one.
    fn weigh(&mut self, credential: Fingerprint, weight: u32, now: Timestamp) -> Option<Told> {
        let threshold = self.rules.threshold;
        let account = self.accounts.get_mut(&credential)?;
        let suspicion = &mut account.suspicion;
        suspicion.score = suspicion.score.saturating_add(weight);
        suspicion.last = now;
        // Also of one that is still suspected: what is done about it is never asked at less than it was told at.
        if suspicion.score < threshold {
            return None;
        }
        if suspicion.suspected {
            return Some(Told::Grew(suspicion.clone()));
        }
        suspicion.suspected = true;
        Some(Told::Reached(suspicion.clone()))
    }

    /// Drops what has decayed, then, if there are still too many, the half with the lowest scores.
    fn make_room(&mut self, now: Timestamp) {
        self.tidy(now);
        if self.accounts.len() < self.rules.accounts_max {
            return;
        }
        let mut scores: Vec<u32> = self.accounts.values().map(|a| a.suspicion.score).collect();
        scores.sort_unstable();
        let median = scores[scores.len() / 2];
        let above = scores.iter().filter(|s| **s > median).count();
        let mut equal = (self.rules.accounts_max / 2).saturating_sub(above);
        self.accounts.retain(|_, a| {
            let score = a.suspicion.score;
            let stays = score > median || (score == median && equal > 0);
            equal -= usize::from(stays && score == median);
            stays
        });
    }

    /// Drops accounts that have decayed to nothing.
    pub fn tidy(&mut self, now: Timestamp) {
        let half_life = self.rules.half_life;
        self.accounts.retain(|_, account| {
            account.decay(now, half_life);
            account.suspicion.score > ONE / 20 || now.since(account.counted_last()) < RETURN_WINDOW
        });
        if self.accounts.capacity() > 1024 && self.accounts.len() * 8 < self.accounts.capacity() {
            self.accounts.shrink_to(self.accounts.len() * 2);
        }
    }

    /// The credentials that are suspected now, with what is known of them; the highest scores first.
    pub fn suspected(&mut self, now: Timestamp) -> Vec<(Fingerprint, Suspicion)> {
        let half_life = self.rules.half_life;
        let mut found: Vec<_> = self
            .accounts
            .iter_mut()
            .filter_map(|(credential, account)| {
                account.decay(now, half_life);
                account
                    .suspicion
                    .suspected
                    .then(|| (*credential, account.suspicion.clone()))
            })
            .collect();
        found.sort_by_key(|(_, suspicion)| std::cmp::Reverse(suspicion.score));
        found
    }
}

impl Account {
    /// The latest thing that was seen of it.
    fn counted_last(&self) -> Timestamp {
        self.alive
            .last()
            .map_or(self.suspicion.last, |(_, at)| (*at).max(self.suspicion.last))
    }
}

#[cfg(test)]
mod tests;
