//! Accounts by source: how many connections and handshakes an address holds, and how fast it opens them.
//!
//! No I/O. A source is an IPv4 address or an IPv6 /64.

use std::collections::HashMap;
use std::net::IpAddr;

use countersign_policy::DenialCode;
use countersign_policy::exchange::source_of;

use super::rate::Rate;
use crate::limits::Limits;

/// A table that shrank to an eighth of this gives its memory back.
const SHRINK_ABOVE: usize = 1024;

#[derive(Debug, Default)]
struct Account {
    connections: u32,
    handshakes: u32,
    due_ns: u64,
}

/// All accounts. Bounded: those that hold connections are bounded by the connections, the others by `accounts_max`.
#[derive(Debug)]
pub(crate) struct Sources {
    accounts: HashMap<IpAddr, Account>,
    rate: Rate,
    connections_max: usize,
    handshakes_max: usize,
    accounts_max: usize,
    handshakes: usize,
    forgotten: u64,
}

impl Sources {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            accounts: HashMap::new(),
            rate: Rate::per_second(limits.source_connects_per_s, limits.source_connect_burst),
            connections_max: limits.connections_per_source_max,
            handshakes_max: limits.handshakes_max,
            // With twice as many as there are connections a sweep always frees half.
            accounts_max: limits.sources_max.max(2 * limits.connections_max),
            handshakes: 0,
            forgotten: 0,
        }
    }

    /// Counts a connection in.
    ///
    /// # Errors
    /// The limit that it reaches; then nothing is counted.
    pub(crate) fn enter(&mut self, source: IpAddr, now_ns: u64) -> Result<(), DenialCode> {
        let source = source_of(source);
        if self.accounts.len() >= self.accounts_max && !self.accounts.contains_key(&source) {
            self.sweep(now_ns);
        }
        let nearly_full = self.handshakes >= self.handshakes_max - self.handshakes_max / 8;
        let account = self.accounts.entry(source).or_default();
        let refused = if account.connections as usize >= self.connections_max {
            Some(DenialCode::SourceLimit)
        } else if nearly_full && account.handshakes as usize > self.handshakes_max / 64 {
            // The last eighth is for those who hold few: silence from a few addresses never closes the door.
            Some(DenialCode::HandshakeLimit)
        } else if !self.rate.take(&mut account.due_ns, now_ns) {
            Some(DenialCode::SourceRate)
        } else {
            None
        };
        if let Some(code) = refused {
            return Err(code);
        }
        account.connections += 1;
        account.handshakes += 1;
        self.handshakes += 1;
        Ok(())
    }

    /// A handshake of the source is over, whichever way.
    pub(crate) fn handshake_over(&mut self, source: IpAddr) {
        if let Some(account) = self.accounts.get_mut(&source_of(source)) {
            account.handshakes = account.handshakes.saturating_sub(1);
            self.handshakes = self.handshakes.saturating_sub(1);
        }
    }

    /// A connection of the source is over. Its account is kept while it owes for the rate.
    pub(crate) fn leave(&mut self, source: IpAddr, now_ns: u64) {
        let source = source_of(source);
        let Some(account) = self.accounts.get_mut(&source) else {
            return;
        };
        account.connections = account.connections.saturating_sub(1);
        if account.connections == 0 && account.due_ns <= now_ns {
            self.accounts.remove(&source);
            self.shrink();
        }
    }

    /// Drops accounts that hold nothing and owe nothing, for the timer.
    pub(crate) fn tidy(&mut self, now_ns: u64) {
        self.accounts
            .retain(|_, a| a.connections > 0 || a.due_ns > now_ns);
        self.shrink();
    }

    /// The table is full: what owes nothing goes, and if that is not enough all that hold no connection. Better a rate
    /// forgotten than a newcomer refused because there are many.
    fn sweep(&mut self, now_ns: u64) {
        self.tidy(now_ns);
        if self.accounts.len() > self.accounts_max / 2 {
            let before = self.accounts.len();
            self.accounts.retain(|_, a| a.connections > 0);
            self.forgotten += (before - self.accounts.len()) as u64;
            self.shrink();
        }
    }

    fn shrink(&mut self) {
        let accounts = &mut self.accounts;
        if accounts.capacity() > SHRINK_ABOVE && accounts.len() * 8 < accounts.capacity() {
            accounts.shrink_to(accounts.len() * 2);
        }
    }

    /// How many accounts there are.
    pub(crate) fn len(&self) -> usize {
        self.accounts.len()
    }

    /// Accounts that were dropped though they owed for the rate, since start.
    pub(crate) fn forgotten(&self) -> u64 {
        self.forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn limits() -> Limits {
        Limits {
            connections_max: 100,
            handshakes_max: 64,
            connections_per_source_max: 60,
            source_connects_per_s: 10,
            source_connect_burst: 60,
            sources_max: 500,
            ..Limits::default()
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_source_has_its_rate_and_its_share_and_others_have_theirs() {
        let mut sources = Sources::new(&Limits {
            handshakes_max: 1000,
            ..limits()
        });
        let (a, b) = (ip("192.0.2.1"), ip("192.0.2.2"));
        for _ in 0..60 {
            assert_eq!(sources.enter(a, S), Ok(()));
        }
        assert_eq!(sources.enter(a, S), Err(DenialCode::SourceLimit));
        for _ in 0..60 {
            sources.handshake_over(a);
            sources.leave(a, S);
        }
        assert_eq!(sources.enter(a, S), Err(DenialCode::SourceRate));
        assert_eq!(sources.enter(b, S), Ok(()));
        assert_eq!(sources.enter(a, S + S / 10), Ok(()));
        assert_eq!(sources.enter(a, S + S / 10), Err(DenialCode::SourceRate));
    }

    #[test]
    fn ipv6_counts_by_subscriber() {
        assert_eq!(source_of(ip("2001:db8:1:2:3::4")), ip("2001:db8:1:2::"));
        assert_eq!(source_of(ip("::ffff:192.0.2.1")), ip("192.0.2.1"));
        let mut sources = Sources::new(&limits());
        for n in 0..60u128 {
            let address = IpAddr::V6((0x2001_0db8_u128 << 96 | n).into());
            let entered = sources.enter(address, S);
            // 56 of 64: the last eighth is for those who hold few.
            assert_eq!(entered.is_ok(), n < 56, "{n}");
        }
        assert_eq!(sources.len(), 1);
    }

    #[test]
    fn silence_from_a_few_addresses_leaves_room_for_others() {
        let mut sources = Sources::new(&limits());
        let mut held = 0;
        for n in 0..200u8 {
            held += usize::from(sources.enter(ip(&format!("192.0.2.{}", n % 4)), S).is_ok());
        }
        assert_eq!(held, 56);
        assert_eq!(sources.enter(ip("192.0.2.1"), S), Err(DenialCode::HandshakeLimit));
        for n in 0..8 {
            assert_eq!(sources.enter(ip(&format!("198.51.100.{n}")), S), Ok(()));
        }
    }

    #[test]
    fn the_table_is_bounded_and_gives_its_memory_back() {
        let mut sources = Sources::new(&Limits {
            sources_max: 20_000,
            handshakes_max: 1_000_000,
            ..limits()
        });
        for n in 0..100_000u32 {
            let source = IpAddr::V4(n.to_be().into());
            assert_eq!(sources.enter(source, S), Ok(()));
            sources.handshake_over(source);
            sources.leave(source, S);
            assert!(sources.len() <= 20_000, "{}", sources.len());
        }
        // They still owed a tenth of a second each.
        assert!(sources.forgotten() > 0 && sources.accounts.capacity() > 5_000);
        sources.tidy(2 * S);
        assert_eq!(sources.len(), 0);
        assert!(sources.accounts.capacity() < 1024);
        assert_eq!(sources.handshakes, 0);
    }
}
