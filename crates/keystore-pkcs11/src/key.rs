//! A key in a token, as a [`Signer`].

use aws_lc_rs::digest::{SHA256, SHA384, digest};
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use countersign_identity::certificate::CertificateView;
use countersign_identity::signed::{Signer, SigningFailed};
use cryptoki::error::Error;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, CertificateType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use der::asn1::BitString;
use der::{Any, Encode};
use parking_lot::Mutex;
use spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

use crate::encoding::Curve;
use crate::error::{TokenError, is_stale};
use crate::token::Token;
use crate::uri::TokenUri;

/// id-ecPublicKey (RFC 5480 section 2.1.1).
const EC_PUBLIC_KEY: const_oid::ObjectIdentifier =
    const_oid::ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");

/// What the token says of how a private key is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protection {
    /// CKA_LOCAL: it was made in the token.
    pub local: bool,
    /// CKA_ALWAYS_SENSITIVE: its value was never to be had.
    pub always_sensitive: bool,
    /// CKA_NEVER_EXTRACTABLE: it could never leave, wrapped neither.
    pub never_extractable: bool,
}

/// An ECDSA key (P-256 or P-384) in a token.
pub struct TokenKey {
    token: Token,
    /// Good for as long as the sessions are.
    handle: Mutex<Option<ObjectHandle>>,
    curve: Curve,
    info: SubjectPublicKeyInfoOwned,
    protection: Protection,
}

impl std::fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TokenKey({} in {:?})", self.token.uri().key_text(), self.token)
    }
}

fn by_name(uri: &TokenUri, class: ObjectClass) -> Vec<Attribute> {
    let mut template = vec![Attribute::Class(class)];
    template.extend(
        uri.object
            .as_ref()
            .map(|l| Attribute::Label(l.as_bytes().to_vec())),
    );
    template.extend(uri.id.as_ref().map(|id| Attribute::Id(id.clone())));
    template
}

fn find_private(token: &Token, session: &Session) -> Result<Option<ObjectHandle>, Error> {
    let found = session.find_objects(&by_name(token.uri(), ObjectClass::PRIVATE_KEY))?;
    // Several are as bad as none: the caller looks anew and tells which it is.
    Ok(if found.len() == 1 {
        found.first().copied()
    } else {
        None
    })
}

/// CKA_ID of an object; empty if it has none.
fn id_of(session: &Session, object: ObjectHandle) -> Result<Vec<u8>, Error> {
    let found = session.get_attributes(object, &[AttributeType::Id])?;
    Ok(found
        .into_iter()
        .find_map(|a| match a {
            Attribute::Id(id) => Some(id),
            _ => None,
        })
        .unwrap_or_default())
}

/// CKA_VALUE of an object.
fn value(session: &Session, object: ObjectHandle) -> Result<Vec<u8>, Error> {
    let found = session.get_attributes(object, &[AttributeType::Value])?;
    Ok(found
        .into_iter()
        .find_map(|a| match a {
            Attribute::Value(value) => Some(value),
            _ => None,
        })
        .unwrap_or_default())
}

/// The certificates that belong to a key.
fn certificates(session: &Session, id: &[u8]) -> Result<Vec<ObjectHandle>, Error> {
    if id.is_empty() {
        return Ok(Vec::new());
    }
    session.find_objects(&[
        Attribute::Class(ObjectClass::CERTIFICATE),
        Attribute::Id(id.to_vec()),
    ])
}

fn protection(session: &Session, handle: ObjectHandle) -> Result<Protection, Error> {
    let asked = [
        AttributeType::Local,
        AttributeType::AlwaysSensitive,
        AttributeType::NeverExtractable,
    ];
    let mut found = Protection {
        local: false,
        always_sensitive: false,
        never_extractable: false,
    };
    for attribute in session.get_attributes(handle, &asked)? {
        match attribute {
            Attribute::Local(is) => found.local = is,
            Attribute::AlwaysSensitive(is) => found.always_sensitive = is,
            Attribute::NeverExtractable(is) => found.never_extractable = is,
            _ => {}
        }
    }
    Ok(found)
}

impl TokenKey {
    /// Finds a key, and reads its public half.
    ///
    /// # Errors
    /// [`TokenError`] with its cure.
    pub fn open(uri: TokenUri) -> Result<Self, TokenError> {
        let token = Token::new(uri);
        let session = token.session()?;
        let failed = |e: Error| token.failed("be searched", &e);
        let uri = token.uri();
        let found = session
            .find_objects(&by_name(uri, ObjectClass::PRIVATE_KEY))
            .map_err(failed)?;
        let name = || (uri.token_text(), uri.key_text());
        let handle = match found.as_slice() {
            [handle] => *handle,
            [] => {
                let (token, key) = name();
                return Err(TokenError::NoKey { token, key });
            }
            _ => {
                let (token, key) = name();
                return Err(TokenError::SeveralKeys { token, key });
            }
        };
        check_usable(&session, handle).map_err(failed)??;
        let (curve, info) = public_half(&session, handle).map_err(failed)??;
        let protection = protection(&session, handle).map_err(failed)?;
        token.keep(session);
        Ok(Self {
            token,
            handle: Mutex::new(Some(handle)),
            curve,
            info,
            protection,
        })
    }

    /// Makes a P-256 key in the token, never to leave it. `None` if there is a private key of that name.
    ///
    /// # Errors
    /// [`TokenError`] with its cure; then no key is left behind.
    pub fn generate(uri: TokenUri) -> Result<Option<Self>, TokenError> {
        let token = Token::new(uri.clone());
        let session = token.writing_session()?;
        let failed = |e: Error| token.failed("make a key", &e);
        let taken = session
            .find_objects(&by_name(&uri, ObjectClass::PRIVATE_KEY))
            .map_err(failed)?;
        if !taken.is_empty() {
            return Ok(None);
        }
        let id = match &uri.id {
            Some(id) => id.clone(),
            None => {
                let mut bytes = [0; 16];
                SystemRandom::new()
                    .fill(&mut bytes)
                    .map_err(|_| token.failed("make a key", &"the system's random source failed"))?;
                bytes.to_vec()
            }
        };
        let curve = Curve::P256
            .oid()
            .to_der()
            .map_err(|e| token.failed("make a key", &e))?;
        let label = uri.object.clone().unwrap_or_default().into_bytes();
        let public = [
            Attribute::Token(true),
            Attribute::Private(false),
            Attribute::Verify(true),
            Attribute::EcParams(curve),
            Attribute::Label(label.clone()),
            Attribute::Id(id.clone()),
        ];
        let private = [
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Sign(true),
            Attribute::Label(label),
            Attribute::Id(id),
        ];
        let (public, private) = session
            .generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private)
            .map_err(failed)?;
        // What was asked for is not always what was made.
        let made = protection(&session, private).map_err(failed)?;
        let lacking = [
            (made.local, "not CKA_LOCAL"),
            (made.always_sensitive, "not CKA_ALWAYS_SENSITIVE"),
            (made.never_extractable, "not CKA_NEVER_EXTRACTABLE"),
        ];
        if let Some((_, what)) = lacking.into_iter().find(|(is, _)| !is) {
            for object in [private, public] {
                let _ = session.destroy_object(object);
            }
            return Err(TokenError::NotProtected(what));
        }
        let key = Self::open(uri)?;
        // Last: while no session is open, nobody is logged in.
        drop(session);
        Ok(Some(key))
    }

    /// Destroys a key, both halves. Whether there was one.
    ///
    /// # Errors
    /// [`TokenError`] with its cure, for one if several keys have this name: then none is destroyed.
    pub fn destroy(uri: TokenUri) -> Result<bool, TokenError> {
        let token = Token::new(uri);
        let session = token.writing_session()?;
        let failed = |e: Error| token.failed("destroy a key", &e);
        let uri = token.uri();
        let private = session
            .find_objects(&by_name(uri, ObjectClass::PRIVATE_KEY))
            .map_err(failed)?;
        if private.len() > 1 {
            return Err(TokenError::SeveralKeys {
                token: uri.token_text(),
                key: uri.key_text(),
            });
        }
        // The private half first: a public key alone is nobody's.
        let public = session
            .find_objects(&by_name(uri, ObjectClass::PUBLIC_KEY))
            .map_err(failed)?;
        let certificates = match private.first() {
            Some(key) => certificates(&session, &id_of(&session, *key).map_err(failed)?).map_err(failed)?,
            None => Vec::new(),
        };
        for object in private.iter().chain(&public).chain(&certificates) {
            session.destroy_object(*object).map_err(failed)?;
        }
        Ok(!private.is_empty())
    }

    /// Keeps the certificate of a key, and those above it, in the token beside the key, in place of earlier ones: where others
    /// that use the token look for them. They have the key's CKA_ID; its CKA_LABEL is the first one's.
    ///
    /// # Errors
    /// [`TokenError`], for one if there is no room: then the earlier ones are still there.
    pub fn keep_certificates(uri: TokenUri, chain: &[Vec<u8>]) -> Result<(), TokenError> {
        let token = Token::new(uri);
        let session = token.writing_session()?;
        let failed = |e: Error| token.failed("keep a certificate", &e);
        let uri = token.uri();
        let Some(key) = find_private(&token, &session).map_err(failed)? else {
            return Err(TokenError::NoKey {
                token: uri.token_text(),
                key: uri.key_text(),
            });
        };
        let id = id_of(&session, key).map_err(failed)?;
        let old = certificates(&session, &id).map_err(failed)?;
        let mut kept = Vec::new();
        for object in &old {
            kept.push(value(&session, *object).map_err(failed)?);
        }
        // A flash has only so many writes.
        if kept.len() == chain.len() && chain.iter().all(|der| kept.contains(der)) {
            return Ok(());
        }
        let label = uri.object.clone().unwrap_or_default();
        for (n, der) in chain.iter().enumerate() {
            let view = CertificateView::of_certificate(der)
                .map_err(|e| TokenError::Unsuitable(format!("a certificate to keep is none: {e}")))?;
            let label = if n == 0 {
                label.clone()
            } else {
                format!("{label} issuer {n}")
            };
            let serial = view.serial_number.to_der().unwrap_or_default();
            let template = [
                Attribute::Class(ObjectClass::CERTIFICATE),
                Attribute::CertificateType(CertificateType::X_509),
                Attribute::Token(true),
                Attribute::Private(false),
                Attribute::Label(label.into_bytes()),
                Attribute::Id(id.clone()),
                Attribute::Subject(view.subject.der.to_vec()),
                Attribute::Issuer(view.issuer.der.to_vec()),
                Attribute::SerialNumber(serial),
                Attribute::Value(der.clone()),
            ];
            session.create_object(&template).map_err(failed)?;
        }
        // Last: until then the earlier ones are found as well.
        for object in old {
            session.destroy_object(object).map_err(failed)?;
        }
        Ok(())
    }

    /// What the token says of how it is kept.
    pub fn protection(&self) -> Protection {
        self.protection
    }

    fn sign_once(&self, hash: &[u8]) -> Result<Result<Vec<u8>, Error>, TokenError> {
        let session = self.token.session()?;
        let known = *self.handle.lock();
        let handle = match known {
            Some(handle) => handle,
            None => match find_private(&self.token, &session) {
                Ok(Some(handle)) => handle,
                Ok(None) => {
                    return Err(TokenError::NoKey {
                        token: self.token.uri().token_text(),
                        key: self.token.uri().key_text(),
                    });
                }
                Err(e) => return Ok(Err(e)),
            },
        };
        let signed = session.sign(&Mechanism::Ecdsa, handle, hash);
        if signed.is_ok() {
            *self.handle.lock() = Some(handle);
            self.token.keep(session);
        }
        Ok(signed)
    }

    pub(crate) fn try_sign(&self, content: &[u8]) -> Result<Vec<u8>, TokenError> {
        let hash = digest(
            match self.curve {
                Curve::P256 => &SHA256,
                Curve::P384 => &SHA384,
            },
            content,
        );
        let first = self.sign_once(hash.as_ref())?;
        let raw = match first {
            Err(e) if is_stale(&e) => {
                tracing::warn!(error = %e, "the token's sessions are stale; opening it anew");
                *self.handle.lock() = None;
                self.token.forget_sessions();
                self.sign_once(hash.as_ref())?
            }
            other => other,
        };
        let raw = raw.map_err(|e| self.token.failed("sign", &e))?;
        self.curve
            .signature(&raw)
            .ok_or_else(|| self.token.failed("sign", &"its signature has a wrong length"))
    }
}

/// CKA_SIGN, and no PIN with every signature.
fn check_usable(session: &Session, handle: ObjectHandle) -> Result<Result<(), TokenError>, Error> {
    let asked = [
        AttributeType::KeyType,
        AttributeType::Sign,
        AttributeType::AlwaysAuthenticate,
    ];
    for attribute in session.get_attributes(handle, &asked)? {
        let fault = match attribute {
            Attribute::KeyType(kind) if kind != KeyType::EC => {
                "it is no elliptic-curve key; hint: use P-256 or P-384"
            }
            Attribute::Sign(false) => "it may not sign (CKA_SIGN); hint: make a key for signing",
            Attribute::AlwaysAuthenticate(true) => {
                "it asks for the PIN with every signature (CKA_ALWAYS_AUTHENTICATE), which a service cannot give; hint: make a key without it"
            }
            _ => continue,
        };
        return Ok(Err(TokenError::Unsuitable(fault.into())));
    }
    Ok(Ok(()))
}

/// From the public key object that belongs to it, else from the private one, on which some tokens have the point too.
fn public_half(
    session: &Session,
    private: ObjectHandle,
) -> Result<Result<(Curve, SubjectPublicKeyInfoOwned), TokenError>, Error> {
    let (mut id, mut label) = (None, None);
    for attribute in session.get_attributes(private, &[AttributeType::Id, AttributeType::Label])? {
        match attribute {
            Attribute::Id(value) if !value.is_empty() => id = Some(Attribute::Id(value)),
            Attribute::Label(value) if !value.is_empty() => label = Some(Attribute::Label(value)),
            _ => {}
        }
    }
    // By both first: neither need be unique in a token that other tools fill too.
    let mut candidates = Vec::new();
    for names in [vec![&id, &label], vec![&id], vec![&label]] {
        let names: Vec<_> = names.into_iter().flatten().cloned().collect();
        if candidates.is_empty() && !names.is_empty() {
            let template: Vec<_> = std::iter::once(Attribute::Class(ObjectClass::PUBLIC_KEY))
                .chain(names)
                .collect();
            candidates = session.find_objects(&template)?;
        }
    }
    candidates.push(private);
    for object in candidates {
        let (mut curve, mut point) = (None, None);
        for attribute in session.get_attributes(object, &[AttributeType::EcParams, AttributeType::EcPoint])? {
            match attribute {
                Attribute::EcParams(der) => curve = Curve::of_parameters(&der),
                Attribute::EcPoint(value) => point = Some(value),
                _ => {}
            }
        }
        let (Some(curve), Some(value)) = (curve, point) else {
            continue;
        };
        let Some(bits) = curve.point(&value).and_then(|p| BitString::from_bytes(&p).ok()) else {
            continue;
        };
        return Ok(Ok((
            curve,
            SubjectPublicKeyInfoOwned {
                algorithm: AlgorithmIdentifierOwned {
                    oid: EC_PUBLIC_KEY,
                    parameters: Some(Any::from(&curve.oid())),
                },
                subject_public_key: bits,
            },
        )));
    }
    Ok(Err(TokenError::Unsuitable(
        "its public half is not in the token, or not on P-256 or P-384; hint: import the public key object too".into(),
    )))
}

impl Signer for TokenKey {
    fn public_key(&self) -> &SubjectPublicKeyInfoOwned {
        &self.info
    }

    fn algorithm(&self) -> AlgorithmIdentifierOwned {
        AlgorithmIdentifierOwned {
            oid: self.curve.signature_oid(),
            parameters: None,
        }
    }

    fn sign(&self, content: &[u8]) -> Result<Vec<u8>, SigningFailed> {
        self.try_sign(content).map_err(|e| SigningFailed(e.to_string()))
    }
}
