//! How the control process asks the CA. One connection per question: a unix socket costs microseconds, and nothing can go
//! stale.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use countersign_authority::keys::{KEY_STORE_FILE, KeyStore};
use countersign_authority::{folder, install};
use countersign_factory::request::pem;
use countersign_identity::AuthorityId;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::protocol::{
    ANSWER_BYTES_MAX, Answer, Base64, Call, DescribedAuthority, ENDED_MAX, Ended, FrameError, IssueCall,
    IssuedAnswer, REQUEST_BYTES_MAX, Request, VERSION, read_frame, write_frame,
};
use crate::failure::Failure;

/// The way to the CA.
#[derive(Debug, Clone)]
pub struct CaLink {
    socket: PathBuf,
    timeout: Duration,
    status: Arc<Semaphore>,
    status_refused: Arc<AtomicU64>,
}

impl CaLink {
    /// Nothing is opened yet. `status_requests_max`: lists and OCSP answers that are asked for at once.
    pub fn new(socket: PathBuf, timeout: Duration, status_requests_max: usize) -> Self {
        Self {
            socket,
            timeout,
            status: Arc::new(Semaphore::new(status_requests_max.min(Semaphore::MAX_PERMITS))),
            status_refused: Arc::default(),
        }
    }

    /// Leave to ask for a list or an OCSP answer, while it is held; `None` while as many as may are being asked for.
    /// Anybody may want those, and the CA takes only so many connections: issuance must find one free.
    pub fn status_leave(&self) -> Option<SemaphorePermit<'_>> {
        let leave = self.status.try_acquire().ok();
        if leave.is_none() {
            self.status_refused.fetch_add(1, Ordering::Relaxed);
        }
        leave
    }

    /// How often [`Self::status_leave`] was refused.
    pub fn status_refused(&self) -> u64 {
        self.status_refused.load(Ordering::Relaxed)
    }

    /// How long one transfer may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Where the CA answers.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    fn unreachable(&self, e: &dyn std::fmt::Display, hint: &str) -> Failure {
        Failure::unavailable(
            format!("the CA at {} does not answer: {e}", self.socket.display()),
            hint,
        )
    }

    /// Asks, and waits for the answer. It blocks: call it off the async threads.
    fn ask(&self, request: Request) -> Result<Answer, Failure> {
        let start =
            "start it (countersign ca serve --data CA_DIR); nothing was issued, and asking again is safe";
        let mut stream = UnixStream::connect(&self.socket).map_err(|e| {
            let hint = match e.kind() {
                ErrorKind::PermissionDenied => {
                    "let this process reach the socket: its folder, and control_uids in ca.toml"
                }
                _ => start,
            };
            self.unreachable(&e, hint)
        })?;
        let call = Call {
            version: VERSION,
            request,
        };
        let body =
            zeroize::Zeroizing::new(serde_json::to_vec(&call).map_err(|e| Failure::internal(e.to_string()))?);
        let sent = write_frame(&mut stream, &body, REQUEST_BYTES_MAX, self.timeout);
        if let Err(FrameError::TooLarge(n)) = sent {
            return Err(Failure::invalid(format!(
                "the request has {n} bytes, too many for the CA"
            )));
        }
        // Read even if sending failed: a CA that refuses us says so before it closes.
        let body = read_frame(&mut stream, ANSWER_BYTES_MAX, self.timeout, self.timeout).map_err(|e| {
            self.unreachable(
                &e,
                "look at its log; asking again is safe: it answers with the same certificate",
            )
        })?;
        let answer: Answer = serde_json::from_slice(&body)
            .map_err(|e| self.unreachable(&e, "run the same countersign on both sides"))?;
        match answer {
            Answer::Refused { status, text, .. } => Err(Failure::told(status, &text)),
            other => Ok(other),
        }
    }

    fn unexpected() -> Failure {
        Failure::internal("the CA's answer does not fit the question")
    }

    /// What the CA has.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn authorities(&self) -> Result<Vec<DescribedAuthority>, Failure> {
        match self.ask(Request::Describe)? {
            Answer::Described { authorities, .. } => Ok(authorities),
            _ => Err(Self::unexpected()),
        }
    }

    /// A certificate.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn issue(&self, call: IssueCall) -> Result<IssuedAnswer, Failure> {
        match self.ask(Request::Issue(call))? {
            Answer::Issued(issued) => Ok(issued),
            _ => Err(Self::unexpected()),
        }
    }

    /// Whether the evidence for a certificate holds.
    ///
    /// # Errors
    /// [`Failure`] if it does not.
    pub fn check(&self, call: IssueCall) -> Result<(), Failure> {
        match self.ask(Request::Check(call))? {
            Answer::Holds => Ok(()),
            _ => Err(Self::unexpected()),
        }
    }

    /// Tells of certificates that have ended.
    ///
    /// # Errors
    /// [`Failure`]; then telling all of them again is safe.
    pub fn end(&self, authority: &AuthorityId, certificates: &[Ended]) -> Result<(), Failure> {
        for chunk in certificates.chunks(ENDED_MAX) {
            let request = Request::End {
                authority: authority.clone(),
                certificates: chunk.to_vec(),
            };
            match self.ask(request)? {
                Answer::Ended { .. } => {}
                _ => return Err(Self::unexpected()),
            }
        }
        Ok(())
    }

    /// A revocation list, DER.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn revocation_list(
        &self,
        authority: &AuthorityId,
        next_update_hours: u32,
    ) -> Result<Vec<u8>, Failure> {
        let request = Request::RevocationList {
            authority: authority.clone(),
            next_update_hours,
        };
        self.signed(request)
    }

    /// An OCSPResponse, DER.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn ocsp(&self, request: &[u8], next_update_hours: u32) -> Result<Vec<u8>, Failure> {
        let request = Request::Ocsp {
            request: Base64(request.to_vec()),
            next_update_hours,
        };
        self.signed(request)
    }

    fn signed(&self, request: Request) -> Result<Vec<u8>, Failure> {
        match self.ask(request)? {
            Answer::Signed { der } => Ok(der.0),
            _ => Err(Self::unexpected()),
        }
    }
}

/// Keeps what is public of an authority of the CA, where one of our own would be: its certificates, and that its key is
/// not here.
///
/// # Errors
/// [`Failure`] if there is another authority of that name.
pub fn keep(path: &Path, authority: &DescribedAuthority) -> Result<(), Failure> {
    let certificate = pem("CERTIFICATE", &authority.certificate.0);
    if path.join("issuing.crt").exists() {
        let is_same = folder::read(&path.join("issuing.crt"))? == certificate.as_bytes();
        return match KeyStore::of(path)? {
            KeyStore::Ca if is_same => Ok(()),
            _ => Err(Failure::told(
                409,
                &format!(
                    "there is another authority {} here; hint: give the CA's another id",
                    authority.id
                ),
            )),
        };
    }
    folder::create_private(path)?;
    let store = toml::to_string(&KeyStore::Ca).map_err(|e| Failure::internal(e.to_string()))?;
    folder::write_private(&path.join(KEY_STORE_FILE), store.as_bytes())?;
    let between: Vec<_> = authority.intermediates.iter().map(|c| &c.0).collect();
    install::write_intermediates(path, &between)?;
    folder::write_private(
        &path.join("root.crt"),
        pem("CERTIFICATE", &authority.root.0).as_bytes(),
    )?;
    // Last: its presence says that all is there.
    folder::write_private(&path.join("issuing.crt"), certificate.as_bytes())?;
    Ok(())
}
