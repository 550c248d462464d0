//! A network that can be cut.

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A network between device and platform that can be cut.
#[derive(Debug)]
pub struct Network {
    /// Where devices connect, on this machine.
    pub port: u16,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    /// Nowhere, while it is cut.
    leads_to: Option<SocketAddr>,
    open: Vec<TcpStream>,
}

impl Network {
    /// In front of a server.
    ///
    /// # Panics
    /// If this machine has no free port.
    pub fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let shared = Arc::new(Mutex::new(Shared {
            leads_to: Some(server),
            open: Vec::new(),
        }));
        let ours = shared.clone();
        std::thread::spawn(move || {
            for device in listener.incoming() {
                let device = device.expect("a connection");
                let mut shared = ours.lock().expect("no panic");
                let Some(Ok(platform)) = shared.leads_to.map(TcpStream::connect) else {
                    continue;
                };
                for (from, to) in [(&device, &platform), (&platform, &device)] {
                    let (mut from, mut to) = (
                        from.try_clone().expect("a socket"),
                        to.try_clone().expect("a socket"),
                    );
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
                shared.open.extend([device, platform]);
            }
        });
        Self { port, shared }
    }

    /// Ends all connections, and every new one at once.
    ///
    /// # Panics
    /// If a thread of it did.
    pub fn cut(&self) {
        let mut shared = self.shared.lock().expect("no panic");
        shared.leads_to = None;
        for socket in shared.open.drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Lets through again, to a server that may be elsewhere by now.
    ///
    /// # Panics
    /// If a thread of it did.
    pub fn mend(&self, server: SocketAddr) {
        self.shared.lock().expect("no panic").leads_to = Some(server);
    }
}
