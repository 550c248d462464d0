//! Runs on the device: its identity, the link to the platform, and what to make of a refusal.
//!
//! 1. [`identity`]: certificate and key, pinned platform roots, where to connect
//! 2. [`folder`]: how they are kept, and how a certificate is replaced so that a power cut never leaves none
//! 3. [`keys`]: in a file, or in a token that they never leave
//! 4. [`clock`]: the time on a device that may have none
//! 5. `trust`: whom the device believes to be the platform
//! 6. [`link`]: mutual TLS and MQTT: connect, publish, subscribe
//! 7. [`est`]: enrolment over HTTPS
//! 8. [`renewal`]: the first certificate, the next one, and its first connection
//! 9. `attest`: its TPM says how it holds a key
//!    `beside`: its certificates beside it
//! 10. [`mod@line`]: on the factory line; [`ending`]: the end of the device
//! 11. [`queue`]: messages that wait for the platform
//! 12. [`service`]: all of it, running by itself
//! 13. [`fault`]: every way to fail, what it means and what to do about it
//! 14. [`backoff`]: how long to wait before the next try
//! 15. `aside`: where the key is asked, so that nothing else waits for it
//!
//! # A device as a program
//!
//! Two whole ones are in `examples/`: `tpm_device` enrols by its TPM and publishes; `gateway` is many devices at once. What
//! they have in common:
//!
//! ```no_run
//! # use std::{path::Path, sync::Arc};
//! use countersign_device::{
//!     EnrolFault, IdentityFolder, LinkOptions, Listener, QueueBounds, RenewalWindow, Service,
//! };
//! # use tokio::sync::Notify;
//!
//! # async fn run(path: &Path, stop: Arc<Notify>, listener: &mut dyn Listener) -> Result<(), EnrolFault> {
//! // One service at a time on a folder: held until the end.
//! let Some(_alone) = IdentityFolder::new(path).try_running()? else {
//!     return Err(EnrolFault::Usage("a service runs on this folder already".into()));
//! };
//! let window = Some(RenewalWindow::default());
//! let service = Service::open(path, LinkOptions::default(), window, QueueBounds::default())?;
//! let outbox = service.outbox();
//! let topic = format!("devices/{}/telemetry", service.device());
//! tokio::spawn(async move { outbox.hand_in(&topic, b"21.5").await });
//! // Connects, delivers, renews, and begins anew after each fault, until it is stopped.
//! service.run(stop, listener).await
//! # }
//! ```
#![allow(
    clippy::disallowed_methods,
    reason = "a shell: it runs on the device and reads its clock"
)]

mod aside;
#[cfg(feature = "tpm")]
mod attest;
pub mod backoff;
mod beside;
pub mod clock;
mod disk;
pub mod ending;
pub mod est;
pub mod fault;
pub mod folder;
pub mod identity;
pub mod keys;
pub mod line;
pub mod link;
pub mod queue;
pub mod renewal;
pub mod service;
mod trust;

pub use countersign_identity::{DeviceId, TenantId};

pub use backoff::Backoff;
pub use clock::DeviceClock;
pub use est::{EstServer, Secret};
pub use fault::{EnrolFault, LinkFault};
pub use folder::{IdentityFolder, KeyReuse, Running};
pub use identity::{DeviceIdentity, DeviceProfile, IdentityFault};
pub use keys::{DeviceKey, KeyStore, KeyStoreFault};
pub use link::{Link, LinkOptions, Message};
pub use queue::{Queue, QueueBounds, QueueFault};
pub use renewal::{Enrolment, Keeper, Proof, RenewalWindow, enrol};
pub use service::{Listener, Outbox, Service, State, Status};
