//! `run`: the service, and how programs beside it hand in messages.
//!
//! On the socket each line is a JSON object, `{"topic": …, "payload": …}`, and each answer another: `{"waiting": N}` when the
//! message is on disk, `{"error": …, "hint": …, "exit_code": N}` when it was not taken. `{"status": true}` is answered by the status.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Args;
use countersign_device::{
    EnrolFault, IdentityFault, KeyReuse, LinkFault, Listener, Message, Outbox, QueueBounds, QueueFault,
    Service, State, Status,
};
use sd_notify::NotifyState;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;

use super::{Agent, lines, warn};

/// Where programs hand in messages, in the identity folder.
const SOCKET: &str = "agent.sock";
/// The exit code for a message that was not taken.
const NOT_TAKEN: u8 = 13;
/// The longest line that is read from a program: a message may be escaped, six bytes for one.
const LINE_MAX: u64 = 2 << 20;
/// The most programs that are connected at a time. One more is told so, and taken leave of.
const PROGRAMS_MAX: usize = 32;
/// How long a program may say nothing before it is taken leave of.
const SILENCE_MAX: Duration = Duration::from_secs(300);
/// How long a line may take once it has begun, and an answer to be taken, before the program is taken leave of.
const LINE_TIME: Duration = Duration::from_secs(10);

#[derive(Args)]
pub(crate) struct RunArguments {
    /// Deliver each line of standard input as telemetry; its end is not the service's
    #[arg(long)]
    stdin: bool,
    /// Renew with the same key, for a token that has no room for a second one
    #[arg(long)]
    same_key: bool,
    /// The most messages that wait
    #[arg(long, default_value_t = QueueBounds::default().messages)]
    queue_messages: usize,
    /// The most bytes that wait
    #[arg(long, default_value_t = QueueBounds::default().bytes)]
    queue_bytes: u64,
}

/// What a program asks.
#[derive(Deserialize)]
#[serde(untagged)]
enum Asked {
    Message(HandedIn),
    Status(StatusAsked),
}

/// How the service stands.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StatusAsked {
    pub(crate) status: bool,
}

/// What a program hands in.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HandedIn {
    /// Telemetry of this device by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    topic: Option<String>,
    payload: String,
}

/// What it is answered.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answered {
    Waiting(usize),
    #[serde(untagged)]
    Status(Box<Status>),
    #[serde(untagged)]
    Not {
        error: String,
        #[serde(default)]
        hint: Option<String>,
        /// What `publish --queued` makes of it.
        exit_code: u8,
    },
}

impl Answered {
    fn full() -> Self {
        Self::not(
            NOT_TAKEN,
            &format!(
                "{PROGRAMS_MAX} programs are connected, and no more may be; hint: end one, or have them end their connections"
            ),
        )
    }

    fn line(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec(self).unwrap_or_default();
        text.push(b'\n');
        text
    }

    fn not(exit_code: u8, text: &str) -> Self {
        let (error, hint) = match text.split_once("; hint: ") {
            Some((error, hint)) => (error, Some(hint.to_owned())),
            None => (text, None),
        };
        Self::Not {
            error: error.to_owned(),
            hint,
            exit_code,
        }
    }
}

/// Prints messages, and tells systemd.
struct Shell;

impl Listener for Shell {
    fn message(&mut self, message: &Message) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        write!(out, "{}\t", message.topic)?;
        out.write_all(&message.payload)?;
        out.write_all(b"\n")?;
        out.flush()
    }

    fn status(&mut self, status: &Status) {
        let lines = status.lines(status.since);
        if status.state != State::Connecting {
            warn(&lines[0]);
        }
        // Outside of systemd there is nobody to tell.
        let _ = sd_notify::notify(&[NotifyState::Status(&lines[0])]);
    }

    fn say(&mut self, text: &str) {
        warn(text);
    }
}

pub(crate) async fn run(agent: &Agent, arguments: &RunArguments) -> Result<(), EnrolFault> {
    let folder = agent.folder.path();
    let Some(_alone) = agent.folder.try_running()? else {
        return Err(EnrolFault::Usage(format!(
            "a service runs on {} already; hint: countersign-agent status shows how it stands",
            folder.display()
        )));
    };
    let bounds = QueueBounds {
        messages: arguments.queue_messages,
        bytes: arguments.queue_bytes,
    };
    let reuse = if arguments.same_key {
        KeyReuse::Same
    } else {
        KeyReuse::New
    };
    let service = Service::open(folder, agent.options.clone(), agent.window, bounds)?.renewing(reuse);
    let telemetry = format!("devices/{}/telemetry", service.device());
    let socket = open_socket(folder)?;
    let counter = Counter {
        outbox: service.outbox(),
        status: service.status(),
        telemetry: telemetry.clone(),
    };
    tokio::spawn(take_in(socket, counter));
    if arguments.stdin {
        tokio::spawn(take_lines(service.outbox(), telemetry));
    }
    let stop = Arc::new(Notify::new());
    tokio::spawn(stop_by_signal(stop.clone()));
    tokio::spawn(watchdog());
    // From here on messages are taken, whether the platform is there or not.
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    let ended = service.run(stop, &mut Shell).await;
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    let _ = std::fs::remove_file(folder.join(SOCKET));
    ended
}

/// Where programs are served.
#[derive(Clone)]
struct Counter {
    outbox: Outbox,
    status: Arc<Mutex<Status>>,
    telemetry: String,
}

fn open_socket(folder: &Path) -> Result<UnixListener, EnrolFault> {
    let path = folder.join(SOCKET);
    // The lock is ours, so whose socket this was is gone.
    let _ = std::fs::remove_file(&path);
    let failed = |source| IdentityFault::Unwritable {
        path: path.clone(),
        source,
    };
    let socket = UnixListener::bind(&path).map_err(failed)?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(socket)
}

async fn stop_by_signal(stop: Arc<Notify>) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    stop.notify_one();
}

/// Tells systemd that we live, if it asks (WatchdogSec=).
async fn watchdog() {
    let Some(every) = sd_notify::watchdog_enabled() else {
        return;
    };
    loop {
        let _ = sd_notify::notify(&[NotifyState::Watchdog]);
        tokio::time::sleep(every / 3).await;
    }
}

async fn take_in(socket: UnixListener, counter: Counter) {
    let places = Arc::new(Semaphore::new(PROGRAMS_MAX));
    loop {
        match socket.accept().await {
            Ok((program, _)) => {
                let Ok(place) = places.clone().try_acquire_owned() else {
                    // A new socket has room for it; if not, its end says enough.
                    let _ = program.try_write(&Answered::full().line());
                    continue;
                };
                let counter = counter.clone();
                tokio::spawn(async move {
                    serve(program, counter).await;
                    drop(place);
                });
            }
            Err(e) => {
                warn(&format!("warning: programs cannot hand in messages: {e}"));
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn serve(mut program: UnixStream, counter: Counter) {
    let (reading, mut writing) = program.split();
    let mut reading = BufReader::new(reading);
    loop {
        // A program may be silent between its lines, not within one.
        match timeout(SILENCE_MAX, reading.fill_buf()).await {
            Ok(Ok(begun)) if !begun.is_empty() => {}
            _ => return,
        }
        let mut line = Vec::new();
        let mut limited = (&mut reading).take(LINE_MAX);
        match timeout(LINE_TIME, limited.read_until(b'\n', &mut line)).await {
            Ok(Ok(1..)) => {}
            _ => return,
        }
        let is_whole = line.last() == Some(&b'\n');
        let answer = if is_whole || (line.len() as u64) < LINE_MAX {
            counter.answer(&line)
        } else {
            Answered::not(NOT_TAKEN, "the line is longer than 2 MiB; hint: send it in parts")
        };
        let written = timeout(LINE_TIME, writing.write_all(&answer.line())).await;
        if !matches!(written, Ok(Ok(()))) || !is_whole {
            return;
        }
    }
}

impl Counter {
    fn answer(&self, line: &[u8]) -> Answered {
        match serde_json::from_slice(line) {
            Ok(Asked::Message(message)) => {
                let topic = message.topic.as_deref().unwrap_or(&self.telemetry);
                match self.outbox.push(topic, message.payload.as_bytes()) {
                    Ok(waiting) => Answered::Waiting(waiting),
                    Err(e) => Answered::not(e.exit_code(), &e.to_string()),
                }
            }
            Ok(Asked::Status(StatusAsked { status: true })) => {
                let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
                Answered::Status(Box::new(status.clone()))
            }
            _ => Answered::not(
                2,
                "not a message; hint: {\"payload\": \"21.5\"}, and \"topic\" for another than telemetry, on one line; {\"status\": true} asks how the service stands",
            ),
        }
    }
}

/// The status of the service that runs on a folder, by its own word; `None` if it gives none.
pub(crate) fn live_status(folder: &Path) -> Option<Status> {
    let socket = std::os::unix::net::UnixStream::connect(folder.join(SOCKET)).ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    (&socket).write_all(b"{\"status\": true}\n").ok()?;
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(&socket), &mut line).ok()?;
    serde_json::from_str(&line).ok()
}

async fn take_lines(outbox: Outbox, telemetry: String) {
    let mut input = lines();
    while let Some(line) = input.recv().await {
        let line = match line {
            Ok(line) => line,
            Err(fault) => {
                warn(&format!("warning: {}", EnrolFault::from(fault)));
                continue;
            }
        };
        // Nobody to tell but whoever reads the log; the line waits until there is room, and so does who writes it.
        while let Err(e) = outbox.push(&telemetry, &line) {
            warn(&format!("warning: {e}"));
            if matches!(e, QueueFault::TooLarge { .. }) {
                break;
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    }
}

/// Hands messages to the running service: one, or each line of standard input.
pub(crate) async fn hand_in(
    agent: &Agent,
    topic: Option<String>,
    message: Option<String>,
) -> Result<(), EnrolFault> {
    let path: PathBuf = agent.folder.path().join(SOCKET);
    let program = UnixStream::connect(&path).await.map_err(|e| {
        EnrolFault::Usage(format!(
            "no service takes messages at {}: {e}; hint: countersign-agent run starts it",
            path.display()
        ))
    })?;
    let mut service = BufReader::new(program);
    if let Some(message) = message {
        return hand(&mut service, topic.as_deref(), message).await;
    }
    let mut input = lines();
    while let Some(line) = input.recv().await {
        let text = String::from_utf8(line?).map_err(|_| {
            EnrolFault::Usage("a line is no UTF-8; hint: encode it, for example in base64".into())
        })?;
        hand(&mut service, topic.as_deref(), text).await?;
    }
    Ok(())
}

async fn hand(
    service: &mut BufReader<UnixStream>,
    topic: Option<&str>,
    payload: String,
) -> Result<(), EnrolFault> {
    let broken = |e: &dyn std::fmt::Display| EnrolFault::Link(LinkFault::Broken(format!("the service: {e}")));
    let asked = HandedIn {
        topic: topic.map(str::to_owned),
        payload,
    };
    let mut text = serde_json::to_vec(&asked).map_err(|e| broken(&e))?;
    text.push(b'\n');
    // Whoever is taken leave of at once may not be able to ask, and is told why all the same.
    let asked = service.get_mut().write_all(&text).await;
    let mut line = String::new();
    service.read_line(&mut line).await.map_err(|e| broken(&e))?;
    if let (Err(e), true) = (asked, line.is_empty()) {
        return Err(broken(&e));
    }
    match serde_json::from_str(&line).map_err(|e| broken(&e))? {
        Answered::Waiting(_) | Answered::Status(_) => Ok(()),
        Answered::Not {
            error,
            hint,
            exit_code,
        } => {
            let text = match hint {
                Some(hint) => format!("{error}; hint: {hint}"),
                None => error,
            };
            Err(match exit_code {
                2 => EnrolFault::Usage(text),
                _ => EnrolFault::NotTaken(text),
            })
        }
    }
}
