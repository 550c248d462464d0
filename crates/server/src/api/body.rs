//! What requests carry.

use countersign_identity::{AuthorityId, DeviceId, IdentityRule, TenantId};
use countersign_policy::{ClientIdMode, LifecycleMove, LifecycleState, TopicSpace};
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TenantBody {
    pub id: TenantId,
    #[serde(default)]
    pub client_id_mode: Option<ClientIdMode>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TenantSettings {
    #[serde(default)]
    pub client_id_mode: Option<ClientIdMode>,
    #[serde(default)]
    pub policies: Option<String>,
    #[serde(default)]
    pub spaces: Option<Vec<TopicSpace>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HostBody {
    pub host: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AuthorityBody {
    pub id: AuthorityId,
    pub tenant: TenantId,
    #[serde(default)]
    pub identity_rule: IdentityRule,
    pub certificate: String,
}

fn active() -> LifecycleState {
    LifecycleState::Active
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeviceBody {
    pub id: DeviceId,
    #[serde(default)]
    pub model: Option<String>,
    #[serde(default)]
    pub groups: Vec<String>,
    #[serde(default = "active")]
    pub state: LifecycleState,
}

/// One device of an import.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportDevice {
    /// Its id.
    pub id: DeviceId,
    /// Its model.
    #[serde(default)]
    pub model: Option<String>,
    /// Its groups.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Where it starts.
    #[serde(default = "active")]
    pub state: LifecycleState,
    /// Its certificate, PEM.
    #[serde(default)]
    pub certificate: Option<String>,
}

/// An import.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportBody {
    /// The devices.
    pub devices: Vec<ImportDevice>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MoveBody {
    #[serde(rename = "move")]
    pub attempted: LifecycleMove,
    #[serde(default)]
    pub reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProvisionBody {
    #[serde(default)]
    pub request: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReasonBody {
    #[serde(default)]
    pub reason: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct DeviceQuery {
    pub state: Option<LifecycleState>,
    pub after: Option<String>,
    pub limit: Option<u32>,
}

#[derive(Debug, Deserialize)]
pub(super) struct ExchangeQuery {
    pub subject: Option<String>,
    pub tenant: Option<TenantId>,
    #[serde(default)]
    pub refused: bool,
    pub limit: Option<u32>,
}

#[derive(Debug, Deserialize)]
pub(super) struct TenantQuery {
    pub tenant: Option<TenantId>,
}
