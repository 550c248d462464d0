//! What can be asked of tenants and authorities.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use countersign_authority::keys::PassphraseSource;
use countersign_identity::{AuthorityId, IdentityRule, TenantId};
use countersign_policy::ClientIdMode;

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
        /// How many known devices may be locked out by the rule, because it reads no id of theirs from their certificates
        #[arg(long, default_value_t = 0, requires = "identity_rule")]
        leave_out: u64,
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
