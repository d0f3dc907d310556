//! FLOW, ACK, redelivery, seek and questions about a consumer.

use std::sync::Arc;

use geminga_model::Position;
use geminga_proto::command::success;
use geminga_proto::pb::command_ack::AckType;
use geminga_proto::pb::{
    CommandAck, CommandAckResponse, CommandConsumerStats, CommandConsumerStatsResponse,
    CommandFlow, CommandGetLastMessageId, CommandGetLastMessageIdResponse,
    CommandRedeliverUnacknowledgedMessages, CommandSeek, MessageIdData, ServerError,
};

use super::{Closed, Connection};
use crate::dispatcher::ConsumerKey;
use crate::error::BrokerError;
use crate::topic::Topic;
use crate::transaction::TxnId;

pub(crate) enum ConsumerSlot {
    /// The number of the request that opens it.
    Opening(u64),
    Open(OpenConsumer),
}

#[derive(Clone)]
pub(crate) struct OpenConsumer {
    pub(crate) topic: Arc<Topic>,
    pub(crate) subscription: u32,
    pub(crate) key: ConsumerKey,
}

impl Connection {
    fn open_consumer(&self, id: u64) -> Option<&OpenConsumer> {
        match self.consumers.get(&id) {
            Some(ConsumerSlot::Open(open)) => Some(open),
            _ => None,
        }
    }

    pub(super) fn handle_flow(&mut self, request: &CommandFlow) -> Result<(), Closed> {
        if request.message_permits == 0 || request.message_permits > i32::MAX as u32 {
            return Err(Closed::Protocol("a FLOW without permits"));
        }
        if let Some(open) = self.open_consumer(request.consumer_id) {
            open.topic
                .flow(open.subscription, open.key, request.message_permits);
        }
        Ok(())
    }

    pub(super) fn handle_ack(&mut self, request: &CommandAck) {
        let consumer_id = request.consumer_id;
        let Some(open) = self.open_consumer(consumer_id).cloned() else {
            return;
        };
        if let Some(txn) = TxnId::from_wire(request.txnid_most_bits, request.txnid_least_bits) {
            return self.ack_in_transaction(open, request.clone(), txn);
        }
        let result = open.topic.ack(
            open.subscription,
            open.key,
            request.ack_type() == AckType::Cumulative,
            &request.message_id,
        );
        let Some(request_id) = request.request_id else {
            if let Err(error) = result {
                tracing::warn!(topic = %open.topic.name, %error, "an ack was not taken");
            }
            return;
        };
        match result {
            Ok(cursor) => self.request("confirm an ack", async move {
                let result = cursor.durable().await;
                move |connection: &mut Connection| {
                    let reason = result.err().map(BrokerError::from);
                    let response = ack_response(consumer_id, request_id, reason.as_ref());
                    connection.peer.outbox.send(response);
                }
            }),
            Err(reason) => {
                self.peer
                    .outbox
                    .send(ack_response(consumer_id, request_id, Some(&reason)));
            }
        }
    }

    fn ack_in_transaction(&mut self, open: OpenConsumer, request: CommandAck, txn: TxnId) {
        if let Err(reason) = self.check_txn_owner(txn) {
            if let Some(request_id) = request.request_id {
                let response = ack_response(request.consumer_id, request_id, Some(&reason));
                self.peer.outbox.send(CommandAckResponse {
                    txnid_least_bits: Some(txn.number),
                    txnid_most_bits: Some(txn.tc),
                    ..response
                });
            }
            return;
        }
        self.request("ack in a transaction", async move {
            let cumulative = request.ack_type() == AckType::Cumulative;
            let OpenConsumer {
                topic,
                subscription,
                key,
            } = open;
            let ids = &request.message_id;
            let reason = match topic.ack_in_transaction(subscription, key, cumulative, ids, txn) {
                Ok(Some(stored)) => stored.await.err().map(BrokerError::from),
                Ok(None) => None,
                Err(reason) => Some(reason),
            };
            move |connection: &mut Connection| match (request.request_id, reason) {
                (Some(request_id), reason) => {
                    let response = CommandAckResponse {
                        txnid_least_bits: Some(txn.number),
                        txnid_most_bits: Some(txn.tc),
                        ..ack_response(request.consumer_id, request_id, reason.as_ref())
                    };
                    connection.peer.outbox.send(response);
                }
                (None, Some(reason)) => {
                    tracing::warn!(topic = %topic.name, %reason, "an ack was not taken");
                }
                (None, None) => {}
            }
        });
    }

    pub(super) fn handle_redeliver(&mut self, request: &CommandRedeliverUnacknowledgedMessages) {
        let Some(open) = self.open_consumer(request.consumer_id) else {
            return;
        };
        let positions: Vec<Position> = request
            .message_ids
            .iter()
            .map(|id| Position::from_wire(id.ledger_id, id.entry_id))
            .collect();
        let positions = (!positions.is_empty()).then_some(&positions[..]);
        open.topic.redeliver(
            open.subscription,
            open.key,
            positions,
            request.consumer_epoch,
        );
    }

    pub(super) fn handle_seek(&mut self, request: &CommandSeek) {
        let request_id = request.request_id;
        let not_found = || BrokerError::Metadata("Consumer not found".to_owned());
        let Some(open) = self.open_consumer(request.consumer_id).cloned() else {
            return self.refuse(request_id, &not_found());
        };
        let id = request.message_id.clone();
        let time_ms = request.message_publish_time;
        if id.is_none() && time_ms.is_none() {
            let text = "Message id and message publish time were not present".to_owned();
            return self.refuse(request_id, &BrokerError::Metadata(text));
        }
        self.request("seek", async move {
            let result = seek(&open, id, time_ms).await;
            move |connection: &mut Connection| match result {
                Ok(()) => connection.peer.outbox.send(success(request_id)),
                Err(reason) => connection.refuse(request_id, &reason),
            }
        });
    }

    pub(super) fn handle_last_message_id(&mut self, request: &CommandGetLastMessageId) {
        let request_id = request.request_id;
        let Some(open) = self.open_consumer(request.consumer_id).cloned() else {
            let reason = BrokerError::Metadata("Consumer not found".to_owned());
            return self.refuse(request_id, &reason);
        };
        self.request("get the last message id", async move {
            let result = last_message_id(&open).await;
            move |connection: &mut Connection| match result {
                Ok((last, mark_delete)) => {
                    connection
                        .peer
                        .outbox
                        .send(CommandGetLastMessageIdResponse {
                            last_message_id: last,
                            request_id,
                            consumer_mark_delete_position: mark_delete,
                        });
                }
                Err(reason) => connection.refuse(request_id, &reason),
            }
        });
    }

    pub(super) fn handle_consumer_stats(&mut self, request: &CommandConsumerStats) {
        let stats = self
            .open_consumer(request.consumer_id)
            .and_then(|open| open.topic.consumer_stats(open.subscription, open.key));
        let response = match stats {
            Some(stats) => CommandConsumerStatsResponse {
                request_id: request.request_id,
                ..stats
            },
            None => CommandConsumerStatsResponse {
                request_id: request.request_id,
                error_code: Some(ServerError::ConsumerNotFound as i32),
                error_message: Some("Consumer Not Found".to_owned()),
                ..CommandConsumerStatsResponse::default()
            },
        };
        self.peer.outbox.send(response);
    }
}

async fn seek(
    open: &OpenConsumer,
    id: Option<MessageIdData>,
    time_ms: Option<u64>,
) -> Result<(), BrokerError> {
    let OpenConsumer {
        topic,
        subscription,
        ..
    } = open;
    if !topic.is_persistent() {
        // As Pulsar does: there is no position to move, and that is no error.
        return Ok(());
    }
    match (id, time_ms) {
        (Some(id), _) => {
            let position = Position::from_wire(id.ledger_id, id.entry_id);
            topic
                .reset_subscription(*subscription, position, Some(&id.ack_set))
                .await
        }
        (None, Some(time_ms)) => {
            let position = topic.position_of_time(time_ms).await?;
            topic
                .reset_subscription(*subscription, position, None)
                .await
        }
        (None, None) => Ok(()),
    }
}

async fn last_message_id(
    open: &OpenConsumer,
) -> Result<(MessageIdData, Option<MessageIdData>), BrokerError> {
    let id = |position: Position, batch_index: i32| {
        let (ledger_id, entry_id) = position.to_wire();
        MessageIdData {
            ledger_id,
            entry_id,
            batch_index: Some(batch_index),
            ..MessageIdData::default()
        }
    };
    let OpenConsumer {
        topic,
        subscription,
        ..
    } = open;
    let partition = topic.partition().unwrap_or(-1);
    let mark_delete = topic.mark_delete(*subscription).map(|position| {
        let (ledger_id, entry_id) = position.to_wire();
        MessageIdData {
            ledger_id,
            entry_id,
            ..MessageIdData::default()
        }
    });
    let last = match topic.last_message_for(*subscription).await? {
        Some((position, batch)) => id(position, batch.map_or(-1, |size| size - 1)),
        None => id(Position::EARLIEST, -1),
    };
    Ok((
        MessageIdData {
            partition: Some(partition),
            ..last
        },
        mark_delete,
    ))
}

fn ack_response(
    consumer_id: u64,
    request_id: u64,
    reason: Option<&BrokerError>,
) -> CommandAckResponse {
    CommandAckResponse {
        consumer_id,
        request_id: Some(request_id),
        error: reason.map(|reason| reason.server_error() as i32),
        message: reason.map(ToString::to_string),
        ..CommandAckResponse::default()
    }
}
