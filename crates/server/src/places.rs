//! The places of a listener that has no other admission: so many connections, and of those a share for each source. Counted at
//! accept, before anything is read: silence costs its sender no more than a connection.
//!
//! A source is an IPv4 address or an IPv6 /64, as at the device port.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use countersign_policy::exchange::source_of;
use parking_lot::Mutex;

/// How many connections a listener has at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlacesMax {
    /// Of everybody.
    pub(crate) all: usize,
    /// Of one source.
    pub(crate) per_source: usize,
    /// What the two settings are called: `{}connections_max` and `{}connections_per_source_max`.
    pub(crate) prefix: &'static str,
}

#[derive(Debug, Default)]
struct Held {
    all: usize,
    by_source: HashMap<IpAddr, usize>,
}

/// The places of one listener.
#[derive(Debug)]
pub(crate) struct Places {
    max: PlacesMax,
    held: Mutex<Held>,
}

impl Places {
    pub(crate) fn new(max: PlacesMax) -> Arc<Self> {
        let held = Mutex::default();
        Arc::new(Self { max, held })
    }

    /// Takes a place, which is free again when it is dropped.
    ///
    /// # Errors
    /// The setting that is reached.
    pub(crate) fn take(self: &Arc<Self>, source: IpAddr) -> Result<Place, String> {
        let source = source_of(source);
        let mut held = self.held.lock();
        let of_source = held.by_source.get(&source).copied().unwrap_or_default();
        // The last eighth is for those who hold few: some addresses together do not close the door either.
        let nearly_full = held.all >= self.max.all - self.max.all / 8;
        if held.all >= self.max.all || nearly_full && of_source > self.max.all / 64 {
            return Err(format!("{}connections_max", self.max.prefix));
        }
        if of_source >= self.max.per_source {
            return Err(format!("{}connections_per_source_max", self.max.prefix));
        }
        held.all += 1;
        held.by_source.insert(source, of_source + 1);
        Ok(Place {
            of: self.clone(),
            source,
        })
    }
}

/// One place, taken.
#[derive(Debug)]
pub(crate) struct Place {
    of: Arc<Places>,
    source: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.of.held.lock();
        held.all -= 1;
        if let Some(of_source) = held.by_source.get_mut(&self.source) {
            *of_source -= 1;
            if *of_source == 0 {
                held.by_source.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn places(all: usize, per_source: usize) -> Arc<Places> {
        let prefix = "enrol.";
        Places::new(PlacesMax {
            all,
            per_source,
            prefix,
        })
    }

    #[test]
    fn a_source_has_its_share_and_gives_it_back() {
        let places = places(256, 64);
        let taken: Vec<_> = (0..100)
            .map(|n| places.take(ip(&format!("2001:db8:1:2::{n:x}"))))
            .collect();
        assert_eq!(taken.iter().filter(|t| t.is_ok()).count(), 64);
        let refused = taken.last().unwrap().as_ref().unwrap_err();
        assert_eq!(refused, "enrol.connections_per_source_max");
        let other = places.take(ip("2001:db8:1:3::1"));
        assert!(other.is_ok());
        drop(taken);
        assert!(places.take(ip("2001:db8:1:2::1")).is_ok());
        drop(other);
        assert_eq!(places.held.lock().all, 0);
        assert!(places.held.lock().by_source.is_empty());
    }

    #[test]
    fn a_few_sources_leave_room_for_others_and_there_are_no_more_than_all() {
        let places = places(256, 64);
        let few: Vec<_> = (0..2000u32)
            .filter_map(|n| places.take(ip(&format!("192.0.2.{}", n % 10))).ok())
            .collect();
        assert_eq!(few.len(), 224);
        let others: Vec<_> = (0..40)
            .map(|n| places.take(ip(&format!("198.51.100.{n}"))))
            .collect();
        assert_eq!(others.iter().filter(|t| t.is_ok()).count(), 32);
        let refused = others.last().unwrap().as_ref().unwrap_err();
        assert_eq!(refused, "enrol.connections_max");
    }
}
