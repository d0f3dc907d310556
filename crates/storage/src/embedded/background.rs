//! What happens beside the log: preparing its files, sorting finished ones into segment files,
//! checkpoints, and collecting dead files.
//!
//! Two threads. Sorting may fail for want of space and is tried again; any other failure to read or
//! write what was acknowledged stops the store.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use geminga_model::{EntryId, LedgerId};
use parking_lot::{Condvar, Mutex};

use super::Shared;
use super::checkpoint::{
    self, Begin, CheckpointWriter, End, Item, checkpoint_name, checkpoint_number,
};
use super::completion::Event;
use super::index::SortedRange;
use crate::StoreError;
use crate::segment::writer::{SegmentWriter, WrittenRange, segment_file_name};
use crate::wal::log_segment::{LogSegment, Preparation, SEGMENT_START, create_zeroed, prepare};
use crate::wal::record::{self, RecordKind};
use crate::wal::recovery;

/// How long to wait before trying again what failed for want of space.
const RETRY: Duration = Duration::from_millis(200);
/// How long readers may hold on to a log file before it is looked at again.
const RECYCLE_RETRY: Duration = Duration::from_millis(5);

#[derive(Default)]
pub(super) struct Background {
    todo: Mutex<Todo>,
    changed: Condvar,
}

#[derive(Default)]
struct Todo {
    full: VecDeque<Arc<LogSegment>>,
    requested: u64,
    done: u64,
    last_result: Option<StoreError>,
    collect: bool,
    closed: bool,
}

/// What the sorting thread remembers.
pub(super) struct Sorter {
    pub(super) shared: Arc<Shared>,
    pub(super) sorted_generation: u64,
    /// Where the log continues behind the sorted segments.
    pub(super) next_commit: u64,
    pub(super) checkpoint_number: u64,
    pub(super) checkpoint_bytes: u64,
    /// Sorted, and perhaps still read.
    pub(super) retired: Vec<Arc<LogSegment>>,
}

impl Background {
    pub(super) fn full(&self, segment: Arc<LogSegment>) {
        self.todo.lock().full.push_back(segment);
        self.changed.notify_all();
    }

    pub(super) fn wake(&self) {
        self.todo.lock().collect = true;
        self.changed.notify_all();
    }

    pub(super) fn close(&self) {
        self.todo.lock().closed = true;
        self.changed.notify_all();
    }

    pub(super) fn request_checkpoint(&self) -> Result<(), StoreError> {
        let mut todo = self.todo.lock();
        todo.requested += 1;
        let mine = todo.requested;
        self.changed.notify_all();
        while todo.done < mine {
            if todo.closed {
                return Err(StoreError::stopped("it was closed"));
            }
            self.changed.wait(&mut todo);
        }
        todo.last_result.clone().map_or(Ok(()), Err)
    }
}

/// The body of the preparing thread.
pub(super) fn run_preparer(shared: &Shared) {
    while let Some(preparation) = shared.pool.next_preparation() {
        shared.space.measure();
        let (name, result) = match preparation {
            Preparation::Reuse {
                name,
                size,
                generation,
            } => {
                let result = prepare(
                    shared.disk.as_ref(),
                    &name,
                    size,
                    generation,
                    shared.durable(),
                );
                if result.is_err() {
                    shared.count_removed(size);
                }
                (name, result)
            }
            Preparation::Create {
                name,
                size,
                generation,
                replaces,
            } => {
                if let Some((old, size)) = replaces
                    && shared.disk.remove(&old).is_ok()
                {
                    shared.count_removed(size);
                }
                let result = shared.create_segment(&name, size, generation);
                (name, result)
            }
        };
        match result {
            Ok(segment) => shared.pool.put_ready(segment),
            Err(error) => {
                // A file in an unknown state is of no use; it may not even be there.
                let _ = shared.disk.remove(&name);
                shared.pool.give_up();
                match shared.io_error("prepare", &name, error) {
                    StoreError::Full => {
                        tracing::warn!("no space for a new log file: trying again");
                        shared.pool.pause(RETRY);
                    }
                    error => {
                        shared.stop(&error);
                        return;
                    }
                }
            }
        }
    }
}

impl Shared {
    pub(super) fn create_segment(
        &self,
        name: &str,
        size: u64,
        generation: u64,
    ) -> io::Result<LogSegment> {
        create_zeroed(self.disk.as_ref(), name, size)?;
        let segment = prepare(self.disk.as_ref(), name, size, generation, self.durable())?;
        self.disk.sync_dir()?;
        self.count_added(size);
        Ok(segment)
    }

    /// Something beside the log failed: nothing more is taken, for good.
    fn stop(&self, error: &StoreError) {
        tracing::error!(%error, "the store takes nothing more");
        self.queue.fail();
        self.pool.close();
        self.completion
            .push(Event::Failed(StoreError::stopped(error.to_string())));
    }

    pub(super) fn count_added(&self, bytes: u64) {
        self.space
            .used_bytes
            .fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
    }

    pub(super) fn count_removed(&self, bytes: u64) {
        self.space
            .used_bytes
            .fetch_sub(bytes, std::sync::atomic::Ordering::Relaxed);
    }
}

enum Job {
    Sort(Arc<LogSegment>),
    Checkpoint(u64),
    Collect,
    Recycle,
}

impl Sorter {
    /// The body of the sorting thread.
    pub(super) fn run(mut self) {
        let background = self.shared.background.clone();
        while let Some(job) = self.next_job(&background) {
            let result = match &job {
                Job::Sort(segment) => self.sort(segment),
                Job::Checkpoint(_) => self.checkpoint(),
                Job::Collect => self.collect(),
                Job::Recycle => Ok(()),
            };
            self.shared.space.measure();
            match (job, result) {
                (Job::Checkpoint(requested), result) => {
                    let mut todo = background.todo.lock();
                    todo.done = requested;
                    todo.last_result = result.err();
                    background.changed.notify_all();
                }
                (_, Ok(())) => {}
                (job, Err(StoreError::Full)) => {
                    tracing::warn!("no space to sort the log: trying again");
                    let mut todo = background.todo.lock();
                    match job {
                        Job::Sort(segment) => todo.full.push_front(segment),
                        _ => todo.collect = true,
                    }
                    if !todo.closed {
                        background.changed.wait_for(&mut todo, RETRY);
                    }
                }
                (_, Err(_)) if background.todo.lock().closed => {}
                (_, Err(error)) => {
                    self.shared.stop(&error);
                    background.close();
                }
            }
            self.recycle();
        }
    }

    fn next_job(&self, background: &Background) -> Option<Job> {
        let mut todo = background.todo.lock();
        loop {
            if todo.closed {
                background.changed.notify_all();
                return None;
            }
            if let Some(segment) = todo.full.pop_front() {
                return Some(Job::Sort(segment));
            }
            if todo.done < todo.requested {
                return Some(Job::Checkpoint(todo.requested));
            }
            if std::mem::take(&mut todo.collect) {
                return Some(Job::Collect);
            }
            if self.retired.is_empty() {
                background.changed.wait(&mut todo);
            } else {
                background.changed.wait_for(&mut todo, RECYCLE_RETRY);
                return Some(Job::Recycle);
            }
        }
    }

    /// Moves what a finished log segment holds into a segment file, and lets the segment go.
    fn sort(&mut self, segment: &Arc<LogSegment>) -> Result<(), StoreError> {
        let shared = self.shared.clone();
        let mut runs: Vec<(LedgerId, EntryId, u64, usize)> = Vec::new();
        segment.file.will_read();
        let scan = recovery::scan(shared.disk.as_ref(), segment, None, None, &mut |replayed| {
            let header = replayed.header;
            if header.kind == RecordKind::Run && shared.index.contains(header.ledger) {
                runs.push((
                    header.ledger,
                    header.first,
                    replayed.offset,
                    header.record_bytes(),
                ));
            }
            Ok(())
        })?;
        if scan.end != segment.end() {
            let what = "a commit that was durable cannot be read".to_owned();
            return Err(recovery::damage(
                shared.disk.as_ref(),
                segment,
                scan.end,
                what,
            ));
        }
        runs.sort_unstable();
        let written = match runs.is_empty() {
            true => None,
            false => Some(self.write_file(segment, &runs)?),
        };
        if let Some((file, ranges)) = written {
            self.publish(segment, file, &ranges);
        }
        self.sorted_generation = segment.generation;
        if let Some(end) = scan.log_end {
            self.next_commit = end.next_commit;
        }
        // The segment is not sorted again when this fails for want of space, only checkpointed; and
        // it may not be used again before.
        match self.checkpoint() {
            Err(StoreError::Full) => self.retry_checkpoint()?,
            other => other?,
        }
        self.retired
            .extend(shared.index.remove_segment(segment.generation));
        Ok(())
    }

    fn retry_checkpoint(&mut self) -> Result<(), StoreError> {
        let background = self.shared.background.clone();
        loop {
            tracing::warn!("no space for a checkpoint: trying again");
            {
                let mut todo = background.todo.lock();
                if !todo.closed {
                    background.changed.wait_for(&mut todo, RETRY);
                }
                if todo.closed {
                    return Err(StoreError::stopped("it was closed"));
                }
            }
            match self.checkpoint() {
                Err(StoreError::Full) => {}
                other => return other,
            }
        }
    }

    fn write_file(
        &self,
        segment: &LogSegment,
        runs: &[(LedgerId, EntryId, u64, usize)],
    ) -> Result<(u32, Vec<WrittenRange>), StoreError> {
        let shared = &self.shared;
        let mut bytes = vec![0; (segment.end() - SEGMENT_START) as usize];
        let read = segment.file.read_at(&mut bytes, SEGMENT_START);
        read.map_err(|error| shared.io_error("read", &segment.name, error))?;
        let file = shared.files.next_number();
        let name = segment_file_name(file);
        let failed = |error| shared.io_error("write", &name, error);
        let write = || {
            let mut writer = SegmentWriter::create(shared.disk.as_ref(), file)?;
            for (ledger, first, offset, length) in runs {
                let at = (offset - SEGMENT_START) as usize;
                let run = &bytes[at..at + length];
                let unreadable = |error| io::Error::new(io::ErrorKind::InvalidData, error);
                let (header, body) =
                    record::parse(run, segment.salt, *offset).map_err(unreadable)?;
                let body = &run[body];
                let ranges = record::entry_ranges(&header, body).map_err(unreadable)?;
                for (entry, range) in (first.0..).zip(ranges.into_ranges()) {
                    writer.push(*ledger, EntryId(entry), &body[range])?;
                }
            }
            let written = writer.finish()?;
            shared.disk.sync_dir()?;
            Ok(written)
        };
        match write() {
            Ok((size, ranges)) => {
                let payload = ranges.iter().map(|range| range.payload_bytes).sum();
                shared.files.add(file, size, payload);
                shared.count_added(size);
                Ok((file, ranges))
            }
            Err(error) => {
                // Half a file; a later start would remove it too.
                let _ = shared.disk.remove(&name);
                Err(failed(error))
            }
        }
    }

    /// Reads go to the segment file from now on.
    fn publish(&self, segment: &LogSegment, file: u32, ranges: &[WrittenRange]) {
        for written in ranges {
            let range = SortedRange {
                first: written.first.0,
                file,
                bytes: written.payload_bytes as u32,
            };
            self.shared.files.alive(&range);
            if !self
                .shared
                .index
                .sorted(written.ledger, segment.generation, range)
            {
                self.shared.files.dead(&[range]);
            }
        }
    }

    /// Writes and publishes a checkpoint.
    fn checkpoint(&mut self) -> Result<(), StoreError> {
        let shared = self.shared.clone();
        let disk = shared.disk.as_ref();
        let number = self.checkpoint_number + 1;
        let replay_record = shared.queue.next_record();
        let failed = |error| shared.io_error("write", checkpoint::TEMPORARY, error);
        let mut writer = CheckpointWriter::create(disk).map_err(failed)?;
        writer.push(&Item::Begin(Begin {
            number,
            replay_record,
            sorted_generation: self.sorted_generation,
            next_commit: self.next_commit,
        }));
        shared
            .machine
            .snapshot(&mut |record| writer.push(&Item::State(record)));
        for (file, state) in shared.files.table() {
            let (size, payload_bytes) = (state.size, state.payload_bytes);
            writer.push(&Item::File {
                file,
                size,
                payload_bytes,
            });
        }
        shared.index.each_sorted(|ledger, entries, bytes, ranges| {
            writer.push(&Item::Ledger {
                ledger,
                entries,
                bytes,
                ranges: ranges.to_vec(),
            });
        });
        // The snapshot may hold effects of records that are not durable yet: those first. The writer
        // may need a segment for them, which it must not wait for us to free.
        let (durable_record, reserved_ledgers) = {
            let ids = shared.ids.lock();
            let reserved = ids.coming.map_or(ids.reserved, |(end, _)| end);
            (shared.queue.next_record(), reserved)
        };
        shared.pool.lift_limit(true);
        let waited = shared.completion.durability.wait_blocking(durable_record);
        shared.pool.lift_limit(false);
        waited?;
        let last_file = shared.files.last_number();
        let size = writer.finish(End {
            durable_record,
            reserved_ledgers,
            last_file,
        });
        let size = size.map_err(failed)?;
        let name = checkpoint_name(number);
        let publish = || {
            disk.rename(checkpoint::TEMPORARY, &name)?;
            disk.sync_dir()
        };
        publish().map_err(|error| shared.io_error("publish", &name, error))?;
        if self.checkpoint_number > 0 {
            // One that stays is removed at the next start.
            let _ = disk.remove(&checkpoint_name(self.checkpoint_number));
        }
        shared.count_added(size);
        shared.count_removed(self.checkpoint_bytes);
        self.checkpoint_number = number;
        self.checkpoint_bytes = size;
        Ok(())
    }

    /// Log files that nobody reads any more are used again.
    fn recycle(&mut self) {
        let shared = &self.shared;
        self.retired.retain_mut(|segment| {
            if Arc::get_mut(segment).is_none() {
                return true;
            }
            let (name, size) = (segment.name.clone(), segment.size);
            if !shared.pool.recycle(name, size) && shared.disk.remove(&segment.name).is_ok() {
                shared.count_removed(size);
            }
            false
        });
    }

    /// Removes dead segment files and rewrites mostly dead ones.
    fn collect(&mut self) -> Result<(), StoreError> {
        let choice = self.shared.files.choose();
        if !choice.rewrite.is_empty() {
            self.rewrite(&choice.rewrite)?;
        }
        for file in choice.remove {
            self.remove_file(file);
        }
        Ok(())
    }

    /// Nothing that counts refers to the file.
    fn remove_file(&self, file: u32) {
        let size = self.shared.files.remove(file);
        if let Err(error) = self.shared.disk.remove(&segment_file_name(file)) {
            let file = segment_file_name(file);
            tracing::warn!(file, %error, "a dead segment file stays until the next start");
            return;
        }
        self.shared.count_removed(size);
    }

    fn rewrite(&mut self, files: &[u32]) -> Result<(), StoreError> {
        let shared = self.shared.clone();
        let mut rows = Vec::new();
        let mut open = Vec::new();
        for file in files {
            let segment = shared.files.open(*file)?;
            for (number, row) in segment.index.ledgers.iter().enumerate() {
                if shared.index.contains(row.ledger) {
                    rows.push((row.ledger, row.first, open.len(), number));
                }
            }
            open.push(segment);
        }
        rows.sort_unstable();
        let to = shared.files.next_number();
        let name = segment_file_name(to);
        let failed = |error| shared.io_error("write", &name, error);
        let mut writer = SegmentWriter::create(shared.disk.as_ref(), to).map_err(failed)?;
        for (ledger, _, source, number) in &rows {
            let segment = &open[*source];
            let Some((offset, length)) = segment.index.extent(*number) else {
                continue;
            };
            let records = segment.bytes_at(offset, length)?;
            let request = super::read::Request {
                ledger: *ledger,
                first: segment.index.ledgers[*number].first,
                limits: crate::ReadLimits::new(usize::MAX, usize::MAX),
            };
            let mut collector = super::read::Collector::new(request);
            collector
                .take(&records, segment.salt, offset)
                .map_err(|(offset, what)| {
                    crate::segment::reader::corrupt(&segment.place, offset, what)
                })?;
            for entry in &collector.entries {
                writer
                    .push(*ledger, entry.position.entry, &entry.data)
                    .map_err(failed)?;
            }
            if self.slow_down(length as u64) {
                let _ = shared.disk.remove(&name);
                return Ok(());
            }
        }
        let (size, ranges) = writer.finish().map_err(failed)?;
        shared.disk.sync_dir().map_err(failed)?;
        let payload = ranges.iter().map(|range| range.payload_bytes).sum();
        shared.files.add(to, size, payload);
        shared.count_added(size);
        for (ledger, ..) in &rows {
            for moved in shared.index.moved(*ledger, files, to) {
                shared.files.alive(&moved);
            }
        }
        self.checkpoint()?;
        for file in files {
            self.remove_file(*file);
        }
        Ok(())
    }

    /// Keeps to the configured rate. True: the store closes.
    fn slow_down(&self, bytes: u64) -> bool {
        let rate = self.shared.config.rewrite_bytes_per_second.max(1);
        let mut todo = self.shared.background.todo.lock();
        let pause = Duration::from_micros(bytes.saturating_mul(1_000_000) / rate);
        if !todo.closed && !pause.is_zero() {
            self.shared.background.changed.wait_for(&mut todo, pause);
        }
        todo.closed
    }
}

/// The number of the newest checkpoint among these files.
pub(super) fn newest_checkpoint(names: &[(String, u64)]) -> Option<u64> {
    names
        .iter()
        .filter_map(|(name, _)| checkpoint_number(name))
        .max()
}
