//! An example backend: takes readings from devices that show a token of Countersign over mutual TLS.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example that is run by hand"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "a shell: it reads the clock and passes it on"
)]

mod check;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use check::{Claims, Expected, Fault, KeySet, check};
use clap::Parser;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// An unknown key id makes the key set be read again, at most so often.
const READ_AGAIN: Duration = Duration::from_secs(60);
const BODY_BYTES_MAX: usize = 64 * 1024;

/// A backend that takes Countersign's tokens.
#[derive(Parser)]
struct Arguments {
    /// Where devices bring their readings
    #[arg(long)]
    listen: SocketAddr,
    /// This server's certificate (PEM, leaf first)
    #[arg(long)]
    cert: PathBuf,
    /// Its key (PEM)
    #[arg(long)]
    key: PathBuf,
    /// The CAs of the devices (PEM)
    #[arg(long)]
    client_ca: PathBuf,
    /// The issuer's key set, a file that is kept up to date
    #[arg(long)]
    jwks: PathBuf,
    /// The issuer of the tokens
    #[arg(long)]
    issuer: String,
    /// Whom tokens must be for: this backend
    #[arg(long)]
    audience: String,
}

struct Backend {
    expected: Expected,
    jwks: PathBuf,
    keys: Mutex<(KeySet, Instant)>,
}

impl Backend {
    fn check(&self, token: &str, leaf: &[u8]) -> Result<Claims, Fault> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_s = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let checked = check(token, leaf, &keys.0, &self.expected, now_s);
        if !matches!(checked, Err(Fault::UnknownKey)) || keys.1.elapsed() < READ_AGAIN {
            return checked;
        }
        keys.1 = Instant::now();
        if let Ok(newer) = read_keys(&self.jwks) {
            keys.0 = newer;
        }
        check(token, leaf, &keys.0, &self.expected, now_s)
    }

    async fn answer(&self, leaf: Option<&[u8]>, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let token = request
            .headers()
            .get(AUTHORIZATION)
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.strip_prefix("Bearer "));
        let checked = match (token, leaf) {
            (Some(token), Some(leaf)) => self.check(token, leaf),
            _ => Err(Fault::Invalid("no token")),
        };
        let mut answer = Response::new(Full::default());
        match checked {
            Ok(claims) => {
                let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await;
                let bytes = body.map_or(0, |b| b.to_bytes().len());
                *answer.body_mut() =
                    format!("{bytes} bytes from {} of {}\n", claims.client_id, claims.tenant).into();
            }
            Err(fault) => {
                // Why is for the log; whoever comes with a bad token is told that it is bad.
                eprintln!("refused: {fault:?}");
                *answer.status_mut() = StatusCode::UNAUTHORIZED;
                let challenge = "Bearer error=\"invalid_token\"".parse();
                if let Ok(challenge) = challenge {
                    answer.headers_mut().insert(WWW_AUTHENTICATE, challenge);
                }
            }
        }
        answer
    }
}

fn read_keys(path: &Path) -> Result<KeySet> {
    let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no key set", path.display()))
}

fn tls(arguments: &Arguments) -> Result<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(&arguments.client_ca)? {
        roots.add(certificate?)?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build()?;
    let chain = CertificateDer::pem_file_iter(&arguments.cert)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(&arguments.key)?;
    Ok(ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?)
}

async fn serve(socket: TcpStream, acceptor: TlsAcceptor, backend: Arc<Backend>) {
    let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_secs(10), acceptor.accept(socket)).await else {
        return;
    };
    let chain = stream.get_ref().1.peer_certificates();
    let leaf: Option<Arc<[u8]>> = chain.and_then(|c| c.first()).map(|c| c.to_vec().into());
    let answered = service_fn(|request| {
        let (backend, leaf) = (backend.clone(), leaf.clone());
        async move { Ok::<_, Infallible>(backend.answer(leaf.as_deref(), request).await) }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(30))
        .serve_connection(TokioIo::new(stream), answered)
        .await;
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let acceptor = TlsAcceptor::from(Arc::new(tls(&arguments)?));
    let keys = read_keys(&arguments.jwks)?;
    let listener = TcpListener::bind(arguments.listen).await?;
    let backend = Arc::new(Backend {
        expected: Expected {
            issuer: arguments.issuer,
            audience: arguments.audience,
        },
        jwks: arguments.jwks,
        keys: Mutex::new((keys, Instant::now())),
    });
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (socket, _) = listener.accept().await?;
        tokio::spawn(serve(socket, acceptor.clone(), backend.clone()));
    }
}
