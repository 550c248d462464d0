//! What policies may speak of: the Cedar schema, the built-in policies, and the values that certain texts may have.

use std::sync::LazyLock;

use cedar_policy::{EntityId, EntityTypeName, EntityUid, Schema};

use crate::facts::{CredentialKind, Custody};
use crate::lifecycle::LifecycleState;
use crate::spaces::TopicSpace;

/// The Cedar schema that policies are checked against, in Cedar's own notation.
pub const SCHEMA: &str = include_str!("schema.cedarschema");

/// The policies that a tenant starts with.
pub const DEFAULT_POLICIES: &str = include_str!("default.cedar");

/// What a device may ask for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// To open a session.
    Connect,
    /// To publish to a topic.
    Publish,
    /// To subscribe to a filter.
    Subscribe,
}

impl Action {
    /// All actions.
    pub const ALL: [Self; 3] = [Self::Connect, Self::Publish, Self::Subscribe];

    /// The name in policies, logs and denials.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
        }
    }
}

/// The parsed schema and the names from it that every request needs.
pub(crate) struct Vocabulary {
    pub(crate) schema: Schema,
    pub(crate) device: EntityTypeName,
    pub(crate) group: EntityTypeName,
    pub(crate) tenant: EntityTypeName,
    pub(crate) actions: [EntityUid; 3],
}

/// Parsed once per process. All of it is constant, and every test of this crate goes through it.
pub(crate) static VOCABULARY: LazyLock<Vocabulary> = LazyLock::new(|| {
    let name = |text: &str| text.parse::<EntityTypeName>().expect("a constant that is an identifier");
    let action = name("Action");
    Vocabulary {
        schema: Schema::from_cedarschema_str(SCHEMA).expect("a constant that tests parse").0,
        device: name("Device"),
        group: name("Group"),
        tenant: name("Tenant"),
        actions: Action::ALL
            .map(|a| EntityUid::from_type_name_and_id(action.clone(), EntityId::new(a.name()))),
    }
});

/// An attribute whose text is one of a few words, so that a misspelt word in a policy is found when it is written and
/// not by a `forbid` that never fires.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Word {
    State,
    Custody,
    Kind,
    TlsVersion,
    Space,
}

impl Word {
    /// The attribute at this path, if its words are known. The first element is the variable.
    pub(crate) fn at(path: &[&str]) -> Option<Self> {
        match path {
            ["principal", "state"] => Some(Self::State),
            ["context", "credential", "custody"] => Some(Self::Custody),
            ["context", "credential", "kind"] => Some(Self::Kind),
            ["context", "tls", "version"] => Some(Self::TlsVersion),
            ["context", "spaces"] => Some(Self::Space),
            _ => None,
        }
    }

    /// The attribute as a policy writes it.
    pub(crate) const fn path(self) -> &'static str {
        match self {
            Self::State => "principal.state",
            Self::Custody => "context.credential.custody",
            Self::Kind => "context.credential.kind",
            Self::TlsVersion => "context.tls.version",
            Self::Space => "context.spaces",
        }
    }

    /// The words it may have.
    pub(crate) fn words(self, spaces: &[TopicSpace]) -> Vec<&str> {
        match self {
            Self::State => LifecycleState::ALL.iter().map(|s| s.name()).collect(),
            Self::Custody => Custody::ALL.iter().map(|c| c.name()).collect(),
            Self::Kind => CredentialKind::ALL.iter().map(|k| k.name()).collect(),
            Self::TlsVersion => vec!["TLSv1.3", "TLSv1.2"],
            Self::Space => spaces.iter().map(|s| s.name.as_str()).collect(),
        }
    }
}
