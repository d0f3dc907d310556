//! Acks, redelivery and small questions from a consumer's connection.

use std::sync::Arc;

use geminga_model::Position;
use geminga_proto::pb::{CommandConsumerStatsResponse, MessageIdData};
use geminga_storage::managed::Cursor;

use super::Topic;
use crate::dispatcher::ConsumerKey;
use crate::error::BrokerError;
use crate::subscription::AckRequest;

impl Topic {
    /// Applies an ack and returns the cursor, for who wants to know when it is durable.
    pub(crate) fn ack(
        self: &Arc<Topic>,
        id: u32,
        key: ConsumerKey,
        cumulative: bool,
        ids: &[MessageIdData],
    ) -> Result<Arc<Cursor>, BrokerError> {
        let request = AckRequest {
            cumulative,
            ids,
            batch_index: self.core.config.acknowledgment_at_batch_index_level_enabled,
            last: self.ledger.last_position(),
            now_ms: self.core.clock.now_ms(),
        };
        let mut state = self.lock();
        let Some(subscription) = state.subscription_mut(id) else {
            return Err(BrokerError::ConsumerNotFound);
        };
        let progress = subscription.ack(key, &request)?;
        let cursor = subscription.cursor.clone();
        if progress {
            self.dispatch(&mut state, id);
        }
        Ok(cursor)
    }

    pub(crate) fn redeliver(
        self: &Arc<Topic>,
        id: u32,
        key: ConsumerKey,
        positions: Option<&[Position]>,
        epoch: Option<u64>,
    ) {
        let mut state = self.lock();
        let Some(subscription) = state.subscription_mut(id) else {
            return;
        };
        if subscription.redeliver(key, positions, epoch) {
            self.dispatch(&mut state, id);
        }
    }

    pub(crate) fn mark_delete(&self, id: u32) -> Option<Position> {
        self.lock()
            .subscription(id)
            .map(|subscription| subscription.cursor.mark_delete())
    }

    pub(crate) fn consumer_stats(
        &self,
        id: u32,
        key: ConsumerKey,
    ) -> Option<CommandConsumerStatsResponse> {
        let state = self.lock();
        let subscription = state.subscription(id)?;
        let consumer = subscription.consumer(key)?;
        let flow = subscription.flow_figures(key);
        Some(CommandConsumerStatsResponse {
            consumer_name: Some(consumer.name.to_string()),
            available_permits: Some(flow.permits.max(0).unsigned_abs()),
            unacked_messages: Some(flow.unacked),
            blocked_consumer_on_unacked_msgs: Some(flow.blocked),
            address: Some(consumer.peer.address.clone()),
            connected_since: Some(crate::time::iso(consumer.connected_since_ms)),
            r#type: subscription.kind.map(|kind| kind.as_str().to_owned()),
            msg_backlog: Some(subscription.cursor.backlog()),
            ..CommandConsumerStatsResponse::default()
        })
    }

    /// Whether nothing was ever stored and nobody is connected.
    pub(crate) fn was_never_used(&self) -> bool {
        let state = self.lock();
        state.producers.is_empty() && state.consumers() == 0 && self.ledger.size_bytes() == 0
    }
}
