//! What keeps the platform: its clock, its backups, what expires.

use std::path::Path;

use countersign_identity::TenantId;
use serde_json::{Value, json};

use super::arguments::ClockCommand;
use super::commands::times;
use super::output::{Output, cell, time};
use crate::backup::Restore;
use crate::client::Client;
use crate::failure::Failure;

pub(super) async fn clock(command: ClockCommand, client: &Client, out: Output) -> Result<(), Failure> {
    match command {
        ClockCommand::Show => {
            let answer = client.call("GET", "/clock", None).await?;
            out.say(&answer, show_clock)
        }
        ClockCommand::Reset { reason } => {
            let body = json!({ "reason": reason });
            let answer = client.call("POST", "/clock/reset", Some(body)).await?;
            out.say(&answer, |a| {
                format!(
                    "the clock is taken for right: {} in place of {}",
                    time(&a["clock"]["high_water"]),
                    time(&a["before"])
                )
            })
        }
    }
}

fn show_clock(a: &Value) -> String {
    let mut text = format!(
        "clock      {}, {}\nhigh water {}{}\ntolerance  {} s",
        time(&a["now"]),
        cell(&a["synchronisation"]),
        time(&a["high_water"]),
        match a["behind_ms"].as_u64() {
            None | Some(0) => String::new(),
            Some(ms) => format!(", the clock is {} s behind it", ms / 1000),
        },
        a["tolerance_ms"].as_u64().unwrap_or(0) / 1000,
    );
    match a["refusal"].as_str() {
        None => text.push_str("\nminting    allowed"),
        Some(refusal) => text.push_str(&format!(
            "\nminting    refused: {}",
            refusal.replace("; hint:", "\nhint:")
        )),
    }
    text
}

pub(super) async fn backup(
    target: &Path,
    with_keys: bool,
    client: &Client,
    out: Output,
) -> Result<(), Failure> {
    // The server has a working directory of its own.
    let target = std::path::absolute(target).map_err(|e| Failure::invalid(e.to_string()))?;
    let body = json!({ "path": target, "with_keys": with_keys });
    let answer = client.call("POST", "/backups", Some(body)).await?;
    out.say(&answer, |a| {
        let registry = &a["manifest"]["registry"];
        format!(
            "backup {} of revision {}: {} devices, {} certificates, {} files, {}\naudit head {} (entry {})",
            target.display(),
            registry["revision"],
            registry["devices"],
            registry["credentials"],
            a["manifest"]["files"].as_object().map_or(0, serde_json::Map::len),
            if with_keys {
                "with private keys: keep it as safe as the server"
            } else {
                "without private keys: keep those elsewhere (--with-keys)"
            },
            cell(&registry["audit_head"]),
            registry["audit_entries"]
        )
    })
}

pub(super) fn restore(restore: &Restore, out: Output) -> Result<(), Failure> {
    let restored = restore.run()?;
    let answer = serde_json::to_value(&restored).map_err(|e| Failure::internal(e.to_string()))?;
    out.say(&answer, |_| restored.words())
}

pub(super) async fn forecast(tenant: Option<TenantId>, client: &Client, out: Output) -> Result<(), Failure> {
    let query = tenant.map(|t| format!("?tenant={t}")).unwrap_or_default();
    let mut answer = client.call("GET", &format!("/forecast{query}"), None).await?;
    if out.json {
        return out.say(&answer, |_| String::new());
    }
    out.list(
        &answer["devices"],
        &[
            ("TENANT", "/tenant"),
            ("AUTHORITY", "/authority"),
            ("BATCH", "/batch"),
            ("KIND", "/kind"),
            ("DEVICES", "/devices"),
            ("EXPIRED", "/windows/overdue"),
            ("7 D", "/windows/days_7"),
            ("30 D", "/windows/days_30"),
            ("90 D", "/windows/days_90"),
            ("LATER", "/windows/later"),
            ("NEVER", "/windows/never"),
            ("UNRENEWED", "/unrenewed"),
        ],
    )?;
    out.text("")?;
    let authorities = &mut answer["authorities"];
    times(authorities, "not_after", out);
    for authority in authorities.as_array_mut().into_iter().flatten() {
        let last: Vec<_> = authority["last_issue"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|l| format!("{} until {}", cell(&l["profile"]), time(&l["at"])))
            .collect();
        authority["last_issue"] = json!(last);
    }
    out.list(
        authorities,
        &[
            ("AUTHORITY", "/id"),
            ("TENANT", "/tenant"),
            ("STATE", "/state"),
            ("VALID UNTIL", "/not_after"),
            ("CAN ISSUE", "/last_issue"),
        ],
    )
}
