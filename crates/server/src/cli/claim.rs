//! `countersign factory claim …`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use countersign_factory::RevocationReason;
use countersign_identity::{DeviceId, TenantId};
use countersign_policy::ClaimId;
use countersign_policy::first_contact::IdPattern;
use serde_json::{Value, json};

use super::commands::{read, sessions, times};
use super::output::{Output, cell, time};
use crate::client::Client;
use crate::failure::Failure;

#[derive(Subcommand)]
pub enum ClaimCommand {
    /// Make a claim: a secret, or a certificate that is given, for the devices of its list
    Add {
        #[command(flatten)]
        claim: OneClaim,
        /// A device id that it enrols; may be given several times
        #[arg(long = "id", required_unless_present_any = ["ids", "id_pattern"])]
        id: Vec<DeviceId>,
        /// A file with the device ids that it enrols, one a line
        #[arg(long)]
        ids: Option<PathBuf>,
        /// In place of a list: a pattern, with * and ? as wildcards
        #[arg(long, requires = "quota", conflicts_with_all = ["id", "ids"])]
        id_pattern: Option<IdPattern>,
        /// With a pattern: how many devices in all
        #[arg(long, requires = "id_pattern")]
        quota: Option<u64>,
        /// How many days it is good
        #[arg(long, default_value_t = 30)]
        days: u32,
        /// The certificate that the devices show (PEM, with a key that they share); without it a secret is made
        #[arg(long)]
        certificate: Option<PathBuf>,
        /// The profile that it enrols by [default: the first of the configuration]
        #[arg(long)]
        profile: Option<String>,
        /// The model of the devices that it brings
        #[arg(long)]
        model: Option<String>,
        /// A group of the devices that it brings; may be given several times
        #[arg(long = "group")]
        groups: Vec<String>,
    },
    /// List claims
    List {
        /// The tenant
        #[arg(long, default_value = "default")]
        tenant: TenantId,
    },
    /// Show a claim with everything that it minted
    Show(OneClaim),
    /// Let a claim enrol nobody any more, and list everything that it minted
    Revoke {
        #[command(flatten)]
        claim: OneClaim,
        /// Revoke everything that it minted too; ends its sessions
        #[arg(long)]
        minted: bool,
        /// With --minted, for revocation lists: unspecified, key-compromise, superseded, ...
        #[arg(long, default_value = "unspecified")]
        code: RevocationReason,
        /// Why, for the audit
        #[arg(long, default_value = "")]
        reason: String,
    },
}

#[derive(Args)]
pub struct OneClaim {
    /// Its name
    pub name: ClaimId,
    /// Its tenant
    #[arg(long, default_value = "default")]
    pub tenant: TenantId,
}

pub async fn run(command: ClaimCommand, client: &Client, out: Output) -> Result<(), Failure> {
    match command {
        ClaimCommand::Add {
            claim,
            mut id,
            ids,
            id_pattern,
            quota,
            days,
            certificate,
            profile,
            model,
            groups,
        } => {
            if let Some(path) = &ids {
                for line in read(path)?.lines().map(str::trim).filter(|l| !l.is_empty()) {
                    let one = DeviceId::new(line)
                        .map_err(|e| Failure::invalid(format!("{}: {line:?}: {e}", path.display())))?;
                    id.push(one);
                }
            }
            let allow = match (id_pattern, quota) {
                (Some(pattern), Some(quota)) => json!({ "pattern": { "pattern": pattern, "quota": quota } }),
                _ => json!({ "ids": id }),
            };
            let body = json!({
                "id": claim.name, "allow": allow, "days": days, "profile": profile, "model": model,
                "groups": groups, "certificate": certificate.as_deref().map(read).transpose()?,
            });
            let path = format!("/tenants/{}/claims", claim.tenant);
            let answer = client.call("POST", &path, Some(body)).await?;
            out.say(&answer, |a| match a["secret"].as_str() {
                Some(secret) => format!(
                    "{secret}\nit is shown this once, good until {}; EST user name: claim/{}, the device id as common name of the request",
                    time(&a["expires"]),
                    claim.name
                ),
                None => format!(
                    "claim {} goes by its certificate, good until {}; the device id is the common name of the request",
                    claim.name,
                    time(&a["expires"])
                ),
            })
        }
        ClaimCommand::List { tenant } => {
            let mut answer = client
                .call("GET", &format!("/tenants/{tenant}/claims"), None)
                .await?;
            times(&mut answer, "expires", out);
            out.list(
                &answer,
                &[
                    ("CLAIM", "/id"),
                    ("STATE", "/state"),
                    ("BY", "/by"),
                    ("IDS", "/id_pattern"),
                    ("ENROLLED", "/enrolled"),
                    ("OF", "/quota"),
                    ("PROFILE", "/profile"),
                    ("EXPIRES", "/expires"),
                ],
            )
        }
        ClaimCommand::Show(claim) => {
            let answer = client.call("GET", &path_of(&claim), None).await?;
            out.say(&answer, |a| {
                let c = &a["claim"];
                format!(
                    "claim    {} of tenant {}, by {}\nstate    {}{}\nids      {}\nenrolled {} of {}\nexpires  {}{}",
                    cell(&c["id"]),
                    cell(&c["tenant"]),
                    cell(&c["by"]),
                    cell(&c["state"]),
                    c["reason"].as_str().filter(|r| !r.is_empty()).map(|r| format!(" ({r})")).unwrap_or_default(),
                    c["id_pattern"].as_str().unwrap_or("a list"),
                    cell(&c["enrolled"]),
                    cell(&c["quota"]),
                    time(&c["expires"]),
                    minted(&a["minted"])
                )
            })
        }
        ClaimCommand::Revoke {
            claim,
            minted: with_minted,
            code,
            reason,
        } => {
            let body = json!({ "reason": reason, "minted": with_minted, "code": code });
            let path = format!("{}/revoke", path_of(&claim));
            let answer = client.call("POST", &path, Some(body)).await?;
            out.say(&answer, |a| {
                format!(
                    "claim {} enrols nobody any more; {} of the {} certificate(s) that it minted revoked{}{}{}",
                    claim.name,
                    a["revoked"],
                    a["minted"].as_array().map_or(0, Vec::len),
                    sessions(&a["sessions"]),
                    if with_minted && code.is_compromise() {
                        "\nno claim enrols those devices any more; hint: countersign device secret ID"
                    } else {
                        ""
                    },
                    minted(&a["minted"])
                )
            })
        }
    }
}

fn path_of(claim: &OneClaim) -> String {
    format!("/tenants/{}/claims/{}", claim.tenant, claim.name)
}

fn minted(list: &Value) -> String {
    list.as_array()
        .into_iter()
        .flatten()
        .map(|m| {
            format!(
                "\n{}  {}  {}  {}",
                time(&m["created"]),
                cell(&m["device"]),
                cell(&m["state"]),
                cell(&m["fingerprint"])
            )
        })
        .collect()
}
