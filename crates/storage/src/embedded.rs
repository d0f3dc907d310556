//! The embedded store: [`LedgerStore`] and [`StateLog`] over one directory of one machine.
//!
//! Everything is appended to one log (`wal`). In the background what the log holds is sorted by
//! ledger into segment files (`segment`), a checkpoint takes the place of the state records, and the
//! log's files are used again. `docs/adr/0001-storage-format.md` tells the format.
//!
//! Threads: the log's writer, the completion thread, one that prepares log files and one that sorts,
//! checkpoints and collects garbage. All are parked when nothing happens; none has a timer.

mod background;
mod checkpoint;
mod collect;
mod completion;
mod directory;
mod files;
mod index;
mod open;
mod pace;
mod read;
mod recover;
mod repair;
mod sort;
mod space;
mod traffic;

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use geminga_model::{EntryId, LedgerId};
use parking_lot::Mutex;

use crate::disk::{DirectoryDisk, Disk};
use crate::wal::log_segment::{LogSegment, Pool};
use crate::wal::queue::{LedgerTail, Queue, RecordPlace, Refused};
use crate::wal::record::RecordKind;
use crate::wal::writer::{Committed, WriterHost};
use crate::{
    AppendError, AppendObserver, BoxFuture, Entry, LedgerEnd, LedgerStore, LedgerWriter,
    ReadLimits, Space, StateLog, StateMachine, StoreError, Ticket,
};
use background::Background;
use completion::{Completion, Event};
use directory::DirectoryLock;
use files::SegmentFiles;
use index::{Appender, LedgerIndex};
use space::SpaceWatch;
use traffic::Traffic;

pub use crate::wal::recovery::Loss;
pub use repair::{Remains, Repair, RepairHost};

/// What "durable" means. Every benchmark names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// On the disk: survives the loss of power.
    #[default]
    Fsync,
    /// In the page cache: survives the process, not the power.
    Os,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddedConfig {
    pub durability: Durability,
    /// What a log file grows to. Recovery reads about two of them, all of them at worst.
    pub log_segment_bytes: u64,
    /// Log files in all. When so many wait to be sorted, appends wait.
    pub log_segments_max: usize,
    /// What may wait for the disk; then appends fail with `Busy`. A broker bounds what it has under
    /// way itself, by making its clients wait, so this should be well above that bound.
    pub queue_bytes_max: usize,
    /// With less free space than this, producers should slow down.
    pub space_low_bytes: u64,
    /// With less free space than this, entries are refused, so that acks and metadata go on.
    pub space_reserve_bytes: u64,
    /// Segment files held open, with their indexes.
    pub open_files_max: usize,
    /// How fast mostly dead segment files are rewritten.
    pub rewrite_bytes_per_second: u64,
}

impl Default for EmbeddedConfig {
    fn default() -> Self {
        Self {
            durability: Durability::Fsync,
            log_segment_bytes: 16 << 20,
            log_segments_max: 8,
            queue_bytes_max: 256 << 20,
            space_low_bytes: 512 << 20,
            space_reserve_bytes: 256 << 20,
            open_files_max: 256,
            rewrite_bytes_per_second: 32 << 20,
        }
    }
}

/// The open store. Dropping it drains the queue and ends its threads.
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    lock: Mutex<Option<DirectoryLock>>,
}

struct Shared {
    disk: Arc<dyn Disk>,
    config: EmbeddedConfig,
    machine: Arc<dyn StateMachine>,
    queue: Arc<Queue>,
    index: Arc<LedgerIndex>,
    completion: Completion,
    pool: Pool,
    files: SegmentFiles,
    space: SpaceWatch,
    traffic: Traffic,
    background: Arc<Background>,
    ids: Mutex<LedgerIds>,
}

/// Ledger ids are given out from a range that was written to the log before.
struct LedgerIds {
    next: i64,
    reserved: i64,
    /// A further range: its end, and the record number after which it is durable.
    coming: Option<(i64, u64)>,
}

const IDS_RESERVED: i64 = 1024;
/// How long a full disk may hold up the end.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(1);

impl EmbeddedStore {
    /// Opens or creates the store in `dir`, which is created if its parent exists.
    pub fn open(
        dir: &Path,
        config: EmbeddedConfig,
        machine: Arc<dyn StateMachine>,
    ) -> Result<Arc<Self>, StoreError> {
        let lock = DirectoryLock::take(dir)?;
        open::open(
            Arc::new(DirectoryDisk::new(dir)),
            Some(lock),
            config,
            machine,
        )
    }

    /// The same on any disk; the caller sees to it that nobody else has it open.
    pub fn open_on(
        disk: Arc<dyn Disk>,
        config: EmbeddedConfig,
        machine: Arc<dyn StateMachine>,
    ) -> Result<Arc<Self>, StoreError> {
        open::open(disk, None, config, machine)
    }

    /// Writes a checkpoint now, and waits for it.
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        self.shared.background.request_checkpoint()
    }

    /// Every ledger that holds entries or has a writer: to find those that nobody refers to.
    pub fn ledgers(&self) -> Vec<LedgerId> {
        self.shared.index.ledgers()
    }

    /// Takes nothing more, makes durable what was taken, and ends the threads.
    pub fn close(&self) {
        // Held to the end, so that a second caller returns when the threads have ended.
        let mut held = self.threads.lock();
        let threads = std::mem::take(&mut *held);
        let here = std::thread::current().id();
        if threads.iter().any(|thread| thread.thread().id() == here) {
            // The last owner let go inside of a callback: a thread cannot wait for its own end.
            let (shared, lock) = (self.shared.clone(), self.lock.lock().take());
            let closer = std::thread::Builder::new().name("geminga-close".into());
            let closed = closer.spawn(move || {
                shared.end(threads);
                drop(lock);
            });
            if let Err(error) = closed {
                tracing::error!(%error, "the storage threads cannot be ended");
            }
        } else if !threads.is_empty() {
            self.shared.end(threads);
            // Whoever still holds the store can do nothing with the directory any more.
            self.lock.lock().take();
        }
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn end(&self, mut threads: Vec<JoinHandle<()>>) {
        self.leave_ids();
        self.queue.close();
        let ended = |thread: JoinHandle<()>| {
            if thread.join().is_err() {
                tracing::error!("a storage thread has panicked");
            }
        };
        // In this order: the writer may need a segment from the other threads, and completes into
        // the completion thread. On a full disk it would wait for one for ever.
        let mut rest = threads.split_off(1);
        let deadline = Instant::now() + CLOSE_WAIT_MAX;
        while threads.iter().any(|writer| !writer.is_finished()) {
            if Instant::now() >= deadline {
                tracing::error!("the log could not be written to its end within the time limit");
                self.pool.close();
                break;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        threads.drain(..).for_each(ended);
        self.background.close();
        self.pool.close();
        self.completion.close();
        rest.drain(..).for_each(ended);
        self.completion.durability.close();
    }

    fn durable(&self) -> bool {
        self.config.durability == Durability::Fsync
    }

    fn io_error(&self, what: &str, file: &str, error: std::io::Error) -> StoreError {
        if error.kind() == std::io::ErrorKind::StorageFull {
            self.space.note_full();
            return StoreError::Full;
        }
        StoreError::io(
            format!("cannot {what} `{}`", self.disk.describe(file)),
            error,
        )
    }

    fn stopped(&self) -> StoreError {
        let failed = self.completion.durability.failed();
        failed.unwrap_or_else(|| StoreError::stopped("it was closed"))
    }

    fn push(&self, kind: RecordKind, ledger: LedgerId, body: &[u8]) -> Result<u64, StoreError> {
        self.queue
            .push(kind, ledger, body)
            .map_err(|refused| match refused {
                Refused::Busy => StoreError::Full,
                Refused::Size | Refused::Fenced => StoreError::bad_record("it is too large"),
                Refused::Closed | Refused::Failed => self.stopped(),
            })
    }

    /// A new id, and if need be a wait for the range it comes from.
    async fn next_id(&self) -> Result<LedgerId, StoreError> {
        loop {
            let wait = {
                let mut ids = self.ids.lock();
                if let Some((end, after)) = ids.coming
                    && self.completion.durability.is_durable(after)
                {
                    ids.reserved = end;
                    ids.coming = None;
                }
                if ids.coming.is_none() && ids.reserved - ids.next < IDS_RESERVED / 2 {
                    let end = ids.reserved + IDS_RESERVED;
                    let number = self.push(RecordKind::Reserve, LedgerId(end), &[])?;
                    ids.coming = Some((end, number + 1));
                }
                if ids.next < ids.reserved {
                    ids.next += 1;
                    return Ok(LedgerId(ids.next - 1));
                }
                ids.coming.map_or(0, |(_, after)| after)
            };
            self.completion.durability.wait(wait).await?;
        }
    }

    /// At a clean end the rest of the range is given back.
    fn leave_ids(&self) {
        let ids = self.ids.lock();
        // If the log does not take it, ids have a gap, as after a crash.
        let _ = self
            .queue
            .push(RecordKind::Reserve, LedgerId(ids.next), &[]);
    }

    async fn fence(&self, writer: &Appender) -> Result<LedgerEnd, StoreError> {
        let (_, next_record) = self.queue.fence(&writer.tail);
        self.completion.durability.wait(next_record).await?;
        Ok(self.index.end(writer.tail.ledger))
    }
}

impl LedgerStore for EmbeddedStore {
    fn create(
        &self,
        observer: Arc<dyn AppendObserver>,
    ) -> BoxFuture<'_, Result<Arc<dyn LedgerWriter>, StoreError>> {
        Box::pin(async move {
            if self.shared.space.is_full() {
                return Err(StoreError::Full);
            }
            let id = self.shared.next_id().await?;
            let appender = Arc::new(Appender {
                tail: LedgerTail::new(id),
                observer,
            });
            self.shared.index.create(appender.clone());
            let writer = EmbeddedWriter {
                shared: self.shared.clone(),
                appender,
            };
            Ok(Arc::new(writer) as Arc<dyn LedgerWriter>)
        })
    }

    fn read(
        &self,
        ledger: LedgerId,
        first: EntryId,
        limits: ReadLimits,
    ) -> BoxFuture<'_, Result<Vec<Entry>, StoreError>> {
        Box::pin(read::read(self.shared.clone(), ledger, first, limits))
    }

    fn recover(&self, ledger: LedgerId) -> BoxFuture<'_, Result<LedgerEnd, StoreError>> {
        Box::pin(async move {
            match self.shared.index.writer(ledger) {
                Some(writer) => {
                    let end = self.shared.fence(&writer).await?;
                    self.shared.index.detach(ledger);
                    Ok(end)
                }
                None => Ok(self.shared.index.end(ledger)),
            }
        })
    }

    fn delete(&self, ledger: LedgerId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            if let Some(writer) = self.shared.index.writer(ledger) {
                self.shared.queue.fence(&writer.tail);
            }
            let number = self.shared.push(RecordKind::Delete, ledger, &[])?;
            let (ranges, _) = self.shared.index.delete(ledger);
            self.shared.completion.durability.wait(number + 1).await?;
            if self.shared.files.dead(&ranges) {
                self.shared.background.wake();
            }
            Ok(())
        })
    }

    fn space(&self) -> Space {
        self.shared.space.measure()
    }

    fn is_full(&self) -> bool {
        self.shared.space.is_full_lately()
    }
}

impl StateLog for EmbeddedStore {
    fn append(&self, record: Bytes) -> Result<Ticket, StoreError> {
        let number = self.shared.push(RecordKind::State, LedgerId(0), &record)?;
        Ok(Ticket(number + 1))
    }

    fn durable(&self, ticket: Ticket) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.shared.completion.durability.wait(ticket.0))
    }
}

struct EmbeddedWriter {
    shared: Arc<Shared>,
    appender: Arc<Appender>,
}

impl LedgerWriter for EmbeddedWriter {
    fn id(&self) -> LedgerId {
        self.appender.tail.ledger
    }

    fn append(&self, entries: &[Bytes]) -> Result<EntryId, AppendError> {
        if self.shared.space.is_full() {
            return Err(AppendError::Full);
        }
        self.shared.traffic.note();
        let pushed = self.shared.queue.push_run(&self.appender.tail, entries);
        pushed
            .map(|(first, _)| first)
            .map_err(|refused| match refused {
                Refused::Busy => AppendError::Busy,
                Refused::Fenced => AppendError::Fenced { ledger: self.id() },
                Refused::Size => AppendError::BadRun {
                    entries: entries.len(),
                    bytes: entries.iter().map(Bytes::len).sum(),
                },
                Refused::Closed | Refused::Failed => AppendError::Stopped {
                    reason: self.shared.stopped().to_string().into(),
                },
            })
    }

    fn seal(&self) -> BoxFuture<'_, Result<LedgerEnd, StoreError>> {
        Box::pin(self.shared.fence(&self.appender))
    }
}

impl Drop for EmbeddedWriter {
    fn drop(&mut self) {
        self.shared.queue.fence(&self.appender.tail);
        self.shared.index.detach(self.appender.tail.ledger);
    }
}

/// The writer thread's surroundings.
struct Host(Arc<Shared>);

impl WriterHost for Host {
    fn next_segment(&mut self, full: &Arc<LogSegment>, bytes: u64) -> Option<Arc<LogSegment>> {
        self.0.completion.push(Event::Full(full.clone()));
        let next = self.0.pool.take(bytes)?;
        self.0.index.add_segment(next.clone());
        Some(next)
    }

    fn committed(&mut self, committed: Committed, more: bool) {
        self.0.completion.committed(committed, more);
    }

    fn spare_records(&mut self) -> Vec<RecordPlace> {
        self.0.completion.spare_records()
    }

    fn failed(&mut self, segment: &LogSegment, error: std::io::Error) {
        let file = self.0.disk.describe(&segment.name);
        tracing::error!(file, %error, "the log could not be written: the store takes nothing more");
        let reason = format!("writing `{file}` failed: {error}");
        self.0
            .completion
            .push(Event::Failed(StoreError::stopped(reason)));
    }
}

#[cfg(test)]
mod tests;
