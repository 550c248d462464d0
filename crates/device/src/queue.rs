//! Messages that wait for the platform: on disk before they are taken, in order, and gone only when the platform has
//! acknowledged them. What is there when the power is cut is there afterwards; a message may be delivered twice, and is never
//! lost (QoS 1 from end to end).
//!
//! One file per message, named by its place in the order: topic, a zero octet (no topic has one, MQTT-1.5.4-2), payload.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::disk::{self, Disk, RealDisk, is_full, replace};
use crate::fault::NOT_TAKEN;

/// The largest message, topic and all: what a platform takes as it is set up by default (256 KiB a packet), less what MQTT adds.
pub const MESSAGE_MAX: u64 = (256 << 10) - 64;
/// Messages that the platform would not have are kept, the newest of them.
const ASIDE_MAX: usize = 100;
/// Where.
const ASIDE: &str = "refused";

/// How much may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueBounds {
    /// The most messages. Default 10,000.
    pub messages: usize,
    /// The most bytes of topics and payloads. Default 8 MiB.
    pub bytes: u64,
}

impl Default for QueueBounds {
    fn default() -> Self {
        Self {
            messages: 10_000,
            bytes: 8 << 20,
        }
    }
}

/// Why a message was not taken. Nothing that waited before is lost.
#[derive(Debug, thiserror::Error)]
pub enum QueueFault {
    /// No room.
    #[error(
        "{messages} messages with {bytes} bytes wait, and no more may; hint: the platform is away, see countersign-agent status; keep the message, or raise --queue-messages and --queue-bytes"
    )]
    Full {
        /// Messages that wait.
        messages: usize,
        /// Their bytes.
        bytes: u64,
    },
    /// It would never be taken by the platform.
    #[error("the message has {bytes} bytes with its topic, and {MESSAGE_MAX} may be; hint: send it in parts")]
    TooLarge {
        /// Its bytes.
        bytes: u64,
    },
    /// The topic is none.
    #[error("{0:?} is no topic to publish to: {1}")]
    Topic(String, String),
    /// The disk.
    #[error("cannot keep messages in {}: {}; hint: {}; those that wait are safe", path.display(), disk::what(source), disk::cure(source))]
    Disk {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
}

impl QueueFault {
    /// The exit code of the agent: 2 for a topic that is none, else 13, not taken.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Topic(..) => 2,
            Self::Full { .. } | Self::TooLarge { .. } | Self::Disk { .. } => NOT_TAKEN,
        }
    }
}

/// One that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Waiting {
    number: u64,
    bytes: u64,
}

/// What is to become of a message that waits no more, and whose file could not be moved or removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Removed,
    Aside,
}

/// A message of the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queued {
    /// Its place in the order.
    pub number: u64,
    /// The topic.
    pub topic: String,
    /// The payload.
    pub payload: Vec<u8>,
}

/// The messages that wait, the oldest first.
pub struct Queue {
    folder: PathBuf,
    bounds: QueueBounds,
    disk: Box<dyn Disk>,
    waiting: std::collections::VecDeque<Waiting>,
    /// They wait no more, but the disk would not let go of them; looked after by [`Queue::tidy`]. They count for the bounds.
    left: Vec<(Waiting, Fate)>,
    next: u64,
    bytes: u64,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("folder", &self.folder)
            .field("waiting", &self.waiting.len())
            .finish_non_exhaustive()
    }
}

impl Queue {
    /// Opens the queue in a folder, which is made if there is none.
    ///
    /// # Errors
    /// [`QueueFault::Disk`].
    pub fn open(folder: &Path, bounds: QueueBounds) -> Result<Self, QueueFault> {
        Self::open_on(Box::new(RealDisk), folder, bounds)
    }

    fn open_on(disk: Box<dyn Disk>, folder: &Path, bounds: QueueBounds) -> Result<Self, QueueFault> {
        let failed = |source| QueueFault::Disk {
            path: folder.to_owned(),
            source,
        };
        let entries = match disk.make_folder(folder) {
            Ok(()) => Some(fs::read_dir(folder).map_err(failed)?),
            // Nothing waits; the folder is made when there is room for a message.
            Err(e) if is_full(&e) => None,
            Err(e) => return Err(failed(e)),
        };
        let mut waiting = Vec::new();
        for entry in entries.into_iter().flatten() {
            let entry = entry.map_err(failed)?;
            if entry.file_name() == ASIDE {
                continue;
            }
            let Some(number) = entry.file_name().to_str().and_then(number_of) else {
                // Half written when the power was cut: it was never taken.
                let _ = disk.remove(&entry.path());
                continue;
            };
            let bytes = entry.metadata().map_err(failed)?.len();
            waiting.push(Waiting { number, bytes });
        }
        waiting.sort_unstable_by_key(|w| w.number);
        Ok(Self {
            folder: folder.to_owned(),
            bounds,
            disk,
            next: waiting.last().map_or(0, |w| w.number + 1),
            bytes: waiting.iter().map(|w| w.bytes).sum(),
            waiting: waiting.into(),
            left: Vec::new(),
        })
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Their bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes a message: it is on disk when this returns. How many wait then.
    ///
    /// # Errors
    /// [`QueueFault`]: then it was not taken.
    pub fn push(&mut self, topic: &str, payload: &[u8]) -> Result<usize, QueueFault> {
        countersign_mqtt::topic::TopicName::new(topic)
            .map_err(|e| QueueFault::Topic(topic.to_owned(), e.to_string()))?;
        let bytes = (topic.len() + 1 + payload.len()) as u64;
        if bytes > MESSAGE_MAX {
            return Err(QueueFault::TooLarge { bytes });
        }
        let messages = self.waiting.len() + self.left.len();
        if messages >= self.bounds.messages || self.bytes + bytes > self.bounds.bytes {
            return Err(QueueFault::Full {
                messages: self.waiting.len(),
                bytes: self.bytes,
            });
        }
        let number = self.next;
        let path = self.path(number);
        let content = [topic.as_bytes(), &[0], payload].concat();
        let kept = self
            .disk
            .make_folder(&self.folder)
            .and_then(|()| replace(&*self.disk, &path, &content));
        if let Err(source) = kept {
            // In place, and perhaps not durably so: who is told that it was not taken hands it in again.
            let _ = self.disk.remove(&path);
            return Err(QueueFault::Disk { path, source });
        }
        self.next += 1;
        self.bytes += bytes;
        self.waiting.push_back(Waiting { number, bytes });
        Ok(self.waiting.len())
    }

    /// The oldest message that waits.
    ///
    /// # Errors
    /// [`QueueFault::Disk`].
    pub fn front(&mut self) -> Result<Option<Queued>, QueueFault> {
        while let Some(oldest) = self.waiting.front().copied() {
            let path = self.path(oldest.number);
            let content = match fs::read(&path) {
                Ok(content) => content,
                // Somebody took it away.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    self.waiting.pop_front();
                    self.forget(oldest);
                    continue;
                }
                Err(source) => return Err(QueueFault::Disk { path, source }),
            };
            let topic_end = content.iter().position(|b| *b == 0);
            let topic = topic_end.and_then(|end| std::str::from_utf8(&content[..end]).ok());
            if let (Some(end), Some(topic)) = (topic_end, topic) {
                return Ok(Some(Queued {
                    number: oldest.number,
                    topic: topic.to_owned(),
                    payload: content[end + 1..].to_vec(),
                }));
            }
            // Nobody of ours wrote it.
            self.done(oldest.number)?;
        }
        Ok(None)
    }

    /// The platform has it: it is removed. A cut right now may bring it back, and it is delivered a second time.
    ///
    /// # Errors
    /// [`QueueFault::Disk`]: it waits no more all the same, and [`Queue::tidy`] tries again to remove its file.
    pub fn done(&mut self, number: u64) -> Result<(), QueueFault> {
        self.ends(number, Fate::Removed)
    }

    /// The platform will not have it: it is laid aside, in the folder `refused` beside the others, for somebody to look at.
    ///
    /// # Errors
    /// [`QueueFault::Disk`]: it stands in nobody's way all the same, and [`Queue::tidy`] tries again to lay it aside.
    pub fn set_aside(&mut self, number: u64) -> Result<(), QueueFault> {
        self.ends(number, Fate::Aside)
    }

    /// Moves and removes what the disk would not let go of before.
    ///
    /// # Errors
    /// [`QueueFault::Disk`] of the first that it still keeps.
    pub fn tidy(&mut self) -> Result<(), QueueFault> {
        while let Some((message, fate)) = self.left.first().copied() {
            self.put_away(message, fate)?;
            self.left.remove(0);
            self.forget(message);
        }
        Ok(())
    }

    fn ends(&mut self, number: u64, fate: Fate) -> Result<(), QueueFault> {
        let Some(message) = self.waiting.pop_front_if(|w| w.number == number) else {
            return Ok(());
        };
        let put_away = self.put_away(message, fate);
        match put_away {
            Ok(()) => self.forget(message),
            // It would be delivered again and again.
            Err(_) => self.left.push((message, fate)),
        }
        put_away
    }

    fn put_away(&self, message: Waiting, fate: Fate) -> Result<(), QueueFault> {
        let path = self.path(message.number);
        let failed = |path: &Path, source| QueueFault::Disk {
            path: path.to_owned(),
            source,
        };
        if fate == Fate::Removed {
            return match self.disk.remove(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(&path, e)),
                _ => Ok(()),
            };
        }
        let aside = self.folder.join(ASIDE);
        let failed = |source| failed(&aside, source);
        self.disk.make_folder(&aside).map_err(failed)?;
        let mut kept: Vec<PathBuf> = fs::read_dir(&aside)
            .map_err(failed)?
            .filter_map(|e| Some(e.ok()?.path()))
            .collect();
        kept.sort();
        while kept.len() >= ASIDE_MAX {
            let oldest = kept.remove(0);
            self.disk.remove(&oldest).map_err(failed)?;
        }
        let name = path.file_name().unwrap_or_default();
        match self.disk.rename(&path, &aside.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(e)),
            _ => Ok(()),
        }
    }

    /// It takes no room any more.
    fn forget(&mut self, message: Waiting) {
        self.bytes = self.bytes.saturating_sub(message.bytes);
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{number:016x}"))
    }
}

fn number_of(name: &str) -> Option<u64> {
    (name.len() == 16)
        .then(|| u64::from_str_radix(name, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::disk::CutDisk;

    const TOPIC: &str = "devices/d1/telemetry";

    fn payloads(queue: &mut Queue) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(queued) = queue.front().unwrap() {
            assert_eq!(queued.topic, TOPIC);
            all.push(queued.payload);
            queue.done(queued.number).unwrap();
        }
        all
    }

    #[test]
    fn messages_come_out_in_order_also_after_opening_again() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("queue");
        let mut queue = Queue::open(&folder, QueueBounds::default()).unwrap();
        for n in 0..20u8 {
            assert_eq!(queue.push(TOPIC, &[n, 0, 7]).unwrap(), usize::from(n) + 1);
        }
        let first = queue.front().unwrap().unwrap();
        queue.done(first.number).unwrap();
        let mut queue = Queue::open(&folder, QueueBounds::default()).unwrap();
        assert_eq!(queue.len(), 19);
        queue.push(TOPIC, b"last").unwrap();
        let mut expected: Vec<Vec<u8>> = (1..20u8).map(|n| vec![n, 0, 7]).collect();
        expected.push(b"last".to_vec());
        assert_eq!(payloads(&mut queue), expected);
        assert_eq!((queue.len(), queue.bytes()), (0, 0));
    }

    #[test]
    fn what_does_not_fit_is_refused_and_what_waits_stays() {
        let place = tempfile::tempdir().unwrap();
        let bounds = QueueBounds {
            messages: 3,
            bytes: 90,
        };
        let mut queue = Queue::open(place.path(), bounds).unwrap();
        queue.push(TOPIC, b"1").unwrap();
        assert!(matches!(
            queue.push(TOPIC, &[0; 60]),
            Err(QueueFault::Full { messages: 1, .. })
        ));
        queue.push(TOPIC, b"2").unwrap();
        queue.push(TOPIC, b"3").unwrap();
        let full = queue.push(TOPIC, b"4").unwrap_err().to_string();
        assert!(full.contains("hint: "), "{full}");
        let bounds = QueueBounds {
            messages: 9,
            bytes: 1 << 30,
        };
        let other = tempfile::tempdir().unwrap();
        let mut wide = Queue::open(other.path(), bounds).unwrap();
        let large = vec![0; MESSAGE_MAX as usize];
        assert!(matches!(
            wide.push(TOPIC, &large),
            Err(QueueFault::TooLarge { .. })
        ));
        for wrong in ["", "a/+/b", "a/#"] {
            assert!(
                matches!(queue.push(wrong, b"5"), Err(QueueFault::Topic(..))),
                "{wrong:?}"
            );
        }
        assert_eq!(payloads(&mut queue), [b"1", b"2", b"3"]);
    }

    #[test]
    fn what_the_platform_will_not_have_is_laid_aside_and_the_next_one_comes() {
        let place = tempfile::tempdir().unwrap();
        let mut queue = Queue::open(place.path(), QueueBounds::default()).unwrap();
        for n in 0..=ASIDE_MAX {
            queue.push(TOPIC, format!("{n}").as_bytes()).unwrap();
        }
        for _ in 0..=ASIDE_MAX {
            let front = queue.front().unwrap().unwrap().number;
            queue.set_aside(front).unwrap();
        }
        queue.push(TOPIC, b"good").unwrap();
        // What lies aside does not come back, and has a bound: the oldest went.
        let mut queue = Queue::open(place.path(), QueueBounds::default()).unwrap();
        assert_eq!(payloads(&mut queue), [b"good"]);
        let aside = fs::read_dir(place.path().join(ASIDE)).unwrap();
        let kept: Vec<Vec<u8>> = aside.map(|e| fs::read(e.unwrap().path()).unwrap()).collect();
        assert_eq!(kept.len(), ASIDE_MAX);
        assert!(!kept.iter().any(|k| k.ends_with(b"\x000")));
    }

    /// Whatever was taken is there after a cut between any two steps, unless it was delivered; nothing else is.
    #[test]
    fn the_power_may_be_cut_between_any_two_steps() {
        let mut cuts = 0;
        loop {
            let place = tempfile::tempdir().unwrap();
            let cut = Arc::new(CutDisk::after(cuts));
            let (mut taken, mut delivered) = (Vec::new(), Vec::new());
            let run = (|| -> Result<(), QueueFault> {
                let disk = Box::new(cut.clone());
                let mut queue = Queue::open_on(disk, place.path(), QueueBounds::default())?;
                for n in 0..5u8 {
                    queue.push(TOPIC, &[n])?;
                    taken.push(vec![n]);
                    if n % 2 == 1 {
                        let oldest = queue.front()?.unwrap();
                        delivered.push(oldest.payload);
                        queue.done(oldest.number)?;
                    }
                }
                Ok(())
            })();
            let mut after = Queue::open(place.path(), QueueBounds::default()).unwrap();
            let there = payloads(&mut after);
            for payload in &taken {
                assert!(
                    there.contains(payload) || delivered.contains(payload),
                    "{payload:?} after {cuts}"
                );
            }
            let known = |p: &Vec<u8>| p.len() == 1 && p[0] < 5;
            assert!(there.iter().all(known), "{there:?} after {cuts}");
            if run.is_ok() {
                break;
            }
            cuts += 1;
        }
        assert!(cuts > 20, "{cuts}");
    }

    /// A disk that is full at any write: who hands in is told, what waits comes out, once, and there is room again afterwards.
    #[test]
    fn the_disk_may_be_full_at_any_write() {
        let mut room = 0;
        loop {
            let place = tempfile::tempdir().unwrap();
            let folder = place.path().join("queue");
            let full = Arc::new(CutDisk::full_after(room));
            let mut queue = Queue::open_on(Box::new(full.clone()), &folder, QueueBounds::default()).unwrap();
            let (mut taken, mut delivered, mut aside) = (Vec::new(), Vec::new(), Vec::new());
            let mut faults = 0;
            let mut told = |done: Result<(), QueueFault>| {
                if let Err(fault) = done {
                    let text = fault.to_string();
                    assert!(
                        text.contains("disk full") && text.contains("hint: make room"),
                        "{text}"
                    );
                    faults += 1;
                }
            };
            for n in 0..6u8 {
                match queue.push(TOPIC, &[n]) {
                    Ok(_) => taken.push(vec![n]),
                    Err(fault) => told(Err(fault)),
                }
                if n % 2 == 1
                    && let Some(oldest) = queue.front().unwrap()
                {
                    if n == 3 {
                        aside.push(oldest.payload);
                        told(queue.set_aside(oldest.number));
                    } else {
                        delivered.push(oldest.payload);
                        told(queue.done(oldest.number));
                    }
                }
            }
            // Half a file would take the room that is missing.
            for entry in fs::read_dir(&folder).into_iter().flatten() {
                let name = entry.unwrap().file_name();
                assert!(!name.to_string_lossy().ends_with(".new"), "{name:?} after {room}");
            }
            full.make_room(usize::MAX);
            queue.tidy().unwrap();
            queue.push(TOPIC, b"after").unwrap();
            taken.push(b"after".to_vec());
            // What was taken, and nothing else, whoever reads it: it or the next start.
            let mut next = Queue::open(&folder, QueueBounds::default()).unwrap();
            assert_eq!(next.bytes(), queue.bytes(), "after {room}");
            taken.retain(|m| !delivered.contains(m) && !aside.contains(m));
            assert_eq!(payloads(&mut next), taken, "after {room}");
            let laid = fs::read_dir(folder.join(ASIDE)).map_or(0, Iterator::count);
            assert_eq!(laid, aside.len(), "after {room}");
            if faults == 0 {
                break;
            }
            room += 1;
        }
        assert!(room > 20, "{room}");
    }
}
