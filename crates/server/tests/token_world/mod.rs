//! A server with a listener for services, devices with certificates, curl, and a forger who has the signing key.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::Command;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use countersign_testkit::pki::{self, Ca, Identity, Leaf};
use countersign_testkit::server::{Server, http, listener};
use serde_json::{Value, json};

pub struct World {
    pub folder: tempfile::TempDir,
    pub server: Server,
    pub ca: Ca,
}

pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {} {}", self.head, self.body))
    }
}

pub const TOKEN: &[&str] = &["-d", "grant_type=client_credentials", "-d"];

impl World {
    pub fn new(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = format!("{config}\n{}", listener("services"));
        let program = Path::new(env!("CARGO_BIN_EXE_countersign"));
        let server = Server::start(program, &folder.path().join("data"), &config).unwrap();
        let ca = Ca::root("tokens root", None);
        server
            .register("tokens", "default", &ca, &json!({ "mode": "registered-only" }))
            .unwrap();
        let world = Self { folder, server, ca };
        let root = world.server.cli_ok(&["authority", "export", "platform"]).unwrap();
        world.write("root.pem", &root);
        world
    }

    /// The same data directory, served anew.
    pub fn restart(&mut self, config: &str) {
        self.server.kill();
        let config = format!("{config}\n{}", listener("services"));
        let program = Path::new(env!("CARGO_BIN_EXE_countersign"));
        self.server = Server::start(program, &self.folder.path().join("data"), &config).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    pub fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).unwrap();
        self.text(name)
    }

    /// A device with its certificate in `NAME.pem` and `NAME.key`.
    pub fn device(&self, name: &str) -> Identity {
        let identity = self.ca.issue(&Leaf::named(name), &[]);
        self.keep(name, &identity);
        let body = json!({ "devices": [{ "id": name, "certificate": identity.pem }] });
        self.server
            .ask("POST", "/tenants/default/devices/import", Some(&body))
            .unwrap();
        identity
    }

    pub fn keep(&self, name: &str, identity: &Identity) {
        self.write(&format!("{name}.pem"), &identity.pem);
        self.write(&format!("{name}.key"), &identity.key_pem);
    }

    /// A service that may ask about tenant `default`.
    pub fn service(&self, name: &str) {
        self.keep(name, &pki::self_signed(name));
        let certificate = self.text(&format!("{name}.pem"));
        self.server
            .cli_ok(&["service", "add", name, "--certificate", &certificate])
            .unwrap();
    }

    pub fn issuer(&self) -> String {
        format!("https://localhost:{}", self.server.devices.port())
    }

    /// A request by curl with a certificate.
    pub fn curl(&self, who: &str, url: &str, more: &[&str]) -> Reply {
        let output = Command::new("curl")
            .args([
                "-sS",
                "-i",
                "--max-time",
                "20",
                "--cacert",
                &self.text("root.pem"),
            ])
            .args(["--cert", &self.text(&format!("{who}.pem"))])
            .args(["--key", &self.text(&format!("{who}.key"))])
            .args(more)
            .arg(url)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (mut head, mut body) = text
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("{url} {more:?}: {output:?}"));
        while head.starts_with("HTTP/1.1 100") {
            (head, body) = body.split_once("\r\n\r\n").unwrap();
        }
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Reply {
            status,
            head: head.to_lowercase(),
            body: body.to_owned(),
        }
    }

    pub fn at(&self, who: &str, path: &str, more: &[&str]) -> Reply {
        self.curl(who, &format!("{}{path}", self.issuer()), more)
    }

    /// A token of a device.
    pub fn token(&self, who: &str) -> String {
        let client = format!("client_id={who}");
        let reply = self.at(who, "/oauth2/token", &[TOKEN, &[&client]].concat());
        assert_eq!(reply.status, 200, "{} {}", reply.head, reply.body);
        reply.json()["access_token"].as_str().unwrap().to_owned()
    }

    /// Publishes with a token.
    pub fn publish(&self, who: &str, topic: &str, token: Option<&str>, more: &[&str]) -> Reply {
        let header = token.map(|t| format!("Authorization: Bearer {t}"));
        let mut arguments = vec!["-d", "hello"];
        if let Some(header) = &header {
            arguments.extend(["-H", header]);
        }
        arguments.extend(more);
        self.at(who, &format!("/v1/publish/{topic}"), &arguments)
    }

    pub fn introspect(&self, service: &str, token: &str) -> Reply {
        let port = self.server.listener("services").unwrap().port();
        let url = format!("https://localhost:{port}/oauth2/introspect");
        self.curl(service, &url, &["--data-urlencode", &format!("token={token}")])
    }

    pub fn is_active(&self, service: &str, token: &str) -> bool {
        let reply = self.introspect(service, token);
        assert_eq!(reply.status, 200, "{} {}", reply.head, reply.body);
        let body = reply.json();
        if body["active"] == false {
            assert_eq!(body, json!({ "active": false }), "it says why");
        }
        body["active"] == true
    }

    /// Live tokens, as `session list` has them.
    pub fn tokens(&self) -> Vec<Value> {
        let text = self.server.cli_ok(&["session", "list", "--json"]).unwrap();
        let all: Vec<Value> = serde_json::from_str(&text).unwrap();
        all.into_iter().filter(|s| s["kind"] == "token").collect()
    }

    pub fn metric(&self, name: &str) -> u64 {
        let (_, text) = http(self.server.admin, "GET", "/metrics", None, None).unwrap();
        let line = text
            .lines()
            .find(|l| l.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.and_then(|l| l.rsplit(' ').next()?.parse().ok())
            .unwrap_or_else(|| panic!("{name} is not in {text}"))
    }

    /// The codes of the newest refusals of a device.
    pub fn refusals(&self, device: &str) -> Vec<String> {
        let path = format!("/exchanges?subject={device}&limit=20");
        let found = self.server.ask("GET", &path, None).unwrap();
        let all = found.as_array().unwrap().iter();
        all.filter_map(|e| e["denial"]["code"].as_str().map(str::to_owned))
            .collect()
    }

    /// The key that signs tokens now, and its name.
    pub fn signing_key(&self) -> (EcdsaKeyPair, String) {
        let text = std::fs::read_to_string(self.server.data.join("tokens/keys.json")).unwrap();
        let stored: Value = serde_json::from_str(&text).unwrap();
        let current = stored["keys"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|k| k["until"].is_null())
            .min_by_key(|k| k["from"].as_i64())
            .unwrap();
        let pkcs8 = STANDARD.decode(current["pkcs8"].as_str().unwrap()).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8).unwrap();
        let (_, text) = http(self.server.admin, "GET", "/.well-known/jwks.json", None, None).unwrap();
        let jwks: Value = serde_json::from_str(&text).unwrap();
        let x = URL_SAFE_NO_PAD.encode(&key.public_key().as_ref()[1..33]);
        let all = jwks["keys"].as_array().unwrap();
        let kid = all.iter().find(|k| k["x"] == x.as_str()).unwrap()["kid"].as_str();
        (key, kid.unwrap().to_owned())
    }
}

/// Header and claims of a token.
pub fn read(token: &str) -> (Value, Value) {
    let mut parts = token
        .split('.')
        .map(|p| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(p).unwrap_or_default()).unwrap_or_default());
    (parts.next().unwrap(), parts.next().unwrap())
}

/// A token with any header and claims, signed with this key.
pub fn forge(key: &EcdsaKeyPair, header: &Value, claims: &Value) -> String {
    let part = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
    let signed = format!("{}.{}", part(header), part(claims));
    let signature = key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// Tokens that are none, made from a good one by somebody who even has the signing key: what is wrong, and the token.
pub fn forgeries(world: &World, good: &str) -> Vec<(&'static str, String)> {
    let (key, kid) = world.signing_key();
    let (header, claims) = read(good);
    let with = |base: &Value, name: &str, value: Value| {
        let mut changed = base.clone();
        changed[name] = value;
        changed
    };
    let exp = claims["exp"].as_i64().unwrap();
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let (head, payload) = signed.split_once('.').unwrap();
    let other_claims = with(&claims, "scope", "publish:everything".into()).to_string();
    let unsigned = |alg: &str| URL_SAFE_NO_PAD.encode(with(&header, "alg", alg.into()).to_string());
    let stranger = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    vec![
        (
            "another audience",
            forge(
                &key,
                &header,
                &with(&claims, "aud", "https://elsewhere.example".into()),
            ),
        ),
        (
            "another issuer",
            forge(
                &key,
                &header,
                &with(&claims, "iss", "https://elsewhere.example".into()),
            ),
        ),
        (
            "expired",
            forge(&key, &header, &with(&claims, "exp", (exp - 3600).into())),
        ),
        (
            "unknown key id",
            forge(&stranger, &with(&header, "kid", "nobody".into()), &claims),
        ),
        (
            "another's key under our key id",
            forge(&stranger, &header, &claims),
        ),
        ("alg none", format!("{}.{payload}.", unsigned("none"))),
        (
            "alg none, signed all the same",
            format!("{}.{payload}.{signature}", unsigned("none")),
        ),
        (
            "alg HS256",
            forge(&key, &with(&header, "alg", "HS256".into()), &claims),
        ),
        (
            "typ JWT",
            forge(&key, &with(&header, "typ", "JWT".into()), &claims),
        ),
        (
            "with a key of its own",
            forge(&stranger, &with(&header, "jwk", json!({ "kid": kid })), &claims),
        ),
        (
            "with a jku",
            forge(
                &key,
                &with(&header, "jku", "https://elsewhere.example".into()),
                &claims,
            ),
        ),
        (
            "tampered claims",
            format!("{head}.{}.{signature}", URL_SAFE_NO_PAD.encode(other_claims)),
        ),
        (
            "tampered signature",
            format!("{signed}.{}", URL_SAFE_NO_PAD.encode([7; 64])),
        ),
        ("cut off", signed.to_owned()),
        ("no JWT", "abc".to_owned()),
        (
            "another session",
            forge(&key, &header, &with(&claims, "jti", "0".repeat(32).into())),
        ),
    ]
}
