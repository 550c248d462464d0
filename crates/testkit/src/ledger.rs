//! A flood of refusals against the ledger: how much disk it takes, and whether a known device's history is still there.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use countersign_identity::{DeviceId, Fingerprint, TenantId, Timestamp};
use countersign_policy::exchange::{ExchangeSink, ShownCertificate};
use countersign_policy::{
    Denial, DenialCode, ExchangeId, ExchangeRecord, LifecycleState, Outcome, Possession, Stage, StageOutcome,
    StageRecord,
};
use countersign_registry::{Actor, CauseQuery, LedgerLimits, NewDevice, RefusalQuery, Registry};

use crate::crash::Random;

/// Records between two waits for the writer, so that none is left out for its haste.
const PART: u64 = 2_000;
/// Names of issuers that the random certificates have.
const ISSUERS: u64 = 5_000;
const DEVICE: &str = "meter-7";

/// How it went.
#[derive(Debug, Clone)]
pub struct LedgerFlood {
    /// Refusals that were written.
    pub written: u64,
    /// Refusals that were left out, whatever for.
    pub left_out: u64,
    /// Rows of strangers that are left.
    pub strangers: u64,
    /// The most bytes that the database and its log took at any time.
    pub peak_bytes: u64,
    /// The bytes that the database takes at the end.
    pub bytes: u64,
    /// The known device's last refusal and its last admission are still found, and the exchange of before is not missed.
    pub history_kept: bool,
    /// Refusals that the causes add up to.
    pub in_causes: u64,
    /// How many causes there are.
    pub causes: usize,
    /// How long it took.
    pub took: Duration,
}

fn record(n: u64, at: Timestamp, outcome: Outcome, possession: Possession) -> ExchangeRecord {
    let stage = |stage, at_us, outcome| StageRecord {
        stage,
        at_us,
        took_us: 210,
        outcome,
    };
    ExchangeRecord {
        id: ExchangeId::new(at, (n & 0x3f_ffff) as u32),
        started: at,
        source: SocketAddr::from(([192, 0, 2, 7], 40_000)),
        listener: "devices".into(),
        outcome,
        stages: vec![
            stage(Stage::Accept, 0, StageOutcome::Passed),
            stage(Stage::ClientHello, 180, StageOutcome::Passed),
            stage(Stage::ServerFlight, 390, StageOutcome::Passed),
            stage(Stage::ClientCertificate, 1_200, StageOutcome::Failed),
        ],
        tenant: None,
        device: None,
        authority: None,
        certificate: None,
        possession,
        facts: vec![
            ("server_name".into(), "devices.example.com".into()),
            ("tls_version".into(), "TLSv1.3".into()),
            ("group".into(), "X25519".into()),
            ("cipher_suite".into(), "TLS13_AES_128_GCM_SHA256".into()),
        ],
        denial: None,
        policies: vec![],
        generations: None,
    }
}

/// An exchange of the known device.
fn of_device(n: u64, at: Timestamp, denial: Option<DenialCode>) -> Result<ExchangeRecord> {
    let outcome = if denial.is_some() {
        Outcome::Refused
    } else {
        Outcome::Admitted
    };
    Ok(ExchangeRecord {
        tenant: Some(TenantId::default_tenant()),
        device: Some(DeviceId::new(DEVICE)?),
        certificate: Some(shown(u64::MAX, "CN=fleet CA")),
        denial: denial.map(Denial::from),
        ..record(n, at, outcome, Possession::Proven)
    })
}

fn shown(certificate: u64, issuer: &str) -> ShownCertificate {
    ShownCertificate {
        fingerprint: Fingerprint::of(&certificate.to_be_bytes()),
        serial: format!("{:x}", certificate.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 1),
        subject: format!("CN=device {certificate}, O=Example Devices Ltd"),
        issuer: issuer.into(),
        chain_length: 2,
    }
}

fn size(data: &Path) -> u64 {
    let of = |name: &str| std::fs::metadata(data.join(name)).map_or(0, |m| m.len());
    of("ledger.db") + of("ledger.db-wal")
}

/// Floods a new registry in `data` with `refusals` from `certificates` random certificates: half of them with their own
/// key, half without, and some that replay the known device's certificate.
///
/// # Errors
/// If the registry cannot be made or read.
pub fn flood(data: &Path, refusals: u64, certificates: u64, limits: LedgerLimits) -> Result<LedgerFlood> {
    let registry = Registry::create(data, limits)?;
    let (tenant, device) = (TenantId::default_tenant(), DeviceId::new(DEVICE)?);
    registry.add_device(
        Actor("flood".into()),
        tenant.clone(),
        NewDevice {
            id: device.clone(),
            model: None,
            groups: vec![],
            state: LifecycleState::Active,
            authority: None,
        },
    )?;
    let ledger = registry.ledger();
    let start = Timestamp::from_unix_s(1_795_000_000);
    let refused = of_device(0, start, Some(DenialCode::DeviceSuspended))?;
    let admitted = of_device(1, start.plus(Duration::from_millis(1)), None)?;
    let ids = [admitted.id, refused.id];
    registry.record(refused);
    registry.record(admitted);
    let mut random = Random::new(4);
    let mut peak_bytes = 0;
    let began = Instant::now();
    for n in 0..refusals {
        let certificate = random.below(certificates);
        let issuer = format!("CN=maker {} CA, O=Example Devices Ltd", certificate % ISSUERS);
        let at = start.plus(Duration::from_millis(2 + n));
        let (possession, certificate, device) = match n % 10 {
            // Anyone can show it; nobody but the device can prove it.
            0 => (
                Possession::Unproven,
                shown(u64::MAX, "CN=fleet CA"),
                Some(device.clone()),
            ),
            1..=5 => (Possession::Proven, shown(certificate, &issuer), None),
            _ => (Possession::Unproven, shown(certificate, &issuer), None),
        };
        // Networks of their own: a source is a /64.
        let source = Ipv6Addr::from((0x2001_0db8 << 96) | (u128::from(host(n)) << 64) | 1);
        registry.record(ExchangeRecord {
            source: SocketAddr::new(IpAddr::V6(source), 40_000),
            device,
            certificate: Some(certificate),
            denial: Some(Denial::new(
                DenialCode::UnknownCa,
                format!("the issuer {issuer:?} is not registered"),
            )),
            ..record(n + 2, at, Outcome::Refused, possession)
        });
        if n % PART == 0 {
            ledger.flush();
            peak_bytes = peak_bytes.max(size(data));
        }
    }
    ledger.flush();
    peak_bytes = peak_bytes.max(size(data));
    let took = began.elapsed();
    let asked = RefusalQuery {
        device: Some(device.clone()),
        limit: 10,
        ..RefusalQuery::default()
    };
    let refusals_found = ledger.refusals(&asked)?.exchanges;
    let history = ledger.of_device(Some(&tenant), &device, 10)?;
    let causes = ledger.causes(&CauseQuery {
        limit: usize::MAX,
        ..CauseQuery::default()
    })?;
    let report = LedgerFlood {
        written: ledger.written(),
        left_out: ledger.dropped() + ledger.limited() + ledger.crowded(),
        strangers: ledger.rows().get("stranger").copied().context("no such class")?,
        peak_bytes,
        bytes: 0,
        history_kept: refusals_found.first().map(|e| e.id) == Some(ids[1])
            && history.iter().map(|e| e.id).eq(ids),
        in_causes: causes.groups.iter().map(|g| g.exchanges).sum(),
        causes: causes.groups.len(),
        took,
    };
    // The last one to use it copies the log into the database.
    drop(registry);
    Ok(LedgerFlood {
        bytes: size(data),
        ..report
    })
}

/// Many sources, so that the limit by source does not do the work.
fn host(n: u64) -> u64 {
    n % 50_000
}

/// The limits that a configuration has by default.
pub fn limits() -> LedgerLimits {
    LedgerLimits::default()
}
