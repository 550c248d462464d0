//! The tables of the file, each with its defaults and what it comes to.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use countersign_factory::CERTIFICATES_PER_DEVICE_MAX;
use countersign_gateway::{TicketKeys, TicketSettings};
use countersign_identity::TenantId;
use countersign_policy::clones::CloneRules;
use countersign_registry::{ClockRules, IssuanceRules, LedgerLimits};
use serde::{Deserialize, Serialize};

use crate::places::PlacesMax;
use crate::tokens::keys::LIFETIME_MAX;

/// `[issuance]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IssuanceConfig {
    /// For so long a repeated request is answered with the same certificate, in hours.
    pub replay_window_hours: u64,
    /// A certificate that nobody used or confirmed for so long lapses, in days.
    pub lapse_after_days: u64,
    /// After a newer certificate was first used, for so long the old one is still admitted, in hours.
    pub overlap_hours: u64,
    /// Certificates of one device in force at once, by whoever is no operator: 2 or more, or it could not renew. A CA of its own
    /// counts by its own setting.
    pub certificates_per_device_max: u32,
    /// How far the clock may be behind the newest time that is known to have been before nothing is minted, in seconds.
    pub clock_tolerance_s: u64,
    /// Whether nothing is minted either while the kernel does not say that the clock is synchronised.
    pub require_clock_sync: bool,
}

impl Default for IssuanceConfig {
    fn default() -> Self {
        let rules = IssuanceRules::default();
        let clock = ClockRules::default();
        Self {
            replay_window_hours: rules.replay_window.as_secs() / 3600,
            lapse_after_days: rules.lapse_after.as_secs() / 86_400,
            overlap_hours: rules.overlap.as_secs() / 3600,
            certificates_per_device_max: CERTIFICATES_PER_DEVICE_MAX,
            clock_tolerance_s: clock.tolerance.as_secs(),
            require_clock_sync: clock.require_sync,
        }
    }
}

impl IssuanceConfig {
    /// As the registry takes them.
    pub fn to_clock_rules(&self) -> ClockRules {
        ClockRules {
            tolerance: Duration::from_secs(self.clock_tolerance_s),
            require_sync: self.require_clock_sync,
        }
    }

    /// As the registry takes them.
    pub fn to_rules(&self) -> IssuanceRules {
        IssuanceRules {
            replay_window: Duration::from_secs(self.replay_window_hours * 3600),
            lapse_after: Duration::from_secs(self.lapse_after_days * 86_400),
            overlap: Duration::from_secs(self.overlap_hours * 3600),
            certificates_per_device_max: Some(self.certificates_per_device_max),
        }
    }
}

/// `[policy]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyConfig {
    /// A change of policies that would lock out so many of the devices that are admitted now, or more, is refused unless
    /// it is accepted; in percent.
    pub lock_out_percent: u8,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self {
            lock_out_percent: 100,
        }
    }
}

/// `[server]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// This node's name in receipts.
    pub node: String,
    /// The names and addresses that devices connect to: they are in the server certificate.
    pub host_names: Vec<String>,
    /// A server certificate of your own (PEM, leaf first); with `key`. Without it the platform hierarchy issues one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// Its private key (PEM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            node: "node-1".into(),
            host_names: vec!["localhost".into(), "127.0.0.1".into(), "::1".into()],
            certificate: None,
            key: None,
        }
    }
}

/// `[admin]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminConfig {
    /// Where API, metrics and health answer. Loopback only: it has no TLS.
    pub listen: SocketAddr,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 9080)),
        }
    }
}

/// `[clones]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClonesConfig {
    /// The score at which two are suspected to hold one key.
    pub score: u32,
    /// In so many seconds a score is halved.
    pub half_life_s: u64,
    /// Credentials with a score that are remembered.
    pub remembered_max: usize,
}

impl Default for ClonesConfig {
    fn default() -> Self {
        let rules = CloneRules::default();
        Self {
            score: rules.threshold / 1000,
            half_life_s: rules.half_life.as_secs(),
            remembered_max: rules.accounts_max,
        }
    }
}

impl ClonesConfig {
    /// As the gateway takes them.
    pub fn to_rules(&self) -> CloneRules {
        CloneRules {
            threshold: self.score.saturating_mul(1000),
            half_life: Duration::from_secs(self.half_life_s),
            accounts_max: self.remembered_max,
        }
    }
}

/// `[resumption]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ResumptionConfig {
    /// The greatest age of a ticket, counted from the full handshake at its root, in seconds; at most a day.
    pub ticket_age_max_s: u64,
    /// How long one key seals tickets, in seconds.
    pub key_rotation_s: u64,
    /// How many keys, the newest included, open tickets.
    pub keys_kept: usize,
    /// Tenants whose devices never resume.
    pub tenants_off: Vec<TenantId>,
}

impl Default for ResumptionConfig {
    fn default() -> Self {
        let settings = TicketSettings::default();
        Self {
            ticket_age_max_s: settings.age_max.as_secs(),
            key_rotation_s: TicketKeys::ROTATION.as_secs(),
            keys_kept: TicketKeys::KEPT,
            tenants_off: settings.tenants_off,
        }
    }
}

impl ResumptionConfig {
    /// As the gateway takes them.
    pub fn to_settings(&self) -> TicketSettings {
        TicketSettings {
            age_max: Duration::from_secs(self.ticket_age_max_s),
            tenants_off: self.tenants_off.clone(),
        }
    }

    pub(super) fn check(&self) -> Result<(), (&'static str, String, &'static str)> {
        let day = TicketSettings::default().age_max.as_secs();
        if self.ticket_age_max_s == 0 || self.ticket_age_max_s > day {
            return Err((
                "resumption.ticket_age_max_s",
                format!("{} is not between 1 and {day}", self.ticket_age_max_s),
                "to turn resumption off, set resumption = false on the listener",
            ));
        }
        if !(60..=7 * day).contains(&self.key_rotation_s) {
            return Err((
                "resumption.key_rotation_s",
                format!("{} is not between 60 and {}", self.key_rotation_s, 7 * day),
                "leave it out for the default",
            ));
        }
        if !(1..=64).contains(&self.keys_kept) {
            return Err((
                "resumption.keys_kept",
                format!("{} is not between 1 and 64", self.keys_kept),
                "leave it out for the default",
            ));
        }
        Ok(())
    }
}

/// `[ledger]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LedgerConfig {
    /// The most exchanges of known devices kept; the last one and the last refusal of each device come on top.
    pub rows_max: u64,
    /// The most MiB that these take.
    pub mib_max: u64,
    /// The most exchanges of strangers kept: no known device proved its key.
    pub unproven_rows_max: u64,
    /// The most MiB that these take.
    pub unproven_mib_max: u64,
    /// The greatest age, in days.
    pub age_max_days: u64,
    /// Refused exchanges kept per minute of each source address, and of each known device; more are only counted.
    pub refused_per_source_minute_max: u32,
    /// Issuers, authorities, names and so on that causes of one code are told apart by, in each tenant.
    pub subjects_per_code_max: u64,
    /// Hours of causes that are kept, of known devices and of strangers each.
    pub cause_hours_max: u64,
    /// The most sessions kept.
    pub sessions_rows_max: u64,
    /// The most MiB that these take.
    pub sessions_mib_max: u64,
    /// The greatest age of a session since its end, in days.
    pub sessions_age_max_days: u64,
}

/// A day, in seconds.
const DAY_S: u64 = 86_400;

impl Default for LedgerConfig {
    fn default() -> Self {
        let limits = LedgerLimits::default();
        Self {
            rows_max: limits.rows_max,
            mib_max: limits.bytes_max >> 20,
            unproven_rows_max: limits.unproven_rows_max,
            unproven_mib_max: limits.unproven_bytes_max >> 20,
            age_max_days: limits.age_max.as_secs() / DAY_S,
            refused_per_source_minute_max: limits.refused_per_source_minute_max,
            subjects_per_code_max: limits.subjects_per_code_max,
            cause_hours_max: limits.cause_hours_max,
            sessions_rows_max: limits.sessions_rows_max,
            sessions_mib_max: limits.sessions_bytes_max >> 20,
            sessions_age_max_days: limits.sessions_age_max.as_secs() / DAY_S,
        }
    }
}

impl LedgerConfig {
    /// As the registry takes them.
    pub fn to_limits(&self) -> LedgerLimits {
        let mib = |n: u64| n.saturating_mul(1 << 20);
        let days = |n: u64| Duration::from_secs(n.saturating_mul(DAY_S));
        LedgerLimits {
            rows_max: self.rows_max,
            bytes_max: mib(self.mib_max),
            unproven_rows_max: self.unproven_rows_max,
            unproven_bytes_max: mib(self.unproven_mib_max),
            age_max: days(self.age_max_days),
            refused_per_source_minute_max: self.refused_per_source_minute_max,
            subjects_per_code_max: self.subjects_per_code_max,
            cause_hours_max: self.cause_hours_max,
            sessions_rows_max: self.sessions_rows_max,
            sessions_bytes_max: mib(self.sessions_mib_max),
            sessions_age_max: days(self.sessions_age_max_days),
        }
    }
}

/// `[receipts]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReceiptsConfig {
    /// The most receipts kept; the oldest go first.
    pub keep_max: u64,
    /// How long a change waits for the sessions that it ends before its receipt says that some are still open, in seconds.
    pub wait_s: u64,
}

impl Default for ReceiptsConfig {
    fn default() -> Self {
        Self {
            keep_max: countersign_registry::receipt::DEFAULT_MAX,
            wait_s: 5,
        }
    }
}

/// `[enrol]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EnrolConfig {
    /// Connections at once, of each listener.
    pub connections_max: usize,
    /// Those of one source (IPv4 address, IPv6 /64); a quarter of them if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_per_source_max: Option<usize>,
    /// How long a one-time secret is good, in hours.
    pub secret_hours: u64,
    /// When a device that waits for approval is to ask again, in seconds.
    pub retry_after_s: u32,
    /// Whether every answer has base64 in lines of 64 characters; else only clients that say they are libest get them.
    pub base64_lines: bool,
    /// The renewal lane: certificates that expired at most so many days ago may be renewed, once; 0 closes it.
    pub expired_days_max: u32,
    /// Whether a one-time secret may also come as the request's challengePassword, for clients without HTTP
    /// authentication.
    pub challenge_secrets: bool,
    /// Files with more platform roots (PEM) that devices are to pin: those that the platform's certificate will chain to
    /// after a rotation, given out long before it.
    pub platform_roots: Vec<PathBuf>,
}

impl Default for EnrolConfig {
    fn default() -> Self {
        Self {
            connections_max: 256,
            connections_per_source_max: None,
            secret_hours: 72,
            retry_after_s: 60,
            base64_lines: false,
            expired_days_max: 0,
            challenge_secrets: false,
            platform_roots: vec![],
        }
    }
}

impl EnrolConfig {
    /// The places of a listener.
    pub(crate) fn places(&self) -> PlacesMax {
        places("enrol.", self.connections_max, self.connections_per_source_max, 4)
    }
}

/// One source has one part of `parts` if nothing is said.
fn places(prefix: &'static str, all: usize, per_source: Option<usize>, parts: usize) -> PlacesMax {
    PlacesMax {
        all,
        per_source: per_source.unwrap_or(all.div_ceil(parts)),
        prefix,
    }
}

/// `[pki]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PkiConfig {
    /// How long a revocation list or an OCSP answer is good, in hours: 1 to 720. An answer is good for four days at most.
    pub next_update_hours: u64,
    /// Connections at once of each listener of purpose `pki`.
    pub connections_max: usize,
    /// Those of one source (IPv4 address, IPv6 /64); a quarter of them if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_per_source_max: Option<usize>,
}

impl Default for PkiConfig {
    fn default() -> Self {
        Self {
            next_update_hours: 24,
            connections_max: 256,
            connections_per_source_max: None,
        }
    }
}

impl PkiConfig {
    /// The places of a listener.
    pub(crate) fn places(&self) -> PlacesMax {
        places("pki.", self.connections_max, self.connections_per_source_max, 4)
    }
}

/// `[ca]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaConfig {
    /// The socket of a CA that is a process of its own (countersign ca serve): then no key that signs device certificates
    /// is used here. Without it this process is the CA.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// How long an answer of the CA is waited for, in seconds.
    pub timeout_s: u64,
    /// Revocation lists and OCSP answers that are asked of the CA at once; the rest of its connections stay free for issuance.
    pub status_requests_max: usize,
}

impl Default for CaConfig {
    fn default() -> Self {
        Self {
            socket: None,
            timeout_s: 10,
            status_requests_max: 8,
        }
    }
}

/// `[tokens]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TokensConfig {
    /// How long a token is good, in seconds; at most 900, and never longer than the certificate.
    pub lifetime_s: u64,
    /// What tokens name as their issuer, an https URL under which the device port is reached; empty: the first of
    /// server.host_names with the device port.
    pub issuer: String,
    /// Resource servers, by their URIs, for which devices may ask for tokens.
    pub resources: Vec<String>,
    /// For so long a key signs tokens before the next one does, in days.
    pub key_days: u64,
    /// Connections at once, of each listener of purpose services.
    pub service_connections_max: usize,
    /// Those of one source (IPv4 address, IPv6 /64); half of them if not given: services are few.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_connections_per_source_max: Option<usize>,
}

impl Default for TokensConfig {
    fn default() -> Self {
        Self {
            lifetime_s: 600,
            issuer: String::new(),
            resources: vec![],
            key_days: 30,
            service_connections_max: 256,
            service_connections_per_source_max: None,
        }
    }
}

impl TokensConfig {
    /// The places of a listener of purpose `services`.
    pub(crate) fn places(&self) -> PlacesMax {
        let of_source = self.service_connections_per_source_max;
        places("tokens.service_", self.service_connections_max, of_source, 2)
    }

    pub(super) fn check(&self) -> Result<(), (&'static str, String, &'static str)> {
        let lifetime_max = LIFETIME_MAX.as_secs();
        if !(60..=lifetime_max).contains(&self.lifetime_s) {
            let what = format!("{} is not between 60 and {lifetime_max}", self.lifetime_s);
            return Err(("tokens.lifetime_s", what, "a token is minutes long: take 600"));
        }
        if !(1..=366).contains(&self.key_days) {
            let what = format!("{} is not between 1 and 366", self.key_days);
            return Err(("tokens.key_days", what, "leave it out for the default"));
        }
        if self.service_connections_max == 0 {
            let what = "it is 0, so nobody could be served".to_owned();
            return Err((
                "tokens.service_connections_max",
                what,
                "leave it out for the default",
            ));
        }
        let is_url = |text: &str| {
            text.strip_prefix("https://").is_some_and(|rest| {
                !rest.is_empty() && !text.ends_with('/') && text.bytes().all(|b| b.is_ascii_graphic())
            })
        };
        if !self.issuer.is_empty() && (!is_url(&self.issuer) || self.issuer.contains(['?', '#'])) {
            let what = format!(
                "{:?} is no https URL without query and without / at its end",
                self.issuer
            );
            return Err(("tokens.issuer", what, "write https://gate.example.com:8883"));
        }
        if let Some(bad) = self.resources.iter().find(|r| {
            r.is_empty() || r.contains('#') || !r.contains(':') || !r.bytes().all(|b| b.is_ascii_graphic())
        }) {
            let what = format!("{bad:?} is no absolute URI without fragment (RFC 8707)");
            return Err(("tokens.resources", what, "write https://telemetry.example.com"));
        }
        Ok(())
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// "text" or "json".
    pub format: LogFormat,
    /// What is logged, such as "info" or "info,countersign_gateway=debug".
    pub filter: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            filter: "info".into(),
        }
    }
}
