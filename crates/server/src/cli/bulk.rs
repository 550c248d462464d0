//! Many devices by one command: sent in parts, told as one.

use countersign_registry::{Remark, RemarkAbout};
use indicatif::{ProgressBar, ProgressDrawTarget};
use serde::{Deserialize, Serialize};

use super::output::Output;
use crate::client::Client;
use crate::failure::Failure;

/// Entries per request: few enough that progress is seen, enough to share one sync.
const PART: usize = 1000;
/// Refusals and remarks that are shown one by one, of each.
const SHOWN_MAX: usize = 20;

/// How it went, as each part's answer has it.
#[derive(Default, Serialize, Deserialize)]
struct Report {
    added: u64,
    unchanged: u64,
    credentials_added: u64,
    /// Who was left out, each with the reason.
    refused: Vec<(String, String)>,
    /// What is to be said of certificates that were taken.
    #[serde(default)]
    remarks: Vec<Remark>,
}

impl Report {
    /// How many remarks are about this, for the summary.
    fn remarked(&self, about: RemarkAbout, words: &str) -> String {
        match self.remarks.iter().filter(|r| r.about == about).count() {
            0 => String::new(),
            n => format!(", {n} {words}"),
        }
    }
}

/// Posts all entries to a path, each part in a body of its own, and says how it went.
///
/// # Errors
/// [`Failure`] if a part was not taken; if some of the entries were refused, with `refused` after their number.
pub(super) async fn send<T, B: Serialize>(
    client: &Client,
    path: &str,
    entries: &[T],
    body: impl Fn(&[T]) -> B,
    refused: &str,
    out: Output,
) -> Result<(), Failure> {
    let bar = ProgressBar::with_draw_target(Some(entries.len() as u64), ProgressDrawTarget::stderr());
    let mut total = Report::default();
    for part in entries.chunks(PART) {
        let body = serde_json::to_value(body(part)).map_err(|e| Failure::internal(e.to_string()))?;
        let answer = client.call("POST", path, Some(body)).await?;
        let of_part: Report = serde_json::from_value(answer)
            .map_err(|e| Failure::internal(format!("unexpected answer: {e}")))?;
        total.added += of_part.added;
        total.unchanged += of_part.unchanged;
        total.credentials_added += of_part.credentials_added;
        total.refused.extend(of_part.refused);
        total.remarks.extend(of_part.remarks);
        bar.inc(part.len() as u64);
    }
    bar.finish_and_clear();
    for (name, reason) in total.refused.iter().take(SHOWN_MAX) {
        eprintln!("refused: {name}: {reason}");
    }
    for remark in total.remarks.iter().take(SHOWN_MAX) {
        eprintln!("remark: {}: {}", remark.device, remark.text);
    }
    if total.remarks.len() > SHOWN_MAX {
        let more = total.remarks.len() - SHOWN_MAX;
        eprintln!("… and {more} more remarks, with --json");
    }
    let answer = serde_json::to_value(&total).map_err(|e| Failure::internal(e.to_string()))?;
    out.say(&answer, |_| {
        format!(
            "{} added, {} unchanged, {} certificates registered, {} refused{}{}",
            total.added,
            total.unchanged,
            total.credentials_added,
            total.refused.len(),
            total.remarked(RemarkAbout::Expired, "expired"),
            total.remarked(RemarkAbout::UnknownIssuer, "of an unknown issuer")
        )
    })?;
    if total.refused.is_empty() {
        return Ok(());
    }
    Err(Failure::invalid(format!("{} {refused}", total.refused.len())))
}
