//! From a journal to the identities that may be registered. Pure: what the registry alone knows (whose key it is, which
//! ids there are) it asks itself, in the transaction that registers.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use const_oid::ObjectIdentifier;
use countersign_identity::certificate::{CertificateView, EKU_CLIENT_AUTH};
use countersign_identity::signed::{Signed, key_of};
use countersign_identity::{CertificateFacts, DeviceId, Fingerprint, Timestamp};
use spki::SubjectPublicKeyInfoOwned;

use super::journal::{Ending, Event, Head, JournalFault, verify};
use super::terms::{StationFault, Terms};
use crate::profile::{KeyKind, ProfileKind};

/// How far the station's clock may be ahead of ours.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(5 * 60);

/// So much of what a journal tells may be refused or doubtful, besides twice the quota: a small grant has mistakes too.
const FAULTS_SPARE: u64 = 100;

/// How many refusals and doubts of one journal are kept, each of them named in the report: beyond it, nothing counts.
fn faults_max(terms: &Terms) -> u64 {
    terms.quota.saturating_mul(2).saturating_add(FAULTS_SPARE)
}

/// An identity that the journal tells of, and that keeps the terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The number of its record.
    pub number: u64,
    /// The device.
    pub device: DeviceId,
    /// The certificate, DER.
    pub certificate: Vec<u8>,
    /// What it says.
    pub facts: CertificateFacts,
    /// When it was issued, by the station's clock.
    pub issued: Timestamp,
    /// When it was written to the device, if it was.
    pub written: Option<Timestamp>,
    /// When the device proved its key, if it did.
    pub confirmed: Option<Timestamp>,
}

/// An identity that the journal tells of, and that breaks the terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The number of its record.
    pub number: u64,
    /// The device.
    pub device: DeviceId,
    /// SHA-256 of what was handed out.
    pub fingerprint: Fingerprint,
    /// Why.
    pub fault: StationFault,
}

/// What a journal comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// What may be registered, in the order of issue.
    pub entries: Vec<Entry>,
    /// What may not.
    pub refused: Vec<Refused>,
    /// The numbers of records whose proof of a key does not hold, or that tell of a certificate which is not there.
    pub doubtful: Vec<u64>,
    /// The hash of each record.
    pub hashes: Vec<Fingerprint>,
    /// Where the journal stands.
    pub head: Head,
    /// Whether the grant was closed.
    pub closed: bool,
}

/// What the registry knows of a station.
#[derive(Debug, Clone)]
pub struct Known<'a> {
    /// Its terms.
    pub terms: &'a Terms,
    /// SHA-256 of its grant file.
    pub grant: Fingerprint,
    /// Its certificate, DER.
    pub certificate: &'a [u8],
    /// Now.
    pub now: Timestamp,
}

impl Account {
    /// Takes account of an exported journal.
    ///
    /// # Errors
    /// [`JournalFault`] if the journal as a whole cannot be trusted: then nothing of it counts.
    pub fn of(journal: &[u8], known: &Known<'_>, ending: Ending) -> Result<Self, JournalFault> {
        let unreadable = |_| JournalFault::NotOpened;
        let station = CertificateFacts::parse(known.certificate).map_err(unreadable)?;
        let key = key_of(known.certificate).map_err(|_| JournalFault::NotOpened)?;
        let algorithm = signature_algorithm(&station);
        let verified = verify(journal, &key, &algorithm, ending)?;
        match verified.records.first().map(|r| &r.event) {
            Some(Event::Open {
                station: id,
                grant,
                certificate,
            }) => {
                if *id != known.terms.station || *certificate != station.fingerprint {
                    return Err(JournalFault::Twin {
                        what: format!("it is of station {id} with the certificate {certificate}"),
                    });
                }
                if *grant != known.grant {
                    return Err(JournalFault::OtherGrant { found: *grant });
                }
            }
            _ => return Err(JournalFault::NotOpened),
        }
        if verified.head.at > known.now.plus(CLOCK_TOLERANCE) {
            return Err(JournalFault::Clock {
                number: verified.head.records.saturating_sub(1),
                at: verified.head.at,
            });
        }
        let mut taking = Taking {
            terms: known.terms,
            station: &station,
            key: &key,
            issued: 0,
            entries: Vec::new(),
            refused: Vec::new(),
            refused_devices: HashSet::new(),
            doubtful: Vec::new(),
            by_device: HashMap::new(),
            keys: HashMap::new(),
            serials: HashSet::new(),
        };
        for record in &verified.records {
            taking.take(record.number, record.at, &record.event);
            let limit = faults_max(known.terms);
            if (taking.refused.len() + taking.doubtful.len()) as u64 > limit {
                let number = record.number;
                return Err(JournalFault::BeyondTerms { number, limit });
            }
        }
        Ok(Self {
            entries: taking.entries,
            refused: taking.refused,
            doubtful: taking.doubtful,
            hashes: verified.hashes,
            head: verified.head,
            closed: verified.closed,
        })
    }
}

/// Of the station's own signatures: by its key's kind.
pub fn signature_algorithm(station: &CertificateFacts) -> spki::AlgorithmIdentifierOwned {
    let oid = match KeyKind::of(station.key_algorithm) {
        Some(KeyKind::P384) => "1.2.840.10045.4.3.3",
        _ => "1.2.840.10045.4.3.2",
    };
    spki::AlgorithmIdentifierOwned {
        oid: ObjectIdentifier::new_unwrap(oid),
        parameters: None,
    }
}

struct Taking<'a> {
    terms: &'a Terms,
    station: &'a CertificateFacts,
    key: &'a SubjectPublicKeyInfoOwned,
    issued: u64,
    entries: Vec<Entry>,
    refused: Vec<Refused>,
    refused_devices: HashSet<DeviceId>,
    doubtful: Vec<u64>,
    by_device: HashMap<DeviceId, usize>,
    keys: HashMap<Fingerprint, DeviceId>,
    serials: HashSet<String>,
}

impl Taking<'_> {
    fn take(&mut self, number: u64, at: Timestamp, event: &Event) {
        match event {
            Event::Issue { device, certificate } => {
                let der = STANDARD.decode(certificate).unwrap_or_default();
                match self.examine(device, &der, at) {
                    Ok(facts) => {
                        self.by_device.insert(device.clone(), self.entries.len());
                        self.keys.insert(facts.public_key_sha256, device.clone());
                        self.serials.insert(facts.serial.clone());
                        self.entries.push(Entry {
                            number,
                            device: device.clone(),
                            certificate: der,
                            facts,
                            issued: at,
                            written: None,
                            confirmed: None,
                        });
                    }
                    Err(fault) => {
                        self.refused_devices.insert(device.clone());
                        self.refused.push(Refused {
                            number,
                            device: device.clone(),
                            fingerprint: Fingerprint::of(&der),
                            fault,
                        });
                    }
                }
                // Every one that was signed counts, also one that is refused: it exists.
                self.issued += 1;
            }
            Event::Written { device, fingerprint } => match self.entry(device, fingerprint) {
                Some(entry) => {
                    entry.written.get_or_insert(at);
                }
                None => self.doubt(number, device),
            },
            Event::Confirmed {
                device,
                fingerprint,
                proof,
            } => match self.entry(device, fingerprint) {
                Some(entry)
                    if key_of(&entry.certificate).is_ok_and(|key| proof.holds(device, fingerprint, &key)) =>
                {
                    entry.written.get_or_insert(at);
                    entry.confirmed.get_or_insert(at);
                }
                _ => self.doubt(number, device),
            },
            Event::Open { .. } | Event::Close { .. } | Event::Seal {} => {}
        }
    }

    /// What is told of a refused certificate is of no interest.
    fn doubt(&mut self, number: u64, device: &DeviceId) {
        if !self.refused_devices.contains(device) {
            self.doubtful.push(number);
        }
    }

    fn entry(&mut self, device: &DeviceId, fingerprint: &Fingerprint) -> Option<&mut Entry> {
        let at = *self.by_device.get(device)?;
        self.entries
            .get_mut(at)
            .filter(|e| e.facts.fingerprint == *fingerprint)
    }

    fn examine(
        &self,
        device: &DeviceId,
        der: &[u8],
        at: Timestamp,
    ) -> Result<CertificateFacts, StationFault> {
        self.terms.allow(device, at, self.issued)?;
        let wrong = |what: String| StationFault::Certificate(what);
        let facts = CertificateFacts::parse(der).map_err(|e| wrong(e.to_string()))?;
        if self.by_device.contains_key(device) {
            return Err(StationFault::DuplicateId {
                device: device.clone(),
            });
        }
        if let Some(other) = self.keys.get(&facts.public_key_sha256) {
            return Err(StationFault::KeyOfOther {
                other: other.to_string(),
            });
        }
        if self.serials.contains(&facts.serial) {
            return Err(wrong(format!(
                "the serial number {} was used before",
                facts.serial
            )));
        }
        self.as_the_profile_has_it(device, der, &facts, at)
            .map_err(|what| wrong(what.into()))?;
        Ok(facts)
    }

    /// Everything in it, and nothing else.
    fn as_the_profile_has_it(
        &self,
        device: &DeviceId,
        der: &[u8],
        facts: &CertificateFacts,
        at: Timestamp,
    ) -> Result<(), &'static str> {
        const KEY_USAGE: &str = "2.5.29.15";
        const ALTERNATIVE_NAME: &str = "2.5.29.17";
        const AUTHORITY_KEY: &str = "2.5.29.35";
        const EXTENDED_KEY_USAGE: &str = "2.5.29.37";
        let profile = &self.terms.profile;
        let need = |holds: bool, what: &'static str| if holds { Ok(()) } else { Err(what) };
        need(
            facts.issuer_der == self.station.subject_der
                && facts.authority_key_id == self.station.subject_key_id
                && facts.authority_key_id.is_some(),
            "another CA issued it",
        )?;
        let signed = Signed::parse(der).map_err(|_| "it is not signed")?;
        need(signed.verify(self.key).is_ok(), "the station did not sign it")?;
        need(facts.ca.is_none(), "it is a CA certificate")?;
        let certificate = CertificateView::of_certificate(der).map_err(|_| "it cannot be read")?;
        let names = profile
            .names(&self.terms.tenant, device)
            .map_err(|_| "the profile has no name for such a device")?;
        let own = |id: &ObjectIdentifier| profile.extensions.iter().find(|e| e.oid == *id);
        let known = [KEY_USAGE, ALTERNATIVE_NAME, AUTHORITY_KEY, EXTENDED_KEY_USAGE];
        let mut left = profile.extensions.len();
        for found in &certificate.extensions {
            match own(&found.id) {
                Some(own) => {
                    left = left.saturating_sub(1);
                    need(
                        found.value == own.value && found.critical == own.critical,
                        "an extension of its profile has another value",
                    )?;
                }
                None => need(
                    known.contains(&found.id.to_string().as_str()),
                    "it has an extension that the profile does not have",
                )?,
            }
        }
        // None is there twice: the path check refuses that.
        need(
            left == 0 && facts.path_fault().is_none(),
            "it does not have the extensions of its profile, each once",
        )?;
        need(
            facts
                .key_usage
                .is_some_and(|u| u.digital_signature && !u.key_cert_sign),
            "its keyUsage is not digitalSignature",
        )?;
        let purposes = match profile.kind {
            ProfileKind::Operational => Some(vec![EKU_CLIENT_AUTH.to_string()]),
            ProfileKind::Factory => None,
        };
        need(
            facts.extended_key_usage == purposes,
            "its extKeyUsage is not the profile's",
        )?;
        need(
            names.check(&certificate).is_ok() && names.are_in(facts),
            "its names are not the profile's for this device",
        )?;
        need(
            KeyKind::of(facts.key_algorithm).is_some_and(|kind| profile.keys.contains(&kind)),
            "its key is of a kind that the profile does not accept",
        )?;
        let lifetime = profile.lifetime().unwrap_or_default();
        need(
            facts.not_after.since(facts.not_before) <= lifetime
                && facts.not_after <= self.station.not_after
                && facts.not_before <= at
                && at.since(facts.not_before) <= Duration::from_secs(3600),
            "its dates are not the profile's",
        )
    }
}
