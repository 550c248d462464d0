//! What keeps the platform: its clock.

use serde_json::{Value, json};

use super::arguments::ClockCommand;
use super::output::{Output, cell, time};
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
