//! What can be asked on the command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use countersign_identity::{AuthorityId, DeviceId, Fingerprint, IdentityRule, TenantId};
use countersign_policy::{ClientIdMode, LifecycleState};

/// The self-hosted front door of a device fleet: devices prove who they are by certificate and mutual TLS, policy says
/// whether they may come in now, and every exchange can be looked at.
///
/// Commands talk to the server that runs on the data directory; if none runs they work on it directly.
///
/// Exit codes: 0 done, 1 other failure, 2 wrong usage, 3 not found, 4 refused, 5 storage, port or server not available.
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
    },
    /// Open the device port and the admin listener
    Serve {
        /// Where devices connect, in place of server.listen
        #[arg(long)]
        listen: Option<SocketAddr>,
        /// The admin listener, in place of admin.listen
        #[arg(long)]
        admin: Option<SocketAddr>,
    },
    /// Tenants: closed worlds of authorities, devices, policies and topics
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// Authorities: what devices pin, and who may vouch for devices
    #[command(subcommand)]
    Authority(AuthorityCommand),
    /// Devices: add, provision, and move through their life
    #[command(subcommand)]
    Device(DeviceCommand),
    /// Certificates of devices
    #[command(subcommand)]
    Credential(CredentialCommand),
    /// Live sessions
    #[command(subcommand)]
    Session(SessionCommand),
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
    /// Look at everything that is known to go wrong
    Doctor,
    /// The configuration
    #[command(subcommand)]
    Config(ConfigCommand),
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
pub enum ConfigCommand {
    /// Check the configuration, and print all of it with its defaults
    Check,
}

#[derive(Subcommand)]
pub enum TenantCommand {
    /// Add a tenant, with an issuing authority of its own
    Add {
        /// Its id
        id: TenantId,
        /// Which client ids its devices may use: strict, prefix, assigned or free
        #[arg(long, default_value = "strict")]
        client_id_mode: ClientIdMode,
    },
    /// List tenants
    List,
    /// Change a tenant's settings; live sessions are decided anew
    Set {
        /// Its id
        id: TenantId,
        /// Which client ids its devices may use: strict, prefix, assigned or free
        #[arg(long)]
        client_id_mode: Option<ClientIdMode>,
        /// A file with Cedar policies
        #[arg(long)]
        policies: Option<PathBuf>,
        /// A file with topic spaces: JSON, a list of {"name", "filter"}
        #[arg(long)]
        spaces: Option<PathBuf>,
    },
    /// The host names (SNI) by which devices choose the tenant
    #[command(subcommand)]
    Host(HostCommand),
}

#[derive(Subcommand)]
pub enum HostCommand {
    /// Give a host name to a tenant
    Add {
        /// The tenant
        tenant: TenantId,
        /// The host name
        host: String,
    },
    /// Take a host name from a tenant
    Remove {
        /// The tenant
        tenant: TenantId,
        /// The host name
        host: String,
    },
}

#[derive(Subcommand)]
pub enum AuthorityCommand {
    /// List the authorities that may vouch for devices
    List,
    /// Register the CA that issued your devices' certificates
    Register {
        /// An id for it
        id: AuthorityId,
        /// Its certificate, PEM
        certificate: PathBuf,
        /// The tenant whose devices it may vouch for
        #[arg(long, default_value = "default")]
        tenant: TenantId,
        /// Where its certificates carry the device id: common-name, subject-serial-number, san-uri or san-dns
        #[arg(long, default_value = "common-name")]
        identity_rule: IdentityRule,
    },
    /// Print a CA certificate, PEM
    Export {
        /// `platform` (what devices pin) or `devices` (what signs device certificates)
        #[arg(value_enum)]
        hierarchy: ExportHierarchy,
        /// With `devices`: whose
        #[arg(long, default_value = "default")]
        tenant: TenantId,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportHierarchy {
    /// What devices pin
    Platform,
    /// What signs device certificates
    Devices,
}

#[derive(Args)]
pub struct OneDevice {
    /// The device id
    pub id: DeviceId,
    /// Its tenant
    #[arg(long, default_value = "default")]
    pub tenant: TenantId,
}

#[derive(Args)]
pub struct OneMove {
    #[command(flatten)]
    pub device: OneDevice,
    /// Why, for the audit
    #[arg(long, default_value = "")]
    pub reason: String,
}

#[derive(Subcommand)]
pub enum DeviceCommand {
    /// Add a device
    Add {
        #[command(flatten)]
        device: OneDevice,
        /// Its model
        #[arg(long)]
        model: Option<String>,
        /// A group; may be given several times
        #[arg(long = "group")]
        groups: Vec<String>,
        /// Where it starts: active or pending
        #[arg(long, default_value = "active")]
        state: LifecycleState,
    },
    /// Add many devices: a CSV file (id,model,groups,state,certificate), or a folder or file of certificates (PEM)
    Import {
        /// CSV file, folder, or PEM file
        path: PathBuf,
        /// The tenant
        #[arg(long, default_value = "default")]
        tenant: TenantId,
        /// For certificates: where they carry the device id
        #[arg(long, default_value = "common-name")]
        identity_rule: IdentityRule,
        /// For certificates: a group for all of them; may be given several times
        #[arg(long = "group")]
        groups: Vec<String>,
    },
    /// Issue a certificate, and write an identity folder; adds the device if it is not there
    Provision {
        #[command(flatten)]
        device: OneDevice,
        /// The device's certificate request (PKCS#10, PEM): its key never leaves it
        #[arg(long)]
        csr: Option<PathBuf>,
        /// The identity folder to write [default: the device id]
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// List devices
    List {
        /// The tenant
        #[arg(long, default_value = "default")]
        tenant: TenantId,
        /// Only those in this state
        #[arg(long)]
        state: Option<LifecycleState>,
        /// At most so many
        #[arg(long, default_value_t = 1000)]
        limit: usize,
    },
    /// Show a device with its credentials and sessions
    Show(OneDevice),
    /// Let a pending device in
    Activate(OneMove),
    /// Keep a device out until it is resumed; ends its sessions
    Suspend(OneMove),
    /// Let a suspended device in again
    Resume(OneMove),
    /// Keep a device apart until it is released; ends its sessions
    Quarantine(OneMove),
    /// Return a quarantined device to where it was
    Release(OneMove),
    /// End a device for good
    Decommission(OneMove),
}

#[derive(Subcommand)]
pub enum CredentialCommand {
    /// Revoke a certificate; ends the sessions it opened
    Revoke {
        /// The certificate's SHA-256 fingerprint
        fingerprint: Fingerprint,
        /// Why, for the audit
        #[arg(long, default_value = "")]
        reason: String,
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
    /// End the sessions of a device; it may connect again at once
    Disconnect(OneDevice),
}
