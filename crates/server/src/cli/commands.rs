//! Each command as calls of the admin API.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::arguments::{ClonesCommand, Command, CredentialCommand, SessionCommand};
use super::output::{Output, time};
use super::{
    attestation, authority, device, diagnosis, factory, keeping, ledger, moves, policy, service, tenant, why,
};
use crate::api::Token;
use crate::client::Client;
use crate::config::Config;
use crate::failure::Failure;
use crate::service::Service;

pub(super) fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .map_err(|e| Failure::invalid(format!("cannot read {}: {e}", path.display())))
}

/// `init`: works without a server, and is safe to repeat.
pub fn init(
    data: &Path,
    listen: Option<SocketAddr>,
    host_names: Vec<String>,
    ca_socket: Option<PathBuf>,
    out: Output,
) -> Result<(), Failure> {
    let file = data.join("countersign.toml");
    if file.exists() && (listen.is_some() || !host_names.is_empty() || ca_socket.is_some()) {
        return Err(Failure::invalid(format!(
            "{} exists and is not overwritten; hint: edit it, then countersign config check",
            file.display()
        )));
    }
    let config = if file.exists() {
        Config::load(&file).map_err(|e| Failure::invalid(e.to_string()))?
    } else {
        let mut config = Config::default();
        if let Some(listen) = listen {
            config.set_device_address(listen);
        }
        if !host_names.is_empty() {
            config.server.host_names = host_names;
        }
        config.ca.socket = ca_socket;
        config.check().map_err(|e| Failure::invalid(e.to_string()))?;
        config
    };
    let service = Service::create(data, config.clone())?;
    if !file.exists() {
        countersign_authority::folder::write_private(&file, config.to_annotated_toml().as_bytes())?;
    }
    Token::load(data)?;
    service.server_certificate()?;
    out.say(
        &json!({ "data": data, "config": file, "listen": config.device_address() }),
        |_| {
            format!(
                "data directory {} is ready\nnext: countersign serve --data {}",
                data.display(),
                data.display()
            )
        },
    )
}

/// `config check`
pub fn config_check(config: &Config, out: Output) -> Result<(), Failure> {
    let answer = serde_json::to_value(config).map_err(|e| Failure::internal(e.to_string()))?;
    let text = toml::to_string(config).map_err(|e| Failure::internal(e.to_string()))?;
    out.say(&answer, |_| text)
}

/// Everything that goes through the API.
pub async fn run(command: Command, client: &Client, data: &Path, out: Output) -> Result<(), Failure> {
    match command {
        Command::Tenant(command) => tenant::run(command, client, out).await,
        Command::Policy(command) => policy::run(command, client, out).await,
        Command::Why(asked) => why::run(asked, client, out).await,
        Command::Authority(command) => authority::run(command, client, out).await,
        Command::Device(command) => device::run(command, client, out).await,
        Command::Factory(command) => factory::run(command, client, out).await,
        Command::Credential(CredentialCommand::Revoke {
            fingerprint,
            batch,
            tenant,
            why,
        }) => {
            let (path, what) = match (&fingerprint, &batch) {
                (_, Some(batch)) => (
                    format!("/tenants/{tenant}/batches/{batch}/revoke"),
                    format!("batch {batch}"),
                ),
                (Some(fingerprint), None) => (
                    format!("/credentials/{fingerprint}/revoke"),
                    format!("certificate {fingerprint}"),
                ),
                (None, None) => return Err(Failure::invalid("it is not said what is to be revoked")),
            };
            let body = json!({ "code": why.code, "reason": why.reason });
            let answer = client.call("POST", &path, Some(body)).await?;
            out.say(&answer, |a| {
                format!(
                    "{what}: {} certificate(s) revoked{}",
                    a["revoked"],
                    sessions(&a["sessions"])
                )
            })
        }
        Command::Credential(CredentialCommand::Confirm { fingerprint }) => {
            let path = format!("/credentials/{fingerprint}/confirm");
            let answer = client.call("POST", &path, None).await?;
            out.say(&answer, |_| format!("certificate {fingerprint} is active"))
        }
        Command::Session(SessionCommand::List { tenant }) => {
            let query = tenant.map(|t| format!("?tenant={t}")).unwrap_or_default();
            let mut answer = client.call("GET", &format!("/sessions{query}"), None).await?;
            times(&mut answer, "started", out);
            out.list(
                &answer,
                &[
                    ("TENANT", "/tenant"),
                    ("DEVICE", "/device"),
                    ("KIND", "/kind"),
                    ("CLIENT ID", "/client_id"),
                    ("FROM", "/source"),
                    ("PROTOCOL", "/protocol"),
                    ("TLS", "/tls_version"),
                    ("SINCE", "/started"),
                    ("EXCHANGE", "/exchange"),
                ],
            )
        }
        Command::Clones(ClonesCommand::List { tenant }) => {
            let query = tenant.map(|t| format!("?tenant={t}")).unwrap_or_default();
            let mut answer = client.call("GET", &format!("/clones{query}"), None).await?;
            times(&mut answer, "last", out);
            out.list(
                &answer,
                &[
                    ("TENANT", "/tenant"),
                    ("DEVICE", "/device"),
                    ("CERTIFICATE", "/fingerprint"),
                    ("SCORE", "/score"),
                    ("TAKEN OVER", "/takeovers"),
                    ("ALIVE", "/answered"),
                    ("CAME BACK", "/returned"),
                    ("AT ONCE", "/together"),
                    ("FROM", "/sources"),
                    ("LAST", "/last"),
                ],
            )
        }
        Command::Attestation(command) => attestation::run(command, client, out).await,
        Command::Service(command) => service::run(command, client, out).await,
        Command::Session(SessionCommand::Disconnect(one)) => {
            let answer = client
                .call("DELETE", &format!("{}/sessions", device::path_of(&one)), None)
                .await?;
            out.say(&answer, |a| {
                match (&a["sessions"]["ended"], &a["sessions"]["open"]) {
                    (ended, open) if *ended == 0 && *open == 0 => format!("device {} had no session", one.id),
                    _ => format!("device {} disconnected{}", one.id, sessions(&a["sessions"])),
                }
            })
        }
        Command::Explain {
            subject,
            recent: _,
            refused,
            tenant,
            format,
            limit,
        } => diagnosis::explain(client, subject, refused, tenant, format, limit, out).await,
        Command::Rejections(asked) => ledger::rejections(asked, client, out).await,
        Command::Exposure(asked) => ledger::exposure(asked, client, out).await,
        Command::Receipt(command) => moves::receipt(command, client, out).await,
        Command::Doctor => diagnosis::doctor(client, data, out).await,
        Command::Clock(command) => keeping::clock(command, client, out).await,
        Command::Forecast { tenant } => keeping::forecast(tenant, client, out).await,
        Command::Backup { target, with_keys } => keeping::backup(&target, with_keys, client, out).await,
        Command::Quickstart { .. }
        | Command::Init { .. }
        | Command::Serve { .. }
        | Command::Restore { .. }
        | Command::Ca(_)
        | Command::Config(_)
        | Command::Verify(_) => Ok(()),
    }
}

/// What a change did to live sessions, in words.
pub(super) fn sessions(report: &Value) -> String {
    let n = |key: &str| report[key].as_u64().unwrap_or(0);
    let mut text = String::new();
    if n("ended") > 0 || n("open") > 0 {
        text = format!("; {} session(s) ended in {} ms", n("ended"), report["took_ms"]);
    }
    if n("open") > 0 {
        text.push_str(&format!(
            "; {} could not be closed yet, and can do nothing any more",
            n("open")
        ));
    }
    if n("kept") > 0 {
        text.push_str(&format!("; {} session(s) decided anew and kept", n("kept")));
    }
    text
}

/// For people, times are RFC 3339; in JSON they stay numbers.
pub(super) fn times(answer: &mut Value, field: &str, out: Output) {
    if out.json {
        return;
    }
    for row in answer.as_array_mut().into_iter().flatten() {
        let text = time(&row[field]);
        row[field] = Value::String(text);
    }
}
