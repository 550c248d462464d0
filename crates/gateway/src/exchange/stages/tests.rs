use countersign_identity::{
    Anchor, AnchorIndex, AnchorState, AuthorityId, DeviceId, Fingerprint, Generation, TenantId,
};
use countersign_policy::decide::TenantPolicy;
use countersign_policy::facts::RegistryUnavailable;
use countersign_policy::{Admission, ClientIdMode, CredentialFacts, DeviceFacts, FactSource, Possession};
use countersign_testkit::client::{LastSession, anyone};
use countersign_testkit::pki::{Ca, Leaf};
use rustls::crypto::aws_lc_rs::{Ticketer, default_provider};
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ServerConfig};

use super::*;
use crate::handshake::chains::VerifiedChains;
use crate::handshake::verifier::DeviceVerifier;

/// Nobody is known.
struct Nobody;

impl FactSource for Nobody {
    fn health(&self) -> Result<(), RegistryUnavailable> {
        Ok(())
    }
    fn anchors(&self) -> Arc<AnchorIndex> {
        Arc::new(AnchorIndex::new([]))
    }
    fn tenant_by_host(&self, _: &str) -> Option<TenantId> {
        None
    }
    fn credential(&self, _: &Fingerprint) -> Option<CredentialFacts> {
        None
    }
    fn device(&self, _: &TenantId, _: &DeviceId) -> Option<Arc<DeviceFacts>> {
        None
    }
    fn authority(&self, _: &AuthorityId) -> Option<(AnchorState, Generation)> {
        None
    }
    fn anchor(&self, _: &AuthorityId) -> Option<Arc<Anchor>> {
        None
    }
    fn admission(&self, _: &AuthorityId) -> Admission {
        Admission::RegisteredOnly
    }
    fn client_id_mode(&self, _: &TenantId) -> ClientIdMode {
        ClientIdMode::Strict
    }
    fn policy(&self, _: &TenantId) -> Option<Arc<TenantPolicy>> {
        None
    }
}

/// What the library does not stop: a session that was made where no certificate is asked for, resumed where one is. Our
/// tickets cannot do that, so the configuration here is one with the library's own.
#[test]
fn a_resumed_session_without_a_certificate_is_a_denial() {
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let provider = Arc::new(default_provider());
        let ticketer = Ticketer::new().unwrap();
        let own = Ca::root("server", None).issue(&Leaf::named("localhost"), &[]);
        let chains = Arc::new(VerifiedChains::new(0));
        let verifier = DeviceVerifier::new(provider.signature_verification_algorithms, chains);
        let builder = || {
            ServerConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(&[version])
                .unwrap()
        };
        let mut open = builder()
            .with_no_client_auth()
            .with_single_cert(own.chain.clone(), own.key.clone_key())
            .unwrap();
        let mut devices = builder()
            .with_client_cert_verifier(Arc::new(verifier))
            .with_single_cert(own.chain.clone(), own.key.clone_key())
            .unwrap();
        open.ticketer = ticketer.clone();
        devices.ticketer = ticketer;
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[version])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(anyone())
            .with_no_client_auth();
        client.resumption = rustls::client::Resumption::store(Arc::new(LastSession::default()));
        let client = Arc::new(client);
        let mut last = None;
        for config in [open, devices] {
            let mut tls = UnbufferedServerConnection::new(Arc::new(config)).unwrap();
            let name = ServerName::try_from("localhost").unwrap();
            let mut client = ClientConnection::new(client.clone(), name).unwrap();
            let (source, started) = (([127, 0, 0, 1], 1).into(), Timestamp::from_unix_s(1_795_000_000));
            let offered = match version.version {
                rustls::ProtocolVersion::TLSv1_3 => TicketVersion::Tls13,
                _ => TicketVersion::Tls12,
            };
            let mut handshaking = Handshaking {
                trace: Trace::new(ExchangeId::new(started, 0), started, source, "test".into()),
                context: Some(Box::new(HandshakeContext::new(
                    Arc::new(Nobody),
                    None,
                    offered,
                    started,
                ))),
                class: Class::Full,
                flight_sent: false,
            };
            let (mut input, mut plaintext) = (Vec::new(), Vec::new());
            for _ in 0..4 {
                while client.wants_write() {
                    client.write_tls(&mut input).unwrap();
                }
                let mut records = Vec::new();
                let pass = handshaking.pass(&mut tls, &mut input, &mut plaintext, &mut records);
                input.drain(..pass.used);
                let mut records = records.as_slice();
                while !records.is_empty() {
                    client.read_tls(&mut records).unwrap();
                    client.process_new_packets().unwrap();
                }
            }
            assert!(!tls.is_handshaking());
            let refused = handshaking.complete(&tls).map(|_| ()).unwrap_err();
            last = Some((
                tls.handshake_kind(),
                refused.denial().code,
                refused.trace.possession,
            ));
        }
        assert_eq!(
            last,
            Some((
                Some(HandshakeKind::Resumed),
                DenialCode::ResumedWithoutCertificate,
                Possession::Unproven
            )),
            "{version:?}"
        );
    }
}
