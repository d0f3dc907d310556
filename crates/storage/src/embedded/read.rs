//! Reading entries: a plan under the index's lock, then I/O without it, on a thread that may block.
//!
//! Entries are slices of one buffer per read. Every record's checksum is verified.

use std::sync::Arc;

use bytes::Bytes;
use geminga_model::{EntryId, LedgerId, Position};

use super::Shared;
use super::index::{LogExtent, ReadPlan};
use crate::disk::Disk;
use crate::wal::record::{self, RecordKind, Salt};
use crate::wal::recovery::damage;
use crate::{Entry, ReadLimits, StoreError};

pub(super) async fn read(
    shared: Arc<Shared>,
    ledger: LedgerId,
    first: EntryId,
    limits: ReadLimits,
) -> Result<Vec<Entry>, StoreError> {
    let first = EntryId(first.0.max(0));
    match shared.index.plan(ledger, first, limits) {
        ReadPlan::NoLedger => Err(StoreError::NoLedger { ledger }),
        ReadPlan::Nothing => Ok(Vec::new()),
        plan => {
            let request = Request {
                ledger,
                first,
                limits,
            };
            // It keeps log files from being used again, so it is made once more after the wait.
            drop(plan);
            let gait = shared.traffic.gait(limits).await;
            let reader = shared.clone();
            // The turn ends with the read, also when nobody waits for it any more.
            let reading = move || {
                let plan = reader.index.plan(ledger, first, limits);
                let read = execute(&reader, plan, request, gait.gently);
                drop(gait);
                read
            };
            match tokio::runtime::Handle::try_current() {
                Ok(runtime) => {
                    let cancelled = |_| Err(StoreError::stopped("a read was cancelled"));
                    runtime
                        .spawn_blocking(reading)
                        .await
                        .unwrap_or_else(cancelled)
                }
                Err(_) => reading(),
            }
        }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Request {
    pub(super) ledger: LedgerId,
    pub(super) first: EntryId,
    pub(super) limits: ReadLimits,
}

/// Follows plans until the limits are reached or the durable end is: a ledger may lie in several
/// segment files and in the log.
fn execute(
    shared: &Shared,
    mut plan: ReadPlan,
    request: Request,
    gently: bool,
) -> Result<Vec<Entry>, StoreError> {
    let mut collector = Collector::new(request, gently);
    loop {
        let result = match &plan {
            // Deleted while it was read: what was found is still true.
            ReadPlan::NoLedger if collector.entries.is_empty() => {
                return Err(StoreError::NoLedger {
                    ledger: request.ledger,
                });
            }
            ReadPlan::NoLedger | ReadPlan::Nothing => return Ok(collector.entries),
            ReadPlan::Log(extents) => read_extents(shared.disk.as_ref(), extents, &mut collector),
            ReadPlan::File { file } => shared.files.read(*file, &mut collector),
        };
        let moved = match (&result, &plan) {
            // Rewritten between the plan and the read: it is in another file now.
            (Err(_), ReadPlan::File { file }) => !shared.files.contains(*file),
            _ => false,
        };
        if !moved {
            result?;
        }
        if collector.is_full() {
            return Ok(collector.entries);
        }
        plan = shared
            .index
            .plan(request.ledger, collector.next_entry(), collector.rest());
    }
}

/// Reads pieces of the log into one buffer, and cuts it into entries.
pub(super) fn read_extents(
    disk: &dyn Disk,
    extents: &[LogExtent],
    collector: &mut Collector,
) -> Result<(), StoreError> {
    let mut buf = vec![0; extents.iter().map(|extent| extent.bytes).sum()];
    let mut at = 0;
    for extent in extents {
        let part = &mut buf[at..at + extent.bytes];
        let file = &extent.segment.file;
        let read = match collector.gently {
            true => file.read_gently_at(part, extent.offset),
            false => file.read_at(part, extent.offset),
        };
        read.map_err(|error| {
            let place = disk.describe(&extent.segment.name);
            StoreError::io(format!("cannot read `{place}`"), error)
        })?;
        at += extent.bytes;
    }
    let buf = Bytes::from(buf);
    let mut at = 0;
    for extent in extents {
        let part = buf.slice(at..at + extent.bytes);
        let taken = collector.take(&part, extent.segment.salt, extent.offset);
        taken.map_err(|(offset, what)| damage(disk, &extent.segment, offset, what))?;
        at += extent.bytes;
    }
    Ok(())
}

/// Cuts records into entries until the limits are reached.
pub(super) struct Collector {
    request: Request,
    next: i64,
    bytes: usize,
    pub(super) entries: Vec<Entry>,
    full: bool,
    /// How the disk is to be read.
    pub(super) gently: bool,
}

impl Collector {
    pub(super) fn new(request: Request, gently: bool) -> Self {
        Self {
            request,
            next: request.first.0,
            bytes: 0,
            entries: Vec::new(),
            full: false,
            gently,
        }
    }

    pub(super) fn ledger(&self) -> LedgerId {
        self.request.ledger
    }

    /// What is wanted next.
    pub(super) fn next_entry(&self) -> EntryId {
        EntryId(self.next)
    }

    /// What the limits still allow.
    pub(super) fn rest(&self) -> ReadLimits {
        let limits = self.request.limits;
        ReadLimits::new(
            limits.entries_max.saturating_sub(self.entries.len()),
            limits.bytes_max.saturating_sub(self.bytes),
        )
    }

    fn is_full(&self) -> bool {
        let rest = self.rest();
        self.full || !self.entries.is_empty() && (rest.entries_max == 0 || rest.bytes_max == 0)
    }

    /// `records` is whole records, the first of which lies at `offset` of its file.
    pub(super) fn take(
        &mut self,
        records: &Bytes,
        salt: Salt,
        offset: u64,
    ) -> Result<(), (u64, String)> {
        let mut at = 0;
        while at < records.len() && !self.full {
            let place = offset + at as u64;
            let bad =
                |error: record::RecordError| (place, format!("a record cannot be read: {error}"));
            let (header, body) = record::parse(&records[at..], salt, place).map_err(bad)?;
            if header.kind != RecordKind::Run || header.ledger != self.request.ledger {
                return Err((place, "the record is of another ledger".to_owned()));
            }
            if header.last().0 >= self.next {
                if header.first.0 > self.next {
                    return Err((place, format!("entry {} is missing", self.next)));
                }
                let body = records.slice(at + body.start..at + body.end);
                let ranges = record::entry_ranges(&header, &body).map_err(bad)?;
                let skipped = (self.next - header.first.0) as usize;
                for range in ranges.into_ranges().skip(skipped) {
                    self.push(body.slice(range));
                }
            }
            at += header.record_bytes();
        }
        Ok(())
    }

    fn push(&mut self, data: Bytes) {
        if self.full
            || !self
                .request
                .limits
                .admit(self.entries.len(), self.bytes, data.len())
        {
            self.full = true;
            return;
        }
        self.bytes += data.len();
        let position = Position {
            ledger: self.request.ledger,
            entry: EntryId(self.next),
        };
        self.next += 1;
        self.entries.push(Entry { position, data });
    }
}
