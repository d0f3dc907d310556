//! The bytes of the log: segment header, commits, and the records in them. Segment files of sorted
//! entries hold the same records. Pure: encoding, parsing, checksums; no I/O.
//!
//! ```text
//! log segment = header block, commit, commit, ...
//! commit      = commit header, record, record, ..., padding up to `span`
//! record      = record header, body;  body of a run = entry lengths (if more than one), entries
//! ```
//!
//! What must hold: every header's CRC32C begins with the segment's salt, which is drawn anew each
//! time the segment is put to use, and with its own offset. So what an earlier use left behind, and
//! what a client wrote into a payload to look like a header, is never taken for a record. The body's
//! checksum is not salted (callers compute it before they know where the record will be); the
//! salted header covers it.

use std::ops::Range;

use bytes::Bytes;
use geminga_model::{EntryId, LedgerId};
use thiserror::Error;

pub const SEGMENT_HEADER_BYTES: usize = 48;
pub const COMMIT_HEADER_BYTES: usize = 40;
pub const RECORD_HEADER_BYTES: usize = 36;

/// A record's body is no longer. Above it a run is refused: it bounds what a reader allocates, what
/// a commit holds, and how far recovery looks for a commit behind a torn one.
pub const BODY_BYTES_MAX: usize = 8 << 20;

const SEGMENT_MAGIC: [u8; 8] = *b"GMGLOG\x00\x01";
const COMMIT_MAGIC: u32 = u32::from_le_bytes(*b"GCMT");

#[derive(Debug, Error, PartialEq, Eq, Clone, Copy)]
pub enum RecordError {
    #[error("the bytes end inside it")]
    Short,
    #[error("its header does not match its checksum")]
    Header,
    #[error("its content does not match its checksum")]
    Body,
    #[error("its fields contradict each other")]
    Fields,
}

/// Binds headers to one use of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Salt(pub u64);

impl Salt {
    /// The checksum of a header (without its own first four bytes) at this offset of the file.
    fn checksum(self, offset: u64, header: &[u8]) -> u32 {
        let mut salted = [0; 16 + COMMIT_HEADER_BYTES];
        salted[..8].copy_from_slice(&self.0.to_le_bytes());
        salted[8..16].copy_from_slice(&offset.to_le_bytes());
        salted[16..16 + header.len()].copy_from_slice(header);
        crc_fast::crc32_iscsi(&salted[..16 + header.len()])
    }
}

/// The first bytes of a log segment: which use of the file this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Rises by one with every segment that is put to use: the order of the segments.
    pub generation: u64,
    pub salt: Salt,
}

impl SegmentHeader {
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut out = [0; SEGMENT_HEADER_BYTES];
        out[..8].copy_from_slice(&SEGMENT_MAGIC);
        out[8..16].copy_from_slice(&self.generation.to_le_bytes());
        out[16..24].copy_from_slice(&self.salt.0.to_le_bytes());
        let checksum = crc_fast::crc32_iscsi(&out[..SEGMENT_HEADER_BYTES - 4]);
        out[SEGMENT_HEADER_BYTES - 4..].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        let bytes = bytes
            .get(..SEGMENT_HEADER_BYTES)
            .ok_or(RecordError::Short)?;
        let checksum = crc_fast::crc32_iscsi(&bytes[..SEGMENT_HEADER_BYTES - 4]);
        if bytes[..8] != SEGMENT_MAGIC || u32_at(bytes, SEGMENT_HEADER_BYTES - 4) != checksum {
            return Err(RecordError::Header);
        }
        Ok(Self {
            generation: u64_at(bytes, 8),
            salt: Salt(u64_at(bytes, 16)),
        })
    }
}

/// What one write to the log holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitHeader {
    /// Commits are numbered through all segments, without a gap.
    pub commit: u64,
    /// Records too; this is the number of the commit's first.
    pub first_record: u64,
    pub records: u32,
    /// Bytes of records after this header.
    pub body_bytes: u32,
    /// From the start of this commit to the start of the next.
    pub span: u32,
}

impl CommitHeader {
    pub fn encode(&self, salt: Salt, offset: u64) -> [u8; COMMIT_HEADER_BYTES] {
        let mut out = [0; COMMIT_HEADER_BYTES];
        out[4..8].copy_from_slice(&COMMIT_MAGIC.to_le_bytes());
        out[8..16].copy_from_slice(&self.commit.to_le_bytes());
        out[16..24].copy_from_slice(&self.first_record.to_le_bytes());
        out[24..28].copy_from_slice(&self.records.to_le_bytes());
        out[28..32].copy_from_slice(&self.body_bytes.to_le_bytes());
        out[32..36].copy_from_slice(&self.span.to_le_bytes());
        let checksum = salt.checksum(offset, &out[4..]);
        out[..4].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    /// A quick look: whether a header may begin here.
    pub fn has_magic(bytes: &[u8]) -> bool {
        bytes.get(4..8) == Some(&COMMIT_MAGIC.to_le_bytes())
    }

    pub fn parse(bytes: &[u8], salt: Salt, offset: u64) -> Result<Self, RecordError> {
        let bytes = bytes.get(..COMMIT_HEADER_BYTES).ok_or(RecordError::Short)?;
        if u32_at(bytes, 4) != COMMIT_MAGIC
            || u32_at(bytes, 0) != salt.checksum(offset, &bytes[4..])
        {
            return Err(RecordError::Header);
        }
        let header = Self {
            commit: u64_at(bytes, 8),
            first_record: u64_at(bytes, 16),
            records: u32_at(bytes, 24),
            body_bytes: u32_at(bytes, 28),
            span: u32_at(bytes, 32),
        };
        if (header.span as usize) < COMMIT_HEADER_BYTES + header.body_bytes as usize {
            return Err(RecordError::Fields);
        }
        Ok(header)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// `count` consecutive entries of `ledger` from `first`.
    Run,
    /// A record of the state machine.
    State,
    /// `ledger` exists.
    Create,
    /// `ledger` and its entries are gone.
    Delete,
    /// Ledger ids below `ledger` may have been given out.
    Reserve,
}

impl RecordKind {
    fn code(self) -> u8 {
        match self {
            Self::Run => 1,
            Self::State => 2,
            Self::Create => 3,
            Self::Delete => 4,
            Self::Reserve => 5,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        let all = [
            Self::Run,
            Self::State,
            Self::Create,
            Self::Delete,
            Self::Reserve,
        ];
        all.into_iter().find(|kind| kind.code() == code)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    pub kind: RecordKind,
    pub ledger: LedgerId,
    pub first: EntryId,
    pub count: u32,
    pub body_bytes: u32,
    pub body_checksum: u32,
}

impl RecordHeader {
    /// A run's header; `None` if it is empty or its body would pass [`BODY_BYTES_MAX`].
    pub fn run(ledger: LedgerId, first: EntryId, entries: &[Bytes]) -> Option<Self> {
        let payload: usize = entries.iter().map(Bytes::len).sum();
        let body_bytes = payload.checked_add(lengths_bytes(entries.len()))?;
        if entries.is_empty() || body_bytes > BODY_BYTES_MAX {
            return None;
        }
        let body_checksum = match entries {
            [entry] => crc_fast::crc32_iscsi(entry),
            _ => {
                let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
                for entry in entries {
                    digest.update(&(entry.len() as u32).to_le_bytes());
                }
                for entry in entries {
                    digest.update(entry);
                }
                digest.finalize() as u32
            }
        };
        Some(Self {
            kind: RecordKind::Run,
            ledger,
            first,
            count: entries.len() as u32,
            body_bytes: body_bytes as u32,
            body_checksum,
        })
    }

    /// A record that is not a run.
    pub fn plain(kind: RecordKind, ledger: LedgerId, body: &[u8]) -> Self {
        Self {
            kind,
            ledger,
            first: EntryId(0),
            count: 0,
            body_bytes: body.len() as u32,
            body_checksum: crc_fast::crc32_iscsi(body),
        }
    }

    /// The header without its salted checksum, which [`seal`] puts in.
    pub fn encode(&self) -> [u8; RECORD_HEADER_BYTES] {
        let mut out = [0; RECORD_HEADER_BYTES];
        out[4..8].copy_from_slice(&self.body_checksum.to_le_bytes());
        out[8..12].copy_from_slice(&self.body_bytes.to_le_bytes());
        out[12] = self.kind.code();
        out[16..24].copy_from_slice(&self.ledger.0.to_le_bytes());
        out[24..32].copy_from_slice(&self.first.0.to_le_bytes());
        out[32..36].copy_from_slice(&self.count.to_le_bytes());
        out
    }

    /// Header and body in bytes.
    pub fn record_bytes(&self) -> usize {
        RECORD_HEADER_BYTES + self.body_bytes as usize
    }

    pub fn last(&self) -> EntryId {
        EntryId(self.first.0 + i64::from(self.count) - 1)
    }

    fn fields_agree(&self) -> bool {
        let body = self.body_bytes as usize;
        let run_agrees = self.count > 0
            && body >= lengths_bytes(self.count as usize)
            && self.ledger.0 >= 0
            && self.first.0 >= 0
            && self.first.0.checked_add(i64::from(self.count)).is_some();
        body <= BODY_BYTES_MAX && (self.kind != RecordKind::Run || run_agrees)
    }
}

/// Fills in the checksum of the encoded header at the start of `record`, for its final place.
pub fn seal(record: &mut [u8], salt: Salt, offset: u64) {
    let checksum = salt.checksum(offset, &record[4..RECORD_HEADER_BYTES]);
    record[..4].copy_from_slice(&checksum.to_le_bytes());
}

/// Reads and verifies the header at the start of `bytes`, which lies at `offset` of its file.
pub fn parse_header(bytes: &[u8], salt: Salt, offset: u64) -> Result<RecordHeader, RecordError> {
    let bytes = bytes.get(..RECORD_HEADER_BYTES).ok_or(RecordError::Short)?;
    if u32_at(bytes, 0) != salt.checksum(offset, &bytes[4..]) {
        return Err(RecordError::Header);
    }
    let header = RecordHeader {
        kind: RecordKind::from_code(bytes[12]).ok_or(RecordError::Fields)?,
        ledger: LedgerId(u64_at(bytes, 16) as i64),
        first: EntryId(u64_at(bytes, 24) as i64),
        count: u32_at(bytes, 32),
        body_bytes: u32_at(bytes, 8),
        body_checksum: u32_at(bytes, 4),
    };
    if header.fields_agree() {
        Ok(header)
    } else {
        Err(RecordError::Fields)
    }
}

/// Reads and verifies the whole record at the start of `bytes`: its header, and where its body is.
pub fn parse(
    bytes: &[u8],
    salt: Salt,
    offset: u64,
) -> Result<(RecordHeader, Range<usize>), RecordError> {
    let header = parse_header(bytes, salt, offset)?;
    let body = RECORD_HEADER_BYTES..header.record_bytes();
    let content = bytes.get(body.clone()).ok_or(RecordError::Short)?;
    if crc_fast::crc32_iscsi(content) != header.body_checksum {
        return Err(RecordError::Body);
    }
    Ok((header, body))
}

/// Where each entry of a run lies in its body.
pub fn entry_ranges(header: &RecordHeader, body: &[u8]) -> Result<EntryRanges, RecordError> {
    let count = header.count as usize;
    let start = lengths_bytes(count);
    if count == 1 {
        return Ok(EntryRanges {
            lengths: Vec::new(),
            at: 0,
            end: body.len(),
            single: true,
        });
    }
    let table = body.get(..start).ok_or(RecordError::Fields)?;
    let lengths: Vec<u32> = table
        .chunks_exact(4)
        .map(|length| u32_at(length, 0))
        .collect();
    let total: u64 = lengths.iter().map(|length| u64::from(*length)).sum();
    if total != (body.len() - start) as u64 {
        return Err(RecordError::Fields);
    }
    Ok(EntryRanges {
        lengths,
        at: start,
        end: body.len(),
        single: false,
    })
}

/// The entries of one run, in order, as ranges of its body.
pub struct EntryRanges {
    lengths: Vec<u32>,
    at: usize,
    end: usize,
    single: bool,
}

impl EntryRanges {
    pub fn into_ranges(self) -> impl Iterator<Item = Range<usize>> {
        let mut at = self.at;
        let single = self.single.then_some(self.at..self.end);
        let many = self.lengths.into_iter().map(move |length| {
            let start = at;
            at += length as usize;
            start..at
        });
        single.into_iter().chain(many)
    }
}

/// The size of the table of entry lengths; a single entry needs none.
pub fn lengths_bytes(entries: usize) -> usize {
    if entries > 1 { entries * 4 } else { 0 }
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(
        bytes[at..at + 4]
            .try_into()
            .expect("four bytes were sliced"),
    )
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(
        bytes[at..at + 8]
            .try_into()
            .expect("eight bytes were sliced"),
    )
}

#[cfg(test)]
mod tests;
