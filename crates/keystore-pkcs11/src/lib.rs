//! Keys in tokens (HSM, smart card), by PKCS#11. The key is made in the token and never leaves it; what comes out is a
//! public key and signatures.
//!
//! 1. [`uri`]: which module, which token, which key, and where the PIN is (RFC 7512)
//! 2. [`token`]: the module, once per process; login; sessions, pooled and opened anew when they are stale
//! 3. [`key`]: a key that signs, as [`countersign_identity::signed::Signer`]
//! 4. [`bounded`]: the same for whoever must not wait for ever; `deadline`: calls that a token may never answer
//! 5. `encoding`: what PKCS#11 writes differently from X.509: points and ECDSA signatures
//!
//! A wrong PIN is told and never tried a second time: a token counts, and locks.
#![allow(
    clippy::disallowed_methods,
    reason = "a shell: it reads files and talks to devices"
)]

pub mod bounded;
mod deadline;
mod encoding;
mod error;
pub mod key;
pub mod token;
pub mod uri;

pub use bounded::BoundedKey;
pub use error::TokenError;
pub use key::{Protection, TokenKey};
pub use uri::TokenUri;
