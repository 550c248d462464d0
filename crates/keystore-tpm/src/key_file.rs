//! The file of a key in a TPM: `TSS2 PRIVATE KEY`, as tpm2-openssl and the OpenSSL engines for TPMs read and write it
//! ("ASN.1 Specification for TPM 2.0 Key Files", draft-bottomley-tpm2-keys):
//!
//! ```text
//! TPMKey ::= SEQUENCE {
//!   type         OBJECT IDENTIFIER,                             -- 2.23.133.10.1.3: a loadable key
//!   emptyAuth    [0] EXPLICIT BOOLEAN OPTIONAL,                 -- TRUE: no password
//!   policy       [1] EXPLICIT SEQUENCE OF TPMPolicy OPTIONAL,
//!   secret       [2] EXPLICIT OCTET STRING OPTIONAL,
//!   authPolicy   [3] EXPLICIT SEQUENCE OF TPMAuthPolicy OPTIONAL,
//!   description  [4] EXPLICIT UTF8String OPTIONAL,
//!   rsaParent    [5] EXPLICIT BOOLEAN OPTIONAL,
//!   parent       INTEGER,                                       -- 0x40000001, or a persistent handle
//!   pubkey       OCTET STRING,                                  -- TPM2B_PUBLIC
//!   privkey      OCTET STRING }                                 -- TPM2B_PRIVATE: sealed by the parent
//!
//! TPMPolicy ::= SEQUENCE {
//!   commandCode   [0] EXPLICIT INTEGER,                         -- TPM_CC_PolicyPCR: the only one that is used here
//!   commandPolicy [1] EXPLICIT OCTET STRING }                   -- its parameters: TPM2B_DIGEST, TPML_PCR_SELECTION
//! ```
//!
//! Before the key of a policy there are lines with the values of the PCRs, such as `sha256:7=` and 64 digits; who reads PEM
//! passes them over (RFC 7468 section 2).
//!
//! The private part is encrypted and authenticated by the parent, which is in the TPM (TPM 2.0 part 1, section
//! "Protected Storage"). So the file is no secret: without that very TPM it is of no use.

use const_oid::ObjectIdentifier;
use der::asn1::OctetStringRef;
use der::pem::LineEnding;
use der::{AnyRef, Decode, Encode, Sequence, Tag, Tagged};

use crate::error::TpmError;
use crate::pcrs::{POLICY_PCR, PcrPolicy, Pcrs, Values};

const LABEL: &str = "TSS2 PRIVATE KEY";
const BEGIN: &str = "-----BEGIN TSS2 PRIVATE KEY-----";
const END: &str = "-----END TSS2 PRIVATE KEY-----";

/// A file of ours has about 400 bytes; the largest key that the format can hold has less than 8,000.
const FILE_BYTES_MAX: usize = 16 * 1024;

/// id-loadablekey.
const LOADABLE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.10.1.3");
/// id-importablekey: made outside of the TPM.
const IMPORTABLE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.10.1.4");
/// id-sealedkey: data, no key.
const SEALED: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.10.1.5");

/// TPM_RH_OWNER (TPM 2.0 part 2, section "TPM_RH").
const OWNER: u32 = 0x4000_0001;

/// Whether a text is a file of a key in a TPM: by its first line, so that a damaged one is not taken for anything else.
///
/// It needs no TPM, and is there without the feature `tpm` too.
pub fn is_tpm_key(pem: &str) -> bool {
    pem.lines().any(|line| line.trim_end() == BEGIN)
}

/// The PCRs that the key of such a file is bound to; `None` if it is bound to none, or the file cannot be read.
///
/// It needs no TPM, and is there without the feature `tpm` too.
pub fn pcrs_of(pem: &str) -> Option<Pcrs> {
    Some(KeyFile::parse(pem).ok()?.policy?.pcrs)
}

/// Under which key of the TPM a key is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parent {
    /// The primary key of the owner hierarchy by the standard template; the TPM derives it anew when it is asked.
    Owner,
    /// A key that the TPM keeps: 0x81000000 to 0x81ffffff (TPM 2.0 part 2, section "TPM_HT").
    Persistent(u32),
}

impl Parent {
    fn handle(self) -> u32 {
        match self {
            Self::Owner => OWNER,
            Self::Persistent(handle) => handle,
        }
    }
}

/// What such a file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyFile {
    pub(crate) parent: Parent,
    /// TPMT_PUBLIC.
    pub(crate) public: Vec<u8>,
    /// The contents of a TPM2B_PRIVATE.
    pub(crate) private: Vec<u8>,
    /// What the key is bound to.
    pub(crate) policy: Option<PcrPolicy>,
    /// What the PCRs of the policy held when the key was made, if it is known.
    pub(crate) values: Option<Values>,
}

#[derive(Sequence)]
struct TpmPolicyDer<'a> {
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT")]
    command: u32,
    #[asn1(context_specific = "1", tag_mode = "EXPLICIT")]
    parameters: &'a OctetStringRef,
}

#[derive(Sequence)]
struct TpmKeyDer<'a> {
    kind: ObjectIdentifier,
    // Not `bool`: tpm2-openssl writes TRUE as 01, which is BER and not DER.
    #[asn1(context_specific = "0", optional = "true")]
    empty_auth: Option<AnyRef<'a>>,
    #[asn1(context_specific = "1", optional = "true")]
    policy: Option<AnyRef<'a>>,
    #[asn1(context_specific = "2", optional = "true")]
    secret: Option<AnyRef<'a>>,
    #[asn1(context_specific = "3", optional = "true")]
    auth_policy: Option<AnyRef<'a>>,
    #[asn1(context_specific = "4", optional = "true")]
    description: Option<AnyRef<'a>>,
    #[asn1(context_specific = "5", optional = "true")]
    rsa_parent: Option<AnyRef<'a>>,
    parent: u32,
    pubkey: &'a OctetStringRef,
    privkey: &'a OctetStringRef,
}

fn malformed(what: impl std::fmt::Display) -> TpmError {
    TpmError::File(what.to_string())
}

/// BER: everything but 00 is TRUE (X.690 section 8.2). Left out is FALSE.
fn is_true(value: Option<AnyRef<'_>>) -> Result<bool, TpmError> {
    match value {
        None => Ok(false),
        Some(any) if any.tag() == Tag::Boolean && any.value().len() == 1 => Ok(any.value() != [0]),
        Some(_) => Err(malformed("a BOOLEAN in it is none")),
    }
}

/// A TPM2B: two bytes of length, big-endian, and as many bytes (TPM 2.0 part 2, section "Sized Buffers").
fn sized(bytes: &[u8], name: &str) -> Result<Vec<u8>, TpmError> {
    match bytes.split_first_chunk::<2>() {
        Some((size, rest)) if usize::from(u16::from_be_bytes(*size)) == rest.len() && !rest.is_empty() => {
            Ok(rest.to_vec())
        }
        _ => Err(malformed(format!(
            "the length in its {name} is not that of its {name}"
        ))),
    }
}

fn with_size(bytes: &[u8], name: &str) -> Result<Vec<u8>, TpmError> {
    let size =
        u16::try_from(bytes.len()).map_err(|_| malformed(format!("its {name} has more than 65535 bytes")))?;
    Ok([&size.to_be_bytes(), bytes].concat())
}

/// The one command that a policy may have here.
fn policy(statements: AnyRef<'_>) -> Result<PcrPolicy, TpmError> {
    let statements: Vec<TpmPolicyDer<'_>> = statements.decode_as().map_err(malformed)?;
    let of_pcrs = match statements.as_slice() {
        [one] if one.command == POLICY_PCR => PcrPolicy::from_command(one.parameters.as_bytes()),
        _ => None,
    };
    of_pcrs.ok_or_else(|| {
        TpmError::Unsupported(
            "its policy is not one TPM2_PolicyPCR with a digest of SHA-256 and one bank of 24 PCRs: sha256, sha384 or sha512"
                .into(),
        )
    })
}

impl KeyFile {
    /// Reads a file. Text before and after it is passed over.
    ///
    /// # Errors
    /// [`TpmError::File`] if it is none, [`TpmError::Unsupported`] if it asks for what is not done here.
    pub(crate) fn parse(pem: &str) -> Result<Self, TpmError> {
        if pem.len() > FILE_BYTES_MAX {
            return Err(malformed(format!("it has more than {FILE_BYTES_MAX} bytes")));
        }
        let begin = pem
            .find(BEGIN)
            .ok_or_else(|| malformed(format!("{BEGIN} is not in it")))?;
        let text = &pem[begin..];
        let end = text
            .find(END)
            .ok_or_else(|| malformed(format!("{END} is not in it")))?;
        let (_, der) = der::pem::decode_vec(&text.as_bytes()[..end + END.len()]).map_err(malformed)?;
        let read = TpmKeyDer::from_der(&der).map_err(malformed)?;
        let refused = |what: &str| Err(TpmError::Unsupported(what.into()));
        match read.kind {
            LOADABLE => {}
            IMPORTABLE => return refused("it was made outside of the TPM (an importable key)"),
            SEALED => return refused("it is data that was sealed, no key"),
            other => return Err(malformed(format!("{other} is no type of a TPM key"))),
        }
        if read.auth_policy.is_some() {
            return refused("it has a policy that others may sign");
        }
        let policy = read.policy.map(policy).transpose()?;
        if read.secret.is_some() {
            return refused("it was made outside of the TPM (it has a secret for import)");
        }
        if !is_true(read.empty_auth)? {
            return refused("it has a password");
        }
        if is_true(read.rsa_parent)? {
            return refused("its parent is an RSA key that the TPM does not keep");
        }
        let parent = match read.parent {
            // tpm2-openssl reads 0 so.
            OWNER | 0 => Parent::Owner,
            handle if handle >> 24 == 0x81 => Parent::Persistent(handle),
            other => return refused(&format!("its parent is {other:#x}")),
        };
        Ok(Self {
            parent,
            public: sized(read.pubkey.as_bytes(), "public part")?,
            private: sized(read.privkey.as_bytes(), "private part")?,
            values: policy.as_ref().and_then(|policy| policy.values_in(&pem[..begin])),
            policy,
        })
    }

    /// Writes a file.
    ///
    /// # Errors
    /// [`TpmError::File`] if a part is too long for the format.
    pub(crate) fn to_pem(&self) -> Result<String, TpmError> {
        let public = with_size(&self.public, "public part")?;
        let private = with_size(&self.private, "private part")?;
        let command = self.policy.as_ref().map(PcrPolicy::command);
        let policy = match &command {
            Some(parameters) => vec![TpmPolicyDer {
                command: POLICY_PCR,
                parameters: OctetStringRef::new(parameters).map_err(malformed)?,
            }],
            None => Vec::new(),
        };
        let policy = policy.to_der().map_err(malformed)?;
        let written = TpmKeyDer {
            kind: LOADABLE,
            empty_auth: Some(AnyRef::new(Tag::Boolean, &[0xff]).map_err(malformed)?),
            policy: match &command {
                Some(_) => Some(AnyRef::from_der(&policy).map_err(malformed)?),
                None => None,
            },
            secret: None,
            auth_policy: None,
            description: None,
            rsa_parent: None,
            parent: self.parent.handle(),
            pubkey: OctetStringRef::new(&public).map_err(malformed)?,
            privkey: OctetStringRef::new(&private).map_err(malformed)?,
        };
        let der = written.to_der().map_err(malformed)?;
        let pem = der::pem::encode_string(LABEL, LineEnding::LF, &der).map_err(malformed)?;
        Ok(match (&self.policy, &self.values) {
            (Some(policy), Some(values)) => policy.lines(values) + &pem,
            _ => pem,
        })
    }
}

#[cfg(test)]
mod tests;
