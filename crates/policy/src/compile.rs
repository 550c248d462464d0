//! Policies as text become policies that can be evaluated: read, named, validated against the schema, and looked
//! through for what they read.

use std::collections::{HashMap, HashSet};
use std::str::FromStr;
use std::sync::LazyLock;

use cedar_policy::{Effect, Policy, PolicyId, PolicySet, Schema, ValidationMode, Validator};
use serde_json::Value;

use crate::clones::QUARANTINE_CLONE;
use crate::decide::Action;
pub use crate::fault::{PolicyFault, PolicyProblem};
use crate::fault::{of_annotation, of_name, of_syntax, of_validation, of_warning};
use crate::quarantine;
use crate::spaces::{SPACES_MAX, TopicSpace};

/// What policies may speak of, in Cedar's schema language.
pub const SCHEMA_TEXT: &str = include_str!("schema.cedarschema");

pub(crate) struct Compiled {
    pub(crate) policies: PolicySet,
    /// Those whose scope names `quarantine-clone`.
    pub(crate) on_clones: PolicySet,
    pub(crate) keepable: [bool; 3],
    /// A policy permits `connect`.
    pub(crate) may_admit: bool,
    pub(crate) reads: ConnectReads,
    /// A policy on `connect` or `subscribe` reads the time.
    pub(crate) reads_time: bool,
    warnings: Vec<PolicyProblem>,
}

/// Whether policies must fit the schema.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fit {
    /// One that does not is no policy.
    Required,
    /// It was said that they need not: what fails when it is evaluated is a no.
    Waived,
}

/// What policies on `connect` look at, as far as a ticket's fate hangs on it, or who comes may be unknown in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ConnectReads {
    /// Whether the session was resumed.
    pub resumed: bool,
    /// The key exchange or the cipher suite, which are agreed on after a ticket is opened; or what may be published or
    /// subscribed to hangs on resumption, which is asked about even later.
    pub agreed: bool,
    /// The authority: who comes under an unknown one cannot be decided on without it.
    pub authority: bool,
}

/// The schema is part of the program: that it can be read is shown by the tests of this crate.
static SCHEMA: LazyLock<Result<Schema, String>> = LazyLock::new(|| {
    Schema::from_cedarschema_str(SCHEMA_TEXT)
        .map(|(schema, _)| schema)
        .map_err(|e| format!("{e:?}"))
});

/// Checks policies and spaces as they would be when they take effect. What looks wrong but would take effect is
/// returned: policies that can never apply, topic spaces that nobody declared.
///
/// # Errors
/// As for [`crate::decide::TenantPolicy::compile`].
pub fn validate(policies: &str, spaces: &[TopicSpace]) -> Result<Vec<PolicyProblem>, PolicyFault> {
    compile(policies, spaces, Fit::Required).map(|c| c.warnings)
}

pub(crate) fn compile(text: &str, spaces: &[TopicSpace], fit: Fit) -> Result<Compiled, PolicyFault> {
    if spaces.len() > SPACES_MAX {
        return Err(PolicyFault::TooManySpaces(spaces.len()));
    }
    let mut names = HashSet::new();
    if let Some(twice) = spaces.iter().find(|s| !names.insert(s.name.as_str())) {
        return Err(PolicyFault::DuplicateSpace(twice.name.clone()));
    }
    let read = PolicySet::from_str(text).map_err(|e| PolicyFault::Syntax(of_syntax(&e, text)))?;
    // Nothing ever fills in a template: it would be accepted, and never decide anything. Where one is in force already,
    // accepted by a version that did not look, the registry must open all the same: the template is left out.
    let left_out = templates(&read, text);
    if fit == Fit::Required && !left_out.is_empty() {
        return Err(PolicyFault::Names(left_out));
    }
    let mut policies = PolicySet::new();
    for policy in read.policies() {
        if let Some(value) = policy.annotation(quarantine::ANNOTATION.0)
            && value != quarantine::ANNOTATION.1
        {
            let id = policy.annotation("id").unwrap_or(policy.id().as_ref());
            let problem = of_annotation(id, quarantine::ANNOTATION, value, text);
            return Err(PolicyFault::Quarantine(vec![problem]));
        }
        let id = policy
            .annotation("id")
            .map_or_else(|| policy.id().to_string(), str::to_owned);
        policies.add(policy.new_id(PolicyId::new(&id))).map_err(|_| {
            let message = "another policy has this id already";
            PolicyFault::Names(vec![of_name(&id, 1, text, message, "give each its own @id")])
        })?;
    }
    let schema = SCHEMA.as_ref().map_err(|e| {
        PolicyFault::Schema(vec![PolicyProblem {
            line: None,
            column: None,
            policy: None,
            message: e.clone(),
            cure: "this is a fault of the program: report it".into(),
        }])
    })?;
    let result = Validator::new(schema.clone()).validate(&policies, ValidationMode::Strict);
    if !result.validation_passed() && fit == Fit::Required {
        let mut all: Vec<_> = result
            .validation_errors()
            .map(|e| of_validation(e, text))
            .collect();
        all.sort_by_key(|p| (p.line, p.column));
        all.dedup();
        return Err(PolicyFault::Schema(all));
    }
    let mut warnings: Vec<_> = result
        .validation_warnings()
        .map(|w| of_warning(w, text))
        .collect();
    warnings.extend(left_out);
    let mut on_clones = PolicySet::new();
    let mut keepable = [true; 3];
    let (mut may_admit, mut reads, mut reads_time) = (false, ConnectReads::default(), false);
    for policy in policies.policies() {
        let Ok(json) = policy.to_json() else {
            keepable = [false; 3];
            may_admit = true;
            reads = ConnectReads {
                resumed: true,
                agreed: true,
                authority: true,
            };
            reads_time = true;
            continue;
        };
        if is_named(&json, QUARANTINE_CLONE) {
            // Its id is one of a set's, so no other has it.
            let _ = on_clones.add(policy.clone());
        }
        if applies(&json, Action::Connect) {
            may_admit |= policy.effect() == Effect::Permit;
            // Wherever the word stands, as an attribute or in a record that is compared with.
            let speaks_of = |words: &[&str]| words.iter().any(|w| says(&json, w));
            reads.resumed |= speaks_of(&["resumed"]);
            reads.agreed |= speaks_of(&["group", "cipher_suite"]);
            reads.authority |= speaks_of(&["authority"]);
        }
        // What a device may do once it is in would be refused it again and again, by whatever ticket it came.
        if [Action::Publish, Action::Subscribe]
            .iter()
            .any(|a| applies(&json, *a))
            && says(&json, "resumed")
        {
            reads.resumed = true;
            reads.agreed = true;
        }
        // What is published is decided then; what was permitted once must be asked again as time goes by.
        reads_time |= [Action::Connect, Action::Subscribe]
            .iter()
            .any(|a| applies(&json, *a))
            && says(&json, "now");
        let particular = is_particular(&json, None);
        for (keep, action) in keepable.iter_mut().zip(Action::ALL) {
            *keep &= !(particular && applies(&json, action));
        }
        let mut spoken = Vec::new();
        spaces_spoken_of(&json, &mut spoken);
        for name in spoken.into_iter().filter(|n| !names.contains(n)) {
            let message = format!("it names the topic space {name:?}, which is not declared");
            let cure = "declare it, or correct its name; `countersign policy show` lists the spaces in force";
            let id = policy.id().to_string();
            warnings.push(of_name(&id, 0, text, &message, cure));
        }
    }
    warnings.sort_by_key(|p| (p.line, p.column));
    warnings.dedup();
    Ok(Compiled {
        policies,
        on_clones,
        keepable,
        may_admit,
        reads,
        reads_time,
        warnings,
    })
}

/// The templates of policies, each with its cure: nothing fills one in, so it never decides anything.
fn templates(read: &PolicySet, text: &str) -> Vec<PolicyProblem> {
    let message = "it has a slot such as ?principal, and nothing fills it in";
    let cure = "write who it is about in its place: principal in Group::\"name\"";
    read.templates()
        .map(|t| {
            of_name(
                t.annotation("id").unwrap_or(t.id().as_ref()),
                0,
                text,
                message,
                cure,
            )
        })
        .collect()
}

/// Whether policies have a template. They may be in force, where a version that did not look accepted them; nobody may
/// put them into force any more, whatever is accepted.
pub fn has_template(policies: &str) -> bool {
    PolicySet::from_str(policies).is_ok_and(|read| read.templates().next().is_some())
}

/// Each policy's own text, by its id: what a comparison of two versions goes by.
///
/// # Errors
/// As for [`crate::decide::TenantPolicy::compile`].
pub fn texts(policies: &str) -> Result<HashMap<String, String>, PolicyFault> {
    let compiled = compile(policies, &[], Fit::Waived)?;
    Ok(compiled
        .policies
        .policies()
        .map(|p: &Policy| (p.id().to_string(), p.to_string()))
        .collect())
}

/// Whether a policy may apply to an action: its scope names it, or all, or cannot be read.
fn applies(policy: &Value, action: Action) -> bool {
    named_actions(policy).is_none_or(|ids| ids.contains(&action.name()))
}

/// Whether a policy's scope names an action.
fn is_named(policy: &Value, action: &str) -> bool {
    named_actions(policy).is_some_and(|ids| ids.contains(&action))
}

/// The actions that a policy's scope names; `None` if it names none, and so means all.
fn named_actions(policy: &Value) -> Option<Vec<&str>> {
    let scope = &policy["action"];
    // The schema has no groups of actions: one is in itself alone.
    match (scope["op"].as_str()?, &scope["entity"]["id"], &scope["entities"]) {
        ("==" | "in", Value::String(id), _) => Some(vec![id]),
        ("in", _, Value::Array(all)) => all.iter().map(|e| e["id"].as_str()).collect(),
        _ => None,
    }
}

/// Whether a key or a string of a policy is this word.
fn says(value: &Value, word: &str) -> bool {
    match value {
        Value::Object(map) => map.iter().any(|(key, inner)| key == word || says(inner, word)),
        Value::Array(list) => list.iter().any(|v| says(v, word)),
        Value::String(s) => s == word,
        _ => false,
    }
}

/// Operators that take a part of principal or context, or ask what all devices of a fact class answer alike. `parent`
/// is the operator whose left side a variable is.
const PARTS: &[&str] = &[".", "has", "in", "is"];

/// Whether a policy depends on more than the fact class: a single device, the time, or the source. When in doubt, yes.
fn is_particular(value: &Value, parent: Option<&str>) -> bool {
    match value {
        Value::Object(map) => {
            // An entity literal of a device, in the scope or in a condition.
            let names_device =
                map.get("type").and_then(Value::as_str) == Some("Device") && map.contains_key("id");
            let reads = map
                .get("attr")
                .and_then(Value::as_str)
                .is_some_and(|a| ["now", "source", "id"].contains(&a));
            // The whole context or principal as a value: it may be compared with anything.
            let whole = map
                .get("Var")
                .and_then(Value::as_str)
                .is_some_and(|v| v == "context" || v == "principal")
                && !parent.is_some_and(|p| PARTS.contains(&p));
            names_device
                || reads
                || whole
                || map.iter().any(|(key, inner)| match inner {
                    // {"==": {"left": …, "right": …}}: what is on the left knows its operator.
                    Value::Object(sides) if sides.contains_key("left") => {
                        sides
                            .iter()
                            .any(|(side, v)| is_particular(v, (side == "left").then_some(key.as_str())))
                            || sides
                                .get("attr")
                                .and_then(Value::as_str)
                                .is_some_and(|a| ["now", "source", "id"].contains(&a))
                    }
                    _ => is_particular(inner, None),
                })
        }
        Value::Array(list) => list.iter().any(|v| is_particular(v, None)),
        _ => false,
    }
}

/// The names that `context.spaces` is asked for.
fn spaces_spoken_of<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                if key.starts_with("contains") && inner["left"]["."]["attr"] == "spaces" {
                    strings(&inner["right"], found);
                } else {
                    spaces_spoken_of(inner, found);
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|v| spaces_spoken_of(v, found)),
        _ => {}
    }
}

fn strings<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::String(s) => found.push(s),
        Value::Object(map) => map.values().for_each(|v| strings(v, found)),
        Value::Array(list) => list.iter().for_each(|v| strings(v, found)),
        _ => {}
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const TEMPLATE: &str = "@id(\"all\") permit (principal, action, resource);\n@id(\"slot\") forbid (principal == ?principal, action, resource);\n";

    #[test]
    fn a_template_in_force_is_left_out_and_told_and_a_new_one_is_refused() {
        let refused = compile(TEMPLATE, &[], Fit::Required).err().unwrap();
        assert_eq!(refused.problems()[0].line, Some(2), "{refused}");
        let kept = compile(TEMPLATE, &[], Fit::Waived).unwrap();
        assert!(kept.may_admit);
        let ids: Vec<String> = kept.policies.policies().map(|p| p.id().to_string()).collect();
        assert_eq!(ids, ["all"]);
        assert_eq!(kept.policies.templates().count(), 0);
        let warned = kept.warnings.iter().find(|w| w.policy.as_deref() == Some("slot"));
        assert!(warned.unwrap().message.contains("?principal"));
        assert!(has_template(TEMPLATE) && !has_template("permit (principal, action, resource);"));
    }

    #[test]
    fn what_reads_the_authority_is_known() {
        let reads = |text: &str| compile(text, &[], Fit::Required).unwrap().reads.authority;
        assert!(reads(
            "permit (principal, action, resource) when { context.authority == \"a\" };"
        ));
        assert!(!reads("permit (principal, action, resource);"));
    }

    #[test]
    fn what_permits_for_a_time_is_known() {
        let reads = |action: &str, condition: &str| {
            let text = format!("permit (principal, {action}, resource) when {{ {condition} }};");
            compile(&text, &[], Fit::Required).unwrap().reads_time
        };
        let (connect, subscribe) = (
            "action == Action::\"connect\"",
            "action in [Action::\"publish\", Action::\"subscribe\"]",
        );
        for action in ["action", connect, subscribe] {
            assert!(reads(action, "context.now < 5"), "{action}");
            assert!(reads(action, "context[\"now\"] * 7 > 5"), "{action}");
            assert!(!reads(action, "principal.state == \"active\""), "{action}");
        }
        assert!(!reads("action == Action::\"publish\"", "context.now < 5"));
    }
}
