//! A broker whose every step a test decides: the other end of a pipe.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use geminga_client::transport::Io;
use geminga_client::{Client, ClientBuilder, Pipe};
use geminga_proto::frame::{FRAME_SIZE_MAX, cut_one, encode_command, encode_frame_head};
use geminga_proto::pb::command_lookup_topic_response::LookupType;
use geminga_proto::{Command, batch, command, message, pb};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

pub(crate) struct Fake {
    accepted: mpsc::Receiver<Io>,
}

/// A client of a fake broker, with short delays.
pub(crate) fn fake() -> (ClientBuilder, Fake) {
    let (pipe, accepted) = Pipe::new();
    let builder = Client::builder("pulsar://fake:6650")
        .connector(Arc::new(pipe))
        .backoff(Duration::from_millis(10), Duration::from_millis(100));
    (builder, Fake { accepted })
}

impl Fake {
    /// The next connection, after its handshake.
    pub(crate) async fn accept(&mut self) -> Session {
        let mut session = self.accept_raw().await;
        session.connected().await;
        session
    }

    pub(crate) async fn accept_raw(&mut self) -> Session {
        let io = self.accepted.recv().await.expect("a connection");
        Session {
            io,
            buffer: BytesMut::new(),
            answers_lookups: true,
        }
    }
}

/// One connection, from the broker's side.
pub(crate) struct Session {
    io: Io,
    buffer: BytesMut,
    /// Partition metadata and lookups are answered on the side.
    pub(crate) answers_lookups: bool,
}

impl Session {
    pub(crate) async fn connected(&mut self) -> pb::CommandConnect {
        let Command::Connect(connect) = self.command().await else {
            panic!("no CONNECT")
        };
        let connected = pb::CommandConnected {
            server_version: "fake".into(),
            protocol_version: Some(21),
            max_message_size: Some(1 << 20),
            ..Default::default()
        };
        self.send(connected).await;
        connect
    }

    /// The next command that is not answered on the side; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<(Command, Bytes)> {
        loop {
            let Some((command, block)) = cut_one(&mut self.buffer, FRAME_SIZE_MAX).unwrap() else {
                if self.io.read.read_buf(&mut self.buffer).await.ok()? == 0 {
                    return None;
                }
                continue;
            };
            match command {
                Command::Ping(_) => self.send(command::pong()).await,
                Command::Pong(_) => {}
                Command::PartitionedMetadata(request) if self.answers_lookups => {
                    // One coordinator of transactions; other topics are not partitioned.
                    let coordinators = request.topic.ends_with("transaction_coordinator_assign");
                    let answer = pb::CommandPartitionedTopicMetadataResponse {
                        request_id: request.request_id,
                        partitions: Some(u32::from(coordinators)),
                        ..Default::default()
                    };
                    self.send(answer).await;
                }
                Command::Lookup(request) if self.answers_lookups => {
                    self.found(
                        request.request_id,
                        "pulsar://fake:6650",
                        LookupType::Connect,
                    )
                    .await;
                }
                command => return Some((command, block)),
            }
        }
    }

    pub(crate) async fn found(&mut self, request_id: u64, url: &str, response: LookupType) {
        let answer = pb::CommandLookupTopicResponse {
            request_id,
            broker_service_url: Some(url.to_owned()),
            response: Some(response as i32),
            authoritative: Some(true),
            ..Default::default()
        };
        self.send(answer).await;
    }

    pub(crate) async fn command(&mut self) -> Command {
        self.next().await.expect("a command").0
    }

    /// Whether the client closes the connection next.
    pub(crate) async fn is_closed(&mut self) -> bool {
        self.next().await.is_none()
    }

    pub(crate) async fn send(&mut self, command: impl Into<Command>) {
        let mut out = BytesMut::new();
        encode_command(&command.into(), &mut out);
        self.raw(&out).await;
    }

    pub(crate) async fn raw(&mut self, bytes: &[u8]) {
        // The client may be gone; the test sees that elsewhere.
        _ = self.io.write.write_all(bytes).await;
    }

    /// Expects PRODUCER and says yes.
    pub(crate) async fn producer(&mut self) -> pb::CommandProducer {
        let command = self.command().await;
        let Command::Producer(producer) = command else {
            panic!("no PRODUCER: {command:?}")
        };
        let success = pb::CommandProducerSuccess {
            request_id: producer.request_id,
            producer_name: "given".into(),
            last_sequence_id: Some(-1),
            ..Default::default()
        };
        self.send(success).await;
        producer
    }

    /// Expects SUBSCRIBE, says yes, expects the first FLOW.
    pub(crate) async fn subscribe(&mut self) -> (pb::CommandSubscribe, u32) {
        let command = self.command().await;
        let Command::Subscribe(subscribe) = command else {
            panic!("no SUBSCRIBE: {command:?}")
        };
        self.send(command::success(subscribe.request_id)).await;
        loop {
            match self.command().await {
                Command::Flow(flow) => return (subscribe, flow.message_permits),
                // Acks of before.
                Command::Ack(_) => {}
                other => panic!("no FLOW: {other:?}"),
            }
        }
    }

    /// The permits that the client has given since, once it has nothing else to do.
    pub(crate) async fn flows(&mut self) -> u32 {
        let mut permits = 0;
        // The clock is the test's: it stands until every task waits.
        let soon = Duration::from_millis(1);
        while let Ok(command) = tokio::time::timeout(soon, self.command()).await {
            match command {
                Command::Flow(flow) => permits += flow.message_permits,
                Command::Ack(_) => {}
                other => panic!("no FLOW: {other:?}"),
            }
        }
        permits
    }

    /// Expects a SEND.
    pub(crate) async fn sent(&mut self) -> Sent {
        let (command, block) = self.next().await.expect("a command");
        let Command::Send(send) = command else {
            panic!("no SEND: {command:?}")
        };
        Sent { send, block }
    }

    pub(crate) async fn receipt(&mut self, sent: &Sent, entry_id: u64) {
        let receipt = pb::CommandSendReceipt {
            producer_id: sent.send.producer_id,
            sequence_id: sent.send.sequence_id,
            highest_sequence_id: sent.send.highest_sequence_id,
            message_id: Some(pb::MessageIdData {
                ledger_id: 1,
                entry_id,
                ..Default::default()
            }),
        };
        self.send(receipt).await;
    }

    pub(crate) async fn refuse(&mut self, sent: &Sent, error: pb::ServerError) {
        self.refuse_send(&sent.send, error).await;
    }

    pub(crate) async fn refuse_send(&mut self, send: &pb::CommandSend, error: pb::ServerError) {
        let error = pb::CommandSendError {
            producer_id: send.producer_id,
            sequence_id: send.sequence_id,
            error: error as i32,
            message: "no".into(),
        };
        self.send(error).await;
    }

    pub(crate) async fn deliver(&mut self, consumer_id: u64, entry_id: u64, payload: &str) {
        let metadata = pb::MessageMetadata {
            producer_name: "p".into(),
            sequence_id: entry_id,
            publish_time: 1,
            ..Default::default()
        };
        let mut block = message::encode_headers(&metadata, payload.as_bytes());
        block.extend_from_slice(payload.as_bytes());
        self.deliver_block(consumer_id, entry_id, &block).await;
    }

    /// An entry that holds several messages.
    pub(crate) async fn deliver_batch(
        &mut self,
        consumer_id: u64,
        entry_id: u64,
        payloads: &[&str],
    ) {
        let mut batch = batch::Builder::default();
        for payload in payloads {
            batch.push(
                &mut pb::SingleMessageMetadata::default(),
                payload.as_bytes(),
            );
        }
        let (payload, count) = batch.finish();
        let metadata = pb::MessageMetadata {
            producer_name: "p".into(),
            sequence_id: entry_id,
            publish_time: 1,
            num_messages_in_batch: Some(count),
            ..Default::default()
        };
        let mut block = message::encode_headers(&metadata, &payload);
        block.extend_from_slice(&payload);
        self.deliver_block(consumer_id, entry_id, &block).await;
    }

    pub(crate) async fn deliver_block(&mut self, consumer_id: u64, entry_id: u64, block: &[u8]) {
        let message = pb::CommandMessage {
            consumer_id,
            message_id: pb::MessageIdData {
                ledger_id: 1,
                entry_id,
                ..Default::default()
            },
            ..Default::default()
        };
        let mut out = BytesMut::new();
        encode_frame_head(&message.into(), block.len(), &mut out);
        out.extend_from_slice(block);
        self.raw(&out).await;
    }
}

/// A SEND as the broker got it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sent {
    pub(crate) send: pb::CommandSend,
    pub(crate) block: Bytes,
}

impl Sent {
    /// The payloads of its messages.
    pub(crate) fn texts(&self) -> Vec<String> {
        message::verify_checksum(&self.block).unwrap();
        let peek = message::peek(&self.block).unwrap();
        let payload = message::payload(&self.block).unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match peek.num_messages_in_batch {
            None => vec![text(&payload)],
            Some(count) => batch::read(payload, count)
                .map(|message| text(&message.unwrap().1))
                .collect(),
        }
    }
}
