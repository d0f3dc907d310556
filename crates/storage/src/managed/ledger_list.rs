//! The ledgers of a topic, in order: what is stored of a topic in the metadata, and how positions
//! become offsets and back. Pure.

use crate::codec::{Reader, add, put_bytes, put_u64};
use crate::error::StoreError;
use crate::ledger::LedgerEnd;
use crate::managed::cursor_table::Properties;
use geminga_model::{EntryId, LedgerId, Position};

/// The first byte of a stored list.
const FORMAT: u8 = 1;

/// One ledger of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ledger {
    pub id: LedgerId,
    /// The offset of its first entry.
    pub base: u64,
    /// Final once it is closed; none while it is written.
    pub closed: Option<Closed>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    pub entries: u64,
    pub bytes: u64,
    pub at_ms: u64,
}

/// All ledgers of a topic, closed ones first. Only the last may be written; one before it that is
/// not closed is being sealed, and its end is the base of the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LedgerList {
    pub ledgers: Vec<Ledger>,
    /// The offset of the first entry that is still kept.
    pub base: u64,
    pub is_terminated: bool,
    pub properties: Properties,
}

impl LedgerList {
    /// The place of the ledger that holds `offset`, or the last one for an offset beyond the end.
    /// Empty ledgers are passed over where another one begins at the same offset.
    fn index_of(&self, offset: u64) -> Option<usize> {
        let after = self.ledgers.partition_point(|ledger| ledger.base <= offset);
        after.checked_sub(1)
    }

    #[must_use]
    pub fn ledger_of(&self, offset: u64) -> Option<&Ledger> {
        self.ledgers.get(self.index_of(offset)?)
    }

    /// Where the entry of this offset stands, or would stand.
    #[must_use]
    pub fn position(&self, offset: u64) -> Position {
        self.ledger_of(offset)
            .map_or(Position::EARLIEST, |ledger| Position {
                ledger: ledger.id,
                entry: EntryId((offset - ledger.base) as i64),
            })
    }

    /// The position just before this offset, as a mark-delete position: the last entry of the
    /// ledger before, or entry -1 when that ledger is gone.
    #[must_use]
    pub fn position_before(&self, offset: u64) -> Position {
        let Some(index) = self.index_of(offset) else {
            return Position::EARLIEST;
        };
        let here = &self.ledgers[index];
        if offset > here.base {
            return Position::new(here.id.0, (offset - here.base) as i64 - 1);
        }
        let before = self.ledgers[..index].iter().rev();
        match before.into_iter().find(|ledger| ledger.base < offset) {
            Some(ledger) => Position::new(ledger.id.0, (offset - ledger.base) as i64 - 1),
            None => Position::new(here.id.0, -1),
        }
    }

    /// The end of the ledger at `index`, which is open-ended for the last one.
    fn end_of(&self, index: usize) -> u64 {
        let ledger = &self.ledgers[index];
        match (self.ledgers.get(index + 1), ledger.closed) {
            (Some(next), _) => next.base,
            (None, Some(closed)) => ledger.base + closed.entries,
            (None, None) => u64::MAX,
        }
    }

    /// The offset of the entry at exactly this position; none when it cannot exist.
    #[must_use]
    pub fn offset(&self, position: Position) -> Option<u64> {
        let index = self
            .ledgers
            .binary_search_by_key(&position.ledger, |ledger| ledger.id)
            .ok()?;
        let entry = u64::try_from(position.entry.0).ok()?;
        let offset = self.ledgers[index].base.checked_add(entry)?;
        (offset < self.end_of(index)).then_some(offset)
    }

    /// The offset of the first entry at or after this position.
    #[must_use]
    pub fn offset_from(&self, position: Position) -> u64 {
        let index = self
            .ledgers
            .partition_point(|ledger| ledger.id < position.ledger);
        let Some(ledger) = self.ledgers.get(index) else {
            return self.end().unwrap_or(u64::MAX);
        };
        if ledger.id != position.ledger {
            return ledger.base;
        }
        let entry = u64::try_from(position.entry.0).unwrap_or(0);
        ledger.base.saturating_add(entry).min(self.end_of(index))
    }

    /// The offset after the last entry; none while a ledger is written.
    #[must_use]
    pub fn end(&self) -> Option<u64> {
        let Some(last) = self.ledgers.last() else {
            return Some(self.base);
        };
        last.closed.map(|closed| last.base + closed.entries)
    }

    /// Bytes in closed ledgers.
    #[must_use]
    pub fn closed_bytes(&self) -> u64 {
        self.ledgers
            .iter()
            .filter_map(|ledger| ledger.closed)
            .map(|closed| closed.bytes)
            .sum()
    }

    /// The first ledger that is not closed.
    #[must_use]
    pub fn first_unclosed(&self) -> Option<LedgerId> {
        let ledger = self.ledgers.iter().find(|ledger| ledger.closed.is_none())?;
        Some(ledger.id)
    }

    /// Closes a ledger; those after it begin where it ends.
    pub fn close(&mut self, id: LedgerId, end: LedgerEnd, at_ms: u64) {
        let Ok(index) = self.ledgers.binary_search_by_key(&id, |ledger| ledger.id) else {
            return;
        };
        self.ledgers[index].closed = Some(Closed {
            entries: end.entries,
            bytes: end.bytes,
            at_ms,
        });
        let mut base = self.ledgers[index].base + end.entries;
        for ledger in &mut self.ledgers[index + 1..] {
            ledger.base = base;
            base += ledger.closed.map_or(0, |closed| closed.entries);
        }
    }

    /// Forgets the first `count` ledgers, which are closed.
    pub fn remove_first(&mut self, count: usize) {
        let end = match count.checked_sub(1) {
            Some(last) => self.end_of(last),
            None => return,
        };
        self.base = end;
        self.ledgers.drain(..count);
    }

    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(8 + self.ledgers.len() * 16);
        out.push(FORMAT);
        put_u64(&mut out, self.base);
        out.push(u8::from(self.is_terminated));
        put_u64(&mut out, self.ledgers.len() as u64);
        let mut last = 0;
        for ledger in &self.ledgers {
            put_u64(&mut out, (ledger.id.0 - last) as u64);
            last = ledger.id.0;
            match ledger.closed {
                Some(closed) => {
                    // 0 is a ledger that is not closed.
                    put_u64(&mut out, closed.entries + 1);
                    put_u64(&mut out, closed.bytes);
                    put_u64(&mut out, closed.at_ms);
                }
                None => put_u64(&mut out, 0),
            }
        }
        put_u64(&mut out, self.properties.len() as u64);
        for (key, value) in &self.properties {
            put_bytes(&mut out, key.as_bytes());
            put_bytes(&mut out, value.as_bytes());
        }
        out
    }

    pub fn decode(stored: &[u8]) -> Result<Self, StoreError> {
        let mut reader = Reader::new(stored);
        if reader.u8()? != FORMAT {
            return Err(StoreError::bad_record("an unknown format of a ledger list"));
        }
        let mut list = Self {
            base: reader.u64()?,
            is_terminated: reader.u8()? != 0,
            ..Self::default()
        };
        let mut base = list.base;
        let mut id = 0_u64;
        for _ in 0..reader.count()? {
            id = add(id, reader.u64()?)?;
            let ledger = i64::try_from(id).map_err(|_| StoreError::bad_record("a ledger id"))?;
            let closed = match reader.u64()? {
                0 => None,
                entries => Some(Closed {
                    entries: entries - 1,
                    bytes: reader.u64()?,
                    at_ms: reader.u64()?,
                }),
            };
            list.ledgers.push(Ledger {
                id: LedgerId(ledger),
                base,
                closed,
            });
            base = add(base, closed.map_or(0, |closed| closed.entries))?;
        }
        for _ in 0..reader.count()? {
            let key = reader.text()?.to_owned();
            list.properties.insert(key, reader.text()?.to_owned());
        }
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(counts: &[u64], base: u64, open: bool) -> LedgerList {
        let mut list = LedgerList {
            base,
            ..LedgerList::default()
        };
        let mut at = base;
        for (i, entries) in counts.iter().enumerate() {
            let is_open = open && i + 1 == counts.len();
            list.ledgers.push(Ledger {
                id: LedgerId(10 + 3 * i as i64),
                base: at,
                closed: (!is_open).then_some(Closed {
                    entries: *entries,
                    bytes: entries * 100,
                    at_ms: 7,
                }),
            });
            at += entries;
        }
        list
    }

    #[test]
    fn positions_and_offsets() {
        let list = list(&[3, 0, 2, 5], 100, true);
        for (offset, position, before) in [
            (100, (10, 0), (10, -1)),
            (102, (10, 2), (10, 1)),
            (103, (16, 0), (10, 2)),
            (104, (16, 1), (16, 0)),
            (105, (19, 0), (16, 1)),
            (109, (19, 4), (19, 3)),
            (200, (19, 95), (19, 94)),
        ] {
            let position = Position::new(position.0, position.1);
            assert_eq!(list.position(offset), position);
            assert_eq!(
                list.position_before(offset),
                Position::new(before.0, before.1)
            );
            assert_eq!(list.offset(position), Some(offset));
            assert_eq!(list.offset_from(position), offset);
        }
        for (position, from) in [
            ((-1, -1), 100),
            ((10, -1), 100),
            ((10, 3), 103),
            ((10, 99), 103),
            ((11, 0), 103),
            ((13, 0), 103),
            ((15, 7), 103),
            ((19, -1), 105),
        ] {
            let position = Position::new(position.0, position.1);
            assert_eq!(list.offset(position), None, "{position}");
            assert_eq!(list.offset_from(position), from, "{position}");
        }
        assert_eq!(list.offset_from(Position::LATEST), u64::MAX);
        assert_eq!(LedgerList::default().position(0), Position::EARLIEST);
        assert_eq!(LedgerList::default().offset_from(Position::LATEST), 0);
    }

    #[test]
    fn closing_moves_what_follows_and_trimming_keeps_offsets() {
        let mut list = list(&[3, 2, 0], 0, true);
        list.ledgers[1].closed = None;
        let end = LedgerEnd {
            entries: 7,
            bytes: 70,
        };
        list.close(LedgerId(13), end, 9);
        assert_eq!(list.ledgers[2].base, 10);
        assert_eq!(list.first_unclosed(), Some(LedgerId(16)));
        list.remove_first(2);
        assert_eq!(
            (list.base, list.position_before(10)),
            (10, Position::new(16, -1))
        );
        assert_eq!(list.offset_from(Position::new(10, 1)), 10);
    }

    proptest! {
        #[test]
        fn round_trip(counts in proptest::collection::vec(0..1000_u64, 0..9), base: u32, open: bool) {
            let mut list = list(&counts, u64::from(base), open);
            list.properties.insert("a".into(), "b".into());
            prop_assert_eq!(LedgerList::decode(&list.encode()).unwrap(), list);
        }

        #[test]
        fn garbage_never_panics(garbage: Vec<u8>) {
            let _ = LedgerList::decode(&garbage);
        }
    }
}
