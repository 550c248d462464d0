//! The configuration: one TOML file. Every key has a default, unknown keys are refused, units are in the names.

mod limits;
mod sections;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use countersign_factory::Profile;
use countersign_factory::grant::check_host_name;
use serde::{Deserialize, Serialize};

use crate::listeners::{self, Listener, Purpose};

pub use limits::LimitsConfig;
pub use sections::{
    AdminConfig, CaConfig, ClonesConfig, EnrolConfig, IssuanceConfig, LedgerConfig, LogConfig, LogFormat,
    PkiConfig, PolicyConfig, ReceiptsConfig, ResumptionConfig, ServerConfig, TokensConfig,
};

/// Everything that can be configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The server's names and certificate.
    pub server: ServerConfig,
    /// What is opened, and for whom.
    pub listeners: Vec<Listener>,
    /// The admin listener.
    pub admin: AdminConfig,
    /// What grows has a limit.
    pub limits: LimitsConfig,
    /// When two are suspected to hold one key, and what is done.
    pub clones: ClonesConfig,
    /// Tickets, by which devices resume TLS sessions.
    pub resumption: ResumptionConfig,
    /// The ledger of exchanges.
    pub ledger: LedgerConfig,
    /// What is told of changes that end sessions.
    pub receipts: ReceiptsConfig,
    /// How long things last in issuance.
    pub issuance: IssuanceConfig,
    /// Changes of policies.
    pub policy: PolicyConfig,
    /// Enrolment.
    pub enrol: EnrolConfig,
    /// Revocation lists and answers.
    pub pki: PkiConfig,
    /// The CA, if it is a process of its own.
    pub ca: CaConfig,
    /// Session tokens.
    pub tokens: TokensConfig,
    /// The log.
    pub log: LogConfig,
    /// What certificates hold; the first is the one that is issued unless another is named.
    pub profiles: Vec<Profile>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server: ServerConfig::default(),
            listeners: vec![Listener::devices(SocketAddr::from(([0, 0, 0, 0], 8883)))],
            admin: AdminConfig::default(),
            limits: LimitsConfig::default(),
            clones: ClonesConfig::default(),
            resumption: ResumptionConfig::default(),
            ledger: LedgerConfig::default(),
            receipts: ReceiptsConfig::default(),
            issuance: IssuanceConfig::default(),
            policy: PolicyConfig::default(),
            enrol: EnrolConfig::default(),
            pki: PkiConfig::default(),
            ca: CaConfig::default(),
            tokens: TokensConfig::default(),
            log: LogConfig::default(),
            profiles: Profile::built_in(),
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}; hint: countersign init writes one", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The file is no configuration.
    #[error("{}: {}; hint: countersign config check --config FILE", path.display(), message.trim_end())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        message: String,
    },
    /// A value that cannot be.
    #[error("configuration key {key}: {what}; hint: {hint}")]
    Value {
        /// The key.
        key: &'static str,
        /// What is wrong.
        what: String,
        /// What to do.
        hint: &'static str,
    },
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        let config: Self = toml::from_str(&text).map_err(|e| ConfigError::Malformed {
            path: path.to_owned(),
            message: e.to_string(),
        })?;
        config.check()?;
        Ok(config)
    }

    /// The profiles whose certificates open no data sessions, by name.
    pub fn enrol_only_profiles(&self) -> HashSet<String> {
        let closed = self.profiles.iter().filter(|p| !p.data_sessions);
        closed.map(|p| p.name.clone()).collect()
    }

    /// Checks what types cannot.
    ///
    /// # Errors
    /// [`ConfigError::Value`].
    pub fn check(&self) -> Result<(), ConfigError> {
        let value = |key, what: String, hint| Err(ConfigError::Value { key, what, hint });
        if !self.admin.listen.ip().is_loopback() {
            return value(
                "admin.listen",
                format!(
                    "{} is not a loopback address, and the admin listener has no TLS",
                    self.admin.listen
                ),
                "use 127.0.0.1 or ::1; reach it from elsewhere through an SSH tunnel",
            );
        }
        if let Err(what) = listeners::check(&self.listeners) {
            return value(
                "listeners",
                what,
                "correct the [[listeners]] table; without any, devices connect at 0.0.0.0:8883",
            );
        }
        if let Some(listener) = self
            .listeners
            .iter()
            .find(|l| listeners::clash(l.listen, self.admin.listen))
        {
            return value(
                "admin.listen",
                format!(
                    "it ({}) and listener {} ({}) ask for one address and port",
                    self.admin.listen, listener.name, listener.listen
                ),
                "give one of them another port; 9080 is customary for admin.listen",
            );
        }
        if !(1..=720).contains(&self.pki.next_update_hours) {
            return value(
                "pki.next_update_hours",
                format!("{} is not between 1 and 720", self.pki.next_update_hours),
                "24 is usual: verifiers fetch anew about so often",
            );
        }
        if self.issuance.certificates_per_device_max < 2 {
            return value(
                "issuance.certificates_per_device_max",
                format!("{} is less than 2", self.issuance.certificates_per_device_max),
                "a device that renews has two for a while; leave it out for 8",
            );
        }
        if self.pki.connections_max == 0 {
            return value(
                "pki.connections_max",
                "it is 0, and nobody would be answered".into(),
                "leave it out for 256, or remove the listener",
            );
        }
        for (key, places) in [
            ("enrol.connections_per_source_max", self.enrol.places()),
            ("pki.connections_per_source_max", self.pki.places()),
            ("tokens.service_connections_per_source_max", self.tokens.places()),
        ] {
            if places.all > 0 && places.per_source == 0 {
                return value(
                    key,
                    "it is 0, and nobody would be answered".into(),
                    "leave it out for the default",
                );
            }
        }
        if self.server.host_names.is_empty() {
            return value(
                "server.host_names",
                "it is empty".into(),
                "name the hosts that devices connect to",
            );
        }
        for name in &self.server.host_names {
            if let Err(e) = check_host_name(name) {
                return value(
                    "server.host_names",
                    e.to_string(),
                    "write names such as gate.example.com",
                );
            }
        }
        if self.policy.lock_out_percent > 100 {
            return value(
                "policy.lock_out_percent",
                format!("it is {}, and there are 100", self.policy.lock_out_percent),
                "write 100 to refuse what locks everybody out, 1 to refuse almost any lock-out",
            );
        }
        if let Err((key, what, hint)) = self.resumption.check().and_then(|()| self.tokens.check()) {
            return value(key, what, hint);
        }
        if self.ca.timeout_s == 0 {
            return value(
                "ca.timeout_s",
                "it is 0, so the CA could never answer".into(),
                "leave it out for the default",
            );
        }
        if self.ca.status_requests_max == 0 {
            return value(
                "ca.status_requests_max",
                "it is 0, so there could be no revocation list and no OCSP answer".into(),
                "leave it out for the default",
            );
        }
        if self.server.certificate.is_some() != self.server.key.is_some() {
            return value(
                "server.certificate",
                "certificate and key come together".into(),
                "give both server.certificate and server.key, or neither",
            );
        }
        if let Some(what) = self.profiles.iter().find_map(|p| p.check().err()) {
            return value("profiles", what, "correct the profile");
        }
        let names: HashSet<_> = self.profiles.iter().map(|p| &p.name).collect();
        if names.len() != self.profiles.len() || names.is_empty() {
            return value(
                "profiles",
                "there is none, or two have one name".into(),
                "give each [[profiles]] a name of its own",
            );
        }
        let limits = &self.limits;
        let positive = [
            ("limits.connections_max", limits.connections_max),
            ("limits.handshakes_max", limits.handshakes_max),
            ("limits.tokens_per_device_max", limits.tokens_per_device_max),
            ("limits.tokens_max", limits.tokens_max),
            ("limits.tokens_per_tenant_max", limits.tokens_per_tenant_max),
            (
                "limits.connections_per_source_max",
                limits.connections_per_source_max,
            ),
            (
                "limits.source_connects_per_s",
                limits.source_connects_per_s as usize,
            ),
            (
                "limits.source_connect_burst",
                limits.source_connect_burst as usize,
            ),
            ("limits.sources_max", limits.sources_max),
            ("limits.handshakes_per_s", limits.handshakes_per_s as usize),
            ("limits.handshake_burst", limits.handshake_burst as usize),
            (
                "limits.device_connects_per_minute",
                limits.device_connects_per_minute as usize,
            ),
            ("limits.devices_remembered_max", limits.devices_remembered_max),
            ("limits.connect_bytes_max", limits.connect_bytes_max),
            ("limits.packet_bytes_max", limits.packet_bytes_max),
            ("limits.sessions_per_device_max", limits.sessions_per_device_max),
            ("limits.inflight_max", usize::from(limits.inflight_max)),
            (
                "limits.handshake_timeout_s",
                usize::try_from(limits.handshake_timeout_s).unwrap_or(usize::MAX),
            ),
            (
                "limits.connect_timeout_s",
                usize::try_from(limits.connect_timeout_s).unwrap_or(usize::MAX),
            ),
            (
                "limits.idle_max_s",
                usize::try_from(limits.idle_max_s).unwrap_or(usize::MAX),
            ),
            (
                "limits.session_age_max_s",
                usize::try_from(limits.session_age_max_s).unwrap_or(usize::MAX),
            ),
        ];
        for (key, n) in positive {
            if n == 0 {
                return value(
                    key,
                    "it is 0, so nobody could be served".into(),
                    "leave it out for the default",
                );
            }
        }
        if self.receipts.keep_max == 0 {
            return value(
                "receipts.keep_max",
                "it is 0, so no receipt could be asked for again".into(),
                "leave it out for the default",
            );
        }
        if self.issuance.clock_tolerance_s > 86_400 {
            return value(
                "issuance.clock_tolerance_s",
                "a clock that is more than a day behind is wrong".into(),
                "use at most 86400",
            );
        }
        if self.clones.score < 2 || self.clones.half_life_s == 0 || self.clones.remembered_max == 0 {
            return value(
                "clones.score",
                "at a score below 2 a client that once replaced its own connection would be suspected; with nothing remembered nobody".into(),
                "leave clones.score, clones.half_life_s and clones.remembered_max out for the defaults",
            );
        }
        if limits.proxy_header_timeout_s == 0 || limits.proxy_header_bytes_max < 52 {
            return value(
                "limits.proxy_header_bytes_max",
                "no PROXY protocol header fits: one for TCP over IPv6 has 52 bytes, and takes time".into(),
                "leave it and limits.proxy_header_timeout_s out for the defaults",
            );
        }
        if limits.idle_max_s > 65_535 {
            return value(
                "limits.idle_max_s",
                "MQTT's keep-alive ends at 65535 s".into(),
                "use at most 65535",
            );
        }
        Ok(())
    }

    /// The address of the first listener for devices: what is told where one address is told.
    pub fn device_address(&self) -> SocketAddr {
        self.listeners
            .iter()
            .find(|l| l.purpose == Purpose::Devices)
            .map_or(SocketAddr::from(([0, 0, 0, 0], 0)), |l| l.listen)
    }

    /// Moves the first listener for devices to another address.
    pub fn set_device_address(&mut self, listen: SocketAddr) {
        match self.listeners.iter_mut().find(|l| l.purpose == Purpose::Devices) {
            Some(listener) => listener.listen = listen,
            None => self.listeners.push(Listener::devices(listen)),
        }
    }

    /// As a file with comments, for `init`.
    pub fn to_annotated_toml(&self) -> String {
        let host_names = self
            .server
            .host_names
            .iter()
            .map(|n| format!("{n:?}"))
            .collect::<Vec<_>>()
            .join(", ");
        let ca = match &self.ca.socket {
            None => String::new(),
            Some(socket) => format!(
                "[ca]\n# The CA is a process of its own: countersign ca serve.\nsocket = {}\n\n",
                toml::Value::from(socket.display().to_string())
            ),
        };
        format!(
            r#"# Countersign. Every key may be left out; docs/configuration.md lists them all.
# Check it: countersign config check --data {{this folder}}

# Where devices connect: MQTT and HTTPS over mutual TLS.
[[listeners]]
name = "devices"
purpose = "devices"
listen = "{listen}"

# Where devices enrol (EST). Closed while this is a comment.
# [[listeners]]
# name = "enrol"
# purpose = "enrol"
# listen = "0.0.0.0:8443"

# Where backends ask whether tokens are good (countersign service add). Closed while this is a comment.
# [[listeners]]
# name = "services"
# purpose = "services"
# listen = "0.0.0.0:8444"

[server]
# The names and addresses that devices connect to: they are in the server certificate.
host_names = [{host_names}]

[admin]
# API, metrics and health. Loopback only: it has no TLS.
listen = "{admin}"

{ca}[log]
# "text" or "json"
format = "text"
"#,
            listen = self.device_address(),
            admin = self.admin.listen,
        )
    }
}

#[cfg(test)]
mod tests;
