//! Stages 2 to 5: the TLS handshake, without I/O.
//!
//! * [`hello`] reads the ClientHello from a copy of the first bytes: server name, ALPN, versions, groups
//! * [`driver`] moves bytes through rustls' buffer-free server connection
//! * [`context`] carries what one connection's callbacks learn, in and out of rustls
//! * [`verifier`] forms the verdict on the client's certificate, and answers it only after possession is proven
//! * [`chains`] remembers whose chain's signatures hold
//! * [`ticket`] makes the tickets by which a session is resumed, and declines what does not hold any more
//! * [`config`] builds the one shared TLS configuration and replaces the server certificate while running

pub mod chains;
pub mod config;
pub mod context;
pub mod driver;
pub mod hello;
pub mod ticket;
pub mod verifier;
