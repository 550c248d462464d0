//! A CA's key in a file, used once on the operator's machine to prove that they hold it. It is not sent anywhere.

use std::path::Path;
use std::sync::Arc;

use countersign_authority::possession_proof;
use countersign_factory::request::pem;
use countersign_identity::Fingerprint;
use countersign_identity::signed::{Signer, SigningFailed};
use rustls::SignatureScheme;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::SigningKey;
use spki::der::Decode;
use spki::der::asn1::Null;
use spki::{AlgorithmIdentifierOwned, ObjectIdentifier, SubjectPublicKeyInfoOwned};

use crate::failure::Failure;
use crate::service::now;

/// A CA's certificate and key.
pub(super) struct CaKey {
    certificate: CertificateDer<'static>,
    key: FileKey,
}

struct FileKey {
    key: Arc<dyn SigningKey>,
    public: SubjectPublicKeyInfoOwned,
    scheme: SignatureScheme,
    algorithm: AlgorithmIdentifierOwned,
}

/// What a CA may sign its proof with: ecdsa-with-SHA256 and -SHA384 (RFC 5758), Ed25519 (RFC 8410),
/// sha256WithRSAEncryption (RFC 8017).
const SCHEMES: [(SignatureScheme, &str); 4] = [
    (SignatureScheme::ECDSA_NISTP256_SHA256, "1.2.840.10045.4.3.2"),
    (SignatureScheme::ECDSA_NISTP384_SHA384, "1.2.840.10045.4.3.3"),
    (SignatureScheme::ED25519, "1.3.101.112"),
    (SignatureScheme::RSA_PKCS1_SHA256, "1.2.840.113549.1.1.11"),
];

impl Signer for FileKey {
    fn public_key(&self) -> &SubjectPublicKeyInfoOwned {
        &self.public
    }

    fn algorithm(&self) -> AlgorithmIdentifierOwned {
        self.algorithm.clone()
    }

    fn sign(&self, content: &[u8]) -> Result<Vec<u8>, SigningFailed> {
        self.key
            .choose_scheme(&[self.scheme])
            .ok_or_else(|| SigningFailed("the key does not sign so".into()))?
            .sign(content)
            .map_err(|e| SigningFailed(e.to_string()))
    }
}

/// Reads a key (PKCS#8, SEC1 or PKCS#1, PEM).
///
/// # Errors
/// [`Failure`] that names the file.
pub(super) fn load(path: &Path, certificate: &str) -> Result<CaKey, Failure> {
    let wrong = |what: String| Failure::invalid(format!("{}: {what}", path.display()));
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes())
        .map_err(|e| Failure::invalid(format!("the authority's file is no certificate in PEM: {e}")))?;
    let der = PrivateKeyDer::from_pem_file(path).map_err(|e| wrong(e.to_string()))?;
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der).map_err(|e| wrong(e.to_string()))?;
    let (scheme, oid) = SCHEMES
        .into_iter()
        .find(|(scheme, _)| key.choose_scheme(&[*scheme]).is_some())
        .ok_or_else(|| wrong("a key of a kind that is not supported".into()))?;
    let public = key
        .public_key()
        .and_then(|spki| SubjectPublicKeyInfoOwned::from_der(&spki).ok())
        .ok_or_else(|| wrong("its public half cannot be read".into()))?;
    let algorithm = AlgorithmIdentifierOwned {
        oid: ObjectIdentifier::new_unwrap(oid),
        // RSA's parameters are NULL, all others' are absent (RFC 4055 section 5).
        parameters: (scheme == SignatureScheme::RSA_PKCS1_SHA256).then(|| Null.into()),
    };
    Ok(CaKey {
        certificate,
        key: FileKey {
            key,
            public,
            scheme,
            algorithm,
        },
    })
}

impl CaKey {
    /// The CA's certificate.
    pub(super) fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// A certificate with the code as common name, PEM.
    ///
    /// # Errors
    /// [`Failure`] if the key is not the CA's.
    pub(super) fn prove(&self, code: &str) -> Result<String, Failure> {
        let proof = possession_proof(&self.certificate, &self.key, code, now())
            .map_err(|e| {
                Failure::invalid(format!(
                    "the key does not prove possession of the CA: {e}; hint: give the key of the CA's certificate (--key)"
                ))
            })?;
        Ok(pem("CERTIFICATE", &proof))
    }
}
