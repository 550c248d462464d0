//! How answers are printed.

use comfy_table::Table;
use comfy_table::TableStyle;
use serde_json::Value;

use crate::failure::Failure;

/// JSON or words.
#[derive(Clone, Copy)]
pub struct Output {
    /// Print JSON.
    pub json: bool,
}

/// Lines that were printed to a closed pipe are nobody's loss.
fn line(text: &str) -> Result<(), Failure> {
    use std::io::Write;
    match writeln!(std::io::stdout(), "{}", text.trim_end_matches('\n')) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::internal(format!("cannot write to standard output: {e}")))
        }
        _ => Ok(()),
    }
}

impl Output {
    /// An answer: as JSON, or in words.
    pub fn say(self, answer: &Value, words: impl FnOnce(&Value) -> String) -> Result<(), Failure> {
        // An answer with a receipt names it; a receipt is an answer too.
        let receipt = match &answer["receipt"] {
            Value::Null if answer["nodes"].is_array() => answer,
            receipt => receipt,
        };
        if self.json {
            line(&format!("{answer:#}"))?;
        } else if let Some(id) = answer["receipt"]["id"].as_str() {
            line(&format!(
                "{}\nreceipt {id}: {}",
                words(answer),
                cell(&receipt["state"])
            ))?;
        } else {
            line(&words(answer))?;
        }
        if receipt["state"] == "partial" {
            let note = receipt["note"]
                .as_str()
                .unwrap_or("it is in force, and not every node has confirmed it; hint: countersign session list shows what is left");
            return Err(Failure::partial(format!("partial: {note}")));
        }
        Ok(())
    }

    /// A list: as JSON, or as a table of some columns.
    pub fn list(self, answer: &Value, columns: &[(&str, &str)]) -> Result<(), Failure> {
        if self.json {
            return line(&format!("{answer:#}"));
        }
        let rows = answer.as_array().map(Vec::as_slice).unwrap_or_default();
        if rows.is_empty() {
            eprintln!("nothing to list");
            return Ok(());
        }
        let mut table = Table::new();
        table
            .load_style(TableStyle::new())
            .set_header(columns.iter().map(|(title, _)| *title));
        for row in rows {
            table.add_row(
                columns
                    .iter()
                    .map(|(_, path)| cell(row.pointer(path).unwrap_or(&Value::Null))),
            );
        }
        let text: Vec<String> = table.lines().map(|l| l.trim_end().to_owned()).collect();
        line(&text.join("\n"))
    }

    /// Text as it is.
    pub fn text(self, text: &str) -> Result<(), Failure> {
        line(text)
    }
}

/// A value in a table.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(s) => s.clone(),
        Value::Array(items) if items.is_empty() => "-".into(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// Milliseconds since 1970 as RFC 3339.
pub fn time(value: &Value) -> String {
    value
        .as_i64()
        .map(|ms| countersign_identity::Timestamp::from_unix_ms(ms).to_string())
        .unwrap_or_else(|| "-".into())
}
