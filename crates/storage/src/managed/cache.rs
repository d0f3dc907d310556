//! The tail cache: the bytes just appended, so that consumers that keep up need no read.
//!
//! Each topic holds its own runs, under its own lock; this module holds the budget over all topics
//! and chooses who gives way. A slice pins the whole read buffer that it was cut from, so runs
//! are charged with the buffers that they may pin, and small runs are copied instead. A buffer that
//! several runs were cut from is charged once, with the oldest of them that is still here.

use crate::ledger::{Entry, ReadLimits};
use bytes::Bytes;
use geminga_model::{EntryId, Position};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Weak;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// What an entry costs beside its bytes, as a slice and where it was copied.
const SLICE_OVERHEAD_BYTES: usize = 40;
const PACKED_OVERHEAD_BYTES: usize = size_of::<u32>();
/// What a run costs beside its entries.
const RUN_OVERHEAD_BYTES: usize = 96;
/// The size of the buffers that connections read into; a slice may pin that much.
const READ_BUFFER_BYTES: usize = 64 << 10;
/// Slices farther apart than this are taken to come from different buffers.
const SAME_BUFFER_GAP_BYTES: usize = 4 << 10;

/// The budget of all topics' tails, with counters.
pub(crate) struct TailBudget {
    max: usize,
    used: AtomicUsize,
    /// Topics that hold something, in the order in which they are asked to give way.
    holders: Mutex<VecDeque<Weak<dyn Evict>>>,
    pub(crate) hits: AtomicU64,
    pub(crate) misses: AtomicU64,
    /// Entries that came from the store, not from a tail.
    pub(crate) read_entries: AtomicU64,
    pub(crate) evicted_bytes: AtomicU64,
}

/// A topic that can give memory back.
pub(crate) trait Evict: Send + Sync {
    /// Drops its oldest runs until it gave back so many bytes, or half of them. None when it is busy
    /// now; else whether it still holds any.
    fn evict(&self, bytes: usize) -> Option<bool>;
}

impl TailBudget {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            max,
            used: AtomicUsize::new(0),
            holders: Mutex::default(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            read_entries: AtomicU64::new(0),
            evicted_bytes: AtomicU64::new(0),
        }
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes memory; true when there is too much in use now, and `make_room` should be called.
    pub(crate) fn take(&self, bytes: usize) -> bool {
        self.used.fetch_add(bytes, Ordering::Relaxed) + bytes > self.max
    }

    pub(crate) fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Called when a topic's tail is no longer empty.
    pub(crate) fn enlist(&self, holder: Weak<dyn Evict>) {
        self.holders.lock().push_back(holder);
    }

    /// Lets topics give way, the one that waited longest first, until there is room. The caller
    /// holds no topic's lock.
    pub(crate) fn make_room(&self) {
        let Some(mut holders) = self.holders.try_lock() else {
            return;
        };
        let mut turns = 2 * holders.len();
        let most = self.max - self.max / 16;
        while let over = self.used().saturating_sub(most)
            && over > 0
            && turns > 0
        {
            turns -= 1;
            let Some(next) = holders.pop_front() else {
                return;
            };
            match next.upgrade().map(|holder| holder.evict(over)) {
                Some(Some(false)) | None => {}
                Some(Some(true) | None) => holders.push_back(next),
            }
        }
    }
}

/// The runs of one topic, oldest first, without gaps.
#[derive(Default)]
pub(crate) struct Tail {
    runs: VecDeque<Run>,
    /// Where in memory the last run ends, if it is a slice of what was read.
    end: Option<usize>,
    /// True while the budget knows of this topic.
    pub(crate) is_enlisted: bool,
}

struct Run {
    /// The offset of the first entry.
    first: u64,
    position: Position,
    kept: Kept,
    /// What it gives back.
    charge: usize,
    /// What is charged for the buffer of its first entry, here or, with `shares`, with an older run.
    buffer: usize,
    shares: bool,
}

/// What a run costs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Charge {
    own: usize,
    /// What may be pinned beside it in the buffer of its first entry.
    buffer: usize,
}

impl Charge {
    /// All of it, as it is before anything is known of the runs before.
    pub(crate) fn bytes(self) -> usize {
        self.own + self.buffer
    }
}

/// What became of a run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Pushed {
    /// The tail was empty, and unknown to the budget.
    pub(crate) is_new: bool,
    /// Bytes of its charge that an older run is charged with.
    pub(crate) shared: usize,
}

/// The bytes of a run, made before the topic's lock is taken.
pub(crate) enum Kept {
    One(Bytes),
    /// Copied together; where each entry ends.
    Packed(Bytes, Box<[u32]>),
    Slices(Box<[Bytes]>),
}

impl Kept {
    /// Runs below `copy_below` bytes are copied.
    pub(crate) fn new(entries: &[Bytes], copy_below: usize) -> (Self, Charge) {
        let bytes: usize = entries.iter().map(Bytes::len).sum();
        if bytes >= copy_below {
            let (pinned, buffer) = pinned(entries);
            let charge = Charge {
                own: pinned + RUN_OVERHEAD_BYTES + entries.len() * SLICE_OVERHEAD_BYTES,
                buffer,
            };
            let kept = match entries {
                [one] => Self::One(one.clone()),
                many => Self::Slices(many.into()),
            };
            return (kept, charge);
        }
        let charge = Charge {
            own: bytes + RUN_OVERHEAD_BYTES + entries.len() * PACKED_OVERHEAD_BYTES,
            buffer: 0,
        };
        let mut packed = Vec::with_capacity(bytes);
        if let [one] = entries {
            packed.extend_from_slice(one);
            return (Self::One(packed.into()), charge);
        }
        let ends = entries
            .iter()
            .map(|entry| {
                packed.extend_from_slice(entry);
                packed.len() as u32
            })
            .collect();
        (Self::Packed(packed.into(), ends), charge)
    }

    /// Where it begins and ends in memory, unless it was copied together.
    fn place(&self) -> Option<(usize, usize)> {
        let start = |entry: &Bytes| entry.as_ptr() as usize;
        let (first, last) = match self {
            Self::One(one) => (one, one),
            Self::Packed(..) => return None,
            Self::Slices(slices) => (slices.first()?, slices.last()?),
        };
        Some((start(first), start(last) + last.len()))
    }

    fn len(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Packed(_, ends) => ends.len(),
            Self::Slices(slices) => slices.len(),
        }
    }

    fn get(&self, index: usize) -> Bytes {
        match self {
            Self::One(one) => one.clone(),
            Self::Packed(bytes, ends) => {
                let start = index
                    .checked_sub(1)
                    .map_or(0, |before| ends[before] as usize);
                bytes.slice(start..ends[index] as usize)
            }
            Self::Slices(slices) => slices[index].clone(),
        }
    }
}

/// What these slices may keep alive: their bytes and one read buffer's rest for each buffer, apart from
/// the rest of the first one's.
fn pinned(entries: &[Bytes]) -> (usize, usize) {
    let (mut own, mut buffer) = (0, 0);
    let mut end_of_last = None;
    for entry in entries {
        let start = entry.as_ptr() as usize;
        let rest = READ_BUFFER_BYTES.saturating_sub(entry.len());
        match end_of_last {
            None => buffer = rest,
            Some(end) if is_same_buffer(end, start) => {}
            Some(_) => own += rest,
        }
        own += entry.len();
        end_of_last = Some(start + entry.len());
    }
    (own, buffer)
}

fn is_same_buffer(end: usize, start: usize) -> bool {
    start.wrapping_sub(end) <= SAME_BUFFER_GAP_BYTES
}

impl Tail {
    /// Adds the newest run.
    pub(crate) fn push(
        &mut self,
        first: u64,
        position: Position,
        kept: Kept,
        charge: Charge,
    ) -> Pushed {
        let Charge { own, buffer } = charge;
        let place = kept.place().filter(|_| buffer > 0);
        // The last run is still here, so nothing else lies where it ends.
        let shares = !self.runs.is_empty()
            && self
                .end
                .zip(place)
                .is_some_and(|(end, (start, _))| is_same_buffer(end, start));
        self.end = place.map(|(_, end)| end);
        let shared = if shares { buffer } else { 0 };
        self.runs.push_back(Run {
            first,
            position,
            kept,
            charge: own + buffer - shared,
            buffer,
            shares,
        });
        Pushed {
            is_new: !std::mem::replace(&mut self.is_enlisted, true),
            shared,
        }
    }

    /// Entries from `from` to before `end`; none when `from` is not here.
    pub(crate) fn read(&self, from: u64, end: u64, limits: ReadLimits) -> Option<Vec<Entry>> {
        let at = self.runs.partition_point(|run| run.first <= from);
        let at = at.checked_sub(1)?;
        let run = &self.runs[at];
        let mut index = usize::try_from(from - run.first).ok()?;
        if index >= run.kept.len() {
            return None;
        }
        let left = usize::try_from(end.saturating_sub(from)).unwrap_or(usize::MAX);
        let mut found = Vec::with_capacity(left.min(limits.entries_max).min(256));
        let mut bytes = 0;
        for run in self.runs.range(at..) {
            for i in index..run.kept.len() {
                let data = run.kept.get(i);
                if run.first + i as u64 >= end || !limits.admit(found.len(), bytes, data.len()) {
                    return Some(found);
                }
                bytes += data.len();
                let position = Position {
                    ledger: run.position.ledger,
                    entry: EntryId(run.position.entry.0 + i as i64),
                };
                found.push(Entry { position, data });
            }
            index = 0;
        }
        Some(found)
    }

    /// Drops the oldest runs until so many bytes are given back, half of the runs at most; returns the
    /// bytes given back.
    pub(crate) fn drop_oldest(&mut self, bytes: usize) -> usize {
        let mut given_back = 0;
        for _ in 0..self.runs.len().div_ceil(2) {
            if given_back >= bytes {
                break;
            }
            let Some(run) = self.runs.pop_front() else {
                break;
            };
            given_back += run.charge;
            // The buffer lives as long as the last run that was cut from it.
            if let Some(next) = self.runs.front_mut()
                && std::mem::take(&mut next.shares)
            {
                let rest = next.buffer.min(given_back);
                next.charge += rest;
                given_back -= rest;
            }
        }
        given_back
    }

    pub(crate) fn clear(&mut self) -> usize {
        self.runs.drain(..).map(|run| run.charge).sum()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: ReadLimits = ReadLimits::new(usize::MAX, usize::MAX);

    fn entries(sizes: &[usize]) -> Vec<Bytes> {
        sizes
            .iter()
            .enumerate()
            .map(|(i, n)| Bytes::from(vec![i as u8; *n]))
            .collect()
    }

    #[test]
    fn reads_across_runs_within_limits() {
        let mut tail = Tail::default();
        let mut all = Vec::new();
        for (i, sizes) in [&[3_usize, 4][..], &[20_000, 5], &[1], &[9; 5]]
            .iter()
            .enumerate()
        {
            let run = entries(sizes);
            let (kept, charge) = Kept::new(&run, 10_000);
            let position = Position::new(5, 100 + all.len() as i64);
            assert_eq!(
                tail.push(50 + all.len() as u64, position, kept, charge)
                    .is_new,
                i == 0
            );
            all.extend(run);
        }
        assert!(tail.read(49, 100, ALL).is_none());
        assert!(tail.read(60, 100, ALL).is_none());
        for from in 50..60_u64 {
            for end in from..60 {
                for max in [1, 3, 100] {
                    let found = tail
                        .read(from, end, ReadLimits::new(max, usize::MAX))
                        .unwrap();
                    let skip = (from - 50) as usize;
                    let count = ((end - from) as usize).min(max);
                    assert_eq!(found.len(), count);
                    for (entry, wanted) in found.iter().zip(&all[skip..]) {
                        assert_eq!(entry.data, wanted);
                    }
                    if let Some(first) = found.first() {
                        assert_eq!(first.position, Position::new(5, 100 + skip as i64));
                    }
                }
            }
        }
        assert_eq!(tail.read(51, 99, ReadLimits::new(9, 10)).unwrap().len(), 1);
        assert!(tail.drop_oldest(usize::MAX) > 20_000);
        assert!(tail.read(53, 99, ALL).is_none());
        assert_eq!(tail.read(54, 99, ALL).unwrap().len(), 6);
    }

    #[test]
    fn slices_are_charged_with_the_buffers_they_pin() {
        let buffer = Bytes::from(vec![0; READ_BUFFER_BYTES]);
        let near: Vec<Bytes> = (0..4)
            .map(|i| buffer.slice(i * 1000..i * 1000 + 900))
            .collect();
        let all = |entries: &[Bytes]| {
            let (own, buffer) = pinned(entries);
            own + buffer
        };
        assert_eq!(all(&near[..1]), READ_BUFFER_BYTES);
        assert_eq!(all(&near), READ_BUFFER_BYTES + 3 * 900);
        let other = Bytes::from(vec![0; READ_BUFFER_BYTES]).slice(10..20);
        let both = [near[0].clone(), other];
        assert_eq!(all(&both), 2 * READ_BUFFER_BYTES);
        let (_, charge) = Kept::new(&near, usize::MAX);
        assert!(charge.bytes() < 4000, "a copy pins nothing else");
    }

    #[test]
    fn a_buffer_is_charged_once_as_long_as_one_of_its_runs_is_here() {
        let buffers: Vec<Bytes> = (0..3)
            .map(|_| Bytes::from(vec![0; READ_BUFFER_BYTES]))
            .collect();
        // Three runs of each buffer, of four entries each.
        let runs: Vec<Vec<Bytes>> = (0..9)
            .map(|n| {
                let entry = |i| {
                    let at = (n % 3 * 4 + i) * 1000;
                    buffers[n / 3].slice(at..at + 900)
                };
                (0..4).map(entry).collect()
            })
            .collect();
        let own = 4 * (900 + SLICE_OVERHEAD_BYTES) + RUN_OVERHEAD_BYTES;
        let rest = READ_BUFFER_BYTES - 900;
        let mut tail = Tail::default();
        let mut used = 0;
        let push = |tail: &mut Tail, n: usize| {
            let (kept, charge) = Kept::new(&runs[n], 0);
            let position = Position::new(1, 4 * n as i64);
            charge.bytes() - tail.push(4 * n as u64, position, kept, charge).shared
        };
        for n in 0..9 {
            used += push(&mut tail, n);
            assert_eq!(used, (n + 1) * own + (n / 3 + 1) * rest, "run {n}");
        }
        for left in (1..9).rev() {
            used -= tail.drop_oldest(1);
            let first = (9 - left) / 3;
            assert_eq!(used, left * own + (3 - first) * rest, "{left} left");
        }
        assert_eq!(used - tail.drop_oldest(1), 0);
        // What lies there now is not known to be the same buffer any more.
        assert_eq!(push(&mut tail, 1), own + rest);
        assert_eq!(tail.clear(), own + rest);
    }

    #[test]
    fn no_more_is_dropped_than_is_asked_for_and_half_at_most() {
        let mut tail = Tail::default();
        let mut one = 0;
        for n in 0..16_u64 {
            let (kept, charge) = Kept::new(&entries(&[1000]), usize::MAX);
            one = charge.bytes();
            tail.push(n, Position::new(1, n as i64), kept, charge);
        }
        assert_eq!(tail.drop_oldest(0), 0);
        assert_eq!(tail.drop_oldest(2 * one - 1), 2 * one);
        assert!(tail.read(1, 16, ALL).is_none());
        assert_eq!(tail.read(2, 16, ALL).unwrap().len(), 14);
        assert_eq!(tail.drop_oldest(usize::MAX), 7 * one);
    }
}
