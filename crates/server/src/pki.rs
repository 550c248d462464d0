//! Listeners of purpose `pki`: plain HTTP with what anybody may have: revocation lists, OCSP, CA certificates. Everything on it is
//! signed; nothing on it changes anything.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign_authority::status::{IssuerHashes, OcspError, Questions, Responder, Status};
use countersign_identity::{AuthorityId, Fingerprint, TenantId};
use countersign_registry::{Change, MintedAt, Registry};
use hyper::server;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::ca::link::CaLink;
use crate::config::PkiConfig;
use crate::failure::Failure;
use crate::listeners;
use crate::places::Places;
use crate::service::Service;

/// A list is made anew at least so often.
const LIST_AGE: Duration = Duration::from_secs(3600);
/// How long a request's head may take to come.
const HEAD: Duration = Duration::from_secs(10);
/// How long a connection may last, whatever is asked over it: a list of any size is read in that time.
const CONNECTION: Duration = Duration::from_secs(120);
/// The longest that an OCSP answer is good: it must not outlive its responder's certificate, which lasts a week.
const ANSWER_MAX: Duration = Duration::from_secs(96 * 3600);
/// The largest OCSP request.
const OCSP_BYTES_MAX: usize = 16 * 1024;

struct List {
    der: Bytes,
    made: MintedAt,
    /// The newest revocation it knows of.
    revision: u64,
}

/// Our authorities as questions name them.
type Issuers = Arc<[(AuthorityId, IssuerHashes)]>;

/// What is kept between requests.
struct Shared {
    service: Arc<Service>,
    next_update: Duration,
    /// The newest revision that may have changed a list.
    revision: Arc<AtomicU64>,
    /// The newest revision that may have changed an authority, and the authorities as questions name them then.
    authorities: Arc<AtomicU64>,
    issuers: Mutex<Option<(u64, Issuers)>>,
    lists: Mutex<HashMap<AuthorityId, List>>,
    responders: Mutex<HashMap<AuthorityId, (MintedAt, Arc<Responder>)>>,
}

/// Opens the listener. Anybody reaches it, and its connections are of the same process as those of devices: there are no more
/// than so many at once, a share of them for each source, and each ends by itself.
///
/// # Errors
/// [`Failure`] if the address cannot be used.
pub async fn start(
    address: SocketAddr,
    config: &PkiConfig,
    service: Arc<Service>,
) -> Result<(SocketAddr, JoinHandle<()>), Failure> {
    let (listener, address) = listeners::bind(address).await?;
    let router = router(service, Duration::from_secs(config.next_update_hours * 3600));
    let places = Places::new(config.places());
    let serving = tokio::spawn(async move {
        loop {
            let (socket, source) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(e) => {
                    tracing::error!(error = %e, "cannot accept at the pki listener");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let place = match places.take(source.ip()) {
                Ok(place) => place,
                Err(limit) => {
                    tracing::warn!(source = %source, "a connection is refused: {limit} is reached");
                    continue;
                }
            };
            let answering = server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .max_buf_size(32 * 1024)
                .serve_connection(TokioIo::new(socket), TowerToHyperService::new(router.clone()));
            tokio::spawn(async move {
                let _place = place;
                let _ = tokio::time::timeout(CONNECTION, answering).await;
            });
        }
    });
    Ok((address, serving))
}

/// What the listener answers.
pub(crate) fn router(service: Arc<Service>, next_update: Duration) -> Router {
    let (revision, authorities): (Arc<AtomicU64>, Arc<AtomicU64>) = Default::default();
    watch(service.registry(), revision.clone(), authorities.clone());
    let shared = Arc::new(Shared {
        service,
        next_update,
        revision,
        authorities,
        issuers: Mutex::default(),
        lists: Mutex::default(),
        responders: Mutex::default(),
    });
    Router::new()
        .route("/crl/{file}", get(revocation_list))
        .route("/ca/{file}", get(ca_certificate))
        .route("/bundle/{tenant}", get(bundle))
        .route("/ocsp", post(ocsp_post))
        .route("/ocsp/{*request}", get(ocsp_get))
        .layer(DefaultBodyLimit::max(OCSP_BYTES_MAX))
        .with_state(shared)
}

fn watch(registry: &Registry, newest: Arc<AtomicU64>, authorities: Arc<AtomicU64>) {
    registry.on_change(move |revision, changes| {
        if changes.iter().any(|c| matches!(c, Change::Authority(_))) {
            authorities.store(revision, Ordering::Release);
        }
        if changes
            .iter()
            .any(|c| matches!(c, Change::Credential(..) | Change::Authority(_)))
        {
            newest.store(revision, Ordering::Release);
        }
    });
}

type App = State<Arc<Shared>>;

fn typed(kind: &'static str, body: impl Into<Bytes>, more: [(HeaderName, String); 2]) -> Response {
    ([(header::CONTENT_TYPE, kind)], more, body.into()).into_response()
}

fn missing(e: &Failure) -> Response {
    let status = StatusCode::from_u16(e.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, format!("{}\n", e.message)).into_response()
}

/// `ID.suffix` of a path.
fn named(file: &str, suffix: &str) -> Result<AuthorityId, Failure> {
    file.strip_suffix(suffix)
        .and_then(|id| AuthorityId::new(id).ok())
        .ok_or_else(|| Failure::not_found("there is no such file", "the files are ID.crl and ID.crt"))
}

/// Until when a body may be kept, and its tag.
fn cacheable(body: &[u8], age: Duration) -> [(HeaderName, String); 2] {
    [
        (header::CACHE_CONTROL, format!("max-age={}", age.as_secs())),
        (header::ETAG, format!("\"{}\"", Fingerprint::of(body))),
    ]
}

async fn revocation_list(State(shared): App, Path(file): Path<String>) -> Response {
    let made = tokio::task::block_in_place(|| named(&file, ".crl").and_then(|id| shared.list(&id)));
    match made {
        Ok(der) => {
            let more = cacheable(&der, Duration::from_secs(60));
            typed("application/pkix-crl", der, more)
        }
        Err(e) => missing(&e),
    }
}

async fn ca_certificate(State(shared): App, Path(file): Path<String>) -> Response {
    let read = tokio::task::block_in_place(|| {
        named(&file, ".crt").and_then(|id| Ok(shared.service.registry().authority_certificate(&id)?))
    });
    match read {
        Ok(der) => {
            let more = cacheable(&der, LIST_AGE);
            typed("application/pkix-cert", der, more)
        }
        Err(e) => missing(&e),
    }
}

async fn bundle(State(shared): App, Path(tenant): Path<TenantId>) -> Response {
    match tokio::task::block_in_place(|| shared.service.ca_certificates(&tenant)) {
        Ok(certificates) => {
            let text: String = certificates
                .iter()
                .map(|der| countersign_factory::request::pem("CERTIFICATE", der))
                .collect();
            let more = cacheable(text.as_bytes(), Duration::from_secs(300));
            typed("application/x-pem-file", text, more)
        }
        Err(e) => missing(&e),
    }
}

async fn ocsp_post(State(shared): App, body: Bytes) -> Response {
    ocsp(&shared, &body)
}

/// `GET {base}/{percent-encoded base64}` (RFC 6960 appendix A.1); the router has undone the percent-encoding.
async fn ocsp_get(State(shared): App, Path(request): Path<String>) -> Response {
    let der = STANDARD.decode(request).unwrap_or_default();
    ocsp(&shared, &der)
}

/// Errors are answers too, with status 200 (RFC 6960 section 2.3).
fn ocsp(shared: &Shared, request: &[u8]) -> Response {
    let answer = tokio::task::block_in_place(|| shared.answer(request));
    let der = answer.unwrap_or_else(OcspError::to_der);
    ([(header::CONTENT_TYPE, "application/ocsp-response")], der).into_response()
}

impl Shared {
    /// The list that was made last, unless something was revoked since, or it is old or of a wrong clock. Whoever fetches it
    /// has half of its life left.
    fn at_hand(&self, lists: &HashMap<AuthorityId, List>, id: &AuthorityId, revision: u64) -> Option<Bytes> {
        let list = lists.get(id)?;
        let age = LIST_AGE.min(self.next_update / 2);
        let is_good = list.revision == revision
            && self.service.registry().still_holds(list.made)
            && self.service.now().since(list.made.at) < age;
        is_good.then(|| list.der.clone())
    }

    /// The list of an authority: the one at hand, unless something was revoked since or it is old.
    fn list(&self, id: &AuthorityId) -> Result<Bytes, Failure> {
        let revision = self.revision.load(Ordering::Acquire);
        if let Some(ca) = self.service.ca() {
            return self.list_apart(ca, id, revision);
        }
        let mut lists = self.lists.lock();
        if let Some(der) = self.at_hand(&lists, id, revision) {
            return Ok(der);
        }
        let made = self.service.registry().minted_at()?;
        let now = made.at;
        let authority = self.service.authority_with_key(id)?;
        let revoked = self
            .service
            .registry()
            .revoked_by(id, now.minus(self.next_update))?;
        // On disk before the list is handed out.
        let number = self.service.registry().next_list_number(id)?.value;
        let der: Bytes = authority
            .revocation_list(&revoked, number, now, now.plus(self.next_update))?
            .into();
        lists.insert(
            id.clone(),
            List {
                der: der.clone(),
                made,
                revision,
            },
        );
        Ok(der)
    }

    /// The same by a CA apart. Nobody who wants a list that is at hand waits for a CA that is slow.
    fn list_apart(&self, ca: &CaLink, id: &AuthorityId, revision: u64) -> Result<Bytes, Failure> {
        if let Some(der) = self.at_hand(&self.lists.lock(), id, revision) {
            return Ok(der);
        }
        let made = self.service.registry().minted_at()?;
        self.service.registry().authority_certificate(id)?;
        let _leave = ca.status_leave().ok_or_else(|| {
            Failure::unavailable(
                "too many lists and OCSP answers are being asked of the CA",
                "ask again; ca.status_requests_max is the limit",
            )
        })?;
        self.service.tell_ca()?;
        let der: Bytes = ca.revocation_list(id, self.next_update_hours())?.into();
        let list = List {
            der: der.clone(),
            made,
            revision,
        };
        self.lists.lock().insert(id.clone(), list);
        Ok(der)
    }

    fn next_update_hours(&self) -> u32 {
        u32::try_from(self.next_update.as_secs() / 3600).unwrap_or(u32::MAX)
    }

    /// Our authorities: read again only when one has changed.
    fn issuers(&self) -> Result<Issuers, Failure> {
        let newest = self.authorities.load(Ordering::Acquire);
        if let Some((of, issuers)) = &*self.issuers.lock()
            && *of == newest
        {
            return Ok(issuers.clone());
        }
        let ours = self.service.registry().own_authorities(None)?.into_iter();
        let issuers = ours
            .map(|ours| {
                let hashes =
                    IssuerHashes::of(&ours.certificate).map_err(|e| Failure::internal(e.to_string()))?;
                Ok((ours.id, hashes))
            })
            .collect::<Result<Issuers, Failure>>()?;
        *self.issuers.lock() = Some((newest, issuers.clone()));
        Ok(issuers)
    }

    /// The responder of an authority. No key of another one is touched: one that cannot be reached silences nobody else.
    fn responder(&self, id: &AuthorityId, minted: MintedAt) -> Result<Arc<Responder>, Failure> {
        if let Some((made, good)) = self.responders.lock().get(id)
            && self.service.registry().still_holds(*made)
            && minted.at.plus(self.answer_good_for()) < good.not_after()
        {
            return Ok(good.clone());
        }
        let made = Arc::new(self.service.authority_with_key(id)?.responder(minted.at)?);
        self.responders.lock().insert(id.clone(), (minted, made.clone()));
        Ok(made)
    }

    fn answer_good_for(&self) -> Duration {
        self.next_update.min(ANSWER_MAX)
    }

    fn answer(&self, request: &[u8]) -> Result<Vec<u8>, OcspError> {
        let internal = |e: String| {
            tracing::error!(error = e.as_str(), "an OCSP request cannot be answered");
            OcspError::Internal
        };
        // What is no question is answered here, and costs the CA nothing.
        let questions = Questions::parse(request)?;
        if let Some(ca) = self.service.ca() {
            let _leave = ca.status_leave().ok_or(OcspError::TryLater)?;
            return self
                .service
                .tell_ca()
                .and_then(|()| ca.ocsp(request, self.next_update_hours()))
                .map_err(|e| match e.status {
                    // Told by the doctor and in the CA's own log: not logged for each request of anybody.
                    503 => OcspError::TryLater,
                    _ => internal(e.message),
                });
        }
        // Counted, and told by the timer: not logged for each request of anybody.
        let minted = self
            .service
            .registry()
            .minted_at()
            .map_err(|_| OcspError::TryLater)?;
        let now = minted.at;
        let issuers = self.issuers().map_err(|e| internal(e.message))?;
        let asked =
            |(_, hashes): &&(AuthorityId, IssuerHashes)| questions.list.iter().all(|q| hashes.is_asked(q));
        let (id, _) = issuers.iter().find(asked).ok_or(OcspError::Unauthorized)?;
        let responder = self.responder(id, minted).map_err(|e| internal(e.message))?;
        let mut statuses = Vec::new();
        for question in &questions.list {
            let found = self
                .service
                .registry()
                .certificate_status(id, &question.serial)
                .map_err(|e| internal(e.to_string()))?;
            statuses.push(match found {
                None => Status::Unknown,
                Some(None) => Status::Good,
                Some(Some(entry)) => Status::Revoked(entry),
            });
        }
        responder
            .answer(&questions, &statuses, now, now.plus(self.answer_good_for()))
            .map_err(|e| internal(e.to_string()))
    }
}
