//! Manifests of secure elements: a JSON list of entries, each signed by the manufacturer (JWS in flattened JSON
//! serialisation, RFC 7515 section 7.2.2, ES256), each telling one element's unique id, public keys and certificates.
//!
//! The form is the published one of the Microchip Trust Platform; nothing in it is particular to one maker. Each entry
//! stands by itself: it is verified, or refused by its name, whatever the others are.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use countersign_identity::certificate::{CertificateError, KeyAlgorithm};
use countersign_identity::{CertificateFacts, Fingerprint, Timestamp, signed};
use serde::{Deserialize, Serialize};

/// The largest entry, in bytes of its payload.
const PAYLOAD_MAX: usize = 64 << 10;
/// The most keys of one element; the elements that exist have 16 slots.
const KEYS_MAX: usize = 64;

/// One entry, as it stands in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestEntry {
    /// What is told of the element, base64url.
    pub payload: String,
    /// How it is signed, base64url.
    pub protected: String,
    /// What is repeated for search, not signed.
    #[serde(default)]
    pub header: UnprotectedHeader,
    /// The signature, base64url of r and s.
    pub signature: String,
}

/// The part of an entry that is not signed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnprotectedHeader {
    /// The element's unique id again.
    #[serde(default, rename = "uniqueId", skip_serializing_if = "Option::is_none")]
    pub unique_id: Option<String>,
}

#[derive(Deserialize)]
struct ProtectedHeader {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default, rename = "x5t#S256")]
    certificate_sha256: Option<String>,
    #[serde(default)]
    crit: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SecureElement {
    unique_id: String,
    #[serde(default)]
    public_key_set: Option<KeySet>,
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<PublicJwk>,
}

#[derive(Deserialize)]
struct PublicJwk {
    #[serde(default)]
    kid: Option<String>,
    kty: String,
    #[serde(default)]
    crv: Option<String>,
    #[serde(default)]
    x: Option<String>,
    #[serde(default)]
    y: Option<String>,
    #[serde(default)]
    x5c: Vec<String>,
}

/// Why the signer's certificate cannot verify a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignerFault {
    /// It is no certificate.
    #[error(
        "the signer's certificate cannot be read: {0}; hint: it is the PEM file that the manufacturer publishes beside the manifest"
    )]
    Unreadable(String),
    /// It is not in force.
    #[error(
        "the signer's certificate is valid from {from} to {to}, it is {now}; hint: look at the clock, or get the manufacturer's current certificate"
    )]
    NotInForce {
        /// Its notBefore.
        from: Timestamp,
        /// Its notAfter.
        to: Timestamp,
        /// The time.
        now: Timestamp,
    },
    /// Its key is not for this.
    #[error(
        "the signer's certificate has no P-256 key for signatures; hint: manifests are signed by ES256, name the certificate of that key"
    )]
    Key,
}

/// Why an entry is refused. Nothing of it was taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryFault {
    /// A part is not of the form.
    #[error("{0} is not of the form of a manifest; hint: get the manifest again from the manufacturer")]
    Malformed(&'static str),
    /// Another algorithm, or extensions that must be understood.
    #[error(
        "it is signed by {0}, only ES256 is accepted; hint: ask the manufacturer for a manifest signed by ES256"
    )]
    Algorithm(String),
    /// The header names another certificate.
    #[error(
        "it was signed for another certificate than --signer; hint: name the certificate that the manifest was signed with"
    )]
    OtherSigner,
    /// The signature does not hold.
    #[error(
        "its signature does not hold; hint: it was changed or damaged, get it again from the manufacturer"
    )]
    Signature,
    /// The id outside differs from the one that is signed.
    #[error(
        "its header says {outside}, what is signed says {signed}; hint: it was changed, get it again from the manufacturer"
    )]
    OtherId {
        /// The id outside.
        outside: String,
        /// The id that is signed.
        signed: String,
    },
    /// No key has a certificate.
    #[error("it has no certificate{}; hint: have the element's key certified first (countersign factory issue --csr)", .0.as_ref().map(|k| format!(" for key {k}")).unwrap_or_default())]
    NoCertificate(Option<String>),
    /// The certificate is for another key, or not issued by what stands beside it.
    #[error("its certificate {0}; hint: ask the manufacturer, this element cannot be trusted")]
    Certificate(String),
}

/// Who signed a manifest: a certificate whose dates and key were checked.
#[derive(Debug, Clone)]
pub struct ManifestSigner {
    key: Vec<u8>,
    sha256: String,
    key_id: Option<String>,
}

/// One element whose entry holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedElement {
    /// Its unique id, as the manufacturer writes it.
    pub unique_id: String,
    /// What its certificate says.
    pub certificate: CertificateFacts,
}

impl ManifestSigner {
    /// Takes a signer's certificate (DER).
    ///
    /// # Errors
    /// [`SignerFault`].
    pub fn new(der: &[u8], now: Timestamp) -> Result<Self, SignerFault> {
        let unreadable = |e: CertificateError| SignerFault::Unreadable(e.to_string());
        let facts = CertificateFacts::parse(der).map_err(unreadable)?;
        if !facts.is_valid_at(now) {
            return Err(SignerFault::NotInForce {
                from: facts.not_before,
                to: facts.not_after,
                now,
            });
        }
        let may_sign = facts.key_usage.is_none_or(|u| u.digital_signature);
        if facts.key_algorithm != KeyAlgorithm::EcP256 || !may_sign {
            return Err(SignerFault::Key);
        }
        let key = signed::key_of(der).map_err(|e| SignerFault::Unreadable(e.to_string()))?;
        Ok(Self {
            key: key.subject_public_key.raw_bytes().to_vec(),
            sha256: URL_SAFE_NO_PAD.encode(Fingerprint::of(der).as_bytes()),
            key_id: facts.subject_key_id.map(|id| URL_SAFE_NO_PAD.encode(id)),
        })
    }
}

fn base64url(text: &str, what: &'static str) -> Result<Vec<u8>, EntryFault> {
    URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| EntryFault::Malformed(what))
}

impl ManifestEntry {
    /// What the entry calls itself, not verified: for messages.
    pub fn name(&self) -> &str {
        self.header.unique_id.as_deref().unwrap_or("(without uniqueId)")
    }

    /// Verifies the signature and takes the element's certificate: that of the key `key`, or of the first that has one.
    ///
    /// # Errors
    /// [`EntryFault`].
    pub fn verify(&self, signer: &ManifestSigner, key: Option<&str>) -> Result<VerifiedElement, EntryFault> {
        if self.payload.len() > PAYLOAD_MAX {
            return Err(EntryFault::Malformed("its payload (too long)"));
        }
        let protected: ProtectedHeader = serde_json::from_slice(&base64url(&self.protected, "its header")?)
            .map_err(|_| EntryFault::Malformed("its header"))?;
        if protected.alg != "ES256" {
            return Err(EntryFault::Algorithm(protected.alg));
        }
        // RFC 7515 section 4.1.11: what is critical and not understood is refused.
        if protected.crit.is_some() {
            return Err(EntryFault::Algorithm("ES256 with critical extensions".into()));
        }
        let differs =
            |said: &Option<String>, is: Option<&str>| said.as_deref().is_some_and(|s| Some(s) != is);
        if differs(&protected.certificate_sha256, Some(&signer.sha256))
            || (signer.key_id.is_some() && differs(&protected.kid, signer.key_id.as_deref()))
        {
            return Err(EntryFault::OtherSigner);
        }
        let signature = base64url(&self.signature, "its signature")?;
        let content = format!("{}.{}", self.protected, self.payload);
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &signer.key)
            .verify(content.as_bytes(), &signature)
            .map_err(|_| EntryFault::Signature)?;
        let element: SecureElement = serde_json::from_slice(&base64url(&self.payload, "its payload")?)
            .map_err(|_| EntryFault::Malformed("its payload"))?;
        if let Some(outside) = &self.header.unique_id
            && *outside != element.unique_id
        {
            return Err(EntryFault::OtherId {
                outside: outside.clone(),
                signed: element.unique_id,
            });
        }
        let keys = element.public_key_set.map(|s| s.keys).unwrap_or_default();
        if keys.len() > KEYS_MAX {
            return Err(EntryFault::Malformed("its list of keys (too long)"));
        }
        let chosen = keys.into_iter().find(|k| match key {
            Some(kid) => k.kid.as_deref() == Some(kid),
            None => !k.x5c.is_empty(),
        });
        let none = || EntryFault::NoCertificate(key.map(str::to_owned));
        let certificate = chosen.ok_or_else(none)?.certificate()?.ok_or_else(none)?;
        Ok(VerifiedElement {
            unique_id: element.unique_id,
            certificate,
        })
    }
}

impl PublicJwk {
    /// The key's own certificate, if it has one: it must be for this very key, and issued by what stands behind it.
    fn certificate(&self) -> Result<Option<CertificateFacts>, EntryFault> {
        let chain = self
            .x5c
            .iter()
            .map(|c| STANDARD.decode(c).map_err(|_| EntryFault::Malformed("its x5c")))
            .collect::<Result<Vec<_>, _>>()?;
        let Some(leaf) = chain.first() else {
            return Ok(None);
        };
        let wrong = |what: String| EntryFault::Certificate(what);
        let facts = CertificateFacts::parse(leaf).map_err(|e| wrong(format!("cannot be read: {e}")))?;
        let info = signed::key_of(leaf).map_err(|e| wrong(format!("cannot be read: {e}")))?;
        let (Some("P-256"), "EC", Some(x), Some(y)) =
            (self.crv.as_deref(), self.kty.as_str(), &self.x, &self.y)
        else {
            return Err(EntryFault::Malformed("its key (only EC P-256 is known)"));
        };
        let point = [vec![4], base64url(x, "its key")?, base64url(y, "its key")?].concat();
        if facts.key_algorithm != KeyAlgorithm::EcP256 || info.subject_public_key.raw_bytes() != point {
            return Err(wrong("is for another key than the element's".into()));
        }
        if facts.ca.is_some() {
            return Err(wrong("is a CA's".into()));
        }
        for pair in chain.windows(2) {
            signed::key_of(&pair[1])
                .and_then(|key| signed::Signed::parse(&pair[0])?.verify(&key))
                .map_err(|e| wrong(format!("is not issued by the one beside it: {e}")))?;
        }
        Ok(Some(facts))
    }
}
