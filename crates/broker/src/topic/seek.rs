//! Moving a subscription: seek, reset, skip. Its consumers are disconnected first and come back.

use std::sync::Arc;

use geminga_model::Position;
use geminga_proto::command::NO_REQUEST;
use geminga_proto::message::{decode_broker_entry, peek};
use geminga_proto::pb::CommandCloseConsumer;
use geminga_storage::{Entry, ReadLimits};
use tokio::sync::Notify;

use super::Topic;
use super::compaction;
use crate::consumer::Consumer;
use crate::error::BrokerError;

/// Tells a consumer's client that we have closed it: it will subscribe again.
pub(crate) fn close_consumer(consumer: &Consumer) {
    let (id, key) = (consumer.id, consumer.key);
    let mut outbox = consumer.peer.outbox.batch();
    outbox.job(Box::new(move |connection| {
        connection.consumer_closed(id, key)
    }));
    outbox.command(
        &CommandCloseConsumer {
            consumer_id: id,
            request_id: NO_REQUEST,
            assigned_broker_service_url: None,
            assigned_broker_service_url_tls: None,
        }
        .into(),
    );
}

/// When an entry was published, as seek by time sees it.
pub(crate) fn publish_time_ms(entry: &Entry) -> u64 {
    if let Ok(Some(broker)) = decode_broker_entry(&entry.data)
        && let Some(time) = broker.broker_timestamp
    {
        return time;
    }
    peek(&entry.data).map_or(0, |head| head.publish_time)
}

impl Topic {
    /// The first entry published at or after `time_ms`; the end where there is none.
    pub(crate) async fn position_of_time(&self, time_ms: u64) -> Result<Position, BrokerError> {
        let found = self
            .ledger
            .find(move |entry| publish_time_ms(entry) >= time_ms)
            .await?;
        Ok(found.unwrap_or(Position::LATEST))
    }

    /// Makes `position` the next entry that the subscription delivers. `ack_set` says which
    /// messages of it are still wanted.
    pub(crate) async fn reset_subscription(
        self: &Arc<Topic>,
        id: u32,
        position: Position,
        ack_set: Option<&[i64]>,
    ) -> Result<(), BrokerError> {
        self.require_persistent("Reset cursor")?;
        let (cursor, fence) = {
            let mut state = self.open()?;
            let Some(subscription) = state.subscription_mut(id) else {
                return Err(BrokerError::Metadata("Subscription not found".to_owned()));
            };
            if subscription.fence.is_some() {
                return Err(BrokerError::Unknown(
                    "Failed to fence subscription".to_owned(),
                ));
            }
            let fence = Arc::new(Notify::new());
            subscription.fence = Some(fence.clone());
            for consumer in subscription.disconnect_all() {
                close_consumer(&consumer);
            }
            (subscription.cursor.clone(), fence)
        };
        // Dropped when done, or when the one that asked goes away.
        let unfence = Unfence {
            topic: self.clone(),
            id,
            fence,
        };
        let target = self.clamp(position);
        if let Some(subscription) = self.lock().subscription_mut(id) {
            subscription.begin_at(position, target);
        }
        // Not to be applied again after a crash, to the cursor as it stands then.
        let name = cursor.name().to_owned();
        self.core.transactions.settle(&self.name, &name)?;
        cursor.reset(target).await?;
        let mut properties = cursor.properties();
        if self.view().is_some() && compaction::remember_begin(&mut properties, position, target) {
            cursor.set_properties(properties).await?;
        }
        if let Some(words) = ack_set
            && self.core.config.acknowledgment_at_batch_index_level_enabled
            && words.iter().any(|word| *word != 0)
        {
            cursor.ack_batch(target, words, 0)?;
        }
        drop(unfence);
        Ok(())
    }

    /// Earliest and latest, and what lies outside of what is stored, as real positions.
    pub(super) fn clamp(&self, position: Position) -> Position {
        let first = self.ledger.first_position();
        let end = self.ledger.last_position().next_in_ledger();
        if position > self.ledger.last_position() {
            end
        } else {
            position.max(first)
        }
    }

    /// As `last_message`, for the consumers of one subscription: what is compacted away does not come.
    pub(crate) async fn last_message_for(
        &self,
        subscription: u32,
    ) -> Result<Option<(Position, Option<i32>)>, BrokerError> {
        let last = self.last_message().await?;
        let compacted = {
            let state = self.lock();
            let reads = state
                .subscription(subscription)
                .is_some_and(|subscription| subscription.reads_compacted());
            state.view.clone().filter(|_| reads)
        };
        match compacted {
            Some(view) if last.is_none_or(|(last, _)| last <= view.horizon) => {
                Ok(view.last(self.unpacked_max()).await?)
            }
            _ => Ok(last),
        }
    }

    /// The last entry that consumers can get, with its batch size if it is a batch.
    pub(crate) async fn last_message(
        &self,
    ) -> Result<Option<(Position, Option<i32>)>, BrokerError> {
        self.require_persistent("getLastMessageId")?;
        let first = self.ledger.first_position();
        let mut position = self.ledger.durable_position().min(self.read_limit());
        while position >= first && position.entry.0 >= 0 {
            let entries = self
                .ledger
                .read(position, ReadLimits::new(1, usize::MAX))
                .await?;
            if let Some(entry) = entries.first().filter(|entry| entry.position == position)
                && let Ok(head) = peek(&entry.data)
                && head.marker_type.is_none()
                && !self.is_aborted(position, &head)
            {
                return Ok(Some((position, head.num_messages_in_batch)));
            }
            let Some(before) = self.ledger.previous(position) else {
                break;
            };
            position = before;
        }
        Ok(None)
    }
}

/// Lifts the fence of a seek and lets waiting consumers in.
struct Unfence {
    topic: Arc<Topic>,
    id: u32,
    fence: Arc<Notify>,
}

impl Drop for Unfence {
    fn drop(&mut self) {
        let mut state = self.topic.lock();
        let last = self.topic.ledger.last_position();
        if let Some(subscription) = state.subscription_mut(self.id) {
            subscription.fence = None;
            subscription.moved(last);
        }
        self.fence.notify_waiters();
    }
}
