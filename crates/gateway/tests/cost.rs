//! What a handshake costs the server, in instructions, by valgrind: full, full again, resumed, against plain rustls.
//!
//! In memory, TLS 1.3, X25519, a chain of depth 1. COUNTERSIGN_COST=1 cargo test --release -p countersign-gateway --test cost
//! -- --nocapture prints the figures; without optimisation they say nothing, so CI only sees that the handshakes succeed.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout
)]

use std::process::Command;
use std::sync::Arc;

use countersign_gateway::handshake::chains::VerifiedChains;
use countersign_gateway::handshake::config::server_config;
use countersign_gateway::handshake::context::{self, HandshakeContext};
use countersign_gateway::handshake::driver::{self, PassEnd};
use countersign_gateway::handshake::ticket::DeviceTickets;
use countersign_gateway::handshake::ticket::facts::TicketVersion;
use countersign_gateway::{Protocol, ServerIdentity, TicketKeys, TicketSettings, TlsMinimum};
use countersign_identity::{
    Anchor, AnchorIndex, AnchorState, AuthorityId, DeviceId, Fingerprint, Generation, IdentityRule, TenantId,
    Timestamp,
};
use countersign_policy::decide::TenantPolicy;
use countersign_policy::facts::{CredentialKind, Custody, RegistryUnavailable};
use countersign_policy::{
    Admission, ClientIdMode, CredentialFacts, CredentialState, DeviceFacts, FactSource,
};
use countersign_testkit::client::{LastSession, anyone};
use countersign_testkit::pki::{Ca, Leaf};
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::pki_types::ServerName;
use rustls::server::{NoServerSessionStorage, UnbufferedServerConnection, WebPkiClientVerifier};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConfig};

const HANDSHAKES: u64 = 20;

/// One tenant, one authority, one device.
struct Facts {
    anchors: Arc<AnchorIndex>,
    device: Fingerprint,
}

impl FactSource for Facts {
    fn health(&self) -> Result<(), RegistryUnavailable> {
        Ok(())
    }
    fn anchors(&self) -> Arc<AnchorIndex> {
        self.anchors.clone()
    }
    fn tenant_by_host(&self, _: &str) -> Option<TenantId> {
        Some(TenantId::default_tenant())
    }
    fn credential(&self, fingerprint: &Fingerprint) -> Option<CredentialFacts> {
        (*fingerprint == self.device).then(|| CredentialFacts {
            fingerprint: *fingerprint,
            tenant: TenantId::default_tenant(),
            device: DeviceId::new("device").unwrap(),
            kind: CredentialKind::Operational,
            state: CredentialState::Active,
            custody: Custody::Unknown,
            opens_data_sessions: true,
            generation: Generation(1),
        })
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

struct World {
    facts: Arc<dyn FactSource>,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    kind: HandshakeKind,
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    Timestamp::from_unix_s(i64::try_from(since.as_secs()).unwrap())
}

fn world(mode: &str) -> World {
    let ca = Ca::root("cost", None);
    let own = Ca::root("server", None).issue(&Leaf::named("localhost"), &[]);
    let device = ca.issue(&Leaf::named("device"), &[]);
    let (tenant, id) = (TenantId::default_tenant(), AuthorityId::new("ca").unwrap());
    let (rule, der) = (IdentityRule::default(), ca.certificate());
    let anchor = Anchor::new(tenant, id, AnchorState::Active, Generation(1), rule, der).unwrap();
    let facts = Facts {
        anchors: Arc::new(AnchorIndex::new([Arc::new(anchor)])),
        device: Fingerprint::of(&device.chain[0]),
    };
    let mut roots = RootCertStore::empty();
    roots.add(ca.certificate().clone()).unwrap();
    let server = if mode == "floor" {
        let provider = Arc::new(default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots.clone()), provider.clone());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(own.chain, own.key)
            .unwrap();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Arc::new(config)
    } else {
        let keys = Arc::new(TicketKeys::in_memory(now()));
        let settings = TicketSettings::default();
        let tickets = Arc::new(DeviceTickets::new(
            "devices".into(),
            keys,
            settings,
            Arc::default(),
        ));
        server_config(
            Arc::new(ServerIdentity::new(own.chain, own.key).unwrap()),
            TlsMinimum::Tls13,
            &[Protocol::Mqtt],
            Arc::new(VerifiedChains::new(if mode == "again" { 64 } else { 0 })),
            (mode != "without").then_some(tickets),
        )
        .unwrap()
    };
    let mut provider = default_provider();
    provider.kx_groups = vec![kx_group::X25519];
    let mut client = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(device.chain, device.key)
        .unwrap();
    client.dangerous().set_certificate_verifier(anyone());
    client.resumption = match mode {
        "resumed" => Resumption::store(Arc::new(LastSession::default())),
        _ => Resumption::disabled(),
    };
    World {
        facts: Arc::new(facts),
        server,
        client: Arc::new(client),
        kind: match mode {
            "resumed" => HandshakeKind::Resumed,
            _ => HandshakeKind::Full,
        },
    }
}

type Pass = fn(
    &mut Option<Box<HandshakeContext>>,
    &mut UnbufferedServerConnection,
    &mut [u8],
    &mut Vec<u8>,
    &mut Vec<u8>,
) -> usize;

fn handshake(world: &World, pass: Pass) -> HandshakeKind {
    let mut tls = UnbufferedServerConnection::new(world.server.clone()).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = ClientConnection::new(world.client.clone(), name).unwrap();
    let asked = Some(TenantId::default_tenant());
    let context = HandshakeContext::new(world.facts.clone(), asked, TicketVersion::Tls13, now());
    let mut lent = Some(Box::new(context));
    let (mut input, mut plaintext) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        while client.wants_write() {
            client.write_tls(&mut input).unwrap();
        }
        let mut records = Vec::new();
        let used = pass(&mut lent, &mut tls, &mut input, &mut plaintext, &mut records);
        input.drain(..used);
        let mut records = records.as_slice();
        while !records.is_empty() {
            client.read_tls(&mut records).unwrap();
            client.process_new_packets().unwrap();
        }
    }
    assert!(!tls.is_handshaking());
    tls.handshake_kind().unwrap()
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
    std::hint::black_box(lent_pass(lent, tls, input, plaintext, records))
}

#[inline(never)]
fn lent_pass(
    lent: &mut Option<Box<HandshakeContext>>,
    tls: &mut UnbufferedServerConnection,
    input: &mut [u8],
    plaintext: &mut Vec<u8>,
    records: &mut Vec<u8>,
) -> usize {
    let pass = context::lend(lent, || driver::pass(tls, input, plaintext, records));
    assert!(!matches!(pass.end, PassEnd::Failed(_)), "{:?}", pass.end);
    pass.used
}

/// What valgrind runs; alone it is a test that the handshakes are what they should be.
#[test]
fn handshakes_succeed() {
    let modes = std::env::var("COUNTERSIGN_COST_MODE").map_or(MODES.join(" "), |mode| mode);
    for mode in modes.split(' ') {
        let world = world(mode);
        handshake(&world, lent_pass);
        let started = std::time::Instant::now();
        for _ in 0..HANDSHAKES {
            assert_eq!(handshake(&world, measured_pass), world.kind, "{mode}");
        }
        println!(
            "{mode}: both sides {} us",
            started.elapsed().as_micros() / u128::from(HANDSHAKES)
        );
    }
}

const MODES: [&str; 5] = ["floor", "without", "first", "again", "resumed"];

#[test]
fn what_a_handshake_costs() {
    if std::env::var_os("COUNTERSIGN_COST").is_none() {
        println!("not asked for: COUNTERSIGN_COST=1, and --release");
        return;
    }
    let mut floor = None;
    for mode in MODES {
        let output = Command::new("valgrind")
            .args([
                "--tool=callgrind",
                "--callgrind-out-file=/dev/null",
                "--toggle-collect=*measured_pass*",
            ])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "handshakes_succeed"])
            .env("COUNTERSIGN_COST_MODE", mode)
            .output()
            .expect("valgrind; hint: scripts/test installs it");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}");
        let counted = text
            .lines()
            .find_map(|l| l.split_once("Collected :"))
            .and_then(|(_, n)| n.trim().parse::<u64>().ok());
        let each = counted.unwrap_or_else(|| panic!("{text}")) / HANDSHAKES;
        let floor = *floor.get_or_insert(each);
        #[allow(clippy::cast_precision_loss, reason = "a ratio")]
        let ratio = each as f64 / floor as f64;
        println!("{mode}: {each} instructions, {ratio:.2} of plain rustls");
        match mode {
            "first" => assert!(ratio < 1.15, "{ratio}"),
            "again" => assert!(ratio < 0.9, "{ratio}"),
            "resumed" => assert!(ratio < 0.7, "{ratio}"),
            _ => {}
        }
    }
}
