//! Why a chain is refused.

use super::{CHAIN_BYTES_MAX, CHAIN_CERTIFICATES_MAX};
use crate::id::TenantId;
use crate::timestamp::Timestamp;

/// Why a chain does not lead to a registered, usable anchor. Ordered as the checks are made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainFault {
    /// More certificates or bytes than are read.
    #[error(
        "{certificates} certificates with {bytes} bytes were sent; at most {CHAIN_CERTIFICATES_MAX} and {CHAIN_BYTES_MAX} bytes are read"
    )]
    TooLarge {
        /// How many were sent.
        certificates: usize,
        /// Their bytes together.
        bytes: usize,
    },
    /// Not a certificate, or one with an extension that is critical and unknown.
    #[error("the certificate cannot be read: {0}")]
    Malformed(String),
    /// The leaf is a CA certificate.
    #[error("a CA certificate was presented as a device certificate")]
    CaAsLeaf,
    /// The leaf's subject is its issuer, and nothing of that name is registered.
    #[error("the certificate is self-signed")]
    SelfSigned,
    /// Nothing registered issued it.
    #[error("the issuer {issuer:?} is not registered")]
    UnknownCa {
        /// The issuer for people.
        issuer: String,
    },
    /// An anchor of that name exists but did not sign this.
    #[error("the certificate was not signed by the registered authority {authority}, whose name it bears")]
    BadSignature {
        /// The authority's id.
        authority: String,
    },
    /// Registered, but for another tenant than the server name asked for.
    #[error("the issuer is registered for another tenant than {asked}")]
    ForeignTenant {
        /// The tenant that the server name chose.
        asked: TenantId,
    },
    /// No server name was sent, and more than one tenant has this authority.
    #[error("no server name was sent, and more than one tenant has registered this authority")]
    AmbiguousTenant,
    /// A certificate of the path is past its notAfter.
    #[error("expired on {not_after}")]
    Expired {
        /// The last moment of validity.
        not_after: Timestamp,
    },
    /// A certificate of the path is before its notBefore.
    #[error("not valid before {not_before}")]
    NotYetValid {
        /// The first moment of validity.
        not_before: Timestamp,
    },
    /// extKeyUsage without the purpose, or keyUsage without digitalSignature.
    #[error("the certificate is not for this purpose ({0})")]
    WrongUsage(&'static str),
    /// An issuer of the path may not issue certificates.
    #[error("an issuer of the chain may not issue certificates: {0}")]
    IssuerNotCa(&'static str),
    /// More intermediates than an issuer allows, the anchor's own limit included.
    #[error("the chain is longer than its issuers allow")]
    PathLength,
    /// A name constraint excludes the certificate.
    #[error("a name constraint of an issuer excludes the certificate")]
    NameConstraint,
    /// An issuer demands a certificate policy that the path does not have.
    #[error("an issuer of the chain demands a certificate policy that the chain does not have")]
    Policy,
    /// Its issuer's revocation list names a certificate of the path.
    #[error("{subject:?} with serial {serial} is on its issuer's revocation list")]
    Revoked {
        /// Whose certificate, for people.
        subject: String,
        /// Its serial number.
        serial: String,
    },
    /// No list that may be used says whether a certificate of the path is revoked.
    #[error("no usable revocation list of {issuer:?} covers {subject:?}")]
    RevocationUnknown {
        /// Whose certificate, for people.
        subject: String,
        /// Whose list is missing or stale.
        issuer: String,
    },
    /// The key is too weak or of an unknown kind.
    #[error("the device's key is too weak or of an unknown kind")]
    WeakKey,
    /// A signature of the chain uses an algorithm that is not accepted.
    #[error("a signature in the chain uses an algorithm that is not accepted")]
    SignatureAlgorithm,
    /// The path search hit its bound.
    #[error("the chain is too costly to check")]
    Budget,
    /// The authority itself is past or before its dates.
    #[error("the authority {authority} is outside its own validity, which ended on {not_after}")]
    AnchorExpired {
        /// The authority's id.
        authority: String,
        /// Its last moment of validity.
        not_after: Timestamp,
    },
    /// Nobody has proven yet to hold the authority's key.
    #[error("possession of the key of authority {authority} has not been proven")]
    AuthorityUnproven {
        /// The authority's id.
        authority: String,
    },
    /// The authority is retired.
    #[error("the authority {authority} is retired")]
    AuthorityRetired {
        /// The authority's id.
        authority: String,
    },
    /// The authority is revoked.
    #[error("the authority {authority} is revoked")]
    AuthorityRevoked {
        /// The authority's id.
        authority: String,
    },
}
