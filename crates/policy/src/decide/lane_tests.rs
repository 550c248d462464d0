//! The quarantine lane: every action, space and state, under policies that permit all they can.

use super::tests::{asked, connect, credential, device};
use super::*;
use crate::spaces::default_spaces;

const MATRIX: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/decide/quarantine-matrix.txt");

const OPEN: &str = r#"@id("lane") @quarantine("open") permit (principal, action, resource);"#;

fn compiled(text: &str, spaces: Vec<TopicSpace>) -> TenantPolicy {
    TenantPolicy::compile(Generation(1), text, spaces).unwrap()
}

fn outcome<T>(decided: Result<T, Denial>) -> &'static str {
    decided.map_or_else(|denial| denial.code.as_str(), |_| "permitted")
}

/// What a device in `state` may do in the topics of `spaces`, after it got in while it might.
fn rows(state: LifecycleState) -> Vec<String> {
    let policy = compiled(OPEN, default_spaces());
    let now = DeviceFacts { state, ..device(&[]) };
    let mut rows = vec![format!(
        "{state:14} connect                        {}",
        outcome(connect(&policy, &now, &credential(&now)))
    )];
    let before = device(&[]);
    let admission = connect(&policy, &before, &credential(&before)).unwrap();
    let names: Vec<String> = policy.spaces().iter().map(|s| s.name.clone()).collect();
    let sets = names.iter().map(|n| vec![n.as_str()]).chain([vec![]]);
    for set in sets {
        let name = set.first().copied().unwrap_or("(none)");
        for retain in [false, true] {
            let asked = DataFacts {
                retain,
                ..asked(&policy, &set)
            };
            let retained = if retain { " retained" } else { "" };
            rows.push(format!(
                "{state:14} {:30} {}",
                format!("publish   {name}{retained}"),
                outcome(policy.publish(&admission, &now, "t", asked))
            ));
        }
        rows.push(format!(
            "{state:14} {:30} {}",
            format!("subscribe {name}"),
            outcome(policy.subscribe(&admission, &now, "t", asked(&policy, &set)))
        ));
    }
    rows
}

/// `COUNTERSIGN_BLESS=1` writes the file.
#[test]
fn the_committed_matrix_is_what_the_code_permits() {
    let mut text = String::from(
        "# What a device may do, by state, action and space, under a policy that permits everything and opens the lane.\n# state         action    space                   outcome\n",
    );
    for state in LifecycleState::ALL {
        for row in rows(state) {
            text.push_str(&row);
            text.push('\n');
        }
    }
    if std::env::var_os("COUNTERSIGN_BLESS").is_some() {
        std::fs::write(MATRIX, &text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(MATRIX).unwrap(), text);
    let permitted: Vec<_> = rows(LifecycleState::Quarantined)
        .into_iter()
        .filter(|r| r.ends_with("permitted"))
        .map(|r| r.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        permitted,
        [
            "quarantined connect permitted",
            "quarantined subscribe firmware",
            "quarantined publish diagnostics"
        ]
    );
}

#[test]
fn only_a_policy_that_says_so_opens_the_lane_and_a_policy_may_close_it_for_some() {
    let quarantined = |groups: &[&str]| DeviceFacts {
        state: LifecycleState::Quarantined,
        ..device(groups)
    };
    let decide = |text: &str, groups: &[&str]| {
        let d = quarantined(groups);
        let policy = compiled(text, default_spaces());
        // Twice: once decided, once kept.
        let first = outcome(connect(&policy, &d, &credential(&d)));
        assert_eq!(first, outcome(connect(&policy, &d, &credential(&d))));
        first
    };
    assert_eq!(decide(DEFAULT_POLICY, &[]), "device.quarantined");
    assert_eq!(
        decide("permit (principal, action, resource);", &[]),
        "device.quarantined"
    );
    assert_eq!(decide("", &[]), "device.quarantined");
    let lane = r#"@quarantine("open") permit (principal in Group::"fixable", action == Action::"connect", resource);"#;
    let both = format!("permit (principal, action, resource);\n{lane}");
    assert_eq!(decide(&both, &["fixable"]), "permitted");
    assert_eq!(decide(&both, &["other"]), "device.quarantined");
    let forbidden = format!("{lane}\nforbid (principal in Group::\"never\", action, resource);");
    assert_eq!(decide(&forbidden, &["fixable", "never"]), "policy.forbidden");
}

#[test]
fn inside_the_lane_policies_narrow_and_never_widen() {
    let d = DeviceFacts {
        state: LifecycleState::Quarantined,
        ..device(&[])
    };
    let lane = r#"@quarantine("open") permit (principal, action == Action::"connect", resource);"#;
    // The lane is open, and nothing permits data: nothing goes.
    let policy = compiled(lane, default_spaces());
    let admission = connect(&policy, &d, &credential(&d)).unwrap();
    let publish = |policy: &TenantPolicy, admission: &AdmissionPermit, name: &str| {
        outcome(policy.publish(admission, &d, "t", asked(policy, &[name])))
    };
    assert_eq!(publish(&policy, &admission, "diagnostics"), "topic.forbidden");
    // The name of the lane's space over other topics: closed, not moved.
    let mut spaces = default_spaces();
    for space in &mut spaces {
        if space.name == "diagnostics" {
            space.filter = "#".into();
        }
    }
    let policy = compiled(OPEN, spaces);
    let admission = connect(&policy, &d, &credential(&d)).unwrap();
    assert_eq!(publish(&policy, &admission, "diagnostics"), "topic.forbidden");
}

#[test]
fn an_annotation_that_nearly_opens_the_lane_is_a_fault() {
    let text = r#"@quarantine("opened") permit (principal, action, resource);"#;
    let fault = TenantPolicy::compile(Generation(1), text, default_spaces()).unwrap_err();
    assert_eq!(fault, PolicyFault::Quarantine("opened".into()));
}
