//! Why an attestation is refused.

use std::fmt;

/// Why an attestation is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// A structure cannot be read.
    Malformed,
    /// The challenge is none that was given out here, or not for this device.
    Challenge,
    /// The challenge, or the finished attestation, is too old.
    Expired,
    /// The endorsement key is none.
    EkUnfit,
    /// The endorsement certificate is not of the endorsement key that was sent.
    EkCertificate,
    /// Neither registered, nor certified by an endorsement authority that the tenant trusts.
    EkUnknown,
    /// The endorsement key is another device's.
    EkOfOtherDevice,
    /// The attestation key signs whatever it is given.
    AkUnrestricted,
    /// The attestation key is not held as one must be.
    AkAttributes,
    /// The challenge was not opened: what answers is not the TPM of that endorsement key.
    NotActivated,
    /// The statement does not begin as a TPM's own.
    Magic,
    /// The statement is no certification of a key.
    StatementType,
    /// The statement was made for another challenge.
    Nonce,
    /// The statement is not signed by the attestation key.
    Signature,
    /// The statement certifies another key than the one that was sent.
    KeyName,
    /// The key is not held as it must be.
    KeyAttributes,
    /// Nothing was attested under this token for this device.
    Unknown,
    /// The certificate is asked for another key than the certified one.
    KeyDiffers,
    /// It was used before.
    Replayed,
    /// The attestation alone does not let this device enrol.
    NotEnough,
}

impl Refusal {
    /// All of them, in the order in which they are looked for.
    pub const ALL: [Self; 20] = [
        Self::Malformed,
        Self::Challenge,
        Self::Expired,
        Self::EkUnfit,
        Self::EkCertificate,
        Self::EkUnknown,
        Self::EkOfOtherDevice,
        Self::AkUnrestricted,
        Self::AkAttributes,
        Self::NotActivated,
        Self::Magic,
        Self::StatementType,
        Self::Nonce,
        Self::Signature,
        Self::KeyName,
        Self::KeyAttributes,
        Self::Unknown,
        Self::KeyDiffers,
        Self::Replayed,
        Self::NotEnough,
    ];

    /// The stable code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Malformed => "attestation.malformed",
            Self::Challenge => "attestation.challenge",
            Self::Expired => "attestation.expired",
            Self::EkUnfit => "attestation.ek-unfit",
            Self::EkCertificate => "attestation.ek-certificate",
            Self::EkUnknown => "attestation.ek-unknown",
            Self::EkOfOtherDevice => "attestation.ek-of-other-device",
            Self::AkUnrestricted => "attestation.ak-unrestricted",
            Self::AkAttributes => "attestation.ak-attributes",
            Self::NotActivated => "attestation.not-activated",
            Self::Magic => "attestation.magic",
            Self::StatementType => "attestation.statement-type",
            Self::Nonce => "attestation.nonce",
            Self::Signature => "attestation.signature",
            Self::KeyName => "attestation.key-name",
            Self::KeyAttributes => "attestation.key-attributes",
            Self::Unknown => "attestation.unknown",
            Self::KeyDiffers => "attestation.key-differs",
            Self::Replayed => "attestation.replayed",
            Self::NotEnough => "attestation.not-enough",
        }
    }

    /// What happened.
    pub const fn cause(self) -> &'static str {
        match self {
            Self::Malformed => "a part of the attestation cannot be read",
            Self::Challenge => "the challenge was not given out by this platform for this device",
            Self::Expired => "the time for it is over",
            Self::EkUnfit => "the endorsement key is not of a kind that TPMs have",
            Self::EkCertificate => "the endorsement certificate is not of the endorsement key that was sent",
            Self::EkUnknown => "nobody vouches for the endorsement key",
            Self::EkOfOtherDevice => "the endorsement key is known as another device's",
            Self::AkUnrestricted => {
                "the attestation key is not restricted: it could sign a statement that no TPM made"
            }
            Self::AkAttributes => "the attestation key is not bound to its TPM, or not made for signing",
            Self::NotActivated => {
                "the challenge was not opened: attestation key and endorsement key are not in one TPM"
            }
            Self::Magic => "the statement was not made by a TPM: it does not begin with TPM_GENERATED",
            Self::StatementType => "the statement is no certification of a key",
            Self::Nonce => "the statement was made for another challenge",
            Self::Signature => "the statement is not signed by the attestation key",
            Self::KeyName => "the statement certifies another key than the one that was sent",
            Self::KeyAttributes => {
                "the key is not bound to the TPM, was not made in it, or is for other uses"
            }
            Self::Unknown => "there is no such attestation of this device",
            Self::KeyDiffers => "the certificate is asked for another key than the attested one",
            Self::Replayed => "this attestation was used before",
            Self::NotEnough => "the attestation does not say which device the TPM is in",
        }
    }

    /// What to do.
    pub const fn cure(self) -> &'static str {
        match self {
            Self::Malformed => "send the structures as the TPM wrote them; countersign-agent does",
            Self::Challenge | Self::Expired | Self::Nonce | Self::Replayed | Self::Unknown => {
                "begin anew: POST /v1/attestation/begin"
            }
            Self::EkUnfit => {
                "use an endorsement key by the TCG's templates: RSA 2048 to 4096, P-256 or P-384"
            }
            Self::EkCertificate => {
                "send the certificate of the very endorsement key; countersign-agent reads both"
            }
            Self::EkUnknown => {
                "trust its manufacturer (countersign attestation authority add), or register this very key (countersign attestation key add)"
            }
            Self::EkOfOtherDevice => {
                "look where it belongs (countersign attestation key list); if the board moved: countersign attestation key remove"
            }
            Self::AkUnrestricted | Self::AkAttributes => {
                "make the attestation key restricted, for signing, fixedTPM, fixedParent and sensitiveDataOrigin"
            }
            Self::NotActivated => {
                "attest on the device itself; if it was, its TPM is not the one of the endorsement certificate"
            }
            Self::Magic | Self::StatementType | Self::Signature => {
                "have the TPM certify the key (TPM2_Certify) by the attestation key of the same attestation"
            }
            Self::KeyName => "send the public area of the key that was certified",
            Self::KeyAttributes => {
                "make the key in the TPM: fixedTPM, fixedParent, sensitiveDataOrigin, for signing, not restricted"
            }
            Self::KeyDiffers => "ask for a certificate for the key that was attested, or attest this one",
            Self::NotEnough => {
                "register the endorsement key for the device (countersign attestation key add), or show a secret or a certificate too"
            }
        }
    }

    /// With what exactly was found.
    pub fn because(self, detail: impl Into<String>) -> Refused {
        Refused {
            refusal: self,
            detail: detail.into(),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; hint: {}", self.code(), self.cause(), self.cure())
    }
}

/// A refusal with what exactly was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Which.
    pub refusal: Refusal,
    /// What exactly, for people; may be empty.
    pub detail: String,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        refusal.because("")
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { refusal, detail } = self;
        match detail.as_str() {
            "" => refusal.fmt(f),
            detail => write!(
                f,
                "{}: {} ({detail}); hint: {}",
                refusal.code(),
                refusal.cause(),
                refusal.cure()
            ),
        }
    }
}

impl std::error::Error for Refused {}
