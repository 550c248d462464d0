//! Idle sessions in numbers: connected over TLS, then nothing but an open socket each.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustls::ClientConnection;
use rustls::pki_types::ServerName;

use crate::client::{Attempt, connect, subscribe_all};
use crate::pki::Identity;

/// How long the other side may take for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// A session that is held open. What the server still says is read only to see the end of it.
#[derive(Debug)]
pub struct Held(TcpStream);

impl Held {
    /// Connects with MQTT 5 and waits for CONNACK.
    ///
    /// # Errors
    /// If it is not admitted.
    pub fn open(server: SocketAddr, identity: &Identity, client_id: &str) -> Result<Self> {
        Self::open_with(server, identity, client_id, &[])
    }

    /// The same, and subscribes: to filters with their QoS. Waits for SUBACK, too.
    ///
    /// # Errors
    /// If it is not admitted, or one is refused.
    pub fn open_with(
        server: SocketAddr,
        identity: &Identity,
        client_id: &str,
        filters: &[(String, u8)],
    ) -> Result<Self> {
        let attempt = Attempt::new(server).identity(identity);
        let mut socket = TcpStream::connect(server)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let name = ServerName::try_from(attempt.name.clone())?;
        let mut tls = ClientConnection::new(Arc::new(attempt.config()), name)?;
        let mut asked = without_keep_alive(client_id);
        if !filters.is_empty() {
            asked.extend(subscribe_all(5, filters.iter().map(|(f, qos)| (f, *qos))));
        }
        tls.writer().write_all(&asked)?;
        let (mut answer, mut codes) = (Vec::new(), None);
        while codes.is_none() {
            while tls.wants_write() {
                tls.write_tls(&mut socket)?;
            }
            ensure!(
                tls.read_tls(&mut socket)? > 0,
                "{client_id}: closed before CONNACK"
            );
            tls.process_new_packets()?;
            let mut chunk = [0; 256];
            match tls.reader().read(&mut chunk) {
                Ok(n) => answer.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e.into()),
            }
            codes = granted(&answer, filters.len());
        }
        ensure!(
            codes
                .flatten()
                .is_some_and(|codes| codes.iter().all(|code| *code < 0x80)),
            "{client_id}: not admitted, or not subscribed: {answer:?}"
        );
        Ok(Self(socket))
    }

    /// Waits until the server has closed it.
    ///
    /// # Errors
    /// If it does not within a minute.
    pub fn closed(&mut self) -> Result<Instant> {
        let mut chunk = [0; 4096];
        loop {
            match self.0.read(&mut chunk) {
                Ok(0) => return Ok(Instant::now()),
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return Ok(Instant::now()),
                Err(e) => bail!("it is not closed: {e}"),
            }
        }
    }
}

/// The reason codes of CONNACK and then of a SUBACK to so many filters, once all have come; `Some(None)`: something else came.
fn granted(answer: &[u8], filters: usize) -> Option<Option<Vec<u8>>> {
    let (connack, rest) = answer.split_at_checked(2 + usize::from(*answer.get(1)?))?;
    if connack[0] != 0x20 || connack[3] != 0 {
        return Some(None);
    }
    if filters == 0 {
        return Some(Some(Vec::new()));
    }
    let suback = rest.get(..2 + usize::from(*rest.get(1)?))?;
    Some((suback[0] == 0x90 && suback.len() == 5 + filters).then(|| suback[5..].to_vec()))
}

/// A CONNECT of MQTT 5 that asks for no keep-alive: who is held says nothing for as long as the server bears it.
fn without_keep_alive(client_id: &str) -> Vec<u8> {
    let mut packet = connect(5, client_id);
    // After the fixed header come the protocol's name (6 bytes), its level and the flags.
    let header = 1 + packet[1..].iter().take_while(|b| **b & 0x80 != 0).count() + 1;
    packet[header + 8..header + 10].fill(0);
    packet
}

/// Opens a session for each identity, on some threads, with the filters that `filters` names for it; `done` is told how many there are.
///
/// # Errors
/// If one is not admitted.
pub fn open_all(
    server: SocketAddr,
    devices: &[(String, Identity)],
    threads: usize,
    filters: impl Fn(&str) -> Vec<(String, u8)> + Sync,
    done: impl Fn(usize) + Sync,
) -> Result<Vec<Held>> {
    let count = AtomicUsize::new(0);
    let share = devices.len().div_ceil(threads.max(1)).max(1);
    std::thread::scope(|scope| {
        let parts: Vec<_> = devices
            .chunks(share)
            .map(|part| {
                let (count, filters, done) = (&count, &filters, &done);
                scope.spawn(move || -> Result<Vec<Held>> {
                    part.iter()
                        .map(|(id, identity)| {
                            let held = Held::open_with(server, identity, id, &filters(id))?;
                            done(count.fetch_add(1, Ordering::Relaxed) + 1);
                            Ok(held)
                        })
                        .collect()
                })
            })
            .collect();
        let mut all = Vec::with_capacity(devices.len());
        for part in parts {
            all.extend(part.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??);
        }
        Ok(all)
    })
}

/// Waits until all are closed, on some threads; when the last one was.
///
/// # Errors
/// If one is not within a minute.
pub fn all_closed(held: &mut [Held], threads: usize) -> Result<Instant> {
    let share = held.len().div_ceil(threads.max(1)).max(1);
    std::thread::scope(|scope| {
        let parts: Vec<_> = held
            .chunks_mut(share)
            .map(|part| {
                scope.spawn(move || -> Result<Option<Instant>> {
                    let mut last = None;
                    for one in part {
                        last = last.max(Some(one.closed()?));
                    }
                    Ok(last)
                })
            })
            .collect();
        let mut last = None;
        for part in parts {
            last = last.max(part.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??);
        }
        last.context("there was none to close")
    })
}
