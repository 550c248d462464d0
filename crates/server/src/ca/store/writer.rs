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

type Run = Box<dyn FnOnce(&Scope<'_>) -> Result<(), CaError> + Send>;

struct Job {
    actor: String,
    /// An error undoes what it did.
    run: Run,
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
                let kept = result.as_ref().map(|_| ()).map_err(Clone::clone);
                *filled.lock() = Some(result);
                kept
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
        let (waiting, outcome) = commit(&mut db, group);
        let answer = match outcome {
            Outcome::Kept => Ok(()),
            Outcome::Undone(e) => {
                tracing::error!(error = %e, "the CA's store cannot be written now");
                Err(e)
            }
            Outcome::Lost(e) => {
                tracing::error!(error = %e, "the CA's store cannot be written; nothing is taken until a restart");
                closed = Some(e.to_string());
                Err(e)
            }
        };
        for done in waiting {
            done(answer.clone());
        }
    }
}

type Done = Box<dyn FnOnce(Result<(), CaError>) + Send>;

/// What became of a group.
enum Outcome {
    /// It is on disk, but for the jobs that refused.
    Kept,
    /// None of it is kept, and the next group may fare better: somebody else was writing, or the disk is full.
    Undone(CaError),
    /// Nobody knows what is on disk.
    Lost(CaError),
}

fn commit(db: &mut Connection, group: Vec<Job>) -> (Vec<Done>, Outcome) {
    let mut done = Vec::with_capacity(group.len());
    let mut jobs = group.into_iter();
    let ran = db
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(CaError::from)
        .and_then(|tx| {
            for job in jobs.by_ref() {
                done.push(job.done);
                run_one(&tx, job.actor, job.run)?;
            }
            Ok(tx)
        });
    let outcome = match ran.map(Transaction::commit) {
        Ok(Ok(())) => Outcome::Kept,
        // SQLite has said so before it synced anything.
        Ok(Err(e)) if CaError::from(&e) == CaError::DiskFull => Outcome::Undone(CaError::DiskFull),
        Ok(Err(e)) => Outcome::Lost(CaError::from(&e)),
        Err(e) => Outcome::Undone(e),
    };
    done.extend(jobs.map(|job| job.done));
    // A transaction that can be neither kept nor undone is in the way of every other.
    match outcome {
        Outcome::Undone(e) if !db.is_autocommit() && db.execute_batch("ROLLBACK").is_err() => {
            (done, Outcome::Lost(e))
        }
        outcome => (done, outcome),
    }
}

/// One job, undone alone if it refuses. An error is one of the whole transaction.
fn run_one(
    tx: &Transaction<'_>,
    actor: String,
    run: impl FnOnce(&Scope<'_>) -> Result<(), CaError>,
) -> Result<(), CaError> {
    tx.execute_batch("SAVEPOINT job")?;
    let scope = Scope::begin(tx, now(), actor)?;
    let Err(refused) = run(&scope) else {
        scope.finish()?;
        return Ok(tx.execute_batch("RELEASE job")?);
    };
    tx.execute_batch("ROLLBACK TO job; RELEASE job")
        .map_err(|e| match refused {
            // Then SQLite has rolled back all of it already, and there is no savepoint any more.
            CaError::DiskFull | CaError::Storage(_) => refused,
            _ => e.into(),
        })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rusqlite::params;

    use super::*;
    use crate::ca::store::{create, path_in};

    fn store() -> (tempfile::TempDir, Connection, Writer) {
        let folder = tempfile::tempdir().unwrap();
        let db = create(folder.path()).unwrap();
        db.busy_timeout(Duration::from_millis(50)).unwrap();
        let beside = Connection::open(path_in(folder.path())).unwrap();
        (folder, beside, Writer::start(db).unwrap())
    }

    fn note(writer: &Writer) -> Result<(), CaError> {
        writer.write("test".into(), |scope| scope.log("test", "", &Value::Null))
    }

    #[test]
    fn who_waits_too_long_for_another_writer_is_told_to_ask_again_and_the_writer_goes_on() {
        let (_folder, beside, writer) = store();
        note(&writer).unwrap();
        beside.execute_batch("BEGIN IMMEDIATE").unwrap();
        let busy = note(&writer).unwrap_err();
        assert_eq!((busy.code(), busy.status()), ("busy", 503));
        beside.execute_batch("ROLLBACK").unwrap();
        note(&writer).unwrap();
    }

    #[test]
    fn a_full_disk_is_told_as_one_and_the_writer_goes_on() {
        let (_folder, beside, writer) = store();
        let limit = |pages: i64| {
            writer.write("test".into(), move |scope| {
                let sql = format!("PRAGMA max_page_count = {pages}");
                Ok(scope.db.query_row(&sql, [], |r| r.get::<_, i64>(0))?)
            })
        };
        // As small as it is: SQLite rolls back the whole transaction of whoever needs one page more.
        limit(1).unwrap();
        let full = writer.write("test".into(), |scope| {
            let sql = "INSERT INTO log VALUES (1, 0, '', '', '', ?, x'')";
            Ok(scope.db.execute(sql, params!["x".repeat(1 << 20)])?)
        });
        assert_eq!(full, Err(CaError::DiskFull));
        limit(1 << 20).unwrap();
        note(&writer).unwrap();
        let kept: i64 = beside
            .query_row("SELECT count(*) FROM log", [], |r| r.get(0))
            .unwrap();
        assert_eq!(kept, 1);
    }

    #[test]
    fn a_commit_that_fails_closes_the_store_until_a_restart() {
        let (_folder, _beside, writer) = store();
        // Found out at the commit only, as a failed sync is.
        let lost = writer.write("test".into(), |scope| {
            scope.db.execute_batch("PRAGMA defer_foreign_keys = true")?;
            scope.db.execute(
                "INSERT INTO batches VALUES ('b', 'nobody', '', '', 1, 0, 0, 'open', 0)",
                [],
            )?;
            Ok(())
        });
        assert!(matches!(lost, Err(CaError::Storage(_))), "{lost:?}");
        assert!(matches!(note(&writer), Err(CaError::Closed(_))));
    }
}
