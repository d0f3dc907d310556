//! PRODUCER, SEND, receipts, access modes.

use geminga_broker::{BrokerConfig, Policies};
use geminga_proto::Command;
use geminga_proto::pb::*;

use crate::server::Server;
use crate::wire::{TOPIC, Wire, metadata, subscribe};

fn producer(id: u64, name: &str) -> CommandProducer {
    CommandProducer {
        topic: TOPIC.to_owned(),
        producer_id: id,
        producer_name: Some(name.to_owned()),
        ..CommandProducer::default()
    }
}

fn access(id: u64, name: &str, mode: ProducerAccessMode) -> CommandProducer {
    CommandProducer {
        producer_access_mode: Some(mode as i32),
        ..producer(id, name)
    }
}

#[tokio::test]
async fn receipts_come_in_order_with_rising_positions() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    let name = wire.producer(TOPIC, 1, None).await;
    assert!(name.starts_with("standalone-"), "{name}");
    let texts: Vec<String> = (0..500).map(|n| format!("m{n}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let ids = wire.publish_all(1, &texts).await;
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(id.entry_id, n as u64);
        assert_eq!(id.ledger_id, ids[0].ledger_id);
    }
}

#[tokio::test]
async fn the_same_id_again_is_answered_and_names_must_be_free() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    wire.try_producer(producer(1, "a")).await.unwrap();
    let again = wire.try_producer(producer(1, "a")).await.unwrap();
    assert_eq!(again.producer_name, "a");
    // trap 1: a clash, on this connection and on another that lives.
    let error = wire.try_producer(producer(2, "a")).await.unwrap_err();
    assert_eq!(error.error(), ServerError::ProducerBusy);
    let mut other = server.connect().await;
    let (error, ()) = tokio::join!(other.try_producer(producer(1, "a")), wire.answer_one_ping());
    assert_eq!(error.unwrap_err().error(), ServerError::ProducerBusy);
}

#[tokio::test]
async fn trap_01_a_dead_connection_is_replaced_not_refused() {
    let config = BrokerConfig {
        connection_liveness_check_timeout_millis: 50,
        ..BrokerConfig::default()
    };
    let server = Server::with(config).await;
    let mut dead = server.connect().await;
    dead.try_producer(producer(1, "a")).await.unwrap();
    let mut consumer = subscribe(1, "s", command_subscribe::SubType::Exclusive);
    consumer.consumer_name = None;
    dead.subscribe(consumer.clone()).await;
    let mut wire = server.connect().await;
    // `dead` never answers the PING: after the time-out it is taken for dead.
    wire.try_producer(producer(1, "a")).await.unwrap();
    wire.subscribe(consumer).await;
}

#[tokio::test]
async fn a_name_is_free_again_after_close_and_after_disconnect() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    wire.try_producer(producer(1, "a")).await.unwrap();
    wire.publish(1, 0, "last words").await;
    let request_id = wire.request();
    wire.send(CommandCloseProducer {
        producer_id: 1,
        request_id,
        ..Default::default()
    })
    .await;
    // The receipt comes before the close is confirmed.
    assert!(matches!(wire.next().await.0, Command::SendReceipt(_)));
    wire.done(request_id).await.unwrap();
    wire.try_producer(producer(2, "a")).await.unwrap();
    drop(wire);
    let mut wire = server.connect().await;
    crate::server::eventually("the name is free", async || {
        wire.try_producer(producer(3, "a")).await.ok()
    })
    .await;
    // Unknown ids are closed with success too.
    let request_id = wire.request();
    wire.send(CommandCloseProducer {
        producer_id: 99,
        request_id,
        ..Default::default()
    })
    .await;
    wire.done(request_id).await.unwrap();
}

#[tokio::test]
async fn trap_03_a_send_of_an_unknown_producer_closes_the_connection() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    wire.publish(7, 0, "x").await;
    wire.closed().await;
}

#[tokio::test]
async fn trap_03_sends_of_a_producer_that_the_broker_closed_are_ignored() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, Some("a")).await;
    server.broker.unload(&TOPIC.parse().unwrap()).await.unwrap();
    wire.publish(1, 0, "lost").await;
    let closed = wire.find(|command, _| match command {
        Command::CloseProducer(close) => Some(close.clone()),
        _ => None,
    });
    assert_eq!(closed.await.request_id, u64::MAX);
    wire.publish(1, 0, "lost too").await;
    wire.quiet().await;
    // It comes back and sends again.
    wire.producer(TOPIC, 1, Some("a")).await;
    let ids = wire.publish_all(1, &["kept"]).await;
    assert_eq!(ids.len(), 1);
}

#[tokio::test]
async fn a_wrong_checksum_is_answered_in_its_turn_and_others_go_on() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, None).await;
    server.store.hold(true, None);
    wire.publish(1, 0, "good").await;
    wire.corrupt(1, 1).await;
    // The error does not overtake the receipt of what waits for the disk.
    wire.quiet().await;
    server.store.hold(false, None);
    wire.publish(1, 2, "good").await;
    let mut answers = Vec::new();
    while answers.len() < 3 {
        answers.push(match wire.next().await.0 {
            Command::SendReceipt(receipt) => (receipt.sequence_id, None),
            Command::SendError(error) => (error.sequence_id, Some(error.error())),
            other => panic!("{}", other.name()),
        });
    }
    let wrong = Some(ServerError::ChecksumError);
    assert_eq!(answers, [(0, None), (1, wrong), (2, None)]);
}

/// By its last message, for which the Java client looks.
#[tokio::test]
async fn a_refused_batch_is_named_by_its_last_message() {
    let server = Server::new().await;
    let topic = TOPIC.parse().unwrap();
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, None).await;
    let change = |policies: &mut Policies| {
        policies.max_message_size = Some(100);
        Ok(())
    };
    let changed = server.broker.update_topic_policies(&topic, change).await;
    changed.unwrap();
    let text = "x".repeat(60);
    wire.publish_batch(1, 4, &[&text, &text, &text]).await;
    let (answer, _) = wire.next().await;
    let Command::SendError(error) = answer else {
        panic!("{}", answer.name())
    };
    assert_eq!(error.error(), ServerError::NotAllowedError);
    assert_eq!(error.sequence_id, 6);
}

#[tokio::test]
async fn exclusive_modes() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    let fenced = |result: Result<CommandProducerSuccess, CommandError>| {
        assert_eq!(result.unwrap_err().error(), ServerError::ProducerFenced);
    };
    let owner = wire
        .try_producer(access(1, "a", ProducerAccessMode::Exclusive))
        .await
        .unwrap();
    assert_eq!(owner.topic_epoch, Some(0));
    let shared = wire.try_producer(producer(2, "b")).await.unwrap_err();
    assert_eq!(shared.error(), ServerError::ProducerBusy);
    fenced(
        wire.try_producer(access(3, "c", ProducerAccessMode::Exclusive))
            .await,
    );
    // trap 2: one that waits is told twice, under one request id.
    let waiting = wire
        .try_producer(access(4, "d", ProducerAccessMode::WaitForExclusive))
        .await
        .unwrap();
    assert_eq!(
        (waiting.producer_ready, waiting.topic_epoch),
        (Some(false), None)
    );
    let request_id = wire.request();
    wire.send(CommandCloseProducer {
        producer_id: 1,
        request_id,
        ..Default::default()
    })
    .await;
    wire.done(request_id).await.unwrap();
    let granted = wire.find(|command, _| match command {
        Command::ProducerSuccess(s) if s.request_id == waiting.request_id => Some(s.clone()),
        _ => None,
    });
    let granted = granted.await;
    assert_eq!(
        (granted.producer_ready, granted.topic_epoch),
        (Some(true), Some(1))
    );
    wire.publish_all(4, &["mine"]).await;
    // trap 2: a fenced one hears nothing; its next SEND closes its connection, and its old epoch
    // is refused.
    let mut other = server.connect().await;
    let fencing = access(1, "e", ProducerAccessMode::ExclusiveWithFencing);
    assert_eq!(
        other.try_producer(fencing).await.unwrap().topic_epoch,
        Some(2)
    );
    wire.quiet().await;
    wire.publish(4, 9, "too late").await;
    wire.closed().await;
    drop(other);
    let mut wire = server.connect().await;
    let stale = CommandProducer {
        topic_epoch: Some(1),
        ..access(4, "d", ProducerAccessMode::Exclusive)
    };
    crate::server::eventually("the topic is free", async || {
        let error = wire.try_producer(stale.clone()).await.unwrap_err();
        assert_eq!(error.error(), ServerError::ProducerFenced);
        error.message.contains("epoch").then_some(())
    })
    .await;
}

#[tokio::test]
async fn delays_beyond_the_limit_and_foreign_ids_are_refused() {
    let config = BrokerConfig {
        delayed_delivery_max_delay_in_millis: 1_000,
        ..BrokerConfig::default()
    };
    let server = Server::with(config).await;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, None).await;
    let late = MessageMetadata {
        deliver_at_time: Some(i64::MAX),
        ..metadata(0)
    };
    wire.publish_with(1, late, b"x").await;
    assert_eq!(send_error(&mut wire).await, ServerError::NotAllowedError);
}

async fn send_error(wire: &mut Wire) -> ServerError {
    wire.find(|command, _| match command {
        Command::SendError(error) => Some(error.error()),
        _ => None,
    })
    .await
}

#[tokio::test]
async fn a_terminated_topic_takes_no_more() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, None).await;
    let ids = wire.publish_all(1, &["a", "b"]).await;
    let last = server
        .broker
        .terminate(&TOPIC.parse().unwrap())
        .await
        .unwrap();
    assert_eq!(last.to_wire(), (ids[1].ledger_id, ids[1].entry_id));
    let error = wire.try_producer(producer(2, "x")).await.unwrap_err();
    assert_eq!(error.error(), ServerError::TopicTerminatedError);
    // Consumers read what there is and are told of the end.
    wire.subscribe(subscribe(1, "s", command_subscribe::SubType::Exclusive))
        .await;
    wire.flow(1, 10).await;
    assert_eq!(wire.texts(2).await, ["a", "b"]);
    wire.find(|command, _| match command {
        Command::ReachedEndOfTopic(end) => Some(end.consumer_id),
        _ => None,
    })
    .await;
}

#[tokio::test]
async fn in_flight_sends_pause_the_socket_and_nothing_is_lost() {
    let config = BrokerConfig {
        max_pending_publish_requests_per_connection: 10,
        ..BrokerConfig::default()
    };
    let server = Server::with(config).await;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, None).await;
    let texts: Vec<String> = (0..3_000).map(|n| format!("m{n}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    wire.publish_all(1, &texts).await;
}

#[tokio::test]
async fn a_producer_whose_run_was_not_taken_gets_its_receipts_before_it_is_closed() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, Some("p")).await;
    wire.publish(1, 0, "first").await;
    wire.receipt().await;
    // The disk stands still with one run under way; the next is refused.
    server.store.hold(true, Some(1));
    wire.publish(1, 1, "taken").await;
    wire.quiet().await;
    wire.publish(1, 2, "refused").await;
    wire.publish(1, 3, "after it").await;
    wire.quiet().await;
    server.store.hold(false, None);
    // A client that hears of the end first would miss the receipt, and send "taken" twice.
    let (command, _) = wire.next().await;
    assert!(
        matches!(&command, Command::SendReceipt(receipt) if receipt.sequence_id == 1),
        "{command:?}"
    );
    let (command, _) = wire.next().await;
    assert!(
        matches!(&command, Command::CloseProducer(close) if close.producer_id == 1),
        "{command:?}"
    );
    // It comes back and sends again what has no receipt.
    wire.producer(TOPIC, 1, Some("p")).await;
    wire.publish(1, 2, "refused").await;
    assert_eq!(wire.receipt().await.sequence_id, 2);
    wire.publish(1, 3, "after it").await;
    assert_eq!(wire.receipt().await.sequence_id, 3);
    wire.subscribe(subscribe(1, "s", command_subscribe::SubType::Exclusive))
        .await;
    wire.flow(1, 10).await;
    assert_eq!(
        wire.texts(4).await,
        ["first", "taken", "refused", "after it"]
    );
}
