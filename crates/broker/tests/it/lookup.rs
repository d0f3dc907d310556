//! Lookups, partition metadata, topic lists, watchers, schemas.

use std::collections::BTreeSet;

use bytes::BytesMut;
use geminga_broker::{BrokerConfig, TopicType};
use geminga_proto::Command;
use geminga_proto::frame::encode_command;
use geminga_proto::pb::command_get_topics_of_namespace::Mode;
use geminga_proto::pb::command_lookup_topic_response::LookupType;
use geminga_proto::pb::*;

use crate::server::Server;
use crate::wire::{TOPIC, Wire, subscribe};

async fn partitions(wire: &mut Wire, topic: &str, create: bool) -> Result<u32, ServerError> {
    let request_id = wire.request();
    wire.send(CommandPartitionedTopicMetadata {
        topic: topic.to_owned(),
        request_id,
        metadata_auto_creation_enabled: Some(create),
        ..Default::default()
    })
    .await;
    wire.find(|command, _| match command {
        Command::PartitionedMetadataResponse(r) if r.request_id == request_id => {
            Some(match r.error {
                Some(_) => Err(r.error()),
                None => Ok(r.partitions()),
            })
        }
        _ => None,
    })
    .await
}

#[tokio::test]
async fn trap_20_a_loopback_broker_is_reached_through_the_clients_own_url() {
    let server = Server::new().await;
    let address = server
        .broker
        .listen("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let mut wire = server.connect_from_outside().await;
    let mut lookup = async |topic: &str| {
        wire.send(CommandLookupTopic {
            topic: topic.to_owned(),
            request_id: 1,
            ..CommandLookupTopic::default()
        })
        .await;
        match wire.next().await.0 {
            Command::LookupResponse(response) => response,
            other => panic!("{other:?}"),
        }
    };
    for topic in ["t", TOPIC, "public/default/x"] {
        let response = lookup(topic).await;
        assert_eq!(response.response(), LookupType::Connect);
        assert_eq!(
            response.broker_service_url,
            Some(format!("pulsar://{address}"))
        );
        assert_eq!(response.proxy_through_service_url, Some(true));
        assert_eq!(response.authoritative, Some(true));
    }
    let bad = lookup("persistent://public").await;
    assert_eq!(
        (bad.response(), bad.error()),
        (LookupType::Failed, ServerError::InvalidTopicName)
    );
    let missing = lookup("persistent://no/where/t").await;
    assert_eq!(missing.error(), ServerError::TopicNotFound);
}

#[tokio::test]
async fn an_advertised_host_elsewhere_is_connected_to() {
    let config = BrokerConfig {
        advertised_address: Some("broker.example".to_owned()),
        ..BrokerConfig::default()
    };
    let server = Server::with(config).await;
    server
        .broker
        .listen("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let mut wire = server.connect_from_outside().await;
    let lookup = CommandLookupTopic {
        topic: "t".to_owned(),
        ..Default::default()
    };
    wire.send(lookup).await;
    let Command::LookupResponse(response) = wire.next().await.0 else {
        panic!()
    };
    assert!(
        response
            .broker_service_url()
            .starts_with("pulsar://broker.example:")
    );
    assert_eq!(response.proxy_through_service_url, Some(false));
}

#[tokio::test]
async fn trap_11_missing_topics_and_the_auto_creation_flag() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    let missing = Err(ServerError::TopicNotFound);
    assert_eq!(partitions(&mut wire, "a-sub-DLQ", false).await, missing);
    assert_eq!(partitions(&mut wire, "a", true).await, Ok(0));
    assert_eq!(
        partitions(&mut wire, "a", false).await,
        missing,
        "asking made nothing"
    );
    wire.producer("a", 1, None).await;
    assert_eq!(partitions(&mut wire, "a", false).await, Ok(0));
    let name = "persistent://public/default/p".parse().unwrap();
    server
        .broker
        .create_partitioned(&name, 3, Default::default())
        .await
        .unwrap();
    assert_eq!(partitions(&mut wire, "p", false).await, Ok(3));
    assert_eq!(partitions(&mut wire, "p-partition-1", false).await, Ok(0));
    let bad = partitions(&mut wire, "persistent://a/b", true).await;
    assert_eq!(bad, Err(ServerError::InvalidTopicName));
}

#[tokio::test]
async fn topics_are_made_partitioned_where_that_is_the_default() {
    let config = BrokerConfig {
        allow_auto_topic_creation_type: TopicType::Partitioned,
        default_num_partitions: 4,
        ..BrokerConfig::default()
    };
    let server = Server::with(config).await;
    let mut wire = server.connect().await;
    assert_eq!(partitions(&mut wire, "x", true).await, Ok(4));
    assert_eq!(partitions(&mut wire, "x", false).await, Ok(4));
    assert_eq!(partitions(&mut wire, "x-DLQ", true).await, Ok(0));
    wire.producer("x-partition-3", 1, None).await;
    let beyond = CommandProducer {
        topic: "x-partition-4".to_owned(),
        producer_id: 2,
        ..CommandProducer::default()
    };
    let error = wire.try_producer(beyond.clone()).await.unwrap_err();
    assert_eq!(error.error(), ServerError::NotAllowedError);
    let parent = CommandProducer {
        topic: "x".to_owned(),
        ..beyond
    };
    let error = wire.try_producer(parent).await.unwrap_err();
    assert_eq!(error.error(), ServerError::NotAllowedError);
}

#[tokio::test]
async fn topics_are_not_made_where_that_is_off() {
    let config = BrokerConfig {
        allow_auto_topic_creation: false,
        ..BrokerConfig::default()
    };
    let server = Server::with(config).await;
    let mut wire = server.connect().await;
    assert_eq!(
        partitions(&mut wire, "x", true).await,
        Err(ServerError::TopicNotFound)
    );
    let producer = CommandProducer {
        topic: "x".to_owned(),
        ..CommandProducer::default()
    };
    let error = wire.try_producer(producer.clone()).await.unwrap_err();
    assert_eq!(error.error(), ServerError::TopicNotFound);
    server
        .broker
        .create_topic(&"persistent://public/default/x".parse().unwrap())
        .await
        .unwrap();
    wire.try_producer(producer).await.unwrap();
    let volatile = CommandProducer {
        topic: "non-persistent://public/default/x".to_owned(),
        producer_id: 5,
        ..CommandProducer::default()
    };
    let error = wire.try_producer(volatile).await.unwrap_err();
    assert_eq!(error.error(), ServerError::TopicNotFound);
}

#[tokio::test]
async fn trap_17_lists_hold_partitions_and_a_known_hash_saves_the_list() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    let name = "persistent://public/default/p".parse().unwrap();
    server
        .broker
        .create_partitioned(&name, 2, Default::default())
        .await
        .unwrap();
    for topic in ["a", "b", "__change_events"] {
        let name = format!("persistent://public/default/{topic}")
            .parse()
            .unwrap();
        server.broker.create_topic(&name).await.unwrap();
    }
    let mut list = async |pattern: Option<&str>, hash: Option<String>| {
        wire.send(CommandGetTopicsOfNamespace {
            request_id: 1,
            namespace: "public/default".to_owned(),
            mode: Some(Mode::Persistent as i32),
            topics_pattern: pattern.map(str::to_owned),
            topics_hash: hash,
            ..Default::default()
        })
        .await;
        match wire.next().await.0 {
            Command::GetTopicsOfNamespaceResponse(response) => response,
            other => panic!("{other:?}"),
        }
    };
    let all = list(None, None).await;
    let full = |names: &[&str]| -> Vec<String> {
        names
            .iter()
            .map(|name| format!("persistent://public/default/{name}"))
            .collect()
    };
    assert_eq!(
        all.topics,
        full(&["a", "b", "p-partition-0", "p-partition-1"])
    );
    assert_eq!((all.filtered(), all.changed()), (false, true));
    let some = list(Some("public/default/(a|p)"), None).await;
    assert_eq!(some.topics, full(&["a", "p-partition-0", "p-partition-1"]));
    assert!(some.filtered());
    let same = list(Some("public/default/(a|p)"), some.topics_hash.clone()).await;
    assert!(same.topics.is_empty() && !same.changed());
    let long = list(Some(&"a".repeat(51)), None).await;
    assert!(!long.filtered() && long.topics.len() == 4);
}

#[tokio::test]
async fn watchers_hear_of_new_and_deleted_topics() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    server
        .broker
        .create_topic(&"persistent://public/default/w0".parse().unwrap())
        .await
        .unwrap();
    let watch = |pattern: &str, request_id| CommandWatchTopicList {
        request_id,
        watcher_id: 7,
        namespace: "public/default".to_owned(),
        topics_pattern: pattern.to_owned(),
        topics_hash: None,
    };
    wire.send(watch(&"w".repeat(51), 1)).await;
    assert_eq!(
        wire.done(1).await.unwrap_err().error(),
        ServerError::NotAllowedError
    );
    wire.send(watch("w(", 2)).await;
    assert_eq!(
        wire.done(2).await.unwrap_err().error(),
        ServerError::InvalidTopicName
    );
    wire.send(watch("public/default/w.*", 3)).await;
    let Command::WatchTopicListSuccess(success) = wire.next().await.0 else {
        panic!()
    };
    assert_eq!(success.topic, ["persistent://public/default/w0"]);
    let mut other = server.connect().await;
    other.producer("other", 1, None).await;
    other.producer("w1", 2, None).await;
    let update = async |wire: &mut Wire| match wire.next().await.0 {
        Command::WatchTopicUpdate(update) => update,
        other => panic!("{other:?}"),
    };
    let new = update(&mut wire).await;
    assert_eq!(new.new_topics, ["persistent://public/default/w1"]);
    assert_ne!(new.topics_hash, success.topics_hash);
    let w1 = "persistent://public/default/w1".parse().unwrap();
    let busy = server.broker.delete_topic(&w1, false).await.unwrap_err();
    assert_eq!(busy.kind(), geminga_broker::ErrorKind::PreconditionFailed);
    server.broker.delete_topic(&w1, true).await.unwrap();
    let gone = update(&mut wire).await;
    assert_eq!(gone.deleted_topics, ["persistent://public/default/w1"]);
    assert_eq!(gone.topics_hash, success.topics_hash);
    wire.send(CommandWatchTopicListClose {
        request_id: 4,
        watcher_id: 7,
    })
    .await;
    wire.done(4).await.unwrap();
}

fn schema(kind: schema::Type, data: &str) -> Schema {
    Schema {
        name: "s".to_owned(),
        schema_data: data.as_bytes().to_vec().into(),
        r#type: kind as i32,
        properties: Vec::new(),
    }
}

#[tokio::test]
async fn schemas_have_versions_and_one_type() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    let with = |id: u64, schema: Schema| CommandProducer {
        topic: TOPIC.to_owned(),
        producer_id: id,
        schema: Some(schema),
        ..CommandProducer::default()
    };
    let json = r#"{"type":"record","name":"R","fields":[]}"#;
    let spaced = r#"{ "type" : "record", "name" : "R", "fields" : [] }"#;
    let other = r#"{"type":"record","name":"R","fields":[{"name":"a","type":"int","default":0}]}"#;
    let worse = r#"{"type":"record","name":"R","fields":[{"name":"b","type":"int"}]}"#;
    let version = |success: CommandProducerSuccess| success.schema_version.unwrap().to_vec();
    let first = wire
        .try_producer(with(1, schema(schema::Type::Json, json)))
        .await
        .unwrap();
    assert_eq!(version(first), [0; 8]);
    let same = wire
        .try_producer(with(2, schema(schema::Type::Json, spaced)))
        .await
        .unwrap();
    assert_eq!(
        version(same),
        [0; 8],
        "the same definition, spelled otherwise"
    );
    let next = wire
        .try_producer(with(3, schema(schema::Type::Json, other)))
        .await
        .unwrap();
    assert_eq!(version(next), 1u64.to_be_bytes());
    let error = wire
        .try_producer(with(4, schema(schema::Type::Json, worse)))
        .await
        .unwrap_err();
    assert_eq!(error.error(), ServerError::IncompatibleSchema);
    let error = wire
        .try_producer(with(4, schema(schema::Type::String, "")))
        .await
        .unwrap_err();
    assert_eq!(error.error(), ServerError::IncompatibleSchema);
    // trap 19: version bytes are big-endian; empty ones are an error.
    let mut get = async |topic: &str, version: Option<Vec<u8>>| {
        wire.send(CommandGetSchema {
            request_id: 1,
            topic: topic.to_owned(),
            schema_version: version.map(Into::into),
        })
        .await;
        match wire.next().await.0 {
            Command::GetSchemaResponse(response) => response,
            other => panic!("{other:?}"),
        }
    };
    let latest = get(TOPIC, None).await;
    assert_eq!(latest.schema.unwrap().schema_data, other.as_bytes());
    let old = get(TOPIC, Some(vec![0; 8])).await;
    assert_eq!(old.schema.unwrap().schema_data, json.as_bytes());
    assert_eq!(
        get(TOPIC, Some(Vec::new())).await.error_code(),
        ServerError::IncompatibleSchema
    );
    assert_eq!(
        get("none", None).await.error_code(),
        ServerError::TopicNotFound
    );
}

#[tokio::test]
async fn trap_19_a_consumers_schema_on_a_used_topic_without_one_is_refused() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    let typed = |id: u64, topic: &str| CommandSubscribe {
        topic: topic.to_owned(),
        schema: Some(schema(schema::Type::String, "")),
        ..subscribe(id, "s", command_subscribe::SubType::Shared)
    };
    // An idle topic gets the consumer's schema.
    wire.subscribe(typed(1, "idle")).await;
    wire.subscribe(typed(2, "idle")).await;
    wire.producer("used", 1, None).await;
    wire.publish_all(1, &["x"]).await;
    let error = wire.try_subscribe(typed(3, "used")).await.unwrap_err();
    assert_eq!(error.error(), ServerError::IncompatibleSchema);
}

#[tokio::test]
async fn get_or_create_schema_needs_the_topic() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    let mut create = async |topic: &str, schema: Schema| {
        wire.send(CommandGetOrCreateSchema {
            request_id: 1,
            topic: topic.to_owned(),
            schema,
            ..Default::default()
        })
        .await;
        match wire.next().await.0 {
            Command::GetOrCreateSchemaResponse(response) => response,
            other => panic!("{other:?}"),
        }
    };
    let string = schema(schema::Type::String, "");
    let missing = create("none", string.clone()).await;
    assert_eq!(missing.error_code(), ServerError::TopicNotFound);
    server
        .broker
        .create_topic(&TOPIC.parse().unwrap())
        .await
        .unwrap();
    let none = create(TOPIC, schema(schema::Type::None, "")).await;
    assert_eq!(none.schema_version(), b"");
    assert_eq!(create(TOPIC, string).await.schema_version(), [0; 8]);
}

#[tokio::test]
async fn more_requests_at_once_than_may_be_under_way_are_all_answered_once() {
    let server = Server::new().await;
    let mut wire = server.connect().await;
    let count = 3_000;
    let mut all = BytesMut::new();
    for request_id in 0..count {
        let request = CommandPartitionedTopicMetadata {
            topic: format!("persistent://public/default/many-{}", request_id % 7),
            request_id,
            metadata_auto_creation_enabled: Some(false),
            ..Default::default()
        };
        encode_command(&request.into(), &mut all);
    }
    encode_command(&CommandPing {}.into(), &mut all);
    wire.raw(&all).await;
    let (mut answered, mut pongs) = (BTreeSet::new(), 0);
    while (answered.len() as u64) < count || pongs == 0 {
        match wire.next().await.0 {
            Command::PartitionedMetadataResponse(r) => assert!(answered.insert(r.request_id)),
            Command::Pong(_) => pongs += 1,
            other => panic!("{other:?}"),
        }
    }
    wire.quiet().await;
}
