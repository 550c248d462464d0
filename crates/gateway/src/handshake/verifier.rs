//! Judges client certificates: forms the verdict on Certificate, answers it only on CertificateVerify.
//!
//! Anyone can replay a public certificate. So a peer that cannot prove possession learns nothing but "decrypt_error",
//! whatever we think of the certificate it showed.

use std::sync::Arc;
use std::time::Instant;

use countersign_identity::{CertificateFacts, ChainFault, PathDigest, VerifiedChain};
use countersign_policy::denial::Wire;
use countersign_policy::{Denial, DenialCode, Possession};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};

use super::chains::{ShownChain, VerifiedChains};
use super::context::{self, HandshakeContext};
use crate::judge;
use crate::metrics::count;
use crate::shaping::Standing;

/// The one verifier of all device connections. Fails closed when it is called outside of a lent context.
#[derive(Debug)]
pub struct DeviceVerifier {
    algorithms: WebPkiSupportedAlgorithms,
    chains: Arc<VerifiedChains>,
}

impl DeviceVerifier {
    /// With the signature algorithms of the process's one crypto provider, and the chains that are remembered.
    pub fn new(algorithms: WebPkiSupportedAlgorithms, chains: Arc<VerifiedChains>) -> Self {
        Self { algorithms, chains }
    }

    /// The second half: possession first, then the verdict.
    fn answer(
        &self,
        signature: Result<HandshakeSignatureValid, Error>,
    ) -> Result<HandshakeSignatureValid, Error> {
        context::with(|context| {
            context.possession_at = Some(Instant::now());
            let valid = match (signature, &context.verdict) {
                (Ok(valid), _) => valid,
                // Nobody can check a signature by what is no certificate of version 3: that is what is wrong, and it is
                // about nothing but the bytes that were shown.
                (Err(e), Some(Err(denial)))
                    if is_unreadable(&e) && denial.code == DenialCode::ChainMalformed =>
                {
                    return Err(error_with_alert(denial));
                }
                (Err(e), _) => {
                    // Forget the verdict: it must not be told, and must not count as this device's.
                    context.verdict = Some(Err(Denial::new(DenialCode::PossessionFailed, e.to_string())));
                    return Err(e);
                }
            };
            context.possession = Possession::Proven;
            count_attempt(context);
            match &context.verdict {
                Some(Ok(_)) => {
                    if let Some((shown, path)) = context.remember.take() {
                        self.chains.insert(shown, path);
                    }
                    Ok(valid)
                }
                Some(Err(denial)) => Err(error_with_alert(denial)),
                None => Err(Error::General("no verdict was formed".into())),
            }
        })
        .unwrap_or_else(|| {
            Err(Error::General(
                "the verifier was called outside of a connection".into(),
            ))
        })
    }
}

impl ClientCertVerifier for DeviceVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Thousands of CA names do not fit a handshake message, and would tell strangers who our tenants are.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        context::with(|context| {
            // A full handshake: whatever a ticket brought, it was not taken.
            context.resumed = None;
            context.verdict = Some(verdict(&self.chains, context, end_entity, intermediates));
            context.leaf_der = Some(end_entity.as_ref().into());
            context.certificate_at = Some(Instant::now());
        })
        .ok_or_else(|| Error::General("the verifier was called outside of a connection".into()))?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.answer(rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.algorithms,
        ))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.answer(rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.algorithms,
        ))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn verdict(
    chains: &VerifiedChains,
    context: &mut HandshakeContext,
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Result<VerifiedChain, Denial> {
    let (shown, leaf) = judge::shown(end_entity, intermediates);
    context.shown = Some(shown);
    let leaf = leaf?;
    // Read here, before anything is spent on the chain; counted only once the key is proven.
    if let Some(attempts) = &context.attempts {
        context.standing = attempts.standing(&leaf.fingerprint);
    }
    if let Standing::FarOver(wait) = context.standing {
        return Err(Denial::from(DenialCode::DeviceRateIgnored).retry_after(wait));
    }
    let (asked, now) = (context.asked.as_ref(), context.now);
    let mut remember = None;
    let chain = judge::chain(
        context.facts.as_ref(),
        asked,
        leaf,
        end_entity,
        now,
        |anchors, leaf| {
            let check = |leaf, verified: Option<PathDigest>| match verified {
                Some(path) => {
                    VerifiedChain::verify_again(anchors, asked, leaf, end_entity, intermediates, now, path)
                }
                None => VerifiedChain::verify(anchors, asked, leaf, end_entity, intermediates, now),
            };
            let Some(shown) = chains.shown(asked, &leaf, intermediates) else {
                return check(leaf, None);
            };
            let (chain, found) = remembered(chains, shown, leaf, check);
            remember = found;
            chain
        },
    );
    context.remember = remember;
    chain
}

/// The key was proven: the attempt counts to the device's disadvantage, if it is one of ours. Neither who replays a
/// certificate nor who makes one of their own gets here.
fn count_attempt(context: &HandshakeContext) {
    let (Some(shown), Some(attempts)) = (&context.shown, &context.attempts) else {
        return;
    };
    let is_ours =
        matches!(context.verdict, Some(Ok(_))) || context.facts.credential(&shown.fingerprint).is_some();
    if is_ours {
        attempts.count(shown.fingerprint);
    }
}

/// Checks a chain without its signatures if they are known to hold; if that does not come out well, with them, for only that
/// tells what is wrong, or finds another path. The second value is to be remembered once possession is proven.
fn remembered(
    chains: &VerifiedChains,
    shown: ShownChain,
    leaf: CertificateFacts,
    check: impl Fn(CertificateFacts, Option<PathDigest>) -> Result<VerifiedChain, ChainFault>,
) -> (
    Result<VerifiedChain, ChainFault>,
    Option<(ShownChain, PathDigest)>,
) {
    if let Some(path) = chains.get(&shown) {
        if let Ok(chain) = check(leaf.clone(), Some(path)) {
            count(&chains.hits);
            return (Ok(chain), None);
        }
        chains.forget(&shown);
    }
    count(&chains.misses);
    let chain = check(leaf, None);
    let remember = chain.as_ref().ok().map(|chain| (shown, chain.path()));
    (chain, remember)
}

/// Whether the library could not read the certificate, whatever the signature is worth.
fn is_unreadable(error: &Error) -> bool {
    matches!(
        error,
        Error::InvalidCertificate(CertificateError::BadEncoding | CertificateError::Other(_))
    )
}

/// The rustls error whose alert is the one that the denial's code names.
fn error_with_alert(denial: &Denial) -> Error {
    Error::InvalidCertificate(match denial.code.wire() {
        Wire::Alert(42) => CertificateError::BadEncoding,
        Wire::Alert(43) => CertificateError::InvalidPurpose,
        Wire::Alert(44) => CertificateError::Revoked,
        Wire::Alert(45) => CertificateError::Expired,
        Wire::Alert(48) => CertificateError::UnknownIssuer,
        Wire::Alert(49) => CertificateError::ApplicationVerificationFailure,
        _ => CertificateError::Other(OtherError(Arc::new(denial.clone()))),
    })
}
