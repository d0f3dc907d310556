//! Entries read for a subscription beyond what its permits could take.
//!
//! The store keeps entries in runs and reads whole ones; without this a consumer that asks for a
//! few at a time would have the same run read again and again. Bounded for the whole broker: over
//! the limit the rest of a read is dropped, and read again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use geminga_model::Position;
use geminga_storage::Entry;

/// Bytes that all subscriptions may keep together.
const BYTES_MAX: usize = 64 << 20;

#[derive(Default)]
pub(crate) struct Ahead {
    kept: Option<Kept>,
}

struct Kept {
    entries: Vec<Entry>,
    at: usize,
    /// The read position that the next entry is for.
    next: Position,
    bytes: usize,
    used: Arc<AtomicUsize>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Ahead {
    /// Keeps what of `entries` is at or after `read`.
    pub(super) fn keep(&mut self, entries: Vec<Entry>, read: Position, used: &Arc<AtomicUsize>) {
        let at = entries.partition_point(|entry| entry.position < read);
        // All are kept alive by one that is, so all count.
        let bytes: usize = entries.iter().map(|entry| entry.data.len()).sum();
        if at == entries.len() || used.load(Ordering::Relaxed) + bytes > BYTES_MAX {
            self.kept = None;
            return;
        }
        used.fetch_add(bytes, Ordering::Relaxed);
        self.kept = Some(Kept {
            entries,
            at,
            next: read,
            bytes,
            used: used.clone(),
        });
    }

    /// Takes what is kept for this read position; give it back with `put_back`.
    pub(super) fn take(&mut self, read: Position) -> Option<Taken> {
        let kept = self.kept.take()?;
        (kept.next == read).then_some(Taken(kept))
    }

    pub(super) fn put_back(&mut self, taken: Taken, read: Position) {
        let Taken(mut kept) = taken;
        kept.at += kept.entries[kept.at..].partition_point(|entry| entry.position < read);
        kept.next = read;
        if kept.at < kept.entries.len() {
            self.kept = Some(kept);
        }
    }

    pub(super) fn clear(&mut self) {
        self.kept = None;
    }
}

pub(super) struct Taken(Kept);

impl Taken {
    pub(super) fn entries(&self, max: usize) -> &[Entry] {
        let rest = &self.0.entries[self.0.at..];
        &rest[..rest.len().min(max)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_handed_out_once_and_counted() {
        let used = Arc::new(AtomicUsize::new(0));
        let entries: Vec<Entry> = (0..10)
            .map(|n| Entry {
                position: Position::new(1, n),
                data: vec![0; 10].into(),
            })
            .collect();
        let mut ahead = Ahead::default();
        ahead.keep(entries.clone(), Position::new(1, 4), &used);
        assert_eq!(used.load(Ordering::Relaxed), 100);
        let taken = ahead.take(Position::new(1, 4)).unwrap();
        assert_eq!(taken.entries(2), &entries[4..6]);
        ahead.put_back(taken, Position::new(1, 6));
        let taken = ahead.take(Position::new(1, 6)).unwrap();
        assert_eq!(taken.entries(100), &entries[6..]);
        ahead.put_back(taken, Position::new(1, 10));
        assert!(ahead.take(Position::new(1, 10)).is_none());
        assert_eq!(used.load(Ordering::Relaxed), 0);
        // After a rewind it is of no use.
        ahead.keep(entries, Position::new(1, 4), &used);
        assert!(ahead.take(Position::new(1, 0)).is_none());
        assert_eq!(used.load(Ordering::Relaxed), 0);
    }
}
