//! The quarantine lane: diagnostics out, remedial firmware in, and nothing else, whatever policies say.
//!
//! A quarantined device connects only if one of the policies that permit it says `@quarantine("open")`: a policy that
//! was written for healthy devices never opens the lane by accident. Inside, policies may narrow what the lane has, and
//! cannot widen it: the lane is this code. A tenant that gives the name of a lane's space to other topics has closed
//! the lane for them; it has not moved it.

use cedar_policy::PolicySet;

use crate::decide::{Action, DataFacts};
use crate::denial::{Denial, DenialCode};
use crate::facts::DeviceFacts;
use crate::lifecycle::LifecycleState;
use crate::spaces::{DIAGNOSTICS, FIRMWARE, TopicSpace};

/// The annotation of a policy that opens the lane, and its only value.
pub(crate) const ANNOTATION: (&str, &str) = ("quarantine", "open");

/// The one space of the lane for each action; connecting has none.
const fn lane_of(action: Action) -> Option<(&'static str, &'static str)> {
    match action {
        Action::Connect => None,
        Action::Publish => Some(DIAGNOSTICS),
        Action::Subscribe => Some(FIRMWARE),
    }
}

/// Whether one of the policies that permit opens the lane.
pub(crate) fn opens<'a>(
    policies: &PolicySet,
    mut permitting: impl Iterator<Item = &'a cedar_policy::PolicyId>,
) -> bool {
    permitting.any(|id| {
        policies
            .policy(id)
            .and_then(|p| p.annotation(ANNOTATION.0))
            .is_some_and(|value| value == ANNOTATION.1)
    })
}

/// What stands above all policies when data is asked for: a device that is not active has the lane or nothing.
///
/// # Errors
/// The [`Denial`].
pub(crate) fn seal(
    action: Action,
    device: &DeviceFacts,
    spaces: &[TopicSpace],
    asked: DataFacts,
) -> Result<(), Denial> {
    match device.state {
        LifecycleState::Active => return Ok(()),
        LifecycleState::Quarantined => {}
        LifecycleState::Pending => return Err(DenialCode::DevicePending.into()),
        LifecycleState::Suspended => return Err(DenialCode::DeviceSuspended.into()),
        LifecycleState::Decommissioned => return Err(DenialCode::DeviceDecommissioned.into()),
    }
    let Some((name, filter)) = lane_of(action) else {
        return Err(DenialCode::DeviceQuarantined.into());
    };
    let held = spaces
        .iter()
        .enumerate()
        .any(|(n, s)| s.name == name && s.filter == filter && asked.spaces.contains(n));
    if held && !asked.retain {
        return Ok(());
    }
    Err(Denial::new(
        DenialCode::TopicForbidden,
        format!(
            "device {} is quarantined: in the lane it may {} only in the space {name}, {filter}, and retain nothing",
            device.id,
            action.name()
        ),
    ))
}
