use super::*;
use crate::key::SoftwareKey;

fn at(s: i64) -> Timestamp {
    Timestamp::from_unix_s(1_795_000_000 + s)
}

fn written(n: u64) -> Event {
    Event::Written {
        device: DeviceId::new(&format!("SN-{n}")).unwrap(),
        fingerprint: Fingerprint::of(&n.to_be_bytes()),
    }
}

fn journal(key: &SoftwareKey, records: u64, end: Option<Event>) -> (Vec<u8>, Vec<usize>) {
    let (mut head, mut bytes, mut ends) = (Head::START, Vec::new(), vec![0]);
    let open = Event::Open {
        station: StationId::new("line-1").unwrap(),
        grant: Fingerprint::of(b"grant"),
        certificate: Fingerprint::of(b"certificate"),
    };
    let events = std::iter::once(open).chain((1..records).map(written)).chain(end);
    for (n, event) in events.enumerate() {
        let (line, _, next) = head.append(at(n as i64), event, key).unwrap();
        bytes.extend(line);
        ends.push(bytes.len());
        head = next;
    }
    (bytes, ends)
}

fn algorithm(key: &SoftwareKey) -> AlgorithmIdentifierOwned {
    key.algorithm()
}

fn found(bytes: &[u8], key: &SoftwareKey) -> Result<Found, JournalFault> {
    recover(bytes, key.public_key(), &algorithm(key))
}

fn check(bytes: &[u8], key: &SoftwareKey) -> Result<Verified, JournalFault> {
    verify(bytes, key.public_key(), &algorithm(key), Ending::Sealed)
}

#[test]
fn whatever_a_power_cut_leaves_of_the_last_record_is_dropped_and_nothing_else() {
    let key = SoftwareKey::generate().unwrap();
    let (bytes, ends) = journal(&key, 4, None);
    for cut in 0..=bytes.len() {
        let found = found(&bytes[..cut], &key).unwrap();
        let whole = ends.iter().filter(|e| **e <= cut).count() - 1;
        assert_eq!(found.records.len(), whole, "{cut}");
        assert_eq!(
            (found.good, found.torn),
            (ends[whole], cut - ends[whole]),
            "{cut}"
        );
    }
    // Holes that were never written, while the file's length was.
    let last = ends[3];
    for hole in [(last, bytes.len()), (last + 40, last + 90), (last, last + 1)] {
        let mut torn = bytes.clone();
        torn[hole.0..hole.1].fill(0);
        let found = found(&torn, &key).unwrap();
        assert_eq!((found.records.len(), found.good), (3, last), "{hole:?}");
    }
}

#[test]
fn damage_is_no_power_cut() {
    let key = SoftwareKey::generate().unwrap();
    let (bytes, ends) = journal(&key, 4, None);
    // A whole last record that does not fit: it may have been handed out, so it is not dropped.
    for place in [
        ends[1] + 10,
        ends[1] + 100,
        ends[1] + 200,
        ends[3] + 10,
        ends[3] + 100,
        ends[3] + 200,
    ] {
        let mut damaged = bytes.clone();
        damaged[place] ^= 1;
        assert!(
            matches!(found(&damaged, &key), Err(JournalFault::Edited { .. })),
            "{place}"
        );
    }
    // Zeros in the middle.
    let mut damaged = bytes.clone();
    damaged[ends[1] + 100..ends[1] + 110].fill(0);
    assert!(found(&damaged, &key).is_err());
    let without: Vec<u8> = [&bytes[..ends[1]], &bytes[ends[2]..]].concat();
    assert!(matches!(
        found(&without, &key),
        Err(JournalFault::Gap { before: 1, found: 2 })
    ));
}

#[test]
fn an_export_is_whole_unchanged_and_of_this_station() {
    let key = SoftwareKey::generate().unwrap();
    let (bytes, ends) = journal(&key, 4, Some(Event::Seal {}));
    let verified = check(&bytes, &key).unwrap();
    assert_eq!((verified.records.len(), verified.closed), (4, false));
    // Cut anywhere, also between two records.
    for cut in 0..bytes.len() {
        let code = check(&bytes[..cut], &key).unwrap_err().code();
        assert_eq!(code, "journal.cut-off", "{cut}");
        let salvaged = verify(
            &bytes[..cut],
            key.public_key(),
            &algorithm(&key),
            Ending::Salvaged,
        )
        .unwrap();
        let whole = ends.iter().filter(|e| **e <= cut).count() - 1;
        assert_eq!(salvaged.records.len(), whole.min(4), "{cut}");
    }
    // Each byte changed.
    for place in (0..bytes.len()).step_by(7) {
        let mut edited = bytes.clone();
        edited[place] ^= 1;
        assert!(check(&edited, &key).is_err(), "{place}");
    }
    // One record changed, and all that follows hashed anew: the signatures remain.
    let text = String::from_utf8(bytes.clone()).unwrap();
    let (mut head, mut forged) = (Head::START, String::new());
    for line in text.lines() {
        let mut parts = line.splitn(3, ' ');
        let (_, signature, json) = (parts.next(), parts.next().unwrap(), parts.next().unwrap());
        let json = json.replace("SN-2", "SN-9");
        let line = format!("{} {signature} {json}", hash(&head.hash, json.as_bytes()));
        head.hash = Fingerprint::of(line.as_bytes());
        forged.push_str(&line);
        forged.push('\n');
    }
    let fault = check(forged.as_bytes(), &key).unwrap_err();
    assert!(
        matches!(fault, JournalFault::Edited { number: 2, .. }),
        "{fault:?}"
    );
    // A record taken out.
    let without = [&bytes[..ends[2]], &bytes[ends[3]..]].concat();
    assert_eq!(check(&without, &key).unwrap_err().code(), "journal.gap");
    // Signed by another key.
    let other = SoftwareKey::generate().unwrap();
    assert_eq!(check(&bytes, &other).unwrap_err().code(), "journal.twin");
}

#[test]
fn nothing_follows_a_close_and_time_does_not_go_back() {
    let key = SoftwareKey::generate().unwrap();
    let close = Event::Close {
        key: Fingerprint::of(b"key"),
        reason: String::new(),
    };
    let (bytes, _) = journal(&key, 3, Some(close));
    let verified = check(&bytes, &key).unwrap();
    assert!(verified.closed);
    let (line, ..) = verified.head.append(at(9), written(9), &key).unwrap();
    let fault = check(&[bytes.clone(), line].concat(), &key).unwrap_err();
    assert_eq!(fault, JournalFault::AfterClose { number: 4 });

    let (bytes, _) = journal(&key, 3, None);
    let head = found(&bytes, &key).unwrap().head;
    let (line, ..) = head.append(at(0), written(9), &key).unwrap();
    let fault = check(&[bytes, line].concat(), &key).unwrap_err();
    assert_eq!(fault.code(), "journal.clock");
}
