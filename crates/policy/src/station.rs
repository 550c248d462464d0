//! What is known of an offline factory station: why one of its certificates may not be known yet, and what to do about it.

use countersign_identity::{DeviceId, StationId};

use crate::denial::{Denial, DenialCode};

/// Whether a station may still account for what it issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accounting {
    /// It may: its journal is taken when it is handed in.
    Open,
    /// It was revoked: what it had not accounted for by then is refused for good.
    Over,
}

/// A station, as far as its devices are concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StationFacts {
    /// Its id.
    pub id: StationId,
    /// Whether its journal would be taken.
    pub accounting: Accounting,
}

impl StationFacts {
    /// Why a device with a certificate of it is refused that is not registered: its journal alone could register it.
    pub fn denial(&self, device: &DeviceId) -> Denial {
        let (code, what) = match self.accounting {
            Accounting::Open => (DenialCode::NotReconciled, "whose journal has not told of it yet"),
            Accounting::Over => (
                DenialCode::StationRevoked,
                "which was revoked before its journal told of it",
            ),
        };
        Denial::new(
            code,
            format!("device {device} comes from factory station {}, {what}", self.id),
        )
    }
}
