//! A key in a TPM, as a [`Signer`].

use std::sync::atomic::{AtomicBool, Ordering};

use aws_lc_rs::digest::{SHA256, digest};
use countersign_identity::signed::{Signer, SigningFailed};
use spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use tss_esapi::constants::StructureTag;
use tss_esapi::constants::response_code::Tss2ResponseCodeKind as Kind;
use tss_esapi::constants::tss::TPM2_RH_NULL;
use tss_esapi::handles::KeyHandle;
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::structures::{
    Digest, EccScheme, HashScheme, HashcheckTicket, Public, Signature, SignatureScheme,
};
use tss_esapi::traits::{Marshall, UnMarshall};
use tss_esapi::tss2_esys::{TPM2B_DIGEST, TPMT_TK_HASHCHECK};
use tss_esapi::{Context, Error};

use crate::address::TpmAddress;
use crate::encoding;
use crate::error::TpmError;
use crate::key_file::{self, KeyFile, Parent};
use crate::pcrs::{PcrPolicy, Pcrs};
use crate::{state, tpm};

/// How often a signature in a state is tried again because something was measured meanwhile. Each try takes a fraction of
/// a second.
const STATE_RETRIES: u8 = 8;

/// What the TPM vouches for of how a private key is kept (TPM 2.0 part 2, section "TPMA_OBJECT").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protection {
    /// sensitiveDataOrigin: the TPM made it.
    pub made_in_tpm: bool,
    /// fixedTPM: it cannot be moved to another TPM.
    pub fixed_tpm: bool,
    /// fixedParent: it cannot be moved under another parent.
    pub fixed_parent: bool,
}

/// An ECDSA key on P-256 in a TPM. It signs with SHA-256.
///
/// It holds no handle and no connection: each signature loads the key, signs and flushes it, which takes from some
/// milliseconds to a second, by the TPM. All keys of a process take turns at one [`TpmAddress`]. The calls block: in an
/// asynchronous program they belong on a thread for that.
pub struct TpmKey {
    address: TpmAddress,
    file: KeyFile,
    pem: String,
    info: SubjectPublicKeyInfoOwned,
    protection: Protection,
    /// The TPM asked for a password: not tried again, for the TPM counts, and locks.
    password_wanted: AtomicBool,
}

impl std::fmt::Debug for TpmKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TpmKey(under {:?} in {})", self.file.parent, self.address)
    }
}

impl TpmKey {
    /// Makes a key in the TPM. It is fixed to that TPM and to its parent, the primary key of the owner hierarchy that
    /// tpm2-openssl takes too. Nothing is kept in the TPM: the key is in [`TpmKey::to_pem`], and lost with it.
    ///
    /// It has no password, and is not subject to dictionary-attack protection (noDA).
    ///
    /// # Errors
    /// [`TpmError`] with its cure: no TPM there, no permission, or the owner hierarchy has a password.
    pub fn generate(address: &TpmAddress) -> Result<Self, TpmError> {
        Self::generate_bound(address, None)
    }

    /// The same, bound to the values that these PCRs have now: it signs while they have them, and not otherwise. It is
    /// certified by an attestation key in every state.
    ///
    /// # Errors
    /// As for [`TpmKey::generate`], and [`TpmError::NoPcrs`] if the TPM keeps not all of these PCRs.
    pub fn generate_bound(address: &TpmAddress, pcrs: Option<Pcrs>) -> Result<Self, TpmError> {
        let failed = |e: Error| tpm::failed(address, "make a key", e);
        tpm::with(address, |context| {
            let values = pcrs.map(|pcrs| state::read(context, address, pcrs)).transpose()?;
            let policy = pcrs
                .zip(values.as_ref())
                .map(|(pcrs, values)| PcrPolicy::new(pcrs, values));
            let template = tpm::key_template(policy.as_ref()).map_err(failed)?;
            let made = tpm::under(context, address, Parent::Owner, |context, parent| {
                tpm::patiently(|| context.create(parent, template.clone(), None, None, None, None))
                    .map_err(failed)
            })?;
            let file = KeyFile {
                parent: Parent::Owner,
                public: made.out_public.marshall().map_err(failed)?,
                private: made.out_private.value().to_vec(),
                policy,
                values,
            };
            // What cannot be loaded or used is better known now than with the first signature.
            Self::loaded(context, address, file)
        })
    }

    /// Opens a key by its file: of [`TpmKey::to_pem`], or of tpm2-openssl or an OpenSSL engine, under the owner
    /// hierarchy or a persistent key. The key is loaded once, to see that it is of this TPM, and if it is bound to PCRs they
    /// are read.
    ///
    /// # Errors
    /// [`TpmError::OtherTpm`] if it is of another TPM, [`TpmError::State`] if the device is in another state than the one that
    /// it is bound to, [`TpmError::File`] if the text is no such file,
    /// [`TpmError::Unsupported`] if it is a key that cannot be used here, or another [`TpmError`] with its cure.
    pub fn open(address: &TpmAddress, pem: &str) -> Result<Self, TpmError> {
        let file = KeyFile::parse(pem)?;
        // Before the TPM is asked.
        let public = Public::unmarshall(&file.public).map_err(tpm::unreadable)?;
        // There is one encoding only: so what was looked at is what is loaded.
        if public.marshall().map_err(tpm::unreadable)? != file.public {
            return Err(TpmError::File("its public part is longer than it says".into()));
        }
        usable(&public, file.policy.as_ref())?;
        tpm::with(address, |context| Self::loaded(context, address, file))
    }

    /// Whether a text is a file of a key in a TPM. The same as [`crate::is_tpm_key`], which is there without the feature
    /// `tpm` too.
    pub fn is_tpm_key(pem: &str) -> bool {
        key_file::is_tpm_key(pem)
    }

    /// The file of the key: `-----BEGIN TSS2 PRIVATE KEY-----`, which tpm2-openssl reads too. It is no secret, but it is
    /// all there is of the key outside of the parent: without it the key is lost.
    pub fn to_pem(&self) -> String {
        self.pem.clone()
    }

    /// The TPM that the key is in.
    pub fn address(&self) -> &TpmAddress {
        &self.address
    }

    /// What the TPM vouches for of how the private key is kept.
    pub fn protection(&self) -> Protection {
        self.protection
    }

    fn loaded(context: &mut Context, address: &TpmAddress, file: KeyFile) -> Result<Self, TpmError> {
        let public = Public::unmarshall(&file.public).map_err(tpm::unreadable)?;
        let info = usable(&public, file.policy.as_ref())?;
        // The TPM checks the public part against the private one, so `info` is what it will sign for.
        let handle = tpm::load(context, address, &file)?;
        context
            .flush_context(handle.into())
            .map_err(|e| tpm::failed(address, "unload the key", e))?;
        // After it: a key of another TPM is first of all that.
        state::check(context, address, &file)?;
        let attributes = public.object_attributes();
        Ok(Self {
            address: address.clone(),
            pem: file.to_pem()?,
            file,
            info,
            protection: Protection {
                made_in_tpm: attributes.sensitive_data_origin(),
                fixed_tpm: attributes.fixed_tpm(),
                fixed_parent: attributes.fixed_parent(),
            },
            password_wanted: AtomicBool::new(false),
        })
    }

    /// The PCRs that it is bound to, if it is bound to any.
    pub fn pcrs(&self) -> Option<Pcrs> {
        self.file.policy.as_ref().map(|policy| policy.pcrs)
    }

    /// TPMT_PUBLIC.
    pub(crate) fn public(&self) -> &[u8] {
        &self.file.public
    }

    fn try_sign(&self, content: &[u8]) -> Result<Vec<u8>, TpmError> {
        let failed = |e: Error| tpm::failed(&self.address, "sign", e);
        let hash = Digest::try_from(digest(&SHA256, content).as_ref().to_vec()).map_err(failed)?;
        let scheme = SignatureScheme::EcDsa {
            hash_scheme: HashScheme::new(HashingAlgorithm::Sha256),
        };
        let signed = tpm::with(&self.address, |context| {
            let sign =
                |context: &mut Context, handle| context.sign(handle, hash.clone(), scheme, no_ticket()?);
            match &self.file.policy {
                None => self.used(context, &self.address, "sign", sign),
                Some(policy) => self.used_in_its_state(context, policy, "sign", sign),
            }
        })?;
        let parts = match &signed {
            Signature::EcDsa(parts) => {
                encoding::signature(parts.signature_r().value(), parts.signature_s().value())
            }
            _ => None,
        };
        parts.ok_or_else(|| TpmError::Failed {
            address: self.address.clone(),
            what: "sign",
            cause: "its signature is none on P-256".into(),
            hint: "update the TPM's firmware",
        })
    }

    /// Loads the key for one command, in this turn at the TPM, and flushes it after it.
    pub(crate) fn used<T>(
        &self,
        context: &mut Context,
        address: &TpmAddress,
        what: &'static str,
        command: impl FnMut(&mut Context, KeyHandle) -> Result<T, Error>,
    ) -> Result<T, TpmError> {
        self.tried(context, address, command)?
            .map_err(|e| self.refused(address, what, e))
    }

    /// The same, in a session that lets it be used while the device is in the state that it is bound to.
    fn used_in_its_state<T>(
        &self,
        context: &mut Context,
        policy: &PcrPolicy,
        what: &'static str,
        mut command: impl FnMut(&mut Context, KeyHandle) -> Result<T, Error>,
    ) -> Result<T, TpmError> {
        let mut again = 0..STATE_RETRIES;
        loop {
            state::check(context, &self.address, &self.file)?;
            let done = self.tried(context, &self.address, |context, handle| {
                tpm::in_session(
                    context,
                    HashingAlgorithm::Sha256,
                    |e| e,
                    |context, session| {
                        state::satisfy(context, session, policy)?;
                        context.execute_with_sessions((Some(session), None, None), |context| {
                            command(context, handle)
                        })
                    },
                )
            })?;
            match done {
                Err(e) if is_race(e) && again.next().is_some() => {}
                done => return done.map_err(|e| self.refused(&self.address, what, e)),
            }
        }
    }

    /// What the TPM answers to a command with the key.
    fn tried<T>(
        &self,
        context: &mut Context,
        address: &TpmAddress,
        mut command: impl FnMut(&mut Context, KeyHandle) -> Result<T, Error>,
    ) -> Result<Result<T, Error>, TpmError> {
        // In this turn and not before it, or else threads that wait for it would each try.
        if self.password_wanted.load(Ordering::Relaxed) {
            return Err(hidden_password());
        }
        let handle = tpm::load(context, address, &self.file)?;
        let done = tpm::patiently(|| command(context, handle));
        // A failure here is the next turn's trouble, not this command's; it is tried once more at the end.
        let _ = context.flush_context(handle.into());
        Ok(done)
    }

    fn refused(&self, address: &TpmAddress, what: &'static str, error: Error) -> TpmError {
        match tpm::kind(error) {
            Some(Kind::AuthFail | Kind::BadAuth) => {
                self.password_wanted.store(true, Ordering::Relaxed);
                hidden_password()
            }
            _ => tpm::failed(address, what, error),
        }
    }
}

fn hidden_password() -> TpmError {
    TpmError::Unsupported("it has a password, though its file says that it has none".into())
}

/// Whether something was measured between the look at the PCRs and the signature: into one of them (TPM_RC_VALUE, of
/// TPM2_PolicyPCR), or into any (TPM_RC_PCR_CHANGED; TPM 2.0 part 3, section "TPM2_PolicyPCR"). In a system that measures
/// what it starts (IMA, into PCR 10) that may be at any time.
fn is_race(error: Error) -> bool {
    matches!(tpm::kind(error), Some(Kind::Value | Kind::PcrChanged))
}

/// The NULL ticket: an unrestricted key signs hashes that were made outside of the TPM (TPM 2.0 part 3, section
/// "TPM2_Sign").
fn no_ticket() -> Result<HashcheckTicket, Error> {
    HashcheckTicket::try_from(TPMT_TK_HASHCHECK {
        tag: StructureTag::Hashcheck.into(),
        hierarchy: TPM2_RH_NULL,
        digest: TPM2B_DIGEST::default(),
    })
}

/// The public half, if the key can be used here.
fn usable(public: &Public, policy: Option<&PcrPolicy>) -> Result<SubjectPublicKeyInfoOwned, TpmError> {
    let refused = |what: &str| Err(TpmError::Unsupported(what.into()));
    let Public::Ecc {
        object_attributes,
        name_hashing_algorithm,
        auth_policy,
        parameters,
        unique,
    } = public
    else {
        return refused("it is no elliptic-curve key");
    };
    if parameters.ecc_curve() != EccCurve::NistP256 {
        return refused("it is not on P-256");
    }
    if !object_attributes.sign_encrypt() {
        return refused("it may not sign");
    }
    if object_attributes.restricted() {
        return refused("it is restricted: it signs only what the TPM says itself");
    }
    match (policy, object_attributes.user_with_auth()) {
        (None, true) => {}
        (None, false) => return refused("it has a policy that its file does not tell"),
        (Some(_), true) => return refused("its policy binds it to nothing: it signs without (userWithAuth)"),
        (Some(policy), false) => {
            if *name_hashing_algorithm != HashingAlgorithm::Sha256
                || auth_policy.value() != policy.auth_policy()
            {
                return refused("its policy is another one than its file tells");
            }
        }
    }
    match parameters.ecc_scheme() {
        EccScheme::Null => {}
        EccScheme::EcDsa(scheme) if scheme.hashing_algorithm() == HashingAlgorithm::Sha256 => {}
        _ => return refused("it signs otherwise than by ECDSA with SHA-256"),
    }
    match encoding::public_key(unique.x().value(), unique.y().value()) {
        Some(info) => Ok(info),
        None => Err(TpmError::File("its public point is none on P-256".into())),
    }
}

impl Signer for TpmKey {
    fn public_key(&self) -> &SubjectPublicKeyInfoOwned {
        &self.info
    }

    fn algorithm(&self) -> AlgorithmIdentifierOwned {
        AlgorithmIdentifierOwned {
            oid: encoding::ECDSA_SHA256,
            parameters: None,
        }
    }

    fn sign(&self, content: &[u8]) -> Result<Vec<u8>, SigningFailed> {
        self.try_sign(content).map_err(|e| SigningFailed(e.to_string()))
    }
}
