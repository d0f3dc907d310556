//! Flow, acks, redelivery, seek, last message id.

use geminga_broker::BrokerConfig;
use geminga_proto::Command;
use geminga_proto::pb::command_ack::AckType;
use geminga_proto::pb::command_subscribe::SubType;
use geminga_proto::pb::*;

use crate::server::{Server, eventually};
use crate::wire::{TOPIC, Wire, bare, metadata, subscribe};

async fn exclusive(server: &Server) -> Wire {
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, Some("p")).await;
    wire.subscribe(subscribe(1, "s", SubType::Exclusive)).await;
    wire
}

async fn redeliver(wire: &mut Wire, consumer_id: u64, message_ids: Vec<MessageIdData>) {
    wire.send(CommandRedeliverUnacknowledgedMessages {
        consumer_id,
        message_ids,
        ..Default::default()
    })
    .await;
}

#[tokio::test]
async fn nothing_comes_before_flow_and_no_more_than_permitted() {
    let server = Server::new().await;
    let mut wire = exclusive(&server).await;
    wire.publish_all(1, &["a", "b", "c", "d"]).await;
    wire.quiet().await;
    wire.flow(1, 3).await;
    assert_eq!(wire.texts(3).await, ["a", "b", "c"]);
    wire.quiet().await;
    wire.flow(1, 10).await;
    assert_eq!(wire.texts(1).await, ["d"]);
    // Tailing.
    wire.publish_all(1, &["e"]).await;
    assert_eq!(wire.texts(1).await, ["e"]);
}

#[tokio::test]
async fn trap_04_permits_count_messages_and_a_batch_is_not_split() {
    let server = Server::new().await;
    let mut wire = exclusive(&server).await;
    wire.publish_batch(1, 0, &["a", "b", "c", "d", "e"]).await;
    wire.publish_batch(1, 5, &["f", "g"]).await;
    wire.flow(1, 2).await;
    let got = wire.message().await;
    assert_eq!(got.metadata.num_messages_in_batch, Some(5));
    wire.receipt().await;
    wire.receipt().await;
    // Three were overdrawn.
    wire.flow(1, 3).await;
    wire.quiet().await;
    wire.flow(1, 1).await;
    assert_eq!(wire.message().await.metadata.num_messages_in_batch, Some(2));
}

#[tokio::test]
async fn acks_are_kept_over_a_reconnect() {
    let server = Server::new().await;
    let mut wire = exclusive(&server).await;
    wire.publish_all(1, &["a", "b", "c", "d"]).await;
    wire.flow(1, 10).await;
    let mut got = Vec::new();
    for _ in 0..4 {
        got.push(wire.message().await);
    }
    wire.ack(1, vec![bare(&got[0].id), bare(&got[2].id)]).await;
    drop(wire);
    let mut wire = server.connect().await;
    eventually("the old consumer is gone", async || {
        wire.try_subscribe(subscribe(1, "s", SubType::Exclusive))
            .await
            .ok()
    })
    .await;
    wire.flow(1, 10).await;
    assert_eq!(wire.texts(2).await, ["b", "d"]);
    wire.ack_as(1, AckType::Cumulative, vec![bare(&got[3].id)])
        .await;
    let stats = server
        .broker
        .topic_stats(&TOPIC.parse().unwrap())
        .await
        .unwrap();
    assert_eq!(stats.subscriptions["s"].msg_backlog, 0);
}

#[tokio::test]
async fn trap_06_a_cumulative_ack_on_shared_is_ignored_and_confirmed() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, None).await;
    wire.subscribe(subscribe(1, "s", SubType::Shared)).await;
    wire.flow(1, 10).await;
    let ids = wire.publish_all(1, &["a", "b"]).await;
    wire.texts(2).await;
    wire.ack_as(1, AckType::Cumulative, vec![bare(&ids[1])])
        .await;
    let name = TOPIC.parse().unwrap();
    let backlog = async || {
        server
            .broker
            .topic_stats(&name)
            .await
            .unwrap()
            .subscriptions["s"]
            .msg_backlog
    };
    assert_eq!(backlog().await, 2);
    wire.ack(1, ids.iter().map(bare).collect()).await;
    assert_eq!(backlog().await, 0);
}

#[tokio::test]
async fn trap_06_a_cumulative_ack_of_several_ids_is_ignored_and_confirmed() {
    let server = Server::new().await;
    let mut wire = exclusive(&server).await;
    let ids = wire.publish_all(1, &["a", "b"]).await;
    wire.ack_as(1, AckType::Cumulative, ids.iter().map(bare).collect())
        .await;
    let stats = server
        .broker
        .topic_stats(&TOPIC.parse().unwrap())
        .await
        .unwrap();
    assert_eq!(stats.subscriptions["s"].msg_backlog, 2);
}

#[tokio::test]
async fn trap_07_redelivery_counts_on_shared() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, None).await;
    wire.subscribe(subscribe(1, "s", SubType::Shared)).await;
    wire.flow(1, 100).await;
    wire.publish_all(1, &["a", "b"]).await;
    let (a, b) = (wire.message().await, wire.message().await);
    assert_eq!((a.redelivery_count, b.redelivery_count), (0, 0));
    for count in 1..4 {
        redeliver(&mut wire, 1, vec![bare(&a.id)]).await;
        let again = wire.message().await;
        assert_eq!(
            (again.text(), again.redelivery_count),
            ("a".to_owned(), count)
        );
    }
    redeliver(&mut wire, 1, Vec::new()).await;
    let mut counts = Vec::new();
    for _ in 0..2 {
        let again = wire.message().await;
        counts.push((again.text(), again.redelivery_count));
    }
    assert_eq!(counts, [("a".to_owned(), 4), ("b".to_owned(), 1)]);
}

#[tokio::test]
async fn trap_07_exclusive_rewinds_and_counts_nothing() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, None).await;
    let with_epoch = CommandSubscribe {
        consumer_epoch: Some(0),
        ..subscribe(1, "s", SubType::Exclusive)
    };
    wire.subscribe(with_epoch).await;
    wire.flow(1, 100).await;
    wire.publish_all(1, &["a", "b", "c"]).await;
    let a = wire.message().await;
    assert_eq!(a.epoch, Some(0));
    wire.texts(2).await;
    wire.ack(1, vec![bare(&a.id)]).await;
    wire.send(CommandRedeliverUnacknowledgedMessages {
        consumer_id: 1,
        message_ids: vec![bare(&a.id)],
        consumer_epoch: Some(1),
    })
    .await;
    for text in ["b", "c"] {
        let again = wire.message().await;
        assert_eq!((again.text(), again.redelivery_count), (text.to_owned(), 0));
        assert_eq!(again.epoch, Some(1));
    }
}

#[tokio::test]
async fn trap_05_an_unacked_limit_blocks_and_releases() {
    let config = BrokerConfig {
        max_unacked_messages_per_consumer: 4,
        ..BrokerConfig::default()
    };
    let server = Server::with(config).await;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, None).await;
    wire.subscribe(subscribe(1, "s", SubType::Shared)).await;
    wire.flow(1, 4).await;
    let ids = wire.publish_all(1, &["a", "b", "c", "d", "e", "f"]).await;
    wire.texts(4).await;
    wire.flow(1, 10).await;
    wire.quiet().await;
    wire.ack(1, vec![bare(&ids[0])]).await;
    wire.quiet().await;
    wire.ack(1, vec![bare(&ids[1])]).await;
    assert_eq!(wire.texts(2).await, ["e", "f"]);
}

#[tokio::test]
async fn batch_indexes_are_acked_one_by_one_where_that_is_on() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, None).await;
    wire.subscribe(subscribe(1, "s", SubType::Shared)).await;
    wire.flow(1, 100).await;
    wire.publish_batch(1, 0, &["a", "b", "c"]).await;
    let got = wire.message().await;
    assert!(got.ack_set.is_empty());
    let part = |words: Vec<i64>| MessageIdData {
        ack_set: words,
        batch_size: Some(3),
        ..bare(&got.id)
    };
    wire.ack(1, vec![part(vec![0b110])]).await;
    redeliver(&mut wire, 1, Vec::new()).await;
    let again = wire.message().await;
    assert_eq!(again.ack_set, [0b110]);
    wire.ack(1, vec![part(vec![0b101])]).await;
    wire.ack(1, vec![part(vec![0b011])]).await;
    let stats = server
        .broker
        .topic_stats(&TOPIC.parse().unwrap())
        .await
        .unwrap();
    assert_eq!(stats.subscriptions["s"].msg_backlog, 0);
    assert_eq!(stats.subscriptions["s"].unacked_messages, 0);
}

#[tokio::test]
async fn parts_of_a_batch_mean_nothing_where_batch_indexes_are_off() {
    let config = BrokerConfig {
        acknowledgment_at_batch_index_level_enabled: false,
        ..BrokerConfig::default()
    };
    let server = Server::with(config).await;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, None).await;
    wire.subscribe(subscribe(1, "s", SubType::Shared)).await;
    wire.flow(1, 100).await;
    wire.publish_batch(1, 0, &["a", "b", "c"]).await;
    let got = wire.message().await;
    let part = MessageIdData {
        ack_set: vec![0b110],
        batch_size: Some(3),
        ..bare(&got.id)
    };
    wire.ack(1, vec![part]).await;
    redeliver(&mut wire, 1, Vec::new()).await;
    assert!(wire.message().await.ack_set.is_empty());
    // All bits zero is the whole entry.
    let whole = MessageIdData {
        ack_set: vec![0],
        batch_size: Some(3),
        ..bare(&got.id)
    };
    wire.ack(1, vec![whole]).await;
    let stats = server
        .broker
        .topic_stats(&TOPIC.parse().unwrap())
        .await
        .unwrap();
    assert_eq!(stats.subscriptions["s"].msg_backlog, 0);
}

#[tokio::test]
async fn trap_08_seek_disconnects_all_first_and_lets_them_in_afterwards() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, None).await;
    for id in [1, 2] {
        wire.subscribe(subscribe(id, "s", SubType::Shared)).await;
    }
    wire.flow(1, 100).await;
    let ids = wire.publish_all(1, &["a", "b", "c", "d"]).await;
    wire.texts(4).await;
    wire.ack(1, ids.iter().map(bare).collect()).await;
    let request_id = wire.request();
    wire.send(CommandSeek {
        consumer_id: 1,
        request_id,
        message_id: Some(bare(&ids[1])),
        ..CommandSeek::default()
    })
    .await;
    let (mut closed, mut joined, mut done) = (Vec::new(), 0, false);
    while joined < 2 || !done {
        match wire.next().await.0 {
            Command::CloseConsumer(close) => {
                assert!(!done, "CLOSE_CONSUMER after the seek's SUCCESS");
                assert_eq!(close.request_id, u64::MAX);
                closed.push(close.consumer_id);
                // Clients come back at once, while the seek runs.
                let again = subscribe(close.consumer_id, "s", SubType::Shared);
                wire.send(CommandSubscribe {
                    request_id: 900 + close.consumer_id,
                    ..again
                })
                .await;
            }
            Command::Success(success) if success.request_id == request_id => done = true,
            Command::Success(success) => {
                assert!(success.request_id > 900);
                joined += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    closed.sort_unstable();
    assert_eq!(closed, [1, 2]);
    wire.send(CommandFlow {
        consumer_id: 1,
        message_permits: 10,
    })
    .await;
    wire.send(CommandFlow {
        consumer_id: 2,
        message_permits: 10,
    })
    .await;
    let mut texts = wire.texts(3).await;
    texts.sort_unstable();
    assert_eq!(texts, ["b", "c", "d"]);
}

async fn seek(wire: &mut Wire, command: CommandSeek) {
    let request_id = wire.request();
    wire.send(CommandSeek {
        consumer_id: 1,
        request_id,
        ..command
    })
    .await;
    wire.done(request_id).await.unwrap();
    wire.subscribe(subscribe(1, "s", SubType::Exclusive)).await;
    wire.flow(1, 100).await;
}

#[tokio::test]
async fn seek_by_id_and_by_time() {
    let server = Server::new().await;
    let mut wire = exclusive(&server).await;
    // Published at 1000 + sequence.
    let ids = wire.publish_all(1, &["a", "b", "c", "d"]).await;
    let id = |ledger_id, entry_id| MessageIdData {
        ledger_id,
        entry_id,
        ..Default::default()
    };
    let latest = i64::MAX as u64;
    let by_id = |id| CommandSeek {
        message_id: Some(id),
        ..CommandSeek::default()
    };
    let by_time = |time| CommandSeek {
        message_publish_time: Some(time),
        ..Default::default()
    };
    let cases: [(CommandSeek, &[&str]); 8] = [
        (by_id(bare(&ids[2])), &["c", "d"]),
        (by_id(id(u64::MAX, u64::MAX)), &["a", "b", "c", "d"]),
        (by_id(id(latest, latest)), &[]),
        (by_id(bare(&ids[0])), &["a", "b", "c", "d"]),
        (by_time(1_002), &["c", "d"]),
        (by_time(0), &["a", "b", "c", "d"]),
        (by_time(99_999), &[]),
        (by_time(1_003), &["d"]),
    ];
    for (command, texts) in cases {
        seek(&mut wire, command.clone()).await;
        assert_eq!(wire.texts(texts.len()).await, texts, "{command:?}");
        wire.quiet().await;
    }
    let request_id = wire.request();
    wire.send(CommandSeek {
        consumer_id: 1,
        request_id,
        ..CommandSeek::default()
    })
    .await;
    assert_eq!(
        wire.done(request_id).await.unwrap_err().error(),
        ServerError::MetadataError
    );
}

async fn last_id(wire: &mut Wire) -> CommandGetLastMessageIdResponse {
    let request_id = wire.request();
    wire.send(CommandGetLastMessageId {
        consumer_id: 1,
        request_id,
    })
    .await;
    wire.find(|command, _| match command {
        Command::GetLastMessageIdResponse(response) => Some(response.clone()),
        _ => None,
    })
    .await
}

#[tokio::test]
async fn trap_09_last_message_id() {
    let server = Server::new().await;
    let mut wire = exclusive(&server).await;
    let last = last_id(&mut wire).await.last_message_id;
    assert_eq!((last.ledger_id, last.entry_id), (u64::MAX, u64::MAX));
    assert_eq!((last.batch_index, last.partition), (Some(-1), Some(-1)));
    let ids = wire.publish_all(1, &["a"]).await;
    let response = last_id(&mut wire).await;
    assert_eq!(bare(&response.last_message_id), bare(&ids[0]));
    assert_eq!(response.last_message_id.batch_index, Some(-1));
    let mark_delete = response.consumer_mark_delete_position.unwrap();
    assert_eq!(mark_delete.entry_id, u64::MAX, "before the first entry");
    wire.publish_batch(1, 1, &["one"]).await;
    wire.receipt().await;
    assert_eq!(
        last_id(&mut wire).await.last_message_id.batch_index,
        Some(0),
        "a batch of one"
    );
    wire.publish_batch(1, 2, &["x", "y", "z"]).await;
    let receipt = wire.receipt().await.message_id.unwrap();
    let last = last_id(&mut wire).await.last_message_id;
    assert_eq!((bare(&last), last.batch_index), (bare(&receipt), Some(2)));
    // A marker is no message.
    let marker = MessageMetadata {
        marker_type: Some(21),
        ..metadata(3)
    };
    // Only another cluster may publish one.
    wire.producer(TOPIC, 2, Some("pulsar.repl.there-->standalone"))
        .await;
    wire.publish_with(2, marker, b"").await;
    wire.receipt().await;
    assert_eq!(
        bare(&last_id(&mut wire).await.last_message_id),
        bare(&receipt)
    );
    // And is not delivered, but acked.
    wire.flow(1, 100).await;
    for _ in 0..3 {
        let got = wire.message().await;
        wire.ack(1, vec![bare(&got.id)]).await;
    }
    wire.quiet().await;
    let stats = server
        .broker
        .topic_stats(&TOPIC.parse().unwrap())
        .await
        .unwrap();
    assert_eq!(stats.subscriptions["s"].msg_backlog, 0);
}

#[tokio::test]
async fn consumer_stats_and_unknown_consumers() {
    let server = Server::new().await;
    let mut wire = exclusive(&server).await;
    wire.publish_all(1, &["a"]).await;
    wire.flow(1, 5).await;
    wire.texts(1).await;
    wire.send(CommandConsumerStats {
        request_id: 50,
        consumer_id: 1,
    })
    .await;
    let Command::ConsumerStatsResponse(stats) = wire.next().await.0 else {
        panic!()
    };
    assert_eq!(stats.available_permits, Some(4));
    assert_eq!(stats.r#type.as_deref(), Some("Exclusive"));
    assert_eq!(stats.msg_backlog, Some(1));
    wire.send(CommandConsumerStats {
        request_id: 51,
        consumer_id: 9,
    })
    .await;
    let Command::ConsumerStatsResponse(stats) = wire.next().await.0 else {
        panic!()
    };
    assert_eq!(stats.error_code(), ServerError::ConsumerNotFound);
    for command in [
        Command::from(CommandGetLastMessageId {
            consumer_id: 9,
            request_id: 60,
        }),
        CommandSeek {
            consumer_id: 9,
            request_id: 60,
            ..Default::default()
        }
        .into(),
        CommandUnsubscribe {
            consumer_id: 9,
            request_id: 60,
            force: None,
        }
        .into(),
    ] {
        wire.send(command).await;
        assert_eq!(
            wire.done(60).await.unwrap_err().error(),
            ServerError::MetadataError
        );
    }
    // Acks, flow and redelivery of unknown consumers are ignored.
    wire.flow(9, 1).await;
    redeliver(&mut wire, 9, Vec::new()).await;
    wire.send(CommandAck {
        consumer_id: 9,
        request_id: Some(3),
        ..Default::default()
    })
    .await;
    wire.quiet().await;
}

#[tokio::test]
async fn delayed_messages_come_when_due_on_shared_and_at_once_on_exclusive() {
    let config = BrokerConfig {
        is_delayed_delivery_deliver_at_time_strict: true,
        ..BrokerConfig::default()
    };
    let server = Server::with(config).await;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, None).await;
    wire.subscribe(subscribe(1, "shared", SubType::Shared))
        .await;
    wire.subscribe(subscribe(2, "exclusive", SubType::Exclusive))
        .await;
    wire.flow(1, 100).await;
    wire.flow(2, 100).await;
    let now = now_ms();
    for (n, delay) in [(0u64, 400i64), (1, 150), (2, 0)] {
        let deliver_at_time = Some(now + delay);
        wire.publish_with(
            1,
            MessageMetadata {
                deliver_at_time,
                ..metadata(n)
            },
            b"x",
        )
        .await;
    }
    let mut sequences = Vec::new();
    for _ in 0..3 {
        let got = wire.message_of(1).await;
        assert!(got.metadata.deliver_at_time.unwrap() <= now_ms(), "early");
        sequences.push(got.metadata.sequence_id);
    }
    assert_eq!(sequences, [2, 1, 0]);
    for n in 0..3 {
        assert_eq!(wire.message_of(2).await.metadata.sequence_id, n);
    }
}

fn now_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap().as_millis() as i64
}

#[tokio::test]
async fn a_consumer_that_does_not_read_is_not_sent_more_than_the_budget() {
    let config = BrokerConfig {
        geminga_outbox_bytes_max: 64 << 10,
        ..BrokerConfig::default()
    };
    let server = Server::with(config).await;
    let mut producer = server.connect().await;
    producer.producer(TOPIC, 1, None).await;
    let payload = vec![7u8; 32 << 10];
    // The pipe itself holds a megabyte.
    for n in 0..200u64 {
        producer.publish_with(1, metadata(n), &payload).await;
        producer.receipt().await;
    }
    let mut slow = server.connect().await;
    slow.subscribe(subscribe(1, "s", SubType::Shared)).await;
    slow.flow(1, 1_000).await;
    let name = TOPIC.parse().unwrap();
    let sent = eventually("dispatch stands still", async || {
        let count = || async {
            server
                .broker
                .topic_stats(&name)
                .await
                .unwrap()
                .subscriptions["s"]
                .msg_out_counter
        };
        let before = count().await;
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        (before > 0 && before == count().await).then_some(before)
    })
    .await;
    assert!(
        sent < 60,
        "{sent} messages were sent to one that does not read"
    );
    for n in 0..200 {
        let got = slow.message().await;
        assert_eq!(got.metadata.sequence_id, n);
    }
}
