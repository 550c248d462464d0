//! The last step on the line: the device shows its new certificate on the enrolment listener, and with the handshake proves
//! over a fresh challenge that it holds the key (RFC 8446 section 4.4.3). From then on the certificate does not lapse.

use countersign_identity::{DeviceId, Fingerprint, TenantId};
use serde::{Deserialize, Serialize};

/// Where: `POST`, [`Confirm`] in, [`Confirmed`] out.
pub const PATH: &str = "/v1/confirm";

/// A device confirms that the certificate it shows is on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confirm {
    /// Its tenant.
    pub tenant: TenantId,
}

/// The platform knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmed {
    /// The device.
    pub device: DeviceId,
    /// The certificate.
    pub certificate: Fingerprint,
}
