//! The one writer of the serving process: a savepoint per job, one commit and one sync for many.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread::JoinHandle;

use countersign_identity::Timestamp;
use parking_lot::Mutex;
use rusqlite::{Connection, Transaction, TransactionBehavior};
use serde_json::Value;

use super::super::error::CaError;
use super::{log, now};

/// The most jobs that share one sync.
const GROUP_MAX: usize = 64;
/// The clock may step back so far before nothing is signed any more: the correction of a running clock, no more.
pub const CLOCK_SLACK: std::time::Duration = std::time::Duration::from_secs(30);

/// What a job works with.
pub struct Scope<'a> {
    /// The transaction.
    pub db: &'a Connection,
    /// The time of the transaction.
    pub now: Timestamp,
    /// Who asked for it.
    pub actor: String,
    /// The latest time at which anything was written before.
    seen: Timestamp,
}

impl<'a> Scope<'a> {
    pub(super) fn begin(db: &'a Connection, now: Timestamp, actor: String) -> Result<Self, CaError> {
        let seen: i64 = db
            .prepare_cached("SELECT seen FROM clock")?
            .query_row([], |r| r.get(0))?;
        Ok(Self {
            db,
            now,
            actor,
            seen: Timestamp::from_unix_ms(seen),
        })
    }

    /// Remembers the time; it never goes back.
    pub(super) fn finish(&self) -> Result<(), CaError> {
        self.db
            .prepare_cached("UPDATE clock SET seen = ?1 WHERE seen < ?1")?
            .execute([self.now.unix_ms()])?;
        Ok(())
    }

    /// Takes the time of the transaction for right, although later ones were seen. The latest one seen before.
    ///
    /// # Errors
    /// [`CaError`].
    pub fn reset_clock(&self) -> Result<Timestamp, CaError> {
        self.db
            .prepare_cached("UPDATE clock SET seen = ?1")?
            .execute([self.now.unix_ms()])?;
        Ok(self.seen)
    }

    /// Nothing is signed at a time before what was signed.
    ///
    /// # Errors
    /// [`CaError::ClockBehind`].
    pub fn need_clock(&self) -> Result<(), CaError> {
        if self.now.plus(CLOCK_SLACK) < self.seen {
            return Err(CaError::ClockBehind {
                now: self.now,
                before: self.seen,
            });
        }
        Ok(())
    }

    /// Appends to the log.
    ///
    /// # Errors
    /// [`CaError`].
    pub fn log(&self, action: &str, subject: &str, detail: &Value) -> Result<(), CaError> {
        log::append(self.db, self.now, &self.actor, action, subject, detail)
    }
}

struct Job {
    actor: String,
    /// Whether what it did is to be kept.
    run: Box<dyn FnOnce(&Scope<'_>) -> bool + Send>,
    /// Told once it is durable, or why it is not.
    done: Box<dyn FnOnce(Result<(), CaError>) + Send>,
}

pub(super) struct Writer {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(db: Connection) -> std::io::Result<Self> {
        let (jobs, queue) = channel();
        let thread = std::thread::Builder::new()
            .name("ca-writer".into())
            .spawn(move || run(db, &queue))?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }

    pub(super) fn write<T: Send + 'static>(
        &self,
        actor: String,
        job: impl FnOnce(&Scope<'_>) -> Result<T, CaError> + Send + 'static,
    ) -> Result<T, CaError> {
        let ended = || CaError::Closed("its writer ended".into());
        let (answer, answered) = sync_channel(1);
        let slot: Arc<Mutex<Option<Result<T, CaError>>>> = Arc::default();
        let filled = slot.clone();
        let job = Job {
            actor,
            run: Box::new(move |scope| {
                let result = job(scope);
                let keep = result.is_ok();
                *filled.lock() = Some(result);
                keep
            }),
            done: Box::new(move |committed| {
                // What a job refused stays its answer; what it achieved counts only once it is durable.
                let result = match (slot.lock().take(), committed) {
                    (Some(Err(e)), _) | (_, Err(e)) => Err(e),
                    (Some(Ok(value)), Ok(())) => Ok(value),
                    (None, Ok(())) => Err(CaError::Closed("the job did not run".into())),
                };
                let _ = answer.send(result);
            }),
        };
        let jobs = self.jobs.as_ref().ok_or_else(ended)?;
        jobs.send(job).map_err(|_| ended())?;
        answered.recv().unwrap_or_else(|_| Err(ended()))
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

fn run(mut db: Connection, queue: &Receiver<Job>) {
    // After a failed sync the page cache and the disk may differ, and a second sync may claim success for pages that
    // were dropped: only a restart, which reads from disk, can tell.
    let mut closed: Option<String> = None;
    while let Ok(first) = queue.recv() {
        let group: Vec<Job> = std::iter::once(first)
            .chain(queue.try_iter().take(GROUP_MAX - 1))
            .collect();
        if let Some(reason) = &closed {
            for job in group {
                (job.done)(Err(CaError::Closed(reason.clone())));
            }
            continue;
        }
        let (mut waiting, result) = (Vec::new(), commit(&mut db, group));
        let outcome = match result {
            Ok(done) => {
                waiting.extend(done);
                Ok(())
            }
            Err((done, e)) => {
                waiting.extend(done);
                tracing::error!(error = %e, "the CA's store cannot be written");
                if e != CaError::DiskFull {
                    closed = Some(e.to_string());
                }
                Err(e)
            }
        };
        for done in waiting {
            done(outcome.clone());
        }
    }
}

type Done = Box<dyn FnOnce(Result<(), CaError>) + Send>;

fn commit(db: &mut Connection, group: Vec<Job>) -> Result<Vec<Done>, (Vec<Done>, CaError)> {
    let mut done = Vec::with_capacity(group.len());
    let mut jobs = group.into_iter();
    let result = (|| -> Result<(), CaError> {
        let tx: Transaction<'_> = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for job in jobs.by_ref() {
            done.push(job.done);
            tx.execute_batch("SAVEPOINT job")?;
            let scope = Scope::begin(&tx, now(), job.actor)?;
            if (job.run)(&scope) {
                scope.finish()?;
                tx.execute_batch("RELEASE job")?;
            } else {
                tx.execute_batch("ROLLBACK TO job; RELEASE job")?;
            }
        }
        tx.commit()?;
        Ok(())
    })();
    match result {
        Ok(()) => Ok(done),
        Err(e) => {
            done.extend(jobs.map(|job| job.done));
            Err((done, e))
        }
    }
}
