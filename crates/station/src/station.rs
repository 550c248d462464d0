//! What an operator does with a station.
//!
//! ```text
//! new ──init──▶ requested ──install──▶ granted ──close──▶ closed (the key is destroyed)
//! device:  issued ──▶ written ──▶ confirmed
//! ```
//!
//! Time is an argument. Whatever is handed out is in the journal first, and the journal on the disk.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign_authority::IssuingAuthority;
use countersign_factory::request::pem;
use countersign_factory::station::account::signature_algorithm;
use countersign_factory::station::challenge::{self, Proof};
use countersign_factory::station::{Event, GrantFile, Record, StationFault};
use countersign_factory::{CertificateRequest, ProvenKey, SoftwareKey};
use countersign_identity::signed::{Signer, key_of};
use countersign_identity::{CertificateFacts, DeviceId, Fingerprint, Timestamp};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::Serialize;

use crate::book::{Book, JournalKey};
use crate::disk::Disk;
use crate::fault::Fault;

/// The station's private key, PKCS#8.
pub const KEY: &str = "station.key";
/// Its request, for the operator.
pub const REQUEST: &str = "station.csr";
/// The grant, byte for byte.
pub const GRANT: &str = "grant.json";

/// How far the clock may go back, as clocks do that are being set: then the newest recorded time counts.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(2);

/// How far one identity has come.
#[derive(Debug, Clone)]
struct Made {
    certificate: Vec<u8>,
    fingerprint: Fingerprint,
    key: Fingerprint,
    written: bool,
    confirmed: bool,
}

struct Granted {
    file: GrantFile,
    hash: Fingerprint,
    station: CertificateDer<'static>,
    facts: CertificateFacts,
    factory: CertificateDer<'static>,
    journal_key: JournalKey,
}

/// A station in one folder.
pub struct Station<D: Disk> {
    disk: D,
    key: Option<SoftwareKey>,
    granted: Option<Granted>,
    authority: Option<IssuingAuthority>,
    book: Option<Book>,
    made: HashMap<DeviceId, Made>,
    order: Vec<DeviceId>,
    keys: HashMap<Fingerprint, DeviceId>,
    serials: HashSet<String>,
    closed: bool,
}

impl<D: Disk> std::fmt::Debug for Station<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Station")
            .field("book", &self.book)
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

/// A certificate that may be written to its device: it is in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Handed {
    /// The device.
    pub device: DeviceId,
    /// Its certificate, then the station's, PEM.
    pub certificate: String,
    /// What the device pins, PEM.
    pub platform_root: String,
    /// Where it connects.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The certificate's serial number, hex.
    pub serial: String,
    /// The certificate's fingerprint.
    pub fingerprint: Fingerprint,
    /// The end of its validity.
    pub not_after: Timestamp,
    /// Whether it had been issued before: nothing new was signed.
    pub repeated: bool,
}

/// How a station stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// `requested`, `granted` or `closed`.
    pub state: &'static str,
    /// What was granted.
    #[serde(flatten)]
    pub grant: Option<StandingGrant>,
    /// How many certificates were issued.
    pub issued: u64,
    /// How many of them were written to their device, or confirmed.
    pub written: u64,
    /// How many devices proved their key.
    pub confirmed: u64,
    /// The devices that did not.
    pub unconfirmed: Vec<DeviceId>,
    /// How many records the journal has.
    pub records: u64,
    /// SHA-256 of its last line.
    pub head: Option<Fingerprint>,
    /// The newest time in it.
    pub newest: Option<Timestamp>,
    /// Bytes of a torn record that were dropped when it was opened.
    pub dropped: usize,
}

/// What was granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StandingGrant {
    /// The station's id.
    pub station: String,
    /// The batch.
    pub batch: String,
    /// The ids it may give.
    pub ids: String,
    /// How many certificates it may issue.
    pub quota: u64,
    /// The first moment in which it may issue.
    pub from: Timestamp,
    /// The last one.
    pub to: Timestamp,
    /// Whether it may issue now.
    pub window: &'static str,
    /// SHA-256 of the grant file.
    pub grant: Fingerprint,
}

fn read_key(disk: &dyn Disk) -> Result<Option<SoftwareKey>, Fault> {
    let Some(bytes) = disk.read(KEY).map_err(Fault::storage("read", KEY))? else {
        return Ok(None);
    };
    let bytes = zeroize::Zeroizing::new(bytes);
    let key = PrivatePkcs8KeyDer::from_pem_slice(&bytes)
        .map_err(|_| Fault::Failed(format!("{KEY} is damaged; hint: begin again in another folder")))?;
    Ok(Some(SoftwareKey::from_pkcs8(key.secret_pkcs8_der())?))
}

fn read_grant(bytes: &[u8]) -> Result<Granted, Fault> {
    let (file, hash) = GrantFile::parse(bytes).map_err(Fault::Grant)?;
    let chain = CertificateDer::pem_slice_iter(file.chain.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| Fault::Grant(format!("its certificates are no PEM: {e}")))?;
    let [station, factory, ..] = chain.as_slice() else {
        return Err(Fault::Grant("it lacks a certificate".into()));
    };
    let wrong = |e: &dyn std::fmt::Display| Fault::Grant(e.to_string());
    let facts = CertificateFacts::parse(station).map_err(|e| wrong(&e))?;
    if facts.not_after < file.terms.not_after() {
        return Err(Fault::Grant(
            "the station's certificate ends before those that it may issue".into(),
        ));
    }
    Ok(Granted {
        journal_key: JournalKey {
            key: key_of(station).map_err(|e| wrong(&e))?,
            algorithm: signature_algorithm(&facts),
        },
        hash,
        station: station.clone(),
        facts,
        factory: factory.clone(),
        file,
    })
}

/// Makes the station's key and its request, PEM. Safe to repeat: the key stays the same.
///
/// # Errors
/// [`Fault::Closed`] if the folder holds a grant that was closed.
pub fn init(disk: &mut dyn Disk, name: &str) -> Result<String, Fault> {
    let key = match read_key(disk)? {
        Some(key) => key,
        None => {
            if disk.read(GRANT).map_err(Fault::storage("read", GRANT))?.is_some() {
                return Err(Fault::Closed);
            }
            let key = SoftwareKey::generate()?;
            disk.replace(KEY, key.to_pem().as_bytes())
                .map_err(Fault::storage("write", KEY))?;
            key
        }
    };
    let name: String = name.chars().take(64).collect();
    let request = CertificateRequest::with_name(&key, &name)?;
    disk.replace(REQUEST, request.as_bytes())
        .map_err(Fault::storage("write", REQUEST))?;
    Ok(request)
}

impl<D: Disk> Station<D> {
    /// Opens a station after whatever happened: a torn record is dropped, an interrupted close is finished.
    ///
    /// # Errors
    /// [`Fault::NoStation`]; [`Fault::Journal`] if the journal is damaged.
    pub fn open(mut disk: D) -> Result<Self, Fault> {
        let grant = disk.read(GRANT).map_err(Fault::storage("read", GRANT))?;
        let granted = grant.as_deref().map(read_grant).transpose()?;
        let book = match &granted {
            Some(granted) => Book::open(&mut disk, &granted.journal_key)?,
            None => None,
        };
        let records = book.as_ref().map(|b| b.records().to_vec()).unwrap_or_default();
        let is_closed = records
            .last()
            .is_some_and(|r| matches!(r.event, Event::Close { .. }));
        // Of a closed one the key may be half destroyed.
        let key = if is_closed { None } else { read_key(&disk)? };
        if key.is_none() && book.is_none() {
            return Err(Fault::NoStation("this folder".into()));
        }
        let authority = match (&key, &granted) {
            (Some(key), Some(granted)) => Some(authority(key, granted)?),
            _ => None,
        };
        let mut station = Self {
            disk,
            key,
            granted,
            authority,
            book,
            made: HashMap::new(),
            order: Vec::new(),
            keys: HashMap::new(),
            serials: HashSet::new(),
            closed: false,
        };
        for record in &records {
            station.remember(record)?;
        }
        if station.closed {
            station.destroy_key()?;
        }
        Ok(station)
    }

    fn remember(&mut self, record: &Record) -> Result<(), Fault> {
        match &record.event {
            Event::Issue { device, certificate } => {
                let certificate = STANDARD.decode(certificate).unwrap_or_default();
                let facts = CertificateFacts::parse(&certificate)
                    .map_err(|e| Fault::Failed(format!("record {}: {e}", record.number)))?;
                self.keys.insert(facts.public_key_sha256, device.clone());
                self.serials.insert(facts.serial);
                self.order.push(device.clone());
                let made = Made {
                    certificate,
                    fingerprint: facts.fingerprint,
                    key: facts.public_key_sha256,
                    written: false,
                    confirmed: false,
                };
                self.made.insert(device.clone(), made);
            }
            Event::Written { device, .. } => {
                if let Some(made) = self.made.get_mut(device) {
                    made.written = true;
                }
            }
            Event::Confirmed { device, .. } => {
                if let Some(made) = self.made.get_mut(device) {
                    made.written = true;
                    made.confirmed = true;
                }
            }
            Event::Close { .. } => self.closed = true,
            Event::Open { .. } | Event::Seal {} => {}
        }
        Ok(())
    }

    fn destroy_key(&mut self) -> Result<(), Fault> {
        self.authority = None;
        self.key = None;
        self.disk.destroy(KEY).map_err(Fault::storage("destroy", KEY))
    }

    /// Takes the grant file. Safe to repeat.
    ///
    /// # Errors
    /// [`Fault::Grant`] if it is not for this station; [`Fault::OtherGrant`] if there is one already;
    /// [`StationFault::Window`] if its window is over.
    pub fn install(&mut self, bytes: &[u8], now: Timestamp) -> Result<(), Fault> {
        if self.closed {
            return Err(Fault::Closed);
        }
        let Some(key) = &self.key else {
            return Err(Fault::NoStation("this folder".into()));
        };
        let granted = read_grant(bytes)?;
        let authority = authority(key, &granted)?;
        match &self.granted {
            Some(installed) if installed.hash != granted.hash => return Err(Fault::OtherGrant),
            Some(_) => {}
            None => {
                // A clock that is far ahead would be recorded, and nothing could be issued when it is set.
                let terms = &granted.file.terms;
                if now > terms.to {
                    return Err(StationFault::Window {
                        at: now,
                        from: terms.from,
                        to: terms.to,
                    }
                    .into());
                }
                self.disk
                    .replace(GRANT, bytes)
                    .map_err(Fault::storage("write", GRANT))?;
            }
        }
        if self.book.is_none() {
            self.book = Some(Book::create(&mut self.disk)?);
        }
        let open = Event::Open {
            station: granted.file.terms.station.clone(),
            grant: granted.hash,
            certificate: granted.facts.fingerprint,
        };
        self.granted = Some(granted);
        self.authority = Some(authority);
        if self.book.as_ref().is_some_and(|b| b.records().is_empty()) {
            self.append(now, open)?;
        }
        Ok(())
    }

    fn append(&mut self, now: Timestamp, event: Event) -> Result<(), Fault> {
        let (Some(book), Some(key)) = (&mut self.book, &self.key) else {
            return Err(Fault::NoGrant);
        };
        // A clock that went back a little does not make the journal go back in time.
        let at = now.max(book.head().at);
        let record = book.append(&mut self.disk, key, at, event)?.clone();
        self.remember(&record)
    }

    fn need_grant(&self) -> Result<&Granted, Fault> {
        if self.closed {
            return Err(Fault::Closed);
        }
        match (&self.granted, &self.book) {
            (Some(granted), Some(book)) if !book.records().is_empty() => Ok(granted),
            _ => Err(Fault::NoGrant),
        }
    }

    /// Issues a certificate for the key, or hands out again what was issued for it before. It is durable in the journal.
    ///
    /// # Errors
    /// [`Fault::Refused`] if the grant does not allow it; [`Fault::Storage`] if it cannot be recorded. Then nothing was
    /// issued.
    pub fn issue(&mut self, device: &DeviceId, key: &ProvenKey, now: Timestamp) -> Result<Handed, Fault> {
        let granted = self.need_grant()?;
        let fingerprint = key.fingerprint()?;
        if let Some(made) = self.made.get(device) {
            return if made.key == fingerprint {
                self.handed(device, true)
            } else {
                Err(StationFault::DuplicateId {
                    device: device.clone(),
                }
                .into())
            };
        }
        if let Some(other) = self.keys.get(&fingerprint) {
            return Err(StationFault::KeyOfOther {
                other: other.to_string(),
            }
            .into());
        }
        let newest = self.book.as_ref().map_or(now, |b| b.head().at);
        if now.plus(CLOCK_TOLERANCE) < newest {
            return Err(StationFault::ClockBehind { now, newest }.into());
        }
        let now = now.max(newest);
        let grant = granted
            .file
            .terms
            .permit(device.clone(), key.clone(), now, self.made.len() as u64)?;
        let authority = self.authority.as_ref().ok_or(Fault::NoGrant)?;
        let issued = authority
            .issue_device(&grant, now)
            .map_err(|e| Fault::Failed(e.to_string()))?;
        if self.serials.contains(&issued.facts().serial) {
            return Err(Fault::Failed(
                "the random source gave a serial number again; hint: do not use this machine".into(),
            ));
        }
        let event = Event::Issue {
            device: device.clone(),
            certificate: STANDARD.encode(issued.certificate()),
        };
        self.append(now, event)?;
        self.handed(device, false)
    }

    fn handed(&self, device: &DeviceId, repeated: bool) -> Result<Handed, Fault> {
        let granted = self.need_grant()?;
        let made = self.need(device)?;
        let facts = CertificateFacts::parse(&made.certificate).map_err(|e| Fault::Failed(e.to_string()))?;
        Ok(Handed {
            device: device.clone(),
            certificate: pem("CERTIFICATE", &made.certificate) + &pem("CERTIFICATE", &granted.station),
            platform_root: granted.file.platform_root.clone(),
            host: granted.file.host.clone(),
            port: granted.file.port,
            serial: facts.serial,
            fingerprint: facts.fingerprint,
            not_after: facts.not_after,
            repeated,
        })
    }

    fn need(&self, device: &DeviceId) -> Result<&Made, Fault> {
        self.made
            .get(device)
            .ok_or_else(|| Fault::NoDevice(device.clone()))
    }

    /// Records that the certificate was written to its device. Safe to repeat.
    ///
    /// # Errors
    /// [`Fault::NoDevice`].
    pub fn written(&mut self, device: &DeviceId, now: Timestamp) -> Result<(), Fault> {
        self.need_grant()?;
        let made = self.need(device)?;
        if made.written {
            return Ok(());
        }
        let event = Event::Written {
            device: device.clone(),
            fingerprint: made.fingerprint,
        };
        self.append(now, event)
    }

    /// A fresh text for the device to sign with its key, as it is.
    ///
    /// # Errors
    /// [`Fault::NoDevice`].
    pub fn challenge(&mut self, device: &DeviceId) -> Result<String, Fault> {
        self.need_grant()?;
        let mut nonce = [0; 32];
        SystemRandom::new()
            .fill(&mut nonce)
            .map_err(|_| Fault::Failed("the system's random source failed".into()))?;
        let text = challenge::text(device, &self.need(device)?.fingerprint, &hex::encode(nonce));
        let name = challenge_file(device);
        self.disk
            .replace(&name, text.as_bytes())
            .map_err(Fault::storage("write", name))?;
        Ok(text)
    }

    /// Records that the device proved to hold its key: `signature` is over the newest [`Station::challenge`]. Safe to
    /// repeat.
    ///
    /// # Errors
    /// [`Fault::NoChallenge`]; [`Fault::Unproven`].
    pub fn confirm(&mut self, device: &DeviceId, signature: &[u8], now: Timestamp) -> Result<(), Fault> {
        self.need_grant()?;
        let made = self.need(device)?;
        if made.confirmed {
            return Ok(());
        }
        let name = challenge_file(device);
        let text = self
            .disk
            .read(&name)
            .map_err(Fault::storage("read", &*name))?
            .and_then(|text| String::from_utf8(text).ok())
            .ok_or_else(|| Fault::NoChallenge(device.clone()))?;
        let proof = Proof {
            challenge: text,
            signature: STANDARD.encode(signature),
        };
        let key = key_of(&made.certificate).map_err(|e| Fault::Failed(e.to_string()))?;
        if !proof.holds(device, &made.fingerprint, &key) {
            return Err(Fault::Unproven(device.clone()));
        }
        let event = Event::Confirmed {
            device: device.clone(),
            fingerprint: made.fingerprint,
            proof,
        };
        self.append(now, event)?;
        // A challenge is good once; that it stays after a cut does no harm.
        let _ = self.disk.destroy(&name);
        Ok(())
    }

    /// How it stands.
    pub fn standing(&self, now: Timestamp) -> Standing {
        let head = self.book.as_ref().map(|b| *b.head()).filter(|h| h.records > 0);
        let grant = self.granted.as_ref().map(|granted| {
            let terms = &granted.file.terms;
            StandingGrant {
                station: terms.station.to_string(),
                batch: terms.batch.to_string(),
                ids: terms.ids.to_string(),
                quota: terms.quota,
                from: terms.from,
                to: terms.to,
                window: match now {
                    now if now < terms.from => "not open yet",
                    now if now > terms.to => "over",
                    _ => "open",
                },
                grant: granted.hash,
            }
        });
        let unconfirmed: Vec<_> = self
            .order
            .iter()
            .filter(|id| self.made.get(id).is_some_and(|m| !m.confirmed))
            .cloned()
            .collect();
        Standing {
            state: match (self.closed, &grant) {
                (true, _) => "closed",
                (_, Some(_)) if head.is_some() => "granted",
                _ => "requested",
            },
            grant,
            issued: self.made.len() as u64,
            written: self.made.values().filter(|m| m.written).count() as u64,
            confirmed: (self.made.len() - unconfirmed.len()) as u64,
            unconfirmed,
            records: head.map_or(0, |h| h.records),
            head: head.map(|h| h.hash),
            newest: head.map(|h| h.at),
            dropped: self.book.as_ref().map_or(0, Book::dropped),
        }
    }

    /// The journal as it is handed in: all of it, with a seal, unless the grant is closed, which is one.
    ///
    /// # Errors
    /// [`Fault::NoGrant`].
    pub fn export(&self, now: Timestamp) -> Result<Vec<u8>, Fault> {
        let Some(book) = self.book.as_ref().filter(|b| !b.records().is_empty()) else {
            return Err(Fault::NoGrant);
        };
        let mut bytes = book.bytes(&self.disk)?;
        match &self.key {
            Some(key) => bytes.extend(book.seal(key, now)?),
            None if self.closed => {}
            None => return Err(Fault::Failed("the station's key is gone".into())),
        }
        Ok(bytes)
    }

    /// Ends the grant, and destroys the key. The journal's last record says so, signed by the key that is destroyed
    /// next. Safe to repeat.
    ///
    /// # Errors
    /// [`Fault::Storage`]; then the next opening of the folder finishes it, if the record was durable.
    pub fn close(&mut self, reason: &str, now: Timestamp) -> Result<(), Fault> {
        if !self.closed {
            self.need_grant()?;
            let key = self.key.as_ref().ok_or(Fault::NoGrant)?;
            let event = Event::Close {
                key: ProvenKey::of(key).fingerprint()?,
                reason: reason.chars().take(200).collect(),
            };
            self.append(now, event)?;
        }
        self.destroy_key()
    }

    /// The certificate of each device, in the order of issue.
    pub fn issued(&self) -> impl Iterator<Item = (&DeviceId, &Fingerprint)> {
        self.order
            .iter()
            .filter_map(|id| self.made.get(id).map(|m| (id, &m.fingerprint)))
    }

    /// Gives the disk back.
    pub fn into_disk(self) -> D {
        self.disk
    }
}

fn authority(key: &SoftwareKey, granted: &Granted) -> Result<IssuingAuthority, Fault> {
    let copy = SoftwareKey::from_pkcs8(key.to_pkcs8())?;
    IssuingAuthority::station(
        Box::new(copy) as Box<dyn Signer>,
        granted.station.clone(),
        granted.factory.clone(),
    )
    .map_err(|e| Fault::Grant(e.to_string()))
}

fn challenge_file(device: &DeviceId) -> String {
    format!("challenge-{device}")
}
