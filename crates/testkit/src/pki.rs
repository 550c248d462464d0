//! A throw-away PKI, and certificates with every fault that a gateway must see.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CrlDistributionPoint,
    CrlIssuingDistributionPoint, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevocationReason, RevokedCertParams, SerialNumber,
    SubjectPublicKeyInfo,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};

/// A certificate chain with its key.
#[derive(Debug)]
pub struct Identity {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivateKeyDer<'static>,
    /// The leaf, PEM.
    pub pem: String,
    /// The key, PEM.
    pub key_pem: String,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
            pem: self.pem.clone(),
            key_pem: self.key_pem.clone(),
        }
    }
}

impl Identity {
    /// Reads `device.crt` and `device.key` of an identity folder.
    ///
    /// # Errors
    /// If they are not there, or no PEM.
    pub fn load(folder: &std::path::Path) -> anyhow::Result<Self> {
        let pem = std::fs::read_to_string(folder.join("device.crt"))?;
        let key_pem = std::fs::read_to_string(folder.join("device.key"))?;
        Ok(Self {
            chain: CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>()?,
            key: PrivateKeyDer::from_pem_slice(key_pem.as_bytes())?,
            pem,
            key_pem,
        })
    }

    /// The leaf's serial number.
    pub fn serial(&self) -> Vec<u8> {
        let facts = countersign_identity::CertificateFacts::parse(&self.chain[0]).expect("a certificate");
        (0..facts.serial.len())
            .step_by(2)
            .map(|n| u8::from_str_radix(&facts.serial[n..n + 2], 16).expect("hex"))
            .collect()
    }
}

/// A CA.
#[derive(Debug)]
pub struct Ca {
    params: CertificateParams,
    key: KeyPair,
    certificate: CertificateDer<'static>,
    /// The CA's certificate, PEM.
    pub pem: String,
}

/// What a device certificate is like. [`Leaf::named`] is a good one.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// Common names; usually one.
    pub common_names: Vec<String>,
    /// Days from now to notBefore and notAfter.
    pub days: (i64, i64),
    /// extKeyUsage; `None` leaves it out.
    pub usage: Option<Vec<ExtendedKeyUsagePurpose>>,
    /// Whether it is a CA itself.
    pub ca: bool,
    /// The distribution point (URL) whose list would name it, if it says so.
    pub crl_point: Option<String>,
}

impl Leaf {
    /// A good device certificate.
    pub fn named(name: &str) -> Self {
        Self {
            common_names: vec![name.to_owned()],
            days: (-1, 30),
            usage: Some(vec![ExtendedKeyUsagePurpose::ClientAuth]),
            ca: false,
            crl_point: None,
        }
    }
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key")
}

fn ca_params(name: &str, path_length: Option<u8>) -> CertificateParams {
    let mut params = CertificateParams::new(vec![]).expect("parameters");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca =
        IsCa::Ca(path_length.map_or(BasicConstraints::Unconstrained, BasicConstraints::Constrained));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params
}

impl Ca {
    /// A root.
    pub fn root(name: &str, path_length: Option<u8>) -> Self {
        let (params, key) = (ca_params(name, path_length), key());
        let certificate = params.self_signed(&key).expect("a root");
        Self {
            pem: certificate.pem(),
            certificate: certificate.der().clone(),
            params,
            key,
        }
    }

    /// A CA below this one.
    pub fn below(&self, name: &str, path_length: Option<u8>) -> Self {
        let (params, key) = (ca_params(name, path_length), key());
        let certificate = params.signed_by(&key, &self.issuer()).expect("a CA");
        Self {
            pem: certificate.pem(),
            certificate: certificate.der().clone(),
            params,
            key,
        }
    }

    /// The certificate (DER) of a TPM's endorsement key, whose SubjectPublicKeyInfo it is: without a subject, as many are.
    pub fn endorse(&self, info: &[u8]) -> Vec<u8> {
        let purpose = ExtendedKeyUsagePurpose::Other(vec![2, 23, 133, 8, 1]);
        self.endorse_as(info, vec![purpose], vec![KeyUsagePurpose::KeyAgreement], (-1, 30))
    }

    /// The same with other usages, and days from now to notBefore and notAfter.
    pub fn endorse_as(
        &self,
        info: &[u8],
        purposes: Vec<ExtendedKeyUsagePurpose>,
        usages: Vec<KeyUsagePurpose>,
        days: (i64, i64),
    ) -> Vec<u8> {
        let mut params = CertificateParams::new(vec![]).expect("parameters");
        params.distinguished_name = DistinguishedName::new();
        params.key_usages = usages;
        params.extended_key_usages = purposes;
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (now + Duration::days(days.0), now + Duration::days(days.1));
        let key = SubjectPublicKeyInfo::from_der(info).expect("a public key");
        let certificate = params.signed_by(&key, &self.issuer()).expect("a certificate");
        certificate.der().to_vec()
    }

    /// A CA below this one that expires so many seconds from now.
    pub fn below_for_seconds(&self, name: &str, seconds: i64) -> Self {
        let (mut params, key) = (ca_params(name, None), key());
        params.not_after = OffsetDateTime::now_utc() + Duration::seconds(seconds);
        let certificate = params.signed_by(&key, &self.issuer()).expect("a CA");
        Self {
            pem: certificate.pem(),
            certificate: certificate.der().clone(),
            params,
            key,
        }
    }

    /// Another CA of the same name and another key.
    pub fn twin(&self) -> Self {
        let (params, key) = (self.params.clone(), key());
        let certificate = params.self_signed(&key).expect("a twin");
        Self {
            pem: certificate.pem(),
            certificate: certificate.der().clone(),
            params,
            key,
        }
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Its private key, PEM.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// A certificate that proves possession of its key, PEM.
    pub fn prove(&self, code: &str) -> String {
        self.issue(&Leaf::named(code), &[]).pem
    }

    /// Issues a certificate; `above` is sent along after it.
    pub fn issue(&self, leaf: &Leaf, above: &[&Self]) -> Identity {
        self.issue_for(leaf, above, key())
    }

    /// Issues a good device certificate that expires so many seconds from now.
    pub fn issue_for_seconds(&self, name: &str, seconds: i64) -> Identity {
        let until = OffsetDateTime::now_utc() + Duration::seconds(seconds);
        self.issue_until(&Leaf::named(name), &[], key(), Some(until))
    }

    /// Issues a certificate for the key of another one.
    pub fn issue_again(&self, leaf: &Leaf, other: &Identity) -> Identity {
        self.issue_for(leaf, &[], KeyPair::from_pem(&other.key_pem).expect("a key"))
    }

    /// Issues a server's certificate for a host name.
    pub fn issue_server(&self, host: &str) -> Identity {
        let leaf_key = key();
        let mut params = CertificateParams::new(vec![host.to_owned()]).expect("parameters");
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (now - Duration::days(1), now + Duration::days(30));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params
            .signed_by(&leaf_key, &self.issuer())
            .expect("a certificate");
        identity(certificate.pem(), vec![certificate.der().clone()], &leaf_key)
    }

    /// A revocation list, PEM: with this number, made and next due so many minutes from now.
    pub fn revocation_list(&self, revoked: &[&Identity], number: u64, minutes: (i64, i64)) -> String {
        self.revocation_list_of(revoked, number, (minutes.0 * 60, minutes.1 * 60))
    }

    /// The same with seconds from now to thisUpdate and nextUpdate.
    pub fn revocation_list_of(&self, revoked: &[&Identity], number: u64, seconds: (i64, i64)) -> String {
        self.revocation_list_at(None, revoked, number, seconds)
    }

    /// The same, of one distribution point (URL) of several.
    pub fn revocation_list_at(
        &self,
        point: Option<&str>,
        revoked: &[&Identity],
        number: u64,
        seconds: (i64, i64),
    ) -> String {
        let now = OffsetDateTime::now_utc();
        let revoked = revoked
            .iter()
            .map(|identity| RevokedCertParams {
                serial_number: SerialNumber::from(identity.serial()),
                revocation_time: now,
                reason_code: Some(RevocationReason::KeyCompromise),
                invalidity_date: None,
            })
            .collect();
        let list = CertificateRevocationListParams {
            this_update: now + Duration::seconds(seconds.0),
            next_update: now + Duration::seconds(seconds.1),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: point.map(|url| CrlIssuingDistributionPoint {
                distribution_point: CrlDistributionPoint {
                    uris: vec![url.to_owned()],
                },
                scope: None,
            }),
            revoked_certs: revoked,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer())
            .and_then(|list| list.pem())
            .expect("a revocation list")
    }

    fn issue_for(&self, leaf: &Leaf, above: &[&Self], leaf_key: KeyPair) -> Identity {
        self.issue_until(leaf, above, leaf_key, None)
    }

    fn issue_until(
        &self,
        leaf: &Leaf,
        above: &[&Self],
        leaf_key: KeyPair,
        until: Option<OffsetDateTime>,
    ) -> Identity {
        let mut params = CertificateParams::new(vec![]).expect("parameters");
        params.distinguished_name = DistinguishedName::new();
        for name in &leaf.common_names {
            params.distinguished_name.push(DnType::CommonName, name.as_str());
        }
        if leaf.common_names.is_empty() {
            params
                .distinguished_name
                .push(DnType::OrganizationName, "no common name");
        }
        let now = OffsetDateTime::now_utc();
        params.not_before = now + Duration::days(leaf.days.0);
        params.not_after = until.unwrap_or(now + Duration::days(leaf.days.1));
        params.serial_number = Some(serial_of(&leaf_key));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = leaf.usage.clone().unwrap_or_default();
        params.use_authority_key_identifier_extension = true;
        params.crl_distribution_points = leaf
            .crl_point
            .iter()
            .map(|url| CrlDistributionPoint {
                uris: vec![url.clone()],
            })
            .collect();
        if leaf.ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages.push(KeyUsagePurpose::KeyCertSign);
        }
        let certificate = params
            .signed_by(&leaf_key, &self.issuer())
            .expect("a certificate");
        let chain = std::iter::once(certificate.der().clone())
            .chain(above.iter().map(|ca| ca.certificate.clone()))
            .collect();
        identity(certificate.pem(), chain, &leaf_key)
    }
}

fn identity(pem: String, chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Identity {
    Identity {
        chain,
        key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        pem,
        key_pem: key.serialize_pem(),
    }
}

fn serial_of(key: &KeyPair) -> SerialNumber {
    // Positive and without a leading zero, so that it is the same in every notation.
    let mut bytes = key.public_key_raw()[1..13].to_vec();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from(bytes)
}

/// A self-signed certificate.
pub fn self_signed(name: &str) -> Identity {
    self_signed_from(name, -1)
}

/// A self-signed certificate that is valid from so many days from now on, for 30 days.
pub fn self_signed_from(name: &str, days: i64) -> Identity {
    let key = key();
    let mut params = CertificateParams::new(vec![]).expect("parameters");
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.serial_number = Some(serial_of(&key));
    params.not_before = OffsetDateTime::now_utc() + Duration::days(days);
    params.not_after = params.not_before + Duration::days(30);
    let certificate = params.self_signed(&key).expect("a certificate");
    identity(certificate.pem(), vec![certificate.der().clone()], &key)
}

/// A certificate request with a key of its own, PEM.
pub fn request(name: &str) -> String {
    let mut params = CertificateParams::new(vec![]).expect("parameters");
    params.distinguished_name.push(DnType::CommonName, name);
    let request = params.serialize_request(&key()).expect("a request");
    request.pem().expect("PEM")
}

/// The point of an identity's P-256 key, uncompressed: 0x04, x, y.
pub fn p256_point(identity: &Identity) -> Vec<u8> {
    KeyPair::from_pem(&identity.key_pem)
        .expect("a key")
        .public_key_raw()
        .to_vec()
}

/// SHA-256, hex.
pub fn sha256_hex(bytes: &[u8]) -> String {
    countersign_identity::Fingerprint::of(bytes).to_string()
}
