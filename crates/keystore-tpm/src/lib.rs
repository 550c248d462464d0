//! Keys in a TPM 2.0, for a device's TLS key and its requests for certificates. The key is made in the TPM and never
//! leaves it; what comes out is a public key, signatures, and a file that is of use only to that very TPM.
//!
//! 1. [`address`]: which TPM
//! 2. [`pcrs`]: the state of the device that a key may be bound to
//! 3. [`key_file`]: the file `TSS2 PRIVATE KEY`, as tpm2-openssl and the OpenSSL engines read and write it
//! 4. `encoding`: what a TPM writes differently from X.509: points and ECDSA signatures
//! 5. `tpm`: one turn at a TPM at a time; parents; loading, and leaving nothing behind
//! 6. `state`: what the PCRs hold, against what a key is bound to
//! 7. `key`: a key that signs, as [`countersign_identity::signed::Signer`]
//! 8. `nv`: what the TPM keeps of data
//! 9. `endorsement`: the key and the certificates by which a TPM is known to be one
//! 10. `attestation`: what the TPM says of itself and of its keys
//!
//! All from `tpm` on need libtss2 and are there with the feature `tpm` only. Without it, a program can still tell such a
//! file from others ([`is_tpm_key`]) and say that it was built without.
//!
//! No password is ever sent. So a TPM is not locked by wrong ones, and whoever may use the TPM may use its keys, on that
//! device; if a key is bound to PCRs, in that state of the device. What this protects from is the key being carried away, and,
//! if it is bound, used by what was started in place of the device's own system.
//!
//! libtss2 writes to standard error when a call fails, beside what is returned here. `TSS2_LOG=all+NONE` in the
//! environment of the process silences it.
#![allow(
    clippy::disallowed_methods,
    reason = "a shell: it talks to devices, and waits for a TPM that is busy"
)]
#![cfg_attr(
    not(feature = "tpm"),
    allow(
        dead_code,
        reason = "what reads and writes files is tested without libtss2 too"
    )
)]

pub mod address;
#[cfg(feature = "tpm")]
pub mod attestation;
mod encoding;
#[cfg(feature = "tpm")]
mod endorsement;
mod error;
#[cfg(feature = "tpm")]
mod key;
pub mod key_file;
#[cfg(feature = "tpm")]
pub mod nv;
pub mod pcrs;
#[cfg(feature = "tpm")]
mod state;
#[cfg(feature = "tpm")]
mod tpm;

pub use address::TpmAddress;
#[cfg(feature = "tpm")]
pub use attestation::{Attestation, Certified};
pub use error::TpmError;
#[cfg(feature = "tpm")]
pub use key::{Protection, TpmKey};
pub use key_file::{is_tpm_key, pcrs_of};
pub use pcrs::Pcrs;
