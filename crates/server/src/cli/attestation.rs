//! `countersign attestation …`

use std::path::PathBuf;

use clap::Subcommand;
use countersign_identity::{AuthorityId, DeviceId, Fingerprint, TenantId};
use serde_json::json;

use super::commands::{read, times};
use super::output::{Output, cell, time};
use crate::client::Client;
use crate::failure::Failure;

#[derive(Subcommand)]
pub enum AttestationCommand {
    /// TPM manufacturers whose endorsement certificates are trusted
    #[command(subcommand)]
    Authority(AuthorityCommand),
    /// Endorsement keys: which device a TPM is in
    #[command(subcommand)]
    Key(KeyCommand),
    /// Show what the TPM of a device said of its keys: the evidence of custody `attested`
    Show {
        /// The device
        device: DeviceId,
        /// Its tenant
        #[arg(long, default_value = "default")]
        tenant: TenantId,
    },
}

#[derive(Subcommand)]
pub enum AuthorityCommand {
    /// Trust a TPM manufacturer's CA
    Add {
        /// A name for it
        id: AuthorityId,
        /// Its certificate (PEM), root or intermediate
        certificate: PathBuf,
        /// The tenant that trusts it
        #[arg(long, default_value = "default")]
        tenant: TenantId,
    },
    /// List them
    List {
        /// The tenant
        #[arg(long, default_value = "default")]
        tenant: TenantId,
    },
    /// Trust it no more; what was attested stays so
    Remove {
        /// Its name
        id: AuthorityId,
        /// The tenant
        #[arg(long, default_value = "default")]
        tenant: TenantId,
    },
}

#[derive(Subcommand)]
pub enum KeyCommand {
    /// Say which device a TPM is in: attested by it, the device enrols without any other proof
    Add {
        /// The device
        device: DeviceId,
        /// The endorsement key (PEM): its certificate, or the public key alone
        key: PathBuf,
        /// The tenant
        #[arg(long, default_value = "default")]
        tenant: TenantId,
    },
    /// List the TPMs of a device
    List {
        /// The device
        device: DeviceId,
        /// The tenant
        #[arg(long, default_value = "default")]
        tenant: TenantId,
    },
    /// Forget which device a TPM is in: its board was moved or scrapped
    Remove {
        /// The endorsement key's fingerprint
        fingerprint: Fingerprint,
        /// The tenant
        #[arg(long, default_value = "default")]
        tenant: TenantId,
    },
}

pub async fn run(command: AttestationCommand, client: &Client, out: Output) -> Result<(), Failure> {
    match command {
        AttestationCommand::Authority(command) => authority(command, client, out).await,
        AttestationCommand::Key(command) => key(command, client, out).await,
        AttestationCommand::Show { device, tenant } => {
            let path = format!("/tenants/{tenant}/devices/{device}/attestations");
            let answer = client.call("GET", &path, None).await?;
            out.say(&answer, |a| {
                let all = a.as_array().map(Vec::as_slice).unwrap_or_default();
                if all.is_empty() {
                    return format!("no key of {device} was attested");
                }
                let shown = all.iter().map(|one| {
                    format!(
                        "attested {}\n  key            {}\n  certificate    {}\n  TPM            {}\n  vouched for by {}",
                        time(&one["at"]),
                        cell(&one["public_key"]),
                        cell(&one["credential"]),
                        cell(&one["endorsement_key"]),
                        one["endorsed_by"].as_str().unwrap_or("its registration for this device"),
                    )
                });
                shown.collect::<Vec<_>>().join("\n\n")
            })
        }
    }
}

async fn authority(command: AuthorityCommand, client: &Client, out: Output) -> Result<(), Failure> {
    let path = |tenant: &TenantId| format!("/tenants/{tenant}/endorsement-authorities");
    match command {
        AuthorityCommand::Add {
            id,
            certificate,
            tenant,
        } => {
            let body = json!({ "id": id, "certificate": read(&certificate)? });
            let answer = client.call("POST", &path(&tenant), Some(body)).await?;
            out.say(&answer, |_| {
                format!("TPMs that {id} vouches for are trusted by tenant {tenant}")
            })
        }
        AuthorityCommand::List { tenant } => {
            let mut answer = client.call("GET", &path(&tenant), None).await?;
            times(&mut answer, "not_after", out);
            out.list(
                &answer,
                &[
                    ("AUTHORITY", "/id"),
                    ("SUBJECT", "/subject"),
                    ("UNTIL", "/not_after"),
                    ("CERTIFICATE", "/fingerprint"),
                ],
            )
        }
        AuthorityCommand::Remove { id, tenant } => {
            let answer = client
                .call("DELETE", &format!("{}/{id}", path(&tenant)), None)
                .await?;
            out.say(&answer, |_| format!("{id} vouches for no TPM any more"))
        }
    }
}

async fn key(command: KeyCommand, client: &Client, out: Output) -> Result<(), Failure> {
    match command {
        KeyCommand::Add { device, key, tenant } => {
            let path = format!("/tenants/{tenant}/devices/{device}/endorsement-keys");
            let body = json!({ "key": read(&key)? });
            let answer = client.call("POST", &path, Some(body)).await?;
            out.say(&answer, |a| {
                format!("the TPM {} is in device {device}", cell(&a["fingerprint"]))
            })
        }
        KeyCommand::List { device, tenant } => {
            let path = format!("/tenants/{tenant}/devices/{device}/endorsement-keys");
            let mut answer = client.call("GET", &path, None).await?;
            times(&mut answer, "created", out);
            out.list(
                &answer,
                &[
                    ("ENDORSEMENT KEY", "/fingerprint"),
                    ("KNOWN BY", "/source"),
                    ("SINCE", "/created"),
                ],
            )
        }
        KeyCommand::Remove { fingerprint, tenant } => {
            let path = format!("/tenants/{tenant}/endorsement-keys/{fingerprint}");
            let answer = client.call("DELETE", &path, None).await?;
            out.say(&answer, |_| {
                "it is not known any more which device it is in".into()
            })
        }
    }
}
