//! The configuration: one TOML file. Every key has a default, unknown keys are refused, units are in the names.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use countersign_factory::Profile;
use countersign_factory::grant::check_host_name;
use countersign_gateway::{Limits, TicketKeys, TicketSettings};
use countersign_identity::TenantId;
use countersign_policy::clones::CloneRules;
use countersign_registry::{ClockRules, IssuanceRules, LedgerLimits};
use serde::{Deserialize, Serialize};

use crate::clones::CloneAction;
use crate::listeners::{self, Listener, Purpose};
use crate::tokens::keys::LIFETIME_MAX;

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

macro_rules! limits {
    ($($(#[$doc:meta])* $name:ident: $kind:ty => $field:ident, $to:expr, $from:expr;)+) => {
        /// `[limits]`
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct LimitsConfig { $($(#[$doc])* pub $name: $kind,)+ }

        impl Default for LimitsConfig {
            fn default() -> Self {
                let limits = Limits::default();
                Self { $($name: $from(limits.$field),)+ }
            }
        }

        impl LimitsConfig {
            /// As the gateway takes them.
            pub fn to_limits(&self) -> Limits {
                Limits { $($field: $to(self.$name),)+ }
            }
        }
    };
}

fn same<T>(t: T) -> T {
    t
}

fn seconds(d: Duration) -> u64 {
    d.as_secs()
}

limits! {
    /// Connections held at once.
    connections_max: usize => connections_max, same, same;
    /// Handshakes (accept to the end of TLS, waiting included) under way at once.
    handshakes_max: usize => handshakes_max, same, same;
    /// Connections from one address at once.
    connections_per_source_max: usize => connections_per_source_max, same, same;
    /// Connections that one source may open a second.
    source_connects_per_s: u32 => source_connects_per_s, same, same;
    /// Connections that one source may open at once.
    source_connect_burst: u32 => source_connect_burst, same, same;
    /// Sources that are remembered for their rate.
    sources_max: usize => sources_max, same, same;
    /// Handshakes that are begun a second; others wait.
    handshakes_per_s: u32 => handshakes_per_s, same, same;
    /// Handshakes that are begun at once.
    handshake_burst: u32 => handshake_burst, same, same;
    /// What may wait for its handshake, in bytes.
    handshake_queue_bytes_max: usize => handshake_queue_bytes_max, same, same;
    /// How long a device may wait for its handshake, in seconds.
    handshake_queue_timeout_s: u64 => handshake_queue_timeout, Duration::from_secs, seconds;
    /// Attempts of one device a minute, and at once.
    device_connects_per_minute: u32 => device_connects_per_minute, same, same;
    /// Devices whose attempts are remembered.
    devices_remembered_max: usize => devices_remembered_max, same, same;
    /// Behind balancers, from accept to the whole PROXY protocol header, in seconds.
    proxy_header_timeout_s: u64 => proxy_header_timeout, Duration::from_secs, seconds;
    /// The largest PROXY protocol header, in bytes.
    proxy_header_bytes_max: usize => proxy_header_bytes_max, same, same;
    /// From accept to the end of the TLS handshake, in seconds.
    handshake_timeout_s: u64 => handshake_timeout, Duration::from_secs, seconds;
    /// From the end of the TLS handshake to CONNECT, in seconds.
    connect_timeout_s: u64 => connect_timeout, Duration::from_secs, seconds;
    /// The largest CONNECT packet, in bytes.
    connect_bytes_max: usize => connect_bytes_max, same, same;
    /// The largest packet of an admitted device, in bytes.
    packet_bytes_max: usize => packet_bytes_max, same, same;
    /// The longest keep-alive that is granted, in seconds.
    idle_max_s: u64 => idle_max, Duration::from_secs, seconds;
    /// The longest session before the device must prove itself again, in seconds.
    session_age_max_s: u64 => session_age_max, Duration::from_secs, seconds;
    /// Chains whose signatures are known to hold, so that a device that comes back does not have them verified again.
    verified_chains_max: usize => verified_chains_max, same, same;
    /// Sessions of one device at once.
    sessions_per_device_max: usize => sessions_per_device_max, same, same;
    /// Tokens of one device at once.
    tokens_per_device_max: usize => tokens_per_device_max, same, same;
    /// Tokens of all devices at once.
    tokens_max: usize => tokens_max, same, same;
    /// Tokens of one tenant's devices at once.
    tokens_per_tenant_max: usize => tokens_per_tenant_max, same, same;
    /// Subscriptions of one session.
    subscriptions_max: usize => subscriptions_max, same, same;
    /// Messages waiting for one session.
    outbox_messages_max: usize => outbox_messages_max, same, same;
    /// Bytes waiting for one session.
    outbox_bytes_max: usize => outbox_bytes_max, same, same;
    /// QoS 1 messages of one session that are not yet acknowledged.
    inflight_max: u16 => inflight_max, same, same;
    /// Topics of one session that the ledger names, in each direction; more are counted together.
    session_topics_max: usize => session_topics_max, same, same;
    /// Bytes of the topics that are named so, in each direction.
    session_topic_bytes_max: usize => session_topic_bytes_max, same, same;
    /// How often what a live session sent and received goes to the ledger, in seconds.
    session_report_interval_s: u64 => session_report_interval, Duration::from_secs, seconds;
    /// After a refusal, how long the last words may take, in seconds.
    drain_timeout_s: u64 => drain_timeout, Duration::from_secs, seconds;
    /// How often every live session is compared with the registry's facts, in seconds.
    session_sweep_s: u64 => session_sweep, Duration::from_secs, seconds;
    /// After a refusal, how many bytes of the peer are read and thrown away.
    drain_bytes_max: usize => drain_bytes_max, same, same;
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
    /// What is done then: "alert" or "quarantine".
    pub action: CloneAction,
    /// The same for single tenants.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tenants: BTreeMap<TenantId, CloneAction>,
}

impl Default for ClonesConfig {
    fn default() -> Self {
        let rules = CloneRules::default();
        Self {
            score: rules.threshold / 1000,
            half_life_s: rules.half_life.as_secs(),
            remembered_max: rules.accounts_max,
            action: CloneAction::default(),
            tenants: BTreeMap::new(),
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

    /// What is done about a suspicion in a tenant.
    pub fn action_for(&self, tenant: &TenantId) -> CloneAction {
        self.tenants.get(tenant).copied().unwrap_or(self.action)
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

    fn check(&self) -> Result<(), (&'static str, String, &'static str)> {
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
            secret_hours: 72,
            retry_after_s: 60,
            base64_lines: false,
            expired_days_max: 0,
            challenge_secrets: false,
            platform_roots: vec![],
        }
    }
}

/// `[pki]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PkiConfig {
    /// How long a revocation list or an OCSP answer is good, in hours.
    pub next_update_hours: u64,
}

impl Default for PkiConfig {
    fn default() -> Self {
        Self {
            next_update_hours: 24,
        }
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
}

impl Default for TokensConfig {
    fn default() -> Self {
        Self {
            lifetime_s: 600,
            issuer: String::new(),
            resources: vec![],
            key_days: 30,
            service_connections_max: 256,
        }
    }
}

impl TokensConfig {
    fn check(&self) -> Result<(), (&'static str, String, &'static str)> {
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
        let names: std::collections::HashSet<_> = self.profiles.iter().map(|p| &p.name).collect();
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
mod tests {
    use super::*;

    #[test]
    fn the_file_that_init_writes_is_read_back_as_it_was_meant() {
        let config = Config::default();
        assert_eq!(
            toml::from_str::<Config>(&config.to_annotated_toml()).unwrap(),
            config
        );
        let whole = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<Config>(&whole).unwrap(), config);
        assert_eq!(
            config.limits.to_limits().connections_max,
            Limits::default().connections_max
        );
    }

    #[test]
    fn unknown_keys_and_impossible_values_are_refused() {
        assert!(toml::from_str::<Config>("[server]\nlisten_on = 1").is_err());
        for (text, key) in [
            ("[admin]\nlisten = \"0.0.0.0:9080\"", "admin.listen"),
            ("listeners = []", "listeners"),
            (
                "[[listeners]]\nname = \"a\"\npurpose = \"enrol\"\nlisten = \"127.0.0.1:1\"",
                "listeners",
            ),
            (
                "[[listeners]]\nname = \"a\"\npurpose = \"devices\"\nlisten = \"127.0.0.1:1\"\nclient_certificate = \"optional\"",
                "listeners",
            ),
            (
                "[[listeners]]\nname = \"a\"\npurpose = \"devices\"\nlisten = \"127.0.0.1:1\"\nalpn = []",
                "listeners",
            ),
            (
                "[[listeners]]\nname = \"a\"\npurpose = \"devices\"\nlisten = \"127.0.0.1:1\"\n\
                 [[listeners]]\nname = \"b\"\npurpose = \"pki\"\nlisten = \"127.0.0.1:1\"",
                "listeners",
            ),
            (
                "[[listeners]]\nname = \"a\"\npurpose = \"devices\"\nlisten = \"127.0.0.1:1\"\n\
                 [[listeners]]\nname = \"b\"\npurpose = \"pki\"\nlisten = \"127.0.0.1:2\"\ntls_minimum = \"1.3\"",
                "listeners",
            ),
            (
                "[[listeners]]\nname = \"a\"\npurpose = \"devices\"\nlisten = \"127.0.0.1:1\"\nproxy_from = []",
                "listeners",
            ),
            (
                "[[listeners]]\nname = \"a\"\npurpose = \"devices\"\nlisten = \"127.0.0.1:1\"\n\
                 [[listeners]]\nname = \"b\"\npurpose = \"enrol\"\nlisten = \"127.0.0.1:2\"\nproxy_from = [\"10.0.0.0/8\"]",
                "listeners",
            ),
            ("[clones]\nscore = 1", "clones.score"),
            (
                "[limits]\nproxy_header_bytes_max = 51",
                "limits.proxy_header_bytes_max",
            ),
            (
                "[[listeners]]\nname = \"a\"\npurpose = \"devices\"\nlisten = \"127.0.0.1:1\"\n\
                 [[listeners]]\nname = \"b\"\npurpose = \"enrol\"\nlisten = \"127.0.0.1:2\"\nresumption = true",
                "listeners",
            ),
            ("[server]\nhost_names = []", "server.host_names"),
            ("[policy]\nlock_out_percent = 101", "policy.lock_out_percent"),
            ("[server]\nhost_names = [\"*.example.com\"]", "server.host_names"),
            ("[server]\ncertificate = \"a\"", "server.certificate"),
            ("[[profiles]]\nlifetime_days = 0", "profiles"),
            ("[[profiles]]\nkeys = []", "profiles"),
            ("[[profiles]]\n[[profiles]]", "profiles"),
            ("[limits]\nhandshakes_max = 0", "limits.handshakes_max"),
            (
                "[resumption]\nticket_age_max_s = 86401",
                "resumption.ticket_age_max_s",
            ),
            ("[resumption]\nkey_rotation_s = 59", "resumption.key_rotation_s"),
            ("[resumption]\nkeys_kept = 0", "resumption.keys_kept"),
            ("[limits]\nidle_max_s = 70000", "limits.idle_max_s"),
            ("[receipts]\nkeep_max = 0", "receipts.keep_max"),
            ("[ca]\nstatus_requests_max = 0", "ca.status_requests_max"),
            ("[limits]\ntokens_max = 0", "limits.tokens_max"),
            ("[tokens]\nlifetime_s = 901", "tokens.lifetime_s"),
            ("[tokens]\nkey_days = 0", "tokens.key_days"),
            ("[tokens]\nissuer = \"http://a\"", "tokens.issuer"),
            ("[tokens]\nresources = [\"here\"]", "tokens.resources"),
            (
                "[[listeners]]\nname = \"a\"\npurpose = \"services\"\nlisten = \"127.0.0.1:1\"\nclient_certificate = \"optional\"",
                "listeners",
            ),
            (
                "[issuance]\nclock_tolerance_s = 86401",
                "issuance.clock_tolerance_s",
            ),
        ] {
            let config: Config = toml::from_str(text).unwrap();
            let message = config.check().unwrap_err().to_string();
            assert!(message.contains(key) && message.contains("hint: "), "{message}");
        }
    }
}
