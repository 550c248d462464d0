//! What is known of a device, its credential and its authority at the moment of a decision.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use countersign_identity::{
    Anchor, AnchorIndex, AnchorState, AuthorityId, DeviceId, Fingerprint, Generation, TenantId, Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::decide::TenantPolicy;
use crate::first_contact::Admission;
use crate::lifecycle::LifecycleState;
use crate::station::StationFacts;

macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            /// All of them, in the order of this type.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name in store, API, log and policy.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $name {
            type Err = String;
            fn from_str(s: &str) -> Result<Self, String> {
                match s {
                    $($text => Ok(Self::$variant),)+
                    _ => Err(format!(concat!("{:?} is none of: ", $($text, " "),+), s)),
                }
            }
        }
    };
}

named! {
    /// Where a credential stands.
    CredentialState {
        /// Handed out, not used yet: admitted, and becomes `active` by first use.
        Issued = "issued",
        /// In use.
        Active = "active",
        /// Replaced by a newer one of the same device that is in use, and the overlap is over: no longer admitted.
        Superseded = "superseded",
        /// No longer admitted.
        Revoked = "revoked",
        /// Handed out and never used in time: never admitted.
        Lapsed = "lapsed",
        /// Past its notAfter.
        Expired = "expired",
    }
}

named! {
    /// What a credential is for (IEEE 802.1AR).
    CredentialKind {
        /// The manufacturer's identity, IDevID.
        Factory = "factory",
        /// The operator's identity, LDevID: what opens data sessions.
        Operational = "operational",
        /// Self-signed, registered by fingerprint.
        Pinned = "pinned",
    }
}

named! {
    /// How a credential's private key is held, and how that is known.
    Custody {
        /// Proven by attestation.
        Attested = "attested",
        /// Somebody said so.
        Declared = "declared",
        /// Nothing is known.
        Unknown = "unknown",
    }
}

named! {
    /// Which client ids a device may use in MQTT CONNECT; set per tenant.
    ClientIdMode {
        /// The client id is the device id, letter by letter. The default.
        Strict = "strict",
        /// The device id, or the device id, `:` and anything: several sessions per device.
        Prefix = "prefix",
        /// Empty, and the server assigns the device id; or the device id itself.
        Assigned = "assigned",
        /// Anything; sessions are still keyed by tenant and device, so no device reaches another's.
        Free = "free",
    }
}

/// A device, as admission needs it. Shared: a fleet of ten million keeps one of these each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceFacts {
    /// The tenant it belongs to.
    pub tenant: TenantId,
    /// Its id within the tenant.
    pub id: DeviceId,
    /// Its model, if one is known.
    pub model: Option<Arc<str>>,
    /// Its groups, sorted.
    pub groups: Arc<[Arc<str>]>,
    /// The batch it was made in, if it was made in one.
    pub batch: Option<Arc<str>>,
    /// Where it stands.
    pub state: LifecycleState,
    /// Grows with every change of the device.
    pub generation: Generation,
}

/// A credential, as admission needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialFacts {
    /// Its certificate's SHA-256.
    pub fingerprint: Fingerprint,
    /// The tenant of its device.
    pub tenant: TenantId,
    /// Its device.
    pub device: DeviceId,
    /// What it is for.
    pub kind: CredentialKind,
    /// Where it stands.
    pub state: CredentialState,
    /// How its key is held.
    pub custody: Custody,
    /// Whether it may open data sessions. One of a factory profile may be for enrolment alone.
    pub opens_data_sessions: bool,
    /// Grows with every change of the credential that could alter an admission.
    pub generation: Generation,
}

/// The generations that an admission was made under. Read again after the session is indexed; any difference is a
/// fresh decision.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Generations {
    /// Of the tenant's policy.
    pub policy: Generation,
    /// Of the authority that the chain ended in.
    pub authority: Generation,
    /// Of the device.
    pub device: Generation,
    /// Of the credential.
    pub credential: Generation,
}

/// What a TLS handshake agreed on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
pub struct TlsFacts {
    /// `TLSv1.3` or `TLSv1.2`.
    pub version: &'static str,
    /// The key exchange group, such as `X25519MLKEM768`; `None` if none took place.
    pub group: Option<&'static str>,
    /// The cipher suite.
    pub cipher_suite: &'static str,
    /// Whether the session was resumed.
    pub resumed: bool,
}

/// The names that a recorded handshake may have: what this program negotiates.
const TLS_NAMES: &[&str] = &[
    "TLSv1.3",
    "TLSv1.2",
    "X25519MLKEM768",
    "MLKEM768",
    "MLKEM1024",
    "SECP256R1MLKEM768",
    "secp256r1MLKEM768",
    "X25519",
    "secp256r1",
    "secp384r1",
    "TLS13_AES_256_GCM_SHA384",
    "TLS13_AES_128_GCM_SHA256",
    "TLS13_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
];

impl TlsFacts {
    /// What most devices agree on: taken where nothing is recorded.
    pub const ASSUMED: Self = Self {
        version: "TLSv1.3",
        group: Some("X25519MLKEM768"),
        cipher_suite: "TLS13_AES_256_GCM_SHA384",
        resumed: false,
    };

    /// What most devices agree on that have TLS 1.2 alone.
    pub const ASSUMED_TLS12: Self = Self {
        version: "TLSv1.2",
        group: Some("X25519"),
        cipher_suite: "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        resumed: false,
    };

    /// The full handshake that a device makes where this one was resumed. TLS 1.2 resumes without a key exchange: the
    /// one that it would make then is assumed.
    #[must_use]
    pub fn as_full(self) -> Self {
        Self {
            group: self.group.or(Self::ASSUMED_TLS12.group),
            resumed: false,
            ..self
        }
    }

    /// The resumption of this handshake.
    #[must_use]
    pub fn as_resumed(self) -> Self {
        Self {
            group: self.group.filter(|_| self.version != Self::ASSUMED_TLS12.version),
            resumed: true,
            ..self
        }
    }

    /// A handshake from its record. A name that this program does not negotiate becomes `unknown`.
    pub fn recorded(version: &str, group: Option<&str>, cipher_suite: &str, resumed: bool) -> Self {
        let known = |name: &str| {
            TLS_NAMES
                .iter()
                .copied()
                .find(|n| *n == name)
                .unwrap_or("unknown")
        };
        Self {
            version: known(version),
            group: group.map(known),
            cipher_suite: known(cipher_suite),
            resumed,
        }
    }
}

/// What a connect decision looks at besides device and credential.
#[derive(Clone, Copy, Debug)]
pub struct ConnectFacts<'a> {
    /// The device.
    pub device: &'a DeviceFacts,
    /// The credential it proved.
    pub credential: &'a CredentialFacts,
    /// The authority its chain ended in.
    pub authority: &'a AuthorityId,
    /// The authority's generation.
    pub authority_generation: Generation,
    /// Where the connection comes from.
    pub source: IpAddr,
    /// What the handshake agreed on.
    pub tls: TlsFacts,
    /// When.
    pub now: Timestamp,
}

/// The registry could not be read or written; nobody is admitted until it can.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the registry is unavailable: {reason}")]
pub struct RegistryUnavailable {
    /// What failed.
    pub reason: String,
}

/// Where facts come from: a table in memory, fed by the registry's revisions, so that a decision never waits for I/O.
///
/// A writer makes a change visible here *before* it looks for the sessions that the change touches; a session is
/// indexed *before* its generations are read again. So one of the two always sees the other.
pub trait FactSource: Send + Sync {
    /// Whether facts may be trusted now.
    ///
    /// # Errors
    /// [`RegistryUnavailable`] when the registry failed: then every decision is a denial.
    fn health(&self) -> Result<(), RegistryUnavailable>;

    /// The registered authorities of all tenants.
    fn anchors(&self) -> Arc<AnchorIndex>;

    /// The tenant that a server name belongs to; `None` if no tenant has it. Compared without regard to case.
    fn tenant_by_host(&self, host: &str) -> Option<TenantId>;

    /// A credential by its fingerprint; `None` if it is not known.
    fn credential(&self, fingerprint: &Fingerprint) -> Option<CredentialFacts>;

    /// Whether the authority of a credential is to be learned from its next admission.
    fn is_unplaced(&self, _fingerprint: &Fingerprint) -> bool {
        false
    }

    /// A device; `None` if it is not known.
    fn device(&self, tenant: &TenantId, device: &DeviceId) -> Option<Arc<DeviceFacts>>;

    /// The offline factory station of a tenant whose certificates bear this issuer, DER; `None` if it is none's.
    fn station(&self, _tenant: &TenantId, _issuer: &[u8]) -> Option<StationFacts> {
        None
    }

    /// State and generation of an authority now; `None` if it is not known.
    fn authority(&self, authority: &AuthorityId) -> Option<(AnchorState, Generation)>;

    /// An authority's certificate with its identity rule as it is now; `None` if it is not known, or has none of its own because
    /// its certificates vouch for themselves.
    fn anchor(&self, authority: &AuthorityId) -> Option<Arc<Anchor>>;

    /// What first contacts of an authority's devices may bring about; nothing if the authority is not known.
    fn admission(&self, authority: &AuthorityId) -> Admission;

    /// Which client ids the tenant's devices may use.
    fn client_id_mode(&self, tenant: &TenantId) -> ClientIdMode;

    /// The tenant's compiled policies; `None` if there are none, and then nobody is admitted.
    fn policy(&self, tenant: &TenantId) -> Option<Arc<TenantPolicy>>;
}
