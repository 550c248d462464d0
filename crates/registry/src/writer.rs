//! The one writer: takes jobs, commits many at once, and only then changes facts, tells observers, and answers.
//!
//! ```text
//! jobs ─▶ BEGIN ─▶ savepoint per job ─▶ COMMIT (synced) ─▶ facts ─▶ observers ─▶ answers
//! ```
//!
//! Every job of a group waits for one sync. A job that fails is rolled back to its savepoint; the others are kept.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use countersign_identity::Timestamp;
use parking_lot::{Mutex, RwLock};
use rusqlite::{Connection, Transaction, TransactionBehavior};

use crate::change::Change;
use crate::clock::Timekeeper;
use crate::error::RegistryError;
use crate::table::{Fact, FactTable};

/// The most jobs that share one sync.
const GROUP_MAX: usize = 256;
/// While storage fails for lack of space: how often it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// A change that is on disk and in the facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed<T> {
    /// What the change yields.
    pub value: T,
    /// The newest revision of the group it was committed with.
    pub revision: u64,
    /// What it touched.
    pub changes: Vec<Change>,
}

/// What a job collects besides what it writes.
pub(crate) struct Scope<'a> {
    pub(crate) tx: &'a Transaction<'a>,
    pub(crate) now: Timestamp,
    pub(crate) facts: Vec<Fact>,
    pub(crate) changes: Vec<Change>,
    pub(crate) table: &'a FactTable,
    /// Whether earlier jobs of the same group changed facts that `table` does not show yet.
    pub(crate) table_is_behind: bool,
    pub(crate) time: &'a Timekeeper,
}

type Run = Box<dyn FnOnce(&mut Scope<'_>) -> Result<Answer, RegistryError> + Send>;
/// Hands the value to whoever waits; called once it is durable, with the revision.
type Answer = Box<dyn FnOnce(Result<(u64, Vec<Change>), RegistryError>) + Send>;

struct Job {
    run: Run,
    /// Told if the job itself fails, or never gets to run.
    failed: Box<dyn FnOnce(RegistryError) + Send>,
}

/// Told of every committed change, after the facts show it and before it is answered. Must not wait.
pub(crate) type Observer = Arc<dyn Fn(u64, &[Change]) + Send + Sync>;

pub(crate) struct Writer {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    observers: Arc<RwLock<Vec<Observer>>>,
}

impl Writer {
    pub(crate) fn start(
        db: Connection,
        table: Arc<FactTable>,
        time: Arc<Timekeeper>,
    ) -> std::io::Result<Self> {
        let (jobs, queue) = channel();
        let observers: Arc<RwLock<Vec<Observer>>> = Arc::default();
        let told = observers.clone();
        let thread = std::thread::Builder::new()
            .name("registry-writer".into())
            .spawn(move || {
                Loop {
                    db,
                    table,
                    time,
                    observers: told,
                }
                .run(&queue)
            })?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
            observers,
        })
    }

    pub(crate) fn observe(&self, observer: Observer) {
        self.observers.write().push(observer);
    }

    /// Runs a job and waits until it is durable.
    pub(crate) fn write<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Scope<'_>) -> Result<T, RegistryError> + Send + 'static,
    ) -> Result<Committed<T>, RegistryError> {
        let (answer, answered) = sync_channel(1);
        self.write_then(job, move |committed| {
            let _ = answer.send(committed);
        });
        answered
            .recv()
            .unwrap_or_else(|_| Err(RegistryError::Closed("the writer ended".into())))
    }

    /// Runs a job and does not wait. What goes wrong is logged.
    pub(crate) fn write_behind(
        &self,
        what: &'static str,
        job: impl FnOnce(&mut Scope<'_>) -> Result<(), RegistryError> + Send + 'static,
    ) {
        self.write_then(job, move |committed| {
            if let Err(e) = committed {
                tracing::error!(error = %e, "cannot {what}");
            }
        });
    }

    /// Runs a job and does not wait: `answer` is told once it is durable, or failed, on the writer's thread.
    pub(crate) fn write_then<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Scope<'_>) -> Result<T, RegistryError> + Send + 'static,
        answer: impl FnOnce(Result<Committed<T>, RegistryError>) + Send + 'static,
    ) {
        // One of two tells it: who commits, or who fails before that.
        let answer = Arc::new(Mutex::new(Some(answer)));
        let failed = answer.clone();
        let queued = self.submit(Job {
            run: Box::new(move |scope| {
                let value = job(scope)?;
                Ok(Box::new(move |committed| {
                    let committed = committed.map(|(revision, changes)| Committed {
                        value,
                        revision,
                        changes,
                    });
                    tell(&answer, committed);
                }))
            }),
            failed: Box::new(move |e| tell(&failed, Err(e))),
        });
        if let Err((job, e)) = queued {
            (job.failed)(e);
        }
    }

    fn submit(&self, job: Job) -> Result<(), (Job, RegistryError)> {
        let closed = || RegistryError::Closed("the writer ended".into());
        match &self.jobs {
            Some(jobs) => jobs.send(job).map_err(|e| (e.0, closed())),
            None => Err((job, closed())),
        }
    }
}

/// Tells an answer, unless it was told already.
fn tell<T>(answer: &Mutex<Option<impl FnOnce(T)>>, told: T) {
    let answer = answer.lock().take();
    if let Some(answer) = answer {
        answer(told);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Closing the queue lets the thread finish what was handed in.
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Loop {
    db: Connection,
    table: Arc<FactTable>,
    time: Arc<Timekeeper>,
    observers: Arc<RwLock<Vec<Observer>>>,
}

/// Whether storage can be trusted after a failed commit.
enum Storage {
    Good,
    /// No space: nothing was written, and it may be tried again.
    Full,
    /// A sync failed: what the page cache holds and what the disk holds may differ, and a second sync may claim
    /// success for pages that were dropped. Only a restart, which reads from disk, can tell.
    Lost(String),
}

impl Loop {
    fn run(mut self, queue: &Receiver<Job>) {
        let mut storage = Storage::Good;
        loop {
            let first = match storage {
                Storage::Full => match queue.recv_timeout(RETRY) {
                    Ok(job) => Some(job),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => return,
                },
                _ => match queue.recv() {
                    Ok(job) => Some(job),
                    Err(_) => return,
                },
            };
            let group: Vec<Job> = first
                .into_iter()
                .chain(queue.try_iter().take(GROUP_MAX - 1))
                .collect();
            if let Storage::Lost(reason) = &storage {
                for job in group {
                    (job.failed)(RegistryError::Closed(reason.clone()));
                }
                continue;
            }
            match self.commit(group) {
                Ok(()) => {
                    if !matches!(storage, Storage::Good) {
                        tracing::info!("the registry can be written again");
                    }
                    storage = Storage::Good;
                }
                Err(e) => {
                    if matches!(storage, Storage::Good) {
                        tracing::error!(error = %e, "the registry cannot be written; nobody is admitted until it can");
                    }
                    self.table.set_unavailable(e.to_string());
                    storage = match e {
                        RegistryError::DiskFull => Storage::Full,
                        other => Storage::Lost(other.to_string()),
                    };
                }
            }
        }
    }

    /// Commits a group. Without any job it only tries whether it could.
    fn commit(&mut self, group: Vec<Job>) -> Result<(), RegistryError> {
        let now = self.time.now();
        let mut done: Vec<(Answer, Vec<Change>)> = Vec::new();
        let (mut facts, mut changes) = (Vec::new(), Vec::new());
        let probing = group.is_empty();
        // A job that is alone is rolled back with its transaction: a savepoint would copy every page before its change.
        let alone = group.len() == 1;
        let mut waiting = group.into_iter();
        let committed = (|| {
            let tx = self
                .db
                .transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut failure = None;
            for Job { run, failed } in waiting.by_ref() {
                if !alone {
                    tx.execute_batch("SAVEPOINT job")?;
                }
                let mut scope = Scope {
                    tx: &tx,
                    now,
                    facts: Vec::new(),
                    changes: Vec::new(),
                    table: &self.table,
                    table_is_behind: !facts.is_empty(),
                    time: &self.time,
                };
                match run(&mut scope) {
                    Ok(answer) => {
                        facts.append(&mut scope.facts);
                        changes.extend_from_slice(&scope.changes);
                        done.push((answer, scope.changes));
                        if !alone {
                            tx.execute_batch("RELEASE job")?;
                        }
                    }
                    Err(e) => {
                        let storage = e.is_storage();
                        if let RegistryError::Constraint(rule) = &e {
                            tracing::error!(
                                rule,
                                "a rule of the database refused a change: a fault of the program"
                            );
                        }
                        if storage {
                            failure = Some(e.to_string());
                        }
                        failed(e);
                        if alone {
                            break;
                        }
                        // After a full disk SQLite may have rolled back all of it already.
                        if tx.execute_batch("ROLLBACK TO job; RELEASE job").is_err() || storage {
                            break;
                        }
                    }
                }
            }
            if probing {
                // Writes a page, to see whether it could.
                tx.execute_batch("CREATE TABLE probe (page BLOB); DROP TABLE probe")?;
            }
            let revision = crate::change::newest_revision(&tx)?;
            if let Some(what) = failure {
                tx.rollback()?;
                return Err(if what == RegistryError::DiskFull.to_string() {
                    RegistryError::DiskFull
                } else {
                    RegistryError::Database(what)
                });
            }
            if done.is_empty() && !probing {
                tx.rollback()?;
            } else {
                tx.commit()?;
            }
            Ok(revision)
        })();
        match committed {
            Ok(revision) => {
                self.table.apply(facts);
                // Before the observers: they decide anew on these facts, and would take none that cannot be trusted.
                self.table.set_available();
                if !changes.is_empty() {
                    for observer in self.observers.read().iter() {
                        observer(revision, &changes);
                    }
                }
                for (answer, changes) in done {
                    answer(Ok((revision, changes)));
                }
                Ok(())
            }
            Err(e) => {
                for (answer, _) in done {
                    answer(Err(copy(&e)));
                }
                for job in waiting {
                    (job.failed)(copy(&e));
                }
                Err(e)
            }
        }
    }
}

/// One storage failure, told to everyone who waits.
fn copy(e: &RegistryError) -> RegistryError {
    match e {
        RegistryError::DiskFull => RegistryError::DiskFull,
        other => RegistryError::Database(other.to_string()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use countersign_identity::TenantId;
    use countersign_policy::FactSource;

    use super::*;
    use crate::clock::SystemClock;

    #[test]
    fn who_is_told_of_the_first_change_after_a_full_disk_finds_facts_that_can_be_trusted() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(
            "CREATE TABLE revisions (revision INTEGER); CREATE TABLE clock (high_water INTEGER);
             INSERT INTO clock VALUES (0)",
        )
        .unwrap();
        let table = Arc::new(FactTable::new());
        table.set_unavailable("the disk was full".into());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (observed, kept) = (table.clone(), seen.clone());
        let observer: Observer = Arc::new(move |_, _| kept.lock().push(observed.health().is_ok()));
        let mut writer = Loop {
            time: Arc::new(Timekeeper::load(Arc::new(SystemClock), &db).unwrap()),
            db,
            table,
            observers: Arc::new(RwLock::new(vec![observer])),
        };
        let job = Job {
            run: Box::new(|scope| {
                scope.changes.push(Change::Tenant(TenantId::default_tenant()));
                Ok(Box::new(|_| {}))
            }),
            failed: Box::new(|e| panic!("{e}")),
        };
        writer.commit(vec![job]).unwrap();
        assert_eq!(*seen.lock(), [true]);
    }
}
