//! `why` and `policy simulate` say what the gateway does: more than 1,000 generated cases with a fixed seed, each over a
//! real TLS connection.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]
#![allow(clippy::print_stdout, reason = "it prints its figures")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use countersign_identity::CertificateFacts;
use countersign_testkit::client::{Attempt, TLS12, TLS13, connect, publish, subscribe};
use countersign_testkit::pki::{Ca, Identity, Leaf};
use countersign_testkit::server::Server;
use serde_json::{Value, json};

const CONFIG: &str = r#"
[ledger]
refused_per_source_minute_max = 1000000
[limits]
connections_per_source_max = 1000
"#;
/// Rounds of policies taken at random, after one of each policy that forbids.
const ROUNDS: usize = 13;
const DEVICES: usize = 84;

/// xorshift64*: the same cases every time.
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        let n = self.next(of.len());
        &of[n]
    }
}

const PERMITS: &[&str] = &[
    r#"@id("all") permit (principal, action, resource);"#,
    r#"@id("field") permit (principal in Group::"field", action, resource);"#,
    r#"@id("m1") permit (principal, action, resource) when { principal has model && principal.model == "m1" };"#,
    r#"@id("connect") permit (principal, action == Action::"connect", resource);"#,
    r#"@id("lane") @quarantine("open") permit (principal, action, resource) when { principal.state == "quarantined" };"#,
    r#"@id("open") @quarantine("open") permit (principal, action == Action::"connect", resource);"#,
    r#"@id("own") permit (principal, action == Action::"publish", resource) when { context.spaces.contains("telemetry") };"#,
    r#"@id("cmd") permit (principal, action == Action::"subscribe", resource) when { context.spaces.contains("commands") };"#,
];
const FORBIDS: &[&str] = &[
    r#"@id("no-lab") forbid (principal in Group::"lab", action, resource);"#,
    r#"@id("no-m2") forbid (principal, action == Action::"connect", resource) when { principal has model && principal.model == "m2" };"#,
    r#"@id("no-spare") forbid (principal, action, resource) when { context.authority == "spare" };"#,
    r#"@id("tls13") forbid (principal, action, resource) unless { context.tls.version == "TLSv1.3" };"#,
    r#"@id("not-d7") forbid (principal, action, resource) when { principal.id == "d7" };"#,
    r#"@id("not-here") forbid (principal in Group::"north", action, resource) when { context.source.isLoopback() };"#,
    r#"@id("broken") forbid (principal in Group::"south", action, resource) when { context.now + 9223372036854775807 > 0 };"#,
    r#"@id("no-factory") forbid (principal, action, resource) when { context.credential.kind == "factory" };"#,
    r#"@id("unknown-custody") forbid (principal in Group::"critical", action, resource) unless { context.credential.custody == "attested" };"#,
    r#"@id("qos0") forbid (principal, action == Action::"publish", resource) when { context.qos > 0 };"#,
    r#"@id("hybrid") forbid (principal in Group::"field", action, resource) when { context.tls has group && context.tls.group == "secp256r1" };"#,
];

struct Case {
    id: String,
    identity: Identity,
    /// What `why` is given: the leaf, and what the device sends above it.
    pem: String,
    tls12: bool,
    /// Registered under its own id with this certificate, which is good: simulation counts it.
    counted: bool,
    /// Its authority is known by its issuer's name, without a handshake: `why` needs no file.
    named: bool,
}

struct World {
    server: Server,
    cases: Vec<Case>,
    _folder: tempfile::TempDir,
}

fn import(server: &Server, id: &str, state: &str, model: Option<&str>, groups: &[&str], pem: Option<&str>) {
    let device = json!({ "id": id, "state": state, "model": model, "groups": groups, "certificate": pem });
    let report = server
        .ask(
            "POST",
            "/tenants/default/devices/import",
            Some(&json!({ "devices": [device] })),
        )
        .unwrap();
    assert_eq!(report["refused"], json!([]), "{report}");
}

fn world(random: &mut Random) -> World {
    let folder = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_countersign"));
    let server = Server::start(program, &folder.path().join("data"), CONFIG).unwrap();
    let (fleet, spare, stranger) = (
        Ca::root("agreement fleet", None),
        Ca::root("agreement spare", None),
        Ca::root("agreement stranger", None),
    );
    let (learn, jit) = (Ca::root("agreement learn", None), Ca::root("agreement jit", None));
    let below = fleet.below("agreement below", Some(0));
    let closed = json!({ "mode": "registered-only" });
    server.register("fleet", "default", &fleet, &closed).unwrap();
    server.register("spare", "default", &spare, &closed).unwrap();
    server
        .register("learn", "default", &learn, &json!({ "mode": "known-device" }))
        .unwrap();
    let template = json!({
        "mode": "just-in-time", "id_pattern": "jit-*", "quota": 3, "state": "active", "groups": ["field"],
    });
    server.register("jit", "default", &jit, &template).unwrap();
    let mut cases = Vec::new();
    for n in 0..DEVICES {
        let id = format!("d{n}");
        let model: Option<&str> = *random.one(&[None, Some("m1"), Some("m2")]);
        let groups: Vec<&str> = ["field", "lab", "north", "south", "critical"]
            .into_iter()
            .filter(|_| random.next(4) == 0)
            .collect();
        let state = *random.one(&["active", "active", "active", "active", "active", "pending"]);
        let mut leaf = Leaf::named(&id);
        let kind = random.next(16);
        let mut counted = true;
        let (identity, pem) = match kind {
            0 => {
                leaf.days = (-30, -1);
                (fleet.issue(&leaf, &[]), None)
            }
            1 => {
                leaf.days = (1, 30);
                (fleet.issue(&leaf, &[]), None)
            }
            2 => {
                leaf.usage = Some(vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth]);
                (fleet.issue(&leaf, &[]), None)
            }
            3 => (below.issue(&leaf, &[&below]), Some(below.pem.clone())),
            4 | 5 => (spare.issue(&leaf, &[]), None),
            6 => (stranger.issue(&leaf, &[]), None),
            7 => (learn.issue(&leaf, &[]), None),
            _ => (fleet.issue(&leaf, &[]), None),
        };
        let pem = identity.pem.clone() + &pem.unwrap_or_default();
        let registered = !matches!(kind, 2 | 6 | 7) && random.next(12) != 0;
        counted &= registered && !matches!(kind, 0 | 1);
        // Below an intermediate: the authority of what was brought along is known by the handshake on record alone.
        let named = kind != 3;
        import(
            &server,
            &id,
            state,
            model,
            &groups,
            registered.then_some(&identity.pem),
        );
        if kind == 7 && random.next(2) == 0 {
            let path = format!("/tenants/default/devices/{id}/authority");
            server
                .ask("PUT", &path, Some(&json!({ "authority": "learn" })))
                .unwrap();
        }
        match random.next(14) {
            moved @ 0..=2 if state == "active" => {
                let attempted = ["suspend", "quarantine", "decommission"][moved];
                let body = json!({ "move": attempted, "reason": "test" });
                server
                    .ask(
                        "POST",
                        &format!("/tenants/default/devices/{id}/moves"),
                        Some(&body),
                    )
                    .unwrap();
            }
            3 if registered => {
                let fingerprint = CertificateFacts::parse(&identity.chain[0]).unwrap().fingerprint;
                server
                    .ask(
                        "POST",
                        &format!("/credentials/{fingerprint}/revoke"),
                        Some(&json!({})),
                    )
                    .unwrap();
                counted = false;
            }
            _ => {}
        }
        cases.push(Case {
            tls12: random.next(5) == 0,
            id,
            identity,
            pem,
            counted,
            named,
        });
    }
    for n in 0..5 {
        let id = format!("jit-{n}");
        let identity = jit.issue(&Leaf::named(&id), &[]);
        cases.push(Case {
            pem: identity.pem.clone(),
            id,
            identity,
            tls12: false,
            counted: false,
            named: true,
        });
    }
    World {
        server,
        cases,
        _folder: folder,
    }
}

/// What became of a case: the code that refused it, or none; and whether its topic was refused.
type Outcome = (Option<String>, Option<bool>);

/// Whether a PUBACK or a SUBACK of one filter, of MQTT 5, says no: its reason code, wherever properties follow or go before.
fn is_refused(packet: &[u8]) -> Option<bool> {
    let reason = match packet {
        // Without a reason code it is 0 (MQTT 5 section 3.4.2.1).
        [0x40, 2, ..] => 0,
        [0x40, _, _, _, reason, ..] => *reason,
        [0x90, _, _, _, properties, rest @ ..] => *rest.get(usize::from(*properties))?,
        _ => return None,
    };
    Some(reason >= 0x80)
}

fn really(server: &Server, case: &Case, client_id: &str, topic: Option<(&str, &str)>) -> Outcome {
    let mut then = match topic {
        Some(("publish", topic)) => publish(5, topic, 1, 0),
        Some((_, filter)) => subscribe(5, filter),
        None => vec![],
    };
    then.extend([0xe0, 0]);
    let attempt = Attempt {
        versions: if case.tls12 { TLS12 } else { TLS13 },
        patience: Duration::from_secs(5),
        then,
        ..Attempt::new(server.devices)
    };
    let seen = attempt.identity(&case.identity).send(connect(5, client_id)).run();
    assert!(!seen.silent, "{}: {seen:?}", case.id);
    if seen.connack() == Some(0) {
        let refused = topic.map(|_| {
            let packets = seen.packets();
            let answer = packets.get(1).unwrap_or_else(|| panic!("{}: {seen:?}", case.id));
            is_refused(answer).unwrap_or_else(|| panic!("{}: {seen:?}", case.id))
        });
        return (None, refused);
    }
    let fingerprint = CertificateFacts::parse(&case.identity.chain[0])
        .unwrap()
        .fingerprint;
    let newest = server
        .ask("GET", &format!("/exchanges?subject={fingerprint}&limit=1"), None)
        .unwrap();
    (
        Some(
            newest[0]["denial"]["code"]
                .as_str()
                .unwrap_or_else(|| panic!("{seen:?} {newest}"))
                .to_owned(),
        ),
        None,
    )
}

fn told(answer: &Value) -> Outcome {
    let failed = answer["layers"]
        .as_array()
        .unwrap()
        .iter()
        .find(|l| l["verdict"] == "failed");
    let topic = answer["layers"]
        .as_array()
        .unwrap()
        .iter()
        .find(|l| l["layer"] == "topic")
        .unwrap();
    match failed {
        Some(layer) if layer["layer"] != "topic" => {
            (Some(layer["denial"]["code"].as_str().unwrap().to_owned()), None)
        }
        _ => (
            None,
            (topic["verdict"] != "not-reached").then(|| topic["verdict"] == "failed"),
        ),
    }
}

/// In by policy: what simulation is about.
fn is_in(outcome: &Outcome) -> bool {
    matches!(outcome.0.as_deref(), None | Some("greet.client-id"))
}

#[test]
fn why_and_simulate_agree_with_the_gateway() {
    let mut random = Random(0x00c0_ffee);
    let World {
        server,
        cases,
        _folder,
    } = world(&mut random);
    // Each comes once, so that its handshake is on record; first contacts stay for the rounds.
    for case in cases.iter().filter(|c| !c.id.starts_with("jit")) {
        really(&server, case, &case.id, None);
    }
    let mut before: BTreeMap<String, bool> = BTreeMap::new();
    let (mut asked, mut admitted, mut topics, mut refused, mut lane) = (0, 0, 0, 0, 0);
    let mut codes: BTreeMap<String, usize> = BTreeMap::new();
    for round in 0..=FORBIDS.len() + ROUNDS {
        let mut policies: Vec<&str> = (0..=random.next(3)).map(|_| *random.one(PERMITS)).collect();
        policies.extend((0..random.next(4)).map(|_| *random.one(FORBIDS)));
        if round <= FORBIDS.len() {
            policies = vec![PERMITS[0]];
            policies.extend(round.checked_sub(1).map(|n| FORBIDS[n]));
        }
        policies.sort_unstable();
        policies.dedup();
        let text = policies.join("\n");
        let draft = json!({ "policies": text, "limit": 0 });
        let simulated = server
            .ask("POST", "/tenants/default/policies/simulate", Some(&draft))
            .unwrap();
        let body = json!({ "policies": text, "reason": format!("round {round}"), "accept_lock_out": true });
        server.ask("PATCH", "/tenants/default", Some(&body)).unwrap();
        let mut after: BTreeMap<String, bool> = BTreeMap::new();
        for case in &cases {
            let client_id = match random.next(8) {
                0 => format!("{}x", case.id),
                _ => case.id.clone(),
            };
            let topic = match random.next(8) {
                0 => Some(("publish", format!("devices/{}/telemetry/t", case.id))),
                1 => Some(("publish", format!("devices/{}/commands/c", case.id))),
                2 => Some(("subscribe", format!("devices/{}/commands/#", case.id))),
                3 => Some(("subscribe", "devices/+/telemetry/#".to_owned())),
                4 => Some(("publish", format!("devices/{}/diagnostics/log", case.id))),
                5 => Some(("subscribe", format!("devices/{}/firmware/#", case.id))),
                _ => None,
            };
            let question = json!({
                "certificate": case.pem, "client_id": client_id, "source": "127.0.0.1",
                "topic": topic.as_ref().map(|t| &t.1), "action": topic.as_ref().map(|t| t.0),
            });
            let answer = server.ask("POST", "/why", Some(&question)).unwrap();
            let expected = told(&answer["answers"][0]);
            let found = really(
                &server,
                case,
                &client_id,
                topic.as_ref().map(|(a, t)| (*a, t.as_str())),
            );
            assert_eq!(expected, found, "round {round}, {}: {text}\n{answer:#}", case.id);
            let whole = found.0.is_none() && found.1 != Some(true);
            assert_eq!(answer["admitted"], whole, "{answer:#}");
            asked += 1;
            admitted += usize::from(found.0.is_none());
            topics += usize::from(found.1.is_some());
            refused += usize::from(found.1 == Some(true));
            let state = answer["answers"][0]["layers"]
                .as_array()
                .unwrap()
                .iter()
                .any(|l| l["layer"] == "lifecycle" && l["fact"].as_str().unwrap().contains("opens the lane"));
            lane += usize::from(state && found.0.is_none());
            *codes.entry(found.0.clone().unwrap_or_default()).or_default() += 1;
            if case.counted {
                after.insert(case.id.clone(), is_in(&found));
            }
            if case.counted && case.named {
                // By its id alone: what is kept here of its certificate says the same.
                let question = json!({ "device": case.id, "client_id": client_id, "source": "127.0.0.1" });
                let answer = server.ask("POST", "/why", Some(&question)).unwrap();
                assert_eq!(told(&answer["answers"][0]).0, found.0, "{answer:#}");
            }
        }
        if round > 0 {
            // Those that are quarantined stand apart; whoever is pending or suspended is out before and after.
            let shifts = [&simulated["devices"], &simulated["quarantined"]];
            let count = |was: bool, is: bool| {
                after
                    .iter()
                    .filter(|(id, now)| before.get(*id) == Some(&was) && **now == is)
                    .count()
            };
            let named = |shift: &str| -> Vec<String> {
                let groups = shifts
                    .iter()
                    .flat_map(|s| s["groups"].as_array().unwrap())
                    .filter(|g| g["shift"] == shift);
                let mut all: Vec<String> = groups
                    .flat_map(|g| g["examples"].as_array().unwrap())
                    .map(|d| d.as_str().unwrap().to_owned())
                    .filter(|id| after.contains_key(id))
                    .collect();
                all.sort();
                all
            };
            for (shift, was, is) in [("locked-out", true, false), ("let-in", false, true)] {
                for id in named(shift) {
                    assert_eq!(
                        (before[&id], after[&id]),
                        (was, is),
                        "round {round}, {id}: {simulated}"
                    );
                }
            }
            // Devices that were learned in the rounds are counted by the simulation, and not here.
            let sum = |key: &str| {
                shifts
                    .iter()
                    .map(|s| s[key].as_u64().unwrap() as usize)
                    .sum::<usize>()
            };
            let learned = sum("locked_out") + sum("let_in");
            assert!(
                learned >= count(true, false) + count(false, true),
                "round {round}: {simulated}"
            );
            assert!(
                learned <= count(true, false) + count(false, true) + 11,
                "round {round}: {simulated}"
            );
        }
        before = after;
    }
    println!(
        "{asked} cases over TLS: {admitted} admitted, {lane} of them into the lane, {topics} topics decided, {refused} refused; {codes:?}"
    );
    assert!(
        asked >= 1_000 && admitted >= 150 && topics >= 100 && codes.len() >= 10,
        "{codes:?}"
    );
    assert!(
        refused >= 20 && topics - refused >= 20 && lane >= 5,
        "{refused} {lane}"
    );
}
