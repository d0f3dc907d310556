//! Consumers that join and leave, and what they are told of each other.

use std::cell::Cell;
use std::sync::Arc;

use geminga_proto::pb::{CommandActiveConsumerChange, CommandReachedEndOfTopic};

use super::{Dispatch, Subscription};
use crate::config::{BrokerConfig, SubscriptionType};
use crate::consumer::{Consumer, NewConsumer};
use crate::dispatcher::key_range::{AutoSplit, KeyRanges, Ring, Sticky};
use crate::dispatcher::key_shared::KeyShared;
use crate::dispatcher::round_robin::RoundRobin;
use crate::dispatcher::shared::{Routing, Shared};
use crate::dispatcher::single_active::{Change, Choice, SingleActive};
use crate::dispatcher::{ConsumerKey, Flow, Limits};
use crate::error::BrokerError;
use crate::peer::Peer;
use crate::policies::EffectivePolicies;

/// Why a consumer may not join.
pub(crate) enum JoinError {
    /// An Exclusive subscription has one; if its connection is dead, try again.
    Taken(Arc<Peer>),
    Refused(BrokerError),
}

impl Subscription {
    /// Adds a consumer. The others are told by `announce`.
    pub(crate) fn join(
        &mut self,
        new: NewConsumer,
        topic: &geminga_model::TopicName,
        config: &BrokerConfig,
        policies: &EffectivePolicies,
        now_ms: u64,
    ) -> Result<(), JoinError> {
        let refused = |error| Err(JoinError::Refused(error));
        if self.consumers.is_empty() {
            self.dispatch = Dispatch::None;
        } else if self.kind != Some(new.kind) {
            return refused(BrokerError::ConsumerBusy(
                "Subscription is of different type".to_owned(),
            ));
        }
        let max = policies.consumers_per_subscription_max;
        if max > 0 && self.consumers.len() >= max && new.kind != SubscriptionType::Exclusive {
            return refused(BrokerError::ConsumerBusy(
                "Subscription reached max consumers limit".to_owned(),
            ));
        }
        if new.kind == SubscriptionType::Exclusive
            && let Some(other) = self.consumers.first()
        {
            return Err(JoinError::Taken(other.peer.clone()));
        }
        if new.kind == SubscriptionType::KeyShared
            && !self.consumers.is_empty()
            && self.key_shared != new.key_shared
        {
            return refused(BrokerError::ConsumerBusy(
                "Subscription is of different type".to_owned(),
            ));
        }
        let first = matches!(self.dispatch, Dispatch::None);
        if first {
            self.dispatch = dispatch_for(&new, topic, config, policies);
            self.kind = Some(new.kind);
            self.key_shared = new.key_shared;
            self.held = false;
            self.read_compacted = new.read_compacted;
            self.rewind();
        }
        let limit = match new.kind.is_single_active() {
            true => 0,
            false => policies.unacked_per_consumer_max,
        };
        let flow = Flow::new(new.key, new.name.clone(), new.priority, limit);
        match &mut self.dispatch {
            Dispatch::None => {}
            Dispatch::Single(single) => {
                let reads_ranges = single.is_exclusive() && new.key_shared.sticky;
                single.set_ranges(if reads_ranges { &new.ranges } else { &[] });
                let change = single.add(flow);
                self.changed(change, config);
            }
            Dispatch::Many(many) => {
                if let Err(error) = many.add(flow, &new.ranges) {
                    if first {
                        self.dispatch = Dispatch::None;
                    }
                    return refused(BrokerError::ConsumerAssign(error.to_string()));
                }
            }
        }
        let at = self
            .consumers
            .partition_point(|consumer| consumer.key < new.key);
        let consumer = Consumer {
            key: new.key,
            id: new.id,
            name: new.name,
            peer: new.peer,
            epoch: new.epoch,
            metadata: new.metadata,
            connected_since_ms: now_ms,
            read_position_when_joining: self.read,
            end_told: false,
            counters: Cell::default(),
        };
        self.consumers.insert(at, consumer);
        Ok(())
    }

    /// Removes a consumer; what it held goes to the others. False where it is not here.
    pub(crate) fn leave(&mut self, key: ConsumerKey, config: &BrokerConfig) -> bool {
        let Some(at) = super::place_of(&self.consumers, key) else {
            return false;
        };
        self.consumers.remove(at);
        match &mut self.dispatch {
            Dispatch::None => {}
            Dispatch::Single(single) => {
                let change = single.remove(key);
                self.changed(change, config);
                if change != Change::None {
                    self.announce();
                }
            }
            Dispatch::Many(many) => many.remove(key),
        }
        if self.consumers.is_empty() {
            self.dispatch = Dispatch::None;
            self.held = false;
            self.generation += 1;
            self.ahead.clear();
            self.timer_ms = None;
        }
        true
    }

    /// Removes all consumers and returns them, for the caller to close.
    pub(crate) fn disconnect_all(&mut self) -> Vec<Consumer> {
        self.dispatch = Dispatch::None;
        self.held = false;
        self.generation += 1;
        self.ahead.clear();
        self.timer_ms = None;
        std::mem::take(&mut self.consumers)
    }

    /// Tells the consumers of a Failover subscription which of them is active.
    pub(crate) fn announce(&self) {
        let Dispatch::Single(single) = &self.dispatch else {
            return;
        };
        if single.is_exclusive() {
            return;
        }
        let active = single.active();
        for consumer in &self.consumers {
            if consumer.peer.protocol() >= 12 {
                consumer.peer.outbox.send(CommandActiveConsumerChange {
                    consumer_id: consumer.id,
                    is_active: Some(active == Some(consumer.key)),
                });
            }
        }
    }

    /// Tells those who do not know it yet that the topic has ended and all of it is read.
    pub(crate) fn announce_end(&mut self) {
        for consumer in &mut self.consumers {
            if !consumer.end_told && consumer.peer.protocol() >= 9 {
                consumer.end_told = true;
                consumer.peer.outbox.send(CommandReachedEndOfTopic {
                    consumer_id: consumer.id,
                });
            }
        }
    }

    pub(crate) fn active_consumer(&self) -> Option<ConsumerKey> {
        match &self.dispatch {
            Dispatch::Single(single) => single.active(),
            _ => None,
        }
    }

    /// Whether a timer must end the wait of a failover.
    pub(crate) fn is_held(&self) -> bool {
        self.held
    }

    fn changed(&mut self, change: Change, config: &BrokerConfig) {
        let Change::Active { from, to: Some(_) } = change else {
            return;
        };
        // The former active consumer may still work on what it got: its acks may yet come.
        let wait = from.is_some() && config.active_consumer_failover_delay_time_millis > 0;
        if wait {
            self.held = true;
        } else {
            self.rewind();
        }
    }
}

fn dispatch_for(
    new: &NewConsumer,
    topic: &geminga_model::TopicName,
    config: &BrokerConfig,
    policies: &EffectivePolicies,
) -> Dispatch {
    let limits = Limits {
        unacked_per_consumer_max: policies.unacked_per_consumer_max,
        unacked_per_subscription_max: policies.unacked_per_subscription_max,
        round_robin_messages_max: config.dispatcher_max_round_robin_batch_size,
        look_ahead_per_consumer_max: config
            .key_shared_look_ahead_msg_in_replay_threshold_per_consumer,
        look_ahead_per_subscription_max: config
            .key_shared_look_ahead_msg_in_replay_threshold_per_subscription,
    };
    match new.kind {
        SubscriptionType::Exclusive => Dispatch::Single(SingleActive::new(Choice::Exclusive)),
        SubscriptionType::Failover => {
            let choice = match topic.partition() {
                Some(partition) if !config.active_consumer_failover_consistent_hashing => {
                    Choice::ByPartition(partition)
                }
                _ => Choice::ByRing(topic.as_str().into()),
            };
            Dispatch::Single(SingleActive::new(choice))
        }
        SubscriptionType::Shared => {
            let turns = Routing::RoundRobin(RoundRobin::default());
            Dispatch::Many(Box::new(Shared::new(turns, limits)))
        }
        SubscriptionType::KeyShared => {
            let ranges = if new.key_shared.sticky {
                KeyRanges::Sticky(Sticky::default())
            } else if config.subscription_key_shared_use_consistent_hashing {
                let points = config.subscription_key_shared_consistent_hashing_replica_points;
                KeyRanges::Ring(Ring::new(points))
            } else {
                KeyRanges::AutoSplit(AutoSplit::default())
            };
            let keys = KeyShared::new(ranges, new.key_shared.allow_out_of_order);
            Dispatch::Many(Box::new(Shared::new(Routing::Keys(keys), limits)))
        }
    }
}
