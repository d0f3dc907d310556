//! Which consumer owns which key hash.

use std::collections::{BTreeMap, HashMap};

use thiserror::Error;

use super::ConsumerKey;
use super::hash::{murmur3, sticky};

/// Hashes are below this.
const RANGE: u32 = 65536;

#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum AssignError {
    #[error("Ranges for KeyShared policy must not be empty.")]
    NoRanges,
    #[error("Ranges must be [0, 65535] but provided range is [{start}, {end}]")]
    OutOfBounds { start: i32, end: i32 },
    #[error("Range conflict with consumer {other}: [{start}, {end}]")]
    Overlap { other: String, start: i32, end: i32 },
    #[error("No more range can assigned to new consumer, assigned consumers {0}")]
    NoRangeLeft(usize),
}

#[derive(Debug)]
pub(crate) enum KeyRanges {
    /// `subscriptionKeySharedUseConsistentHashing` (the default).
    Ring(Ring),
    AutoSplit(AutoSplit),
    Sticky(Sticky),
}

impl KeyRanges {
    pub(crate) fn hash(&self, key: &[u8]) -> u32 {
        match self {
            KeyRanges::Ring(_) => sticky(key, 1, RANGE - 1),
            KeyRanges::AutoSplit(_) | KeyRanges::Sticky(_) => sticky(key, 0, RANGE - 1),
        }
    }

    pub(crate) fn owner(&self, hash: u32) -> Option<ConsumerKey> {
        match self {
            KeyRanges::Ring(ring) => ring.owner(hash),
            KeyRanges::AutoSplit(split) => split.owner(hash),
            KeyRanges::Sticky(ranges) => ranges.owner(hash),
        }
    }

    pub(crate) fn add(
        &mut self,
        key: ConsumerKey,
        name: &str,
        ranges: &[(i32, i32)],
    ) -> Result<(), AssignError> {
        match self {
            KeyRanges::Ring(ring) => {
                ring.add(key, name);
                Ok(())
            }
            KeyRanges::AutoSplit(split) => split.add(key),
            KeyRanges::Sticky(sticky) => sticky.add(key, name, ranges),
        }
    }

    pub(crate) fn remove(&mut self, key: ConsumerKey) {
        match self {
            KeyRanges::Ring(ring) => ring.remove(key),
            KeyRanges::AutoSplit(split) => split.remove(key),
            KeyRanges::Sticky(sticky) => sticky.remove(key),
        }
    }
}

/// Consistent hashing: each consumer has points on a ring, a hash belongs to the next point.
#[derive(Debug)]
pub(crate) struct Ring {
    points_per_consumer: u32,
    /// The first of a point owns it; the others wait in case it leaves.
    points: BTreeMap<u32, Vec<ConsumerKey>>,
    /// Consumers of one name get numbers, so that their points differ.
    names: HashMap<ConsumerKey, (String, u32)>,
}

impl Ring {
    pub(crate) fn new(points_per_consumer: u32) -> Ring {
        Ring {
            points_per_consumer,
            points: BTreeMap::new(),
            names: HashMap::new(),
        }
    }

    fn points_of(&self, name: &str, number: u32) -> impl Iterator<Item = u32> + use<> {
        let prefix = format!("{name}\0{number}\0");
        (0..self.points_per_consumer).map(move |point| {
            let key = format!("{prefix}{point}");
            murmur3(key.as_bytes()) % (RANGE - 1) + 1
        })
    }

    fn add(&mut self, key: ConsumerKey, name: &str) {
        let taken: Vec<u32> = self
            .names
            .values()
            .filter(|(other, _)| other == name)
            .map(|(_, n)| *n)
            .collect();
        let number = (0..).find(|n| !taken.contains(n)).unwrap_or(u32::MAX);
        for point in self.points_of(name, number) {
            self.points.entry(point).or_default().push(key);
        }
        self.names.insert(key, (name.to_owned(), number));
    }

    fn remove(&mut self, key: ConsumerKey) {
        let Some((name, number)) = self.names.remove(&key) else {
            return;
        };
        for point in self.points_of(&name, number) {
            if let Some(owners) = self.points.get_mut(&point) {
                owners.retain(|owner| *owner != key);
                if owners.is_empty() {
                    self.points.remove(&point);
                }
            }
        }
    }

    fn owner(&self, hash: u32) -> Option<ConsumerKey> {
        let next = self
            .points
            .range(hash..)
            .next()
            .or_else(|| self.points.first_key_value());
        next.and_then(|(_, owners)| owners.first().copied())
    }
}

/// The first consumer owns everything, each new one takes the lower half of the widest range.
#[derive(Debug, Default)]
pub(crate) struct AutoSplit {
    /// Range end (exclusive) to owner.
    ends: BTreeMap<u32, ConsumerKey>,
}

impl AutoSplit {
    fn add(&mut self, key: ConsumerKey) -> Result<(), AssignError> {
        if self.ends.is_empty() {
            self.ends.insert(RANGE, key);
            return Ok(());
        }
        let mut start = 0;
        let mut widest = (0, 0);
        for end in self.ends.keys() {
            if end - start > widest.1 - widest.0 {
                widest = (start, *end);
            }
            start = *end;
        }
        let width = widest.1 - widest.0;
        if width < 2 {
            return Err(AssignError::NoRangeLeft(self.ends.len()));
        }
        self.ends.insert(widest.1 - (width >> 1), key);
        Ok(())
    }

    /// The range of one that leaves goes to its upper neighbour; the last range to its lower one.
    fn remove(&mut self, key: ConsumerKey) {
        let Some(end) = self
            .ends
            .iter()
            .find(|(_, owner)| **owner == key)
            .map(|(end, _)| *end)
        else {
            return;
        };
        self.ends.remove(&end);
        if end == RANGE
            && let Some((lower, owner)) = self.ends.pop_last()
        {
            debug_assert!(lower < RANGE);
            self.ends.insert(RANGE, owner);
        }
    }

    fn owner(&self, hash: u32) -> Option<ConsumerKey> {
        self.ends.range(hash..).next().map(|(_, owner)| *owner)
    }
}

/// Ranges that the consumers chose themselves, both ends included.
#[derive(Debug, Default)]
pub(crate) struct Sticky {
    /// Start to (end, owner, its name).
    ranges: BTreeMap<u32, (u32, ConsumerKey, String)>,
}

impl Sticky {
    fn add(
        &mut self,
        key: ConsumerKey,
        name: &str,
        ranges: &[(i32, i32)],
    ) -> Result<(), AssignError> {
        if ranges.is_empty() {
            return Err(AssignError::NoRanges);
        }
        let mut wanted: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
        for &(start, end) in ranges {
            let bounds = (u32::try_from(start), u32::try_from(end));
            let (Ok(from), Ok(to)) = bounds else {
                return Err(AssignError::OutOfBounds { start, end });
            };
            if from > to || to >= RANGE {
                return Err(AssignError::OutOfBounds { start, end });
            }
            let taken = self.ranges.range(..=to).next_back();
            if let Some((_, (_, _, other))) = taken.filter(|(_, (last, _, _))| *last >= from) {
                return Err(AssignError::Overlap {
                    other: other.clone(),
                    start,
                    end,
                });
            }
            if wanted.iter().any(|(a, b)| from <= *b && *a <= to) {
                return Err(AssignError::Overlap {
                    other: name.to_owned(),
                    start,
                    end,
                });
            }
            wanted.push((from, to));
        }
        for (from, to) in wanted {
            self.ranges.insert(from, (to, key, name.to_owned()));
        }
        Ok(())
    }

    fn remove(&mut self, key: ConsumerKey) {
        self.ranges.retain(|_, (_, owner, _)| *owner != key);
    }

    fn owner(&self, hash: u32) -> Option<ConsumerKey> {
        let (_, (end, owner, _)) = self.ranges.range(..=hash).next_back()?;
        (hash <= *end).then_some(*owner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u64) -> ConsumerKey {
        ConsumerKey(n)
    }

    #[test]
    fn the_ring_spreads_keys_and_moves_few_when_one_joins() {
        let mut ring = KeyRanges::Ring(Ring::new(100));
        for n in 0..4 {
            ring.add(key(n), &format!("c{n}"), &[]).unwrap();
        }
        let before: Vec<_> = (1..RANGE).map(|hash| ring.owner(hash).unwrap()).collect();
        for n in 0..4 {
            let share = before.iter().filter(|owner| **owner == key(n)).count();
            assert!(share > 8_000, "consumer {n} has only {share} hashes");
        }
        ring.add(key(9), "c9", &[]).unwrap();
        for hash in 1..RANGE {
            let now = ring.owner(hash).unwrap();
            let was = before[hash as usize - 1];
            assert!(
                now == was || now == key(9),
                "a hash moved between old consumers"
            );
        }
        ring.remove(key(9));
        let after: Vec<_> = (1..RANGE).map(|hash| ring.owner(hash).unwrap()).collect();
        assert_eq!(before, after);
    }

    #[test]
    fn consumers_of_one_name_have_points_of_their_own() {
        let mut ring = KeyRanges::Ring(Ring::new(100));
        ring.add(key(1), "", &[]).unwrap();
        ring.add(key(2), "", &[]).unwrap();
        for n in 1..=2 {
            let share = (1..RANGE)
                .filter(|hash| ring.owner(*hash) == Some(key(n)))
                .count();
            assert!(share > 10_000, "{share}");
        }
    }

    #[test]
    fn auto_split_gives_halves() {
        let mut split = KeyRanges::AutoSplit(AutoSplit::default());
        split.add(key(1), "a", &[]).unwrap();
        assert_eq!(split.owner(65535), Some(key(1)));
        split.add(key(2), "b", &[]).unwrap();
        assert_eq!(split.owner(1), Some(key(2)));
        assert_eq!(split.owner(40000), Some(key(1)));
        split.add(key(3), "c", &[]).unwrap();
        let owners: std::collections::HashSet<_> = (0..RANGE).map(|h| split.owner(h)).collect();
        assert_eq!(owners.len(), 3);
        for n in [1, 2, 3] {
            split.remove(key(n));
            assert_eq!(split.owner(65535).is_some(), n != 3);
        }
    }

    #[test]
    fn sticky_ranges_are_inclusive_and_checked() {
        let mut ranges = KeyRanges::Sticky(Sticky::default());
        ranges.add(key(1), "a", &[(0, 99), (200, 299)]).unwrap();
        let cases: [(&[(i32, i32)], bool); 8] = [
            (&[], false),
            (&[(99, 120)], false),
            (&[(150, 200)], false),
            (&[(0, 65535)], false),
            (&[(-1, 5)], false),
            (&[(300, 65536)], false),
            (&[(400, 500), (500, 600)], false),
            (&[(100, 199), (300, 65535)], true),
        ];
        for (wanted, good) in cases {
            assert_eq!(ranges.add(key(2), "b", wanted).is_ok(), good, "{wanted:?}");
        }
        for (hash, owner) in [(0, 1), (99, 1), (100, 2), (199, 2), (299, 1), (65535, 2)] {
            assert_eq!(ranges.owner(hash), Some(key(owner)), "{hash}");
        }
        ranges.remove(key(1));
        assert_eq!(ranges.owner(50), None);
    }
}
