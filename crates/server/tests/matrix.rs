//! Every lifecycle state, protocol and kind of change: what the client sees, why its session ended, and whether it may
//! come back. The outcomes are a committed table, `matrix.txt`; `COUNTERSIGN_BLESS=1` writes it.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use countersign_testkit::client::{Attempt, LastSession, Seen, connect};
use countersign_testkit::pki::{Ca, Identity, Leaf};
use countersign_testkit::server::Server;
use rustls::ClientConfig;
use serde_json::{Value, json};

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/matrix.txt");

/// The lane is open for devices of this group alone.
const POLICIES: &str = r#"
@id("in") permit (principal, action, resource);
@id("lane") @quarantine("open")
permit (principal in Group::"mendable", action == Action::"connect", resource);
"#;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Mqtt311,
    Mqtt5,
    Https,
}

impl Protocol {
    const ALL: [Self; 3] = [Self::Mqtt311, Self::Mqtt5, Self::Https];

    const fn name(self) -> &'static str {
        match self {
            Self::Mqtt311 => "mqtt-3.1.1",
            Self::Mqtt5 => "mqtt-5",
            Self::Https => "https",
        }
    }
}

/// How the session's TLS came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Handshake {
    Full,
    Resumed,
}

impl Handshake {
    const ALL: [Self; 2] = [Self::Full, Self::Resumed];

    const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Resumed => "resumed",
        }
    }
}

/// Where the device stands before the change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Pending,
    Active,
    Suspended,
    QuarantinedShut,
    QuarantinedOpen,
    Decommissioned,
}

impl State {
    const ALL: [Self; 6] = [
        Self::Pending,
        Self::Active,
        Self::Suspended,
        Self::QuarantinedShut,
        Self::QuarantinedOpen,
        Self::Decommissioned,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::QuarantinedShut => "quarantined",
            Self::QuarantinedOpen => "quarantined, lane open",
            Self::Decommissioned => "decommissioned",
        }
    }

    const fn moved_by(self) -> Option<&'static str> {
        match self {
            Self::Pending | Self::Active => None,
            Self::Suspended => Some("suspend"),
            Self::QuarantinedShut | Self::QuarantinedOpen => Some("quarantine"),
            Self::Decommissioned => Some("decommission"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Move(&'static str),
    CredentialRevoked,
    AuthorityRetired,
    AuthorityRevoked,
    PolicyForbids,
    TenantSettings,
    Disconnect,
}

impl Change {
    const ALL: [Self; 12] = [
        Self::Move("activate"),
        Self::Move("suspend"),
        Self::Move("resume"),
        Self::Move("quarantine"),
        Self::Move("release"),
        Self::Move("decommission"),
        Self::CredentialRevoked,
        Self::AuthorityRetired,
        Self::AuthorityRevoked,
        Self::PolicyForbids,
        Self::TenantSettings,
        Self::Disconnect,
    ];

    fn name(self) -> String {
        match self {
            Self::Move(name) => name.into(),
            Self::CredentialRevoked => "credential revoked".into(),
            Self::AuthorityRetired => "authority retired".into(),
            Self::AuthorityRevoked => "authority revoked".into(),
            Self::PolicyForbids => "policy forbids".into(),
            Self::TenantSettings => "tenant settings".into(),
            Self::Disconnect => "operator disconnects".into(),
        }
    }
}

/// A state, a protocol, and how TLS comes about.
type Case = (State, Protocol, Handshake);

/// One device with an authority of its own, in a state.
struct Subject {
    id: String,
    authority: String,
    identity: Identity,
    /// Remembers the session of when it was active; `None`: each of its handshakes is a full one.
    client: Option<Arc<ClientConfig>>,
    /// Where it does.
    session: Arc<LastSession>,
}

struct World {
    _folder: tempfile::TempDir,
    server: Server,
    next: usize,
}

impl World {
    fn new(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_countersign"));
        let server = Server::start(program, &folder.path().join("data"), config).unwrap();
        let world = Self {
            _folder: folder,
            server,
            next: 0,
        };
        world.policies(POLICIES);
        world
    }

    fn policies(&self, text: &str) -> Value {
        // The one device that is asked about is all there is: to lock it out is meant.
        let body = json!({ "policies": text, "reason": "test", "accept_lock_out": true });
        self.server.ask("PATCH", "/tenants/default", Some(&body)).unwrap()
    }

    fn subject(
        &mut self,
        (state, protocol, handshake): Case,
        issue: impl FnOnce(&Ca, &str) -> Identity,
    ) -> Subject {
        self.next += 1;
        let (id, authority) = (format!("m{:03}", self.next), format!("ca-{:03}", self.next));
        let ca = Ca::root(&authority, None);
        let mode = json!({ "mode": "registered-only" });
        self.server.register(&authority, "default", &ca, &mode).unwrap();
        let identity = issue(&ca, &id);
        let groups = if state == State::QuarantinedOpen {
            vec!["mendable"]
        } else {
            vec![]
        };
        let start = if state == State::Pending {
            "pending"
        } else {
            "active"
        };
        let device = json!({ "id": id, "groups": groups, "state": start, "certificate": identity.pem });
        let body = json!({ "devices": [device] });
        let report = self
            .server
            .ask("POST", "/tenants/default/devices/import", Some(&body))
            .unwrap();
        assert_eq!(report["added"], 1, "{report}");
        let mut subject = Subject {
            id,
            authority,
            identity,
            client: None,
            session: Arc::default(),
        };
        if handshake == Handshake::Resumed {
            subject.client = self
                .attempt(&subject, protocol, false)
                .remembering(subject.session.clone())
                .client;
            assert_eq!(self.comes_in(&subject, protocol), "yes");
        }
        if let Some(name) = state.moved_by() {
            self.moved(&subject.id, name).unwrap();
        }
        subject
    }

    fn moved(&self, id: &str, name: &str) -> Result<Value, u16> {
        let body = json!({ "move": name, "reason": "matrix" });
        let path = format!("/tenants/default/devices/{id}/moves");
        match self.server.call("POST", &path, Some(&body)).unwrap() {
            (200, answer) => Ok(answer),
            (status, _) => Err(status),
        }
    }

    fn attempt(&self, subject: &Subject, protocol: Protocol, stays: bool) -> Attempt {
        let mut send = match protocol {
            Protocol::Mqtt311 => connect(4, &subject.id),
            Protocol::Mqtt5 => connect(5, &subject.id),
            Protocol::Https => {
                let close = if stays { "" } else { "Connection: close\r\n" };
                format!("GET /.well-known/est/csrattrs HTTP/1.1\r\nHost: localhost\r\n{close}\r\n")
                    .into_bytes()
            }
        };
        if !stays && protocol != Protocol::Https {
            send.extend([0xe0, 0]);
        }
        Attempt {
            alpn: if protocol == Protocol::Https {
                vec![b"http/1.1".to_vec()]
            } else {
                vec![]
            },
            patience: Duration::from_secs(20),
            client: subject.client.clone(),
            ..Attempt::new(self.server.devices)
        }
        .identity(&subject.identity)
        .send(send)
    }

    /// Whether it is let in, and what it is told if not; and whether its session was taken up again.
    fn comes_in(&self, subject: &Subject, protocol: Protocol) -> String {
        let seen = self.attempt(subject, protocol, false).run();
        let how = if seen.resumed { ", resumed" } else { "" };
        self.told(&seen, protocol) + how
    }

    fn told(&self, seen: &Seen, protocol: Protocol) -> String {
        if let Some(alert) = seen.alert {
            return format!("alert {alert}");
        }
        if protocol == Protocol::Https {
            let text = String::from_utf8_lossy(&seen.data).into_owned();
            let status = text.split(' ').nth(1).unwrap_or("nothing").to_owned();
            return if status == "403" {
                "http 403".into()
            } else {
                "yes".into()
            };
        }
        match seen.connack() {
            Some(0) => "yes".into(),
            Some(code) => format!("connack {code:#04x}"),
            None => format!("nothing: {seen:?}"),
        }
    }

    fn live(&self, subject: &Subject, protocol: Protocol) -> JoinHandle<Seen> {
        let attempt = self.attempt(subject, protocol, true);
        let thread = std::thread::spawn(move || attempt.run());
        let started = Instant::now();
        // And has read its ticket, or it would come back without.
        while !self.is_live(subject) || (subject.client.is_some() && !subject.session.is_some()) {
            assert!(
                started.elapsed() < Duration::from_secs(10),
                "{}: {}",
                subject.id,
                self.server.log()
            );
        }
        thread
    }

    fn is_live(&self, subject: &Subject) -> bool {
        let sessions = self.server.ask("GET", "/sessions", None).unwrap();
        sessions
            .as_array()
            .unwrap()
            .iter()
            .any(|s| s["device"] == subject.id.as_str())
    }

    /// Makes the change. `Err`: the lifecycle's table does not have it. Else what the receipt counts.
    fn change(&self, subject: &Subject, change: Change) -> Result<Value, u16> {
        let authority = |name: &str| {
            let body = json!({ "move": name, "reason": "matrix" });
            let path = format!("/authorities/{}/moves", subject.authority);
            self.server.ask("POST", &path, Some(&body)).unwrap()
        };
        let answer = match change {
            Change::Move(name) => self.moved(&subject.id, name)?,
            Change::CredentialRevoked => {
                let path = format!("/tenants/default/devices/{}/revoke", subject.id);
                self.server.ask("POST", &path, Some(&json!({}))).unwrap()
            }
            Change::AuthorityRetired => {
                authority("retire");
                let body = json!({ "move": "close", "leave_out": 1, "reason": "matrix" });
                let path = format!("/authorities/{}/moves", subject.authority);
                self.server.ask("POST", &path, Some(&body)).unwrap()
            }
            Change::AuthorityRevoked => authority("revoke"),
            Change::PolicyForbids => {
                let forbid = format!(
                    "{POLICIES}\nforbid (principal == Device::\"default/{}\", action == Action::\"connect\", resource);",
                    subject.id
                );
                self.policies(&forbid)
            }
            Change::TenantSettings => {
                let body = json!({ "client_id_mode": "strict" });
                self.server.ask("PATCH", "/tenants/default", Some(&body)).unwrap()
            }
            Change::Disconnect => {
                let path = format!("/tenants/default/devices/{}/sessions", subject.id);
                self.server.ask("DELETE", &path, None).unwrap()
            }
        };
        let receipt = &answer["receipt"];
        assert_eq!(receipt["state"], "complete", "{receipt}");
        Ok(receipt["nodes"][0].clone())
    }

    /// Why the session of a device ended, as the log has it.
    fn end_reason(&self, subject: &Subject) -> String {
        let log = self.server.log();
        let device = format!("device.id={}", subject.id);
        let line = log
            .lines()
            .rev()
            .find(|l| l.contains("session ended") && l.contains(&device))
            .unwrap_or_else(|| panic!("{}: {log}", subject.id));
        let (_, rest) = line.split_once("session.end=").unwrap();
        rest.split_whitespace()
            .next()
            .unwrap()
            .trim_matches('"')
            .to_owned()
    }
}

/// What a client saw of the end.
fn sees(seen: &Seen, protocol: Protocol) -> String {
    assert!(!seen.silent && !seen.reset, "{seen:?}");
    match (protocol, seen.packets().get(1)) {
        (Protocol::Mqtt5, Some(packet)) if packet[0] == 0xe0 => format!("disconnect {:#04x}", packet[2]),
        _ => "close".into(),
    }
}

fn row((state, protocol, handshake): Case, change: &str, outcome: [&str; 3]) -> String {
    let [sees, reason, back] = outcome;
    format!(
        "{:22} {:10} {:7} {change:20} {sees:16} {reason:19} {back}",
        state.name(),
        protocol.name(),
        handshake.name()
    )
}

/// One row of a state in which no session can be: the change, and whether the device comes in before and after.
fn without_session(world: &mut World, case: Case) -> Vec<String> {
    let (state, protocol, _) = case;
    let subject = world.subject(case, |ca, id| ca.issue(&Leaf::named(id), &[]));
    let before = world.comes_in(&subject, protocol);
    assert_ne!(before, "yes", "{state:?} {protocol:?}");
    let mut rows = vec![row(case, "(none)", ["-", "-", &before])];
    for change in Change::ALL {
        let subject = world.subject(case, |ca, id| ca.issue(&Leaf::named(id), &[]));
        let outcome = world.change(&subject, change);
        if let Ok(node) = &outcome {
            assert_eq!((&node["ended"], &node["kept"]), (&json!(0), &json!(0)), "{node}");
        }
        let sees = if outcome.is_ok() { "-" } else { "refused by table" };
        let back = world.comes_in(&subject, protocol);
        rows.push(row(case, &change.name(), [sees, "-", &back]));
        if change == Change::PolicyForbids {
            world.policies(POLICIES);
        }
    }
    rows
}

fn with_session(world: &mut World, case: Case) -> Vec<String> {
    let (state, protocol, handshake) = case;
    let mut rows = Vec::new();
    for change in Change::ALL {
        let subject = world.subject(case, |ca, id| ca.issue(&Leaf::named(id), &[]));
        let session = world.live(&subject, protocol);
        let outcome = world.change(&subject, change);
        let kept = world.is_live(&subject);
        if let Ok(node) = &outcome {
            // The receipt is exact.
            assert_eq!(
                node["ended"],
                u64::from(!kept),
                "{state:?} {protocol:?} {change:?} {node}"
            );
        }
        if kept {
            let back = world.comes_in(&subject, protocol);
            let sees = if outcome.is_ok() {
                "stays"
            } else {
                "refused by table"
            };
            rows.push(row(case, &change.name(), [sees, "-", &back]));
            world.change(&subject, Change::Disconnect).unwrap();
            assert_eq!(session.join().unwrap().resumed, handshake == Handshake::Resumed);
        } else {
            let seen = session.join().unwrap();
            assert_eq!(
                seen.resumed,
                handshake == Handshake::Resumed,
                "{case:?} {change:?}"
            );
            let sees = sees(&seen, protocol);
            // Before it comes in again: that is another session, and ends too.
            let reason = world.end_reason(&subject);
            let back = world.comes_in(&subject, protocol);
            rows.push(row(case, &change.name(), [&sees, &reason, &back]));
        }
        if change == Change::PolicyForbids {
            world.policies(POLICIES);
        }
    }
    rows
}

/// Sessions that time ends: all at once, for they have to be waited for.
fn by_time(world: &mut World, change: &str, issue: impl Fn(&Ca, &str) -> Identity) -> Vec<String> {
    let mut open = Vec::new();
    for handshake in Handshake::ALL {
        for state in [State::Active, State::QuarantinedOpen] {
            for protocol in Protocol::ALL {
                if state == State::Active || protocol != Protocol::Https {
                    let case = (state, protocol, handshake);
                    let subject = world.subject(case, &issue);
                    let session = world.live(&subject, protocol);
                    open.push((case, subject, session));
                }
            }
        }
    }
    open.into_iter()
        .map(|(case, subject, session)| {
            let (_, protocol, handshake) = case;
            let seen = session.join().unwrap();
            assert_eq!(seen.resumed, handshake == Handshake::Resumed, "{case:?}");
            let sees = sees(&seen, protocol);
            let reason = world.end_reason(&subject);
            let back = world.comes_in(&subject, protocol);
            row(case, change, [&sees, &reason, &back])
        })
        .collect()
}

#[test]
fn every_state_protocol_and_change_has_the_committed_outcome() {
    let mut rows = vec![
        "# Of a session in a state, when something changes: what the client sees, why the session ended, and whether the device comes in again.".to_owned(),
        "# state                protocol   TLS     change               client sees      end reason          comes in".to_owned(),
    ];
    let mut world = World::new("");
    for handshake in Handshake::ALL {
        for state in State::ALL {
            for protocol in Protocol::ALL {
                let case = (state, protocol, handshake);
                // A device that was never let in was given no ticket.
                if (state, handshake) == (State::Pending, Handshake::Resumed) {
                    continue;
                }
                let lives = state == State::Active
                    || (state == State::QuarantinedOpen && protocol != Protocol::Https);
                rows.extend(if lives {
                    with_session(&mut world, case)
                } else {
                    without_session(&mut world, case)
                });
            }
        }
    }
    rows.extend(by_time(&mut world, "certificate expires", |ca, id| {
        ca.issue_for_seconds(id, 15)
    }));
    drop(world);
    let mut world = World::new("[limits]\nsession_age_max_s = 4\n");
    rows.extend(by_time(&mut world, "session too old", |ca, id| {
        ca.issue(&Leaf::named(id), &[])
    }));
    let text = rows.join("\n") + "\n";
    if std::env::var_os("COUNTERSIGN_BLESS").is_some() {
        std::fs::write(TABLE, &text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(TABLE).unwrap_or_default(), text);
}
