//! The record of one connection attempt: the ten stages, what each found, and how it ended.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use countersign_identity::{AuthorityId, DeviceId, Fingerprint, TenantId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::clones::{CloneVerdict, Suspect};
use crate::denial::Denial;
use crate::facts::Generations;
use crate::first_contact::{Answer, Contact};
use crate::session_record::SessionRecord;

/// The source that an address is of, as all that counts by source knows it: the IPv4 address, or the IPv6 /64. One
/// subscriber gets at least that much of IPv6 (RFC 6177), so finer accounts would be no limit at all.
pub fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        v4 @ IpAddr::V4(_) => v4,
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX))),
    }
}

/// The stages of an exchange, in order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// TCP accept and admission control by source.
    Accept,
    /// SNI, ALPN, versions and groups were read.
    ClientHello,
    /// Our chain and proof went out.
    ServerFlight,
    /// The device's chain was checked; answered only after the next stage.
    ClientCertificate,
    /// The device proved that it holds the key.
    CertificateVerify,
    /// Device id and credential were looked up.
    Identify,
    /// Lifecycle and policies decided.
    Policy,
    /// MQTT CONNECT or HTTP request.
    Greet,
    /// The session was indexed, generations read again, and CONNACK sent.
    Grant,
    /// The first publish was accepted by the data plane.
    FirstData,
}

impl Stage {
    /// All stages, in order.
    pub const ALL: [Self; 10] = [
        Self::Accept,
        Self::ClientHello,
        Self::ServerFlight,
        Self::ClientCertificate,
        Self::CertificateVerify,
        Self::Identify,
        Self::Policy,
        Self::Greet,
        Self::Grant,
        Self::FirstData,
    ];

    /// The name in logs, metrics, ledger and diagrams.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::ClientHello => "client-hello",
            Self::ServerFlight => "server-flight",
            Self::ClientCertificate => "client-certificate",
            Self::CertificateVerify => "certificate-verify",
            Self::Identify => "identify",
            Self::Policy => "policy",
            Self::Greet => "greet",
            Self::Grant => "grant",
            Self::FirstData => "first-data",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How a stage ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StageOutcome {
    /// It held.
    #[default]
    Passed,
    /// It held in an earlier exchange, and what it found was checked again: the session was resumed.
    TakenOver,
    /// It ended the exchange.
    Failed,
}

/// One stage of one exchange. Reads `[stage, at_us, took_us, outcome]` too, the last of which may be left out: the ledger has
/// nine of them in each row.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StageRecord {
    /// Which.
    pub stage: Stage,
    /// When it was complete, in microseconds since accept.
    pub at_us: u32,
    /// How long it took, in microseconds, since the stage before was complete (waiting for the peer included).
    pub took_us: u32,
    /// How it ended.
    #[serde(default)]
    pub outcome: StageOutcome,
}

/// Whether the peer proved to hold the key of the certificate it showed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Possession {
    /// CertificateVerify was checked, in this exchange or in the one whose session it resumes: this exchange belongs to the certificate's history.
    Proven,
    /// Anyone can replay a public certificate: this exchange says nothing about its device.
    Unproven,
}

/// How an exchange ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// CONNACK with success was sent.
    Admitted,
    /// We refused; `denial` says why.
    Refused,
    /// The device refused us, by an alert that `denial` explains.
    RefusedByDevice,
    /// The peer went away before an answer.
    Abandoned,
    /// No session: the certificate is for enrolment alone, and that is what the device came for, over HTTPS.
    EnrolmentOnly,
}

impl Outcome {
    /// The name in logs, metrics and ledger.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admitted => "admitted",
            Self::Refused => "refused",
            Self::RefusedByDevice => "refused-by-device",
            Self::Abandoned => "abandoned",
            Self::EnrolmentOnly => "enrolment-only",
        }
    }
}

/// Names one exchange: 64 bits, the start in milliseconds in the upper 42, a counter of the node below.
/// Shown as 16 lower-case hex digits; sorts by time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ExchangeId(u64);

impl ExchangeId {
    /// The `counter`-th exchange (modulo 2^22) that started at `started`.
    pub fn new(started: Timestamp, counter: u32) -> Self {
        let ms = u64::try_from(started.unix_ms()).unwrap_or(0);
        Self((ms << 22) | u64::from(counter & 0x003f_ffff))
    }

    /// When it began.
    pub fn started(self) -> Timestamp {
        Timestamp::from_unix_ms(i64::try_from(self.0 >> 22).unwrap_or(i64::MAX))
    }

    /// From the number a store keeps.
    pub const fn from_u64(n: u64) -> Self {
        Self(n)
    }

    /// As a number for a store.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ExchangeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for ExchangeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ExchangeId {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        if s.len() != 16 {
            return Err("an exchange id has 16 hexadecimal digits".into());
        }
        u64::from_str_radix(s, 16)
            .map(Self)
            .map_err(|_| "an exchange id has 16 hexadecimal digits".into())
    }
}

impl TryFrom<String> for ExchangeId {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

impl From<ExchangeId> for String {
    fn from(id: ExchangeId) -> String {
        id.to_string()
    }
}

/// What is known of the certificate that was shown, whether or not it was believed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ShownCertificate {
    /// SHA-256 of its DER.
    pub fingerprint: Fingerprint,
    /// Its serial number, hex; empty if it could not be parsed.
    pub serial: String,
    /// Its subject for people.
    pub subject: String,
    /// Its issuer for people.
    pub issuer: String,
    /// How many certificates were sent.
    pub chain_length: u8,
}

/// One connection attempt, complete.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExchangeRecord {
    /// Its name.
    pub id: ExchangeId,
    /// When TCP was accepted.
    pub started: Timestamp,
    /// Where it came from.
    pub source: SocketAddr,
    /// The listener's name.
    pub listener: String,
    /// How it ended.
    pub outcome: Outcome,
    /// The stages that were reached, in order.
    pub stages: Vec<StageRecord>,
    /// The tenant, once known.
    pub tenant: Option<TenantId>,
    /// The device, once it was read from a verified certificate.
    pub device: Option<DeviceId>,
    /// The authority that the chain ended in.
    pub authority: Option<AuthorityId>,
    /// The certificate that was shown.
    pub certificate: Option<ShownCertificate>,
    /// Whether its key was proven.
    pub possession: Possession,
    /// Server name, ALPN, TLS version, group, cipher suite, MQTT version, client id … : what the stages found.
    pub facts: Vec<(String, String)>,
    /// Why it was refused.
    pub denial: Option<Denial>,
    /// The policies that determined the decision.
    pub policies: Vec<String>,
    /// The generations it was admitted under.
    pub generations: Option<Generations>,
}

/// Takes records of exchanges. It never blocks and never fails towards the connection: what cannot be kept is counted.
pub trait ExchangeSink: Send + Sync {
    /// Keeps a record, later.
    fn record(&self, exchange: ExchangeRecord);

    /// The first publish of an admitted exchange was accepted: adds stage `first-data` to its record.
    fn first_data(&self, tenant: &TenantId, device: &DeviceId, exchange: ExchangeId, stage: StageRecord);

    /// What a session did until now, or in all if it has ended. A later record of the same session takes the place of
    /// an earlier one.
    fn session(&self, session: SessionRecord);

    /// A credential in state `issued` was used for the first time, over a chain to `authority`; it becomes `active`.
    fn credential_used(&self, fingerprint: Fingerprint, authority: &AuthorityId);

    /// A device proved to hold the key of a sound certificate that is not known: decides what that brings about, keeps
    /// it, and answers once it is on disk and in the facts. Returns at once; the answer may come on any thread.
    fn first_contact(&self, contact: Contact, answer: Answer);

    /// Two seem to hold the key of one credential, and that is what policies chose. Returns at once; told once for each
    /// suspicion.
    fn clone_suspected(&self, _suspect: Suspect, _verdict: CloneVerdict) {}

    /// There is more evidence for a suspicion that was told, and policies have the device quarantined. Returns at once; it
    /// may be told again before it is done.
    fn clone_quarantined(&self, _suspect: Suspect, _verdict: CloneVerdict) {}
}
