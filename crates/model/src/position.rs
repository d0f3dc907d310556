//! Where an entry stands: its ledger and its number in it.

use std::fmt;

/// A ledger's id. Ids rise as ledgers are made, and are never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LedgerId(pub i64);

/// An entry's number in its ledger, from 0. -1 stands before the first entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EntryId(pub i64);

/// An entry's place in a topic. Ordered by ledger, then entry, as Pulsar's message ids are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    pub ledger: LedgerId,
    pub entry: EntryId,
}

impl Position {
    /// Before everything: Pulsar's (-1, -1).
    pub const EARLIEST: Self = Self::new(-1, -1);
    /// After everything: Pulsar's (2^63-1, 2^63-1).
    pub const LATEST: Self = Self::new(i64::MAX, i64::MAX);

    #[must_use]
    pub const fn new(ledger: i64, entry: i64) -> Self {
        Self {
            ledger: LedgerId(ledger),
            entry: EntryId(entry),
        }
    }

    /// The wire carries ids as `u64`; -1 travels as 2^64-1.
    #[must_use]
    pub const fn from_wire(ledger: u64, entry: u64) -> Self {
        Self::new(ledger as i64, entry as i64)
    }

    /// The pair as the wire carries it.
    #[must_use]
    pub const fn to_wire(self) -> (u64, u64) {
        (self.ledger.0 as u64, self.entry.0 as u64)
    }

    /// The following number in the same ledger, whether or not such an entry exists.
    #[must_use]
    pub const fn next_in_ledger(self) -> Self {
        Self::new(self.ledger.0, self.entry.0.saturating_add(1))
    }
}

impl fmt::Display for LedgerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.ledger, self.entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_wire_form() {
        assert!(Position::EARLIEST < Position::new(0, -1));
        assert!(Position::new(3, 9) < Position::new(4, 0));
        assert_eq!(Position::from_wire(u64::MAX, u64::MAX), Position::EARLIEST);
        assert_eq!(Position::EARLIEST.to_wire(), (u64::MAX, u64::MAX));
    }
}
