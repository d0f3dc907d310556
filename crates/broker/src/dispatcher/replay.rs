//! Entries waiting to be sent again: nacked, left behind by a consumer, blocked by their key, or due.

use std::collections::{BTreeMap, HashMap};

use geminga_model::Position;

/// Ordered by position; knows how many entries of each key hash wait. Hash 0 is not counted.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    entries: BTreeMap<Position, u32>,
    per_hash: HashMap<u32, u32>,
}

impl Replay {
    pub(crate) fn insert(&mut self, position: Position, hash: u32) {
        match self.entries.insert(position, hash) {
            Some(old) if old == hash => return,
            Some(old) => self.uncount(old),
            None => {}
        }
        if hash != 0 {
            *self.per_hash.entry(hash).or_default() += 1;
        }
    }

    pub(crate) fn remove(&mut self, position: Position) -> bool {
        self.take(position).is_some()
    }

    /// Removes an entry and returns its hash.
    pub(crate) fn take(&mut self, position: Position) -> Option<u32> {
        let hash = self.entries.remove(&position)?;
        self.uncount(hash);
        Some(hash)
    }

    /// Forgets everything up to and including `through` (acked cumulatively or skipped).
    pub(crate) fn remove_through(&mut self, through: Position) {
        while let Some(entry) = self.entries.first_entry() {
            if *entry.key() > through {
                break;
            }
            let hash = entry.remove();
            self.uncount(hash);
        }
    }

    pub(crate) fn holds_hash(&self, hash: u32) -> bool {
        self.per_hash.contains_key(&hash)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Position, u32)> + '_ {
        self.entries
            .iter()
            .map(|(position, hash)| (*position, *hash))
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.per_hash.clear();
    }

    fn uncount(&mut self, hash: u32) {
        if let Some(count) = self.per_hash.get_mut(&hash) {
            *count -= 1;
            if *count == 0 {
                self.per_hash.remove(&hash);
            }
        }
    }
}
