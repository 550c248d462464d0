//! One connection attempt as a chain of types that consume each other, and its record.
//!
//! ```text
//! Accepted ─▶ Handshaking ─▶ Handshaken ─▶ Identified ─▶ Authorised ─▶ Greeted ─▶ Session
//!  accept,     server-flight,  chain and     device and    permit of      CONNECT    indexed, checked
//!  hello       certificate     possession    credential    the policies   checked    again, CONNACK
//! ```
//!
//! Each arrow is one method that takes the last stage by value, and is the only way to make the next. There is no way
//! to a session, and so to data, but along this chain; each arrow may end in [`Refused`] instead.

mod refused;
mod stages;
mod trace;

pub use refused::{Abandoned, Refused};
pub use stages::{Accepted, Authorised, Greeted, Handshaken, Handshaking, Identified};
pub(crate) use stages::{Greeting, Identification};
pub use trace::Trace;
