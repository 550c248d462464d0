use super::*;

fn ip(n: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, n])
}

fn key(n: u32) -> Fingerprint {
    Fingerprint::of(&n.to_be_bytes())
}

fn at(ms: i64) -> Timestamp {
    Timestamp::from_unix_ms(1_800_000_000_000 + ms)
}

fn watch() -> CloneWatch {
    CloneWatch::new(CloneRules::default())
}

#[test]
fn two_holders_that_take_from_each_other_are_suspected_within_ten_seconds() {
    // Reconnecting after so many milliseconds, closing in order or by a reset.
    for (pause, answer) in [
        (50, Answer::Closed),
        (1_000, Answer::Closed),
        (3_000, Answer::Closed),
        (1_000, Answer::Reset),
    ] {
        let mut watch = watch();
        let (mut holder, mut other) = (ip(1), ip(2));
        let mut suspected = None;
        for n in 0..10 {
            let now = n * pause;
            let first = watch.taken_over(key(1), holder, other, at(now));
            let then = watch.answered(key(1), holder, answer, at(now + 20));
            suspected = suspected.or(first.or(then).map(|s| (now + 20, s)));
            std::mem::swap(&mut holder, &mut other);
        }
        let (when, told) = suspected.unwrap();
        let suspicion = told.suspicion();
        assert!(when <= 10_000, "{pause} {answer:?}: {when}");
        assert!(
            suspicion.suspected && suspicion.sources.len() == 2,
            "{suspicion:?}"
        );
        assert!(
            suspicion.evidence().contains("192.0.2.1"),
            "{}",
            suspicion.evidence()
        );
        assert_eq!(watch.suspected(at(when)).len(), 1);
    }
}

#[test]
fn two_holders_at_one_address_are_suspected_too_and_a_device_that_reconnects_a_few_times_is_not() {
    let mut watch = watch();
    let told: Vec<_> = (0..20)
        .filter_map(|n| {
            watch.taken_over(key(1), ip(1), ip(1), at(n * 1000));
            watch.answered(key(1), ip(1), Answer::Closed, at(n * 1000 + 10))
        })
        .collect();
    assert!(matches!(told[0], Told::Reached(_)), "{:?}", told[0]);
    assert!(
        told[1..].iter().all(|t| matches!(t, Told::Grew(_))),
        "once: {told:?}"
    );
}

#[test]
fn two_that_are_active_at_once_are_suspected_and_both_families_of_one_device_are_not() {
    let mut watch = watch();
    let mut told = 0;
    for n in 0..5 {
        let found = watch.active_together(key(1), ip(1), ip(2), at(n * 2000));
        told += usize::from(matches!(found, Some(Told::Reached(_))));
        assert!(
            watch
                .active_together(key(2), ip(1), ip(1), at(n * 2000))
                .is_none()
        );
        let v6 = "2001:db8::1".parse().unwrap();
        assert!(watch.active_together(key(3), ip(1), v6, at(n * 2000)).is_none());
    }
    // At the fifth look, eight seconds after the first.
    assert_eq!(told, 1);
}

/// A small generator of our own: the same roamings every time.
struct Dice(u64);

impl Dice {
    fn up_to(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

#[test]
fn a_thousand_roamings_are_no_clones() {
    for seed in 0..20 {
        let mut dice = Dice(seed);
        let mut watch = watch();
        let mut now = 0;
        let mut place = ip(1);
        for n in 0..1_000 {
            // From one to forty seconds, among three networks: there and back again, too.
            now += 1_000 + i64::try_from(dice.up_to(39_000)).unwrap();
            let next = ip(1 + u8::try_from(dice.up_to(3)).unwrap());
            let told = watch.taken_over(key(1), place, next, at(now));
            assert!(told.is_none(), "seed {seed}, roaming {n}: {told:?}");
            // One in twenty middleboxes resets what it no longer knows, and a restart resets from the same address.
            if dice.up_to(20) == 0 || next == place {
                let told = watch.answered(key(1), place, Answer::Reset, at(now + 30));
                assert!(told.is_none(), "seed {seed}, roaming {n}: {told:?}");
            }
            place = next;
        }
        assert_eq!(watch.suspected(at(now)), []);
    }
}

#[test]
fn a_client_that_replaces_its_own_connection_now_and_then_is_no_clone() {
    let mut watch = watch();
    // It opens the new one first and closes the old one then, every two minutes.
    for n in 0..1_000 {
        let now = n * 120_000;
        assert!(watch.taken_over(key(1), ip(1), ip(2), at(now)).is_none());
        assert!(
            watch
                .answered(key(1), ip(1), Answer::Closed, at(now + 10))
                .is_none()
        );
    }
}

#[test]
fn a_suspicion_is_told_once_and_again_after_it_was_gone() {
    let mut watch = watch();
    let flap = |watch: &mut CloneWatch, from: i64, n: i64| {
        (0..n)
            .filter(|n| {
                let told = watch.answered(key(1), ip(1), Answer::Closed, at(from + n * 100));
                matches!(told, Some(Told::Reached(_)))
            })
            .count()
    };
    assert_eq!(flap(&mut watch, 0, 50), 1);
    assert_eq!(flap(&mut watch, 5_000, 50), 0);
    // A hundred points are gone after eight minutes or so.
    assert_eq!(watch.suspected(at(600_000)), []);
    assert_eq!(flap(&mut watch, 600_000, 10), 1);
}

/// Or a policy that waits for a higher score than the one at which it is told would wait for ever.
#[test]
fn each_further_evidence_is_told_with_the_score_it_brings() {
    let mut watch = watch();
    let scores: Vec<u32> = (0..10)
        .filter_map(|n| watch.answered(key(1), ip(1), Answer::Closed, at(n * 100)))
        .map(|told| told.suspicion().score)
        .collect();
    assert_eq!(scores.len(), 7, "{scores:?}");
    assert!(
        scores.windows(2).all(|w| w[0] < w[1]) && scores.last() > Some(&9_000),
        "{scores:?}"
    );
}

/// A device that was released soon after is not quarantined again for what little came since.
#[test]
fn evidence_that_leaves_the_score_below_the_threshold_is_not_told() {
    let mut watch = watch();
    let mut closed = |ms| watch.answered(key(1), ip(1), Answer::Closed, at(ms));
    let told = (0..4).filter_map(|n| closed(n * 10)).count();
    assert_eq!(told, 1, "the fourth takes it above three");
    // Not quite two points are left of them.
    assert_eq!(closed(65_000), None);
    assert!(matches!(closed(65_010), Some(Told::Grew(_))));
}

#[test]
fn memory_is_bounded_and_the_highest_scores_stay() {
    let mut watch = CloneWatch::new(CloneRules {
        accounts_max: 1_000,
        ..CloneRules::default()
    });
    for _ in 0..3 {
        watch.answered(key(0), ip(1), Answer::Closed, at(0));
        watch.taken_over(key(0), ip(1), ip(2), at(0));
    }
    watch.answered(key(0), ip(1), Answer::Closed, at(0));
    for n in 1..20_000 {
        watch.taken_over(key(n), ip(1), ip(2), at(1_000));
        assert!(watch.accounts.len() <= 1_000);
    }
    assert_eq!(watch.suspected(at(1_000)).len(), 1);
    watch.tidy(at(10_000_000));
    assert_eq!(watch.accounts.len(), 0);
}
