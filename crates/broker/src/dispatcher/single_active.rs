//! Dispatch to one consumer at a time: Exclusive and Failover.
//!
//! Owns the permits of the active and the waiting consumers, and says which one is active. What was
//! sent is not tracked: a new active consumer starts from the mark-delete position.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::hash::{murmur3, sticky};
use super::{ConsumerKey, Flow};

const POINTS_PER_CONSUMER: u32 = 100;

#[derive(Debug, Clone)]
pub(crate) enum Choice {
    /// There is only ever one.
    Exclusive,
    /// Partition number modulo the consumers of the highest priority, sorted by name.
    ByPartition(u32),
    /// A ring of consumer names; the topic's name has its place on it.
    ByRing(Arc<str>),
}

#[derive(Debug)]
pub(crate) struct SingleActive {
    choice: Choice,
    /// By priority, then by name.
    consumers: Vec<Flow>,
    active: Option<ConsumerKey>,
    /// The hashes that a reader of hash ranges asked for, inclusive; empty where it wants all.
    ranges: Vec<(i32, i32)>,
}

/// What a consumer that joins or leaves does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    None,
    /// Another consumer is active now; `from` is none when there was none.
    Active {
        from: Option<ConsumerKey>,
        to: Option<ConsumerKey>,
    },
}

impl SingleActive {
    pub(crate) fn new(choice: Choice) -> SingleActive {
        SingleActive {
            choice,
            consumers: Vec::new(),
            active: None,
            ranges: Vec::new(),
        }
    }

    /// Only entries whose key falls into one of these are for the consumer.
    pub(crate) fn set_ranges(&mut self, ranges: &[(i32, i32)]) {
        self.ranges = ranges.to_vec();
    }

    pub(crate) fn takes_all(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether an entry with this key is for the consumer of hash ranges.
    pub(crate) fn takes(&self, key: &[u8]) -> bool {
        let hash = i64::from(sticky(key, 0, u32::from(u16::MAX)));
        let holds =
            |(first, last): &(i32, i32)| (i64::from(*first)..=i64::from(*last)).contains(&hash);
        self.takes_all() || self.ranges.iter().any(holds)
    }

    /// Adds a consumer. An Exclusive subscription must have none (the caller has checked).
    pub(crate) fn add(&mut self, flow: Flow) -> Change {
        debug_assert!(!self.is_exclusive() || self.consumers.is_empty());
        let at = self
            .consumers
            .partition_point(|other| (other.priority, &other.name) <= (flow.priority, &flow.name));
        self.consumers.insert(at, flow);
        self.choose()
    }

    pub(crate) fn remove(&mut self, key: ConsumerKey) -> Change {
        self.consumers.retain(|flow| flow.key != key);
        let was = self.active;
        if was == Some(key) {
            self.active = None;
        }
        match self.choose() {
            Change::None if was == Some(key) => Change::Active {
                from: was,
                to: None,
            },
            Change::Active { to, .. } => Change::Active { from: was, to },
            Change::None => Change::None,
        }
    }

    pub(crate) fn is_exclusive(&self) -> bool {
        matches!(self.choice, Choice::Exclusive)
    }

    pub(crate) fn active(&self) -> Option<ConsumerKey> {
        self.active
    }

    pub(crate) fn flow(&self, key: ConsumerKey) -> Option<&Flow> {
        self.consumers.iter().find(|flow| flow.key == key)
    }

    pub(crate) fn flow_mut(&mut self, key: ConsumerKey) -> Option<&mut Flow> {
        self.consumers.iter_mut().find(|flow| flow.key == key)
    }

    /// The active consumer if it can take an entry now.
    pub(crate) fn ready(&mut self) -> Option<&mut Flow> {
        let active = self.active?;
        self.flow_mut(active).filter(|flow| flow.is_ready())
    }

    fn choose(&mut self) -> Change {
        let Some(first) = self.consumers.first() else {
            return Change::None;
        };
        let top = first.priority;
        let count = self
            .consumers
            .iter()
            .take_while(|flow| flow.priority == top)
            .count();
        let at = match &self.choice {
            Choice::Exclusive => 0,
            Choice::ByPartition(partition) => *partition as usize % count,
            Choice::ByRing(topic) => ring_choice(topic, &self.consumers[..count]),
        };
        let chosen = self.consumers[at].key;
        if self.active == Some(chosen) {
            return Change::None;
        }
        let from = self.active.replace(chosen);
        Change::Active {
            from,
            to: Some(chosen),
        }
    }
}

fn ring_choice(topic: &str, consumers: &[Flow]) -> usize {
    let mut ring = BTreeMap::new();
    for (at, flow) in consumers.iter().enumerate() {
        for point in 0..POINTS_PER_CONSUMER {
            let key = format!("{}{point}", flow.name);
            ring.insert(murmur3(key.as_bytes()), at);
        }
    }
    let place = murmur3(topic.as_bytes());
    let owner = ring
        .range(place..)
        .next()
        .or_else(|| ring.first_key_value());
    owner.map_or(0, |(_, at)| *at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(key: u64, name: &str, priority: i32) -> Flow {
        Flow::new(ConsumerKey(key), name.into(), priority, 0)
    }

    fn to(key: u64) -> Option<ConsumerKey> {
        Some(ConsumerKey(key))
    }

    #[test]
    fn a_reader_of_hash_ranges_takes_what_falls_into_them() {
        let mut low = SingleActive::new(Choice::Exclusive);
        let mut high = SingleActive::new(Choice::Exclusive);
        low.set_ranges(&[(0, 100), (200, 32_767)]);
        high.set_ranges(&[(101, 199), (32_768, 65_535)]);
        for key in 0..10_000u32 {
            let key = key.to_be_bytes();
            assert!(low.takes(&key) != high.takes(&key));
        }
        let all = SingleActive::new(Choice::Exclusive);
        assert!(all.takes_all() && all.takes(b"any"));
    }

    #[test]
    fn trap_14_partitions_choose_by_number_over_sorted_names() {
        let mut single = SingleActive::new(Choice::ByPartition(1));
        assert_eq!(
            single.add(flow(1, "b", 0)),
            Change::Active {
                from: None,
                to: to(1)
            }
        );
        // Sorted: a, b; index 1 % 2 = 1 is still b.
        assert_eq!(single.add(flow(2, "a", 0)), Change::None);
        // Sorted: a, aa, b; index 1 is aa.
        assert_eq!(
            single.add(flow(3, "aa", 0)),
            Change::Active {
                from: to(1),
                to: to(3)
            }
        );
        // One of a better level alone is the only choice.
        assert_eq!(
            single.add(flow(4, "z", -1)),
            Change::Active {
                from: to(3),
                to: to(4)
            }
        );
        assert_eq!(
            single.remove(ConsumerKey(4)),
            Change::Active {
                from: to(4),
                to: to(3)
            }
        );
        assert_eq!(
            single.remove(ConsumerKey(1)),
            Change::None,
            "a, aa: index 1 is aa"
        );
    }

    #[test]
    fn trap_14_plain_topics_choose_by_ring_whatever_the_order_of_arrival() {
        let topic: Arc<str> = "persistent://public/default/t".into();
        let names = ["one", "two", "three", "four"];
        let mut chosen = Vec::new();
        for shift in 0..names.len() {
            let mut single = SingleActive::new(Choice::ByRing(topic.clone()));
            for n in 0..names.len() {
                let at = (n + shift) % names.len();
                single.add(flow(at as u64, names[at], 0));
            }
            chosen.push(single.active());
        }
        assert!(chosen.iter().all(|key| *key == chosen[0]), "{chosen:?}");
    }

    #[test]
    fn the_last_one_that_leaves_leaves_none_active() {
        let mut single = SingleActive::new(Choice::Exclusive);
        single.add(flow(1, "a", 0));
        assert_eq!(
            single.remove(ConsumerKey(1)),
            Change::Active {
                from: to(1),
                to: None
            }
        );
        assert_eq!(single.active(), None);
        assert!(single.ready().is_none());
    }

    #[test]
    fn only_the_active_one_is_ready() {
        let mut single = SingleActive::new(Choice::ByPartition(0));
        single.add(flow(1, "a", 0));
        single.add(flow(2, "b", 0));
        single.flow_mut(ConsumerKey(2)).unwrap().add_permits(10);
        assert!(single.ready().is_none());
        single.flow_mut(ConsumerKey(1)).unwrap().add_permits(1);
        let ready = single.ready().unwrap();
        assert_eq!(ready.key, ConsumerKey(1));
        ready.spend(5);
        assert!(single.ready().is_none());
    }
}
