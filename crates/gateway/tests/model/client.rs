//! The devices of the walk: connections that are held open, and tickets that are kept.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use countersign_testkit::client::{Attempt, connect as connect_packet, publish};
use countersign_testkit::pki::Identity;
use rustls::client::Resumption;
use rustls::{ClientConfig, ClientConnection, HandshakeKind};

/// The tickets of one device, for each of its certificates and protocols. They are the client's configuration: the library
/// takes no session up under another one.
#[derive(Default)]
pub(crate) struct Tickets(Mutex<HashMap<Key, Arc<ClientConfig>>>);

/// Certificate and ALPN.
type Key = (usize, Vec<Vec<u8>>);

impl Tickets {
    fn of(&self, credential: usize, attempt: &Attempt) -> Arc<ClientConfig> {
        let mut known = self.0.lock().unwrap();
        let key = (credential, attempt.alpn.clone());
        let made = known.entry(key).or_insert_with(|| {
            let mut config = attempt.config();
            config.resumption = Resumption::in_memory_sessions(4);
            Arc::new(config)
        });
        made.clone()
    }
}

/// A connection that was admitted.
pub(crate) struct Live {
    tls: ClientConnection,
    socket: TcpStream,
    level: u8,
    over: bool,
    data: Vec<u8>,
}

pub(crate) enum Answer {
    Admitted(Box<Live>),
    Refused { resumed: bool },
}

pub(crate) fn connect(
    server: SocketAddr,
    id: &str,
    identity: &Identity,
    tickets: Option<(&Tickets, usize)>,
    level: u8,
) -> Answer {
    let attempt = Attempt::new(server).identity(identity);
    let config = match tickets {
        Some((tickets, credential)) => tickets.of(credential, &attempt),
        None => Arc::new(attempt.config()),
    };
    let tls = ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
    let socket = TcpStream::connect(server).unwrap();
    socket.set_nodelay(true).unwrap();
    let mut live = Live {
        tls,
        socket,
        level,
        over: false,
        data: vec![],
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while live.tls.is_handshaking() && !live.over {
        assert!(Instant::now() < deadline, "the handshake hangs");
        live.turn(Duration::from_secs(20));
    }
    if !live.over {
        live.send(&connect_packet(level, id));
        // CONNACK: four bytes in 3.1.1; in 5 the first four hold the code.
        while live.data.len() < 4 && !live.over {
            assert!(Instant::now() < deadline, "no CONNACK");
            live.turn(Duration::from_secs(20));
        }
    }
    let resumed = live.is_resumed();
    if live.data.first() == Some(&0x20) && live.data.get(3) == Some(&0) {
        live.data.clear();
        Answer::Admitted(Box::new(live))
    } else {
        Answer::Refused { resumed }
    }
}

/// Asks for a token that lasts an hour: its id, if it is granted, and whether the session was resumed.
pub(crate) fn token(
    server: SocketAddr,
    identity: &Identity,
    tickets: Option<(&Tickets, usize)>,
) -> (Option<String>, bool) {
    let mut attempt = Attempt {
        alpn: vec![b"http/1.1".to_vec()],
        patience: Duration::from_secs(20),
        ..Attempt::new(server)
    }
    .identity(identity)
    .send("GET /3600 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    if let Some((tickets, credential)) = tickets {
        attempt.client = Some(tickets.of(credential, &attempt));
    }
    let seen = attempt.run();
    let text = String::from_utf8_lossy(&seen.data).into_owned();
    let id = match text.split_once("\r\n\r\n") {
        Some((head, id)) if head.starts_with("HTTP/1.1 200") => Some(id.to_owned()),
        _ => None,
    };
    (id, seen.resumed)
}

impl Live {
    pub(crate) fn is_resumed(&self) -> bool {
        self.tls.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    fn send(&mut self, bytes: &[u8]) {
        let _ = self.tls.writer().write_all(bytes);
        while self.tls.wants_write() && !self.over {
            self.over |= self.tls.write_tls(&mut self.socket).is_err();
        }
    }

    /// One read, waiting at most so long; whether anything came.
    fn turn(&mut self, patience: Duration) -> bool {
        while self.tls.wants_write() && !self.over {
            self.over |= self.tls.write_tls(&mut self.socket).is_err();
        }
        self.socket
            .set_read_timeout(Some(patience.max(Duration::from_millis(1))))
            .unwrap();
        match self.tls.read_tls(&mut self.socket) {
            Ok(0) => self.over = true,
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return false,
            Err(_) => self.over = true,
        }
        match self.tls.process_new_packets() {
            Ok(state) => self.over |= state.peer_has_closed(),
            Err(_) => self.over = true,
        }
        let mut chunk = [0; 4096];
        while let Ok(n) = self.tls.reader().read(&mut chunk) {
            if n == 0 {
                break;
            }
            self.data.extend_from_slice(&chunk[..n]);
        }
        // DISCONNECT of MQTT 5: from here on it is over, whenever the socket closes.
        self.over |= self.level == 5 && self.data.first() == Some(&0xe0);
        true
    }

    /// Whether the server has ended it.
    pub(crate) fn is_over(&mut self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        while !self.over && self.turn(Duration::from_millis(1)) {}
        self.socket.set_nonblocking(false).unwrap();
        self.over
    }

    /// Waits for the server to end it.
    pub(crate) fn ends_within(&mut self, bound: Duration) -> bool {
        let deadline = Instant::now() + bound;
        while !self.over && Instant::now() < deadline {
            self.turn(deadline.saturating_duration_since(Instant::now()));
        }
        self.over
    }

    /// Publishes with QoS 1; whether it was acknowledged as done.
    pub(crate) fn publish(&mut self, topic: &str) -> bool {
        self.data.clear();
        self.send(&publish(self.level, topic, 1, 0));
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.data.len() < 4 && !self.over && Instant::now() < deadline {
            self.turn(Duration::from_secs(20));
        }
        // PUBACK without a reason code is success; MQTT 5 appends one when it is not.
        let done = self.data.first() == Some(&0x40)
            && (self.data[1] == 2 || self.data.get(4).is_some_and(|c| *c < 0x80));
        self.data.clear();
        done
    }
}
