//! Which crate may use which. What is not listed is forbidden: so `device` and `gateway` cannot call minting code, and
//! protocol and policy never see a socket or a database. A dev-dependency may point anywhere.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Crate → what it may use.
const ALLOWED: &[(&str, &[&str])] = &[
    ("identity", &[]),
    ("mqtt", &[]),
    ("policy", &["identity"]),
    ("factory", &["identity"]),
    ("authority", &["identity", "factory"]),
    ("keystore-pkcs11", &["identity"]),
    ("keystore-tpm", &["identity"]),
    ("station", &["identity", "factory", "authority"]),
    (
        "device",
        &["identity", "factory", "mqtt", "keystore-pkcs11", "keystore-tpm"],
    ),
    ("device-c", &["device"]),
    ("gateway", &["identity", "policy", "mqtt"]),
    ("registry", &["identity", "policy", "factory", "mqtt"]),
    (
        "server",
        &[
            "identity",
            "policy",
            "mqtt",
            "factory",
            "authority",
            "keystore-pkcs11",
            "device",
            "gateway",
            "registry",
        ],
    ),
    (
        "testkit",
        &[
            "identity",
            "policy",
            "mqtt",
            "factory",
            "authority",
            "station",
            "device",
            "gateway",
            "registry",
        ],
    ),
    ("xtask", &["testkit"]),
    // An example of what others write: it uses none of ours.
    ("resource-server", &[]),
];

/// Checks the workspace against the table.
///
/// # Errors
/// Every arrow that is not allowed, and every crate that is not in the table.
pub(crate) fn check() -> Result<()> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let mut faults = Vec::new();
    let mut arrows = 0;
    for package in metadata["packages"].as_array().context("packages")? {
        let name = package["name"].as_str().unwrap_or_default();
        let short = name.strip_prefix("countersign-").unwrap_or(name);
        let Some(may) = allowed.get(short) else {
            faults.push(format!("{name} is not in the table of xtask/src/arrows.rs"));
            continue;
        };
        for dependency in package["dependencies"].as_array().context("dependencies")? {
            let Some(used) = dependency["name"]
                .as_str()
                .and_then(|n| n.strip_prefix("countersign-"))
            else {
                continue;
            };
            let dev = dependency["kind"] == "dev";
            arrows += 1;
            let fine = dev || may.contains(&used);
            if !fine {
                faults.push(format!("{short} may not use {used}"));
            }
        }
    }
    if faults.is_empty() {
        println!("{arrows} arrows between crates, all allowed");
        return Ok(());
    }
    bail!("{}", faults.join("\n"))
}
