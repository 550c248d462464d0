//! `countersign ca`: the CA as a process of its own, and what its operator does. `--data` names the CA's own folder.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use countersign_factory::RevocationReason;
use countersign_identity::{AuthorityId, DeviceId, Fingerprint, TenantId};
use countersign_policy::first_contact::IdPattern;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::arguments::KeyStoreArguments;
use super::authority::{key_store, write_new};
use super::commands::{read, times};
use super::output::{Output, time};
use crate::ca::daemon::Daemon;
use crate::ca::operate::{self, NewBatch};
use crate::ca::settings::Settings;
use crate::failure::Failure;

/// A day.
const DAY: u64 = 86_400;

#[derive(Subcommand)]
pub enum CaCommand {
    /// Make the CA's folder: ca.toml and its store
    Init {
        /// Where it answers [default: ca.sock in its folder]
        #[arg(long)]
        socket: Option<PathBuf>,
        /// A user id that may ask, besides the CA's own: the control process'; may be given several times
        #[arg(long = "control-uid")]
        control_uids: Vec<u32>,
    },
    /// Answer on the socket
    Serve,
    /// Look at everything that is known to go wrong
    Status,
    /// The CA's authorities
    #[command(subcommand)]
    Authority(CaAuthorityCommand),
    /// Batches: so many certificates for ids of a pattern
    #[command(subcommand)]
    Batch(CaBatchCommand),
    /// Make a one-time secret: one certificate for one device, whatever became of earlier ones
    Secret {
        /// The device
        device: DeviceId,
        /// The authority that issues
        #[arg(long)]
        authority: AuthorityId,
        /// The profile [default: the first of ca.toml]
        #[arg(long)]
        profile: Option<String>,
        /// How long it is good
        #[arg(long, default_value_t = 72, value_parser = clap::value_parser!(u64).range(1..=8760))]
        hours: u64,
    },
    /// Revoke a certificate at the CA
    Revoke {
        /// Its SHA-256 fingerprint
        fingerprint: Fingerprint,
        /// Why, for revocation lists
        #[arg(long, default_value = "unspecified")]
        code: RevocationReason,
    },
    /// The CA's clock
    #[command(subcommand)]
    Clock(CaClockCommand),
    /// List certificates, newest first
    Certificates {
        /// Only of this device
        #[arg(long)]
        device: Option<DeviceId>,
        /// At most so many
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
}

#[derive(Subcommand)]
pub enum CaAuthorityCommand {
    /// Make an authority
    Add {
        /// An id for it
        id: AuthorityId,
        #[command(flatten)]
        tenant: OfTenant,
        /// An older authority that it takes the place of: certificates of that one are evidence here; may be given several times
        #[arg(long, conflicts_with = "csr")]
        succeeds: Vec<AuthorityId>,
        /// Make only its key, and write the request for an external root here
        #[arg(long)]
        csr: Option<PathBuf>,
        #[command(flatten)]
        keys: KeyStoreArguments,
    },
    /// Install what the external root issued for `add --csr`
    Install {
        /// The authority
        id: AuthorityId,
        /// Certificates, PEM: the issuing CA's first, the root's last
        chain: PathBuf,
        #[command(flatten)]
        tenant: OfTenant,
        /// An older authority that it takes the place of: certificates of that one are evidence here; may be given several times
        #[arg(long)]
        succeeds: Vec<AuthorityId>,
    },
    /// Let an authority take the place of an older one of its tenant: certificates of that one are evidence here from now on
    Succeeds {
        /// The newer authority
        id: AuthorityId,
        /// The older one
        of: AuthorityId,
    },
    /// Issue nothing from it any more
    Close {
        /// The authority
        id: AuthorityId,
    },
    /// Take the key of an authority's root offline: write it to a file, and delete it here
    TakeRootOffline {
        /// The authority
        id: AuthorityId,
        /// The file to write; it must not exist
        #[arg(long)]
        out: PathBuf,
    },
}

#[derive(Args)]
pub struct OfTenant {
    /// The tenant whose devices it vouches for
    #[arg(long, default_value = "default")]
    tenant: TenantId,
}

#[derive(Subcommand)]
pub enum CaBatchCommand {
    /// Make a batch
    Add {
        /// A name for it
        id: String,
        /// The authority that issues for it
        #[arg(long)]
        authority: AuthorityId,
        /// The ids that it covers: a name with * and ? as wildcards
        #[arg(long)]
        pattern: IdPattern,
        /// How many certificates
        #[arg(long)]
        quota: u32,
        /// The profile [default: the first of ca.toml]
        #[arg(long)]
        profile: Option<String>,
        /// For how many days
        #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u64).range(1..=3650))]
        days: u64,
    },
    /// List batches
    List,
    /// End a batch before its time
    Close {
        /// The batch
        id: String,
    },
}

#[derive(Subcommand)]
pub enum CaClockCommand {
    /// Take the clock's time for right although later ones were seen: after it had been ahead by mistake. What was signed
    /// meanwhile keeps its dates
    Reset {
        /// Why, for the CA's log
        #[arg(long)]
        reason: String,
    },
}

pub(super) async fn run(command: CaCommand, folder: &Path, out: Output) -> Result<(), Failure> {
    match command {
        CaCommand::Serve => serve(folder).await,
        // All of these wait for the disk, and some for a token.
        other => tokio::task::block_in_place(|| operate(other, folder, out)),
    }
}

/// Until SIGTERM or SIGINT.
async fn serve(folder: &Path) -> Result<(), Failure> {
    let settings = Settings::load(folder)?;
    super::logging(settings.log.format, &settings.log.filter)?;
    let signals =
        || -> std::io::Result<_> { Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)) };
    let (mut terminate, mut interrupt) =
        signals().map_err(|e| Failure::internal(format!("signals cannot be handled: {e}")))?;
    let daemon = tokio::task::block_in_place(|| Daemon::start(folder))?;
    tracing::info!(socket = %daemon.socket().display(), pid = std::process::id(), "the CA is ready");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tokio::task::block_in_place(|| daemon.stop());
    tracing::info!("the CA has stopped");
    Ok(())
}

fn operate(command: CaCommand, folder: &Path, out: Output) -> Result<(), Failure> {
    match command {
        CaCommand::Serve => Ok(()),
        CaCommand::Init { socket, control_uids } => {
            let settings = operate::init(folder, socket, control_uids)?;
            let socket = settings.socket_in(folder);
            out.say(&json!({ "data": folder, "socket": socket }), |_| {
                format!(
                    "the CA's folder {0} is ready\nnext: countersign ca authority add ID --data {0}, countersign ca serve --data {0},\nand, for the control process: [ca] socket = {1:?} in countersign.toml",
                    folder.display(),
                    socket.display().to_string()
                )
            })
        }
        CaCommand::Status => status(folder, out),
        CaCommand::Authority(command) => authority(command, folder, out),
        CaCommand::Batch(command) => batch(command, folder, out),
        CaCommand::Secret {
            device,
            authority,
            profile,
            hours,
        } => {
            let lifetime = Duration::from_secs(hours * 3600);
            let (secret, expires) =
                operate::secret(folder, &authority, &device, profile.as_deref(), lifetime)?;
            out.say(&json!({ "device": device, "secret": secret, "expires": expires }), |a| {
                format!(
                    "{secret}\nit is shown this once, good until {}, for one key; EST user name: {device}",
                    time(&a["expires"])
                )
            })
        }
        CaCommand::Revoke { fingerprint, code } => {
            let changed = operate::revoke(folder, &fingerprint, code)?;
            out.say(&json!({ "fingerprint": fingerprint, "changed": changed }), |_| {
                let text = if changed { "is revoked" } else { "was revoked before" };
                format!("certificate {fingerprint} {text}; the registry learns it by countersign credential revoke")
            })
        }
        CaCommand::Clock(CaClockCommand::Reset { reason }) => {
            let before = operate::clock_reset(folder, &reason)?;
            out.say(&json!({ "before": before }), |_| {
                format!(
                    "the clock's time is taken for right; the latest that was seen was {before}\nwhat was signed meanwhile keeps its dates: countersign ca certificates lists it"
                )
            })
        }
        CaCommand::Certificates { device, limit } => {
            let mut answer = operate::certificates(folder, device.as_ref(), limit)?;
            times(&mut answer, "not_after", out);
            out.list(
                &answer,
                &[
                    ("DEVICE", "/device"),
                    ("TENANT", "/tenant"),
                    ("AUTHORITY", "/authority"),
                    ("SERIAL", "/serial"),
                    ("PROFILE", "/profile"),
                    ("STATE", "/state"),
                    ("VALID UNTIL", "/not_after"),
                    ("ISSUED ON", "/evidence"),
                ],
            )
        }
    }
}

fn authority(command: CaAuthorityCommand, folder: &Path, out: Output) -> Result<(), Failure> {
    let added = |id: &AuthorityId, tenant: &TenantId| {
        out.say(&json!({ "id": id, "tenant": tenant }), |_| {
            format!("authority {id} issues for tenant {tenant}\nnext, for the control process: countersign authority create {id} --tenant {tenant}")
        })
    };
    match command {
        CaAuthorityCommand::Add {
            id,
            tenant,
            succeeds,
            csr,
            keys,
        } => {
            let keys = key_store(keys)?;
            let Some(path) = csr else {
                operate::authority_add(folder, &id, &tenant.tenant, &keys, &succeeds)?;
                return added(&id, &tenant.tenant);
            };
            let request = operate::authority_request(folder, &id, &keys)?;
            write_new(&path, &request)?;
            out.say(&json!({ "id": id, "request": request }), |_| {
                format!(
                    "the request is in {}; the key stays here\nnext: let the external root issue a CA certificate for it (basicConstraints CA, path length 0, keyUsage keyCertSign and cRLSign), then countersign ca authority install {id} CHAIN",
                    path.display()
                )
            })
        }
        CaAuthorityCommand::Install {
            id,
            chain,
            tenant,
            succeeds,
        } => {
            operate::authority_install(folder, &id, &tenant.tenant, &read(&chain)?, &succeeds)?;
            added(&id, &tenant.tenant)
        }
        CaAuthorityCommand::Succeeds { id, of } => {
            operate::authority_succeeds(folder, &id, &of)?;
            out.say(&json!({ "id": id, "succeeds": of }), |_| {
                format!("authority {id} succeeds {of}: certificates of {of} are evidence for those of {id}")
            })
        }
        CaAuthorityCommand::TakeRootOffline { id, out: path } => {
            operate::take_root_offline(folder, &id, &path)?;
            out.say(&json!({ "id": id, "file": path }), |_| {
                format!(
                    "the root key of authority {id} is in {} and nowhere else; keep it where no server reaches it",
                    path.display()
                )
            })
        }
        CaAuthorityCommand::Close { id } => {
            operate::authority_close(folder, &id)?;
            out.say(&json!({ "id": id }), |_| {
                format!("authority {id} issues nothing any more")
            })
        }
    }
}

fn batch(command: CaBatchCommand, folder: &Path, out: Output) -> Result<(), Failure> {
    match command {
        CaBatchCommand::Add {
            id,
            authority,
            pattern,
            quota,
            profile,
            days,
        } => {
            let new = NewBatch {
                id,
                authority,
                profile,
                pattern,
                quota,
                lifetime: Duration::from_secs(days * DAY),
            };
            let expires = operate::batch_add(folder, &new)?;
            out.say(&json!({ "id": new.id, "expires": expires }), |_| {
                format!(
                    "batch {}: {} certificates for devices {}, until {expires}",
                    new.id, new.quota, new.pattern
                )
            })
        }
        CaBatchCommand::List => {
            let mut answer = operate::batches(folder)?;
            times(&mut answer, "expires", out);
            out.list(
                &answer,
                &[
                    ("BATCH", "/id"),
                    ("STATE", "/state"),
                    ("AUTHORITY", "/authority"),
                    ("PROFILE", "/profile"),
                    ("DEVICES", "/pattern"),
                    ("USED", "/used"),
                    ("QUOTA", "/quota"),
                    ("UNTIL", "/expires"),
                ],
            )
        }
        CaBatchCommand::Close { id } => {
            operate::batch_close(folder, &id)?;
            out.say(&json!({ "id": id }), |_| format!("batch {id} is closed"))
        }
    }
}

fn status(folder: &Path, out: Output) -> Result<(), Failure> {
    let findings = operate::status(folder)?;
    let failed = findings.iter().filter(|f| !f.ok).count();
    let answer = serde_json::to_value(&findings).unwrap_or(Value::Null);
    out.say(&answer, |_| {
        let lines: Vec<_> = findings
            .iter()
            .map(|f| {
                format!(
                    "{} {:20} {}",
                    if f.ok { "ok  " } else { "FAIL" },
                    f.name,
                    f.detail
                )
            })
            .collect();
        lines.join("\n")
    })?;
    if failed == 0 {
        return Ok(());
    }
    Err(Failure::internal(format!("{failed} check(s) failed")))
}
