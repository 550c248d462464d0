//! Judges client certificates: forms the verdict on Certificate, answers it only on CertificateVerify.
//!
//! Anyone can replay a public certificate. So a peer that cannot prove possession learns nothing but "decrypt_error",
//! whatever we think of the certificate it showed.

use std::time::Instant;

use countersign_policy::denial::Wire;
use countersign_policy::{Denial, DenialCode, Possession};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};

use super::context;
use crate::judge;

/// The one verifier of all device connections. Fails closed when it is called outside of a lent context.
#[derive(Debug)]
pub struct DeviceVerifier {
    algorithms: WebPkiSupportedAlgorithms,
}

impl DeviceVerifier {
    /// With the signature algorithms of the process's one crypto provider.
    pub fn new(algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self { algorithms }
    }

    /// The second half: possession first, then the verdict.
    fn answer(
        &self,
        signature: Result<HandshakeSignatureValid, Error>,
    ) -> Result<HandshakeSignatureValid, Error> {
        context::with(|context| {
            context.possession_at = Some(Instant::now());
            let valid = signature.inspect_err(|e| {
                // Forget the verdict: it must not be told, and must not count as this device's.
                context.verdict = Some(Err(Denial::new(DenialCode::PossessionFailed, e.to_string())));
            })?;
            context.possession = Possession::Proven;
            match &context.verdict {
                Some(Ok(_)) => Ok(valid),
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
            let (shown, verdict) = judge::certificate(
                context.facts.as_ref(),
                context.asked.as_ref(),
                end_entity,
                intermediates,
                context.now,
            );
            context.shown = Some(shown);
            context.verdict = Some(verdict);
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

/// The rustls error whose alert is the one that the denial's code names.
fn error_with_alert(denial: &Denial) -> Error {
    Error::InvalidCertificate(match denial.code.wire() {
        Wire::Alert(42) => CertificateError::BadEncoding,
        Wire::Alert(43) => CertificateError::InvalidPurpose,
        Wire::Alert(44) => CertificateError::Revoked,
        Wire::Alert(45) => CertificateError::Expired,
        Wire::Alert(48) => CertificateError::UnknownIssuer,
        Wire::Alert(49) => CertificateError::ApplicationVerificationFailure,
        _ => CertificateError::Other(OtherError(std::sync::Arc::new(denial.clone()))),
    })
}
