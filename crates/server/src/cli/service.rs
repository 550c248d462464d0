//! `countersign service …`

use std::path::PathBuf;

use clap::Subcommand;
use countersign_identity::{ServiceId, TenantId};
use serde_json::json;

use super::commands::{read, times};
use super::output::{Output, cell};
use crate::client::Client;
use crate::failure::Failure;

#[derive(Subcommand)]
pub enum ServiceCommand {
    /// Register a service by the certificate it shows: it may ask whether tokens are good (introspection)
    Add {
        /// Its id
        id: ServiceId,
        /// Its certificate (PEM), self-signed or issued by anybody; its key must not be a device's
        #[arg(long)]
        certificate: PathBuf,
        /// A tenant about whose tokens it may ask; may be given several times
        #[arg(long = "tenant", default_value = "default")]
        tenants: Vec<TenantId>,
    },
    /// List services
    List,
    /// Let a service ask nothing any more; its id and certificate stay taken
    Revoke {
        /// Its id
        id: ServiceId,
        /// Why, for the audit
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Forget a service: its id and certificate are free again
    Remove {
        /// Its id
        id: ServiceId,
    },
}

pub async fn run(command: ServiceCommand, client: &Client, out: Output) -> Result<(), Failure> {
    match command {
        ServiceCommand::Add {
            id,
            certificate,
            tenants,
        } => {
            let body = json!({ "id": id, "certificate": read(&certificate)?, "introspects": tenants });
            let answer = client.call("POST", "/services", Some(body)).await?;
            out.say(&answer, |a| {
                format!(
                    "service {id} is known by the certificate {}",
                    cell(&a["fingerprint"])
                )
            })
        }
        ServiceCommand::List => {
            let mut answer = client.call("GET", "/services", None).await?;
            times(&mut answer, "not_after", out);
            out.list(
                &answer,
                &[
                    ("SERVICE", "/id"),
                    ("STATE", "/state"),
                    ("INTROSPECTS", "/introspects"),
                    ("SUBJECT", "/subject"),
                    ("UNTIL", "/not_after"),
                    ("CERTIFICATE", "/fingerprint"),
                ],
            )
        }
        ServiceCommand::Revoke { id, reason } => {
            let path = format!("/services/{id}/revoke");
            let answer = client
                .call("POST", &path, Some(json!({ "reason": reason })))
                .await?;
            out.say(&answer, |_| format!("service {id} is revoked"))
        }
        ServiceCommand::Remove { id } => {
            let answer = client.call("DELETE", &format!("/services/{id}"), None).await?;
            out.say(&answer, |_| format!("service {id} is forgotten"))
        }
    }
}
