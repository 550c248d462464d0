//! What is done about a suspicion: the tenant's policies on `quarantine-clone` choose.
//!
//! Only policies whose scope names the action count, those that permit and those that forbid. One that speaks of every
//! action was written for what devices ask for: by `permit (principal, action, resource)` nobody chose that a suspicion
//! takes devices out of service. A policy that fails to evaluate chooses nothing either, and may have been the one that
//! forbids: an alert is all that comes of it.

use std::fmt;

use cedar_policy::{Authorizer, Decision, PolicySet};
use countersign_identity::Timestamp;
use serde::{Deserialize, Serialize};

use super::Suspicion;
use crate::facts::DeviceFacts;
use crate::lifecycle::LifecycleState;
use crate::permit::AdmissionPermit;
use crate::request;

/// The action's id in policies.
pub const QUARANTINE_CLONE: &str = "quarantine-clone";

/// What is done about a suspicion, beside the alert that there always is: audit, log, metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CloneAction {
    /// Nothing more: somebody looks at it. What is done where no policy says otherwise.
    #[default]
    Alert,
    /// The device is quarantined, so neither holder goes on.
    Quarantine,
}

impl fmt::Display for CloneAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Alert => "alert",
            Self::Quarantine => "quarantine",
        })
    }
}

/// The action, and what chose it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CloneVerdict {
    /// What is done.
    pub action: CloneAction,
    /// The policies that determined it; empty if none did.
    pub policies: Vec<String>,
    /// Why policies could not be asked: then it is an alert.
    pub failure: Option<String>,
}

impl CloneVerdict {
    fn failed(why: impl Into<String>) -> Self {
        Self {
            failure: Some(why.into()),
            ..Self::default()
        }
    }
}

/// Asks `policies`, which are those on the action alone.
pub(crate) fn decide(
    policies: &PolicySet,
    permit: &AdmissionPermit,
    device: &DeviceFacts,
    suspicion: &Suspicion,
    now: Timestamp,
) -> CloneVerdict {
    // Of whoever is out already there is nothing to decide.
    if policies.is_empty() || device.state != LifecycleState::Active {
        return CloneVerdict::default();
    }
    let Ok((request, entities)) = request::clone(permit, device, suspicion, now) else {
        return CloneVerdict::failed("the facts of this suspicion do not fit the schema");
    };
    let response = Authorizer::new().is_authorized(&request, policies, &entities);
    if let Some(failed) = response.diagnostics().errors().next() {
        return CloneVerdict::failed(failed.to_string());
    }
    let mut names: Vec<String> = response.diagnostics().reason().map(ToString::to_string).collect();
    names.sort_unstable();
    CloneVerdict {
        action: match response.decision() {
            Decision::Allow => CloneAction::Quarantine,
            Decision::Deny => CloneAction::Alert,
        },
        policies: names,
        failure: None,
    }
}
