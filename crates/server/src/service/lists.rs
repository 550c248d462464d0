//! Revocation lists of registered authorities: taken from uploads, files and URLs.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use countersign_factory::request::pem;
use countersign_identity::{AuthorityId, Fingerprint};
use countersign_registry::{Actor, ListSettings, ListView, ListsTaken};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::{self, JoinSet};

use super::{Service, SessionsReport};
use crate::failure::Failure;

/// The most bytes of a file, an upload or an answer.
pub const LIST_BYTES_MAX: u64 = 32 << 20;
/// How long a source may take to answer.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is seen to which sources are due.
const TICK: Duration = Duration::from_millis(500);

/// What an upload or a look at a source did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct ListsReport {
    /// The lists.
    #[serde(flatten)]
    pub lists: ListsTaken,
    /// The sessions that this ended.
    pub sessions: SessionsReport,
}

/// Lists in PEM, any number, or one in DER.
///
/// # Errors
/// [`Failure`] if there is none in it.
pub fn read_lists(bytes: &[u8]) -> Result<Vec<Vec<u8>>, Failure> {
    let none = || Failure::invalid("there is no revocation list in it; hint: give it as PEM or DER");
    if bytes.first() == Some(&0x30) {
        return Ok(vec![bytes.to_vec()]);
    }
    let lists = CertificateRevocationListDer::pem_slice_iter(bytes)
        .map(|list| list.map(|der| der.to_vec()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| none())?;
    if lists.is_empty() { Err(none()) } else { Ok(lists) }
}

/// A file with lists as the API takes it: PEM.
///
/// # Errors
/// [`Failure`] if there is none in it.
pub fn as_pem(bytes: &[u8]) -> Result<String, Failure> {
    Ok(read_lists(bytes)?
        .iter()
        .map(|der| pem("X509 CRL", der))
        .collect())
}

impl Service {
    /// Takes lists for an authority, and waits for the sessions that this ends.
    ///
    /// # Errors
    /// [`Failure`]; then no list is taken.
    pub async fn take_lists(
        &self,
        actor: Actor,
        id: AuthorityId,
        bytes: &[u8],
    ) -> Result<ListsReport, Failure> {
        let ders = read_lists(bytes)?;
        let (lists, sessions) = self.change(move |r| r.take_lists(actor, id, ders)).await?;
        Ok(ListsReport { lists, sessions })
    }

    /// Replaces how an authority's lists come here; with `None` it is asked for none any more. A source is looked at first:
    /// what it has is in force when this returns.
    ///
    /// # Errors
    /// [`Failure`], for one if the source brings no list that can be taken; then nothing is changed.
    pub async fn set_list_settings(
        &self,
        actor: Actor,
        id: AuthorityId,
        settings: Option<ListSettings>,
    ) -> Result<SessionsReport, Failure> {
        let mut taken = SessionsReport::default();
        if let Some(source) = settings.as_ref().and_then(|s| s.source.as_deref()) {
            let bytes = fetch(source)
                .await
                .map_err(|e| Failure::invalid(format!("{e}; hint: put a current list there first")))?;
            taken = self.take_lists(actor.clone(), id.clone(), &bytes).await?.sessions;
        }
        let set = self
            .change(move |r| r.set_list_settings(actor, id, settings))
            .await?
            .1;
        Ok(SessionsReport {
            ended: set.ended + taken.ended,
            open: set.open + taken.open,
            ..set
        })
    }

    /// What is known of an authority's lists; `None` if it is asked for none.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn list_view(&self, id: &AuthorityId) -> Result<Option<ListView>, Failure> {
        let all = self.registry.revocation_lists()?;
        Ok(all.into_iter().find(|(of, _)| of == id).map(|(_, view)| view))
    }

    /// Looks at the sources of all lists, each in its interval, for ever. A source that fails leaves the list that is here
    /// in force, and what happens when that one is stale is the authority's setting. No source waits for another one, but for
    /// a place ([`Places`]).
    pub async fn watch_lists(self: Arc<Self>) {
        let places = Arc::new(Places::default());
        let mut seen: HashMap<AuthorityId, (Instant, Looked)> = HashMap::new();
        let mut looking = JoinSet::new();
        // Whose source each task looks at: also that of one that panics is looked at again.
        let mut tasks: HashMap<task::Id, AuthorityId> = HashMap::new();
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                Some(done) = looking.join_next_with_id() => {
                    let (task, looked) = match done {
                        Ok((task, looked)) => (task, looked),
                        Err(e) => {
                            tracing::error!(error = %e, "the source of a revocation list cannot be looked at");
                            (e.id(), Looked::default())
                        }
                    };
                    if let Some(id) = tasks.remove(&task) {
                        seen.insert(id, (Instant::now(), looked));
                    }
                    continue;
                }
            }
            let all = match task::block_in_place(|| self.registry.list_sources()) {
                Ok(all) => all,
                Err(e) => {
                    tracing::error!(error = %e, "the sources of revocation lists cannot be read");
                    continue;
                }
            };
            seen.retain(|id, _| all.iter().any(|(of, _)| of == id));
            let running: HashSet<AuthorityId> = tasks.values().cloned().collect();
            for (id, settings) in all {
                let Some(source) = settings.source else { continue };
                let interval = Duration::from_secs(settings.interval_s.into());
                let (at, before) = match seen.get(&id) {
                    Some((at, looked)) => (Some(*at), *looked),
                    None => (None, Looked::default()),
                };
                if running.contains(&id) || at.is_some_and(|at| at.elapsed() < interval) {
                    continue;
                }
                let (service, places, of) = (self.clone(), places.clone(), id.clone());
                let started = looking.spawn(async move {
                    // Never closed.
                    let _place = places.of(&source).acquire().await;
                    service.look(&of, &source, before).await
                });
                tasks.insert(started.id(), id);
            }
        }
    }

    /// Looks at one source: what is new in it is taken. What could not be taken is tried again at each look, for the cause may
    /// pass without the list being another: a full disk, a clock that runs behind its issuer's.
    async fn look(&self, id: &AuthorityId, source: &str, before: Looked) -> Looked {
        let fault = match fetch(source).await {
            Ok(bytes) => {
                let taken = Some(Fingerprint::of(&bytes));
                if before.taken == taken {
                    return before;
                }
                let actor = Actor("countersign".into());
                match self.take_lists(actor, id.clone(), &bytes).await {
                    Ok(report) => {
                        if report.lists.taken > 0 {
                            tracing::info!(
                                authority.id = %id, lists = report.lists.taken, revoked = report.lists.newly_revoked,
                                sessions.ended = report.sessions.ended, "took a revocation list"
                            );
                        }
                        return Looked { taken, told: None };
                    }
                    Err(e) => e.message,
                }
            }
            Err(e) => e,
        };
        let told = Some(Fingerprint::of(fault.as_bytes()));
        if before.told != told {
            tracing::error!(authority.id = %id, source, error = %fault, "no revocation list is taken from its source");
            let (of, registry) = (id.clone(), self.registry.clone());
            let written = task::block_in_place(|| registry.list_checked(of, Some(fault)));
            if let Err(e) = written {
                tracing::error!(error = %e, "the fault of a revocation list's source cannot be kept");
            }
        }
        Looked { taken: None, told }
    }
}

/// How many sources are looked at at once. Whoever has none waits in turn: beside more silent URLs than there are places, another
/// one waits for [`FETCH_TIMEOUT`]. A file never waits for a URL.
#[derive(Debug)]
struct Places {
    files: Semaphore,
    urls: Semaphore,
}

impl Default for Places {
    /// A place may hold [`LIST_BYTES_MAX`].
    fn default() -> Self {
        Self {
            files: Semaphore::new(4),
            urls: Semaphore::new(16),
        }
    }
}

impl Places {
    fn of(&self, source: &str) -> &Semaphore {
        if is_url(source) { &self.urls } else { &self.files }
    }
}

fn is_url(source: &str) -> bool {
    source.starts_with("http://")
}

/// What the last look at a source found.
#[derive(Debug, Clone, Copy, Default)]
struct Looked {
    /// The hash of what was taken, or was there already.
    taken: Option<Fingerprint>,
    /// The hash of the fault that was told.
    told: Option<Fingerprint>,
}

/// Reads a source.
async fn fetch(source: &str) -> Result<Vec<u8>, String> {
    if !source.starts_with('/') && !is_url(source) {
        return Err(
            "the source is neither an absolute path nor an http:// URL; a list is signed, it needs no https"
                .into(),
        );
    }
    if !is_url(source) {
        let about = tokio::fs::metadata(source)
            .await
            .map_err(|e| format!("{source}: {e}"))?;
        if about.len() > LIST_BYTES_MAX {
            return Err(format!("{source} is larger than {LIST_BYTES_MAX} bytes"));
        }
        return tokio::fs::read(source)
            .await
            .map_err(|e| format!("{source}: {e}"));
    }
    tokio::time::timeout(FETCH_TIMEOUT, get(source))
        .await
        .unwrap_or_else(|_| {
            Err(format!(
                "{source} does not answer within {} s",
                FETCH_TIMEOUT.as_secs()
            ))
        })
}

async fn get(url: &str) -> Result<Vec<u8>, String> {
    let fault = |e: &dyn std::fmt::Display| format!("{url}: {e}");
    let uri: hyper::Uri = url.parse().map_err(|e: hyper::http::uri::InvalidUri| fault(&e))?;
    let host = uri.host().ok_or_else(|| fault(&"it names no host"))?.to_owned();
    let stream =
        tokio::net::TcpStream::connect((host.trim_matches(['[', ']']), uri.port_u16().unwrap_or(80)))
            .await
            .map_err(|e| fault(&e))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream))
            .await
            .map_err(|e| fault(&e))?;
    let driver = tokio::spawn(connection);
    let authority = uri.authority().map(|a| a.as_str().to_owned()).unwrap_or(host);
    let request = hyper::Request::get(uri.path_and_query().map_or("/", |p| p.as_str()))
        .header(hyper::header::HOST, authority)
        .header(hyper::header::ACCEPT, "application/pkix-crl, */*")
        .body(Empty::<Bytes>::new())
        .map_err(|e| fault(&e))?;
    let answer = sender.send_request(request).await.map_err(|e| fault(&e))?;
    if !answer.status().is_success() {
        return Err(fault(&answer.status()));
    }
    let limit = usize::try_from(LIST_BYTES_MAX).unwrap_or(usize::MAX);
    let body = Limited::new(answer.into_body(), limit)
        .collect()
        .await
        .map_err(|e| fault(&e))?;
    driver.abort();
    Ok(body.to_bytes().to_vec())
}
