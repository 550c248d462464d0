//! The socket of the CA: who may ask is told by the kernel, before a byte is read.

use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use countersign_identity::AuthorityId;
use rusqlite::Connection;
use serde_json::Value;

use super::Ca;
use super::error::CaError;
use super::protocol::{
    ANSWER_BYTES_MAX, Answer, Base64, Call, DescribedAuthority, ENDED_MAX, FrameError, REQUEST_BYTES_MAX,
    Request, VERSION, read_frame, write_frame,
};
use super::rules::{self, Asked};

/// How long a connection may be silent between two requests.
const IDLE: Duration = Duration::from_secs(60);
/// How long a stop waits for requests that are being answered.
const DRAIN: Duration = Duration::from_secs(5);

/// The open socket.
pub struct Daemon {
    socket: PathBuf,
    shared: Arc<Shared>,
}

struct Shared {
    ca: Ca,
    uids: Vec<u32>,
    connections: AtomicUsize,
    busy: AtomicUsize,
    is_stopping: AtomicBool,
}

impl Daemon {
    /// Opens the socket of the CA in a folder, and answers until it is stopped.
    ///
    /// # Errors
    /// [`CaError`] with its cure.
    pub fn start(folder: &Path) -> Result<Self, CaError> {
        let ca = Ca::open(folder)?;
        let socket = ca.settings.socket_in(folder);
        let own = rustix::process::getuid().as_raw();
        let mut uids = ca.settings.control_uids.clone();
        uids.push(own);
        let listener = bind(&socket, uids.iter().any(|uid| *uid != own))?;
        let shared = Arc::new(Shared {
            ca,
            uids,
            connections: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            is_stopping: AtomicBool::new(false),
        });
        let accepting = shared.clone();
        std::thread::Builder::new()
            .name("ca-accept".into())
            .spawn(move || accept(&listener, &accepting))
            .map_err(|e| CaError::Storage(e.to_string()))?;
        Ok(Self { socket, shared })
    }

    /// Where it answers.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Takes no new requests, and waits for those that are being answered.
    pub fn stop(self) {
        self.shared.is_stopping.store(true, Ordering::SeqCst);
        let _ = std::fs::remove_file(&self.socket);
        let until = Instant::now() + DRAIN;
        while self.shared.busy.load(Ordering::SeqCst) > 0 && Instant::now() < until {
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}

fn bind(socket: &Path, is_shared: bool) -> Result<UnixListener, CaError> {
    let failed = |what: &dyn std::fmt::Display, hint: &str| {
        CaError::Invalid(format!(
            "cannot listen on {}: {what}; hint: {hint}",
            socket.display()
        ))
    };
    // What a kill left behind goes away; a socket that somebody answers on does not.
    match UnixStream::connect(socket) {
        Ok(_) => {
            return Err(failed(
                &"somebody answers there",
                "stop that one, or name another socket in ca.toml",
            ));
        }
        // Any other file refuses connections too.
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => {
            let found = std::fs::symlink_metadata(socket);
            if !found.is_ok_and(|found| found.file_type().is_socket()) {
                return Err(failed(
                    &"there is something that is no socket",
                    "move it away, or name another socket in ca.toml",
                ));
            }
            let _ = std::fs::remove_file(socket);
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(socket).map_err(|e| {
        failed(&e, "make its folder first (systemd: RuntimeDirectory=), writable for the CA's user; the path has at most 107 characters")
    })?;
    // With other users the mode lets everybody knock; the kernel's word on who knocks opens.
    let mode = if is_shared { 0o666 } else { 0o600 };
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(mode))
        .map_err(|e| failed(&e, "look at the permissions of its folder"))?;
    Ok(listener)
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(e) => {
                tracing::error!(error = %e, "the CA cannot accept");
                std::thread::park_timeout(Duration::from_millis(50));
                continue;
            }
        };
        if shared.is_stopping.load(Ordering::SeqCst) {
            return;
        }
        let held = shared.connections.fetch_add(1, Ordering::SeqCst);
        let full = held >= shared.ca.settings.connections_max;
        let of_thread = shared.clone();
        let spawned = if full {
            tracing::warn!("a connection was refused: connections_max of ca.toml is reached");
            Err(ErrorKind::WouldBlock.into())
        } else {
            std::thread::Builder::new()
                .name("ca-control".into())
                .spawn(move || {
                    converse(stream, &of_thread);
                    of_thread.connections.fetch_sub(1, Ordering::SeqCst);
                })
        };
        if spawned.is_err() {
            shared.connections.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Who is on the other side, says the kernel.
fn peer(stream: &UnixStream) -> Option<u32> {
    let peer = rustix::net::sockopt::socket_peercred(stream).ok()?;
    Some(peer.uid.as_raw())
}

fn converse(mut stream: UnixStream, shared: &Shared) {
    let timeout = shared.ca.settings.transfer_timeout();
    let peer = peer(&stream);
    let Some(uid) = peer.filter(|uid| shared.uids.contains(uid)) else {
        tracing::warn!(peer.uid = peer, "a connection was refused: this user may not ask");
        let refused = Answer::Refused {
            code: "peer".into(),
            status: 403,
            text: format!(
                "user id {} may not ask this CA; hint: add it to control_uids in ca.toml, on the CA, and restart it",
                peer.map_or("?".into(), |uid| uid.to_string())
            ),
        };
        let _ = send(&mut stream, &refused, timeout);
        return;
    };
    let actor = format!("control uid {uid}");
    loop {
        let body = match read_frame(&mut stream, REQUEST_BYTES_MAX, IDLE, timeout) {
            Ok(body) => body,
            Err(e @ FrameError::TooLarge(_)) => {
                let refused = refusal(&CaError::Malformed(e.to_string()));
                let _ = send(&mut stream, &refused, timeout);
                return;
            }
            Err(_) => return,
        };
        shared.busy.fetch_add(1, Ordering::SeqCst);
        let answer = answer(&shared.ca, &actor, &body);
        let sent = send(&mut stream, &answer, timeout);
        shared.busy.fetch_sub(1, Ordering::SeqCst);
        if sent.is_err() || shared.is_stopping.load(Ordering::SeqCst) {
            return;
        }
    }
}

fn send(stream: &mut UnixStream, answer: &Answer, timeout: Duration) -> Result<(), FrameError> {
    let body = serde_json::to_vec(answer).map_err(|e| FrameError::Io(e.into()))?;
    write_frame(stream, &body, ANSWER_BYTES_MAX, timeout)
}

fn refusal(e: &CaError) -> Answer {
    Answer::Refused {
        code: e.code().into(),
        status: e.status(),
        text: e.to_string(),
    }
}

fn answer(ca: &Ca, actor: &str, body: &[u8]) -> Answer {
    let result = read(body).and_then(|request| perform(ca, actor, request));
    result.unwrap_or_else(|e| {
        // The cause of what cannot be read may quote it, and a secret with it: that goes to the sender alone.
        match &e {
            CaError::Malformed(_) => tracing::warn!(actor, code = e.code(), "refused"),
            e => tracing::warn!(actor, code = e.code(), cause = %e, "refused"),
        }
        refusal(&e)
    })
}

fn read(body: &[u8]) -> Result<Request, CaError> {
    let malformed = |e: serde_json::Error| CaError::Malformed(e.to_string());
    let value: Value = serde_json::from_slice(body).map_err(malformed)?;
    match value["version"].as_u64() {
        Some(version) if version == u64::from(VERSION) => {}
        Some(version) => return Err(CaError::Version(u16::try_from(version).unwrap_or(u16::MAX))),
        None => return Err(CaError::Malformed("it names no version".into())),
    }
    let call: Call = serde_json::from_value(value).map_err(malformed)?;
    Ok(call.request)
}

fn perform(ca: &Ca, actor: &str, request: Request) -> Result<Answer, CaError> {
    match request {
        Request::Describe => Ok(Answer::Described {
            authorities: authorities(ca)?,
            profiles: ca
                .settings
                .profiles
                .iter()
                .map(|p| p.profile.name.clone())
                .collect(),
        }),
        Request::Issue(call) => {
            let asked = Asked::read(&ca.settings, call)?;
            let issued = ca.issue(actor, asked)?;
            tracing::info!(actor, authority = %issued.authority, repeated = issued.repeated, "issued");
            Ok(Answer::Issued(issued))
        }
        Request::Check(call) => {
            let asked = Asked::read(&ca.settings, call)?;
            ca.check(actor, asked)?;
            Ok(Answer::Holds)
        }
        Request::End {
            authority,
            certificates,
        } => {
            if certificates.len() > ENDED_MAX {
                return Err(CaError::Malformed(format!(
                    "more than {ENDED_MAX} certificates at once"
                )));
            }
            let (ended, unknown) = ca
                .store
                .write(actor, move |scope| rules::end(scope, &authority, &certificates))?;
            Ok(Answer::Ended { ended, unknown })
        }
        Request::RevocationList {
            authority,
            next_update_hours,
        } => Ok(Answer::Signed {
            der: Base64(ca.revocation_list(actor, &authority, next_update_hours)?),
        }),
        Request::Ocsp {
            request,
            next_update_hours,
        } => Ok(Answer::Signed {
            der: Base64(ca.ocsp(actor, &request.0, next_update_hours)?),
        }),
    }
}

fn authorities(ca: &Ca) -> Result<Vec<DescribedAuthority>, CaError> {
    let mut found = ca.store.read(authorities_kept)?;
    for authority in &mut found {
        let between = ca.keys.intermediates(&authority.id)?;
        authority.intermediates = between.into_iter().map(Base64).collect();
    }
    Ok(found)
}

fn authorities_kept(db: &Connection) -> Result<Vec<DescribedAuthority>, CaError> {
    let mut statement =
        db.prepare_cached("SELECT id, tenant, state, certificate, root FROM authorities ORDER BY created")?;
    let mut rows = statement.query([])?;
    let mut found = Vec::new();
    let damaged = |e: &dyn std::fmt::Display| CaError::Storage(format!("an entry cannot be read: {e}"));
    while let Some(r) = rows.next()? {
        let id: AuthorityId = r.get::<_, String>(0)?.parse().map_err(|e| damaged(&e))?;
        found.push(DescribedAuthority {
            id,
            tenant: r.get::<_, String>(1)?.parse().map_err(|e| damaged(&e))?,
            issues: r.get::<_, String>(2)? == "open",
            certificate: Base64(r.get(3)?),
            intermediates: Vec::new(),
            root: Base64(r.get(4)?),
        });
    }
    Ok(found)
}
