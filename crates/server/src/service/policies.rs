//! Changes of policies: simulated first, refused if they would lock out (nearly) everybody, kept as versions.

use std::sync::Arc;

use countersign_identity::{DeviceId, TenantId};
use countersign_mqtt::topic::SpaceFilter;
use countersign_policy::decide::PolicyProblem;
use countersign_policy::{ClientIdMode, TopicSpace};
use countersign_registry::{Actor, PolicyChange, RegistryError};

use super::simulation::{Draft, FleetShifts, GROUPS_MAX, Shifts};
use super::{Deed, Service, Told, blocking};
use crate::failure::Failure;

/// What is said of policies that let nobody in.
pub(crate) const NOBODY: &str = "no policy would permit connect, so nobody would be let in";

/// A change of policies as it is asked for.
#[derive(Debug, Clone, Default)]
pub struct PolicyDraft {
    /// New policies; `None` keeps them.
    pub policies: Option<String>,
    /// New topic spaces; `None` keeps them.
    pub spaces: Option<Vec<TopicSpace>>,
    /// Why.
    pub reason: String,
    /// It need not fit the schema, and may lock out as many devices as it does. Whoever says so says why.
    pub accept_lock_out: bool,
    /// The version that it was made of; refused if another is in force by now.
    pub base: Option<u64>,
    /// The version that it takes up again.
    pub reverts: Option<u64>,
}

/// What became of a change of a tenant's settings.
#[derive(Debug)]
pub struct Configured {
    /// The policy version that is in force now.
    pub version: u64,
    /// What became of live sessions; nothing if nothing was changed.
    pub told: Option<Told>,
    /// What looks wrong in the new policies, and took effect all the same.
    pub warnings: Vec<PolicyProblem>,
}

/// A change that was looked at.
enum Checked {
    /// It would be one; beside it, what looks wrong in it.
    Change(PolicyChange, Vec<PolicyProblem>),
    /// It is what is in force already, as this version.
    InForce(u64),
}

impl Service {
    /// Replaces what is given of a tenant's settings.
    ///
    /// # Errors
    /// [`Failure`] if the policies could never take effect; or if they do not fit the schema, or would lock out as many
    /// devices as `policy.lock_out_percent` says, and that is not accepted. Then nothing changes.
    pub async fn configure_tenant(
        self: &Arc<Self>,
        actor: Actor,
        id: TenantId,
        mode: Option<ClientIdMode>,
        draft: Option<PolicyDraft>,
    ) -> Result<Configured, Failure> {
        let (change, warnings) = match draft {
            None => (None, Vec::new()),
            Some(draft) => {
                let (service, tenant) = (self.clone(), id.clone());
                let checked = tokio::task::spawn_blocking(move || service.checked(&tenant, draft));
                let change = checked
                    .await
                    .map_err(|e| Failure::internal(format!("the simulation failed: {e}")))??;
                match change {
                    Checked::Change(change, warnings) => (Some(change), warnings),
                    Checked::InForce(version) if mode.is_none() => {
                        return Ok(Configured {
                            version,
                            told: None,
                            warnings: Vec::new(),
                        });
                    }
                    Checked::InForce(_) => (None, Vec::new()),
                }
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
        let (version, told) = self
            .deed(deed, move |r| r.configure_tenant(actor, id, mode, change))
            .await?;
        Ok(Configured {
            version,
            told: Some(told),
            warnings,
        })
    }

    /// Takes an earlier version of policies and topic spaces up again, as a new version. Of the draft, what it says
    /// besides counts: reason, base, and whether consequences are accepted.
    ///
    /// # Errors
    /// As [`Service::configure_tenant`].
    pub async fn revert_policies(
        self: &Arc<Self>,
        actor: Actor,
        id: TenantId,
        number: u64,
        draft: PolicyDraft,
    ) -> Result<Configured, Failure> {
        let (service, tenant) = (self.clone(), id.clone());
        let version = blocking(move || service.registry.policy_version(&tenant, Some(number))).await?;
        let draft = PolicyDraft {
            policies: Some(version.policies),
            spaces: Some(version.spaces),
            reverts: Some(number),
            ..draft
        };
        self.configure_tenant(actor, id, None, Some(draft)).await
    }

    /// A draft that fits and locks out no more than it may, or whose consequences are accepted.
    fn checked(&self, tenant: &TenantId, asked: PolicyDraft) -> Result<Checked, Failure> {
        if asked.accept_lock_out && asked.reason.trim().is_empty() {
            return Err(Failure::invalid(
                "whoever accepts a lock-out says why; hint: give a reason (--reason, reason in the API)",
            ));
        }
        let current = self.registry.policy_version(tenant, None)?;
        if let Some(base) = asked.base.filter(|base| *base != current.number) {
            return Err(RegistryError::PolicyMoved {
                base,
                current: current.number,
            }
            .into());
        }
        let keeps = |is_kept: Option<bool>| is_kept.unwrap_or(true);
        if keeps(asked.policies.as_ref().map(|p| *p == current.policies))
            && keeps(asked.spaces.as_ref().map(|s| *s == current.spaces))
        {
            return Ok(Checked::InForce(current.number));
        }
        let draft = Draft::read(&current, asked.policies.as_deref(), asked.spaces.as_deref())?;
        // What is in force was accepted as it is.
        let is_new = asked.policies.as_ref().is_some_and(|p| *p != current.policies);
        let unfit = is_new && !draft.problems.is_empty();
        let before = Draft::read(&current, None, None)?.policy;
        let nobody = before.may_admit() && !draft.policy.may_admit();
        let fleet = self.over_fleet(tenant, &current, &draft)?;
        let percent = u64::from(self.config.policy.lock_out_percent);
        let lock_out = LockOut::of(&fleet, percent);
        let needs_word = unfit || nobody || lock_out.is_some();
        if needs_word && !asked.accept_lock_out {
            let lock_out = lock_out.or_else(|| LockOut::of(&fleet, 0));
            return Err(refused(&draft, unfit, nobody, lock_out.as_ref()));
        }
        let change = PolicyChange {
            policies: asked.policies,
            spaces: asked.spaces,
            reason: asked.reason,
            base: Some(current.number),
            reverts: asked.reverts,
            accept_unfit: asked.accept_lock_out,
            accepted: needs_word,
        };
        Ok(Checked::Change(change, draft.warnings))
    }
}

/// Whether all filters can be read.
pub(super) fn is_sound(spaces: &[TopicSpace]) -> bool {
    spaces.iter().all(|s| SpaceFilter::parse(&s.filter).is_ok())
}

/// Devices that policies admit now, and would not any more.
struct LockOut<'a> {
    shifts: &'a Shifts,
    /// How they stand.
    whose: &'static str,
    /// How many are admitted now.
    admitted: u64,
}

impl<'a> LockOut<'a> {
    /// The lock-out, if it is of this share or more. Where no active device is admitted now, those count that would be if
    /// they were active: a device is not locked out by policies while its state keeps it out, and would be later.
    /// Quarantined devices never count: that the lane is closed to them shuts nobody out who was at work.
    fn of(fleet: &'a FleetShifts, percent: u64) -> Option<Self> {
        let admitted = |shifts: &Shifts| shifts.stay_in + shifts.locked_out;
        let (shifts, whose) = match admitted(&fleet.devices) {
            0 => (&fleet.waiting, "would be admitted once they are active"),
            _ => (&fleet.devices, "are admitted now"),
        };
        let admitted = admitted(shifts);
        (shifts.locked_out > 0 && shifts.locked_out * 100 >= admitted * percent).then_some(Self {
            shifts,
            whose,
            admitted,
        })
    }
}

impl std::fmt::Display for LockOut<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lost = || self.shifts.groups.iter().filter(|g| g.shift == "locked-out");
        let mut whom: Vec<String> = lost()
            .take(GROUPS_MAX)
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
        let rest: Vec<u64> = lost().skip(GROUPS_MAX).map(|g| g.count).collect();
        if !rest.is_empty() {
            whom.push(format!(
                "{} for {} reasons more",
                rest.iter().sum::<u64>(),
                rest.len()
            ));
        }
        write!(
            f,
            "it would lock out {} of the {} devices that {}: {}",
            self.shifts.locked_out,
            self.admitted,
            self.whose,
            whom.join("; ")
        )
    }
}

/// What the change would do, and the word by which it is done all the same.
fn refused(draft: &Draft, unfit: bool, nobody: bool, lock_out: Option<&LockOut<'_>>) -> Failure {
    let mut would = Vec::new();
    if unfit {
        would.push(format!(
            "it does not fit the schema ({}), and what cannot be evaluated refuses",
            draft.problems.join("; ")
        ));
    }
    if nobody {
        would.push(NOBODY.to_owned());
    }
    match lock_out {
        Some(lock_out) => would.push(lock_out.to_string()),
        None => would.push("it would lock out no device that is registered now".to_owned()),
    }
    let cure = if unfit {
        draft.cure.as_str()
    } else {
        "look at countersign policy simulate"
    };
    let text = format!(
        "this change needs a word more: {}; nothing was changed; hint: {cure}; if it is meant as it is, say so with --accept-lock-out (accept_lock_out in the API)",
        would.join("; ")
    );
    Failure::told(409, &text)
}
