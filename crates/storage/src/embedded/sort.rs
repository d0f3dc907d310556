//! Moves finished log segments into a segment file, and publishes that by a checkpoint.
//!
//! When sorting lags behind, several segments go into one file and one checkpoint.

use std::sync::Arc;

use super::background::{RETRY, Sorter};
use super::checkpoint::{self, Begin, CheckpointWriter, End, Item, checkpoint_name};
use super::index::SortedRange;
use super::pace::{PIECE_BYTES, Pace};
use crate::StoreError;
use crate::disk::AlignedBuf;
use crate::segment::writer::{SegmentWriter, WrittenRange, segment_file_name};
use crate::wal::log_segment::{LogSegment, SEGMENT_START};
use crate::wal::record::{RECORD_HEADER_BYTES, RecordHeader, RecordKind};
use crate::wal::recovery::{self, LogEnd};

/// A run in one of the segments that are sorted.
struct Run {
    header: RecordHeader,
    source: usize,
    offset: u64,
}

/// Memory for the commits of a segment. It may be longer than they are: it is used again as it is.
#[derive(Default)]
pub(super) struct Content(AlignedBuf);

impl Content {
    fn get(&self, segment: &LogSegment) -> &[u8] {
        &self.0.as_slice()[..commits_bytes(segment)]
    }
}

fn commits_bytes(segment: &LogSegment) -> usize {
    (segment.end() - SEGMENT_START) as usize
}

impl Sorter {
    /// Moves what finished log segments hold into one segment file, and lets the segments go.
    pub(super) fn sort(&mut self, segments: &[Arc<LogSegment>]) -> Result<(), StoreError> {
        let mut runs = Vec::new();
        let mut log_end = None;
        let mut contents = Vec::with_capacity(segments.len());
        let mut pace = self.shared.background.pace();
        for (source, segment) in segments.iter().enumerate() {
            let content = self.load(segment, &mut pace)?;
            let loaded = content.get(segment);
            let end = self.find_runs(segment, loaded, source, &mut runs)?;
            log_end = end.or(log_end);
            contents.push(content);
        }
        runs.sort_unstable_by_key(|run| (run.header.ledger, run.header.first));
        if !runs.is_empty() {
            let (file, ranges) = self.write_file(segments, &contents, &runs, &mut pace)?;
            self.publish(segments, file, &ranges);
        }
        self.buffers.extend(contents);
        if let Some(segment) = segments.last() {
            self.sorted_generation = segment.generation;
        }
        self.next_commit = log_end.map_or(self.next_commit, |end| end.next_commit);
        // The segments are not sorted again when this fails for want of space, only checkpointed;
        // and they may not be used again before.
        match self.checkpoint() {
            Err(StoreError::Full) => self.retry_checkpoint()?,
            other => other?,
        }
        for segment in segments {
            let known = self.shared.index.remove_segment(segment.generation);
            self.retired.extend(known);
        }
        Ok(())
    }

    /// Reads a segment's commits; they are not in the page cache.
    fn load(&mut self, segment: &LogSegment, pace: &mut Pace) -> Result<Content, StoreError> {
        let mut content = self.buffers.pop().unwrap_or_default();
        let bytes = commits_bytes(segment);
        if content.0.len() < bytes {
            content.0.resize(bytes);
        }
        let buf = &mut content.0.as_mut_slice()[..bytes];
        let mut at = SEGMENT_START;
        for piece in buf.chunks_mut(PIECE_BYTES) {
            if let Err(error) = segment.file.read_at(piece, at) {
                return Err(self.shared.io_error("read", &segment.name, error));
            }
            at += piece.len() as u64;
            self.shared.background.linger(pace, piece.len() as u64);
        }
        Ok(content)
    }

    /// Verifies a segment and lists its runs of ledgers that still exist.
    fn find_runs(
        &self,
        segment: &Arc<LogSegment>,
        content: &[u8],
        source: usize,
        runs: &mut Vec<Run>,
    ) -> Result<Option<LogEnd>, StoreError> {
        let shared = &self.shared;
        let disk = shared.disk.as_ref();
        let scan = recovery::scan_loaded(disk, segment, content, &mut |replayed| {
            let header = replayed.header;
            if header.kind == RecordKind::Run && shared.index.contains(header.ledger) {
                runs.push(Run {
                    header,
                    source,
                    offset: replayed.offset,
                });
            }
            Ok(())
        })?;
        if scan.end != segment.end() {
            let what = "a commit that was durable cannot be read".to_owned();
            return Err(recovery::damage(disk, segment, scan.end, what));
        }
        Ok(scan.log_end)
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
        segments: &[Arc<LogSegment>],
        contents: &[Content],
        runs: &[Run],
        pace: &mut Pace,
    ) -> Result<(u32, Vec<WrittenRange>), StoreError> {
        let shared = &self.shared;
        let file = shared.files.next_number();
        let name = segment_file_name(file);
        let failed = |error| shared.io_error("write", &name, error);
        let mut write = || {
            let mut writer = SegmentWriter::create(shared.disk.as_ref(), file)?;
            for run in runs {
                let body = (run.offset - SEGMENT_START) as usize + RECORD_HEADER_BYTES;
                let content = contents[run.source].get(&segments[run.source]);
                let body = &content[body..body + run.header.body_bytes as usize];
                writer.push_run(&run.header, body)?;
                shared.background.linger(pace, body.len() as u64);
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
    fn publish(&self, segments: &[Arc<LogSegment>], file: u32, ranges: &[WrittenRange]) {
        let generation = segments.last().map_or(0, |segment| segment.generation);
        for written in ranges {
            let range = SortedRange {
                first: written.first.0,
                file,
                bytes: written.payload_bytes as u32,
            };
            self.shared.files.alive(&range);
            if !self.shared.index.sorted(written.ledger, generation, range) {
                self.shared.files.dead(&[range]);
            }
        }
    }

    /// Writes and publishes a checkpoint.
    pub(super) fn checkpoint(&mut self) -> Result<(), StoreError> {
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
}
