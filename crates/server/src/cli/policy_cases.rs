//! `countersign policy test`: cases in a file, decided by the code that decides about connections.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use countersign_gateway::judge;
use countersign_identity::{AuthorityId, DeviceId, Fingerprint, Generation, TenantId, Timestamp};
use countersign_mqtt::QoS;
use countersign_mqtt::topic::{TopicFilter, TopicName};
use countersign_policy::clones::{CloneAction, QUARANTINE_CLONE, Suspicion};
use countersign_policy::decide::{Action, AdmissionPermit, DEFAULT_POLICY, TenantPolicy};
use countersign_policy::facts::{ConnectFacts, CredentialKind, TlsFacts};
use countersign_policy::spaces::default_spaces;
use countersign_policy::{
    CredentialFacts, CredentialState, Custody, Denial, DenialCode, DeviceFacts, LifecycleState,
};
use serde::Deserialize;
use serde_json::json;

use super::commands::read;
use super::output::Output;
use super::policy::read_spaces;
use crate::failure::Failure;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Policies, beside this file; the built-in ones if none are named.
    policies: Option<std::path::PathBuf>,
    /// Topic spaces, beside this file; the built-in ones if none are named.
    spaces: Option<std::path::PathBuf>,
    #[serde(default)]
    case: Vec<Case>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    #[serde(default)]
    action: CaseAction,
    expect: Expected,
    /// A policy that must be among those that determine it.
    policy: Option<String>,
    #[serde(default)]
    device: Device,
    #[serde(default)]
    credential: Credential,
    authority: Option<AuthorityId>,
    #[serde(default)]
    tls: Tls,
    source: Option<IpAddr>,
    /// RFC 3339; the first moment of 2026 if it is not given, so that a case never depends on when it is run.
    now: Option<String>,
    topic: Option<String>,
    #[serde(default)]
    qos: u8,
    #[serde(default)]
    retain: bool,
    clone: Option<CloneEvidence>,
}

impl Case {
    /// A case that could never come about says nothing of the policies, however it comes out.
    fn check(&self) -> Result<(), String> {
        let known = |name: &Option<String>, fits: &dyn Fn(&str) -> bool| {
            name.as_ref()
                .is_none_or(|n| fits(n) && TlsFacts::recorded(n, None, n, false).version == n)
        };
        let is_version = |n: &str| n.starts_with("TLSv");
        let is_suite = |n: &str| n.starts_with("TLS") && !is_version(n);
        if !known(&self.tls.version, &is_version) {
            return Err("its tls.version is none of ours; hint: write TLSv1.3 or TLSv1.2".into());
        }
        if !known(&self.tls.cipher_suite, &is_suite) {
            return Err(
                "its tls.cipher_suite is none of ours; hint: countersign explain names those of devices"
                    .into(),
            );
        }
        if !known(&self.tls.group, &|n| !n.starts_with("TLS")) {
            return Err(
                "its tls.group is none of ours; hint: write X25519MLKEM768, X25519 or secp256r1".into(),
            );
        }
        if self.qos > 2 {
            return Err(format!("there is no QoS {}; hint: write 0, 1 or 2", self.qos));
        }
        let of_topic = |e: countersign_mqtt::DecodeError| {
            format!(
                "its topic cannot be: {e}; hint: a topic to publish to has no + and no #, and # is last in a filter"
            )
        };
        match (self.action == CaseAction::QuarantineClone, &self.clone) {
            (true, None) => {
                return Err("it has no clone; hint: write clone = { score = 3000, answered = 3 }".into());
            }
            (false, Some(_)) => {
                return Err(
                    "only quarantine-clone is about a clone; hint: write action = \"quarantine-clone\""
                        .into(),
                );
            }
            (true, Some(clone)) if clone.score < SUSPECTED_MIN => {
                return Err(format!(
                    "at a score of {} nobody is suspected; hint: scores are in thousandths",
                    clone.score
                ));
            }
            _ => {}
        }
        match (self.action, self.topic.as_deref()) {
            (CaseAction::Connect | CaseAction::QuarantineClone, None) => Ok(()),
            (CaseAction::Connect | CaseAction::QuarantineClone, Some(_)) => Err(format!(
                "{} is about no topic; hint: write action = \"publish\" or \"subscribe\"",
                self.action.name()
            )),
            (_, None) => Err("it has no topic; hint: publish and subscribe are about one".into()),
            (CaseAction::Publish, Some(topic)) => TopicName::new(topic).map(|_| ()).map_err(of_topic),
            (CaseAction::Subscribe, Some(topic)) => TopicFilter::new(topic).map(|_| ()).map_err(of_topic),
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum CaseAction {
    #[default]
    Connect,
    Publish,
    Subscribe,
    QuarantineClone,
}

impl CaseAction {
    const fn name(self) -> &'static str {
        match self {
            Self::Connect => Action::Connect.name(),
            Self::Publish => Action::Publish.name(),
            Self::Subscribe => Action::Subscribe.name(),
            Self::QuarantineClone => QUARANTINE_CLONE,
        }
    }
}

/// The least score, in thousandths, at which one can be suspected: `clones.score` is 2 or more.
const SUSPECTED_MIN: u32 = 2000;

/// What is known of two that seem to hold the device's key.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CloneEvidence {
    /// In thousandths.
    score: u32,
    #[serde(default)]
    takeovers: u32,
    #[serde(default)]
    answered: u32,
    #[serde(default)]
    returned: u32,
    #[serde(default)]
    together: u32,
    #[serde(default)]
    sources: Vec<IpAddr>,
}

impl CloneEvidence {
    fn suspicion(&self, now: Timestamp) -> Suspicion {
        Suspicion {
            score: self.score,
            suspected: true,
            sources: self.sources.clone(),
            takeovers: self.takeovers,
            answered: self.answered,
            returned: self.returned,
            together: self.together,
            first: now,
            last: now,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Expected {
    Permit,
    Deny,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Device {
    id: Option<DeviceId>,
    tenant: Option<TenantId>,
    model: Option<String>,
    groups: Vec<String>,
    batch: Option<String>,
    state: Option<LifecycleState>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Credential {
    kind: Option<CredentialKind>,
    custody: Option<Custody>,
    state: Option<CredentialState>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Tls {
    version: Option<String>,
    group: Option<String>,
    cipher_suite: Option<String>,
    resumed: bool,
}

/// 2026-01-01T00:00:00Z.
const NOW_S: i64 = 1_767_225_600;

/// Runs all cases, and says of each how it came out.
pub(super) fn run(
    cases: &Path,
    policies: Option<&Path>,
    spaces: Option<&Path>,
    out: Output,
) -> Result<(), Failure> {
    let file: File =
        toml::from_str(&read(cases)?).map_err(|e| Failure::invalid(format!("{}: {e}", cases.display())))?;
    let beside = |named: &Option<std::path::PathBuf>| {
        let folder = cases.parent().unwrap_or(Path::new("."));
        named.as_ref().map(|p| folder.join(p))
    };
    let policies = policies.map(Path::to_owned).or_else(|| beside(&file.policies));
    let spaces = spaces.map(Path::to_owned).or_else(|| beside(&file.spaces));
    let text = match &policies {
        Some(path) => read(path)?,
        None => DEFAULT_POLICY.to_owned(),
    };
    let spaces = match &spaces {
        Some(path) => read_spaces(path)?,
        None => default_spaces(),
    };
    if file.case.is_empty() {
        return Err(Failure::invalid(format!(
            "{} has no cases; hint: write [[case]] with name, expect and the facts",
            cases.display()
        )));
    }
    let policy = TenantPolicy::compile(Generation(1), &text, spaces)
        .map(Arc::new)
        .map_err(|e| Failure::invalid(e.to_string()))?;
    for case in &file.case {
        case.check()
            .map_err(|what| Failure::invalid(format!("case {:?}: {what}", case.name)))?;
    }
    let mut outcomes = Vec::new();
    for case in &file.case {
        let (got, by, detail) = match decide(case, &policy)? {
            Ok(by) => (Expected::Permit, by, String::new()),
            Err(refused) => (Expected::Deny, refused.policies, refused.detail),
        };
        let named = case.policy.as_ref().is_none_or(|p| by.contains(p));
        outcomes.push(json!({
            "name": case.name,
            "passed": got == case.expect && named,
            "expected": if case.expect == Expected::Permit { "permit" } else { "deny" },
            "decision": if got == Expected::Permit { "permit" } else { "deny" },
            "expected_policy": case.policy,
            "policies": by,
            "detail": detail,
        }));
    }
    let failed = outcomes.iter().filter(|o| o["passed"] != true).count();
    let answer = json!({ "cases": outcomes, "failed": failed });
    out.say(&answer, |_| {
        let lines: Vec<String> = outcomes.iter().map(line).collect();
        format!(
            "{}\n{} case(s), {failed} failed",
            lines.join("\n"),
            outcomes.len()
        )
    })?;
    if failed == 0 {
        return Ok(());
    }
    Err(Failure::refused(format!(
        "{failed} of {} cases failed",
        outcomes.len()
    )))
}

fn line(outcome: &serde_json::Value) -> String {
    let by = super::output::cell(&outcome["policies"]);
    let name = outcome["name"].as_str().unwrap_or_default();
    let decision = outcome["decision"].as_str().unwrap_or_default();
    if outcome["passed"] == true {
        return format!("ok      {name}: {decision} by {by}");
    }
    let wanted = match outcome["expected_policy"].as_str() {
        Some(policy) => format!("{} by {policy}", super::output::cell(&outcome["expected"])),
        None => super::output::cell(&outcome["expected"]),
    };
    let detail = outcome["detail"].as_str().unwrap_or_default();
    format!("FAILED  {name}: expected {wanted}, got {decision} by {by}\n        {detail}")
}

/// Why it is not permitted.
struct Refused {
    policies: Vec<String>,
    detail: String,
}

impl From<Denial> for Refused {
    fn from(denial: Denial) -> Self {
        Self {
            detail: denial.to_string(),
            policies: denial.policies,
        }
    }
}

/// The policies that permit it, or why it is not.
fn decide(case: &Case, policy: &Arc<TenantPolicy>) -> Result<Result<Vec<String>, Refused>, Failure> {
    let wrong = |what: String| Failure::invalid(format!("case {:?}: {what}", case.name));
    let id = match &case.device.id {
        Some(id) => id.clone(),
        None => DeviceId::new("device").map_err(|e| wrong(e.to_string()))?,
    };
    let tenant = case
        .device
        .tenant
        .clone()
        .unwrap_or_else(TenantId::default_tenant);
    let mut groups: Vec<Arc<str>> = case.device.groups.iter().map(|g| g.as_str().into()).collect();
    groups.sort_unstable();
    groups.dedup();
    let device = Arc::new(DeviceFacts {
        tenant: tenant.clone(),
        id: id.clone(),
        model: case.device.model.as_deref().map(Into::into),
        groups: groups.into(),
        batch: case.device.batch.as_deref().map(Into::into),
        state: case.device.state.unwrap_or(LifecycleState::Active),
        generation: Generation(1),
    });
    let credential = CredentialFacts {
        fingerprint: Fingerprint::of(case.name.as_bytes()),
        tenant,
        device: id,
        kind: case.credential.kind.unwrap_or(CredentialKind::Operational),
        state: case.credential.state.unwrap_or(CredentialState::Active),
        custody: case.credential.custody.unwrap_or(Custody::Unknown),
        opens_data_sessions: true,
        generation: Generation(1),
    };
    let authority = match &case.authority {
        Some(authority) => authority.clone(),
        None => AuthorityId::new("authority").map_err(|e| wrong(e.to_string()))?,
    };
    let now = match &case.now {
        Some(text) => Timestamp::parse_rfc3339(text).ok_or_else(|| {
            wrong(format!(
                "{text:?} is no time; hint: write it as 2026-11-23T20:00:00Z"
            ))
        })?,
        None => Timestamp::from_unix_s(NOW_S),
    };
    let assumed = TlsFacts::ASSUMED;
    let tls = TlsFacts::recorded(
        case.tls.version.as_deref().unwrap_or(assumed.version),
        case.tls.group.as_deref().or(assumed.group),
        case.tls.cipher_suite.as_deref().unwrap_or(assumed.cipher_suite),
        case.tls.resumed,
    );
    let source = case.source.unwrap_or(IpAddr::from([127, 0, 0, 1]));
    let connected = policy.connect(&ConnectFacts {
        device: &device,
        credential: &credential,
        authority: &authority,
        authority_generation: Generation(1),
        source,
        tls,
        now,
    });
    let names = |policies: &[Arc<str>]| policies.iter().map(ToString::to_string).collect();
    let permit = match connected {
        Ok(permit) => permit,
        Err(denial) => return Ok(Err(denial.into())),
    };
    if let Some(evidence) = &case.clone {
        let verdict = policy.on_clone(&permit, &device, &evidence.suspicion(now), now);
        return Ok(match verdict.action {
            CloneAction::Quarantine => Ok(verdict.policies),
            CloneAction::Alert => Err(Refused {
                policies: verdict.policies,
                detail: verdict.failure.unwrap_or_else(|| {
                    format!("an alert alone: no policy that names {QUARANTINE_CLONE} has it quarantined")
                }),
            }),
        });
    }
    if case.action == CaseAction::Connect {
        return Ok(Ok(names(permit.policies())));
    }
    let topic = case
        .topic
        .as_deref()
        .ok_or_else(|| wrong("it has no topic; hint: publish and subscribe are about one".into()))?;
    Ok(data(case, topic, permit, device, policy, now).map_err(Refused::from))
}

fn data(
    case: &Case,
    topic: &str,
    permit: AdmissionPermit,
    device: Arc<DeviceFacts>,
    policy: &Arc<TenantPolicy>,
    now: Timestamp,
) -> Result<Vec<String>, Denial> {
    let invalid = |e: countersign_mqtt::DecodeError| Denial::new(DenialCode::TopicInvalid, e.to_string());
    let admission = judge::admission(permit, device, policy.clone())?;
    let qos = match case.qos {
        0 => QoS::AtMostOnce,
        1 => QoS::AtLeastOnce,
        _ => QoS::ExactlyOnce,
    };
    let names = |policies: &[Arc<str>]| policies.iter().map(ToString::to_string).collect();
    if case.action == CaseAction::Publish {
        let name = TopicName::new(topic).map_err(invalid)?;
        return admission
            .publish(name, qos, case.retain, now)
            .map(|p| names(p.policies()));
    }
    let filter = TopicFilter::new(topic).map_err(invalid)?;
    admission
        .subscribe(topic, filter, qos, now)
        .map(|p| names(p.policies()))
}
