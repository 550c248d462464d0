//! The life of an HTTP connection after TLS: its first request is what CONNECT is in MQTT. It is greeted, granted a
//! session and recorded once; every request after that is answered only while the session is live.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use countersign_identity::Timestamp;
use countersign_policy::{Denial, DenialCode, Stage, StageOutcome, StageRecord};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::{Request, Version};
use hyper_util::rt::TokioTimer;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use rustls::server::UnbufferedServerConnection;
use tokio::net::TcpStream;

use super::stream::TlsStream;
use super::{AdmittedDevice, Answer, DeviceSession, EnrollingDevice, refusal};
use crate::buffers::Spill;
use crate::exchange::{Authorised, Refused};
use crate::node::Node;
use crate::session::entry::{EndReason, SessionEntry};
use crate::session::grant;
use crate::timer::Timer;

/// The protocol's name in ledger, log and output.
const PROTOCOL: &str = "http/1.1";
/// The largest request head, in bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// How long a connection without a session may last, whatever it asks: as long as one on an enrolment listener.
const ENROLLING: Duration = Duration::from_secs(60);

/// What was decided before the first request.
pub(crate) type Decided = Result<Authorised, Box<Refused>>;

/// Where a connection stands.
enum State {
    /// The first request is awaited.
    Decided(Box<Decided>),
    /// Granted.
    Live(Live),
    /// Refused a session, for the certificate is for enrolment alone; and that is what it came for.
    Enrolling(SocketAddr),
    /// Refused, or over.
    Over,
}

struct Live {
    entry: Arc<SessionEntry>,
    accepted: Instant,
    expires: Timestamp,
    hard_end: Timestamp,
    hard_end_reason: EndReason,
    answered: bool,
}

/// How a request may be answered.
enum Admitted {
    Session(Box<DeviceSession>),
    Enrolling(SocketAddr),
}

/// Shared by the connection and the service that hyper calls.
struct Shared {
    node: Arc<Node>,
    timer: Arc<Timer>,
    chain: Arc<[CertificateDer<'static>]>,
    state: Mutex<State>,
}

/// Answers what hyper reads.
struct Requests(Arc<Shared>);

type Hyper = http1::Connection<TlsStream, Requests>;

/// One HTTP connection.
pub(crate) struct HttpConnection {
    hyper: Pin<Box<Hyper>>,
    shared: Arc<Shared>,
}

impl HttpConnection {
    pub(crate) fn new(
        socket: TcpStream,
        tls: UnbufferedServerConnection,
        spill: Spill,
        decided: Box<Decided>,
        timer: Arc<Timer>,
        node: Arc<Node>,
    ) -> Self {
        let chain = tls.peer_certificates().unwrap_or_default();
        let shared = Arc::new(Shared {
            chain: chain.to_vec().into(),
            timer,
            state: Mutex::new(State::Decided(decided)),
            node,
        });
        let hyper = http1::Builder::new()
            .timer(TokioTimer::new())
            // The wheel watches the first request and the idle time; this bounds a head that trickles in.
            .header_read_timeout(shared.node.options.limits.http_idle)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TlsStream::new(socket, tls, spill), Requests(shared.clone()));
        Self {
            hyper: Box::pin(hyper),
            shared,
        }
    }

    /// `Ready`: it is over. What it leaves open is closed by dropping it.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(reason) = self.shared.due() {
            // From now on nothing is answered. One that is idle closes TLS in order; a request that is under way is
            // dropped with its connection.
            if self.shared.mute(reason) {
                self.hyper.as_mut().graceful_shutdown();
                let _ = self.hyper.as_mut().poll(cx);
            }
            self.shared.end(reason);
            return Poll::Ready(());
        }
        match self.hyper.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(ended) => {
                // What is no request is answered by hyper; a first one that is none is a refusal.
                let reason = match ended {
                    Err(e) if e.is_parse() => EndReason::Protocol,
                    _ => EndReason::ConnectionLost,
                };
                self.shared.end(reason);
                Poll::Ready(())
            }
        }
    }
}

impl Drop for HttpConnection {
    fn drop(&mut self) {
        self.shared.end(EndReason::ConnectionLost);
    }
}

impl Shared {
    /// Why it ends now, if it does: somebody ended it, or its time is over.
    fn due(&self) -> Option<EndReason> {
        let expired = self.node.wheel.expired(&self.timer);
        match &*self.state.lock() {
            State::Live(live) => live.entry.ending().or_else(|| {
                expired.then(|| {
                    if self.node.now() >= live.hard_end {
                        live.hard_end_reason
                    } else {
                        EndReason::KeepAlive
                    }
                })
            }),
            State::Decided(_) | State::Enrolling(_) | State::Over => expired.then_some(EndReason::KeepAlive),
        }
    }

    /// From now on nothing of a live session is acted on or answered. `false` if there is no live session.
    fn mute(&self, reason: EndReason) -> bool {
        let state = self.state.lock();
        let State::Live(live) = &*state else {
            return false;
        };
        live.entry.end(reason);
        true
    }

    /// Ends it, once.
    fn end(&self, reason: EndReason) {
        let state = std::mem::replace(&mut *self.state.lock(), State::Over);
        match state {
            State::Enrolling(_) | State::Over => {}
            State::Decided(decided) => match (*decided, reason) {
                (Ok(authorised), EndReason::KeepAlive) => authorised
                    .refuse(DenialCode::ConnectTimeout.into())
                    .conclude(&self.node),
                (Ok(authorised), EndReason::Protocol) => authorised
                    .refuse(DenialCode::HttpMalformed.into())
                    .in_protocol(PROTOCOL)
                    .conclude(&self.node),
                (Ok(authorised), _) => authorised.abandon().conclude(&self.node),
                (Err(refused), _) => refused.conclude(&self.node),
            },
            State::Live(live) => {
                live.entry.end(reason);
                let reason = live.entry.ending().unwrap_or(reason);
                self.node.metrics.ended(reason);
                live.entry.report_end(reason, &self.node);
                let admission = live.entry.admission();
                tracing::info!(
                    exchange.id = %live.entry.exchange,
                    tenant.id = %admission.device.tenant,
                    device.id = %admission.device.id,
                    session.end = reason.name(),
                    session.age_ms = live.accepted.elapsed().as_millis() as u64,
                    "session ended"
                );
                self.node.sessions.remove(&live.entry);
            }
        }
    }

    /// Stages 8 and 9, at the first request; later requests only find the session live.
    ///
    /// # Errors
    /// The denial: the exchange is refused, or the session has ended.
    fn admit(&self, request: &Request<Incoming>) -> Result<Admitted, (DenialCode, Option<u32>)> {
        let mut state = self.state.lock();
        let decided = match std::mem::replace(&mut *state, State::Over) {
            State::Live(live) => {
                let session = self.session(&live);
                self.be_patient(&live);
                *state = State::Live(live);
                if session.entry.ending().is_some() {
                    return Err((DenialCode::GrantStale, None));
                }
                // A later one of another version: the session ends with the answer.
                return check_version(request)
                    .map(|()| Admitted::Session(Box::new(session.clone())))
                    .map_err(|denial| {
                        let code = denial.code;
                        session.refused(denial, None);
                        (code, None)
                    });
            }
            State::Enrolling(source) if self.is_enrolment(request) => {
                *state = State::Enrolling(source);
                return Ok(Admitted::Enrolling(source));
            }
            // The answer is the last word.
            State::Enrolling(_) => {
                self.node.metrics.refused(DenialCode::EnrolOnly);
                return Err((DenialCode::EnrolOnly, None));
            }
            State::Over => return Err((DenialCode::GrantStale, None)),
            State::Decided(decided) => *decided,
        };
        let decided = match decided {
            Err(refused) if refused.denial().code == DenialCode::EnrolOnly && self.is_enrolment(request) => {
                let source = refused.source();
                let what = format!("{} {}", request.method(), request.uri().path());
                refused
                    .in_protocol(PROTOCOL)
                    .conclude_as_enrolment(&what, &self.node);
                self.node.wheel.set(&self.timer, ENROLLING);
                *state = State::Enrolling(source);
                return Ok(Admitted::Enrolling(source));
            }
            decided => decided,
        };
        let granted = decided.and_then(|authorised| {
            if let Err(denial) = check_version(request) {
                return Err(Box::new(authorised.refuse(denial)));
            }
            // The lane is diagnostics and firmware over MQTT: what is asked for over HTTP is not in it.
            if authorised.is_quarantined() {
                let detail = "the quarantine lane is for MQTT alone";
                return Err(Box::new(
                    authorised.refuse(Denial::new(DenialCode::DeviceQuarantined, detail)),
                ));
            }
            let what = format!("{} {}", request.method(), request.uri().path());
            grant::grant(
                authorised.greet_http(PROTOCOL, &what),
                PROTOCOL,
                self.timer.clone(),
                &self.node,
            )
        });
        match granted {
            Ok(granted) => {
                let live = Live {
                    entry: granted.entry,
                    accepted: granted.accepted,
                    expires: granted.expires,
                    hard_end: granted.hard_end,
                    hard_end_reason: granted.hard_end_reason,
                    answered: false,
                };
                let session = self.session(&live);
                self.be_patient(&live);
                *state = State::Live(live);
                Ok(Admitted::Session(Box::new(session)))
            }
            Err(refused) => {
                let told = (refused.denial().code, refused.retry_after_s());
                refused.in_protocol(PROTOCOL).conclude(&self.node);
                // The answer is the last word: so long it may take.
                self.node
                    .wheel
                    .set(&self.timer, self.node.options.limits.drain_timeout);
                Err(told)
            }
        }
    }

    /// Whether a request needs no session.
    fn is_enrolment(&self, request: &Request<Incoming>) -> bool {
        request.version() == Version::HTTP_11 && self.node.http.is_enrolment(request.uri().path())
    }

    fn session(&self, live: &Live) -> DeviceSession {
        DeviceSession {
            node: self.node.clone(),
            entry: live.entry.clone(),
            expires: live.expires,
            accepted: live.accepted,
        }
    }

    /// The next request must come before this.
    fn be_patient(&self, live: &Live) {
        let idle = self.node.options.limits.http_idle;
        let left = live.hard_end.since(self.node.now());
        self.node.wheel.set(&self.timer, idle.min(left));
    }

    /// An answer is about to go out: `Err` if the session ended meanwhile. The first that is no refusal is its first
    /// data.
    fn answering(&self, answer: &Answer) -> Result<(), DenialCode> {
        let mut state = self.state.lock();
        let State::Live(live) = &mut *state else {
            return Err(DenialCode::GrantStale);
        };
        if live.entry.ending().is_some() {
            return Err(DenialCode::GrantStale);
        }
        if answer.status().is_success() && !std::mem::replace(&mut live.answered, true) {
            let device = &live.entry.admission().device;
            self.node.sink.first_data(
                &device.tenant,
                &device.id,
                live.entry.exchange,
                StageRecord {
                    stage: Stage::FirstData,
                    at_us: u32::try_from(live.accepted.elapsed().as_micros()).unwrap_or(u32::MAX),
                    took_us: 0,
                    outcome: StageOutcome::Passed,
                },
            );
        }
        Ok(())
    }
}

/// HTTP/1.0 has no Host that must be there, and no connection that lasts; hyper would take it.
fn check_version(request: &Request<Incoming>) -> Result<(), Denial> {
    match request.version() {
        Version::HTTP_11 => Ok(()),
        other => {
            let detail = format!("a request of {other:?}, and only HTTP/1.1 is spoken here");
            Err(Denial::new(DenialCode::HttpVersion, detail))
        }
    }
}

impl Service<Request<Incoming>> for Requests {
    type Response = Answer;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Self::Error>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let shared = self.0.clone();
        Box::pin(async move {
            let session = match shared.admit(&request) {
                Ok(Admitted::Session(session)) => *session,
                Ok(Admitted::Enrolling(source)) => {
                    let chain = shared.chain.clone();
                    let device = EnrollingDevice { chain, source };
                    return Ok(shared.node.http.enrol(device, request).await);
                }
                Err((code, retry_after_s)) => return Ok(refusal(code, retry_after_s)),
            };
            let admission = session.entry.admission();
            let device = AdmittedDevice {
                tenant: admission.device.tenant.clone(),
                device: admission.device.id.clone(),
                fingerprint: session.entry.fingerprint(),
                chain: shared.chain.clone(),
                source: session.entry.source,
                session,
            };
            let answer = shared.node.http.answer(device, request).await;
            Ok(match shared.answering(&answer) {
                Ok(()) => answer,
                Err(code) => refusal(code, None),
            })
        })
    }
}
