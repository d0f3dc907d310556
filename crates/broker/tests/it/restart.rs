//! What survives: a crash, a graceful stop, a topic leaving memory.

use std::time::Duration;

use geminga_broker::{BrokerConfig, Policies, SubscribeAt};
use geminga_proto::Command;
use geminga_proto::pb::command_subscribe::SubType;

use crate::server::{Server, eventually};
use crate::wire::{TOPIC, bare, subscribe};

#[tokio::test]
async fn after_a_crash_acknowledged_messages_and_acks_are_there() {
    let mut server = Server::new().await;
    let mut next = 0u64;
    let mut unacked: Vec<String> = Vec::new();
    for round in 0..5 {
        let mut wire = server.connect().await;
        let name = wire.producer(TOPIC, 1, None).await;
        assert!(
            name.starts_with(&format!("standalone-{round}-")),
            "names are unique: {name}"
        );
        wire.subscribe(subscribe(1, "s", SubType::Shared)).await;
        wire.flow(1, 1_000).await;
        for _ in 0..50 {
            wire.publish(1, next, &next.to_string()).await;
            wire.receipt().await;
            unacked.push(next.to_string());
            next += 1;
        }
        let mut got = Vec::new();
        for _ in 0..unacked.len() {
            got.push(wire.message().await);
        }
        let texts: Vec<String> = got.iter().map(|got| got.text()).collect();
        assert_eq!(texts, unacked, "round {round}");
        // Every third is acked, with a receipt.
        let acked: Vec<_> = got.iter().step_by(3).collect();
        wire.ack(1, acked.iter().map(|got| bare(&got.id)).collect())
            .await;
        let gone: Vec<String> = acked.iter().map(|got| got.text()).collect();
        unacked.retain(|text| !gone.contains(text));
        server = server.crash_and_restart(BrokerConfig::default()).await;
    }
}

#[tokio::test]
async fn a_stop_tells_clients_and_confirms_what_was_sent() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, None).await;
    wire.subscribe(subscribe(1, "s", SubType::Shared)).await;
    for n in 0..100 {
        wire.publish(1, n, "x").await;
    }
    for _ in 0..100 {
        wire.receipt().await;
    }
    assert!(server.broker.stop(Duration::from_secs(2)).await);
    let (mut producers, mut consumers) = (0, 0);
    while let Some((command, _)) = wire.poll().await {
        match command {
            Command::CloseProducer(_) => producers += 1,
            Command::CloseConsumer(_) => consumers += 1,
            _ => {}
        }
    }
    assert_eq!((producers, consumers), (1, 1));
}

#[tokio::test]
async fn an_idle_topic_leaves_memory_and_comes_back() {
    let config = BrokerConfig {
        geminga_topic_idle_millis: 100,
        ..BrokerConfig::default()
    };
    let server = Server::with(config).await;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, None).await;
    wire.subscribe(subscribe(1, "s", SubType::Shared)).await;
    wire.publish_all(1, &["a", "b"]).await;
    drop(wire);
    eventually("the topic is unloaded", async || {
        server.broker.metrics().topics.is_empty().then_some(())
    })
    .await;
    let mut wire = server.connect().await;
    wire.subscribe(subscribe(1, "s", SubType::Shared)).await;
    wire.flow(1, 10).await;
    assert_eq!(wire.texts(2).await, ["a", "b"]);
}

#[tokio::test]
async fn what_admin_does_survives() {
    let server = Server::new().await;
    let broker = &server.broker;
    let namespace = "team/space".parse().unwrap();
    broker
        .create_tenant("team", Default::default())
        .await
        .unwrap();
    broker
        .create_namespace(&namespace, Policies::default())
        .await
        .unwrap();
    broker
        .update_policies(&namespace, |p| {
            p.message_ttl_seconds = Some(60);
            Ok(())
        })
        .await
        .unwrap();
    let topic = "persistent://team/space/a topic/with slash"
        .parse()
        .unwrap();
    broker.create_topic(&topic).await.unwrap();
    let parts = "persistent://team/space/parts".parse().unwrap();
    broker
        .create_partitioned(&parts, 2, Default::default())
        .await
        .unwrap();
    broker.update_partitions(&parts, 3).await.unwrap();
    broker
        .create_subscription(&topic, "s", SubscribeAt::Latest, Default::default())
        .await
        .unwrap();
    let server = server.crash_and_restart(BrokerConfig::default()).await;
    let broker = &server.broker;
    assert_eq!(
        broker.tenants().await.unwrap(),
        ["public", "pulsar", "team"]
    );
    assert_eq!(broker.namespaces("team").await.unwrap(), ["team/space"]);
    assert_eq!(
        broker
            .policies(&namespace)
            .await
            .unwrap()
            .message_ttl_seconds,
        Some(60)
    );
    assert_eq!(broker.topics(&namespace).await.unwrap().len(), 4);
    assert_eq!(
        broker.partitioned_topics(&namespace).await.unwrap(),
        ["persistent://team/space/parts"]
    );
    assert_eq!(
        broker.partitions(&parts).await.unwrap().unwrap().partitions,
        3
    );
    assert_eq!(broker.subscriptions(&topic).await.unwrap(), ["s"]);
    assert!(broker.delete_namespace(&namespace, false).await.is_err());
    broker.delete_namespace(&namespace, true).await.unwrap();
    broker.delete_tenant("team").await.unwrap();
}

#[tokio::test]
async fn operators_move_skip_peek_and_expire() {
    let server = Server::new().await;
    let broker = &server.broker;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, None).await;
    let name = TOPIC.parse().unwrap();
    broker
        .create_subscription(&name, "s", SubscribeAt::Earliest, Default::default())
        .await
        .unwrap();
    wire.publish_all(1, &["a", "b", "c", "d", "e"]).await;
    let backlog = async || broker.topic_stats(&name).await.unwrap().subscriptions["s"].msg_backlog;
    assert_eq!(broker.peek(&name, "s", 2).await.unwrap().len(), 2);
    assert_eq!(backlog().await, 5);
    broker.skip(&name, "s", 2).await.unwrap();
    assert_eq!(backlog().await, 3);
    let next = broker.peek(&name, "s", 1).await.unwrap().remove(0);
    assert_eq!(geminga_proto::message::payload(&next.block).unwrap(), "c");
    broker.skip_all(&name, "s").await.unwrap();
    assert_eq!(backlog().await, 0);
    broker
        .reset_subscription(&name, "s", SubscribeAt::TimeMs(1_003))
        .await
        .unwrap();
    assert_eq!(backlog().await, 2);
    broker
        .reset_subscription(&name, "s", SubscribeAt::Earliest)
        .await
        .unwrap();
    assert_eq!(backlog().await, 5);
    // Published in 1970.
    broker.expire(&name, "s", 60).await.unwrap();
    assert_eq!(backlog().await, 0);
    assert!(broker.expire(&name, "s", 60).await.is_err());
    let (last, batch) = broker.last_message_id(&name).await.unwrap();
    assert_eq!((last.entry.0, batch), (4, -1));
    broker.delete_subscription(&name, "s", false).await.unwrap();
    let text = broker.metrics().render("standalone", true);
    assert!(text.contains("pulsar_in_messages_total"), "{text}");
}
