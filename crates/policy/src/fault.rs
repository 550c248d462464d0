//! Why policies or topic spaces cannot take effect: what, where in the text, and the cure.

use std::fmt;

use cedar_policy::{ParseErrors, ValidationError, ValidationWarning};
use miette::Diagnostic;
use serde::{Deserialize, Serialize};

use crate::spaces::SPACES_MAX;

/// One thing that is wrong with the text, or looks wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyProblem {
    /// The line, from 1, if it is known.
    pub line: Option<usize>,
    /// The column in characters, from 1, if it is known.
    pub column: Option<usize>,
    /// The policy's `@id`, or the name that it goes by without one.
    pub policy: Option<String>,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub cure: String,
}

impl fmt::Display for PolicyProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, "line {line}, column {column}: ")?;
        }
        if let Some(policy) = &self.policy {
            write!(f, "policy {policy:?}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// Why policies or spaces cannot take effect. Nothing changes when they do not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyFault {
    /// The text is no Cedar.
    #[error("the policies cannot be read: {}", told(.0))]
    Syntax(Vec<PolicyProblem>),
    /// A policy speaks of something that the schema does not have, or compares what cannot be compared.
    #[error("the policies do not fit the schema: {}", told(.0))]
    Schema(Vec<PolicyProblem>),
    /// Two policies have the same `@id`, or one is a template, which nothing would ever fill in.
    #[error("the policies cannot be told apart: {}", told(.0))]
    Names(Vec<PolicyProblem>),
    /// An annotation that is near to one that opens the quarantine lane.
    #[error("the policies have an annotation that means nothing: {}", told(.0))]
    Quarantine(Vec<PolicyProblem>),
    /// More spaces than can be told apart.
    #[error(
        "{0} topic spaces are declared, at most {SPACES_MAX} are possible; hint: let one space hold what is permitted together"
    )]
    TooManySpaces(usize),
    /// Two spaces have the same name.
    #[error(
        "two topic spaces have the name {0:?}; hint: policies know a space by its name, so give each its own"
    )]
    DuplicateSpace(String),
}

impl PolicyFault {
    /// What is wrong, one by one.
    pub fn problems(&self) -> Vec<PolicyProblem> {
        match self {
            Self::Syntax(all) | Self::Schema(all) | Self::Names(all) | Self::Quarantine(all) => all.clone(),
            Self::TooManySpaces(_) | Self::DuplicateSpace(_) => {
                let text = self.to_string();
                let (message, cure) = text.split_once("; hint: ").unwrap_or((&text, ""));
                vec![PolicyProblem {
                    line: None,
                    column: None,
                    policy: None,
                    message: message.into(),
                    cure: cure.into(),
                }]
            }
        }
    }
}

/// All problems in one line, with the first one's cure.
fn told(problems: &[PolicyProblem]) -> String {
    let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
    match problems.first() {
        Some(first) => format!("{}; hint: {}", all.join("; "), first.cure),
        None => String::new(),
    }
}

const GRAMMAR: &str = "correct the text there; `countersign policy show` prints policies that are in force";
const SCHEMA: &str = "`countersign policy schema` prints what policies may speak of";

/// What the parser found.
pub(crate) fn of_syntax(errors: &ParseErrors, text: &str) -> Vec<PolicyProblem> {
    errors.iter().map(|e| problem(e, None, text, GRAMMAR)).collect()
}

/// What the validator found.
pub(crate) fn of_validation(error: &ValidationError, text: &str) -> PolicyProblem {
    let policy = error.policy_id().to_string();
    problem(error, Some(&policy), text, SCHEMA)
}

/// What the validator wonders about.
pub(crate) fn of_warning(warning: &ValidationWarning, text: &str) -> PolicyProblem {
    let policy = warning.policy_id().to_string();
    problem(
        warning,
        Some(&policy),
        text,
        "it takes effect as it is; see whether it says what you mean",
    )
}

/// A problem of one policy, at the `nth` occurrence (from 0) of what it is known by.
pub(crate) fn of_name(policy: &str, nth: usize, text: &str, message: &str, cure: &str) -> PolicyProblem {
    let place = text
        .match_indices(&format!("@id(\"{policy}\")"))
        .nth(nth)
        .map(|(offset, _)| position(text, offset));
    PolicyProblem {
        line: place.map(|p| p.0),
        column: place.map(|p| p.1),
        policy: Some(policy.into()),
        message: message.into(),
        cure: cure.into(),
    }
}

/// An annotation of a policy whose value is not the one that it may have.
pub(crate) fn of_annotation(
    policy: &str,
    (name, value): (&str, &str),
    found: &str,
    text: &str,
) -> PolicyProblem {
    let place = text
        .find(&format!("@{name}(\"{found}\")"))
        .map(|offset| position(text, offset));
    PolicyProblem {
        line: place.map(|p| p.0),
        column: place.map(|p| p.1),
        policy: Some(policy.into()),
        message: format!("@{name}({found:?}) means nothing"),
        cure: format!("write @{name}({value:?}), or leave it out"),
    }
}

fn problem(found: &dyn Diagnostic, policy: Option<&str>, text: &str, cure: &str) -> PolicyProblem {
    let place = found
        .labels()
        .and_then(|mut labels| labels.next())
        .map(|label| position(text, label.offset()));
    let mut message = with_causes(found);
    // The validator says whose it is; that is told apart here.
    if let Some(policy) = policy
        && let Some(rest) = message.strip_prefix(&format!("for policy `{policy}`, "))
    {
        message = rest.into();
    }
    PolicyProblem {
        line: place.map(|p| p.0),
        column: place.map(|p| p.1),
        policy: policy.map(str::to_owned),
        message,
        cure: match found.help() {
            Some(help) => format!("{help}; {cure}"),
            None => cure.into(),
        },
    }
}

/// An error with all its causes.
fn with_causes(e: &dyn Diagnostic) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Line and column, from 1, of a byte offset.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset.min(text.len())).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |n| n + 1);
    (
        before.matches('\n').count() + 1,
        before[line_start..].chars().count() + 1,
    )
}
