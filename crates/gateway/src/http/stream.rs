//! The TLS connection as a stream: hyper reads plaintext and writes plaintext, [`driver`] does the rest.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};
use rustls::server::UnbufferedServerConnection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::buffers::{self, Spill};
use crate::handshake::driver::{self, PassEnd};

/// Records that wait for the socket; beyond this nothing more is encrypted.
const OUTPUT_BYTES_MAX: usize = 64 * 1024;
/// A record that is larger than any.
const UNREAD_MAX: usize = 48 * 1024;

/// An open TLS connection.
pub(crate) struct TlsStream {
    socket: TcpStream,
    tls: UnbufferedServerConnection,
    /// What the handshake left: the start of a record, plaintext that came with it, records still to be written.
    spill: Spill,
    /// How much of `spill.plaintext` was read.
    taken: usize,
    ended: bool,
    said_goodbye: bool,
}

impl TlsStream {
    pub(crate) fn new(socket: TcpStream, tls: UnbufferedServerConnection, spill: Spill) -> Self {
        Self {
            socket,
            tls,
            spill,
            taken: 0,
            ended: false,
            said_goodbye: false,
        }
    }

    /// Writes what waits until the socket takes no more.
    fn poll_output(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut written = 0;
        let result = loop {
            let rest = &self.spill.output[written..];
            if rest.is_empty() {
                break Poll::Ready(Ok(()));
            }
            match Pin::new(&mut self.socket).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => break Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => written += n,
                Poll::Ready(Err(e)) => break Poll::Ready(Err(e)),
                Poll::Pending => break Poll::Pending,
            }
        };
        self.spill.output.drain(..written);
        if self.spill.output.is_empty() {
            // An idle connection holds no buffer.
            self.spill.output = Vec::new();
        }
        result
    }

    /// Reads records until there is plaintext, or the end.
    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.taken == self.spill.plaintext.len() && !self.ended {
            self.spill.plaintext = Vec::new();
            self.taken = 0;
            ready!(self.poll_records(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_records(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        buffers::lend(|b| {
            let kept = self.spill.input.len();
            if kept > UNREAD_MAX {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a record is larger than any",
                )));
            }
            b.input[..kept].copy_from_slice(&self.spill.input);
            let mut read = ReadBuf::new(&mut b.input[kept..]);
            ready!(Pin::new(&mut self.socket).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                self.ended = true;
                return Poll::Ready(Ok(()));
            }
            let end = kept + read.filled().len();
            let pass = driver::pass(
                &mut self.tls,
                &mut b.input[..end],
                &mut b.plaintext,
                &mut b.records,
            );
            self.spill.input = b.input[pass.used..end].to_vec();
            self.spill.plaintext.append(&mut b.plaintext);
            self.spill.output.append(&mut b.records);
            match pass.end {
                PassEnd::Handshaking | PassEnd::Open => Poll::Ready(Ok(())),
                PassEnd::PeerClosed => {
                    self.ended = true;
                    Poll::Ready(Ok(()))
                }
                PassEnd::Failed(e) => {
                    // The alert is the last word, if the socket takes it.
                    let _ = self.poll_output(cx);
                    Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, e)))
                }
            }
        })
    }
}

impl Read for TlsStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_input(cx))?;
        let waiting = &this.spill.plaintext[this.taken..];
        let n = waiting.len().min(into.remaining());
        into.put_slice(&waiting[..n]);
        this.taken += n;
        if this.taken == this.spill.plaintext.len() {
            this.spill.plaintext = Vec::new();
            this.taken = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl Write for TlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.spill.output.len() >= OUTPUT_BYTES_MAX {
            ready!(this.poll_output(cx))?;
        }
        let bytes = &bytes[..bytes.len().min(OUTPUT_BYTES_MAX)];
        let spill = &mut this.spill;
        driver::seal(&mut this.tls, &mut spill.input, bytes, &mut spill.output)
            .map_err(|e| io::Error::new(io::ErrorKind::BrokenPipe, e))?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_output(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !std::mem::replace(&mut this.said_goodbye, true) {
            let spill = &mut this.spill;
            let _ = driver::close(&mut this.tls, &mut spill.input, &mut spill.output);
        }
        ready!(this.poll_output(cx))?;
        Pin::new(&mut this.socket).poll_shutdown(cx)
    }
}
