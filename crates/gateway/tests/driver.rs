//! The buffer-free driver against its twin, rustls' buffered server connection: the same bytes in, the same outcome,
//! however the bytes are cut.
#![allow(missing_docs, clippy::unwrap_used)]

use std::io::{Read, Write};
use std::sync::Arc;

use countersign_gateway::handshake::driver::{self, PassEnd};
use countersign_testkit::client::anyone;
use countersign_testkit::pki::{self, Ca, Identity, Leaf};
use proptest::prelude::*;
use rustls::server::{UnbufferedServerConnection, WebPkiClientVerifier};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

/// A server that answers what it is given.
trait Server {
    /// Takes bytes; returns bytes to send.
    fn take(&mut self, bytes: &[u8]) -> Vec<u8>;
    /// What was decrypted so far.
    fn plaintext(&self) -> &[u8];
    /// How it failed, if it did.
    fn failure(&self) -> Option<String>;
}

struct Buffered {
    tls: ServerConnection,
    plaintext: Vec<u8>,
    failure: Option<String>,
    greeted: bool,
}

impl Server for Buffered {
    fn take(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        while !bytes.is_empty() && self.failure.is_none() {
            if self.tls.read_tls(&mut bytes).is_err() {
                break;
            }
            if let Err(e) = self.tls.process_new_packets() {
                self.failure = Some(e.to_string());
            }
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = self.tls.reader().read(&mut chunk) {
                self.plaintext.extend_from_slice(&chunk[..n]);
            }
        }
        if !self.tls.is_handshaking() && self.failure.is_none() && !self.greeted {
            self.greeted = true;
            self.tls.writer().write_all(b"welcome").unwrap();
        }
        let mut out = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut out).unwrap();
        }
        out
    }
    fn plaintext(&self) -> &[u8] {
        &self.plaintext
    }
    fn failure(&self) -> Option<String> {
        self.failure.clone()
    }
}

struct Unbuffered {
    tls: UnbufferedServerConnection,
    rest: Vec<u8>,
    plaintext: Vec<u8>,
    failure: Option<String>,
    greeted: bool,
}

impl Server for Unbuffered {
    fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut records = Vec::new();
        if self.failure.is_some() {
            return records;
        }
        self.rest.extend_from_slice(bytes);
        let pass = driver::pass(&mut self.tls, &mut self.rest, &mut self.plaintext, &mut records);
        self.rest.drain(..pass.used);
        match pass.end {
            PassEnd::Failed(e) => self.failure = Some(e.to_string()),
            PassEnd::Open if !self.greeted => {
                self.greeted = true;
                driver::seal(&mut self.tls, &mut self.rest, b"welcome", &mut records).unwrap();
            }
            _ => {}
        }
        records
    }
    fn plaintext(&self) -> &[u8] {
        &self.plaintext
    }
    fn failure(&self) -> Option<String> {
        self.failure.clone()
    }
}

struct World {
    server: Arc<ServerConfig>,
    good: Identity,
}

fn world() -> &'static World {
    static WORLD: std::sync::OnceLock<World> = std::sync::OnceLock::new();
    WORLD.get_or_init(|| {
        let ca = Ca::root("twin root", None);
        let mut roots = RootCertStore::empty();
        roots.add(ca.certificate().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .unwrap();
        let own = ca.issue(&Leaf::named("localhost"), &[]);
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(own.chain, own.key)
            .unwrap();
        server.alpn_protocols = vec![b"mqtt".to_vec()];
        server.send_tls13_tickets = 0;
        World {
            server: Arc::new(server),
            good: ca.issue(&Leaf::named("device"), &[]),
        }
    })
}

#[derive(Debug, Clone)]
struct Scenario {
    /// 0 good, 1 none, 2 self-signed
    identity: u8,
    tls12: bool,
    alpn: Option<&'static [u8]>,
    /// Bytes of the stream that are changed: position and value.
    damage: Vec<(usize, u8)>,
    /// Raw bytes sent after everything else.
    noise: Vec<u8>,
    /// How the client's bytes are cut.
    cuts: Vec<usize>,
    data: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    failure: Option<String>,
    plaintext: Vec<u8>,
    client_error: Option<String>,
    client_data: Vec<u8>,
}

/// Runs a client against a server in memory.
fn play(scenario: &Scenario, server: &mut dyn Server) -> Outcome {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions: &[&rustls::SupportedProtocolVersion] = if scenario.tls12 {
        &[&rustls::version::TLS12]
    } else {
        &[&rustls::version::TLS13]
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(RootCertStore::empty());
    let mut config = match scenario.identity {
        0 => {
            let good = &world().good;
            builder
                .with_client_auth_cert(good.chain.clone(), good.key.clone_key())
                .unwrap()
        }
        1 => builder.with_no_client_auth(),
        _ => {
            let own = pki::self_signed("device");
            builder.with_client_auth_cert(own.chain, own.key).unwrap()
        }
    };
    config.dangerous().set_certificate_verifier(anyone());
    config.alpn_protocols = scenario.alpn.iter().map(|a| a.to_vec()).collect();
    let mut client = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let mut outcome = Outcome {
        failure: None,
        plaintext: vec![],
        client_error: None,
        client_data: vec![],
    };
    let (mut sent, mut position, mut cut) = (false, 0, 0);
    for _ in 0..20 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        if !client.is_handshaking() && !sent {
            sent = true;
            client.writer().write_all(&scenario.data).unwrap();
            while client.wants_write() {
                client.write_tls(&mut bytes).unwrap();
            }
            bytes.extend_from_slice(&scenario.noise);
        }
        for (at, value) in &scenario.damage {
            if let Some(b) = at.checked_sub(position).and_then(|at| bytes.get_mut(at)) {
                *b = *value;
            }
        }
        position += bytes.len();
        let mut answer = Vec::new();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let size = scenario
                .cuts
                .get(cut % scenario.cuts.len().max(1))
                .copied()
                .unwrap_or(usize::MAX);
            let (part, tail) = rest.split_at(size.clamp(1, rest.len()));
            cut += 1;
            rest = tail;
            answer.extend(server.take(part));
        }
        let mut reading = answer.as_slice();
        while !reading.is_empty() && outcome.client_error.is_none() {
            if client.read_tls(&mut reading).is_err() {
                break;
            }
            if let Err(e) = client.process_new_packets() {
                outcome.client_error = Some(e.to_string());
            }
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = client.reader().read(&mut chunk) {
                outcome.client_data.extend_from_slice(&chunk[..n]);
            }
        }
    }
    outcome.failure = server.failure();
    outcome.plaintext = server.plaintext().to_vec();
    outcome
}

fn both(scenario: &Scenario) -> (Outcome, Outcome) {
    let config = &world().server;
    let mut buffered = Buffered {
        tls: ServerConnection::new(config.clone()).unwrap(),
        plaintext: vec![],
        failure: None,
        greeted: false,
    };
    let mut unbuffered = Unbuffered {
        tls: UnbufferedServerConnection::new(config.clone()).unwrap(),
        rest: vec![],
        plaintext: vec![],
        failure: None,
        greeted: false,
    };
    (play(scenario, &mut buffered), play(scenario, &mut unbuffered))
}

fn scenario() -> impl Strategy<Value = Scenario> {
    (
        0u8..3,
        any::<bool>(),
        prop::sample::select(vec![None, Some(&b"mqtt"[..]), Some(&b"h2"[..])]),
        prop::collection::vec((0usize..1800, any::<u8>()), 0..3),
        prop::collection::vec(any::<u8>(), 0..40),
        prop::collection::vec(1usize..700, 0..6),
        prop::collection::vec(any::<u8>(), 0..3000),
    )
        .prop_map(|(identity, tls12, alpn, damage, noise, cuts, data)| Scenario {
            identity,
            tls12,
            alpn,
            // Half of all scenarios are undamaged, or most would end in the first record.
            damage: if data.len() % 2 == 0 { vec![] } else { damage },
            noise: if data.len() % 3 == 0 { noise } else { vec![] },
            cuts,
            data,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn both_end_alike(scenario in scenario()) {
        let (buffered, unbuffered) = both(&scenario);
        if scenario.damage.is_empty() {
            prop_assert_eq!(buffered, unbuffered);
        } else {
            // Each handshake has its own randomness, so the same damage does not hit the same bytes twice. But whatever
            // it hits, nothing comes through that was not sent, and nothing at all without a good certificate.
            for outcome in [&buffered, &unbuffered] {
                prop_assert!(scenario.data.starts_with(&outcome.plaintext), "{:?}", outcome);
                prop_assert!(scenario.identity == 0 || outcome.plaintext.is_empty(), "{:?}", outcome);
            }
        }
    }
}

#[test]
fn data_is_let_through_only_after_a_good_certificate() {
    for (identity, tls12) in [
        (0, false),
        (0, true),
        (1, false),
        (1, true),
        (2, false),
        (2, true),
    ] {
        let scenario = Scenario {
            identity,
            tls12,
            alpn: Some(b"mqtt"),
            damage: vec![],
            noise: vec![],
            cuts: vec![7],
            data: b"hello".to_vec(),
        };
        let (_, unbuffered) = both(&scenario);
        if identity == 0 {
            assert_eq!(
                (unbuffered.plaintext.as_slice(), unbuffered.client_data.as_slice()),
                (&b"hello"[..], &b"welcome"[..])
            );
        } else {
            assert!(
                unbuffered.plaintext.is_empty() && unbuffered.failure.is_some(),
                "{unbuffered:?}"
            );
            // The client read why.
            assert!(
                unbuffered
                    .client_error
                    .as_ref()
                    .is_some_and(|e| e.contains("alert")),
                "{unbuffered:?}"
            );
        }
    }
}
