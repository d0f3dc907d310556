//! Opening: the newest checkpoint, then the log since. Verifies every checksum it passes, cuts a torn
//! tail, refuses damage, and says in one line what it did.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::Mutex;

use super::background::{Background, Sorter, run_preparer};
use super::completion::Completion;
use super::directory::{DirectoryLock, check_format};
use super::recover::{Recovered, recover};
use super::space::SpaceWatch;
use super::traffic::Traffic;
use super::{Durability, EmbeddedConfig, EmbeddedStore, Host, LedgerIds, Shared};
use crate::disk::Disk;
use crate::wal::log_segment::{
    LogSegment, Pool, PoolLimits, SEGMENT_BYTES_FIRST, create_zeroed, log_file_name, prepare,
};
use crate::wal::queue::Queue;
use crate::wal::writer::{Writer, span};
use crate::{StateMachine, StoreError};

/// A segment is created at once when the store is opened and none is ready: this small.
const FIRST_BYTES_MIN: u64 = 64 << 10;

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
    let durable = config.durability == Durability::Fsync;
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
        traffic: Traffic::new(),
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
    // A disk that is full already is told now, and not when the first file is made.
    shared.space.measure();
    let sorter = Sorter {
        shared: shared.clone(),
        sorted_generation: recovered.begin.sorted_generation,
        next_commit: recovered.begin.next_commit,
        checkpoint_number: recovered.begin.number,
        checkpoint_bytes: 0,
        retired: Vec::new(),
        buffers: Vec::new(),
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
    // A new directory is synced with its first log file.
    let nothing_read = recovered.segments().next().is_none() && recovered.ready.is_empty();
    if !durable || nothing_read {
        return Ok(());
    }
    let failed =
        |name: &str, error| StoreError::io(format!("cannot sync `{}`", disk.describe(name)), error);
    for segment in recovered
        .full
        .iter()
        .chain(&recovered.active)
        .chain(&recovered.ready)
    {
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
        create_zeroed(disk, &name, size, durable, |_| {})?;
        let segment = prepare(disk, &name, size, next, durable)?;
        if durable {
            disk.sync_dir()?;
        }
        Ok(segment)
    };
    let segment = create().map_err(|error: std::io::Error| match error.kind() {
        std::io::ErrorKind::StorageFull => StoreError::Full,
        _ => StoreError::io(format!("cannot create `{}`", disk.describe(&name)), error),
    })?;
    Ok((Arc::new(segment), next + 1))
}
