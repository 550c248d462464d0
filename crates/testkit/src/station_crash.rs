//! Kills a factory station while it issues, again and again: what it said must hold, and nothing may be issued twice.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use countersign_authority::IssuingAuthority;
use countersign_factory::station::account::Known;
use countersign_factory::station::journal::Ending;
use countersign_factory::station::{Account, GrantFile, StationCaGrant, Terms};
use countersign_factory::{CertificateRequest, Profile};
use countersign_identity::{BatchId, Fingerprint, StationId, TenantId, Timestamp};
use serde_json::Value;

use crate::crash::Random;

/// Identities per round.
const PER_ROUND: usize = 5;

/// What all rounds together did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StationReport {
    /// Times that the station was killed while it issued.
    pub kills: u64,
    /// Times that it was done before.
    pub finished: u64,
    /// Certificates that were told before a kill.
    pub told: u64,
    /// Certificates in the journal at the end.
    pub issued: u64,
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::from_unix_ms(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Runs `rounds` rounds with the station's `program` in the folder `place`.
///
/// # Errors
/// If anything that was told is lost, was issued twice, or the journal does not account for it.
pub fn run(program: &Path, place: &Path, rounds: u64, seed: u64) -> Result<StationReport> {
    let folder = place.join("station");
    let command = |arguments: &[&str]| {
        let mut command = Command::new(program);
        command.arg("--json").arg("--folder").arg(&folder).args(arguments);
        command
    };
    let done = |arguments: &[&str]| -> Result<Vec<u8>> {
        let output = command(arguments).output()?;
        ensure!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(output.stdout)
    };
    let factory = IssuingAuthority::create_factory(&place.join("factory"), "test", now())?;
    done(&["init"])?;
    let request = CertificateRequest::parse(&std::fs::read(folder.join("station.csr"))?)?;
    let terms = Terms {
        station: StationId::new("line-1")?,
        tenant: TenantId::default_tenant(),
        batch: BatchId::new("b1")?,
        batch_ids: "SN-*".parse().map_err(anyhow::Error::msg)?,
        ids: "SN-*".parse().map_err(anyhow::Error::msg)?,
        quota: rounds * PER_ROUND as u64,
        from: now().minus(Duration::from_secs(60)),
        to: now().plus(Duration::from_secs(24 * 3600)),
        profile: Profile::default(),
    };
    let issued = factory.issue_station(&StationCaGrant::new(&terms, request.key().clone())?, now())?;
    let grant = serde_json::to_vec(&GrantFile {
        format: GrantFile::FORMAT.into(),
        terms: terms.clone(),
        chain: issued.chain_pem(),
        platform_root: "root".into(),
        host: "localhost".into(),
        port: 8883,
    })?;
    let grant_path = place.join("grant.json");
    std::fs::write(&grant_path, &grant)?;
    done(&["install", &grant_path.display().to_string()])?;

    let mut random = Random::new(seed);
    let mut report = StationReport::default();
    let mut told: BTreeMap<String, String> = BTreeMap::new();
    let mut all = Vec::new();
    for round in 0..rounds {
        let ids: Vec<String> = (0..PER_ROUND).map(|n| format!("SN-{round}-{n}")).collect();
        let mut arguments = vec!["issue"];
        arguments.extend(ids.iter().map(String::as_str));
        all.extend(ids.iter().cloned());
        let mut child = command(&arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let lines = child.stdout.take().context("no output")?;
        let seen = Arc::new(AtomicUsize::new(0));
        let counted = seen.clone();
        let reading = std::thread::spawn(move || {
            let read = BufReader::new(lines).lines().map_while(Result::ok);
            read.inspect(|_| {
                counted.fetch_add(1, Ordering::Relaxed);
            })
            .collect::<Vec<_>>()
        });
        // After so many were told, and a moment: whatever the machine's speed, the kill comes in the middle.
        let after = usize::try_from(random.below(PER_ROUND as u64))?;
        let started = Instant::now();
        while seen.load(Ordering::Relaxed) < after && child.try_wait()?.is_none() {
            ensure!(started.elapsed() < Duration::from_secs(60), "it issues nothing");
            std::thread::sleep(Duration::from_micros(100));
        }
        std::thread::sleep(Duration::from_micros(random.below(8_000)));
        if child.try_wait()?.is_some() {
            report.finished += 1;
        } else {
            child.kill()?;
            report.kills += 1;
        }
        child.wait()?;
        let said = reading
            .join()
            .map_err(|_| anyhow::anyhow!("the reader panicked"))?;
        for line in said {
            // The last line may be cut.
            let Ok(handed) = serde_json::from_str::<Value>(&line) else {
                continue;
            };
            let text = |name: &str| handed[name].as_str().unwrap_or_default().to_owned();
            told.insert(text("device"), text("fingerprint"));
        }
    }
    report.told = told.len() as u64;
    // What was cut off is simply repeated.
    let mut arguments = vec!["issue"];
    arguments.extend(all.iter().map(String::as_str));
    done(&arguments)?;
    let known = Known {
        terms: &terms,
        grant: Fingerprint::of(&grant),
        certificate: issued.certificate(),
        now: now(),
    };
    let account = Account::of(&done(&["export"])?, &known, Ending::Sealed)?;
    ensure!(
        account.refused.is_empty() && account.doubtful.is_empty(),
        "seed {seed}: {:?}",
        account.refused
    );
    let accounted: BTreeMap<_, _> = account
        .entries
        .iter()
        .map(|e| (e.device.to_string(), e.facts.fingerprint.to_string()))
        .collect();
    ensure!(
        accounted.len() == account.entries.len() && accounted.len() == all.len(),
        "seed {seed}: {} devices, {} certificates, {} asked for",
        accounted.len(),
        account.entries.len(),
        all.len()
    );
    for (device, fingerprint) in &told {
        ensure!(
            accounted.get(device) == Some(fingerprint),
            "seed {seed}: {device} was told {fingerprint}, the journal says {:?}",
            accounted.get(device)
        );
    }
    report.issued = accounted.len() as u64;
    Ok(report)
}
