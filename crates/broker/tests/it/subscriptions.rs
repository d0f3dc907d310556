//! The four subscription types, readers, and who may join.

use std::collections::{HashMap, HashSet};

use geminga_broker::BrokerConfig;
use geminga_proto::Command;
use geminga_proto::pb::command_subscribe::SubType;
use geminga_proto::pb::*;

use crate::server::{Server, eventually};
use crate::wire::{TOPIC, Wire, bare, subscribe};

async fn refused(wire: &mut Wire, command: CommandSubscribe) -> ServerError {
    wire.try_subscribe(command).await.unwrap_err().error()
}

async fn active_change(wire: &mut Wire) -> (u64, bool) {
    wire.find(|command, _| match command {
        Command::ActiveConsumerChange(change) => Some((change.consumer_id, change.is_active())),
        _ => None,
    })
    .await
}

#[tokio::test]
async fn who_may_join() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    wire.subscribe(subscribe(1, "s", SubType::Exclusive)).await;
    // The same id again is a success.
    wire.subscribe(subscribe(1, "s", SubType::Exclusive)).await;
    let busy = ServerError::ConsumerBusy;
    assert_eq!(
        refused(&mut wire, subscribe(2, "s", SubType::Exclusive)).await,
        busy
    );
    assert_eq!(
        refused(&mut wire, subscribe(2, "s", SubType::Shared)).await,
        busy
    );
    // trap 1: bad names come out as ProducerBusy.
    for name in ["", "pulsar.dedup", "pulsar.repl.us"] {
        let error = refused(&mut wire, subscribe(2, name, SubType::Shared)).await;
        assert_eq!(error, ServerError::ProducerBusy, "{name:?}");
    }
    let compacted = CommandSubscribe {
        read_compacted: Some(true),
        ..subscribe(2, "x", SubType::Shared)
    };
    assert_eq!(
        refused(&mut wire, compacted).await,
        ServerError::NotAllowedError
    );
    let long = KeyValue {
        key: "k".to_owned(),
        value: "v".repeat(1_024),
    };
    let long = CommandSubscribe {
        metadata: vec![long],
        ..subscribe(2, "x", SubType::Shared)
    };
    assert_eq!(refused(&mut wire, long).await, ServerError::MetadataError);
    let reader = CommandSubscribe {
        durable: Some(false),
        ..subscribe(2, "s", SubType::Exclusive)
    };
    assert_eq!(
        refused(&mut wire, reader).await,
        ServerError::NotAllowedError
    );
    // With nobody connected the type may change.
    wire.send(CommandCloseConsumer {
        consumer_id: 1,
        request_id: 70,
        ..Default::default()
    })
    .await;
    wire.done(70).await.unwrap();
    wire.subscribe(subscribe(2, "s", SubType::Shared)).await;
}

#[tokio::test]
async fn topics_and_subscriptions_are_made_only_where_allowed() {
    let config = BrokerConfig {
        allow_auto_subscription_creation: false,
        ..BrokerConfig::default()
    };
    let server = Server::with(config).await;
    let mut wire = server.connect().await;
    let missing = CommandSubscribe {
        force_topic_creation: Some(false),
        ..subscribe(1, "s", SubType::Shared)
    };
    assert_eq!(
        refused(&mut wire, missing).await,
        ServerError::TopicNotFound
    );
    let error = refused(&mut wire, subscribe(1, "s", SubType::Shared)).await;
    assert_eq!(error, ServerError::SubscriptionNotFound);
    let reader = CommandSubscribe {
        durable: Some(false),
        ..subscribe(1, "r", SubType::Exclusive)
    };
    wire.subscribe(reader).await;
    let nowhere = CommandSubscribe {
        topic: "persistent://public/nowhere/t".to_owned(),
        ..subscribe(2, "s", SubType::Shared)
    };
    assert_eq!(
        refused(&mut wire, nowhere).await,
        ServerError::TopicNotFound
    );
}

#[tokio::test]
async fn initial_positions_of_subscriptions_and_readers() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, None).await;
    let ids = wire.publish_all(1, &["a", "b", "c"]).await;
    let latest = CommandSubscribe {
        initial_position: Some(command_subscribe::InitialPosition::Latest as i32),
        ..subscribe(1, "latest", SubType::Exclusive)
    };
    wire.subscribe(latest).await;
    wire.subscribe(subscribe(2, "earliest", SubType::Exclusive))
        .await;
    // trap 10: the named entry itself is delivered, whatever the batch index.
    let reader = |id: u64, start: MessageIdData| CommandSubscribe {
        durable: Some(false),
        start_message_id: Some(start),
        ..subscribe(id, &format!("reader-{id}"), SubType::Exclusive)
    };
    let start = MessageIdData {
        batch_index: Some(0),
        ..bare(&ids[1])
    };
    wire.subscribe(reader(3, start)).await;
    let at = |ledger_id, entry_id| MessageIdData {
        ledger_id,
        entry_id,
        ..Default::default()
    };
    wire.subscribe(reader(4, at(u64::MAX, u64::MAX))).await;
    wire.subscribe(reader(5, at(i64::MAX as u64, i64::MAX as u64)))
        .await;
    for id in 1..=5 {
        wire.flow(id, 100).await;
    }
    wire.publish_all(1, &["d"]).await;
    let expected: [(u64, &[&str]); 5] = [
        (1, &["d"]),
        (2, &["a", "b", "c", "d"]),
        (3, &["b", "c", "d"]),
        (4, &["a", "b", "c", "d"]),
        (5, &["d"]),
    ];
    for (id, texts) in expected {
        for text in texts {
            assert_eq!(wire.message_of(id).await.text(), *text, "consumer {id}");
        }
    }
    wire.quiet().await;
    // A reader leaves nothing behind.
    drop(wire);
    let name = TOPIC.parse().unwrap();
    eventually("readers are gone", async || {
        let names = server.broker.subscriptions(&name).await.unwrap();
        (names.len() == 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn shared_spreads_and_passes_on_what_a_leaver_held() {
    let server = Server::new().await;
    let mut producer = server.connect().await;
    producer.producer(TOPIC, 1, None).await;
    let mut one = server.connect().await;
    let mut two = server.connect().await;
    one.subscribe(subscribe(1, "s", SubType::Shared)).await;
    two.subscribe(subscribe(1, "s", SubType::Shared)).await;
    one.flow(1, 100).await;
    two.flow(1, 100).await;
    let texts: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    for (n, text) in texts.iter().enumerate() {
        producer.publish(1, n as u64, text).await;
        producer.receipt().await;
    }
    let mut first: Vec<String> = one.texts(10).await;
    let second = two.texts(10).await;
    drop(one);
    let back = two.texts(10).await;
    first.sort_unstable();
    let mut sorted = back.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, first);
    let all: HashSet<String> = second.into_iter().chain(back).collect();
    assert_eq!(all.len(), 20);
}

#[tokio::test]
async fn failover_tells_who_is_active_and_the_next_one_goes_on() {
    let config = BrokerConfig {
        active_consumer_failover_delay_time_millis: 20,
        ..BrokerConfig::default()
    };
    let server = Server::with(config).await;
    let mut producer = server.connect().await;
    let topic = "persistent://public/default/f-partition-0";
    producer.producer(topic, 1, None).await;
    let of = |id: u64, name: &str| CommandSubscribe {
        topic: topic.to_owned(),
        consumer_name: Some(name.to_owned()),
        ..subscribe(id, "s", SubType::Failover)
    };
    let mut b = server.connect().await;
    b.subscribe(of(1, "b")).await;
    assert_eq!(active_change(&mut b).await, (1, true));
    b.flow(1, 100).await;
    let ids = producer.publish_all(1, &["x", "y"]).await;
    assert_eq!(b.texts(2).await, ["x", "y"]);
    b.ack(1, vec![bare(&ids[0])]).await;
    // Partition 0: the first by name.
    let mut a = server.connect().await;
    a.subscribe(of(1, "a")).await;
    assert_eq!(active_change(&mut a).await, (1, true));
    assert_eq!(active_change(&mut b).await, (1, false));
    a.flow(1, 100).await;
    let got = a.message().await;
    assert_eq!((got.text(), got.redelivery_count), ("y".to_owned(), 0));
    drop(a);
    assert_eq!(active_change(&mut b).await, (1, true));
    let got = b.message().await;
    assert_eq!(got.text(), "y");
}

#[tokio::test]
async fn key_shared_keeps_the_order_of_each_key_over_joins_and_leaves() {
    let server = Server::new().await;
    let mut producer = server.connect().await;
    producer.producer(TOPIC, 1, None).await;
    let mut wire = server.connect().await;
    wire.subscribe(subscribe(1, "s", SubType::KeyShared)).await;
    wire.flow(1, 1_000).await;
    const KEYS: u64 = 16;
    let publish = async |producer: &mut Wire, from: u64, to: u64| {
        for n in from..to {
            producer
                .publish_key(1, n, &format!("k{}", n % KEYS), &n.to_string())
                .await;
        }
        for _ in from..to {
            producer.receipt().await;
        }
    };
    publish(&mut producer, 0, 160).await;
    let mut held = Vec::new();
    for _ in 0..160 {
        held.push(wire.message().await);
    }
    // A second one joins: the hashes that move wait until the first has acked.
    wire.subscribe(subscribe(2, "s", SubType::KeyShared)).await;
    wire.flow(2, 1_000).await;
    publish(&mut producer, 160, 320).await;
    let mut owners: HashMap<String, HashSet<u64>> = HashMap::new();
    let mut last: HashMap<String, u64> = HashMap::new();
    let mut note = |got: &crate::wire::Got| {
        let key = got.metadata.partition_key.clone().unwrap();
        let n: u64 = got.text().parse().unwrap();
        if let Some(before) = last.insert(key.clone(), n) {
            assert!(before < n, "{key}: {n} after {before}");
        }
        owners.entry(key).or_default().insert(got.consumer);
    };
    for got in &held {
        note(got);
    }
    wire.ack(1, held.iter().map(|got| bare(&got.id)).collect())
        .await;
    for _ in 0..160 {
        let got = wire.message().await;
        note(&got);
        wire.ack(got.consumer, vec![bare(&got.id)]).await;
    }
    let moved = owners.values().filter(|owners| owners.contains(&2)).count();
    assert!(moved > 0 && moved < KEYS as usize, "{moved} keys moved");
}

#[tokio::test]
async fn key_shared_policies_must_agree_and_sticky_ranges_be_free() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    let sticky = |id: u64, ranges: &[(i32, i32)]| CommandSubscribe {
        key_shared_meta: Some(KeySharedMeta {
            key_shared_mode: KeySharedMode::Sticky as i32,
            hash_ranges: ranges
                .iter()
                .map(|(start, end)| IntRange {
                    start: *start,
                    end: *end,
                })
                .collect(),
            allow_out_of_order_delivery: None,
        }),
        ..subscribe(id, "s", SubType::KeyShared)
    };
    let assign = ServerError::ConsumerAssignError;
    assert_eq!(refused(&mut wire, sticky(1, &[])).await, assign);
    wire.subscribe(sticky(1, &[(0, 30_000)])).await;
    assert_eq!(
        refused(&mut wire, sticky(2, &[(30_000, 65_535)])).await,
        assign
    );
    let auto = refused(&mut wire, subscribe(2, "s", SubType::KeyShared)).await;
    assert_eq!(auto, ServerError::ConsumerBusy);
    // What nobody owns waits.
    wire.producer(TOPIC, 1, None).await;
    wire.flow(1, 1_000).await;
    for n in 0..50 {
        wire.publish_key(1, n, &format!("k{n}"), &n.to_string())
            .await;
        wire.receipt().await;
    }
    let name = TOPIC.parse().unwrap();
    let stats = server.broker.topic_stats(&name).await.unwrap();
    let sent = stats.subscriptions["s"].msg_out_counter;
    assert!(sent > 5 && sent < 45, "{sent}");
    wire.subscribe(sticky(2, &[(30_001, 65_535)])).await;
    wire.flow(2, 1_000).await;
    let mut all = HashSet::new();
    for _ in 0..50 {
        all.insert(wire.message().await.text());
    }
    assert_eq!(all.len(), 50);
}

#[tokio::test]
async fn unsubscribe_only_alone_or_by_force() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    for id in [1, 2] {
        wire.subscribe(subscribe(id, "s", SubType::Shared)).await;
    }
    let mut unsubscribe = async |id: u64, force: bool| {
        let request_id = wire.request();
        wire.send(CommandUnsubscribe {
            consumer_id: id,
            request_id,
            force: Some(force),
        })
        .await;
        wire.done(request_id).await
    };
    assert_eq!(
        unsubscribe(1, false).await.unwrap_err().error(),
        ServerError::MetadataError
    );
    unsubscribe(1, true).await.unwrap();
    let name = TOPIC.parse().unwrap();
    assert!(server.broker.subscriptions(&name).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_large_backlog_is_read_from_the_store() {
    let managed = geminga_storage::ManagedConfig {
        cache_bytes_max: 1 << 10,
        ledger_entries_max: 700,
        ..Default::default()
    };
    let server = Server::on(Default::default(), BrokerConfig::default(), managed).await;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, None).await;
    let texts: Vec<String> = (0..5_000).map(|n| n.to_string()).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    wire.publish_all(1, &texts).await;
    for (id, kind) in [
        (1, SubType::Exclusive),
        (2, SubType::Shared),
        (3, SubType::KeyShared),
    ] {
        wire.subscribe(subscribe(id, &format!("s{id}"), kind)).await;
        wire.flow(id, 10_000).await;
        let mut got = HashSet::new();
        for text in &texts {
            let found = wire.message_of(id).await;
            if id == 1 {
                assert_eq!(found.text(), *text);
            }
            got.insert(found.text());
        }
        assert_eq!(got.len(), texts.len());
    }
}

#[tokio::test]
async fn a_limit_on_consumers_holds() {
    let config = BrokerConfig {
        max_consumers_per_subscription: 1,
        ..BrokerConfig::default()
    };
    let server = Server::with(config).await;
    let mut wire = server.connect().await;
    wire.subscribe(subscribe(1, "s", SubType::Shared)).await;
    let error = refused(&mut wire, subscribe(2, "s", SubType::Shared)).await;
    assert_eq!(error, ServerError::ConsumerBusy);
}
