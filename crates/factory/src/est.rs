//! EST, Enrolment over Secure Transport (RFC 7030, RFC 8951): paths, bodies and answers, without I/O.
//!
//! 1. this module: what a server reads and answers
//! 2. [`client`]: what a device sends, and what it makes of the answers
//! 3. [`Bundle`]: what a device is to trust, and where it connects (ours; EST's `cacerts` cannot tell hierarchies apart)

mod attributes;
mod bundle;
pub mod client;

pub use attributes::csr_attributes;
pub use bundle::{BUNDLE_BYTES_MAX, Bundle, BundleFault, ROOTS_MAX};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use const_oid::ObjectIdentifier;
use countersign_identity::TenantId;

use crate::request::{CertificateRequest, RequestFault};
use crate::tlv::{oid, sequence, tlv};

/// Where EST lives (RFC 7030 section 3.2.2).
pub const BASE: &str = "/.well-known/est/";
/// The largest body that is read, in bytes: a request with an RSA key of 8192 bits is 4 KiB in base64.
pub const BODY_MAX: usize = 16 * 1024;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// The CA certificates; anybody may have them.
    CaCerts,
    /// What a request should hold.
    CsrAttrs,
    /// A first certificate.
    SimpleEnroll,
    /// A new certificate in place of the one that is shown.
    SimpleReenroll,
    /// A certificate for a key that the server makes, where the profile allows it.
    ServerKeyGen,
    /// Full CMC: not offered.
    FullCmc,
}

impl Operation {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "cacerts" => Self::CaCerts,
            "csrattrs" => Self::CsrAttrs,
            "simpleenroll" => Self::SimpleEnroll,
            "simplereenroll" => Self::SimpleReenroll,
            "serverkeygen" => Self::ServerKeyGen,
            "fullcmc" => Self::FullCmc,
            _ => return None,
        })
    }

    /// The last segment of its path.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CaCerts => "cacerts",
            Self::CsrAttrs => "csrattrs",
            Self::SimpleEnroll => "simpleenroll",
            Self::SimpleReenroll => "simplereenroll",
            Self::ServerKeyGen => "serverkeygen",
            Self::FullCmc => "fullcmc",
        }
    }

    /// The only method it has.
    pub const fn method(self) -> &'static str {
        match self {
            Self::CaCerts | Self::CsrAttrs => "GET",
            _ => "POST",
        }
    }
}

/// An EST path: `/.well-known/est/[TENANT[.PROFILE]/]OPERATION`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The tenant; `default` without a label.
    pub tenant: TenantId,
    /// The profile, if one is named.
    pub profile: Option<String>,
    /// The operation.
    pub operation: Operation,
}

impl Target {
    /// Reads a path. `None` if it is no EST path, or names an operation that does not exist.
    pub fn parse(path: &str) -> Option<Self> {
        let (label, name) = split(path.strip_prefix(BASE)?);
        let operation = Operation::named(name)?;
        let (tenant, profile) = match label.and_then(|l| l.split_once('.')) {
            Some((tenant, profile)) => (TenantId::new(tenant).ok()?, Some(profile.to_owned())),
            None => (tenant_of(label)?, None),
        };
        Some(Self {
            tenant,
            profile,
            operation,
        })
    }

    /// The path that [`Target::parse`] reads.
    pub fn path(&self) -> String {
        let name = self.operation.name();
        match &self.profile {
            Some(profile) => format!("{BASE}{}.{profile}/{name}", self.tenant),
            None if self.tenant == TenantId::default_tenant() => format!("{BASE}{name}"),
            None => format!("{BASE}{}/{name}", self.tenant),
        }
    }
}

/// What this platform answers beside EST, for everybody: `/.well-known/countersign/[TENANT/]NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extra {
    /// What a device of the tenant is to trust, and where it connects: a [`Bundle`].
    Bundle(TenantId),
    /// The platform's signed time.
    Time(TenantId),
}

impl Extra {
    /// Where they live.
    pub const BASE: &str = "/.well-known/countersign/";

    /// Reads a path. `None` if it names nothing of it.
    pub fn parse(path: &str) -> Option<Self> {
        let (label, name) = split(path.strip_prefix(Self::BASE)?);
        let tenant = tenant_of(label)?;
        match name {
            "bundle" => Some(Self::Bundle(tenant)),
            "time" => Some(Self::Time(tenant)),
            _ => None,
        }
    }

    /// The path that [`Extra::parse`] reads.
    pub fn path(&self) -> String {
        let (tenant, name) = match self {
            Self::Bundle(tenant) => (tenant, "bundle"),
            Self::Time(tenant) => (tenant, "time"),
        };
        if *tenant == TenantId::default_tenant() {
            format!("{}{name}", Self::BASE)
        } else {
            format!("{}{tenant}/{name}", Self::BASE)
        }
    }
}

/// `[LABEL/]NAME`
fn split(rest: &str) -> (Option<&str>, &str) {
    match rest.split_once('/') {
        Some((label, name)) => (Some(label), name),
        None => (None, rest),
    }
}

fn tenant_of(label: Option<&str>) -> Option<TenantId> {
    label.map_or(Some(TenantId::default_tenant()), |l| TenantId::new(l).ok())
}

/// Reads the body of an enrolment: base64 with white space anywhere (RFC 8951 section 3.1), and, liberally, PEM or DER.
///
/// # Errors
/// [`RequestFault`].
pub fn read_request(body: &[u8]) -> Result<CertificateRequest, RequestFault> {
    if body.starts_with(b"-----") || body.first() == Some(&0x30) {
        return CertificateRequest::parse(body);
    }
    let der = base64_decode(body).ok_or_else(|| RequestFault::Malformed("the body is no base64".into()))?;
    CertificateRequest::parse(&der)
}

/// Base64 (RFC 4648 section 4), white space ignored. `None` if it is none.
fn base64_decode(text: &[u8]) -> Option<Vec<u8>> {
    let bare: Vec<u8> = text
        .iter()
        .copied()
        .filter(|b| !b.is_ascii_whitespace())
        .collect();
    STANDARD.decode(bare).ok()
}

/// How base64 is broken into lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lines {
    /// One line: what strongSwan reads.
    One,
    /// Lines of 64 characters, each ended: what libest reads.
    Broken,
}

/// Base64 of DER, as EST answers.
pub fn base64_encode(der: &[u8], lines: Lines) -> String {
    let text = STANDARD.encode(der);
    match lines {
        Lines::One => text,
        Lines::Broken => {
            let mut out = String::with_capacity(text.len() / 64 * 65 + 65);
            let mut rest = text.as_str();
            while !rest.is_empty() {
                // Base64 is ASCII, so every position is a boundary.
                let (line, after) = rest.split_at(rest.len().min(64));
                out.push_str(line);
                out.push('\n');
                rest = after;
            }
            out
        }
    }
}

const SIGNED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
const DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.1");

/// Certificates as a CMS SignedData without signers, "certs-only" (RFC 5652 section 5.1, RFC 7030 section 4.1.3).
pub fn certs_only(certificates: &[&[u8]]) -> Vec<u8> {
    let signed_data = sequence(&[
        &[0x02, 0x01, 0x01],
        &tlv(0x31, &[]),
        &sequence(&[&oid(DATA)]),
        &tlv(0xa0, certificates),
        &tlv(0x31, &[]),
    ]);
    sequence(&[&oid(SIGNED_DATA), &tlv(0xa0, &[&signed_data])])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_tenant_profile_and_operation() {
        let read = |path: &str| Target::parse(path).map(|t| (t.tenant.to_string(), t.profile, t.operation));
        let some = |tenant: &str, profile: Option<&str>, operation| {
            Some((tenant.to_owned(), profile.map(str::to_owned), operation))
        };
        assert_eq!(
            read("/.well-known/est/cacerts"),
            some("default", None, Operation::CaCerts)
        );
        assert_eq!(
            read("/.well-known/est/acme/simpleenroll"),
            some("acme", None, Operation::SimpleEnroll)
        );
        assert_eq!(
            read("/.well-known/est/acme.short/simplereenroll"),
            some("acme", Some("short"), Operation::SimpleReenroll)
        );
        for path in [
            "/.well-known/est/cacerts",
            "/.well-known/est/acme/simpleenroll",
            "/.well-known/est/acme.short/simplereenroll",
        ] {
            assert_eq!(Target::parse(path).unwrap().path(), path);
        }
        for path in [
            "/.well-known/countersign/bundle",
            "/.well-known/countersign/acme/time",
        ] {
            assert_eq!(Extra::parse(path).unwrap().path(), path);
        }
        assert_eq!(Extra::parse("/.well-known/countersign/devices"), None);
        for bad in [
            "/",
            "/.well-known/est/",
            "/.well-known/est/nothing",
            "/.well-known/est/a/b/cacerts",
            "/.well-known/est/Not%20Good/cacerts",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn base64_comes_back_whatever_the_lines() {
        for length in 0..200 {
            let bytes: Vec<u8> = (0..length).map(|n| (n * 7) as u8).collect();
            for lines in [Lines::One, Lines::Broken] {
                let text = base64_encode(&bytes, lines);
                assert_eq!(base64_decode(text.as_bytes()), Some(bytes.clone()));
                assert!(text.lines().all(|l| lines == Lines::One || l.len() <= 64));
            }
        }
        assert_eq!(
            base64_encode(b"any carnal pleas", Lines::One),
            "YW55IGNhcm5hbCBwbGVhcw=="
        );
        for bad in ["YQ", "YQ=", "Y===", "YQ==YQ==", "Y!==", "YQ==a"] {
            assert_eq!(base64_decode(bad.as_bytes()), None, "{bad}");
        }
    }
}
