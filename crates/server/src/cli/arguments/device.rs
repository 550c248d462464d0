//! What can be asked of devices, their credentials, and receipts of what was done to them.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use countersign_factory::RevocationReason;
use countersign_identity::{AuthorityId, BatchId, DeviceId, Fingerprint, IdentityRule, TenantId, Timestamp};
use countersign_policy::LifecycleState;
use countersign_registry::ReceiptId;

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
    #[arg(long, value_parser = crate::cli::moves::moment)]
    pub until: Option<Timestamp>,
    /// After how long it ends by itself, such as 90s, 30m, 2h or 7d
    #[arg(long = "for", conflicts_with = "until", value_parser = crate::cli::moves::span)]
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
    /// Record a device's own statement that its key is destroyed, which it could not hand in itself; ends the device for good
    Destroyed {
        /// The statement: destruction.json, as the agent wrote it
        statement: PathBuf,
    },
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
