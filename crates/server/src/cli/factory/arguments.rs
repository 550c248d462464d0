//! What can be asked of the factory.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use countersign_factory::DeviceStart;
use countersign_factory::station::IdRange;
use countersign_identity::{AuthorityId, BatchId, IdPattern, StationId, TenantId, Timestamp};

use crate::cli::arguments::RevocationArguments;

use crate::cli::claim::ClaimCommand;

#[derive(Subcommand)]
pub enum FactoryCommand {
    /// Batches: planned numbers of identities of one model
    #[command(subcommand)]
    Batch(BatchCommand),
    /// Claims: one secret or certificate for many devices, good for the ids on its list
    #[command(subcommand)]
    Claim(ClaimCommand),
    /// Issue identities of a batch in bulk; what was cut off is simply repeated
    Issue(IssueArguments),
    /// Stations: machines that issue identities of a batch without any network
    #[command(subcommand)]
    Station(StationCommand),
    /// Reconcile a station's journal: register what keeps its terms, report the rest; safe to repeat
    Reconcile {
        /// What countersign-station export wrote
        journal: PathBuf,
        /// Accept a journal that ends anywhere: what is left of a station that cannot export any more
        #[arg(long)]
        salvaged: bool,
    },
    /// The line's confirm step: certificates are on their devices, and were challenged there; they will not lapse
    Confirm {
        /// The batch
        #[arg(long)]
        batch: BatchId,
        /// Its tenant
        #[arg(long, default_value = "default")]
        tenant: TenantId,
        /// Certificate fingerprints or device ids
        names: Vec<String>,
        /// A file with one of them a line, or a CSV file with a column fingerprint or device, such as index.csv
        #[arg(long)]
        list: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
pub enum StationCommand {
    /// Grant a station so many identities of a batch, and write the file that it installs
    Add {
        /// An id for it
        id: StationId,
        /// Its tenant
        #[arg(long, default_value = "default")]
        tenant: TenantId,
        /// The batch of its devices
        #[arg(long)]
        batch: BatchId,
        /// Its request: station.csr of countersign-station init
        #[arg(long)]
        csr: PathBuf,
        /// How many certificates it may issue; they are taken from the batch's quota at once
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
        quota: u64,
        /// It may issue from this time on (RFC 3339)
        #[arg(long, value_parser = time)]
        from: Timestamp,
        /// It may issue until this time (RFC 3339)
        #[arg(long, value_parser = time)]
        to: Timestamp,
        /// The ids it may give: a pattern, or FIRST..LAST [default: the batch's pattern]
        #[arg(long)]
        ids: Option<IdRange>,
        /// Grant ids although devices have them already, or another open grant has them: whoever is registered first keeps
        /// the id, and the other certificate is refused when its journal is reconciled
        #[arg(long)]
        allow_overlap: bool,
        /// The factory CA that vouches for it [default: the tenant's newest]
        #[arg(long)]
        authority: Option<AuthorityId>,
        /// The grant file to write [default: ID.grant.json]
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// List stations
    List {
        /// The tenant
        #[arg(long, default_value = "default")]
        tenant: TenantId,
    },
    /// Show a station: what it may issue, and how far it has come
    Show(OneStation),
    /// Print a station's grant file again
    Grant(OneStation),
    /// A stolen station: what it has not accounted for yet is refused for good
    Revoke {
        #[command(flatten)]
        station: OneStation,
        /// Revoke the certificates that were accepted from it too; ends their sessions
        #[arg(long)]
        with_devices: bool,
        #[command(flatten)]
        why: RevocationArguments,
    },
}

#[derive(Args)]
pub struct OneStation {
    /// The station
    pub id: StationId,
    /// Its tenant
    #[arg(long, default_value = "default")]
    pub tenant: TenantId,
}

#[derive(Subcommand)]
pub enum BatchCommand {
    /// Plan a batch
    Add {
        /// An id for it
        id: BatchId,
        /// Its tenant
        #[arg(long, default_value = "default")]
        tenant: TenantId,
        /// The model of its devices
        #[arg(long)]
        model: String,
        /// The profile of its certificates
        #[arg(long)]
        profile: String,
        /// Which device ids it may have: * stands for any number of characters, ? for one
        #[arg(long)]
        id_pattern: IdPattern,
        /// How many devices it may have in all
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
        quota: u64,
        /// A group of its devices; may be given several times
        #[arg(long = "group")]
        groups: Vec<String>,
        /// What its devices start as: active, or pending until an operator activates each
        #[arg(long, default_value = "active")]
        devices_start: DeviceStart,
        /// The authority that issues [default: the tenant's newest active one]
        #[arg(long)]
        authority: Option<AuthorityId>,
        /// Sign nothing before this time (RFC 3339)
        #[arg(long, value_parser = time)]
        not_before: Option<Timestamp>,
        /// Sign nothing after this time (RFC 3339)
        #[arg(long, value_parser = time)]
        not_after: Option<Timestamp>,
    },
    /// List batches
    List {
        /// The tenant
        #[arg(long, default_value = "default")]
        tenant: TenantId,
    },
    /// Show a batch: its plan, and how far it has come
    Show(OneBatch),
    /// Close a batch for good; what was issued stays
    Close {
        #[command(flatten)]
        batch: OneBatch,
        /// Why, for the audit
        #[arg(long, default_value = "")]
        reason: String,
    },
}

#[derive(Args)]
pub struct OneBatch {
    /// The batch
    pub id: BatchId,
    /// Its tenant
    #[arg(long, default_value = "default")]
    pub tenant: TenantId,
}

#[derive(Args)]
pub struct IssueArguments {
    /// The batch
    #[arg(long)]
    pub batch: BatchId,
    /// Its tenant
    #[arg(long, default_value = "default")]
    pub tenant: TenantId,
    /// A range of ids: text around one {} or {:06}, such as 'SN-{:06}'; keys are made here
    #[arg(long, requires = "count", conflicts_with_all = ["list", "csr"])]
    pub format: Option<String>,
    /// The first number of the range
    #[arg(long, default_value_t = 1, requires = "format")]
    pub from: u64,
    /// How many devices the range has
    #[arg(long, requires = "format")]
    pub count: Option<u64>,
    /// A list: one id a line, or a CSV file with the header id or id,csr; without a request the key is made here
    #[arg(long, conflicts_with = "csr")]
    pub list: Option<PathBuf>,
    /// A folder of the devices' own requests (PKCS#10): *.csr, *.p10, *.req, *.pem
    #[arg(long)]
    pub csr: Option<PathBuf>,
    /// With --csr: where the id is
    #[arg(long, value_enum, default_value = "file-name")]
    pub id_from: IdFrom,
    /// The folder to write [default: the batch's id]; what is in it is not made again
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// What is written
    #[arg(long, value_enum, default_value = "pem-folders")]
    pub layout: Layout,
    /// With --layout pkcs12: a file with the password, readable by its owner only
    #[arg(long)]
    pub password_file: Option<PathBuf>,
    /// Devices per request: all of them share one sync of the registry and two of the output
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub chunk: u16,
    /// Where a certificate for a lost key was never used: revoke it, and issue anew
    #[arg(long)]
    pub replace: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum IdFrom {
    /// The file's name before its extension
    FileName,
    /// The common name that the request wishes for
    CommonName,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Layout {
    /// A folder for each device, as `device provision` writes it
    PemFolders,
    /// ID.p12 for each device: key and certificates under one password
    Pkcs12,
    /// One file identities.tar with a folder for each device, and an index
    Archive,
    /// A folder for each device with nvs.csv, as Espressif's NVS partition generator takes it
    Esp32,
}

fn time(text: &str) -> Result<Timestamp, String> {
    Timestamp::parse_rfc3339(text)
        .ok_or_else(|| format!("{text:?} is no time; write RFC 3339, such as 2026-11-23T20:00:00Z"))
}
