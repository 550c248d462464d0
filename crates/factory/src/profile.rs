//! Certificate profiles: what certificates of one kind hold, declared once, so that a request can only choose among them.

use std::time::Duration;

use countersign_identity::certificate::KeyAlgorithm;
use serde::{Deserialize, Serialize};

mod extensions;
mod names;

pub use extensions::ExtraExtension;
pub use names::{AlternativeName, NameFault, Names, Replaced, SanTemplate};

/// Certificates of one device in force at once, where nothing else is set: whoever has one device's word must not fill the
/// store, nor keep keys in stock.
pub const CERTIFICATES_PER_DEVICE_MAX: u32 = 8;

/// The most alternative names of one certificate.
const SAN_MAX: usize = 8;

/// What a certificate identifies the device for (IEEE 802.1AR-2018 section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProfileKind {
    /// IDevID: the manufacturer's, for the life of the device, to enrol with.
    Factory,
    /// LDevID: the operator's, short and renewed, to connect with.
    #[default]
    Operational,
}

/// From a certificate that is shown to one that is asked for on its word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProfileStep {
    /// To the next one of its own profile: a renewal.
    Same,
    /// From the factory's to an operational one.
    Down,
    /// To another profile of the same kind.
    Sideways,
    /// From an operational one to the factory's, which may be for ever. Never to be made.
    Up,
}

impl ProfileStep {
    /// Between profiles, each by name and kind.
    pub fn between(shown: (&str, ProfileKind), wanted: (&str, ProfileKind)) -> Self {
        match (shown.1, wanted.1) {
            (ProfileKind::Factory, ProfileKind::Operational) => Self::Down,
            (ProfileKind::Operational, ProfileKind::Factory) => Self::Up,
            _ if shown.0 == wanted.0 => Self::Same,
            _ => Self::Sideways,
        }
    }
}

/// A kind of key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyKind {
    /// ECDSA on P-256.
    P256,
    /// ECDSA on P-384.
    P384,
    /// Ed25519.
    Ed25519,
    /// RSA of 2048 bits or more.
    Rsa,
}

impl KeyKind {
    /// The kind of a certificate's key; `None` if it is too weak or of no kind that is accepted.
    pub fn of(key: KeyAlgorithm) -> Option<Self> {
        match key {
            KeyAlgorithm::EcP256 => Some(Self::P256),
            KeyAlgorithm::EcP384 => Some(Self::P384),
            KeyAlgorithm::Ed25519 => Some(Self::Ed25519),
            KeyAlgorithm::Rsa(bits) if bits >= 2048 => Some(Self::Rsa),
            KeyAlgorithm::Rsa(_) | KeyAlgorithm::Other => None,
        }
    }

    /// The name in configuration and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::P256 => "p256",
            Self::P384 => "p384",
            Self::Ed25519 => "ed25519",
            Self::Rsa => "rsa",
        }
    }
}

/// What certificates of a profile hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// `operational` (extKeyUsage clientAuth) or `factory` (no extKeyUsage, as IEEE 802.1AR has it).
    pub kind: ProfileKind,
    /// Validity in days; 0 in a factory profile: 99991231235959Z, no well-defined end (RFC 5280 section 4.1.2.5).
    pub lifetime_days: u32,
    /// The kinds of key that are accepted.
    pub keys: Vec<KeyKind>,
    /// Whether each certificate needs a key that had none before.
    pub new_key: bool,
    /// The subject's organization (O), with `{tenant}` and `{id}`; empty for none. Its common name is always the device id.
    pub organization: String,
    /// The subject's organizational unit (OU), with `{tenant}` and `{id}`; empty for none.
    pub organizational_unit: String,
    /// Whether the device id is the subject's serialNumber too, where it is a PrintableString.
    pub serial_number: bool,
    /// The alternative names.
    pub san: Vec<SanTemplate>,
    /// What `san` replaced.
    #[serde(skip_serializing)]
    pub san_uri: Replaced,
    /// Where revocation lists are (cRLDistributionPoints), with `{authority}`.
    pub crl_urls: Vec<String>,
    /// Where OCSP is answered (authorityInfoAccess), with `{authority}`.
    pub ocsp_urls: Vec<String>,
    /// Where the issuer's certificate is (authorityInfoAccess), with `{authority}`.
    pub ca_issuer_urls: Vec<String>,
    /// Extensions of the operator's own.
    pub extensions: Vec<ExtraExtension>,
    /// Whether its certificates open data sessions; one of a factory profile may be for enrolment alone.
    pub data_sessions: bool,
    /// Whether the server may make the key (EST serverkeygen). The key then travels, and is not kept.
    pub server_keys: bool,
    /// Whether the renewal lane may issue for the key of the expired certificate.
    pub lane_same_key: bool,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            name: "operational".into(),
            kind: ProfileKind::Operational,
            lifetime_days: 90,
            keys: vec![KeyKind::P256, KeyKind::P384, KeyKind::Ed25519, KeyKind::Rsa],
            new_key: false,
            organization: "{tenant}".into(),
            organizational_unit: String::new(),
            serial_number: true,
            san: Vec::new(),
            san_uri: Replaced,
            crl_urls: Vec::new(),
            ocsp_urls: Vec::new(),
            ca_issuer_urls: Vec::new(),
            extensions: Vec::new(),
            data_sessions: true,
            server_keys: false,
            lane_same_key: false,
        }
    }
}

impl Profile {
    /// The profiles that are there from the start: `operational` and `factory`.
    pub fn built_in() -> Vec<Self> {
        vec![
            Self::default(),
            Self {
                name: "factory".into(),
                kind: ProfileKind::Factory,
                lifetime_days: 0,
                ..Self::default()
            },
        ]
    }

    /// How long its certificates last; `None`: for ever.
    pub fn lifetime(&self) -> Option<Duration> {
        (self.lifetime_days > 0).then(|| Duration::from_secs(u64::from(self.lifetime_days) * 86_400))
    }

    /// Checks what types cannot.
    ///
    /// # Errors
    /// What is wrong, for the operator.
    pub fn check(&self) -> Result<(), String> {
        let name_fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if self.name.is_empty() || self.name.len() > 32 || !self.name.bytes().all(name_fits) {
            return Err(format!(
                "{:?} is no profile name: 1 to 32 of a-z 0-9 -",
                self.name
            ));
        }
        if self.lifetime_days == 0 && self.kind != ProfileKind::Factory {
            return Err(format!(
                "profile {}: only factory certificates may be without an end; set lifetime_days",
                self.name
            ));
        }
        if self.lifetime_days > 36_500 {
            return Err(format!("profile {}: lifetime_days is at most 36500", self.name));
        }
        if self.keys.is_empty() {
            return Err(format!(
                "profile {}: keys is empty, so nothing could be issued",
                self.name
            ));
        }
        if self.server_keys && !self.keys.contains(&KeyKind::P256) {
            return Err(format!(
                "profile {}: server_keys makes P-256 keys, and keys does not have p256",
                self.name
            ));
        }
        if !self.data_sessions && self.kind != ProfileKind::Factory {
            return Err(format!(
                "profile {}: data_sessions = false is for factory profiles; operational certificates are what opens data sessions",
                self.name
            ));
        }
        self.check_names()
            .and_then(|()| self.check_extensions())
            .map_err(|what| format!("profile {}: {what}", self.name))
    }

    fn check_names(&self) -> Result<(), String> {
        for (key, template) in [
            ("organization", &self.organization),
            ("organizational_unit", &self.organizational_unit),
        ] {
            names::check_placeholders(key, template, &["{tenant}", "{id}"])?;
            if template.chars().any(char::is_control) || template.trim() != template || template.len() > 256 {
                return Err(format!(
                    "{key} {template:?} is no name: at most 256 bytes, no control characters, no white space at its ends"
                ));
            }
        }
        if self.san.len() > SAN_MAX {
            return Err(format!(
                "san has {} names, and there may be {SAN_MAX}",
                self.san.len()
            ));
        }
        if let Some(n) = (1..self.san.len()).find(|n| self.san[..*n].contains(&self.san[*n])) {
            return Err(format!("san has {:?} twice", self.san[n].to_string()));
        }
        // No purpose is every purpose: with a host's name it could stand for a server.
        let names_host = self.san.iter().any(|san| matches!(san, SanTemplate::Dns(_)));
        if names_host && self.kind == ProfileKind::Factory {
            return Err(
                "a factory certificate names no purpose (extKeyUsage), and with dns: in san it could stand for a server; give operational certificates host names".into(),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
