//! Rights that are more than a yes at the door: transactions of others, subscriptions made by the
//! way, markers, and what becomes of those who lose a right.

use std::time::Duration;

use geminga_broker::auth::token::{SigningKey, make};
use geminga_broker::auth::{Action, SecurityConfig};
use geminga_broker::{BrokerConfig, SubscribeAt};
use geminga_proto::Command;
use geminga_proto::marker::Marker;
use geminga_proto::pb::*;

use crate::auth::{
    SECRET, config, connect, enter, enter_as, grant, house, now_seconds, producer, token,
};
use crate::server::{Server, eventually};
use crate::wire::{TOPIC, Wire, metadata, subscribe};

const NONE: i32 = ServerError::TransactionNotFound as i32;

#[tokio::test]
async fn a_transaction_is_its_owners_and_the_super_users_over_a_crash() {
    let server = house().await;
    grant(&server, "thief", &[Action::Produce, Action::Consume]).await;
    let mut maker = enter_as(&server, "maker").await;
    maker.producer(TOPIC, 1, None).await;
    let txn = maker.begin(600_000).await;
    assert_eq!(maker.add_partition(txn, TOPIC).await, Ok(()));
    let mine = maker.send_in(txn, 1, 0, "mine").await;
    assert!(mine.is_ok());

    let none = Err(ServerError::TransactionNotFound);
    let mut thief = enter_as(&server, "thief").await;
    thief.producer(TOPIC, 1, None).await;
    let sub = subscribe(2, "s", command_subscribe::SubType::Shared);
    thief.subscribe(sub).await;
    assert_eq!(thief.add_partition(txn, TOPIC).await, none);
    assert_eq!(thief.add_subscription(txn, TOPIC, "s").await, none);
    assert_eq!(thief.end(txn, TxnAction::Commit).await, none);
    assert_eq!(thief.end(txn, TxnAction::Abort).await, none);
    let sent = thief.send_in(txn, 1, 0, "not mine").await.unwrap_err();
    assert_eq!(sent as i32, NONE);
    let individual = command_ack::AckType::Individual;
    let id = MessageIdData::default();
    assert_eq!(thief.ack_in(txn, 2, individual, vec![id]).await, none);
    // Its own are not in the way.
    let own = thief.begin(600_000).await;
    assert!(thief.send_in(own, 1, 2, "own").await.is_ok());
    thief.commit(own).await;

    let server = server.crash_and_restart(config()).await;
    let mut thief = enter_as(&server, "thief").await;
    assert_eq!(thief.end(txn, TxnAction::Abort).await, none);
    let mut maker = enter_as(&server, "maker").await;
    let other = maker.begin(600_000).await;
    maker.commit(txn).await;
    let mut root = enter_as(&server, "root").await;
    root.abort(other).await;
}

#[tokio::test]
async fn a_producer_makes_no_subscription_that_it_may_not_use() {
    let server = house().await;
    let wanted = CommandProducer {
        initial_subscription_name: Some("early".to_owned()),
        ..producer()
    };
    let mut maker = enter_as(&server, "maker").await;
    let refused = maker.try_producer(wanted.clone()).await.unwrap_err();
    assert_eq!(refused.error(), ServerError::AuthorizationError);
    let topic = TOPIC.parse().unwrap();
    assert!(
        server
            .broker
            .subscriptions(&topic)
            .await
            .unwrap()
            .is_empty()
    );
    grant(&server, "maker", &[Action::Consume]).await;
    assert!(maker.try_producer(wanted).await.is_ok());
    let made = server.broker.subscriptions(&topic).await.unwrap();
    assert_eq!(made, ["early"]);
}

fn marker() -> MessageMetadata {
    MessageMetadata {
        marker_type: Some(MarkerType::ReplicatedSubscriptionUpdate as i32),
        replicated_from: Some("there".to_owned()),
        ..metadata(1)
    }
}

fn content(subscription: &str) -> Vec<u8> {
    let update = Marker::Update(ReplicatedSubscriptionsUpdate {
        subscription_name: subscription.to_owned(),
        clusters: Vec::new(),
    });
    let block = update.encode(None, 0);
    geminga_proto::message::payload(&block).unwrap().to_vec()
}

async fn refusal(wire: &mut Wire) -> Option<ServerError> {
    wire.find(|command, _| match command {
        Command::SendError(error) => Some(Some(error.error())),
        Command::SendReceipt(_) => Some(None),
        _ => None,
    })
    .await
}

/// A marker acks for others: whoever writes one must be a replicator with the right to consume.
#[tokio::test]
async fn markers_are_not_for_clients() {
    let server = Server::new().await;
    let mut client = server.connect().await;
    client.producer(TOPIC, 1, None).await;
    client.publish_with(1, marker(), &content("s")).await;
    let refused = refusal(&mut client).await;
    assert_eq!(refused, Some(ServerError::NotAllowedError));

    let server = house().await;
    for (role, subscription, expected) in [
        ("maker", "s", Some(ServerError::AuthorizationError)),
        ("both", "s", None),
        ("both", "closed", Some(ServerError::AuthorizationError)),
        ("boss", "closed", None),
    ] {
        grant(&server, "both", &[Action::Produce, Action::Consume]).await;
        let namespace = "public/default".parse().unwrap();
        let close = |policies: &mut geminga_broker::auth::grants::AuthPolicies| {
            let roles = &mut policies.subscription_auth_roles;
            roles.insert("closed".to_owned(), ["reader".to_owned()].into());
        };
        let changed = server.broker.update_auth_policies(&namespace, close);
        changed.await.unwrap();
        let mut wire = enter_as(&server, role).await;
        let name = "pulsar.repl.there-->standalone";
        wire.producer(TOPIC, 1, Some(name)).await;
        let text = content(subscription);
        wire.publish_with(1, marker(), &text).await;
        assert_eq!(refusal(&mut wire).await, expected, "{role} {subscription}");
    }
}

#[tokio::test]
async fn who_loses_a_right_is_closed_and_others_are_not() {
    let server = house().await;
    let mut maker = enter_as(&server, "maker").await;
    maker.producer(TOPIC, 1, None).await;
    maker.send(watch()).await;
    assert!(matches!(
        maker.next().await.0,
        Command::WatchTopicListSuccess(_)
    ));
    let mut reader = enter_as(&server, "reader").await;
    let shared = subscribe(3, "s", command_subscribe::SubType::Shared);
    reader.subscribe(shared).await;
    let mut boss = enter_as(&server, "boss").await;
    boss.producer(TOPIC, 4, None).await;

    let namespace = "public/default".parse().unwrap();
    let clear = |policies: &mut geminga_broker::auth::grants::AuthPolicies| {
        policies.namespace_auth.clear();
    };
    let changed = server.broker.update_auth_policies(&namespace, clear);
    changed.await.unwrap();
    assert!(matches!(maker.next().await.0, Command::CloseProducer(it) if it.producer_id == 1));
    assert!(matches!(reader.next().await.0, Command::CloseConsumer(it) if it.consumer_id == 3));
    let refused = maker.try_producer(producer()).await.unwrap_err();
    assert_eq!(refused.error(), ServerError::AuthorizationError);
    // What it sends late is neither stored nor a reason to close the connection.
    maker.publish(1, 1, "late").await;
    // Nor is it told of topics any more.
    let new = "persistent://public/default/new".parse().unwrap();
    server.broker.create_topic(&new).await.unwrap();
    maker.quiet().await;
    assert_eq!(boss.publish_all(4, &["goes on"]).await.len(), 1);
    let stats = server.broker.topic_stats(&TOPIC.parse().unwrap()).await;
    let stats = stats.unwrap();
    assert_eq!(stats.publishers.len(), 1);
    assert_eq!(stats.subscriptions["s"].consumers.len(), 0);
    assert_eq!(stats.msg_in_counter, 1);

    // A tenant's administrator who is one no longer.
    let info = geminga_broker::TenantInfo::default();
    server.broker.update_tenant("public", info).await.unwrap();
    assert!(matches!(boss.next().await.0, Command::CloseProducer(it) if it.producer_id == 4));
}

fn watch() -> CommandWatchTopicList {
    CommandWatchTopicList {
        request_id: 9,
        watcher_id: 1,
        namespace: "public/default".to_owned(),
        topics_pattern: "public/default/.*".to_owned(),
        topics_hash: None,
    }
}

#[tokio::test]
async fn the_one_behind_a_proxy_is_asked_again_when_his_token_ends() {
    let config = BrokerConfig {
        security: SecurityConfig {
            authenticate_original_auth_data: true,
            ..config().security
        },
        ..config()
    };
    let server = Server::with(config).await;
    grant(&server, "proxy", &[Action::Produce]).await;
    grant(&server, "maker", &[Action::Produce]).await;
    let soon = || {
        let key = SigningKey::Secret(&SECRET);
        make(&key, None, "maker", Some(now_seconds() + 1)).unwrap()
    };
    let behind = |data: String| CommandConnect {
        original_principal: Some("maker".to_owned()),
        original_auth_data: Some(data),
        original_auth_method: Some("token".to_owned()),
        ..connect("token", &token("proxy"))
    };
    for (renewed, stays) in [("maker", true), ("proxy", false)] {
        let mut wire = enter(&server, behind(soon())).await.unwrap();
        let asked = wire
            .find(|command, _| match command {
                Command::AuthChallenge(challenge) => challenge.challenge.clone(),
                _ => None,
            })
            .await;
        assert_eq!(asked.auth_method_name.as_deref(), Some("token"));
        wire.send(CommandAuthResponse {
            client_version: Some("test".to_owned()),
            response: Some(AuthData {
                auth_method_name: Some("token".to_owned()),
                auth_data: Some(token(renewed).into()),
            }),
            protocol_version: Some(21),
        })
        .await;
        match stays {
            true => drop(wire.producer(TOPIC, 1, None).await),
            false => {
                assert!(matches!(wire.next().await.0, Command::Error(_)));
                wire.closed().await;
            }
        }
    }
}

/// What one client names is kept in memory and in the log, for as long as it likes.
#[tokio::test]
async fn names_and_properties_have_a_size() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    let long = "x".repeat(1_025);
    let large = vec![KeyValue {
        key: "k".to_owned(),
        value: "v".repeat(64 << 10),
    }];
    let shared = command_subscribe::SubType::Shared;
    let named = subscribe(1, &long, shared);
    let with_properties = CommandSubscribe {
        subscription_properties: large.clone(),
        ..subscribe(1, "s", shared)
    };
    let consumer = CommandSubscribe {
        consumer_name: Some(long.clone()),
        ..subscribe(1, "s", shared)
    };
    for (command, code) in [
        (named, ServerError::NotAllowedError),
        (with_properties, ServerError::NotAllowedError),
        (consumer, ServerError::MetadataError),
    ] {
        let refused = wire.try_subscribe(command).await.unwrap_err();
        assert_eq!(refused.error(), code);
    }
    let named = CommandProducer {
        producer_name: Some(long.clone()),
        ..producer()
    };
    let with_metadata = CommandProducer {
        metadata: large,
        ..producer()
    };
    for command in [named, with_metadata] {
        let refused = wire.try_producer(command).await.unwrap_err();
        assert_eq!(refused.error(), ServerError::MetadataError);
    }
    let topic = TOPIC.parse().unwrap();
    let at = SubscribeAt::Earliest;
    let made = server
        .broker
        .create_subscription(&topic, &long, at, Default::default());
    assert!(made.await.is_err());
}

/// Asking to watch and going away at once, again and again, leaves nothing behind.
#[tokio::test]
async fn a_watcher_that_does_not_read_is_closed() {
    let config = BrokerConfig {
        geminga_outbox_bytes_max: 1,
        keep_alive_interval_seconds: 1,
        ..BrokerConfig::default()
    };
    let server = Server::with(config).await;
    let mut wire = server.connect_from_outside().await;
    wire.send(watch()).await;
    let told = wire.next().await.0;
    assert!(matches!(told, Command::WatchTopicListSuccess(_)));
    // Fills the pipe and then the outbox: names of a kilobyte each.
    let connected = |server: &Server| server.broker.metrics().active_connections;
    let before = connected(&server);
    let mut number = 0;
    eventually("the connection is closed", async || {
        for _ in 0..200 {
            number += 1;
            let name = format!("persistent://public/default/{number:0900}");
            let name = name.parse().unwrap();
            server.broker.create_topic(&name).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        (connected(&server) < before).then_some(())
    })
    .await;
}

/// All versions of a schema are read together: what one producer registers must not be more than a
/// broker can hold for each that asks.
#[tokio::test]
async fn schemas_have_a_size_alone_and_together() {
    let server = Server::new().await;
    let topic = TOPIC.parse().unwrap();
    let always = |policies: &mut geminga_broker::Policies| {
        policies.schema_compatibility_strategy =
            Some(geminga_broker::SchemaCompatibilityStrategy::AlwaysCompatible);
        Ok(())
    };
    let namespace = "public/default".parse().unwrap();
    let changed = server.broker.update_policies(&namespace, always);
    changed.await.unwrap();
    let schema = |number: usize, size: usize| Schema {
        name: "s".to_owned(),
        r#type: schema::Type::Json as i32,
        schema_data: format!(r#"{{"type":"record","name":"R{number}","fields":[]}}"#)
            .into_bytes()
            .into(),
        properties: vec![KeyValue {
            key: "k".to_owned(),
            value: "v".repeat(size),
        }],
    };
    let create = async |schema: Schema| server.broker.create_schema(&topic, &schema).await;
    assert!(create(schema(0, 512 << 10)).await.is_err());
    let mut taken = 0;
    while let Ok(version) = create(schema(taken, 500 << 10)).await {
        assert_eq!(version, taken as u64);
        taken += 1;
        assert!(taken < 100);
    }
    assert!(taken > 20, "{taken}");
    // What is there goes on to be found, and two ways out are open.
    assert_eq!(create(schema(3, 500 << 10)).await.unwrap(), 3);
    let deletion = server.broker.delete_schema(&topic, false).await.unwrap();
    assert_eq!(deletion, Some(taken as u64));
    for number in 0..20 {
        let version = create(schema(number, 500 << 10)).await.unwrap();
        assert_eq!(version, (taken + 1 + number) as u64);
    }
    server.broker.delete_schema(&topic, true).await.unwrap();
    assert_eq!(create(schema(99, 500 << 10)).await.unwrap(), 0);
}

/// Whoever acks in a transaction says how many messages a batch has: two thousand million of them
/// would be a quarter of a gigabyte, for each of many ids in one command.
#[tokio::test]
async fn a_batch_has_no_more_messages_than_can_be_held() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    wire.producer(TOPIC, 1, None).await;
    let shared = command_subscribe::SubType::Shared;
    wire.subscribe(subscribe(2, "s", shared)).await;
    wire.publish_batch(1, 1, &["a", "b"]).await;
    let at = wire.receipt().await.message_id.unwrap();
    let part = |batch_size: i32| MessageIdData {
        ledger_id: at.ledger_id,
        entry_id: at.entry_id,
        ack_set: vec![1],
        batch_size: Some(batch_size),
        ..MessageIdData::default()
    };
    let txn = wire.begin(600_000).await;
    let individual = command_ack::AckType::Individual;
    let conflict = Err(ServerError::TransactionConflict);
    for ids in [
        vec![part(i32::MAX)],
        vec![part(i32::MAX); 1_000],
        vec![part(1 << 20); 100],
    ] {
        let acked = wire.ack_in(txn, 2, individual, ids).await;
        assert_eq!(acked, conflict);
    }
    assert_eq!(wire.ack_in(txn, 2, individual, vec![part(2)]).await, Ok(()));
    // Nor is one stored that says so.
    let large = MessageMetadata {
        num_messages_in_batch: Some(i32::MAX),
        ..metadata(9)
    };
    wire.publish_with(1, large, b"").await;
    assert_eq!(refusal(&mut wire).await, Some(ServerError::MetadataError));
}
