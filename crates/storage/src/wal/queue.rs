//! What is appended and not yet written: whole commits in the making, bounded in bytes.
//!
//! Callers copy their records straight into the aligned buffer which the writer hands to the disk,
//! under one short lock: that is the one copy of a payload, and the lock's order is the order of
//! the log. While the writer writes one batch, the next fills: group commit without a timer.
//!
//! What must hold: record numbers follow the order of the buffers; after [`Queue::fail`] nothing is
//! taken any more, for good.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use bytes::Bytes;
use geminga_model::{EntryId, LedgerId};
use parking_lot::{Condvar, Mutex};

use super::record::{
    COMMIT_HEADER_BYTES, RECORD_HEADER_BYTES, RecordHeader, RecordKind, lengths_bytes,
};
use crate::disk::AlignedBuf;

/// A batch takes no further record when it has this much: larger writes gain nothing.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_BYTES_FIRST: usize = 64 << 10;
/// Batches kept for reuse; one is being written, one filled.
const SPARES_MAX: usize = 2;
/// A spare buffer this much larger than what was lately used is given back.
const SPARE_SHRINK_AFTER: u32 = 256;

/// One commit in the making. The buffer begins with room for the commit's header.
#[derive(Debug, Default)]
pub struct Batch {
    pub buf: AlignedBuf,
    pub records: Vec<RecordPlace>,
    /// The number of the first record.
    pub first_record: u64,
    /// Bytes of all records.
    record_bytes: usize,
}

/// Where a record lies in its batch.
#[derive(Clone, Copy, Debug)]
pub struct RecordPlace {
    pub kind: RecordKind,
    pub ledger: LedgerId,
    pub first: EntryId,
    pub count: u32,
    pub offset: u32,
    pub bytes: u32,
}

/// The writing end of one ledger; its numbers change under the queue's lock only.
#[derive(Debug)]
pub struct LedgerTail {
    pub ledger: LedgerId,
    next: AtomicI64,
    fenced: AtomicBool,
}

impl LedgerTail {
    pub fn new(ledger: LedgerId) -> Self {
        Self {
            ledger,
            next: AtomicI64::new(0),
            fenced: AtomicBool::new(false),
        }
    }

    /// The last entry that was taken, durable or not.
    pub fn last(&self) -> EntryId {
        EntryId(self.next.load(Ordering::Acquire) - 1)
    }
}

/// Why a record was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The queue has its fill; later there is room.
    Busy,
    /// Too large for one record, or empty.
    Size,
    /// The ledger has been sealed, fenced or deleted.
    Fenced,
    /// The store is closing.
    Closed,
    /// The log failed before.
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Open,
    Closing,
    Failed,
}

pub struct Queue {
    inner: Mutex<Inner>,
    work: Condvar,
    bytes_max: usize,
}

struct Inner {
    batches: VecDeque<Batch>,
    /// In `batches` and in the writer's hands.
    bytes: usize,
    next_record: u64,
    writer_waits: bool,
    life: Life,
    spares: Vec<Batch>,
    small_batches: u32,
}

impl Queue {
    pub fn new(bytes_max: usize, next_record: u64) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                batches: VecDeque::new(),
                bytes: 0,
                next_record,
                writer_waits: false,
                life: Life::Open,
                spares: Vec::new(),
                small_batches: 0,
            }),
            work: Condvar::new(),
            bytes_max,
        })
    }

    /// Takes a run of entries: gives the first entry's id and the record's number.
    pub fn push_run(
        &self,
        tail: &LedgerTail,
        entries: &[Bytes],
    ) -> Result<(EntryId, u64), Refused> {
        // The checksum is computed before the lock; the number comes under it.
        let header = RecordHeader::run(tail.ledger, EntryId(0), entries).ok_or(Refused::Size)?;
        let mut inner = self.inner.lock();
        inner.room_for(header.record_bytes(), self.bytes_max)?;
        if tail.fenced.load(Ordering::Relaxed) {
            return Err(Refused::Fenced);
        }
        let first = EntryId(tail.next.load(Ordering::Relaxed));
        let header = RecordHeader { first, ..header };
        tail.next
            .store(first.0 + i64::from(header.count), Ordering::Release);
        let number = inner.push(&header, |buf| {
            if lengths_bytes(entries.len()) > 0 {
                for entry in entries {
                    buf.extend(&(entry.len() as u32).to_le_bytes());
                }
            }
            for entry in entries {
                buf.extend(entry);
            }
        });
        self.wake(inner);
        Ok((first, number))
    }

    /// Takes a record that is not a run: gives its number.
    pub fn push(&self, kind: RecordKind, ledger: LedgerId, body: &[u8]) -> Result<u64, Refused> {
        if body.len() > super::record::BODY_BYTES_MAX {
            return Err(Refused::Size);
        }
        let header = RecordHeader::plain(kind, ledger, body);
        let mut inner = self.inner.lock();
        // Entries must not shut out acks and metadata: those have as much room again.
        inner.room_for(header.record_bytes(), self.bytes_max.saturating_mul(2))?;
        let number = inner.push(&header, |buf| buf.extend(body));
        self.wake(inner);
        Ok(number)
    }

    /// No append to this ledger is taken from now on; gives the last one taken and the number
    /// which the next record will get.
    pub fn fence(&self, tail: &LedgerTail) -> (EntryId, u64) {
        let inner = self.inner.lock();
        tail.fenced.store(true, Ordering::Relaxed);
        (tail.last(), inner.next_record)
    }

    /// The number of the next record: all before it have been taken.
    pub fn next_record(&self) -> u64 {
        self.inner.lock().next_record
    }

    /// The writer's side: gives a written batch back, and tells whether more is waiting.
    pub fn give_back(&self, written: Batch) -> bool {
        let mut inner = self.inner.lock();
        inner.take_back(written);
        !inner.batches.is_empty()
    }

    /// The writer's side: waits for the next batch. `None`: closed and drained, or failed.
    pub fn next_batch(&self) -> Option<Batch> {
        let mut inner = self.inner.lock();
        loop {
            if inner.life == Life::Failed {
                return None;
            }
            if let Some(batch) = inner.batches.pop_front() {
                return Some(batch);
            }
            if inner.life == Life::Closing {
                return None;
            }
            inner.writer_waits = true;
            self.work.wait(&mut inner);
        }
    }

    /// Nothing new is taken; the writer drains what is there and ends.
    pub fn close(&self) {
        let mut inner = self.inner.lock();
        if inner.life == Life::Open {
            inner.life = Life::Closing;
        }
        self.wake(inner);
    }

    /// Nothing is taken or written any more. What waited is dropped.
    pub fn fail(&self) {
        let mut inner = self.inner.lock();
        inner.life = Life::Failed;
        inner.batches.clear();
        inner.spares.clear();
        self.wake(inner);
    }

    fn wake(&self, mut inner: parking_lot::MutexGuard<'_, Inner>) {
        let wake = std::mem::take(&mut inner.writer_waits);
        drop(inner);
        if wake {
            self.work.notify_one();
        }
    }
}

impl Inner {
    fn room_for(&self, record_bytes: usize, bytes_max: usize) -> Result<(), Refused> {
        match self.life {
            Life::Failed => Err(Refused::Failed),
            Life::Closing => Err(Refused::Closed),
            // One record is taken by an empty queue whatever the budget.
            Life::Open if self.bytes > 0 && self.bytes + record_bytes > bytes_max => {
                Err(Refused::Busy)
            }
            Life::Open => Ok(()),
        }
    }

    fn push(&mut self, header: &RecordHeader, body: impl FnOnce(&mut AlignedBuf)) -> u64 {
        let bytes = header.record_bytes();
        let fits = |batch: &Batch| batch.buf.len() + bytes <= BATCH_BYTES;
        if !self.batches.back().is_some_and(fits) {
            let mut batch = self.spares.pop().unwrap_or_default();
            batch.first_record = self.next_record;
            batch
                .buf
                .reserve((COMMIT_HEADER_BYTES + bytes).max(BATCH_BYTES_FIRST));
            batch.buf.resize(COMMIT_HEADER_BYTES);
            self.batches.push_back(batch);
        }
        let batch = self
            .batches
            .back_mut()
            .expect("one was pushed above if there was none");
        let offset = batch.buf.len();
        batch.buf.reserve(bytes);
        batch.buf.extend(&header.encode());
        body(&mut batch.buf);
        debug_assert_eq!(batch.buf.len() - offset, bytes);
        debug_assert_eq!(bytes - RECORD_HEADER_BYTES, header.body_bytes as usize);
        batch.records.push(RecordPlace {
            kind: header.kind,
            ledger: header.ledger,
            first: header.first,
            count: header.count,
            offset: offset as u32,
            bytes: bytes as u32,
        });
        batch.record_bytes += bytes;
        self.bytes += bytes;
        self.next_record += 1;
        self.next_record - 1
    }

    fn take_back(&mut self, mut batch: Batch) {
        let used = batch.buf.len();
        self.bytes -= batch.record_bytes;
        batch.record_bytes = 0;
        batch.buf.clear();
        batch.records.clear();
        let much_too_large = batch.buf.capacity() > BATCH_BYTES_FIRST.max(used * 8);
        self.small_batches = if much_too_large {
            self.small_batches + 1
        } else {
            0
        };
        if self.small_batches > SPARE_SHRINK_AFTER {
            self.spares.clear();
            self.small_batches = 0;
        } else if batch.buf.capacity() <= 2 * BATCH_BYTES && self.spares.len() < SPARES_MAX {
            self.spares.push(batch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(bytes: usize) -> Vec<Bytes> {
        vec![Bytes::from(vec![1; bytes])]
    }

    #[test]
    fn numbers_follow_the_order_of_calls_and_the_budget_holds() {
        let queue = Queue::new(10_000, 5);
        let (a, b) = (LedgerTail::new(LedgerId(1)), LedgerTail::new(LedgerId(2)));
        let three = [
            Bytes::from_static(b"x"),
            Bytes::new(),
            Bytes::from_static(b"yz"),
        ];
        assert_eq!(queue.push_run(&a, &three), Ok((EntryId(0), 5)));
        assert_eq!(queue.push_run(&b, &entries(10)), Ok((EntryId(0), 6)));
        assert_eq!(queue.push_run(&a, &entries(10)), Ok((EntryId(3), 7)));
        assert_eq!(queue.push(RecordKind::State, LedgerId(0), b"s"), Ok(8));
        assert_eq!(queue.push_run(&a, &entries(9_900)), Err(Refused::Busy));
        assert_eq!(
            queue.push(RecordKind::State, LedgerId(0), &[0; 9_900]),
            Ok(9)
        );
        assert_eq!(queue.fence(&a), (EntryId(3), 10));
        assert_eq!(queue.push_run(&a, &entries(1)), Err(Refused::Busy));

        let batch = queue.next_batch().unwrap();
        assert_eq!((batch.first_record, batch.records.len()), (5, 5));
        let end = batch
            .records
            .last()
            .map(|place| (place.offset + place.bytes) as usize);
        assert_eq!(end, Some(batch.buf.len()));
        queue.close();
        assert!(!queue.give_back(batch));
        assert!(queue.next_batch().is_none());
        assert_eq!(queue.push_run(&b, &entries(1)), Err(Refused::Closed));
    }

    #[test]
    fn a_fenced_ledger_takes_nothing_and_a_failed_queue_neither() {
        let queue = Queue::new(10_000, 0);
        let tail = LedgerTail::new(LedgerId(1));
        assert_eq!(queue.fence(&tail), (EntryId(-1), 0));
        assert_eq!(queue.push_run(&tail, &entries(1)), Err(Refused::Fenced));
        assert_eq!(queue.push_run(&tail, &[]), Err(Refused::Size));
        assert_eq!(queue.push(RecordKind::State, LedgerId(0), b"s"), Ok(0));
        queue.fail();
        assert!(queue.next_batch().is_none());
        assert_eq!(
            queue.push(RecordKind::State, LedgerId(0), b"s"),
            Err(Refused::Failed)
        );
    }

    #[test]
    fn a_large_record_is_a_batch_of_its_own_and_its_buffer_is_not_kept() {
        let queue = Queue::new(64 << 20, 0);
        let tail = LedgerTail::new(LedgerId(1));
        for bytes in [100, 5 << 20, 100, 200] {
            queue.push_run(&tail, &entries(bytes)).unwrap();
        }
        let mut counts = Vec::new();
        for _ in 0..3 {
            let batch = queue.next_batch().unwrap();
            counts.push(batch.records.len());
            queue.give_back(batch);
        }
        assert_eq!(counts, [1, 1, 2]);
        assert!(
            queue
                .inner
                .lock()
                .spares
                .iter()
                .all(|spare| spare.buf.capacity() < 3 << 20)
        );
    }
}
