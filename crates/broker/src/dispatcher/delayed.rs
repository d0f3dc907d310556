//! Entries that may not be delivered before their time (Shared and Key_Shared).
//!
//! Held in memory only: an entry stays unacked until delivered, so after a restart it is read again.
//! There may be millions, so they are kept small: what comes is collected in a heap, and a full heap
//! becomes a *run*, sorted by time and written as differences. What is due next is the first of the
//! heap or of some run. About 8 bytes an entry, and no timer.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use geminga_model::Position;

/// Entries in the heap before it becomes a run.
const YOUNG_MAX: usize = 8 << 10;
/// Bytes read of a run that are worth giving back.
const WASTE_MIN: usize = 4 << 10;

/// When, where, and the hash of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Item {
    at_ms: u64,
    position: Position,
    hash: u32,
}

impl Default for Item {
    fn default() -> Item {
        Item {
            at_ms: 0,
            position: Position::new(0, 0),
            hash: 0,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Delayed {
    young: BinaryHeap<Reverse<Item>>,
    /// The next item of each run, and which run.
    heads: BinaryHeap<Reverse<(Item, usize)>>,
    /// A finished run is empty until its place is taken by another.
    runs: Vec<Run>,
    free: Vec<usize>,
    len: usize,
}

impl Delayed {
    pub(crate) fn insert(&mut self, at_ms: u64, position: Position, hash: u32) {
        self.young.push(Reverse(Item {
            at_ms,
            position,
            hash,
        }));
        self.len += 1;
        if self.young.len() >= YOUNG_MAX {
            self.settle();
        }
    }

    /// When the next entry is due.
    pub(crate) fn next_ms(&self) -> Option<u64> {
        let young = self.young.peek().map(|Reverse(item)| item.at_ms);
        let old = self.heads.peek().map(|Reverse((item, _))| item.at_ms);
        match (young, old) {
            (Some(young), Some(old)) => Some(young.min(old)),
            (one, other) => one.or(other),
        }
    }

    /// The next entry whose time is at or before `cutoff_ms`, with its key hash.
    pub(crate) fn pop_due(&mut self, cutoff_ms: u64) -> Option<(Position, u32)> {
        let young = self.young.peek().map(|Reverse(item)| *item);
        let old = self.heads.peek().map(|Reverse(head)| *head);
        let item = match (young, old) {
            (None, None) => return None,
            (Some(young), Some((old, run))) if old < young => self.pop_old(old, run, cutoff_ms)?,
            (None, Some((old, run))) => self.pop_old(old, run, cutoff_ms)?,
            (Some(young), _) => {
                if young.at_ms > cutoff_ms {
                    return None;
                }
                self.young.pop();
                young
            }
        };
        self.len -= 1;
        if self.len == 0 {
            self.clear();
        }
        Some((item.position, item.hash))
    }

    fn pop_old(&mut self, item: Item, run: usize, cutoff_ms: u64) -> Option<Item> {
        if item.at_ms > cutoff_ms {
            return None;
        }
        self.heads.pop();
        match self.runs[run].next() {
            Some(next) => self.heads.push(Reverse((next, run))),
            None => {
                self.runs[run] = Run::default();
                self.free.push(run);
            }
        }
        Some(item)
    }

    fn settle(&mut self) {
        let mut items: Vec<Item> = self.young.drain().map(|Reverse(item)| item).collect();
        items.sort_unstable();
        let mut run = Run::new(&items);
        let Some(first) = run.next() else {
            return;
        };
        let at = match self.free.pop() {
            Some(at) => {
                self.runs[at] = run;
                at
            }
            None => {
                self.runs.push(run);
                self.runs.len() - 1
            }
        };
        self.heads.push(Reverse((first, at)));
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn clear(&mut self) {
        *self = Delayed::default();
    }

    #[cfg(test)]
    fn bytes(&self) -> usize {
        let runs: usize = self.runs.iter().map(|run| run.bytes.capacity()).sum();
        runs + self.runs.capacity() * size_of::<Run>()
            + self.heads.capacity() * size_of::<Reverse<(Item, usize)>>()
            + self.young.capacity() * size_of::<Item>()
    }
}

/// Sorted items, each as its differences from the one before.
#[derive(Debug, Default)]
struct Run {
    bytes: Vec<u8>,
    /// What is before was read.
    at: usize,
    last: Item,
}

impl Run {
    fn new(sorted: &[Item]) -> Run {
        let mut bytes = Vec::with_capacity(sorted.len() * 8);
        let mut last = Item::default();
        for item in sorted {
            let (to, from) = (item.position, last.position);
            put(&mut bytes, item.at_ms - last.at_ms);
            put(&mut bytes, zigzag(to.ledger.0.wrapping_sub(from.ledger.0)));
            put(&mut bytes, zigzag(to.entry.0.wrapping_sub(from.entry.0)));
            put(&mut bytes, item.hash.into());
            last = *item;
        }
        bytes.shrink_to_fit();
        Run {
            bytes,
            ..Run::default()
        }
    }

    fn next(&mut self) -> Option<Item> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let mut number = || {
            let mut value = 0;
            for shift in (0..64).step_by(7) {
                let byte = self.bytes.get(self.at).copied().unwrap_or(0);
                self.at += 1;
                value |= u64::from(byte & 0x7F) << shift;
                if byte < 0x80 {
                    break;
                }
            }
            value
        };
        let at_ms = self.last.at_ms + number();
        let ledger = self.last.position.ledger.0.wrapping_add(unzigzag(number()));
        let entry = self.last.position.entry.0.wrapping_add(unzigzag(number()));
        self.last = Item {
            at_ms,
            position: Position::new(ledger, entry),
            hash: number() as u32,
        };
        if self.at >= WASTE_MIN && self.at * 2 > self.bytes.len() {
            self.bytes = self.bytes[self.at..].to_vec();
            self.at = 0;
        }
        Some(self.last)
    }
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_due_comes_in_order_and_once(
            times in prop::collection::vec((0..50u64, 0..u64::from(u32::MAX), 0..70_000u32), 1..200),
            step in 1..20u64,
            settle in 1..50usize,
        ) {
            let mut delayed = Delayed::default();
            let mut model = Vec::new();
            let mut got = Vec::new();
            for (n, (at, entry, hash)) in times.iter().enumerate() {
                let position = Position::new(*at as i64 * 3, *entry as i64);
                delayed.insert(*at, position, *hash);
                model.push((*at, position, *hash));
                if n % settle == 0 {
                    delayed.settle();
                }
            }
            model.sort_unstable();
            for now in (0..50 + step).step_by(step as usize) {
                prop_assert_eq!(delayed.next_ms(), model.get(got.len()).map(|item| item.0));
                while let Some((position, hash)) = delayed.pop_due(now) {
                    let expected = model[got.len()];
                    prop_assert!(expected.0 <= now);
                    prop_assert_eq!((position, hash), (expected.1, expected.2));
                    got.push(position);
                }
                prop_assert!(model.get(got.len()).is_none_or(|item| item.0 > now));
                prop_assert_eq!(delayed.len(), model.len() - got.len());
            }
            prop_assert_eq!(got.len(), model.len());
        }
    }

    #[test]
    fn a_million_take_less_than_ten_bytes_each_and_what_is_popped_is_given_back() {
        let mut delayed = Delayed::default();
        let mut random = geminga_stdx::Random::new(7);
        let count: usize = 1_000_000;
        for n in 0..count {
            // Any time of the next hour, on a Shared subscription.
            let at = 1_700_000_000_000 + random.below(3_600_000);
            delayed.insert(at, Position::new(1 + n as i64 / 50_000, n as i64), 0);
        }
        let full = delayed.bytes();
        assert!(full < count * 10, "{full} bytes");
        for _ in 0..count * 3 / 4 {
            delayed.pop_due(u64::MAX).unwrap();
        }
        assert!(delayed.bytes() < full * 6 / 10, "{}", delayed.bytes());
        while delayed.pop_due(u64::MAX).is_some() {}
        assert_eq!(delayed.bytes(), 0);
    }
}
