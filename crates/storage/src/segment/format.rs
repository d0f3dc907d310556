//! The bytes of a segment file's header, index and footer. Pure.

use geminga_model::{EntryId, LedgerId};

use crate::wal::record::{RecordError, Salt, u32_at, u64_at};

pub const HEADER_BYTES: usize = 32;
pub const FOOTER_BYTES: usize = 48;
const LEDGER_ROW_BYTES: usize = 24;
const BLOCK_ROW_BYTES: usize = 8;

const HEADER_MAGIC: [u8; 8] = *b"GMGSEG\x00\x01";
const FOOTER_MAGIC: [u8; 8] = *b"GMGEND\x00\x01";

/// Consecutive entries of one ledger. A ledger may have several rows in a rewritten file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LedgerRow {
    pub ledger: LedgerId,
    pub first: EntryId,
    pub count: u32,
    /// The index of its first block.
    pub block: u32,
}

/// One record. It ends where the next begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRow {
    /// The first entry, counted from the row's first.
    pub first: u32,
    pub offset: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// By ledger, then entry.
    pub ledgers: Vec<LedgerRow>,
    pub blocks: Vec<BlockRow>,
    /// Where the records end.
    pub data_end: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    pub ledgers: u32,
    pub blocks: u32,
    pub data_end: u64,
    pub index_checksum: u32,
}

pub fn encode_header(file: u32, salt: Salt) -> [u8; HEADER_BYTES] {
    let mut out = [0; HEADER_BYTES];
    out[..8].copy_from_slice(&HEADER_MAGIC);
    out[8..12].copy_from_slice(&file.to_le_bytes());
    out[16..24].copy_from_slice(&salt.0.to_le_bytes());
    let checksum = crc_fast::crc32_iscsi(&out[..28]);
    out[28..].copy_from_slice(&checksum.to_le_bytes());
    out
}

/// The file's number and salt.
pub fn parse_header(bytes: &[u8]) -> Result<(u32, Salt), RecordError> {
    let bytes = bytes.get(..HEADER_BYTES).ok_or(RecordError::Short)?;
    if bytes[..8] != HEADER_MAGIC || crc_fast::crc32_iscsi(&bytes[..28]) != u32_at(bytes, 28) {
        return Err(RecordError::Header);
    }
    Ok((u32_at(bytes, 8), Salt(u64_at(bytes, 16))))
}

impl Footer {
    pub fn encode(&self) -> [u8; FOOTER_BYTES] {
        let mut out = [0; FOOTER_BYTES];
        out[..8].copy_from_slice(&FOOTER_MAGIC);
        out[8..12].copy_from_slice(&self.ledgers.to_le_bytes());
        out[12..16].copy_from_slice(&self.blocks.to_le_bytes());
        out[16..24].copy_from_slice(&self.data_end.to_le_bytes());
        out[24..28].copy_from_slice(&self.index_checksum.to_le_bytes());
        let checksum = crc_fast::crc32_iscsi(&out[..44]);
        out[44..].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    /// The footer of a file of this size; its numbers agree with the size.
    pub fn parse(bytes: &[u8], file_bytes: u64) -> Result<Self, RecordError> {
        let bytes = bytes.get(..FOOTER_BYTES).ok_or(RecordError::Short)?;
        if bytes[..8] != FOOTER_MAGIC || crc_fast::crc32_iscsi(&bytes[..44]) != u32_at(bytes, 44) {
            return Err(RecordError::Header);
        }
        let footer = Self {
            ledgers: u32_at(bytes, 8),
            blocks: u32_at(bytes, 12),
            data_end: u64_at(bytes, 16),
            index_checksum: u32_at(bytes, 24),
        };
        let index_end = footer.data_end.checked_add(footer.index_bytes());
        let end = index_end.and_then(|end| end.checked_add(FOOTER_BYTES as u64));
        if end != Some(file_bytes) || footer.data_end < HEADER_BYTES as u64 {
            return Err(RecordError::Fields);
        }
        Ok(footer)
    }

    pub fn index_bytes(&self) -> u64 {
        u64::from(self.ledgers) * LEDGER_ROW_BYTES as u64
            + u64::from(self.blocks) * BLOCK_ROW_BYTES as u64
    }
}

impl Index {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(
            self.ledgers.len() * LEDGER_ROW_BYTES + self.blocks.len() * BLOCK_ROW_BYTES,
        );
        for row in &self.ledgers {
            out.extend(row.ledger.0.to_le_bytes());
            out.extend(row.first.0.to_le_bytes());
            out.extend(row.count.to_le_bytes());
            out.extend(row.block.to_le_bytes());
        }
        for row in &self.blocks {
            out.extend(row.first.to_le_bytes());
            out.extend(row.offset.to_le_bytes());
        }
        out
    }

    pub fn parse(bytes: &[u8], footer: &Footer) -> Result<Self, RecordError> {
        if bytes.len() as u64 != footer.index_bytes() {
            return Err(RecordError::Short);
        }
        if crc_fast::crc32_iscsi(bytes) != footer.index_checksum {
            return Err(RecordError::Body);
        }
        let (ledgers, blocks) = bytes.split_at(footer.ledgers as usize * LEDGER_ROW_BYTES);
        let ledgers = ledgers.chunks_exact(LEDGER_ROW_BYTES).map(|row| LedgerRow {
            ledger: LedgerId(u64_at(row, 0) as i64),
            first: EntryId(u64_at(row, 8) as i64),
            count: u32_at(row, 16),
            block: u32_at(row, 20),
        });
        let blocks = blocks.chunks_exact(BLOCK_ROW_BYTES).map(|row| BlockRow {
            first: u32_at(row, 0),
            offset: u32_at(row, 4),
        });
        let index = Self {
            ledgers: ledgers.collect(),
            blocks: blocks.collect(),
            data_end: footer.data_end,
        };
        if index.is_in_order() {
            Ok(index)
        } else {
            Err(RecordError::Fields)
        }
    }

    fn is_in_order(&self) -> bool {
        let rising = |a: &LedgerRow, b: &LedgerRow| {
            (a.ledger, a.first) < (b.ledger, b.first) && a.block < b.block
        };
        let offsets_rise = self
            .blocks
            .windows(2)
            .all(|pair| pair[0].offset < pair[1].offset);
        let inside = |row: &BlockRow| {
            row.offset as usize >= HEADER_BYTES && u64::from(row.offset) < self.data_end
        };
        self.ledgers
            .windows(2)
            .all(|pair| rising(&pair[0], &pair[1]))
            && self.ledgers.first().is_none_or(|row| row.block == 0)
            && self.ledgers.iter().all(|row| {
                (row.block as usize) < self.blocks.len()
                    && self.blocks[row.block as usize].first == 0
                    && row.first.0 >= 0
                    && row.first.0.checked_add(i64::from(row.count)).is_some()
            })
            && offsets_rise
            && self.blocks.iter().all(inside)
    }

    /// Where the blocks lie that hold `first` and what follows it in its row, up to about
    /// `bytes_max` bytes, one block at least.
    pub fn find(&self, ledger: LedgerId, first: EntryId, bytes_max: usize) -> Option<(u64, usize)> {
        let after = self
            .ledgers
            .partition_point(|row| (row.ledger, row.first) <= (ledger, first));
        let row = self.ledgers.get(after.checked_sub(1)?)?;
        if row.ledger != ledger || first.0 >= row.first.0 + i64::from(row.count) {
            return None;
        }
        let blocks_end = self
            .ledgers
            .get(after)
            .map_or(self.blocks.len(), |row| row.block as usize);
        let blocks = self.blocks.get(row.block as usize..blocks_end)?;
        let wanted = (first.0 - row.first.0) as u32;
        let start = blocks
            .partition_point(|block| block.first <= wanted)
            .checked_sub(1)?;
        let offset = u64::from(blocks[start].offset);
        let row_end = self
            .blocks
            .get(blocks_end)
            .map_or(self.data_end, |block| u64::from(block.offset));
        let mut end = blocks
            .get(start + 1)
            .map_or(row_end, |block| u64::from(block.offset));
        for next in start + 2..=blocks.len() {
            let further = blocks
                .get(next)
                .map_or(row_end, |block| u64::from(block.offset));
            if further - offset > bytes_max as u64 {
                break;
            }
            end = further;
        }
        Some((offset, (end - offset) as usize))
    }

    /// The whole of a row, in one piece.
    pub fn extent(&self, row: usize) -> Option<(u64, usize)> {
        let start = u64::from(
            self.blocks
                .get(self.ledgers.get(row)?.block as usize)?
                .offset,
        );
        let next = self
            .ledgers
            .get(row + 1)
            .and_then(|next| self.blocks.get(next.block as usize));
        let end = next.map_or(self.data_end, |block| u64::from(block.offset));
        Some((start, (end - start) as usize))
    }
}
