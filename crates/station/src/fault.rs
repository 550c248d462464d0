//! What can go wrong, as the command line tells it.

use std::io;

use countersign_factory::key::KeyFault;
use countersign_factory::request::RequestFault;
use countersign_factory::station::{JournalFault, StationFault};
use countersign_identity::DeviceId;

/// A failure. Nothing was handed out.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The grant does not allow it.
    #[error(transparent)]
    Refused(#[from] StationFault),
    /// The journal is damaged.
    #[error(
        "{0}; the station issues nothing on a damaged journal: take a copy of its folder, and ask for a new grant"
    )]
    Journal(#[from] JournalFault),
    /// The request for a certificate.
    #[error(
        "the device's request is refused: {0}; hint: let the device make a new one (PKCS#10, PEM or DER)"
    )]
    Request(#[from] RequestFault),
    /// There is no key yet.
    #[error("there is no station in {0}; hint: countersign-station init makes one")]
    NoStation(String),
    /// There is no grant yet.
    #[error(
        "the station has no grant; hint: let an operator add it (countersign factory station add, with station.csr), then countersign-station install GRANT"
    )]
    NoGrant,
    /// The grant was closed.
    #[error(
        "the grant is closed and the key destroyed; hint: a new grant begins with countersign-station init in another folder"
    )]
    Closed,
    /// Another grant is installed.
    #[error(
        "another grant is installed; hint: one folder holds one grant: begin another one with countersign-station init"
    )]
    OtherGrant,
    /// A grant that is not for this station.
    #[error("the grant is refused: {0}; hint: let it be made for the station.csr of this folder")]
    Grant(String),
    /// No certificate was issued for the device.
    #[error("no certificate was issued for {0}; hint: countersign-station status lists them")]
    NoDevice(DeviceId),
    /// No challenge is open.
    #[error("no challenge is open for {0}; hint: countersign-station challenge {0} makes one")]
    NoChallenge(DeviceId),
    /// The device's signature is wrong.
    #[error(
        "{0} does not hold the key of its certificate: the signature does not verify; hint: sign the challenge as it is, without a line break; if it stays so, certificate and key were mixed up on the line"
    )]
    Unproven(DeviceId),
    /// Storage.
    #[error("cannot {what} {file}: {source}{}", hint_of(source))]
    Storage {
        /// What was tried.
        what: &'static str,
        /// On which file.
        file: String,
        /// What the operating system says.
        source: io::Error,
    },
    /// Another process has the folder.
    #[error("another countersign-station works in this folder; hint: wait for it, or use another folder")]
    InUse,
    /// A write failed before.
    #[error("a write failed, and nobody knows what is on the disk; hint: see to the disk, then start again")]
    Lost,
    /// Something is not there that is named.
    #[error("{0}")]
    Invalid(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

fn hint_of(e: &io::Error) -> &'static str {
    match e.kind() {
        io::ErrorKind::StorageFull => "; hint: the disk is full: free space, then repeat",
        io::ErrorKind::PermissionDenied => "",
        _ => "; hint: look at the disk",
    }
}

impl From<KeyFault> for Fault {
    fn from(e: KeyFault) -> Self {
        Self::Failed(e.to_string())
    }
}

impl Fault {
    /// For `map_err`.
    pub fn storage(what: &'static str, file: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let file = file.into();
        move |source| Self::Storage { what, file, source }
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(fault) => fault.code(),
            Self::Journal(fault) => fault.code(),
            Self::Request(_) => "station.request",
            Self::NoStation(_) => "station.none",
            Self::NoGrant => "station.no-grant",
            Self::Closed => "station.closed",
            Self::OtherGrant => "station.other-grant",
            Self::Grant(_) => "station.grant",
            Self::NoDevice(_) => "station.no-device",
            Self::NoChallenge(_) => "station.no-challenge",
            Self::Unproven(_) => "station.unproven",
            Self::Storage { .. } => "storage",
            Self::InUse => "storage.in-use",
            Self::Lost => "storage.lost",
            Self::Invalid(_) => "invalid",
            Self::Failed(_) => "failed",
        }
    }

    /// The exit code: 3 not found, 4 refused, 5 storage, 1 anything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoStation(_) | Self::NoGrant | Self::NoDevice(_) | Self::NoChallenge(_) => 3,
            Self::Refused(_)
            | Self::Request(_)
            | Self::Closed
            | Self::OtherGrant
            | Self::Grant(_)
            | Self::Unproven(_)
            | Self::Invalid(_) => 4,
            Self::Journal(_) | Self::Storage { .. } | Self::InUse | Self::Lost => 5,
            Self::Failed(_) => 1,
        }
    }
}
