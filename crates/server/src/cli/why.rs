//! `countersign why`: every layer's verdict on an identity that is not connected.

use std::net::IpAddr;
use std::path::Path;

use clap::Args;
use countersign_identity::{DeviceId, TenantId, Timestamp};
use serde_json::{Value, json};

use super::commands::read;
use super::output::{Output, cell, time};
use super::verify::moment;
use crate::client::Client;
use crate::failure::Failure;
use crate::service::DataAction;

#[derive(Args)]
pub struct WhyArguments {
    /// A device id, or a file with its certificate, PEM, intermediates after it if the device sends them
    subject: String,
    /// The tenant [default: of a device, default; of a certificate, the one of its authority]
    #[arg(long)]
    tenant: Option<TenantId>,
    /// A topic too: may it publish there, or subscribe to it?
    #[arg(long)]
    topic: Option<String>,
    /// What it would do with the topic
    #[arg(long, value_enum, requires = "topic", default_value = "publish")]
    action: DataAction,
    /// The moment, RFC 3339 [default: now]. What was revoked or suspended by now is so at any moment
    #[arg(long, value_parser = moment)]
    at: Option<Timestamp>,
    /// The client id [default: the device id]
    #[arg(long)]
    client_id: Option<String>,
    /// The address it comes from [default: as last time]
    #[arg(long)]
    source: Option<IpAddr>,
}

/// Verdicts on standard output; an error, so exit code 4, if it would be refused.
pub(super) async fn run(asked: WhyArguments, client: &Client, out: Output) -> Result<(), Failure> {
    let path = Path::new(&asked.subject);
    let (device, certificate) = if path.is_file() {
        (None, Some(read(path)?))
    } else {
        let device = DeviceId::new(&asked.subject).map_err(|e| {
            Failure::invalid(format!(
                "{} is no file, and no device id: {e}; hint: name a device, or a file with its certificate",
                asked.subject
            ))
        })?;
        (Some(device), None)
    };
    let body = json!({
        "tenant": asked.tenant, "device": device, "certificate": certificate, "client_id": asked.client_id,
        "topic": asked.topic, "action": asked.action, "at": asked.at, "source": asked.source,
    });
    let answer = client.call("POST", "/why", Some(body)).await?;
    out.say(&answer, words)?;
    if answer["admitted"] == true {
        return Ok(());
    }
    Err(Failure::refused(format!("{} would be refused", asked.subject)))
}

fn words(answer: &Value) -> String {
    let mut lines = Vec::new();
    for a in answer["answers"].as_array().into_iter().flatten() {
        let verdict = if a["admitted"] == true {
            "would be let in"
        } else {
            "would be refused"
        };
        lines.push(format!("certificate {}: {verdict}", cell(&a["fingerprint"])));
        let from = match a["exchange"].as_str() {
            Some(exchange) => format!("as in exchange {exchange}"),
            None => "assumed: it has not been seen".into(),
        };
        lines.push(format!(
            "  at {}, from {}, {} {} ({from})",
            time(&a["at"]),
            cell(&a["source"]),
            cell(&a["tls_version"]),
            cell(&a["tls_group"])
        ));
        for layer in a["layers"].as_array().into_iter().flatten() {
            let mark = match layer["verdict"].as_str() {
                Some("passed") => "passed",
                Some("failed") => "FAILED",
                Some("not-known") => "?",
                _ => "-",
            };
            let mut line = format!(
                "  {:<10} {mark:<6}  {}",
                cell(&layer["layer"]),
                layer["fact"].as_str().unwrap_or("")
            );
            if layer["policies"].as_array().is_some_and(|p| !p.is_empty()) {
                line.push_str(&format!(" [{}]", cell(&layer["policies"])));
            }
            lines.push(line.trim_end().to_owned());
            if let Some(code) = layer["denial"]["code"].as_str() {
                lines.push(format!("             code    {code}"));
                lines.push(format!("             cause   {}", cell(&layer["cause"])));
                lines.push(format!("             cure    {}", cell(&layer["cure"])));
            }
        }
    }
    lines.join("\n")
}
