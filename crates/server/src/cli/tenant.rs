//! `countersign tenant`.

use serde_json::json;

use super::arguments::{HostCommand, TenantCommand};
use super::commands::{sessions, times};
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
        TenantCommand::Set { id, client_id_mode } => {
            let body = json!({ "client_id_mode": client_id_mode });
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
