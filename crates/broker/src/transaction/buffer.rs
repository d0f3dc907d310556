//! What a topic knows of transactions: which are open here and from where on, and which of its
//! entries were aborted. Plain data under the topic's lock.
//!
//! Nobody reads past [`Buffer::limit`], the last entry before the first message of the oldest open
//! transaction: so the next one that ends opens the way up to the one after it, and no further.

use std::collections::{BTreeSet, HashMap};

use geminga_model::Position;
use geminga_proto::message::Peek;

use super::TxnId;

#[derive(Debug, Default)]
pub(crate) struct Buffer {
    /// The last entry of the topic before the transaction's first one.
    open: HashMap<TxnId, Position>,
    order: BTreeSet<(Position, TxnId)>,
    /// With the last entry that can be its.
    aborted: HashMap<TxnId, Position>,
    /// No entry after this was aborted.
    aborted_through: Option<Position>,
    pub(crate) committed_count: u64,
    pub(crate) aborted_count: u64,
}

impl Buffer {
    pub(crate) fn is_open(&self, txn: TxnId) -> bool {
        self.open.contains_key(&txn)
    }

    pub(crate) fn begin(&mut self, txn: TxnId, after: Position) {
        if self.open.insert(txn, after).is_none() {
            self.order.insert((after, txn));
        }
    }

    /// False when it was not open here.
    pub(crate) fn commit(&mut self, txn: TxnId) -> bool {
        let was_open = self.close(txn);
        self.committed_count += u64::from(was_open);
        was_open
    }

    pub(crate) fn abort(&mut self, txn: TxnId, last: Position) -> bool {
        let was_open = self.close(txn);
        if was_open {
            self.aborted_count += 1;
            self.restore_aborted(txn, last);
        }
        was_open
    }

    pub(crate) fn restore_aborted(&mut self, txn: TxnId, last: Position) {
        self.aborted.insert(txn, last);
        self.aborted_through = self.aborted_through.max(Some(last));
    }

    fn close(&mut self, txn: TxnId) -> bool {
        match self.open.remove(&txn) {
            Some(after) => self.order.remove(&(after, txn)),
            None => false,
        }
    }

    /// The last entry that may be read.
    pub(crate) fn limit(&self) -> Position {
        self.order.first().map_or(Position::LATEST, |first| first.0)
    }

    /// For an entry at or before the limit.
    pub(crate) fn is_aborted(&self, position: Position, head: &Peek<'_>) -> bool {
        if self.aborted_through.is_none_or(|last| position > last) {
            return false;
        }
        let Some(txn) = TxnId::of(head) else {
            return false;
        };
        self.aborted.get(&txn).is_some_and(|last| position <= *last)
    }

    /// Entries before `first` are gone: returns what need not be known any more.
    pub(crate) fn trim(&mut self, first: Position) -> Vec<TxnId> {
        let gone = |last: &Position| *last < first;
        let txns: Vec<TxnId> = self
            .aborted
            .iter()
            .filter(|(_, last)| gone(last))
            .map(|(txn, _)| *txn)
            .collect();
        self.aborted.retain(|_, last| !gone(last));
        if self.aborted.is_empty() {
            self.aborted_through = None;
        }
        txns
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty() && self.aborted.is_empty()
    }

    pub(crate) fn open_len(&self) -> usize {
        self.open.len()
    }

    pub(crate) fn aborted_len(&self) -> usize {
        self.aborted.len()
    }

    /// Where a transaction begins here, and whether it was aborted.
    pub(crate) fn find(&self, txn: TxnId) -> Option<(Option<Position>, bool)> {
        match self.open.get(&txn) {
            Some(after) => Some((Some(*after), false)),
            None => self.aborted.contains_key(&txn).then_some((None, true)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn at(entry: i64) -> Position {
        Position::new(1, entry)
    }

    fn txn(number: u64) -> TxnId {
        TxnId { tc: 0, number }
    }

    fn head(number: u64) -> Peek<'static> {
        Peek {
            txnid_most_bits: Some(0),
            txnid_least_bits: Some(number),
            ..Peek::default()
        }
    }

    proptest! {
        /// Against a plain list of what each entry is: an entry is readable when no entry at or
        /// before it belongs to an open transaction.
        #[test]
        fn the_limit_is_the_oldest_open_one(steps in proptest::collection::vec((0..6u64, 0..4u8), 1..80)) {
            let mut buffer = Buffer::default();
            let mut entries: Vec<u64> = Vec::new();
            let mut open: BTreeMap<u64, usize> = BTreeMap::new();
            let mut aborted: Vec<u64> = Vec::new();
            let mut next = 10;
            let mut names = [0, 1, 2, 3, 4, 5];
            for (slot, what) in steps {
                let number = names[slot as usize];
                match what {
                    // A message of it; a plain one; then both ends.
                    0 => {
                        if !buffer.is_open(txn(number)) {
                            buffer.begin(txn(number), at(entries.len() as i64 - 1));
                            open.insert(number, entries.len());
                        }
                        entries.push(number);
                    }
                    1 => entries.push(u64::MAX),
                    what => {
                        let known = open.remove(&number).is_some();
                        let last = at(entries.len() as i64 - 1);
                        let did = match what {
                            2 => buffer.commit(txn(number)),
                            _ => buffer.abort(txn(number), last),
                        };
                        prop_assert_eq!(did, known);
                        if known && what == 3 {
                            aborted.push(number);
                        }
                        // A number is used once.
                        names[slot as usize] = next;
                        next += 1;
                    }
                }
                let readable = open.values().min().copied().unwrap_or(entries.len());
                let limit = buffer.limit();
                for (index, number) in entries.iter().enumerate() {
                    prop_assert_eq!(at(index as i64) <= limit, index < readable);
                    if index < readable && *number != u64::MAX {
                        let is_aborted = buffer.is_aborted(at(index as i64), &head(*number));
                        prop_assert_eq!(is_aborted, aborted.contains(number));
                    }
                }
            }
            prop_assert!(!buffer.is_aborted(at(0), &Peek::default()));
        }
    }

    #[test]
    fn what_was_trimmed_is_forgotten() {
        let mut buffer = Buffer::default();
        buffer.begin(txn(1), at(-1));
        buffer.begin(txn(2), at(3));
        assert!(buffer.abort(txn(1), at(5)) && buffer.abort(txn(2), at(9)));
        assert_eq!(buffer.trim(at(5)), []);
        assert_eq!(buffer.trim(at(6)), [txn(1)]);
        assert!(!buffer.is_aborted(at(7), &head(1)));
        assert!(buffer.is_aborted(at(7), &head(2)));
        assert_eq!(buffer.trim(at(10)), [txn(2)]);
        assert!(buffer.is_empty());
    }
}
