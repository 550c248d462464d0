//! What is asked of a chain.

use const_oid::ObjectIdentifier;

use crate::certificate::{EKU_CLIENT_AUTH, EKU_ENDORSEMENT, EKU_SERVER_AUTH};
use crate::path::INTERMEDIATES_MAX;
use crate::revocation::RevocationList;

/// What a certificate is to be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Purpose {
    /// To authenticate a TLS client: devices.
    #[default]
    Client,
    /// To authenticate a TLS server.
    Server,
    /// To say that a TPM is one: the certificate of its endorsement key, which signs nothing.
    Endorsement,
}

impl Purpose {
    pub(crate) fn usage(self) -> ObjectIdentifier {
        match self {
            Self::Client => EKU_CLIENT_AUTH,
            Self::Server => EKU_SERVER_AUTH,
            Self::Endorsement => EKU_ENDORSEMENT,
        }
    }

    pub(crate) fn lacks(self) -> &'static str {
        match self {
            Self::Client => "extKeyUsage lacks clientAuth",
            Self::Server => "extKeyUsage lacks serverAuth",
            Self::Endorsement => "extKeyUsage lacks tcg-kp-EKCertificate",
        }
    }

    pub(crate) fn authority_lacks(self) -> &'static str {
        match self {
            Self::Client => "the authority's extKeyUsage lacks clientAuth",
            Self::Server => "the authority's extKeyUsage lacks serverAuth",
            Self::Endorsement => "the authority's extKeyUsage lacks tcg-kp-EKCertificate",
        }
    }
}

/// What is asked of a chain. The default is what a device's chain must meet.
#[derive(Debug, Clone, Copy)]
pub struct ChainDemands<'a> {
    /// What for.
    pub purpose: Purpose,
    /// The most intermediates of a path, up to 6.
    pub intermediates_max: usize,
    /// Every certificate of the path must be covered by one of these; `None` asks no list.
    pub lists: Option<&'a [RevocationList]>,
}

impl Default for ChainDemands<'_> {
    fn default() -> Self {
        Self {
            purpose: Purpose::Client,
            intermediates_max: INTERMEDIATES_MAX,
            lists: None,
        }
    }
}
