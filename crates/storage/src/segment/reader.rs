//! An open segment file with its index.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use geminga_model::{EntryId, LedgerId};

use super::format::{FOOTER_BYTES, Footer, HEADER_BYTES, Index, parse_header};
use super::writer::segment_file_name;
use crate::StoreError;
use crate::disk::{Disk, DiskFile, Open};
use crate::wal::record::{RecordError, Salt};

#[derive(Debug)]
pub struct SegmentFile {
    pub index: Index,
    pub salt: Salt,
    /// For messages.
    pub place: String,
    file: Arc<dyn DiskFile>,
}

impl SegmentFile {
    /// Opens the file and verifies its header, footer and index.
    pub fn open(disk: &dyn Disk, number: u32) -> Result<Self, StoreError> {
        let name = segment_file_name(number);
        let place = disk.describe(&name);
        let io = |error: io::Error| StoreError::io(format!("cannot read `{place}`"), error);
        let bad = |offset: u64, part: &str, error: RecordError| {
            corrupt(
                &place,
                offset,
                format!("the {part} cannot be read: {error}"),
            )
        };
        let file = disk.open(&name, Open::Read).map_err(io)?;
        let size = file.size().map_err(io)?;
        if size < (HEADER_BYTES + FOOTER_BYTES) as u64 {
            return Err(bad(0, "file", RecordError::Short));
        }
        let mut header = [0; HEADER_BYTES];
        file.read_at(&mut header, 0).map_err(io)?;
        let (found, salt) = parse_header(&header).map_err(|error| bad(0, "header", error))?;
        if found != number {
            return Err(corrupt(&place, 0, format!("it is file {found}")));
        }
        let footer_at = size - FOOTER_BYTES as u64;
        let mut footer = [0; FOOTER_BYTES];
        file.read_at(&mut footer, footer_at).map_err(io)?;
        let footer =
            Footer::parse(&footer, size).map_err(|error| bad(footer_at, "footer", error))?;
        let mut index = vec![0; footer.index_bytes() as usize];
        file.read_at(&mut index, footer.data_end).map_err(io)?;
        let index =
            Index::parse(&index, &footer).map_err(|error| bad(footer.data_end, "index", error))?;
        Ok(Self {
            index,
            salt,
            place,
            file,
        })
    }

    /// The records around `first`, and their offset. `None`: the file does not hold it.
    pub fn read(
        &self,
        ledger: LedgerId,
        first: EntryId,
        bytes_max: usize,
        gently: bool,
    ) -> Result<Option<(Bytes, u64)>, StoreError> {
        let Some((offset, bytes)) = self.index.find(ledger, first, bytes_max) else {
            return Ok(None);
        };
        Ok(Some((self.bytes_at(offset, bytes, gently)?, offset)))
    }

    /// `gently`: see [`DiskFile::read_gently_at`].
    pub fn bytes_at(&self, offset: u64, bytes: usize, gently: bool) -> Result<Bytes, StoreError> {
        let mut buf = vec![0; bytes];
        let read = match gently {
            true => self.file.read_gently_at(&mut buf, offset),
            false => self.file.read_at(&mut buf, offset),
        };
        read.map_err(|error| StoreError::io(format!("cannot read `{}`", self.place), error))?;
        Ok(Bytes::from(buf))
    }
}

pub fn corrupt(place: &str, offset: u64, what: String) -> StoreError {
    StoreError::Corrupt {
        path: place.into(),
        offset,
        what: what.into(),
    }
}
