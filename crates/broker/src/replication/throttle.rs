//! How fast a topic is sent to another cluster.

use crate::policies::DispatchRate;
use crate::rate::{Allowance, Limiter};

/// Follows the rate of the policies, which may change while entries are on their way.
#[derive(Default)]
pub(super) struct Throttle {
    rate: DispatchRate,
    limiter: Limiter,
}

impl Throttle {
    /// What may be sent now, or in how many milliseconds something may.
    pub(super) fn allowance(&mut self, rate: DispatchRate, now_ms: u64) -> Result<Allowance, u64> {
        if rate != self.rate {
            self.rate = rate;
            self.limiter = Limiter::of_dispatch(rate, now_ms);
        }
        self.limiter.allowance(now_ms)
    }

    pub(super) fn spend(&mut self, messages: u64, bytes: u64) {
        self.limiter.spend(messages, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_rate_holds_from_then_on() {
        let rate = |messages| DispatchRate {
            dispatch_throttling_rate_in_msg: messages,
            ..DispatchRate::default()
        };
        let mut throttle = Throttle::default();
        assert_eq!(
            throttle.allowance(DispatchRate::default(), 0),
            Ok(Allowance::ANY)
        );
        throttle.spend(1_000, 0);
        assert_eq!(
            throttle.allowance(rate(10), 0).map(|all| all.messages),
            Ok(10)
        );
        throttle.spend(20, 0);
        assert_eq!(throttle.allowance(rate(10), 0), Err(1_100));
        assert_eq!(throttle.allowance(rate(0), 0), Ok(Allowance::ANY));
    }
}
