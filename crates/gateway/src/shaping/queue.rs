//! A bounded queue in which tenants take turns, within a tenant resumptions go first, and within those sources take turns.
//! One full handshake goes between every few resumptions: a ticket is seen by whoever sees the ClientHello, so what is put in
//! its place may be a replay, and must not keep those out who come without.
//!
//! No I/O. What it bounds is bytes: a connection that waits holds its ClientHello, and they differ by a factor of fifty.
//! When it is full, whoever takes most of it loses the newest entry: first the tenant, then the source within it. So a
//! tenant's storm pushes out itself, and a source's storm within a tenant pushes out itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::net::IpAddr;

use countersign_identity::TenantId;

/// What an entry takes beside its ClientHello, about: the connection, its record, its places in here.
const ENTRY_BYTES: usize = 2048;

/// Resumptions of a tenant that go before one of its full handshakes does.
const RESUMPTIONS_IN_A_ROW: u32 = 8;

/// What a handshake will cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// A session ticket of ours was opened: if it is what it looks like, it costs no signature.
    Resumption,
    /// All of it.
    Full,
}

/// Where an entry stands in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// By the server name; `None` if it chose none.
    pub(crate) tenant: Option<TenantId>,
    pub(crate) class: Class,
    /// As `source_of` says.
    pub(crate) source: IpAddr,
    /// How many bytes it holds while it waits.
    pub(crate) bytes: usize,
}

/// Something whose parts take room.
trait Weighed: Default {
    fn weight(&self) -> usize;
}

/// The entries of one source, oldest first.
#[derive(Debug)]
struct Line<T> {
    entries: BTreeMap<u64, (usize, T)>,
    bytes: usize,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
            bytes: 0,
        }
    }
}

impl<T> Weighed for Line<T> {
    fn weight(&self) -> usize {
        self.bytes
    }
}

impl<T> Line<T> {
    fn took(&mut self, taken: Option<(u64, (usize, T))>) -> Option<T> {
        let (_, (bytes, entry)) = taken?;
        self.bytes -= bytes;
        Some(entry)
    }
}

#[derive(Debug)]
struct Share<Q> {
    part: Q,
    turn: u64,
    weight: usize,
}

/// Parts that take turns. An empty part is forgotten.
#[derive(Debug)]
struct Shares<K, Q> {
    parts: HashMap<K, Share<Q>>,
    turns: BTreeMap<u64, K>,
    weights: BTreeSet<(usize, K)>,
    next_turn: u64,
    weight: usize,
}

impl<K, Q> Default for Shares<K, Q> {
    fn default() -> Self {
        Self {
            parts: HashMap::new(),
            turns: BTreeMap::new(),
            weights: BTreeSet::new(),
            next_turn: 0,
            weight: 0,
        }
    }
}

impl<K: Clone + Ord + Hash, Q: Weighed> Weighed for Shares<K, Q> {
    fn weight(&self) -> usize {
        self.weight
    }
}

impl<K: Clone + Ord + Hash, Q: Weighed> Shares<K, Q> {
    /// Changes a part. With `turn_over` it goes behind all others; a new one does so anyway.
    fn change<R>(&mut self, key: &K, turn_over: bool, change: impl FnOnce(&mut Q) -> R) -> R {
        let next_turn = self.next_turn;
        let is_new = !self.parts.contains_key(key);
        let share = self.parts.entry(key.clone()).or_insert_with(|| Share {
            part: Q::default(),
            turn: next_turn,
            weight: 0,
        });
        let result = change(&mut share.part);
        let weight = share.part.weight();
        if weight != share.weight {
            self.weights.remove(&(share.weight, key.clone()));
            if weight > 0 {
                self.weights.insert((weight, key.clone()));
            }
            self.weight = self.weight - share.weight + weight;
            share.weight = weight;
        }
        if weight == 0 {
            self.turns.remove(&share.turn);
            self.parts.remove(key);
            if self.parts.capacity() > 1024 && self.parts.len() * 8 < self.parts.capacity() {
                self.parts.shrink_to(self.parts.len() * 2);
            }
        } else if is_new || turn_over {
            self.turns.remove(&share.turn);
            share.turn = next_turn;
            self.turns.insert(next_turn, key.clone());
            self.next_turn += 1;
        }
        result
    }

    fn first(&self) -> Option<K> {
        self.turns.first_key_value().map(|(_, key)| key.clone())
    }

    /// What its heaviest part weighs.
    fn most(&self) -> usize {
        self.weights.last().map_or(0, |(weight, _)| *weight)
    }

    fn heaviest(&self) -> Option<K> {
        self.weights.last().map(|(_, key)| key.clone())
    }
}

/// The two classes of one tenant.
#[derive(Debug)]
struct Tenant<T> {
    resumptions: Shares<IpAddr, Line<T>>,
    full: Shares<IpAddr, Line<T>>,
    /// Resumptions that went since the last full handshake.
    in_a_row: u32,
}

impl<T> Default for Tenant<T> {
    fn default() -> Self {
        Self {
            resumptions: Shares::default(),
            full: Shares::default(),
            in_a_row: 0,
        }
    }
}

impl<T> Weighed for Tenant<T> {
    fn weight(&self) -> usize {
        self.resumptions.weight() + self.full.weight()
    }
}

impl<T> Tenant<T> {
    fn class(&mut self, class: Class) -> &mut Shares<IpAddr, Line<T>> {
        match class {
            Class::Resumption => &mut self.resumptions,
            Class::Full => &mut self.full,
        }
    }
}

/// The queue.
#[derive(Debug)]
pub(crate) struct FairQueue<T> {
    tenants: Shares<Option<TenantId>, Tenant<T>>,
    next_entry: u64,
    bytes_max: usize,
    len: usize,
}

/// What became of an entry that was put in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Put {
    /// It waits, under this number.
    Waits(u64),
    /// There is no room for it: its own tenant and source take most.
    Full,
}

impl<T> FairQueue<T> {
    /// At most `bytes_max` wait in it.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            tenants: Shares::default(),
            next_entry: 0,
            bytes_max,
            len: 0,
        }
    }

    /// Puts an entry in. Those that must go for it are handed to `displaced`.
    pub(crate) fn put(&mut self, place: &Place, entry: T, mut displaced: impl FnMut(T)) -> Put {
        let number = self.next_entry;
        self.next_entry += 1;
        let bytes = place.bytes + ENTRY_BYTES;
        self.tenants.change(&place.tenant, false, |tenant| {
            tenant.class(place.class).change(&place.source, false, |line| {
                line.entries.insert(number, (bytes, entry));
                line.bytes += bytes;
            });
        });
        self.len += 1;
        while self.tenants.weight() > self.bytes_max {
            let Some((least, entry)) = self.displace() else {
                break;
            };
            if least == number {
                return Put::Full;
            }
            displaced(entry);
        }
        Put::Waits(number)
    }

    /// Takes the newest entry of whoever takes most.
    fn displace(&mut self) -> Option<(u64, T)> {
        let tenant = self.tenants.heaviest()?;
        let taken = self.tenants.change(&tenant, false, |tenant| {
            // Whichever source takes most, by whatever it comes.
            let shares = match tenant.full.most() >= tenant.resumptions.most() {
                true => &mut tenant.full,
                false => &mut tenant.resumptions,
            };
            let source = shares.heaviest()?;
            shares.change(&source, false, |line| {
                let taken = line.entries.pop_last();
                let number = taken.as_ref()?.0;
                Some((number, line.took(taken)?))
            })
        });
        self.len -= usize::from(taken.is_some());
        taken
    }

    /// Takes the entry whose turn it is.
    pub(crate) fn take(&mut self) -> Option<T> {
        let tenant = self.tenants.first()?;
        let taken = self.tenants.change(&tenant, true, |tenant| {
            let full_is_due = tenant.in_a_row >= RESUMPTIONS_IN_A_ROW && tenant.full.first().is_some();
            let shares = match tenant.resumptions.first() {
                Some(_) if !full_is_due => {
                    tenant.in_a_row += 1;
                    &mut tenant.resumptions
                }
                _ => {
                    tenant.in_a_row = 0;
                    &mut tenant.full
                }
            };
            let source = shares.first()?;
            shares.change(&source, true, |line| {
                let taken = line.entries.pop_first();
                line.took(taken)
            })
        });
        self.len -= usize::from(taken.is_some());
        taken
    }

    /// Takes an entry that waits no longer. `None` if it was taken before.
    pub(crate) fn remove(&mut self, place: &Place, number: u64) -> Option<T> {
        // Nothing is made for what is not there.
        if !self.tenants.parts.contains_key(&place.tenant) {
            return None;
        }
        let taken = self.tenants.change(&place.tenant, false, |tenant| {
            let shares = tenant.class(place.class);
            if !shares.parts.contains_key(&place.source) {
                return None;
            }
            shares.change(&place.source, false, |line| {
                let taken = line.entries.remove_entry(&number);
                line.took(taken)
            })
        });
        self.len -= usize::from(taken.is_some());
        taken
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests;
