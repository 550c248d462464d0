//! A client that does exactly what it is told, and says exactly what it saw.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use countersign_identity::{CertificateFacts, Timestamp};
use rustls::StreamOwned;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    ClientConnection, ClientSessionStore, ResolvesClientCert, Resumption, Tls12ClientSessionValue,
    Tls13ClientSessionValue,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, HandshakeKind,
    NamedGroup, SignatureScheme, SupportedProtocolVersion,
};

use crate::pki::Identity;

/// What a client saw of one connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// The handshake was complete from the client's side.
    pub handshake: bool,
    /// It was resumed.
    pub resumed: bool,
    /// The TLS alert that came.
    pub alert: Option<u8>,
    /// The bytes that came over TLS.
    pub data: Vec<u8>,
    /// The connection was reset: something that was sent may be lost.
    pub reset: bool,
    /// The peer said nothing more within the time.
    pub silent: bool,
}

impl Seen {
    /// The code of the CONNACK that came first.
    pub fn connack(&self) -> Option<u8> {
        (self.data.first() == Some(&0x20))
            .then(|| self.data.get(3).copied())
            .flatten()
    }

    /// The packets that came.
    pub fn packets(&self) -> Vec<&[u8]> {
        let mut rest = self.data.as_slice();
        let mut packets = Vec::new();
        while rest.len() > 1 {
            let (mut length, mut used) = (0usize, 1);
            while let Some(b) = rest.get(used) {
                length |= usize::from(b & 0x7f) << (7 * (used - 1));
                used += 1;
                if b & 0x80 == 0 {
                    break;
                }
            }
            let end = (used + length).min(rest.len());
            packets.push(&rest[..end]);
            rest = &rest[end..];
        }
        packets
    }
}

/// Trusts whoever answers, or nobody; by a clock, if it has one.
#[derive(Debug)]
struct Trust {
    anyone: bool,
    clock: Option<Timestamp>,
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(clock) = self.clock {
            let facts = CertificateFacts::parse(end_entity).map_err(|_| CertificateError::BadEncoding)?;
            if clock > facts.not_after {
                return Err(CertificateError::Expired.into());
            }
            if clock < facts.not_before {
                return Err(CertificateError::NotValidYet.into());
            }
        }
        if self.anyone {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::UnknownIssuer.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A client's check of the server that takes whoever answers, if it holds the key of what it shows.
pub fn anyone() -> Arc<dyn ServerCertVerifier> {
    Arc::new(Trust {
        anyone: true,
        clock: None,
    })
}

/// Shows a certificate whether or not the key belongs to it.
#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl ResolvesClientCert for Shows {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The last session, offered to whatever server comes next: a client that does not keep to its names.
#[derive(Debug, Default)]
pub struct LastSession {
    tls12: Mutex<Option<Tls12ClientSessionValue>>,
    tls13: Mutex<Option<Tls13ClientSessionValue>>,
}

impl LastSession {
    /// Whether a server gave it a session to come back with.
    pub fn is_some(&self) -> bool {
        let tls12 = self.tls12.lock().expect("a lock").is_some();
        tls12 || self.tls13.lock().expect("a lock").is_some()
    }
}

impl ClientSessionStore for LastSession {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        *self.tls12.lock().expect("a lock") = Some(value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.tls12.lock().expect("a lock").clone()
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        *self.tls12.lock().expect("a lock") = None;
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        *self.tls13.lock().expect("a lock") = Some(value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.tls13.lock().expect("a lock").take()
    }
}

/// One attempt.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Where to.
    pub server: SocketAddr,
    /// The address to come from; `None` for any.
    pub from: Option<IpAddr>,
    /// Sent before TLS, as a balancer does.
    pub preamble: Vec<u8>,
    /// The server name to ask for.
    pub name: String,
    /// The certificate to show.
    pub identity: Option<Identity>,
    /// Whether the server is trusted, whoever it is.
    pub trust: bool,
    /// The device's clock, that the dates of the server's certificate are held against; without one they are not.
    pub clock: Option<Timestamp>,
    /// The TLS versions to offer.
    pub versions: &'static [&'static SupportedProtocolVersion],
    /// ALPN to offer.
    pub alpn: Vec<Vec<u8>>,
    /// What is sent after the handshake.
    pub send: Vec<u8>,
    /// Sent when the answer to `send` has begun to come; empty for nothing.
    pub then: Vec<u8>,
    /// How long to wait for more.
    pub patience: Duration,
    /// A client that remembers its session from one attempt to the next: see [`Attempt::resuming`].
    pub client: Option<Arc<ClientConfig>>,
}

/// TLS 1.3 alone.
pub const TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
/// TLS 1.2 alone.
pub const TLS12: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];

impl Attempt {
    /// A good client without a certificate.
    pub fn new(server: SocketAddr) -> Self {
        Self {
            server,
            from: None,
            preamble: vec![],
            name: "localhost".into(),
            identity: None,
            trust: true,
            clock: None,
            versions: TLS13,
            alpn: vec![],
            send: vec![],
            then: vec![],
            patience: Duration::from_secs(10),
            client: None,
        }
    }

    /// Remembers the session that it is given, and offers it in each attempt from then on. Certificate, versions and ALPN
    /// are those of now.
    #[must_use]
    pub fn resuming(self) -> Self {
        self.remembering(Arc::default())
    }

    /// The same, in a store that can be looked at.
    #[must_use]
    pub fn remembering(self, session: Arc<LastSession>) -> Self {
        let mut config = self.config();
        config.resumption = Resumption::store(session);
        Self {
            client: Some(Arc::new(config)),
            ..self
        }
    }

    /// Shows this certificate.
    #[must_use]
    pub fn identity(self, identity: &Identity) -> Self {
        Self {
            identity: Some(identity.clone()),
            ..self
        }
    }

    /// Sends this after the handshake.
    #[must_use]
    pub fn send(self, bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            send: bytes.into(),
            ..self
        }
    }

    /// The TLS configuration that it goes by, without resumption.
    ///
    /// # Panics
    /// If the identity's key cannot be used.
    pub fn config(&self) -> ClientConfig {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(self.versions)
            .expect("versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Trust {
                anyone: self.trust,
                clock: self.clock,
            }));
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let key: PrivateKeyDer<'static> = identity.key.clone_key();
                let key = provider.key_provider.load_private_key(key).expect("a key");
                // Not checked to belong together: that is one of the cases.
                let certified = CertifiedKey::new(identity.chain.clone(), key);
                builder.with_client_cert_resolver(Arc::new(Shows(Arc::new(certified))))
            }
        };
        config.alpn_protocols = self.alpn.clone();
        config.resumption = Resumption::disabled();
        config
    }

    /// The bytes of its ClientHello, as somebody records them to send them again and again.
    pub fn hello(&self) -> Vec<u8> {
        let name = ServerName::try_from(self.name.clone()).expect("a server name");
        let mut tls = ClientConnection::new(Arc::new(self.config()), name).expect("a TLS client");
        let mut bytes = Vec::new();
        let _ = tls.write_tls(&mut bytes);
        bytes
    }

    /// Connects, sends its CONNECT, and keeps the session.
    ///
    /// # Errors
    /// If CONNACK is not 0, or nothing comes within its patience.
    pub fn open(&self) -> std::io::Result<Link> {
        let mut link = self.ask()?;
        let connack = link.packet()?;
        if connack.first() == Some(&0x20) && connack.get(3) == Some(&0) {
            Ok(link)
        } else {
            Err(std::io::Error::other(format!("not admitted: {connack:x?}")))
        }
    }

    /// Connects and sends, and reads no answer: that of TLS alone.
    ///
    /// # Errors
    /// If the connection is lost.
    pub fn ask(&self) -> std::io::Result<Link> {
        let socket = dial(self.from, self.server)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(self.patience))?;
        socket.set_write_timeout(Some(self.patience))?;
        let name = ServerName::try_from(self.name.clone()).expect("a server name");
        let config = self.client.clone().unwrap_or_else(|| Arc::new(self.config()));
        let tls = ClientConnection::new(config, name).expect("a TLS client");
        let mut link = Link {
            stream: StreamOwned::new(tls, socket),
        };
        link.stream.write_all(&self.send)?;
        link.stream.flush()?;
        Ok(link)
    }

    /// Connects, and reads until the server has nothing more to say.
    pub fn run(&self) -> Seen {
        let mut seen = Seen::default();
        let Ok(mut socket) = dial(self.from, self.server) else {
            seen.reset = true;
            return seen;
        };
        let _ = socket.set_nodelay(true);
        let _ = socket.set_read_timeout(Some(self.patience));
        if socket.write_all(&self.preamble).is_err() {
            seen.reset = true;
            return seen;
        }
        let name = ServerName::try_from(self.name.clone()).expect("a server name");
        let config = self.client.clone().unwrap_or_else(|| Arc::new(self.config()));
        let mut tls = ClientConnection::new(config, name).expect("a TLS client");
        let mut sent = false;
        let mut then = self.then.is_empty();
        loop {
            while tls.wants_write() {
                if let Err(e) = tls.write_tls(&mut socket) {
                    seen.reset |= is_reset(&e);
                    break;
                }
            }
            if !tls.is_handshaking() && !sent {
                seen.handshake = true;
                seen.resumed = tls.handshake_kind() == Some(HandshakeKind::Resumed);
                sent = true;
                if !self.send.is_empty() {
                    let _ = tls.writer().write_all(&self.send);
                    continue;
                }
            }
            match tls.read_tls(&mut socket) {
                Ok(0) => break,
                Ok(_) => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    seen.silent = true;
                    break;
                }
                Err(e) => {
                    seen.reset |= is_reset(&e);
                    break;
                }
            }
            let processed = tls.process_new_packets();
            let mut chunk = [0; 4096];
            while let Ok(n) = tls.reader().read(&mut chunk) {
                if n == 0 {
                    break;
                }
                seen.data.extend_from_slice(&chunk[..n]);
            }
            if !then && !seen.data.is_empty() {
                then = true;
                let _ = tls.writer().write_all(&self.then);
            }
            match processed {
                Ok(_) => {}
                Err(Error::AlertReceived(alert)) => {
                    seen.alert = (alert != AlertDescription::CloseNotify).then(|| u8::from(alert));
                    break;
                }
                Err(_) => {
                    // Our own refusal: the alert must go out.
                    let _ = tls.write_tls(&mut socket);
                    break;
                }
            }
        }
        let _ = socket.shutdown(Shutdown::Write);
        seen
    }
}

/// A session that is kept.
#[derive(Debug)]
pub struct Link {
    stream: StreamOwned<ClientConnection, TcpStream>,
}

impl Link {
    /// Sends packets.
    ///
    /// # Errors
    /// If the connection is lost.
    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// The next packet; its length must fit one byte.
    ///
    /// # Errors
    /// If none comes in time, or the connection is lost.
    pub fn packet(&mut self) -> std::io::Result<Vec<u8>> {
        let mut packet = vec![0; 2];
        self.stream.read_exact(&mut packet)?;
        let length = usize::from(packet[1]);
        packet.resize(2 + length, 0);
        self.stream.read_exact(&mut packet[2..])?;
        Ok(packet)
    }
}

impl Read for Link {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.stream.read(buf)
    }
}

/// Connects from this address, if one is given.
///
/// # Errors
/// What the operating system says.
pub fn dial(from: Option<IpAddr>, server: SocketAddr) -> std::io::Result<TcpStream> {
    let Some(from) = from else {
        return TcpStream::connect(server);
    };
    let family = match server {
        SocketAddr::V4(_) => rustix::net::AddressFamily::INET,
        SocketAddr::V6(_) => rustix::net::AddressFamily::INET6,
    };
    let socket = rustix::net::socket(family, rustix::net::SocketType::STREAM, None)?;
    rustix::net::bind(&socket, &SocketAddr::new(from, 0))?;
    rustix::net::connect(&socket, &server)?;
    Ok(TcpStream::from(socket))
}

fn is_reset(e: &std::io::Error) -> bool {
    matches!(
        e.kind(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted
    )
}

/// Sends bytes without TLS, and returns what came until the server closed; `None` if it did not.
pub fn plain(server: SocketAddr, bytes: &[u8], patience: Duration) -> Option<Vec<u8>> {
    let mut socket = TcpStream::connect(server).ok()?;
    socket.set_read_timeout(Some(patience)).ok()?;
    let _ = socket.write_all(bytes);
    let mut data = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match socket.read(&mut chunk) {
            Ok(0) => return Some(data),
            Ok(n) => data.extend_from_slice(&chunk[..n]),
            Err(e) if is_reset(&e) => return Some(data),
            Err(_) => return None,
        }
    }
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let mut n = body.len();
    loop {
        let more = if n > 0x7f { 0x80 } else { 0 };
        out.push(u8::try_from(n & 0x7f).expect("seven bits") | more);
        n >>= 7;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(body);
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend(u16::try_from(text.len()).expect("a short text").to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// A CONNECT of protocol level 4 or 5, with a clean session.
pub fn connect(level: u8, client_id: &str) -> Vec<u8> {
    connect_with(level, client_id, 0x02, &[])
}

/// A CONNECT with these flags, and this after the client id.
pub fn connect_with(level: u8, client_id: &str, flags: u8, rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    text(&mut body, "MQTT");
    body.extend([level, flags, 0, 60]);
    if level >= 5 {
        body.push(0);
    }
    text(&mut body, client_id);
    body.extend_from_slice(rest);
    packet(0x10, &body)
}

/// A CONNECT with these flags and a will to `topic`; in MQTT 5 with a Will Delay Interval and a user property.
pub fn connect_with_will(level: u8, client_id: &str, flags: u8, topic: &str) -> Vec<u8> {
    let mut rest = Vec::new();
    if level >= 5 {
        rest.extend([12, 0x18, 0, 0, 0, 30, 0x26, 0, 1, b'k', 0, 1, b'v']);
    }
    text(&mut rest, topic);
    text(&mut rest, "gone");
    connect_with(level, client_id, flags, &rest)
}

/// A PUBLISH; QoS 1 with packet identifier 1 if `qos` is 1. `first_flags` are ORed into the first byte.
pub fn publish(level: u8, topic: &str, qos: u8, first_flags: u8) -> Vec<u8> {
    let mut body = Vec::new();
    text(&mut body, topic);
    if qos > 0 {
        body.extend([0, 1]);
    }
    if level >= 5 {
        body.push(0);
    }
    body.extend_from_slice(b"hello");
    packet(0x30 | qos << 1 | first_flags, &body)
}

/// A SUBSCRIBE with packet identifier 2.
pub fn subscribe(level: u8, filter: &str) -> Vec<u8> {
    subscribe_all(level, [(filter, 0)])
}

/// The same to many filters, each with its QoS.
pub fn subscribe_all<F: AsRef<str>>(level: u8, filters: impl IntoIterator<Item = (F, u8)>) -> Vec<u8> {
    let mut body = vec![0, 2];
    if level >= 5 {
        body.push(0);
    }
    for (filter, qos) in filters {
        text(&mut body, filter.as_ref());
        body.push(qos);
    }
    packet(0x82, &body)
}
