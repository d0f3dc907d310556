//! Changes to the state by messages that are in hand: nobody else sees them until their message ends.
//!
//! What must hold: to end a message costs what it changed, and to look a key up what was changed of it,
//! however much the others in hand changed.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};

use bytes::Bytes;

use super::incremented;
use crate::runtime::StateChange;
use crate::runtime::wire::WireError;

/// Bytes of changes to state by all messages that a process works on.
const IN_HAND_MAX_BYTES: u64 = 64 * 1024 * 1024;

/// Changes in the order in which they were said.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// By the message that they are of, else of the next to end, and a number that rises.
    changes: BTreeMap<(Option<u64>, u64), StateChange>,
    /// Where the changes of a key are: its hash, their number and their message.
    of_keys: BTreeSet<(u64, u64, Option<u64>)>,
    hasher: RandomState,
    next: u64,
    /// Bytes of changes, by the message they are of.
    bytes: BTreeMap<Option<u64>, u64>,
    bytes_in_all: u64,
}

impl Pending {
    /// One more. A message may change `limit` bytes.
    ///
    /// # Errors
    /// When it is one too many.
    pub(super) fn push(
        &mut self,
        message: Option<u64>,
        change: StateChange,
        limit: u64,
    ) -> Result<(), WireError> {
        let size = change_bytes(&change);
        let bytes = self.bytes.entry(message).or_default();
        *bytes += size;
        if *bytes > limit {
            return Err(WireError::TooMuchState(limit));
        }
        self.bytes_in_all += size;
        let limit = limit.max(IN_HAND_MAX_BYTES);
        if self.bytes_in_all > limit {
            return Err(WireError::TooMuchStateInHand(limit));
        }
        let hash = self.hasher.hash_one(change.key());
        self.of_keys.insert((hash, self.next, message));
        self.changes.insert((message, self.next), change);
        self.next += 1;
        Ok(())
    }

    /// Takes out the changes of message `number`, with those that are of the next to end.
    pub(super) fn take(&mut self, number: u64) -> Vec<StateChange> {
        if self.changes.is_empty() {
            return Vec::new();
        }
        let mut taken = self.take_of(None);
        let is_mixed = !taken.is_empty();
        taken.extend(self.take_of(Some(number)));
        if is_mixed {
            taken.sort_unstable_by_key(|(order, _)| *order);
        }
        taken.into_iter().map(|(_, change)| change).collect()
    }

    fn take_of(&mut self, message: Option<u64>) -> Vec<(u64, StateChange)> {
        self.bytes_in_all -= self.bytes.remove(&message).unwrap_or(0);
        let of_it = self.changes.range((message, 0)..=(message, u64::MAX));
        let orders: Vec<u64> = of_it.map(|((_, order), _)| *order).collect();
        let mut taken = Vec::with_capacity(orders.len());
        for order in orders {
            if let Some(change) = self.changes.remove(&(message, order)) {
                let hash = self.hasher.hash_one(change.key());
                self.of_keys.remove(&(hash, order, message));
                taken.push((order, change));
            }
        }
        taken
    }

    /// Takes out all.
    pub(super) fn take_all(&mut self) -> Vec<StateChange> {
        let mut all: Vec<_> = std::mem::take(self).changes.into_iter().collect();
        all.sort_unstable_by_key(|((_, order), _)| *order);
        all.into_iter().map(|(_, change)| change).collect()
    }

    /// What `key` is after these changes, when it was `value` before; and how many had to be looked at.
    pub(super) fn after(&self, key: &str, mut value: Option<Bytes>) -> (Option<Bytes>, usize) {
        if self.changes.is_empty() {
            return (value, 0);
        }
        let hash = self.hasher.hash_one(key);
        let its = self
            .of_keys
            .range((hash, 0, None)..=(hash, u64::MAX, Some(u64::MAX)));
        let mut looked = 0;
        for &(_, order, message) in its {
            looked += 1;
            match self.changes.get(&(message, order)) {
                Some(StateChange::Put(k, v)) if k == key => value = Some(v.clone()),
                Some(StateChange::Delete(k)) if k == key => value = None,
                Some(StateChange::Increment(k, by)) if k == key => {
                    value = Some(incremented(value.as_ref(), *by));
                }
                // Another key of the same hash.
                _ => {}
            }
        }
        (value, looked)
    }
}

/// What a change takes in memory, about.
fn change_bytes(change: &StateChange) -> u64 {
    const ENTRY_BYTES: usize = 64;
    let bytes = match change {
        StateChange::Put(key, value) => key.len() + value.len(),
        StateChange::Delete(key) | StateChange::Increment(key, _) => key.len(),
    };
    (bytes + ENTRY_BYTES) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn change() -> impl Strategy<Value = StateChange> {
        let key = "[abc]";
        prop_oneof![
            (key, "[xy]{8}").prop_map(|(key, value)| StateChange::Put(key, value.into())),
            key.prop_map(StateChange::Delete),
            (key, 1..9_i64).prop_map(|(key, by)| StateChange::Increment(key, by)),
        ]
    }

    proptest! {
        /// As a plain list, which every end of a message and every question went through.
        #[test]
        fn it_is_a_list_of_changes(
            said in prop::collection::vec((prop::option::of(0..4_u64), change()), 0..40),
            ends in prop::collection::vec(0..4_u64, 0..4),
        ) {
            let (mut pending, mut list) = (Pending::default(), said.clone());
            for (message, change) in said {
                prop_assert_eq!(pending.push(message, change, 10_000), Ok(()));
            }
            for number in ends {
                for key in ["a", "b", "c"] {
                    let base = Some(Bytes::from_static(b"12345678"));
                    let mut value = base.clone();
                    for (_, change) in list.iter().filter(|(_, change)| change.key() == key) {
                        value = match change {
                            StateChange::Put(_, v) => Some(v.clone()),
                            StateChange::Delete(_) => None,
                            StateChange::Increment(_, by) => Some(incremented(value.as_ref(), *by)),
                        };
                    }
                    prop_assert_eq!(pending.after(key, base).0, value);
                }
                let (its, others): (Vec<_>, Vec<_>) = list
                    .into_iter()
                    .partition(|(message, _)| message.is_none_or(|message| message == number));
                list = others;
                let its: Vec<_> = its.into_iter().map(|(_, change)| change).collect();
                prop_assert_eq!(pending.take(number), its);
            }
            let rest: Vec<_> = list.into_iter().map(|(_, change)| change).collect();
            prop_assert_eq!(pending.take_all(), rest);
            prop_assert_eq!(pending.bytes_in_all, 0);
        }
    }

    #[test]
    fn a_question_looks_at_its_own_key_alone() {
        let mut pending = Pending::default();
        for number in 0..10_000_u64 {
            let change = StateChange::Increment(format!("k{}", number % 1000), 1);
            assert_eq!(pending.push(Some(number), change, 1000), Ok(()));
        }
        let (value, looked) = pending.after("k7", None);
        assert_eq!(value, Some(incremented(None, 10)));
        assert!(looked < 100, "{looked} of 10,000");
        assert_eq!(pending.after("other", None), (None, 0));
    }

    #[test]
    fn a_message_and_all_together_have_a_limit() {
        let change = |bytes: usize| StateChange::Put("k".to_owned(), vec![b'v'; bytes].into());
        let mut pending = Pending::default();
        assert_eq!(pending.push(Some(1), change(900), 1000), Ok(()));
        let more = pending.push(Some(1), change(900), 1000);
        assert_eq!(more, Err(WireError::TooMuchState(1000)));
        let limit = IN_HAND_MAX_BYTES / 2;
        let half = change(usize::try_from(limit).unwrap() - 1000);
        let mut pending = Pending::default();
        assert_eq!(pending.push(Some(1), half.clone(), limit), Ok(()));
        assert_eq!(pending.push(None, half.clone(), limit), Ok(()));
        let more = pending.push(Some(2), half.clone(), limit);
        assert_eq!(more, Err(WireError::TooMuchStateInHand(IN_HAND_MAX_BYTES)));
        pending.take(1);
        assert_eq!(pending.bytes_in_all, pending.bytes[&Some(2)]);
    }
}
