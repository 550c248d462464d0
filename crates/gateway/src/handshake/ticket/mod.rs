//! Resumption under policy: tickets that are ours to decline (RFC 9846 section 4.7.1, RFC 5077).
//!
//! A resumed session inherits the certificate of the handshake that its ticket came from, and TLS looks at none of it
//! again. So a ticket carries, beside what rustls puts into it, what the certificate was believed on ([`facts`]), and
//! everything that TLS skips is checked when it is opened: whose listener and tenant it is for, its age since the last
//! full handshake, the authority, the credential, and the whole path at this moment but for its signatures. What does not
//! hold declines the ticket, and a full handshake follows, which tells the device what is wrong in the words of TLS.
//! Device and policies are asked on every connection anyway; a ticket whose taking policies would hold against the device
//! is declined as well, or it would be refused until the ticket is too old.
//!
//! Tickets are stateless: sealed by keys of each listener and tenant ([`keys`]).

pub mod facts;
pub mod keys;
mod producer;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use countersign_identity::{TenantId, Timestamp, VerifiedChain};

pub use keys::{KeyFault, TicketKeys};
pub use producer::DeviceTickets;

/// The greatest age of a ticket that can be configured, counted from the full handshake at its root.
pub const AGE_MAX: Duration = Duration::from_secs(24 * 3600);
/// The largest ticket that is made. It comes back in a ClientHello, which must stay below what is read of one.
pub const TICKET_BYTES_MAX: usize = 8 * 1024;
/// The most tickets of one ClientHello that are looked at.
pub(crate) const TRIED_MAX: u32 = 4;

/// Whether a listener's devices may resume.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Resumption {
    /// They are given tickets.
    #[default]
    Offered,
    /// Every handshake is a full one.
    Off,
}

/// What applies to the tickets of all listeners.
#[derive(Clone, Debug)]
pub struct TicketSettings {
    /// The greatest age, from the full handshake on; no more than [`AGE_MAX`]. Default 24 h.
    pub age_max: Duration,
    /// Tenants whose devices never resume.
    pub tenants_off: Vec<TenantId>,
}

impl Default for TicketSettings {
    fn default() -> Self {
        Self {
            age_max: AGE_MAX,
            tenants_off: vec![],
        }
    }
}

/// What an opened ticket brought: the certificate of an earlier handshake, checked again at this moment.
///
/// It counts only if rustls says that the session was resumed; a full handshake throws it away.
#[derive(Debug)]
pub struct Resumed {
    /// The path, checked now.
    pub chain: VerifiedChain,
    /// When the full handshake began in which the device proved to hold the key.
    pub proven_at: Timestamp,
    /// How many certificates were sent then.
    pub chain_length: u8,
}

macro_rules! declines {
    ($($(#[$doc:meta])* $variant:ident = $name:literal),+ $(,)?) => {
        /// Why a ticket is not taken. The device gets a full handshake.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Decline { $($(#[$doc])* $variant),+ }

        impl Decline {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name in metrics and records.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
    };
}

declines! {
    /// No ticket of ours, or one of another layout.
    Malformed = "malformed",
    /// Its key is not kept any more, or was another node's.
    UnknownKey = "unknown-key",
    /// It cannot be opened: of another listener, or not as it was made.
    Unopened = "unopened",
    /// The server name asks for another tenant.
    OtherTenant = "other-tenant",
    /// The tenant's devices never resume.
    Off = "off",
    /// It is of the other TLS version.
    TlsVersion = "tls-version",
    /// The full handshake at its root is too long ago.
    Age = "age",
    /// The clock is behind that handshake.
    ClockBehind = "clock-behind",
    /// The authority changed, or admits nobody any more.
    AuthorityChanged = "authority-changed",
    /// The credential changed, or is not known any more.
    CredentialChanged = "credential-changed",
    /// The path does not hold now: dates, revocation lists, states.
    Chain = "chain",
    /// Policies refuse the device for coming by resumption, and not for coming at all.
    Policy = "policy",
    /// More tickets in one ClientHello than are looked at.
    TooMany = "too-many",
}

/// What is counted about tickets; all since start.
#[derive(Debug)]
pub struct TicketCounts {
    /// Tickets made.
    pub issued: AtomicU64,
    /// Tickets not made, for what they would have vouched for may not be resumed.
    pub withheld: AtomicU64,
    /// Tickets opened and good.
    pub opened: AtomicU64,
    /// Handshakes that were resumed.
    pub resumed: AtomicU64,
    declined: Vec<AtomicU64>,
}

impl Default for TicketCounts {
    fn default() -> Self {
        Self {
            issued: AtomicU64::default(),
            withheld: AtomicU64::default(),
            opened: AtomicU64::default(),
            resumed: AtomicU64::default(),
            declined: Decline::ALL.iter().map(|_| AtomicU64::default()).collect(),
        }
    }
}

impl TicketCounts {
    pub(crate) fn declined(&self, why: Decline) {
        if let Some(counter) = self.declined.get(why as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Declined tickets by reason, only those that happened.
    pub fn declines(&self) -> BTreeMap<&'static str, u64> {
        Decline::ALL
            .iter()
            .zip(&self.declined)
            .map(|(why, n)| (why.name(), n.load(Ordering::Relaxed)))
            .filter(|(_, n)| *n > 0)
            .collect()
    }
}
