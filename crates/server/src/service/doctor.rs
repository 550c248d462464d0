//! Looks at everything that is known to go wrong.

use countersign_identity::{AnchorState, CertificateFacts, Synchronisation, WhenStale};
use countersign_policy::FactSource;
use serde::{Deserialize, Serialize};

use super::Service;

/// One finding of `doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// Whether it is well.
    pub ok: bool,
    /// It is well, and may not stay so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub warning: bool,
    /// What was found.
    pub detail: String,
    /// What to do, if it is not well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Service {
    /// Looks at everything that is known to go wrong.
    pub fn doctor(&self) -> Vec<Check> {
        let mut checks = Vec::new();
        let mut add = |name: &str, result: Result<String, (String, String)>| {
            let (ok, detail, hint) = match result {
                Ok(detail) => (true, detail, None),
                Err((detail, hint)) => (false, detail, Some(hint)),
            };
            // What is well needs no hint: one that is there warns.
            let (detail, hint) = match detail.split_once("; hint: ") {
                Some((detail, hint)) => (detail.to_owned(), Some(hint.to_owned())),
                None => (detail, hint),
            };
            checks.push(Check {
                name: name.into(),
                ok,
                warning: ok && hint.is_some(),
                detail,
                hint,
            });
        };
        let facts = self.registry.facts();
        add(
            "registry",
            match facts.health() {
                Ok(()) => match self.registry.epoch() {
                    Ok(epoch) => Ok(format!(
                        "{} devices, {} credentials, epoch {}{}",
                        facts.device_count(),
                        facts.credential_count(),
                        epoch.epoch,
                        match epoch.restored_from {
                            Some(_) => format!(", restored at {}", epoch.started),
                            None => String::new(),
                        }
                    )),
                    Err(e) => Err((e.to_string(), "look at the disk".into())),
                },
                Err(e) => Err((
                    e.to_string(),
                    "free disk space, check permissions, then restart the server".into(),
                )),
            },
        );
        add(
            "audit",
            match self.registry.verify_audit() {
                Ok(Ok(n)) => Ok(format!("{n} entries, the chain of hashes holds")),
                Ok(Err(fault)) => Err((
                    fault.to_string(),
                    "compare with a backup: somebody wrote to registry.db".into(),
                )),
                Err(e) => Err((e.to_string(), "look at the disk".into())),
            },
        );
        add(
            "server certificate",
            match self.server_certificate() {
                Ok((chain, _)) => match chain.first().map(|c| CertificateFacts::parse(c)) {
                    Some(Ok(f)) if f.is_valid_at(self.now()) => Ok(format!("valid until {}", f.not_after)),
                    Some(Ok(f)) => Err((
                        format!(
                            "valid from {} to {}, the clock says {}",
                            f.not_before,
                            f.not_after,
                            self.now()
                        ),
                        "set the clock, or replace the certificate".into(),
                    )),
                    _ => Err(("it cannot be read".into(), "replace it".into())),
                },
                Err(e) => Err((e.message, e.hint.unwrap_or_default())),
            },
        );
        add("clock", self.check_clock());
        add("device certificates", self.check_expiry_of_devices());
        add("authorities", self.check_expiry_of_authorities());
        if let Some(ca) = &self.ca {
            add(
                "ca",
                match ca.authorities() {
                    Ok(found) => Ok(format!(
                        "answers at {}, {} authorities",
                        ca.socket().display(),
                        found.len()
                    )),
                    Err(e) => Err((e.message, e.hint.unwrap_or_default())),
                },
            );
        }
        for view in self.registry.authorities().unwrap_or_default() {
            if view.origin == "managed" && view.state != AnchorState::Revoked {
                add(
                    &format!("key of {}", view.id),
                    self.check_authority_key(&view.id).map_err(|e| {
                        let hint = "restore it from your backup, or revoke the authority";
                        (e.message, e.hint.unwrap_or_else(|| hint.into()))
                    }),
                );
            }
        }
        match self.registry.revocation_lists() {
            Ok(all) => {
                for (id, view) in all {
                    let stale = view.is_stale_at(self.now());
                    let due = view
                        .next_update
                        .map_or("never came".into(), |t| format!("next due {t}"));
                    let mut detail = format!(
                        "authority {id}: {} list(s), {} revoked, {due}; when stale: {}",
                        view.lists,
                        view.revoked,
                        view.settings.when_stale.name()
                    );
                    if let Some(fault) = &view.fault {
                        detail.push_str(&format!("; the source fails: {fault}"));
                    }
                    let result = if stale {
                        let effect = match view.settings.when_stale {
                            WhenStale::Refuse => "its devices are refused until a current list is there",
                            WhenStale::LastKnown => "its devices are admitted by what the last list said",
                        };
                        let hint =
                            format!("{effect}: countersign authority crl {id} FILE, or see to its source");
                        Err((format!("{detail}; it is stale"), hint))
                    } else if view.fault.is_some() {
                        Err((detail, "see to the source before the list is stale".into()))
                    } else {
                        Ok(detail)
                    };
                    add("revocation list", result);
                }
            }
            Err(e) => add("revocation list", Err((e.to_string(), "look at the disk".into()))),
        }
        let ledger = self.registry.ledger();
        add(
            "ledger",
            match ledger.dropped() {
                0 => Ok(format!("{} exchanges written since start", ledger.written())),
                n => Err((
                    format!("{n} exchanges were lost since start"),
                    "look at the disk's speed and space".into(),
                )),
            },
        );
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let wanted = self.config.limits.connections_max as u64 + 256;
        add(
            "open files",
            match files {
                Some(n) if n < wanted => Err((
                    format!("{n} may be open, limits.connections_max asks for {wanted}"),
                    "raise the limit (ulimit -n, LimitNOFILE=), or lower limits.connections_max".into(),
                )),
                n => Ok(n.map_or("no limit".into(), |n| format!("{n} may be open"))),
            },
        );
        add(
            "serving",
            match self.gateway() {
                Some(gateway) => Ok(format!(
                    "{}, {} sessions",
                    gateway.local_addr(),
                    gateway.session_count()
                )),
                None => Ok("this data directory is not being served now".into()),
            },
        );
        checks
    }

    fn check_clock(&self) -> Result<String, (String, String)> {
        let clock = self.registry.clock_view();
        if let Some(refusal) = clock.refusal {
            let (detail, hint) = refusal.split_once("; hint: ").unwrap_or((&refusal, ""));
            return Err((detail.to_owned(), hint.to_owned()));
        }
        if clock.synchronisation == Synchronisation::Synchronised.name() {
            return Ok(format!("{}, synchronised", clock.now));
        }
        Ok(format!(
            "{}, {}; hint: let a time service set it (chrony with rtcsync, ntpd or systemd-timesyncd); issuance.require_clock_sync refuses to mint without",
            clock.now,
            match clock.synchronisation.as_str() {
                "unsynchronised" => "not synchronised",
                _ => "nobody can say whether it is synchronised",
            }
        ))
    }
}
