//! Changes of policies: simulated first, refused if they would lock out (nearly) everybody, kept as versions.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use countersign_gateway::judge::{self, Circumstances, Proposed};
use countersign_identity::{AuthorityId, DeviceId, Fingerprint, Generation, TenantId, Timestamp};
use countersign_policy::decide::TenantPolicy;
use countersign_policy::facts::TlsFacts;
use countersign_policy::{ClientIdMode, DenialCode, ExchangeRecord, FactSource, TopicSpace};
use countersign_registry::{Actor, PolicyChange, PolicyVersion, check_policies};
use serde::{Deserialize, Serialize};

use super::{Deed, Service, Told};
use crate::failure::Failure;

/// Devices that are named per group.
const EXAMPLES_MAX: usize = 10;
/// Exchanges that are read from the ledger at once.
const PAGE: u32 = 1000;

/// A change of policies as it is asked for.
#[derive(Debug, Clone, Default)]
pub struct PolicyDraft {
    /// New policies; `None` keeps them.
    pub policies: Option<String>,
    /// New topic spaces; `None` keeps them.
    pub spaces: Option<Vec<TopicSpace>>,
    /// Why.
    pub reason: String,
    /// It may lock out as many devices as it does.
    pub accept_lock_out: bool,
    /// The version that it takes up again.
    pub reverts: Option<u64>,
}

/// How the connect decisions of some cases change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shifts {
    /// Admitted before and after.
    pub stay_in: u64,
    /// Refused before and after.
    pub stay_out: u64,
    /// Admitted before, refused after.
    pub locked_out: u64,
    /// Refused before, admitted after.
    pub let_in: u64,
    /// Those that change, by what determines it, the largest groups first.
    pub groups: Vec<ShiftGroup>,
}

/// Cases that change in the same way for the same reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShiftGroup {
    /// `locked-out` or `let-in`.
    pub shift: String,
    /// The denial after the change; none for those that are let in.
    pub code: Option<DenialCode>,
    /// The policies that determine the decision after the change.
    pub policies: Vec<String>,
    /// How many.
    pub count: u64,
    /// The first of them.
    pub examples: Vec<DeviceId>,
}

/// What a change of policies would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Simulation {
    /// The version in force, that it is compared with.
    pub base: u64,
    /// Every active device, as it would come now: its certificate in use; source and handshake of its last exchange.
    pub devices: Shifts,
    /// Of these, devices of which no exchange is kept: source and handshake are assumed.
    pub assumed: u64,
    /// Active devices that cannot come at all now: no certificate in force, or of an authority that is not known.
    pub without_credential: u64,
    /// The exchanges that the ledger keeps, each as it was, over what is known of device and credential now.
    pub exchanges: Shifts,
}

/// What cases must have in common to be of one group.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct GroupKey {
    shift: &'static str,
    code: Option<&'static str>,
    policies: Vec<String>,
}

#[derive(Default)]
struct Counting {
    shifts: Shifts,
    groups: BTreeMap<GroupKey, (u64, Vec<DeviceId>)>,
}

type Decided = Result<Vec<String>, (DenialCode, Vec<String>)>;

impl Counting {
    fn count(&mut self, device: &DeviceId, before: bool, after: Decided) {
        let (counter, key) = match (before, after) {
            (true, Ok(_)) => (&mut self.shifts.stay_in, None),
            (false, Err(_)) => (&mut self.shifts.stay_out, None),
            (true, Err((code, policies))) => (
                &mut self.shifts.locked_out,
                Some(GroupKey {
                    shift: "locked-out",
                    code: Some(code.as_str()),
                    policies,
                }),
            ),
            (false, Ok(policies)) => (
                &mut self.shifts.let_in,
                Some(GroupKey {
                    shift: "let-in",
                    code: None,
                    policies,
                }),
            ),
        };
        *counter += 1;
        if let Some(key) = key {
            let (count, examples) = self.groups.entry(key).or_default();
            *count += 1;
            if examples.len() < EXAMPLES_MAX && !examples.contains(device) {
                examples.push(device.clone());
            }
        }
    }

    fn finish(mut self) -> Shifts {
        self.shifts.groups = self
            .groups
            .into_iter()
            .map(|(key, (count, examples))| ShiftGroup {
                shift: key.shift.into(),
                code: key.code.and_then(|c| c.parse().ok()),
                policies: key.policies,
                count,
                examples,
            })
            .collect();
        self.shifts.groups.sort_by_key(|g| std::cmp::Reverse(g.count));
        self.shifts
    }
}

/// The handshake of an exchange, from its record.
pub(crate) fn circumstances_of(record: &ExchangeRecord, now: Timestamp) -> Circumstances {
    let fact = |name: &str| {
        let found = record.facts.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    };
    let tls = match (fact("tls_version"), fact("cipher_suite")) {
        (Some(version), Some(suite)) => {
            TlsFacts::recorded(version, fact("group"), suite, fact("resumed_from").is_some())
        }
        // Refused before the handshake was complete.
        _ => TlsFacts::ASSUMED,
    };
    Circumstances {
        source: record.source.ip(),
        tls,
        now,
    }
}

/// Where nothing is recorded.
pub(crate) fn assumed(now: Timestamp) -> Circumstances {
    Circumstances {
        source: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        tls: TlsFacts::ASSUMED,
        now,
    }
}

/// Present and proposed policies, side by side.
struct Sides<'a> {
    facts: &'a dyn FactSource,
    proposed: Proposed<'a>,
    tenant: &'a TenantId,
}

impl Sides<'_> {
    fn count(
        &self,
        counting: &mut Counting,
        device: &DeviceId,
        fingerprint: &Fingerprint,
        authority: &AuthorityId,
        circumstances: Circumstances,
    ) {
        let decide = |facts: &dyn FactSource| -> Decided {
            judge::anew(facts, self.tenant, device, fingerprint, authority, circumstances)
                .map(|a| a.permit.policies().iter().map(ToString::to_string).collect())
                .map_err(|d| (d.code, d.policies))
        };
        counting.count(device, decide(self.facts).is_ok(), decide(&self.proposed));
    }
}

impl Service {
    /// Replaces what is given of a tenant's settings. Returns the policy version that is then in force.
    ///
    /// # Errors
    /// [`Failure`] if the policies do not fit, or would lock out as many devices as `policy.lock_out_percent` says and
    /// that is not accepted: then nothing changes.
    pub async fn configure_tenant(
        self: &Arc<Self>,
        actor: Actor,
        id: TenantId,
        mode: Option<ClientIdMode>,
        draft: Option<PolicyDraft>,
    ) -> Result<(u64, Told), Failure> {
        let change = match draft {
            None => None,
            Some(draft) => {
                let (service, tenant) = (self.clone(), id.clone());
                let checked = tokio::task::spawn_blocking(move || service.checked(&tenant, draft));
                let change = checked
                    .await
                    .map_err(|e| Failure::internal(format!("the simulation failed: {e}")))??;
                Some(change)
            }
        };
        let action = match &change {
            Some(change) if change.reverts.is_some() => "policy.revert",
            Some(_) => "policy.set",
            None => "tenant.configure",
        };
        let deed = Deed {
            actor: actor.clone(),
            action: action.into(),
            tenant: Some(id.clone()),
            subject: id.to_string(),
            reason: change.as_ref().map(|c| c.reason.clone()).unwrap_or_default(),
        };
        self.deed(deed, move |r| r.configure_tenant(actor, id, mode, change))
            .await
    }

    /// Takes an earlier version of policies and topic spaces up again, as a new version.
    ///
    /// # Errors
    /// As [`Service::configure_tenant`].
    pub async fn revert_policies(
        self: &Arc<Self>,
        actor: Actor,
        id: TenantId,
        number: u64,
        reason: String,
        accept_lock_out: bool,
    ) -> Result<(u64, Told), Failure> {
        let version = self.registry.policy_version(&id, Some(number))?;
        let draft = PolicyDraft {
            policies: Some(version.policies),
            spaces: Some(version.spaces),
            reason,
            accept_lock_out,
            reverts: Some(number),
        };
        self.configure_tenant(actor, id, None, Some(draft)).await
    }

    /// A draft that fits and locks out no more than it may.
    fn checked(&self, tenant: &TenantId, draft: PolicyDraft) -> Result<PolicyChange, Failure> {
        let current = self.registry.policy_version(tenant, None)?;
        let proposed = self.proposed(&current, draft.policies.clone(), draft.spaces.clone())?;
        if !draft.accept_lock_out {
            let mut counting = Counting::default();
            self.over_devices(tenant, &proposed, &mut counting)?;
            let shifts = counting.finish();
            let admitted = shifts.stay_in + shifts.locked_out;
            let percent = u64::from(self.config.policy.lock_out_percent);
            if shifts.locked_out > 0 && shifts.locked_out * 100 >= admitted * percent {
                return Err(locks_out(&shifts, admitted));
            }
        }
        Ok(PolicyChange {
            policies: draft.policies,
            spaces: draft.spaces,
            reason: draft.reason,
            base: Some(current.number),
            reverts: draft.reverts,
        })
    }

    fn proposed(
        &self,
        current: &PolicyVersion,
        policies: Option<String>,
        spaces: Option<Vec<TopicSpace>>,
    ) -> Result<Arc<TenantPolicy>, Failure> {
        let policies = policies.unwrap_or_else(|| current.policies.clone());
        let spaces = spaces.unwrap_or_else(|| current.spaces.clone());
        if let Err(problems) = check_policies(&policies, &spaces) {
            let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
            let cure = problems.first().map_or("", |p| p.cure.as_str());
            return Err(Failure::invalid(format!(
                "the policies do not take effect: {}; hint: {cure}",
                all.join("; ")
            )));
        }
        // A generation of no revision: nothing that is decided by it is ever kept.
        TenantPolicy::compile(Generation(u64::MAX), &policies, spaces)
            .map(Arc::new)
            .map_err(|e| Failure::invalid(e.to_string()))
    }

    /// What a change would do: replayed over the active devices as they would come now, and over the newest `limit`
    /// exchanges since `since`.
    ///
    /// # Errors
    /// [`Failure`] if the policies do not fit, or the registry cannot be read.
    pub fn simulate(
        &self,
        tenant: &TenantId,
        policies: Option<String>,
        spaces: Option<Vec<TopicSpace>>,
        since: Option<Timestamp>,
        limit: u32,
    ) -> Result<Simulation, Failure> {
        let current = self.registry.policy_version(tenant, None)?;
        let proposed = self.proposed(&current, policies, spaces)?;
        let mut devices = Counting::default();
        let (assumed, without_credential) = self.over_devices(tenant, &proposed, &mut devices)?;
        let mut exchanges = Counting::default();
        self.over_exchanges(tenant, &proposed, since, limit, &mut exchanges)?;
        Ok(Simulation {
            base: current.number,
            devices: devices.finish(),
            assumed,
            without_credential,
            exchanges: exchanges.finish(),
        })
    }

    /// Every active device by its certificate in force. Returns how many had their circumstances assumed, and how many
    /// have no certificate by which they could come.
    fn over_devices(
        &self,
        tenant: &TenantId,
        proposed: &Arc<TenantPolicy>,
        counting: &mut Counting,
    ) -> Result<(u64, u64), Failure> {
        let now = self.now();
        self.registry.ledger().flush();
        let mut last: HashMap<DeviceId, Circumstances> = HashMap::new();
        self.registry.ledger().last_of_each(tenant, |record| {
            let circumstances = circumstances_of(&record, now);
            if let Some(device) = record.device {
                last.insert(device, circumstances);
            }
        })?;
        let sides = self.sides(tenant, proposed);
        let (mut unseen, mut without) = (0, 0);
        self.registry.live_devices(tenant, now, |device| {
            let (Some(fingerprint), Some(authority)) = (&device.credential, &device.authority) else {
                without += 1;
                return;
            };
            let circumstances = last.get(&device.id).copied().unwrap_or_else(|| {
                unseen += 1;
                assumed(now)
            });
            sides.count(counting, &device.id, fingerprint, authority, circumstances);
        })?;
        Ok((unseen, without))
    }

    fn over_exchanges(
        &self,
        tenant: &TenantId,
        proposed: &Arc<TenantPolicy>,
        since: Option<Timestamp>,
        limit: u32,
        counting: &mut Counting,
    ) -> Result<(), Failure> {
        let sides = self.sides(tenant, proposed);
        let since = since.unwrap_or(Timestamp::from_unix_ms(0));
        let (mut before, mut left) = (None, limit);
        while left > 0 {
            let page = self
                .registry
                .ledger()
                .proven(tenant, since, before, left.min(PAGE))?;
            let Some(oldest) = page.last() else { break };
            before = Some(oldest.id);
            left -= u32::try_from(page.len()).unwrap_or(left).min(left);
            for record in &page {
                let (Some(device), Some(authority), Some(shown)) =
                    (&record.device, &record.authority, &record.certificate)
                else {
                    continue;
                };
                let circumstances = circumstances_of(record, record.started);
                sides.count(counting, device, &shown.fingerprint, authority, circumstances);
            }
        }
        Ok(())
    }

    fn sides<'a>(&'a self, tenant: &'a TenantId, proposed: &Arc<TenantPolicy>) -> Sides<'a> {
        let facts: &dyn FactSource = self.registry.facts().as_ref();
        Sides {
            facts,
            proposed: Proposed {
                facts,
                tenant,
                policy: proposed.clone(),
            },
            tenant,
        }
    }
}

/// The lock-out guard's refusal.
fn locks_out(shifts: &Shifts, admitted: u64) -> Failure {
    let whom: Vec<String> = shifts
        .groups
        .iter()
        .filter(|g| g.shift == "locked-out")
        .map(|g| {
            let names: Vec<_> = g.examples.iter().take(3).map(DeviceId::as_str).collect();
            let more = if g.count > names.len() as u64 { ", …" } else { "" };
            let by = match (g.policies.as_slice(), g.code) {
                ([], Some(code)) => code.cause().to_owned(),
                (policies, _) => policies.join(", "),
            };
            format!("{} by {by:?} ({}{more})", g.count, names.join(", "))
        })
        .collect();
    let text = format!(
        "this change would lock out {} of the {admitted} devices that are admitted now: {}; nothing was changed; hint: look at countersign policy simulate, and if it is meant, say so with --accept-lock-out (accept_lock_out in the API)",
        shifts.locked_out,
        whom.join("; ")
    );
    Failure::told(409, &text)
}
