//! NIST's Public Key Interoperability Test Suite (PKITS 1.0.1, edition of 2011) through `countersign verify`: every case
//! of pkits.toml has the verdict that stands there. Every path that is invalid by the standard is refused; each valid one
//! that is refused has its reason in DIVERGENCES.md, and there are few of them.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    at: String,
    anchor: String,
    case: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    id: String,
    name: String,
    certificate: String,
    intermediates: Vec<String>,
    crls: Vec<String>,
    /// The verdict by the standard, with PKITS' default inputs.
    standard: Standard,
    /// Ours: `accepted`, or the code.
    verdict: String,
}

#[derive(Deserialize, PartialEq, Eq, Debug, Clone, Copy)]
#[serde(rename_all = "kebab-case")]
enum Standard {
    Valid,
    Invalid,
}

/// The most valid paths that may be refused.
const DIVERGENCES_MAX: usize = 25;

fn vectors() -> PathBuf {
    let folder = std::env::var_os("COUNTERSIGN_PKITS").map_or_else(
        || {
            let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(
                || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"),
                PathBuf::from,
            );
            cache.join("countersign/pkits")
        },
        PathBuf::from,
    );
    assert!(
        folder.join("certs/GoodCACert.crt").exists(),
        "the PKITS vectors are not in {}; hint: ./scripts/test fetches them (PyPI package cryptography-vectors), or set \
         COUNTERSIGN_PKITS to its folder x509/PKITS_data",
        folder.display()
    );
    folder
}

fn verify(vectors: &Path, table: &Table, case: &Case) -> String {
    let file = |folder: &str, name: &str, ending: &str| vectors.join(folder).join(format!("{name}.{ending}"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_countersign"));
    command
        // Neither a data directory nor a server.
        .env("COUNTERSIGN_DATA", "/nonexistent")
        .args(["--json", "verify", "--at", &table.at, "--anchors"])
        .arg(file("certs", &table.anchor, "crt"));
    for name in &case.intermediates {
        command.arg("--intermediates").arg(file("certs", name, "crt"));
    }
    for name in &case.crls {
        command.arg("--crl").arg(file("crls", name, "crl"));
    }
    let output = command
        .arg(file("certs", &case.certificate, "crt"))
        .output()
        .unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}: {}", case.id, String::from_utf8_lossy(&output.stderr)));
    let accepted = answer["accepted"].as_bool().unwrap();
    assert_eq!(
        output.status.code(),
        Some(if accepted { 0 } else { 4 }),
        "{}: {answer}",
        case.id
    );
    match answer["code"].as_str() {
        Some(code) => code.to_owned(),
        None => "accepted".to_owned(),
    }
}

#[test]
fn every_case_has_its_verdict() {
    let table: Table = toml::from_str(include_str!("pkits.toml")).unwrap();
    assert_eq!(table.case.len(), 224, "PKITS 1.0.1 has 224 tests");
    let vectors = vectors();
    let verdicts = Mutex::new(BTreeMap::new());
    let next = Mutex::new(table.case.iter());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some(case) = next.lock().unwrap().next() else {
                        return;
                    };
                    let verdict = verify(&vectors, &table, case);
                    verdicts.lock().unwrap().insert(&case.id, verdict);
                }
            });
        }
    });
    let verdicts = verdicts.into_inner().unwrap();
    let divergences =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../DIVERGENCES.md")).unwrap();
    let mut wrong = Vec::new();
    let mut refused = 0;
    for case in &table.case {
        let verdict = &verdicts[&case.id];
        if *verdict != case.verdict {
            wrong.push(format!(
                "{} {}: {verdict}, not {}",
                case.id, case.name, case.verdict
            ));
        }
        match (case.standard, verdict == "accepted") {
            (Standard::Invalid, true) => {
                wrong.push(format!("{} {} is invalid, and accepted", case.id, case.name))
            }
            (Standard::Valid, false) => {
                refused += 1;
                let named = divergences
                    .split(|c: char| !c.is_ascii_digit() && c != '.')
                    .any(|word| word.trim_end_matches('.') == case.id);
                if !named {
                    wrong.push(format!(
                        "{} {} is refused, and not in DIVERGENCES.md",
                        case.id, case.name
                    ));
                }
            }
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(refused <= DIVERGENCES_MAX, "{refused} valid paths are refused");
}
