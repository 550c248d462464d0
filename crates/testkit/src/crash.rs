//! Kills a server while devices are provisioned and suspended, again and again: what was acknowledged must be there.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::server::Server;

/// What all rounds together did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CrashReport {
    /// Times that the server was killed.
    pub kills: u64,
    /// Certificates that were handed out.
    pub provisioned: u64,
    /// Suspensions that were answered.
    pub suspended: u64,
}

/// A small generator with a seed, so that a failure can be repeated.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }
}

#[derive(Default)]
struct Acknowledged {
    /// Device and fingerprint of each certificate that was handed out.
    certificates: Vec<(String, String)>,
    suspended: Vec<String>,
}

/// Runs `rounds` rounds with `program` on `data`.
///
/// # Errors
/// If anything that was acknowledged is lost, or the audit's chain does not hold.
pub fn run(program: &Path, data: &Path, rounds: u64, seed: u64) -> Result<CrashReport> {
    let mut random = Random::new(seed);
    let mut report = CrashReport::default();
    let counter = Arc::new(AtomicU64::new(0));
    for round in 0..rounds {
        let mut server = Server::start(program, data, "")?;
        let (admin, token) = (server.admin, std::fs::read_to_string(data.join("admin.token"))?);
        let acknowledged: Arc<Mutex<Acknowledged>> = Arc::default();
        let over = Arc::new(AtomicBool::new(false));
        let workers: Vec<_> = (0..3)
            .map(|_| {
                let (acknowledged, over, counter, token) = (
                    acknowledged.clone(),
                    over.clone(),
                    counter.clone(),
                    token.trim().to_owned(),
                );
                std::thread::spawn(move || {
                    let ask = |path: &str, body: serde_json::Value| -> Option<serde_json::Value> {
                        let path = format!("/api/v1/tenants/default/devices{path}");
                        let (status, text) =
                            crate::server::http(admin, "POST", &path, Some(&token), Some(&body)).ok()?;
                        if status < 300 {
                            serde_json::from_str(&text).ok()
                        } else {
                            None
                        }
                    };
                    while !over.load(Ordering::Relaxed) {
                        let id = format!("d-{}", counter.fetch_add(1, Ordering::Relaxed));
                        let Some(_) = ask("", json!({ "id": id })) else {
                            return;
                        };
                        let Some(issued) = ask(
                            &format!("/{id}/certificates"),
                            json!({ "request": crate::pki::request(&id) }),
                        ) else {
                            return;
                        };
                        let fingerprint = issued["fingerprint"].as_str().unwrap_or_default().to_owned();
                        if let Ok(mut a) = acknowledged.lock() {
                            a.certificates.push((id.clone(), fingerprint));
                        }
                        let Some(_) = ask(&format!("/{id}/moves"), json!({ "move": "suspend" })) else {
                            return;
                        };
                        if let Ok(mut a) = acknowledged.lock() {
                            a.suspended.push(id);
                        }
                    }
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(20 + random.below(150)));
        server.kill();
        over.store(true, Ordering::Relaxed);
        for worker in workers {
            ensure!(worker.join().is_ok(), "a worker panicked");
        }
        report.kills += 1;
        let server = Server::start(program, data, "")?;
        let acknowledged = acknowledged
            .lock()
            .map_err(|_| anyhow::anyhow!("a worker panicked"))?;
        for (id, fingerprint) in &acknowledged.certificates {
            let device = server.ask("GET", &format!("/tenants/default/devices/{id}"), None)?;
            let known = device["credentials"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|c| c["fingerprint"] == **fingerprint);
            ensure!(
                known,
                "round {round}, seed {seed}: the certificate of {id} was handed out and is lost"
            );
        }
        for id in &acknowledged.suspended {
            let device = server.ask("GET", &format!("/tenants/default/devices/{id}"), None)?;
            let state = &device["device"]["state"];
            ensure!(
                state == "suspended",
                "round {round}, seed {seed}: {id} was suspended and is {state}"
            );
        }
        let checks = server.ask("GET", "/doctor", None)?;
        let audit = checks
            .as_array()
            .into_iter()
            .flatten()
            .find(|c| c["name"] == "audit")
            .cloned();
        ensure!(
            audit.is_some_and(|c| c["ok"] == true),
            "round {round}, seed {seed}: the audit does not hold"
        );
        report.provisioned += acknowledged.certificates.len() as u64;
        report.suspended += acknowledged.suspended.len() as u64;
        server.stop()?;
    }
    Ok(report)
}
