//! Every refusal of the CA, with a stable code, an HTTP status and its cure.

use countersign_factory::RequestFault;
use countersign_factory::grant::ProfileMismatch;
use countersign_identity::{AuthorityId, DeviceId, Timestamp};

/// Why the CA did nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CaError {
    /// The request cannot be read.
    #[error("the request cannot be read: {0}")]
    Malformed(String),
    /// A version of the protocol that is not known.
    #[error("protocol version {0} is not known here; hint: run the same countersign on both sides")]
    Version(u16),
    /// No such authority.
    #[error("the CA has no authority {0}; hint: countersign ca authority add, on the CA")]
    NoAuthority(AuthorityId),
    /// The authority issues nothing any more.
    #[error("authority {0} is closed at the CA: it issues nothing; hint: use an open one")]
    AuthorityClosed(AuthorityId),
    /// No such profile.
    #[error("the CA has no profile {0}; hint: add [[profiles]] to ca.toml, on the CA, and restart it")]
    NoProfile(String),
    /// The certificate request does not hold.
    #[error("{0}")]
    Request(RequestFault),
    /// The key does not fit the profile, or the device cannot be named as it has it.
    #[error("{0}")]
    Profile(ProfileMismatch),
    /// No open batch fits.
    #[error(
        "no open batch of the CA covers device {device} of authority {authority} with profile {profile}; hint: countersign ca batch add, on the CA"
    )]
    NoBatch {
        /// The device.
        device: DeviceId,
        /// The authority.
        authority: AuthorityId,
        /// The profile.
        profile: String,
    },
    /// The id does not fit the batch's pattern.
    #[error(
        "device id {device} does not fit {pattern}, the pattern of batch {batch}; hint: correct the id, or make another batch on the CA"
    )]
    Pattern {
        /// The device.
        device: DeviceId,
        /// The batch.
        batch: String,
        /// Its pattern.
        pattern: String,
    },
    /// The quota is used up.
    #[error(
        "the quota of batch {batch} is used up: {quota} certificates; hint: countersign ca batch add, on the CA"
    )]
    Quota {
        /// The batch.
        batch: String,
        /// Its quota.
        quota: u64,
    },
    /// The one-time secret does not hold.
    #[error(
        "the one-time secret of device {0} is wrong, used or expired; hint: countersign ca secret {0}, on the CA"
    )]
    Secret(DeviceId),
    /// The certificate that is shown was not issued here.
    #[error(
        "the certificate shown as evidence was not issued by this CA for this tenant; hint: enrol with a one-time secret (countersign ca secret, on the CA)"
    )]
    NotIssuedHere,
    /// It is of another authority, and nobody said that this one takes its place.
    #[error(
        "the certificate shown as evidence is of authority {of}, and {by} does not succeed it; hint: countersign ca authority succeeds {by} {of}, on the CA, or ask {of}"
    )]
    NotSucceeded {
        /// The authority of the evidence.
        of: AuthorityId,
        /// The authority that is asked.
        by: AuthorityId,
    },
    /// It has ended.
    #[error(
        "the certificate shown as evidence is {0}; hint: enrol with a one-time secret (countersign ca secret, on the CA)"
    )]
    EvidenceEnded(String),
    /// It has expired.
    #[error(
        "the certificate shown as evidence expired at {0}; hint: enrol with a one-time secret (countersign ca secret, on the CA)"
    )]
    EvidenceExpired(Timestamp),
    /// Nothing proves that its holder asks.
    #[error(
        "nothing proves that the holder of the certificate shown asks for this: the request is for another key; hint: renew with the same key, or sign the request with the old one (header countersign-renewal-proof)"
    )]
    NotProven,
    /// From this certificate no such one follows.
    #[error(
        "a certificate of profile {from} is no evidence for one of profile {to}; hint: make a batch or a one-time secret on the CA"
    )]
    ProfileStep {
        /// The profile of the evidence.
        from: String,
        /// The profile that is asked.
        to: String,
    },
    /// The key of another device.
    #[error(
        "the key has a certificate for another device, {0}: two devices with one key cannot be told apart; hint: give each device a key of its own"
    )]
    KeyOfOther(String),
    /// The device has a certificate for another key.
    #[error(
        "device {0} has a certificate for another key: a batch gives each id one; hint: renew with it, or countersign ca secret {0}, on the CA"
    )]
    HasAnotherKey(DeviceId),
    /// Its certificate was revoked.
    #[error(
        "the certificate of device {0} was revoked; hint: give it a new key and a one-time secret (countersign ca secret {0}, on the CA)"
    )]
    Revoked(DeviceId),
    /// The profile demands a new key.
    #[error("profile {0} demands a new key with every certificate; hint: make a new key")]
    NewKeyDemanded(String),
    /// A newer certificate is there.
    #[error(
        "the key has a certificate already, and it has ended or is due itself; hint: renew with that one"
    )]
    NotTheNewest,
    /// Too many certificates in force.
    #[error(
        "device {device} has {most} certificates in force, the most that certificates_per_device_max of ca.toml allows; hint: revoke those that are not used"
    )]
    TooMany {
        /// The device.
        device: DeviceId,
        /// The limit.
        most: u32,
    },
    /// Too many certificates whose time is not over.
    #[error(
        "device {device} has {most} certificates that are not expired, ended ones among them, the most that certificates_per_device_max of ca.toml allows by renewal; hint: wait until one has expired, or enrol with a one-time secret (countersign ca secret {device}, on the CA)"
    )]
    TooOften {
        /// The device.
        device: DeviceId,
        /// The limit.
        most: u32,
    },
    /// The clock went back.
    #[error(
        "the CA's clock says {now}, and has said {before} before: nothing is signed; hint: set the clock; if it had been ahead by mistake: countersign ca clock reset --reason TEXT, on the CA"
    )]
    ClockBehind {
        /// Now.
        now: Timestamp,
        /// What it said before.
        before: Timestamp,
    },
    /// A key cannot be reached or does not sign.
    #[error("the CA's key cannot be used: {0}")]
    Keys(String),
    /// Nothing was minted.
    #[error("{0}")]
    Mint(String),
    /// Something is there already.
    #[error("{0} exists already; hint: choose another name")]
    Exists(String),
    /// Something is not there.
    #[error("{0}")]
    NotFound(String),
    /// The operator's input breaks a rule.
    #[error("{0}")]
    Invalid(String),
    /// The disk is full.
    #[error("the CA's disk is full: nothing was issued; hint: free space on the file system of its folder")]
    DiskFull,
    /// Another command writes.
    #[error("another command is writing to the CA's store: nothing was done; hint: ask again")]
    Busy,
    /// The store failed.
    #[error("the CA's store failed: {0}; hint: look at the disk and at the permissions of its folder")]
    Storage(String),
    /// After a failed commit nothing is promised any more.
    #[error("the CA takes no changes: {0}; hint: see to its disk, then restart it")]
    Closed(String),
    /// Somebody else serves it.
    #[error("the CA in {0} is served by another process; hint: stop that one")]
    InUse(String),
}

impl CaError {
    /// Its name: never changes its meaning.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::Version(_) => "version",
            Self::NoAuthority(_) => "no-authority",
            Self::AuthorityClosed(_) => "authority-closed",
            Self::NoProfile(_) => "no-profile",
            Self::Request(_) => "request",
            Self::Profile(ProfileMismatch::Name(_)) => "name",
            Self::Profile(_) => "key-kind",
            Self::NoBatch { .. } => "no-batch",
            Self::Pattern { .. } => "pattern",
            Self::Quota { .. } => "quota",
            Self::Secret(_) => "secret",
            Self::NotIssuedHere => "not-issued-here",
            Self::NotSucceeded { .. } => "not-succeeded",
            Self::EvidenceEnded(_) => "evidence-ended",
            Self::EvidenceExpired(_) => "evidence-expired",
            Self::NotProven => "not-proven",
            Self::ProfileStep { .. } => "profile-step",
            Self::KeyOfOther(_) => "key-of-other",
            Self::HasAnotherKey(_) => "has-another-key",
            Self::Revoked(_) => "revoked",
            Self::NewKeyDemanded(_) => "new-key-demanded",
            Self::NotTheNewest => "not-the-newest",
            Self::TooMany { .. } => "too-many",
            Self::TooOften { .. } => "too-often",
            Self::ClockBehind { .. } => "clock-behind",
            Self::Keys(_) => "keys",
            Self::Mint(_) => "mint",
            Self::Exists(_) => "exists",
            Self::NotFound(_) => "not-found",
            Self::Invalid(_) => "invalid",
            Self::DiskFull => "disk-full",
            Self::Busy => "busy",
            Self::Storage(_) => "storage",
            Self::Closed(_) => "closed",
            Self::InUse(_) => "in-use",
        }
    }

    /// As HTTP has it.
    pub const fn status(&self) -> u16 {
        match self {
            Self::Malformed(_) | Self::Version(_) => 400,
            Self::Secret(_) => 401,
            Self::NotIssuedHere
            | Self::NotSucceeded { .. }
            | Self::EvidenceEnded(_)
            | Self::EvidenceExpired(_)
            | Self::NotProven
            | Self::ProfileStep { .. }
            | Self::NoBatch { .. }
            | Self::Pattern { .. }
            | Self::Quota { .. } => 403,
            Self::NoAuthority(_) | Self::NoProfile(_) | Self::NotFound(_) => 404,
            Self::KeyOfOther(_) | Self::HasAnotherKey(_) | Self::Exists(_) | Self::NotTheNewest => 409,
            Self::ClockBehind { .. }
            | Self::Keys(_)
            | Self::Busy
            | Self::Storage(_)
            | Self::Closed(_)
            | Self::InUse(_) => 503,
            Self::DiskFull => 507,
            Self::AuthorityClosed(_)
            | Self::Request(_)
            | Self::Profile(_)
            | Self::Revoked(_)
            | Self::NewKeyDemanded(_)
            | Self::TooMany { .. }
            | Self::TooOften { .. }
            | Self::Mint(_)
            | Self::Invalid(_) => 422,
        }
    }
}

impl From<rusqlite::Error> for CaError {
    fn from(e: rusqlite::Error) -> Self {
        Self::from(&e)
    }
}

impl From<&rusqlite::Error> for CaError {
    fn from(e: &rusqlite::Error) -> Self {
        match e.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::DiskFull,
            Some(rusqlite::ErrorCode::DatabaseBusy) => Self::Busy,
            _ => Self::Storage(e.to_string()),
        }
    }
}

impl From<countersign_authority::FolderError> for CaError {
    fn from(e: countersign_authority::FolderError) -> Self {
        Self::Storage(e.to_string())
    }
}

impl From<countersign_authority::HierarchyError> for CaError {
    fn from(e: countersign_authority::HierarchyError) -> Self {
        Self::Keys(e.to_string())
    }
}
