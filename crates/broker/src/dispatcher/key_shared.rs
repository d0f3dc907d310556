//! Key_Shared routing: a key's owner gets its entries, in order.
//!
//! When a hash moves to another consumer it is *drained* first: nothing of it is delivered until
//! the former owner has acked (or given back) what it holds of it. `allowOutOfOrderDelivery` skips
//! that.

use std::collections::HashMap;

use super::ConsumerKey;
use super::key_range::{AssignError, KeyRanges};

#[derive(Debug)]
pub(crate) struct KeyShared {
    ranges: KeyRanges,
    allow_out_of_order: bool,
    /// Entries of a hash that are out at consumers which no longer own it.
    draining: HashMap<u32, u32>,
}

impl KeyShared {
    pub(crate) fn new(ranges: KeyRanges, allow_out_of_order: bool) -> KeyShared {
        KeyShared {
            ranges,
            allow_out_of_order,
            draining: HashMap::new(),
        }
    }

    pub(crate) fn hash(&self, key: &[u8]) -> u32 {
        self.ranges.hash(key)
    }

    pub(crate) fn is_in_order(&self) -> bool {
        !self.allow_out_of_order
    }

    /// Who may get entries of this hash now.
    pub(crate) fn owner(&self, hash: u32) -> Option<ConsumerKey> {
        if self.is_draining(hash) {
            return None;
        }
        self.ranges.owner(hash)
    }

    pub(crate) fn is_draining(&self, hash: u32) -> bool {
        self.draining.contains_key(&hash)
    }

    pub(crate) fn add(
        &mut self,
        key: ConsumerKey,
        name: &str,
        ranges: &[(i32, i32)],
        out: impl Iterator<Item = (u32, ConsumerKey)>,
    ) -> Result<(), AssignError> {
        self.ranges.add(key, name, ranges)?;
        self.rebuild(out);
        Ok(())
    }

    /// `out` is what remains out: (hash, holder), without that of the one that leaves.
    pub(crate) fn remove(
        &mut self,
        key: ConsumerKey,
        out: impl Iterator<Item = (u32, ConsumerKey)>,
    ) {
        self.ranges.remove(key);
        self.rebuild(out);
    }

    /// An entry of `hash` is no longer out at `holder`. True when the hash is drained by that.
    pub(crate) fn released(&mut self, hash: u32, holder: ConsumerKey) -> bool {
        if self.draining.is_empty() || self.ranges.owner(hash) == Some(holder) {
            return false;
        }
        let Some(left) = self.draining.get_mut(&hash) else {
            return false;
        };
        *left -= 1;
        if *left == 0 {
            self.draining.remove(&hash);
        }
        !self.draining.contains_key(&hash)
    }

    /// Hashes being drained, and the entries that hold them up.
    pub(crate) fn draining(&self) -> (usize, u64) {
        (
            self.draining.len(),
            self.draining.values().map(|n| u64::from(*n)).sum(),
        )
    }

    fn rebuild(&mut self, out: impl Iterator<Item = (u32, ConsumerKey)>) {
        self.draining.clear();
        if self.allow_out_of_order {
            return;
        }
        for (hash, holder) in out {
            if self.ranges.owner(hash) != Some(holder) {
                *self.draining.entry(hash).or_default() += 1;
            }
        }
    }
}
