//! A handshake costs the same however many authorities are registered: counted in instructions, by valgrind.
//!
//! Whole mTLS handshakes in memory, through the driver and the verifier of the gateway. In CI with some thousand
//! authorities; COUNTERSIGN_ANCHORS=100000 gives the full figure.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout
)]

use std::process::Command;
use std::sync::Arc;

use countersign_gateway::handshake::chains::VerifiedChains;
use countersign_gateway::handshake::context::{self, HandshakeContext};
use countersign_gateway::handshake::driver::{self, PassEnd};
use countersign_gateway::handshake::ticket::facts::TicketVersion;
use countersign_gateway::handshake::verifier::DeviceVerifier;
use countersign_identity::{
    Anchor, AnchorIndex, AnchorState, AuthorityId, DeviceId, Fingerprint, Generation, IdentityRule, TenantId,
    Timestamp,
};
use countersign_policy::decide::TenantPolicy;
use countersign_policy::facts::RegistryUnavailable;
use countersign_policy::{Admission, ClientIdMode, CredentialFacts, DeviceFacts, FactSource, Possession};
use countersign_testkit::client::anyone;
use countersign_testkit::pki::{Ca, Identity, Leaf};
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};

/// In CI: enough for anything that grows with the number to be seen.
const ANCHORS: usize = 2_000;
const HANDSHAKES: u32 = 10;
/// The most by which the cost may grow.
const GROWTH_MAX: f64 = 1.05;

/// The facts of one tenant with many authorities.
struct Facts(Arc<AnchorIndex>);

impl FactSource for Facts {
    fn health(&self) -> Result<(), RegistryUnavailable> {
        Ok(())
    }
    fn anchors(&self) -> Arc<AnchorIndex> {
        self.0.clone()
    }
    fn tenant_by_host(&self, _: &str) -> Option<TenantId> {
        Some(TenantId::default_tenant())
    }
    fn credential(&self, _: &Fingerprint) -> Option<CredentialFacts> {
        None
    }
    fn device(&self, _: &TenantId, _: &DeviceId) -> Option<Arc<DeviceFacts>> {
        None
    }
    fn authority(&self, _: &AuthorityId) -> Option<(AnchorState, Generation)> {
        Some((AnchorState::Active, Generation(1)))
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

fn anchor(id: &str, der: &[u8]) -> Arc<Anchor> {
    let (tenant, id) = (TenantId::default_tenant(), AuthorityId::new(id).unwrap());
    let rule = IdentityRule::default();
    Arc::new(Anchor::new(tenant, id, AnchorState::Active, Generation(1), rule, der).unwrap())
}

/// Makes anchors that differ in name and key identifier alone. Nobody checks an anchor's own signature, and none of these
/// signed anything here.
struct Template {
    der: Vec<u8>,
    names: Vec<usize>,
    key_id: usize,
}

const NAME: &[u8] = b"AAAAAAAA";
/// The header of the extension subjectKeyIdentifier (2.5.29.14), up to its OCTET STRING's tag.
const KEY_ID: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x0e, 0x04];

impl Template {
    fn new() -> Self {
        let der = Ca::root("other AAAAAAAA", None).certificate().to_vec();
        let found = |wanted: &[u8]| -> Vec<usize> {
            (0..der.len() - wanted.len())
                .filter(|at| der[*at..].starts_with(wanted))
                .collect()
        };
        let (names, key_id) = (found(NAME), found(KEY_ID)[0] + KEY_ID.len() + 3);
        assert_eq!(names.len(), 2, "issuer and subject");
        Self { der, names, key_id }
    }

    fn anchor(&self, n: usize) -> Arc<Anchor> {
        let mut der = self.der.clone();
        let name = format!("{n:08}");
        for at in &self.names {
            der[*at..*at + NAME.len()].copy_from_slice(name.as_bytes());
        }
        der[self.key_id..self.key_id + NAME.len()].copy_from_slice(name.as_bytes());
        anchor(&format!("other-{n}"), &der)
    }
}

struct World {
    facts: Arc<dyn FactSource>,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

fn world(anchors: usize) -> World {
    let ca = Ca::root("the one that counts", None);
    let issuing = ca.below("its issuing CA", Some(0));
    let template = Template::new();
    let index = AnchorIndex::new(
        std::iter::once(anchor("ca", ca.certificate())).chain((1..anchors).map(|n| template.anchor(n))),
    );
    assert_eq!(index.len(), anchors);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chains = Arc::new(VerifiedChains::new(0));
    let verifier = DeviceVerifier::new(provider.signature_verification_algorithms, chains);
    let own: Identity = ca.issue(
        &Leaf {
            usage: None,
            ..Leaf::named("localhost")
        },
        &[],
    );
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(own.chain, own.key)
        .unwrap();
    server.send_tls13_tickets = 0;
    let mut roots = RootCertStore::empty();
    roots.add(ca.certificate().clone()).unwrap();
    let device = issuing.issue(&Leaf::named("device"), &[&issuing]);
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(device.chain, device.key)
        .unwrap();
    client.resumption = rustls::client::Resumption::disabled();
    // The client's check of the server is not what is counted.
    client.dangerous().set_certificate_verifier(anyone());
    World {
        facts: Arc::new(Facts(Arc::new(index))),
        server: Arc::new(server),
        client: Arc::new(client),
    }
}

fn handshake(world: &World) {
    let mut tls = UnbufferedServerConnection::new(world.server.clone()).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = ClientConnection::new(world.client.clone(), name).unwrap();
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let mut lent = Some(Box::new(HandshakeContext::new(
        world.facts.clone(),
        Some(TenantId::default_tenant()),
        TicketVersion::Tls13,
        Timestamp::from_unix_s(i64::try_from(since.as_secs()).unwrap()),
    )));
    let (mut input, mut plaintext) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        while client.wants_write() {
            client.write_tls(&mut input).unwrap();
        }
        let mut records = Vec::new();
        let used = measured_pass(&mut lent, &mut tls, &mut input, &mut plaintext, &mut records);
        input.drain(..used);
        let mut records = records.as_slice();
        while !records.is_empty() {
            client.read_tls(&mut records).unwrap();
            client.process_new_packets().unwrap();
        }
    }
    let lent = lent.unwrap();
    assert_eq!(lent.possession, Possession::Proven);
    let chain = lent.verdict.unwrap().unwrap();
    assert_eq!(
        (chain.anchor().authority.as_str(), chain.intermediates()),
        ("ca", 1)
    );
}

/// All that the server does; valgrind counts from here.
#[inline(never)]
fn measured_pass(
    lent: &mut Option<Box<HandshakeContext>>,
    tls: &mut UnbufferedServerConnection,
    input: &mut [u8],
    plaintext: &mut Vec<u8>,
    records: &mut Vec<u8>,
) -> usize {
    lent_pass(lent, tls, input, plaintext, records)
}

/// Apart, so that no closure bears the name at which counting starts and ends.
fn lent_pass(
    lent: &mut Option<Box<HandshakeContext>>,
    tls: &mut UnbufferedServerConnection,
    input: &mut [u8],
    plaintext: &mut Vec<u8>,
    records: &mut Vec<u8>,
) -> usize {
    let pass = context::lend(lent, || driver::pass(tls, input, plaintext, records));
    assert!(!matches!(pass.end, PassEnd::Failed(_)));
    pass.used
}

/// What valgrind runs; alone it is a test that the handshakes succeed.
#[test]
fn handshakes_succeed() {
    let anchors = std::env::var("COUNTERSIGN_ANCHORS_HERE").map_or(100, |n| n.parse().unwrap());
    let world = world(anchors);
    for _ in 0..HANDSHAKES {
        handshake(&world);
    }
}

fn instructions(anchors: usize) -> u64 {
    let output = Command::new("valgrind")
        .args([
            "--tool=callgrind",
            "--callgrind-out-file=/dev/null",
            "--toggle-collect=*measured_pass*",
        ])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "handshakes_succeed"])
        .env("COUNTERSIGN_ANCHORS_HERE", anchors.to_string())
        .output()
        .expect("valgrind; hint: scripts/test installs it");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    text.lines()
        .find_map(|l| l.split_once("Collected :"))
        .and_then(|(_, n)| n.trim().parse().ok())
        .unwrap_or_else(|| panic!("{text}"))
}

#[test]
fn a_handshake_costs_the_same_with_many_authorities() {
    let many = std::env::var("COUNTERSIGN_ANCHORS").map_or(ANCHORS, |n| n.parse().unwrap());
    let (one, all) = (instructions(1), instructions(many));
    let each = |n: u64| n / u64::from(HANDSHAKES);
    println!(
        "instructions per handshake: {} with 1 authority, {} with {many}",
        each(one),
        each(all)
    );
    assert!(one > 1_000_000, "nothing was counted");
    #[allow(clippy::cast_precision_loss, reason = "a ratio")]
    let growth = all as f64 / one as f64;
    assert!(
        growth < GROWTH_MAX,
        "with {many} authorities it costs {growth:.3} times as much"
    );
}
