//! What the rest of the broker knows of a connection: where to queue what it gets, whether it is
//! alive, and how much it has in flight. The connection's own state stays with its task.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use geminga_proto::command::ping;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::budget::Budget;
use crate::outbox::Outbox;

pub(crate) struct Peer {
    pub(crate) id: u64,
    /// Remote address as shown in stats.
    pub(crate) address: String,
    /// A part of this process, which nobody asks who it is.
    pub(crate) is_internal: bool,
    /// The name in the certificate that it showed.
    pub(crate) certificate: OnceLock<String>,
    /// The listener that it came by, of `bindAddresses`.
    pub(crate) listener: OnceLock<Arc<str>>,
    pub(crate) outbox: Outbox,
    pub(crate) protocol: AtomicI32,
    pub(crate) client_version: OnceLock<String>,
    /// Its replicators name the place of each message in their cluster.
    pub(crate) by_source: AtomicBool,
    /// A dispatcher passed over one of its consumers because the outbox was full.
    pub(crate) starved: AtomicBool,
    outbox_bytes_max: usize,
    /// Sends that wait for the disk.
    sends: AtomicUsize,
    sends_max: usize,
    /// The task does not read until some of them are done.
    paused: AtomicBool,
    /// Topics whose publish rate it has exceeded: not read while there is one.
    stopped: AtomicUsize,
    waiting_for_life: AtomicBool,
    life: Mutex<Vec<oneshot::Sender<()>>>,
    gone: AtomicBool,
}

impl Peer {
    pub(crate) fn new(
        id: u64,
        address: String,
        is_internal: bool,
        outbox_bytes_max: usize,
        sends_max: usize,
    ) -> Arc<Peer> {
        Arc::new(Peer {
            id,
            address,
            is_internal,
            certificate: OnceLock::new(),
            listener: OnceLock::new(),
            outbox: Outbox::default(),
            protocol: AtomicI32::new(0),
            client_version: OnceLock::new(),
            by_source: AtomicBool::new(false),
            starved: AtomicBool::new(false),
            outbox_bytes_max,
            sends: AtomicUsize::new(0),
            sends_max: if sends_max == 0 {
                usize::MAX
            } else {
                sends_max
            },
            paused: AtomicBool::new(false),
            stopped: AtomicUsize::new(0),
            waiting_for_life: AtomicBool::new(false),
            life: Mutex::new(Vec::new()),
            gone: AtomicBool::new(false),
        })
    }

    pub(crate) fn protocol(&self) -> i32 {
        self.protocol.load(Ordering::Relaxed)
    }

    /// Whether more may be queued after `added` bytes that the caller has just queued.
    pub(crate) fn takes_more(&self, added: usize) -> bool {
        self.outbox.queued_bytes() + added < self.outbox_bytes_max
    }

    /// Whether a dispatcher may queue messages. If not, the connection's task will dispatch to its
    /// consumers as soon as half of the outbox is written.
    pub(crate) fn check_writable(&self) -> bool {
        if self.takes_more(0) {
            return true;
        }
        self.starved.store(true, Ordering::SeqCst);
        // It may have drained before the flag was up.
        if self.has_drained() {
            self.starved.store(false, Ordering::SeqCst);
            return true;
        }
        false
    }

    /// Whether the outbox has drained enough to dispatch again.
    pub(crate) fn has_drained(&self) -> bool {
        self.outbox.queued_bytes() <= self.outbox_bytes_max / 2
    }

    /// Whether there is room for answers: a client that asks and never reads is read no further.
    pub(crate) fn takes_replies(&self) -> bool {
        self.outbox.queued_bytes() < self.outbox_bytes_max.saturating_mul(2)
    }

    // Publishing

    pub(crate) fn sends_begin(&self, count: usize) {
        self.sends.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn sends_end(&self, count: usize) {
        let left = self.sends.fetch_sub(count, Ordering::AcqRel) - count;
        if left <= self.sends_max / 2 && self.paused.swap(false, Ordering::AcqRel) {
            self.outbox.post(Box::new(|_| {}));
        }
    }

    /// Whether so many sends are under way that the socket should not be read. If so, the task is
    /// woken when half of them are done.
    pub(crate) fn must_pause(&self) -> bool {
        if self.sends.load(Ordering::Acquire) < self.sends_max {
            return false;
        }
        self.paused.store(true, Ordering::Release);
        // They may all have ended before the flag was up.
        if self.sends.load(Ordering::Acquire) <= self.sends_max / 2 {
            self.paused.store(false, Ordering::Release);
            return false;
        }
        true
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire) || self.stopped.load(Ordering::Acquire) > 0
    }

    /// A publish rate is exceeded; `go_on_reading` must follow.
    pub(crate) fn stop_reading(&self) {
        self.stopped.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn go_on_reading(&self) {
        if self.stopped.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.outbox.post(Box::new(|_| {}));
        }
    }

    // Life

    /// Bytes came in: whoever waits for a sign of life has it.
    pub(crate) fn note_life(&self) {
        if self.waiting_for_life.swap(false, Ordering::Relaxed) {
            for waiter in self.life.lock().drain(..) {
                // A waiter that has given up is not interested.
                let _ = waiter.send(());
            }
        }
    }

    /// Asks the peer for a sign of life. A dead one is closed.
    pub(crate) async fn is_alive(&self, timeout: Duration) -> bool {
        if self.is_gone() {
            return false;
        }
        let (tx, rx) = oneshot::channel();
        self.life.lock().push(tx);
        self.waiting_for_life.store(true, Ordering::Relaxed);
        self.outbox.send(ping());
        let alive = matches!(tokio::time::timeout(timeout, rx).await, Ok(Ok(())));
        if !alive {
            self.outbox.abort();
        }
        alive
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    pub(crate) fn set_gone(&self) {
        self.gone.store(true, Ordering::Release);
        self.life.lock().clear();
    }
}

/// Bytes of sends under way, counted for the whole broker.
pub(crate) fn publish_budget(mib: usize) -> Budget {
    Budget::new(mib.saturating_mul(1 << 20))
}
