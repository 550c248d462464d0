//! The decision: lifecycle first, then the tenant's Cedar policies. The only place where permits are made.
//!
//! A decision costs Cedar some 10 to 20 µs. In a fleet most decisions are alike, so each is kept by its fact class
//! (model, groups, batch, credential kind and custody, authority, TLS facts, spaces), inside the compiled policies: a new
//! policy generation starts with nothing kept. An action for which any policy names a single device, or reads the time
//! or the source address, is never kept.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cedar_policy::{Authorizer, Decision, PolicySet};
use countersign_identity::{AuthorityId, Generation, Timestamp};
use parking_lot::RwLock;

use crate::clones::{self, CloneVerdict, Suspicion};
use crate::compile::{self, Compiled, Fit};
pub use crate::compile::{ConnectReads, PolicyFault, PolicyProblem, SCHEMA_TEXT, texts, validate};
use crate::denial::{Denial, DenialCode};
use crate::facts::{
    ConnectFacts, CredentialFacts, CredentialKind, CredentialState, Custody, DeviceFacts, Generations,
    TlsFacts,
};
use crate::lifecycle::LifecycleState;
pub use crate::permit::{AdmissionPermit, PublishPermit, SubscribePermit};
use crate::request;
pub use crate::spaces::{SpaceSet, TopicSpace};
use crate::{offered, quarantine};

/// The policies every tenant starts with.
pub const DEFAULT_POLICY: &str = include_str!("default.cedar");

/// The most decisions kept per policy generation; when it is reached all are forgotten, and that is counted.
const KEPT_MAX: usize = 4096;

/// An action that policies decide on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// To be connected.
    Connect,
    /// To publish to a topic.
    Publish,
    /// To subscribe to a filter.
    Subscribe,
}

impl Action {
    /// All actions.
    pub const ALL: [Self; 3] = [Self::Connect, Self::Publish, Self::Subscribe];

    /// The action's id in policies.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
        }
    }
}

/// What a publish or subscribe is about, besides the device.
#[derive(Clone, Copy, Debug)]
pub struct DataFacts {
    /// The spaces that hold the topic, or all of the filter.
    pub spaces: SpaceSet,
    /// The quality of service, 0 to 2.
    pub qos: u8,
    /// Whether it is to be retained.
    pub retain: bool,
    /// When.
    pub now: Timestamp,
}

/// Everything a decision may depend on, if no policy names a device, the time or the source.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct FactClass {
    action: Action,
    model: Option<Arc<str>>,
    groups: Arc<[Arc<str>]>,
    batch: Option<Arc<str>>,
    state: LifecycleState,
    kind: CredentialKind,
    custody: Custody,
    authority: AuthorityId,
    tls: TlsFacts,
    spaces: SpaceSet,
    qos: u8,
    retain: bool,
}

type Verdict = Result<Arc<[Arc<str>]>, (DenialCode, Arc<[Arc<str>]>)>;

/// A tenant's policies and topic spaces, compiled, with the decisions they made so far.
#[derive(Debug)]
pub struct TenantPolicy {
    generation: Generation,
    spaces: Vec<TopicSpace>,
    policies: PolicySet,
    /// Those on `quarantine-clone`.
    on_clones: PolicySet,
    /// Whether decisions on an action may be kept, in the order of [`Action::ALL`].
    keepable: [bool; 3],
    may_admit: bool,
    reads: ConnectReads,
    reads_time: bool,
    kept: RwLock<HashMap<FactClass, Verdict>>,
    hits: AtomicU64,
    misses: AtomicU64,
    forgotten: AtomicU64,
}

/// How often decisions were found kept, made, and forgotten for lack of room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecisionCounts {
    /// Found kept.
    pub hits: u64,
    /// Made by evaluating policies.
    pub misses: u64,
    /// Times that all kept decisions were forgotten because there were too many.
    pub forgotten: u64,
}

impl TenantPolicy {
    /// Compiles policies and spaces.
    ///
    /// # Errors
    /// [`PolicyFault`] if a policy cannot be read, speaks of something the schema does not have, or there are too many
    /// spaces.
    pub fn compile(
        generation: Generation,
        policies: &str,
        spaces: Vec<TopicSpace>,
    ) -> Result<Self, PolicyFault> {
        Self::compile_by(generation, policies, spaces, Fit::Required)
    }

    /// Compiles policies that need not fit the schema. A policy that speaks of what there is not fails when it is
    /// evaluated, and a failed policy is a no: they may lock out whoever they are asked about, and let nobody in that
    /// others do not permit.
    ///
    /// # Errors
    /// [`PolicyFault`] for all else that [`TenantPolicy::compile`] refuses.
    pub fn compile_unfit(
        generation: Generation,
        policies: &str,
        spaces: Vec<TopicSpace>,
    ) -> Result<Self, PolicyFault> {
        Self::compile_by(generation, policies, spaces, Fit::Waived)
    }

    fn compile_by(
        generation: Generation,
        policies: &str,
        spaces: Vec<TopicSpace>,
        fit: Fit,
    ) -> Result<Self, PolicyFault> {
        let Compiled {
            policies,
            on_clones,
            keepable,
            may_admit,
            reads,
            reads_time,
            ..
        } = compile::compile(policies, &spaces, fit)?;
        Ok(Self {
            generation,
            spaces,
            policies,
            on_clones,
            keepable,
            may_admit,
            reads,
            reads_time,
            kept: RwLock::default(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            forgotten: AtomicU64::new(0),
        })
    }

    /// The generation of these policies.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The topic spaces, in the order that [`SpaceSet`] counts them.
    pub fn spaces(&self) -> &[TopicSpace] {
        &self.spaces
    }

    /// Whether a policy permits `connect` to anybody at all; without one nobody is ever let in.
    pub fn may_admit(&self) -> bool {
        self.may_admit
    }

    /// What the policies on `connect` look at of the handshake.
    pub fn connect_reads(&self) -> ConnectReads {
        self.reads
    }

    /// Whether a policy on `connect` or `subscribe` reads the time: what it permitted may be forbidden later though nothing
    /// changed.
    pub fn reads_time(&self) -> bool {
        self.reads_time
    }

    /// How decisions were made so far.
    pub fn counts(&self) -> DecisionCounts {
        DecisionCounts {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            forgotten: self.forgotten.load(Ordering::Relaxed),
        }
    }

    /// Chooses what is done about two that seem to hold one key; `permit` is that of the session in which it was seen,
    /// and what it was admitted under is all that counts of it. It is asked seldom, so nothing is kept.
    pub fn on_clone(
        &self,
        permit: &AdmissionPermit,
        device: &DeviceFacts,
        suspicion: &Suspicion,
        now: Timestamp,
    ) -> CloneVerdict {
        clones::decide(&self.on_clones, permit, device, suspicion, now)
    }

    /// Decides whether a device may be connected now: its state, its credential's state, then the policies.
    ///
    /// # Errors
    /// The [`Denial`], with the policies that determined it.
    pub fn connect(&self, facts: &ConnectFacts<'_>) -> Result<AdmissionPermit, Denial> {
        let (device, credential) = (facts.device, facts.credential);
        if credential.tenant != device.tenant || credential.device != device.id {
            return Err(Denial::new(
                DenialCode::CredentialOfOther,
                format!(
                    "the credential is registered for {}, not {}",
                    credential.device, device.id
                ),
            ));
        }
        lifecycle(device.state)?;
        credential_state(credential.state)?;
        if !credential.opens_data_sessions {
            return Err(enrol_only(device, credential));
        }
        let permit = AdmissionPermit {
            tenant: device.tenant.clone(),
            device: device.id.clone(),
            fingerprint: credential.fingerprint,
            generations: Generations {
                policy: self.generation,
                authority: facts.authority_generation,
                device: device.generation,
                credential: credential.generation,
            },
            policies: Arc::default(),
            kind: credential.kind,
            custody: credential.custody,
            authority: facts.authority.clone(),
            source: facts.source,
            tls: facts.tls,
        };
        let asked = DataFacts {
            spaces: SpaceSet::default(),
            qos: 0,
            retain: false,
            now: facts.now,
        };
        let policies = self.verdict(Action::Connect, &permit, device, asked)?;
        Ok(AdmissionPermit { policies, ..permit })
    }

    /// Decides whether an admitted device may publish to `topic`.
    ///
    /// # Errors
    /// The [`Denial`]; `grant.stale` if the admission was not made for this device and these policies.
    pub fn publish<'s>(
        &self,
        admission: &'s AdmissionPermit,
        device: &DeviceFacts,
        topic: &'s str,
        asked: DataFacts,
    ) -> Result<PublishPermit<'s>, Denial> {
        self.current(admission, device)?;
        quarantine::seal(Action::Publish, device, &self.spaces, asked)?;
        offered::publish(asked.qos, asked.retain)?;
        let policies = self.verdict(Action::Publish, admission, device, asked)?;
        Ok(PublishPermit {
            admission,
            topic,
            policies,
        })
    }

    /// The spaces to which an admitted device may publish, each taken by itself. What is published is decided anew all
    /// the same: a topic may lie in several spaces, and a policy may look at more than they.
    ///
    /// # Errors
    /// `grant.stale` if the admission was not made for this device and these policies.
    pub fn publishable(
        &self,
        admission: &AdmissionPermit,
        device: &DeviceFacts,
        now: Timestamp,
    ) -> Result<SpaceSet, Denial> {
        self.current(admission, device)?;
        let mut found = SpaceSet::default();
        for n in 0..self.spaces.len() {
            if self.may_publish_to(n, admission, device, now) {
                found.insert(n);
            }
        }
        Ok(found)
    }

    /// Whether an admitted device may publish to any of `wanted`, each taken by itself: as [`TenantPolicy::publishable`], and
    /// no longer looked for than until one is found.
    pub fn is_publishable(
        &self,
        wanted: SpaceSet,
        admission: &AdmissionPermit,
        device: &DeviceFacts,
        now: Timestamp,
    ) -> bool {
        self.current(admission, device).is_ok()
            && (0..self.spaces.len())
                .any(|n| wanted.contains(n) && self.may_publish_to(n, admission, device, now))
    }

    fn may_publish_to(
        &self,
        n: usize,
        admission: &AdmissionPermit,
        device: &DeviceFacts,
        now: Timestamp,
    ) -> bool {
        let mut spaces = SpaceSet::default();
        spaces.insert(n);
        [0, 1].into_iter().any(|qos| {
            let asked = DataFacts {
                spaces,
                qos,
                retain: false,
                now,
            };
            self.publish(admission, device, "", asked).is_ok()
        })
    }

    /// Decides whether an admitted device may subscribe to `filter`.
    ///
    /// # Errors
    /// As for [`TenantPolicy::publish`].
    pub fn subscribe<'s>(
        &self,
        admission: &'s AdmissionPermit,
        device: &DeviceFacts,
        filter: &'s str,
        asked: DataFacts,
    ) -> Result<SubscribePermit<'s>, Denial> {
        self.current(admission, device)?;
        quarantine::seal(Action::Subscribe, device, &self.spaces, asked)?;
        offered::subscribe(filter)?;
        let policies = self.verdict(Action::Subscribe, admission, device, asked)?;
        Ok(SubscribePermit {
            admission,
            filter,
            policies,
        })
    }

    fn current(&self, admission: &AdmissionPermit, device: &DeviceFacts) -> Result<(), Denial> {
        if admission.policy_generation() != self.generation
            || admission.device != device.id
            || admission.tenant != device.tenant
            || admission.generations.device != device.generation
        {
            return Err(DenialCode::GrantStale.into());
        }
        Ok(())
    }

    fn verdict(
        &self,
        action: Action,
        permit: &AdmissionPermit,
        device: &DeviceFacts,
        asked: DataFacts,
    ) -> Result<Arc<[Arc<str>]>, Denial> {
        let keep = self.keepable[action as usize];
        let class = keep.then(|| FactClass {
            action,
            model: device.model.clone(),
            groups: device.groups.clone(),
            batch: device.batch.clone(),
            state: device.state,
            kind: permit.kind,
            custody: permit.custody,
            authority: permit.authority.clone(),
            tls: permit.tls,
            spaces: asked.spaces,
            qos: asked.qos,
            retain: asked.retain,
        });
        let kept = class
            .as_ref()
            .and_then(|class| self.kept.read().get(class).cloned());
        let verdict = match kept {
            Some(verdict) => {
                self.hits.fetch_add(1, Ordering::Relaxed);
                verdict
            }
            None => {
                self.misses.fetch_add(1, Ordering::Relaxed);
                let verdict = self.evaluate(action, permit, device, asked);
                // What failed is told with the words of this device's facts.
                let is_error = matches!(&verdict, Err((DenialCode::PolicyError, _)));
                if let Some(class) = class.filter(|_| !is_error) {
                    let mut kept = self.kept.write();
                    if kept.len() >= KEPT_MAX {
                        kept.clear();
                        self.forgotten.fetch_add(1, Ordering::Relaxed);
                    }
                    kept.insert(class, verdict.clone());
                }
                verdict
            }
        };
        verdict.map_err(|(code, policies)| {
            let names: Vec<String> = policies.iter().map(|p| p.to_string()).collect();
            let detail = if names.is_empty() {
                format!(
                    "no policy of tenant {} permits {} for device {}",
                    device.tenant,
                    action.name(),
                    device.id
                )
            } else {
                format!(
                    "{} of device {} was decided by {}",
                    action.name(),
                    device.id,
                    names.join(", ")
                )
            };
            Denial {
                code,
                detail,
                retry_after_s: code.retry_after_s(),
                policies: names,
            }
        })
    }

    fn evaluate(
        &self,
        action: Action,
        permit: &AdmissionPermit,
        device: &DeviceFacts,
        asked: DataFacts,
    ) -> Verdict {
        let error = |what: &str| Err((DenialCode::PolicyError, Arc::from([Arc::from(what)])));
        let names: Vec<&str> = self
            .spaces
            .iter()
            .enumerate()
            .filter(|(n, _)| asked.spaces.contains(*n))
            .map(|(_, s)| s.name.as_str())
            .collect();
        let particular = !self.keepable[action as usize];
        let Ok((request, entities)) = request::request(action, permit, device, asked, &names, particular)
        else {
            return error("the facts of this device do not fit the schema");
        };
        let response = Authorizer::new().is_authorized(&request, &self.policies, &entities);
        // A policy that failed may have been the one that forbids: whatever the others say, the answer is no.
        if let Some(failed) = response.diagnostics().errors().next() {
            return error(&failed.to_string());
        }
        let policies: Arc<[Arc<str>]> = response
            .diagnostics()
            .reason()
            .map(|id| Arc::from(id.to_string()))
            .collect::<Vec<_>>()
            .into();
        match (response.decision(), action) {
            (Decision::Allow, Action::Connect)
                if device.state == LifecycleState::Quarantined
                    && !quarantine::opens(&self.policies, response.diagnostics().reason()) =>
            {
                Err((DenialCode::DeviceQuarantined, Arc::default()))
            }
            (Decision::Allow, _) => Ok(policies),
            // Nobody opened the lane; a policy that forbids says so itself.
            (Decision::Deny, Action::Connect)
                if policies.is_empty() && device.state == LifecycleState::Quarantined =>
            {
                Err((DenialCode::DeviceQuarantined, policies))
            }
            (Decision::Deny, Action::Connect) if policies.is_empty() => {
                Err((DenialCode::PolicyNoPermit, policies))
            }
            (Decision::Deny, Action::Connect) => Err((DenialCode::PolicyForbids, policies)),
            (Decision::Deny, _) => Err((DenialCode::TopicForbidden, policies)),
        }
    }
}

/// No policy can open what the profile closes. The quarantine lane is a data session too, and to enrol a device must be
/// active.
fn enrol_only(device: &DeviceFacts, credential: &CredentialFacts) -> Denial {
    let code = match device.state {
        LifecycleState::Quarantined => DenialCode::DeviceQuarantined,
        _ => DenialCode::EnrolOnly,
    };
    Denial::new(
        code,
        format!(
            "the {} certificate of device {} is for enrolment alone, by its profile",
            credential.kind, device.id
        ),
    )
}

fn lifecycle(state: LifecycleState) -> Result<(), Denial> {
    match state {
        // A quarantined device has a lane, if a policy opens it.
        LifecycleState::Active | LifecycleState::Quarantined => Ok(()),
        LifecycleState::Pending => Err(DenialCode::DevicePending.into()),
        LifecycleState::Suspended => Err(DenialCode::DeviceSuspended.into()),
        LifecycleState::Decommissioned => Err(DenialCode::DeviceDecommissioned.into()),
    }
}

fn credential_state(state: CredentialState) -> Result<(), Denial> {
    match state {
        CredentialState::Issued | CredentialState::Active => Ok(()),
        CredentialState::Superseded => Err(DenialCode::CredentialSuperseded.into()),
        CredentialState::Revoked => Err(DenialCode::CredentialRevoked.into()),
        CredentialState::Lapsed => Err(DenialCode::CredentialLapsed.into()),
        CredentialState::Expired => Err(DenialCode::CertificateExpired.into()),
    }
}

#[cfg(test)]
mod clone_tests;
#[cfg(test)]
mod lane_tests;
#[cfg(test)]
mod tests;
