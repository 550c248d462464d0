//! Topic spaces, compiled once per policy: policies see the names of the spaces that hold a topic, never the topic.

use std::sync::{Arc, LazyLock, Weak};

use countersign_identity::DeviceId;
use countersign_mqtt::topic::{SpaceFilter, TopicFilter, TopicName};
use countersign_policy::decide::{SpaceSet, TenantPolicy};
use countersign_policy::{Denial, DenialCode};
use parking_lot::Mutex;

/// The filters of a policy's spaces, in the policy's order.
#[derive(Debug)]
pub(crate) struct Spaces(Vec<SpaceFilter>);

impl Spaces {
    /// The spaces that hold `topic` for this device.
    pub(crate) fn of_topic(&self, device: &DeviceId, topic: TopicName<'_>) -> SpaceSet {
        self.collect(|filter| filter.matches_topic(device.as_str(), topic))
    }

    /// The spaces that hold every topic that `requested` can match.
    pub(crate) fn of_filter(&self, device: &DeviceId, requested: TopicFilter<'_>) -> SpaceSet {
        self.collect(|filter| filter.contains_filter(device.as_str(), requested))
    }

    fn collect(&self, mut holds: impl FnMut(&SpaceFilter) -> bool) -> SpaceSet {
        let mut set = SpaceSet::default();
        for (n, filter) in self.0.iter().enumerate() {
            if holds(filter) {
                set.insert(n);
            }
        }
        set
    }
}

/// The compiled spaces of `policy`. Kept while any session uses them, so that a fleet shares one copy.
pub(crate) fn compiled(policy: &Arc<TenantPolicy>) -> Result<Arc<Spaces>, Denial> {
    type Known = Vec<(Weak<TenantPolicy>, Weak<Spaces>)>;
    static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);
    let mut known = KNOWN.lock();
    if let Some(spaces) = known
        .iter()
        .find(|(p, _)| p.as_ptr() == Arc::as_ptr(policy))
        .and_then(|(p, s)| p.upgrade().and(s.upgrade()))
    {
        return Ok(spaces);
    }
    let filters = policy
        .spaces()
        .iter()
        .map(|space| {
            SpaceFilter::parse(&space.filter).map_err(|e| {
                Denial::new(
                    DenialCode::PolicyError,
                    format!("topic space {:?} has no valid filter: {e}", space.name),
                )
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let spaces = Arc::new(Spaces(filters));
    known.retain(|(p, s)| p.strong_count() > 0 && s.strong_count() > 0);
    known.push((Arc::downgrade(policy), Arc::downgrade(&spaces)));
    Ok(spaces)
}
