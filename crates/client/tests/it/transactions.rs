//! Transactions against our own broker, or the one that `GEMINGA_TEST_SERVICE_URL` names.

use std::time::Duration;

use geminga_client::{
    Batching, Client, Error, InitialPosition, Message, ServerError, SubType, Transaction,
};
use geminga_proto::{Command, pb};

use crate::broker::{PATIENCE, Server, is_outside, receive, setup, soon, texts};
use crate::fake::{Session, fake};

const LONG: Duration = Duration::from_secs(60);

async fn consumer(client: &Client, topic: &str, subscription: &str) -> geminga_client::Consumer {
    let builder = client
        .consumer(topic)
        .subscription(subscription)
        .sub_type(SubType::Shared)
        .initial_position(InitialPosition::Earliest);
    soon(builder.build()).await
}

async fn nothing_comes(consumer: &mut geminga_client::Consumer) {
    let got = tokio::time::timeout(Duration::from_millis(300), consumer.recv()).await;
    assert!(got.is_err(), "came: {got:?}");
}

#[tokio::test]
async fn messages_and_acks_count_together_when_committed() {
    let (client, topic, _server) = setup("txn-commit").await;
    let (a, b) = (format!("{topic}-a"), format!("{topic}-b"));
    let input = soon(client.producer(&topic).batching(Batching::off()).build()).await;
    let mut source = consumer(&client, &topic, "s").await;
    for n in 0..3 {
        soon(input.send(Message::new(format!("in-{n}")))).await;
    }
    let got = receive(&mut source, 3).await;
    let (to_a, to_b) = (
        soon(client.producer(&a).build()).await,
        soon(client.producer(&b).build()).await,
    );
    let (mut from_a, mut from_b) = (
        consumer(&client, &a, "s").await,
        consumer(&client, &b, "s").await,
    );

    let txn = soon(client.transaction(LONG)).await;
    for n in 0..100 {
        soon(to_a.post_in(&txn, Message::new(format!("a-{n}")))).await;
    }
    let receipt = soon(to_b.enqueue_in(&txn, Message::new("b"))).await;
    soon(source.handle().ack_many_in(&txn, &got)).await;
    soon(receipt).await;
    nothing_comes(&mut from_a).await;
    soon(txn.commit()).await;
    let wanted: Vec<String> = (0..100).map(|n| format!("a-{n}")).collect();
    assert_eq!(texts(&receive(&mut from_a, 100).await), wanted);
    assert_eq!(texts(&receive(&mut from_b, 1).await), ["b"]);
    assert!(matches!(
        txn.commit().await,
        Err(geminga_client::Error::TransactionOver)
    ));

    // What is acknowledged does not come again.
    soon(source.close()).await;
    let mut source = consumer(&client, &topic, "s").await;
    nothing_comes(&mut source).await;
}

#[tokio::test]
async fn an_abort_undoes_both_and_so_does_dropping() {
    let (client, topic, _server) = setup("txn-abort").await;
    let out = format!("{topic}-out");
    let input = soon(client.producer(&topic).build()).await;
    let mut source = consumer(&client, &topic, "s").await;
    soon(input.send("in")).await;
    let to_out = soon(client.producer(&out).build()).await;
    let mut from_out = consumer(&client, &out, "s").await;
    for way in ["abort", "drop"] {
        let got = receive(&mut source, 1).await;
        let txn = soon(client.transaction(LONG)).await;
        soon(to_out.post_in(&txn, way)).await;
        soon(source.handle().ack_many_in(&txn, &got)).await;
        match way {
            "abort" => soon(txn.abort()).await,
            _ => drop(txn),
        }
        // It is not acknowledged: a consumer that begins anew gets it.
        soon(source.close()).await;
        source = consumer(&client, &topic, "s").await;
    }
    assert_eq!(texts(&receive(&mut source, 1).await), ["in"]);
    soon(to_out.send("after")).await;
    assert_eq!(texts(&receive(&mut from_out, 1).await), ["after"]);
}

#[tokio::test]
async fn the_second_who_acks_in_a_transaction_is_refused_and_cannot_commit() {
    let (client, topic, _server) = setup("txn-conflict").await;
    let out = format!("{topic}-out");
    let input = soon(client.producer(&topic).build()).await;
    let mut source = consumer(&client, &topic, "s").await;
    soon(input.send("in")).await;
    let got = receive(&mut source, 1).await;
    let first = soon(client.transaction(LONG)).await;
    soon(source.handle().ack_in(&first, &got[0])).await;
    let second = soon(client.transaction(LONG)).await;
    let to_out = soon(client.producer(&out).build()).await;
    soon(to_out.post_in(&second, "twice")).await;
    let conflict = |error: geminga_client::Error| {
        error.server_error() == Some(ServerError::TransactionConflict)
    };
    let refused = source.handle().ack_in(&second, &got[0]).await;
    assert!(refused.is_err_and(conflict));
    assert!(second.commit().await.is_err_and(conflict));
    soon(first.commit()).await;
    // Nor can a third, when the first is long over.
    let third = soon(client.transaction(LONG)).await;
    let refused = source.handle().ack_in(&third, &got[0]).await;
    assert!(refused.is_err_and(conflict));
    let mut from_out = consumer(&client, &out, "s").await;
    soon(to_out.send("after")).await;
    assert_eq!(texts(&receive(&mut from_out, 1).await), ["after"]);
}

#[tokio::test]
async fn a_transaction_that_takes_too_long_is_aborted() {
    let (client, topic, _server) = setup("txn-timeout").await;
    let producer = soon(client.producer(&topic).build()).await;
    let mut reader = consumer(&client, &topic, "s").await;
    // A message that Apache Pulsar stores after its transaction has timed out holds back the topic for
    // good there: it has to be in time.
    let limit_ms = if is_outside() { 5_000 } else { 300 };
    let txn = soon(client.transaction(Duration::from_millis(limit_ms))).await;
    let late = soon(producer.enqueue_in(&txn, "late")).await;
    soon(late).await;
    soon(producer.send("after")).await;
    // Nothing behind it is seen before it has timed out.
    assert_eq!(texts(&receive(&mut reader, 1).await), ["after"]);
    let late = tokio::time::timeout(PATIENCE, txn.commit()).await.unwrap();
    let error = late.expect_err("it was aborted").server_error();
    assert!(
        matches!(
            error,
            Some(ServerError::InvalidTxnStatus | ServerError::TransactionNotFound)
        ),
        "{error:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_abort_goes_behind_all_that_is_under_way() {
    // Whether it is asked for, or what becomes of a commit when something has failed.
    for asked in [true, false] {
        let (builder, mut fake) = fake();
        let client = builder.build();
        let building = client.producer("t").batching(Batching::off()).build();
        let (producer, mut session) = tokio::join!(building, async {
            let mut session = fake.accept().await;
            session.producer().await;
            session
        });
        let producer = producer.unwrap();
        let txn = begun(&client, &mut session).await;
        let (first, send) = tokio::join!(producer.enqueue_in(&txn, "first"), next(&mut session));
        assert!(matches!(send, Command::Send(_)), "{send:?}");
        let first = first.unwrap();
        let second = producer.enqueue_in(&txn, "second").await.unwrap();
        let sent = session.sent().await;
        let ending = async {
            match asked {
                true => txn.abort().await,
                false => txn.commit().await,
            }
        };
        let (ended, ()) = tokio::join!(ending, async {
            let Command::Send(send) = send else {
                return;
            };
            session
                .refuse_send(&send, ServerError::NotAllowedError)
                .await;
            let wait = Duration::from_secs(5);
            let early = tokio::time::timeout(wait, session.command()).await;
            assert!(
                early.is_err(),
                "before the second had its receipt: {early:?}"
            );
            session.receipt(&sent, 1).await;
            let end = self::ended(&mut session, None).await;
            assert_eq!(end.txn_action, Some(pb::TxnAction::Abort as i32));
        });
        assert_eq!(ended.is_ok(), asked, "{ended:?}");
        assert!(first.await.is_err());
        second.await.unwrap();
    }
}

#[tokio::test]
async fn a_message_that_comes_after_its_transaction_timed_out_holds_back_nobody() {
    let (client, topic, _server) = setup("txn-too-late").await;
    let producer = soon(client.producer(&topic).batching(Batching::off()).build()).await;
    let mut reader = consumer(&client, &topic, "s").await;
    let limit_ms = if is_outside() { 3_000 } else { 300 };
    let txn = soon(client.transaction(Duration::from_millis(limit_ms))).await;
    let early = soon(producer.enqueue_in(&txn, "early")).await;
    soon(early).await;
    soon(producer.send("after")).await;
    assert_eq!(texts(&receive(&mut reader, 1).await), ["after"]);
    let late = soon(producer.enqueue_in(&txn, "too late")).await;
    // Whether it is refused or stored and never shown is the broker's matter.
    _ = tokio::time::timeout(PATIENCE, late).await.unwrap();
    soon(producer.send("goes on")).await;
    assert_eq!(texts(&receive(&mut reader, 1).await), ["goes on"]);
}

#[tokio::test]
async fn a_batch_may_be_acked_by_several_transactions() {
    let (client, topic, _server) = setup("txn-batch").await;
    let batching = Batching {
        max_delay: Some(Duration::from_secs(5)),
        max_messages: 4,
        ..Batching::default()
    };
    let input = soon(client.producer(&topic).batching(batching).build()).await;
    let mut source = consumer(&client, &topic, "s").await;
    for n in 0..4 {
        soon(input.post(Message::new(format!("{n}")))).await;
    }
    let got = receive(&mut source, 4).await;
    assert_eq!(got[3].id.batch_size, 4, "they came as one batch");
    let kept = soon(client.transaction(LONG)).await;
    soon(source.handle().ack_many_in(&kept, &got[..2])).await;
    let undone = soon(client.transaction(LONG)).await;
    soon(source.handle().ack_many_in(&undone, &got[2..])).await;
    soon(kept.commit()).await;
    soon(undone.abort()).await;
    soon(source.close()).await;
    let mut source = consumer(&client, &topic, "s").await;
    let again = texts(&receive(&mut source, 2).await);
    // A broker without batch-index acks gives the whole batch again.
    assert_eq!(again, ["2", "3"]);
}

#[tokio::test]
async fn a_broker_without_transactions_says_so() {
    let config = geminga_broker::BrokerConfig {
        transaction_coordinator_enabled: false,
        ..Default::default()
    };
    let server = Server::with(config).await;
    let refused = server.client().transaction(LONG).await;
    assert!(
        matches!(refused, Err(geminga_client::Error::NoTransactions)),
        "{refused:?}"
    );
}

/// Answers everything but SEND and END_TXN, of which it gives the next.
async fn next(session: &mut Session) -> Command {
    loop {
        match session.command().await {
            Command::TcClientConnectRequest(request) => {
                let answer = pb::CommandTcClientConnectResponse {
                    request_id: request.request_id,
                    ..Default::default()
                };
                session.send(answer).await;
            }
            Command::NewTxn(request) => {
                let answer = pb::CommandNewTxnResponse {
                    request_id: request.request_id,
                    txnid_least_bits: Some(7),
                    txnid_most_bits: Some(0),
                    ..Default::default()
                };
                session.send(answer).await;
            }
            Command::AddPartitionToTxn(request) => {
                let answer = pb::CommandAddPartitionToTxnResponse {
                    request_id: request.request_id,
                    ..Default::default()
                };
                session.send(answer).await;
            }
            Command::Producer(producer) => {
                let success = pb::CommandProducerSuccess {
                    request_id: producer.request_id,
                    producer_name: "given".into(),
                    last_sequence_id: Some(-1),
                    ..Default::default()
                };
                session.send(success).await;
            }
            command => return command,
        }
    }
}

async fn ended(session: &mut Session, error: Option<ServerError>) -> pb::CommandEndTxn {
    let command = next(session).await;
    let Command::EndTxn(end) = command else {
        panic!("no END_TXN: {command:?}")
    };
    let answer = pb::CommandEndTxnResponse {
        request_id: end.request_id,
        error: error.map(|error| error as i32),
        ..Default::default()
    };
    session.send(answer).await;
    end
}

async fn begun(client: &Client, session: &mut Session) -> Transaction {
    tokio::select! {
        txn = client.transaction(LONG) => txn.unwrap(),
        other = next(session) => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_fails_what_was_sent_in_a_transaction_and_sends_the_rest_again() {
    let (builder, mut fake) = fake();
    let client = builder.build();
    let building = client.producer("t").batching(Batching::off()).build();
    let (producer, mut session) = tokio::join!(building, async {
        let mut session = fake.accept().await;
        session.producer().await;
        session
    });
    let producer = producer.unwrap();
    let txn = begun(&client, &mut session).await;
    let other = tokio::join!(producer.enqueue_in(&txn, "in"), async {
        let Command::Send(send) = next(&mut session).await else {
            panic!("no SEND")
        };
        assert_eq!(
            (send.txnid_most_bits, send.txnid_least_bits),
            (Some(0), Some(7))
        );
    });
    let inside = other.0.unwrap();
    let outside = producer.enqueue("outside").await.unwrap();
    assert_eq!(session.sent().await.texts(), ["outside"]);
    drop(session);
    assert!(matches!(inside.await, Err(Error::Disconnected { .. })));

    let mut session = fake.accept().await;
    session.producer().await;
    let again = session.sent().await;
    assert_eq!(again.texts(), ["outside"], "only this is sent again");
    session.receipt(&again, 1).await;
    outside.await.unwrap();
    let (committed, end) = tokio::join!(txn.commit(), ended(&mut session, None));
    assert!(
        matches!(committed, Err(Error::Disconnected { .. })),
        "{committed:?}"
    );
    assert_eq!(end.txn_action, Some(pb::TxnAction::Abort as i32));
}

#[tokio::test(start_paused = true)]
async fn an_end_is_asked_for_again_and_an_unknown_outcome_is_called_so() {
    for (second, known) in [
        (None, true),
        (Some(ServerError::TransactionNotFound), false),
    ] {
        let (builder, mut fake) = fake();
        let client = builder.build();
        let connected = client.connect(LONG);
        let (connected, mut session) = tokio::join!(connected, fake.accept());
        connected.unwrap();
        let txn = begun(&client, &mut session).await;
        let (committed, ()) = tokio::join!(txn.commit(), async {
            assert!(matches!(next(&mut session).await, Command::EndTxn(_)));
            drop(session);
            let mut session = fake.accept().await;
            let end = ended(&mut session, second).await;
            assert_eq!(end.txn_action, Some(pb::TxnAction::Commit as i32));
            // Keeps the connection until the answer is read.
            tokio::time::sleep(Duration::from_secs(1)).await;
        });
        match known {
            true => committed.unwrap(),
            false => assert!(matches!(committed, Err(Error::OutcomeUnknown(_)))),
        }
    }
}
