//! Transactions as a client sees them.

use geminga_broker::BrokerConfig;
use geminga_proto::Command;
use geminga_proto::pb::command_ack::AckType::{Cumulative, Individual};
use geminga_proto::pb::command_subscribe::SubType;
use geminga_proto::pb::{CommandTcClientConnectRequest, MessageIdData, ServerError, TxnAction};

use crate::server::{Server, eventually};
use crate::txn::Answer;
use crate::wire::{TOPIC, Wire, bare, subscribe};

const OTHER: &str = "persistent://public/default/other";
const HOUR: u64 = 3_600_000;

async fn ready() -> (Server, Wire) {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, None).await;
    wire.producer(OTHER, 2, None).await;
    (server, wire)
}

async fn reader(wire: &mut Wire, id: u64, topic: &str, kind: SubType) {
    let mut command = subscribe(id, "s", kind);
    command.topic = topic.to_owned();
    wire.subscribe(command).await;
    wire.flow(id, 1_000).await;
}

#[tokio::test]
async fn messages_of_several_topics_show_at_the_commit() {
    let (server, mut wire) = ready().await;
    let mut reading = server.connect().await;
    reader(&mut reading, 1, TOPIC, SubType::Exclusive).await;
    reader(&mut reading, 2, OTHER, SubType::Shared).await;
    let txn = wire.begin(HOUR).await;
    assert_eq!(wire.add_partition(txn, TOPIC).await, Ok(()));
    wire.publish(1, 0, "before").await;
    wire.receipt().await;
    for seq in 1..4 {
        wire.send_in(txn, 1, seq, &format!("a{seq}")).await.unwrap();
        wire.send_in(txn, 2, seq, &format!("b{seq}")).await.unwrap();
    }
    wire.publish(1, 4, "after").await;
    wire.receipt().await;
    // What is in front of the transaction is there, what is behind it waits with it.
    assert_eq!(reading.message_of(1).await.text(), "before");
    reading.quiet().await;
    wire.commit(txn).await;
    for text in ["a1", "a2", "a3", "after"] {
        assert_eq!(reading.message_of(1).await.text(), text);
    }
    for text in ["b1", "b2", "b3"] {
        let got = reading.message_of(2).await;
        assert_eq!(got.text(), text);
        assert_eq!(got.metadata.txnid_least_bits, Some(txn), "whoever named it");
    }
    // Asked again, it says the same.
    wire.commit(txn).await;
    assert_eq!(
        wire.end(txn, TxnAction::Abort).await,
        Err(ServerError::InvalidTxnStatus)
    );
}

/// The subscription stands before the topic's first ledger, and the transaction at its beginning.
#[tokio::test]
async fn a_subscription_of_an_empty_topic_waits() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    for (id, kind) in [(1, SubType::Exclusive), (2, SubType::Shared)] {
        let topic = format!("persistent://public/default/empty-{id}");
        reader(&mut wire, id, &topic, kind).await;
        wire.producer(&topic, id, None).await;
        let txn = wire.begin(HOUR).await;
        wire.send_in(txn, id, 0, "first").await.unwrap();
        wire.quiet().await;
        wire.abort(txn).await;
        let txn = wire.begin(HOUR).await;
        wire.send_in(txn, id, 1, "second").await.unwrap();
        wire.quiet().await;
        wire.commit(txn).await;
        assert_eq!(wire.message().await.text(), "second");
    }
    // And one that stands at the end of a ledger when the next one begins.
    let server = server.crash_and_restart(BrokerConfig::default()).await;
    let mut wire = server.connect().await;
    for id in [1, 2] {
        let topic = format!("persistent://public/default/empty-{id}");
        reader(&mut wire, id, &topic, SubType::Shared).await;
        let message = wire.message_of(id).await;
        wire.ack(id, vec![bare(&message.id)]).await;
        wire.producer(&topic, id, None).await;
        let txn = wire.begin(HOUR).await;
        wire.send_in(txn, id, 2, "third").await.unwrap();
        wire.quiet().await;
        wire.commit(txn).await;
        assert_eq!(wire.message().await.text(), "third");
    }
}

#[tokio::test]
async fn aborted_messages_are_nobodys() {
    for kind in [SubType::Exclusive, SubType::Shared, SubType::KeyShared] {
        let (server, mut wire) = ready().await;
        let mut reading = server.connect().await;
        reader(&mut reading, 1, TOPIC, kind).await;
        let (gone, kept) = (wire.begin(HOUR).await, wire.begin(HOUR).await);
        let plain = wire.publish_all(1, &["plain"]).await.remove(0);
        wire.send_in(gone, 1, 1, "gone").await.unwrap();
        wire.send_in(kept, 1, 2, "kept").await.unwrap();
        wire.send_in(gone, 1, 3, "gone").await.unwrap();
        assert_eq!(reading.message().await.text(), "plain");
        let last = reading.last_message_id(1).await;
        assert_eq!(
            last.entry_id, plain.entry_id,
            "open ones are not the last message"
        );
        wire.abort(gone).await;
        reading.quiet().await;
        wire.commit(kept).await;
        let got = reading.message().await;
        assert_eq!(got.text(), "kept");
        reading.quiet().await;
        let last = reading.last_message_id(1).await;
        assert_eq!(last.entry_id, got.id.entry_id, "nor are aborted ones");
        // Nothing of them is left to be acked either.
        reading.ack(1, vec![bare(&plain), bare(&got.id)]).await;
        let name = TOPIC.parse().unwrap();
        eventually("the backlog is empty", async || {
            let stats = server.broker.topic_stats(&name).await.unwrap();
            (stats.subscriptions["s"].msg_backlog == 0).then_some(())
        })
        .await;
        // Also for who comes later, and after a crash.
        drop((wire, reading));
        let server = server.crash_and_restart(BrokerConfig::default()).await;
        let mut late = server.connect().await;
        late.subscribe(subscribe(1, "late", kind)).await;
        late.flow(1, 100).await;
        assert_eq!(late.texts(2).await, ["plain", "kept"]);
        late.quiet().await;
    }
}

#[tokio::test]
async fn readers_wait_for_the_oldest_open_one_and_no_longer() {
    let (server, mut wire) = ready().await;
    let mut reading = server.connect().await;
    reader(&mut reading, 1, TOPIC, SubType::Shared).await;
    let mut txns = Vec::new();
    for n in 0..200u64 {
        let txn = wire.begin(HOUR).await;
        wire.send_in(txn, 1, n, &n.to_string()).await.unwrap();
        txns.push(txn);
    }
    // The newest first: nobody sees any of it.
    for txn in txns[100..].iter().rev() {
        wire.commit(*txn).await;
    }
    reading.quiet().await;
    // The oldest: the way is free up to the next open one.
    for (n, txn) in txns[..99].iter().enumerate() {
        wire.commit(*txn).await;
        assert_eq!(reading.message().await.text(), n.to_string());
        reading.quiet().await;
    }
    wire.commit(txns[99]).await;
    for n in 99..200 {
        assert_eq!(reading.message().await.text(), n.to_string());
    }
}

#[tokio::test]
async fn acks_count_at_the_commit_and_not_after_an_abort() {
    for kind in [SubType::Exclusive, SubType::Shared, SubType::KeyShared] {
        let (server, mut wire) = ready().await;
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
        let ids = wire.publish_all(1, &["a", "b", "c"]).await;
        let mut reading = server.connect().await;
        reader(&mut reading, 1, TOPIC, kind).await;
        assert_eq!(reading.texts(3).await, ["a", "b", "c"]);
        let txn = wire.begin(HOUR).await;
        assert_eq!(wire.add_subscription(txn, TOPIC, "s").await, Ok(()));
        let two = vec![bare(&ids[0]), bare(&ids[1])];
        assert_eq!(
            reading.ack_in(txn, 1, Individual, two.clone()).await,
            Ok(())
        );
        assert_eq!(backlog().await, 3, "it is not acked yet");
        // Another consumer does not get what waits.
        drop(reading);
        let mut reading = server.connect().await;
        eventually("the dead consumer is off", async || {
            let mut command = subscribe(1, "s", kind);
            command.topic = TOPIC.to_owned();
            reading.try_subscribe(command).await.ok()
        })
        .await;
        reading.flow(1, 100).await;
        assert_eq!(reading.texts(1).await, ["c"]);
        reading.quiet().await;
        wire.abort(txn).await;
        let mut again = reading.texts(2).await;
        if kind == SubType::Exclusive {
            again.extend(reading.texts(1).await);
            assert_eq!(again, ["a", "b", "c"]);
        } else {
            assert_eq!(again, ["a", "b"]);
        }
        let txn = wire.begin(HOUR).await;
        assert_eq!(reading.ack_in(txn, 1, Individual, two).await, Ok(()));
        wire.commit(txn).await;
        assert_eq!(backlog().await, 1);
        reading.quiet().await;
        drop((wire, reading));
        let server = server.crash_and_restart(BrokerConfig::default()).await;
        let mut late = server.connect().await;
        reader(&mut late, 1, TOPIC, kind).await;
        assert_eq!(late.texts(1).await, ["c"]);
        late.quiet().await;
    }
}

/// Acks these messages of a batch of three.
fn part(id: &MessageIdData, indexes: &[u32]) -> MessageIdData {
    let left = indexes.iter().fold(0b111, |set, index| set & !(1 << index));
    MessageIdData {
        ack_set: vec![left],
        batch_size: Some(3),
        ..bare(id)
    }
}

#[tokio::test]
async fn messages_of_a_batch_are_acked_by_several_transactions() {
    let (server, mut wire) = ready().await;
    wire.publish_batch(1, 0, &["x", "y", "z"]).await;
    let id = wire.receipt().await.message_id.unwrap();
    let mut reading = server.connect().await;
    reader(&mut reading, 1, TOPIC, SubType::Shared).await;
    reading.message().await;
    let (one, two) = (wire.begin(HOUR).await, wire.begin(HOUR).await);
    let (first, second) = (vec![part(&id, &[0])], vec![part(&id, &[1])]);
    assert_eq!(
        reading.ack_in(one, 1, Individual, first.clone()).await,
        Ok(())
    );
    assert_eq!(
        reading.ack_in(two, 1, Individual, first).await,
        Err(ServerError::TransactionConflict)
    );
    assert_eq!(reading.ack_in(two, 1, Individual, second).await, Ok(()));
    // An abort brings what is left of the batch.
    wire.abort(two).await;
    let got = reading.message().await;
    assert_eq!((got.ack_set, got.redelivery_count), (vec![0b110], 1));
    wire.commit(one).await;
    assert_eq!(
        reading
            .ack_in(wire.begin(HOUR).await, 1, Individual, vec![part(&id, &[0])])
            .await,
        Err(ServerError::TransactionConflict)
    );
    let last = wire.begin(HOUR).await;
    let rest = vec![part(&id, &[1, 2])];
    assert_eq!(reading.ack_in(last, 1, Individual, rest).await, Ok(()));
    wire.commit(last).await;
    let stats = server
        .broker
        .topic_stats(&TOPIC.parse().unwrap())
        .await
        .unwrap();
    assert_eq!(stats.subscriptions["s"].msg_backlog, 0);
}

#[tokio::test]
async fn who_acks_what_another_acks_gets_a_conflict() {
    let conflict: Answer = Err(ServerError::TransactionConflict);
    let (server, mut wire) = ready().await;
    let ids = wire.publish_all(1, &["a", "b", "c", "d"]).await;
    let at = |n: usize| vec![bare(&ids[n])];
    let mut reading = server.connect().await;
    reader(&mut reading, 1, TOPIC, SubType::Exclusive).await;
    reading.texts(4).await;
    let (one, two) = (wire.begin(HOUR).await, wire.begin(HOUR).await);
    assert_eq!(reading.ack_in(one, 1, Individual, at(3)).await, Ok(()));
    assert_eq!(reading.ack_in(one, 1, Individual, at(3)).await, conflict);
    assert_eq!(reading.ack_in(two, 1, Individual, at(3)).await, conflict);
    assert_eq!(reading.ack_in(one, 1, Cumulative, at(1)).await, Ok(()));
    assert_eq!(reading.ack_in(two, 1, Cumulative, at(2)).await, conflict);
    assert_eq!(reading.ack_in(one, 1, Cumulative, at(0)).await, conflict);
    assert_eq!(reading.ack_in(one, 1, Cumulative, at(2)).await, Ok(()));
    wire.commit(one).await;
    assert_eq!(reading.ack_in(two, 1, Individual, at(0)).await, conflict);
    assert_eq!(reading.ack_in(two, 1, Cumulative, at(1)).await, conflict);
    let stats = server
        .broker
        .topic_stats(&TOPIC.parse().unwrap())
        .await
        .unwrap();
    assert_eq!(stats.subscriptions["s"].msg_backlog, 0);
}

#[tokio::test]
async fn an_aborted_cumulative_ack_brings_all_again() {
    let (server, mut wire) = ready().await;
    let ids = wire.publish_all(1, &["a", "b", "c"]).await;
    let mut reading = server.connect().await;
    reader(&mut reading, 1, TOPIC, SubType::Failover).await;
    reading.texts(3).await;
    let txn = wire.begin(HOUR).await;
    let two = vec![bare(&ids[1])];
    assert_eq!(reading.ack_in(txn, 1, Cumulative, two).await, Ok(()));
    wire.abort(txn).await;
    assert_eq!(reading.texts(3).await, ["a", "b", "c"]);
}

#[tokio::test]
async fn time_is_up() {
    let (server, mut wire) = ready().await;
    let ids = wire.publish_all(1, &["a"]).await;
    let mut reading = server.connect().await;
    reader(&mut reading, 1, TOPIC, SubType::Shared).await;
    reading.texts(1).await;
    let txn = wire.begin(100).await;
    wire.send_in(txn, 1, 7, "never").await.unwrap();
    wire.publish(1, 8, "behind").await;
    let acked = reading
        .ack_in(txn, 1, Individual, vec![bare(&ids[0])])
        .await;
    assert_eq!(acked, Ok(()));
    let mut texts = reading.texts(2).await;
    texts.sort();
    assert_eq!(texts, ["a", "behind"]);
    let ended: Answer = Err(ServerError::InvalidTxnStatus);
    assert_eq!(wire.end(txn, TxnAction::Commit).await, ended);
    // Nobody will see it, so it is answered and not stored: an error would stop the Go client for good.
    let unstored = wire.send_in(txn, 1, 9, "late").await.unwrap();
    assert_eq!(
        (unstored.ledger_id, unstored.entry_id),
        (u64::MAX, u64::MAX)
    );
    wire.publish(1, 10, "after").await;
    assert_eq!(reading.texts(1).await, ["after"]);
    assert_eq!(wire.add_partition(txn, TOPIC).await, ended);
    assert_eq!(wire.add_subscription(txn, TOPIC, "s").await, ended);
    let late = reading
        .ack_in(txn, 1, Individual, vec![bare(&ids[0])])
        .await;
    assert_eq!(late, ended);
    let stats = server.broker.transaction_coordinator(0).unwrap();
    assert_eq!((stats.ongoing, stats.timed_out, stats.aborted), (0, 1, 1));
}

#[tokio::test]
async fn an_open_transaction_survives_a_crash() {
    let (server, mut wire) = ready().await;
    let ids = wire.publish_all(1, &["a", "b"]).await;
    reader(&mut wire, 1, TOPIC, SubType::Shared).await;
    wire.texts(2).await;
    let txn = wire.begin(HOUR).await;
    wire.send_in(txn, 2, 0, "out").await.unwrap();
    assert_eq!(
        wire.ack_in(txn, 1, Individual, vec![bare(&ids[0])]).await,
        Ok(())
    );
    let server = server.crash_and_restart(BrokerConfig::default()).await;
    let mut wire = server.connect().await;
    reader(&mut wire, 1, TOPIC, SubType::Shared).await;
    reader(&mut wire, 2, OTHER, SubType::Shared).await;
    assert_eq!(wire.message_of(1).await.text(), "b");
    wire.quiet().await;
    let next = wire.begin(HOUR).await;
    assert!(next > txn, "numbers are not given out twice");
    wire.commit(txn).await;
    assert_eq!(wire.message_of(2).await.text(), "out");
    let server = server.crash_and_restart(BrokerConfig::default()).await;
    let mut wire = server.connect().await;
    // The client did not hear of its commit, and asks again.
    wire.commit(txn).await;
    reader(&mut wire, 1, TOPIC, SubType::Shared).await;
    reader(&mut wire, 2, OTHER, SubType::Shared).await;
    assert_eq!(wire.message_of(1).await.text(), "b");
    assert_eq!(wire.message_of(2).await.text(), "out");
    wire.quiet().await;
}

#[tokio::test]
async fn what_is_unknown_or_contradicts_itself_is_refused() {
    let (server, mut wire) = ready().await;
    let unknown: Answer = Err(ServerError::TransactionNotFound);
    assert_eq!(wire.end(99, TxnAction::Commit).await, unknown);
    assert_eq!(wire.add_partition(99, TOPIC).await, unknown);
    // No coordinator has given out such a number yet.
    assert_eq!(
        wire.send_in(1 << 40, 1, 0, "x").await,
        Err(ServerError::NotAllowedError)
    );
    let request_id = wire.request();
    wire.send(CommandTcClientConnectRequest {
        request_id,
        tc_id: 1,
    })
    .await;
    let error = wire.find(|command, _| match command {
        Command::TcClientConnectResponse(r) if r.request_id == request_id => Some(r.error),
        _ => None,
    });
    assert_eq!(
        error.await,
        Some(ServerError::TransactionCoordinatorNotFound as i32)
    );
    // Deleting a topic ends what it held.
    let txn = wire.begin(HOUR).await;
    wire.send_in(txn, 1, 1, "x").await.unwrap();
    let name = TOPIC.parse().unwrap();
    server.broker.delete_topic(&name, true).await.unwrap();
    wire.commit(txn).await;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, None).await;
    reader(&mut wire, 1, TOPIC, SubType::Shared).await;
    wire.publish_all(1, &["new"]).await;
    assert_eq!(wire.texts(1).await, ["new"]);
}

#[tokio::test]
async fn a_limit_and_a_switch_are_honoured() {
    let limited = BrokerConfig {
        max_active_transactions_per_coordinator: 1,
        ..BrokerConfig::default()
    };
    let server = Server::with(limited).await;
    let mut wire = server.connect().await;
    let txn = wire.begin(HOUR).await;
    assert_eq!(
        wire.try_begin(HOUR).await,
        Err(ServerError::TooManyRequests)
    );
    wire.abort(txn).await;
    wire.begin(HOUR).await;
    let off = BrokerConfig {
        transaction_coordinator_enabled: false,
        ..BrokerConfig::default()
    };
    let server = Server::with(off).await;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, None).await;
    assert_eq!(
        wire.send_in(1, 1, 0, "x").await,
        Err(ServerError::NotAllowedError)
    );
    let request_id = wire.ask_end(1, TxnAction::Commit).await;
    let error = wire.done(request_id).await.unwrap_err();
    assert_eq!(error.error, ServerError::NotAllowedError as i32);
}

#[tokio::test]
async fn operators_see_and_abort() {
    let (server, mut wire) = ready().await;
    let broker = &server.broker;
    let name = TOPIC.parse().unwrap();
    let ids = wire.publish_all(1, &["a", "b"]).await;
    reader(&mut wire, 1, TOPIC, SubType::Exclusive).await;
    wire.texts(2).await;
    let txn = wire.begin(HOUR).await;
    let sent = wire.send_in(txn, 1, 5, "x").await.unwrap();
    let one = vec![bare(&ids[0])];
    assert_eq!(wire.ack_in(txn, 1, Cumulative, one).await, Ok(()));
    let info = broker.transaction(0, txn).await.unwrap();
    assert_eq!((info.status, info.timeout_ms), ("OPEN", HOUR));
    let at = |id: &MessageIdData| geminga_model::Position::from_wire(id.ledger_id, id.entry_id);
    assert_eq!(info.partitions[TOPIC], Some(at(&sent)));
    assert_eq!(info.subscriptions[TOPIC]["s"], Some(at(&ids[0])));
    assert_eq!(broker.slow_transactions(None, 0).await.unwrap(), [info]);
    assert!(
        broker
            .slow_transactions(Some(0), HOUR)
            .await
            .unwrap()
            .is_empty()
    );
    let seen = broker.topic_transactions(&name).await.unwrap();
    assert_eq!(
        (seen.ongoing, seen.aborted, seen.max_read),
        (1, 0, at(&ids[1]))
    );
    assert_eq!(broker.pending_transactions(&name, "s").await.unwrap(), 1);
    let pending = |id| broker.is_ack_pending(&name, "s", at(id), None);
    assert_eq!(pending(&ids[0]).await.unwrap(), Some(true));
    assert_eq!(pending(&ids[1]).await.unwrap(), Some(false));
    broker.abort_transaction(0, txn).await.unwrap();
    let seen = broker.topic_transactions(&name).await.unwrap();
    assert_eq!((seen.ongoing, seen.aborted), (0, 1));
    assert_eq!(
        broker.transaction_on_topic(&name, 0, txn).await.unwrap(),
        Some((None, true))
    );
    assert!(broker.transaction(0, txn).await.is_err());
    assert_eq!(broker.transaction_coordinators().unwrap(), [0]);
    broker.scale_transaction_coordinators(3).await.unwrap();
    assert!(broker.scale_transaction_coordinators(3).await.is_err());
    let server = server.crash_and_restart(BrokerConfig::default()).await;
    assert_eq!(server.broker.transaction_coordinators().unwrap(), [0, 1, 2]);
}
