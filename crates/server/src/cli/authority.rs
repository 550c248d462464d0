//! `countersign authority`.

use std::path::Path;

use countersign_authority::KeyStore;
use countersign_identity::{AnchorState, AuthorityId};
use countersign_keystore_pkcs11::TokenUri;
use countersign_policy::first_contact::Template;
use serde_json::{Value, json};

use super::arguments::{
    AdmissionMode, AuthorityArguments, AuthorityCommand, AuthorityMoveArguments, ExportHierarchy,
    KeyStoreArguments, KeyStoreKind, WhenStaleArgument,
};
use super::ca_key;
use super::commands::{read, sessions, times};
use super::output::{Output, cell, time};
use crate::client::Client;
use crate::failure::Failure;
use crate::service::as_pem;

pub(super) async fn run(command: AuthorityCommand, client: &Client, out: Output) -> Result<(), Failure> {
    match command {
        AuthorityCommand::List => {
            let mut answer = client.call("GET", "/authorities", None).await?;
            times(&mut answer, "not_after", out);
            out.list(
                &answer,
                &[
                    ("TENANT", "/tenant"),
                    ("AUTHORITY", "/id"),
                    ("ORIGIN", "/origin"),
                    ("STATE", "/state"),
                    ("ADMISSION", "/admission/mode"),
                    ("DEVICE ID IN", "/identity_rule"),
                    ("VALID UNTIL", "/not_after"),
                    ("LIST", "/revocation_list/state"),
                    ("SUBJECT", "/subject"),
                ],
            )
        }
        AuthorityCommand::Register {
            id,
            certificate,
            draft,
            key,
        } => register(client, &id, &certificate, &draft, key.as_deref(), out).await,
        AuthorityCommand::Prove { id, proof } => {
            let body = json!({ "certificate": read(&proof)? });
            let answer = client
                .call("POST", &format!("/authorities/{id}/proof"), Some(body))
                .await?;
            out.say(&answer, |_| {
                format!("authority {id} is active: its devices may be admitted")
            })
        }
        AuthorityCommand::Code { id } => {
            let answer = client
                .call("POST", &format!("/authorities/{id}/code"), None)
                .await?;
            out.say(&answer, |a| how_to_prove(&id, &cell(&a["code"])))
        }
        AuthorityCommand::Create {
            id,
            draft,
            csr,
            factory,
            keys,
        } => {
            let mut body = draft_body(&id, &draft)?;
            body["key_store"] = json!(key_store(keys)?);
            body["origin"] = json!(match (&csr, factory) {
                (Some(_), _) => "requested",
                (None, true) => "factory",
                (None, false) => "managed",
            });
            let answer = client.call("POST", "/authorities", Some(body)).await?;
            if factory {
                return out.say(&answer, |_| {
                    format!(
                        "factory CA {id} is active: it issues stations of tenant {}\nnext: countersign factory station add",
                        draft.tenant
                    )
                });
            }
            let Some(path) = csr else {
                return out.say(&answer, |_| {
                    format!(
                        "authority {id} is active, and issues for tenant {} from now on",
                        draft.tenant
                    )
                });
            };
            write_new(&path, &cell(&answer["request"]))?;
            out.say(&answer, |_| {
                format!(
                    "the request is in {}; the key stays here\nnext: let the external root issue a CA certificate for it (basicConstraints CA, path length 0, keyUsage keyCertSign and cRLSign), then countersign authority install {id} CHAIN",
                    path.display()
                )
            })
        }
        AuthorityCommand::Install { id, chain, draft } => {
            let mut body = draft_body(&id, &draft)?;
            body["origin"] = json!("installed");
            body["certificate"] = json!(read(&chain)?);
            let answer = client.call("POST", "/authorities", Some(body)).await?;
            out.say(&answer, |_| {
                format!(
                    "authority {id} is active, and issues for tenant {} from now on",
                    draft.tenant
                )
            })
        }
        AuthorityCommand::Set {
            id,
            identity_rule,
            admission,
            template,
            leave_out,
        } => {
            let admission = match admission {
                Some(mode) => Some(admission_body(mode, template.as_deref())?),
                None => None,
            };
            let body =
                json!({ "identity_rule": identity_rule, "admission": admission, "leave_out": leave_out });
            let answer = client
                .call("PATCH", &format!("/authorities/{id}"), Some(body))
                .await?;
            out.say(&answer, |a| {
                format!("authority {id} changed{}", sessions(&a["sessions"]))
            })
        }
        AuthorityCommand::Crl {
            id,
            file,
            source,
            interval_s,
            when_stale,
            off,
        } => {
            let path = format!("/authorities/{id}/revocation-list");
            if off {
                let answer = client.call("DELETE", &path, None).await?;
                return out.say(&answer, |a| {
                    format!(
                        "authority {id} is asked for no revocation list any more{}",
                        sessions(&a["sessions"])
                    )
                });
            }
            if source.is_some() || interval_s.is_some() || when_stale.is_some() {
                let body = list_settings(client, &path, source, interval_s, when_stale).await?;
                client.call("PUT", &path, Some(body)).await?;
            }
            if let Some(file) = file {
                let bytes = std::fs::read(&file)
                    .map_err(|e| Failure::invalid(format!("cannot read {}: {e}", file.display())))?;
                let body = json!({ "lists": as_pem(&bytes)? });
                let answer = client.call("POST", &path, Some(body)).await?;
                return out.say(&answer, |a| {
                    format!(
                        "{} list(s) taken, {} here already; {} certificate(s) newly revoked, {} of them registered{}",
                        a["taken"],
                        a["unchanged"],
                        a["newly_revoked"],
                        a["credentials"],
                        sessions(&a["sessions"])
                    )
                });
            }
            let answer = client.call("GET", &path, None).await?;
            out.say(&answer, |a| {
                let mut a = a.clone();
                for key in ["next_update", "checked"] {
                    a[key] = json!(time(&a[key]));
                }
                let mut text = String::new();
                for key in [
                    "state",
                    "source",
                    "interval_s",
                    "lists",
                    "revoked",
                    "number",
                    "next_update",
                    "checked",
                    "fault",
                ] {
                    text.push_str(&format!("{key:<12} {}\n", cell(&a[key])));
                }
                text
            })
        }
        AuthorityCommand::Intermediate { certificate, tenant } => {
            let body = json!({ "certificate": read(&certificate)? });
            let answer = client
                .call("POST", &format!("/tenants/{tenant}/intermediates"), Some(body))
                .await?;
            out.say(&answer, |_| {
                format!("chains of tenant {tenant} are completed with this certificate")
            })
        }
        AuthorityCommand::Dependents { id, limit } => {
            let path = format!("/authorities/{id}/dependents?limit={limit}");
            let answer = client.call("GET", &path, None).await?;
            out.say(&answer, |a| rotation_report(&id, a))
        }
        AuthorityCommand::Retire(which) => go(client, "retire", which, 0, out).await,
        AuthorityCommand::Reopen(which) => go(client, "reopen", which, 0, out).await,
        AuthorityCommand::Close { which, leave_out } => go(client, "close", which, leave_out, out).await,
        AuthorityCommand::Revoke(which) => go(client, "revoke", which, 0, out).await,
        AuthorityCommand::TakeRootOffline { id, out: path } => {
            let api = format!("/authorities/{id}/root-key");
            let answer = client.call("GET", &api, None).await?;
            write_new(&path, &cell(&answer["key"]))?;
            // Deleted only once the other copy is on disk.
            let answer = client.call("DELETE", &api, None).await?;
            out.say(&answer, |_| {
                format!(
                    "the root key of authority {id} is in {} and nowhere else; keep it where no server reaches it",
                    path.display()
                )
            })
        }
        AuthorityCommand::Export { hierarchy, tenant } => {
            let path = match hierarchy {
                ExportHierarchy::Platform => "/authorities/platform".to_owned(),
                ExportHierarchy::Devices => format!("/tenants/{tenant}/device-ca"),
            };
            let answer = client.call("GET", &path, None).await?;
            out.say(&answer, |a| cell(&a["certificate"]))
        }
    }
}

/// Where a key is to be held. Checked here too: the server's answer would come after half the work.
pub(super) fn key_store(keys: KeyStoreArguments) -> Result<KeyStore, Failure> {
    match (keys.key_store, keys.passphrase, keys.pkcs11_uri) {
        (KeyStoreKind::File, None, None) => Ok(KeyStore::File),
        (KeyStoreKind::Encrypted, Some(passphrase), None) => Ok(KeyStore::Encrypted { passphrase }),
        (KeyStoreKind::Pkcs11, None, Some(uri)) => {
            uri.parse::<TokenUri>()
                .map_err(|e| Failure::invalid(e.to_string()))?;
            Ok(KeyStore::Pkcs11 { uri })
        }
        _ => Err(Failure::invalid(
            "the key store and its arguments do not go together; hint: --key-store encrypted --passphrase /PATH, or --key-store pkcs11 --pkcs11-uri URI",
        )),
    }
}

async fn go(
    client: &Client,
    name: &str,
    which: AuthorityMoveArguments,
    leave_out: u64,
    out: Output,
) -> Result<(), Failure> {
    let mut body = json!({ "move": name, "reason": which.reason });
    if name == "close" {
        body["leave_out"] = json!(leave_out);
    }
    let answer = client
        .call("POST", &format!("/authorities/{}/moves", which.id), Some(body))
        .await?;
    out.say(&answer, |a| {
        format!(
            "authority {} is {}{}",
            which.id,
            cell(&a["state"]),
            sessions(&a["sessions"])
        )
    })
}

async fn register(
    client: &Client,
    id: &AuthorityId,
    certificate: &Path,
    draft: &AuthorityArguments,
    key: Option<&Path>,
    out: Output,
) -> Result<(), Failure> {
    // Tried first: a key that cannot be used, or is another CA's, must not leave a half-made registration.
    let certificate_pem = read(certificate)?;
    let key = key.map(|path| ca_key::load(path, &certificate_pem)).transpose()?;
    if let Some(key) = &key {
        key.prove("whether the key is the CA's")?;
    }
    let mut body = draft_body(id, draft)?;
    body["certificate"] = json!(certificate_pem);
    let registered = client.call("POST", "/authorities", Some(body.clone())).await;
    let answer = match (registered, &key) {
        // With its key at hand, one that was registered before is finished in place of being refused.
        (Err(e), Some(key)) if e.status == 409 => match unproven(client, id, draft, key).await? {
            true => again(client, id, body).await?,
            false => return Err(e),
        },
        (answer, _) => answer?,
    };
    let code = cell(&answer["code"]);
    let Some(key) = key else {
        return out.say(&answer, |_| how_to_prove(id, &code));
    };
    let body = json!({ "certificate": key.prove(&code)? });
    let answer = client
        .call("POST", &format!("/authorities/{id}/proof"), Some(body))
        .await?;
    out.say(&answer, |_| {
        format!(
            "authority {id} may vouch for devices of tenant {}: possession of its key is proven",
            draft.tenant
        )
    })
}

/// Whether an authority is this one, registered and never proven.
async fn unproven(
    client: &Client,
    id: &AuthorityId,
    draft: &AuthorityArguments,
    key: &ca_key::CaKey,
) -> Result<bool, Failure> {
    let all = client.call("GET", "/authorities", None).await?;
    let is_it = |a: &Value| {
        a["id"] == json!(id)
            && a["tenant"] == json!(draft.tenant)
            && a["state"] == json!(AnchorState::Unproven)
            && a["fingerprint"] == json!(key.fingerprint())
    };
    Ok(all.as_array().into_iter().flatten().any(is_it))
}

/// Registers an unproven authority as if it were new: as it is asked for now, with a new code.
async fn again(client: &Client, id: &AuthorityId, body: Value) -> Result<Value, Failure> {
    let path = format!("/authorities/{id}");
    let settings = json!({ "identity_rule": body["identity_rule"], "admission": body["admission"] });
    client.call("PATCH", &path, Some(settings)).await?;
    client.call("POST", &format!("{path}/code"), None).await
}

fn rotation_report(id: &AuthorityId, report: &Value) -> String {
    let mut text = format!("{} device(s) depend on authority {id}", report["count"]);
    for (why, count) in report["reasons"].as_object().into_iter().flatten() {
        text.push_str(&format!("\n  {why}: {count}"));
    }
    for (code, count) in report["refused_by_devices"].as_object().into_iter().flatten() {
        text.push_str(&format!(
            "\n{count} exchange(s) were ended by devices that did not say who they are: {code}"
        ));
    }
    for device in report["devices"].as_array().into_iter().flatten() {
        let [id, why, detail] = ["id", "why", "detail"].map(|key| cell(&device[key]));
        text.push_str(&format!("\n{id}  {why}: {detail}"));
    }
    text
}

/// The settings as they are, with what was given in their place.
async fn list_settings(
    client: &Client,
    path: &str,
    source: Option<String>,
    interval_s: Option<u32>,
    when_stale: Option<WhenStaleArgument>,
) -> Result<Value, Failure> {
    let old = match client.call("GET", path, None).await {
        Ok(old) => old,
        Err(e) if e.status == 404 => Value::Null,
        Err(e) => return Err(e),
    };
    let source = match source {
        Some(url) if url.contains("://") => json!(url),
        // The server may run elsewhere in the file system than this command.
        Some(file) => {
            json!(std::path::absolute(&file).map_err(|e| Failure::invalid(format!("{file}: {e}")))?)
        }
        None => old["source"].clone(),
    };
    let by_source = if source.as_str().is_some_and(|s| s.starts_with("http://")) {
        3600
    } else {
        2
    };
    let interval_s = match interval_s {
        Some(n) => json!(n),
        None if old["source"] == source && old["interval_s"].is_u64() => old["interval_s"].clone(),
        None => json!(by_source),
    };
    let when_stale = match when_stale {
        Some(WhenStaleArgument::Refuse) => json!("refuse"),
        Some(WhenStaleArgument::LastKnown) => json!("last-known"),
        None if old["when_stale"].is_string() => old["when_stale"].clone(),
        None => json!("refuse"),
    };
    Ok(json!({ "source": source, "interval_s": interval_s, "when_stale": when_stale }))
}

fn how_to_prove(id: &AuthorityId, code: &str) -> String {
    format!(
        "authority {id} is unproven: it admits nobody yet\n\
         next: let the CA issue a certificate with the common name\n  {code}\n\
         within 24 hours, and show it: countersign authority prove {id} PROOF\n\
         with OpenSSL:\n  \
         openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout /dev/null -subj /CN={code} -out proof.csr\n  \
         openssl x509 -req -in proof.csr -CA CA.crt -CAkey CA.key -days 1 -out proof.crt"
    )
}

fn draft_body(id: &AuthorityId, draft: &AuthorityArguments) -> Result<Value, Failure> {
    Ok(json!({
        "id": id,
        "tenant": draft.tenant,
        "identity_rule": draft.identity_rule,
        "admission": admission_body(draft.admission, draft.template.as_deref())?,
    }))
}

fn admission_body(mode: AdmissionMode, template: Option<&Path>) -> Result<Value, Failure> {
    match (mode, template) {
        (AdmissionMode::RegisteredOnly, None) => Ok(json!({ "mode": "registered-only" })),
        (AdmissionMode::KnownDevice, None) => Ok(json!({ "mode": "known-device" })),
        (AdmissionMode::JustInTime, Some(path)) => {
            let wrong = |e: &dyn std::fmt::Display| Failure::invalid(format!("{}: {e}", path.display()));
            let template: Template = toml::from_str(&read(path)?).map_err(|e| wrong(&e))?;
            let mut body = serde_json::to_value(template).map_err(|e| wrong(&e))?;
            body["mode"] = json!("just-in-time");
            Ok(body)
        }
        (AdmissionMode::JustInTime, None) => Err(Failure::invalid(
            "just-in-time needs a template; hint: --template FILE with id_pattern = \"SN-*\" and quota = 1000",
        )),
        (_, Some(_)) => Err(Failure::invalid(
            "a template goes with just-in-time; hint: --admission just-in-time",
        )),
    }
}

pub(super) fn write_new(path: &Path, text: &str) -> Result<(), Failure> {
    if path.exists() {
        return Err(Failure::invalid(format!(
            "{} exists and is not overwritten; hint: choose another file",
            path.display()
        )));
    }
    countersign_authority::folder::write_private(path, text.as_bytes())?;
    Ok(())
}
