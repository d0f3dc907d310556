//! Writes one segment file. Entries come sorted by ledger and entry.

use std::io;
use std::sync::Arc;

use geminga_model::{EntryId, LedgerId};
use geminga_stdx::Random;

use super::format::{BlockRow, Footer, Index, LedgerRow, encode_header};
use crate::disk::{AlignedBuf, BLOCK_BYTES as DISK_BLOCK_BYTES, Disk, DiskFile, Open};
use crate::wal::record::{RecordHeader, RecordKind, Salt, entry_ranges, lengths_bytes, seal};

/// A run is closed when it has this much: what a small read must read, and one index row.
const BLOCK_BYTES: usize = 64 << 10;
/// Runs of the log from here on are blocks as they are: one copy, and no new checksum.
const WHOLE_RUN_BYTES: usize = BLOCK_BYTES / 4;
/// Larger ones are cut, so that one of their entries is not dear to read, if cutting helps.
const WHOLE_RUN_BYTES_MAX: usize = 4 * BLOCK_BYTES;
/// Between two writes the log gets its turn at the disk.
const WRITE_BYTES: usize = 512 << 10;
/// Offsets in the index have 32 bits; a file stays far below.
const FILE_BYTES_MAX: u64 = 3 << 30;

pub fn segment_file_name(file: u32) -> String {
    format!("seg-{file:08}")
}

pub fn segment_file_number(name: &str) -> Option<u32> {
    name.strip_prefix("seg-")?.parse().ok()
}

/// What was written of one ledger, without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrittenRange {
    pub ledger: LedgerId,
    pub first: EntryId,
    pub count: u32,
    pub payload_bytes: u64,
}

pub struct SegmentWriter {
    file: Arc<dyn DiskFile>,
    salt: Salt,
    /// What is not written yet, and where it goes.
    buf: AlignedBuf,
    flushed: u64,
    index: Index,
    ranges: Vec<WrittenRange>,
    block: Block,
}

#[derive(Default)]
struct Block {
    first: i64,
    lengths: Vec<u32>,
    data: Vec<u8>,
}

impl SegmentWriter {
    pub fn create(disk: &dyn Disk, file: u32) -> io::Result<Self> {
        let salt = Salt(Random::from_entropy().next_u64());
        let mut buf = AlignedBuf::with_capacity(WRITE_BYTES + 2 * BLOCK_BYTES);
        buf.extend(&encode_header(file, salt));
        Ok(Self {
            file: disk.open(&segment_file_name(file), Open::Create)?,
            salt,
            buf,
            flushed: 0,
            index: Index::default(),
            ranges: Vec::new(),
            block: Block::default(),
        })
    }

    /// Entries of a ledger must come in order; a gap begins a new row.
    pub fn push(&mut self, ledger: LedgerId, entry: EntryId, data: &[u8]) -> io::Result<()> {
        let block_full = !self.block.data.is_empty()
            && self.block.data.len() + data.len() > BLOCK_BYTES
            || self.block.lengths.len() >= BLOCK_BYTES / 4;
        if block_full {
            self.finish_block()?;
        }
        self.continue_range(ledger, entry, 1, data.len() as u64)?;
        if self.block.lengths.is_empty() {
            self.block.first = entry.0;
        }
        self.block.lengths.push(data.len() as u32);
        self.block.data.extend_from_slice(data);
        Ok(())
    }

    /// The same for a run of the log that was verified.
    pub fn push_run(&mut self, header: &RecordHeader, body: &[u8]) -> io::Result<()> {
        let entries_are_large = body.len() / header.count.max(1) as usize >= BLOCK_BYTES;
        let is_block = body.len() >= WHOLE_RUN_BYTES
            && (body.len() <= WHOLE_RUN_BYTES_MAX || entries_are_large);
        if !is_block {
            let unreadable = |error| io::Error::new(io::ErrorKind::InvalidData, error);
            let ranges = entry_ranges(header, body).map_err(unreadable)?;
            for (entry, range) in (header.first.0..).zip(ranges.into_ranges()) {
                self.push(header.ledger, EntryId(entry), &body[range])?;
            }
            return Ok(());
        }
        self.finish_block()?;
        let payload = body.len() - lengths_bytes(header.count as usize);
        self.continue_range(header.ledger, header.first, header.count, payload as u64)?;
        let start = self.buf.len();
        self.buf.extend(&header.encode());
        self.buf.extend(body);
        self.seal_block(start, header.first)
    }

    /// Counts entries that follow, in a new row where they do not continue the last one.
    fn continue_range(
        &mut self,
        ledger: LedgerId,
        first: EntryId,
        count: u32,
        payload_bytes: u64,
    ) -> io::Result<()> {
        let continues = self.ranges.last().is_some_and(|range| {
            range.ledger == ledger && range.first.0 + i64::from(range.count) == first.0
        });
        if !continues {
            self.finish_block()?;
            let block = self.index.blocks.len() as u32;
            self.index.ledgers.push(LedgerRow {
                ledger,
                first,
                count: 0,
                block,
            });
            self.ranges.push(WrittenRange {
                ledger,
                first,
                count: 0,
                payload_bytes: 0,
            });
        }
        if let Some(range) = self.ranges.last_mut() {
            range.count += count;
            range.payload_bytes += payload_bytes;
        }
        Ok(())
    }

    /// Writes the rest and syncs the file; its name is the caller's to sync. Gives the file's size
    /// and what it holds.
    pub fn finish(mut self) -> io::Result<(u64, Vec<WrittenRange>)> {
        self.finish_block()?;
        let data_end = self.flushed + self.buf.len() as u64;
        if data_end > FILE_BYTES_MAX {
            return Err(io::Error::other("a segment file would be too large"));
        }
        for (row, range) in self.index.ledgers.iter_mut().zip(&self.ranges) {
            row.count = range.count;
        }
        let index = self.index.encode();
        let footer = Footer {
            ledgers: self.index.ledgers.len() as u32,
            blocks: self.index.blocks.len() as u32,
            data_end,
            index_checksum: crc_fast::crc32_iscsi(&index),
        };
        self.buf.extend(&index);
        self.buf.extend(&footer.encode());
        self.flush()?;
        self.file.write_at(self.buf.as_slice(), self.flushed)?;
        self.file.sync()?;
        let size = self.flushed + self.buf.len() as u64;
        Ok((size, self.ranges))
    }

    fn finish_block(&mut self) -> io::Result<()> {
        let Some(range) = self
            .ranges
            .last()
            .filter(|_| !self.block.lengths.is_empty())
        else {
            return Ok(());
        };
        let first = EntryId(self.block.first);
        let start = self.buf.len();
        let table = lengths_bytes(self.block.lengths.len());
        let mut header = RecordHeader {
            kind: RecordKind::Run,
            ledger: range.ledger,
            first,
            count: self.block.lengths.len() as u32,
            body_bytes: (table + self.block.data.len()) as u32,
            body_checksum: 0,
        };
        self.buf.extend(&header.encode());
        let body = self.buf.len();
        if table > 0 {
            for length in &self.block.lengths {
                self.buf.extend(&length.to_le_bytes());
            }
        }
        self.buf.extend(&self.block.data);
        header.body_checksum = crc_fast::crc32_iscsi(&self.buf.as_slice()[body..]);
        self.buf.as_mut_slice()[start..body].copy_from_slice(&header.encode());
        self.block.lengths.clear();
        self.block.data.clear();
        self.seal_block(start, first)
    }

    /// Ends the block whose record lies at `start` of the buffer.
    fn seal_block(&mut self, start: usize, first: EntryId) -> io::Result<()> {
        let offset = self.flushed + start as u64;
        seal(&mut self.buf.as_mut_slice()[start..], self.salt, offset);
        let range_first = self.ranges.last().map_or(first, |range| range.first);
        self.index.blocks.push(BlockRow {
            first: (first.0 - range_first.0) as u32,
            offset: offset as u32,
        });
        if self.buf.len() >= WRITE_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    /// Writes what fills whole blocks of the disk; the rest stays.
    fn flush(&mut self) -> io::Result<()> {
        let whole = self.buf.len() / DISK_BLOCK_BYTES * DISK_BLOCK_BYTES;
        self.file
            .write_at(&self.buf.as_slice()[..whole], self.flushed)?;
        self.flushed += whole as u64;
        self.buf.drop_front(whole);
        Ok(())
    }
}
