//! The factory's commands, as calls of the admin API.

mod archive;
pub mod arguments;
mod ids;
mod index;
mod issue;
mod keys;
mod layout;
mod station;

use std::path::Path;

use countersign_factory::SigningWindow;
use countersign_identity::{BatchId, DeviceId, Fingerprint, TenantId};
use serde_json::{Value, json};

use super::commands;
use super::output::{Output, cell, time};
use crate::api::{BatchBody, ConfirmBody};
use crate::cli::claim;
use crate::client::Client;
use crate::failure::Failure;
use crate::service::ConfirmAnswer;
use arguments::{BatchCommand, FactoryCommand, OneBatch};

/// Confirmations per request.
const CONFIRM_CHUNK: usize = 1000;
/// Refusals that are shown one by one.
const SHOWN_MAX: usize = 20;

pub async fn run(command: FactoryCommand, client: &Client, out: Output) -> Result<(), Failure> {
    match command {
        FactoryCommand::Batch(command) => batch(command, client, out).await,
        FactoryCommand::Claim(command) => claim::run(command, client, out).await,
        FactoryCommand::Station(command) => station::run(command, client, out).await,
        FactoryCommand::Reconcile { journal, salvaged } => {
            station::reconcile(client, &journal, salvaged, out).await
        }
        FactoryCommand::Issue(arguments) => issue::run(arguments, client, out).await,
        FactoryCommand::Confirm {
            batch,
            tenant,
            names,
            list,
        } => confirm(client, &tenant, &batch, names, list.as_deref(), out).await,
    }
}

fn path_of(one: &OneBatch) -> String {
    format!("/tenants/{}/batches/{}", one.tenant, one.id)
}

async fn batch(command: BatchCommand, client: &Client, out: Output) -> Result<(), Failure> {
    match command {
        BatchCommand::Add {
            id,
            tenant,
            model,
            profile,
            id_pattern,
            quota,
            groups,
            devices_start,
            authority,
            not_before,
            not_after,
        } => {
            let body = BatchBody {
                id: id.clone(),
                model,
                profile,
                groups,
                devices_start,
                authority,
                id_pattern,
                quota,
                window: SigningWindow {
                    not_before,
                    not_after,
                },
            };
            let body = serde_json::to_value(body).map_err(|e| Failure::internal(e.to_string()))?;
            let answer = client
                .call("POST", &format!("/tenants/{tenant}/batches"), Some(body))
                .await?;
            out.say(&answer, |_| {
                format!("batch {id} is open for {quota} devices\nnext: countersign factory issue --batch {id} --format '…{{:06}}' --count {quota}")
            })
        }
        BatchCommand::List { tenant } => {
            let mut answer = client
                .call("GET", &format!("/tenants/{tenant}/batches"), None)
                .await?;
            commands::times(&mut answer, "created", out);
            out.list(
                &answer,
                &[
                    ("BATCH", "/id"),
                    ("STATE", "/state"),
                    ("MODEL", "/model"),
                    ("PROFILE", "/profile"),
                    ("IDS", "/id_pattern"),
                    ("DEVICES", "/devices"),
                    ("QUOTA", "/quota"),
                    ("UNCONFIRMED", "/credentials/issued"),
                    ("CREATED", "/created"),
                ],
            )
        }
        BatchCommand::Show(one) => {
            let answer = client.call("GET", &path_of(&one), None).await?;
            out.say(&answer, show)
        }
        BatchCommand::Close { batch, reason } => {
            let path = format!("{}/close", path_of(&batch));
            let answer = client
                .call("POST", &path, Some(json!({ "reason": reason })))
                .await?;
            out.say(&answer, |a| {
                format!(
                    "batch {} is closed with {} of {} devices",
                    batch.id,
                    cell(&a["devices"]),
                    cell(&a["quota"])
                )
            })
        }
    }
}

fn show(a: &Value) -> String {
    let mut text = format!(
        "batch      {} of tenant {}\nstate      {}\nmodel      {}\nprofile    {}\nids        {}\ngroups     {}\nstart as   {}\nauthority  {}\nsigns      {} to {}\ndevices    {} of {}\ncreated    {}",
        cell(&a["id"]),
        cell(&a["tenant"]),
        cell(&a["state"]),
        cell(&a["model"]),
        cell(&a["profile"]),
        cell(&a["id_pattern"]),
        cell(&a["groups"]),
        cell(&a["devices_start"]),
        cell(&a["authority"]),
        time(&a["window"]["not_before"]),
        time(&a["window"]["not_after"]),
        cell(&a["devices"]),
        cell(&a["quota"]),
        time(&a["created"]),
    );
    for (state, count) in a["credentials"].as_object().into_iter().flatten() {
        text.push_str(&format!("\n{:10} {count} certificate(s)", state));
    }
    text
}

async fn confirm(
    client: &Client,
    tenant: &TenantId,
    batch: &BatchId,
    mut names: Vec<String>,
    list: Option<&Path>,
    out: Output,
) -> Result<(), Failure> {
    if let Some(path) = list {
        names.extend(confirm_list(path)?);
    }
    if names.is_empty() {
        return Err(Failure::invalid(
            "it is not said what is confirmed; hint: name fingerprints or devices, or --list FILE",
        ));
    }
    let mut total = ConfirmAnswer::default();
    for chunk in names.chunks(CONFIRM_CHUNK) {
        let mut body = ConfirmBody {
            fingerprints: vec![],
            devices: vec![],
        };
        for name in chunk {
            match name.parse::<Fingerprint>() {
                Ok(fingerprint) => body.fingerprints.push(fingerprint),
                Err(_) => body
                    .devices
                    .push(DeviceId::new(name).map_err(|e| Failure::invalid(format!("{name:?}: {e}")))?),
            }
        }
        let body = serde_json::to_value(body).map_err(|e| Failure::internal(e.to_string()))?;
        let path = format!("/tenants/{tenant}/batches/{batch}/confirm");
        let answer = client.call("POST", &path, Some(body)).await?;
        let part: ConfirmAnswer = serde_json::from_value(answer)
            .map_err(|e| Failure::internal(format!("unexpected answer: {e}")))?;
        total.confirmed += part.confirmed;
        total.unchanged += part.unchanged;
        total.refused.extend(part.refused);
    }
    for (name, refusal) in total.refused.iter().take(SHOWN_MAX) {
        eprintln!("not confirmed: {name}: {}", refusal.reason);
        if let Some(hint) = &refusal.hint {
            eprintln!("hint: {hint}");
        }
    }
    let answer = serde_json::to_value(&total).map_err(|e| Failure::internal(e.to_string()))?;
    out.say(&answer, |_| {
        format!(
            "{} confirmed, {} confirmed before, {} not confirmed",
            total.confirmed,
            total.unchanged,
            total.refused.len()
        )
    })?;
    if total.refused.is_empty() {
        return Ok(());
    }
    Err(Failure::invalid(format!(
        "{} certificates were not confirmed; hint: correct the list and repeat, what is confirmed stays",
        total.refused.len()
    )))
}

/// Names of a file: one a line, or of a CSV file its column `fingerprint`, else `device`.
fn confirm_list(path: &Path) -> Result<Vec<String>, Failure> {
    let text = commands::read(path)?;
    let header: Vec<&str> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .collect();
    let column = header
        .iter()
        .position(|h| *h == "fingerprint")
        .or_else(|| header.iter().position(|h| *h == "device" || *h == "id"));
    let Some(column) = column else {
        return Ok(text
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty() && !l.starts_with('#'))
            .map(str::to_owned)
            .collect());
    };
    csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_reader(text.as_bytes())
        .records()
        .map(|record| {
            record
                .ok()
                .and_then(|r| r.get(column).map(str::to_owned))
                .ok_or_else(|| Failure::invalid(format!("{} is no whole CSV file", path.display())))
        })
        .collect()
}
