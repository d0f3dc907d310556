//! Copies what is left of a damaged store into a new directory. The damaged one is not touched.
//!
//! A ledger keeps its entries up to the first that cannot be read, since a ledger has no gaps; what
//! follows is in the report. Without a readable checkpoint the ledgers are found by the segment
//! files' own indexes: deleted ones may come back then, and the state up to it is lost.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use geminga_model::{EntryId, LedgerId};

use super::checkpoint::{self, Begin, CheckpointWriter, End, Item, checkpoint_name};
use super::directory::{DirectoryLock, check_format};
use super::index::{LedgerIndex, ReadPlan, SortedRange};
use super::open::list;
use super::read::{Collector, Request, read_extents};
use super::recover::recover;
use super::{EmbeddedConfig, EmbeddedStore, Loss};
use crate::disk::{DirectoryDisk, Disk};
use crate::segment::reader::SegmentFile;
use crate::segment::writer::{SegmentWriter, segment_file_number};
use crate::wal::log_segment::{SEGMENT_BYTES_FIRST, create_zeroed, log_file_name, prepare};
use crate::{ReadLimits, StateMachine, StoreError};

const FILE_BYTES: u64 = 256 << 20;
const READ_BYTES: usize = 1 << 20;

/// What a repair kept, and what it could not.
#[derive(Debug, Default)]
pub struct Repair {
    pub ledgers: u64,
    pub entries: u64,
    /// Places that could not be read.
    pub losses: Vec<Loss>,
    /// Ledgers that lost their ends: how many entries they have now and had at least.
    pub cut: Vec<(LedgerId, i64, i64)>,
}

impl EmbeddedStore {
    /// Copies what can be read in `from` to `into`, which must not exist or be empty. `machine` gets
    /// the state and gives it back for the copy.
    pub fn repair(
        from: &Path,
        into: &Path,
        config: &EmbeddedConfig,
        machine: &dyn StateMachine,
    ) -> Result<Repair, StoreError> {
        let _from_lock = DirectoryLock::take(from)?;
        let _into_lock = DirectoryLock::take(into)?;
        let from: Arc<dyn Disk> = Arc::new(DirectoryDisk::new(from));
        repair_on(&from, &DirectoryDisk::new(into), config, machine)
    }
}

pub(super) fn repair_on(
    from: &Arc<dyn Disk>,
    into: &dyn Disk,
    config: &EmbeddedConfig,
    machine: &dyn StateMachine,
) -> Result<Repair, StoreError> {
    let names = list(from.as_ref())?;
    let into_names = list(into)?;
    if into_names
        .iter()
        .any(|(name, size)| *size > 0 && name != "LOCK")
    {
        let reason = format!("`{}` is not empty", into.describe(""));
        return Err(StoreError::CannotOpen {
            reason: reason.into(),
        });
    }
    check_format(into, &into_names)?;
    let mut repair = Repair::default();
    let recovered = recover(from, config, &names, machine, Some(&mut repair.losses))?;
    let index = recovered.index.clone();
    for segment in recovered.segments() {
        index.add_segment(segment.clone());
    }
    let mut copy = Copy {
        from: from.as_ref(),
        into,
        files: Vec::new(),
        writer: None,
        open: BTreeMap::new(),
        repair,
    };
    let mut ledgers = index.ledgers();
    ledgers.sort_unstable();
    for ledger in &ledgers {
        copy.ledger(&index, *ledger)?;
    }
    copy.finish_file()?;
    let highest = ledgers.last().map_or(0, |ledger| ledger.0 + 1);
    let reserved_ledgers = recovered.reserved().max(highest);
    copy.checkpoint(machine, reserved_ledgers)?;
    Ok(copy.repair)
}

/// The ledgers that segment files hold, without the help of a checkpoint.
pub(super) fn find_ledgers(
    disk: &dyn Disk,
    names: &[(String, u64)],
    index: &LedgerIndex,
    losses: &mut Vec<Loss>,
) {
    let mut found: BTreeMap<LedgerId, BTreeMap<i64, (u32, u32)>> = BTreeMap::new();
    for file in names
        .iter()
        .filter_map(|(name, _)| segment_file_number(name))
    {
        match SegmentFile::open(disk, file) {
            Ok(segment) => {
                for row in &segment.index.ledgers {
                    found
                        .entry(row.ledger)
                        .or_default()
                        .insert(row.first.0, (file, row.count));
                }
            }
            Err(error) => losses.push(loss(&error)),
        }
    }
    for (ledger, rows) in found {
        let mut ranges = Vec::new();
        let mut end = 0;
        for (first, (file, count)) in rows {
            if first == end {
                ranges.push(SortedRange {
                    first,
                    file,
                    bytes: 0,
                });
                end += i64::from(count);
            }
        }
        index.restore(ledger, end, 0, ranges);
    }
}

pub(super) fn loss(error: &StoreError) -> Loss {
    match error {
        StoreError::Corrupt { path, offset, what } => Loss {
            file: path.display().to_string(),
            offset: *offset,
            what: what.to_string(),
        },
        other => Loss {
            file: String::new(),
            offset: 0,
            what: other.to_string(),
        },
    }
}

struct Copy<'a> {
    from: &'a dyn Disk,
    into: &'a dyn Disk,
    /// Number, size, payload, and the ranges in it.
    files: Vec<(u32, u64, Vec<crate::segment::writer::WrittenRange>)>,
    writer: Option<(u32, SegmentWriter, u64)>,
    open: BTreeMap<u32, Option<Arc<SegmentFile>>>,
    repair: Repair,
}

impl Copy<'_> {
    fn ledger(&mut self, index: &LedgerIndex, ledger: LedgerId) -> Result<(), StoreError> {
        let had = index.end(ledger).entries as i64;
        let mut next = 0;
        let mut bytes_max = READ_BYTES;
        while next < had {
            let limits = ReadLimits::new(usize::MAX, bytes_max);
            let mut collector = Collector::new(Request {
                ledger,
                first: EntryId(next),
                limits,
            });
            let result = match index.plan(ledger, EntryId(next), limits) {
                ReadPlan::NoLedger | ReadPlan::Nothing => break,
                ReadPlan::Log(extents) => read_extents(self.from, &extents, &mut collector),
                ReadPlan::File { file } => self.read_file(file, &mut collector),
            };
            match result {
                // Once more, in the smallest pieces: up to the bad place.
                Err(_) if bytes_max > 1 => {
                    bytes_max = 1;
                    continue;
                }
                Err(error) => {
                    self.repair.losses.push(loss(&error));
                    break;
                }
                Ok(()) if collector.entries.is_empty() => break,
                Ok(()) => {}
            }
            for entry in &collector.entries {
                self.push(ledger, entry.position.entry, &entry.data)?;
            }
            next = collector.next_entry().0;
            bytes_max = READ_BYTES;
        }
        if next < had {
            self.repair.cut.push((ledger, next, had));
        }
        self.repair.ledgers += u64::from(next > 0);
        self.repair.entries += next as u64;
        Ok(())
    }

    fn read_file(&mut self, file: u32, collector: &mut Collector) -> Result<(), StoreError> {
        let opened = match self.open.get(&file) {
            Some(opened) => opened.clone(),
            None => {
                let opened = SegmentFile::open(self.from, file).map(Arc::new);
                if let Err(error) = &opened {
                    self.repair.losses.push(loss(error));
                }
                self.open.insert(file, opened.as_ref().ok().cloned());
                opened.ok()
            }
        };
        let gone = || {
            StoreError::io(
                "a segment file cannot be read",
                std::io::ErrorKind::NotFound.into(),
            )
        };
        let segment = opened.ok_or_else(gone)?;
        let (ledger, first) = (collector.ledger(), collector.next_entry());
        let found = segment
            .read(ledger, first, collector.rest().bytes_max)?
            .ok_or_else(gone)?;
        collector
            .take(&found.0, segment.salt, found.1)
            .map_err(|(at, what)| crate::segment::reader::corrupt(&segment.place, at, what))
    }

    fn push(&mut self, ledger: LedgerId, entry: EntryId, data: &[u8]) -> Result<(), StoreError> {
        if self
            .writer
            .as_ref()
            .is_some_and(|(_, _, bytes)| *bytes > FILE_BYTES)
        {
            self.finish_file()?;
        }
        let into = self.into;
        let failed = |error| StoreError::io(format!("cannot write `{}`", into.describe("")), error);
        let (_, writer, bytes) = match &mut self.writer {
            Some(writer) => writer,
            empty => {
                let file = self.files.len() as u32 + 1;
                empty.insert((file, SegmentWriter::create(into, file).map_err(failed)?, 0))
            }
        };
        *bytes += data.len() as u64;
        writer.push(ledger, entry, data).map_err(failed)
    }

    fn finish_file(&mut self) -> Result<(), StoreError> {
        let Some((file, writer, _)) = self.writer.take() else {
            return Ok(());
        };
        let written = writer.finish();
        let (size, ranges) = written.map_err(|error| self.write_failed(error))?;
        self.files.push((file, size, ranges));
        Ok(())
    }

    fn write_failed(&self, error: std::io::Error) -> StoreError {
        StoreError::io(format!("cannot write `{}`", self.into.describe("")), error)
    }

    /// A first log file, and the checkpoint that makes the copy a store.
    fn checkpoint(
        &self,
        machine: &dyn StateMachine,
        reserved_ledgers: i64,
    ) -> Result<(), StoreError> {
        let log = log_file_name(1);
        let prepared = create_zeroed(self.into, &log, SEGMENT_BYTES_FIRST, true)
            .and_then(|()| prepare(self.into, &log, SEGMENT_BYTES_FIRST, 1, true));
        prepared.map_err(|error| self.write_failed(error))?;
        let created = CheckpointWriter::create(self.into);
        let mut writer = created.map_err(|error| self.write_failed(error))?;
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
        let last_file = self.files.len() as u32;
        let end = End {
            durable_record: 0,
            reserved_ledgers,
            last_file,
        };
        let publish = || {
            writer.finish(end)?;
            self.into
                .rename(checkpoint::TEMPORARY, &checkpoint_name(1))?;
            self.into.sync_dir()
        };
        publish().map_err(|error| self.write_failed(error))
    }
}
