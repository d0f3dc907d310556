//! Consumers when the broker misbehaves, vanishes and comes back.

use std::time::Duration;

use geminga_client::{Consumer, Message, MessageId, SubType};
use geminga_proto::pb::command_lookup_topic_response::LookupType;
use geminga_proto::{Command, MessageId as Id, command, message, pb};

use crate::fake::{Fake, Session, fake};

async fn consumer(sub_type: SubType, queue: usize) -> (Consumer, Fake, Session, u64) {
    let (builder, mut fake) = fake();
    let client = builder.build();
    let building = client
        .consumer("t")
        .subscription("s")
        .sub_type(sub_type)
        .receiver_queue_size(queue)
        .build();
    let (consumer, (session, id)) = tokio::join!(building, async {
        let mut session = fake.accept().await;
        let (subscribe, permits) = session.subscribe().await;
        assert_eq!(permits as usize, queue);
        (session, subscribe.consumer_id)
    });
    (consumer.unwrap(), fake, session, id)
}

async fn text(consumer: &mut Consumer) -> String {
    String::from_utf8(consumer.recv().await.unwrap().payload.to_vec()).unwrap()
}

async fn flow(session: &mut Session) -> u32 {
    match session.command().await {
        Command::Flow(flow) => flow.message_permits,
        other => panic!("no FLOW: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn permits_go_back_when_half_the_queue_is_read() {
    let (mut consumer, _fake, mut session, id) = consumer(SubType::Shared, 4).await;
    for entry in 0..4 {
        session.deliver(id, entry, &entry.to_string()).await;
    }
    for round in 0..2 {
        assert_eq!(text(&mut consumer).await, (2 * round).to_string());
        assert_eq!(text(&mut consumer).await, (2 * round + 1).to_string());
        assert_eq!(flow(&mut session).await, 2);
    }
    consumer.pause();
    for entry in 4..8 {
        session.deliver(id, entry, "x").await;
        consumer.recv().await.unwrap();
    }
    consumer.resume();
    assert_eq!(flow(&mut session).await, 4);
}

/// The bytes that a broker may have sent and nobody took, while each permit is used at once.
#[tokio::test(start_paused = true)]
async fn large_messages_wait_at_the_broker_and_all_of_them_come() {
    const LARGE: usize = 1 << 20;
    let (builder, mut fake) = fake();
    let client = builder.build();
    let building = client
        .consumer("t")
        .subscription("s")
        .sub_type(SubType::Shared)
        .receiver_queue_size(100)
        .receiver_queue_bytes(4 * LARGE)
        .build();
    let (consumer, (mut session, id, mut permits)) = tokio::join!(building, async {
        let mut session = fake.accept().await;
        let (subscribe, permits) = session.subscribe().await;
        (session, subscribe.consumer_id, permits)
    });
    let mut consumer = consumer.unwrap();
    let (mut sent, mut taken) = (0_u64, 0_u64);
    let mut round = async |size: usize, count: u64, waiting_max: u64| {
        let payload = "x".repeat(size);
        for _ in 0..count {
            while permits > 0 {
                session.deliver(id, sent, &payload).await;
                (sent, permits) = (sent + 1, permits - 1);
                permits += session.flows().await;
            }
            assert!(
                sent - taken <= waiting_max,
                "{} of {size} bytes wait",
                sent - taken
            );
            let message = consumer.recv().await.unwrap();
            assert_eq!(message.id.entry_id, i64::try_from(taken).unwrap());
            taken += 1;
            permits += session.flows().await;
        }
        sent - taken
    };
    // The largest that the broker takes, of whose size nothing is known first.
    round(LARGE, 40, 4).await;
    // Small ones: the whole queue, in the end.
    assert!(round(10, 300, 100).await >= 50);
    // What was permitted comes; then as many as fit.
    round(LARGE, 200, 100).await;
    round(LARGE, 40, 4).await;
}

#[tokio::test]
async fn a_batch_ends_with_the_message_that_makes_it_large() {
    let (mut consumer, _fake, mut session, id) = consumer(SubType::Shared, 10).await;
    session.deliver_batch(id, 0, &["1234", "5678", "9"]).await;
    session.deliver(id, 1, "last").await;
    let mut sizes = Vec::new();
    while sizes.iter().sum::<usize>() < 4 {
        let batch = consumer.recv_batch_within(10, 8).await.unwrap();
        let payloads = batch.iter().map(|message| message.payload.len());
        assert!(payloads.clone().rev().skip(1).sum::<usize>() < 8);
        sizes.push(payloads.count());
    }
    assert_eq!(sizes[0], 2);
}

#[tokio::test(start_paused = true)]
async fn after_a_lost_connection_everything_comes_anew_and_acks_are_not_lost() {
    let (mut consumer, mut fake, mut session, id) = consumer(SubType::Shared, 10).await;
    for entry in 0..3 {
        session.deliver(id, entry, &entry.to_string()).await;
    }
    let first = consumer.recv().await.unwrap();
    drop(session);
    let mut session = fake.accept().await;
    // Before the link is open again.
    consumer.ack(&first).await.unwrap();
    let Command::Subscribe(subscribe) = session.command().await else {
        panic!("no SUBSCRIBE")
    };
    session.send(command::success(subscribe.request_id)).await;
    let Command::Ack(ack) = session.command().await else {
        panic!("no ACK")
    };
    assert_eq!(Id::from(&ack.message_id[0]), first.id);
    assert_eq!(flow(&mut session).await, 10);
    // The two that waited in the queue are the broker's to send again, to whom it likes.
    session.deliver(id, 2, "2").await;
    assert_eq!(text(&mut consumer).await, "2");
    assert!(consumer.try_recv().is_none());
}

#[tokio::test(start_paused = true)]
async fn acks_are_gathered_and_durable_ones_wait_for_the_answer() {
    let (mut consumer, _fake, mut session, id) = consumer(SubType::Shared, 10).await;
    let mut messages = Vec::new();
    for entry in 0..4 {
        session.deliver(id, entry, "x").await;
        messages.push(consumer.recv().await.unwrap());
    }
    consumer.ack(&messages[0]).await.unwrap();
    consumer.ack(&messages[1].id).await.unwrap();
    let Command::Ack(ack) = session.command().await else {
        panic!("no ACK")
    };
    assert_eq!((ack.message_id.len(), ack.request_id), (2, None));
    let broker = async {
        let Command::Ack(ack) = session.command().await else {
            panic!("no ACK")
        };
        assert_eq!(ack.message_id.len(), 2);
        let answer = pb::CommandAckResponse {
            consumer_id: id,
            request_id: ack.request_id,
            ..Default::default()
        };
        session.send(answer).await;
    };
    let (acked, ()) = tokio::join!(consumer.ack_many_durable(&messages[2..]), broker);
    acked.unwrap();
}

#[tokio::test(start_paused = true)]
async fn refused_messages_are_asked_for_when_their_time_comes() {
    let (mut consumer, _fake, mut session, id) = consumer(SubType::Shared, 10).await;
    session.deliver(id, 0, "a").await;
    session.deliver(id, 1, "b").await;
    let (a, b) = (
        consumer.recv().await.unwrap(),
        consumer.recv().await.unwrap(),
    );
    consumer
        .nack_after(&a, Duration::from_secs(20))
        .await
        .unwrap();
    consumer
        .nack_after(&b, Duration::from_secs(10))
        .await
        .unwrap();
    let begin = tokio::time::Instant::now();
    for (seconds, entry) in [(10, 1), (20, 0)] {
        let Command::RedeliverUnacknowledgedMessages(command) = session.command().await else {
            panic!("no REDELIVER")
        };
        let waited = begin.elapsed().as_secs_f64();
        assert!((waited - f64::from(seconds)).abs() < 0.1, "{waited}");
        assert_eq!(command.message_ids[0].entry_id, entry);
    }
}

#[tokio::test(start_paused = true)]
async fn an_exclusive_consumer_drops_what_is_older_than_its_refusal() {
    let (mut consumer, _fake, mut session, id) = consumer(SubType::Exclusive, 10).await;
    for entry in 0..3 {
        session.deliver(id, entry, &entry.to_string()).await;
    }
    let first = consumer.recv().await.unwrap();
    consumer.nack_after(&first, Duration::ZERO).await.unwrap();
    let Command::RedeliverUnacknowledgedMessages(command) = session.command().await else {
        panic!("no REDELIVER")
    };
    assert_eq!(
        (command.message_ids.len(), command.consumer_epoch),
        (0, Some(1))
    );
    session.deliver(id, 0, "0 again").await;
    assert_eq!(text(&mut consumer).await, "0 again");
}

#[tokio::test(start_paused = true)]
async fn a_broken_message_is_acknowledged_with_the_reason() {
    let (mut consumer, _fake, mut session, id) = consumer(SubType::Shared, 10).await;
    let metadata = pb::MessageMetadata {
        producer_name: "p".into(),
        ..Default::default()
    };
    let mut block = message::encode_headers(&metadata, b"good");
    block.extend_from_slice(b"evil");
    session.deliver_block(id, 0, &block).await;
    session.deliver_block(id, 1, b"\x0e\x01").await;
    session.deliver(id, 2, "fine").await;
    assert_eq!(text(&mut consumer).await, "fine");
    let Command::Ack(ack) = session.command().await else {
        panic!("no ACK")
    };
    let mismatch = pb::command_ack::ValidationError::ChecksumMismatch;
    assert_eq!(
        (ack.message_id[0].entry_id, ack.validation_error()),
        (0, mismatch)
    );
    let Command::Ack(ack) = session.command().await else {
        panic!("no ACK")
    };
    assert_eq!(ack.message_id[0].entry_id, 1);
}

#[tokio::test(start_paused = true)]
async fn a_reader_goes_on_after_what_it_read() {
    let (builder, mut fake) = fake();
    let client = builder.build();
    let building = client.reader("t").start(MessageId::EARLIEST).build();
    let (reader, (mut session, id)) = tokio::join!(building, async {
        let mut session = fake.accept().await;
        let (subscribe, _) = session.subscribe().await;
        assert_eq!(subscribe.durable, Some(false));
        assert_eq!(subscribe.start_message_id.unwrap().ledger_id, u64::MAX);
        (session, subscribe.consumer_id)
    });
    let mut reader = reader.unwrap();
    for entry in 0..3 {
        session.deliver(id, entry, &entry.to_string()).await;
    }
    assert_eq!(reader.next().await.unwrap().payload, "0");
    assert_eq!(reader.next().await.unwrap().payload, "1");
    drop(session);
    let mut session = fake.accept().await;
    let (subscribe, _) = session.subscribe().await;
    let start = subscribe.start_message_id.unwrap();
    assert_eq!((start.ledger_id, start.entry_id), (1, 1));
    // The broker sends the named entry again; it was read.
    for entry in 1..3 {
        session.deliver(id, entry, &entry.to_string()).await;
    }
    assert_eq!(reader.next().await.unwrap().payload, "2");
}

#[tokio::test(start_paused = true)]
async fn a_reader_keeps_the_rest_of_a_batch_over_a_lost_link() {
    let (builder, mut fake) = fake();
    let client = builder.build();
    let building = client.reader("t").start(MessageId::EARLIEST).build();
    let (reader, (mut session, id)) = tokio::join!(building, async {
        let mut session = fake.accept().await;
        let (subscribe, _) = session.subscribe().await;
        (session, subscribe.consumer_id)
    });
    let mut reader = reader.unwrap();
    session.deliver_batch(id, 0, &["0", "1", "2"]).await;
    session.deliver_batch(id, 1, &["3", "4"]).await;
    let first = reader.next_batch(2).await.unwrap();
    assert_eq!(first.len(), 2);
    drop(session);
    let mut session = fake.accept().await;
    let (subscribe, _) = session.subscribe().await;
    let start = subscribe.start_message_id.unwrap();
    assert_eq!((start.ledger_id, start.entry_id), (1, 0));
    session.deliver_batch(id, 0, &["0", "1", "2"]).await;
    session.deliver_batch(id, 1, &["3", "4"]).await;
    session.deliver(id, 2, "5").await;
    for expected in ["2", "3", "4", "5"] {
        assert_eq!(reader.next().await.unwrap().payload, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_seek_waits_with_its_new_link_for_the_answer() {
    let (mut consumer, _fake, mut session, id) = consumer(SubType::Shared, 10).await;
    session.deliver(id, 5, "old").await;
    session.deliver(id, 6, "old too").await;
    assert_eq!(text(&mut consumer).await, "old");
    let broker = async {
        let Command::Seek(seek) = session.command().await else {
            panic!("no SEEK")
        };
        session.deliver(id, 7, "old at last").await;
        let close = pb::CommandCloseConsumer {
            consumer_id: id,
            request_id: u64::MAX,
            ..Default::default()
        };
        session.send(close).await;
        let early = tokio::time::timeout(Duration::from_secs(1), session.command()).await;
        assert!(early.is_err(), "{early:?} before the cursor has moved");
        session.send(command::success(seek.request_id)).await;
        session.subscribe().await;
        session.deliver(id, 1, "new").await;
    };
    let (sought, ()) = tokio::join!(consumer.seek(MessageId::entry(1, 1)), broker);
    sought.unwrap();
    assert_eq!(text(&mut consumer).await, "new");
}

#[tokio::test(start_paused = true)]
async fn lookups_are_followed_to_the_broker_that_owns_the_topic() {
    let (builder, mut fake) = fake();
    let client = builder.build();
    let broker = async {
        let mut first = fake.accept().await;
        // The partitions; the lookup is this test's own.
        first.answers_lookups = false;
        let Command::PartitionedMetadata(request) = first.command().await else {
            panic!()
        };
        let answer = pb::CommandPartitionedTopicMetadataResponse {
            request_id: request.request_id,
            ..Default::default()
        };
        first.send(answer).await;
        let Command::Lookup(lookup) = first.command().await else {
            panic!("no LOOKUP")
        };
        assert_eq!(lookup.authoritative, Some(false));
        first
            .found(
                lookup.request_id,
                "pulsar://second:6650",
                LookupType::Redirect,
            )
            .await;
        let mut second = fake.accept().await;
        second.answers_lookups = false;
        let Command::Lookup(lookup) = second.command().await else {
            panic!("no LOOKUP")
        };
        assert_eq!(lookup.authoritative, Some(true));
        second
            .found(
                lookup.request_id,
                "pulsar://third:6650",
                LookupType::Connect,
            )
            .await;
        let mut third = fake.accept().await;
        third.producer().await;
        let sent = third.sent().await;
        third.receipt(&sent, 0).await;
        (first, second, third)
    };
    let client = &client;
    let producing = async move {
        let producer = client.producer("t").build().await.unwrap();
        producer.send(Message::new("x")).await.unwrap();
    };
    tokio::join!(producing, broker);
}

#[tokio::test(start_paused = true)]
async fn behind_a_proxy_the_service_url_is_used() {
    let (builder, mut fake) = fake();
    let client = builder.build();
    let broker = async {
        let mut first = fake.accept().await;
        first.answers_lookups = false;
        let Command::PartitionedMetadata(request) = first.command().await else {
            panic!()
        };
        let answer = pb::CommandPartitionedTopicMetadataResponse {
            request_id: request.request_id,
            ..Default::default()
        };
        first.send(answer).await;
        let Command::Lookup(lookup) = first.command().await else {
            panic!("no LOOKUP")
        };
        let answer = pb::CommandLookupTopicResponse {
            request_id: lookup.request_id,
            broker_service_url: Some("pulsar://inside:6650".into()),
            response: Some(LookupType::Connect as i32),
            proxy_through_service_url: Some(true),
            ..Default::default()
        };
        first.send(answer).await;
        let mut proxied = fake.accept_raw().await;
        let connect = proxied.connected().await;
        assert_eq!(connect.proxy_to_broker_url.as_deref(), Some("inside:6650"));
        proxied.producer().await;
        (first, proxied)
    };
    let (producer, _sessions) = tokio::join!(client.producer("t").build(), broker);
    producer.unwrap();
}
