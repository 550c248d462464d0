//! `status`: how the service stands.

use std::process::ExitCode;

use clap::Args;
use countersign_device::{IdentityFolder, State, Status};

use super::fail;

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
    let is_running = match folder.try_running() {
        Ok(lock) => lock.is_none(),
        Err(e) => return fail(3, &e.to_string()),
    };
    let status = match Status::read(folder.path()) {
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
