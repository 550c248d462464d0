use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

fn tenant(name: &str) -> Option<TenantId> {
    (!name.is_empty()).then(|| TenantId::new(name).unwrap())
}

fn place(name: &str, class: Class, source: u8) -> Place {
    Place {
        tenant: tenant(name),
        class,
        source: IpAddr::V4(Ipv4Addr::new(192, 0, 2, source)),
        bytes: 0,
    }
}

fn full(name: &str, source: u8) -> Place {
    place(name, Class::Full, source)
}

fn fill(queue: &mut FairQueue<String>, places: &[(&Place, &str)]) {
    for (place, entry) in places {
        assert!(matches!(
            queue.put(place, (*entry).to_owned(), |_| panic!("displaced")),
            Put::Waits(_)
        ));
    }
}

fn drain(queue: &mut FairQueue<String>) -> String {
    std::iter::from_fn(|| queue.take()).collect::<Vec<_>>().join(" ")
}

#[test]
fn tenants_take_turns_then_sources() {
    let mut queue = FairQueue::new(usize::MAX);
    let (a1, a2, b, none) = (full("a", 1), full("a", 2), full("b", 1), full("", 1));
    fill(
        &mut queue,
        &[
            (&a1, "a1-1"),
            (&a1, "a1-2"),
            (&a1, "a1-3"),
            (&a2, "a2-1"),
            (&b, "b-1"),
            (&b, "b-2"),
            (&none, "n-1"),
        ],
    );
    assert_eq!(queue.len(), 7);
    assert_eq!(drain(&mut queue), "a1-1 b-1 n-1 a2-1 b-2 a1-2 a1-3");
    assert_eq!((queue.len(), queue.tenants.weight()), (0, 0));
    assert!(
        queue.tenants.parts.is_empty() && queue.tenants.turns.is_empty() && queue.tenants.weights.is_empty()
    );
}

#[test]
fn resumptions_go_first_in_their_tenant_and_not_before_another_tenant() {
    let mut queue = FairQueue::new(usize::MAX);
    let resumption = place("a", Class::Resumption, 1);
    fill(
        &mut queue,
        &[
            (&full("a", 1), "a-full"),
            (&full("b", 1), "b-full-1"),
            (&full("b", 1), "b-full-2"),
            (&resumption, "a-resumed-1"),
            (&resumption, "a-resumed-2"),
        ],
    );
    assert_eq!(
        drain(&mut queue),
        "a-resumed-1 b-full-1 a-resumed-2 b-full-2 a-full"
    );
}

#[test]
fn one_full_handshake_goes_between_every_few_resumptions() {
    let mut queue = FairQueue::new(usize::MAX);
    for n in 0..20 {
        queue.put(&place("a", Class::Resumption, n), format!("r{n}"), |_| {});
    }
    queue.put(&full("a", 99), "f0".to_owned(), |_| {});
    queue.put(&full("a", 99), "f1".to_owned(), |_| {});
    let order: Vec<String> = std::iter::from_fn(|| queue.take()).collect();
    let at = |name: &str| order.iter().position(|e| e == name).unwrap();
    let row = RESUMPTIONS_IN_A_ROW as usize;
    assert_eq!((at("f0"), at("f1")), (row, 2 * row + 1), "{order:?}");
    assert_eq!(order.len(), 22);
}

#[test]
fn a_storm_of_resumptions_pushes_out_itself_too() {
    let mut queue = FairQueue::new(10 * ENTRY_BYTES);
    let storm = place("a", Class::Resumption, 1);
    for n in 0..9 {
        queue.put(&storm, format!("r{n}"), |_| panic!("displaced"));
    }
    queue.put(&full("a", 2), "f0".to_owned(), |_| panic!("displaced"));
    let mut out = Vec::new();
    queue.put(&full("a", 3), "f1".to_owned(), |e| out.push(e));
    assert_eq!(out, ["r8"]);
    assert_eq!(queue.put(&storm, "r9".to_owned(), |e| out.push(e)), Put::Full);
}

#[test]
fn a_storm_pushes_out_itself() {
    let mut queue = FairQueue::new(10 * ENTRY_BYTES);
    let put = |queue: &mut FairQueue<String>, place: &Place, entry: &str| {
        let mut out = Vec::new();
        let put = queue.put(place, entry.to_owned(), |e| out.push(e));
        (put != Put::Full, out)
    };
    for n in 0..10 {
        assert_eq!(
            put(&mut queue, &full("storm", 1), &format!("s{n}")),
            (true, vec![])
        );
    }
    assert_eq!(put(&mut queue, &full("storm", 1), "s10"), (false, vec![]));
    // Another tenant's, and another source's of the same tenant, find room: the newest of the heaviest goes.
    assert_eq!(put(&mut queue, &full("calm", 1), "c0"), (true, vec!["s9".into()]));
    assert_eq!(
        put(&mut queue, &full("storm", 2), "t0"),
        (true, vec!["s8".into()])
    );
    assert_eq!(put(&mut queue, &full("storm", 1), "s11"), (false, vec![]));
    assert_eq!(queue.len(), 10);
    assert_eq!(drain(&mut queue), "s0 c0 t0 s1 s2 s3 s4 s5 s6 s7");
}

#[test]
fn large_hellos_count_as_what_they_hold() {
    let mut queue = FairQueue::new(16 * ENTRY_BYTES);
    let large = Place {
        bytes: 7 * ENTRY_BYTES,
        ..full("storm", 1)
    };
    assert!(matches!(queue.put(&large, "l0", |_| {}), Put::Waits(_)));
    assert!(matches!(queue.put(&large, "l1", |_| {}), Put::Waits(_)));
    let mut out = Vec::new();
    assert!(matches!(
        queue.put(&full("calm", 1), "c", |e| out.push(e)),
        Put::Waits(_)
    ));
    assert_eq!(out, ["l1"]);
}

#[test]
fn who_leaves_is_forgotten() {
    let mut queue = FairQueue::new(usize::MAX);
    let place = full("a", 1);
    let Put::Waits(first) = queue.put(&place, "first", |_| {}) else {
        panic!()
    };
    let Put::Waits(second) = queue.put(&place, "second", |_| {}) else {
        panic!()
    };
    assert_eq!(queue.remove(&place, first), Some("first"));
    assert_eq!(queue.remove(&place, first), None);
    assert_eq!(queue.remove(&full("nobody", 1), second), None);
    assert_eq!(queue.remove(&full("a", 9), second), None);
    assert_eq!(queue.take(), Some("second"));
    assert_eq!(queue.remove(&place, second), None);
    assert!(queue.tenants.parts.is_empty() && queue.tenants.turns.is_empty());
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, bool, u8, usize),
    Take,
    Leave(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..4, any::<bool>(), 0u8..4, 0usize..4000).prop_map(|(t, r, s, b)| Step::Put(t, r, s, b)),
        2 => Just(Step::Take),
        1 => any::<usize>().prop_map(Step::Leave),
    ]
}

proptest! {
    #[test]
    fn nothing_is_lost_twice_or_kept_beyond_the_bound(steps in proptest::collection::vec(step(), 0..200)) {
        let bytes_max = 20 * ENTRY_BYTES;
        let mut queue = FairQueue::new(bytes_max);
        let mut waiting: BTreeMap<u64, (Place, usize)> = BTreeMap::new();
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                Step::Put(t, resumed, s, bytes) => {
                    let class = if resumed { Class::Resumption } else { Class::Full };
                    let at = Place { bytes, ..place(["", "a", "b", "c"][usize::from(t)], class, s) };
                    let mut out = Vec::new();
                    if let Put::Waits(number) = queue.put(&at, n, |e| out.push(e)) {
                        waiting.insert(number, (at, n));
                    }
                    for gone in out {
                        let before = waiting.len();
                        waiting.retain(|_, (_, entry)| *entry != gone);
                        prop_assert_eq!(waiting.len() + 1, before);
                    }
                }
                Step::Take => match queue.take() {
                    None => prop_assert!(waiting.is_empty()),
                    Some(taken) => {
                        let before = waiting.len();
                        waiting.retain(|_, (_, entry)| *entry != taken);
                        prop_assert_eq!(waiting.len() + 1, before);
                    }
                },
                Step::Leave(which) => {
                    if let Some((&number, _)) = waiting.iter().nth(which % waiting.len().max(1)) {
                        let (at, entry) = waiting.remove(&number).unwrap();
                        prop_assert_eq!(queue.remove(&at, number), Some(entry));
                    }
                }
            }
            let weight: usize = waiting.values().map(|(p, _)| p.bytes + ENTRY_BYTES).sum();
            prop_assert_eq!(queue.len(), waiting.len());
            prop_assert_eq!(queue.tenants.weight(), weight);
            prop_assert!(weight <= bytes_max);
        }
    }
}
