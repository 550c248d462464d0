//! Factory to device: keys, requests for certificates, and the grants that alone let an authority mint. No I/O.
//!
//! 1. [`key`]: a P-256 key in software, made here or on the device; [`encrypted_key`]: one that a passphrase opens
//! 2. [`request`]: PKCS#10, from which nothing but the proven public key is taken
//! 3. [`renewal_proof`]: that the holder of an old key asks for a certificate for a new one
//! 4. [`profile`]: what certificates of one kind hold
//! 5. [`grant`]: who may be issued what; [`grant::EnrolmentGrant`] has no other way to exist
//! 6. [`batch`]: a planned number of identities, and what may enter
//! 7. [`attest`]: TPM attestation: that a key was made in a TPM and cannot leave it
//! 8. [`station`]: offline factory stations: terms, journal, account
//! 9. [`est`]: enrolment over secure transport: paths, bodies, answers
//! 10. [`pkcs12`]: key and certificates in one file
//! 11. [`manifest`]: secure elements, as their manufacturer tells of them
//! 12. [`confirmation`]: the last step on the line; [`destruction`]: the end of a device, by its own word
//! 13. [`RevocationReason`]: why a certificate ended before its time

pub mod attest;
pub mod batch;
pub mod confirmation;
pub mod destruction;
pub mod encrypted_key;
pub mod est;
pub mod grant;
pub mod key;
pub mod manifest;
pub mod pkcs12;
pub mod profile;
pub mod renewal_proof;
pub mod request;
mod revocation;
pub mod station;
pub mod tlv;

pub use batch::{Batch, BatchRefusal, BatchStanding, BatchState, DeviceStart, SigningWindow};
pub use grant::{EnrolmentGrant, ServerGrant};
pub use key::SoftwareKey;
pub use profile::{
    AlternativeName, CERTIFICATES_PER_DEVICE_MAX, ExtraExtension, KeyKind, NameFault, Names, Profile,
    ProfileKind, ProfileStep, Replaced, SanTemplate,
};
pub use request::{CertificateRequest, ProvenKey, RequestFault};
pub use revocation::{RevocationReason, Revoked};
