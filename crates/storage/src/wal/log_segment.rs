//! One file of the log, and the pool of files that are ready for the writer.
//!
//! A file is written with zeros once, before its first use, and recycled for ever: overwriting
//! blocks that exist costs the disk one write, extending a file costs a journal commit too. Each use
//! has a new generation and a new salt in the header block. Files start small, so that a fresh
//! store opens at once and an idle one stays small, and grow fourfold up to the configured size
//! as the log is used.
//!
//! What must hold: generations are given in the order of use, without a gap; a file whose header is
//! not whole was never used (all zeros) or is damaged.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use geminga_stdx::Random;
use parking_lot::{Condvar, Mutex};

use super::record::{Salt, SegmentHeader};
use crate::disk::{AlignedBuf, BLOCK_BYTES, Disk, DiskFile, Open};

/// Where the first commit of a segment lies.
pub const SEGMENT_START: u64 = BLOCK_BYTES as u64;
/// The first file of a new store.
pub const SEGMENT_BYTES_FIRST: u64 = 1 << 20;
const GROWTH: u64 = 4;
/// Small, because an idle server keeps what its threads once used.
const ZERO_WRITE_BYTES: usize = 256 << 10;

/// A log file in one use of it.
#[derive(Debug)]
pub struct LogSegment {
    pub name: String,
    pub generation: u64,
    pub salt: Salt,
    pub size: u64,
    pub file: Arc<dyn DiskFile>,
    /// Where the last commit ends.
    end: AtomicU64,
}

impl LogSegment {
    pub fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    pub fn set_end(&self, end: u64) {
        self.end.store(end, Ordering::Release);
    }

    pub fn new(
        name: String,
        header: SegmentHeader,
        size: u64,
        file: Arc<dyn DiskFile>,
        end: u64,
    ) -> Self {
        let (generation, salt) = (header.generation, header.salt);
        Self {
            name,
            generation,
            salt,
            size,
            file,
            end: AtomicU64::new(end),
        }
    }
}

pub fn log_file_name(number: u64) -> String {
    format!("log-{number:08}")
}

pub fn log_file_number(name: &str) -> Option<u64> {
    name.strip_prefix("log-")?.parse().ok()
}

/// Creates a file full of zeros; its name is durable after the next `sync_dir`. `written` is told of each
/// write, and may take its time.
pub fn create_zeroed(
    disk: &dyn Disk,
    name: &str,
    size: u64,
    durable: bool,
    mut written: impl FnMut(u64),
) -> io::Result<()> {
    let file = disk.open(name, Open::Create)?;
    let mut zeros = AlignedBuf::default();
    zeros.resize(ZERO_WRITE_BYTES.min(size as usize));
    let mut at = 0;
    while at < size {
        let bytes = zeros.len().min((size - at) as usize);
        file.write_at(&zeros.as_slice()[..bytes], at)?;
        at += bytes as u64;
        written(bytes as u64);
    }
    if durable { file.sync() } else { Ok(()) }
}

/// Puts a zeroed or finished file to its next use.
pub fn prepare(
    disk: &dyn Disk,
    name: &str,
    size: u64,
    generation: u64,
    durable: bool,
) -> io::Result<LogSegment> {
    let file = disk.open(name, Open::Log { durable })?;
    let header = SegmentHeader {
        generation,
        salt: Salt(Random::from_entropy().next_u64()),
    };
    let mut block = AlignedBuf::default();
    block.extend(&header.encode());
    block.resize(BLOCK_BYTES);
    file.write_at(block.as_slice(), 0)?;
    if durable && !file.syncs_itself() {
        file.sync()?;
    }
    Ok(LogSegment::new(
        name.to_owned(),
        header,
        size,
        file,
        SEGMENT_START,
    ))
}

/// The segments between their uses. The preparing thread fills it, the writer takes from it.
#[derive(Debug)]
pub struct Pool {
    inner: Mutex<PoolInner>,
    /// For the writer: a segment is ready.
    ready: Condvar,
    /// For the preparing thread: there may be something to do.
    work: Condvar,
    limits: PoolLimits,
}

#[derive(Clone, Copy, Debug)]
pub struct PoolLimits {
    /// What a file grows to.
    pub segment_bytes: u64,
    /// Files in all: when so many wait to be sorted the writer waits too.
    pub segments_max: usize,
}

#[derive(Debug)]
struct PoolInner {
    /// Ready for use, in the order of their generations.
    ready: VecDeque<Arc<LogSegment>>,
    /// Files without a use.
    free: Vec<(String, u64)>,
    /// Files in all, used or not.
    files: usize,
    next_file: u64,
    next_generation: u64,
    last_size: u64,
    /// What the writer waits for, if it waits.
    wanted_bytes: Option<u64>,
    limit_lifted: bool,
    closed: bool,
}

/// What the preparing thread is to do to have a segment ready.
#[derive(Debug, PartialEq, Eq)]
pub enum Preparation {
    Reuse {
        name: String,
        size: u64,
        generation: u64,
    },
    Create {
        name: String,
        size: u64,
        generation: u64,
        replaces: Option<(String, u64)>,
    },
}

impl Pool {
    /// `used` files are in the log already; the greatest generation on disk is the one before
    /// `next_generation`, and `last_size` the size of its file.
    pub fn new(
        limits: PoolLimits,
        ready: VecDeque<Arc<LogSegment>>,
        free: Vec<(String, u64)>,
        used: usize,
        next_generation: u64,
        last_size: u64,
        next_file: u64,
    ) -> Self {
        let files = used + ready.len() + free.len();
        Self {
            inner: Mutex::new(PoolInner {
                ready,
                free,
                files,
                next_file,
                next_generation,
                last_size,
                wanted_bytes: None,
                limit_lifted: false,
                closed: false,
            }),
            ready: Condvar::new(),
            work: Condvar::new(),
            limits,
        }
    }

    /// The writer's side: waits for the next segment. `None` when the store closes.
    pub fn take(&self, bytes: u64) -> Option<Arc<LogSegment>> {
        let mut inner = self.inner.lock();
        loop {
            if let Some(segment) = inner.ready.pop_front() {
                inner.wanted_bytes = (segment.size < bytes).then_some(bytes);
                self.work.notify_one();
                return Some(segment);
            }
            if inner.closed {
                return None;
            }
            inner.wanted_bytes = Some(bytes);
            self.work.notify_one();
            self.ready.wait(&mut inner);
        }
    }

    /// The preparing thread's side: waits for something to do. `None` when the store closes.
    pub fn next_preparation(&self) -> Option<Preparation> {
        let mut inner = self.inner.lock();
        loop {
            if inner.closed {
                return None;
            }
            if let Some(preparation) = inner.next_preparation(&self.limits) {
                return Some(preparation);
            }
            self.work.wait(&mut inner);
        }
    }

    /// Takes some time over a preparation, unless the writer waits for it. True: it does.
    pub fn linger(&self, time: Duration) -> bool {
        let mut inner = self.inner.lock();
        let waited_for = |inner: &PoolInner| inner.closed || inner.wanted_bytes.is_some();
        if !waited_for(&inner) {
            self.work.wait_for(&mut inner, time);
        }
        waited_for(&inner)
    }

    /// After a failed preparation: waits a while, or for a reason to try again.
    pub fn pause(&self, time: Duration) {
        let mut inner = self.inner.lock();
        if !inner.closed {
            self.work.wait_for(&mut inner, time);
        }
    }

    /// A preparation is done.
    pub fn put_ready(&self, segment: LogSegment) {
        let mut inner = self.inner.lock();
        debug_assert_eq!(segment.generation, inner.next_generation);
        inner.next_generation = segment.generation + 1;
        inner.last_size = segment.size;
        inner.ready.push_back(Arc::new(segment));
        self.ready.notify_one();
    }

    /// A preparation failed, and its file was removed.
    pub fn give_up(&self) {
        self.inner.lock().files -= 1;
    }

    /// A file's use has ended; it may be used again. False: there are too many, remove it.
    pub fn recycle(&self, name: String, size: u64) -> bool {
        let mut inner = self.inner.lock();
        if inner.files > self.limits.segments_max {
            inner.files -= 1;
            return false;
        }
        inner.free.push((name, size));
        self.work.notify_one();
        true
    }

    /// While a checkpoint waits for the writer, the writer must not wait for a checkpoint: as many
    /// files as it needs are allowed then. What it writes meanwhile is bounded by its queue.
    pub fn lift_limit(&self, lifted: bool) {
        self.inner.lock().limit_lifted = lifted;
        self.work.notify_one();
    }

    /// The writer does not wait any more.
    pub fn close(&self) {
        self.inner.lock().closed = true;
        self.ready.notify_all();
        self.work.notify_all();
    }
}

impl PoolInner {
    /// One ready segment for a small log, two for a large one.
    fn next_preparation(&mut self, limits: &PoolLimits) -> Option<Preparation> {
        let target = if self.last_size >= limits.segment_bytes {
            2
        } else {
            1
        };
        if self.ready.len() >= target && self.wanted_bytes.is_none() {
            return None;
        }
        let wanted = self.wanted_bytes.unwrap_or(0);
        if self
            .ready
            .back()
            .is_some_and(|segment| segment.size >= wanted)
            && self.ready.len() >= target
        {
            return None;
        }
        let grown = self
            .last_size
            .saturating_mul(GROWTH)
            .min(limits.segment_bytes);
        let size = grown.max(wanted).next_multiple_of(BLOCK_BYTES as u64);
        let generation = self.next_generation;
        if let Some(index) = self.free.iter().position(|(_, free)| *free >= size) {
            let (name, size) = self.free.swap_remove(index);
            return Some(Preparation::Reuse {
                name,
                size,
                generation,
            });
        }
        let replaces = self.free.pop();
        // Beyond the limit only for a writer that would wait: such a file costs its zeros, and is
        // removed after its use.
        let allowed = self.limit_lifted && self.wanted_bytes.is_some();
        if replaces.is_none() && self.files >= limits.segments_max && !allowed {
            return None;
        }
        let name = log_file_name(self.next_file);
        self.next_file += 1;
        self.files += usize::from(replaces.is_none());
        Some(Preparation::Create {
            name,
            size,
            generation,
            replaces,
        })
    }
}
