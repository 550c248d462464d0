//! What can fail, as API and CLI tell it: a status, a message, a hint. Exit codes follow from the status.

use countersign_authority::{FolderError, HierarchyError, MintError};
use countersign_factory::attest::Refusal as AttestationRefusal;
use countersign_policy::{ClaimRefusal, LifecycleState};
use countersign_registry::RegistryError;

use crate::ca::error::CaError;

/// The status of a change whose receipt is partial; the API itself answers it with 200 and the receipt.
const PARTIAL: u16 = 207;

/// A failure with its cure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The HTTP status.
    pub status: u16,
    /// What went wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The device's state, if that is the reason.
    pub state: Option<LifecycleState>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl Failure {
    fn new(status: u16, text: &str) -> Self {
        match text.split_once("; hint: ") {
            Some((message, hint)) => Self {
                status,
                message: message.into(),
                hint: Some(hint.into()),
                state: None,
            },
            None => Self {
                status,
                message: text.into(),
                hint: None,
                state: None,
            },
        }
    }

    /// As another process told it: a status, the cause and, after "; hint: ", the cure.
    pub fn told(status: u16, text: &str) -> Self {
        Self::new(status, text)
    }

    /// The input breaks a rule.
    pub fn invalid(text: impl AsRef<str>) -> Self {
        Self::new(422, text.as_ref())
    }

    /// The answer is no.
    pub fn refused(text: impl AsRef<str>) -> Self {
        Self::new(403, text.as_ref())
    }

    /// There is no such thing.
    pub fn not_found(text: impl AsRef<str>, hint: &str) -> Self {
        Self {
            hint: Some(hint.into()),
            ..Self::new(404, text.as_ref())
        }
    }

    /// A fault of ours or of the machine.
    pub fn internal(text: impl AsRef<str>) -> Self {
        Self::new(500, text.as_ref())
    }

    /// Somebody else has what is needed: a port, the data directory, the server.
    pub fn unavailable(text: impl AsRef<str>, hint: &str) -> Self {
        Self {
            hint: Some(hint.into()),
            ..Self::new(503, text.as_ref())
        }
    }

    /// A change is made and in force, and not everybody has confirmed it.
    pub fn partial(text: impl AsRef<str>) -> Self {
        Self::new(PARTIAL, text.as_ref())
    }

    /// The CLI's exit code, stable: 3 not found, 4 refused, 5 storage, port or server not available, 6 done in part, 1
    /// anything else.
    pub fn exit_code(&self) -> u8 {
        match self.status {
            404 => 3,
            PARTIAL => 6,
            400..=499 => 4,
            503 | 507 => 5,
            _ => 1,
        }
    }
}

impl From<RegistryError> for Failure {
    fn from(e: RegistryError) -> Self {
        let status = match &e {
            RegistryError::NoTenant(_)
            | RegistryError::NoDevice { .. }
            | RegistryError::NoAuthority(_)
            | RegistryError::NoBatch { .. }
            | RegistryError::NoClaim(_)
            | RegistryError::NoStation(_)
            | RegistryError::NoPolicyVersion { .. }
            | RegistryError::NoReceipt(_)
            | RegistryError::NoService(_)
            | RegistryError::NoEndorsementAuthority(_)
            | RegistryError::NoEndorsementKey(_)
            | RegistryError::NoCredential(_) => 404,
            RegistryError::Exists(_)
            | RegistryError::Move { .. }
            | RegistryError::SharedKey(_)
            | RegistryError::RevokedBefore { .. }
            | RegistryError::Batch(_)
            | RegistryError::PolicyMoved { .. }
            | RegistryError::Dependents { .. } => 409,
            RegistryError::Unauthorised(_) => 401,
            RegistryError::Claim(ClaimRefusal::Unknown) => 401,
            RegistryError::Profile(_)
            | RegistryError::NotActive { .. }
            | RegistryError::Lane(_)
            | RegistryError::Claim(_) => 403,
            RegistryError::Attestation(refused) => match refused.refusal {
                AttestationRefusal::Malformed => 422,
                _ => 403,
            },
            RegistryError::Refused(_) => 422,
            RegistryError::Constraint(_) => 500,
            RegistryError::DiskFull => 507,
            RegistryError::ClockBehind { .. }
            | RegistryError::ClockUnsynchronised(_)
            | RegistryError::InUse { .. }
            | RegistryError::Newer { .. }
            | RegistryError::Foreign(_)
            | RegistryError::Missing(_)
            | RegistryError::Database(_)
            | RegistryError::Closed(_)
            | RegistryError::File { .. } => 503,
        };
        let state = match &e {
            RegistryError::NotActive { state, .. } => Some(*state),
            _ => None,
        };
        Self {
            state,
            ..Self::new(status, &e.to_string())
        }
    }
}

impl From<CaError> for Failure {
    fn from(e: CaError) -> Self {
        Self::new(e.status(), &e.to_string())
    }
}

impl From<FolderError> for Failure {
    fn from(e: FolderError) -> Self {
        Self::new(503, &e.to_string())
    }
}

impl From<HierarchyError> for Failure {
    fn from(e: HierarchyError) -> Self {
        Self::new(503, &e.to_string())
    }
}

impl From<MintError> for Failure {
    fn from(e: MintError) -> Self {
        Self::new(422, &e.to_string())
    }
}
