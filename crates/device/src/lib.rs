//! Runs on the device: its identity, the link to the platform, and what to make of a refusal.
//!
//! 1. [`identity`]: the folder with certificate, key, pinned platform root and where to connect
//! 2. [`link`]: mutual TLS and MQTT: connect, publish, subscribe
//! 3. [`fault`]: every way to fail, what it means and what to do about it
//! 4. [`backoff`]: how long to wait before the next try
#![allow(
    clippy::disallowed_methods,
    reason = "a shell: it runs on the device and reads its clock"
)]

pub mod backoff;
pub mod fault;
pub mod identity;
pub mod link;

pub use backoff::Backoff;
pub use fault::LinkFault;
pub use identity::{DeviceIdentity, IdentityFault};
pub use link::{Link, LinkOptions, Message};
