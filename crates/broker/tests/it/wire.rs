//! The smallest client: commands out, commands in.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use geminga_proto::batch::Builder;
use geminga_proto::frame::{FRAME_SIZE_MAX, cut_one, encode_command};
use geminga_proto::message::encode_headers;
use geminga_proto::pb::*;
use geminga_proto::send::Send;
use geminga_proto::{Command, pb};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

pub(crate) const TOPIC: &str = "persistent://public/default/t";
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct Wire {
    stream: DuplexStream,
    input: BytesMut,
    next_request: u64,
    /// What came while something else was waited for.
    aside: Vec<(Command, Bytes)>,
}

/// A MESSAGE as it came.
#[derive(Debug, Clone)]
pub(crate) struct Got {
    pub(crate) consumer: u64,
    pub(crate) id: MessageIdData,
    pub(crate) redelivery_count: u32,
    pub(crate) ack_set: Vec<i64>,
    pub(crate) epoch: Option<u64>,
    pub(crate) metadata: MessageMetadata,
    pub(crate) payload: Bytes,
}

impl Got {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.payload.to_vec()).unwrap()
    }
}

impl Wire {
    pub(crate) fn new(stream: DuplexStream) -> Wire {
        Wire {
            stream,
            input: BytesMut::new(),
            next_request: 1,
            aside: Vec::new(),
        }
    }

    pub(crate) async fn handshake(&mut self) -> CommandConnected {
        self.send(CommandConnect {
            client_version: "test".to_owned(),
            protocol_version: Some(21),
            ..CommandConnect::default()
        })
        .await;
        match self.next().await.0 {
            Command::Connected(connected) => connected,
            other => panic!("{other:?} instead of CONNECTED"),
        }
    }

    pub(crate) fn request(&mut self) -> u64 {
        self.next_request += 1;
        self.next_request
    }

    pub(crate) async fn send(&mut self, command: impl Into<Command>) {
        let mut out = BytesMut::new();
        encode_command(&command.into(), &mut out);
        self.raw(&out).await;
    }

    pub(crate) async fn raw(&mut self, bytes: &[u8]) {
        // A closed connection shows when reading.
        let _ = self.stream.write_all(bytes).await;
    }

    /// The next command that is not a PING, or none when the connection is closed.
    pub(crate) async fn poll(&mut self) -> Option<(Command, Bytes)> {
        if !self.aside.is_empty() {
            return Some(self.aside.remove(0));
        }
        self.poll_fresh().await
    }

    async fn poll_fresh(&mut self) -> Option<(Command, Bytes)> {
        loop {
            if let Some((command, block)) = cut_one(&mut self.input, FRAME_SIZE_MAX).unwrap() {
                if matches!(command, Command::Ping(_)) {
                    self.send(CommandPong {}).await;
                    continue;
                }
                return Some((command, block));
            }
            let read = tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut self.input)).await;
            match read.expect("nothing came") {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    pub(crate) async fn next(&mut self) -> (Command, Bytes) {
        self.poll().await.expect("the connection is closed")
    }

    /// The first command for which `pick` gives something; others are kept for later.
    pub(crate) async fn find<T>(&mut self, pick: impl Fn(&Command, &Bytes) -> Option<T>) -> T {
        for at in 0..self.aside.len() {
            let (command, block) = &self.aside[at];
            if let Some(found) = pick(command, block) {
                self.aside.remove(at);
                return found;
            }
        }
        loop {
            let Some((command, block)) = self.poll_fresh().await else {
                panic!("the connection is closed; set aside: {:?}", self.aside);
            };
            if let Some(found) = pick(&command, &block) {
                return found;
            }
            self.aside.push((command, block));
        }
    }

    pub(crate) async fn closed(&mut self) {
        while let Some((command, _)) = self.poll().await {
            assert!(!matches!(command, Command::SendReceipt(_)), "{command:?}");
        }
    }

    /// Reads and never answers until the connection is closed.
    pub(crate) async fn raw_closed(&mut self) {
        while !matches!(self.stream.read_buf(&mut self.input).await, Ok(0) | Err(_)) {}
    }

    /// Says that nothing more will come.
    pub(crate) async fn shut(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// Nothing but what was set aside has come, nor comes for a PING's round trip.
    pub(crate) async fn quiet(&mut self) {
        self.send(CommandPing {}).await;
        let found = self.find(|command, _| match command {
            Command::Pong(_) => Some(None),
            Command::Message(_) => Some(Some(command.clone())),
            _ => None,
        });
        if let Some(command) = found.await {
            panic!("unexpected {command:?}");
        }
    }

    /// A MESSAGE for this consumer that is here by the time a PING is answered.
    pub(crate) async fn arrived_any(&mut self, consumer: u64) -> Option<Got> {
        self.send(CommandPing {}).await;
        let found = self.find(|command, block| match command {
            Command::Pong(_) => Some(None),
            Command::Message(message) if message.consumer_id == consumer => {
                Some(Some(got(message, block)))
            }
            _ => None,
        });
        let found = found.await;
        if found.is_some() {
            self.find(|command, _| matches!(command, Command::Pong(_)).then_some(()))
                .await;
        }
        found
    }

    // Producing

    pub(crate) async fn producer(&mut self, topic: &str, id: u64, name: Option<&str>) -> String {
        self.try_producer(CommandProducer {
            topic: topic.to_owned(),
            producer_id: id,
            producer_name: name.map(str::to_owned),
            ..CommandProducer::default()
        })
        .await
        .unwrap()
        .producer_name
    }

    pub(crate) async fn try_producer(
        &mut self,
        mut command: CommandProducer,
    ) -> Result<CommandProducerSuccess, CommandError> {
        let request_id = self.request();
        command.request_id = request_id;
        self.send(command).await;
        self.find(|command, _| match command {
            Command::ProducerSuccess(s) if s.request_id == request_id => Some(Ok(s.clone())),
            Command::Error(error) if error.request_id == request_id => Some(Err(error.clone())),
            _ => None,
        })
        .await
    }

    pub(crate) async fn publish_with(
        &mut self,
        id: u64,
        metadata: MessageMetadata,
        payload: &[u8],
    ) {
        let headers = encode_headers(&metadata, payload);
        let send = Send {
            producer_id: id,
            sequence_id: metadata.sequence_id,
            highest_sequence_id: metadata.highest_sequence_id,
            num_messages: metadata.num_messages_in_batch.unwrap_or(1),
            ..Send::default()
        };
        let mut out = BytesMut::new();
        send.encode_frame(headers.len() + payload.len(), &mut out);
        out.extend_from_slice(&headers);
        out.extend_from_slice(payload);
        self.raw(&out).await;
    }

    /// A SEND whose payload does not fit its checksum.
    pub(crate) async fn corrupt(&mut self, id: u64, sequence_id: u64) {
        let headers = encode_headers(&metadata(sequence_id), b"good");
        let send = Send {
            producer_id: id,
            sequence_id,
            num_messages: 1,
            ..Send::default()
        };
        let mut out = BytesMut::new();
        send.encode_frame(headers.len() + 4, &mut out);
        out.extend_from_slice(&headers);
        out.extend_from_slice(b"evil");
        self.raw(&out).await;
    }

    /// Answers the broker's next PING; whatever else comes is kept.
    pub(crate) async fn answer_one_ping(&mut self) {
        loop {
            if let Some((command, block)) = cut_one(&mut self.input, FRAME_SIZE_MAX).unwrap() {
                if matches!(command, Command::Ping(_)) {
                    return self.send(CommandPong {}).await;
                }
                self.aside.push((command, block));
                continue;
            }
            let read = tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut self.input)).await;
            assert!(
                read.expect("no PING came").unwrap() > 0,
                "the connection is closed"
            );
        }
    }

    pub(crate) async fn publish(&mut self, id: u64, sequence: u64, text: &str) {
        self.publish_with(id, metadata(sequence), text.as_bytes())
            .await;
    }

    pub(crate) async fn publish_key(&mut self, id: u64, sequence: u64, key: &str, text: &str) {
        let metadata = MessageMetadata {
            partition_key: Some(key.to_owned()),
            ..metadata(sequence)
        };
        self.publish_with(id, metadata, text.as_bytes()).await;
    }

    pub(crate) async fn publish_batch(&mut self, id: u64, sequence: u64, texts: &[&str]) {
        let mut builder = Builder::default();
        for text in texts {
            builder.push(&mut SingleMessageMetadata::default(), text.as_bytes());
        }
        let (payload, count) = builder.finish();
        let metadata = MessageMetadata {
            num_messages_in_batch: Some(count),
            highest_sequence_id: Some(sequence + texts.len() as u64 - 1),
            ..metadata(sequence)
        };
        self.publish_with(id, metadata, &payload).await;
    }

    pub(crate) async fn receipt(&mut self) -> CommandSendReceipt {
        self.find(|command, _| match command {
            Command::SendReceipt(receipt) => Some(receipt.clone()),
            Command::SendError(error) => panic!("{error:?}"),
            _ => None,
        })
        .await
    }

    /// Publishes texts and waits for all receipts; returns their ids.
    pub(crate) async fn publish_all(&mut self, id: u64, texts: &[&str]) -> Vec<MessageIdData> {
        for (sequence, text) in (0..).zip(texts) {
            self.publish(id, sequence, text).await;
        }
        let mut ids = Vec::new();
        for sequence in 0..texts.len() as u64 {
            let receipt = self.receipt().await;
            assert_eq!(receipt.sequence_id, sequence);
            ids.push(receipt.message_id.unwrap());
        }
        ids
    }

    // Consuming

    pub(crate) async fn try_subscribe(
        &mut self,
        mut command: CommandSubscribe,
    ) -> Result<(), CommandError> {
        let request_id = self.request();
        command.request_id = request_id;
        self.send(command).await;
        self.done(request_id).await
    }

    pub(crate) async fn subscribe(&mut self, command: CommandSubscribe) {
        self.try_subscribe(command).await.unwrap();
    }

    /// SUCCESS or ERROR of a request.
    pub(crate) async fn done(&mut self, request_id: u64) -> Result<(), CommandError> {
        self.find(|command, _| match command {
            Command::Success(success) if success.request_id == request_id => Some(Ok(())),
            Command::Error(error) if error.request_id == request_id => Some(Err(error.clone())),
            _ => None,
        })
        .await
    }

    pub(crate) async fn flow(&mut self, consumer_id: u64, message_permits: u32) {
        self.send(CommandFlow {
            consumer_id,
            message_permits,
        })
        .await;
    }

    pub(crate) async fn message(&mut self) -> Got {
        self.find(|command, block| match command {
            Command::Message(message) => Some(got(message, block)),
            _ => None,
        })
        .await
    }

    pub(crate) async fn message_of(&mut self, consumer: u64) -> Got {
        self.find(|command, block| match command {
            Command::Message(message) if message.consumer_id == consumer => {
                Some(got(message, block))
            }
            _ => None,
        })
        .await
    }

    pub(crate) async fn texts(&mut self, count: usize) -> Vec<String> {
        let mut texts = Vec::new();
        for _ in 0..count {
            texts.push(self.message().await.text());
        }
        texts
    }

    /// Acks and waits until that is durable.
    pub(crate) async fn ack(&mut self, consumer_id: u64, ids: Vec<MessageIdData>) {
        self.ack_as(consumer_id, command_ack::AckType::Individual, ids)
            .await;
    }

    pub(crate) async fn ack_as(
        &mut self,
        consumer_id: u64,
        kind: command_ack::AckType,
        message_id: Vec<MessageIdData>,
    ) {
        let response = self.try_ack(consumer_id, kind, message_id).await;
        assert_eq!(response.error, None, "{response:?}");
    }

    pub(crate) async fn try_ack(
        &mut self,
        consumer_id: u64,
        kind: command_ack::AckType,
        message_id: Vec<MessageIdData>,
    ) -> CommandAckResponse {
        let request_id = self.request();
        self.send(CommandAck {
            consumer_id,
            ack_type: kind as i32,
            message_id,
            request_id: Some(request_id),
            ..CommandAck::default()
        })
        .await;
        let response = self.find(|command, _| match command {
            Command::AckResponse(response) if response.request_id == Some(request_id) => {
                Some(response.clone())
            }
            _ => None,
        });
        response.await
    }
}

fn got(message: &CommandMessage, block: &Bytes) -> Got {
    geminga_proto::message::verify_checksum(block).unwrap();
    Got {
        consumer: message.consumer_id,
        id: message.message_id.clone(),
        redelivery_count: message.redelivery_count.unwrap_or(0),
        ack_set: message.ack_set.clone(),
        epoch: message.consumer_epoch,
        metadata: geminga_proto::message::decode_metadata(block).unwrap(),
        payload: geminga_proto::message::payload(block).unwrap(),
    }
}

pub(crate) fn metadata(sequence_id: u64) -> MessageMetadata {
    MessageMetadata {
        producer_name: "p".to_owned(),
        sequence_id,
        publish_time: 1_000 + sequence_id,
        ..MessageMetadata::default()
    }
}

pub(crate) fn subscribe(
    id: u64,
    name: &str,
    kind: pb::command_subscribe::SubType,
) -> CommandSubscribe {
    CommandSubscribe {
        topic: TOPIC.to_owned(),
        subscription: name.to_owned(),
        sub_type: kind as i32,
        consumer_id: id,
        consumer_name: Some(format!("c{id}")),
        initial_position: Some(pb::command_subscribe::InitialPosition::Earliest as i32),
        ..CommandSubscribe::default()
    }
}

/// Bare position of an id, for acks.
pub(crate) fn bare(id: &MessageIdData) -> MessageIdData {
    MessageIdData {
        ledger_id: id.ledger_id,
        entry_id: id.entry_id,
        ..MessageIdData::default()
    }
}
