//! Reads of the store that several subscriptions want: each entry is read once.
//!
//! Subscriptions that catch up side by side ask for the same entries at nearly the same time. The
//! first reads, those that come meanwhile wait for it, and the last few reads are kept for those a
//! little behind. What is kept is dropped when nobody read for a while.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use geminga_model::Position;
use geminga_storage::managed::ManagedLedger;
use geminga_storage::{Entry, ManagedError, ReadLimits};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Bytes of entries that a topic keeps: how far subscriptions may be apart.
const KEPT_BYTES: usize = 32 << 20;
/// Bytes that all topics keep; over that each keeps its last read.
const ALL_BYTES: usize = 128 << 20;

pub(crate) struct SharedRead {
    state: Mutex<State>,
    /// Bytes that all topics keep now.
    used: Arc<AtomicUsize>,
}

#[derive(Default)]
struct State {
    kept: VecDeque<Chunk>,
    bytes: usize,
    under_way: Vec<(Position, Arc<Notify>)>,
    /// Something was read since the last look.
    in_use: bool,
}

struct Chunk {
    /// What was asked for: it may lie before the first entry, at the end of a ledger.
    from: Position,
    entries: Vec<Entry>,
    bytes: usize,
}

/// A read under way, which ends whatever becomes of it.
struct Reading<'a> {
    shared: &'a SharedRead,
    from: Position,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        let at = state
            .under_way
            .iter()
            .position(|(from, _)| *from == self.from);
        if let Some(at) = at {
            let (_, ended) = state.under_way.swap_remove(at);
            ended.notify_waiters();
        }
    }
}

impl Drop for SharedRead {
    fn drop(&mut self) {
        let bytes = self.state.get_mut().bytes;
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl SharedRead {
    pub(super) fn new(used: Arc<AtomicUsize>) -> SharedRead {
        SharedRead {
            state: Mutex::default(),
            used,
        }
    }

    /// As the ledger's own `read`.
    pub(super) async fn read(
        &self,
        ledger: &ManagedLedger,
        from: Position,
        limits: ReadLimits,
    ) -> Result<Vec<Entry>, ManagedError> {
        let _reading = loop {
            let ended = {
                let mut state = self.state.lock();
                state.in_use = true;
                if let Some(found) = state.find(from, limits) {
                    return Ok(found);
                }
                let other = state.under_way.iter().find(|(other, _)| *other == from);
                match other {
                    Some((_, ended)) => ended.clone().notified_owned(),
                    None => {
                        state.under_way.push((from, Arc::default()));
                        break Reading { shared: self, from };
                    }
                }
            };
            ended.await;
        };
        let entries = ledger.read(from, limits).await?;
        self.state.lock().keep(from, &entries, &self.used);
        Ok(entries)
    }

    /// Gives the memory back when nobody read since the last call.
    pub(super) fn rest(&self) {
        let mut state = self.state.lock();
        if !std::mem::take(&mut state.in_use) {
            state.kept = VecDeque::new();
            let bytes = std::mem::take(&mut state.bytes);
            self.used.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

impl State {
    fn find(&self, from: Position, limits: ReadLimits) -> Option<Vec<Entry>> {
        let holds = |chunk: &&Chunk| {
            let last = chunk.entries.last();
            chunk.from <= from && last.is_some_and(|last| from <= last.position)
        };
        let chunk = self.kept.iter().rev().find(holds)?;
        let first = chunk.entries.partition_point(|entry| entry.position < from);
        let mut found = Vec::new();
        let mut bytes = 0;
        for entry in &chunk.entries[first..] {
            if !limits.admit(found.len(), bytes, entry.data.len()) {
                break;
            }
            bytes += entry.data.len();
            found.push(entry.clone());
        }
        Some(found)
    }

    fn keep(&mut self, from: Position, entries: &[Entry], used: &AtomicUsize) {
        let bytes = entries.iter().map(|entry| entry.data.len()).sum();
        if bytes > KEPT_BYTES || entries.is_empty() {
            return;
        }
        let before = self.bytes;
        self.bytes += bytes;
        self.kept.push_back(Chunk {
            from,
            entries: entries.to_vec(),
            bytes,
        });
        let others = used.load(Ordering::Relaxed).saturating_sub(before);
        let most = KEPT_BYTES.min(ALL_BYTES.saturating_sub(others)).max(bytes);
        while self.bytes > most
            && let Some(chunk) = self.kept.pop_front()
        {
            self.bytes -= chunk.bytes;
        }
        used.fetch_add(self.bytes, Ordering::Relaxed);
        used.fetch_sub(before, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(numbers: std::ops::Range<i64>) -> Vec<Entry> {
        numbers
            .map(|number| Entry {
                position: Position::new(1, number),
                data: vec![0; 1 << 20].into(),
            })
            .collect()
    }

    fn numbers(found: Option<Vec<Entry>>) -> Option<Vec<i64>> {
        Some(found?.iter().map(|entry| entry.position.entry.0).collect())
    }

    #[test]
    fn what_was_read_last_is_found_within_the_limits() {
        let used = AtomicUsize::new(0);
        let mut state = State::default();
        let all = ReadLimits::new(100, usize::MAX);
        state.keep(Position::new(0, 9), &entries(0..3), &used);
        assert_eq!(numbers(state.find(Position::new(0, 8), all)), None);
        for from in [Position::new(0, 9), Position::new(1, 0)] {
            assert_eq!(numbers(state.find(from, all)), Some(vec![0, 1, 2]));
        }
        let one = ReadLimits::new(1, usize::MAX);
        assert_eq!(numbers(state.find(Position::new(1, 1), one)), Some(vec![1]));
        assert_eq!(numbers(state.find(Position::new(1, 3), all)), None);
        state.keep(Position::new(1, 3), &entries(3..33), &used);
        assert_eq!(
            numbers(state.find(Position::new(1, 1), all)),
            None,
            "given up"
        );
        assert_eq!((state.bytes, used.into_inner()), (30 << 20, 30 << 20));
    }

    #[test]
    fn over_the_limit_of_all_topics_each_keeps_its_last_read() {
        let used = AtomicUsize::new(ALL_BYTES);
        let mut state = State::default();
        let all = ReadLimits::new(100, usize::MAX);
        state.keep(Position::new(1, 0), &entries(0..3), &used);
        state.keep(Position::new(1, 3), &entries(3..5), &used);
        assert_eq!(numbers(state.find(Position::new(1, 0), all)), None);
        assert_eq!(
            numbers(state.find(Position::new(1, 3), all)),
            Some(vec![3, 4])
        );
        assert_eq!(used.into_inner(), ALL_BYTES + (2 << 20));
    }
}
