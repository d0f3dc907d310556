//! Producers when the broker misbehaves, vanishes and comes back.

use std::time::Duration;

use geminga_client::{Batching, Error, Message, Producer, Receipt, ServerError};
use geminga_proto::{Command, pb};

use crate::fake::{Fake, Sent, Session, fake};

/// A producer without batches, and its connection.
async fn plain(fake_broker: (geminga_client::ClientBuilder, Fake)) -> (Producer, Fake, Session) {
    producer_of(fake_broker, Batching::off()).await
}

/// A producer that waits for its receipts without end, and its connection.
async fn producer_of(
    fake_broker: (geminga_client::ClientBuilder, Fake),
    batching: Batching,
) -> (Producer, Fake, Session) {
    let (builder, mut fake) = fake_broker;
    let client = builder.build();
    let building = client
        .producer("t")
        .batching(batching)
        .send_timeout(Duration::ZERO);
    let (producer, session) = tokio::join!(building.build(), async {
        let mut session = fake.accept().await;
        session.producer().await;
        session
    });
    (producer.unwrap(), fake, session)
}

async fn enqueue(producer: &Producer, texts: &[&'static str]) -> Vec<Receipt> {
    let mut receipts = Vec::new();
    for text in texts {
        receipts.push(producer.enqueue(*text).await.unwrap());
    }
    receipts
}

#[tokio::test(start_paused = true)]
async fn what_has_no_receipt_is_sent_again_in_order_after_a_lost_connection() {
    let (producer, mut fake, mut session) = plain(fake()).await;
    let receipts = enqueue(&producer, &["0", "1", "2", "3"]).await;
    let mut sent = Vec::new();
    for _ in 0..4 {
        sent.push(session.sent().await);
    }
    session.receipt(&sent[0], 0).await;
    session.receipt(&sent[1], 1).await;
    // The connection ends once the receipts are read.
    let mut receipts = receipts.into_iter();
    assert_eq!(receipts.next().unwrap().await.unwrap().entry_id, 0);
    assert_eq!(receipts.next().unwrap().await.unwrap().entry_id, 1);
    drop(session);

    let mut session = fake.accept().await;
    let more = enqueue(&producer, &["4"]).await;
    let again = session.producer().await;
    assert_eq!(
        (again.producer_name.as_deref(), again.epoch),
        (Some("given"), Some(1))
    );
    assert_eq!(again.user_provided_producer_name, Some(false));
    for (entry, expected) in (2..).zip(&sent[2..]) {
        let resent = session.sent().await;
        assert_eq!(&resent, expected, "a message changed on its second way");
        session.receipt(&resent, entry).await;
    }
    let last = session.sent().await;
    assert_eq!(
        (last.texts(), last.send.sequence_id),
        (vec!["4".to_owned()], 4)
    );
    session.receipt(&last, 4).await;
    for (entry, receipt) in (2..).zip(receipts.chain(more)) {
        assert_eq!(receipt.await.unwrap().entry_id, entry);
    }
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_moves_takes_the_producer_along() {
    let (producer, _fake, mut session) = plain(fake()).await;
    let mut receipts = enqueue(&producer, &["0", "1"]).await;
    let first = session.sent().await;
    let close = pb::CommandCloseProducer {
        producer_id: first.send.producer_id,
        request_id: u64::MAX,
        ..Default::default()
    };
    session.sent().await;
    session.send(close).await;
    session.producer().await;
    for entry in 0..2 {
        let sent = session.sent().await;
        assert_eq!(sent.send.sequence_id, entry);
        session.receipt(&sent, entry).await;
        assert_eq!(receipts.remove(0).await.unwrap().entry_id, entry as i64);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_message_fails_alone_and_a_storage_failure_is_tried_again() {
    let (producer, mut fake, mut session) = plain(fake()).await;
    let receipts = enqueue(&producer, &["0", "1", "2"]).await;
    let sent = [
        session.sent().await,
        session.sent().await,
        session.sent().await,
    ];
    session
        .refuse(&sent[0], pb::ServerError::NotAllowedError)
        .await;
    session
        .refuse(&sent[1], pb::ServerError::PersistenceError)
        .await;
    let mut receipts = receipts.into_iter();
    let refused = receipts.next().unwrap().await.unwrap_err();
    assert_eq!(refused.server_error(), Some(ServerError::NotAllowedError));
    assert!(session.is_closed().await);
    let mut session = fake.accept().await;
    session.producer().await;
    for entry in 1..3 {
        let sent = session.sent().await;
        assert_eq!(sent.send.sequence_id, entry);
        session.receipt(&sent, entry).await;
        assert_eq!(
            receipts.next().unwrap().await.unwrap().entry_id,
            entry as i64
        );
    }
}

/// Pulsar's brokers say at once what they refuse, before what came earlier is stored, and name a batch by its last message.
#[tokio::test(start_paused = true)]
async fn a_batch_is_refused_before_what_came_before_it_is_confirmed() {
    let (producer, _fake, mut session) = producer_of(fake(), Batching::default()).await;
    let mut receipts = enqueue(&producer, &["0", "1", "2", "3"]).await;
    let first = session.sent().await;
    let flush = producer.flush();
    let broker = async {
        let batch = session.sent().await;
        assert_eq!(batch.send.sequence_id, 1);
        assert_eq!(batch.send.highest_sequence_id, Some(3));
        let named = pb::CommandSend {
            sequence_id: 3,
            ..batch.send
        };
        let error = pb::ServerError::NotAllowedError;
        session.refuse_send(&named, error).await;
        session.receipt(&first, 0).await;
    };
    let both = async { tokio::join!(flush, broker) };
    let done = tokio::time::timeout(Duration::from_secs(1), both).await;
    done.expect("nothing waits any more").0.expect("flushed");
    for refused in receipts.drain(1..) {
        let error = refused.await.unwrap_err();
        assert_eq!(error.server_error(), Some(ServerError::NotAllowedError));
    }
    assert_eq!(receipts.remove(0).await.unwrap().entry_id, 0);
}

#[tokio::test(start_paused = true)]
async fn a_terminated_topic_fails_everything_at_once() {
    let (producer, _fake, mut session) = plain(fake()).await;
    let receipts = enqueue(&producer, &["0", "1"]).await;
    let sent = session.sent().await;
    session
        .refuse(&sent, pb::ServerError::TopicTerminatedError)
        .await;
    for receipt in receipts {
        let error = receipt.await.unwrap_err();
        assert_eq!(
            error.server_error(),
            Some(ServerError::TopicTerminatedError)
        );
    }
    assert!(producer.send("2").await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_message_without_a_receipt_times_out_and_its_late_receipt_is_ignored() {
    let (builder, mut fake) = fake();
    let client = builder.build();
    let building = client
        .producer("t")
        .send_timeout(Duration::from_secs(2))
        .build();
    let (producer, mut session) = tokio::join!(building, async {
        let mut session = fake.accept().await;
        session.producer().await;
        session
    });
    let producer = producer.unwrap();
    let lost = producer.enqueue("lost").await.unwrap();
    let sent = session.sent().await;
    assert!(matches!(
        lost.await,
        Err(Error::Timeout { what: "send", .. })
    ));
    let kept = producer.enqueue("kept").await.unwrap();
    session.receipt(&sent, 0).await;
    let sent = session.sent().await;
    session.receipt(&sent, 1).await;
    assert_eq!(kept.await.unwrap().entry_id, 1);
}

#[tokio::test(start_paused = true)]
async fn messages_gather_while_a_frame_is_under_way() {
    let (builder, mut fake) = fake();
    let client = builder.build();
    let building = client.producer("t").build();
    let (producer, mut session) = tokio::join!(building, async {
        let mut session = fake.accept().await;
        session.producer().await;
        session
    });
    let producer = producer.unwrap();
    let receipts = enqueue(&producer, &["0", "1", "2", "3"]).await;
    let alone: Sent = session.sent().await;
    assert_eq!(alone.texts(), ["0"]);
    session.receipt(&alone, 0).await;
    let rest = session.sent().await;
    assert_eq!(rest.texts(), ["1", "2", "3"]);
    assert_eq!(
        (rest.send.sequence_id, rest.send.highest_sequence_id),
        (1, Some(3))
    );
    assert_eq!(rest.send.num_messages(), 3);
    session.receipt(&rest, 1).await;
    let mut ids = Vec::new();
    for receipt in receipts {
        ids.push(receipt.await.unwrap().to_string());
    }
    assert_eq!(ids, ["1:0:-1", "1:1:-1:0", "1:1:-1:1", "1:1:-1:2"]);
    producer.flush().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_full_window_holds_the_sender_back_until_receipts_come() {
    let (builder, mut fake) = fake();
    let client = builder.build();
    let building = client
        .producer("t")
        .batching(Batching::off())
        .window(2)
        .build();
    let (producer, mut session) = tokio::join!(building, async {
        let mut session = fake.accept().await;
        session.producer().await;
        session
    });
    let producer = producer.unwrap();
    producer.post("0").await.unwrap();
    producer.post("1").await.unwrap();
    assert!(matches!(producer.try_enqueue("2"), Ok(Err(back)) if back == Message::new("2")));
    let held = tokio::time::timeout(Duration::from_secs(1), producer.post("2")).await;
    assert!(held.is_err(), "the window has no room");
    let sent = session.sent().await;
    let (posted, ()) = tokio::join!(producer.post("2"), session.receipt(&sent, 0));
    posted.unwrap();
    assert_eq!(session.sent().await.texts(), ["1"]);
    assert_eq!(session.sent().await.texts(), ["2"]);
}

#[tokio::test(start_paused = true)]
async fn close_waits_for_receipts_and_drop_does_not() {
    let (producer, _fake, mut session) = plain(fake()).await;
    producer.post("0").await.unwrap();
    let broker = async {
        let sent = session.sent().await;
        session.receipt(&sent, 0).await;
        let Command::CloseProducer(close) = session.command().await else {
            panic!("no CLOSE")
        };
        session
            .send(geminga_proto::command::success(close.request_id))
            .await;
    };
    let (closed, ()) = tokio::join!(producer.close(), broker);
    closed.unwrap();

    let (producer, _fake, mut session) = plain(fake()).await;
    let receipt = producer.enqueue("0").await.unwrap();
    drop(producer);
    assert!(matches!(receipt.await, Err(Error::Closed)));
    session.sent().await;
    assert!(matches!(session.command().await, Command::CloseProducer(_)));
}

#[tokio::test(start_paused = true)]
async fn many_receipts_are_waited_for_together() {
    let (producer, _fake, mut session) = plain(fake()).await;
    let (other, _other_fake, mut other_session) = plain(fake()).await;
    let mut receipts = enqueue(&producer, &["0", "1"]).await;
    receipts.extend(enqueue(&other, &["2"]).await);
    receipts.extend(enqueue(&producer, &["3", "4"]).await);
    let mut sent = Vec::new();
    for _ in 0..4 {
        sent.push(session.sent().await);
    }
    let mut all = std::pin::pin!(Receipt::all(receipts));
    let a_while = Duration::from_millis(10);
    session.receipt(&sent[0], 0).await;
    assert!(tokio::time::timeout(a_while, &mut all).await.is_err());
    session.receipt(&sent[1], 1).await;
    assert!(tokio::time::timeout(a_while, &mut all).await.is_err());
    session
        .refuse(&sent[2], pb::ServerError::NotAllowedError)
        .await;
    session.receipt(&sent[3], 3).await;
    // The other producer's stands before the one that failed.
    assert!(tokio::time::timeout(a_while, &mut all).await.is_err());
    let third = other_session.sent().await;
    other_session.receipt(&third, 2).await;
    let Err((which, error)) = all.await else {
        panic!("no failure")
    };
    assert_eq!(which, 3);
    assert!(matches!(error, Error::Server { .. }), "{error}");

    assert!(Receipt::all(Vec::new()).await.is_ok());
    let receipts = enqueue(&producer, &["5", "6"]).await;
    for _ in 0..2 {
        let sent = session.sent().await;
        session.receipt(&sent, 5).await;
    }
    assert!(Receipt::all(receipts).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn garbage_from_the_broker_costs_the_connection_and_nothing_else() {
    let (producer, mut fake, mut session) = plain(fake()).await;
    let receipt = producer.enqueue("0").await.unwrap();
    session.sent().await;
    session.raw(&[0xff; 64]).await;
    assert!(session.is_closed().await);
    let mut session = fake.accept().await;
    session.producer().await;
    let sent = session.sent().await;
    session.receipt(&sent, 0).await;
    receipt.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_silent_broker_is_given_up() {
    let (builder, fake) = fake();
    let builder = builder.keep_alive(Duration::from_secs(5));
    let (_producer, mut fake, mut session) = plain((builder, fake)).await;
    // Nobody reads or answers here for a while.
    let again = tokio::time::timeout(Duration::from_secs(60), fake.accept_raw()).await;
    assert!(again.is_ok(), "the client still waits for a silent broker");
    assert!(session.is_closed().await);
}

#[tokio::test(start_paused = true)]
async fn a_refused_producer_is_an_error_and_a_busy_broker_is_asked_again() {
    let (builder, mut fake) = fake();
    let client = builder.build();
    let broker = async {
        let mut session = fake.accept().await;
        for error in [
            pb::ServerError::ServiceNotReady,
            pb::ServerError::ProducerBusy,
        ] {
            let Command::Producer(producer) = session.command().await else {
                panic!()
            };
            session
                .send(geminga_proto::command::error(
                    producer.request_id,
                    error,
                    "no",
                ))
                .await;
        }
    };
    let (producer, ()) = tokio::join!(client.producer("t").build(), broker);
    assert_eq!(
        producer.unwrap_err().server_error(),
        Some(ServerError::ProducerBusy)
    );
}

#[tokio::test(start_paused = true)]
async fn an_operation_without_an_answer_times_out() {
    let (builder, mut fake) = fake();
    let client = builder.operation_timeout(Duration::from_secs(3)).build();
    let (partitions, _session) = tokio::join!(client.partitions("t"), async {
        let mut session = fake.accept().await;
        session.answers_lookups = false;
        session.command().await;
        session
    });
    assert!(
        matches!(partitions, Err(Error::Timeout { .. })),
        "{partitions:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_window_that_a_waiting_batch_fills_does_not_wait_for_its_delay() {
    let (builder, mut fake) = fake();
    let client = builder.build();
    let delay = Duration::from_secs(20);
    let batching = Batching {
        max_delay: Some(delay),
        ..Batching::default()
    };
    let building = client.producer("t").batching(batching).window(2).build();
    let (producer, mut session) = tokio::join!(building, async {
        let mut session = fake.accept().await;
        session.producer().await;
        session
    });
    let producer = producer.unwrap();
    let begin = tokio::time::Instant::now();
    let posting = async {
        for text in ["0", "1", "2"] {
            producer.post(text).await.unwrap();
        }
    };
    let ((), sent) = tokio::join!(posting, async {
        let sent = session.sent().await;
        session.receipt(&sent, 0).await;
        sent
    });
    assert_eq!(sent.texts(), ["0", "1"]);
    assert!(
        begin.elapsed() < delay,
        "the batch waited though nothing more could join it"
    );
    // Nothing else comes before its time.
    assert_eq!(session.sent().await.texts(), ["2"]);
    assert!(begin.elapsed() >= delay);
}

/// A broker ends the connection of a frame over its limit, each time that it comes: it is never sent.
#[tokio::test(start_paused = true)]
async fn properties_that_are_too_large_are_refused_with_their_message_alone() {
    let (builder, mut fake) = fake();
    let client = builder.build();
    let building = client.producer("t").send_timeout(Duration::ZERO).build();
    let (producer, mut session) = tokio::join!(building, async {
        let mut session = fake.accept().await;
        session.producer().await;
        session
    });
    let producer = producer.unwrap();
    let large = || "x".repeat(2 << 20);
    let first = producer.enqueue("first").await.unwrap();
    for message in [
        Message::new("p").property("p", large()),
        Message::new("k").key(large()),
        Message::new("o").ordering_key(large().into_bytes()),
        // The payload alone would be taken.
        Message::new(vec![7; 1 << 20]).property("p", "x".repeat(10 << 10)),
    ] {
        let refused = producer.enqueue(message).await;
        assert!(
            matches!(refused, Err(Error::MessageTooLarge { .. })),
            "{refused:?}"
        );
    }
    let last = Message::new(vec![7; 1 << 20]).property("p", "x".repeat(8 << 10));
    let last = producer.enqueue(last).await.unwrap();
    for (entry, receipt) in [first, last].into_iter().enumerate() {
        let sent = session.sent().await;
        session.receipt(&sent, entry as u64).await;
        receipt.await.unwrap();
    }
}
