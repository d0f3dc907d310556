//! What is out at consumers, unacked, by position.
//!
//! There may be millions, when consumers may hold so many. Entries go out nearly in order and come
//! back in any order, so 64 neighbours share a node: about 18 bytes an entry, where a tree of single
//! entries takes 68.

use std::collections::BTreeMap;

use geminga_model::Position;

use super::ConsumerKey;

/// Neighbours in one block: the bits of a word.
const BLOCK_BITS: u32 = 6;

/// An entry that is out at a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pending {
    pub(super) holder: ConsumerKey,
    pub(super) messages: u32,
    pub(super) hash: u32,
}

/// Which entries of 64 are out, and those in order.
#[derive(Debug, Default)]
struct Block {
    present: u64,
    entries: Vec<Pending>,
}

#[derive(Debug, Default)]
pub(super) struct PendingTable {
    /// By ledger and number of the block in it.
    blocks: BTreeMap<(i64, i64), Block>,
}

fn place(position: Position) -> ((i64, i64), u32) {
    let entry = position.entry.0;
    let bit = entry & ((1 << BLOCK_BITS) - 1);
    ((position.ledger.0, entry >> BLOCK_BITS), bit as u32)
}

impl Block {
    fn has(&self, bit: u32) -> bool {
        self.present >> bit & 1 == 1
    }

    /// Where the entry of this bit is, or would be.
    fn rank(&self, bit: u32) -> usize {
        (self.present & ((1 << bit) - 1)).count_ones() as usize
    }

    fn remove(&mut self, bit: u32) -> Option<Pending> {
        if !self.has(bit) {
            return None;
        }
        let removed = self.entries.remove(self.rank(bit));
        self.present &= !(1 << bit);
        if self.entries.len() * 2 < self.entries.capacity() {
            self.entries.shrink_to_fit();
        }
        Some(removed)
    }

    fn iter(&self, (ledger, block): (i64, i64)) -> impl Iterator<Item = (Position, &Pending)> {
        let mut left = self.present;
        self.entries.iter().map(move |pending| {
            let bit = left.trailing_zeros();
            left &= left - 1;
            let entry = (block << BLOCK_BITS) + i64::from(bit);
            (Position::new(ledger, entry), pending)
        })
    }
}

impl PendingTable {
    pub(super) fn insert(&mut self, position: Position, pending: Pending) {
        let (key, bit) = place(position);
        let block = self.blocks.entry(key).or_default();
        let rank = block.rank(bit);
        if block.has(bit) {
            block.entries[rank] = pending;
        } else {
            block.entries.insert(rank, pending);
            block.present |= 1 << bit;
        }
    }

    pub(super) fn get(&self, position: Position) -> Option<&Pending> {
        let (key, bit) = place(position);
        let block = self.blocks.get(&key).filter(|block| block.has(bit))?;
        block.entries.get(block.rank(bit))
    }

    pub(super) fn get_mut(&mut self, position: Position) -> Option<&mut Pending> {
        let (key, bit) = place(position);
        let block = self.blocks.get_mut(&key).filter(|block| block.has(bit))?;
        let rank = block.rank(bit);
        block.entries.get_mut(rank)
    }

    pub(super) fn contains(&self, position: Position) -> bool {
        let (key, bit) = place(position);
        self.blocks.get(&key).is_some_and(|block| block.has(bit))
    }

    pub(super) fn remove(&mut self, position: Position) -> Option<Pending> {
        let (key, bit) = place(position);
        let block = self.blocks.get_mut(&key)?;
        let removed = block.remove(bit)?;
        if block.present == 0 {
            self.blocks.remove(&key);
        }
        Some(removed)
    }

    /// The first entry, taken out, if it is not after `through`.
    pub(super) fn pop_through(&mut self, through: Position) -> Option<Pending> {
        let mut first = self.blocks.first_entry()?;
        let key = *first.key();
        let (position, _) = first.get().iter(key).next()?;
        if position > through {
            return None;
        }
        let removed = first.get_mut().remove(place(position).1);
        if first.get().present == 0 {
            first.remove();
        }
        removed
    }

    /// Takes out what `goes` says, and gives it to `gone`.
    pub(super) fn take_if(
        &mut self,
        goes: impl Fn(&Pending) -> bool,
        mut gone: impl FnMut(Position, Pending),
    ) {
        self.blocks.retain(|key, block| {
            let taken: Vec<(Position, Pending)> = block
                .iter(*key)
                .filter(|(_, pending)| goes(pending))
                .map(|(position, pending)| (position, *pending))
                .collect();
            for (position, pending) in taken {
                block.remove(place(position).1);
                gone(position, pending);
            }
            block.present != 0
        });
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Position, &Pending)> {
        self.blocks.iter().flat_map(|(key, block)| block.iter(*key))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Pending> {
        self.blocks.values().flat_map(|block| &block.entries)
    }

    #[cfg(test)]
    fn bytes(&self) -> usize {
        let of = |block: &Block| block.entries.capacity() * size_of::<Pending>();
        let blocks: usize = self.blocks.values().map(of).sum();
        blocks + self.blocks.len() * 2 * (size_of::<Block>() + size_of::<(i64, i64)>())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pending(number: u32) -> Pending {
        Pending {
            holder: ConsumerKey(u64::from(number % 3)),
            messages: number,
            hash: number,
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert(Position),
        Remove(Position),
        Pop(Position),
        Take(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let position = || (0..3_i64, -1..200_i64).prop_map(|(l, e)| Position::new(l, e));
        prop::collection::vec(
            prop_oneof![
                8 => position().prop_map(Step::Insert),
                4 => position().prop_map(Step::Remove),
                1 => position().prop_map(Step::Pop),
                1 => (0..3_u64).prop_map(Step::Take),
            ],
            0..300,
        )
    }

    proptest! {
        #[test]
        fn behaves_as_a_plain_map(steps in steps()) {
            let mut table = PendingTable::default();
            let mut model: BTreeMap<Position, Pending> = BTreeMap::new();
            for (number, step) in (0..).zip(steps) {
                match step {
                    Step::Insert(at) => {
                        table.insert(at, pending(number));
                        model.insert(at, pending(number));
                    }
                    Step::Remove(at) => prop_assert_eq!(table.remove(at), model.remove(&at)),
                    Step::Pop(through) => {
                        let first = model.first_key_value().map(|(at, _)| *at);
                        let expected = first.filter(|at| *at <= through);
                        let expected = expected.and_then(|at| model.remove(&at));
                        prop_assert_eq!(table.pop_through(through), expected);
                    }
                    Step::Take(holder) => {
                        let mut gone = Vec::new();
                        let holder = ConsumerKey(holder);
                        table.take_if(|p| p.holder == holder, |at, p| gone.push((at, p)));
                        let of_model: Vec<_> = model
                            .extract_if(.., |_, p| p.holder == holder)
                            .collect();
                        prop_assert_eq!(gone, of_model);
                    }
                }
                let all: Vec<_> = table.iter().map(|(at, p)| (at, *p)).collect();
                let expected: Vec<_> = model.iter().map(|(at, p)| (*at, *p)).collect();
                prop_assert_eq!(&all, &expected);
                prop_assert!(table.values().eq(model.values()));
                for entry in [-1, 0, 63, 64, 127, 199] {
                    let at = Position::new(1, entry);
                    prop_assert_eq!(table.get(at), model.get(&at));
                    prop_assert_eq!(table.get_mut(at), model.get_mut(&at));
                    prop_assert_eq!(table.contains(at), model.contains_key(&at));
                }
            }
        }
    }

    #[test]
    fn a_million_take_less_than_twenty_bytes_each_and_give_them_back() {
        let mut table = PendingTable::default();
        let count = 1_000_000;
        for n in 0..count {
            table.insert(Position::new(1, n), pending(n as u32));
        }
        assert!(table.bytes() < 20 * count as usize, "{}", table.bytes());
        // In an order that nothing can merge.
        for n in 0..count {
            table.remove(Position::new(1, n * 618_033 % count));
        }
        assert_eq!(table.bytes(), 0);
    }
}
