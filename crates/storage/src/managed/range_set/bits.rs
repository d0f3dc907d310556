//! A window of offsets as a bitmap.

use std::ops::Range;

/// Offsets of one window: few in tests, so that random histories with crashes make bitmaps too.
pub(super) const WINDOW: u64 = if cfg!(test) { 256 } else { 4096 };
const WORDS: usize = (WINDOW / 64) as usize;

/// All ranges given are within the window.
#[derive(Debug, Clone)]
pub(super) struct Bits {
    words: [u64; WORDS],
    count: u64,
}

impl Default for Bits {
    fn default() -> Self {
        Self {
            words: [0; WORDS],
            count: 0,
        }
    }
}

/// The words that a range touches, and which of their bits are in it.
fn masks(range: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    let words = if range.is_empty() {
        0..0
    } else {
        range.start / 64..(range.end - 1) / 64 + 1
    };
    words.map(move |word| {
        let from = range.start.max(word * 64) - word * 64;
        let to = range.end.min(word * 64 + 64) - word * 64;
        (word as usize, (u64::MAX >> (64 - (to - from))) << from)
    })
}

impl Bits {
    pub(super) fn has(&self, bit: u64) -> bool {
        self.words[(bit / 64) as usize] >> (bit % 64) & 1 == 1
    }

    /// Returns how many were not set.
    pub(super) fn set(&mut self, range: Range<u64>) -> u64 {
        let before = self.count;
        for (word, mask) in masks(range) {
            self.count += u64::from((mask & !self.words[word]).count_ones());
            self.words[word] |= mask;
        }
        self.count - before
    }

    /// Returns how many were set.
    pub(super) fn clear(&mut self, range: Range<u64>) -> u64 {
        let before = self.count;
        for (word, mask) in masks(range) {
            self.count -= u64::from((mask & self.words[word]).count_ones());
            self.words[word] &= !mask;
        }
        before - self.count
    }

    pub(super) fn count_in(&self, range: Range<u64>) -> u64 {
        let counts = masks(range).map(|(word, mask)| (self.words[word] & mask).count_ones());
        counts.map(u64::from).sum()
    }

    pub(super) fn is_full(&self) -> bool {
        self.count == WINDOW
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many ranges the set bits make.
    pub(super) fn runs(&self) -> usize {
        let mut before = 0;
        let mut runs = 0;
        for word in self.words {
            runs += (word & !(word << 1 | before)).count_ones() as usize;
            before = word >> 63;
        }
        runs
    }

    /// The first bit from this one on that is not set.
    pub(super) fn next_clear(&self, from: u64) -> Option<u64> {
        self.next(from, |word| !word)
    }

    fn next(&self, from: u64, wanted: impl Fn(u64) -> u64) -> Option<u64> {
        if from >= WINDOW {
            return None;
        }
        let mut at = (from / 64) as usize;
        let mut word = wanted(self.words[at]) & (u64::MAX << (from % 64));
        while word == 0 {
            at += 1;
            word = wanted(*self.words.get(at)?);
        }
        Some(at as u64 * 64 + u64::from(word.trailing_zeros()))
    }

    /// The ranges of set bits; the window begins at `base`.
    pub(super) fn iter(&self, base: u64) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.next(at, |word| word)?;
            at = self.next_clear(start).unwrap_or(WINDOW);
            Some(base + start..base + at)
        })
    }
}
