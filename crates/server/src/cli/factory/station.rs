//! `countersign factory station` and `countersign factory reconcile`.

use std::path::Path;

use countersign_registry::Overlap;
use serde_json::{Value, json};

use super::arguments::{OneStation, StationCommand};
use crate::cli::commands::{read, sessions, times};
use crate::cli::output::{Output, cell, time};
use crate::client::Client;
use crate::failure::Failure;

/// Refusals that are shown one by one.
const SHOWN_MAX: usize = 20;

fn path_of(one: &OneStation) -> String {
    format!("/tenants/{}/stations/{}", one.tenant, one.id)
}

pub(super) async fn run(command: StationCommand, client: &Client, out: Output) -> Result<(), Failure> {
    match command {
        StationCommand::Add {
            id,
            tenant,
            batch,
            csr,
            quota,
            from,
            to,
            ids,
            allow_overlap,
            authority,
            out: file,
        } => {
            let overlap = if allow_overlap {
                Overlap::Allowed
            } else {
                Overlap::Refused
            };
            let body = json!({
                "id": id, "batch": batch, "request": read(&csr)?, "quota": quota, "from": from, "to": to,
                "ids": ids, "overlap": overlap, "authority": authority,
            });
            let answer = client
                .call("POST", &format!("/tenants/{tenant}/stations"), Some(body))
                .await?;
            let file = file.unwrap_or_else(|| format!("{id}.grant.json").into());
            let text = cell(&answer["grant"]);
            // The same grant again is no conflict.
            if file.exists() && read(&file)? != text {
                return Err(Failure::invalid(format!(
                    "{} exists and is not overwritten; hint: the station is granted: countersign factory station grant {id} prints its file",
                    file.display()
                )));
            }
            countersign_authority::folder::write_private(&file, text.as_bytes())?;
            out.say(&answer, |a| {
                format!(
                    "station {id} may issue {quota} certificates of batch {batch}\ngrant {} is in {}\nnext: carry it there, and countersign-station install it",
                    cell(&a["sha256"]),
                    file.display()
                )
            })
        }
        StationCommand::List { tenant } => {
            let mut answer = client
                .call("GET", &format!("/tenants/{tenant}/stations"), None)
                .await?;
            times(&mut answer, "to", out);
            out.list(
                &answer,
                &[
                    ("STATION", "/station"),
                    ("STATE", "/state"),
                    ("BATCH", "/batch"),
                    ("IDS", "/ids"),
                    ("QUOTA", "/quota"),
                    ("ACCEPTED", "/accepted"),
                    ("REFUSED", "/refused"),
                    ("WINDOW ENDS", "/to"),
                ],
            )
        }
        StationCommand::Show(one) => {
            let answer = client.call("GET", &path_of(&one), None).await?;
            out.say(&answer, |a| {
                let lines = [
                    format!("station    {}", cell(&a["station"])),
                    format!("state      {}", cell(&a["state"])),
                    format!("batch      {}", cell(&a["batch"])),
                    format!("ids        {}", cell(&a["ids"])),
                    format!("window     {} to {}", time(&a["from"]), time(&a["to"])),
                    format!("accepted   {} of {}", a["accepted"], a["quota"]),
                    format!("refused    {}", a["refused"]),
                    format!("journal    {} records reconciled", a["records"]),
                    format!("factory    {}", cell(&a["authority"])),
                    format!(
                        "serial     {}, until {}",
                        cell(&a["serial"]),
                        time(&a["not_after"])
                    ),
                    format!("grant      {}", cell(&a["grant"])),
                ];
                lines.join("\n")
            })
        }
        StationCommand::Grant(one) => {
            let answer = client
                .call("GET", &format!("{}/grant", path_of(&one)), None)
                .await?;
            out.say(&answer, |a| cell(&a["grant"]))
        }
        StationCommand::Revoke {
            station,
            with_devices,
            why,
        } => {
            let body = json!({ "with_devices": with_devices, "code": why.code, "reason": why.reason });
            let answer = client
                .call("POST", &format!("{}/revoke", path_of(&station)), Some(body))
                .await?;
            out.say(&answer, |a| {
                format!(
                    "station {} is revoked: what it has not accounted for is refused for good; {} certificate(s) revoked{}",
                    station.id,
                    a["revoked"],
                    sessions(&a["sessions"])
                )
            })
        }
    }
}

/// Hands a journal in. What was refused is in the report; then the command fails, although the rest is registered.
pub(super) async fn reconcile(
    client: &Client,
    journal: &Path,
    salvaged: bool,
    out: Output,
) -> Result<(), Failure> {
    let bytes = std::fs::read(journal)
        .map_err(|e| Failure::invalid(format!("cannot read {}: {e}", journal.display())))?;
    // What is torn need not be text.
    let text = String::from_utf8_lossy(&bytes);
    let body = json!({ "journal": text, "salvaged": salvaged });
    let answer = client.call("POST", "/journals", Some(body)).await?;
    if answer["verdict"] == "refused" {
        if out.json {
            out.say(&answer, |_| String::new())?;
        }
        return Err(Failure::invalid(with_code(
            &cell(&answer["message"]),
            &cell(&answer["code"]),
        )));
    }
    out.say(&answer, words)?;
    if answer["verdict"] == "partial" {
        let refused = answer["refused"].as_array().map_or(0, Vec::len);
        let doubtful = answer["doubtful"].as_array().map_or(0, Vec::len);
        return Err(Failure::invalid(format!(
            "{refused} entries were refused, {doubtful} proofs do not hold; the rest is registered; hint: each has its code and cure above; hand the journal in again once it is seen to"
        )));
    }
    Ok(())
}

/// `MESSAGE [CODE]; hint: …`
fn with_code(message: &str, code: &str) -> String {
    match message.split_once("; hint: ") {
        Some((message, hint)) => format!("{message} [{code}]; hint: {hint}"),
        None => format!("{message} [{code}]"),
    }
}

fn words(a: &Value) -> String {
    let list = |name: &str| {
        let names: Vec<_> = a[name]
            .as_array()
            .into_iter()
            .flatten()
            .take(SHOWN_MAX)
            .map(cell)
            .collect();
        names.join(" ")
    };
    let mut lines = vec![format!(
        "station {}: {} records{}{}",
        cell(&a["station"]),
        a["records"],
        if a["closed"] == true { ", closed" } else { "" },
        if a["older"] == true {
            ", older than what was accepted: nothing to add"
        } else {
            ""
        },
    )];
    lines.push(format!(
        "{} registered, {} known before, {} confirmed",
        a["registered"], a["known"], a["confirmed"]
    ));
    if a["unconfirmed_count"] != 0 {
        lines.push(format!(
            "{} unconfirmed: {}",
            a["unconfirmed_count"],
            list("unconfirmed")
        ));
    }
    if a["gaps_count"] != 0 {
        lines.push(format!("{} ids left out: {}", a["gaps_count"], list("gaps")));
    }
    let refused = a["refused"].as_array().map(Vec::as_slice).unwrap_or_default();
    for r in refused.iter().take(SHOWN_MAX) {
        lines.push(format!(
            "refused: record {}, {}: {}",
            r["number"],
            cell(&r["device"]),
            with_code(&cell(&r["message"]), &cell(&r["code"]))
        ));
    }
    if refused.len() > SHOWN_MAX {
        lines.push(format!("… and {} more, with --json", refused.len() - SHOWN_MAX));
    }
    if !a["doubtful"].as_array().is_none_or(Vec::is_empty) {
        lines.push(format!("proofs that do not hold: records {}", list("doubtful")));
    }
    lines.join("\n")
}
