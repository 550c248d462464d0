//! Certificate policies (RFC 5280 sections 6.1.3 (d) to 6.1.5), as far as they decide whether a path is valid.
//!
//! We ask for no policy of our own (user-initial-policy-set is any-policy, nothing else is set initially), so all that
//! matters is whether the tree of section 6.1.2 (a) is empty once a CA of the path demands an explicit policy. For that
//! one level of the tree is enough: each policy that is valid there, with what it is called below. The tree itself can
//! grow exponentially with the path (CVE-2023-0464); a level is bounded.

use std::collections::{BTreeMap, BTreeSet};

use const_oid::ObjectIdentifier;
use der::Decode;
use x509_cert::Certificate;
use x509_cert::ext::pkix::{CertificatePolicies, InhibitAnyPolicy, PolicyConstraints, PolicyMappings};

use crate::chain::ChainFault;

const ANY: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.32.0");
/// id-qt-cps and id-qt-unotice (RFC 5280 section 4.2.1.4): notices for people, of which nothing follows.
const QUALIFIERS: [ObjectIdentifier; 2] = [
    ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.2.1"),
    ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.2.2"),
];
/// The most policies of a level, all their names below counted.
const LEVEL_MAX: usize = 512;

/// What one certificate says of policies.
#[derive(Debug, Default)]
pub(super) struct PolicyFacts {
    /// `None`: the extension is absent.
    policies: Option<BTreeSet<ObjectIdentifier>>,
    mappings: Vec<(ObjectIdentifier, ObjectIdentifier)>,
    require_explicit: Option<u32>,
    inhibit_mapping: Option<u32>,
    inhibit_any: Option<u32>,
}

impl PolicyFacts {
    pub(super) fn parse(der: &[u8]) -> Result<Self, ChainFault> {
        let malformed = |e: der::Error| ChainFault::Malformed(e.to_string());
        let certificate = Certificate::from_der(der).map_err(malformed)?;
        let tbs = certificate.tbs_certificate();
        let mut facts = Self::default();
        if let Some((critical, CertificatePolicies(list))) = tbs.get_extension().map_err(malformed)? {
            let known = |p: &x509_cert::ext::pkix::certpolicy::PolicyInformation| {
                p.policy_qualifiers
                    .iter()
                    .flatten()
                    .all(|q| QUALIFIERS.contains(&q.policy_qualifier_id))
            };
            if critical && !list.iter().all(known) {
                return Err(ChainFault::Malformed(
                    "a critical policy has a qualifier that is not known".into(),
                ));
            }
            facts.policies = Some(list.iter().map(|p| p.policy_identifier).collect());
        }
        if let Some((_, PolicyMappings(list))) = tbs.get_extension().map_err(malformed)? {
            facts.mappings = list
                .iter()
                .map(|m| (m.issuer_domain_policy, m.subject_domain_policy))
                .collect();
        }
        if let Some((_, limits)) = tbs.get_extension::<PolicyConstraints>().map_err(malformed)? {
            facts.require_explicit = limits.require_explicit_policy;
            facts.inhibit_mapping = limits.inhibit_policy_mapping;
        }
        if let Some((_, InhibitAnyPolicy(skip))) = tbs.get_extension().map_err(malformed)? {
            facts.inhibit_any = Some(skip);
        }
        Ok(facts)
    }
}

/// The state variables of section 6.1.2 that concern policies.
#[derive(Debug)]
pub(super) struct PolicyState {
    /// Policies valid at this depth, each with its expected policy set: what it is called below.
    level: BTreeMap<ObjectIdentifier, BTreeSet<ObjectIdentifier>>,
    explicit: usize,
    mapping: usize,
    any: usize,
}

fn lower(counter: &mut usize, limit: Option<u32>) {
    if let Some(limit) = limit {
        *counter = (*counter).min(usize::try_from(limit).unwrap_or(usize::MAX));
    }
}

impl PolicyState {
    /// For a path of so many certificates, the anchor not counted.
    pub(super) fn new(certificates: usize) -> Self {
        Self {
            level: BTreeMap::from([(ANY, BTreeSet::from([ANY]))]),
            explicit: certificates + 1,
            mapping: certificates + 1,
            any: certificates + 1,
        }
    }

    /// Section 6.1.3 (d) to (f).
    pub(super) fn certificate(
        &mut self,
        facts: &PolicyFacts,
        self_issued: bool,
        last: bool,
    ) -> Result<(), ChainFault> {
        let expected: BTreeSet<_> = self.level.values().flatten().copied().collect();
        let any_is_valid = self.level.contains_key(&ANY);
        let mut next = BTreeMap::new();
        if let Some(policies) = &facts.policies {
            for policy in policies.iter().filter(|p| **p != ANY) {
                if any_is_valid || expected.contains(policy) {
                    next.insert(*policy, BTreeSet::from([*policy]));
                }
            }
            if policies.contains(&ANY) && (self.any > 0 || (self_issued && !last)) {
                for policy in &expected {
                    next.entry(*policy).or_insert_with(|| BTreeSet::from([*policy]));
                }
            }
        }
        self.level = next;
        self.bounded()?;
        if self.explicit == 0 && self.level.is_empty() {
            return Err(ChainFault::Policy);
        }
        Ok(())
    }

    fn bounded(&self) -> Result<(), ChainFault> {
        let size: usize = self.level.values().map(|e| e.len().max(1)).sum();
        if size > LEVEL_MAX {
            return Err(ChainFault::Budget);
        }
        Ok(())
    }

    /// Section 6.1.4 (a), (b), (h) to (j): a CA's word for what is below it.
    pub(super) fn descend(&mut self, facts: &PolicyFacts, self_issued: bool) -> Result<(), ChainFault> {
        let mut mapped: BTreeMap<ObjectIdentifier, BTreeSet<ObjectIdentifier>> = BTreeMap::new();
        for (issuers, subjects) in &facts.mappings {
            if *issuers == ANY || *subjects == ANY {
                return Err(ChainFault::Policy);
            }
            mapped.entry(*issuers).or_default().insert(*subjects);
        }
        for (policy, below) in mapped {
            if self.mapping == 0 {
                self.level.remove(&policy);
            } else if self.level.contains_key(&policy) || self.level.contains_key(&ANY) {
                self.level.insert(policy, below);
            }
        }
        self.bounded()?;
        if !self_issued {
            for counter in [&mut self.explicit, &mut self.mapping, &mut self.any] {
                *counter = counter.saturating_sub(1);
            }
        }
        lower(&mut self.explicit, facts.require_explicit);
        lower(&mut self.mapping, facts.inhibit_mapping);
        lower(&mut self.any, facts.inhibit_any);
        Ok(())
    }

    /// Section 6.1.5 (a), (b), (g).
    pub(super) fn wrap_up(mut self, last: &PolicyFacts) -> Result<(), ChainFault> {
        self.explicit = self.explicit.saturating_sub(1);
        if last.require_explicit == Some(0) {
            self.explicit = 0;
        }
        if self.explicit == 0 && self.level.is_empty() {
            return Err(ChainFault::Policy);
        }
        Ok(())
    }
}
