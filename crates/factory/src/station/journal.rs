//! The journal of a station: records that are chained by hash and signed by the station's key, one per line:
//!
//! ```text
//! HASH SIGNATURE {"number":0,"at":…,"event":"open",…}
//! ```
//!
//! HASH is SHA-256 over a prefix, the SHA-256 of the whole line before (32 zero octets at the start) and the JSON, in
//! hex; SIGNATURE is over another prefix and HASH, in base64. No prefix is DER, so that no signature of a record is ever
//! one of a certificate, although both are made by one key.
//!
//! A record counts once it is durable. Only the last one can be torn by a power cut: then its line has no end, or holds
//! zeros, and it is dropped: nobody was given what it tells of. Anything else that does not fit is damage, and refused.

use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign_identity::signed::{Signed, Signer, SigningFailed};
use countersign_identity::{DeviceId, Fingerprint, StationId, Timestamp};
use serde::{Deserialize, Serialize};
use spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

use super::challenge::Proof;

/// The longest record, in bytes: a certificate of 8 KiB in base64, and all around it.
pub const RECORD_BYTES_MAX: usize = 16 * 1024;

const HASH_PREFIX: &[u8] = b"countersign station journal, version 1, hash\0";
const SIGNATURE_PREFIX: &[u8] = b"countersign station journal, version 1, signature\0";

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The grant was installed. Always the first.
    Open {
        /// The station.
        station: StationId,
        /// SHA-256 of the grant file.
        grant: Fingerprint,
        /// SHA-256 of the station's certificate.
        certificate: Fingerprint,
    },
    /// A certificate was signed. It is handed out only once this is durable.
    Issue {
        /// The device.
        device: DeviceId,
        /// The certificate, DER in base64.
        certificate: String,
    },
    /// The certificate was written to the device.
    Written {
        /// The device.
        device: DeviceId,
        /// The certificate.
        fingerprint: Fingerprint,
    },
    /// The device proved to hold the certificate's key.
    Confirmed {
        /// The device.
        device: DeviceId,
        /// The certificate.
        fingerprint: Fingerprint,
        /// Its signature.
        proof: Proof,
    },
    /// The grant ended. Always the last: the key that could sign another is destroyed next.
    Close {
        /// SHA-256 of the SubjectPublicKeyInfo of the key that is destroyed.
        key: Fingerprint,
        /// Why.
        reason: String,
    },
    /// The end of an export, never of the journal itself: so that a cut copy is seen.
    Seal {},
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Counts from 0.
    pub number: u64,
    /// When, by the station's clock.
    pub at: Timestamp,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// Where a journal stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// How many records there are.
    pub records: u64,
    /// SHA-256 of the last one's line.
    pub hash: Fingerprint,
    /// The newest time in it.
    pub at: Timestamp,
}

impl Head {
    /// Of a journal without any record.
    pub const START: Self = Self {
        records: 0,
        hash: Fingerprint::from_bytes([0; 32]),
        at: Timestamp::from_unix_ms(i64::MIN),
    };

    /// The next record's line, and where the journal stands then.
    ///
    /// # Errors
    /// [`SigningFailed`].
    pub fn append(
        &self,
        at: Timestamp,
        event: Event,
        key: &dyn Signer,
    ) -> Result<(Vec<u8>, Record, Self), SigningFailed> {
        let record = Record {
            number: self.records,
            at,
            event,
        };
        let json = serde_json::to_string(&record).map_err(|e| SigningFailed(e.to_string()))?;
        let hash = hash(&self.hash, json.as_bytes());
        let signature = STANDARD.encode(key.sign(&signed_content(&hash))?);
        let mut line = format!("{hash} {signature} {json}").into_bytes();
        let link = Fingerprint::of(&line);
        line.push(b'\n');
        if line.len() > RECORD_BYTES_MAX {
            return Err(SigningFailed(format!(
                "the record would have {} bytes, at most {RECORD_BYTES_MAX} are kept",
                line.len()
            )));
        }
        let head = Self {
            records: self.records + 1,
            hash: link,
            at: at.max(self.at),
        };
        Ok((line, record, head))
    }
}

fn hash(before: &Fingerprint, json: &[u8]) -> Fingerprint {
    let mut context = Context::new(&SHA256);
    context.update(HASH_PREFIX);
    context.update(before.as_bytes());
    context.update(json);
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    Fingerprint::from_bytes(out)
}

fn signed_content(hash: &Fingerprint) -> Vec<u8> {
    [SIGNATURE_PREFIX, hash.as_bytes()].concat()
}

/// What is wrong with a journal as a whole. Then nothing of it counts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalFault {
    /// It ends in the middle: of a record, or without seal or close.
    #[error(
        "the journal is cut off after {records} records; hint: export it again on the station (countersign-station export), and copy the whole file"
    )]
    CutOff {
        /// How many whole ones there are.
        records: u64,
    },
    /// Records are missing.
    #[error(
        "records are missing: number {found} follows {before} records; hint: export the journal again on the station"
    )]
    Gap {
        /// How many there are before.
        before: u64,
        /// The number that follows.
        found: u64,
    },
    /// A record is not as the station wrote it.
    #[error(
        "record {number} is not as the station wrote it ({what}); hint: export the journal again on the station; if it stays so, find out who changed it"
    )]
    Edited {
        /// Which one.
        number: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// Not of this station, or of two that go by its name.
    #[error(
        "this is the journal of another station of the same id: {what}; hint: find out which machine wrote it, and revoke the station (countersign factory station revoke)"
    )]
    Twin {
        /// How it is told.
        what: String,
    },
    /// It was written under another grant.
    #[error(
        "the journal was written under a grant that is not the registered one ({found}); hint: install the grant file as it was given (countersign factory station grant)"
    )]
    OtherGrant {
        /// SHA-256 of the grant that it names.
        found: Fingerprint,
    },
    /// It goes on after its end.
    #[error("record {number} was written after the grant was closed")]
    AfterClose {
        /// Which one.
        number: u64,
    },
    /// It tells of times that are yet to come, or goes back in time.
    #[error("record {number} is of {at}, which cannot be; hint: look at the clocks of station and server")]
    Clock {
        /// Which one.
        number: u64,
        /// Its time.
        at: Timestamp,
    },
    /// It tells of more that the grant does not allow than any honest station could.
    #[error(
        "by record {number} the journal tells of more than {limit} certificates and proofs that the grant does not allow; hint: this is no mistake of a line: whoever has the station's key writes it: revoke the station (countersign factory station revoke)"
    )]
    BeyondTerms {
        /// The record that was one too many.
        number: u64,
        /// How many are borne.
        limit: u64,
    },
    /// It does not begin with the grant.
    #[error(
        "the journal does not begin with its grant; hint: it is no journal of a station, or its beginning was lost"
    )]
    NotOpened,
}

impl JournalFault {
    /// The stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::CutOff { .. } => "journal.cut-off",
            Self::Gap { .. } => "journal.gap",
            Self::Edited { .. } => "journal.edited",
            Self::Twin { .. } => "journal.twin",
            Self::OtherGrant { .. } => "journal.other-grant",
            Self::AfterClose { .. } => "journal.after-close",
            Self::Clock { .. } => "journal.clock",
            Self::BeyondTerms { .. } => "journal.beyond-terms",
            Self::NotOpened => "journal.not-opened",
        }
    }
}

/// One line, taken apart and held against the one before.
struct Line {
    record: Record,
    hash: Fingerprint,
    signature: Vec<u8>,
    /// Where the journal stands after it.
    head: Head,
}

impl Line {
    fn is_signed_by(&self, key: &SubjectPublicKeyInfoOwned, algorithm: &AlgorithmIdentifierOwned) -> bool {
        let signed = Signed {
            content: &signed_content(&self.hash),
            algorithm: algorithm.oid,
            signature: &self.signature,
        };
        signed.verify(key).is_ok()
    }
}

fn read_line(line: &[u8], before: &Head) -> Result<Line, JournalFault> {
    let number = before.records;
    let edited = |what| JournalFault::Edited { number, what };
    let text = std::str::from_utf8(line).map_err(|_| edited("it is not text"))?;
    let mut parts = text.splitn(3, ' ');
    let (Some(stated), Some(signature), Some(json)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(edited("it has not three parts"));
    };
    let record: Record = serde_json::from_str(json).map_err(|_| edited("it is no record"))?;
    if record.number > number {
        return Err(JournalFault::Gap {
            before: number,
            found: record.number,
        });
    }
    if record.number < number {
        return Err(edited("its number was there before"));
    }
    let hash = hash(&before.hash, json.as_bytes());
    if stated != hash.to_string() {
        return Err(edited("its hash does not follow"));
    }
    Ok(Line {
        head: Head {
            records: number + 1,
            hash: Fingerprint::of(line),
            at: record.at.max(before.at),
        },
        record,
        hash,
        signature: STANDARD
            .decode(signature)
            .map_err(|_| edited("its signature is not base64"))?,
    })
}

/// What a station finds in its own storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The records.
    pub records: Vec<Record>,
    /// Where it stands.
    pub head: Head,
    /// How many bytes hold good.
    pub good: usize,
    /// How many bytes of a torn record follow them; to be dropped.
    pub torn: usize,
    /// Where the last whole record begins.
    pub last: usize,
}

/// Reads a journal on the station, after whatever happened. Of the signatures only the last is checked: each is under
/// the hash of the record that follows.
///
/// # Errors
/// [`JournalFault`] if anything but the last record is not whole: that is no power cut.
pub fn recover(
    bytes: &[u8],
    key: &SubjectPublicKeyInfoOwned,
    algorithm: &AlgorithmIdentifierOwned,
) -> Result<Found, JournalFault> {
    let mut last_is_signed = true;
    let mut found = Found {
        records: Vec::new(),
        head: Head::START,
        good: 0,
        torn: 0,
        last: 0,
    };
    while found.good < bytes.len() {
        let rest = &bytes[found.good..];
        let end = rest.iter().position(|b| *b == b'\n');
        let whole = end.map(|end| &rest[..end]);
        match whole.map(|line| read_line(line, &found.head)) {
            Some(Ok(line)) => {
                let length = end.unwrap_or(0) + 1;
                if length == rest.len() || rest.len() - length < RECORD_BYTES_MAX {
                    last_is_signed = line.is_signed_by(key, algorithm);
                }
                found.last = found.good;
                found.good += length;
                found.head = line.head;
                found.records.push(line.record);
            }
            // One append is one record: what it leaves behind is shorter than the longest, and its line has no end, or
            // holes that were never written.
            None if rest.len() < RECORD_BYTES_MAX => {
                found.torn = rest.len();
                break;
            }
            Some(Err(_)) if rest.len() <= RECORD_BYTES_MAX && is_torn(rest) => {
                found.torn = rest.len();
                break;
            }
            Some(Err(fault)) => return Err(fault),
            None => {
                return Err(JournalFault::Edited {
                    number: found.head.records,
                    what: "its line has no end",
                });
            }
        }
    }
    if !last_is_signed {
        return Err(JournalFault::Edited {
            number: found.head.records.saturating_sub(1),
            what: "this station did not sign it",
        });
    }
    Ok(found)
}

/// Holes read as zeros, which no record holds; and a line's end is its last byte.
fn is_torn(rest: &[u8]) -> bool {
    rest.contains(&0) && rest.iter().position(|b| *b == b'\n') == Some(rest.len() - 1)
}

/// What a journal file holds, verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The records, without the seal.
    pub records: Vec<Record>,
    /// The hash of each.
    pub hashes: Vec<Fingerprint>,
    /// Where it stands.
    pub head: Head,
    /// Whether the grant was closed.
    pub closed: bool,
}

/// Whether a copy must have its seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It must end in a seal or a close: made by `export`.
    Sealed,
    /// It may end anywhere, and a torn last record is dropped: what is left of a station that cannot export any more.
    Salvaged,
}

/// Reads an exported journal and checks chain and signatures against the station's key, strictly.
///
/// # Errors
/// The first [`JournalFault`].
pub fn verify(
    bytes: &[u8],
    key: &SubjectPublicKeyInfoOwned,
    algorithm: &AlgorithmIdentifierOwned,
    ending: Ending,
) -> Result<Verified, JournalFault> {
    let mut verified = Verified {
        records: Vec::new(),
        hashes: Vec::new(),
        head: Head::START,
        closed: false,
    };
    let (mut sealed, mut rest) = (false, bytes);
    while !rest.is_empty() {
        let number = verified.head.records;
        let Some(end) = rest.iter().position(|b| *b == b'\n') else {
            if ending == Ending::Salvaged {
                break;
            }
            return Err(JournalFault::CutOff { records: number });
        };
        if sealed {
            return Err(JournalFault::Edited {
                number,
                what: "it follows the seal",
            });
        }
        if verified.closed {
            return Err(JournalFault::AfterClose { number });
        }
        let line = match read_line(&rest[..end], &verified.head) {
            Ok(line) => line,
            Err(_) if ending == Ending::Salvaged && is_torn(rest) => break,
            Err(fault) => return Err(fault),
        };
        rest = &rest[end + 1..];
        if !line.is_signed_by(key, algorithm) {
            return Err(if number == 0 {
                JournalFault::Twin {
                    what: "it is signed by another key than the registered station's".into(),
                }
            } else {
                JournalFault::Edited {
                    number,
                    what: "the station did not sign it",
                }
            });
        }
        let at = line.record.at;
        match line.record.event {
            Event::Seal {} => {
                sealed = true;
                continue;
            }
            Event::Open { .. } if number > 0 => {
                return Err(JournalFault::Edited {
                    number,
                    what: "the grant is opened again",
                });
            }
            Event::Close { .. } => verified.closed = true,
            _ => {}
        }
        if number > 0 && at < verified.head.at {
            return Err(JournalFault::Clock { number, at });
        }
        verified.head = line.head;
        verified.hashes.push(line.head.hash);
        verified.records.push(line.record);
    }
    if ending == Ending::Sealed && !sealed && !verified.closed {
        return Err(JournalFault::CutOff {
            records: verified.head.records,
        });
    }
    Ok(verified)
}

#[cfg(test)]
mod tests;
