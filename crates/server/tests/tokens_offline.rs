//! The example resource server takes our tokens offline, and none that is not what it should be.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

mod token_world;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use countersign_testkit::pki::{Ca, Leaf};

use token_world::{TOKEN, World, forgeries};

const AUDIENCE: &str = "https://data.example";

/// The example that was built beside us; testing this package alone does not build it.
fn program() -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_countersign")).parent().unwrap();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args([
            "build",
            "--quiet",
            "--locked",
            "--package",
            "countersign-resource-server",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("CARGO_TARGET_DIR", folder.parent().unwrap());
    if folder.file_name().is_some_and(|n| n == "release") {
        command.arg("--release");
    }
    assert!(command.status().unwrap().success(), "the example cannot be built");
    folder.join("resource-server")
}

struct Backend {
    child: Child,
    port: u16,
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Backend {
    fn start(world: &World) -> Self {
        let host = Ca::root("backends", None);
        world.write("backend-root.pem", &host.pem);
        world.keep("backend", &host.issue_server("localhost"));
        world.write("devices.pem", &world.ca.pem);
        let keys = world.at("d1", "/.well-known/jwks.json", &[]);
        world.write("jwks.json", &keys.body);
        let mut child = Command::new(program())
            .args(["--listen", "127.0.0.1:0", "--audience", AUDIENCE])
            .args(["--issuer", &world.issuer(), "--jwks", &world.text("jwks.json")])
            .args([
                "--cert",
                &world.text("backend.pem"),
                "--key",
                &world.text("backend.key"),
            ])
            .args(["--client-ca", &world.text("devices.pem")])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let port = line.trim().rsplit_once(':').unwrap().1.parse().unwrap();
        Self { child, port }
    }

    /// Status and body of a reading that a device brings.
    fn bring(&self, world: &World, who: &str, token: &str) -> (u16, String) {
        let url = format!("https://localhost:{}/readings", self.port);
        let header = format!("Authorization: Bearer {token}");
        let root = world.text("backend-root.pem");
        let reply = world.curl(who, &url, &["--cacert", &root, "-H", &header, "-d", "reading"]);
        (reply.status, reply.body)
    }
}

#[test]
fn a_resource_server_checks_tokens_by_itself() {
    let world = World::new(&format!("[tokens]\nresources = [\"{AUDIENCE}\"]"));
    world.device("d1");
    world.device("d2");
    let backend = Backend::start(&world);
    let resource = format!("resource={AUDIENCE}");
    let arguments = [TOKEN, &["client_id=d1", "-d", &resource]].concat();
    let answer = world.at("d1", "/oauth2/token", &arguments).json();
    let good = answer["access_token"].as_str().unwrap();
    let expected = (200, "7 bytes from d1 of default\n".to_owned());
    assert_eq!(backend.bring(&world, "d1", good), expected);
    // Over another device's connection, and over one of the same device with another certificate.
    assert_eq!(backend.bring(&world, "d2", good).0, 401);
    world.keep("d1-new", &world.ca.issue(&Leaf::named("d1"), &[]));
    assert_eq!(backend.bring(&world, "d1-new", good).0, 401);
    // For the platform, not for it.
    assert_eq!(backend.bring(&world, "d1", &world.token("d1")).0, 401);
    for (name, forged) in forgeries(&world, good) {
        // Whether a session is live cannot be seen offline.
        let expected = if name == "another session" { 200 } else { 401 };
        assert_eq!(backend.bring(&world, "d1", &forged).0, expected, "{name}");
    }
    assert_eq!(backend.bring(&world, "d1", good).0, 200);
}
