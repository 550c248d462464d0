//! `countersign policy` and `countersign why` as operators meet them.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use countersign_testkit::client::{Attempt, connect};
use countersign_testkit::pki::{Ca, Identity, Leaf};
use countersign_testkit::server::Server;
use serde_json::{Value, json};

struct Place {
    folder: tempfile::TempDir,
    server: Server,
}

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_countersign"))
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

impl Place {
    fn new(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(program(), &folder.path().join("data"), config).unwrap();
        Self { folder, server }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, content: &str) -> String {
        std::fs::write(self.path(name), content).unwrap();
        self.path(name).display().to_string()
    }

    fn provision(&self, id: &str) -> Identity {
        let folder = self.path(id);
        self.server
            .cli_ok(&["device", "provision", id, "--out", folder.to_str().unwrap()])
            .unwrap();
        Identity::load(&folder).unwrap()
    }

    fn connect(&self, id: &str, identity: &Identity) -> Option<u8> {
        let attempt = Attempt {
            patience: Duration::from_secs(5),
            then: vec![0xe0, 0],
            ..Attempt::new(self.server.devices)
        };
        attempt.identity(identity).send(connect(5, id)).run().connack()
    }

    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.server.cli(arguments).unwrap();
        assert_eq!(output.status.code(), Some(4), "{arguments:?}: {}", text(&output));
        text(&output)
    }
}

const OPEN: &str = "@id(\"all\")\npermit (principal, action, resource);\n";

#[test]
fn versions_are_set_listed_compared_and_taken_back() {
    let place = Place::new("");
    let identity = place.provision("d1");
    assert_eq!(place.connect("d1", &identity), Some(0));
    let open = place.write("open.cedar", OPEN);
    let said = place
        .server
        .cli_ok(&["policy", "set", &open, "--reason", "open house"])
        .unwrap();
    assert!(
        said.contains("policy version 2 of tenant default is in force"),
        "{said}"
    );
    let shown = place.server.cli_ok(&["policy", "show"]).unwrap();
    assert!(
        shown.contains("version 2, in force")
            && shown.contains("open house")
            && shown.contains("@id(\"all\")"),
        "{shown}"
    );
    let diff = place.server.cli_ok(&["policy", "diff", "1", "2"]).unwrap();
    for part in [
        "policy active-devices-connect removed",
        "policy all added",
        "+ @id(\"all\")",
    ] {
        assert!(diff.contains(part), "{part} is not in {diff}");
    }
    assert!(
        place
            .server
            .cli_ok(&["policy", "diff", &open])
            .unwrap()
            .contains("say the same")
    );
    let said = place
        .server
        .cli_ok(&["policy", "revert", "1", "--reason", "house closed"])
        .unwrap();
    assert!(
        said.contains("policy version 3") && said.contains("it is version 1 again"),
        "{said}"
    );
    let list: Value =
        serde_json::from_str(&place.server.cli_ok(&["--json", "policy", "list"]).unwrap()).unwrap();
    let numbers: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v["number"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, [3, 2, 1]);
    assert_eq!(
        (&list[0]["reverts"], &list[0]["in_force"], &list[1]["in_force"]),
        (&1.into(), &true.into(), &false.into())
    );
    assert_eq!(list[0]["sha256"], list[2]["sha256"]);
    let output = place.server.cli(&["policy", "show", "9"]).unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert_eq!(place.connect("d1", &identity), Some(0));
}

#[test]
fn what_locks_everybody_out_needs_a_word_and_is_simulated_first() {
    let place = Place::new("[policy]\nlock_out_percent = 50\n");
    let (one, two) = (place.provision("d1"), place.provision("d2"));
    assert_eq!(place.connect("d1", &one), Some(0));
    let nobody = place.write(
        "nobody.cedar",
        "@id(\"night\") forbid (principal, action, resource);\n",
    );
    let said = place.refused(&["policy", "set", &nobody, "--reason", "night"]);
    for part in [
        "would lock out 2 of the 2 devices",
        "night",
        "d1, d2",
        "--accept-lock-out",
        "nothing was changed",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    assert_eq!(place.connect("d1", &one), Some(0));
    // Half of them, and that is what this configuration refuses.
    let half = place.write(
        "half.cedar",
        "@id(\"one\") permit (principal == Device::\"default/d2\", action, resource);\n",
    );
    let said = place.refused(&["policy", "set", &half, "--reason", "one"]);
    assert!(said.contains("would lock out 1 of the 2 devices"), "{said}");
    let said = place.server.cli_ok(&["policy", "simulate", &half]).unwrap();
    for part in [
        "active devices: 1 would be locked out, 0 newly let in; 1 stay in, 0 stay out",
        "locked-out 1 by policy.no-permit: d1",
        "recorded exchanges: 2 would be locked out",
        "1 device(s) have not been seen",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    place
        .server
        .cli_ok(&["policy", "set", &half, "--reason", "one", "--accept-lock-out"])
        .unwrap();
    assert_eq!(
        (place.connect("d1", &one), place.connect("d2", &two)),
        (Some(0x87), Some(0))
    );
    // Who is out already is locked out by nobody.
    let open = place.write("open.cedar", OPEN);
    let simulated: Value = serde_json::from_str(
        &place
            .server
            .cli_ok(&["--json", "policy", "simulate", &open])
            .unwrap(),
    )
    .unwrap();
    assert_eq!(simulated["devices"]["let_in"], 1);
    assert_eq!(simulated["devices"]["groups"][0]["policies"][0], "all");
    place
        .server
        .cli_ok(&["policy", "set", &open, "--reason", "morning"])
        .unwrap();
    assert_eq!(place.connect("d1", &one), Some(0));
}

#[test]
fn a_policy_against_resumption_alone_locks_nobody_out() {
    let place = Place::new("");
    let identity = place.provision("d1");
    let device = Attempt {
        patience: Duration::from_secs(5),
        then: vec![0xe0, 0],
        ..Attempt::new(place.server.devices)
    };
    let device = device.identity(&identity).send(connect(5, "d1")).resuming();
    // No ticket is made until the first use of the certificate is on record.
    let exchanges = (1..=20).find(|_| {
        let seen = device.run();
        assert_eq!(seen.connack(), Some(0), "{seen:?}");
        std::thread::sleep(Duration::from_millis(50));
        seen.resumed
    });
    let exchanges = exchanges.expect("a resumption");
    let again = place.write(
        "again.cedar",
        &format!(
            "{OPEN}@id(\"prove-it\") forbid (principal, action, resource) when {{ context.tls.resumed }};\n"
        ),
    );
    let said = place.server.cli_ok(&["policy", "simulate", &again]).unwrap();
    for part in [
        "active devices: 0 would be locked out",
        &format!("recorded exchanges: 0 would be locked out, 0 newly let in; {exchanges} stay in"),
        "1 recorded exchange(s) would have been full handshakes",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    place
        .server
        .cli_ok(&["policy", "set", &again, "--reason", "each time"])
        .unwrap();
    let seen = device.run();
    assert_eq!((seen.connack(), seen.resumed), (Some(0), false), "{seen:?}");
    let said = place.server.cli_ok(&["why", "d1"]).unwrap();
    assert!(said.contains("its tickets are declined"), "{said}");
}

#[test]
fn who_is_kept_out_by_its_state_is_not_locked_out_and_counts_where_nobody_is_in() {
    let place = Place::new("");
    let nobody = place.write(
        "nobody.cedar",
        "@id(\"night\") forbid (principal, action, resource);\n",
    );
    // Nobody is there yet, and nobody could ever come.
    let said = place.refused(&["policy", "set", &nobody, "--reason", "night"]);
    for part in [
        "no policy would permit connect",
        "no device that is registered now",
        "--accept-lock-out",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    place.provision("d1");
    place.provision("d2");
    place.provision("d3");
    let ask = |arguments: &[&str]| place.server.cli_ok(arguments).unwrap();
    ask(&["device", "suspend", "d1", "--reason", "lost"]);
    let others = place.write(
        "others.cedar",
        "@id(\"others\") permit (principal, action, resource) unless { principal.id == \"d1\" };\n",
    );
    // Not of two active devices, but of one that is suspended.
    let said = ask(&["policy", "simulate", &others]);
    for part in [
        "active devices: 0 would be locked out, 0 newly let in; 2 stay in, 0 stay out",
        "pending and suspended devices, once active: 1 would be locked out",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    ask(&["policy", "set", &others, "--reason", "without it"]);
    ask(&["policy", "revert", "1", "--reason", "with it"]);
    // The lane is closed to a quarantined device before and after.
    ask(&["device", "quarantine", "d3", "--reason", "odd"]);
    let said = ask(&["policy", "simulate", &nobody]);
    assert!(
        said.contains(
            "quarantined devices (the lane): 0 would be locked out, 0 newly let in; 0 stay in, 1 stay out"
        ),
        "{said}"
    );
    let said = place.refused(&["policy", "set", &nobody, "--reason", "night"]);
    assert!(
        said.contains("would lock out 1 of the 1 devices that are admitted now"),
        "{said}"
    );
    // Where no active device is in, those count that wait.
    ask(&["device", "suspend", "d2", "--reason", "lost"]);
    let shut = place.write(
        "shut.cedar",
        "permit (principal in Group::\"no\", action, resource);\n",
    );
    let said = place.refused(&["policy", "set", &shut, "--reason", "night"]);
    assert!(
        said.contains("would lock out 2 of the 2 devices that would be admitted once they are active"),
        "{said}"
    );
    ask(&["policy", "set", &shut, "--reason", "night", "--accept-lock-out"]);
    // That admits somebody who may come; this, nobody ever.
    let said = place.refused(&["policy", "set", &nobody, "--reason", "night"]);
    assert!(said.contains("no policy would permit connect"), "{said}");
    ask(&["policy", "set", &nobody, "--reason", "night", "--accept-lock-out"]);
    // Nothing is lost where nobody is admitted.
    let none = place.write("none.cedar", "");
    ask(&["policy", "set", &none, "--reason", "night"]);
}

#[test]
fn who_came_from_below_an_intermediate_is_locked_out_like_anybody() {
    let place = Place::new("");
    let root = Ca::root("bought root", None);
    let between = root.below("bought between", Some(0));
    let closed = json!({ "mode": "registered-only" });
    place
        .server
        .register("bought", "default", &root, &closed)
        .unwrap();
    let bring = |id: &str| {
        let identity = between.issue(&Leaf::named(id), &[&between]);
        let file = place.write(&format!("{id}.pem"), &identity.pem);
        place.server.cli_ok(&["device", "import", &file]).unwrap();
        identity
    };
    let (one, _) = (bring("d1"), bring("d2"));
    assert_eq!(place.connect("d1", &one), Some(0));
    let connect_of = |what: &str| {
        format!("{OPEN}@id(\"night\") forbid (principal, action == Action::\"connect\", resource){what};\n")
    };
    let nobody = place.write("nobody.cedar", &connect_of(""));
    let said = place.server.cli_ok(&["policy", "simulate", &nobody]).unwrap();
    for part in [
        "active devices: 2 would be locked out",
        "1 device(s) have a certificate of which it is not known which authority it ends in",
        "1 device(s) have not been seen",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    assert!(!said.contains("left out"), "{said}");
    let said = place.refused(&["policy", "set", &nobody, "--reason", "night"]);
    assert!(
        said.contains("would lock out 2 of the 2 devices that are admitted now"),
        "{said}"
    );
    // One was seen to come by it, which is written down behind its exchange; of the other it is an assumption, and said to be.
    let started = std::time::Instant::now();
    while !place
        .server
        .cli_ok(&["why", "d1"])
        .unwrap()
        .contains("the registry has it so")
    {
        assert!(started.elapsed().as_secs() < 10, "it is never written down");
    }
    for (id, from) in [
        ("d1", "leads to authority bought: the registry has it so"),
        (
            "d2",
            "leads to authority bought: assumed, no other of its tenant vouches",
        ),
    ] {
        let said = place.server.cli_ok(&["why", id]).unwrap();
        assert!(
            said.contains("would be let in") && said.contains("chain      ?") && said.contains(from),
            "{said}"
        );
    }
    // Which one it is does matter to these policies: each that it may be is asked about.
    let other = Ca::root("other root", None);
    place
        .server
        .register("another", "default", &other, &closed)
        .unwrap();
    let by_name = connect_of(" when { context.authority == \"bought\" }");
    let by_name = place.write("by_name.cedar", &by_name);
    let said = place.refused(&["policy", "set", &by_name, "--reason", "night"]);
    assert!(said.contains("would lock out 2 of the 2 devices"), "{said}");
    // Neither is assumed any more, and what was seen is still known.
    let said = place.refused(&["why", "d2"]);
    assert!(
        said.contains("leads to another or bought is not known")
            || said.contains("leads to bought or another is not known"),
        "{said}"
    );
    let said = place.server.cli_ok(&["why", "d1"]).unwrap();
    assert!(said.contains("the registry has it so"), "{said}");
    // Nobody comes under an authority that is gone.
    let gone = connect_of(" when { context.authority == \"gone\" }");
    let gone = place.write("gone.cedar", &gone);
    place
        .server
        .cli_ok(&["policy", "set", &gone, "--reason", "tidy"])
        .unwrap();
    assert_eq!(place.connect("d1", &one), Some(0));
    // Of a certificate that is not kept here, what is above it was not looked at.
    let direct = root.issue(&Leaf::named("d3"), &[]);
    let file = place.write("d3.pem", &direct.pem);
    place.server.cli_ok(&["device", "import", &file]).unwrap();
    let said = place.server.cli_ok(&["why", "d3"]).unwrap();
    for part in [
        "chain      ?",
        "dates      ?       its own: valid from",
        "revocation ?       it is not revoked here",
        "identify   passed",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
}

#[test]
fn a_change_names_its_base_its_reason_and_whether_it_was_one() {
    let place = Place::new("");
    place.provision("d1");
    let open = place.write("open.cedar", OPEN);
    let ask = |arguments: &[&str]| place.server.cli_ok(arguments).unwrap();
    let receipts = || ask(&["receipt", "list"]);
    ask(&["policy", "set", &open, "--reason", "open house", "--base", "1"]);
    let before = receipts();
    let again = ["policy", "set", &open, "--reason", "again"];
    assert!(ask(&again).contains("nothing was changed: policy version 2"));
    assert!(ask(&["policy", "revert", "2", "--reason", "again"]).contains("nothing was changed"));
    assert_eq!(receipts(), before);
    // Made of a version that is not in force any more.
    let nobody = place.write("nobody.cedar", "forbid (principal, action, resource);\n");
    let set = ["policy", "set", &nobody, "--reason", "night", "--accept-lock-out"];
    for late in [
        [&set[..], &["--base", "1"]].concat(),
        vec!["policy", "revert", "1", "--reason", "back", "--base", "1"],
    ] {
        let said = place.refused(&late);
        assert!(said.contains("version 2"), "{said}");
    }
    // Whoever accepts a lock-out says why, and the audit keeps that there was one.
    let said = place.refused(&["policy", "set", &nobody, "--reason", " ", "--accept-lock-out"]);
    assert!(said.contains("says why"), "{said}");
    ask(&[
        "policy",
        "revert",
        "1",
        "--reason",
        "no need",
        "--accept-lock-out",
    ]);
    ask(&set);
    let audit = place.server.ask("GET", "/audit", None).unwrap();
    let accepted: Vec<bool> = audit
        .as_array()
        .unwrap()
        .iter()
        .filter(|e| e["action"].as_str().is_some_and(|a| a.starts_with("policy.")))
        .map(|e| e["detail"].to_string().contains("accept_lock_out"))
        .collect();
    assert_eq!(accepted, [true, false, false]);
    // No more than can be read.
    let long = place.write("long.cedar", &format!("{OPEN}// {}\n", "x".repeat(256 * 1024)));
    let said = place.refused(&["policy", "set", &long, "--reason", "long", "--accept-lock-out"]);
    assert!(said.contains("262144 are the most"), "{said}");
    let spaces = json!([{ "name": "x".repeat(129), "filter": "a/#" }]).to_string();
    let spaces = place.write("spaces.json", &spaces);
    let said = place.refused(&["policy", "set", &open, "--spaces", &spaces, "--reason", "long"]);
    assert!(said.contains("128 are the most"), "{said}");
}

#[test]
fn a_template_is_accepted_by_no_word() {
    let place = Place::new("");
    let slot = format!("{OPEN}@id(\"slot\") forbid (principal == ?principal, action, resource);\n");
    let slot = place.write("slot.cedar", &slot);
    let said = place.refused(&["policy", "set", &slot, "--reason", "no", "--accept-lock-out"]);
    assert!(
        said.contains("cannot take effect") && said.contains("?principal"),
        "{said}"
    );
}

#[test]
fn what_does_not_fit_the_schema_needs_a_word_and_refuses_where_it_fails() {
    let mut place = Place::new("");
    let identity = place.provision("d1");
    assert_eq!(place.connect("d1", &identity), Some(0));
    let typo = place.write(
        "typo.cedar",
        &format!("{OPEN}@id(\"typo\")\nforbid (principal, action, resource)\nwhen {{ principal.modle == \"x\" }};\n"),
    );
    let said = place.refused(&["policy", "set", &typo, "--reason", "in a hurry"]);
    for part in [
        "does not fit the schema",
        "modle",
        "line 5",
        "would lock out 1 of the 1 devices",
        "policy schema",
        "--accept-lock-out",
        "nothing was changed",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    let said = place.server.cli_ok(&["policy", "simulate", &typo]).unwrap();
    assert!(
        said.contains("does not fit the schema: line 5") && said.contains("1 would be locked out"),
        "{said}"
    );
    assert_eq!(place.connect("d1", &identity), Some(0));
    place
        .server
        .cli_ok(&[
            "policy",
            "set",
            &typo,
            "--reason",
            "in a hurry",
            "--accept-lock-out",
        ])
        .unwrap();
    assert_eq!(place.connect("d1", &identity), Some(0x88));
    // What could never be evaluated does not take effect, whatever is said.
    let broken = place.write("broken.cedar", "permit (principal;\n");
    let said = place.refused(&["policy", "set", &broken, "--reason", "no", "--accept-lock-out"]);
    assert!(said.contains("cannot take effect"), "{said}");
    // What was accepted stays in force over a restart, and does not keep other settings from changing.
    let data = place.path("data");
    place.server.stop().unwrap();
    place.server = Server::start(program(), &data, "").unwrap();
    assert_eq!(place.connect("d1", &identity), Some(0x88));
    let said = place.refused(&["why", "d1"]);
    assert!(
        said.contains("policy     FAILED") && said.contains("policy.error"),
        "{said}"
    );
    place
        .server
        .cli_ok(&["tenant", "set", "default", "--client-id-mode", "prefix"])
        .unwrap();
    place
        .server
        .cli_ok(&["policy", "revert", "1", "--reason", "as it was"])
        .unwrap();
    assert_eq!(place.connect("d1", &identity), Some(0));
}

#[test]
fn who_shares_a_fault_is_one_group_and_a_refusal_stays_readable() {
    let place = Place::new("");
    for n in 0..12 {
        place.provision(&format!("d{n:02}"));
    }
    let failing = "@id(\"typo\") forbid (principal, action, resource) when { principal.modle == \"x\" };\n";
    let failing = place.write("failing.cedar", &format!("{OPEN}{failing}"));
    let said = place.refused(&["policy", "set", &failing, "--reason", "x"]);
    for part in [
        "would lock out 12 of the 12 devices",
        "(d00, d01, d02, …)",
        "hint: ",
        "--accept-lock-out",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    assert_eq!(said.matches("error while evaluating").count(), 1, "{said}");
    let said = place.server.cli_ok(&["policy", "simulate", &failing]).unwrap();
    assert!(
        said.contains("  locked-out 12 by error while evaluating"),
        "{said}"
    );

    // One reason for each device: the most are told, and the rest is counted.
    let each: String = (0..12)
        .map(|n| {
            format!("@id(\"no-{n}\") forbid (principal == Device::\"default/d{n:02}\", action, resource);\n")
        })
        .collect();
    let each = place.write("each.cedar", &format!("{OPEN}{each}"));
    let said = place.refused(&["policy", "set", &each, "--reason", "x"]);
    assert_eq!(said.matches(" by \"no-").count(), 10, "{said}");
    assert!(said.contains("; 2 for 2 reasons more"), "{said}");
    let said = place.server.cli_ok(&["policy", "simulate", &each]).unwrap();
    assert_eq!(said.matches("locked-out 1 by no-").count(), 10, "{said}");
    assert!(said.contains("and 2 for 2 reasons more"), "{said}");
}

#[test]
fn a_fault_is_told_with_its_place_without_a_server() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.cedar");
    let check = |content: &str| {
        std::fs::write(&file, content).unwrap();
        Command::new(program())
            .args(["policy", "check", file.to_str().unwrap()])
            .output()
            .unwrap()
    };
    let output =
        check("@id(\"typo\")\npermit (principal, action, resource)\nwhen { principal.modle == \"x\" };\n");
    let said = text(&output);
    assert_eq!(output.status.code(), Some(4), "{said}");
    for part in [
        "p.cedar:3:8: error: policy \"typo\"",
        "modle",
        "cure:",
        "policy schema",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    assert!(text(&check("permit (principal;")).contains("p.cedar:1:18: error"));
    assert!(check(OPEN).status.success());
    let schema = Command::new(program())
        .args(["policy", "schema"])
        .output()
        .unwrap();
    assert!(text(&schema).contains("custody") && text(&schema).contains("\"quarantine-clone\""));
    let clones = format!(
        "{OPEN}permit (principal, action == Action::\"quarantine-clone\", resource) when {{ context.SCORE > 3000 }};"
    );
    assert!(check(&clones.replace("SCORE", "score")).status.success());
    assert!(!check(&clones.replace("SCORE", "points")).status.success());
    // What `set` would refuse is not called good here.
    let output = check(&OPEN.replace("action,", "action == Action::\"publish\","));
    let said = text(&output);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(
        said.contains("no policy would permit connect") && said.contains("hint: "),
        "{said}"
    );
    assert!(!said.contains("would take effect"), "{said}");
}

#[test]
fn a_misspelt_topic_space_is_told_by_check_simulate_and_set() {
    let place = Place::new("");
    let with = |space: &str| {
        format!(
            "{}@id(\"out\") permit (principal, action == Action::\"publish\", resource)\nwhen {{ context.spaces.contains(\"{space}\") }};\n",
            OPEN.replace("action,", "action == Action::\"connect\",")
        )
    };
    let file = place.write("p.cedar", &with("telemetri"));
    let good = place.write("good.cedar", &with("telemetry"));
    let said_by = |arguments: &[&str]| {
        let output = place.server.cli(arguments).unwrap();
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
    };
    let warning = "policy \"out\": it names the topic space \"telemetri\", which is not declared";
    let set = |file: &str| said_by(&["policy", "set", file, "--reason", "x"]);
    for said in [
        said_by(&["policy", "check", &file]),
        said_by(&["policy", "simulate", &file]),
        set(&file),
    ] {
        assert!(said.contains(warning) && said.contains("cure: "), "{said}");
    }
    let checked = said_by(&["policy", "check", &file]);
    assert!(checked.contains("built-in topic spaces; --spaces"), "{checked}");
    for said in [
        said_by(&["policy", "check", &good]),
        said_by(&["policy", "simulate", &good]),
        set(&good),
    ] {
        assert!(!said.contains("warning"), "{said}");
    }
    // The spaces in force count, where there are others.
    let spaces = place.write("s.json", r#"[{"name": "telemetri", "filter": "t/{id}/#"}]"#);
    said_by(&["policy", "set", &file, "--spaces", &spaces, "--reason", "ours"]);
    let said = said_by(&["policy", "simulate", &file]);
    assert!(!said.contains("warning"), "{said}");
    assert!(said_by(&["policy", "simulate", &good]).contains("\"telemetry\", which is not declared"));
}

/// As a reader does it: what the page shows is all that there is.
#[test]
fn the_cases_of_the_book_pass_with_the_files_that_the_book_gives() {
    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/policies.md")).unwrap();
    let section = page.split("\n## ").find(|s| s.starts_with("Cases\n")).unwrap();
    let block = |language: &str| {
        let opening = format!("\n```{language}\n");
        let (_, rest) = section
            .split_once(&opening)
            .unwrap_or_else(|| panic!("no {language}"));
        rest.split_once("```").unwrap().0.to_owned()
    };
    let folder = tempfile::tempdir().unwrap();
    for (language, name) in [
        ("cedar", "fleet.cedar"),
        ("json", "spaces.json"),
        ("toml", "cases.toml"),
    ] {
        assert!(
            section.contains(&format!("`{name}`")),
            "the page does not say what {name} is"
        );
        std::fs::write(folder.path().join(name), block(language)).unwrap();
    }
    let run = |arguments: &[&str]| {
        let output = Command::new(program())
            .current_dir(folder.path())
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    };
    let said = run(&["policy", "test", "cases.toml"]);
    let cases = block("toml").matches("[[case]]").count();
    assert!(said.contains(&format!("{cases} case(s), 0 failed")), "{said}");
    let said = run(&["policy", "check", "fleet.cedar", "--spaces", "spaces.json"]);
    assert!(!said.contains("warning"), "{said}");
}

#[test]
fn cases_are_tested_without_a_server() {
    let folder = tempfile::tempdir().unwrap();
    let policies = "@id(\"all\") permit (principal, action, resource);\n@id(\"no-lab\") forbid (principal in Group::\"lab\", action, resource);\n@id(\"locks\") permit (principal in Group::\"locks\", action == Action::\"quarantine-clone\", resource) when { context.score >= 5000 && context.sources == 2 };\n";
    std::fs::write(folder.path().join("fleet.cedar"), policies).unwrap();
    let cases = folder.path().join("cases.toml");
    let run = |content: &str| {
        std::fs::write(&cases, content).unwrap();
        Command::new(program())
            .args(["policy", "test", cases.to_str().unwrap()])
            .output()
            .unwrap()
    };
    let good = r#"
policies = "fleet.cedar"
[[case]]
name = "the lab stays out"
device = { id = "d1", groups = ["lab"] }
expect = "deny"
policy = "no-lab"
[[case]]
name = "others have their telemetry"
action = "publish"
device = { id = "d2", groups = ["field"], model = "m1", batch = "b1" }
credential = { custody = "attested" }
tls = { version = "TLSv1.2", resumed = true }
topic = "devices/d2/telemetry/t"
qos = 1
expect = "permit"
policy = "all"
[[case]]
name = "whoever is suspended is out, whatever policies say"
device = { state = "suspended" }
expect = "deny"
[[case]]
name = "QoS 2 is not offered"
action = "publish"
device = { id = "d2", groups = ["field"] }
topic = "devices/d2/telemetry/t"
qos = 2
expect = "deny"
[[case]]
name = "nor are retained messages"
action = "publish"
device = { id = "d2", groups = ["field"] }
topic = "devices/d2/telemetry/t"
retain = true
expect = "deny"
[[case]]
name = "nor shared subscriptions"
action = "subscribe"
device = { id = "d2", groups = ["field"] }
topic = "$share/g/devices/d2/commands/#"
expect = "deny"
[[case]]
name = "a copied lock is quarantined"
action = "quarantine-clone"
device = { groups = ["locks"] }
clone = { score = 5000, answered = 5, sources = ["192.0.2.1", "192.0.2.2"] }
expect = "permit"
policy = "locks"
[[case]]
name = "on less evidence it is told"
action = "quarantine-clone"
device = { groups = ["locks"] }
clone = { score = 4999, answered = 5, sources = ["192.0.2.1", "192.0.2.2"] }
expect = "deny"
"#;
    let output = run(good);
    assert!(output.status.success(), "{}", text(&output));
    assert!(
        text(&output).contains("ok      the lab stays out: deny by no-lab"),
        "{}",
        text(&output)
    );
    let output = run(&good.replace("policy = \"no-lab\"", "policy = \"no-labs\""));
    let said = text(&output);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(
        said.contains("FAILED  the lab stays out: expected deny by no-labs, got deny by no-lab"),
        "{said}"
    );
    assert!(said.contains("8 case(s), 1 failed"), "{said}");
    assert!(text(&run("[[case]]\nname = \"x\"\nexpect = \"permit\"\nmodle = 1\n")).contains("modle"));
    // What could never come about is no case, whatever is expected.
    for (odd, said_of_it) in [
        ("topic = \"a\"", "connect is about no topic"),
        ("action = \"publish\"", "it has no topic"),
        ("action = \"publish\"\ntopic = \"a/#\"", "its topic cannot be"),
        ("action = \"subscribe\"\ntopic = \"a/#/b\"", "its topic cannot be"),
        ("action = \"publish\"\ntopic = \"a\"\nqos = 3", "no QoS 3"),
        ("action = \"quarantine-clone\"", "it has no clone"),
        (
            "clone = { score = 3000 }",
            "only quarantine-clone is about a clone",
        ),
        (
            "action = \"quarantine-clone\"\nclone = { score = 80 }",
            "nobody is suspected",
        ),
        (
            "action = \"quarantine-clone\"\nclone = { score = 3000 }\ntopic = \"a\"",
            "quarantine-clone is about no topic",
        ),
        ("tls = { version = \"TLS1.3\" }", "tls.version"),
        ("tls = { group = \"X25518\" }", "tls.group"),
        ("tls = { cipher_suite = \"NULL\" }", "tls.cipher_suite"),
    ] {
        let output = run(&format!("[[case]]\nname = \"x\"\nexpect = \"deny\"\n{odd}\n"));
        let said = text(&output);
        assert_eq!(output.status.code(), Some(4), "{odd}: {said}");
        assert!(
            said.contains(said_of_it) && said.contains("case \"x\""),
            "{odd}: {said}"
        );
    }
}

#[test]
fn why_asks_every_layer_of_who_is_not_connected() {
    let place = Place::new("");
    let identity = place.provision("d1");
    let said = place
        .server
        .cli_ok(&["why", "d1", "--topic", "devices/d1/telemetry/t"])
        .unwrap();
    let shared = [
        "why",
        "d1",
        "--topic",
        "$share/g/devices/d1/commands/#",
        "--action",
        "subscribe",
    ];
    let said_of_shared = place.server.cli(&shared).unwrap();
    let said_of_shared = String::from_utf8_lossy(&said_of_shared.stdout).into_owned();
    assert!(
        said_of_shared.contains("topic.shared-subscription"),
        "{said_of_shared}"
    );
    for part in [
        "would be let in",
        "chain      passed",
        "dates      passed",
        "identify   passed",
        "policy     passed",
        "[active-devices-connect]",
        "token      passed  a token would be good to publish in telemetry, command-results, firmware, status, diagnostics",
        "topic      passed",
        "[own-topics-publish]",
        "it has not been seen",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    assert_eq!(place.connect("d1", &identity), Some(0));
    assert!(
        place
            .server
            .cli_ok(&["why", "d1"])
            .unwrap()
            .contains("as in exchange")
    );
    let said = place.refused(&[
        "why",
        "d1",
        "--topic",
        "devices/d2/commands/#",
        "--action",
        "subscribe",
    ]);
    assert!(
        said.contains("topic      FAILED") && said.contains("is in no topic space"),
        "{said}"
    );
    let said = place.refused(&["why", "d1", "--at", "2100-01-01T00:00:00Z"]);
    assert!(
        said.contains("dates      FAILED") && said.contains("policy     -"),
        "{said}"
    );
    let said = place.refused(&["why", "d1", "--client-id", "d2"]);
    assert!(said.contains("client-id  FAILED"), "{said}");
    place
        .server
        .cli_ok(&["device", "suspend", "d1", "--reason", "lost", "--for", "1h"])
        .unwrap();
    let certificate = place.write("d1.pem", &identity.pem);
    for subject in ["d1", certificate.as_str()] {
        let said = place.refused(&["why", subject]);
        for part in [
            "lifecycle  FAILED",
            "device.suspended",
            "by cli",
            ": lost; until 20",
            "countersign device resume",
            "client-id  -",
        ] {
            assert!(said.contains(part), "{part} is not in {said}");
        }
    }
    place.server.cli_ok(&["device", "resume", "d1"]).unwrap();
    place
        .server
        .cli_ok(&["device", "quarantine", "d1", "--reason", "odd"])
        .unwrap();
    let said = place.refused(&["why", "d1"]);
    assert!(
        said.contains("lifecycle  FAILED") && said.contains(": odd") && said.contains("device.quarantined"),
        "{said}"
    );
    let lane = place.write(
        "lane.cedar",
        &format!("{OPEN}@id(\"lane\") @quarantine(\"open\") permit (principal, action, resource);\n"),
    );
    place
        .server
        .cli_ok(&["policy", "set", &lane, "--reason", "look at it"])
        .unwrap();
    let asked = ["why", "d1", "--topic", "devices/d1/diagnostics/log"];
    let said = place.server.cli_ok(&asked).unwrap();
    for part in [
        "lifecycle  passed  the device is quarantined, and a policy opens the lane",
        "token      -",
        "the lane is MQTT alone",
        "topic      passed",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    let said = place.refused(&["why", "d1", "--topic", "devices/d1/telemetry/t"]);
    assert!(
        said.contains("topic      FAILED") && said.contains("in the lane it may publish only"),
        "{said}"
    );
    let output = place.server.cli(&["why", "nobody"]).unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
}
