//! The thread that writes the log.
//!
//! Budget, measured by `examples/log_bench.rs`:
//! - copies per payload byte: one, by the caller into the batch (`queue.rs`); the writer adds none;
//! - allocations: none per entry or run; buffers and row lists are reused;
//! - one write per group (and one `fdatasync` where the file system has no O_DSYNC);
//! - wake-ups: at most one of the writer and one of the completion thread per group; a lone append
//!   is completed by the writer itself, which saves the second;
//! - idle: the thread is parked without a timer.
//!
//! What must hold: one write is in flight at a time, so that only the last commit can be torn; a
//! failed write or sync ends the log for good.

use std::io;
use std::sync::Arc;

use super::log_segment::LogSegment;
use super::queue::{Batch, Queue, RecordPlace};
use super::record::{COMMIT_HEADER_BYTES, CommitHeader, seal};
use crate::disk::BLOCK_BYTES;

/// A commit that is as durable as the setting asks.
#[derive(Debug)]
pub struct Committed {
    pub segment: Arc<LogSegment>,
    /// Where the commit begins in its segment; the places count from here.
    pub offset: u64,
    pub records: Vec<RecordPlace>,
    /// Records before this number are durable.
    pub next_record: u64,
}

/// What the writer needs from its surroundings.
pub trait WriterHost: Send + 'static {
    /// The next segment, after `full`. `None`: the store closes.
    fn next_segment(&mut self, full: &Arc<LogSegment>, bytes: u64) -> Option<Arc<LogSegment>>;
    /// Told in order. With `more`, the next batch is waiting: do not hold the writer up.
    fn committed(&mut self, committed: Committed, more: bool);
    /// A row list to reuse.
    fn spare_records(&mut self) -> Vec<RecordPlace>;
    /// The log has ended.
    fn failed(&mut self, segment: &LogSegment, error: io::Error);
}

pub struct Writer<H> {
    pub queue: Arc<Queue>,
    pub host: H,
    pub segment: Arc<LogSegment>,
    pub next_commit: u64,
    /// `fsync`: commits are durable when told. Otherwise they are in the page cache.
    pub durable: bool,
}

impl<H: WriterHost> Writer<H> {
    /// Writes until the queue is closed and drained, or the log fails.
    pub fn run(mut self) {
        while let Some(mut batch) = self.queue.next_batch() {
            let bytes = span(batch.buf.len(), self.durable);
            if !self.make_room(bytes as u64) {
                self.queue.fail();
                let error = io::Error::other("no further log file could be made");
                self.host.failed(&self.segment, error);
                return;
            }
            let offset = self.segment.end();
            if let Err(error) = self.write(&mut batch, offset, bytes) {
                self.queue.fail();
                self.host.failed(&self.segment, error);
                return;
            }
            self.segment.set_end(offset + bytes as u64);
            self.next_commit += 1;
            let next_record = batch.first_record + batch.records.len() as u64;
            let records = std::mem::replace(&mut batch.records, self.host.spare_records());
            let more = self.queue.give_back(batch);
            let committed = Committed {
                segment: self.segment.clone(),
                offset,
                records,
                next_record,
            };
            self.host.committed(committed, more);
        }
    }

    fn make_room(&mut self, bytes: u64) -> bool {
        while self.segment.end() + bytes > self.segment.size {
            let wanted = bytes + super::log_segment::SEGMENT_START;
            match self.host.next_segment(&self.segment, wanted) {
                Some(segment) => self.segment = segment,
                None => return false,
            }
        }
        true
    }

    fn write(&mut self, batch: &mut Batch, offset: u64, bytes: usize) -> io::Result<()> {
        let salt = self.segment.salt;
        let header = CommitHeader {
            commit: self.next_commit,
            first_record: batch.first_record,
            records: batch.records.len() as u32,
            body_bytes: (batch.buf.len() - COMMIT_HEADER_BYTES) as u32,
            span: bytes as u32,
        };
        batch.buf.resize(bytes);
        let buf = batch.buf.as_mut_slice();
        buf[..COMMIT_HEADER_BYTES].copy_from_slice(&header.encode(salt, offset));
        for place in &batch.records {
            let at = place.offset as usize;
            seal(
                &mut buf[at..at + place.bytes as usize],
                salt,
                offset + at as u64,
            );
        }
        self.segment.file.write_at(buf, offset)?;
        if self.durable && !self.segment.file.syncs_itself() {
            self.segment.file.sync()?;
        }
        Ok(())
    }
}

/// A durable commit fills whole blocks: what was acknowledged is never written again, so a later
/// torn write cannot hurt it. Without that promise commits lie close together.
pub fn span(bytes: usize, durable: bool) -> usize {
    bytes.next_multiple_of(if durable { BLOCK_BYTES } else { 8 })
}
