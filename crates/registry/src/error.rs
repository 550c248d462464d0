//! What can go wrong, each with its cure.

use std::path::PathBuf;
use std::time::Duration;

use countersign_factory::BatchRefusal;
use countersign_factory::attest::{Refusal, Refused};
use countersign_identity::{
    AuthorityId, BatchId, DeviceId, Fingerprint, ServiceId, StationId, TenantId, Timestamp,
};
use countersign_policy::lifecycle::IllegalMove;
use countersign_policy::{ClaimId, ClaimRefusal, LaneRefusal, LifecycleState};

/// Why the registry did not do what it was asked. Whatever it is, nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Another process has the data directory.
    #[error("the data directory {} is in use by another countersign process{}; hint: stop it, or let this command talk to it", path.display(), pid.map(|p| format!(" (pid {p})")).unwrap_or_default())]
    InUse {
        /// The data directory.
        path: PathBuf,
        /// The other process, if it can be told.
        pid: Option<u32>,
    },
    /// The database was written by a newer version.
    #[error("{} was written by a newer countersign (schema {found}, this one knows {known}); hint: use that version, or restore a backup of before", path.display())]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The newest schema that is known here.
        known: i64,
    },
    /// A file that is not ours.
    #[error("{} is no countersign database; hint: choose another data directory", .0.display())]
    Foreign(PathBuf),
    /// There is no data directory yet.
    #[error("there is no countersign data directory at {}; hint: countersign init --data {}", .0.display(), .0.display())]
    Missing(PathBuf),
    /// The disk is full.
    #[error(
        "the disk is full: nothing was changed; hint: free space on the file system of the data directory"
    )]
    DiskFull,
    /// The database failed.
    #[error("the database failed: {0}; hint: look at the disk and at the permissions of the data directory")]
    Database(String),
    /// A rule of the database's own refused the change: the last guard behind the checks of this program, which should
    /// have told why. It ends that one change; the storage is sound.
    #[error(
        "a rule of the database refused the change, and nothing of it was made: {0}; hint: this is a fault of the program: please report it, with what was asked for"
    )]
    Constraint(String),
    /// The writer is gone: it failed to make changes durable, and no further change is promised.
    #[error("the registry takes no changes: {0}; hint: see to the disk, then restart the server")]
    Closed(String),
    /// The clock is behind the newest time that is known to have been.
    #[error("the clock is behind: it says {now}, and this registry was written at {mark}, {} later; nothing is minted until it is past that; hint: set the clock (a time service such as chrony keeps it right); if it was {mark} that was wrong: countersign clock reset --reason TEXT", span(mark.since(*now)))]
    ClockBehind {
        /// What the clock says.
        now: Timestamp,
        /// The newest time that is known to have been.
        mark: Timestamp,
    },
    /// The clock is not known to be right, and the configuration asks for that.
    #[error(
        "the clock is not known to be synchronised ({0}), and issuance.require_clock_sync is on: nothing is minted; hint: let a time service set it (chrony with rtcsync, ntpd or systemd-timesyncd; timedatectl shows it), or turn issuance.require_clock_sync off"
    )]
    ClockUnsynchronised(String),
    /// A file operation failed.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// No such tenant.
    #[error("there is no tenant {0}; hint: countersign tenant list")]
    NoTenant(TenantId),
    /// No such receipt.
    #[error("there is no receipt {0}, or none any more; hint: countersign receipt list")]
    NoReceipt(String),
    /// No such device.
    #[error("tenant {tenant} has no device {device}; hint: countersign device list --tenant {tenant}")]
    NoDevice {
        /// The tenant.
        tenant: TenantId,
        /// The device.
        device: DeviceId,
    },
    /// No such authority.
    #[error("there is no authority {0}; hint: countersign authority list")]
    NoAuthority(String),
    /// No such station.
    #[error("there is no station {0}; hint: countersign factory station list")]
    NoStation(StationId),
    /// No such service.
    #[error("there is no service {0}; hint: countersign service list")]
    NoService(ServiceId),
    /// No such credential.
    #[error("there is no credential with the fingerprint {0}")]
    NoCredential(Fingerprint),
    /// No such batch.
    #[error("tenant {tenant} has no batch {batch}; hint: countersign factory batch list --tenant {tenant}")]
    NoBatch {
        /// The tenant.
        tenant: TenantId,
        /// The batch.
        batch: BatchId,
    },
    /// A batch does not take a device.
    #[error(transparent)]
    Batch(#[from] BatchRefusal),
    /// No such claim.
    #[error("there is no claim {0}; hint: countersign factory claim list")]
    NoClaim(ClaimId),
    /// It exists already.
    #[error("{0} exists already")]
    Exists(String),
    /// The lifecycle table does not have this move.
    #[error("device {device}: {fault}")]
    Move {
        /// The device.
        device: DeviceId,
        /// Why not.
        fault: IllegalMove,
    },
    /// The key belongs to another device.
    #[error(
        "the key of this certificate is registered for device {0}: two devices with one key cannot be told apart; hint: give each device a key of its own"
    )]
    SharedKey(String),
    /// The certificate had ended before the registry was restored, which never saw it otherwise.
    #[error(
        "the certificate with the serial number {serial} of authority {authority} had been revoked or replaced after the backup was made that this registry was restored from; hint: issue the device a new one, with a new key: countersign device provision"
    )]
    RevokedBefore {
        /// The authority.
        authority: AuthorityId,
        /// Its serial number, hex.
        serial: String,
    },
    /// An authority cannot be closed while devices depend on it.
    #[error("{count} devices depend on authority {authority} and would be locked out, {limit} are accepted: {}{}; hint: renew their certificates under another authority (countersign authority dependents {authority}), or accept the loss with --leave-out {count}", examples.join(", "), if *count > examples.len() as u64 { ", …" } else { "" })]
    Dependents {
        /// The authority.
        authority: AuthorityId,
        /// How many.
        count: u64,
        /// How many may be locked out.
        limit: u64,
        /// Some of them.
        examples: Vec<String>,
    },
    /// No such version.
    #[error(
        "tenant {tenant} has no policy version {number}; hint: countersign policy list --tenant {tenant}"
    )]
    NoPolicyVersion {
        /// The tenant.
        tenant: TenantId,
        /// The version that was asked for.
        number: u64,
    },
    /// Somebody else changed the policies meanwhile.
    #[error(
        "the policies were changed meanwhile: version {current} is in force, and this change was made of version {base}; hint: look at countersign policy diff {base} {current}, then change them again"
    )]
    PolicyMoved {
        /// The version that the change was made of.
        base: u64,
        /// The version in force.
        current: u64,
    },
    /// Whoever asks does not prove that they may.
    #[error("{0}")]
    Unauthorised(String),
    /// What was shown does not lead to a certificate by this profile.
    #[error("{0}")]
    Profile(String),
    /// The device may not enrol now.
    #[error("device {device} is {state}")]
    NotActive {
        /// The device.
        device: DeviceId,
        /// Its state.
        state: LifecycleState,
    },
    /// The renewal lane refuses.
    #[error("{0}")]
    Lane(LaneRefusal),
    /// A claim refuses.
    #[error("{0}")]
    Claim(ClaimRefusal),
    /// An attestation is refused.
    #[error("{0}")]
    Attestation(Refused),
    /// No such endorsement authority.
    #[error("there is no endorsement authority {0}; hint: countersign attestation authority list")]
    NoEndorsementAuthority(AuthorityId),
    /// No such endorsement key.
    #[error("no device has the endorsement key {0}; hint: countersign attestation key list DEVICE")]
    NoEndorsementKey(Fingerprint),
    /// The input breaks a rule.
    #[error("{0}")]
    Refused(String),
}

impl From<LaneRefusal> for RegistryError {
    fn from(refusal: LaneRefusal) -> Self {
        Self::Lane(refusal)
    }
}

impl From<ClaimRefusal> for RegistryError {
    fn from(refusal: ClaimRefusal) -> Self {
        Self::Claim(refusal)
    }
}

impl From<Refused> for RegistryError {
    fn from(refused: Refused) -> Self {
        Self::Attestation(refused)
    }
}

impl From<Refusal> for RegistryError {
    fn from(refusal: Refusal) -> Self {
        Self::Attestation(refusal.into())
    }
}

/// A length of time, for people: its two largest units.
fn span(d: Duration) -> String {
    let seconds = d.as_secs();
    let parts = [
        (seconds / 86_400, "d"),
        (seconds / 3600 % 24, "h"),
        (seconds / 60 % 60, "min"),
        (seconds % 60, "s"),
    ];
    let shown: Vec<_> = parts
        .iter()
        .skip_while(|(n, _)| *n == 0)
        .take(2)
        .filter(|(n, _)| *n > 0)
        .map(|(n, unit)| format!("{n} {unit}"))
        .collect();
    if shown.is_empty() {
        "less than 1 s".into()
    } else {
        shown.join(" ")
    }
}

impl From<rusqlite::Error> for RegistryError {
    fn from(e: rusqlite::Error) -> Self {
        match e.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::DiskFull,
            Some(rusqlite::ErrorCode::ConstraintViolation) => Self::Constraint(e.to_string()),
            _ => Self::Database(e.to_string()),
        }
    }
}

impl RegistryError {
    /// Whether it says that storage failed, not that the question was wrong.
    pub fn is_storage(&self) -> bool {
        matches!(
            self,
            Self::DiskFull | Self::Database(_) | Self::Closed(_) | Self::File { .. }
        )
    }

    /// Whether a job of many items must end with it, and be undone: what it came upon may have been half written. Any
    /// other refuses one item, before anything of it is written.
    pub(crate) fn ends_job(&self) -> bool {
        self.is_storage() || matches!(self, Self::Constraint(_))
    }
}
