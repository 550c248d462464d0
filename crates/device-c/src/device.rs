//! A service on a thread of its own. The thread writes down what it is told, and whoever asks waits for that: nothing of the
//! program is called on it.

use std::collections::VecDeque;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use countersign_device::{
    IdentityFolder, LinkOptions, Listener, Message, Outbox, QueueBounds, RenewalWindow, Running, Service,
    State, Status,
};
use tokio::sync::Notify;

use crate::boundary::{CS_FAILED, CS_STOPPED, CS_UNREACHABLE};
use crate::fault::Fault;
use crate::signals;

/// How long the thread may take to come up.
const START: Duration = Duration::from_secs(10);
/// How long the service may take to say goodbye. Whatever it was at then is left as by a power cut, which it survives.
const GOODBYE: Duration = Duration::from_secs(2);
/// How long a name that is being looked up may hold back the end.
const LOOKUP: Duration = Duration::from_millis(100);

/// What `cs_open` may be told.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) link: LinkOptions,
    pub(crate) queue: QueueBounds,
    /// Without it renewal is left to others.
    pub(crate) window: Option<RenewalWindow>,
    /// The most messages for the device that wait to be taken.
    pub(crate) messages_max: usize,
    pub(crate) words: Words,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            link: LinkOptions::default(),
            queue: QueueBounds::default(),
            window: Some(RenewalWindow::default()),
            messages_max: 64,
            words: Words::Silent,
        }
    }
}

/// Whether what happens is told to people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Words {
    Silent,
    StandardError,
}

/// What the thread knows.
#[derive(Default)]
struct Known {
    is_started: bool,
    status: Option<Status>,
    messages: VecDeque<Message>,
    /// Messages for the device that had no room.
    lost: u64,
    /// Why the service is no more.
    ended: Option<Fault>,
}

#[derive(Default)]
struct Shared {
    known: Mutex<Known>,
    changed: Condvar,
}

impl Shared {
    fn locked(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.locked());
        self.changed.notify_all();
    }

    /// Waits until there is an answer, or for so long.
    fn wait<T>(&self, time: Duration, mut answer: impl FnMut(&mut Known) -> Option<T>) -> Option<T> {
        let end = Instant::now() + time;
        let mut known = self.locked();
        loop {
            if let Some(answer) = answer(&mut known) {
                return Some(answer);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let waited = self.changed.wait_timeout(known, left);
            known = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// What `cs_status_read` tells.
pub(crate) struct Condition {
    pub(crate) state: State,
    pub(crate) waiting: u64,
    pub(crate) delivered: u64,
    pub(crate) refused: u64,
    pub(crate) lost: u64,
    pub(crate) certificate_until_s: i64,
    pub(crate) fault: Option<Fault>,
}

/// A device that is open.
pub(crate) struct Device {
    outbox: Outbox,
    telemetry: String,
    shared: Arc<Shared>,
    /// One for the service, one for the thread around it.
    stop: [Arc<Notify>; 2],
    thread: JoinHandle<()>,
    /// Held until the thread is gone.
    _running: Running,
}

impl Device {
    /// Opens an identity folder, and starts.
    pub(crate) fn open(path: &Path, options: Options) -> Result<Self, Fault> {
        let folder = IdentityFolder::new(path);
        // First of all: where there is no folder the other steps would say less.
        folder.load()?;
        let Some(running) = folder.try_running()? else {
            return Err(Fault::usage(
                &format!("{} is in use already", path.display()),
                "one process opens an identity folder, once: close the other, or stop countersign-agent run",
            ));
        };
        let service = Service::open(path, options.link, options.window, options.queue)?;
        let cannot_start = |e: std::io::Error| Fault::new(CS_FAILED, &format!("cannot start: {e}"), None);
        let shared = Arc::new(Shared::default());
        let stop = [Arc::new(Notify::new()), Arc::new(Notify::new())];
        let (outbox, telemetry) = (
            service.outbox(),
            format!("devices/{}/telemetry", service.device()),
        );
        let mut ear = Ear {
            shared: shared.clone(),
            messages_max: options.messages_max,
            words: options.words,
        };
        let [of_service, of_thread] = stop.clone();
        let thread = std::thread::Builder::new()
            .name("countersign".into())
            .spawn(move || {
                signals::block();
                let shared = ear.shared.clone();
                let ended = catch_unwind(AssertUnwindSafe(|| {
                    // Here, not before: it would leave something of its own behind on the program's thread.
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                    let runtime = runtime.map_err(cannot_start)?;
                    shared.change(|known| known.is_started = true);
                    let ended = runtime.block_on(async {
                        tokio::select! {
                            ended = service.run(of_service, &mut ear) => ended,
                            () = async {
                                of_thread.notified().await;
                                tokio::time::sleep(GOODBYE).await;
                            } => Ok(()),
                        }
                    });
                    runtime.shutdown_timeout(LOOKUP);
                    ended.map_err(Fault::from)
                }));
                let fault = match ended {
                    Ok(Ok(())) => Fault::usage("it was closed", "cs_open opens it again"),
                    Ok(Err(fault)) => fault,
                    Err(panic) => Fault::panic(&*panic),
                };
                shared.change(|known| known.ended = Some(fault));
            })
            .map_err(cannot_start)?;
        let started = shared.wait(START, |known| {
            let failed = known.ended.clone().map(Err);
            failed.or_else(|| known.is_started.then_some(Ok(())))
        });
        // A machine that is slower than that has started all the same, or says so later.
        started.unwrap_or(Ok(()))?;
        Ok(Self {
            outbox,
            telemetry,
            shared,
            stop,
            thread,
            _running: running,
        })
    }

    /// Takes a message for the platform; it is on disk when this returns.
    pub(crate) fn publish(&self, topic: Option<&str>, payload: &[u8]) -> Result<(), Fault> {
        // It would lie there, and nobody would know.
        if let Some(fault) = &self.shared.locked().ended {
            return Err(stopped(fault));
        }
        self.outbox.push(topic.unwrap_or(&self.telemetry), payload)?;
        Ok(())
    }

    /// The next message for the device; `None` if there was none for so long.
    pub(crate) fn next_message(&self, time: Duration) -> Result<Option<Message>, Fault> {
        let next = self.shared.wait(time, |known| {
            let message = known.messages.pop_front().map(Ok);
            message.or_else(|| Some(Err(stopped(known.ended.as_ref()?))))
        });
        next.transpose()
    }

    /// Waits until it is connected.
    pub(crate) fn wait_connected(&self, time: Duration) -> Result<(), Fault> {
        let connected = self.shared.wait(time, |known| {
            if let Some(ended) = &known.ended {
                return Some(Err(stopped(ended)));
            }
            let is_connected = known.status.as_ref().is_some_and(|s| s.state == State::Connected);
            is_connected.then_some(Ok(()))
        });
        connected.unwrap_or_else(|| {
            Err(self.fault().unwrap_or_else(|| {
                let text = format!("not connected within {} ms", time.as_millis());
                let cure = "give it more time, and check host, port and network";
                Fault::new(CS_UNREACHABLE, &text, Some(cure))
            }))
        })
    }

    /// How it stands.
    pub(crate) fn condition(&self) -> Condition {
        let waiting = self.outbox.waiting() as u64;
        let known = self.shared.locked();
        let status = known.status.as_ref();
        Condition {
            state: match (&known.ended, status) {
                (Some(_), _) => State::Stopped,
                (None, Some(status)) => status.state,
                (None, None) => State::Connecting,
            },
            waiting,
            delivered: status.map_or(0, |s| s.delivered),
            refused: status.map_or(0, |s| s.refused),
            lost: known.lost,
            certificate_until_s: status.map_or(0, |s| s.certificate_until.unix_s()),
            fault: fault_of(&known),
        }
    }

    /// Delivers what can be delivered for so long, and ends. What was not delivered stays on disk, and is told.
    pub(crate) fn close(self, time: Duration) -> Result<(), Fault> {
        let flushed = self.shared.wait(time, |known| {
            (known.ended.is_some() || self.outbox.waiting() == 0).then_some(())
        });
        let fault = self.fault();
        for stop in &self.stop {
            stop.notify_one();
        }
        let Self { thread, outbox, .. } = self;
        // A panic of it was caught in it.
        let _ = thread.join();
        match (outbox.waiting(), flushed) {
            (0, _) => Ok(()),
            (waiting, _) => {
                let (code, why, cure) = match &fault {
                    Some(fault) => (
                        fault.code,
                        format!(": {}", fault.what.to_string_lossy()),
                        &fault.cure,
                    ),
                    None => (CS_UNREACHABLE, String::new(), &None),
                };
                let cure = cure.as_ref().map(|c| c.to_string_lossy());
                Err(Fault::new(
                    code,
                    &format!(
                        "messages that wait on disk, for the next time the folder is opened: {waiting}{why}"
                    ),
                    Some(cure.as_deref().unwrap_or("give cs_close more time")),
                ))
            }
        }
    }

    /// What is wrong now.
    fn fault(&self) -> Option<Fault> {
        fault_of(&self.shared.locked())
    }
}

fn fault_of(known: &Known) -> Option<Fault> {
    let of_status = || Some(Fault::from(known.status.as_ref()?.fault.as_ref()?));
    known.ended.clone().or_else(of_status)
}

/// The service is no more, by its own fault: only then is there anybody to ask.
fn stopped(fault: &Fault) -> Fault {
    Fault {
        code: CS_STOPPED,
        ..fault.clone()
    }
}

/// Writes down what the service tells.
struct Ear {
    shared: Arc<Shared>,
    messages_max: usize,
    words: Words,
}

impl Listener for Ear {
    fn message(&mut self, message: &Message) -> std::io::Result<()> {
        self.shared.change(|known| {
            // Whoever takes none must still be able to publish; of several commands the last ones count.
            while known.messages.len() >= self.messages_max {
                known.messages.pop_front();
                known.lost += 1;
            }
            known.messages.push_back(message.clone());
        });
        Ok(())
    }

    fn status(&mut self, status: &Status) {
        if let (Words::StandardError, Some(line)) = (self.words, status.lines(status.since).first()) {
            self.say(line);
        }
        self.shared.change(|known| known.status = Some(status.clone()));
    }

    fn counted(&mut self, status: &Status) {
        self.shared.change(|known| known.status = Some(status.clone()));
    }

    fn say(&mut self, text: &str) {
        if self.words == Words::StandardError {
            let text = text.replace("; hint: ", "\nhint: ");
            // Nobody is there to be told that nobody can be told.
            let _ = writeln!(std::io::stderr(), "countersign: {text}");
        }
    }
}
