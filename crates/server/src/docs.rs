//! The book says what the code does: what can be made from code is, what cannot is held against it.

use std::fmt::Write;

use countersign_policy::DenialCode;
use countersign_policy::denial::Wire;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

fn read(path: &str) -> String {
    std::fs::read_to_string(format!("{ROOT}/{path}")).unwrap()
}

/// The catalogue of refusals as a page.
fn refusals() -> String {
    let mut out = String::from(
        "# Refusals\n\nMade from the catalogue in `crates/policy/src/denial.rs`. A code never changes its meaning. The device is told\n\
         little, the operator everything: `countersign explain DEVICE|FINGERPRINT|SERIAL|EXCHANGE`.\n\n\
         Over HTTPS what is refused after TLS is answered by a problem document with the code, and a status: the one in the table, or 429\n\
         for `credential.rate`, 503 where CONNACK is 3, else 403. A publish has 400 for `topic.invalid`, `mqtt.qos` and `mqtt.retain`, and\n\
         413 for `mqtt.too-large`. Once a device is let in, `/oauth2/token` answers by the errors of RFC 6749.\n",
    );
    let mut stage = None;
    for code in DenialCode::ALL {
        if stage != Some(code.stage()) {
            stage = Some(code.stage());
            let _ = write!(
                out,
                "\n## {}\n\n| code | the device sees | cause | cure |\n|---|---|---|---|\n",
                code.stage()
            );
        }
        let wire = match code.wire() {
            Wire::Close => "the connection is closed".to_owned(),
            Wire::Alert(n) => format!("TLS alert {n}"),
            Wire::Http(status) => format!("HTTP {status}"),
            Wire::Connack { v311, v5 } => format!("CONNACK {v311}, in MQTT 5 0x{v5:02x}"),
            Wire::Session { v5 } => format!("3.1.1: closed (SUBACK 0x80), 5: 0x{v5:02x}"),
            Wire::Device => "its own alert".to_owned(),
        };
        let cell = |text: &str| text.replace('|', "\\|");
        let _ = writeln!(
            out,
            "| `{code}` | {wire} | {} | {} |",
            cell(code.cause()),
            cell(code.cure())
        );
    }
    out
}

#[test]
fn the_page_of_refusals_is_the_catalogue() {
    let path = format!("{ROOT}/docs/refusals.md");
    if std::env::var_os("COUNTERSIGN_BLESS").is_some() {
        std::fs::write(&path, refusals()).unwrap();
    }
    assert_eq!(
        read("docs/refusals.md"),
        refusals(),
        "COUNTERSIGN_BLESS=1 cargo test writes it"
    );
}

#[test]
fn the_page_of_attestation_has_every_refusal() {
    use countersign_factory::attest::Refusal;
    let page = read("docs/attestation.md");
    for refusal in Refusal::ALL {
        let row = format!("| `{}` | {}", refusal.code(), refusal.cause());
        assert!(page.contains(&row), "{row}");
    }
    assert_eq!(page.matches("\n| `attestation.").count(), Refusal::ALL.len());
}

#[test]
fn the_page_of_the_configuration_has_every_key_and_its_default() {
    let page = read("docs/configuration.md");
    let config = toml::Value::try_from(crate::config::Config::default()).unwrap();
    let mut keys = 0;
    for (section, values) in config.as_table().unwrap() {
        if values.is_array() {
            // A list of tables, which has a section of its own.
            assert!(page.contains(&format!("[[{section}]]")), "{section}");
            for key in values[0].as_table().unwrap().keys() {
                assert!(page.contains(&format!("\n{key} = ")), "{section}.{key}");
            }
            continue;
        }
        for (key, default) in values.as_table().unwrap() {
            keys += 1;
            let line = page
                .lines()
                .find(|l| l.starts_with(&format!("| `{section}.{key}` |")));
            let line = line.unwrap_or_else(|| panic!("{section}.{key} is not in docs/configuration.md"));
            let told = line
                .split(" | ")
                .nth(1)
                .unwrap_or_default()
                .trim_matches('`')
                .replace(' ', "");
            assert_eq!(told, default.to_string().replace(' ', ""), "{section}.{key}");
        }
    }
    // server.certificate, server.key and ca.socket have no default; the shares of one source have one that is no number.
    assert_eq!(
        page.lines().filter(|l| l.starts_with("| `")).count(),
        keys + 6,
        "the page names keys that are none"
    );
}

#[test]
fn the_page_of_the_ca_has_every_key_of_its_file_and_its_default() {
    let page = read("docs/ca-role.md");
    let settings = toml::Value::try_from(crate::ca::settings::Settings::default()).unwrap();
    for (key, default) in settings.as_table().unwrap() {
        let told = match key.as_str() {
            "log" => "| `log.format`, `log.filter` |".to_owned(),
            "profiles" => "| `[[profiles]]` |".to_owned(),
            "control_uids" => "| `control_uids` | `[]` |".to_owned(),
            key => format!("| `{key}` | {default} |"),
        };
        assert!(page.contains(&told), "{told}");
    }
}

#[test]
fn the_page_of_metrics_has_every_metric_and_no_other() {
    let page = read("docs/metrics.md");
    let told: std::collections::BTreeSet<&str> = page
        .lines()
        .filter_map(|l| l.strip_prefix("| `")?.split(['`', '{']).next())
        .map(|name| name.trim_end_matches("_total"))
        .collect();
    let code = include_str!("metrics.rs");
    let named = code
        .split('"')
        .filter(|s| s.starts_with("countersign_") && !s.contains(' '))
        .collect();
    assert_eq!(told, named);
}

#[test]
fn links_between_the_pages_lead_somewhere() {
    let mut pages = vec![];
    for folder in ["", "docs/", "docs/decisions/", "bench/"] {
        for entry in std::fs::read_dir(format!("{ROOT}/{folder}")).unwrap() {
            let name = entry.unwrap().file_name().to_string_lossy().into_owned();
            if name.ends_with(".md") {
                pages.push((folder, name));
            }
        }
    }
    for (folder, name) in pages {
        let text = read(&format!("{folder}{name}"));
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let path = format!("{ROOT}/{folder}{target}");
            assert!(
                std::path::Path::new(&path).exists(),
                "{folder}{name} links to {link}"
            );
        }
    }
}

#[test]
fn the_commands_that_cures_name_exist() {
    use clap::CommandFactory;
    let root = crate::cli::Arguments::command();
    for code in DenialCode::ALL {
        for rest in code.cure().split("countersign ").skip(1) {
            let mut command = &root;
            let mut depth = 0;
            for word in rest
                .split(|c: char| !c.is_ascii_lowercase() && c != '-')
                .take_while(|w| !w.is_empty())
            {
                match command.find_subcommand(word) {
                    Some(below) => command = below,
                    None => break,
                }
                depth += 1;
            }
            assert!(
                depth > 0 && !command.has_subcommands(),
                "the cure of {code} names `countersign {rest}`"
            );
        }
    }
}

/// Names that clash with each other, or with the flags that every command has, are found before a user finds them.
#[test]
fn no_command_has_two_arguments_of_one_name() {
    use clap::CommandFactory;
    crate::cli::Arguments::command().debug_assert();
}
