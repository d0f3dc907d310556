//! A set of offsets as ranges: what a cursor remembers of individual acks.
//!
//! Ranges are half open, and those that touch are one. Acks nearly in order make few of them, and a
//! tree of ranges is small. Acks in random order make one for every second message, so a window of
//! 4,096 offsets with many ranges becomes a bitmap: ten million messages acked in any order take
//! less than two megabytes, and not a hundred. The number of offsets in the set is kept, so that a
//! backlog is a subtraction.

mod bits;

use std::collections::BTreeMap;
use std::ops::Range;

use bits::{Bits, WINDOW};

/// Ranges that begin in a window before it becomes a bitmap.
const SPARSE_MAX: usize = if cfg!(test) { 4 } else { 32 };
/// What a bitmap counts for, in ranges.
const BITMAP_WEIGHT: usize = 16;

#[derive(Debug, Clone, Default)]
pub struct RangeSet {
    /// Start to end. None overlaps a window that is a bitmap.
    runs: BTreeMap<u64, u64>,
    /// By number of the window. None is empty or full.
    dense: BTreeMap<u64, Box<Bits>>,
    covered: u64,
}

impl PartialEq for RangeSet {
    fn eq(&self, other: &Self) -> bool {
        self.covered == other.covered && self.iter().eq(other.iter())
    }
}

impl Eq for RangeSet {}

/// The offsets of a window. The last offset that there is belongs to no range: an end is exclusive.
fn window(number: u64) -> Range<u64> {
    let start = number * WINDOW;
    start..start.saturating_add(WINDOW)
}

impl RangeSet {
    /// Adds a range; returns how many offsets were new.
    pub fn insert(&mut self, range: Range<u64>) -> u64 {
        let Range { start, end } = range;
        if start >= end {
            return 0;
        }
        let before = self.covered;
        if self.dense.is_empty() {
            self.insert_run(start..end);
            return self.covered - before;
        }
        let among = start / WINDOW..=(end - 1) / WINDOW;
        let numbers: Vec<u64> = self.dense.range(among).map(|(number, _)| *number).collect();
        let mut at = start;
        for number in numbers {
            let window = window(number);
            if at < window.start {
                self.insert_run(at..window.start);
            }
            let part = at.max(window.start)..end.min(window.end);
            at = window.end;
            if let Some(bits) = self.dense.get_mut(&number) {
                self.covered += bits.set(part.start - window.start..part.end - window.start);
                if bits.is_full() {
                    self.dense.remove(&number);
                    self.covered -= WINDOW;
                    self.insert_run(window);
                }
            }
        }
        if at < end {
            self.insert_run(at..end);
        }
        self.covered - before
    }

    /// Adds a range that overlaps no bitmap.
    fn insert_run(&mut self, range: Range<u64>) {
        let Range { mut start, mut end } = range;
        // The common case: acks come nearly in order, so the last range grows.
        let mut swallowed = 0;
        while let Some((&s, &e)) = self.runs.range(..=end).next_back() {
            if e < start {
                break;
            }
            if s <= start && e >= end {
                return;
            }
            self.runs.remove(&s);
            swallowed += e - s;
            start = start.min(s);
            end = end.max(e);
        }
        self.runs.insert(start, end);
        self.covered += (end - start) - swallowed;
        if self.runs.len() > SPARSE_MAX {
            self.condense(start / WINDOW);
        }
    }

    /// Makes a window a bitmap if many ranges begin in it.
    fn condense(&mut self, number: u64) {
        let window = window(number);
        let inside = self.runs.range(window.clone());
        if inside.take(SPARSE_MAX + 1).count() <= SPARSE_MAX {
            return;
        }
        let mut bits = Box::new(Bits::default());
        if let Some((_, end)) = self.runs.range_mut(..window.start).next_back()
            && *end > window.start
        {
            bits.set(0..(*end).min(window.end) - window.start);
            *end = window.start;
        }
        while let Some((&start, &end)) = self.runs.range(window.clone()).next() {
            self.runs.remove(&start);
            bits.set(start - window.start..end.min(window.end) - window.start);
            if end > window.end {
                self.runs.insert(window.end, end);
            }
        }
        self.dense.insert(number, bits);
    }

    #[must_use]
    pub fn contains(&self, offset: u64) -> bool {
        match self.dense.get(&(offset / WINDOW)) {
            Some(bits) => bits.has(offset % WINDOW),
            None => self.run_at(offset).is_some(),
        }
    }

    fn run_at(&self, offset: u64) -> Option<Range<u64>> {
        let (&start, &end) = self.runs.range(..=offset).next_back()?;
        (offset < end).then_some(start..end)
    }

    /// True when adding `offset` alone would take more memory.
    #[must_use]
    pub fn would_grow(&self, offset: u64) -> bool {
        let is_near = |offset: u64| self.contains(offset);
        !self.dense.contains_key(&(offset / WINDOW))
            && !is_near(offset)
            && !offset.checked_sub(1).is_some_and(is_near)
            && !offset.checked_add(1).is_some_and(is_near)
    }

    /// The first offset from `from` on that is not in the set.
    #[must_use]
    pub fn next_gap(&self, from: u64) -> u64 {
        let mut at = from;
        loop {
            let number = at / WINDOW;
            if let Some(bits) = self.dense.get(&number) {
                match bits.next_clear(at % WINDOW) {
                    Some(bit) => return number * WINDOW + bit,
                    None => at = window(number).end,
                }
            } else if let Some(run) = self.run_at(at) {
                at = run.end;
            } else {
                return at;
            }
        }
    }

    /// Forgets all below `offset`.
    pub fn remove_below(&mut self, offset: u64) {
        while let Some(first) = self.runs.first_entry() {
            let (start, end) = (*first.key(), *first.get());
            if start >= offset {
                break;
            }
            first.remove();
            self.covered -= end.min(offset) - start;
            if end > offset {
                self.runs.insert(offset, end);
            }
        }
        while let Some(mut first) = self.dense.first_entry() {
            let window = window(*first.key());
            if window.start >= offset {
                break;
            }
            let gone = 0..offset.min(window.end) - window.start;
            self.covered -= first.get_mut().clear(gone);
            if !first.get().is_empty() {
                break;
            }
            first.remove();
        }
    }

    /// Forgets all from `offset` on.
    pub fn remove_from(&mut self, offset: u64) {
        while let Some(mut last) = self.runs.last_entry() {
            let (start, end) = (*last.key(), *last.get());
            if end <= offset {
                break;
            }
            self.covered -= end - start.max(offset);
            if start < offset {
                *last.get_mut() = offset;
                break;
            }
            last.remove();
        }
        while let Some(mut last) = self.dense.last_entry() {
            let window = window(*last.key());
            if window.end <= offset {
                break;
            }
            let gone = offset.max(window.start) - window.start..WINDOW;
            self.covered -= last.get_mut().clear(gone);
            if !last.get().is_empty() {
                break;
            }
            last.remove();
        }
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// How many offsets are in the set.
    #[must_use]
    pub fn covered(&self) -> u64 {
        self.covered
    }

    /// How many ranges.
    #[must_use]
    pub fn len(&self) -> usize {
        let mut count = self.runs.len();
        for (number, bits) in &self.dense {
            count += bits.runs();
            let window = window(*number);
            // Those over the edges were counted twice.
            let joins_before = bits.has(0) && window.start > 0 && self.contains(window.start - 1);
            let joins_after = bits.has(WINDOW - 1) && self.runs.contains_key(&window.end);
            count -= usize::from(joins_before) + usize::from(joins_after);
        }
        count
    }

    /// The memory that it takes, in ranges.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.runs.len() + self.dense.len() * BITMAP_WEIGHT
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.covered == 0
    }

    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut runs = self.runs.iter().map(|(&s, &e)| s..e).peekable();
        let dense = self.dense.iter();
        let mut dense = dense
            .flat_map(|(number, bits)| bits.iter(number * WINDOW))
            .peekable();
        let mut piece = move || match (runs.peek(), dense.peek()) {
            (Some(run), Some(other)) if run.start < other.start => runs.next(),
            (Some(_), None) => runs.next(),
            _ => dense.next(),
        };
        let mut held: Option<Range<u64>> = None;
        std::iter::from_fn(move || {
            loop {
                match (held.take(), piece()) {
                    (Some(before), Some(next)) if before.end == next.start => {
                        held = Some(before.start..next.end);
                    }
                    (Some(before), next) => {
                        held = next;
                        return Some(before);
                    }
                    (None, Some(next)) => held = Some(next),
                    (None, None) => return None,
                }
            }
        })
    }

    /// Offsets of the set that lie in `among`, in O(ranges in it).
    #[must_use]
    pub fn covered_in(&self, among: Range<u64>) -> u64 {
        if among.is_empty() {
            return 0;
        }
        let first = self.run_at(among.start).map_or(among.start, |r| r.start);
        let runs = self.runs.range(first..among.end);
        let in_runs: u64 = runs
            .map(|(&s, &e)| e.min(among.end).saturating_sub(s.max(among.start)))
            .sum();
        let numbers = among.start / WINDOW..=(among.end - 1) / WINDOW;
        let in_dense = self.dense.range(numbers).map(|(number, bits)| {
            let window = window(*number);
            let part = among.start.max(window.start)..among.end.min(window.end);
            bits.count_in(part.start - window.start..part.end - window.start)
        });
        in_runs + in_dense.sum::<u64>()
    }
}

#[cfg(test)]
mod tests;
