//! Measures the embedded store on the disk under a directory (the first argument, or the system's
//! temporary one): `cargo run --release -p geminga-storage --example log_bench [DIR] [fsync|os]`.
//! Takes some five seconds and writes a few GiB at most.

#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use geminga_model::{EntryId, LedgerId};
use geminga_storage::disk::{AlignedBuf, BLOCK_BYTES, DirectoryDisk, Disk, Open};
use geminga_storage::{
    AppendError, AppendObserver, Durability, EmbeddedConfig, EmbeddedStore, LedgerStore,
    LedgerWriter, ReadLimits, StateMachine, StoreError,
};
use parking_lot::{Condvar, Mutex};

const PHASE: Duration = Duration::from_millis(700);

struct NoState;

impl StateMachine for NoState {
    fn apply(&self, _: &[u8]) -> Result<(), StoreError> {
        Ok(())
    }

    fn snapshot(&self, _: &mut dyn FnMut(&[u8])) {}
}

#[derive(Default)]
struct Watermark {
    through: AtomicI64,
    lock: Mutex<()>,
    changed: Condvar,
}

impl AppendObserver for Watermark {
    fn durable(&self, _: LedgerId, through: EntryId) {
        self.through.store(through.0, Ordering::Release);
        drop(self.lock.lock());
        self.changed.notify_all();
    }

    fn failed(&self, _: LedgerId, error: Arc<StoreError>) {
        println!("failed: {error}");
        std::process::exit(1);
    }
}

impl Watermark {
    fn wait(&self, through: i64) {
        let mut guard = self.lock.lock();
        while self.through.load(Ordering::Acquire) < through {
            self.changed.wait(&mut guard);
        }
    }
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let base = args.next().map_or_else(std::env::temp_dir, Into::into);
    let durability = match args.next().as_deref() {
        Some("os") => Durability::Os,
        _ => Durability::Fsync,
    };
    let dir = tempfile::tempdir_in(base)?;
    println!("{} with durability {durability:?}", dir.path().display());
    raw_sync(dir.path())?;
    let path = dir.path().join("data");
    let config = EmbeddedConfig {
        durability,
        ..EmbeddedConfig::default()
    };
    let opened = Instant::now();
    let store = EmbeddedStore::open(&path, config.clone(), Arc::new(NoState))?;
    println!("open, new: {:.1} ms", opened.elapsed().as_secs_f64() * 1e3);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    runtime.block_on(async {
        commits(&store).await?;
        let small = throughput(&store, "100 B, runs of 1", 100, 1, 20_000).await?;
        let runs = throughput(&store, "100 B, runs of 100", 100, 100, 200_000).await?;
        let large = throughput(&store, "64 KiB, runs of 4", 64 << 10, 4, 400).await?;
        for (name, ledger) in [
            ("runs of 1", small),
            ("runs of 100", runs),
            ("64 KiB", large),
        ] {
            read(&store, name, ledger).await?;
        }
        anyhow::Ok(())
    })?;
    println!("resident: {} MiB", resident_mib());
    drop(store);
    let opened = Instant::now();
    let store = EmbeddedStore::open(&path, config, Arc::new(NoState))?;
    println!(
        "open, with this backlog: {:.1} ms",
        opened.elapsed().as_secs_f64() * 1e3
    );
    drop(store);
    Ok(())
}

fn percentile(samples: &mut [Duration], part: f64) -> f64 {
    samples.sort_unstable();
    samples[((samples.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6
}

fn raw_sync(dir: &Path) -> Result<()> {
    const BLOCKS: u64 = 256;
    let disk = DirectoryDisk::new(dir);
    let mut block = AlignedBuf::with_capacity(BLOCK_BYTES);
    block.resize(BLOCK_BYTES);
    let file = disk.open("raw", Open::Create)?;
    for index in 0..BLOCKS {
        file.write_at(block.as_slice(), index * BLOCK_BYTES as u64)?;
    }
    file.sync()?;
    let file = disk.open("raw", Open::Log { durable: true })?;
    let mut samples = Vec::new();
    let started = Instant::now();
    while started.elapsed() < PHASE {
        let at = samples.len() as u64 % BLOCKS * BLOCK_BYTES as u64;
        let one = Instant::now();
        file.write_at(block.as_slice(), at)?;
        if !file.syncs_itself() {
            file.sync()?;
        }
        samples.push(one.elapsed());
    }
    println!(
        "the disk's own synced 4 KiB write: p50 {:.0} us, p99 {:.0} us",
        percentile(&mut samples, 0.5),
        percentile(&mut samples, 0.99),
    );
    Ok(())
}

async fn ledger(store: &EmbeddedStore) -> Result<(Arc<dyn LedgerWriter>, Arc<Watermark>)> {
    let watermark = Arc::new(Watermark {
        through: AtomicI64::new(-1),
        ..Watermark::default()
    });
    Ok((store.create(watermark.clone()).await?, watermark))
}

async fn commits(store: &EmbeddedStore) -> Result<()> {
    let (writer, watermark) = ledger(store).await?;
    let entry = [Bytes::from(vec![7; 100])];
    let mut samples = Vec::new();
    let started = Instant::now();
    while started.elapsed() < PHASE {
        let one = Instant::now();
        let id = writer.append(&entry)?;
        watermark.wait(id.0);
        samples.push(one.elapsed());
    }
    println!(
        "a durable append of 100 B, one at a time: p50 {:.0} us, p99 {:.0} us",
        percentile(&mut samples, 0.5),
        percentile(&mut samples, 0.99),
    );
    Ok(())
}

/// Appends from one thread with at most `window` entries in flight.
async fn throughput(
    store: &EmbeddedStore,
    name: &str,
    entry_bytes: usize,
    run: usize,
    window: i64,
) -> Result<LedgerId> {
    let (writer, watermark) = ledger(store).await?;
    let entries = vec![Bytes::from(vec![7; entry_bytes]); run];
    let started = Instant::now();
    let mut last = -1;
    while started.elapsed() < PHASE {
        match writer.append(&entries) {
            Ok(first) => last = first.0 + run as i64 - 1,
            Err(AppendError::Busy) => std::thread::yield_now(),
            Err(error) => return Err(error.into()),
        }
        if last - watermark.through.load(Ordering::Relaxed) > window {
            watermark.wait(last - window / 2);
        }
    }
    watermark.wait(last);
    let seconds = started.elapsed().as_secs_f64();
    let entries = (last + 1) as f64;
    println!(
        "append {name}: {:.0} entries/s, {:.0} MB/s",
        entries / seconds,
        entries * entry_bytes as f64 / seconds / 1e6,
    );
    Ok(writer.id())
}

async fn read(store: &EmbeddedStore, name: &str, ledger: LedgerId) -> Result<()> {
    let started = Instant::now();
    let (mut entries, mut bytes) = (0_u64, 0_usize);
    while started.elapsed() < PHASE {
        let limits = ReadLimits::new(usize::MAX, 1 << 20);
        let found = store.read(ledger, EntryId(entries as i64), limits).await?;
        if found.is_empty() {
            break;
        }
        entries += found.len() as u64;
        bytes += found.iter().map(|entry| entry.data.len()).sum::<usize>();
    }
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "read {name}: {entries} entries, {:.0} entries/s, {:.0} MB/s",
        entries as f64 / seconds,
        bytes as f64 / seconds / 1e6,
    );
    Ok(())
}

fn resident_mib() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: Option<u64> = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    (pages.unwrap_or(0) * 4096) >> 20
}
