//! `countersign tenant`.

use serde_json::{Value, json};

use super::arguments::{HostCommand, TenantCommand};
use super::commands::{read, sessions, times};
use super::output::Output;
use crate::client::Client;
use crate::failure::Failure;

pub(super) async fn run(command: TenantCommand, client: &Client, out: Output) -> Result<(), Failure> {
    match command {
        TenantCommand::Add { id, client_id_mode } => {
            let body = json!({ "id": id, "client_id_mode": client_id_mode });
            let answer = client.call("POST", "/tenants", Some(body)).await?;
            out.say(&answer, |_| {
                format!("tenant {id} added, with an issuing authority of its own")
            })
        }
        TenantCommand::List => {
            let mut answer = client.call("GET", "/tenants", None).await?;
            times(&mut answer, "created", out);
            out.list(
                &answer,
                &[
                    ("TENANT", "/id"),
                    ("CLIENT IDS", "/client_id_mode"),
                    ("DEVICES", "/devices"),
                    ("HOST NAMES", "/hosts"),
                    ("CREATED", "/created"),
                ],
            )
        }
        TenantCommand::Set {
            id,
            client_id_mode,
            policies,
            spaces,
        } => {
            let policies = policies.as_deref().map(read).transpose()?;
            let spaces: Option<Value> = match &spaces {
                Some(path) => Some(
                    serde_json::from_str(&read(path)?)
                        .map_err(|e| Failure::invalid(format!("{}: {e}", path.display())))?,
                ),
                None => None,
            };
            let body = json!({ "client_id_mode": client_id_mode, "policies": policies, "spaces": spaces });
            let answer = client
                .call("PATCH", &format!("/tenants/{id}"), Some(body))
                .await?;
            out.say(&answer, |a| {
                format!("tenant {id} changed{}", sessions(&a["sessions"]))
            })
        }
        TenantCommand::Host(HostCommand::Add { tenant, host }) => {
            let path = format!("/tenants/{tenant}/hosts");
            let answer = client.call("POST", &path, Some(json!({ "host": host }))).await?;
            out.say(&answer, |_| {
                format!(
                    "host name {host} leads to tenant {tenant}\nhint: it must be in server.host_names too, to be in the server certificate"
                )
            })
        }
        TenantCommand::Host(HostCommand::Remove { tenant, host }) => {
            let answer = client
                .call("DELETE", &format!("/tenants/{tenant}/hosts/{host}"), None)
                .await?;
            out.say(&answer, |_| {
                format!("host name {host} no longer leads to tenant {tenant}")
            })
        }
    }
}
