//! The offline factory station on the command line: data on standard output, words for people on standard error.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line")]
#![allow(
    clippy::disallowed_methods,
    reason = "a shell: it reads the clock and passes `now` to the station"
)]

mod output;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use clap::{Parser, Subcommand};
use countersign_factory::CertificateRequest;
use countersign_identity::{DeviceId, Timestamp};
use countersign_station::{Fault, Folder, Station, station};
use serde_json::json;

/// A machine on the factory line that issues identities without any network, and accounts for them later.
///
/// An operator grants it so many identities of one batch; it records each in a journal before it hands it out; the
/// journal is handed in (countersign factory reconcile), and only then are its devices let in.
///
/// Exit codes: 0 done, 1 other failure, 2 wrong usage, 3 not found, 4 refused, 5 storage not available or damaged.
#[derive(Parser)]
#[command(name = "countersign-station", version)]
struct Arguments {
    /// The station's folder: its key, its grant, its journal
    #[arg(
        long,
        short,
        global = true,
        env = "COUNTERSIGN_STATION",
        default_value = "countersign-station",
        hide_env_values = true
    )]
    folder: PathBuf,
    /// Print JSON, errors too
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the station's key and station.csr, for countersign factory station add
    Init {
        /// A name for people, in the request
        #[arg(long, default_value = "factory station")]
        name: String,
    },
    /// Take the grant file that the operator was given
    Install {
        /// The grant file
        grant: PathBuf,
    },
    /// Issue certificates, and write identity folders; a key that is in one is used again
    Issue {
        /// The device ids
        #[arg(required = true)]
        ids: Vec<DeviceId>,
        /// The device's certificate request (PKCS#10, PEM or DER; - for standard input): its key never leaves it
        #[arg(long)]
        csr: Option<PathBuf>,
        /// Where the identity folders are written [default: devices in the station's folder]
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Record that the certificate was written to its device
    Written {
        /// The device id
        id: DeviceId,
    },
    /// Make a fresh text for the device to sign with its key
    Challenge {
        /// The device id
        id: DeviceId,
        /// The file to write [default: standard output, without a line break]
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Record that the device proved to hold the key of its certificate
    Confirm {
        /// The device id
        id: DeviceId,
        /// The device's signature over the challenge, as openssl writes it (binary or base64)
        #[arg(long, conflicts_with = "identity", required_unless_present = "identity")]
        signature: Option<PathBuf>,
        /// In its place an identity folder with the device's key, which signs a challenge here and now
        #[arg(long)]
        identity: Option<PathBuf>,
    },
    /// Say how the station stands
    Status,
    /// Write the journal for countersign factory reconcile
    Export {
        /// The file to write [default: standard output]
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// End the grant, and destroy the station's key; export the journal afterwards
    Close {
        /// Why
        #[arg(long, default_value = "")]
        reason: String,
    },
}

fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::from_unix_ms(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let out = output::Output { json: arguments.json };
    match run(arguments, out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            out.fault(&fault);
            ExitCode::from(fault.exit_code())
        }
    }
}

fn open_folder(path: &Path) -> Result<Folder, Fault> {
    Folder::open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::WouldBlock => Fault::InUse,
        _ => Fault::storage("open", path.display().to_string())(e),
    })
}

fn open(path: &Path) -> Result<Station<Folder>, Fault> {
    let missing = || Fault::NoStation(path.display().to_string());
    if !path.exists() {
        return Err(missing());
    }
    Station::open(open_folder(path)?).map_err(|e| match e {
        Fault::NoStation(_) => missing(),
        other => other,
    })
}

fn read(path: &Path) -> Result<Vec<u8>, Fault> {
    if path == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin()
            .read_to_end(&mut bytes)
            .map_err(Fault::storage("read", "standard input"))?;
        return Ok(bytes);
    }
    std::fs::read(path).map_err(|e| Fault::Invalid(format!("cannot read {}: {e}", path.display())))
}

fn run(arguments: Arguments, out: output::Output) -> Result<(), Fault> {
    let folder = &arguments.folder;
    match arguments.command {
        Command::Init { name } => {
            let request = station::init(&mut open_folder(folder)?, &name)?;
            let path = folder.join(station::REQUEST);
            out.say(json!({ "request": path, "pem": request }), |_| {
                format!(
                    "the request is in {}; the key stays here\nnext: countersign factory station add ID --batch B --csr station.csr …, then countersign-station install GRANT",
                    path.display()
                )
            })
        }
        Command::Install { grant } => {
            let bytes = read(&grant)?;
            let mut station = open(folder)?;
            station.install(&bytes, now())?;
            out.say(output::value(&station.standing(now()))?, |v| {
                format!("the grant is installed\n{}", output::standing(v))
            })
        }
        Command::Issue { ids, csr, out: to } => issue(folder, &ids, csr.as_deref(), to, out),
        Command::Written { id } => {
            open(folder)?.written(&id, now())?;
            out.say(json!({ "device": id, "state": "written" }), |_| {
                format!("{id} has its certificate")
            })
        }
        Command::Challenge { id, out: to } => {
            let text = open(folder)?.challenge(&id)?;
            match to {
                Some(path) => {
                    output::write(&path, text.as_bytes())?;
                    out.say(json!({ "device": id, "challenge": text, "file": path }), |_| {
                        format!("the challenge is in {}", path.display())
                    })
                }
                None if out.json => out.say(json!({ "device": id, "challenge": text }), |_| String::new()),
                None => output::bytes(text.as_bytes()),
            }
        }
        Command::Confirm {
            id,
            signature,
            identity,
        } => {
            let mut station = open(folder)?;
            let signature = match (signature, identity) {
                (_, Some(identity)) => {
                    let text = station.challenge(&id)?;
                    output::sign(&identity, &text)?
                }
                (Some(path), None) => output::signature(read(&path)?),
                (None, None) => return Err(Fault::Invalid("there is no signature".into())),
            };
            station.confirm(&id, &signature, now())?;
            out.say(json!({ "device": id, "state": "confirmed" }), |_| {
                format!("{id} holds the key of its certificate")
            })
        }
        Command::Status => {
            let standing = open(folder)?.standing(now());
            out.say(output::value(&standing)?, output::standing)
        }
        Command::Export { out: to } => {
            let bytes = open(folder)?.export(now())?;
            match to {
                Some(path) => {
                    output::write(&path, &bytes)?;
                    out.say(json!({ "file": path, "bytes": bytes.len() }), |_| {
                        format!(
                            "the journal is in {}\nnext: countersign factory reconcile {}",
                            path.display(),
                            path.display()
                        )
                    })
                }
                None => output::bytes(&bytes),
            }
        }
        Command::Close { reason } => {
            let mut station = open(folder)?;
            station.close(&reason, now())?;
            out.say(output::value(&station.standing(now()))?, |_| {
                "the grant is closed, and the key destroyed\nnext: countersign-station export, and hand the journal in"
                    .into()
            })
        }
    }
}

fn issue(
    folder: &Path,
    ids: &[DeviceId],
    csr: Option<&Path>,
    to: Option<PathBuf>,
    out: output::Output,
) -> Result<(), Fault> {
    if csr.is_some() && ids.len() != 1 {
        return Err(Fault::Invalid(
            "one request is for one device; hint: issue one id with --csr".into(),
        ));
    }
    let request = csr.map(read).transpose()?;
    let mut station = open(folder)?;
    let to = to.unwrap_or_else(|| folder.join("devices"));
    for id in ids {
        let path = to.join(id.as_str());
        let key = match &request {
            Some(bytes) => CertificateRequest::parse(bytes)?.key().clone(),
            // The key is on the disk before a certificate is issued for it.
            None => output::device_key(&path)?,
        };
        let handed = station.issue(id, &key, now())?;
        output::identity(&path, &handed)?;
        let mut answer = output::value(&handed)?;
        answer["folder"] = json!(path);
        out.say(answer, |_| {
            format!(
                "{id}: serial {}, valid until {}, in {}{}",
                handed.serial,
                handed.not_after,
                path.display(),
                if handed.repeated { " (issued before)" } else { "" }
            )
        })?;
    }
    Ok(())
}
