//! A storm of replayed ClientHellos, and what live and honest devices notice of it.
//!
//! Who replays a ClientHello needs no key and does no cryptography; each costs the server a key exchange and a
//! signature, unless it is held off. Some go away at once, some when it is nearly their turn, some stay silent.

use std::collections::VecDeque;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::client::{Attempt, connect, dial, publish};
use crate::pki::{Ca, Identity, Leaf};
use crate::server::Server;

/// Addresses that the storm comes from: 127.0.1.1 and on.
const STORM_SOURCES: u8 = 8;
/// Devices that are in before the storm and publish all the time.
const LIVE: usize = 20;
/// How often each of them publishes.
const PUBLISH_EVERY: Duration = Duration::from_millis(100);
/// How long devices may take to be in after the storm.
const AFTER: Duration = Duration::from_secs(30);

/// What the storm is.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How long it lasts.
    pub length: Duration,
    /// `limits.handshakes_per_s` of the server.
    pub handshakes_per_s: u32,
    /// How many times as many ClientHellos come.
    pub times: u32,
    /// Honest devices, the live ones among them.
    pub honest: usize,
}

/// What was seen.
#[derive(Debug, Clone)]
pub struct Figures {
    /// ClientHellos that were sent a second.
    pub hellos_per_s: f64,
    /// Publishes of live devices, acknowledged.
    pub publishes: usize,
    /// Publishes, or their sessions, that were lost.
    pub lost: usize,
    /// Half of the acknowledgements came within this.
    pub publish_p50: Duration,
    /// 99 of 100 acknowledgements came within this.
    pub publish_p99: Duration,
    /// Resident memory before, in KiB.
    pub memory_before_kib: u64,
    /// The most resident memory seen, in KiB.
    pub memory_peak_kib: u64,
    /// Honest devices that were in when the storm ended.
    pub in_during: usize,
    /// Honest devices that were in within 30 s after.
    pub in_after: usize,
    /// How long after its end the last came in; zero if all were in before.
    pub last_in: Duration,
    /// Devices that had to wait for their handshake, and refusals by code, from the server's metrics.
    pub counted: String,
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

/// Open files are what a storm is made of.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}

/// A storm from one address until `over`.
fn rage(from: IpAddr, server: SocketAddr, hello: &[u8], per_s: f64, over: &AtomicBool, sent: &AtomicU64) {
    let started = Instant::now();
    let mut held: VecDeque<(Instant, TcpStream)> = VecDeque::new();
    let mut count = 0u64;
    while !over.load(Ordering::Acquire) {
        let due = Duration::from_secs_f64(count as f64 / per_s);
        if let Some(early) = due.checked_sub(started.elapsed()) {
            thread::sleep(early);
        }
        while held.front().is_some_and(|(until, _)| *until <= Instant::now()) {
            held.pop_front();
        }
        count += 1;
        let Ok(mut socket) = dial(Some(from), server) else {
            continue;
        };
        // Closed by reset: nothing lingers in either kernel.
        let _ = rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
        if socket.write_all(hello).is_ok() {
            sent.fetch_add(1, Ordering::Relaxed);
        }
        // One in four at once; most stay long enough to be read, and few long enough for their turn.
        if !count.is_multiple_of(4) {
            let stay = Duration::from_millis(if count % 16 == 1 { 1000 } else { 150 });
            held.push_back((Instant::now() + stay, socket));
        }
    }
}

/// The address of the n-th honest device.
fn address(n: usize) -> IpAddr {
    IpAddr::from([127, 0, 2, u8::try_from(n % 250 + 1).expect("below 251")])
}

fn admit_all(server: &Server, ca: &Ca, honest: usize) -> Result<Vec<Identity>> {
    server.register("storm", "default", ca, &json!({ "mode": "registered-only" }))?;
    let identities: Vec<Identity> = (0..honest)
        .map(|n| ca.issue(&Leaf::named(&format!("d{n}")), &[]))
        .collect();
    let devices: Vec<_> = identities
        .iter()
        .enumerate()
        .map(|(n, identity)| json!({ "id": format!("d{n}"), "certificate": identity.pem }))
        .collect();
    server.ask(
        "POST",
        "/tenants/default/devices/import",
        Some(&json!({ "devices": devices })),
    )?;
    Ok(identities)
}

/// Publishes and waits for the acknowledgement, again and again.
fn live(attempt: &Attempt, id: &str, over: &AtomicBool) -> Result<Vec<Duration>> {
    let mut link = attempt.open().context("a live device before the storm")?;
    let packet = publish(5, &format!("devices/{id}/telemetry"), 1, 0);
    let mut took = Vec::new();
    while !over.load(Ordering::Acquire) {
        let started = Instant::now();
        link.send(&packet)?;
        let answer = link.packet()?;
        ensure!(answer.first() == Some(&0x40), "no PUBACK: {answer:x?}");
        took.push(started.elapsed());
        thread::sleep(PUBLISH_EVERY.saturating_sub(started.elapsed()));
    }
    Ok(took)
}

/// Comes with back-off and jitter until it is in, and stays.
fn come(attempt: &Attempt, seed: usize, over: &AtomicBool, arrived: &AtomicUsize, last: &Mutex<Instant>) {
    let mut jitter = seed as u64;
    while !over.load(Ordering::Acquire) {
        if let Ok(link) = attempt.open() {
            arrived.fetch_add(1, Ordering::AcqRel);
            *last.lock().expect("no panics") = Instant::now();
            while !over.load(Ordering::Acquire) {
                thread::sleep(Duration::from_millis(50));
            }
            drop(link);
            return;
        }
        jitter = jitter
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        thread::sleep(Duration::from_millis(500 + (jitter >> 33) % 1500));
    }
}

/// Runs a storm against `program` on an empty data directory.
///
/// # Errors
/// If the server does not come up, or a live device does not get in before the storm.
pub fn run(program: &Path, data: &Path, plan: &Plan) -> Result<Figures> {
    raise_open_files();
    let rate = plan.handshakes_per_s;
    let config = format!(
        "[limits]\nhandshakes_per_s = {rate}\nhandshake_burst = {rate}\n\
         source_connects_per_s = 100000\nsource_connect_burst = 100000\nconnections_per_source_max = 4096\n"
    );
    let server = Server::start(program, data, &config)?;
    let ca = Ca::root("storm root", None);
    let identities = admit_all(&server, &ca, plan.honest)?;
    let attempt = |n: usize| Attempt {
        from: Some(address(n)),
        patience: Duration::from_secs(15),
        ..Attempt::new(server.devices)
            .identity(&identities[n])
            .send(connect(5, &format!("d{n}")))
    };
    let hello = Attempt::new(server.devices).hello();
    let live_count = LIVE.min(plan.honest);
    let (storm_over, all_over) = (AtomicBool::new(false), AtomicBool::new(false));
    let (sent, arrived) = (AtomicU64::new(0), AtomicUsize::new(0));
    let last = Mutex::new(Instant::now());
    let pid = server.pid();
    let figures = thread::scope(|scope| -> Result<Figures> {
        let publishers: Vec<_> = (0..live_count)
            .map(|n| {
                let (attempt, over) = (attempt(n), &storm_over);
                scope.spawn(move || live(&attempt, &format!("d{n}"), over))
            })
            .collect();
        thread::sleep(Duration::from_secs(1));
        let memory_before_kib = resident_kib(pid);
        let started = Instant::now();
        let per_s = f64::from(rate) * f64::from(plan.times) / f64::from(STORM_SOURCES);
        for n in 1..=STORM_SOURCES {
            let (hello, over, sent, to) = (&hello, &storm_over, &sent, server.devices);
            scope.spawn(move || rage(IpAddr::from([127, 0, 1, n]), to, hello, per_s, over, sent));
        }
        for n in live_count..plan.honest {
            let (attempt, over, arrived, last) = (attempt(n), &all_over, &arrived, &last);
            scope.spawn(move || {
                // In the midst of it, not all in one moment.
                thread::sleep(Duration::from_millis(500 + 5 * n as u64));
                come(&attempt, n, over, arrived, last);
            });
        }
        let mut memory_peak_kib = memory_before_kib;
        while started.elapsed() < plan.length {
            thread::sleep(Duration::from_millis(200));
            memory_peak_kib = memory_peak_kib.max(resident_kib(pid));
        }
        storm_over.store(true, Ordering::Release);
        let ended = Instant::now();
        let storm_took = started.elapsed();
        let hellos = sent.load(Ordering::Relaxed);
        let in_during = arrived.load(Ordering::Acquire);
        let coming = plan.honest - live_count;
        while arrived.load(Ordering::Acquire) < coming && ended.elapsed() < AFTER {
            thread::sleep(Duration::from_millis(20));
            memory_peak_kib = memory_peak_kib.max(resident_kib(pid));
        }
        let in_after = arrived.load(Ordering::Acquire);
        let last_in = last.lock().expect("no panics").saturating_duration_since(ended);
        all_over.store(true, Ordering::Release);
        let mut took = Vec::new();
        let mut lost = 0;
        for publisher in publishers {
            match publisher.join() {
                Ok(Ok(durations)) => took.extend(durations),
                Ok(Err(_)) | Err(_) => lost += 1,
            }
        }
        took.sort_unstable();
        let quantile = |q: f64| {
            let at = ((took.len() as f64) * q) as usize;
            took.get(at.min(took.len().saturating_sub(1)))
                .copied()
                .unwrap_or(Duration::MAX)
        };
        Ok(Figures {
            hellos_per_s: hellos as f64 / storm_took.as_secs_f64(),
            publishes: took.len(),
            lost,
            publish_p50: quantile(0.5),
            publish_p99: quantile(0.99),
            memory_before_kib,
            memory_peak_kib,
            in_during,
            in_after,
            last_in,
            counted: counted(&server)?,
        })
    })?;
    Ok(figures)
}

/// The server's own figures of it.
fn counted(server: &Server) -> Result<String> {
    let (_, text) = crate::server::http(server.admin, "GET", "/metrics", None, None)?;
    let wanted = [
        "countersign_connections_accepted_total",
        "countersign_handshakes_queued_total",
        "countersign_exchanges_refused_total",
        "countersign_exchanges_abandoned_total",
        "countersign_refusals_unlogged_total",
        "countersign_sessions_ended_total",
        "countersign_panics_total",
    ];
    let lines: Vec<_> = text
        .lines()
        .filter(|l| wanted.iter().any(|w| l.starts_with(w)))
        .collect();
    Ok(lines.join("\n"))
}

impl Figures {
    /// The lines that are printed.
    pub fn lines(&self, plan: &Plan) -> String {
        let coming = plan.honest - LIVE.min(plan.honest);
        format!(
            "storm: {:.0} ClientHellos/s for {} s, {:.1} x the limit of {} handshakes/s\n\
             live QoS 1 publish: {} acknowledged, {} sessions lost, p50 {:.1} ms, p99 {:.1} ms\n\
             resident memory: {:.1} MiB before, {:.1} MiB at most, grew {:.1} MiB\n\
             honest devices: {} of {coming} in when it ended, {} of {coming} within 30 s after, the last after {:.1} s",
            self.hellos_per_s,
            plan.length.as_secs(),
            self.hellos_per_s / f64::from(plan.handshakes_per_s),
            plan.handshakes_per_s,
            self.publishes,
            self.lost,
            self.publish_p50.as_secs_f64() * 1e3,
            self.publish_p99.as_secs_f64() * 1e3,
            self.memory_before_kib as f64 / 1024.0,
            self.memory_peak_kib as f64 / 1024.0,
            self.memory_grew_kib() as f64 / 1024.0,
            self.in_during,
            self.in_after,
            self.last_in.as_secs_f64(),
        )
    }

    /// How much resident memory grew, in KiB.
    pub fn memory_grew_kib(&self) -> u64 {
        self.memory_peak_kib.saturating_sub(self.memory_before_kib)
    }

    /// Holds the figures against what is promised.
    ///
    /// # Errors
    /// What is not kept.
    pub fn check(&self, plan: &Plan, p99_max: Duration) -> Result<()> {
        let coming = plan.honest - LIVE.min(plan.honest);
        ensure!(self.lost == 0, "{} live sessions were lost", self.lost);
        ensure!(
            self.publish_p99 <= p99_max,
            "publish p99 is {:?}",
            self.publish_p99
        );
        ensure!(
            self.memory_grew_kib() <= 64 * 1024,
            "memory grew by {} KiB",
            self.memory_grew_kib()
        );
        ensure!(
            self.in_after == coming,
            "{} of {coming} honest devices are in",
            self.in_after
        );
        ensure!(
            self.hellos_per_s >= 10.0 * f64::from(plan.handshakes_per_s),
            "the storm had only {:.0} ClientHellos a second",
            self.hellos_per_s
        );
        Ok(())
    }
}
