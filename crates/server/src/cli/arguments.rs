//! What can be asked on the command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use countersign_authority::keys::PassphraseSource;
use countersign_factory::RevocationReason;
use countersign_identity::{AuthorityId, BatchId, DeviceId, Fingerprint, IdentityRule, TenantId, Timestamp};
use countersign_policy::{ClientIdMode, DenialCode, ExchangeId, LifecycleState};
use countersign_registry::{Network, ReceiptId};

use super::ca::CaCommand;
pub use super::factory::arguments::FactoryCommand;
use super::ledger::Moment;
use super::policy::PolicyCommand;
use super::service::ServiceCommand;

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
        client_id_mode: ClientIdMode,
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
    /// Register the CA that issued your devices' certificates; it admits nobody until possession of its key is proven
    Register {
        /// An id for it
        id: AuthorityId,
        /// Its certificate, PEM
        certificate: PathBuf,
        #[command(flatten)]
        draft: AuthorityArguments,
        /// The CA's private key, PEM: proves possession at once. It is read here and not sent
        #[arg(long)]
        key: Option<PathBuf>,
    },
    /// Prove possession of a registered CA's key
    Prove {
        /// The authority
        id: AuthorityId,
        /// A certificate that the CA issued with the code as common name, PEM
        proof: PathBuf,
    },
    /// Get a new code for a registered CA that is not proven yet
    Code {
        /// The authority
        id: AuthorityId,
    },
    /// Make another issuing authority of our own
    Create {
        /// An id for it
        id: AuthorityId,
        #[command(flatten)]
        draft: AuthorityArguments,
        /// Make only its key, and write the request for an external root here
        #[arg(long)]
        csr: Option<PathBuf>,
        /// Make a factory CA: it issues offline stations, and nothing else
        #[arg(long, conflicts_with = "csr")]
        factory: bool,
        #[command(flatten)]
        keys: KeyStoreArguments,
    },
    /// Install what the external root issued for `create --csr`
    Install {
        /// The authority
        id: AuthorityId,
        /// Certificates, PEM: the issuing CA's first, the root's last
        chain: PathBuf,
        #[command(flatten)]
        draft: AuthorityArguments,
    },
    /// Change where its certificates carry the device id, and what first contacts may bring about
    Set {
        /// The authority
        id: AuthorityId,
        /// FIELD or FIELD=PATTERN with {id}
        #[arg(long)]
        identity_rule: Option<IdentityRule>,
        /// registered-only, known-device or just-in-time
        #[arg(long)]
        admission: Option<AdmissionMode>,
        /// With just-in-time: a TOML file with id_pattern, quota, and as you like model, groups, state
        #[arg(long, requires = "admission")]
        template: Option<PathBuf>,
    },
    /// The revocation list of a registered CA: give it, say where it comes from, or look at what is known of it
    Crl {
        /// The authority
        id: AuthorityId,
        /// A revocation list, PEM or DER; a PEM file may also hold those of stored intermediates below the authority
        file: Option<PathBuf>,
        /// Where lists come from: a file or an http URL that is looked at again and again
        #[arg(long, conflicts_with = "off")]
        source: Option<String>,
        /// How often the source is looked at, in seconds [default: 2 for a file, 3600 for a URL]
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "off")]
        interval_s: Option<u32>,
        /// What happens while the list is missing or past its nextUpdate [default: refuse]
        #[arg(long, value_enum, conflicts_with = "off")]
        when_stale: Option<WhenStaleArgument>,
        /// Drop the lists: the authority is asked for none any more
        #[arg(long, conflicts_with = "file")]
        off: bool,
    },
    /// Keep an intermediate CA certificate, for devices that send only their own certificate
    Intermediate {
        /// The certificate, PEM
        certificate: PathBuf,
        /// The tenant
        #[arg(long, default_value = "default")]
        tenant: TenantId,
    },
    /// List the devices that have no other way in than this authority, and why they have not moved on
    Dependents {
        /// The authority
        id: AuthorityId,
        /// At most so many
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
    /// Issue nothing new from it; its devices are still admitted
    Retire(AuthorityMoveArguments),
    /// Take a retiring authority back into use
    Reopen(AuthorityMoveArguments),
    /// Admit its devices no longer; refused while devices depend on it
    Close {
        #[command(flatten)]
        which: AuthorityMoveArguments,
        /// How many dependent devices may be locked out
        #[arg(long, default_value_t = 0)]
        leave_out: u64,
    },
    /// Admit its devices no longer, at once: its key is not to be trusted
    Revoke(AuthorityMoveArguments),
    /// Take the key of an authority's root offline: write it to a file, and delete it here
    TakeRootOffline {
        /// The authority
        id: AuthorityId,
        /// The file to write; it must not exist
        #[arg(long)]
        out: PathBuf,
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

#[derive(Args)]
pub struct AuthorityArguments {
    /// The tenant whose devices it may vouch for
    #[arg(long, default_value = "default")]
    pub tenant: TenantId,
    /// Where its certificates carry the device id: common-name, subject-serial-number, san-uri, san-dns or
    /// hardware-module-name, or one of these with a pattern, such as san-uri=urn:dev:ops:{id}
    #[arg(long, default_value = "common-name")]
    pub identity_rule: IdentityRule,
    /// What a sound certificate that is not registered may bring about: registered-only, known-device or just-in-time
    #[arg(long, default_value = "registered-only")]
    pub admission: AdmissionMode,
    /// With just-in-time: a TOML file with id_pattern, quota, and as you like model, groups, state
    #[arg(long)]
    pub template: Option<PathBuf>,
}

#[derive(Args)]
pub struct KeyStoreArguments {
    /// Where its key is held
    #[arg(long, value_enum, default_value = "file")]
    pub key_store: KeyStoreKind,
    /// With encrypted: the file with the passphrase (an absolute path), or credential:NAME for one that systemd gives to
    /// the service
    #[arg(long)]
    pub passphrase: Option<PassphraseSource>,
    /// With pkcs11: pkcs11:token=NAME;object=KEY?module-path=/MODULE.so&pin-source=/PIN-FILE
    #[arg(long)]
    pub pkcs11_uri: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KeyStoreKind {
    /// A file that only its owner can read
    File,
    /// A file that a passphrase opens (PKCS#8, scrypt, AES-256)
    Encrypted,
    /// A token (HSM, smart card): made there, and never to leave it
    Pkcs11,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AdmissionMode {
    /// Only registered certificates are admitted
    RegisteredOnly,
    /// A registered device that is bound to the authority has its certificate learned at first contact
    KnownDevice,
    /// An id that never existed becomes a device, by a template
    JustInTime,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WhenStaleArgument {
    /// Nobody new is admitted until a current list is there; live sessions stay
    Refuse,
    /// What the last list said goes on
    LastKnown,
}

#[derive(Args)]
pub struct AuthorityMoveArguments {
    /// The authority
    pub id: AuthorityId,
    /// Why, for the audit
    #[arg(long, default_value = "")]
    pub reason: String,
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
pub struct MoveArguments {
    /// The device id; or name devices by what they have in common, all of which must hold
    #[arg(required_unless_present_any = ["group", "model", "batch", "authority", "state"],
          conflicts_with_all = ["group", "model", "batch", "authority", "state", "dry_run", "idempotency_key"])]
    pub id: Option<DeviceId>,
    /// The tenant
    #[arg(long, default_value = "default")]
    pub tenant: TenantId,
    /// Why, for the audit
    #[arg(long, default_value = "")]
    pub reason: String,
    /// All devices in this group
    #[arg(long)]
    pub group: Option<String>,
    /// All devices of this model
    #[arg(long)]
    pub model: Option<String>,
    /// All devices that were made in this batch
    #[arg(long)]
    pub batch: Option<BatchId>,
    /// All devices that this authority vouches for
    #[arg(long)]
    pub authority: Option<AuthorityId>,
    /// All devices in this state
    #[arg(long)]
    pub state: Option<LifecycleState>,
    /// Move none; say how many it would be, and list them
    #[arg(long)]
    pub dry_run: bool,
    /// A name of yours for this bulk move: asked again, it is not done twice, and goes on if it was cut short
    #[arg(long)]
    pub idempotency_key: Option<String>,
}

#[derive(Args)]
pub struct TimeBox {
    /// When it ends by itself, such as 2026-11-23T20:00:00Z
    #[arg(long, value_parser = super::moves::moment)]
    pub until: Option<Timestamp>,
    /// After how long it ends by itself, such as 90s, 30m, 2h or 7d
    #[arg(long = "for", conflicts_with = "until", value_parser = super::moves::span)]
    pub lasting: Option<Duration>,
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
        /// The authority whose certificates may be learned for it at first contact
        #[arg(long)]
        authority: Option<AuthorityId>,
    },
    /// Add many devices: a CSV file (id,model,groups,state,authority,certificate), or a folder or file of certificates (PEM)
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
    /// Add the secure elements of a manufacturer's signed manifest (JSON, each entry a JWS), with their certificates
    ImportManifest {
        /// The manifest
        file: PathBuf,
        /// The certificate of whoever signed it, PEM; its dates and its key must hold
        #[arg(long)]
        signer: PathBuf,
        /// The tenant
        #[arg(long, default_value = "default")]
        tenant: TenantId,
        /// The batch that the devices are made in
        #[arg(long)]
        batch: Option<BatchId>,
        /// Without a batch: the model of the devices
        #[arg(long, conflicts_with = "batch")]
        model: Option<String>,
        /// Where their certificates carry the device id [default: the element's unique id is the device id]
        #[arg(long)]
        identity_rule: Option<IdentityRule>,
        /// The key (kid) whose certificate is taken [default: the first that has one]
        #[arg(long)]
        key: Option<String>,
    },
    /// Issue a certificate, and write an identity folder; adds the device if it is not there
    Provision {
        #[command(flatten)]
        device: OneDevice,
        /// The device's certificate request (PKCS#10, PEM): its key never leaves it
        #[arg(long)]
        csr: Option<PathBuf>,
        /// The identity folder to write [default: the device id]; a key that is in it is used again
        #[arg(long)]
        out: Option<PathBuf>,
        /// The profile [default: the first of the configuration]
        #[arg(long)]
        profile: Option<String>,
        /// The authority that issues it [default: the tenant's newest active one]
        #[arg(long)]
        authority: Option<AuthorityId>,
    },
    /// Bind a device to the authority whose certificates may be learned for it at first contact
    Bind {
        #[command(flatten)]
        device: OneDevice,
        /// The authority; none unbinds the device
        #[arg(long)]
        authority: Option<AuthorityId>,
    },
    /// Register a device's self-signed certificate by its fingerprint: that certificate alone is admitted, no CA vouches for it
    Pin {
        #[command(flatten)]
        device: OneDevice,
        /// The certificate, PEM
        certificate: PathBuf,
    },
    /// Make a one-time secret with which a device enrols over EST (HTTP user: the device id)
    Secret(OneDevice),
    /// Revoke all certificates of a device; ends its sessions
    Revoke {
        #[command(flatten)]
        device: OneDevice,
        #[command(flatten)]
        why: RevocationArguments,
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
    /// Let pending devices in
    Activate(MoveArguments),
    /// Keep devices out until they are resumed, or until a time; ends their sessions
    Suspend {
        #[command(flatten)]
        which: MoveArguments,
        #[command(flatten)]
        end: TimeBox,
    },
    /// Let suspended devices in again
    Resume(MoveArguments),
    /// Keep devices apart until they are released, or until a time; ends their sessions
    Quarantine {
        #[command(flatten)]
        which: MoveArguments,
        #[command(flatten)]
        end: TimeBox,
    },
    /// Return quarantined devices to where they were
    Release {
        #[command(flatten)]
        which: MoveArguments,
        /// What the release is based on, for the audit
        #[arg(long)]
        after_evidence: Option<String>,
    },
    /// End devices for good
    Decommission(MoveArguments),
}

#[derive(Subcommand)]
pub enum ReceiptCommand {
    /// Show a receipt
    Show {
        /// The receipt
        id: ReceiptId,
    },
    /// List the newest receipts, newest first
    List {
        /// Only of this tenant
        #[arg(long)]
        tenant: Option<TenantId>,
        /// At most so many
        #[arg(long, short = 'n', default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
}

#[derive(Subcommand)]
pub enum CredentialCommand {
    /// Revoke a certificate, or all of a batch; ends the sessions they opened
    Revoke {
        /// The certificate's SHA-256 fingerprint
        #[arg(required_unless_present = "batch")]
        fingerprint: Option<Fingerprint>,
        /// All that were issued in this batch
        #[arg(long, conflicts_with = "fingerprint")]
        batch: Option<BatchId>,
        /// With --batch: its tenant
        #[arg(long, default_value = "default", requires = "batch")]
        tenant: TenantId,
        #[command(flatten)]
        why: RevocationArguments,
    },
    /// Confirm that a certificate is on its device: it will not lapse
    Confirm {
        /// The certificate's SHA-256 fingerprint
        fingerprint: Fingerprint,
    },
}

#[derive(Args)]
pub struct RevocationArguments {
    /// For revocation lists: unspecified, key-compromise, ca-compromise, affiliation-changed, superseded,
    /// cessation-of-operation or privilege-withdrawn
    #[arg(long, default_value = "unspecified")]
    pub code: RevocationReason,
    /// Why, for the audit
    #[arg(long, default_value = "")]
    pub reason: String,
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
