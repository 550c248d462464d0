//! MQTT 3.1.1 and 5 (OASIS 2014, 2019): packets and topics. No I/O, no clock.
//!
//! A gateway that authorises by topic must refuse every packet that brokers behind it could read in another way, so
//! this codec is strict: each malformed packet is refused with the reason code the standard gives it.
//!
//! 1. [`frame`]: finds a packet's end, before anything is allocated
//! 2. [`client`]: what clients send, decoded without copying (and encoded, for the device's side)
//! 3. [`server`]: what servers send, encoded (and decoded, for the device's side)
//! 4. [`topic`]: names, filters, matching, containment, topic spaces
//! 5. [`reason`]: the reason codes of MQTT 5 and the return codes of 3.1.1

pub mod client;
mod error;
pub mod frame;
pub mod properties;
pub mod reason;
pub mod server;
pub mod topic;
mod wire;

pub use error::DecodeError;
pub use reason::ReasonCode;

use std::num::NonZeroU16;

/// A version of the protocol that is spoken here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Version {
    /// MQTT 3.1.1, protocol level 4.
    V311,
    /// MQTT 5, protocol level 5.
    V5,
}

impl Version {
    /// The name in logs and ledger.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V311 => "mqtt-3.1.1",
            Self::V5 => "mqtt-5",
        }
    }

    /// The protocol level byte of CONNECT (section 3.1.2.2).
    pub const fn level(self) -> u8 {
        match self {
            Self::V311 => 4,
            Self::V5 => 5,
        }
    }
}

/// Quality of service (section 4.3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[repr(u8)]
pub enum QoS {
    /// QoS 0.
    AtMostOnce = 0,
    /// QoS 1.
    AtLeastOnce = 1,
    /// QoS 2.
    ExactlyOnce = 2,
}

impl QoS {
    /// From its two bits; `None` for 3, which no packet may have (MQTT-3.3.1-4).
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }
}

/// A packet identifier, never zero (MQTT-2.2.1-3).
pub type PacketId = NonZeroU16;

/// The largest Remaining Length (section 1.5.5).
pub const REMAINING_LENGTH_MAX: usize = 268_435_455;
