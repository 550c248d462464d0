//! What an agent must come through by itself: a full disk; a day without its platform, which comes back with another root
//! and finds its certificate expired.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stderr
)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use countersign_testkit::agent::{Agent, Running, point_to};
use countersign_testkit::network::Network;
use countersign_testkit::pki::Ca;
use countersign_testkit::server::{Server, listener};
use serde_json::Value;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_countersign"))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// A small file system of its own. Needs the right to mount: there is no other way to fill a disk that harms nobody.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mounted(at: &Path) -> Option<Self> {
        std::fs::create_dir(at).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs"])
            .arg(at)
            .status();
        if mounted.is_ok_and(|s| s.success()) {
            return Some(Self(at.to_owned()));
        }
        assert!(
            std::env::var_os("CI").is_none(),
            "CI must be able to mount a tmpfs"
        );
        eprintln!("not run: this user may not mount a file system");
        None
    }

    /// Takes what room is left.
    fn fill(&self) {
        let mut filler = std::fs::OpenOptions::new();
        let mut file = filler
            .create(true)
            .append(true)
            .open(self.0.join("filler"))
            .unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    fn make_room(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn on_a_full_disk_the_agent_stays_connected_delivers_says_so_and_recovers() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mounted(&folder.path().join("pump-1")) else {
        return;
    };
    let server = Server::start(program(), &folder.path().join("data"), &listener("enrol")).unwrap();
    let agent = Agent::new(program(), disk.0.clone());
    let out = folder.path().join("provisioned");
    let out_text = out.display().to_string();
    server
        .cli_ok(&["device", "provision", "pump-1", "--out", &out_text])
        .unwrap();
    for file in ["device.crt", "device.key", "device.json", "platform-root.crt"] {
        std::fs::copy(out.join(file), disk.0.join(file)).unwrap();
    }
    let network = Network::to(server.devices);
    let enrol = server.listener("enrol").unwrap().port();
    point_to(&agent, &[("port", network.port), ("enrol_port", enrol)]);
    let mut service = Running::of(agent.clone(), folder.path().join("words"));
    service.start(&["run"]);
    service.until("connected", |code, _| code == 0);
    let hand_in = |payload: &str| agent.run(&["publish", "--queued", payload]);

    // What was taken before the disk was full is delivered, although the network was away too.
    network.cut();
    service.until("noticed", |code, _| code != 0);
    for n in 0..5 {
        assert_eq!(hand_in(&format!("{n}")).0, 0);
    }
    // One that the platform will not have stands in nobody's way.
    agent.ok(&["publish", "--queued", "--topic", "somebody/elses", "1"]);
    disk.fill();
    network.mend(server.devices);
    service.until("delivered", |code, s| {
        code == 0 && s["delivered"] == 5 && s["refused"] == 1 && s["waiting"] == 0
    });
    // What cannot be kept is refused to whoever hands it in, with the cure.
    disk.fill();
    let (code, _, err) = hand_in("lost?");
    assert_eq!(code, 13, "{err}");
    assert!(
        err.contains("disk full") && err.contains("hint: make room"),
        "{err}"
    );
    let status = service.until("it says so", |code, s| code == 0 && s["disk_fault"].is_object());
    let fault = &status["disk_fault"];
    assert!(
        text(fault, "what").contains("disk full") && text(fault, "cure").contains("make room"),
        "{status}"
    );
    let told = agent.ok(&["status"]);
    assert!(
        told.contains("connected to") && told.contains("disk full") && told.contains("hint: make room"),
        "{told}"
    );

    // Started anew on the full disk, with a certificate that is to be renewed now: it comes in, and says what it cannot do.
    service.stop();
    let before = agent.certificate();
    service.start(&["--renew-at", "0-0", "run"]);
    let status = service.until("in again", |code, s| {
        code == 0 && s["renewal_fault"].is_string() && s["disk_fault"].is_object()
    });
    let fault = text(&status, "renewal_fault");
    assert!(
        fault.contains("disk full") && fault.contains("hint: make room"),
        "{status}"
    );
    disk.fill();
    assert_eq!(hand_in("lost?").0, 13);
    assert_eq!(agent.certificate(), before);

    // There is room again: nobody has to touch it.
    disk.make_room();
    assert_eq!(hand_in("kept").0, 0);
    service.until("all is well", |code, s| {
        code == 0
            && s["delivered"] == 1
            && s["waiting"] == 0
            && s["disk_fault"].is_null()
            && s["renewal_fault"].is_null()
    });
    assert_ne!(agent.certificate(), before);
    let aside = disk.0.join("queue/refused");
    assert_eq!(std::fs::read_dir(aside).unwrap().count(), 1);
}

/// Renewed while there was room, admitted when there was none: the session stands, and the new certificate is put in use
/// as soon as that can be written down.
#[test]
fn a_new_certificate_that_cannot_be_put_in_use_is_used_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(program(), &folder.path().join("data"), &listener("enrol")).unwrap();
    let agent = Agent::new(program(), folder.path().join("pump-2"));
    let out = agent.folder.display().to_string();
    server
        .cli_ok(&["device", "provision", "pump-2", "--out", &out])
        .unwrap();
    let enrol = server.listener("enrol").unwrap().port();
    point_to(&agent, &[("enrol_port", enrol)]);
    agent.ok(&["renew", "--no-connect"]);
    let before = agent.certificate();
    // A link cannot be put where a folder is.
    let obstacle = agent.folder.join("current.new");
    std::fs::create_dir(&obstacle).unwrap();
    let mut service = Running::of(agent.clone(), folder.path().join("words"));
    service.start(&["run"]);
    let status = service.until("connected", |code, s| code == 0 && s["disk_fault"].is_object());
    assert!(
        text(&status["disk_fault"], "what").contains("current"),
        "{status}"
    );
    agent.ok(&["publish", "--queued", "1"]);
    service.until("delivered", |code, s| code == 0 && s["delivered"] == 1);
    assert_eq!(agent.certificate(), before);
    std::fs::remove_dir(&obstacle).unwrap();
    service.until("put in use", |code, s| code == 0 && s["disk_fault"].is_null());
    assert_ne!(agent.certificate(), before);
}

/// The device's time, by libfaketime: it reads its file at each look at a clock, wall clock and timers alike.
struct DeviceTime {
    file: PathBuf,
    started: Instant,
}

/// How many times faster the day goes by than ours.
const FASTER: f64 = 1500.0;
/// A day and some: more than the life of the certificate.
const AWAY: Duration = Duration::from_secs(26 * 3600);

impl DeviceTime {
    /// Where Debian puts it.
    fn library() -> PathBuf {
        let machines = std::fs::read_dir("/usr/lib").unwrap();
        let mut places = machines.map(|m| m.unwrap().path().join("faketime/libfaketimeMT.so.1"));
        places.find(|p| p.exists()).expect("apt-get install faketime")
    }

    /// As ours, until something else is said; to be made just before the agent starts.
    fn ours(file: PathBuf) -> Self {
        std::fs::write(&file, "+0 x1\n").unwrap();
        Self {
            file,
            started: Instant::now(),
        }
    }

    fn of(&self, agent: &Agent) -> Agent {
        agent
            .clone()
            .with("LD_PRELOAD", Self::library())
            .with("FAKETIME_TIMESTAMP_FILE", self.file.clone())
            .with("FAKETIME_NO_CACHE", "1".into())
    }

    fn set(&self, text: &str) {
        // At once: a half-written one would be another time.
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{text}\n")).unwrap();
        std::fs::rename(&new, &self.file).unwrap();
    }

    /// Goes by quickly from now on. Clocks count from the agent's start; a leap of some minutes covers what that is not
    /// known exactly, for no clock may go backwards.
    fn run_fast(&self) {
        let offset = self.started.elapsed().as_secs_f64() * (1.0 - FASTER) + FASTER;
        self.set(&format!("{offset:+.3} x{FASTER}"));
    }

    /// As ours again, so much later.
    fn run_as_ours(&self, later: Duration) {
        self.set(&format!("+{} x1", later.as_secs()));
    }
}

/// The server by a wall clock that is so much ahead. libfaketime is of no use to it: jemalloc asks for the time before that
/// is ready to tell, and both wait for ever.
fn ahead(folder: &Path, later: Duration) -> Command {
    const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    long failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += LATER;
    return (int)failed;
}
"#;
    let (source, library) = (folder.join("ahead.c"), folder.join("ahead.so"));
    std::fs::write(&source, SOURCE).unwrap();
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", &format!("-DLATER={}", later.as_secs()), "-o"])
        .args([&library, &source])
        .output()
        .unwrap();
    assert!(built.status.success(), "{built:?}");
    let mut command = Command::new(program());
    command.env("LD_PRELOAD", library);
    command
}

/// What the agent said of its waits, in seconds.
fn waits(words: &str, before: &str) -> Vec<u64> {
    let told = words.split(before).skip(1);
    told.map(|rest| {
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    })
    .collect()
}

/// The real agent lives through a day in a minute, while its platform is away: it tries again and again, and ever more
/// seldom; its certificate is to be renewed, and expires; its queue fills to its bound. Then the platform is back, under a new
/// root that was announced before, and the device comes in by itself and delivers what was taken.
#[test]
fn a_day_without_the_platform_its_root_rotated_the_certificate_expired() {
    const QUEUE: usize = 20;
    let next = Ca::root("the next platform root", None);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("next.pem"), &next.pem).unwrap();
    let common = format!(
        "[enrol]\nplatform_roots = [{:?}]\nexpired_days_max = 3\n{}[[profiles]]\nname = \"operational\"\nlifetime_days = 1\n",
        path("next.pem"),
        listener("enrol"),
    );
    let mut server = Server::start(program(), &path("data"), &common).unwrap();
    let agent = Agent::new(program(), path("pump-3"));
    let root = server.cli_ok(&["authority", "export", "platform"]).unwrap();
    std::fs::write(path("root.pem"), root).unwrap();
    server.cli_ok(&["device", "add", "pump-3"]).unwrap();
    let secret = server.cli_ok(&["device", "secret", "pump-3"]).unwrap();
    std::fs::write(path("secret"), secret).unwrap();
    let enrol = server.listener("enrol").unwrap();
    agent.ok(&[
        "enrol",
        "--server",
        &format!("localhost:{}", enrol.port()),
        "--platform-root",
        &path("root.pem").display().to_string(),
        "--id",
        "pump-3",
        "--secret-file",
        &path("secret").display().to_string(),
    ]);
    let (devices, enrolment) = (Network::to(server.devices), Network::to(enrol));
    point_to(&agent, &[("port", devices.port), ("enrol_port", enrolment.port)]);
    let first = agent.certificate();

    let time = DeviceTime::ours(path("time"));
    let mut service = Running::of(time.of(&agent), path("words"));
    service.start(&["run", "--queue-messages", &QUEUE.to_string()]);
    // `status` is asked by a process whose clock is ours.
    service.agent = agent.clone();
    service.until("connected", |code, _| code == 0);
    agent.ok(&["publish", "--queued", "before"]);
    service.until("delivered", |_, s| s["delivered"] == 1);

    // Away. Ports that nobody listens on refuse at once.
    server.kill();
    devices.cut();
    enrolment.cut();
    time.run_fast();
    let away = Instant::now();
    let mut taken = 0;
    let mut refused = 0;
    for hour in 1..=26_u32 {
        while away.elapsed() < AWAY.div_f64(FASTER) * hour / 26 {
            std::thread::sleep(Duration::from_millis(20));
        }
        match agent.run(&["publish", "--queued", &format!("hour {hour}")]) {
            (0, ..) => taken += 1,
            (13, _, err) => {
                assert!(err.contains("20 messages") && err.contains("hint: "), "{err}");
                refused += 1;
            }
            (code, out, err) => panic!("{code}: {out}{err}"),
        }
    }
    assert_eq!((taken, refused), (QUEUE, 6));
    let (code, status) = service.status();
    assert!(
        code != 0 && status["fault"]["cure"].is_string() && status["waiting"] == QUEUE,
        "{status}"
    );
    // Of the renewal that was due meanwhile too.
    let fault = text(&status, "renewal_fault");
    assert!(fault.contains("could not be renewed"), "{status}");
    let words = service.words();
    let tries = waits(&words, "tries again in ");
    let longest = tries.iter().max().copied().unwrap();
    assert!((200..=300).contains(&longest), "{tries:?}");
    // Half of five minutes on average, give or take what a slow machine makes of it; ten times as often in the beginning.
    assert!((250..1200).contains(&tries.len()), "{}", tries.len());
    assert!(tries[..4].iter().all(|t| *t <= 8), "{tries:?}");
    let renewals = waits(&words, "could not be renewed, trying again in ");
    assert!((5..60).contains(&renewals.len()), "{renewals:?}");

    // Back, and by everybody's clock it is later than the fast one ever was.
    let later = AWAY + Duration::from_secs(2 * 3600);
    let served = next.issue_server("localhost");
    std::fs::write(path("server.pem"), &served.pem).unwrap();
    std::fs::write(path("server.key"), &served.key_pem).unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(path("server.key"), private).unwrap();
    let config = format!(
        "[server]\ncertificate = {:?}\nkey = {:?}\n{common}",
        path("server.pem"),
        path("server.key"),
    );
    let command = ahead(folder.path(), later);
    let server = Server::start_with(command, program(), &path("data"), &config).unwrap();
    time.run_as_ours(later);
    devices.mend(server.devices);
    // It is told that its certificate has expired before it can have another. Whatever it waits for in between goes by at
    // once: five minutes at most, by a leap of its clock, which it sees when it is asked for its status.
    let mut clock = later;
    let mut wait_out = |holds: &dyn Fn(i32, &Value) -> bool, what: &str| {
        service.until(what, |code, status| {
            let done = holds(code, status);
            if !done && status["state"] == "waiting" {
                clock += Duration::from_secs(400);
                time.run_as_ours(clock);
                // What it tries then has its time.
                service.status();
                std::thread::sleep(Duration::from_secs(1));
            }
            done
        })
    };
    let told = |_: i32, _: &Value| service.words().contains("CertificateExpired");
    wait_out(&told, "told that its certificate has expired");
    enrolment.mend(server.listener("enrol").unwrap());
    let delivered = |code: i32, s: &Value| code == 0 && s["waiting"] == 0 && s["delivered"] == QUEUE + 1;
    let status = wait_out(&delivered, "in again, and delivered");
    assert!(
        status["fault"].is_null() && status["renewal_fault"].is_null(),
        "{status}\n{}",
        service.words()
    );
    assert_ne!(agent.certificate(), first);
    let audit = server.ask("GET", "/audit", None).unwrap().to_string();
    assert!(audit.contains("credential.renewal-lane"), "{audit}");

    // It has written down how late it is: a cold start that wakes in 1970 is later than the day that went by.
    service.stop();
    let saved: u64 = std::fs::read_to_string(agent.folder.join("clock"))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    assert!(saved > (now + AWAY).as_secs(), "{saved}");
    let plain = agent.command(&["check"]);
    let output = Command::new("faketime")
        .args(["-f", "@1970-01-02 00:00:00"])
        .arg(plain.get_program())
        .args(plain.get_args())
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && told.contains("behind what was known"),
        "{told}"
    );
}
