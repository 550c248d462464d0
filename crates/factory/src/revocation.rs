//! That a certificate was revoked, when and why.

use countersign_identity::Timestamp;
use serde::{Deserialize, Serialize};

/// CRLReason (RFC 5280 section 5.3.1), as far as a registry without holds gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RevocationReason {
    /// None was given.
    #[default]
    Unspecified,
    /// Somebody else has, or may have, the key.
    KeyCompromise,
    /// Somebody else has, or may have, the CA's key.
    CaCompromise,
    /// The device is no longer its owner's.
    AffiliationChanged,
    /// A newer certificate is in use.
    Superseded,
    /// The device is out of service.
    CessationOfOperation,
    /// The device may no longer do what the certificate was for.
    PrivilegeWithdrawn,
}

impl RevocationReason {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Unspecified,
        Self::KeyCompromise,
        Self::CaCompromise,
        Self::AffiliationChanged,
        Self::Superseded,
        Self::CessationOfOperation,
        Self::PrivilegeWithdrawn,
    ];

    /// The number in lists and answers.
    pub const fn code(self) -> u8 {
        match self {
            Self::Unspecified => 0,
            Self::KeyCompromise => 1,
            Self::CaCompromise => 2,
            Self::AffiliationChanged => 3,
            Self::Superseded => 4,
            Self::CessationOfOperation => 5,
            Self::PrivilegeWithdrawn => 9,
        }
    }

    /// Whether it says that somebody else has a key: what is known to be so stays so, and may become known later.
    pub const fn is_compromise(self) -> bool {
        matches!(self, Self::KeyCompromise | Self::CaCompromise)
    }

    /// The name in API, CLI and audit.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::KeyCompromise => "key-compromise",
            Self::CaCompromise => "ca-compromise",
            Self::AffiliationChanged => "affiliation-changed",
            Self::Superseded => "superseded",
            Self::CessationOfOperation => "cessation-of-operation",
            Self::PrivilegeWithdrawn => "privilege-withdrawn",
        }
    }
}

impl TryFrom<u8> for RevocationReason {
    type Error = String;
    fn try_from(code: u8) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|r| r.code() == code)
            .ok_or_else(|| format!("{code} is no revocation reason that is used here"))
    }
}

impl std::str::FromStr for RevocationReason {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|r| r.name() == s).ok_or_else(|| {
            format!(
                "{s:?} is no revocation reason; there are {}",
                Self::ALL.map(Self::name).join(", ")
            )
        })
    }
}

/// One revoked certificate, as lists and answers tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    /// Its serial number, hex.
    pub serial: String,
    /// Since when.
    pub at: Timestamp,
    /// Why.
    pub reason: RevocationReason,
}
