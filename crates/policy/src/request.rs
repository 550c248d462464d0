//! The facts of one decision as Cedar's request and entities.
//!
//! This is most of what a decision costs, so names that never change are made once.

use std::collections::{HashMap, HashSet};
use std::str::FromStr;
use std::sync::LazyLock;

use cedar_policy::{
    Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, Request, RestrictedExpression,
};
use countersign_identity::Timestamp;

use crate::clones::{QUARANTINE_CLONE, Suspicion};
use crate::decide::{Action, DataFacts};
use crate::facts::DeviceFacts;
use crate::permit::AdmissionPermit;

/// The entity types, and the actions in the order of [`Action::ALL`].
struct Names {
    device: EntityTypeName,
    group: EntityTypeName,
    tenant: EntityTypeName,
    actions: [EntityUid; 3],
    quarantine_clone: EntityUid,
}

static NAMES: LazyLock<Option<Names>> = LazyLock::new(|| {
    let kind = |name: &str| EntityTypeName::from_str(name).ok();
    let kind_of_action = kind("Action")?;
    let action = |id: &str| EntityUid::from_type_name_and_id(kind_of_action.clone(), EntityId::new(id));
    Some(Names {
        device: kind("Device")?,
        group: kind("Group")?,
        tenant: kind("Tenant")?,
        actions: Action::ALL.map(|a| action(a.name())),
        quarantine_clone: action(QUARANTINE_CLONE),
    })
});

fn uid(kind: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id))
}

fn text(value: &str) -> RestrictedExpression {
    RestrictedExpression::new_string(value.to_owned())
}

fn record(fields: Vec<(&str, RestrictedExpression)>) -> Result<RestrictedExpression, ()> {
    RestrictedExpression::new_record(fields.into_iter().map(|(k, v)| (k.to_owned(), v))).map_err(drop)
}

/// What is asked, and what is known of who asks. `spaces` are the names of the spaces in `asked`. What only policies look
/// at that speak of one device, the time or the source is left out if there is none (`particular`).
pub(crate) fn request(
    action: Action,
    permit: &AdmissionPermit,
    device: &DeviceFacts,
    asked: DataFacts,
    spaces: &[&str],
    particular: bool,
) -> Result<(Request, Entities), ()> {
    let names = NAMES.as_ref().ok_or(())?;
    let mut fields = context(permit, particular.then_some(asked.now))?;
    if action != Action::Connect {
        fields.push((
            "spaces",
            RestrictedExpression::new_set(spaces.iter().map(|s| text(s))),
        ));
        fields.push(("qos", RestrictedExpression::new_long(i64::from(asked.qos))));
        fields.push(("retain", RestrictedExpression::new_bool(asked.retain)));
    }
    finish(names, &names.actions[action as usize], device, fields, particular)
}

/// What is asked about a device of which two seem to hold the key; `permit` is the session's in which it was seen.
pub(crate) fn clone(
    permit: &AdmissionPermit,
    device: &DeviceFacts,
    suspicion: &Suspicion,
    now: Timestamp,
) -> Result<(Request, Entities), ()> {
    let names = NAMES.as_ref().ok_or(())?;
    let mut fields = context(permit, Some(now))?;
    let sources = u32::try_from(suspicion.sources.len()).unwrap_or(u32::MAX);
    fields.extend(
        [
            ("score", suspicion.score),
            ("takeovers", suspicion.takeovers),
            ("answered", suspicion.answered),
            ("returned", suspicion.returned),
            ("together", suspicion.together),
            ("sources", sources),
        ]
        .map(|(name, n)| (name, RestrictedExpression::new_long(i64::from(n)))),
    );
    finish(names, &names.quarantine_clone, device, fields, true)
}

type Fields = Vec<(&'static str, RestrictedExpression)>;

/// What every action has. `now` brings what only policies look at that speak of the time or the source.
fn context(permit: &AdmissionPermit, now: Option<Timestamp>) -> Result<Fields, ()> {
    let tls = &permit.tls;
    let mut connection = vec![
        ("version", text(tls.version)),
        ("cipher_suite", text(tls.cipher_suite)),
        ("resumed", RestrictedExpression::new_bool(tls.resumed)),
    ];
    if let Some(group) = tls.group {
        connection.push(("group", text(group)));
    }
    let mut fields = vec![
        (
            "credential",
            record(vec![
                ("kind", text(permit.kind.name())),
                ("custody", text(permit.custody.name())),
            ])?,
        ),
        ("authority", text(permit.authority.as_str())),
        ("tls", record(connection)?),
    ];
    if let Some(now) = now {
        fields.push(("source", RestrictedExpression::new_ip(permit.source.to_string())));
        fields.push(("now", RestrictedExpression::new_long(now.unix_s())));
    }
    Ok(fields)
}

/// Adds who it is about.
fn finish(
    names: &Names,
    action: &EntityUid,
    device: &DeviceFacts,
    fields: Fields,
    particular: bool,
) -> Result<(Request, Entities), ()> {
    let principal = uid(&names.device, &format!("{}/{}", device.tenant, device.id));
    let tenant = uid(&names.tenant, device.tenant.as_str());
    let mut attributes = HashMap::from([("state".to_owned(), text(device.state.name()))]);
    if particular {
        attributes.insert("id".to_owned(), text(device.id.as_str()));
    }
    if let Some(model) = &device.model {
        attributes.insert("model".to_owned(), text(model));
    }
    if let Some(batch) = &device.batch {
        attributes.insert("batch".to_owned(), text(batch));
    }
    let groups: HashSet<EntityUid> = device.groups.iter().map(|g| uid(&names.group, g)).collect();
    // Groups and the tenant have neither attributes nor parents: to be named is all they need.
    let entities = [Entity::new(principal.clone(), attributes, groups).map_err(drop)?];
    let context = Context::from_pairs(fields.into_iter().map(|(k, v)| (k.to_owned(), v))).map_err(drop)?;
    let request = Request::new(principal, action.clone(), tenant, context, None).map_err(drop)?;
    let entities = Entities::from_entities(entities, None).map_err(drop)?;
    Ok((request, entities))
}
