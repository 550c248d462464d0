//! Each command as calls of the admin API.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use countersign_identity::TenantId;
use countersign_policy::ExchangeRecord;
use countersign_registry::ImportReport;
use indicatif::{ProgressBar, ProgressDrawTarget};
use serde_json::{Value, json};

use super::arguments::{
    Command, CredentialCommand, DeviceCommand, Format, HostCommand, OneDevice, OneMove, SessionCommand,
    TenantCommand,
};
use super::output::{Output, cell, time};
use super::{authority, factory, import, keeping, ledger};
use crate::api::{ImportBody, Token};
use crate::client::Client;
use crate::config::Config;
use crate::failure::Failure;
use crate::service::{ManifestImport, ManifestReport, Provisioned, Service};
use crate::{diagram, identity_folder};

/// Devices per request of an import: small enough that progress is seen, large enough to share one sync.
const IMPORT_CHUNK: usize = 1000;

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
        Command::Tenant(command) => tenant(command, client, out).await,
        Command::Authority(command) => authority::run(command, client, out).await,
        Command::Device(command) => device(command, client, out).await,
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
                    ("CLIENT ID", "/client_id"),
                    ("FROM", "/source"),
                    ("PROTOCOL", "/protocol"),
                    ("TLS", "/tls_version"),
                    ("SINCE", "/started"),
                    ("EXCHANGE", "/exchange"),
                ],
            )
        }
        Command::Session(SessionCommand::Disconnect(one)) => {
            let answer = client
                .call("DELETE", &format!("{}/sessions", path_of(&one)), None)
                .await?;
            out.say(&answer, |a| {
                format!("device {} disconnected{}", one.id, sessions(&a["sessions"]))
            })
        }
        Command::Explain {
            subject,
            recent: _,
            refused,
            tenant,
            format,
            limit,
        } => explain(client, subject, refused, tenant, format, limit, out).await,
        Command::Rejections(asked) => ledger::rejections(asked, client, out).await,
        Command::Exposure(asked) => ledger::exposure(asked, client, out).await,
        Command::Doctor => doctor(client, data, out).await,
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

async fn tenant(command: TenantCommand, client: &Client, out: Output) -> Result<(), Failure> {
    match command {
        TenantCommand::Add { id, client_id_mode } => {
            let body = json!({ "id": id, "client_id_mode": client_id_mode });
            let answer = client.call("POST", "/tenants", Some(body)).await?;
            out.say(&answer, |_| {
                format!("tenant {id} added, with an issuing authority of its own")
            })
        }
        TenantCommand::List => {
            let mut answer = client.call("GET", "/tenants", None).await?;
            times(&mut answer, "created", out);
            out.list(
                &answer,
                &[
                    ("TENANT", "/id"),
                    ("CLIENT IDS", "/client_id_mode"),
                    ("DEVICES", "/devices"),
                    ("HOST NAMES", "/hosts"),
                    ("CREATED", "/created"),
                ],
            )
        }
        TenantCommand::Set {
            id,
            client_id_mode,
            policies,
            spaces,
        } => {
            let policies = policies.as_deref().map(read).transpose()?;
            let spaces: Option<Value> = match &spaces {
                Some(path) => Some(
                    serde_json::from_str(&read(path)?)
                        .map_err(|e| Failure::invalid(format!("{}: {e}", path.display())))?,
                ),
                None => None,
            };
            let body = json!({ "client_id_mode": client_id_mode, "policies": policies, "spaces": spaces });
            let answer = client
                .call("PATCH", &format!("/tenants/{id}"), Some(body))
                .await?;
            out.say(&answer, |a| {
                format!("tenant {id} changed{}", sessions(&a["sessions"]))
            })
        }
        TenantCommand::Host(HostCommand::Add { tenant, host }) => {
            let path = format!("/tenants/{tenant}/hosts");
            let answer = client.call("POST", &path, Some(json!({ "host": host }))).await?;
            out.say(&answer, |_| {
                format!(
                    "host name {host} leads to tenant {tenant}\nhint: it must be in server.host_names too, to be in the server certificate"
                )
            })
        }
        TenantCommand::Host(HostCommand::Remove { tenant, host }) => {
            let answer = client
                .call("DELETE", &format!("/tenants/{tenant}/hosts/{host}"), None)
                .await?;
            out.say(&answer, |_| {
                format!("host name {host} no longer leads to tenant {tenant}")
            })
        }
    }
}

fn path_of(one: &OneDevice) -> String {
    format!("/tenants/{}/devices/{}", one.tenant, one.id)
}

async fn device(command: DeviceCommand, client: &Client, out: Output) -> Result<(), Failure> {
    match command {
        DeviceCommand::Add {
            device,
            model,
            groups,
            state,
            authority,
        } => {
            let body = json!({
                "id": device.id, "model": model, "groups": groups, "state": state, "authority": authority,
            });
            let answer = client
                .call("POST", &format!("/tenants/{}/devices", device.tenant), Some(body))
                .await?;
            out.say(&answer, |_| format!("device {} added, {state}", device.id))
        }
        DeviceCommand::Import {
            path,
            tenant,
            identity_rule,
            groups,
        } => {
            let devices = import::devices(&path, &identity_rule, &groups)?;
            bulk_import(client, &tenant, devices, out).await
        }
        DeviceCommand::ImportManifest {
            file,
            signer,
            tenant,
            batch,
            model,
            identity_rule,
            key,
        } => {
            let import = ManifestImport {
                entries: import::manifest(&file)?,
                signer: read(&signer)?,
                batch,
                model,
                identity_rule,
                key,
            };
            import_manifest(client, &tenant, import, out).await
        }
        DeviceCommand::Provision {
            device,
            csr,
            out: folder,
            profile,
            authority,
        } => {
            let body = json!({ "profile": profile, "authority": authority });
            provision(client, device, csr, folder, body, out).await
        }
        DeviceCommand::Bind { device, authority } => {
            let path = format!("{}/authority", path_of(&device));
            let answer = client
                .call("PUT", &path, Some(json!({ "authority": authority })))
                .await?;
            out.say(&answer, |_| match &authority {
                Some(authority) => format!("device {} is bound to authority {authority}", device.id),
                None => format!("device {} is bound to no authority", device.id),
            })
        }
        DeviceCommand::Pin {
            device: OneDevice { id, tenant },
            certificate,
        } => {
            let body = json!({ "certificate": read(&certificate)? });
            let path = format!("/tenants/{tenant}/devices/{id}/pins");
            let answer = client.call("POST", &path, Some(body)).await?;
            out.say(&answer, |a| {
                format!(
                    "device {id} is admitted by the certificate {}, until that expires or is revoked",
                    cell(&a["fingerprint"])
                )
            })
        }
        DeviceCommand::Secret(one) => {
            let answer = client
                .call("POST", &format!("{}/secrets", path_of(&one)), None)
                .await?;
            out.say(&answer, |a| {
                format!(
                    "{}\nit is shown this once, good until {}, for one key; EST user name: {}",
                    cell(&a["secret"]),
                    time(&a["expires"]),
                    one.id
                )
            })
        }
        DeviceCommand::Revoke { device, why } => {
            let path = format!("{}/revoke", path_of(&device));
            let answer = client
                .call(
                    "POST",
                    &path,
                    Some(json!({ "code": why.code, "reason": why.reason })),
                )
                .await?;
            out.say(&answer, |a| {
                format!(
                    "device {}: {} certificate(s) revoked{}",
                    device.id,
                    a["revoked"],
                    sessions(&a["sessions"])
                )
            })
        }
        DeviceCommand::List { tenant, state, limit } => {
            let mut all = Vec::new();
            let mut after: Option<String> = None;
            while all.len() < limit {
                let mut path = format!(
                    "/tenants/{tenant}/devices?limit={}",
                    (limit - all.len()).min(1000)
                );
                if let Some(state) = state {
                    path.push_str(&format!("&state={state}"));
                }
                if let Some(after) = &after {
                    path.push_str(&format!("&after={after}"));
                }
                let mut answer = client.call("GET", &path, None).await?;
                if let Value::Array(page) = answer["devices"].take() {
                    all.extend(page);
                }
                after = answer["next"].as_str().map(str::to_owned);
                if after.is_none() {
                    break;
                }
            }
            let mut answer = Value::Array(all);
            times(&mut answer, "created", out);
            out.list(
                &answer,
                &[
                    ("DEVICE", "/id"),
                    ("STATE", "/state"),
                    ("MODEL", "/model"),
                    ("GROUPS", "/groups"),
                    ("CREATED", "/created"),
                ],
            )
        }
        DeviceCommand::Show(one) => {
            let answer = client.call("GET", &path_of(&one), None).await?;
            out.say(&answer, show)
        }
        DeviceCommand::Activate(m) => lifecycle(client, "activate", m, out).await,
        DeviceCommand::Suspend(m) => lifecycle(client, "suspend", m, out).await,
        DeviceCommand::Resume(m) => lifecycle(client, "resume", m, out).await,
        DeviceCommand::Quarantine(m) => lifecycle(client, "quarantine", m, out).await,
        DeviceCommand::Release(m) => lifecycle(client, "release", m, out).await,
        DeviceCommand::Decommission(m) => lifecycle(client, "decommission", m, out).await,
    }
}

async fn lifecycle(client: &Client, name: &str, m: OneMove, out: Output) -> Result<(), Failure> {
    let body = json!({ "move": name, "reason": m.reason });
    let answer = client
        .call("POST", &format!("{}/moves", path_of(&m.device)), Some(body))
        .await?;
    out.say(&answer, |a| {
        format!(
            "device {} is {}{}",
            m.device.id,
            cell(&a["state"]),
            sessions(&a["sessions"])
        )
    })
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

async fn bulk_import(
    client: &Client,
    tenant: &TenantId,
    devices: Vec<crate::api::ImportDevice>,
    out: Output,
) -> Result<(), Failure> {
    let bar = ProgressBar::with_draw_target(Some(devices.len() as u64), ProgressDrawTarget::stderr());
    let mut total = ImportReport::default();
    for chunk in devices.chunks(IMPORT_CHUNK) {
        let body = serde_json::to_value(ImportBody {
            devices: chunk.to_vec(),
        })
        .map_err(|e| Failure::internal(e.to_string()))?;
        let answer = client
            .call("POST", &format!("/tenants/{tenant}/devices/import"), Some(body))
            .await?;
        let part: ImportReport = serde_json::from_value(answer)
            .map_err(|e| Failure::internal(format!("unexpected answer: {e}")))?;
        total.added += part.added;
        total.unchanged += part.unchanged;
        total.credentials_added += part.credentials_added;
        total.refused.extend(part.refused);
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    for (id, reason) in total.refused.iter().take(20) {
        eprintln!("refused: {id}: {reason}");
    }
    let answer = serde_json::to_value(&total).map_err(|e| Failure::internal(e.to_string()))?;
    out.say(&answer, |_| {
        format!(
            "{} added, {} unchanged, {} certificates registered, {} refused",
            total.added,
            total.unchanged,
            total.credentials_added,
            total.refused.len()
        )
    })?;
    if total.refused.is_empty() {
        return Ok(());
    }
    Err(Failure::invalid(format!(
        "{} devices were refused; hint: correct them and repeat the import, what is in stays as it is",
        total.refused.len()
    )))
}

async fn import_manifest(
    client: &Client,
    tenant: &TenantId,
    import: ManifestImport,
    out: Output,
) -> Result<(), Failure> {
    let bar = ProgressBar::with_draw_target(Some(import.entries.len() as u64), ProgressDrawTarget::stderr());
    let mut total = ManifestReport::default();
    for chunk in import.entries.chunks(IMPORT_CHUNK) {
        let body = ManifestImport {
            entries: chunk.to_vec(),
            ..import.clone()
        };
        let body = serde_json::to_value(body).map_err(|e| Failure::internal(e.to_string()))?;
        let answer = client
            .call("POST", &format!("/tenants/{tenant}/manifests"), Some(body))
            .await?;
        let part: ManifestReport = serde_json::from_value(answer)
            .map_err(|e| Failure::internal(format!("unexpected answer: {e}")))?;
        total.added += part.added;
        total.unchanged += part.unchanged;
        total.credentials_added += part.credentials_added;
        total.refused.extend(part.refused);
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    for (name, reason) in total.refused.iter().take(20) {
        eprintln!("refused: {name}: {reason}");
    }
    let answer = serde_json::to_value(&total).map_err(|e| Failure::internal(e.to_string()))?;
    out.say(&answer, |_| {
        format!(
            "{} added, {} unchanged, {} certificates registered, {} refused",
            total.added,
            total.unchanged,
            total.credentials_added,
            total.refused.len()
        )
    })?;
    if total.refused.is_empty() {
        return Ok(());
    }
    Err(Failure::invalid(format!(
        "{} entries were refused; hint: see to each, and repeat the import, what is in stays as it is",
        total.refused.len()
    )))
}

async fn provision(
    client: &Client,
    one: OneDevice,
    csr: Option<PathBuf>,
    folder: Option<PathBuf>,
    mut body: Value,
    out: Output,
) -> Result<(), Failure> {
    let folder = folder.unwrap_or_else(|| PathBuf::from(one.id.as_str()));
    // The key is made here and stays here. It is in the folder before anything is asked for: whoever repeats a command
    // whose answer was lost asks for the same key, and gets the same certificate.
    let request = match &csr {
        Some(path) => read(path)?,
        None => identity_folder::request(&folder, &one.id)?,
    };
    body["request"] = json!(request);
    let add = json!({ "id": one.id });
    match client
        .call("POST", &format!("/tenants/{}/devices", one.tenant), Some(add))
        .await
    {
        Ok(_) => eprintln!("device {} added, active", one.id),
        Err(e) if e.status == 409 => {}
        Err(e) => return Err(e),
    }
    let path = format!("{}/certificates", path_of(&one));
    let mut answer = client.call("POST", &path, Some(body)).await?;
    let provisioned: Provisioned = serde_json::from_value(answer.clone())
        .map_err(|e| Failure::internal(format!("unexpected answer: {e}")))?;
    identity_folder::write(&folder, &provisioned)?;
    if let Value::Object(fields) = &mut answer {
        fields.insert("folder".into(), json!(folder));
    }
    out.say(&answer, |_| {
        let mut text = format!(
            "device {}: certificate {}{} until {}, in {}",
            provisioned.device,
            provisioned.serial,
            if provisioned.repeated {
                " (as issued before for this key)"
            } else {
                ""
            },
            provisioned.not_after,
            folder.display()
        );
        if csr.is_none() {
            text.push_str(&format!(
                "\ntry it: {}",
                identity_folder::mosquitto_line(&folder, &provisioned)
            ));
        } else {
            text.push_str(
                "\nnext: put device.crt, platform-root.crt and device.json beside the device's key",
            );
        }
        text
    })
}

fn show(a: &Value) -> String {
    let d = &a["device"];
    let mut text = format!(
        "device   {} of tenant {}\nstate    {}\nmodel    {}\ngroups   {}\nbatch    {}\nbound to {}\ncreated  {}",
        cell(&d["id"]),
        cell(&d["tenant"]),
        cell(&d["state"]),
        cell(&d["model"]),
        cell(&d["groups"]),
        cell(&a["batch"]),
        cell(&d["authority"]),
        time(&d["created"])
    );
    for c in a["credentials"].as_array().map(Vec::as_slice).unwrap_or_default() {
        text.push_str(&format!(
            "\n\ncertificate  {}\n  serial     {}\n  kind       {}, {}, custody {}\n  valid      {} to {}\n  issuer     {}",
            cell(&c["fingerprint"]),
            cell(&c["serial"]),
            cell(&c["kind"]),
            cell(&c["state"]),
            cell(&c["custody"]),
            time(&c["not_before"]),
            time(&c["not_after"]),
            cell(&c["issuer"])
        ));
    }
    for s in a["sessions"].as_array().map(Vec::as_slice).unwrap_or_default() {
        text.push_str(&format!(
            "\n\nsession      {} from {}, {}, since {}, exchange {}",
            cell(&s["client_id"]),
            cell(&s["source"]),
            cell(&s["protocol"]),
            time(&s["started"]),
            cell(&s["exchange"])
        ));
    }
    text
}

async fn explain(
    client: &Client,
    subject: Option<String>,
    refused: bool,
    tenant: Option<TenantId>,
    format: Format,
    limit: u32,
    out: Output,
) -> Result<(), Failure> {
    let mut path = format!("/exchanges?limit={limit}&refused={refused}");
    if let Some(subject) = &subject {
        if !subject
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._:-".contains(&b))
        {
            return Err(Failure::not_found(
                format!("{subject:?} is no device, fingerprint, serial number or exchange"),
                "countersign device list",
            ));
        }
        path.push_str(&format!("&subject={subject}"));
    }
    if let Some(tenant) = &tenant {
        path.push_str(&format!("&tenant={tenant}"));
    }
    let answer = client.call("GET", &path, None).await?;
    if out.json || format == Format::Json {
        return Output { json: true }.say(&answer, |_| String::new());
    }
    let records: Vec<ExchangeRecord> =
        serde_json::from_value(answer).map_err(|e| Failure::internal(format!("unexpected answer: {e}")))?;
    if records.is_empty() {
        eprintln!("no exchanges yet");
    }
    for record in &records {
        match format {
            Format::Mermaid => out.text(&diagram::mermaid(record))?,
            _ => out.text(&format!("{}\n\u{200b}", diagram::text(record)).replace('\u{200b}', ""))?,
        }
    }
    Ok(())
}

async fn doctor(client: &Client, data: &Path, out: Output) -> Result<(), Failure> {
    let answer = client.call("GET", "/doctor", None).await?;
    out.say(&answer, |a| {
        let mut text = format!("data directory {}", data.display());
        for check in a.as_array().map(Vec::as_slice).unwrap_or_default() {
            let mark = match (check["ok"] == true, check["warning"] == true) {
                (true, false) => "ok  ",
                (true, true) => "warn",
                (false, _) => "FAIL",
            };
            text.push_str(&format!(
                "\n{mark} {:20} {}",
                cell(&check["name"]),
                cell(&check["detail"])
            ));
            if let Some(hint) = check["hint"].as_str() {
                text.push_str(&format!("\n     hint: {hint}"));
            }
        }
        text
    })?;
    let failed = answer
        .as_array()
        .into_iter()
        .flatten()
        .filter(|c| c["ok"] != true)
        .count();
    if failed == 0 {
        Ok(())
    } else {
        Err(Failure::internal(format!("{failed} check(s) failed")))
    }
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
