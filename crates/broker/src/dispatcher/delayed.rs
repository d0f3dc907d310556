//! Entries that may not be delivered before their time (Shared and Key_Shared).
//!
//! Held in memory only: an entry stays unacked until delivered, so after a restart it is read again.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use geminga_model::Position;

#[derive(Debug, Default)]
pub(crate) struct Delayed {
    heap: BinaryHeap<Reverse<(u64, Position, u32)>>,
}

impl Delayed {
    pub(crate) fn insert(&mut self, deliver_at_ms: u64, position: Position, hash: u32) {
        self.heap.push(Reverse((deliver_at_ms, position, hash)));
    }

    /// When the next entry is due.
    pub(crate) fn next_ms(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse((at, _, _))| *at)
    }

    /// The next entry whose time is at or before `cutoff_ms`, with its key hash.
    pub(crate) fn pop_due(&mut self, cutoff_ms: u64) -> Option<(Position, u32)> {
        let Reverse((at, position, hash)) = *self.heap.peek()?;
        if at > cutoff_ms {
            return None;
        }
        self.heap.pop();
        Some((position, hash))
    }

    pub(crate) fn len(&self) -> usize {
        self.heap.len()
    }

    pub(crate) fn clear(&mut self) {
        self.heap = BinaryHeap::new();
    }
}
