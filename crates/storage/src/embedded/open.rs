//! Opening: the newest checkpoint, then the log since. Verifies every checksum it passes, cuts a torn
//! tail, refuses damage, and says in one line what it did.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use geminga_model::LedgerId;
use parking_lot::Mutex;

use super::background::{Background, Sorter, newest_checkpoint, run_preparer};
use super::checkpoint::{self, Begin, End, Item, checkpoint_name, checkpoint_number};
use super::completion::Completion;
use super::directory::{DirectoryLock, check_format};
use super::files::SegmentFiles;
use super::index::{LedgerIndex, SortedRange};
use super::repair::{find_ledgers, loss};
use super::space::SpaceWatch;
use super::{EmbeddedConfig, EmbeddedStore, Host, LedgerIds, Shared};
use crate::disk::{Disk, Open};
use crate::segment::reader::corrupt;
use crate::segment::writer::segment_file_number;
use crate::wal::log_segment::{
    LogSegment, Pool, PoolLimits, SEGMENT_BYTES_FIRST, SEGMENT_START, create_zeroed, log_file_name,
    log_file_number, prepare,
};
use crate::wal::queue::{Queue, RecordPlace};
use crate::wal::record::{RecordKind, SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::wal::recovery::{self, LogEnd, Loss, Replayed};
use crate::wal::writer::{Writer, span};
use crate::{StateMachine, StoreError};

/// A segment is created at once when the store is opened and none is ready: this small.
const FIRST_BYTES_MIN: u64 = 64 << 10;

/// What was found on the disk.
pub(super) struct Recovered {
    pub(super) index: Arc<LedgerIndex>,
    pub(super) files: SegmentFiles,
    begin: Begin,
    end: End,
    log_end: LogEnd,
    reserved: i64,
    active: Option<Arc<LogSegment>>,
    full: Vec<Arc<LogSegment>>,
    ready: VecDeque<Arc<LogSegment>>,
    free: Vec<(String, u64)>,
    last_log_file: u64,
    records: u64,
    torn: bool,
    /// Ledgers whose beginning is nowhere: their deletion must follow, since a checkpoint written
    /// after it does not name them. Where the first such run is.
    headless: HashMap<LedgerId, StoreError>,
    /// The checkpoint is damaged, and this is a repair.
    checkpoint_lost: bool,
    /// A repair: damage is passed over, and nothing is changed on the disk.
    repairing: bool,
}

pub(super) fn open(
    disk: Arc<dyn Disk>,
    lock: Option<DirectoryLock>,
    config: EmbeddedConfig,
    machine: Arc<dyn StateMachine>,
) -> Result<Arc<EmbeddedStore>, StoreError> {
    let started = Instant::now();
    let names = list(disk.as_ref())?;
    check_format(disk.as_ref(), &names)?;
    let mut recovered = recover(&disk, &config, &names, machine.as_ref(), None)?;
    let durable = config.durability == super::Durability::Fsync;
    sync_what_was_read(disk.as_ref(), &recovered, durable)?;
    let (active, generation) = first_segment(disk.as_ref(), &mut recovered, &config, durable)?;
    let used = recovered.full.len() + 1;
    let last_size = recovered
        .ready
        .back()
        .map_or(active.size, |segment| segment.size);
    let limits = PoolLimits {
        segment_bytes: config.log_segment_bytes,
        segments_max: config.log_segments_max,
    };
    let pool = Pool::new(
        limits,
        recovered.ready,
        recovered.free,
        used,
        generation,
        last_size,
        recovered.last_log_file + 1,
    );
    let used_bytes = list(disk.as_ref())?.iter().map(|(_, size)| size).sum();
    let index = recovered.index;
    for segment in recovered.full.iter().chain([&active]) {
        index.add_segment(segment.clone());
    }
    let background = Arc::new(Background::default());
    recovered
        .full
        .iter()
        .for_each(|segment| background.full(segment.clone()));
    background.wake();
    let on_full = background.clone();
    let log_end = recovered.log_end;
    let queue = Queue::new(config.queue_bytes_max, log_end.next_record);
    let space = (config.space_low_bytes, config.space_reserve_bytes);
    let shared = Arc::new(Shared {
        completion: Completion::new(index.clone(), log_end.next_record, move |segment| {
            on_full.full(segment);
        }),
        queue: queue.clone(),
        index,
        pool,
        files: recovered.files,
        space: SpaceWatch::new(disk.clone(), space.0, space.1, used_bytes),
        background,
        ids: Mutex::new(LedgerIds {
            next: recovered.reserved,
            reserved: recovered.reserved,
            coming: None,
        }),
        machine,
        config,
        disk,
    });
    let sorter = Sorter {
        shared: shared.clone(),
        sorted_generation: recovered.begin.sorted_generation,
        next_commit: recovered.begin.next_commit,
        checkpoint_number: recovered.begin.number,
        checkpoint_bytes: 0,
        retired: Vec::new(),
    };
    let writer = Writer {
        queue,
        host: Host(shared.clone()),
        segment: active,
        next_commit: log_end.next_commit,
        durable,
    };
    tracing::info!(
        records = recovered.records,
        checkpoint = recovered.begin.number,
        cut_torn_tail = recovered.torn,
        elapsed_ms = started.elapsed().as_millis() as u64,
        "storage is open"
    );
    let store = Arc::new(EmbeddedStore {
        shared,
        threads: Mutex::default(),
        lock: Mutex::new(lock),
    });
    start_threads(&store, writer, sorter)?;
    Ok(store)
}

fn start_threads(
    store: &EmbeddedStore,
    writer: Writer<Host>,
    sorter: Sorter,
) -> Result<(), StoreError> {
    let (completing, preparing) = (store.shared.clone(), store.shared.clone());
    let mut threads = store.threads.lock();
    threads.push(spawn("geminga-log", move || writer.run())?);
    threads.push(spawn("geminga-done", move || completing.completion.run())?);
    threads.push(spawn("geminga-sort", move || sorter.run())?);
    threads.push(spawn("geminga-prepare", move || run_preparer(&preparing))?);
    Ok(())
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StoreError> {
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body);
    thread.map_err(|error| StoreError::io(format!("cannot start the thread `{name}`"), error))
}

pub(super) fn list(disk: &dyn Disk) -> Result<Vec<(String, u64)>, StoreError> {
    let place = disk.describe("");
    disk.list()
        .map_err(|error| StoreError::io(format!("cannot list `{place}`"), error))
}

/// What a killed process wrote and did not sync is true from now on, so it must be durable.
fn sync_what_was_read(
    disk: &dyn Disk,
    recovered: &Recovered,
    durable: bool,
) -> Result<(), StoreError> {
    if !durable {
        return Ok(());
    }
    let failed =
        |name: &str, error| StoreError::io(format!("cannot sync `{}`", disk.describe(name)), error);
    for segment in recovered.full.iter().chain(&recovered.active) {
        segment
            .file
            .sync()
            .map_err(|error| failed(&segment.name, error))?;
    }
    disk.sync_dir().map_err(|error| failed("", error))
}

/// The segment that is written next, and the generation after the last one.
fn first_segment(
    disk: &dyn Disk,
    recovered: &mut Recovered,
    config: &EmbeddedConfig,
    durable: bool,
) -> Result<(Arc<LogSegment>, u64), StoreError> {
    let known = recovered
        .full
        .iter()
        .chain(&recovered.active)
        .chain(&recovered.ready);
    let last = known.map(|segment| segment.generation).max();
    let next = last.unwrap_or(recovered.begin.sorted_generation) + 1;
    if let Some(active) = recovered.active.take() {
        // Commits of the other durability may have left the end between two blocks.
        if active.end() == span(active.end() as usize, durable) as u64 {
            return Ok((active, next));
        }
        recovered.full.push(active);
    }
    if let Some(ready) = recovered.ready.pop_front() {
        return Ok((ready, next));
    }
    let size = config
        .log_segment_bytes
        .clamp(FIRST_BYTES_MIN, SEGMENT_BYTES_FIRST);
    recovered.last_log_file += 1;
    let name = log_file_name(recovered.last_log_file);
    let create = || {
        create_zeroed(disk, &name, size)?;
        let segment = prepare(disk, &name, size, next, durable)?;
        disk.sync_dir()?;
        Ok(segment)
    };
    let segment = create().map_err(|error: std::io::Error| match error.kind() {
        std::io::ErrorKind::StorageFull => StoreError::Full,
        _ => StoreError::io(format!("cannot create `{}`", disk.describe(&name)), error),
    })?;
    Ok((Arc::new(segment), next + 1))
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
        let durable = config.durability == super::Durability::Fsync;
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
            let file = disk.open(name, Open::Log { durable }).map_err(io)?;
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
                let Err(due) = self.index.replay_run(segment.generation, &place) else {
                    return Ok(());
                };
                let what = format!(
                    "entry {} of ledger {} follows where entry {due} is due",
                    header.first, header.ledger
                );
                let damage = recovery::damage(disk, segment, replayed.offset, what);
                if due.0 > 0 && !self.repairing {
                    return Err(damage);
                }
                self.headless.entry(header.ledger).or_insert(damage);
                Ok(())
            }
            RecordKind::State if replayed.number >= self.begin.replay_record => {
                machine.apply(replayed.body)
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
            let name = crate::segment::writer::segment_file_name(file);
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
