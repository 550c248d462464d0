//! The device's link as a service: connected for as long as it may be, telemetry kept on disk until the platform has it,
//! certificates renewed, and its condition told with the cure.
//!
//! 1. [`Outbox`]: takes messages at any time, also while the platform is away
//! 2. [`Service::run`]: connect, deliver, listen; after a fault wait, each time longer and at random, and begin anew
//! 3. [`Status`]: what `countersign-agent status` shows

mod outbox;
mod status;

pub use outbox::Outbox;
pub use status::{State, Status, StatusFault};

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_identity::DeviceId;
use countersign_mqtt::QoS;
use tokio::sync::Notify;

use crate::aside::Aside;
use crate::backoff::Backoff;
use crate::clock::DeviceClock;
use crate::fault::{EnrolFault, LinkFault};
use crate::folder::{IdentityFolder, KeyReuse};
use crate::identity::{DeviceIdentity, IdentityFault};
use crate::link::{Link, LinkOptions, Message};
use crate::queue::{Queue, QueueBounds, QueueFault};
use crate::renewal::{self, Admitted, Keeper, News, RenewalWindow, needs_renewal};

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
/// The longest that connecting may take, by the next certificate and by the last. Only a key that does not answer takes longer.
const ENTER_PATIENCE: Duration = Duration::from_secs(30);
/// The longest that a session waits until a certificate is put in use: an old key is destroyed then.
const KEEP_PATIENCE: Duration = Duration::from_secs(5);
/// How often a disk that failed is tried again.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

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
    aside: Aside,
    outbox: Outbox,
    clock: DeviceClock,
    status: Status,
    /// The same, for whoever asks meanwhile.
    shown: Arc<Mutex<Status>>,
    /// The message that sessions were closed on without a word, and how many were.
    closed_on: (u64, u32),
    /// The identity that was admitted, while the folder could not be told so.
    unkept: Option<DeviceIdentity>,
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
        let queue = Queue::open(&path.join(QUEUE), bounds).map_err(|e| match e {
            QueueFault::Disk { path, source } => IdentityFault::Unwritable { path, source }.into(),
            other => EnrolFault::Usage(other.to_string()),
        })?;
        let now = identity.clock.now();
        let status = Status {
            device: identity.profile.id.clone(),
            platform: format!("{}:{}", identity.profile.host, identity.profile.port),
            state: State::Connecting,
            since: now,
            retry_at: None,
            fault: None,
            disk_fault: None,
            renewal_fault: None,
            certificate: String::new(),
            certificate_until: now,
            renewal_at: None,
            key: String::new(),
            waiting: 0,
            delivered: 0,
            refused: 0,
        };
        let shown = Arc::new(Mutex::new(status.clone()));
        Ok(Self {
            outbox: Outbox {
                queue: Arc::new(Mutex::new(queue)),
                more: Arc::default(),
                shown: shown.clone(),
                clock: identity.clock,
            },
            shown,
            closed_on: (0, 0),
            unkept: None,
            renewed_in_vain: false,
            status,
            clock: identity.clock,
            path: path.to_owned(),
            folder,
            options,
            window,
            reuse: KeyReuse::New,
            aside: Aside::new(),
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
                let renewed = tokio::select! {
                    renewed = renewal::renew_aside(&self.aside, &self.path, self.reuse) => renewed,
                    () = stop.notified() => break,
                };
                match renewed {
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
            if !self.wait(wait, &mut beside, listener).await {
                break;
            }
        }
        self.tell(State::Stopped, listener);
        Ok(())
    }

    /// Waits for so long, or until there is a new certificate to connect by. Whether it is to go on: not, if it was stopped.
    async fn wait(&mut self, wait: Duration, beside: &mut Beside<'_>, listener: &mut dyn Listener) -> bool {
        let end = tokio::time::Instant::now() + wait;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(end) => return true,
                () = renewed(&mut beside.keeper) => return true,
                Some((news, text)) = beside.heard.recv() => self.hear(news, text, listener),
                () = beside.stop.notified() => return false,
            }
        }
    }

    /// What the keeper of the certificate tells.
    fn hear(&mut self, news: News, text: String, listener: &mut dyn Listener) {
        listener.say(&text);
        match news {
            News::Renewed => self.status.renewal_fault = None,
            // Another way to a new one may have been faster than this word: the renewal lane.
            News::NotRenewed if !self.is_renewed() => self.status.renewal_fault = Some(text),
            News::NotRenewed | News::Other => {}
        }
        self.show();
    }

    /// Whether the certificate in use is not to be renewed yet.
    fn is_renewed(&self) -> bool {
        self.status.renewal_at.is_some_and(|at| at > self.clock.now())
    }

    /// Connects, and asks for commands.
    async fn enter(&mut self, listener: &mut dyn Listener) -> Result<Link, EnrolFault> {
        let (folder, options) = (IdentityFolder::new(&self.path), self.options.clone());
        let entering = move || async move {
            let said = Mutex::new(Vec::new());
            let say = |text: &str| {
                said.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(text.to_owned());
            };
            let admitted = renewal::admit(&folder, &options, &say).await;
            (admitted, said.into_inner().unwrap_or_default())
        };
        let patience = ENTER_PATIENCE.max(self.options.patience * 3);
        let (admitted, said) = self.aside.run(patience, entering).await?;
        for text in said {
            listener.say(&text);
        }
        let Admitted {
            mut link,
            identity,
            unkept,
        } = admitted?;
        let filter = format!("devices/{}/commands/#", identity.profile.id);
        self.unkept = None;
        if let Some(fault) = unkept {
            self.unkept = Some(identity);
            self.trouble(&fault, 3, listener);
        }
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
        let mut look_at = tokio::time::Instant::now() + LOOK_AGAIN;
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
            // What could not be read, written or removed a moment ago.
            let waits = !self.outbox.locked().is_empty() || self.is_in_trouble();
            let ended = tokio::select! {
                message = link.next() => {
                    hand_on(&message?, listener)?;
                    continue;
                }
                () = self.outbox.more.notified() => continue,
                () = tokio::time::sleep_until(look_at), if waits => {
                    look_at = tokio::time::Instant::now() + LOOK_AGAIN;
                    self.catch_up(listener).await;
                    continue;
                }
                Some((news, text)) = beside.heard.recv() => {
                    self.hear(news, text, listener);
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
                    if let Err(e) = self.set_aside(queued.number) {
                        self.trouble(&e, e.exit_code(), listener);
                    }
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
                self.trouble(&e, e.exit_code(), listener);
            }
            while let Some(message) = link.taken().await? {
                hand_on(&message, listener)?;
            }
        }
    }

    fn set_aside(&mut self, number: u64) -> Result<(), QueueFault> {
        self.status.refused += 1;
        self.outbox.locked().set_aside(number)
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
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        // The outbox may have written there what it could not keep.
        self.status.disk_fault.clone_from(&shown.disk_fault);
        *shown = self.status.clone();
    }

    /// Something could not be written: told once, shown for as long as it is so.
    fn trouble(&mut self, fault: &dyn std::fmt::Display, exit_code: u8, listener: &mut dyn Listener) {
        let text = fault.to_string();
        let told = StatusFault::of_text(text.clone(), exit_code, self.clock.now());
        let before = self.set_disk_fault(Some(told.clone()));
        if before.is_none_or(|before| before.what != told.what) {
            listener.say(&format!("warning: {text}"));
        }
    }

    fn set_disk_fault(&mut self, fault: Option<StatusFault>) -> Option<StatusFault> {
        self.status.disk_fault.clone_from(&fault);
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut shown.disk_fault, fault)
    }

    fn is_in_trouble(&self) -> bool {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.disk_fault.is_some()
    }

    /// Does what a disk that failed left undone.
    async fn catch_up(&mut self, listener: &mut dyn Listener) {
        if !self.is_in_trouble() {
            return;
        }
        if let Some(admitted) = self.unkept.take() {
            let folder = IdentityFolder::new(&self.path);
            let keeping = move || async move {
                let kept = renewal::keep_admitted(&folder, &admitted);
                (kept, admitted)
            };
            match self.aside.run(KEEP_PATIENCE, keeping).await {
                Ok((Ok(()), _)) => {}
                Ok((Err(fault), admitted)) => {
                    self.unkept = Some(admitted);
                    self.trouble(&fault, 3, listener);
                    return;
                }
                // It is done at the next connection, if it was not done by then.
                Err(fault) => {
                    self.trouble(&fault, 3, listener);
                    return;
                }
            }
        }
        self.look_up();
        self.show();
        self.settle(listener);
    }

    /// Writes the status down, for who asks when no service runs any more. Not synced, and not with every message: a flash
    /// has only so many writes.
    fn write_down(&self) -> Result<(), EnrolFault> {
        let path = self.path.join(STATUS);
        let new = self.path.join(".status.json.new");
        let text = serde_json::to_vec_pretty(&self.status).unwrap_or_default();
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|source| {
                // Half of it takes room that others need more.
                let _ = fs::remove_file(&new);
                IdentityFault::Unwritable { path, source }.into()
            })
    }

    /// Shows the status, tells it, and writes it down.
    fn tell(&mut self, state: State, listener: &mut dyn Listener) {
        let now = self.clock.now();
        if self.status.state != state {
            self.status.state = state;
            self.status.since = now;
        }
        self.look_up();
        self.show();
        listener.status(&self.status);
        self.settle(listener);
    }

    /// What the folder says of the identity.
    fn look_up(&mut self) {
        if let Ok(identity) = self.folder.load() {
            self.clock = identity.clock;
            self.status.certificate.clone_from(&identity.facts.serial);
            self.status.certificate_until = identity.facts.not_after;
            let renews = self.window.filter(|_| identity.profile.enrol_port.is_some());
            self.status.renewal_at = renews.map(|window| window.due(&identity.facts));
            self.status.key = identity.key.place();
            if self.is_renewed() {
                self.status.renewal_fault = None;
            }
        }
    }

    /// Writes the status down; and if everything can be written again, there is no trouble any more.
    fn settle(&mut self, listener: &mut dyn Listener) {
        if let Err(fault) = self.write_down() {
            self.trouble(&fault, fault.exit_code(), listener);
            return;
        }
        if !self.is_in_trouble() || self.unkept.is_some() {
            return;
        }
        let tidied = self.outbox.locked().tidy();
        match tidied {
            Ok(()) => {
                self.set_disk_fault(None);
                listener.say("the disk takes writes again");
                // The one on disk still says otherwise.
                let _ = self.write_down();
            }
            Err(fault) => self.trouble(&fault, fault.exit_code(), listener),
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
