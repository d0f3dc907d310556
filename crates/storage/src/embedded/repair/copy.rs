//! The new directory of a repair: segment files, a first log file, and the checkpoint that makes
//! them a store. Without the checkpoint it is none, so a repair that breaks off leaves nothing that
//! could be taken for whole.

use std::collections::BTreeMap;

use geminga_model::{EntryId, LedgerId};

use crate::disk::Disk;
use crate::embedded::checkpoint::{self, Begin, CheckpointWriter, End, Item, checkpoint_name};
use crate::embedded::index::SortedRange;
use crate::segment::writer::{SegmentWriter, WrittenRange};
use crate::wal::log_segment::{SEGMENT_BYTES_FIRST, create_zeroed, log_file_name, prepare};
use crate::{StateMachine, StoreError};

const FILE_BYTES: u64 = 256 << 20;

pub(super) struct Target<'a> {
    disk: &'a dyn Disk,
    /// Number, size, and the ranges in it.
    files: Vec<(u32, u64, Vec<WrittenRange>)>,
    /// Number, the writer, payload so far.
    writer: Option<(u32, SegmentWriter, u64)>,
}

impl<'a> Target<'a> {
    pub(super) fn new(disk: &'a dyn Disk) -> Self {
        Self {
            disk,
            files: Vec::new(),
            writer: None,
        }
    }

    pub(super) fn push(
        &mut self,
        ledger: LedgerId,
        entry: EntryId,
        data: &[u8],
    ) -> Result<(), StoreError> {
        if self
            .writer
            .as_ref()
            .is_some_and(|(_, _, bytes)| *bytes > FILE_BYTES)
        {
            self.finish_file()?;
        }
        let disk = self.disk;
        let (_, writer, bytes) = match &mut self.writer {
            Some(writer) => writer,
            empty => {
                let file = self.files.len() as u32 + 1;
                let writer =
                    SegmentWriter::create(disk, file).map_err(|error| failed(disk, error))?;
                empty.insert((file, writer, 0))
            }
        };
        *bytes += data.len() as u64;
        writer
            .push(ledger, entry, data)
            .map_err(|error| failed(disk, error))
    }

    fn finish_file(&mut self) -> Result<(), StoreError> {
        let Some((file, writer, _)) = self.writer.take() else {
            return Ok(());
        };
        let written = writer.finish();
        let (size, ranges) = written.map_err(|error| failed(self.disk, error))?;
        self.files.push((file, size, ranges));
        Ok(())
    }

    /// Writes what is open, a first log file, and the checkpoint.
    pub(super) fn finish(
        mut self,
        machine: &dyn StateMachine,
        reserved_ledgers: i64,
    ) -> Result<(), StoreError> {
        self.finish_file()?;
        self.checkpoint(machine, reserved_ledgers)
            .map_err(|error| failed(self.disk, error))
    }

    fn checkpoint(
        &self,
        machine: &dyn StateMachine,
        reserved_ledgers: i64,
    ) -> Result<(), std::io::Error> {
        let log = log_file_name(1);
        create_zeroed(self.disk, &log, SEGMENT_BYTES_FIRST, true, |_| {})?;
        prepare(self.disk, &log, SEGMENT_BYTES_FIRST, 1, true)?;
        let mut writer = CheckpointWriter::create(self.disk)?;
        let begin = Begin {
            number: 1,
            replay_record: 0,
            sorted_generation: 0,
            next_commit: 0,
        };
        writer.push(&Item::Begin(begin));
        machine.snapshot(&mut |record| writer.push(&Item::State(record)));
        let mut ledgers: BTreeMap<LedgerId, (i64, u64, Vec<SortedRange>)> = BTreeMap::new();
        for (file, size, ranges) in &self.files {
            let payload_bytes = ranges.iter().map(|range| range.payload_bytes).sum();
            writer.push(&Item::File {
                file: *file,
                size: *size,
                payload_bytes,
            });
            for range in ranges {
                let (entries, bytes, sorted) = ledgers.entry(range.ledger).or_default();
                *entries += i64::from(range.count);
                *bytes += range.payload_bytes;
                let bytes = range.payload_bytes as u32;
                sorted.push(SortedRange {
                    first: range.first.0,
                    file: *file,
                    bytes,
                });
            }
        }
        for (ledger, (entries, bytes, ranges)) in ledgers {
            writer.push(&Item::Ledger {
                ledger,
                entries,
                bytes,
                ranges,
            });
        }
        let end = End {
            durable_record: 0,
            reserved_ledgers,
            last_file: self.files.len() as u32,
        };
        writer.finish(end)?;
        self.disk
            .rename(checkpoint::TEMPORARY, &checkpoint_name(1))?;
        self.disk.sync_dir()
    }
}

fn failed(disk: &dyn Disk, error: std::io::Error) -> StoreError {
    if error.kind() == std::io::ErrorKind::StorageFull {
        return StoreError::Full;
    }
    StoreError::io(format!("cannot write `{}`", disk.describe("")), error)
}
