//! The only code that can mint: profile, prepare, lint, sign, verify.
//!
//! There are two [`Hierarchy`]s that share nothing: `platform` issues what devices trust, `devices` issues what the
//! platform trusts. So no holder of a device-side CA can pose as the platform.
//!
//! 1. [`hierarchy`]: root and issuing CA of one hierarchy, made once, kept in a folder
//!    [`install`]: the certificate that an external root issued
//! 2. [`keys`]: where their keys are held: a file, an encrypted file, a token, another process
//! 3. [`profile`]: what each kind of certificate holds
//! 4. [`mint`]: from a grant to a certificate: prepare → lint → sign → parse and verify again
//! 5. [`status`]: revocation lists and OCSP answers, for others
//! 6. [`time`]: signed time for devices that have none
//! 7. [`folder`]: files with keys: owner-only, written whole or not at all

pub mod folder;
pub mod hierarchy;
pub mod install;
pub mod keys;
pub mod mint;
pub mod profile;
pub mod status;
pub mod time;

pub use folder::FolderError;
pub use hierarchy::{Hierarchy, HierarchyError, IssuingAuthority};
pub use install::Installable;
pub use keys::{KeyStore, KeyStoreError, NoTokens, TokenKeys};
pub use mint::{Issued, MintError, possession_proof};
