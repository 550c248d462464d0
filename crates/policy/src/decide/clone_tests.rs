use super::tests::{connect, credential, device};
use super::*;
use crate::clones::CloneAction::{Alert, Quarantine};
use crate::spaces::default_spaces;

const CONNECT: &str = r#"permit (principal, action == Action::"connect", resource);"#;

fn suspicion(score: u32) -> Suspicion {
    let mut found = Suspicion::example_for_test(Timestamp::from_unix_s(1_795_000_000));
    found.score = score;
    found
}

fn on(text: &str, device: &DeviceFacts, score: u32) -> CloneVerdict {
    let text = format!("{CONNECT}{text}");
    verdict(
        &TenantPolicy::compile(Generation(1), &text, default_spaces()).unwrap(),
        device,
        score,
    )
}

fn verdict(policy: &TenantPolicy, device: &DeviceFacts, score: u32) -> CloneVerdict {
    let admitted = tests::device(&device.groups.iter().map(|g| &**g).collect::<Vec<_>>());
    let permit = connect(policy, &admitted, &credential(&admitted)).unwrap();
    policy.on_clone(
        &permit,
        device,
        &suspicion(score),
        Timestamp::from_unix_s(1_795_000_000),
    )
}

const CRITICAL: &str = r#"@id("quarantine-clones")
permit (principal in Group::"critical", action == Action::"quarantine-clone", resource) when { context.score >= 5000 };"#;

#[test]
fn where_no_policy_speaks_it_is_an_alert() {
    assert_eq!(on("", &device(&[]), 9_000), CloneVerdict::default());
    let builtin = TenantPolicy::compile(Generation(1), DEFAULT_POLICY, default_spaces()).unwrap();
    assert_eq!(verdict(&builtin, &device(&[]), 9_000).action, Alert);
}

#[test]
fn a_policy_quarantines_whom_it_names_from_the_score_it_names() {
    let found = on(CRITICAL, &device(&["critical"]), 5_000);
    assert_eq!(found.action, Quarantine);
    assert_eq!(found.policies, ["quarantine-clones"]);
    assert_eq!(on(CRITICAL, &device(&["critical"]), 4_999).action, Alert);
    assert_eq!(on(CRITICAL, &device(&["lab"]), 5_000).action, Alert);
}

#[test]
fn one_that_forbids_has_the_last_word_and_is_named() {
    let forbid = r#"@id("not-the-pumps") forbid (principal in Group::"pumps", action == Action::"quarantine-clone", resource);"#;
    let found = on(
        &format!("{CRITICAL}{forbid}"),
        &device(&["critical", "pumps"]),
        9_000,
    );
    assert_eq!((found.action, found.failure), (Alert, None));
    assert_eq!(found.policies, ["not-the-pumps"]);
}

#[test]
fn a_policy_on_every_action_says_nothing_of_clones() {
    let all = "permit (principal, action, resource);";
    assert_eq!(on(all, &device(&[]), 9_000), CloneVerdict::default());
    // Neither way: who may do nothing is quarantined all the same.
    let none = r#"forbid (principal in Group::"critical", action, resource) when { context.tls.resumed };"#;
    let both = format!("{CRITICAL}{none}");
    assert_eq!(on(&both, &device(&["critical"]), 5_000).action, Quarantine);
    // One of several that are named is named.
    let several =
        r#"permit (principal, action in [Action::"connect", Action::"quarantine-clone"], resource);"#;
    assert_eq!(on(several, &device(&[]), 3_000).action, Quarantine);
}

#[test]
fn what_fails_to_evaluate_is_an_alert_and_says_why() {
    let unfit = r#"@id("wrong") forbid (principal, action == Action::"quarantine-clone", resource) when { context.nothing };"#;
    let text = format!("{CONNECT}{CRITICAL}{unfit}");
    let policy = TenantPolicy::compile_unfit(Generation(1), &text, default_spaces()).unwrap();
    let found = verdict(&policy, &device(&["critical"]), 9_000);
    assert_eq!((found.action, found.policies), (Alert, vec![]));
    assert!(
        found.failure.as_ref().unwrap().contains("wrong"),
        "{:?}",
        found.failure
    );
}

#[test]
fn who_is_out_already_is_not_asked_about() {
    let all = r#"permit (principal, action == Action::"quarantine-clone", resource);"#;
    for state in LifecycleState::ALL {
        let device = DeviceFacts { state, ..device(&[]) };
        let expected = if state == LifecycleState::Active {
            Quarantine
        } else {
            Alert
        };
        assert_eq!(on(all, &device, 9_000).action, expected, "{state}");
    }
}

#[test]
fn everything_the_schema_names_can_be_read() {
    let all = r#"permit (principal, action == Action::"quarantine-clone", resource) when {
        context.credential.kind == "operational" && context.credential.custody == "unknown" && context.authority == "ca"
        && context.tls.version == "TLSv1.3" && !context.tls.resumed && context.source.isLoopback()
        && context.now == 1795000000 && context.score == 3000 && context.takeovers == 5 && context.answered == 4
        && context.returned == 3 && context.together == 1 && context.sources == 2
        && principal.id == "d1" && principal has model && principal.model == "m1" };"#;
    assert_eq!(on(all, &device(&[]), 3_000).action, Quarantine);
    // What fits connect alone, and names the score, fits nothing else.
    let fault = validate(
        r#"permit (principal, action == Action::"connect", resource) when { context.score > 1 };"#,
        &default_spaces(),
    );
    assert!(fault.is_err());
}

/// Policies that were valid before there was the action: they speak of all actions, and of what all have.
#[test]
fn the_action_makes_no_policy_invalid_that_speaks_of_every_action() {
    for text in [
        r#"forbid (principal, action, resource) when { context.tls.resumed || context.now < 5 };"#,
        r#"permit (principal, action, resource) when { context.authority == "a" && context.source.isIpv4() };"#,
        r#"permit (principal, action, resource) unless { context has spaces && context.spaces.contains("status") };"#,
    ] {
        validate(text, &default_spaces()).unwrap();
    }
}
