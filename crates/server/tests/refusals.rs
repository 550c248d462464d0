//! Drives the refusal table: each case against the real server, read by a client, and looked up in the ledger.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use countersign_testkit::client::{
    self, Attempt, Seen, TLS12, connect, connect_with, connect_with_will, publish, subscribe,
};
use countersign_testkit::pki::{self, Ca, Identity, Leaf};
use countersign_testkit::server::Server;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    code: String,
    alert: Option<u8>,
    connack: Option<Vec<u8>>,
    http: Option<u16>,
    session: Option<u8>,
    #[serde(default)]
    close: bool,
    #[serde(default)]
    device: bool,
    possession: String,
    cure: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    case: Vec<Case>,
    elsewhere: BTreeMap<String, String>,
}

fn table() -> Table {
    toml::from_str(include_str!("refusals.toml")).unwrap()
}

/// A server, a PKI that it knows, and one that it does not.
struct World {
    _folder: tempfile::TempDir,
    server: Server,
    root: Ca,
    issuing: Ca,
    tight: Ca,
    unproven: Ca,
    first_contact: Ca,
    just_in_time: Ca,
    stale: Ca,
    listed: Identity,
    good: Identity,
    known: BTreeMap<&'static str, Identity>,
}

const CONFIG: &str = r#"
[server]
host_names = ["localhost", "other.test"]
[limits]
handshake_timeout_s = 1
connect_timeout_s = 1
packet_bytes_max = 65536
"#;

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let server =
            Server::start(Path::new(env!("CARGO_BIN_EXE_countersign")), &folder.path().join("data"), CONFIG).unwrap();
        let root = Ca::root("refusals root", None);
        let issuing = root.below("refusals issuing", Some(0));
        let tight = Ca::root("refusals tight root", Some(0));
        let other = Ca::root("refusals other tenant", None);
        let register = |id: &str, tenant: &str, ca: &Ca| {
            server.register(id, tenant, ca, &json!({ "mode": "registered-only" })).unwrap();
        };
        server.ask("POST", "/tenants", Some(&json!({ "id": "other" }))).unwrap();
        server.ask("POST", "/tenants", Some(&json!({ "id": "closed" }))).unwrap();
        server.ask("POST", "/tenants", Some(&json!({ "id": "forbids" }))).unwrap();
        server.ask("POST", "/tenants/other/hosts", Some(&json!({ "host": "other.test" }))).unwrap();
        // A certificate that names one device, registered for another: before there was an authority whose rule says so.
        let alias = root.issue(&Leaf::named("alias"), &[]);
        import(&server, "default", "owner", "active", &alias);
        register("refusals-root", "default", &root);
        register("refusals-tight", "default", &tight);
        register("refusals-other", "other", &other);
        server.ask("PATCH", "/tenants/closed", Some(&json!({ "policies": "", "reason": "test", "accept_lock_out": true }))).unwrap();
        let forbid = r#"@id("everyone") permit (principal, action, resource); @id("not-now") forbid (principal, action, resource);"#;
        server.ask("PATCH", "/tenants/forbids", Some(&json!({ "policies": forbid }))).unwrap();
        let mut known = BTreeMap::new();
        for name in ["good", "pending", "suspended", "quarantined", "decommissioned", "revoked", "expired", "early", "eku", "client-id", "trust"] {
            let mut leaf = Leaf::named(name);
            match name {
                "expired" => leaf.days = (-30, -1),
                "early" => leaf.days = (1, 30),
                "eku" => leaf.usage = Some(vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth]),
                _ => {}
            }
            let identity = root.issue(&leaf, &[]);
            let state = if name == "pending" { "pending" } else { "active" };
            import(&server, "default", name, state, &identity);
            known.insert(name, identity);
        }
        known.insert("alias", alias);
        for (tenant, name) in [("closed", "closed"), ("forbids", "forbids")] {
            let ca = Ca::root(&format!("refusals {tenant}"), None);
            register(&format!("refusals-{tenant}"), tenant, &ca);
            let identity = ca.issue(&Leaf::named(name), &[]);
            import(&server, tenant, name, "active", &identity);
            known.insert(name, identity);
        }
        for (id, attempted) in
            [("suspended", "suspend"), ("quarantined", "quarantine"), ("decommissioned", "decommission")]
        {
            let path = format!("/tenants/default/devices/{id}/moves");
            server.ask("POST", &path, Some(&json!({ "move": attempted, "reason": "test" }))).unwrap();
        }
        let fingerprint = server.ask("GET", "/tenants/default/devices/revoked", None).unwrap();
        let fingerprint = fingerprint["credentials"][0]["fingerprint"].as_str().unwrap().to_owned();
        server.ask("POST", &format!("/credentials/{fingerprint}/revoke"), Some(&json!({}))).unwrap();
        let good = known["good"].clone();
        let unproven = Ca::root("refusals unproven", None);
        let body = json!({ "id": "unproven", "tenant": "default", "certificate": unproven.pem });
        server.ask("POST", "/authorities", Some(&body)).unwrap();
        let first_contact = Ca::root("refusals known-device", None);
        server.register("known", "default", &first_contact, &json!({ "mode": "known-device" })).unwrap();
        for (id, authority) in [("unbound", None), ("has-key", Some("known")), ("shares", Some("known"))] {
            let body = json!({ "id": id, "authority": authority });
            server.ask("POST", "/tenants/default/devices", Some(&body)).unwrap();
        }
        import(&server, "default", "has-key", "active", &first_contact.issue(&Leaf::named("has-key"), &[]));
        let stolen = first_contact.issue(&Leaf::named("stolen"), &[]);
        let device = json!({ "id": "stolen", "authority": "known", "certificate": stolen.pem });
        server.ask("POST", "/tenants/default/devices/import", Some(&json!({ "devices": [device] }))).unwrap();
        let reason = json!({ "code": "key-compromise" });
        server.ask("POST", "/tenants/default/devices/stolen/revoke", Some(&reason)).unwrap();
        known.insert("stolen", stolen);
        let just_in_time = Ca::root("refusals just-in-time", None);
        let template = json!({ "mode": "just-in-time", "id_pattern": "jit-*", "quota": 0 });
        server.register("jit", "default", &just_in_time, &template).unwrap();
        let lists = Ca::root("refusals lists", None);
        let stale = Ca::root("refusals stale", None);
        let listed = lists.issue(&Leaf::named("listed"), &[]);
        for (id, ca, list) in [
            ("lists", &lists, lists.revocation_list(&[&listed], 1, (-1, 60))),
            ("stale", &stale, stale.revocation_list(&[], 1, (-60, -1))),
        ] {
            register(id, "default", ca);
            let path = format!("/authorities/{id}/revocation-list");
            server.ask("POST", &path, Some(&json!({ "lists": list }))).unwrap();
        }
        for name in ["pin", "pin-early", "pin-revoked"] {
            let identity = pki::self_signed_from("what it calls itself", if name == "pin-early" { 2 } else { -1 });
            server.ask("POST", "/tenants/default/devices", Some(&json!({ "id": name }))).unwrap();
            let path = format!("/tenants/default/devices/{name}/pins");
            let pinned = server.ask("POST", &path, Some(&json!({ "certificate": identity.pem }))).unwrap();
            if name == "pin-revoked" {
                let fingerprint = pinned["fingerprint"].as_str().unwrap();
                server.ask("POST", &format!("/credentials/{fingerprint}/revoke"), Some(&json!({}))).unwrap();
            }
            known.insert(name, identity);
        }
        let unpinned = pki::self_signed("unpinned");
        import(&server, "default", "unpinned", "active", &unpinned);
        known.insert("unpinned", unpinned);
        World { stale, listed, _folder: folder, server, root, issuing, tight, unproven, first_contact, just_in_time, good, known }
    })
}

fn import(server: &Server, tenant: &str, id: &str, state: &str, identity: &Identity) {
    let device = json!({ "id": id, "state": state, "certificate": identity.pem });
    let body = json!({ "devices": [device] });
    let report = server
        .ask("POST", &format!("/tenants/{tenant}/devices/import"), Some(&body))
        .unwrap();
    assert_eq!(report["credentials_added"], 1, "{report}");
}

/// What a case does, in one MQTT version.
fn drive(world: &World, case: &Case, level: u8) -> Seen {
    let to = world.server.devices;
    let attempt = Attempt::new(to);
    let known = |name: &str| {
        attempt
            .clone()
            .identity(&world.known[name])
            .send(connect(level, name))
    };
    let leaf = |ca: &Ca, name: &str, above: &[&Ca]| {
        attempt
            .clone()
            .identity(&ca.issue(&Leaf::named(name), above))
            .send(connect(level, name))
    };
    let good = || attempt.clone().identity(&world.good);
    let session = |then: Vec<u8>| {
        Attempt {
            then,
            ..known("good")
        }
        .run()
    };
    match case.name.as_str() {
        "no certificate" => attempt.run(),
        "self-signed" => attempt.identity(&pki::self_signed("good")).run(),
        "unknown CA" => leaf(&Ca::root("nobody", None), "good", &[]).run(),
        "self-signed, registered but not pinned" => known("unpinned").run(),
        "pinned, not yet valid" => known("pin-early").run(),
        "pinned, revoked" => known("pin-revoked").run(),
        "pinned, by another tenant's server name" => Attempt {
            name: "other.test".into(),
            ..known("pin")
        }
        .run(),
        "pinned certificate without its key" => {
            let mut thief = world.known["pin"].clone();
            thief.key = pki::self_signed("pin").key;
            attempt.identity(&thief).send(connect(level, "pin")).run()
        }
        "on its issuer's revocation list" => attempt
            .identity(&world.listed)
            .send(connect(level, "listed"))
            .run(),
        "its issuer's revocation list is stale" => leaf(&world.stale, "good", &[]).run(),
        "CA of the same name with another key" => leaf(&world.root.twin(), "good", &[]).run(),
        "CA of another tenant" => Attempt {
            name: "other.test".into(),
            ..known("good")
        }
        .run(),
        "server name of nobody" => Attempt {
            name: "nobody.test".into(),
            ..known("good")
        }
        .run(),
        "expired" => known("expired").run(),
        "not yet valid" => known("early").run(),
        "wrong extended key usage" => known("eku").run(),
        "CA certificate as leaf" => attempt
            .clone()
            .identity(&world.root.issue(
                &Leaf {
                    ca: true,
                    ..Leaf::named("good")
                },
                &[],
            ))
            .run(),
        "path length of an intermediate exceeded" => {
            let below = world.issuing.below("too deep", None);
            leaf(&below, "good", &[&below, &world.issuing]).run()
        }
        "path length of the anchor exceeded" => {
            let below = world.tight.below("one too many", None);
            leaf(&below, "good", &[&below]).run()
        }
        "revoked credential" => known("revoked").run(),
        "certificate without its key" => {
            let thief = pki::self_signed("thief");
            let identity = Identity {
                key: thief.key.clone_key(),
                ..world.good.clone()
            };
            attempt.identity(&identity).send(connect(level, "good")).run()
        }
        "unknown device" => leaf(&world.root, "nobody-knows-me", &[]).run(),
        "unknown credential of a known device" => leaf(&world.root, "good", &[]).run(),
        "unproven authority" => leaf(&world.unproven, "good", &[]).run(),
        "first contact of a device that is bound to no authority" => {
            leaf(&world.first_contact, "unbound", &[]).run()
        }
        "first contact with another key" => leaf(&world.first_contact, "has-key", &[]).run(),
        "first contact with another device's key" => attempt
            .identity(
                &world
                    .first_contact
                    .issue_again(&Leaf::named("shares"), &world.good),
            )
            .send(connect(level, "shares"))
            .run(),
        "first contact with a key of which a certificate was revoked" => attempt
            .identity(
                &world
                    .first_contact
                    .issue_again(&Leaf::named("stolen"), &world.known["stolen"]),
            )
            .send(connect(level, "stolen"))
            .run(),
        "just-in-time, id outside the pattern" => leaf(&world.just_in_time, "other", &[]).run(),
        "just-in-time, quota used up" => leaf(&world.just_in_time, "jit-1", &[]).run(),
        "credential registered for another device" => attempt
            .identity(&world.known["alias"])
            .send(connect(level, "alias"))
            .run(),
        "pending" | "suspended" | "quarantined" | "decommissioned" => known(&case.name).run(),
        "policy forbids" => known("forbids").run(),
        "no policy permits" => known("closed").run(),
        "client id of another device" => attempt
            .identity(&world.known["client-id"])
            .send(connect(level, "good"))
            .run(),
        "certificate without the identity field" => {
            let identity = world.root.issue(
                &Leaf {
                    common_names: vec![],
                    ..Leaf::named("")
                },
                &[],
            );
            attempt.identity(&identity).send(connect(level, "good")).run()
        }
        "identity with wildcard characters" => leaf(&world.root, "dev-+/#", &[]).run(),
        "CleanSession 0" => good().send(connect_with(level, "good", 0, &[])).run(),
        "will of QoS 2" => good()
            .send(connect_with_will(level, "good", 0x16, "devices/good/status"))
            .run(),
        "retained will" => good()
            .send(connect_with_will(level, "good", 0x26, "devices/good/status"))
            .run(),
        "will to a foreign topic" => good()
            .send(connect_with_will(level, "good", 0x06, "devices/other/status"))
            .run(),
        "MQTT version that is not served" => {
            good().send(connect(if level == 5 { 6 } else { 3 }, "good")).run()
        }
        "foreign topic" => {
            // In MQTT 5 it is told by PUBACK and the session lives on: the client leaves by itself.
            let mut packets = publish(level, "devices/other/telemetry", 1, 0);
            packets.extend([0xe0, 0]);
            session(packets)
        }
        "shared subscription" => {
            let mut packets = subscribe(level, "$share/all/devices/good/commands/#");
            packets.extend([0xe0, 0]);
            session(packets)
        }
        "topic with wildcards" => session(publish(level, "devices/good/telemetry/#", 1, 0)),
        "QoS 2" => session(publish(level, "devices/good/telemetry", 2, 0)),
        "retained message" => session(publish(level, "devices/good/telemetry", 1, 1)),
        "second CONNECT" => session(connect(level, "good")),
        "oversize packet" => session(vec![0x30, 0xff, 0xff, 0xff, 0x7f]),
        "oversize CONNECT" => {
            let mut start = connect(level, "good");
            start.splice(1..2, [0xff, 0xff, 0xff, 0x7f]);
            good().send(start).run()
        }
        "garbage in TLS" => good().send(vec![0x10, 0xff, 0xff, 0xff, 0xff, 0xff]).run(),
        "CONNECT not first" => good().send(publish(level, "devices/good/telemetry", 0, 0)).run(),
        "protocol name that is not MQTT" => {
            let mut packet = connect(level, "good");
            packet[4..8].copy_from_slice(b"MQTX");
            good().send(packet).run()
        }
        "application protocol that is not served" => Attempt {
            alpn: vec![b"h2".to_vec()],
            ..known("good")
        }
        .run(),
        "MQTT over a connection that chose HTTP" => over_http(good()).send(connect(level, "good")).run(),
        "HTTP/1.0" => over_http(good()).send(b"GET / HTTP/1.0\r\n\r\n".to_vec()).run(),
        "a suspended device, over HTTP" => over_http(known("suspended"))
            .send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec())
            .run(),
        "silent after the handshake" => good().run(),
        "device does not trust us" => Attempt {
            trust: false,
            ..known("trust")
        }
        .run(),
        "plaintext on the TLS port" => plain(world, &connect(level, "good")),
        "garbage" => plain(world, &[0x47; 600]),
        "TLS 1.1" => plain(world, &tls11_hello()),
        "silent before the handshake" => plain(world, &[]),
        // A whole record header, and no more.
        "silent in the handshake" => silent_in_handshake(world),
        other => panic!("the table has the case {other:?}, and no code drives it"),
    }
}

fn over_http(attempt: Attempt) -> Attempt {
    Attempt {
        alpn: vec![b"http/1.1".to_vec()],
        send: vec![],
        ..attempt
    }
}

fn plain(world: &World, bytes: &[u8]) -> Seen {
    match client::plain(world.server.devices, bytes, Duration::from_secs(10)) {
        // An alert as a plain record: type 21, version, length 2, level 2, description.
        Some(data) if data.len() == 7 && data[0] == 21 => Seen {
            alert: Some(data[6]),
            ..Seen::default()
        },
        Some(data) => Seen {
            data,
            ..Seen::default()
        },
        None => Seen {
            silent: true,
            ..Seen::default()
        },
    }
}

/// A ClientHello of TLS 1.1, complete and well-formed, with no supported_versions.
fn tls11_hello() -> Vec<u8> {
    let mut body = vec![3, 2];
    body.extend([7; 32]);
    body.push(0);
    body.extend([0, 4, 0xc0, 0x13, 0xc0, 0x14, 1, 0]);
    let mut message = vec![1, 0, 0, u8::try_from(body.len()).unwrap()];
    message.extend(body);
    let mut record = vec![22, 3, 1, 0, u8::try_from(message.len()).unwrap()];
    record.extend(message);
    record
}

/// Sends a good ClientHello and nothing after it.
fn silent_in_handshake(world: &World) -> Seen {
    use std::io::{Read, Write};
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let mut tls = rustls::ClientConnection::new(std::sync::Arc::new(config), name).unwrap();
    let mut hello = Vec::new();
    tls.write_tls(&mut hello).unwrap();
    let mut socket = std::net::TcpStream::connect(world.server.devices).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket.write_all(&hello).unwrap();
    let mut sink = Vec::new();
    match socket.read_to_end(&mut sink) {
        Ok(_) => Seen::default(),
        Err(e) => Seen {
            silent: e.kind() == std::io::ErrorKind::WouldBlock,
            reset: true,
            ..Seen::default()
        },
    }
}

/// The newest refused exchange with a code.
fn newest(world: &World, code: &str) -> Option<Value> {
    let found = world
        .server
        .ask("GET", "/exchanges?refused=true&limit=30", None)
        .unwrap();
    found
        .as_array()
        .unwrap()
        .iter()
        .find(|e| e["denial"]["code"] == code)
        .cloned()
}

fn check(world: &World, case: &Case, level: u8) -> Result<(), String> {
    let before = newest(world, &case.code).map(|e| e["id"].clone());
    let started = Instant::now();
    let seen = drive(world, case, level);
    let took = started.elapsed();
    let wrong = |what: String| Err(format!("{} (level {level}): {what}; saw {seen:?}", case.name));
    if seen.silent || seen.reset && !case.device {
        return wrong("the connection was not ended in order".into());
    }
    // Silence is bounded in time: one second is configured, the wheel may be half a second late.
    if case.name.starts_with("silent") && took > Duration::from_secs(4) {
        return wrong(format!("it took {took:?}"));
    }
    if let Some(alert) = case.alert
        && seen.alert != Some(alert)
    {
        return wrong(format!("expected alert {alert}"));
    }
    if let Some(connack) = &case.connack {
        let expected = connack[usize::from(level == 5)];
        if seen.connack() != Some(expected) || seen.packets().len() != 1 {
            return wrong(format!("expected CONNACK {expected:#x} and nothing else"));
        }
    }
    // The answer is of the request's version.
    let answered = |version: &str, status| seen.data.starts_with(format!("{version} {status} ").as_bytes());
    if let Some(status) = case.http
        && !answered("HTTP/1.1", status)
        && !answered("HTTP/1.0", status)
    {
        return wrong(format!("expected HTTP {status}"));
    }
    if let Some(code) = case.session {
        let packets = seen.packets();
        let answered = match packets.as_slice() {
            [connack] => connack[3] == 0 && level == 4,
            // A SUBACK, which says no more in 3.1.1.
            [connack, answer] if answer[0] == 0x90 => {
                let told = if level == 5 { code } else { 0x80 };
                connack[3] == 0 && answer.last() == Some(&told)
            }
            // DISCONNECT, or a PUBACK, with the reason code.
            [connack, answer] if level == 5 => {
                connack[3] == 0
                    && match answer[0] {
                        0xe0 => answer.get(2) == Some(&code),
                        0x40 => answer.get(4) == Some(&code),
                        _ => false,
                    }
            }
            _ => false,
        };
        if !answered {
            return wrong(format!("expected {code:#x} after CONNACK"));
        }
    }
    if case.close && (!seen.data.is_empty() || seen.alert.is_some()) {
        return wrong("expected nothing but the end".into());
    }
    // Where the client ends it, the server may learn of it a moment later.
    let exchange = loop {
        match newest(world, &case.code).filter(|e| Some(&e["id"]) != before.as_ref()) {
            Some(exchange) => break exchange,
            None if started.elapsed() > took + Duration::from_secs(2) => {
                return wrong(format!("the ledger has no new exchange with {}", case.code));
            }
            None => {}
        }
    };
    if exchange["possession"] != case.possession {
        return wrong(format!("possession is {}", exchange["possession"]));
    }
    let code: countersign_policy::DenialCode = case.code.parse()?;
    if !code.cure().contains(&case.cure) {
        return wrong(format!("the cure of {code} is {:?}", code.cure()));
    }
    // What is known of the certificate is in the record, so that the refusal can be tied to it.
    if case.possession == "proven"
        && case.session.is_none()
        && exchange["certificate"]["fingerprint"].is_null()
    {
        return wrong("the record does not name the certificate".into());
    }
    Ok(())
}

#[test]
fn every_case_of_the_table_is_refused_as_it_says() {
    let world = world();
    let mut faults = Vec::new();
    for case in table().case {
        let levels: &[u8] = match &case.connack {
            Some(codes) if codes.len() == 1 => &[4],
            _ if case.connack.is_some() || case.session.is_some() => &[4, 5],
            _ => &[4],
        };
        for level in levels {
            if let Err(e) = check(world, &case, *level) {
                faults.push(e);
            }
        }
    }
    assert!(
        faults.is_empty(),
        "{} cases are wrong:\n{}",
        faults.len(),
        faults.join("\n")
    );
    // After all that, the good device still comes in, in both TLS versions and both MQTT versions.
    for (versions, level) in [(client::TLS13, 4), (client::TLS13, 5), (TLS12, 4), (TLS12, 5)] {
        let attempt = Attempt {
            versions,
            patience: Duration::from_millis(500),
            ..Attempt::new(world.server.devices)
        };
        let seen = attempt.identity(&world.good).send(connect(level, "good")).run();
        assert_eq!(seen.connack(), Some(0), "{level}: {seen:?}");
    }
    let (_, metrics) =
        countersign_testkit::server::http(world.server.admin, "GET", "/metrics", None, None).unwrap();
    assert!(metrics.contains("countersign_panics_total 0"), "{metrics}");
    assert!(
        metrics.contains(r#"countersign_exchanges_refused_total{code="chain.expired"}"#),
        "{metrics}"
    );
}

#[test]
fn every_code_is_driven_or_says_where_else() {
    let table = table();
    let driven: BTreeSet<&str> = table.case.iter().map(|c| c.code.as_str()).collect();
    for code in countersign_policy::DenialCode::ALL {
        let code = code.as_str();
        assert!(
            driven.contains(code) != table.elsewhere.contains_key(code),
            "{code}: once in the table, please"
        );
    }
    for code in table.elsewhere.keys() {
        code.parse::<countersign_policy::DenialCode>().unwrap();
    }
}

#[test]
fn one_line_per_refusal_can_be_counted() {
    let world = world();
    for _ in 0..5 {
        Attempt::new(world.server.devices)
            .identity(&pki::self_signed("counted"))
            .run();
    }
    let log = world.server.log();
    let lines: Vec<_> = log.lines().filter(|l| l.contains("CN=counted")).collect();
    assert_eq!(lines.len(), 5, "{log}");
    for part in [
        "denial.code=\"chain.self-signed\"",
        "certificate.serial=",
        "certificate.fingerprint=",
        "source=127.0.0.1",
    ] {
        assert!(lines[0].contains(part), "{part} is not in: {}", lines[0]);
    }
}
