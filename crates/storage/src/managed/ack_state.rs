//! What a cursor knows: everything below `next` is acked, some ranges beyond it, and of some
//! batches a part. Pure: offsets in, offsets out.
//!
//! An *offset* numbers a topic's entries from its first one on, over all its ledgers; it never
//! changes. `ledger_list` turns positions into offsets and back.

use super::range_set::RangeSet;
use crate::codec::{Reader, add, put_u64};
use crate::error::StoreError;
use std::collections::BTreeMap;
use std::ops::Range;

/// Words that a batch's ack set may have: 64 messages each.
pub const ACK_SET_WORDS_MAX: usize = 16 << 10;
/// Words that take as much memory as a range.
const WORDS_PER_RANGE: usize = 5;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AckState {
    next: u64,
    acked: RangeSet,
    /// For batches acked in part: bit 1 = still to be acked.
    batches: BTreeMap<u64, Box<[u64]>>,
    /// Words of all of them.
    batch_words: usize,
}

impl AckState {
    #[must_use]
    pub fn at(next: u64) -> Self {
        Self {
            next,
            ..Self::default()
        }
    }

    /// The first offset that is not acked.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next
    }

    #[must_use]
    pub fn acked(&self) -> &RangeSet {
        &self.acked
    }

    #[must_use]
    pub fn batches(&self) -> &BTreeMap<u64, Box<[u64]>> {
        &self.batches
    }

    /// What it takes in memory, in ranges: a client may say that a batch has very many messages.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.acked.weight() + self.batches.len() + self.batch_words / WORDS_PER_RANGE
    }

    #[must_use]
    pub fn is_acked(&self, offset: u64) -> bool {
        offset < self.next || self.acked.contains(offset)
    }

    #[must_use]
    pub fn next_unacked(&self, from: u64) -> u64 {
        self.acked.next_gap(from.max(self.next))
    }

    /// How many offsets below `end` are not acked.
    #[must_use]
    pub fn unacked(&self, end: u64) -> u64 {
        end.saturating_sub(self.next)
            .saturating_sub(self.acked.covered())
    }

    /// Acks a range. Returns how many offsets were new.
    pub fn ack(&mut self, range: Range<u64>) -> u64 {
        let start = range.start.max(self.next);
        if start >= range.end {
            return 0;
        }
        let new = self.acked.insert(start..range.end);
        if !self.batches.is_empty() {
            let gone: Vec<u64> = self.batches.range(start..range.end).map(|b| *b.0).collect();
            for offset in gone {
                let words = self.batches.remove(&offset);
                self.batch_words -= words.map_or(0, |words| words.len());
            }
        }
        self.advance();
        new
    }

    /// Acks all below `end`.
    pub fn ack_below(&mut self, end: u64) -> u64 {
        self.ack(self.next..end)
    }

    /// Keeps of the batch only the messages whose bit is 1 here too. True when the entry is now
    /// wholly acked.
    pub fn ack_batch(&mut self, offset: u64, remaining: &[u64]) -> bool {
        if self.is_acked(offset) {
            return true;
        }
        let set = match self.batches.get_mut(&offset) {
            Some(known) => {
                for (i, word) in known.iter_mut().enumerate() {
                    *word &= remaining.get(i).copied().unwrap_or(0);
                }
                known
            }
            None => {
                let words = remaining.iter().copied().take(ACK_SET_WORDS_MAX);
                let words: Box<[u64]> = words.collect();
                self.batch_words += words.len();
                self.batches.entry(offset).or_insert(words)
            }
        };
        if set.iter().any(|word| *word != 0) {
            return false;
        }
        self.ack(offset..offset + 1);
        true
    }

    /// Drops what lies at or beyond `end`. True when there was any.
    pub fn clamp(&mut self, end: u64) -> bool {
        let before = (self.next, self.acked.covered(), self.batches.len());
        self.next = self.next.min(end);
        self.acked.remove_from(end);
        let gone = self.batches.split_off(&end);
        self.batch_words -= gone.values().map(|words| words.len()).sum::<usize>();
        before != (self.next, self.acked.covered(), self.batches.len())
    }

    /// The same acks when the offsets in `holes` (ascending, disjoint) never were, and those behind
    /// them move up.
    #[must_use]
    pub fn without(&self, holes: &[Range<u64>]) -> Self {
        let moved = |offset: u64| {
            let gone = |hole: &Range<u64>| offset.min(hole.end).saturating_sub(hole.start);
            offset - holes.iter().map(gone).sum::<u64>()
        };
        let mut state = Self::at(moved(self.next));
        for range in self.acked.iter() {
            state.ack(moved(range.start)..moved(range.end));
        }
        for (offset, words) in &self.batches {
            if !holes.iter().any(|hole| hole.contains(offset)) {
                state.ack_batch(moved(*offset), words);
            }
        }
        state
    }

    /// Takes in what another state of the same cursor knows; both were acked.
    pub fn merge(&mut self, other: &Self) {
        self.ack_below(other.next);
        for range in other.acked.iter() {
            self.ack(range);
        }
        for (offset, remaining) in &other.batches {
            self.ack_batch(*offset, remaining);
        }
    }

    fn advance(&mut self) {
        let end = self.acked.next_gap(self.next);
        if end > self.next {
            self.next = end;
            self.acked.remove_below(end);
            while let Some(first) = self.batches.first_entry() {
                if *first.key() >= end {
                    break;
                }
                self.batch_words -= first.remove().len();
            }
        }
    }

    /// Spells `next`, the given ranges and the given batches; ranges below `next` are left out.
    pub(crate) fn encode(
        out: &mut Vec<u8>,
        next: u64,
        ranges: &[Range<u64>],
        batches: &[(u64, &[u64])],
    ) {
        put_u64(out, next);
        put_u64(out, ranges.len() as u64);
        let mut last = next;
        for range in ranges {
            put_u64(out, range.start - last);
            put_u64(out, range.end - range.start);
            last = range.end;
        }
        put_u64(out, batches.len() as u64);
        let mut last = next;
        for (offset, words) in batches {
            put_u64(out, offset - last);
            last = *offset;
            put_u64(out, words.len() as u64);
            for word in *words {
                out.extend_from_slice(&word.to_le_bytes());
            }
        }
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, StoreError> {
        let next = reader.u64()?;
        let mut state = Self::at(next);
        let mut last = next;
        for _ in 0..reader.count()? {
            let start = add(last, reader.u64()?)?;
            last = add(start, reader.u64()?)?;
            state.ack(start..last);
        }
        let mut last = next;
        for _ in 0..reader.count()? {
            last = add(last, reader.u64()?)?;
            let mut words = Vec::new();
            for _ in 0..reader.count()? {
                let mut word = [0; 8];
                for byte in &mut word {
                    *byte = reader.u8()?;
                }
                words.push(u64::from_le_bytes(word));
            }
            state.ack_batch(last, &words);
        }
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// What is left to ack of each offset: a word of bits, here of 3 messages a batch.
    #[derive(Debug, Clone, Default)]
    struct Model(BTreeMap<u64, u64>);
    const FULL: u64 = 0b111;

    impl Model {
        fn ack(&mut self, offset: u64, remaining: u64) {
            *self.0.entry(offset).or_insert(FULL) &= remaining;
        }
        fn left(&self, offset: u64) -> u64 {
            self.0.get(&offset).copied().unwrap_or(FULL)
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        One(u64),
        Below(u64),
        Part(u64, u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        proptest::collection::vec(
            prop_oneof![
                4 => (0..40_u64).prop_map(Step::One),
                1 => (0..12_u64).prop_map(Step::Below),
                4 => (0..40_u64, 0..8_u64).prop_map(|(at, left)| Step::Part(at, left)),
            ],
            0..80,
        )
    }

    fn run(state: &mut AckState, model: &mut Model, steps: &[Step]) {
        for step in steps {
            match *step {
                Step::One(at) => {
                    state.ack(at..at + 1);
                    model.ack(at, 0);
                }
                Step::Below(end) => {
                    state.ack_below(end);
                    (0..end).for_each(|at| model.ack(at, 0));
                }
                Step::Part(at, left) => {
                    let whole = state.ack_batch(at, &[left]);
                    model.ack(at, left);
                    assert_eq!(whole, model.left(at) == 0);
                }
            }
        }
    }

    fn check(state: &AckState, model: &Model) {
        for at in 0..45 {
            assert_eq!(state.is_acked(at), model.left(at) == 0, "offset {at}");
            if let Some(set) = state.batches().get(&at) {
                assert_eq!(set[0], model.left(at));
            } else if model.left(at) != 0 {
                assert_eq!(model.left(at), FULL);
            }
            let gap = (at..).find(|x| model.left(*x) != 0).unwrap();
            assert_eq!(state.next_unacked(at), gap);
        }
        let backlog = (0..45).filter(|at| model.left(*at) != 0).count() as u64;
        assert_eq!(state.unacked(45), backlog);
        assert_eq!(state.next(), state.next_unacked(0));
        let words: usize = state.batches().values().map(|words| words.len()).sum();
        assert_eq!(state.batch_words, words);
    }

    fn encoded(state: &AckState) -> Vec<u8> {
        let mut out = Vec::new();
        let ranges: Vec<_> = state.acked().iter().collect();
        let batches: Vec<_> = state.batches().iter().map(|(o, w)| (*o, &**w)).collect();
        AckState::encode(&mut out, state.next(), &ranges, &batches);
        out
    }

    proptest! {
        #[test]
        fn behaves_as_a_plain_table(steps in steps()) {
            let (mut state, mut model) = (AckState::default(), Model::default());
            run(&mut state, &mut model, &steps);
            check(&state, &model);
            let bytes = encoded(&state);
            let decoded = AckState::decode(&mut Reader::new(&bytes)).unwrap();
            prop_assert_eq!(&decoded, &state);
            let mut again = state.clone();
            again.merge(&decoded);
            prop_assert_eq!(&again, &state, "merging what is known changes nothing");
        }

        #[test]
        fn merge_is_the_same_as_doing_both(a in steps(), b in steps()) {
            let (mut one, mut model) = (AckState::default(), Model::default());
            run(&mut one, &mut model, &a);
            let (mut two, mut other) = (AckState::default(), Model::default());
            run(&mut two, &mut other, &b);
            one.merge(&two);
            other.0.iter().for_each(|(at, left)| model.ack(*at, *left));
            check(&one, &model);
        }

        #[test]
        fn what_is_lost_takes_its_acks_along(steps in steps(), a in 0..20_u64, n in 0..5_u64, b in 26..40_u64) {
            let (mut state, mut model) = (AckState::default(), Model::default());
            run(&mut state, &mut model, &steps);
            let holes = [a..a + n, b..b + 3];
            let left = (0..60).filter(|at| !holes.iter().any(|hole| hole.contains(at)));
            let mut moved = Model::default();
            for (to, from) in left.enumerate() {
                moved.ack(to as u64, model.left(from));
            }
            check(&state.without(&holes), &moved);
        }

        #[test]
        fn garbage_never_panics(garbage: Vec<u8>) {
            let _ = AckState::decode(&mut Reader::new(&garbage));
        }
    }
}
