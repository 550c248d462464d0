//! Meets the device: handshake, admission, session, data.
//!
//! Reading order follows a connection:
//!
//! 1. `listen`: TCP accept, admission control by source; [`proxy`]: whose connection a balancer brings
//! 2. `connection`: the life of one connection: read, decrypt, act, seal, write
//! 3. [`shaping`]: what a storm meets: limits by source, a fair queue for handshakes, a rate by device
//! 4. [`handshake`]: ClientHello, the buffer-free TLS driver, the verdict on the certificate
//! 5. [`exchange`]: the stages as types that consume each other, and their record
//! 6. [`session`]: register, then check; packets; cut-off
//! 7. [`data`]: the router behind PUBLISH and SUBSCRIBE
//! 8. [`judge`]: what all of these decide by; [`why`] asks it of whoever is not connected
//! 9. [`http`]: HTTP in place of MQTT, through the same stages
#![allow(
    clippy::disallowed_methods,
    reason = "a shell: it reads the clock and passes `now` to the cores"
)]

mod buffers;
mod connection;
pub mod data;
pub mod exchange;
mod gateway;
pub mod handshake;
pub mod http;
pub mod judge;
pub mod limits;
mod listen;
pub mod metrics;
mod network;
pub mod node;
pub mod proxy;
pub mod session;
pub mod shaping;
mod timer;
pub mod why;

pub use countersign_identity::Clock;
pub use gateway::{BindError, Foundation, Gateway, SessionView};
pub use handshake::config::{Protocol, ServerIdentity, ServerIdentityError, TlsMinimum};
pub use handshake::ticket::{Resumption, TicketKeys, TicketSettings};
pub use http::{AdmittedDevice, DeviceHttp, DeviceSession, EnrollingDevice, HttpPublish, NoHttp};
pub use limits::Limits;
pub use metrics::Metrics;
pub use network::{Network, NetworkError};
pub use node::{DeviceListener, GatewayOptions};
pub use session::EndReason;
pub use session::cutoff::{Cutoff, CutoffReport, Touched};
pub use session::entry::Admission;
pub use session::token::{TokenId, TokenRefusal, TokenView, TokenWish};
