//! Every way a link fails: what happened, what it means, what to do. A device has nobody to ask, so the text must do.

use std::time::Duration;

use countersign_identity::signed::SigningFailed;
use countersign_mqtt::{ReasonCode, Version};
use rustls::{AlertDescription, Error as TlsError};

use crate::identity::IdentityFault;
use crate::keys::KeyStoreFault;

/// The exit code for a message that was not taken: as many wait as may, the disk is full, or it is too large.
pub(crate) const NOT_TAKEN: u8 = 13;

/// Why a link could not be opened, or ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkFault {
    /// The platform cannot be reached.
    #[error("cannot reach {host}:{port}: {source}; hint: check host, port and network")]
    Unreachable {
        /// The host.
        host: String,
        /// The port.
        port: u16,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// We do not trust the platform.
    #[error("the platform is not trusted, the connection was ended: {detail}; hint: {hint}")]
    PlatformNotTrusted {
        /// What is wrong with its certificate.
        detail: String,
        /// What to do.
        hint: &'static str,
    },
    /// The platform refused our certificate. In TLS 1.3 that is learnt on the first read after the handshake.
    #[error(
        "the platform refused this device's certificate with alert {number} ({name}): {meaning}; hint: {hint}"
    )]
    CertificateRefused {
        /// The alert's number.
        number: u8,
        /// The alert's name in the standard.
        name: String,
        /// What it means.
        meaning: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// The platform knows who we are, and refused the session.
    #[error("the platform refused the session with code {code} ({name}){}; hint: {hint}", reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default())]
    SessionRefused {
        /// The reason code, or the return code of 3.1.1.
        code: u8,
        /// Its name in the standard.
        name: &'static str,
        /// The platform's reason string: with Countersign its stable code.
        reason: Option<String>,
        /// What to do.
        hint: &'static str,
    },
    /// A publish or subscribe was refused.
    #[error(
        "the platform refused {what} with code {code} ({name}); hint: a device may use its own topics, devices/ID/…; ask what its policies permit"
    )]
    NotPermitted {
        /// What was tried.
        what: String,
        /// The reason code.
        code: u8,
        /// Its name.
        name: &'static str,
    },
    /// A message is larger than the platform takes. It was not sent: the platform would end the session.
    #[error(
        "the message to {topic} makes a packet of {bytes} bytes, and the platform takes {bytes_max}; hint: send less at a time, or have limits.packet_bytes_max raised there"
    )]
    TooLarge {
        /// Where it was to go.
        topic: String,
        /// The size of its packet.
        bytes: usize,
        /// The largest that the platform takes.
        bytes_max: usize,
    },
    /// The platform ended the session.
    #[error("the platform ended the session{}; hint: ask `countersign explain DEVICE` there", reason.as_ref().map(|r| format!(" ({r})")).unwrap_or_default())]
    Ended {
        /// The reason, if it gave one.
        reason: Option<String>,
    },
    /// The device's own key did not do its part.
    #[error("the device's key cannot be used, {0}")]
    Key(String),
    /// TLS or MQTT was broken by the other side, or the connection was cut.
    #[error("the connection failed: {0}")]
    Broken(String),
}

impl LinkFault {
    /// The exit code of the agent, stable: 3 key not usable, 4 not reachable, 5 platform not trusted, 6 certificate refused, 7 session
    /// refused, 8 not permitted or too large, 9 ended or broken.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Key(_) => 3,
            Self::Unreachable { .. } => 4,
            Self::PlatformNotTrusted { .. } => 5,
            Self::CertificateRefused { .. } => 6,
            Self::SessionRefused { .. } => 7,
            Self::NotPermitted { .. } | Self::TooLarge { .. } => 8,
            Self::Ended { .. } | Self::Broken(_) => 9,
        }
    }

    /// Whether trying again may help without anybody doing anything.
    pub fn is_passing(&self) -> bool {
        match self {
            // A token that is plugged in again.
            Self::Unreachable { .. } | Self::Broken(_) | Self::Ended { .. } | Self::Key(_) => true,
            // 3.1.1: server unavailable. 5: unavailable, busy, shutting down, quota, rate.
            Self::SessionRefused { code, .. } => matches!(code, 3 | 0x88 | 0x89 | 0x8b | 0x97 | 0x9f),
            _ => false,
        }
    }

    /// Sorts what came out of reading or writing TLS.
    pub(crate) fn of_io(e: std::io::Error) -> Self {
        match e.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) {
            Some(error) => Self::of_tls(error),
            None if e.kind() == std::io::ErrorKind::UnexpectedEof => Self::Ended { reason: None },
            None => Self::Broken(e.to_string()),
        }
    }

    pub(crate) fn of_tls(error: &TlsError) -> Self {
        match error {
            TlsError::AlertReceived(alert) => Self::of_alert(*alert),
            TlsError::InvalidCertificate(e) => {
                use rustls::CertificateError as C;
                let hint = match e {
                    C::UnknownIssuer | C::BadSignature => {
                        "the platform root, pinned in platform-root.crt or given with --platform-root, did not issue the platform's certificate: somebody else answers, or the root is another platform's or outdated"
                    }
                    C::Expired | C::ExpiredContext { .. } | C::NotValidYet | C::NotValidYetContext { .. } => {
                        "check this device's clock first, then the platform's certificate"
                    }
                    C::NotValidForName | C::NotValidForNameContext { .. } => {
                        "connect by a name that is in the platform's certificate"
                    }
                    _ => "look at the platform's certificate",
                };
                Self::PlatformNotTrusted {
                    detail: e.to_string(),
                    hint,
                }
            }
            TlsError::Other(other) if other.0.downcast_ref::<SigningFailed>().is_some() => {
                Self::Key(other.0.to_string())
            }
            other => Self::Broken(format!("TLS: {other}")),
        }
    }

    fn of_alert(alert: AlertDescription) -> Self {
        let (meaning, hint) = match alert {
            AlertDescription::CertificateExpired => (
                "this certificate, or one above it, is expired or not yet valid",
                "renew it (countersign-agent renew) if the platform lets expired devices renew; else have a new one issued: countersign-agent enrol --again",
            ),
            AlertDescription::CertificateRevoked => (
                "this certificate was revoked",
                "have a new one issued, if the device is trusted again",
            ),
            AlertDescription::UnknownCA => (
                "no authority registered there issued this certificate",
                "register the authority, or send the intermediate certificates too",
            ),
            AlertDescription::UnsupportedCertificate => (
                "this certificate is not for client authentication",
                "issue it with extended key usage clientAuth",
            ),
            AlertDescription::CertificateRequired => (
                "no certificate was sent",
                "check that the identity folder's certificate and key are used; who has none yet enrols at the port for enrolment, not at the device port",
            ),
            AlertDescription::DecryptError => (
                "the proof of possession failed",
                "check that key and certificate belong together",
            ),
            AlertDescription::UnrecognisedName => (
                "no tenant there has the host name that was asked for",
                "connect to the tenant's own host name",
            ),
            AlertDescription::NoApplicationProtocol => (
                "the application protocol is not served there",
                "connect to the device port",
            ),
            AlertDescription::ProtocolVersion => ("no TLS version in common", "enable TLS 1.3"),
            _ => (
                "the handshake was refused",
                "ask `countersign explain FINGERPRINT` there",
            ),
        };
        Self::CertificateRefused {
            number: u8::from(alert),
            name: format!("{alert:?}"),
            meaning,
            hint,
        }
    }

    pub(crate) fn of_connack(version: Version, code: u8, reason: Option<&str>) -> Self {
        let (name, hint) = match version {
            Version::V311 => (
                countersign_mqtt::reason::connack_v311_name(code),
                match code {
                    1 => "the platform serves MQTT 3.1.1 and 5",
                    2 => "the client id must be the device id",
                    3 => "ask `countersign explain DEVICE` there; it may pass",
                    _ => {
                        "ask `countersign explain DEVICE` there: suspended, unknown, or no policy permits it"
                    }
                },
            ),
            Version::V5 => (
                ReasonCode(code).name(),
                match code {
                    0x85 => "the client id must be the device id",
                    0x88 | 0x89 => "it may pass: try again",
                    _ => "ask `countersign explain DEVICE` there",
                },
            ),
        };
        Self::SessionRefused {
            code,
            name,
            reason: reason.map(str::to_owned),
            hint,
        }
    }
}

/// Why a certificate could not be had.
#[derive(Debug, thiserror::Error)]
pub enum EnrolFault {
    /// The platform could not be reached, or is not trusted.
    #[error(transparent)]
    Link(#[from] LinkFault),
    /// The identity folder.
    #[error(transparent)]
    Identity(#[from] IdentityFault),
    /// The key, on the way to its certificate.
    #[error("the key cannot be used: {0}")]
    Key(KeyStoreFault),
    /// What was given does not do.
    #[error("{0}")]
    Usage(String),
    /// The service did not take a message.
    #[error("{0}")]
    NotTaken(String),
    /// The platform said no.
    #[error("the platform refused the enrolment with HTTP {status}: {text}; hint: {hint}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What it says.
        text: String,
        /// What to do.
        hint: String,
        /// When it may be tried again, if the platform says so.
        retry_after: Option<Duration>,
    },
    /// Somebody is to approve it first.
    #[error(
        "the platform waits for somebody to approve this device; hint: countersign device activate there, then ask again in {retry_after:?}"
    )]
    Waits {
        /// When to ask again.
        retry_after: Duration,
    },
    /// An answer that cannot be used. Nothing was changed.
    #[error(
        "the platform's answer cannot be used: {0}; hint: check that host and port are those of its enrolment listener"
    )]
    Answer(String),
}

impl EnrolFault {
    pub(crate) fn refused(status: u16, text: String, retry_after_s: Option<u64>) -> Self {
        // The platform's own hint, if it gives one, is the better one.
        let (text, own) = match text.split_once("; hint: ") {
            Some((text, hint)) => (text.to_owned(), Some(hint.to_owned())),
            None => (text, None),
        };
        let hint = match status {
            401 => "get a new one-time secret: countersign device secret DEVICE there",
            403 => {
                "the device or its certificate may not enrol now: ask countersign device show DEVICE there"
            }
            404 => "check tenant and profile, and that the port is that of the enrolment listener",
            409 => "give this device a key of its own",
            429 | 503 | 507 => "it may pass: try again",
            _ => "ask the platform's operator: its log has the cause",
        };
        Self::Refused {
            status,
            text,
            hint: own.unwrap_or_else(|| hint.to_owned()),
            retry_after: retry_after_s.map(Duration::from_secs),
        }
    }

    /// The exit code of the agent, stable: those of [`LinkFault::exit_code`], 2 wrong usage, 3 identity folder unusable,
    /// 9 answer unusable, 10 enrolment refused, 11 waits for approval, 13 message not taken.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Link(fault) => fault.exit_code(),
            Self::Identity(_) | Self::Key(_) => 3,
            Self::Usage(_) => 2,
            Self::Answer(_) => 9,
            Self::Refused { .. } => 10,
            Self::Waits { .. } => 11,
            Self::NotTaken(_) => NOT_TAKEN,
        }
    }

    /// Whether trying again may help without anybody doing anything.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Link(fault) => fault.is_passing(),
            Self::Refused { status, .. } => matches!(status, 429 | 500..=599),
            Self::Waits { .. } => true,
            // A token that was pulled out, a TPM that is busy.
            Self::Key(fault) => !matches!(fault, KeyStoreFault::NoTpm),
            // There may be room a little later.
            Self::NotTaken(_) => true,
            Self::Answer(_) | Self::Identity(_) | Self::Usage(_) => false,
        }
    }
}
