//! The transaction commands, for the smallest client.

use bytes::BytesMut;
use geminga_proto::Command;
use geminga_proto::message::encode_headers;
use geminga_proto::pb::*;
use geminga_proto::send::Send;

use crate::wire::{Wire, metadata};

/// A transaction's number; the coordinator is 0.
pub(crate) type Txn = u64;
/// What a command was answered: an error is `ServerError`.
pub(crate) type Answer = Result<(), ServerError>;

fn answer(error: Option<i32>) -> Answer {
    match error {
        None => Ok(()),
        Some(code) => Err(ServerError::try_from(code).unwrap()),
    }
}

impl Wire {
    pub(crate) async fn begin(&mut self, timeout_ms: u64) -> Txn {
        self.try_begin(timeout_ms).await.unwrap()
    }

    pub(crate) async fn try_begin(&mut self, timeout_ms: u64) -> Result<Txn, ServerError> {
        let request_id = self.request();
        self.send(CommandNewTxn {
            request_id,
            txn_ttl_millis: Some(timeout_ms),
            tc_id: Some(0),
        })
        .await;
        let response = self.find(|command, _| match command {
            Command::NewTxnResponse(r) if r.request_id == request_id => Some(r.clone()),
            _ => None,
        });
        let response = response.await;
        answer(response.error)?;
        Ok(response.txnid_least_bits.unwrap())
    }

    pub(crate) async fn add_partition(&mut self, txn: Txn, topic: &str) -> Answer {
        let request_id = self.request();
        self.send(CommandAddPartitionToTxn {
            request_id,
            txnid_least_bits: Some(txn),
            txnid_most_bits: Some(0),
            partitions: vec![topic.to_owned()],
        })
        .await;
        let response = self.find(|command, _| match command {
            Command::AddPartitionToTxnResponse(r) if r.request_id == request_id => Some(r.error),
            _ => None,
        });
        answer(response.await)
    }

    pub(crate) async fn add_subscription(&mut self, txn: Txn, topic: &str, name: &str) -> Answer {
        let request_id = self.request();
        self.send(CommandAddSubscriptionToTxn {
            request_id,
            txnid_least_bits: Some(txn),
            txnid_most_bits: Some(0),
            subscription: vec![Subscription {
                topic: topic.to_owned(),
                subscription: name.to_owned(),
            }],
        })
        .await;
        let response = self.find(|command, _| match command {
            Command::AddSubscriptionToTxnResponse(r) if r.request_id == request_id => Some(r.error),
            _ => None,
        });
        answer(response.await)
    }

    /// Sends END_TXN and does not wait.
    pub(crate) async fn ask_end(&mut self, txn: Txn, action: TxnAction) -> u64 {
        let request_id = self.request();
        self.send(CommandEndTxn {
            request_id,
            txnid_least_bits: Some(txn),
            txnid_most_bits: Some(0),
            txn_action: Some(action as i32),
        })
        .await;
        request_id
    }

    pub(crate) async fn end(&mut self, txn: Txn, action: TxnAction) -> Answer {
        let request_id = self.ask_end(txn, action).await;
        let response = self.find(|command, _| match command {
            Command::EndTxnResponse(r) if r.request_id == request_id => Some(r.error),
            _ => None,
        });
        answer(response.await)
    }

    pub(crate) async fn commit(&mut self, txn: Txn) {
        assert_eq!(self.end(txn, TxnAction::Commit).await, Ok(()));
    }

    pub(crate) async fn abort(&mut self, txn: Txn) {
        assert_eq!(self.end(txn, TxnAction::Abort).await, Ok(()));
    }

    /// Publishes in a transaction; `named` puts its id into the metadata too, as Java does and Go
    /// does not.
    pub(crate) async fn publish_in(
        &mut self,
        txn: Txn,
        id: u64,
        seq: u64,
        text: &str,
        named: bool,
    ) {
        let mut metadata = metadata(seq);
        if named {
            metadata.txnid_least_bits = Some(txn);
            metadata.txnid_most_bits = Some(0);
        }
        let headers = encode_headers(&metadata, text.as_bytes());
        let send = Send {
            producer_id: id,
            sequence_id: seq,
            num_messages: 1,
            txnid_least_bits: Some(txn),
            txnid_most_bits: Some(0),
            ..Send::default()
        };
        let mut out = BytesMut::new();
        send.encode_frame(headers.len() + text.len(), &mut out);
        out.extend_from_slice(&headers);
        out.extend_from_slice(text.as_bytes());
        self.raw(&out).await;
    }

    /// Publishes in a transaction and waits for what it is told.
    pub(crate) async fn send_in(
        &mut self,
        txn: Txn,
        id: u64,
        seq: u64,
        text: &str,
    ) -> Result<MessageIdData, ServerError> {
        self.publish_in(txn, id, seq, text, seq.is_multiple_of(2))
            .await;
        self.find(|command, _| match command {
            Command::SendReceipt(r) if r.sequence_id == seq => Some(Ok(r.message_id.clone()?)),
            Command::SendError(e) if e.sequence_id == seq => {
                Some(Err(ServerError::try_from(e.error).unwrap()))
            }
            _ => None,
        })
        .await
    }

    pub(crate) async fn ack_in(
        &mut self,
        txn: Txn,
        consumer_id: u64,
        kind: command_ack::AckType,
        message_id: Vec<MessageIdData>,
    ) -> Answer {
        let request_id = self.request();
        self.send(CommandAck {
            consumer_id,
            ack_type: kind as i32,
            message_id,
            txnid_least_bits: Some(txn),
            txnid_most_bits: Some(0),
            request_id: Some(request_id),
            ..CommandAck::default()
        })
        .await;
        let response = self.find(|command, _| match command {
            Command::AckResponse(r) if r.request_id == Some(request_id) => Some(r.error),
            _ => None,
        });
        answer(response.await)
    }

    pub(crate) async fn last_message_id(&mut self, consumer_id: u64) -> MessageIdData {
        let request_id = self.request();
        self.send(CommandGetLastMessageId {
            consumer_id,
            request_id,
        })
        .await;
        self.find(|command, _| match command {
            Command::GetLastMessageIdResponse(r) if r.request_id == request_id => {
                Some(r.last_message_id.clone())
            }
            _ => None,
        })
        .await
    }
}
