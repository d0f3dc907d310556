//! How much waits for components, by what a broker counts for all of its topics anyway.
//!
//! What must hold: no topic is loaded for it and no broker is asked. An input costs a look into a map; a
//! pattern looks through the topics that have the component's subscription, and no others.

use std::collections::HashMap;

use geminga_model::TopicName;

use super::Worker;
use crate::component::ComponentId;
use crate::plan::Input;

/// What waits on the topics of a broker, by subscription: made once, for all components.
#[derive(Debug, Default)]
pub struct Backlogs<'a>(HashMap<&'a str, Topics<'a>>);

/// Entries by topic.
#[derive(Debug, Default)]
struct Topics<'a> {
    /// As they are loaded: partitions one by one.
    each: HashMap<&'a str, u64>,
    /// The partitions of a topic together.
    partitioned: HashMap<&'a str, u64>,
}

impl<'a> Backlogs<'a> {
    /// Takes in how many entries a subscription has not acknowledged on a topic, or on one partition.
    pub fn add(&mut self, topic: &'a str, subscription: &'a str, entries: u64) {
        let topics = self.0.entry(subscription).or_default();
        *topics.each.entry(topic).or_default() += entries;
        let parts = topic.rsplit_once("-partition-");
        if let Some((parent, number)) = parts
            && number.parse::<u32>().is_ok()
        {
            *topics.partitioned.entry(parent).or_default() += entries;
        }
    }
}

impl Topics<'_> {
    /// Of one input; `None` when neither it nor one of its partitions is there.
    fn of(&self, name: &str) -> Option<u64> {
        let found = [self.each.get(name), self.partitioned.get(name)];
        let mut found = found.into_iter().flatten().peekable();
        found.peek()?;
        Some(found.sum())
    }
}

impl Worker {
    /// Entries that wait for a component; `None` for what reads no topic, what does not exist, and where none
    /// of its inputs has its subscription among `backlogs`.
    #[must_use]
    pub fn waiting(&self, id: &ComponentId, backlogs: &Backlogs<'_>) -> Option<u64> {
        let plan = self.entry(id).ok()?.crew.plan.clone();
        let Input::Topics(inputs) = &plan.input else {
            return None;
        };
        let topics = backlogs.0.get(inputs.name.as_str())?;
        let named = inputs.topics.iter().filter_map(|name| topics.of(name));
        let mut found: Vec<u64> = named.collect();
        if !inputs.patterns.is_empty() {
            let names = inputs.topics.iter().filter_map(|name| name.parse().ok());
            let names: Vec<TopicName> = names.collect();
            for (topic, entries) in &topics.each {
                let Ok(topic) = topic.parse::<TopicName>() else {
                    continue;
                };
                // What is named is counted, also where a pattern means it too.
                let is_named = names.iter().any(|name| name.parent() == topic.parent());
                if !is_named && inputs.patterns.iter().any(|it| it.pattern.matches(&topic)) {
                    found.push(*entries);
                }
            }
        }
        (!found.is_empty()).then(|| found.iter().sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_count_for_their_topic() {
        let mut backlogs = Backlogs::default();
        for (topic, subscription, entries) in [
            ("persistent://t/n/a", "s", 3),
            ("persistent://t/n/p-partition-0", "s", 4),
            ("persistent://t/n/p-partition-1", "s", 5),
            ("persistent://t/n/p-partition-x", "s", 100),
            ("persistent://t/n/a", "other", 1000),
        ] {
            backlogs.add(topic, subscription, entries);
        }
        let topics = &backlogs.0["s"];
        for (name, want) in [
            ("persistent://t/n/a", Some(3)),
            ("persistent://t/n/p", Some(9)),
            ("persistent://t/n/p-partition-1", Some(5)),
            ("persistent://t/n/none", None),
        ] {
            assert_eq!(topics.of(name), want, "{name}");
        }
    }
}
