//! Rates of a topic: publishing slows its producers' connections down, dispatch waits.
//!
//! A topic without a limit has none of this. What must hold: a connection that was stopped here is
//! let go again, whatever becomes of the topic; a timer is set only while somebody waits.

use std::collections::HashMap;
use std::sync::Arc;

use super::{State, Topic};
use crate::consumer::NewConsumer;
use crate::error::BrokerError;
use crate::peer::Peer;
use crate::policies::EffectivePolicies;
use crate::rate::{Allowance, Limiter, SubscribeLimiter};
use crate::resource_group::Group;
use crate::timers::Alarm;

pub(crate) struct Rates {
    publish: Limiter,
    /// Connections that are not read until there are tokens again.
    stopped: Vec<Arc<Peer>>,
    dispatch: Limiter,
    subscribes: SubscribeLimiter,
    /// Whose limits the topic shares with others.
    group: Option<Arc<Group>>,
    /// By subscription, made when it first dispatches.
    subscriptions: HashMap<u32, Limiter>,
    /// When the alarm that is set for dispatch fires.
    alarm_ms: Option<u64>,
}

impl Rates {
    fn limits_publishing(&self) -> bool {
        self.publish.is_limited() || self.group.is_some()
    }

    fn spend_published(&mut self, messages: u64, bytes: u64) {
        self.publish.spend(messages, bytes);
        if let Some(group) = &self.group {
            group.publish.lock().spend(messages, bytes);
        }
    }

    /// In how many milliseconds something may be published; 0 = now.
    fn publish_wait_ms(&mut self, now_ms: u64) -> u64 {
        let own = self.publish.allowance(now_ms).err().unwrap_or(0);
        let shared = self.group.as_ref().map_or(0, |group| {
            group.publish.lock().allowance(now_ms).err().unwrap_or(0)
        });
        own.max(shared)
    }
}

impl Topic {
    /// Begins anew with the rates of these policies.
    pub(super) fn set_rates(&self, state: &mut State, policies: &EffectivePolicies) {
        self.release_stopped(state);
        let now_ms = self.core.clock.now_ms();
        let publish = Limiter::of_publish(policies.publish_rate, now_ms);
        let dispatch = Limiter::of_dispatch(policies.dispatch_rate, now_ms);
        let of_each = Limiter::of_dispatch(policies.subscription_dispatch_rate, now_ms);
        let subscribes = SubscribeLimiter::new(policies.subscribe_rate, now_ms);
        let group = policies.resource_group.as_deref();
        let group = group.and_then(|name| self.core.groups.get(name));
        let any = publish.is_limited()
            || dispatch.is_limited()
            || subscribes.is_limited()
            || group.is_some()
            || of_each.is_limited()
            || !policies.dispatch_rates.is_empty();
        state.rates = any.then(|| {
            Box::new(Rates {
                publish,
                stopped: Vec::new(),
                dispatch,
                subscribes,
                group,
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
        let Some(rates) = state.rates.as_mut().filter(|r| r.limits_publishing()) else {
            return;
        };
        let now_ms = self.core.clock.now_ms();
        rates.spend_published(messages, bytes);
        let wait_ms = rates.publish_wait_ms(now_ms);
        if wait_ms == 0 {
            return;
        }
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
        match rates.publish_wait_ms(now_ms) {
            wait_ms if wait_ms > 0 && !rates.stopped.is_empty() => {
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
        let shared = match &rates.group {
            Some(group) => group.dispatch.lock().allowance(now_ms),
            None => Ok(Allowance::ANY),
        };
        let all = [
            rates.dispatch.allowance(now_ms),
            own.allowance(now_ms),
            shared,
        ];
        match all.iter().filter_map(|one| one.err()).max() {
            None => {
                let allowed = all.into_iter().flatten();
                Some(allowed.fold(Allowance::ANY, Allowance::and))
            }
            Some(wait_ms) => {
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
        if let Some(group) = &rates.group {
            group.dispatch.lock().spend(messages, bytes);
        }
        if let Some(own) = rates.subscriptions.get_mut(&id) {
            own.spend(messages, bytes);
        }
    }

    /// Refuses a consumer that subscribes more often than it may.
    pub(super) fn count_subscribe(&self, consumer: &NewConsumer) -> Result<(), BrokerError> {
        let mut state = self.open()?;
        let Some(rates) = &mut state.rates else {
            return Ok(());
        };
        let address = &consumer.peer.address;
        let host = address
            .rsplit_once(':')
            .map_or(&**address, |(host, _)| host);
        let who = (host, &*consumer.name, consumer.id);
        match rates.subscribes.allows(who, self.core.clock.now_ms()) {
            true => Ok(()),
            false => Err(BrokerError::NotAllowed(
                "Subscribe limited by subscribe rate limit per consumer.".to_owned(),
            )),
        }
    }

    pub(super) fn dispatch_alarm(self: &Arc<Topic>, state: &mut State) {
        if let Some(rates) = &mut state.rates {
            rates.alarm_ms = None;
        }
        self.dispatch_all(state);
    }

    /// The limits of a resource group are others now: who waits for the old ones may go on.
    pub(crate) fn group_changed(self: &Arc<Topic>, group: &Arc<Group>) {
        let mut state = self.lock();
        let rates = state.rates.as_ref();
        let own = rates.and_then(|rates| rates.group.as_ref());
        if own.is_some_and(|own| Arc::ptr_eq(own, group)) {
            self.publish_alarm(&mut state);
            self.dispatch_alarm(&mut state);
        }
    }

    pub(super) fn forget_rate(state: &mut State, id: u32) {
        if let Some(rates) = &mut state.rates {
            rates.subscriptions.remove(&id);
        }
    }
}
