//! The tail cache: the bytes just appended, so that consumers that keep up need no read.
//!
//! Each topic holds its own runs, under its own lock; this module holds the budget over all topics
//! and chooses who gives way. A slice pins the whole buffer that it was cut from, so small runs are
//! copied, and others are charged with that buffer, which whoever read into it names (`ReadBuffer`): once,
//! however many runs of however many topics were cut from it, and as long as one of them is here. Runs
//! whose buffer nobody names are copied.

use crate::ledger::{Entry, ReadLimits};
use bytes::Bytes;
use geminga_model::{EntryId, Position};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

/// What an entry costs beside its bytes, as a slice and where it was copied.
const SLICE_OVERHEAD_BYTES: usize = 40;
const PACKED_OVERHEAD_BYTES: usize = size_of::<u32>();
/// What a run costs beside its entries.
const RUN_OVERHEAD_BYTES: usize = 96;
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

/// The memory that entries were read into, as who reads knows it.
#[derive(Debug, Clone)]
pub struct ReadBuffer(Arc<Memory>);

#[derive(Debug)]
struct Memory {
    start: usize,
    bytes: usize,
    /// Runs of all tails that keep it.
    runs: AtomicUsize,
}

impl ReadBuffer {
    /// Memory from this address on.
    #[must_use]
    pub fn new(start: usize, bytes: usize) -> Self {
        Self(Arc::new(Memory {
            start,
            bytes,
            runs: AtomicUsize::new(0),
        }))
    }

    /// Where it begins, and how much it is.
    #[must_use]
    pub fn place(&self) -> (usize, usize) {
        (self.0.start, self.0.bytes)
    }

    fn has(&self, entry: &Bytes) -> bool {
        let offset = (entry.as_ptr() as usize).wrapping_sub(self.0.start);
        offset < self.0.bytes
    }

    /// One more run keeps it; what is to be charged for that.
    fn keep(&self) -> usize {
        match self.0.runs.fetch_add(1, Ordering::AcqRel) {
            0 => self.0.bytes,
            _ => 0,
        }
    }

    /// One run less; what is given back.
    fn let_go(&self) -> usize {
        match self.0.runs.fetch_sub(1, Ordering::AcqRel) {
            1 => self.0.bytes,
            _ => 0,
        }
    }

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// The runs of one topic, oldest first, without gaps.
#[derive(Default)]
pub(crate) struct Tail {
    runs: VecDeque<Run>,
    /// True while the budget knows of this topic.
    pub(crate) is_enlisted: bool,
}

struct Run {
    /// The offset of the first entry.
    first: u64,
    position: Position,
    kept: Kept,
}

/// A run as it is kept, made before the topic's lock is taken. Whoever drops one gives back what
/// `let_go` says.
pub(crate) struct Kept {
    entries: Entries,
    /// What it costs, apart from its buffer.
    charge: usize,
    buffer: Option<ReadBuffer>,
}

enum Entries {
    One(Bytes),
    /// Copied together; where each entry ends.
    Packed(Bytes, Box<[u32]>),
    Slices(Box<[Bytes]>),
}

impl Kept {
    /// Runs below `copy_below` bytes are copied, and so are those whose buffer is not known. Returned with
    /// what is to be charged.
    pub(crate) fn new(
        entries: &[Bytes],
        copy_below: usize,
        buffer: Option<&ReadBuffer>,
    ) -> (Self, usize) {
        let bytes: usize = entries.iter().map(Bytes::len).sum();
        let Some(buffer) = buffer.filter(|_| bytes >= copy_below) else {
            let kept = Self {
                entries: Entries::copied(entries, bytes),
                charge: bytes + RUN_OVERHEAD_BYTES + entries.len() * PACKED_OVERHEAD_BYTES,
                buffer: None,
            };
            let charge = kept.charge;
            return (kept, charge);
        };
        // What was written anew on its way here has memory of its own.
        let apart: usize = entries
            .iter()
            .filter(|entry| !buffer.has(entry))
            .map(Bytes::len)
            .sum();
        let kept = Self {
            entries: match entries {
                [one] => Entries::One(one.clone()),
                many => Entries::Slices(many.into()),
            },
            charge: apart + RUN_OVERHEAD_BYTES + entries.len() * SLICE_OVERHEAD_BYTES,
            buffer: (apart < bytes).then(|| buffer.clone()),
        };
        let charge = kept.charge + kept.buffer.as_ref().map_or(0, ReadBuffer::keep);
        (kept, charge)
    }

    /// It is kept no longer; what is given back.
    pub(crate) fn let_go(self) -> usize {
        self.charge + self.buffer.as_ref().map_or(0, ReadBuffer::let_go)
    }
}

impl Entries {
    fn copied(entries: &[Bytes], bytes: usize) -> Self {
        let mut packed = Vec::with_capacity(bytes);
        if let [one] = entries {
            packed.extend_from_slice(one);
            return Self::One(packed.into());
        }
        let ends = entries
            .iter()
            .map(|entry| {
                packed.extend_from_slice(entry);
                packed.len() as u32
            })
            .collect();
        Self::Packed(packed.into(), ends)
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

impl Tail {
    /// Adds the newest run; true when the budget is to be told of this topic.
    pub(crate) fn push(&mut self, first: u64, position: Position, kept: Kept) -> bool {
        self.runs.push_back(Run {
            first,
            position,
            kept,
        });
        !std::mem::replace(&mut self.is_enlisted, true)
    }

    /// Entries from `from` to before `end`; none when `from` is not here.
    pub(crate) fn read(&self, from: u64, end: u64, limits: ReadLimits) -> Option<Vec<Entry>> {
        let at = self.runs.partition_point(|run| run.first <= from);
        let at = at.checked_sub(1)?;
        let run = &self.runs[at];
        let mut index = usize::try_from(from - run.first).ok()?;
        if index >= run.kept.entries.len() {
            return None;
        }
        let left = usize::try_from(end.saturating_sub(from)).unwrap_or(usize::MAX);
        let mut found = Vec::with_capacity(left.min(limits.entries_max).min(256));
        let mut bytes = 0;
        for run in self.runs.range(at..) {
            for i in index..run.kept.entries.len() {
                let data = run.kept.entries.get(i);
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
    /// bytes given back. Buffers that other topics keep count as if they were: of those each drops its part.
    pub(crate) fn drop_oldest(&mut self, bytes: usize) -> usize {
        let (mut given_back, mut left_to_others) = (0, 0);
        for _ in 0..self.runs.len().div_ceil(2) {
            if given_back + left_to_others >= bytes {
                break;
            }
            let Some(Run { kept, .. }) = self.runs.pop_front() else {
                break;
            };
            let (charge, buffer) = (kept.charge, kept.buffer.clone());
            let freed = kept.let_go();
            given_back += freed;
            if let Some(buffer) = buffer
                && freed == charge
            {
                let next = self.runs.front().and_then(|run| run.kept.buffer.as_ref());
                let is_here = next.is_some_and(|next| next.is(&buffer));
                left_to_others += if is_here { 0 } else { buffer.place().1 };
            }
        }
        given_back
    }

    pub(crate) fn clear(&mut self) -> usize {
        self.runs.drain(..).map(|run| run.kept.let_go()).sum()
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

    fn push(tail: &mut Tail, first: u64, entries: &[Bytes], buffer: Option<&ReadBuffer>) -> usize {
        let (kept, charge) = Kept::new(entries, 100, buffer);
        tail.push(first, Position::new(1, first as i64), kept);
        charge
    }

    /// Memory, and as who read into it knows it.
    fn memory(bytes: usize) -> (Bytes, ReadBuffer) {
        let memory = Bytes::from(vec![0; bytes]);
        let buffer = ReadBuffer::new(memory.as_ptr() as usize, bytes);
        (memory, buffer)
    }

    #[test]
    fn reads_across_runs_within_limits() {
        let mut tail = Tail::default();
        let mut all = Vec::new();
        let (large, buffer) = memory(20_000);
        for (i, run) in [
            entries(&[3, 4]),
            vec![large, Bytes::from_static(b"apart")],
            entries(&[1]),
            entries(&[9; 5]),
        ]
        .iter()
        .enumerate()
        {
            let (kept, _) = Kept::new(run, 10_000, Some(&buffer));
            let position = Position::new(5, 100 + all.len() as i64);
            let is_new = tail.push(50 + all.len() as u64, position, kept);
            assert_eq!(is_new, i == 0);
            all.extend(run.clone());
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

    /// A slice keeps all of the memory that it was cut from, however much that is.
    #[test]
    fn a_run_is_charged_with_what_it_keeps() {
        for bytes in [8 << 10, 64 << 10, 256 << 10, 5 << 20] {
            let (memory, buffer) = memory(bytes);
            let one = memory.slice(1000..1900);
            let apart = Bytes::from(vec![0; 300]);
            for (run, copy_below, known, wanted) in [
                (vec![one.clone()], 100, true, bytes + SLICE_OVERHEAD_BYTES),
                (
                    vec![one.clone(), apart.clone()],
                    100,
                    true,
                    bytes + 300 + 2 * SLICE_OVERHEAD_BYTES,
                ),
                // Nothing of the buffer.
                (vec![apart], 100, true, 300 + SLICE_OVERHEAD_BYTES),
                // Copies keep nothing else.
                (vec![one.clone()], 901, true, 900 + PACKED_OVERHEAD_BYTES),
                (
                    vec![one.clone(), one],
                    100,
                    false,
                    1800 + 2 * PACKED_OVERHEAD_BYTES,
                ),
            ] {
                let (kept, charge) = Kept::new(&run, copy_below, known.then_some(&buffer));
                assert_eq!(charge, wanted + RUN_OVERHEAD_BYTES, "{bytes} {run:?}");
                assert_eq!(kept.let_go(), charge);
            }
        }
    }

    /// Buffers of which several runs of several topics were cut: what is charged is what they take in memory,
    /// whatever is dropped in whatever order.
    #[test]
    fn a_buffer_is_charged_once_as_long_as_one_of_its_runs_is_here() {
        const BUFFER: usize = 256 << 10;
        let buffers: Vec<(Bytes, ReadBuffer)> = (0..6).map(|_| memory(BUFFER)).collect();
        let own = 4 * SLICE_OVERHEAD_BYTES + RUN_OVERHEAD_BYTES;
        let mut tails = [Tail::default(), Tail::default()];
        let held = |tails: &[Tail]| {
            let buffers = buffers.iter().filter(|(_, buffer)| {
                let runs = tails.iter().flat_map(|tail| &tail.runs);
                let mut kept = runs.filter_map(|run| run.kept.buffer.as_ref());
                kept.any(|kept| kept.is(buffer))
            });
            let runs: usize = tails.iter().map(|tail| tail.runs.len()).sum();
            runs * own + buffers.count() * BUFFER
        };
        let mut used = 0;
        let mut count = 0;
        for (memory, buffer) in &buffers {
            // Two of the one, then one of the other.
            for (n, topic) in [0, 0, 1].into_iter().enumerate() {
                let entry = |i| memory.slice((4 * n + i) * 1000..(4 * n + i) * 1000 + 900);
                let run: Vec<Bytes> = (0..4).map(entry).collect();
                used += push(&mut tails[topic], count, &run, Some(buffer));
                count += 4;
                assert_eq!(used, held(&tails));
            }
        }
        // What the other topic keeps is not given back, and counts for this one's part.
        assert_eq!(tails[0].drop_oldest(2 * BUFFER), 4 * own);
        used -= 4 * own;
        assert_eq!(used, held(&tails));
        let given_back = tails[1].drop_oldest(2 * BUFFER);
        assert_eq!(given_back, 2 * (own + BUFFER));
        used -= given_back;
        for topic in [1, 0, 1, 0, 0, 1, 0] {
            used -= tails[topic].drop_oldest(1);
            assert_eq!(used, held(&tails), "{topic}");
        }
        used -= tails[0].clear();
        assert_eq!(used, held(&tails));
        used -= tails[1].clear();
        assert_eq!(used, 0);
    }

    #[test]
    fn no_more_is_dropped_than_is_asked_for_and_half_at_most() {
        let mut tail = Tail::default();
        let mut one = 0;
        for n in 0..16_u64 {
            one = push(&mut tail, n, &entries(&[1000]), None);
        }
        assert_eq!(tail.drop_oldest(0), 0);
        assert_eq!(tail.drop_oldest(2 * one - 1), 2 * one);
        assert!(tail.read(1, 16, ALL).is_none());
        assert_eq!(tail.read(2, 16, ALL).unwrap().len(), 14);
        assert_eq!(tail.drop_oldest(usize::MAX), 7 * one);
    }
}
