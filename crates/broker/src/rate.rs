//! How much may pass in a time: a token bucket. Pure: time is an argument.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use crate::policies::{DispatchRate, PublishRate, SubscribeRate};

/// Holds at most the tokens of one period. May go below zero: what is over is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bucket {
    per_period: i128,
    period_ms: i128,
    /// In tokens times `period_ms`, so that nothing is rounded.
    tokens: i128,
    at_ms: u64,
}

impl Bucket {
    /// None where there is no limit.
    fn new(per_period: i64, period_ms: u64, now_ms: u64) -> Option<Bucket> {
        let period_ms = i128::from(period_ms.max(1));
        let per_period = i128::from(per_period);
        (per_period > 0).then(|| Bucket {
            per_period,
            period_ms,
            tokens: per_period * period_ms,
            at_ms: now_ms,
        })
    }

    fn refill(&mut self, now_ms: u64) {
        let elapsed = i128::from(now_ms.saturating_sub(self.at_ms));
        self.at_ms = self.at_ms.max(now_ms);
        let full = self.per_period * self.period_ms;
        self.tokens = (self.tokens + elapsed * self.per_period).min(full);
    }

    fn available(&self) -> u64 {
        u64::try_from(self.tokens / self.period_ms).unwrap_or(0)
    }

    fn spend(&mut self, count: u64) {
        self.tokens -= i128::from(count) * self.period_ms;
    }

    /// Milliseconds until there is a token.
    fn wait_ms(&self) -> u64 {
        let missing = self.period_ms - self.tokens;
        let wait = (missing + self.per_period - 1) / self.per_period;
        u64::try_from(wait.max(0)).unwrap_or(u64::MAX)
    }
}

/// A limit of messages and one of bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Limiter {
    messages: Option<Bucket>,
    bytes: Option<Bucket>,
}

/// What may pass now; none of it is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowance {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

impl Allowance {
    pub(crate) const ANY: Allowance = Allowance {
        messages: u64::MAX,
        bytes: u64::MAX,
    };

    pub(crate) fn is_limited(self) -> bool {
        self != Allowance::ANY
    }

    pub(crate) fn and(self, other: Allowance) -> Allowance {
        Allowance {
            messages: self.messages.min(other.messages),
            bytes: self.bytes.min(other.bytes),
        }
    }
}

impl Limiter {
    pub(crate) fn of_publish(rate: PublishRate, now_ms: u64) -> Limiter {
        Limiter {
            messages: Bucket::new(rate.publish_throttling_rate_in_msg, 1_000, now_ms),
            bytes: Bucket::new(rate.publish_throttling_rate_in_byte, 1_000, now_ms),
        }
    }

    pub(crate) fn of_dispatch(rate: DispatchRate, now_ms: u64) -> Limiter {
        let period_ms = u64::from(rate.rate_period_in_second.max(1)) * 1_000;
        Limiter {
            messages: Bucket::new(rate.dispatch_throttling_rate_in_msg, period_ms, now_ms),
            bytes: Bucket::new(rate.dispatch_throttling_rate_in_byte, period_ms, now_ms),
        }
    }

    pub(crate) fn is_limited(&self) -> bool {
        self.messages.is_some() || self.bytes.is_some()
    }

    /// What may pass now, or in how many milliseconds something may.
    pub(crate) fn allowance(&mut self, now_ms: u64) -> Result<Allowance, u64> {
        let mut wait_ms = 0;
        let mut left = |bucket: &mut Option<Bucket>| {
            let Some(bucket) = bucket else {
                return u64::MAX;
            };
            bucket.refill(now_ms);
            let available = bucket.available();
            if available == 0 {
                wait_ms = wait_ms.max(bucket.wait_ms());
            }
            available
        };
        let (messages, bytes) = (left(&mut self.messages), left(&mut self.bytes));
        if wait_ms > 0 {
            return Err(wait_ms);
        }
        Ok(Allowance { messages, bytes })
    }

    pub(crate) fn spend(&mut self, messages: u64, bytes: u64) {
        if let Some(bucket) = &mut self.messages {
            bucket.spend(messages);
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.spend(bytes);
        }
    }
}

/// Who subscribes: the client's host, the consumer's name and its number in its connection.
pub(crate) type Subscriber<'a> = (&'a str, &'a str, u64);

/// Consumers that are told apart in one period: who gives itself ever new names finds an end.
const SUBSCRIBERS_MAX: usize = 100_000;

/// How often each consumer may subscribe in a period.
#[derive(Debug, Clone, Default)]
pub(crate) struct SubscribeLimiter {
    rate: SubscribeRate,
    began_ms: u64,
    /// In this period, by the hash of the subscriber: names may be long.
    counts: HashMap<u64, i64>,
    /// Nobody can choose names that share a hash.
    hasher: RandomState,
}

impl SubscribeLimiter {
    pub(crate) fn new(rate: SubscribeRate, now_ms: u64) -> SubscribeLimiter {
        SubscribeLimiter {
            rate,
            began_ms: now_ms,
            counts: HashMap::new(),
            hasher: RandomState::new(),
        }
    }

    pub(crate) fn is_limited(&self) -> bool {
        self.rate.subscribe_throttling_rate_per_consumer > 0
    }

    /// Whether that one may subscribe now; if so, it counts.
    pub(crate) fn allows(&mut self, who: Subscriber<'_>, now_ms: u64) -> bool {
        if !self.is_limited() {
            return true;
        }
        let period_ms = u64::from(self.rate.rate_period_in_second.max(1)) * 1_000;
        if now_ms.saturating_sub(self.began_ms) >= period_ms {
            self.began_ms = now_ms;
            self.counts.clear();
        }
        let who = self.hasher.hash_one(who);
        if self.counts.len() >= SUBSCRIBERS_MAX && !self.counts.contains_key(&who) {
            return false;
        }
        let count = self.counts.entry(who).or_default();
        *count += 1;
        *count <= self.rate.subscribe_throttling_rate_per_consumer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limiter(messages: i64, bytes: i64) -> Limiter {
        let rate = PublishRate {
            publish_throttling_rate_in_msg: messages,
            publish_throttling_rate_in_byte: bytes,
        };
        Limiter::of_publish(rate, 0)
    }

    #[test]
    fn a_debt_is_waited_for() {
        let mut limiter = limiter(10, 0);
        assert_eq!(limiter.allowance(0).unwrap().messages, 10);
        limiter.spend(30, 1);
        assert_eq!(limiter.allowance(0), Err(2_100));
        assert_eq!(limiter.allowance(2_000), Err(100));
        assert_eq!(limiter.allowance(2_100).unwrap().messages, 1);
        assert_eq!(limiter.allowance(90_000).unwrap().messages, 10, "one burst");
    }

    #[test]
    fn each_consumer_subscribes_as_often_as_the_period_allows() {
        let rate = SubscribeRate {
            subscribe_throttling_rate_per_consumer: 2,
            rate_period_in_second: 30,
        };
        let mut limiter = SubscribeLimiter::new(rate, 0);
        let who = |id| ("host", "c", id);
        let got: Vec<bool> = [(1, 0), (1, 1), (1, 2), (2, 2), (1, 29_999), (1, 30_000)]
            .into_iter()
            .map(|(id, now_ms)| limiter.allows(who(id), now_ms))
            .collect();
        assert_eq!(got, [true, true, false, true, false, true]);
        let mut none = SubscribeLimiter::new(SubscribeRate::default(), 0);
        assert!((0..100).all(|_| none.allows(who(1), 0)));
        assert!(none.counts.is_empty());
    }

    #[test]
    fn who_gives_itself_ever_new_names_finds_an_end() {
        let rate = SubscribeRate {
            subscribe_throttling_rate_per_consumer: 1,
            rate_period_in_second: 30,
        };
        let mut limiter = SubscribeLimiter::new(rate, 0);
        let mut subscribe = |id, now_ms| limiter.allows(("host", "c", id), now_ms);
        let count = (0..200_000).filter(|id| subscribe(*id, 0)).count();
        assert_eq!(count, SUBSCRIBERS_MAX);
        assert!(subscribe(200_000, 30_000), "the next period");
    }

    #[test]
    fn the_tighter_limit_decides() {
        let mut limiter = limiter(1_000, 100);
        limiter.spend(1, 200);
        assert_eq!(limiter.allowance(0), Err(1_010));
        assert!(!Limiter::of_publish(PublishRate::default(), 0).is_limited());
    }

    proptest! {
        /// Over any time no more passes than the rate and one burst.
        #[test]
        fn no_more_than_the_rate_passes(rate in 1i64..1_000, steps in prop::collection::vec(0u64..500, 1..200)) {
            let mut limiter = limiter(rate, 0);
            let (mut now, mut passed) = (0, 0u64);
            for step in steps {
                now += step;
                if let Ok(allowance) = limiter.allowance(now) {
                    limiter.spend(allowance.messages, 0);
                    passed += allowance.messages;
                }
            }
            prop_assert!(passed <= rate as u64 * now / 1_000 + rate as u64);
        }
    }
}
