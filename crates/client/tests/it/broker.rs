//! What works against any broker that speaks Pulsar's protocol.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use geminga_broker::{Broker, BrokerConfig, TopicType};
use geminga_client::transport::{Connecting, Io};
use geminga_client::{
    Batching, Client, Compression, InitialPosition, Message, MessageId, ReceivedMessage, SeekTo,
    Selection, SubType, Topics,
};
use geminga_stdx::{Clock, Tasks};
use geminga_storage::{ManagedConfig, Storage};

/// Another server may have to be waited for: a real Pulsar answers its admin API half a minute before
/// it takes lookups, when the machine is busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Whether another server is judged than our own.
pub(crate) fn is_outside() -> bool {
    std::env::var_os("GEMINGA_TEST_SERVICE_URL").is_some()
}

/// A client of the broker under test, a topic of its own, and what keeps the broker running.
pub(crate) async fn setup(test: &str) -> (Client, String, Option<Server>) {
    let unique = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_micros();
    let topic = format!("persistent://public/default/client-{test}-{unique}");
    if let Ok(url) = std::env::var("GEMINGA_TEST_SERVICE_URL") {
        return (Client::builder(url).build(), topic, None);
    }
    let server = Server::new().await;
    (server.client(), topic, Some(server))
}

/// Our own broker in this process, on a store in memory.
pub(crate) struct Server {
    broker: Broker,
    tasks: Tasks,
}

impl Server {
    pub(crate) async fn new() -> Self {
        Self::with(BrokerConfig::default()).await
    }

    pub(crate) async fn with(config: BrokerConfig) -> Self {
        let tasks = Tasks::new();
        let clock = Clock::system();
        let storage = Storage::memory(ManagedConfig::default(), clock, &tasks)
            .await
            .unwrap();
        let broker = Broker::start(config, storage).await.unwrap();
        Self { broker, tasks }
    }

    pub(crate) fn client(&self) -> Client {
        let broker = self.broker.clone();
        let connector = move |_: &str| -> Connecting {
            let io = Io::new(broker.connect_in_process());
            Box::pin(async move { Ok(io) })
        };
        Client::builder("pulsar://in-process:6650")
            .connector(Arc::new(connector))
            .build()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

pub(crate) async fn soon<T>(future: impl Future<Output = geminga_client::Result<T>>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("in time")
        .expect("works")
}

pub(crate) async fn receive(
    consumer: &mut geminga_client::Consumer,
    count: usize,
) -> Vec<ReceivedMessage> {
    let mut messages = Vec::new();
    while messages.len() < count {
        let left = count - messages.len();
        messages.extend(soon(consumer.recv_batch(left)).await);
    }
    messages
}

pub(crate) fn texts(messages: &[ReceivedMessage]) -> Vec<String> {
    messages
        .iter()
        .map(|m| String::from_utf8_lossy(&m.payload).into_owned())
        .collect()
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|i| i.to_string()).collect()
}

#[tokio::test]
async fn messages_arrive_whole_in_every_compression() {
    let (client, topic, _server) = setup("compression").await;
    let mut consumer = soon(client.consumer(&topic).subscription("s").build()).await;
    for compression in [
        Compression::None,
        Compression::Lz4,
        Compression::Zlib,
        Compression::Zstd,
        Compression::Snappy,
    ] {
        for batching in [Batching::default(), Batching::off()] {
            let producer = client
                .producer(&topic)
                .compression(compression)
                .batching(batching);
            let producer = soon(producer.build()).await;
            let mut receipts = Vec::new();
            for i in 0..50 {
                let message = Message::new(format!("{i}-{}", "x".repeat(100)))
                    .key(format!("k{}", i % 3))
                    .property("n", i.to_string())
                    .event_time(1000 + i);
                receipts.push(soon(producer.enqueue(message)).await);
            }
            let mut ids = Vec::new();
            for receipt in receipts {
                ids.push(soon(receipt).await);
            }
            let messages = receive(&mut consumer, 50).await;
            for (i, (message, id)) in messages.iter().zip(&ids).enumerate() {
                assert_eq!(
                    &message.payload[..],
                    format!("{i}-{}", "x".repeat(100)).as_bytes()
                );
                assert_eq!(message.key, Some(format!("k{}", i % 3)));
                assert_eq!(message.property("n"), Some(&*i.to_string()));
                assert_eq!(message.event_time, Some(1000 + i as u64));
                assert_eq!(message.id.position(), id.position());
                assert_eq!(message.id.batch_index, id.batch_index);
                assert_eq!(&*message.producer_name, producer.name());
                assert_eq!(message.sequence_id, i as u64);
                assert_eq!(&*message.topic, topic);
            }
            consumer.ack_many(&messages).await.unwrap();
            soon(producer.close()).await;
        }
    }
    soon(consumer.close()).await;
}

#[tokio::test]
async fn many_messages_keep_their_order() {
    let (client, topic, _server) = setup("order").await;
    let mut consumer = soon(client.consumer(&topic).subscription("s").build()).await;
    let producer = soon(client.producer(&topic).window(100).build()).await;
    let sending = async {
        for i in 0..20_000 {
            producer.post(Message::new(i.to_string())).await.unwrap();
        }
        producer.flush().await.unwrap();
    };
    let receiving = async {
        let messages = receive(&mut consumer, 20_000).await;
        assert_eq!(texts(&messages), numbers(0..20_000));
        consumer
            .ack_cumulative(messages.last().unwrap())
            .await
            .unwrap();
    };
    tokio::join!(sending, receiving);
}

#[tokio::test]
async fn what_is_not_acknowledged_comes_again_to_the_next_consumer() {
    let (client, topic, _server) = setup("acks").await;
    let consumer = || {
        client
            .consumer(&topic)
            .subscription("s")
            .sub_type(SubType::Shared)
    };
    let mut first = soon(consumer().build()).await;
    let producer = soon(client.producer(&topic).batching(Batching::off()).build()).await;
    for i in 0..10 {
        soon(producer.send(Message::new(i.to_string()))).await;
    }
    let messages = receive(&mut first, 10).await;
    for message in messages
        .iter()
        .filter(|m| m.payload != "3" && m.payload != "7")
    {
        soon(first.ack_durable(message)).await;
    }
    soon(first.close()).await;
    let mut second = soon(consumer().build()).await;
    let again = receive(&mut second, 2).await;
    assert_eq!(texts(&again), ["3", "7"]);
    soon(second.ack_many_durable(&again)).await;
    soon(producer.send("last")).await;
    assert_eq!(texts(&receive(&mut second, 1).await), ["last"]);
    soon(second.unsubscribe()).await;
    assert!(second.recv().await.is_err());
}

#[tokio::test]
async fn a_batch_is_acknowledged_as_a_whole() {
    let (client, topic, _server) = setup("batch-acks").await;
    let consumer = || {
        client
            .consumer(&topic)
            .subscription("s")
            .sub_type(SubType::Shared)
    };
    let mut first = soon(consumer().build()).await;
    let batching = Batching {
        max_delay: Some(Duration::from_millis(200)),
        ..Batching::default()
    };
    let producer = soon(client.producer(&topic).batching(batching).build()).await;
    for i in 0..10 {
        soon(producer.post(Message::new(i.to_string()))).await;
    }
    soon(producer.flush()).await;
    let messages = receive(&mut first, 10).await;
    assert!(
        messages.iter().all(|m| m.id.batch_size == 10),
        "{:?}",
        messages[0].id
    );
    soon(first.ack_many(&messages[..9])).await;
    soon(first.close()).await;
    let mut second = soon(consumer().build()).await;
    let again = receive(&mut second, 10).await;
    assert_eq!(texts(&again), numbers(0..10));
    soon(second.ack_many_durable(&again)).await;
    soon(second.close()).await;
    let mut third = soon(consumer().build()).await;
    soon(producer.send("next")).await;
    assert_eq!(texts(&receive(&mut third, 1).await), ["next"]);
}

#[tokio::test]
async fn a_refused_message_comes_again_with_a_count() {
    let (client, topic, _server) = setup("nack").await;
    let consumer = client
        .consumer(&topic)
        .subscription("s")
        .sub_type(SubType::Shared);
    let mut consumer = soon(consumer.build()).await;
    let producer = soon(client.producer(&topic).build()).await;
    soon(producer.send("a")).await;
    for count in 0..3 {
        let message = soon(consumer.recv()).await;
        assert_eq!(
            (&message.payload[..], message.redelivery_count),
            (&b"a"[..], count)
        );
        soon(consumer.nack_after(&message, Duration::from_millis(20))).await;
    }
    let message = soon(consumer.recv()).await;
    soon(consumer.ack_durable(&message)).await;
}

#[tokio::test]
async fn an_exclusive_consumer_gets_everything_again_after_a_refusal() {
    let (client, topic, _server) = setup("nack-exclusive").await;
    let mut consumer = soon(client.consumer(&topic).subscription("s").build()).await;
    let producer = soon(client.producer(&topic).batching(Batching::off()).build()).await;
    for i in 0..10 {
        soon(producer.send(Message::new(i.to_string()))).await;
    }
    let messages = receive(&mut consumer, 6).await;
    soon(consumer.ack_cumulative(&messages[2])).await;
    consumer.flush_acks();
    soon(consumer.nack_after(&messages[3], Duration::ZERO)).await;
    assert_eq!(texts(&receive(&mut consumer, 7).await), numbers(3..10));
}

#[tokio::test]
async fn seek_goes_to_ids_and_times() {
    let (client, topic, _server) = setup("seek").await;
    let mut consumer = soon(client.consumer(&topic).subscription("s").build()).await;
    let batching = Batching {
        max_messages: 5,
        max_delay: Some(Duration::from_secs(5)),
        ..Default::default()
    };
    let producer = soon(client.producer(&topic).batching(batching).build()).await;
    let mut receipts = Vec::new();
    for i in 0..20 {
        receipts.push(soon(producer.enqueue(Message::new(i.to_string()))).await);
    }
    let mut ids = Vec::new();
    for receipt in receipts {
        ids.push(soon(receipt).await);
    }
    let messages = receive(&mut consumer, 20).await;
    let before = messages[0].publish_time;
    // In the middle of a batch.
    soon(consumer.seek(ids[12])).await;
    assert_eq!(texts(&receive(&mut consumer, 8).await), numbers(12..20));
    soon(consumer.seek(MessageId::EARLIEST)).await;
    assert_eq!(texts(&receive(&mut consumer, 20).await), numbers(0..20));
    soon(consumer.seek(SeekTo::Time(before))).await;
    assert_eq!(texts(&receive(&mut consumer, 20).await), numbers(0..20));
    soon(consumer.seek(MessageId::LATEST)).await;
    soon(producer.post("new")).await;
    soon(producer.flush()).await;
    assert_eq!(texts(&receive(&mut consumer, 1).await), ["new"]);
}

#[tokio::test]
async fn readers_begin_where_they_are_told() {
    let (client, topic, _server) = setup("reader").await;
    let producer = soon(client.producer(&topic).build()).await;
    let mut ids = Vec::new();
    for i in 0..5 {
        ids.push(soon(producer.send(Message::new(i.to_string()))).await);
    }
    let mut reader = soon(client.reader(&topic).start(MessageId::EARLIEST).build()).await;
    for i in 0..5 {
        assert!(soon(reader.has_message_available()).await);
        assert_eq!(soon(reader.next()).await.payload, i.to_string());
    }
    assert!(!soon(reader.has_message_available()).await);
    assert_eq!(
        soon(reader.last_message_id()).await.position(),
        ids[4].position()
    );

    let mut after = soon(client.reader(&topic).start(ids[2]).build()).await;
    assert_eq!(soon(after.next()).await.payload, "3");
    let mut at = soon(
        client
            .reader(&topic)
            .start(ids[2])
            .start_inclusive(true)
            .build(),
    )
    .await;
    assert_eq!(soon(at.next()).await.payload, "2");
    soon(at.seek(ids[1])).await;
    assert_eq!(soon(at.next()).await.payload, "1");

    let mut latest = soon(client.reader(&topic).build()).await;
    assert!(!soon(latest.has_message_available()).await);
    soon(producer.send("5")).await;
    assert!(soon(latest.has_message_available()).await);
    assert_eq!(soon(latest.next()).await.payload, "5");
}

#[tokio::test]
async fn large_messages_go_in_chunks() {
    let (client, topic, _server) = setup("chunks").await;
    let mut consumer = soon(client.consumer(&topic).subscription("s").build()).await;
    let producer = client.producer(&topic).batching(Batching::off());
    let large: Vec<u8> = (0..12_000_000u32).map(|i| (i ^ i >> 8) as u8).collect();
    let small = soon(producer.clone().build()).await;
    assert!(small.send(Message::new(large.clone())).await.is_err());
    let chunking = soon(producer.chunking(true).build()).await;
    let id = soon(chunking.send(Message::new(large.clone()).property("a", "b"))).await;
    assert!(id.first_chunk.is_some());
    let message = soon(consumer.recv()).await;
    assert!(message.payload == large, "the message is not what was sent");
    assert_eq!((message.id, message.property("a")), (id, Some("b")));
    soon(consumer.ack_durable(&message)).await;
}

#[tokio::test]
async fn one_consumer_reads_many_topics_and_patterns() {
    let (client, topic, _server) = setup("many").await;
    let names: Vec<String> = (0..3).map(|i| format!("{topic}-{i}")).collect();
    let mut producers = Vec::new();
    for name in &names {
        producers.push(soon(client.producer(name).build()).await);
    }
    let earliest = |topics: Topics, name: &str| {
        let consumer = client.consumer(topics).subscription(name);
        consumer
            .initial_position(InitialPosition::Earliest)
            .sub_type(SubType::Shared)
    };
    let mut named = soon(earliest(names.clone().into(), "a").build()).await;
    let pattern = Topics::pattern(format!("{topic}-.*"));
    let discovery = Duration::from_millis(200);
    let pattern = earliest(pattern, "b").discovery_interval(discovery);
    let mut pattern = soon(pattern.build()).await;
    for (i, producer) in producers.iter().enumerate() {
        soon(producer.send(Message::new(i.to_string()))).await;
    }
    for consumer in [&mut named, &mut pattern] {
        let messages = receive(consumer, 3).await;
        let texts: BTreeSet<String> = texts(&messages).into_iter().collect();
        assert_eq!(texts, BTreeSet::from_iter(numbers(0..3)));
        soon(consumer.ack_many_durable(&messages)).await;
    }
    let late = soon(client.producer(format!("{topic}-late")).build()).await;
    soon(late.send("late")).await;
    assert_eq!(texts(&receive(&mut pattern, 1).await), ["late"]);
}

#[tokio::test]
async fn a_pattern_survives_what_a_broker_refuses() {
    let (client, topic, _server) = setup("refused").await;
    let name = |end: &str| format!("{topic}-{end}");
    let of = |topics: Topics, sub_type: SubType| {
        let consumer = client.consumer(topics).subscription("s").sub_type(sub_type);
        consumer.initial_position(InitialPosition::Earliest)
    };
    let first = soon(client.producer(name("a")).build()).await;
    let pattern = of(Topics::pattern(name(".*")), SubType::Shared);
    let pattern = pattern.discovery_interval(Duration::from_millis(100));
    let mut pattern = soon(pattern.build()).await;
    // The subscription has another consumer, so nobody may delete it.
    let beside = soon(of(name("a").into(), SubType::Shared).build()).await;
    let refused = tokio::time::timeout(PATIENCE, pattern.unsubscribe()).await;
    refused.expect("in time").expect_err("refused");
    soon(beside.close()).await;
    soon(first.send("a")).await;
    assert_eq!(texts(&receive(&mut pattern, 1).await), ["a"]);

    // A topic that refuses takes one place, however often it is asked, and is read once it does not.
    let handle = pattern.handle();
    let mut number = 0;
    let (refuses, alone) = loop {
        let refuses = name(&format!("b{number}"));
        match of(refuses.clone().into(), SubType::Exclusive).build().await {
            Ok(alone) => break (refuses, alone),
            // The pattern was there first.
            Err(_) => number += 1,
        }
    };
    let second = soon(client.producer(&refuses).build()).await;
    let one_more = format!("topics: {}", handle.topics().len() + 1);
    let asked = async {
        while !format!("{handle:?}").contains(&one_more) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    };
    soon(asked).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!handle.topics().contains(&refuses), "{handle:?}");
    soon(alone.close()).await;
    soon(second.send("b")).await;
    assert_eq!(texts(&receive(&mut pattern, 1).await), ["b"]);
    assert!(format!("{handle:?}").contains(&one_more), "{handle:?}");
}

/// And the broker says when there is another topic: the interval of looking is a minute.
#[tokio::test]
async fn what_is_named_and_matched_is_read_once() {
    let (client, topic, _server) = setup("sel").await;
    let name = |end: &str| format!("{topic}-{end}");
    for end in ["a", "b", "out"] {
        let producer = soon(client.producer(name(end)).build()).await;
        soon(producer.send(end)).await;
    }
    let selection = Selection {
        names: vec![name("a"), name("a")],
        patterns: vec![name(".*"), name("b")],
        except: vec![name("out")],
        except_ending: Some("-dead".to_owned()),
    };
    let consumer = client.consumer(selection).subscription("s");
    let consumer = consumer.initial_position(InitialPosition::Earliest);
    let mut consumer = soon(consumer.sub_type(SubType::Shared).build()).await;
    assert_eq!(consumer.topics().len(), 2);
    for end in ["late-dead", "late"] {
        let producer = soon(client.producer(name(end)).build()).await;
        soon(producer.send(end)).await;
    }
    let got: BTreeSet<String> = texts(&receive(&mut consumer, 3).await)
        .into_iter()
        .collect();
    assert_eq!(got, ["a", "b", "late"].map(str::to_owned).into());
    assert_eq!(consumer.topics().len(), 3);
    let handle = consumer.handle();
    soon(consumer.close()).await;
    // Nobody joins what is closed.
    let producer = soon(client.producer(name("later")).build()).await;
    soon(producer.send("later")).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(handle.topics(), Vec::<String>::new());
}

#[tokio::test]
async fn refusals_are_errors_with_the_brokers_code() {
    use geminga_client::ServerError;
    let (client, topic, _server) = setup("refusals").await;
    let _first = soon(client.consumer(&topic).subscription("s").build()).await;
    let second = client.consumer(&topic).subscription("s").build().await;
    assert_eq!(
        second.unwrap_err().server_error(),
        Some(ServerError::ConsumerBusy)
    );
    let _producer = soon(client.producer(&topic).name("p").build()).await;
    let second = client.producer(&topic).name("p").build().await;
    assert_eq!(
        second.unwrap_err().server_error(),
        Some(ServerError::ProducerBusy)
    );
    let bad = client.producer("persistent://a/b").build().await;
    assert!(bad.unwrap_err().to_string().contains("persistent://a/b"));
}

#[tokio::test]
async fn partitions_are_one_topic_and_a_key_stays_in_one_of_them() {
    // Only on our own broker: it makes the topic partitioned when it is first used.
    let server = Server::with(BrokerConfig {
        allow_auto_topic_creation_type: TopicType::Partitioned,
        default_num_partitions: 3,
        ..BrokerConfig::default()
    })
    .await;
    let client = server.client();
    let producer = soon(client.producer("parts").batching(Batching::off()).build()).await;
    assert_eq!(
        (
            producer.partitions(),
            soon(client.partitions("parts")).await
        ),
        (3, 3)
    );
    let consumer = client
        .consumer("parts")
        .subscription("s")
        .sub_type(SubType::Shared);
    let mut consumer = soon(consumer.build()).await;
    let mut sent = std::collections::BTreeMap::new();
    for i in 0..30 {
        let key = format!("k{}", i % 5);
        let id = soon(producer.send(Message::new(i.to_string()).key(&*key))).await;
        assert_eq!(*sent.entry(key).or_insert(id.partition), id.partition);
    }
    assert!(
        sent.values().collect::<BTreeSet<_>>().len() > 1,
        "all keys in one partition"
    );
    let messages = receive(&mut consumer, 30).await;
    for message in &messages {
        assert_eq!(message.id.partition, sent[message.key.as_ref().unwrap()]);
        assert!(
            message
                .topic
                .ends_with(&format!("-partition-{}", message.id.partition))
        );
        // The id alone tells the partition.
        soon(consumer.ack(&message.id)).await;
    }
    consumer.flush_acks();
    let mut reader = soon(client.reader("parts").start(MessageId::EARLIEST).build()).await;
    let mut read = BTreeSet::new();
    while soon(reader.has_message_available()).await {
        read.insert(soon(reader.next()).await.payload);
    }
    assert_eq!(read.len(), 30);
    soon(consumer.close()).await;
    let again = client
        .consumer("parts")
        .subscription("s")
        .sub_type(SubType::Shared);
    let mut again = soon(again.build()).await;
    soon(producer.send("new")).await;
    assert_eq!(texts(&receive(&mut again, 1).await), ["new"]);
}
