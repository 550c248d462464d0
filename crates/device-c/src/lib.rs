//! The device library for firmware that is not Rust.
//!
//! 1. `boundary`: the C interface, all there is of it; `include/countersign_device.h` is made from it
//! 2. `device`: a service on a thread of its own, and what it tells
//! 3. `fault`: what happened, what to do, and a code
//! 4. `signals`: none is taken on that thread
#![allow(
    clippy::disallowed_methods,
    reason = "a shell: it runs on the device and waits by its clock"
)]

pub mod boundary;
mod device;
mod fault;
mod signals;
