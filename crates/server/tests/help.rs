//! The command line's words are reviewed like code: `INSTA_UPDATE=always cargo test` writes the snapshot.
#![allow(missing_docs, clippy::unwrap_used)]

use std::process::Command;

#[test]
fn help_of_every_command() {
    let help = |path: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_countersign"))
            .args(path)
            .arg("--help")
            .env("COLUMNS", "100")
            .env_remove("COUNTERSIGN_DATA")
            .output()
            .unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let mut all = String::new();
    let mut queue = vec![vec![]];
    while let Some(path) = queue.pop() {
        let text = help(&path.iter().map(String::as_str).collect::<Vec<_>>());
        let (_, commands) = text.split_once("Commands:\n").unwrap_or_default();
        let mut below: Vec<Vec<String>> = commands
            .lines()
            .take_while(|l| l.starts_with("  "))
            .filter_map(|l| {
                l.strip_prefix("  ")?
                    .split_whitespace()
                    .next()
                    .filter(|_| !l.starts_with("   "))
            })
            .filter(|name| *name != "help")
            .map(|name| [path.clone(), vec![name.to_owned()]].concat())
            .collect();
        below.reverse();
        queue.extend(below);
        all.push_str(&format!("$ countersign {} --help\n{text}\n", path.join(" ")));
    }
    assert!(all.matches("Usage:").count() > 25, "{all}");
    insta::assert_snapshot!(all);
}
