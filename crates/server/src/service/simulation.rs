//! What a change of policies would do, before it is made: `connect` is decided by the policies in force and by the
//! proposed ones, for every device as it would come now and for the exchanges on record.
//!
//! Both sides are compiled for the occasion: live decisions are neither used nor crowded out.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use countersign_gateway::judge::{self, Circumstances, Proposed};
use countersign_identity::{AuthorityId, DeviceId, Fingerprint, Generation, TenantId, Timestamp};
use countersign_policy::clones::CloneAction;
use countersign_policy::decide::{PolicyProblem, TenantPolicy};
use countersign_policy::facts::TlsFacts;
use countersign_policy::{
    Denial, DenialCode, DeviceFacts, ExchangeRecord, FactSource, LifecycleState, TopicSpace, has_template,
};
use countersign_registry::policies::bounded;
use countersign_registry::{PolicyVersion, check_policies};
use serde::Serialize;

use super::Service;
use crate::failure::Failure;

/// Devices that are named per group.
const EXAMPLES_MAX: usize = 10;
/// Groups that are told one by one; the rest is counted.
pub(crate) const GROUPS_MAX: usize = 10;
/// Exchanges that are read from the ledger at once.
const PAGE: u32 = 1000;

/// How the connect decisions of some cases change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Simulation {
    /// The version in force, that it is compared with.
    pub base: u64,
    /// What does not fit the schema; such policies take effect only if that is accepted.
    pub problems: Vec<String>,
    /// What looks wrong and would take effect all the same, such as a topic space that nobody declared.
    pub warnings: Vec<PolicyProblem>,
    #[serde(flatten)]
    pub(super) fleet: FleetShifts,
    /// The exchanges that the ledger keeps, each as it was, over what is known of device and credential now. One that was
    /// resumed would have been a full handshake where policies refuse it for that alone.
    pub exchanges: Shifts,
    /// Of these, admitted ones that would have been full handshakes in place of resumptions.
    pub full_instead: u64,
    /// The credentials that are suspected to have two holders now.
    pub clones: CloneShifts,
}

/// What policies would make of the suspicions of this moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CloneShifts {
    /// Suspected credentials of devices that are active and may be connected.
    pub suspected: u64,
    /// Of these, devices that the policies in force have quarantined by the next evidence.
    pub quarantined_before: Vec<DeviceId>,
    /// Devices that the proposed ones would.
    pub quarantined_after: Vec<DeviceId>,
}

/// Every device as it would come now, by a full handshake: its certificate in use; source, TLS version and key exchange of
/// its last exchange.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct FleetShifts {
    /// Active devices.
    pub(super) devices: Shifts,
    /// Quarantined devices, of which policies decide only whether the lane is open to them.
    pub(super) quarantined: Shifts,
    /// Devices that are kept out by their state, pending or suspended, as if they were active.
    pub(super) waiting: Shifts,
    /// Of all these, devices of which no exchange is kept: source and handshake are assumed.
    pub(super) assumed: u64,
    /// Of all these, devices of whose certificate it is not known which authority it ends in, such as one that was
    /// imported from below an intermediate: they are decided by each that may be, and the worst of it counts.
    pub(super) unknown_authority: u64,
    /// Devices that cannot come at all now: no certificate in force, or no authority of the tenant that vouches.
    pub(super) without_credential: u64,
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

/// Policies that are to take the place of others.
pub(super) struct Draft {
    pub(super) policy: Arc<TenantPolicy>,
    /// What does not fit the schema.
    pub(super) problems: Vec<String>,
    /// What to do about the first of them.
    pub(super) cure: String,
    /// What looks wrong and takes effect all the same.
    pub(super) warnings: Vec<PolicyProblem>,
}

impl Draft {
    /// Policies and spaces, each as given or else as they are in force.
    ///
    /// # Errors
    /// [`Failure`] if they could never take effect.
    pub(super) fn read(
        current: &PolicyVersion,
        policies: Option<&str>,
        spaces: Option<&[TopicSpace]>,
    ) -> Result<Self, Failure> {
        let text = policies.unwrap_or(&current.policies);
        let spaces = spaces.unwrap_or(&current.spaces);
        // What is in force was accepted as it is.
        let (new_text, new_spaces) = (*text != current.policies, *spaces != *current.spaces);
        bounded(new_text.then_some(text), new_spaces.then_some(spaces)).map_err(Failure::invalid)?;
        let (warnings, found) = match check_policies(text, spaces) {
            Ok(warnings) => (warnings, Vec::new()),
            Err(found) => (Vec::new(), found),
        };
        let problems: Vec<String> = found.iter().map(ToString::to_string).collect();
        let cure = found.first().map(|p| p.cure.clone()).unwrap_or_default();
        // A template may be in force, accepted by a version that did not look; none is accepted any more.
        let is_new_template = new_text && has_template(text);
        // A generation of no revision: nothing that is decided by it is ever kept.
        let policy = TenantPolicy::compile_unfit(Generation(u64::MAX), text, spaces.to_vec());
        match policy {
            Ok(policy) if super::policies::is_sound(spaces) && !is_new_template => Ok(Self {
                policy: Arc::new(policy),
                problems,
                cure,
                warnings,
            }),
            _ => Err(Failure::invalid(format!(
                "the policies cannot take effect: {}; hint: {cure}",
                problems.join("; ")
            ))),
        }
    }
}

/// Present and proposed policies, side by side.
struct Sides<'a> {
    facts: &'a dyn FactSource,
    before: Proposed<'a>,
    after: Proposed<'a>,
    tenant: &'a TenantId,
    /// Whether the policies of either side look at the authority on `connect`.
    reads_authority: bool,
}

/// How a device came last.
struct LastSeen {
    circumstances: Circumstances,
    /// Its certificate, and what that ended in.
    by: Option<(Fingerprint, AuthorityId)>,
}

/// Who comes, with what.
struct Comer {
    device: Arc<DeviceFacts>,
    fingerprint: Fingerprint,
    /// What its chain ends in; all that it may end in, if that is not known. Never empty.
    authorities: Arc<[AuthorityId]>,
}

/// How one case changes.
struct Shift {
    before: bool,
    after: Decided,
    /// It would be a full handshake where it was a resumption.
    full_instead: bool,
}

impl Shift {
    /// Of one whose authority is not known, the worst counts: that it is locked out, then that it stays out.
    fn badness(&self) -> u8 {
        match (self.before, &self.after) {
            (true, Err(_)) => 3,
            (false, Err(_)) => 2,
            (false, Ok(_)) => 1,
            (true, Ok(_)) => 0,
        }
    }
}

impl<'a> Sides<'a> {
    fn new(
        facts: &'a dyn FactSource,
        tenant: &'a TenantId,
        current: &PolicyVersion,
        draft: &Draft,
    ) -> Result<Self, Failure> {
        let before = Draft::read(current, None, None)?.policy;
        let with = |policy| Proposed {
            facts,
            tenant,
            policy,
        };
        let reads_authority = [&before, &draft.policy]
            .iter()
            .any(|p| p.connect_reads().authority);
        Ok(Self {
            reads_authority,
            facts,
            before: with(before),
            after: with(draft.policy.clone()),
            tenant,
        })
    }

    /// Counts one case. Returns whether it would be a full handshake where it was a resumption.
    fn count(&self, counting: &mut Counting, comer: &Comer, circumstances: Circumstances) -> bool {
        let shifts = comer
            .authorities
            .iter()
            .map(|authority| self.shift(comer, authority, circumstances));
        let Some(worst) = shifts.max_by_key(Shift::badness) else {
            return false;
        };
        counting.count(&comer.device.id, worst.before, worst.after);
        worst.full_instead
    }

    /// What determined a refusal. Why a policy fails is told with the device that it failed for: without it, those that
    /// share the fault are one group.
    fn reasons(&self, denial: Denial, device: &DeviceId) -> Vec<String> {
        if denial.code != DenialCode::PolicyError {
            return denial.policies;
        }
        let entity = format!("Device::\"{}/{device}\"", self.tenant);
        let failed = denial.policies.iter();
        failed.map(|p| p.replace(&entity, "the device")).collect()
    }

    /// How the decision about one case changes under an authority.
    fn shift(&self, comer: &Comer, authority: &AuthorityId, circumstances: Circumstances) -> Shift {
        let decide = |facts: &dyn FactSource, tls: TlsFacts| -> Decided {
            let circumstances = Circumstances { tls, ..circumstances };
            let (device, by) = (comer.device.clone(), &comer.fingerprint);
            judge::of_device(facts, device, by, authority, circumstances)
                .map(|a| a.permit.policies().iter().map(ToString::to_string).collect())
                .map_err(|d| (d.code, self.reasons(d, &comer.device.id)))
        };
        let either = |facts: &dyn FactSource| -> (Decided, bool) {
            let found = decide(facts, circumstances.tls);
            if found.is_ok() || !circumstances.tls.resumed {
                return (found, false);
            }
            let full = decide(facts, circumstances.tls.as_full());
            let is_in = full.is_ok();
            (full, is_in)
        };
        let (before, _) = either(&self.before);
        let (after, full_instead) = either(&self.after);
        Shift {
            before: before.is_ok(),
            after,
            full_instead,
        }
    }
}

impl Service {
    /// What a change would do: replayed over the devices as they would come now, and over the newest `limit` exchanges
    /// since `since`.
    ///
    /// # Errors
    /// [`Failure`] if the policies could never take effect, or the registry cannot be read.
    pub fn simulate(
        &self,
        tenant: &TenantId,
        policies: Option<&str>,
        spaces: Option<&[TopicSpace]>,
        since: Option<Timestamp>,
        limit: u32,
    ) -> Result<Simulation, Failure> {
        let current = self.registry.policy_version(tenant, None)?;
        let draft = Draft::read(&current, policies, spaces)?;
        let fleet = self.over_fleet(tenant, &current, &draft)?;
        let mut exchanges = Counting::default();
        let sides = Sides::new(self.registry.facts().as_ref(), tenant, &current, &draft)?;
        let full_instead = self.over_exchanges(&sides, since, limit, &mut exchanges)?;
        Ok(Simulation {
            base: current.number,
            problems: draft.problems,
            warnings: draft.warnings,
            fleet,
            exchanges: exchanges.finish(),
            full_instead,
            clones: self.over_clones(&sides)?,
        })
    }

    /// Every suspicion of this moment.
    fn over_clones(&self, sides: &Sides<'_>) -> Result<CloneShifts, Failure> {
        let mut shifts = CloneShifts::default();
        let suspects = self.gateway().map(|g| g.suspected_clones()).unwrap_or_default();
        for suspect in suspects.into_iter().filter(|s| s.tenant == *sides.tenant) {
            let now = self.now();
            let last = self
                .registry
                .ledger()
                .last_handshake(&suspect.tenant, &suspect.device)?;
            let device = sides.facts.device(sides.tenant, &suspect.device);
            let (Some(device), Some(record)) = (device, last) else {
                continue;
            };
            let Some(authority) = &record.authority else {
                continue;
            };
            let (by, circumstances) = (&suspect.fingerprint, circumstances_of(&record, now));
            // Who may not be connected is no suspect for long.
            let Ok(admission) = judge::of_device(&sides.before, device.clone(), by, authority, circumstances)
            else {
                continue;
            };
            shifts.suspected += 1;
            let quarantines = |side: &Proposed<'_>| {
                let verdict = side
                    .policy
                    .on_clone(&admission.permit, &device, &suspect.suspicion, now);
                verdict.action == CloneAction::Quarantine
            };
            if quarantines(&sides.before) {
                shifts.quarantined_before.push(suspect.device.clone());
            }
            if quarantines(&sides.after) {
                shifts.quarantined_after.push(suspect.device);
            }
        }
        Ok(shifts)
    }

    /// Every device that is not decommissioned, by its certificate in force.
    pub(super) fn over_fleet(
        &self,
        tenant: &TenantId,
        current: &PolicyVersion,
        draft: &Draft,
    ) -> Result<FleetShifts, Failure> {
        let now = self.now();
        self.registry.ledger().flush();
        let mut last: HashMap<DeviceId, LastSeen> = HashMap::new();
        self.registry.ledger().last_of_each(tenant, |record| {
            let mut circumstances = circumstances_of(&record, now);
            // A ticket is soon over, and then, or where policies hold it against the device, this is how it comes.
            circumstances.tls = circumstances.tls.as_full();
            let by = record.certificate.map(|c| c.fingerprint).zip(record.authority);
            if let Some(device) = record.device {
                last.insert(device, LastSeen { circumstances, by });
            }
        })?;
        let sides = Sides::new(self.registry.facts().as_ref(), tenant, current, draft)?;
        let possible = self.possible_authorities(tenant, sides.reads_authority)?;
        let mut fleet = FleetShifts::default();
        let mut active = Counting::default();
        let (mut quarantined, mut waiting) = (Counting::default(), Counting::default());
        self.registry.live_devices(tenant, now, |found| {
            let known = sides.facts.device(tenant, &found.id);
            let (Some(device), Some(fingerprint)) = (known, found.credential) else {
                fleet.without_credential += 1;
                return;
            };
            let seen = last.get(&found.id);
            // Where the registry does not know what a certificate ends in, a handshake with it has shown it.
            let shown = seen.and_then(|s| s.by.as_ref()).filter(|by| by.0 == fingerprint);
            let authorities = match found.authority.or_else(|| shown.map(|by| by.1.clone())) {
                Some(authority) => [authority].into(),
                None if possible.is_empty() => {
                    fleet.without_credential += 1;
                    return;
                }
                None => {
                    fleet.unknown_authority += 1;
                    possible.clone()
                }
            };
            let circumstances = seen.map(|s| s.circumstances).unwrap_or_else(|| {
                fleet.assumed += 1;
                assumed(now)
            });
            let (counting, device) = match found.state {
                LifecycleState::Active => (&mut active, device),
                LifecycleState::Quarantined => (&mut quarantined, device),
                _ => {
                    let state = LifecycleState::Active;
                    let device = DeviceFacts {
                        state,
                        ..(*device).clone()
                    };
                    (&mut waiting, Arc::new(device))
                }
            };
            let comer = Comer {
                device,
                fingerprint,
                authorities,
            };
            sides.count(counting, &comer, circumstances);
        })?;
        fleet.devices = active.finish();
        fleet.quarantined = quarantined.finish();
        fleet.waiting = waiting.finish();
        Ok(fleet)
    }

    /// What a certificate of a tenant may end in: its authorities that vouch for whoever comes. One stands for all if the
    /// policies do not tell them apart.
    fn possible_authorities(&self, tenant: &TenantId, all: bool) -> Result<Arc<[AuthorityId]>, Failure> {
        let vouching = self.registry.authorities()?;
        let vouching = vouching
            .into_iter()
            .filter(|a| a.tenant == *tenant && a.state.admits());
        let most = if all { usize::MAX } else { 1 };
        Ok(vouching.map(|a| a.id).take(most).collect())
    }

    /// Returns how many would be full handshakes in place of resumptions.
    fn over_exchanges(
        &self,
        sides: &Sides<'_>,
        since: Option<Timestamp>,
        limit: u32,
        counting: &mut Counting,
    ) -> Result<u64, Failure> {
        let since = since.unwrap_or(Timestamp::from_unix_ms(0));
        let (mut before, mut left, mut full_instead) = (None, limit, 0);
        while left > 0 {
            let wanted = left.min(PAGE);
            let page = self
                .registry
                .ledger()
                .proven(sides.tenant, since, before, wanted)?;
            let Some(oldest) = page.last() else { break };
            before = Some(oldest.id);
            let found = u32::try_from(page.len()).unwrap_or(left).min(left);
            // A short page is the last one.
            left = if found < wanted { 0 } else { left - found };
            for record in &page {
                let device = record
                    .device
                    .as_ref()
                    .and_then(|d| sides.facts.device(sides.tenant, d));
                let (Some(device), Some(authority), Some(shown)) =
                    (device, &record.authority, &record.certificate)
                else {
                    continue;
                };
                let comer = Comer {
                    device,
                    fingerprint: shown.fingerprint,
                    authorities: [authority.clone()].into(),
                };
                let circumstances = circumstances_of(record, record.started);
                full_instead += u64::from(sides.count(counting, &comer, circumstances));
            }
        }
        Ok(full_instead)
    }
}
