//! Reads a data directory: the newest checkpoint, then the log since, then which files are there.
//!
//! Every checksum passed is verified; a torn tail is cut; anything else that does not fit together is
//! an error with its place, or, for a repair, a loss that is written down.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use geminga_model::LedgerId;

use super::background::newest_checkpoint;
use super::checkpoint::{self, Begin, End, Item, checkpoint_name, checkpoint_number};
use super::files::SegmentFiles;
use super::index::{LedgerIndex, SortedRange};
use super::repair::{find_ledgers, loss};
use super::{Durability, EmbeddedConfig, Loss};
use crate::disk::{Disk, Open};
use crate::segment::reader::corrupt;
use crate::segment::writer::{segment_file_name, segment_file_number};
use crate::wal::log_segment::{LogSegment, SEGMENT_START, log_file_number};
use crate::wal::queue::RecordPlace;
use crate::wal::record::{RecordKind, SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::wal::recovery::{self, LogEnd, Replayed};
use crate::{StateMachine, StoreError};

/// What was found on the disk.
pub(super) struct Recovered {
    pub(super) index: Arc<LedgerIndex>,
    pub(super) files: SegmentFiles,
    pub(super) begin: Begin,
    pub(super) end: End,
    pub(super) log_end: LogEnd,
    pub(super) reserved: i64,
    pub(super) active: Option<Arc<LogSegment>>,
    pub(super) full: Vec<Arc<LogSegment>>,
    pub(super) ready: VecDeque<Arc<LogSegment>>,
    pub(super) free: Vec<(String, u64)>,
    pub(super) last_log_file: u64,
    pub(super) records: u64,
    pub(super) torn: bool,
    /// Ledgers whose beginning is nowhere: their deletion must follow, since a checkpoint written
    /// after it does not name them. Where the first such run is.
    headless: HashMap<LedgerId, StoreError>,
    /// State records that a repair could not use.
    bad_records: Vec<Loss>,
    /// The checkpoint is damaged, and this is a repair.
    checkpoint_lost: bool,
    /// A repair: damage is passed over, and nothing is changed on the disk.
    repairing: bool,
}

/// Reads everything. With `losses` damage is noted there and passed over.
pub(super) fn recover(
    disk: &Arc<dyn Disk>,
    config: &EmbeddedConfig,
    names: &[(String, u64)],
    machine: &dyn StateMachine,
    mut losses: Option<&mut Vec<Loss>>,
) -> Result<Recovered, StoreError> {
    let mut recovered = Recovered {
        index: Arc::new(LedgerIndex::default()),
        files: SegmentFiles::new(disk.clone(), config.open_files_max),
        begin: Begin {
            number: 0,
            replay_record: 0,
            sorted_generation: 0,
            next_commit: 0,
        },
        end: End {
            durable_record: 0,
            reserved_ledgers: 0,
            last_file: 0,
        },
        log_end: LogEnd::default(),
        reserved: 0,
        active: None,
        full: Vec::new(),
        ready: VecDeque::new(),
        free: Vec::new(),
        last_log_file: 0,
        records: 0,
        torn: false,
        headless: HashMap::new(),
        bad_records: Vec::new(),
        checkpoint_lost: false,
        repairing: losses.is_some(),
    };
    if let Some(number) = newest_checkpoint(names) {
        recovered.read_checkpoint(disk.as_ref(), number, machine, losses.as_deref_mut())?;
        if recovered.checkpoint_lost
            && let Some(losses) = &mut losses
        {
            find_ledgers(disk.as_ref(), names, &recovered.index, losses);
        }
    }
    recovered.read_log(disk.as_ref(), config, names, machine, losses.as_deref_mut())?;
    if let Some(losses) = &mut losses {
        losses.append(&mut recovered.bad_records);
    }
    recovered.check_files(disk.as_ref(), names, losses)?;
    Ok(recovered)
}

impl Recovered {
    pub(super) fn segments(&self) -> impl Iterator<Item = &Arc<LogSegment>> {
        self.full.iter().chain(&self.active)
    }

    pub(super) fn reserved(&self) -> i64 {
        self.reserved
    }

    fn read_checkpoint(
        &mut self,
        disk: &dyn Disk,
        number: u64,
        machine: &dyn StateMachine,
        losses: Option<&mut Vec<Loss>>,
    ) -> Result<(), StoreError> {
        let (mut begin, mut end) = (self.begin, self.end);
        let (index, files) = (&self.index, &self.files);
        let read = checkpoint::read(disk, &checkpoint_name(number), |item| {
            match item {
                Item::Begin(found) => begin = found,
                Item::End(found) => end = found,
                Item::State(record) => machine.apply(record)?,
                Item::File {
                    file,
                    size,
                    payload_bytes,
                } => files.add(file, size, payload_bytes),
                Item::Ledger {
                    ledger,
                    entries,
                    bytes,
                    ranges,
                } => {
                    ranges.iter().for_each(|range| files.alive(range));
                    index.restore(ledger, entries, bytes, ranges);
                }
            }
            Ok(())
        });
        match (read, losses) {
            (Err(error), Some(losses)) => {
                losses.push(loss(&error));
                self.checkpoint_lost = true;
                return Ok(());
            }
            (result, _) => result?,
        }
        begin.number = number;
        (self.begin, self.end) = (begin, end);
        self.reserved = end.reserved_ledgers;
        self.files.set_last_number(end.last_file);
        let next_record = begin.replay_record;
        self.log_end = LogEnd {
            next_commit: begin.next_commit,
            next_record,
        };
        Ok(())
    }

    fn read_log(
        &mut self,
        disk: &dyn Disk,
        config: &EmbeddedConfig,
        names: &[(String, u64)],
        machine: &dyn StateMachine,
        mut losses: Option<&mut Vec<Loss>>,
    ) -> Result<(), StoreError> {
        let durable = config.durability == Durability::Fsync;
        let segments = self.find_segments(disk, names, durable, losses.as_deref_mut())?;
        let mut expected_generation = self.begin.sorted_generation + 1;
        // Without a checkpoint the log begins at its beginning; with one the records' numbers
        // depend on where the last sorted segment ended, which the first commit tells.
        let mut expected = (self.begin.number == 0).then(LogEnd::default);
        let mut found: Vec<(Arc<LogSegment>, recovery::Scan)> = Vec::new();
        for segment in segments {
            if segment.generation != expected_generation && losses.is_none() {
                let what = format!(
                    "log generation {expected_generation} is missing, this is {}",
                    segment.generation
                );
                return Err(recovery::damage(disk, &segment, 0, what));
            }
            expected_generation = segment.generation + 1;
            let mut sink = |replayed: Replayed<'_>| self.replay(disk, &segment, machine, replayed);
            let scan = recovery::scan(disk, &segment, expected, losses.as_deref_mut(), &mut sink)?;
            if let Some(end) = scan.log_end {
                let before = expected.map_or(self.begin.next_commit, |end| end.next_commit);
                let first = end.next_commit - scan.commits;
                if first != before && losses.is_none() {
                    return Err(self.gap(disk, &found, &segment, before, first));
                }
                self.log_end = end;
                expected = Some(end);
            }
            segment.set_end(scan.end);
            self.records += scan.records;
            found.push((segment, scan));
        }
        if self.begin.number > 0 && found.is_empty() && losses.is_none() {
            return Err(StoreError::CannotOpen {
                reason: format!("the log of `{}` is missing", disk.describe("")).into(),
            });
        }
        if self.log_end.next_record < self.end.durable_record && losses.is_none() {
            let last = found.last().map(|(segment, scan)| (segment, scan.end));
            let what = format!(
                "the log ends at record {}, and was durable up to {}",
                self.log_end.next_record, self.end.durable_record
            );
            if let Some((segment, offset)) = last {
                return Err(recovery::damage(disk, segment, offset, what));
            }
        }
        if losses.is_none()
            && let Some(damage) = self.headless.drain().map(|(_, damage)| damage).next()
        {
            return Err(damage);
        }
        self.assign(found);
        Ok(())
    }

    /// Log files in the order of their generations, without those that are sorted already.
    fn find_segments(
        &mut self,
        disk: &dyn Disk,
        names: &[(String, u64)],
        durable: bool,
        mut losses: Option<&mut Vec<Loss>>,
    ) -> Result<Vec<Arc<LogSegment>>, StoreError> {
        let mut segments = Vec::new();
        for (name, size) in names {
            let Some(number) = log_file_number(name) else {
                continue;
            };
            self.last_log_file = self.last_log_file.max(number);
            let io =
                |error| StoreError::io(format!("cannot read `{}`", disk.describe(name)), error);
            let how = match self.repairing {
                true => Open::Read,
                false => Open::Log { durable },
            };
            let file = disk.open(name, how).map_err(io)?;
            let mut bytes = [0; SEGMENT_HEADER_BYTES];
            if *size >= SEGMENT_START {
                file.read_at(&mut bytes, 0).map_err(io)?;
            }
            // Its creator died before it was ready: it was never used.
            if bytes.iter().all(|byte| *byte == 0) {
                if !self.repairing {
                    disk.remove(name).map_err(io)?;
                }
                continue;
            }
            let header = match SegmentHeader::parse(&bytes) {
                Ok(header) => header,
                Err(error) => {
                    let what = format!("the header of the log file cannot be read: {error}");
                    let error = corrupt(&disk.describe(name), 0, what);
                    match &mut losses {
                        Some(losses) => losses.push(loss(&error)),
                        None => return Err(error),
                    }
                    continue;
                }
            };
            if header.generation <= self.begin.sorted_generation {
                self.free.push((name.clone(), *size));
                continue;
            }
            let segment = LogSegment::new(name.clone(), header, *size, file, SEGMENT_START);
            segments.push(Arc::new(segment));
        }
        segments.sort_by_key(|segment| segment.generation);
        Ok(segments)
    }

    /// Commits are missing between two segments: the fault lies at the end of the last that has any.
    fn gap(
        &self,
        disk: &dyn Disk,
        found: &[(Arc<LogSegment>, recovery::Scan)],
        segment: &LogSegment,
        before: u64,
        first: u64,
    ) -> StoreError {
        let what = format!("commits {before} to {first} cannot be read, later ones follow");
        let last = found.iter().rfind(|(_, scan)| scan.log_end.is_some());
        match last {
            Some((last, scan)) => recovery::damage(disk, last, scan.end, what),
            None => recovery::damage(disk, segment, SEGMENT_START, what),
        }
    }

    fn replay(
        &mut self,
        disk: &dyn Disk,
        segment: &LogSegment,
        machine: &dyn StateMachine,
        replayed: Replayed<'_>,
    ) -> Result<(), StoreError> {
        let header = replayed.header;
        match header.kind {
            RecordKind::Run => {
                let place = RecordPlace {
                    kind: RecordKind::Run,
                    ledger: header.ledger,
                    first: header.first,
                    count: header.count,
                    offset: replayed.offset as u32,
                    bytes: header.record_bytes() as u32,
                };
                self.reserved = self.reserved.max(header.ledger.0 + 1);
                if self.repairing {
                    self.index.replay_behind_gap(segment.generation, &place);
                    return Ok(());
                }
                let Err(due) = self.index.replay_run(segment.generation, &place) else {
                    return Ok(());
                };
                let what = format!(
                    "entry {} of ledger {} follows where entry {due} is due",
                    header.first, header.ledger
                );
                let damage = recovery::damage(disk, segment, replayed.offset, what);
                if due.0 > 0 {
                    return Err(damage);
                }
                self.headless.entry(header.ledger).or_insert(damage);
                Ok(())
            }
            RecordKind::State if replayed.number >= self.begin.replay_record => {
                match machine.apply(replayed.body) {
                    Err(error) if self.repairing => {
                        let what = error.to_string();
                        let damage = recovery::damage(disk, segment, replayed.offset, what);
                        self.bad_records.push(loss(&damage));
                        Ok(())
                    }
                    applied => applied,
                }
            }
            RecordKind::State | RecordKind::Create => Ok(()),
            RecordKind::Delete => {
                let (ranges, _) = self.index.delete(header.ledger);
                self.headless.remove(&header.ledger);
                self.files.dead(&ranges);
                Ok(())
            }
            RecordKind::Reserve => {
                // The last one counts: at a clean end what was not used is given back.
                self.reserved = header.ledger.0;
                Ok(())
            }
        }
    }

    /// Which segment is written next, which wait to be sorted, which are ready.
    fn assign(&mut self, found: Vec<(Arc<LogSegment>, recovery::Scan)>) {
        let used = |scan: &recovery::Scan| scan.log_end.is_some() || scan.torn;
        let active = found.iter().rposition(|(_, scan)| used(scan)).unwrap_or(0);
        for (index, (segment, scan)) in found.into_iter().enumerate() {
            match index.cmp(&active) {
                std::cmp::Ordering::Less => self.full.push(segment),
                std::cmp::Ordering::Equal => {
                    self.torn = scan.torn;
                    self.active = Some(segment);
                }
                std::cmp::Ordering::Greater => self.ready.push_back(segment),
            }
        }
    }

    /// Every file that a ledger needs is there; files that no checkpoint names are removed.
    fn check_files(
        &mut self,
        disk: &dyn Disk,
        names: &[(String, u64)],
        losses: Option<&mut Vec<Loss>>,
    ) -> Result<(), StoreError> {
        let mut needed: HashSet<u32> = HashSet::new();
        self.index
            .each_sorted(|_: LedgerId, _, _, ranges: &[SortedRange]| {
                needed.extend(ranges.iter().map(|range| range.file));
            });
        let mut missing = Vec::new();
        for (file, state) in self.files.table() {
            let name = segment_file_name(file);
            match names.iter().find(|(found, _)| *found == name) {
                Some((_, size)) if *size == state.size => {}
                None if !needed.contains(&file) => {
                    self.files.remove(file);
                }
                found => missing.push((name, state.size, found.map(|(_, size)| *size))),
            }
        }
        if let Some(losses) = losses {
            losses.extend(missing.iter().map(|(name, size, found)| Loss {
                file: disk.describe(name),
                offset: found.unwrap_or(0),
                what: format!("it should have {size} bytes"),
            }));
        } else if let Some((name, size, found)) = missing.first() {
            return Err(StoreError::Corrupt {
                path: disk.describe(name).into(),
                offset: found.unwrap_or(0),
                what: format!("it should have {size} bytes").into(),
            });
        }
        for (name, _) in names.iter().filter(|_| !self.repairing) {
            let orphan = segment_file_number(name).is_some_and(|file| !self.files.contains(file));
            let old = checkpoint_number(name).is_some_and(|number| number < self.begin.number);
            if orphan || old || name == checkpoint::TEMPORARY {
                // Nothing refers to it; if it stays now, the next start removes it.
                let _ = disk.remove(name);
            }
        }
        Ok(())
    }
}
