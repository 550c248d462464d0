//! How fast sessions are cut off: one of many by a suspension, and all of them by the revocation of their authority. All
//! the time another tenant changes its policies, under which each of its subscriptions is asked about anew.
//!
//! All is real: the release server, TLS, one socket a session, the admin API, receipts on disk. The sessions' other ends
//! are this process: each side may open some 20,000 files.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use countersign_testkit::hold::{self, Held};
use countersign_testkit::pki::{Ca, Identity, Leaf};
use countersign_testkit::server::{Server, http};
use serde_json::{Value, json};

/// From the request to suspend to the end of the session's socket, for 99 of 100.
const ONE_MS_MAX: f64 = 50.0;
/// From the request to revoke to the end of the last socket.
const ALL_S_MAX: f64 = 3.0;
/// Topic spaces of the other tenant; each of its sessions subscribes to each with two qualities of service, the most there may
/// be of subscriptions and of decisions about them.
const SPACES: usize = 32;
/// Policies whose decisions depend on the address, so that none is kept for the next session.
const BUSY: &str = "permit (principal, action, resource) when { principal.state == \"active\" };\n\
    forbid (principal, action == Action::\"subscribe\", resource) when { context.source.isInRange(ip(\"192.0.2.0/24\")) };\n";
/// Devices per import.
const IMPORT: usize = 1000;

#[derive(Args)]
pub(crate) struct Options {
    /// Live idle sessions
    #[arg(long, default_value_t = 18_000)]
    sessions: usize,
    /// Live sessions of the other tenant, with 64 subscriptions each
    #[arg(long, default_value_t = 300)]
    busy: usize,
    /// Suspensions that are measured
    #[arg(long, default_value_t = 200)]
    tries: usize,
    /// The server's program [default: it is built for release]
    #[arg(long)]
    program: Option<std::path::PathBuf>,
    /// Fail beyond the budget
    #[arg(long)]
    check: bool,
}

/// Runs it on a throw-away data directory.
///
/// # Errors
/// If anything is not as it must be, or with `--check` a budget is not held.
pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(
        options.tries > 0 && options.tries <= options.sessions,
        "there are {} sessions for {} tries",
        options.sessions,
        options.tries
    );
    raise_open_files();
    let program = match &options.program {
        Some(program) => program.clone(),
        None => crate::lab::release_binary()?,
    };
    let place = tempfile::tempdir()?;
    let config = format!(
        "[limits]\nconnections_max = {0}\nconnections_per_source_max = {0}\nsource_connects_per_s = 100000\nsource_connect_burst = 100000\n[receipts]\nwait_s = 30\n[log]\nfilter = \"warn\"\n",
        options.sessions + options.busy + 500
    );
    let server = Server::start(&program, place.path(), &config)?;
    let ca = Ca::root("fleet", None);
    server.register("fleet", "default", &ca, &json!({ "mode": "registered-only" }))?;
    let devices = fleet(&server, "default", "d", &ca, options.sessions)?;
    let started = Instant::now();
    let commands = |id: &str| vec![(format!("devices/{id}/commands/#"), 1)];
    let mut held = hold::open_all(server.devices, &devices, 4, commands, |n| {
        if n % 2000 == 0 {
            println!("{n} sessions");
        }
    })?;
    let others = busy_tenant(&server, options.busy)?;
    println!(
        "{} sessions over TLS, MQTT 5, one subscription each, and {} of another tenant, 64 each, opened in {:.1} s",
        held.len(),
        others.len(),
        started.elapsed().as_secs_f64()
    );
    let (one, all) = while_another_changes(&server, others.len(), || {
        let one = suspend_some(&server, &devices, &mut held, options.tries)?;
        Ok((one, revoke_all(&server, &mut held, others.len())?))
    })?;
    let (_, metrics) = http(server.admin, "GET", "/metrics", None, None)?;
    ensure!(
        metrics.contains("countersign_session_sweep_found_total 0\n"),
        "the sweep found sessions that a change had missed"
    );
    ensure!(
        !options.check || (one <= ONE_MS_MAX && all <= ALL_S_MAX),
        "the budgets are {ONE_MS_MAX} ms (p99) and {ALL_S_MAX} s"
    );
    Ok(())
}

/// The other tenant's sessions.
fn busy_tenant(server: &Server, count: usize) -> Result<Vec<Held>> {
    server.ask("POST", "/tenants", Some(&json!({ "id": "busy" })))?;
    let ca = Ca::root("busy", None);
    server.register("busy-fleet", "busy", &ca, &json!({ "mode": "registered-only" }))?;
    change_policies(server, 0)?;
    let devices = fleet(server, "busy", "b", &ca, count)?;
    let filters = |id: &str| {
        (0..SPACES * 2)
            .map(|n| (format!("{id}/{}/x{}", n / 2, n % 2), u8::from(n % 2 == 1)))
            .collect()
    };
    hold::open_all(server.devices, &devices, 4, filters, |_| {})
}

/// The `n`-th policies of the other tenant: they say the same, and are others.
fn change_policies(server: &Server, n: usize) -> Result<Value> {
    let spaces: Vec<Value> = (0..SPACES)
        .map(|n| json!({ "name": format!("s{n}"), "filter": format!("{{id}}/{n}/#") }))
        .collect();
    let body = json!({ "policies": format!("{BUSY}// {n}\n"), "spaces": spaces, "reason": "benchmark" });
    server.ask("PATCH", "/tenants/busy", Some(&body))
}

/// Runs something while the other tenant changes its policies one time after another.
fn while_another_changes<T>(server: &Server, sessions: usize, run: impl FnOnce() -> Result<T>) -> Result<T> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let changing = scope.spawn(|| -> Result<(usize, f64)> {
            let (mut count, mut slowest) = (0, 0.0_f64);
            while !stop.load(Ordering::Relaxed) {
                count += 1;
                let answer = change_policies(server, count)?;
                let node = &answer["receipt"]["nodes"][0];
                ensure!(
                    answer["receipt"]["state"] == "complete" && node["kept"] == sessions,
                    "the other tenant's receipt is not exact: {answer}"
                );
                slowest = slowest.max(node["worst_ms"].as_f64().unwrap_or_default());
            }
            Ok((count, slowest))
        });
        let ran = run();
        stop.store(true, Ordering::Relaxed);
        let changed = changing
            .join()
            .map_err(|_| anyhow::anyhow!("the changes panicked"))?;
        // What failed first says more.
        let ran = ran?;
        let (count, slowest) = changed?;
        println!(
            "meanwhile {count} changes of another tenant's policies, {sessions} sessions with 64 subscriptions asked about by each, the slowest in {slowest:.1} ms"
        );
        Ok(ran)
    })
}

/// So many devices, registered with their certificates.
fn fleet(
    server: &Server,
    tenant: &str,
    prefix: &str,
    ca: &Ca,
    count: usize,
) -> Result<Vec<(String, Identity)>> {
    let devices: Vec<(String, Identity)> = (0..count)
        .map(|n| {
            let id = format!("{prefix}{n:05}");
            let identity = ca.issue(&Leaf::named(&id), &[]);
            (id, identity)
        })
        .collect();
    for part in devices.chunks(IMPORT) {
        let rows: Vec<Value> = part
            .iter()
            .map(|(id, identity)| json!({ "id": id, "certificate": identity.pem }))
            .collect();
        let report = server.ask(
            "POST",
            &format!("/tenants/{tenant}/devices/import"),
            Some(&json!({ "devices": rows })),
        )?;
        ensure!(report["refused"] == json!([]), "{report}");
    }
    Ok(devices)
}

fn move_one(server: &Server, id: &str, name: &str) -> Result<Value> {
    let body = json!({ "move": name, "reason": "benchmark" });
    server.ask(
        "POST",
        &format!("/tenants/default/devices/{id}/moves"),
        Some(&body),
    )
}

/// Suspends devices one after another while all others stay; the p99 in milliseconds.
fn suspend_some(
    server: &Server,
    devices: &[(String, Identity)],
    held: &mut [Held],
    tries: usize,
) -> Result<f64> {
    // Spread over the fleet, not in the order in which they came.
    let step = devices.len() / tries;
    let mut took = Vec::with_capacity(tries);
    for n in (0..tries).map(|n| n * step) {
        let id = &devices[n].0;
        let (asked, closed, answer) = std::thread::scope(|scope| -> Result<_> {
            let session = &mut held[n];
            let watching = scope.spawn(move || session.closed());
            let asked = Instant::now();
            let answer = move_one(server, id, "suspend")?;
            let closed = watching
                .join()
                .map_err(|_| anyhow::anyhow!("the watch panicked"))??;
            Ok((asked, closed, answer))
        })?;
        let node = &answer["receipt"]["nodes"][0];
        ensure!(
            answer["receipt"]["state"] == "complete" && node["ended"] == 1,
            "the receipt is not exact: {answer}"
        );
        took.push((closed - asked).as_secs_f64() * 1e3);
        move_one(server, id, "resume")?;
        held[n] = Held::open(server.devices, &devices[n].1, id)?;
    }
    took.sort_by(f64::total_cmp);
    let at = |q: f64| took[((took.len() - 1) as f64 * q).round() as usize];
    println!(
        "suspend to socket closed, {} live, {} tries: p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
        held.len(),
        tries,
        at(0.5),
        at(0.99),
        at(1.0)
    );
    Ok(at(0.99))
}

/// Revokes the authority of all; seconds until the last socket is closed.
fn revoke_all(server: &Server, held: &mut [Held], others: usize) -> Result<f64> {
    let count = held.len();
    let (asked, closed, answer) = std::thread::scope(|scope| -> Result<_> {
        let watching = scope.spawn(|| hold::all_closed(held, 2));
        let asked = Instant::now();
        let body = json!({ "move": "revoke", "reason": "benchmark" });
        let answer = server.ask("POST", "/authorities/fleet/moves", Some(&body))?;
        let closed = watching
            .join()
            .map_err(|_| anyhow::anyhow!("the watch panicked"))??;
        Ok((asked, closed, answer))
    })?;
    let took = (closed - asked).as_secs_f64();
    let node = &answer["receipt"]["nodes"][0];
    println!(
        "revoke the authority of all {count}: all sockets closed in {took:.2} s; receipt {}: {} ended, the slowest in {} ms",
        answer["receipt"]["state"], node["ended"], node["worst_ms"]
    );
    let id = answer["receipt"]["id"].as_str().context("no receipt")?;
    let kept = server.ask("GET", &format!("/receipts/{id}"), None)?;
    ensure!(
        kept == answer["receipt"] && node["ended"] == count as u64 && node["open"] == 0,
        "the receipt is not exact: {kept}"
    );
    std::thread::sleep(Duration::from_millis(100));
    let left = server.ask("GET", "/status", None)?;
    ensure!(left["sessions"] == others, "sessions are left: {left}");
    Ok(took)
}

/// A session is an open file: takes as many as the system lets this user have.
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
