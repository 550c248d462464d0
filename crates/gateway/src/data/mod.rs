//! Stage 10 and on: where messages go once they are permitted.
//!
//! [`embedded`] is the link for one machine: a router inside the process, no more than the protocol asks.

pub mod embedded;
