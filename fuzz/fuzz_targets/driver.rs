//! TLS records from anybody, in two pieces: the driver neither panics nor lets anything through.
#![no_main]
use std::sync::{Arc, LazyLock};

use countersign_gateway::handshake::driver;
use libfuzzer_sys::fuzz_target;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::{UnbufferedServerConnection, WebPkiClientVerifier};

static CONFIG: LazyLock<Arc<ServerConfig>> = LazyLock::new(|| {
    let own = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(own.cert.der().clone()).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().expect("one");
    let key = PrivateKeyDer::Pkcs8(own.signing_key.serialize_der().into());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![own.cert.der().clone()], key)
        .expect("a configuration");
    Arc::new(config)
});

fuzz_target!(|data: (u16, Vec<u8>)| {
    let (cut, bytes) = data;
    let mut tls = UnbufferedServerConnection::new(CONFIG.clone()).expect("a connection");
    let (mut plaintext, mut records, mut rest) = (Vec::new(), Vec::new(), Vec::new());
    let (first, second) = bytes.split_at(usize::from(cut).min(bytes.len()));
    for part in [first, second] {
        rest.extend_from_slice(part);
        let pass = driver::pass(&mut tls, &mut rest, &mut plaintext, &mut records);
        assert!(pass.used <= rest.len());
        rest.drain(..pass.used);
        if let driver::PassEnd::Failed(_) = pass.end {
            break;
        }
    }
    assert!(plaintext.is_empty(), "nobody proved anything");
});
