//! The names that everything is keyed by. Each is a type of its own, checked where it enters.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Why a text is not an id. The message says what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text is empty.
    #[error("{kind} is empty")]
    Empty {
        /// Which kind of id was read.
        kind: &'static str,
    },
    /// The text is longer than the kind allows.
    #[error("{kind} has {length} bytes, at most {max} are allowed")]
    TooLong {
        /// Which kind of id was read.
        kind: &'static str,
        /// Its length in bytes.
        length: usize,
        /// The longest allowed, in bytes.
        max: usize,
    },
    /// A character is outside the allowed set.
    #[error("{kind} contains {character:?}; allowed are {allowed}")]
    Character {
        /// Which kind of id was read.
        kind: &'static str,
        /// The first character that is not allowed.
        character: char,
        /// The allowed set, for people.
        allowed: &'static str,
    },
    /// Not 64 lower-case hexadecimal digits.
    #[error("not a SHA-256 fingerprint: 64 hexadecimal digits are expected")]
    Fingerprint,
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $max:literal, $allowed:literal, $ok:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The longest allowed, in bytes.
            pub const MAX_BYTES: usize = $max;

            /// Checks and takes `text`.
            ///
            /// # Errors
            /// [`IdError`] if it is empty, too long or has a character outside the allowed set.
            pub fn new(text: &str) -> Result<Self, IdError> {
                if text.is_empty() {
                    return Err(IdError::Empty { kind: $kind });
                }
                if text.len() > $max {
                    return Err(IdError::TooLong { kind: $kind, length: text.len(), max: $max });
                }
                let ok: fn(char) -> bool = $ok;
                if let Some(character) = text.chars().find(|c| !ok(*c)) {
                    return Err(IdError::Character { kind: $kind, character, allowed: $allowed });
                }
                Ok(Self(text.into()))
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(s: &str) -> Result<Self, IdError> {
                Self::new(s)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(s: String) -> Result<Self, IdError> {
                Self::new(&s)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.as_ref().to_owned()
            }
        }
    };
}

text_id!(
    /// A tenant: a closed world of anchors, devices, policies and topics. `default` exists from the start.
    TenantId, "tenant id", 32, "a-z 0-9 -",
    |c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'
);

text_id!(
    /// A device, unique within its tenant.
    ///
    /// It becomes an MQTT client id and a topic level, so `+ # / $` and everything else with a meaning there is
    /// refused at registration.
    DeviceId, "device id", 64, "A-Z a-z 0-9 . _ : -",
    |c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '-')
);

text_id!(
    /// An offline factory station, unique across tenants.
    StationId, "station id", 32, "A-Z a-z 0-9 . _ -",
    |c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
);

text_id!(
    /// A certification authority known to the registry, unique across tenants.
    AuthorityId, "authority id", 64, "A-Z a-z 0-9 . _ -",
    |c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
);

text_id!(
    /// A batch of a factory, unique within its tenant.
    BatchId, "batch id", 64, "A-Z a-z 0-9 . _ -",
    |c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
);

text_id!(
    /// A service: a backend of the fleet, unique across tenants. It is never a device.
    ServiceId, "service id", 32, "A-Z a-z 0-9 . _ -",
    |c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
);

impl TenantId {
    /// The tenant that exists from the start.
    pub fn default_tenant() -> Self {
        Self("default".into())
    }
}

impl AuthorityId {
    /// What stands in the place of an authority where a self-signed certificate vouches for itself, because it is
    /// registered by its fingerprint. No authority may have this id.
    pub fn pinned() -> Self {
        Self("pinned".into())
    }

    /// Whether it is [`AuthorityId::pinned`].
    pub fn is_pinned(&self) -> bool {
        self.as_str() == "pinned"
    }
}

/// SHA-256 of a certificate's DER: the key by which a credential is known. Shown as 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of a certificate in DER.
    pub fn of(der: &[u8]) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der);
        let mut out = [0; 32];
        out.copy_from_slice(digest.as_ref());
        Self(out)
    }

    /// From its 32 bytes, as a store keeps it.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for Fingerprint {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        let mut out = [0; 32];
        hex::decode_to_slice(s.replace(':', "").to_ascii_lowercase(), &mut out)
            .map_err(|_| IdError::Fingerprint)?;
        Ok(Self(out))
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = IdError;
    fn try_from(s: String) -> Result<Self, IdError> {
        s.parse()
    }
}

impl From<Fingerprint> for String {
    fn from(f: Fingerprint) -> String {
        hex::encode(f.0)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex::encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Grows with every change of its subject (tenant policy, authority, device, credential) that could alter an
/// admission. Compared for equality, never for order: a restored backup may count from an older number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_id_never_has_a_topic_meaning() {
        for bad in ["", "+", "#", "a/b", "$SYS", "a b", "dev-+/#", "é", "a\0b"] {
            assert!(DeviceId::new(bad).is_err(), "{bad:?}");
        }
        for good in ["dev-000001", "SN.2026:07_a", "0"] {
            assert_eq!(DeviceId::new(good).unwrap().as_str(), good);
        }
        assert!(DeviceId::new(&"x".repeat(64)).is_ok());
        assert!(matches!(
            DeviceId::new(&"x".repeat(65)),
            Err(IdError::TooLong { max: 64, .. })
        ));
    }

    #[test]
    fn a_fingerprint_reads_what_tools_print() {
        let f = Fingerprint::of(b"certificate");
        assert_eq!(f.to_string().parse::<Fingerprint>().unwrap(), f);
        let colons = f
            .to_string()
            .as_bytes()
            .chunks(2)
            .map(|c| String::from_utf8_lossy(c).to_uppercase())
            .collect::<Vec<_>>();
        assert_eq!(colons.join(":").parse::<Fingerprint>().unwrap(), f);
        assert!("12ab".parse::<Fingerprint>().is_err());
    }
}
