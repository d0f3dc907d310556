//! Permits and unacked messages of one consumer.
//!
//! Permits count messages, not entries, and may go below zero since an entry is never split.

use std::sync::Arc;

/// A consumer within the broker; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ConsumerKey(pub(crate) u64);

#[derive(Debug, Clone)]
pub(crate) struct Flow {
    pub(crate) key: ConsumerKey,
    pub(crate) name: Arc<str>,
    /// Lower numbers are served first.
    pub(crate) priority: i32,
    permits: i64,
    /// Permits that came while the consumer was blocked on unacked messages.
    parked: i64,
    unacked: u64,
    /// 0 = no limit.
    unacked_max: u64,
    blocked: bool,
    /// Whether the consumer's connection takes more bytes now.
    pub(crate) writable: bool,
}

impl Flow {
    pub(crate) fn new(key: ConsumerKey, name: Arc<str>, priority: i32, unacked_max: u32) -> Flow {
        Flow {
            key,
            name,
            priority,
            permits: 0,
            parked: 0,
            unacked: 0,
            unacked_max: u64::from(unacked_max),
            blocked: false,
            writable: true,
        }
    }

    pub(crate) fn permits(&self) -> i64 {
        self.permits
    }

    pub(crate) fn unacked(&self) -> u64 {
        self.unacked
    }

    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.permits > 0 && !self.blocked && self.writable
    }

    pub(crate) fn add_permits(&mut self, messages: u32) {
        self.check_limit();
        if self.blocked {
            self.parked = self.parked.saturating_add(i64::from(messages));
        } else {
            self.permits = self.permits.saturating_add(i64::from(messages));
        }
    }

    /// An entry of `messages` goes out.
    pub(crate) fn spend(&mut self, messages: u32) {
        self.permits -= i64::from(messages);
    }

    /// Counts what `spend` sent as unacked (dispatchers that ack one by one).
    pub(crate) fn hold(&mut self, messages: u32) {
        self.unacked += u64::from(messages);
        self.check_limit();
    }

    /// `messages` are no longer out at this consumer. True when this unblocked it.
    pub(crate) fn release(&mut self, messages: u32) -> bool {
        self.unacked = self.unacked.saturating_sub(u64::from(messages));
        if self.blocked && self.unacked <= self.unacked_max / 2 {
            self.blocked = false;
            self.permits = self.permits.saturating_add(self.parked);
            self.parked = 0;
            return true;
        }
        false
    }

    fn check_limit(&mut self) {
        if self.unacked_max > 0 && self.unacked >= self.unacked_max {
            self.blocked = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(unacked_max: u32) -> Flow {
        Flow::new(ConsumerKey(1), "c".into(), 0, unacked_max)
    }

    #[test]
    fn trap_04_permits_may_go_negative() {
        let mut flow = flow(0);
        flow.add_permits(3);
        flow.spend(10);
        assert_eq!(flow.permits(), -7);
        assert!(!flow.is_ready());
        flow.add_permits(7);
        assert!(!flow.is_ready());
        flow.add_permits(1);
        assert!(flow.is_ready());
    }

    #[test]
    fn trap_05_flow_while_blocked_is_parked_and_released_at_half() {
        let mut flow = flow(10);
        flow.add_permits(10);
        flow.spend(10);
        flow.hold(10);
        assert!(flow.is_blocked());
        flow.add_permits(5);
        assert_eq!(flow.permits(), 0, "parked");
        assert!(!flow.release(4));
        assert!(flow.is_blocked());
        assert!(flow.release(1), "five left is half of ten");
        assert_eq!(flow.permits(), 5);
        assert!(flow.is_ready());
    }
}
