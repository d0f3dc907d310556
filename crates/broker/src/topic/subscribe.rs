//! Consumers that join and leave a topic's subscriptions.

use std::sync::Arc;
use std::time::Duration;

use geminga_model::Position;
use geminga_storage::managed::{Initial, Properties};

use tokio::sync::futures::OwnedNotified;

use super::compaction;
use super::load::INTERNAL_CURSORS;
use super::{State, Topic};
use crate::consumer::NewConsumer;
use crate::dispatcher::ConsumerKey;
use crate::error::BrokerError;
use crate::peer::Peer;
use crate::replication::is_replicator;
use crate::subscription::{JoinError, Subscription};
use crate::timers::Alarm;

/// Which subscription, and how it begins when it has to be made.
#[derive(Clone)]
pub(crate) struct Wanted {
    pub(crate) name: Arc<str>,
    pub(crate) durable: bool,
    pub(crate) initial: Initial,
    pub(crate) properties: Properties,
    /// Whether a missing durable one may be made.
    pub(crate) create: bool,
}

/// Bytes of a subscription's name: the cursor's record has it in each of its changes.
const NAME_BYTES_MAX: usize = 1_024;
/// Bytes of a subscription's properties.
const PROPERTIES_BYTES_MAX: usize = 64 << 10;

/// Whether there may be a subscription of this name.
pub(crate) fn check_name(name: &str) -> Result<(), BrokerError> {
    if name.is_empty() {
        // Pulsar's naming errors come out as ProducerBusy, for subscriptions too.
        return Err(BrokerError::ProducerBusy(
            "Empty subscription name".to_owned(),
        ));
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(BrokerError::NotAllowed(format!(
            "A subscription's name is longer than {NAME_BYTES_MAX} bytes"
        )));
    }
    Ok(())
}

/// Whether a subscription may have these properties.
pub(crate) fn check_properties(properties: &Properties) -> Result<(), BrokerError> {
    let size = |(key, value): (&String, &String)| key.len() + value.len();
    if properties.iter().map(size).sum::<usize>() > PROPERTIES_BYTES_MAX {
        return Err(BrokerError::NotAllowed(format!(
            "A subscription's properties are larger than {PROPERTIES_BYTES_MAX} bytes"
        )));
    }
    Ok(())
}

enum Join {
    Done,
    /// A seek runs: wait for its end.
    Fenced(OwnedNotified),
    Taken(Arc<Peer>),
}

impl Topic {
    /// Finds or makes the subscription and adds the consumer; returns the subscription's id.
    pub(crate) async fn subscribe(
        self: &Arc<Topic>,
        wanted: &Wanted,
        consumer: NewConsumer,
        rollback: Option<Duration>,
    ) -> Result<u32, BrokerError> {
        self.count_subscribe(&consumer)?;
        let id = self.ensure_subscription(wanted).await?;
        if let Some(back) = rollback {
            let back_ms = u64::try_from(back.as_millis()).unwrap_or(u64::MAX);
            let time_ms = self.core.clock.now_ms().saturating_sub(back_ms);
            let position = self.position_of_time(time_ms).await?;
            self.reset_subscription(id, position, None).await?;
        }
        loop {
            match self.try_join(id, &consumer)? {
                Join::Done => return Ok(id),
                Join::Fenced(fence) => fence.await,
                Join::Taken(peer) => self.check_taken(&peer, &consumer).await?,
            }
        }
    }

    fn try_join(self: &Arc<Topic>, id: u32, consumer: &NewConsumer) -> Result<Join, BrokerError> {
        let policies = self.policies();
        if !policies.subscription_types.contains(&consumer.kind) {
            return Err(BrokerError::NotAllowed(format!(
                "Topic does not support {} subscription type",
                consumer.kind.as_str()
            )));
        }
        let mut state = self.open()?;
        let max = policies.consumers_max;
        if max > 0 && state.consumers() >= max {
            return Err(BrokerError::ConsumerBusy(
                "Topic reached max consumers limit".to_owned(),
            ));
        }
        let now_ms = self.core.clock.now_ms();
        let Some(subscription) = state.subscription_mut(id) else {
            return Err(BrokerError::NotReady("Subscription is fenced".to_owned()));
        };
        if let Some(fence) = subscription.fence.clone() {
            return Ok(Join::Fenced(fence.notified_owned()));
        }
        match subscription.join(
            consumer.clone(),
            &self.name,
            &self.core.config,
            &policies,
            now_ms,
        ) {
            Ok(()) => {
                self.note_use(subscription);
                self.arm_failover(&state, id);
                state.wake_replicators();
                Ok(Join::Done)
            }
            Err(JoinError::Refused(error)) => Err(error),
            Err(JoinError::Taken(peer)) => Ok(Join::Taken(peer)),
        }
    }

    /// An Exclusive subscription is taken: by a live consumer, or by a dead connection?
    async fn check_taken(
        self: &Arc<Topic>,
        peer: &Arc<Peer>,
        consumer: &NewConsumer,
    ) -> Result<(), BrokerError> {
        let millis = self.core.config.connection_liveness_check_timeout_millis;
        if Arc::ptr_eq(peer, &consumer.peer) || peer.is_alive(Duration::from_millis(millis)).await {
            return Err(BrokerError::ConsumerBusy(
                "Exclusive consumer is already connected".to_owned(),
            ));
        }
        self.core.forget_peer(self, peer);
        Ok(())
    }

    pub(crate) async fn ensure_subscription(
        self: &Arc<Topic>,
        wanted: &Wanted,
    ) -> Result<u32, BrokerError> {
        {
            let mut state = self.open()?;
            let count = state.subscriptions.len();
            if let Some(found) = state.subscription_named(&wanted.name) {
                if found.durable != wanted.durable {
                    return Err(BrokerError::NotAllowed(format!(
                        "Subscription {} already exists as {}",
                        wanted.name,
                        if found.durable {
                            "durable"
                        } else {
                            "non-durable"
                        }
                    )));
                }
                return Ok(found.id);
            }
            check_name(&wanted.name)?;
            check_properties(&wanted.properties)?;
            if INTERNAL_CURSORS.contains(&&*wanted.name) || is_replicator(&wanted.name) {
                return Err(BrokerError::NotAllowed(format!(
                    "Subscription name {} is reserved",
                    wanted.name
                )));
            }
            if wanted.durable && !wanted.create {
                return Err(BrokerError::SubscriptionNotFound {
                    topic: self.name.to_string(),
                    subscription: wanted.name.to_string(),
                });
            }
            let max = self.policies().subscriptions_max;
            if max > 0 && count >= max {
                return Err(BrokerError::NotAllowed(
                    "Exceed the maximum number of subscriptions of the topic".to_owned(),
                ));
            }
        }
        let asked = match wanted.initial {
            Initial::Earliest => Position::EARLIEST,
            Initial::At(position) => position,
            Initial::Latest => Position::LATEST,
        };
        let cursor = if wanted.durable && self.is_persistent() {
            let mut properties = wanted.properties.clone();
            if self.view().is_some() {
                let stands = self.clamp(asked);
                compaction::remember_begin(&mut properties, asked, stands);
            }
            self.ledger
                .open_cursor(&wanted.name, wanted.initial, properties)
                .await?
        } else {
            self.ledger.open_reader_cursor(wanted.initial)
        };
        let last = self.ledger.last_position();
        let mut state = self.open()?;
        // Another consumer may have made it meanwhile; a durable cursor is then the same one.
        if let Some(found) = state.subscription_named(&wanted.name) {
            return Ok(found.id);
        }
        let id = state.next_subscription;
        state.next_subscription += 1;
        let mut subscription =
            Subscription::new(id, wanted.name.clone(), cursor, wanted.durable, last);
        let stands = subscription.read_position();
        subscription.begin_at(asked, stands);
        state.subscriptions.push(subscription);
        Ok(id)
    }

    pub(crate) fn subscription_name(&self, id: u32) -> Option<Arc<str>> {
        let state = self.lock();
        state.subscription(id).map(|found| found.name.clone())
    }

    /// Tells the consumers which is active; after the new one has its SUCCESS.
    pub(crate) fn announce(self: &Arc<Topic>, id: u32) {
        let mut state = self.lock();
        if let Some(subscription) = state.subscription(id) {
            subscription.announce();
        }
        self.dispatch(&mut state, id);
        if self.is_terminated()
            && let Some(subscription) = state.subscription_mut(id)
            && subscription.read_position() > self.ledger.last_position()
        {
            subscription.announce_end();
        }
    }

    /// A consumer closes or its connection is gone. Others get what it held.
    pub(crate) fn leave(self: &Arc<Topic>, id: u32, key: ConsumerKey) {
        let mut state = self.lock();
        let Some(subscription) = state.subscription_mut(id) else {
            return;
        };
        if !subscription.leave(key, &self.core.config) {
            return;
        }
        if subscription.consumers().is_empty() {
            self.note_use(subscription);
        }
        let forget = !subscription.durable && subscription.consumers().is_empty();
        if forget {
            state.forget_subscription(id);
        } else {
            self.arm_failover(&state, id);
            self.dispatch(&mut state, id);
        }
        state.touch_idle(self.core.clock.now_ms());
    }

    fn arm_failover(self: &Arc<Topic>, state: &State, id: u32) {
        if state.subscription(id).is_some_and(Subscription::is_held) {
            let delay_ms = self.core.config.active_consumer_failover_delay_time_millis;
            let at_ms = self.core.clock.now_ms() + delay_ms;
            self.core
                .timers
                .set(at_ms, Arc::downgrade(self), Alarm::Failover(id));
        }
    }

    /// UNSUBSCRIBE by a connected consumer.
    pub(crate) async fn unsubscribe(
        self: &Arc<Topic>,
        id: u32,
        key: ConsumerKey,
        force: bool,
    ) -> Result<(), BrokerError> {
        let name = {
            let mut state = self.open()?;
            let Some(subscription) = state.subscription_mut(id) else {
                return Err(BrokerError::Metadata("Consumer not found".to_owned()));
            };
            let alone = subscription.consumers().len() == 1
                && subscription.consumer(key).is_some()
                && subscription
                    .active_consumer()
                    .is_none_or(|active| active == key);
            if !alone && !force {
                return Err(BrokerError::Metadata(
                    "Unconnected or shared consumer attempting to unsubscribe".to_owned(),
                ));
            }
            for consumer in subscription.disconnect_all() {
                if consumer.key != key {
                    super::seek::close_consumer(&consumer);
                }
            }
            subscription.name.clone()
        };
        self.delete_subscription(&name, true).await
    }

    pub(crate) async fn delete_subscription(
        self: &Arc<Topic>,
        name: &str,
        force: bool,
    ) -> Result<(), BrokerError> {
        let durable = {
            let mut state = self.open()?;
            let Some(subscription) = state.subscription_named(name) else {
                return Err(BrokerError::SubscriptionNotFound {
                    topic: self.name.to_string(),
                    subscription: name.to_owned(),
                });
            };
            if !subscription.consumers().is_empty() && !force {
                return Err(BrokerError::PreconditionFailed(
                    "Subscription has active connected consumers".to_owned(),
                ));
            }
            for consumer in subscription.disconnect_all() {
                super::seek::close_consumer(&consumer);
            }
            let (id, durable) = (subscription.id, subscription.durable);
            state.forget_subscription(id);
            durable
        };
        if durable && self.is_persistent() {
            self.ledger.delete_cursor(name).await?;
            let transactions = &self.core.transactions;
            transactions.forget_subscription(&self.name, name).await?;
        }
        Ok(())
    }
}

impl State {
    fn forget_subscription(&mut self, id: u32) {
        let Some(at) = self.subscriptions.iter().position(|s| s.id == id) else {
            return;
        };
        let gone = self.subscriptions.remove(at);
        Topic::forget_rate(self, id);
        self.counters.messages_out += gone.counters.messages_out;
        self.counters.bytes_out += gone.counters.bytes_out;
        if let Some(fence) = gone.fence {
            fence.notify_waiters();
        }
    }
}

/// Where a reader begins: the entry that it names is delivered again.
pub(crate) fn reader_start(position: Position) -> Initial {
    if position.ledger.0 < 0 || position == Position::EARLIEST {
        Initial::Earliest
    } else if position.ledger == Position::LATEST.ledger {
        Initial::Latest
    } else {
        Initial::At(position)
    }
}
