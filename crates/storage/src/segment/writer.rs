//! Writes one segment file. Entries come sorted by ledger and entry.

use std::io;
use std::sync::Arc;

use geminga_model::{EntryId, LedgerId};
use geminga_stdx::Random;

use super::format::{BlockRow, Footer, Index, LedgerRow, encode_header};
use crate::disk::{Disk, DiskFile, Open};
use crate::wal::record::{RecordHeader, RecordKind, Salt, lengths_bytes, seal};

/// A run is closed when it has this much: what a small read must read, and one index row.
const BLOCK_BYTES: usize = 64 << 10;
const WRITE_BYTES: usize = 256 << 10;
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
    buf: Vec<u8>,
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
        Ok(Self {
            file: disk.open(&segment_file_name(file), Open::Create)?,
            salt,
            buf: encode_header(file, salt).to_vec(),
            flushed: 0,
            index: Index::default(),
            ranges: Vec::new(),
            block: Block::default(),
        })
    }

    /// Entries of a ledger must come in order; a gap begins a new row.
    pub fn push(&mut self, ledger: LedgerId, entry: EntryId, data: &[u8]) -> io::Result<()> {
        let continues = self.ranges.last().is_some_and(|range| {
            range.ledger == ledger && range.first.0 + i64::from(range.count) == entry.0
        });
        let block_full = !self.block.data.is_empty()
            && self.block.data.len() + data.len() > BLOCK_BYTES
            || self.block.lengths.len() >= BLOCK_BYTES / 4;
        if !continues || block_full {
            self.finish_block()?;
        }
        if !continues {
            let block = self.index.blocks.len() as u32;
            self.index.ledgers.push(LedgerRow {
                ledger,
                first: entry,
                count: 0,
                block,
            });
            let range = WrittenRange {
                ledger,
                first: entry,
                count: 0,
                payload_bytes: 0,
            };
            self.ranges.push(range);
        }
        if self.block.lengths.is_empty() {
            self.block.first = entry.0;
        }
        self.block.lengths.push(data.len() as u32);
        self.block.data.extend_from_slice(data);
        if let Some(range) = self.ranges.last_mut() {
            range.count += 1;
            range.payload_bytes += data.len() as u64;
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
        self.buf.extend(index);
        self.buf.extend(footer.encode());
        self.flush()?;
        self.file.sync()?;
        Ok((self.flushed, self.ranges))
    }

    fn finish_block(&mut self) -> io::Result<()> {
        let Some(range) = self
            .ranges
            .last()
            .filter(|_| !self.block.lengths.is_empty())
        else {
            return Ok(());
        };
        let offset = self.flushed + self.buf.len() as u64;
        let start = self.buf.len();
        let table = lengths_bytes(self.block.lengths.len());
        let mut header = RecordHeader {
            kind: RecordKind::Run,
            ledger: range.ledger,
            first: EntryId(self.block.first),
            count: self.block.lengths.len() as u32,
            body_bytes: (table + self.block.data.len()) as u32,
            body_checksum: 0,
        };
        self.buf.extend(header.encode());
        let body = self.buf.len();
        if table > 0 {
            self.buf.extend(
                self.block
                    .lengths
                    .iter()
                    .flat_map(|length| length.to_le_bytes()),
            );
        }
        self.buf.extend(&self.block.data);
        header.body_checksum = crc_fast::crc32_iscsi(&self.buf[body..]);
        self.buf[start..body].copy_from_slice(&header.encode());
        seal(&mut self.buf[start..], self.salt, offset);
        self.index.blocks.push(BlockRow {
            first: (self.block.first - range.first.0) as u32,
            offset: offset as u32,
        });
        self.block.lengths.clear();
        self.block.data.clear();
        if self.buf.len() >= WRITE_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_at(&self.buf, self.flushed)?;
        self.flushed += self.buf.len() as u64;
        self.buf.clear();
        Ok(())
    }
}
