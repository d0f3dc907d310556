//! Copies what is left of a damaged store into a new directory, or only reads it. The damaged one is
//! not touched.
//!
//! A ledger keeps every entry that can be read. It has no gaps, so entries behind one that is lost
//! move up and get its number: `Remains` says which numbers are gone, for whoever holds positions.
//! Without a readable checkpoint the ledgers are found by the segment files' own indexes: deleted
//! ones may come back then, and the state up to it is lost.

mod copy;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use geminga_model::{EntryId, LedgerId};

use self::copy::Target;
use super::directory::{DirectoryLock, check_format, is_store};
use super::index::{LedgerIndex, ReadPlan, SortedRange};
use super::open::list;
use super::read::{Collector, Request, read_extents};
use super::recover::recover;
use super::{EmbeddedConfig, EmbeddedStore, Loss};
use crate::disk::{DirectoryDisk, Disk};
use crate::segment::reader::SegmentFile;
use crate::segment::writer::segment_file_number;
use crate::{ReadLimits, StateMachine, StoreError};

const READ_BYTES: usize = 1 << 20;

/// What a repair found.
#[derive(Debug, Default)]
pub struct Repair {
    pub entries: u64,
    pub bytes: u64,
    /// Places that could not be read.
    pub losses: Vec<Loss>,
    pub ledgers: BTreeMap<LedgerId, Remains>,
}

/// What is left of one ledger.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remains {
    pub entries: u64,
    pub bytes: u64,
    /// Entries that are gone, by the numbers that they had; ascending, not touching each other.
    pub holes: Vec<Range<u64>>,
    /// How many entries there were, as far as is known.
    pub end: u64,
}

impl Remains {
    pub(crate) fn lose(&mut self, lost: Range<u64>) {
        match self.holes.last_mut() {
            Some(last) if last.end == lost.start => last.end = lost.end,
            _ => self.holes.push(lost),
        }
    }
}

/// Who asked for a repair.
pub trait RepairHost {
    /// So many bytes of entries were read, of about so many.
    fn progress(&mut self, done_bytes: u64, total_bytes: u64);
    /// All ledgers were read; the state is written next, and can be made to fit.
    fn read(&mut self, ledgers: &BTreeMap<LedgerId, Remains>);
}

impl EmbeddedStore {
    /// Copies what can be read in `from` to `into`, which must not exist or be empty; only reads
    /// without it. `machine` gets the state and gives it back for the copy.
    pub fn repair(
        from: &Path,
        into: Option<&Path>,
        config: &EmbeddedConfig,
        machine: &dyn StateMachine,
        host: &mut dyn RepairHost,
    ) -> Result<Repair, StoreError> {
        let _from_lock = DirectoryLock::take_existing(from)?;
        let _into_lock = into.map(DirectoryLock::take).transpose()?;
        let from: Arc<dyn Disk> = Arc::new(DirectoryDisk::new(from));
        let into = into.map(DirectoryDisk::new);
        let into = into.as_ref().map(|into| into as &dyn Disk);
        repair_on(&from, into, config, machine, host)
    }
}

pub(super) fn repair_on(
    from: &Arc<dyn Disk>,
    into: Option<&dyn Disk>,
    config: &EmbeddedConfig,
    machine: &dyn StateMachine,
    host: &mut dyn RepairHost,
) -> Result<Repair, StoreError> {
    let names = list(from.as_ref())?;
    is_store(from.as_ref(), &names)?;
    let mut target = None;
    if let Some(into) = into {
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
        target = Some(Target::new(into));
    }
    let mut repair = Repair::default();
    let recovered = recover(from, config, &names, machine, Some(&mut repair.losses))?;
    let index = recovered.index.clone();
    for segment in recovered.segments() {
        index.add_segment(segment.clone());
    }
    let mut ledgers = index.ledgers();
    ledgers.sort_unstable();
    let total_bytes = ledgers.iter().map(|ledger| index.end(*ledger).bytes).sum();
    let mut reading = Reading {
        from: from.as_ref(),
        target,
        open: BTreeMap::new(),
        repair,
        total_bytes,
        host,
    };
    for ledger in &ledgers {
        reading.ledger(&index, *ledger)?;
    }
    let Reading {
        target,
        repair,
        host,
        ..
    } = reading;
    host.read(&repair.ledgers);
    if let Some(target) = target {
        let highest = ledgers.last().map_or(0, |ledger| ledger.0 + 1);
        target.finish(machine, recovered.reserved().max(highest))?;
    }
    Ok(repair)
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
            // A file may be missing in between; two may hold the same after a rewrite.
            if first >= end {
                ranges.push(SortedRange {
                    first,
                    file,
                    bytes: 0,
                });
                end = first + i64::from(count);
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

struct Reading<'a> {
    from: &'a dyn Disk,
    target: Option<Target<'a>>,
    /// Segment files; none where one cannot be opened.
    open: BTreeMap<u32, Option<Arc<SegmentFile>>>,
    repair: Repair,
    total_bytes: u64,
    host: &'a mut dyn RepairHost,
}

impl Reading<'_> {
    fn ledger(&mut self, index: &LedgerIndex, ledger: LedgerId) -> Result<(), StoreError> {
        let mut remains = Remains {
            end: index.end(ledger).entries,
            ..Remains::default()
        };
        let mut next = 0;
        let mut bytes_max = READ_BYTES;
        // One place of damage is one line of the report, however many entries it holds.
        let mut is_told = false;
        while next < remains.end {
            let first = EntryId(next as i64);
            if let Some(resumes) = index.log_resumes(ledger, first) {
                remains.lose(next..resumes.0 as u64);
                next = resumes.0 as u64;
                continue;
            }
            let limits = ReadLimits::new(usize::MAX, bytes_max);
            let mut collector = Collector::new(
                Request {
                    ledger,
                    first,
                    limits,
                },
                false,
            );
            let result = match index.plan(ledger, first, limits) {
                ReadPlan::NoLedger | ReadPlan::Nothing => break,
                ReadPlan::Log(extents) => read_extents(self.from, &extents, &mut collector),
                ReadPlan::File { file } => self.read_file(file, &mut collector),
            };
            if collector.entries.is_empty() {
                // Once more, in the smallest pieces: up to the bad place, and entry by entry over it.
                if bytes_max > 1 {
                    bytes_max = 1;
                    continue;
                }
                if let Err(error) = result
                    && !is_told
                {
                    self.repair.losses.push(loss(&error));
                    is_told = true;
                }
                remains.lose(next..next + 1);
                next += 1;
                continue;
            }
            for entry in &collector.entries {
                if let Some(target) = &mut self.target {
                    target.push(ledger, EntryId(remains.entries as i64), &entry.data)?;
                }
                remains.entries += 1;
                remains.bytes += entry.data.len() as u64;
                self.repair.bytes += entry.data.len() as u64;
            }
            next = collector.next_entry().0 as u64;
            bytes_max = READ_BYTES;
            is_told = false;
            self.host.progress(self.repair.bytes, self.total_bytes);
        }
        self.repair.entries += remains.entries;
        self.repair.ledgers.insert(ledger, remains);
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
        // What cannot be opened is in the report, and a gap is told by the numbers that are gone.
        let Some(segment) = opened else {
            return Ok(());
        };
        let (ledger, first) = (collector.ledger(), collector.next_entry());
        let Some((records, offset)) =
            segment.read(ledger, first, collector.rest().bytes_max, false)?
        else {
            return Ok(());
        };
        collector
            .take(&records, segment.salt, offset)
            .map_err(|(at, what)| crate::segment::reader::corrupt(&segment.place, at, what))
    }
}
