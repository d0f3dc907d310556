//! Exponential back-off with jitter, as a plain value: it sleeps for nobody.

use std::time::Duration;

use crate::Random;

/// Yields growing delays: `first`, doubled each time, never above `max`, each with up to a quarter of
/// jitter taken off so that many clients do not come back in the same instant.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    next: Duration,
    attempts: u32,
    random: Random,
}

impl Backoff {
    /// Delays from `first` to `max`; `seed` fixes the jitter.
    #[must_use]
    pub fn new(first: Duration, max: Duration, seed: u64) -> Self {
        Self {
            first,
            max,
            next: first,
            attempts: 0,
            random: Random::new(seed),
        }
    }

    /// The delay before the next attempt.
    pub fn next_delay(&mut self) -> Duration {
        let whole = self.next.min(self.max);
        self.next = whole.saturating_mul(2).min(self.max);
        self.attempts = self.attempts.saturating_add(1);
        let nanos = u64::try_from(whole.as_nanos()).unwrap_or(u64::MAX);
        let jitter = if nanos < 4 {
            0
        } else {
            self.random.below(nanos / 4)
        };
        Duration::from_nanos(nanos - jitter)
    }

    /// How many delays were given since the start or the last reset.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Starts again from the first delay; call it after a success.
    pub fn reset(&mut self) {
        self.next = self.first;
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_stay_below_the_maximum_and_restart() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1), 7);
        let mut ceiling = Duration::from_millis(100);
        for _ in 0..10 {
            let delay = backoff.next_delay();
            assert!(
                delay <= ceiling && delay >= ceiling * 3 / 4,
                "{delay:?} of {ceiling:?}"
            );
            ceiling = (ceiling * 2).min(Duration::from_secs(1));
        }
        assert_eq!(backoff.attempts(), 10);
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(100));
    }
}
