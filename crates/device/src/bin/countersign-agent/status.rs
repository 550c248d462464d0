//! `status`: how the service stands.

use std::process::ExitCode;

use clap::Args;
use countersign_device::{IdentityFolder, State, Status};

use super::{fail, run};

/// No service runs on the identity folder.
const NOT_RUNNING: u8 = 12;

#[derive(Args)]
pub(crate) struct StatusArguments {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Prints it. The exit code is 0 while the service is connected, and else that of what is wrong.
pub(crate) fn status(folder: &IdentityFolder, asked: &StatusArguments) -> ExitCode {
    let is_running = folder.is_running();
    let live = run::live_status(folder.path()).filter(|_| is_running);
    let status = match live.map_or_else(|| Status::read(folder.path()), Ok) {
        Ok(status) => status,
        Err(e) => return fail(NOT_RUNNING, &e),
    };
    if asked.json {
        let told = serde_json::json!({ "running": is_running, "status": status });
        println!("{told}");
    } else {
        for line in status.lines(folder.clock().now()) {
            println!("{line}");
        }
    }
    if !is_running {
        let hint = "hint: start it: countersign-agent run, or systemctl start with its unit";
        return fail(
            NOT_RUNNING,
            &format!("no service runs on {}; {hint}", folder.path().display()),
        );
    }
    match (&status.state, &status.fault) {
        (State::Connected, _) => ExitCode::SUCCESS,
        (_, Some(fault)) => ExitCode::from(fault.exit_code),
        (_, None) => ExitCode::from(4),
    }
}
