//! `countersign explain` and `countersign doctor`: why something is as it is.

use std::path::Path;

use countersign_identity::TenantId;
use countersign_policy::ExchangeRecord;
use serde_json::json;

use super::arguments::Format;
use super::output::{Output, cell};
use crate::client::Client;
use crate::diagram;
use crate::failure::Failure;

pub(super) async fn explain(
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
        let any = refused && client.call("GET", "/exchanges?limit=1", None).await? != json!([]);
        eprintln!(
            "{}",
            if any {
                "none of the exchanges was refused; hint: without --refused they are all shown"
            } else {
                "no exchanges yet"
            }
        );
    }
    for record in &records {
        match format {
            Format::Mermaid => out.text(&diagram::mermaid(record))?,
            _ => out.text(&format!("{}\n\u{200b}", diagram::text(record)).replace('\u{200b}', ""))?,
        }
    }
    Ok(())
}

pub(super) async fn doctor(client: &Client, data: &Path, out: Output) -> Result<(), Failure> {
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
