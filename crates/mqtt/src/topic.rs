//! Topic names and filters (section 4.7): checks, matching, containment, and topic spaces.

use crate::error::DecodeError;
use crate::wire::has_forbidden;

/// The most levels of a name or filter that is used here.
pub const LEVELS_MAX: usize = 64;

/// A topic name: no wildcards, not empty, no characters that no topic may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TopicName<'a>(&'a str);

/// A topic filter with its wildcards in allowed places; without `$share`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TopicFilter<'a>(&'a str);

fn check_text(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("it is empty (MQTT-4.7.3-1)");
    }
    if text.len() > usize::from(u16::MAX) {
        return Err("it is longer than 65,535 bytes (MQTT-4.7.3-3)");
    }
    if has_forbidden(text) {
        return Err("it has U+0000 or a control character (MQTT-4.7.3-2)");
    }
    if text.bytes().filter(|b| *b == b'/').count() >= LEVELS_MAX {
        return Err("it has more than 64 levels");
    }
    Ok(())
}

impl<'a> TopicName<'a> {
    /// Checks a topic name.
    ///
    /// # Errors
    /// [`DecodeError::TopicName`] with the rule it breaks.
    pub fn new(text: &'a str) -> Result<Self, DecodeError> {
        check_text(text).map_err(DecodeError::TopicName)?;
        if text.contains(['+', '#']) {
            return Err(DecodeError::TopicName("it has a wildcard (MQTT-3.3.2-2)"));
        }
        Ok(Self(text))
    }

    /// As text.
    pub const fn as_str(self) -> &'a str {
        self.0
    }
}

impl<'a> TopicFilter<'a> {
    /// Checks a topic filter.
    ///
    /// # Errors
    /// [`DecodeError::TopicFilter`] with the rule it breaks.
    pub fn new(text: &'a str) -> Result<Self, DecodeError> {
        check_text(text).map_err(DecodeError::TopicFilter)?;
        let mut levels = text.split('/').peekable();
        while let Some(level) = levels.next() {
            if level.contains('#') && (level.len() > 1 || levels.peek().is_some()) {
                return Err(DecodeError::TopicFilter(
                    "# must be a whole level, and the last (MQTT-4.7.1-1)",
                ));
            }
            if level.contains('+') && level.len() > 1 {
                return Err(DecodeError::TopicFilter("+ must be a whole level (MQTT-4.7.1-2)"));
            }
        }
        Ok(Self(text))
    }

    /// As text.
    pub const fn as_str(self) -> &'a str {
        self.0
    }

    /// Whether `name` is matched (section 4.7.1, 4.7.2).
    pub fn matches(self, name: TopicName<'_>) -> bool {
        if name.0.starts_with('$') && self.0.starts_with(['+', '#']) {
            return false;
        }
        let mut topic = name.0.split('/');
        for level in self.0.split('/') {
            match level {
                "#" => return true,
                _ => match topic.next() {
                    Some(t) if level == "+" || level == t => {}
                    _ => return false,
                },
            }
            // `a/#` also matches `a` (section 4.7.1.2).
            if topic.clone().next().is_none() && self.0.ends_with("/#") && covers_parent(self.0, name.0) {
                return true;
            }
        }
        topic.next().is_none()
    }
}

/// Whether `filter`, which ends in `/#`, has exactly one level more than `topic`.
fn covers_parent(filter: &str, topic: &str) -> bool {
    filter.split('/').count() == topic.split('/').count() + 1
}

/// Splits `$share/{group}/{filter}` (section 4.8.2). `None`: not a shared subscription.
///
/// # Errors
/// [`DecodeError::TopicFilter`] if it is one, but malformed.
pub fn shared(text: &str) -> Result<Option<(&str, TopicFilter<'_>)>, DecodeError> {
    let Some(rest) = text.strip_prefix("$share/") else {
        return Ok(None);
    };
    match rest.split_once('/') {
        Some((group, filter)) if !group.is_empty() && !group.contains(['+', '#']) => {
            Ok(Some((group, TopicFilter::new(filter)?)))
        }
        _ => Err(DecodeError::TopicFilter(
            "a shared subscription needs a group and a filter (MQTT-4.8.2-1)",
        )),
    }
}

/// The filter of a topic space: a topic filter in which the level `{id}` stands for the device's id.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpaceFilter {
    levels: Box<[Level]>,
    /// It ends in `#`.
    open: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Level {
    Text(Box<str>),
    Plus,
    Id,
}

impl SpaceFilter {
    /// Checks a space's filter.
    ///
    /// # Errors
    /// [`DecodeError::TopicFilter`] if it is no filter, or `{id}` is not a whole level.
    pub fn parse(text: &str) -> Result<Self, DecodeError> {
        TopicFilter::new(text)?;
        let mut open = false;
        let mut levels = Vec::new();
        for level in text.split('/') {
            match level {
                "#" => open = true,
                "+" => levels.push(Level::Plus),
                "{id}" => levels.push(Level::Id),
                _ if level.contains(['{', '}']) => {
                    return Err(DecodeError::TopicFilter(
                        "{id} must be a whole level, and is the only placeholder",
                    ));
                }
                _ => levels.push(Level::Text(level.into())),
            }
        }
        Ok(Self {
            levels: levels.into(),
            open,
        })
    }

    /// Whether the space of device `id` holds `topic`. Nothing is substituted: levels are compared one by one.
    pub fn matches_topic(&self, id: &str, topic: TopicName<'_>) -> bool {
        self.covers(id, topic.0, false)
    }

    /// Whether every topic that `requested` can match lies in the space of device `id`.
    pub fn contains_filter(&self, id: &str, requested: TopicFilter<'_>) -> bool {
        self.covers(id, requested.0, true)
    }

    fn covers(&self, id: &str, text: &str, is_filter: bool) -> bool {
        // A wildcard at the first level never reaches topics that start with `$` (MQTT-4.7.2-1).
        let starts_wild = matches!(self.levels.first(), Some(Level::Plus) | None);
        if starts_wild && text.starts_with('$') {
            return false;
        }
        let mut asked = text.split('/');
        for level in &self.levels {
            match (level, asked.next()) {
                // The requested filter reaches deeper or shallower levels than this one allows.
                (_, None) => return false,
                (_, Some("#")) if is_filter => return false,
                (Level::Plus, Some(_)) => {}
                (Level::Id, Some(a)) if a == id => {}
                (Level::Text(t), Some(a)) if **t == *a => {}
                _ => return false,
            }
        }
        self.open || asked.next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(filter: &str, topic: &str) -> bool {
        TopicFilter::new(filter)
            .unwrap()
            .matches(TopicName::new(topic).unwrap())
    }

    #[test]
    fn matching_follows_section_4_7() {
        for (filter, topic, expected) in [
            ("a/b", "a/b", true),
            ("a/b", "a/c", false),
            ("a/+", "a/b", true),
            ("a/+", "a", false),
            ("a/+", "a/", true),
            ("a/+", "a/b/c", false),
            ("a/#", "a", true),
            ("a/#", "a/b/c", true),
            ("a/b/#", "a", false),
            ("#", "a/b", true),
            ("#", "$SYS/x", false),
            ("+/x", "$SYS/x", false),
            ("$SYS/#", "$SYS/x", true),
            ("+", "/a", false),
            ("+/+", "/a", true),
            ("/+", "/a", true),
            ("a//b", "a//b", true),
            ("+/a/#", "x/a", true),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
        }
    }

    #[test]
    fn names_and_filters_are_checked() {
        for bad in ["", "a/+", "#", "a\0", "a\u{1}", "a\u{7f}", "a\u{ffff}"] {
            assert!(TopicName::new(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "a#", "a/#/b", "a/b+", "#/a", "++", "a\0"] {
            assert!(TopicFilter::new(bad).is_err(), "{bad:?}");
        }
        assert!(TopicName::new(&"a/".repeat(63)).is_ok());
        assert!(TopicName::new(&"a/".repeat(64)).is_err());
        assert!(shared("$share/g/a/+").unwrap().is_some());
        assert!(shared("$share//a").is_err() && shared("$share/g").is_err() && shared("$share/+/a").is_err());
        assert!(shared("a/b").unwrap().is_none());
    }

    #[test]
    fn a_space_is_only_ones_own() {
        let space = SpaceFilter::parse("devices/{id}/telemetry/#").unwrap();
        let topic = |id, t| space.matches_topic(id, TopicName::new(t).unwrap());
        assert!(topic("d1", "devices/d1/telemetry"));
        assert!(topic("d1", "devices/d1/telemetry/a/b"));
        assert!(!topic("d1", "devices/d2/telemetry"));
        assert!(!topic("d1", "devices/d1"));
        let filter = |f| space.contains_filter("d1", TopicFilter::new(f).unwrap());
        assert!(filter("devices/d1/telemetry/#"));
        assert!(filter("devices/d1/telemetry/+"));
        assert!(!filter("devices/+/telemetry/#"));
        assert!(!filter("devices/d1/#"));
        assert!(!filter("#"));
        assert!(SpaceFilter::parse("devices/x{id}/#").is_err());
        let all = SpaceFilter::parse("#").unwrap();
        assert!(all.contains_filter("d1", TopicFilter::new("#").unwrap()));
        assert!(!all.matches_topic("d1", TopicName::new("$SYS/a").unwrap()));
    }

    /// Containment against its definition, over all filters and topics of up to three levels of a small alphabet.
    #[test]
    fn containment_is_what_enumeration_says() {
        let levels = ["a", "b", "$c", ""];
        let mut topics: Vec<String> = Vec::new();
        let mut filters: Vec<String> = vec!["#".into()];
        let wild: Vec<&str> = levels.iter().copied().chain(["+"]).collect();
        for x in wild.iter() {
            filters.push((*x).into());
            filters.push(format!("{x}/#"));
            for y in wild.iter() {
                filters.push(format!("{x}/{y}"));
                filters.push(format!("{x}/{y}/#"));
            }
        }
        // One level deeper than any filter, and a level that no filter names.
        let names: Vec<&str> = levels.iter().copied().chain(["z"]).collect();
        for x in &names {
            topics.push((*x).into());
            for y in &names {
                topics.push(format!("{x}/{y}"));
                for z in &names {
                    topics.push(format!("{x}/{y}/{z}"));
                    topics.push(format!("{x}/{y}/{z}/z"));
                }
            }
        }
        topics.retain(|t| !t.is_empty());
        filters.retain(|f| !f.is_empty());
        for allowed in &filters {
            let space = SpaceFilter::parse(allowed).unwrap();
            for requested in &filters {
                let r = TopicFilter::new(requested).unwrap();
                let says = space.contains_filter("id", r);
                let truth = topics.iter().all(|t| {
                    let t = TopicName::new(t).unwrap();
                    !r.matches(t) || TopicFilter::new(allowed).unwrap().matches(t)
                });
                // Never wider than the truth; narrower only where a `#` meets a `$` or the parent level.
                assert!(!says || truth, "{allowed} was said to contain {requested}");
                if truth && !says {
                    assert!(
                        requested.contains('#') || requested.starts_with('$'),
                        "{allowed} {requested}"
                    );
                }
            }
            for t in &topics {
                let name = TopicName::new(t).unwrap();
                assert_eq!(
                    space.matches_topic("id", name),
                    TopicFilter::new(allowed).unwrap().matches(name),
                    "{allowed} {t}"
                );
            }
        }
    }
}
