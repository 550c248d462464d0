//! Where the device's keys are: in a file, or where they never leave: a token (PKCS#11), a TPM.
//!
//! Whatever holds it, a key is a [`Signer`]: TLS and certificate requests ask it to sign, and see no more of it. What lies in
//! `device.key` is the key itself, in PEM, perhaps under a passphrase; or which key it is, a PKCS#11 URI (RFC 7512); or what only
//! the TPM that made it can open, a file `TSS2 PRIVATE KEY`, which OpenSSL's TPM provider reads too.
//!
//! Keys in a TPM need libtss2, and are there with the feature `tpm` alone (countersign-agent-tpm).

mod passphrase;
mod tls;

pub(crate) use passphrase::is_encrypted;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use countersign_factory::SoftwareKey;
use countersign_factory::encrypted_key::{
    self, Cost, EncryptedKeyFault, PASSPHRASE_BYTES_MIN, PassphraseSource,
};
use countersign_factory::key::KeyFault;
use countersign_identity::signed::Signer;
use countersign_keystore_pkcs11::{TokenError, TokenKey, TokenUri};
#[cfg(feature = "tpm")]
use countersign_keystore_tpm::TpmKey;
use countersign_keystore_tpm::{Pcrs, TpmAddress, TpmError, is_tpm_key, pcrs_of};
use rustls::Error as TlsError;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SigningKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use self::passphrase::passphrase;
use self::tls::TlsKey;

/// Where a TPM keeps the certificate of the device that it is in, and those above it, DER, one after the other: an NV index of
/// the owner's (0x01800000 to 0x01bfffff), always the same so that others find it.
pub const TPM_CERTIFICATES: u32 = 0x0180_6373;

/// After the URI of a key that we made ourselves: it is ours to destroy.
const MADE_HERE: &str = "# made by countersign-agent, and destroyed when it is replaced";

/// Where new keys are made. In `device.json` and on the command line: `file`, `encrypted:PASSPHRASE-SOURCE`, a PKCS#11 URI,
/// `tpm` for the machine's, or `tpm:ADDRESS` for another; behind it `+pcrs=SELECTION` if the key is to sign only while these
/// PCRs are as they were. (A `;` or `?` would mean something to a shell, and the former would leave the key unbound without a
/// word.)
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum KeyStore {
    /// In the identity folder, readable by its owner only.
    #[default]
    File,
    /// There too, and a passphrase opens it.
    Encrypted(PassphraseSource),
    /// In a token. The URI names the first key; the key of each renewal has the number of its slot after that name.
    Token(Box<TokenUri>),
    /// In a TPM. What the folder has of a key is of use to that very TPM alone.
    Tpm {
        /// Which.
        address: TpmAddress,
        /// By which PCRs the state of the device is told in which a key signs; in all states, if by none.
        pcrs: Option<Pcrs>,
    },
}

/// Why a key cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum KeyStoreFault {
    /// The URI names no key by its label.
    #[error(
        "the URI has no object=NAME; hint: name the first key by it, for the keys of renewals get that name with a number"
    )]
    NoName,
    /// What lies in `device.key` is no key, and names none.
    #[error(
        "it is no private key in PEM, no pkcs11: URI and no key of a TPM ({0}); hint: put the key back, or enrol anew"
    )]
    Malformed(String),
    /// The token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The TPM.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// Where a TPM keeps certificates there is something else.
    #[error(
        "NV index {TPM_CERTIFICATES:#x} of the TPM {address} holds {what}; hint: the certificate in the folder is enough to connect; if nobody needs what is there, tpm2_nvundefine {TPM_CERTIFICATES:#x}, and the next certificate is kept there"
    )]
    Taken {
        /// The TPM.
        address: TpmAddress,
        /// Whose it is.
        what: String,
    },
    /// This program was built without TPMs.
    #[error("it is in a TPM, and this agent was built without; hint: use countersign-agent-tpm")]
    NoTpm,
    /// A key in software.
    #[error(transparent)]
    Software(#[from] KeyFault),
    /// One that a passphrase opens.
    #[error(transparent)]
    Encrypted(#[from] EncryptedKeyFault),
    /// There is no passphrase.
    #[error("there is no passphrase to open it: {0}")]
    Passphrase(String),
    /// It belongs to another certificate.
    #[error(
        "it is not the key of the certificate beside it; hint: put back the one that it was issued for, or enrol anew"
    )]
    OfOther,
    /// TLS has no use for it.
    #[error("TLS cannot use it: {0}; hint: use P-256, P-384, Ed25519 or RSA")]
    Unusable(String),
}

impl FromStr for KeyStore {
    type Err = KeyStoreFault;

    fn from_str(text: &str) -> Result<Self, KeyStoreFault> {
        if let Some(source) = text.strip_prefix("encrypted:") {
            return source
                .parse()
                .map(Self::Encrypted)
                .map_err(KeyStoreFault::Passphrase);
        }
        if let Some(place) = tpm_place(text) {
            return place;
        }
        match text {
            "file" => Ok(Self::File),
            uri => {
                let uri: TokenUri = uri.parse()?;
                // Else the first renewal would fail, months later.
                if uri.object.is_none() {
                    return Err(KeyStoreFault::NoName);
                }
                Ok(Self::Token(Box::new(uri)))
            }
        }
    }
}

/// A TPM as key store, if the text names one.
fn tpm_place(text: &str) -> Option<Result<KeyStore, KeyStoreFault>> {
    let (place, binding) = match text.split_once('+') {
        Some((place, binding)) => (place, Some(binding)),
        None => (text, None),
    };
    let address = match place.strip_prefix("tpm:") {
        Some(address) => address.parse(),
        None if place == "tpm" => Ok(TpmAddress::default()),
        None => return None,
    };
    let pcrs = |binding: &str| match binding.strip_prefix("pcrs=") {
        Some(selection) => selection.parse(),
        None => Err(TpmError::Pcrs(format!(
            "{text:?}: what follows + begins not with pcrs="
        ))),
    };
    let store = || {
        Ok(KeyStore::Tpm {
            address: address?,
            pcrs: binding.map(pcrs).transpose()?,
        })
    };
    Some(store().map_err(KeyStoreFault::Tpm))
}

impl TryFrom<String> for KeyStore {
    type Error = KeyStoreFault;

    fn try_from(text: String) -> Result<Self, KeyStoreFault> {
        text.parse()
    }
}

impl From<KeyStore> for String {
    fn from(store: KeyStore) -> Self {
        store.to_string()
    }
}

impl fmt::Display for KeyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => f.write_str("file"),
            Self::Encrypted(source) => write!(f, "encrypted:{}", source.as_str()),
            Self::Token(uri) => write!(f, "{uri}"),
            Self::Tpm { address, pcrs: None } => write!(f, "tpm:{address}"),
            Self::Tpm {
                address,
                pcrs: Some(pcrs),
            } => write!(f, "tpm:{address}+pcrs={pcrs}"),
        }
    }
}

impl KeyStore {
    /// Whether keys are made in the folder itself.
    pub fn is_file(&self) -> bool {
        *self == Self::File
    }

    /// The store that a key file under a passphrase names in its first line.
    pub(crate) fn named_by(text: &[u8]) -> Option<Self> {
        let first = std::str::from_utf8(text).ok()?.trim().lines().next()?.trim();
        let source = first.strip_prefix("encrypted:")?.parse().ok()?;
        Some(Self::Encrypted(source))
    }

    /// Whether a key is one of this store.
    pub(crate) fn is_of(&self, key: &DeviceKey) -> bool {
        match (self, key) {
            (Self::File | Self::Encrypted(_), DeviceKey::Software(_)) => true,
            (Self::Token(store), DeviceKey::Token { uri, .. }) => {
                let token = |u: &TokenUri| (u.module.clone(), u.token.clone(), u.serial.clone(), u.slot);
                token(store) == token(uri)
            }
            (Self::Tpm { .. }, DeviceKey::Tpm { .. }) => *self == key.store(),
            _ => false,
        }
    }

    /// The TPM that a key file speaks of which names none.
    fn tpm(&self) -> TpmAddress {
        match self {
            Self::Tpm { address, .. } => address.clone(),
            _ => TpmAddress::default(),
        }
    }

    /// Makes a key. What of it belongs into `device.key`. In a token, a key that is there under that name already is
    /// taken: an attempt that was cut off before it was written down made it, or the token's maker did.
    ///
    /// # Errors
    /// [`KeyStoreFault`].
    pub(crate) fn make(&self, slot: Option<u64>) -> Result<Zeroizing<Vec<u8>>, KeyStoreFault> {
        match self {
            Self::File => {
                let key = SoftwareKey::generate()?;
                Ok(Zeroizing::new(key.to_pem().as_bytes().to_vec()))
            }
            Self::Encrypted(source) => {
                let passphrase = passphrase(source)?;
                if passphrase.len() < PASSPHRASE_BYTES_MIN {
                    return Err(KeyStoreFault::Passphrase(format!(
                        "the one in {} is shorter than {PASSPHRASE_BYTES_MIN} bytes; hint: openssl rand -base64 30 makes a good one",
                        source.as_str()
                    )));
                }
                let key = SoftwareKey::generate()?;
                let pem = encrypted_key::encrypt(key.to_pkcs8(), &passphrase, Cost::Device)?;
                // Who reads PEM skips what stands before it.
                Ok(Zeroizing::new(format!("{self}\n{pem}").into_bytes()))
            }
            Self::Token(first) => {
                let suffix = slot.map(|n| format!("-{n}")).unwrap_or_default();
                let uri = TokenUri::clone(first).with_suffix(&suffix)?;
                let made = TokenKey::generate(uri.clone())?.is_some();
                if !made {
                    TokenKey::open(uri.clone())?;
                }
                // The name of a slot's key is one that we gave it, be it in a try that was cut off. Under the first name it
                // may be the token's maker's.
                let word = if made || slot.is_some() { MADE_HERE } else { "" };
                Ok(Zeroizing::new(format!("{uri}\n{word}\n").into_bytes()))
            }
            #[cfg(feature = "tpm")]
            Self::Tpm { address, pcrs } => {
                let file = TpmKey::generate_bound(address, *pcrs)?.to_pem();
                // Who reads PEM skips what stands before it.
                Ok(Zeroizing::new(format!("tpm:{address}\n{file}").into_bytes()))
            }
            #[cfg(not(feature = "tpm"))]
            Self::Tpm { .. } => Err(KeyStoreFault::NoTpm),
        }
    }
}

/// A key of the device: itself, or where it is.
pub enum DeviceKey {
    /// In software.
    Software(PrivateKeyDer<'static>),
    /// In a token.
    Token {
        /// Which it is.
        uri: TokenUri,
        /// Whether we made it.
        is_ours: bool,
    },
    /// In a TPM.
    Tpm {
        /// What that TPM opens.
        file: String,
        /// Which.
        address: TpmAddress,
    },
}

impl fmt::Debug for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Software(_) => f.write_str("Software"),
            Self::Token { uri, .. } => write!(f, "Token({uri})"),
            Self::Tpm { address, .. } => write!(f, "Tpm({address})"),
        }
    }
}

impl DeviceKey {
    /// Reads what a key file holds. No token and no TPM is asked yet; of a TPM's key whose file does not say it, `store` says
    /// which TPM.
    ///
    /// # Errors
    /// [`KeyStoreFault`].
    pub fn read(text: &[u8], store: &KeyStore) -> Result<Self, KeyStoreFault> {
        let words = std::str::from_utf8(text).map(str::trim).unwrap_or_default();
        let (first, rest) = words.split_once('\n').unwrap_or((words, ""));
        if first.starts_with("pkcs11:") {
            return Ok(Self::Token {
                uri: first.trim().parse()?,
                is_ours: rest.trim() == MADE_HERE,
            });
        }
        let (address, file) = match first.strip_prefix("tpm:") {
            Some(address) => (address.trim().parse()?, rest.trim()),
            None => (store.tpm(), words),
        };
        if is_tpm_key(file) {
            return Ok(Self::Tpm {
                file: file.to_owned(),
                address,
            });
        }
        if encrypted_key::is_encrypted(words) {
            // Where its passphrase is, the file says, for the next key may be elsewhere; of one that OpenSSL made, the store.
            let source = match (KeyStore::named_by(text), store) {
                (Some(KeyStore::Encrypted(source)), _) => source,
                (_, KeyStore::Encrypted(source)) => source.clone(),
                _ => {
                    return Err(KeyStoreFault::Passphrase(
                        "the key file is encrypted, and the key store names no passphrase; hint: \"key_store\": \"encrypted:/PATH/OF/THE/PASSPHRASE\" in device.json".into(),
                    ));
                }
            };
            let der = encrypted_key::decrypt(words.as_bytes(), &passphrase(&source)?)?;
            return Ok(Self::Software(PrivatePkcs8KeyDer::from(der.to_vec()).into()));
        }
        PrivateKeyDer::from_pem_slice(text)
            .map(Self::Software)
            .map_err(|e| KeyStoreFault::Malformed(e.to_string()))
    }

    /// Where it is, for people.
    pub fn place(&self) -> String {
        match self {
            Self::Software(_) => "in a file".into(),
            Self::Token { uri, .. } => format!("{} in the token {}", uri.key_text(), uri.token_text()),
            Self::Tpm { address, file } => match pcrs_of(file) {
                None => format!("in the TPM {address}"),
                Some(pcrs) => format!("in the TPM {address}, bound to its PCRs {pcrs}"),
            },
        }
    }

    /// Where it is, as where new ones are made.
    pub(crate) fn store(&self) -> KeyStore {
        match self {
            Self::Software(_) => KeyStore::File,
            Self::Token { uri, .. } => KeyStore::Token(Box::new(uri.clone())),
            Self::Tpm { address, file } => KeyStore::Tpm {
                address: address.clone(),
                pcrs: pcrs_of(file),
            },
        }
    }

    /// It as what signs requests; `None` for a key in software of another kind than we make.
    ///
    /// # Errors
    /// [`KeyStoreFault`].
    pub(crate) fn signer(&self) -> Result<Option<Arc<dyn Signer>>, KeyStoreFault> {
        Ok(match self {
            Self::Software(PrivateKeyDer::Pkcs8(der)) => SoftwareKey::from_pkcs8(der.secret_pkcs8_der())
                .ok()
                .map(|key| Arc::new(key) as Arc<dyn Signer>),
            Self::Software(_) => None,
            Self::Token { .. } | Self::Tpm { .. } => Some(self.held()?),
        })
    }

    /// One that is held elsewhere.
    fn held(&self) -> Result<Arc<dyn Signer>, KeyStoreFault> {
        match self {
            Self::Token { uri, .. } => Ok(Arc::new(TokenKey::open(uri.clone())?)),
            #[cfg(feature = "tpm")]
            Self::Tpm { file, address } => Ok(Arc::new(TpmKey::open(address, file)?)),
            #[cfg(not(feature = "tpm"))]
            Self::Tpm { .. } => Err(KeyStoreFault::NoTpm),
            Self::Software(_) => Err(KeyStoreFault::Unusable("it is in software".into())),
        }
    }

    /// It as what TLS signs with, under a certificate.
    ///
    /// # Errors
    /// [`KeyStoreFault`].
    pub(crate) fn certified(
        &self,
        chain: &[CertificateDer<'static>],
    ) -> Result<Arc<CertifiedKey>, KeyStoreFault> {
        let key: Arc<dyn SigningKey> = match self {
            Self::Software(der) => rustls::crypto::aws_lc_rs::sign::any_supported_type(der)
                .map_err(|e| KeyStoreFault::Unusable(e.to_string()))?,
            Self::Token { .. } | Self::Tpm { .. } => Arc::new(TlsKey::of(self.held()?)),
        };
        let certified = CertifiedKey::new(chain.to_vec(), key);
        match certified.keys_match() {
            Ok(()) | Err(TlsError::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {
                Ok(Arc::new(certified))
            }
            Err(TlsError::InconsistentKeys(_)) => Err(KeyStoreFault::OfOther),
            Err(e) => Err(KeyStoreFault::Unusable(e.to_string())),
        }
    }

    /// Keeps its certificate, and those above it, where it is, for others that look for them there.
    ///
    /// # Errors
    /// [`KeyStoreFault`], for one if there is no room: the identity folder has them in any case.
    pub(crate) fn keep_certificates(&self, chain: &[CertificateDer<'static>]) -> Result<(), KeyStoreFault> {
        match self {
            // What lies beside a key of others is theirs.
            Self::Software(_) | Self::Token { is_ours: false, .. } => Ok(()),
            #[cfg(feature = "tpm")]
            Self::Tpm { address, .. } => in_tpm::keep(address, chain),
            #[cfg(not(feature = "tpm"))]
            Self::Tpm { .. } => Err(KeyStoreFault::NoTpm),
            Self::Token { uri, .. } => {
                let chain: Vec<Vec<u8>> = chain.iter().map(|der| der.to_vec()).collect();
                Ok(TokenKey::keep_certificates(uri.clone(), &chain)?)
            }
        }
    }

    /// Removes from a TPM what [`DeviceKey::keep_certificates`] kept for this device. From a token it goes with the key.
    ///
    /// # Errors
    /// [`KeyStoreFault`].
    pub(crate) fn forget_certificates(&self, chain: &[CertificateDer<'static>]) -> Result<(), KeyStoreFault> {
        match self {
            Self::Software(_) | Self::Token { .. } => Ok(()),
            #[cfg(feature = "tpm")]
            Self::Tpm { address, .. } => in_tpm::forget(address, chain),
            #[cfg(not(feature = "tpm"))]
            Self::Tpm { .. } => chain.first().map_or(Ok(()), |_| Err(KeyStoreFault::NoTpm)),
        }
    }

    /// Whether another file speaks of the same key, by whatever words.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Software(a), Self::Software(b)) => a.secret_der() == b.secret_der(),
            (Self::Token { uri: a, .. }, Self::Token { uri: b, .. }) => {
                let key = |u: &TokenUri| TokenUri {
                    pin: None,
                    ..u.clone()
                };
                key(a) == key(b)
            }
            (Self::Tpm { file: a, .. }, Self::Tpm { file: b, .. }) => a == b,
            _ => false,
        }
    }

    /// Whether it is where it should be: not, if its token has no such key, or the TPM is not the one that made it. What
    /// cannot be told now counts as there.
    pub(crate) fn is_there(&self) -> bool {
        !matches!(
            self.signer(),
            Err(KeyStoreFault::Token(TokenError::NoKey { .. })
                | KeyStoreFault::Tpm(TpmError::OtherTpm { .. }))
        )
    }

    /// Whether it is bound to a state that the device is not in. A token is not asked: it has no such keys, and may count who
    /// asks.
    pub(crate) fn is_of_another_state(&self) -> bool {
        let opened = match self {
            Self::Tpm { .. } => self.signer().err(),
            Self::Software(_) | Self::Token { .. } => None,
        };
        matches!(opened, Some(KeyStoreFault::Tpm(TpmError::State { .. })))
    }

    /// Destroys it for good; whether it is gone once its key file is too. Not, if others made it in a token: it is theirs.
    ///
    /// # Errors
    /// [`KeyStoreFault`].
    pub(crate) fn end(&self) -> Result<bool, KeyStoreFault> {
        match self {
            Self::Software(_) | Self::Tpm { .. } => Ok(true),
            Self::Token { is_ours: false, .. } => Ok(!self.is_there()),
            // Gone already: by a try that was cut off.
            Self::Token { uri, .. } => TokenKey::destroy(uri.clone()).map(|_| true).map_err(Into::into),
        }
    }

    /// Removes it from where it is, if we made it there. Whether there was one.
    ///
    /// # Errors
    /// [`KeyStoreFault`].
    pub(crate) fn destroy(&self) -> Result<bool, KeyStoreFault> {
        match self {
            // The key file is all that there is: without it the TPM has nothing.
            Self::Software(_) | Self::Tpm { .. } | Self::Token { is_ours: false, .. } => Ok(false),
            Self::Token { uri, .. } => Ok(TokenKey::destroy(uri.clone())?),
        }
    }
}

impl Clone for DeviceKey {
    fn clone(&self) -> Self {
        match self {
            Self::Software(der) => Self::Software(der.clone_key()),
            Self::Token { uri, is_ours } => Self::Token {
                uri: uri.clone(),
                is_ours: *is_ours,
            },
            Self::Tpm { file, address } => Self::Tpm {
                file: file.clone(),
                address: address.clone(),
            },
        }
    }
}

impl From<PrivateKeyDer<'static>> for DeviceKey {
    fn from(key: PrivateKeyDer<'static>) -> Self {
        Self::Software(key)
    }
}

/// Certificates in a TPM's NV memory. There is one place, and the device whose certificate is there has it, by its subject, which
/// renewals keep: two devices with keys in one TPM must not write over each other's for ever, for such memory wears out.
#[cfg(feature = "tpm")]
mod in_tpm {
    use countersign_identity::CertificateFacts;
    use countersign_keystore_tpm::{TpmAddress, TpmError, nv};
    use rustls::pki_types::CertificateDer;

    use super::{KeyStoreFault, TPM_CERTIFICATES};

    /// Whose the place is.
    enum Holder {
        Nobody,
        Us,
        Other(String),
    }

    pub(super) fn keep(address: &TpmAddress, chain: &[CertificateDer<'static>]) -> Result<(), KeyStoreFault> {
        if let Holder::Other(what) = holder(address, chain)? {
            return Err(taken(address, what));
        }
        let bytes: Vec<u8> = chain.iter().flat_map(|der| der.iter().copied()).collect();
        match nv::write(address, TPM_CERTIFICATES, &bytes) {
            Err(TpmError::Index { .. }) => Err(taken(address, "what another program wrote".into())),
            written => Ok(written?),
        }
    }

    pub(super) fn forget(
        address: &TpmAddress,
        chain: &[CertificateDer<'static>],
    ) -> Result<(), KeyStoreFault> {
        if matches!(holder(address, chain)?, Holder::Us) {
            nv::remove(address, TPM_CERTIFICATES)?;
        }
        Ok(())
    }

    fn holder(address: &TpmAddress, ours: &[CertificateDer<'static>]) -> Result<Holder, KeyStoreFault> {
        let subject = |der: &[u8]| {
            CertificateFacts::parse(der)
                .ok()
                .map(|f| (f.subject_der, f.subject_text))
        };
        let Some(there) = nv::read(address, TPM_CERTIFICATES)? else {
            return Ok(Holder::Nobody);
        };
        let first = nv::certificates(&there).into_iter().next();
        Ok(match first.and_then(|der| subject(&der)) {
            Some((der, _))
                if ours
                    .first()
                    .and_then(|c| subject(c))
                    .is_some_and(|(our, _)| our == der) =>
            {
                Holder::Us
            }
            Some((_, text)) => Holder::Other(format!("the certificate of {text}")),
            // The power went away before its beginning was written.
            None if there.first() == Some(&0xff) => Holder::Nobody,
            None => Holder::Other("what is no certificate".into()),
        })
    }

    fn taken(address: &TpmAddress, what: String) -> KeyStoreFault {
        KeyStoreFault::Taken {
            address: address.clone(),
            what,
        }
    }
}

#[cfg(test)]
mod tests;
