//! Factory to device: keys, requests for certificates, and the grants that alone let an authority mint. No I/O.
//!
//! 1. [`key`]: a P-256 key in software, made here or on the device
//! 2. [`request`]: PKCS#10, from which nothing but the proven public key is taken
//! 3. [`profile`]: what certificates of one kind hold
//! 4. [`grant`]: who may be issued what; [`grant::EnrolmentGrant`] has no other way to exist
//! 5. [`batch`]: a planned number of identities, and what may enter
//! 6. [`est`]: enrolment over secure transport: paths, bodies, answers
//! 7. [`pkcs12`]: key and certificates in one file
//! 8. [`manifest`]: secure elements, as their manufacturer tells of them
//! 9. [`RevocationReason`]: why a certificate ended before its time

pub mod batch;
pub mod est;
pub mod grant;
pub mod key;
pub mod manifest;
pub mod pkcs12;
pub mod profile;
pub mod request;
mod revocation;
pub mod tlv;

pub use batch::{Batch, BatchRefusal, BatchStanding, BatchState, DeviceStart, SigningWindow};
pub use grant::{EnrolmentGrant, ServerGrant};
pub use key::SoftwareKey;
pub use profile::{KeyKind, Profile, ProfileKind};
pub use request::{CertificateRequest, ProvenKey, RequestFault};
pub use revocation::{RevocationReason, Revoked};
