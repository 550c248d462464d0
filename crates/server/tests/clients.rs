//! Real clients, from Debian's packages: what each is told, it reads, a hundred times out of a hundred.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use countersign_testkit::pki;
use countersign_testkit::server::Server;

const TIMES: usize = 100;

struct World {
    folder: tempfile::TempDir,
    server: Server,
}

/// A good device, a suspended one, and one with a foreign certificate.
fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(
            Path::new(env!("CARGO_BIN_EXE_countersign")),
            &folder.path().join("data"),
            // One device comes here a hundred times in a row.
            "[limits]\ndevice_connects_per_minute = 100000\n",
        )
        .unwrap();
        for id in ["good", "suspended", "foreign"] {
            let out = folder.path().join(id);
            server
                .cli_ok(&["device", "provision", id, "--out", out.to_str().unwrap()])
                .unwrap();
        }
        server.cli_ok(&["device", "suspend", "suspended"]).unwrap();
        let stranger = pki::Ca::root("nobody's CA", None).issue(&pki::Leaf::named("foreign"), &[]);
        std::fs::write(folder.path().join("foreign/device.crt"), stranger.pem).unwrap();
        std::fs::write(folder.path().join("foreign/device.key"), stranger.key_pem).unwrap();
        World { folder, server }
    })
}

impl World {
    fn file(&self, id: &str, name: &str) -> PathBuf {
        self.folder.path().join(id).join(name)
    }

    fn port(&self) -> String {
        self.server.devices.port().to_string()
    }

    fn mosquitto(&self, tool: &str, id: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(tool);
        command.args(["-h", "localhost", "-p", &self.port(), "-i", id]);
        command.arg("--cafile").arg(self.file(id, "platform-root.crt"));
        command
            .arg("--cert")
            .arg(self.file(id, "device.crt"))
            .arg("--key")
            .arg(self.file(id, "device.key"));
        command.args(arguments);
        command
    }
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn mosquitto_publishes_and_subscribes() {
    let world = world();
    for version in ["mqttv311", "mqttv5"] {
        let sub = world
            .mosquitto(
                "mosquitto_sub",
                "good",
                &[
                    "-V",
                    version,
                    "-t",
                    "devices/good/commands/#",
                    "-q",
                    "1",
                    "-d",
                    "-W",
                    "1",
                ],
            )
            .output()
            .unwrap();
        assert!(text(&sub).contains("Subscribed (mid: 1): 1"), "{}", text(&sub));
        let publish = world
            .mosquitto(
                "mosquitto_pub",
                "good",
                &[
                    "-V",
                    version,
                    "-t",
                    "devices/good/telemetry",
                    "-q",
                    "1",
                    "-m",
                    "21.5",
                ],
            )
            .output()
            .unwrap();
        assert!(publish.status.success(), "{}", text(&publish));
    }
    // QoS 2 is not offered: in MQTT 5 the client knows by Maximum QoS 1.
    let two = world
        .mosquitto(
            "mosquitto_pub",
            "good",
            &[
                "-V",
                "mqttv5",
                "-t",
                "devices/good/telemetry",
                "-q",
                "2",
                "-m",
                "x",
            ],
        )
        .output()
        .unwrap();
    assert!(text(&two).contains("QoS not supported"), "{}", text(&two));
}

#[test]
fn a_self_signed_certificate_as_openssl_makes_it_is_admitted_once_it_is_pinned() {
    let world = world();
    let folder = world.folder.path().join("pinned");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(
        world.file("good", "platform-root.crt"),
        folder.join("platform-root.crt"),
    )
    .unwrap();
    let file = |name: &str| folder.join(name).display().to_string();
    // With OpenSSL's defaults: it calls itself a CA, and bears a name that is none.
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "30",
        ])
        .args([
            "-subj",
            "/CN=whatever it is/O=nobody",
            "-keyout",
            &file("device.key"),
            "-out",
            &file("device.crt"),
        ])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", text(&made));
    world.server.cli_ok(&["device", "add", "pinned"]).unwrap();
    let publish = || {
        let arguments = [
            "-V",
            "mqttv5",
            "-t",
            "devices/pinned/telemetry",
            "-q",
            "1",
            "-m",
            "21.5",
        ];
        world
            .mosquitto("mosquitto_pub", "pinned", &arguments)
            .output()
            .unwrap()
    };
    let refused = publish();
    assert!(!refused.status.success(), "{}", text(&refused));
    let pin = ["device", "pin", "pinned", &file("device.crt")];
    world.server.cli_ok(&pin).unwrap();
    world.server.cli_ok(&pin).unwrap();
    let publishes = publish();
    assert!(publishes.status.success(), "{}", text(&publishes));
    // It is the device that the pin says, whatever the certificate calls itself.
    let shown = world
        .server
        .ask("GET", "/tenants/default/devices/pinned", None)
        .unwrap();
    assert_eq!(shown["credentials"][0]["kind"], "pinned", "{shown}");
    let fingerprint = shown["credentials"][0]["fingerprint"].as_str().unwrap();
    // One that is not self-signed has a CA to vouch for it.
    let other = world
        .server
        .cli(&[
            "device",
            "pin",
            "pinned",
            world.file("good", "device.crt").to_str().unwrap(),
        ])
        .unwrap();
    assert_eq!(other.status.code(), Some(4));
    assert!(
        text(&other).contains("only self-signed certificates are pinned"),
        "{}",
        text(&other)
    );
    world
        .server
        .cli_ok(&["credential", "revoke", fingerprint])
        .unwrap();
    assert!(!publish().status.success());
}

#[test]
fn mosquitto_delivers_what_another_session_published() {
    let world = world();
    let id = "pair";
    let out = world.folder.path().join(id);
    world
        .server
        .cli_ok(&["device", "provision", id, "--out", out.to_str().unwrap()])
        .unwrap();
    let spaces = world.folder.path().join("spaces.json");
    let policy = world.folder.path().join("policy.cedar");
    std::fs::write(&spaces, r#"[{"name": "own", "filter": "devices/{id}/#"}]"#).unwrap();
    std::fs::write(&policy, r#"@id("all") permit (principal, action, resource);"#).unwrap();
    world
        .server
        .cli_ok(&["tenant", "add", "pairs", "--client-id-mode", "prefix"])
        .unwrap();
    world
        .server
        .cli_ok(&[
            "policy",
            "set",
            policy.to_str().unwrap(),
            "--tenant",
            "pairs",
            "--reason",
            "test",
            "--spaces",
            spaces.to_str().unwrap(),
        ])
        .unwrap();
    let out = world.folder.path().join("p");
    world
        .server
        .cli_ok(&[
            "device",
            "provision",
            "p",
            "--tenant",
            "pairs",
            "--out",
            out.to_str().unwrap(),
        ])
        .unwrap();
    let mut sub = world.mosquitto(
        "mosquitto_sub",
        "p",
        &[
            "-V",
            "mqttv5",
            "-t",
            "devices/+/x",
            "-q",
            "1",
            "-C",
            "3",
            "-W",
            "10",
        ],
    );
    let mut sub = sub.stdout(Stdio::piped()).spawn().unwrap();
    while world
        .server
        .ask("GET", "/sessions?tenant=pairs", None)
        .unwrap()
        .as_array()
        .unwrap()
        .is_empty()
    {}
    std::thread::sleep(Duration::from_millis(300));
    let mut command = Command::new("mosquitto_pub");
    command.args([
        "-h",
        "localhost",
        "-p",
        &world.port(),
        "-i",
        "p:pub",
        "-t",
        "devices/p/x",
        "-q",
        "1",
        "-l",
    ]);
    command.arg("--cafile").arg(world.file("p", "platform-root.crt"));
    command
        .arg("--cert")
        .arg(world.file("p", "device.crt"))
        .arg("--key")
        .arg(world.file("p", "device.key"));
    let mut publish = command.stdin(Stdio::piped()).spawn().unwrap();
    publish
        .stdin
        .take()
        .unwrap()
        .write_all(b"one\ntwo\nthree\n")
        .unwrap();
    assert!(publish.wait().unwrap().success());
    let mut got = String::new();
    std::io::Read::read_to_string(&mut sub.stdout.take().unwrap(), &mut got).unwrap();
    assert!(sub.wait().unwrap().success());
    assert_eq!(got, "one\ntwo\nthree\n");
}

#[test]
fn mosquitto_reads_every_refusal() {
    let world = world();
    for n in 0..TIMES {
        let publish = |id: &str, version: &str| {
            world
                .mosquitto(
                    "mosquitto_pub",
                    id,
                    &["-V", version, "-t", &format!("devices/{id}/telemetry"), "-m", "x"],
                )
                .output()
                .unwrap()
        };
        let v3 = text(&publish("suspended", "mqttv311"));
        assert!(v3.contains("Connection Refused: not authorised"), "{n}: {v3}");
        let v5 = text(&publish("suspended", "mqttv5"));
        assert!(v5.contains("Not authorized"), "{n}: {v5}");
        let foreign = world
            .mosquitto(
                "mosquitto_pub",
                "foreign",
                &["-d", "-V", "mqttv5", "-t", "devices/foreign/telemetry", "-m", "x"],
            )
            .output()
            .unwrap();
        assert!(
            text(&foreign).contains("alert unknown ca"),
            "{n}: {}",
            text(&foreign)
        );
    }
}

#[test]
fn openssl_reads_every_alert() {
    let world = world();
    let mut faults = Vec::new();
    for n in 0..TIMES {
        for (version, alert) in [
            ("-tls1_3", "tlsv1 alert unknown ca"),
            ("-tls1_2", "tlsv1 alert unknown ca"),
        ] {
            let mut child = Command::new("openssl")
                .args([
                    "s_client",
                    "-connect",
                    &format!("localhost:{}", world.port()),
                    "-servername",
                    "localhost",
                    version,
                ])
                .arg("-cert")
                .arg(world.file("foreign", "device.crt"))
                .arg("-key")
                .arg(world.file("foreign", "device.key"))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            // Its input stays open, so that it is the server that ends the connection; and it writes first, which a
            // reset would punish.
            let mut input = child.stdin.take().unwrap();
            let _ = input.write_all(&countersign_testkit::client::connect(4, "foreign"));
            let output = child.wait_with_output().unwrap();
            drop(input);
            let seen = text(&output);
            if !seen.contains(alert) {
                faults.push(format!("{n} {version}: {seen}"));
            }
        }
    }
    assert!(
        faults.is_empty(),
        "{} of {} lost:\n{}",
        faults.len(),
        2 * TIMES,
        faults[0]
    );
}

#[test]
fn openssl_agrees_on_what_is_offered() {
    let world = world();
    let run = |arguments: &[&str]| {
        let mut command = Command::new("openssl");
        command.args([
            "s_client",
            "-connect",
            &format!("localhost:{}", world.port()),
            "-servername",
            "localhost",
        ]);
        command
            .arg("-CAfile")
            .arg(world.file("good", "platform-root.crt"))
            .args(["-verify_return_error", "-brief"]);
        command
            .arg("-cert")
            .arg(world.file("good", "device.crt"))
            .arg("-key")
            .arg(world.file("good", "device.key"));
        let output = command.args(arguments).stdin(Stdio::null()).output().unwrap();
        text(&output)
    };
    assert!(run(&["-tls1_3", "-alpn", "mqtt"]).contains("Protocol version: TLSv1.3"));
    assert!(run(&["-tls1_2"]).contains("Protocol version: TLSv1.2"));
    assert!(
        run(&["-alpn", "h2"]).contains("no application protocol"),
        "{}",
        run(&["-alpn", "h2"])
    );
    assert!(!run(&["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]).contains("CONNECTION ESTABLISHED"));
    // The device checks who answers: another root is not trusted.
    assert!(
        run(&["-verify_hostname", "other.example"])
            .to_lowercase()
            .contains("hostname mismatch")
    );
}

const PAHO: &str = r#"
import ssl, sys
import paho.mqtt.client as mqtt
folder, port, device, version, times = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
seen = []
for _ in range(times):
    try:
        c = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=device, protocol=version)
    except AttributeError:
        c = mqtt.Client(client_id=device, protocol=version)
    def on_connect(client, userdata, flags, reason, properties=None):
        code = getattr(reason, "value", reason)
        seen.append("connack %d" % code)
        if code == 0:
            client.publish("devices/%s/telemetry" % device, "21.5", qos=1)
        else:
            client.disconnect()
    def on_publish(client, userdata, mid, *rest):
        seen.append("published")
        client.disconnect()
    c.on_connect, c.on_publish = on_connect, on_publish
    c.tls_set(ca_certs=folder + "/platform-root.crt", certfile=folder + "/device.crt", keyfile=folder + "/device.key")
    try:
        c.connect("localhost", port, 30)
        for _ in range(100):
            if c.loop(timeout=1.0) != 0:
                break
    except ssl.SSLError as e:
        seen.append("alert %s" % e.reason)
for line in sorted(set(seen)):
    print(seen.count(line), line)
"#;

#[test]
fn paho_connects_publishes_and_reads_every_connack() {
    let world = world();
    // Debian's package belongs to Debian's Python, which need not be the first on the path.
    let has_paho = |python: &&str| {
        Command::new(python)
            .args(["-c", "import paho.mqtt.client"])
            .output()
            .is_ok_and(|o| o.status.success())
    };
    let python = ["/usr/bin/python3", "python3"]
        .into_iter()
        .find(|p| has_paho(p))
        .expect("python3-paho-mqtt");
    let run = |id: &str, version: &str, times: usize| {
        let output = Command::new(python)
            .args(["-c", PAHO])
            .arg(world.folder.path().join(id))
            .args([&world.port(), id, version, &times.to_string()])
            .output()
            .unwrap();
        text(&output)
    };
    for (version, refused) in [("4", "connack 5"), ("5", "connack 135")] {
        assert_eq!(run("good", version, 3), "3 connack 0\n3 published\n");
        assert_eq!(run("suspended", version, TIMES), format!("{TIMES} {refused}\n"));
    }
}
