//! Moves bytes through rustls' buffer-free server connection. No I/O, no clock: bytes in, plaintext and records out.
//!
//! One [`pass`] consumes all whole records of the input. What it answers (handshake messages, tickets, alerts) is
//! appended to `records`, what the peer sent is appended to `plaintext`. Nothing can be encrypted while plaintext is
//! read, so replies are gathered and [`seal`]ed after the pass: Finished, tickets and CONNACK leave in one write.
//!
//! Two rules of this API, kept here so that nobody else needs to know them:
//! * the connection remembers ranges of the bytes it was given: every call gets what was left of the *same* bytes
//! * after an error the alert is fetched by calling again with the rest of the same bytes; then the connection is
//!   dropped. With an empty slice rustls 0.23 panics if it remembers a part of a handshake message, which any client
//!   can cause.

use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};

/// The largest overhead of one record of application data: header, content type, AEAD tag (RFC 9846 section 5.2), and
/// the explicit nonce of TLS 1.2.
const RECORD_OVERHEAD: usize = 5 + 1 + 16 + 8;
/// The largest plaintext of one record.
const RECORD_PLAINTEXT: usize = 1 << 14;

/// Where a pass ended.
#[derive(Debug)]
pub enum PassEnd {
    /// The handshake needs more bytes.
    Handshaking,
    /// The connection is open; all whole records are consumed.
    Open,
    /// The peer sent close_notify: no more plaintext comes.
    PeerClosed,
    /// TLS failed; `records` ends with the alert, if one may be sent.
    Failed(rustls::Error),
}

/// What a pass did.
#[derive(Debug)]
pub struct Pass {
    /// How many bytes of the input are used up. The rest must come first in the next input.
    pub used: usize,
    /// Where it ended.
    pub end: PassEnd,
}

/// Consumes whole records of `input`.
pub fn pass(
    tls: &mut UnbufferedServerConnection,
    input: &mut [u8],
    plaintext: &mut Vec<u8>,
    records: &mut Vec<u8>,
) -> Pass {
    let mut used = 0;
    loop {
        let UnbufferedStatus {
            mut discard, state, ..
        } = tls.process_tls_records(&mut input[used..]);
        let end = match state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                let mut failed = None;
                while let Some(record) = traffic.next_record() {
                    match record {
                        Ok(record) => {
                            plaintext.extend_from_slice(record.payload);
                            discard += record.discard;
                        }
                        Err(e) => {
                            failed = Some(PassEnd::Failed(e));
                            break;
                        }
                    }
                }
                failed
            }
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                encode(|out| data.encode(out), records);
                None
            }
            // The caller transmits everything after the pass, in one write.
            Ok(ConnectionState::TransmitTlsData(transmit)) => {
                transmit.done();
                None
            }
            Ok(ConnectionState::BlockedHandshake) => Some(PassEnd::Handshaking),
            Ok(ConnectionState::WriteTraffic(_)) => Some(PassEnd::Open),
            Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Some(PassEnd::PeerClosed),
            // 0-RTT is never offered (max_early_data_size is 0), so this cannot be reached; were it, we refuse.
            Ok(_) => Some(PassEnd::Failed(rustls::Error::General(
                "early data is refused".into(),
            ))),
            Err(error) => {
                used += discard;
                fetch_alert(tls, &mut input[used..], records);
                return Pass {
                    used,
                    end: PassEnd::Failed(error),
                };
            }
        };
        used += discard;
        if let Some(end) = end {
            return Pass { used, end };
        }
    }
}

/// Fetches what rustls queued with an error, the alert last. `rest` is what the failed pass left of its input. What is
/// queued is handed out before any input is looked at, and once it is, no call may follow: input after a fatal alert is
/// not for rustls to see.
fn fetch_alert(tls: &mut UnbufferedServerConnection, rest: &mut [u8], records: &mut Vec<u8>) {
    while tls.wants_write() {
        match tls.process_tls_records(rest).state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => encode(|out| data.encode(out), records),
            _ => return,
        }
    }
}

fn encode(mut into: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>, records: &mut Vec<u8>) {
    let start = records.len();
    let mut room = 2048;
    loop {
        records.resize(start + room, 0);
        match into(&mut records[start..]) {
            Ok(written) => {
                records.truncate(start + written);
                return;
            }
            Err(EncodeError::InsufficientSize(size)) if size.required_size > room => {
                room = size.required_size
            }
            Err(_) => {
                records.truncate(start);
                return;
            }
        }
    }
}

/// The connection cannot encrypt: it is not open, or its keys are used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the TLS connection cannot send")]
pub struct CannotSend;

/// Encrypts `plaintext` and appends the records. `rest` is what the last pass left of its input.
///
/// # Errors
/// [`CannotSend`] if the connection is not open.
pub fn seal(
    tls: &mut UnbufferedServerConnection,
    rest: &mut [u8],
    plaintext: &[u8],
    records: &mut Vec<u8>,
) -> Result<(), CannotSend> {
    for chunk in plaintext.chunks(RECORD_PLAINTEXT) {
        write_traffic(
            tls,
            rest,
            records,
            |traffic, out| traffic.encrypt(chunk, out),
            chunk.len() + RECORD_OVERHEAD,
        )?;
    }
    Ok(())
}

/// Appends a close_notify alert, so that the peer can tell an end from a cut.
///
/// # Errors
/// [`CannotSend`] if the connection is not open.
pub fn close(
    tls: &mut UnbufferedServerConnection,
    rest: &mut [u8],
    records: &mut Vec<u8>,
) -> Result<(), CannotSend> {
    write_traffic(
        tls,
        rest,
        records,
        |traffic, out| traffic.queue_close_notify(out),
        64,
    )
}

fn write_traffic(
    tls: &mut UnbufferedServerConnection,
    rest: &mut [u8],
    records: &mut Vec<u8>,
    mut write: impl FnMut(
        &mut rustls::unbuffered::WriteTraffic<'_, rustls::server::ServerConnectionData>,
        &mut [u8],
    ) -> Result<usize, EncryptError>,
    room: usize,
) -> Result<(), CannotSend> {
    // A key update that is due comes first as EncodeTlsData, TransmitTlsData: a few turns, never many.
    for _ in 0..8 {
        match tls.process_tls_records(rest).state {
            Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                let start = records.len();
                records.resize(start + room, 0);
                let written = match write(&mut traffic, &mut records[start..]) {
                    Err(EncryptError::InsufficientSize(size)) => {
                        records.resize(start + size.required_size, 0);
                        write(&mut traffic, &mut records[start..])
                    }
                    other => other,
                };
                records.truncate(start + *written.as_ref().unwrap_or(&0));
                return written.map(|_| ()).map_err(|_| CannotSend);
            }
            Ok(ConnectionState::EncodeTlsData(mut data)) => encode(|out| data.encode(out), records),
            Ok(ConnectionState::TransmitTlsData(transmit)) => transmit.done(),
            _ => return Err(CannotSend),
        }
    }
    Err(CannotSend)
}
