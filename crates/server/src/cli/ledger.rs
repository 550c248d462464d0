//! `rejections` and `exposure`: what the ledger tells.

use countersign_identity::Timestamp;
use serde_json::Value;

use super::arguments::{ExposureArguments, RejectionSearch, RejectionsArguments, RejectionsCommand};
use super::output::{Output, cell, time};
use crate::client::Client;
use crate::failure::Failure;
use crate::service::now;

/// A moment on the command line: RFC 3339, or how long ago.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    ago: bool,
    ms: i64,
}

impl std::str::FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(t) = Timestamp::parse_rfc3339(text) {
            let ms = t.unix_ms();
            return Ok(Self { ago: false, ms });
        }
        if text == "now" {
            return Ok(Self { ago: true, ms: 0 });
        }
        let units = [("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
        let ms = units.iter().find_map(|(unit, ms)| {
            let number: i64 = text.strip_suffix(unit)?.parse().ok()?;
            (number >= 0).then(|| number.checked_mul(*ms))?
        });
        ms.map(|ms| Self { ago: true, ms }).ok_or_else(|| {
            "a moment is RFC 3339 such as 2026-05-01T12:00:00Z, how long ago such as 90m, 24h or 7d, or now".into()
        })
    }
}

impl Moment {
    fn at(self, now_ms: i64) -> i64 {
        if self.ago {
            now_ms.saturating_sub(self.ms)
        } else {
            self.ms
        }
    }
}

/// A query of what is given.
fn query(parts: &[(&str, Option<String>)]) -> String {
    let given = parts
        .iter()
        .filter_map(|(name, value)| Some((name, value.as_ref()?)));
    let parts: Vec<String> = given
        .map(|(name, value)| format!("{name}={}", escape(value)))
        .collect();
    format!("?{}", parts.join("&"))
}

/// Percent-encoding (RFC 3986 section 2.1).
fn escape(text: &str) -> String {
    let mut out = String::new();
    for b in text.bytes() {
        match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(b)),
            _ => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

/// `rejections`
pub async fn rejections(asked: RejectionsArguments, client: &Client, out: Output) -> Result<(), Failure> {
    match asked.command {
        Some(RejectionsCommand::Search(search)) => refusals(search, client, out).await,
        None => causes(asked, client, out).await,
    }
}

async fn causes(asked: RejectionsArguments, client: &Client, out: Output) -> Result<(), Failure> {
    let since = asked.since.at(now().unix_ms());
    let path = query(&[
        ("since", Some(since.to_string())),
        ("tenant", asked.tenant.map(|t| t.to_string())),
        ("code", asked.code.map(|c| c.to_string())),
        ("after", asked.after),
        ("limit", Some(asked.limit.to_string())),
    ]);
    let answer = client.call("GET", &format!("/rejections{path}"), None).await?;
    out.say(&answer, |a| {
        let groups = a["groups"].as_array().map(Vec::as_slice).unwrap_or_default();
        if groups.is_empty() {
            return format!("nothing was refused since {}", time(&since.into()));
        }
        let mut text: Vec<String> = groups.iter().map(group).collect();
        if groups.iter().any(|g| g["estimated"] == true) {
            text.push("~: an estimate, 5 % off or so".into());
        }
        if let Some(next) = a["next"].as_str() {
            text.push(format!("there are more: --after {next}"));
        }
        text.join("\n")
    })
}

fn group(g: &Value) -> String {
    let about = if g["estimated"] == true { "~" } else { "" };
    let subject = g["subject"]
        .as_str()
        .map(|s| format!(": {s}"))
        .unwrap_or_default();
    let tenant = g["tenant"]
        .as_str()
        .map(|t| format!(" of tenant {t}"))
        .unwrap_or_default();
    let known = match g["of_known_devices"].as_u64() {
        Some(0) | None => String::new(),
        Some(n) => format!(", {n} of them of known devices"),
    };
    format!(
        "{}{subject}\n  {} exchange(s){tenant} at {}{known}; {about}{} certificate(s), {about}{} device(s), {about}{} address(es)\n  from {} to {}; the last: countersign explain {}\n  cause: {}\n  cure: {}\n",
        cell(&g["code"]),
        g["exchanges"],
        cell(&g["stage"]),
        g["certificates"],
        g["devices"],
        g["sources"],
        time(&g["first"]),
        time(&g["last"]),
        cell(&g["example"]),
        cell(&g["cause"]),
        cell(&g["cure"]),
    )
}

async fn refusals(asked: RejectionSearch, client: &Client, out: Output) -> Result<(), Failure> {
    let since = asked.since.map(|since| since.at(now().unix_ms()).to_string());
    let path = query(&[
        ("serial", asked.what.serial),
        ("fingerprint", asked.what.fingerprint.map(|f| f.to_string())),
        ("source", asked.what.source.map(|s| s.to_string())),
        ("code", asked.what.code.map(|c| c.to_string())),
        ("device", asked.what.device.map(|d| d.to_string())),
        ("tenant", asked.tenant.map(|t| t.to_string())),
        ("since", since),
        ("before", asked.before.map(|b| b.to_string())),
        ("limit", Some(asked.limit.to_string())),
    ]);
    let mut answer = client
        .call("GET", &format!("/rejections/exchanges{path}"), None)
        .await?;
    if out.json {
        return out.say(&answer, |_| String::new());
    }
    let next = answer["next"].as_str().map(str::to_owned);
    super::commands::times(&mut answer["exchanges"], "started", out);
    out.list(
        &answer["exchanges"],
        &[
            ("STARTED", "/started"),
            ("EXCHANGE", "/id"),
            ("CODE", "/denial/code"),
            ("TENANT", "/tenant"),
            ("DEVICE", "/device"),
            ("KEY", "/possession"),
            ("FROM", "/source"),
            ("SUBJECT", "/certificate/subject"),
        ],
    )?;
    if let Some(next) = next {
        eprintln!("there are more: --before {next}");
    }
    Ok(())
}

/// `exposure`
pub async fn exposure(asked: ExposureArguments, client: &Client, out: Output) -> Result<(), Failure> {
    let now = now().unix_ms();
    let window = query(&[
        ("from", Some(asked.from.at(now).to_string())),
        ("to", Some(asked.to.at(now).to_string())),
    ]);
    let path = format!(
        "/tenants/{}/devices/{}/exposure{window}",
        asked.tenant, asked.device
    );
    let answer = client.call("GET", &path, None).await?;
    out.say(&answer, report)
}

fn report(a: &Value) -> String {
    let list = |name: &str| a[name].as_array().cloned().unwrap_or_default();
    let mut text = vec![format!(
        "device {} of tenant {}, from {} to {}",
        cell(&a["device"]),
        cell(&a["tenant"]),
        time(&a["from"]),
        time(&a["to"])
    )];
    let sessions = list("sessions");
    text.push(format!("\nsessions: {}", sessions.len()));
    for s in &sessions {
        let end = match (s["live"] == true, s["ended"].is_null()) {
            (true, _) => "live".to_owned(),
            (_, true) => "end not known".to_owned(),
            _ => format!("{} ({})", time(&s["ended"]), cell(&s["end"])),
        };
        text.push(format!(
            "  {} to {end}: {} {} from {} on {}, exchange {}, certificate {}",
            time(&s["started"]),
            cell(&s["kind"]),
            cell(&s["protocol"]),
            cell(&s["source"]),
            cell(&s["listener"]),
            cell(&s["exchange"]),
            cell(&s["credential"])
        ));
    }
    for (name, words) in [("published", "published to"), ("received", "received from")] {
        let topics = list(name);
        text.push(format!("\n{words}: {} topic(s)", topics.len()));
        text.extend(topics.iter().map(topic));
    }
    let exchanges = list("exchanges");
    text.push(format!("\nexchanges: {}", exchanges.len()));
    for e in &exchanges {
        let code = e["denial"]["code"]
            .as_str()
            .map(|c| format!(" {c}"))
            .unwrap_or_default();
        text.push(format!(
            "  {} {}{code} from {}, exchange {}",
            time(&e["started"]),
            cell(&e["outcome"]),
            cell(&e["source"]),
            cell(&e["id"])
        ));
    }
    let gaps = list("gaps");
    if !gaps.is_empty() {
        text.push("\nnot certain:".into());
        text.extend(gaps.iter().map(|g| format!("  {}", cell(g))));
    }
    text.join("\n")
}

fn topic(t: &Value) -> String {
    let name = match t["topic"].as_str() {
        Some("") | None => "(other topics)",
        Some(name) => name,
    };
    let within = if t["within"] == false {
        "; counted for whole sessions, also outside the window"
    } else {
        ""
    };
    format!(
        "  {name}: {} message(s), {} byte(s), {} to {}, in {} session(s){within}",
        t["messages"],
        t["bytes"],
        time(&t["first"]),
        time(&t["last"]),
        t["sessions"]
    )
}

#[cfg(test)]
mod tests {
    use super::Moment;

    #[test]
    fn moments_are_absolute_or_ago() {
        let at = |text: &str| text.parse::<Moment>().map(|m| m.at(100_000_000));
        assert_eq!(at("now"), Ok(100_000_000));
        assert_eq!(at("90m"), Ok(100_000_000 - 90 * 60_000));
        assert_eq!(at("1d"), Ok(100_000_000 - 86_400_000));
        assert_eq!(at("1970-01-01T00:00:05Z"), Ok(5_000));
        for text in ["", "h", "-1h", "1w", "yesterday", "9223372036854775807d"] {
            assert!(at(text).is_err(), "{text}");
        }
    }
}
