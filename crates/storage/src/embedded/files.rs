//! The segment files of the store: which exist, how much of each is alive, and those held open.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;

use super::index::SortedRange;
use super::read::Collector;
use crate::StoreError;
use crate::disk::Disk;
use crate::segment::gc::{Choice, Usage, choose};
use crate::segment::reader::{SegmentFile, corrupt};

/// What one system call reads at most; entries are slices of such a piece.
const READ_BYTES_MAX: usize = 4 << 20;

pub(super) struct SegmentFiles {
    disk: Arc<dyn Disk>,
    open_max: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    files: BTreeMap<u32, FileState>,
    open: HashMap<u32, (Arc<SegmentFile>, u64)>,
    uses: u64,
    next: u32,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FileState {
    pub(super) size: u64,
    pub(super) payload_bytes: u64,
    live_bytes: u64,
    live_ranges: u64,
}

impl SegmentFiles {
    pub(super) fn new(disk: Arc<dyn Disk>, open_max: usize) -> Self {
        Self {
            disk,
            open_max,
            inner: Mutex::default(),
        }
    }

    /// A number that no file has had.
    pub(super) fn next_number(&self) -> u32 {
        let mut inner = self.inner.lock();
        inner.next += 1;
        inner.next
    }

    pub(super) fn last_number(&self) -> u32 {
        self.inner.lock().next
    }

    pub(super) fn set_last_number(&self, last: u32) {
        self.inner.lock().next = last;
    }

    pub(super) fn add(&self, file: u32, size: u64, payload_bytes: u64) {
        let state = FileState {
            size,
            payload_bytes,
            ..FileState::default()
        };
        self.inner.lock().files.insert(file, state);
    }

    /// A ledger that exists has this range.
    pub(super) fn alive(&self, range: &SortedRange) {
        if let Some(state) = self.inner.lock().files.get_mut(&range.file) {
            state.live_bytes += u64::from(range.bytes);
            state.live_ranges += 1;
        }
    }

    /// The ledger of these ranges is gone. True: there may be something to collect.
    pub(super) fn dead(&self, ranges: &[SortedRange]) -> bool {
        let mut inner = self.inner.lock();
        for range in ranges {
            if let Some(state) = inner.files.get_mut(&range.file) {
                state.live_bytes = state.live_bytes.saturating_sub(u64::from(range.bytes));
                state.live_ranges = state.live_ranges.saturating_sub(1);
            }
        }
        !ranges.is_empty()
    }

    pub(super) fn contains(&self, file: u32) -> bool {
        self.inner.lock().files.contains_key(&file)
    }

    pub(super) fn table(&self) -> Vec<(u32, FileState)> {
        self.inner
            .lock()
            .files
            .iter()
            .map(|(file, state)| (*file, *state))
            .collect()
    }

    pub(super) fn choose(&self) -> Choice {
        let usage = |(file, state): (u32, FileState)| Usage {
            file,
            payload_bytes: state.payload_bytes,
            live_bytes: state.live_bytes,
            live_ranges: state.live_ranges,
        };
        choose(&self.table().into_iter().map(usage).collect::<Vec<_>>())
    }

    /// Forgets a file; gives its size. Reads under way still have it open.
    pub(super) fn remove(&self, file: u32) -> u64 {
        let mut inner = self.inner.lock();
        inner.open.remove(&file);
        inner.files.remove(&file).map_or(0, |state| state.size)
    }

    pub(super) fn open(&self, file: u32) -> Result<Arc<SegmentFile>, StoreError> {
        {
            let mut inner = self.inner.lock();
            inner.uses += 1;
            let uses = inner.uses;
            if let Some((open, used)) = inner.open.get_mut(&file) {
                *used = uses;
                return Ok(open.clone());
            }
        }
        let opened = Arc::new(SegmentFile::open(self.disk.as_ref(), file)?);
        let mut inner = self.inner.lock();
        if inner.open.len() >= self.open_max {
            let oldest = inner
                .open
                .iter()
                .min_by_key(|(_, (_, used))| *used)
                .map(|(id, _)| *id);
            if let Some(oldest) = oldest {
                inner.open.remove(&oldest);
            }
        }
        let uses = inner.uses;
        if inner.files.contains_key(&file) {
            inner.open.insert(file, (opened.clone(), uses));
        }
        Ok(opened)
    }

    pub(super) fn read(&self, file: u32, collector: &mut Collector) -> Result<(), StoreError> {
        let segment = self.open(file)?;
        let (ledger, first) = (collector.ledger(), collector.next_entry());
        // Room for the headers and tables between the entries.
        let wanted = collector.rest().bytes_max;
        let bytes_max = wanted.saturating_add(wanted / 8).min(READ_BYTES_MAX);
        let Some((bytes, offset)) = segment.read(ledger, first, bytes_max, collector.gently)?
        else {
            let what = format!("entry `{ledger}:{first}` should be in it and is not");
            return Err(corrupt(&segment.place, 0, what));
        };
        collector
            .take(&bytes, segment.salt, offset)
            .map_err(|(offset, what)| corrupt(&segment.place, offset, what))
    }
}
