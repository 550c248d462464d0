//! Bulk issue that is killed, and the order in which it writes. A file of its own: its syncs of a whole file system would
//! slow the tests beside it.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::Path;
use std::process::Command;

use countersign_testkit::crash;
use countersign_testkit::server::Server;
use serde_json::json;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_countersign"))
}

#[test]
fn twenty_kills_of_bulk_issue_lose_nothing_and_issue_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let report = crash::bulk(program(), folder.path(), 20, 20_261_125).unwrap();
    assert_eq!(
        (report.kills, report.issued),
        (20, 20 * 80),
        "every round is complete in the end: {report:?}"
    );
    assert!(report.amid >= 10 && report.kept > 0, "{report:?}");
}

/// Order is what a power cut tests: keys are synced before their certificates are there, files before the index, the
/// index before the work keys go.
#[test]
fn bulk_issue_syncs_keys_before_certificates_and_files_before_it_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let server = Server::start(program(), &data, "").unwrap();
    let plan = json!({ "id": "B", "model": "m", "profile": "factory", "id_pattern": "SN-*", "quota": 9 });
    server
        .ask("POST", "/tenants/default/batches", Some(&plan))
        .unwrap();
    let trace = folder.path().join("trace");
    let run = Command::new("strace")
        .args(["-f", "-qq", "-y", "-s", "90", "-e"])
        .arg("trace=syncfs,fdatasync,rename,write,sendto,ftruncate")
        .arg("-o")
        .arg(&trace)
        .arg(program())
        .arg("--data")
        .arg(&data)
        .args([
            "factory", "issue", "--batch", "B", "--format", "SN-{}", "--count", "4", "--chunk", "2", "--out",
        ])
        .arg(folder.path().join("out"))
        .output()
        .unwrap();
    assert!(run.status.success(), "{run:?}");
    let text = std::fs::read_to_string(&trace).unwrap();
    // What a line does, as one letter; other lines are of no interest.
    let step = |line: &str| {
        let is = |parts: &[&str]| parts.iter().all(|p| line.contains(p));
        if is(&["write(", ".work/keys>"]) {
            Some('k')
        } else if is(&["fdatasync(", ".work/keys>"]) && line.ends_with("= 0") {
            Some('K')
        } else if is(&["syncfs("]) && line.ends_with("= 0") {
            Some('s')
        } else if is(&["rename(", "device.key\")"]) || is(&["rename(", "device.crt\")"]) {
            Some('f')
        } else if is(&["write(", "index.csv>", "SN-"]) {
            Some('i')
        } else if is(&["fdatasync(", "index.csv>"]) && line.ends_with("= 0") {
            Some('d')
        } else if is(&["ftruncate(", ".work/keys>", ", 0)"]) {
            Some('u')
        } else {
            None
        }
    };
    let steps: String = text.lines().filter_map(step).collect();
    assert_eq!(steps, format!("u{}", "kKffffsidu".repeat(2)), "{text}");
}
