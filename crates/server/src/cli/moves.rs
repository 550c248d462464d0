//! Devices through their lifecycle, one or many, and the receipts of it.

use std::time::Duration;

use countersign_identity::{TenantId, Timestamp};
use countersign_registry::Selector;
use indicatif::{ProgressBar, ProgressDrawTarget};
use serde_json::{Value, json};

use super::arguments::{DeviceCommand, MoveArguments, ReceiptCommand, TimeBox};
use super::commands::{sessions, times};
use super::output::{Output, cell, time};
use crate::client::Client;
use crate::failure::Failure;
use crate::service::now;

/// How often it is looked how far a bulk move is.
const LOOK: Duration = Duration::from_millis(100);
/// Devices per page of a dry run's list.
const PAGE: u32 = 10_000;

/// A time, for clap.
pub fn moment(text: &str) -> Result<Timestamp, String> {
    Timestamp::parse_rfc3339(text).ok_or_else(|| "write it as 2026-11-23T20:00:00Z".into())
}

/// A span of time, for clap.
pub fn span(text: &str) -> Result<Duration, String> {
    let wrong = || "write it as 90s, 30m, 2h or 7d".to_owned();
    let (number, unit) = text
        .split_at_checked(text.len().saturating_sub(1))
        .ok_or_else(wrong)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    if number == 0 {
        return Err("it would be over at once".into());
    }
    // A century is enough for anything that is to end.
    let total = number.saturating_mul(seconds).min(100 * 366 * 86_400);
    Ok(Duration::from_secs(total))
}

/// One of the commands that move devices, as whom and what to ask; any other is given back.
pub(super) fn of(command: DeviceCommand) -> Result<(MoveArguments, Value), Box<DeviceCommand>> {
    let ends = |end: TimeBox| {
        let until = end
            .until
            .or_else(|| end.lasting.map(|lasting| now().plus(lasting)));
        until.map_or(Value::Null, |until| json!(until))
    };
    let (which, body) = match command {
        DeviceCommand::Activate(which) => (which, json!({ "move": "activate" })),
        DeviceCommand::Suspend { which, end } => (which, json!({ "move": "suspend", "until": ends(end) })),
        DeviceCommand::Resume(which) => (which, json!({ "move": "resume" })),
        DeviceCommand::Quarantine { which, end } => {
            (which, json!({ "move": "quarantine", "until": ends(end) }))
        }
        DeviceCommand::Release {
            which,
            after_evidence,
        } => (which, json!({ "move": "release", "evidence": after_evidence })),
        DeviceCommand::Decommission(which) => (which, json!({ "move": "decommission" })),
        other => return Err(Box::new(other)),
    };
    Ok((which, body))
}

/// Moves one device, or all that have something in common.
pub(super) async fn run(
    client: &Client,
    which: MoveArguments,
    mut body: Value,
    out: Output,
) -> Result<(), Failure> {
    body["reason"] = json!(which.reason);
    let tenant = &which.tenant;
    if let Some(id) = &which.id {
        let path = format!("/tenants/{tenant}/devices/{id}/moves");
        let answer = client.call("POST", &path, Some(body)).await?;
        return out.say(&answer, |a| {
            let until = match &a["until"] {
                Value::Null => String::new(),
                until => format!(" until {}", time(until)),
            };
            format!(
                "device {id} is {}{until}{}",
                cell(&a["state"]),
                sessions(&a["sessions"])
            )
        });
    }
    let path = format!("/tenants/{tenant}/bulk-moves");
    let selector = Selector {
        group: which.group,
        model: which.model,
        batch: which.batch,
        authority: which.authority,
        state: which.state,
    };
    body["selector"] = json!(selector);
    if which.dry_run {
        let selected = dry_run(client, &path, body, out).await?;
        return found_some(&selected, &selector.to_string(), tenant);
    }
    let begun = client
        .call_with_key("POST", &path, Some(body), which.idempotency_key.as_deref())
        .await?;
    let receipt = followed(client, begun["receipt"].clone()).await?;
    let selected = receipt["devices"]["selected"].clone();
    out.say(&json!({ "receipt": receipt }), |a| {
        let n = |key: &str| a["receipt"]["devices"][key].as_u64().unwrap_or(0);
        format!(
            "{} device(s) moved of {}{}",
            n("moved"),
            n("selected"),
            nodes(&a["receipt"])
        )
    })?;
    found_some(&selected, &selector.to_string(), tenant)
}

/// A script that recalls by a misspelt group must not take its recall for done.
fn found_some(selected: &Value, subject: &str, tenant: &TenantId) -> Result<(), Failure> {
    if selected != 0 {
        return Ok(());
    }
    Err(Failure::not_found(
        format!("no device of tenant {tenant} is of {subject}: nothing was moved"),
        &format!(
            "countersign device list --tenant {tenant} shows state, model and groups of each; device show its batch and authority"
        ),
    ))
}

/// Watches a bulk move until it is over.
async fn followed(client: &Client, mut receipt: Value) -> Result<Value, Failure> {
    let n = |receipt: &Value, key: &str| receipt["devices"][key].as_u64().unwrap_or(0);
    let bar = ProgressBar::with_draw_target(Some(n(&receipt, "selected")), ProgressDrawTarget::stderr());
    let path = format!("/receipts/{}", cell(&receipt["id"]));
    while receipt["state"] == "running" {
        tokio::time::sleep(LOOK).await;
        receipt = client.call("GET", &path, None).await?;
        bar.set_position(n(&receipt, "moved"));
    }
    bar.finish_and_clear();
    Ok(receipt)
}

/// Returns how many are selected.
async fn dry_run(client: &Client, path: &str, mut body: Value, out: Output) -> Result<Value, Failure> {
    (body["dry_run"], body["limit"]) = (json!(true), json!(PAGE));
    let mut plan = client.call("POST", path, Some(body.clone())).await?;
    let mut next = plan["next"].take();
    while !next.is_null() {
        body["after"] = next;
        let mut page = client.call("POST", path, Some(body.clone())).await?;
        next = page["next"].take();
        if let (Value::Array(all), Value::Array(more)) = (&mut plan["devices"], page["devices"].take()) {
            all.extend(more);
        }
    }
    out.say(&plan, |plan| {
        let mut text = format!(
            "{} device(s) selected; {} would be moved, {} are in a state that has no such move; nothing was changed",
            plan["selected"], plan["moves"], plan["refused"]
        );
        for d in plan["devices"].as_array().map(Vec::as_slice).unwrap_or_default() {
            text.push_str(&format!("\n{} {}", cell(&d["id"]), cell(&d["state"])));
        }
        text
    })?;
    Ok(plan["selected"].take())
}

/// `receipt show` and `receipt list`
pub(super) async fn receipt(command: ReceiptCommand, client: &Client, out: Output) -> Result<(), Failure> {
    match command {
        ReceiptCommand::Show { id } => {
            let receipt = client.call("GET", &format!("/receipts/{id}"), None).await?;
            out.say(&receipt, show)
        }
        ReceiptCommand::List { tenant, limit } => {
            let tenant = tenant.map(|t| format!("&tenant={t}")).unwrap_or_default();
            let mut answer = client
                .call("GET", &format!("/receipts?limit={limit}{tenant}"), None)
                .await?;
            times(&mut answer, "at", out);
            out.list(
                &answer,
                &[
                    ("RECEIPT", "/id"),
                    ("AT", "/at"),
                    ("STATE", "/state"),
                    ("ACTION", "/action"),
                    ("SUBJECT", "/subject"),
                    ("BY", "/actor"),
                    ("REVISION", "/revision"),
                ],
            )
        }
    }
}

fn nodes(receipt: &Value) -> String {
    let mut text = String::new();
    for node in receipt["nodes"].as_array().map(Vec::as_slice).unwrap_or_default() {
        text.push_str(&format!(
            "; {}: {} session(s) ended, {} kept, the slowest in {} ms",
            cell(&node["node"]),
            node["ended"],
            node["kept"],
            node["worst_ms"]
        ));
        if node["open"] != 0 {
            text.push_str(&format!(
                "; {} not closed yet, and can do nothing any more; over by {}",
                node["open"],
                time(&node["over_by"])
            ));
        }
    }
    text
}

fn show(r: &Value) -> String {
    let mut text = format!(
        "receipt  {}\nstate    {}\naction   {} of {}\ntenant   {}\nby       {} at {}\nreason   {}\nrevision {}",
        cell(&r["id"]),
        cell(&r["state"]),
        cell(&r["action"]),
        cell(&r["subject"]),
        cell(&r["tenant"]),
        cell(&r["actor"]),
        time(&r["at"]),
        cell(&r["reason"]),
        r["revision"]
    );
    if !r["devices"].is_null() {
        let d = &r["devices"];
        text.push_str(&format!(
            "\ndevices  {} selected, {} moved, {} left as they are",
            d["selected"], d["moved"], d["refused"]
        ));
    }
    for node in r["nodes"].as_array().map(Vec::as_slice).unwrap_or_default() {
        text.push_str(&format!(
            "\nnode     {}: {}; {} session(s) ended, {} open, {} kept; the slowest in {} ms",
            cell(&node["node"]),
            if node["confirmed"] == true {
                "confirmed"
            } else {
                "not confirmed"
            },
            node["ended"],
            node["open"],
            node["kept"],
            node["worst_ms"]
        ));
        if !node["over_by"].is_null() {
            text.push_str(&format!("; all over by {}", time(&node["over_by"])));
        }
    }
    if let Some(note) = r["note"].as_str() {
        text.push_str(&format!("\nnote     {note}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_a_unit_and_are_not_nothing() {
        assert_eq!(span("2h"), Ok(Duration::from_secs(7200)));
        assert_eq!(span("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(span("7d"), Ok(Duration::from_secs(7 * 86_400)));
        assert_eq!(
            span("99999999999999999d"),
            Ok(Duration::from_secs(100 * 366 * 86_400))
        );
        for wrong in ["", "h", "2", "2 h", "-2h", "0m", "2x", "2é"] {
            assert!(span(wrong).is_err(), "{wrong:?}");
        }
    }
}
