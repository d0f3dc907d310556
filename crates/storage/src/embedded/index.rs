//! Where every durable entry is: in the log (one row per run) or in a segment file (one row per
//! ledger and file; the file has its own index).
//!
//! Owns the ledgers' durable ends and their writers' observers. What must hold: rows of a ledger are
//! gapless and in order, first the sorted ranges and then the log rows; an entry is here only when
//! it is as durable as the setting asks.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use geminga_model::{EntryId, LedgerId};
use parking_lot::Mutex;

use crate::wal::log_segment::LogSegment;
use crate::wal::queue::{LedgerTail, RecordPlace};
use crate::wal::record::{RECORD_HEADER_BYTES, RecordKind, lengths_bytes};
use crate::{AppendObserver, LedgerEnd, ReadLimits};

/// Runs that touch each other in the log share a row up to this size.
const ROW_BYTES_MAX: u32 = 64 << 10;

/// A ledger's writer, as the completion thread knows it.
pub(super) struct Appender {
    pub(super) tail: LedgerTail,
    pub(super) observer: Arc<dyn AppendObserver>,
}

/// Consecutive entries in one segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SortedRange {
    pub(super) first: i64,
    pub(super) file: u32,
    /// Payload, for the accounting of dead files.
    pub(super) bytes: u32,
}

/// Records in the log which touch each other and hold consecutive entries.
#[derive(Clone, Copy, Debug)]
struct LogRow {
    first: i64,
    count: u32,
    /// The segment's generation.
    segment: u32,
    offset: u32,
    bytes: u32,
}

impl LogRow {
    fn end(&self) -> i64 {
        self.first + i64::from(self.count)
    }
}

#[derive(Default)]
struct Ledger {
    entries: i64,
    bytes: u64,
    sorted: Vec<SortedRange>,
    log: VecDeque<LogRow>,
    writer: Option<Arc<Appender>>,
    touched: u64,
}

/// A piece of a log segment that holds whole records.
#[derive(Clone, Debug)]
pub(super) struct LogExtent {
    pub(super) segment: Arc<LogSegment>,
    pub(super) offset: u64,
    pub(super) bytes: usize,
}

/// Where to read.
#[derive(Debug)]
pub(super) enum ReadPlan {
    NoLedger,
    Nothing,
    Log(Vec<LogExtent>),
    File { file: u32 },
}

#[derive(Default)]
pub(super) struct LedgerIndex {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    ledgers: HashMap<i64, Ledger>,
    segments: BTreeMap<u32, Arc<LogSegment>>,
    commits: u64,
    touched: Vec<i64>,
}

/// Whom to tell what.
pub(super) type Notices = Vec<(Arc<Appender>, EntryId)>;

impl LedgerIndex {
    pub(super) fn add_segment(&self, segment: Arc<LogSegment>) {
        self.inner
            .lock()
            .segments
            .insert(segment.generation as u32, segment);
    }

    /// Later reads do not find the segment; those under way hold it.
    pub(super) fn remove_segment(&self, generation: u64) -> Option<Arc<LogSegment>> {
        self.inner.lock().segments.remove(&(generation as u32))
    }

    pub(super) fn create(&self, writer: Arc<Appender>) {
        let id = writer.tail.ledger.0;
        let ledger = Ledger {
            writer: Some(writer),
            ..Ledger::default()
        };
        self.inner.lock().ledgers.insert(id, ledger);
    }

    pub(super) fn writer(&self, ledger: LedgerId) -> Option<Arc<Appender>> {
        self.inner.lock().ledgers.get(&ledger.0)?.writer.clone()
    }

    /// The writer's handle is gone, nobody is told any more. With entries in flight the writer
    /// stays, so that `recover` waits for them: its answer may not change afterwards.
    pub(super) fn detach(&self, ledger: LedgerId) {
        if let Some(ledger) = self.inner.lock().ledgers.get_mut(&ledger.0) {
            let durable = ledger.entries;
            ledger
                .writer
                .take_if(|writer| writer.tail.last().0 < durable);
        }
    }

    /// All ledgers that have something, for whoever looks for forgotten ones.
    pub(super) fn ledgers(&self) -> Vec<LedgerId> {
        self.inner
            .lock()
            .ledgers
            .keys()
            .map(|id| LedgerId(*id))
            .collect()
    }

    pub(super) fn end(&self, ledger: LedgerId) -> LedgerEnd {
        let inner = self.inner.lock();
        inner
            .ledgers
            .get(&ledger.0)
            .map_or_else(LedgerEnd::default, |ledger| LedgerEnd {
                entries: ledger.entries as u64,
                bytes: ledger.bytes,
            })
    }

    /// Takes the ledger out; gives its ranges in files and its writer.
    pub(super) fn delete(&self, ledger: LedgerId) -> (Vec<SortedRange>, Option<Arc<Appender>>) {
        match self.inner.lock().ledgers.remove(&ledger.0) {
            Some(ledger) => (ledger.sorted, ledger.writer),
            None => (Vec::new(), None),
        }
    }

    /// A commit is durable: its runs become readable. Says who has to be told, once per ledger.
    pub(super) fn committed(
        &self,
        segment: &LogSegment,
        offset: u64,
        records: &[RecordPlace],
        notices: &mut Notices,
    ) {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        inner.commits += 1;
        for place in records.iter().filter(|place| place.kind == RecordKind::Run) {
            // Deleted in the meantime: nobody asks for it any more.
            let Some(ledger) = inner.ledgers.get_mut(&place.ledger.0) else {
                continue;
            };
            ledger.append(segment.generation as u32, offset, place);
            if ledger.touched != inner.commits {
                ledger.touched = inner.commits;
                inner.touched.push(place.ledger.0);
            }
        }
        for id in inner.touched.drain(..) {
            let Some(ledger) = inner.ledgers.get(&id) else {
                continue;
            };
            if let Some(writer) = &ledger.writer {
                notices.push((writer.clone(), EntryId(ledger.entries - 1)));
            }
        }
    }

    /// A run found in the log at open. `Err` gives the entry which was due.
    pub(super) fn replay_run(&self, generation: u64, place: &RecordPlace) -> Result<(), EntryId> {
        let mut inner = self.inner.lock();
        let entries = inner
            .ledgers
            .get(&place.ledger.0)
            .map_or(0, |ledger| ledger.entries);
        if place.first.0 != entries {
            return Err(EntryId(entries));
        }
        let ledger = inner.ledgers.entry(place.ledger.0).or_default();
        ledger.append(generation as u32, 0, place);
        Ok(())
    }

    /// The same in a repair: what is missing before the run stays missing. A run that is there
    /// already is passed over.
    pub(super) fn replay_behind_gap(&self, generation: u64, place: &RecordPlace) {
        let mut inner = self.inner.lock();
        let ledger = inner.ledgers.entry(place.ledger.0).or_default();
        if place.first.0 >= ledger.entries {
            ledger.append(generation as u32, 0, place);
        }
    }

    /// Where a ledger goes on behind a gap in the log, if `first` lies in one. Only a repair meets
    /// gaps.
    pub(super) fn log_resumes(&self, id: LedgerId, first: EntryId) -> Option<EntryId> {
        let inner = self.inner.lock();
        let ledger = inner.ledgers.get(&id.0)?;
        if first.0 < ledger.sorted_end() && !ledger.sorted.is_empty() {
            return None;
        }
        let next = ledger.log.partition_point(|row| row.end() <= first.0);
        let row = ledger.log.get(next)?;
        (row.first > first.0).then_some(EntryId(row.first))
    }

    /// A ledger's part in the segment files, from the checkpoint.
    pub(super) fn restore(&self, id: LedgerId, entries: i64, bytes: u64, sorted: Vec<SortedRange>) {
        let ledger = Ledger {
            entries,
            bytes,
            sorted,
            ..Ledger::default()
        };
        self.inner.lock().ledgers.insert(id.0, ledger);
    }

    /// Writers which wait for entries that are not durable.
    pub(super) fn waiting_writers(&self) -> Vec<Arc<Appender>> {
        let inner = self.inner.lock();
        let waiting = |ledger: &Ledger| {
            let writer = ledger.writer.as_ref()?;
            (writer.tail.last().0 >= ledger.entries).then(|| writer.clone())
        };
        inner.ledgers.values().filter_map(waiting).collect()
    }

    pub(super) fn plan(&self, id: LedgerId, first: EntryId, limits: ReadLimits) -> ReadPlan {
        let inner = self.inner.lock();
        let Some(ledger) = inner.ledgers.get(&id.0) else {
            return ReadPlan::NoLedger;
        };
        let first = first.0.max(0);
        if first >= ledger.entries {
            return ReadPlan::Nothing;
        }
        let sorted_end = ledger.sorted_end();
        if first < sorted_end {
            let after = ledger.sorted.partition_point(|range| range.first <= first);
            return match after
                .checked_sub(1)
                .and_then(|index| ledger.sorted.get(index))
            {
                Some(range) => ReadPlan::File { file: range.file },
                None => ReadPlan::Nothing,
            };
        }
        let mut extents: Vec<LogExtent> = Vec::new();
        let (mut entries, mut bytes) = (0_usize, 0_usize);
        let start = ledger.log.partition_point(|row| row.end() <= first);
        for row in ledger.log.range(start..) {
            if !limits.admit(entries, bytes, row.bytes as usize) {
                break;
            }
            let Some(segment) = inner.segments.get(&row.segment) else {
                break;
            };
            entries += (row.end() - row.first.max(first)) as usize;
            bytes += row.bytes as usize;
            extents.push(LogExtent {
                segment: segment.clone(),
                offset: u64::from(row.offset),
                bytes: row.bytes as usize,
            });
        }
        ReadPlan::Log(extents)
    }

    /// What of a ledger moves from the log, up to a generation, into a segment file. False: the
    /// ledger is gone.
    pub(super) fn sorted(&self, id: LedgerId, generation: u64, range: SortedRange) -> bool {
        let mut inner = self.inner.lock();
        let Some(ledger) = inner.ledgers.get_mut(&id.0) else {
            return false;
        };
        // Most ledgers are in one file and stay so: no room for more.
        ledger.sorted.reserve_exact(match ledger.sorted.len() {
            0 => 1,
            len if len == ledger.sorted.capacity() => len,
            _ => 0,
        });
        ledger.sorted.push(range);
        while ledger
            .log
            .front()
            .is_some_and(|row| row.segment <= generation as u32)
        {
            ledger.log.pop_front();
        }
        if ledger.log.is_empty() || ledger.log.capacity() > 4 * (ledger.log.len() + 4) {
            let len = ledger.log.len();
            ledger.log.shrink_to(len);
        }
        true
    }

    /// Whether the ledger still exists.
    pub(super) fn contains(&self, ledger: LedgerId) -> bool {
        self.inner.lock().ledgers.contains_key(&ledger.0)
    }

    /// A ledger's parts of some files are in another file now. Gives them; none if the ledger is
    /// gone or was moved before.
    pub(super) fn moved(&self, id: LedgerId, from: &[u32], to: u32) -> Vec<SortedRange> {
        let mut inner = self.inner.lock();
        let Some(ledger) = inner.ledgers.get_mut(&id.0) else {
            return Vec::new();
        };
        let mut moved = Vec::new();
        for range in ledger
            .sorted
            .iter_mut()
            .filter(|range| from.contains(&range.file))
        {
            range.file = to;
            moved.push(*range);
        }
        moved
    }

    /// Every ledger's part in the segment files, in small helpings so that the lock is held briefly.
    pub(super) fn each_sorted(&self, mut each: impl FnMut(LedgerId, i64, u64, &[SortedRange])) {
        const HELPING: usize = 512;
        let mut ids: Vec<i64> = {
            let inner = self.inner.lock();
            let sorted = inner
                .ledgers
                .iter()
                .filter(|(_, ledger)| !ledger.sorted.is_empty());
            sorted.map(|(id, _)| *id).collect()
        };
        ids.sort_unstable();
        for helping in ids.chunks(HELPING) {
            let inner = self.inner.lock();
            for id in helping {
                let Some(ledger) = inner.ledgers.get(id) else {
                    continue;
                };
                let bytes = ledger
                    .sorted
                    .iter()
                    .map(|range| u64::from(range.bytes))
                    .sum();
                each(LedgerId(*id), ledger.sorted_end(), bytes, &ledger.sorted);
            }
        }
    }
}

impl Ledger {
    /// The entry after the last one in a segment file.
    fn sorted_end(&self) -> i64 {
        self.log.front().map_or(self.entries, |row| row.first)
    }

    fn append(&mut self, generation: u32, base: u64, place: &RecordPlace) {
        let offset = base as u32 + place.offset;
        let count = i64::from(place.count);
        let payload =
            place.bytes as usize - RECORD_HEADER_BYTES - lengths_bytes(place.count as usize);
        self.entries = place.first.0 + count;
        self.bytes += payload as u64;
        if let Some(row) = self.log.back_mut()
            && row.segment == generation
            && row.end() == place.first.0
            && row.offset + row.bytes == offset
            && row.bytes + place.bytes <= ROW_BYTES_MAX
        {
            row.bytes += place.bytes;
            row.count += place.count;
            return;
        }
        self.log.push_back(LogRow {
            first: place.first.0,
            count: place.count,
            segment: generation,
            offset,
            bytes: place.bytes,
        });
    }
}
