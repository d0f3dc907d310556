//! Handshake and keep-alive.

use geminga_broker::BrokerConfig;
use geminga_proto::Command;
use geminga_proto::pb::*;

use crate::server::{Server, eventually};
use crate::wire::{TOPIC, subscribe};

#[tokio::test]
async fn trap_18_connected_echoes_the_lower_version_and_the_message_size() {
    let config = BrokerConfig {
        max_message_size: 77_777,
        ..BrokerConfig::default()
    };
    let server = Server::with(config).await;
    for (theirs, ours) in [(21, 21), (25, 21), (12, 12), (0, 0)] {
        let mut wire = server.connect_raw();
        wire.send(CommandConnect {
            client_version: "x".to_owned(),
            protocol_version: Some(theirs),
            ..CommandConnect::default()
        })
        .await;
        let Command::Connected(connected) = wire.next().await.0 else {
            panic!()
        };
        assert_eq!(connected.protocol_version, Some(ours));
        assert_eq!(connected.max_message_size, Some(77_777));
        assert!(connected.server_version.starts_with("Pulsar Server"));
        let flags = connected.feature_flags.unwrap();
        assert_eq!(flags.supports_topic_watchers, Some(true));
        assert_eq!(
            flags.supports_get_partitioned_metadata_without_auto_creation,
            Some(true)
        );
    }
}

#[tokio::test]
async fn anything_but_a_ping_before_connect_closes_and_so_does_a_second_connect() {
    let server = Server::new().await;
    let mut wire = server.connect_raw();
    wire.send(CommandPing {}).await;
    assert!(matches!(wire.next().await.0, Command::Pong(_)));
    wire.send(CommandLookupTopic::default()).await;
    wire.closed().await;
    let mut wire = server.connect().await;
    wire.send(CommandConnect {
        client_version: "x".to_owned(),
        ..CommandConnect::default()
    })
    .await;
    wire.closed().await;
}

#[tokio::test]
async fn ping_is_answered() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    wire.send(CommandPing {}).await;
    assert!(matches!(wire.next().await.0, Command::Pong(_)));
}

#[tokio::test]
async fn transactions_are_refused_as_pulsar_does_when_they_are_off() {
    let server = Server::with(geminga_broker::BrokerConfig {
        transaction_coordinator_enabled: false,
        ..Default::default()
    })
    .await;
    let mut wire = server.connect().await;
    wire.send(CommandNewTxn {
        request_id: 5,
        ..CommandNewTxn::default()
    })
    .await;
    let error = wire.done(5).await.unwrap_err();
    assert_eq!(error.error(), ServerError::NotAllowedError);
    wire.send(CommandTcClientConnectRequest {
        request_id: 6,
        tc_id: 0,
    })
    .await;
    assert_eq!(
        wire.done(6).await.unwrap_err().error(),
        ServerError::NotAllowedError
    );
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_closed_and_one_that_answers_is_not() {
    let server = Server::new().await;
    let mut silent = server.connect().await;
    let mut lively = server.connect().await;
    let started = tokio::time::Instant::now();
    let answer = async {
        for _ in 0..20 {
            tokio::time::sleep(std::time::Duration::from_secs(5)).await;
            lively.send(CommandPing {}).await;
        }
    };
    tokio::join!(answer, silent.raw_closed());
    assert!(started.elapsed().as_secs() >= 60);
    lively.send(CommandPing {}).await;
    let mut pongs = 0;
    while pongs < 21 {
        if matches!(lively.next().await.0, Command::Pong(_)) {
            pongs += 1;
        }
    }
}

/// The consumer joins after its connection is gone: it must not stay behind as a ghost that owns
/// keys or is active.
#[tokio::test]
async fn a_client_that_leaves_while_it_subscribes_leaves_nothing_behind() {
    let server = Server::new().await;
    for round in 0..50u64 {
        let mut wire = server.connect().await;
        wire.send(CommandProducer {
            topic: TOPIC.to_owned(),
            producer_id: 1,
            request_id: 1,
            ..CommandProducer::default()
        })
        .await;
        let kind = match round % 2 {
            0 => command_subscribe::SubType::KeyShared,
            _ => command_subscribe::SubType::Failover,
        };
        let command = subscribe(1, &format!("s{}", round % 2), kind);
        wire.send(CommandSubscribe {
            request_id: 2,
            ..command
        })
        .await;
        for _ in 0..round {
            tokio::task::yield_now().await;
        }
    }
    let name = TOPIC.parse().unwrap();
    eventually("everyone is gone", async || {
        let stats = server.broker.topic_stats(&name).await.unwrap();
        let consumers: usize = stats
            .subscriptions
            .values()
            .map(|s| s.consumers.len())
            .sum();
        (stats.publishers.is_empty() && consumers == 0).then_some(())
    })
    .await;
}
