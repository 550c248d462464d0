//! What requests carry.

use countersign_authority::KeyStore;
use countersign_factory::RevocationReason;
use countersign_identity::{AuthorityId, DeviceId, IdentityRule, TenantId, Timestamp};
use countersign_policy::{Admission, ClientIdMode, LifecycleMove, LifecycleState, TopicSpace};
use countersign_registry::{AuthorityMove, Move, Selector};
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
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub accept_lock_out: bool,
    #[serde(default)]
    pub base: Option<u64>,
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
    #[serde(default)]
    pub admission: Admission,
    #[serde(default)]
    pub certificate: Option<String>,
    #[serde(default)]
    pub origin: AuthorityOrigin,
    #[serde(default)]
    pub key_store: KeyStore,
}

/// How an authority comes to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum AuthorityOrigin {
    /// Its holder issues; `certificate` is the CA's.
    #[default]
    Registered,
    /// We make it, root and all.
    Managed,
    /// We make it, and it issues factory stations only.
    Factory,
    /// We make the key; an external root is asked for the certificate.
    Requested,
    /// What the external root issued: `certificate` is the chain.
    Installed,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AuthoritySettings {
    #[serde(default)]
    pub identity_rule: Option<IdentityRule>,
    #[serde(default)]
    pub admission: Option<Admission>,
    #[serde(default)]
    pub leave_out: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct AuthorityMoveBody {
    #[serde(flatten)]
    pub attempted: AuthorityMove,
    #[serde(default)]
    pub reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CertificateBody {
    pub certificate: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BackupBody {
    pub path: std::path::PathBuf,
    #[serde(default)]
    pub with_keys: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReasonBody {
    pub reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListBody {
    pub lists: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BindBody {
    pub authority: Option<AuthorityId>,
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
    #[serde(default)]
    pub authority: Option<AuthorityId>,
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
    /// The authority whose certificates may be learned for it at first contact.
    #[serde(default)]
    pub authority: Option<AuthorityId>,
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
    #[serde(default)]
    pub until: Option<Timestamp>,
    #[serde(default)]
    pub evidence: Option<String>,
}

impl From<MoveBody> for Move {
    fn from(body: MoveBody) -> Self {
        Self {
            attempted: body.attempted,
            reason: body.reason,
            until: body.until,
            evidence: body.evidence,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BulkMoveBody {
    pub selector: Selector,
    #[serde(rename = "move")]
    pub attempted: LifecycleMove,
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub until: Option<Timestamp>,
    #[serde(default)]
    pub evidence: Option<String>,
    #[serde(default)]
    pub dry_run: bool,
    #[serde(default)]
    pub after: Option<DeviceId>,
    #[serde(default)]
    pub limit: Option<u32>,
}

#[derive(Debug, Deserialize)]
pub(super) struct ReceiptQuery {
    pub tenant: Option<TenantId>,
    pub limit: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProvisionBody {
    pub request: String,
    #[serde(default)]
    pub profile: Option<String>,
    #[serde(default)]
    pub authority: Option<AuthorityId>,
    /// Whether the device is added if it is not there.
    #[serde(default)]
    pub add_device: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RevokeBody {
    #[serde(default)]
    pub code: RevocationReason,
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

#[derive(Debug, Deserialize)]
pub(super) struct LimitQuery {
    pub limit: Option<u32>,
}
