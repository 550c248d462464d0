//! The command line: data on standard output, words for people on standard error.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line")]

mod arguments;
mod attestation;
mod authority;
mod bulk;
mod ca;
mod ca_key;
mod claim;
mod commands;
mod device;
mod diagnosis;
mod factory;
mod import;
mod keeping;
mod ledger;
mod line_diff;
mod moves;
mod output;
mod policy;
mod policy_cases;
mod service;
mod tenant;
mod verify;
mod why;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use countersign_registry::BackwardClock;
use tracing_subscriber::EnvFilter;

use crate::config::{Config, LogFormat};
use crate::failure::Failure;
pub use arguments::Arguments;
use arguments::{Command, ConfigCommand};

/// Reads the command line and does what it says.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    // Enough for a server of two cores; the kernel schedules the rest.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(e) => return failed(&Failure::internal(format!("cannot start: {e}"))),
    };
    match runtime.block_on(dispatch(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failed(&failure),
    }
}

fn failed(failure: &Failure) -> ExitCode {
    eprintln!("error: {}", failure.message);
    if let Some(hint) = &failure.hint {
        eprintln!("hint: {hint}");
    }
    ExitCode::from(failure.exit_code())
}

/// The configuration of a data directory: the file that was named, its own, or the defaults.
fn configuration(data: &Path, named: Option<&Path>) -> Result<Config, Failure> {
    let own = data.join("countersign.toml");
    let path: Option<PathBuf> = named.map(Path::to_owned).or_else(|| own.exists().then_some(own));
    match path {
        Some(path) => Config::load(&path).map_err(|e| Failure::invalid(e.to_string())),
        None => Ok(Config::default()),
    }
}

async fn dispatch(arguments: Arguments) -> Result<(), Failure> {
    let data = arguments.data.clone();
    let named = arguments.config.as_deref();
    let out = output::Output { json: arguments.json };
    match arguments.command {
        Command::Quickstart { once } => {
            logging(LogFormat::Text, "off")?;
            // Whoever has read enough has closed the pipe (`| head`): that is no fault.
            let print = |line: &str| drop(writeln!(std::io::stdout(), "{line}"));
            crate::quickstart::run(once, print).await
        }
        Command::Init {
            listen,
            host_names,
            ca_socket,
        } => commands::init(&data, listen, host_names, ca_socket, out),
        Command::Config(ConfigCommand::Check) => {
            let config = configuration(&data, named)?;
            commands::config_check(&config, out)
        }
        Command::Ca(command) => ca::run(command, &data, out).await,
        Command::Serve { listen, admin } => {
            crate::serve::need_prepared(&data)?;
            let mut config = configuration(&data, named)?;
            if let Some(listen) = listen {
                config.set_device_address(listen);
            }
            if let Some(admin) = admin {
                config.admin.listen = admin;
            }
            config.check().map_err(|e| Failure::invalid(e.to_string()))?;
            logging(config.log.format, &config.log.filter)?;
            crate::serve::serve(&data, config).await
        }
        Command::Restore {
            backup,
            lists,
            compare,
            only_report,
            accept_clock,
        } => {
            logging(LogFormat::Text, "warn")?;
            let restore = crate::backup::Restore {
                backup,
                data,
                lists,
                compare,
                apply: !only_report,
                clock: if accept_clock {
                    BackwardClock::Accept
                } else {
                    BackwardClock::Refuse
                },
            };
            keeping::restore(&restore, out)
        }
        Command::Verify(arguments) => verify::run(&arguments, out),
        command => {
            if let Command::Policy(policy) = &command
                && let Some(done) = policy::offline(policy, out)
            {
                return done;
            }
            logging(LogFormat::Text, "warn")?;
            let client = crate::client::Client::connect(&data, configuration(&data, named)?).await?;
            commands::run(command, &client, &data, out).await
        }
    }
}

/// Logs to standard error.
fn logging(format: LogFormat, filter: &str) -> Result<(), Failure> {
    let filter = std::env::var("COUNTERSIGN_LOG").unwrap_or_else(|_| filter.to_owned());
    let filter = EnvFilter::try_new(&filter).map_err(|e| {
        Failure::invalid(format!(
            "log.filter {filter:?}: {e}; hint: write info, warn or debug"
        ))
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    let set = match format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    set.map_err(|e| Failure::internal(e.to_string()))
}
