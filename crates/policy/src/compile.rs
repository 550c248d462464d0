//! Policies as text become policies that can be evaluated: read, named, validated against the schema, and looked
//! through for what they read.

use std::collections::{HashMap, HashSet};
use std::str::FromStr;
use std::sync::LazyLock;

use cedar_policy::{
    Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, Policy, PolicyId, PolicySet, Request,
    RestrictedExpression, Schema, ValidationMode, Validator,
};
use serde_json::Value;

use crate::decide::{Action, DataFacts};
use crate::facts::DeviceFacts;
use crate::permit::AdmissionPermit;
use crate::quarantine;
use crate::spaces::{SPACES_MAX, TopicSpace};

/// Why policies or spaces cannot take effect. Nothing changes when they do not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyFault {
    /// The text is no Cedar.
    #[error("the policies cannot be read: {0}")]
    Syntax(String),
    /// Two policies have the same `@id`.
    #[error("two policies have the id {0:?}; give each its own @id")]
    DuplicateId(String),
    /// An annotation that is near to one that opens the quarantine lane.
    #[error("@quarantine({0:?}) means nothing; write @quarantine(\"open\"), or leave it out")]
    Quarantine(String),
    /// A policy speaks of something that the schema does not have, or compares what cannot be compared.
    #[error("the policies do not fit the schema: {0}")]
    Schema(String),
    /// More spaces than can be told apart.
    #[error("{0} topic spaces are declared, at most {SPACES_MAX} are possible")]
    TooManySpaces(usize),
    /// Two spaces have the same name.
    #[error("two topic spaces have the name {0:?}")]
    DuplicateSpace(String),
}

pub(crate) struct Compiled {
    pub(crate) policies: PolicySet,
    pub(crate) keepable: [bool; 3],
}

/// The schema is part of the program: that it can be read is shown by the tests of this crate.
static SCHEMA: LazyLock<Result<Schema, String>> = LazyLock::new(|| {
    Schema::from_cedarschema_str(include_str!("schema.cedarschema"))
        .map(|(schema, _)| schema)
        .map_err(|e| format!("{e:?}"))
});

/// Checks policies and spaces as they would be when they take effect.
///
/// # Errors
/// As for [`crate::decide::TenantPolicy::compile`].
pub fn validate(policies: &str, spaces: &[TopicSpace]) -> Result<(), PolicyFault> {
    compile(policies, spaces).map(drop)
}

pub(crate) fn compile(text: &str, spaces: &[TopicSpace]) -> Result<Compiled, PolicyFault> {
    if spaces.len() > SPACES_MAX {
        return Err(PolicyFault::TooManySpaces(spaces.len()));
    }
    let mut names = HashSet::new();
    if let Some(twice) = spaces.iter().find(|s| !names.insert(&s.name)) {
        return Err(PolicyFault::DuplicateSpace(twice.name.clone()));
    }
    let read = PolicySet::from_str(text).map_err(|e| PolicyFault::Syntax(with_causes(&e)))?;
    let mut policies = PolicySet::new();
    for policy in read.policies() {
        if let Some(value) = policy.annotation(quarantine::ANNOTATION.0)
            && value != quarantine::ANNOTATION.1
        {
            return Err(PolicyFault::Quarantine(value.to_owned()));
        }
        let id = policy
            .annotation("id")
            .map_or_else(|| policy.id().to_string(), str::to_owned);
        policies
            .add(policy.new_id(PolicyId::new(&id)))
            .map_err(|_| PolicyFault::DuplicateId(id.clone()))?;
    }
    let schema = SCHEMA.as_ref().map_err(|e| PolicyFault::Schema(e.clone()))?;
    let result = Validator::new(schema.clone()).validate(&policies, ValidationMode::Strict);
    if !result.validation_passed() {
        let all: Vec<String> = result.validation_errors().map(|e| with_causes(e)).collect();
        return Err(PolicyFault::Schema(all.join("; ")));
    }
    let keepable = Action::ALL.map(|action| policies.policies().all(|p| !is_particular(p, action)));
    Ok(Compiled { policies, keepable })
}

/// An error with all its causes.
fn with_causes(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Whether a policy that may apply to `action` depends on more than the fact class: a single device, the time, or the
/// source. When in doubt, yes.
fn is_particular(policy: &Policy, action: Action) -> bool {
    let Ok(json) = policy.to_json() else { return true };
    applies(&json, action) && is_particular_json(&json, None)
}

fn applies(policy: &Value, action: Action) -> bool {
    let scope = &policy["action"];
    match (scope["op"].as_str(), scope["entity"]["id"].as_str()) {
        (Some("=="), Some(id)) => id == action.name(),
        _ => true,
    }
}

fn is_particular_json(value: &Value, parent: Option<&str>) -> bool {
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
                && parent != Some("left");
            names_device || reads || whole || map.iter().any(|(k, v)| is_particular_json(v, Some(k)))
        }
        Value::Array(list) => list.iter().any(|v| is_particular_json(v, parent)),
        _ => false,
    }
}

fn uid(kind: &str, id: &str) -> Result<EntityUid, ()> {
    let kind = EntityTypeName::from_str(kind).map_err(drop)?;
    Ok(EntityUid::from_type_name_and_id(kind, EntityId::new(id)))
}

/// The request and entities of one decision.
pub(crate) fn request(
    action: Action,
    permit: &AdmissionPermit,
    device: &DeviceFacts,
    asked: DataFacts,
    spaces: &[&str],
) -> Result<(Request, Entities), ()> {
    let text = |s: &str| RestrictedExpression::new_string(s.to_owned());
    let record = |fields: Vec<(&str, RestrictedExpression)>| {
        RestrictedExpression::new_record(fields.into_iter().map(|(k, v)| (k.to_owned(), v))).map_err(drop)
    };
    let principal = uid("Device", &format!("{}/{}", device.tenant, device.id))?;
    let tenant = uid("Tenant", device.tenant.as_str())?;
    let mut attributes = HashMap::from([
        ("id".to_owned(), text(device.id.as_str())),
        ("state".to_owned(), text(device.state.name())),
    ]);
    if let Some(model) = &device.model {
        attributes.insert("model".to_owned(), text(model));
    }
    let groups = device
        .groups
        .iter()
        .map(|g| uid("Group", g))
        .collect::<Result<HashSet<_>, _>>()?;
    let mut entities = vec![Entity::new(principal.clone(), attributes, groups.clone()).map_err(drop)?];
    entities.extend(
        groups
            .into_iter()
            .map(|g| Entity::new_no_attrs(g, HashSet::new())),
    );
    entities.push(Entity::new_no_attrs(tenant.clone(), HashSet::new()));
    let mut fields = vec![
        (
            "credential".to_owned(),
            record(vec![
                ("kind", text(permit.kind.name())),
                ("custody", text(permit.custody.name())),
            ])?,
        ),
        ("authority".to_owned(), text(permit.authority.as_str())),
        (
            "tls".to_owned(),
            record(vec![
                ("version", text(permit.tls_version)),
                ("resumed", RestrictedExpression::new_bool(permit.resumed)),
            ])?,
        ),
        (
            "source".to_owned(),
            RestrictedExpression::new_ip(permit.source.to_string()),
        ),
        (
            "now".to_owned(),
            RestrictedExpression::new_long(asked.now.unix_s()),
        ),
    ];
    if action != Action::Connect {
        fields.push((
            "spaces".to_owned(),
            RestrictedExpression::new_set(spaces.iter().map(|s| text(s))),
        ));
        fields.push((
            "qos".to_owned(),
            RestrictedExpression::new_long(i64::from(asked.qos)),
        ));
        fields.push(("retain".to_owned(), RestrictedExpression::new_bool(asked.retain)));
    }
    let context = Context::from_pairs(fields).map_err(drop)?;
    let request =
        Request::new(principal, uid("Action", action.name())?, tenant, context, None).map_err(drop)?;
    let entities = Entities::from_entities(entities, None).map_err(drop)?;
    Ok((request, entities))
}
