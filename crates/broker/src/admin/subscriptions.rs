//! Subscriptions as operators see them: made, deleted, moved, skipped, expired, peeked into.

use std::collections::HashMap;
use std::sync::Arc;

use geminga_model::{Position, TopicName};
use geminga_storage::ReadLimits;
use geminga_storage::managed::{Cursor, Initial};

use super::{PeekedEntry, SubscribeAt};
use crate::broker::Broker;
use crate::error::BrokerError;
use crate::topic::Topic;
use crate::topic::inactive::refuse_ours;
use crate::topic::subscribe::Wanted;

impl Broker {
    /// Names of the durable subscriptions and of the connected readers.
    pub async fn subscriptions(&self, name: &TopicName) -> Result<Vec<String>, BrokerError> {
        let topic = self.existing(name).await?;
        let state = topic.lock();
        Ok(state
            .subscriptions
            .iter()
            .map(|s| s.name.to_string())
            .collect())
    }

    pub async fn create_subscription(
        &self,
        name: &TopicName,
        subscription: &str,
        at: SubscribeAt,
        properties: HashMap<String, String>,
    ) -> Result<(), BrokerError> {
        refuse_ours(properties.keys())?;
        let topic = self.core.topic(name, true).await?;
        if topic.open()?.subscription_named(subscription).is_some() {
            return Err(BrokerError::AlreadyExists(
                "Subscription already exists for topic".to_owned(),
            ));
        }
        let initial = match at {
            SubscribeAt::Earliest => Initial::Earliest,
            SubscribeAt::Latest => Initial::Latest,
            SubscribeAt::Position(position) => Initial::At(position),
            SubscribeAt::TimeMs(time_ms) => match topic.position_of_time(time_ms).await? {
                Position::LATEST => Initial::Latest,
                position => Initial::At(position),
            },
        };
        let wanted = Wanted {
            name: subscription.into(),
            durable: true,
            initial,
            properties: properties.into_iter().collect(),
            create: true,
        };
        topic.ensure_subscription(&wanted).await.map(drop)
    }

    /// Whether a subscription is kept alike in the other clusters of its topic.
    pub async fn is_replicated(
        &self,
        name: &TopicName,
        subscription: &str,
    ) -> Result<bool, BrokerError> {
        let topic = self.existing(name).await?;
        let id = subscription_id(&topic, subscription)?;
        let state = topic.open()?;
        Ok(state.subscription(id).is_some_and(|s| s.is_replicated()))
    }

    pub async fn set_replicated(
        &self,
        name: &TopicName,
        subscription: &str,
        on: bool,
    ) -> Result<(), BrokerError> {
        let topic = self.existing(name).await?;
        topic.require_persistent("Replicated subscriptions")?;
        topic.set_replicated(subscription, on).await
    }

    pub async fn delete_subscription(
        &self,
        name: &TopicName,
        subscription: &str,
        force: bool,
    ) -> Result<(), BrokerError> {
        self.existing(name)
            .await?
            .delete_subscription(subscription, force)
            .await
    }

    pub async fn reset_subscription(
        &self,
        name: &TopicName,
        subscription: &str,
        at: SubscribeAt,
    ) -> Result<(), BrokerError> {
        let topic = self.existing(name).await?;
        let id = subscription_id(&topic, subscription)?;
        let position = match at {
            SubscribeAt::Earliest => Position::EARLIEST,
            SubscribeAt::Latest => Position::LATEST,
            SubscribeAt::Position(position) => position,
            SubscribeAt::TimeMs(time_ms) => topic.position_of_time(time_ms).await?,
        };
        topic.reset_subscription(id, position, None).await
    }

    /// Acks the next `count` unacked entries.
    pub async fn skip(
        &self,
        name: &TopicName,
        subscription: &str,
        count: u64,
    ) -> Result<(), BrokerError> {
        let topic = self.existing(name).await?;
        topic.require_persistent("Skip messages")?;
        let id = subscription_id(&topic, subscription)?;
        let cursor = skip(&topic, id, count)?;
        cursor.durable().await?;
        Ok(())
    }

    /// Acks everything.
    pub async fn skip_all(&self, name: &TopicName, subscription: &str) -> Result<(), BrokerError> {
        self.skip(name, subscription, u64::MAX).await
    }

    /// Acks what is older than `seconds`; a conflict when there is nothing such.
    pub async fn expire(
        &self,
        name: &TopicName,
        subscription: &str,
        seconds: u64,
    ) -> Result<(), BrokerError> {
        let topic = self.existing(name).await?;
        let id = subscription_id(&topic, subscription)?;
        if !topic.expire(subscription, seconds).await? {
            return Err(BrokerError::AlreadyExists(
                "Expire message by timestamp not issued: nothing to expire".to_owned(),
            ));
        }
        let cursor = topic
            .open()?
            .subscription(id)
            .map(|found| found.cursor.clone());
        if let Some(cursor) = cursor {
            cursor.durable().await?;
        }
        Ok(())
    }

    /// The next unacked entries, without changing anything.
    pub async fn peek(
        &self,
        name: &TopicName,
        subscription: &str,
        count: usize,
    ) -> Result<Vec<PeekedEntry>, BrokerError> {
        let mut peeked = Vec::new();
        self.look_into(name, subscription, count, |entry| peeked.push(entry))
            .await?;
        Ok(peeked)
    }

    /// The nth of them, counted from 1. What lies before is read and not kept.
    pub async fn peek_nth(
        &self,
        name: &TopicName,
        subscription: &str,
        nth: usize,
    ) -> Result<Option<PeekedEntry>, BrokerError> {
        let (mut last, mut count) = (None, 0);
        self.look_into(name, subscription, nth, |entry| {
            last = Some(entry);
            count += 1;
        })
        .await?;
        Ok(last.filter(|_| count == nth))
    }

    async fn look_into(
        &self,
        name: &TopicName,
        subscription: &str,
        count: usize,
        mut see: impl FnMut(PeekedEntry) + Send,
    ) -> Result<(), BrokerError> {
        let topic = self.existing(name).await?;
        topic.require_persistent("Peek messages")?;
        let id = subscription_id(&topic, subscription)?;
        let cursor = topic
            .open()?
            .subscription(id)
            .map(|found| found.cursor.clone());
        let Some(cursor) = cursor else {
            return Ok(());
        };
        let mut next = cursor.mark_delete().next_in_ledger();
        for _ in 0..count {
            let position = cursor.next_unacked(next);
            if position > topic.ledger.durable_position() {
                break;
            }
            let entries = topic
                .ledger
                .read(position, ReadLimits::new(1, usize::MAX))
                .await?;
            let Some(entry) = entries.into_iter().next() else {
                break;
            };
            next = entry.position.next_in_ledger();
            see(PeekedEntry {
                position: entry.position,
                block: entry.data,
            });
        }
        Ok(())
    }

    /// Counts what a subscription has not acked, from its first such entry or from a place on, up to
    /// `entries_max` entries. Holds one entry at a time.
    pub async fn analyze_backlog(
        &self,
        name: &TopicName,
        subscription: &str,
        from: Option<Position>,
        entries_max: u64,
    ) -> Result<BacklogFigures, BrokerError> {
        let topic = self.existing(name).await?;
        topic.require_persistent("Analyze the backlog")?;
        let id = subscription_id(&topic, subscription)?;
        let cursor = topic
            .open()?
            .subscription(id)
            .map(|found| found.cursor.clone());
        let mut figures = BacklogFigures::default();
        let Some(cursor) = cursor else {
            return Ok(figures);
        };
        let first = cursor.mark_delete().next_in_ledger();
        let mut next = from.map_or(first, |from| from.max(first));
        loop {
            let position = cursor.next_unacked(next);
            if position > topic.ledger.durable_position() {
                return Ok(figures);
            }
            if figures.entries == entries_max {
                figures.is_cut = true;
                return Ok(figures);
            }
            let entries = topic
                .ledger
                .read(position, ReadLimits::new(1, usize::MAX))
                .await?;
            let Some(entry) = entries.into_iter().next() else {
                return Ok(figures);
            };
            next = entry.position.next_in_ledger();
            let count = geminga_proto::message::peek(&entry.data).map_or(1, |m| m.message_count());
            figures.entries += 1;
            figures.messages += u64::from(count);
            figures.first.get_or_insert(entry.position);
            figures.last = Some(entry.position);
        }
    }
}

/// What a backlog holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BacklogFigures {
    pub entries: u64,
    pub messages: u64,
    pub first: Option<Position>,
    pub last: Option<Position>,
    /// There is more.
    pub is_cut: bool,
}

fn subscription_id(topic: &Arc<Topic>, name: &str) -> Result<u32, BrokerError> {
    let mut state = topic.open()?;
    state
        .subscription_named(name)
        .map(|found| found.id)
        .ok_or_else(|| BrokerError::SubscriptionNotFound {
            topic: topic.name.to_string(),
            subscription: name.to_owned(),
        })
}

fn skip(topic: &Arc<Topic>, id: u32, count: u64) -> Result<Arc<Cursor>, BrokerError> {
    let mut state = topic.open()?;
    let Some(found) = state.subscription_mut(id) else {
        return Err(BrokerError::NotReady("Subscription is fenced".to_owned()));
    };
    let cursor = found.cursor.clone();
    let last = topic.ledger.durable_position();
    let through = if count >= cursor.backlog() {
        Some(last)
    } else {
        let mut next = cursor.mark_delete().next_in_ledger();
        let mut through = None;
        for _ in 0..count {
            let position = cursor.next_unacked(next);
            through = Some(position);
            next = position.next_in_ledger();
        }
        through
    };
    if let Some(through) = through.filter(|through| *through <= last) {
        cursor.ack_cumulative(through, None)?;
        found.skipped_through(through);
        topic.dispatch(&mut state, id);
    }
    Ok(cursor)
}
