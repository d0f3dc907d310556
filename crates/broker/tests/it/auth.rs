//! Who gets in, and what each may do: every command that needs a right, with no, wrong, weak and
//! right credentials.

use std::time::{SystemTime, UNIX_EPOCH};

use geminga_broker::auth::token::{SigningKey, make};
use geminga_broker::auth::{Action, SecurityConfig};
use geminga_broker::{BrokerConfig, TenantInfo};
use geminga_proto::Command;
use geminga_proto::command::NO_REQUEST;
use geminga_proto::key::encode_base64;
use geminga_proto::pb::*;

use crate::server::Server;
use crate::wire::{TOPIC, Wire, subscribe};

pub(crate) const SECRET: [u8; 32] = [9; 32];
const PIPE_BYTES: usize = 1 << 16;

pub(crate) fn config() -> BrokerConfig {
    BrokerConfig {
        security: SecurityConfig {
            authentication_enabled: true,
            authentication_providers: vec!["token".to_owned()],
            authentication_refresh_check_seconds: 1,
            authorization_enabled: true,
            super_user_roles: vec!["root".to_owned()],
            proxy_roles: vec!["proxy".to_owned()],
            token_secret_key: Some(format!("data:;base64,{}", encode_base64(&SECRET))),
            ..SecurityConfig::default()
        },
        ..BrokerConfig::default()
    }
}

pub(crate) fn now_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

pub(crate) fn token(role: &str) -> String {
    make(&SigningKey::Secret(&SECRET), None, role, None).unwrap()
}

pub(crate) fn connect(method: &str, data: &str) -> CommandConnect {
    CommandConnect {
        client_version: "test".to_owned(),
        protocol_version: Some(21),
        auth_method_name: Some(method.to_owned()),
        auth_data: Some(data.to_owned().into()),
        feature_flags: Some(FeatureFlags {
            supports_auth_refresh: Some(true),
            ..FeatureFlags::default()
        }),
        ..CommandConnect::default()
    }
}

/// A connection from outside.
pub(crate) fn knock(server: &Server) -> Wire {
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    server.broker.serve_stream(ours, "outside".to_owned());
    Wire::new(theirs)
}

pub(crate) async fn enter(server: &Server, connect: CommandConnect) -> Result<Wire, ServerError> {
    let mut wire = knock(server);
    wire.send(connect).await;
    match wire.next().await.0 {
        Command::Connected(_) => Ok(wire),
        Command::Error(error) => {
            assert_eq!(error.request_id, NO_REQUEST);
            wire.closed().await;
            Err(error.error())
        }
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn enter_as(server: &Server, role: &str) -> Wire {
    enter(server, connect("token", &token(role))).await.unwrap()
}

pub(crate) async fn grant(server: &Server, role: &str, actions: &[Action]) {
    let namespace = "public/default".parse().unwrap();
    let change = |policies: &mut geminga_broker::auth::grants::AuthPolicies| {
        let granted = policies.namespace_auth.entry(role.to_owned()).or_default();
        granted.extend(actions);
    };
    server
        .broker
        .update_auth_policies(&namespace, change)
        .await
        .unwrap();
}

pub(crate) async fn house() -> Server {
    let server = Server::with(config()).await;
    let info = TenantInfo {
        admin_roles: vec!["boss".to_owned()],
        allowed_clusters: vec!["standalone".to_owned()],
    };
    server.broker.update_tenant("public", info).await.unwrap();
    grant(&server, "maker", &[Action::Produce]).await;
    grant(&server, "reader", &[Action::Consume]).await;
    grant(&server, "other", &[Action::Functions]).await;
    server
        .broker
        .create_topic(&TOPIC.parse().unwrap())
        .await
        .unwrap();
    server
}

pub(crate) fn producer() -> CommandProducer {
    CommandProducer {
        topic: TOPIC.to_owned(),
        request_id: 7,
        producer_id: 1,
        ..Default::default()
    }
}

/// Every command that needs a right.
fn guarded(request_id: u64) -> Vec<Command> {
    let topic = TOPIC.to_owned();
    let namespace = "public/default".to_owned();
    let txn = (Some(1), Some(1));
    vec![
        CommandPartitionedTopicMetadata {
            topic: topic.clone(),
            request_id,
            ..Default::default()
        }
        .into(),
        CommandLookupTopic {
            topic: topic.clone(),
            request_id,
            ..Default::default()
        }
        .into(),
        CommandGetSchema {
            topic: topic.clone(),
            request_id,
            ..Default::default()
        }
        .into(),
        CommandGetTopicsOfNamespace {
            namespace: namespace.clone(),
            request_id,
            ..Default::default()
        }
        .into(),
        CommandWatchTopicList {
            namespace,
            request_id,
            watcher_id: 1,
            topics_pattern: "public/default/.*".to_owned(),
            ..Default::default()
        }
        .into(),
        CommandGetOrCreateSchema {
            topic: topic.clone(),
            request_id,
            schema: Schema {
                name: "s".to_owned(),
                r#type: schema::Type::String as i32,
                ..Default::default()
            },
            ..Default::default()
        }
        .into(),
        CommandProducer {
            topic: topic.clone(),
            request_id,
            producer_id: 1,
            ..Default::default()
        }
        .into(),
        CommandAddPartitionToTxn {
            partitions: vec![topic.clone()],
            request_id,
            txnid_least_bits: txn.0,
            txnid_most_bits: txn.1,
        }
        .into(),
        CommandSubscribe {
            request_id,
            ..subscribe(1, "s", command_subscribe::SubType::Shared)
        }
        .into(),
        CommandAddSubscriptionToTxn {
            subscription: vec![Subscription {
                topic: topic.clone(),
                subscription: "s".to_owned(),
            }],
            request_id,
            txnid_least_bits: txn.0,
            txnid_most_bits: txn.1,
        }
        .into(),
        CommandEndTxnOnPartition {
            topic: Some(topic.clone()),
            request_id,
            txnid_least_bits: txn.0,
            txnid_most_bits: txn.1,
            ..Default::default()
        }
        .into(),
        CommandEndTxnOnSubscription {
            subscription: Some(Subscription {
                topic,
                subscription: "s".to_owned(),
            }),
            request_id,
            txnid_least_bits: txn.0,
            txnid_most_bits: txn.1,
            ..Default::default()
        }
        .into(),
    ]
}

/// The error in an answer.
fn error_of(answer: &Command) -> Option<i32> {
    match answer {
        Command::Error(it) => Some(it.error),
        Command::PartitionedMetadataResponse(it) => it.error,
        Command::LookupResponse(it) => it.error,
        Command::GetSchemaResponse(it) => it.error_code,
        Command::GetOrCreateSchemaResponse(it) => it.error_code,
        Command::AddPartitionToTxnResponse(it) => it.error,
        Command::AddSubscriptionToTxnResponse(it) => it.error,
        Command::EndTxnOnPartitionResponse(it) => it.error,
        Command::EndTxnOnSubscriptionResponse(it) => it.error,
        _ => None,
    }
}

#[tokio::test]
async fn every_command_is_refused_without_the_right() {
    let server = house().await;
    // One letter for each of `guarded`.
    for (role, allowed) in [
        ("root", "111111111111"),
        ("boss", "111111111100"),
        ("maker", "111111110000"),
        ("reader", "111110001100"),
        ("other", "000000000000"),
        ("stranger", "000000000000"),
    ] {
        let mut got = String::new();
        for at in 0..guarded(0).len() {
            let mut wire = enter_as(&server, role).await;
            let request_id = wire.request();
            wire.send(guarded(request_id).remove(at)).await;
            let (answer, _) = wire.next().await;
            let refused = error_of(&answer) == Some(ServerError::AuthorizationError as i32);
            got.push(if refused { '0' } else { '1' });
        }
        assert_eq!(got, allowed, "{role}");
    }
}

#[tokio::test]
async fn nobody_comes_in_without_credentials_and_nothing_is_done_before() {
    let server = house().await;
    let forged = make(&SigningKey::Secret(&[1; 32]), None, "root", None).unwrap();
    let old = make(
        &SigningKey::Secret(&SECRET),
        None,
        "root",
        Some(now_seconds() - 1),
    );
    for wrong in [
        CommandConnect {
            client_version: "test".to_owned(),
            ..Default::default()
        },
        connect("none", ""),
        connect("token", ""),
        connect("token", &forged),
        connect("token", &old.unwrap()),
        connect("basic", "root:root"),
        connect("tls", ""),
        connect("sasl", "x"),
    ] {
        let method = wrong.auth_method_name.clone();
        let error = enter(&server, wrong).await.err();
        assert_eq!(error, Some(ServerError::AuthenticationError), "{method:?}");
    }
    for command in guarded(1) {
        let mut wire = knock(&server);
        wire.send(command).await;
        wire.closed().await;
    }
}

#[tokio::test]
async fn proxies_speak_for_those_who_may() {
    let server = house().await;
    grant(&server, "proxy", &[Action::Produce, Action::Consume]).await;
    let speak = |role: &str, original: &str| CommandConnect {
        original_principal: Some(original.to_owned()),
        ..connect("token", &token(role))
    };
    for (role, original) in [("proxy", ""), ("proxy", "proxy"), ("maker", "root")] {
        let error = enter(&server, speak(role, original)).await.err();
        assert_eq!(
            error,
            Some(ServerError::AuthorizationError),
            "{role} for {original}"
        );
    }
    for (original, allowed) in [("maker", true), ("stranger", false), ("root", true)] {
        let mut wire = enter(&server, speak("proxy", original)).await.unwrap();
        assert_eq!(
            wire.try_producer(producer()).await.is_ok(),
            allowed,
            "{original}"
        );
    }
}

#[tokio::test]
async fn an_expired_token_is_asked_for_and_renewed() {
    let server = house().await;
    let soon = || {
        let key = SigningKey::Secret(&SECRET);
        make(&key, None, "maker", Some(now_seconds() + 1)).unwrap()
    };
    let answer = |token: String| CommandAuthResponse {
        client_version: Some("test".to_owned()),
        response: Some(AuthData {
            auth_method_name: Some("token".to_owned()),
            auth_data: Some(token.into()),
        }),
        protocol_version: Some(21),
    };
    let challenged = async |wire: &mut Wire| {
        wire.find(|command, _| match command {
            Command::AuthChallenge(challenge) => challenge.challenge.clone(),
            _ => None,
        })
        .await
    };
    // Renewed: the connection stays.
    let mut wire = enter(&server, connect("token", &soon())).await.unwrap();
    let challenge = challenged(&mut wire).await;
    assert_eq!(
        challenge.auth_data.as_deref(),
        Some(&b"PulsarAuthRefresh"[..])
    );
    wire.send(answer(token("maker"))).await;
    wire.producer(TOPIC, 1, None).await;
    // Of another, or not at all: it ends.
    let mut wire = enter(&server, connect("token", &soon())).await.unwrap();
    challenged(&mut wire).await;
    wire.send(answer(token("root"))).await;
    assert!(matches!(wire.next().await.0, Command::Error(_)));
    wire.closed().await;
    let mut wire = enter(&server, connect("token", &soon())).await.unwrap();
    challenged(&mut wire).await;
    wire.closed().await;
    // A client that cannot be asked.
    let mut wire = enter(
        &server,
        CommandConnect {
            feature_flags: None,
            ..connect("token", &soon())
        },
    )
    .await
    .unwrap();
    wire.closed().await;
    // Nobody asked.
    let mut wire = enter_as(&server, "maker").await;
    wire.send(answer(token("maker"))).await;
    wire.closed().await;
}

#[tokio::test]
async fn grants_survive_a_crash() {
    let server = house().await.crash_and_restart(config()).await;
    let mut wire = enter_as(&server, "maker").await;
    wire.producer(TOPIC, 1, None).await;
    let mut wire = enter_as(&server, "boss").await;
    wire.producer(TOPIC, 1, None).await;
    let mut wire = enter_as(&server, "stranger").await;
    assert!(wire.try_producer(producer()).await.is_err());
}
