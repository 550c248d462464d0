//! Topics and filters: a space that contains a filter holds every topic that the filter matches.
#![no_main]
use countersign_mqtt::topic::{SpaceFilter, TopicFilter, TopicName};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: (&str, &str, &str)| {
    let (space, filter, topic) = data;
    let (Ok(space), Ok(filter), Ok(topic)) = (SpaceFilter::parse(space), TopicFilter::new(filter), TopicName::new(topic))
    else {
        return;
    };
    if space.contains_filter("d1", filter) && filter.matches(topic) {
        assert!(space.matches_topic("d1", topic));
    }
});
