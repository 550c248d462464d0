//! Programs in C, compiled as the README says, against a real server.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stderr
)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use countersign_testkit::server::{Server, listener};
use serde_json::json;

/// What is built in the folder of this profile. Cargo alone knows whether it is up to date.
fn built() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        // target/debug/deps/c-0123
        let test = std::env::current_exe().unwrap();
        let folder = test.ancestors().nth(2).unwrap().to_owned();
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        for what in [
            ["countersign-device-c", "--lib"].as_slice(),
            &["countersign-server", "--bin", "countersign"],
        ] {
            let mut command = Command::new(&cargo);
            command
                .args(["build", "--quiet", "--locked", "--package"])
                .args(what)
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .env("CARGO_TARGET_DIR", folder.parent().unwrap());
            if folder.file_name().is_some_and(|n| n == "release") {
                command.arg("--release");
            }
            let status = command.status().unwrap();
            assert!(status.success(), "{what:?} cannot be built: {status}");
        }
        folder
    })
}

#[derive(Clone, Copy)]
enum Linked {
    Statically,
    Shared,
}

/// Runs the line of the README, with the source put in the place of the example.
fn compile(source: &str, linked: Linked, folder: &Path) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(here.join("README.md")).unwrap();
    let mut lines = readme.lines().filter(|line| line.starts_with("cc "));
    let line = match linked {
        Linked::Statically => lines.find(|l| l.contains(".a\"")),
        Linked::Shared => lines.find(|l| l.contains("-lcountersign_device")),
    };
    let line = line.unwrap().replace("examples/c/publish.c", source);
    let work = tempfile::tempdir_in(folder).unwrap().keep();
    for name in ["include", "examples", "tests"] {
        symlink(here.join(name), work.join(name)).unwrap();
    }
    let compiled = Command::new("sh")
        .args(["-c", &line])
        .current_dir(&work)
        .env("LIB", built())
        .output()
        .unwrap();
    said(&compiled, 0);
    work.join("publish")
}

/// What a program wrote to standard output; it must have ended so.
fn said(output: &Output, code: i32) -> String {
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{}: {out}{err}", output.status);
    out
}

struct Place {
    folder: tempfile::TempDir,
    server: Server,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = built().join("countersign");
        let server = Server::start(&program, &folder.path().join("data"), &listener("enrol")).unwrap();
        Self { folder, server }
    }

    fn provision(&self, device: &str) -> PathBuf {
        let path = self.folder.path().join(device);
        let out = path.display().to_string();
        self.server
            .cli_ok(&["device", "provision", device, "--out", &out])
            .unwrap();
        path
    }

    /// Everybody may publish everything: so devices can send each other commands.
    fn permit_all(&self) {
        let policies = "permit (principal, action, resource) when { principal.state == \"active\" };";
        let body = json!({ "policies": policies, "reason": "test" });
        self.server.ask("PATCH", "/tenants/default", Some(&body)).unwrap();
    }

    /// The platform's own account comes to this; it is written behind, so after a moment.
    fn until_published(&self, device: &str, expected: u64) {
        let path = format!("/tenants/default/devices/{device}/exposure?from=0&to=4102444800000");
        let started = Instant::now();
        loop {
            let answer = self.server.ask("GET", &path, None).unwrap();
            let topics = answer["published"].as_array().unwrap();
            let had: u64 = topics.iter().map(|t| t["messages"].as_u64().unwrap()).sum();
            if had == expected {
                return;
            }
            assert!(
                started.elapsed() < Duration::from_secs(10),
                "the platform had {answer}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn started(program: &Path, arguments: &[&str]) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    (child, out)
}

fn line(out: &mut impl BufRead) -> String {
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    line
}

#[test]
fn the_example_publishes_and_prints_commands_linked_statically_and_shared() {
    let place = Place::new();
    place.permit_all();
    let paths = compile("tests/c/paths.c", Linked::Statically, place.folder.path());
    let operator = place.provision("operator").display().to_string();
    for (device, linked) in [("pump-1", Linked::Statically), ("pump-2", Linked::Shared)] {
        let identity = place.provision(device).display().to_string();
        let publish = compile("examples/c/publish.c", linked, place.folder.path());
        let (child, mut out) = started(&publish, &[&identity, "4"]);
        let first = line(&mut out);
        if !first.starts_with("connected, library ") {
            panic!("{first}{:?}", child.wait_with_output());
        }
        let topic = format!("devices/{device}/commands/restart");
        let sent = Command::new(&paths)
            .args(["send", &operator, &topic, "now"])
            .output();
        said(&sent.unwrap(), 0);
        assert_eq!(line(&mut out), format!("{topic}\tnow\n"));
        assert_eq!(line(&mut out), "delivered\n");
        said(&child.wait_with_output().unwrap(), 0);
        place.until_published(device, 3);
    }
    // All of them said goodbye: the platform need not think that they were cut off.
    let started = Instant::now();
    loop {
        let log = place.server.log();
        let ends: Vec<&str> = log.lines().filter(|l| l.contains("session ended")).collect();
        assert!(ends.iter().all(|l| l.contains("client-disconnect")), "{ends:?}");
        if ends.len() == 4 {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(10), "{ends:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn nothing_that_is_handed_in_crashes_it_and_errors_have_cures() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing").display().to_string();
    let paths = compile("tests/c/paths.c", Linked::Shared, folder.path());
    let out = said(
        &Command::new(&paths).args(["nothing", &missing]).output().unwrap(),
        0,
    );
    let first = out.lines().next().unwrap();
    assert!(
        first.starts_with("3\t") && first.contains(&missing) && first.contains("an identity folder holds"),
        "{out}"
    );
    let publish = compile("examples/c/publish.c", Linked::Shared, folder.path());
    let output = Command::new(&publish).arg(&missing).output().unwrap();
    said(&output, 3);
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("\nhint: "),
        "{output:?}"
    );
}

#[test]
fn commands_come_through_whole_and_the_last_ones_count() {
    let place = Place::new();
    place.permit_all();
    let identity = place.provision("pump-1").display().to_string();
    let paths = compile("tests/c/paths.c", Linked::Statically, place.folder.path());
    said(
        &Command::new(&paths)
            .args(["round-trip", &identity])
            .output()
            .unwrap(),
        0,
    );
    place.until_published("pump-1", 4);
}

#[test]
fn with_the_platform_gone_messages_are_taken_and_the_program_lives() {
    let mut place = Place::new();
    let identity = place.provision("pump-1");
    let paths = compile("tests/c/paths.c", Linked::Shared, place.folder.path());
    let (mut child, mut out) = started(&paths, &["away", &identity.display().to_string()]);
    let first = line(&mut out);
    if first != "connected\n" {
        panic!("{first}{:?}", child.wait_with_output());
    }
    place.server.kill();
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    let told: Vec<String> = out.lines().map(Result::unwrap).collect();
    said(&child.wait_with_output().unwrap(), 0);
    let closed = told.last().unwrap();
    assert!(
        closed.contains("wait on disk") && closed.contains(": 3: "),
        "{told:?}"
    );
    assert_eq!(std::fs::read_dir(identity.join("queue")).unwrap().count(), 3);
}

/// Nothing is read that was not written, freed twice or lost, on any path. Valgrind is not everywhere.
#[test]
fn valgrind_finds_nothing() {
    if Command::new("valgrind").arg("--version").output().is_err() {
        eprintln!("there is no valgrind: not looked");
        return;
    }
    let place = Place::new();
    place.permit_all();
    let identity = place.provision("pump-1").display().to_string();
    let missing = place.folder.path().join("missing").display().to_string();
    let publish = compile("examples/c/publish.c", Linked::Statically, place.folder.path());
    let paths = compile("tests/c/paths.c", Linked::Statically, place.folder.path());
    for (program, arguments) in [
        (&publish, [identity.as_str(), "0"].as_slice()),
        (&paths, &["round-trip", &identity]),
        (&paths, &["nothing", &missing]),
    ] {
        let output = Command::new("valgrind")
            .args(["--error-exitcode=9", "--leak-check=full"])
            .arg(program)
            .args(arguments)
            .output()
            .unwrap();
        said(&output, 0);
    }
    place.until_published("pump-1", 7);
}
