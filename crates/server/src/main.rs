//! Countersign: the self-hosted front door of a device fleet.
//!
//! [`cli`] reads the command line, [`client`] reaches the platform, [`service`] does what is asked, [`serve`] runs it.
#![allow(unreachable_pub, reason = "a binary: nothing of it is reachable from outside")]
#![allow(
    clippy::disallowed_methods,
    reason = "a shell: it reads the clock and passes `now` to the cores"
)]

mod api;
mod backup;
mod ca;
mod cli;
mod client;
mod clones;
mod config;
mod diagram;
mod enrol;
mod failure;
mod https;
mod identity_folder;
mod listeners;
mod metrics;
mod pki;
mod places;
mod quickstart;
mod serve;
mod service;
mod token_keys;
mod tokens;

use std::process::ExitCode;

/// Gives memory back after a storm, also while the server is quiet; glibc's allocator never does.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// jemalloc's settings, compiled in: unprefixed, it is also the C library's allocator, which aws-lc uses.
#[allow(non_upper_case_globals, reason = "the symbol that jemalloc reads")]
#[allow(
    unsafe_code,
    reason = "an exported name; jemalloc documents this symbol as a NUL-terminated string"
)]
#[unsafe(export_name = "malloc_conf")]
pub static malloc_conf: &[u8] = b"background_thread:true,dirty_decay_ms:2000,muzzy_decay_ms:0,narenas:2\0";

fn main() -> ExitCode {
    cli::run()
}

#[cfg(test)]
mod docs;
