//! What a TPM says of itself and of its keys, to be judged by the platform:
//!
//! ```text
//! device                                                     platform
//! begin: EK certificates, EK public, AK public     ------>   is this a TPM that I trust?
//! activate: only the TPM with that EK, and only    <------   a secret for that EK and that AK (TPM2_MakeCredential)
//!           for that AK, can open it: the secret   ------>   so the AK is in that TPM
//! certify: the AK says of a key, with the nonce    ------>   so the key is in that TPM too
//! ```
//!
//! The endorsement key (EK) is known by the manufacturer's certificate, but cannot sign. The attestation key (AK) signs, but
//! only what the TPM says itself.

use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::constants::response_code::Tss2ResponseCodeKind as Kind;
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    Data, Digest, EccScheme, EncryptedSecret, HashScheme, IdObject, Public, SignatureScheme,
    SymmetricDefinitionObject,
};
use tss_esapi::traits::Marshall;
use tss_esapi::{Context, Error};

use crate::address::TpmAddress;
use crate::endorsement::Endorsement;
use crate::error::TpmError;
use crate::key::TpmKey;
use crate::key_file::{KeyFile, Parent};
use crate::tpm;

const PASSWORD: Option<AuthSession> = Some(AuthSession::Password);

/// What a TPM says of itself and of its keys, to be judged by the platform. Made anew for each attestation: a fresh
/// attestation key (AK), not kept.
///
/// It holds no handle and no connection, as [`TpmKey`] does not. Its calls block: on a TPM that keeps no RSA endorsement
/// key at 0x81010001 for several seconds, in [`Attestation::begin`] and again in [`Attestation::activate`], for the key is
/// derived each time.
pub struct Attestation {
    address: TpmAddress,
    endorsement: Endorsement,
    key: KeyFile,
}

impl std::fmt::Debug for Attestation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Attestation({:?}, {} certificates, by {})",
            self.endorsement.algorithm,
            self.endorsement.certificates.len(),
            self.address
        )
    }
}

/// What an attestation key says of another key of its TPM (TPM 2.0 part 3, section "TPM2_Certify").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certified {
    /// TPMT_PUBLIC of the key, marshalled.
    pub public: Vec<u8>,
    /// TPMS_ATTEST: what is signed.
    pub info: Vec<u8>,
    /// TPMT_SIGNATURE, by the AK: ECDSA with SHA-256.
    pub signature: Vec<u8>,
}

impl Attestation {
    /// Finds the TPM's endorsement key with its certificates and makes an attestation key: ECDSA on P-256 with SHA-256,
    /// restricted, fixed to this TPM, under the same parent as [`TpmKey::generate`] has.
    ///
    /// The endorsement key is the first of RSA-2048, P-256 and P-384 that has a certificate, by the templates L-1, L-2 and
    /// H-3 of the TCG EK Credential Profile, or by what the manufacturer left beside the certificate (nonce and template);
    /// RSA-2048 if none has. One that the TPM keeps (0x81010001 and on) is used
    /// instead of deriving it.
    ///
    /// # Errors
    /// [`TpmError::Endorsement`] if there are certificates but no key that one is of, [`TpmError::EndorsementPassword`] or
    /// [`TpmError::OwnerPassword`] if that hierarchy has a password, or another [`TpmError`] with its cure.
    pub fn begin(address: &TpmAddress) -> Result<Self, TpmError> {
        let failed = |e: Error| tpm::failed(address, "make an attestation key", e);
        let template = template().map_err(failed)?;
        tpm::with(address, |context| {
            let endorsement = Endorsement::find(context, address)?;
            let made = tpm::under(context, address, Parent::Owner, |context, parent| {
                tpm::patiently(|| context.create(parent, template.clone(), None, None, None, None))
                    .map_err(failed)
            })?;
            Ok(Self {
                address: address.clone(),
                endorsement,
                key: KeyFile {
                    parent: Parent::Owner,
                    public: made.out_public.marshall().map_err(failed)?,
                    private: made.out_private.value().to_vec(),
                    policy: None,
                    values: None,
                },
            })
        })
    }

    /// The certificates of the endorsement key, in DER: its own first, then what the TPM keeps of its chain
    /// (0x01C00100 and on). Empty if the TPM has none: then it is known by [`Attestation::endorsement_public`] only.
    ///
    /// They are as the TPM gives them: nothing but that the first is of the endorsement key was looked at.
    pub fn endorsement_certificates(&self) -> &[Vec<u8>] {
        &self.endorsement.certificates
    }

    /// TPMT_PUBLIC of the endorsement key, marshalled.
    pub fn endorsement_public(&self) -> &[u8] {
        &self.endorsement.public
    }

    /// TPMT_PUBLIC of the attestation key, marshalled.
    pub fn attestation_public(&self) -> &[u8] {
        &self.key.public
    }

    /// Opens a challenge that was made for this endorsement key and the name of this attestation key (TPM 2.0 part 3,
    /// section "TPM2_ActivateCredential"): the contents of its TPM2B_ID_OBJECT and its TPM2B_ENCRYPTED_SECRET, without the
    /// sizes before them. Gives the secret.
    ///
    /// # Errors
    /// [`TpmError::Challenge`] if it was made for another TPM or another attestation, or is malformed;
    /// [`TpmError::OtherTpm`] if the TPM is not the one where this was begun; or another [`TpmError`] with its cure.
    pub fn activate(&self, credential: &[u8], secret: &[u8]) -> Result<Vec<u8>, TpmError> {
        let address = &self.address;
        let refused = |e: Error| TpmError::Challenge {
            address: address.clone(),
            cause: tpm::cause(e),
        };
        let credential = IdObject::try_from(credential).map_err(refused)?;
        let secret = EncryptedSecret::try_from(secret).map_err(refused)?;
        tpm::with(address, |context| {
            let key = tpm::load(context, address, &self.key)?;
            let opened = self
                .endorsement
                .used(context, address, |context, endorsement, policy| {
                    // The role ADMIN of the AK, which has no adminWithPolicy, and the role USER of the EK.
                    context.execute_with_sessions((PASSWORD, Some(policy), None), |context| {
                        tpm::patiently(|| {
                            context.activate_credential(key, endorsement, credential.clone(), secret.clone())
                        })
                        .map_err(|e| match tpm::kind(e) {
                            // Integrity says that it is for another key or name. A secret for another EK is no OAEP for an RSA
                            // key (Value, Size), and no point for one of another curve.
                            Some(
                                Kind::Integrity
                                | Kind::Value
                                | Kind::Size
                                | Kind::Insufficient
                                | Kind::EccPoint,
                            ) => refused(e),
                            // libtpms, of which software and cloud TPMs are, says Failure of what is no OAEP. A TPM that
                            // has failed indeed does nothing any more (TPM 2.0 part 1, section "Failure Mode").
                            Some(Kind::Failure) if works(context) => refused(e),
                            _ => tpm::failed(address, "answer the challenge", e),
                        })
                    })
                });
            let _ = context.flush_context(key.into());
            Ok(opened?.value().to_vec())
        })
    }

    /// Lets the attestation key say that another key is of the same TPM, and what its attributes are. `nonce` is the
    /// platform's, of at most 64 bytes: it comes back in the signed statement (extraData). A key that is bound to PCRs is
    /// certified in every state of the device.
    ///
    /// # Errors
    /// [`TpmError::OtherTpm`] if the key is of another TPM, [`TpmError::Unsupported`] if it has a password, or another
    /// [`TpmError`] with its cure.
    pub fn certify(&self, key: &TpmKey, nonce: &[u8]) -> Result<Certified, TpmError> {
        const WHAT: &str = "certify the key";
        let address = &self.address;
        let failed = |e: Error| tpm::failed(address, WHAT, e);
        let nonce = Data::try_from(nonce).map_err(|_| TpmError::Failed {
            address: address.clone(),
            what: WHAT,
            cause: format!("the nonce has {} bytes", nonce.len()),
            hint: "64 bytes are the most; a hash of a longer one does as well",
        })?;
        let scheme = SignatureScheme::EcDsa {
            hash_scheme: HashScheme::new(HashingAlgorithm::Sha256),
        };
        let (info, signature) = tpm::with(address, |context| {
            let own = tpm::load(context, address, &self.key)?;
            // The role ADMIN of the key, which has no adminWithPolicy, and the role USER of the AK.
            let certified = key.used(context, address, WHAT, |context, handle| {
                context.execute_with_sessions((PASSWORD, PASSWORD, None), |context| {
                    context.certify(handle.into(), own, nonce.clone(), scheme)
                })
            });
            let _ = context.flush_context(own.into());
            certified
        })?;
        Ok(Certified {
            public: key.public().to_vec(),
            info: info.marshall().map_err(failed)?,
            signature: signature.marshall().map_err(failed)?,
        })
    }
}

/// Whether the TPM does what it is told.
fn works(context: &mut Context) -> bool {
    tpm::patiently(|| context.execute_without_session(|c| c.get_random(1))).is_ok()
}

/// The template of the AK. It is restricted: it signs nothing that begins like a statement of the TPM but is none (TPM 2.0
/// part 1, section "Restricted Attribute").
fn template() -> Result<Public, Error> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_restricted(true)
        .with_sign_encrypt(true)
        .build()?;
    let scheme = EccScheme::EcDsa(HashScheme::new(HashingAlgorithm::Sha256));
    tpm::p256(
        attributes,
        Digest::default(),
        SymmetricDefinitionObject::Null,
        scheme,
    )
}
