//! The endorsement key (EK) of a TPM and the certificates that its manufacturer left there (TCG EK Credential Profile for
//! TPM Family 2.0). The key cannot sign: it opens challenges, by which the platform knows that another key is of the same
//! TPM.

use std::ops::RangeInclusive;

use tss_esapi::abstraction::ek::create_ek_public_from_default_template_2;
use tss_esapi::abstraction::{AsymmetricAlgorithmSelection, DefaultKey};
use tss_esapi::constants::response_code::Tss2ResponseCodeKind as Kind;
use tss_esapi::handles::{AuthHandle, KeyHandle, ObjectHandle, PersistentTpmHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::key_bits::RsaKeyBits;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{Digest, DigestList, EccParameter, EccPoint, Nonce, Public, PublicKeyRsa};
use tss_esapi::traits::{Marshall, UnMarshall};
use tss_esapi::{Context, Error};

use crate::address::TpmAddress;
use crate::encoding;
use crate::error::TpmError;
use crate::{nv, tpm};

/// Where the chain of the EK certificates is, if it is there (TCG EK Credential Profile): certificates one after the other.
/// One that is longer than an index can be goes on in the next.
const CHAIN: RangeInclusive<u32> = 0x01c0_0100..=0x01c0_01ff;

/// Where programs keep endorsement keys (TCG TPM v2.0 Provisioning Guidance): 0x81010001 has the one for RSA. Where the
/// others are differs: 0x81010002, or 0x81010016 as with swtpm.
const PERSISTENT: RangeInclusive<u32> = 0x8101_0000..=0x8101_00ff;

/// PolicySecret of the endorsement hierarchy, with SHA-384 (TCG EK Credential Profile, appendix B: PolicyA).
const POLICY_A_SHA384: [u8; 48] = [
    0x8b, 0xbf, 0x22, 0x66, 0x53, 0x7c, 0x17, 0x1c, 0xb5, 0x6e, 0x40, 0x3c, 0x4d, 0xc1, 0xd4, 0xb6, 0x4f,
    0x43, 0x26, 0x11, 0xdc, 0x38, 0x6e, 0x6f, 0x53, 0x20, 0x50, 0xc3, 0x27, 0x8c, 0x93, 0x0e, 0x14, 0x3e,
    0x8b, 0xb1, 0x13, 0x38, 0x24, 0xcc, 0xb4, 0x31, 0x05, 0x38, 0x71, 0xc6, 0xdb, 0x53,
];
/// The other branch of PolicyB, with SHA-384 (TCG EK Credential Profile, appendix B: PolicyC).
const POLICY_C_SHA384: [u8; 48] = [
    0xd6, 0x03, 0x2c, 0xe6, 0x1f, 0x2f, 0xb3, 0xc2, 0x40, 0xeb, 0x3c, 0xf6, 0xa3, 0x32, 0x37, 0xef, 0x2b,
    0x6a, 0x16, 0xf4, 0x29, 0x3c, 0x22, 0xb4, 0x55, 0xe2, 0x61, 0xcf, 0xfd, 0x21, 0x7a, 0xd5, 0xb4, 0x94,
    0x7c, 0x2d, 0x73, 0xe6, 0x30, 0x05, 0xee, 0xd2, 0xdc, 0x2b, 0x35, 0x93, 0xd1, 0x65,
];

const MAKE: &str = "make its endorsement key";
const USE: &str = "use its endorsement key";

/// Which standard template (TCG EK Credential Profile, appendix B).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    /// L-1.
    Rsa2048,
    /// L-2.
    P256,
    /// H-3.
    P384,
}

impl Algorithm {
    /// In the order in which they are tried: the one that most TPMs have first.
    const ALL: [Self; 3] = [Self::Rsa2048, Self::P256, Self::P384];

    /// Where the certificate is (TCG EK Credential Profile, sections 2.2.1.4 and 2.2.1.5).
    fn certificate_index(self) -> u32 {
        match self {
            Self::Rsa2048 => 0x01c0_0002,
            Self::P256 => 0x01c0_000a,
            Self::P384 => 0x01c0_0016,
        }
    }

    /// Where the manufacturer says that its key is made otherwise: values for "unique" (a nonce), and a template (TCG EK
    /// Credential Profile, sections 2.2.1.4 and 2.2.1.5).
    fn nonce_index(self) -> Option<u32> {
        match self {
            Self::Rsa2048 => Some(0x01c0_0003),
            Self::P256 => Some(0x01c0_000b),
            Self::P384 => None,
        }
    }

    fn template_index(self) -> u32 {
        match self {
            Self::Rsa2048 => 0x01c0_0004,
            Self::P256 => 0x01c0_000c,
            Self::P384 => 0x01c0_0017,
        }
    }

    fn standard_template(self) -> Result<Public, Error> {
        let algorithm = match self {
            Self::Rsa2048 => AsymmetricAlgorithmSelection::Rsa(RsaKeyBits::Rsa2048),
            Self::P256 => AsymmetricAlgorithmSelection::Ecc(EccCurve::NistP256),
            Self::P384 => AsymmetricAlgorithmSelection::Ecc(EccCurve::NistP384),
        };
        create_ek_public_from_default_template_2(algorithm, DefaultKey)
    }

    fn name_hash(self) -> HashingAlgorithm {
        match self {
            Self::Rsa2048 | Self::P256 => HashingAlgorithm::Sha256,
            Self::P384 => HashingAlgorithm::Sha384,
        }
    }

    /// The template of the key that the certificate is of. `None` if what the manufacturer left is none.
    fn manufacturer_template(
        self,
        context: &mut Context,
        address: &TpmAddress,
    ) -> Result<Option<Public>, TpmError> {
        let template = match nv::content(context, address, self.template_index())? {
            Some(bytes) => Public::unmarshall(&bytes).ok(),
            None => Some(
                self.standard_template()
                    .map_err(|e| tpm::failed(address, MAKE, e))?,
            ),
        };
        let nonce = match self.nonce_index() {
            Some(index) => nv::content(context, address, index)?,
            None => None,
        };
        Ok(match (template, nonce) {
            (Some(template), Some(nonce)) => with_nonce(template, nonce),
            (template, _) => template,
        })
    }

    /// The key as its certificate has it. `None` if it is of another algorithm.
    fn subject_key(self, public: &Public) -> Option<Vec<u8>> {
        match (self, public) {
            (
                Self::Rsa2048,
                Public::Rsa {
                    parameters, unique, ..
                },
            ) => encoding::rsa_key(unique.value(), parameters.exponent().value()),
            (Self::P256, Public::Ecc { unique, .. }) => {
                encoding::point(unique.x().value(), unique.y().value(), 32)
            }
            (Self::P384, Public::Ecc { unique, .. }) => {
                encoding::point(unique.x().value(), unique.y().value(), 48)
            }
            _ => None,
        }
    }
}

/// What is known of a TPM's EK.
pub(crate) struct Endorsement {
    pub(crate) algorithm: Algorithm,
    template: Public,
    /// DER: its own first, then the chain. Empty if there is none of it.
    pub(crate) certificates: Vec<Vec<u8>>,
    /// TPMT_PUBLIC.
    pub(crate) public: Vec<u8>,
}

impl Endorsement {
    /// The first EK that has a certificate, or the RSA one if none has.
    pub(crate) fn find(context: &mut Context, address: &TpmAddress) -> Result<Self, TpmError> {
        let mut faults = Vec::new();
        for algorithm in Algorithm::ALL {
            let index = algorithm.certificate_index();
            let Some(bytes) = nv::content(context, address, index)? else {
                continue;
            };
            // An index may be larger than what is in it.
            let certificate = encoding::first(&bytes).map(|(first, _)| first.to_vec());
            let key = certificate.as_deref().and_then(encoding::certificate_key);
            let (Some(certificate), Some(key)) = (certificate, key) else {
                faults.push(format!("there is no certificate in {index:#x}"));
                continue;
            };
            let is_certified = |public: &Public| algorithm.subject_key(public).as_ref() == Some(&key);
            let Some(template) = algorithm.manufacturer_template(context, address)? else {
                faults.push(format!("beside the certificate in {index:#x} is no template"));
                continue;
            };
            let public = with_key(context, address, &template, is_certified, |_, _, public| {
                Ok(public.clone())
            })?;
            if !is_certified(&public) {
                faults.push(format!("the certificate in {index:#x} is of another key"));
                continue;
            }
            let mut certificates = vec![certificate];
            certificates.extend(chain(context, address)?);
            return Self::new(address, algorithm, template, certificates, &public);
        }
        if !faults.is_empty() {
            return Err(TpmError::Endorsement {
                address: address.clone(),
                cause: faults.join(", "),
            });
        }
        let algorithm = Algorithm::Rsa2048;
        // What is there beside no certificate is nobody's word.
        let template = algorithm
            .standard_template()
            .map_err(|e| tpm::failed(address, MAKE, e))?;
        let public = with_key(
            context,
            address,
            &template,
            |_| true,
            |_, _, public| Ok(public.clone()),
        )?;
        Self::new(address, algorithm, template, Vec::new(), &public)
    }

    fn new(
        address: &TpmAddress,
        algorithm: Algorithm,
        template: Public,
        certificates: Vec<Vec<u8>>,
        public: &Public,
    ) -> Result<Self, TpmError> {
        Ok(Self {
            algorithm,
            template,
            certificates,
            public: public.marshall().map_err(|e| tpm::failed(address, MAKE, e))?,
        })
    }

    /// Gives the key to some work, with a session that lets it be used, and flushes both after it. It takes one slot.
    pub(crate) fn used<T>(
        &self,
        context: &mut Context,
        address: &TpmAddress,
        work: impl FnOnce(&mut Context, KeyHandle, AuthSession) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let is_it = |public: &Public| public.marshall().is_ok_and(|p| p == self.public);
        with_key(context, address, &self.template, is_it, |context, key, public| {
            if !is_it(public) {
                return Err(TpmError::OtherTpm {
                    address: address.clone(),
                    cause: "its endorsement key is another one now".into(),
                });
            }
            authorized(context, address, self.algorithm, |context, session| {
                work(context, key, session)
            })
        })
    }
}

/// What the TPM keeps of the chain.
fn chain(context: &mut Context, address: &TpmAddress) -> Result<Vec<Vec<u8>>, TpmError> {
    let mut bytes = Vec::new();
    for index in tpm::handles(context, address, CHAIN)? {
        bytes.extend(nv::content(context, address, index)?.unwrap_or_default());
    }
    Ok(encoding::all(&bytes))
}

/// Gives the EK to some work: a persistent one that is made by the template and is the wanted one, or else the one that is
/// derived from the template, wanted or not. To derive an RSA key takes many TPMs several seconds.
fn with_key<T>(
    context: &mut Context,
    address: &TpmAddress,
    template: &Public,
    is_wanted: impl Fn(&Public) -> bool,
    work: impl FnOnce(&mut Context, KeyHandle, &Public) -> Result<T, TpmError>,
) -> Result<T, TpmError> {
    for number in tpm::handles(context, address, PERSISTENT)? {
        let (key, public) =
            persistent(context, number).map_err(|e| tpm::failed(address, "read a key that it keeps", e))?;
        if without_unique(&public) == without_unique(template) && is_wanted(&public) {
            return work(context, key, &public);
        }
    }
    let made = tpm::patiently(|| {
        context.create_primary(Hierarchy::Endorsement, template.clone(), None, None, None, None)
    })
    .map_err(|e| refused(address, MAKE, e))?;
    let done = work(context, made.key_handle, &made.out_public);
    // If this fails it is tried again at the end.
    let _ = context.flush_context(made.key_handle.into());
    done
}

fn persistent(context: &mut Context, number: u32) -> Result<(KeyHandle, Public), Error> {
    let handle = TpmHandle::Persistent(PersistentTpmHandle::new(number)?);
    let found: ObjectHandle =
        tpm::patiently(|| context.execute_without_session(|c| c.tr_from_tpm_public(handle)))?;
    let key = KeyHandle::from(found);
    let (public, _, _) = tpm::patiently(|| context.execute_without_session(|c| c.read_public(key)))?;
    Ok((key, public))
}

/// The template with the nonce at the beginning of its "unique".
fn with_nonce(mut template: Public, mut nonce: Vec<u8>) -> Option<Public> {
    match &mut template {
        Public::Rsa { unique, .. } => {
            nonce.resize(unique.len().max(nonce.len()), 0);
            *unique = PublicKeyRsa::try_from(nonce).ok()?;
        }
        Public::Ecc { unique, .. } => {
            nonce.resize(unique.x().len().max(nonce.len()), 0);
            *unique = EccPoint::new(EccParameter::try_from(nonce).ok()?, unique.y().clone());
        }
        Public::KeyedHash { .. } | Public::SymCipher { .. } => return None,
    }
    Some(template)
}

/// What is the same in a template and in a key that was made by it.
fn without_unique(public: &Public) -> Public {
    let mut public = public.clone();
    match &mut public {
        Public::Rsa { unique, .. } => *unique = PublicKeyRsa::default(),
        Public::Ecc { unique, .. } => *unique = EccPoint::default(),
        Public::KeyedHash { .. } | Public::SymCipher { .. } => {}
    }
    public
}

/// Gives a session to some work that satisfies the policy of the EK, and flushes it after it.
///
/// The key of H-3 could be used by its empty password too. But then a TPM that is locked after wrong passwords would refuse
/// it, for it has no noDA; the endorsement hierarchy is not hit by that.
fn authorized<T>(
    context: &mut Context,
    address: &TpmAddress,
    algorithm: Algorithm,
    work: impl FnOnce(&mut Context, AuthSession) -> Result<T, TpmError>,
) -> Result<T, TpmError> {
    let failed = |e: Error| refused(address, USE, e);
    tpm::in_session(context, algorithm.name_hash(), failed, |context, session| {
        satisfied(context, algorithm, session).map_err(failed)?;
        work(context, session)
    })
}

fn satisfied(context: &mut Context, algorithm: Algorithm, session: AuthSession) -> Result<(), Error> {
    let policy = PolicySession::try_from(session)?;
    // With the empty password.
    tpm::patiently(|| {
        context.policy_secret(
            policy,
            AuthHandle::Endorsement,
            Nonce::default(),
            Digest::default(),
            Nonce::default(),
            None,
        )
    })?;
    if algorithm == Algorithm::P384 {
        let mut branches = DigestList::new();
        branches.add(Digest::try_from(POLICY_A_SHA384.as_slice())?)?;
        branches.add(Digest::try_from(POLICY_C_SHA384.as_slice())?)?;
        tpm::patiently(|| context.execute_without_session(|c| c.policy_or(policy, branches.clone())))?;
    }
    Ok(())
}

fn refused(address: &TpmAddress, what: &'static str, error: Error) -> TpmError {
    match tpm::kind(error) {
        Some(Kind::BadAuth | Kind::AuthFail) => TpmError::EndorsementPassword {
            address: address.clone(),
        },
        _ => tpm::failed(address, what, error),
    }
}
