//! Garbage, oversize and nonsense: an error or a closed connection, and nobody else notices.

use bytes::BytesMut;
use geminga_broker::BrokerConfig;
use geminga_proto::frame::encode_command;
use geminga_proto::pb::*;
use geminga_stdx::Random;

use crate::server::Server;
use crate::wire::{TOPIC, subscribe};

#[tokio::test]
async fn frames_that_cannot_be_followed_close_the_connection() {
    let config = BrokerConfig {
        max_message_size: 10_000,
        ..BrokerConfig::default()
    };
    let server = Server::with(config).await;
    let mut witness = server.connect().await;
    witness.producer(TOPIC, 1, None).await;
    let bad: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\n\r\n",
        &[0, 0, 0, 0],
        &[0xff; 16],
        &[0, 0, 0, 8, 0, 0, 0, 100, 1, 2, 3, 4],
        // Larger than maxMessageSize and its padding.
        &[0, 0, 0x60, 0, 0, 0, 0, 1, 0],
        &[0, 0, 0, 6, 0, 0, 0, 2, 0xff, 0xff],
    ];
    for bytes in bad {
        for ready in [false, true] {
            let mut wire = match ready {
                true => server.connect().await,
                false => server.connect_raw(),
            };
            wire.raw(bytes).await;
            wire.closed().await;
        }
    }
    witness.publish_all(1, &["still here"]).await;
}

#[tokio::test]
async fn commands_that_only_a_broker_sends_close_the_connection() {
    let server = Server::new().await;
    for command in [
        geminga_proto::Command::from(CommandSuccess {
            request_id: 1,
            schema: None,
        }),
        CommandConnected::default().into(),
        CommandMessage::default().into(),
        CommandSendReceipt::default().into(),
        CommandAuthResponse::default().into(),
        CommandFlow {
            consumer_id: 1,
            message_permits: 0,
        }
        .into(),
    ] {
        let mut wire = server.connect().await;
        wire.send(command).await;
        wire.closed().await;
    }
}

#[tokio::test]
async fn an_unknown_command_type_is_skipped() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    // Type 81 of a later version, without a body.
    wire.raw(&[0, 0, 0, 6, 0, 0, 0, 2, 0x08, 81]).await;
    wire.quiet().await;
}

#[tokio::test]
async fn a_send_without_a_readable_message_is_refused() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, None).await;
    let send = CommandSend {
        producer_id: 1,
        sequence_id: 3,
        ..CommandSend::default()
    };
    wire.send(send).await;
    let error = wire.find(|command, _| match command {
        geminga_proto::Command::SendError(error) => Some(error.sequence_id),
        _ => None,
    });
    assert_eq!(error.await, 3);
    wire.publish_all(1, &["good"]).await;
}

/// Commands with random bytes flipped, on many connections; a witness goes on undisturbed.
#[tokio::test]
async fn random_damage_disturbs_nobody_else() {
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(7);
    println!("SEED={seed}");
    let mut random = Random::new(seed);
    let server = Server::new().await;
    let mut witness = server.connect().await;
    witness.producer(TOPIC, 1, None).await;
    let mut frames = BytesMut::new();
    for command in [
        geminga_proto::Command::from(CommandProducer {
            topic: TOPIC.to_owned(),
            producer_id: 1,
            request_id: 1,
            ..CommandProducer::default()
        }),
        CommandSubscribe {
            request_id: 2,
            ..subscribe(1, "s", command_subscribe::SubType::Shared)
        }
        .into(),
        CommandFlow {
            consumer_id: 1,
            message_permits: 10,
        }
        .into(),
        CommandAck {
            consumer_id: 1,
            request_id: Some(3),
            message_id: vec![MessageIdData::default()],
            ..CommandAck::default()
        }
        .into(),
        CommandSeek {
            consumer_id: 1,
            request_id: 4,
            message_id: Some(MessageIdData::default()),
            ..CommandSeek::default()
        }
        .into(),
        CommandGetLastMessageId {
            consumer_id: 1,
            request_id: 5,
        }
        .into(),
        CommandCloseConsumer {
            consumer_id: 1,
            request_id: 6,
            ..Default::default()
        }
        .into(),
    ] {
        encode_command(&command, &mut frames);
    }
    for round in 0..150u64 {
        let mut bytes = frames.to_vec();
        for _ in 0..1 + random.below(4) {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] = random.next_u64() as u8;
        }
        let mut wire = server.connect().await;
        wire.raw(&bytes).await;
        drop(wire);
        witness.publish(1, round, "x").await;
        assert_eq!(witness.receipt().await.sequence_id, round);
    }
}
