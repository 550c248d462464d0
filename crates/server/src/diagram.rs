//! Draws an exchange as a sequence: text for a terminal, Mermaid for documents. The same record as JSON is the third.

use std::fmt::Write;

use countersign_policy::denial::Wire;
use countersign_policy::{ExchangeRecord, Outcome, Stage, StageOutcome};

/// The name of a TLS alert (RFC 9846 section 6).
fn alert_name(number: u8) -> &'static str {
    match number {
        10 => "unexpected_message",
        40 => "handshake_failure",
        42 => "bad_certificate",
        43 => "unsupported_certificate",
        44 => "certificate_revoked",
        45 => "certificate_expired",
        48 => "unknown_ca",
        49 => "access_denied",
        51 => "decrypt_error",
        70 => "protocol_version",
        112 => "unrecognized_name",
        116 => "certificate_required",
        120 => "no_application_protocol",
        _ => "alert",
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    ToServer,
    ToDevice,
    Inside,
}

struct Step {
    way: Way,
    text: String,
    note: String,
    failed: bool,
}

fn fact<'a>(record: &'a ExchangeRecord, name: &str) -> Option<&'a str> {
    record
        .facts
        .iter()
        .find(|(k, _)| k == name)
        .map(|(_, v)| v.as_str())
}

fn speaks_http(record: &ExchangeRecord) -> bool {
    fact(record, "protocol") == Some("http/1.1")
}

/// What we, or the device, did to end it.
fn last_word(record: &ExchangeRecord) -> Option<(Way, String)> {
    let denial = record.denial.as_ref()?;
    let v5 = fact(record, "protocol") == Some("mqtt-5");
    Some(match denial.code.wire() {
        wire @ (Wire::Connack { .. } | Wire::Session { .. }) if speaks_http(record) => {
            (Way::ToDevice, format!("HTTP {}", wire.http_status()))
        }
        Wire::Http(status) => (Way::ToDevice, format!("HTTP {status}")),
        Wire::Close => (Way::ToDevice, "connection closed".into()),
        Wire::Alert(n) => (Way::ToDevice, format!("alert {n} {}", alert_name(n))),
        Wire::Connack { v311, .. } if !v5 => (Way::ToDevice, format!("CONNACK {v311}")),
        Wire::Connack { v5: code, .. } => (Way::ToDevice, format!("CONNACK 0x{code:02x}")),
        Wire::Session { v5: code } if v5 => (Way::ToDevice, format!("refused with 0x{code:02x}")),
        Wire::Session { .. } => (Way::ToDevice, "connection closed".into()),
        Wire::Device => (Way::ToServer, "alert: the device refuses us".into()),
    })
}

fn step(record: &ExchangeRecord, stage: Stage) -> (Way, String) {
    let of = |name| fact(record, name).unwrap_or("-");
    let is_resumed = fact(record, "resumed_from").is_some();
    match stage {
        Stage::Accept => (Way::ToServer, "TCP connect".into()),
        Stage::ClientHello => {
            let mut text = "ClientHello".to_owned();
            if let Some(name) = fact(record, "server_name") {
                let _ = write!(text, ", {name}");
            }
            if let Some(alpn) = fact(record, "alpn_offered") {
                let _ = write!(text, ", {alpn}");
            }
            (Way::ToServer, text)
        }
        Stage::ServerFlight if is_resumed => (Way::ToDevice, "ServerHello: the ticket is good".into()),
        Stage::ClientCertificate if is_resumed => (Way::Inside, "the ticket's certificate, checked".into()),
        Stage::CertificateVerify if is_resumed => (Way::ToServer, "Finished, by the ticket's secret".into()),
        Stage::ServerFlight => (Way::ToDevice, "ServerHello, certificate, proof".into()),
        Stage::ClientCertificate => (Way::ToServer, "certificate".into()),
        Stage::CertificateVerify => (Way::ToServer, "proof of possession".into()),
        Stage::Identify => (Way::Inside, "known device, known key".into()),
        Stage::Policy => (Way::Inside, "permitted".into()),
        Stage::Greet if speaks_http(record) => (Way::ToServer, of("request").to_owned()),
        Stage::Grant if speaks_http(record) => (Way::Inside, "session granted".into()),
        Stage::FirstData if speaks_http(record) => (Way::ToDevice, "first answer".into()),
        Stage::Greet => (
            Way::ToServer,
            format!("CONNECT {}, {}", of("protocol"), of("client_id")),
        ),
        Stage::Grant => (Way::ToDevice, "CONNACK 0".into()),
        Stage::FirstData => match fact(record, "topic") {
            Some(topic) => (Way::ToServer, topic.to_owned()),
            None => (Way::ToServer, "first PUBLISH".into()),
        },
    }
}

fn steps(record: &ExchangeRecord) -> Vec<Step> {
    let mut steps = Vec::new();
    for s in &record.stages {
        let failed = s.outcome == StageOutcome::Failed;
        let (way, text) = step(record, s.stage);
        let at = f64::from(s.at_us) / 1000.0;
        let taken_over = match s.outcome {
            StageOutcome::TakenOver => "  taken over",
            _ => "",
        };
        let note = match s.stage {
            Stage::ClientCertificate | Stage::CertificateVerify if !failed => record
                .certificate
                .as_ref()
                .filter(|_| s.stage == Stage::ClientCertificate)
                .map(|c| format!("{at:9.1} ms  {}{taken_over}  {}", s.stage, c.subject))
                .unwrap_or_else(|| format!("{at:9.1} ms  {}{taken_over}", s.stage)),
            Stage::Policy if !failed => format!("{at:9.1} ms  {}  {}", s.stage, record.policies.join(", ")),
            _ => format!(
                "{at:9.1} ms  {}{}",
                s.stage,
                if failed { "  refused" } else { "" }
            ),
        };
        // What came from the device is shown as it came; what failed inside, as a refusal there.
        if failed && way != Way::ToServer {
            steps.push(Step {
                way: Way::Inside,
                text: "refused".into(),
                note,
                failed: false,
            });
        } else {
            steps.push(Step {
                way,
                text,
                note,
                failed: false,
            });
        }
    }
    // A verdict on a certificate is answered only after possession is proven, so the answer comes last.
    if let Some((way, text)) = last_word(record) {
        steps.push(Step {
            way,
            text,
            note: String::new(),
            failed: true,
        });
    }
    steps
}

const WIDTH: usize = 46;

/// For a terminal.
pub fn text(record: &ExchangeRecord) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "exchange {}  {}  {}",
        record.id,
        record.outcome.name(),
        record.started
    );
    let mut who = format!("from {}", record.source);
    if let (Some(tenant), Some(device)) = (&record.tenant, &record.device) {
        let _ = write!(who, ", device {device} of tenant {tenant}");
    }
    if let Some(version) = fact(record, "tls_version") {
        let _ = write!(who, ", {version} {}", fact(record, "group").unwrap_or_default());
    }
    let _ = writeln!(out, "  {who}");
    if let Some(c) = &record.certificate {
        let possession = match record.possession {
            countersign_policy::Possession::Proven => "possession proven",
            countersign_policy::Possession::Unproven => {
                "possession unproven: anyone can show a public certificate"
            }
        };
        let _ = writeln!(
            out,
            "  certificate {}, serial {}, {possession}",
            c.fingerprint, c.serial
        );
    }
    if let Some(proven_at) = fact(record, "resumed_from") {
        let _ = writeln!(
            out,
            "  resumed: certificate and proof are those of the full handshake of {proven_at}"
        );
    }
    if let Some(why) = fact(record, "ticket_declined") {
        let _ = writeln!(out, "  a ticket was declined: {why}");
    }
    let _ = writeln!(out, "\n  device{:width$}countersign", "", width = WIDTH - 11);
    for s in steps(record) {
        let body: String = s.text.chars().take(WIDTH - 8).collect();
        let fill = WIDTH.saturating_sub(6 + body.chars().count());
        let line = match s.way {
            Way::ToServer if s.failed => format!("│ ─ {body} {}✗│", "─".repeat(fill)),
            Way::ToServer => format!("│ ─ {body} {}▶│", "─".repeat(fill)),
            Way::ToDevice if s.failed => format!("│✗{} {body} ─ │", "─".repeat(fill)),
            Way::ToDevice => format!("│◀{} {body} ─ │", "─".repeat(fill)),
            Way::Inside => format!(
                "│{}{body} ▪│",
                " ".repeat(WIDTH.saturating_sub(3 + body.chars().count()))
            ),
        };
        let _ = writeln!(out, "    {line}{}", s.note);
    }
    if record.outcome == Outcome::Abandoned {
        let _ = writeln!(
            out,
            "    │{:width$}│  the device went away",
            "",
            width = WIDTH - 1
        );
    }
    if record.outcome == Outcome::EnrolmentOnly {
        let _ = writeln!(
            out,
            "    │{:width$}│  no session: the certificate is for enrolment alone",
            "",
            width = WIDTH - 1
        );
    }
    if let Some(denial) = &record.denial {
        let _ = writeln!(out, "\n  refused: {}", denial.code);
        let _ = writeln!(out, "  cause:   {}", denial.code.cause());
        if denial.detail != denial.code.cause() {
            let _ = writeln!(out, "  detail:  {}", denial.detail);
        }
        if !denial.policies.is_empty() {
            let _ = writeln!(out, "  by:      {}", denial.policies.join(", "));
        }
        let _ = writeln!(out, "  cure:    {}", denial.code.cure());
    }
    out
}

/// As a Mermaid sequence diagram.
pub fn mermaid(record: &ExchangeRecord) -> String {
    // What came from outside must not end a line or start a statement of its own.
    let clean = |text: &str| text.replace(['\n', '\r', ';', '#'], " ");
    let mut out = String::from("sequenceDiagram\n");
    let device = record.device.as_ref().map_or("device", |d| d.as_str());
    let _ = writeln!(out, "    participant D as {}", clean(device));
    let _ = writeln!(out, "    participant C as countersign");
    for s in steps(record) {
        let text = clean(&s.text);
        let _ = match (s.way, s.failed) {
            (Way::ToServer, false) => writeln!(out, "    D->>C: {text}"),
            (Way::ToServer, true) => writeln!(out, "    D-xC: {text}"),
            (Way::ToDevice, false) => writeln!(out, "    C->>D: {text}"),
            (Way::ToDevice, true) => writeln!(out, "    C-xD: {text}"),
            (Way::Inside, _) => writeln!(out, "    Note over C: {text}"),
        };
    }
    if let Some(denial) = &record.denial {
        let _ = writeln!(
            out,
            "    Note over D,C: refused {} — {}",
            denial.code,
            clean(denial.code.cause())
        );
    }
    out
}
