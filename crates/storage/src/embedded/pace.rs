//! Spreads background work over time, so that the log finds the disk free.
//!
//! A log file that is read, sorted or zeroed in one go keeps the disk busy for tens of milliseconds, and
//! each commit meanwhile waits behind it. There is time: until the next file is full. So such work
//! is cut into small pieces, and goes at four times the rate at which the log was filled last; who
//! is waited for hurries.

use std::time::{Duration, Instant};

/// One read or write of background work, in bytes: what a commit may find before it in the disk's queue.
pub(super) const PIECE_BYTES: usize = 512 << 10;
/// At least so fast: the log may be filled faster than last time.
const BYTES_PER_SECOND_MIN: u64 = 64 << 20;
/// How much faster than the log was filled.
const LEAD: u64 = 4;
/// Shorter waits are put off: the clock is not that exact.
const WAIT_MIN: Duration = Duration::from_micros(200);

/// One piece of work.
pub(super) struct Pace {
    began: Instant,
    bytes: u64,
    bytes_per_second: Option<u64>,
}

impl Pace {
    /// For a log whose last `filled` bytes came in `took`; unknown at first: no time is taken then.
    pub(super) fn new(filled: u64, took: Option<Duration>) -> Self {
        Self {
            began: Instant::now(),
            bytes: 0,
            bytes_per_second: took.map(|took| rate(filled, took)),
        }
    }

    /// How long to wait after `bytes` more were read or written.
    pub(super) fn after(&mut self, bytes: u64) -> Option<Duration> {
        self.bytes += bytes;
        let due =
            Duration::from_micros(self.bytes.saturating_mul(1_000_000) / self.bytes_per_second?);
        let wait = due.checked_sub(self.began.elapsed())?;
        (wait >= WAIT_MIN).then_some(wait)
    }

    /// Somebody waits for this work.
    pub(super) fn hurry(&mut self) {
        self.bytes_per_second = None;
    }
}

fn rate(filled: u64, took: Duration) -> u64 {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
    let filling = filled.saturating_mul(1_000_000) / micros;
    filling.saturating_mul(LEAD).max(BYTES_PER_SECOND_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_fills_slowly_is_sorted_slowly_and_a_fast_one_fast() {
        let mib = 1 << 20;
        assert_eq!(
            rate(16 * mib, Duration::from_secs(3600)),
            BYTES_PER_SECOND_MIN
        );
        assert_eq!(rate(16 * mib, Duration::from_millis(100)), 640 * mib);
        assert_eq!(rate(u64::MAX, Duration::ZERO), u64::MAX);
    }

    #[test]
    fn nobody_waits_before_a_rate_is_known_or_after_a_hurry() {
        let mut pace = Pace::new(1 << 20, None);
        assert_eq!(pace.after(1 << 40), None);
        let mut pace = Pace::new(1 << 20, Some(Duration::from_secs(1)));
        assert!(
            pace.after(64 << 20)
                .is_some_and(|wait| wait > Duration::from_millis(500))
        );
        pace.hurry();
        assert_eq!(pace.after(64 << 20), None);
    }
}
