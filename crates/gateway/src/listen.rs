//! Accepts TCP, counts it in by source, and gives each connection a task. No handshake is ever awaited here.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use countersign_policy::Denial;
use tokio::net::{TcpListener, TcpSocket};

use crate::connection::Connection;
use crate::exchange::Accepted;
use crate::metrics::count;
use crate::node::{Node, Port};

/// Connections that wait in the kernel while a storm is accepted.
const BACKLOG: u32 = 4096;
/// When the process has no file descriptor left, waiting is all that helps.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Opens the port.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // A restarted server takes its port back at once.
    socket.set_reuseaddr(true)?;
    // What is accepted has it from here. Without it a CONNACK can wait 40 ms for the peer's delayed acknowledgement.
    socket.set_nodelay(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts until it is dropped.
pub(crate) async fn accept(listener: TcpListener, port: Arc<Port>, node: Arc<Node>) {
    loop {
        let (socket, source) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                tracing::error!(error = %e, "cannot accept connections; hint: raise the open-file limit (ulimit -n)");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        count(&node.metrics.accepted);
        match node.admit(&port, source) {
            Ok(slot) => {
                tokio::spawn(Connection::new(slot, socket, source));
            }
            Err(code) => {
                let started = node.now();
                let accepted = Accepted::new(node.next_exchange(started), started, source, port.name.clone());
                accepted.refuse(Denial::from(code)).conclude(&node);
            }
        }
    }
}
