//! What a loaded topic does when its policies change.

use std::sync::Arc;

use super::{State, Topic};
use crate::policies::EffectivePolicies;

/// What a SEND is checked against, copied once for each run.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct SendLimits {
    /// 0 = any delay.
    pub(crate) max_delay_ms: u64,
    pub(crate) size_max: usize,
    pub(crate) encryption_required: bool,
}

impl Topic {
    pub(crate) fn send_limits(&self) -> SendLimits {
        let in_force = self.in_force.read();
        let policies = &in_force.policies;
        SendLimits {
            max_delay_ms: policies.delayed_delivery.max_delivery_delay_in_millis,
            // The block has headers beside the message; frames are checked for the broker's limit.
            size_max: if policies.message_size_max < self.core.config.max_message_size {
                policies.message_size_max
            } else {
                usize::MAX
            },
            encryption_required: policies.encryption_required,
        }
    }

    /// Delayed entries with a time up to this may go out now.
    pub(super) fn due_before_ms(&self, policies: &EffectivePolicies, now_ms: u64) -> u64 {
        let delays = policies.delayed_delivery;
        if !delays.active {
            u64::MAX
        } else if self.core.config.is_delayed_delivery_deliver_at_time_strict {
            now_ms
        } else {
            now_ms.saturating_add(delays.tick_time)
        }
    }

    /// When to look again for an entry that is due at `due_ms`.
    pub(super) fn alarm_ms(&self, due_ms: u64) -> u64 {
        if self.core.config.is_delayed_delivery_deliver_at_time_strict {
            due_ms
        } else {
            due_ms.saturating_sub(self.policies().delayed_delivery.tick_time)
        }
    }

    /// Sets up what policies decide for as long as they do not change.
    pub(super) fn apply_policies(&self, state: &mut State) {
        let policies = self.policies();
        self.set_rates(state, &policies);
        self.arm_quota(state, &policies);
    }

    /// Delays may be shorter now, and limits higher.
    pub(crate) fn policies_changed(self: &Arc<Topic>) {
        let mut state = self.lock();
        self.apply_policies(&mut state);
        self.dispatch_all(&mut state);
    }
}
