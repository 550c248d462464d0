//! Calls that a token may never answer: each runs on a thread of its own, and whoever asked waits only so long. A call that
//! is given up keeps its thread and its session until the token answers after all; there are only so many of them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// How long one signature may take; a smart card takes a second, with eight at once.
pub(crate) const SIGNING: Duration = Duration::from_secs(10);
/// How long anything else may take: a module that is loaded, a PIN that is typed at a keypad, a key that is made.
pub(crate) const OPENING: Duration = Duration::from_secs(60);
/// Calls to one token at a time, those included that were given up.
pub(crate) const CALLS_MAX: usize = 8;

/// Module, and token as the URI names it.
pub(crate) type LineName = (PathBuf, String);

static LINES: LazyLock<Mutex<BTreeMap<LineName, Arc<Line>>>> = LazyLock::new(Mutex::default);

/// The way to a token. For the whole process: a key that is opened anew meets the same token.
pub(crate) fn line(name: LineName) -> Arc<Line> {
    LINES.lock().entry(name).or_default().clone()
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// The time is over.
    Late,
    /// As many calls as there may be were given up: it is not asked again until one of them is answered.
    Hangs,
    /// The system gives no thread, or the call panicked.
    Failed,
}

#[derive(Default)]
struct Calls {
    running: usize,
    /// Those of them that nobody waits for any more.
    given_up: usize,
}

/// Who may ask, and who waits for a turn.
#[derive(Default)]
pub(crate) struct Line {
    calls: Mutex<Calls>,
    freed: Condvar,
}

/// What a call and whoever waits for it share. Read and changed only under [`Line::calls`]: one of two is the first.
#[derive(Default)]
struct Waiting {
    is_given_up: AtomicBool,
    is_over: AtomicBool,
}

impl Waiting {
    fn is_given_up(&self) -> bool {
        self.is_given_up.load(Ordering::Relaxed)
    }
}

/// Makes room for the next one, also if the call panics.
struct Turn {
    line: Arc<Line>,
    waiting: Arc<Waiting>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut calls = self.line.calls.lock();
        calls.running -= 1;
        self.waiting.is_over.store(true, Ordering::Relaxed);
        if self.waiting.is_given_up() {
            calls.given_up -= 1;
        }
        self.line.freed.notify_one();
    }
}

impl Line {
    /// Runs a call; waits at most `limit` for its turn, and as long for its answer.
    pub(crate) fn within<T: Send + 'static>(
        self: &Arc<Self>,
        limit: Duration,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        let turn = self.turn(Instant::now() + limit)?;
        let waiting = turn.waiting.clone();
        let (answer, answered) = sync_channel(1);
        std::thread::Builder::new()
            .name("token-call".into())
            .spawn(move || run(&turn, call, &answer))
            .map_err(|_| NoAnswer::Failed)?;
        match answered.recv_timeout(limit) {
            Ok(value) => Ok(value),
            Err(RecvTimeoutError::Disconnected) => Err(NoAnswer::Failed),
            Err(RecvTimeoutError::Timeout) => self.give_up(&waiting, &answered),
        }
    }

    fn turn(self: &Arc<Self>, until: Instant) -> Result<Turn, NoAnswer> {
        let mut calls = self.calls.lock();
        while calls.running >= CALLS_MAX {
            if calls.given_up >= CALLS_MAX {
                return Err(NoAnswer::Hangs);
            }
            if self.freed.wait_until(&mut calls, until).timed_out() && calls.running >= CALLS_MAX {
                return Err(NoAnswer::Late);
            }
        }
        calls.running += 1;
        Ok(Turn {
            line: self.clone(),
            waiting: Arc::default(),
        })
    }

    fn give_up<T>(&self, waiting: &Waiting, answered: &Receiver<T>) -> Result<T, NoAnswer> {
        let mut calls = self.calls.lock();
        match answered.try_recv() {
            Ok(value) => Ok(value),
            Err(_) if waiting.is_over.load(Ordering::Relaxed) => Err(NoAnswer::Failed),
            Err(_) => {
                waiting.is_given_up.store(true, Ordering::Relaxed);
                calls.given_up += 1;
                // Those who wait for a turn learn that there will be none.
                self.freed.notify_all();
                Err(NoAnswer::Late)
            }
        }
    }
}

fn run<T>(turn: &Turn, call: impl FnOnce() -> T, answer: &SyncSender<T>) {
    let value = call();
    let calls = turn.line.calls.lock();
    let is_given_up = turn.waiting.is_given_up();
    let unwanted = if is_given_up {
        Some(value)
    } else {
        // There is room for one.
        answer.send(value).err().map(|e| e.0)
    };
    drop(calls);
    if is_given_up {
        tracing::info!("the token answered a call that was given up; it is asked again");
    }
    // A session may be closed with it: not while others wait for the lock.
    drop(unwanted);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const LIMIT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn what_is_not_answered_is_given_up_and_there_are_only_so_many_of_them() {
        let line: Arc<Line> = Arc::default();
        assert_eq!(line.within(LONG, || 7), Ok(7));
        let (release, held) = channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let mut started = Vec::new();
        for _ in 0..CALLS_MAX {
            let (held, (start, is_started)) = (held.clone(), channel());
            let call = move || {
                start.send(()).unwrap();
                // All of them wait: one for the channel, the others for the lock.
                let _ = held.lock().recv();
            };
            assert_eq!(line.within(LIMIT, call), Err(NoAnswer::Late));
            started.push(is_started);
        }
        assert!(started.iter().all(|s| s.recv_timeout(LONG).is_ok()));
        // No more threads, and nobody waits for nothing.
        let at = Instant::now();
        assert_eq!(line.within(LONG, || 7), Err(NoAnswer::Hangs));
        assert!(at.elapsed() < LONG / 2);
        // One is answered after all: there is room for one.
        release.send(()).unwrap();
        let until = Instant::now() + LONG;
        let mut answer = line.within(LONG, || 8);
        while answer == Err(NoAnswer::Hangs) && Instant::now() < until {
            std::thread::yield_now();
            answer = line.within(LONG, || 8);
        }
        assert_eq!(answer, Ok(8));
    }

    #[test]
    fn who_finds_all_turns_taken_waits_for_one() {
        let line: Arc<Line> = Arc::default();
        let (release, held) = channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let (start, started) = channel();
        let callers: Vec<_> = (0..CALLS_MAX)
            .map(|_| {
                let (line, held, start) = (line.clone(), held.clone(), start.clone());
                std::thread::spawn(move || {
                    let call = move || {
                        start.send(()).unwrap();
                        let _ = held.lock().recv();
                    };
                    line.within(LONG, call)
                })
            })
            .collect();
        for _ in 0..CALLS_MAX {
            started.recv_timeout(LONG).unwrap();
        }
        assert_eq!(line.within(LIMIT, || 7), Err(NoAnswer::Late));
        let waiting = line.clone();
        let last = std::thread::spawn(move || waiting.within(LONG, || 7));
        drop(release);
        assert_eq!(last.join().unwrap(), Ok(7));
        for caller in callers {
            assert_eq!(caller.join().unwrap(), Ok(()));
        }
        assert_eq!(line.calls.lock().given_up, 0);
    }

    #[test]
    fn a_call_that_panics_takes_no_room() {
        let line: Arc<Line> = Arc::default();
        for _ in 0..=CALLS_MAX {
            assert_eq!(
                line.within(LONG, || panic!("the module")),
                Err::<(), _>(NoAnswer::Failed)
            );
        }
        assert_eq!(line.within(LONG, || 7), Ok(7));
    }
}
