//! `countersign policy`: check, show, compare, set, take back, test and simulate a tenant's policies.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use countersign_identity::{Generation, TenantId, Timestamp};
use countersign_policy::TopicSpace;
use countersign_policy::decide::{PolicyProblem, SCHEMA_TEXT, TenantPolicy, texts};
use countersign_policy::spaces::default_spaces;
use countersign_registry::check_policies;
use countersign_registry::policies::bounded;
use serde_json::{Value, json};

use super::commands::{read, sessions, times};
use super::output::{Output, cell, time};
use super::policy_cases;
use super::verify::moment;
use crate::client::Client;
use crate::failure::Failure;
use crate::service::{GROUPS_MAX, NOBODY};

#[derive(Subcommand)]
pub enum PolicyCommand {
    /// Check policies without a server: whether they would take effect and let anybody in, and what looks wrong
    Check {
        /// Policies, Cedar
        file: PathBuf,
        /// Topic spaces: JSON, a list of {"name", "filter"} [default: the built-in ones]
        #[arg(long)]
        spaces: Option<PathBuf>,
    },
    /// Print what policies may speak of
    Schema,
    /// Run cases against policies without a server; 0 only if each comes out as expected
    Test {
        #[arg(help = "The cases: TOML, [[case]] with facts and what is expected")]
        cases: PathBuf,
        /// Policies, in place of what the cases name
        #[arg(long)]
        policies: Option<PathBuf>,
        /// Topic spaces, in place of what the cases name
        #[arg(long)]
        spaces: Option<PathBuf>,
    },
    /// Print the policies and topic spaces in force, or of a version
    Show {
        /// A version [default: the one in force]
        number: Option<u64>,
        #[command(flatten)]
        of: OfTenant,
    },
    /// List the versions
    List(OfTenant),
    /// Compare two versions, or a file with the version in force
    Diff {
        /// A version, `current`, or a file with policies
        from: String,
        /// The same
        #[arg(default_value = "current")]
        to: String,
        #[command(flatten)]
        of: OfTenant,
    },
    /// Put policies into force, as a new version; live sessions are decided anew
    Set {
        /// Policies, Cedar
        file: PathBuf,
        /// Topic spaces too: JSON, a list of {"name", "filter"}
        #[arg(long)]
        spaces: Option<PathBuf>,
        #[command(flatten)]
        change: ChangeArguments,
        #[command(flatten)]
        of: OfTenant,
    },
    /// Take an earlier version up again, as a new version
    Revert {
        /// The version
        number: u64,
        #[command(flatten)]
        change: ChangeArguments,
        #[command(flatten)]
        of: OfTenant,
    },
    /// Say what policies would do: who would be locked out, who newly let in
    Simulate {
        /// Policies, Cedar
        file: PathBuf,
        /// Topic spaces too
        #[arg(long)]
        spaces: Option<PathBuf>,
        /// Only exchanges since then, RFC 3339
        #[arg(long, value_parser = moment)]
        since: Option<Timestamp>,
        /// The most exchanges that are replayed, newest first; 100000 are the most
        #[arg(long, default_value_t = 10_000)]
        limit: u32,
        #[command(flatten)]
        of: OfTenant,
    },
}

#[derive(Args)]
pub struct OfTenant {
    /// The tenant
    #[arg(long, default_value = "default")]
    tenant: TenantId,
}

#[derive(Args)]
pub struct ChangeArguments {
    /// Why, for versions and audit
    #[arg(long)]
    reason: String,
    /// It need not fit the schema, and may lock out as many devices as it does
    #[arg(long)]
    accept_lock_out: bool,
    /// The version that it was made of: refused if another is in force by now
    #[arg(long)]
    base: Option<u64>,
}

/// Topic spaces from a file.
pub(super) fn read_spaces(path: &Path) -> Result<Vec<TopicSpace>, Failure> {
    serde_json::from_str(&read(path)?).map_err(|e| {
        Failure::invalid(format!(
            "{}: {e}; hint: write a JSON list of {{\"name\", \"filter\"}}",
            path.display()
        ))
    })
}

/// What needs no server. Anything else is given back.
pub(super) fn offline(command: &PolicyCommand, out: Output) -> Option<Result<(), Failure>> {
    Some(match command {
        PolicyCommand::Check { file, spaces } => check(file, spaces.as_deref(), out),
        PolicyCommand::Schema => out.say(&json!({ "schema": SCHEMA_TEXT }), |_| SCHEMA_TEXT.into()),
        PolicyCommand::Test {
            cases,
            policies,
            spaces,
        } => policy_cases::run(cases, policies.as_deref(), spaces.as_deref(), out),
        _ => return None,
    })
}

fn check(file: &Path, spaces: Option<&Path>, out: Output) -> Result<(), Failure> {
    let declared = spaces.map(read_spaces).transpose()?;
    let text = read(file)?;
    bounded(Some(&text), declared.as_deref()).map_err(Failure::invalid)?;
    let spaces = declared.clone().unwrap_or_else(default_spaces);
    let (fits, problems) = match check_policies(&text, &spaces) {
        Ok(warnings) => (true, warnings),
        Err(problems) => (false, problems),
    };
    let admits = TenantPolicy::compile_unfit(Generation(1), &text, spaces).is_ok_and(|p| p.may_admit());
    let answer = json!({ "file": file, "fits": fits, "admits": admits, "problems": problems });
    out.say(&answer, |_| {
        let mut said = told(file, fits, &problems);
        if fits && admits {
            said.push(format!("{} would take effect", file.display()));
        }
        said.join("\n")
    })?;
    if declared.is_none() && problems.iter().any(|p| p.message.contains("topic space")) {
        eprintln!("it was checked with the built-in topic spaces; --spaces FILE names others");
    }
    if !fits {
        return Err(Failure::invalid(format!(
            "{} would not take effect: {} problem(s)",
            file.display(),
            problems.len()
        )));
    }
    match admits {
        true => Ok(()),
        false => Err(Failure::invalid(format!(
            "{}: {NOBODY}; hint: write whole files, with a permit on Action::\"connect\"; if it is meant as it is, policy set takes it with --accept-lock-out",
            file.display()
        ))),
    }
}

fn told(file: &Path, fits: bool, problems: &[PolicyProblem]) -> Vec<String> {
    problems
        .iter()
        .map(|p| {
            let place = match (p.line, p.column) {
                (Some(line), Some(column)) => format!("{}:{line}:{column}", file.display()),
                _ => file.display().to_string(),
            };
            let policy = p
                .policy
                .as_ref()
                .map(|id| format!("policy {id:?}: "))
                .unwrap_or_default();
            let kind = if fits { "warning" } else { "error" };
            format!("{place}: {kind}: {policy}{}\n  cure: {}", p.message, p.cure)
        })
        .collect()
}

/// What looks wrong in policies that the server was given.
fn warn(file: &Path, answer: &Value) {
    let warnings: Vec<PolicyProblem> = serde_json::from_value(answer["warnings"].clone()).unwrap_or_default();
    for line in told(file, true, &warnings) {
        eprintln!("{line}");
    }
}

pub(super) async fn run(command: PolicyCommand, client: &Client, out: Output) -> Result<(), Failure> {
    match command {
        PolicyCommand::Check { .. } | PolicyCommand::Schema | PolicyCommand::Test { .. } => Ok(()),
        PolicyCommand::Show { number, of } => {
            let which = number.map_or_else(|| "current".to_owned(), |v| v.to_string());
            let answer = client
                .call("GET", &format!("/tenants/{}/policies/{which}", of.tenant), None)
                .await?;
            out.say(&answer, show)
        }
        PolicyCommand::List(of) => {
            let mut answer = client
                .call("GET", &format!("/tenants/{}/policies", of.tenant), None)
                .await?;
            times(&mut answer, "at", out);
            out.list(
                &answer,
                &[
                    ("VERSION", "/number"),
                    ("IN FORCE", "/in_force"),
                    ("AT", "/at"),
                    ("BY", "/actor"),
                    ("REVERTS", "/reverts"),
                    ("REASON", "/reason"),
                    ("SHA-256", "/sha256"),
                ],
            )
        }
        PolicyCommand::Diff { from, to, of } => diff(&from, &to, &of.tenant, client, out).await,
        PolicyCommand::Set {
            file,
            spaces,
            change,
            of,
        } => {
            let spaces = spaces.as_deref().map(read_spaces).transpose()?;
            let body = json!({
                "policies": read(&file)?, "spaces": spaces,
                "reason": change.reason, "accept_lock_out": change.accept_lock_out,
                "base": change.base,
            });
            let answer = client
                .call("PATCH", &format!("/tenants/{}", of.tenant), Some(body))
                .await?;
            warn(&file, &answer);
            out.say(&answer, |a| in_force(&of.tenant, a))
        }
        PolicyCommand::Revert { number, change, of } => {
            let body = json!({
                "reason": change.reason, "accept_lock_out": change.accept_lock_out, "base": change.base,
            });
            let path = format!("/tenants/{}/policies/{number}/revert", of.tenant);
            let answer = client.call("POST", &path, Some(body)).await?;
            out.say(&answer, |a| match a["changed"] == false {
                true => in_force(&of.tenant, a),
                false => format!("{}\nit is version {number} again", in_force(&of.tenant, a)),
            })
        }
        PolicyCommand::Simulate {
            file,
            spaces,
            since,
            limit,
            of,
        } => {
            let spaces = spaces.as_deref().map(read_spaces).transpose()?;
            let body = json!({ "policies": read(&file)?, "spaces": spaces, "since": since, "limit": limit });
            let path = format!("/tenants/{}/policies/simulate", of.tenant);
            let answer = client.call("POST", &path, Some(body)).await?;
            warn(&file, &answer);
            out.say(&answer, simulated)
        }
    }
}

fn in_force(tenant: &TenantId, answer: &Value) -> String {
    if answer["changed"] == false {
        return format!(
            "nothing was changed: policy version {} of tenant {tenant}, which is in force, says the same",
            answer["version"]
        );
    }
    format!(
        "policy version {} of tenant {tenant} is in force{}",
        answer["version"],
        sessions(&answer["sessions"])
    )
}

fn show(a: &Value) -> String {
    let mut text = format!(
        "// version {}{}, {}, by {}: {}\n// sha256 {}\n{}",
        a["number"],
        if a["in_force"] == true { ", in force" } else { "" },
        time(&a["at"]),
        cell(&a["actor"]),
        cell(&a["reason"]),
        cell(&a["sha256"]),
        a["policies"].as_str().unwrap_or_default().trim_end(),
    );
    text.push_str("\n\n// topic spaces:");
    for space in a["spaces"].as_array().into_iter().flatten() {
        text.push_str(&format!(
            "\n//   {}  {}",
            cell(&space["name"]),
            cell(&space["filter"])
        ));
    }
    text
}

fn simulated(a: &Value) -> String {
    let mut lines = vec![format!("compared with version {} in force:", a["base"])];
    for problem in a["problems"].as_array().into_iter().flatten() {
        lines.push(format!("does not fit the schema: {}", cell(problem)));
    }
    let is_empty = |shifts: &Value| {
        ["stay_in", "stay_out", "locked_out", "let_in"]
            .iter()
            .all(|k| shifts[k] == 0)
    };
    for (what, shifts, always) in [
        ("active devices", &a["devices"], true),
        ("quarantined devices (the lane)", &a["quarantined"], false),
        ("pending and suspended devices, once active", &a["waiting"], false),
        ("recorded exchanges", &a["exchanges"], true),
    ] {
        if !always && is_empty(shifts) {
            continue;
        }
        lines.push(format!(
            "{what}: {} would be locked out, {} newly let in; {} stay in, {} stay out",
            shifts["locked_out"], shifts["let_in"], shifts["stay_in"], shifts["stay_out"]
        ));
        let groups = shifts["groups"].as_array().map(Vec::as_slice).unwrap_or_default();
        for group in groups.iter().take(GROUPS_MAX) {
            let by = match (group["policies"].as_array(), group["code"].as_str()) {
                (Some(policies), code) if policies.is_empty() => code.unwrap_or("-").to_owned(),
                _ => cell(&group["policies"]),
            };
            let count = group["count"].as_u64().unwrap_or(0);
            let shown = group["examples"].as_array().map_or(0, Vec::len) as u64;
            lines.push(format!(
                "  {} {count} by {by}: {}{}",
                cell(&group["shift"]),
                cell(&group["examples"]),
                if count > shown { ", …" } else { "" }
            ));
        }
        if let Some(rest) = groups.get(GROUPS_MAX..).filter(|rest| !rest.is_empty()) {
            let count: u64 = rest.iter().filter_map(|g| g["count"].as_u64()).sum();
            lines.push(format!(
                "  and {count} for {} reasons more; --json has them all",
                rest.len()
            ));
        }
    }
    for (key, what) in [
        (
            "assumed",
            "device(s) have not been seen: their source and handshake are assumed",
        ),
        (
            "unknown_authority",
            "device(s) have a certificate of which it is not known which authority it ends in: the worst counts",
        ),
        (
            "without_credential",
            "device(s) have no certificate in force that an authority vouches for, and are left out",
        ),
        (
            "full_instead",
            "recorded exchange(s) would have been full handshakes in place of resumptions",
        ),
    ] {
        if a[key].as_u64().unwrap_or(0) > 0 {
            lines.push(format!("{} {what}", a[key]));
        }
    }
    let clones = &a["clones"];
    if clones["suspected"].as_u64().unwrap_or(0) > 0 {
        lines.push(format!(
            "suspected clones: {}; quarantined by the policies in force: {}; by these: {}",
            clones["suspected"],
            cell(&clones["quarantined_before"]),
            cell(&clones["quarantined_after"])
        ));
    }
    lines.join("\n")
}

/// One side of a comparison.
struct Side {
    name: String,
    policies: String,
    /// A file has none.
    spaces: Option<Vec<TopicSpace>>,
}

async fn side(text: &str, tenant: &TenantId, client: &Client) -> Result<Side, Failure> {
    if text != "current" && text.parse::<u64>().is_err() {
        return Ok(Side {
            name: text.to_owned(),
            policies: read(Path::new(text))?,
            spaces: None,
        });
    }
    let found = client
        .call("GET", &format!("/tenants/{tenant}/policies/{text}"), None)
        .await?;
    let spaces = serde_json::from_value(found["spaces"].clone())
        .map_err(|e| Failure::internal(format!("the server's answer cannot be read: {e}")))?;
    Ok(Side {
        name: format!("version {}", found["number"]),
        policies: found["policies"].as_str().unwrap_or_default().to_owned(),
        spaces: Some(spaces),
    })
}

async fn diff(from: &str, to: &str, tenant: &TenantId, client: &Client, out: Output) -> Result<(), Failure> {
    let (from, to) = (side(from, tenant, client).await?, side(to, tenant, client).await?);
    let mut changes = Vec::new();
    // By policy, where both can be read: a version of before may speak of what the schema no longer has.
    if let (Ok(before), Ok(after)) = (texts(&from.policies), texts(&to.policies)) {
        let mut ids: Vec<&String> = before.keys().chain(after.keys()).collect();
        ids.sort();
        ids.dedup();
        for id in ids {
            let what = match (before.get(id), after.get(id)) {
                (None, Some(_)) => "added",
                (Some(_), None) => "removed",
                (a, b) if a != b => "changed",
                _ => continue,
            };
            changes.push(json!({ "policy": id, "change": what }));
        }
    }
    let mut spaces = Vec::new();
    if let (Some(before), Some(after)) = (&from.spaces, &to.spaces) {
        for s in before.iter().filter(|s| !after.contains(s)) {
            spaces.push(format!("- {}  {}", s.name, s.filter));
        }
        for s in after.iter().filter(|s| !before.contains(s)) {
            spaces.push(format!("+ {}  {}", s.name, s.filter));
        }
    }
    let lines = super::line_diff::unified(&from.policies, &to.policies);
    let answer = json!({
        "from": from.name, "to": to.name, "policies": changes, "spaces": spaces, "lines": lines,
        "same": lines.is_empty() && spaces.is_empty(),
    });
    out.say(&answer, |a| {
        if a["same"] == true {
            return format!("{} and {} say the same", from.name, to.name);
        }
        let mut text = vec![format!("--- {}", from.name), format!("+++ {}", to.name)];
        text.extend(
            changes
                .iter()
                .map(|c| format!("policy {} {}", cell(&c["policy"]), cell(&c["change"]))),
        );
        text.extend(lines.iter().cloned());
        if !spaces.is_empty() {
            text.push("topic spaces:".into());
            text.extend(spaces.iter().cloned());
        }
        text.join("\n")
    })
}
