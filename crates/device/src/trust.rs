//! Whom the device believes to be the platform: a server whose certificate chains to a pinned root, and nobody else.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use countersign_identity::Timestamp;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme, version,
};

use crate::clock::DeviceClock;
use crate::fault::LinkFault;
use crate::keys::DeviceKey;

/// How often the time is moved forward to a notBefore while the clock is known to be behind: once per certificate of a
/// chain.
const SOFT_MAX: usize = 8;

/// What the device shows.
pub(crate) type Shown<'a> = Option<(&'a [CertificateDer<'static>], &'a DeviceKey)>;

/// Verifies against pinned roots, and keeps which of them it was.
#[derive(Debug)]
pub(crate) struct Pinned {
    roots: Vec<(CertificateDer<'static>, Arc<WebPkiServerVerifier>)>,
    clock: DeviceClock,
    by: OnceLock<CertificateDer<'static>>,
}

impl Pinned {
    fn new(
        roots: &[CertificateDer<'static>],
        clock: DeviceClock,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, LinkFault> {
        let unusable = |e: &dyn std::fmt::Display| {
            LinkFault::Broken(format!(
                "the pinned platform root cannot be used: {e}; hint: put the platform's root into platform-root.crt (countersign authority export platform)"
            ))
        };
        let mut verifiers = Vec::with_capacity(roots.len());
        for root in roots {
            let mut store = RootCertStore::empty();
            store.add(root.clone()).map_err(|e| unusable(&e))?;
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone())
                .build()
                .map_err(|e| unusable(&e))?;
            verifiers.push((root.clone(), verifier));
        }
        if verifiers.is_empty() {
            return Err(unusable(&"there is none"));
        }
        Ok(Self {
            roots: verifiers,
            clock,
            by: OnceLock::new(),
        })
    }

    /// The pinned root that the server's certificate chained to.
    pub(crate) fn authenticated_by(&self) -> Option<CertificateDer<'static>> {
        self.by.get().cloned()
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let now = self.clock.now();
        let mut fault = None;
        for (root, verifier) in &self.roots {
            let mut at = unix(now);
            for _ in 0..SOFT_MAX {
                match verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp, at) {
                    Ok(verified) => {
                        let _ = self.by.set(root.clone());
                        return Ok(verified);
                    }
                    // The clock is known to be behind, so the certificate may be valid all the same. Everything else is
                    // checked again at the moment it begins, the ends of validity included.
                    Err(Error::InvalidCertificate(CertificateError::NotValidYetContext {
                        not_before,
                        ..
                    })) if self.clock.is_behind() && not_before > at => at = not_before,
                    Err(e) => {
                        // "Unknown issuer" says least.
                        if !matches!(fault, Some(ref f) if !is_unknown(f)) {
                            fault = Some(e);
                        }
                        break;
                    }
                }
            }
        }
        Err(fault.unwrap_or_else(|| CertificateError::UnknownIssuer.into()))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match self.roots.first() {
            Some((_, verifier)) => verifier.verify_tls12_signature(message, cert, dss),
            None => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match self.roots.first() {
            Some((_, verifier)) => verifier.verify_tls13_signature(message, cert, dss),
            None => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.roots
            .first()
            .map(|(_, v)| v.supported_verify_schemes())
            .unwrap_or_default()
    }
}

fn is_unknown(e: &Error) -> bool {
    matches!(e, Error::InvalidCertificate(CertificateError::UnknownIssuer))
}

fn unix(t: Timestamp) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(t.unix_s().max(0).unsigned_abs()))
}

/// The TLS configuration of every connection of the device, and the verifier that says by which root it was authenticated.
pub(crate) fn tls(
    roots: &[CertificateDer<'static>],
    clock: DeviceClock,
    shown: Shown<'_>,
    alpn: &[u8],
) -> Result<(Arc<ClientConfig>, Arc<Pinned>), LinkFault> {
    let unusable = |e: Error| LinkFault::Broken(format!("the identity cannot be used: {e}"));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let pinned = Arc::new(Pinned::new(roots, clock, &provider)?);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(pinned.clone());
    let mut config = match shown {
        Some((chain, key)) => {
            let certified = key
                .certified(chain)
                .map_err(|e| LinkFault::Key(format!("{}: {e}", key.place())))?;
            builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok((Arc::new(config), pinned))
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};

    use super::*;

    struct Platform {
        root: CertificateDer<'static>,
        server: CertificateDer<'static>,
    }

    /// A root that is always valid, and a server's certificate valid between two days from now.
    fn platform(from: i64, to: i64) -> Platform {
        let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let mut root = CertificateParams::new(vec![]).unwrap();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let now = time::OffsetDateTime::now_utc();
        let day = |n: i64| {
            let offset = Duration::from_secs(n.unsigned_abs() * 86_400);
            if n < 0 { now - offset } else { now + offset }
        };
        let mut server = CertificateParams::new(vec!["localhost".into()]).unwrap();
        (server.not_before, server.not_after) = (day(from), day(to));
        let issuer = Issuer::from_params(&root, &root_key);
        Platform {
            server: server.signed_by(&key, &issuer).unwrap().der().clone(),
            root: root.self_signed(&root_key).unwrap().der().clone(),
        }
    }

    fn verify(
        pinned: &[&Platform],
        server: &Platform,
        clock: DeviceClock,
    ) -> (Result<(), Error>, Option<usize>) {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let roots: Vec<_> = pinned.iter().map(|p| p.root.clone()).collect();
        let verifier = Pinned::new(&roots, clock, &provider).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let verified = verifier.verify_server_cert(&server.server, &[], &name, &[], unix(clock.now()));
        let by = verifier.authenticated_by();
        (
            verified.map(drop),
            by.and_then(|by| roots.iter().position(|r| *r == by)),
        )
    }

    /// A clock whose floor lies days from the system's.
    fn floor(days: i64) -> DeviceClock {
        let now = DeviceClock::system().now().unix_s();
        DeviceClock::new(Timestamp::from_unix_s(now + days * 86_400))
    }

    #[test]
    fn the_root_that_vouches_is_told_and_no_other_is_believed() {
        let (a, b) = (platform(-1, 1), platform(-1, 1));
        assert_eq!(verify(&[&a, &b], &b, floor(-9)), (Ok(()), Some(1)));
        let (refused, by) = verify(&[&a], &b, floor(-9));
        assert!(refused.is_err() && by.is_none());
    }

    #[test]
    fn only_a_clock_that_is_known_to_be_behind_is_doubted() {
        let sound = floor(-9);
        let behind = floor(100);
        let begins = platform(200, 300);
        let dated = |(verified, _): (Result<(), Error>, _)| match verified {
            Ok(()) => "valid",
            Err(Error::InvalidCertificate(CertificateError::NotValidYetContext { .. })) => "not yet",
            Err(Error::InvalidCertificate(CertificateError::ExpiredContext { .. })) => "expired",
            Err(_) => "else",
        };
        assert_eq!(dated(verify(&[&begins], &begins, sound)), "not yet");
        assert_eq!(dated(verify(&[&begins], &begins, behind)), "valid");
        // Its end is held against the floor, whatever the clock says.
        let ended = platform(-2, 50);
        assert_eq!(dated(verify(&[&ended], &ended, sound)), "valid");
        assert_eq!(dated(verify(&[&ended], &ended, behind)), "expired");
        // And everything else is checked all the same.
        let stranger = platform(200, 300);
        assert_eq!(dated(verify(&[&begins], &stranger, behind)), "else");
    }
}
