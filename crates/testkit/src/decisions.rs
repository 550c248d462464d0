//! What a policy decision costs: the first of its fact class, and one that is kept.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use countersign_identity::{AuthorityId, DeviceId, Fingerprint, Generation, TenantId, Timestamp};
use countersign_policy::decide::{DEFAULT_POLICY, TenantPolicy};
use countersign_policy::facts::{ConnectFacts, CredentialKind, TlsFacts};
use countersign_policy::spaces::default_spaces;
use countersign_policy::{CredentialFacts, CredentialState, Custody, DeviceFacts, LifecycleState};

/// Seven beside the three that every tenant starts with; each is asked about connect.
const MORE: &str = r#"
@id("lab-by-day") forbid (principal in Group::"lab", action == Action::"connect", resource)
unless { context.tls.version == "TLSv1.3" };
@id("no-old-boards") forbid (principal, action == Action::"connect", resource)
when { principal has model && principal.model == "board-1" };
@id("recalled") forbid (principal, action == Action::"connect", resource)
when { principal has batch && ["2024-07", "2024-08"].contains(principal.batch) };
@id("attested-only") forbid (principal in Group::"critical", action == Action::"connect", resource)
unless { context.credential.custody == "attested" };
@id("operational-only") forbid (principal, action == Action::"connect", resource)
when { context.credential.kind == "factory" };
@id("hybrid-key-exchange") forbid (principal in Group::"critical", action, resource)
unless { context.tls has group && context.tls.group == "X25519MLKEM768" };
@id("own-authority") forbid (principal, action, resource)
when { context.authority == "retired-ca" };
"#;

/// Microseconds per decision.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// Policies of the tenant.
    pub policies: usize,
    /// The first decision of a fact class: facts made into entities, policies evaluated, the decision kept.
    pub first_us: f64,
    /// A decision that is kept.
    pub kept_us: f64,
}

/// Measures `count` decisions of each kind on this thread.
///
/// # Errors
/// If a decision is not what it should be.
pub fn measure(count: usize) -> Result<Cost> {
    let text = format!("{DEFAULT_POLICY}{MORE}");
    let policy = TenantPolicy::compile(Generation(1), &text, default_spaces())?;
    let authority = AuthorityId::new("device-ca")?;
    let devices: Vec<DeviceFacts> = (0..count)
        .map(|n| {
            Ok(DeviceFacts {
                tenant: TenantId::default_tenant(),
                id: DeviceId::new(&format!("d{n}"))?,
                // A model of its own: a fact class of its own.
                model: Some(format!("m{n}").into()),
                groups: ["field", "north"].map(Arc::from).into(),
                batch: Some("2026-11".into()),
                state: LifecycleState::Active,
                generation: Generation(1),
            })
        })
        .collect::<Result<_>>()?;
    let credentials: Vec<CredentialFacts> = devices
        .iter()
        .map(|d| CredentialFacts {
            fingerprint: Fingerprint::of(d.id.as_str().as_bytes()),
            tenant: d.tenant.clone(),
            device: d.id.clone(),
            kind: CredentialKind::Operational,
            state: CredentialState::Active,
            custody: Custody::Unknown,
            opens_data_sessions: true,
            generation: Generation(1),
        })
        .collect();
    let ask = |n: usize| {
        policy.connect(&ConnectFacts {
            device: &devices[n],
            credential: &credentials[n],
            authority: &authority,
            authority_generation: Generation(1),
            source: IpAddr::V4(Ipv4Addr::LOCALHOST),
            tls: TlsFacts::ASSUMED,
            now: Timestamp::from_unix_s(1_795_000_000),
        })
    };
    let started = Instant::now();
    for n in 0..count {
        ensure!(ask(n).is_ok(), "device {n} is refused");
    }
    let first = started.elapsed();
    ensure!(policy.counts().hits == 0, "a first decision was kept already");
    ask(0)?;
    let (hits, started) = (policy.counts().hits, Instant::now());
    for _ in 0..count {
        ensure!(ask(0).is_ok(), "a kept decision is another");
    }
    let kept = started.elapsed();
    ensure!(
        policy.counts().hits - hits == count as u64,
        "a decision was not kept"
    );
    let each = |d: std::time::Duration| d.as_secs_f64() * 1e6 / count as f64;
    Ok(Cost {
        policies: 10,
        first_us: each(first),
        kept_us: each(kept),
    })
}
