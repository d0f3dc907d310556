//! What waits to be written to one connection, and the jobs for its task.
//!
//! Anyone may queue (other connections' tasks, the store's completion thread); the connection's own
//! task takes everything and writes it with as few calls as it can. There is one wake-up for a
//! batch, not one for each message. `queued_bytes` is what a dispatcher looks at before it sends
//! more: that bounds the memory.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::Waker;

use bytes::{Bytes, BytesMut};
use geminga_proto::Command;
use geminga_proto::frame::encode_command;
use parking_lot::{Mutex, MutexGuard};

use crate::connection::Connection;

/// Blocks below this are copied next to their heads: cheaper than a slice of its own to write.
const COPY_BELOW: usize = 2_048;

/// A small piece of work for the connection's task, done before it reads or writes again.
pub(crate) type Job = Box<dyn FnOnce(&mut Connection) + Send>;

#[derive(Default)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    queued: AtomicUsize,
    /// Since the connection began.
    written: AtomicU64,
}

#[derive(Default)]
struct State {
    chain: VecDeque<Bytes>,
    head: BytesMut,
    jobs: Vec<Job>,
    waker: Option<Waker>,
    closed: bool,
    aborted: bool,
    /// The task has ended: nothing will be done any more.
    ended: bool,
}

/// What the connection's task took.
#[derive(Default)]
pub(crate) struct Taken {
    pub(crate) jobs: Vec<Job>,
    /// Flush, then end.
    pub(crate) closed: bool,
    /// End at once.
    pub(crate) aborted: bool,
}

impl Outbox {
    pub(crate) fn queued_bytes(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// Queues one command.
    pub(crate) fn send(&self, command: impl Into<Command>) {
        let mut batch = self.batch();
        batch.command(&command.into());
    }

    /// Queues several things with one lock and one wake-up.
    pub(crate) fn batch(&self) -> Batch<'_> {
        Batch {
            outbox: self,
            added: 0,
            job: false,
            state: Some(self.state.lock()),
        }
    }

    /// Runs `job` in the connection's task. False when that has ended: the job will never run.
    pub(crate) fn post(&self, job: Job) -> bool {
        let mut batch = self.batch();
        let rejected = batch.job(job);
        // Unlocked first: what a job holds may, when dropped, leave a topic and queue things here.
        drop(batch);
        rejected.is_none()
    }

    /// Asks the task to flush what is queued, and to end.
    pub(crate) fn close(&self) {
        self.stop(|state| state.closed = true);
    }

    /// Asks the task to end at once.
    pub(crate) fn abort(&self) {
        self.stop(|state| state.aborted = true);
    }

    /// The task ends. What was posted before is returned and still to be run.
    pub(crate) fn end(&self) -> Vec<Job> {
        let mut state = self.state.lock();
        state.ended = true;
        state.chain = VecDeque::new();
        state.head = BytesMut::new();
        state.waker = None;
        std::mem::take(&mut state.jobs)
    }

    fn stop(&self, set: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        set(&mut state);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Takes all there is; when that is nothing, `waker` is called as soon as there is something.
    pub(crate) fn take(&self, out: &mut VecDeque<Bytes>, waker: &Waker) -> Taken {
        let mut state = self.state.lock();
        out.append(&mut state.chain);
        if !state.head.is_empty() {
            let head = state.head.split().freeze();
            out.push_back(head);
        }
        let jobs = std::mem::take(&mut state.jobs);
        let (closed, aborted) = (state.closed, state.aborted);
        match &mut state.waker {
            Some(old) if old.will_wake(waker) => {}
            slot => *slot = Some(waker.clone()),
        }
        Taken {
            jobs,
            closed,
            aborted,
        }
    }

    /// `bytes` of what was taken are written.
    pub(crate) fn written(&self, bytes: usize) {
        self.queued.fetch_sub(bytes, Ordering::Relaxed);
        self.written.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes that the client's side has taken so far.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

/// The locked outbox; what was queued is announced when this is dropped.
pub(crate) struct Batch<'a> {
    outbox: &'a Outbox,
    added: usize,
    job: bool,
    state: Option<MutexGuard<'a, State>>,
}

impl Batch<'_> {
    /// Bytes queued by this batch so far.
    pub(crate) fn added(&self) -> usize {
        self.added
    }

    pub(crate) fn command(&mut self, command: &Command) {
        self.head(|head| encode_command(command, head));
    }

    /// Appends whole frames, or the head of one whose block follows.
    pub(crate) fn head(&mut self, encode: impl FnOnce(&mut BytesMut)) {
        let Some(state) = self.state.as_mut().filter(|state| !state.ended) else {
            return;
        };
        let before = state.head.len();
        if state.head.capacity() - before < 512 {
            state.head.reserve(16 << 10);
        }
        encode(&mut state.head);
        self.added += state.head.len() - before;
    }

    /// The headers-and-payload block of the frame whose head was just queued.
    pub(crate) fn block(&mut self, block: &Bytes) {
        let Some(state) = self.state.as_mut().filter(|state| !state.ended) else {
            return;
        };
        self.added += block.len();
        if block.len() < COPY_BELOW {
            state.head.extend_from_slice(block);
        } else {
            let head = state.head.split().freeze();
            state.chain.push_back(head);
            state.chain.push_back(block.clone());
        }
    }

    /// Gives the job back when the task has ended.
    pub(crate) fn job(&mut self, job: Job) -> Option<Job> {
        match self.state.as_mut().filter(|state| !state.ended) {
            None => Some(job),
            Some(state) => {
                state.jobs.push(job);
                self.job = true;
                None
            }
        }
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        let Some(mut state) = self.state.take() else {
            return;
        };
        if self.added == 0 && !self.job {
            return;
        }
        self.outbox.queued.fetch_add(self.added, Ordering::Relaxed);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
