//! `countersign device`.

use std::path::PathBuf;

use countersign_factory::manifest::ManifestEntry;
use countersign_identity::TenantId;
use countersign_policy::LifecycleState;
use serde_json::{Value, json};

use super::arguments::{DeviceCommand, OneDevice};
use super::commands::{read, sessions, times};
use super::output::{Output, cell, time};
use super::{bulk, import, moves};
use crate::api::{ImportBody, ImportDevice};
use crate::client::Client;
use crate::failure::Failure;
use crate::identity_folder;
use crate::service::{ManifestImport, Provisioned};

/// Of one device, below `/api/v1`.
pub(super) fn path_of(one: &OneDevice) -> String {
    format!("/tenants/{}/devices/{}", one.tenant, one.id)
}

pub(super) async fn run(command: DeviceCommand, client: &Client, out: Output) -> Result<(), Failure> {
    let command = match moves::of(command) {
        Ok((which, body)) => return moves::run(client, which, body, out).await,
        Err(other) => *other,
    };
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
            let path = format!("/tenants/{tenant}/devices/import");
            let body = |part: &[ImportDevice]| ImportBody {
                devices: part.to_vec(),
            };
            let refused =
                "devices were refused; hint: correct them and repeat the import, what is in stays as it is";
            bulk::send(client, &path, &devices, body, refused, out).await
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
            let entries = import::manifest(&file)?;
            let import = ManifestImport {
                entries: Vec::new(),
                signer: read(&signer)?,
                batch,
                model,
                identity_rule,
                key,
            };
            let path = format!("/tenants/{tenant}/manifests");
            let body = |part: &[ManifestEntry]| ManifestImport {
                entries: part.to_vec(),
                ..import.clone()
            };
            let refused =
                "entries were refused; hint: see to each, and repeat the import, what is in stays as it is";
            bulk::send(client, &path, &entries, body, refused, out).await
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
                    "device {}: {} certificate(s) revoked{}{}",
                    device.id,
                    a["revoked"],
                    sessions(&a["sessions"]),
                    if why.code.is_compromise() {
                        format!(
                            "\nno claim enrols it any more; hint: countersign device secret {}",
                            device.id
                        )
                    } else {
                        String::new()
                    }
                )
            })
        }
        DeviceCommand::List { tenant, state, limit } => list(client, &tenant, state, limit, out).await,
        DeviceCommand::Show(one) => {
            let answer = client.call("GET", &path_of(&one), None).await?;
            out.say(&answer, show)
        }
        DeviceCommand::Destroyed { statement: path } => {
            let statement: Value = serde_json::from_str(&read(&path)?)
                .map_err(|e| Failure::invalid(format!("{}: {e}", path.display())))?;
            let text = |name: &str| statement[name].as_str().unwrap_or("-").to_owned();
            let (tenant, device) = (text("tenant"), text("device"));
            let endpoint = format!("/tenants/{tenant}/devices/{device}/destruction");
            let answer = client.call("POST", &endpoint, Some(statement)).await?;
            out.say(&answer, |a| {
                format!(
                    "the destruction of {device} is recorded as declared, at {}; it is decommissioned",
                    time(&a["recorded"])
                )
            })
        }
        // Taken out above.
        DeviceCommand::Activate(_)
        | DeviceCommand::Suspend { .. }
        | DeviceCommand::Resume(_)
        | DeviceCommand::Quarantine { .. }
        | DeviceCommand::Release { .. }
        | DeviceCommand::Decommission(_) => Ok(()),
    }
}

/// Devices of one answer.
const PAGE: usize = 1000;

async fn list(
    client: &Client,
    tenant: &TenantId,
    state: Option<LifecycleState>,
    limit: usize,
    out: Output,
) -> Result<(), Failure> {
    let mut all = Vec::new();
    let mut after: Option<String> = None;
    // One more than is shown: whoever takes a list for the whole fleet is told when it is not.
    while all.len() <= limit {
        let wanted = limit.saturating_add(1).saturating_sub(all.len());
        let mut path = format!("/tenants/{tenant}/devices?limit={}", wanted.min(PAGE));
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
    if all.len() > limit {
        all.truncate(limit);
        eprintln!("{limit} shown, there are more; hint: --limit N shows up to N");
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

async fn provision(
    client: &Client,
    one: OneDevice,
    csr: Option<PathBuf>,
    folder: Option<PathBuf>,
    mut body: Value,
    out: Output,
) -> Result<(), Failure> {
    let folder = folder.unwrap_or_else(|| PathBuf::from(one.id.as_str()));
    // What can be seen to be wrong here is seen before anything is changed there.
    identity_folder::prepare(&folder, &one.id)?;
    // The key is made here and stays here. It is in the folder before anything is asked for: whoever repeats a command
    // whose answer was lost asks for the same key, and gets the same certificate.
    let request = match &csr {
        Some(path) => read(path)?,
        None => identity_folder::request(&folder, &one.id)?,
    };
    body["request"] = json!(request);
    body["add_device"] = json!(true);
    let path = format!("{}/certificates", path_of(&one));
    let mut answer = client.call("POST", &path, Some(body)).await?;
    let provisioned: Provisioned = serde_json::from_value(answer.clone())
        .map_err(|e| Failure::internal(format!("unexpected answer: {e}")))?;
    if provisioned.added {
        eprintln!("device {} added, active", one.id);
    }
    // The certificate is registered: repeated, the command gets the same one.
    identity_folder::write(&folder, &provisioned).map_err(|e| Failure {
        hint: Some("see to it and repeat the command: the certificate is answered again".into()),
        ..e
    })?;
    if let Some(warning) = identity_folder::no_renewal(&provisioned) {
        eprintln!("{warning}");
    }
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

/// Since when a device is in its state, by whom, why, and until when.
fn since(d: &Value) -> String {
    let mut text = String::new();
    let moved = &d["moved"];
    if !moved.is_null() {
        text.push_str(&format!(
            " since {} by {}",
            time(&moved["since"]),
            cell(&moved["by"])
        ));
        if let Some(reason) = moved["reason"].as_str().filter(|r| !r.is_empty()) {
            text.push_str(&format!(": {reason}"));
        }
    }
    for (field, what) in [
        ("suspended_until", "the suspension ends"),
        ("quarantined_until", "the quarantine ends"),
    ] {
        if !d[field].is_null() {
            text.push_str(&format!("\n         {what} by itself at {}", time(&d[field])));
        }
    }
    if let Some(before) = d["before_quarantine"].as_str() {
        text.push_str(&format!("\n         release returns to {before}"));
    }
    text
}

fn show(a: &Value) -> String {
    let d = &a["device"];
    let mut text = format!(
        "device   {} of tenant {}\nstate    {}{}\nmodel    {}\ngroups   {}\nbatch    {}\nbound to {}\ncreated  {}",
        cell(&d["id"]),
        cell(&d["tenant"]),
        cell(&d["state"]),
        since(d),
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
    for d in a["destructions"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
    {
        text.push_str(&format!(
            "\n\ndestroyed    declared by the device at {}, recorded {}\n  certificate {}",
            time(&d["stated"]),
            time(&d["recorded"]),
            cell(&d["certificate"])
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
