//! What is asked and answered over the CA's socket.
//!
//! A frame is a length (4 bytes, big-endian) and so many bytes of JSON. One request, one answer, then perhaps the next.
//! Every request names the version of the protocol; a version that is not known is refused, never guessed at. Unknown
//! fields are refused too: what the CA does not understand, it does not do half.
//!
//! There is no grant in it, and no way to send one: only evidence.

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign_factory::{ProfileKind, RevocationReason};
use countersign_identity::{AuthorityId, DeviceId, TenantId};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// The version of the protocol.
pub const VERSION: u16 = 1;
/// The largest request: a thousand ended certificates, or a request and a chain, with room.
pub const REQUEST_BYTES_MAX: usize = 256 * 1024;
/// The largest answer: a revocation list of a million entries.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The most ended certificates in one request.
pub const ENDED_MAX: usize = 1000;

/// A request as it is sent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// [`VERSION`].
    pub version: u16,
    /// What is asked.
    pub request: Request,
}

/// What can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// What the CA has: authorities and profiles.
    Describe,
    /// A certificate.
    Issue(IssueCall),
    /// Whether the evidence for a certificate holds; nothing is minted.
    Check(IssueCall),
    /// Certificates that the registry ended. They stay ended: there is no way back.
    End {
        /// The authority that issued them.
        authority: AuthorityId,
        /// At most [`ENDED_MAX`].
        certificates: Vec<Ended>,
    },
    /// A revocation list.
    RevocationList {
        /// The authority.
        authority: AuthorityId,
        /// How long it is to be good; the CA has a limit of its own.
        next_update_hours: u32,
    },
    /// An OCSP answer.
    Ocsp {
        /// The OCSPRequest, DER.
        request: Base64,
        /// How long it is to be good; the CA has a limit of its own.
        next_update_hours: u32,
    },
}

/// A certificate is asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssueCall {
    /// The authority that is to issue it.
    pub authority: AuthorityId,
    /// The profile.
    pub profile: String,
    /// The PKCS#10, DER.
    pub request: Base64,
    /// On what evidence.
    pub evidence: Evidence,
}

/// What speaks for a request. Each kind is judged by what the CA itself knows.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Evidence {
    /// A batch that the CA's operator made: an id that fits its pattern, within its quota.
    Batch {
        /// The device.
        device: DeviceId,
        /// The batch; any open one that fits, if none is named.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        batch: Option<String>,
    },
    /// A one-time secret that the CA's operator made.
    Secret {
        /// The device.
        device: DeviceId,
        /// The secret.
        secret: SecretText,
    },
    /// A certificate that the CA issued; the request is for its key, or comes with a proof by its key.
    Certificate {
        /// The certificate, DER.
        certificate: Base64,
        /// [`countersign_factory::renewal_proof`], if the request is for another key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        proof: Option<Base64>,
    },
}

/// A certificate that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ended {
    /// Its serial number, hex.
    pub serial: String,
    /// How.
    pub how: End,
    /// Why, for lists.
    pub reason: RevocationReason,
}

/// How a certificate ended. Each may become a later one in this list, never an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// Never used in time.
    Lapsed,
    /// A newer one is in use.
    Superseded,
    /// Revoked.
    Revoked,
}

impl End {
    /// The name in the store.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lapsed => "lapsed",
            Self::Superseded => "superseded",
            Self::Revoked => "revoked",
        }
    }
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Answer {
    /// To [`Request::Describe`].
    Described {
        /// The CA's authorities.
        authorities: Vec<DescribedAuthority>,
        /// The names of its profiles.
        profiles: Vec<String>,
    },
    /// To [`Request::Issue`]. It is on the CA's disk.
    Issued(IssuedAnswer),
    /// To [`Request::Check`].
    Holds,
    /// To [`Request::End`].
    Ended {
        /// How many changed.
        ended: u64,
        /// How many the CA does not know.
        unknown: u64,
    },
    /// To [`Request::RevocationList`] and [`Request::Ocsp`].
    Signed {
        /// The list or the OCSPResponse, DER.
        der: Base64,
    },
    /// Nothing was done.
    Refused {
        /// Stable: [`super::error::CaError::code`].
        code: String,
        /// As HTTP has it.
        status: u16,
        /// The cause and, after "; hint: ", the cure.
        text: String,
    },
}

/// An authority of the CA.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DescribedAuthority {
    /// Its id.
    pub id: AuthorityId,
    /// The tenant whose devices it vouches for.
    pub tenant: TenantId,
    /// Whether it issues.
    pub issues: bool,
    /// Its certificate, DER.
    pub certificate: Base64,
    /// What stands between it and its root, from below, DER.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub intermediates: Vec<Base64>,
    /// Its root's, DER.
    pub root: Base64,
}

/// A certificate.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuedAnswer {
    /// The certificate, DER.
    pub certificate: Base64,
    /// The authority that issued it: another than was asked, if it was issued before.
    pub authority: AuthorityId,
    /// What it identifies the device for.
    pub kind: ProfileKind,
    /// Whether it had been issued before.
    pub repeated: bool,
}

/// Bytes, base64 in JSON.
#[derive(Clone, PartialEq, Eq)]
pub struct Base64(pub Vec<u8>);

impl std::fmt::Debug for Base64 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Base64({} bytes)", self.0.len())
    }
}

impl Serialize for Base64 {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// A secret: never shown.
#[derive(Clone)]
pub struct SecretText(Zeroizing<String>);

impl Serialize for SecretText {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

impl SecretText {
    /// Takes it over.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The secret itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for SecretText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretText")
    }
}

/// Why a frame was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other side closed between two frames.
    #[error("the connection was closed")]
    Closed,
    /// It is larger than may be.
    #[error("a frame of {0} bytes is too large")]
    TooLarge(usize),
    /// It took too long.
    #[error("no answer in time")]
    Timeout,
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// A stream whose waits can be bounded.
pub trait Timed {
    /// Bounds the next reads and writes.
    ///
    /// # Errors
    /// What the operating system says.
    fn bound(&self, within: Duration) -> std::io::Result<()>;
}

impl Timed for std::os::unix::net::UnixStream {
    fn bound(&self, within: Duration) -> std::io::Result<()> {
        // Zero would mean for ever.
        let within = Some(within.max(Duration::from_millis(1)));
        self.set_read_timeout(within)?;
        self.set_write_timeout(within)
    }
}

fn timed_out(e: std::io::Error) -> FrameError {
    match e.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => FrameError::Timeout,
        _ => FrameError::Io(e),
    }
}

/// Fills `buffer` before the deadline, however slowly the bytes come. How many there were when the stream ended.
fn fill<S: Read + Timed>(stream: &mut S, buffer: &mut [u8], deadline: Instant) -> Result<usize, FrameError> {
    let mut filled = 0;
    while filled < buffer.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(FrameError::Timeout);
        }
        stream.bound(left)?;
        match stream.read(&mut buffer[filled..]) {
            Ok(0) => return Ok(filled),
            Ok(n) => filled += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(timed_out(e)),
        }
    }
    Ok(filled)
}

/// Reads a frame: it may be waited for `idle`, and must then be whole within `whole`.
///
/// # Errors
/// [`FrameError`].
pub fn read_frame<S: Read + Timed>(
    stream: &mut S,
    bytes_max: usize,
    idle: Duration,
    whole: Duration,
) -> Result<Vec<u8>, FrameError> {
    let mut head = [0; 4];
    let begun = fill(stream, &mut head[..1], Instant::now() + idle)?;
    if begun == 0 {
        return Err(FrameError::Closed);
    }
    let deadline = Instant::now() + whole;
    let cut = || FrameError::Io(ErrorKind::UnexpectedEof.into());
    if fill(stream, &mut head[1..], deadline)? < 3 {
        return Err(cut());
    }
    let bytes = u32::from_be_bytes(head) as usize;
    if bytes > bytes_max {
        return Err(FrameError::TooLarge(bytes));
    }
    // Grown as it comes: a length is no reason to take memory.
    let mut body = Vec::new();
    while body.len() < bytes {
        let from = body.len();
        body.resize((from + 64 * 1024).min(bytes), 0);
        let wanted = body.len() - from;
        if fill(stream, &mut body[from..], deadline)? < wanted {
            return Err(cut());
        }
    }
    Ok(body)
}

/// Writes a frame within `whole`.
///
/// # Errors
/// [`FrameError`].
pub fn write_frame<S: Write + Timed>(
    stream: &mut S,
    body: &[u8],
    bytes_max: usize,
    whole: Duration,
) -> Result<(), FrameError> {
    let length = u32::try_from(body.len())
        .ok()
        .filter(|_| body.len() <= bytes_max)
        .ok_or(FrameError::TooLarge(body.len()))?;
    let frame = [&length.to_be_bytes(), body].concat();
    let deadline = Instant::now() + whole;
    let mut written = 0;
    while written < frame.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(FrameError::Timeout);
        }
        stream.bound(left)?;
        match stream.write(&frame[written..]) {
            Ok(0) => return Err(FrameError::Io(ErrorKind::WriteZero.into())),
            Ok(n) => written += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(timed_out(e)),
        }
    }
    Ok(())
}
