//! The device's link as a service: connected for as long as it may be, telemetry kept on disk until the platform has it,
//! certificates renewed, and its condition told with the cure.
//!
//! 1. [`Outbox`]: takes messages at any time, also while the platform is away
//! 2. [`Service::run`]: connect, deliver, listen; after a fault wait, each time longer and at random, and begin anew
//! 3. [`Status`]: what `countersign-agent status` shows

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_identity::{DeviceId, Timestamp};
use countersign_mqtt::QoS;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::backoff::Backoff;
use crate::clock::DeviceClock;
use crate::fault::{EnrolFault, LinkFault};
use crate::folder::{IdentityFolder, KeyReuse};
use crate::link::{Link, LinkOptions, Message};
use crate::queue::{Queue, QueueBounds, QueueFault};
use crate::renewal::{self, Keeper, News, RenewalWindow, needs_renewal};

/// The file of the last status, in the identity folder.
const STATUS: &str = "status.json";
/// The folder of the messages that wait.
const QUEUE: &str = "queue";
/// The longest wait between two tries.
const WAIT_MAX: Duration = Duration::from_secs(300);
/// What will not pass by itself is tried all the same, but not often: the operator may resume the device.
const REFUSED_WAIT_MIN: Duration = Duration::from_secs(30);
/// A session that lasted so long begins a new count of failures.
const SOUND_AFTER: Duration = Duration::from_secs(60);
/// So many admitted sessions that the platform closed on one message, and it is that message.
const CLOSED_ON_MAX: u32 = 5;
/// How long a session may take to say goodbye to the platform.
const GOODBYE: Duration = Duration::from_secs(1);
/// How often a queue that could not be read is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Where the service stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// On its way in.
    Connecting,
    /// Admitted.
    Connected,
    /// It failed, and tries again at a time that is told.
    Waiting,
    /// It was stopped.
    Stopped,
}

/// What went wrong last, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusFault {
    /// What happened.
    pub what: String,
    /// What to do.
    pub cure: Option<String>,
    /// The agent's exit code for it.
    pub exit_code: u8,
    /// When.
    pub at: Timestamp,
}

impl StatusFault {
    fn of(fault: &EnrolFault, at: Timestamp) -> Self {
        let text = fault.to_string();
        let (what, cure) = match text.split_once("; hint: ") {
            Some((what, cure)) => (what.to_owned(), Some(cure.to_owned())),
            None => (text, None),
        };
        Self {
            what,
            cure,
            exit_code: fault.exit_code(),
            at,
        }
    }
}

/// The condition of a service, as its identity folder has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The device.
    pub device: DeviceId,
    /// Where it connects: host and port.
    pub platform: String,
    /// Where it stands.
    pub state: State,
    /// Since when.
    pub since: Timestamp,
    /// When it tries again, while it waits.
    pub retry_at: Option<Timestamp>,
    /// What went wrong last; nothing since it was connected for the first time, or again.
    pub fault: Option<StatusFault>,
    /// Why the certificate could not be renewed, if the last try failed; it goes on trying.
    #[serde(default)]
    pub renewal_fault: Option<String>,
    /// The serial number of the certificate in use.
    pub certificate: String,
    /// Until when that is valid.
    pub certificate_until: Timestamp,
    /// When it is renewed; `None` if that is left to others.
    pub renewal_at: Option<Timestamp>,
    /// Where its key is.
    pub key: String,
    /// Messages that wait.
    pub waiting: u64,
    /// Messages that were delivered since the start.
    pub delivered: u64,
    /// Messages that the platform would not have since the start; they are laid aside in `queue/refused`.
    pub refused: u64,
}

impl Status {
    /// What the folder says.
    ///
    /// # Errors
    /// A text with its cure.
    pub fn read(folder: &Path) -> Result<Self, String> {
        let path = folder.join(STATUS);
        let text = fs::read(&path).map_err(|e| {
            format!(
                "there is no status in {}: {e}; hint: countersign-agent run starts the service",
                folder.display()
            )
        })?;
        serde_json::from_slice(&text).map_err(|e| format!("{} is damaged: {e}", path.display()))
    }

    /// For people, a thought a line.
    pub fn lines(&self, now: Timestamp) -> Vec<String> {
        let mut lines = vec![match self.state {
            State::Connected => format!(
                "{}: connected to {} since {}",
                self.device, self.platform, self.since
            ),
            State::Connecting => format!(
                "{}: connecting to {} since {}",
                self.device, self.platform, self.since
            ),
            State::Waiting => match self.retry_at {
                Some(at) => format!(
                    "{}: not connected to {} since {}, tries again in {} s",
                    self.device,
                    self.platform,
                    self.since,
                    at.since(now).as_secs()
                ),
                None => format!("{}: not connected to {}", self.device, self.platform),
            },
            State::Stopped => format!("{}: stopped at {}", self.device, self.since),
        }];
        if let Some(fault) = &self.fault {
            lines.push(format!("fault: {} ({})", fault.what, fault.at));
            lines.extend(fault.cure.iter().map(|cure| format!("hint: {cure}")));
        }
        if let Some(fault) = &self.renewal_fault {
            let (what, cure) = fault.split_once("; hint: ").unwrap_or((fault, ""));
            lines.push(format!("fault: {what}"));
            lines.extend((!cure.is_empty()).then(|| format!("hint: {cure}")));
        }
        let renewal = match self.renewal_at {
            Some(at) => format!("renewed from {at} on"),
            None => "renewed by others".to_owned(),
        };
        lines.push(format!(
            "certificate: {} until {}, {renewal}; key {}",
            self.certificate, self.certificate_until, self.key
        ));
        lines.push(format!(
            "messages: {} wait, {} delivered, {} refused",
            self.waiting, self.delivered, self.refused
        ));
        lines
    }
}

/// Takes messages for the platform.
#[derive(Debug, Clone)]
pub struct Outbox {
    queue: Arc<Mutex<Queue>>,
    more: Arc<Notify>,
}

impl Outbox {
    /// Takes a message: it is on disk when this returns, and is delivered when the platform is there. How many wait then.
    ///
    /// # Errors
    /// [`QueueFault`]: then it was not taken.
    pub fn push(&self, topic: &str, payload: &[u8]) -> Result<usize, QueueFault> {
        let waiting = self.locked().push(topic, payload)?;
        self.more.notify_one();
        Ok(waiting)
    }

    /// [`Outbox::push`] from a task: the disk is written aside, so that the other tasks of its thread go on meanwhile.
    ///
    /// # Errors
    /// As for [`Outbox::push`].
    pub async fn hand_in(&self, topic: &str, payload: &[u8]) -> Result<usize, QueueFault> {
        let (outbox, topic, payload) = (self.clone(), topic.to_owned(), payload.to_owned());
        let pushing = tokio::task::spawn_blocking(move || outbox.push(&topic, &payload));
        match pushing.await {
            Ok(pushed) => pushed,
            Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
            // The runtime ends, and with it whoever waits here.
            Err(_) => std::future::pending().await,
        }
    }

    /// How many wait now.
    pub fn waiting(&self) -> usize {
        self.locked().len()
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the service tells whoever runs it.
pub trait Listener: Send {
    /// A message for the device.
    ///
    /// # Errors
    /// If it cannot be handed on: then the service ends.
    fn message(&mut self, message: &Message) -> std::io::Result<()>;

    /// Its condition changed.
    fn status(&mut self, status: &Status);

    /// Only its counts did.
    fn counted(&mut self, status: &Status) {
        let _ = status;
    }

    /// Something for people.
    fn say(&mut self, text: &str);
}

/// How a session ended that did not fail.
enum Ended {
    /// The next certificate waits for its first connection.
    Renewed,
    Stopped,
}

/// The service of one identity folder.
#[derive(Debug)]
pub struct Service {
    path: PathBuf,
    folder: IdentityFolder,
    options: LinkOptions,
    window: Option<RenewalWindow>,
    reuse: KeyReuse,
    outbox: Outbox,
    clock: DeviceClock,
    status: Status,
    /// The same, for whoever asks meanwhile.
    shown: Arc<Mutex<Status>>,
    /// The message that sessions were closed on without a word, and how many were.
    closed_on: (u64, u32),
    /// A certificate was renewed because the last one had ended, and nothing was admitted since.
    renewed_in_vain: bool,
}

/// What comes from beside the link.
struct Beside<'a> {
    keeper: Option<Keeper>,
    heard: tokio::sync::mpsc::UnboundedReceiver<(News, String)>,
    stop: &'a Notify,
}

impl Service {
    /// Of an identity folder. Without a window renewal is left to others.
    ///
    /// # Errors
    /// [`EnrolFault`] if the folder or its queue cannot be used.
    pub fn open(
        path: &Path,
        options: LinkOptions,
        window: Option<RenewalWindow>,
        bounds: QueueBounds,
    ) -> Result<Self, EnrolFault> {
        let folder = IdentityFolder::new(path);
        let identity = folder.load()?;
        let queue = Queue::open(&path.join(QUEUE), bounds).map_err(|e| EnrolFault::Usage(e.to_string()))?;
        let now = identity.clock.now();
        let status = Status {
            device: identity.profile.id.clone(),
            platform: format!("{}:{}", identity.profile.host, identity.profile.port),
            state: State::Connecting,
            since: now,
            retry_at: None,
            fault: None,
            renewal_fault: None,
            certificate: String::new(),
            certificate_until: now,
            renewal_at: None,
            key: String::new(),
            waiting: 0,
            delivered: 0,
            refused: 0,
        };
        Ok(Self {
            shown: Arc::new(Mutex::new(status.clone())),
            closed_on: (0, 0),
            renewed_in_vain: false,
            status,
            clock: identity.clock,
            path: path.to_owned(),
            folder,
            options,
            window,
            reuse: KeyReuse::New,
            outbox: Outbox {
                queue: Arc::new(Mutex::new(queue)),
                more: Arc::default(),
            },
        })
    }

    /// Renews with the same key, for a token that has no room for a second one.
    #[must_use]
    pub fn renewing(mut self, reuse: KeyReuse) -> Self {
        self.reuse = reuse;
        self
    }

    /// Where messages are handed in.
    pub fn outbox(&self) -> Outbox {
        self.outbox.clone()
    }

    /// Its condition, always as it is now.
    pub fn status(&self) -> Arc<Mutex<Status>> {
        self.shown.clone()
    }

    /// The device.
    pub fn device(&self) -> &DeviceId {
        &self.status.device
    }

    /// Runs until `stop`, or until a message cannot be handed on.
    ///
    /// # Errors
    /// [`EnrolFault`] if a message for the device cannot be handed on. No fault of the platform or the network ends it.
    pub async fn run(mut self, stop: Arc<Notify>, listener: &mut dyn Listener) -> Result<(), EnrolFault> {
        let (words, heard) = tokio::sync::mpsc::unbounded_channel();
        let keeper = self.window.map(|window| {
            Keeper::start(&self.path, window, self.reuse, move |news, text| {
                let _ = words.send((news, text.to_owned()));
            })
        });
        let mut beside = Beside {
            keeper,
            heard,
            stop: &stop,
        };
        let mut backoff = Backoff::new(Duration::from_secs(1), WAIT_MAX);
        loop {
            self.tell(State::Connecting, listener);
            let fault = match self.session(&mut beside, &mut backoff, listener).await {
                Ok(Ended::Renewed) => continue,
                Ok(Ended::Stopped) => break,
                Err(EnrolFault::Usage(text)) => return Err(EnrolFault::Usage(text)),
                Err(fault) => fault,
            };
            self.status.fault = Some(StatusFault::of(&fault, self.clock.now()));
            listener.say(&format!("warning: {fault}"));
            if let (EnrolFault::Link(link), true) = (&fault, self.window.is_some())
                && needs_renewal(link)
                && !self.renewed_in_vain
            {
                match renewal::renew(&self.folder, self.reuse).await {
                    // Once: if that one is not admitted either, another would not be.
                    Ok(_) => {
                        self.renewed_in_vain = true;
                        continue;
                    }
                    Err(e) => {
                        self.status.fault = Some(StatusFault::of(&e, self.clock.now()));
                        listener.say(&format!("warning: {e}"));
                    }
                }
            }
            let least = if fault.is_passing() {
                Duration::ZERO
            } else {
                REFUSED_WAIT_MIN
            };
            let wait = least + backoff.wait();
            self.status.retry_at = Some(self.clock.now().plus(wait));
            self.tell(State::Waiting, listener);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.notified() => break,
            }
        }
        self.tell(State::Stopped, listener);
        Ok(())
    }

    /// Connects, and asks for commands.
    async fn enter(&mut self, listener: &mut dyn Listener) -> Result<Link, EnrolFault> {
        let said = Mutex::new(Vec::new());
        let say = |text: &str| {
            said.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(text.to_owned());
        };
        let connected = renewal::connect(&self.folder, &self.options, &say).await;
        for text in said.into_inner().unwrap_or_default() {
            listener.say(&text);
        }
        let (mut link, identity) = connected?;
        let filter = format!("devices/{}/commands/#", identity.profile.id);
        let subscribing = link.subscribe(&filter, QoS::AtLeastOnce);
        match tokio::time::timeout(self.options.keep_alive, subscribing).await {
            // Who may only publish is no worse for it.
            Ok(Err(fault @ LinkFault::NotPermitted { .. })) => listener.say(&format!("warning: {fault}")),
            Ok(other) => {
                other?;
            }
            Err(_) => return Err(LinkFault::Broken("the platform does not answer SUBSCRIBE".into()).into()),
        }
        Ok(link)
    }

    async fn session(
        &mut self,
        beside: &mut Beside<'_>,
        backoff: &mut Backoff,
        listener: &mut dyn Listener,
    ) -> Result<Ended, EnrolFault> {
        let stop = beside.stop;
        let mut link = tokio::select! {
            entered = self.enter(listener) => entered?,
            () = stop.notified() => return Ok(Ended::Stopped),
        };
        let sound_at = tokio::time::Instant::now() + SOUND_AFTER;
        self.status.fault = None;
        self.status.retry_at = None;
        self.renewed_in_vain = false;
        self.tell(State::Connected, listener);
        loop {
            let delivered = self.status.delivered;
            let goes_on = self.deliver(&mut link, stop, listener).await?;
            if self.status.delivered > delivered || tokio::time::Instant::now() > sound_at {
                backoff.reset();
            }
            if !goes_on {
                let _ = tokio::time::timeout(GOODBYE, link.disconnect()).await;
                return Ok(Ended::Stopped);
            }
            let waits = !self.outbox.locked().is_empty();
            let ended = tokio::select! {
                message = link.next() => {
                    hand_on(&message?, listener)?;
                    continue;
                }
                () = self.outbox.more.notified() => continue,
                // What could not be read a moment ago.
                () = tokio::time::sleep(LOOK_AGAIN), if waits => continue,
                Some((news, text)) = beside.heard.recv() => {
                    listener.say(&text);
                    match news {
                        News::Renewed => self.status.renewal_fault = None,
                        News::NotRenewed => self.status.renewal_fault = Some(text),
                        News::Other => {}
                    }
                    self.show();
                    continue;
                }
                () = renewed(&mut beside.keeper) => Ended::Renewed,
                () = stop.notified() => Ended::Stopped,
            };
            // What came in the last moment.
            while let Some(message) = link.taken().await? {
                hand_on(&message, listener)?;
            }
            let _ = tokio::time::timeout(GOODBYE, link.disconnect()).await;
            return Ok(ended);
        }
    }

    /// Delivers all that waits, one after the other, and hands on what comes meanwhile. Whether it is to go on: not, if it was
    /// stopped.
    async fn deliver(
        &mut self,
        link: &mut Link,
        stop: &Notify,
        listener: &mut dyn Listener,
    ) -> Result<bool, EnrolFault> {
        loop {
            let oldest = self.outbox.locked().front();
            let queued = match oldest {
                Ok(Some(queued)) => queued,
                Ok(None) => return Ok(true),
                Err(e) => {
                    listener.say(&format!("warning: {e}"));
                    return Ok(true);
                }
            };
            let publishing = link.publish(&queued.topic, &queued.payload, QoS::AtLeastOnce);
            let answered = tokio::select! {
                answered = tokio::time::timeout(self.options.keep_alive, publishing) => answered,
                () = stop.notified() => return Ok(false),
            };
            let done = match answered {
                Ok(Ok(())) => {
                    self.status.delivered += 1;
                    self.outbox.locked().done(queued.number)
                }
                // It would stand before all others for ever.
                Ok(Err(fault @ (LinkFault::NotPermitted { .. } | LinkFault::TooLarge { .. }))) => {
                    listener.say(&format!(
                        "warning: a message is laid aside in queue/refused: {fault}"
                    ));
                    self.set_aside(queued.number)
                }
                // MQTT 3.1.1 has no other word for no.
                Ok(Err(fault @ LinkFault::Ended { .. })) if self.is_closed_on(queued.number) => {
                    listener.say(&format!(
                        "warning: a message is laid aside in queue/refused, for each of {CLOSED_ON_MAX} sessions was closed on it: {fault}"
                    ));
                    self.set_aside(queued.number)
                        .map_err(|e| EnrolFault::Link(LinkFault::Broken(e.to_string())))?;
                    return Err(fault.into());
                }
                Ok(Err(fault)) => return Err(fault.into()),
                Err(_) => {
                    return Err(LinkFault::Broken(format!(
                        "a message was not acknowledged within {} s",
                        self.options.keep_alive.as_secs()
                    ))
                    .into());
                }
            };
            self.show();
            listener.counted(&self.status);
            if let Err(e) = done {
                listener.say(&format!("warning: {e}"));
                return Ok(true);
            }
            while let Some(message) = link.taken().await? {
                hand_on(&message, listener)?;
            }
        }
    }

    fn set_aside(&mut self, number: u64) -> Result<(), QueueFault> {
        self.outbox.locked().set_aside(number)?;
        self.status.refused += 1;
        Ok(())
    }

    /// Counts a session that the platform closed on a message; whether it was one too many.
    fn is_closed_on(&mut self, number: u64) -> bool {
        let (last, count) = self.closed_on;
        self.closed_on = (number, if last == number { count + 1 } else { 1 });
        self.closed_on.1 >= CLOSED_ON_MAX
    }

    /// Shows the status to who asks.
    fn show(&mut self) {
        self.status.waiting = self.outbox.locked().len() as u64;
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = self.status.clone();
    }

    /// Shows the status, tells it, and writes it down.
    fn tell(&mut self, state: State, listener: &mut dyn Listener) {
        let now = self.clock.now();
        if self.status.state != state {
            self.status.state = state;
            self.status.since = now;
        }
        if let Ok(identity) = self.folder.load() {
            self.clock = identity.clock;
            self.status.certificate.clone_from(&identity.facts.serial);
            self.status.certificate_until = identity.facts.not_after;
            let renews = self.window.filter(|_| identity.profile.enrol_port.is_some());
            self.status.renewal_at = renews.map(|window| window.due(&identity.facts));
            self.status.key = identity.key.place();
        }
        self.show();
        listener.status(&self.status);
        // For who asks when no service runs any more. Not synced, and not with every message: a flash has only so many
        // writes.
        let path = self.path.join(STATUS);
        let new = self.path.join(".status.json.new");
        let text = serde_json::to_vec_pretty(&self.status).unwrap_or_default();
        if let Err(e) = fs::write(&new, text).and_then(|()| fs::rename(&new, &path)) {
            listener.say(&format!("warning: cannot write {}: {e}", path.display()));
        }
    }
}

async fn renewed(keeper: &mut Option<Keeper>) {
    match keeper {
        Some(keeper) => keeper.renewed().await,
        None => std::future::pending().await,
    }
}

fn hand_on(message: &Message, listener: &mut dyn Listener) -> Result<(), EnrolFault> {
    listener
        .message(message)
        .map_err(|e| EnrolFault::Usage(format!("a message cannot be handed on: {e}")))
}
