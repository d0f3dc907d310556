//! What happens beside the log: preparing its files, sorting finished ones into segment files,
//! checkpoints, and collecting dead files.
//!
//! Two threads. Sorting may fail for want of space and is tried again; any other failure to read or
//! write what was acknowledged stops the store.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Shared;
use super::checkpoint::checkpoint_number;
use super::completion::Event;
use super::pace::Pace;
use super::sort::Content;
use crate::StoreError;
use crate::wal::log_segment::{LogSegment, Preparation, create_zeroed, prepare};

/// How long to wait before trying again what failed for want of space.
pub(super) const RETRY: Duration = Duration::from_millis(200);
/// Log segments that are sorted together: they are in memory meanwhile.
const SORT_SEGMENTS_MAX: usize = 4;
/// How long memory for sorting is kept for the next segment.
const KEEP_BUFFERS: Duration = Duration::from_secs(1);
/// How long readers may hold on to a log file before it is looked at again.
const RECYCLE_RETRY: Duration = Duration::from_millis(5);

#[derive(Default)]
pub(super) struct Background {
    pub(super) todo: Mutex<Todo>,
    pub(super) changed: Condvar,
}

#[derive(Default)]
pub(super) struct Todo {
    full: VecDeque<Arc<LogSegment>>,
    /// When a segment became full last, and how long the one before had been so by then.
    last_full: Option<Instant>,
    filled: (u64, Option<Duration>),
    requested: u64,
    done: u64,
    last_result: Option<StoreError>,
    collect: bool,
    pub(super) closed: bool,
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
    /// For the contents of the next segments. Given back when none came for a while.
    pub(super) buffers: Vec<Content>,
}

impl Background {
    pub(super) fn full(&self, segment: Arc<LogSegment>) {
        let mut todo = self.todo.lock();
        let now = Instant::now();
        let before = todo.last_full.replace(now);
        todo.filled = (segment.end(), before.map(|before| now - before));
        todo.full.push_back(segment);
        drop(todo);
        self.changed.notify_all();
    }

    /// For work on as much as one log segment.
    pub(super) fn pace(&self) -> Pace {
        let (filled, took) = self.todo.lock().filled;
        Pace::new(filled, took)
    }

    /// Takes the time that sorting has: none when something else waits for the sorting thread.
    pub(super) fn linger(&self, pace: &mut Pace, bytes: u64) {
        if let Some(wait) = pace.after(bytes) {
            let mut todo = self.todo.lock();
            let waited_for =
                |todo: &Todo| todo.closed || !todo.full.is_empty() || todo.done < todo.requested;
            if !waited_for(&todo) {
                self.changed.wait_for(&mut todo, wait);
            }
            if waited_for(&todo) {
                pace.hurry();
            }
        }
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
        let mut pace = self.background.pace();
        create_zeroed(self.disk.as_ref(), name, size, self.durable(), |bytes| {
            if let Some(wait) = pace.after(bytes)
                && self.pool.linger(wait)
            {
                pace.hurry();
            }
        })?;
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
    Sort(Vec<Arc<LogSegment>>),
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
                Job::Sort(segments) => self.sort(segments),
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
                        Job::Sort(segments) => {
                            segments
                                .into_iter()
                                .rev()
                                .for_each(|one| todo.full.push_front(one));
                        }
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

    fn next_job(&mut self, background: &Background) -> Option<Job> {
        let mut todo = background.todo.lock();
        loop {
            if todo.closed {
                background.changed.notify_all();
                return None;
            }
            if !todo.full.is_empty() {
                let count = todo.full.len().min(SORT_SEGMENTS_MAX);
                return Some(Job::Sort(todo.full.drain(..count).collect()));
            }
            if todo.done < todo.requested {
                return Some(Job::Checkpoint(todo.requested));
            }
            if std::mem::take(&mut todo.collect) {
                return Some(Job::Collect);
            }
            if !self.retired.is_empty() {
                background.changed.wait_for(&mut todo, RECYCLE_RETRY);
                return Some(Job::Recycle);
            }
            if self.buffers.is_empty() {
                background.changed.wait(&mut todo);
            } else if background
                .changed
                .wait_for(&mut todo, KEEP_BUFFERS)
                .timed_out()
            {
                self.buffers.clear();
            }
        }
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
}

/// The number of the newest checkpoint among these files.
pub(super) fn newest_checkpoint(names: &[(String, u64)]) -> Option<u64> {
    names
        .iter()
        .filter_map(|(name, _)| checkpoint_number(name))
        .max()
}
