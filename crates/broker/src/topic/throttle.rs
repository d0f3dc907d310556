//! Rates of a topic: publishing slows its producers' connections down, dispatch waits.
//!
//! A topic without a limit has none of this. What must hold: a connection that was stopped here is
//! let go again, whatever becomes of the topic; a timer is set only while somebody waits.

use std::collections::HashMap;
use std::sync::Arc;

use super::{State, Topic};
use crate::peer::Peer;
use crate::policies::EffectivePolicies;
use crate::rate::{Allowance, Limiter};
use crate::timers::Alarm;

pub(crate) struct Rates {
    publish: Limiter,
    /// Connections that are not read until there are tokens again.
    stopped: Vec<Arc<Peer>>,
    dispatch: Limiter,
    /// By subscription, made when it first dispatches.
    subscriptions: HashMap<u32, Limiter>,
    /// When the alarm that is set for dispatch fires.
    alarm_ms: Option<u64>,
}

impl Topic {
    /// Begins anew with the rates of these policies.
    pub(super) fn set_rates(&self, state: &mut State, policies: &EffectivePolicies) {
        self.release_stopped(state);
        let now_ms = self.core.clock.now_ms();
        let publish = Limiter::of_publish(policies.publish_rate, now_ms);
        let dispatch = Limiter::of_dispatch(policies.dispatch_rate, now_ms);
        let of_each = Limiter::of_dispatch(policies.subscription_dispatch_rate, now_ms);
        let any = publish.is_limited()
            || dispatch.is_limited()
            || of_each.is_limited()
            || !policies.dispatch_rates.is_empty();
        state.rates = any.then(|| {
            Box::new(Rates {
                publish,
                stopped: Vec::new(),
                dispatch,
                subscriptions: HashMap::new(),
                alarm_ms: None,
            })
        });
    }

    /// What was just taken from a producer counts; its connection may have to pause.
    pub(super) fn count_published(
        self: &Arc<Topic>,
        state: &mut State,
        peer: &Arc<Peer>,
        messages: u64,
        bytes: u64,
    ) {
        let Some(rates) = state.rates.as_mut().filter(|r| r.publish.is_limited()) else {
            return;
        };
        let now_ms = self.core.clock.now_ms();
        rates.publish.spend(messages, bytes);
        let Err(wait_ms) = rates.publish.allowance(now_ms) else {
            return;
        };
        if rates.stopped.iter().any(|other| Arc::ptr_eq(other, peer)) {
            return;
        }
        peer.stop_reading();
        rates.stopped.push(peer.clone());
        if rates.stopped.len() == 1 {
            let at_ms = now_ms.saturating_add(wait_ms);
            self.core
                .timers
                .set(at_ms, Arc::downgrade(self), Alarm::Publish);
        }
    }

    /// There should be tokens again: goes on with who was stopped.
    pub(super) fn publish_alarm(self: &Arc<Topic>, state: &mut State) {
        let now_ms = self.core.clock.now_ms();
        let Some(rates) = state.rates.as_mut() else {
            return;
        };
        match rates.publish.allowance(now_ms) {
            Err(wait_ms) if !rates.stopped.is_empty() => {
                let at_ms = now_ms.saturating_add(wait_ms);
                self.core
                    .timers
                    .set(at_ms, Arc::downgrade(self), Alarm::Publish);
            }
            _ => self.release_stopped(state),
        }
    }

    pub(super) fn release_stopped(&self, state: &mut State) {
        if let Some(rates) = &mut state.rates {
            for peer in rates.stopped.drain(..) {
                peer.go_on_reading();
            }
        }
    }

    /// What a subscription may dispatch now; none = nothing, and an alarm is set.
    pub(super) fn dispatch_allowance(
        self: &Arc<Topic>,
        state: &mut State,
        at: usize,
    ) -> Option<Allowance> {
        let State {
            rates,
            subscriptions,
            ..
        } = state;
        let Some(rates) = rates else {
            return Some(Allowance::ANY);
        };
        let subscription = &subscriptions[at];
        let now_ms = self.core.clock.now_ms();
        let own = rates
            .subscriptions
            .entry(subscription.id)
            .or_insert_with(|| {
                let rate = self.policies().dispatch_rate_of(&subscription.name);
                Limiter::of_dispatch(rate, now_ms)
            });
        match (rates.dispatch.allowance(now_ms), own.allowance(now_ms)) {
            (Ok(all), Ok(own)) => Some(all.and(own)),
            (all, own) => {
                let wait_ms = all.err().unwrap_or(0).max(own.err().unwrap_or(0));
                let at_ms = now_ms.saturating_add(wait_ms);
                if rates
                    .alarm_ms
                    .is_none_or(|set| set > at_ms || set <= now_ms)
                {
                    rates.alarm_ms = Some(at_ms);
                    self.core
                        .timers
                        .set(at_ms, Arc::downgrade(self), Alarm::Dispatch);
                }
                None
            }
        }
    }

    pub(super) fn count_dispatched(state: &mut State, id: u32, messages: u64, bytes: u64) {
        let Some(rates) = &mut state.rates else {
            return;
        };
        if messages == 0 {
            return;
        }
        rates.dispatch.spend(messages, bytes);
        if let Some(own) = rates.subscriptions.get_mut(&id) {
            own.spend(messages, bytes);
        }
    }

    pub(super) fn dispatch_alarm(self: &Arc<Topic>, state: &mut State) {
        if let Some(rates) = &mut state.rates {
            rates.alarm_ms = None;
        }
        self.dispatch_all(state);
    }

    pub(super) fn forget_rate(state: &mut State, id: u32) {
        if let Some(rates) = &mut state.rates {
            rates.subscriptions.remove(&id);
        }
    }
}
