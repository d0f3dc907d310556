//! The checkpoint: what takes the place of the log up to some point. It is also the list of the
//! segment files that count.
//!
//! A file of blocks (`length, checksum, items`), written aside, synced, and renamed. The last item
//! says how many there were. What must hold: a checkpoint under its own name is whole; one that is
//! not is damage, and never a reason to use an older one in silence.

use std::io;
use std::sync::Arc;

use geminga_model::LedgerId;

use super::index::SortedRange;
use crate::StoreError;
use crate::disk::{Disk, DiskFile, Open};
use crate::wal::record::{RecordError, u32_at, u64_at};

pub(super) const TEMPORARY: &str = "checkpoint.tmp";
const BLOCK_HEADER_BYTES: usize = 8;
const BLOCK_BYTES: usize = 64 << 10;
/// A state machine's record in a snapshot is no longer.
const BLOCK_BYTES_MAX: usize = 64 << 20;
const MAGIC: &[u8; 8] = b"GMGCHK\x00\x01";

pub(super) fn checkpoint_name(number: u64) -> String {
    format!("checkpoint-{number:08}")
}

pub(super) fn checkpoint_number(name: &str) -> Option<u64> {
    name.strip_prefix("checkpoint-")?.parse().ok()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Begin {
    pub(super) number: u64,
    /// State records from this number on are replayed.
    pub(super) replay_record: u64,
    /// Log segments up to this generation are in segment files.
    pub(super) sorted_generation: u64,
    /// Where the log continued after those, if it had commits before.
    pub(super) next_commit: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    /// The log was durable up to here before the checkpoint got its name.
    pub(super) durable_record: u64,
    pub(super) reserved_ledgers: i64,
    pub(super) last_file: u32,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item<'a> {
    Begin(Begin),
    State(&'a [u8]),
    File {
        file: u32,
        size: u64,
        payload_bytes: u64,
    },
    Ledger {
        ledger: LedgerId,
        entries: i64,
        bytes: u64,
        ranges: Vec<SortedRange>,
    },
    End(End),
}

impl Item<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend([0; 5]);
        let kind = match self {
            Self::Begin(begin) => {
                out.extend(MAGIC);
                out.extend(begin.number.to_le_bytes());
                out.extend(begin.replay_record.to_le_bytes());
                out.extend(begin.sorted_generation.to_le_bytes());
                out.extend(begin.next_commit.to_le_bytes());
                1
            }
            Self::State(record) => {
                out.extend(*record);
                2
            }
            Self::File {
                file,
                size,
                payload_bytes,
            } => {
                out.extend(file.to_le_bytes());
                out.extend(size.to_le_bytes());
                out.extend(payload_bytes.to_le_bytes());
                3
            }
            Self::Ledger {
                ledger,
                entries,
                bytes,
                ranges,
            } => {
                out.extend(ledger.0.to_le_bytes());
                out.extend(entries.to_le_bytes());
                out.extend(bytes.to_le_bytes());
                for range in ranges {
                    out.extend(range.first.to_le_bytes());
                    out.extend(range.file.to_le_bytes());
                    out.extend(range.bytes.to_le_bytes());
                }
                4
            }
            Self::End(end) => {
                out.extend(end.durable_record.to_le_bytes());
                out.extend(end.reserved_ledgers.to_le_bytes());
                out.extend(end.last_file.to_le_bytes());
                5
            }
        };
        let length = (out.len() - start - 5) as u32;
        out[start] = kind;
        out[start + 1..start + 5].copy_from_slice(&length.to_le_bytes());
    }

    /// The item at the start of `bytes`, and its length there.
    pub(super) fn parse(bytes: &[u8]) -> Result<(Item<'_>, usize), RecordError> {
        let head = bytes.get(..5).ok_or(RecordError::Short)?;
        let end = (u32_at(head, 1) as usize)
            .checked_add(5)
            .ok_or(RecordError::Fields)?;
        let body = bytes.get(5..end).ok_or(RecordError::Short)?;
        let item = match (head[0], body.len()) {
            (1, 40) if &body[..8] == MAGIC => Item::Begin(Begin {
                number: u64_at(body, 8),
                replay_record: u64_at(body, 16),
                sorted_generation: u64_at(body, 24),
                next_commit: u64_at(body, 32),
            }),
            (2, _) => Item::State(body),
            (3, 20) => Item::File {
                file: u32_at(body, 0),
                size: u64_at(body, 4),
                payload_bytes: u64_at(body, 12),
            },
            (4, length) if length >= 24 && (length - 24) % 16 == 0 => Item::Ledger {
                ledger: LedgerId(u64_at(body, 0) as i64),
                entries: u64_at(body, 8) as i64,
                bytes: u64_at(body, 16),
                ranges: body[24..]
                    .chunks_exact(16)
                    .map(|range| SortedRange {
                        first: u64_at(range, 0) as i64,
                        file: u32_at(range, 8),
                        bytes: u32_at(range, 12),
                    })
                    .collect(),
            },
            (5, 20) => Item::End(End {
                durable_record: u64_at(body, 0),
                reserved_ledgers: u64_at(body, 8) as i64,
                last_file: u32_at(body, 16),
            }),
            _ => return Err(RecordError::Fields),
        };
        Ok((item, end))
    }
}

pub(super) struct CheckpointWriter {
    file: Arc<dyn DiskFile>,
    block: Vec<u8>,
    offset: u64,
    failed: Option<io::Error>,
}

impl CheckpointWriter {
    pub(super) fn create(disk: &dyn Disk) -> io::Result<Self> {
        let file = disk.open(TEMPORARY, Open::Create)?;
        Ok(Self {
            file,
            block: vec![0; BLOCK_HEADER_BYTES],
            offset: 0,
            failed: None,
        })
    }

    /// Errors are kept for [`Self::finish`], so that a state machine need not know of them.
    pub(super) fn push(&mut self, item: &Item<'_>) {
        item.encode(&mut self.block);
        if self.block.len() >= BLOCK_BYTES {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.failed.is_some() || self.block.len() == BLOCK_HEADER_BYTES {
            self.block.truncate(BLOCK_HEADER_BYTES);
            return;
        }
        let length = (self.block.len() - BLOCK_HEADER_BYTES) as u32;
        self.block[..4].copy_from_slice(&length.to_le_bytes());
        let checksum = block_checksum(self.offset, &self.block[BLOCK_HEADER_BYTES..]);
        self.block[4..8].copy_from_slice(&checksum.to_le_bytes());
        self.failed = self.file.write_at(&self.block, self.offset).err();
        self.offset += self.block.len() as u64;
        self.block.truncate(BLOCK_HEADER_BYTES);
        self.block.shrink_to(2 * BLOCK_BYTES);
    }

    /// Syncs the file; gives its size.
    pub(super) fn finish(mut self, end: End) -> io::Result<u64> {
        self.push(&Item::End(end));
        self.flush();
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.file.sync()?;
        Ok(self.offset)
    }
}

fn block_checksum(offset: u64, items: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(&offset.to_le_bytes());
    digest.update(items);
    digest.finalize() as u32
}

/// Verifies the block's checksum; gives its items' bytes.
pub(super) fn parse_block(bytes: &[u8], offset: u64) -> Result<&[u8], RecordError> {
    let length = block_length(bytes)?;
    let items = bytes
        .get(BLOCK_HEADER_BYTES..BLOCK_HEADER_BYTES + length)
        .ok_or(RecordError::Short)?;
    if block_checksum(offset, items) != u32_at(bytes, 4) {
        return Err(RecordError::Body);
    }
    Ok(items)
}

fn block_length(bytes: &[u8]) -> Result<usize, RecordError> {
    let header = bytes.get(..BLOCK_HEADER_BYTES).ok_or(RecordError::Short)?;
    let length = u32_at(header, 0) as usize;
    if length > BLOCK_BYTES_MAX {
        Err(RecordError::Fields)
    } else {
        Ok(length)
    }
}

/// Reads a whole checkpoint, item by item; its last item is `End`.
pub(super) fn read(
    disk: &dyn Disk,
    name: &str,
    mut each: impl FnMut(Item<'_>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let place = disk.describe(name);
    let io = |error: io::Error| StoreError::io(format!("cannot read `{place}`"), error);
    let bad = |offset: u64, error: RecordError| StoreError::Corrupt {
        path: place.clone().into(),
        offset,
        what: format!("the checkpoint cannot be read: {error}").into(),
    };
    let file = disk.open(name, Open::Read).map_err(io)?;
    let size = file.size().map_err(io)?;
    let mut offset = 0;
    let mut ended = false;
    let mut block = Vec::new();
    while offset < size {
        if ended || size - offset < BLOCK_HEADER_BYTES as u64 {
            return Err(bad(offset, RecordError::Fields));
        }
        block.resize(BLOCK_HEADER_BYTES, 0);
        file.read_at(&mut block, offset).map_err(io)?;
        let length = block_length(&block).map_err(|error| bad(offset, error))?;
        if (BLOCK_HEADER_BYTES + length) as u64 > size - offset {
            return Err(bad(offset, RecordError::Short));
        }
        block.resize(BLOCK_HEADER_BYTES + length, 0);
        file.read_at(&mut block, offset).map_err(io)?;
        let mut items = parse_block(&block, offset).map_err(|error| bad(offset, error))?;
        while !items.is_empty() {
            let (item, length) = Item::parse(items).map_err(|error| bad(offset, error))?;
            let first = offset == 0 && items.len() == block.len() - BLOCK_HEADER_BYTES;
            if ended || first != matches!(item, Item::Begin(_)) {
                return Err(bad(offset, RecordError::Fields));
            }
            ended = matches!(item, Item::End(_));
            each(item)?;
            items = &items[length..];
        }
        offset += block.len() as u64;
    }
    if ended {
        Ok(())
    } else {
        Err(bad(size, RecordError::Short))
    }
}

#[cfg(test)]
mod tests;
