//! Session tokens and publishing over HTTPS, with curl as the device.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

mod token_world;

use std::time::{Duration, Instant};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_testkit::client::{Attempt, connect, subscribe};
use countersign_testkit::pki::{self, Ca, Leaf};
use countersign_testkit::server::http;
use serde_json::{Value, json};

use token_world::{TOKEN, World, forgeries, read};

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is() {
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "not within 10 s: {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_device_takes_a_token_by_its_certificate_and_uses_it_on_other_connections() {
    let world = World::new("[tokens]\nresources = [\"https://data.example\"]");
    let identity = world.device("d1");
    let reply = world.at("d1", "/oauth2/token", &[TOKEN, &["client_id=d1"]].concat());
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert!(reply.head.contains("cache-control: no-store"), "{}", reply.head);
    let answer = reply.json();
    assert_eq!(answer["token_type"], "Bearer");
    assert!(
        matches!(answer["expires_in"].as_u64(), Some(599 | 600)),
        "{answer}"
    );
    let scope =
        "publish:telemetry publish:command-results publish:firmware publish:status publish:diagnostics";
    assert_eq!(answer["scope"], scope);
    let token = answer["access_token"].as_str().unwrap();
    assert!(token.len() < 4096);

    // RFC 9068, RFC 8705.
    let (header, claims) = read(token);
    assert_eq!(
        (header["typ"].as_str(), header["alg"].as_str()),
        (Some("at+jwt"), Some("ES256"))
    );
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &identity.chain[0]);
    let bound = URL_SAFE_NO_PAD.encode(digest);
    assert_eq!(claims["cnf"], json!({ "x5t#S256": bound }));
    assert_eq!(bound.len(), 43);
    for (name, value) in [
        ("iss", world.issuer()),
        ("aud", world.issuer()),
        ("sub", "urn:countersign:default:d1".into()),
        ("client_id", "d1".into()),
        ("tenant", "default".into()),
        ("scope", scope.into()),
    ] {
        assert_eq!(claims[name], value, "{name}");
    }
    assert_eq!(
        claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(),
        600
    );

    // Anybody checks it by the published keys: the next one is published too.
    let jwks = world.at("d1", "/.well-known/jwks.json", &[]);
    assert!(jwks.head.contains("application/jwk-set+json") && jwks.head.contains("max-age=300"));
    let (_, same) = http(world.server.admin, "GET", "/.well-known/jwks.json", None, None).unwrap();
    assert_eq!(jwks.json(), serde_json::from_str::<Value>(&same).unwrap());
    let keys = jwks.json()["keys"].as_array().unwrap().clone();
    assert_eq!(keys.len(), 2);
    let key = keys.iter().find(|k| k["kid"] == header["kid"]).unwrap();
    let mut point = vec![4];
    for name in ["x", "y"] {
        point.extend(URL_SAFE_NO_PAD.decode(key[name].as_str().unwrap()).unwrap());
    }
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    assert_eq!(signature.len(), 64);
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &point)
        .verify(signed.as_bytes(), &signature)
        .unwrap();
    let metadata = world
        .at("d1", "/.well-known/oauth-authorization-server", &[])
        .json();
    assert_eq!(metadata["issuer"], world.issuer());
    assert_eq!(metadata["tls_client_certificate_bound_access_tokens"], true);
    assert!(
        metadata["introspection_endpoint"]
            .as_str()
            .unwrap()
            .ends_with("/oauth2/introspect")
    );

    // It is a session, without a connection; each curl is a connection of its own.
    let listed = world.tokens();
    assert_eq!(listed.len(), 1);
    assert_eq!(
        listed[0]["client_id"],
        format!("token:{}", claims["jti"].as_str().unwrap())
    );
    assert_eq!(listed[0]["expires"], claims["exp"].as_i64().unwrap() * 1000);
    assert_eq!(world.metric("countersign_tokens"), 1);
    let reply = world.publish("d1", "devices/d1/telemetry/t", Some(token), &[]);
    assert_eq!(reply.status, 204, "{}", reply.body);

    // Narrower, and for somebody else: the device port does not take that one.
    let narrow = [TOKEN, &["client_id=d1", "-d", "scope=publish:status"]].concat();
    let narrow = world.at("d1", "/oauth2/token", &narrow).json();
    assert_eq!(narrow["scope"], "publish:status");
    let narrow = narrow["access_token"].as_str().unwrap();
    assert_eq!(
        world.publish("d1", "devices/d1/status", Some(narrow), &[]).status,
        204
    );
    let reply = world.publish("d1", "devices/d1/telemetry/t", Some(narrow), &[]);
    assert_eq!(
        (reply.status, &reply.json()["code"]),
        (403, &json!("token.scope"))
    );
    assert!(reply.head.contains("insufficient_scope"), "{}", reply.head);
    let elsewhere = [TOKEN, &["client_id=d1", "-d", "resource=https://data.example"]].concat();
    let elsewhere = world.at("d1", "/oauth2/token", &elsewhere).json();
    let elsewhere = elsewhere["access_token"].as_str().unwrap();
    assert_eq!(read(elsewhere).1["aud"], "https://data.example");
    assert_eq!(
        world
            .publish("d1", "devices/d1/status", Some(elsewhere), &[])
            .status,
        401
    );
}

#[test]
fn what_is_no_request_for_a_token_is_told_why() {
    let world = World::new("[limits]\ntokens_per_device_max = 2\ntokens_per_tenant_max = 3");
    world.device("d1");
    world.device("d2");
    let check = |name: &str, arguments: &[&str], status: u16, error: &str| {
        let reply = world.at("d1", "/oauth2/token", arguments);
        assert_eq!(reply.status, status, "{name}: {}", reply.body);
        assert_eq!(reply.json()["error"], error, "{name}: {}", reply.body);
        assert!(reply.head.contains("no-store"), "{name}");
    };
    let grant = "grant_type=client_credentials";
    check("no grant type", &["-d", "client_id=d1"], 400, "invalid_request");
    check(
        "another",
        &["-d", "client_id=d1&grant_type=password"],
        400,
        "unsupported_grant_type",
    );
    check("no client", &["-d", grant], 400, "invalid_request");
    check(
        "another client",
        &["-d", grant, "-d", "client_id=d2"],
        401,
        "invalid_client",
    );
    check(
        "twice",
        &["-d", grant, "-d", grant, "-d", "client_id=d1"],
        400,
        "invalid_request",
    );
    check(
        "a secret",
        &["-d", grant, "-d", "client_id=d1&client_secret=x"],
        400,
        "invalid_request",
    );
    check(
        "basic",
        &["-u", "d1:x", "-d", grant, "-d", "client_id=d1"],
        400,
        "invalid_request",
    );
    for scope in [
        "everything",
        "publish:nothing",
        "publish:commands",
        "publish:status publish:commands",
    ] {
        let scope = format!("client_id=d1&scope={scope}");
        check("scope", &["-d", grant, "-d", &scope], 400, "invalid_scope");
    }
    // What the policies do not permit is a denial like any other; what is no scope at all is a request like no other.
    let refused = world.refusals("d1");
    let forbidden = refused.iter().filter(|code| *code == "token.scope-forbidden");
    assert_eq!(forbidden.count(), 3, "{refused:?}");
    check(
        "resource",
        &["-d", grant, "-d", "client_id=d1&resource=https://x.example"],
        400,
        "invalid_target",
    );
    check("a GET", &["-G"], 405, "invalid_request");
    check(
        "JSON",
        &["-H", "Content-Type: application/json", "-d", "{}"],
        415,
        "invalid_request",
    );
    let big = world.write("big", &"a".repeat(20_000));
    check(
        "too large",
        &["--data-binary", &format!("@{big}")],
        413,
        "invalid_request",
    );
    assert!(world.tokens().is_empty());

    // Bounded per device, and giving one back makes room.
    let first = world.token("d1");
    world.token("d1");
    let ask = [TOKEN, &["client_id=d1"]].concat();
    let reply = world.at("d1", "/oauth2/token", &ask);
    assert_eq!((reply.status, &reply.json()["error"]), (429, &json!("slow_down")));
    assert!(reply.head.contains("retry-after"), "{}", reply.head);
    assert!(world.refusals("d1").contains(&"token.limit".to_owned()));
    assert_eq!(world.metric("countersign_tokens_refused_total"), 4);
    world.token("d2");
    // Its tenant has three now.
    let reply = world.at("d2", "/oauth2/token", &[TOKEN, &["client_id=d2"]].concat());
    assert_eq!((reply.status, &reply.json()["error"]), (429, &json!("slow_down")));
    assert!(world.refusals("d2").contains(&"token.limit".to_owned()));
    // RFC 7009: another device cannot, what is none is taken back already, and the device itself can.
    let form = format!("token={first}");
    let reply = world.at("d2", "/oauth2/revoke", &["-d", &form]);
    assert_eq!(
        (reply.status, &reply.json()["error"]),
        (400, &json!("unauthorized_client"))
    );
    assert_eq!(
        world.at("d1", "/oauth2/revoke", &["-d", "token=none"]).status,
        200
    );
    assert_eq!(world.at("d1", "/oauth2/revoke", &["-d", "x=y"]).status, 400);
    assert_eq!(world.tokens().len(), 3);
    assert_eq!(world.at("d1", "/oauth2/revoke", &["-d", &form]).status, 200);
    until("the token is taken out", || world.tokens().len() == 2);
    assert_eq!(
        world.publish("d1", "devices/d1/status", Some(&first), &[]).status,
        401
    );
    world.token("d1");
}

#[test]
fn a_token_that_is_none_is_refused_here_and_inactive_to_services() {
    let world = World::new("");
    world.device("d1");
    world.device("d2");
    world.service("backend");
    let token = world.token("d1");
    assert!(world.is_active("backend", &token));
    for (name, forged) in forgeries(&world, &token) {
        let reply = world.publish("d1", "devices/d1/status", Some(&forged), &[]);
        assert_eq!(reply.status, 401, "{name}: {}", reply.body);
        assert_eq!(reply.json()["code"], "token.invalid", "{name}");
        let told = reply
            .head
            .contains("www-authenticate: bearer error=\"invalid_token\"");
        assert!(told, "{name}: {}", reply.head);
        // Whom it is for is the asker's to compare: it is told.
        if name != "another audience" {
            assert!(!world.is_active("backend", &forged), "{name}");
        }
    }
    // Another device with the token of the first; and the same device with another certificate.
    let reply = world.publish("d2", "devices/d2/status", Some(&token), &[]);
    assert_eq!(
        (reply.status, &reply.json()["code"]),
        (401, &json!("token.other-certificate"))
    );
    let second = world.ca.issue(&Leaf::named("d1"), &[]);
    world.keep("d1-new", &second);
    let body = json!({ "devices": [{ "id": "d1", "certificate": second.pem }] });
    world
        .server
        .ask("POST", "/tenants/default/devices/import", Some(&body))
        .unwrap();
    let reply = world.publish("d1-new", "devices/d1/status", Some(&token), &[]);
    assert_eq!(
        (reply.status, &reply.json()["code"]),
        (401, &json!("token.other-certificate"))
    );
    assert!(world.refusals("d1").contains(&"token.invalid".to_owned()));
    assert!(
        world
            .refusals("d2")
            .contains(&"token.other-certificate".to_owned())
    );
    // Not a bearer token, or two of them.
    for header in ["Authorization: Basic eDp5", "Authorization: Bearer"] {
        let reply = world.publish("d1", "devices/d1/status", None, &["-H", header]);
        assert_eq!(reply.status, 401, "{header}");
    }
    let twice = format!("Authorization: Bearer {token}");
    assert_eq!(
        world
            .publish("d1", "devices/d1/status", Some(&token), &["-H", &twice])
            .status,
        401
    );
    // After all that the good one is good.
    assert_eq!(
        world.publish("d1", "devices/d1/status", Some(&token), &[]).status,
        204
    );
}

#[test]
fn a_token_is_ended_by_what_ends_any_session() {
    let mut world = World::new("");
    world.service("backend");
    let ended = |world: &World, what: &str, by: &[&str]| {
        let id = format!("d-{what}");
        world.device(&id);
        let token = world.token(&id);
        assert!(world.is_active("backend", &token), "{what}");
        let by: Vec<String> = by.iter().map(|a| a.replace("DEVICE", &id)).collect();
        let mut by: Vec<&str> = by.iter().map(String::as_str).collect();
        by.push("--json");
        let text = world.server.cli_ok(&by).unwrap();
        assert!(!world.is_active("backend", &token), "{what}");
        let report: Value = serde_json::from_str(&text).unwrap();
        let report = &report["sessions"];
        assert!(
            report["ended"].as_u64().unwrap() >= 1 && report["open"] == 0,
            "{what}: {text}"
        );
        assert!(report["took_ms"].as_f64().unwrap() < 1000.0, "{what}: {text}");
        assert!(
            world.tokens().iter().all(|t| t["device"] != id.as_str()),
            "{what}"
        );
        (id, token)
    };
    let (id, token) = ended(&world, "suspend", &["device", "suspend", "DEVICE"]);
    // It does not come back with the device.
    assert_eq!(
        world
            .at(&id, "/oauth2/token", &[TOKEN, &["client_id=x"]].concat())
            .status,
        403
    );
    world.server.cli_ok(&["device", "resume", &id]).unwrap();
    assert!(!world.is_active("backend", &token));
    assert_eq!(
        world
            .publish(&id, &format!("devices/{id}/status"), Some(&token), &[])
            .status,
        401
    );
    ended(
        &world,
        "quarantine",
        &["device", "quarantine", "DEVICE", "--reason", "test"],
    );
    ended(
        &world,
        "decommission",
        &["device", "decommission", "DEVICE", "--reason", "test"],
    );
    ended(&world, "revoke", &["device", "revoke", "DEVICE"]);
    ended(&world, "disconnect", &["session", "disconnect", "DEVICE"]);

    // A policy that takes the whole scope, while the device may stay connected; less of it only narrows.
    let policy = |world: &World, spaces: &str| {
        let text = format!(
            "permit (principal, action == Action::\"connect\", resource);\n\
             permit (principal, action == Action::\"publish\", resource) when {{ context.spaces.containsAny([{spaces}]) }};"
        );
        let file = world.write("policy.cedar", &text);
        world
            .server
            .cli_ok(&["policy", "set", &file, "--reason", "test"])
            .unwrap();
    };
    policy(&world, "\"telemetry\", \"status\"");
    world.device("narrowed");
    let token = world.token("narrowed");
    policy(&world, "\"status\"");
    assert_eq!(
        world.introspect("backend", &token).json()["scope"],
        "publish:status"
    );
    let reply = world.publish("narrowed", "devices/narrowed/telemetry/t", Some(&token), &[]);
    assert_eq!(reply.status, 403);
    policy(&world, "\"firmware\"");
    assert!(!world.is_active("backend", &token));
    until("the token is taken out", || world.tokens().is_empty());
    policy(&world, "\"telemetry\", \"status\"");
    assert!(!world.is_active("backend", &token));

    // A restart: what is not known is not active. The keys are those of before.
    let token = world.token("narrowed");
    let keys = |world: &World| {
        http(world.server.admin, "GET", "/.well-known/jwks.json", None, None)
            .unwrap()
            .1
    };
    let before = keys(&world);
    world.restart("");
    assert_eq!(keys(&world), before);
    assert!(!world.is_active("backend", &token));
    assert_eq!(
        world
            .publish("narrowed", "devices/narrowed/status", Some(&token), &[])
            .status,
        401
    );

    // The authority.
    let token = world.token("narrowed");
    let moved = ["authority", "revoke", "tokens"];
    world.server.cli_ok(&moved).unwrap();
    assert!(!world.is_active("backend", &token));
}

#[test]
fn services_alone_ask_and_each_about_its_tenants() {
    let world = World::new("");
    let device = world.device("d1");
    world.service("backend");
    world.server.cli_ok(&["tenant", "add", "other"]).unwrap();
    world.keep("foreign", &pki::self_signed("foreign"));
    let foreign = world.text("foreign.pem");
    world
        .server
        .cli_ok(&[
            "service",
            "add",
            "foreign",
            "--certificate",
            &foreign,
            "--tenant",
            "other",
        ])
        .unwrap();
    let token = world.token("d1");
    let told = world.introspect("backend", &token);
    assert!(told.head.contains("no-store"), "{}", told.head);
    let (body, (_, claims)) = (told.json(), read(&token));
    for name in [
        "iss",
        "sub",
        "aud",
        "exp",
        "iat",
        "jti",
        "client_id",
        "scope",
        "tenant",
        "cnf",
    ] {
        assert_eq!(body[name], claims[name], "{name}");
    }
    assert!(!world.is_active("foreign", &token));
    world.keep("nobody", &pki::self_signed("nobody"));
    for who in ["nobody", "d1"] {
        let reply = world.introspect(who, &token);
        assert_eq!(
            (reply.status, &reply.json()["error"]),
            (401, &json!("invalid_client")),
            "{who}"
        );
    }
    assert_eq!(world.introspect("backend", "").status, 400);

    // No service is a device, and no device a service.
    let refused = |arguments: &[&str], word: &str| {
        let output = world.server.cli(arguments).unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(word), "{text}");
    };
    world.keep("device", &device);
    refused(
        &["service", "add", "x", "--certificate", &world.text("device.pem")],
        "no device is a service",
    );
    refused(
        &["service", "add", "x", "--certificate", &world.text("backend.pem")],
        "exists already",
    );
    world.server.cli_ok(&["device", "add", "d9"]).unwrap();
    refused(
        &["device", "pin", "d9", &world.text("backend.pem")],
        "no service is a device",
    );
    refused(&["service", "revoke", "nobody"], "there is no service");
    // It connects nowhere else.
    let pem = std::fs::read_to_string(world.path("backend.pem")).unwrap();
    assert!(pem.contains("BEGIN CERTIFICATE"));
    let list = world.server.cli_ok(&["service", "list"]).unwrap();
    assert!(list.contains("backend") && list.contains("other"), "{list}");

    world
        .server
        .cli_ok(&["service", "revoke", "backend", "--reason", "test"])
        .unwrap();
    assert_eq!(world.introspect("backend", &token).status, 401);
    refused(
        &[
            "service",
            "add",
            "again",
            "--certificate",
            &world.text("backend.pem"),
        ],
        "exists already",
    );
    world.server.cli_ok(&["service", "remove", "backend"]).unwrap();
    world
        .server
        .cli_ok(&[
            "service",
            "add",
            "again",
            "--certificate",
            &world.text("backend.pem"),
        ])
        .unwrap();
    assert!(world.is_active("backend", &token));
    let audit = world.server.ask("GET", "/audit", None).unwrap().to_string();
    for action in ["service.add", "service.revoke", "service.remove"] {
        assert!(audit.contains(action), "{action}");
    }
    assert_eq!(
        world.metric("countersign_introspections_total{result=\"unauthorised\"}"),
        3
    );
}

#[test]
fn a_message_over_https_is_under_the_same_permit_as_over_mqtt() {
    let world = World::new("[limits]\npacket_bytes_max = 4096");
    world.device("d1");
    let listener = world.device("d2");
    let policy = world.write(
        "policy.cedar",
        "permit (principal, action == Action::\"connect\", resource);\n\
         permit (principal, action == Action::\"publish\", resource) when { context.spaces.contains(\"telemetry\") && context.qos < 2 };\n\
         permit (principal == Device::\"default/d2\", action == Action::\"subscribe\", resource);",
    );
    world
        .server
        .cli_ok(&["policy", "set", &policy, "--reason", "test"])
        .unwrap();
    let subscriber = Attempt {
        patience: Duration::from_secs(3),
        ..Attempt::new(world.server.devices)
    };
    let subscriber = subscriber
        .identity(&listener)
        .send([connect(4, "d2"), subscribe(4, "devices/+/telemetry/#")].concat());
    let receiving = std::thread::spawn(move || subscriber.run());
    until("a message is delivered", || {
        let reply = world.publish("d1", "devices/d1/telemetry/a%20b", None, &[]);
        assert_eq!((reply.status, reply.body.as_str()), (204, ""), "{}", reply.body);
        world.metric("countersign_publishes_sent_total") > 0
    });
    let seen = receiving.join().unwrap();
    let text = String::from_utf8_lossy(&seen.data).into_owned();
    assert!(text.contains("devices/d1/telemetry/a bhello"), "{text:?}");

    let check = |topic: &str, more: &[&str], status: u16, code: &str| {
        let reply = world.publish("d1", topic, None, more);
        assert_eq!(reply.status, status, "{topic} {more:?}: {}", reply.body);
        let body = reply.json();
        assert_eq!(
            body["code"].as_str().unwrap_or_default(),
            code,
            "{topic} {more:?}"
        );
        assert!(reply.head.contains("application/problem+json"), "{}", reply.head);
    };
    check("devices/d2/telemetry/t", &[], 403, "topic.forbidden");
    check("devices/d1/telemetry/%23", &[], 400, "topic.invalid");
    check("devices/d1/telemetry/+", &["--path-as-is"], 400, "topic.invalid");
    check("", &[], 400, "topic.invalid");
    check("devices/d1/telemetry/%ff", &[], 400, "");
    check("devices/d1/telemetry/t?qos=2", &[], 400, "mqtt.qos");
    check("devices/d1/telemetry/t?retain=1", &[], 400, "mqtt.retain");
    check("devices/d1/telemetry/t?keep=1", &[], 400, "");
    check("devices/d1/telemetry/t", &["-X", "PUT"], 405, "");
    let big = world.write("big", &"a".repeat(5000));
    check(
        "devices/d1/telemetry/t",
        &["--data-binary", &format!("@{big}")],
        413,
        "mqtt.too-large",
    );
    assert_eq!(
        world
            .publish("d1", "devices/d1/telemetry/t?qos=1", None, &[])
            .status,
        204
    );
    let refusals = world.refusals("d1");
    for code in ["topic.forbidden", "topic.invalid", "mqtt.qos", "mqtt.too-large"] {
        assert!(refusals.iter().any(|c| c == code), "{code}: {refusals:?}");
    }
    // The exchange of a publish that was accepted has its first data; one that was refused has not.
    let newest = |wanted: &str| {
        let found = world
            .server
            .ask("GET", "/exchanges?subject=d1&limit=20", None)
            .unwrap();
        let all = found.as_array().unwrap().clone();
        let one = all
            .iter()
            .find(|e| e["outcome"] == "admitted" && e["facts"].to_string().contains(wanted));
        one.unwrap_or_else(|| panic!("{wanted}: {found}"))["stages"].to_string()
    };
    assert!(newest("devices/d1/telemetry/t").contains("first-data"));
    assert!(!newest("devices/d2/telemetry/t").contains("first-data"));
}

#[test]
fn who_is_no_service_keeps_no_place_and_a_service_has_some_time_for_its_form() {
    let world = World::new("[tokens]\nservice_connections_max = 2\nservice_connections_per_source_max = 2\n");
    world.device("d1");
    let backend = pki::self_signed("backend");
    world.keep("backend", &backend);
    let certificate = world.text("backend.pem");
    world
        .server
        .cli_ok(&["service", "add", "backend", "--certificate", &certificate])
        .unwrap();
    let token = world.token("d1");
    let services = world.server.listener("services").unwrap();
    let open = |identity: &pki::Identity, send: &'static str| {
        let attempt = Attempt {
            alpn: vec![b"http/1.1".to_vec()],
            patience: Duration::from_secs(20),
            ..Attempt::new(services)
        };
        let started = Instant::now();
        let seen = attempt.identity(identity).send(send).run();
        (seen, started.elapsed())
    };
    // They say nothing, and are closed long before anybody would give up waiting.
    let nobody = pki::self_signed("nobody");
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let (seen, took) = open(&nobody, "");
                assert!(seen.handshake && !seen.silent, "{seen:?}");
                assert!(took < Duration::from_secs(10), "{took:?}");
            });
        }
    });
    assert!(world.metric("countersign_service_strangers_total") >= 2);
    assert!(world.is_active("backend", &token));

    let half = "POST /oauth2/introspect HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 100\r\n\r\ntoken=";
    let (seen, took) = open(&backend, half);
    let text = String::from_utf8_lossy(&seen.data).into_owned();
    assert!(text.starts_with("HTTP/1.1 408"), "{text}");
    assert!(took >= Duration::from_secs(9), "{took:?}");
}

#[test]
fn a_certificate_of_a_ca_is_no_service() {
    let world = World::new("");
    let certificate = world.write("ca.pem", &Ca::root("a service's own CA", None).pem);
    let output = world
        .server
        .cli(&["service", "add", "x", "--certificate", &certificate])
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{text}");
    assert!(text.contains("is a CA's") && text.contains("CA:FALSE"), "{text}");
    // An empty list says that it is one.
    let output = world.server.cli(&["service", "list"]).unwrap();
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("nothing to list"),
        "{output:?}"
    );
}
