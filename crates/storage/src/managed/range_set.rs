//! A set of offsets as ranges: what a cursor remembers of individual acks.
//!
//! Ranges are half open, do not touch each other, and are merged at once. The number of offsets
//! in the set is kept, so that a backlog is a subtraction.

use std::collections::BTreeMap;
use std::ops::Range;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// Start to end.
    ranges: BTreeMap<u64, u64>,
    covered: u64,
}

impl RangeSet {
    /// Adds a range; returns how many offsets were new.
    pub fn insert(&mut self, range: Range<u64>) -> u64 {
        let Range { mut start, mut end } = range;
        if start >= end {
            return 0;
        }
        // The common case: acks come nearly in order, so the last range grows.
        let mut swallowed = 0;
        while let Some((&s, &e)) = self.ranges.range(..=end).next_back() {
            if e < start {
                break;
            }
            if s <= start && e >= end {
                return 0;
            }
            self.ranges.remove(&s);
            swallowed += e - s;
            start = start.min(s);
            end = end.max(e);
        }
        self.ranges.insert(start, end);
        let new = (end - start) - swallowed;
        self.covered += new;
        new
    }

    #[must_use]
    pub fn contains(&self, offset: u64) -> bool {
        self.range_at(offset).is_some()
    }

    /// The range that holds `offset`.
    #[must_use]
    pub fn range_at(&self, offset: u64) -> Option<Range<u64>> {
        let (&start, &end) = self.ranges.range(..=offset).next_back()?;
        (offset < end).then_some(start..end)
    }

    /// True when adding `offset` alone would make one range more.
    #[must_use]
    pub fn would_grow(&self, offset: u64) -> bool {
        match self.ranges.range(..=offset.saturating_add(1)).next_back() {
            Some((&start, &end)) => end < offset || start > offset.saturating_add(1),
            None => true,
        }
    }

    /// The first offset from `from` on that is not in the set.
    #[must_use]
    pub fn next_gap(&self, from: u64) -> u64 {
        self.range_at(from).map_or(from, |range| range.end)
    }

    /// Forgets all below `offset`.
    pub fn remove_below(&mut self, offset: u64) {
        while let Some(first) = self.ranges.first_entry() {
            let (start, end) = (*first.key(), *first.get());
            if start >= offset {
                return;
            }
            if end <= offset {
                first.remove();
                self.covered -= end - start;
                continue;
            }
            first.remove();
            self.ranges.insert(offset, end);
            self.covered -= offset - start;
        }
    }

    /// Forgets all from `offset` on.
    pub fn remove_from(&mut self, offset: u64) {
        while let Some(mut last) = self.ranges.last_entry() {
            let (start, end) = (*last.key(), *last.get());
            if end <= offset {
                return;
            }
            if start >= offset {
                last.remove();
                self.covered -= end - start;
                continue;
            }
            *last.get_mut() = offset;
            self.covered -= end - offset;
        }
    }

    pub fn clear(&mut self) {
        self.ranges.clear();
        self.covered = 0;
    }

    /// How many offsets are in the set.
    #[must_use]
    pub fn covered(&self) -> u64 {
        self.covered
    }

    /// How many ranges.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges.iter().map(|(&start, &end)| start..end)
    }

    /// Offsets of the set that lie in `window`, in O(ranges in it).
    #[must_use]
    pub fn covered_in(&self, window: Range<u64>) -> u64 {
        let first = self
            .range_at(window.start)
            .map_or(window.start, |r| r.start);
        self.ranges
            .range(first..window.end)
            .map(|(&s, &e)| e.min(window.end).saturating_sub(s.max(window.start)))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const UNIVERSE: u64 = 64;

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u64, u64),
        RemoveBelow(u64),
        RemoveFrom(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let offset = 0..UNIVERSE;
        proptest::collection::vec(
            prop_oneof![
                8 => (offset.clone(), 0..6_u64).prop_map(|(at, n)| Step::Insert(at, at + n)),
                1 => offset.clone().prop_map(Step::RemoveBelow),
                1 => offset.prop_map(Step::RemoveFrom),
            ],
            0..80,
        )
    }

    proptest! {
        #[test]
        fn behaves_as_a_plain_set(steps in steps()) {
            let mut set = RangeSet::default();
            let mut model = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Insert(start, end) => {
                        let new = (start..end).filter(|x| model.insert(*x)).count() as u64;
                        prop_assert_eq!(set.insert(start..end), new);
                    }
                    Step::RemoveBelow(at) => {
                        set.remove_below(at);
                        model.retain(|x| *x >= at);
                    }
                    Step::RemoveFrom(at) => {
                        set.remove_from(at);
                        model.retain(|x| *x < at);
                    }
                }
                prop_assert_eq!(set.covered(), model.len() as u64);
                let flat: BTreeSet<u64> = set.iter().flatten().collect();
                prop_assert_eq!(&flat, &model);
                let all: Vec<_> = set.iter().collect();
                prop_assert!(all.windows(2).all(|w| w[0].end < w[1].start), "merged: {:?}", all);
                for x in 0..UNIVERSE {
                    prop_assert_eq!(set.contains(x), model.contains(&x));
                    let gap = (x..).find(|y| !model.contains(y)).unwrap();
                    prop_assert_eq!(set.next_gap(x), gap);
                    let mut grown = set.clone();
                    grown.insert(x..x + 1);
                    prop_assert_eq!(set.would_grow(x), grown.len() > set.len());
                    let inside = model.range(x..x + 9).count() as u64;
                    prop_assert_eq!(set.covered_in(x..x + 9), inside);
                }
            }
        }
    }
}
