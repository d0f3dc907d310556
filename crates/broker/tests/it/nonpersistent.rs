//! Non-persistent topics: now or never.

use geminga_broker::BrokerConfig;
use geminga_proto::pb::command_subscribe::SubType;
use geminga_proto::pb::{
    CommandGetLastMessageId, CommandSeek, CommandSubscribe, MessageIdData, ServerError,
};

use crate::server::{Server, eventually};
use crate::wire::{TOPIC, Wire, bare, subscribe};

const LIVE: &str = "non-persistent://public/default/live";

fn live(id: u64, name: &str, kind: SubType) -> CommandSubscribe {
    CommandSubscribe {
        topic: LIVE.to_owned(),
        ..subscribe(id, name, kind)
    }
}

async fn send(wire: &mut Wire, sequence: u64, text: &str) {
    wire.publish(1, sequence, text).await;
    let receipt = wire.receipt().await;
    assert_eq!(receipt.sequence_id, sequence);
    let id = receipt.message_id.unwrap();
    assert_eq!((id.ledger_id, id.entry_id), (0, 0));
}

#[tokio::test]
async fn each_type_gets_what_it_has_permits_for_and_the_rest_is_gone() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    wire.producer(LIVE, 1, None).await;
    send(&mut wire, 0, "nobody is there").await;
    wire.subscribe(live(1, "exclusive", SubType::Exclusive))
        .await;
    wire.subscribe(live(2, "failover", SubType::Failover)).await;
    wire.subscribe(live(3, "shared", SubType::Shared)).await;
    wire.subscribe(live(4, "shared", SubType::Shared)).await;
    wire.subscribe(live(5, "keys", SubType::KeyShared)).await;
    for consumer in 1..=5 {
        wire.flow(consumer, 2).await;
    }
    for sequence in 1..=4 {
        send(&mut wire, sequence, &sequence.to_string()).await;
    }
    for consumer in [1, 2, 5] {
        for text in ["1", "2"] {
            let got = wire.message_of(consumer).await;
            assert_eq!(got.text(), text);
            assert_eq!((got.id.ledger_id, got.id.entry_id), (0, 0));
            wire.ack(consumer, vec![bare(&got.id)]).await;
        }
    }
    let mut shared = Vec::new();
    for consumer in [3, 3, 4, 4] {
        shared.push(wire.message_of(consumer).await.text());
    }
    assert_eq!(shared, ["1", "3", "2", "4"], "turn and turn about");
    wire.flow(1, 10).await;
    wire.quiet().await;
    send(&mut wire, 5, "5").await;
    assert_eq!(wire.message_of(1).await.text(), "5");
    wire.quiet().await;
    let name = LIVE.parse().unwrap();
    let stats = server.broker.topic_stats(&name).await.unwrap();
    assert_eq!((stats.msg_in_counter, stats.storage_size), (6, 0));
    assert!(stats.msg_drop_rate.unwrap() > 0.0);
    assert!(stats.publishers[0].msg_drop_rate.unwrap() > 0.0);
    assert!(stats.subscriptions["failover"].msg_drop_rate.unwrap() > 0.0);
    assert_eq!(stats.subscriptions["failover"].msg_backlog, 0);
    let namespace = "public/default".parse().unwrap();
    let broker = &server.broker;
    assert_eq!(
        broker.nonpersistent_topics(&namespace).await.unwrap(),
        [LIVE]
    );
    assert!(broker.topics(&namespace).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_needs_stored_messages_is_refused() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    let compacted = CommandSubscribe {
        read_compacted: Some(true),
        ..live(9, "r", SubType::Exclusive)
    };
    let error = wire.try_subscribe(compacted).await.unwrap_err();
    assert_eq!(error.error, ServerError::NotAllowedError as i32);
    wire.subscribe(live(1, "s", SubType::Exclusive)).await;
    let request_id = wire.request();
    wire.send(CommandGetLastMessageId {
        consumer_id: 1,
        request_id,
    })
    .await;
    let error = wire.done(request_id).await.unwrap_err();
    assert_eq!(error.error, ServerError::NotAllowedError as i32);
    let request_id = wire.request();
    wire.send(CommandSeek {
        consumer_id: 1,
        request_id,
        message_id: Some(MessageIdData::default()),
        ..CommandSeek::default()
    })
    .await;
    // Where nothing is stored there is nothing to go back to: Pulsar answers that it is done.
    wire.done(request_id).await.unwrap();
    let name = LIVE.parse().unwrap();
    assert!(server.broker.terminate(&name).await.is_err());
    assert!(server.broker.peek(&name, "s", 1).await.is_err());
    assert!(server.broker.skip_all(&name, "s").await.is_err());
    // The consumer was left alone.
    wire.producer(LIVE, 1, None).await;
    wire.flow(1, 1).await;
    send(&mut wire, 0, "a").await;
    assert_eq!(wire.message().await.text(), "a");
}

#[tokio::test]
async fn partitions_lookups_and_the_end_of_an_idle_one() {
    let config = BrokerConfig {
        geminga_topic_idle_millis: 100,
        ..BrokerConfig::default()
    };
    let server = Server::with(config).await;
    let broker = &server.broker;
    let name = LIVE.parse().unwrap();
    broker
        .create_partitioned(&name, 2, Default::default())
        .await
        .unwrap();
    let mut wire = server.connect().await;
    assert!(
        wire.try_producer(geminga_proto::pb::CommandProducer {
            topic: LIVE.to_owned(),
            producer_id: 7,
            ..Default::default()
        })
        .await
        .is_err(),
        "only its partitions are topics"
    );
    let partition = format!("{LIVE}-partition-1");
    wire.producer(&partition, 1, None).await;
    wire.subscribe(CommandSubscribe {
        topic: partition.clone(),
        ..subscribe(1, "s", SubType::Failover)
    })
    .await;
    wire.flow(1, 5).await;
    send(&mut wire, 0, "x").await;
    let got = wire.message().await;
    assert_eq!((got.text().as_str(), got.id.partition), ("x", Some(1)));
    drop(wire);
    let namespace = "public/default".parse().unwrap();
    eventually("it is gone", async || {
        let live = broker.nonpersistent_topics(&namespace).await.unwrap();
        live.is_empty().then_some(())
    })
    .await;
    broker.delete_partitioned(&name, false).await.unwrap();
    assert!(!broker.topic_exists(&name).await.unwrap());
    assert!(!broker.topic_exists(&TOPIC.parse().unwrap()).await.unwrap());
}
