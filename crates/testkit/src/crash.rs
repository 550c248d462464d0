//! Kills a server while devices are provisioned and suspended, again and again: what was acknowledged must be there.

use std::collections::HashSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use countersign_factory::{ProvenKey, SoftwareKey};
use countersign_identity::CertificateFacts;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
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
        // In every fourth round wherever it stands; else once something was acknowledged, however slow the machine.
        let patience = Instant::now() + Duration::from_secs(10);
        let has_begun = || acknowledged.lock().is_ok_and(|a| !a.certificates.is_empty());
        while !round.is_multiple_of(4) && !has_begun() && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(1));
        }
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

/// Devices of one round of [`bulk`].
const BULK_DEVICES: u64 = 80;

/// What all rounds of bulk issue together did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BulkReport {
    /// Times that a run was killed, or the server under it, or both.
    pub kills: u64,
    /// Kills that came before the run had ended.
    pub amid: u64,
    /// Identities that were complete on disk at a kill, and are still the same.
    pub kept: u64,
    /// Identities that were complete in the end.
    pub issued: u64,
}

/// One identity as the index of an output folder has it: device, serial number, fingerprint.
fn index(out: &Path) -> Result<Vec<[String; 3]>> {
    let text = std::fs::read_to_string(out.join("index.csv")).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |n| &text[..n]);
    whole
        .lines()
        .skip(1)
        .map(|line| {
            let mut fields = line.split(',').map(str::to_owned);
            let mut next = || fields.next().context("a line of the index is cut");
            Ok([next()?, next()?, next()?])
        })
        .collect()
}

/// Key and certificate of an identity folder belong together, and the certificate is the one that the index names.
fn check_identity(out: &Path, [device, serial, fingerprint]: &[String; 3]) -> Result<()> {
    let folder = out.join(device);
    let key = std::fs::read(folder.join("device.key")).with_context(|| format!("{device} lost its key"))?;
    let key = PrivatePkcs8KeyDer::from_pem_slice(&key)?;
    let key = ProvenKey::of(&SoftwareKey::from_pkcs8(key.secret_pkcs8_der())?).fingerprint()?;
    let certificate = std::fs::read(folder.join("device.crt"))?;
    let facts = CertificateFacts::parse(&CertificateDer::from_pem_slice(&certificate)?)?;
    ensure!(
        facts.public_key_sha256 == key
            && facts.serial == *serial
            && facts.fingerprint.to_string() == *fingerprint,
        "{device}: key, certificate and index do not belong together"
    );
    Ok(())
}

/// Kills bulk issue at random, `rounds` times, and repeats it: nothing that was acknowledged is lost, nothing is issued
/// twice, and what is missing is made.
///
/// # Errors
/// If any of that does not hold.
pub fn bulk(program: &Path, place: &Path, rounds: u64, seed: u64) -> Result<BulkReport> {
    let mut random = Random(seed | 1);
    let mut report = BulkReport::default();
    let data = place.join("data");
    let mut server = Server::start(program, &data, "")?;
    let mut whole_ms = 0;
    for round in 0..=rounds {
        let batch = format!("B-{round}");
        let out = place.join(&batch);
        let plan = json!({
            "id": batch, "model": "pump", "profile": "factory", "id_pattern": format!("SN-{round}-*"),
            "quota": BULK_DEVICES,
        });
        server.ask("POST", "/tenants/default/batches", Some(&plan))?;
        let issue = |data: &Path| {
            let mut command = Command::new(program);
            command
                .arg("--data")
                .arg(data)
                .args(["factory", "issue", "--batch", &batch, "--chunk", "16"])
                .args(["--format", &format!("SN-{round}-{{:04}}")])
                .args(["--count", &BULK_DEVICES.to_string()])
                .arg("--out")
                .arg(&out)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            command
        };
        // The first is not killed: it tells how long the others take.
        if round == 0 {
            let started = Instant::now();
            ensure!(issue(&data).status()?.success(), "bulk issue fails");
            whole_ms = u64::try_from(started.elapsed().as_millis())?.max(20);
            std::fs::remove_dir_all(&out)?;
            continue;
        }
        let mut run = issue(&data).spawn()?;
        std::thread::sleep(Duration::from_millis(random.below(whole_ms)));
        if run.try_wait()?.is_none() {
            report.amid += 1;
        }
        let victim = random.below(3);
        if victim != 0 {
            server.kill();
        }
        if victim != 1 {
            let _ = run.kill();
        }
        let _ = run.wait();
        report.kills += 1;
        if victim != 0 {
            server = Server::start(program, &data, "")?;
        }
        let acknowledged = index(&out)?;
        let known = |rows: &[[String; 3]]| -> Result<()> {
            for row in rows {
                check_identity(&out, row).with_context(|| format!("round {round}, seed {seed}"))?;
                let device = server.ask("GET", &format!("/tenants/default/devices/{}", row[0]), None)?;
                let credentials = device["credentials"]
                    .as_array()
                    .map(Vec::as_slice)
                    .unwrap_or_default();
                ensure!(
                    credentials.len() == 1 && credentials[0]["fingerprint"] == *row[2],
                    "round {round}, seed {seed}: {} was issued {} times, or its certificate is lost",
                    row[0],
                    credentials.len()
                );
            }
            Ok(())
        };
        known(&acknowledged)?;
        let again = issue(&data).status()?;
        ensure!(
            again.success(),
            "round {round}, seed {seed}: the repeated run fails"
        );
        let complete = index(&out)?;
        ensure!(
            complete.starts_with(&acknowledged),
            "round {round}, seed {seed}: what was acknowledged has changed"
        );
        let devices: HashSet<_> = complete.iter().map(|row| &row[0]).collect();
        ensure!(
            devices.len() as u64 == BULK_DEVICES && complete.len() == devices.len(),
            "round {round}, seed {seed}: {} rows of {} devices",
            complete.len(),
            devices.len()
        );
        known(&complete)?;
        let view = server.ask("GET", &format!("/tenants/default/batches/{batch}"), None)?;
        ensure!(
            view["devices"] == BULK_DEVICES && view["credentials"] == json!({ "issued": BULK_DEVICES }),
            "round {round}, seed {seed}: the batch was miscounted: {view}"
        );
        report.kept += acknowledged.len() as u64;
        report.issued += complete.len() as u64;
        std::fs::remove_dir_all(&out)?;
    }
    let checks = server.ask("GET", "/doctor", None)?;
    let audit = checks
        .as_array()
        .into_iter()
        .flatten()
        .find(|c| c["name"] == "audit");
    ensure!(
        audit.is_some_and(|c| c["ok"] == true),
        "seed {seed}: the audit does not hold"
    );
    server.stop()?;
    Ok(report)
}
