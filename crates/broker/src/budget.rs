//! A count of bytes with a limit: what a connection looks at before it reads more.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::peer::Peer;

/// Never refuses: what has been read must be handled. Over the limit, connections stop reading and
/// wait here.
pub(crate) struct Budget {
    used: AtomicUsize,
    max: AtomicUsize,
    waiting: Mutex<Vec<Arc<Peer>>>,
}

fn limit(max: usize) -> usize {
    if max == 0 { usize::MAX } else { max }
}

impl Budget {
    /// 0 = no limit.
    pub(crate) fn new(max: usize) -> Budget {
        Budget {
            used: AtomicUsize::new(0),
            max: AtomicUsize::new(limit(max)),
            waiting: Mutex::new(Vec::new()),
        }
    }

    /// Another limit from now on.
    pub(crate) fn resize(&self, max: usize) {
        self.max.store(limit(max), Ordering::Release);
        // Who still has to wait comes back.
        self.wake();
    }

    fn max(&self) -> usize {
        self.max.load(Ordering::Relaxed)
    }

    fn wake(&self) {
        for peer in self.waiting.lock().drain(..) {
            peer.outbox.post(Box::new(|_| {}));
        }
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn take(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::AcqRel);
    }

    pub(crate) fn give_back(&self, bytes: usize) {
        let before = self.used.fetch_sub(bytes, Ordering::AcqRel);
        let max = self.max();
        if before >= max && before - bytes < max {
            self.wake();
        }
    }

    /// Whether the limit is reached. If so, `peer` is woken when it no longer is.
    pub(crate) fn is_over(&self, peer: &Arc<Peer>) -> bool {
        if self.used() < self.max() {
            return false;
        }
        let mut waiting = self.waiting.lock();
        if self.used() < self.max() {
            return false;
        }
        if !waiting.iter().any(|other| Arc::ptr_eq(other, peer)) {
            waiting.push(peer.clone());
        }
        true
    }
}
