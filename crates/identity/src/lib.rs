//! Who is this? Tenants, devices, certificates as identity, and the checks of a chain.
//!
//! No socket, no clock, no store: bytes and a [`Timestamp`] go in, verified facts or a typed fault come out.
//! Reading order follows the handshake:
//!
//! 1. [`id`]: the names that everything else is keyed by, each a type of its own
//! 2. [`certificate`]: what one X.509 certificate says, parsed once
//! 3. [`rule`]: where an authority's certificates carry the device id
//! 4. [`anchor`]: the registered authorities, indexed so that a fleet of authorities costs no more than one
//! 5. [`chain`]: from presented certificates to a [`VerifiedChain`], or a [`ChainFault`] with its TLS alert
//! 6. [`proof`]: that whoever registers an authority holds its key
//! 7. [`pattern`]: which device ids may come
//! 8. [`signed`]: signatures over certificates, requests and lists
//! 9. [`revocation`]: revocation lists of others

pub mod anchor;
pub mod certificate;
pub mod chain;
mod clock;
mod elements;
pub mod id;
mod path;
pub mod pattern;
pub mod proof;
mod raw;
pub mod revocation;
pub mod rule;
pub mod signed;
mod timestamp;

pub use anchor::{Anchor, AnchorIndex, AnchorState, StoredIntermediate};
pub use certificate::CertificateFacts;
pub use chain::{ChainDemands, ChainFault, ExpiredChain, Purpose, VerifiedChain};
pub use clock::{Clock, Synchronisation};
pub use id::{
    AuthorityId, BatchId, DeviceId, Fingerprint, Generation, IdError, ServiceId, StationId, TenantId,
};
pub use path::{HeldPath, PathDigest};
pub use pattern::IdPattern;
pub use revocation::{KeptLists, ListFault, RevocationList, WhenStale};
pub use rule::{IdentityFault, IdentityField, IdentityFields, IdentityRule};
pub use timestamp::Timestamp;
