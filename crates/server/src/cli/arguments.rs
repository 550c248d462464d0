//! What can be asked on the command line.

mod authority;
mod device;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use countersign_identity::{DeviceId, Fingerprint, TenantId};
use countersign_policy::{DenialCode, ExchangeId};
use countersign_registry::Network;

use super::attestation::AttestationCommand;
use super::ca::CaCommand;
pub use super::factory::arguments::FactoryCommand;
use super::ledger::Moment;
use super::policy::PolicyCommand;
use super::service::ServiceCommand;

pub use authority::{
    AdmissionMode, AuthorityArguments, AuthorityCommand, AuthorityMoveArguments, ExportHierarchy,
    HostCommand, KeyStoreArguments, KeyStoreKind, TenantCommand, WhenStaleArgument,
};
pub use device::{
    CredentialCommand, DeviceCommand, MoveArguments, OneDevice, ReceiptCommand, RevocationArguments, TimeBox,
};

/// The self-hosted front door of a device fleet: devices prove who they are by certificate and mutual TLS, policy says
/// whether they may come in now, and every exchange can be looked at.
///
/// Commands talk to the server that runs on the data directory; if none runs they work on it directly.
///
/// Exit codes: 0 done, 1 other failure, 2 wrong usage, 3 not found, 4 refused, 5 storage, port or server not available,
/// 6 done in part: in force, and not confirmed by all.
#[derive(Parser)]
#[command(name = "countersign", version, propagate_version = true)]
pub struct Arguments {
    /// The data directory
    #[arg(
        long,
        global = true,
        env = "COUNTERSIGN_DATA",
        default_value = "countersign-data",
        hide_env_values = true
    )]
    pub data: PathBuf,
    /// The configuration file [default: countersign.toml in the data directory]
    #[arg(long, global = true)]
    pub config: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Try it: a throw-away platform lets devices in, turns others away, and shows why
    Quickstart {
        /// End by itself
        #[arg(long)]
        once: bool,
    },
    /// Make a data directory: configuration, authorities, registry
    Init {
        /// Where devices connect
        #[arg(long)]
        listen: Option<SocketAddr>,
        /// A host name or address that devices connect to; may be given several times
        #[arg(long = "host-name")]
        host_names: Vec<String>,
        /// The socket of a CA that is a process of its own (countersign ca serve): then no issuing key is made here
        #[arg(long)]
        ca_socket: Option<PathBuf>,
    },
    /// Open the device port and the admin listener
    Serve {
        /// Where devices connect, in place of the first listener of purpose devices
        #[arg(long)]
        listen: Option<SocketAddr>,
        /// The admin listener, in place of admin.listen
        #[arg(long)]
        admin: Option<SocketAddr>,
    },
    /// The CA as a process of its own; --data names its folder
    #[command(subcommand)]
    Ca(CaCommand),
    /// Tenants: closed worlds of authorities, devices, policies and topics
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// Policies: who may connect, publish and subscribe; checked, tested, simulated, kept as versions
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Authorities: what devices pin, and who may vouch for devices
    #[command(subcommand)]
    Authority(AuthorityCommand),
    /// Devices: add, provision, and move through their life
    #[command(subcommand)]
    Device(DeviceCommand),
    /// Certificates of devices
    #[command(subcommand)]
    Credential(CredentialCommand),
    /// The factory: batches, their identities in bulk, and claims
    #[command(subcommand)]
    Factory(FactoryCommand),
    /// TPM attestation: whose TPMs are trusted, which device each is in, what they said
    #[command(subcommand)]
    Attestation(AttestationCommand),
    /// Live sessions, of connections and of tokens
    #[command(subcommand)]
    Session(SessionCommand),
    /// Certificates whose key two seem to hold
    #[command(subcommand)]
    Clones(ClonesCommand),
    /// Receipts: what changes did to live sessions
    #[command(subcommand)]
    Receipt(ReceiptCommand),
    /// Services: backends of the fleet, which are no devices
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Show exchanges as sequence diagrams, refused ones with cause and cure
    Explain {
        /// A device id, certificate fingerprint, serial number or exchange id
        #[arg(required_unless_present = "recent")]
        subject: Option<String>,
        /// Show the newest exchanges, whoever they are of
        #[arg(long, conflicts_with = "subject")]
        recent: bool,
        /// Only refused ones, with --recent
        #[arg(long, requires = "recent")]
        refused: bool,
        /// The tenant of the device
        #[arg(long)]
        tenant: Option<TenantId>,
        /// How it is drawn
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
        /// How many exchanges
        #[arg(long, short = 'n', default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Ask every layer about an identity that is not connected: would it be let in, and if not, why; 0 only if it would
    Why(super::why::WhyArguments),
    /// Refusals by cause, with what puts them right; `search` finds single ones
    Rejections(RejectionsArguments),
    /// What a device did between two moments: sessions, topics, exchanges; for the report of an incident
    Exposure(ExposureArguments),
    /// Check a certificate as the gateway does, without a server and without a data directory; 0 only if accepted
    Verify(super::verify::VerifyArguments),
    /// Look at everything that is known to go wrong
    Doctor,
    /// Show what expires when: devices by authority and batch, and until when authorities can issue
    Forecast {
        /// Only of this tenant
        #[arg(long)]
        tenant: Option<TenantId>,
    },
    /// Make a backup while the server runs: registry, ledger, certificates, configuration, and keys if asked
    Backup {
        /// The folder to make, or a file that ends in .tar, on the server's machine; it must not exist
        target: PathBuf,
        /// With the private keys of authorities and server: owner-only files, not encrypted. Whoever reads them can issue
        /// in this platform's name
        #[arg(long)]
        with_keys: bool,
    },
    /// Make a data directory (--data) of a backup; it begins a new epoch
    Restore {
        /// The folder or .tar file that `backup` made
        backup: PathBuf,
        /// A revocation list that this platform issued after the backup; what is on it is revoked here too. May be given
        /// several times
        #[arg(long = "crl")]
        lists: Vec<PathBuf>,
        /// The data directory that was lost, if it can still be read, or a later backup folder: what was revoked, suspended
        /// or decommissioned there is so here too
        #[arg(long)]
        compare: Option<PathBuf>,
        /// Only report what ended after the backup; do not end it here
        #[arg(long)]
        only_report: bool,
        /// Take the clock for right although it is behind the backup
        #[arg(long)]
        accept_clock: bool,
    },
    /// The clock: nothing is minted while it is behind the newest time that is known to have been
    #[command(subcommand)]
    Clock(ClockCommand),
    /// The configuration
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct RejectionsArguments {
    #[command(subcommand)]
    pub command: Option<RejectionsCommand>,
    /// Counted since the beginning of this hour: RFC 3339, or how long ago, such as 90m, 24h or 7d
    #[arg(long, default_value = "24h")]
    pub since: Moment,
    /// Only of this tenant
    #[arg(long)]
    pub tenant: Option<TenantId>,
    /// Only with this code
    #[arg(long)]
    pub code: Option<DenialCode>,
    /// Go on after this group
    #[arg(long)]
    pub after: Option<String>,
    /// How many groups
    #[arg(long, short = 'n', default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
}

#[derive(Subcommand)]
pub enum RejectionsCommand {
    /// Find refused exchanges; what is given must all hold
    Search(RejectionSearch),
}

#[derive(Args)]
pub struct RejectionSearch {
    #[command(flatten)]
    pub what: RejectionTerms,
    /// Only of this tenant
    #[arg(long)]
    pub tenant: Option<TenantId>,
    /// Only since this moment: RFC 3339, or how long ago, such as 90m, 24h or 7d
    #[arg(long)]
    pub since: Option<Moment>,
    /// Go on with what is older than this exchange
    #[arg(long)]
    pub before: Option<ExchangeId>,
    /// How many exchanges
    #[arg(long, short = 'n', default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
}

#[derive(Args)]
#[group(required = true, multiple = true)]
pub struct RejectionTerms {
    /// The serial number of the certificate that was shown, hex
    #[arg(long)]
    pub serial: Option<String>,
    /// The fingerprint of the certificate that was shown
    #[arg(long)]
    pub fingerprint: Option<Fingerprint>,
    /// The address that it came from, or a network: 192.0.2.0/24
    #[arg(long)]
    pub source: Option<Network>,
    /// The code of the denial
    #[arg(long)]
    pub code: Option<DenialCode>,
    /// The device, which proved its key: what only shows its certificate is not its
    #[arg(long)]
    pub device: Option<DeviceId>,
}

#[derive(Args)]
pub struct ExposureArguments {
    /// The device
    pub device: DeviceId,
    /// The beginning: RFC 3339, or how long ago, such as 90m, 24h or 7d
    #[arg(long)]
    pub from: Moment,
    /// The end
    #[arg(long, default_value = "now")]
    pub to: Moment,
    /// The device's tenant
    #[arg(long, default_value = "default")]
    pub tenant: TenantId,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For a terminal
    Text,
    /// A Mermaid sequence diagram
    Mermaid,
    /// The record
    Json,
}

#[derive(Subcommand)]
pub enum ClockCommand {
    /// Show how the clock stands
    Show,
    /// Take the clock's time for right although it is behind: after it had been ahead by mistake. What was minted
    /// meanwhile keeps its dates
    Reset {
        /// Why, for the audit
        #[arg(long)]
        reason: String,
    },
}

#[derive(Subcommand)]
pub enum ConfigCommand {
    /// Check the configuration, and print all of it with its defaults
    Check,
}

#[derive(Subcommand)]
pub enum ClonesCommand {
    /// List who is suspected now, and why
    List {
        /// Only of this tenant
        #[arg(long)]
        tenant: Option<TenantId>,
    },
}

#[derive(Subcommand)]
pub enum SessionCommand {
    /// List live sessions
    List {
        /// Only of this tenant
        #[arg(long)]
        tenant: Option<TenantId>,
    },
    /// End the sessions of a device, its tokens too; it may connect again at once
    Disconnect(OneDevice),
}
