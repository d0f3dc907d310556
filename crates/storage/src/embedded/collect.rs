//! Removes segment files whose ledgers are all gone, and rewrites those that are mostly dead.

use std::time::Duration;

use super::background::Sorter;
use super::read::{Collector, Request};
use crate::segment::reader::corrupt;
use crate::segment::writer::{SegmentWriter, segment_file_name};
use crate::{ReadLimits, StoreError};

impl Sorter {
    /// Removes dead segment files and rewrites mostly dead ones.
    pub(super) fn collect(&mut self) -> Result<(), StoreError> {
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
            let records = segment.bytes_at(offset, length, true)?;
            let request = Request {
                ledger: *ledger,
                first: segment.index.ledgers[*number].first,
                limits: ReadLimits::new(usize::MAX, usize::MAX),
            };
            let mut collector = Collector::new(request, true);
            collector
                .take(&records, segment.salt, offset)
                .map_err(|(offset, what)| corrupt(&segment.place, offset, what))?;
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
