//! What asks the device's key is done aside, on a thread of its own: a token or a TPM takes its time to sign, and may never
//! answer. Meanwhile the service's thread tells how it stands, takes messages in, and keeps the session alive.
//!
//! A signature is asked for in the middle of a TLS handshake, and by a function that does not return before it is there. So
//! the whole of a connection's beginning is done aside, and the connection handed over: no handshake asks for a second one.
//!
//! A thread whose key never answers cannot be ended. It keeps its turn, so that there is one such thread and not one more for
//! each try, and a key that answers again ends the trouble.

use std::future::Future;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use crate::fault::LinkFault;

/// How long the work before it may take to end after it was given up, if its key answers.
const TURN: Duration = Duration::from_secs(1);

/// A place beside the service's thread, for one work at a time.
#[derive(Debug, Clone)]
pub(crate) struct Aside {
    turn: Arc<Semaphore>,
}

impl Aside {
    pub(crate) fn new() -> Self {
        Self {
            turn: Arc::new(Semaphore::new(1)),
        }
    }

    /// Does work there, for so long at most. It is made there, so it need not be able to go from thread to thread; timers and
    /// sockets are those of the caller's runtime. When the caller gives up, so does the work, at its next wait.
    ///
    /// # Errors
    /// [`LinkFault::Key`] if it does not end in time: whatever waits for the network has a shorter patience of its own.
    pub(crate) async fn run<T, F>(
        &self,
        patience: Duration,
        work: impl FnOnce() -> F + Send + 'static,
    ) -> Result<T, LinkFault>
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        let silent = || {
            LinkFault::Key(
                "it does not answer; hint: reset its token or TPM, or plug it in anew; it is tried again until then"
                    .into(),
            )
        };
        // Nobody closes it.
        let Ok(Ok(turn)) = timeout(TURN, self.turn.clone().acquire_owned()).await else {
            return Err(silent());
        };
        let (caller, gone) = oneshot::channel::<()>();
        let runtime = Handle::current();
        let task = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            runtime.block_on(async {
                tokio::select! {
                    // First: when the caller is gone, so may its runtime be, and its timers.
                    biased;
                    _ = gone => None,
                    done = work() => Some(done),
                }
            })
        });
        let done = timeout(patience, task).await;
        drop(caller);
        match done {
            Ok(Ok(Some(done))) => Ok(done),
            Ok(Err(fault)) if fault.is_panic() => resume_unwind(fault.into_panic()),
            Ok(Ok(None) | Err(_)) | Err(_) => Err(silent()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    }

    const PATIENCE: Duration = Duration::from_millis(50);

    #[test]
    fn a_key_that_hangs_holds_one_thread_and_is_told_and_answers_later() {
        let (answer, key) = mpsc::channel::<()>();
        let runtime = runtime();
        runtime.block_on(async {
            let aside = Aside::new();
            // As a signature is: it does not return before the key answers.
            let hanging = aside.run(PATIENCE, || async move {
                let _ = key.recv();
            });
            let mut ticks = 0;
            let told = tokio::select! {
                told = hanging => told,
                () = async { loop { tokio::time::sleep(Duration::from_millis(1)).await; ticks += 1; } } => unreachable!(),
            };
            assert!(matches!(told, Err(LinkFault::Key(_))), "{told:?}");
            assert!(ticks > 5, "the caller's thread stood still");
            // No second thread: the work is not even begun.
            let second = aside.run(PATIENCE, || async { 2 }).await;
            assert!(second.unwrap_err().to_string().contains("does not answer"));
            answer.send(()).unwrap();
            assert_eq!(aside.run(PATIENCE, || async { 3 }).await.unwrap(), 3);
        });
    }

    #[test]
    fn work_that_nobody_waits_for_ends() {
        let runtime = runtime();
        let (ended, end) = oneshot::channel::<()>();
        runtime.block_on(async {
            let aside = Aside::new();
            let work = aside.run(Duration::from_secs(60), || async move {
                let _ended = ended;
                std::future::pending::<()>().await;
            });
            assert!(timeout(PATIENCE, work).await.is_err());
            assert!(timeout(Duration::from_secs(10), end).await.unwrap().is_err());
        });
    }
}
