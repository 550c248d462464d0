//! What a storm meets before it costs anything: limits by source, a fair queue for handshakes, a rate by device.
//!
//! In the order in which a connection meets them:
//!
//! 1. `sources`: at accept, connections and their rate by address; nothing was read yet
//! 2. `gate`: after the ClientHello, a slot for a handshake; who must wait waits in the `queue`, where tenants and
//!    then sources take turns; no key exchange and no signature was made yet
//! 3. `attempts`: at the certificate, the rate of one device, before its chain is checked
//!
//! Sessions that are in are never looked at here: a storm is held off at the door, nobody is pushed out of the house.
//! The cores take `now` as an argument; `gate` and `attempts` are the shells around them.

pub(crate) mod attempts;
pub(crate) mod gate;
pub(crate) mod queue;
pub(crate) mod rate;
pub(crate) mod sources;

pub use attempts::{Attempts, Standing};
